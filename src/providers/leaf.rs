use crate::{
    Error, LlmRequest, LlmResponse,
    provider::dispatch::{Asked, ResponseFuture},
};
use std::task::{Context, Poll};
use tower_service::Service;

/// A deployment's own service, as what stands around it by [`each`](super::ProvidersBuilder::each) sees it: being
/// called counts as being asked.
#[derive(Debug, Clone)]
pub struct Leaf<S> {
    inner: S,
    /// The service does so itself.
    marks_dispatch: bool,
}

impl<S> Leaf<S> {
    pub(super) const fn new(inner: S, marks_dispatch: bool) -> Self {
        Self { inner, marks_dispatch }
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

impl<S> Service<LlmRequest> for Leaf<S>
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
        if !self.marks_dispatch {
            request.progress.mark_dispatched();
        }
        asked.over(self.inner.call(request))
    }
}
