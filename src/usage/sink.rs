use super::{UsageEvent, memory::MemoryPlace, queue::QueuePlace};
use crate::{Error, forward::forward};
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
///
/// ```
/// use llm_layers::{
///     ChatBody, Error, ErrorKind, LlmRequest,
///     price::Prices,
///     provider::Echo,
///     usage::{Done, Place, Slot, UsageEvent, UsageLayer, UsageSink},
/// };
/// use tokio::sync::mpsc;
/// use tower::{Layer, ServiceExt};
///
/// /// Hands events to whoever reads the channel.
/// #[derive(Clone)]
/// struct Channel(mpsc::Sender<UsageEvent>);
///
/// struct Permit(mpsc::OwnedPermit<UsageEvent>);
///
/// impl UsageSink for Channel {
///     fn admit(&self) -> Result<Slot, Error> {
///         let permit = self.0.clone().try_reserve_owned();
///         let full = |_| Error::new(ErrorKind::StoreUnavailable { store: "usage".into() });
///         permit.map(|permit| Slot::new(Permit(permit))).map_err(full)
///     }
/// }
///
/// impl Place for Permit {
///     // Nobody here can say that it is safe: dropped, `done` tells those who wait for it that it will not be.
///     fn record(self: Box<Self>, event: UsageEvent, _done: Option<Done>) {
///         self.0.send(event);
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let (sender, mut events) = mpsc::channel(1);
/// let service = UsageLayer::new(Channel(sender), Prices::default()).layer(Echo::new());
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
/// service.clone().oneshot(request.clone()).await?;
///
/// // There is no room for another one, so nobody is asked.
/// let error = service.oneshot(request).await.unwrap_err();
/// assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }));
/// assert_eq!(events.recv().await.map(|event| event.model), Some("acme/one".into()));
/// # Ok(())
/// # }
/// ```
pub trait UsageSink: Send + Sync + 'static {
    /// Takes a place for one event. Does not wait.
    ///
    /// # Errors
    ///
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable): there is none, and the call must not be made.
    fn admit(&self) -> Result<Slot, Error>;

    /// Whether it has a place for one more event, as far as it is known: what readiness should tell, so that calls are sent elsewhere before
    /// they are refused. Does not wait.
    fn is_healthy(&self) -> bool {
        true
    }
}

forward! {
    UsageSink for [Arc, Box] {
        fn admit(&self) -> Result<Slot, Error>;
        fn is_healthy(&self) -> bool;
    }
}

/// A place for one event. Dropped unused, it is free again.
#[must_use = "a slot that is dropped records nothing"]
pub struct Slot(Kind);

/// Our own need no box.
enum Kind {
    Queue(QueuePlace),
    Memory(MemoryPlace),
    Other(Box<dyn Place>),
}

/// What a [`Slot`] of your own sink is made of.
pub trait Place: Send + 'static {
    /// Takes the event, and [tells](Done::tell) whoever waits when it is where it will not be lost; `None` if nobody does. Does not block or
    /// fail.
    fn record(self: Box<Self>, event: UsageEvent, done: Option<Done>);
}

/// Owed to somebody who waits until an event is where it will not be lost. Dropped untold, it says that it never will be.
#[derive(Debug)]
pub struct Done(oneshot::Sender<()>);

/// Resolves when an event is where it will not be lost, to `false` if it never will be.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<()>);

impl Slot {
    /// A place of a sink of yours.
    pub fn new(place: impl Place) -> Self {
        Self(Kind::Other(Box::new(place)))
    }

    pub(super) const fn of_queue(place: QueuePlace) -> Self {
        Self(Kind::Queue(place))
    }

    pub(super) const fn of_memory(place: MemoryPlace) -> Self {
        Self(Kind::Memory(place))
    }

    /// Records the event.
    pub fn record(self, event: UsageEvent) {
        self.give(event, None);
    }

    /// Records the event; the ticket resolves when it is where the sink's durability says that it must be.
    pub fn record_with_ticket(self, event: UsageEvent) -> Ticket {
        let (done, ticket) = oneshot::channel();
        self.give(event, Some(Done(done)));
        Ticket(ticket)
    }

    fn give(self, event: UsageEvent, done: Option<Done>) {
        match self.0 {
            Kind::Queue(place) => place.record(event, done),
            Kind::Memory(place) => place.record(event, done),
            Kind::Other(place) => place.record(event, done),
        }
    }
}

impl Done {
    /// It will not be lost.
    pub fn tell(self) {
        // Who has stopped waiting need not be told.
        let _ = self.0.send(());
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
