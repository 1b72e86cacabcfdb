use crate::{
    Error, InvalidReason, LlmResponse, RequestContext,
    http::{
        X_REQUEST_ID, age_seconds, cache_control, cache_status_of, rate_limit_headers, request_id,
        stated::states_identity_beside,
    },
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::time::{Duration, Instant};
use tonic::metadata::MetadataMap;

/// How much sooner the stack gives up than the caller, so that it is the one to say why: tonic's own clock would call it
/// `CANCELLED`. That one runs since the headers came, ours since the message did, which is later where there is much to do.
/// A tenth of shorter times.
const HEAD_START: Duration = Duration::from_millis(100);

/// The key in `authorization: Bearer KEY`; `None` also for an empty one.
///
/// It is a secret: compare hashes of it, or in constant time, and write it nowhere.
pub fn bearer(metadata: &MetadataMap) -> Option<&[u8]> {
    let said = headers(metadata).get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = said.split_at_checked(7)?;
    let key = Some(key.trim_ascii()).filter(|key| !key.is_empty());
    key.filter(|_| scheme.eq_ignore_ascii_case(b"bearer "))
}

/// How long the caller waits, by `grpc-timeout`; `None` if it does not say, or nothing that gRPC knows.
///
/// ```
/// use llm_layers::http::tonic::timeout;
/// use std::time::Duration;
///
/// let mut metadata = tonic::metadata::MetadataMap::new();
/// metadata.insert("grpc-timeout", "1500m".parse().unwrap());
/// assert_eq!(timeout(&metadata), Some(Duration::from_millis(1500)));
/// ```
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let said = headers(metadata).get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = said.split_at_checked(said.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = digits.parse().ok().filter(|_| is_number)?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What metadata may say of a call, added to the `context` that the host has made of whom it has authenticated.
///
/// * `grpc-timeout`: the [deadline](RequestContext::deadline), a tenth of that time but at most 100 ms before the caller's
///   own, unless the context has an earlier one.
/// * `x-request-id`: the [request's id](RequestContext::request_id), if the context has none: set or check it before,
///   it is the client's word otherwise.
/// * `cache-control`: how the cache may be used, which only narrows what its policy allows.
///
/// # Errors
///
/// Metadata `x-llm-…` that is not one of [`STATED`](crate::http::STATED): nobody reads it, `x-llm-timeout` included. Remove what is your own.
pub fn context(metadata: &MetadataMap, context: RequestContext) -> Result<RequestContext, Error> {
    states_identity_beside(headers(metadata), &[])
        .map_err(|unknown| Error::invalid(unknown.header().as_str(), InvalidReason::UnknownHeader))?;
    Ok(read(metadata, context))
}

pub(super) fn read(metadata: &MetadataMap, mut context: RequestContext) -> RequestContext {
    if let (None, Some(id)) = (context.request_id(), request_id(headers(metadata))) {
        context = context.with_request_id(id);
    }
    if let Some(timeout) = timeout(metadata) {
        let from_here = timeout - HEAD_START.min(timeout / 10);
        // By tokio's clock, which tests can stop.
        let deadline = tokio::time::Instant::now().into_std().checked_add(from_here);
        if let Some(deadline) = earlier(deadline, context.deadline()) {
            context = context.with_deadline(deadline);
        }
    }
    let control = context.cache_control().and(cache_control(headers(metadata)));
    context.with_cache_control(control)
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Writes what is known of an answer at its head: `x-ratelimit-*` of the tightest limit, `cache-status` and `age`.
pub fn write_head(answer: &LlmResponse, metadata: &mut MetadataMap) {
    let headers = metadata.as_mut();
    headers.extend(answer.quota.as_ref().map(rate_limit_headers).into_iter().flatten());
    if let Some(status) = cache_status_of(answer) {
        headers.insert(HeaderName::from_static("cache-status"), status);
    }
    if let Some(age) = age_seconds(answer.cache) {
        headers.insert(header::AGE, age.into());
    }
}

/// Writes the id that the host gave a request, of an answer or of a [`Status`](tonic::Status).
pub fn write_request_id(id: &str, metadata: &mut MetadataMap) {
    if let Ok(id) = HeaderValue::from_str(id) {
        metadata.as_mut().insert(X_REQUEST_ID, id);
    }
}

fn headers(metadata: &MetadataMap) -> &HeaderMap {
    metadata.as_ref()
}
