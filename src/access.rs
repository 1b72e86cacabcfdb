//! Refuses models that a department may not use.
//!
//! Every one of the caller's departments must allow the model, by its canonical name: a list that names it, or a
//! pattern that means it. A department without a list may use every model; one with an empty list may use none. A
//! caller without departments may use every model. What is refused is
//! [`ModelNotAllowed`](crate::ErrorKind::ModelNotAllowed), and nobody is asked.
//!
//! Where a list binds the caller, a request that names [further models](crate::ChatBody::further_models) for the provider to
//! choose from is refused as an [`InvalidRequest`](crate::ErrorKind::InvalidRequest): no list could say which of them answers.
//!
//! Belongs inside of [`Fallback`](crate::fallback) and [`Alias`](crate::alias), and outside of a cache: each attempt is
//! checked with the model that it is about, also if the answer is cached. A fallback skips a substitute that is refused;
//! if the model that the caller named is refused, so is the call.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, RequestContext, TokenUsage,
//!     access::AccessLayer,
//!     policies::{DepartmentPolicy, PolicyTable},
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let policies = PolicyTable::default()
//!     .with("research", DepartmentPolicy::default().with_models(["acme/*"]));
//! let service = ServiceBuilder::new().layer(AccessLayer::new(policies)).service(service_fn(
//!     |request: LlmRequest| async move {
//!         Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1))))
//!     },
//! ));
//! let context = RequestContext::new().with_departments(["research"]);
//! let body = ChatBody::builder().user("Hello").build()?;
//! let allowed = LlmRequest::new("acme/one", body.clone()).with_context(context.clone());
//! assert!(service.clone().oneshot(allowed).await.is_ok());
//! let refused = LlmRequest::new("other/one", body).with_context(context);
//! let error = service.oneshot(refused).await.unwrap_err();
//! assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! The layer holds nothing: a dropped call leaves nothing behind.

use crate::{
    Error, ErrorKind, InvalidReason, LlmRequest, LlmResponse,
    decision::{AccessDecision, Note},
    policies::Policies,
    providers::ProviderNames,
};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Access`] to a service.
///
/// The [module docs](self) have an example.
#[derive(Debug, Clone)]
pub struct AccessLayer {
    policies: Policies,
    providers: ProviderNames,
}

/// Lets calls through whose departments may use their model.
#[derive(Debug, Clone)]
pub struct Access<S> {
    inner: S,
    policies: Policies,
    providers: ProviderNames,
}

/// Response future of [`Access`].
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    state: State<F>,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Calling(#[pin] F),
    Refused(Option<Error>),
}

impl AccessLayer {
    /// Decides by `policies`: a table, or a handle by which it may be exchanged.
    pub fn new(policies: impl Into<Policies>) -> Self {
        Self { policies: policies.into(), providers: ProviderNames::default() }
    }

    /// Tells which providers there are: with only one, a name without a provider is of it, on a list as in a call. Patterns are of
    /// canonical names all the same.
    #[must_use]
    pub fn with_providers(mut self, providers: ProviderNames) -> Self {
        self.providers = providers;
        self
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Access<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Access { inner, policies: self.policies.clone(), providers: self.providers.clone() }
    }
}

impl<S> Access<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// The first department that may not, and what the caller is told.
    fn refused_by<'a>(&self, request: &'a LlmRequest) -> Option<(&'a Arc<str>, Error)> {
        let departments = request.context.department_ids();
        if departments.is_empty() {
            return None;
        }
        let table = self.policies.peek();
        let further = request.body.further_models();
        departments.iter().find_map(|department| {
            let policy = table.of(department);
            let error = if !policy.allows_at(&self.providers, &request.model) {
                let (department_id, model) = (Arc::clone(department), request.model.clone());
                Error::new(ErrorKind::ModelNotAllowed { department_id, model })
            } else {
                policy.models.as_ref()?;
                Error::invalid(further?, InvalidReason::FurtherModels)
            };
            Some((department, error))
        })
    }
}

impl<S> Service<LlmRequest> for Access<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let refused_by = self.refused_by(&request);
        request.decisions().note(|| {
            let department = refused_by.as_ref().map(|(department, _)| Arc::clone(department));
            Note::Access(AccessDecision::new(request.model.clone(), department, refused_by.is_none()))
        });
        let state = match refused_by {
            None => State::Calling(self.inner.call(request)),
            Some((_, error)) => State::Refused(Some(error)),
        };
        ResponseFuture { state }
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Calling(future) => future.poll(cx).map_err(Into::into),
            StateProj::Refused(error) => {
                Poll::Ready(Err(error.take().expect("a future is not polled after its end")))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Calling(_) => "Calling",
            State::Refused(_) => "Refused",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
