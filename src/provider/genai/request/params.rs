use super::{mistyped, tools, unsupported, value};
use crate::{ChatBody, Error, json};
use ::genai::chat::ReasoningEffort;
use serde_json::Value;

/// All members but the messages.
#[derive(Default)]
pub(super) struct Params {
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<u64>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stop: Vec<String>,
    pub(super) seed: Option<i64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) format: Format,
    pub(super) effort: Option<ReasoningEffort>,
    pub(super) tools: Vec<tools::Function>,
    pub(super) choice: Option<tools::Choice>,
    pub(super) parallel: Option<bool>,
    pub(super) safety: Option<Value>,
    /// Whether the number of tokens, or how they are drawn, is limited.
    pub(super) limits_sampling: bool,
}

/// What the answer must look like.
#[derive(Default)]
pub(super) enum Format {
    #[default]
    Text,
    /// Any JSON.
    Object,
    Schema {
        name: String,
        schema: Value,
    },
}

impl Params {
    pub(super) fn read(body: &ChatBody) -> Result<Self, Error> {
        let mut params = Self::default();
        for (name, raw) in body.members() {
            if raw == b"null" {
                continue;
            }
            match name {
                // Read elsewhere, or nothing that changes the answer.
                "model"
                | "messages"
                | "stream"
                | "stream_options"
                | "user"
                | "metadata"
                | "store"
                | "service_tier"
                | "prompt_cache_key"
                | "prompt_cache_retention"
                | "safety_identifier"
                | "prediction" => {}
                "max_tokens" | "max_completion_tokens" => {
                    let limit = body.max_output_tokens()?;
                    params.max_tokens = limit.map(|limit| u32::try_from(limit).unwrap_or(u32::MAX));
                }
                "temperature" => params.temperature = body.temperature()?,
                "top_p" => params.top_p = body.get(name)?,
                "top_k" => params.top_k = body.get(name)?,
                "stop" => params.stop = strings(name, raw)?,
                "seed" => params.seed = body.get(name)?,
                "frequency_penalty" => {
                    params.frequency_penalty = body.get(name)?.filter(|penalty| *penalty != 0.0)
                }
                "presence_penalty" => {
                    params.presence_penalty = body.get(name)?.filter(|penalty| *penalty != 0.0)
                }
                "response_format" => params.format = format(raw)?,
                "reasoning_effort" => params.effort = Some(effort(raw)?),
                "tools" => params.tools = tools::read(raw)?,
                "tool_choice" => params.choice = Some(tools::choice(raw)?),
                "parallel_tool_calls" => params.parallel = body.get(name)?,
                "safety_settings" => params.safety = Some(value(raw)),
                // What says that nothing out of the common is wanted.
                "n" if body.n()? == 1 => {}
                "logprobs" if raw == b"false" => {}
                "top_logprobs" if raw == b"0" => {}
                "logit_bias" | "functions" if json::is_nothing(raw) => {}
                "function_call" if raw == br#""none""# => {}
                "modalities" if strings(name, raw)? == ["text"] => {}
                _ => return Err(unsupported(name)),
            }
        }
        params.limits_sampling =
            params.max_tokens.is_some() || params.temperature.is_some() || params.top_p.is_some();
        Ok(params)
    }

    pub(super) fn refuse_penalties(&self) -> Result<(), Error> {
        match (self.frequency_penalty, self.presence_penalty) {
            (Some(_), _) => Err(unsupported("frequency_penalty")),
            (_, Some(_)) => Err(unsupported("presence_penalty")),
            (None, None) => Ok(()),
        }
    }

    pub(super) fn refuse_seed(&self) -> Result<(), Error> {
        self.seed.map_or(Ok(()), |_| Err(unsupported("seed")))
    }

    pub(super) fn refuse_safety(&self) -> Result<(), Error> {
        self.safety.as_ref().map_or(Ok(()), |_| Err(unsupported("safety_settings")))
    }
}

fn strings(name: &str, raw: &[u8]) -> Result<Vec<String>, Error> {
    if let Some(one) = json::string(raw) {
        return Ok(vec![one.into_owned()]);
    }
    serde_json::from_slice(raw).map_err(|_| mistyped(name, "a string or an array of strings"))
}

fn effort(raw: &[u8]) -> Result<ReasoningEffort, Error> {
    let said = json::string(raw).filter(|said| said != "zero");
    said.and_then(|said| ReasoningEffort::from_keyword(&said)).ok_or_else(|| unsupported("reasoning_effort"))
}

fn format(raw: &[u8]) -> Result<Format, Error> {
    let kind = json::member(raw, "type").and_then(json::string);
    match kind.as_deref() {
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(Format::Object),
        Some("json_schema") => {
            let spec = json::member(raw, "json_schema").unwrap_or_default();
            let name = json::member(spec, "name").and_then(json::string).unwrap_or("output".into());
            match json::member(spec, "schema").filter(|schema| schema.first() == Some(&b'{')) {
                Some(schema) => Ok(Format::Schema { name: name.into_owned(), schema: value(schema) }),
                None => Err(mistyped("response_format.json_schema.schema", "an object")),
            }
        }
        _ => Err(unsupported("response_format.type")),
    }
}
