use crate::json;

/// Tells the calls of tools of one streamed choice apart, also those whose provider does not number them.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    last: Option<u64>,
    next: u64,
    last_id: Box<[u8]>,
}

impl Calls {
    /// Which call a piece belongs to, the one at `at` in its delta.
    ///
    /// Without numbers, another id begins another call, a neighbour in the same delta does, and whoever is named without
    /// an id does; the rest goes on with the last.
    pub(crate) fn number(&mut self, at: usize, call: &[u8]) -> u64 {
        let said = json::member(call, "index").and_then(|raw| std::str::from_utf8(raw).ok()?.parse().ok());
        let id = json::member(call, "id").filter(|id| !json::is_nothing(id));
        let name = json::member(call, "function").and_then(|function| json::member(function, "name"));
        let begins = at > 0
            || match id {
                Some(id) => *id != *self.last_id,
                None => name.is_some_and(|name| !json::is_nothing(name)),
            };
        let number = said.or(self.last.filter(|_| !begins)).unwrap_or(self.next);
        self.last = Some(number);
        self.next = self.next.max(number.saturating_add(1));
        if begins || id.is_some() {
            self.last_id = id.unwrap_or_default().into();
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_given_are_believed_and_the_rest_goes_on_with_the_last() {
        let mut calls = Calls::default();
        let mut number = |call: &str| calls.number(0, call.as_bytes());
        assert_eq!(number(r#"{"index":4,"id":"a"}"#), 4);
        assert_eq!(number(r#"{"index":2,"function":{"name":"f"}}"#), 2);
        assert_eq!(number(r#"{"index":null,"id":null,"function":{"name":null}}"#), 2);
        assert_eq!(number(r#"{"function":{"name":"f"}}"#), 5);
        assert_eq!(number(r#"{"index":18446744073709551615,"id":"a"}"#), u64::MAX);
        assert_eq!(number(r#"{"id":"b"}"#), u64::MAX);
    }
}
