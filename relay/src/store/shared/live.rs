//! Rows as a shared store has them now, entries of logs taken out of their items.

use super::engine::{Engine, Item, Page, Query};
use super::journal::Sheet;
use super::layout::{self, Extent};
use crate::store::StoreError;
use crate::store::keys::{self, Span};
use crate::store::rows::{Flow, Freshness, Order, Rows, Scan};
use crate::store::tables::TableId;
use bytes::Bytes;
use godwit_core::entry::encode_record;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::ops::ControlFlow::{Break, Continue};
use std::sync::{Arc, Mutex, PoisonError};

/// Items asked for at a time, at most.
const PAGE_ITEMS: usize = 1000;

/// Up to which entry chats may be read, where that is not the head: the rows of what follows are not all written. By the
/// key of the chat.
#[derive(Debug, Default)]
pub(crate) struct Bounds(Mutex<HashMap<Vec<u8>, u64>>);

impl Bounds {
    fn of(&self, chat: &[u8]) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(chat).copied()
    }

    pub(super) fn set(&self, chat: Vec<u8>, up_to: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(chat, up_to);
    }

    pub(super) fn lift(&self, chat: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(chat);
    }
}

/// The entries of items, by partition and the seq of the first.
type Logs = BTreeMap<(Vec<u8>, u64), Vec<Bytes>>;

/// What is in a shared store.
pub(crate) struct Live {
    engine: Arc<dyn Engine>,
    /// None for whoever writes those rows.
    bounds: Option<Arc<Bounds>>,
    /// What was read of logs: one item answers for all its entries.
    read: RefCell<Logs>,
}

impl Live {
    pub(super) fn new(engine: Arc<dyn Engine>, bounds: Option<Arc<Bounds>>) -> Self {
        Self { engine, bounds, read: RefCell::default() }
    }

    /// The item that holds an entry, or would: where it stands.
    fn holding(&self, partition: &[u8], sort: &[u8]) -> Result<Option<(Vec<u8>, Item)>, StoreError> {
        Ok(self.engine.last(TableId::Log.name(), partition, Bound::Included(sort.to_vec()))?)
    }

    /// The record of an entry.
    fn entry(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let place = layout::place(TableId::Log, key)?;
        let seq = keys::number_of(key)?;
        if self.bounds.as_ref().and_then(|bounds| bounds.of(&place.partition)).is_some_and(|bound| seq > bound) {
            return Ok(None);
        }
        let known = |read: &Logs| {
            let ((partition, first), entries) = read.range(..=(place.partition.clone(), seq)).next_back()?;
            let index = usize::try_from(seq - first).ok().filter(|_| *partition == place.partition)?;
            entries.get(index).cloned()
        };
        if let Some(entry) = known(&self.read.borrow()) {
            return Ok(Some(entry));
        }
        let Some((sort, item)) = self.holding(&place.partition, &place.sort)? else { return Ok(None) };
        let entries = Sheet::decode(&item.value)?.entries;
        self.read.borrow_mut().insert((place.partition.clone(), keys::number_of(&sort)?), entries);
        Ok(known(&self.read.borrow()))
    }

    /// The items of a partition one page after the other, until `see` has seen enough.
    fn items(&self, mut query: Query<'_>, mut see: impl FnMut(&[u8], &Item) -> Flow) -> Result<(), StoreError> {
        query.most = query.most.min(PAGE_ITEMS);
        loop {
            let Page { items, more } = self.engine.query(&query)?;
            for (sort, item) in &items {
                if see(sort, item)?.is_break() {
                    return Ok(());
                }
            }
            let Some((last, _)) = items.last().filter(|_| more) else { return Ok(()) };
            let behind = Bound::Excluded(last.clone());
            if query.descending {
                query.to = behind;
            } else {
                query.from = behind;
            }
            // The first page was not enough.
            query.most = PAGE_ITEMS;
        }
    }

    /// Rows of one partition. As many as the scan wants are likely to be seen.
    fn partition(
        &self,
        table: TableId,
        partition: &[u8],
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        if table == TableId::Log {
            return self.log(partition, span, scan, see);
        }
        let (from, to) = layout::sorts(table, partition, span);
        let query = Query {
            table: table.name(),
            partition,
            from: from.map_or(Bound::Unbounded, Bound::Included),
            to: to.map_or(Bound::Unbounded, Bound::Excluded),
            descending: scan.order == Order::Descending,
            most: scan.most,
            lately: scan.freshness == Freshness::Lately,
        };
        self.items(query, |sort, item| see(&layout::key(table, partition, sort), &shown(table, item)))
    }

    /// Entries of one chat. An item stands at its first entry, and the span may begin within one.
    fn log(
        &self,
        partition: &[u8],
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        let bound = self.bounds.as_ref().and_then(|bounds| bounds.of(partition));
        let (from, to) = layout::sorts(TableId::Log, partition, span);
        let mut query = Query {
            table: TableId::Log.name(),
            partition,
            from: Bound::Unbounded,
            to: to.map_or(Bound::Unbounded, Bound::Excluded),
            descending: scan.order == Order::Descending,
            most: scan.most,
            lately: scan.freshness == Freshness::Lately,
        };
        if let Some(from) = from.filter(|_| !query.descending && span.start != partition) {
            let holding = self.holding(partition, &from)?;
            query.from = Bound::Included(holding.map_or(from, |(sort, _)| sort));
        }
        self.items(query, |sort, item| {
            let mut entries = unpack(partition, sort, item)?;
            if self.bounds.is_none() {
                let records = entries.iter().map(|(_, entry)| entry.clone()).collect();
                self.read.borrow_mut().insert((partition.to_vec(), keys::number_of(sort)?), records);
            }
            if scan.order == Order::Descending {
                entries.reverse();
            }
            for (key, entry) in entries {
                let is_hidden = bound.is_some_and(|bound| keys::number_of(&key).is_ok_and(|seq| seq > bound));
                if is_hidden || !span.holds(&key) {
                    if scan.order == Order::Descending && key < span.start {
                        return Ok(Break(()));
                    }
                    continue;
                }
                if see(&key, &entry)?.is_break() {
                    return Ok(Break(()));
                }
            }
            Ok(Continue(()))
        })
    }

    /// All rows of a table in a span, whatever partitions they are in.
    fn everywhere(&self, table: TableId, span: &Span) -> Result<BTreeMap<Vec<u8>, Bytes>, StoreError> {
        let mut rows = BTreeMap::new();
        self.whole(table, |key, value| {
            if span.holds(&key) {
                rows.insert(key, value);
            }
        })?;
        Ok(rows)
    }

    /// Shows all rows of a table, in no order.
    pub(super) fn whole(&self, table: TableId, mut see: impl FnMut(Vec<u8>, Bytes)) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let part = self.engine.scan(table.name(), after.as_ref())?;
            for (place, item) in part.items {
                let found = if table == TableId::Log {
                    unpack(&place.partition, &place.sort, &item)?
                } else {
                    vec![(layout::key(table, &place.partition, &place.sort), shown(table, &item))]
                };
                for (key, value) in found {
                    see(key, value);
                }
            }
            match part.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

/// The record of an item. What marks a dirty chat names whoever set the mark, which is no business of records.
fn shown(table: TableId, item: &Item) -> Bytes {
    if table == TableId::Dirty { encode_record(&()).into() } else { item.value.clone() }
}

/// The entries of an item with their keys.
fn unpack(partition: &[u8], sort: &[u8], item: &Item) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
    let first = keys::number_of(sort)?;
    let entries = Sheet::decode(&item.value)?.entries;
    Ok((first..).zip(entries).map(|(seq, entry)| ([partition, &seq.to_be_bytes()].concat(), entry)).collect())
}

impl Rows for Live {
    fn look(
        &self,
        table: TableId,
        key: &[u8],
        see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if table == TableId::Log {
            return self.entry(key)?.map_or(Ok(()), |entry| see(&entry));
        }
        match self.engine.get(&layout::place(table, key)?)? {
            Some(item) => see(&shown(table, &item)),
            None => Ok(()),
        }
    }

    fn scan(
        &self,
        table: TableId,
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        if scan.most == 0 || !span.end.is_empty() && span.start >= span.end {
            return Ok(());
        }
        let left = Cell::new(scan.most);
        let mut counted = |key: &[u8], value: &[u8]| {
            left.set(if see(key, value)?.is_break() { 0 } else { left.get() - 1 });
            Ok(if left.get() == 0 { Break(()) } else { Continue(()) })
        };
        let rows = match layout::extent(table, span) {
            Extent::InOrder(mut partitions) => {
                if scan.order == Order::Descending {
                    partitions.reverse();
                }
                for partition in partitions {
                    if left.get() > 0 {
                        let rest = Scan { most: left.get(), ..scan };
                        self.partition(table, &partition, span, rest, &mut counted)?;
                    }
                }
                return Ok(());
            }
            Extent::Mixed(partitions) => {
                // The first of each are all that can be among the first of all.
                let mut rows = BTreeMap::new();
                for partition in partitions {
                    let mut wanted = scan.most;
                    self.partition(table, &partition, span, scan, &mut |key, value| {
                        rows.insert(key.to_vec(), Bytes::copy_from_slice(value));
                        wanted -= 1;
                        Ok(if wanted == 0 { Break(()) } else { Continue(()) })
                    })?;
                }
                rows
            }
            Extent::Anywhere => self.everywhere(table, span)?,
        };
        let mut see_all = |mut rows: Box<dyn Iterator<Item = (Vec<u8>, Bytes)>>| {
            let flow = rows.try_for_each(|(key, value)| match counted(&key, &value) {
                Ok(Continue(())) => Continue(()),
                Ok(Break(())) => Break(Ok(())),
                Err(error) => Break(Err(error)),
            });
            flow.break_value().unwrap_or(Ok(()))
        };
        match scan.order {
            Order::Ascending => see_all(Box::new(rows.into_iter())),
            Order::Descending => see_all(Box::new(rows.into_iter().rev())),
        }
    }
}
