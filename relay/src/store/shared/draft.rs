//! Changes of rows before they are written: read as changed, and kept with what was read.

use super::live::Live;
use crate::store::StoreError;
use crate::store::keys::Span;
use crate::store::rows::{Flow, Order, Rows, RowsMut, Scan};
use crate::store::tables::TableId;
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow::{Break, Continue};

type Cell = (TableId, Vec<u8>);

pub(super) struct Draft {
    live: Live,
    changed: BTreeMap<Cell, Option<Bytes>>,
    /// What was there of what was read.
    seen: RefCell<BTreeMap<Cell, Option<Bytes>>>,
}

/// A row to write, or to remove if it has no value.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) table: TableId,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Bytes>,
    pub(super) seen: Seen,
}

/// What was there before a change.
#[derive(Debug)]
pub(super) enum Seen {
    Unread,
    Nothing,
    Value(Bytes),
}

impl Draft {
    pub(super) fn new(live: Live) -> Self {
        Self { live, changed: BTreeMap::new(), seen: RefCell::default() }
    }

    /// All changes that change something, in the order of the tables.
    pub(super) fn changes(self) -> Vec<Changed> {
        let mut seen = self.seen.into_inner();
        let all = self.changed.into_iter().map(|(cell, value)| {
            let seen = match seen.remove(&cell) {
                None => Seen::Unread,
                Some(None) => Seen::Nothing,
                Some(Some(value)) => Seen::Value(value),
            };
            Changed { table: cell.0, key: cell.1, value, seen }
        });
        all.filter(|changed| match (&changed.seen, &changed.value) {
            (Seen::Nothing, value) => value.is_some(),
            (Seen::Value(seen), value) => value.as_ref() != Some(seen),
            (Seen::Unread, _) => true,
        })
        .collect()
    }
}

impl Rows for Draft {
    fn look(
        &self,
        table: TableId,
        key: &[u8],
        see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let cell = (table, key.to_vec());
        if let Some(changed) = self.changed.get(&cell) {
            return changed.as_deref().map_or(Ok(()), see);
        }
        let mut found = None;
        self.live.look(table, key, &mut |value| {
            found = Some(Bytes::copy_from_slice(value));
            Ok(())
        })?;
        let result = found.as_deref().map_or(Ok(()), see);
        self.seen.borrow_mut().entry(cell).or_insert(found);
        result
    }

    fn scan(
        &self,
        table: TableId,
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        let changed: Vec<_> = self.changed.iter().filter(|((of, key), _)| *of == table && span.holds(key)).collect();
        // As many more as may be among them and gone.
        let mut wanted = scan.most.saturating_add(changed.len());
        let mut rows = BTreeMap::new();
        self.live.scan(table, span, Scan { most: wanted, ..scan }, &mut |key, value| {
            let value = Bytes::copy_from_slice(value);
            self.seen.borrow_mut().entry((table, key.to_vec())).or_insert_with(|| Some(value.clone()));
            rows.insert(key.to_vec(), value);
            wanted -= 1;
            Ok(if wanted == 0 { Break(()) } else { Continue(()) })
        })?;
        for ((_, key), value) in changed {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        let mut left = scan.most;
        let mut rows = rows.into_iter();
        while left > 0 {
            let next = if scan.order == Order::Ascending { rows.next() } else { rows.next_back() };
            let Some((key, value)) = next else { break };
            if see(&key, &value)?.is_break() {
                break;
            }
            left -= 1;
        }
        Ok(())
    }
}

impl RowsMut for Draft {
    fn insert(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.changed.insert((table, key.to_vec()), Some(Bytes::copy_from_slice(value)));
        Ok(())
    }

    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError> {
        self.changed.insert((table, key.to_vec()), None);
        Ok(())
    }

    fn remove_all(&mut self, table: TableId, span: &Span) -> Result<(), StoreError> {
        let mut keys = Vec::new();
        self.scan(table, span, Scan::ALL, &mut |key, _| {
            keys.push(key.to_vec());
            Ok(Continue(()))
        })?;
        keys.iter().try_for_each(|key| self.remove(table, key))
    }
}
