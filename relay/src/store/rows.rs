//! What a store is made of: tables of rows in the order of their keys. [`super::embedded`] keeps them in redb; whatever
//! else does is an engine too, and all that is decided and projected is the same on it.

use super::StoreError;
use super::keys::Span;
use super::tables::{Record, Table, TableId};
use godwit_core::entry::{decode_record, encode_record};
use std::ops::ControlFlow;

/// From which end of a span its rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// How new rows must be that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Now,
    /// As they were a moment ago will do: a shared store has those at half the price.
    Lately,
}

/// Which rows of a span are read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    pub(super) order: Order,
    /// So many, at most.
    pub(super) most: usize,
    pub(super) freshness: Freshness,
}

impl Scan {
    pub(super) const ALL: Self = Self { order: Order::Ascending, most: usize::MAX, freshness: Freshness::Now };
}

/// Whether a scan goes on.
pub(super) type Flow = Result<ControlFlow<()>, StoreError>;

/// Reads rows.
pub(super) trait Rows {
    /// Shows the value under `key`, if there is one.
    fn look(
        &self,
        table: TableId,
        key: &[u8],
        see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Shows rows of a span, key and value.
    fn scan(
        &self,
        table: TableId,
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError>;
}

/// Changes rows. Whoever changes them reads them as changed.
pub(super) trait RowsMut: Rows {
    fn insert(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), StoreError>;
    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError>;
    fn remove_all(&mut self, table: TableId, span: &Span) -> Result<(), StoreError>;
}

/// Reads records.
pub(super) trait Records: Rows {
    fn get<R: Record>(&self, table: Table<R>, key: &[u8]) -> Result<Option<R>, StoreError> {
        let mut found = None;
        self.look(table.id, key, &mut |value| {
            found = Some(decode(value)?);
            Ok(())
        })?;
        Ok(found)
    }

    fn has(&self, table: Table<()>, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(table, key)?.is_some())
    }

    /// Shows every record of a span, ascending.
    fn each<R: Record>(
        &self,
        table: Table<R>,
        span: &Span,
        mut see: impl FnMut(&[u8], R) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan(table.id, span, Scan::ALL, &mut |key, value| {
            see(key, decode(value)?)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Records of a span with their keys.
    fn some<R: Record>(&self, table: Table<R>, span: &Span, scan: Scan) -> Result<Vec<(Vec<u8>, R)>, StoreError> {
        let mut found = Vec::new();
        self.scan(table.id, span, scan, &mut |key, value| {
            found.push((key.to_vec(), decode(value)?));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// The first records of a span with their keys, ascending.
    fn first<R: Record>(&self, table: Table<R>, span: &Span, most: usize) -> Result<Vec<(Vec<u8>, R)>, StoreError> {
        self.some(table, span, Scan { most, ..Scan::ALL })
    }

    /// All records of a span with their keys, ascending.
    fn all<R: Record>(&self, table: Table<R>, span: &Span) -> Result<Vec<(Vec<u8>, R)>, StoreError> {
        self.some(table, span, Scan::ALL)
    }

    fn last<R: Record>(&self, table: Table<R>, span: &Span) -> Result<Option<(Vec<u8>, R)>, StoreError> {
        Ok(self.some(table, span, Scan { order: Order::Descending, most: 1, ..Scan::ALL })?.pop())
    }

    fn is_empty<R: Record>(&self, table: Table<R>, span: &Span) -> Result<bool, StoreError> {
        Ok(self.first(table, span, 1)?.is_empty())
    }
}

impl<T: Rows + ?Sized> Records for T {}

/// Changes records.
pub(super) trait RecordsMut: RowsMut {
    fn put<R: Record>(&mut self, table: Table<R>, key: &[u8], record: &R) -> Result<(), StoreError> {
        self.insert(table.id, key, &encode_record(record))
    }

    fn delete<R: Record>(&mut self, table: Table<R>, key: &[u8]) -> Result<(), StoreError> {
        self.remove(table.id, key)
    }

    fn clear<R: Record>(&mut self, table: Table<R>, span: &Span) -> Result<(), StoreError> {
        self.remove_all(table.id, span)
    }
}

impl<T: RowsMut + ?Sized> RecordsMut for T {}

pub(super) fn decode<R: Record>(bytes: &[u8]) -> Result<R, StoreError> {
    Ok(decode_record(bytes)?)
}
