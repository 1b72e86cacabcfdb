//! genai's errors as ours.
//!
//! None is kept as a cause: they show requests, answers and addresses in their texts.

use super::{dialect::Wire, frames::Frames};
use crate::{BoxError, Error, InvalidReason, provider::openai::origin::Origin};
use ::genai::webc;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

pub(super) fn of(origin: &mut Origin, error: ::genai::Error) -> Error {
    use ::genai::Error as E;
    match error {
        E::HttpError { status, body, headers, .. } => refused(origin, status, &headers, body),
        E::WebModelCall { webc_error, .. } | E::WebAdapterCall { webc_error, .. } => match webc_error {
            webc::Error::ResponseFailedStatus { status, body, headers } => {
                refused(origin, status, &headers, body)
            }
            webc::Error::ResponseFailedNotJson { body, .. } => {
                malformed(origin, "the answer is not JSON", body)
            }
            webc::Error::ResponseFailedInvalidJson { body, .. } => {
                malformed(origin, "the answer is not valid JSON", body)
            }
            webc::Error::Reqwest(error) => broken(origin, error),
            webc::Error::JsonValueExt(_) => {
                malformed(origin, "the answer lacks what it must have", Bytes::new())
            }
        },
        E::ChatResponseGeneration { response_body, .. } => unreadable(origin, &response_body),
        E::ChatResponse { body, .. } if is_frame_error(&body) => {
            malformed(origin, "a frame of the stream is broken", Bytes::new())
        }
        E::ChatResponse { body, .. } => unreadable(origin, &body),
        E::WebStream { error, .. } => of_transport(origin, error),
        E::StreamParse { serde_error, .. } | E::SerdeJson(serde_error) => {
            let (line, column) = (serde_error.line(), serde_error.column());
            malformed(origin, format!("an event is not JSON (line {line}, column {column})"), Bytes::new())
        }
        E::NoChatResponse { .. } | E::InvalidJsonResponseElement { .. } | E::JsonValueExt(_) => {
            malformed(origin, "the answer lacks what it must have", Bytes::new())
        }
        // All others are told before anything is sent.
        _ => Error::invalid_body(InvalidReason::Unsupported),
    }
}

/// As [`of`], where the frames may know more.
pub(super) fn of_stream(origin: &mut Origin, frames: &Frames, error: ::genai::Error) -> Error {
    if frames.any() {
        origin.answered(StatusCode::OK, &HeaderMap::new());
    }
    if frames.look(|seen| seen.blocked) { filtered(origin) } else { of(origin, error) }
}

/// Whether it is of a chunk of Gemini's that says nothing, as some do while a model thinks: the next one may.
pub(super) fn is_of_nothing(wire: Wire, frames: &Frames, error: &::genai::Error) -> bool {
    let is_idle = || frames.look(|seen| seen.is_idle && !seen.blocked && seen.error.is_none());
    wire == Wire::Gemini && matches!(error, ::genai::Error::ChatResponse { .. }) && is_idle()
}

/// What stands in the place of an answer.
pub(super) fn unreadable(origin: &mut Origin, body: &serde_json::Value) -> Error {
    origin.answered(StatusCode::OK, &HeaderMap::new());
    let said = Bytes::from(body.to_string());
    let blocked = body.pointer("/promptFeedback/blockReason").is_some();
    match (blocked, body.get("error").or_else(|| body.get("message"))) {
        (true, _) => filtered(origin),
        (_, Some(_)) => origin.reported(said),
        (_, None) => malformed(origin, "the answer lacks what it must have", said),
    }
}

/// What genai says itself of Bedrock's frames, in the place of what Bedrock would.
fn is_frame_error(body: &serde_json::Value) -> bool {
    let said = body.get("error").and_then(serde_json::Value::as_str).unwrap_or_default();
    ["invalid event-stream", "prelude CRC", "message CRC", "header parse", "failed to "]
        .iter()
        .any(|known| said.starts_with(known))
}

fn filtered(origin: &Origin) -> Error {
    origin.reported(Bytes::from_static(br#"{"error":{"code":"content_filter"}}"#))
}

fn refused(origin: &mut Origin, status: StatusCode, headers: &HeaderMap, body: String) -> Error {
    origin.answered(status, headers);
    origin.refused(headers, body.into())
}

fn malformed(origin: &Origin, why: impl Into<BoxError>, said: impl Into<Bytes>) -> Error {
    origin.malformed(why, said.into())
}

fn of_transport(origin: &mut Origin, error: BoxError) -> Error {
    let error = match error.downcast::<::genai::Error>() {
        Ok(error) => return of(origin, *error),
        Err(error) => error,
    };
    match error.downcast::<reqwest::Error>() {
        Ok(error) => broken(origin, *error),
        Err(_) => malformed(origin, "the stream is not text", Bytes::new()),
    }
}

fn broken(origin: &Origin, error: reqwest::Error) -> Error {
    let after_head = error.is_body() || error.is_decode();
    let error = BoxError::from(error.without_url());
    if after_head { origin.cut(error) } else { origin.unanswered(error) }
}
