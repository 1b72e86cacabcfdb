//! What genai cannot, or should not, write of a request to Gemini.

use super::{
    params::{Format, Params},
    tools, unsupported,
};
use crate::Error;
use ::genai::chat::ReasoningEffort;
use serde_json::{Map, Value, json};

/// Members of the request that take the place of genai's: it knows no penalties, no `json_object` and no `none`, and
/// takes functions of some names for tools of Google's servers.
pub(super) fn extra(model: &str, params: Params, extra: &mut Map<String, Value>) -> Result<(), Error> {
    if !params.tools.is_empty() {
        if params.parallel == Some(false) {
            return Err(unsupported("parallel_tool_calls"));
        }
        let functions: Value = params.tools.iter().map(tools::Function::for_gemini).collect();
        extra.insert("tools".to_owned(), json!([{ "functionDeclarations": functions }]));
        if let Some(choice) = &params.choice {
            extra.insert("toolConfig".to_owned(), tools::gemini_choice(choice));
        }
    }
    if let Some(safety) = params.safety {
        extra.insert("safetySettings".to_owned(), safety);
    }
    let mut config = Map::new();
    let mut set =
        |name: &str, value: Option<Value>| config.extend(value.map(|value| (name.to_owned(), value)));
    set("temperature", params.temperature.map(Value::from));
    set("topP", params.top_p.map(Value::from));
    set("topK", params.top_k.map(Value::from));
    set("maxOutputTokens", params.max_tokens.map(Value::from));
    set("stopSequences", (!params.stop.is_empty()).then(|| params.stop.into()));
    set("seed", params.seed.map(Value::from));
    set("frequencyPenalty", params.frequency_penalty.map(Value::from));
    set("presencePenalty", params.presence_penalty.map(Value::from));
    match params.format {
        Format::Text => {}
        Format::Object => set("responseMimeType", Some("application/json".into())),
        Format::Schema { schema, .. } => {
            set("responseMimeType", Some("application/json".into()));
            set("responseJsonSchema", Some(schema));
        }
    }
    set("thinkingConfig", params.effort.map(|effort| thinking(model, &effort)).transpose()?);
    if !config.is_empty() {
        extra.insert("generationConfig".to_owned(), Value::Object(config));
    }
    Ok(())
}

/// By the table that Google gives for OpenAI's clients; from version 3 on there are levels, and no way to think nothing.
fn thinking(model: &str, effort: &ReasoningEffort) -> Result<Value, Error> {
    let budgets = ["gemini-2", "gemini-1"].iter().any(|older| model.starts_with(older));
    let (level, budget) = match effort {
        ReasoningEffort::Zero if budgets => return Ok(json!({ "thinkingBudget": 0 })),
        ReasoningEffort::Minimal => ("MINIMAL", 1_024),
        ReasoningEffort::Low => ("LOW", 1_024),
        ReasoningEffort::Medium => ("MEDIUM", 8_192),
        ReasoningEffort::High | ReasoningEffort::XHigh | ReasoningEffort::Max => ("HIGH", 24_576),
        ReasoningEffort::Zero | ReasoningEffort::Budget(_) => return Err(unsupported("reasoning_effort")),
    };
    Ok(match budgets {
        true => json!({ "thinkingBudget": budget, "includeThoughts": true }),
        false => json!({ "thinkingLevel": level, "includeThoughts": true }),
    })
}
