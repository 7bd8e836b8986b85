//! Writing what a batch changed: first its sheet, which is fenced, then the rows that follow; or, for what needs no
//! fence, each row over what was read.

use super::draft::{Changed, Draft, Seen};
use super::engine::{Change, Engine, EngineError, If, Item, Place};
use super::journal::{self, Position, Row, Sheet, Topic};
use super::layout;
use super::live::{Bounds, Live};
use crate::store::StoreError;
use crate::store::keys::{self, Key};
use crate::store::tables::TableId;
use bytes::Bytes;
use godwit_core::sabotage::{self, Sabotage};
use godwit_wire::Seq;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How often a change is tried that gets no answer, or is throttled.
const TRIES: u32 = 4;
/// The pause before the second try; twice as long before each later one, and any part of that.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a relay takes up a journal that others write to at the same time.
const TAKE_UPS: usize = 8;
/// Rows on their way at a time, for one batch.
const ROWS_IN_FLIGHT: usize = 16;

/// Why a batch was not written.
#[derive(Debug)]
pub(super) enum Failure {
    /// Somebody else wrote: what it was decided upon is not so any more. Nothing of it was written.
    Outrun,
    /// Some of it may have been written.
    Fault(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Fault(error)
    }
}

/// A journal that was taken up.
#[derive(Debug)]
pub(super) struct TakenUp {
    pub(super) position: Position,
    /// The chat's log may reach beyond what is settled.
    pub(super) dirty: bool,
}

/// One relay's way to the shared store.
#[derive(Clone, Debug)]
pub(crate) struct Pen {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) bounds: Arc<Bounds>,
    /// In the mark of each dirty chat: whose it is. Another for each start of a relay.
    pub(crate) me: u64,
}

impl Pen {
    /// Rows as they are, for whoever writes them.
    pub(super) fn draft(&self) -> Draft {
        Draft::new(Live::new(self.engine.clone(), None))
    }

    /// What others may read.
    pub(crate) fn live(&self) -> Live {
        Live::new(self.engine.clone(), Some(self.bounds.clone()))
    }

    fn mark(&self) -> Bytes {
        Bytes::copy_from_slice(&self.me.to_be_bytes())
    }

    /// Makes one change, more than once if it must.
    async fn change(&self, change: Change) -> Result<(), EngineError> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.engine.change(change.clone()).await {
                Err(EngineError::Throttled | EngineError::NoAnswer(_)) => {}
                answered => return answered,
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause *= 2;
        }
        self.engine.change(change).await
    }

    /// Writes an item under a condition that nobody else's writing leaves true. It may have been written though the first
    /// answer was lost, so a refusal is not the last word.
    pub(super) async fn fenced(&self, place: Place, item: Item, when: If) -> Result<(), Failure> {
        let change = Change { place: place.clone(), item: Some(item.clone()), when };
        match self.change(change).await {
            Ok(()) => Ok(()),
            Err(EngineError::Refused) if self.engine.get(&place).map_err(StoreError::from)? == Some(item) => Ok(()),
            Err(EngineError::Refused) => Err(Failure::Outrun),
            Err(error) => Err(Failure::Fault(error.into())),
        }
    }

    /// Makes a journal this relay's: finishes what its last owner left, and finds where it goes on.
    pub(super) async fn take_up(&self, topic: &Topic) -> Result<TakenUp, Failure> {
        for _ in 0..TAKE_UPS {
            let mut position = self.finish_last(topic).await?;
            let Topic::Chat(chat) = topic else { return Ok(TakenUp { position, dirty: false }) };
            self.bounds.lift(&Key::new().chat(chat).bytes());
            let place = layout::place(TableId::Dirty, &Key::new().chat(chat).bytes())?;
            let Some(mark) = self.engine.get(&place).map_err(StoreError::from)? else {
                return Ok(TakenUp { position, dirty: false });
            };
            if mark.value == self.mark() {
                return Ok(TakenUp { position, dirty: true });
            }
            // The mark becomes this relay's, to be taken off once everything is settled. Whoever set it could write
            // further entries that nobody would find after a crash: hence the fence.
            let item = Item { value: self.mark(), order: 0 };
            let adopting = async {
                self.fenced(place, item, If::Value(mark.value)).await?;
                self.fence(topic, &mut position).await
            };
            match adopting.await {
                Ok(()) => return Ok(TakenUp { position, dirty: true }),
                Err(Failure::Outrun) => {}
                Err(fault) => return Err(fault),
            }
        }
        Err(Failure::Outrun)
    }

    /// Writes the rows of a journal's last item again.
    async fn finish_last(&self, topic: &Topic) -> Result<Position, Failure> {
        let place = topic.place(Seq::FIRST)?;
        let last = self.engine.last(place.table, &place.partition, Bound::Unbounded).map_err(StoreError::from)?;
        let Some((sort, item)) = last else { return Ok(Position::START) };
        let at = match topic {
            Topic::Chat(_) => Seq::new(keys::number_of(&sort)?).map_err(|_| StoreError::BadKey)?,
            _ => Seq::FIRST,
        };
        let mut sheet = Sheet::decode(&item.value)?;
        for part in 0..sheet.spilled {
            let Some(part) = self.engine.get(&topic.spilled(sheet.nonce, part)?).map_err(StoreError::from)? else {
                // It was there before the sheet was: its table was restored to another time than the log.
                tracing::error!(
                    ?topic,
                    "rows that follow from the log are missing: `godwit store check` says what of them"
                );
                break;
            };
            sheet.rows.extend(journal::decode_rows(&part.value)?);
        }
        self.write_rows(std::mem::take(&mut sheet.rows), item.order).await?;
        Ok(Position::after(at, &sheet, item.order)?)
    }

    /// Puts a sheet where the journal goes on, or further on if `at` says so; nothing else yet.
    ///
    /// Gives its order.
    async fn append(&self, topic: &Topic, position: &mut Position, mut sheet: Sheet, at: Seq) -> Result<u64, Failure> {
        sheet.nonce = fastrand::u64(..);
        let before = if at == position.next { *position } else { Position { next: at, open: 0 } };
        let when = match before.open {
            _ if sabotage::is(Sabotage::Unfenced) => If::Always,
            0 => If::Absent,
            open => If::Order(open),
        };
        let parts = sheet.spill()?;
        if !parts.is_empty() {
            let parts =
                (0..).zip(parts).map(|(i, value)| Ok((topic.spilled(sheet.nonce, i)?, Item { value, order: 0 })));
            let parts: Vec<_> = parts.collect::<Result<_, StoreError>>()?;
            self.engine.put_all(parts).await.map_err(StoreError::from)?;
        }
        let order = before.order()?;
        self.fenced(topic.place(at)?, journal::item(&sheet, order)?, when).await?;
        *position = Position::after(at, &sheet, order)?;
        Ok(order)
    }

    /// Writes what a batch changed. The journal goes on after it.
    pub(super) async fn commit(
        &self,
        topic: &Topic,
        position: &mut Position,
        changes: Vec<Changed>,
    ) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        let (mut entries, mut rows, mut first) = (Vec::new(), Vec::new(), None);
        for Changed { table, key, value, .. } in changes {
            match (table, value) {
                (TableId::Dirty, Some(_)) => self.set_mark(&key).await?,
                (TableId::Log, Some(value)) if keys::number_of(&key)? >= position.next.get() => {
                    first.get_or_insert(keys::number_of(&key)?);
                    entries.push(value);
                }
                (table, value) => rows.push(Row { table, key, value }),
            }
        }
        if entries.is_empty() && rows.is_empty() {
            return Ok(());
        }
        let at = first.map_or(Ok(position.next), Seq::new).map_err(|_| StoreError::BadKey)?;
        let partition = topic.place(at)?.partition;
        let is_bounded = !entries.is_empty() && !rows.is_empty();
        if is_bounded {
            self.bounds.set(partition.clone(), at.get() - 1);
        }
        let sheet = Sheet { entries, rows: rows.clone(), ..Sheet::default() };
        let appended = self.append(topic, position, sheet, at).await;
        if matches!(appended, Err(Failure::Outrun)) {
            self.bounds.lift(&partition);
        }
        let order = appended?;
        self.write_rows(rows, order).await?;
        if is_bounded {
            self.bounds.lift(&partition);
        }
        Ok(())
    }

    /// Before the entry: a silent chat is found by it after a crash.
    async fn set_mark(&self, key: &[u8]) -> Result<(), Failure> {
        let item = Item { value: self.mark(), order: 0 };
        self.fenced(layout::place(TableId::Dirty, key)?, item, If::Absent).await
    }

    /// Writes rows, each only over an older one.
    async fn write_rows(&self, rows: Vec<Row>, order: u64) -> Result<(), StoreError> {
        let mut writing = JoinSet::new();
        let (entries, rows): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|row| row.table == TableId::Log);
        // They read, which blocks: not on the runtime's threads.
        for entry in &entries {
            self.write_entry(entry).await?;
        }
        for row in rows {
            while writing.len() >= ROWS_IN_FLIGHT {
                joined(writing.join_next().await)?;
            }
            let pen = self.clone();
            writing.spawn(async move { pen.write_row(row, order).await });
        }
        while let Some(written) = writing.join_next().await {
            joined(Some(written))?;
        }
        Ok(())
    }

    async fn write_row(&self, row: Row, order: u64) -> Result<(), StoreError> {
        let place = layout::place(row.table, &row.key)?;
        let item = row.value.map(|value| Item { value, order });
        match self.change(Change { place, item, when: If::Older(order) }).await {
            // A newer one is there, or this one since another time.
            Ok(()) | Err(EngineError::Refused) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Changes an earlier entry, within its item. Only its erasing does: twice is once.
    async fn write_entry(&self, row: &Row) -> Result<(), StoreError> {
        let sought = keys::number_of(&row.key)?;
        let Some(value) = &row.value else { return self.remove_entry(&row.key).await };
        loop {
            let place = layout::place(TableId::Log, &row.key)?;
            let holding = self.engine.last(place.table, &place.partition, Bound::Included(place.sort))?;
            let Some((sort, item)) = holding else { return Ok(()) };
            let mut sheet = Sheet::decode(&item.value)?;
            let index = usize::try_from(sought - keys::number_of(&sort)?).unwrap_or(usize::MAX);
            let Some(entry) = sheet.entries.get_mut(index) else { return Ok(()) };
            if entry == value {
                return Ok(());
            }
            entry.clone_from(value);
            let place = Place { table: place.table, partition: place.partition, sort };
            let changed = Item { value: sheet.encode()?, order: item.order };
            match self.change(Change { place, item: Some(changed), when: If::Value(item.value) }).await {
                // Another entry of the item was erased at the same time.
                Err(EngineError::Refused) => {}
                answered => return Ok(answered?),
            }
        }
    }

    /// Of a copy that is dropped: its item goes with its first entry.
    async fn remove_entry(&self, key: &[u8]) -> Result<(), StoreError> {
        let place = layout::place(TableId::Log, key)?;
        Ok(self.change(Change { place, item: None, when: If::Always }).await?)
    }

    /// Writes changes that need no order among them, each over what was read of its row.
    ///
    /// # Errors
    /// Outrun, if one of them was changed meanwhile; others may be written, which is harmless: they are what the batch
    /// would make of them anyway.
    pub(super) async fn write_loose(&self, changes: Vec<Changed>) -> Result<(), Failure> {
        for Changed { table, key, value, seen } in changes {
            if table == TableId::Log {
                self.write_entry(&Row { table, key, value }).await?;
                continue;
            }
            let place = layout::place(table, &key)?;
            let when = match (table, seen) {
                // Only whoever set a mark takes it off.
                (TableId::Dirty, _) if value.is_none() => If::Value(self.mark()),
                (TableId::Dirty, _) => {
                    self.set_mark(&key).await?;
                    continue;
                }
                (_, Seen::Unread) => If::Always,
                (_, Seen::Nothing) => If::Absent,
                (_, Seen::Value(seen)) => If::Value(seen),
            };
            let item = value.clone().map(|value| Item { value, order: 0 });
            match self.change(Change { place: place.clone(), item, when }).await {
                Ok(()) => {}
                Err(EngineError::Refused) if table == TableId::Dirty => {}
                Err(EngineError::Refused) => {
                    let now = self.engine.get(&place).map_err(StoreError::from)?;
                    if now.map(|item| item.value) != value {
                        return Err(Failure::Outrun);
                    }
                }
                Err(error) => return Err(Failure::Fault(error.into())),
            }
        }
        Ok(())
    }

    /// As [`Pen::write_loose`], once it is certain that nobody else had the journal since it was taken up.
    pub(super) async fn write_behind_fence(
        &self,
        topic: &Topic,
        position: &mut Position,
        changes: Vec<Changed>,
    ) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        self.fence(topic, position).await?;
        self.write_loose(changes).await
    }

    /// Takes the next place of a journal with nothing in it: whoever had the journal before writes no more.
    async fn fence(&self, topic: &Topic, position: &mut Position) -> Result<(), Failure> {
        let at = position.next;
        self.append(topic, position, Sheet::default(), at).await.map(drop)
    }

    /// The rows of a journal that is no chat's are written: it need not be done again.
    pub(super) async fn close_sheet(&self, topic: &Topic, position: &Position) -> Result<(), Failure> {
        if let Topic::Chat(_) = topic {
            return Ok(());
        }
        let item = journal::item(&Sheet::default(), position.open)?;
        self.fenced(topic.place(Seq::FIRST)?, item, If::Order(position.open)).await
    }
}

fn joined(written: Option<Result<Result<(), StoreError>, tokio::task::JoinError>>) -> Result<(), StoreError> {
    match written {
        Some(Ok(result)) => result,
        Some(Err(_)) => Err(StoreError::Inconsistent("a row was not written")),
        None => Ok(()),
    }
}
