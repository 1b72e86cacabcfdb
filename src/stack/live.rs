use crate::LlmRequest;
use arc_swap::ArcSwap;
use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// The stack of this moment: each call takes it once, and keeps it to its end.
///
/// One load for all tables, so that no call sees the aliases of one configuration and the chains of another.
pub(super) struct Live<S> {
    current: Arc<ArcSwap<S>>,
    ready: Option<S>,
}

impl<S> Live<S> {
    pub(super) const fn new(current: Arc<ArcSwap<S>>) -> Self {
        Self { current, ready: None }
    }
}

impl<S> Clone for Live<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.current))
    }
}

impl<S: Service<LlmRequest> + Clone> Service<LlmRequest> for Live<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.ready.get_or_insert_with(|| S::clone(&self.current.load())).poll_ready(cx)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        // The one that is ready is used up; the next call may find another.
        mem::take(&mut self.ready).expect("`poll_ready` comes before `call`").call(request)
    }
}
