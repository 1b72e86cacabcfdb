//! What a request's body says of how it is to be answered.

use super::semconv::{SemConv, Value, int};
use crate::{ChatBody, json};
use serde::Deserialize;
use std::borrow::Cow;

/// In one pass, for members are found by walking over them.
pub(super) fn attributes(body: &ChatBody, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
    if body.is_streaming() {
        set("gen_ai.request.stream", Value::Bool(true));
    }
    let (mut most, mut format, mut speech) = (None, None, false);
    for (name, raw) in body.members() {
        match name {
            "n" => match number::<u64>(raw) {
                Some(n) if n != 1 => set("gen_ai.request.choice.count", int(n)),
                _ => {}
            },
            "seed" => {
                if let Some(seed) = number::<i64>(raw) {
                    set("gen_ai.request.seed", Value::Int(seed));
                }
            }
            "top_k" => {
                let top_k = number::<f64>(raw).map(|top_k| match semconv {
                    SemConv::V1_41 => Value::Double(top_k),
                    SemConv::Latest => Value::Int(top_k as i64),
                });
                if let Some(top_k) = top_k {
                    set("gen_ai.request.top_k", top_k);
                }
            }
            "temperature" => double(raw, "gen_ai.request.temperature", set),
            "top_p" => double(raw, "gen_ai.request.top_p", set),
            "frequency_penalty" => double(raw, "gen_ai.request.frequency_penalty", set),
            "presence_penalty" => double(raw, "gen_ai.request.presence_penalty", set),
            // The new name goes before the old one.
            "max_completion_tokens" => most = number::<u64>(raw).or(most),
            "max_tokens" => most = most.or_else(|| number(raw)),
            "stop" => stop(raw, set),
            "reasoning_effort" if semconv == SemConv::Latest => {
                if let Some(level) = json::string(raw) {
                    set("gen_ai.request.reasoning.level", Value::Str(&level));
                }
            }
            "modalities" => speech = json::items(raw).any(|modality| modality == br#""audio""#),
            "response_format" => format = json::member(raw, "type").and_then(json::string),
            _ => {}
        }
    }
    if let Some(most) = most {
        set("gen_ai.request.max_tokens", int(most));
    }
    // Only if the request asks for a format.
    match format.as_deref() {
        _ if speech => set("gen_ai.output.type", Value::Static("speech")),
        Some("text") => set("gen_ai.output.type", Value::Static("text")),
        Some("json_object" | "json_schema") => set("gen_ai.output.type", Value::Static("json")),
        _ => {}
    }
}

fn number<'a, T: Deserialize<'a>>(raw: &'a [u8]) -> Option<T> {
    serde_json::from_slice(raw).ok()
}

fn double(raw: &[u8], name: &'static str, set: &mut dyn FnMut(&'static str, Value<'_>)) {
    if let Some(number) = number::<f64>(raw) {
        set(name, Value::Double(number));
    }
}

fn stop(raw: &[u8], set: &mut dyn FnMut(&'static str, Value<'_>)) {
    let texts: Vec<Cow<'_, str>> = match json::string(raw) {
        Some(one) => vec![one],
        None => json::items(raw).filter_map(json::string).collect(),
    };
    let texts: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    if !texts.is_empty() {
        set("gen_ai.request.stop_sequences", Value::Strs(&texts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &str, semconv: SemConv) -> Vec<(&'static str, String)> {
        let json = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{more}}}"#);
        let mut all = Vec::new();
        let body = ChatBody::parse(json).unwrap();
        attributes(&body, semconv, &mut |name, value| all.push((name, format!("{value:?}"))));
        all
    }

    #[test]
    fn only_what_is_set_is_told() {
        assert_eq!(read("", SemConv::V1_41), []);
        let null =
            r#","n":1,"seed":null,"temperature":null,"stop":null,"top_k":"many","response_format":null"#;
        assert_eq!(read(null, SemConv::Latest), []);
        assert_eq!(read(r#","stream":false"#, SemConv::V1_41), []);
    }

    #[test]
    fn names_and_types_are_those_of_the_conventions() {
        let told = |more: &str, semconv| read(more, semconv).into_iter().next().expect(more);
        let value = |name, value: &str| (name, value.to_owned());
        for (more, name, expected) in [
            (r#","n":2"#, "gen_ai.request.choice.count", "Int(2)"),
            (r#","max_tokens":5"#, "gen_ai.request.max_tokens", "Int(5)"),
            (r#","max_tokens":5,"max_completion_tokens":6"#, "gen_ai.request.max_tokens", "Int(6)"),
            (r#","max_completion_tokens":6,"max_tokens":5"#, "gen_ai.request.max_tokens", "Int(6)"),
            (r#","stop":"END""#, "gen_ai.request.stop_sequences", r#"Strs(["END"])"#),
            (r#","temperature":1"#, "gen_ai.request.temperature", "Double(1.0)"),
            (r#","modalities":["text","audio"]"#, "gen_ai.output.type", r#"Static("speech")"#),
            (r#","response_format":{"type":"json_schema"}"#, "gen_ai.output.type", r#"Static("json")"#),
        ] {
            assert_eq!(told(more, SemConv::V1_41), value(name, expected), "{more}");
        }
        assert_eq!(told(r#","top_k":4"#, SemConv::Latest), value("gen_ai.request.top_k", "Int(4)"));
        let level = told(r#","reasoning_effort":"low""#, SemConv::Latest);
        assert_eq!(level, value("gen_ai.request.reasoning.level", r#"Str("low")"#));
    }
}
