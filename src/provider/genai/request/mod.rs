//! A request of OpenAI's dialect as genai's, or a typed refusal of what genai, or the provider, cannot carry.

mod claude;
mod gemini;
mod messages;
mod params;
mod tools;

use super::dialect::Wire;
use crate::{Error, InvalidReason, LlmRequest};
use ::genai::chat::{ChatOptions, ChatRequest, ChatResponseFormat, JsonSpec, ReasoningEffort};
use messages::Conversation;
use params::{Format, Params};
use serde_json::{Map, Value, json};

pub(super) struct Ask {
    pub(super) chat: ChatRequest,
    pub(super) options: ChatOptions,
}

pub(super) fn translate(wire: Wire, model: &str, request: &LlmRequest) -> Result<Ask, Error> {
    let body = &request.body;
    let mut params = Params::read(body)?;
    if request.dispensable().effort && !takes_none(wire, model) {
        params.effort = None;
    }
    let Conversation { messages, calls_unsigned } = messages::read(wire, body)?;
    let mut thinking = None;
    match wire {
        Wire::Anthropic => (params.effort, thinking) = claude::told(model, &params, calls_unsigned)?,
        Wire::Bedrock if bedrock_publisher(model) == "anthropic" => {
            params.effort = claude::by_budget(&params, calls_unsigned)?;
        }
        _ => {}
    }
    let mut chat = ChatRequest::new(messages);
    let mut options = ChatOptions {
        capture_usage: Some(true),
        capture_raw_body: Some(true),
        // Some think unasked, and what they thought must come back whole.
        capture_reasoning_content: Some(match params.effort {
            None => matches!(wire, Wire::Anthropic | Wire::VertexClaude),
            Some(ref effort) => !matches!(effort, ReasoningEffort::Zero),
        }),
        ..ChatOptions::default()
    };
    let mut extra = Map::new();
    extra.extend(thinking.map(|thinking| ("thinking".to_owned(), thinking)));
    match wire {
        Wire::Anthropic => anthropic(model, params, &mut options, &mut extra)?,
        Wire::Gemini => {
            // Else genai would read one from the model's name; what is wanted stands in `generationConfig`.
            options.reasoning_effort = Some(ReasoningEffort::Zero);
            options.capture_reasoning_content = None;
            gemini::extra(model, params, &mut extra)?;
        }
        Wire::VertexClaude | Wire::Bedrock | Wire::Cohere | Wire::Ollama => {
            restricted(wire, model, params, &mut chat, &mut options)?;
        }
    }
    options.extra_body = (!extra.is_empty()).then_some(Value::Object(extra));
    Ok(Ask { chat, options })
}

/// Tools and their choice are written here: genai takes a function of the name `web_search` for Anthropic's own.
fn anthropic(
    model: &str,
    params: Params,
    options: &mut ChatOptions,
    extra: &mut Map<String, Value>,
) -> Result<(), Error> {
    params.refuse_penalties()?;
    params.refuse_seed()?;
    params.refuse_safety()?;
    extra.insert("model".to_owned(), model.into());
    if !params.tools.is_empty() {
        let tools = params.tools.iter().map(tools::Function::for_anthropic);
        extra.insert("tools".to_owned(), tools.collect());
        if let Some(choice) = tools::anthropic_choice(params.choice.as_ref(), params.parallel) {
            extra.insert("tool_choice".to_owned(), choice);
        }
    }
    if let Some(top_k) = params.top_k {
        extra.insert("top_k".to_owned(), top_k.into());
    }
    match params.format {
        Format::Text => {}
        Format::Object => return Err(unsupported("response_format.type")),
        Format::Schema { name, schema } => {
            options.response_format = Some(ChatResponseFormat::JsonSpec(JsonSpec::new(name, schema)));
        }
    }
    options.reasoning_effort = params.effort;
    options.temperature = params.temperature;
    options.top_p = params.top_p;
    options.max_tokens = params.max_tokens;
    options.stop_sequences = params.stop;
    Ok(())
}

/// Where genai takes nothing but what it knows, and leaves the rest out without a word.
fn restricted(
    wire: Wire,
    model: &str,
    mut params: Params,
    chat: &mut ChatRequest,
    options: &mut ChatOptions,
) -> Result<(), Error> {
    params.refuse_penalties()?;
    params.refuse_safety()?;
    if params.top_k.is_some() {
        return Err(unsupported("top_k"));
    }
    match (params.format, wire) {
        (Format::Text, _) => {}
        (Format::Object, Wire::Ollama) => options.response_format = Some(ChatResponseFormat::JsonMode),
        _ => return Err(unsupported("response_format.type")),
    }
    match (params.seed.map(u64::try_from), wire) {
        (None, _) => {}
        (Some(Ok(seed)), Wire::Ollama) => options.seed = Some(seed),
        _ => return Err(unsupported("seed")),
    }
    if wire == Wire::Ollama && params.choice == Some(tools::Choice::None) {
        (params.tools, params.choice) = (Vec::new(), None);
    }
    if !params.tools.is_empty() {
        if wire == Wire::Cohere {
            return Err(unsupported("tools"));
        }
        if params.choice.is_some_and(|choice| choice != tools::Choice::Auto) {
            return Err(unsupported("tool_choice"));
        }
        if params.parallel == Some(false) {
            return Err(unsupported("parallel_tool_calls"));
        }
        // At Vertex, genai would make the tool of Anthropic's servers of it.
        let taken = |tool: &tools::Function| wire == Wire::VertexClaude && tool.name == "web_search";
        if let Some(at) = params.tools.iter().position(taken) {
            return Err(unsupported(&format!("tools[{at}].function.name")));
        }
        chat.tools = Some(params.tools.into_iter().map(tools::Function::into_genai).collect());
    }
    options.reasoning_effort = match (params.effort, wire) {
        (None, _) | (Some(ReasoningEffort::Zero), Wire::VertexClaude | Wire::Cohere) => None,
        (Some(effort), Wire::Ollama) => Some(effort),
        (Some(effort), Wire::Bedrock) => bedrock_effort(model, effort, params.limits_sampling)?,
        _ => return Err(unsupported("reasoning_effort")),
    };
    options.temperature = params.temperature;
    options.top_p = params.top_p;
    options.max_tokens = params.max_tokens;
    options.stop_sequences = params.stop;
    Ok(())
}

/// genai knows how to tell it to three publishers, and drops what Nova does not take beside it.
fn bedrock_effort(
    model: &str,
    effort: ReasoningEffort,
    limits_sampling: bool,
) -> Result<Option<ReasoningEffort>, Error> {
    let high = matches!(effort, ReasoningEffort::High | ReasoningEffort::XHigh | ReasoningEffort::Max);
    match (bedrock_publisher(model), effort) {
        ("openai", effort) => Ok(Some(effort)),
        (_, ReasoningEffort::Zero) => Ok(None),
        ("amazon", _) if high && limits_sampling => Err(unsupported("reasoning_effort")),
        ("anthropic" | "amazon", effort) => Ok(Some(effort)),
        _ => Err(unsupported("reasoning_effort")),
    }
}

/// Whose model it is, as genai finds out: what it does not find is told no effort.
fn bedrock_publisher(model: &str) -> &str {
    const REGIONS: [&str; 9] = ["us", "us-gov", "eu", "apac", "au", "ca", "jp", "in", "global"];
    let (first, rest) = model.split_once('.').unwrap_or((model, ""));
    if REGIONS.contains(&first) { rest.split('.').next().unwrap_or_default() } else { first }
}

/// Whether a model can be told not to think, or to think as little as it can.
fn takes_none(wire: Wire, model: &str) -> bool {
    match wire {
        Wire::Anthropic | Wire::Ollama => true,
        Wire::Gemini => model.starts_with("gemini-2.5-flash"),
        Wire::VertexClaude | Wire::Bedrock | Wire::Cohere => false,
    }
}

fn unsupported(member: &str) -> Error {
    Error::invalid(member, InvalidReason::Unsupported)
}

fn mistyped(member: &str, expected: &'static str) -> Error {
    Error::invalid(member, InvalidReason::Mistyped { expected })
}

/// JSON that was checked when the body came in.
fn value(raw: &[u8]) -> Value {
    serde_json::from_slice(raw).unwrap_or_default()
}

/// A schema that takes no parameters.
fn nothing() -> Value {
    json!({ "type": "object", "properties": {} })
}
