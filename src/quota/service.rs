use super::{
    hold::Lease,
    lease::Headroom,
    shared::{Admission, Asking, Shared},
};
use crate::{
    Error, LlmRequest, LlmResponse,
    body::{Watch, Watched},
    decision::{Note, QuotaDecision},
};
use pin_project::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// Reserves what a call may use up, calls the inner service, and settles what it did use up.
#[derive(Clone)]
pub struct Quota<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// Response future of [`Quota`].
#[pin_project]
pub struct ResponseFuture<S: Service<LlmRequest>> {
    #[pin]
    state: Calling<S>,
}

#[pin_project(project = CallingProj)]
#[expect(clippy::large_enum_variant, reason = "most calls are leased")]
enum Calling<S: Service<LlmRequest>> {
    /// The store is asked; the service is ready meanwhile.
    Asking(Asking, S),
    /// The call is made, and its lease will be settled.
    Leased(#[pin] Watched<S::Future, Lease>, Option<Headroom>),
    /// The call is made, and counts for nobody.
    Free(#[pin] S::Future),
    Refused(Option<Error>),
}

impl<S> Quota<S> {
    pub(super) const fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
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

impl<S> Service<LlmRequest> for Quota<S>
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

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        let state = match self.shared.admit(&mut request) {
            Admission::Free => Calling::Free(self.inner.call(request)),
            Admission::Granted(lease, tightest) => Calling::leased(&mut self.inner, request, lease, tightest),
            Admission::Refused(error) => {
                // The one that is ready goes, and gives back what it holds.
                self.inner = self.inner.clone();
                Calling::Refused(Some(error))
            }
            Admission::Asking(asking) => {
                let clone = self.inner.clone();
                Calling::Asking(asking, mem::replace(&mut self.inner, clone))
            }
        };
        ResponseFuture { state }
    }
}

impl<S: Service<LlmRequest>> Calling<S> {
    fn leased(inner: &mut S, request: LlmRequest, lease: Lease, tightest: Option<Headroom>) -> Self {
        if let Some(left) = &tightest {
            request.decisions().note(|| Note::Quota(decision(left)));
        }
        // Before the inner service is called, so that a panic in there is settled too.
        let watch = Watch::new(lease);
        Self::Leased(watch.over(inner.call(request)), tightest)
    }
}

fn decision(left: &Headroom) -> QuotaDecision {
    QuotaDecision::new(Arc::clone(&left.department), left.quota, left.period, left.limit)
        .with_use(left.settled, left.reserved)
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
                CallingProj::Leased(future, tightest) => {
                    let mut polled = future.poll(cx);
                    if let Poll::Ready(Ok(answer)) = &mut polled {
                        // The outermost of several has the last word.
                        answer.quota = tightest.take().or_else(|| answer.quota.take());
                    }
                    return polled;
                }
                CallingProj::Free(future) => return future.poll(cx).map_err(Into::into),
                CallingProj::Refused(error) => {
                    return Poll::Ready(Err(error.take().expect("a future is not polled after its end")));
                }
                CallingProj::Asking(asking, inner) => match ready!(asking.as_mut().poll(cx)) {
                    (request, Ok(Some((lease, tightest)))) => {
                        Calling::leased(inner, request, lease, tightest)
                    }
                    (request, Ok(None)) => Calling::Free(inner.call(request)),
                    (_, Err(error)) => Calling::Refused(Some(error)),
                },
            };
            state.set(next);
        }
    }
}

impl<S: Service<LlmRequest>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            Calling::Asking(..) => "Asking",
            Calling::Leased(..) => "Leased",
            Calling::Free(_) => "Free",
            Calling::Refused(_) => "Refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

impl<S: fmt::Debug> fmt::Debug for Quota<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota").field("inner", &self.inner).finish_non_exhaustive()
    }
}
