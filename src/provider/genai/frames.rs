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
                }
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
