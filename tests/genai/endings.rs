//! Each way for an answer not to come, or not to end.

use crate::{
    common::*,
    server::{Server, Step, part, part_of, send, stream_head},
};
use llm_layers::{ErrorClass, ErrorKind, ResponseBody, TokenUsage, provider::genai::Dialect};
use serde_json::{Value, json};
use std::time::Duration;
use tower::{Service as _, ServiceExt as _};

/// As Bedrock throttles, with a word that others have for prompts that are too long.
const THROTTLED: &str = "Too many tokens, please wait before trying again.";

async fn streamed_failure(dialect: Dialect, pieces: &[String]) -> llm_layers::Error {
    let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
    let server = Server::playing(streamed(&pieces)).await;
    failure(leaf(dialect, &server), hello(model(dialect), true)).await
}

fn text_event(text: &str) -> String {
    event(
        &json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": text } }),
    )
}

fn candidate(text: &str) -> String {
    data(&json!({ "candidates": [{ "content": { "parts": [{ "text": text }] } }] }))
}

#[tokio::test]
async fn a_stream_that_stops_without_its_end_was_truncated() {
    let ollama = format!("{}\n", json!({ "message": { "content": "Once upon" }, "done": false }));
    let cohere =
        format!("{}\n", json!({ "is_finished": false, "event_type": "text-generation", "text": "Once" }));
    let bedrock =
        bedrock_frame("contentBlockDelta", &json!({ "contentBlockIndex": 0, "delta": { "text": "Once" } }));
    for (dialect, model, piece) in [
        (Dialect::Anthropic, model(Dialect::Anthropic), text_event("Once upon").into_bytes()),
        (Dialect::Gemini, model(Dialect::Gemini), candidate("Once upon").into_bytes()),
        (Dialect::Vertex, "gemini-2.5-flash", candidate("Once upon").into_bytes()),
        (Dialect::Vertex, "claude-sonnet-4-5", text_event("Once upon").into_bytes()),
        (Dialect::Bedrock, model(Dialect::Bedrock), bedrock.clone()),
        (Dialect::Ollama, model(Dialect::Ollama), ollama.into_bytes()),
        (Dialect::Cohere, model(Dialect::Cohere), cohere.into_bytes()),
    ] {
        let once = [piece.clone()];
        for pieces in [&once[..], &[]] {
            let server = Server::playing(streamed(pieces)).await;
            let error = failure(leaf(dialect, &server), hello(model, true)).await;
            assert_eq!(error.class(), Some(ErrorClass::Truncated), "{dialect:?} {model} {pieces:?}");
        }

        let cut = Server::playing([stream_head(), part_of(&piece), Step::Reset]).await;
        let error = failure(leaf(dialect, &cut), hello(model, true)).await;
        assert_eq!(error.class(), Some(ErrorClass::Transport), "{dialect:?} {model}");
        assert!(error.dispatched());
    }
    // Within a frame, too.
    let server = Server::playing(streamed(&[&bedrock[..], &bedrock[..40]])).await;
    let error = failure(leaf(Dialect::Bedrock, &server), hello(model(Dialect::Bedrock), true)).await;
    assert_eq!(error.class(), Some(ErrorClass::Truncated));
}

#[tokio::test]
async fn an_answer_of_which_an_event_is_lost_is_none() {
    let lines = |text: &str| text_event(text).replace('\n', "\r\n");
    let end = event(&json!({ "type": "message_stop" }));
    let whole = [lines("Once"), lines(" upon"), end.clone()];
    let server = Server::playing(streamed(&whole)).await;
    let answer = leaf(Dialect::Anthropic, &server).oneshot(hello(model(Dialect::Anthropic), true)).await;
    assert_eq!(answer.unwrap().text().await.unwrap(), "Once upon");

    // Between the two bytes that end a line, which genai takes for two ends.
    let lost = lines(" upon");
    let (name, data) = lost.split_at(lost.find('\n').unwrap());
    let cut = [lines("Once"), name.to_owned(), data.to_owned(), end];
    assert_eq!(streamed_failure(Dialect::Anthropic, &cut).await.class(), Some(ErrorClass::BadFrame));
}

#[tokio::test]
async fn an_end_that_is_marked_needs_no_reason() {
    let line = |value: Value| format!("{value}\n");
    let pieces =
        [line(json!({ "message": { "content": "Hi" }, "done": false })), line(json!({ "done": true }))];
    let server = Server::playing(streamed(&[&pieces[0], &pieces[1]])).await;
    let answer = leaf(Dialect::Ollama, &server).oneshot(hello("qwen3", true)).await.unwrap();
    let chunks = chunks(answer).await;
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn what_a_provider_reports_in_its_stream_is_an_error() {
    let overloaded =
        json!({ "type": "error", "error": { "type": "overloaded_error", "message": "Overloaded" } });
    let gemini = json!({ "error": { "code": 429, "status": "RESOURCE_EXHAUSTED", "details": [{ "retryDelay": "7s" }] } });
    let of_type = |kind: &str| json!({ "type": "error", "error": { "type": kind, "message": "no" } });
    for (dialect, pieces, class, wait) in [
        (Dialect::Anthropic, vec![event(&overloaded)], ErrorClass::Unavailable, None),
        (Dialect::Anthropic, vec![event(&of_type("invalid_request_error"))], ErrorClass::BadRequest, None),
        (Dialect::Anthropic, vec![event(&of_type("not_found_error"))], ErrorClass::BadRequest, None),
        (Dialect::Anthropic, vec![event(&of_type("request_too_large"))], ErrorClass::BadRequest, None),
        (Dialect::Anthropic, vec![event(&of_type("authentication_error"))], ErrorClass::Auth, None),
        (Dialect::Anthropic, vec![event(&of_type("permission_error"))], ErrorClass::Auth, None),
        (Dialect::Anthropic, vec![event(&of_type("billing_error"))], ErrorClass::Auth, None),
        (Dialect::Anthropic, vec![event(&of_type("timeout_error"))], ErrorClass::Unavailable, None),
        (Dialect::Anthropic, vec![event(&of_type("api_error"))], ErrorClass::Upstream, None),
        (Dialect::Anthropic, vec![text_event("Once"), event(&overloaded)], ErrorClass::Unavailable, None),
        (Dialect::Gemini, vec![candidate("Once"), data(&gemini)], ErrorClass::RateLimited, Some(7)),
        (
            Dialect::Ollama,
            vec![format!("{}\n", json!({ "error": "the model runner has stopped" }))],
            ErrorClass::Upstream,
            None,
        ),
        (
            Dialect::Gemini,
            vec![data(&json!({ "promptFeedback": { "blockReason": "PROHIBITED_CONTENT" } }))],
            ErrorClass::ContentFilter,
            None,
        ),
        (
            Dialect::Anthropic,
            vec!["event: content_block_delta\ndata: {oops\n\n".to_owned()],
            ErrorClass::BadFrame,
            None,
        ),
    ] {
        let error = streamed_failure(dialect, &pieces).await;
        assert_eq!(error.class(), Some(class), "{dialect:?} {pieces:?}");
        assert_eq!(error.retry_after(), wait.map(Duration::from_secs));
        assert_eq!(facts(&error).status.map(|status| status.as_u16()), Some(200));
    }
    for (dialect, body, class) in [
        (Dialect::Anthropic, overloaded.clone(), ErrorClass::Unavailable),
        (Dialect::Anthropic, of_type("invalid_request_error"), ErrorClass::BadRequest),
        (
            Dialect::Gemini,
            json!({ "promptFeedback": { "blockReason": "SAFETY" } }),
            ErrorClass::ContentFilter,
        ),
        (Dialect::Bedrock, json!({ "message": "no" }), ErrorClass::Upstream),
        (Dialect::Bedrock, json!({ "message": THROTTLED }), ErrorClass::RateLimited),
        (Dialect::Bedrock, json!({}), ErrorClass::BadFrame),
        (Dialect::Ollama, json!({ "error": "no" }), ErrorClass::Upstream),
        (
            Dialect::Cohere,
            json!({ "finish_reason": "ERROR", "chat_history": [{ "message": "x" }] }),
            ErrorClass::Upstream,
        ),
    ] {
        let server = Server::playing([whole(200, "", &body.to_string())]).await;
        let error = failure(leaf(dialect, &server), hello(model(dialect), false)).await;
        assert_eq!(error.class(), Some(class), "{dialect:?} {body}");
    }
    for (said, class) in [(THROTTLED, ErrorClass::RateLimited), ("no", ErrorClass::Upstream)] {
        let server = Server::playing(streamed(&[bedrock_exception(
            "throttlingException",
            &json!({ "message": said }),
        )]))
        .await;
        let error = failure(leaf(Dialect::Bedrock, &server), hello(model(Dialect::Bedrock), true)).await;
        assert_eq!(error.class(), Some(class), "{said}");
    }
}

#[tokio::test]
async fn what_was_told_of_the_prompt_is_known_of_a_stream_that_breaks() {
    let usage = json!({
        "input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 3, "output_tokens": 1,
        "cache_creation": { "ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2 },
    });
    let start =
        |usage: &Value| event(&json!({ "type": "message_start", "message": { "id": "m", "usage": usage } }));
    let gemini = json!({
        "candidates": [{ "content": { "parts": [{ "text": "Once" }] } }],
        "usageMetadata": { "promptTokenCount": 18, "cachedContentTokenCount": 5, "toolUsePromptTokenCount": 2 },
    });
    let mut of_anthropic = TokenUsage::new(18, 0).with_cache_read_tokens(5).with_cache_write_tokens(3);
    of_anthropic = of_anthropic.with_cache_write_1h_tokens(2);
    let of_gemini = TokenUsage::new(20, 0).with_cache_read_tokens(5);
    for (dialect, pieces, told) in [
        (Dialect::Anthropic, start(&usage) + &text_event("Once"), Some(of_anthropic)),
        (Dialect::Anthropic, start(&json!({})) + &text_event("Once"), None),
        (Dialect::Anthropic, start(&json!({ "input_tokens": 0 })) + &text_event("Once"), None),
        (Dialect::Anthropic, start(&json!({ "input_tokens": 1_u64 << 40 })) + &text_event("Once"), None),
        (Dialect::Gemini, data(&gemini), Some(of_gemini)),
    ] {
        let told = told.map(|mut told| {
            told.output_tokens = None;
            told
        });
        let server = Server::playing([stream_head(), part(&pieces), Step::Reset]).await;
        let error = failure(leaf(dialect, &server), hello(model(dialect), true)).await;
        assert_eq!((error.class(), error.usage()), (Some(ErrorClass::Transport), told.as_ref()), "{pieces}");
    }
}

#[tokio::test]
async fn a_refusal_has_its_class_its_wait_and_its_id_whole_and_streamed() {
    let anthropic = |kind: &str, message: &str| {
        json!({ "type": "error", "error": { "type": kind, "message": message } }).to_string()
    };
    use ErrorClass::*;
    for (dialect, status, headers, body, class, wait) in [
        (
            Dialect::Anthropic,
            429,
            "retry-after: 2\r\n",
            anthropic("rate_limit_error", ""),
            RateLimited,
            Some(2000),
        ),
        (
            Dialect::Anthropic,
            429,
            "retry-after-ms: 1500\r\n",
            anthropic("rate_limit_error", ""),
            RateLimited,
            Some(1500),
        ),
        (
            Dialect::Anthropic,
            429,
            "date: Tue, 15 Nov 1994 08:12:31 GMT\r\nretry-after: Tue, 15 Nov 1994 08:13:01 GMT\r\n",
            anthropic("rate_limit_error", ""),
            RateLimited,
            Some(30_000),
        ),
        (Dialect::Anthropic, 529, "", anthropic("overloaded_error", ""), Unavailable, None),
        (Dialect::Anthropic, 401, "", anthropic("authentication_error", ""), Auth, None),
        (
            Dialect::Anthropic,
            400,
            "",
            anthropic("invalid_request_error", "prompt is too long: 9 > 8"),
            ContextWindow,
            None,
        ),
        (
            Dialect::Anthropic,
            400,
            "",
            anthropic(
                "invalid_request_error",
                "input length and `max_tokens` exceed context limit: 9 + 9 > 8",
            ),
            ContextWindow,
            None,
        ),
        (Dialect::Anthropic, 400, "", anthropic("invalid_request_error", "no such thing"), BadRequest, None),
        (
            Dialect::Gemini,
            400,
            "",
            r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}"#
                .to_owned(),
            Auth,
            None,
        ),
        (
            Dialect::Gemini,
            429,
            "",
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"retryDelay":"34.5s"}]}}"#
                .to_owned(),
            RateLimited,
            Some(34_500),
        ),
        (
            Dialect::Bedrock,
            400,
            "",
            r#"{"message":"Input is too long for requested model."}"#.to_owned(),
            ContextWindow,
            None,
        ),
        (Dialect::Bedrock, 403, "", r#"{"Message":"no"}"#.to_owned(), Auth, None),
        (Dialect::Cohere, 400, "", r#"{"message":"too many tokens: 9 > 8"}"#.to_owned(), ContextWindow, None),
        (Dialect::Ollama, 404, "", r#"{"error":"model 'x' not found"}"#.to_owned(), BadRequest, None),
        (Dialect::Ollama, 302, "location: http://127.0.0.1:1/\r\n", String::new(), BadFrame, None),
    ] {
        let headers = format!("{headers}x-request-id: r-1\r\n");
        for streaming in [false, true] {
            let server = Server::playing([whole(status, &headers, &body)]).await;
            let error = refusal(leaf(dialect, &server), hello(model(dialect), streaming)).await;
            let facts = facts(&error);
            assert_eq!((facts.class, facts.status.unwrap().as_u16()), (class, status), "{dialect:?} {body}");
            assert_eq!(error.retry_after(), wait.map(Duration::from_millis), "{dialect:?} {headers}");
            assert_eq!(facts.request_id.as_deref(), Some("r-1"));
            assert_eq!(facts.body.as_deref(), Some(body.as_bytes()));
        }
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_was_not_asked() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for streaming in [false, true] {
        let leaf = llm_layers::provider::genai::Genai::new(Dialect::Gemini, &url)
            .unwrap()
            .with_api_key("secret")
            .unwrap();
        let error = failure(leaf, hello("gemini-2.5-flash", streaming)).await;
        assert_eq!(error.class(), Some(ErrorClass::Connect));
        assert!(!error.dispatched());
        assert!(!format!("{error:?} {:?}", std::error::Error::source(&error)).contains("secret"));
    }
}

#[tokio::test]
async fn no_text_of_an_error_shows_what_was_asked_or_answered() {
    let theirs = json!({ "message": "their-words", "error": { "message": "their-words" } });
    let their_text = json!({ "error": "their-words", "content": "their-words", "output": "their-words" });
    for (dialect, model) in [
        (Dialect::Anthropic, model(Dialect::Anthropic)),
        (Dialect::Gemini, model(Dialect::Gemini)),
        (Dialect::Vertex, "gemini-2.5-flash"),
        (Dialect::Vertex, "claude-sonnet-4-5"),
        (Dialect::Bedrock, model(Dialect::Bedrock)),
        (Dialect::Ollama, model(Dialect::Ollama)),
        (Dialect::Cohere, model(Dialect::Cohere)),
    ] {
        let events = |json: &Value| match dialect {
            Dialect::Bedrock => bedrock_frame("contentBlockDelta", json),
            Dialect::Ollama | Dialect::Cohere => format!("{json}\n").into_bytes(),
            _ => format!("event: error\ndata: {json}\n\n").into_bytes(),
        };
        let scripts = [
            (false, vec![whole(200, "", &their_text.to_string())]),
            (false, vec![whole(200, "", "their-words")]),
            (false, vec![whole(400, "", &theirs.to_string())]),
            (true, vec![whole(429, "", &theirs.to_string())]),
            (true, vec![whole(500, "", "their-words")]),
            (true, streamed(&[events(&theirs)])),
            (true, streamed(&[events(&json!("their-words"))])),
            (true, streamed(&[b"data: {\"their-words\n\n"])),
        ];
        for (at, (streaming, script)) in scripts.into_iter().enumerate() {
            let server = Server::playing(script).await;
            let body =
                json!({ "messages": [{ "role": "user", "content": "my-words" }], "stream": streaming });
            let error = failure(leaf(dialect, &server), ask(model, body)).await;
            let mut shown = format!("{error} {error:?}");
            let mut next = std::error::Error::source(&error);
            while let Some(cause) = next {
                shown += &format!(" {cause} {cause:?}");
                next = cause.source();
            }
            for secret in ["their-words", "my-words", "secret-key"] {
                assert!(!shown.contains(secret), "{dialect:?} {model}, {at}: {shown}");
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_sent_before_the_call_is_polled_and_a_dropped_call_hangs_up() {
    let mut server = Server::playing([Step::UntilHungUp]).await;
    let mut leaf = leaf(Dialect::Anthropic, &server);
    let request = hello("claude-sonnet-4-5", true);
    let progress = request.progress.clone();
    drop(leaf.call(request.clone()));
    assert!(!progress.is_dispatched());

    let call = tokio::spawn(leaf.call(request));
    server.asked().await;
    assert!(progress.is_dispatched());
    call.abort();
    server.hung_up().await;
}

#[tokio::test]
async fn an_answer_begins_with_the_first_word_of_the_provider_and_dropping_it_hangs_up() {
    let start = json!({ "type": "message_start", "message": { "id": "m", "usage": {} } });
    let mut server = Server::playing([
        stream_head(),
        part(&event(&start)),
        Step::UntilTold,
        part(&text_event("Hi")),
        Step::UntilHungUp,
    ])
    .await;
    let answer = leaf(Dialect::Anthropic, &server).oneshot(hello("claude-sonnet-4-5", true)).await.unwrap();
    server.asked().await;
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
    server.tell();
    assert_eq!(chunks.next().await.unwrap().unwrap().content(), "Hi");
    drop(chunks);
    server.hung_up().await;
}

#[tokio::test]
async fn connections_are_used_again() {
    let reply =
        json!({ "content": [{ "type": "text", "text": "Hi" }], "stop_reason": "end_turn", "usage": {} })
            .to_string();
    let whole = || whole(200, "", &reply);
    let stop = event(&json!({ "type": "message_stop" }));
    let mut script = vec![whole(), Step::Hear, whole(), Step::Hear];
    script.extend(streamed(&[&text_event("Hi"), &stop]));
    script.extend([Step::Hear, whole()]);
    let mut server = Server::playing(script).await;
    let leaf = leaf(Dialect::Anthropic, &server);
    for streaming in [false, false, true, false] {
        let answer = leaf.clone().oneshot(hello("claude-sonnet-4-5", streaming)).await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "Hi");
        assert_eq!(server.asked().await.connection, 0, "{streaming}");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_answer_is_a_bad_frame() {
    for body in ["<html>", "{", "[]", "{}"] {
        for content_type in ["application/json", "text/html"] {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            let server = Server::playing([send(head)]).await;
            let error = failure(leaf(Dialect::Anthropic, &server), hello("claude-sonnet-4-5", false)).await;
            assert_eq!(error.class(), Some(ErrorClass::BadFrame), "{body} {content_type}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_more_than_a_name_is_not_found_and_nobody_is_asked() {
    let server = Server::playing([]).await;
    for name in ["gemini::gemini-2.5-pro", "../files", "gemini-2.5-pro:countTokens", "a?key=b", "tuned/x"] {
        let request = hello(name, false);
        let progress = request.progress.clone();
        let error = failure(leaf(Dialect::Gemini, &server), request).await;
        assert!(matches!(error.kind(), ErrorKind::ModelNotFound { .. }), "{name} {error:?}");
        assert!(!progress.is_dispatched() && !error.dispatched());
    }
}

/// It would be asked with the prompt, and perhaps the key, whoever it is.
#[tokio::test]
async fn no_dialect_follows_a_redirect() {
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = elsewhere.local_addr().unwrap();
    let head = format!("HTTP/1.1 307 Temporary\r\nlocation: http://{location}/\r\ncontent-length: 0\r\n\r\n");
    for dialect in [Dialect::Anthropic, Dialect::Gemini, Dialect::Ollama, Dialect::Cohere] {
        for is_streaming in [false, true] {
            let server = Server::playing([send(&head)]).await;
            let failing = failure(leaf(dialect, &server), hello(model(dialect), is_streaming));
            let error =
                tokio::time::timeout(Duration::from_secs(10), failing).await.expect("it has answered");
            assert!(error.dispatched(), "{dialect:?}: {error}");
        }
    }
    let asked = tokio::time::timeout(Duration::from_millis(1), elsewhere.accept()).await;
    assert!(asked.is_err(), "somebody else was asked");
}
