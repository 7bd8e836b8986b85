//! Rows in redb: a snapshot, and a transaction of the one writer.

use super::StoreError;
use super::keys::Span;
use super::rows::{Flow, Order, Rows, RowsMut, Scan};
use super::tables::TableId;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use std::cell::OnceCell;

type Key = &'static [u8];
type Value = &'static [u8];

pub(super) fn definition(table: TableId) -> TableDefinition<'static, Key, Value> {
    TableDefinition::new(table.name())
}

/// What the store held at one moment. A table that is not there has no rows.
pub(super) struct Moment {
    txn: ReadTransaction,
    tables: [OnceCell<Option<ReadOnlyTable<Key, Value>>>; TableId::ALL.len()],
}

impl Moment {
    pub(super) fn now(database: &Database) -> Result<Self, StoreError> {
        Ok(Self { txn: database.begin_read()?, tables: Default::default() })
    }

    /// There is no table in it at all.
    pub(super) fn is_blank(&self) -> Result<bool, StoreError> {
        Ok(self.txn.list_tables()?.next().is_none())
    }

    pub(super) fn table(&self, table: TableId) -> Result<Option<&ReadOnlyTable<Key, Value>>, StoreError> {
        let place = &self.tables[table as usize];
        if let Some(opened) = place.get() {
            return Ok(opened.as_ref());
        }
        let opened = match self.txn.open_table(definition(table)) {
            Ok(opened) => Some(opened),
            Err(redb::TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(place.get_or_init(|| opened).as_ref())
    }
}

impl Rows for Moment {
    fn look(
        &self,
        table: TableId,
        key: &[u8],
        see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.table(table)?.map_or(Ok(()), |table| look(table, key, see))
    }

    fn scan(
        &self,
        table: TableId,
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        self.table(table)?.map_or(Ok(()), |table| in_span(table, span, scan, see))
    }
}

/// Changes that are committed together.
pub(super) struct Transaction<'t> {
    txn: &'t WriteTransaction,
    tables: [OnceCell<redb::Table<'t, Key, Value>>; TableId::ALL.len()],
}

impl<'t> Transaction<'t> {
    pub(super) fn new(txn: &'t WriteTransaction) -> Self {
        Self { txn, tables: Default::default() }
    }

    fn table(&self, table: TableId) -> Result<&redb::Table<'t, Key, Value>, StoreError> {
        let place = &self.tables[table as usize];
        if let Some(opened) = place.get() {
            return Ok(opened);
        }
        let opened = self.txn.open_table(definition(table))?;
        Ok(place.get_or_init(|| opened))
    }

    fn table_mut(&mut self, table: TableId) -> Result<&mut redb::Table<'t, Key, Value>, StoreError> {
        self.table(table)?;
        Ok(self.tables[table as usize].get_mut().expect("it was opened above"))
    }
}

impl Rows for Transaction<'_> {
    fn look(
        &self,
        table: TableId,
        key: &[u8],
        see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        look(self.table(table)?, key, see)
    }

    fn scan(
        &self,
        table: TableId,
        span: &Span,
        scan: Scan,
        see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
    ) -> Result<(), StoreError> {
        in_span(self.table(table)?, span, scan, see)
    }
}

impl RowsMut for Transaction<'_> {
    fn insert(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.table_mut(table)?.insert(key, value)?;
        Ok(())
    }

    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), StoreError> {
        self.table_mut(table)?.remove(key)?;
        Ok(())
    }

    fn remove_all(&mut self, table: TableId, span: &Span) -> Result<(), StoreError> {
        Ok(self.table_mut(table)?.retain_in::<&[u8], _>(span.bounds(), |_, _| false)?)
    }
}

fn look(
    table: &impl ReadableTable<Key, Value>,
    key: &[u8],
    see: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    match table.get(key)? {
        Some(value) => see(value.value()),
        None => Ok(()),
    }
}

fn in_span(
    table: &impl ReadableTable<Key, Value>,
    span: &Span,
    Scan { order, most, .. }: Scan,
    see: &mut dyn FnMut(&[u8], &[u8]) -> Flow,
) -> Result<(), StoreError> {
    let mut rows = table.range::<&[u8]>(span.bounds())?;
    for _ in 0..most {
        let row = match order {
            Order::Ascending => rows.next(),
            Order::Descending => rows.next_back(),
        };
        let Some(row) = row else { break };
        let (key, value) = row?;
        if see(key.value(), value.value())?.is_break() {
            break;
        }
    }
    Ok(())
}
