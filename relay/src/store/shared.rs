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
//! - [`watched`]: what is counted of an engine, and that it fails
//! - [`examine`]: what `godwit store check` finds
//! - [`copy`]: bringing a store here from its file

mod commit;
pub mod copy;
mod draft;
#[cfg(feature = "dynamodb")]
pub mod dynamo;
pub mod engine;
mod examine;
mod journal;
mod layout;
mod live;
pub mod memory;
mod watched;
mod workers;

pub(crate) use commit::Pen;
pub use examine::examine;
pub(crate) use journal::Topic;
pub(crate) use watched::Watched;
pub(crate) use workers::{TakeUp, Topics, Worker};

use super::file::{self, FORMAT};
use super::rows::Rows;
use super::tables::TableId;
use super::{StoreError, meta};
use crate::host::Threads;
use engine::{Change, Engine, EngineError, If, Item};
use godwit_wire::RegionId;
use std::sync::Arc;

/// Notes in an empty store whose it is; leaves one that is this region's as it is.
///
/// # Errors
/// The engine's; and if it is another region's, or was made by a newer version.
pub async fn init(engine: Arc<dyn Engine>, region: &RegionId, threads: &Threads) -> Result<(), StoreError> {
    // Of its own, by which relays tell that they share it. The format comes last: without it nobody starts.
    let (generation, format) = (fastrand::u64(1..).to_string(), FORMAT.to_string());
    for (name, value) in [(meta::REGION, region.as_str()), (meta::GENERATION, &generation), (meta::FORMAT, &format)] {
        match say(&*engine, name, value.to_owned(), If::Absent).await {
            Ok(()) | Err(StoreError::Engine(EngineError::Refused)) => {}
            Err(error) => return Err(error),
        }
    }
    checked(engine, region, threads).await.map(drop)
}

/// Whether [`init`] was through with this store; false if it cannot be asked, for want of tables or of rights.
///
/// # Errors
/// The engine's.
pub async fn was_made(engine: Arc<dyn Engine>, threads: &Threads) -> Result<bool, StoreError> {
    match said(engine, meta::FORMAT, threads).await {
        Err(StoreError::Engine(EngineError::Setup(_))) => Ok(false),
        format => Ok(format?.is_some()),
    }
}

/// What a store says about itself.
async fn said(engine: Arc<dyn Engine>, name: &'static str, threads: &Threads) -> Result<Option<String>, StoreError> {
    let reading = threads.blocking(move || meta::get(&live::Live::new(engine, None), name));
    reading.await.unwrap_or(Err(StoreError::Closed))
}

/// Writes what a store says about itself.
async fn say(engine: &dyn Engine, name: &str, value: String, when: If) -> Result<(), StoreError> {
    let place = layout::place(TableId::Meta, name.as_bytes())?;
    let item = Item { value: value.into(), order: 0 };
    Ok(engine.change(Change { place, item: Some(item), when }).await?)
}

/// As [`check`], from where it may not block.
pub(super) async fn checked(
    engine: Arc<dyn Engine>,
    region: &RegionId,
    threads: &Threads,
) -> Result<(u64, u64), StoreError> {
    let region = region.clone();
    let checking = threads.blocking(move || check(&live::Live::new(engine, None), &region));
    checking.await.unwrap_or(Err(StoreError::Closed))
}

/// As [`checked`]. Tables other than those that a relay started on last were restored from a backup: the store gets a new
/// generation, the same by whichever relay comes first.
pub(super) async fn opened(
    engine: Arc<dyn Engine>,
    region: &RegionId,
    threads: &Threads,
) -> Result<(u64, u64), StoreError> {
    let found = checked(engine.clone(), region, threads).await?;
    raise(&engine, threads).await?;
    let Some(identity) = engine.identity().await? else { return Ok(found) };
    let known = said(engine.clone(), meta::TABLES, threads).await?;
    if known.as_ref() == Some(&identity) {
        return Ok(found);
    }
    if known.is_some() {
        let generation = crate::rank::fnv_1a(identity.as_bytes());
        tracing::warn!(generation, "the store was restored: clients and other regions compare what they have");
        // Before the name: without the one, the other is noticed again.
        say(&*engine, meta::GENERATION, generation.to_string(), If::Always).await?;
    }
    say(&*engine, meta::TABLES, identity, If::Always).await?;
    checked(engine, region, threads).await
}

/// Notes that this version writes to the store: one that knows former formats alone would not find all of it.
async fn raise(engine: &Arc<dyn Engine>, threads: &Threads) -> Result<(), StoreError> {
    let (found, format) = (said(engine.clone(), meta::FORMAT, threads).await?, FORMAT.to_string());
    let Some(found) = found.filter(|found| *found != format) else { return Ok(()) };
    match say(&**engine, meta::FORMAT, format, If::Value(found.into())).await {
        // Another relay came first.
        Err(StoreError::Engine(EngineError::Refused)) => Ok(()),
        said => said,
    }
}

/// The generation of a store of `region`, and what clients compare anew for.
fn check(rows: &dyn Rows, region: &RegionId) -> Result<(u64, u64), StoreError> {
    let format = meta::get(rows, meta::FORMAT)?.ok_or(StoreError::NotMade)?;
    if copy::is_half(&format) {
        return Err(StoreError::HalfCopied);
    }
    if !file::is_known(&format) {
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
