use super::names::ToolNames;
use crate::{Completion, FinishReason, TokenUsage, json};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use std::borrow::Cow;

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
    message_naming(completion, model, &ToolNames::default())
}

/// As [`message`], with the names that its caller has for tools.
pub fn message_naming(completion: &Completion, model: &str, names: &ToolNames) -> Bytes {
    let choice = json::member(completion.data(), "choices").and_then(|choices| json::items(choices).next());
    let said = choice.and_then(|choice| json::member(choice, "message")).unwrap_or(b"{}");
    let mut content = Vec::new();
    let thinking: String = thoughts(said).filter_map(json::text).collect();
    if !thinking.is_empty() {
        content.push(Block::Thinking { thinking, signature: SIGNATURE });
    }
    let text: String = texts(said).filter_map(json::text).collect();
    if !text.is_empty() {
        content.push(Block::Text { text });
    }
    let calls = json::items(json::member(said, "tool_calls").unwrap_or_default());
    let before = content.len();
    content
        .extend(calls.map(|call| tool_use(member_text(call, "id"), json::member(call, "function"), names)));
    if content.len() == before {
        content.extend(function_call(said).map(|function| tool_use(None, Some(function), names)));
    }
    let reason = completion.finish_reasons().first().map(|finish| &finish.reason);
    let message = Message {
        id: message_id(completion.id()),
        kind: "message",
        role: "assistant",
        model: completion.model().unwrap_or(Cow::Borrowed(model)),
        stop_reason: stop_reason(reason, content.len() > before),
        content,
        stop_sequence: (),
        usage: usage(completion.usage()),
    };
    serde_json::to_vec(&message).expect("texts and JSON are JSON").into()
}

#[derive(Serialize)]
struct Message<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    role: &'static str,
    model: Cow<'a, str>,
    content: Vec<Block<'a>>,
    stop_reason: &'a str,
    stop_sequence: (),
    usage: Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block<'a> {
    Thinking { thinking: String, signature: &'static str },
    Text { text: String },
    ToolUse { id: String, name: Cow<'a, str>, input: Box<RawValue> },
}

/// What thoughts that are given out here are signed with: some clients send back none without a signature.
pub(super) const SIGNATURE: &str = "llm-layers";

/// The answer's id, or one of its own.
pub(super) fn message_id(id: Option<Cow<'_, str>>) -> String {
    id.map_or_else(|| format!("msg_{:032x}", fastrand::u128(..)), Cow::into_owned)
}

/// Why the answer is over, as Anthropic says it. What it has no word for keeps the provider's: it may have been cut.
pub(super) fn stop_reason(reason: Option<&FinishReason>, has_calls: bool) -> &str {
    match reason {
        Some(FinishReason::Length) => "max_tokens",
        Some(FinishReason::ContentFilter) => "refusal",
        Some(FinishReason::ToolCalls) => "tool_use",
        Some(FinishReason::Other(other)) => other,
        // Some say "stop" whatever they stop for.
        Some(FinishReason::Stop) | None if has_calls => "tool_use",
        Some(FinishReason::Stop) | None => "end_turn",
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

/// The thoughts of a message or delta, as JSON: those beside its content, or else, as Mistral has them, among its parts.
pub(super) fn thoughts(said: &[u8]) -> impl Iterator<Item = &[u8]> {
    let beside = |name| json::member(said, name).filter(|raw| is_text(raw));
    let beside = beside("reasoning_content").or_else(|| beside("reasoning"));
    let parts = json::items(json::member(said, "content").unwrap_or_default());
    let among = parts.filter_map(|part| json::member(part, "thinking")).flat_map(json::texts);
    let is_alone = beside.is_none();
    beside.into_iter().chain(among.filter(move |raw| is_alone && is_text(raw)))
}

/// The texts of a message or delta, as JSON, or else its refusal.
pub(super) fn texts(said: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = json::member(said, "content").unwrap_or_default();
    let mut texts = json::texts(content).filter(|raw| is_text(raw)).peekable();
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

/// A call in the words of before there were tools.
pub(super) fn function_call(said: &[u8]) -> Option<&[u8]> {
    json::member(said, "function_call").filter(|call| !json::is_nothing(call))
}

/// The arguments of a function, or a piece of them: a string of JSON, or JSON itself.
pub(super) fn arguments(function: &[u8]) -> Option<&[u8]> {
    json::member(function, "arguments").filter(|raw| *raw != b"null" && *raw != b"\"\"")
}

/// The id of a call, or one of its own.
pub(super) fn call_id(id: Option<Cow<'_, str>>) -> String {
    id.map_or_else(|| format!("toolu_{:032x}", fastrand::u128(..)), Cow::into_owned)
}

/// A call of a tool as a block.
fn tool_use<'a>(id: Option<Cow<'a, str>>, function: Option<&'a [u8]>, names: &'a ToolNames) -> Block<'a> {
    let function = function.unwrap_or(b"{}");
    let name = names.restored(member_text(function, "name").unwrap_or_default());
    Block::ToolUse { id: call_id(id), name, input: input(arguments(function).unwrap_or_default()) }
}

/// What nests deeper is read by few.
const MAX_DEPTH: usize = 128;

/// What a tool is called with, as it is written: a number may be one that no type here can hold.
fn input(arguments: &[u8]) -> Box<RawValue> {
    let arguments = json::text(arguments).unwrap_or_else(|| String::from_utf8_lossy(arguments));
    let text = arguments.trim();
    if text.is_empty() {
        return RawValue::from_string("{}".to_owned()).expect("an object");
    }
    let is_object = text.starts_with('{') && !json::too_deep(text.as_bytes(), MAX_DEPTH);
    let object = is_object.then(|| serde_json::from_str::<&RawValue>(text)).and_then(Result::ok);
    // A model may write what is no object; the caller gets to see it, and the type holds.
    object.map(ToOwned::to_owned).unwrap_or_else(|| {
        serde_json::value::to_raw_value(&json!({ "arguments": arguments })).expect("a text is JSON")
    })
}
