use super::{ChatBody, Message, Tool};
use crate::{Error, InvalidReason};
use serde::Serialize;
use serde_json::{Map, Value};

/// Builds a [`ChatBody`].
///
/// ```
/// use llm_layers::{ChatBody, Tool};
/// use serde_json::json;
///
/// # fn main() -> Result<(), llm_layers::Error> {
/// let body = ChatBody::builder()
///     .system("Answer in one word.")
///     .user("How is the weather in Oslo?")
///     .temperature(0.2)
///     .max_output_tokens(50)
///     .tool(Tool::function("weather", "The weather in a city", json!({"type": "object"})))
///     .set("top_k", 5)
///     .build()?;
/// assert_eq!(body.messages().count(), 2);
/// assert_eq!(body.temperature()?, Some(0.2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use]
pub struct ChatBodyBuilder {
    messages: Vec<Message>,
    tools: Vec<Tool>,
    members: Map<String, Value>,
    invalid: Option<String>,
}

impl ChatBodyBuilder {
    /// Adds a message.
    pub fn message(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// Adds a system message.
    pub fn system(self, content: impl Into<String>) -> Self {
        self.message(Message::system(content))
    }

    /// Adds a user's message.
    pub fn user(self, content: impl Into<String>) -> Self {
        self.message(Message::user(content))
    }

    /// Adds an answer that the model gave before.
    pub fn assistant(self, content: impl Into<String>) -> Self {
        self.message(Message::assistant(content))
    }

    /// Offers a tool.
    pub fn tool(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// Sets the sampling temperature.
    pub fn temperature(self, temperature: f64) -> Self {
        self.set("temperature", temperature)
    }

    /// Bounds the answer's tokens, as `max_completion_tokens`.
    pub fn max_output_tokens(self, tokens: u64) -> Self {
        self.set("max_completion_tokens", tokens)
    }

    /// Asks for a stream.
    pub fn streaming(self) -> Self {
        self.set("stream", true)
    }

    /// Sets any other member.
    pub fn set(mut self, name: impl Into<String>, value: impl Serialize) -> Self {
        let name = name.into();
        match serde_json::to_value(value) {
            Ok(value) => drop(self.members.insert(name, value)),
            Err(_) => self.invalid = Some(name),
        }
        self
    }

    /// Writes the JSON and reads it back, once.
    ///
    /// # Errors
    ///
    /// As [`ChatBody::parse`].
    pub fn build(self) -> Result<ChatBody, Error> {
        if let Some(name) = self.invalid {
            return Err(Error::invalid(name, InvalidReason::Mistyped { expected: "a JSON value" }));
        }
        #[derive(Serialize)]
        struct Body<'a> {
            messages: &'a [Message],
            #[serde(skip_serializing_if = "<[Tool]>::is_empty")]
            tools: &'a [Tool],
            #[serde(flatten)]
            members: &'a Map<String, Value>,
        }
        let body = Body { messages: &self.messages, tools: &self.tools, members: &self.members };
        ChatBody::parse(serde_json::to_vec(&body).expect("built of JSON values"))
    }
}

impl std::fmt::Debug for ChatBodyBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatBodyBuilder").field("messages", &self.messages.len()).finish_non_exhaustive()
    }
}
