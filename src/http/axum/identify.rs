use super::ErrorResponse;
use crate::{
    RequestContext,
    http::{UNKNOWN_HEADER, anthropic, body_limits, stated_context, states_identity},
    stack::{Caller, Handle},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use std::borrow::Cow;

/// Finds out who asks, by the key in `Authorization: Bearer KEY` or `x-api-key`, and puts into the request's extensions what the extractors look
/// for there: the [`RequestContext`](crate::RequestContext), the [`BodyLimits`](crate::BodyLimits) of the configuration, and the [`Caller`](crate::stack::Caller).
///
/// An application whose key is trusted may say in [headers](crate::http::STATED) for whom it asks. Of anybody else those headers are refused,
/// never believed, and never ignored: who sends them is wrong about his rights. So is who sends a header `x-llm-…` that
/// [nobody reads](states_identity), whoever he is.
///
/// The caller is put there also if the request is refused for what it says of him. A header with an empty key is as none.
///
/// # Errors
///
/// 401 without a key that is known. 400 for two `Authorization` or `x-api-key`, or one of each with different keys, of which another server
/// might believe the other; for a header that says for whom, of somebody who is not trusted; and for one that cannot be read, or that nobody reads.
///
/// ```
/// use http::Request;
/// use llm_layers::{RequestContext, config::Config, http::axum::identify, stack::stack};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (_service, handle) = stack(Config::parse(r#"
///     usage.enabled = false
///     providers.echo.kind = "echo"
///     keys = [{ key = "ada-key", user = "ada", departments = ["research"] }]
/// "#)?).await?;
/// let mut request = Request::post("/v1/chat/completions").header("authorization", "Bearer ada-key").body(())?;
/// assert!(identify(&handle, &mut request).is_ok());
/// let context = request.extensions().get::<RequestContext>().ok_or("it was put there")?;
/// assert_eq!(context.user_id(), Some("ada"));
///
/// // Whoever sends no key, or another one, has had his answer.
/// assert!(identify(&handle, &mut Request::new(())).is_err());
/// # Ok(())
/// # }
/// ```
#[expect(clippy::result_large_err, reason = "it is answered at once")]
pub fn identify<B>(handle: &Handle, request: &mut Request<B>) -> Result<(), ErrorResponse> {
    let is_messages = anthropic::is_spoken(request.uri().path(), request.headers());
    let refused = |status, code, message: &str| {
        ErrorResponse::custom(status, "invalid_request_error", Some(code), message).for_messages(is_messages)
    };
    let invalid = |(code, message): Invalid| refused(StatusCode::BAD_REQUEST, code, &message);
    let Some(caller) = handle.caller(key(request.headers()).map_err(invalid)?) else {
        let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
        return Err(refused(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
            .with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
    };
    let context = context(&caller, request.headers());
    let limits = body_limits(&handle.config().server);
    let extensions = request.extensions_mut();
    extensions.insert(caller);
    extensions.insert(limits);
    extensions.insert(context.map_err(invalid)?);
    Ok(())
}

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The code and the message of a 400.
type Invalid = (&'static str, Cow<'static, str>);

/// As OpenAI's clients send it, or as Anthropic's do. Of two, another server might believe the other.
fn key(headers: &HeaderMap) -> Result<Option<&[u8]>, Invalid> {
    let is_twice = |name| headers.get_all(name).iter().nth(1).is_some();
    let (bearer, other) = (bearer(headers), headers.get(X_API_KEY).and_then(|key| said(key.as_bytes())));
    if is_twice(header::AUTHORIZATION) || is_twice(X_API_KEY) {
        return Err(("ambiguous_request", "the API key stands there twice".into()));
    }
    match (bearer, other) {
        (Some(one), Some(other)) if one != other => {
            Err(("ambiguous_request", "`Authorization` and `x-api-key` have different keys".into()))
        }
        (bearer, other) => Ok(bearer.or(other)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    said(key).filter(|_| scheme.eq_ignore_ascii_case(b"bearer "))
}

/// Clients send an empty one where they have none.
fn said(key: &[u8]) -> Option<&[u8]> {
    Some(key.trim_ascii()).filter(|key| !key.is_empty())
}

/// For whom the caller asks.
fn context(caller: &Caller, headers: &HeaderMap) -> Result<RequestContext, Invalid> {
    match states_identity(headers).map_err(|unknown| (UNKNOWN_HEADER, unknown.to_string().into()))? {
        false => Ok(caller.context().clone()),
        true if caller.is_trusted() => stated_context(headers, caller.context())
            .map_err(|wrong| ("invalid_identity", wrong.to_string().into())),
        true => Err(("untrusted_identity", "this key may not say in x-llm headers for whom it asks".into())),
    }
}

/// The refusal of a caller who has as many calls in flight as his key may have.
pub fn too_many_in_flight(is_messages: bool) -> ErrorResponse {
    let message = "too many calls of this key are in flight";
    let (kind, code) = ("rate_limit_error", Some("too_many_in_flight"));
    let refused = ErrorResponse::custom(StatusCode::TOO_MANY_REQUESTS, kind, code, message);
    refused.for_messages(is_messages).with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}
