//! Spans and metrics of calls to models, in the words of OpenTelemetry's GenAI conventions.
//!
//! [`TelemetryLayer::client`] makes one span of each call to a provider, [`TelemetryLayer::gateway`] one around all that is
//! tried. A span begins when the layer is called and ends when the answer has *ended*, exactly once, however that is: whole,
//! at a stream's terminal chunk, at its break, when the caller hangs up, at a time limit, after a panic. While the
//! service below works, and only then, the span is current.
//!
//! - The client's layer belongs inside of [`Providers`](crate::providers), around each deployment: a hit of a cache is no
//!   inference, and each attempt of a fallback is one.
//! - Model and usage are on the clients' spans alone, for backends add up what they find in a trace.
//! - Nothing that is said, no key and no user is exported, unless you [ask](TelemetryLayer::with_content) for what is said.
//!
//! Whom it tells is an [`Observer`]: [`TracingObserver`] (feature `tracing`, on by default), `OtelObserver` (feature `otel`),
//! a pair for both, `()` for nothing. What is exported under which name is listed in `docs/telemetry.md`.
//!
#![cfg_attr(feature = "tracing", doc = "```")]
#![cfg_attr(not(feature = "tracing"), doc = "```ignore")]
//! use llm_layers::{
//!     ChatBody, LlmRequest, ServiceBuilderExt as _, provider::Echo, providers::Providers,
//!     telemetry::{TelemetryLayer, TracingObserver},
//!     timeout::CallTimeoutLayer,
//! };
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let observer = TracingObserver::new();
//! let timeouts = CallTimeoutLayer::new().with_head(Duration::from_secs(30));
//! let providers = Providers::builder()
//!     // From the outside in: a timeout is a failure that the span tells.
//!     .each(move |endpoint| (TelemetryLayer::at(observer, endpoint), timeouts))
//!     .provider("local", Echo::new())
//!     .build()?;
//! let stack = ServiceBuilder::new().telemetry(TelemetryLayer::gateway(observer)).service(providers);
//!
//! let request = LlmRequest::new("local/echo", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(stack.oneshot(request).await?.text().await?, "Hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! A call that is dropped is a span that ends as `cancelled`, with what is known of its usage.

mod content;
mod layer;
mod observer;
#[cfg(feature = "otel")]
pub mod otel;
mod params;
mod recorder;
mod semconv;
mod service;
#[cfg(feature = "tracing")]
mod tracing;

#[cfg(feature = "otel")]
pub use self::otel::OtelObserver;
#[cfg(feature = "tracing")]
pub use self::tracing::{TracingObserver, TracingScope, TracingSpan};
pub use self::{
    content::{CaptureContent, Content, Redact},
    layer::TelemetryLayer,
    observer::{CallEnd, CallSpan, CallStart, Head, Observer, Role, Scope},
    semconv::{SemConv, Value, error_type},
    service::{ResponseFuture, Telemetry},
};
