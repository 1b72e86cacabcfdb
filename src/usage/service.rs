use super::{layer::Settings, recorder::Recorder, sink::UsageSink};
use crate::{
    Error, LlmRequest, LlmResponse,
    body::{Watch, Watched},
};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tower_service::Service;

/// Records what each call of the inner service used up.
#[derive(Clone)]
pub struct RecordUsage<S, K> {
    inner: S,
    sink: K,
    settings: Settings,
}

/// Response future of [`RecordUsage`].
#[pin_project]
#[derive(Debug)]
pub struct ResponseFuture<F>(#[pin] State<F>);

#[pin_project(project = StateProj)]
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "every call but those that are refused is the large one")]
enum State<F> {
    Calling(#[pin] Watched<F, Recorder>),
    Refused(Option<Error>),
}

impl<S, K> RecordUsage<S, K> {
    pub(super) const fn new(inner: S, sink: K, settings: Settings) -> Self {
        Self { inner, sink, settings }
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

impl<S, K> Service<LlmRequest> for RecordUsage<S, K>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
    K: UsageSink,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        let slot = match self.sink.admit() {
            Ok(slot) => slot,
            Err(error) => return ResponseFuture(State::Refused(Some(error))),
        };
        // The same request may be sent twice, by a retry or a hedge above: each call has its own.
        request.progress = request.progress.child();
        let Settings { which, prices, clock } = self.settings.clone();
        let watch = Watch::new(Recorder::start(which, slot, prices, clock, &request));
        ResponseFuture(State::Calling(watch.over(self.inner.call(request))))
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().0.project() {
            StateProj::Calling(future) => future.poll(cx),
            StateProj::Refused(error) => {
                Poll::Ready(Err(error.take().expect("a future is not polled after its end")))
            }
        }
    }
}

impl<S: fmt::Debug, K> fmt::Debug for RecordUsage<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordUsage").field("inner", &self.inner).finish_non_exhaustive()
    }
}
