//! An engine of a shared store that counts what is asked of it, as a bill would.

use godwit_relay::store::shared::engine::{Answer, Change, Engine, EngineError, Item, Page, Part, Place, Query};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls so far. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    reads: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
}

impl Counts {
    /// Reads (of an item, or of a page of them) and written items.
    pub fn now(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
pub struct Counted<E> {
    pub engine: E,
    pub counts: Counts,
}

impl<E: Engine> Counted<E> {
    fn read(&self) -> &E {
        self.counts.reads.fetch_add(1, Ordering::Relaxed);
        &self.engine
    }

    fn write(&self, items: usize) -> &E {
        self.counts.writes.fetch_add(items as u64, Ordering::Relaxed);
        &self.engine
    }
}

impl<E: Engine> Engine for Counted<E> {
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError> {
        self.read().get(place)
    }

    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError> {
        self.read().query(query)
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        self.read().scan(table, after)
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        self.write(1).change(change)
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        self.write(items.len()).put_all(items)
    }
}
