//! What providers say, as clients of OpenAI's dialect must read it.

use crate::{common::*, server::Server};
use llm_layers::{Certainty, TokenUsage, price::ServiceTier, provider::genai::Dialect};
use serde_json::{Value, json};
use tower::ServiceExt as _;

async fn whole_answer(dialect: Dialect, body: &Value) -> llm_layers::Completion {
    let server = Server::playing([whole(200, "", &body.to_string())]).await;
    let answer = leaf(dialect, &server).oneshot(hello(model(dialect), false)).await.unwrap();
    let llm_layers::ResponseBody::Complete(completion) = answer.body else { panic!("not whole") };
    completion
}

async fn streamed_answer(dialect: Dialect, pieces: &[String]) -> Vec<Value> {
    let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
    let server = Server::playing(streamed(&pieces)).await;
    let answer = leaf(dialect, &server).oneshot(hello(model(dialect), true)).await.unwrap();
    let chunks = chunks(answer).await;
    check_chunks(&chunks);
    chunks
}

fn message(usage: &Value) -> Value {
    json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929",
        "content": [{ "type": "text", "text": "Hi" }], "stop_reason": "end_turn", "usage": usage,
    })
}

#[tokio::test]
async fn input_includes_what_came_from_the_cache_and_output_includes_thoughts() {
    let anthropic = message(&json!({
        "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 40, "output_tokens": 7,
        "cache_creation": { "ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 10 },
    }));
    let read = *whole_answer(Dialect::Anthropic, &anthropic).await.usage().unwrap();
    let expected = TokenUsage::new(150, 7).with_cache_read_tokens(100).with_cache_write_tokens(40);
    assert_eq!(read, expected.with_cache_write_1h_tokens(10));

    let gemini = json!({
        "candidates": [{ "content": { "parts": [{ "text": "Hi" }] }, "finishReason": "STOP" }],
        "usageMetadata": {
            "promptTokenCount": 20, "cachedContentTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 30,
            "totalTokenCount": 53,
        },
    });
    let read = *whole_answer(Dialect::Gemini, &gemini).await.usage().unwrap();
    assert_eq!(read, TokenUsage::new(20, 33).with_cache_read_tokens(5).with_reasoning_tokens(30));

    let bedrock = json!({
        "output": { "message": { "content": [{ "text": "Hi" }] } }, "stopReason": "end_turn",
        "usage": {
            "inputTokens": 4, "outputTokens": 2, "totalTokens": 106, "cacheReadInputTokens": 60,
            "cacheWriteInputTokens": 40,
        },
    });
    let read = *whole_answer(Dialect::Bedrock, &bedrock).await.usage().unwrap();
    assert_eq!(read, TokenUsage::new(104, 2).with_cache_read_tokens(60).with_cache_write_tokens(40));
}

#[tokio::test]
async fn usage_that_is_not_told_is_unknown_and_not_zero() {
    for usage in [json!(null), json!({}), json!({ "input_tokens": 0, "output_tokens": 0 })] {
        let whole = whole_answer(Dialect::Anthropic, &message(&usage)).await;
        assert_eq!(whole.usage(), None, "{usage}");
        assert_eq!(whole.json::<Value>().unwrap().get("usage"), None);
    }
    let half = whole_answer(Dialect::Anthropic, &message(&json!({ "input_tokens": 12 }))).await;
    let half = half.usage().unwrap();
    assert_eq!((half.input_tokens, half.output_tokens, half.certainty), (Some(12), None, Certainty::Exact));

    let chunks = streamed_answer(
        Dialect::Gemini,
        &[data(&json!({
            "candidates": [{ "content": { "parts": [{ "text": "Hi" }] }, "finishReason": "STOP" }],
        }))],
    )
    .await;
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn an_answer_tells_the_tier_that_is_paid_for_which_is_not_the_one_that_was_asked_for() {
    for (told, tier) in [(None, "default"), (Some("standard"), "default"), (Some("priority"), "priority")] {
        let usage = json!({ "input_tokens": 10, "output_tokens": 5, "service_tier": told });
        let answer = whole_answer(Dialect::Anthropic, &message(&usage)).await;
        assert_eq!(answer.json::<Value>().unwrap()["service_tier"], tier);
        assert_eq!(answer.service_tier(), ServiceTier::from_name(tier));
    }
    let stream = anthropic_stream(&block(0, &json!({ "type": "text", "text": "" }), &[]), "end_turn");
    let chunks = streamed_answer(Dialect::Anthropic, &stream).await;
    assert!(chunks.iter().any(|chunk| chunk["service_tier"] == "default"), "{chunks:?}");
}

#[tokio::test]
async fn the_providers_id_and_model_are_kept() {
    let whole = whole_answer(Dialect::Anthropic, &message(&json!({}))).await;
    assert_eq!(whole.id().as_deref(), Some("msg_1"));
    assert_eq!(whole.model().as_deref(), Some("claude-sonnet-4-5-20250929"));
    let chunks = streamed_answer(
        Dialect::Gemini,
        &[data(&json!({
            "candidates": [{ "content": { "parts": [{ "text": "Hi" }] }, "finishReason": "STOP" }],
            "responseId": "r-1", "modelVersion": "gemini-2.5-flash-001",
        }))],
    )
    .await;
    assert_eq!((&chunks[0]["id"], &chunks[0]["model"]), (&json!("r-1"), &json!("gemini-2.5-flash-001")));
}

fn anthropic_stream(blocks: &[Value], stop: &str) -> Vec<String> {
    let start = json!({ "type": "message_start", "message": {
        "id": "msg_1", "model": "claude-x", "usage": { "input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1 },
    } });
    let mut events = vec![event(&start), event(&json!({ "type": "ping" }))];
    events.extend(blocks.iter().map(event));
    let delta = json!({ "type": "message_delta", "delta": { "stop_reason": stop }, "usage": { "output_tokens": 20 } });
    events.extend([event(&delta), event(&json!({ "type": "message_stop" }))]);
    events
}

fn block(at: u32, start: &Value, deltas: &[Value]) -> Vec<Value> {
    let mut events = vec![json!({ "type": "content_block_start", "index": at, "content_block": start })];
    events.extend(deltas.iter().map(|d| json!({ "type": "content_block_delta", "index": at, "delta": d })));
    events.push(json!({ "type": "content_block_stop", "index": at }));
    events
}

fn tool_use(at: u32, id: &str, name: &str, pieces: &[&str]) -> Vec<Value> {
    let deltas: Vec<_> =
        pieces.iter().map(|p| json!({ "type": "input_json_delta", "partial_json": p })).collect();
    block(at, &json!({ "type": "tool_use", "id": id, "name": name, "input": {} }), &deltas)
}

#[tokio::test]
async fn calls_of_tools_that_come_in_fragments_are_passed_on_in_fragments_each_once() {
    let mut blocks =
        block(0, &json!({ "type": "text", "text": "" }), &[json!({ "type": "text_delta", "text": "Well" })]);
    blocks.extend(tool_use(1, "toolu_1", "weather", &["", "{\"city\":", "\"Zür", "ich\"}"]));
    blocks.extend(tool_use(2, "toolu_2", "weather", &["{\"city\":\"Bern\"}"]));
    blocks.extend(tool_use(3, "toolu_3", "time", &[]));
    let chunks = streamed_answer(Dialect::Anthropic, &anthropic_stream(&blocks, "tool_use")).await;
    let expected = [
        ("toolu_1", "weather", r#"{"city":"Zürich"}"#),
        ("toolu_2", "weather", r#"{"city":"Bern"}"#),
        ("toolu_3", "time", "{}"),
    ];
    let expected =
        expected.map(|(id, name, arguments)| (id.to_owned(), name.to_owned(), arguments.to_owned()));
    assert_eq!(calls(&chunks), expected);
    let fragments =
        chunks.iter().filter(|chunk| chunk["choices"][0]["delta"]["tool_calls"].is_array()).count();
    assert_eq!(fragments, 8, "three begin, four fragments, one without arguments");
    assert_eq!(chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str()), Some("tool_calls"));
    let usage = json!({
        "prompt_tokens": 15, "completion_tokens": 20, "total_tokens": 35,
        "prompt_tokens_details": { "cached_tokens": 5 },
    });
    assert_eq!(chunks.last().unwrap()["usage"], usage);
}

#[tokio::test]
async fn calls_without_ids_have_ids_of_their_own_across_chunks() {
    let call = |city: &str| json!({ "functionCall": { "name": "weather", "args": { "city": city } } });
    let part = |parts: Value, finish: Value| {
        data(&json!({ "candidates": [{ "content": { "parts": parts }, "finishReason": finish }] }))
    };
    let signed = json!({ "functionCall": { "name": "weather", "args": {} }, "thoughtSignature": "sig" });
    let pieces = [
        part(json!([call("Bern"), call("Paris")]), Value::Null),
        part(json!([call("Rome"), signed]), json!("STOP")),
    ];
    let chunks = streamed_answer(Dialect::Gemini, &pieces).await;
    let calls = calls(&chunks);
    let ids: std::collections::HashSet<_> = calls.iter().map(|(id, ..)| id).collect();
    assert_eq!((calls.len(), ids.len()), (4, 4), "{calls:?}");
    assert_eq!(calls[2].2, r#"{"city":"Rome"}"#);
    assert_eq!(chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str()), Some("tool_calls"));
    let signature = chunks.iter().find_map(|chunk| {
        chunk.pointer("/choices/0/delta/tool_calls/0/extra_content/google/thought_signature")
    });
    assert_eq!(signature, Some(&json!("sig")));
}

#[tokio::test]
async fn thoughts_are_told_apart_from_the_answer_and_can_be_sent_back() {
    let mut blocks = block(
        0,
        &json!({ "type": "thinking", "thinking": "", "signature": "" }),
        &[
            json!({ "type": "thinking_delta", "thinking": "Let me " }),
            json!({ "type": "thinking_delta", "thinking": "see" }),
            json!({ "type": "signature_delta", "signature": "sig" }),
        ],
    );
    blocks.extend(block(1, &json!({ "type": "redacted_thinking", "data": "xyz" }), &[]));
    blocks.extend(block(
        2,
        &json!({ "type": "text", "text": "" }),
        &[json!({ "type": "text_delta", "text": "42" })],
    ));
    let stream = anthropic_stream(&blocks, "end_turn");
    let pieces: Vec<_> = stream.iter().map(String::as_str).collect();
    let server = Server::playing(streamed(&pieces)).await;
    let body = json!({ "messages": [{ "role": "user", "content": "?" }], "stream": true, "reasoning_effort": "low" });
    let answer = leaf(Dialect::Anthropic, &server).oneshot(ask("claude-sonnet-4-5", body)).await.unwrap();
    let chunks = chunks(answer).await;
    let text = |name: &str| {
        chunks.iter().filter_map(|c| c["choices"][0]["delta"][name].as_str()).collect::<String>()
    };
    assert_eq!((text("reasoning_content"), text("content")), ("Let me see".to_owned(), "42".to_owned()));
    let blocks = chunks.iter().find_map(|chunk| chunk["choices"][0]["delta"].get("thinking_blocks"));
    let expected = json!([
        { "type": "thinking", "thinking": "Let me see", "signature": "sig" },
        { "type": "redacted_thinking", "data": "xyz" },
    ]);
    assert_eq!(blocks, Some(&expected));

    let whole = json!({
        "id": "m", "content": [
            { "type": "thinking", "thinking": "Let me see", "signature": "sig" },
            { "type": "redacted_thinking", "data": "xyz" },
            { "type": "text", "text": "4" }, { "type": "text", "text": "2" },
        ], "stop_reason": "end_turn", "usage": {},
    });
    let whole: Value = whole_answer(Dialect::Anthropic, &whole).await.json().unwrap();
    let message = &whole["choices"][0]["message"];
    assert_eq!((&message["content"], &message["reasoning_content"]), (&json!("42"), &json!("Let me see")));
    assert_eq!(message["thinking_blocks"], expected);
}

#[tokio::test]
async fn thoughts_that_nobody_asked_for_can_be_sent_back_also_where_they_are_not_shown() {
    let mut blocks = block(
        0,
        &json!({ "type": "thinking", "thinking": "", "signature": "" }),
        &[json!({ "type": "signature_delta", "signature": "sig" })],
    );
    blocks.extend(block(1, &json!({ "type": "redacted_thinking", "data": "xyz" }), &[]));
    let text = json!({ "type": "text_delta", "text": "42" });
    blocks.extend(block(2, &json!({ "type": "text", "text": "" }), &[text]));
    let expected = json!([
        { "type": "thinking", "thinking": "", "signature": "sig" },
        { "type": "redacted_thinking", "data": "xyz" },
    ]);
    let chunks = streamed_answer(Dialect::Anthropic, &anthropic_stream(&blocks, "end_turn")).await;
    let streamed = chunks.iter().find_map(|chunk| chunk["choices"][0]["delta"].get("thinking_blocks"));
    assert_eq!(streamed, Some(&expected));

    let whole = json!({
        "id": "m", "content": [
            { "type": "thinking", "thinking": "", "signature": "sig" },
            { "type": "redacted_thinking", "data": "xyz" },
            { "type": "text", "text": "42" },
        ], "stop_reason": "end_turn", "usage": {},
    });
    let whole: Value = whole_answer(Dialect::Anthropic, &whole).await.json().unwrap();
    assert_eq!(whole["choices"][0]["message"]["thinking_blocks"], expected);
}

#[tokio::test]
async fn each_reason_to_finish_is_told_in_openais_words() {
    for (theirs, ours) in [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
    ] {
        let mut message = message(&json!({}));
        message["stop_reason"] = theirs.into();
        let whole: Value = whole_answer(Dialect::Anthropic, &message).await.json().unwrap();
        assert_eq!(whole["choices"][0]["finish_reason"], ours);
        let chunks = streamed_answer(Dialect::Anthropic, &anthropic_stream(&[], theirs)).await;
        assert_eq!(chunks[0]["choices"][0]["finish_reason"], ours);
    }
}

#[tokio::test]
async fn cohere_answers_whole_and_streamed() {
    let whole = json!({
        "generation_id": "g", "text": "Hi", "finish_reason": "COMPLETE", "meta": { "tokens": { "input_tokens": 5, "output_tokens": 2 } },
        "chat_history": [{ "role": "USER", "message": "Say hello" }, { "role": "CHATBOT", "message": "Hi" }],
    });
    let whole = whole_answer(Dialect::Cohere, &whole).await;
    assert_eq!((&*whole.content(), whole.usage()), ("Hi", Some(&TokenUsage::new(5, 2))));
    let line = |value: Value| format!("{value}\n");
    let chunks = streamed_answer(
        Dialect::Cohere,
        &[
            line(json!({ "is_finished": false, "event_type": "stream-start", "generation_id": "g" })),
            line(json!({ "is_finished": false, "event_type": "text-generation", "text": "Hi" })),
            line(json!({
                "is_finished": true, "event_type": "stream-end", "finish_reason": "MAX_TOKENS",
                "response": { "meta": { "tokens": { "input_tokens": 5, "output_tokens": 1 } } },
            })),
        ],
    )
    .await;
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "Hi" }));
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "length");
    assert_eq!(chunks[2]["usage"]["total_tokens"], 6);
}

#[tokio::test]
async fn of_cohere_counts_what_it_bills_and_not_what_its_model_was_given() {
    let meta = json!({
        "billed_units": { "input_tokens": 5.0, "output_tokens": 2.0 }, "tokens": { "input_tokens": 71, "output_tokens": 2 },
    });
    let said = json!([{ "role": "CHATBOT", "message": "Hi" }]);
    let whole = json!({ "text": "Hi", "finish_reason": "COMPLETE", "meta": meta, "chat_history": said });
    let whole = whole_answer(Dialect::Cohere, &whole).await;
    assert_eq!(whole.usage(), Some(&TokenUsage::new(5, 2)));
    let end = json!({
        "is_finished": true, "event_type": "stream-end", "finish_reason": "COMPLETE", "response": { "meta": meta },
    });
    let chunks = streamed_answer(Dialect::Cohere, &[format!("{end}\n")]).await;
    let usage = json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7 });
    assert_eq!(chunks.last().unwrap()["usage"], usage);
}

/// Of Gemini, with these parts and a reason to finish.
fn candidate(parts: &Value, reason: Option<&str>) -> Value {
    json!({ "candidates": [{ "content": { "role": "model", "parts": parts }, "finishReason": reason }] })
}

#[tokio::test]
async fn images_of_gemini_come_whole_and_streamed() {
    let part = |data: &str| json!({ "inlineData": { "mimeType": "image/png", "data": data } });
    let image = |data: &str| json!([{ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } }]);
    let answer = whole_answer(Dialect::Gemini, &candidate(&json!([part("QQ==")]), Some("STOP"))).await;
    let answer: Value = answer.json().unwrap();
    assert_eq!(answer["choices"][0]["message"]["images"], image("QQ=="));

    for pieces in [
        [candidate(&json!([part("QQ==")]), None), candidate(&json!([{ "text": "Done" }]), Some("STOP"))],
        [candidate(&json!([part("QQ==")]), None), candidate(&json!([]), Some("STOP"))],
        [candidate(&json!([{ "text": "Look" }]), None), candidate(&json!([part("QQ==")]), Some("STOP"))],
    ] {
        let chunks = streamed_answer(Dialect::Gemini, &pieces.each_ref().map(data)).await;
        let images: Vec<_> = chunks.iter().map(|c| &c["choices"][0]["delta"]["images"]).collect();
        let images: Vec<_> = images.into_iter().filter(|images| !images.is_null()).collect();
        assert_eq!(images, [&image("QQ==")], "{pieces:?}");
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_chunk_of_gemini_that_says_nothing_is_passed_over() {
    let once = candidate(&json!([{ "text": "Once" }]), None);
    let end = candidate(&json!([{ "text": " more" }]), Some("STOP"));
    for nothing in
        [json!({}), json!({ "usageMetadata": { "promptTokenCount": 7 }, "modelVersion": "gemini-x" })]
    {
        for pieces in [[&nothing, &once, &end], [&once, &nothing, &end]] {
            let chunks = streamed_answer(Dialect::Gemini, &pieces.map(data)).await;
            let texts: Vec<_> =
                chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
            assert_eq!(texts.concat(), "Once more", "{pieces:?}");
        }
    }
}
