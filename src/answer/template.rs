//! Most chunks of a stream are like the one before, but for a text or two: then no more is read than these.

use super::{Facts, StreamChunk, facts::NoteText};
use crate::json::{self, Walk};
use bytes::Bytes;
use std::ops::Range;

/// Reads the chunks of one stream.
#[derive(Debug, Default)]
pub(crate) struct ChunkReader {
    template: Option<Template>,
    /// How many in a row were like no other.
    strangers: u8,
}

/// A provider whose chunks are all different is not kept up with any more after so many.
const STRANGERS: u8 = 16;

/// Larger ones are rare, and not worth a copy.
const LARGEST: usize = 4 << 10;

/// How many texts may differ.
const HOLES: usize = 4;

/// Where texts lie that differ from chunk to chunk, in their order.
#[derive(Debug, Default)]
struct Holes {
    known: [Hole; HOLES],
    /// There may be more than are known.
    count: usize,
    /// Whether something else is said.
    has_others: bool,
}

/// Where a JSON string lies, its quotes included.
#[derive(Debug, Default, Clone)]
struct Hole {
    at: Range<usize>,
    /// Which choice says it to whoever asked.
    said_by: Option<u32>,
}

/// A chunk, what it tells without its texts, and where these lie.
#[derive(Debug)]
struct Template {
    data: Vec<u8>,
    facts: Facts,
    holes: Holes,
}

impl ChunkReader {
    /// As [`StreamChunk::parse`], and gives back what is no chunk.
    pub(crate) fn read(&mut self, data: Bytes) -> Result<StreamChunk, (serde_json::Error, Bytes)> {
        if let Some(facts) = self.template.as_ref().and_then(|template| template.read(&data)) {
            self.strangers = 0;
            return Ok(StreamChunk::of_parts(data, facts, false));
        }
        let mut holes = Holes::default();
        let facts = match Facts::read_noting(&data, &mut holes) {
            Ok(facts) => facts,
            Err(error) => return Err((error, data)),
        };
        if self.strangers < STRANGERS {
            self.strangers += 1;
            if let Some(facts) = holes.texts_taken_from(&facts, &data) {
                let room = self.template.take().map(|template| template.data).unwrap_or_default();
                self.template = Some(Template::new(room, &data, facts, holes));
            }
        }
        Ok(StreamChunk::of_parts(data, facts, false))
    }
}

impl NoteText for Holes {
    fn note(&mut self, walk: &Walk<'_>, raw: &[u8], said_by: Option<u32>) {
        if raw[0] != b'"' {
            self.has_others |= matches!(raw[0], b'[' | b'{') && !json::is_nothing(raw);
            return;
        }
        if let Some(free) = self.known.get_mut(self.count) {
            *free = Hole { at: walk.at() - raw.len()..walk.at(), said_by };
        }
        self.count += 1;
    }
}

impl Holes {
    /// The facts of `data` without what these texts add to them. `None` where that cannot be told, or is not worth it.
    fn texts_taken_from(&self, facts: &Facts, data: &[u8]) -> Option<Facts> {
        let known = self.known.get(..self.count)?;
        let are_texts = !(self.has_others || facts.has_calls);
        let is_plain = are_texts && facts.finishes().is_empty() && facts.usage().is_none();
        if known.is_empty() || data.len() > LARGEST || !is_plain {
            return None;
        }
        let (mut texts, mut before) = (Facts::default(), (None, &b""[..]));
        known.iter().for_each(|hole| hole.says(&data[hole.at.clone()], &mut texts, &mut before));
        // Nothing else says anything.
        let are_all = (texts.text_bytes, texts.has_content) == (facts.text_bytes, facts.has_content);
        let mut facts = facts.clone();
        (facts.text_bytes, facts.has_content) = (0, false);
        are_all.then_some(facts)
    }
}

impl Hole {
    /// Notes its text, and `before` which choice has said what last.
    fn says<'a>(&self, text: &'a [u8], facts: &mut Facts, before: &mut (Option<u32>, &'a [u8])) {
        if self.said_by.is_none() {
            return;
        }
        if self.said_by != before.0 {
            *before = (self.said_by, b"");
        }
        facts.says(b"content", text, &mut before.1);
    }
}

impl Template {
    fn new(mut room: Vec<u8>, data: &[u8], facts: Facts, holes: Holes) -> Self {
        room.clear();
        room.extend_from_slice(data);
        Self { data: room, facts, holes }
    }

    /// What `data` tells, if it is this chunk with other texts. Then it is JSON because this is, and its texts are.
    fn read(&self, data: &[u8]) -> Option<Facts> {
        let mut facts = self.facts.clone();
        let (mut at, mut begin, mut before) = (0, 0, (None, &b""[..]));
        for hole in &self.holes.known[..self.holes.count] {
            let fixed = begin..hole.at.start;
            let rest = data[at..].strip_prefix(&self.data[fixed.clone()])?;
            self.move_names(&mut facts, &fixed, at)?;
            let text = json::leading_string(rest)?;
            hole.says(text, &mut facts, &mut before);
            at += fixed.len() + text.len();
            begin = hole.at.end;
        }
        let fixed = begin..self.data.len();
        (data[at..] == self.data[fixed.clone()]).then_some(())?;
        self.move_names(&mut facts, &fixed, at)?;
        Some(facts)
    }

    /// Of the names of this chunk, those that lie in `fixed`: in the other one that begins at `to`.
    fn move_names(&self, facts: &mut Facts, fixed: &Range<usize>, to: usize) -> Option<()> {
        for (here, there) in [(&mut facts.id, self.facts.id), (&mut facts.model, self.facts.model)] {
            let Some(mut span) = there.filter(|span| fixed.contains(&(span.start as usize))) else {
                continue;
            };
            span.start = u32::try_from(span.start as usize - fixed.start + to).ok()?;
            *here = Some(span);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What it is read to after `before`, and whether by way of it.
    fn read_after(before: &[u8], data: &[u8]) -> (Option<Facts>, bool) {
        let mut reader = ChunkReader::default();
        let _ = reader.read(Bytes::copy_from_slice(before));
        let is_like = reader.template.as_ref().is_some_and(|template| template.read(data).is_some());
        let read = reader.read(Bytes::copy_from_slice(data));
        (read.ok().map(|chunk| chunk.facts().clone()), is_like)
    }

    fn agrees(before: &str, data: &[u8]) -> bool {
        let (read, is_like) = read_after(before.as_bytes(), data);
        assert_eq!(read, Facts::read(data).ok(), "{before}\n{}", String::from_utf8_lossy(data));
        is_like
    }

    const OPENAI: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1760000000,"model":"gpt-4o-mini","service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":"TEXT"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"PAD"}"#;
    const GEMINI: &str = r#"{"choices":[{"delta":{"content":"TEXT","role":"assistant"},"index":0}],"created":1760000000,"id":"abc","model":"gemini-2.5-flash","object":"chat.completion.chunk"}"#;
    const DEEPSEEK: &str = r#"{"id":"1","object":"chat.completion.chunk","created":1,"model":"r1","choices":[{"index":0,"delta":{"content":null,"reasoning_content":"TEXT"},"finish_reason":null}]}"#;
    const LEGACY: &str =
        r#"{"id":"1","model":"m","choices":[{"index":0,"text":"TEXT","finish_reason":null}]}"#;
    const TWO: &str = r#" {"model" : "m","choices":[{"index":0,"delta":{"content":"TEXT"}},{"index":1,"delta":{"content":"PAD"}}] } "#;
    const BETWEEN: &str = r#"{"choices":[{"index":0,"delta":{"content":"TEXT"}}],"model":"m","obfuscation":"PAD","id":"1","service_tier":"default","system_fingerprint":"fp_0123456789"}"#;
    const NAMED: &str = r#"{"choices":[{"index":0,"delta":{"id":"PAD","content":"TEXT"}}]}"#;
    const TOGETHER: &str = r#"{"choices":[{"index":0,"text":"TEXT","delta":{"content":"TEXT","refusal":"PAD"}},{"index":1,"delta":{"content":"TEXT"}}]}"#;
    const SHAPES: [&str; 8] = [OPENAI, GEMINI, DEEPSEEK, LEGACY, TWO, BETWEEN, NAMED, TOGETHER];

    fn filled(shape: &str, text: &str, pad: &str) -> String {
        shape.replace("TEXT", text).replace("PAD", pad)
    }

    #[test]
    fn a_chunk_with_another_text_is_read_by_the_one_before() {
        for shape in SHAPES {
            for text in [
                "",
                " ",
                "a",
                r"\n\u00e4",
                "größer",
                "a much longer text, of more than a word of the machine",
                "\u{a0}",
                r"\ud83d",
                r"a \ude00",
            ] {
                assert!(
                    agrees(&filled(shape, "Hello", "x"), filled(shape, text, "longer").as_bytes()),
                    "{shape} {text}"
                );
                assert!(
                    agrees(&filled(shape, text, "x"), filled(shape, "Hello", "").as_bytes()),
                    "{shape} {text}"
                );
            }
        }
    }

    #[test]
    fn what_differs_in_anything_else_is_read_by_itself() {
        for shape in SHAPES {
            let (before, other) = (filled(shape, "Hello", "x"), filled(shape, "world", "yz"));
            for (from, to) in [
                ("m\"", "n\""),
                ("\"index\":0", "\"index\":3"),
                ("null", "\"stop\""),
                ("world\"", "world\",\"content\":\"twice\""),
                ("world", "w\"x"),
                ("world", "w\n"),
                ("world", r"w\x"),
                ("}", "} "),
                ("}]", "}"),
            ] {
                if other.contains(from) {
                    assert!(!agrees(&before, other.replace(from, to).as_bytes()), "{shape} {from} {to}");
                }
            }
            let not_text = [other.as_bytes(), b"\xff"].concat();
            assert!(!agrees(&before, &not_text));
            let at = other.find("world").unwrap();
            let not_text = [&other.as_bytes()[..at], b"\xff", &other.as_bytes()[at..]].concat();
            assert!(!agrees(&before, &not_text));
        }
    }

    #[test]
    fn a_chunk_that_says_more_than_texts_is_no_example() {
        for before in [
            r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"id":"1"}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#,
            r#"{"choices":[{"index":0,"delta":{"a":"1","b":"2","c":"3","d":"4","e":"5"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"role":"assistant"}}]}"#,
        ] {
            assert!(!agrees(before, before.as_bytes()), "{before}");
        }
    }

    #[test]
    fn a_stream_of_strangers_is_not_kept_up_with() {
        let mut reader = ChunkReader::default();
        let chunk = |created: u32| {
            Bytes::from(format!(
                r#"{{"created":{created},"choices":[{{"index":0,"delta":{{"content":"a"}}}}]}}"#
            ))
        };
        for created in 0..u32::from(STRANGERS) + 5 {
            assert_eq!(reader.read(chunk(created)).unwrap().facts().text_bytes, 1);
        }
        let kept = reader.template.unwrap();
        assert_eq!(kept.data, chunk(u32::from(STRANGERS) - 1));
    }

    proptest! {
        /// Whatever came before, and however broken it is.
        #[test]
        fn a_chunk_tells_the_same_whatever_came_before(
            shape in prop::sample::select(&SHAPES[..]),
            other in prop::sample::select(&SHAPES[..]),
            texts in prop::array::uniform4(prop_oneof!["[a-z \\\\\"]{0,12}", ".{0,12}", "(\\\\ud83d|\\\\ude00| |a){0,4}"]),
            at: prop::sample::Index,
            byte: u8,
            cut: prop::sample::Index,
        ) {
            let quoted = |text: &str| serde_json::to_string(text).unwrap().trim_matches('"').to_owned();
            let [a, b, c, d] = texts;
            let before = filled(shape, &quoted(&a), &quoted(&b));
            agrees(&before, filled(shape, &quoted(&c), &quoted(&d)).as_bytes());
            agrees(&before, filled(shape, &c, &d).as_bytes());
            let mut data = filled(other, &quoted(&c), &quoted(&d)).into_bytes();
            agrees(&before, &data);
            let at = at.index(data.len());
            data[at] = byte;
            agrees(&before, &data);
            data.truncate(cut.index(data.len()));
            agrees(&before, &data);
        }
    }
}
