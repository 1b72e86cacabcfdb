use super::amount::Amount;
use crate::price::Price;

/// What comes of a call that is over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It is made all the same and counted, here and by [`Stats`]. Nothing is refused, for whatever reason, and no
    /// request is changed: to find out what limits would do.
    Shadow,
}

/// What to do with a request that bounds its answer by nothing, of a model whose bound is not known, if tokens or money
/// are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unbounded {
    /// Bound it by so many tokens, or by as many as there is room for if those are fewer, down to 16: what was reserved is
    /// then true.
    Inject(u64),
    /// Refuse it, as [`InvalidRequest`](crate::ErrorKind::InvalidRequest).
    Reject,
}

impl Default for Unbounded {
    fn default() -> Self {
        Self::Inject(4096)
    }
}

/// What to do with a request that would fit if its answer were shorter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnTight {
    /// Refuse it.
    #[default]
    Refuse,
    /// Let the answer have as many tokens as there is room for, unless that are fewer than `min` per choice.
    ShrinkMaxTokens {
        /// The shortest bound that is of use.
        min: u64,
    },
}

/// What a model costs of which nobody knows the price.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unpriced {
    /// Where money is limited, calls are refused as [`ModelUnpriced`](crate::ErrorKind::ModelUnpriced); elsewhere
    /// they count as requests and tokens, and cost nothing.
    #[default]
    Reject,
    /// So much.
    Assume(Price),
    /// Nothing.
    Free,
}

/// What is charged for a call that was sent and whose usage nobody reports: its caller left, its stream broke, it
/// failed.
///
/// A provider that refuses a request by its status bills nothing for it, and neither does any of these. To know rather than
/// to guess where callers leave: [`drain`](crate::drain).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unreported {
    /// The prompt's upper bound and that of the text that came, on top of what was reported before it: never too little, but
    /// for thoughts that a provider bills and does not show.
    #[default]
    UpperBound,
    /// An estimate, the same as [`usage`](crate::usage) records.
    Estimate,
    /// All that was reserved.
    Full,
}

/// What a lease charges that expires, because nobody has settled it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnExpiry {
    /// The prompt, and one request.
    #[default]
    ChargePrompt,
    /// All that was reserved.
    ChargeAll,
    /// Nothing.
    Release,
}

/// What an answer from a cache counts for, where this layer stands outside of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hits {
    /// Nothing.
    #[default]
    Free,
    /// One request, and its tokens; it costs nothing in any case.
    Count,
}

/// What a layer has refused so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls over a limit.
    pub denied: u64,
    /// Calls over a limit that were made all the same, in [`Mode::Shadow`].
    pub would_deny: u64,
    /// Calls of which the store could not be asked.
    pub unavailable: u64,
    /// Calls that hold a reservation now.
    pub in_flight: u64,
}

/// What a call had reserved, and what it used up in truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// The upper bound that was reserved.
    pub reserved: Amount,
    /// What is charged.
    pub used: Amount,
}
