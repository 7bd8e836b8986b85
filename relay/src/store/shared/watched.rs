//! An engine as its relay's operator sees it: how much is asked of it, how long that takes, and that it fails.

use super::engine::{Answer, Change, Engine, EngineError, Item, Page, Part, Place, Query};
use crate::metrics::Metrics;
use crate::seldom::Seldom;
use std::sync::Arc;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Watched {
    engine: Arc<dyn Engine>,
    metrics: Metrics,
    /// All chats meet it at the same time.
    failing: Seldom,
}

impl Watched {
    pub(crate) fn new(engine: Arc<dyn Engine>, metrics: Metrics) -> Self {
        Self { engine, metrics, failing: Seldom::default() }
    }

    fn saw<T>(&self, began: Instant, answer: Result<T, EngineError>) -> Result<T, EngineError> {
        self.metrics.shared_latency.observe(began.elapsed().as_secs_f64());
        match &answer {
            // A refusal is an answer: another relay came first.
            Ok(_) | Err(EngineError::Refused) => {}
            Err(error) => {
                self.metrics.shared_failures.inc();
                if let Some(times) = self.failing.happened() {
                    tracing::warn!(%error, times, "the shared store does not do what it is asked");
                }
            }
        }
        answer
    }

    fn read<T>(&self, ask: impl FnOnce(&dyn Engine) -> Result<T, EngineError>) -> Result<T, EngineError> {
        self.metrics.shared_reads.inc();
        let began = Instant::now();
        self.saw(began, ask(&*self.engine))
    }

    async fn write(&self, items: usize, answer: Answer<'_, ()>) -> Result<(), EngineError> {
        self.metrics.shared_writes.inc_by(items as u64);
        let began = Instant::now();
        self.saw(began, answer.await)
    }
}

impl Engine for Watched {
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError> {
        self.read(|engine| engine.get(place))
    }

    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError> {
        self.read(|engine| engine.query(query))
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        self.read(|engine| engine.scan(table, after))
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        Box::pin(self.write(1, self.engine.change(change)))
    }

    fn identity(&self) -> Answer<'_, Option<String>> {
        self.engine.identity()
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        Box::pin(self.write(items.len(), self.engine.put_all(items)))
    }
}
