use super::{answer::is_text, names::ToolNames};
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
        out.member("reasoning_effort", &quoted(effort));
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
        self::message(&format!("messages[{at}]"), message, &mut list, &mut notes)?;
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
        Some(_) => Cow::Owned(quoted(&blake3::hash(text.as_bytes()).to_hex())),
    }
}

fn message(path: &str, message: &[u8], list: &mut List, notes: &mut Translated) -> Result<(), Error> {
    let at = |member: &str| format!("{path}.{member}");
    let [role, content] = members(path, message, ["role", "content"])?;
    let content = required(path, content, "content")?;
    match (role.and_then(json::string).as_deref(), content.first()) {
        (Some(role @ ("user" | "assistant" | "system")), Some(b'"')) => {
            list.item(format!(r#"{{"role":"{role}","content":"#).as_bytes(), content);
        }
        (Some("user"), Some(b'[')) => from_user(&at("content"), content, list)?,
        (Some("assistant"), Some(b'[')) => from_assistant(&at("content"), content, list, notes)?,
        (Some("system"), Some(b'[')) => {
            list.item(br#"{"role":"system","content":"#, &text_of(&at("content"), content)?);
        }
        (Some("user" | "assistant" | "system"), _) => {
            return Err(mistyped(&at("content"), "a string or an array"));
        }
        (_, _) => return Err(mistyped(&at("role"), "\"user\" or \"assistant\"")),
    }
    Ok(())
}

/// Results of tools are messages of their own, and come first: nothing may stand between them and the calls.
fn from_user(path: &str, blocks: &[u8], list: &mut List) -> Result<(), Error> {
    let mut parts = Vec::new();
    for (at, block) in json::items(blocks).enumerate() {
        let path = format!("{path}[{at}]");
        let block = Block::read(&path, block)?;
        if block.kind.as_deref() == Some("tool_result") {
            let id = string(&path, block.tool_use_id, "tool_use_id")?;
            let content = match block.content {
                Some(text @ [b'"', ..]) => text.to_vec(),
                Some(blocks @ [b'[', ..]) => {
                    let mut texts = Vec::new();
                    for (at, block) in json::items(blocks).enumerate() {
                        let path = format!("{path}.content[{at}]");
                        let block = Block::read(&path, block)?;
                        // Only texts can be a tool's message; what else there is goes along with the user's.
                        match block.kind.as_deref() {
                            Some("text") => texts.push(string(&path, block.text, "text")?),
                            _ => part(&path, &block, &mut parts)?,
                        }
                    }
                    paragraphs(texts.into_iter())
                }
                Some(b"null") | None => br#""""#.to_vec(),
                Some(_) => return Err(mistyped(&format!("{path}.content"), "a string or an array")),
            };
            list.item(&[br#"{"role":"tool","tool_call_id":"#, id, br#","content":"#].concat(), &content);
        } else {
            part(&path, &block, &mut parts)?;
        }
    }
    if !parts.is_empty() {
        list.item(br#"{"role":"user","content":"#, &content_of(&parts));
    }
    Ok(())
}

/// A part of what a user says.
enum Part<'a> {
    /// A string, as JSON.
    Text(Cow<'a, [u8]>),
    /// What an object begins with, and the value that it ends with.
    Other(Cow<'static, [u8]>, Vec<u8>),
}

/// One string where there are only texts: many providers take no array for them.
fn content_of(parts: &[Part<'_>]) -> Vec<u8> {
    let texts = parts.iter().map_while(|part| match part {
        Part::Text(text) => Some(&**text),
        Part::Other(..) => None,
    });
    if texts.clone().count() == parts.len() {
        return paragraphs(texts);
    }
    let mut list = List::default();
    for part in parts {
        match part {
            Part::Text(text) => list.item(br#"{"type":"text","text":"#, text),
            Part::Other(head, value) => list.item(head, value),
        }
    }
    list.finish()
}

fn part<'a>(path: &str, block: &Block<'a>, parts: &mut Vec<Part<'a>>) -> Result<(), Error> {
    match block.kind.as_deref() {
        Some("text") => parts.push(Part::Text(string(path, block.text, "text")?.into())),
        Some("image") => {
            let Source::Url(mut url) = source(path, block)? else {
                return Err(unsupported(&format!("{path}.source.type")));
            };
            url.push(b'}');
            parts.push(Part::Other(br#"{"type":"image_url","image_url":{"url":"#[..].into(), url));
        }
        Some("document") => {
            let [cites] = members(path, block.citations.unwrap_or_default(), ["enabled"])?;
            if cites == Some(b"true") {
                return Err(unsupported(&format!("{path}.citations")));
            }
            let told = |value: Option<&'a [u8]>| value.filter(|value| is_text(value));
            let context = told(block.context);
            let mut data = match source(path, block)? {
                Source::Text(text) => {
                    let told = [told(block.title), context, Some(text)];
                    parts.push(Part::Text(paragraphs(told.into_iter().flatten()).into()));
                    return Ok(());
                }
                Source::Url(url) if url.starts_with(br#""data:"#) => url,
                _ => return Err(unsupported(&format!("{path}.source.type"))),
            };
            if let Some(context) = context {
                parts.push(Part::Text(context.into()));
            }
            let title = told(block.title).unwrap_or(br#""document.pdf""#);
            let file = [br#"{"type":"file","file":{"filename":"#, title, br#","file_data":"#].concat();
            data.push(b'}');
            parts.push(Part::Other(file.into(), data));
        }
        Some(_) => return Err(unsupported(&format!("{path}.type"))),
        None => return Err(Error::invalid(format!("{path}.type"), InvalidReason::Missing)),
    }
    Ok(())
}

/// Where an image or a document is, as JSON.
enum Source<'a> {
    Url(Vec<u8>),
    /// It is this text.
    Text(&'a [u8]),
    /// Only Anthropic can look it up.
    Other,
}

fn source<'a>(path: &str, block: &Block<'a>) -> Result<Source<'a>, Error> {
    let source = required(path, block.source, "source")?;
    let path = format!("{path}.source");
    let [kind, media, data, url] = members(&path, source, ["type", "media_type", "data", "url"])?;
    Ok(match kind.and_then(json::string).as_deref() {
        Some("base64") => {
            let (media, data) = (string(&path, media, "media_type")?, string(&path, data, "data")?);
            Source::Url(joined(&[br#""data:""#, media, br#"";base64,""#, data]))
        }
        Some("url") => Source::Url(string(&path, url, "url")?.to_vec()),
        Some("text") => Source::Text(string(&path, data, "data")?),
        _ => Source::Other,
    })
}

fn from_assistant(path: &str, blocks: &[u8], list: &mut List, notes: &mut Translated) -> Result<(), Error> {
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), List::default());
    for (at, block) in json::items(blocks).enumerate() {
        let path = format!("{path}[{at}]");
        let block = Block::read(&path, block)?;
        match block.kind.as_deref() {
            Some("text") => texts.push(string(&path, block.text, "text")?),
            Some("tool_use") => {
                let (id, name) = (string(&path, block.id, "id")?, string(&path, block.name, "name")?);
                let name = notes.tool_names.shortened(name);
                let input = block.input.unwrap_or(b"{}");
                let arguments = quoted(&String::from_utf8_lossy(input));
                let call = [
                    br#"{"id":"#,
                    id,
                    br#","type":"function","function":{"name":"#,
                    &name,
                    br#","arguments":"#,
                ];
                calls.item(&call.concat(), &[&arguments[..], b"}"].concat());
            }
            Some("thinking") => match block.signature.and_then(json::string) {
                // Signed for a provider that may not be the next one.
                Some(signature) if !signature.is_empty() => {}
                // Given out here.
                _ => thoughts.extend(block.thinking.filter(|thinking| is_text(thinking))),
            },
            Some("redacted_thinking") => {}
            Some(_) => return Err(unsupported(&format!("{path}.type"))),
            None => return Err(Error::invalid(format!("{path}.type"), InvalidReason::Missing)),
        }
    }
    let text = if texts.is_empty() { b"null".to_vec() } else { joined(&texts) };
    let mut head = br#"{"role":"assistant","#.to_vec();
    if !thoughts.is_empty() {
        notes.dispensable.thoughts = true;
        head.extend([br#""reasoning_content":"#, &joined(&thoughts)[..], b","].concat());
    }
    head.extend_from_slice(br#""content":"#);
    if calls.is_empty() {
        let text = if texts.is_empty() { br#""""#.to_vec() } else { text };
        list.item(&head, &text);
    } else {
        list.item(&[&head[..], &text, br#","tool_calls":"#].concat(), &calls.finish());
    }
    Ok(())
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

// ===== pieces =====

/// The members of an object that are read, found in one pass.
///
/// Twice, one would be read here and the other obeyed elsewhere.
fn members<'a, const N: usize>(
    path: &str,
    object: &'a [u8],
    names: [&str; N],
) -> Result<[Option<&'a [u8]>; N], Error> {
    let mut found = [None; N];
    for (raw, value) in json::members(object) {
        let Some(at) = names.iter().position(|name| json::is_name(raw, name)) else { continue };
        if found[at].replace(value).is_some() {
            return Err(Error::invalid(format!("{path}.{}", names[at]), InvalidReason::Duplicate));
        }
    }
    Ok(found)
}

/// What is read of a block, of whatever type it is.
struct Block<'a> {
    kind: Option<Cow<'a, str>>,
    text: Option<&'a [u8]>,
    source: Option<&'a [u8]>,
    title: Option<&'a [u8]>,
    context: Option<&'a [u8]>,
    citations: Option<&'a [u8]>,
    tool_use_id: Option<&'a [u8]>,
    content: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
    name: Option<&'a [u8]>,
    input: Option<&'a [u8]>,
    thinking: Option<&'a [u8]>,
    signature: Option<&'a [u8]>,
}

impl<'a> Block<'a> {
    fn read(path: &str, block: &'a [u8]) -> Result<Self, Error> {
        let names = [
            "type",
            "text",
            "source",
            "title",
            "context",
            "citations",
            "tool_use_id",
            "content",
            "id",
            "name",
            "input",
            "thinking",
            "signature",
        ];
        let [
            kind,
            text,
            source,
            title,
            context,
            citations,
            tool_use_id,
            content,
            id,
            name,
            input,
            thinking,
            signature,
        ] = members(path, block, names)?;
        let kind = kind.and_then(json::string);
        Ok(Self {
            kind,
            text,
            source,
            title,
            context,
            citations,
            tool_use_id,
            content,
            id,
            name,
            input,
            thinking,
            signature,
        })
    }
}

/// A string that must be there, as JSON.
fn string<'a>(path: &str, value: Option<&'a [u8]>, name: &str) -> Result<&'a [u8], Error> {
    let value = required(path, value, name)?;
    let is_string = value.first() == Some(&b'"');
    is_string.then_some(value).ok_or_else(|| mistyped(&format!("{path}.{name}"), "a string"))
}

/// An object, as JSON.
fn object<'a>(path: &str, value: &'a [u8]) -> Result<&'a [u8], Error> {
    (value.first() == Some(&b'{')).then_some(value).ok_or_else(|| mistyped(path, "an object"))
}

/// A member that must be there, as JSON.
fn required<'a>(path: &str, value: Option<&'a [u8]>, name: &str) -> Result<&'a [u8], Error> {
    let value = value.filter(|value| *value != b"null");
    value.ok_or_else(|| Error::invalid(format!("{path}.{name}"), InvalidReason::Missing))
}

/// A text, or the texts of an array of blocks, as what a message's content may be.
fn text_of(path: &str, value: &[u8]) -> Result<Vec<u8>, Error> {
    match value.first() {
        Some(b'"') => Ok(value.to_vec()),
        Some(b'[') => {
            let mut texts = Vec::new();
            for (at, block) in json::items(value).enumerate() {
                let path = format!("{path}[{at}]");
                let block = Block::read(&path, block)?;
                if block.kind.as_deref() != Some("text") {
                    return Err(unsupported(&format!("{path}.type")));
                }
                texts.push(string(&path, block.text, "text")?);
            }
            Ok(paragraphs(texts.into_iter()))
        }
        _ => Err(mistyped(path, "a string or an array")),
    }
}

/// Strings of JSON as one, with empty lines between them.
fn paragraphs<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    for string in strings {
        if !all.is_empty() {
            all.push(&br#""\n\n""#[..]);
        }
        all.push(string);
    }
    joined(&all)
}

/// Strings of JSON as one: what stands between their quotes needs no other spelling.
fn joined(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for string in strings {
        out.extend_from_slice(string.get(1..string.len().saturating_sub(1)).unwrap_or_default());
    }
    out.push(b'"');
    out
}

fn quoted(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a string is JSON")
}

fn unsupported(member: &str) -> Error {
    Error::invalid(member, InvalidReason::Unsupported)
}

fn mistyped(member: &str, expected: &'static str) -> Error {
    Error::invalid(member, InvalidReason::Mistyped { expected })
}

/// An object that is being written.
struct Out(Vec<u8>);

impl Out {
    fn with_capacity(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        Self(out)
    }

    fn member(&mut self, name: &str, value: &[u8]) {
        self.raw_member(&quoted(name), value);
    }

    fn raw_member(&mut self, raw_name: &[u8], value: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        for part in [raw_name, b":", value] {
            self.0.extend_from_slice(part);
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

/// An array of objects that is being written.
#[derive(Default)]
struct List(Vec<u8>);

impl List {
    /// An object that begins with `head` and ends with a value.
    fn item(&mut self, head: &[u8], value: &[u8]) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        for part in [head, value, b"}"] {
            self.0.extend_from_slice(part);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn finish(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'[');
        }
        self.0.push(b']');
        self.0
    }
}
