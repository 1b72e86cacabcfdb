use crate::server::{Server, Step, part_of, send, stream_head};
use llm_layers::{
    ChatBody, Error, ErrorKind, LlmRequest, LlmResponse, ProviderFailure, ResponseBody, StreamChunk,
    provider::genai::{Dialect, Genai},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) fn ask(model: &str, body: Value) -> LlmRequest {
    LlmRequest::new(model, ChatBody::parse(body.to_string()).unwrap())
}

pub(crate) fn hello(model: &str, streaming: bool) -> LlmRequest {
    ask(model, json!({ "messages": [{ "role": "user", "content": "Say hello" }], "stream": streaming }))
}

/// A model that the dialect has a name for.
pub(crate) fn model(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Anthropic => "claude-sonnet-4-5",
        Dialect::Gemini | Dialect::Vertex => "gemini-2.5-flash",
        Dialect::Bedrock => "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
        Dialect::Cohere => "command-r",
        _ => "qwen3:8b",
    }
}

pub(crate) fn leaf(dialect: Dialect, server: &Server) -> Genai {
    let url = server.url.strip_suffix("/v1").unwrap();
    Genai::new(dialect, url).unwrap().with_provider_name("acme").with_api_key("secret-key").unwrap()
}

/// A whole answer of JSON.
pub(crate) fn whole(status: u16, headers: &str, body: &str) -> Step {
    let length = body.len();
    send(format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n{body}"
    ))
}

/// A stream of these pieces, and its end.
pub(crate) fn streamed<T: AsRef<[u8]>>(pieces: &[T]) -> Vec<Step> {
    let pieces = pieces.iter().map(|piece| part_of(piece.as_ref()));
    std::iter::once(stream_head()).chain(pieces).chain([send("0\r\n\r\n")]).collect()
}

pub(crate) fn data(event: &Value) -> String {
    format!("data: {event}\n\n")
}

pub(crate) fn event(event: &Value) -> String {
    format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())
}

/// A frame of a stream of Bedrock's.
pub(crate) fn bedrock_frame(event: &str, payload: &Value) -> Vec<u8> {
    bedrock("event", (":event-type", event), payload)
}

/// The frame that ends a stream of Bedrock's in the place of the rest.
pub(crate) fn bedrock_exception(kind: &str, payload: &Value) -> Vec<u8> {
    bedrock("exception", (":exception-type", kind), payload)
}

fn bedrock(message: &str, (name, kind): (&str, &str), payload: &Value) -> Vec<u8> {
    let header = |name: &str, value: &str| {
        let lengths = (u8::try_from(name.len()).unwrap(), u16::try_from(value.len()).unwrap().to_be_bytes());
        [&[lengths.0][..], name.as_bytes(), &[7], &lengths.1, value.as_bytes()].concat()
    };
    let headers = [header(":message-type", message), header(name, kind)].concat();
    let payload = payload.to_string();
    let lengths = [16 + headers.len() + payload.len(), headers.len()];
    let mut frame = lengths.map(|length| u32::try_from(length).unwrap().to_be_bytes()).concat();
    frame.extend(crc32(&frame).to_be_bytes());
    frame.extend(headers);
    frame.extend(payload.as_bytes());
    frame.extend(crc32(&frame).to_be_bytes());
    frame
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

pub(crate) async fn read(answer: LlmResponse) -> (Vec<StreamChunk>, Option<Error>) {
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
    let mut read = Vec::new();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) => read.push(chunk),
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

/// All chunks of a stream that ends well, as JSON, without the terminal one.
pub(crate) async fn chunks(answer: LlmResponse) -> Vec<Value> {
    let (mut chunks, error) = read(answer).await;
    assert!(error.is_none(), "{error:?}");
    assert!(chunks.pop().unwrap().is_final());
    chunks.iter().map(|chunk| chunk.json().unwrap()).collect()
}

pub(crate) fn completion(answer: LlmResponse) -> Value {
    let ResponseBody::Complete(completion) = answer.body else { panic!("not whole") };
    completion.json().unwrap()
}

/// The error that a call ends in, before the head or in its stream.
pub(crate) async fn failure(leaf: Genai, request: LlmRequest) -> Error {
    match leaf.oneshot(request).await {
        Err(error) => error,
        Ok(answer) if matches!(answer.body, ResponseBody::Stream(_)) => {
            read(answer).await.1.expect("an error")
        }
        Ok(answer) => panic!("an answer: {:?}", answer.body),
    }
}

/// The error of a call that has no answer, not even the beginning of a stream.
pub(crate) async fn refusal(leaf: Genai, request: LlmRequest) -> Error {
    leaf.oneshot(request).await.expect_err("a refusal, and no answer")
}

pub(crate) fn facts(error: &Error) -> &ProviderFailure {
    match error.kind() {
        ErrorKind::Provider(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// What clients of OpenAI's dialect demand of the chunks of a stream.
pub(crate) fn check_chunks(chunks: &[Value]) {
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk", "{chunk}");
        assert!(
            chunk["id"].is_string() && chunk["model"].is_string() && chunk["created"].is_u64(),
            "{chunk}"
        );
        assert_eq!(chunk["id"], chunks[0]["id"]);
        for choice in chunk["choices"].as_array().unwrap() {
            assert_eq!(choice["index"], 0);
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                assert!(call["index"].is_u64(), "{chunk}");
            }
        }
    }
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let finished: Vec<_> = chunks.iter().filter(|c| c["choices"][0]["finish_reason"].is_string()).collect();
    assert_eq!(finished.len(), 1);
}

/// The calls of tools of a stream: id, name and arguments.
pub(crate) fn calls(chunks: &[Value]) -> Vec<(String, String, String)> {
    let mut calls: Vec<(String, String, String)> = Vec::new();
    for call in
        chunks.iter().flat_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten())
    {
        let at = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
        if at == calls.len() {
            assert_eq!(call["type"], "function");
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            calls.push((text(&call["id"]), text(&call["function"]["name"]), String::new()));
        }
        calls[at].2 += call["function"]["arguments"].as_str().unwrap_or_default();
    }
    calls
}
