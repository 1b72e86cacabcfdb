//! Composable Tower layers for calls to language models.
//!
//! Every concern around a call is a [`tower::Layer`](tower_layer::Layer), and the call itself is a
//! [`Service`](tower_service::Service) of [`LlmRequest`], answered by an [`LlmResponse`]: a head that is known at
//! once, and a body that may still be coming. A layer here stays active until the answer has *ended*; tower's own
//! stop at the head. Any may be left out, and any may be stacked with tower's own.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, Completion, Error, ErrorClass, LlmRequest, LlmResponse, ServiceBuilderExt as _, TokenUsage,
//!     alias::{AliasTable, Aliases},
//!     fallback::{Chains, FallbackLayer},
//!     providers::Providers,
//!     timeout::CallTimeoutLayer,
//! };
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt as _, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Two leaves; in earnest they would ask a server. One is down.
//! let cloud = service_fn(|request: LlmRequest| async move {
//!     Err::<LlmResponse, _>(Error::provider(ErrorClass::Unavailable, "cloud", request.model))
//! });
//! let local = service_fn(|request: LlmRequest| async move {
//!     Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("Hello!", TokenUsage::new(9, 2))))
//! });
//!
//! let providers = Providers::builder()
//!     .each(|_| CallTimeoutLayer::new().with_head(Duration::from_secs(30)).with_idle(Duration::from_secs(30)))
//!     .provider("cloud", cloud)
//!     .provider("local", local)
//!     .build()?;
//! let names = providers.names();
//! let table = AliasTable::builder().providers(names.clone()).alias("fast", "cloud/large").build()?;
//! let aliases = Aliases::new(table);
//! let chains = Chains::builder()
//!     .providers(names.clone())
//!     .aliases(aliases.clone())
//!     .chain("cloud/large", ["local/small"])
//!     .build()?;
//!
//! let stack = ServiceBuilder::new()
//!     .answer_concurrency_limit(256)
//!     .alias(aliases)
//!     .layer(FallbackLayer::new(chains).with_providers(names))
//!     .service(providers);
//!
//! let request = LlmRequest::new("fast", ChatBody::builder().user("Say hello.").build()?);
//! let answer = stack.oneshot(request).await?;
//! assert_eq!(answer.model, "local/small");
//! assert_eq!(answer.attempts[0].model, "cloud/large");
//! assert_eq!(answer.text().await?, "Hello!");
//! # Ok(())
//! # }
//! ```
//!
//! # What is where
//!
//! From the outside of a stack to its inside; `docs/order.md` says why, and what changes with the order.
//!
//! | module | |
//! |---|---|
//! | [`telemetry`] | tells tracing or OpenTelemetry of calls: outermost, and around each deployment |
//! | [`concurrency`] | bounds the calls in flight until their answers have ended |
//! | [`alias`] | resolves short names of models |
//! | [`fallback`] | tries again, and tries other models |
//! | [`peek`] | holds an answer back until it proves to have content |
//! | [`access`] | refuses models that a department may not use |
//! | [`cache`] | gives the same answer to the same question and the same rights |
//! | [`drain`] | reads on where a caller has left, so that what he used up is known |
//! | [`quota`] | keeps departments within limits of requests, tokens and money |
//! | [`usage`] | records what every call used up and cost |
//! | [`providers`] | finds the provider of a model, and among its deployments the one to ask |
//! | [`timeout`] | bounds the time until head, first content, next chunk and end |
//!
//! Around them:
//!
//! | module | |
//! |---|---|
//! | [`provider`] | what a call goes to: OpenAI-compatible servers, other dialects, an echo, yours |
//! | [`body`] | streamed answers, and who watches how they end |
//! | [`policies`] | what departments may do |
//! | [`decision`] | how an answer came to be |
//! | [`price`] | what models cost, and what a call cost |
//! | [`store`] | where layers keep their state |
//! | [`http`] | what errors and answers mean in HTTP |
//! | [`clock`] | what time it is, for tests too |
//! | `config` | one configuration for all of it, from a file; feature `config` |
//! | `stack` | the layers of a configuration in this order, as one call; feature `config` |
//! | `testing` | the contract that every layer keeps, and a scripted provider; feature `testing` |
//!
//! # Readiness
//!
//! A layer makes the service below ready before it knows whether it will call it, as [`Service`](tower_service::Service) has it. One that then
//! refuses the call ([`access`], [`usage`] without a place in its sink, [`timeout`] after the caller's deadline) leaves it ready, and a handle that is kept
//! idle afterwards keeps what that took: a place of tower's `concurrency_limit`, for instance. So use a clone for each call, as
//! `service.clone().oneshot(request)` does. [`providers`] and [`cache`] are always ready, and hold nothing.
//!
//! # Features
//!
//! `moka` and `tracing` are on by default. No layer needs any feature.
//!
//! | feature | what it adds |
//! |---|---|
//! | `moka` | the cache in memory |
//! | `semantic` | similar questions in the cache, by an embedder of yours and a guard of words; read its warning first |
//! | `encrypt` | encrypts what a cache keeps where others can read it |
//! | `openai` | the leaf for OpenAI-compatible servers, over any HTTP service |
//! | `hyper-client` | a hyper client with rustls for it |
//! | `reqwest` | a reqwest client for it |
//! | `genai` | leaves for Anthropic, Gemini, Vertex, Bedrock, Cohere and Ollama |
//! | `tracing` | spans and events for subscribers of `tracing`; on by default |
//! | `otel` | spans and metrics by the API of OpenTelemetry |
//! | `otel-bound` | `otel`, and `with_bound_instruments`: a cheaper record of metrics, for an `opentelemetry_sdk` with `experimental_metrics_bound_instruments` |
//! | `axum` | extractor, responder, server-sent events and error bodies for axum |
//! | `tonic` | statuses, deadlines and streams of gRPC for tonic |
//! | `rusqlite` | a ledger of usage and counters of quotas in files of SQLite; needs a C compiler, and Rust 1.89 |
//! | `outbox` | a log on the disk before a store of usage that may be down |
//! | `redis` | a server of Redis, or a cluster: quotas, cache, and usage as a stream |
//! | `time-zones` | limits by the calendar of a time zone other than UTC |
//! | `tokenizer` | counts the tokens of a prompt whose upper bound does not fit into a limit ([`BpeEstimator`](quota::BpeEstimator), which stacks from a configuration have then), and those that are asked for by Anthropic's clients |
//! | `toml` | price lists of your own, in TOML |
//! | `config` | a configuration in TOML, and the stack that it describes |
//! | `testing` | the contract suite and a scripted provider |
//!
//! # Where to go next
//!
//! - A request comes from JSON by [`LlmRequest::parse`], or is built by [`ChatBody::builder`]; who asks is in its
//!   [`RequestContext`], which the host sets.
//! - An answer is read whole by [`LlmResponse::text`], or chunk by chunk from its [`ChunkStream`].
//! - What went wrong is an [`Error`]: [`kind`](Error::kind) for facts, [`attempts`](Error::attempts) for what was tried.
//! - A layer of your own: [`Watch`] and [`Observe`] for how calls end, `docs/writing-a-layer.md` for the rest.
//! - `docs/guide.md` goes from nothing to a stack with limits in Redis, step by step.
//! - `examples/gateway` is a whole gateway made of these layers, and `examples/grpc` serves them over gRPC.

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    shuttle,
    allow(clippy::large_enum_variant, unfulfilled_lint_expectations, reason = "shuttle's locks are large")
)]

pub mod access;
pub mod alias;
mod answer;
pub mod body;
mod builder;
pub mod cache;
mod calendar;
mod caught;
mod chat;
pub mod clock;
pub mod concurrency;
#[cfg(feature = "config")]
pub mod config;
mod context;
mod deadline;
pub mod decision;
pub mod drain;
mod ended;
mod error;
pub mod fallback;
mod forward;
pub mod http;
mod id;
mod json;
mod model;
pub mod peek;
pub mod policies;
pub mod price;
mod progress;
pub mod provider;
pub mod providers;
pub mod quota;
mod request;
mod so_far;
#[cfg(feature = "rusqlite")]
mod sqlite;
#[cfg(feature = "config")]
pub mod stack;
pub mod store;
mod sync;
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
pub mod timeout;
pub mod usage;

pub use self::{
    answer::{
        CacheStatus, Certainty, ChoiceFinish, Completion, FinishReason, LlmResponse, ResponseBody,
        StreamChunk, TokenUsage,
    },
    body::{ChunkStream, End, Observe, Watch},
    builder::ServiceBuilderExt,
    chat::{Attached, BodyLimits, ChatBody, ChatBodyBuilder, Message, MessageRef, Part, Tool, ToolCall},
    context::{KbScope, RequestContext},
    error::{
        Attempt, BoxError, Error, ErrorClass, ErrorKind, InvalidReason, Period, ProviderFailure,
        QuotaExceeded, QuotaKind, TimeoutPhase,
    },
    id::CallId,
    model::ModelName,
    progress::Progress,
    request::{Dispensable, LlmRequest, Operation},
};

/// The pages that are written for people, compiled.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[cfg(all(
        feature = "axum",
        feature = "config",
        feature = "hyper-client",
        feature = "redis",
        feature = "rusqlite"
    ))]
    #[doc = include_str!("../docs/guide.md")]
    mod guide {}
    #[doc = include_str!("../docs/order.md")]
    mod order {}
    #[cfg(feature = "config")]
    #[doc = include_str!("../docs/configuration.md")]
    mod configuration {}
    #[cfg(feature = "tracing")]
    #[doc = include_str!("../docs/telemetry.md")]
    mod telemetry {}
    #[cfg(feature = "testing")]
    #[doc = include_str!("../docs/writing-a-layer.md")]
    mod writing_a_layer {}
}
