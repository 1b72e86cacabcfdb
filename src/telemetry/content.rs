//! What was said, for those who have asked to keep it.

use super::semconv::Value;
use crate::{
    ChatBody, ChoiceFinish, Completion, FinishReason, StreamChunk, answer::Calls, caught::caught, json,
    store::Trouble,
};
use serde::de::IgnoredAny;
use serde_json::Value as Json;
use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

/// Whether prompts and answers are told. They are not unless you say so.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum CaptureContent {
    /// Nothing of what is said leaves the process.
    #[default]
    Nothing,
    /// As attributes of the client's span, in the conventions' JSON.
    Span {
        /// How many bytes of JSON each attribute may have; what does not fit is cut, and the JSON stays valid.
        max_bytes: usize,
        /// What is done to each text before.
        redact: Redact,
    },
    /// As attributes of an event, `gen_ai.client.inference.operation.details`, when the call has ended: of the subscriber under
    /// `tracing`, of the [logger](super::OtelObserver::with_logger) under OpenTelemetry.
    Event {
        /// As for [`Span`](Self::Span).
        max_bytes: usize,
        /// As for [`Span`](Self::Span).
        redact: Redact,
    },
    /// Both.
    SpanAndEvent {
        /// As for [`Span`](Self::Span).
        max_bytes: usize,
        /// As for [`Span`](Self::Span).
        redact: Redact,
    },
}

/// Takes out of a text what must not be kept.
#[derive(Clone, Default)]
pub struct Redact(Option<Arc<Redaction<RedactFn>>>);

type RedactFn = dyn Fn(&str) -> String + Send + Sync;

struct Redaction<F: ?Sized> {
    trouble: Trouble,
    redact: F,
}

/// What was said in one call, as the conventions' JSON.
#[derive(Clone, Default)]
pub struct Content {
    instructions: String,
    input: String,
    output: String,
    tools: String,
}

/// Keeps what is said while it passes.
pub(super) struct Collector {
    body: ChatBody,
    max_bytes: usize,
    redact: Redact,
    answer: BTreeMap<u64, Choice>,
    /// What of the answer is kept so far.
    bytes: usize,
    /// Nothing more is kept.
    is_full: bool,
}

#[derive(Default)]
struct Choice {
    reasoning: Said,
    text: Said,
    calls: Vec<Call>,
    numbers: Calls,
    finish: Option<FinishReason>,
}

#[derive(Default)]
struct Call {
    id: String,
    name: String,
    arguments: Said,
}

/// The beginning of what was said, or all of it.
#[derive(Default)]
struct Said {
    text: String,
    is_cut: bool,
}

/// More choices, or calls of tools, than this are left out.
const MAX_PARTS: u64 = 128;

/// In bytes: what is to be taken out of a text is found if it is no longer, also where only the beginning of the text is kept.
const MARGIN: usize = 4 << 10;

impl CaptureContent {
    /// On spans, with at most this many bytes of JSON in each attribute.
    pub fn span(max_bytes: usize) -> Self {
        Self::Span { max_bytes, redact: Redact::default() }
    }

    /// On events, with at most this many bytes of JSON in each attribute.
    pub fn event(max_bytes: usize) -> Self {
        Self::Event { max_bytes, redact: Redact::default() }
    }

    /// On spans and events, with at most this many bytes of JSON in each attribute.
    pub fn span_and_event(max_bytes: usize) -> Self {
        Self::SpanAndEvent { max_bytes, redact: Redact::default() }
    }

    /// As `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` says: `SPAN_ONLY` or the older `true`, `EVENT_ONLY`,
    /// `SPAN_AND_EVENT`, otherwise nothing. The environment is never read unless you call this.
    pub fn from_env(max_bytes: usize) -> Self {
        let wanted = std::env::var("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT").unwrap_or_default();
        Self::named(&wanted, max_bytes)
    }

    fn named(wanted: &str, max_bytes: usize) -> Self {
        match wanted.trim().to_ascii_uppercase().as_str() {
            "SPAN_ONLY" | "TRUE" => Self::span(max_bytes),
            "EVENT_ONLY" => Self::event(max_bytes),
            "SPAN_AND_EVENT" => Self::span_and_event(max_bytes),
            _ => Self::Nothing,
        }
    }

    /// Whether nothing is told.
    pub const fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }

    pub(super) const fn on_span(&self) -> bool {
        matches!(self, Self::Span { .. } | Self::SpanAndEvent { .. })
    }

    pub(super) const fn on_event(&self) -> bool {
        matches!(self, Self::Event { .. } | Self::SpanAndEvent { .. })
    }

    pub(super) fn collector(&self, body: &ChatBody) -> Option<Box<Collector>> {
        match self {
            Self::Nothing => None,
            Self::Span { max_bytes, redact }
            | Self::Event { max_bytes, redact }
            | Self::SpanAndEvent { max_bytes, redact } => Some(Box::new(Collector {
                body: body.clone(),
                max_bytes: *max_bytes,
                redact: redact.clone(),
                answer: BTreeMap::new(),
                bytes: 0,
                is_full: false,
            })),
        }
    }
}

impl Redact {
    /// Keeps what `redact` gives back for each text. Where it panics, nothing of what was said in that call is kept, which is told in
    /// the log, once; the call goes on. Of a stream that is longer than what is told of it, it is given the beginning, and what it may
    /// have seen a part of only is not told, if that has at most 4 KiB.
    pub fn new(redact: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(Redaction { trouble: Trouble::default(), redact })))
    }

    fn apply<'a>(&self, text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
        let text = text.into();
        match &self.0 {
            Some(redaction) => Cow::Owned((redaction.redact)(&text)),
            None => text,
        }
    }

    /// What is left of it, without an end that the rest would have made a part of something to be taken out.
    fn apply_to<'a>(&self, said: &'a Said) -> Cow<'a, str> {
        let mut text = self.apply(&said.text);
        if said.is_cut && self.0.is_some() {
            let end = text.len().saturating_sub(MARGIN);
            let end = (0..=end).rev().find(|at| text.is_char_boundary(*at));
            text.to_mut().truncate(end.unwrap_or(0));
        }
        text
    }

    fn panicked(&self, cause: &dyn fmt::Display) {
        if let Some(redaction) = &self.0 {
            redaction.trouble.fails("what was said is not told", &cause.to_string());
        }
    }
}

impl Content {
    pub(super) fn attributes(&self, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        let all = [
            ("gen_ai.system_instructions", &self.instructions),
            ("gen_ai.input.messages", &self.input),
            ("gen_ai.output.messages", &self.output),
            ("gen_ai.tool.definitions", &self.tools),
        ];
        for (name, json) in all {
            if !json.is_empty() {
                set(name, Value::Str(json));
            }
        }
    }
}

// ===== impl Collector =====

impl Collector {
    pub(super) fn chunk(&mut self, chunk: &StreamChunk) {
        let redacts = self.redact.0.is_some();
        let enough = match redacts {
            true => self.max_bytes.saturating_add(MARGIN).saturating_mul(self.answer.len().max(1)),
            false => self.max_bytes,
        };
        self.is_full |= self.bytes >= enough;
        // From then on it is only looked at what is cut, where that matters.
        if !self.is_full || redacts {
            self.choices(chunk.data(), "delta");
        }
        // Comes last, where no more may be kept of what is said.
        self.ends(chunk.finish_reasons());
    }

    pub(super) fn whole(&mut self, completion: &Completion) {
        self.choices(completion.data(), "message");
        self.ends(completion.finish_reasons());
    }

    fn choices(&mut self, data: &[u8], said: &str) {
        for (at, choice) in json::items(json::member(data, "choices").unwrap_or_default()).enumerate() {
            let index = json::member(choice, "index").and_then(number).unwrap_or(at as u64);
            let is_full = self.is_full;
            let kept = if is_full { self.answer.get_mut(&index) } else { self.choice(index) };
            if let Some(kept) = kept {
                let bytes = json::member(choice, said).map_or(0, |said| kept.say(said, is_full));
                self.bytes += bytes;
            }
        }
    }

    fn ends(&mut self, finishes: &[ChoiceFinish]) {
        for ChoiceFinish { index, reason } in finishes {
            if let Some(kept) = self.choice(u64::from(*index)) {
                kept.finish = Some(reason.clone());
            }
        }
    }

    fn choice(&mut self, index: u64) -> Option<&mut Choice> {
        (index < MAX_PARTS).then(|| self.answer.entry(index).or_default())
    }

    /// What was said; `None` if it could not be redacted.
    pub(super) fn finish(self, is_cut: bool) -> Option<Content> {
        let redact = self.redact.clone();
        let content = caught("the redaction of content", || self.content(is_cut));
        content.map_err(|panicked| redact.panicked(&panicked)).ok()
    }

    fn content(self, is_cut: bool) -> Content {
        let Self { body, max_bytes, redact, answer, .. } = self;
        let (mut instructions, mut input) = (Vec::new(), Vec::new());
        for message in body.messages() {
            let role = message.role();
            match &*role {
                "system" | "developer" => {
                    instructions.push(Part::Text("text", redact.apply(message.text())));
                }
                _ => input.push(Message::asked(role, message.raw(), &redact)),
            }
        }
        let output: Vec<Message<'_>> =
            answer.values().map(|choice| choice.message(is_cut, &redact)).collect();
        Content {
            instructions: Writer::new(max_bytes).parts_only(&instructions),
            input: Writer::new(max_bytes).messages(&input),
            output: Writer::new(max_bytes).messages(&output),
            tools: Writer::new(max_bytes).tools(&body, &redact),
        }
    }
}

impl Said {
    /// Adds to it, or is cut, and tells how many bytes are kept.
    fn say(&mut self, more: &str, is_full: bool) -> usize {
        if is_full {
            self.is_cut |= !more.is_empty();
            return 0;
        }
        self.text.push_str(more);
        more.len()
    }
}

impl Choice {
    /// Adds a message or a delta, and tells how many bytes of it are kept.
    fn say(&mut self, said: &[u8], is_full: bool) -> usize {
        let text = |name| json::member(said, name).and_then(json::text).unwrap_or_default();
        let mut bytes = self.text.say(&text("content"), is_full);
        for name in ["reasoning_content", "reasoning"] {
            bytes += self.reasoning.say(&text(name), is_full);
        }
        for (at, call) in json::items(json::member(said, "tool_calls").unwrap_or_default()).enumerate() {
            let index = self.numbers.number(at, call);
            if index >= MAX_PARTS {
                continue;
            }
            if self.calls.len() <= index as usize {
                if is_full {
                    continue;
                }
                self.calls.resize_with(index as usize + 1, Call::default);
            }
            let kept = &mut self.calls[index as usize];
            let function = json::member(call, "function").unwrap_or_default();
            let text = |object, name| json::member(object, name).and_then(json::string).unwrap_or_default();
            let (id, name) = (text(call, "id"), text(function, "name"));
            // Some say them again with each piece, and some say another id.
            if kept.id.is_empty() && !is_full {
                bytes += id.len();
                kept.id = id.into_owned();
            }
            if kept.name != name && !is_full {
                kept.name.push_str(&name);
                bytes += name.len();
            }
            let arguments = json::member(function, "arguments").and_then(json::text).unwrap_or_default();
            bytes += kept.arguments.say(&arguments, is_full);
        }
        bytes
    }

    fn message<'a>(&'a self, is_cut: bool, redact: &Redact) -> Message<'a> {
        let mut parts = Vec::new();
        for (kind, said) in [("reasoning", &self.reasoning), ("text", &self.text)] {
            if !said.text.is_empty() {
                parts.push(Part::Text(kind, redact.apply_to(said)));
            }
        }
        for call in &self.calls {
            parts.push(Part::Call {
                id: Cow::Borrowed(&call.id),
                name: Cow::Borrowed(&call.name),
                arguments: redact.apply_to(&call.arguments),
            });
        }
        let finish = match &self.finish {
            // As the conventions' schema of messages spells it.
            Some(FinishReason::ToolCalls) => "tool_call",
            Some(reason) => reason.as_str(),
            None if is_cut => "error",
            None => "stop",
        };
        Message { role: Cow::Borrowed("assistant"), parts, finish: Some(Cow::Borrowed(finish)) }
    }
}

fn number(raw: &[u8]) -> Option<u64> {
    std::str::from_utf8(raw).ok()?.parse().ok()
}

// ===== the conventions' JSON =====

struct Message<'a> {
    role: Cow<'a, str>,
    parts: Vec<Part<'a>>,
    finish: Option<Cow<'a, str>>,
}

enum Part<'a> {
    Text(&'static str, Cow<'a, str>),
    Call {
        id: Cow<'a, str>,
        name: Cow<'a, str>,
        arguments: Cow<'a, str>,
    },
    Result {
        id: Cow<'a, str>,
        response: Cow<'a, str>,
    },
    /// Something that is no text: an image, a file.
    Other(Cow<'a, str>),
}

impl<'a> Message<'a> {
    fn asked(role: Cow<'a, str>, raw: &'a [u8], redact: &Redact) -> Self {
        let mut parts = Vec::new();
        let content = json::member(raw, "content").unwrap_or_default();
        if role == "tool" {
            let text = |name| json::member(raw, name).and_then(json::string).unwrap_or_default();
            let said: Cow<'_, str> = match json::text(content) {
                Some(text) => text,
                None => json::items(content)
                    .filter_map(|part| json::member(part, "text").and_then(json::text))
                    .collect::<String>()
                    .into(),
            };
            parts.push(Part::Result { id: text("tool_call_id"), response: redact.apply(said) });
            return Self { role, parts, finish: None };
        }
        if let Some(text) = json::text(content) {
            parts.push(Part::Text("text", redact.apply(text)));
        }
        for part in json::items(content) {
            let kind = json::member(part, "type").and_then(json::string).unwrap_or_default();
            parts.push(match json::member(part, "text").and_then(json::text) {
                Some(text) => Part::Text("text", redact.apply(text)),
                None => Part::Other(kind),
            });
        }
        for call in json::items(json::member(raw, "tool_calls").unwrap_or_default()) {
            let function = json::member(call, "function").unwrap_or_default();
            let text = |object, name| json::member(object, name).and_then(json::text).unwrap_or_default();
            parts.push(Part::Call {
                id: text(call, "id"),
                name: text(function, "name"),
                arguments: redact.apply(text(function, "arguments")),
            });
        }
        Self { role, parts, finish: None }
    }
}

/// Writes JSON that is valid and within its bound, however little fits.
struct Writer {
    out: String,
    max: usize,
    is_full: bool,
}

impl Writer {
    const fn new(max: usize) -> Self {
        Self { out: String::new(), max, is_full: false }
    }

    fn parts_only(mut self, parts: &[Part<'_>]) -> String {
        if parts.is_empty() || self.max < 2 {
            return String::new();
        }
        self.out.push('[');
        self.parts(parts, "]");
        self.out.push(']');
        self.out
    }

    fn messages(mut self, messages: &[Message<'_>]) -> String {
        if messages.is_empty() || self.max < 2 {
            return String::new();
        }
        self.out.push('[');
        for message in messages {
            let before = self.out.len();
            self.separate();
            self.out.push_str("{\"role\":");
            quote(&mut self.out, &message.role);
            self.out.push_str(",\"parts\":[");
            let mut end = String::from("]");
            if let Some(finish) = &message.finish {
                end.push_str(",\"finish_reason\":");
                quote(&mut end, finish);
            }
            end.push('}');
            let begun = self.out.len();
            // The message's end, and the array's.
            let closing = end.clone() + "]";
            self.parts(&message.parts, &closing);
            let has_room = self.out.len() + closing.len() <= self.max;
            if !has_room || (self.is_full && self.out.len() == begun) {
                self.out.truncate(before);
                break;
            }
            self.out.push_str(&end);
            if self.is_full {
                break;
            }
        }
        self.out.push(']');
        self.out
    }

    /// Writes what fits before `closing`.
    fn parts(&mut self, parts: &[Part<'_>], closing: &str) {
        for part in parts {
            let before = self.out.len();
            self.separate();
            let (mut open, text, end) = match part {
                Part::Text(kind, text) => (format!("{{\"type\":\"{kind}\",\"content\":"), Some(text), "}"),
                Part::Call { id, name, arguments } => {
                    let mut open = String::from("{\"type\":\"tool_call\",\"id\":");
                    quote(&mut open, id);
                    open.push_str(",\"name\":");
                    quote(&mut open, name);
                    open.push_str(",\"arguments\":");
                    (open, Some(arguments), "}")
                }
                Part::Result { id, response } => {
                    let mut open = String::from("{\"type\":\"tool_call_response\",\"id\":");
                    quote(&mut open, id);
                    open.push_str(",\"response\":");
                    (open, Some(response), "}")
                }
                Part::Other(kind) => {
                    let mut open = String::from("{\"type\":");
                    quote(&mut open, kind);
                    (open, None, "}")
                }
            };
            let room = self.max.saturating_sub(self.out.len() + open.len() + end.len() + closing.len());
            match text {
                // What is JSON stays JSON if there is room for all of it.
                Some(text) if matches!(part, Part::Call { .. }) && text.len() <= room && is_object(text) => {
                    open.push_str(text);
                }
                Some(text) => match quote_within(&mut open, text, room) {
                    Fit::Whole => {}
                    Fit::Cut => self.is_full = true,
                    Fit::Nothing => {
                        self.is_full = true;
                        self.out.truncate(before);
                        return;
                    }
                },
                None if room == 0 => {
                    self.is_full = true;
                    self.out.truncate(before);
                    return;
                }
                None => {}
            }
            self.out.push_str(&open);
            self.out.push_str(end);
            if self.is_full {
                return;
            }
        }
    }

    fn tools(mut self, body: &ChatBody, redact: &Redact) -> String {
        if self.max < 2 {
            return String::new();
        }
        for tool in body.tools() {
            let Ok(mut tool) = serde_json::from_slice::<Json>(tool) else { continue };
            // The conventions have it flat.
            if let Some(Json::Object(function)) = tool.get_mut("function").map(Json::take) {
                let kind = tool.get("type").cloned().unwrap_or_else(|| "function".into());
                tool = [("type".to_owned(), kind)].into_iter().chain(function).collect();
            }
            redact_all(&mut tool, redact);
            let json = tool.to_string();
            let separator = usize::from(!self.out.is_empty());
            if self.out.len().max(1) + separator + json.len() + 1 > self.max {
                break;
            }
            self.out.push(if self.out.is_empty() { '[' } else { ',' });
            self.out.push_str(&json);
        }
        if !self.out.is_empty() {
            self.out.push(']');
        }
        self.out
    }

    fn separate(&mut self) {
        if !self.out.ends_with('[') {
            self.out.push(',');
        }
    }
}

fn redact_all(json: &mut Json, redact: &Redact) {
    match json {
        Json::String(text) => *text = redact.apply(&**text).into_owned(),
        Json::Array(items) => items.iter_mut().for_each(|item| redact_all(item, redact)),
        Json::Object(members) => members.values_mut().for_each(|member| redact_all(member, redact)),
        _ => {}
    }
}

fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn quote(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a string is JSON"));
}

enum Fit {
    Whole,
    Cut,
    Nothing,
}

/// Writes as much of `text`, quoted, as `room` has.
fn quote_within(out: &mut String, text: &str, room: usize) -> Fit {
    let Some(mut left) = room.checked_sub(2) else { return Fit::Nothing };
    let end = text
        .char_indices()
        .find(|(_, c)| match left.checked_sub(escaped_len(*c)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        })
        .map(|(at, _)| at);
    quote(out, &text[..end.unwrap_or(text.len())]);
    if end.is_none() { Fit::Whole } else { Fit::Cut }
}

/// How many bytes serde_json needs for it.
const fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        c => c.len_utf8(),
    }
}

// What people say to a model does not belong into logs.

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("input_bytes", &self.input.len())
            .field("output_bytes", &self.output.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Redact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redact").field(&self.0.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenUsage;
    use serde_json::json;

    fn content(max_bytes: usize, redact: Redact, body: &str, answer: &Completion) -> Content {
        let capture = CaptureContent::Span { max_bytes, redact };
        let mut collector = capture.collector(&ChatBody::parse(body.to_owned()).unwrap()).unwrap();
        collector.whole(answer);
        collector.finish(false).unwrap()
    }

    const BODY: &str = r#"{"messages":[
        {"role":"system","content":"Be brief."},
        {"role":"user","content":[{"type":"text","text":"What \"is\" it?"},{"type":"image_url","image_url":{"url":"data:x"}}]},
        {"role":"assistant","tool_calls":[{"id":"c1","type":"function","function":{"name":"look","arguments":"{\"at\":1}"}}]},
        {"role":"tool","tool_call_id":"c1","content":"a\ncat"}],
        "tools":[{"type":"function","function":{"name":"look","description":"Looks.","parameters":{"type":"object"}}}]}"#;

    #[test]
    fn what_is_said_has_the_shape_of_the_conventions() {
        let answer = Completion::tool_call("c2", "look", "{\"at\":2}", TokenUsage::new(1, 1));
        let content = content(10_000, Redact::default(), BODY, &answer);
        let read = |json: &str| serde_json::from_str::<Json>(json).unwrap();
        assert_eq!(read(&content.instructions), json!([{ "type": "text", "content": "Be brief." }]));
        assert_eq!(
            read(&content.input),
            json!([
                { "role": "user", "parts": [
                    { "type": "text", "content": "What \"is\" it?" }, { "type": "image_url" }] },
                { "role": "assistant", "parts": [
                    { "type": "tool_call", "id": "c1", "name": "look", "arguments": { "at": 1 } }] },
                { "role": "tool", "parts": [
                    { "type": "tool_call_response", "id": "c1", "response": "a\ncat" }] },
            ])
        );
        assert_eq!(
            read(&content.output),
            json!([{ "role": "assistant", "finish_reason": "tool_call", "parts": [
                { "type": "tool_call", "id": "c2", "name": "look", "arguments": { "at": 2 } }] }])
        );
        assert_eq!(
            read(&content.tools),
            json!([{ "type": "function", "name": "look", "description": "Looks.",
                     "parameters": { "type": "object" } }])
        );
    }

    fn streamed(max_bytes: usize, chunks: &[&str]) -> Json {
        let capture = CaptureContent::span(max_bytes);
        let mut collector = capture.collector(&ChatBody::parse(BODY).unwrap()).unwrap();
        for chunk in chunks {
            collector.chunk(&StreamChunk::parse((*chunk).to_owned()).unwrap());
        }
        serde_json::from_str(&collector.finish(false).unwrap().output).unwrap()
    }

    #[test]
    fn calls_without_numbers_stay_apart() {
        let call = |call: &str| format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{call}]}}}}]}}"#);
        for (a, b) in [("a", "b"), ("", ""), ("a", ""), ("", "b")] {
            let named = |id, at| {
                call(&format!(r#"{{"id":"{id}","function":{{"name":"f","arguments":"{{\"at\":{at}"}}}}"#))
            };
            let tail = call(r#"{"function":{"arguments":"}"}}"#);
            let again = call(&format!(r#"{{"id":"{a}","function":{{"name":"","arguments":"}}"}}}}"#));
            let output = streamed(10_000, &[&named(a, 1), &again, &named(b, 2), &tail]);
            let call =
                |id, at| json!({ "type": "tool_call", "id": id, "name": "f", "arguments": { "at": at } });
            assert_eq!(output[0]["parts"], json!([call(a, 1), call(b, 2)]));
        }
    }

    #[test]
    fn a_call_keeps_its_first_id() {
        let output = streamed(
            10_000,
            &[
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","function":{"name":"f"}}]}}]}"#,
                r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"b","function":{"arguments":"{}"}}]}}]}"#,
            ],
        );
        assert_eq!(
            output[0]["parts"],
            json!([{ "type": "tool_call", "id": "a", "name": "f", "arguments": {} }])
        );
    }

    #[test]
    fn why_an_answer_ended_is_told_also_where_no_more_of_it_is_kept() {
        let text = format!(r#"{{"choices":[{{"delta":{{"content":"{}"}}}}]}}"#, "a".repeat(200));
        for (reason, told) in
            [("length", "length"), ("tool_calls", "tool_call"), ("content_filter", "content_filter")]
        {
            let end = format!(
                r#"{{"choices":[{{"index":0,"delta":{{"content":"b"}},"finish_reason":"{reason}"}}]}}"#
            );
            let late = r#"{"choices":[{"index":0,"delta":{"content":"c"},"finish_reason":null}]}"#;
            let output = streamed(100, &[&text, &end, late]);
            assert_eq!(output[0]["finish_reason"], told);
            let kept = output[0]["parts"][0]["content"].as_str().unwrap();
            assert!(!kept.is_empty() && kept.bytes().all(|byte| byte == b'a'), "{kept}");
        }
    }

    #[test]
    fn what_the_environment_says_is_where_it_is_told() {
        let told = |wanted: &str| {
            let capture = CaptureContent::named(wanted, 9);
            (capture.on_span(), capture.on_event())
        };
        for nothing in ["", "NO_CONTENT", "false", "everything"] {
            assert_eq!(told(nothing), (false, false), "{nothing}");
        }
        assert_eq!((told("SPAN_ONLY"), told("true")), ((true, false), (true, false)));
        assert_eq!((told("event_only"), told(" SPAN_AND_EVENT ")), ((false, true), (true, true)));
    }

    #[test]
    fn each_text_is_redacted() {
        let answer = Completion::text("cat", TokenUsage::new(1, 1));
        let redact =
            Redact::new(|text| text.replace("cat", "***").replace("brief", "***").replace("Looks", "***"));
        let content = content(10_000, redact, BODY, &answer);
        let all = [&content.instructions, &content.input, &content.output, &content.tools];
        assert_eq!(all.iter().filter(|json| json.contains("***")).count(), 4, "{all:?}");
        assert!(!all.iter().any(|json| ["cat", "brief", "Looks"].iter().any(|word| json.contains(word))));
    }

    proptest::proptest! {
        #[test]
        fn however_little_fits_it_is_json_within_its_bound(max in 0_usize..600, text: String, tool: String) {
            let body = json!({ "messages": [
                { "role": "system", "content": text },
                { "role": "user", "content": text },
                { "role": "assistant", "tool_calls": [
                    { "id": tool, "type": "function", "function": { "name": tool, "arguments": text } }] },
                { "role": "user", "content": [{ "type": "text", "text": tool }, { "type": tool }] },
            ], "tools": [{ "type": "function", "function": { "name": tool, "description": text } }] });
            let answer = Completion::text(&text, TokenUsage::new(1, 1));
            let content = content(max, Redact::default(), &body.to_string(), &answer);
            for json in [&content.instructions, &content.input, &content.output, &content.tools] {
                proptest::prop_assert!(json.len() <= max, "{} > {max}: {json}", json.len());
                proptest::prop_assert!(json.is_empty() || serde_json::from_str::<Json>(json).is_ok(), "{json}");
            }
        }
    }
}
