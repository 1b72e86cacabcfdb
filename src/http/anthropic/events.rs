use super::answer::{
    arguments, call_id, function_call, member_text, message_id, stop_reason, texts, thoughts, usage,
};
use crate::{Error, FinishReason, ModelName, StreamChunk, TokenUsage, answer::Calls, json};
use bytes::{BufMut, BytesMut};
use serde_json::{Value, json};
use std::{borrow::Cow, fmt};

/// A stream of chunks as the events of Anthropic's Messages API; one for each answer.
///
/// Blocks come one after another: thoughts, text, and each call of a tool. Usage is in the last `message_delta`, where
/// it is known. After an error nothing follows.
///
/// ```
/// use bytes::BytesMut;
/// use llm_layers::{FinishReason, StreamChunk, http::anthropic::MessageEvents};
///
/// let mut events = MessageEvents::new("fast");
/// let mut out = BytesMut::new();
/// for chunk in [StreamChunk::text("Hi"), StreamChunk::finish(&FinishReason::Stop), StreamChunk::end()] {
///     events.write(&chunk, &mut out);
/// }
/// let names: Vec<_> = std::str::from_utf8(&out)?.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
/// assert_eq!(
///     names,
///     ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop"]
/// );
/// # Ok::<(), std::str::Utf8Error>(())
/// ```
pub struct MessageEvents {
    model: ModelName,
    has_begun: bool,
    /// The block that is being written, and how many came before.
    open: Option<Block>,
    /// Of that block.
    pieces: json::Pieces,
    blocks: u64,
    calls: Calls,
    has_tools: bool,
    has_function: bool,
    finish: Option<FinishReason>,
    usage: Option<TokenUsage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Thinking,
    Text,
    /// With the number of the call.
    Tool(u64),
    /// In the words of before there were tools; there is one.
    Function,
}

impl MessageEvents {
    /// For an answer of `model`.
    pub fn new(model: impl Into<ModelName>) -> Self {
        Self {
            model: model.into(),
            has_begun: false,
            open: None,
            pieces: json::Pieces::default(),
            blocks: 0,
            calls: Calls::default(),
            has_tools: false,
            has_function: false,
            finish: None,
            usage: None,
        }
    }

    /// Writes the events of the next chunk, the terminal one included.
    pub fn write(&mut self, chunk: &StreamChunk, out: &mut BytesMut) {
        if !self.has_begun {
            self.has_begun = true;
            self.begin(chunk, out);
        }
        if let Some(usage) = chunk.usage() {
            self.usage = Some(*usage);
        }
        if let Some(finish) = chunk.finish_reasons().iter().find(|finish| finish.index == 0) {
            self.finish = Some(finish.reason.clone());
        }
        for choice in json::items(json::member(chunk.data(), "choices").unwrap_or_default()) {
            let is_first = json::member(choice, "index").is_none_or(|index| index == b"0");
            if let Some(delta) = json::member(choice, "delta").filter(|_| is_first) {
                self.delta(delta, out);
            }
        }
        if chunk.is_final() {
            self.end(out);
        }
    }

    /// Writes the event that says that the stream broke.
    pub fn write_error(error: &Error, out: &mut BytesMut) {
        put_event("error", &super::error_body(error), out);
    }

    /// Writes the event that keeps a silent connection open.
    pub fn write_ping(out: &mut BytesMut) {
        put_event("ping", br#"{"type":"ping"}"#, out);
    }

    fn begin(&self, chunk: &StreamChunk, out: &mut BytesMut) {
        let model = chunk.model();
        let message = json!({
            "id": message_id(chunk.id()),
            "type": "message",
            "role": "assistant",
            "model": model.as_deref().unwrap_or(&self.model),
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(chunk.usage()),
        });
        put("message_start", json!({ "message": message }), out);
    }

    fn delta(&mut self, delta: &[u8], out: &mut BytesMut) {
        if let Some(thoughts) = thoughts(delta) {
            self.open(
                Block::Thinking,
                || json!({ "type": "thinking", "thinking": "", "signature": "" }),
                out,
            );
            self.piece(thoughts, out);
        }
        for text in texts(delta) {
            self.open(Block::Text, || json!({ "type": "text", "text": "" }), out);
            self.piece(text, out);
        }
        for (at, call) in json::items(json::member(delta, "tool_calls").unwrap_or_default()).enumerate() {
            let block = Block::Tool(self.calls.number(at, call));
            self.has_tools = true;
            self.call(block, member_text(call, "id"), json::member(call, "function").unwrap_or(b"{}"), out);
        }
        // Who says it in both ways means one call.
        if let Some(function) = function_call(delta).filter(|_| !self.has_tools) {
            self.has_function = true;
            self.call(Block::Function, None, function, out);
        }
    }

    fn call(&mut self, block: Block, id: Option<Cow<'_, str>>, function: &[u8], out: &mut BytesMut) {
        let head = || {
            let name = member_text(function, "name").unwrap_or_default();
            json!({ "type": "tool_use", "id": call_id(id), "name": name, "input": {} })
        };
        self.open(block, head, out);
        if let Some(arguments) = arguments(function) {
            self.piece(arguments, out);
        }
    }

    /// Sees to it that `block` is the one that is being written.
    fn open(&mut self, block: Block, head: impl FnOnce() -> Value, out: &mut BytesMut) {
        if self.open == Some(block) {
            return;
        }
        self.close(out);
        self.open = Some(block);
        put("content_block_start", json!({ "index": self.blocks, "content_block": head() }), out);
    }

    /// Adds to the block that is being written.
    fn piece(&mut self, raw: &[u8], out: &mut BytesMut) {
        match raw.first() {
            Some(b'"') => {
                if let Some(text) = self.pieces.next(raw) {
                    self.add(&text, out);
                }
            }
            _ => self.add(&String::from_utf8_lossy(raw), out),
        }
    }

    fn add(&self, text: &str, out: &mut BytesMut) {
        if text.is_empty() {
            return;
        }
        let delta = match self.open {
            Some(Block::Thinking) => json!({ "type": "thinking_delta", "thinking": text }),
            Some(Block::Text) => json!({ "type": "text_delta", "text": text }),
            Some(Block::Tool(_) | Block::Function) => {
                json!({ "type": "input_json_delta", "partial_json": text })
            }
            None => return,
        };
        put("content_block_delta", json!({ "index": self.blocks, "delta": delta }), out);
    }

    fn close(&mut self, out: &mut BytesMut) {
        if let Some(rest) = self.pieces.end() {
            self.add(rest, out);
        }
        if self.open.take().is_some() {
            put("content_block_stop", json!({ "index": self.blocks }), out);
            self.blocks += 1;
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.close(out);
        let reason = stop_reason(self.finish.as_ref(), self.has_tools || self.has_function);
        let delta = json!({ "stop_reason": reason, "stop_sequence": null });
        put("message_delta", json!({ "delta": delta, "usage": usage(self.usage.as_ref()) }), out);
        put("message_stop", json!({}), out);
    }
}

fn put(name: &'static str, mut event: Value, out: &mut BytesMut) {
    event["type"] = name.into();
    put_event(name, event.to_string().as_bytes(), out);
}

/// The JSON is made here and has no line breaks.
fn put_event(name: &str, json: &[u8], out: &mut BytesMut) {
    for part in [b"event: ", name.as_bytes(), b"\ndata: ", json, b"\n\n"] {
        out.put_slice(part);
    }
}

impl fmt::Debug for MessageEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageEvents")
            .field("blocks", &self.blocks)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}
