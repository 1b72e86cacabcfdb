//! The innermost services: what a call goes to.
//!
//! A leaf is any `Service<LlmRequest, Response = LlmResponse>`. [`Echo`] needs no network;
#![cfg_attr(feature = "openai", doc = "[`OpenAiCompatible`](openai::OpenAiCompatible)")]
#![cfg_attr(not(feature = "openai"), doc = "`OpenAiCompatible` (feature `openai`)")]
//! speaks to everything that has a `/chat/completions`;
#![cfg_attr(feature = "genai", doc = "[`Genai`](genai::Genai)")]
#![cfg_attr(not(feature = "genai"), doc = "`Genai` (feature `genai`)")]
//! speaks the dialects of Anthropic, Google, Amazon, Cohere and Ollama. A leaf of your own marks
//! [`progress`](crate::Progress::mark_dispatched) before it sends, names itself in its
//! [errors](crate::Error::provider), and ends each good stream with a
//! [terminal chunk](crate::StreamChunk::end).

mod echo;
#[cfg(feature = "genai")]
pub mod genai;
#[cfg(feature = "openai")]
pub mod openai;

pub use self::echo::Echo;
