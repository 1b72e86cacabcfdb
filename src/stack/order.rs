//! Which layers there are, and in which order they make sense.

use crate::config::{Config, Problem, plan::Plan};
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
    /// Directly inside of [`Part::Fallback`]: it sees each attempt, with one concrete model.
    Attempt,
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
pub(super) fn check(order: &[Part], plan: &Plan, config: &Config, needs: &Needs) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut wrong = |entry: &str, what: String| problems.push(Problem::new(entry, what));
    let at = |part| order.iter().position(|other| *other == part);
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
    let has = |part| at(part).is_some();
    for (part, is_there, entry) in [
        (Part::Quota, needs.has_quota, "quota"),
        (Part::Access, needs.has_quota, "departments"),
        (Part::Cache, needs.has_cache, "cache"),
        (Part::Usage, needs.has_usage, "usage"),
        (Part::Hits, needs.has_usage, "usage"),
    ] {
        if needs.is_own_order && has(part) && !is_there {
            wrong(
                entry,
                format!("{part} is in the order, and there is nothing in the configuration that it would do"),
            );
        }
    }
    if needs.is_own_order && has(Part::Hits) && !(has(Part::Cache) && needs.has_cache) {
        wrong("cache", "hits are to be recorded, and there is no cache that could have any".into());
    }
    let left = |what: &str, part: Part| format!("{what}, and the stack was built without {part}");
    if !has(Part::Quota) {
        for (name, department) in &config.departments {
            let limits = crate::config::plan::is_limited(department);
            if limits {
                wrong(&crate::config::field("departments", name), left("it is limited", Part::Quota));
            }
        }
        if plan.limits.as_ref().is_some_and(|limits| limits.policies_file.is_some()) {
            wrong("quota.policies", left("departments may be limited", Part::Quota));
        }
    }
    if !has(Part::Access) {
        for (name, department) in &config.departments {
            if department.models.is_some() {
                let entry = crate::config::field(&crate::config::field("departments", name), "models");
                wrong(&entry, left("only some models are allowed", Part::Access));
            }
        }
    }
    let has_aliases =
        !config.aliases.is_empty() || config.tenants.values().any(|own| !own.aliases.is_empty());
    if !has(Part::Alias) && has_aliases {
        wrong("aliases", left("there are some", Part::Alias));
    }
    if !has(Part::Fallback) && !config.fallbacks.is_empty() {
        wrong("fallbacks", left("there are some", Part::Fallback));
    }
    if !has(Part::Cache) && needs.has_cache {
        wrong("cache", left("answers are to be kept", Part::Cache));
    }
    if !has(Part::Usage) && config.usage.enabled && config.lines().has("usage") {
        wrong("usage", left("calls are to be recorded", Part::Usage));
    }
    problems
}

/// What there is to be enforced, kept and recorded.
pub(super) struct Needs {
    pub(super) is_own_order: bool,
    pub(super) has_quota: bool,
    pub(super) has_cache: bool,
    pub(super) has_usage: bool,
}

impl Needs {
    /// What `plan` asks for; `records` is whether anybody takes usage.
    pub(super) const fn of(plan: &Plan, is_own_order: bool, records: bool) -> Self {
        Self {
            is_own_order,
            has_quota: plan.limits.is_some(),
            has_cache: plan.cache.is_some(),
            has_usage: records,
        }
    }
}
