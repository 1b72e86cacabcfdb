//! Bounds the time that a call may take: until its head, its first content, its next chunk, its end; and until an
//! answer is there that is not streamed.
//!
//! Belongs inside [`Providers`](crate::providers), around each deployment, so that a timeout is a failure of
//! that deployment, is recorded as a call, and falls back. The clocks of a stream go on after the head: a
//! stream that is cut gives a last [`Timeout`](ErrorKind::Timeout) item. The idle clock runs from when somebody
//! reads and finds nothing until there is a chunk, so that a slow reader never trips it. Nor does one who goes away in between, and comes back
//! more than a second after it has run out: for him it begins anew.
//!
//! Limits end a wait: what is there already is handed out, so that a slow reader may take longer than the total.
//!
//! The caller's own [deadline](crate::RequestContext::deadline) is kept too; once it has passed, nobody is asked. No timer is registered before
//! there is something to wait for.
//!
//! ```
//! use llm_layers::{ChatBody, Error, ErrorKind, LlmRequest, LlmResponse, TimeoutPhase, timeout::CallTimeoutLayer};
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Error> {
//! let service = ServiceBuilder::new()
//!     .layer(CallTimeoutLayer::new().with_head(Duration::from_secs(30)).with_idle(Duration::from_secs(20)))
//!     .service(service_fn(|_: LlmRequest| std::future::pending::<Result<LlmResponse, Error>>()));
//! let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
//! let error = service.oneshot(request).await.unwrap_err();
//! assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Head }));
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! Dropping the future or the stream drops its timer.

use crate::{
    Error, ErrorKind, LlmRequest, LlmResponse, Progress, ResponseBody, TimeoutPhase, body::BodyClock,
    caught::contained,
};
use pin_project::{pin_project, pinned_drop};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`CallTimeout`] to a service. Without a setting nothing is bounded but by the caller's deadline.
///
/// The [module docs](self) have an example.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallTimeoutLayer {
    limits: Limits,
}

/// Fails calls that take too long.
#[derive(Debug, Clone, Copy)]
pub struct CallTimeout<S> {
    inner: S,
    limits: Limits,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Limits {
    head: Option<Duration>,
    first_content: Option<Duration>,
    whole: Option<Duration>,
    idle: Option<Duration>,
    total: Option<Duration>,
}

/// Response future of [`CallTimeout`].
#[pin_project(PinnedDrop)]
#[derive(Debug)]
pub struct ResponseFuture<F> {
    /// `None` if the caller's deadline had passed already.
    #[pin]
    future: Option<F>,
    progress: Progress,
    head: Option<(Instant, TimeoutPhase)>,
    first_content: Option<Instant>,
    idle: Option<Duration>,
    total: Option<Instant>,
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

// ===== impl CallTimeoutLayer =====

impl CallTimeoutLayer {
    /// Bounds nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bounds the time from the call to the head of the answer.
    #[must_use]
    pub const fn with_head(mut self, limit: Duration) -> Self {
        self.limits.head = Some(limit);
        self
    }

    /// Bounds the time from the call to the first content.
    #[must_use]
    pub const fn with_first_content(mut self, limit: Duration) -> Self {
        self.limits.first_content = Some(limit);
        self
    }

    /// Bounds the time from the call to an answer that is not streamed, in the place of the bounds on head and first
    /// content: providers send its head when all of it is there. Reported as [`TimeoutPhase::Head`].
    #[must_use]
    pub const fn with_whole(mut self, limit: Duration) -> Self {
        self.limits.whole = Some(limit);
        self
    }

    /// Bounds the time between two chunks, as far as somebody waits for them. Before the first content it counts only where
    /// that has no [bound](Self::with_first_content) of its own: a model may think for longer than it pauses.
    #[must_use]
    pub const fn with_idle(mut self, limit: Duration) -> Self {
        self.limits.idle = Some(limit);
        self
    }

    /// Bounds the time from the call to the end of the answer.
    #[must_use]
    pub const fn with_total(mut self, limit: Duration) -> Self {
        self.limits.total = Some(limit);
        self
    }
}

impl<S> Layer<S> for CallTimeoutLayer {
    type Service = CallTimeout<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallTimeout { inner, limits: self.limits }
    }
}

// ===== impl CallTimeout =====

impl<S> CallTimeout<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<LlmRequest> for CallTimeout<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let now = Instant::now();
        let after = |limit: Option<Duration>| limit.and_then(|limit| now.checked_add(limit));
        let deadline = request.context.deadline().map(Instant::from_std);
        let Limits { mut head, mut first_content, whole, idle, total } = self.limits;
        if whole.is_some() && !request.body.is_streaming() {
            (head, first_content) = (whole, whole);
        }
        let first_content = after(first_content);
        let total = after(total);
        let bounds = [
            (after(head), TimeoutPhase::Head),
            (first_content, TimeoutPhase::FirstContent),
            (total, TimeoutPhase::Total),
            (deadline, TimeoutPhase::Deadline),
        ];
        let head = bounds.into_iter().filter_map(|(at, phase)| Some((at?, phase))).min_by_key(|(at, _)| *at);
        let progress = request.progress.clone();
        // Who no longer waits shall not pay.
        let is_late = deadline.is_some_and(|deadline| deadline <= now);
        ResponseFuture {
            future: (!is_late).then(|| self.inner.call(request)),
            progress,
            head,
            first_content,
            idle,
            total,
            deadline,
            sleep: None,
        }
    }
}

// ===== impl ResponseFuture =====

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(future) = this.future.as_pin_mut() else {
            return Poll::Ready(Err(Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Deadline })));
        };
        let mut polled = future.poll(cx).map_err(Into::into);
        match &mut polled {
            Poll::Ready(Ok(LlmResponse { body: ResponseBody::Stream(chunks), .. })) => {
                let (first_content, idle, total) = (*this.first_content, *this.idle, *this.total);
                if first_content.or(total).or(*this.deadline).is_some() || idle.is_some() {
                    chunks.limit(BodyClock::new(first_content, idle, total, *this.deadline));
                }
                polled
            }
            Poll::Ready(_) => polled,
            Poll::Pending => {
                let Some((at, phase)) = *this.head else { return Poll::Pending };
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                sleep.as_mut().poll(cx).map(|()| {
                    let error = Error::new(ErrorKind::Timeout { phase });
                    Err(error.with_dispatched(this.progress.is_dispatched()))
                })
            }
        }
    }
}

#[pinned_drop]
impl<F> PinnedDrop for ResponseFuture<F> {
    fn drop(self: Pin<&mut Self>) {
        let mut future = self.project().future;
        contained(|| future.set(None));
    }
}
