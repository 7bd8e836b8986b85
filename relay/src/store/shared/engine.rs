//! What a store that many relays share must be able to do: items under a partition and a place in it, each written alone
//! and under a condition. Nothing is asked of it over several items at once.

use bytes::Bytes;
use std::fmt;
use std::ops::Bound;
use std::pin::Pin;

/// Where an item is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The table's name, without what the region's tables begin with.
    pub table: &'static str,
    pub partition: Vec<u8>,
    /// The order within the partition is that of the bytes.
    pub sort: Vec<u8>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.table, self.partition.escape_ascii(), self.sort.escape_ascii())
    }
}

#[derive(Clone, PartialEq, Eq)]
pub struct Item {
    pub value: Bytes,
    /// How new it is, among the items that its place had. A change to 0 leaves it as it is.
    pub order: u64,
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What is in it may be somebody's message.
        write!(f, "Item({} bytes, order {})", self.value.len(), self.order)
    }
}

/// On which condition a place changes. The engine checks it and changes the place in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum If {
    Always,
    /// There is no item.
    Absent,
    /// There is none, or one of a lower order.
    Older(u64),
    /// It is of this order.
    Order(u64),
    /// It has this value.
    Value(Bytes),
}

impl If {
    /// Whether what is at the place meets it.
    pub fn holds(&self, item: Option<&Item>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => item.is_none(),
            Self::Older(order) => item.is_none_or(|item| item.order < *order),
            Self::Order(order) => item.is_some_and(|item| item.order == *order),
            Self::Value(value) => item.is_some_and(|item| item.value == *value),
        }
    }
}

/// A change of one place.
#[derive(Clone, Debug)]
pub struct Change {
    pub place: Place,
    /// None removes it.
    pub item: Option<Item>,
    pub when: If,
}

/// Items of one partition.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    pub table: &'static str,
    pub partition: &'a [u8],
    pub from: Bound<Vec<u8>>,
    pub to: Bound<Vec<u8>>,
    pub descending: bool,
    /// So many are wanted, at least 1; fewer may come though there are more.
    pub most: usize,
    /// Items as they were a moment ago will do.
    pub lately: bool,
}

/// What a query found: in its order, each with its place in the partition.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub items: Vec<(Vec<u8>, Item)>,
    /// There may be more.
    pub more: bool,
}

/// Some items of a table, in an order of the engine's own.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub items: Vec<(Place, Item)>,
    /// Behind which place it goes on.
    pub next: Option<Place>,
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing was changed.
    #[error("the condition does not hold")]
    Refused,
    /// Nothing was changed. It was tried for as long as the engine's limits allow.
    #[error("throttled")]
    Throttled,
    /// Whether anything was changed is not known.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It cannot be used as it is configured.
    #[error("{0}")]
    Setup(String),
    /// It will not do this, now or later.
    #[error("{0}")]
    Fault(String),
}

/// The answer to a change.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send + 'a>>;

/// A store of items that many relays share.
///
/// Reads see every change that was answered before they began, but for queries to which what was so a moment ago will do.
/// They block, for as long as the engine's limits allow, and are called where that is allowed; changes do not block.
pub trait Engine: fmt::Debug + Send + Sync + 'static {
    /// # Errors
    /// No answer, throttled, or a fault.
    fn get(&self, place: &Place) -> Result<Option<Item>, EngineError>;

    /// # Errors
    /// As [`Engine::get`].
    fn query(&self, query: &Query<'_>) -> Result<Page, EngineError>;

    /// The last item of a partition up to a place, with where it stands.
    ///
    /// # Errors
    /// As [`Engine::get`].
    fn last(
        &self,
        table: &'static str,
        partition: &[u8],
        to: Bound<Vec<u8>>,
    ) -> Result<Option<(Vec<u8>, Item)>, EngineError> {
        let query = Query { table, partition, from: Bound::Unbounded, to, descending: true, most: 1, lately: false };
        Ok(self.query(&query)?.items.pop())
    }

    /// Reads a table, whatever its order: dear, for what is done seldom.
    ///
    /// # Errors
    /// As [`Engine::get`].
    fn scan(&self, table: &'static str, after: Option<&Place>) -> Result<Part, EngineError>;

    /// Changes one place.
    ///
    /// Cancel safety: dropping the answer says nothing about the change.
    fn change(&self, change: Change) -> Answer<'_, ()>;

    /// What tells these tables from others with the same items in them, if the engine knows: a backup is restored to new
    /// tables.
    fn identity(&self) -> Answer<'_, Option<String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Puts items without a condition, each alone; any of them may be there after an error.
    fn put_all(&self, items: Vec<(Place, Item)>) -> Answer<'_, ()>;
}
