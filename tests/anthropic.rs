//! Anthropic's Messages dialect: requests become chat requests, answers become messages, nothing is lost unsaid.

use bytes::BytesMut;
use llm_layers::{
    BodyLimits, Completion, Error, ErrorKind, FinishReason, InvalidReason, StreamChunk, TokenUsage,
    http::anthropic::{self, MessageEvents},
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// What marks thoughts that were given out here.
const OURS: &str = "llm-layers";

/// What a request becomes.
fn read(request: &Value) -> Value {
    let request = anthropic::chat_request(request.to_string(), &BodyLimits::default()).expect("a request");
    serde_json::from_slice(&request.body.to_json(&request.model)).expect("JSON")
}

fn messages(messages: &Value) -> Value {
    read(&json!({ "model": "m", "max_tokens": 1, "messages": messages }))["messages"].take()
}

fn refused(request: &Value) -> (String, InvalidReason) {
    let error = anthropic::chat_request(request.to_string(), &BodyLimits::default()).expect_err("wrong");
    let ErrorKind::InvalidRequest { member, reason } = error.kind() else { panic!("{error:?}") };
    (member.as_deref().unwrap_or_default().to_owned(), reason.clone())
}

#[test]
fn a_request_with_everything_keeps_all_that_has_a_counterpart() {
    let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    let read = read(&json!({
        "model": "fast",
        "max_tokens": 1024,
        "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }, { "type": "text", "text": "Be kind." }],
        "messages": [{ "role": "user", "content": "Hi \"there\"\n" }],
        "tools": [{ "name": "weather", "description": "now", "input_schema": schema, "strict": true }],
        "tool_choice": { "type": "tool", "name": "weather", "disable_parallel_tool_use": true },
        "stop_sequences": ["END"],
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 3,
        "stream": true,
        "metadata": { "user_id": "u-1" },
        "thinking": { "type": "enabled", "budget_tokens": 10_000 },
        "output_config": { "format": { "type": "json_schema", "schema": schema } },
        "service_tier": "standard_only",
        "context_management": {},
        "new_member": { "x": 1 },
    }));
    assert_eq!(
        read,
        json!({
            "model": "fast",
            "max_tokens": 1024,
            "messages": [
                { "role": "system", "content": "Be brief.\n\nBe kind." },
                { "role": "user", "content": "Hi \"there\"\n" },
            ],
            "tools": [{ "type": "function", "function": { "name": "weather", "description": "now", "parameters": schema, "strict": true } }],
            "tool_choice": { "type": "function", "function": { "name": "weather" } },
            "parallel_tool_calls": false,
            "stop": ["END"],
            "temperature": 0.25,
            "top_p": 0.5,
            "top_k": 3,
            "stream": true,
            "user": "u-1",
            "reasoning_effort": "medium",
            "response_format": { "type": "json_schema", "json_schema": { "name": "output", "strict": true, "schema": schema } },
            "service_tier": "default",
            "new_member": { "x": 1 },
        })
    );
}

#[test]
fn calls_and_results_of_tools_become_messages_in_the_order_that_providers_want() {
    let image =
        json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "QUJD" } });
    let seen = messages(&json!([
        { "role": "user", "content": [{ "type": "text", "text": "Weather?" }] },
        { "role": "assistant", "content": [
            { "type": "thinking", "thinking": "hm", "signature": "s" },
            { "type": "text", "text": "I \u{fc}" },
            { "type": "text", "text": " look." },
            { "type": "tool_use", "id": "a", "name": "weather", "input": { "city": "Pa\"ris" } },
            { "type": "tool_use", "id": "b", "name": "time", "input": {} },
        ] },
        { "role": "user", "content": [
            { "type": "text", "text": "and then?" },
            { "type": "tool_result", "tool_use_id": "a", "content": [{ "type": "text", "text": "18" }, image] },
            { "type": "tool_result", "tool_use_id": "b" },
        ] },
    ]));
    assert_eq!(
        seen,
        json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": "I ü look.", "tool_calls": [
                { "id": "a", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Pa\\\"ris\"}" } },
                { "id": "b", "type": "function", "function": { "name": "time", "arguments": "{}" } },
            ] },
            { "role": "tool", "tool_call_id": "a", "content": "18" },
            { "role": "tool", "tool_call_id": "b", "content": "" },
            { "role": "user", "content": [
                { "type": "text", "text": "and then?" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,QUJD" } },
            ] },
        ])
    );
}

/// Groq, DeepSeek and others take an array for a message of a user or of a tool as an error.
#[test]
fn texts_alone_are_one_string_whatever_they_were_divided_into() {
    let mark = json!({ "type": "ephemeral" });
    let one = json!({ "type": "text", "text": "a \"\u{fc}\"" });
    let two = json!({ "type": "text", "text": "b\n", "cache_control": mark });
    let document = json!({ "type": "document", "title": "Notes", "source": { "type": "text", "data": "c" } });
    for (blocks, text) in [
        (json!([one]), "a \"\u{fc}\""),
        (json!([one, two]), "a \"\u{fc}\"\n\nb\n"),
        (json!([document, two, one]), "Notes\n\nc\n\nb\n\n\na \"\u{fc}\""),
        (json!([{ "type": "text", "text": "" }]), ""),
    ] {
        let seen = messages(&json!([{ "role": "user", "content": blocks }]));
        assert_eq!(seen, json!([{ "role": "user", "content": text }]));
    }
    let result = json!({ "type": "tool_result", "tool_use_id": "t", "content": [one, two] });
    let seen = messages(&json!([{ "role": "user", "content": [two, result, one, document] }]));
    assert_eq!(
        seen,
        json!([
            { "role": "tool", "tool_call_id": "t", "content": "a \"\u{fc}\"\n\nb\n" },
            { "role": "user", "content": "b\n\n\na \"\u{fc}\"\n\nNotes\n\nc" },
        ])
    );
}

#[test]
fn thoughts_that_came_from_here_go_back_and_those_that_are_signed_do_not() {
    let chunks = [
        StreamChunk::parse(r#"{"choices":[{"index":0,"delta":{"reasoning_content":"Let me \"see\""}}]}"#)
            .unwrap(),
        StreamChunk::text("Hm."),
        StreamChunk::finish(&FinishReason::Stop),
        StreamChunk::end(),
    ];
    let given = assemble(&write(&chunks))["content"].take();
    assert_eq!(given[0]["type"], "thinking");
    let whole =
        json!({ "choices": [{ "message": { "reasoning_content": "Let me \"see\"", "content": "Hm." } }] });
    let whole = anthropic::message(&Completion::parse(whole.to_string()).unwrap(), "fast");
    assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap()["content"], given);
    // Some clients keep no others.
    let signature = given[0]["signature"].as_str().unwrap();
    assert!(!signature.is_empty());
    let call = json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} });
    let result = json!({ "type": "tool_result", "tool_use_id": "a", "content": "1" });
    let signed = json!({ "type": "thinking", "thinking": "theirs", "signature": "s" });
    let hidden = json!({ "type": "redacted_thinking", "data": "d" });
    let turns = |blocks: Value| {
        let request = json!({ "model": "m", "max_tokens": 1, "messages": [
            { "role": "user", "content": "?" },
            { "role": "assistant", "content": blocks },
            { "role": "user", "content": [result] },
        ] });
        let request =
            anthropic::chat_request(request.to_string(), &BodyLimits::default()).expect("a request");
        let body = request.body.to_json("m");
        assert!(!String::from_utf8_lossy(&body).contains(OURS), "it is nobody's whom a provider knows");
        let body: Value = serde_json::from_slice(&body).unwrap();
        (body["messages"][1]["reasoning_content"].clone(), request.dispensable().thoughts)
    };
    let thought = json!("Let me \"see\"");
    assert_eq!(turns(json!([given[0], given[1]])), (thought.clone(), true));
    assert_eq!(turns(json!([given[0], call])), (thought.clone(), true));
    assert_eq!(
        turns(json!([given[0], signed, hidden, given[0], call])),
        (json!("Let me \"see\"Let me \"see\""), true)
    );
    for unsigned in [json!(null), json!("")] {
        let unsigned = json!({ "type": "thinking", "thinking": "Let me \"see\"", "signature": unsigned });
        assert_eq!(turns(json!([unsigned, call])), (thought.clone(), true));
    }
    let unsigned = json!({ "type": "thinking", "thinking": "Let me \"see\"" });
    assert_eq!(turns(json!([unsigned, call])), (thought, true));
    let empty = json!({ "type": "thinking", "thinking": "", "signature": signature });
    let longer = json!({ "type": "thinking", "thinking": "theirs", "signature": format!("{signature}=") });
    for none in [
        json!([signed, call]),
        json!([longer, call]),
        json!([hidden, call]),
        json!([empty, call]),
        json!([call]),
    ] {
        assert_eq!(turns(none), (Value::Null, false));
    }
}

#[test]
fn names_of_tools_that_are_too_long_go_on_shorter_and_come_back_as_they_were() {
    let longest = "n".repeat(64);
    let names =
        ["f".to_owned(), longest.clone(), format!("{longest}a"), format!("{longest}b"), "mcp__".repeat(25)];
    let tools: Vec<_> = names.iter().map(|name| json!({ "name": name, "input_schema": {} })).collect();
    let call = json!({ "type": "tool_use", "id": "a", "name": names[2], "input": {} });
    let result = json!({ "type": "tool_result", "tool_use_id": "a", "content": "1" });
    let asked = json!({
        "model": "m", "max_tokens": 1, "tools": tools, "tool_choice": { "type": "tool", "name": names[4] },
        "messages": [
            { "role": "user", "content": "?" }, { "role": "assistant", "content": [call] },
            { "role": "user", "content": [result] },
        ],
    });
    let request = anthropic::chat_request(asked.to_string(), &BodyLimits::default()).expect("a request");
    let body: Value = serde_json::from_slice(&request.body.to_json("m")).unwrap();
    let function = |of: &Value| of["function"]["name"].as_str().unwrap().to_owned();
    let sent: Vec<_> = body["tools"].as_array().unwrap().iter().map(function).collect();
    assert_eq!(sent[..2], names[..2], "what is not too long keeps its name");
    assert!(sent.iter().all(|name| name.chars().count() <= 64), "{sent:?}");
    assert!(sent[4].starts_with("mcp__mcp__"), "{sent:?}");
    assert_eq!(sent.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    assert_eq!(function(&body["messages"][1]["tool_calls"][0]), sent[2]);
    assert_eq!(function(&body["tool_choice"]), sent[4]);

    let known = anthropic::ToolNames::of(&request);
    for (name, sent) in names.iter().zip(&sent) {
        let calls = json!([{ "index": 0, "id": "a", "type": "function", "function": { "name": sent, "arguments": "{}" } }]);
        let whole = json!({ "choices": [{ "index": 0, "message": { "tool_calls": calls }, "finish_reason": "tool_calls" }] });
        let whole = Completion::parse(whole.to_string()).unwrap();
        let whole: Value = serde_json::from_slice(&anthropic::message_naming(&whole, "m", &known)).unwrap();
        assert_eq!(whole["content"][0]["name"], *name);
        let chunk = json!({ "choices": [{ "index": 0, "delta": { "tool_calls": calls } }] });
        let chunks = [
            StreamChunk::parse(chunk.to_string()).unwrap(),
            StreamChunk::finish(&FinishReason::ToolCalls),
            StreamChunk::end(),
        ];
        let (mut events, mut out) = (MessageEvents::new("m").with_tool_names(known.clone()), BytesMut::new());
        chunks.iter().for_each(|chunk| events.write(chunk, &mut out));
        assert!(std::str::from_utf8(&out).unwrap().contains(&format!("\"name\":\"{name}\"")), "{name}");
    }
    assert!(!format!("{known:?}").contains("mcp__"));
}

#[test]
fn pictures_and_documents_come_along() {
    let seen = messages(&json!([{ "role": "user", "content": [
        { "type": "image", "source": { "type": "url", "url": "https://example.org/a.png" } },
        { "type": "document", "title": "a.pdf", "source": { "type": "base64", "media_type": "application/pdf", "data": "QUJD" } },
        { "type": "document", "source": { "type": "text", "media_type": "text/plain", "data": "All of it." } },
    ] }]));
    assert_eq!(
        seen[0]["content"],
        json!([
            { "type": "image_url", "image_url": { "url": "https://example.org/a.png" } },
            { "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD" } },
            { "type": "text", "text": "All of it." },
        ])
    );
}

#[test]
fn what_is_said_of_a_document_is_told_with_it() {
    let pdf = json!({ "type": "base64", "media_type": "application/pdf", "data": "QUJD" });
    let text = json!({ "type": "text", "media_type": "text/plain", "data": "All of it." });
    let off = json!({ "enabled": false });
    let seen = messages(&json!([{ "role": "user", "content": [
        { "type": "document", "title": "a.pdf", "context": "signed", "citations": off, "source": pdf },
        { "type": "document", "title": "Notes", "context": "of 1998", "citations": null, "source": text },
    ] }]));
    assert_eq!(
        seen[0]["content"],
        json!([
            { "type": "text", "text": "signed" },
            { "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD" } },
            { "type": "text", "text": "Notes\n\nof 1998\n\nAll of it." },
        ])
    );
}

#[test]
fn each_choice_of_tools_and_each_effort_has_its_word() {
    let read = |members: Value| {
        let mut request =
            json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
        request.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        read(&request)
    };
    for (theirs, ours) in [("auto", "auto"), ("any", "required"), ("none", "none")] {
        assert_eq!(read(json!({ "tool_choice": { "type": theirs } }))["tool_choice"], ours);
    }
    for (budget, effort) in
        [(1_024, "low"), (4_095, "low"), (4_096, "medium"), (16_383, "medium"), (16_384, "high")]
    {
        let thinking = json!({ "thinking": { "type": "enabled", "budget_tokens": budget } });
        assert_eq!(read(thinking)["reasoning_effort"], effort);
    }
    for (theirs, ours) in
        [("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "high"), ("max", "high")]
    {
        assert_eq!(read(json!({ "output_config": { "effort": theirs } }))["reasoning_effort"], ours);
    }
    let off = json!({ "type": "disabled" });
    assert_eq!(read(json!({ "thinking": off }))["reasoning_effort"], "none");
    for both in [
        json!({ "thinking": off, "output_config": { "effort": "high" } }),
        json!({ "output_config": { "effort": "high" }, "thinking": off }),
    ] {
        assert_eq!(read(both)["reasoning_effort"], "none", "what is not thought has no effort");
    }
    let budget = json!({ "type": "enabled", "budget_tokens": 1_024 });
    let both = json!({ "thinking": budget, "output_config": { "effort": "high" } });
    assert_eq!(read(both)["reasoning_effort"], "high");
    for thinking in ["adaptive", "between_tools"] {
        assert!(read(json!({ "thinking": { "type": thinking } })).get("reasoning_effort").is_none());
    }
    assert!(read(json!({ "tools": [] })).get("tools").is_none(), "an empty list is refused by some");
    assert!(read(json!({ "stop_sequences": [] })).get("stop").is_none());
}

#[test]
fn a_users_id_that_is_too_long_for_providers_becomes_a_label_of_the_same_user() {
    let user = |id: &str| {
        let read = read(&json!({
            "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }],
            "metadata": { "user_id": id },
        }));
        read["user"].as_str().unwrap().to_owned()
    };
    for id in ["", "ada", &"\u{fc}\"".repeat(32)] {
        assert_eq!(user(id), id);
    }
    let long = json!({ "device_id": "d".repeat(64), "account_uuid": "a", "session_id": "s" }).to_string();
    let label = user(&long);
    assert_eq!((label.len(), &label), (64, &user(&long)));
    assert!(label.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert_ne!(label, user(&long.replace("\"a\"", "\"b\"")));
    assert_eq!(user(&"u".repeat(65)).len(), 64);
}

#[test]
fn what_is_wrong_or_has_no_counterpart_is_named() {
    let with = |members: Value| {
        let mut request =
            json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
        request.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        refused(&request)
    };
    let content = |block: Value| with(json!({ "messages": [{ "role": "user", "content": [block] }] }));
    let unsupported = |member: &str| (member.to_owned(), InvalidReason::Unsupported);
    let missing = |member: &str| (member.to_owned(), InvalidReason::Missing);
    assert_eq!(
        with(json!({ "tools": [{ "type": "bash_20250124", "name": "bash" }] })),
        unsupported("tools[0].type")
    );
    assert_eq!(with(json!({ "mcp_servers": [] })), unsupported("mcp_servers"));
    assert_eq!(with(json!({ "container": "c" })), unsupported("container"));
    assert_eq!(with(json!({ "inference_geo": "eu" })), unsupported("inference_geo"));
    assert_eq!(with(json!({ "output_format": { "type": "xml" } })), unsupported("output_format.type"));
    assert_eq!(content(json!({ "type": "search_result" })), unsupported("messages[0].content[0].type"));
    let file = json!({ "type": "image", "source": { "type": "file", "file_id": "f" } });
    assert_eq!(content(file), unsupported("messages[0].content[0].source.type"));
    let cited = json!({ "type": "document", "citations": { "enabled": true }, "source": { "type": "text", "data": "x" } });
    assert_eq!(content(cited), unsupported("messages[0].content[0].citations"));
    for effort in [json!("hihg"), json!(3)] {
        assert_eq!(with(json!({ "output_config": { "effort": effort } })).0, "output_config.effort");
    }
    assert_eq!(content(json!({ "text": "x" })), missing("messages[0].content[0].type"));
    assert_eq!(content(json!({ "type": "text" })), missing("messages[0].content[0].text"));
    assert_eq!(content(json!({ "type": "text", "text": 5 })).0, "messages[0].content[0].text");
    assert_eq!(with(json!({ "messages": [{ "role": "user" }] })), missing("messages[0].content"));
    assert_eq!(with(json!({ "messages": [{ "role": "robot", "content": "x" }] })).0, "messages[0].role");
    assert_eq!(with(json!({ "messages": "x" })).0, "messages");
    assert_eq!(with(json!({ "messages": [] })).0, "messages");
    assert_eq!(with(json!({ "max_tokens": null })), missing("max_tokens"));
    assert_eq!(with(json!({ "max_tokens": "many" })).0, "max_tokens");
    assert_eq!(with(json!({ "tool_choice": "auto" })).0, "tool_choice.type");
    for stops in [json!("END"), json!(5), json!(["END", 5])] {
        assert_eq!(with(json!({ "stop_sequences": stops })).0, "stop_sequences");
    }
    assert_eq!(with(json!({ "metadata": { "user_id": 5 } })).0, "metadata.user_id");
    assert_eq!(with(json!({ "metadata": "u" })).0, "metadata");
    assert_eq!(with(json!({ "output_config": [] })).0, "output_config");
    assert_eq!(with(json!({ "model": null })), missing("model"));
}

#[test]
fn the_tokens_of_a_prompt_are_counted_whatever_it_consists_of_and_are_never_none() {
    let count = |model: &str, messages: Value, more: Value| {
        let mut asked = json!({ "model": model, "messages": messages });
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request = anthropic::count_request(asked.to_string(), &BodyLimits::default()).expect("a request");
        anthropic::input_tokens(&request)
    };
    let said = |content: Value| json!([{ "role": "user", "content": content }]);
    let none = json!({});
    let short = count("claude", said(json!("Hi")), none.clone());
    assert!((1..40).contains(&short), "{short}");
    assert!(count("claude", said(json!("")), none.clone()) >= 1);
    let long = count("claude", said("word ".repeat(1_000).into()), none.clone());
    assert_eq!(long, short.saturating_add(5_000 / 4), "as records estimate it");

    // What is no text does not count by its bytes.
    let source = |media: &str, bytes: usize| json!({ "type": "base64", "media_type": media, "data": "A".repeat(bytes) });
    let image = |bytes| json!({ "type": "image", "source": source("image/png", bytes) });
    let document = |bytes| json!({ "type": "document", "source": source("application/pdf", bytes) });
    let pictured = count("claude", said(json!([image(4)])), none.clone());
    assert_eq!(pictured, count("claude", said(json!([image(1_000_000)])), none.clone()));
    assert!((1_000..3_000).contains(&pictured), "{pictured}");
    let result = json!({ "type": "tool_result", "tool_use_id": "a", "content": [image(1_000)] });
    assert!((1_000..3_000).contains(&count("claude", said(json!([result])), none.clone())));
    let one = count("claude", said(json!([document(4)])), none.clone());
    let large = count("claude", said(json!([document(1_000_000)])), none.clone());
    assert!((1_000..10_000).contains(&one) && large > 10 * one && large < 100_000, "{one} {large}");
    assert_eq!(
        count("claude", said(json!([document(4), image(4)])), none.clone()) / 100,
        (one + 1_600) / 100
    );

    // All that is read counts.
    let tool = json!({ "name": "f", "description": "d".repeat(4_000), "input_schema": {} });
    let all = count("claude", said(json!("Hi")), json!({ "system": "s".repeat(4_000), "tools": [tool] }));
    assert!((2_000..2_100).contains(&all), "{all}");

    #[cfg(feature = "tokenizer")]
    for model in ["gpt-4o", "openai/gpt-5.1", "o3"] {
        assert_eq!(count(model, said("word ".repeat(1_000).into()), none.clone()), 1_008, "{model}");
        assert_eq!(count(model, said(json!([image(1_000)])), none.clone()), 1_607, "{model}");
    }
}

#[test]
fn a_body_that_is_no_request_is_refused_as_a_chat_request_would_be() {
    let limits = BodyLimits::default().with_max_bytes(1_000).with_max_depth(8).with_max_members(4);
    let refused = |json: &str| {
        let error = anthropic::chat_request(json.to_owned(), &limits).expect_err("wrong");
        let ErrorKind::InvalidRequest { member, reason } = error.kind() else { panic!("{error:?}") };
        (member.as_deref().map(str::to_owned), reason.clone())
    };
    assert!(matches!(refused("{"), (None, InvalidReason::Syntax { line: 1, .. })));
    assert!(matches!(refused("[]"), (None, InvalidReason::Mistyped { .. })));
    assert_eq!(refused(&"[".repeat(9)), (None, InvalidReason::TooDeep { limit: 8 }));
    assert_eq!(refused(&" ".repeat(1_001)), (None, InvalidReason::TooLarge { limit: 1_000 }));
    assert_eq!(refused(r#"{"a":1,"b":1,"c":1,"d":1,"e":1}"#), (None, InvalidReason::TooMany { limit: 4 }));
    assert_eq!(
        refused(r#"{"model":"a","mod\u0065l":"b"}"#),
        (Some("model".into()), InvalidReason::Duplicate)
    );
}

#[test]
fn a_member_that_is_read_and_stands_twice_is_refused_wherever_it_stands() {
    let refused = |members: &str| {
        let said = r#""messages":[{"role":"user","content":"x"}]"#;
        let said = if members.starts_with(r#""messages""#) {
            members.to_owned()
        } else {
            format!("{said},{members}")
        };
        let request = format!(r#"{{"model":"m","max_tokens":1,{said}}}"#);
        let error = anthropic::chat_request(request, &BodyLimits::default()).expect_err(members);
        let ErrorKind::InvalidRequest { member, reason } = error.kind() else { panic!("{error:?}") };
        assert_eq!(*reason, InvalidReason::Duplicate, "{members}");
        member.as_deref().unwrap_or_default().to_owned()
    };
    let message = |message: &str| refused(&format!(r#""messages":[{message}]"#));
    assert_eq!(message(r#"{"role":"user","role":"assistant","content":"a"}"#), "messages[0].role");
    assert_eq!(message(r#"{"role":"user","content":"a","cont\u0065nt":"b"}"#), "messages[0].content");
    assert_eq!(message(r#"{"role":"user","content":null,"content":"b"}"#), "messages[0].content");

    let image = r#""type":"image","source":{"type":"base64","media_type":"image/png","data":"QUJD""#;
    let result = r#""type":"tool_result","tool_use_id":"a""#;
    for (role, block, member) in [
        ("user", r#""type":"text","text":"a","text":"b""#.to_owned(), "text"),
        ("user", r#""type":"text","text":"a","type":"image""#.to_owned(), "type"),
        ("user", format!(r#"{image},"type":"url"}}"#), "source.type"),
        ("user", format!(r#"{image},"media_type":"a/b"}}"#), "source.media_type"),
        ("user", format!(r#"{image},"data":""}}"#), "source.data"),
        ("user", format!(r#"{image}}},"source":{{}}"#), "source"),
        ("user", format!(r#"{result},"tool_use_id":"b""#), "tool_use_id"),
        ("user", format!(r#"{result},"content":"a","content":"b""#), "content"),
        (
            "user",
            format!(r#"{result},"content":[{{"type":"text","text":"a","text":"b"}}]"#),
            "content[0].text",
        ),
        ("system", r#""type":"text","text":"a","text":"b""#.to_owned(), "text"),
        ("assistant", r#""type":"text","text":"a","text":"b""#.to_owned(), "text"),
        ("assistant", r#""type":"tool_use","id":"a","name":"f","input":{},"id":"b""#.to_owned(), "id"),
        ("assistant", r#""type":"tool_use","id":"a","name":"f","input":{},"name":"g""#.to_owned(), "name"),
        ("assistant", r#""type":"tool_use","id":"a","name":"f","input":{},"input":{}"#.to_owned(), "input"),
    ] {
        let seen = message(&format!(r#"{{"role":"{role}","content":[{{{block}}}]}}"#));
        assert_eq!(seen, format!("messages[0].content[0].{member}"));
    }

    for (members, member) in [
        (r#""system":[{"type":"text","text":"a","text":"b"}]"#, "system[0].text"),
        (r#""metadata":{"user_id":"a","user_id":"b"}"#, "metadata.user_id"),
        (r#""tools":[{"name":"f","name":"g"}]"#, "tools[0].name"),
        (r#""tools":[{"name":"f","input_schema":{},"input_schema":null}]"#, "tools[0].input_schema"),
        (r#""tool_choice":{"type":"auto","type":"none"}"#, "tool_choice.type"),
        (r#""tool_choice":{"type":"tool","name":"f","name":"g"}"#, "tool_choice.name"),
        (
            r#""tool_choice":{"type":"auto","disable_parallel_tool_use":true,"disable_parallel_tool_use":false}"#,
            "tool_choice.disable_parallel_tool_use",
        ),
        (r#""thinking":{"type":"enabled","budget_tokens":1,"budget_tokens":2}"#, "thinking.budget_tokens"),
        (r#""output_config":{"effort":"low","effort":"high"}"#, "output_config.effort"),
        (r#""output_format":{"type":"json_schema","schema":{},"schema":{}}"#, "output_format.schema"),
    ] {
        assert_eq!(refused(members), member);
    }
}

fn write(chunks: &[StreamChunk]) -> Vec<Value> {
    let (mut events, mut out) = (MessageEvents::new("fast"), BytesMut::new());
    chunks.iter().for_each(|chunk| events.write(chunk, &mut out));
    let text = std::str::from_utf8(&out).expect("UTF-8");
    let events = text.split_terminator("\n\n").map(|event| {
        let (name, data) = event.split_once("\ndata: ").expect("two lines");
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    });
    events.collect()
}

#[test]
fn a_message_has_an_id_and_a_model_though_its_first_chunk_tells_neither() {
    // As Azure begins.
    let first = r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}"#;
    let second =
        r#"{"id":"c-1","model":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}"#;
    let chunks = [first, second].map(|chunk| StreamChunk::parse(chunk).unwrap());
    assert_eq!((chunks[0].id(), chunks[0].model()), (None, None));
    let message = assemble(&write(&[&chunks[..], &[StreamChunk::end()]].concat()));
    assert!(message["id"].as_str().unwrap().starts_with("msg_"), "{message}");
    assert_eq!((&message["model"], &message["content"][0]["text"]), (&json!("fast"), &json!("x")));
}

/// As Anthropic's clients put the events together.
fn assemble(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let mut closed = true;
    for event in events {
        match event["type"].as_str().unwrap() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                assert!(closed, "one block at a time");
                closed = false;
                let content = message["content"].as_array_mut().unwrap();
                assert_eq!(event["index"], content.len());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                assert!(!closed);
                let block = message["content"].as_array_mut().unwrap().last_mut().unwrap();
                let add = |block: &mut Value, member: &str, piece: &Value| {
                    let text =
                        block[member].as_str().unwrap_or_default().to_owned() + piece.as_str().unwrap();
                    block[member] = text.into();
                };
                let delta = &event["delta"];
                match delta["type"].as_str().unwrap() {
                    "text_delta" => add(block, "text", &delta["text"]),
                    "thinking_delta" => {
                        assert_eq!(block["signature"], "", "a signature is the last of its block");
                        add(block, "thinking", &delta["thinking"]);
                    }
                    "signature_delta" => {
                        assert_eq!(block["type"], "thinking");
                        add(block, "signature", &delta["signature"]);
                    }
                    "input_json_delta" => add(block, "json", &delta["partial_json"]),
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                closed = true;
                let block = message["content"].as_array_mut().unwrap().last_mut().unwrap();
                if let Some(json) = block.as_object_mut().unwrap().remove("json") {
                    block["input"] = serde_json::from_str(json.as_str().unwrap()).unwrap();
                }
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert!(closed),
            other => panic!("{other}"),
        }
    }
    message
}

fn chunk(value: &Value) -> StreamChunk {
    StreamChunk::parse(value.to_string()).unwrap()
}

#[test]
fn an_answer_and_its_stream_become_the_same_message() {
    let whole = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-x",
        "choices": [{ "index": 0, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "reasoning_content": "Let me \"see\".", "content": "I look.",
            "tool_calls": [
                { "id": "a", "type": "function", "function": { "name": "weather", "arguments": "{\"city\":\"Paris\"}" } },
                { "id": "b", "type": "function", "function": { "name": "time", "arguments": "" } },
            ],
        } }],
        "usage": { "prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": { "cached_tokens": 10 } },
    });
    let message: Value =
        serde_json::from_slice(&anthropic::message(&Completion::parse(whole.to_string()).unwrap(), "fast"))
            .unwrap();
    let usage = json!({ "input_tokens": 20, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 0, "output_tokens": 7 });
    let expected = json!({
        "id": "chatcmpl-1", "type": "message", "role": "assistant", "model": "gpt-x",
        "content": [
            { "type": "thinking", "thinking": "Let me \"see\".", "signature": OURS },
            { "type": "text", "text": "I look." },
            { "type": "tool_use", "id": "a", "name": "weather", "input": { "city": "Paris" } },
            { "type": "tool_use", "id": "b", "name": "time", "input": {} },
        ],
        "stop_reason": "tool_use", "stop_sequence": null, "usage": usage,
    });
    assert_eq!(message, expected);

    let delta = |delta: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
        chunk(&json!({ "id": "chatcmpl-1", "model": "gpt-x", "choices": [choice] }))
    };
    let call = |index: u64, id: Option<&str>, name: Option<&str>, arguments: &str| {
        delta(
            json!({ "tool_calls": [{ "index": index, "id": id, "function": { "name": name, "arguments": arguments } }] }),
        )
    };
    let events = write(&[
        delta(json!({ "role": "assistant", "content": "" })),
        delta(json!({ "reasoning_content": "Let me " })),
        delta(json!({ "reasoning_content": "\"see\"." })),
        delta(json!({ "content": "I " })),
        delta(json!({ "content": "look." })),
        call(0, Some("a"), Some("weather"), ""),
        call(0, None, None, "{\"city\":"),
        call(0, None, None, "\"Paris\"}"),
        call(1, Some("b"), Some("time"), ""),
        StreamChunk::finish(&FinishReason::ToolCalls),
        chunk(
            &json!({ "choices": [], "usage": { "prompt_tokens": 30, "completion_tokens": 7, "prompt_tokens_details": { "cached_tokens": 10 } } }),
        ),
        StreamChunk::end(),
    ]);
    assert_eq!(assemble(&events), expected);
}

#[test]
fn thoughts_among_the_parts_of_a_content_come_before_its_text() {
    let thought = json!({ "type": "thinking", "thinking": [{ "type": "text", "text": "h" }, { "type": "text", "text": "m" }] });
    let content = json!([thought, { "type": "text", "text": "Hi" }]);
    let expected = json!([
        { "type": "thinking", "thinking": "hm", "signature": OURS },
        { "type": "text", "text": "Hi" },
    ]);
    let whole = json!({ "choices": [{ "message": { "content": content } }] });
    let whole = anthropic::message(&Completion::parse(whole.to_string()).unwrap(), "fast");
    assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap()["content"], expected);

    let delta = |content: Value| chunk(&json!({ "choices": [{ "delta": { "content": content } }] }));
    let piece = |text: &str| json!([{ "type": "thinking", "thinking": [{ "type": "text", "text": text }] }]);
    for pieces in [
        vec![delta(piece("h")), delta(piece("m")), delta(json!([{ "type": "text", "text": "Hi" }]))],
        vec![delta(piece("hm")), delta(json!("H")), delta(json!("i"))],
        vec![delta(content)],
        vec![delta(json!([{ "type": "thinking", "thinking": "hm" }, { "type": "text", "text": "Hi" }]))],
    ] {
        let end = [StreamChunk::finish(&FinishReason::Stop), StreamChunk::end()];
        let events = write(&[pieces, end.to_vec()].concat());
        assert_eq!(assemble(&events)["content"], expected);
    }
}

#[test]
fn a_call_whose_pieces_have_other_ids_is_one_call() {
    let call = |call: Value| chunk(&json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }));
    let events = write(&[
        call(json!({ "index": 0, "id": "a", "function": { "name": "f", "arguments": "" } })),
        call(json!({ "index": 0, "id": "b", "function": { "arguments": "{\"x\":" } })),
        call(json!({ "index": 0, "id": "c", "function": { "name": "", "arguments": "1}" } })),
        StreamChunk::finish(&FinishReason::ToolCalls),
        StreamChunk::end(),
    ]);
    let one = json!([{ "type": "tool_use", "id": "a", "name": "f", "input": { "x": 1 } }]);
    assert_eq!(assemble(&events)["content"], one);
}

#[test]
fn calls_that_no_provider_numbers_stay_apart() {
    let calls = |calls: Value| chunk(&json!({ "choices": [{ "delta": { "tool_calls": calls } }] }));
    let events = write(&[
        calls(
            json!([{ "id": "a", "function": { "name": "f", "arguments": "{}" } }, { "id": "b", "function": { "name": "g", "arguments": "{\"x\":" } }]),
        ),
        calls(json!([{ "function": { "arguments": "1}" } }])),
        StreamChunk::finish(&FinishReason::Stop),
        StreamChunk::end(),
    ]);
    let message = assemble(&events);
    let calls: Vec<_> =
        message["content"].as_array().unwrap().iter().map(|call| (&call["name"], &call["input"])).collect();
    assert_eq!(calls, [(&json!("f"), &json!({})), (&json!("g"), &json!({ "x": 1 }))]);
    assert_eq!(message["stop_reason"], "tool_use", "whatever the provider calls it");
}

#[test]
fn calls_that_come_one_after_the_other_without_numbers_stay_apart() {
    let calls = |call: Value| chunk(&json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }));
    let named = |id: Option<&str>, city: &str| {
        let arguments = json!({ "city": city }).to_string();
        calls(json!({ "id": id, "function": { "name": "weather", "arguments": arguments } }))
    };
    let tail = |id: &str| calls(json!({ "id": id, "function": { "name": "", "arguments": " " } }));
    for (a, b) in [(Some("a"), Some("b")), (None, None), (Some("a"), None), (None, Some("b"))] {
        let events = write(&[
            named(a, "Paris"),
            tail(a.unwrap_or_default()),
            named(b, "Rome"),
            tail(""),
            StreamChunk::end(),
        ]);
        let message = assemble(&events);
        let content = message["content"].as_array().unwrap();
        let seen: Vec<_> = content.iter().map(|call| (&call["name"], &call["input"]["city"])).collect();
        let name = &json!("weather");
        assert_eq!(seen, [(name, &json!("Paris")), (name, &json!("Rome"))], "{a:?} {b:?}");
        for (call, id) in content.iter().zip([a, b]) {
            let has_it = id.is_none_or(|id| call["id"] == id);
            assert!(has_it, "{id:?}: {call}");
        }
        assert_ne!(content[0]["id"], content[1]["id"]);
    }
}

/// A piece of a call, as it comes in a stream.
fn piece(index: u64, head: Option<(&str, &str)>, arguments: &str) -> StreamChunk {
    let mut call = json!({ "index": index, "function": { "arguments": arguments } });
    if let Some((id, name)) = head {
        call["id"] = id.into();
        call["function"]["name"] = name.into();
    }
    chunk(&json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }))
}

fn tool(id: &str, name: &str, input: &Value) -> Value {
    json!({ "type": "tool_use", "id": id, "name": name, "input": input })
}

#[test]
fn pieces_of_calls_that_come_by_turns_are_put_together() {
    let message = assemble(&write(&[
        piece(0, Some(("a", "f")), ""),
        piece(1, Some(("b", "g")), ""),
        piece(0, None, "{\"x\":"),
        piece(1, None, "{\"y\":"),
        piece(0, None, "1}"),
        piece(1, None, "2}"),
        StreamChunk::end(),
    ]));
    let expected = [tool("a", "f", &json!({ "x": 1 })), tool("b", "g", &json!({ "y": 2 }))];
    assert_eq!(message["content"].as_array().unwrap(), &expected);

    // A call that never gets any arguments, and what was said meanwhile.
    let text = |text: &str| json!({ "type": "text", "text": text });
    let message = assemble(&write(&[
        StreamChunk::text("One "),
        StreamChunk::text("moment."),
        piece(0, Some(("a", "f")), ""),
        StreamChunk::text("Two "),
        piece(1, Some(("b", "g")), "{\"y\":"),
        StreamChunk::text("of "),
        StreamChunk::text("them."),
        piece(1, None, "\"}\"}"),
        StreamChunk::end(),
    ]));
    let expected = [
        text("One moment."),
        tool("a", "f", &json!({})),
        text("Two "),
        tool("b", "g", &json!({ "y": "}" })),
        text("of them."),
    ];
    assert_eq!(message["content"].as_array().unwrap(), &expected);
}

#[test]
fn text_between_two_pieces_of_a_call_comes_after_it() {
    let message = assemble(&write(&[
        piece(0, Some(("a", "f")), "{\"x\":"),
        StreamChunk::text("Hm."),
        piece(0, None, "1}"),
        StreamChunk::end(),
    ]));
    let expected = [tool("a", "f", &json!({ "x": 1 })), json!({ "type": "text", "text": "Hm." })];
    assert_eq!(message["content"].as_array().unwrap(), &expected);
}

#[test]
fn what_comes_between_never_cuts_arguments_wherever_they_are_parted() {
    let input = json!({ "a\\": ["}", { "b": [1, [2]] }, "[{"], "c": "\"}", "d": {} });
    let arguments = input.to_string();
    for at in 1..arguments.len() {
        let message = assemble(&write(&[
            piece(0, Some(("a", "f")), &arguments[..at]),
            StreamChunk::text("Hm."),
            piece(0, None, &arguments[at..]),
            StreamChunk::end(),
        ]));
        let expected = [tool("a", "f", &input), json!({ "type": "text", "text": "Hm." })];
        assert_eq!(message["content"].as_array().unwrap(), &expected, "{}", &arguments[..at]);
    }
}

#[test]
fn what_waits_for_a_call_keeps_its_kind_and_its_order_and_learns_its_name() {
    let thought = chunk(&json!({ "choices": [{ "delta": { "reasoning": "Why?" } }] }));
    let message = assemble(&write(&[
        piece(0, Some(("a", "f")), "{\"x\":"),
        thought,
        StreamChunk::text("Hm."),
        piece(1, None, "{"),
        piece(1, Some(("b", "g")), "}"),
        piece(0, None, "1}"),
        StreamChunk::end(),
    ]));
    let expected = [
        tool("a", "f", &json!({ "x": 1 })),
        json!({ "type": "thinking", "thinking": "Why?", "signature": OURS }),
        json!({ "type": "text", "text": "Hm." }),
        tool("b", "g", &json!({})),
    ];
    assert_eq!(message["content"].as_array().unwrap(), &expected);
}

#[test]
fn the_last_usage_is_told_without_what_a_cache_has_read_or_written() {
    let usage = |output: u64| {
        let details = json!({ "cached_tokens": 10, "cache_write_tokens": 5 });
        let usage =
            json!({ "prompt_tokens": 30, "completion_tokens": output, "prompt_tokens_details": details });
        chunk(&json!({ "choices": [], "usage": usage }))
    };
    let message = assemble(&write(&[usage(1), StreamChunk::text("Hm."), usage(7), StreamChunk::end()]));
    assert_eq!(
        message["usage"],
        json!({ "input_tokens": 15, "cache_read_input_tokens": 10, "cache_creation_input_tokens": 5, "output_tokens": 7 })
    );
}

#[test]
fn the_same_number_with_another_id_is_another_call() {
    let message = assemble(&write(&[
        piece(0, Some(("a", "f")), "{\"x\":"),
        piece(0, Some(("a", "f")), "1}"),
        piece(0, Some(("b", "f")), "{\"x\":"),
        piece(0, None, "2}"),
        piece(1, Some(("c", "f")), "{\"x\":3}"),
        StreamChunk::end(),
    ]));
    let expected = [("a", 1), ("b", 2), ("c", 3)].map(|(id, x)| tool(id, "f", &json!({ "x": x })));
    assert_eq!(message["content"].as_array().unwrap(), &expected);
}

#[test]
fn a_call_whose_turn_it_is_is_not_held_back() {
    let (mut events, mut out) = (MessageEvents::new("fast"), BytesMut::new());
    let mut said = |chunk: &StreamChunk| {
        events.write(chunk, &mut out);
        String::from_utf8(out.split().to_vec()).unwrap()
    };
    assert!(said(&piece(0, Some(("a", "f")), "{\"x\":")).contains("{\\\"x\\\":"));
    assert_eq!(said(&piece(1, Some(("b", "g")), "{")), "", "the first one is not whole");
    let both = said(&piece(0, None, "1}"));
    assert!(both.contains("1}") && both.contains("\"name\":\"g\"") && both.contains("\"{\""), "{both}");
    assert!(said(&piece(1, None, "}")).contains("\"}\""));
    // It was told that this one is over.
    assert_eq!(said(&piece(0, None, " ")), "");
    assert!(said(&StreamChunk::text("Hm.")).contains("Hm."));
}

#[test]
fn calls_that_can_only_be_kept_are_kept_up_to_a_bound_and_the_rest_is_an_error() {
    let large = "x".repeat(1 << 20);
    let mut chunks = vec![piece(0, Some(("a", "f")), "{"), piece(1, Some(("b", "g")), "{\"y\":\"")];
    chunks.extend((0..9).map(|_| piece(1, None, &large)));
    chunks.extend([piece(0, None, "}"), StreamChunk::end()]);
    let events = write(&chunks);
    assert_eq!(events.last().unwrap()["type"], "error", "nothing follows it");
    assert_eq!(events.last().unwrap()["error"]["type"], "api_error");
    assert_eq!(events.len(), 4);

    let many = (0..3_000).map(|n| piece(n, Some(("a", "f")), ""));
    assert_eq!(write(&many.collect::<Vec<_>>()).last().unwrap()["type"], "error");

    // What was kept and is written has made room.
    let mut chunks = Vec::new();
    for call in [0, 2] {
        chunks.extend([piece(call, Some(("a", "f")), "{"), piece(call + 1, Some(("b", "g")), "{\"y\":\"")]);
        chunks.extend((0..5).map(|_| piece(call + 1, None, &large)));
        chunks.extend([piece(call, None, "}"), piece(call + 1, None, "\"}")]);
    }
    chunks.push(StreamChunk::end());
    assert_eq!(assemble(&write(&chunks))["content"].as_array().unwrap().len(), 4);

    // Nothing is kept of what can be written.
    let mut chunks = vec![piece(0, Some(("a", "f")), "{\"x\":\"")];
    chunks.extend((0..9).map(|_| piece(0, None, &large)));
    chunks.extend([piece(0, None, "\"}"), StreamChunk::end()]);
    let message = assemble(&write(&chunks));
    assert_eq!(message["content"][0]["input"]["x"].as_str().unwrap().len(), 9 << 20);
}

#[test]
fn a_stream_that_ends_amid_arguments_and_does_not_say_why_is_an_error() {
    let first = |arguments| piece(0, Some(("a", "f")), arguments);
    let second = |arguments| piece(1, Some(("b", "g")), arguments);
    let function = json!({ "function_call": { "name": "f", "arguments": "{" } });
    for cut in [
        vec![first("{\"x\":")],
        vec![first("{\"x\":\"}")],
        vec![first("\"x")],
        vec![StreamChunk::text("Hm."), first("{}"), second("{\"y\"")],
        vec![first("{"), second("{}")],
        vec![first("{"), second("["), piece(0, None, "}")],
        vec![chunk(&json!({ "choices": [{ "delta": function }] }))],
    ] {
        let events = write(&[&cut[..], &[StreamChunk::end()]].concat());
        assert_eq!(events.last().unwrap()["type"], "error", "{events:?}");
        assert!(events.iter().all(|event| event["type"] != "message_delta"), "{events:?}");

        let finish = StreamChunk::finish(&FinishReason::Length);
        let events = write(&[&cut[..], &[finish, StreamChunk::end()]].concat());
        assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "max_tokens");
    }
    // Some leave the reason out, and nothing else.
    for whole in ["", "{}", "{\"x\":[\"{\"]}"] {
        let message = assemble(&write(&[first(whole), second("{}"), StreamChunk::end()]));
        assert_eq!(message["stop_reason"], "tool_use", "{whole}");
    }
}

#[test]
fn the_first_choice_is_told_also_where_its_number_is_none() {
    for index in ["null", "0.0", r#""0""#, "0"] {
        let delta = |delta: &str, finish: &str| {
            let choice = format!(r#"{{"index":{index},"delta":{{{delta}}},"finish_reason":{finish}}}"#);
            let other = r#"{"index":1,"delta":{"content":"b"},"finish_reason":"length"}"#;
            StreamChunk::parse(format!(r#"{{"choices":[{choice},{other}]}}"#)).unwrap()
        };
        let chunks =
            [delta(r#""content":"a""#, "null"), delta("", r#""content_filter""#), StreamChunk::end()];
        let message = assemble(&write(&chunks));
        assert_eq!(message["content"], json!([{ "type": "text", "text": "a" }]), "{index}");
        assert_eq!(message["stop_reason"], "refusal");
        assert_eq!(chunks[0].content(), "a");
    }
    let both = json!({ "choices": [{ "delta": { "content": "a" } }, { "delta": { "content": "b" } }] });
    let message = assemble(&write(&[chunk(&both), StreamChunk::end()]));
    assert_eq!(message["content"], json!([{ "type": "text", "text": "a" }]));
}

/// The message that a whole answer becomes.
fn told(answer: &Value) -> Value {
    let answer = Completion::parse(answer.to_string()).unwrap();
    serde_json::from_slice(&anthropic::message(&answer, "fast")).unwrap()
}

#[test]
fn each_reason_to_stop_has_its_word() {
    let reasons = [
        (FinishReason::Stop, "end_turn"),
        (FinishReason::Length, "max_tokens"),
        (FinishReason::ToolCalls, "tool_use"),
        (FinishReason::ContentFilter, "refusal"),
        ("model_length".into(), "max_tokens"),
        ("model_context_window_exceeded".into(), "max_tokens"),
        ("eos".into(), "end_turn"),
        ("content_filter: PROHIBITED_CONTENT".into(), "refusal"),
        ("sensitive".into(), "refusal"),
        // What nobody knows is not told as a good end.
        ("abort".into(), "abort"),
        (
            "function_call_filter: MALFORMED_FUNCTION_CALL".into(),
            "function_call_filter: MALFORMED_FUNCTION_CALL",
        ),
    ];
    for (ours, theirs) in reasons {
        let message =
            assemble(&write(&[StreamChunk::text("x"), StreamChunk::finish(&ours), StreamChunk::end()]));
        assert_eq!(message["stop_reason"], theirs, "{ours:?}");
        let whole = json!({ "choices": [{ "message": { "content": "x" }, "finish_reason": ours.as_str() }] });
        assert_eq!(told(&whole)["stop_reason"], theirs, "{ours:?}");
    }
    // A call that was cut is none that is to be made.
    let call = json!([{ "id": "a", "index": 0, "function": { "name": "f", "arguments": "{" } }]);
    let whole =
        json!({ "choices": [{ "message": { "tool_calls": call.clone() }, "finish_reason": "abort" }] });
    assert_eq!(told(&whole)["stop_reason"], "abort");
    let cut = chunk(&json!({ "choices": [{ "delta": { "tool_calls": call }, "finish_reason": "abort" }] }));
    let events = write(&[cut, StreamChunk::end()]);
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "abort");
    let whole = anthropic::message(&Completion::text("x", TokenUsage::new(1, 1)), "fast");
    assert_eq!(serde_json::from_slice::<Value>(&whole).unwrap()["stop_reason"], "end_turn");
}

#[test]
fn a_stream_that_says_nothing_is_still_a_message() {
    let message = assemble(&write(&[StreamChunk::end()]));
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &json!("end_turn")));
    assert!(message["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    assert_eq!(message["model"], "fast");
}

#[test]
fn arguments_that_are_no_object_are_shown_as_they_are() {
    let answer = Completion::tool_call("a", "f", "not JSON", TokenUsage::new(1, 1));
    let message: Value = serde_json::from_slice(&anthropic::message(&answer, "fast")).unwrap();
    assert_eq!(message["content"][0]["input"], json!({ "arguments": "not JSON" }));
}

/// What a call of a tool becomes, by an answer and by its stream.
fn called(said: &str) -> Vec<Value> {
    let whole = format!(r#"{{"choices":[{{"message":{said}}}]}}"#);
    let message: Value =
        serde_json::from_slice(&anthropic::message(&Completion::parse(whole).unwrap(), "fast")).unwrap();
    let delta = StreamChunk::parse(format!(r#"{{"choices":[{{"delta":{said}}}]}}"#)).unwrap();
    let streamed = assemble(&write(&[delta, StreamChunk::end()]));
    for message in [&message, &streamed] {
        assert_eq!(message["stop_reason"], "tool_use", "{message}");
    }
    let blocks = |message: &Value| {
        let mut blocks = message["content"].as_array().unwrap().clone();
        for block in &mut blocks {
            assert!(block["id"].as_str().is_some_and(|id| !id.is_empty()), "{block}");
            // Without one of the provider's, each has its own.
            if block["id"].as_str().unwrap().starts_with("toolu_") {
                block["id"].take();
            }
        }
        blocks
    };
    assert_eq!(blocks(&message), blocks(&streamed));
    blocks(&message)
}

#[test]
fn arguments_are_taken_as_an_object_too() {
    let call = |arguments: &str| {
        let function = format!(r#"{{"name":"f","arguments":{arguments}}}"#);
        called(&format!(r#"{{"tool_calls":[{{"id":"a","function":{function}}}]}}"#))
    };
    let block = |input: Value| [json!({ "type": "tool_use", "id": "a", "name": "f", "input": input })];
    assert_eq!(call("{ \"city\":\n\"Paris\" }"), block(json!({ "city": "Paris" })));
    assert_eq!(call("{}"), block(json!({})));
    assert_eq!(call("null"), block(json!({})));
}

#[test]
fn a_call_in_the_words_of_before_there_were_tools_is_a_call() {
    let function = r#""function_call":{"name":"f","arguments":"{\"x\":1}"}"#;
    let block = json!({ "type": "tool_use", "id": null, "name": "f", "input": { "x": 1 } });
    assert_eq!(called(&format!(r#"{{"content":null,{function}}}"#)), [block]);
    // Who says it in both ways means one call.
    let both = format!(r#"{{{function},"tool_calls":[{{"id":"a","function":{{"name":"f"}}}}]}}"#);
    assert_eq!(called(&both), [json!({ "type": "tool_use", "id": "a", "name": "f", "input": {} })]);

    let piece = |call: Value| chunk(&json!({ "choices": [{ "delta": { "function_call": call } }] }));
    let message = assemble(&write(&[
        StreamChunk::text("Hm."),
        piece(json!({ "name": "f", "arguments": "" })),
        piece(json!({ "arguments": "{\"x\":" })),
        piece(json!({ "arguments": "1}" })),
        chunk(&json!({ "choices": [{ "delta": {}, "finish_reason": "function_call" }] })),
        StreamChunk::end(),
    ]));
    assert_eq!(message["stop_reason"], "tool_use");
    let content = message["content"].as_array().unwrap();
    assert_eq!(content.len(), 2, "{message}");
    assert_eq!((&content[1]["name"], &content[1]["input"]), (&json!("f"), &json!({ "x": 1 })));
}

#[test]
fn numbers_in_arguments_stay_as_they_are_written() {
    let arguments = r#"{"n":12345678901234567890123,"f":1.10,"e":1E400}"#;
    let answer = Completion::tool_call("a", "f", arguments, TokenUsage::new(1, 1));
    let message = anthropic::message(&answer, "fast");
    let message = std::str::from_utf8(&message).unwrap();
    assert!(message.contains(&format!(r#""input":{arguments}"#)), "{message}");
}

#[test]
fn arguments_deeper_than_a_client_reads_are_shown_as_a_text() {
    let arguments = format!(r#"{{"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let answer = Completion::tool_call("a", "f", &arguments, TokenUsage::new(1, 1));
    let message: Value = serde_json::from_slice(&anthropic::message(&answer, "fast")).unwrap();
    assert_eq!(message["content"][0]["input"], json!({ "arguments": arguments }));
}

#[test]
fn half_of_a_surrogate_pair_takes_no_text_with_it() {
    let whole = |message: &str| {
        let answer = format!(r#"{{"choices":[{{"index":0,"message":{message},"finish_reason":"stop"}}]}}"#);
        let answer = Completion::parse(answer).unwrap();
        assert!(answer.has_content(), "{message}");
        serde_json::from_slice::<Value>(&anthropic::message(&answer, "fast")).unwrap()["content"].take()
    };
    let said = json!([{ "type": "text", "text": "Hello \u{fffd}" }]);
    assert_eq!(whole(r#"{"content":"Hello \ud83d"}"#), said);
    assert_eq!(
        whole(r#"{"content":[{"type":"text","text":"Hello "},{"type":"text","text":"\ude00"}]}"#),
        said
    );
    assert_eq!(whole(r#"{"refusal":"Hello \ud83d"}"#), said);
    assert_eq!(whole(r#"{"content":"\ud83d"}"#), json!([{ "type": "text", "text": "\u{fffd}" }]));
    let thoughts = whole(r#"{"reasoning_content":"Hm \ud83d"}"#);
    assert_eq!(thoughts[0]["thinking"], "Hm \u{fffd}");
    let call = whole(
        r#"{"tool_calls":[{"id":"a","function":{"name":"f","arguments":"{\"city\":\"Paris \ud83d\"}"}}]}"#,
    );
    assert_eq!(call[0]["input"], json!({ "city": "Paris \u{fffd}" }));
}

/// A delta with `text`, which is JSON, in the place of `TEXT`.
fn delta_of(shape: &str, text: &str) -> StreamChunk {
    let delta = shape.replace("TEXT", text);
    StreamChunk::parse(format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#)).unwrap()
}

const CONTENT: &str = r#"{"content":TEXT}"#;
const THOUGHTS: &str = r#"{"reasoning_content":TEXT}"#;
const PARTS: &str = r#"{"content":[{"type":"text","text":TEXT}]}"#;

#[test]
fn half_of_a_pair_at_the_end_of_a_block_is_told_in_that_block() {
    let message = assemble(&write(&[
        delta_of(THOUGHTS, r#""Hm \ud83d""#),
        delta_of(CONTENT, r#""\ude00 a \ud83d""#),
        delta_of(
            r#"{"tool_calls":[{"index":0,"id":"a","function":{"name":"f","arguments":TEXT}}]}"#,
            r#""{\"x\":\"\ud83d""#,
        ),
        delta_of(r#"{"tool_calls":[{"index":0,"function":{"arguments":TEXT}}]}"#, r#""\ude00\"}""#),
        delta_of(CONTENT, r#""\ud83d""#),
        StreamChunk::end(),
    ]));
    assert_eq!(
        message["content"],
        json!([
            { "type": "thinking", "thinking": "Hm \u{fffd}", "signature": OURS },
            { "type": "text", "text": "\u{fffd} a \u{fffd}" },
            { "type": "tool_use", "id": "a", "name": "f", "input": { "x": "\u{1f600}" } },
            { "type": "text", "text": "\u{fffd}" },
        ])
    );
}

#[test]
fn errors_are_named_by_their_status() {
    let kind = |kind: ErrorKind| {
        let body: Value = serde_json::from_slice(&anthropic::error_body(&Error::new(kind))).unwrap();
        assert_eq!(body["type"], "error");
        body["error"]["type"].as_str().unwrap().to_owned()
    };
    assert_eq!(kind(ErrorKind::ModelNotFound { model: "x".into() }), "not_found_error");
    assert_eq!(kind(ErrorKind::ModelUnpriced { model: "x".into() }), "permission_error");
    assert_eq!(kind(ErrorKind::Overloaded), "overloaded_error");
    assert_eq!(kind(ErrorKind::NotCached), "timeout_error");
    assert_eq!(kind(ErrorKind::Other), "api_error");
    assert_eq!(kind(ErrorKind::EmptyResponse { model: "x".into() }), "api_error");
    assert_eq!(kind(ErrorKind::Cancelled), "invalid_request_error");
}

proptest! {
    /// Whatever a text is, it arrives, however its JSON spells it.
    #[test]
    fn every_text_survives_both_ways(texts in prop::collection::vec(".{0,40}", 1..5)) {
        let blocks: Vec<_> = texts.iter().map(|text| json!({ "type": "text", "text": text })).collect();
        let seen = messages(&json!([{ "role": "assistant", "content": blocks }, { "role": "user", "content": texts[0] }]));
        prop_assert_eq!(&seen[0]["content"], &json!(texts.concat()));
        prop_assert_eq!(&seen[1]["content"], &json!(texts[0]));

        let mut chunks: Vec<_> = texts.iter().map(StreamChunk::text).collect();
        chunks.push(StreamChunk::end());
        let message = assemble(&write(&chunks));
        let said = message["content"][0]["text"].as_str().unwrap_or_default();
        prop_assert_eq!(said, texts.concat());
    }

    /// Wherever a provider cuts its texts, and whatever UTF-16 it has for one.
    #[test]
    fn pieces_of_a_text_are_joined_as_utf_16(
        shape in prop::sample::select(&[CONTENT, THOUGHTS, PARTS][..]),
        pieces in prop::collection::vec(prop::collection::vec(unit(), 0..4), 1..8),
    ) {
        let spelt = |unit: &u16| match u8::try_from(*unit) {
            Ok(byte) if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("\\u{unit:04x}"),
        };
        let mut chunks: Vec<_> = pieces
            .iter()
            .map(|piece| delta_of(shape, &format!("\"{}\"", piece.iter().map(spelt).collect::<String>())))
            .collect();
        chunks.push(StreamChunk::end());
        let message = assemble(&write(&chunks));
        let block = &message["content"][0];
        let said = block["text"].as_str().or(block["thinking"].as_str()).unwrap_or_default();
        prop_assert_eq!(said, String::from_utf16_lossy(&pieces.concat()));
    }

    /// No bytes make it panic, or make JSON that is none.
    #[test]
    fn any_json_is_a_request_or_an_error(member in "(model|system|messages|tools|tool_choice|thinking|output_config|x)", value in any_json()) {
        let mut request = json!({ "model": "m", "max_tokens": 1, "messages": [{ "role": "user", "content": "x" }] });
        request[&member] = value;
        if let Ok(request) = anthropic::chat_request(request.to_string(), &BodyLimits::default()) {
            let json = request.body.to_json("m");
            prop_assert!(serde_json::from_slice::<Value>(&json).is_ok());
        }
    }
}

fn unit() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(u16::from(b'a')),
        Just(u16::from(b'\\')),
        Just(0xfffd),
        0xd800..0xdc00_u16,
        0xdc00..0xe000_u16,
        any::<u16>()
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "(text|tool_use|tool_result|image|base64|user|assistant|enabled|auto|.{0,5})".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(
                "(type|text|role|content|source|data|media_type|id|name|input|tool_use_id|format|effort|x)",
                inner,
                0..5
            )
            .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
