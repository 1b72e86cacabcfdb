use super::{
    layer::Settings,
    recorder::{Committed, Recorder, Which},
    sink::UsageSink,
    spent::Spent,
};
use crate::{
    Error, LlmRequest, LlmResponse, Progress, ResponseBody,
    body::{End, Watch, Watched},
};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_service::Service;

/// Records what each call of the inner service used up.
#[derive(Clone)]
pub struct RecordUsage<S, K> {
    inner: S,
    sink: K,
    settings: Arc<Settings>,
}

/// Response future of [`RecordUsage`].
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    state: State<F>,
    durable: Option<Durable>,
}

/// A whole answer that is not handed out before its record is safe.
struct Held {
    answer: Option<LlmResponse>,
    is_safe: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>,
    progress: Option<Progress>,
}

/// What is waited for in the durable mode.
struct Durable {
    committed: Committed,
    limit: Duration,
    /// Of calls only.
    progress: Option<Progress>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Calling(#[pin] Watched<F, Recorder>),
    Holding(Pin<Box<Held>>),
    Refused(Option<Error>),
}

impl<S, K> RecordUsage<S, K> {
    pub(super) const fn new(inner: S, sink: K, settings: Arc<Settings>) -> Self {
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
            Err(error) => return ResponseFuture { state: State::Refused(Some(error)), durable: None },
        };
        // The same request may be sent twice, by a retry or a hedge above: each call has its own.
        let progress = (self.settings.which == Which::Calls).then(|| request.progress.descend());
        let durable = self.settings.durable_within.map(|limit| Durable {
            committed: Committed::default(),
            limit,
            progress: progress.clone(),
        });
        let committed = durable.as_ref().map(|durable| durable.committed.clone());
        let watch = Watch::new(Recorder::start(&self.settings, slot, committed, progress, &request));
        ResponseFuture { state: State::Calling(watch.over(self.inner.call(request))), durable }
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.durable.is_none()
            && let StateProj::Calling(future) = this.state.as_mut().project()
        {
            // Handed on where it lies.
            return future.poll(cx);
        }
        loop {
            let mut polled = match this.state.as_mut().project() {
                StateProj::Calling(future) => future.poll(cx),
                StateProj::Holding(answer) => return answer.as_mut().poll(cx),
                StateProj::Refused(error) => {
                    return Poll::Ready(Err(error.take().expect("a future is not polled after its end")));
                }
            };
            let Poll::Ready(Ok(answer)) = &mut polled else { return polled };
            let Some(Durable { committed, limit, progress }) = this.durable.take() else { return polled };
            if let ResponseBody::Stream(chunks) = &mut answer.body {
                chunks.hold_end(committed.wait(limit));
                return polled;
            }
            let answer = Some(ready!(polled)?);
            let is_safe = Box::pin(committed.wait(limit));
            this.state.set(State::Holding(Box::pin(Held { answer, is_safe, progress })));
        }
    }
}

impl Held {
    /// What the answer used up, which limits outside charge, whoever gets it or not: it is recorded.
    fn spent(answer: &LlmResponse) -> Option<Spent> {
        match &answer.body {
            ResponseBody::Complete(completion) if !answer.cache.is_hit() => {
                Some(Spent::at(&End::Whole(completion), None))
            }
            _ => None,
        }
    }
}

impl Future for Held {
    type Output = Result<LlmResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let is_safe = ready!(self.is_safe.as_mut().poll(cx));
        let answer = self.answer.take().expect("a future is not polled after its end");
        Poll::Ready(match (is_safe, Self::spent(&answer)) {
            (Ok(()), _) => Ok(answer),
            (Err(error), Some(spent)) => Err(error.with_dispatched(true).with_spent(spent)),
            (Err(error), None) => Err(error),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let spent = self.answer.as_ref().and_then(Self::spent);
        if let (Some(progress), Some(spent)) = (&self.progress, spent) {
            progress.note_spent(spent);
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Calling(_) => "Calling",
            State::Holding(..) => "Holding",
            State::Refused(_) => "Refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug, K> fmt::Debug for RecordUsage<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordUsage").field("inner", &self.inner).finish_non_exhaustive()
    }
}
