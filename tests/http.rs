//! The edge: what clients see of errors, answers and streams.
#![cfg(feature = "axum")]

use axum_core::{
    body::Body,
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use llm_layers::{
    BodyLimits, ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind, FinishReason, InvalidReason,
    LlmRequest, LlmResponse, Period, ProviderFailure, QuotaExceeded, QuotaKind, RequestContext, StreamChunk,
    TimeoutPhase, TokenUsage,
    body::{End, Observe},
    cache::CacheControl,
    fallback::{Chains, FallbackLayer},
    http::{
        Asked, FillIn, STATED,
        anthropic::MessageEvents,
        axum::{
            BodyBudget, ChatAnswer, ChatRequest, CountTokensRequest, ErrorResponse, Events, MessagesAnswer,
            MessagesRequest, TokenCount,
        },
        into_chunks, states_identity,
    },
    timeout::CallTimeoutLayer,
};
use serde_json::{Value, json};
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_test::{assert_pending, assert_ready, task};
use tower::Layer as _;

// ===== errors =====

fn upstream(class: ErrorClass, status: u16) -> ProviderFailure {
    let mut failure = ProviderFailure::new(class, "acme", "m");
    failure.status = StatusCode::from_u16(status).ok();
    failure.body = Some(Bytes::from_static(b"your key sk-secret said tell me"));
    failure
}

fn provider(class: ErrorClass, status: u16) -> ErrorKind {
    ErrorKind::Provider(upstream(class, status))
}

async fn parts(response: Response) -> (http::response::Parts, Bytes) {
    let (head, body) = response.into_parts();
    (head, body.collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn a_client_is_told_which_member_a_provider_refuses_and_not_what_is_wrong_with_its_account() {
    for (class, shown) in [
        (ErrorClass::BadRequest, json!("temperature")),
        (ErrorClass::ContextWindow, json!("temperature")),
        (ErrorClass::Auth, Value::Null),
        (ErrorClass::Upstream, Value::Null),
    ] {
        let mut failure = upstream(class, 400);
        failure.param = Some("temperature".into());
        let refused = ErrorResponse::from(Error::new(ErrorKind::Provider(failure)));
        let (_, body) = parts(refused.into_response()).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["param"], shown, "{class:?}");
    }
}

#[tokio::test]
async fn each_kind_of_error_has_one_meaning() {
    let invalid = |reason| ErrorKind::InvalidRequest { member: Some("messages".into()), reason };
    let whole = |reason| ErrorKind::InvalidRequest { member: None, reason };
    let limited = {
        let mut failure = upstream(ErrorClass::RateLimited, 429);
        failure.retry_after = Some(Duration::from_millis(2100));
        ErrorKind::Provider(failure)
    };
    let coded = |code: &str| {
        let mut failure = upstream(ErrorClass::BadRequest, 422);
        failure.code = Some(code.into());
        ErrorKind::Provider(failure)
    };
    let timeout = ErrorKind::Timeout { phase: TimeoutPhase::Head };
    let interrupted = ErrorKind::StreamInterrupted { model: None, after_content: false };
    let (request, server) = ("invalid_request_error", "server_error");
    let (limits, rights) = ("rate_limit_error", "permission_error");
    #[rustfmt::skip]
    let table = [
        // kind, status, type, code, retry-after, x-should-retry
        (whole(InvalidReason::Syntax { line: 1, column: 2 }), 400, request, None, None, None),
        (invalid(InvalidReason::Duplicate), 400, request, None, None, None),
        (invalid(InvalidReason::Missing), 400, request, Some("missing_required_parameter"), None, None),
        (invalid(InvalidReason::Empty), 400, request, Some("empty_array"), None, None),
        (invalid(InvalidReason::Mistyped { expected: "a" }), 400, request, Some("invalid_type"), None, None),
        (whole(InvalidReason::TooDeep { limit: 1 }), 400, request, None, None, None),
        (whole(InvalidReason::TooMany { limit: 1 }), 400, request, None, None, None),
        (whole(InvalidReason::TooLarge { limit: 1 }), 413, request, None, None, None),
        (whole(InvalidReason::MediaType), 415, request, None, None, None),
        (whole(InvalidReason::Encoded), 415, request, None, None, None),
        (whole(InvalidReason::Framing), 400, request, None, None, None),
        (invalid(InvalidReason::UnknownHeader), 400, request, Some("unknown_header"), None, None),
        (ErrorKind::RequestTooLarge { department_id: "d".into(), quota: llm_layers::QuotaKind::Tokens, period: llm_layers::Period::Day, largest: 1 }, 400, request, Some("request_exceeds_limit"), None, None),
        (ErrorKind::ModelNotAllowed { department_id: "d".into(), model: "m".into() }, 403, rights, Some("model_not_allowed"), None, None),
        (ErrorKind::ModelUnpriced { model: "m".into() }, 403, rights, Some("model_unpriced"), None, None),
        (ErrorKind::ModelNotFound { model: "m".into() }, 404, request, Some("model_not_found"), None, None),
        (ErrorKind::NoProvider, 503, server, Some("no_provider"), Some("1"), None),
        (ErrorKind::StoreUnavailable { store: "quota".into() }, 503, server, Some("usage_store_unavailable"), Some("1"), None),
        (ErrorKind::Overloaded, 503, server, Some("overloaded"), Some("1"), None),
        (limited, 429, limits, Some("rate_limit_exceeded"), Some("3"), None),
        (provider(ErrorClass::BadRequest, 422), 422, request, None, None, None),
        (coded("unsupported_value"), 422, request, Some("unsupported_value"), None, None),
        (coded("sk-Secret 1"), 422, request, None, None, None),
        // Who has no code says the type again.
        (coded("invalid_request_error"), 422, request, None, None, None),
        (provider(ErrorClass::ContextWindow, 413), 413, request, Some("context_length_exceeded"), None, None),
        (provider(ErrorClass::ContextWindow, 429), 400, request, Some("context_length_exceeded"), None, None),
        (provider(ErrorClass::ContentFilter, 500), 400, request, Some("content_filter"), None, None),
        (provider(ErrorClass::Auth, 401), 502, server, Some("upstream_error"), None, Some("false")),
        (provider(ErrorClass::TooLarge, 200), 502, server, Some("upstream_error"), None, Some("false")),
        (provider(ErrorClass::Upstream, 500), 502, server, Some("upstream_error"), None, None),
        (provider(ErrorClass::Connect, 0), 502, server, Some("upstream_error"), None, None),
        (provider(ErrorClass::Unavailable, 503), 502, server, Some("upstream_error"), None, None),
        (ErrorKind::EmptyResponse { model: "m".into() }, 502, server, Some("upstream_error"), None, None),
        (interrupted, 502, server, Some("upstream_error"), None, None),
        (timeout, 504, server, Some("timeout"), None, None),
        (ErrorKind::NotCached, 504, server, Some("not_cached"), None, Some("false")),
        (ErrorKind::Cancelled, 499, server, Some("cancelled"), None, None),
        (ErrorKind::Other, 500, server, Some("internal_error"), None, Some("false")),
    ];
    for (kind, status, error_type, code, retry_after, should_retry) in table {
        let param = match &kind {
            ErrorKind::InvalidRequest { member, .. } => member.clone(),
            ErrorKind::ModelNotFound { .. }
            | ErrorKind::ModelNotAllowed { .. }
            | ErrorKind::ModelUnpriced { .. } => Some("model".into()),
            _ => None,
        };
        let error = Error::new(kind).with_source("sk-secret");
        let (message, name) = (error.to_string(), format!("{error:?}"));
        let (head, body) = parts(ErrorResponse::from(error).into_response()).await;
        let header = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(head.status, status, "{name}");
        assert_eq!(header("content-type"), Some("application/json"), "{name}");
        assert_eq!(header("retry-after"), retry_after, "{name}");
        assert_eq!(header("x-should-retry"), should_retry, "{name}");
        assert!(!body.windows(3).any(|w| w == b"sk-"), "{name}");
        let body: Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({ "message": message, "type": error_type, "param": param, "code": code });
        assert_eq!(body, json!({ "error": expected }), "{name}");
        assert!(head.extensions.get::<Error>().is_some(), "{name}");
    }
}

#[tokio::test]
async fn who_would_be_answered_nothing_again_is_told_not_to_ask() {
    let empty = || Error::new(ErrorKind::EmptyResponse { model: "m".into() });
    for (error, should_retry) in [
        (empty(), None),
        (empty().with_finish_reason(FinishReason::Stop), None),
        (empty().with_finish_reason(FinishReason::Length), Some("false")),
    ] {
        let (head, _) = parts(ErrorResponse::from(error).into_response()).await;
        assert_eq!(head.status, 502);
        let told = head.headers.get("x-should-retry").map(|value| value.to_str().unwrap());
        assert_eq!(told, should_retry);
    }
}

// ===== requests =====

const CHAT: &str = r#"{"model":"fast","messages":[{"role":"user","content":"Hi"}]}"#;

async fn extract(request: Request) -> Result<LlmRequest, (u16, Value)> {
    match ChatRequest::from_request(request, &()).await {
        Ok(ChatRequest(request)) => Ok(request),
        Err(refused) => {
            let (head, body) = parts(refused.into_response()).await;
            Err((head.status.as_u16(), serde_json::from_slice(&body).unwrap()))
        }
    }
}

fn post(content_type: &str, body: impl Into<Body>) -> Request {
    Request::post("/").header(header::CONTENT_TYPE, content_type).body(body.into()).unwrap()
}

#[tokio::test]
async fn who_asks_comes_from_the_extensions_and_the_id_from_the_header() {
    let mut request = post("application/json; charset=utf-8", CHAT);
    request.extensions_mut().insert(RequestContext::new().with_user_id("ada"));
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    let request = extract(request).await.unwrap();
    assert_eq!(request.model, "fast");
    assert_eq!(request.context.user_id(), Some("ada"));
    assert_eq!(request.context.request_id(), Some("r-1"));

    let mut request = post("application/vnd.acme+json", CHAT);
    request.extensions_mut().insert(RequestContext::new().with_request_id("host"));
    request.headers_mut().insert("x-request-id", "client".parse().unwrap());
    assert_eq!(extract(request).await.unwrap().context.request_id(), Some("host"));
}

#[tokio::test]
async fn an_id_that_may_not_be_repeated_is_none() {
    for id in ["", "a b", "ü", &"x".repeat(129)] {
        let mut request = post("application/json", CHAT);
        request.headers_mut().insert("x-request-id", http::HeaderValue::from_bytes(id.as_bytes()).unwrap());
        assert_eq!(extract(request).await.unwrap().context.request_id(), None, "{id}");
    }
}

#[tokio::test]
async fn what_a_client_asks_of_the_cache_is_in_the_context_and_only_narrows_what_the_host_has_said() {
    let seconds = Duration::from_secs;
    let host = CacheControl::new().with_no_store().with_max_age(seconds(60));
    let cases = [
        (None, "", CacheControl::new()),
        (None, "no-cache, max-age=9", CacheControl::new().with_no_cache().with_max_age(seconds(9))),
        (Some(host), "", host),
        (Some(host), "only-if-cached, max-age=9", host.with_only_if_cached().with_max_age(seconds(9))),
        (Some(host), "max-age=600", host),
    ];
    for (host, said, expected) in cases {
        let request = |body: &'static str| {
            let mut request = post("application/json", body);
            if let Some(host) = host {
                request.extensions_mut().insert(RequestContext::new().with_cache_control(host));
            }
            request.headers_mut().insert(header::CACHE_CONTROL, said.parse().unwrap());
            request
        };
        let ChatRequest(chat) = ChatRequest::from_request(request(CHAT), &()).await.unwrap();
        let MessagesRequest(message) = MessagesRequest::from_request(request(MESSAGE), &()).await.unwrap();
        assert_eq!(chat.context.cache_control(), expected, "{said}");
        assert_eq!(message.context.cache_control(), expected, "{said}");
    }
    let mut old = post("application/json", CHAT);
    old.headers_mut().insert(header::PRAGMA, "no-cache".parse().unwrap());
    assert!(extract(old).await.unwrap().context.cache_control().no_cache);
}

#[tokio::test]
async fn whoever_asks_how_long_a_prompt_is_is_told_without_a_call() {
    let asked = r#"{"model":"fast","messages":[{"role":"user","content":"Hi"}]}"#;
    let mut request = post("application/json", asked);
    request.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
    let CountTokensRequest(request) = CountTokensRequest::from_request(request, &()).await.unwrap();
    let (head, body) = parts(TokenCount::of(request, ()).await.into_response()).await;
    assert_eq!((head.status, head.headers["request-id"].as_bytes()), (StatusCode::OK, &b"mine-1"[..]));
    assert_eq!(head.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(body, r#"{"input_tokens":8}"#);

    let nothing = post("application/json", r#"{"model":"fast","messages":[]}"#);
    let refused = CountTokensRequest::from_request(nothing, &()).await.unwrap_err();
    let (head, body) = parts(refused.into_response()).await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((head.status, &body["type"]), (StatusCode::BAD_REQUEST, &json!("error")));
}

#[test]
fn what_bounds_counts_is_held_until_they_have_ended_though_nobody_waits_for_them() {
    // One that counts at a time: the next one waits for it.
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let before = tokio::task::spawn_blocking(move || gate.recv());
        let budget = BodyBudget::new(1 << 20);
        let mut request = post("application/json", MESSAGE);
        let held = budget.hold(&mut request, 1 << 20).unwrap();
        let CountTokensRequest(request) = CountTokensRequest::from_request(request, &()).await.unwrap();
        assert_eq!(budget.held(), MESSAGE.len());
        let mut counting = task::spawn(TokenCount::of(request, held));
        assert_pending!(counting.poll());
        drop(counting);
        assert_eq!(budget.held(), MESSAGE.len(), "its caller has left, and it counts all the same");
        open.send(()).unwrap();
        before.await.unwrap().unwrap();
        // Those who come later have their turn later.
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        assert_eq!(budget.held(), 0);
    });
}

#[tokio::test]
async fn a_tool_is_called_by_the_name_that_its_caller_gave_it() {
    let name = "mcp__".repeat(20);
    for streaming in [false, true] {
        let asked = format!(
            r#"{{"model":"m","max_tokens":9,"stream":{streaming},"messages":[{{"role":"user","content":"Hi"}}],"tools":[{{"name":"{name}","input_schema":{{}}}}]}}"#
        );
        let mut request = Request::new(Body::from(asked));
        request.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
        let MessagesRequest(request) = MessagesRequest::from_request(request, &()).await.unwrap();
        let tool: Value = serde_json::from_slice(request.body.tools().next().unwrap()).unwrap();
        let call = json!({ "id": "a", "type": "function", "function": { "name": tool["function"]["name"], "arguments": "{}" } });
        let message =
            json!({ "choices": [{ "message": { "tool_calls": [call] }, "finish_reason": "tool_calls" }] });
        let answer = LlmResponse::new("m", Completion::parse(message.to_string()).unwrap());
        let answer = MessagesAnswer::new(Asked::by(&request), Ok(answer)).into_response();
        let body = parts(answer).await.1;
        assert!(std::str::from_utf8(&body).unwrap().contains(&format!("\"name\":\"{name}\"")), "{streaming}");
    }
}

const MESSAGE: &str = r#"{"model":"fast","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#;

/// What the extractors of both dialects make of a request with this timeout.
async fn timed(said: &[u8], host: Option<Duration>) -> [Result<LlmRequest, ErrorResponse>; 2] {
    let request = |body: &'static str| {
        let mut request = post("application/json", body);
        let host = host.map(|host| RequestContext::new().with_timeout(host));
        request.extensions_mut().insert(host.unwrap_or_default());
        request.headers_mut().insert("x-llm-timeout", http::HeaderValue::from_bytes(said).unwrap());
        request
    };
    [
        ChatRequest::from_request(request(CHAT), &()).await.map(|chat| chat.0),
        MessagesRequest::from_request(request(MESSAGE), &()).await.map(|message| message.0),
    ]
}

#[tokio::test(start_paused = true)]
async fn seed_26_a_call_ends_when_its_caller_stops_waiting() {
    let second = Duration::from_secs(1);
    let now = tokio::time::Instant::now().into_std();
    for (said, host, expected) in [
        ("2.5", None, 2.5),
        (" 30 ", None, 30.0),
        (".5", None, 0.5),
        ("30", Some(3 * second), 3.0),
        ("1", Some(3 * second), 1.0),
        ("99999999999999999999999", Some(3 * second), 3.0),
    ] {
        for request in timed(said.as_bytes(), host).await {
            let deadline = request.unwrap().context.deadline();
            assert_eq!(deadline, Some(now + Duration::from_secs_f64(expected)), "{said}");
        }
    }
    // It bounds the head of an answer, and a stream that has begun; and the stack's own bounds hold all the same.
    for (is_begun, said, expected) in
        [(false, "2.5", 2.5), (true, "2.5", 2.5), (false, "999", 9.0), (true, "9".repeat(400).as_str(), 9.0)]
    {
        for dialect in 0..2 {
            let request = timed(said.as_bytes(), None).await.into_iter().nth(dialect).unwrap();
            let leaf = tower::service_fn(move |request: LlmRequest| async move {
                let begun = stream::iter([Ok::<_, Error>(StreamChunk::text("Hi"))]).chain(stream::pending());
                match is_begun {
                    true => Ok::<_, Error>(LlmResponse::new(request.model, ChunkStream::new(begun))),
                    false => std::future::pending().await,
                }
            });
            let started = tokio::time::Instant::now();
            let service = CallTimeoutLayer::new().with_total(9 * second).layer(leaf);
            let error = match tower::ServiceExt::oneshot(service, request.unwrap()).await {
                Ok(answer) => answer.text().await.unwrap_err(),
                Err(error) => error,
            };
            let phase = if expected < 9.0 { TimeoutPhase::Deadline } else { TimeoutPhase::Total };
            assert!(matches!(error.kind(), ErrorKind::Timeout { phase: at } if *at == phase), "{error}");
            assert_eq!(error.status(), 504);
            let took = started.elapsed().as_secs_f64();
            assert!((expected..expected + 0.01).contains(&took), "{said} {took}");
        }
    }
}

#[tokio::test]
async fn a_timeout_that_cannot_be_read_is_the_callers_mistake() {
    for said in [
        "",
        "0",
        "0.000",
        "0.0000000001",
        "-1",
        "+1",
        "1e3",
        "inf",
        "nan",
        "5s",
        "1.2.3",
        ".",
        "1,5",
        "\u{fc}",
    ] {
        for refused in timed(said.as_bytes(), None).await {
            let (head, body) = parts(refused.unwrap_err().into_response()).await;
            assert_eq!(head.status, 400, "{said}");
            let body: Value = serde_json::from_slice(&body).unwrap();
            let message = "`x-llm-timeout` must be a number of seconds above 0";
            assert_eq!(body["error"]["message"], message, "{said}");
        }
    }
    let mut twice = post("application/json", CHAT);
    for said in ["1", "2"] {
        twice.headers_mut().append("x-llm-timeout", said.parse().unwrap());
    }
    let (status, body) = extract(twice).await.unwrap_err();
    assert_eq!((status, &body["error"]["param"]), (400, &json!("x-llm-timeout")));
}

/// Who asks is found out by the host here: a name that means nothing is refused all the same.
#[tokio::test]
async fn a_header_of_this_family_that_nobody_reads_is_refused_by_its_name() {
    let asks = |name: &str| {
        let mut request = post("application/json", CHAT);
        request
            .headers_mut()
            .insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), "1".parse().unwrap());
        extract(request)
    };
    let known = http::HeaderMap::from_iter(STATED.into_iter().map(|name| (name, "a".parse().unwrap())));
    assert_eq!(states_identity(&known), Ok(true));
    for name in
        STATED.iter().map(http::HeaderName::as_str).chain(["x-llm-timeout", "x-llmtenant", "llm-user"])
    {
        assert!(asks(name).await.is_ok(), "{name}");
    }
    let long = format!("x-llm-{}", "a".repeat(10_000));
    for name in ["x-llm-department", "x-llm-users", "x-llm-", &long] {
        let (status, body) = asks(name).await.unwrap_err();
        assert_eq!((status, &body["error"]["code"]), (400, &json!("unknown_header")), "{name}");
        assert!(name.starts_with(body["error"]["param"].as_str().unwrap()), "{body}");
        assert!(body.to_string().len() < 400, "{body}");
        let header = http::HeaderMap::from_iter([(
            http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
            "a".parse().unwrap(),
        )]);
        assert!(states_identity(&header).unwrap_err().to_string().len() < 100);
    }
}

#[tokio::test]
async fn what_is_json_by_its_content_type_is_read_however_it_is_written() {
    for content_type in ["Application/JSON", " application/json ;charset=utf-8", "APPLICATION/vnd.acme+Json"]
    {
        assert!(extract(post(content_type, CHAT)).await.is_ok(), "{content_type}");
    }
}

#[tokio::test]
async fn what_is_not_json_by_its_content_type_is_refused_unread() {
    for content_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/xjson",
        "application/",
        "text/json",
        "json",
        "",
    ] {
        let (status, body) = extract(post(content_type, CHAT)).await.unwrap_err();
        assert_eq!(
            (status, &body["error"]["type"]),
            (415, &json!("invalid_request_error")),
            "{content_type}"
        );
    }
    for (encoding, status) in
        [("gzip", Some(415)), ("identity", None), ("Identity", None), ("br, gzip", Some(415))]
    {
        let mut request = post("application/json", CHAT);
        request.headers_mut().insert("content-encoding", http::HeaderValue::from_static(encoding));
        assert_eq!(extract(request).await.err().map(|(status, _)| status), status, "{encoding}");
    }
    let mut request = post("application/json", CHAT);
    for encoding in ["identity", "gzip"] {
        request.headers_mut().append("content-encoding", http::HeaderValue::from_static(encoding));
    }
    assert_eq!(extract(request).await.unwrap_err().0, 415);
    let bare = Request::post("/").body(Body::from(CHAT)).unwrap();
    assert_eq!(extract(bare).await.unwrap_err().0, 415);
}

#[tokio::test]
async fn where_nobody_knows_where_a_refused_body_ends_the_connection_is_closed() {
    use std::io::{Error, ErrorKind};

    let (json, text) = ("application/json", "text/plain");
    let data = || Ok(http_body::Frame::data(Bytes::from_static(b"{")));
    let malformed = || Err(Error::from(ErrorKind::InvalidData));
    let broken = || Err(Error::from(ErrorKind::ConnectionReset));
    for (kind, frames, expects, status, is_closed) in [
        (json, vec![data()], false, 400, false),
        (json, vec![data(), malformed()], false, 400, true),
        (json, vec![data(), malformed(), data()], false, 400, true),
        (text, vec![data()], false, 415, false),
        (text, vec![data(), malformed()], false, 415, true),
        (text, vec![data(), broken()], false, 415, true),
        (text, vec![data()], true, 415, true),
    ] {
        let mut request = post(kind, Body::new(http_body_util::StreamBody::new(stream::iter(frames))));
        if expects {
            request.headers_mut().insert(header::EXPECT, http::HeaderValue::from_static("100-continue"));
        }
        let refused = ChatRequest::from_request(request, &()).await.unwrap_err();
        let (head, body) = parts(refused.into_response()).await;
        let is_close = head.headers.get(header::CONNECTION).is_some_and(|value| value == "close");
        assert_eq!((head.status.as_u16(), is_close), (status, is_closed), "{kind} {body:?}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_with_or_without_a_length() {
    let limits = BodyLimits::default().with_max_bytes(CHAT.len() - 1);
    let halves = CHAT.as_bytes().chunks(10).map(|part| Ok::<_, Error>(Bytes::copy_from_slice(part)));
    let unsized_body = Body::new(http_body_util::StreamBody::new(stream::iter(
        halves.map(|part| part.map(http_body::Frame::data)).collect::<Vec<_>>(),
    )));
    for body in [Body::from(CHAT), unsized_body] {
        let mut request = post("application/json", body);
        request.extensions_mut().insert(limits.clone());
        assert_eq!(extract(request).await.unwrap_err().0, 413);
    }
    let mut request = post("application/json", CHAT);
    request.extensions_mut().insert(BodyLimits::default().with_max_bytes(CHAT.len()));
    assert!(extract(request).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_announced_too_large_is_refused_though_it_does_not_come() {
    struct Announced(u64);
    impl http_body::Body for Announced {
        type Data = Bytes;
        type Error = Error;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Error>>> {
            std::task::Poll::Pending
        }

        fn size_hint(&self) -> http_body::SizeHint {
            http_body::SizeHint::with_exact(self.0)
        }
    }
    for (size, seconds) in [(1 << 40, 0), (1001, 5)] {
        let mut request = post("application/json", Body::new(Announced(size)));
        request.extensions_mut().insert(BodyLimits::default().with_max_bytes(1000));
        let since = tokio::time::Instant::now();
        assert_eq!(extract(request).await.unwrap_err().0, 413);
        assert_eq!(since.elapsed().as_secs(), seconds, "{size}");
    }
}

#[tokio::test]
async fn a_bad_body_names_the_member() {
    for (body, param) in [
        ("{", Value::Null),
        (r#"{"messages":[]}"#, json!("messages")),
        (r#"{"messages":[{"role":"user"}]}"#, json!("model")),
        (r#"{"model":"a","mod\u0065l":"b","messages":[{"role":"user"}]}"#, json!("model")),
        (r#"{"model":"a","messages":[{"role":7}]}"#, json!("messages[0].role")),
    ] {
        let (status, said) = extract(post("application/json", body)).await.unwrap_err();
        assert_eq!((status, &said["error"]["param"]), (400, &param), "{body}");
    }
}

// ===== filling in =====

fn fill() -> FillIn {
    FillIn::new("acme/m").with_id("own").with_created(7)
}

fn whole(json: &str) -> Completion {
    Completion::parse(json.to_owned()).unwrap()
}

fn chunk(json: &str) -> StreamChunk {
    StreamChunk::parse(json.to_owned()).unwrap()
}

#[test]
fn a_whole_answer_gets_what_it_lacks_and_keeps_the_rest() {
    for (said, expected) in [
        (
            r#"{"choices":[{"message":{"content":"x"}}]}"#,
            r#"{"id":"own","object":"chat.completion","created":7,"model":"acme/m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"x"}}]}"#,
        ),
        (
            r#" { "choices" : [ {"message":{"tool_calls":[{"id":"c"}]}, "finish_reason": null} ], "id": null, "big": 1e400, "model":"theirs" } "#,
            r#"{"object":"chat.completion","created":7, "choices" : [ {"index":0,"message":{"role":"assistant","tool_calls":[{"id":"c"}]}, "finish_reason": "tool_calls"} ], "id": "own", "big": 1e400, "model":"theirs" }"#,
        ),
        ("{}", r#"{"id":"own","object":"chat.completion","created":7,"model":"acme/m","choices":[]}"#),
        (
            r#"{"id":7,"object":"other","created":0.5,"model":"","choices":[{},{"index":5,"finish_reason":""}]}"#,
            r#"{"id":7,"object":"other","created":0.5,"model":"acme/m","choices":[{"index":0,"finish_reason":"stop"},{"index":5,"finish_reason":"stop"}]}"#,
        ),
    ] {
        let filled = fill().completion(&whole(said));
        assert_eq!(filled, expected);
        assert!(serde_json::from_slice::<Value>(&filled).is_ok() || said.contains("1e400"));
    }
}

#[test]
fn what_lacks_nothing_is_the_same_bytes() {
    let full = whole(
        r#"{"id":"a","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"x","tool_calls":[{"id":"c"}]},"finish_reason":"stop"}]}"#,
    );
    assert_eq!(fill().completion(&full).as_ptr(), full.data().as_ptr());

    let (mut fill, head) = (fill(), r#""id":"a","object":"chat.completion.chunk","created":1,"model":"m""#);
    let first = fill.chunk(&chunk(&format!(r#"{{{head},"choices":[{{"index":7,"delta":{{}}}}]}}"#)));
    assert_eq!(first, format!(r#"{{{head},"choices":[{{"index":7,"delta":{{"role":"assistant"}}}}]}}"#));
    let mut fill = self::fill();
    for delta in [r#"{"role":"assistant"}"#, r#"{"content":"x"}"#, "{}"] {
        let full = chunk(&format!(r#"{{{head},"choices":[{{"index":0,"delta":{delta}}}]}}"#));
        assert_eq!(fill.chunk(&full).as_ptr(), full.data().as_ptr(), "{delta}");
    }
}

#[test]
fn only_the_first_delta_of_each_choice_gets_a_role() {
    let mut fill = fill().with_choices(2);
    let head = r#""id":"own","object":"chat.completion.chunk","created":7,"model":"acme/m","#;
    for (said, expected) in [
        (r#"{"choices":[]}"#, r#""choices":[]}"#),
        (
            r#"{"choices":[{"index":1,"delta":{}}]}"#,
            r#""choices":[{"index":1,"delta":{"role":"assistant"}}]}"#,
        ),
        (
            r#"{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":null}]}"#,
            r#""choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"role":"assistant"}}]}"#,
        ),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
            r#""choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        ),
    ] {
        assert_eq!(fill.chunk(&chunk(said)), format!("{{{head}{expected}"));
    }
}

#[test]
fn a_delta_or_message_that_is_no_object_becomes_one() {
    let head =
        r#""id":"own","object":"chat.completion.chunk","created":7,"model":"acme/m","choices":[{"index":0,"#;
    for odd in ["[]", r#"["x"]"#, "7", r#""""#] {
        let mut fill = fill();
        for delta in [r#"{"role":"assistant"}"#, "{}"] {
            let chunk = chunk(&format!(r#"{{{head}"delta":{odd},"finish_reason":"stop"}}]}}"#));
            let expected = format!(r#"{{{head}"delta":{delta},"finish_reason":"stop"}}]}}"#);
            assert_eq!(fill.chunk(&chunk), expected, "{odd}");
        }
        let head = head.replace(".chunk", "");
        let said = whole(&format!(r#"{{{head}"message":{odd},"finish_reason":"stop"}}]}}"#));
        let expected =
            format!(r#"{{{head}"message":{{"role":"assistant","content":null}},"finish_reason":"stop"}}]}}"#);
        assert_eq!(fill.completion(&said), expected, "{odd}");
    }
}

#[test]
fn a_terminal_chunk_with_content_lacks_nothing_either() {
    let last = || chunk(r#"{"choices":[{"delta":{"content":"a"}}]}"#).into_final();
    let expected = r#"{"id":"own","object":"chat.completion.chunk","created":7,"model":"acme/m","choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}]}"#;
    assert_eq!(fill().chunk(&last()), expected);
    assert!(fill().chunk(&StreamChunk::end()).is_empty());
}

#[test]
fn chunks_agree_on_the_id_and_model_that_the_first_one_gave() {
    let mut fill = fill();
    fill.chunk(&chunk(r#"{"id":"theirs","model":"m-1","choices":[]}"#));
    let last: Value = serde_json::from_slice(&fill.chunk(&chunk("{}"))).unwrap();
    assert_eq!((&last["id"], &last["model"]), (&json!("theirs"), &json!("m-1")));

    // As Azure begins.
    let mut fill = self::fill();
    let first = fill.chunk(&chunk(
        r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}"#,
    ));
    assert_eq!(
        first,
        r#"{"choices":[],"created":0,"id":"","model":"acme/m","object":"chat.completion.chunk","prompt_filter_results":[{"prompt_index":0}]}"#
    );
    fill.chunk(&chunk(r#"{"id":"theirs","model":"m-1","choices":[]}"#));
    for nameless in ["{}", r#"{"id":"","model":" "}"#] {
        let last: Value = serde_json::from_slice(&fill.chunk(&chunk(nameless))).unwrap();
        assert_eq!((&last["id"], &last["model"]), (&json!("theirs"), &json!("m-1")), "{nameless}");
    }

    // Clients take another id for another answer, unless the one before was empty.
    let says = |id: &str, text: &str| {
        let id = if id.is_empty() { String::new() } else { format!(r#""id":{id},"#) };
        format!(r#"{{{id}"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#)
    };
    let tells = |id: &str| format!(r#"{{"id":{id},"choices":[],"prompt_filter_results":[]}}"#);
    for (stream, id) in [
        (vec![tells("\"\""), says("\"a\"", "x"), says("\"a\"", "y")], "a"),
        (vec![tells("\"\""), tells("\"\""), says("\"a\"", "x"), says("\"\"", "y"), says("", "z")], "a"),
        (vec![tells("\" \""), says("\"a\"", "x")], "own"),
        (vec![tells("\"\""), says("", "x"), says("\"a\"", "y")], "own"),
        (vec![tells("\"\""), says("\"\"", "x"), says("\"a\"", "y")], "own"),
        (vec![says("", "x"), says("\"a\"", "y"), says("null", "z")], "own"),
        (vec![tells("null"), says("\"a\"", "x"), says("\"a\"", "y")], "own"),
        (vec![says("\"a\"", "x"), says("\"b\"", "y"), tells("\"\""), says("", "z")], "a"),
        (vec![says("\"\\u0061\"", "x"), says("\"a\"", "y")], "a"),
    ] {
        let (mut fill, mut before) = (self::fill(), String::new());
        for said in &stream {
            let written: Value = serde_json::from_slice(&fill.chunk(&chunk(said))).unwrap();
            let told = written["id"].as_str().unwrap();
            assert!(told == id || told.is_empty() && before.is_empty(), "{told} in {stream:?}");
            before.push_str(told);
        }
        assert!(!before.is_empty(), "{stream:?}");
    }

    let own = |fill: &mut FillIn| -> Value { serde_json::from_slice(&fill.chunk(&chunk("{}"))).unwrap() };
    let mut generated = FillIn::new("m");
    let id = own(&mut generated)["id"].clone();
    assert_eq!(own(&mut generated)["id"], id);
    assert_ne!(own(&mut FillIn::new("m"))["id"], id);
}

#[test]
fn tool_calls_without_a_number_are_told_apart_by_their_ids_and_names() {
    let mut fill = fill();
    let mut numbers = |calls: &str| -> Vec<u64> {
        let said = format!(r#"{{"choices":[{{"index":0,"delta":{{"tool_calls":{calls}}}}}]}}"#);
        let filled: Value = serde_json::from_slice(&fill.chunk(&chunk(&said))).unwrap();
        let calls = filled["choices"][0]["delta"]["tool_calls"].as_array().unwrap();
        calls.iter().map(|call| call["index"].as_u64().unwrap()).collect()
    };
    assert_eq!(numbers(r#"[{"id":"a"}]"#), [0]);
    assert_eq!(numbers(r#"[{"function":{"arguments":"{"}}]"#), [0]);
    assert_eq!(numbers(r#"[{"id":"a"}]"#), [0]);
    assert_eq!(numbers(r#"[{"id":"b"},{"id":"c"}]"#), [1, 2]);
    assert_eq!(numbers(r#"[{"id":""}]"#), [2]);
    assert_eq!(numbers(r#"[{"function":{}},{"function":{}}]"#), [2, 3]);
    assert_eq!(numbers(r#"[{"id":"d","index":null},{"index":9}]"#), [4, 9]);
    assert_eq!(numbers(r#"[{"function":{"name":"","arguments":"}"}}]"#), [9]);
    assert_eq!(numbers(r#"[{"id":null,"function":{"name":"f"}}]"#), [10]);
    assert_eq!(numbers(r#"[{"function":{"name":"f"}}]"#), [11]);
    assert_eq!(numbers(r#"[{"id":"e","function":{"name":"f"}}]"#), [12]);
    assert_eq!(numbers(r#"[{"id":"e","function":{"name":"f"}}]"#), [12]);
}

#[test]
fn tool_calls_that_share_a_number_are_given_their_own_and_others_keep_their_bytes() {
    let said = |calls: &str| {
        chunk(&format!(
            r#"{{"id":"a","object":"o","created":1,"model":"m","choices":[{{"index":0,"delta":{{"tool_calls":{calls}}}}}]}}"#
        ))
    };
    let mut fill = fill();
    fill.chunk(&chunk(r#"{"id":"a","choices":[{"index":0,"delta":{"role":"assistant"}}]}"#));
    for (calls, expected) in [
        (r#"[{"index":0,"id":"a","function":{"name":"f"}}]"#, None),
        (r#"[{"index":0,"function":{"arguments":"1"}}]"#, None),
        (r#"[{"index":0,"id":"z","function":{"arguments":"1"}}]"#, None),
        (
            r#"[ {"index" : 0, "id":"b","function":{"name":"f"}}]"#,
            Some(r#"[ {"index" : 1, "id":"b","function":{"name":"f"}}]"#),
        ),
        (
            r#"[{"function":{"arguments":"2"},"index":0}]"#,
            Some(r#"[{"function":{"arguments":"2"},"index":1}]"#),
        ),
        (r#"[{"index":"0","id":"b"}]"#, None),
        (r#"[{"index":2,"id":"c"},{"id":"d"}]"#, Some(r#"[{"index":2,"id":"c"},{"index":3,"id":"d"}]"#)),
        (
            r#"[{"index":2,"id":"e","function":{"name":"f"}}]"#,
            Some(r#"[{"index":4,"id":"e","function":{"name":"f"}}]"#),
        ),
    ] {
        let (came, expected) = (said(calls), said(expected.unwrap_or(calls)));
        let filled = fill.chunk(&came);
        assert_eq!(filled, *expected.data());
        assert_eq!(
            came.data() == expected.data(),
            std::ptr::eq(filled.as_ptr(), came.data().as_ptr()),
            "{calls}"
        );
    }
}

// ===== whole answers as streams =====

#[test]
fn calls_that_are_no_objects_are_passed_on_as_they_came() {
    for calls in [json!([1]), json!([null]), json!(["x"]), json!([[]])] {
        let completion = whole(&json!({ "choices": [{ "message": { "tool_calls": calls } }] }).to_string());
        let streamed = chunk(&json!({ "choices": [{ "delta": { "tool_calls": calls } }] }).to_string());
        for chunk in [&streamed, &into_chunks(&completion)[0]] {
            let filled: Value = serde_json::from_slice(&fill().chunk(chunk)).expect("JSON");
            assert_eq!(filled["choices"][0]["delta"], json!({ "role": "assistant", "tool_calls": calls }));
        }
    }
}

#[test]
fn a_whole_answer_becomes_chunks_that_say_all_of_it() {
    let answer = whole(
        r#"{"id":"a","object":"chat.completion","created":1,"model":"m","system_fingerprint":"f","choices":[
            {"index":0,"message":{"content":"x","reasoning_content":"hm","refusal":null,"hologram":{"x":1.0}},"logprobs":null,"finish_reason":"length"},
            {"message":{"role":"assistant","content":null,"tool_calls":[{"id":"c"},{"id":"d","index":4}]}}],
           "usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
    );
    let chunks = into_chunks(&answer);
    let head = r#"{"object":"chat.completion.chunk","id":"a","created":1,"model":"m","#;
    let expected = [
        r#""system_fingerprint":"f","choices":[{"index":0,"logprobs":null,"delta":{"role":"assistant","content":"x","reasoning_content":"hm","refusal":null,"hologram":{"x":1.0}},"finish_reason":null}]}"#,
        r#""choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#,
        r#""choices":[{"index":1,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c"},{"id":"d","index":4}]},"finish_reason":null}]}"#,
        r#""choices":[{"index":1,"delta":{},"finish_reason":"tool_calls"}]}"#,
        r#""choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#,
    ];
    assert_eq!(chunks.len(), expected.len() + 1);
    for (chunk, expected) in chunks.iter().zip(expected) {
        assert_eq!(chunk.data(), &format!("{head}{expected}"));
    }
    assert!(chunks[4].is_usage_only());
    assert!(chunks[5].is_final() && chunks[5].data().is_empty());
}

// ===== answers =====

fn request(extra: &str) -> LlmRequest {
    let json = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"Hi"}}]{extra}}}"#);
    LlmRequest::parse(json).unwrap().with_context(RequestContext::new().with_request_id("r-1"))
}

fn answer(request: &LlmRequest, body: impl Into<llm_layers::ResponseBody>) -> Response {
    ChatAnswer::new(Asked::by(request), Ok(LlmResponse::new("acme/m", body))).into_response()
}

const FULL: &str = r#"{"id":"a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"x"}}]}"#;

fn streamed(items: Vec<Result<StreamChunk, Error>>) -> ChunkStream {
    ChunkStream::new(stream::iter(items))
}

#[tokio::test]
async fn a_whole_answer_is_json() {
    let completion = Completion::text("Hello", TokenUsage::new(1, 1));
    let (head, body) = parts(answer(&request(""), completion)).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.headers["content-type"], "application/json");
    assert_eq!(head.headers["x-request-id"], "r-1");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["choices"][0]["message"]["content"], "Hello");
    assert_eq!(body["model"], "acme/m");
}

#[test]
fn the_terminal_chunk_is_nothing_and_stays_nothing() {
    assert!(fill().chunk(&StreamChunk::end()).is_empty());
}

#[test]
fn how_an_answer_came_to_be_is_shown_only_where_the_host_says_so() {
    for is_shown in [None, Some(false), Some(true)] {
        let request = request("");
        let answered = LlmResponse::new("acme/large", whole("{}"));
        let answer = ChatAnswer::new(Asked::by(&request), Ok(answered));
        let answer = is_shown.into_iter().fold(answer, ChatAnswer::with_decisions);
        let headers = answer.into_response().into_parts().0.headers;
        let model = headers.get("x-llm-model").map(|value| value.to_str().unwrap());
        assert_eq!(model, (is_shown == Some(true)).then_some("acme/large"));
    }
}

#[tokio::test]
async fn an_error_is_an_error_and_has_the_id() {
    let failed = Err(Error::new(ErrorKind::Overloaded));
    let (head, _) = parts(ChatAnswer::new(Asked::by(&request("")), failed).into_response()).await;
    assert_eq!((head.status.as_u16(), &head.headers["x-request-id"]), (503, &"r-1".parse().unwrap()));
}

#[tokio::test]
async fn a_stream_is_events_to_the_byte() {
    let items = vec![
        Ok(chunk(FULL)),
        Ok(chunk(&FULL.replace("},", "},\r\n").replace('[', "[\n"))),
        Ok(StreamChunk::end()),
    ];
    let (head, body) = parts(answer(&request(r#","stream":true"#), streamed(items))).await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-cache"),
        ("x-accel-buffering", "no"),
        ("x-request-id", "r-1"),
    ] {
        assert_eq!(head.headers[name], value);
    }
    let spaced = FULL.replace("},", "},  ").replace('[', "[ ");
    assert_eq!(body, format!("data: {FULL}\n\ndata: {spaced}\n\ndata: [DONE]\n\n"));
}

#[tokio::test]
async fn usage_is_left_out_unless_it_was_asked_for() {
    let items = || {
        vec![
            Ok(StreamChunk::text("x")),
            Ok(StreamChunk::finish(&FinishReason::Stop)),
            Ok(StreamChunk::usage_only(TokenUsage::new(1, 1)).into_final()),
        ]
    };
    for (extra, events) in
        [(r#","stream":true"#, 3), (r#","stream":true,"stream_options":{"include_usage":true}"#, 4)]
    {
        let (_, body) = parts(answer(&request(extra), streamed(items()))).await;
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(body.matches("data: ").count(), events);
        assert_eq!(body.contains("prompt_tokens"), events == 4);
        assert_eq!(body.matches(r#""model":"acme/m""#).count(), events - 1, "all but the mark of the end");
        assert!(body.ends_with("\n\ndata: [DONE]\n\n"));
    }
}

#[tokio::test]
async fn what_is_said_along_with_usage_is_not_left_out() {
    let usage = r#"],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let items = vec![Ok(chunk(&FULL.replace("]}", usage))), Ok(StreamChunk::end())];
    let (_, body) = parts(answer(&request(r#","stream":true"#), streamed(items))).await;
    assert!(String::from_utf8(body.to_vec()).unwrap().contains(r#""content":"x""#));
}

#[tokio::test]
async fn what_a_provider_says_beside_the_usage_of_a_stream_is_not_left_out() {
    let usage = r#""usage":{"prompt_tokens":1,"completion_tokens":1}"#;
    for (beside, is_left_out) in [
        ("", true),
        (r#""system_fingerprint":"fp","service_tier":"default","provider":"p","obfuscation":"x","#, true),
        (r#""x_groq":{"id":"r"},"timings":{"predicted_n":1},"#, true),
        (r#""citations":[],"search_results":null,"#, true),
        (r#""citations":["https://a.example"],"#, false),
    ] {
        let last =
            FULL.split_once(r#""choices""#).unwrap().0.to_owned() + r#""choices":[],"# + beside + usage + "}";
        let items = vec![Ok(chunk(FULL)), Ok(chunk(&last)), Ok(StreamChunk::end())];
        let (_, body) = parts(answer(&request(r#","stream":true"#), streamed(items))).await;
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert_eq!(body.matches("data: ").count(), if is_left_out { 2 } else { 3 }, "{beside}");
        assert_eq!(body.contains("https://a.example"), !is_left_out, "{body}");
    }
}

#[tokio::test]
async fn a_whole_answer_is_streamed_to_who_asked_for_a_stream() {
    let completion = Completion::text("Hello", TokenUsage::new(1, 1));
    let (head, body) = parts(answer(&request(r#","stream":true"#), completion)).await;
    assert_eq!(head.headers["content-type"], "text/event-stream");
    let body = String::from_utf8(body.to_vec()).unwrap();
    let events: Vec<_> = body.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 3);
    let first: Value = serde_json::from_str(events[0].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(first["choices"][0]["delta"], json!({ "role": "assistant", "content": "Hello" }));
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(events[2], "data: [DONE]");
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_and_no_done() {
    let error = Error::provider(ErrorClass::Transport, "acme", "m").with_source("sk-secret");
    let message = error.to_string();
    let (head, body) =
        parts(answer(&request(r#","stream":true"#), streamed(vec![Ok(chunk(FULL)), Err(error)]))).await;
    assert_eq!(head.status, 200);
    let error = format!(
        r#"{{"error":{{"message":"{message}","type":"server_error","param":null,"code":"upstream_error"}}}}"#
    );
    assert_eq!(body, format!("data: {FULL}\n\ndata: {error}\n\n"));
}

// ===== events =====

type Items = mpsc::UnboundedSender<Result<StreamChunk, Error>>;

fn scripted() -> (Items, ChunkStream) {
    let (items, mut receive) = mpsc::unbounded_channel();
    (items, ChunkStream::new(stream::poll_fn(move |cx| receive.poll_recv(cx))))
}

fn frame(polled: Option<Result<http_body::Frame<Bytes>, std::convert::Infallible>>) -> String {
    let data = polled.unwrap().unwrap().into_data().unwrap();
    String::from_utf8(data.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn no_silence_at_all_sends_no_comments() {
    let (_items, chunks) = scripted();
    let mut events = task::spawn(Events::new(chunks, fill()).with_keep_alive(Some(Duration::ZERO)));
    assert_pending!(events.enter(|cx, body| body.poll_frame(cx)));
}

#[tokio::test(start_paused = true)]
async fn a_comment_is_sent_after_each_silence_and_a_chunk_is_not_delayed() {
    let (items, chunks) = scripted();
    let second = Duration::from_secs(1);
    let events = Events::new(chunks, fill()).with_keep_alive(Some(15 * second));
    let mut events = task::spawn(events);
    macro_rules! poll {
        () => {
            events.enter(|cx, body| body.poll_frame(cx))
        };
    }
    assert_pending!(poll!());
    tokio::time::advance(14 * second).await;
    assert_pending!(poll!());

    items.send(Ok(chunk(FULL))).unwrap();
    assert!(events.is_woken());
    assert_eq!(frame(assert_ready!(poll!())), format!("data: {FULL}\n\n"));

    // The silence begins anew; the old timer wakes it for nothing.
    assert_pending!(poll!());
    tokio::time::advance(14 * second).await;
    assert_pending!(poll!());
    for _ in 0..2 {
        tokio::time::advance(15 * second).await;
        assert!(events.is_woken());
        assert_eq!(frame(assert_ready!(poll!())), ": keep-alive\n\n");
        assert_pending!(poll!());
    }
    items.send(Ok(StreamChunk::end())).unwrap();
    assert_eq!(frame(assert_ready!(poll!())), "data: [DONE]\n\n");
    assert!(events.enter(|_, body| body.is_end_stream()));
    assert!(assert_ready!(poll!()).is_none());
}

#[tokio::test]
async fn chunks_that_are_ready_leave_together_within_bounds() {
    let big = StreamChunk::text("x".repeat(10 << 10));
    let items =
        [StreamChunk::text("a"), StreamChunk::text("b"), big.clone(), big.clone(), big, StreamChunk::end()];
    let mut events = Events::new(streamed(items.into_iter().map(Ok).collect()), fill());
    let mut frames = Vec::new();
    while let Some(frame) = events.frame().await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    let events: Vec<usize> = frames.iter().map(|f| f.windows(6).filter(|w| w == b"data: ").count()).collect();
    assert_eq!(events, [4, 2]);
}

/// How many polls and frames a stream takes whose chunks each come `after` so many polls.
fn polls_and_frames(chunks: usize, after: usize) -> (usize, usize) {
    let (mut polled, mut left) = (0_usize, chunks);
    let chunks = ChunkStream::new(stream::poll_fn(move |_| {
        polled += 1;
        if !polled.is_multiple_of(after + 1) {
            return Poll::Pending;
        }
        left = left.wrapping_sub(1);
        Poll::Ready(Some(Ok(if left == usize::MAX { StreamChunk::end() } else { chunk(FULL) })))
    }));
    let mut events = task::spawn(Events::new(chunks, fill()));
    let (mut polls, mut frames) = (0, 0);
    loop {
        polls += 1;
        match events.enter(|cx, body| body.poll_frame(cx)) {
            Poll::Ready(Some(_)) => frames += 1,
            Poll::Ready(None) => return (polls, frames),
            Poll::Pending => {}
        }
    }
}

#[test]
fn chunks_that_come_one_a_turn_are_written_together_and_slow_ones_alone() {
    let (_, frames) = polls_and_frames(100, 1);
    assert!((10..=20).contains(&frames), "{frames}");
    // The looks that are in vain: one at first, and one in seventeen.
    let (polls, frames) = polls_and_frames(100, 5);
    assert_eq!(frames, 101);
    assert!(polls < 700, "{polls}");
}

/// As hyper asks for frames, and as its client hands pieces on: each when the one before was taken, and its own task has its turn.
#[tokio::test]
async fn who_asks_twice_in_one_turn_gets_chunks_together_all_the_same() {
    let (feed, mut fed) = mpsc::channel(1);
    tokio::spawn(async move {
        for _ in 0..100 {
            feed.send(Ok(chunk(FULL))).await.unwrap();
        }
        feed.send(Ok(StreamChunk::end())).await.unwrap();
    });
    let chunks = ChunkStream::new(stream::poll_fn(move |cx| fed.poll_recv(cx)));
    let mut events = Events::new(chunks, fill());
    let mut twice = poll_fn(move |cx| match Pin::new(&mut events).poll_frame(cx) {
        Poll::Pending => Pin::new(&mut events).poll_frame(cx),
        frame => frame,
    });
    let mut frames = 0;
    while (&mut twice).await.is_some() {
        frames += 1;
    }
    assert!((10..=20).contains(&frames), "{frames}");
}

#[tokio::test]
async fn a_look_for_more_needs_nobody_to_wake_it() {
    let (items, chunks) = scripted();
    let mut events = Events::new(chunks, fill());
    for _ in 0..100 {
        items.send(Ok(chunk(FULL))).unwrap();
        assert_eq!(frame(events.frame().await), format!("data: {FULL}\n\n"));
    }
}

#[tokio::test]
async fn dropping_the_body_hangs_up_and_abandons_the_answer() {
    struct Ending(Arc<Mutex<Vec<String>>>);
    impl Observe for Ending {
        fn on_end(self, end: End<'_>) {
            let ending = match end {
                End::Abandoned(summary) => format!("abandoned after {}", summary.chunks),
                other => format!("{other:?}"),
            };
            self.0.lock().unwrap().push(ending);
        }
    }
    let (items, chunks) = scripted();
    let endings = Arc::default();
    let response = LlmResponse::new("acme/m", chunks).observe(Ending(Arc::clone(&endings)));
    let asked = Asked::by(&request(r#","stream":true"#));
    let mut body = ChatAnswer::new(asked, Ok(response)).into_response().into_body();
    items.send(Ok(chunk(FULL))).unwrap();
    body.frame().await.unwrap().unwrap();
    assert!(!items.is_closed());
    drop(body);
    assert!(items.is_closed());
    assert_eq!(*endings.lock().unwrap(), ["abandoned after 1"]);
}

#[tokio::test]
async fn the_stream_is_let_go_of_at_its_end_even_if_the_body_is_kept() {
    for last in [Ok(StreamChunk::end()), Err(Error::new(ErrorKind::Overloaded))] {
        let (items, chunks) = scripted();
        let mut events = Events::new(chunks, fill());
        items.send(last).unwrap();
        events.frame().await.unwrap().unwrap();
        assert!(items.is_closed() && events.is_end_stream());
    }
}

#[test]
fn debug_shows_no_text() {
    let mut events = task::spawn(Events::new(streamed(vec![Ok(StreamChunk::text("secret"))]), fill()));
    let asked = Asked::by(&LlmRequest::new("m", ChatBody::builder().user("secret").build().unwrap()));
    drop(events.enter(|cx, body| body.poll_frame(cx)));
    let events = Events::new(streamed(vec![Ok(StreamChunk::text("secret"))]), fill());
    assert!(!format!("{events:?}{asked:?}").contains("secret"));
}

#[tokio::test]
async fn a_message_whose_calls_cannot_be_put_in_order_ends_and_hangs_up() {
    let call = |index: u64, arguments: &str| {
        let call = json!({ "index": index, "function": { "name": "f", "arguments": arguments } });
        let delta = json!({ "choices": [{ "delta": { "tool_calls": [call] } }] });
        Ok(StreamChunk::parse(delta.to_string()).unwrap())
    };
    let (sender, mut chunks) = mpsc::unbounded_channel::<Result<StreamChunk, Error>>();
    let stream = ChunkStream::new(stream::poll_fn(move |cx| chunks.poll_recv(cx)));
    for chunk in [call(0, "{"), call(1, &"x".repeat(9 << 20))] {
        sender.send(chunk).unwrap();
    }
    let events = Events::of_message(stream, MessageEvents::new("fast")).collect().await.unwrap().to_bytes();
    let events = std::str::from_utf8(&events).unwrap();
    assert!(events.lines().rev().nth(2).is_some_and(|line| line == "event: error"), "{events}");
    assert!(sender.is_closed());
}

#[tokio::test]
async fn a_message_that_the_edge_ends_has_failed_to_those_who_watch_it() {
    struct Failed(Arc<Mutex<Vec<bool>>>);
    impl Observe for Failed {
        fn on_end(self, end: End<'_>) {
            self.0.lock().unwrap().push(matches!(end, End::Failed(..)));
        }
    }
    let call =
        r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{"}}]}}]}"#;
    let text = StreamChunk::text("x".repeat(9 << 20));
    let mut stream = streamed(Vec::from([chunk(call), text, StreamChunk::end()].map(Ok)));
    let failed = Arc::default();
    stream.observe(Failed(Arc::clone(&failed)));
    let events = Events::of_message(stream, MessageEvents::new("fast")).collect().await.unwrap().to_bytes();
    assert_eq!(std::str::from_utf8(&events).unwrap().matches("event: error").count(), 1);
    assert_eq!(*failed.lock().unwrap(), [true]);
}

// ===== who asks =====

#[cfg(all(feature = "config", feature = "rusqlite"))]
#[tokio::test]
async fn a_key_says_who_asks_and_only_a_trusted_one_says_for_whom() {
    use llm_layers::{config::Config, http::axum::identify, stack::stack};

    let config = r#"
        usage.enabled = false
        providers.echo.kind = "echo"
        server.max_body_bytes = 4096
        keys = [{ key = "ada-key", user = "ada" }, { key = "app-key", user = "app", trusted = true }]
    "#;
    let (_service, handle) = stack(Config::parse(config).unwrap()).await.unwrap();
    let asks = |headers: &[(&str, &str)]| {
        let builder = http::Request::builder().uri("/v1/chat/completions");
        let add =
            |builder: http::request::Builder, (name, value): &(&str, &str)| builder.header(*name, *value);
        let mut request = headers.iter().fold(builder, add).body(()).unwrap();
        identify(&handle, &mut request).map_err(|refused| refused.into_response().status().as_u16())?;
        assert_eq!(request.extensions().get::<BodyLimits>().unwrap().max_bytes, 4096);
        let context = request.extensions().get::<RequestContext>().unwrap();
        Ok(context.user_id().unwrap().to_owned())
    };
    assert_eq!(asks(&[]), Err(401));
    assert_eq!(asks(&[("authorization", "Bearer ada-key")]).as_deref(), Ok("ada"));
    assert_eq!(asks(&[("x-api-key", " ada-key ")]).as_deref(), Ok("ada"));
    // Another server might believe the other.
    for (name, first, second) in
        [("authorization", "Bearer ada-key", "Bearer app-key"), ("x-api-key", "ada-key", "app-key")]
    {
        assert_eq!(asks(&[(name, first), (name, second)]), Err(400));
    }
    assert_eq!(asks(&[("authorization", "Bearer ada-key"), ("x-api-key", "app-key")]), Err(400));
    assert_eq!(asks(&[("authorization", "Bearer ada-key"), ("x-api-key", "ada-key")]).as_deref(), Ok("ada"));
    assert_eq!(asks(&[("authorization", "Basic YTpi"), ("x-api-key", "ada-key")]).as_deref(), Ok("ada"));
    for empty in ["", "Bearer", "Bearer ", "bearer  \t"] {
        assert_eq!(
            asks(&[("authorization", empty), ("x-api-key", "ada-key")]).as_deref(),
            Ok("ada"),
            "{empty}"
        );
        assert_eq!(asks(&[("authorization", empty), ("x-api-key", " ")]), Err(401), "{empty}");
    }
    for empty in ["", " "] {
        let asked = asks(&[("authorization", "Bearer ada-key"), ("x-api-key", empty)]);
        assert_eq!(asked.as_deref(), Ok("ada"));
    }
    for key in ["Bearer ada-key", "Bearer app-key"] {
        assert_eq!(asks(&[("authorization", key), ("x-llm-usr", "eve")]), Err(400));
        assert!(asks(&[("authorization", key), ("x-llm-timeout", "1")]).is_ok());
    }
    let stated = |key| asks(&[("authorization", key), ("x-llm-user", "eve")]);
    assert_eq!(stated("Bearer ada-key"), Err(400));
    assert_eq!(stated("Bearer app-key").as_deref(), Ok("eve"));
}

// ===== limits of ones own =====

/// Lets a number of calls through, and no more in this minute.
#[derive(Clone)]
struct PerMinute<S> {
    inner: S,
    limit: u64,
    seen: Arc<AtomicU64>,
}

impl<S> tower::Service<LlmRequest> for PerMinute<S>
where
    S: tower::Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send + 'static>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<LlmResponse, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let (limit, seen) = (self.limit, self.seen.fetch_add(1, Relaxed));
        let left = Duration::from_secs(12);
        if seen >= limit {
            let exceeded = QuotaExceeded::new("research", QuotaKind::Requests, Period::Day, limit, left);
            return Box::pin(std::future::ready(Err(Error::new(ErrorKind::QuotaExceeded(exceeded)))));
        }
        let call = self.inner.call(request);
        Box::pin(async move {
            let mut answer = call.await?;
            let remaining = limit - seen - 1;
            answer.quota = Some(llm_layers::quota::Headroom::new(
                "research",
                QuotaKind::Requests,
                Period::Day,
                limit,
                remaining,
                left,
            ));
            Ok(answer)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_limiter_of_ones_own_says_what_is_left_and_refuses_as_ours_does() {
    let leaf = tower::service_fn(|request: LlmRequest| async move {
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1))))
    });
    let seen = Arc::new(AtomicU64::new(0));
    let limited = PerMinute { inner: leaf, limit: 2, seen: Arc::clone(&seen) };
    let chains = Chains::builder().retries(3).chain("fast", ["slow"]).build().unwrap();
    let service = FallbackLayer::new(chains).layer(limited);
    let ask = || async {
        let request = extract(post("application/json", CHAT)).await.unwrap();
        let asked = Asked::by(&request);
        ChatAnswer::new(asked, tower::ServiceExt::oneshot(service.clone(), request).await).into_response()
    };
    for remaining in ["1", "0"] {
        let head = parts(ask().await).await.0;
        assert_eq!(
            (head.status.as_u16(), &head.headers["x-ratelimit-remaining-requests"]),
            (200, &http::HeaderValue::from_static(remaining))
        );
        assert_eq!(head.headers["x-ratelimit-reset-requests"], "12s");
    }
    let (head, body) = parts(ask().await).await;
    assert_eq!(
        (head.status.as_u16(), &head.headers[header::RETRY_AFTER]),
        (429, &http::HeaderValue::from_static("12"))
    );
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["error"]["code"], "insufficient_quota");
    assert_eq!(seen.load(Relaxed), 3, "no second attempt");

    // Calls in flight end, and then there is room.
    let exceeded = QuotaExceeded::new("research", QuotaKind::Tokens, Period::Month, 10, Duration::MAX);
    let exceeded = exceeded.with_current(4).with_reserved(6).with_in_flight_only(Duration::from_secs(1));
    let error = Error::new(ErrorKind::QuotaExceeded(exceeded));
    assert_eq!((error.is_retryable(), error.retry_after()), (true, Some(Duration::from_secs(1))));
}
