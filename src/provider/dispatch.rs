//! Marks calls to a leaf that does not do so itself.
//!
//! What was not marked costs nothing: [`quota`](crate::quota) gives it back, and [`usage`](crate::usage) does not record it.
//! A leaf that leaves it out serves for nothing whoever hangs up before the head, and whatever fails before it.
//! [`MarkDispatchLayer`] around such a leaf counts being called as being asked, as [`Providers`](crate::providers) does for its
//! deployments. Besides, it notes how each attempt ended, so that all attempts of tower's `Retry` or `Hedge` around it are known,
//! and not only the last.
//!
//! ```
//! use llm_layers::{BoxError, ChatBody, Completion, LlmRequest, LlmResponse, TokenUsage, provider::dispatch::MarkDispatchLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::Error> {
//! // A client of somebody else's, which knows nothing of this crate.
//! async fn ask(prompt: String) -> Result<String, BoxError> {
//!     Ok(format!("{prompt} is what you said."))
//! }
//!
//! let leaf = ServiceBuilder::new().layer(MarkDispatchLayer::new()).service(service_fn(|request: LlmRequest| async move {
//!     let prompt = request.body.messages().map(|message| message.text().into_owned()).collect();
//!     let answer = Completion::text(&ask(prompt).await?, TokenUsage::new(9, 2));
//!     Ok::<_, BoxError>(LlmResponse::new(request.model, answer))
//! }));
//! let request = LlmRequest::new("one", ChatBody::builder().user("Hello").build()?);
//! let progress = request.progress.clone();
//! assert_eq!(leaf.oneshot(request).await?.text().await?, "Hello is what you said.");
//! assert!(progress.is_dispatched());
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! A call that is dropped was made.

use crate::{Error, ErrorClass, LlmRequest, LlmResponse, Progress, usage::is_refusal};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`MarkDispatch`] to a leaf. The [module docs](self) have an example.
#[derive(Debug, Clone, Copy, Default)]
pub struct MarkDispatchLayer(());

/// Marks the [progress](Progress) of each call that it makes.
#[derive(Debug, Clone, Copy)]
pub struct MarkDispatch<S> {
    inner: S,
    /// The service does so itself.
    is_marked_within: bool,
}

/// One attempt to ask a provider, noted in the call's progress when there is a head, or none will come: whoever tries
/// again and shares that progress may hear of the last attempt alone.
pub(crate) struct Asked {
    progress: Progress,
    is_over: bool,
}

/// Response future of [`MarkDispatch`].
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    future: F,
    asked: Asked,
}

// ===== impl MarkDispatchLayer =====

impl MarkDispatchLayer {
    /// Marks each call.
    pub const fn new() -> Self {
        Self(())
    }
}

impl<S> Layer<S> for MarkDispatchLayer {
    type Service = MarkDispatch<S>;

    fn layer(&self, inner: S) -> MarkDispatch<S> {
        MarkDispatch::around(inner, false)
    }
}

// ===== impl MarkDispatch =====

impl<S> MarkDispatch<S> {
    pub(crate) const fn around(inner: S, is_marked_within: bool) -> Self {
        Self { inner, is_marked_within }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<LlmRequest> for MarkDispatch<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let asked = Asked::new(&request.progress);
        if !self.is_marked_within {
            request.progress.mark_dispatched();
        }
        ResponseFuture { asked, future: self.inner.call(request) }
    }
}

// ===== impl Asked =====

impl Asked {
    /// Before it is marked, so that a panic ends it too.
    pub(crate) fn new(progress: &Progress) -> Self {
        Self { progress: progress.clone(), is_over: false }
    }

    /// Where an attempt that was not sent shares the progress with one that was, its error says so.
    pub(crate) fn end(&mut self, ended: &mut Result<LlmResponse, Error>) {
        self.is_over = true;
        let error = match ended {
            Ok(answer) if answer.cache.is_hit() => return,
            Ok(_) => return self.progress.mark_billable(),
            Err(error) => error,
        };
        let is_connect = error.class() == Some(ErrorClass::Connect);
        let is_sent = error.dispatched() || (!is_connect && self.progress.is_dispatched());
        if is_sent && is_refusal(error) && error.usage().is_none() {
            self.progress.mark_refused();
        } else if is_sent {
            self.progress.mark_billable();
        } else if is_connect && self.progress.is_sent() {
            error.set_dispatched(true);
        }
    }
}

/// Who leaves a provider that was asked has asked it.
impl Drop for Asked {
    fn drop(&mut self) {
        if !self.is_over && self.progress.is_dispatched() {
            self.progress.mark_billable();
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
        // Looked at where it lies: an answer is large, and passes many of these.
        let mut polled = this.future.poll(cx).map_err(Into::into);
        if let Poll::Ready(ended) = &mut polled {
            this.asked.end(ended);
            // A service of somebody else's may not know what was marked for it.
            if let Err(error) = ended
                && error.was_sent(&this.asked.progress)
            {
                error.set_dispatched(true);
            }
        }
        polled
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("ended", &self.asked.is_over).finish_non_exhaustive()
    }
}
