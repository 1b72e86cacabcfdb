//! What the contract asks for, as an OpenAI-style chat request.

use crate::xai::{self, content::Content, image_url_content::Source, tool, tool_choice};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use llm_layers::{BodyLimits, Error, ErrorKind, InvalidReason, LlmRequest};
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;

/// The request for the stack; with `streaming`, for an answer as it comes.
///
/// What only xAI's own servers can do, such as searching the web, is refused: to leave it out would be another request.
pub(crate) fn read(
    request: &xai::GetCompletionsRequest,
    streaming: bool,
    limits: &BodyLimits,
) -> Result<LlmRequest, Error> {
    refuse_what_only_xai_has(request)?;
    let choices = request.n.filter(|n| *n != 1);
    let body = Body {
        model: &request.model,
        messages: messages(&request.messages)?,
        stream: streaming.then_some(true),
        max_tokens: request.max_tokens,
        temperature: number("temperature", request.temperature)?,
        top_p: number("top_p", request.top_p)?,
        frequency_penalty: number("frequency_penalty", request.frequency_penalty)?,
        presence_penalty: number("presence_penalty", request.presence_penalty)?,
        stop: &request.stop,
        seed: request.seed,
        n: choices,
        logprobs: request.logprobs.then_some(true),
        top_logprobs: request.top_logprobs,
        tools: tools(&request.tools)?,
        tool_choice: request.tool_choice.as_ref().map(tool_choice).transpose()?.flatten(),
        parallel_tool_calls: request.parallel_tool_calls,
        response_format: request.response_format.as_ref().map(response_format).transpose()?.flatten(),
        reasoning_effort: request.reasoning_effort.map(effort).transpose()?.flatten(),
        service_tier: match request.service_tier() {
            xai::ServiceTier::Unspecified => None,
            xai::ServiceTier::Default => Some("default"),
            xai::ServiceTier::Priority => Some("priority"),
        },
        user: some(&request.user),
        safety_identifier: request.safety_identifier.as_deref(),
    };
    let json = serde_json::to_vec(&body).map_err(|error| Error::new(ErrorKind::Other).with_source(error))?;
    LlmRequest::parse_within(json, limits)
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_p: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    frequency_penalty: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    presence_penalty: Option<f32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<i32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Typed<Tool<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<ToolChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<Format<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_effort: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    safety_identifier: Option<&'a str>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

/// `null` for a message that only calls tools.
#[derive(Serialize)]
#[serde(untagged)]
enum Text<'a> {
    Nothing,
    One(&'a str),
    Parts(Vec<Part<'a>>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part<'a> {
    Text { text: &'a str },
    ImageUrl { image_url: Image<'a> },
    File { file: File<'a> },
}

#[derive(Serialize)]
struct Image<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum File<'a> {
    Known { file_id: &'a str },
    Inline { filename: &'a str, file_data: String },
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    #[serde(flatten)]
    call: Typed<Function<'a>>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// `{"type":"function","function":{..}}`
#[derive(Serialize)]
#[serde(tag = "type", content = "function", rename_all = "snake_case")]
enum Typed<T> {
    Function(T),
}

#[derive(Serialize)]
struct Tool<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ToolChoice<'a> {
    Mode(&'static str),
    Named(Typed<Name<'a>>),
}

#[derive(Serialize)]
struct Name<'a> {
    name: &'a str,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Format<'a> {
    Text,
    JsonObject,
    JsonSchema { json_schema: Schema<'a> },
}

#[derive(Serialize)]
struct Schema<'a> {
    name: &'static str,
    strict: bool,
    schema: &'a RawValue,
}

fn messages(said: &[xai::Message]) -> Result<Vec<Message<'_>>, Error> {
    // Calls that no result has been seen of: in the contract a result need not say whose it is.
    let mut open: VecDeque<&str> = VecDeque::new();
    let mut all = Vec::with_capacity(said.len());
    for (at, message) in said.iter().enumerate() {
        let path = |member: &str| format!("messages[{at}].{member}");
        let role = match message.role() {
            xai::MessageRole::RoleUser => "user",
            xai::MessageRole::RoleAssistant => "assistant",
            xai::MessageRole::RoleSystem => "system",
            xai::MessageRole::RoleDeveloper => "developer",
            xai::MessageRole::RoleFunction => "function",
            xai::MessageRole::RoleTool => "tool",
            xai::MessageRole::InvalidRole => return Err(mistyped(path("role"), "the role of a message")),
        };
        let tool_calls = calls(&path, &message.tool_calls)?;
        let content = text(&path, message)?;
        // Thoughts, sealed or not, are their model's, and the next answer may be another's. What is nothing else is a
        // conversation that only xAI can open.
        let is_sealed = matches!(content, Text::Nothing) && tool_calls.is_empty();
        if is_sealed && !message.encrypted_content.is_empty() {
            return Err(unsupported(path("encrypted_content")));
        }
        let tool_call_id = match (role, message.tool_call_id.as_deref().filter(|id| !id.is_empty())) {
            ("tool", Some(id)) => {
                open.retain(|other| *other != id);
                Some(id)
            }
            ("tool", None) => Some(open.pop_front().ok_or_else(|| missing(path("tool_call_id")))?),
            _ => None,
        };
        if role == "assistant" {
            open = tool_calls.iter().map(|call| call.id).collect();
        }
        let content = match content {
            Text::Nothing if tool_calls.is_empty() => Text::One(""),
            content => content,
        };
        all.push(Message { role, content, name: some(&message.name), tool_calls, tool_call_id });
    }
    Ok(all)
}

fn calls<'a>(path: &impl Fn(&str) -> String, calls: &'a [xai::ToolCall]) -> Result<Vec<Call<'a>>, Error> {
    let call = |(at, call): (usize, &'a xai::ToolCall)| match &call.tool {
        Some(xai::tool_call::Tool::Function(function)) => {
            let function = Function { name: &function.name, arguments: &function.arguments };
            Ok(Call { id: &call.id, call: Typed::Function(function) })
        }
        None => Err(missing(path(&format!("tool_calls[{at}].function")))),
    };
    calls.iter().enumerate().map(call).collect()
}

fn text<'a>(path: &impl Fn(&str) -> String, message: &'a xai::Message) -> Result<Text<'a>, Error> {
    let is_blank = |content: &&xai::Content| content.content.as_ref() != Some(&Content::Text(String::new()));
    let parts: Vec<_> = message.content.iter().enumerate().filter(|(_, content)| is_blank(content)).collect();
    match parts.as_slice() {
        [] => Ok(Text::Nothing),
        [(_, xai::Content { content: Some(Content::Text(text)) })] => Ok(Text::One(text)),
        parts => {
            let part =
                |(at, content): &(usize, &'a xai::Content)| part(&path(&format!("content[{at}]")), content);
            parts.iter().map(part).collect::<Result<_, _>>().map(Text::Parts)
        }
    }
}

fn part<'a>(path: &str, content: &'a xai::Content) -> Result<Part<'a>, Error> {
    match &content.content {
        Some(Content::Text(text)) => Ok(Part::Text { text }),
        Some(Content::ImageUrl(image)) => match &image.source {
            Some(Source::ImageUrl(url)) => {
                let detail = match image.detail() {
                    xai::ImageDetail::DetailInvalid => None,
                    xai::ImageDetail::DetailAuto => Some("auto"),
                    xai::ImageDetail::DetailLow => Some("low"),
                    xai::ImageDetail::DetailHigh => Some("high"),
                };
                Ok(Part::ImageUrl { image_url: Image { url, detail } })
            }
            Some(Source::FileId(_)) => Err(unsupported(format!("{path}.image_url.file_id"))),
            None => Err(missing(format!("{path}.image_url"))),
        },
        Some(Content::File(file)) if !file.file_id.is_empty() => {
            Ok(Part::File { file: File::Known { file_id: &file.file_id } })
        }
        Some(Content::File(file)) if !file.url.is_empty() => Err(unsupported(format!("{path}.file.url"))),
        Some(Content::File(file)) => {
            let filename = some(&file.filename).unwrap_or("file");
            let media = some(&file.mime_type).unwrap_or("application/octet-stream");
            let file_data = format!("data:{media};base64,{}", BASE64_STANDARD.encode(&file.data));
            Ok(Part::File { file: File::Inline { filename, file_data } })
        }
        None => Err(missing(path.to_owned())),
    }
}

fn tools(offered: &[xai::Tool]) -> Result<Vec<Typed<Tool<'_>>>, Error> {
    offered.iter().enumerate().map(|(at, tool)| self::tool(at, tool)).collect()
}

fn tool(at: usize, tool: &xai::Tool) -> Result<Typed<Tool<'_>>, Error> {
    let function = match &tool.tool {
        Some(tool::Tool::Function(function)) => function,
        Some(_) => return Err(unsupported(format!("tools[{at}]"))),
        None => return Err(missing(format!("tools[{at}]"))),
    };
    let parameters = some(&function.parameters);
    let path = format!("tools[{at}].function.parameters");
    let parameters = parameters.map(|schema| self::schema(path, schema)).transpose()?;
    let strict = function.strict.then_some(true);
    Ok(Typed::Function(Tool {
        name: &function.name,
        description: some(&function.description),
        parameters,
        strict,
    }))
}

fn tool_choice(choice: &xai::ToolChoice) -> Result<Option<ToolChoice<'_>>, Error> {
    let mode = match &choice.tool_choice {
        Some(tool_choice::ToolChoice::FunctionName(name)) => {
            return Ok(Some(ToolChoice::Named(Typed::Function(Name { name }))));
        }
        Some(tool_choice::ToolChoice::Mode(mode)) => xai::ToolMode::try_from(*mode),
        None => return Ok(None),
    };
    Ok(Some(ToolChoice::Mode(match mode {
        Ok(xai::ToolMode::Auto) => "auto",
        Ok(xai::ToolMode::None) => "none",
        Ok(xai::ToolMode::Required) => "required",
        Ok(xai::ToolMode::Invalid) => return Ok(None),
        Err(_) => return Err(mistyped("tool_choice.mode".to_owned(), "auto, none or required")),
    })))
}

fn response_format(format: &xai::ResponseFormat) -> Result<Option<Format<'_>>, Error> {
    let kind = xai::FormatType::try_from(format.format_type);
    Ok(match kind.map_err(|_| mistyped("response_format.format_type".to_owned(), "a known format"))? {
        xai::FormatType::Invalid => None,
        xai::FormatType::Text => Some(Format::Text),
        xai::FormatType::JsonObject => Some(Format::JsonObject),
        xai::FormatType::JsonSchema => {
            let path = || "response_format.schema".to_owned();
            let schema = format.schema.as_deref().ok_or_else(|| missing(path()))?;
            let schema = self::schema(path(), schema)?;
            Some(Format::JsonSchema { json_schema: Schema { name: "answer", strict: true, schema } })
        }
    })
}

fn effort(effort: i32) -> Result<Option<&'static str>, Error> {
    Ok(match xai::ReasoningEffort::try_from(effort) {
        Ok(xai::ReasoningEffort::InvalidEffort) => None,
        Ok(xai::ReasoningEffort::EffortNone) => Some("none"),
        Ok(xai::ReasoningEffort::EffortLow) => Some("low"),
        Ok(xai::ReasoningEffort::EffortMedium) => Some("medium"),
        Ok(xai::ReasoningEffort::EffortHigh) => Some("high"),
        Ok(xai::ReasoningEffort::EffortXhigh) => Some("xhigh"),
        Err(_) => return Err(mistyped("reasoning_effort".to_owned(), "a known effort")),
    })
}

fn refuse_what_only_xai_has(request: &xai::GetCompletionsRequest) -> Result<(), Error> {
    let searches = request.search_parameters.as_ref().is_some_and(|search| {
        !matches!(search.mode(), xai::SearchMode::InvalidSearchMode | xai::SearchMode::OffSearchMode)
    });
    let continues = request.previous_response_id.as_deref().is_some_and(|id| !id.is_empty());
    for (is_asked, member) in [
        (searches, "search_parameters"),
        (continues, "previous_response_id"),
        (request.store_messages, "store_messages"),
        (request.agent_count.is_some_and(|count| count != 0), "agent_count"),
        (!request.guidelines.is_empty(), "guidelines"),
    ] {
        if is_asked {
            return Err(unsupported(member.to_owned()));
        }
    }
    Ok(())
}

// ===== pieces =====

/// In proto3 a text that is not there is empty.
fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// JSON knows no infinity.
fn number(member: &str, value: Option<f32>) -> Result<Option<f32>, Error> {
    match value {
        Some(value) if !value.is_finite() => Err(mistyped(member.to_owned(), "a finite number")),
        value => Ok(value),
    }
}

/// What the contract carries as text, and is an object of JSON.
fn schema(member: String, json: &str) -> Result<&RawValue, Error> {
    let object = serde_json::from_str::<&RawValue>(json).ok().filter(|json| json.get().starts_with('{'));
    object.ok_or_else(|| mistyped(member, "an object of JSON"))
}

fn missing(member: String) -> Error {
    invalid(member, InvalidReason::Missing)
}

fn unsupported(member: String) -> Error {
    invalid(member, InvalidReason::Unsupported)
}

fn mistyped(member: String, expected: &'static str) -> Error {
    invalid(member, InvalidReason::Mistyped { expected })
}

fn invalid(member: String, reason: InvalidReason) -> Error {
    Error::new(ErrorKind::InvalidRequest { member: Some(member.into()), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ask(messages: impl IntoIterator<Item = xai::Message>) -> xai::GetCompletionsRequest {
        let messages = messages.into_iter().collect();
        xai::GetCompletionsRequest { model: "fast".to_owned(), messages, ..Default::default() }
    }

    fn says(role: xai::MessageRole, texts: &[&str]) -> xai::Message {
        let content = texts.iter().map(|text| part(Content::Text((*text).to_owned()))).collect();
        xai::Message { role: role.into(), content, ..Default::default() }
    }

    fn part(content: Content) -> xai::Content {
        xai::Content { content: Some(content) }
    }

    fn user(text: &str) -> xai::Message {
        says(xai::MessageRole::RoleUser, &[text])
    }

    fn calls(ids: &[&str]) -> xai::Message {
        let call = |id: &&str| xai::ToolCall {
            id: (*id).to_owned(),
            tool: Some(xai::tool_call::Tool::Function(xai::FunctionCall {
                name: "weather".to_owned(),
                arguments: r#"{"city":"Oslo"}"#.to_owned(),
            })),
            ..Default::default()
        };
        let tool_calls = ids.iter().map(call).collect();
        xai::Message { tool_calls, ..says(xai::MessageRole::RoleAssistant, &[""]) }
    }

    fn result(id: Option<&str>, text: &str) -> xai::Message {
        let tool_call_id = id.map(str::to_owned);
        xai::Message { tool_call_id, ..says(xai::MessageRole::RoleTool, &[text]) }
    }

    fn sent(request: &xai::GetCompletionsRequest) -> Value {
        let read = read(request, false, &BodyLimits::default()).unwrap();
        serde_json::from_slice(&read.body.to_json(&read.model)).unwrap()
    }

    fn refused(request: &xai::GetCompletionsRequest) -> (String, InvalidReason) {
        match read(request, false, &BodyLimits::default()).unwrap_err().kind() {
            ErrorKind::InvalidRequest { member: Some(member), reason } => {
                (member.to_string(), reason.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_that_other_providers_have_is_passed_on_in_their_words() {
        let request = xai::GetCompletionsRequest {
            max_tokens: Some(64),
            temperature: Some(0.2),
            top_p: Some(0.9),
            frequency_penalty: Some(-0.5),
            presence_penalty: Some(1.0),
            stop: vec!["END".to_owned()],
            seed: Some(7),
            n: Some(2),
            logprobs: true,
            top_logprobs: Some(3),
            tools: vec![xai::Tool {
                tool: Some(tool::Tool::Function(xai::Function {
                    name: "weather".to_owned(),
                    description: "The weather now.".to_owned(),
                    strict: true,
                    parameters: r#"{"type": "object", "properties": {"z": {}, "a": {}}}"#.to_owned(),
                })),
            }],
            tool_choice: Some(xai::ToolChoice {
                tool_choice: Some(tool_choice::ToolChoice::FunctionName("weather".to_owned())),
            }),
            parallel_tool_calls: Some(false),
            response_format: Some(xai::ResponseFormat {
                format_type: xai::FormatType::JsonSchema.into(),
                schema: Some(r#"{"type":"object"}"#.to_owned()),
            }),
            reasoning_effort: Some(xai::ReasoningEffort::EffortXhigh.into()),
            service_tier: xai::ServiceTier::Priority.into(),
            user: "somebody".to_owned(),
            safety_identifier: Some("hash".to_owned()),
            ..ask([user("Hi")])
        };
        assert_eq!(
            sent(&request),
            json!({
                "model": "fast",
                "messages": [{ "role": "user", "content": "Hi" }],
                "max_tokens": 64,
                "temperature": 0.2,
                "top_p": 0.9,
                "frequency_penalty": -0.5,
                "presence_penalty": 1.0,
                "stop": ["END"],
                "seed": 7,
                "n": 2,
                "logprobs": true,
                "top_logprobs": 3,
                "tools": [{ "type": "function", "function": {
                    "name": "weather",
                    "description": "The weather now.",
                    "parameters": { "type": "object", "properties": { "z": {}, "a": {} } },
                    "strict": true,
                } }],
                "tool_choice": { "type": "function", "function": { "name": "weather" } },
                "parallel_tool_calls": false,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": { "name": "answer", "strict": true, "schema": { "type": "object" } },
                },
                "reasoning_effort": "xhigh",
                "service_tier": "priority",
                "user": "somebody",
                "safety_identifier": "hash",
            })
        );
    }

    #[test]
    fn what_is_not_said_is_not_sent_and_numbers_keep_their_spelling() {
        let plain = sent(&xai::GetCompletionsRequest { n: Some(1), ..ask([user("Hi")]) });
        assert_eq!(plain, json!({ "model": "fast", "messages": [{ "role": "user", "content": "Hi" }] }));
        let warm = xai::GetCompletionsRequest { temperature: Some(0.7), ..ask([user("Hi")]) };
        let read = read(&warm, true, &BodyLimits::default()).unwrap();
        assert_eq!(read.body.raw("temperature"), Some(&b"0.7"[..]));
        assert!(read.body.is_streaming());
    }

    #[test]
    fn images_and_files_are_parts() {
        let image = |detail: xai::ImageDetail| {
            part(Content::ImageUrl(xai::ImageUrlContent {
                source: Some(Source::ImageUrl("https://example.com/a.png".to_owned())),
                detail: detail.into(),
            }))
        };
        let file = |file: xai::FileContent| part(Content::File(file));
        let message = xai::Message {
            content: vec![
                part(Content::Text("What is this?".to_owned())),
                image(xai::ImageDetail::DetailHigh),
                image(xai::ImageDetail::DetailInvalid),
                file(xai::FileContent { file_id: "file-1".to_owned(), ..Default::default() }),
                file(xai::FileContent {
                    data: b"hello".to_vec(),
                    filename: "a.txt".to_owned(),
                    mime_type: "text/plain".to_owned(),
                    ..Default::default()
                }),
            ],
            ..user("")
        };
        assert_eq!(
            sent(&ask([message]))["messages"][0]["content"],
            json!([
                { "type": "text", "text": "What is this?" },
                { "type": "image_url", "image_url": { "url": "https://example.com/a.png", "detail": "high" } },
                { "type": "image_url", "image_url": { "url": "https://example.com/a.png" } },
                { "type": "file", "file": { "file_id": "file-1" } },
                { "type": "file", "file": { "filename": "a.txt", "file_data": "data:text/plain;base64,aGVsbG8=" } },
            ])
        );
    }

    #[test]
    fn results_that_do_not_say_whose_they_are_answer_the_calls_in_their_order() {
        let turns = [
            user("?"),
            calls(&["a", "b", "c"]),
            result(Some("b"), "2"),
            result(None, "1"),
            result(None, "3"),
        ];
        let sent = sent(&ask(turns));
        let ids: Vec<_> =
            sent["messages"].as_array().unwrap().iter().filter_map(|m| m["tool_call_id"].as_str()).collect();
        assert_eq!(ids, ["b", "a", "c"]);
        let call = json!({ "id": "a", "type": "function", "function": { "name": "weather", "arguments": r#"{"city":"Oslo"}"# } });
        assert_eq!(sent["messages"][1]["tool_calls"][0], call);
        assert_eq!(sent["messages"][1]["content"], Value::Null);

        let lost = ask([user("?"), calls(&["a"]), result(None, "1"), result(None, "2")]);
        assert_eq!(refused(&lost), ("messages[3].tool_call_id".to_owned(), InvalidReason::Missing));
    }

    #[test]
    fn thoughts_stay_behind_and_a_sealed_conversation_is_refused() {
        let thought = xai::Message {
            reasoning_content: Some("hm".to_owned()),
            encrypted_content: "sealed".to_owned(),
            ..says(xai::MessageRole::RoleAssistant, &["Yes."])
        };
        let said = sent(&ask([user("?"), thought, user("Sure?")]));
        assert_eq!(said["messages"][1], json!({ "role": "assistant", "content": "Yes." }));
        let sealed = xai::Message { encrypted_content: "sealed".to_owned(), ..user("") };
        assert_eq!(refused(&ask([sealed])).0, "messages[0].encrypted_content");
    }

    #[test]
    fn what_only_xai_can_do_is_refused_by_its_name() {
        let plain = || ask([user("Hi")]);
        let search = |mode: xai::SearchMode| xai::GetCompletionsRequest {
            search_parameters: Some(xai::SearchParameters { mode: mode.into() }),
            ..plain()
        };
        let web = xai::Tool { tool: Some(tool::Tool::WebSearch(xai::WebSearch {})) };
        let cases = [
            (search(xai::SearchMode::AutoSearchMode), "search_parameters"),
            (xai::GetCompletionsRequest { tools: vec![web], ..plain() }, "tools[0]"),
            (
                xai::GetCompletionsRequest { previous_response_id: Some("r".to_owned()), ..plain() },
                "previous_response_id",
            ),
            (xai::GetCompletionsRequest { store_messages: true, ..plain() }, "store_messages"),
            (xai::GetCompletionsRequest { guidelines: vec![xai::Guideline {}], ..plain() }, "guidelines"),
        ];
        for (request, member) in cases {
            assert_eq!(refused(&request), (member.to_owned(), InvalidReason::Unsupported));
        }
        sent(&search(xai::SearchMode::OffSearchMode));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let tool = |parameters: &str| xai::Tool {
            tool: Some(tool::Tool::Function(xai::Function {
                parameters: parameters.to_owned(),
                ..Default::default()
            })),
        };
        let plain = || ask([user("Hi")]);
        let cases = [
            (ask([]), "messages"),
            (ask([says(xai::MessageRole::InvalidRole, &["Hi"])]), "messages[0].role"),
            (xai::GetCompletionsRequest { model: String::new(), ..plain() }, "model"),
            (xai::GetCompletionsRequest { temperature: Some(f32::NAN), ..plain() }, "temperature"),
            (xai::GetCompletionsRequest { reasoning_effort: Some(99), ..plain() }, "reasoning_effort"),
            (
                xai::GetCompletionsRequest { tools: vec![tool("{}"), tool("{")], ..plain() },
                "tools[1].function.parameters",
            ),
            (
                xai::GetCompletionsRequest { tools: vec![tool("[]")], ..plain() },
                "tools[0].function.parameters",
            ),
        ];
        for (request, member) in cases {
            assert_eq!(refused(&request).0, member);
        }
    }
}
