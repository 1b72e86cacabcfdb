//! Which layers there are, and in which order they make sense.

use crate::config::{
    Config, Department, Problem, Retry, Server, field,
    plan::{Plan, is_limited},
};
use std::fmt;

/// A layer of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Part {
    /// One span around the whole call: [`telemetry`](crate::telemetry).
    Telemetry,
    /// The bound of calls in flight: [`concurrency`](crate::concurrency).
    Concurrency,
    /// Names of models: [`alias`](crate::alias).
    Alias,
    /// Further tries and other models: [`fallback`](crate::fallback).
    Fallback,
    /// Who may use which model: [`access`](crate::access).
    Access,
    /// The record of answers that cost nothing: [`UsageLayer::hits`](crate::usage::UsageLayer::hits).
    Hits,
    /// Answers that are given again: [`cache`](crate::cache).
    Cache,
    /// Limits: [`quota`](crate::quota).
    Quota,
    /// The record of calls: [`usage`](crate::usage).
    Usage,
}

/// Where a layer of your own may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// Outside of everything: it sees each call once, as it was asked.
    Outermost,
    /// Directly outside of [`Part::Fallback`], or outside of all parts that come after it: it sees each call once, with the name
    /// that aliases lead to.
    Call,
    /// Directly inside of [`Part::Fallback`]: it sees each attempt, with one concrete model. Without that part it is directly inside
    /// of [`Self::Call`].
    Attempt,
    /// Directly outside of [`Part::Quota`] and [`Part::Usage`], and inside of [`Part::Cache`]: it sees each attempt that the cache does not
    /// answer, and what it does to one is charged and recorded.
    Miss,
    /// Directly outside of the providers: it sees each call that is really made, no answers from the cache.
    Provider,
}

impl Part {
    /// The documented order, from the outside in.
    pub const ORDER: [Self; 9] = [
        Self::Telemetry,
        Self::Concurrency,
        Self::Alias,
        Self::Fallback,
        Self::Access,
        Self::Hits,
        Self::Cache,
        Self::Quota,
        Self::Usage,
    ];

    /// Its name, in what is said of a stack.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Concurrency => "concurrency",
            Self::Alias => "alias",
            Self::Fallback => "fallback",
            Self::Access => "access",
            Self::Hits => "usage of hits",
            Self::Cache => "cache",
            Self::Quota => "quota",
            Self::Usage => "usage",
        }
    }
}

impl Place {
    /// All, from the outside in.
    pub(super) const ALL: [Self; 5] =
        [Self::Outermost, Self::Call, Self::Attempt, Self::Miss, Self::Provider];

    /// What it is around.
    pub(super) const fn what(self) -> &'static str {
        match self {
            Self::Outermost => "everything",
            Self::Call => "each call",
            Self::Attempt => "each attempt",
            Self::Miss => "each attempt that the cache does not answer",
            Self::Provider => "each call to a provider",
        }
    }

    /// Directly outside of which part of an order it is; as many as there are, if it is inside of all.
    pub(super) fn before(self, order: &[Part]) -> usize {
        let at = |part| order.iter().position(|other| *other == part);
        let outermost = |from: usize, parts: &[Part]| {
            let found = order[from..].iter().position(|part| parts.contains(part));
            found.map_or(order.len(), |found| from + found)
        };
        match (self, at(Part::Fallback)) {
            (Self::Outermost, _) => 0,
            (Self::Call, Some(fallback)) => fallback,
            (Self::Attempt, Some(fallback)) => fallback + 1,
            // An attempt is a call then.
            (Self::Call | Self::Attempt, None) => {
                outermost(0, &[Part::Access, Part::Hits, Part::Cache, Part::Quota, Part::Usage])
            }
            (Self::Miss, _) => {
                outermost(at(Part::Cache).map_or(0, |cache| cache + 1), &[Part::Quota, Part::Usage])
            }
            (Self::Provider, _) => order.len(),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What must stand outside of what, and why.
const RULES: [(Part, Part, &str); 17] = {
    use Part::{Access, Alias, Cache, Concurrency, Fallback, Hits, Quota, Telemetry, Usage};
    const ATTEMPTS: &str = "one span is for the whole call, not for each attempt";
    const PLACE: &str = "a call would queue again for each attempt, against itself";
    const CHAINS: &str = "chains are looked up by the name that aliases lead to";
    const LISTS: &str = "allow-lists are of the names that aliases lead to";
    const PRICES: &str = "prices are listed under the names that aliases lead to";
    const KEYS: &str = "the key would have the alias, and no answer would be kept";
    [
        (Telemetry, Fallback, ATTEMPTS),
        (Concurrency, Fallback, PLACE),
        (Alias, Fallback, CHAINS),
        (Alias, Access, LISTS),
        (Alias, Cache, KEYS),
        (Alias, Quota, PRICES),
        (Alias, Hits, PRICES),
        (Alias, Usage, PRICES),
        (Fallback, Access, "a substitute would not be checked"),
        (Fallback, Cache, "answers of substitutes would not be kept"),
        (Fallback, Hits, "only the last attempt would be recorded"),
        (Fallback, Quota, "what discarded attempts cost would not be charged"),
        (Fallback, Usage, "what discarded attempts cost would not be recorded"),
        (Access, Cache, "a model that is forbidden by now would be answered from the cache"),
        (Hits, Cache, "inside of the cache nobody sees its hits"),
        (Cache, Usage, "a shared call that outlives its caller would go unrecorded"),
        (Quota, Usage, "what is settled must be what is recorded"),
    ]
};

/// All that is wrong with an order, and with what it leaves out.
pub(super) fn check(order: &[Part], config: &Config, has_own_policies: bool) -> Vec<Problem> {
    let at = |part| order.iter().position(|other| *other == part);
    let mut problems = Vec::new();
    let mut wrong = |entry: &str, what: String| problems.push(Problem::new(entry, what));
    for (index, part) in order.iter().enumerate() {
        if order[..index].contains(part) {
            wrong("", format!("the order has {part} twice"));
        }
    }
    for (outer, inner, why) in RULES {
        if let (Some(outer_at), Some(inner_at)) = (at(outer), at(inner))
            && outer_at > inner_at
        {
            wrong("", format!("{outer} must stand outside of {inner}: {why}"));
        }
    }
    for (part, asked) in Part::ORDER.map(|part| (part, asked_of(part, config, has_own_policies))) {
        if at(part).is_none() {
            for (entry, what) in asked {
                wrong(&entry, format!("{what}, and the stack was built without {part}"));
            }
        }
    }
    problems
}

/// What a configuration asks of a part, by its entries.
fn asked_of(part: Part, config: &Config, has_own_policies: bool) -> Vec<(String, &'static str)> {
    let departments = |is_asked: fn(&Department) -> bool| {
        let asked = config.departments.iter().filter(move |(_, department)| is_asked(department));
        asked.map(|(name, _)| field("departments", name))
    };
    let has = |entry: &str| config.lines().has(entry);
    // What is in such a table is not known yet, or may change.
    let has_policies = config.quota.as_ref().is_some_and(|quota| quota.policies.is_some());
    let table = [(has_policies, "quota.policies"), (has_own_policies, "departments")];
    let table = table.into_iter().filter(|(is_there, _)| *is_there).map(|(_, entry)| entry.to_owned());
    let one = |is_asked: bool, entry: &str, what| Vec::from_iter(is_asked.then(|| (entry.to_owned(), what)));
    match part {
        Part::Telemetry | Part::Hits => Vec::new(),
        Part::Concurrency => {
            let (told, unless_told) = (&config.server, Server::default());
            let bounds = [
                ("server.max_in_flight", told.max_in_flight != unless_told.max_in_flight),
                ("server.max_waiting", told.max_waiting != unless_told.max_waiting),
                ("server.max_wait", told.max_wait != unless_told.max_wait),
            ];
            let asked = bounds.into_iter().filter(|(entry, differs)| *differs || has(entry));
            asked.map(|(entry, _)| (entry.to_owned(), "it is a bound of calls in flight")).collect()
        }
        Part::Alias => {
            let of_tenants = config.tenants.values().any(|own| !own.aliases.is_empty());
            one(of_tenants || !config.aliases.is_empty(), "aliases", "there are some")
        }
        Part::Fallback => {
            let retries = config.retry != Retry::default() || has("retry");
            let mut asked = one(!config.fallbacks.is_empty(), "fallbacks", "there are some");
            asked.extend(one(retries, "retry", "it is told how often to try"));
            asked
        }
        Part::Access => {
            let mut asked: Vec<_> = table.map(|entry| (entry, "models may be forbidden")).collect();
            asked.extend(
                departments(|department| department.models.is_some())
                    .map(|entry| (field(&entry, "models"), "only some models are allowed")),
            );
            asked
        }
        Part::Cache => {
            let is_on = config.cache.as_ref().is_some_and(|cache| cache.enabled);
            one(is_on, "cache", "answers are to be kept")
        }
        Part::Quota => {
            let mut asked: Vec<_> = table.map(|entry| (entry, "departments may be limited")).collect();
            asked.extend(departments(is_limited).map(|entry| (entry, "it is limited")));
            asked
        }
        Part::Usage => one(config.usage.enabled && has("usage"), "usage", "calls are to be recorded"),
    }
}

/// The parts of an order of one's own that would have nothing to do.
pub(super) fn idle(order: &[Part], needs: &Needs) -> Vec<Problem> {
    let parts = [
        (Part::Quota, needs.has_quota, "quota"),
        (Part::Access, needs.has_quota, "departments"),
        (Part::Cache, needs.has_cache, "cache"),
        (Part::Usage, needs.has_usage, "usage"),
        (Part::Hits, needs.has_usage, "usage"),
    ];
    let idle = parts.into_iter().filter(|(part, is_there, _)| order.contains(part) && !is_there);
    let mut problems: Vec<_> = idle
        .map(|(part, _, entry)| {
            let what = "is in the order, and there is nothing in the configuration that it would do";
            Problem::new(entry, format!("{part} {what}"))
        })
        .collect();
    if order.contains(&Part::Hits) && !(order.contains(&Part::Cache) && needs.has_cache) {
        problems.push(Problem::new(
            "cache",
            "hits are to be recorded, and there is no cache that could have any",
        ));
    }
    problems
}

/// What there is to be enforced, kept and recorded.
pub(super) struct Needs {
    pub(super) has_quota: bool,
    pub(super) has_cache: bool,
    pub(super) has_usage: bool,
}

impl Needs {
    /// What `plan` asks for; `records` is whether anybody takes usage.
    pub(super) const fn of(plan: &Plan, records: bool) -> Self {
        Self { has_quota: plan.limits.is_some(), has_cache: plan.cache.is_some(), has_usage: records }
    }
}
