use super::{
    layer::Settings,
    observer::{CallSpan, CallStart, Observer, Role, Scope},
    recorder::Recorder,
};
use crate::{
    Error, LlmRequest, LlmResponse, ResponseBody, StreamChunk,
    body::{Watch, Watched},
    decision::Decisions,
    so_far::Around,
};
use futures_core::Stream;
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tower_service::Service;

/// Tells an [`Observer`] of each call of the inner service.
#[derive(Clone)]
pub struct Telemetry<S, O> {
    inner: S,
    observer: O,
    settings: Arc<Settings>,
}

/// Response future of [`Telemetry`].
#[pin_project]
pub struct ResponseFuture<F, O: Observer> {
    #[pin]
    state: State<F, O::Span>,
    decisions: Decisions,
}

#[pin_project(project = StateProj)]
enum State<F, S: CallSpan> {
    /// Nobody wants to know.
    Unobserved(#[pin] F),
    Observed(#[pin] Watched<Within<F, S::Scope>, Recorder<S>>),
}

/// A future, or a stream, that is polled in the scope of a span.
#[pin_project]
struct Within<F, C> {
    #[pin]
    inner: F,
    scope: Option<C>,
}

fn within<C: Scope, T>(scope: Option<&C>, f: impl FnOnce() -> T) -> T {
    match scope {
        Some(scope) => scope.run(f),
        None => f(),
    }
}

impl<S, O> Telemetry<S, O> {
    pub(super) const fn new(inner: S, observer: O, settings: Arc<Settings>) -> Self {
        Self { inner, observer, settings }
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

impl<S, O> Service<LlmRequest> for Telemetry<S, O>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
    O: Observer,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future, O>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        let role = self.settings.target.role;
        let Settings { target, capture, .. } = &*self.settings;
        let on_event = role == Role::Client && capture.on_event();
        let start = CallStart { role, request: &request, target, on_event };
        let around = request.around();
        let parent = around.as_ref().and_then(|around| around.scope::<<O::Span as CallSpan>::Scope>());
        let Some(span) = self.observer.start(&start, parent) else {
            let decisions = request.decisions().clone();
            return ResponseFuture { state: State::Unobserved(self.inner.call(request)), decisions };
        };
        let (scope, started) = (span.scope(), Instant::now());
        let mut whole = None;
        if role == Role::Gateway {
            let around = Arc::new(Around::new(scope.clone()));
            request.set_around(&around);
            whole = Some((around, request.progress.descend()));
            if span.is_recording() {
                request.keep_decisions();
            }
        }
        let decisions = request.decisions().clone();
        let watch = Watch::new(Recorder::new(span, whole, &self.settings, &mut request, started));
        let inner = within(scope.as_ref(), || self.inner.call(request));
        ResponseFuture { state: State::Observed(watch.over(Within { inner, scope })), decisions }
    }
}

impl<F, O, E> Future for ResponseFuture<F, O>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
    O: Observer,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut polled = match this.state.project() {
            StateProj::Unobserved(future) => future.poll(cx).map_err(Into::into),
            StateProj::Observed(future) => future.poll(cx),
        };
        if this.decisions.are_kept() {
            match &mut polled {
                Poll::Ready(Ok(answer)) => answer.decisions = this.decisions.clone(),
                Poll::Ready(Err(error)) => *error = error.clone().with_decisions(this.decisions),
                Poll::Pending => {}
            }
        }
        polled
    }
}

impl<F, C, E> Future for Within<F, C>
where
    F: Future<Output = Result<LlmResponse, E>>,
    C: Scope,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut polled = within(this.scope.as_ref(), || this.inner.poll(cx));
        if let (Poll::Ready(Ok(LlmResponse { body: ResponseBody::Stream(chunks), .. })), Some(scope)) =
            (&mut polled, &this.scope)
        {
            let scope = Some(scope.clone());
            chunks.wrap(|inner| Box::pin(Within { inner, scope }));
        }
        polled
    }
}

impl<F, C> Stream for Within<F, C>
where
    F: Stream<Item = Result<StreamChunk, Error>>,
    C: Scope,
{
    type Item = F::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        within(this.scope.as_ref(), || this.inner.poll_next(cx))
    }
}

impl<F, O: Observer> fmt::Debug for ResponseFuture<F, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_observed = matches!(self.state, State::Observed(_));
        f.debug_struct("ResponseFuture").field("is_observed", &is_observed).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, O> fmt::Debug for Telemetry<S, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("inner", &self.inner).finish_non_exhaustive()
    }
}
