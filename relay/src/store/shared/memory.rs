//! Items in memory, for as long as the process runs: the engine of simulations, where it can be as slow and as unreliable
//! as a network.

use super::engine::{Answer, Change, Engine, EngineError, Item, Page, Part, Place, Query};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Items read in one go, at most.
const PAGE_ITEMS: usize = 100;

/// How often a read is tried.
const READS: usize = 3;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is done. A change takes so long.
    Done(Duration),
    Throttled,
    /// No answer comes; a change may have been made all the same.
    NoAnswer {
        landed: bool,
        after: Duration,
    },
}

/// Decides the fate of each call.
pub type Weather = Arc<dyn Fn() -> Fate + Send + Sync>;

/// Cloning shares the items.
#[derive(Clone)]
pub struct Memory {
    items: Arc<Mutex<BTreeMap<Place, Item>>>,
    weather: Weather,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::under(Arc::new(|| Fate::Done(Duration::ZERO)))
    }
}

impl Memory {
    pub fn under(weather: Weather) -> Self {
        Self { items: Arc::default(), weather }
    }

    /// The same items under other weather: as another relay reaches them.
    #[must_use]
    pub fn seen_under(&self, weather: Weather) -> Self {
        Self { items: self.items.clone(), weather }
    }

    fn with<T>(&self, of: impl FnOnce(&mut BTreeMap<Place, Item>) -> T) -> T {
        of(&mut self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, of: impl FnOnce(&BTreeMap<Place, Item>) -> T) -> Result<T, EngineError> {
        let mut refused = no_answer();
        // As every client of such a store, it asks again.
        for _ in 0..READS {
            match (self.weather)() {
                Fate::Done(_) => return Ok(self.with(|items| of(items))),
                Fate::Throttled => refused = EngineError::Throttled,
                Fate::NoAnswer { .. } => refused = no_answer(),
            }
        }
        Err(refused)
    }

    fn make(&self, change: Change) -> Result<(), EngineError> {
        self.with(|items| {
            let before = items.get(&change.place);
            if !change.when.holds(before) {
                return Err(EngineError::Refused);
            }
            match change.item {
                Some(mut item) => {
                    if item.order == 0 {
                        item.order = before.map_or(0, |before| before.order);
                    }
                    items.insert(change.place, item);
                }
                None => drop(items.remove(&change.place)),
            }
            Ok(())
        })
    }

    async fn meet(&self, work: impl FnOnce() -> Result<(), EngineError>) -> Result<(), EngineError> {
        match (self.weather)() {
            Fate::Done(takes) => {
                pause(takes / 2).await;
                let result = work();
                pause(takes / 2).await;
                result
            }
            Fate::Throttled => Err(EngineError::Throttled),
            Fate::NoAnswer { landed, after } => {
                pause(after / 2).await;
                if landed {
                    let _ = work();
                }
                pause(after / 2).await;
                Err(no_answer())
            }
        }
    }
}

fn no_answer() -> EngineError {
    EngineError::NoAnswer("timed out".to_owned())
}

async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

impl Engine for Memory {
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError> {
        self.read(|items| items.get(place).cloned())
    }

    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError> {
        let place =
            |sort: &Vec<u8>| Place { table: query.table, partition: query.partition.to_vec(), sort: sort.clone() };
        let end = || {
            let partition = [query.partition, &[0]].concat();
            Bound::Excluded(Place { table: query.table, partition, sort: Vec::new() })
        };
        let from = match &query.from {
            Bound::Unbounded => Bound::Included(place(&Vec::new())),
            bound => bound.as_ref().map(place),
        };
        let to = match &query.to {
            Bound::Unbounded => end(),
            bound => bound.as_ref().map(place),
        };
        let most = query.most.min(PAGE_ITEMS);
        self.read(|items| {
            if is_empty(&from, &to) {
                return Page::default();
            }
            let found = items.range((from, to)).map(|(place, item)| (place.sort.clone(), item.clone()));
            let items: Vec<_> =
                if query.descending { found.rev().take(most).collect() } else { found.take(most).collect() };
            // As the real ones: a page that is full exactly says that there may be more.
            Page { more: items.len() == most, items }
        })
    }

    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError> {
        self.read(|items| {
            let start = match after {
                Some(after) => Bound::Excluded(after.clone()),
                None => Bound::Included(Place { table, partition: Vec::new(), sort: Vec::new() }),
            };
            let rows = items.range((start, Bound::Unbounded)).take_while(|(place, _)| place.table == table);
            let items: Vec<_> = rows.take(PAGE_ITEMS).map(|(place, item)| (place.clone(), item.clone())).collect();
            let next = items.last().filter(|_| items.len() == PAGE_ITEMS).map(|(place, _)| place.clone());
            Part { items, next }
        })
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        Box::pin(self.meet(|| self.make(change)))
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        Box::pin(self.meet(|| {
            self.with(|all| all.extend(items));
            Ok(())
        }))
    }
}

fn is_empty(from: &Bound<Place>, to: &Bound<Place>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Excluded(to) | Bound::Included(to)) => from >= to,
        _ => false,
    }
}
