//! A stack in words, for people.

use super::order::{Part, Place};
use crate::{
    config::{
        Config, Kind, Problem, RecordDurability, Secret, Time,
        plan::{Counters, Given, Plan},
    },
    policies::DepartmentPolicy,
    price::{ServiceTier, TokenClass},
    quota::{Mode, OnTight, Unbounded, Unpriced},
};
use std::fmt::{self, Write};

/// What a stack is made of, its layers in order with their settings, and what names of models come to. Shows no secret.
#[derive(Debug)]
pub struct Description {
    config: Config,
    plan: Plan,
    given: Given,
    order: Vec<Part>,
    places: Vec<Place>,
}

impl Description {
    pub(super) const fn new(
        config: Config,
        plan: Plan,
        given: Given,
        order: Vec<Part>,
        places: Vec<Place>,
    ) -> Self {
        Self { config, plan, given, order, places }
    }

    /// What is odd about the configuration, and may be meant.
    pub fn warnings(&self) -> &[Problem] {
        &self.plan.warnings
    }

    /// The layers, from the outside in.
    pub fn parts(&self) -> &[Part] {
        &self.order
    }

    /// What a name of a model comes to, a line for each step: aliases, provider, price, what is tried next, and who may use it; `None` if no provider
    /// serves it.
    pub fn explain(&self, model: &str) -> Option<String> {
        self.explain_to(model, None)
    }

    /// As [`explain`](Self::explain), for a tenant with aliases of its own.
    pub fn explain_to(&self, model: &str, tenant: Option<&str>) -> Option<String> {
        let table = self.plan.aliases.load();
        let mut text = table.explain_to(model, tenant);
        let ends = table.ends_for(&model.into(), tenant);
        let mut is_served = false;
        for end in &ends {
            let Some(provider) = self.plan.names.provider_for(end) else {
                let _ = write!(text, "\n{end}: no provider serves it");
                continue;
            };
            is_served = true;
            let bare = end.split_once('/').map_or(end.as_str(), |(_, bare)| bare);
            let _ = write!(text, "\n{end}: asked of {} as {bare}", self.provider(provider));
            let _ = write!(text, "\n  price: {}", self.price(end));
            for (cause, models) in self.chains(end) {
                let _ = write!(text, "\n  after a failure{cause}: {}", models.join(", "));
            }
            let allows = |policy: &DepartmentPolicy| policy.allows_at(&self.plan.names, end);
            let refused = self.plan.policies.departments().filter(|(_, policy)| !allows(policy));
            let mut refused: Vec<_> = refused.map(|(name, _)| &**name).collect();
            if !allows(self.plan.policies.otherwise()) {
                refused.push("all others");
            }
            refused.sort_unstable();
            if !refused.is_empty() {
                let _ = write!(text, "\n  not for: {}", refused.join(", "));
            }
        }
        is_served.then_some(text)
    }

    fn price(&self, model: &str) -> String {
        let Some(quote) = self.plan.prices.quote(model) else { return self.unpriced(model) };
        let rates = quote.price.rates(ServiceTier::Standard, 0);
        let named = [
            (TokenClass::Input, rates.input),
            (TokenClass::Output, rates.output),
            // The same as the whole is not worth a word.
            (TokenClass::CacheRead, rates.cache_read.filter(|rate| Some(*rate) != rates.input)),
            (TokenClass::CacheWrite, rates.cache_write.filter(|rate| Some(*rate) != rates.input)),
            (TokenClass::Reasoning, rates.reasoning.filter(|rate| Some(*rate) != rates.output)),
        ];
        let named: Vec<_> = named
            .into_iter()
            .filter_map(|(class, rate)| Some(format!("{} {}", class.name().replace('_', " "), rate?)))
            .collect();
        let mut text =
            format!("{} dollars per million tokens, from {}", named.join(", "), quote.origin.source);
        if quote.price.at_most(ServiceTier::Standard, 1, 1).is_err() {
            let _ = write!(text, "; of the rest {}", self.unpriced(model));
        }
        text
    }

    /// What becomes of a model without a price.
    fn unpriced(&self, model: &str) -> String {
        let mut text = "none".to_owned();
        if self.order.contains(&Part::Usage) {
            text += ", it is recorded as unpriced";
        }
        let limits = self.plan.limits.as_ref().filter(|_| self.order.contains(&Part::Quota));
        let Some(limits) = limits.filter(|limits| limits.mode != Mode::Shadow) else { return text };
        let allows = |policy: &DepartmentPolicy| policy.allows_at(&self.plan.names, model);
        let is_limited = |policy: &DepartmentPolicy| policy.limits.has_cost() && allows(policy);
        let policies = &self.plan.policies;
        let limited = policies.departments().filter(|(_, policy)| is_limited(policy));
        let mut limited: Vec<_> = limited.map(|(name, _)| &**name).collect();
        limited.sort_unstable();
        if is_limited(policies.otherwise()) {
            limited.push("all others");
        }
        if limited.is_empty() && limits.policies_file.is_none() {
            return text;
        }
        text += ", and where money is limited";
        if !limited.is_empty() {
            let _ = write!(text, " ({})", limited.join(", "));
        }
        text += match limits.unpriced {
            Unpriced::Reject => " it is refused",
            Unpriced::Free => " it is free",
            Unpriced::Assume(_) => " it is priced as assumed",
        };
        text
    }

    fn provider(&self, name: &str) -> String {
        let Some(provider) = self.plan.providers.iter().find(|provider| *provider.name == *name) else {
            return name.to_owned();
        };
        match provider.kind {
            _ if self.given.leaves.contains(name) => format!("{name}, the program's own"),
            Kind::Echo => format!("{name}, which echoes"),
            Kind::Own => format!("{name}, the program's own"),
            _ => {
                let urls: Vec<_> = provider.deployments.iter().map(|one| one.base_url.shown()).collect();
                format!("{name} at {}", urls.join(" or "))
            }
        }
    }

    fn chains(&self, model: &str) -> Vec<(String, Vec<String>)> {
        use crate::config::Fallback;
        let all = &self.config.fallbacks;
        let is_of = |(name, _): &(&String, _)| self.plan.names.canonical(&name.as_str().into()) == *model;
        match all.iter().find(is_of).map(|(_, fallback)| fallback) {
            None => Vec::new(),
            Some(Fallback::Models(models)) => vec![(String::new(), models.clone())],
            Some(Fallback::ByCause(all)) => {
                let named = all.named().into_iter();
                let named =
                    named.map(|(name, _, models)| (format!(" ({})", name.replace('_', " ")), models.clone()));
                let otherwise =
                    Some((String::new(), all.otherwise.clone())).filter(|(_, models)| !models.is_empty());
                otherwise.into_iter().chain(named).collect()
            }
        }
    }

    fn settings(&self, part: Part) -> String {
        let config = &self.config;
        match part {
            Part::Telemetry => "a span around the whole call".into(),
            Part::Concurrency => {
                let server = &config.server;
                let (most, waiting, wait) = (server.max_in_flight, server.max_waiting, server.max_wait);
                format!("{most} calls in flight, {waiting} more wait for up to {wait}")
            }
            Part::Alias => {
                let tenants = config.tenants.len();
                let own =
                    if tenants > 0 { format!(", and those of {tenants} tenants") } else { String::new() };
                format!("{} names{own}", config.aliases.len())
            }
            Part::Fallback => {
                let retry = &config.retry;
                let whole = Time(self.plan.whole_deadline);
                let whole = match whole == retry.deadline {
                    true => String::new(),
                    false => format!(", or {whole} for a whole answer"),
                };
                format!(
                    "{} chains, {} retries, at most {} attempts within {}{whole}",
                    config.fallbacks.len(),
                    retry.retries,
                    retry.max_attempts,
                    retry.deadline
                )
            }
            Part::Access => match &self.plan.limits {
                _ if self.given.policies.is_some() => "lists of the program's own".into(),
                Some(limits) if limits.policies_file.is_some() => "lists from the table of policies".into(),
                _ => {
                    let lists = config.departments.values().filter(|department| department.models.is_some());
                    format!("{} lists of models", lists.count())
                }
            },
            Part::Hits => "answers from the cache, at cost 0".into(),
            Part::Cache => self.cache(),
            Part::Quota => self.quota(),
            Part::Usage => self.usage(),
        }
    }

    fn cache(&self) -> String {
        let (Some(cache), Some(plan)) = (&self.config.cache, &self.plan.cache) else { return String::new() };
        let mut text = match self.given.cache_store {
            true => format!("in a store of the program's own, for {}", cache.ttl),
            false => format!("{} bytes in memory, for {}", cache.max_bytes, cache.ttl),
        };
        if let Some(redis) = cache.redis.as_ref().filter(|_| !self.given.cache_store) {
            let _ = write!(text, ", in redis ({})", source(redis));
            text += if cache.encrypt { ", encrypted" } else { "" };
        }
        text += if cache.tool_calls { ", with calls of tools" } else { "" };
        text += if cache.coalesce { ", equal calls share one" } else { "" };
        if let Some(most) = cache.max_temperature {
            let _ = write!(text, ", up to temperature {most}");
        }
        let kbs: Vec<_> = plan.allowed_kbs.iter().map(|kb| &**kb).collect();
        match &kbs[..] {
            _ if self.given.kb_settings => text += ", knowledge bases as the program says",
            [] => text += ", nothing that draws on a knowledge base",
            kbs => _ = write!(text, ", of knowledge bases {}", kbs.join(", ")),
        }
        if let Some(semantic) = &cache.semantic {
            let mode = format!("{:?}", semantic.mode).to_lowercase();
            let at = semantic.base_url.shown();
            let _ = write!(text, "; similar questions: {mode}, by {} at {at}", semantic.model);
        }
        text
    }

    fn quota(&self) -> String {
        let Some(limits) = &self.plan.limits else { return String::new() };
        let mut text = match &limits.policies_file {
            _ if self.given.policies.is_some() => "policies of the program's own".to_owned(),
            Some(path) => format!("policies in {}", path.display()),
            None => {
                let limited = self.config.departments.values().filter(|d| crate::config::plan::is_limited(d));
                format!("{} departments are limited", limited.count())
            }
        };
        text += &match &limits.counters {
            _ if self.given.quota_store => ", counted in a store of the program's own".to_owned(),
            Counters::Memory => ", counted in memory".to_owned(),
            Counters::File(path) => format!(", counted in {}", path.display()),
            Counters::Redis(_) => {
                let redis = self.config.quota.as_ref().and_then(|quota| quota.redis.as_ref());
                format!(", counted in redis ({})", redis.map(source).unwrap_or_default())
            }
        };
        if limits.mode == Mode::Shadow {
            text += ", nothing is refused";
        }
        match limits.unbounded {
            Unbounded::Inject(tokens) => {
                _ = write!(text, ", answers of up to {tokens} tokens unless asked otherwise")
            }
            Unbounded::Reject => text += ", answers must be bounded",
        }
        if let OnTight::ShrinkMaxTokens { min } = limits.on_tight {
            let _ = write!(text, ", shortened down to {min}");
        }
        text += match limits.unpriced {
            Unpriced::Reject => ", models without a price are refused where money is limited",
            Unpriced::Free => ", models without a price are free",
            Unpriced::Assume(_) => ", models without a price are priced as assumed",
        };
        if let Some(zone) = self.config.quota.as_ref().and_then(|quota| quota.time_zone.as_ref()) {
            let _ = write!(text, ", days of {zone}");
        }
        text
    }

    fn usage(&self) -> String {
        let usage = &self.config.usage;
        let survives = match usage.durability {
            RecordDurability::Memory => "the process",
            RecordDurability::Kill => "a kill",
            RecordDurability::PowerLoss => "a power failure",
        };
        let mut text = match &usage.redis {
            _ if self.given.usage_sink => "into a sink of the program's own".to_owned(),
            None => format!("in {}", usage.path.display()),
            Some(redis) => format!("in redis ({}), copied to {}", source(redis), usage.path.display()),
        };
        if !self.given.usage_sink {
            let _ = write!(text, ", records survive {survives}");
        }
        if let Some(limit) = usage.hold_last_byte {
            let _ = write!(text, ", the last byte waits for its record, up to {limit}");
        }
        text
    }
}

/// Where a secret comes from.
fn source(secret: &Secret) -> String {
    match secret {
        Secret::Text(_) => "address not shown".into(),
        Secret::Env(name) => format!("from ${name}"),
        Secret::File(path) => format!("from {}", path.display()),
    }
}

/// The layers, a line for each, then the providers.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layers, from the outside in:")?;
        for index in 0..=self.order.len() {
            for place in Place::ALL.into_iter().filter(|place| place.before(&self.order) == index) {
                for _ in self.places.iter().filter(|at| **at == place) {
                    writeln!(f, "  (yours)        around {}", place.what())?;
                }
            }
            if let Some(part) = self.order.get(index) {
                writeln!(f, "  {:<14} {}", part.name(), self.settings(*part))?;
            }
        }
        writeln!(f, "  {:<14} {}", "providers", self.plan.providers.len())?;
        for provider in &self.plan.providers {
            write!(f, "    {}", self.provider(&provider.name))?;
            let is_given = self.given.leaves.contains(&provider.name);
            let deployments = if is_given { &[][..] } else { &provider.deployments };
            if deployments.iter().any(|one| one.api_key.is_some()) {
                f.write_str(", with a key")?;
            }
            if deployments.iter().any(|one| !one.headers.is_empty()) {
                f.write_str(", with headers")?;
            }
            if deployments.iter().any(|one| one.proxy.is_some()) {
                f.write_str(", through a proxy")?;
            }
            let own = self.config.providers.get(&*provider.name).and_then(|settings| settings.timeouts);
            let (all, own) = (self.config.timeouts, own.unwrap_or_default());
            writeln!(
                f,
                "; head within {}, content within {}, silence up to {}, a whole answer within {}, {} in all",
                own.head.unwrap_or(all.head),
                own.first_content.unwrap_or(all.first_content),
                own.idle.unwrap_or(all.idle),
                self.config.whole(own),
                own.total.unwrap_or(all.total)
            )?;
        }
        match &self.config.keys {
            Some(keys) => {
                let (admins, trusted) = (
                    keys.iter().filter(|key| key.admin).count(),
                    keys.iter().filter(|key| key.trusted).count(),
                );
                writeln!(
                    f,
                    "keys: {}, of which {admins} may administer and {trusted} may speak for others",
                    keys.len()
                )?;
            }
            None => match self.config.identity {
                crate::config::Identity::Host => writeln!(f, "keys: none, the program says who asks")?,
                crate::config::Identity::Keys => writeln!(f, "keys: none, everybody may ask everything")?,
            },
        }
        let aliases = self.plan.aliases.load().to_string();
        if !aliases.is_empty() {
            writeln!(f, "aliases:")?;
            for line in aliases.lines() {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}
