//! What genai does not tell of a stream.

use crate::{TokenUsage, json};
use ::genai::chat::{ChatFrameSink, FrameCtx, RawFrameRef};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::sync::{Mutex, PoisonError};

/// Sees each frame of a stream before genai makes events of it.
#[derive(Default)]
pub(super) struct Frames(Mutex<Seen>);

#[derive(Default)]
pub(super) struct Seen {
    pub(super) any: bool,
    pub(super) id: Option<String>,
    pub(super) model: Option<String>,
    /// The tokens of the prompt, where they are told before the answer has ended.
    pub(super) prompt: Option<TokenUsage>,
    /// What Cohere bills.
    pub(super) billed: Option<TokenUsage>,
    /// Ollama has marked the end.
    pub(super) done: bool,
    /// Gemini has refused the prompt.
    pub(super) blocked: bool,
    /// An error that genai passes over.
    pub(super) error: Option<Bytes>,
}

impl Frames {
    pub(super) fn any(&self) -> bool {
        self.look(|seen| seen.any)
    }

    pub(super) fn look<T>(&self, what: impl FnOnce(&Seen) -> T) -> T {
        what(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ChatFrameSink for Frames {
    fn on_frame(&self, _: &FrameCtx, frame: RawFrameRef<'_>) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.any = true;
        if serde_json::from_str::<&RawValue>(frame.data).is_ok() {
            seen.read(frame.data.trim().as_bytes());
        }
    }
}

impl Seen {
    fn read(&mut self, frame: &[u8]) {
        let text = |value| json::string(value).map(|text| text.into_owned()).filter(|text| text.len() <= 256);
        for (name, value) in json::members(frame) {
            match name {
                br#""id""# | br#""responseId""# | br#""generation_id""# if self.id.is_none() => {
                    self.id = text(value)
                }
                br#""model""# | br#""modelVersion""# if self.model.is_none() => self.model = text(value),
                // Of Anthropic's first frame.
                br#""message""# if self.id.is_none() && json::member(value, "id").is_some() => {
                    self.id = json::member(value, "id").and_then(text);
                    self.model = json::member(value, "model").and_then(text);
                    self.prompt = json::member(value, "usage").and_then(prompt_of_anthropic);
                }
                br#""usageMetadata""# => self.prompt = prompt_of_gemini(value).or(self.prompt),
                br#""response""# => {
                    let units =
                        json::member(value, "meta").and_then(|meta| json::member(meta, "billed_units"));
                    self.billed = units.and_then(TokenUsage::read).or(self.billed);
                }
                br#""done""# => self.done |= value == b"true",
                br#""promptFeedback""# => self.blocked |= json::member(value, "blockReason").is_some(),
                br#""error""# if !json::is_nothing(value) => self.error = Some(Bytes::copy_from_slice(frame)),
                _ => {}
            }
        }
    }
}

/// What a cache had to do with is counted apart there.
fn prompt_of_anthropic(usage: &[u8]) -> Option<TokenUsage> {
    let (read, written) =
        (tokens(usage, "cache_read_input_tokens"), tokens(usage, "cache_creation_input_tokens"));
    let all =
        tokens(usage, "input_tokens")?.checked_add(read.unwrap_or(0))?.checked_add(written.unwrap_or(0))?;
    let hour =
        json::member(usage, "cache_creation").and_then(|kinds| tokens(kinds, "ephemeral_1h_input_tokens"));
    prompt(all, &[("cached_tokens", read), ("cache_write_tokens", written)], hour)
}

/// What tools have found is counted apart there.
fn prompt_of_gemini(usage: &[u8]) -> Option<TokenUsage> {
    let found = tokens(usage, "toolUsePromptTokenCount").unwrap_or(0);
    let all = tokens(usage, "promptTokenCount")?.checked_add(found)?;
    prompt(all, &[("cached_tokens", tokens(usage, "cachedContentTokenCount"))], None)
}

/// Read as any other, so that it is believed as far as any other; some have 0 where they do not know yet.
fn prompt(all: u64, details: &[(&str, Option<u64>)], hour: Option<u64>) -> Option<TokenUsage> {
    if all == 0 {
        return None;
    }
    let details: serde_json::Map<_, _> =
        details.iter().filter_map(|(name, count)| Some(((*name).to_owned(), (*count)?.into()))).collect();
    let usage = serde_json::json!({
        "prompt_tokens": all, "prompt_tokens_details": details, "cache_creation": { "ephemeral_1h_input_tokens": hour },
    });
    TokenUsage::read(usage.to_string().as_bytes())
}

fn tokens(usage: &[u8], name: &str) -> Option<u64> {
    std::str::from_utf8(json::member(usage, name)?).ok()?.parse().ok()
}
