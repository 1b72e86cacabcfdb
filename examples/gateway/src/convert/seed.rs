//! The configuration of the Python gateway that this one comes from: `LLMConfig`, and its quotas.
//!
//! Its prices are dollars for a thousand tokens, its limits of cost are cents.

use super::{
    draft::{Department, Draft, Key, Place, Price, Provider, Secret, quoted, time},
    read::{dollars, is_true, number, price, table, text, texts, whole},
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

/// What the application that it was a part of is asked to send.
const KEY: &str = "GATEWAY_KEY";

const LEFT_OUT: &str = "is not carried over";

pub(super) fn convert(root: &Map<String, Value>, draft: &mut Draft) {
    // Alone, or as a part of the application's file.
    let llm = table(root.get("llm")).unwrap_or(root);
    let names = providers(llm, draft);
    aliases(llm, &names, draft);
    fallbacks(llm, &names, draft);
    for place in [root, llm] {
        for name in ["quotas", "department_quotas", "departments"] {
            quotas(name, place.get(name), &names, draft);
        }
        if std::ptr::eq(root, llm) {
            break;
        }
    }
    // It had no keys: whoever called it said who asked.
    draft.note(
        "keys",
        "the application that calls has a key of its own, and says in headers for whom it asks",
    );
    let departments = draft.departments.keys().filter(|name| *name != "*").cloned().collect();
    draft.keys.push(Key {
        key: Secret::Env(KEY.to_owned()),
        user: "application".to_owned(),
        departments,
        admin: false,
        trusted: true,
        max_in_flight: None,
    });
    cache(llm, draft);
    if let Some(seconds) = number(llm.get("timeout")).filter(|seconds| *seconds > 0.0) {
        let total = time(Duration::from_secs_f64(seconds.min(31_536_000.0)));
        draft.set("timeouts", "whole", total.clone());
        draft.set("timeouts", "total", total);
    }
    let known = [
        "llm",
        "providers",
        "model_aliases",
        "aliases",
        "fallbacks",
        "quotas",
        "department_quotas",
        "departments",
        "cache",
        "timeout",
    ];
    for name in llm.keys().filter(|name| !known.contains(&name.as_str())) {
        draft.note(name, LEFT_OUT);
    }
}

/// The providers, and by what name each of the file's is known now.
fn providers(llm: &Map<String, Value>, draft: &mut Draft) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (name, provider) in table(llm.get("providers")).into_iter().flatten() {
        let path = format!("providers.{name}");
        let Some(provider) = table(Some(provider)) else {
            draft.note(&path, "is not a provider");
            continue;
        };
        let told = ["type", "provider_type", "kind"].iter().find_map(|member| text(provider.get(*member)));
        let spoken = told.unwrap_or_else(|| name.clone()).to_lowercase();
        let kind = match spoken.as_str() {
            "anthropic" | "claude" => "anthropic",
            "gemini" | "google" => "gemini",
            "cohere" => "cohere",
            "ollama" => "ollama",
            "bedrock" => "bedrock",
            "echo" => "echo",
            _ => "openai",
        };
        let base_url = text(provider.get("base_url")).or_else(|| text(provider.get("api_base")));
        let base_url = match (kind, base_url) {
            ("openai", None) if spoken == "openai" => Some("https://api.openai.com/v1".to_owned()),
            ("echo", _) => None,
            (_, base_url) => base_url,
        };
        if !Draft::can_be_asked(kind, base_url.as_deref()) {
            draft.note(&path, "has no base_url that can be asked, and is left out");
            continue;
        }
        let api_key =
            text(provider.get("api_key")).and_then(|key| Secret::read(&key)).filter(|_| kind != "echo");
        if matches!(api_key, Some(Secret::Text(_))) {
            draft.note(
                &format!("{path}.api_key"),
                "stands in the file itself; { env = \"NAME\" } would keep it out",
            );
        }
        let models = models(&path, provider.get("models"), draft);
        let seconds = number(provider.get("timeout")).filter(|seconds| *seconds > 0.0);
        let known = [
            "type",
            "provider_type",
            "kind",
            "base_url",
            "api_base",
            "api_key",
            "models",
            "timeout",
            "enabled",
        ];
        for member in provider.keys().filter(|member| !known.contains(&member.as_str())) {
            draft.note(&format!("{path}.{member}"), LEFT_OUT);
        }
        let own = draft.free_name(name);
        let place = Place { base_url, api_key, headers: BTreeMap::new() };
        let total = seconds.map(|seconds| Duration::from_secs_f64(seconds.min(31_536_000.0)));
        draft.providers.insert(own.clone(), Provider { kind, places: vec![place], models, total });
        names.insert(name.clone(), own);
    }
    if draft.providers.is_empty() {
        draft.note("providers", "there is none that could be carried over; an echo stands in for them");
        draft.providers.insert("echo".to_owned(), Provider { kind: "echo", ..Provider::default() });
    }
    names
}

/// A list of names, or a table of names and what they cost.
fn models(path: &str, models: Option<&Value>, draft: &mut Draft) -> BTreeMap<String, Price> {
    let table = match models {
        Some(Value::Object(table)) => table,
        list => return texts(list).into_iter().map(|name| (name, Price::default())).collect(),
    };
    let mut all = BTreeMap::new();
    for (name, settings) in table.iter().filter(|(name, _)| !name.trim().is_empty()) {
        let settings = settings.as_object();
        let rate = |member| price(settings.and_then(|settings| settings.get(member)), 3);
        let price = Price {
            input: rate("cost_per_1k_input"),
            output: rate("cost_per_1k_output"),
            ..Price::default()
        };
        for member in
            settings.into_iter().flat_map(Map::keys).filter(|member| !member.starts_with("cost_per_1k_"))
        {
            draft.note(&format!("{path}.models.{name}.{member}"), LEFT_OUT);
        }
        all.insert(name.clone(), price);
    }
    all
}

/// `provider/model`, or a model of the only provider.
fn canonical(name: &str, names: &BTreeMap<String, String>) -> Option<String> {
    let name = name.trim();
    match (name.split_once('/'), names.values().next()) {
        (Some((provider, model)), _) if !model.is_empty() => {
            Some(format!("{}/{model}", names.get(provider)?))
        }
        (None, Some(only)) if names.len() == 1 && !name.is_empty() => Some(format!("{only}/{name}")),
        _ => None,
    }
}

fn aliases(llm: &Map<String, Value>, names: &BTreeMap<String, String>, draft: &mut Draft) {
    for table_name in ["model_aliases", "aliases"] {
        for (alias, target) in table(llm.get(table_name)).into_iter().flatten() {
            let path = format!("{table_name}.{alias}");
            let end = text(Some(target)).and_then(|target| canonical(&target, names));
            match end {
                _ if alias.trim().is_empty() || alias.contains('*') => {
                    draft.note(&path, "its name cannot be used")
                }
                Some(end) if end == *alias => {}
                Some(end) => drop(draft.aliases.insert(alias.clone(), vec![(end, 1)])),
                None => draft.note(&path, "leads to no provider, and is left out"),
            }
        }
    }
    draft.drop_aliases_of_models();
}

fn fallbacks(llm: &Map<String, Value>, names: &BTreeMap<String, String>, draft: &mut Draft) {
    for (model, targets) in table(llm.get("fallbacks")).into_iter().flatten() {
        let path = format!("fallbacks.{model}");
        let mut otherwise = Vec::new();
        for target in texts(Some(targets)) {
            match canonical(&target, names) {
                Some(end) => otherwise.push(end),
                None => draft.note(&path, format_args!("{target:?} leads to no provider, and is left out")),
            }
        }
        match canonical(model, names) {
            // The name is one after aliasing.
            Some(model) => {
                draft.fallbacks.entry(model).or_default().otherwise.extend(otherwise);
            }
            None => draft.note(&path, "no provider serves it, and it is left out"),
        }
    }
}

/// Rows as they stand in its table, or one table for each department.
fn quotas(path: &str, quotas: Option<&Value>, names: &BTreeMap<String, String>, draft: &mut Draft) {
    match quotas {
        Some(Value::Array(rows)) => {
            for (at, row) in rows.iter().enumerate() {
                let path = format!("{path}[{at}]");
                let row = row.as_object();
                let member = |name: &str| row.and_then(|row| row.get(name));
                let Some(department) = text(member("department_id")) else {
                    draft.note(&path, "has no department_id, and is left out");
                    continue;
                };
                let kind = text(member("quota_type")).unwrap_or_default();
                let period = text(member("period")).unwrap_or_default();
                quota(&path, &department, &kind, &period, member("limit_value"), names, draft);
            }
        }
        Some(Value::Object(departments)) => {
            for (department, limits) in departments.iter().filter(|(name, _)| !name.trim().is_empty()) {
                draft.departments.entry(department.clone()).or_default();
                for (kind, value) in limits.as_object().into_iter().flatten() {
                    let path = format!("{path}.{department}.{kind}");
                    let (period, kind) = match kind.split_once('_') {
                        Some((period @ ("daily" | "monthly"), kind)) => (period, kind),
                        _ => ("", kind.as_str()),
                    };
                    match value.as_object() {
                        Some(periods) => {
                            for (period, value) in periods {
                                quota(&path, department, kind, period, Some(value), names, draft);
                            }
                        }
                        None => quota(&path, department, kind, period, Some(value), names, draft),
                    }
                }
            }
        }
        _ => {}
    }
}

fn quota(
    path: &str,
    department: &str,
    kind: &str,
    period: &str,
    value: Option<&Value>,
    names: &BTreeMap<String, String>,
    draft: &mut Draft,
) {
    let limits: &mut Department = draft.departments.entry(department.to_owned()).or_default();
    let day = match period {
        "daily" | "day" => Some(true),
        "monthly" | "month" => Some(false),
        _ => None,
    };
    let written = match (kind, day) {
        ("token_limit" | "tokens", Some(day)) => {
            whole(value).map(|tokens| (if day { "day_tokens" } else { "month_tokens" }, tokens.to_string()))
        }
        ("cost_limit" | "cost", Some(day)) => {
            dollars(value, -2).map(|cost| (if day { "day_cost" } else { "month_cost" }, quoted(&cost)))
        }
        ("model_whitelist" | "whitelist" | "allowed_models" | "models", _) => {
            let told = texts(value);
            let told: Vec<_> = told.iter().flat_map(|text| text.split(',')).map(str::trim).collect();
            // What is allowed there is a model after aliasing.
            let allowed: Vec<String> = told.iter().filter_map(|name| canonical(name, names)).collect();
            let left_out = told.len() - allowed.len();
            limits.models.get_or_insert_default().extend(allowed);
            if left_out > 0 {
                draft.note(path, format_args!("{left_out} of its models have no provider, and are left out"));
            }
            return;
        }
        _ => None,
    };
    match written {
        Some((limit, value)) => drop(limits.limits.insert(limit, value)),
        None => draft.note(path, LEFT_OUT),
    }
}

fn cache(llm: &Map<String, Value>, draft: &mut Draft) {
    let Some(cache) = table(llm.get("cache")) else { return };
    if !is_true(cache.get("enabled")) {
        return;
    }
    draft.set("cache", "enabled", "true".to_owned());
    for name in ["ttl", "ttl_seconds"] {
        if let Some(seconds) = number(cache.get(name)).filter(|seconds| *seconds > 0.0) {
            draft.set("cache", "ttl", time(Duration::from_secs_f64(seconds.min(31_536_000.0))));
        }
    }
    if text(cache.get("backend")).is_some_and(|backend| backend.starts_with("redis")) {
        draft.set_secret("cache", "redis", &Secret::Env("CACHE_REDIS_URL".to_owned()));
        draft.set_secret("cache", "secret", &Secret::Env("CACHE_SECRET".to_owned()));
        draft.note("cache", "CACHE_SECRET is new: 32 characters or more that nobody can guess");
    }
    draft.note("cache", "of knowledge bases nothing is kept that [cache.knowledge_bases] does not name");
    for name in cache.keys() {
        match name.as_str() {
            "enabled" | "backend" | "ttl" | "ttl_seconds" | "redis_url" => {}
            "similarity_threshold" => {
                draft.note(
                    "cache.similarity_threshold",
                    "is not carried over: see [cache.semantic], and its warning",
                );
            }
            name => draft.note(&format!("cache.{name}"), LEFT_OUT),
        }
    }
}
