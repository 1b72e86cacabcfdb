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
    /// A whole answer that is not handed out before its record is safe.
    Holding(Pin<Box<dyn Future<Output = Result<LlmResponse, Error>> + Send>>),
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
            match &mut answer.body {
                ResponseBody::Stream(chunks) => {
                    chunks.hold_end(committed.wait(limit));
                    return polled;
                }
                ResponseBody::Complete(completion) if !answer.cache.is_hit() => {
                    // Limits outside charge what is recorded, also if nobody waits for the answer any more.
                    if let Some(progress) = progress {
                        progress.note_spent(Spent::at(&End::Whole(completion), None));
                    }
                }
                ResponseBody::Complete(_) => {}
            }
            let answer = ready!(polled)?;
            this.state.set(State::Holding(Box::pin(held(answer, committed, limit))));
        }
    }
}

/// Hands the answer out once its record is safe.
async fn held(answer: LlmResponse, committed: Committed, limit: Duration) -> Result<LlmResponse, Error> {
    match committed.wait(limit).await {
        Ok(()) => Ok(answer),
        Err(error) => Err(withheld(error, &answer)),
    }
}

/// Whoever counts what was used up counts what the answer says of it, though nobody gets the answer.
fn withheld(error: Error, answer: &LlmResponse) -> Error {
    let error = error.with_dispatched(true);
    match &answer.body {
        ResponseBody::Complete(completion) => match completion.usage() {
            Some(usage) => error.with_usage(*usage),
            None => error,
        },
        ResponseBody::Stream(_) => error,
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
