use super::answer::{
    SIGNATURE, arguments, call_id, function_call, member_text, message_id, stop_reason, texts, thoughts,
    usage,
};
use super::names::ToolNames;
use crate::{
    Error, FinishReason, ModelName, StreamChunk, TokenUsage,
    answer::{Calls, first_choices},
    json,
};
use bytes::{BufMut, BytesMut};
use http::StatusCode;
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
    fmt,
};

/// A stream of chunks as the events of Anthropic's Messages API; one for each answer.
///
/// Blocks come one after another: thoughts, text, and each call of a tool. What a provider sends of others while the
/// arguments of a call are not whole is kept, up to 8 MiB, and written when its turn comes, at the latest at the end; beyond
/// that the answer ends with an error, as it does where it ends amid the arguments of a call and does not say why. Usage is in the
/// last `message_delta`, where it is known. After an error nothing follows.
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
    names: ToolNames,
    has_begun: bool,
    /// The block that is being written, and how many came before.
    open: Option<Block>,
    blocks: u64,
    /// Those that come after it: there are none unless it is a call that is not whole.
    waiting: VecDeque<Block>,
    /// Calls that were written and are over.
    over: BTreeSet<Key>,
    /// How many bytes wait, and what it takes to know calls.
    kept: usize,
    calls: Calls,
    has_tools: bool,
    has_function: bool,
    finish: Option<FinishReason>,
    usage: Option<TokenUsage>,
    is_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Thinking,
    Text,
    /// With the number of the call.
    Tool(u64),
    /// In the words of before there were tools; there is one.
    Function,
}

struct Block {
    key: Key,
    /// Of a call.
    id: Option<String>,
    name: String,
    /// What of it waits.
    text: String,
    pieces: json::Pieces,
    nesting: Nesting,
}

/// How far a JSON text is that comes in pieces.
#[derive(Default)]
struct Nesting {
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

/// How much may be kept: as one event may have by default. For all of a stream a provider's client has no bound.
const MAX_KEPT: usize = 8 << 20;

/// What a call counts for beside its arguments, so that there are not too many to look through.
const CALL: usize = 4 << 10;

impl MessageEvents {
    /// For an answer of `model`.
    pub fn new(model: impl Into<ModelName>) -> Self {
        Self {
            model: model.into(),
            names: ToolNames::default(),
            has_begun: false,
            open: None,
            blocks: 0,
            waiting: VecDeque::new(),
            over: BTreeSet::new(),
            kept: 0,
            calls: Calls::default(),
            has_tools: false,
            has_function: false,
            finish: None,
            usage: None,
            is_over: false,
        }
    }

    /// Gives tools the names that the caller has for them.
    #[must_use]
    pub fn with_tool_names(mut self, names: ToolNames) -> Self {
        self.names = names;
        self
    }

    /// Writes the events of the next chunk, the terminal one included.
    pub fn write(&mut self, chunk: &StreamChunk, out: &mut BytesMut) {
        if self.is_over {
            return;
        }
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
        for delta in first_choices(chunk.data()).filter_map(|choice| json::member(choice, "delta")) {
            self.delta(delta, out);
        }
        if self.kept > MAX_KEPT {
            self.fail("the calls of tools are too large to be put in order", out);
        } else if chunk.is_final() && self.finish.is_none() && self.is_amid_call() {
            self.fail("the answer ended amid the arguments of a call", out);
        } else if chunk.is_final() {
            self.end(out);
        }
    }

    /// Whether nothing follows what was written.
    #[cfg(feature = "axum")]
    pub(in crate::http) const fn is_over(&self) -> bool {
        self.is_over
    }

    #[cfg(feature = "axum")]
    pub(in crate::http) const fn model(&self) -> &ModelName {
        &self.model
    }

    fn fail(&mut self, message: &str, out: &mut BytesMut) {
        put_event("error", &super::error_json(StatusCode::BAD_GATEWAY, message), out);
        self.is_over = true;
    }

    /// Whether the arguments of one have begun, and are not whole.
    fn is_amid_call(&self) -> bool {
        let mut blocks = self.open.iter().chain(&self.waiting);
        blocks.any(|block| block.key.is_call() && block.nesting.is_amid())
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
        for thoughts in thoughts(delta) {
            self.say(Block::new(Key::Thinking), thoughts, out);
        }
        for text in texts(delta) {
            self.say(Block::new(Key::Text), text, out);
        }
        for (at, call) in json::items(json::member(delta, "tool_calls").unwrap_or_default()).enumerate() {
            let key = Key::Tool(self.calls.number(at, call));
            self.has_tools = true;
            self.call(key, member_text(call, "id"), json::member(call, "function").unwrap_or(b"{}"), out);
        }
        // Who says it in both ways means one call.
        if let Some(function) = function_call(delta).filter(|_| !self.has_tools) {
            self.has_function = true;
            self.call(Key::Function, None, function, out);
        }
    }

    fn call(&mut self, key: Key, id: Option<Cow<'_, str>>, function: &[u8], out: &mut BytesMut) {
        let name = member_text(function, "name").unwrap_or_default().into_owned();
        let block = Block { id: id.map(Cow::into_owned), name, ..Block::new(key) };
        self.say(block, arguments(function).unwrap_or_default(), out);
    }

    /// Writes a piece of a block, or keeps it until its turn comes.
    fn say(&mut self, piece: Block, raw: &[u8], out: &mut BytesMut) {
        match &mut self.open {
            Some(open) if open.key == piece.key => {
                let text = open.text_of(raw);
                put_piece(self.blocks, piece.key, &text, out);
            }
            // Its arguments were whole: what still comes is no part of them.
            _ if self.over.contains(&piece.key) => {}
            _ => self.keep(piece, raw),
        }
        while self.open.as_ref().is_none_or(Block::may_be_over) {
            let Some(next) = self.waiting.pop_front() else { break };
            self.begin_block(next, out);
        }
    }

    fn keep(&mut self, mut piece: Block, raw: &[u8]) {
        let is_call = piece.key.is_call();
        let known = match is_call {
            true => self.waiting.iter_mut().find(|block| block.key == piece.key),
            // What was said before a call is another block.
            false => self.waiting.back_mut().filter(|block| block.key == piece.key),
        };
        let Some(block) = known else {
            if is_call {
                self.kept += CALL + piece.name.len() + piece.id.as_ref().map_or(0, String::len);
            }
            self.kept += piece.wait(raw);
            return self.waiting.push_back(piece);
        };
        self.kept += block.wait(raw);
        block.id = block.id.take().or(piece.id);
        if block.name.is_empty() {
            block.name = piece.name;
        }
    }

    fn begin_block(&mut self, mut block: Block, out: &mut BytesMut) {
        self.close(out);
        let head = match block.key {
            Key::Thinking => json!({ "type": "thinking", "thinking": "", "signature": "" }),
            Key::Text => json!({ "type": "text", "text": "" }),
            Key::Tool(_) | Key::Function => {
                let id = call_id(block.id.take().map(Cow::Owned));
                let name = self.names.restored(Cow::Borrowed(&block.name));
                json!({ "type": "tool_use", "id": id, "name": name, "input": {} })
            }
        };
        put("content_block_start", json!({ "index": self.blocks, "content_block": head }), out);
        let text = std::mem::take(&mut block.text);
        put_piece(self.blocks, block.key, &text, out);
        self.kept -= text.len();
        self.open = Some(block);
    }

    fn close(&mut self, out: &mut BytesMut) {
        if let Some(Block { key, mut pieces, .. }) = self.open.take() {
            put_piece(self.blocks, key, pieces.end().unwrap_or_default(), out);
            if key.is_call() {
                self.over.insert(key);
            }
            if key == Key::Thinking {
                put_delta(self.blocks, &json!({ "type": "signature_delta", "signature": SIGNATURE }), out);
            }
            put("content_block_stop", json!({ "index": self.blocks }), out);
            self.blocks += 1;
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        self.is_over = true;
        while let Some(next) = self.waiting.pop_front() {
            self.begin_block(next, out);
        }
        self.close(out);
        let reason = stop_reason(self.finish.as_ref(), self.has_tools || self.has_function);
        let delta = json!({ "stop_reason": reason, "stop_sequence": null });
        put("message_delta", json!({ "delta": delta, "usage": usage(self.usage.as_ref()) }), out);
        put("message_stop", json!({}), out);
    }
}

impl Key {
    const fn is_call(self) -> bool {
        matches!(self, Self::Tool(_) | Self::Function)
    }
}

impl Block {
    fn new(key: Key) -> Self {
        Self {
            key,
            id: None,
            name: String::new(),
            text: String::new(),
            pieces: json::Pieces::default(),
            nesting: Nesting::default(),
        }
    }

    /// What its next piece says. Arguments may be JSON itself and no string of it.
    fn text_of<'a>(&mut self, raw: &'a [u8]) -> Cow<'a, str> {
        let text = match raw.first() {
            Some(b'"') => self.pieces.next(raw).unwrap_or_default(),
            _ => String::from_utf8_lossy(raw),
        };
        if self.key.is_call() {
            self.nesting.read(&text);
        }
        text
    }

    /// Keeps a piece, and says how many bytes.
    fn wait(&mut self, raw: &[u8]) -> usize {
        let text = self.text_of(raw);
        self.text.push_str(&text);
        text.len()
    }

    /// Whether another one may follow.
    const fn may_be_over(&self) -> bool {
        !self.key.is_call() || self.nesting.is_whole()
    }
}

impl Nesting {
    fn read(&mut self, piece: &str) {
        for byte in piece.bytes() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                _ if self.is_in_string => {}
                b'{' | b'[' => {
                    self.depth += 1;
                    self.has_begun = true;
                }
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    const fn is_whole(&self) -> bool {
        self.has_begun && self.depth == 0
    }

    const fn is_amid(&self) -> bool {
        self.depth > 0 || self.is_in_string
    }
}

fn put_piece(index: u64, key: Key, text: &str, out: &mut BytesMut) {
    if text.is_empty() {
        return;
    }
    let delta = match key {
        Key::Thinking => json!({ "type": "thinking_delta", "thinking": text }),
        Key::Text => json!({ "type": "text_delta", "text": text }),
        Key::Tool(_) | Key::Function => json!({ "type": "input_json_delta", "partial_json": text }),
    };
    put_delta(index, &delta, out);
}

fn put_delta(index: u64, delta: &Value, out: &mut BytesMut) {
    put("content_block_delta", json!({ "index": index, "delta": delta }), out);
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
            .field("open", &self.open.as_ref().map(|block| block.key))
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}
