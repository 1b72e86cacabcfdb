//! A stream as the whole answer that it was.

use crate::{Completion, answer::Calls, json};
use std::collections::BTreeMap;

/// One choice, put together.
#[derive(Default)]
struct Choice {
    message: Members,
    others: Members,
}

/// Members in the order in which they first came, each as JSON by its raw name.
#[derive(Default)]
struct Members(Vec<(Vec<u8>, Value)>);

/// A value that pieces are added to.
enum Value {
    /// Came once, or was the same each time.
    Json(Vec<u8>),
    /// Text without its quotes, as JSON spells it.
    Text(Vec<u8>),
    /// Items without their brackets.
    List(Vec<u8>),
    Object(Members),
    /// An object of which each member is as it was told last.
    Latest(Members),
    /// Calls of tools by their numbers.
    Numbered(BTreeMap<u64, Members>, Calls),
}

/// What a member of a delta means for the one before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The same again, or nothing.
    Once,
    Append,
    Extend,
    Merge,
    /// Each member as it was told last.
    Latest,
    ByNumber,
}

/// The whole answer; `None` if it cannot be told how its pieces belong together, or what it used up.
pub(super) fn whole<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Option<Completion> {
    let mut top = Members::default();
    let mut choices: BTreeMap<u64, Choice> = BTreeMap::new();
    let mut has_usage = false;
    for chunk in chunks.filter(|chunk| !chunk.is_empty()) {
        for (name, value) in json::members(chunk) {
            match json::string(name)?.as_ref() {
                "object" => {}
                "choices" => {
                    for (at, choice) in json::items(value).enumerate() {
                        let index = index(choice).unwrap_or(at as u64);
                        choices.entry(index).or_default().add(choice)?;
                    }
                }
                // The last report is the one that counts.
                said @ ("usage" | "x_groq") => {
                    has_usage |= said == "usage" && value != b"null";
                    top.set(name, value);
                }
                // May differ from chunk to chunk, and says nothing of the answer.
                "obfuscation" | "created" | "id" | "system_fingerprint" => top.keep_first(name, value),
                _ => top.add(name, value, Rule::Once)?,
            }
        }
    }
    // A whole answer would have said what it used.
    if !has_usage {
        return None;
    }
    let mut out = br#"{"object":"chat.completion""#.to_vec();
    top.write(&mut out);
    out.extend_from_slice(br#","choices":["#);
    for (at, (index, choice)) in choices.into_iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"{" } else { b",{" });
        out.extend_from_slice(format!(r#""index":{index},"message":{{"role":"#).as_bytes());
        choice.write(&mut out);
    }
    out.extend_from_slice(b"]}");
    Completion::parse(out).ok()
}

fn index(object: &[u8]) -> Option<u64> {
    std::str::from_utf8(json::member(object, "index")?).ok()?.parse().ok()
}

impl Choice {
    fn add(&mut self, choice: &[u8]) -> Option<()> {
        for (name, value) in json::members(choice) {
            match json::string(name)?.as_ref() {
                // The second: up to where a stream was looked through when this was sent.
                "index" | "content_filter_offsets" => {}
                "delta" => {
                    for (name, value) in json::members(value) {
                        self.message.add(name, value, rule(&json::string(name)?))?;
                    }
                }
                "logprobs" => self.others.add(name, value, Rule::Merge)?,
                "content_filter_results" | "content_filter_result" => {
                    self.others.add(name, value, Rule::Latest)?;
                }
                _ => self.others.add(name, value, Rule::Once)?,
            }
        }
        Some(())
    }

    fn write(mut self, out: &mut Vec<u8>) {
        let role = self.message.take("role");
        match role {
            Some(role) => role.write(out),
            None => out.extend_from_slice(br#""assistant""#),
        }
        if !self.message.0.iter().any(|(name, _)| name == br#""content""#) {
            out.extend_from_slice(br#","content":null"#);
        }
        self.message.write(out);
        out.push(b'}');
        self.others.write(out);
        out.push(b'}');
    }
}

/// How the pieces of a member of a delta, or of what is in it, belong together.
fn rule(name: &str) -> Rule {
    match name {
        "content" | "reasoning_content" | "reasoning" | "refusal" | "arguments" => Rule::Append,
        "tool_calls" => Rule::ByNumber,
        "function_call" | "function" => Rule::Merge,
        _ => Rule::Once,
    }
}

impl Members {
    fn at(&mut self, name: &[u8]) -> Option<&mut Value> {
        self.0.iter_mut().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn has_text(&mut self, name: &[u8]) -> bool {
        matches!(self.at(name), Some(Value::Json(json)) if !json::is_nothing(json))
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        if value == b"null" {
            return;
        }
        match self.at(name) {
            Some(known) => *known = Value::Json(value.to_vec()),
            None => self.0.push((name.to_vec(), Value::Json(value.to_vec()))),
        }
    }

    /// Azure's first chunk says of its filters only, with an empty id and no time.
    fn keep_first(&mut self, name: &[u8], value: &[u8]) {
        if !json::is_nothing(value) && value != b"0" && self.at(name).is_none() {
            self.0.push((name.to_vec(), Value::Json(value.to_vec())));
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let at =
            self.0.iter().position(|(known, _)| json::string(known).is_some_and(|known| known == name))?;
        Some(self.0.remove(at).1)
    }

    fn add(&mut self, name: &[u8], value: &[u8], rule: Rule) -> Option<()> {
        if value == b"null" {
            return Some(());
        }
        if self.at(name).is_none() {
            self.0.push((name.to_vec(), Value::empty(rule, value)));
        }
        self.at(name)?.add(value)
    }

    fn write(self, out: &mut Vec<u8>) {
        for (name, value) in self.0 {
            out.push(b',');
            out.extend_from_slice(&name);
            out.push(b':');
            value.write(out);
        }
    }
}

impl Value {
    /// Nothing yet, of the kind that `value` is the first piece of.
    fn empty(rule: Rule, value: &[u8]) -> Self {
        match (rule, value.first()) {
            (Rule::Append, Some(b'"')) => Self::Text(Vec::new()),
            (Rule::Extend | Rule::Append, Some(b'[')) => Self::List(Vec::new()),
            (Rule::Merge, Some(b'{')) => Self::Object(Members::default()),
            (Rule::Latest, Some(b'{')) => Self::Latest(Members::default()),
            (Rule::ByNumber, Some(b'[')) => Self::Numbered(BTreeMap::new(), Calls::default()),
            _ => Self::Json(value.to_vec()),
        }
    }

    fn add(&mut self, piece: &[u8]) -> Option<()> {
        match (self, piece) {
            (Self::Json(known), piece) if known == piece => {}
            // Servers repeat `"type":"function"` and send empty names in later pieces.
            (Self::Json(_), b"\"\"") => {}
            (Self::Json(known), piece) if known == b"\"\"" => *known = piece.to_vec(),
            (Self::Text(text), [b'"', inner @ .., b'"']) => text.extend_from_slice(inner),
            (Self::List(list), [b'[', inner @ .., b']']) => {
                if json::items(piece).next().is_some() {
                    if !list.is_empty() {
                        list.push(b',');
                    }
                    list.extend_from_slice(inner);
                }
            }
            (Self::Object(members), [b'{', ..]) => {
                for (name, value) in json::members(piece) {
                    let rule = match rule(&json::string(name)?) {
                        // The lists of `logprobs`.
                        Rule::Append if value.first() == Some(&b'[') => Rule::Extend,
                        rule => rule,
                    };
                    members.add(name, value, rule)?;
                }
            }
            (Self::Latest(members), [b'{', ..]) => {
                json::members(piece).for_each(|(name, value)| members.set(name, value));
            }
            (Self::Numbered(items, calls), [b'[', ..]) => {
                for (at, item) in json::items(piece).enumerate() {
                    let members = items.entry(calls.number(at, item)).or_default();
                    for (name, value) in json::members(item) {
                        let plain = json::string(name)?;
                        match &*plain {
                            "index" => {}
                            // Pieces of one call may have other ids.
                            "id" if members.has_text(name) => {}
                            plain => members.add(name, value, rule(plain))?,
                        }
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn write(self, out: &mut Vec<u8>) {
        match self {
            Self::Json(json) => out.extend_from_slice(&json),
            Self::Text(text) => {
                out.push(b'"');
                out.extend_from_slice(&text);
                out.push(b'"');
            }
            Self::List(list) => {
                out.push(b'[');
                out.extend_from_slice(&list);
                out.push(b']');
            }
            Self::Object(members) | Self::Latest(members) => members.write_object(out),
            Self::Numbered(items, _) => {
                out.push(b'[');
                for (at, members) in items.into_values().enumerate() {
                    if at > 0 {
                        out.push(b',');
                    }
                    members.write_object(out);
                }
                out.push(b']');
            }
        }
    }
}

impl Members {
    fn write_object(self, out: &mut Vec<u8>) {
        let start = out.len();
        self.write(out);
        match out.get_mut(start) {
            Some(comma) => *comma = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FinishReason, StreamChunk, TokenUsage, http::into_chunks};
    use serde_json::{Value as Json, json};

    fn data(chunks: &[StreamChunk]) -> impl Iterator<Item = &[u8]> {
        chunks.iter().map(|chunk| &chunk.data()[..])
    }

    fn of(chunks: &[&str]) -> Option<Json> {
        let chunks: Vec<_> =
            chunks.iter().map(|chunk| StreamChunk::parse((*chunk).to_owned()).unwrap()).collect();
        whole(data(&chunks)).map(|completion| completion.json().unwrap())
    }

    fn delta(delta: &str) -> String {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#
        )
    }

    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;

    fn message(deltas: &[&str]) -> Option<Json> {
        let chunks = deltas.iter().map(|d| delta(d)).chain([USAGE.to_owned()]);
        let chunks: Vec<_> = chunks.collect();
        let chunks: Vec<_> = chunks.iter().map(String::as_str).collect();
        of(&chunks).map(|whole| whole["choices"][0]["message"].clone())
    }

    #[test]
    fn pieces_of_text_belong_together_even_within_a_letter() {
        let said = message(&[
            r#"{"role":"assistant","content":"","refusal":null}"#,
            r#"{"content":"a\"\ud83d"}"#,
            r#"{"content":"\ude00b"}"#,
            r#"{}"#,
        ]);
        assert_eq!(said, Some(json!({ "role": "assistant", "content": "a\"😀b" })));
        let thought = message(&[r#"{"reasoning_content":"h"}"#, r#"{"reasoning_content":"m"}"#]);
        assert_eq!(thought, Some(json!({ "role": "assistant", "content": null, "reasoning_content": "hm" })));
    }

    #[test]
    fn calls_of_tools_belong_together_by_their_index() {
        let said = message(&[
            r#"{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}"#,
            r#"{"tool_calls":[{"index":1,"id":"b","type":"function","function":{"name":"g","arguments":"{\"y\""}}]}"#,
            r#"{"tool_calls":[{"index":0,"id":"","type":"function","function":{"arguments":"{}"}}]}"#,
            r#"{"tool_calls":[{"index":1,"id":"another","function":{"arguments":":1}"}}]}"#,
        ]);
        let call = |id: &str, name: &str, arguments: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": arguments } });
        let calls = json!([call("a", "f", "{}"), call("b", "g", "{\"y\":1}")]);
        assert_eq!(said, Some(json!({ "role": "assistant", "content": null, "tool_calls": calls })));
    }

    #[test]
    fn calls_of_tools_without_numbers_stay_apart() {
        let call = |id: &str, arguments: &str| {
            let function = json!({ "name": "f", "arguments": arguments });
            let mut call = json!({ "function": function });
            if !id.is_empty() {
                call["id"] = id.into();
            }
            call
        };
        for (a, b) in [("a", "b"), ("", ""), ("a", ""), ("", "b")] {
            let said = message(&[
                &json!({ "tool_calls": [call(a, "1")] }).to_string(),
                r#"{"tool_calls":[{"function":{"arguments":"2"}}]}"#,
                &json!({ "tool_calls": [call(b, "3")] }).to_string(),
                r#"{"tool_calls":[{"id":"","function":{"name":"","arguments":"4"}}]}"#,
            ])
            .unwrap_or_else(|| panic!("{a:?} {b:?}"));
            let calls: Vec<_> = said["tool_calls"].as_array().unwrap().iter().collect();
            let texts: Vec<_> = calls.iter().map(|call| &call["function"]["arguments"]).collect();
            assert_eq!(texts, ["12", "34"], "{a:?} {b:?}");
        }
        let neighbours = message(&[r#"{"tool_calls":[{"id":"a"},{"id":"b"}]}"#]).unwrap();
        assert_eq!(neighbours["tool_calls"], json!([{ "id": "a" }, { "id": "b" }]));
    }

    #[test]
    fn choices_usage_and_what_stands_around_are_kept() {
        let whole = of(&[
            r#"{"id":"c","created":7,"model":"m","service_tier":"x","choices":[{"index":1,"delta":{"content":"b"}}],"usage":null}"#,
            r#"{"id":"c","created":8,"model":"m","service_tier":"x","choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a"}]},"finish_reason":"stop"}]}"#,
            r#"{"id":"c","created":8,"model":"m","choices":[{"index":1,"delta":{},"logprobs":{"content":[]},"finish_reason":"length"}]}"#,
            r#"{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#,
        ])
        .unwrap();
        let choice = |index: u32, text: &str| json!({ "role": "assistant", "content": text, "index": index });
        let (first, second) = (&whole["choices"][0], &whole["choices"][1]);
        assert_eq!(first["message"]["content"], choice(0, "a")["content"]);
        assert_eq!(second["message"]["content"], "b");
        assert_eq!((&first["finish_reason"], &second["finish_reason"]), (&json!("stop"), &json!("length")));
        assert_eq!(first["logprobs"], json!({ "content": [{ "token": "a" }] }));
        assert_eq!((&whole["created"], &whole["service_tier"]), (&json!(7), &json!("x")));
        assert_eq!(whole["usage"], json!({ "prompt_tokens": 1, "completion_tokens": 2 }));
        assert_eq!(whole["object"], "chat.completion");
    }

    #[test]
    fn what_azure_says_of_its_filters_is_the_latest_word_on_each() {
        let chunk = |filters: &str, text: &str| {
            format!(
                r#"{{"id":"c","created":7,"choices":[{{"index":0,"delta":{{"content":"{text}"}},"content_filter_results":{filters}}}]}}"#
            )
        };
        let first = r#"{"id":"","created":0,"model":"","object":"","choices":[],"prompt_filter_results":[{"prompt_index":0}]}"#;
        let chunks = [
            first.to_owned(),
            chunk("{}", "a"),
            chunk(r#"{"hate":{"filtered":false,"severity":"safe"}}"#, "b"),
            chunk(r#"{"hate":{"filtered":false,"severity":"low"},"violence":{"filtered":false}}"#, "c"),
            r#"{"id":"c","created":8,"choices":[{"index":0,"content_filter_offsets":{"check_offset":3}}]}"#.to_owned(),
            r#"{"id":"c","created":8,"choices":[{"index":0,"content_filter_offsets":{"check_offset":9}}]}"#.to_owned(),
            r#"{"id":"c","created":8,"choices":[{"index":0,"delta":{},"finish_reason":"stop","content_filter_results":{}}]}"#.to_owned(),
            USAGE.to_owned(),
        ];
        let whole = of(&chunks.each_ref().map(String::as_str)).unwrap();
        assert_eq!((&whole["id"], &whole["created"]), (&json!("c"), &json!(7)));
        assert_eq!(whole["prompt_filter_results"], json!([{ "prompt_index": 0 }]));
        let filters =
            json!({ "hate": { "filtered": false, "severity": "low" }, "violence": { "filtered": false } });
        assert_eq!(whole["choices"][0]["content_filter_results"], filters);
        assert_eq!(whole["choices"][0]["message"]["content"], "abc");
        assert!(whole["choices"][0].get("content_filter_offsets").is_none());
    }

    #[test]
    fn a_stream_that_did_not_say_what_it_used_is_no_whole_answer() {
        let said = delta(r#"{"content":"a"}"#);
        assert_eq!(of(&[&said]), None);
        assert_eq!(of(&[&said, r#"{"choices":[],"usage":null}"#]), None);
        assert!(of(&[&said, USAGE]).is_some());
    }

    #[test]
    fn what_cannot_be_put_together_is_not() {
        // Two different values of something that nobody here knows how to add.
        assert_eq!(message(&[r#"{"audio":{"id":"x"}}"#, r#"{"audio":{"data":"y"}}"#]), None);
        assert_eq!(message(&[r#"{"content":"a"}"#, r#"{"content":["b"]}"#]), None);
        // Once, or the same again, it is what it is.
        let twice = message(&[r#"{"content":"a","x":{"y":1}}"#, r#"{"content":"b","x":{"y":1}}"#]);
        assert_eq!(twice, Some(json!({ "role": "assistant", "content": "ab", "x": { "y": 1 } })));
    }

    #[test]
    fn there_and_back_an_answer_is_the_same() {
        let usage = TokenUsage::new(7, 5);
        for completion in [Completion::text("a\n\"b\"", usage), Completion::tool_call("c", "f", "{}", usage)]
        {
            let back = whole(data(&into_chunks(&completion))).unwrap();
            let (there, back): (Json, Json) = (completion.json().unwrap(), back.json().unwrap());
            assert_eq!(there["choices"], back["choices"]);
            assert_eq!(there["usage"], back["usage"]);
        }
        let chunks = [
            StreamChunk::role(),
            StreamChunk::text("a"),
            StreamChunk::finish(&FinishReason::Stop),
            StreamChunk::usage_only(usage),
            StreamChunk::end(),
        ];
        let completion = whole(data(&chunks)).unwrap();
        assert_eq!((completion.content().as_ref(), completion.usage()), ("a", Some(&usage)));
        assert_eq!(completion.finish_reasons().len(), 1);
    }
}
