use super::{ChatBodyBuilder, MessageRef};
use crate::{
    Dispensable, Error, InvalidReason, ModelName,
    http::anthropic::ToolNames,
    json::{self, Walk},
    price::{Media, Searches, Terms, Tiers},
};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::{
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// An OpenAI-style chat request: its original JSON bytes, and an index of its top-level members.
///
/// Parsed once, on the way in. Members that nobody here knows reach the provider byte for byte, numbers in
/// the spelling they came in. Views are lazy and borrowed. A change is an overlay over the same bytes, so
/// that nothing ever serializes a prompt again. Cloning costs one reference count.
///
/// ```
/// use llm_layers::ChatBody;
///
/// # fn main() -> Result<(), llm_layers::Error> {
/// let body = ChatBody::parse(r#"{"messages":[{"role":"user","content":"Hi"}],"top_k":3.0,"temperature":1}"#)?;
/// let cooler = body.with("temperature", 0.2)?;
/// assert_eq!(
///     cooler.to_json("gpt-4o-mini"),
///     r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hi"}],"top_k":3.0,"temperature":0.2}"#
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ChatBody(Arc<Inner>);

struct Inner {
    source: Bytes,
    members: Vec<Member>,
    streaming: bool,
    input_bytes: usize,
    attached: Attached,
    terms: Terms,
    further_models: Option<&'static str>,
    /// Whether the source is all of it, as it came.
    is_source: bool,
    /// What is known of one that came in another dialect, if that is anything.
    translated: Option<Arc<Translated>>,
    digest: OnceLock<KeyedDigest>,
}

/// Parts of messages that are not text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attached {
    /// How many.
    pub parts: usize,
    /// How many of them are images.
    pub images: usize,
    /// The bytes of the images among them, or of what says where they are: no text that anybody reads.
    pub image_bytes: usize,
}

/// What an edge knows of a body that it has put into other words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    pub(crate) dispensable: Dispensable,
    /// What its caller calls tools that have other names in the body.
    pub(crate) tool_names: ToolNames,
}

/// A digest, and the number of the key that it was made with.
pub(crate) type KeyedDigest = (u64, [u8; 32]);

#[derive(Clone)]
struct Member {
    /// With its quotes, as it came.
    raw_name: Text,
    /// Only where the raw name has escapes.
    unescaped: Option<Box<str>>,
    value: Text,
}

#[derive(Clone)]
enum Text {
    Source(Range<u32>),
    Own(Bytes),
}

/// How much a request's body may ask of whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BodyLimits {
    /// Bytes of JSON; 32 MiB unless told.
    pub max_bytes: usize,
    /// Arrays and objects within each other; 128 unless told.
    pub max_depth: usize,
    /// Top-level members; 256 unless told.
    pub max_members: usize,
    /// Messages; 10,000 unless told.
    pub max_messages: usize,
    /// Tools on offer, and functions; 512 unless told.
    pub max_tools: usize,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { max_bytes: 32 << 20, max_depth: 128, max_members: 256, max_messages: 10_000, max_tools: 512 }
    }
}

impl BodyLimits {
    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub const fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets [`max_depth`](Self::max_depth).
    #[must_use]
    pub const fn with_max_depth(mut self, depth: usize) -> Self {
        self.max_depth = depth;
        self
    }

    /// Sets [`max_members`](Self::max_members).
    #[must_use]
    pub const fn with_max_members(mut self, members: usize) -> Self {
        self.max_members = members;
        self
    }

    /// Sets [`max_messages`](Self::max_messages).
    #[must_use]
    pub const fn with_max_messages(mut self, messages: usize) -> Self {
        self.max_messages = messages;
        self
    }

    /// Sets [`max_tools`](Self::max_tools).
    #[must_use]
    pub const fn with_max_tools(mut self, tools: usize) -> Self {
        self.max_tools = tools;
        self
    }
}

// ===== impl ChatBody =====

impl ChatBody {
    /// Builds a request without writing JSON.
    pub fn builder() -> ChatBodyBuilder {
        ChatBodyBuilder::default()
    }

    /// Reads JSON within the default [`BodyLimits`].
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) that names the member: not JSON, not an object,
    /// a member twice (`"mod\u0065l"` is `model`), messages that are missing, empty or not messages, a
    /// known member of the wrong type, or more of anything than the limits allow.
    pub fn parse(json: impl Into<Bytes>) -> Result<Self, Error> {
        Self::parse_within(json, &BodyLimits::default())
    }

    /// Reads JSON within `limits`.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn parse_within(json: impl Into<Bytes>, limits: &BodyLimits) -> Result<Self, Error> {
        Self::parse_translated(json.into(), limits, Translated::default())
    }

    /// Reads what an edge has put into these words.
    pub(crate) fn parse_translated(
        source: Bytes,
        limits: &BodyLimits,
        translated: Translated,
    ) -> Result<Self, Error> {
        let max_bytes = limits.max_bytes.min(u32::MAX as usize);
        if source.len() > max_bytes {
            return Err(Error::invalid_body(InvalidReason::TooLarge { limit: max_bytes }));
        }
        let members = index(&source, limits)?;
        let attached = check(&source, &members, limits)?;
        let translated = (translated != Translated::default()).then(|| Arc::new(translated));
        Ok(Self::new(source, members, attached, true, translated))
    }

    fn new(
        source: Bytes,
        members: Vec<Member>,
        attached: Attached,
        is_source: bool,
        translated: Option<Arc<Translated>>,
    ) -> Self {
        let (mut streaming, mut input_bytes, mut modalities) = (false, 0, None);
        let (mut tiers, mut searches) = (Tiers::STANDARD, Searches::None);
        let mut further_models = None;
        for member in &members {
            let value = member.value.get(&source);
            match member.name_bytes(&source) {
                b"models" if names_any(value) => further_models = Some("models"),
                b"fallbacks" if names_any(value) => further_models = Some("fallbacks"),
                b"stream" => streaming = value == b"true",
                b"service_tier" => tiers = Tiers::named(value),
                b"modalities" => modalities = Some(value),
                b"web_search_options" => searches = Searches::by_options(value).or(searches),
                b"tools" => {
                    searches = searches.or(Searches::by_tools(value));
                    input_bytes += value.len();
                }
                b"messages" | b"functions" | b"response_format" => input_bytes += value.len(),
                _ => {}
            }
        }
        let terms = Terms { tiers, media: Media::of(attached, modalities), searches };
        let digest = OnceLock::new();
        Self(Arc::new(Inner {
            source,
            members,
            streaming,
            input_bytes,
            attached,
            terms,
            further_models,
            is_source,
            translated,
            digest,
        }))
    }

    // ----- views

    /// The JSON of one top-level member, as it came.
    pub fn raw(&self, name: &str) -> Option<&[u8]> {
        let source = &self.0.source;
        self.0.members.iter().find(|m| m.is(source, name)).map(|m| m.value.get(source))
    }

    /// One top-level member as a `T`; `None` if it is absent or null.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) that names the member if it is not a `T`.
    pub fn get<'a, T: Deserialize<'a>>(&'a self, name: &str) -> Result<Option<T>, Error> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_slice(raw)
            .map_err(|_| Error::invalid(name, InvalidReason::Mistyped { expected: "of another type" }))
    }

    /// The names of the top-level members, unescaped, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.members.iter().map(|m| m.name(&self.0.source))
    }

    /// The model that the body names, if it does. What a call is for is [`LlmRequest::model`](crate::LlmRequest::model).
    pub fn model(&self) -> Option<ModelName> {
        let name = json::string(self.raw("model")?)?;
        Some(ModelName::from(&*name))
    }

    /// Whether the caller asks for a stream.
    pub fn is_streaming(&self) -> bool {
        self.0.streaming
    }

    /// Whether the caller asks for the usage at the end of a stream.
    pub fn wants_stream_usage(&self) -> bool {
        self.raw("stream_options").and_then(|o| json::member(o, "include_usage")) == Some(b"true")
    }

    /// The messages, each borrowed.
    pub fn messages(&self) -> impl Iterator<Item = MessageRef<'_>> {
        json::items(self.raw("messages").unwrap_or_default()).map(MessageRef::new)
    }

    /// The tools on offer, each as JSON.
    pub fn tools(&self) -> impl Iterator<Item = &[u8]> {
        json::items(self.raw("tools").unwrap_or_default())
    }

    /// The JSON of the format that the answer must have.
    pub fn response_format(&self) -> Option<&[u8]> {
        self.raw("response_format").filter(|raw| *raw != b"null")
    }

    /// The sampling temperature, if set.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn temperature(&self) -> Result<Option<f64>, Error> {
        self.get("temperature")
    }

    /// The bound on the answer's tokens, by its new name or its old one.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn max_output_tokens(&self) -> Result<Option<u64>, Error> {
        let [newer, older] = OUTPUT_MEMBERS;
        match self.get(newer)? {
            None => self.get(older),
            some => Ok(some),
        }
    }

    /// How many choices are asked for; 1 unless told.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn n(&self) -> Result<u64, Error> {
        Ok(self.get("n")?.unwrap_or(1))
    }

    /// The bytes of the members that carry prompt: an upper bound of its tokens for byte-level tokenizers,
    /// images and the like apart.
    pub fn input_bytes(&self) -> usize {
        self.0.input_bytes
    }

    /// What its price depends on.
    pub(crate) fn terms(&self) -> Terms {
        self.0.terms
    }

    /// The member by which the request names models that a provider may answer with in place of the one that it is asked
    /// for: `models` at OpenRouter, `fallbacks` at proxies of LiteLLM. Such a provider bills by the model that it took.
    pub fn further_models(&self) -> Option<&'static str> {
        self.0.further_models
    }

    /// The parts of messages that are not text.
    pub fn attached(&self) -> Attached {
        self.0.attached
    }

    /// The top-level members by their unescaped names, each value as it came.
    #[cfg(feature = "genai")]
    pub(crate) fn members(&self) -> impl ExactSizeIterator<Item = (&str, &[u8])> {
        let source = &self.0.source;
        self.0.members.iter().map(move |m| (m.name(source), m.value.get(source)))
    }

    /// As [`members`](Self::members), for what every call does: that names are text was checked when the body was read,
    /// and to check it again costs more than what is done with them.
    pub(crate) fn raw_members(&self) -> impl ExactSizeIterator<Item = (&[u8], &[u8])> {
        let source = &self.0.source;
        self.0.members.iter().map(move |m| (m.name_bytes(source), m.value.get(source)))
    }

    /// What an edge knows of it, if that is anything.
    pub(crate) fn translated(&self) -> Option<&Translated> {
        self.0.translated.as_deref()
    }

    /// Where a digest over the members is kept, so that further attempts need not hash again.
    pub(crate) fn digest(&self) -> &OnceLock<KeyedDigest> {
        &self.0.digest
    }

    // ----- changes

    /// Sets a top-level member in its place, or at the end; everything else keeps its bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) if `value` is no JSON, or not what this member takes.
    pub fn with<T: Serialize>(&self, name: &str, value: T) -> Result<Self, Error> {
        let invalid = || Error::invalid(name, InvalidReason::Mistyped { expected: "a JSON value" });
        let value = serde_json::to_vec(&value).map_err(|_| invalid())?;
        check_member(name.as_bytes(), &value)
            .map_err(|expected| Error::invalid(name, InvalidReason::Mistyped { expected }))?;
        let attached = if name == "messages" { check_messages(&value, usize::MAX)? } else { self.0.attached };
        let mut members = self.0.members.clone();
        let value = Text::Own(value.into());
        match members.iter_mut().find(|m| m.is(&self.0.source, name)) {
            Some(member) => member.value = value,
            None => {
                let raw_name = Text::Own(serde_json::to_vec(name).map_err(|_| invalid())?.into());
                members.push(Member { raw_name, unescaped: Some(name.into()), value });
            }
        }
        Ok(self.changed(members, attached))
    }

    /// Leaves a top-level member out.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let mut members = self.0.members.clone();
        members.retain(|m| !m.is(&self.0.source, name));
        let attached = if name == "messages" { Attached::default() } else { self.0.attached };
        self.changed(members, attached)
    }

    fn changed(&self, members: Vec<Member>, attached: Attached) -> Self {
        Self::new(self.0.source.clone(), members, attached, false, self.0.translated.clone())
    }

    // ----- on the wire

    /// Writes the request for `model`, every other member as it came.
    pub fn write_to(&self, model: &str, out: &mut BytesMut) {
        let source = &self.0.source;
        out.reserve(self.encoded_len() + 2 * model.len() + 16);
        let mut separator = b'{';
        if !self.0.members.iter().any(|m| m.is(source, "model")) {
            out.put_u8(separator);
            write_model(model, out);
            separator = b',';
        }
        for member in &self.0.members {
            out.put_u8(separator);
            separator = b',';
            if member.is(source, "model") {
                write_model(model, out);
            } else {
                out.put_slice(member.raw_name.get(source));
                out.put_u8(b':');
                out.put_slice(member.value.get(source));
            }
        }
        out.put_u8(b'}');
    }

    /// The request for `model` as JSON: without a copy, if that is what came.
    pub fn to_json(&self, model: &str) -> Bytes {
        if self.0.is_source && self.raw("model").is_some_and(|raw| is_spelt(raw, model)) {
            return self.0.source.clone();
        }
        let mut out = BytesMut::new();
        self.write_to(model, &mut out);
        out.freeze()
    }

    fn encoded_len(&self) -> usize {
        let members = self.0.members.iter();
        members.map(|m| m.raw_name.len() + m.value.len() + 2).sum::<usize>() + 2
    }
}

/// By which a request bounds its answer: the newer name, and the one that most servers know.
pub(crate) const OUTPUT_MEMBERS: [&str; 2] = ["max_completion_tokens", "max_tokens"];

/// llama.cpp's own name for it, which its server obeys before these; others pass it over.
pub(crate) const OVERRIDING_OUTPUT_MEMBER: &str = "n_predict";

/// Whether a member that may name models names any.
fn names_any(value: &[u8]) -> bool {
    value != b"null" && !(value.starts_with(b"[") && json::items(value).next().is_none())
}

impl fmt::Debug for ChatBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatBody").field("bytes", &self.encoded_len()).finish_non_exhaustive()
    }
}

/// Whether a JSON string is this text, without any escapes.
fn is_spelt(raw: &[u8], text: &str) -> bool {
    raw.get(1..raw.len().saturating_sub(1)) == Some(text.as_bytes()) && !text.contains('\\')
}

fn write_model(model: &str, out: &mut BytesMut) {
    out.put_slice(b"\"model\":");
    serde_json::to_writer(out.writer(), model).expect("a string is JSON, and memory takes it");
}

// ===== impl Member =====

impl Member {
    fn name<'a>(&'a self, source: &'a [u8]) -> &'a str {
        // Checked when it was indexed.
        std::str::from_utf8(self.name_bytes(source)).unwrap_or_default()
    }

    fn name_bytes<'a>(&'a self, source: &'a [u8]) -> &'a [u8] {
        match &self.unescaped {
            Some(name) => name.as_bytes(),
            None => {
                let raw = self.raw_name.get(source);
                &raw[1..raw.len() - 1]
            }
        }
    }

    fn is(&self, source: &[u8], name: &str) -> bool {
        self.name_bytes(source) == name.as_bytes()
    }
}

impl Text {
    fn get<'a>(&'a self, source: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Source(range) => &source[range.start as usize..range.end as usize],
            Self::Own(bytes) => bytes,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Source(range) => range.len(),
            Self::Own(bytes) => bytes.len(),
        }
    }
}

// ===== indexing =====

fn index(source: &Bytes, limits: &BodyLimits) -> Result<Vec<Member>, Error> {
    let (mut members, mut too_many) = (Vec::with_capacity(12), false);
    let indexed = Walk::new(source, limits.max_depth).and_then(|mut walk| {
        walk.object(|walk, name| {
            too_many = members.len() == limits.max_members;
            let unescaped = match name.is_plain {
                _ if too_many => return None,
                true => None,
                false => Some(json::string(name.raw)?.into_owned().into_boxed_str()),
            };
            let (raw_name, value) = (span(source, name.raw), span(source, walk.value()?));
            members.push(Member { raw_name, unescaped, value });
            Some(())
        })?;
        walk.end()
    });
    match indexed {
        Some(()) => Ok(members),
        None => Err(Error::invalid_body(fault(source, limits, too_many))),
    }
}

/// Why it is not taken.
fn fault(source: &[u8], limits: &BodyLimits, too_many: bool) -> InvalidReason {
    if json::too_deep(source, limits.max_depth) {
        return InvalidReason::TooDeep { limit: limits.max_depth };
    }
    if too_many {
        return InvalidReason::TooMany { limit: limits.max_members };
    }
    match serde_json::from_slice::<&RawValue>(source) {
        Err(error) => InvalidReason::Syntax { line: error.line(), column: error.column() },
        Ok(_) => InvalidReason::Mistyped { expected: "a JSON object" },
    }
}

/// Where `part`, a slice of `source`, lies in it.
fn span(source: &[u8], part: &[u8]) -> Text {
    let start = part.as_ptr() as usize - source.as_ptr() as usize;
    let offset = |at| u32::try_from(at).expect("a body is never longer than u32::MAX");
    Text::Source(offset(start)..offset(start + part.len()))
}

// ===== checks =====

fn check(source: &Bytes, members: &[Member], limits: &BodyLimits) -> Result<Attached, Error> {
    let mut messages = None;
    for (at, member) in members.iter().enumerate() {
        let (name, value) = (member.name_bytes(source), member.value.get(source));
        let invalid = |reason| Error::invalid(member.name(source), reason);
        if members[..at].iter().any(|m| m.name_bytes(source) == name) {
            return Err(invalid(InvalidReason::Duplicate));
        }
        if let Err(expected) = check_member(name, value) {
            return Err(invalid(InvalidReason::Mistyped { expected }));
        }
        match name {
            b"messages" => messages = Some(value),
            b"tools" | b"functions" if json::items(value).nth(limits.max_tools).is_some() => {
                return Err(invalid(InvalidReason::TooMany { limit: limits.max_tools }));
            }
            _ => {}
        }
    }
    let messages = messages.ok_or_else(|| Error::invalid("messages", InvalidReason::Missing))?;
    check_messages(messages, limits.max_messages)
}

/// With its quotes.
const MAX_MODEL: usize = 258;

/// What a known member must look like, if it does not. Its first byte tells its type; ranges are the provider's business.
fn check_member(name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    let first = value.first().copied().unwrap_or(b'n');
    let (right, expected) = match name {
        b"model" => (
            first == b'"' && value.len() <= MAX_MODEL && is_name(value),
            "the name of a model, at most 256 bytes",
        ),
        b"messages" => (first == b'[', "an array of messages"),
        _ if first == b'n' => return Ok(()),
        b"stream" | b"logprobs" | b"parallel_tool_calls" | b"store" => {
            (matches!(first, b't' | b'f'), "a boolean")
        }
        b"temperature" | b"top_p" | b"frequency_penalty" | b"presence_penalty" => {
            (matches!(first, b'-' | b'0'..=b'9'), "a number")
        }
        b"max_tokens" | b"max_completion_tokens" | b"n" | b"seed" | b"top_logprobs" => (
            value.iter().enumerate().all(|(at, b)| b.is_ascii_digit() || (at == 0 && *b == b'-')),
            "an integer",
        ),
        b"tools" | b"functions" => (first == b'[', "an array"),
        b"response_format" | b"stream_options" | b"metadata" | b"logit_bias" => (first == b'{', "an object"),
        b"tool_choice" | b"function_call" => (matches!(first, b'"' | b'{'), "a string or an object"),
        b"stop" => (matches!(first, b'"' | b'['), "a string or an array"),
        b"user" | b"reasoning_effort" | b"service_tier" => (first == b'"', "a string"),
        _ => return Ok(()),
    };
    if right { Ok(()) } else { Err(expected) }
}

fn is_name(value: &[u8]) -> bool {
    json::string(value).is_some_and(|name| !name.trim().is_empty() && !name.contains(char::is_control))
}

fn check_messages(messages: &[u8], limit: usize) -> Result<Attached, Error> {
    let (mut number, mut attached) = (0, Attached::default());
    let mut rest = json::items(messages);
    while let Some(first) = rest.peek() {
        if number == limit {
            return Err(Error::invalid("messages", InvalidReason::TooMany { limit }));
        }
        if first != b'{' {
            return Err(Error::invalid(
                format!("messages[{number}]"),
                InvalidReason::Mistyped { expected: "an object" },
            ));
        }
        let invalid =
            |member: &str, reason| Err(Error::invalid(format!("messages[{number}].{member}"), reason));
        let (mut role, mut content) = (None, None);
        // Where it ends is known when it has been read: prompts are long.
        let mut members = rest.members();
        for (name, value) in members.by_ref() {
            // Twice, one would be checked here and the other obeyed there.
            let (name, seen) = match name {
                name if json::is_name(name, "role") => ("role", &mut role),
                name if json::is_name(name, "content") => ("content", &mut content),
                // What the model said aloud before, by its id.
                name if json::is_name(name, "audio") && value.first() == Some(&b'{') => {
                    attached.parts += 1;
                    continue;
                }
                _ => continue,
            };
            if seen.replace(value).is_some() {
                return invalid(name, InvalidReason::Duplicate);
            }
        }
        rest.pass(&members);
        match role {
            Some([b'"', ..]) => {}
            None => return invalid("role", InvalidReason::Missing),
            Some(_) => return invalid("role", InvalidReason::Mistyped { expected: "a string" }),
        }
        if let Some(parts @ [b'[', ..]) = content {
            json::items(parts).for_each(|part| attached.add(part));
        }
        number += 1;
    }
    if number > 0 { Ok(attached) } else { Err(Error::invalid("messages", InvalidReason::Empty)) }
}

impl Attached {
    fn add(&mut self, part: &[u8]) {
        let kind = json::member(part, "type").and_then(json::string);
        if part.first() == Some(&b'{') && !matches!(kind.as_deref(), Some("text" | "refusal")) {
            self.parts += 1;
            self.images += usize::from(kind.as_deref().is_some_and(|kind| kind.contains("image")));
            self.image_bytes += json::member(part, "image_url").map_or(0, <[u8]>::len);
        }
    }
}
