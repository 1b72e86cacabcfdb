//! What a request's body says of how it is to be answered.

use super::semconv::{SemConv, Value, int};
use crate::{ChatBody, json};
use std::borrow::Cow;

const DOUBLES: [(&str, &str); 4] = [
    ("temperature", "gen_ai.request.temperature"),
    ("top_p", "gen_ai.request.top_p"),
    ("frequency_penalty", "gen_ai.request.frequency_penalty"),
    ("presence_penalty", "gen_ai.request.presence_penalty"),
];

pub(super) fn attributes(body: &ChatBody, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
    if body.is_streaming() {
        set("gen_ai.request.stream", Value::Bool(true));
    }
    match body.n() {
        Ok(n) if n != 1 => set("gen_ai.request.choice.count", int(n)),
        _ => {}
    }
    if let Ok(Some(seed)) = body.get::<i64>("seed") {
        set("gen_ai.request.seed", Value::Int(seed));
    }
    if let Ok(Some(top_k)) = body.get::<f64>("top_k") {
        set(
            "gen_ai.request.top_k",
            match semconv {
                SemConv::V1_41 => Value::Double(top_k),
                SemConv::Latest => Value::Int(top_k as i64),
            },
        );
    }
    for (member, name) in DOUBLES {
        if let Ok(Some(number)) = body.get::<f64>(member) {
            set(name, Value::Double(number));
        }
    }
    if let Ok(Some(most)) = body.max_output_tokens() {
        set("gen_ai.request.max_tokens", int(most));
    }
    if let Some(stop) = body.raw("stop") {
        let texts: Vec<Cow<'_, str>> = match json::string(stop) {
            Some(one) => vec![one],
            None => json::items(stop).filter_map(json::string).collect(),
        };
        let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        if !texts.is_empty() {
            set("gen_ai.request.stop_sequences", Value::Strs(&texts));
        }
    }
    if let (SemConv::Latest, Some(level)) = (semconv, body.raw("reasoning_effort").and_then(json::string)) {
        set("gen_ai.request.reasoning.level", Value::Str(&level));
    }
    if let Some(kind) = output_type(body) {
        set("gen_ai.output.type", Value::Static(kind));
    }
}

/// Only if the request asks for a format.
fn output_type(body: &ChatBody) -> Option<&'static str> {
    let modalities = body.raw("modalities").unwrap_or_default();
    if json::items(modalities).any(|modality| modality == br#""audio""#) {
        return Some("speech");
    }
    let format = json::member(body.response_format()?, "type").and_then(json::string)?;
    match &*format {
        "text" => Some("text"),
        "json_object" | "json_schema" => Some("json"),
        _ => None,
    }
}
