//! Providers with dialects of their own, by the crate [genai](https://docs.rs/genai).
//!
//! [`Genai`] is a leaf for one provider, in one [`Dialect`]: it translates a request of OpenAI's dialect, and what comes
//! back again, so that a layer, or a client, need not know whom it talks to.
//!
//! ```
//! use llm_layers::{provider::genai::{Dialect, Genai}, providers::Providers};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let claude = Genai::new(Dialect::Anthropic, "https://api.anthropic.com/v1")?.with_api_key("sk-ant-1234")?;
//! assert_eq!((claude.host(), claude.port()), ("api.anthropic.com", 443));
//! let providers = Providers::builder().deployment("anthropic", claude.into_deployment()).build()?;
//! # let _ = providers;
//! # Ok(())
//! # }
//! ```
//!
//! # What is carried
//!
//! What would change the answer and cannot be carried is refused as
//! [`InvalidRequest`](crate::ErrorKind::InvalidRequest), by the member's name, before anything is sent.
//!
//! | member | Anthropic | Gemini, also at Vertex | Bedrock | Ollama | Cohere | Claude at Vertex |
//! |---|---|---|---|---|---|---|
//! | texts, `temperature`, `top_p`, `stop`, `max_tokens`, `max_completion_tokens` | yes | yes | yes | yes | yes | yes |
//! | images in base64 | yes | yes | PNG, JPEG, GIF, WebP | yes | no | yes |
//! | images by URL | yes | with a known ending | no | no | no | yes |
//! | `file` with `file_data` | PDF | yes | PDF, Office, text | no | no | PDF |
//! | `input_audio` | no | yes | no | no | no | no |
//! | `tools`, and their results | yes | yes | yes | yes | no | yes |
//! | `tool_choice` | yes | yes | `auto` | `auto`, `none` | | `auto` |
//! | `parallel_tool_calls: false` | yes | no | no | no | | no |
//! | `response_format`: `json_schema` | yes | yes | no | no | no | no |
//! | `response_format`: `json_object` | no | yes | no | yes | no | no |
//! | `reasoning_effort` | yes | `none` before version 3 only | Claude, Nova, OpenAI | yes | no | no |
//! | `seed` | no | yes | no | yes | no | no |
//! | `frequency_penalty`, `presence_penalty` | no | yes | no | no | no | no |
//! | `top_k` | yes | yes | no | no | no | no |
//! | `safety_settings`, in Google's form | no | yes | no | no | no | no |
//!
//! Left out everywhere, because the answer does not depend on them: `user`, `metadata`, `store`, `service_tier`,
//! `prediction`, `safety_identifier`, `prompt_cache_key`, and names of messages. Refused everywhere: `n` above 1, log
//! probabilities, `logit_bias`, audio as an answer, `functions`, and members that nobody here knows.
//! `cache_control` of messages, their parts and tools reaches Anthropic, also Claude at Vertex, and stays where it stands.
//! System messages are moved to the front, where these dialects have them. Anthropic's schemas are closed to further members,
//! as its structured outputs want them. `strict` of a tool reaches Anthropic alone, and `detail` of an image nobody.
//!
//! Thoughts come as `reasoning_content`. What must be sent back for a model to think on after a call of a tool comes as
//! `thinking_blocks` (Anthropic, Bedrock) or in the call's `extra_content.google.thought_signature` (Gemini), and is
//! understood when it comes back. A Claude that is told how much to think in tokens refuses to think on without: then it is not
//! asked to; later ones are, and are told the effort itself. Where not to think is a wish of
//! [another dialect](crate::Dispensable), it is told to Claude at Anthropic, Gemini 2.5 Flash and Ollama alone, and refused by none. Asked for `none`, those that cannot but think (Opus from 5.5 on, Fable,
//! Mythos) are told `low`, and Sonnet from 5.5 on thinks between calls of tools only. Where an effort is told as a
//! number of tokens (Claude at Bedrock, and at Anthropic up to Opus 4.1, Sonnet 4.5 and Haiku 4.5) that an answer's bound is
//! not above, half the bound is for thoughts, 1,024 at least; an effort beside a bound without room for these is refused. What
//! Gemini draws comes as `images`, parts of the form of `image_url`, with a `data:` URL.
//!
//! # What else to know
//!
//! - Dialect, address, key and headers are the host's. A request names a model and nothing more: a name with a namespace,
//!   with an effort at its end (Anthropic) or with characters that mean something in a path is
//!   [`ModelNotFound`](crate::ErrorKind::ModelNotFound).
//! - An answer begins when the provider has said its first word. Streams are polled straight through, without a task or a
//!   channel: dropping one hangs up. One that stops without its provider's mark of the end was truncated, though genai
//!   makes up an end for some.
//! - Usage is in OpenAI's terms: input includes what was cached, output includes thoughts; a count of 0 that cannot be is
//!   unknown. Without a bound of their own, Claude and Bedrock are asked for as much as genai knows the model to give.
//! - genai takes the first chunk of Gemini's with a reason to finish for the last, and the blocks of Anthropic's for one after
//!   another, as these two send them; servers that speak like them have to do so, too.
//! - genai puts no bound on the size of an answer: ask providers that you trust, and bound the time by
//!   [`CallTimeout`](crate::timeout::CallTimeout). Other ids of answers than the provider's own are made here.
//! - genai has events of `tracing` of its own, under the target `genai`, some of which quote what a provider said: let no
//!   subscriber keep them.
//! - Bedrock's requests are authorised by its API keys; signatures of AWS are not made here.

mod answer;
mod client;
mod dialect;
mod fault;
mod frames;
mod future;
mod request;
mod service;
mod stream;
mod usage;

pub use self::{dialect::Dialect, future::ResponseFuture, service::Genai};
