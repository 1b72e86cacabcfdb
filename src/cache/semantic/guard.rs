//! What two messages must have in common, however alike an embedder finds them.

use std::hash::BuildHasher;

/// A message as it is compared: hashes of its words, none of its text.
pub(super) struct Words {
    /// Numbers, negators, quotations, names, symbols, and words that turn the sense around, in order.
    strict: Box<[u64]>,
    /// All other words that say something, in order.
    other: Box<[u64]>,
    /// All of both, in order.
    all: Box<[u64]>,
}

/// What belongs to a word of [`Words::strict`], so that a name is no quotation.
#[derive(Hash)]
enum Kind {
    Word,
    Number,
    Not,
    Quote,
    Name,
    Symbol,
    Turn,
}

/// Words that say nothing.
const EMPTY: &[&str] = &["a", "an", "the", "please", "kindly", "hi", "hello", "hey", "thanks"];

/// Words before which these words say nothing: "how do I", "how can we", "how to".
const AFTER_HOW: &[&str] = &["do", "can", "could", "would", "to", "i", "you", "we", "one"];

const NEGATORS: &[&str] = &[
    "no", "not", "never", "none", "nobody", "nothing", "nowhere", "neither", "nor", "without", "except",
    "unless", "hardly", "barely", "lack", "lacks", "cannot", "cant", "dont", "doesnt", "didnt", "wont",
    "isnt", "arent", "wasnt", "nicht", "kein", "keine", "keinen", "nie", "ohne", "ne", "pas", "jamais",
    "sans", "sin", "nunca", "non", "senza",
];

const NUMBERS: &[&str] = &[
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "dozen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    "hundred", "thousand", "million", "billion", "half", "third", "quarter", "once", "twice", "first",
    "second", "last", "double", "triple", "single",
];

const TURNS: &[&str] = &[
    "from",
    "into",
    "before",
    "after",
    "over",
    "under",
    "above",
    "below",
    "with",
    "within",
    "inside",
    "outside",
    "up",
    "down",
    "on",
    "off",
    "in",
    "out",
    "for",
    "against",
    "than",
    "more",
    "less",
    "fewer",
    "most",
    "least",
    "all",
    "any",
    "some",
    "every",
    "each",
    "only",
    "if",
    "or",
    "but",
    "must",
    "may",
    "should",
    "was",
    "were",
    "did",
    "will",
    "max",
    "min",
    "maximum",
    "minimum",
    "increase",
    "decrease",
    "raise",
    "lower",
    "higher",
    "enable",
    "disable",
    "add",
    "remove",
    "create",
    "delete",
    "start",
    "stop",
    "open",
    "close",
    "buy",
    "sell",
    "left",
    "right",
    "north",
    "south",
    "east",
    "west",
    "best",
    "worst",
    "good",
    "bad",
    "allow",
    "deny",
    "accept",
    "reject",
    "ascending",
    "descending",
    "encrypt",
    "decrypt",
    "upload",
    "download",
    "import",
    "export",
    "today",
    "yesterday",
    "tomorrow",
    "why",
    "how",
    "who",
    "whom",
    "what",
    "when",
    "where",
    "which",
    "whose",
];

impl Words {
    pub(super) fn new(text: &str, hasher: &impl BuildHasher) -> Self {
        let mut reader =
            Reader { hasher, strict: Vec::new(), other: Vec::new(), all: Vec::new(), frame: Frame::Open };
        reader.read(&text.replace('\u{2019}', "'"));
        let Reader { strict, other, all, .. } = reader;
        Self { strict: strict.into(), other: other.into(), all: all.into() }
    }

    /// Whether the same answer may do for both. With `other_words`, words that turn nothing around may be others.
    pub(super) fn agree(&self, other: &Self, other_words: bool) -> bool {
        match other_words {
            false => self.all == other.all,
            true if self.all == other.all => true,
            true => {
                let shared = |one: &Self, two: &Self| {
                    let shared = one.all.iter().filter(|word| two.all.contains(word));
                    shared.copied().collect::<Vec<_>>()
                };
                // Without any word in common there is nothing to tell the order by.
                let has_common = self.other.iter().any(|word| other.other.contains(word));
                has_common && self.strict == other.strict && shared(self, other) == shared(other, self)
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        (self.strict.len() + self.other.len() + self.all.len()) * size_of::<u64>()
    }
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// A sentence begins, where any word has a capital.
    Open,
    /// After "how", and what says nothing there.
    How,
    Inner,
}

struct Reader<'a, H> {
    hasher: &'a H,
    strict: Vec<u64>,
    other: Vec<u64>,
    all: Vec<u64>,
    frame: Frame,
}

impl<H: BuildHasher> Reader<'_, H> {
    fn read(&mut self, text: &str) {
        let mut rest = text;
        let mut before = ' ';
        while let Some(first) = rest.chars().next() {
            let after = &rest[first.len_utf8()..];
            if let Some(end) = closing(first, before) {
                // What is never closed is quoted to its end.
                let len = closes_at(after, end).unwrap_or(after.len());
                self.push(&Kind::Quote, &after[..len]);
                self.frame = Frame::Inner;
                rest = after[len..].strip_prefix(end).unwrap_or_default();
                before = end;
            } else if is_inner(first) {
                let len = word_len(rest);
                self.word(&rest[..len]);
                rest = &rest[len..];
                before = 'x';
            } else {
                self.symbol(first, after);
                rest = after;
                before = first;
            }
        }
    }

    fn symbol(&mut self, symbol: char, after: &str) {
        let ends_word = after.chars().next().is_none_or(|next| next.is_whitespace() || "\"')".contains(next));
        match symbol {
            '.' | '!' | '?' if ends_word => self.frame = Frame::Open,
            ',' | ';' | ':' if ends_word => {}
            // Lines may be code, or a list.
            '\n' if !after.trim().is_empty() => self.push(&Kind::Symbol, "\n"),
            _ if symbol.is_whitespace() => {}
            _ => self.push(&Kind::Symbol, symbol.encode_utf8(&mut [0; 4])),
        }
    }

    fn word(&mut self, word: &str) {
        let frame = std::mem::replace(&mut self.frame, Frame::Inner);
        let lower = word.to_lowercase();
        let says = |list: &[&str]| list.contains(&lower.as_str());
        if lower.chars().any(char::is_numeric) {
            return self.push(&Kind::Number, word);
        }
        if frame == Frame::How && says(AFTER_HOW) {
            self.frame = Frame::How;
            return;
        }
        let begins = |list: &[&str]| frame == Frame::Open && says(list) && !is_all_upper(word);
        if says(EMPTY) && (lower == word || begins(EMPTY)) {
            self.frame = frame;
            return;
        }
        if let Some(verb) = lower.strip_suffix("n't") {
            // "won't" and "can't" lose more than a letter; to tell them apart again is not worth it.
            self.push(&Kind::Word, verb);
            return self.push(&Kind::Not, "not");
        }
        if says(NEGATORS) {
            self.push(&Kind::Not, &lower);
        } else if says(NUMBERS) {
            self.push(&Kind::Number, &lower);
        } else if says(TURNS) && (lower == word || begins(TURNS)) {
            self.push(&Kind::Turn, &lower);
            if lower == "how" {
                self.frame = Frame::How;
            }
        } else if frame == Frame::Open && word.chars().any(char::is_uppercase) && !has_inner_capital(word) {
            // A name or not, nobody knows.
            self.push(&Kind::Word, &lower);
            self.strict.extend(self.other.pop());
        } else if word.chars().any(char::is_uppercase) && word != "I" {
            self.push(&Kind::Name, &lower);
        } else {
            self.push(&Kind::Word, &lower);
        }
    }

    fn push(&mut self, kind: &Kind, word: &str) {
        let hash = self.hasher.hash_one((kind, word));
        self.all.push(hash);
        match kind {
            Kind::Word => self.other.push(hash),
            _ => self.strict.push(hash),
        }
    }
}

/// Whether it would have its capitals anywhere, and not for beginning a sentence.
fn has_inner_capital(word: &str) -> bool {
    word.chars().skip(1).any(char::is_uppercase)
}

fn is_all_upper(word: &str) -> bool {
    word.chars().count() > 1 && !word.chars().any(char::is_lowercase)
}

fn is_inner(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// How long the word is that `text` begins with: marks within it, as in "don't", "3.5" and "e-mail", are part of it.
fn word_len(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let joins = "'-.,:/@".contains(c) && chars.peek().is_some_and(|(_, next)| is_inner(*next));
        if !is_inner(c) && !joins && !is_mark(c) {
            return at;
        }
    }
    text.len()
}

/// Accents that stand behind their letter, and what joins letters without being seen.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{200b}'..='\u{200d}' | '\u{fe00}'..='\u{fe0f}')
}

/// What ends a quotation that begins with `mark`, if one does.
fn closing(mark: char, before: char) -> Option<char> {
    match mark {
        '"' => Some('"'),
        '`' => Some('`'),
        '\u{201c}' | '\u{201e}' => Some('\u{201d}'),
        '\u{ab}' => Some('\u{bb}'),
        '\'' if !is_inner(before) => Some('\''),
        _ => None,
    }
}

fn closes_at(text: &str, end: char) -> Option<usize> {
    let is_end = |at: usize| end != '\'' || !text[at + 1..].chars().next().is_some_and(is_inner);
    text.match_indices(end).map(|(at, _)| at).find(|at| is_end(*at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    fn agree(one: &str, two: &str) -> (bool, bool) {
        let hasher = RandomState::new();
        let [one, two] = [one, two].map(|text| Words::new(text, &hasher));
        assert_eq!(one.agree(&two, false), two.agree(&one, false));
        assert_eq!(one.agree(&two, true), two.agree(&one, true));
        (one.agree(&two, false), one.agree(&two, true))
    }

    #[test]
    fn what_must_be_the_same() {
        let pairs = [
            ("Is it safe to take 20 mg?", "Is it safe to take 200 mg?"),
            ("Is it safe to take 1.5 mg?", "Is it safe to take 15 mg?"),
            ("Wait two hours", "Wait three hours"),
            ("Can dogs eat grapes?", "Can't dogs eat grapes?"),
            ("Do cats swim?", "Do cats not swim?"),
            ("A soup with salt", "A soup without salt"),
            ("Translate \"good night\"", "Translate \"good evening\""),
            ("Translate 'good night'", "Translate 'good evening'"),
            ("Translate \u{201c}yes\u{201d}", "Translate \u{201c}no\u{201d}"),
            ("Run `ls -l` now", "Run `ls -a` now"),
            ("What is the capital of France?", "What is the capital of Spain?"),
            ("Convert USD to EUR", "Convert EUR to USD"),
            ("Convert dollars to euros", "Convert euros to dollars"),
            ("Fly from Rome to Oslo", "Fly to Rome from Oslo"),
            ("Why does the dog chase the cat?", "Why does the cat chase the dog?"),
            ("Is x > 3?", "Is x < 3?"),
            ("Explain C", "Explain C++"),
            ("How do I enable logging?", "How do I disable logging?"),
            ("Who is the president?", "Who was the president?"),
            ("How to polish silver", "How to Polish silver"),
            ("Can you explain IT to me", "Can you explain it to me"),
            ("Sort it\nthen print it", "Sort it then print it"),
            ("Price in $", "Price in \u{20ac}"),
        ];
        for (one, two) in pairs {
            assert_eq!(agree(one, two), (false, false), "{one} | {two}");
        }
    }

    #[test]
    fn what_may_differ() {
        let pairs = [
            ("How do I reset my password?", "How can I reset my password"),
            ("How to bake bread", "How do you bake the bread?"),
            ("What is the capital of France?", "Hello, what is the capital of France"),
            ("Please list all users.", "list all users"),
            ("  Why is it so?  ", "why is it so"),
        ];
        for (one, two) in pairs {
            assert_eq!(agree(one, two), (true, true), "{one} | {two}");
        }
    }

    #[test]
    fn other_words_only_where_that_is_asked_for() {
        assert_eq!(agree("explain recursion briefly", "describe recursion briefly"), (false, true));
        assert_eq!(agree("red cars", "cheap cars"), (false, true));
        assert_eq!(agree("Alice owes me money", "Carol owes me money"), (false, false), "it may be a name");
        assert_eq!(agree("hello", "welcome"), (false, false), "nothing in common");
    }

    #[test]
    fn odd_texts_do_no_harm() {
        for text in [
            "",
            "'",
            "\"",
            "it's",
            "' '",
            "\u{201c}",
            "a'",
            "''",
            "n't",
            "\u{301}",
            "-",
            "\u{ab}\u{bb}",
            "日本語",
        ] {
            assert_eq!(agree(text, text), (true, true), "{text}");
        }
    }
}
