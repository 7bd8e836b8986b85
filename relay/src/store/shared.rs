//! A store that many relays of a region share: the same records as in redb, behind an API that writes one item at a time.
//!
//! What is decided and what follows from it is the same code as on redb; only how it is written differs. One conditional
//! write on the next place of a chat's log is the commit ([`journal`]); the rows that follow from it come after, each only
//! over an older one, and whoever takes the chat up next finishes them first. No write spans items, so that any server
//! of the DynamoDB API will do.
//!
//! - [`engine`]: what is asked of such a store; [`memory`] and [`dynamo`] are
//! - [`layout`]: where a row is
//! - [`journal`]: what one batch writes, and how it is fenced
//! - [`live`], [`draft`]: rows read from the engine, and rows changed
//! - [`commit`]: writing a batch
//! - [`workers`]: which batches run when

mod commit;
mod draft;
pub mod engine;
mod journal;
mod layout;
mod live;
pub mod memory;
mod workers;

pub(crate) use commit::Pen;
pub(crate) use journal::Topic;
pub(crate) use workers::{TakeUp, Topics, Worker};

use super::file::FORMAT;
use super::rows::Rows;
use super::tables::TableId;
use super::{StoreError, meta};
use engine::{Change, Engine, EngineError, If, Item};
use godwit_wire::RegionId;

/// Notes in an empty store whose it is; leaves one that is this region's as it is.
///
/// # Errors
/// The engine's; and if it is another region's, or was made by a newer version.
pub async fn init(engine: std::sync::Arc<dyn Engine>, region: &RegionId) -> Result<(), StoreError> {
    // The format comes last: without it nobody starts.
    for (name, value) in [(meta::REGION, region.as_str()), (meta::GENERATION, "1"), (meta::FORMAT, &FORMAT.to_string())]
    {
        let place = layout::place(TableId::Meta, name.as_bytes())?;
        let item = Item { value: value.to_owned().into(), order: 0 };
        match engine.change(Change { place, item: Some(item), when: If::Absent }).await {
            Ok(()) | Err(EngineError::Refused) => {}
            Err(error) => return Err(error.into()),
        }
    }
    check(&live::Live::new(engine, None), region).map(drop)
}

/// The generation of a store of `region`, and what clients compare anew for.
pub(super) fn check(rows: &dyn Rows, region: &RegionId) -> Result<(u64, u64), StoreError> {
    let format = meta::get(rows, meta::FORMAT)?.ok_or(StoreError::NotMade)?;
    if format.parse() != Ok(FORMAT) {
        return Err(StoreError::SharedNewer { found: format, known: FORMAT });
    }
    let found = meta::get(rows, meta::REGION)?.unwrap_or_default();
    if found != region.as_str() {
        return Err(StoreError::SharedOtherRegion { found, expected: region.to_string() });
    }
    let number = |name| Ok::<_, StoreError>(meta::get(rows, name)?.and_then(|text| text.parse::<u64>().ok()));
    let generation = number(meta::GENERATION)?.ok_or(StoreError::Inconsistent("no generation"))?;
    Ok((generation, generation ^ number(meta::COMPARISON)?.unwrap_or(0)))
}
