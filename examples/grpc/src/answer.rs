//! Answers as the contract tells them.
//!
//! What xAI's client does with a chunk decides how chunks are made: it joins texts, but takes tool calls as they come, so that
//! each must be whole; and role, finish reason, id, model and usage are those of the last chunk that has the like.

use crate::xai;
use llm_layers::{
    ChoiceFinish, Completion, Error, ErrorClass, FinishReason, LlmResponse, ResponseBody, StreamChunk,
    TokenUsage, http::FillIn,
};
use serde_json::Value;
use std::collections::BTreeMap;

/// How much of calls that are still coming is kept for one answer.
const MAX_CALLS: usize = 8 << 20;

/// The whole answer; one that came as a stream after all is read to its end.
pub(crate) async fn whole(
    answer: LlmResponse,
    choices: u64,
) -> Result<xai::GetChatCompletionResponse, Error> {
    match answer.body {
        ResponseBody::Complete(completion) => {
            let mut fill = FillIn::new(answer.model.clone()).with_choices(choices);
            Ok(completed(&completion, &parse(&fill.completion(&completion), &answer.model)?))
        }
        ResponseBody::Stream(mut stream) => {
            let (mut chunks, mut whole) =
                (Chunks::new(&answer.model, choices), xai::GetChatCompletionResponse::default());
            while let Some(chunk) = stream.next().await {
                if let Some(chunk) = chunks.next(&chunk?)? {
                    add(&mut whole, chunk);
                }
            }
            Ok(whole)
        }
    }
}

fn completed(completion: &Completion, json: &Value) -> xai::GetChatCompletionResponse {
    let outputs = items(&json["choices"]).map(|choice| {
        let index = index(choice);
        let message = &choice["message"];
        let calls: Vec<_> = items(&message["tool_calls"]).map(call).map(named).collect();
        let finish_reason = match completion.finish_reasons().iter().find(|finish| finish.index == index) {
            Some(finish) => finish_reason(&finish.reason, !calls.is_empty()),
            None => finish_reason(&FinishReason::Stop, !calls.is_empty()),
        };
        xai::CompletionOutput {
            finish_reason: finish_reason.into(),
            index: number(index),
            message: Some(xai::CompletionMessage {
                content: text(message),
                role: xai::MessageRole::RoleAssistant.into(),
                tool_calls: calls,
                reasoning_content: thoughts(message),
                ..Default::default()
            }),
            logprobs: log_probs(&choice["logprobs"]),
        }
    });
    xai::GetChatCompletionResponse {
        id: string(&json["id"]),
        outputs: outputs.collect(),
        created: created(json),
        model: string(&json["model"]),
        system_fingerprint: string(&json["system_fingerprint"]),
        usage: completion.usage().map(usage),
        citations: items(&json["citations"]).map(string).collect(),
        service_tier: service_tier(json).into(),
    }
}

/// Makes messages of a stream's chunks; one for each answer.
pub(crate) struct Chunks {
    fill: FillIn,
    /// Of the last chunk, without what is said only once.
    envelope: xai::GetChatCompletionChunk,
    /// Calls that are still coming, by choice and number.
    calls: BTreeMap<(u32, u64), xai::ToolCall>,
    call_bytes: usize,
    model: String,
}

impl Chunks {
    pub(crate) fn new(model: &str, choices: u64) -> Self {
        Self {
            fill: FillIn::new(model).with_choices(choices),
            envelope: xai::GetChatCompletionChunk::default(),
            calls: BTreeMap::new(),
            call_bytes: 0,
            model: model.to_owned(),
        }
    }

    /// The message of the next chunk; none for one that says nothing, and for the terminal one, unless calls are left.
    pub(crate) fn next(&mut self, chunk: &StreamChunk) -> Result<Option<xai::GetChatCompletionChunk>, Error> {
        let mut outputs = Vec::new();
        let mut citations = Vec::new();
        let mut says_usage = false;
        if !chunk.data().is_empty() {
            let json = parse(&self.fill.chunk(chunk), &self.model)?;
            self.envelope.id = string(&json["id"]);
            self.envelope.model = string(&json["model"]);
            self.envelope.created = self.envelope.created.or_else(|| created(&json));
            if let Some(fingerprint) = json["system_fingerprint"].as_str() {
                self.envelope.system_fingerprint = fingerprint.to_owned();
            }
            if json["service_tier"].is_string() {
                self.envelope.service_tier = service_tier(&json).into();
            }
            if let Some(used) = chunk.usage() {
                self.envelope.usage = Some(usage(used));
                says_usage = true;
            }
            citations = items(&json["citations"]).map(string).collect();
            for choice in items(&json["choices"]) {
                let finish = chunk.finish_reasons().iter().find(|finish| finish.index == index(choice));
                outputs.extend(self.output(choice, finish)?);
            }
        }
        if chunk.is_final() {
            // Of providers that never say why a choice ended.
            let left: Vec<u32> = self.calls.keys().map(|(choice, _)| *choice).collect();
            for choice in left {
                let tool_calls = self.take_calls(choice);
                if !tool_calls.is_empty() {
                    outputs.push(output(
                        choice,
                        xai::FinishReason::ReasonToolCalls,
                        xai::Delta { tool_calls, ..said() },
                    ));
                }
            }
        }
        if outputs.is_empty() && citations.is_empty() && !says_usage {
            return Ok(None);
        }
        Ok(Some(xai::GetChatCompletionChunk { outputs, citations, ..self.envelope.clone() }))
    }

    fn output(
        &mut self,
        choice: &Value,
        finish: Option<&ChoiceFinish>,
    ) -> Result<Option<xai::CompletionOutputChunk>, Error> {
        let (index, delta) = (index(choice), &choice["delta"]);
        for part in items(&delta["tool_calls"]) {
            self.add_call(index, part)?;
        }
        let mut delta = xai::Delta { content: text(delta), reasoning_content: thoughts(delta), ..said() };
        let mut reason = xai::FinishReason::ReasonInvalid;
        if let Some(finish) = finish {
            delta.tool_calls = self.take_calls(index);
            reason = finish_reason(&finish.reason, !delta.tool_calls.is_empty());
        }
        let logprobs = log_probs(&choice["logprobs"]);
        let says_nothing = delta == said() && finish.is_none() && logprobs.is_none();
        Ok((!says_nothing).then(|| xai::CompletionOutputChunk { logprobs, ..output(index, reason, delta) }))
    }

    fn add_call(&mut self, choice: u32, part: &Value) -> Result<(), Error> {
        let number = part["index"].as_u64().unwrap_or(0);
        let xai::ToolCall { id, tool, .. } = call(part);
        let Some(xai::tool_call::Tool::Function(more)) = tool else { return Ok(()) };
        self.call_bytes += id.len() + more.name.len() + more.arguments.len() + size_of::<xai::ToolCall>();
        if self.call_bytes > MAX_CALLS {
            return Err(Error::provider(ErrorClass::TooLarge, "", &*self.model));
        }
        let call = self.calls.entry((choice, number)).or_insert_with(|| function_call(String::new(), "", ""));
        if call.id.is_empty() {
            call.id = id;
        }
        if let Some(xai::tool_call::Tool::Function(function)) = &mut call.tool {
            function.name += &more.name;
            function.arguments += &more.arguments;
        }
        Ok(())
    }

    fn take_calls(&mut self, choice: u32) -> Vec<xai::ToolCall> {
        let later = self.calls.split_off(&(choice, 0));
        let (taken, kept): (Vec<_>, Vec<_>) = later.into_iter().partition(|((of, _), _)| *of == choice);
        self.calls.extend(kept);
        taken.into_iter().map(|(_, call)| named(call)).collect()
    }
}

/// As xAI's client does it.
fn add(whole: &mut xai::GetChatCompletionResponse, chunk: xai::GetChatCompletionChunk) {
    let xai::GetChatCompletionChunk {
        id,
        outputs,
        created,
        model,
        system_fingerprint,
        usage,
        citations,
        service_tier,
    } = chunk;
    (whole.id, whole.model, whole.created, whole.usage) = (id, model, created, usage);
    (whole.system_fingerprint, whole.service_tier) = (system_fingerprint, service_tier);
    whole.citations.extend(citations);
    for chunk in outputs {
        let at = whole.outputs.iter().position(|output| output.index == chunk.index).unwrap_or_else(|| {
            whole.outputs.push(xai::CompletionOutput { index: chunk.index, ..Default::default() });
            whole.outputs.len() - 1
        });
        let output = &mut whole.outputs[at];
        output.finish_reason = chunk.finish_reason;
        let (delta, message) = (chunk.delta.unwrap_or_default(), output.message.get_or_insert_default());
        message.role = delta.role;
        message.content += &delta.content;
        message.reasoning_content += &delta.reasoning_content;
        message.tool_calls.extend(delta.tool_calls);
        if let Some(more) = chunk.logprobs {
            output.logprobs.get_or_insert_default().content.extend(more.content);
        }
    }
}

// ===== pieces =====

/// Half of a character, as of those that a provider cuts in two, is told as U+FFFD: the contract knows only whole ones.
fn parse(json: &[u8], model: &str) -> Result<Value, Error> {
    let read = serde_json::from_slice(json).or_else(|_| serde_json::from_slice(&with_whole_characters(json)));
    read.map_err(|error| Error::provider(ErrorClass::BadFrame, "", model).with_source(error))
}

fn with_whole_characters(json: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(json.len()), json);
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        let (before, escape) = rest.split_at(at);
        out.extend_from_slice(before);
        let (length, is_whole) = match (code_unit(escape), escape.get(6..).and_then(code_unit)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => (12, true),
            (Some(0xD800..=0xDFFF), _) => (6, false),
            (Some(_), _) => (6, true),
            (None, _) => (escape.len().min(2), true),
        };
        let (escape, after) = escape.split_at(length);
        out.extend_from_slice(if is_whole { escape } else { b"\\ufffd" });
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

/// Of an escape such as `\ud83d`.
fn code_unit(escape: &[u8]) -> Option<u16> {
    let digits = escape.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

fn said() -> xai::Delta {
    xai::Delta { role: xai::MessageRole::RoleAssistant.into(), ..Default::default() }
}

fn output(index: u32, reason: xai::FinishReason, delta: xai::Delta) -> xai::CompletionOutputChunk {
    xai::CompletionOutputChunk {
        delta: Some(delta),
        logprobs: None,
        finish_reason: reason.into(),
        index: number(index),
    }
}

/// What is filtered, or ends for a reason that the contract has no name for, is not called a stop.
fn finish_reason(reason: &FinishReason, has_calls: bool) -> xai::FinishReason {
    match reason {
        FinishReason::Length => xai::FinishReason::ReasonMaxLen,
        FinishReason::ToolCalls => xai::FinishReason::ReasonToolCalls,
        // Some say "stop" whatever they stop for.
        FinishReason::Stop if has_calls => xai::FinishReason::ReasonToolCalls,
        FinishReason::Stop => xai::FinishReason::ReasonStop,
        _ => xai::FinishReason::ReasonInvalid,
    }
}

/// In the contract, as at xAI, thoughts are counted beside the text, and both are in the total.
fn usage(usage: &TokenUsage) -> xai::SamplingUsage {
    let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
    let reasoning = usage.reasoning_tokens.unwrap_or(0).min(output);
    xai::SamplingUsage {
        completion_tokens: number(output - reasoning),
        prompt_tokens: number(input),
        total_tokens: number(input.saturating_add(output)),
        prompt_text_tokens: number(input),
        reasoning_tokens: number(reasoning),
        cached_prompt_text_tokens: number(usage.cache_read_tokens.unwrap_or(0)),
        ..Default::default()
    }
}

fn call(json: &Value) -> xai::ToolCall {
    let function = &json["function"];
    let arguments = match &function["arguments"] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        // Some send the object itself.
        other => other.to_string(),
    };
    function_call(string(&json["id"]), &string(&function["name"]), &arguments)
}

fn function_call(id: String, name: &str, arguments: &str) -> xai::ToolCall {
    let function = xai::FunctionCall { name: name.to_owned(), arguments: arguments.to_owned() };
    xai::ToolCall {
        id,
        r#type: xai::ToolCallType::ClientSideTool.into(),
        status: xai::ToolCallStatus::Completed.into(),
        error_message: None,
        tool: Some(xai::tool_call::Tool::Function(function)),
    }
}

/// A result is told by the call's id.
fn named(mut call: xai::ToolCall) -> xai::ToolCall {
    if call.id.is_empty() {
        call.id = format!("call_{:032x}", fastrand::u128(..));
    }
    call
}

fn text(said: &Value) -> String {
    let text = joined(&said["content"]);
    if text.is_empty() { string(&said["refusal"]) } else { text }
}

/// Those beside the content, or else, as Mistral has them, among its parts.
fn thoughts(said: &Value) -> String {
    let beside = ["reasoning_content", "reasoning"].map(|name| string(&said[name]));
    let beside = beside.into_iter().find(|thoughts| !thoughts.is_empty());
    beside.unwrap_or_else(|| items(&said["content"]).map(|part| joined(&part["thinking"])).collect())
}

/// A text, or those of its parts.
fn joined(content: &Value) -> String {
    match content {
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        content => string(content),
    }
}

fn log_probs(json: &Value) -> Option<xai::LogProbs> {
    let bytes =
        |json: &Value| items(&json["bytes"]).filter_map(|byte| byte.as_u64()?.try_into().ok()).collect();
    let top = |json: &Value| xai::TopLogProb {
        token: string(&json["token"]),
        logprob: json["logprob"].as_f64().unwrap_or_default() as f32,
        bytes: bytes(json),
    };
    let content = json["content"].as_array()?.iter().map(|json| {
        let xai::TopLogProb { token, logprob, bytes } = top(json);
        xai::LogProb { token, logprob, bytes, top_logprobs: items(&json["top_logprobs"]).map(top).collect() }
    });
    Some(xai::LogProbs { content: content.collect() })
}

fn service_tier(json: &Value) -> xai::ServiceTier {
    match json["service_tier"].as_str() {
        Some("default") => xai::ServiceTier::Default,
        Some("priority") => xai::ServiceTier::Priority,
        _ => xai::ServiceTier::Unspecified,
    }
}

/// Some tell milliseconds.
fn created(json: &Value) -> Option<prost_types::Timestamp> {
    let said = json["created"].as_f64().filter(|said| said.is_finite())?;
    let seconds = if said > 1e11 { said / 1e3 } else { said };
    Some(prost_types::Timestamp { seconds: seconds as i64, nanos: 0 })
}

fn items(json: &Value) -> impl Iterator<Item = &Value> {
    json.as_array().into_iter().flatten()
}

fn index(choice: &Value) -> u32 {
    choice["index"].as_u64().unwrap_or(0).try_into().unwrap_or(u32::MAX)
}

fn string(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

/// The contract's numbers are small.
fn number(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use llm_layers::ChunkStream;
    use serde_json::json;

    fn completion(json: &Value) -> LlmResponse {
        LlmResponse::new("acme/one", Completion::parse(json.to_string()).unwrap())
    }

    fn chunk(json: &Value) -> StreamChunk {
        StreamChunk::parse(json.to_string()).unwrap()
    }

    fn messages(chunks: &[StreamChunk]) -> Vec<xai::GetChatCompletionChunk> {
        let mut made = Chunks::new("acme/one", 1);
        chunks.iter().filter_map(|chunk| made.next(chunk).unwrap()).collect()
    }

    fn function(call: &xai::ToolCall) -> (&str, &str, &str) {
        match &call.tool {
            Some(xai::tool_call::Tool::Function(function)) => (&call.id, &function.name, &function.arguments),
            None => panic!("no function"),
        }
    }

    const ROLE: i32 = xai::MessageRole::RoleAssistant as i32;

    #[tokio::test]
    async fn a_whole_answer_is_told_in_full() {
        let answer = completion(&json!({
            "id": "c-1", "created": 1_700_000_000_123_i64, "model": "one-0613", "system_fingerprint": "fp",
            "service_tier": "default", "citations": ["https://example.com"],
            "choices": [{
                "index": 0, "finish_reason": "stop",
                "message": {
                    "role": "assistant", "content": null, "reasoning_content": "hm",
                    "tool_calls": [{ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } }],
                },
                "logprobs": { "content": [{ "token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": [
                    { "token": "y", "logprob": -1.5, "bytes": null }] }] },
            }],
            "usage": {
                "prompt_tokens": 10, "completion_tokens": 7, "total_tokens": 17,
                "prompt_tokens_details": { "cached_tokens": 4 }, "completion_tokens_details": { "reasoning_tokens": 5 },
            },
        }));
        let told = whole(answer, 1).await.unwrap();
        assert_eq!((&*told.id, &*told.model, &*told.system_fingerprint), ("c-1", "one-0613", "fp"));
        assert_eq!(told.created.unwrap().seconds, 1_700_000_000);
        assert_eq!(
            (told.service_tier(), &told.citations[..]),
            (xai::ServiceTier::Default, &["https://example.com".to_owned()][..])
        );
        let usage = told.usage.unwrap();
        assert_eq!(
            (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens, usage.total_tokens),
            (10, 2, 5, 17)
        );
        assert_eq!(usage.cached_prompt_text_tokens, 4);
        let [output] = &told.outputs[..] else { panic!("one output") };
        assert_eq!(output.finish_reason(), xai::FinishReason::ReasonToolCalls);
        let message = output.message.as_ref().unwrap();
        assert_eq!((message.role, &*message.content, &*message.reasoning_content), (ROLE, "", "hm"));
        assert_eq!(function(&message.tool_calls[0]), ("a", "f", "{}"));
        let [log] = &output.logprobs.as_ref().unwrap().content[..] else { panic!("one token") };
        assert_eq!(
            (&*log.token, log.logprob, &log.bytes[..], log.top_logprobs.len()),
            ("x", -0.5, &b"x"[..], 1)
        );
    }

    #[tokio::test]
    async fn half_a_character_costs_nobody_an_answer() {
        let said = r#""a\ud83d b\ude00 \ud83d\ude00 \\ud83d \u00e4\n""#;
        let told = "a\u{fffd} b\u{fffd} \u{1f600} \\ud83d \u{e4}\n";
        let answer = Completion::parse(format!(r#"{{"choices":[{{"message":{{"content":{said}}}}}]}}"#));
        let answer = whole(LlmResponse::new("acme/one", answer.unwrap()), 1).await.unwrap();
        assert_eq!(answer.outputs[0].message.as_ref().unwrap().content, told);
        let chunk = StreamChunk::parse(format!(r#"{{"choices":[{{"delta":{{"content":{said}}}}}]}}"#));
        let made = messages(&[chunk.unwrap()]);
        assert_eq!(made[0].outputs[0].delta.as_ref().unwrap().content, told);
    }

    #[tokio::test]
    async fn a_number_that_nothing_can_hold_is_the_providers_failure() {
        let answer = r#"{"choices":[{"message":{"content":"Hi"}}],"seed":1e999}"#;
        let answer = LlmResponse::new("acme/one", Completion::parse(answer).unwrap());
        let error = whole(answer, 1).await.unwrap_err();
        assert_eq!(llm_layers::http::tonic::code(&error), tonic::Code::Unavailable);
        let chunk = StreamChunk::parse(r#"{"choices":[{"delta":{"content":"Hi"}}],"seed":1e999}"#);
        let error = Chunks::new("acme/one", 1).next(&chunk.unwrap()).unwrap_err();
        assert_eq!(llm_layers::http::tonic::code(&error), tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn what_a_provider_forgets_is_filled_in() {
        let told =
            whole(completion(&json!({ "choices": [{ "message": { "content": "Hi" } }] })), 1).await.unwrap();
        assert!(!told.id.is_empty() && told.created.unwrap().seconds > 0);
        assert_eq!((&*told.model, told.usage), ("acme/one", None));
        assert_eq!(told.outputs[0].finish_reason(), xai::FinishReason::ReasonStop);
        assert_eq!(told.outputs[0].message.as_ref().unwrap().role, ROLE);
    }

    #[test]
    fn calls_are_told_whole_with_the_reason_and_usage_last() {
        let part = |index: u64, id: Option<&str>, name: Option<&str>, arguments: &str| {
            chunk(&json!({ "id": "c-1", "choices": [{ "index": 0, "delta": { "tool_calls": [
                { "index": index, "id": id, "function": { "name": name, "arguments": arguments } }] } }] }))
        };
        let told = messages(&[
            StreamChunk::role(),
            part(0, Some("a"), Some("f"), "{\"x\""),
            part(0, None, None, ":1}"),
            part(1, Some("b"), Some("g"), ""),
            part(1, None, None, "{}"),
            chunk(&json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "tool_calls" }] })),
            StreamChunk::usage_only(TokenUsage::new(3, 9)),
            StreamChunk::end(),
        ]);
        let [calls, usage] = &told[..] else { panic!("{told:?}") };
        assert_eq!(calls.outputs[0].finish_reason(), xai::FinishReason::ReasonToolCalls);
        let delta = calls.outputs[0].delta.as_ref().unwrap();
        assert_eq!(delta.role, ROLE);
        assert_eq!(
            delta.tool_calls.iter().map(function).collect::<Vec<_>>(),
            [("a", "f", "{\"x\":1}"), ("b", "g", "{}")]
        );
        // The one that was given to the first chunk, which had none.
        assert_eq!(usage.id, calls.id);
        assert_eq!((usage.outputs.len(), usage.usage.unwrap().total_tokens), (0, 12));
    }

    #[test]
    fn a_call_whose_pieces_have_other_ids_is_one_call() {
        let part = |call: Value| chunk(&json!({ "choices": [{ "delta": { "tool_calls": [call] } }] }));
        let told = messages(&[
            part(json!({ "index": 0, "id": "a", "function": { "name": "f", "arguments": "" } })),
            part(json!({ "index": 0, "id": "b", "function": { "arguments": "{}" } })),
            StreamChunk::end(),
        ]);
        let [calls] = &told[..] else { panic!("{told:?}") };
        let calls = &calls.outputs[0].delta.as_ref().unwrap().tool_calls;
        assert_eq!(calls.iter().map(function).collect::<Vec<_>>(), [("a", "f", "{}")]);
    }

    #[tokio::test]
    async fn thoughts_among_the_parts_of_a_content_are_thoughts() {
        let parts = json!([
            { "type": "thinking", "thinking": [{ "type": "text", "text": "h" }, { "type": "text", "text": "m" }] },
            { "type": "text", "text": "Hi" },
        ]);
        let answer = completion(&json!({ "choices": [{ "message": { "content": parts } }] }));
        let told = whole(answer, 1).await.unwrap();
        let message = told.outputs[0].message.as_ref().unwrap();
        assert_eq!((&*message.reasoning_content, &*message.content), ("hm", "Hi"));
        let told = messages(&[chunk(&json!({ "choices": [{ "delta": { "content": parts } }] }))]);
        let delta = told[0].outputs[0].delta.as_ref().unwrap();
        assert_eq!((&*delta.reasoning_content, &*delta.content), ("hm", "Hi"));
    }

    #[test]
    fn calls_of_a_stream_that_gives_no_reason_are_told_at_its_end() {
        let call = json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [
            { "function": { "name": "f", "arguments": "{}" } }] } }] });
        let told = messages(&[chunk(&call), StreamChunk::end()]);
        let [calls] = &told[..] else { panic!("{told:?}") };
        let delta = calls.outputs[0].delta.as_ref().unwrap();
        assert!(delta.tool_calls[0].id.starts_with("call_"));
    }

    #[tokio::test]
    async fn a_stream_where_a_whole_answer_was_asked_for_is_read_to_its_end() {
        let chunks = [
            StreamChunk::text("Hello"),
            StreamChunk::text(", you"),
            StreamChunk::finish(&FinishReason::Length),
            StreamChunk::usage_only(TokenUsage::new(3, 2)),
            StreamChunk::end(),
        ];
        let stream = ChunkStream::new(tokio_stream::iter(chunks.map(Ok)));
        let told = whole(LlmResponse::new("acme/one", stream), 1).await.unwrap();
        let [output] = &told.outputs[..] else { panic!("one output") };
        assert_eq!(output.message.as_ref().unwrap().content, "Hello, you");
        assert_eq!(output.finish_reason(), xai::FinishReason::ReasonMaxLen);
        assert_eq!(told.usage.unwrap().total_tokens, 5);
        assert!(!told.id.is_empty());
    }

    #[test]
    fn calls_without_end_are_not_kept_without_end() {
        let piece = "x".repeat(1 << 20);
        let part = chunk(&json!({ "choices": [{ "index": 0, "delta": { "tool_calls": [
            { "index": 0, "function": { "arguments": piece } }] } }] }));
        let mut made = Chunks::new("acme/one", 1);
        let failed = (0..9).find_map(|_| made.next(&part).err()).expect("a bound");
        assert_eq!(failed.class(), Some(ErrorClass::TooLarge));
    }

    #[test]
    fn only_a_stop_is_called_a_stop() {
        use FinishReason::{ContentFilter, Length, Other, Stop, ToolCalls};
        use xai::FinishReason::{ReasonInvalid, ReasonMaxLen, ReasonStop, ReasonToolCalls};
        for (reason, has_calls, told) in [
            (Stop, false, ReasonStop),
            (Stop, true, ReasonToolCalls),
            (ToolCalls, false, ReasonToolCalls),
            (Length, true, ReasonMaxLen),
            (ContentFilter, false, ReasonInvalid),
            ("model_length".into(), false, ReasonMaxLen),
            ("content_filter: PROHIBITED_CONTENT".into(), false, ReasonInvalid),
            (Other("abort".into()), false, ReasonInvalid),
        ] {
            assert_eq!(finish_reason(&reason, has_calls), told, "{reason:?}");
        }
    }
}
