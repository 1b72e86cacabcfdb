use crate::json;
use std::collections::BTreeMap;

/// Tells the calls of tools of one streamed choice apart, also those whose provider does not number them.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    last: Option<u64>,
    next: u64,
    last_id: Box<[u8]>,
    /// By the provider's numbers.
    numbered: BTreeMap<u64, Numbered>,
    /// Whether a number was given to more than one call.
    is_ambiguous: bool,
}

/// The latest call of a number, which is ours if the provider has used it before.
#[derive(Debug)]
struct Numbered {
    id: Box<[u8]>,
    number: u64,
}

/// Beyond it, numbers are believed whatever the ids are.
const MAX_NUMBERED: usize = 1_024;

impl Calls {
    /// Which call a piece belongs to, the one at `at` in its delta.
    ///
    /// With a number, another id begins another call if it comes with a name: some give each piece of a call an id of its
    /// own. Without, another id does, a neighbour in the same delta does, and whoever is named without an id does; the rest
    /// goes on with the last.
    pub(crate) fn number(&mut self, at: usize, call: &[u8]) -> u64 {
        let said = json::member(call, "index").and_then(|raw| std::str::from_utf8(raw).ok()?.parse().ok());
        let id = json::member(call, "id").filter(|id| !json::is_nothing(id));
        let name = json::member(call, "function").and_then(|function| json::member(function, "name"));
        let is_named = name.is_some_and(|name| !json::is_nothing(name));
        let begins = at > 0
            || match id {
                Some(id) => *id != *self.last_id,
                None => is_named,
            };
        let number = match said {
            Some(said) => self.numbered(said, id, is_named),
            None => self.last.filter(|_| !begins).unwrap_or(self.next),
        };
        self.last = Some(number);
        self.next = self.next.max(number.saturating_add(1));
        if begins || id.is_some() {
            self.last_id = id.unwrap_or_default().into();
        }
        number
    }

    fn numbered(&mut self, said: u64, id: Option<&[u8]>, is_named: bool) -> u64 {
        let is_full = self.numbered.len() >= MAX_NUMBERED;
        match self.numbered.get_mut(&said) {
            Some(known) => {
                let Some(id) = id.filter(|id| **id != *known.id) else { return known.number };
                if known.id.is_empty() {
                    known.id = id.into();
                } else if is_named {
                    *known = Numbered { id: id.into(), number: self.next };
                    self.is_ambiguous = true;
                }
                known.number
            }
            None if is_full => said,
            None => {
                // What is below may be a number that we have given.
                let number = if self.is_ambiguous { said.max(self.next) } else { said };
                self.numbered.insert(said, Numbered { id: id.unwrap_or_default().into(), number });
                number
            }
        }
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

    #[test]
    fn a_number_with_another_id_is_another_call_beside_those_that_are_known() {
        let mut calls = Calls::default();
        let mut number = |call: &str| calls.number(0, call.as_bytes());
        assert_eq!(number(r#"{"index":0}"#), 0);
        assert_eq!(number(r#"{"index":0,"id":"a"}"#), 0, "it was not told before");
        assert_eq!(number(r#"{"index":1,"id":"b"}"#), 1);
        assert_eq!(number(r#"{"index":0,"id":"a"}"#), 0);
        assert_eq!(number(r#"{"index":0,"id":"c","function":{"name":"f"}}"#), 2);
        assert_eq!(number(r#"{"index":0,"id":""}"#), 2);
        assert_eq!(number(r#"{"function":{"arguments":"1"}}"#), 2);
        assert_eq!(number(r#"{"index":1}"#), 1);
        assert_eq!(number(r#"{"index":2,"id":"d","function":{"name":"f"}}"#), 3, "the third has that number");
        assert_eq!(number(r#"{"index":2}"#), 3);
        assert_eq!(number(r#"{"index":7,"id":"e"}"#), 7);
    }

    #[test]
    fn a_number_with_another_id_and_no_name_is_the_same_call() {
        let mut calls = Calls::default();
        let mut number = |call: &str| calls.number(0, call.as_bytes());
        assert_eq!(number(r#"{"index":0,"id":"a","function":{"name":"f","arguments":""}}"#), 0);
        for name in ["", r#""name":null,"#, r#""name":"","#] {
            assert_eq!(number(&format!(r#"{{"index":0,"id":"b","function":{{{name}"arguments":"1"}}}}"#)), 0);
        }
        assert_eq!(number(r#"{"index":0,"id":"c"}"#), 0);
        assert_eq!(number(r#"{"index":0,"id":"d","function":{"name":"g","arguments":""}}"#), 1);
        assert_eq!(number(r#"{"index":0,"id":"e","function":{"arguments":"1"}}"#), 1);
    }

    #[test]
    fn so_many_ids_are_kept_and_no_more() {
        let mut calls = Calls::default();
        for n in 0..2_000 {
            let call = format!(r#"{{"index":{n},"id":"a{n}"}}"#);
            assert_eq!(calls.number(0, call.as_bytes()), n);
        }
        assert!(calls.numbered.len() <= MAX_NUMBERED);
    }
}
