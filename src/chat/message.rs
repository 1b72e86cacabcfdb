use crate::json;
use serde::Serialize;
use serde_json::{Value, json};
use std::{borrow::Cow, fmt};

/// One message of a conversation, for the [builder](crate::ChatBody::builder).
#[derive(Clone, Serialize)]
#[non_exhaustive]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: Cow<'static, str>,
    /// Text, or an array of [`Part`]s.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub content: Value,
    /// What the assistant wants called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Which call a `tool` message answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

/// A part of a message's content.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Part(Value);

/// A tool that the model may call.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct Tool(Value);

/// A call that the model asks for.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct ToolCall(Value);

/// One message of a request, borrowed from its bytes.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    raw: &'a [u8],
}

impl Message {
    /// A message with any role and content.
    pub fn new(role: impl Into<Cow<'static, str>>, content: impl Into<Value>) -> Self {
        Self { role: role.into(), content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// How the model is to behave.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content.into())
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content.into())
    }

    /// What the user says, in parts such as text and images.
    pub fn user_parts(parts: impl IntoIterator<Item = Part>) -> Self {
        Self::new("user", parts.into_iter().map(|part| part.0).collect::<Vec<_>>())
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content.into())
    }

    /// What a tool answered to the call with this id.
    pub fn tool(call_id: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tool_call_id: Some(call_id.into()), ..Self::new("tool", content.into()) }
    }

    /// Adds the calls that the model asked for.
    #[must_use]
    pub fn with_tool_calls(mut self, calls: impl IntoIterator<Item = ToolCall>) -> Self {
        self.tool_calls.extend(calls);
        self
    }
}

impl Part {
    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self(json!({ "type": "text", "text": text.into() }))
    }

    /// An image, by address or as a `data:` URL.
    pub fn image_url(url: impl Into<String>) -> Self {
        Self(json!({ "type": "image_url", "image_url": { "url": url.into() } }))
    }

    /// Any other part.
    pub const fn json(part: Value) -> Self {
        Self(part)
    }
}

impl Tool {
    /// A function, with the JSON schema of its parameters.
    pub fn function(
        name: impl Into<String>,
        description: impl Into<String>,
        parameters: impl Into<Value>,
    ) -> Self {
        let (name, description, parameters) = (name.into(), description.into(), parameters.into());
        Self(json!({
            "type": "function",
            "function": { "name": name, "description": description, "parameters": parameters },
        }))
    }

    /// Any other tool.
    pub const fn json(tool: Value) -> Self {
        Self(tool)
    }
}

impl ToolCall {
    /// A call of a function, its arguments as JSON text.
    pub fn function(id: impl Into<String>, name: impl Into<String>, arguments: impl Into<String>) -> Self {
        let (id, name, arguments) = (id.into(), name.into(), arguments.into());
        Self(json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } }))
    }
}

impl<'a> MessageRef<'a> {
    pub(super) const fn new(raw: &'a [u8]) -> Self {
        Self { raw }
    }

    /// The message's JSON.
    pub const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Who speaks.
    pub fn role(&self) -> Cow<'a, str> {
        json::member(self.raw, "role").and_then(json::string).unwrap_or_default()
    }

    /// The JSON of the content: a string, an array of parts, or nothing.
    pub fn content(&self) -> Option<&'a [u8]> {
        json::member(self.raw, "content").filter(|raw| *raw != b"null")
    }

    /// The text of the content, its text parts joined.
    pub fn text(&self) -> Cow<'a, str> {
        json::joined(self.content().unwrap_or_default())
    }
}

// What people say to a model does not belong into logs.

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("role", &self.role).finish_non_exhaustive()
    }
}

macro_rules! opaque {
    ($($name:ident)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    )*};
}
opaque! { Part Tool ToolCall }

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRef").field("role", &self.role()).field("bytes", &self.raw.len()).finish()
    }
}
