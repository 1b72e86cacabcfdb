//! What searches of the web cost.

use super::rate::Rate;
use crate::json;

/// The price of a search, by how much of what is found the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SearchPrice {
    pub(super) low: Rate,
    pub(super) medium: Rate,
    pub(super) high: Rate,
    /// Whether the model searches unasked.
    pub(super) is_always: bool,
}

/// What a request says of searches of the web.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Searches {
    #[default]
    None,
    /// Of some size.
    Some,
    Low,
    Medium,
    High,
}

/// How many searches are charged, and what each costs.
pub(super) struct Searched {
    pub(super) number: u64,
    pub(super) rate: Rate,
    /// There may have been fewer, or more, or cheaper ones.
    pub(super) is_guess: bool,
}

// ===== impl SearchPrice =====

impl SearchPrice {
    pub(super) const fn each(rate: Rate) -> Self {
        Self { low: rate, medium: rate, high: rate, is_always: false }
    }

    /// Of a call that was not refused. Where nobody says how many there were, there was one, of the dearest size.
    pub(super) fn of(&self, asked: Searches, reported: Option<u64>) -> Searched {
        let least = u64::from(self.is_always);
        let number = match reported {
            Some(number) => number.max(least),
            None => u64::from(asked != Searches::None).max(least),
        };
        let dearest = self.low.max(self.medium).max(self.high);
        let (rate, is_size_known) = match asked {
            Searches::Low => (self.low, true),
            Searches::Medium => (self.medium, true),
            Searches::High => (self.high, true),
            Searches::None | Searches::Some => (dearest, self.low.min(self.medium).min(self.high) == dearest),
        };
        Searched {
            number,
            rate,
            is_guess: number > 0 && rate > Rate::FREE && !(is_size_known && reported.is_some()),
        }
    }
}

// ===== impl Searches =====

impl Searches {
    /// By the value of a request's `web_search_options`.
    pub(crate) fn by_options(value: &[u8]) -> Self {
        if value.first() != Some(&b'{') {
            return Self::None;
        }
        match json::member(value, "search_context_size").and_then(json::string).as_deref() {
            Some("low") => Self::Low,
            Some("medium") => Self::Medium,
            Some("high") => Self::High,
            _ => Self::Some,
        }
    }

    /// By the value of a request's `tools`: those that the provider runs, in the words of several of them, and no function
    /// of the caller's.
    pub(crate) fn by_tools(value: &[u8]) -> Self {
        if memchr::memmem::find(value, b"earch").is_none() {
            return Self::None;
        }
        let is_search = |tool: &[u8]| match json::member(tool, "type").and_then(json::string) {
            Some(kind) => kind.contains("web_search"),
            None => json::members(tool).any(|(name, _)| {
                json::string(name).is_some_and(|name| name.starts_with("google") && name.contains("earch"))
            }),
        };
        if json::items(value).any(is_search) { Self::Some } else { Self::None }
    }

    /// What says more.
    pub(crate) fn or(self, other: Self) -> Self {
        if matches!(self, Self::None | Self::Some) && other != Self::None { other } else { self }
    }
}
