//! The innermost services: what a call goes to.
//!
//! A leaf is any `Service<LlmRequest, Response = LlmResponse>`. [`Echo`] needs no network;
#![cfg_attr(feature = "openai", doc = "[`OpenAiCompatible`](openai::OpenAiCompatible)")]
#![cfg_attr(not(feature = "openai"), doc = "`OpenAiCompatible` (feature `openai`)")]
//! speaks to everything that has a `/chat/completions`;
#![cfg_attr(feature = "genai", doc = "[`Genai`](genai::Genai)")]
#![cfg_attr(not(feature = "genai"), doc = "`Genai` (feature `genai`)")]
//! speaks the dialects of Anthropic, Google, Amazon, Cohere and Ollama. A leaf of your own marks
//! [`progress`](crate::Progress::mark_dispatched) before it sends (around one that cannot, [`dispatch`] does), names itself in its
//! [errors](crate::Error::provider), and ends each good stream with a
//! [terminal chunk](crate::StreamChunk::end). `testing::check_leaf` (feature `testing`) checks one.
//!
//! ```
//! use llm_layers::{ChatBody, Completion, Error, LlmRequest, LlmResponse, TokenUsage};
//! use tower::{ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let leaf = service_fn(|request: LlmRequest| async move {
//!     request.progress.mark_dispatched();
//!     // Here it would ask somebody.
//!     Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("Hello!", TokenUsage::new(9, 2))))
//! });
//! let request = LlmRequest::new("one", ChatBody::builder().user("Say hello.").build()?);
//! assert_eq!(leaf.oneshot(request).await?.text().await?, "Hello!");
//! # Ok(())
//! # }
//! ```
//!
//! `examples/custom_client.rs` has one that streams.

pub mod dispatch;
mod echo;
#[cfg(feature = "genai")]
pub mod genai;
#[cfg(feature = "openai")]
pub mod openai;
#[cfg(any(feature = "genai", feature = "hyper-client"))]
mod proxy;

pub use self::echo::Echo;
#[cfg(any(feature = "genai", feature = "hyper-client"))]
pub use self::proxy::Proxy;
