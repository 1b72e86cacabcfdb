//! The HTTP request that asks.

use super::endpoint::{Endpoint, NotThinking};
use crate::{ChatBody, LlmRequest, chat::OUTPUT_MEMBERS, http::X_REQUEST_ID, json};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header::ACCEPT};
use http_body_util::Full;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Some begin their JSON with it, and clients pass it over.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const MAX_REQUEST_ID: usize = 256;

const STREAM_OPTIONS: &str = "stream_options";

/// With `asks_usage`, a stream is asked for its usage also where the caller does not ask.
pub(super) fn request(
    endpoint: &Endpoint,
    request: &LlmRequest,
    asks_usage: bool,
) -> http::Request<Full<Bytes>> {
    let spared = spared(endpoint, request);
    let body = bounded_under(endpoint.output_member.as_deref(), &spared);
    let is_streaming = body.is_streaming();
    let accept = if is_streaming { "text/event-stream" } else { "application/json" };
    let body = if is_streaming && asks_usage { asking_for_usage(&body) } else { Cow::Borrowed(&*body) };
    let mut http_request = http::Request::new(Full::new(body.to_json(&request.model)));
    *http_request.method_mut() = Method::POST;
    *http_request.uri_mut() = endpoint.uri.clone();
    let headers = http_request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static(accept));
    let id = request.context.request_id().filter(|id| id.len() <= MAX_REQUEST_ID);
    if let Some(id) = id.and_then(|id| HeaderValue::from_str(id).ok()) {
        headers.insert(X_REQUEST_ID, id);
    }
    for (name, value) in &endpoint.headers {
        headers.insert(name, value.clone());
    }
    #[cfg(feature = "otel")]
    if endpoint.trace_headers {
        crate::telemetry::otel::inject(headers);
    }
    http_request
}

/// Whether a stream is asked for its usage by a member that the caller did not send.
pub(super) fn adds_options(endpoint: &Endpoint, body: &ChatBody) -> bool {
    let is_sent = body.raw(STREAM_OPTIONS).is_some_and(|options| options != b"null");
    endpoint.stream_usage && body.is_streaming() && !is_sent
}

/// Whether a refusal is about the member that asks a stream for its usage.
pub(super) fn refuses_options(status: StatusCode, said: &[u8]) -> bool {
    matches!(status.as_u16(), 400 | 422)
        && said.windows(STREAM_OPTIONS.len()).any(|part| part == STREAM_OPTIONS.as_bytes())
}

/// The body without what is dispensable in it and this provider would refuse.
fn spared<'a>(endpoint: &Endpoint, request: &'a LlmRequest) -> Cow<'a, ChatBody> {
    let mut body = Cow::Borrowed(&request.body);
    let dispensable = request.dispensable();
    if dispensable.thoughts && !endpoint.returned_thoughts {
        body = without_thoughts(&body).map_or(body, Cow::Owned);
    }
    if dispensable.effort {
        match NotThinking::of(&endpoint.host, &request.model) {
            NotThinking::Effort => {}
            NotThinking::Thinking => {
                let without = body.without("reasoning_effort");
                let told = without.with("thinking", serde_json::json!({ "type": "disabled" }));
                body = Cow::Owned(told.unwrap_or(without));
            }
            NotThinking::Unknown => body = Cow::Owned(body.without("reasoning_effort")),
        }
    }
    body
}

fn without_thoughts(body: &ChatBody) -> Option<ChatBody> {
    let mut messages = Vec::with_capacity(body.raw("messages")?.len());
    for message in body.messages() {
        let mut separator = if messages.is_empty() { &b"[{"[..] } else { b",{" };
        for (name, value) in json::members(message.raw()) {
            if !json::is_name(name, "reasoning_content") {
                for part in [separator, name, b":", value] {
                    messages.extend_from_slice(part);
                }
                separator = b",";
            }
        }
        messages.push(b'}');
    }
    messages.push(b']');
    body.with("messages", RawValue::from_string(String::from_utf8(messages).ok()?).ok()?).ok()
}

/// The body with the bound of its answer under `wanted`.
fn bounded_under<'a>(wanted: Option<&str>, body: &'a ChatBody) -> Cow<'a, ChatBody> {
    let has = |name: &str| body.raw(name).filter(|value| *value != b"null");
    let Some(wanted) = wanted.filter(|wanted| has(wanted).is_none()) else { return Cow::Borrowed(body) };
    let renamed = OUTPUT_MEMBERS.into_iter().find_map(|name| {
        let bound: &RawValue = serde_json::from_slice(has(name)?).ok()?;
        body.without(name).with(wanted, bound).ok()
    });
    renamed.map_or(Cow::Borrowed(body), Cow::Owned)
}

/// The body with `stream_options.include_usage`; what else stands there keeps its bytes.
fn asking_for_usage(body: &ChatBody) -> Cow<'_, ChatBody> {
    const ASKED: &str = "\"include_usage\":true";
    let present = body.raw(STREAM_OPTIONS).unwrap_or_default();
    let (mut options, mut asked) = (String::from("{"), None);
    for (name, value) in json::members(present) {
        if json::string(name).is_some_and(|name| name == "include_usage") {
            asked = Some(asked.is_none() && value == b"true");
        } else if let (Ok(name), Ok(value)) = (str::from_utf8(name), str::from_utf8(value)) {
            options.extend([name, ":", value, ","]);
        }
    }
    if asked == Some(true) {
        return Cow::Borrowed(body);
    }
    options.extend([ASKED, "}"]);
    let with_usage = RawValue::from_string(options).ok().and_then(|o| body.with(STREAM_OPTIONS, o).ok());
    // Built of members of a valid object; without the option the provider would merely say less.
    with_usage.map_or(Cow::Borrowed(body), Cow::Owned)
}
