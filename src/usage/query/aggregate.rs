//! Adds up events in memory: what [`MemorySink`](crate::usage::MemorySink) answers with, and what every other store is
//! compared with.

use super::{DepartmentSums, GroupBy, UsageGroup, UsageQuery, UsageTotals, totals::Sums};
use crate::{
    Certainty,
    calendar::{day_name, day_of, nanos},
    price::NanoUsd,
    usage::{
        UsageEvent,
        event::{stored_duration, stored_tokens},
    },
};
use std::{collections::BTreeMap, time::Duration};

type Key = Vec<Option<Box<str>>>;

/// Adds up the events that `query` means, each once. `None` if the cost is more than [`NanoUsd::MAX`].
pub fn totals<'a>(
    events: impl IntoIterator<Item = &'a UsageEvent>,
    query: &UsageQuery,
) -> Option<UsageTotals> {
    let mut sums = Sums::default();
    events.into_iter().filter(|event| query.matches(event)).for_each(|event| sums.add(&of(event)));
    sums.totals()
}

/// As [`totals`], for each group; in the order of their keys.
pub fn totals_by<'a>(
    events: impl IntoIterator<Item = &'a UsageEvent>,
    query: &UsageQuery,
    groups: &[GroupBy],
) -> Option<Vec<UsageGroup>> {
    let mut sums = BTreeMap::<Key, Sums>::new();
    for event in events.into_iter().filter(|event| query.matches(event)) {
        let key = groups.iter().map(|group| group.key_of(event)).collect();
        sums.entry(key).or_default().add(&of(event));
    }
    sums.into_iter().map(|(key, sums)| Some(UsageGroup { key, totals: sums.totals()? })).collect()
}

/// Adds up the events that `query` means, each in full for every department that it is charged to.
pub fn department_sums<'a>(
    events: impl IntoIterator<Item = &'a UsageEvent>,
    query: &UsageQuery,
    groups: &[GroupBy],
) -> Option<Vec<DepartmentSums>> {
    let mut sums = BTreeMap::<(Option<Box<str>>, Key), Sums>::new();
    for event in events.into_iter().filter(|event| query.matches(event)) {
        let key: Key = groups.iter().map(|group| group.key_of(event)).collect();
        let mut add = |department: Option<&str>| {
            sums.entry((department.map(Into::into), key.clone())).or_default().add(&of(event));
        };
        match event.context.department_ids() {
            [] => add(None),
            departments => departments
                .iter()
                .filter(|department| query.department.as_ref().is_none_or(|wanted| wanted == *department))
                .for_each(|department| add(Some(department))),
        }
    }
    let sums = sums.into_iter();
    sums.map(|((department, key), sums)| Some(DepartmentSums { department, key, sums: sums.totals()? }))
        .collect()
}

impl UsageQuery {
    /// Whether it means this event.
    pub fn matches(&self, event: &UsageEvent) -> bool {
        let is = |wanted: &Option<_>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|w: &str| found == Some(w))
        };
        let context = &event.context;
        let departments = context.department_ids();
        is(&self.agent, context.agent_name())
            && is(&self.user, context.user_id())
            && is(&self.tenant, context.tenant_id())
            && is(&self.model, Some(&event.model))
            && is(&self.provider, event.provider.as_deref())
            && is(&self.task_type, context.task_type())
            && self.department.as_ref().is_none_or(|wanted| departments.contains(wanted))
            && self.outcome.is_none_or(|wanted| event.outcome == wanted)
            && self.from.is_none_or(|from| from <= event.ended_at)
            && self.until.is_none_or(|until| event.ended_at < until)
    }
}

impl GroupBy {
    /// What this event has of it, as [`UsageGroup::key`] tells; `None` if it has no such thing.
    pub fn key_of(self, event: &UsageEvent) -> Option<Box<str>> {
        let context = &event.context;
        let day = || day_name(day_of(nanos(event.ended_at)));
        match self {
            Self::Agent => context.agent_name().map(Into::into),
            Self::User => context.user_id().map(Into::into),
            Self::Tenant => context.tenant_id().map(Into::into),
            Self::Model => Some(event.model.as_str().into()),
            Self::Provider => event.provider.as_deref().map(Into::into),
            Self::TaskType => context.task_type().map(Into::into),
            Self::Outcome => Some(event.outcome.as_str().into()),
            Self::Day => Some(day().into()),
            Self::Month => Some(day()[..7].into()),
        }
    }
}

fn of(event: &UsageEvent) -> Sums {
    let tokens = |count: Option<u64>| count.map_or(0, |count| i128::from(stored_tokens(count)));
    let money = |amount: Option<NanoUsd>| amount.map_or(0, |amount| i128::from(amount.nanos()));
    let time = |time: Duration| i128::from(stored_duration(time));
    let (usage, saved) = (&event.usage, event.saved.as_ref());
    Sums {
        calls: 1,
        estimated_calls: u64::from(usage.certainty != Certainty::Exact),
        unpriced_calls: u64::from(event.cost.amount.is_none()),
        saved_calls: u64::from(saved.is_some()),
        unpriced_saved_calls: u64::from(saved.is_some_and(|saved| saved.cost.amount.is_none())),
        columns: [
            tokens(usage.input_tokens),
            tokens(usage.output_tokens),
            tokens(usage.cache_read_tokens),
            tokens(usage.cache_write_tokens),
            tokens(usage.cache_write_1h_tokens),
            tokens(usage.reasoning_tokens),
            money(event.cost.amount),
            tokens(saved.and_then(|saved| saved.usage.input_tokens)),
            tokens(saved.and_then(|saved| saved.usage.output_tokens)),
            money(saved.and_then(|saved| saved.cost.amount)),
            time(event.latency),
        ],
    }
}
