/// A pattern in which `*` stands for any text, slashes included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Glob(Box<str>);

impl Glob {
    /// The pattern, if `text` is one; several stars in a row mean one.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let mut pattern = text.to_owned();
        while pattern.contains("**") {
            pattern = pattern.replace("**", "*");
        }
        pattern.contains('*').then(|| Self(pattern.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// How many letters must be just so: the more, the narrower.
    pub(crate) fn literals(&self) -> usize {
        self.0.len() - self.0.matches('*').count()
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn a_star_is_any_text() {
        let matches = |pattern: &str, text: &str| Glob::new(pattern).unwrap().matches(text);
        assert!(matches("*", "") && matches("*", "a/b"));
        assert!(matches("gpt-*", "gpt-") && matches("gpt-*", "gpt-4o") && !matches("gpt-*", "gp"));
        assert!(matches("*-mini", "gpt-mini") && !matches("*-mini", "gpt-minis"));
        assert!(matches("a*b*c", "abc") && matches("a*b*c", "a-b-b-c") && !matches("a*b*c", "acb"));
        assert!(!matches("ab*ba", "aba"));
        assert_eq!(Glob::new("plain"), None);
        assert_eq!(Glob::new("a**b"), Glob::new("a*b"));
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_a_regular_expression_by_hand(pattern in "[ab*]{1,6}", text in "[ab]{0,8}") {
            fn slow(p: &[u8], t: &[u8]) -> bool {
                match p {
                    [] => t.is_empty(),
                    [b'*', p @ ..] => (0..=t.len()).any(|at| slow(p, &t[at..])),
                    [c, p @ ..] => t.first() == Some(c) && slow(p, &t[1..]),
                }
            }
            if let Some(glob) = Glob::new(&pattern) {
                proptest::prop_assert_eq!(glob.matches(&text), slow(pattern.as_bytes(), text.as_bytes()));
            }
        }
    }
}
