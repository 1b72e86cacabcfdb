use super::{super::dialect::Wire, mistyped, unsupported, value};
use crate::{ChatBody, Error, InvalidReason, MessageRef, json};
use ::genai::chat::{
    Binary, BinarySource, CacheControl, ChatMessage, ChatRole, ContentPart, CustomPart, ToolCall,
    ToolResponse,
};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, iter, mem};

pub(super) struct Conversation {
    pub(super) messages: Vec<ChatMessage>,
    /// The last turn of the model calls tools, and does not say what it thought before.
    pub(super) calls_unsigned: bool,
}

pub(super) fn read(wire: Wire, body: &ChatBody) -> Result<Conversation, Error> {
    let mut conversation = Conversation { messages: Vec::new(), calls_unsigned: false };
    for (at, message) in body.messages().enumerate() {
        let path = format!("messages[{at}]");
        let reader = Reader { wire, path: &path, message };
        let (role, mut parts) = reader.read()?;
        if role == ChatRole::Assistant {
            let thinks = |part: &ContentPart| part.is_thought_signature() || is_redacted(part);
            conversation.calls_unsigned =
                parts.iter().any(ContentPart::is_tool_call) && !parts.iter().any(thinks);
        }
        if let Some(cache_control) = reader.cache_control(&role)
            && let Some(last) = parts.pop()
        {
            parts.push(marked(last, cache_control));
        }
        match role {
            ChatRole::System => conversation.messages.extend(systems(parts)),
            role => conversation.add(wire, ChatMessage::new(role, parts)),
        }
    }
    if wire == Wire::Cohere {
        check_cohere(&conversation.messages)?;
    }
    Ok(conversation)
}

impl Conversation {
    fn add(&mut self, wire: Wire, mut message: ChatMessage) {
        if wire.joins_turns() {
            if message.role == ChatRole::Tool {
                message.role = ChatRole::User;
            }
            // What a system says between two turns goes to the front.
            let turn = self.messages.iter_mut().rfind(|turn| turn.role != ChatRole::System);
            if let Some(turn) = turn.filter(|turn| turn.role == message.role) {
                turn.content.extend(message.content);
                return;
            }
        }
        self.messages.push(message);
    }
}

/// genai takes the last message from the conversation, and wants text in each.
fn check_cohere(messages: &[ChatMessage]) -> Result<(), Error> {
    for (at, message) in messages.iter().enumerate() {
        if !message.content.contains_text() {
            return Err(Error::invalid(format!("messages[{at}].content"), InvalidReason::Missing));
        }
        if at + 1 == messages.len() && message.role != ChatRole::User {
            return Err(mistyped(&format!("messages[{at}].role"), "\"user\" in the last message"));
        }
    }
    Ok(())
}

/// One message, and where it stands.
struct Reader<'a> {
    wire: Wire,
    path: &'a str,
    message: MessageRef<'a>,
}

impl Reader<'_> {
    fn read(&self) -> Result<(ChatRole, Vec<ContentPart>), Error> {
        let raw = self.message.raw();
        if json::member(raw, "function_call").is_some_and(|call| call != b"null") {
            return Err(self.unsupported("function_call"));
        }
        if json::member(raw, "audio").is_some_and(|audio| audio != b"null") {
            return Err(self.unsupported("audio"));
        }
        Ok(match &*self.message.role() {
            "system" | "developer" => (ChatRole::System, self.texts()?),
            "user" => (ChatRole::User, self.parts()?),
            "assistant" => (ChatRole::Assistant, self.assistant()?),
            "tool" => (ChatRole::Tool, vec![self.result()?]),
            _ => return Err(self.unsupported("role")),
        })
    }

    /// Texts alone; one that is empty only if it is all there is.
    fn texts(&self) -> Result<Vec<ContentPart>, Error> {
        let mut parts = Vec::new();
        self.each_text(|text, part| parts.push(self.marked_as(part, ContentPart::Text(text))))?;
        Ok(without_empty(parts))
    }

    /// Calls `with` for each text, and the part that it is, of a content that has nothing else.
    fn each_text(&self, mut with: impl FnMut(String, &[u8])) -> Result<(), Error> {
        if let Some(text) = self.text() {
            with(text, b"");
            return Ok(());
        }
        self.each_part(|path, kind, part| match kind {
            "text" | "refusal" => {
                with(text(path, part, kind)?, part);
                Ok(())
            }
            _ => Err(unsupported(&format!("{path}.type"))),
        })
    }

    fn parts(&self) -> Result<Vec<ContentPart>, Error> {
        if let Some(text) = self.text() {
            return Ok(vec![ContentPart::Text(text)]);
        }
        let mut parts = Vec::new();
        self.each_part(|path, kind, part| {
            let read = match kind {
                "text" => ContentPart::Text(text(path, part, "text")?),
                "image_url" => self.image(path, part)?,
                "file" => self.file(path, part)?,
                "input_audio" => self.audio(path, part)?,
                _ => return Err(unsupported(&format!("{path}.type"))),
            };
            parts.push(self.marked_as(part, read));
            Ok(())
        })?;
        Ok(without_empty(parts))
    }

    /// The content, if it is a string.
    fn text(&self) -> Option<String> {
        self.message.content().and_then(json::text).map(Cow::into_owned)
    }

    /// Calls `with` for each part of the content, its place and its type.
    fn each_part(&self, mut with: impl FnMut(&str, &str, &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let path = format!("{}.content", self.path);
        let Some(content) = self.message.content() else { return Ok(()) };
        if content.first() != Some(&b'[') {
            return Err(mistyped(&path, "a string or an array"));
        }
        for (at, part) in json::items(content).enumerate() {
            let path = format!("{path}[{at}]");
            let kind = json::member(part, "type").and_then(json::string);
            let kind = kind.ok_or_else(|| Error::invalid(format!("{path}.type"), InvalidReason::Missing))?;
            with(&path, &kind, part)?;
        }
        Ok(())
    }

    fn image(&self, path: &str, part: &[u8]) -> Result<ContentPart, Error> {
        let path = format!("{path}.image_url");
        let image = json::member(part, "image_url").unwrap_or_default();
        // Some clients leave the object out.
        let url = match json::string(image) {
            Some(url) => url.into_owned(),
            None => string(&path, image, "url")?,
        };
        let unsupported = || unsupported(&format!("{path}.url"));
        match (Data::of(&url), self.wire) {
            (Some(data), Wire::Anthropic | Wire::VertexClaude | Wire::Gemini | Wire::Ollama)
                if data.media_type.starts_with("image/") =>
            {
                Ok(data.into_part(None))
            }
            (Some(data), Wire::Bedrock) if BEDROCK_IMAGES.contains(&data.media_type) => {
                Ok(data.into_part(None))
            }
            (None, Wire::Anthropic | Wire::VertexClaude) if url.starts_with("http") => {
                // genai would leave it out.
                Ok(custom(json!({ "type": "image", "source": { "type": "url", "url": url } })))
            }
            (None, Wire::Gemini) if !url.starts_with("data:") => match media_type_of(&url) {
                Some(media_type) => Ok(ContentPart::Binary(Binary::from_url(media_type, url, None))),
                None => Err(unsupported()),
            },
            _ => Err(unsupported()),
        }
    }

    fn file(&self, path: &str, part: &[u8]) -> Result<ContentPart, Error> {
        let path = format!("{path}.file");
        let file = json::member(part, "file").unwrap_or_default();
        if json::member(file, "file_id").is_some_and(|id| id != b"null") {
            return Err(unsupported(&format!("{path}.file_id")));
        }
        let url = string(&path, file, "file_data")?;
        let name = json::member(file, "filename").and_then(json::string).map(|name| name.into_owned());
        match (Data::of(&url), self.wire) {
            (Some(data), Wire::Anthropic | Wire::VertexClaude) if data.media_type == "application/pdf" => {
                Ok(data.into_part(name))
            }
            (Some(data), Wire::Gemini) => Ok(data.into_part(name)),
            (Some(data), Wire::Bedrock) if BEDROCK_DOCUMENTS.contains(&data.media_type) => {
                Ok(data.into_part(name))
            }
            _ => Err(unsupported(&format!("{path}.file_data"))),
        }
    }

    fn audio(&self, path: &str, part: &[u8]) -> Result<ContentPart, Error> {
        let audio = json::member(part, "input_audio").unwrap_or_default();
        let path = format!("{path}.input_audio");
        if self.wire != Wire::Gemini {
            return Err(unsupported(&path));
        }
        let media_type = match &*string(&path, audio, "format")? {
            "wav" => "audio/wav",
            "mp3" => "audio/mp3",
            _ => return Err(unsupported(&format!("{path}.format"))),
        };
        Ok(ContentPart::Binary(Binary::from_base64(media_type, string(&path, audio, "data")?, None)))
    }

    /// Thoughts come first, as they came from the model.
    fn assistant(&self) -> Result<Vec<ContentPart>, Error> {
        let mut parts = self.thoughts();
        let mut rest = self.texts()?;
        if rest.iter().all(|part| part.as_text() == Some("")) {
            let refusal = json::member(self.message.raw(), "refusal").and_then(json::text);
            rest.extend(refusal.map(|refusal| ContentPart::Text(refusal.into_owned())));
        }
        let calls = json::member(self.message.raw(), "tool_calls").unwrap_or_default();
        if self.wire == Wire::Cohere && !json::is_nothing(calls) {
            return Err(self.unsupported("tool_calls"));
        }
        for (at, call) in json::items(calls).enumerate() {
            rest.push(ContentPart::ToolCall(self.call(&format!("{}.tool_calls[{at}]", self.path), call)?));
        }
        if rest.len() > 1 {
            rest.retain(|part| part.as_text() != Some(""));
        }
        parts.extend(rest);
        Ok(parts)
    }

    /// As whoever asks has got them from here: `thinking_blocks`.
    fn thoughts(&self) -> Vec<ContentPart> {
        let mut parts = Vec::new();
        if !self.wire.joins_turns() {
            return parts;
        }
        let blocks = json::member(self.message.raw(), "thinking_blocks").unwrap_or_default();
        for block in json::items(blocks) {
            let text = |name| json::member(block, name).and_then(json::string).map(|text| text.into_owned());
            match (text("type").as_deref(), text("thinking"), text("signature"), text("data")) {
                (Some("thinking"), Some(thinking), Some(signature), _) => {
                    parts.extend([
                        ContentPart::ThoughtSignature(signature),
                        ContentPart::ReasoningContent(thinking),
                    ]);
                }
                (Some(REDACTED), .., Some(data)) if self.wire == Wire::Bedrock => {
                    parts.push(ContentPart::ThoughtSignature(data));
                }
                (Some(REDACTED), .., Some(_)) => {
                    parts.push(custom(value(block)));
                }
                _ => {}
            }
        }
        parts
    }

    fn call(&self, path: &str, call: &[u8]) -> Result<ToolCall, Error> {
        let kind = json::member(call, "type").and_then(json::string);
        if kind.is_some_and(|kind| kind != "function") {
            return Err(unsupported(&format!("{path}.type")));
        }
        let function = json::member(call, "function").unwrap_or_default();
        let in_function = format!("{path}.function");
        let arguments = string(&in_function, function, "arguments")?;
        let arguments = match arguments.trim() {
            "" => Value::Object(Map::new()),
            text => serde_json::from_str(text).ok().filter(Value::is_object).ok_or_else(|| {
                mistyped(&format!("{in_function}.arguments"), "an object, as JSON in a string")
            })?,
        };
        let signature = json::member(call, "extra_content")
            .and_then(|extra| json::member(extra, "google"))
            .and_then(|google| json::member(google, "thought_signature"))
            .and_then(json::string)
            .filter(|_| self.wire == Wire::Gemini);
        Ok(ToolCall {
            call_id: self.id(string(path, call, "id")?),
            fn_name: string(&in_function, function, "name")?,
            fn_arguments: arguments,
            thought_signatures: signature.map(|signature| vec![signature.into_owned()]),
        })
    }

    fn result(&self) -> Result<ContentPart, Error> {
        let id = self.id(string(self.path, self.message.raw(), "tool_call_id")?);
        let mut texts = String::new();
        self.each_text(|text, _| texts.push_str(&text))?;
        if self.wire == Wire::Cohere {
            return Err(self.unsupported("role"));
        }
        Ok(ContentPart::ToolResponse(ToolResponse::new(id, texts)))
    }

    /// The id of a call, which may have come from another provider: Anthropic's alphabet is the smallest.
    fn id(&self, id: String) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' };
        if self.wire.joins_turns() { id.chars().map(plain).collect() } else { id }
    }

    /// Of the message; a result is one part, whatever it consists of.
    fn cache_control(&self, role: &ChatRole) -> Option<Value> {
        let parts = self.message.content().filter(|_| *role == ChatRole::Tool).unwrap_or_default();
        let mut places = iter::once(self.message.raw()).chain(json::items(parts));
        places.find_map(|place| self.cache_control_of(place))
    }

    fn cache_control_of(&self, place: &[u8]) -> Option<Value> {
        let found = json::member(place, "cache_control").filter(|raw| raw.first() == Some(&b'{'));
        found.filter(|_| matches!(self.wire, Wire::Anthropic | Wire::VertexClaude)).map(value)
    }

    /// What was read of `place`, with the mark that it has there.
    fn marked_as(&self, place: &[u8], part: ContentPart) -> ContentPart {
        match self.cache_control_of(place) {
            Some(cache_control) => marked(part, cache_control),
            None => part,
        }
    }

    fn unsupported(&self, member: &str) -> Error {
        unsupported(&format!("{}.{member}", self.path))
    }
}

const BEDROCK_IMAGES: [&str; 5] = ["image/jpeg", "image/jpg", "image/png", "image/gif", "image/webp"];

const BEDROCK_DOCUMENTS: [&str; 9] = [
    "application/pdf",
    "application/msword",
    "application/vnd.ms-excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "text/csv",
    "text/html",
    "text/markdown",
    "text/plain",
];

/// A `data:` URL in base64.
struct Data<'a> {
    media_type: &'a str,
    base64: &'a str,
}

impl<'a> Data<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let (head, base64) = url.strip_prefix("data:")?.split_once(',')?;
        let head = head.strip_suffix(";base64")?;
        let media_type = head.split(';').next().filter(|media_type| !media_type.is_empty())?;
        Some(Self { media_type, base64 })
    }

    fn into_part(self, name: Option<String>) -> ContentPart {
        ContentPart::Binary(Binary::from_base64(self.media_type, self.base64, name))
    }
}

/// Gemini wants to be told, and does not look itself.
fn media_type_of(url: &str) -> Option<&'static str> {
    let path = url.split(['?', '#']).next()?;
    match path.rsplit_once('.')?.1.to_ascii_lowercase().as_str() {
        "jpg" | "jpeg" => Some("image/jpeg"),
        "png" => Some("image/png"),
        "webp" => Some("image/webp"),
        "heic" => Some("image/heic"),
        "heif" => Some("image/heif"),
        _ => None,
    }
}

/// A part as Anthropic writes it, with its mark: genai would set it at the end of the message.
fn marked(part: ContentPart, cache_control: Value) -> ContentPart {
    let mut data = match part {
        ContentPart::Text(text) if !text.is_empty() => json!({ "type": "text", "text": text }),
        ContentPart::Binary(Binary { content_type, source: BinarySource::Base64(data), .. }) => {
            let kind = if content_type.starts_with("image/") { "image" } else { "document" };
            json!({ "type": kind, "source": { "type": "base64", "media_type": content_type, "data": data } })
        }
        ContentPart::ToolCall(call) => {
            json!({ "type": "tool_use", "id": call.call_id, "name": call.fn_name, "input": call.fn_arguments })
        }
        ContentPart::ToolResponse(result) => {
            json!({ "type": "tool_result", "tool_use_id": result.call_id, "content": result.content })
        }
        ContentPart::Custom(custom) if custom.typ() != Some(REDACTED) => custom.data,
        // Nothing that can be marked.
        other => return other,
    };
    data["cache_control"] = cache_control;
    custom(data)
}

/// The texts of a system, those up to a mark as one message: of these genai takes nothing but texts.
fn systems(parts: Vec<ContentPart>) -> Vec<ChatMessage> {
    let (mut messages, mut texts) = (Vec::new(), Vec::new());
    for part in parts {
        let ContentPart::Custom(CustomPart { data, .. }) = part else {
            texts.push(part);
            continue;
        };
        texts.push(ContentPart::Text(data["text"].as_str().unwrap_or_default().to_owned()));
        let marked = ChatMessage::new(ChatRole::System, mem::take(&mut texts));
        messages.push(marked.with_options(in_genais_words(&data["cache_control"])));
    }
    if messages.is_empty() || !texts.is_empty() {
        messages.push(ChatMessage::new(ChatRole::System, texts));
    }
    messages
}

/// Until when to cache, for where genai writes it.
pub(super) fn in_genais_words(cache_control: &Value) -> CacheControl {
    match cache_control["ttl"].as_str() {
        Some("1h") => CacheControl::Ephemeral1h,
        Some(_) => CacheControl::Ephemeral5m,
        None => CacheControl::Ephemeral,
    }
}

/// Thoughts that are not shown.
const REDACTED: &str = "redacted_thinking";

fn custom(data: Value) -> ContentPart {
    ContentPart::Custom(CustomPart { model_iden: None, data })
}

fn is_redacted(part: &ContentPart) -> bool {
    matches!(part, ContentPart::Custom(custom) if custom.typ() == Some(REDACTED))
}

fn without_empty(mut parts: Vec<ContentPart>) -> Vec<ContentPart> {
    if parts.len() > 1 {
        parts.retain(|part| part.as_text() != Some(""));
    }
    parts
}

fn string(path: &str, object: &[u8], name: &str) -> Result<String, Error> {
    read_string(path, object, name, json::string)
}

/// As [`string`], of what the model reads.
fn text(path: &str, object: &[u8], name: &str) -> Result<String, Error> {
    read_string(path, object, name, json::text)
}

fn read_string(
    path: &str,
    object: &[u8],
    name: &str,
    read: impl FnOnce(&[u8]) -> Option<Cow<'_, str>>,
) -> Result<String, Error> {
    let path = || format!("{path}.{name}");
    match json::member(object, name) {
        None | Some(b"null") => Err(Error::invalid(path(), InvalidReason::Missing)),
        Some(raw) => read(raw).map(Cow::into_owned).ok_or_else(|| mistyped(&path(), "a string")),
    }
}
