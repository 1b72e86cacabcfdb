//! Tries again, and tries other models, when one fails, says nothing, or breaks off before its first content.
//!
//! A [`Policy`] is asked after each failure: again, another model, or enough. [`Chains`] is the one for most:
//! a list of models for each model, further tries on the same model, backoff, `Retry-After`, a retry budget.
//! [`FallbackLayer`] contains [`Peek`](crate::peek), for without it a stream could not fall back. It keeps what no policy
//! may break:
//!
//! - no model twice by [`Decision::Next`], and at most [`with_max_attempts`](FallbackLayer::with_max_attempts) calls;
//! - nobody is asked once the time is up: that of [`with_deadline`](FallbackLayer::with_deadline), or the caller's own;
//! - a quota that is used up, an invalid request, a store that is down: these are final;
//! - a model without a provider costs nothing: it is skipped before anybody is asked, and a target that the
//!   department may not use, or that has no price, is skipped too;
//! - once content has been passed on there is no second attempt: the error goes through as the stream's last
//!   item.
//!
//! All failures stay visible: [`LlmResponse::attempts`](crate::LlmResponse::attempts), [`Error::attempts`]. The error is the last one
//! of a model that was asked. If that is a substitute's refusal of a request that the first model did not refuse, it is the last one before
//! that is worth another try, if there is one: its caller can come again, and could not mend what a model that he did not ask for lacks.
//!
//! Stands outside of everything that costs money, so that each attempt is checked, limited and billed by
//! itself.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, Completion, Error, ErrorClass, LlmRequest, LlmResponse, TokenUsage,
//!     fallback::{Chains, FallbackLayer},
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let chains = Chains::builder().chain("acme/one", ["acme/two", "other/three"]).build()?;
//! let service = ServiceBuilder::new().layer(FallbackLayer::new(chains)).service(service_fn(
//!     |request: LlmRequest| async move {
//!         match request.model.as_str() {
//!             "acme/one" => Err(Error::provider(ErrorClass::Unavailable, "acme", "one")),
//!             _ => Ok(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1)))),
//!         }
//!     },
//! ));
//! let answer = service.oneshot(LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?)).await?;
//! assert_eq!(answer.model, "acme/two");
//! assert_eq!(answer.attempts[0].model, "acme/one");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! Dropping the future drops the attempt under way and makes no further one.

mod chains;
mod future;
mod layer;
mod policy;

pub use self::{
    chains::{Action, Backoff, ChainError, ChainProblem, ChainTable, Chains, ChainsBuilder},
    future::ResponseFuture,
    layer::{Fallback, FallbackLayer},
    policy::{Cause, Decision, Failure, Policy},
};

#[cfg(doc)]
use crate::Error;
