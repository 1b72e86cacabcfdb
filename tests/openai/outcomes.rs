//! Each way to fail is told apart.

use crate::canned::*;
use bytes::Bytes;
use http_body_util::Full;
use llm_layers::{
    BoxError, Error, ErrorClass, ErrorKind, ResponseBody, TimeoutPhase, TokenUsage, peek::PeekLayer,
    provider::openai::OpenAiCompatible,
};
use std::{
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service, ServiceExt, service_fn};

pub(crate) async fn refused(status: u16, headers: &[(&str, &str)], body: &str) -> Error {
    let body = text(body.to_owned());
    let error = failure(answering(status, headers, body.clone()), whole()).await;
    let streamed = failure(answering(status, headers, body), streaming()).await;
    assert_eq!(error.class(), streamed.class());
    assert!(error.dispatched());
    error
}

#[tokio::test]
async fn a_status_other_than_2xx_has_its_class_and_keeps_what_was_said() {
    use ErrorClass::*;
    for (status, body, class, code) in [
        (
            400,
            r#"{"error":{"message":"bad","type":"invalid_request_error","code":null}}"#,
            BadRequest,
            Some("invalid_request_error"),
        ),
        (
            400,
            r#"{"error":{"message":"x","code":"context_length_exceeded"}}"#,
            ContextWindow,
            Some("context_length_exceeded"),
        ),
        (
            400,
            r#"{"error":{"message":"the request exceeds the available context size","type":"exceed_context_size_error","code":400}}"#,
            ContextWindow,
            Some("exceed_context_size_error"),
        ),
        (
            400,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens","type":"BadRequestError","code":400}"#,
            ContextWindow,
            Some("BadRequestError"),
        ),
        (
            400,
            r#"{"error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8"}}"#,
            ContextWindow,
            Some("invalid_request_error"),
        ),
        (413, "Prompt is too long", ContextWindow, None),
        (400, r#"{"message":"Too many tokens, please wait before trying again."}"#, RateLimited, None),
        (422, r#"{"detail":[{"msg":"field required","input":"please wait"}]}"#, BadRequest, None),
        (422, r#"{"detail":[{"loc":["body"],"msg":"input is too long"}]}"#, ContextWindow, None),
        (
            400,
            r#"{"error":{"code":"content_filter","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            ContentFilter,
            Some("content_filter"),
        ),
        (
            400,
            r#"{"error":{"code":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            ContentFilter,
            Some("ResponsibleAIPolicyViolation"),
        ),
        (
            400,
            r#"{"error":{"code":"content_policy_violation"}}"#,
            ContentFilter,
            Some("content_policy_violation"),
        ),
        (401, r#"{"error":{"code":"invalid_api_key"}}"#, Auth, Some("invalid_api_key")),
        (402, r#"{"error":{"message":"Insufficient Balance"}}"#, Auth, None),
        (403, "<html>no</html>", Auth, None),
        (404, r#"{"error":{"code":"model_not_found"}}"#, BadRequest, Some("model_not_found")),
        (404, r#"{"error":"model \"x\" not found"}"#, BadRequest, None),
        (405, r#"{"detail":"Method Not Allowed"}"#, BadRequest, None),
        (408, "", Unavailable, None),
        (409, "", Unavailable, None),
        (413, "too big", BadRequest, None),
        (415, "", BadRequest, None),
        (422, r#"{"detail":[{"loc":["body"],"msg":"field required"}]}"#, BadRequest, None),
        (
            429,
            r#"{"error":{"code":"rate_limit_exceeded","message":"maximum context length"}}"#,
            RateLimited,
            Some("rate_limit_exceeded"),
        ),
        (
            429,
            r#"{"error":{"code":"insufficient_quota","type":"insufficient_quota"}}"#,
            RateLimited,
            Some("insufficient_quota"),
        ),
        (
            429,
            r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]"#,
            RateLimited,
            Some("RESOURCE_EXHAUSTED"),
        ),
        (429, r#"{"error":{"code":429}}"#, RateLimited, Some("429")),
        (418, "", BadRequest, None),
        (500, r#"{"error":{"code":"x y z"}}"#, Upstream, None),
        (
            500,
            r#"{"error":{"code":"context_length_exceeded"}}"#,
            ContextWindow,
            Some("context_length_exceeded"),
        ),
        (501, "", Upstream, None),
        (502, "<html><h1>Bad gateway</h1></html>", Unavailable, None),
        (
            503,
            r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#,
            Unavailable,
            Some("unavailable_error"),
        ),
        (504, "", Unavailable, None),
        (524, "", Unavailable, None),
        (529, r#"{"error":{"type":"overloaded_error"}}"#, Unavailable, Some("overloaded_error")),
        (302, "", BadFrame, None),
    ] {
        let error = refused(status, &[("x-request-id", "r-1")], body).await;
        let facts = facts(&error);
        assert_eq!((facts.class, facts.code.as_deref()), (class, code), "{status} {body}");
        assert_eq!(facts.status.map(|s| s.as_u16()), Some(status));
        assert_eq!(facts.request_id.as_deref(), Some("r-1"));
        assert_eq!(said(facts), body);
        assert_eq!((&*facts.provider, &*facts.model), ("acme", "m-1"));
    }
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_known_in_the_words_of_each_server() {
    let too_long = [
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
        "This model's maximum context length is 65536 tokens. However, you requested 70000 tokens",
        "prompt is too long: 205000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000",
        "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        "Please reduce the length of the messages or completion.",
        "Input is too long for requested model.",
        "Too many input tokens. Max input tokens: 8192, request input token count: 9000",
        "Input Tokens Exceeded: Number of input tokens exceeds maximum length. Please update the input to try again.",
        "too many tokens: total number of tokens in the prompt cannot exceed 4081",
        "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        "The input (516368 tokens) is longer than the model's context length (262144 tokens).",
        "The prompt is too long: 40000, model maximum context length: 32767",
        "Invalid request: Your request exceeded model token limit: 262144 (requested: 274613)",
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]",
        "invalid params, context window exceeds limit (2013)",
        "Prompt exceeds max length",
        "You passed 9000 input tokens. However, the model's context length is only 8192 tokens, resulting in a maximum",
        "The decoder prompt (length 8357) is longer than the maximum model length of 8192.",
        "The prompt (total length 5000) is too long to fit into the model (context length 4096).",
        "the request exceeds the available context size, try increasing it",
        "prompt too long; exceeded max context length by 5 tokens",
        "the input length exceeds the context length",
        "The number of tokens to keep from the initial prompt is greater than the context length.",
        "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
    ];
    let other = [
        "max_tokens is too large: 100000. This model supports at most 16384 completion tokens.",
        "max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens for this model",
        "Range of max_tokens should be [1, 8192]",
        "string too long. Expected a string with maximum length 10485760",
        "The maximum number of tools is 128",
    ];
    let all = [(&too_long[..], ErrorClass::ContextWindow), (&other[..], ErrorClass::BadRequest)];
    for (message, class) in all.into_iter().flat_map(|(all, class)| all.iter().map(move |m| (m, class))) {
        let body = serde_json::json!({ "error": { "message": message, "code": null } }).to_string();
        assert_eq!(refused(400, &[], &body).await.class(), Some(class), "{message}");
    }
}

#[tokio::test]
async fn the_member_that_is_refused_is_kept_if_it_is_the_path_of_one() {
    let long = "a".repeat(129);
    for (param, kept) in [
        (r#""temperature""#, Some("temperature")),
        (r#""messages[0].content[1].image_url""#, Some("messages[0].content[1].image_url")),
        (r#""""#, None),
        ("null", None),
        ("7", None),
        (r#""Ada said: sk-1""#, None),
        (&format!(r#""{long}""#), None),
    ] {
        let error = refused(400, &[], &format!(r#"{{"error":{{"message":"bad","param":{param}}}}}"#)).await;
        assert_eq!(facts(&error).param.as_deref(), kept, "{param}");
    }
}

#[tokio::test]
async fn how_long_to_wait_is_read_from_headers_then_from_the_body() {
    let google = r#"[{"error":{"code":429,"details":[{"@type":"x"},{"retryDelay":"34.5s"}]}}]"#;
    for (headers, body, expected) in [
        (&[("retry-after-ms", "1500"), ("retry-after", "9")][..], "", Some(1500)),
        (&[("retry-after", "0.25")], "", Some(250)),
        (
            &[("retry-after", "Tue, 15 Nov 1994 08:13:01 GMT"), ("date", "Tue, 15 Nov 1994 08:12:31 GMT")],
            "",
            Some(30_000),
        ),
        (&[("x-ratelimit-reset-requests", "6m0s")], "", Some(360_000)),
        (&[], google, Some(34_500)),
        (&[("retry-after", "-3")], google, Some(34_500)),
        (&[], r#"{"error":{"retry_after":2.5}}"#, Some(2500)),
        (&[], r#"{"retry_after":3}"#, Some(3000)),
        (&[], r#"{"error":{"retry_after":-1}}"#, None),
        (&[("retry-after", "999999999")], "", Some(86_400_000)),
        (&[], "", None),
    ] {
        let error = refused(429, headers, body).await;
        assert_eq!(error.retry_after(), expected.map(Duration::from_millis), "{headers:?} {body}");
    }
    let reported =
        failure(answering(200, SSE, text(sse(&[&google[1..google.len() - 1]]))), streaming()).await;
    assert_eq!(reported.retry_after(), Some(Duration::from_millis(34_500)));
    let overloaded = refused(503, &[("retry-after", "4")], "").await;
    assert_eq!(overloaded.retry_after(), Some(Duration::from_secs(4)));
}

#[tokio::test]
async fn at_most_64_kib_of_a_refusal_are_read_and_none_are_shown() {
    let pieces = Pieces::new((0..100).map(|_| Piece::Data(vec![b'x'; 10_000].into())).chain([Piece::Stall]));
    let polls = pieces.polls();
    let error = failure(answering(500, &[], pieces), whole()).await;
    assert_eq!(facts(&error).body.as_ref().map(Bytes::len), Some(64 << 10));
    assert_eq!(polls(), 7);
    assert!(!format!("{error} {error:?}").contains("xx"));
}

#[tokio::test]
async fn a_refusal_that_breaks_off_is_still_the_refusal() {
    let pieces = Pieces::new([Piece::Data(r#"{"error":"#.into()), Piece::Break]);
    let error = failure(answering(429, &[("retry-after", "1")], pieces), whole()).await;
    assert_eq!(error.class(), Some(ErrorClass::RateLimited));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
}

#[tokio::test]
async fn an_error_inside_of_a_200_is_an_error() {
    use ErrorClass::*;
    for (report, class, code) in [
        (r#"{"error":{"message":"boom","type":"server_error","code":null}}"#, Upstream, Some("server_error")),
        (
            r#"{"error":{"message":"boom","code":500},"choices":[{"index":0,"delta":{"content":""},"finish_reason":"error"}]}"#,
            Upstream,
            Some("500"),
        ),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"error","error":{"code":502,"message":"boom"}}]}"#,
            Unavailable,
            Some("502"),
        ),
        (
            r#"{"choices":[{"index":0,"message":{"content":"b"},"finish_reason":null,"error":{"code":429}}],"error":null}"#,
            RateLimited,
            Some("429"),
        ),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"please wait"},"finish_reason":"error","error":null}]}"#,
            Upstream,
            None,
        ),
        (r#"{"choices":[{"index":0,"finish_reason":"insufficient_system_resource"}]}"#, Upstream, None),
        (
            r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"network_error"}]}"#,
            Upstream,
            None,
        ),
        (
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"x_groq":{"id":"r","error":"over capacity"}}"#,
            Upstream,
            None,
        ),
        (
            r#"{"choices":[],"x_groq":{"error":{"message":"no","code":"rate_limit_exceeded"}}}"#,
            RateLimited,
            Some("rate_limit_exceeded"),
        ),
        (r#"{"error":"boom"}"#, Upstream, None),
        (
            r#"{"object":"error","message":"model overloaded","type":"server_error","code":503}"#,
            Unavailable,
            Some("server_error"),
        ),
        (r#"{"object":"error","message":"boom","type":"x","param":null,"code":null}"#, Upstream, Some("x")),
        (r#"{"error":{"code":429,"message":"slow down"}}"#, RateLimited, Some("429")),
        (r#"{"error":{"type":"overloaded_error"}}"#, Unavailable, Some("overloaded_error")),
        (r#"{"error":{"code":"content_filter"}}"#, ContentFilter, Some("content_filter")),
        (
            r#"{"error":{"code":400,"message":"This model's maximum context length is 9"}}"#,
            ContextWindow,
            Some("400"),
        ),
        (
            r#"{"error":{"code":429,"message":"Too many tokens, please wait before trying again."}}"#,
            RateLimited,
            Some("429"),
        ),
        (r#"{"error":{"message":"Too many tokens, please wait before trying again."}}"#, RateLimited, None),
        (r#"{"error":"Too many tokens. Try again in 20s."}"#, RateLimited, None),
        (r#"{"error":"Too many tokens. Try again with fewer."}"#, ContextWindow, None),
        (r#"{"error":{"code":429,"message":"too many tokens"}}"#, RateLimited, Some("429")),
        (
            r#"{"error":{"code":"rate_limit_exceeded","message":"too many tokens"}}"#,
            RateLimited,
            Some("rate_limit_exceeded"),
        ),
        (
            r#"{"error":{"type":"ThrottlingException","message":"too many tokens"}}"#,
            RateLimited,
            Some("ThrottlingException"),
        ),
        (
            r#"{"error":{"type":"overloaded_error","message":"no room for this context window"}}"#,
            Unavailable,
            Some("overloaded_error"),
        ),
        (r#"{"error":{"code":503,"message":"no room for this context window"}}"#, Unavailable, Some("503")),
        (r#"{"error":{"code":500,"message":"no room for this context window"}}"#, Upstream, Some("500")),
        (
            r#"{"error":{"code":"context_length_exceeded","message":"please wait"}}"#,
            ContextWindow,
            Some("context_length_exceeded"),
        ),
        (
            r#"{"error":{"message":"bad","type":"BadRequestError","code":400}}"#,
            BadRequest,
            Some("BadRequestError"),
        ),
        (
            r#"{"error":{"code":400,"message":"Too many tokens, please wait before trying again."}}"#,
            RateLimited,
            Some("400"),
        ),
        (r#"{"error":{"code":401,"message":"no"}}"#, Auth, Some("401")),
        (r#"{"error":{"code":402,"message":"no credits"}}"#, Auth, Some("402")),
        (r#"{"error":{"code":403,"message":"no"}}"#, Auth, Some("403")),
        (r#"{"error":{"code":404,"message":"no"}}"#, BadRequest, Some("404")),
        (r#"{"error":{"code":408,"message":"late"}}"#, Unavailable, Some("408")),
        (r#"{"error":{"code":409,"message":"busy"}}"#, Unavailable, Some("409")),
        (r#"{"error":{"code":425,"message":"early"}}"#, Unavailable, Some("425")),
        (r#"{"error":{"code":524,"message":"late"}}"#, Unavailable, Some("524")),
        (r#"{"error":{"code":"429","message":"slow down"}}"#, RateLimited, Some("429")),
        (r#"{"error":{"code":"400","message":"bad"}}"#, BadRequest, Some("400")),
        (r#"{"error":{"code":1302,"message":"no"}}"#, Upstream, Some("1302")),
        (r#"{"error":{"code":200,"message":"no"}}"#, Upstream, Some("200")),
        (r#"{"error":{"code":302,"message":"no"}}"#, Upstream, Some("302")),
        (
            r#"{"error":{"message":"bad","type":"invalid_request_error","code":null}}"#,
            BadRequest,
            Some("invalid_request_error"),
        ),
        (
            r#"{"error":{"message":"no","type":"invalid_request_error","code":"invalid_api_key"}}"#,
            Auth,
            Some("invalid_api_key"),
        ),
        (
            r#"{"error":{"type":"invalid_request_error","code":503}}"#,
            Unavailable,
            Some("invalid_request_error"),
        ),
        (
            r#"{"error":{"type":"invalid_request_error","message":"prompt is too long: 9 tokens > 8"}}"#,
            ContextWindow,
            Some("invalid_request_error"),
        ),
    ] {
        let headers = [("content-type", "text/event-stream"), ("request-id", "r-2")];
        let body = text(sse(&[HELLO, report, STOP, "[DONE]"]));
        let response = answering(200, &headers, body).oneshot(streaming()).await.unwrap();
        let (chunks, error) = chunks(response).await;
        assert_eq!(chunks.len(), 1);
        let streamed = error.unwrap();
        let whole_answer = failure(answering(200, JSON, text(report)), whole()).await;
        let to_a_stream = failure(answering(200, JSON, text(report)), streaming()).await;
        for error in [&streamed, &whole_answer, &to_a_stream] {
            let facts = facts(error);
            assert_eq!((facts.class, facts.code.as_deref()), (class, code), "{report}");
            assert_eq!(said(facts), report);
            assert!(error.dispatched());
        }
        assert_eq!(facts(&streamed).request_id.as_deref(), Some("r-2"));
    }
}

#[tokio::test]
async fn what_a_reported_error_says_of_usage_is_known() {
    for report in [
        r#"{"choices":[{"index":0,"delta":{},"finish_reason":"error"}],"usage":{"prompt_tokens":9,"completion_tokens":2}}"#,
        r#"{"choices":[],"x_groq":{"error":"x","usage":{"prompt_tokens":9,"completion_tokens":2}}}"#,
    ] {
        let response =
            answering(200, SSE, text(sse(&[HELLO, report, "[DONE]"]))).oneshot(streaming()).await.unwrap();
        let (_, streamed) = chunks(response).await;
        let whole_answer = failure(answering(200, JSON, text(report)), whole()).await;
        for error in [streamed.unwrap(), whole_answer] {
            assert_eq!(error.usage(), Some(&TokenUsage::new(9, 2)));
        }
    }
}

#[tokio::test]
async fn an_event_named_error_is_an_error_whatever_it_says() {
    for data in [r#"{"message":"boom","code":"x"}"#, "boom", ""] {
        let body = format!("{}event: error\ndata: {data}\n\n", sse(&[HELLO]));
        let error = failure(answering(200, SSE, text(body)), streaming()).await;
        assert_eq!(error.class(), Some(ErrorClass::Upstream), "{data}");
        assert_eq!(said(facts(&error)), data);
    }
}

#[tokio::test]
async fn a_clean_end_without_a_finish_reason_is_truncated() {
    let two = r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#;
    for body in [
        String::new(),
        ": only a comment\n\n".into(),
        sse(&[HELLO]),
        sse(&[USAGE]),
        sse(&[two, STOP]),
        // The last event was never finished.
        format!("{}data: {STOP}\n", sse(&[HELLO])),
        format!("{}data: [DONE]", sse(&[HELLO])),
    ] {
        let error = failure(answering(200, SSE, text(body.clone())), streaming()).await;
        assert_eq!(error.class(), Some(ErrorClass::Truncated), "{body}");
        assert!(error.dispatched());
    }
}

#[tokio::test]
async fn an_end_without_done_after_each_finish_reason_is_fine() {
    let two = r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}"#;
    let second = r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"}]}"#;
    for (body, expected) in [
        (sse(&[HELLO, STOP]), 3),
        (sse(&[HELLO, STOP, USAGE]), 4),
        (sse(&[two, STOP, second]), 4),
        (sse(&[two, second, STOP]), 4),
        (format!("{}data: [DONE]", sse(&[HELLO, STOP])), 3),
    ] {
        let response = answering(200, SSE, text(body.clone())).oneshot(streaming()).await.unwrap();
        let (chunks, error) = chunks(response).await;
        assert!(error.is_none(), "{body}: {error:?}");
        assert_eq!(chunks.len(), expected);
        assert_eq!(chunks.iter().filter(|chunk| chunk.is_final()).count(), 1);
        assert!(chunks[expected - 1].is_final());
    }
}

/// As relays in PHP write an empty object.
#[tokio::test]
async fn a_delta_or_message_that_is_no_object_says_nothing() {
    for nothing in ["[]", "null", "\"\"", "7", "false"] {
        let last = format!(
            r#"{{"choices":[{{"index":0,"delta":{nothing},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":3,"completion_tokens":1}}}}"#
        );
        let body = text(sse(&[HELLO, &last, "[DONE]"]));
        let (chunks, error) = chunks(answering(200, SSE, body).oneshot(streaming()).await.unwrap()).await;
        assert!(error.is_none(), "{nothing}: {error:?}");
        assert_eq!((chunks.len(), chunks[1].has_content()), (3, false), "{nothing}");
        assert_eq!(chunks[1].usage().and_then(|usage| usage.output_tokens), Some(1), "{nothing}");

        let answer = ANSWER.replace(r#"{"role":"assistant","content":"Hello"}"#, nothing);
        let peek = PeekLayer::new().layer(answering(200, JSON, text(answer)));
        let error = peek.oneshot(whole()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EmptyResponse { .. }), "{nothing}: {error:?}");
    }
}

/// As Together ends an answer.
#[tokio::test]
async fn numbers_beside_an_empty_text_are_no_answer() {
    for beside in [r#""token_id":128009"#, r#""done":true"#, r#""done":false"#] {
        let empty = format!(
            r#"{{"choices":[{{"index":0,"text":"","delta":{{{beside},"role":"assistant","content":"","tool_calls":null}},"finish_reason":"stop"}}]}}"#
        );
        let peek = PeekLayer::new().layer(answering(200, SSE, text(sse(&[&empty, "[DONE]"]))));
        let error = peek.oneshot(streaming()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EmptyResponse { .. }), "{beside}: {error:?}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_before_json_is_passed_over() {
    for request in [whole(), streaming()] {
        let answer = answering(200, JSON, text(format!("\u{feff}{ANSWER}"))).oneshot(request).await.unwrap();
        let ResponseBody::Complete(completion) = answer.body else { panic!("not whole") };
        assert_eq!(completion.data(), ANSWER);
    }
    let error = refused(400, &[], "\u{feff}{\"error\":{\"code\":\"context_length_exceeded\"}}").await;
    assert_eq!(error.class(), Some(ErrorClass::ContextWindow));
    assert_eq!(facts(&error).code.as_deref(), Some("context_length_exceeded"));
    let error = failure(answering(200, JSON, text("\u{feff}\u{feff}{}")), whole()).await;
    assert_eq!(error.class(), Some(ErrorClass::BadFrame));
}

#[tokio::test]
async fn an_event_that_is_no_json_object_is_a_bad_frame() {
    for event in
        ["secret", "[1]", r#""secret""#, r#"{"choices":7}"#, r#"{"choices":["secret"]}"#, "{", "{}{}"]
    {
        let body = text(sse(&[HELLO, event, STOP, "[DONE]"]));
        let response = answering(200, SSE, body).oneshot(streaming()).await.unwrap();
        let (chunks, error) = chunks(response).await;
        assert_eq!(chunks.len(), 1, "{event}");
        let error = error.unwrap();
        assert_eq!(error.class(), Some(ErrorClass::BadFrame), "{event}");
        assert_eq!(said(facts(&error)), event);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(!format!("{error} {error:?} {source}").contains("secret"));
    }
    let not_utf8 = Bytes::from_static(b"data: {\"a\":\"\xff\"}\n\n");
    let error = failure(answering(200, SSE, text(not_utf8)), streaming()).await;
    assert_eq!(error.class(), Some(ErrorClass::BadFrame));
}

#[tokio::test]
async fn an_answer_of_the_wrong_kind_is_a_bad_frame() {
    let html = &[("content-type", "text/html; charset=utf-8")];
    for (headers, body, asked) in [
        (JSON, "not JSON", whole()),
        (JSON, "", whole()),
        (JSON, "[]", whole()),
        (JSON, r#"{"choices":[{"#, whole()),
        (JSON, "not JSON", streaming()),
        (html, "<html>sign in</html>", whole()),
        (html, "<html>sign in</html>", streaming()),
        (SSE, "data: {}\n\n", whole()),
        (&[("content-type", "Text/Event-Stream; charset=utf-8")], "data: {}\n\n", whole()),
    ] {
        let error = failure(answering(200, headers, text(body)), asked).await;
        assert_eq!(error.class(), Some(ErrorClass::BadFrame), "{headers:?} {body}");
        assert_eq!(facts(&error).status.map(|s| s.as_u16()), Some(200));
    }
}

#[tokio::test]
async fn a_stream_that_was_not_asked_for_is_not_read() {
    let endless = Pieces::new([Piece::Stall]);
    let polls = endless.polls();
    let mut call = tokio_test::task::spawn(failure(answering(200, SSE, endless), whole()));
    assert_eq!(tokio_test::assert_ready!(call.poll()).class(), Some(ErrorClass::BadFrame));
    assert_eq!(polls(), 0);
}

#[tokio::test]
async fn of_a_malformed_answer_at_most_64_kib_are_kept() {
    let page = "x".repeat(100_000);
    for (answer, asked) in [
        (answering(200, JSON, text(page.clone())), whole()),
        (answering(200, SSE, text(sse(&[&page]))), streaming()),
    ] {
        let error = failure(answer, asked).await;
        assert_eq!(facts(&error).body.as_ref().map(Bytes::len), Some(64 << 10));
    }
}

#[tokio::test]
async fn a_stream_that_is_answered_whole_is_a_whole_answer() {
    let answer = answering(200, JSON, text(ANSWER)).oneshot(streaming()).await.unwrap();
    let ResponseBody::Complete(completion) = answer.body else { panic!() };
    assert_eq!(completion.data(), ANSWER);
}

#[tokio::test]
async fn a_stream_without_the_right_media_type_is_a_stream_all_the_same() {
    for headers in [&[][..], &[("content-type", "text/plain")]] {
        let answer = answering(200, headers, text(sse(&[HELLO, STOP, "[DONE]"])));
        assert_eq!(answer.oneshot(streaming()).await.unwrap().text().await.unwrap(), "Hello");
    }
}

#[tokio::test]
async fn a_whole_answer_above_its_bound_is_too_large_and_reading_stops_at_once() {
    let announced = Pieces::data([ANSWER]);
    let polls = announced.polls();
    let provider = answering(200, &[("content-length", "1001")], announced).with_max_answer_bytes(1000);
    assert_eq!(failure(provider, whole()).await.class(), Some(ErrorClass::TooLarge));
    assert_eq!(polls(), 0);

    let endless = Pieces::new((0..100).map(|_| Piece::Data(vec![b' '; 100].into())));
    let polls = endless.polls();
    let provider = answering(200, &[], endless).with_max_answer_bytes(1000);
    assert_eq!(failure(provider, whole()).await.class(), Some(ErrorClass::TooLarge));
    assert_eq!(polls(), 11);

    let exact = answering(200, &[], Pieces::data([&ANSWER[..9], &ANSWER[9..]]));
    let answer = exact.with_max_answer_bytes(ANSWER.len()).oneshot(whole()).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "Hello");
}

#[tokio::test]
async fn an_event_above_its_bound_is_too_large() {
    let limit = 1000;
    let event = |size: usize| {
        let text = "x".repeat(size);
        sse(&[&format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#)])
    };
    let overhead = event(0).len();
    for split in [1, 7, 64, 100_000] {
        let ask = |body: String| {
            let pieces =
                Pieces::data(body.into_bytes().chunks(split).map(<[u8]>::to_vec).collect::<Vec<_>>());
            answering(200, SSE, pieces).with_max_event_bytes(limit).oneshot(streaming())
        };
        let tail = sse(&[STOP, "[DONE]"]);
        let largest = event(limit - overhead);
        assert_eq!(largest.len(), limit);
        // Many events, each within the bound.
        let fits = ask(format!("{}{tail}", largest.repeat(20))).await.unwrap();
        assert_eq!(chunks(fits).await.0.len(), 22, "pieces of {split}");

        let (before, error) = chunks(ask(format!("{}{tail}", event(100_000))).await.unwrap()).await;
        assert!(before.is_empty());
        assert_eq!(error.unwrap().class(), Some(ErrorClass::TooLarge), "pieces of {split}");
        // A line that never ends, known field or not.
        for endless in ["data: ", ": ", "nonsense", "id: "] {
            let body = format!("{}{}", endless, "x".repeat(100_000));
            let error = chunks(ask(body).await.unwrap()).await.1.unwrap();
            assert_eq!(error.class(), Some(ErrorClass::TooLarge), "{endless}");
        }
    }
}

#[tokio::test]
async fn what_breaks_after_the_head_is_transport() {
    let cut = Pieces::new([Piece::Data(ANSWER[..20].into()), Piece::Break]);
    let error = failure(answering(200, &[], cut), whole()).await;
    assert_eq!(error.class(), Some(ErrorClass::Transport));
    assert!(error.dispatched());
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);

    // Even after the finish reason: the usage may be missing.
    for events in [&[HELLO][..], &[HELLO, STOP]] {
        let cut = Pieces::new([Piece::Data(sse(events).into()), Piece::Break]);
        let error = failure(answering(200, SSE, cut), streaming()).await;
        assert_eq!(error.class(), Some(ErrorClass::Transport));
    }
}

async fn unanswered(error: impl Into<BoxError>) -> Error {
    let error = Arc::new(Mutex::new(Some(error.into())));
    let http = service_fn(move |_: http::Request<Full<Bytes>>| {
        std::future::ready(Err::<http::Response<Full<Bytes>>, _>(error.lock().unwrap().take().unwrap()))
    });
    failure(OpenAiCompatible::new(http, URL).unwrap(), whole()).await
}

#[tokio::test]
async fn what_breaks_before_the_head_is_connect_only_if_nothing_was_sent() {
    for (kind, class) in [
        (io::ErrorKind::ConnectionRefused, ErrorClass::Connect),
        (io::ErrorKind::ConnectionReset, ErrorClass::Transport),
        (io::ErrorKind::HostUnreachable, ErrorClass::Transport),
        (io::ErrorKind::UnexpectedEof, ErrorClass::Transport),
    ] {
        // Bare, and wrapped once.
        for error in [boxed(io::Error::from(kind)), boxed(io::Error::other(io::Error::from(kind)))] {
            let error = unanswered(error).await;
            assert_eq!(error.class(), Some(class), "{kind}");
            assert_eq!(error.dispatched(), class != ErrorClass::Connect);
            assert!(std::error::Error::source(&error).is_some());
            assert_eq!(facts(&error).provider.as_ref(), "llm.example");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn errors_of_towers_layers_beneath_keep_their_meaning() {
    let never = service_fn(|_: http::Request<Full<Bytes>>| {
        std::future::pending::<Result<http::Response<Full<Bytes>>, BoxError>>()
    });
    let slow = tower::timeout::TimeoutLayer::new(Duration::from_secs(5)).layer(never);
    let error = failure(OpenAiCompatible::new(slow, URL).unwrap(), whole()).await;
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Head }), "{error:?}");
    assert!(error.dispatched());

    let shed = unanswered(tower::load_shed::error::Overloaded::new()).await;
    assert!(matches!(shed.kind(), ErrorKind::Overloaded) && !shed.dispatched(), "{shed:?}");
}

#[derive(Clone)]
struct Dead;

impl Service<http::Request<Full<Bytes>>> for Dead {
    type Response = http::Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Err("worker is gone".into()))
    }

    fn call(&mut self, _: http::Request<Full<Bytes>>) -> Self::Future {
        unreachable!()
    }
}

#[tokio::test]
async fn a_dead_http_service_is_an_unavailable_provider() {
    let mut provider = OpenAiCompatible::new(Dead, URL).unwrap();
    let error = provider.ready().await.map(drop).unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::Unavailable));
    assert!(!error.dispatched());
    assert_eq!(error.to_string(), "provider llm.example is unavailable");
}

#[tokio::test]
async fn seed_09_a_broken_streaming_contract_is_a_clear_error_that_names_the_provider() {
    let large = format!(r#"{{"x":"{}"}}"#, "x".repeat(5000));
    for (body, class, said) in [
        ("data: {oops\n\n".to_owned(), ErrorClass::BadFrame, "sent a malformed answer"),
        (sse(&[HELLO]), ErrorClass::Truncated, "ended its stream early"),
        (sse(&[HELLO, &large]), ErrorClass::TooLarge, "sent more than is taken"),
        (
            sse(&[HELLO, r#"{"error":{}}"#, r#"{"error":{"message":"x"}}"#]),
            ErrorClass::Upstream,
            "reported a failure",
        ),
    ] {
        let provider = answering(200, SSE, text(body)).with_max_event_bytes(2000);
        let error = failure(provider, streaming()).await;
        assert_eq!(error.class(), Some(class));
        assert_eq!(error.to_string(), format!("provider acme {said} (model m-1, status 200)"));
    }
}
