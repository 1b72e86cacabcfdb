//! Anthropic's Messages dialect on the way in: a request becomes a chat request, an answer becomes a message.
//!
//! [`chat_request`] reads what `POST /v1/messages` takes, [`message`] and [`MessageEvents`] write what it answers, and
//! [`error_body`] its errors, [`is_spoken`] tells who reads them, and [`count_request`] and [`input_tokens`] are for
//! `POST /v1/messages/count_tokens`; `axum` has an extractor and a responder of them. In between is the same stack, with the same
//! limits, cache and records, whatever provider answers.
//!
//! What has no counterpart:
//!
//! | in the request | becomes |
//! |---|---|
//! | `cache_control`, `context_management`, `diagnostics`, `speed`, `user_profile_id`, `workspace_id`, thoughts of earlier turns that another has signed, `is_error` of a result, what a tool has besides name, description, schema and `strict` | nothing |
//! | names of tools of more than 64 characters | [shorter ones](ToolNames), and themselves again in answers |
//! | `metadata.user_id` | `user`; longer than 64 characters, its BLAKE3 hash in hexadecimal digits, for OpenAI takes no more |
//! | several texts in one turn, or in one result of a tool | one text, with empty lines between them; beside an image or a file they stay apart |
//! | title and context of a document | texts in front of it; of a PDF the title is its file's name |
//! | thoughts of earlier turns that are signed here, or not at all | `reasoning_content` of their messages, [for providers that take it](crate::Dispensable) |
//! | `thinking.type` of `disabled` | `reasoning_effort`: `none`, [for models that know it](crate::Dispensable) |
//! | `thinking.budget_tokens` | `reasoning_effort`: `low` below 4,096, `medium` below 16,384, else `high` |
//! | `top_k`, members that nobody knows | themselves: the provider may know them |
//! | tools that Anthropic runs, `citations` that are enabled, `mcp_servers`, `container`, `inference_geo`, files by id | an error that names the member |
//!
//! ```
//! use llm_layers::{BodyLimits, ResponseBody, http::anthropic, provider::Echo};
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let said = r#"{"model":"fast","max_tokens":64,"messages":[{"role":"user","content":[{"type":"text","text":"Hello"}]}]}"#;
//! let answer = Echo::new().oneshot(anthropic::chat_request(said, &BodyLimits::default())?).await?;
//! let ResponseBody::Complete(whole) = answer.body else { unreachable!("it was not asked to stream") };
//! let message: serde_json::Value = serde_json::from_slice(&anthropic::message(&whole, &answer.model))?;
//! assert_eq!((&message["content"][0]["text"], &message["stop_reason"]), (&"Hello".into(), &"end_turn".into()));
//! # Ok(())
//! # }
//! ```
//!
//! Thoughts are given out with a signature that says only that they came from here, for some clients keep none without one. It is
//! none that Anthropic itself would take.
//!
//! Which stop sequence was met is not known of other providers: `stop_reason` is then `end_turn`. Where a provider ends for a
//! reason that Anthropic has no word for, `stop_reason` is the provider's word: such an answer may not be complete.

mod answer;
mod content;
mod count;
mod events;
mod names;
mod pieces;
mod request;

pub use self::{
    answer::{message, message_naming},
    count::{input_tokens, token_count},
    events::MessageEvents,
    names::ToolNames,
    request::{chat_request, count_request},
};

use crate::{Error, http as edge};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde_json::json;

/// Whether who sends a request reads Anthropic's shapes: all that is below `/v1/messages` is theirs, and so is what comes
/// with `anthropic-version`, which each of their clients sends, to a path that both families know or neither.
///
/// ```
/// use http::HeaderMap;
/// use llm_layers::http::anthropic;
///
/// let mut headers = HeaderMap::new();
/// assert!(anthropic::is_spoken("/v1/messages/count_tokens", &headers));
/// assert!(!anthropic::is_spoken("/v1/models", &headers));
/// headers.insert("anthropic-version", "2023-06-01".parse()?);
/// assert!(anthropic::is_spoken("/v1/models", &headers));
/// assert!(!anthropic::is_spoken("/v1/chat/completions", &headers));
/// # Ok::<(), http::header::InvalidHeaderValue>(())
/// ```
pub fn is_spoken(path: &str, headers: &HeaderMap) -> bool {
    let is_messages = path.ends_with("/v1/messages") || path.contains("/v1/messages/");
    is_messages || (headers.contains_key("anthropic-version") && !path.ends_with("/chat/completions"))
}

/// The JSON of an error, as Anthropic's clients read it.
///
/// ```
/// use llm_layers::{Error, ErrorKind, http::anthropic};
///
/// let error = Error::new(ErrorKind::ModelNotFound { model: "fast".into() });
/// let body: serde_json::Value = serde_json::from_slice(&anthropic::error_body(&error))?;
/// assert_eq!(body["type"], "error");
/// assert_eq!(body["error"]["type"], "not_found_error");
/// assert_eq!(body["error"]["message"], "no provider serves model fast");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn error_body(error: &Error) -> Bytes {
    error_json(edge::status(error), &error.to_string())
}

/// The JSON of an error of the host's own.
pub fn error_json(status: StatusCode, message: &str) -> Bytes {
    let kind = error_type(status);
    json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string().into()
}

/// What Anthropic calls an error of this status.
pub fn error_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..500 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}
