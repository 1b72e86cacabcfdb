use super::{future::ResponseFuture, policy::Policy};
use crate::{
    Error, LlmRequest, LlmResponse,
    peek::{Peek, PeekLayer},
    providers::ProviderNames,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Fallback`] over [`Peek`] to a service.
#[derive(Debug, Clone)]
pub struct FallbackLayer<P> {
    policy: P,
    peek: PeekLayer,
    bounds: Bounds,
}

/// Sends a failed request again, as its [`Policy`] says.
#[derive(Clone)]
pub struct Fallback<S, P> {
    inner: S,
    policy: P,
    shared: Arc<Shared<S>>,
}

/// What all clones share.
pub(super) struct Shared<S> {
    pub(super) bounds: Bounds,
    /// What further attempts are made with. Most calls need none, and a clone of all that is below costs two changes of a
    /// shared count for each layer. Behind a lock so that a service need not be `Sync`.
    spare: Mutex<S>,
}

impl<S: Clone> Shared<S> {
    pub(super) fn spare(&self) -> S {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Debug, Clone)]
pub(super) struct Bounds {
    pub(super) max_attempts: u16,
    pub(super) deadline: Option<Duration>,
    pub(super) whole_deadline: Option<Duration>,
    pub(super) providers: Option<ProviderNames>,
}

impl<P> FallbackLayer<P> {
    /// Does as `policy` says, within 8 attempts.
    pub const fn new(policy: P) -> Self {
        Self {
            policy,
            peek: PeekLayer::new(),
            bounds: Bounds { max_attempts: 8, deadline: None, whole_deadline: None, providers: None },
        }
    }

    /// Makes at most this many calls, whatever the policy says; at least one. One that is refused before anybody is asked does
    /// not count.
    #[must_use]
    pub fn with_max_attempts(mut self, attempts: u16) -> Self {
        self.bounds.max_attempts = attempts.max(1);
        self
    }

    /// Bounds the time of all attempts together, until one has content.
    ///
    /// The caller's own [deadline](crate::RequestContext::deadline) is kept in any case.
    #[must_use]
    pub const fn with_deadline(mut self, deadline: Duration) -> Self {
        self.bounds.deadline = Some(deadline);
        self
    }

    /// As [`with_deadline`](Self::with_deadline), and in its place, for answers that are not streamed: these have
    /// content only when they are whole.
    #[must_use]
    pub const fn with_whole_deadline(mut self, deadline: Duration) -> Self {
        self.bounds.whole_deadline = Some(deadline);
        self
    }

    /// Tells which providers there are, so that a model without one is skipped before anybody is asked.
    #[must_use]
    pub fn with_providers(mut self, providers: ProviderNames) -> Self {
        self.bounds.providers = Some(providers);
        self
    }

    /// How much [`Peek`] may hold back.
    #[must_use]
    pub const fn with_peek(mut self, peek: PeekLayer) -> Self {
        self.peek = peek;
        self
    }
}

impl<S: Clone, P: Clone> Layer<S> for FallbackLayer<P> {
    // `Peek` is part of this layer, not advice: without it a stream could not fall back.
    type Service = Fallback<Peek<S>, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = self.peek.layer(inner);
        let shared = Shared { bounds: self.bounds.clone(), spare: Mutex::new(inner.clone()) };
        Fallback { inner, policy: self.policy.clone(), shared: Arc::new(shared) }
    }
}

impl<S, P> Fallback<S, P> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, P> Service<LlmRequest> for Fallback<S, P>
where
    S: Service<LlmRequest, Response = LlmResponse> + Clone,
    S::Error: Into<Error>,
    P: Policy,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S, P>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        ResponseFuture::new(&mut self.inner, request, self.policy.clone(), Arc::clone(&self.shared))
    }
}

impl<S: fmt::Debug, P: fmt::Debug> fmt::Debug for Fallback<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .field("bounds", &self.shared.bounds)
            .finish_non_exhaustive()
    }
}
