//! What holds for all models: tries, times, the cache, the server.

use super::{
    super::{
        draft::{Draft, Secret, quoted, time},
        read::{some, table, text, texts, truth, whole},
    },
    IN_THE_FILE, LEFT_OUT,
    deployment::seconds,
    known,
};
use llm_layers::{
    config::{Retry, Server},
    store::{Redis, RedisOptions},
};
use serde_json::{Map, Value};
use std::time::Duration;

pub(super) fn convert(
    general: &Map<String, Value>,
    litellm: &Map<String, Value>,
    router: &Map<String, Value>,
    draft: &mut Draft,
) {
    let routers = router.get("num_retries").filter(|told| !told.is_null());
    let (path, retries) = match routers {
        Some(told) => ("router_settings.num_retries", Some(told)),
        None => ("litellm_settings.num_retries", litellm.get("num_retries")),
    };
    let retries = known(path, retries, whole, draft).map(|retries| retries.min(100));
    if let Some(retries) = retries {
        draft.set("retry", "retries", retries.to_string());
    }
    let retries = retries.unwrap_or_default();
    attempts(retries, draft);
    if let Some(wait) = known("router_settings.retry_after", router.get("retry_after"), seconds, draft) {
        let most = Duration::from_secs(2);
        if wait > most {
            draft.note("router_settings.retry_after", "is no more than two seconds now");
        }
        draft.set("retry", "base", time(wait.min(most)));
    }
    times(litellm, router, retries, draft);
    for (name, most) in [
        ("global_max_parallel_requests", "max_in_flight"),
        ("max_parallel_requests", "max_in_flight_per_key"),
    ] {
        if let Some(calls) = known(&format!("general_settings.{name}"), general.get(name), some, draft) {
            draft.set("server", most, calls.to_string());
        }
    }
    let size = |told: Option<&Value>| whole(told).filter(|size| (1..=4000).contains(size));
    let path = "general_settings.max_request_size_mb";
    if let Some(megabytes) = known(path, general.get("max_request_size_mb"), size, draft) {
        let bytes = megabytes << 20;
        draft.set("server", "max_body_bytes", bytes.to_string());
        if bytes > Server::default().max_buffered_bytes as u64 {
            draft.set("server", "max_buffered_bytes", bytes.to_string());
            let what = "is also what all bodies may take up together now: raise server.max_buffered_bytes for several of that size";
            draft.note(path, what);
        }
    }
    if known("litellm_settings.json_logs", litellm.get("json_logs"), truth, draft) == Some(true) {
        draft.set("telemetry", "log", quoted("json"));
    }
    cache(litellm, draft);

    let parts: [(&str, &Map<String, Value>, &[&str]); 3] = [
        (
            "general_settings",
            general,
            &[
                "master_key",
                "max_parallel_requests",
                "global_max_parallel_requests",
                "max_request_size_mb",
                "teams",
                "users",
                "keys",
            ],
        ),
        (
            "litellm_settings",
            litellm,
            &[
                "num_retries",
                "request_timeout",
                "json_logs",
                "cache",
                "cache_params",
                "max_budget",
                "budget_duration",
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
                "default_fallbacks",
                "model_alias_map",
                "model_group_alias",
                "teams",
                "users",
                "keys",
            ],
        ),
        (
            "router_settings",
            router,
            &[
                "num_retries",
                "retry_after",
                "timeout",
                "stream_timeout",
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
                "default_fallbacks",
                "model_group_alias",
                "model_alias_map",
            ],
        ),
    ];
    for (path, settings, known) in parts {
        for (name, value) in settings.iter().filter(|(name, _)| !known.contains(&name.as_str())) {
            let what = match name.as_str() {
                "ssl_verify" if !value.is_null() => LEFT_OUT,
                _ if value.is_null() || *value == Value::Bool(false) => continue,
                "allowed_fails" | "cooldown_time" | "allowed_fails_policy" | "disable_cooldowns" => {
                    "is not carried over: a deployment that fails rests by rules of its own"
                }
                "routing_strategy" | "routing_strategy_args" => {
                    "is not carried over: of a provider's deployments the one with fewer calls in flight is asked"
                }
                "redis_host" | "redis_port" | "redis_password" | "redis_url" => {
                    "is not carried over: name a server of Redis in [usage] and [quota], and gateways count together"
                }
                "database_url" => {
                    let refused = match draft.keys.is_empty() {
                        true => "",
                        false => {
                            "every client but the master key and the keys in this file is refused (401), and "
                        }
                    };
                    let what = "its keys, teams, users, budgets and models are not carried over";
                    let anew = "what was used begins anew, in usage.db or in Redis";
                    draft.note(&format!("{path}.{name}"), format_args!("{what}: {refused}{anew}"));
                    continue;
                }
                "success_callback" | "failure_callback" | "callbacks" | "service_callback" => {
                    "is not carried over: see telemetry, by OTLP and for Prometheus"
                }
                "drop_params" => "is not carried over: members of a request go to the provider as they are",
                "provider_budget_config" => {
                    "is not carried over: limits are of departments, not of providers"
                }
                "retry_policy" | "model_group_retry_policy" => "is not carried over: see [retry.on]",
                "default_internal_user_params" | "default_team_settings" | "max_internal_user_budget" => {
                    "is not carried over: give each user's key a department with a limit"
                }
                _ => LEFT_OUT,
            };
            draft.note(&format!("{path}.{name}"), what);
        }
    }
}

/// LiteLLM counts for each model anew.
fn attempts(retries: u64, draft: &mut Draft) {
    let all = (1 + retries) * (1 + draft.longest_fallback() as u64);
    if all > u64::from(Retry::default().max_attempts) {
        draft.set("retry", "max_attempts", all.min(1000).to_string());
    }
}

/// Of one call to a provider, as LiteLLM's are.
fn times(litellm: &Map<String, Value>, router: &Map<String, Value>, retries: u64, draft: &mut Draft) {
    let own = known("router_settings.timeout", router.get("timeout"), seconds, draft);
    let total = known("litellm_settings.request_timeout", litellm.get("request_timeout"), seconds, draft);
    if own.is_some() && total.is_some() {
        let what = "is not carried over: litellm_settings.request_timeout is that of each call";
        draft.note("router_settings.timeout", what);
    }
    let total = total.or(own);
    if let Some(total) = total {
        draft.set("timeouts", "whole", time(total));
        draft.set("timeouts", "total", time(total));
        // One that is silent must leave time for others.
        let tries = 1 + (retries + draft.longest_fallback() as u64).min(2);
        if tries > 1 {
            let deadline = total.saturating_mul(tries as u32).max(Retry::default().deadline.0);
            draft.set("retry", "deadline", time(deadline));
        }
    }
    if let Some(first) = known("router_settings.stream_timeout", router.get("stream_timeout"), seconds, draft)
    {
        draft.note("router_settings.stream_timeout", "is the time until the first content now");
        // No part of a call lasts longer than all of it.
        draft.set("timeouts", "first_content", time(total.map_or(first, |total| first.min(total))));
    }
}

fn cache(litellm: &Map<String, Value>, draft: &mut Draft) {
    let empty = Map::new();
    let params = table(litellm.get("cache_params")).unwrap_or(&empty);
    if known("litellm_settings.cache", litellm.get("cache"), truth, draft) != Some(true) {
        if !params.is_empty() {
            draft.note("litellm_settings.cache_params", "there is no cache, for `cache` is not true");
        }
        return;
    }
    if draft.keys.is_empty() {
        draft.note(
            "litellm_settings.cache",
            "is not carried over: answers are kept for users, and without keys there are none",
        );
        return;
    }
    if text(params.get("mode")).is_some_and(|mode| mode != "default_on") {
        draft.note(
            "litellm_settings.cache_params.mode",
            "calls ask for their answers to be kept, which none can here: there is no cache",
        );
        return;
    }
    let kept = params.get("supported_call_types").filter(|told| !told.is_null());
    if kept.is_some() && !texts(kept).iter().any(|call| call == "completion" || call == "acompletion") {
        draft.note(
            "litellm_settings.cache_params.supported_call_types",
            "answers to chats are not kept: there is no cache",
        );
        return;
    }
    draft.note("litellm_settings.cache", "answers are kept for each user now, and not for all");
    draft.set("cache", "enabled", "true".to_owned());
    if let Some(ttl) = known("litellm_settings.cache_params.ttl", params.get("ttl"), seconds, draft) {
        draft.set("cache", "ttl", time(ttl));
    }
    match text(params.get("type")).unwrap_or_else(|| "redis".to_owned()).as_str() {
        "local" => {}
        "redis" => {
            let redis = redis(params, draft);
            draft.set_secret("cache", "redis", &redis);
            draft.set_secret("cache", "secret", &Secret::Env("CACHE_SECRET".to_owned()));
            draft.note(
                "litellm_settings.cache_params",
                "CACHE_SECRET is new: 32 characters or more that nobody can guess",
            );
        }
        _ => draft.note(
            "litellm_settings.cache_params.type",
            "there is a cache in memory, or in Redis; it is in memory now",
        ),
    }
    for name in params.keys() {
        match name.as_str() {
            "type" | "ttl" | "mode" | "host" | "port" | "password" | "url" | "ssl" => {}
            name => draft.note(&format!("litellm_settings.cache_params.{name}"), LEFT_OUT),
        }
    }
}

/// Its address, if there is nothing in it that only the environment knows.
fn redis(params: &Map<String, Value>, draft: &mut Draft) -> Secret {
    let path = "litellm_settings.cache_params";
    let plain = |text: &String| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    let has = |name: &str| params.get(name).is_some_and(|told| !told.is_null());
    let is_port = |told: Option<&Value>| whole(told).filter(|port| (1..=65_535).contains(port));
    let port = known(&format!("{path}.port"), params.get("port"), is_port, draft);
    let port = if has("port") { port } else { Some(6379) };
    let is_tls = known(&format!("{path}.ssl"), params.get("ssl"), truth, draft) == Some(true);
    let (host, password) = (text(params.get("host")).filter(plain), text(params.get("password")));
    let user = match &password {
        Some(password) => plain(password).then(|| format!(":{password}@")),
        None => Some(String::new()),
    };
    if let (Some(host), Some(port), Some(user), false) = (host, port, user, has("url")) {
        let scheme = if is_tls { "rediss" } else { "redis" };
        let url = format!("{scheme}://{user}{host}:{port}");
        if Redis::new(&url, RedisOptions::default()).is_ok() {
            if password.is_some() {
                draft.note(&format!("{path}.password"), IN_THE_FILE);
            }
            return Secret::Text(url);
        }
    }
    draft.note(path, "CACHE_REDIS_URL says where its Redis is, and with which password");
    Secret::Env("CACHE_REDIS_URL".to_owned())
}
