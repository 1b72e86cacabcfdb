//! Any OpenAI-compatible provider, over any HTTP service.
//!
//! [`OpenAiCompatible`] turns a request into one `POST …/chat/completions` and the answer into an
//! [`LlmResponse`](crate::LlmResponse). It sits on a service of [`http::Request`]s, so that time-outs,
//! traces and whatever else speaks HTTP stack *beneath* it, and a test needs no network:
//!
//! ```
//! use bytes::Bytes;
//! use http_body_util::Full;
//! use llm_layers::{ChatBody, LlmRequest, provider::openai::OpenAiCompatible};
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::BoxError> {
//! let http = service_fn(async |request: http::Request<Full<Bytes>>| {
//!     assert_eq!(request.uri(), "https://llm.example/v1/chat/completions");
//!     let answer = r#"{"choices":[{"index":0,"message":{"content":"Hi!"},"finish_reason":"stop"}]}"#;
//!     Ok::<_, std::io::Error>(http::Response::new(Full::<Bytes>::from(answer)))
//! });
//! let provider = OpenAiCompatible::new(http, "https://llm.example/v1")?.with_api_key("secret")?;
//!
//! let request = LlmRequest::new("model-1", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(provider.oneshot(request).await?.text().await?, "Hi!");
//! # Ok(())
//! # }
//! ```
//!
//! What arrives in [`LlmRequest::body`](crate::LlmRequest::body) leaves byte for byte, but for the model's
//! name and, for streams, `stream_options.include_usage`, which is asked for because the layers need it, and not again of a
//! server that refuses to be asked: see [`with_stream_usage`](OpenAiCompatible::with_stream_usage).
//! What an edge has put in for a caller of [another dialect](crate::Dispensable) is left out, or said in the provider's words,
//! where it would be refused: see [`with_returned_thoughts`](OpenAiCompatible::with_returned_thoughts); not to think is told to
//! OpenAI's models from GPT-5.1 on that know `none`, and to DeepSeek and Z.ai as `thinking`.
//! URL and headers come from configuration only; of the request's context nothing is sent but its id, as
//! `x-request-id`.
//!
//! Streams are polled straight through, without a task or a channel: dropping one hangs up. Each way to
//! fail has its own [`ErrorClass`](crate::ErrorClass); an error that was reported inside of a `200`, or of a choice, and a
//! stream that stops without its end are errors, never answers. What a provider says of a refusal is waited for for two
//! seconds at most.

mod collect;
pub(super) mod endpoint;
mod fault;
mod future;
#[cfg(feature = "hyper-client")]
mod hyper;
pub(super) mod origin;
#[cfg(feature = "reqwest")]
mod reqwest;
mod retry_after;
mod service;
mod stream;
mod wire;

#[cfg(feature = "hyper-client")]
pub use self::hyper::{
    HyperClient, HyperConnector, hyper_client, hyper_client_through, hyper_client_trusting,
};
#[cfg(feature = "reqwest")]
pub use self::reqwest::{ReqwestClient, ReqwestFuture};
pub use self::{endpoint::ConfigError, future::ResponseFuture, service::OpenAiCompatible};

/// Where `path` is, below a base URL, whose query stays behind it.
#[cfg(all(feature = "config", feature = "semantic", feature = "hyper-client"))]
pub(crate) fn below(base_url: &str, path: &str) -> Result<http::Uri, ConfigError> {
    Ok(endpoint::Endpoint::new(base_url, path)?.uri)
}
