use super::ErrorResponse;
use crate::{
    BodyLimits, Error, ErrorKind, InvalidReason, LlmRequest, RequestContext,
    http::{self as edge, anthropic},
};
use axum_core::{
    body::Body,
    extract::{FromRequest, Request},
};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::{io, time::Duration};

/// Extracts an OpenAI-style chat request.
///
/// Takes the [`RequestContext`] and the [`BodyLimits`] from the request's extensions, where your middleware
/// has put them, and the request's id from `x-request-id` if the context has none: set or check that header
/// before, it is the client's word otherwise. How long the caller waits, by [`x-llm-timeout`](crate::http::timeout), is the
/// [deadline](RequestContext::deadline) from when the headers have come, unless the context has an earlier one; time limits in the stack hold
/// all the same. What the client asks of the cache, by `Cache-Control` and `Pragma`, is added to what
/// the context says of it, and only narrows that: see [`cache_control`](crate::http::cache_control).
///
/// A body that ends in an [`Error`] is refused with that one.
///
/// A header `x-llm-…` that [nobody reads](crate::http::states_identity) is refused: remove those that are your own.
///
/// # Errors
///
/// 415 unless the content type is `application/json` or ends in `+json`, or for a body that is compressed, 413 for a body over the limit, 400
/// for a body that is not a chat request, or none that HTTP knows, for a timeout that cannot be read, or for a header that nobody reads; each in OpenAI's shape.
#[derive(Debug, Clone)]
pub struct ChatRequest(pub LlmRequest);

/// Extracts a request of Anthropic's Messages API; in everything else as [`ChatRequest`].
///
/// # Errors
///
/// As [`ChatRequest`], in Anthropic's shape.
#[derive(Debug, Clone)]
pub struct MessagesRequest(pub LlmRequest);

/// Extracts a request of Anthropic's that asks how many tokens a prompt has; in everything else as [`ChatRequest`].
///
/// # Errors
///
/// As [`ChatRequest`], in Anthropic's shape.
#[derive(Debug, Clone)]
pub struct CountTokensRequest(pub LlmRequest);

impl<S: Sync> FromRequest<S> for ChatRequest {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, _: &S) -> Result<Self, ErrorResponse> {
        let read = read(request, LlmRequest::parse_within).await;
        read.map(Self).map_err(|refused| refused.answer(ErrorResponse::from))
    }
}

impl<S: Sync> FromRequest<S> for MessagesRequest {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, _: &S) -> Result<Self, ErrorResponse> {
        let read = read(request, anthropic::chat_request).await;
        read.map(Self).map_err(|refused| refused.answer(ErrorResponse::of_messages))
    }
}

impl<S: Sync> FromRequest<S> for CountTokensRequest {
    type Rejection = ErrorResponse;

    async fn from_request(request: Request, _: &S) -> Result<Self, ErrorResponse> {
        let read = read(request, anthropic::count_request).await;
        read.map(Self).map_err(|refused| refused.answer(ErrorResponse::of_messages))
    }
}

/// How long the rest of a body that nobody wants may take to come.
const DISCARD: Duration = Duration::from_secs(5);

/// Why a request is not taken.
struct Refused {
    error: Error,
    request_id: Option<Box<str>>,
    /// Whether all of it has come.
    is_read: bool,
}

impl Refused {
    fn answer(self, response: fn(Error) -> ErrorResponse) -> ErrorResponse {
        let Self { error, request_id, is_read } = self;
        response(error).answering(request_id.as_deref()).closing_unless(is_read)
    }
}

async fn read(
    request: Request,
    parse: fn(Bytes, &BodyLimits) -> Result<LlmRequest, Error>,
) -> Result<LlmRequest, Refused> {
    let (mut parts, mut body) = request.into_parts();
    let mut context = parts.extensions.remove::<RequestContext>().unwrap_or_default();
    if let (None, Some(id)) = (context.request_id(), edge::request_id(&parts.headers)) {
        context = context.with_request_id(id);
    }
    let control = context.cache_control().and(edge::cache_control(&parts.headers));
    context = context.with_cache_control(control);
    let timeout = edge::timeout(&parts.headers);
    if let Ok(Some(timeout)) = timeout {
        context = context.with_timeout_within(timeout);
    }
    let limits = parts.extensions.remove::<BodyLimits>().unwrap_or_default();
    let read = async {
        timeout?;
        edge::states_identity(&parts.headers)
            .map_err(|unknown| Error::invalid(unknown.header().as_str(), InvalidReason::UnknownHeader))?;
        if !is_json(&parts.headers) {
            return Err(Error::invalid_body(InvalidReason::MediaType));
        }
        if is_encoded(&parts.headers) {
            return Err(Error::invalid_body(InvalidReason::Encoded));
        }
        parse(collect(&mut body, limits.max_bytes).await?, &limits)
    };
    match read.await {
        Ok(request) => Ok(request.with_context(context)),
        Err(error) => {
            // Nobody knows where one that is malformed ends.
            let is_framed =
                !matches!(error.kind(), ErrorKind::InvalidRequest { reason: InvalidReason::Framing, .. });
            let most = limits.max_bytes.saturating_mul(2);
            let is_read = is_framed && discard(&parts.headers, body, most).await;
            Err(Refused { error, request_id: context.request_id().map(Into::into), is_read })
        }
    }
}

async fn collect(body: &mut Body, limit: usize) -> Result<Bytes, Error> {
    if body.size_hint().lower() <= limit as u64 {
        match Limited::new(body, limit).collect().await {
            Ok(body) => return Ok(body.to_bytes()),
            Err(error) if is_length_limit(&*error) => {}
            Err(error) if is_malformed(&*error) => return Err(Error::invalid_body(InvalidReason::Framing)),
            Err(error) => {
                let own = causes(&*error).find_map(|cause| cause.downcast_ref::<Error>()).cloned();
                // Otherwise the rest of the request did not come.
                return Err(own.unwrap_or_else(|| Error::new(ErrorKind::Cancelled).with_source(error)));
            }
        }
    }
    Err(Error::invalid_body(InvalidReason::TooLarge { limit }))
}

/// Reads up to `most` bytes and throws them away, if they come soon. Whether that was all.
pub(super) async fn discard(headers: &HeaderMap, body: Body, most: usize) -> bool {
    if body.is_end_stream() {
        return true;
    }
    // Who waits for a word before he sends it need not send it.
    if headers.contains_key(header::EXPECT) || body.size_hint().lower() > most as u64 {
        return false;
    }
    let mut rest = Limited::new(body, most);
    let all = async {
        loop {
            match rest.frame().await {
                Some(Ok(_)) => {}
                Some(Err(_)) => return false,
                None => return true,
            }
        }
    };
    tokio::time::timeout(DISCARD, all).await.unwrap_or(false)
}

type Cause<'a> = &'a (dyn std::error::Error + 'static);

fn causes(error: Cause<'_>) -> impl Iterator<Item = Cause<'_>> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Whether this limit, or one of the host's further out, was reached.
fn is_length_limit(error: Cause<'_>) -> bool {
    causes(error).any(<dyn std::error::Error>::is::<LengthLimitError>)
}

/// Whether the sender is still there, and what he sends is no body.
fn is_malformed(error: Cause<'_>) -> bool {
    let kind = causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let is_plain =
        |value: &header::HeaderValue| value.is_empty() || value.as_bytes().eq_ignore_ascii_case(b"identity");
    !headers.get_all(header::CONTENT_ENCODING).iter().all(is_plain)
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim();
    let Some((kind, subtype)) = essence.split_once('/') else { return false };
    let suffix = subtype.as_bytes().last_chunk();
    kind.eq_ignore_ascii_case("application")
        && (subtype.eq_ignore_ascii_case("json")
            || suffix.is_some_and(|suffix: &[u8; 5]| suffix.eq_ignore_ascii_case(b"+json")))
}
