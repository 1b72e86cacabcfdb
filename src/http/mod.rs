//! What our errors and answers mean in HTTP, given once.
//!
//! * Errors: [`status`], [`error_type`], [`error_code`], [`should_retry`], [`retry_after_seconds`], [`rate_limit_headers_of`] and the
//!   OpenAI-style [`error_body`]. Only [`Display`](std::fmt::Display) is shown to clients; what a provider
//!   said in its own body may quote prompts and keys, and is not.
//! * Answers: [`FillIn`] adds what clients rely on and providers forget, and leaves every other byte as it
//!   came. [`into_chunks`] gives a whole answer to a caller who asked for a stream.
//! * [`anthropic`]: the same in Anthropic's Messages dialect.
//! * Decisions: [`write_decisions`] shows in headers how an answer came to be, for people who debug.
//! * The cache: [`cache_control`] reads what a client asks of it, [`cache_status_of`] and [`age_seconds`] say what it did.
//! * How long a caller waits: [`timeout`] reads it of a [header](TIMEOUT).
//! * How much a request may ask: with the feature `config`, `body_limits` is what a configuration says of it.
//! * Who asks: an application that is trusted says in [headers](STATED) for whom; [`stated_context`] reads them.
//! * `axum` (the feature of that name): extractor, responder, server-sent events.
//! * `tonic` (the feature of that name): statuses, deadlines and streams of gRPC.
//!
//! ```
//! use llm_layers::{Error, ErrorClass, http::{error_body, retry_after_seconds, should_retry, status}};
//!
//! // Its key is wrong: 502 to the caller, for whom trying again is of no use.
//! let error = Error::provider(ErrorClass::Auth, "acme", "one");
//! assert_eq!((status(&error).as_u16(), should_retry(&error), retry_after_seconds(&error)), (502, Some(false), None));
//! assert!(error_body(&error).starts_with(br#"{"error":{"message":"provider acme refused the credentials"#));
//! ```

pub mod anthropic;
#[cfg(feature = "axum")]
pub mod axum;
mod cache;
mod decisions;
mod edge;
#[cfg(feature = "config")]
mod limits;
mod sse;
mod stated;
mod timeout;
#[cfg(feature = "tonic")]
pub mod tonic;
mod whole;

#[cfg(feature = "config")]
pub use self::limits::body_limits;
pub use self::{
    cache::{age_seconds, cache_control, cache_status, cache_status_of},
    decisions::write_decisions,
    edge::{Asked, FillIn},
    sse::{DONE, KEEP_ALIVE, error_event, write_event},
    stated::{STATED, StatedError, stated_context, states_identity},
    timeout::{TIMEOUT, timeout},
    whole::{into_chunks, into_stream},
};

use crate::{
    Error, ErrorClass, ErrorKind, InvalidReason, QuotaExceeded, QuotaKind, price::NanoUsd, quota::Headroom,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use std::time::Duration;

/// The status that a gateway answers with.
pub fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidRequest { reason, .. } => match reason {
            InvalidReason::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            InvalidReason::MediaType | InvalidReason::Encoded => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => StatusCode::BAD_REQUEST,
        },
        ErrorKind::RequestTooLarge { .. } => StatusCode::BAD_REQUEST,
        ErrorKind::ModelNotAllowed { .. } | ErrorKind::ModelUnpriced { .. } => StatusCode::FORBIDDEN,
        ErrorKind::ModelNotFound { .. } => StatusCode::NOT_FOUND,
        ErrorKind::QuotaExceeded(_) => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::NoProvider | ErrorKind::StoreUnavailable { .. } | ErrorKind::Overloaded => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            class if class.is_callers_fault() => {
                // Clients would wait and try again, where no waiting helps.
                let is_kept = |status: &StatusCode| {
                    status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS
                };
                failure.status.filter(is_kept).unwrap_or(StatusCode::BAD_REQUEST)
            }
            _ => StatusCode::BAD_GATEWAY,
        },
        ErrorKind::EmptyResponse { .. } | ErrorKind::StreamInterrupted { .. } => StatusCode::BAD_GATEWAY,
        ErrorKind::Timeout { .. } | ErrorKind::NotCached => StatusCode::GATEWAY_TIMEOUT,
        // The caller is gone, so that only logs see this.
        ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The `type` of an OpenAI error body.
pub fn error_type(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidRequest { .. }
        | ErrorKind::RequestTooLarge { .. }
        | ErrorKind::ModelNotFound { .. } => "invalid_request_error",
        ErrorKind::ModelNotAllowed { .. } | ErrorKind::ModelUnpriced { .. } => "permission_error",
        ErrorKind::QuotaExceeded(quota) if quota.in_flight_only => "rate_limit_error",
        ErrorKind::QuotaExceeded(_) => "insufficient_quota",
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::RateLimited => "rate_limit_error",
            class if class.is_callers_fault() => "invalid_request_error",
            _ => "server_error",
        },
        _ => "server_error",
    }
}

/// The `code` of an OpenAI error body, where there is one.
pub fn error_code(error: &Error) -> Option<&str> {
    Some(match error.kind() {
        ErrorKind::InvalidRequest { reason, .. } => match reason {
            InvalidReason::Missing => "missing_required_parameter",
            InvalidReason::Empty => "empty_array",
            InvalidReason::Mistyped { .. } => "invalid_type",
            InvalidReason::UnknownHeader => UNKNOWN_HEADER,
            _ => return None,
        },
        ErrorKind::RequestTooLarge { .. } => "request_exceeds_limit",
        ErrorKind::ModelNotAllowed { .. } => "model_not_allowed",
        ErrorKind::ModelUnpriced { .. } => "model_unpriced",
        ErrorKind::ModelNotFound { .. } => "model_not_found",
        ErrorKind::NoProvider => "no_provider",
        ErrorKind::QuotaExceeded(quota) if quota.in_flight_only => "rate_limit_exceeded",
        ErrorKind::QuotaExceeded(_) => "insufficient_quota",
        ErrorKind::StoreUnavailable { .. } => "usage_store_unavailable",
        ErrorKind::Overloaded => "overloaded",
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::RateLimited => "rate_limit_exceeded",
            ErrorClass::ContextWindow => "context_length_exceeded",
            ErrorClass::ContentFilter => "content_filter",
            ErrorClass::BadRequest => {
                let is_own = |code: &&str| is_identifier(code) && *code != error_type(error);
                return failure.code.as_deref().filter(is_own);
            }
            _ => "upstream_error",
        },
        ErrorKind::EmptyResponse { .. } | ErrorKind::StreamInterrupted { .. } => "upstream_error",
        ErrorKind::Timeout { .. } => "timeout",
        ErrorKind::NotCached => "not_cached",
        ErrorKind::Cancelled => "cancelled",
        ErrorKind::Other => "internal_error",
    })
}

/// What a header of this family is called that nobody reads.
const UNKNOWN_HEADER: &str = "unknown_header";

/// Whether what a provider calls a code can be nothing but a name: no key, no text.
fn is_identifier(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}

/// What to say in `x-should-retry`; `None` where clients do the right thing by the status alone.
///
/// The OpenAI SDKs send 408, 409, 429 and all 5xx again by themselves.
pub fn should_retry(error: &Error) -> Option<bool> {
    let status = status(error);
    let by_status = matches!(status.as_u16(), 408 | 409 | 429) || status.is_server_error();
    (by_status != error.is_retryable()).then(|| error.is_retryable())
}

/// What to say in `Retry-After`, rounded up.
pub fn retry_after_seconds(error: &Error) -> Option<u64> {
    let after = error.retry_after()?;
    Some(after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)))
}

/// What to say of a limit in `x-ratelimit-*`: its size, what is left of it, and how long until it is whole again, under
/// the names of OpenAI's API for requests and tokens, and likewise for `cost`, in dollars.
///
/// ```
/// use llm_layers::{http::rate_limit_headers, quota::{Amount, Department, Departments, Limits, MemoryStore}};
/// # use llm_layers::{CallId, quota::{Calendar, Decision, QuotaStore, Reservation}};
/// # use std::time::{Duration, SystemTime};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// # let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_435_200);
/// # let departments = Departments::one(Department::new("research", Limits::new().with_day_requests(100)));
/// # let days = Calendar::utc().days_around(noon);
/// # let amount = Amount { requests: 1, ..Amount::ZERO };
/// # let reservation = Reservation::new(CallId::mint(noon), departments, amount, Duration::from_secs(60), days);
/// # let Ok(Decision::Granted(grant)) = MemoryStore::new().with_clock(noon).reserve(&reservation).await else { panic!() };
/// # let headroom = grant.tightest.unwrap();
/// // Of `answer.quota`:
/// let [limit, remaining, reset] = rate_limit_headers(&headroom);
/// assert_eq!((limit.0.as_str(), limit.1.as_bytes()), ("x-ratelimit-limit-requests", &b"100"[..]));
/// assert_eq!((remaining.0.as_str(), remaining.1.as_bytes()), ("x-ratelimit-remaining-requests", &b"99"[..]));
/// assert_eq!((reset.0.as_str(), reset.1.as_bytes()), ("x-ratelimit-reset-requests", &b"12h0m0s"[..]));
/// # }
/// ```
pub fn rate_limit_headers(headroom: &Headroom) -> [(HeaderName, HeaderValue); 3] {
    let Headroom { quota, limit, remaining, resets_in, .. } = headroom;
    limit_headers(*quota, *limit, *remaining, *resets_in)
}

/// As [`rate_limit_headers`], of the limit that an error is about; none if it is about none.
pub fn rate_limit_headers_of(error: &Error) -> Option<[(HeaderName, HeaderValue); 3]> {
    let ErrorKind::QuotaExceeded(exceeded) = error.kind() else { return None };
    let QuotaExceeded { quota, limit, current, reserved, resets_in, .. } = exceeded;
    let remaining = limit.saturating_sub(*current).saturating_sub(*reserved);
    Some(limit_headers(*quota, *limit, remaining, *resets_in))
}

const REQUESTS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];
const COST: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit-cost"),
    HeaderName::from_static("x-ratelimit-remaining-cost"),
    HeaderName::from_static("x-ratelimit-reset-cost"),
];

fn limit_headers(
    quota: QuotaKind,
    limit: u64,
    remaining: u64,
    resets_in: Duration,
) -> [(HeaderName, HeaderValue); 3] {
    let text = |value: String| HeaderValue::try_from(value).expect("digits and letters");
    let shown = |amount: u64| match quota {
        QuotaKind::Requests | QuotaKind::Tokens => HeaderValue::from(amount),
        QuotaKind::Cost => text(NanoUsd::new(i64::try_from(amount).unwrap_or(i64::MAX)).to_string()),
    };
    let [a, b, c] = match quota {
        QuotaKind::Requests => REQUESTS,
        QuotaKind::Tokens => TOKENS,
        QuotaKind::Cost => COST,
    };
    [(a, shown(limit)), (b, shown(remaining)), (c, text(reset(resets_in)))]
}

/// Rounded up to a second: `6m0s`.
fn reset(time: Duration) -> String {
    let seconds = time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0));
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// The OpenAI-style JSON that a gateway answers with.
///
/// ```
/// use llm_layers::{Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::ModelNotFound { model: "fast".into() });
/// assert_eq!(
///     llm_layers::http::error_body(&error),
///     r#"{"error":{"message":"no provider serves model fast","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#
/// );
/// ```
pub fn error_body(error: &Error) -> Bytes {
    let param = match error.kind() {
        ErrorKind::InvalidRequest { member, .. } => member.as_deref(),
        ErrorKind::ModelNotFound { .. }
        | ErrorKind::ModelNotAllowed { .. }
        | ErrorKind::ModelUnpriced { .. } => Some("model"),
        ErrorKind::Provider(failure) if failure.class.is_callers_fault() => failure.param.as_deref(),
        _ => None,
    };
    error_json(&error.to_string(), error_type(error), param, error_code(error))
}

/// An OpenAI-style error of the edge's own, such as a missing key or an unknown path.
pub fn error_json(message: &str, kind: &str, param: Option<&str>, code: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Body<'a> {
        error: Inner<'a>,
    }
    #[derive(Serialize)]
    struct Inner<'a> {
        message: &'a str,
        #[serde(rename = "type")]
        kind: &'a str,
        param: Option<&'a str>,
        code: Option<&'a str>,
    }
    let body = Body { error: Inner { message, kind, param, code } };
    serde_json::to_vec(&body).expect("four strings are JSON").into()
}

/// The header by which clients, gateways and providers tell requests apart: `x-request-id`.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// [`X_REQUEST_ID`] as Anthropic's clients look for it: `request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// The id that the caller gave its request in [`X_REQUEST_ID`], if it is one that may be repeated: visible
/// ASCII, at most 128 bytes.
pub fn request_id(headers: &HeaderMap) -> Option<&str> {
    let id = headers.get(X_REQUEST_ID)?.as_bytes();
    let sane = (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    sane.then(|| std::str::from_utf8(id).ok()).flatten()
}
