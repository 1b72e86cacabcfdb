//! genai's events as chunks, polled straight through.

use super::{
    answer,
    dialect::Wire,
    fault,
    frames::{Frames, Prompt},
    usage,
};
use crate::{Error, ErrorClass, StreamChunk, provider::openai::origin::Origin};
use ::genai::chat::{ChatStream, ChatStreamEvent, StreamEnd, ToolCall};
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// The chunks of an answer: ends with a terminal chunk or an error.
pub(super) struct Chunks {
    wire: Wire,
    events: ChatStream,
    first: Option<ChatStreamEvent>,
    frames: Arc<Frames>,
    origin: Origin,
    /// What each chunk begins with; made with the first, when the provider has given its id.
    head: Option<Value>,
    calls: Vec<Call>,
    /// Whether anything was said but calls.
    spoke: bool,
    /// Of one event there may be several.
    ready: VecDeque<StreamChunk>,
    is_over: bool,
}

/// A call of a tool, as far as it has come.
struct Call {
    id: String,
    /// As the provider has it.
    their_id: String,
    /// Bytes of the arguments that were given out.
    given: usize,
    is_whole: bool,
}

impl Chunks {
    pub(super) fn new(
        wire: Wire,
        events: ChatStream,
        first: Option<ChatStreamEvent>,
        frames: Arc<Frames>,
        mut origin: Origin,
    ) -> Self {
        origin.answered(StatusCode::OK, &HeaderMap::new());
        Self {
            wire,
            events,
            first,
            frames,
            origin,
            head: None,
            calls: Vec::new(),
            spoke: false,
            ready: VecDeque::new(),
            is_over: false,
        }
    }

    fn read(&mut self, event: ChatStreamEvent) -> Result<(), Error> {
        if self.wire == Wire::Gemini {
            self.images();
        }
        match event {
            ChatStreamEvent::Start
            | ChatStreamEvent::Heartbeat
            // Kept by genai, and told at the end.
            | ChatStreamEvent::ThoughtSignatureChunk(_) => {}
            ChatStreamEvent::Chunk(text) if text.content.is_empty() => {}
            ChatStreamEvent::Chunk(text) => {
                self.spoke = true;
                self.delta(json!({ "content": text.content }), None);
            }
            ChatStreamEvent::ReasoningChunk(text) => self.delta(json!({ "reasoning_content": text.content }), None),
            ChatStreamEvent::ToolCallChunk(chunk) => self.call(chunk.tool_call),
            ChatStreamEvent::End(end) => self.end(end)?,
        }
        Ok(())
    }

    fn images(&mut self) {
        let images: Vec<_> = self.frames.take_images().iter().map(|url| answer::image(url)).collect();
        if !images.is_empty() {
            self.spoke = true;
            self.delta(json!({ "images": images }), None);
        }
    }

    /// genai gives the arguments as a text that grows, or whole.
    fn call(&mut self, call: ToolCall) {
        let ToolCall { call_id, fn_name, fn_arguments, thought_signatures } = call;
        let grows = fn_arguments.is_string();
        let arguments = answer::arguments(&fn_arguments);
        let same =
            |known: &Call| known.their_id == call_id && !known.is_whole && known.given <= arguments.len();
        if grows
            && !(arguments.is_empty() && self.calls.last().is_some_and(|known| known.given > 0))
            && let Some(at) = self.calls.iter().rposition(same)
        {
            let known = &mut self.calls[at];
            let more = arguments.get(known.given..).unwrap_or_default().to_owned();
            known.given = arguments.len();
            if !more.is_empty() {
                self.delta(
                    json!({ "tool_calls": [{ "index": at, "function": { "arguments": more } }] }),
                    None,
                );
            }
            return;
        }
        let at = self.calls.len();
        let taken = |id: &str| self.calls.iter().any(|known| known.id == id);
        let id = answer::unique_id(call_id.clone(), &fn_name, at, taken);
        let mut json = json!({
            "index": at,
            "id": id,
            "type": "function",
            "function": { "name": fn_name, "arguments": arguments },
        });
        answer::sign(self.wire, &mut json, thought_signatures);
        self.calls.push(Call { id, their_id: call_id, given: arguments.len(), is_whole: !grows });
        self.delta(json!({ "tool_calls": [json] }), None);
    }

    fn end(&mut self, end: StreamEnd) -> Result<(), Error> {
        let reason = end.captured_stop_reason.as_ref();
        if reason.is_none() && self.wire.end_is_made_up() && !self.frames.look(|seen| seen.done) {
            return Err(match self.frames.look(|seen| seen.error.clone()) {
                Some(said) => self.origin.reported(said),
                None => self.origin.error(ErrorClass::Truncated),
            });
        }
        if answer::failed(self.wire, reason) {
            return Err(self.origin.error(ErrorClass::Upstream));
        }
        let thoughts = answer::thoughts(self.wire, end.captured_content);
        if !thoughts.is_empty() {
            self.delta(json!({ "thinking_blocks": thoughts }), None);
        }
        self.close_calls();
        let calls = !self.calls.is_empty();
        self.delta(json!({}), Some(&answer::finish_reason(reason, calls)));
        let billed = self.frames.look(|seen| seen.billed);
        let usage = end
            .captured_usage
            .and_then(|usage| usage::json(self.wire, &usage::billed(usage, billed), self.spoke || calls));
        if let Some(usage) = usage {
            let mut chunk = self.head();
            chunk["choices"] = json!([]);
            chunk["usage"] = usage;
            self.push(&chunk);
        }
        self.ready.push_back(StreamChunk::end());
        Ok(())
    }

    /// A call without arguments is one with none: clients read them as JSON.
    fn close_calls(&mut self) {
        for at in 0..self.calls.len() {
            if self.calls[at].given == 0 {
                self.delta(
                    json!({ "tool_calls": [{ "index": at, "function": { "arguments": "{}" } }] }),
                    None,
                );
            }
        }
    }

    fn delta(&mut self, mut delta: Value, finish_reason: Option<&str>) {
        if self.head.is_none() {
            delta["role"] = "assistant".into();
        }
        let mut chunk = self.head();
        chunk["choices"] = json!([{ "index": 0, "delta": delta, "finish_reason": finish_reason }]);
        self.push(&chunk);
    }

    fn head(&mut self) -> Value {
        let made = || {
            let (id, model) = self.frames.look(|seen| (seen.id.clone(), seen.model.clone()));
            let model = model.unwrap_or_else(|| self.origin.model.to_string());
            answer::head(id, "chat.completion.chunk", &model)
        };
        self.head.get_or_insert_with(made).clone()
    }

    fn push(&mut self, chunk: &Value) {
        self.ready.push_back(StreamChunk::parse(chunk.to_string()).expect("made here"));
    }
}

impl Stream for Chunks {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(chunk) = this.ready.pop_front() {
                this.is_over |= chunk.is_final();
                return Poll::Ready(Some(Ok(chunk)));
            }
            if this.is_over {
                return Poll::Ready(None);
            }
            let event = match this.first.take() {
                Some(first) => Some(Ok(first)),
                None => ready!(Pin::new(&mut this.events).poll_next(cx)),
            };
            let read = match event {
                Some(Ok(_)) if this.frames.look(|seen| seen.is_nameless) => {
                    Err(this.origin.malformed("an event has no name", Bytes::new()))
                }
                Some(Ok(event)) => this.read(event),
                Some(Err(error)) if fault::is_of_nothing(this.wire, &this.frames, &error) => continue,
                Some(Err(error)) => Err(fault::of_stream(&mut this.origin, &this.frames, error)),
                // Not even genai has seen an end.
                None => Err(match this.frames.look(|seen| seen.error.clone()) {
                    Some(said) => this.origin.reported(said),
                    None => this.origin.error(ErrorClass::Truncated),
                }),
            };
            if let Err(error) = read {
                this.is_over = true;
                return Poll::Ready(Some(Err(
                    match this.frames.look(|seen| seen.prompt).and_then(Prompt::usage) {
                        Some(prompt) => error.with_usage(prompt),
                        None => error,
                    },
                )));
            }
        }
    }
}
