//! An engine of a shared store that counts what is asked of it, as a bill would.

use godwit_relay::store::shared::engine::{Answer, Change, Engine, EngineError, Item, Page, Part, Place, Query};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls so far. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    reads: Arc<AtomicU64>,
    lately: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
}

/// What was asked of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// Of an item, or of a page of them.
    pub reads: u64,
    /// Of a page of items as they were a moment ago, perhaps: at half the price.
    pub lately: u64,
    /// Items.
    pub writes: u64,
}

impl Calls {
    /// What was asked since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            lately: self.lately - before.lately,
            writes: self.writes - before.writes,
        }
    }
}

impl Counts {
    pub fn now(&self) -> Calls {
        let [reads, lately, writes] =
            [&self.reads, &self.lately, &self.writes].map(|count| count.load(Ordering::Relaxed));
        Calls { reads, lately, writes }
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
        if query.lately {
            self.counts.lately.fetch_add(1, Ordering::Relaxed);
            return self.engine.query(query);
        }
        self.read().query(query)
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        self.read().scan(table, after)
    }

    fn identity(&self) -> Answer<'_, Option<String>> {
        self.engine.identity()
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        self.write(1).change(change)
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        self.write(items.len()).put_all(items)
    }
}
