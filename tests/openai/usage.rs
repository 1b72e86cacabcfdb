//! Streams are asked for their usage, of servers that refuse to be asked too.

use crate::canned::*;
use bytes::Bytes;
use http_body_util::Full;
use llm_layers::{
    Error, ErrorClass, ErrorKind, LlmRequest, TimeoutPhase, provider::openai::OpenAiCompatible,
    timeout::CallTimeoutLayer,
};
use std::{
    future::pending,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const REFUSAL: &str = r#"{"detail":[{"type":"extra_forbidden","loc":["body","stream_options","include_usage"],"msg":"Extra inputs are not permitted","input":true}]}"#;

type Asked = Arc<Mutex<Vec<String>>>;

/// One answer after another, a status and what it says; a status of 0 is a connection that breaks, and of 1 one that stays
/// silent.
fn scripted(
    answers: &'static [(u16, &'static str)],
) -> (
    impl Service<
        http::Request<Full<Bytes>>,
        Response = http::Response<Full<Bytes>>,
        Error = io::Error,
        Future: Send,
    > + Clone,
    Asked,
) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let http = service_fn(move |request: http::Request<Full<Bytes>>| {
        let seen = Arc::clone(&seen);
        async move {
            let json = json_of(request).await;
            let at = {
                let mut seen = seen.lock().unwrap();
                seen.push(json);
                seen.len() - 1
            };
            let (status, body) = answers[at];
            tokio::time::sleep(Duration::from_millis(600)).await;
            match status {
                0 => return Err(io::ErrorKind::ConnectionReset.into()),
                1 => pending().await,
                _ => {}
            }
            let kind = if status == 200 { "text/event-stream" } else { "application/json" };
            let response = http::Response::builder().status(status).header("content-type", kind);
            Ok(response.header("request-id", format!("r-{at}")).body(text(body)).unwrap())
        }
    });
    (http, asked)
}

fn stream() -> &'static str {
    sse(&[HELLO, STOP, "[DONE]"]).leak()
}

fn asking(members: &str) -> LlmRequest {
    request(&format!(r#"{{"model":"m-1","messages":[{{"role":"user","content":"a"}}]{members}}}"#))
}

fn leaf<H>(http: H) -> OpenAiCompatible<H> {
    OpenAiCompatible::new(http, URL).unwrap().with_provider_name("acme")
}

const PLAIN: &str = r#"{"model":"m-1","messages":[{"role":"user","content":"a"}],"stream":true}"#;
const ASKED: &str = r#"{"model":"m-1","messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":{"include_usage":true}}"#;

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_to_be_asked_for_usage_is_asked_once_more_without() {
    for (status, refusal) in [
        (422, REFUSAL),
        (
            400,
            r#"{"error":{"message":"Unrecognized request argument supplied: stream_options","code":null}}"#,
        ),
        (400, "stream_options: Extra inputs are not permitted"),
    ] {
        let (http, asked) = scripted([(status, refusal), (200, stream())].to_vec().leak());
        // Who is called without having been ready panics there.
        let http = ServiceBuilder::new().concurrency_limit(1).service(http);
        let response = leaf(http).oneshot(asking(r#","stream":true"#)).await.unwrap();
        assert_eq!(response.provider_request_id.as_deref(), Some("r-1"), "{refusal}");
        let (chunks, error) = chunks(response).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!((&*chunks[0].content(), chunks.len()), ("Hello", 3));
        assert_eq!(*asked.lock().unwrap(), [ASKED, PLAIN]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_second_answer_says_counts_and_there_is_no_third() {
    let (http, asked) = scripted(&[(422, REFUSAL), (400, r#"{"error":{"code":"stream_options"}}"#)]);
    let error = failure(leaf(http), asking(r#","stream":true"#)).await;
    assert_eq!(asked.lock().unwrap().len(), 2);
    let told = facts(&error);
    assert_eq!((told.class, told.status.unwrap().as_u16()), (ErrorClass::BadRequest, 400));
    assert_eq!((told.code.as_deref(), told.request_id.as_deref()), (Some("stream_options"), Some("r-1")));

    let (http, asked) = scripted(&[(422, REFUSAL), (0, "")]);
    let error = failure(leaf(http), asking(r#","stream":true"#)).await;
    assert_eq!(asked.lock().unwrap().len(), 2);
    let told = facts(&error);
    assert_eq!((told.class, told.status, &told.request_id), (ErrorClass::Transport, None, &None));
    assert!(error.dispatched());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_the_callers_or_about_something_else_stands() {
    let other = r#"{"error":{"message":"temperature must be at most 2"}}"#;
    for (members, status, refusal) in [
        (r#","stream":true,"stream_options":{"include_usage":true}"#, 422, REFUSAL),
        (r#","stream":true,"stream_options":{"include_obfuscation":false}"#, 422, REFUSAL),
        (r#","stream":true"#, 400, other),
        (r#","stream":true"#, 401, REFUSAL),
        (r#","stream":true"#, 500, REFUSAL),
        ("", 422, REFUSAL),
    ] {
        let (http, asked) = scripted([(status, refusal)].to_vec().leak());
        let error = failure(leaf(http), asking(members)).await;
        assert_eq!(asked.lock().unwrap().len(), 1, "{members} {status}");
        assert_eq!(facts(&error).status.unwrap().as_u16(), status);
        assert_eq!(said(facts(&error)), refusal);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_not_to_be_asked_for_usage_is_sent_what_the_caller_sent() {
    let mistral = "https://API.mistral.ai/v1";
    let own = r#"{"model":"m-1","messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":{"a":1}}"#;
    for (url, told, given, expected) in [
        (URL, None, PLAIN, ASKED),
        (URL, Some(true), PLAIN, ASKED),
        (URL, Some(false), PLAIN, PLAIN),
        (URL, Some(false), ASKED, ASKED),
        (URL, Some(false), own, own),
        (mistral, None, PLAIN, PLAIN),
        (mistral, None, ASKED, ASKED),
        (mistral, Some(true), PLAIN, ASKED),
        ("https://api.mistral.ai.example/v1", None, PLAIN, ASKED),
    ] {
        let sent = sent(
            |leaf| told.into_iter().fold(leaf, OpenAiCompatible::with_stream_usage),
            url,
            request(given),
        );
        assert_eq!(json_of(sent.await).await, expected, "{url} {told:?} {given}");
    }
    let (http, asked) = scripted(&[(422, REFUSAL)]);
    let error = failure(leaf(http).with_stream_usage(false), asking(r#","stream":true"#)).await;
    assert_eq!((said(facts(&error)), asked.lock().unwrap().len()), (REFUSAL, 1));
}

#[tokio::test(start_paused = true)]
async fn one_limit_of_time_holds_for_both_requests() {
    let (http, asked) = scripted(&[(422, REFUSAL), (1, "")]);
    let limits = CallTimeoutLayer::new().with_head(Duration::from_secs(1));
    let begin = tokio::time::Instant::now();
    let answer = limits.layer(leaf(http)).oneshot(asking(r#","stream":true"#)).await;
    let error: Error = answer.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Head, .. }), "{error:?}");
    assert_eq!((begin.elapsed(), asked.lock().unwrap().len()), (Duration::from_secs(1), 2));
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_hangs_up_on_the_second_request() {
    let (http, asked) = scripted(&[(422, REFUSAL), (1, "")]);
    let call = leaf(http).oneshot(asking(r#","stream":true"#));
    assert!(tokio::time::timeout(Duration::from_secs(9), call).await.is_err());
    assert_eq!(asked.lock().unwrap().len(), 2);
    assert_eq!(Arc::strong_count(&asked), 1, "requests hold it");
}
