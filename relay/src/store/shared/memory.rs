//! Items in memory, for as long as the process runs: the engine of simulations, where it can be as slow and as unreliable
//! as a network.

use super::engine::{Answer, Change, Engine, EngineError, Item, Page, Part, Place, Query};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

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
    items: Arc<Mutex<Items>>,
    /// How old what is read is where that may be so.
    lag: Duration,
    identity: Option<String>,
    weather: Weather,
}

#[derive(Default)]
struct Items {
    now: BTreeMap<Place, Item>,
    /// What was there before each of the changes that are younger than the lag.
    before: VecDeque<(Instant, Place, Option<Item>)>,
}

impl Items {
    fn set(&mut self, place: Place, item: Option<Item>, lag: Duration) {
        let before = match item {
            Some(item) => self.now.insert(place.clone(), item),
            None => self.now.remove(&place),
        };
        if lag.is_zero() {
            return;
        }
        let at = Instant::now();
        self.before.push_back((at, place, before));
        while self.before.pop_front_if(|(changed, _, _)| *changed + lag <= at).is_some() {}
    }

    /// Items from one place to another as they were before.
    fn lately(&self, range: (Bound<Place>, Bound<Place>), lag: Duration) -> BTreeMap<Place, Item> {
        let mut items: BTreeMap<Place, Item> =
            self.now.range(range.clone()).map(|(place, item)| (place.clone(), item.clone())).collect();
        let now = Instant::now();
        let undone = self.before.iter().rev().take_while(|(at, _, _)| *at + lag > now);
        for (_, place, before) in undone.filter(|(_, place, _)| range.contains(place)) {
            match before {
                Some(item) => drop(items.insert(place.clone(), item.clone())),
                None => drop(items.remove(place)),
            }
        }
        items
    }
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
        Self { items: Arc::default(), lag: Duration::ZERO, identity: None, weather }
    }

    /// Where what was so a moment ago will do, it shows what was so this long ago.
    #[must_use]
    pub fn lagging(self, lag: Duration) -> Self {
        Self { lag, ..self }
    }

    /// As tables that can be told from others.
    #[must_use]
    pub fn called(self, identity: &str) -> Self {
        Self { identity: Some(identity.to_owned()), ..self }
    }

    /// Other tables with these items, as a backup is restored to.
    #[must_use]
    pub fn restored(&self, identity: &str) -> Self {
        let now = self.with(|items| items.now.clone());
        let items = Arc::new(Mutex::new(Items { now, ..Items::default() }));
        Self { items, ..self.clone() }.called(identity)
    }

    /// The same items under other weather: as another relay reaches them.
    #[must_use]
    pub fn seen_under(&self, weather: Weather) -> Self {
        Self { items: self.items.clone(), lag: self.lag, identity: self.identity.clone(), weather }
    }

    fn with<T>(&self, of: impl FnOnce(&mut Items) -> T) -> T {
        of(&mut self.items.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read<T>(&self, of: impl FnOnce(&Items) -> T) -> Result<T, EngineError> {
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
            let before = items.now.get(&change.place);
            if !change.when.holds(before) {
                return Err(EngineError::Refused);
            }
            let kept = before.map_or(0, |before| before.order);
            let order = |item: &Item| if item.order == 0 { kept } else { item.order };
            let item = change.item.map(|item| Item { order: order(&item), ..item });
            items.set(change.place, item, self.lag);
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
        self.read(|items| items.now.get(place).cloned())
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
            let lately = query.lately.then(|| items.lately((from.clone(), to.clone()), self.lag));
            let found = lately.as_ref().unwrap_or(&items.now).range((from, to));
            let found = found.map(|(place, item)| (place.sort.clone(), item.clone()));
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
            let rows = items.now.range((start, Bound::Unbounded)).take_while(|(place, _)| place.table == table);
            let items: Vec<_> = rows.take(PAGE_ITEMS).map(|(place, item)| (place.clone(), item.clone())).collect();
            let next = items.last().filter(|_| items.len() == PAGE_ITEMS).map(|(place, _)| place.clone());
            Part { items, next }
        })
    }

    fn identity(&self) -> Answer<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(self.identity.clone())))
    }

    fn change(&self, change: Change) -> Answer<'_, ()> {
        Box::pin(self.meet(|| self.make(change)))
    }

    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()> {
        Box::pin(self.meet(|| {
            self.with(|all| {
                for (place, item) in items {
                    all.set(place, Some(item), self.lag);
                }
            });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared::engine::If;

    #[tokio::test]
    async fn what_was_so_a_moment_ago_is_shown_where_that_will_do() {
        let memory = Memory::default();
        let place = |sort: u8| Place { table: "log", partition: vec![1], sort: vec![sort] };
        let set = async |memory: &Memory, sort: u8, value: Option<&'static str>| {
            let item = value.map(|value| Item { value: value.into(), order: 0 });
            memory.change(Change { place: place(sort), item, when: If::Always }).await.unwrap();
        };
        let seen = |memory: &Memory, lately| {
            let (from, to) = (Bound::Unbounded, Bound::Unbounded);
            let query = Query { table: "log", partition: &[1], from, to, descending: false, most: 10, lately };
            let page = memory.query(&query).unwrap();
            page.items.iter().map(|(sort, item)| (sort[0], item.value.clone())).collect::<Vec<_>>()
        };
        set(&memory, 1, Some("old")).await;
        set(&memory, 2, Some("gone")).await;
        let memory = memory.lagging(Duration::from_hours(1));
        set(&memory, 1, Some("new")).await;
        set(&memory, 1, Some("newer")).await;
        set(&memory, 2, None).await;
        set(&memory, 3, Some("more")).await;
        assert_eq!(seen(&memory, false), [(1, "newer".into()), (3, "more".into())]);
        assert_eq!(seen(&memory, true), [(1, "old".into()), (2, "gone".into())]);
        let memory = memory.lagging(Duration::ZERO);
        assert_eq!(seen(&memory, true), seen(&memory, false));
    }
}
