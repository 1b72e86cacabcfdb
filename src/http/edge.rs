use crate::{
    Completion, LlmRequest, ModelName, StreamChunk,
    answer::Calls,
    clock::{Clock, SystemClock},
    http::anthropic::ToolNames,
    json,
};
use bytes::Bytes;
use std::{fmt, ops::Range};

/// What the edge must know of a request after the stack has taken it.
#[derive(Clone)]
pub struct Asked {
    streaming: bool,
    usage: bool,
    choices: u64,
    request_id: Option<Box<str>>,
    tool_names: ToolNames,
}

/// Adds what clients rely on and providers forget; one for each answer.
///
/// Absent members, those that are null, and empty texts are replaced. Nothing else is overwritten but a number that a provider gives
/// to several tool calls of a stream, which clients would take for one, an id that differs from the one before, which they would
/// take for that of another answer, and a delta or message that is no object, which becomes one; every other byte stays as it came, and an answer or chunk that lacks nothing is passed on
/// as the same bytes.
///
/// * Whole answers: `id`, `object`, `created`, `model`, and in each choice `index`, `message.role`,
///   `finish_reason`.
/// * Chunks: `id`, `object`, `created`, `model`, `choices`, the `index` of choices and of tool calls, and
///   `role` in each choice's first delta. What the first chunks said of id and model is kept for the rest. Before there are choices
///   an id may be empty, as it is at Azure, and the one that follows is that of the answer.
///
/// ```
/// use llm_layers::{StreamChunk, http::FillIn};
///
/// # fn main() -> Result<(), serde_json::Error> {
/// let mut fill = FillIn::new("openai/gpt-4o-mini").with_id("chatcmpl-1").with_created(1);
/// let chunk = StreamChunk::parse(r#"{"choices":[{"delta":{"content":"Hi"}}]}"#)?;
/// assert_eq!(
///     fill.chunk(&chunk),
///     concat!(
///         r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"openai/gpt-4o-mini","#,
///         r#""choices":[{"index":0,"delta":{"role":"assistant","content":"Hi"}}]}"#
///     )
/// );
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FillIn {
    id: Option<Box<str>>,
    model: ModelName,
    created: u64,
    /// What earlier chunks said of themselves, or were made to say.
    said: Said,
    /// How many choices will want a role.
    choices: u64,
    /// Those that have theirs, a bit each.
    roles: u128,
    /// By their choices.
    calls: Vec<(u64, Calls)>,
}

#[derive(Debug, Default)]
struct Said {
    id: Option<Box<str>>,
    model: Option<Box<str>>,
}

/// Beyond it, choices are not told apart.
const MAX_CHOICES: u64 = 128;

// ===== impl Asked =====

impl Asked {
    /// What `request` asks for.
    pub fn by(request: &LlmRequest) -> Self {
        Self {
            streaming: request.body.is_streaming(),
            usage: request.body.wants_stream_usage(),
            choices: request.body.n().unwrap_or(1),
            request_id: request.context.request_id().map(Into::into),
            tool_names: ToolNames::of(request),
        }
    }

    /// The id that the host gave the request.
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    /// What the caller calls tools that have other names in the request's body.
    pub const fn tool_names(&self) -> &ToolNames {
        &self.tool_names
    }

    /// Whether the answer is to be a stream.
    pub const fn is_streaming(&self) -> bool {
        self.streaming
    }

    /// Whether the usage is to come at the end of a stream.
    pub const fn wants_stream_usage(&self) -> bool {
        self.usage
    }

    /// How many choices there are to be.
    pub const fn choices(&self) -> u64 {
        self.choices
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("streaming", &self.streaming)
            .field("usage", &self.usage)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

// ===== impl FillIn =====

impl FillIn {
    /// For an answer of `model`, with an id of its own if it needs one, made now.
    pub fn new(model: impl Into<ModelName>) -> Self {
        let created =
            SystemClock.now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self {
            id: None,
            model: model.into(),
            created,
            said: Said::default(),
            choices: 1,
            roles: 0,
            calls: Vec::new(),
        }
    }

    /// Sets the id for answers that have none.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<Box<str>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the Unix time for answers that have none.
    #[must_use]
    pub const fn with_created(mut self, seconds: u64) -> Self {
        self.created = seconds;
        self
    }

    /// Says how many choices were asked for; 1 unless told.
    #[must_use]
    pub const fn with_choices(mut self, choices: u64) -> Self {
        self.choices = choices;
        self
    }

    /// The JSON of a whole answer.
    pub fn completion(&mut self, completion: &Completion) -> Bytes {
        let lacks = completion.facts().lacks;
        let envelope = lacks.id || lacks.object || lacks.created || lacks.model || lacks.choices;
        if !(envelope || lacks.index || lacks.role || lacks.message || lacks.finish) {
            return completion.data().clone();
        }
        let mut edits = Edits::new(completion.data());
        if envelope {
            self.envelope(&mut edits, "chat.completion", lacks.id);
        }
        for (at, choice) in edits.choices().enumerate() {
            let index = at.to_string();
            edits.require(choice, &[("index", index.as_bytes()), ("finish_reason", finish_reason(choice))]);
            match json::member(choice, "message") {
                Some(message @ [b'{', ..]) => edits.require(message, &[("role", br#""assistant""#)]),
                None | Some(b"null") => {}
                Some(odd) => edits.replace(odd, br#"{"role":"assistant","content":null}"#.to_vec()),
            }
        }
        edits.apply(completion.data())
    }

    /// The JSON of the next chunk; nothing for a terminal one that carries nothing else.
    pub fn chunk(&mut self, chunk: &StreamChunk) -> Bytes {
        if chunk.data().is_empty() {
            return Bytes::new();
        }
        let facts = chunk.facts();
        let lacks = facts.lacks;
        let envelope = lacks.id || lacks.object || lacks.created || lacks.model || lacks.choices;
        let id = chunk.id();
        let is_other = match (&self.said.id, &id) {
            (Some(said), Some(id)) => **said != **id,
            _ => false,
        };
        let roles = u64::from(self.roles.count_ones()) < self.choices.min(MAX_CHOICES) && facts.choices > 0;
        if self.said.id.is_none() {
            self.said.id = id.map(Into::into);
        }
        if self.said.model.is_none() {
            self.said.model = chunk.model().map(Into::into);
        }
        let deltas = lacks.index || lacks.message || roles || facts.has_calls;
        if !(envelope || is_other || deltas) {
            return chunk.data().clone();
        }
        let mut edits = Edits::new(chunk.data());
        if envelope {
            // As Azure begins its streams: the id that follows is the answer's.
            let is_early = facts.choices == 0 && self.said.id.is_none();
            let is_empty = || json::member(edits.source, "id") == Some(br#""""#);
            let lacks_id = lacks.id && !(is_early && is_empty());
            self.envelope(&mut edits, "chat.completion.chunk", lacks_id);
        }
        if is_other && let (Some(said), Some(id)) = (&self.said.id, json::member(edits.source, "id")) {
            edits.replace(id, json::quoted(said));
        }
        if deltas {
            for (at, choice) in edits.choices().enumerate() {
                self.delta(&mut edits, at as u64, choice);
            }
        }
        edits.apply(chunk.data())
    }

    fn envelope(&mut self, edits: &mut Edits<'_>, object: &str, lacks_id: bool) {
        let id = lacks_id.then(|| {
            let own = || format!("chatcmpl-{:032x}", fastrand::u128(..)).into();
            json::quoted(self.said.id.get_or_insert_with(|| self.id.take().unwrap_or_else(own)))
        });
        let model = json::quoted(self.said.model.as_deref().unwrap_or(&self.model));
        let (object, created) = (json::quoted(object), self.created.to_string());
        let wanted: [(&str, &[u8]); 5] = [
            ("id", id.as_deref().unwrap_or_default()),
            ("object", &object),
            ("created", created.as_bytes()),
            ("model", &model),
            ("choices", b"[]"),
        ];
        edits.require(edits.source, if lacks_id { &wanted } else { &wanted[1..] });
    }

    fn delta(&mut self, edits: &mut Edits<'_>, at: u64, choice: &[u8]) {
        let own = at.to_string();
        let mut wanted: Vec<(&str, &[u8])> = vec![("index", own.as_bytes())];
        let index = number(json::member(choice, "index")).unwrap_or(at);
        let said = json::member(choice, "delta").filter(|said| *said != b"null");
        let (delta, odd) = (said.filter(|said| said[0] == b'{'), said.filter(|said| said[0] != b'{'));
        let is_first = index < MAX_CHOICES && self.roles & (1 << index) == 0;
        if is_first {
            self.roles |= 1 << index;
        }
        let made: &[u8] = if is_first { br#"{"role":"assistant"}"# } else { b"{}" };
        match (delta, odd) {
            (Some(delta), _) if is_first => edits.require(delta, &[("role", br#""assistant""#)]),
            (_, Some(odd)) => edits.replace(odd, made.to_vec()),
            (None, None) if is_first => wanted.push(("delta", made)),
            _ => {}
        }
        edits.require(choice, &wanted);
        for (at, call) in json::items(delta.map_or(&[], tool_calls)).enumerate() {
            let number = self.calls(index).number(at, call);
            match json::member(call, "index") {
                Some(said) if self::number(Some(said)).is_some_and(|said| said != number) => {
                    edits.replace(said, number.to_string().into_bytes());
                }
                _ => edits.require(call, &[("index", number.to_string().as_bytes())]),
            }
        }
    }

    fn calls(&mut self, choice: u64) -> &mut Calls {
        let choice = choice.min(MAX_CHOICES);
        let at = self.calls.iter().position(|(known, _)| *known == choice).unwrap_or_else(|| {
            self.calls.push((choice, Calls::default()));
            self.calls.len() - 1
        });
        &mut self.calls[at].1
    }
}

/// The tool calls of a message or delta, as a JSON array.
pub(super) fn tool_calls(message: &[u8]) -> &[u8] {
    json::member(message, "tool_calls").unwrap_or_default()
}

/// Why a choice of a whole answer ended, as JSON, also where its provider does not say.
pub(super) fn finish_reason(choice: &[u8]) -> &[u8] {
    match json::member(choice, "finish_reason") {
        Some(reason) if !json::is_nothing(reason) => reason,
        _ if json::member(choice, "message").is_some_and(|m| !json::is_nothing(tool_calls(m))) => {
            br#""tool_calls""#
        }
        _ => br#""stop""#,
    }
}

fn number(raw: Option<&[u8]>) -> Option<u64> {
    std::str::from_utf8(raw?).ok()?.parse().ok()
}

// ===== splicing =====

/// Changes to one JSON document, each a range of it and what stands there afterwards.
pub(super) struct Edits<'a> {
    source: &'a [u8],
    edits: Vec<(Range<usize>, Vec<u8>)>,
}

impl<'a> Edits<'a> {
    pub(super) fn new(source: &'a [u8]) -> Self {
        Self { source: source.trim_ascii(), edits: Vec::new() }
    }

    pub(super) fn choices(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        json::items(json::member(self.source, "choices").unwrap_or_default())
    }

    /// Sees to it that `object`, a slice of the source, has these members; once for each object. What a provider sends in the
    /// place of one stays as it came, but for a text that is empty.
    pub(super) fn require(&mut self, object: &[u8], members: &[(&str, &[u8])]) {
        if object.first() != Some(&b'{') {
            return;
        }
        let start = self.offset(object);
        let mut missing = Vec::new();
        for (name, value) in members {
            match json::member(object, name) {
                None => {
                    missing.extend_from_slice(format!("\"{name}\":").as_bytes());
                    missing.extend_from_slice(value);
                    missing.push(b',');
                }
                Some(present @ b"null") => self.replace(present, value.to_vec()),
                Some(present @ [b'"', ..]) if json::is_blank(present) => {
                    self.replace(present, value.to_vec())
                }
                Some(_) => {}
            }
        }
        if json::members(object).next().is_none() {
            missing.pop();
        }
        if !missing.is_empty() {
            self.edits.push((start + 1..start + 1, missing));
        }
    }

    /// Puts `value` in the place of `present`, a slice of the source.
    fn replace(&mut self, present: &[u8], value: Vec<u8>) {
        let start = self.offset(present);
        self.edits.push((start..start + present.len(), value));
    }

    fn offset(&self, part: &[u8]) -> usize {
        part.as_ptr() as usize - self.source.as_ptr() as usize
    }

    /// The document with all changes; `whole` itself if there are none.
    pub(super) fn apply(mut self, whole: &Bytes) -> Bytes {
        if self.edits.is_empty() {
            return whole.clone();
        }
        self.edits.sort_by_key(|(range, _)| range.start);
        let added: usize = self.edits.iter().map(|(_, new)| new.len()).sum();
        let mut out = Vec::with_capacity(self.source.len() + added);
        let mut at = 0;
        for (range, new) in &self.edits {
            out.extend_from_slice(&self.source[at..range.start]);
            out.extend_from_slice(new);
            at = range.end;
        }
        out.extend_from_slice(&self.source[at..]);
        out.into()
    }
}
