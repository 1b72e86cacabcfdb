//! The few facts that layers need of an answer, taken from its JSON in one borrowed pass.

use super::TokenUsage;
use crate::{
    json::{self, Name, Walk},
    price::ServiceTier,
};
use serde::de::Error;
use serde_json::value::RawValue;
use std::{borrow::Cow, num::NonZeroU32, sync::Arc};

/// Why a choice ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FinishReason {
    /// It was complete.
    Stop,
    /// It reached its bound on tokens, or the end of the model's context window.
    Length,
    /// Tools, or a function, are to be called.
    ToolCalls,
    /// It was filtered.
    ContentFilter,
    /// What else providers say.
    Other(Box<str>),
}

/// Why one choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChoiceFinish {
    /// Which choice.
    pub index: u32,
    /// Why.
    pub reason: FinishReason,
}

impl FinishReason {
    /// As OpenAI spells it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::Other(other) => other,
        }
    }
}

/// In the words of OpenAI, and of those who have others.
impl From<&str> for FinishReason {
    fn from(reason: &str) -> Self {
        match reason {
            // Those of Together and TGI, and Anthropic's.
            "stop" | "eos" | "eos_token" | "stop_sequence" | "end_turn" => Self::Stop,
            // Those of Mistral and GLM, and Anthropic's.
            "length" | "model_length" | "model_context_window_exceeded" | "max_tokens" => Self::Length,
            "tool_calls" | "function_call" | "tool_use" => Self::ToolCalls,
            "sensitive" | "refusal" => Self::ContentFilter,
            // Google says behind it which one.
            filter if filter.starts_with("content_filter") => Self::ContentFilter,
            other => Self::Other(other.chars().take(64).collect::<String>().into()),
        }
    }
}

/// Facts of a completion or of one chunk. Chunks are moved from layer to layer: so it is small.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Of what has content, as JSON spells it: each text once, whatever is around it, and media as [`MEDIA`].
    pub(crate) text_bytes: u32,
    pub(crate) choices: u32,
    /// The halves of [`begun`](Self::begun), which would be aligned to 16 bytes.
    begun: [u64; 2],
    pub(crate) id: Option<Span>,
    pub(crate) model: Option<Span>,
    pub(crate) has_content: bool,
    pub(crate) has_error: bool,
    /// Whether tools, or a function, are called.
    pub(crate) has_calls: bool,
    /// Whether it has a member that is neither of the answer as such nor about what it took.
    has_extras: bool,
    pub(crate) service_tier: Option<ServiceTier>,
    /// What the edge would have to fill in.
    pub(crate) lacks: Lacks,
    /// Few chunks have any of it.
    rare: Option<Arc<Rare>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rare {
    finishes: Vec<ChoiceFinish>,
    /// Which choices ended, as in [`begun`](Facts::begun).
    finished: u128,
    usage: Option<TokenUsage>,
}

/// Where a JSON string lies, its quotes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(super) start: u32,
    len: NonZeroU32,
}

/// Learns where texts lie that differ from chunk to chunk.
pub(super) trait NoteText {
    /// `raw` is the value that was just taken; `said_by` the choice at this place to whoever asked.
    fn note(&mut self, walk: &Walk<'_>, raw: &[u8], said_by: Option<u32>);
}

/// Nobody does.
impl NoteText for () {
    fn note(&mut self, _: &Walk<'_>, _: &[u8], _: Option<u32>) {}
}

/// Members that clients rely on and providers forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lacks {
    pub(crate) id: bool,
    pub(crate) object: bool,
    pub(crate) created: bool,
    pub(crate) model: bool,
    pub(crate) choices: bool,
    /// `index` of a choice, or of a tool call in a delta.
    pub(crate) index: bool,
    pub(crate) role: bool,
    /// Of a choice, what it says: there is something else in its place, and no object.
    pub(crate) message: bool,
    /// `finish_reason` of a choice of a whole answer.
    pub(crate) finish: bool,
}

impl Default for Lacks {
    fn default() -> Self {
        Self {
            id: true,
            object: true,
            created: true,
            model: true,
            choices: true,
            index: false,
            role: false,
            message: false,
            finish: false,
        }
    }
}

impl Facts {
    /// Reads `data`, which must be one JSON object.
    pub(crate) fn read(data: &[u8]) -> Result<Self, serde_json::Error> {
        Self::read_noting(data, &mut ())
    }

    /// As [`read`](Self::read), and notes where texts lie that differ from chunk to chunk.
    pub(super) fn read_noting(data: &[u8], texts: &mut impl NoteText) -> Result<Self, serde_json::Error> {
        let mut facts = Self::default();
        match facts.walk(data, texts) {
            Some(()) => Ok(facts),
            None => Err(match serde_json::from_slice::<&RawValue>(data) {
                Err(error) => error,
                Ok(_) => Error::custom("it is JSON, but no answer"),
            }),
        }
    }

    /// Notes a member of a message. `before` is the text that its choice has said last: some providers say each by two names.
    pub(super) fn says<'a>(&mut self, name: &[u8], raw: &'a [u8], before: &mut &'a [u8]) {
        if !has_content(name, raw) {
            return;
        }
        self.has_content = true;
        let (mut bytes, mut last) = (0, *before);
        each_text(name, raw, MAX_NESTED, &mut |text, counted| {
            if text != *before {
                (bytes, last) = (bytes + counted, text);
            }
        });
        *before = last;
        self.text_bytes = self.text_bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    /// Which choices are there, a bit each; all from the 128th on share the last.
    pub(crate) fn begun(&self) -> u128 {
        let [low, high] = self.begun;
        u128::from(high) << 64 | u128::from(low)
    }

    fn begin(&mut self, choice: u32) {
        let bit = bit(choice);
        self.begun[0] |= bit as u64;
        self.begun[1] |= (bit >> 64) as u64;
    }

    pub(crate) fn finishes(&self) -> &[ChoiceFinish] {
        self.rare.as_ref().map_or(&[], |rare| &rare.finishes)
    }

    pub(crate) fn usage(&self) -> Option<&TokenUsage> {
        self.rare.as_ref()?.usage.as_ref()
    }

    fn rare(&mut self) -> &mut Rare {
        Arc::make_mut(self.rare.get_or_insert_default())
    }

    /// Which choices ended, as in [`begun`](Self::begun).
    #[cfg(feature = "openai")]
    pub(crate) fn finished(&self) -> u128 {
        self.rare.as_ref().map_or(0, |rare| rare.finished)
    }

    /// Nothing but usage: what the edge leaves out if the client did not ask for it.
    pub(crate) fn is_usage_only(&self) -> bool {
        self.choices == 0 && self.usage().is_some() && !self.has_extras
    }
}

impl Rare {
    /// No more than anybody asks for: a provider may say as many as its event has room for.
    fn ends(&mut self, finish: ChoiceFinish) {
        let bit = bit(finish.index);
        if self.finished & bit == 0 || self.finishes.len() < 128 {
            self.finishes.push(finish);
        }
        self.finished |= bit;
    }
}

impl ChoiceFinish {
    /// Its choice; all from the 128th on share the last place.
    pub(crate) const fn place(&self) -> u32 {
        place(self.index)
    }
}

const fn bit(choice: u32) -> u128 {
    1 << place(choice)
}

const fn place(choice: u32) -> u32 {
    if choice < 127 { choice } else { 127 }
}

/// The text of a JSON string that lies there in `data`.
pub(crate) fn text(data: &[u8], span: Option<Span>) -> Option<Cow<'_, str>> {
    let Span { start, len } = span?;
    json::string(&data[start as usize..][..len.get() as usize])
}

/// The choice of index 0, in as many pieces as there are; without an index that is one, what stands first.
pub(crate) fn first_choices(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let choices = json::items(json::member(data, "choices").unwrap_or_default()).enumerate();
    let is_first = |(at, choice): &(usize, &[u8])| {
        let index = json::member(choice, "index").and_then(index);
        index.map_or(*at == 0, |index| index == 0)
    };
    choices.filter(is_first).map(|(_, choice)| choice)
}

fn index(raw: &[u8]) -> Option<u32> {
    std::str::from_utf8(raw).ok()?.parse().ok()
}

/// What the choice of index 0 says, in its member of this name: its text, or the texts of its parts.
pub(crate) fn first_content<'a>(data: &'a [u8], said: &str) -> Cow<'a, str> {
    let first = first_choices(data).next().and_then(|choice| json::member(choice, said));
    json::joined(first.and_then(|said| json::member(said, "content")).unwrap_or_default())
}

impl Span {
    /// Where `part`, a slice of `data`, lies in it. Leaves bound answers far below 4 GiB; beyond, it is lost.
    fn of(data: &[u8], part: &[u8]) -> Option<Self> {
        let start = part.as_ptr() as usize - data.as_ptr() as usize;
        Some(Self {
            start: u32::try_from(start).ok()?,
            len: NonZeroU32::new(u32::try_from(part.len()).ok()?)?,
        })
    }
}

// ===== one pass =====

impl Facts {
    fn walk(&mut self, data: &[u8], texts: &mut impl NoteText) -> Option<()> {
        let mut walk = Walk::new(data, usize::MAX)?;
        walk.object(|walk, name| self.top(walk, name, data, texts))?;
        walk.end()
    }

    fn top(
        &mut self,
        walk: &mut Walk<'_>,
        name: Name<'_>,
        data: &[u8],
        texts: &mut impl NoteText,
    ) -> Option<()> {
        let name = name.bytes()?;
        if *name == *b"choices" {
            self.lacks.choices = walk.peek()? == b'n';
            return if self.lacks.choices {
                walk.value().map(drop)
            } else {
                walk.array(|walk| self.choice(walk, texts))
            };
        }
        if *name == *b"usage" {
            if let Some(usage) = TokenUsage::take(walk)? {
                self.rare().usage = Some(usage);
            }
            return Some(());
        }
        let raw = walk.value()?;
        // Azure begins its streams with empty ones.
        let text = || Span::of(data, raw).filter(|_| raw[0] == b'"' && !json::is_blank(raw));
        match &*name {
            b"id" => {
                self.id = text();
                self.lacks.id = self.id.is_none();
            }
            b"model" => {
                self.model = text();
                self.lacks.model = self.model.is_none();
            }
            b"object" => {
                self.lacks.object = raw == b"null" || raw == br#""""#;
                // As older servers send what others wrap in a member.
                self.has_error |= raw == br#""error""#;
            }
            b"created" => self.lacks.created = raw == b"null",
            b"service_tier" => {
                self.service_tier = json::string(raw).and_then(|name| ServiceTier::from_name(&name));
            }
            // Groq reports the usage of a stream here, and why it was stopped early.
            b"x_groq" => {
                let usage = json::member(raw, "usage").filter(|_| self.usage().is_none());
                if let Some(usage) = usage.and_then(TokenUsage::read) {
                    self.rare().usage = Some(usage);
                }
                self.has_error |= json::member(raw, "error").is_some_and(|error| !json::is_nothing(error));
            }
            b"error" if !json::is_nothing(raw) => self.has_error = true,
            // By which OpenAI hides how long its texts are.
            b"obfuscation" => texts.note(walk, raw, None),
            b"system_fingerprint" | b"provider" | b"timings" => {}
            _ => self.has_extras |= !json::is_nothing(raw),
        }
        Some(())
    }

    fn choice<'a>(&mut self, walk: &mut Walk<'a>, texts: &mut impl NoteText) -> Option<()> {
        let (mut number, mut reason, mut before) = (None, None, &b""[..]);
        walk.object(|walk, name| {
            let name = name.bytes()?;
            if let b"delta" | b"message" = &*name {
                return self.message(walk, texts, &mut before);
            }
            let raw = walk.value()?;
            match &*name {
                b"text" => {
                    texts.note(walk, raw, Some(self.choices));
                    self.says(b"content", raw, &mut before);
                }
                b"index" => number = index(raw),
                // Moonshot reports the usage of a stream here.
                b"usage" if self.usage().is_none() => {
                    if let Some(usage) = TokenUsage::read(raw) {
                        self.rare().usage = Some(usage);
                    }
                }
                b"finish_reason" => reason = json::string(raw).filter(|reason| !reason.is_empty()),
                b"error" if !json::is_nothing(raw) => self.has_error = true,
                _ => {}
            }
            Some(())
        })?;
        self.lacks.index |= number.is_none();
        self.lacks.finish |= reason.is_none();
        let index = number.unwrap_or(self.choices);
        self.begin(index);
        if let Some(reason) = reason {
            // As Mistral, OpenRouter, DeepSeek and GLM say that a model failed amid its answer.
            self.has_error |= matches!(&*reason, "error" | "insufficient_system_resource" | "network_error");
            self.rare().ends(ChoiceFinish { index, reason: (&*reason).into() });
        }
        self.choices += 1;
        Some(())
    }

    /// The delta of a chunk or the message of a completion.
    fn message<'a>(
        &mut self,
        walk: &mut Walk<'a>,
        texts: &mut impl NoteText,
        before: &mut &'a [u8],
    ) -> Option<()> {
        let first = walk.peek()?;
        if first != b'{' {
            // As relays in PHP write an empty object: a list.
            self.lacks.message |= first != b'n';
            return walk.value().map(drop);
        }
        let mut role = false;
        walk.object(|walk, name| {
            let (name, raw) = (name.bytes()?, walk.value()?);
            match &*name {
                b"role" => role = raw[0] == b'"',
                b"tool_calls" => {
                    self.says(b"tool_calls", raw, before);
                    self.has_calls |= !json::is_nothing(raw);
                    self.lacks.index |= json::items(raw)
                        .any(|call| json::member(call, "index").is_none_or(|index| index == b"null"));
                }
                name => {
                    texts.note(walk, raw, (!NAMES.contains(&name)).then_some(self.choices));
                    self.has_calls |= name == b"function_call" && !json::is_nothing(raw);
                    self.says(name, raw, before);
                }
            }
            Some(())
        })?;
        self.lacks.role |= !role;
        Some(())
    }
}

/// Members of a message that only tell what the others are.
const NAMES: [&[u8]; 5] = [b"name", b"id", b"index", b"type", b"object"];

/// Whether a member of a message says something to whoever asked.
fn has_content(name: &[u8], raw: &[u8]) -> bool {
    match (name, raw.first()) {
        _ if NAMES.contains(&name) => false,
        (b"content", Some(b'[')) => json::items(raw).any(has_part),
        _ => is_said(raw),
    }
}

fn is_said(raw: &[u8]) -> bool {
    match raw.first() {
        Some(b'"') => !json::is_blank(raw),
        Some(b'[' | b'{') => !json::is_nothing(raw),
        _ => false,
    }
}

/// Whether a part of a content says something: by its text, or else by what it has in its place.
fn has_part(part: &[u8]) -> bool {
    if part.first() != Some(&b'{') {
        return is_said(part);
    }
    match json::member(part, "text") {
        Some(text @ [b'"', ..]) => is_said(text),
        _ => {
            let is_name = |name: &[u8]| NAMES.contains(&&name[1..name.len() - 1]);
            json::members(part).any(|(name, value)| !is_name(name) && is_said(value))
        }
    }
}

/// Members, at any depth, that are text or a piece of it.
const TEXTS: [&[u8]; 11] = [
    b"content",
    b"text",
    b"thinking",
    b"reasoning",
    b"summary",
    b"refusal",
    b"transcript",
    b"value",
    b"name",
    b"arguments",
    b"input",
];

/// Members that tell what the others are.
const LABELS: [&[u8]; 5] = [b"id", b"index", b"type", b"object", b"format"];

/// What pictures and the like count for at most, in bytes: about as many tokens as one has in a prompt.
const MEDIA: usize = 8 << 10;

/// How deep texts are looked for.
const MAX_NESTED: usize = 8;

/// Each text of what a member says, as JSON, and how many bytes it counts for.
fn each_text<'a>(name: &[u8], raw: &'a [u8], levels: usize, note: &mut impl FnMut(&'a [u8], usize)) {
    match raw.first() {
        // All that a message has beside its parts is text, whatever it is called.
        Some(b'"') if levels == MAX_NESTED || TEXTS.contains(&name) => note(raw, raw.len() - 2),
        Some(b'"') if !LABELS.contains(&name) => note(raw, (raw.len() - 2).min(MEDIA)),
        // They may be JSON itself, and no string of it.
        Some(b'{' | b'[') if levels == 0 || matches!(name, b"arguments" | b"input") => note(raw, raw.len()),
        Some(b'[') => json::items(raw).for_each(|item| each_text(name, item, levels - 1, note)),
        Some(b'{') => json::members(raw)
            .for_each(|(name, value)| each_text(&name[1..name.len() - 1], value, levels - 1, note)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(delta: &str) -> Facts {
        Facts::read(format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn content_is_anything_that_says_something() {
        for said in [
            r#"{"content":"a"}"#,
            r#"{"content":[{"type":"text","text":"a"}]}"#,
            r#"{"content":[{"type":"image_url","image_url":{"url":"data:"}}]}"#,
            r#"{"content":[{"type":"image_url","text":null,"image_url":{"url":"data:"}}]}"#,
            r#"{"content":[{"type":"text","text":null},{"type":"text","text":{"value":"a"}}]}"#,
            r#"{"content":[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]}"#,
            r#"{"content":["a"]}"#,
            r#"{"reasoning_content":"hm"}"#,
            r#"{"reasoning":"hm"}"#,
            r#"{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#,
            r#"{"function_call":{"name":"f"}}"#,
            r#"{"refusal":"no"}"#,
            r#"{"audio":{"id":"x"}}"#,
            r#"{"images":[{"type":"image_url"}]}"#,
            r#"{"hologram":{"x":1}}"#,
        ] {
            assert!(delta(said).has_content, "{said}");
        }
        for nothing in [
            "{}",
            "null",
            r#"{"role":"assistant","content":""}"#,
            r#"{"content":" \n"}"#,
            r#"{"content":null,"tool_calls":[],"refusal":null,"annotations":[]}"#,
            r#"{"content":[{"type":"text","text":" "}]}"#,
            r#"{"content":[{"type":"text","text":null}]}"#,
            r#"{"content":[{"type":"text"},{"id":"x","type":"text","annotations":[]}]}"#,
            r#"{"content":[{"text":"a","text":" "}]}"#,
            r#"{"content":[" ",null,{}]}"#,
            r#"{"reasoning_content":""}"#,
            r#"{"hologram":{}}"#,
            r#"{"token_id":128009,"content":"","done":true}"#,
            r#"{"content":[{"type":"text","done":true}]}"#,
            "[]",
            r#""a""#,
        ] {
            assert!(!delta(nothing).has_content, "{nothing}");
        }
    }

    #[test]
    fn every_member_is_optional_and_odd_ones_do_no_harm() {
        let facts =
            Facts::read(br#"{"id":7,"created":1.5e12,"model":null,"choices":[],"usage":null}"#).unwrap();
        assert!(facts.lacks.id && facts.lacks.model && !facts.lacks.created);
        assert!(Facts::read(b"{}").is_ok());
        assert!(Facts::read(br#"{"choices":null}"#).is_ok());
        assert!(Facts::read(br#"{"choices":7}"#).is_err());
        assert!(Facts::read(b"[]").is_err());
        assert!(Facts::read(b"{} {}").is_err());
    }

    #[test]
    fn each_text_counts_once_and_whole_and_nothing_around_it() {
        for (said, bytes) in [
            (r#"{"content":"a\nb"}"#, 4),
            (r#"{"content":"same","refusal":"same"}"#, 4),
            (r#"{"content":"same","refusal":"other"}"#, 9),
            (r#"{"content":[{"text":"same"},{"text":"same"}]}"#, 8),
            (r#"{"reasoning":"a","content":"","reasoning_details":[{"text":"a","format":"unknown"}]}"#, 1),
            (r#"{"reasoning_details":[{"text":"a","index":0}],"reasoning":"a"}"#, 1),
            (
                r#"{"tool_calls":[{"id":"c","function":{"name":"f","arguments":"{}"}},{"function":{"name":"f"}}]}"#,
                4,
            ),
            (r#"{"tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]}"#, 8),
            (r#"{"function_call":{"name":"f","arguments":""}}"#, 1),
            (r#"{"audio":{"id":"a","transcript":"hi","expires_at":1}}"#, 2),
            (r#"{"hologram":[[[[[[[[["deep"]]]]]]]]]}"#, 8),
        ] {
            assert_eq!(delta(said).text_bytes, bytes, "{said}");
        }
        let long = "x".repeat(1 << 20);
        for (said, bytes) in [
            (format!(r#"{{"content":"{long}"}}"#), 1 << 20),
            (format!(r#"{{"thoughts_of_some":"{long}"}}"#), 1 << 20),
            (format!(r#"{{"content":[{{"text":"{long}"}}]}}"#), 1 << 20),
            (format!(r#"{{"tool_calls":[{{"function":{{"arguments":"{long}"}}}}]}}"#), 1 << 20),
            (format!(r#"{{"images":[{{"image_url":{{"url":"{long}"}}}}]}}"#), 8 << 10),
            (format!(r#"{{"audio":{{"data":"{long}","transcript":"hi"}}}}"#), (8 << 10) + 2),
        ] {
            assert_eq!(delta(&said).text_bytes, bytes, "{}", &said[..40]);
        }
        let two = r#"{"choices":[{"index":0,"text":"a","message":{"content":"a"}},{"index":1,"message":{"content":"a"}}]}"#;
        assert_eq!(Facts::read(two.as_bytes()).unwrap().text_bytes, 2);
    }

    #[test]
    fn usage_of_a_choice_counts_where_the_answer_has_none() {
        for (chunk, tokens) in [
            (
                r#"{"choices":[{"index":0,"delta":{},"usage":{"prompt_tokens":19,"completion_tokens":13}}]}"#,
                19,
            ),
            (r#"{"usage":null,"choices":[{"usage":{"prompt_tokens":19}}]}"#, 19),
            (r#"{"usage":{"prompt_tokens":7},"choices":[{"usage":{"prompt_tokens":19}}]}"#, 7),
            (r#"{"choices":[{"usage":{"prompt_tokens":19}}],"usage":{"prompt_tokens":7}}"#, 7),
            (r#"{"choices":[{"usage":{"prompt_tokens":19}}],"usage":null}"#, 19),
        ] {
            let facts = Facts::read(chunk.as_bytes()).unwrap();
            assert_eq!(facts.usage().and_then(|usage| usage.input_tokens), Some(tokens), "{chunk}");
        }
    }

    #[test]
    fn finishes_keep_their_choice() {
        let facts = Facts::read(
            br#"{"choices":[{"index":1,"finish_reason":"stop"},{"index":0,"finish_reason":"abort"},{"index":2,"finish_reason":null}]}"#,
        )
        .unwrap();
        let expected = [(1, "stop"), (0, "abort")];
        assert_eq!(
            facts.finishes().iter().map(|f| (f.index, f.reason.as_str())).collect::<Vec<_>>(),
            expected
        );
        assert_eq!(facts.choices, 3);
    }

    #[test]
    fn each_reason_to_finish_is_known_in_the_words_of_many() {
        use FinishReason::{ContentFilter, Length, Stop, ToolCalls};
        for (reason, known) in [
            ("stop", Stop),
            ("eos", Stop),
            ("eos_token", Stop),
            ("stop_sequence", Stop),
            ("end_turn", Stop),
            ("length", Length),
            ("model_length", Length),
            ("max_tokens", Length),
            ("model_context_window_exceeded", Length),
            ("tool_calls", ToolCalls),
            ("function_call", ToolCalls),
            ("tool_use", ToolCalls),
            ("content_filter", ContentFilter),
            ("content_filter: PROHIBITED_CONTENT", ContentFilter),
            ("content_filtered", ContentFilter),
            ("sensitive", ContentFilter),
            ("refusal", ContentFilter),
        ] {
            assert_eq!(FinishReason::from(reason), known, "{reason}");
        }
        for reason in ["", "abort", "function_call_filter: MALFORMED_FUNCTION_CALL"] {
            assert_eq!(FinishReason::from(reason), FinishReason::Other(reason.into()));
        }
    }

    #[test]
    fn errors_inside_of_answers_are_seen() {
        assert!(Facts::read(br#"{"error":{"message":"x"}}"#).unwrap().has_error);
        assert!(Facts::read(br#"{"object":"error","message":"x"}"#).unwrap().has_error);
        assert!(!Facts::read(br#"{"object":"list"}"#).unwrap().has_error);
        assert!(!Facts::read(br#"{"error":null,"choices":[]}"#).unwrap().has_error);
    }

    #[test]
    fn the_text_is_that_of_the_choice_of_index_0() {
        for (data, text) in [
            (r#"{"choices":[{"index":1,"m":{"content":"b"}},{"index":0,"m":{"content":"a"}}]}"#, "a"),
            (r#"{"choices":[{"index":1,"m":{"content":"b"}}]}"#, ""),
            (r#"{"choices":[{"m":{"content":"a"}},{"m":{"content":"b"}}]}"#, "a"),
            (r#"{"choices":[{"index":null,"m":{"content":"a"}}]}"#, "a"),
            (
                r#"{"choices":[{"m":{"content":[{"type":"text","text":"a"},{"type":"image_url"},{"text":"b"}]}}]}"#,
                "ab",
            ),
            (r#"{"choices":[{"m":{"content":null}}]}"#, ""),
            (r#"{"choices":[]}"#, ""),
            ("", ""),
        ] {
            assert_eq!(first_content(data.as_bytes(), "m"), text, "{data}");
        }
    }
}
