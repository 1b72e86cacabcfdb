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
    // A member for each count that there is, and none if there is none.
    let mut put = |details: &str, counts: &[(&str, Option<u64>)]| {
        for (name, count) in counts {
            if let Some(count) = count {
                out[details][*name] = (*count).into();
            }
        }
    };
    let read = usage.cache_read_tokens.or(usage.cache_write_tokens.map(|_| 0));
    put(
        "prompt_tokens_details",
        &[
            ("cached_tokens", read),
            ("cache_write_tokens", usage.cache_write_tokens),
            ("audio_tokens", usage.input_audio_tokens),
            ("image_tokens", usage.input_image_tokens),
            ("web_search_requests", usage.web_searches),
        ],
    );
    put("cache_creation", &[("ephemeral_1h_input_tokens", usage.cache_write_1h_tokens)]);
    put(
        "completion_tokens_details",
        &[
            ("reasoning_tokens", usage.reasoning_tokens),
            ("audio_tokens", usage.output_audio_tokens),
            ("image_tokens", usage.output_image_tokens),
        ],
    );
    Some(out)
}
