//! Where usage, quotas and cached answers are kept, and by which rules.

use super::{Check, Given, OTHERS, Revealed, field, place};
use crate::{
    alias::{Aliases, Glob},
    cache::Coalescing,
    config::{
        Department, Quota, QuotaMode, QuotaStoreKind, RecordDurability, Secret, UnpricedModels,
        schema::did_you_mean,
    },
    policies::{DepartmentPolicy, PolicyTable},
    price::{Price, Rates},
    providers::ProviderNames,
    quota::{Calendar, Limits, Mode, OnTight, Unbounded, Unpriced},
    usage::Durability,
};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

/// Where usage is recorded.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "rusqlite"), expect(dead_code, reason = "nothing is recorded without it"))]
pub(crate) struct UsagePlan {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
    pub(crate) shared: Option<SharedUsage>,
}

/// Where several record usage together.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(all(feature = "redis", feature = "rusqlite")),
    expect(dead_code, reason = "nothing is recorded together without both")
)]
pub(crate) struct SharedUsage {
    pub(crate) redis: RedisPlan,
    pub(crate) keep: Duration,
    pub(crate) outbox: PathBuf,
    pub(crate) outbox_max_bytes: u64,
}

/// A server of Redis, or a cluster.
#[derive(Debug, Clone)]
pub(crate) struct RedisPlan {
    /// What is compared when a configuration is read again.
    pub(crate) address: Revealed,
    #[cfg(feature = "redis")]
    pub(crate) redis: crate::store::Redis,
}

/// How limits are kept.
#[derive(Debug, Clone)]
pub(crate) struct LimitsPlan {
    pub(crate) policies_file: Option<PathBuf>,
    pub(crate) counters: Counters,
    pub(crate) mode: Mode,
    pub(crate) unbounded: Unbounded,
    pub(crate) on_tight: OnTight,
    pub(crate) unpriced: Unpriced,
    pub(crate) calendar: Calendar,
    pub(crate) timeout: Duration,
}

/// Where it is counted.
#[derive(Debug, Clone)]
pub(crate) enum Counters {
    Memory,
    File(PathBuf),
    Redis(RedisPlan),
}

/// What is cached.
#[derive(Debug, Clone)]
pub(crate) struct CachePlan {
    /// Each miss is one, be it shared or not.
    pub(crate) max_flights: usize,
    pub(crate) shared: Option<RedisPlan>,
    pub(crate) secret: Option<Revealed>,
    pub(crate) allowed_kbs: BTreeSet<Arc<str>>,
    #[cfg(all(feature = "semantic", feature = "hyper-client"))]
    pub(crate) semantic: Option<SemanticPlan>,
}

/// Where vectors come from.
#[cfg(all(feature = "semantic", feature = "hyper-client"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SemanticPlan {
    pub(crate) api_key: Option<Revealed>,
    pub(crate) headers: Vec<(Box<str>, Revealed)>,
}

impl Check<'_> {
    pub(super) fn usage(&mut self) -> Option<UsagePlan> {
        let usage = &self.config.usage;
        if !usage.enabled {
            return None;
        }
        let entry = |name| field("usage", name);
        let is_replaced = self.may_be_given(|given| given.usage_sink);
        if !cfg!(feature = "rusqlite") && !is_replaced {
            let what = "the record of usage in SQLite";
            self.needs("usage", what, "rusqlite");
        }
        self.file(entry("path"), Some(&usage.path));
        self.file(entry("outbox"), usage.redis.as_ref().map(|_| &usage.outbox));
        let shared =
            self.redis("usage", usage.redis.as_ref(), usage.redis_cluster, is_replaced).map(|redis| {
                SharedUsage {
                    redis,
                    keep: usage.redis_keep.0,
                    outbox: usage.outbox.clone(),
                    outbox_max_bytes: usage.outbox_max_bytes,
                }
            });
        if usage.redis.is_none() {
            let default = crate::config::Usage::default();
            for (name, differs) in [
                ("redis_cluster", usage.redis_cluster),
                ("redis_keep", usage.redis_keep != default.redis_keep),
                ("outbox", usage.outbox != default.outbox),
                ("outbox_max_bytes", usage.outbox_max_bytes != default.outbox_max_bytes),
            ] {
                if self.is_told(&entry(name), differs) {
                    self.problem(entry(name), "is for usage that is recorded in redis");
                }
            }
        }
        Some(UsagePlan {
            path: usage.path.clone(),
            durability: match usage.durability {
                RecordDurability::Memory => Durability::Memory,
                RecordDurability::Kill => Durability::Kill,
                RecordDurability::PowerLoss => Durability::PowerLoss,
            },
            shared,
        })
    }

    /// One whose name is made of spaces nobody finds again.
    fn file(&mut self, entry: String, path: Option<&PathBuf>) {
        if path.is_some_and(|path| path.to_str().is_some_and(|path| path.trim().is_empty())) {
            self.problem(entry, "must be a text that is not empty");
        }
    }

    #[cfg_attr(not(feature = "redis"), expect(unused_variables, reason = "there is nothing to make"))]
    fn redis(
        &mut self,
        path: &str,
        address: Option<&Secret>,
        is_cluster: bool,
        is_replaced: bool,
    ) -> Option<RedisPlan> {
        let entry = field(path, "redis");
        let address = self.secret(&entry, Some(address?))?;
        if !cfg!(feature = "redis") && !is_replaced {
            self.needs(&entry, "Redis", "redis");
        }
        #[cfg(feature = "redis")]
        {
            use crate::store::{Redis, RedisOptions};
            let urls: Vec<_> = address.reveal().split(',').collect();
            let redis = match urls.as_slice() {
                [url] if !is_cluster => Redis::new(url, RedisOptions::default()),
                urls => Redis::cluster(urls, RedisOptions::default()),
            };
            match redis {
                Ok(redis) => Some(RedisPlan { address, redis }),
                Err(error) => {
                    self.problem(entry, error);
                    None
                }
            }
        }
        #[cfg(not(feature = "redis"))]
        {
            drop(address);
            None
        }
    }

    pub(super) fn policies(&mut self, names: &ProviderNames, aliases: Option<&Aliases>) -> PolicyTable {
        if let Some(policies) = self.given.and_then(|given| given.policies.as_ref()) {
            for (is_told, entry) in [
                (!self.config.departments.is_empty(), "departments"),
                (self.config.quota.as_ref().is_some_and(|quota| quota.policies.is_some()), "quota.policies"),
            ] {
                if is_told {
                    self.problem(entry, "the program gives the policies of all departments");
                }
            }
            return PolicyTable::clone(&policies.load());
        }
        let mut table = PolicyTable::default();
        if let Some(others) = self.config.departments.get(OTHERS) {
            table = PolicyTable::new(self.policy(OTHERS, others, names, aliases));
        }
        for (name, department) in self.config.departments.iter().filter(|(name, _)| *name != OTHERS) {
            if name.trim().is_empty() {
                self.problem(field("departments", name), "the name must not be empty");
            }
            let policy = self.policy(name, department, names, aliases);
            table = table.with(name.as_str(), policy);
        }
        table
    }

    fn policy(
        &mut self,
        name: &str,
        department: &Department,
        names: &ProviderNames,
        aliases: Option<&Aliases>,
    ) -> DepartmentPolicy {
        let mut limits = Limits::new();
        limits.day_requests = department.day_requests;
        limits.month_requests = department.month_requests;
        limits.day_tokens = department.day_tokens;
        limits.month_tokens = department.month_tokens;
        limits.day_cost = department.day_cost.map(|dollars| dollars.0);
        limits.month_cost = department.month_cost.map(|dollars| dollars.0);
        let policy = DepartmentPolicy::new(limits);
        let Some(models) = &department.models else { return policy };
        let path = field(&field("departments", name), "models");
        for (at, model) in models.iter().enumerate() {
            if let Err(what) = self.listed(model, names, aliases) {
                self.problem(place(&path, at), what);
            }
        }
        policy.with_models(models)
    }

    /// Whether an entry of a list can be of a model that is asked for.
    fn listed(&self, model: &str, names: &ProviderNames, aliases: Option<&Aliases>) -> Result<(), String> {
        let (provider, bare) = match model.split_once('/') {
            Some((provider, _)) => (provider, false),
            None => (model, true),
        };
        if model.trim().is_empty() {
            return Err("must be a text that is not empty".into());
        }
        if model.contains('*') {
            // A pattern without a slash stands for names with one too.
            let (literal, _) = provider.split_once('*').unwrap_or((provider, ""));
            let is_of = |name: &str| match bare {
                true => name.starts_with(literal),
                false => Glob::new(provider).map_or(name == provider, |glob| glob.matches(name)),
            };
            return match (names.iter().any(is_of), bare, names.only()) {
                (true, ..) => Ok(()),
                (false, true, only) => {
                    let meant = only.map(|only| format!("{only}/{model}"));
                    let what = "no model can match it, for names begin with their provider";
                    Err(format!("{what}{}", did_you_mean(meant.as_deref())))
                }
                (false, false, _) => Err("no provider serves it".into()),
            };
        }
        if self.config.aliases.contains_key(model) {
            let ends = aliases.map(|aliases| aliases.load().ends(&model.into())).unwrap_or_default();
            // The model itself may be one of those that its name stands for.
            if !bare && ends.iter().any(|end| *end == *model) {
                return Ok(());
            }
            let ends: Vec<_> = ends.iter().map(|end| format!("{:?}", end.as_str())).collect();
            let what = "is an alias; lists are of what aliases stand for";
            return Err(format!("{what}: {}", ends.join(", ")));
        }
        match names.provider_for(model) {
            Some(_) => Ok(()),
            None => Err("no provider serves it".into()),
        }
    }

    pub(super) fn limits(&mut self, policies: &PolicyTable) -> Option<LimitsPlan> {
        // Those of a program may be stricter later.
        let is_given = self.given.is_some_and(|given| given.policies.is_some());
        let is_limited = is_given || policies.has_limits() || policies.has_allow_lists();
        let default = Quota::default();
        let quota = self.config.quota.as_ref().unwrap_or(&default);
        let entry = |name| field("quota", name);
        let is_asked_for = *quota != default;
        if quota.policies.is_some() && !self.config.departments.is_empty() {
            self.problem(
                entry("policies"),
                "holds the departments; they must not stand in [departments] as well",
            );
        }
        if quota.policies.is_some() && !cfg!(feature = "rusqlite") {
            self.needs(entry("policies"), "SQLite", "rusqlite");
        }
        self.file(entry("path"), quota.path.as_ref());
        self.file(entry("policies"), quota.policies.as_ref());
        let counters = self.counters(quota, is_asked_for || is_limited);
        let unpriced = self.unpriced(quota);
        let calendar = self.calendar(quota);
        if let (Some(least), Some(most)) = (quota.shrink_to, quota.max_output_tokens)
            && least > most
        {
            self.problem(entry("shrink_to"), "is more than max_output_tokens");
        }
        if quota.mode == QuotaMode::Shadow && quota.shrink_to.is_some() {
            self.problem(entry("shrink_to"), "changes requests, which mode = \"shadow\" does not");
        }
        let plan = LimitsPlan {
            policies_file: quota.policies.clone(),
            counters,
            mode: match quota.mode {
                QuotaMode::Enforce => Mode::Enforce,
                QuotaMode::Shadow => Mode::Shadow,
            },
            unbounded: quota.max_output_tokens.map_or_else(Unbounded::default, Unbounded::Inject),
            on_tight: quota.shrink_to.map_or_else(OnTight::default, |min| OnTight::ShrinkMaxTokens { min }),
            unpriced,
            calendar,
            timeout: quota.timeout.map_or(Duration::from_millis(250), |time| time.0),
        };
        let is_costly = self.config.departments.values().any(|d| d.day_cost.or(d.month_cost).is_some());
        let has_prices = self.given.is_some_and(|given| given.prices.is_some()) || !self.priced().is_empty();
        if is_costly && !has_prices && quota.unpriced == UnpricedModels::Reject {
            self.warning(
                "departments",
                "money is limited, and no model has a price: calls of those are refused",
            );
        }
        (is_asked_for || is_limited).then_some(plan)
    }

    fn counters(&mut self, quota: &Quota, is_used: bool) -> Counters {
        let entry = |name| field("quota", name);
        let is_replaced = self.may_be_given(|given| given.quota_store);
        let shared = self.redis("quota", quota.redis.as_ref(), quota.redis_cluster, is_replaced);
        let otherwise = if quota.redis.is_some() { QuotaStoreKind::Redis } else { QuotaStoreKind::Sqlite };
        let store = quota.store.unwrap_or(otherwise);
        if quota.path.is_some() && store != QuotaStoreKind::Sqlite {
            self.problem(entry("path"), "is for counters in sqlite");
        }
        if quota.redis.is_some() && store != QuotaStoreKind::Redis {
            self.problem(entry("redis"), "is for counters in redis");
        }
        if quota.redis.is_none() && self.is_told(&entry("redis_cluster"), quota.redis_cluster) {
            self.problem(entry("redis_cluster"), "is for counters in redis");
        }
        if is_used {
            self.past(store);
        }
        match (store, shared) {
            (QuotaStoreKind::Redis, Some(redis)) => Counters::Redis(redis),
            (QuotaStoreKind::Redis, None) => {
                if quota.redis.is_none() {
                    self.problem(entry("redis"), "is missing");
                }
                Counters::Memory
            }
            (QuotaStoreKind::Memory, _) => Counters::Memory,
            (QuotaStoreKind::Sqlite, _) => {
                let path = quota.path.clone().unwrap_or_else(|| "quota.db".into());
                if is_used && !cfg!(feature = "rusqlite") && !is_replaced {
                    self.needs("quota", "counting in SQLite", "rusqlite");
                }
                if is_used && self.config.usage.enabled && path == self.config.usage.path {
                    self.problem(entry("path"), "is the file of [usage]; each needs its own");
                }
                Counters::File(path)
            }
        }
    }

    /// Where nobody can tell a store of counters what it has lost.
    fn past(&mut self, store: QuotaStoreKind) {
        const OWN_SINK: &str = "records go into a sink of the program's own, and it gives no history";
        let is_given = |is_it: fn(&Given) -> bool| self.given.is_some_and(is_it);
        let (sink, history) = (is_given(|given| given.usage_sink), is_given(|given| given.usage_history));
        let is_in_memory = store == QuotaStoreKind::Memory && !is_given(|given| given.quota_store);
        match (is_in_memory, sink, history) {
            (_, _, true) => {}
            (true, true, _) => {
                let what = format_args!("{OWN_SINK}: what was used is forgotten at each start");
                self.warning("quota.store", what);
            }
            (true, false, _) if !self.config.usage.enabled => {
                self.warning("quota.store", "without [usage], what was used is forgotten at each start");
            }
            (false, true, _) => {
                let what = format_args!("{OWN_SINK}: counters that are lost begin at nothing");
                self.warning("quota", what);
            }
            _ => {}
        }
    }

    fn unpriced(&mut self, quota: &Quota) -> Unpriced {
        let entry = |name| field("quota", name);
        let costs = (quota.assume_input_cost, quota.assume_output_cost);
        match (quota.unpriced, costs) {
            (UnpricedModels::Assume, (Some(input), Some(output))) => {
                Unpriced::Assume(Price::new(Rates::new().with_input(input.0).with_output(output.0)))
            }
            (UnpricedModels::Assume, _) => {
                self.problem(
                    entry("unpriced"),
                    "needs assume_input_cost and assume_output_cost, in dollars per million tokens",
                );
                Unpriced::Reject
            }
            (chosen, costs) => {
                for (name, cost) in [("assume_input_cost", costs.0), ("assume_output_cost", costs.1)] {
                    if cost.is_some() {
                        self.problem(entry(name), "is for unpriced = \"assume\"");
                    }
                }
                if chosen == UnpricedModels::Free { Unpriced::Free } else { Unpriced::Reject }
            }
        }
    }

    fn calendar(&mut self, quota: &Quota) -> Calendar {
        let Some(_zone) = &quota.time_zone else { return Calendar::utc() };
        #[cfg(feature = "time-zones")]
        match Calendar::in_zone(_zone) {
            Ok(calendar) => return calendar,
            Err(_) => self.problem("quota.time_zone", "there is no time zone of this name"),
        }
        #[cfg(not(feature = "time-zones"))]
        self.needs("quota.time_zone", "the calendar of a time zone", "time-zones");
        Calendar::utc()
    }

    pub(super) fn cache(&mut self) -> Option<CachePlan> {
        let cache = self.config.cache.as_ref().filter(|cache| cache.enabled)?;
        let entry = |name| field("cache", name);
        let is_replaced = self.may_be_given(|given| given.cache_store);
        if !cfg!(feature = "moka") && !is_replaced {
            self.needs("cache", "the cache in memory", "moka");
        }
        let shared = self.redis("cache", cache.redis.as_ref(), cache.redis_cluster, is_replaced);
        let secret = self.secret(&entry("secret"), cache.secret.as_ref());
        let is_shared = cache.redis.is_some() || self.given.is_some_and(|given| given.is_cache_shared);
        if is_shared && cache.secret.is_none() {
            self.problem(entry("secret"), "is missing; all gateways that share a cache need the same");
        }
        // Any text will do; what it lacks in length nobody can add.
        if secret.as_ref().is_some_and(|secret| secret.reveal().len() < 32) {
            self.problem(entry("secret"), "must have at least 32 characters");
        }
        if cache.redis.is_none() {
            for (name, differs) in [("encrypt", cache.encrypt), ("redis_cluster", cache.redis_cluster)] {
                if differs {
                    self.problem(entry(name), "is for a cache that is shared in redis");
                }
            }
        }
        if cache.encrypt && !cfg!(feature = "encrypt") && !is_replaced {
            self.needs(entry("encrypt"), "encryption", "encrypt");
        }
        if !cache.coalesce && cache.max_flights.is_some() {
            self.problem(entry("max_flights"), "is for coalesce = true");
        }
        let most = self.config.server.max_in_flight;
        let max_flights = cache.max_flights.unwrap_or(most.max(Coalescing::new().max_flights));
        if max_flights < most {
            let what =
                "is less than server.max_in_flight: calls beyond are refused, though nobody asks the same";
            self.warning(entry("max_flights"), what);
        }
        if u64::try_from(cache.max_entry_bytes).is_ok_and(|entry| entry > cache.max_bytes) {
            self.problem(entry("max_entry_bytes"), "is more than max_bytes");
        }
        let is_stated = self.config.identity == crate::config::Identity::Host
            || self.config.keys.iter().flatten().any(|key| key.trusted);
        if !cache.knowledge_bases.is_empty() && !is_stated {
            self.warning(
                entry("knowledge_bases"),
                "no key is trusted, so nobody can say that a prompt draws on one",
            );
        }
        let allowed = cache.knowledge_bases.iter().filter(|(_, settings)| settings.cache);
        let allowed_kbs = allowed.map(|(name, _)| Arc::from(name.as_str())).collect();
        self.semantic_cache();
        #[cfg(all(feature = "semantic", feature = "hyper-client"))]
        let revealed = |secret: &Secret| secret.reveal(self.env).ok();
        Some(CachePlan {
            max_flights,
            shared,
            secret,
            allowed_kbs,
            #[cfg(all(feature = "semantic", feature = "hyper-client"))]
            semantic: cache.semantic.as_ref().map(|semantic| SemanticPlan {
                api_key: semantic.api_key.as_ref().and_then(revealed),
                headers: semantic
                    .headers
                    .iter()
                    .filter_map(|(name, value)| Some((name.as_str().into(), revealed(value)?)))
                    .collect(),
            }),
        })
    }

    fn semantic_cache(&mut self) {
        let Some(semantic) = self.config.cache.as_ref().and_then(|cache| cache.semantic.as_ref()) else {
            return;
        };
        let path = "cache.semantic";
        if !cfg!(feature = "semantic") {
            self.needs(path, "looking for similar questions", "semantic");
        }
        if !cfg!(feature = "hyper-client") {
            self.needs(path, "the client for a server of embeddings", "hyper-client");
        }
        self.secret(&field(path, "api_key"), semantic.api_key.as_ref());
        self.headers(&field(path, "headers"), &semantic.headers);
        #[cfg(feature = "openai")]
        if let Err(error) = crate::provider::openai::OpenAiCompatible::new((), &semantic.base_url.0) {
            self.problem(field(path, "base_url"), error);
        }
    }
}
