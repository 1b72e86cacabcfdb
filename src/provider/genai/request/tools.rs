use super::{messages, mistyped, nothing, unsupported, value};
use crate::{Error, InvalidReason, json};
use ::genai::chat::Tool;
use serde_json::{Value, json};
use std::borrow::Cow;

/// A function that the model may call.
pub(super) struct Function {
    pub(super) name: String,
    description: Option<String>,
    parameters: Value,
    strict: Option<bool>,
    cache_control: Option<Value>,
}

/// Which of them it must call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Auto,
    None,
    Required,
    Function(String),
}

pub(super) fn read(raw: &[u8]) -> Result<Vec<Function>, Error> {
    let read = |(at, tool)| {
        let path = format!("tools[{at}]");
        let kind = json::member(tool, "type").and_then(json::string);
        if kind.as_deref() != Some("function") {
            return Err(unsupported(&format!("{path}.type")));
        }
        let function = json::member(tool, "function").unwrap_or_default();
        let said = |name| json::member(function, name).filter(|raw| *raw != b"null");
        let at = |name| format!("{path}.function.{name}");
        let text = |name| {
            let wrong = || mistyped(&at(name), "a string");
            said(name).map(|raw| json::text(raw).map(Cow::into_owned).ok_or_else(wrong)).transpose()
        };
        let missing = || Error::invalid(at("name"), InvalidReason::Missing);
        let parameters = match said("parameters").map(value) {
            None => nothing(),
            Some(schema) if schema.is_object() => schema,
            Some(_) => return Err(mistyped(&at("parameters"), "an object")),
        };
        let strict = said("strict").map(serde_json::from_slice).transpose();
        Ok(Function {
            name: text("name")?.filter(|name| !name.is_empty()).ok_or_else(missing)?,
            description: text("description")?,
            parameters,
            strict: strict.map_err(|_| mistyped(&at("strict"), "a boolean"))?,
            cache_control: json::member(tool, "cache_control")
                .filter(|raw| raw.first() == Some(&b'{'))
                .map(value),
        })
    };
    json::items(raw).enumerate().map(read).collect()
}

pub(super) fn choice(raw: &[u8]) -> Result<Choice, Error> {
    match json::string(raw).as_deref() {
        Some("auto") => Ok(Choice::Auto),
        Some("none") => Ok(Choice::None),
        Some("required") => Ok(Choice::Required),
        Some(_) => Err(unsupported("tool_choice")),
        None => {
            let kind = json::member(raw, "type").and_then(json::string);
            let function = json::member(raw, "function").unwrap_or_default();
            match (kind.as_deref(), json::member(function, "name").and_then(json::string)) {
                (Some("function"), Some(name)) => Ok(Choice::Function(name.into_owned())),
                (Some("function"), None) => Err(mistyped("tool_choice.function.name", "a string")),
                _ => Err(unsupported("tool_choice.type")),
            }
        }
    }
}

impl Function {
    pub(super) fn for_anthropic(&self) -> Value {
        let mut tool = json!({ "name": self.name, "input_schema": self.parameters });
        if let Some(description) = &self.description {
            tool["description"] = description.as_str().into();
        }
        if let Some(strict) = self.strict {
            tool["strict"] = strict.into();
        }
        if let Some(cache_control) = &self.cache_control {
            tool["cache_control"] = cache_control.clone();
        }
        tool
    }

    pub(super) fn for_gemini(&self) -> Value {
        json!({
            "name": self.name,
            "description": self.description.as_deref().unwrap_or_default(),
            "parametersJsonSchema": self.parameters,
        })
    }

    pub(super) fn into_genai(self) -> Tool {
        let mut tool = Tool::new(self.name).with_schema(self.parameters);
        tool.description = self.description;
        tool.cache_control = self.cache_control.as_ref().map(messages::in_genais_words);
        tool
    }
}

pub(super) fn anthropic_choice(choice: Option<&Choice>, parallel: Option<bool>) -> Option<Value> {
    let mut json = match choice {
        None if parallel == Some(false) => json!({ "type": "auto" }),
        None => return None,
        Some(Choice::Auto) => json!({ "type": "auto" }),
        Some(Choice::None) => return Some(json!({ "type": "none" })),
        Some(Choice::Required) => json!({ "type": "any" }),
        Some(Choice::Function(name)) => json!({ "type": "tool", "name": name }),
    };
    if parallel == Some(false) {
        json["disable_parallel_tool_use"] = true.into();
    }
    Some(json)
}

pub(super) fn gemini_choice(choice: &Choice) -> Value {
    let config = match choice {
        Choice::Auto => json!({ "mode": "AUTO" }),
        Choice::None => json!({ "mode": "NONE" }),
        Choice::Required => json!({ "mode": "ANY" }),
        Choice::Function(name) => json!({ "mode": "ANY", "allowedFunctionNames": [name] }),
    };
    json!({ "functionCallingConfig": config })
}
