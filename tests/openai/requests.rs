//! What is sent, and what never is.

use crate::canned::*;
use bytes::Bytes;
use http_body_util::Full;
use llm_layers::{
    BodyLimits, KbScope, LlmRequest, RequestContext,
    http::anthropic,
    provider::openai::{ConfigError, OpenAiCompatible},
};
use serde_json::Value;
use tower::{ServiceExt, service_fn};

fn endpoint(url: &str) -> Result<OpenAiCompatible<()>, ConfigError> {
    OpenAiCompatible::new((), url)
}

#[tokio::test]
async fn the_path_is_joined_and_the_query_of_the_base_is_kept() {
    for (base, expected) in [
        ("https://api.openai.com/v1", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/chat/completions"),
        ("http://localhost:8080", "http://localhost:8080/chat/completions"),
        ("http://[::1]:8080/", "http://[::1]:8080/chat/completions"),
        (
            "https://x.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://x.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
    ] {
        let sent = sent(|provider| provider, base, whole()).await;
        assert_eq!(sent.uri().to_string(), expected);
        assert_eq!(sent.method(), http::Method::POST);
    }
}

#[test]
fn a_base_url_that_cannot_be_used_is_refused_and_never_shown() {
    for url in [
        "",
        "api.openai.com/v1",
        "/v1",
        "ftp://example.com/v1?key=hunter2",
        "https://user:hunter2@example.com/v1",
        "https://hunter2@example.com:443/v1",
        "https://",
        "https://exa mple.com/hunter2",
        "https://example.com:123456/hunter2",
    ] {
        let error = endpoint(url).unwrap_err();
        assert!(matches!(error, ConfigError::BaseUrl { .. }), "{url}: {error:?}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}");
    }
}

#[test]
fn a_key_or_header_that_cannot_be_sent_is_refused_and_never_shown() {
    let key = endpoint(URL).unwrap().with_api_key("hunter2\n").unwrap_err();
    assert_eq!(key, ConfigError::ApiKey);
    assert_eq!(endpoint(URL).unwrap().with_api_key("").unwrap_err(), ConfigError::ApiKey);
    let value = endpoint(URL).unwrap().with_header("api-key", "hunter2\r\nx: y").unwrap_err();
    assert!(matches!(&value, ConfigError::Header { name: Some(name) } if name == "api-key"));
    // Name and value mixed up.
    let name = endpoint(URL).unwrap().with_header("Bearer hunter2", "authorization").unwrap_err();
    for error in [key, value, name] {
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}

#[test]
fn host_and_port_are_known_for_telemetry() {
    let told = |url| endpoint(url).map(|p| (p.host().to_owned(), p.port())).unwrap();
    assert_eq!(told("https://api.openai.com/v1"), ("api.openai.com".to_owned(), 443));
    assert_eq!(told("http://localhost"), ("localhost".to_owned(), 80));
    assert_eq!(told("http://[::1]:8080"), ("::1".to_owned(), 8080));
}

#[tokio::test]
async fn headers_come_from_configuration_and_keys_are_marked_sensitive() {
    let configure = |provider: OpenAiCompatible<Recorder>| {
        let provider = provider.with_api_key("hunter2").unwrap();
        provider.with_header("api-key", "hunter3").unwrap()
    };
    let sent = sent(configure, URL, whole()).await;
    let headers = sent.headers();
    assert_eq!(headers["authorization"], "Bearer hunter2");
    assert_eq!(headers["api-key"], "hunter3");
    assert!(headers["authorization"].is_sensitive() && headers["api-key"].is_sensitive());
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["accept"], "application/json");
    assert_eq!(headers.len(), 4, "{headers:?}");
    assert_eq!(sent_headers(streaming()).await["accept"], "text/event-stream");
}

async fn sent_headers(request: llm_layers::LlmRequest) -> http::HeaderMap {
    sent(|provider| provider, URL, request).await.headers().clone()
}

#[tokio::test]
async fn what_another_dialect_brought_is_sent_to_those_who_take_it_and_what_a_caller_says_to_all() {
    let translated = r#"{"max_tokens":1,"thinking":{"type":"disabled"},"messages":[{"role":"user","content":"?"},{"role":"assistant","content":[{"type":"thinking","thinking":"hm","signature":""},{"type":"tool_use","id":"a","name":"f","input":{}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":"1"}]}]"#;
    let said = |url: &'static str, model: &'static str, told: Option<bool>| async move {
        let body = format!(r#"{translated},"model":"{model}"}}"#);
        let request = anthropic::chat_request(body, &BodyLimits::default()).unwrap();
        let configure = |leaf| told.into_iter().fold(leaf, OpenAiCompatible::with_returned_thoughts);
        let sent: Value = serde_json::from_str(&json_of(sent(configure, url, request).await).await).unwrap();
        assert_eq!(sent["messages"][1]["tool_calls"][0]["id"], "a");
        assert_eq!(sent["messages"].as_array().unwrap().len(), 3);
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let effort = of(&sent["reasoning_effort"]);
        (of(&sent["messages"][1]["reasoning_content"]), effort, of(&sent["thinking"]["type"]))
    };
    for (url, model, expected) in [
        ("https://API.deepseek.com/v1", "deepseek-chat", ("hm", "", "disabled")),
        ("https://api.z.ai/api/paas/v4", "glm-5", ("hm", "", "disabled")),
        ("https://api.moonshot.ai/v1", "kimi-k2.5", ("hm", "", "")),
        ("https://openrouter.ai/api/v1", "deepseek/deepseek-v4", ("hm", "", "")),
        ("https://api.openai.com/v1", "gpt-5.1", ("", "none", "")),
        ("https://api.openai.com/v1", "gpt-5.2-2025-12-11", ("", "none", "")),
        ("https://api.openai.com/v1", "gpt-5.1-codex", ("", "", "")),
        ("https://api.openai.com/v1", "gpt-5.1-chat-latest", ("", "", "")),
        ("https://api.openai.com/v1", "gpt-5", ("", "", "")),
        ("https://api.openai.com/v1", "gpt-4o", ("", "", "")),
        ("https://api.mistral.ai/v1", "mistral-small", ("", "", "")),
        ("https://api.deepseek.com.example/v1", "m", ("", "", "")),
    ] {
        let (thoughts, effort, thinking) = said(url, model, None).await;
        assert_eq!((&*thoughts, &*effort, &*thinking), expected, "{url} {model}");
    }
    assert_eq!(said("https://proxy.example/v1", "m", Some(true)).await.0, "hm");
    assert_eq!(said("https://api.deepseek.com", "m", Some(false)).await.0, "");

    // A caller of this dialect means what it says.
    let own = r#"{"model":"m-1","messages":[{"role":"assistant","reasoning_content":"hm","content":"a"}],"reasoning_effort":"none"}"#;
    let own_request = LlmRequest::parse(own).unwrap();
    assert_eq!(json_of(sent(|leaf| leaf, "https://api.mistral.ai/v1", own_request).await).await, own);
}

#[tokio::test]
async fn the_request_id_is_sent_if_a_header_can_carry_it() {
    let id = |id: &str| whole().with_context(RequestContext::new().with_request_id(id));
    assert_eq!(sent_headers(id("req-7")).await["x-request-id"], "req-7");
    let long = "x".repeat(300);
    for wrong in ["a\r\nauthorization: b", "a\u{0}", "grün\n", &long] {
        let headers = sent_headers(id(wrong)).await;
        assert_eq!(headers.len(), 2, "{headers:?}");
    }
}

#[tokio::test]
async fn seed_26_unknown_members_survive_and_agent_and_task_type_never_reach_the_provider() {
    let members = r#""messages":[{"role":"user","content":"h\u0069","name":null,"x_new":{"b":1,"a":[ 1.0 ]}}],"timeout":30,"seed":12345678901234567890123,"temperature":0.20000,"top_k":3.0,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"f"}},"provider":{"order":["x"]},"mystery\u0021":[]"#;
    let context = RequestContext::new()
        .with_agent_name("secret-agent")
        .with_task_type("secret-task")
        .with_user_id("secret-user")
        .with_tenant_id("secret-tenant")
        .with_departments(["secret-department"])
        .with_conversation_id("secret-conversation")
        .with_kb(KbScope::new("secret-kb").with_acl_hash("secret-hash"));
    let mut asked = request(&format!(r#"{{"model":"alias",{members}}}"#)).with_context(context);
    asked.model = "org/m-1".into();
    asked.insert_extension("secret-extension");
    assert_eq!(sent_json(asked.clone()).await, format!(r#"{{"model":"org/m-1",{members}}}"#));
    let sent = sent(|provider| provider, URL, asked).await;
    assert!(!format!("{sent:?}").contains("secret"), "{sent:?}");
    assert_eq!(sent.headers().len(), 2);
}

#[tokio::test]
async fn a_body_cannot_steer_url_or_headers() {
    let json = r#"{"model":"x","messages":[{"role":"user","content":"a"}],"base_url":"http://evil","api_key":"k","extra_headers":{"a":"b"},"headers":{"a":"b"}}"#;
    let sent = sent(|provider| provider, URL, request(json)).await;
    assert_eq!(sent.uri(), "https://llm.example/v1/chat/completions");
    assert_eq!(sent.headers().len(), 2);
}

#[tokio::test]
async fn usage_is_always_asked_of_streams_and_other_options_keep_their_bytes() {
    let body = |rest: &str| {
        request(&format!(
            r#"{{"model":"x","messages":[{{"role":"user","content":"a"}}],"stream":true{rest}}}"#
        ))
    };
    let prefix =
        r#"{"model":"m-1","messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":"#;
    for (given, expected) in [
        ("", r#"{"include_usage":true}"#),
        (r#","stream_options":null"#, r#"{"include_usage":true}"#),
        (r#","stream_options":{}"#, r#"{"include_usage":true}"#),
        (r#","stream_options":{"include_usage":false}"#, r#"{"include_usage":true}"#),
        (r#","stream_options":{"include_usage":null,"a":1}"#, r#"{"a":1,"include_usage":true}"#),
        (r#","stream_options":{ "include_usage" : true }"#, r#"{ "include_usage" : true }"#),
        (
            r#","stream_options":{"include_obfuscation":false,"big":12345678901234567890,"f":1.00,"n\u0021":{"b":[ 1 ]}}"#,
            r#"{"include_obfuscation":false,"big":12345678901234567890,"f":1.00,"n\u0021":{"b":[ 1 ]},"include_usage":true}"#,
        ),
        (r#","stream_options":{"includ\u0065_usage":false,"a":1}"#, r#"{"a":1,"include_usage":true}"#),
        (r#","stream_options":{"include_usage":true,"include_usage":false}"#, r#"{"include_usage":true}"#),
        (r#","stream_options":{"include_usage":false,"include_usage":true}"#, r#"{"include_usage":true}"#),
    ] {
        assert_eq!(sent_json(body(given)).await, format!("{prefix}{expected}}}"), "{given}");
    }
}

#[tokio::test]
async fn a_request_for_a_whole_answer_keeps_its_stream_options() {
    let json = r#"{"model":"m-1","messages":[{"role":"user","content":"a"}],"stream_options":{"include_usage":false}}"#;
    assert_eq!(sent_json(request(json)).await, json);
}

#[tokio::test]
async fn a_bound_is_sent_under_the_name_that_the_server_knows_and_else_as_it_comes() {
    const START: &str = r#"{"model":"m-1","messages":[{"role":"user","content":"a"}]"#;
    let (old, new) = (r#","max_tokens":50}"#, r#","max_completion_tokens":50}"#);
    let both = r#","max_tokens":7,"max_completion_tokens":50}"#;
    for (member, given, expected) in [
        (Some("max_completion_tokens"), old, new),
        (Some("max_completion_tokens"), new, new),
        (Some("max_completion_tokens"), both, both),
        (Some("max_completion_tokens"), "}", "}"),
        (Some("max_tokens"), new, old),
        (Some("max_tokens"), old, old),
        (None, old, old),
        (None, new, new),
    ] {
        let told = |leaf: OpenAiCompatible<Recorder>| match member {
            Some(member) => leaf.with_output_member(member),
            None => leaf,
        };
        let sent = sent(told, URL, request(&format!("{START}{given}"))).await;
        assert_eq!(json_of(sent).await, format!("{START}{expected}"), "{member:?}");
    }
}

#[tokio::test]
async fn the_call_is_marked_just_before_the_provider_is_asked() {
    let asked = whole();
    let progress = asked.progress.clone();
    let seen = progress.clone();
    let http = service_fn(move |_: http::Request<Full<Bytes>>| {
        assert!(seen.is_dispatched());
        std::future::ready(Ok::<_, std::io::Error>(http::Response::new(text(ANSWER))))
    });
    let mut provider = OpenAiCompatible::new(http, URL).unwrap();
    provider.ready().await.unwrap();
    assert!(!progress.is_dispatched());
    let response = tower::Service::call(&mut provider, asked).await.unwrap();
    assert_eq!(response.model, "m-1");
    assert_eq!(response.text().await.unwrap(), "Hello");
}

#[tokio::test]
async fn keys_are_never_in_debug_or_display_of_anything() {
    let http = service_fn(|_: http::Request<Full<Bytes>>| async {
        // Some providers quote the key.
        let body = r#"{"error":{"message":"Incorrect API key provided: hunter2","code":"hunter2 is wrong"}}"#;
        let response = http::Response::builder().status(401).body(text(body));
        Ok::<_, std::io::Error>(response.unwrap())
    });
    let provider = OpenAiCompatible::new(http, "https://llm.example/v1?key=hunter2").unwrap();
    let provider = provider.with_api_key("hunter2").unwrap().with_header("api-key", "hunter2").unwrap();
    let mut shown = format!("{provider:?}");
    let future = provider.clone().oneshot(whole());
    shown.push_str(&format!("{future:?}"));
    let error = future.await.unwrap_err();
    shown.push_str(&format!("{error} {error:?} {:?}", error.kind()));
    let mut ready = provider;
    shown.push_str(&format!("{:?}", tower::Service::call(&mut ready, whole())));
    assert!(shown.contains("llm.example") && !shown.contains("hunter2"), "{shown}");
    assert!(said(facts(&error)).contains("hunter2"), "kept for those who ask for it");
}
