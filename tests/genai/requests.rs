//! What becomes of a request, and of what cannot become anything.

use crate::{common::*, server::Server};
use llm_layers::{
    BodyLimits, ChatBody, ErrorKind, InvalidReason, LlmRequest, RequestContext,
    http::anthropic,
    provider::{
        genai::{Dialect, Genai},
        openai::ConfigError,
    },
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// What goes over the wire: head and body.
async fn sent(dialect: Dialect, name: &str, body: Value) -> (String, Value) {
    let mut server = Server::playing([]).await;
    let leaf = leaf(dialect, &server);
    let (asked, _) = tokio::join!(server.asked(), leaf.oneshot(ask(name, body)));
    (asked.head, serde_json::from_str(&asked.body).unwrap())
}

async fn sent_body(dialect: Dialect, body: Value) -> Value {
    sent(dialect, model(dialect), body).await.1
}

/// The member that a request is refused for.
async fn refused(dialect: Dialect, name: &str, body: Value) -> (String, InvalidReason) {
    let server = Server::playing([]).await;
    let error = failure(leaf(dialect, &server), ask(name, body)).await;
    assert!(!error.dispatched());
    match error.kind() {
        ErrorKind::InvalidRequest { member: Some(member), reason } => (member.to_string(), reason.clone()),
        other => panic!("{other:?}"),
    }
}

fn with(name: &str, value: Value) -> Value {
    let mut body = json!({ "messages": [{ "role": "user", "content": "Hi" }] });
    body[name] = value;
    body
}

fn function(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name, "description": "d", "parameters": { "type": "object" } } })
}

fn everything() -> Value {
    json!({
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [
                { "type": "text", "text": "What is this?" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAAA" } },
            ] },
            { "role": "assistant", "content": null, "tool_calls": [
                { "id": "call#look#0", "type": "function", "function": { "name": "look", "arguments": "{\"at\":1}" } },
                { "id": "b", "type": "function", "function": { "name": "look", "arguments": "" } },
            ] },
            { "role": "tool", "tool_call_id": "call#look#0", "content": "a cat" },
            { "role": "tool", "tool_call_id": "b", "content": [{ "type": "text", "text": "a dog" }] },
            { "role": "user", "content": "Well?" },
        ],
        "tools": [function("look")],
        "temperature": 0.2, "top_p": 0.9, "max_tokens": 9, "max_completion_tokens": 64, "stop": ["END", "."],
        "user": "u", "metadata": {}, "store": false, "n": 1, "frequency_penalty": 0, "logprobs": false,
        "logit_bias": {}, "stream_options": null, "service_tier": "auto", "modalities": ["text"],
    })
}

#[tokio::test]
async fn half_of_a_surrogate_pair_in_a_text_is_no_reason_to_refuse_it() {
    let body = r#"{"messages":[{"role":"user","content":"cut \ud83d"},{"role":"assistant","content":[{"type":"text","text":"\ude00 here"}]},{"role":"user","content":"?"}]}"#;
    let mut server = Server::playing([]).await;
    let request = LlmRequest::new("qwen3:8b", ChatBody::parse(body).unwrap());
    let leaf = leaf(Dialect::Ollama, &server);
    let (asked, _) = tokio::join!(server.asked(), leaf.oneshot(request));
    let sent: Value = serde_json::from_str(&asked.body).unwrap();
    let texts: Vec<_> = sent["messages"].as_array().unwrap().iter().map(|said| &said["content"]).collect();
    assert_eq!(texts, ["cut \u{fffd}", "\u{fffd} here", "?"]);
}

#[tokio::test]
async fn a_conversation_becomes_anthropics() {
    let mut body = everything();
    body["tool_choice"] = json!({ "type": "function", "function": { "name": "look" } });
    body["parallel_tool_calls"] = false.into();
    body["top_k"] = 5.into();
    let (head, sent) = sent(Dialect::Anthropic, "claude-sonnet-4-5", body).await;
    assert!(head.starts_with("post /v1/messages http/1.1"), "{head}");
    assert!(head.contains("x-api-key: secret-key") && head.contains("anthropic-version: "), "{head}");
    assert_eq!(
        sent,
        json!({
            "model": "claude-sonnet-4-5", "stream": false, "system": "Be brief.",
            "messages": [
                { "role": "user", "content": [
                    { "type": "text", "text": "What is this?" },
                    { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AAAA" } },
                ] },
                { "role": "assistant", "content": [
                    { "type": "tool_use", "id": "call_look_0", "name": "look", "input": { "at": 1 } },
                    { "type": "tool_use", "id": "b", "name": "look", "input": {} },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "call_look_0", "content": "a cat" },
                    { "type": "tool_result", "tool_use_id": "b", "content": "a dog" },
                    { "type": "text", "text": "Well?" },
                ] },
            ],
            "tools": [{ "name": "look", "description": "d", "input_schema": { "type": "object" } }],
            "tool_choice": { "type": "tool", "name": "look", "disable_parallel_tool_use": true },
            "temperature": 0.2, "top_p": 0.9, "top_k": 5, "max_tokens": 64, "stop_sequences": ["END", "."],
        })
    );
}

#[tokio::test]
async fn a_conversation_becomes_geminis() {
    let mut body = everything();
    body["tool_choice"] = "required".into();
    body["seed"] = (-7).into();
    body["frequency_penalty"] = 0.5.into();
    body["response_format"] = json!({ "type": "json_object" });
    body["reasoning_effort"] = "low".into();
    body["messages"][2]["tool_calls"][0]["extra_content"] =
        json!({ "google": { "thought_signature": "sig" } });
    let (head, sent) = sent(Dialect::Gemini, "gemini-2.5-flash", body).await;
    assert!(head.starts_with("post /v1beta/models/gemini-2.5-flash:generatecontent http/1.1"), "{head}");
    assert!(head.contains("x-goog-api-key: secret-key"), "{head}");
    assert_eq!(sent["systemInstruction"], json!({ "parts": [{ "text": "Be brief." }] }));
    assert_eq!(
        sent["contents"],
        json!([
            { "role": "user", "parts": [
                { "text": "What is this?" }, { "inline_data": { "mime_type": "image/png", "data": "AAAA" } },
            ] },
            { "role": "model", "parts": [
                { "functionCall": { "name": "look", "args": { "at": 1 } }, "thoughtSignature": "sig" },
                { "functionCall": { "id": "b", "name": "look", "args": {} } },
            ] },
            { "role": "user", "parts": [
                { "functionResponse": { "name": "look", "response": { "name": "look", "content": "a cat" } } },
                { "functionResponse": { "id": "b", "name": "look", "response": { "name": "look", "content": "a dog" } } },
            ] },
            { "role": "user", "parts": [{ "text": "Well?" }] },
        ])
    );
    let declaration =
        json!({ "name": "look", "description": "d", "parametersJsonSchema": { "type": "object" } });
    assert_eq!(sent["tools"], json!([{ "functionDeclarations": [declaration] }]));
    assert_eq!(sent["toolConfig"], json!({ "functionCallingConfig": { "mode": "ANY" } }));
    assert_eq!(
        sent["generationConfig"],
        json!({
            "temperature": 0.2, "topP": 0.9, "maxOutputTokens": 64, "stopSequences": ["END", "."], "seed": -7,
            "frequencyPenalty": 0.5, "responseMimeType": "application/json",
            "thinkingConfig": { "thinkingBudget": 1024, "includeThoughts": true },
        })
    );
}

#[tokio::test]
async fn a_conversation_becomes_bedrocks_and_ollamas() {
    let (head, sent_there) = sent(Dialect::Bedrock, "us.anthropic.claude-x:0", everything()).await;
    assert!(head.starts_with("post /model/us.anthropic.claude-x%3a0/converse http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer secret-key"), "{head}");
    let roles: Vec<_> =
        sent_there["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user"], "turns alternate");
    let config = json!({ "maxTokens": 64, "temperature": 0.2, "topP": 0.9, "stopSequences": ["END", "."] });
    assert_eq!(sent_there["inferenceConfig"], config);
    assert_eq!(sent_there["toolConfig"]["tools"][0]["toolSpec"]["name"], "look");

    let mut body = everything();
    body["seed"] = 7.into();
    body["response_format"] = json!({ "type": "json_object" });
    body["reasoning_effort"] = "none".into();
    let (head, sent_there) = sent(Dialect::Ollama, "hf.co/x/y:q4", body).await;
    assert!(head.starts_with("post /api/chat http/1.1"), "{head}");
    assert!(head.contains("authorization: bearer secret-key"), "{head}");
    assert_eq!(sent_there["model"], "hf.co/x/y:q4");
    assert_eq!((&sent_there["format"], &sent_there["think"]), (&json!("json"), &json!(false)));
    assert_eq!(sent_there["messages"][1]["images"], json!(["AAAA"]));
    assert_eq!(sent_there["messages"][4]["content"], "a dog");
    assert_eq!(
        sent_there["options"],
        json!({
            "temperature": 0.2, "top_p": 0.9, "num_predict": 64, "seed": 7, "stop": ["END", "."],
        })
    );
}

#[tokio::test]
async fn a_schema_for_the_answer_reaches_who_can_keep_to_it() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"], "additionalProperties": false });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "x", "strict": true, "schema": schema } });
    let sent = sent_body(Dialect::Anthropic, with("response_format", format.clone())).await;
    assert_eq!(sent["output_config"]["format"], json!({ "type": "json_schema", "schema": schema }));
    let sent = sent_body(Dialect::Gemini, with("response_format", format.clone())).await;
    assert_eq!(
        sent["generationConfig"],
        json!({ "responseMimeType": "application/json", "responseJsonSchema": schema })
    );
    for dialect in [Dialect::Bedrock, Dialect::Cohere, Dialect::Ollama] {
        let refused = refused(dialect, model(dialect), with("response_format", format.clone())).await;
        assert_eq!(refused, ("response_format.type".to_owned(), InvalidReason::Unsupported));
    }
}

#[tokio::test]
async fn a_function_is_a_function_whatever_its_name() {
    for name in ["web_search", "googleSearch", "codeExecution"] {
        let sent = sent_body(Dialect::Anthropic, with("tools", json!([function(name)]))).await;
        assert_eq!(sent["tools"][0].get("type"), None);
        assert_eq!(sent["tools"][0]["input_schema"], json!({ "type": "object" }));
        let sent = sent_body(Dialect::Gemini, with("tools", json!([function(name)]))).await;
        assert_eq!(sent["tools"][0]["functionDeclarations"][0]["name"], name);
    }
    let (member, _) =
        refused(Dialect::Vertex, "claude-sonnet-4-5", with("tools", json!([function("web_search")]))).await;
    assert_eq!(member, "tools[0].function.name");
}

#[tokio::test]
async fn the_model_that_is_asked_for_is_the_one_that_is_sent() {
    let (head, sent) = sent(Dialect::Gemini, "gemini-2.5-flash-high", with("temperature", json!(1))).await;
    assert!(head.contains("/gemini-2.5-flash-high:"), "{head}");
    assert_eq!(sent["generationConfig"], json!({ "temperature": 1.0 }));
}

#[tokio::test]
async fn thoughts_go_back_to_whom_they_came_from() {
    let blocks = json!([
        { "type": "thinking", "thinking": "hm", "signature": "sig" }, { "type": "redacted_thinking", "data": "xyz" },
    ]);
    let call = json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let body = |blocks: Value| {
        json!({
            "messages": [
                { "role": "user", "content": "?" },
                { "role": "assistant", "thinking_blocks": blocks, "tool_calls": [call] },
                { "role": "tool", "tool_call_id": "a", "content": "1" },
            ],
            "tools": [function("f")], "reasoning_effort": "low",
        })
    };
    let sent = sent_body(Dialect::Anthropic, body(blocks)).await;
    assert_eq!(
        sent["messages"][1]["content"],
        json!([
            { "type": "thinking", "thinking": "hm", "signature": "sig" },
            { "type": "redacted_thinking", "data": "xyz" },
            { "type": "tool_use", "id": "a", "name": "f", "input": {} },
        ])
    );
    assert_eq!(sent["thinking"]["type"], "enabled");
    // Who has not kept them is answered without further ones, and not refused.
    let sent = sent_body(Dialect::Anthropic, body(json!([]))).await;
    assert_eq!(sent.get("thinking"), None);
}

#[tokio::test]
async fn parts_that_cannot_be_shown_are_refused_by_their_place() {
    let url = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
    let pdf = json!({ "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA" } });
    let audio = json!({ "type": "input_audio", "input_audio": { "format": "wav", "data": "AAAA" } });
    let body = |part: &Value| json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "x" }, part] }] });
    let at = |rest: &str| format!("messages[0].content[1].{rest}");

    let sent = sent_body(Dialect::Anthropic, body(&url("https://x.example/a"))).await;
    assert_eq!(
        sent["messages"][0]["content"][1]["source"],
        json!({ "type": "url", "url": "https://x.example/a" })
    );
    let sent = sent_body(Dialect::Anthropic, body(&pdf)).await;
    assert_eq!(sent["messages"][0]["content"][1]["type"], "document");
    let sent = sent_body(Dialect::Gemini, body(&url("https://x.example/a.png?b"))).await;
    assert_eq!(sent["contents"][0]["parts"][1]["file_data"]["mime_type"], "image/png");
    let sent = sent_body(Dialect::Gemini, body(&audio)).await;
    assert_eq!(sent["contents"][0]["parts"][1]["inline_data"]["mime_type"], "audio/wav");

    for (dialect, part, member) in [
        (Dialect::Gemini, url("https://x.example/a"), at("image_url.url")),
        (Dialect::Bedrock, url("https://x.example/a.png"), at("image_url.url")),
        (Dialect::Bedrock, url("data:image/tiff;base64,AAAA"), at("image_url.url")),
        (Dialect::Ollama, url("https://x.example/a.png"), at("image_url.url")),
        (Dialect::Ollama, pdf.clone(), at("file.file_data")),
        (Dialect::Cohere, url("data:image/png;base64,AAAA"), at("image_url.url")),
        (Dialect::Anthropic, audio.clone(), at("input_audio")),
        (Dialect::Anthropic, json!({ "type": "file", "file": { "file_id": "f" } }), at("file.file_id")),
        (Dialect::Anthropic, json!({ "type": "hologram" }), at("type")),
    ] {
        let refused = refused(dialect, model(dialect), body(&part)).await;
        assert_eq!(refused, (member, InvalidReason::Unsupported), "{dialect:?} {part}");
    }
}

#[tokio::test]
async fn what_would_change_the_answer_and_cannot_be_carried_is_refused_by_name() {
    use Dialect::*;
    let all = [Anthropic, Gemini, Bedrock, Cohere, Ollama];
    let but = |able: &[Dialect]| all.into_iter().filter(|d| !able.contains(d)).collect::<Vec<_>>();
    for (member, value, at, unable) in [
        ("n", json!(2), "n", but(&[])),
        ("logprobs", json!(true), "logprobs", but(&[])),
        ("top_logprobs", json!(3), "top_logprobs", but(&[])),
        ("logit_bias", json!({ "1": 2 }), "logit_bias", but(&[])),
        ("modalities", json!(["text", "audio"]), "modalities", but(&[])),
        ("functions", json!([{ "name": "f" }]), "functions", but(&[])),
        ("verbosity", json!("low"), "verbosity", but(&[])),
        ("web_search_options", json!({}), "web_search_options", but(&[])),
        ("contents", json!([]), "contents", but(&[])),
        ("frequency_penalty", json!(1), "frequency_penalty", but(&[Gemini])),
        ("presence_penalty", json!(-1), "presence_penalty", but(&[Gemini])),
        ("seed", json!(1), "seed", but(&[Gemini, Ollama])),
        ("top_k", json!(1), "top_k", but(&[Gemini, Anthropic])),
        ("response_format", json!({ "type": "json_object" }), "response_format.type", but(&[Gemini, Ollama])),
        ("tools", json!([{ "type": "web_search" }]), "tools[0].type", but(&[])),
        ("tools", json!([function("f")]), "tools", vec![Cohere]),
        ("reasoning_effort", json!("low"), "reasoning_effort", vec![Cohere]),
        ("reasoning_effort", json!("zero"), "reasoning_effort", but(&[])),
    ] {
        for dialect in unable {
            let refused = refused(dialect, model(dialect), with(member, value.clone())).await;
            assert_eq!(refused, (at.to_owned(), InvalidReason::Unsupported), "{dialect:?} {member}");
        }
    }
    for (dialect, choice) in
        [(Bedrock, json!("required")), (Bedrock, json!("none")), (Ollama, json!("required"))]
    {
        let mut body = with("tools", json!([function("f")]));
        body["tool_choice"] = choice;
        assert_eq!(refused(dialect, model(dialect), body).await.0, "tool_choice");
    }
    for dialect in [Gemini, Bedrock, Ollama] {
        let mut body = with("tools", json!([function("f")]));
        body["parallel_tool_calls"] = false.into();
        assert_eq!(refused(dialect, model(dialect), body).await.0, "parallel_tool_calls");
    }
    for (dialect, name) in [(Vertex, "claude-sonnet-4-5"), (Bedrock, "meta.llama3")] {
        assert_eq!(
            refused(dialect, name, with("reasoning_effort", json!("high"))).await.0,
            "reasoning_effort"
        );
    }
    let mut nova = with("reasoning_effort", json!("high"));
    nova["temperature"] = 0.5.into();
    assert_eq!(refused(Bedrock, "us.amazon.nova-pro-v1:0", nova).await.0, "reasoning_effort");
}

#[tokio::test]
async fn a_message_that_is_none_is_refused_by_its_place() {
    let call = |arguments: &str| json!([{ "id": "a", "type": "function", "function": { "name": "f", "arguments": arguments } }]);
    for (message, member) in [
        (json!({ "role": "function", "content": "x" }), "messages[0].role"),
        (json!({ "role": "tool", "content": "x" }), "messages[0].tool_call_id"),
        (
            json!({ "role": "assistant", "tool_calls": call("{oops") }),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({ "role": "assistant", "tool_calls": call("[1]") }),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (json!({ "role": "assistant", "function_call": { "name": "f" } }), "messages[0].function_call"),
        (json!({ "role": "user", "content": [{ "text": "x" }] }), "messages[0].content[0].type"),
        (json!({ "role": "user", "content": 7 }), "messages[0].content"),
    ] {
        let body = json!({ "messages": [message] });
        assert_eq!(refused(Dialect::Anthropic, "claude-sonnet-4-5", body).await.0, member);
    }
    let last =
        json!({ "messages": [{ "role": "user", "content": "x" }, { "role": "assistant", "content": "y" }] });
    assert_eq!(refused(Dialect::Cohere, "command-r", last).await.0, "messages[1].role");
}

#[tokio::test]
async fn headers_are_the_hosts_and_of_the_context_nothing_goes_out_but_the_id() {
    let mut server = Server::playing([]).await;
    let leaf = leaf(Dialect::Anthropic, &server).with_header("anthropic-beta", "b-1").unwrap();
    assert!(!format!("{leaf:?}").contains("b-1") && !format!("{leaf:?}").contains("secret-key"));
    let context = RequestContext::new().with_request_id("r-1").with_user_id("ada").with_agent_name("agent-x");
    let (asked, _) =
        tokio::join!(server.asked(), leaf.oneshot(hello("claude-sonnet-4-5", false).with_context(context)),);
    assert!(
        asked.head.contains("anthropic-beta: b-1") && asked.head.contains("x-request-id: r-1"),
        "{}",
        asked.head
    );
    assert_eq!(asked.head.matches("content-type").count(), 1);
    assert!(!format!("{}{}", asked.head, asked.body).contains("ada"));
    assert!(!format!("{}{}", asked.head, asked.body).contains("agent-x"));

    let mut server = Server::playing([]).await;
    let url = server.url.replace("/v1", "");
    let leaf = Genai::new(Dialect::Cohere, url).unwrap().with_header("authorization", "Basic x").unwrap();
    let (asked, _) = tokio::join!(server.asked(), leaf.oneshot(hello("command-r", false)));
    assert_eq!(asked.head.matches("authorization: ").count(), 1, "{}", asked.head);
    assert!(asked.head.contains("authorization: basic x"));
}

#[test]
fn an_address_that_cannot_be_asked_is_refused() {
    for url in ["ftp://x", "api.anthropic.com", "https://u:p@x", "https://x/v1?key=secret", "https://"] {
        let error = Genai::new(Dialect::Anthropic, url).unwrap_err();
        assert!(matches!(error, ConfigError::BaseUrl { .. }));
        assert!(!error.to_string().contains("secret"));
    }
    for key in ["", "a\nb"] {
        let leaf = Genai::new(Dialect::Gemini, "https://x").unwrap();
        assert_eq!(leaf.with_api_key(key).unwrap_err(), ConfigError::ApiKey);
    }
    let leaf = Genai::new(Dialect::Anthropic, "https://[::1]:8443/anthropic/v1/").unwrap();
    assert_eq!((leaf.host(), leaf.port(), leaf.provider_name()), ("::1", 8443, "::1"));
}

#[tokio::test]
async fn turns_alternate_at_bedrock_also_where_a_system_message_stood_between_them() {
    let body = json!({ "messages": [
        { "role": "user", "content": "a" }, { "role": "system", "content": "s" }, { "role": "user", "content": "b" },
        { "role": "assistant", "content": "c" }, { "role": "user", "content": "d" },
    ] });
    let sent = sent_body(Dialect::Bedrock, body).await;
    assert_eq!(sent["system"], json!([{ "text": "s" }]));
    assert_eq!(
        sent["messages"],
        json!([
            { "role": "user", "content": [{ "text": "a" }, { "text": "b" }] },
            { "role": "assistant", "content": [{ "text": "c" }] },
            { "role": "user", "content": [{ "text": "d" }] },
        ])
    );
}

#[tokio::test]
async fn only_claude_is_asked_to_think_no_further_where_its_thoughts_are_missing() {
    let body = json!({
        "messages": [
            { "role": "user", "content": "?" },
            { "role": "assistant", "tool_calls": [{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
            { "role": "tool", "tool_call_id": "a", "content": "1" },
        ],
        "tools": [function("f")], "reasoning_effort": "low",
    });
    let (_, claude) = sent(Dialect::Bedrock, "us.anthropic.claude-sonnet-4-5", body.clone()).await;
    assert_eq!(claude.get("additionalModelRequestFields"), None);
    let (_, claude) = sent(Dialect::Anthropic, "claude-sonnet-4-5", body.clone()).await;
    assert_eq!((claude.get("thinking"), claude.get("output_config")), (None, None));
    let (_, nova) = sent(Dialect::Bedrock, "us.amazon.nova-2-lite-v1:0", body.clone()).await;
    assert_eq!(
        nova["additionalModelRequestFields"]["inferenceConfig"]["reasoningConfig"]["maxReasoningEffort"],
        "low"
    );
    // Nobody would tell these.
    for name in ["meta.llama3", "arn:aws:bedrock:us-east-1:1:inference-profile/us.amazon.nova-2-lite-v1:0"] {
        assert_eq!(refused(Dialect::Bedrock, name, body.clone()).await.0, "reasoning_effort", "{name}");
    }
    assert_eq!(refused(Dialect::Vertex, "claude-sonnet-4-5", body).await.0, "reasoning_effort");
}

#[tokio::test]
async fn claude_is_told_of_thinking_only_what_the_model_takes() {
    let called = json!([
        { "role": "user", "content": "?" },
        { "role": "assistant", "tool_calls": [{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": "a", "content": "1" },
    ]);
    let low = json!({ "effort": "low" });
    let high = json!({ "effort": "high" });
    let adaptive = json!({ "type": "adaptive", "display": "summarized" });
    let disabled = json!({ "type": "disabled" });
    let between = json!({ "type": "between_tools" });
    for (name, none) in [
        ("claude-opus-4-6", (None, None)),
        ("claude-sonnet-5", (Some(&disabled), None)),
        ("claude-opus-5", (Some(&disabled), None)),
        ("claude-haiku-5-5", (Some(&disabled), None)),
        ("claude-sonnet-5-5", (Some(&between), None)),
        ("claude-opus-5-5", (Some(&adaptive), Some(&low))),
        ("claude-opus-5-5-20260922", (Some(&adaptive), Some(&low))),
        ("claude-fable-5", (Some(&adaptive), Some(&low))),
        ("claude-mythos-5", (Some(&adaptive), Some(&low))),
    ] {
        for messages in [&json!([{ "role": "user", "content": "Hi" }]), &called] {
            for (effort, (thinking, config)) in
                [(None, (None, None)), (Some("high"), (Some(&adaptive), Some(&high))), (Some("none"), none)]
            {
                let body = json!({ "messages": messages, "reasoning_effort": effort });
                let (_, sent) = sent(Dialect::Anthropic, name, body).await;
                let told = (sent.get("thinking"), sent.get("output_config"));
                assert_eq!(told, (thinking, config), "{name} {effort:?}");
            }
        }
    }
}

#[tokio::test]
async fn who_came_by_another_dialect_and_wants_no_thoughts_is_refused_by_no_model() {
    let asked = |name: &str| {
        let body = json!({
            "model": name, "max_tokens": 9, "thinking": { "type": "disabled" },
            "messages": [{ "role": "user", "content": "Hi" }],
        });
        anthropic::chat_request(body.to_string(), &BodyLimits::default()).unwrap()
    };
    let off = json!({ "thinkingBudget": 0 });
    for (dialect, name, place, expected) in [
        (Dialect::Anthropic, "claude-opus-5", "/thinking/type", Some(json!("disabled"))),
        (Dialect::Anthropic, "claude-sonnet-4-5", "/thinking", None),
        (Dialect::Gemini, "gemini-2.5-flash", "/generationConfig/thinkingConfig", Some(off)),
        (Dialect::Gemini, "gemini-2.5-pro", "/generationConfig/thinkingConfig", None),
        (Dialect::Gemini, "gemini-3-pro", "/generationConfig/thinkingConfig", None),
        (Dialect::Vertex, "claude-opus-5", "/thinking", None),
        (Dialect::Bedrock, "openai.gpt-oss-120b-1:0", "/additionalModelRequestFields", None),
        (Dialect::Bedrock, "meta.llama3", "/additionalModelRequestFields", None),
        (Dialect::Cohere, "command-r", "/thinking", None),
        (Dialect::Ollama, "qwen3:8b", "/think", Some(json!(false))),
    ] {
        let mut server = Server::playing([]).await;
        let leaf = leaf(dialect, &server);
        let (sent, _) = tokio::join!(server.asked(), leaf.oneshot(asked(name)));
        let sent: Value = serde_json::from_str(&sent.body).unwrap();
        assert_eq!(sent.pointer(place), expected.as_ref(), "{name}");
    }
    // A caller of OpenAI's dialect is told.
    let none = with("reasoning_effort", json!("none"));
    assert_eq!(refused(Dialect::Gemini, "gemini-3-pro", none).await.0, "reasoning_effort");
}

#[tokio::test]
async fn thoughts_leave_room_for_an_answer() {
    let body = |effort: &str, bound: Option<u32>| {
        let mut body = with("reasoning_effort", json!(effort));
        body["max_completion_tokens"] = json!(bound);
        body
    };
    for (dialect, name, budget) in [
        (Dialect::Anthropic, "claude-sonnet-4-5-20250929", "/thinking/budget_tokens"),
        (Dialect::Anthropic, "claude-haiku-4-5", "/thinking/budget_tokens"),
        (Dialect::Anthropic, "claude-opus-4-20250514", "/thinking/budget_tokens"),
        (
            Dialect::Bedrock,
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            "/additionalModelRequestFields/thinking/budget_tokens",
        ),
    ] {
        for (effort, bound, expected) in [
            ("high", None, 24_000),
            ("high", Some(24_001), 24_000),
            ("high", Some(24_000), 12_000),
            ("medium", Some(5_000), 2_500),
            ("medium", Some(1_025), 1_024),
            ("low", Some(1_025), 1_024),
        ] {
            let (_, sent) = sent(dialect, name, body(effort, bound)).await;
            assert_eq!(sent.pointer(budget), Some(&json!(expected)), "{name} {effort} {bound:?}");
        }
        let none = refused(dialect, name, body("low", Some(1_024))).await;
        assert_eq!(none, ("reasoning_effort".to_owned(), InvalidReason::Unsupported));
    }
    // Here the effort is told itself.
    let (_, sent) = sent(Dialect::Anthropic, "claude-opus-4-6", body("high", Some(64))).await;
    assert_eq!(sent["output_config"], json!({ "effort": "high" }));
    assert_eq!(sent["thinking"].get("budget_tokens"), None);
}

#[tokio::test]
async fn what_is_to_be_cached_ends_where_it_was_said_to() {
    let five = json!({ "type": "ephemeral" });
    let hour = json!({ "type": "ephemeral", "ttl": "1h" });
    let image =
        json!({ "type": "image_url", "image_url": { "url": "https://x.example/a" }, "cache_control": five });
    let file = json!({
        "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA" },
        "cache_control": five,
    });
    let call = json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let mut body = json!({
        "messages": [
            { "role": "system", "content": [
                { "type": "text", "text": "rules" }, { "type": "text", "text": "more", "cache_control": hour },
                { "type": "text", "text": "today" },
            ] },
            { "role": "user", "content": [
                { "type": "text", "text": "a book", "cache_control": five }, { "type": "text", "text": "a question" },
            ] },
            { "role": "assistant", "content": "on it", "tool_calls": [call], "cache_control": five },
            { "role": "tool", "tool_call_id": "a", "content": "1", "cache_control": five },
            { "role": "user", "content": [image, file, { "type": "text", "text": "well?" }] },
        ],
        "tools": [function("f")],
        "reasoning_effort": "low",
    });
    let expected = json!([
        { "role": "user", "content": [
            { "type": "text", "text": "a book", "cache_control": five }, { "type": "text", "text": "a question" },
        ] },
        { "role": "assistant", "content": [
            { "type": "text", "text": "on it" },
            { "type": "tool_use", "id": "a", "name": "f", "input": {}, "cache_control": five },
        ] },
        { "role": "user", "content": [
            { "type": "tool_result", "tool_use_id": "a", "content": "1", "cache_control": five },
            { "type": "image", "source": { "type": "url", "url": "https://x.example/a" }, "cache_control": five },
            { "type": "document", "cache_control": five,
              "source": { "type": "base64", "media_type": "application/pdf", "data": "AAAA" } },
            { "type": "text", "text": "well?" },
        ] },
    ]);
    let sent = sent_body(Dialect::Anthropic, body.clone()).await;
    assert_eq!(
        sent["system"],
        json!([
            { "type": "text", "text": "rules\n\nmore", "cache_control": hour },
            { "type": "text", "text": "today" },
        ])
    );
    assert_eq!(sent["messages"], expected);
    assert_eq!(sent.get("thinking"), None, "calls without thoughts are seen all the same");

    // Those who know no such thing get the texts.
    body["messages"][4]["content"] = "well?".into();
    body["reasoning_effort"] = Value::Null;
    let sent = sent_body(Dialect::Gemini, body).await;
    assert_eq!(sent["contents"][0]["parts"], json!([{ "text": "a book" }, { "text": "a question" }]));
    assert!(!sent.to_string().contains("cache_control"));
}

#[tokio::test]
async fn a_tool_that_is_none_is_refused_by_its_place() {
    for (member, value) in
        [("name", json!(7)), ("description", json!(7)), ("parameters", json!("{}")), ("strict", json!("yes"))]
    {
        let mut tool = function("f");
        tool["function"][member] = value;
        let body = with("tools", json!([function("e"), tool]));
        let (at, reason) = refused(Dialect::Anthropic, "claude-sonnet-4-5", body).await;
        assert_eq!(at, format!("tools[1].function.{member}"));
        assert!(matches!(reason, InvalidReason::Mistyped { .. }), "{member}: {reason:?}");
    }
    let nameless = json!([{ "type": "function", "function": {} }]);
    let refused = refused(Dialect::Gemini, model(Dialect::Gemini), with("tools", nameless)).await;
    assert_eq!(refused, ("tools[0].function.name".to_owned(), InvalidReason::Missing));
}

#[tokio::test]
async fn what_a_model_refused_to_say_is_what_it_said() {
    let body = |assistant: Value| json!({ "messages": [{ "role": "user", "content": "?" }, assistant, { "role": "user", "content": "!" }] });
    for said in [
        json!({ "role": "assistant", "content": null, "refusal": "I will not." }),
        json!({ "role": "assistant", "content": [{ "type": "refusal", "refusal": "I will not." }] }),
        json!({ "role": "assistant", "content": "I will not.", "refusal": null }),
    ] {
        let sent = sent_body(Dialect::Anthropic, body(said)).await;
        assert_eq!(sent["messages"][1], json!({ "role": "assistant", "content": "I will not." }));
    }
    let both = json!({ "role": "assistant", "content": "Well.", "refusal": "No." });
    let sent = sent_body(Dialect::Ollama, body(both)).await;
    assert_eq!(sent["messages"][1]["content"], "Well.");
}

#[tokio::test]
async fn calls_that_cohere_would_not_hear_of_are_refused() {
    let call = json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let said = json!({ "role": "assistant", "content": "Let me look.", "tool_calls": [call] });
    let body =
        json!({ "messages": [{ "role": "user", "content": "?" }, said, { "role": "user", "content": "!" }] });
    let refused = refused(Dialect::Cohere, model(Dialect::Cohere), body).await;
    assert_eq!(refused, ("messages[1].tool_calls".to_owned(), InvalidReason::Unsupported));
}

#[tokio::test]
async fn tools_are_cached_at_vertex_too() {
    let mut tool = function("f");
    tool["cache_control"] = json!({ "type": "ephemeral", "ttl": "1h" });
    let (_, sent) =
        sent(Dialect::Vertex, "claude-sonnet-4-5", with("tools", json!([function("e"), tool]))).await;
    assert_eq!(sent["tools"][0].get("cache_control"), None);
    assert_eq!(sent["tools"][1]["cache_control"], json!({ "type": "ephemeral", "ttl": "1h" }));
}
