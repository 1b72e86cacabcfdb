use memchr::memchr2;
use std::borrow::Cow;

/// How many levels fit into the stack of [`Walk::nested`].
const LEVELS: usize = u128::BITS as usize;

/// How much of a string is looked at a word at a time; most end before.
const NEAR: usize = 32;

const WORD: usize = size_of::<u64>();

/// The name of a member.
#[derive(Clone, Copy)]
pub(crate) struct Name<'a> {
    /// As it stands there, in quotes.
    pub(crate) raw: &'a [u8],
    /// Nothing in it is escaped.
    pub(crate) is_plain: bool,
}

impl<'a> Name<'a> {
    /// The bytes of what it means; `None` if what is escaped in it is no text.
    pub(crate) fn bytes(self) -> Option<Cow<'a, [u8]>> {
        if self.is_plain {
            return Some(Cow::Borrowed(&self.raw[1..self.raw.len() - 1]));
        }
        Some(Cow::Owned(super::string(self.raw)?.into_owned().into_bytes()))
    }
}

/// One strict pass over JSON that nobody has validated: takes what it is asked for, and checks the rest.
///
/// `None` always means that the bytes are not the JSON that was expected, or nest too deep; where and why, others are asked then.
pub(crate) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
    max_depth: usize,
}

impl<'a> Walk<'a> {
    /// `None` if it is not UTF-8.
    pub(crate) fn new(bytes: &'a [u8], max_depth: usize) -> Option<Self> {
        // Most JSON is ASCII, which is told in a third of the time.
        let is_text = bytes.is_ascii() || std::str::from_utf8(bytes).is_ok();
        is_text.then_some(Self { bytes, at: 0, depth: 0, max_depth })
    }

    /// How much was taken.
    #[cfg(feature = "openai")]
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    /// The first byte of what comes next, behind white space.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                _ => return Some(*byte),
            }
        }
        None
    }

    /// There is nothing left.
    pub(crate) fn end(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    /// An object: `member` is given each name, and must take the value.
    pub(crate) fn object(&mut self, mut member: impl FnMut(&mut Self, Name<'a>) -> Option<()>) -> Option<()> {
        self.sequence(*b"{}", |walk| {
            let name = walk.name()?;
            member(walk, name)
        })
    }

    /// An array: `item` must take each.
    pub(crate) fn array(&mut self, item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.sequence(*b"[]", item)
    }

    fn sequence(
        &mut self,
        [open, close]: [u8; 2],
        mut next: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.take(open)?;
        self.descend()?;
        if self.peek()? != close {
            loop {
                next(self)?;
                match self.peek()? {
                    b',' => self.at += 1,
                    byte if byte == close => break,
                    _ => return None,
                }
            }
        }
        self.depth -= 1;
        self.take(close)
    }

    fn descend(&mut self) -> Option<()> {
        self.depth += 1;
        (self.depth <= self.max_depth).then_some(())
    }

    /// Any value, as it stands there.
    pub(crate) fn value(&mut self) -> Option<&'a [u8]> {
        let first = self.peek()?;
        let start = self.at;
        match first {
            b'{' | b'[' => self.nested()?,
            _ => self.scalar(first)?,
        }
        Some(&self.bytes[start..self.at])
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    /// A name and its colon.
    fn name(&mut self) -> Option<Name<'a>> {
        self.peek()?;
        let start = self.at;
        let is_plain = self.string()?;
        let raw = &self.bytes[start..self.at];
        self.take(b':')?;
        Some(Name { raw, is_plain })
    }

    /// An array or object with all that is in it. The stack is a bit for each level, whether it is an object; what nests
    /// so deep that they run out spills.
    fn nested(&mut self) -> Option<()> {
        let (mut objects, mut spilled, around) = (0_u128, Vec::new(), self.depth);
        loop {
            match self.peek()? {
                open @ (b'{' | b'[') => {
                    let depth = self.depth - around;
                    if depth > 0 && depth.is_multiple_of(LEVELS) {
                        spilled.push(objects);
                    }
                    self.at += 1;
                    self.descend()?;
                    objects = objects << 1 | u128::from(open == b'{');
                    match (self.peek()?, open) {
                        (b'}', b'{') | (b']', b'[') => {}
                        (_, b'{') => {
                            self.name()?;
                            continue;
                        }
                        _ => continue,
                    }
                }
                scalar => self.scalar(scalar)?,
            }
            // Behind a value.
            loop {
                let is_object = objects & 1 == 1;
                match (self.peek()?, is_object) {
                    (b',', _) => {
                        self.at += 1;
                        if is_object {
                            self.name()?;
                        }
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        self.at += 1;
                        objects >>= 1;
                        self.depth -= 1;
                        let depth = self.depth - around;
                        if depth == 0 {
                            return Some(());
                        }
                        if depth.is_multiple_of(LEVELS) {
                            objects = spilled.pop()?;
                        }
                    }
                    _ => return None,
                }
            }
        }
    }

    fn scalar(&mut self, first: u8) -> Option<()> {
        match first {
            b'"' => self.string().map(drop),
            b't' => self.literal(b"true"),
            b'f' => self.literal(b"false"),
            b'n' => self.literal(b"null"),
            _ => self.number(),
        }
    }

    fn literal(&mut self, literal: &[u8]) -> Option<()> {
        self.bytes[self.at..].starts_with(literal).then(|| self.at += literal.len())
    }

    fn number(&mut self) -> Option<()> {
        self.skip(b"-");
        match self.bytes.get(self.at)? {
            b'0' => self.at += 1,
            _ => self.digits()?,
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if self.skip(b"eE") {
            self.skip(b"+-");
            self.digits()?;
        }
        Some(())
    }

    fn skip(&mut self, any: &[u8]) -> bool {
        let is_there = self.bytes.get(self.at).is_some_and(|byte| any.contains(byte));
        self.at += usize::from(is_there);
        is_there
    }

    fn digits(&mut self) -> Option<()> {
        let rest = &self.bytes[self.at..];
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        (count > 0).then_some(())
    }

    /// Whether nothing in it is escaped.
    fn string(&mut self) -> Option<bool> {
        (*self.bytes.get(self.at)? == b'"').then_some(())?;
        self.at += 1;
        let mut is_plain = true;
        loop {
            self.at += plain_len(&self.bytes[self.at..])?;
            match self.bytes[self.at..] {
                [b'"', ..] => {
                    self.at += 1;
                    return Some(is_plain);
                }
                [b'\\', b'u', a, b, c, d, ..] if [a, b, c, d].iter().all(u8::is_ascii_hexdigit) => {
                    self.at += 6
                }
                [b'\\', b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.at += 2,
                _ => return None,
            }
            is_plain = false;
        }
    }
}

/// The JSON string that `bytes` begin with.
#[cfg(feature = "openai")]
pub(crate) fn leading_string(bytes: &[u8]) -> Option<&[u8]> {
    let mut walk = Walk { bytes, at: 0, depth: 0, max_depth: 0 };
    walk.string()?;
    let raw = &bytes[..walk.at];
    (raw.is_ascii() || std::str::from_utf8(raw).is_ok()).then_some(raw)
}

/// How much of a string comes before its end or an escape; `None` if neither comes, or a byte that must be escaped.
fn plain_len(rest: &[u8]) -> Option<usize> {
    let (words, _) = rest.as_chunks::<WORD>();
    let near = &words[..words.len().min(NEAR / WORD)];
    for (word, bytes) in near.iter().enumerate() {
        let stops = stops(u64::from_le_bytes(*bytes));
        if stops != 0 {
            let at = word * WORD + stops.trailing_zeros() as usize / 8;
            return (rest[at] >= b' ').then_some(at);
        }
    }
    let far = &rest[near.len() * WORD..];
    let at = memchr2(b'"', b'\\', far)?;
    // Without a way out of the loop it is done many bytes at once.
    let is_plain = !far[..at].iter().fold(false, |found, byte| found | (*byte < b' '));
    is_plain.then_some(near.len() * WORD + at)
}

/// The highest bit of the first byte that ends the plain part of a string: its end, an escape, or what may not be in it. Bits
/// of bytes behind that one may be set, too.
///
/// Whether a word has a byte that is zero, or less than another, is told as in Bit Twiddling Hacks (Anderson).
const fn stops(word: u64) -> u64 {
    const EACH: u64 = u64::from_ne_bytes([1; WORD]);
    const HIGHEST: u64 = EACH << 7;
    const fn below(word: u64, least: u8) -> u64 {
        word.wrapping_sub(EACH * least as u64) & !word & HIGHEST
    }
    const fn equal(word: u64, byte: u8) -> u64 {
        below(word ^ (EACH * byte as u64), 1)
    }
    below(word, b' ') | equal(word, b'"') | equal(word, b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    fn walked(bytes: &[u8]) -> Option<&[u8]> {
        let mut walk = Walk::new(bytes, usize::MAX)?;
        let value = walk.value()?;
        walk.end().map(|()| value)
    }

    /// Takes the outermost object or array apart, too.
    fn is_taken_apart(bytes: &[u8]) -> bool {
        let mut walk = Walk::new(bytes, usize::MAX).unwrap();
        let done = match walk.peek() {
            Some(b'{') => walk.object(|walk, _| walk.value().map(drop)),
            Some(b'[') => walk.array(|walk| walk.value().map(drop)),
            _ => walk.value().map(drop),
        };
        done.and_then(|()| walk.end()).is_some()
    }

    fn agrees(bytes: &[u8]) {
        let expected = serde_json::from_slice::<&RawValue>(bytes).ok().map(|raw| raw.get().as_bytes());
        assert_eq!(walked(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        assert_eq!(std::str::from_utf8(bytes).is_ok() && is_taken_apart(bytes), expected.is_some());
    }

    #[test]
    fn what_is_json_is_told_as_serde_tells_it() {
        let long = "x".repeat(100);
        for text in [
            "",
            " ",
            "{}",
            "[]",
            " [ ] ",
            "{\"a\":1}",
            "{\"a\" : [ 1 , {} , [] ] }",
            "{,}",
            "[,]",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "[1 2]",
            "[1}",
            "{\"a\":1]",
            "[[]",
            "[]]",
            "{} {}",
            "true",
            "tru",
            "nulll",
            "0",
            "-0",
            "01",
            "-",
            "1.",
            ".5",
            "1.5e3",
            "1e",
            "1E+5",
            "1e-",
            "+1",
            "0x1",
            "NaN",
            "\"",
            "\"a",
            "\"a\"",
            r#""\n\u00e4\ud800""#,
            r#""\x""#,
            r#""\u12g4""#,
            r#""\u12"#,
            "\"\t\"",
            "\"\u{7f}\"",
            "[\"a\\\"]\"]",
        ] {
            agrees(text.as_bytes());
            agrees(format!("[\"{long}\",{text}]").as_bytes());
        }
        for odd in ["\\\"", "\n", "\\", "\u{1f}", "é", "\\u00e9"] {
            agrees(format!("\"{long}{odd}{long}\"").as_bytes());
        }
        agrees(b"\"\xff\"");
        for depth in [127, 128, 129, 300, 1_000] {
            let (mut open, mut close) = (String::new(), String::new());
            for level in 0..depth {
                let is_object = level * 7 % 3 == 0;
                open += if is_object { "{\"a\":" } else { "[0," };
                close.insert(0, if is_object { '}' } else { ']' });
            }
            agrees(format!("{open}1{close}").as_bytes());
            agrees(format!("{open}1{}", close.replacen('}', "]", 1)).as_bytes());
        }
    }

    proptest! {
        #[test]
        fn valid_json_is_walked_and_broken_json_is_not(
            value in super::super::tests::arbitrary(),
            at: prop::sample::Index,
            byte: u8,
            is_pretty: bool,
        ) {
            let mut text = match is_pretty {
                true => serde_json::to_vec_pretty(&value).unwrap(),
                false => serde_json::to_vec(&value).unwrap(),
            };
            agrees(&text);
            let at = at.index(text.len());
            text[at] = byte;
            agrees(&text);
            text.truncate(at);
            agrees(&text);
        }

        #[test]
        fn what_nests_deeper_than_is_taken_is_refused(value in super::super::tests::arbitrary(), limit in 0_usize..6) {
            let text = serde_json::to_vec(&value).unwrap();
            let is_taken = Walk::new(&text, limit).and_then(|mut walk| walk.value()).is_some();
            prop_assert_eq!(is_taken, !super::super::too_deep(&text, limit));
        }

        #[test]
        fn no_bytes_are_told_otherwise_than_by_serde(bytes in prop::collection::vec(prop::sample::select(
            &b"{}[]\",:\\ue0123-+.truefalsn \n\x01\xc3\xa4"[..]), 0..40)) {
            agrees(&bytes);
        }
    }
}
