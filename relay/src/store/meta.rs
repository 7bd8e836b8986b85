//! What a store says about itself: names with a text each, as they are.

use super::StoreError;
use super::keys::Span;
use super::rows::{Rows, RowsMut, Scan};
use super::tables::TableId;
use std::ops::ControlFlow;

pub(super) const FORMAT: &str = "format";
pub(super) const GENERATION: &str = "generation";
/// Another each time that clients are to compare what they have though this store was not restored.
pub(super) const COMPARISON: &str = "comparison";
pub(super) const REGION: &str = "region";
/// Of a shared store: which tables those are that relays started on last.
pub(super) const TABLES: &str = "tables";
/// Of a copy that no relay has started on yet.
pub(super) const COPY: &str = "copy";
/// How often a relay has started on the file.
pub(super) const RUNS: &str = "runs";

pub(super) fn get(rows: &dyn Rows, name: &str) -> Result<Option<String>, StoreError> {
    let mut found = None;
    rows.look(TableId::Meta, name.as_bytes(), &mut |value| {
        found = Some(text(value));
        Ok(())
    })?;
    Ok(found)
}

/// All that begin with `prefix`, with what follows it.
pub(super) fn beginning_with(rows: &dyn Rows, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
    let mut found = Vec::new();
    let span = Span::starting_with(prefix.as_bytes());
    rows.scan(TableId::Meta, &span, Scan::ALL, &mut |key, value| {
        found.push((text(&key[prefix.len()..]), text(value)));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

pub(super) fn put(rows: &mut dyn RowsMut, name: &str, value: &str) -> Result<(), StoreError> {
    rows.insert(TableId::Meta, name.as_bytes(), value.as_bytes())
}

pub(super) fn remove(rows: &mut dyn RowsMut, name: &str) -> Result<(), StoreError> {
    rows.remove(TableId::Meta, name.as_bytes())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
