//! Echo: what it says, and that it says it as a provider would.

use llm_layers::{ChatBody, LlmRequest, Message, Part, ResponseBody, StreamChunk, provider::Echo};
use serde_json::Value;
use tower::ServiceExt;

async fn whole(body: ChatBody) -> Value {
    let request = LlmRequest::new("org/m-1", body);
    let progress = request.progress.clone();
    let response = Echo::new().oneshot(request).await.unwrap();
    assert!(progress.is_dispatched());
    assert_eq!(response.model, "org/m-1");
    let ResponseBody::Complete(completion) = response.body else { panic!() };
    assert!(completion.has_content());
    completion.json().unwrap()
}

async fn streamed(body: ChatBody) -> Vec<StreamChunk> {
    let request = LlmRequest::new("m-1", body.with("stream", true).unwrap());
    let ResponseBody::Stream(mut stream) = Echo::new().oneshot(request).await.unwrap().body else { panic!() };
    let mut chunks = Vec::new();
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    chunks
}

#[tokio::test]
async fn the_last_user_message_comes_back_as_a_full_completion() {
    let body = ChatBody::builder().system("be  brief").user("one").assistant("two").user(" three  four\n");
    let answer = whole(body.assistant("five").build().unwrap()).await;
    assert_eq!(
        answer,
        serde_json::json!({
            "object": "chat.completion", "model": "org/m-1",
            "choices": [{ "index": 0, "message": { "role": "assistant", "content": " three  four\n" }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9 },
        })
    );
}

#[tokio::test]
async fn parts_are_joined_and_what_is_blank_is_answered_with_dots() {
    let parts = Message::user_parts([Part::text("a "), Part::image_url("data:"), Part::text("b")]);
    let said = |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(said(whole(ChatBody::builder().message(parts).build().unwrap()).await), "a b");
    for blank in [ChatBody::builder().user(" \n"), ChatBody::builder().system("only me")] {
        assert_eq!(said(whole(blank.build().unwrap()).await), "...");
    }
}

#[tokio::test]
async fn a_stream_is_role_words_finish_usage_and_the_end() {
    for text in ["one  two\nthree ", "é", " lead", " ", "a b"] {
        let chunks = streamed(ChatBody::builder().user(text).build().unwrap()).await;
        let expected = if text.trim().is_empty() { "..." } else { text };
        assert_eq!(chunks.iter().map(|c| c.content().into_owned()).collect::<String>(), expected);
        let (end, before) = chunks.split_last().unwrap();
        assert!(end.is_final());
        let json: Vec<Value> = before.iter().map(|chunk| chunk.json().unwrap()).collect();
        assert!(json.len() >= 4);
        for chunk in &json {
            assert_eq!((&chunk["object"], &chunk["model"]), (&"chat.completion.chunk".into(), &"m-1".into()));
        }
        assert_eq!(json[0]["choices"][0]["delta"]["role"], "assistant");
        let (finish, usage) = (&before[before.len() - 2], &before[before.len() - 1]);
        assert_eq!(finish.finish_reasons().len(), 1);
        assert!(usage.is_usage_only());
        let counted = usage.usage().unwrap().output_tokens;
        assert_eq!(counted, Some(expected.split_whitespace().count() as u64));
    }
    let words = streamed(ChatBody::builder().user("one  two\nthree ").build().unwrap()).await;
    let words: Vec<_> = words.iter().map(|c| c.content()).filter(|c| !c.is_empty()).collect();
    assert_eq!(words, ["one", "  two", "\nthree", " "]);
}
