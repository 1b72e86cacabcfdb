use crate::price::NanoUsd;
use std::time::Duration;

/// Sums over events. Tokens that nobody counted add nothing. Of your own: begin with the default, and set what there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageTotals {
    /// How many events.
    pub calls: u64,
    /// Of these: whose tokens were estimated, or are not known.
    pub estimated_calls: u64,
    /// Of these: whose cost nobody knows. [`cost`](Self::cost) is without them.
    pub unpriced_calls: u64,
    /// Tokens of the prompts.
    pub input_tokens: u128,
    /// Tokens of the answers.
    pub output_tokens: u128,
    /// Of the input: read from providers' caches.
    pub cache_read_tokens: u128,
    /// Of the input: written to providers' caches.
    pub cache_write_tokens: u128,
    /// Of what was written to providers' caches: to stay there for an hour.
    pub cache_write_1h_tokens: u128,
    /// Of the output: thoughts.
    pub reasoning_tokens: u128,
    /// What the calls cost, as far as that is known.
    pub cost: NanoUsd,
    /// How many answers came from our own cache, or were shared.
    pub saved_calls: u64,
    /// Of these: of which nobody knows what they would have cost.
    pub unpriced_saved_calls: u64,
    /// Tokens of prompts that no provider had to read.
    pub saved_input_tokens: u128,
    /// Tokens of answers that no provider had to write.
    pub saved_output_tokens: u128,
    /// What these would have cost, as far as that is known.
    pub saved_cost: NanoUsd,
    /// How long all calls took together.
    pub latency: Duration,
}

/// Sums over the events that have something in common: each event is in one group.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageGroup {
    /// What they have in common, in the order asked for; `None` is what has no such thing.
    pub key: Vec<Option<Box<str>>>,
    /// Their sums.
    pub totals: UsageTotals,
}

/// Sums over what is charged to one department: an event with several is in full in each of theirs.
///
/// So all of these together may be more than the [totals](UsageTotals), and neither is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DepartmentSums {
    /// The department; `None` for events that have none.
    pub department: Option<Box<str>>,
    /// What the events have in common besides.
    pub key: Vec<Option<Box<str>>>,
    /// Their sums.
    pub sums: UsageTotals,
}

/// What was used, told in three ways.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageSummary {
    /// Each event once.
    pub totals: UsageTotals,
    /// The same for each group, in the order of their keys.
    pub groups: Vec<UsageGroup>,
    /// Each event in full for every department that it is charged to, in the order of departments, then keys.
    pub departments: Vec<DepartmentSums>,
}

impl UsageSummary {
    /// Of these sums.
    pub const fn new(totals: UsageTotals, groups: Vec<UsageGroup>, departments: Vec<DepartmentSums>) -> Self {
        Self { totals, groups, departments }
    }
}

impl UsageGroup {
    /// Of what they have in common.
    pub const fn new(key: Vec<Option<Box<str>>>, totals: UsageTotals) -> Self {
        Self { key, totals }
    }
}

impl DepartmentSums {
    /// Of this department, or of none.
    pub const fn new(department: Option<Box<str>>, key: Vec<Option<Box<str>>>, sums: UsageTotals) -> Self {
        Self { department, key, sums }
    }
}

/// [`UsageTotals`] while they grow: nothing here can overflow.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::usage) struct Sums {
    pub(in crate::usage) calls: u64,
    pub(in crate::usage) estimated_calls: u64,
    pub(in crate::usage) unpriced_calls: u64,
    pub(in crate::usage) saved_calls: u64,
    pub(in crate::usage) unpriced_saved_calls: u64,
    /// As in [`COLUMNS`](Self::COLUMNS).
    pub(in crate::usage) columns: [i128; Self::COLUMNS.len()],
}

impl Sums {
    /// What is added up.
    pub(in crate::usage) const COLUMNS: [&'static str; 11] = [
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "reasoning_tokens",
        "cost",
        "saved_input_tokens",
        "saved_output_tokens",
        "saved_cost",
        "latency",
    ];

    pub(in crate::usage) fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.estimated_calls += other.estimated_calls;
        self.unpriced_calls += other.unpriced_calls;
        self.saved_calls += other.saved_calls;
        self.unpriced_saved_calls += other.unpriced_saved_calls;
        for (sum, more) in self.columns.iter_mut().zip(other.columns) {
            *sum += more;
        }
    }

    /// `None` if an amount of money is more than [`NanoUsd::MAX`].
    pub(in crate::usage) fn totals(self) -> Option<UsageTotals> {
        let [
            input,
            output,
            read,
            write,
            write_1h,
            reasoning,
            cost,
            saved_input,
            saved_output,
            saved_cost,
            latency,
        ] = self.columns;
        let tokens = |sum: i128| u128::try_from(sum).unwrap_or(0);
        let money = |sum: i128| i64::try_from(sum).ok().map(NanoUsd::new);
        let nanos = tokens(latency);
        let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
        Some(UsageTotals {
            calls: self.calls,
            estimated_calls: self.estimated_calls,
            unpriced_calls: self.unpriced_calls,
            input_tokens: tokens(input),
            output_tokens: tokens(output),
            cache_read_tokens: tokens(read),
            cache_write_tokens: tokens(write),
            cache_write_1h_tokens: tokens(write_1h),
            reasoning_tokens: tokens(reasoning),
            cost: money(cost)?,
            saved_calls: self.saved_calls,
            unpriced_saved_calls: self.unpriced_saved_calls,
            saved_input_tokens: tokens(saved_input),
            saved_output_tokens: tokens(saved_output),
            saved_cost: money(saved_cost)?,
            latency: Duration::new(seconds, (nanos % 1_000_000_000) as u32),
        })
    }
}
