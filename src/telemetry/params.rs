//! What a request's body says of how it is to be answered.

use super::semconv::{SemConv, Value, int};
use crate::{ChatBody, json};
use std::{borrow::Cow, str::FromStr};

/// In one pass, for members are found by walking over them.
pub(super) fn attributes(body: &ChatBody, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
    if body.is_streaming() {
        set("gen_ai.request.stream", Value::Bool(true));
    }
    let (mut most, mut format, mut speech) = (None, None, false);
    for (name, raw) in body.raw_members() {
        match name {
            b"n" => match number::<u64>(raw) {
                Some(n) if n != 1 => set("gen_ai.request.choice.count", int(n)),
                _ => {}
            },
            b"seed" => {
                if let Some(seed) = number::<i64>(raw) {
                    set("gen_ai.request.seed", Value::Int(seed));
                }
            }
            b"top_k" => {
                let top_k = finite(raw).map(|top_k| match semconv {
                    SemConv::V1_41 => Value::Double(top_k),
                    SemConv::Latest => Value::Int(top_k as i64),
                });
                if let Some(top_k) = top_k {
                    set("gen_ai.request.top_k", top_k);
                }
            }
            b"temperature" => double(raw, "gen_ai.request.temperature", set),
            b"top_p" => double(raw, "gen_ai.request.top_p", set),
            b"frequency_penalty" => double(raw, "gen_ai.request.frequency_penalty", set),
            b"presence_penalty" => double(raw, "gen_ai.request.presence_penalty", set),
            // The new name goes before the old one.
            b"max_completion_tokens" => most = number::<u64>(raw).or(most),
            b"max_tokens" => most = most.or_else(|| number(raw)),
            b"stop" => stop(raw, set),
            b"reasoning_effort" if semconv == SemConv::Latest => {
                if let Some(level) = json::string(raw) {
                    set("gen_ai.request.reasoning.level", Value::Str(&level));
                }
            }
            b"modalities" => speech = json::items(raw).any(|modality| modality == br#""audio""#),
            b"response_format" => format = json::member(raw, "type").and_then(json::string),
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

/// `raw` is JSON: what begins as a number is one.
fn number<T: FromStr>(raw: &[u8]) -> Option<T> {
    let is_number = raw.first().is_some_and(|first| *first == b'-' || first.is_ascii_digit());
    std::str::from_utf8(raw).ok().filter(|_| is_number)?.parse().ok()
}

fn finite(raw: &[u8]) -> Option<f64> {
    short_decimal(raw).or_else(|| number(raw)).filter(|number: &f64| number.is_finite())
}

/// A number of few digits, as nearly all are: a quotient of two integers that are floats exactly is rounded once, which is right
/// (W. Clinger, How to Read Floating Point Numbers Accurately, 1990).
fn short_decimal(raw: &[u8]) -> Option<f64> {
    const POWERS: [f64; 9] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
    let (mut digits, mut point) = (0_u32, None);
    for (at, byte) in raw.iter().enumerate() {
        match byte {
            b'0'..=b'9' if at < POWERS.len() => digits = digits * 10 + u32::from(byte - b'0'),
            b'.' if point.is_none() => point = Some(at),
            _ => return None,
        }
    }
    let decimals = point.map_or(0, |point| raw.len() - point - 1);
    Some(f64::from(digits) / POWERS.get(decimals)?)
}

fn double(raw: &[u8], name: &'static str, set: &mut dyn FnMut(&'static str, Value<'_>)) {
    if let Some(number) = finite(raw) {
        set(name, Value::Double(number));
    }
}

fn stop(raw: &[u8], set: &mut dyn FnMut(&'static str, Value<'_>)) {
    let texts: Vec<Cow<'_, str>> = match json::text(raw) {
        Some(one) => vec![one],
        None => json::items(raw).filter_map(json::text).collect(),
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
        // What is checked elsewhere is left out here.
        let odd = r#","top_k":true,"top_p":1e999"#;
        assert_eq!(read(odd, SemConv::V1_41), []);
    }

    proptest::proptest! {
        #[test]
        fn short_numbers_are_read_as_the_standard_library_reads_them(text in "-?(0|[1-9][0-9]{0,9})(\\.[0-9]{1,9})?([eE][-+]?[0-9])?") {
            proptest::prop_assert_eq!(finite(text.as_bytes()), text.parse().ok());
            proptest::prop_assert!(text.len() > 9 || text.contains(['-', 'e', 'E']) == short_decimal(text.as_bytes()).is_none());
        }
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
            (r#","temperature":-2.5E-1"#, "gen_ai.request.temperature", "Double(-0.25)"),
            (r#","seed":-7"#, "gen_ai.request.seed", "Int(-7)"),
            (r#","\u0074op_p":0.1"#, "gen_ai.request.top_p", "Double(0.1)"),
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
