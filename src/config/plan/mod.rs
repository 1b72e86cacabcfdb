//! What a configuration comes to: names resolved, secrets found, tables built; or all that is wrong with it.

mod keys;
mod routing;
mod stores;

pub use self::routing::may_be_told;
#[cfg(all(feature = "semantic", feature = "hyper-client"))]
pub(crate) use self::stores::SemanticPlan;
pub(crate) use self::{
    keys::PlannedKey,
    routing::{PlannedDeployment, PlannedProvider},
    stores::{CachePlan, Counters, LimitsPlan, UsagePlan},
};

use super::{
    Config, ConfigError, Env, Identity, Problem, Provider, Retry, Revealed, Secret, Time, TimeoutOverrides,
    document::{field, place},
};
use crate::{
    alias::Aliases,
    fallback::Chains,
    policies::{Policies, PolicyTable},
    price::{PriceBook, Prices},
    providers::ProviderNames,
};
use std::{collections::BTreeSet, fmt, ops::RangeInclusive, sync::Arc, time::Duration};

/// A configuration that can work.
#[derive(Debug)]
pub(crate) struct Plan {
    /// `None`: everybody is anonymous, or the host says who asks.
    pub(crate) keys: Option<Vec<PlannedKey>>,
    pub(crate) providers: Vec<PlannedProvider>,
    pub(crate) names: ProviderNames,
    pub(crate) aliases: Aliases,
    pub(crate) chains: Chains,
    pub(crate) max_attempts: u16,
    pub(crate) deadline: Duration,
    /// For answers that are not streamed.
    pub(crate) whole_deadline: Duration,
    pub(crate) prices: PriceBook,
    pub(crate) policies: PolicyTable,
    /// `None`: departments may do what they like.
    pub(crate) limits: Option<LimitsPlan>,
    /// `None`: nothing is recorded.
    pub(crate) usage: Option<UsagePlan>,
    /// `None`: every call is made.
    pub(crate) cache: Option<CachePlan>,
    /// What is odd, and may be meant.
    pub(crate) warnings: Vec<Problem>,
}

/// What a program has in place of what a configuration says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Given {
    pub(crate) usage_sink: bool,
    pub(crate) usage_history: bool,
    pub(crate) quota_store: bool,
    pub(crate) cache_store: bool,
    /// Others keep answers in that store, too.
    pub(crate) is_cache_shared: bool,
    pub(crate) kb_settings: bool,
    pub(crate) prices: Option<Prices>,
    pub(crate) policies: Option<Policies>,
    /// The providers whose leaves it has.
    pub(crate) leaves: BTreeSet<Arc<str>>,
}

/// Gathers what is wrong.
pub(super) struct Check<'a> {
    config: &'a Config,
    env: Env<'a>,
    given: Option<&'a Given>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Plan {
    /// What is `given` by the program need not be compiled in; `None` if nobody knows what it will give.
    ///
    /// # Errors
    ///
    /// All that is wrong.
    pub(crate) fn new(config: &Config, env: Env<'_>, given: Option<&Given>) -> Result<Self, ConfigError> {
        let mut check = Check { config, env, given, problems: Vec::new(), warnings: Vec::new() };
        let plan = check.plan();
        let Check { mut problems, mut warnings, .. } = check;
        for problem in problems.iter_mut().chain(&mut warnings) {
            problem.line = config.lines().of(&problem.entry);
        }
        match plan {
            Some(plan) if problems.is_empty() => {
                warnings.sort_by_key(|warning| warning.line);
                Ok(Self { warnings, ..plan })
            }
            _ => Err(ConfigError::new(problems)),
        }
    }
}

impl Check<'_> {
    fn problem(&mut self, entry: impl Into<String>, what: impl fmt::Display) {
        self.problems.push(Problem::new(entry, what));
    }

    fn warning(&mut self, entry: impl Into<String>, what: impl fmt::Display) {
        self.warnings.push(Problem::new(entry, what));
    }

    /// Whether a field was told, where it cannot be seen by its value.
    fn is_told(&self, entry: &str, differs: bool) -> bool {
        differs || self.config.lines().has(entry)
    }

    fn needs(&mut self, entry: impl Into<String>, what: &str, feature: &str) {
        self.problem(entry, format_args!("{what} is not compiled in: it needs the feature `{feature}`"));
    }

    /// Whether the program has, or may have, something in place of this.
    fn may_be_given(&self, is_it: impl FnOnce(&Given) -> bool) -> bool {
        self.given.is_none_or(is_it)
    }

    fn secret(&mut self, entry: &str, secret: Option<&Secret>) -> Option<Revealed> {
        match secret?.reveal(self.env) {
            Ok(text) => Some(text),
            Err(what) => {
                self.problem(entry, what);
                None
            }
        }
    }

    fn plan(&mut self) -> Option<Plan> {
        let keys = self.keys();
        let (providers, names) = self.providers();
        let (aliases, bad) = self.aliases(&names);
        let chains = self.chains(&names, aliases.as_ref(), &bad);
        self.patterns();
        self.server();
        self.timeouts();
        let prices = self.prices();
        let usage = self.usage();
        let policies = self.policies(&names, aliases.as_ref());
        let limits = self.limits(&policies);
        let cache = self.cache();
        let has_users = self.config.identity == Identity::Host || self.config.keys.is_some();
        let host = "with identity = \"host\" the program says who asks";
        if limits.is_some() && !has_users {
            let entry = if self.config.departments.is_empty() { "quota" } else { "departments" };
            self.problem(entry, format_args!("nobody is in one, for there are no keys; {host}"));
        }
        if cache.is_some() && !has_users {
            let what = "nothing would be kept, for there are no keys and so no users";
            self.problem("cache", format_args!("{what}; {host}"));
        }
        let retry = &self.config.retry;
        Some(Plan {
            keys,
            providers,
            names,
            aliases: aliases?,
            chains: chains?,
            max_attempts: retry.max_attempts,
            deadline: retry.deadline.0,
            whole_deadline: self.whole_deadline(),
            prices,
            policies,
            limits,
            usage,
            cache,
            warnings: Vec::new(),
        })
    }

    fn server(&mut self) {
        let server = &self.config.server;
        if server.max_buffered_bytes < server.max_body_bytes {
            let what = "is less than max_body_bytes: a body of that size would always be refused";
            self.problem("server.max_buffered_bytes", what);
        }
    }

    fn timeouts(&mut self) {
        let times = &self.config.timeouts;
        for (name, time) in [
            ("head", times.head),
            ("first_content", times.first_content),
            ("idle", times.idle),
            ("whole", times.whole.unwrap_or(times.total)),
        ] {
            let entry = field("timeouts", name);
            let lines = self.config.lines();
            let are_told = lines.has(&entry) && lines.has("timeouts.total");
            if time.0 > times.total.0 && are_told {
                self.problem(entry, "is longer than total, which ends the call before");
            }
        }
        let retry = &self.config.retry;
        if retry.base.0 > retry.max.0 && self.config.lines().has("retry.base") {
            self.problem("retry.base", "is longer than max");
        }
        self.attempts();
        self.deadlines();
        if !BUDGET_TTL.contains(&retry.budget.ttl.0) {
            self.problem("retry.budget.ttl", "must be from 1s to 60s");
        }
    }

    /// Whether there are calls enough for what is to be tried.
    fn attempts(&mut self) {
        let retry = &self.config.retry;
        let longest =
            self.config.fallbacks.iter().map(|(model, fallback)| (routing::most_of(fallback), model)).max();
        let fallbacks = longest.map_or(0, |(count, _)| count);
        let needed = 1 + retry.retries as usize + fallbacks;
        if needed <= usize::from(retry.max_attempts) {
            return;
        }
        match longest {
            Some((_, model)) if retry.retries == 0 => {
                let what = format!("not all are asked: max_attempts is {}", retry.max_attempts);
                self.warning(field("fallbacks", model), what);
            }
            _ => {
                let what = format!("are not all made: with the fallbacks they take {needed} calls");
                self.warning(
                    "retry.retries",
                    format_args!("{what}, and max_attempts is {}", retry.max_attempts),
                );
            }
        }
    }

    fn whole_deadline(&self) -> Duration {
        let Config { retry, timeouts, providers, .. } = self.config;
        let is_told = self.is_told("retry.deadline", retry.deadline != Retry::default().deadline);
        let all_by_head = timeouts.whole.is_none() && self.config.tells_head();
        let is_by_head = |provider: &Provider| {
            let own = provider.timeouts.unwrap_or_default();
            own.whole.is_none() && (own.head.is_some() || all_by_head)
        };
        match is_told || providers.values().all(is_by_head) {
            true => retry.deadline.0,
            false => {
                let whole = slowest(self.config, |own| self.config.whole(own));
                let twice = whole.map_or(Duration::ZERO, |(time, _)| time.saturating_mul(2));
                retry.deadline.0.max(timeouts.total.0).max(twice)
            }
        }
    }

    /// Whether a provider that is silent leaves time for anybody else.
    fn deadlines(&mut self) {
        let config = self.config;
        let Config { retry, fallbacks, timeouts, .. } = config;
        if retry.retries == 0 && fallbacks.is_empty() {
            return;
        }
        let whole = slowest(config, |own| config.whole(own));
        let head = slowest(config, |own| own.head.unwrap_or(timeouts.head));
        for (slowest, deadline, what) in [
            (whole, self.whole_deadline(), "an answer that is not streamed"),
            (head, retry.deadline.0, "the head of a stream"),
        ] {
            if let Some((time, provider)) = slowest.filter(|(time, _)| *time >= deadline) {
                let time = Time(time);
                let what = format!("leaves no time for another try: {provider} may take {time} for {what}");
                return self.warning("retry.deadline", what);
            }
        }
    }
}

/// The longest time that one call may take until `limit`, and with whom.
fn slowest(config: &Config, limit: impl Fn(TimeoutOverrides) -> Time) -> Option<(Duration, &str)> {
    let times = config.providers.iter().map(|(name, provider)| {
        let own = provider.timeouts.unwrap_or_default();
        let total = own.total.unwrap_or(config.timeouts.total).0;
        (limit(own).0.min(total), name.as_str())
    });
    times.max_by_key(|(time, _)| *time)
}

/// How long a budget of retries may look back.
pub(super) const BUDGET_TTL: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// The department of all those that have no entry.
pub(super) const OTHERS: &str = "*";

/// Whether anything of it must be counted.
pub(crate) const fn is_limited(department: &super::Department) -> bool {
    let super::Department {
        models: _,
        day_requests,
        month_requests,
        day_tokens,
        month_tokens,
        day_cost,
        month_cost,
    } = department;
    day_requests.is_some()
        || month_requests.is_some()
        || day_tokens.is_some()
        || month_tokens.is_some()
        || day_cost.is_some()
        || month_cost.is_some()
}
