use super::{ChoiceFinish, Facts, FinishReason, TokenUsage, build, facts};
use crate::price::ServiceTier;
use bytes::Bytes;
use serde::Deserialize;
use std::{borrow::Cow, fmt};

/// One item of a streamed answer: the provider's JSON bytes, and the facts that layers need.
///
/// Every good stream ends with exactly one terminal chunk, [`is_final`](Self::is_final), which is its end:
/// a consumer may stop there and never see `None`.
#[derive(Clone)]
pub struct StreamChunk {
    data: Bytes,
    facts: Facts,
    is_final: bool,
}

impl StreamChunk {
    /// Reads an OpenAI-style `chat.completion.chunk` object. Every member is optional.
    ///
    /// # Errors
    ///
    /// What is not one JSON object, or has choices that are no array of objects.
    pub fn parse(data: impl Into<Bytes>) -> Result<Self, serde_json::Error> {
        let data = data.into();
        Ok(Self { facts: Facts::read(&data)?, data, is_final: false })
    }

    /// A piece of text, for tests and leaves of your own.
    pub fn text(text: impl AsRef<str>) -> Self {
        build::delta(text.as_ref())
    }

    /// The chunk that says who speaks, for tests and leaves of your own.
    pub fn role() -> Self {
        build::role()
    }

    /// The chunk that says why the answer is over, for tests and leaves of your own.
    pub fn finish(reason: &FinishReason) -> Self {
        build::finish(reason)
    }

    /// The chunk that says what was used up, for tests and leaves of your own.
    pub fn usage_only(usage: TokenUsage) -> Self {
        build::usage(usage)
    }

    /// The terminal chunk, which carries nothing else.
    pub fn end() -> Self {
        Self { data: Bytes::new(), facts: Facts::default(), is_final: true }
    }

    /// Makes this the terminal chunk, for leaves whose last chunk carries content or usage.
    #[must_use]
    pub const fn into_final(mut self) -> Self {
        self.is_final = true;
        self
    }

    /// Whether the stream is over with this chunk.
    pub const fn is_final(&self) -> bool {
        self.is_final
    }

    /// The JSON, as the provider sent it; empty for a terminal chunk that carries nothing else.
    pub const fn data(&self) -> &Bytes {
        &self.data
    }

    /// The JSON as a `T` of yours, such as a client library's type.
    ///
    /// # Errors
    ///
    /// What serde says.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.data)
    }

    /// The text that it adds to the first choice; empty if it adds none. What stands alone of a surrogate pair is U+FFFD.
    pub fn content(&self) -> Cow<'_, str> {
        facts::first_content(&self.data, "delta")
    }

    /// Whether it says anything: text that is not blank, reasoning, a tool call, a refusal, audio, an image.
    pub const fn has_content(&self) -> bool {
        self.facts.has_content
    }

    /// Why choices ended, if any did with this chunk.
    pub fn finish_reasons(&self) -> &[ChoiceFinish] {
        self.facts.finishes()
    }

    /// What the answer used up so far, if the provider says so here.
    pub fn usage(&self) -> Option<&TokenUsage> {
        self.facts.usage()
    }

    /// Whether it carries usage and nothing else to be told: no choice, and no member but those of every chunk.
    pub fn is_usage_only(&self) -> bool {
        self.facts.is_usage_only()
    }

    /// The id that the provider gave the answer.
    pub fn id(&self) -> Option<Cow<'_, str>> {
        facts::text(&self.data, self.facts.id)
    }

    /// The model as the provider names it, often with a date.
    pub fn model(&self) -> Option<Cow<'_, str>> {
        facts::text(&self.data, self.facts.model)
    }

    /// The tier in which the provider says that it served the call.
    pub const fn service_tier(&self) -> Option<ServiceTier> {
        self.facts.service_tier
    }

    /// Of JSON that was read before, so that it need not be read again; `data` must be the same bytes.
    pub(crate) const fn of_parts(data: Bytes, facts: Facts, is_final: bool) -> Self {
        Self { data, facts, is_final }
    }

    /// With bytes of its own: what a provider sends may be a small part of a large buffer.
    pub(crate) fn detached(&self) -> Self {
        Self { data: Bytes::copy_from_slice(&self.data), facts: self.facts.clone(), is_final: self.is_final }
    }

    pub(crate) const fn facts(&self) -> &Facts {
        &self.facts
    }
}

impl fmt::Debug for StreamChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamChunk")
            .field("bytes", &self.data.len())
            .field("has_content", &self.facts.has_content)
            .field("is_final", &self.is_final)
            .finish_non_exhaustive()
    }
}
