//! What genai does not tell of a stream.

use super::answer;
use crate::{TokenUsage, json};
use ::genai::chat::{ChatFrameSink, FrameCtx, RawFrameRef};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Sees each frame of a stream before genai makes events of it.
#[derive(Default)]
pub(super) struct Frames(Mutex<Seen>);

#[derive(Default)]
pub(super) struct Seen {
    pub(super) any: bool,
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    /// The tokens of the prompt, where they are told before the answer has ended.
    pub(super) prompt: Option<Prompt>,
    /// What Cohere bills.
    pub(super) billed: Option<TokenUsage>,
    /// Ollama has marked the end.
    pub(super) done: bool,
    /// Gemini has refused the prompt.
    pub(super) blocked: bool,
    /// The last frame has no candidates, and nothing in their place.
    pub(super) is_idle: bool,
    /// An event of Anthropic's has no name, and genai passes over it. It loses names where lines end in CR LF and the
    /// network parts the two.
    pub(super) is_nameless: bool,
    /// An error that genai passes over.
    pub(super) error: Option<Bytes>,
    /// What Gemini has drawn, as URLs; genai leaves it out of streams. Taken as they are told.
    pub(super) images: Vec<String>,
}

/// What was told of a prompt. What caches had to do with is part of `all`.
#[derive(Clone, Copy)]
pub(super) struct Prompt {
    all: u64,
    read: Option<u64>,
    written: Option<u64>,
    written_1h: Option<u64>,
}

impl Frames {
    pub(super) fn any(&self) -> bool {
        self.look(|seen| seen.any)
    }

    pub(super) fn take_images(&self) -> Vec<String> {
        mem::take(&mut self.lock().images)
    }

    pub(super) fn look<T>(&self, what: impl FnOnce(&Seen) -> T) -> T {
        what(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChatFrameSink for Frames {
    fn on_frame(&self, _: &FrameCtx, frame: RawFrameRef<'_>) {
        let mut seen = self.lock();
        (seen.any, seen.is_idle) = (true, false);
        if serde_json::from_str::<&RawValue>(frame.data).is_ok() {
            seen.read(frame.event, frame.data.trim().as_bytes());
        }
    }
}

impl Seen {
    fn read(&mut self, event: Option<&str>, frame: &[u8]) {
        let text = |value| json::string(value).map(|text| text.into_owned()).filter(|text| text.len() <= 256);
        self.is_idle = true;
        for (name, value) in json::members(frame) {
            match name {
                br#""candidates""# => {
                    self.is_idle = false;
                    self.images.extend(images(value));
                }
                br#""id""# | br#""responseId""# | br#""generation_id""# if self.id.is_none() => {
                    self.id = text(value)
                }
                br#""model""# | br#""modelVersion""# if self.model.is_none() => self.model = text(value),
                // Of Anthropic's first frame.
                br#""message""# if self.id.is_none() && json::member(value, "id").is_some() => {
                    self.id = json::member(value, "id").and_then(text);
                    self.model = json::member(value, "model").and_then(text);
                    self.prompt = json::member(value, "usage").and_then(Prompt::of_anthropic);
                }
                br#""usageMetadata""# => self.prompt = Prompt::of_gemini(value).or(self.prompt),
                br#""response""# => {
                    let units =
                        json::member(value, "meta").and_then(|meta| json::member(meta, "billed_units"));
                    self.billed = units.and_then(TokenUsage::read).or(self.billed);
                }
                br#""type""# if event.is_none() => self.is_nameless |= is_of_an_answer(value),
                br#""done""# => self.done |= value == b"true",
                br#""promptFeedback""# => self.blocked |= json::member(value, "blockReason").is_some(),
                br#""error""# if !json::is_nothing(value) => self.error = Some(Bytes::copy_from_slice(frame)),
                _ => {}
            }
        }
    }
}

impl Prompt {
    /// What a cache had to do with is counted apart there.
    fn of_anthropic(usage: &[u8]) -> Option<Self> {
        let count = |name| tokens(usage, name);
        let (read, written) = (count("cache_read_input_tokens"), count("cache_creation_input_tokens"));
        let apart = read.unwrap_or(0).checked_add(written.unwrap_or(0))?;
        let kinds = json::member(usage, "cache_creation");
        let written_1h = kinds.and_then(|kinds| tokens(kinds, "ephemeral_1h_input_tokens"));
        Some(Self { all: count("input_tokens")?.checked_add(apart)?, read, written, written_1h })
    }

    /// What tools have found is counted apart there.
    fn of_gemini(usage: &[u8]) -> Option<Self> {
        let count = |name| tokens(usage, name);
        let all = count("promptTokenCount")?.checked_add(count("toolUsePromptTokenCount").unwrap_or(0))?;
        Some(Self { all, read: count("cachedContentTokenCount"), written: None, written_1h: None })
    }

    /// Read as any other, so that it is believed as far as any other; some have 0 where they do not know yet.
    pub(super) fn usage(self) -> Option<TokenUsage> {
        let Self { all, read, written, written_1h } = self;
        let usage = serde_json::json!({
            "prompt_tokens": all,
            "prompt_tokens_details": { "cached_tokens": read, "cache_write_tokens": written },
            "cache_creation": { "ephemeral_1h_input_tokens": written_1h },
        });
        if all == 0 { None } else { TokenUsage::read(usage.to_string().as_bytes()) }
    }
}

/// Whether an event of Anthropic's, by its type, is a part of the answer.
fn is_of_an_answer(kind: &[u8]) -> bool {
    kind.starts_with(br#""content_block_"#) || kind.starts_with(br#""message_"#)
}

/// Of Gemini's first candidate.
fn images(candidates: &[u8]) -> impl Iterator<Item = String> {
    let first = json::items(candidates).next().and_then(|first| json::member(first, "content"));
    let parts = json::items(first.and_then(|content| json::member(content, "parts")).unwrap_or_default());
    parts.filter_map(|part| {
        let inline = json::member(part, "inlineData")?;
        let text = |name| json::member(inline, name).and_then(json::string);
        Some(answer::data_url(&text("mimeType")?, &text("data")?))
    })
}

fn tokens(usage: &[u8], name: &str) -> Option<u64> {
    std::str::from_utf8(json::member(usage, name)?).ok()?.parse().ok()
}
