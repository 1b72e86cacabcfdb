use super::AliasTable;
use crate::{LlmRequest, ModelName, decision::Note};
use arc_swap::ArcSwap;
use std::{
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// A table that may be exchanged while it is used. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Aliases(Arc<ArcSwap<AliasTable>>);

/// Applies [`Alias`] to a service.
#[derive(Debug, Clone)]
pub struct AliasLayer {
    aliases: Aliases,
}

/// Resolves the model's name before it calls the inner service.
#[derive(Debug, Clone)]
pub struct Alias<S> {
    inner: S,
    aliases: Aliases,
}

impl Aliases {
    /// Starts with `table`.
    pub fn new(table: AliasTable) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(table)))
    }

    /// Calls that come from now on use `table`.
    pub fn store(&self, table: AliasTable) {
        self.0.store(Arc::new(table));
    }

    /// The table of this moment.
    pub fn load(&self) -> Arc<AliasTable> {
        self.0.load_full()
    }

    /// The canonical name of `model` for whoever sends `request`.
    pub fn resolve(&self, model: &ModelName, request: &LlmRequest) -> ModelName {
        self.0.load().resolve(model, request.context.tenant_id(), request.context.user_id())
    }

    /// As [`resolve`](Self::resolve), with each step noted among the request's decisions.
    fn resolve_noted(&self, model: &ModelName, request: &LlmRequest) -> ModelName {
        let (tenant, user) = (request.context.tenant_id(), request.context.user_id());
        self.0.load().walk(model, tenant, user, |from, to| {
            request.decisions().note(|| Note::Alias { from: from.clone(), to: to.clone() });
        })
    }
}

impl From<AliasTable> for Aliases {
    fn from(table: AliasTable) -> Self {
        Self::new(table)
    }
}

impl AliasLayer {
    /// Resolves by `aliases`: a table, or a handle by which it may be exchanged.
    pub fn new(aliases: impl Into<Aliases>) -> Self {
        Self { aliases: aliases.into() }
    }
}

impl<S> Layer<S> for AliasLayer {
    type Service = Alias<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Alias { inner, aliases: self.aliases.clone() }
    }
}

impl<S> Alias<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// Adds no error of its own.
impl<S: Service<LlmRequest>> Service<LlmRequest> for Alias<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        request.model = self.aliases.resolve_noted(&request.model, &request);
        self.inner.call(request)
    }
}
