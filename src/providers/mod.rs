//! The innermost service: finds the provider of a model, and among its deployments the one to ask.
//!
//! `openai/gpt-4o-mini` goes to the provider `openai` as `gpt-4o-mini`; see [`ProviderNames`] for the rule. A
//! provider is any `Service<LlmRequest>`. Several deployments under one name share its calls: of two chosen by
//! chance the one with fewer calls in flight is asked ("the power of two choices", Mitzenmacher 2001), and a
//! call counts until its answer has ended. A deployment that keeps failing is left alone for a while; failures
//! that are the caller's fault do not count, and when all are to be left alone, none is. After
//! its rest it has one call at a time until it is heard, or as long as a rest has passed, and one that fails is enough for the
//! next rest. A further attempt of [`Fallback`](crate::fallback) goes to one that has not failed in this call, if there is one.
//!
//! Always ready itself: a deployment's own readiness is waited for inside the call, so `load_shed` and
//! `concurrency_limit` belong around one deployment. What stands around each deployment is given by
//! [`each`](ProvidersBuilder::each): timeouts, and telemetry of the call. A call that is refused there was not sent.
//!
//! ```
//! use llm_layers::{ChatBody, Completion, Error, LlmRequest, LlmResponse, TokenUsage, providers::Providers, timeout::CallTimeoutLayer};
//! use std::time::Duration;
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let leaf = service_fn(|request: LlmRequest| async move {
//!     assert_eq!(request.model, "llama/3");
//!     Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1))))
//! });
//! let providers = Providers::builder()
//!     .each(|_| CallTimeoutLayer::new().with_head(Duration::from_secs(30)))
//!     .provider("local", leaf)
//!     .provider("local", leaf)
//!     .build()?;
//! assert_eq!(providers.names().provider_for("local/llama/3"), Some("local"));
//!
//! let request = LlmRequest::new("local/llama/3", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(providers.oneshot(request).await?.model, "local/llama/3");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! Dropping the future or the stream ends the call at the deployment, and its share in the balance.

mod balance;
mod builder;
mod names;
mod place;
mod service;

pub(crate) use self::balance::Chosen;
#[cfg(feature = "config")]
pub(crate) use self::balance::Health;
#[cfg(feature = "config")]
pub(crate) use self::place::Place;
pub use self::{
    balance::CoolDown,
    builder::{Deployment, Endpoint, ProvidersBuilder, ProvidersError},
    names::ProviderNames,
    service::{Providers, ResponseFuture},
};

/// A deployment's own service, as what stands around it by [`each`](ProvidersBuilder::each) sees it: being called counts as being asked.
pub type Leaf<S> = crate::provider::dispatch::MarkDispatch<S>;
