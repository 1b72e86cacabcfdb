use crate::{LlmRequest, json, usage::estimate};
use bytes::Bytes;
use serde_json::json;

/// How many tokens a request's prompt has, without asking anybody; at least 1.
///
/// With the feature `tokenizer`, the texts of a model of OpenAI's, by its name, are counted; else they have a token for each
/// four bytes, as records of usage have them that nobody told of. An image has 1,600 tokens, a document 3,000 for each 64 KiB
/// of it that are begun: what they come to depends on the model.
///
/// Counting takes about a tenth of a second for a megabyte: `spawn_blocking` is the place for it.
///
/// ```
/// use llm_layers::{BodyLimits, http::anthropic};
///
/// let asked = r#"{"model":"claude","messages":[{"role":"user","content":"Hello, who are you?"}]}"#;
/// let request = anthropic::count_request(asked, &BodyLimits::default())?;
/// assert_eq!(anthropic::input_tokens(&request), 13);
/// # Ok::<(), llm_layers::Error>(())
/// ```
pub fn input_tokens(request: &LlmRequest) -> u64 {
    let (mut tokens, mut bytes) = (0_u64, 0);
    for message in request.body.messages() {
        for part in json::items(message.content().unwrap_or_default()) {
            if let Some(of_part) = besides_text(part) {
                tokens += of_part;
                bytes += part.len();
            }
        }
    }
    tokens.saturating_add(in_text(request, bytes)).max(1)
}

/// The answer that says how many there are.
pub fn token_count(input_tokens: u64) -> Bytes {
    json!({ "input_tokens": input_tokens }).to_string().into()
}

#[cfg(feature = "tokenizer")]
fn in_text(request: &LlmRequest, besides: usize) -> u64 {
    use crate::quota::{is_openais, text_tokens};
    // As OpenAI counts: around each message, and before the answer.
    const AROUND: u64 = 3;
    match is_openais(&request.model) {
        true => AROUND + text_tokens(request, AROUND, |part| besides_text(part).is_some()),
        false => estimated(request, besides),
    }
}

#[cfg(not(feature = "tokenizer"))]
fn in_text(request: &LlmRequest, besides: usize) -> u64 {
    estimated(request, besides)
}

fn estimated(request: &LlmRequest, besides: usize) -> u64 {
    estimate(request.body.input_bytes().saturating_sub(besides) as u64)
}

/// The tokens of a part of a message that is no text.
fn besides_text(part: &[u8]) -> Option<u64> {
    const IMAGE: u64 = 1_600;
    const DOCUMENT: u64 = 3_000;
    /// 64 KiB in base64.
    const PAGES: usize = (64 << 10) / 3 * 4;
    match json::member(part, "type").and_then(json::string).as_deref() {
        Some("text") | None => None,
        Some("file") => Some(DOCUMENT * part.len().div_ceil(PAGES) as u64),
        Some(_) => Some(IMAGE),
    }
}
