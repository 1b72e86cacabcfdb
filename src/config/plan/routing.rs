//! Which models there are, what they are called, and what they cost.

use super::{BUDGET_TTL, Check, Revealed, field, place};
use crate::{
    ModelName,
    alias::{AliasProblem, AliasTable, AliasTableBuilder, Aliases},
    config::{
        Action, Alias, BaseUrl, Deployment, Fallback, Kind, Model, ModelPrice, OutputMember, Provider,
        RetryBudget, Secret,
        schema::{closest, did_you_mean},
    },
    fallback::{self, Backoff, ChainProblem, Chains},
    price::{Price, PriceBook, PriceErrorKind, Rate, Rates},
    providers::ProviderNames,
    timeout::CallTimeoutLayer,
};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};
use tower::retry::budget::TpsBudget;

/// A provider, ready to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedProvider {
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) deployments: Vec<PlannedDeployment>,
    pub(crate) timeouts: CallTimeoutLayer,
    /// What is listed.
    pub(crate) models: Vec<Box<str>>,
    /// Models that answer with at most so many tokens.
    pub(crate) max_outputs: Vec<(Box<str>, u64)>,
}

/// One server of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedDeployment {
    pub(crate) base_url: BaseUrl,
    pub(crate) api_key: Option<Revealed>,
    pub(crate) headers: Vec<(Box<str>, Revealed)>,
    pub(crate) trace_headers: bool,
    pub(crate) output_member: Option<OutputMember>,
    pub(crate) stream_usage: Option<bool>,
    pub(crate) returned_thoughts: Option<bool>,
    pub(crate) proxy: Option<Revealed>,
}

/// Whether `providers.NAME.headers` may have a header of this name, in any case. Those of the connection, and those that the client
/// writes itself, are not for a file to change.
///
/// ```
/// use llm_layers::config::may_be_told;
///
/// assert!(may_be_told("X-Team"));
/// assert!(!may_be_told("Content-Length"));
/// ```
pub fn may_be_told(header: &str) -> bool {
    const OURS: [&str; 14] = [
        "accept",
        "accept-encoding",
        "host",
        "content-encoding",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "expect",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "x-request-id",
    ];
    http::HeaderName::try_from(header).is_ok() && !OURS.contains(&header.to_ascii_lowercase().as_str())
}

impl Check<'_> {
    pub(super) fn providers(&mut self) -> (Vec<PlannedProvider>, ProviderNames) {
        let config = self.config;
        if config.providers.is_empty() {
            self.problem("providers", "there must be one");
        }
        let mut planned = Vec::new();
        for (name, provider) in &config.providers {
            let path = field("providers", name);
            if name.trim().is_empty() || name.contains('/') {
                self.problem(&path, "the name must not be empty or have a slash in it");
            }
            let is_replaced = self.may_be_given(|given| given.leaves.contains(name.as_str()));
            let deployments = self.deployments(&path, provider, is_replaced);
            let mut models = Vec::<Box<str>>::new();
            let mut max_outputs = Vec::new();
            for (at, model) in provider.models.iter().enumerate() {
                let listed = match model {
                    Model::Name(name) => name,
                    Model::Details(model) => {
                        max_outputs.extend(
                            model
                                .max_output_tokens
                                .map(|tokens| (format!("{name}/{}", model.name).into(), tokens)),
                        );
                        &model.name
                    }
                };
                let entry = place(&field(&path, "models"), at);
                if listed.trim().is_empty() {
                    self.problem(entry, "must be a text that is not empty");
                } else if models.iter().any(|other| **other == **listed) {
                    self.problem(entry, "is listed twice");
                } else {
                    self.named_at(entry, name, listed);
                    models.push(listed.as_str().into());
                }
            }
            planned.push(PlannedProvider {
                name: name.as_str().into(),
                kind: provider.kind,
                deployments,
                timeouts: self.timeouts_of(provider),
                models,
                max_outputs,
            });
        }
        // A provider that is there, but wrong, is one problem, not one for each entry that names it.
        let names = ProviderNames::new(config.providers.keys().map(String::as_str));
        (planned, names)
    }

    /// A name that is the whole one where the provider's own is meant.
    fn named_at(&mut self, entry: String, provider: &str, model: &str) {
        if model.strip_prefix(provider).is_some_and(|rest| rest.starts_with('/')) {
            let what = "here a model has the name that it has at its provider";
            self.warning(entry, format_args!("means {:?}; {what}", format!("{provider}/{model}")));
        }
    }

    fn timeouts_of(&self, provider: &Provider) -> CallTimeoutLayer {
        let (all, own) = (self.config.timeouts, provider.timeouts.unwrap_or_default());
        CallTimeoutLayer::new()
            .with_head(own.head.unwrap_or(all.head).0)
            .with_first_content(own.first_content.unwrap_or(all.first_content).0)
            .with_whole(self.config.whole(own).0)
            .with_idle(own.idle.unwrap_or(all.idle).0)
            .with_total(own.total.unwrap_or(all.total).0)
    }

    fn deployments(&mut self, path: &str, provider: &Provider, is_replaced: bool) -> Vec<PlannedDeployment> {
        let Provider { base_url, api_key, headers, trace_headers, deployments, .. } = provider;
        let own = [
            ("base_url", base_url.is_some()),
            ("api_key", api_key.is_some()),
            ("headers", !headers.is_empty()),
            ("trace_headers", *trace_headers),
        ];
        let told: Vec<_> =
            own.into_iter().filter(|(name, differs)| self.is_told(&field(path, name), *differs)).collect();
        match provider.kind {
            Kind::Echo | Kind::Own => {
                let is_several = deployments.is_some().then_some(("deployments", true));
                let has_proxy = provider.proxy.is_some().then_some(("proxy", true));
                for (name, _) in told.into_iter().chain(is_several).chain(has_proxy) {
                    self.problem(field(path, name), "is for a provider that is a server");
                }
                self.nothing_of_openais(path, provider);
                return Vec::new();
            }
            Kind::Openai if !cfg!(feature = "hyper-client") && !is_replaced => {
                self.needs(path, "the client for OpenAI-compatible servers", "hyper-client");
            }
            Kind::Openai => {}
            _ if self.nothing_of_openais(path, provider) => {}
            _ if !cfg!(feature = "genai") => {
                if !is_replaced {
                    self.needs(field(path, "kind"), "this dialect", "genai");
                }
                return Vec::new();
            }
            _ => {}
        }
        let kind = provider.kind;
        let proxy = self.proxy(&field(path, "proxy"), provider.proxy.as_ref());
        let mut planned = match deployments {
            None => match base_url.clone().or_else(|| default_base_url(kind).map(BaseUrl::from)) {
                Some(base_url) => {
                    let only = Deployment {
                        base_url,
                        api_key: api_key.clone(),
                        headers: headers.clone(),
                        trace_headers: *trace_headers,
                    };
                    vec![self.deployment(path, provider, &only)]
                }
                None => {
                    self.problem(field(path, "base_url"), "is missing");
                    Vec::new()
                }
            },
            Some(all) => {
                for (name, _) in told {
                    self.problem(field(path, name), "belongs into each of the deployments");
                }
                if all.is_empty() {
                    self.problem(field(path, "deployments"), "there must be one");
                }
                let path = field(path, "deployments");
                let each =
                    all.iter().enumerate().map(|(at, one)| self.deployment(&place(&path, at), provider, one));
                each.collect()
            }
        };
        for one in &mut planned {
            one.proxy.clone_from(&proxy);
        }
        planned
    }

    fn proxy(&mut self, entry: &str, proxy: Option<&Secret>) -> Option<Revealed> {
        let proxy = self.secret(entry, proxy)?;
        #[cfg(any(feature = "genai", feature = "hyper-client"))]
        if let Err(error) = crate::provider::Proxy::new(proxy.reveal()) {
            self.problem(entry, error);
        }
        Some(proxy)
    }

    /// Whether something is told that only the dialect of OpenAI has.
    fn nothing_of_openais(&mut self, path: &str, provider: &Provider) -> bool {
        let own = [
            ("output_member", provider.output_member.is_some()),
            ("stream_usage", provider.stream_usage.is_some()),
            ("returned_thoughts", provider.returned_thoughts.is_some()),
        ];
        let told: Vec<_> = own.into_iter().filter(|(_, is_told)| *is_told).collect();
        for (name, _) in &told {
            self.problem(field(path, name), "is for kind = \"openai\"");
        }
        !told.is_empty()
    }

    fn deployment(&mut self, path: &str, provider: &Provider, one: &Deployment) -> PlannedDeployment {
        let kind = provider.kind;
        let api_key = self.secret(&field(path, "api_key"), one.api_key.as_ref());
        let headers = self.headers(&field(path, "headers"), &one.headers);
        if one.trace_headers && kind != Kind::Openai {
            self.problem(field(path, "trace_headers"), "is for kind = \"openai\"");
        } else if one.trace_headers && !cfg!(feature = "otel") {
            self.needs(field(path, "trace_headers"), "OpenTelemetry", "otel");
        }
        if let Err(what) = check_address(kind, &one.base_url.0) {
            self.problem(field(path, "base_url"), what);
        }
        let output_member = provider.output_member.or_else(|| own_output_member(kind, &one.base_url.0));
        let base_url = one.base_url.clone();
        PlannedDeployment {
            base_url,
            api_key,
            headers,
            trace_headers: one.trace_headers,
            output_member,
            stream_usage: provider.stream_usage,
            returned_thoughts: provider.returned_thoughts,
            proxy: None,
        }
    }

    pub(super) fn headers(
        &mut self,
        path: &str,
        headers: &BTreeMap<String, Secret>,
    ) -> Vec<(Box<str>, Revealed)> {
        let mut all = Vec::<(Box<str>, _)>::new();
        for (name, value) in headers {
            let entry = field(path, name);
            if let Some((other, _)) = all.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)) {
                self.problem(&entry, format_args!("is the same header as {other}"));
            }
            if http::HeaderName::try_from(name.as_str()).is_err() {
                self.problem(&entry, "is not the name of a header");
            } else if !may_be_told(name) {
                self.problem(&entry, "is a header that the client writes itself");
            }
            all.extend(self.secret(&entry, Some(value)).map(|value| (name.as_str().into(), value)));
        }
        all
    }

    /// The table, without what is wrong with it, and the names that are.
    pub(super) fn aliases(&mut self, names: &ProviderNames) -> (Option<Aliases>, HashSet<String>) {
        let mut bad = HashSet::new();
        for is_first in [true, false, false, false, false, false, false, false] {
            let mut table = self.add_aliases(
                AliasTable::builder().providers(names.clone()),
                "aliases",
                &self.config.aliases,
                &bad,
            );
            for (tenant, own) in &self.config.tenants {
                let path = field(&field("tenants", tenant), "aliases");
                table = self.add_aliases(table.for_tenant(tenant.as_str()), &path, &own.aliases, &bad);
            }
            let error = match table.build() {
                Ok(table) => return (Some(table.into()), bad),
                Err(error) => error,
            };
            for problem in error.problems() {
                let name = match problem {
                    AliasProblem::Cycle { path } => {
                        path.first().map(|name| name.as_str()).unwrap_or_default()
                    }
                    AliasProblem::Shadowed { name } | AliasProblem::Empty { name } => name,
                    AliasProblem::Dangling { name, .. } | AliasProblem::TooLong { name } => name.as_str(),
                };
                if is_first {
                    self.alias_problem(name, problem, names);
                }
                for entry in self.alias_entries(name) {
                    bad.insert(entry);
                }
            }
        }
        (None, bad)
    }

    fn add_aliases(
        &self,
        mut table: AliasTableBuilder,
        path: &str,
        aliases: &BTreeMap<String, Alias>,
        bad: &HashSet<String>,
    ) -> AliasTableBuilder {
        for (name, alias) in aliases.iter().filter(|(name, _)| !bad.contains(&field(path, name))) {
            let shares = |all: &[crate::config::Share]| -> Vec<(String, u32)> {
                all.iter().map(|share| (share.model.clone(), share.weight)).collect()
            };
            table = match alias {
                Alias::Model(model) => table.alias(name.as_str(), model.as_str()),
                Alias::Split(all) => table.split(name.as_str(), shares(all)),
                Alias::Sticky(all) => table.sticky_split(name.as_str(), shares(&all.sticky)),
            };
        }
        table
    }

    /// All entries of an alias, everybody's and those of tenants.
    fn alias_entries(&self, name: &str) -> Vec<String> {
        let tenants = self.config.tenants.iter().filter(|(_, own)| own.aliases.contains_key(name));
        let mut entries: Vec<_> =
            tenants.map(|(tenant, _)| field(&field(&field("tenants", tenant), "aliases"), name)).collect();
        if self.config.aliases.contains_key(name) || entries.is_empty() {
            entries.insert(0, field("aliases", name));
        }
        entries
    }

    fn alias_problem(&mut self, name: &str, problem: &AliasProblem, names: &ProviderNames) {
        let what = match problem {
            AliasProblem::Cycle { path } => {
                let path: Vec<_> = path.iter().map(|name| name.as_str()).collect();
                format!("leads in a circle: {}", path.join(" -> "))
            }
            AliasProblem::Shadowed { .. } => "is defined twice".into(),
            AliasProblem::Dangling { target, .. } if target.as_str().contains('*') => return,
            AliasProblem::Dangling { target, .. } => {
                let meant = self.meant(target, names);
                format!("leads to {}, which no provider serves{meant}", shown(target))
            }
            AliasProblem::TooLong { .. } => "leads through too many others".into(),
            AliasProblem::Empty { .. } => "the name or the target is empty, or all weights are 0".into(),
        };
        let own = |check: &Self, entry: &String| match problem {
            AliasProblem::Dangling { target, .. } => check.leads_to(entry, name, target),
            _ => true,
        };
        let entries = self.alias_entries(name);
        let meant: Vec<_> = entries.iter().filter(|entry| own(self, entry)).cloned().collect();
        let entry = meant.into_iter().next().unwrap_or_else(|| entries[0].clone());
        self.problem(entry, what);
    }

    /// Whether the alias at this entry names `target`.
    fn leads_to(&self, entry: &str, name: &str, target: &str) -> bool {
        let names = |alias: &Alias| alias_models(alias).contains(&target);
        let everybody = self.config.aliases.get(name).filter(|_| entry == field("aliases", name));
        let tenants = self.config.tenants.iter().filter_map(|(tenant, own)| {
            let path = field(&field(&field("tenants", tenant), "aliases"), name);
            own.aliases.get(name).filter(|_| path == entry)
        });
        everybody.into_iter().chain(tenants).any(names)
    }

    /// The name that is most like one that leads nowhere.
    fn meant(&self, target: &str, names: &ProviderNames) -> String {
        let meant = match target.split_once('/') {
            Some((provider, model)) => {
                closest(provider, names.iter()).map(|provider| format!("{provider}/{model}"))
            }
            None => closest(target, self.config.aliases.keys().map(String::as_str)).map(str::to_owned),
        };
        did_you_mean(meant.as_deref())
    }

    pub(super) fn chains(
        &mut self,
        names: &ProviderNames,
        aliases: Option<&Aliases>,
        bad: &HashSet<String>,
    ) -> Option<Chains> {
        let retry = &self.config.retry;
        let mut builder = Chains::builder()
            .retries(retry.retries)
            .backoff(Backoff::new(retry.base.0.min(retry.max.0), retry.max.0))
            .max_wait(retry.max_wait.0)
            .providers(names.clone());
        if retry.retries > 0 {
            builder = builder.retry_budget(budget(&retry.budget));
        }
        for (cause, action) in retry.on.named() {
            let action = match action {
                Action::Retry => fallback::Action::Retry,
                Action::Next => fallback::Action::Next,
                Action::Stop => fallback::Action::Stop,
            };
            builder = builder.on(cause, action);
        }
        // What calls arrive with, and what is written.
        let mut keys = BTreeMap::new();
        for (model, fallback) in &self.config.fallbacks {
            let key = match self.config.aliases.contains_key(model) {
                true => ModelName::from(model.as_str()),
                false => names.canonical(&model.as_str().into()),
            };
            if let Some(other) = keys.insert(key.clone(), model) {
                let (bare, same) = if model.contains('/') { (other, model) } else { (model, other) };
                self.problem(field("fallbacks", bare), format_args!("is the same model as {same:?}"));
                continue;
            }
            match fallback {
                Fallback::Models(models) => builder = builder.chain(key, models.iter().map(String::as_str)),
                Fallback::ByCause(all) => {
                    if !all.otherwise.is_empty() {
                        builder = builder.chain(key.clone(), all.otherwise.iter().map(String::as_str));
                    }
                    for (_, cause, models) in all.named() {
                        builder = builder.chain_on(cause, key.clone(), models.iter().map(String::as_str));
                    }
                }
            }
        }
        for model in self.config.fallbacks.keys() {
            let is_alias = self.config.aliases.contains_key(model);
            if !is_alias && !model.contains('*') && names.provider_for(model).is_none() {
                let meant = self.meant(model, names);
                self.problem(field("fallbacks", model), format_args!("no provider serves it{meant}"));
            }
        }
        let aliases = aliases?;
        let error = match builder.aliases(aliases.clone()).build() {
            Ok(chains) => return Some(chains),
            Err(error) => error,
        };
        for problem in error.problems() {
            let is_of_bad = |target: &str| bad.contains(&field("aliases", target));
            let (model, what) = match problem {
                ChainProblem::Cycle { model, target } if model == target => {
                    (model, "leads to the model itself".into())
                }
                ChainProblem::Cycle { model, target } => (model, format!("{target} is the model itself")),
                ChainProblem::Repeated { model, target } => {
                    (model, format!("{} is listed twice", shown(target)))
                }
                ChainProblem::Dangling { target, .. } if is_of_bad(target) => continue,
                ChainProblem::Dangling { target, .. } if target.contains('*') => continue,
                ChainProblem::Dangling { model, target } => {
                    let meant = self.meant(target, names);
                    (model, format!("{} leads to no provider{meant}", shown(target)))
                }
                ChainProblem::KeyIsAlias { model, .. } if is_of_bad(model) => continue,
                ChainProblem::KeyIsAlias { model, target } => {
                    (model, format!("is never used, for it is an alias; name what it stands for: {target:?}"))
                }
            };
            let written = keys.get(model).map_or(model.as_str(), |written| written);
            self.problem(field("fallbacks", written), what);
        }
        None
    }

    /// What looks like one where only names are meant: it would be the name of a model that nobody has.
    pub(super) fn patterns(&mut self) {
        const WHAT: &str = "is not a pattern here: name each model";
        let config = self.config;
        let tables = config
            .tenants
            .iter()
            .map(|(name, own)| (field(&field("tenants", name), "aliases"), &own.aliases));
        for (path, aliases) in tables.chain([("aliases".to_owned(), &config.aliases)]) {
            for (name, alias) in aliases {
                for target in alias_models(alias).into_iter().filter(|target| target.contains('*')) {
                    self.problem(field(&path, name), format_args!("{} {WHAT}", shown(target)));
                }
            }
        }
        for (model, fallback) in &config.fallbacks {
            if model.contains('*') {
                self.problem(field("fallbacks", model), WHAT);
            }
            for target in fallback_models(fallback).into_iter().filter(|target| target.contains('*')) {
                self.problem(field("fallbacks", model), format_args!("{} {WHAT}", shown(target)));
            }
        }
        for (name, provider) in &config.providers {
            let path = field("providers", name);
            for model in provider.prices.keys().filter(|model| model.contains('*')) {
                self.problem(field(&field(&path, "prices"), model), WHAT);
            }
            for (at, model) in provider.models.iter().enumerate() {
                if let Model::Details(model) = model
                    && model.price.is_some()
                    && model.name.contains('*')
                {
                    self.problem(field(&place(&field(&path, "models"), at), "name"), WHAT);
                }
            }
        }
    }

    /// Where the configuration has prices.
    pub(super) fn priced(&self) -> Vec<String> {
        let crate::config::Config { prices, providers, .. } = self.config;
        let lists = (prices.litellm.is_some() || prices.own.is_some()).then(|| "prices".to_owned());
        let is_priced = |model: &Model| matches!(model, Model::Details(model) if model.price.is_some());
        let own = providers
            .iter()
            .filter(|(_, provider)| !provider.prices.is_empty() || provider.models.iter().any(is_priced))
            .map(|(name, _)| field("providers", name));
        lists.into_iter().chain(own).collect()
    }

    pub(super) fn prices(&mut self) -> PriceBook {
        if let Some(prices) = self.given.and_then(|given| given.prices.as_ref()) {
            for entry in self.priced() {
                self.problem(entry, "the program gives the prices of all models");
            }
            return PriceBook::clone(&prices.load());
        }
        let mut book = PriceBook::new();
        let lists = &self.config.prices;
        for (name, path) in [("litellm", &lists.litellm), ("own", &lists.own)] {
            let Some(path) = path else { continue };
            let entry = field("prices", name);
            match self.price_list(&entry, path) {
                Some(list) => book = book.with_overrides(list),
                None => continue,
            }
        }
        let mut own = Vec::new();
        for (name, provider) in &self.config.providers {
            let path = field("providers", name);
            let listed = provider.models.iter().enumerate().filter_map(|(at, model)| match model {
                Model::Details(model) => {
                    let entry = field(&place(&field(&path, "models"), at), "price");
                    Some((entry, model.name.clone(), model.price.clone()?))
                }
                Model::Name(_) => None,
            });
            let listed: Vec<_> = listed.collect();
            for (model, price) in &provider.prices {
                let entry = field(&field(&path, "prices"), model);
                if listed.iter().any(|(_, other, _)| other == model) {
                    self.problem(&entry, "stands beside a price in models; one of the two is enough");
                } else if model.trim().is_empty() {
                    self.problem(&entry, "the name must not be empty");
                } else if let Some(price) = self.price(&entry, price) {
                    self.named_at(entry, name, model);
                    own.push((format!("{name}/{model}"), price));
                }
            }
            for (entry, model, price) in listed {
                own.extend(self.price(&entry, &price).map(|price| (format!("{name}/{model}"), price)));
            }
        }
        own.sort_by(|(a, _), (b, _)| a.cmp(b));
        own.dedup_by(|(a, _), (b, _)| a == b);
        if own.is_empty() {
            return book;
        }
        match PriceBook::of("configuration", own) {
            Ok(list) => book.with_overrides(list),
            Err(error) => {
                self.problem("providers", error);
                book
            }
        }
    }

    fn price_list(&mut self, entry: &str, path: &Path) -> Option<PriceBook> {
        match PriceBook::read(path) {
            Ok(list) => return Some(list),
            Err(error) => match error.kind() {
                // Each with its line, which is one of the other file.
                PriceErrorKind::Entries(problems) => {
                    for problem in problems {
                        self.problem(entry, format_args!("{}: {problem}", path.display()));
                    }
                }
                _ => self.problem(entry, error),
            },
        }
        None
    }

    fn price(&mut self, entry: &str, price: &ModelPrice) -> Option<Price> {
        let ModelPrice { input, output, cache_read, cache_write, reasoning, request } = price;
        if input.is_none() && output.is_none() && request.is_none() {
            self.problem(entry, "needs input, output or request");
            return None;
        }
        let mut rates = Rates::new();
        type With = fn(Rates, Rate) -> Rates;
        let all: [(_, With); 5] = [
            (input, Rates::with_input),
            (output, Rates::with_output),
            (cache_read, Rates::with_cache_read),
            (cache_write, Rates::with_cache_write),
            (reasoning, Rates::with_reasoning),
        ];
        for (rate, with) in all {
            if let Some(rate) = rate {
                rates = with(rates, rate.0);
            }
        }
        if let Some(request) = request {
            match Rate::each(&request.0.to_string()) {
                Ok(rate) => rates = rates.with_request(rate),
                Err(error) => {
                    self.problem(field(entry, "request"), crate::config::value::amount(error.reason()));
                }
            }
        }
        Some(Price::new(rates))
    }
}

#[cfg_attr(not(feature = "genai"), expect(unused_variables, reason = "none of those that are left has one"))]
fn default_base_url(kind: Kind) -> Option<&'static str> {
    #[cfg(feature = "genai")]
    return kind.dialect()?.default_base_url();
    #[cfg(not(feature = "genai"))]
    None
}

fn budget(told: &RetryBudget) -> TpsBudget {
    let ratio = match told.percent {
        0 => 0.0,
        // It gives out one for as many as are in the whole part of the inverse.
        percent @ ..=100 => 1.0 / (100_u32.div_ceil(percent) as f32 + 0.5),
        percent => percent.min(10_000) as f32 / 100.0,
    };
    let ttl = told.ttl.0.clamp(*BUDGET_TTL.start(), *BUDGET_TTL.end());
    TpsBudget::new(ttl, told.min_per_second.min(100_000), ratio)
}

/// What is known of the servers of those who have two names for a bound.
fn own_output_member(kind: Kind, base_url: &str) -> Option<OutputMember> {
    let url: http::Uri = base_url.trim().parse().ok().filter(|_| kind == Kind::Openai)?;
    let host = url.host()?.to_ascii_lowercase();
    let azures = [".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com"];
    let is_theirs = match azures.iter().any(|end| host.ends_with(end)) {
        true => !is_of_other_models(url.path()) && !is_older(url.query().unwrap_or_default()),
        false => host == "api.openai.com" || host.ends_with(".api.openai.com"),
    };
    is_theirs.then_some(OutputMember::MaxCompletionTokens)
}

/// Where Azure serves models of all makers, by an API that knows only the older name.
fn is_of_other_models(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| first.eq_ignore_ascii_case("models"))
}

/// Whether Azure is asked for a version of its API from before the newer name; those without a date are new.
fn is_older(query: &str) -> bool {
    let mut members = query.split('&').filter_map(|member| member.split_once('='));
    let version = members.rfind(|(name, _)| name.eq_ignore_ascii_case("api-version"));
    version.is_some_and(|(_, date)| date.starts_with(|c: char| c.is_ascii_digit()) && date < "2024-09")
}

/// Whether a leaf could ask there.
#[cfg_attr(not(feature = "genai"), expect(unused_variables, reason = "there is one dialect, or none"))]
fn check_address(kind: Kind, base_url: &str) -> Result<(), String> {
    #[cfg(feature = "genai")]
    if let Some(dialect) = kind.dialect() {
        use crate::provider::genai::Genai;
        return Genai::new(dialect, base_url).map(drop).map_err(|error| error.to_string());
    }
    #[cfg(feature = "openai")]
    crate::provider::openai::OpenAiCompatible::new((), base_url).map_err(|error| error.to_string())?;
    Ok(())
}

fn alias_models(alias: &Alias) -> Vec<&str> {
    let shares = match alias {
        Alias::Model(model) => return vec![model],
        Alias::Split(all) => all,
        Alias::Sticky(all) => &all.sticky,
    };
    shares.iter().map(|share| &*share.model).collect()
}

/// How many models are tried one after the other at most.
pub(super) fn most_of(fallback: &Fallback) -> usize {
    match fallback {
        Fallback::Models(models) => models.len(),
        Fallback::ByCause(all) => {
            let named = all.named().into_iter().map(|(_, _, models)| models.len());
            named.chain([all.otherwise.len()]).max().unwrap_or_default()
        }
    }
}

fn fallback_models(fallback: &Fallback) -> Vec<&str> {
    let mut lists = Vec::new();
    match fallback {
        Fallback::Models(models) => lists.push(models),
        Fallback::ByCause(all) => {
            lists.push(&all.otherwise);
            lists.extend(all.named().into_iter().map(|(_, _, models)| models));
        }
    }
    lists.into_iter().flatten().map(String::as_str).collect()
}

/// The name of a model, where it can be no key that stands in the wrong table: one with a provider before its slash, as
/// providers are called.
fn shown(target: &str) -> &str {
    let is_provider = |name: &str| {
        let is_part = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
        name.len() <= 32 && name.starts_with(|c: char| c.is_ascii_lowercase()) && name.bytes().all(is_part)
    };
    match target.split_once('/') {
        Some((provider, _)) if is_provider(provider) => target,
        _ => "a name",
    }
}

#[cfg(all(test, feature = "openai"))]
mod tests {
    use super::*;

    #[test]
    fn the_servers_of_openai_and_azure_are_known_by_their_hosts() {
        for url in [
            "https://api.openai.com/v1",
            "https://EU.api.openai.com/v1",
            "https://ours.openai.azure.com/openai/deployments/o3?api-version=2024-10-21",
            "https://ours.openai.azure.com/openai/deployments/o3?api-version=2024-09-01-preview",
            "https://ours.openai.azure.com/openai/v1?api-version=preview",
            "https://ours.openai.azure.com/openai/v1?api-version=latest",
            "https://ours.openai.azure.com/openai/v1?api-version=v1",
            "https://ours.openai.azure.com/openai/v1?a=2023-05-15&api-version=",
            "https://ours.services.ai.azure.com/openai/v1",
            "https://ours.services.ai.azure.com/openai/deployments/models?api-version=2025-01-01-preview",
        ] {
            assert_eq!(
                own_output_member(Kind::Openai, url),
                Some(OutputMember::MaxCompletionTokens),
                "{url}"
            );
        }
        for url in [
            "http://127.0.0.1:8000/v1",
            "https://api.openai.com.evil.example/v1",
            "https://api.groq.com/v1",
            "https://ours.services.ai.azure.com/models?api-version=2024-05-01-preview",
            "https://ours.services.ai.azure.com/models/?api-version=2025-05-01",
            "https://ours.services.ai.azure.com/models",
            "https://ours.openai.azure.com/openai/deployments/gpt-4o?api-version=2024-06-01",
            "https://ours.openai.azure.com/openai/deployments/gpt-4o?a=b&api-version=2024-08-01-preview",
            "https://ours.cognitiveservices.azure.com/openai/deployments/gpt-4o?API-Version=2023-05-15",
        ] {
            assert_eq!(own_output_member(Kind::Openai, url), None, "{url}");
        }
        assert_eq!(own_output_member(Kind::Anthropic, "https://api.openai.com/v1"), None);
    }
}
