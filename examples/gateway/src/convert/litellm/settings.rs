//! What holds for all models: tries, times, the cache, the server.

use super::{
    super::{
        draft::{Draft, Secret, quoted, time},
        read::{is_true, some, table, text, whole},
    },
    LEFT_OUT,
    deployment::seconds,
};
use llm_layers::store::{Redis, RedisOptions};
use serde_json::{Map, Value};
use std::time::Duration;

pub(super) fn convert(
    general: &Map<String, Value>,
    litellm: &Map<String, Value>,
    router: &Map<String, Value>,
    draft: &mut Draft,
) {
    let told = |name: &str| router.get(name).or_else(|| litellm.get(name));
    if let Some(retries) = whole(told("num_retries")) {
        draft.set("retry", "retries", retries.min(100).to_string());
    }
    if let Some(wait) = seconds(router.get("retry_after")) {
        draft.set("retry", "base", time(wait.min(Duration::from_secs(2))));
    }
    let total = seconds(router.get("timeout")).or_else(|| seconds(litellm.get("request_timeout")));
    if let Some(total) = total {
        draft.set("timeouts", "whole", time(total));
        draft.set("timeouts", "total", time(total));
    }
    if let Some(first) = seconds(router.get("stream_timeout")) {
        draft.note("router_settings.stream_timeout", "is the time until the first content now");
        // No part of a call lasts longer than all of it.
        draft.set("timeouts", "first_content", time(total.map_or(first, |total| first.min(total))));
    }
    for (name, most) in [
        ("global_max_parallel_requests", "max_in_flight"),
        ("max_parallel_requests", "max_in_flight_per_key"),
    ] {
        if let Some(calls) = some(general.get(name)) {
            draft.set("server", most, calls.to_string());
        }
    }
    if let Some(megabytes) =
        whole(general.get("max_request_size_mb")).filter(|size| (1..=4000).contains(size))
    {
        draft.set("server", "max_body_bytes", (megabytes << 20).to_string());
    }
    if is_true(litellm.get("json_logs")) {
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
                "database_url" => "is not carried over: what was used begins anew, in usage.db or in Redis",
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

fn cache(litellm: &Map<String, Value>, draft: &mut Draft) {
    let empty = Map::new();
    let params = table(litellm.get("cache_params")).unwrap_or(&empty);
    if !is_true(litellm.get("cache")) {
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
    draft.note("litellm_settings.cache", "answers are kept for each user now, and not for all");
    draft.set("cache", "enabled", "true".to_owned());
    if let Some(ttl) = seconds(params.get("ttl")) {
        draft.set("cache", "ttl", time(ttl));
    }
    match text(params.get("type")).unwrap_or_else(|| "redis".to_owned()).as_str() {
        "local" => {}
        "redis" => {
            draft.set_secret("cache", "redis", &redis(params));
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
            "type" | "ttl" | "host" | "port" | "password" | "url" => {}
            "mode" => draft
                .note("litellm_settings.cache_params.mode", "a call says itself that it is not to be cached"),
            name => draft.note(&format!("litellm_settings.cache_params.{name}"), LEFT_OUT),
        }
    }
}

/// Its address, if there is nothing in it that only the environment knows.
fn redis(params: &Map<String, Value>) -> Secret {
    let in_environment = Secret::Env("CACHE_REDIS_URL".to_owned());
    let plain = |text: &String| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b));
    let (host, password) = (text(params.get("host")), text(params.get("password")));
    let port = whole(params.get("port")).unwrap_or(6379);
    let url = match (host, password) {
        (Some(host), None) if plain(&host) && !params.contains_key("url") => {
            format!("redis://{host}:{port}")
        }
        (Some(host), Some(password)) if plain(&host) && plain(&password) => {
            format!("redis://:{password}@{host}:{port}")
        }
        _ => return in_environment,
    };
    match Redis::new(&url, RedisOptions::default()) {
        Ok(_) => Secret::Text(url),
        Err(_) => in_environment,
    }
}
