use super::{
    content::{self, text_of},
    names::ToolNames,
    pieces::{List, Out, members, mistyped, object, required, string, unsupported},
};
use crate::{BodyLimits, ChatBody, Error, InvalidReason, LlmRequest, chat::Translated, json};
use bytes::Bytes;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// Reads a request of Anthropic's Messages API.
///
/// Texts, schemas and numbers keep the bytes that they came in. Names of tools that are too long for many providers do not:
/// who writes the answer puts them back, by [`ToolNames::of`] this request.
///
/// # Errors
///
/// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) that names the member, by its place in the request as it came.
///
/// ```
/// use llm_layers::{BodyLimits, http::anthropic};
///
/// # fn main() -> Result<(), llm_layers::Error> {
/// let request = r#"{"model":"fast","max_tokens":64,"system":"Be brief.","messages":[{"role":"user","content":"Hi"}]}"#;
/// let request = anthropic::chat_request(request, &BodyLimits::default())?;
/// assert_eq!(request.body.messages().count(), 2);
/// assert_eq!(request.body.max_output_tokens()?, Some(64));
/// # Ok(())
/// # }
/// ```
pub fn chat_request(json: impl Into<Bytes>, limits: &BodyLimits) -> Result<LlmRequest, Error> {
    read(&json.into(), limits, true)
}

/// Reads a request of Anthropic's that asks how many tokens a prompt has: as [`chat_request`], and `max_tokens` may be missing.
///
/// # Errors
///
/// As [`chat_request`].
pub fn count_request(json: impl Into<Bytes>, limits: &BodyLimits) -> Result<LlmRequest, Error> {
    read(&json.into(), limits, false)
}

fn read(source: &[u8], limits: &BodyLimits, needs_bound: bool) -> Result<LlmRequest, Error> {
    if source.len() > limits.max_bytes {
        return Err(Error::invalid_body(InvalidReason::TooLarge { limit: limits.max_bytes }));
    }
    if json::too_deep(source, limits.max_depth) {
        return Err(Error::invalid_body(InvalidReason::TooDeep { limit: limits.max_depth }));
    }
    let whole: &RawValue = serde_json::from_slice(source).map_err(|error| {
        Error::invalid_body(InvalidReason::Syntax { line: error.line(), column: error.column() })
    })?;
    if !whole.get().starts_with('{') {
        return Err(Error::invalid_body(InvalidReason::Mistyped { expected: "an object" }));
    }
    let (body, notes) = translate(whole.get().as_bytes(), limits, needs_bound)?;
    // What is added is a few names; what was too large came so.
    let limits = limits.clone().with_max_bytes(usize::MAX).with_max_depth(limits.max_depth.saturating_add(4));
    LlmRequest::of(ChatBody::parse_translated(body.into(), &limits, notes)?)
}

/// One top-level member after another; messages last, because the system prompt comes before them.
fn translate(source: &[u8], limits: &BodyLimits, needs_bound: bool) -> Result<(Vec<u8>, Translated), Error> {
    let mut out = Out::with_capacity(source.len() + 256);
    let mut seen: Vec<Box<str>> = Vec::new();
    let (mut system, mut messages) = (None, None);
    let (mut effort, mut thinking) = (None, None);
    let mut notes = Translated::default();
    let mut has_bound = !needs_bound;
    for (raw_name, value) in json::members(source) {
        let Some(name) = json::string(raw_name) else { continue };
        if seen.iter().any(|other| **other == *name) {
            return Err(Error::invalid(&*name, InvalidReason::Duplicate));
        }
        if seen.len() == limits.max_members {
            return Err(Error::invalid_body(InvalidReason::TooMany { limit: limits.max_members }));
        }
        seen.push((&*name).into());
        if value == b"null" {
            continue;
        }
        match &*name {
            "system" => system = Some(value),
            "messages" => messages = Some(value),
            "max_tokens" => {
                has_bound = true;
                out.member("max_tokens", value);
            }
            "stop_sequences" => {
                let are_texts = json::items(value).all(|one| one.first() == Some(&b'"'));
                if value.first() != Some(&b'[') || !are_texts {
                    return Err(mistyped(&name, "an array of strings"));
                }
                // Some refuse a list of none.
                if !json::is_nothing(value) {
                    out.member("stop", value);
                }
            }
            "tools" => tools(value, &mut out, &mut notes.tool_names)?,
            "tool_choice" => tool_choice(value, &mut out, &mut notes.tool_names)?,
            "metadata" => {
                let [user] = members(&name, object(&name, value)?, ["user_id"])?;
                if user.is_some_and(|user| user != b"null") {
                    out.member("user", &label(string(&name, user, "user_id")?));
                }
            }
            "thinking" => thinking = effort_of(value)?,
            "output_config" => {
                let [format, said] = members(&name, object(&name, value)?, ["format", "effort"])?;
                if let Some(format) = format {
                    output_format("output_config.format", format, &mut out)?;
                }
                if let Some(said) = said.filter(|said| *said != b"null") {
                    effort = Some(match json::string(said).as_deref() {
                        Some("low") => "low",
                        Some("medium") => "medium",
                        Some("high" | "xhigh" | "max") => "high",
                        _ => {
                            let expected = "\"low\", \"medium\", \"high\", \"xhigh\" or \"max\"";
                            return Err(mistyped("output_config.effort", expected));
                        }
                    });
                }
            }
            "output_format" => output_format("output_format", value, &mut out)?,
            "service_tier" => {
                let tier: &[u8] = if value == br#""standard_only""# { br#""default""# } else { value };
                out.member("service_tier", tier);
            }
            "mcp_servers" | "container" | "inference_geo" => return Err(unsupported(&name)),
            "cache_control" | "context_management" | "diagnostics" | "speed" | "user_profile_id"
            | "workspace_id" => {}
            _ => out.raw_member(raw_name, value),
        }
    }
    notes.dispensable.effort = thinking == Some(NONE);
    // Not to think goes before how much.
    if let Some(effort) = thinking.filter(|_| notes.dispensable.effort).or(effort).or(thinking) {
        out.member("reasoning_effort", &json::quoted(effort));
    }
    if !has_bound {
        return Err(Error::invalid("max_tokens", InvalidReason::Missing));
    }
    let messages = messages.ok_or_else(|| Error::invalid("messages", InvalidReason::Missing))?;
    let mut list = List::default();
    if let Some(system) = system {
        list.item(br#"{"role":"system","content":"#, &text_of("system", system)?);
    }
    if messages.first() != Some(&b'[') {
        return Err(mistyped("messages", "an array"));
    }
    for (at, message) in json::items(messages).enumerate() {
        content::message(&format!("messages[{at}]"), message, &mut list, &mut notes)?;
    }
    out.member("messages", &list.finish());
    Ok((out.finish(), notes))
}

/// A user's id that no provider finds too long: OpenAI takes 64 characters, and some clients send whole objects.
fn label(id: &[u8]) -> Cow<'_, [u8]> {
    const MOST: usize = 64;
    let text = json::text(id).unwrap_or_default();
    match text.chars().nth(MOST) {
        None => Cow::Borrowed(id),
        Some(_) => Cow::Owned(json::quoted(&blake3::hash(text.as_bytes()).to_hex())),
    }
}

fn tools(value: &[u8], out: &mut Out, names: &mut ToolNames) -> Result<(), Error> {
    if value.first() != Some(&b'[') {
        return Err(mistyped("tools", "an array"));
    }
    let mut list = List::default();
    for (at, tool) in json::items(value).enumerate() {
        let path = format!("tools[{at}]");
        let read = ["type", "name", "description", "input_schema", "strict"];
        let [kind, name, description, schema, strict] = members(&path, tool, read)?;
        if kind.and_then(json::string).is_some_and(|kind| kind != "custom") {
            return Err(unsupported(&format!("{path}.type")));
        }
        let mut function = Out::with_capacity(tool.len());
        function.member("name", &names.shortened(string(&path, name, "name")?));
        for (name, value) in [("description", description), ("parameters", schema), ("strict", strict)] {
            if let Some(value) = value.filter(|value| *value != b"null") {
                function.member(name, value);
            }
        }
        list.item(br#"{"type":"function","function":"#, &function.finish());
    }
    if !list.is_empty() {
        out.member("tools", &list.finish());
    }
    Ok(())
}

fn tool_choice(value: &[u8], out: &mut Out, names: &mut ToolNames) -> Result<(), Error> {
    let read = ["type", "name", "disable_parallel_tool_use"];
    let [kind, name, is_single] = members("tool_choice", value, read)?;
    match kind.and_then(json::string).as_deref() {
        Some("auto") => out.member("tool_choice", br#""auto""#),
        Some("any") => out.member("tool_choice", br#""required""#),
        Some("none") => out.member("tool_choice", br#""none""#),
        Some("tool") => {
            let name = names.shortened(string("tool_choice", name, "name")?);
            let choice = [br#"{"type":"function","function":{"name":"#, &name[..], b"}}"];
            out.member("tool_choice", &choice.concat());
        }
        _ => return Err(mistyped("tool_choice.type", "\"auto\", \"any\", \"tool\" or \"none\"")),
    }
    if is_single == Some(b"true") {
        out.member("parallel_tool_calls", b"false");
    }
    Ok(())
}

/// Not to think.
const NONE: &str = "none";

/// What `thinking` comes to.
fn effort_of(value: &[u8]) -> Result<Option<&'static str>, Error> {
    let [kind, budget] = members("thinking", value, ["type", "budget_tokens"])?;
    match kind.and_then(json::string).as_deref() {
        Some("disabled") => Ok(Some(NONE)),
        Some("adaptive" | "between_tools") => Ok(None),
        Some("enabled") => {
            let budget = budget.and_then(|raw| serde_json::from_slice(raw).ok());
            let budget: u64 =
                budget.ok_or_else(|| mistyped("thinking.budget_tokens", "a number of tokens"))?;
            Ok(Some(match budget {
                ..4_096 => "low",
                4_096..16_384 => "medium",
                _ => "high",
            }))
        }
        _ => Err(mistyped("thinking.type", "\"enabled\", \"adaptive\", \"between_tools\" or \"disabled\"")),
    }
}

fn output_format(path: &str, value: &[u8], out: &mut Out) -> Result<(), Error> {
    if value == b"null" {
        return Ok(());
    }
    let [kind, schema] = members(path, value, ["type", "schema"])?;
    if kind.and_then(json::string).as_deref() != Some("json_schema") {
        return Err(unsupported(&format!("{path}.type")));
    }
    let schema = required(path, schema, "schema")?;
    let format =
        [br#"{"type":"json_schema","json_schema":{"name":"output","strict":true,"schema":"#, schema, b"}}"];
    out.member("response_format", &format.concat());
    Ok(())
}
