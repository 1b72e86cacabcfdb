//! Bounds how many calls are in flight, until their answers have ended.
//!
//! Tower's own `ConcurrencyLimit` lets go when there is a head; a streamed answer has hardly begun then. Here
//! the permit is held until the stream ends, breaks or is dropped. A call that finds no permit waits its turn,
//! a bounded time in a bounded queue; beyond it is refused as [`Overloaded`](ErrorKind::Overloaded), and at its
//! caller's own deadline, if that comes first, as [`Timeout`](ErrorKind::Timeout). It is the
//! call that is refused: `poll_ready` passes through, so `load_shed` has nothing to do above this layer. Who waits, or is
//! refused, holds nothing of the service below, for whoever has a permit, or is to be asked instead, may need that for a further attempt.
//!
//! Belongs outermost, below the gateway's telemetry. All services that one layer builds share its permits.
//!
//! ```
//! use llm_layers::{ChatBody, Completion, Error, LlmRequest, LlmResponse, TokenUsage, concurrency::ConcurrencyLimitLayer};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let service = ServiceBuilder::new()
//!     .layer(ConcurrencyLimitLayer::new(100).with_queue(50, Duration::from_secs(1)))
//!     .service(service_fn(|request: LlmRequest| async move {
//!         Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1))))
//!     }));
//! let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(service.oneshot(request).await?.text().await?, "hi");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! Dropping the future or the stream gives the permit, or the place in the queue, back.

use crate::{
    Error, ErrorKind, LlmRequest, LlmResponse, TimeoutPhase,
    body::{End, Observe, Watch, Watched},
    clock::after,
    deadline::Deadline,
};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`ConcurrencyLimit`] to a service.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimitLayer {
    limit: Limit,
}

/// Lets a bounded number of calls into the inner service.
#[derive(Debug, Clone)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    limit: Limit,
}

#[derive(Debug, Clone)]
struct Limit {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    max_waiting: usize,
    max_wait: Duration,
}

/// Response future of [`ConcurrencyLimit`].
#[pin_project]
pub struct ResponseFuture<S: Service<LlmRequest>> {
    #[pin]
    state: State<S>,
}

#[pin_project(project = StateProj)]
enum State<S: Service<LlmRequest>> {
    Waiting {
        place: Place,
        turn: Turn,
        rest: Option<(S, LlmRequest)>,
    },
    /// It has its permit, and waits for the service.
    Readying {
        service: S,
        rest: Option<(OwnedSemaphorePermit, LlmRequest)>,
        deadline: Deadline,
    },
    Calling(#[pin] Watched<S::Future, Permit>),
    Refused(ErrorKind),
}

type Turn = Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, ErrorKind>> + Send>>;

/// A place in the queue.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

/// Let go of by being dropped, at whichever end.
#[derive(Debug)]
struct Permit {
    _permit: OwnedSemaphorePermit,
}

impl Observe for Permit {
    fn on_end(self, _: End<'_>) {}
}

// ===== impl ConcurrencyLimitLayer =====

impl ConcurrencyLimitLayer {
    /// Lets `max` calls in; as many more may wait, for a second each.
    pub fn new(max: usize) -> Self {
        let permits = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        let (max_waiting, max_wait) = (max, Duration::from_secs(1));
        Self { limit: Limit { permits, waiting: Arc::default(), max_waiting, max_wait } }
    }

    /// Lets `max_waiting` calls wait for `max_wait` each, and none longer than its caller.
    #[must_use]
    pub const fn with_queue(mut self, max_waiting: usize, max_wait: Duration) -> Self {
        self.limit.max_waiting = max_waiting;
        self.limit.max_wait = max_wait;
        self
    }

    /// How many more calls would be let in at once.
    pub fn available(&self) -> usize {
        self.limit.permits.available_permits()
    }

    /// How many calls wait.
    pub fn waiting(&self) -> usize {
        self.limit.waiting.load(Ordering::Acquire)
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimit { inner, limit: self.limit.clone() }
    }
}

// ===== impl Limit =====

impl Limit {
    fn queue(&self, deadline: Option<Instant>) -> Option<(Place, Turn)> {
        let place = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
            (waiting < self.max_waiting).then_some(waiting + 1)
        });
        place.ok()?;
        let place = Place(Arc::clone(&self.waiting));
        let until = after(self.max_wait);
        let (until, refusal) = match deadline.filter(|deadline| *deadline <= until) {
            Some(deadline) => (deadline, ErrorKind::Timeout { phase: TimeoutPhase::Deadline }),
            None => (until, ErrorKind::Overloaded),
        };
        let permit = Arc::clone(&self.permits).acquire_owned();
        // The timer is made where it is polled: a call may be made outside of a runtime.
        let turn = async move { timeout_at(until, permit).await.ok().and_then(Result::ok).ok_or(refusal) };
        Some((place, Box::pin(turn)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

// ===== impl ConcurrencyLimit =====

impl<S> ConcurrencyLimit<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<LlmRequest> for ConcurrencyLimit<S>
where
    S: Service<LlmRequest, Response = LlmResponse> + Clone,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        if let Ok(permit) = Arc::clone(&self.limit.permits).try_acquire_owned() {
            return ResponseFuture { state: State::call(permit, &mut self.inner, request) };
        }
        // The one that is ready goes, and gives back what it holds.
        self.inner = self.inner.clone();
        let state = match self.limit.queue(request.context.deadline().map(Instant::from_std)) {
            Some((place, turn)) => State::Waiting { place, turn, rest: Some((self.inner.clone(), request)) },
            None => State::Refused(ErrorKind::Overloaded),
        };
        ResponseFuture { state }
    }
}

// ===== impl ResponseFuture =====

impl<S: Service<LlmRequest>> State<S> {
    fn call(permit: OwnedSemaphorePermit, inner: &mut S, request: LlmRequest) -> Self {
        let watch = Watch::new(Permit { _permit: permit });
        Self::Calling(watch.over(inner.call(request)))
    }
}

impl<S> Future for ResponseFuture<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Calling(future) => return future.poll(cx),
                StateProj::Refused(refusal) => return Poll::Ready(Err(Error::new(refusal.clone()))),
                StateProj::Waiting { turn, rest, .. } => match ready!(turn.as_mut().poll(cx)) {
                    Ok(permit) => {
                        let (service, request) = rest.take().expect("taken only here, and the state changes");
                        let deadline = Deadline::of(&request);
                        State::Readying { service, rest: Some((permit, request)), deadline }
                    }
                    Err(refusal) => State::Refused(refusal),
                },
                StateProj::Readying { service, rest, deadline } => {
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(deadline.poll(cx))),
                    };
                    let (permit, request) = rest.take().expect("taken only here, and the state changes");
                    ready?;
                    State::call(permit, service, request)
                }
            };
            state.set(next);
        }
    }
}

impl<S: Service<LlmRequest>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { place, .. } => return f.debug_tuple("Waiting").field(place).finish(),
            State::Readying { .. } => "Readying",
            State::Calling(_) => "Calling",
            State::Refused(_) => "Refused",
        };
        f.write_str(state)
    }
}
