use crate::{Period, QuotaKind, price::NanoUsd};
use std::sync::Arc;

/// How much of everything that quotas count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Calls.
    pub requests: u64,
    /// Tokens, in and out.
    pub tokens: u64,
    /// Money.
    pub cost: NanoUsd,
}

/// What has changed, in either direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delta {
    /// Calls.
    pub requests: i64,
    /// Tokens, in and out.
    pub tokens: i64,
    /// Money.
    pub cost: NanoUsd,
}

/// What a department may use up in a day, and in a month. What is not set is not limited.
///
/// ```
/// use llm_layers::{price::NanoUsd, quota::Limits};
///
/// let limits = Limits::new().with_day_tokens(1_000_000).with_month_cost("250".parse::<NanoUsd>()?);
/// assert_eq!(limits.month_cost, Some(NanoUsd::new(250_000_000_000)));
/// # Ok::<(), llm_layers::price::AmountError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Calls in a day.
    pub day_requests: Option<u64>,
    /// Calls in a month.
    pub month_requests: Option<u64>,
    /// Tokens in a day.
    pub day_tokens: Option<u64>,
    /// Tokens in a month.
    pub month_tokens: Option<u64>,
    /// Money in a day.
    pub day_cost: Option<NanoUsd>,
    /// Money in a month.
    pub month_cost: Option<NanoUsd>,
}

/// A department that a call is charged to, and its limits at that time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Department {
    /// Its id: any text.
    pub id: Arc<str>,
    /// Its limits.
    pub limits: Limits,
}

/// The departments of a call: sorted by their ids, each once. Cloning costs one reference count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departments(Arc<[Department]>);

/// What one department has used up in one window, and what its calls in flight have reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WindowUsage {
    /// Used up.
    pub settled: Amount,
    /// Reserved by calls in flight.
    pub reserved: Amount,
}

/// Everything that quotas count, in the order in which it is looked at.
pub(crate) const KINDS: [QuotaKind; 3] = [QuotaKind::Requests, QuotaKind::Tokens, QuotaKind::Cost];

/// The periods, in the order in which they are looked at.
pub(crate) const PERIODS: [Period; 2] = [Period::Day, Period::Month];

/// The most that a counter counts: what stores keep in 63 bits.
const COUNTER_MAX: u64 = i64::MAX as u64;

// ===== impl Amount =====

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self::new(0, 0, NanoUsd::ZERO);

    /// The most of each that a single call counts for: a quarter of what a counter holds.
    pub const MOST: Self = {
        let most = i64::MAX / 4;
        Self::new(most as u64, most as u64, NanoUsd::new(most))
    };

    /// So many calls, tokens and nano-dollars.
    pub const fn new(requests: u64, tokens: u64, cost: NanoUsd) -> Self {
        Self { requests, tokens, cost }
    }

    /// One of them; money in nano-dollars, and a debt is nothing.
    pub fn get(&self, kind: QuotaKind) -> u64 {
        match kind {
            QuotaKind::Requests => self.requests,
            QuotaKind::Tokens => self.tokens,
            QuotaKind::Cost => unsigned(self.cost),
        }
    }

    /// The same, but at least nothing and at most [`MOST`](Self::MOST) of each: what the amounts of
    /// [`Reservation`](super::Reservation) and [`Settlement`](super::Settlement) are within.
    #[must_use]
    pub fn clamped(self) -> Self {
        let most = Self::MOST;
        Self {
            requests: self.requests.min(most.requests),
            tokens: self.tokens.min(most.tokens),
            cost: self.cost.clamp(NanoUsd::ZERO, most.cost),
        }
    }

    /// The difference to `other`, within what an `i64` holds.
    #[must_use]
    pub fn since(&self, other: &Self) -> Delta {
        let tokens = |to: u64, from: u64| {
            let difference = i128::from(to) - i128::from(from);
            difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
        };
        Delta {
            requests: tokens(self.requests, other.requests),
            tokens: tokens(self.tokens, other.tokens),
            cost: NanoUsd::new(self.cost.nanos().saturating_sub(other.cost.nanos())),
        }
    }

    /// As a counter changes: it stays between nothing and `i64::MAX`.
    #[must_use]
    pub fn changed(self, by: Delta) -> Self {
        let count = |count: u64, by: i64| count.min(COUNTER_MAX).saturating_add_signed(by).min(COUNTER_MAX);
        let cost = self.cost.nanos().saturating_add(by.cost.nanos()).max(0);
        Self {
            requests: count(self.requests, by.requests),
            tokens: count(self.tokens, by.tokens),
            cost: NanoUsd::new(cost),
        }
    }

    /// Both together, as a counter counts.
    #[must_use]
    pub fn plus(self, more: &Self) -> Self {
        self.changed(more.since(&Self::ZERO))
    }

    /// What is left without `less`, at least nothing.
    #[must_use]
    pub fn minus(self, less: &Self) -> Self {
        self.changed(Self::ZERO.since(less))
    }
}

// ===== impl Delta =====

impl Delta {
    /// No change.
    pub const ZERO: Self = Self { requests: 0, tokens: 0, cost: NanoUsd::ZERO };

    /// Whether nothing changes.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

// ===== impl Limits =====

macro_rules! limits {
    ($($name:ident, $with:ident, $of:ty;)*) => {$(
        #[doc = concat!("Sets [`", stringify!($name), "`](Self::", stringify!($name), ").")]
        #[must_use]
        pub const fn $with(mut self, limit: $of) -> Self {
            self.$name = Some(limit);
            self
        }
    )*};
}

impl Limits {
    /// No limits.
    pub const fn new() -> Self {
        Self {
            day_requests: None,
            month_requests: None,
            day_tokens: None,
            month_tokens: None,
            day_cost: None,
            month_cost: None,
        }
    }

    limits! {
        day_requests, with_day_requests, u64;
        month_requests, with_month_requests, u64;
        day_tokens, with_day_tokens, u64;
        month_tokens, with_month_tokens, u64;
        day_cost, with_day_cost, NanoUsd;
        month_cost, with_month_cost, NanoUsd;
    }

    /// The limit on `kind` over `period`, in requests, tokens or nano-dollars: at most `i64::MAX`, and a negative
    /// one is 0.
    pub fn get(&self, period: Period, kind: QuotaKind) -> Option<u64> {
        let limit = match (period, kind) {
            (Period::Day, QuotaKind::Requests) => self.day_requests,
            (Period::Month, QuotaKind::Requests) => self.month_requests,
            (Period::Day, QuotaKind::Tokens) => self.day_tokens,
            (Period::Month, QuotaKind::Tokens) => self.month_tokens,
            (Period::Day, QuotaKind::Cost) => self.day_cost.map(unsigned),
            (Period::Month, QuotaKind::Cost) => self.month_cost.map(unsigned),
        };
        limit.map(|limit| limit.min(COUNTER_MAX))
    }

    /// As [`get`](Self::get), with the limit that is there anyhow: a counter never exceeds `i64::MAX`.
    pub fn ceiling(&self, period: Period, kind: QuotaKind) -> u64 {
        self.get(period, kind).unwrap_or(COUNTER_MAX)
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::new()
    }

    /// Whether tokens are limited.
    pub const fn has_tokens(&self) -> bool {
        self.day_tokens.is_some() || self.month_tokens.is_some()
    }

    /// Whether money is limited.
    pub const fn has_cost(&self) -> bool {
        self.day_cost.is_some() || self.month_cost.is_some()
    }

    /// The stricter of both, limit by limit.
    #[must_use]
    pub fn strictest(&self, other: &Self) -> Self {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.into_iter().chain(b).min()
        }
        Self {
            day_requests: least(self.day_requests, other.day_requests),
            month_requests: least(self.month_requests, other.month_requests),
            day_tokens: least(self.day_tokens, other.day_tokens),
            month_tokens: least(self.month_tokens, other.month_tokens),
            day_cost: least(self.day_cost, other.day_cost),
            month_cost: least(self.month_cost, other.month_cost),
        }
    }
}

// ===== impl Department and Departments =====

impl Department {
    /// This department with these limits.
    pub fn new(id: impl Into<Arc<str>>, limits: Limits) -> Self {
        Self { id: id.into(), limits }
    }
}

impl Departments {
    /// These departments. One that is named twice is there once, with the strictest of its limits.
    pub fn new(departments: impl IntoIterator<Item = Department>) -> Self {
        let mut departments: Vec<_> = departments.into_iter().collect();
        departments.sort_by(|a, b| a.id.cmp(&b.id));
        departments.dedup_by(|again, first| {
            let is_same = again.id == first.id;
            if is_same {
                first.limits = first.limits.strictest(&again.limits);
            }
            is_same
        });
        Self(departments.into())
    }

    /// This department alone.
    pub fn one(department: Department) -> Self {
        Self(Arc::new([department]))
    }
}

impl std::ops::Deref for Departments {
    type Target = [Department];

    fn deref(&self) -> &[Department] {
        &self.0
    }
}

impl FromIterator<Department> for Departments {
    fn from_iter<I: IntoIterator<Item = Department>>(departments: I) -> Self {
        Self::new(departments)
    }
}

fn unsigned(cost: NanoUsd) -> u64 {
    u64::try_from(cost.nanos()).unwrap_or(0)
}
