use crate::{Completion, FinishReason, TokenUsage, json};
use bytes::Bytes;
use serde_json::{Value, json};
use std::{borrow::Cow, iter};

/// A whole answer as a message of Anthropic's Messages API, for a caller who asked `model`.
///
/// The first choice is the message: its thoughts, its text and its calls of tools, in that order.
///
/// ```
/// use llm_layers::{Completion, TokenUsage, http::anthropic};
///
/// let answer = Completion::text("Hello", TokenUsage::new(3, 1));
/// let message: serde_json::Value = serde_json::from_slice(&anthropic::message(&answer, "fast"))?;
/// assert_eq!(message["content"][0]["text"], "Hello");
/// assert_eq!(message["stop_reason"], "end_turn");
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn message(completion: &Completion, model: &str) -> Bytes {
    let choice = json::member(completion.data(), "choices").and_then(|choices| json::items(choices).next());
    let said = choice.and_then(|choice| json::member(choice, "message")).unwrap_or(b"{}");
    let mut content = Vec::new();
    if let Some(thoughts) = thoughts(said).and_then(json::text) {
        content.push(json!({ "type": "thinking", "thinking": thoughts, "signature": "" }));
    }
    let text: String = texts(said).filter_map(json::text).collect();
    if !text.is_empty() {
        content.push(json!({ "type": "text", "text": text }));
    }
    for call in json::items(json::member(said, "tool_calls").unwrap_or_default()) {
        content.push(tool_use(call));
    }
    let reason = completion.finish_reasons().first().map(|finish| &finish.reason);
    let has_calls = json::member(said, "tool_calls").is_some_and(|calls| !json::is_nothing(calls));
    let message = json!({
        "id": message_id(completion.id()),
        "type": "message",
        "role": "assistant",
        "model": completion.model().unwrap_or(Cow::Borrowed(model)),
        "content": content,
        "stop_reason": stop_reason(reason, has_calls),
        "stop_sequence": null,
        "usage": usage(completion.usage()),
    });
    message.to_string().into()
}

/// The answer's id, or one of its own.
pub(super) fn message_id(id: Option<Cow<'_, str>>) -> String {
    id.map_or_else(|| format!("msg_{:032x}", fastrand::u128(..)), Cow::into_owned)
}

/// Why the answer is over, as Anthropic says it.
pub(super) fn stop_reason(reason: Option<&FinishReason>, has_calls: bool) -> &'static str {
    match reason {
        Some(FinishReason::Length) => "max_tokens",
        Some(FinishReason::ContentFilter) => "refusal",
        Some(FinishReason::ToolCalls) => "tool_use",
        // Some say "stop" whatever they stop for.
        _ if has_calls => "tool_use",
        _ => "end_turn",
    }
}

/// What was used up; Anthropic counts what the provider's cache had to do with apart.
pub(super) fn usage(usage: Option<&TokenUsage>) -> Value {
    let usage = usage.copied().unwrap_or_default();
    let (read, written) = (usage.cache_read_tokens.unwrap_or(0), usage.cache_write_tokens.unwrap_or(0));
    let input = usage.input_tokens.unwrap_or(0).saturating_sub(read).saturating_sub(written);
    json!({
        "input_tokens": input,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.output_tokens.unwrap_or(0),
    })
}

/// The thoughts of a message or delta, as JSON, if it has any.
pub(super) fn thoughts(said: &[u8]) -> Option<&[u8]> {
    let thoughts = |name| json::member(said, name).filter(|raw| is_text(raw));
    thoughts("reasoning_content").or_else(|| thoughts("reasoning"))
}

/// The texts of a message or delta, as JSON, or else its refusal.
pub(super) fn texts(said: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = json::member(said, "content").unwrap_or_default();
    let parts = json::items(content).filter_map(|part| json::member(part, "text"));
    let mut texts = iter::once(content).chain(parts).filter(|raw| is_text(raw)).peekable();
    let refusal = match texts.peek() {
        Some(_) => None,
        None => json::member(said, "refusal").filter(|raw| is_text(raw)),
    };
    texts.chain(refusal)
}

/// Whether it is a string, and not an empty one.
pub(super) fn is_text(raw: &[u8]) -> bool {
    raw.first() == Some(&b'"') && raw.len() > 2
}

/// An id or a name.
pub(super) fn member_text<'a>(object: &'a [u8], member: &str) -> Option<Cow<'a, str>> {
    json::member(object, member).and_then(json::string).filter(|text| !text.is_empty())
}

/// A call of a tool as a block.
fn tool_use(call: &[u8]) -> Value {
    let function = json::member(call, "function").unwrap_or(b"{}");
    let arguments = json::member(function, "arguments").and_then(json::text).unwrap_or_default();
    // A model may write what is no object; the caller gets to see it, and the type holds.
    let input = match serde_json::from_str::<Value>(&arguments) {
        Ok(input @ Value::Object(_)) => input,
        _ if arguments.trim().is_empty() => json!({}),
        _ => json!({ "arguments": arguments }),
    };
    let id =
        member_text(call, "id").map_or_else(|| format!("toolu_{:032x}", fastrand::u128(..)), Cow::into_owned);
    json!({ "type": "tool_use", "id": id, "name": member_text(function, "name").unwrap_or_default(), "input": input })
}
