//! Whose fault a failure is, in the words of those who have no code for it.

use crate::{canned::*, outcomes::refused};
use llm_layers::{Error, ErrorClass, ErrorKind, http as edge, providers::Providers};
use tower::ServiceExt;

/// The error that a report becomes: of an answer, of one in the place of a stream, and of an event in its middle.
async fn reported(report: &str) -> [Error; 3] {
    let events = || text(sse(&[HELLO, report, STOP, "[DONE]"]));
    [
        failure(answering(200, JSON, text(report.to_owned())), whole()).await,
        failure(answering(200, JSON, text(report.to_owned())), streaming()).await,
        failure(answering(200, SSE, events()), streaming()).await,
    ]
}

async fn assert_reported(report: &str, class: ErrorClass) {
    for error in reported(report).await {
        assert_eq!(error.class(), Some(class), "{report}");
    }
}

fn said(message: &str) -> String {
    serde_json::json!({ "error": { "type": "invalid_request_error", "message": message } }).to_string()
}

const NO_CREDIT: &str = r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."},"request_id":"r"}"#;

#[tokio::test]
async fn a_key_that_is_wrong_or_has_no_credit_is_no_fault_of_the_caller() {
    for body in [
        NO_CREDIT,
        &said("This organization has been disabled."),
        &said(
            "You have reached your specified API usage limits. You will regain access on 2026-04-01 at 00:00 UTC.",
        ),
        r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***Q6. You can obtain an API key from https://console.x.ai."}"#,
        r#"[{"error":{"code":400,"message":"API Key not found. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
        r#"{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}"#,
        r#"{"error":{"code":400,"message":"API key expired. Please renew the API key.","status":"INVALID_ARGUMENT"}}"#,
        r#"[{"error":{"code":400,"message":"Der Schlüssel ist ungültig.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.Help"},{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com"}]}}]"#,
        r#"{"error":{"type":"invalid_request_error","code":"invalid_api_key","message":"no"}}"#,
    ] {
        let error = refused(400, &[], body).await;
        assert_eq!(error.class(), Some(ErrorClass::Auth), "{body}");
        assert_eq!((error.status().as_u16(), edge::error_code(&error)), (502, Some("upstream_error")));
        // Without its brackets: an array is no answer.
        assert_reported(body.trim_matches(['[', ']']), ErrorClass::Auth).await;
    }
}

#[tokio::test]
async fn what_a_caller_says_of_keys_and_credit_is_the_callers_fault() {
    let key = "API key not valid. Please pass a valid API key.";
    let credit = "Your credit balance is too low to access the Anthropic API. Please purchase credits.";
    for body in [
        said(&format!("Invalid value: '{key}'")),
        said(&format!("{key}: Extra inputs are not permitted")),
        said(&format!("{key} is not a valid model ID")),
        said(&format!("messages.0.content: {credit}")),
        said(&format!("{credit}: Extra inputs are not permitted")),
        serde_json::json!({ "detail": [{ "msg": "field required", "input": key }] }).to_string(),
        r#"{"error":{"message":"no","metadata":{"reason":"API_KEY_INVALID"}}}"#.to_owned(),
    ] {
        assert_eq!(refused(400, &[], &body).await.class(), Some(ErrorClass::BadRequest), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_without_credit_is_left_alone() {
    fastrand::seed(7);
    let providers = Providers::builder()
        .provider("acme", answering(400, JSON, text(NO_CREDIT)))
        .provider("acme", answering(200, JSON, text(ANSWER)))
        .build()
        .unwrap();
    let mut failed = 0;
    for _ in 0..80 {
        failed += usize::from(providers.clone().oneshot(whole()).await.is_err());
    }
    assert_eq!(failed, 3, "as many as it takes to be left alone");
}

const FLAGGED: &str = r#"{"error":{"code":403,"message":"openai/gpt-4 requires moderation on OpenAI. Your input was flagged for \"violence\".","metadata":{"reasons":["violence"],"flagged_input":"how to","provider_name":"OpenAI"}}}"#;

#[tokio::test]
async fn a_prompt_that_is_flagged_is_filtered_and_not_forbidden() {
    for body in [
        FLAGGED,
        r#"{"error":{"code":403,"message":"Your chosen model requires moderation and your input was flagged"}}"#,
        r#"{"code":"permission-denied","error":"Content violates usage guidelines. "}"#,
        r#"{"code":"The caller does not have permission to execute the specified operation","error":"Content violates usage guidelines. Team: t, API key ID: k, Model: grok-4-0709, Failed check: SAFETY_CHECK_TYPE_BIO"}"#,
    ] {
        let error = refused(403, &[], body).await;
        assert_eq!(error.class(), Some(ErrorClass::ContentFilter), "{body}");
        assert_eq!((error.status().as_u16(), edge::error_code(&error)), (403, Some("content_filter")));
        assert_reported(body, ErrorClass::ContentFilter).await;
    }
    for body in [
        r#"{"error":{"code":403,"message":"Key limit exceeded","metadata":{"provider_name":"OpenAI"}}}"#,
        r#"{"error":{"code":403,"message":"No access to 'Content violates usage guidelines'"}}"#,
        r#"{"error":{"code":403,"message":"no"},"flagged_input":"x"}"#,
    ] {
        assert_eq!(refused(403, &[], body).await.class(), Some(ErrorClass::Auth), "{body}");
        assert_reported(body, ErrorClass::Auth).await;
    }
}

#[tokio::test]
async fn a_failure_of_the_provider_below_500_is_the_providers() {
    for (status, body, class) in [
        (
            498,
            r#"{"error":{"type":"internal_server_error","code":"capacity_exceeded"}}"#,
            ErrorClass::Unavailable,
        ),
        (498, "", ErrorClass::Unavailable),
        (
            424,
            r#"{"message":"The request failed due to an error while processing the model."}"#,
            ErrorClass::Upstream,
        ),
        (
            424,
            r#"{"error":"Request failed during generation: x","error_type":"generation"}"#,
            ErrorClass::Upstream,
        ),
        (
            499,
            r#"{"error":{"code":499,"message":"The operation was cancelled.","status":"CANCELLED"}}"#,
            ErrorClass::Upstream,
        ),
    ] {
        let error = refused(status, &[], body).await;
        assert_eq!(error.class(), Some(class), "{status} {body}");
        assert!(error.is_retryable());
        assert_eq!((error.status().as_u16(), edge::error_type(&error)), (502, "server_error"));
        assert_reported(&format!(r#"{{"error":{{"code":{status},"message":"x"}}}}"#), class).await;
    }
    assert_reported(r#"{"error":{"code":"capacity_exceeded","message":"x"}}"#, ErrorClass::Unavailable).await;
}

const TOO_LARGE: [&str; 3] = [
    "Request too large for gpt-4o in organization org-1 on tokens per min (TPM): Limit 30000, Requested 30601. The input or output tokens must be reduced in order to run successfully. Visit https://platform.openai.com/account/rate-limits to learn more.",
    "Request too large for gpt-4.1-2025-04-14 (for limit gpt-4.1) in organization org-1 on tokens per min (TPM): Limit 30000, Requested 37313. The input or output tokens must be reduced in order to run successfully.",
    "Request too large for model `llama-3.1-8b-instant` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Requested 12328, please reduce your message size and try again. Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing",
];

fn limited(message: &str) -> String {
    serde_json::json!({ "error": { "message": message, "type": "tokens", "code": "rate_limit_exceeded" } })
        .to_string()
}

fn is_account_limit(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Provider(failure) if failure.is_account_limit)
}

#[tokio::test]
async fn what_no_waiting_makes_small_enough_is_too_long() {
    for (status, told) in [(429, 400), (413, 413), (400, 400)] {
        for message in TOO_LARGE {
            let error = refused(status, &[("retry-after", "6")], &limited(message)).await;
            assert_eq!(error.class(), Some(ErrorClass::ContextWindow), "{status} {message}");
            assert!(!error.is_retryable());
            assert_eq!(
                (error.status().as_u16(), edge::error_code(&error)),
                (told, Some("context_length_exceeded"))
            );
            assert_eq!((error.retry_after(), edge::should_retry(&error)), (None, None));
            assert!(is_account_limit(&error), "another account may have a larger one");
        }
    }
    let too_long = refused(400, &[], &said("This model's maximum context length is 8192 tokens.")).await;
    assert_eq!((too_long.class(), is_account_limit(&too_long)), (Some(ErrorClass::ContextWindow), false));
    for message in TOO_LARGE {
        assert!(reported(&limited(message)).await.iter().all(is_account_limit), "{message}");
        assert_reported(&limited(message), ErrorClass::ContextWindow).await;
        assert_reported(
            &limited(message).replace("\"rate_limit_exceeded\"", "429"),
            ErrorClass::ContextWindow,
        )
        .await;
    }
    for message in [
        "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM): Limit 10000, Used 8554, Requested 3082. Please try again in 9.816s.",
        "Rate limit reached for 'Request too large for x must be reduced' in organization org-1",
        "Request too large for now",
    ] {
        assert_eq!(
            refused(429, &[], &limited(message)).await.class(),
            Some(ErrorClass::RateLimited),
            "{message}"
        );
        assert_reported(&limited(message), ErrorClass::RateLimited).await;
    }
}

#[tokio::test]
async fn a_filter_without_a_code_of_its_own_is_a_filter() {
    for message in [
        "Content Exists Risk",
        "Content Exists Risk (request id: 01)",
        "Output blocked by content filtering policy",
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a different prompt: https://platform.openai.com/docs/guides/reasoning#advice-on-prompting",
        "System detected potentially unsafe or sensitive content in input or generation.",
        "系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入易产生敏感内容的提示语，感谢您的配合。",
    ] {
        let error = refused(400, &[], &said(message)).await;
        assert_eq!(error.class(), Some(ErrorClass::ContentFilter), "{message}");
        assert_eq!((error.status().as_u16(), edge::error_code(&error)), (400, Some("content_filter")));
        assert_reported(&said(message), ErrorClass::ContentFilter).await;
        let event = format!("{}event: error\ndata: {}\n\n", sse(&[HELLO]), said(message));
        let error = failure(answering(200, SSE, text(event)), streaming()).await;
        assert_eq!(error.class(), Some(ErrorClass::ContentFilter), "{message}");
    }
    for message in [
        "Invalid value: 'Content Exists Risk'",
        "messages.0.content: Output blocked by content filtering policy",
        "Invalid prompt: messages must not be empty",
    ] {
        assert_eq!(
            refused(400, &[], &said(message)).await.class(),
            Some(ErrorClass::BadRequest),
            "{message}"
        );
        assert_reported(&said(message), ErrorClass::BadRequest).await;
    }
    // Not the code alone: a request of another shape than is wanted has it as well.
    let other = r#"{"error":{"code":"invalid_prompt","message":"Invalid Responses API request"}}"#;
    assert_eq!(refused(400, &[], other).await.class(), Some(ErrorClass::BadRequest));
}
