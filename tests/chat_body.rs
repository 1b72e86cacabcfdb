//! The request's bytes: what survives, what is refused, and what is never said aloud.

use allocation_counter::measure;
use bytes::{Bytes, BytesMut};
use llm_layers::{
    BodyLimits, ChatBody, Completion, Error, ErrorKind, InvalidReason, KbScope, LlmRequest, Message, Part,
    RequestContext, TokenUsage, Tool, ToolCall,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::error::Error as _;

const SECRET: &str = "Geheimnis-4711";

const KNOWN: [&str; 27] = [
    "model",
    "messages",
    "stream",
    "logprobs",
    "parallel_tool_calls",
    "store",
    "temperature",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "seed",
    "top_logprobs",
    "tools",
    "functions",
    "response_format",
    "stream_options",
    "metadata",
    "logit_bias",
    "tool_choice",
    "function_call",
    "stop",
    "user",
    "reasoning_effort",
    "service_tier",
];

/// A valid body with further members, each with a leading comma.
fn body(members: &str) -> String {
    format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{SECRET}"}}]{members}}}"#)
}

fn parse(json: impl Into<Bytes>) -> ChatBody {
    ChatBody::parse(json).unwrap()
}

/// The member and the reason of a refusal which is the caller's fault and does not quote the prompt.
fn refusal(error: &Error) -> (Option<&str>, &InvalidReason) {
    for text in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
        assert!(!text.contains(SECRET), "{text}");
    }
    assert!(error.source().is_none(), "a source would quote the prompt");
    assert!(error.status().is_client_error() && !error.is_retryable() && !error.dispatched());
    match error.kind() {
        ErrorKind::InvalidRequest { member, reason } => (member.as_deref(), reason),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_refused(json: &str, member: Option<&str>, expected: &InvalidReason) {
    let error = ChatBody::parse(json.to_owned()).expect_err(json);
    assert_eq!(refusal(&error), (member, expected), "{json}");
}

#[track_caller]
fn assert_mistyped(json: &str, member: &str) {
    let error = ChatBody::parse(json.to_owned()).expect_err(json);
    let (named, reason) = refusal(&error);
    assert_eq!(named, Some(member), "{json}");
    assert!(matches!(reason, InvalidReason::Mistyped { .. }), "{json}: {reason:?}");
}

// ===== what survives =====

fn space() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\n\t"), 1 => Just("\r\n  ")]
}

/// A JSON string of `text`, each letter escaped or not as `escapes` says.
fn spell(text: &str, escapes: &[bool]) -> String {
    let mut out = String::from('"');
    for (at, letter) in text.chars().enumerate() {
        let must = matches!(letter, '"' | '\\') || letter < ' ';
        if must || escapes.get(at % escapes.len().max(1)).copied().unwrap_or(false) {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                let (lower, upper) = (format!("\\u{unit:04x}"), format!("\\u{unit:04X}"));
                out.push_str(if at % 2 == 0 { &lower } else { &upper });
            }
        } else {
            out.push(letter);
        }
    }
    out.push('"');
    out
}

/// The text of a JSON value, in spellings which no serializer would choose.
fn raw_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?(0|[1-9][0-9]{0,40})".prop_map(String::from),
        "-?(0|[1-9][0-9]{0,3})\\.[0-9]{1,25}".prop_map(String::from),
        "-?[1-9](\\.[0-9]{1,3})?[eE][+-]?[0-9]{1,4}".prop_map(String::from),
        (".{0,12}", prop::collection::vec(any::<bool>(), 1..4)).prop_map(|(text, e)| spell(&text, &e)),
        Just(r#""\ud800 lone, \/ \b\f\n\r\t \u0000""#.to_owned()),
        Just(r#""}],{[\"\\""#.to_owned()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            (prop::collection::vec(inner.clone(), 0..4), space(), space())
                .prop_map(|(items, a, b)| format!("[{a}{}{b}]", items.join(&format!("{b},{a}")))),
            (prop::collection::vec((".{0,4}", inner), 0..4), space(), space()).prop_map(|(members, a, b)| {
                // Twice the same name is nobody's business further down.
                let members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| format!("{}{a}:{b}{value}", spell(name, &[])))
                    .collect();
                format!("{{{b}{}{a}}}", members.join(&format!("{a},{b}")))
            }),
        ]
    })
}

fn unknown_name() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", "[a-z_]{1,20}", Just("modеl".to_owned()), Just("Model".to_owned())]
        .prop_filter("known", |name| !KNOWN.contains(&&**name))
}

proptest! {
    #[test]
    fn seed_26_unknown_members_survive_byte_for_byte_and_in_order(
        members in prop::collection::vec(
            (unknown_name(), prop::collection::vec(any::<bool>(), 1..4), raw_value()),
            0..12,
        ),
        at in any::<prop::sample::Index>(),
        model_at in prop::option::of(any::<prop::sample::Index>()),
        (a, b, c) in (space(), space(), space()),
    ) {
        let mut seen = std::collections::HashSet::new();
        let mut all: Vec<(String, String, String)> = members
            .into_iter()
            .filter(|(name, ..)| seen.insert(name.clone()))
            .map(|(name, escapes, value)| (spell(&name, &escapes), name, value))
            .collect();
        let messages = r#"[ {"role":"user" , "content":"a\u0020b","x":[1E5]} ]"#;
        all.insert(at.index(all.len() + 1), (spell("messages", &[]), "messages".into(), messages.into()));
        if let Some(at) = model_at {
            all.insert(at.index(all.len() + 1), (spell("model", &[false, true]), "model".into(), "\"old\"".into()));
        }

        let text: Vec<_> = all.iter().map(|(raw, _, value)| format!("{a}{raw}{b}:{c}{value}{a}")).collect();
        let body = parse(format!("{b}{{{}}}{c}", text.join(",")));
        prop_assert!(body.names().eq(all.iter().map(|(_, name, _)| &**name)));
        for (_, name, value) in &all {
            prop_assert_eq!(body.raw(name), Some(value.as_bytes()));
        }

        let mut expected: Vec<String> = all
            .iter()
            .map(|(raw, name, value)| match &**name {
                "model" => "\"model\":\"acme/\\\"new\"".to_owned(),
                _ => format!("{raw}:{value}"),
            })
            .collect();
        if model_at.is_none() {
            expected.insert(0, "\"model\":\"acme/\\\"new\"".into());
        }
        let mut out = BytesMut::from(&b"before"[..]);
        body.write_to("acme/\"new", &mut out);
        let expected = format!("before{{{}}}", expected.join(","));
        prop_assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    }

    #[test]
    fn a_member_twice_is_refused_however_it_is_spelt(
        name in prop_oneof![unknown_name(), Just("temperature".to_owned()), Just("messages".to_owned())],
        first in prop::collection::vec(any::<bool>(), 1..4),
        second in prop::collection::vec(any::<bool>(), 1..4),
        between in 0..3_usize,
    ) {
        let (value, rest) = match &*name {
            "messages" => (r#"[{"role":"user"}]"#, ""),
            _ => ("1", r#","messages":[{"role":"user"}]"#),
        };
        let between: String = (0..between).map(|n| format!(r#","other member {n}":null"#)).collect();
        let json = format!("{{{}:{value}{between},{}:{value}{rest}}}", spell(&name, &first), spell(&name, &second));
        let error = ChatBody::parse(json).unwrap_err();
        let (member, reason) = refusal(&error);
        let shown: String = name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        prop_assert_eq!(member, Some(&*shown));
        prop_assert_eq!(reason, &InvalidReason::Duplicate);
    }

    #[test]
    fn overlays_equal_the_same_changes_of_a_value(
        start in prop::collection::vec((unknown_name(), value()), 0..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), unknown_name(), prop::option::of(value())), 0..8),
    ) {
        let mut model: Vec<(String, Value)> = vec![("messages".into(), json!([{ "role": "user", "content": "a" }]))];
        for (name, value) in start {
            if model.iter().all(|(known, _)| *known != name) {
                model.push((name, value));
            }
        }
        let text: Vec<_> = model.iter().map(|(name, value)| format!("{}:{value}", spell(name, &[true, false]))).collect();
        let untouched = parse(format!("{{{}}}", text.join(",")));
        let before = untouched.to_json("m");

        let mut body = untouched.clone();
        for (at, name, value) in changes {
            // Half of the changes hit a member which is there.
            let name = match at.index(2 * model.len()) {
                at if at < model.len() && model[at].0 != "messages" => model[at].0.clone(),
                _ => name,
            };
            match value {
                Some(value) => {
                    body = body.with(&name, &value).unwrap();
                    match model.iter_mut().find(|(known, _)| *known == name) {
                        Some(member) => member.1 = value,
                        None => model.push((name, value)),
                    }
                }
                None => {
                    body = body.without(&name);
                    model.retain(|(known, _)| *known != name);
                }
            }
        }

        prop_assert!(body.names().eq(model.iter().map(|(name, _)| &**name)));
        let mut expected: serde_json::Map<String, Value> = model.iter().cloned().collect();
        expected.insert("model".into(), "m".into());
        let wire = body.to_json("m");
        prop_assert_eq!(serde_json::from_slice::<Value>(&wire).unwrap(), Value::Object(expected));
        prop_assert_eq!(untouched.to_json("m"), before, "the body that it was made of is as it was");

        let again = parse(wire.clone());
        prop_assert_eq!(again.to_json("m"), wire, "what is written can be read again");
        for (name, value) in &model {
            prop_assert_eq!(&again.get::<Value>(name).unwrap().unwrap_or_default(), value);
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>) {
        read_all(bytes);
    }

    #[test]
    fn no_damage_makes_it_panic(
        value in value(),
        at in any::<prop::sample::Index>(),
        damage in prop_oneof![Just(None), prop::sample::select(&b"\"\\{}[],:0e-ntf \xff\x00"[..]).prop_map(Some)],
    ) {
        let mut bytes = body(&format!(r#","tools":[{value}],"stream_options":{{"include_usage":true}},"x":{value}"#)).into_bytes();
        let at = at.index(bytes.len());
        match damage {
            Some(byte) => bytes[at] = byte,
            None => bytes.truncate(at),
        }
        read_all(bytes);
    }

    #[test]
    fn messages_are_read_as_serde_reads_them(
        messages in prop::collection::vec((".{1,8}", prop::option::of(content()), prop::collection::vec(any::<bool>(), 1..4)), 1..6),
        (pretty, a, b) in (any::<bool>(), space(), space()),
    ) {
        let values: Vec<Value> = messages
            .iter()
            .map(|(role, content, _)| match content {
                Some(content) => json!({ "content": content, "role": role, "tool_calls": [{ "content": "not this" }] }),
                None => json!({ "role": role }),
            })
            .collect();
        let texts: Vec<_> = values.iter().map(Value::to_string).collect();
        let body = match pretty {
            true => serde_json::to_string_pretty(&json!({ "messages": values })).unwrap(),
            false => format!(r#"{{"messages":[{b}{}{a}]}}"#, texts.join(&format!("{a},{b}"))),
        };
        let body = parse(body);

        prop_assert_eq!(body.messages().count(), messages.len());
        for (seen, (value, (role, content, _))) in body.messages().zip(values.iter().zip(&messages)) {
            prop_assert_eq!(&*seen.role(), &**role);
            prop_assert_eq!(&serde_json::from_slice::<Value>(seen.raw()).unwrap(), value);
            let raw = seen.content().map(|raw| serde_json::from_slice::<Value>(raw).unwrap());
            prop_assert_eq!(&raw, &content.clone().filter(|content| !content.is_null()));
            let text = match content {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(parts)) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
                _ => String::new(),
            };
            prop_assert_eq!(&*seen.text(), text);
        }
    }

    #[test]
    fn text_is_the_same_however_it_is_split_into_parts(
        text in ".{0,24}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        images: bool,
    ) {
        let letters: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(letters.len() + 1)).chain([0, letters.len()]).collect();
        cuts.sort_unstable();
        let mut parts = Vec::new();
        for pair in cuts.windows(2) {
            parts.push(Part::text(letters[pair[0]..pair[1]].iter().collect::<String>()));
            if images {
                parts.push(Part::image_url("data:image/png;base64,AA=="));
            }
        }
        let whole = ChatBody::builder().user(&*text).build().unwrap();
        let split = ChatBody::builder().message(Message::user_parts(parts)).build().unwrap();
        prop_assert_eq!(whole.messages().next().unwrap().text(), &*text);
        prop_assert_eq!(split.messages().next().unwrap().text(), &*text);
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((".{0,4}", inner), 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn content() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        ".{0,12}".prop_map(Value::from),
        prop::collection::vec(
            prop_oneof![
                ".{0,8}".prop_map(|text| json!({ "type": "text", "text": text })),
                Just(json!({ "type": "image_url", "image_url": { "url": "data:", "text": "not this" } })),
                value(),
            ],
            0..4
        )
        .prop_map(Value::from),
    ]
}

/// Every view of whatever can be read at all.
fn read_all(bytes: Vec<u8>) {
    let Ok(body) = ChatBody::parse(bytes) else { return };
    for message in body.messages() {
        let _ = (message.role(), message.text(), message.content(), format!("{message:?}"));
    }
    let _ = (body.model(), body.is_streaming(), body.wants_stream_usage(), body.tools().count());
    let _ = (body.temperature(), body.max_output_tokens(), body.n(), body.response_format());
    let names: Vec<_> = body.names().map(str::to_owned).collect();
    assert!(names.iter().all(|name| body.raw(name).is_some()));
    let wire = body.with("temperature", 1).unwrap().without("stream").to_json("m");
    parse(wire);
}

#[test]
fn what_is_changed_in_nothing_is_sent_as_it_came() {
    let source = Bytes::from_static(br#" {"model" : "m","messages":[{"role":"user","content":"Hi"}] } "#);
    let body = ChatBody::parse(source.clone()).unwrap();
    let sent = body.to_json("m");
    assert_eq!((sent.as_ptr(), sent.len()), (source.as_ptr(), source.len()));
    let compact = r#"{"model":"n","messages":[{"role":"user","content":"Hi"}]}"#;
    assert_eq!(body.to_json("n"), compact);
    for changed in [body.with("model", "x").unwrap(), body.without("nothing")] {
        assert_eq!(changed.to_json("n"), compact);
        assert_eq!(changed.to_json("m"), compact.replace("\"n\"", "\"m\""));
    }
    // Names that are spelt otherwise than they are, or are missing, are written.
    for (name, model) in
        [(r#""\u006d""#, "m"), (r#""a\\b""#, r"a\b"), (r#""a\\b""#, r"a\\b"), (r#""m""#, "M")]
    {
        let body = ChatBody::parse(format!(r#"{{"model":{name},"messages":[{{"role":"user"}}]}}"#)).unwrap();
        let sent: Value = serde_json::from_slice(&body.to_json(model)).unwrap();
        assert_eq!(sent["model"], model);
    }
    let nameless = ChatBody::parse(r#"{"messages":[{"role":"user"}]}"#).unwrap();
    assert_eq!(nameless.to_json("m"), r#"{"model":"m","messages":[{"role":"user"}]}"#);
}

#[test]
fn seed_26_tools_and_further_arguments_pass_through() {
    let members = r#","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}],"tool_choice":{"type":"function","function":{"name":"f"}},"timeout":12.50,"extra_body":{"top_k":1e1}"#;
    let request = LlmRequest::parse(body(members)).unwrap();
    let sent = request.body.to_json("gpt");
    let sent = std::str::from_utf8(&sent).unwrap();
    assert!(sent.ends_with(&format!("{members}}}")), "{sent}");
    assert_eq!(request.body.tools().count(), 1);
}

#[test]
fn seed_26_agent_task_and_user_never_reach_the_provider() {
    let context = RequestContext::new()
        .with_user_id("ada")
        .with_agent_name("planner")
        .with_task_type("summary")
        .with_departments(["r&d"]);
    let request = LlmRequest::parse(body("")).unwrap().with_context(context);
    assert_eq!(request.body.to_json(&request.model), body(""));
    assert_eq!(request.context.task_type(), Some("summary"));
    assert_eq!(request.context.agent_name(), Some("planner"));
}

#[test]
fn a_null_member_is_as_good_as_absent_but_still_sent() {
    for name in KNOWN.iter().filter(|name| !["model", "messages"].contains(name)) {
        let body = parse(body(&format!(r#","{name}":null"#)));
        assert_eq!(body.raw(name), Some(&b"null"[..]));
        assert_eq!(body.get::<Value>(name).unwrap(), None);
    }
    let body = parse(body(r#","max_completion_tokens":null,"max_tokens":7,"n":null,"stream":null"#));
    assert_eq!(
        (body.max_output_tokens().unwrap(), body.n().unwrap(), body.is_streaming()),
        (Some(7), 1, false)
    );
    assert!(body.response_format().is_none());
}

#[test]
fn changed_members_keep_their_place_and_their_new_type_is_checked() {
    let escaped = parse(body(r#","\u0073tream":true,"x":1"#));
    assert!(escaped.is_streaming());
    let whole = escaped.with("stream", false).unwrap();
    assert!(!whole.is_streaming() && escaped.is_streaming());
    assert_eq!(whole.to_json("m"), body(r#","\u0073tream":false,"x":1"#));
    assert!(!escaped.without("stream").is_streaming());

    let error = escaped.with("temperature", "warm").unwrap_err();
    assert_eq!(refusal(&error).0, Some("temperature"));
    let error = escaped.with("messages", json!([])).unwrap_err();
    assert_eq!(refusal(&error), (Some("messages"), &InvalidReason::Empty));
    let error = escaped.with("messages", json!([{ "content": SECRET }])).unwrap_err();
    assert_eq!(refusal(&error), (Some("messages[0].role"), &InvalidReason::Missing));
    let odd = std::collections::HashMap::from([(vec![1], 2)]);
    assert_eq!(refusal(&escaped.with("x", odd).unwrap_err()).0, Some("x"));
}

// ===== what is refused =====

#[test]
fn a_known_member_of_the_wrong_type_is_named() {
    let values = ["true", "0.5", "-7", "7", "\"text\"", "[]", "{}"];
    let takes = |name: &str| -> &[&str] {
        match name {
            "messages" => &[],
            "stream" | "logprobs" | "parallel_tool_calls" | "store" => &["true"],
            "temperature" | "top_p" | "frequency_penalty" | "presence_penalty" => &["0.5", "-7", "7"],
            "max_tokens" | "max_completion_tokens" | "n" | "seed" | "top_logprobs" => &["-7", "7"],
            "tools" | "functions" => &["[]"],
            "response_format" | "stream_options" | "metadata" | "logit_bias" => &["{}"],
            "tool_choice" | "function_call" => &["\"text\"", "{}"],
            "stop" => &["\"text\"", "[]"],
            "model" | "user" | "reasoning_effort" | "service_tier" => &["\"text\""],
            other => panic!("{other} is not in the table"),
        }
    };
    for name in KNOWN {
        for value in values {
            let json = match name {
                "messages" => format!(r#"{{"messages":{value}}}"#),
                _ => format!(r#"{{"messages":[{{"role":"user","content":"{SECRET}"}}],"{name}":{value}}}"#),
            };
            match takes(name).contains(&value) {
                true => drop(parse(json)),
                false if (name, value) == ("messages", "[]") => {
                    assert_refused(&json, Some("messages"), &InvalidReason::Empty);
                }
                false => assert_mistyped(&json, name),
            }
        }
    }
    assert_mistyped(&body("").replace("\"m\"", "null"), "model");
    assert_mistyped(r#"{"messages":null}"#, "messages");
    assert_mistyped(&body(r#","n":1e3"#), "n");
    assert_mistyped(&body(r#","\u006e":[]"#), "n");
}

#[test]
fn messages_are_checked_one_by_one() {
    assert_refused("{}", Some("messages"), &InvalidReason::Missing);
    assert_refused(r#"{"model":"m"}"#, Some("messages"), &InvalidReason::Missing);
    assert_refused(r#"{"messages":[ ]}"#, Some("messages"), &InvalidReason::Empty);
    for odd in ["null", "1", "\"Geheimnis-4711\"", "[]", "[{\"role\":\"user\"}]"] {
        assert_mistyped(&format!(r#"{{"messages":[{{"role":"user"}},{odd}]}}"#), "messages[1]");
    }
    let no_role = format!(r#"{{"messages":[{{"role":"user"}},{{"content":"{SECRET}"}}]}}"#);
    assert_refused(&no_role, Some("messages[1].role"), &InvalidReason::Missing);
    for odd in ["null", "1", "[\"user\"]", "{}"] {
        assert_mistyped(
            &format!(r#"{{"messages":[{{"content":"{SECRET}","role":{odd}}}]}}"#),
            "messages[0].role",
        );
    }
    // An escaped name is the same name.
    parse(r#"{"m\u0065ssages":[{"r\u006fle":"user"}]}"#);
}

#[test]
fn a_request_needs_a_model_and_a_body_does_not() {
    let json = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    assert_eq!(parse(json).model(), None);
    let error = LlmRequest::parse(json).unwrap_err();
    assert_eq!(refusal(&error), (Some("model"), &InvalidReason::Missing));
    let request = LlmRequest::parse(body("").replace("\"m\"", r#""acme\/\u006d""#)).unwrap();
    assert_eq!((&*request.model, &*request.requested), ("acme/m", "acme/m"));
}

#[test]
fn a_model_has_a_name_of_bounded_length() {
    let with = |name: &str| body("").replace("\"m\"", &format!("\"{name}\""));
    let longest = "x".repeat(256);
    assert_eq!(parse(with(&longest)).model().unwrap(), &*longest);
    for odd in [&*"x".repeat(257), "", " ", r"\u00a0\n", r"\ud800"] {
        assert_mistyped(&with(odd), "model");
    }
}

#[test]
fn what_is_not_one_json_object_is_refused_and_not_quoted() {
    for json in ["[]", "null", "7", "\"Geheimnis-4711\"", r#"[{"messages":[{"role":"user"}]}]"#] {
        let error = ChatBody::parse(json.to_owned()).expect_err(json);
        assert!(matches!(refusal(&error), (None, InvalidReason::Mistyped { .. })), "{json}");
    }
    let whole = body(r#","x":1"#);
    let damaged = [
        String::new(),
        "{".into(),
        format!("{whole}{{}}"),
        format!("{whole},"),
        whole.replace("\"x\":1", "\"x\":01"),
        whole.replace("\"x\":1", "\"x\":1,"),
        whole.replace("\"x\":1", "\"x\":NaN"),
        whole.replace("\"x\":1", "\"x\":'Geheimnis-4711'"),
        whole.replace("\"x\":1", "x:1"),
        whole.replace(SECRET, &format!("{SECRET}\n")),
        whole.replace(SECRET, &format!("{SECRET}\\x")),
        format!("\u{feff}{whole}"),
    ];
    for json in &damaged {
        let error = ChatBody::parse(json.clone()).expect_err(json);
        assert!(
            matches!(refusal(&error), (None, InvalidReason::Syntax { line: 1.., .. })),
            "{json}: {error}"
        );
    }
    let no_text = whole.replace('x', "?").into_bytes();
    let no_text: Vec<u8> = no_text.iter().map(|byte| if *byte == b'?' { 0xff } else { *byte }).collect();
    let error = ChatBody::parse(no_text).unwrap_err();
    assert!(matches!(refusal(&error), (None, InvalidReason::Syntax { .. })));
    // Truncated anywhere it is no body, and says nothing of what it held.
    for at in 0..whole.len() {
        let error = ChatBody::parse(whole[..at].to_owned()).unwrap_err();
        assert!(matches!(refusal(&error), (None, InvalidReason::Syntax { .. })), "{}", &whole[..at]);
    }
}

#[test]
fn a_million_nested_arrays_are_refused_before_they_are_walked() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!(
            "{{\"messages\":[{{\"role\":\"user\"}}],\"x\":{}1{}}}",
            open.repeat(1_000_000),
            close.repeat(1_000_000)
        );
        let limits = BodyLimits::default();
        let mut error = None;
        let spent = measure(|| error = ChatBody::parse_within(Bytes::from(deep), &limits).err());
        let error = error.unwrap();
        assert_eq!(refusal(&error), (None, &InvalidReason::TooDeep { limit: 128 }));
        assert!(spent.count_total < 20, "{spent:?}");

        let unclosed = open.repeat(1_000_000);
        let error = ChatBody::parse(unclosed).unwrap_err();
        assert_eq!(refusal(&error), (None, &InvalidReason::TooDeep { limit: 128 }));
    }
}

#[test]
fn each_bound_is_exact() {
    let default = BodyLimits::default();
    let json = body(r#","x":[[[["]]]]{{{{"]]]],"y":2"#);
    for (limits, reason) in [
        (default.clone().with_max_bytes(json.len()), InvalidReason::TooLarge { limit: json.len() - 1 }),
        (default.clone().with_max_depth(5), InvalidReason::TooDeep { limit: 4 }),
        (default.with_max_members(4), InvalidReason::TooMany { limit: 3 }),
    ] {
        ChatBody::parse_within(json.clone(), &limits).unwrap();
        let less = match reason {
            InvalidReason::TooLarge { limit } => limits.with_max_bytes(limit),
            InvalidReason::TooDeep { limit } => limits.with_max_depth(limit),
            InvalidReason::TooMany { limit } => limits.with_max_members(limit),
            _ => unreachable!(),
        };
        let error = LlmRequest::parse_within(json.clone(), &less).unwrap_err();
        assert_eq!(refusal(&error), (None, &reason));
        let status = if matches!(reason, InvalidReason::TooLarge { .. }) { 413 } else { 400 };
        assert_eq!(error.status().as_u16(), status);
    }
    let many: String = (0..255).map(|n| format!(",\"x{n}\":0")).collect();
    assert_refused(&body(&many), None, &InvalidReason::TooMany { limit: 256 });
    parse(body(&many[..many.rfind(',').unwrap()]));
}

#[test]
fn depth_may_exceed_what_serde_takes_if_the_host_says_so() {
    let deep = body(&format!(r#","x":{}{}"#, "[".repeat(10_000), "]".repeat(10_000)));
    let body = ChatBody::parse_within(deep.clone(), &BodyLimits::default().with_max_depth(10_001)).unwrap();
    assert_eq!(body.to_json("m"), deep);
}

#[test]
fn the_name_of_a_member_is_shown_at_bounded_length() {
    let name = "ü".repeat(10_000);
    let error = ChatBody::parse(body(&format!(r#","{name}":1,"{name}":2"#))).unwrap_err();
    assert_eq!(refusal(&error).0, Some(&*"ü".repeat(64)));
}

#[test]
fn getters_name_the_member_that_they_cannot_read() {
    let body = parse(body(r#","max_tokens":-1,"n":99999999999999999999,"x":"Geheimnis-4711""#));
    assert_eq!(refusal(&body.max_output_tokens().unwrap_err()).0, Some("max_tokens"));
    assert_eq!(refusal(&body.n().unwrap_err()).0, Some("n"));
    assert_eq!(refusal(&body.get::<u8>("x").unwrap_err()).0, Some("x"));
    assert_eq!(body.get::<&str>("x").unwrap(), Some(SECRET));
}

// ===== what is never said =====

#[test]
fn debug_of_what_carries_prompts_shows_neither_prompt_nor_user() {
    let user = "ada.lovelace@example.org";
    let context = RequestContext::new()
        .with_user_id(user)
        .with_conversation_id(SECRET)
        .with_kb(KbScope::new(SECRET).with_acl_hash(SECRET));
    let calls = [ToolCall::function("id", "f", SECRET)];
    let parts = [Part::text(SECRET), Part::image_url(SECRET), Part::json(json!({ "type": SECRET }))];
    let messages = [
        Message::system(SECRET),
        Message::user_parts(parts.clone()),
        Message::assistant(SECRET).with_tool_calls(calls.clone()),
        Message::tool("id", SECRET),
    ];
    let tool = Tool::function("f", SECRET, json!({ "description": SECRET }));
    let builder = messages
        .iter()
        .cloned()
        .fold(ChatBody::builder(), |b, m| b.message(m))
        .tool(tool.clone())
        .set("user", user);
    let mut request = LlmRequest::new("m", builder.clone().build().unwrap()).with_context(context.clone());
    request.body = request.body.with("x", SECRET).unwrap();
    request.insert_extension(SECRET);
    let completion = Completion::text(SECRET, TokenUsage::new(1, 1));
    let chunk = llm_layers::StreamChunk::text(SECRET);
    let shown = [
        format!("{request:#?}"),
        format!("{request:?}"),
        format!("{:?}", request.body),
        format!("{context:?}"),
        format!("{messages:?} {parts:?} {calls:?} {tool:?} {builder:?}"),
        format!("{:?}", request.body.messages().collect::<Vec<_>>()),
        format!("{completion:?} {chunk:?}"),
        format!("{:?}", llm_layers::LlmResponse::new("m", completion.clone())),
    ];
    assert!(request.body.messages().any(|m| m.text().contains(SECRET)) && completion.content() == SECRET);
    for text in shown {
        assert!(!text.contains(SECRET) && !text.contains(user), "{text}");
        assert!(!text.is_empty());
    }
}

// ===== what it costs =====

fn megabyte() -> LlmRequest {
    let prompt = "All work and no play makes Jack a dull boy. ".repeat(25_000);
    let mut request = LlmRequest::parse(body("").replace(SECRET, &prompt)).unwrap();
    request.context = RequestContext::new().with_user_id("ada").with_departments(["a", "b"]);
    request.insert_extension("something");
    assert!(request.body.input_bytes() > 1_000_000);
    request
}

#[test]
fn cloning_a_megabyte_allocates_nothing() {
    let request = megabyte();
    let mut clone = None;
    assert_eq!(measure(|| clone = Some(request.clone())).count_total, 0);
    assert_eq!(clone.unwrap().body.to_json("m"), request.body.to_json("m"));
}

#[test]
fn reading_and_changing_a_megabyte_copies_none_of_it_and_writing_copies_it_once() {
    let request = megabyte();
    let json = request.body.to_json("m");
    let mut body = None;
    let spent = measure(|| body = Some(parse(json.clone())));
    assert!(spent.bytes_total < 4096, "{spent:?}");
    let spent =
        measure(|| body = Some(body.take().unwrap().with("temperature", 0.5).unwrap().without("model")));
    assert!(spent.bytes_total < 4096, "{spent:?}");
    let body = body.unwrap();
    let spent = measure(|| assert_eq!(body.messages().next().unwrap().text().len(), 1_100_000));
    assert_eq!(spent.count_total, 0);
    let mut out = BytesMut::with_capacity(json.len() + 256);
    let spent = measure(|| body.write_to("another/model", &mut out));
    assert_eq!(spent.count_total, 0, "{spent:?}");
    let spent = measure(|| drop(body.to_json("another/model")));
    assert!(spent.bytes_total < json.len() as u64 + 4096, "{spent:?}");
}

#[test]
fn an_extension_added_to_a_clone_is_not_seen_by_the_original() {
    let request = megabyte();
    let mut clone = request.clone();
    clone.insert_extension(7_u8);
    clone.context = clone.context.with_user_id("bob");
    assert_eq!((clone.extension::<u8>(), request.extension::<u8>()), (Some(&7), None));
    assert_eq!(clone.extension::<&str>(), Some(&"something"));
    assert_eq!((clone.context.user_id(), request.context.user_id()), (Some("bob"), Some("ada")));
}

#[test]
fn a_message_says_once_who_speaks_and_what() {
    for (message, member) in [
        (r#"{"role":"user","content":"a","role":"system"}"#, "messages[0].role"),
        (r#"{"role":"user","content":"a","content":"b"}"#, "messages[0].content"),
        (r#"{"role":"user","content":"a","cont\u0065nt":"b"}"#, "messages[0].content"),
    ] {
        let error = ChatBody::parse(format!(r#"{{"messages":[{message}]}}"#)).unwrap_err();
        assert_eq!(refusal(&error), (Some(member), &InvalidReason::Duplicate), "{message}");
    }
}

/// Within a part the last counts, as for providers.
#[test]
fn a_part_that_says_something_twice_is_read_as_its_provider_reads_it() {
    let parts = r#"[{"type":"image_url","text":"a","image_url":{"url":"x"},"text":"b","type":"text"},{"type":"text","type":"image_url"}]"#;
    let body = parse(format!(r#"{{"messages":[{{"role":"user","content":{parts}}}]}}"#));
    let read: Value = serde_json::from_str(parts).unwrap();
    assert_eq!(read[0]["text"], "b");
    assert_eq!(body.messages().next().unwrap().text(), "b");
    assert_eq!(body.attached().parts, 1);
}

#[test]
fn what_the_caller_names_cannot_forge_a_line_of_a_log() {
    let twice = r#"{"a\nINFO all is well":1,"a\nINFO all is well":2,"messages":[{"role":"user"}]}"#;
    let error = ChatBody::parse(twice).unwrap_err();
    assert!(!error.to_string().contains('\n'), "{error}");
    let model = r#"{"model":"a\nb","messages":[{"role":"user"}]}"#;
    let error = LlmRequest::parse(model).unwrap_err();
    assert_eq!(refusal(&error).0, Some("model"));
}
