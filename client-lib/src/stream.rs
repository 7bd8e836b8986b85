//! Events as a stream: those that are kept, from the store, and changes of the connection as they happen.

use crate::client::Inner;
use crate::error::Error;
use crate::event::{ConnectionState, Event, Next};
use futures_core::Stream;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What happens. A [`Stream`]; each item is acknowledged with [`crate::Client::acknowledge`].
pub struct EventStream {
    cursor: Option<Cursor>,
    pending: Option<Pending>,
}

type Item = Option<Result<Next, Error>>;
type Pending = Pin<Box<dyn Future<Output = (Cursor, Item)> + Send>>;

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventStream")
    }
}

struct Cursor {
    inner: Arc<Inner>,
    after: i64,
    buffer: VecDeque<Next>,
    changes: watch::Receiver<u64>,
    state: watch::Receiver<ConnectionState>,
    stop: CancellationToken,
    /// The state at the beginning is told too.
    first: bool,
}

impl Cursor {
    async fn next(&mut self) -> Item {
        loop {
            if let Some(next) = self.buffer.pop_front() {
                return Some(Ok(next));
            }
            if std::mem::take(&mut self.first) {
                return Some(Ok(self.connection()));
            }
            self.changes.mark_unchanged();
            let events = self.inner.store().events(self.after);
            match events {
                Ok(events) => self.buffer = events.into(),
                Err(error) => return Some(Err(error)),
            }
            if let Some(last) = self.buffer.back().and_then(|next| next.id) {
                self.after = last;
                continue;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                changed = self.changes.changed() => if changed.is_err() { return None },
                changed = self.state.changed() => match changed {
                    Ok(()) => return Some(Ok(self.connection())),
                    Err(_) => return None,
                },
            }
        }
    }

    fn connection(&mut self) -> Next {
        let state = self.state.borrow_and_update().clone();
        Next { id: None, event: Event::ConnectionChanged(state) }
    }
}

impl EventStream {
    pub(crate) fn new(inner: Arc<Inner>, stop: CancellationToken) -> Self {
        let (changes, state) = (inner.changes.subscribe(), inner.state.subscribe());
        let cursor = Cursor { inner, after: 0, buffer: VecDeque::new(), changes, state, stop, first: true };
        Self { cursor: Some(cursor), pending: None }
    }

    /// The next event; none once the client is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Next, Error>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }
}

impl Stream for EventStream {
    type Item = Result<Next, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Item> {
        if self.pending.is_none() {
            let Some(mut cursor) = self.cursor.take() else { return Poll::Ready(None) };
            self.pending = Some(Box::pin(async move {
                let item = cursor.next().await;
                (cursor, item)
            }));
        }
        let pending = self.pending.as_mut().expect("it was made above");
        let (cursor, item) = std::task::ready!(pending.as_mut().poll(context));
        self.cursor = Some(cursor);
        self.pending = None;
        Poll::Ready(item)
    }
}
