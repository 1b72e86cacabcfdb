//! Walks over JSON without building values.
//!
//! [`too_deep`] reads any bytes, and [`Walk`] validates them on its way; the iterators take JSON that was validated before.
//! All give back slices of it, so that what is not understood stays as it came.

mod walk;

#[cfg(feature = "openai")]
pub(crate) use self::walk::leading_string;
pub(crate) use self::walk::{Name, Walk};

use memchr::{memchr, memchr2};
use serde::de;
use std::{borrow::Cow, fmt};

/// Whether arrays and objects nest deeper than `limit`. Strings are skipped, so a long prompt costs little.
pub(crate) fn too_deep(bytes: &[u8], limit: usize) -> bool {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'"' => at = string_end(bytes, at) - 1,
            b'{' | b'[' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    false
}

/// The index behind the string that opens at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut at = at + 1;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if bytes[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    bytes.len()
}

/// The index behind the value that begins at `at`.
fn value_end(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at) {
        Some(b'"') => string_end(bytes, at),
        Some(b'{' | b'[') => {
            let (mut at, mut depth) = (at, 0_usize);
            while let Some(&byte) = bytes.get(at) {
                match byte {
                    b'"' => at = string_end(bytes, at) - 1,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth -= 1;
                        if depth == 0 {
                            return at + 1;
                        }
                    }
                    _ => {}
                }
                at += 1;
            }
            bytes.len()
        }
        _ => {
            let rest = bytes.get(at..).unwrap_or_default();
            let end =
                rest.iter().position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n'));
            at + end.unwrap_or(rest.len())
        }
    }
}

fn skip(bytes: &[u8], mut at: usize, also: u8) -> usize {
    while bytes.get(at).is_some_and(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n') || *b == also) {
        at += 1;
    }
    at
}

/// The texts of a content, as JSON: it is one, or has parts that have one each.
pub(crate) fn texts(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parts = items(content).filter_map(|part| member(part, "text"));
    std::iter::once(content).chain(parts).filter(|raw| raw.first() == Some(&b'"'))
}

/// Those [`texts`] as one.
pub(crate) fn joined(content: &[u8]) -> Cow<'_, str> {
    text(content).unwrap_or_else(|| texts(content).filter_map(text).collect::<String>().into())
}

/// The items of a valid JSON array; none if it is something else.
pub(crate) fn items(array: &[u8]) -> Items<'_> {
    let start = skip(array, 0, b' ');
    Items { array, at: if array.get(start) == Some(&b'[') { start + 1 } else { array.len() } }
}

/// See [`items`].
pub(crate) struct Items<'a> {
    array: &'a [u8],
    at: usize,
}

/// The members of a valid JSON object, as quoted name and value; none if it is something else.
pub(crate) fn members(object: &[u8]) -> Members<'_> {
    let start = skip(object, 0, b' ');
    Members { object, at: if object.get(start) == Some(&b'{') { start + 1 } else { object.len() } }
}

/// See [`members`].
pub(crate) struct Members<'a> {
    object: &'a [u8],
    at: usize,
}

impl<'a> Items<'a> {
    /// The first byte of the next item.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        self.at = skip(self.array, self.at, b',');
        self.array.get(self.at).copied().filter(|byte| *byte != b']')
    }

    /// The members of the next item, which then has to be [passed](Self::pass) by them.
    pub(crate) fn members(&mut self) -> Members<'a> {
        self.peek();
        members(&self.array[self.at..])
    }

    /// Goes on behind the item whose members these are, all of which were read.
    pub(crate) const fn pass(&mut self, members: &Members<'_>) {
        // Behind the bracket that ended it.
        self.at += members.at + 1;
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.peek()?;
        let start = self.at;
        self.at = value_end(self.array, start);
        (self.at > start).then(|| &self.array[start..self.at])
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let object = self.object;
        self.at = skip(object, self.at, b',');
        if matches!(object.get(self.at), None | Some(b'}')) {
            return None;
        }
        let name = &object[self.at..string_end(object, self.at)];
        let start = skip(object, self.at + name.len(), b':');
        self.at = value_end(object, start);
        Some((name, &object[start..self.at]))
    }
}

/// The value of one member of a valid JSON object. Of several the last, as nearly everybody reads JSON: what is checked or compared
/// here is what the provider, or the client, obeys.
pub(crate) fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    members(object).filter(|(raw, _)| is_name(raw, name)).last().map(|(_, value)| value)
}

/// Whether a quoted name means `name`, however it is escaped.
pub(crate) fn is_name(raw: &[u8], name: &str) -> bool {
    let inner = &raw[1..raw.len().saturating_sub(1).max(1)];
    inner == name.as_bytes() || (inner.contains(&b'\\') && string(raw).is_some_and(|s| s == name))
}

/// The string behind its JSON form, borrowed where nothing is escaped; for names and all else that is compared.
///
/// `None` if half of a surrogate pair stands alone in it, for what is not the same must not become equal.
pub(crate) fn string(raw: &[u8]) -> Option<Cow<'_, str>> {
    match raw {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
            std::str::from_utf8(inner).ok().map(Cow::Borrowed)
        }
        [b'"', ..] => serde_json::from_slice(raw).ok().map(Cow::Owned),
        _ => None,
    }
}

/// As [`string`], for what people read: each half of a surrogate pair that stands alone is told as U+FFFD.
pub(crate) fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    string(raw).or_else(|| shown(wtf8(raw)?).map(Cow::Owned))
}

/// Reads a text that comes in pieces, which may cut a surrogate pair in two.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// The first half of a pair, whose second half may come with the next piece.
    half: Option<u16>,
}

impl Pieces {
    /// As [`text`], of one piece; a first half at its end is kept back.
    pub(crate) fn next<'a>(&mut self, raw: &'a [u8]) -> Option<Cow<'a, str>> {
        if self.half.is_none()
            && let Some(text) = string(raw)
        {
            return Some(text);
        }
        let [b'"', rest @ ..] = raw else { return None };
        let half = self.half.take().map(|half| format!("\\u{half:04x}")).unwrap_or_default();
        let mut wtf8 = wtf8(&[b"\"", half.as_bytes(), rest].concat())?;
        if let [.., HALF, second @ 0xa0..=0xaf, third] = wtf8[..] {
            self.half = Some(0xd000 | u16::from(second & 0x3f) << 6 | u16::from(third & 0x3f));
            wtf8.truncate(wtf8.len() - 3);
        }
        shown(wtf8).map(Cow::Owned)
    }

    /// What is left once there are no more pieces.
    pub(crate) fn end(&mut self) -> Option<&'static str> {
        self.half.take().map(|_| "\u{fffd}")
    }
}

/// A string in WTF-8: halves of surrogate pairs are written as if they were characters.
struct Wtf8(Vec<u8>);

impl<'de> de::Deserialize<'de> for Wtf8 {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Wtf8;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Wtf8, E> {
                Ok(Wtf8(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

fn wtf8(raw: &[u8]) -> Option<Vec<u8>> {
    let Wtf8(wtf8) = serde_json::from_slice(raw).ok()?;
    Some(wtf8)
}

/// The first byte of a half of a surrogate pair if the second is at least 0xA0.
const HALF: u8 = 0xed;

fn shown(mut wtf8: Vec<u8>) -> Option<String> {
    let mut at = 0;
    while let Some(found) = memchr(HALF, &wtf8[at..]) {
        at += found;
        if let [_, 0xa0..=0xbf, _, ..] = wtf8[at..] {
            // Which is as long.
            wtf8[at..at + 3].copy_from_slice("\u{fffd}".as_bytes());
        }
        at += 1;
    }
    String::from_utf8(wtf8).ok()
}

/// A text as a string of JSON, its quotes included.
pub(crate) fn quoted(text: &str) -> Vec<u8> {
    serde_json::to_vec(text).expect("a string is JSON")
}

/// Whether a valid JSON value says nothing: null, or a string, array or object with nothing in it.
/// A string of white space is blank, not nothing: see [`is_blank`].
pub(crate) fn is_nothing(raw: &[u8]) -> bool {
    match raw.first() {
        None | Some(b'n') => true,
        Some(b'"') => raw.len() == 2,
        Some(b'[' | b'{') => matches!(raw.get(skip(raw, 1, b' ')), None | Some(b']' | b'}')),
        _ => false,
    }
}

/// Whether a JSON string holds nothing but white space.
pub(crate) fn is_blank(raw: &[u8]) -> bool {
    let Some(inner) = raw.get(1..raw.len().saturating_sub(1)) else { return true };
    match inner.iter().find(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n')) {
        None => true,
        // Escapes and non-ASCII spaces are rare enough to be decoded.
        Some(b'\\' | 0x80..) => text(raw).is_some_and(|s| s.trim().is_empty()),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert!(!too_deep(br#"{"a":["[[[[\"[["]}"#, 2));
        assert!(too_deep(br#"{"a":[[]]}"#, 2));
        assert!(too_deep("[".repeat(1_000_000).as_bytes(), 128));
    }

    #[test]
    fn items_and_members_are_slices_of_the_source() {
        let object = br#" {"a" : [1, {"b":"]}"}, "x\"y" ] , "c\u0041":null,"e":-1.5e3}"#;
        let all: Vec<_> = members(object).collect();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].1, br#"[1, {"b":"]}"}, "x\"y" ]"#);
        assert_eq!(items(all[0].1).collect::<Vec<_>>(), [&b"1"[..], br#"{"b":"]}"}"#, br#""x\"y""#]);
        assert_eq!(member(object, "cA"), Some(&b"null"[..]));
        assert_eq!(member(object, "e"), Some(&b"-1.5e3"[..]));
        assert_eq!(member(object, "b"), None);
    }

    #[test]
    fn of_a_member_that_is_there_twice_the_last_counts() {
        let object = br#"{"text":"a","type":"image_url","t\u0065xt":"b","type":"text"}"#;
        assert_eq!(member(object, "text"), Some(&br#""b""#[..]));
        assert_eq!(member(object, "type"), Some(&br#""text""#[..]));
        assert_eq!(joined(&[b"[", &object[..], b"]"].concat()), "b");
    }

    #[test]
    fn blank_is_white_space_in_any_spelling() {
        for blank in [r#""""#, r#"" \n""#, "\"\u{a0}\"", r#""\u00a0\t""#] {
            assert!(is_blank(blank.as_bytes()), "{blank}");
        }
        for text in [r#""a""#, r#"" \\""#, "\"\u{e9}\"", r#""\u0041""#, r#"" \ud83d""#, r#""\ude00""#] {
            assert!(!is_blank(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn names_are_no_texts_where_half_of_a_pair_stands_alone() {
        for (raw, shown) in [
            (r#""\ud83d""#, "\u{fffd}"),
            (r#""a\ude00\ud83db""#, "a\u{fffd}\u{fffd}b"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}\u{1f600}"),
            (r#""\ud83d\n\ud7ff\ue000\ud800""#, "\u{fffd}\n\u{d7ff}\u{e000}\u{fffd}"),
        ] {
            assert_eq!((string(raw.as_bytes()), text(raw.as_bytes()).as_deref()), (None, Some(shown)));
            assert!(!is_name(raw.as_bytes(), shown));
        }
        assert_eq!(text(br#""\ud83d\ude00""#).as_deref(), Some("\u{1f600}"));
        assert!(matches!(text(br#""plain""#), Some(Cow::Borrowed("plain"))));
        assert_eq!((text(b"7"), text(b"null"), text(br#"["a"]"#)), (None, None, None));
    }

    proptest::proptest! {
        #[test]
        fn the_walk_agrees_with_serde(value in arbitrary()) {
            let text = serde_json::to_vec_pretty(&value).unwrap();
            match &value {
                serde_json::Value::Array(expected) => {
                    let seen: Vec<serde_json::Value> = items(&text).map(|i| serde_json::from_slice(i).unwrap()).collect();
                    proptest::prop_assert_eq!(&seen, expected);
                }
                serde_json::Value::Object(expected) => {
                    let seen: serde_json::Map<_, _> = members(&text)
                        .map(|(n, v)| (string(n).unwrap().into_owned(), serde_json::from_slice(v).unwrap()))
                        .collect();
                    proptest::prop_assert_eq!(&seen, expected);
                }
                _ => {}
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = (too_deep(&bytes, 3), items(&bytes).count());
        }
    }

    pub(super) fn arbitrary() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            ".*".prop_map(serde_json::Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
                prop::collection::hash_map(".*", inner, 0..5)
                    .prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
            ]
        })
    }
}
