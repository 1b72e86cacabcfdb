use super::UsageEvent;
use crate::Error;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Where usage is recorded.
///
/// A place is taken before the call, so that recording at its end is memory only and cannot fail.
pub trait UsageSink: Send + Sync + 'static {
    /// Takes a place for one event. Does not wait.
    ///
    /// # Errors
    ///
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable): there is none, and the call must not be made.
    fn admit(&self) -> Result<Slot, Error>;
}

impl<K: UsageSink + ?Sized> UsageSink for Arc<K> {
    fn admit(&self) -> Result<Slot, Error> {
        (**self).admit()
    }
}

/// A place for one event. Dropped unused, it is free again.
#[must_use = "a slot that is dropped records nothing"]
pub struct Slot(Box<dyn Place>);

/// What a [`Slot`] of your own sink is made of.
pub trait Place: Send + 'static {
    /// Takes the event, and tells `done` when it is where it will not be lost. Does not block or fail.
    fn record(self: Box<Self>, event: UsageEvent, done: Option<oneshot::Sender<()>>);
}

/// Resolves when an event is where it will not be lost, to `false` if it never will be.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<()>);

impl Slot {
    /// A place of a sink of yours.
    pub fn new(place: impl Place) -> Self {
        Self(Box::new(place))
    }

    /// Records the event.
    pub fn record(self, event: UsageEvent) {
        self.0.record(event, None);
    }

    /// Records the event; the ticket resolves when it is where the sink's durability says that it must be.
    pub fn record_with_ticket(self, event: UsageEvent) -> Ticket {
        let (done, ticket) = oneshot::channel();
        self.0.record(event, Some(done));
        Ticket(ticket)
    }
}

impl Future for Ticket {
    type Output = bool;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<bool> {
        Pin::new(&mut self.0).poll(cx).map(|done| done.is_ok())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}
