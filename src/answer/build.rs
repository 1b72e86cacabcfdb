//! The JSON of answers that are made here: for tests, Echo, and leaves of your own.

use super::{Completion, FinishReason, StreamChunk, TokenUsage};
use serde_json::{Value, json};

pub(super) fn completion(text: &str, usage: TokenUsage) -> Completion {
    whole(&json!({ "role": "assistant", "content": text }), &FinishReason::Stop, usage)
}

pub(super) fn tool_call(id: &str, name: &str, arguments: &str, usage: TokenUsage) -> Completion {
    let call = json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
    whole(
        &json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
        &FinishReason::ToolCalls,
        usage,
    )
}

fn whole(message: &Value, reason: &FinishReason, usage: TokenUsage) -> Completion {
    let mut body = json!({
        "object": "chat.completion",
        "choices": [{ "index": 0, "message": message, "finish_reason": reason.as_str() }],
    });
    if let Some(usage) = self::json(usage) {
        body["usage"] = usage;
    }
    Completion::parse(body.to_string()).expect("made here")
}

pub(super) fn delta(text: &str) -> StreamChunk {
    choice(&json!({ "content": text }), None)
}

pub(super) fn role() -> StreamChunk {
    choice(&json!({ "role": "assistant", "content": "" }), None)
}

pub(super) fn finish(reason: &FinishReason) -> StreamChunk {
    choice(&json!({}), Some(reason.as_str()))
}

pub(super) fn usage(usage: TokenUsage) -> StreamChunk {
    chunk(&json!({ "object": "chat.completion.chunk", "choices": [], "usage": json(usage) }))
}

fn choice(delta: &Value, reason: Option<&str>) -> StreamChunk {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": reason });
    chunk(&json!({ "object": "chat.completion.chunk", "choices": [choice] }))
}

fn chunk(body: &Value) -> StreamChunk {
    StreamChunk::parse(body.to_string()).expect("made here")
}

fn json(usage: TokenUsage) -> Option<Value> {
    if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
        return None;
    }
    let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
    let mut out =
        json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output });
    if usage.cache_read_tokens.or(usage.cache_write_tokens).is_some() {
        let details = json!({ "cached_tokens": usage.cache_read_tokens.unwrap_or(0) });
        out["prompt_tokens_details"] = details;
        if let Some(written) = usage.cache_write_tokens {
            out["prompt_tokens_details"]["cache_write_tokens"] = written.into();
        }
    }
    if let Some(hour) = usage.cache_write_1h_tokens {
        out["cache_creation"] = json!({ "ephemeral_1h_input_tokens": hour });
    }
    if let Some(reasoning) = usage.reasoning_tokens {
        out["completion_tokens_details"] = json!({ "reasoning_tokens": reasoning });
    }
    Some(out)
}
