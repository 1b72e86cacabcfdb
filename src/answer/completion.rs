use super::{ChoiceFinish, Facts, TokenUsage, build, facts};
use crate::price::ServiceTier;
use bytes::Bytes;
use serde::Deserialize;
use std::{borrow::Cow, fmt, sync::Arc};

/// A whole answer: the provider's JSON bytes, and the facts that layers need.
///
/// Layers read the facts, the edge writes the bytes; nobody parses again.
///
/// Cloning costs one reference count.
#[derive(Clone)]
pub struct Completion(Arc<Whole>);

/// Apart, because every layer that an answer goes through moves it.
struct Whole {
    data: Bytes,
    /// Shared with copies whose bytes are their own.
    facts: Arc<Facts>,
}

impl Completion {
    /// Reads an OpenAI-style `chat.completion` object. Every member is optional.
    ///
    /// # Errors
    ///
    /// What is not one JSON object, or has choices that are no array of objects.
    pub fn parse(data: impl Into<Bytes>) -> Result<Self, serde_json::Error> {
        let data = data.into();
        Ok(Self(Arc::new(Whole { facts: Arc::new(Facts::read(&data)?), data })))
    }

    /// An answer of one text, for tests and leaves of your own.
    pub fn text(text: impl AsRef<str>, usage: TokenUsage) -> Self {
        build::completion(text.as_ref(), usage)
    }

    /// An answer of one tool call, its arguments as JSON text, for tests and leaves of your own.
    pub fn tool_call(id: &str, name: &str, arguments: &str, usage: TokenUsage) -> Self {
        build::tool_call(id, name, arguments, usage)
    }

    /// The JSON, as the provider sent it.
    pub fn data(&self) -> &Bytes {
        &self.0.data
    }

    /// The JSON as a `T` of yours, such as a client library's type.
    ///
    /// # Errors
    ///
    /// What serde says.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.0.data)
    }

    /// The text of the first choice, that of its parts if it comes in parts; empty if it has none.
    pub fn content(&self) -> Cow<'_, str> {
        facts::first_content(&self.0.data, "message")
    }

    /// Whether it says anything: text that is not blank, reasoning, a tool call, a refusal, audio, an image.
    pub fn has_content(&self) -> bool {
        self.0.facts.has_content
    }

    /// Why each choice ended.
    pub fn finish_reasons(&self) -> &[ChoiceFinish] {
        self.0.facts.finishes()
    }

    /// What it used up, if the provider said so.
    pub fn usage(&self) -> Option<&TokenUsage> {
        self.0.facts.usage()
    }

    /// The id that the provider gave it.
    pub fn id(&self) -> Option<Cow<'_, str>> {
        facts::text(&self.0.data, self.0.facts.id)
    }

    /// The model as the provider names it, often with a date.
    pub fn model(&self) -> Option<Cow<'_, str>> {
        facts::text(&self.0.data, self.0.facts.model)
    }

    /// The tier in which the provider says that it served the call.
    pub fn service_tier(&self) -> Option<ServiceTier> {
        self.0.facts.service_tier
    }

    /// How many bytes of text, thoughts and tool calls, as JSON spells them.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.0.facts.text_bytes.into()
    }

    /// With bytes of its own: what a provider sends may be a part of a larger buffer.
    pub(crate) fn detached(&self) -> Self {
        let Whole { data, facts } = &*self.0;
        Self(Arc::new(Whole { data: Bytes::copy_from_slice(data), facts: Arc::clone(facts) }))
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.0.facts
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("bytes", &self.0.data.len())
            .field("has_content", &self.0.facts.has_content)
            .field("finish_reasons", &self.finish_reasons())
            .field("usage", &self.usage())
            .finish_non_exhaustive()
    }
}
