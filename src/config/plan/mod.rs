//! What a configuration comes to: names resolved, secrets found, tables built; or all that is wrong with it.

mod routing;
mod stores;

#[cfg(all(feature = "semantic", feature = "hyper-client"))]
pub(crate) use self::stores::SemanticPlan;
pub(crate) use self::{
    routing::{PlannedDeployment, PlannedProvider},
    stores::{CachePlan, Counters, LimitsPlan, UsagePlan},
};

use super::{
    Config, ConfigError, Env, Identity, Problem, Revealed, Secret,
    document::{field, place},
};
use crate::{
    RequestContext, alias::Aliases, fallback::Chains, policies::PolicyTable, price::PriceBook,
    providers::ProviderNames,
};
use blake3::Hash;
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

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

/// A key, by its hash.
#[derive(Clone)]
pub(crate) struct PlannedKey {
    pub(crate) hash: Hash,
    pub(crate) context: RequestContext,
    pub(crate) is_admin: bool,
    pub(crate) is_trusted: bool,
    pub(crate) max_in_flight: usize,
}

impl fmt::Debug for PlannedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedKey").field("context", &self.context).finish_non_exhaustive()
    }
}

/// Gathers what is wrong.
pub(super) struct Check<'a> {
    config: &'a Config,
    env: Env<'a>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Plan {
    /// # Errors
    ///
    /// All that is wrong.
    pub(crate) fn new(config: &Config, env: Env<'_>) -> Result<Self, ConfigError> {
        let mut check = Check { config, env, problems: Vec::new(), warnings: Vec::new() };
        let plan = check.plan();
        let Check { mut problems, mut warnings, .. } = check;
        for problem in problems.iter_mut().chain(&mut warnings) {
            problem.line = config.lines().of(&problem.entry);
        }
        match plan {
            Some(plan) if problems.is_empty() => Ok(Self { warnings, ..plan }),
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
            prices,
            policies,
            limits,
            usage,
            cache,
            warnings: Vec::new(),
        })
    }

    fn keys(&mut self) -> Option<Vec<PlannedKey>> {
        let config = self.config;
        let keys = config.keys.as_ref()?;
        if keys.is_empty() {
            self.problem("keys", "there must be one; without the table everybody is anonymous");
        }
        if config.identity == Identity::Host {
            self.problem("keys", "are not asked for with identity = \"host\"");
        }
        let mut planned = Vec::<PlannedKey>::new();
        let mut seen = HashMap::new();
        for (at, key) in keys.iter().enumerate() {
            let path = place("keys", at);
            let entry = |name: &str| field(&path, name);
            let hash = match (&key.key, &key.hash) {
                (Some(_), Some(_)) => {
                    self.problem(entry("hash"), "stands beside the key; one of the two is enough");
                    None
                }
                (None, None) => {
                    self.problem(entry("key"), "is missing");
                    None
                }
                (Some(key), None) => {
                    self.secret(&entry("key"), Some(key)).map(|key| blake3::hash(key.reveal().as_bytes()))
                }
                (None, Some(hash)) => {
                    let read = Hash::from_hex(hash);
                    if read.is_err() {
                        self.problem(entry("hash"), "must be a BLAKE3 hash, of 64 hexadecimal digits");
                    }
                    read.ok()
                }
            };
            if let Some(first) = hash.and_then(|hash| seen.insert(hash, at)) {
                let name = if key.hash.is_some() { "hash" } else { "key" };
                self.problem(entry(name), format_args!("is the same as that of {}", place("keys", first)));
            }
            if key.user.trim().is_empty() {
                self.problem(entry("user"), "must be a text that is not empty");
            }
            let departments = &config.departments;
            let is_open = departments.is_empty() || departments.contains_key(OTHERS);
            for (at, name) in key.departments.iter().enumerate() {
                let entry = place(&entry("departments"), at);
                if name == OTHERS {
                    self.problem(&entry, "\"*\" is not the name of a department");
                } else if !is_open && !departments.contains_key(name) {
                    let known = departments.keys().map(String::as_str);
                    match super::schema::closest(name, known) {
                        // A limit that a slip of the pen takes away.
                        Some(meant) => {
                            let what = "has no entry in [departments], nor has \"*\": nothing would limit it";
                            self.problem(&entry, format_args!("{what}; did you mean {meant:?}?"));
                        }
                        None => self.warning(
                            &entry,
                            "has no entry in [departments], nor has \"*\": it is not limited",
                        ),
                    }
                }
            }
            let mut context = RequestContext::new().with_user_id(key.user.as_str());
            if let Some(tenant) = &key.tenant {
                context = context.with_tenant_id(tenant.as_str());
            }
            if let Some(agent) = &key.agent {
                context = context.with_agent_name(agent.as_str());
            }
            context = context.with_departments(key.departments.iter().map(|name| Arc::from(name.as_str())));
            planned.extend(hash.map(|hash| PlannedKey {
                hash,
                context,
                is_admin: key.admin,
                is_trusted: key.trusted,
                max_in_flight: key.max_in_flight.unwrap_or(config.server.max_in_flight_per_key),
            }));
        }
        Some(planned)
    }

    fn timeouts(&mut self) {
        let times = &self.config.timeouts;
        for (name, time) in
            [("head", times.head), ("first_content", times.first_content), ("idle", times.idle)]
        {
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
    }
}

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
