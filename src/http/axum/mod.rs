//! The edge for [axum](https://docs.rs/axum): a request comes in, an answer or an error goes out.
//!
//! * [`ChatRequest`] extracts an [`LlmRequest`](crate::LlmRequest). Who asks is what your own middleware has
//!   put into the request's extensions as a [`RequestContext`](crate::RequestContext); **without one the
//!   caller is nobody in particular**, not an error. How large a body may be is the
//!   [`BodyLimits`](crate::BodyLimits) in the extensions; axum's own `DefaultBodyLimit` is not asked.
//! * [`ChatAnswer`] responds with JSON, or with server-sent events to those who asked for a stream.
//! * [`MessagesRequest`] and [`MessagesAnswer`] are the same for Anthropic's Messages API.
//! * [`CountTokensRequest`] and [`TokenCount`] are for its `POST /v1/messages/count_tokens`, which asks no provider.
//! * With the feature `config`, `identify` finds out who asks by the keys of a configuration, and `admin` answers what is asked beside
//!   answers.
//! * [`BodyBudget`] bounds what the bodies of all requests take up together.
//! * [`WriteTimeout`] hangs up on a client that takes nothing of what it is sent.
//! * [`ErrorResponse`] is an error in the shape that the one or the other's clients read.
//!
//! ```
//! use axum_core::response::IntoResponse;
//! use llm_layers::{Error, LlmRequest, LlmResponse, http::{Asked, axum::{ChatAnswer, ChatRequest}}};
//! use tower::{Service, ServiceExt};
//!
//! async fn chat<S>(stack: S, ChatRequest(request): ChatRequest) -> impl IntoResponse
//! where
//!     S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
//! {
//!     let asked = Asked::by(&request);
//!     ChatAnswer::new(asked, stack.oneshot(request).await)
//! }
//! ```

#[cfg(feature = "config")]
pub mod admin;
mod answer;
mod body_budget;
mod error;
mod events;
#[cfg(feature = "config")]
mod identify;
mod request;
mod write_timeout;

#[cfg(feature = "config")]
pub use self::identify::{identify, too_many_in_flight};
pub use self::{
    answer::{ChatAnswer, MessagesAnswer, TokenCount},
    body_budget::{BodyBudget, HeldBody},
    error::{ErrorResponse, Refusal},
    events::Events,
    request::{ChatRequest, CountTokensRequest, MessagesRequest},
    write_timeout::WriteTimeout,
};
