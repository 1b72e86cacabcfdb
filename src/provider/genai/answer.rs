//! A whole answer, and the pieces that streams are made of as well.

use super::{dialect::Wire, fault, usage};
use crate::{
    CallId, Completion, Error, TokenUsage,
    clock::{Clock, SystemClock},
    price::ServiceTier,
    provider::openai::origin::Origin,
};
use ::genai::chat::{BinarySource, ChatResponse, ContentPart, MessageContent, StopReason};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use std::time::UNIX_EPOCH;

pub(super) fn completion(wire: Wire, origin: &Origin, answer: ChatResponse) -> Result<Completion, Error> {
    let raw = answer.captured_raw_body.unwrap_or_default();
    // genai finds an empty answer in a body that is none.
    if wire == Wire::Bedrock && raw.get("output").is_none()
        || raw.get("error").is_some_and(|error| !error.is_null())
    {
        return Err(fault::unreadable(&mut origin.clone(), &raw));
    }
    if failed(wire, answer.stop_reason.as_ref()) {
        return Err(origin.reported(Bytes::from(raw.to_string())));
    }
    let text = |names: &[&str]| names.iter().find_map(|name| raw.get(name)?.as_str().map(ToOwned::to_owned));
    let mut content = Content::default();
    for part in answer.content.into_parts() {
        content.add(wire, part);
    }
    let reason = finish_reason(answer.stop_reason.as_ref(), !content.calls.is_empty());
    let says_something = !content.text.is_empty() || !content.calls.is_empty();
    let billed =
        raw.pointer("/meta/billed_units").and_then(|units| TokenUsage::read(units.to_string().as_bytes()));
    let usage = usage::json(wire, &usage::billed(answer.usage, billed), says_something);
    let message = content.into_message(answer.reasoning_content);

    let model = text(&["model", "modelVersion"]).unwrap_or_else(|| origin.model.to_string());
    let mut body = head(text(&["id", "responseId", "generation_id"]), "chat.completion", &model);
    body["choices"] = json!([{ "index": 0, "message": message, "logprobs": null, "finish_reason": reason }]);
    // Anthropic serves some in a better one all the same.
    let served_in = raw.pointer("/usage/service_tier").and_then(Value::as_str);
    if let Some(tier) =
        served_in.and_then(ServiceTier::from_name).filter(|tier| *tier != ServiceTier::Standard)
    {
        body["service_tier"] = tier.name().into();
    }
    if let Some(usage) = usage {
        body["usage"] = usage;
    }
    Ok(Completion::parse(body.to_string()).expect("made here"))
}

/// What each object of an answer begins with.
pub(super) fn head(id: Option<String>, object: &str, model: &str) -> Value {
    let now = SystemClock.now();
    let created = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let id = id.unwrap_or_else(|| format!("chatcmpl-{}", CallId::mint(now)));
    // No tier is asked for, whatever the caller's request says: none is paid for either.
    json!({ "id": id, "object": object, "created": created, "model": model, "service_tier": "default" })
}

/// Whether an answer was given up with a reason that is a failure.
pub(super) fn failed(wire: Wire, reason: Option<&StopReason>) -> bool {
    wire == Wire::Cohere && matches!(reason, Some(StopReason::Other(raw)) if raw.starts_with("ERROR"))
}

/// In OpenAI's words; what there is no word for keeps the provider's.
pub(super) fn finish_reason(reason: Option<&StopReason>, calls: bool) -> String {
    match reason {
        // Not all have a word for it.
        Some(StopReason::Completed(_) | StopReason::StopSequence(_)) | None if calls => {
            "tool_calls".to_owned()
        }
        Some(StopReason::Completed(_) | StopReason::StopSequence(_)) | None => "stop".to_owned(),
        Some(StopReason::ToolCall(_)) => "tool_calls".to_owned(),
        Some(StopReason::MaxTokens(_)) => "length".to_owned(),
        Some(StopReason::ContentFilter(_)) => "content_filter".to_owned(),
        Some(StopReason::Other(raw)) => match raw.as_str() {
            "guardrail_intervened" | "content_filtered" => "content_filter".to_owned(),
            "FUNCTION_CALL" => "tool_calls".to_owned(),
            _ => raw.to_ascii_lowercase(),
        },
    }
}

#[derive(Default)]
struct Content {
    text: String,
    images: Vec<Value>,
    thoughts: Vec<Value>,
    calls: Vec<Value>,
    /// Of thoughts whose text comes next.
    signature: Option<String>,
}

impl Content {
    fn add(&mut self, wire: Wire, part: ContentPart) {
        match part {
            ContentPart::Text(text) => self.text.push_str(&text),
            ContentPart::ToolCall(call) => {
                let at = self.calls.len();
                let mut json = json!({
                    "id": unique_id(call.call_id, &call.fn_name, at, |id| self.calls.iter().any(|c| c["id"] == id)),
                    "type": "function",
                    "function": { "name": call.fn_name, "arguments": arguments(&call.fn_arguments) },
                });
                sign(wire, &mut json, call.thought_signatures);
                self.calls.push(json);
            }
            ContentPart::Binary(binary) => {
                if let BinarySource::Base64(data) = binary.source {
                    self.images.push(image(&data_url(&binary.content_type, &data)));
                }
            }
            part => thought(wire, part, &mut self.signature, &mut self.thoughts),
        }
    }

    fn into_message(mut self, reasoning: Option<String>) -> Value {
        end_of_thoughts(&mut self.signature, &mut self.thoughts);
        let mut message = Map::new();
        let mut set = |name: &str, value: Value| drop(message.insert(name.to_owned(), value));
        set("role", "assistant".into());
        let only_calls = self.text.is_empty() && !self.calls.is_empty();
        set("content", if only_calls { Value::Null } else { self.text.into() });
        if let Some(reasoning) = reasoning.filter(|reasoning| !reasoning.is_empty()) {
            set("reasoning_content", reasoning.into());
        }
        for (name, list) in
            [("thinking_blocks", self.thoughts), ("images", self.images), ("tool_calls", self.calls)]
        {
            if !list.is_empty() {
                set(name, list.into());
            }
        }
        Value::Object(message)
    }
}

/// An image that is part of an answer.
pub(super) fn image(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

pub(super) fn data_url(media_type: &str, base64: &str) -> String {
    format!("data:{media_type};base64,{base64}")
}

/// The thoughts of a streamed answer, as they must be sent back.
pub(super) fn thoughts(wire: Wire, content: Option<MessageContent>) -> Vec<Value> {
    let (mut signature, mut blocks) = (None, Vec::new());
    for part in content.map(MessageContent::into_parts).unwrap_or_default() {
        thought(wire, part, &mut signature, &mut blocks);
    }
    end_of_thoughts(&mut signature, &mut blocks);
    blocks
}

/// genai puts a signature before the thoughts that it is for; one alone is of thoughts that are not shown.
fn thought(wire: Wire, part: ContentPart, signature: &mut Option<String>, blocks: &mut Vec<Value>) {
    if !wire.joins_turns() {
        return;
    }
    match part {
        ContentPart::ThoughtSignature(next) => {
            end_of_thoughts(signature, blocks);
            *signature = Some(next);
        }
        ContentPart::ReasoningContent(thinking) => {
            if let Some(signature) = signature.take() {
                blocks.push(json!({ "type": "thinking", "thinking": thinking, "signature": signature }));
            }
        }
        ContentPart::Custom(custom) if custom.typ() == Some("redacted_thinking") => blocks.push(custom.data),
        _ => {}
    }
}

fn end_of_thoughts(signature: &mut Option<String>, blocks: &mut Vec<Value>) {
    if let Some(data) = signature.take() {
        blocks.push(json!({ "type": "redacted_thinking", "data": data }));
    }
}

/// Gemini's signature of a call, where Google's own OpenAI dialect has it.
pub(super) fn sign(wire: Wire, call: &mut Value, signatures: Option<Vec<String>>) {
    if wire == Wire::Gemini
        && let Some(signature) = signatures.and_then(|signatures| signatures.into_iter().next())
    {
        call["extra_content"] = json!({ "google": { "thought_signature": signature } });
    }
}

/// The arguments of a call as JSON text.
pub(super) fn arguments(arguments: &Value) -> String {
    match arguments {
        Value::Null => "{}".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// genai makes up ids where Gemini has none, and begins again with each chunk.
pub(super) fn unique_id(id: String, name: &str, at: usize, is_taken: impl Fn(&str) -> bool) -> String {
    if !id.is_empty() && !is_taken(&id) {
        return id;
    }
    // In the form that genai knows again when it comes back.
    (at..).map(|n| format!("call#{name}#{n}")).find(|id| !is_taken(id)).expect("there are numbers enough")
}
