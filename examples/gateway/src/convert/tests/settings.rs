//! Keys, numbers, and what holds for all models.

use super::{super::convert_table, From, config};
use serde_json::{Value, json};

/// A proxy with one model and one key, with these settings; and what is told of it.
fn litellm(mut file: Value) -> (Value, Vec<String>) {
    let params = json!({ "model": "openai/gpt-4o" });
    if file["model_list"].is_null() {
        file["model_list"] = json!([{ "model_name": "m", "litellm_params": params }]);
    }
    if file["general_settings"]["master_key"].is_null() {
        file["general_settings"]["master_key"] = "os.environ/MASTER".into();
    }
    let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
    assert!(converted.problems.is_none(), "{}\n{}", converted.problems.unwrap(), converted.toml);
    (config(&converted), converted.notes)
}

fn told(notes: &[String], what: &str) -> usize {
    notes.iter().filter(|note| note.contains(what)).count()
}

#[test]
fn parallel_requests_are_of_each_key_unless_they_are_global() {
    for (settings, server) in [
        (json!({ "max_parallel_requests": 5 }), json!({ "max_in_flight_per_key": 5 })),
        (json!({ "global_max_parallel_requests": "50" }), json!({ "max_in_flight": 50 })),
        (
            json!({ "max_parallel_requests": 5, "global_max_parallel_requests": 50 }),
            json!({ "max_in_flight": 50, "max_in_flight_per_key": 5 }),
        ),
        (json!({ "max_parallel_requests": null }), Value::Null),
    ] {
        let (config, notes) = litellm(json!({ "general_settings": settings }));
        assert_eq!(config["server"], server, "{settings}");
        assert_eq!(told(&notes, "max_parallel_requests"), 0, "{notes:#?}");
    }
    let keys = json!([{ "key": "sk-1", "max_parallel_requests": 7 }]);
    let (config, notes) = litellm(json!({ "keys": keys }));
    assert_eq!(config["keys"][1]["max_in_flight"], 7);
    assert_eq!(told(&notes, "max_parallel_requests"), 0, "{notes:#?}");
}

#[test]
fn a_key_under_any_name_is_asked_for_or_missed() {
    let only = |member: &str, value: &str| {
        let params = json!({ "model": "openai/gpt-4o", member: value });
        let (config, notes) =
            litellm(json!({ "model_list": [{ "model_name": "m", "litellm_params": params }] }));
        (config["providers"]["openai"].clone(), notes)
    };
    let (provider, notes) = only("api_key", "os.environ/azure-openai-key");
    assert_eq!(provider["api_key"], json!({ "env": "azure_openai_key" }));
    assert_eq!(
        told(&notes, "litellm_params.api_key: is read from the variable azure_openai_key"),
        1,
        "{notes:#?}"
    );
    let (provider, notes) = only("organization", "os.environ/my.org");
    assert_eq!(provider["headers"]["openai-organization"], json!({ "env": "my_org" }));
    assert_eq!(
        told(&notes, "litellm_params.organization: is read from the variable my_org"),
        1,
        "{notes:#?}"
    );
    for (member, value) in [("api_key", "a b"), ("organization", "Acme Inc."), ("api_key", "os.environ/")] {
        let (_, notes) = only(member, value);
        let what = format!("litellm_params.{member}: cannot be sent in a header, and is left out");
        assert_eq!(told(&notes, &what), 1, "{notes:#?}");
    }
    let (config, notes) = litellm(json!({ "general_settings": { "master_key": "os.environ/master-key" } }));
    assert_eq!(config["keys"][0]["key"], json!({ "env": "master_key" }));
    assert_eq!(told(&notes, "master_key: is read from the variable master_key"), 1, "{notes:#?}");
}

#[test]
fn a_setting_that_cannot_be_read_is_told() {
    let cache = |params: Value| json!({ "cache": true, "cache_params": params });
    for (part, name, settings) in [
        ("litellm_settings", "num_retries", json!({})),
        ("router_settings", "num_retries", json!({})),
        ("router_settings", "retry_after", json!({})),
        ("litellm_settings", "request_timeout", json!({})),
        ("router_settings", "timeout", json!({})),
        ("router_settings", "stream_timeout", json!({})),
        ("general_settings", "max_parallel_requests", json!({})),
        ("general_settings", "global_max_parallel_requests", json!({})),
        ("general_settings", "max_request_size_mb", json!({})),
        ("litellm_settings", "json_logs", json!({})),
        ("litellm_settings", "cache", json!({})),
        ("litellm_settings", "ttl", cache(json!({ "type": "local", "ttl": "os.environ/X" }))),
        ("litellm_settings", "port", cache(json!({ "host": "redis.internal", "port": "os.environ/X" }))),
    ] {
        let mut settings = settings;
        if settings["cache_params"].is_null() {
            settings[name] = "os.environ/X".into();
        }
        let (config, notes) = litellm(json!({ part: settings }));
        assert_eq!(told(&notes, &format!("{name}: is in the environment")), 1, "{name}: {notes:#?}");
        if name == "port" {
            // Which server that is, nobody knows here.
            assert_eq!(config["cache"]["redis"], json!({ "env": "CACHE_REDIS_URL" }));
        }
    }
    for (name, value) in [("timeout", "os.environ/X"), ("weight", "os.environ/X"), ("rpm", "os.environ/X")] {
        let params = json!({ "model": "openai/gpt-4o", name: value });
        let (_, notes) = litellm(json!({ "model_list": [{ "model_name": "m", "litellm_params": params }] }));
        assert_eq!(told(&notes, &format!("{name}: is in the environment")), 1, "{name}: {notes:#?}");
    }
    let (_, notes) = litellm(json!({ "router_settings": { "timeout": "soon", "num_retries": -1 } }));
    assert_eq!(told(&notes, "router_settings.timeout: cannot be used as it is, and is left out"), 1);
    assert_eq!(told(&notes, "router_settings.num_retries: cannot be used as it is, and is left out"), 1);
}

#[test]
fn a_number_may_be_written_as_a_text() {
    let (config, notes) = litellm(json!({
        "litellm_settings": { "request_timeout": "600", "num_retries": "3", "json_logs": "true" },
        "general_settings": { "max_request_size_mb": "2" },
    }));
    assert_eq!(config["timeouts"], json!({ "total": "600s", "whole": "600s" }));
    assert_eq!(config["retry"]["retries"], 3);
    assert_eq!(config["server"]["max_body_bytes"], 2 << 20);
    assert_eq!(config["telemetry"]["log"], "json");
    assert_eq!(told(&notes, "_settings."), 0, "{notes:#?}");
}

#[test]
fn all_bodies_together_have_room_for_the_largest() {
    for (megabytes, all) in
        [(2_u64, Value::Null), (256, Value::Null), (300, json!(300 << 20)), (4000, json!(4000_u64 << 20))]
    {
        let settings = json!({ "general_settings": { "max_request_size_mb": megabytes } });
        let (config, notes) = litellm(settings);
        assert_eq!(config["server"]["max_body_bytes"], megabytes << 20);
        assert_eq!(config["server"]["max_buffered_bytes"], all, "{megabytes}");
        let noted = told(&notes, "max_request_size_mb: ");
        assert_eq!(noted, usize::from(!all.is_null()), "{notes:#?}");
    }
}

#[test]
fn there_are_calls_enough_for_all_tries() {
    let model =
        |name: &str| json!({ "model_name": name, "litellm_params": { "model": format!("openai/{name}") } });
    let models = json!([model("a"), model("b"), model("c")]);
    for (retries, fallbacks, calls) in [
        (1, json!([{ "a": ["b", "c"] }]), Value::Null),
        (3, json!([{ "a": ["b", "c"] }]), json!(12)),
        (7, json!([]), Value::Null),
        (100, json!([{ "b": ["c"] }]), json!(202)),
        (8, json!([]), json!(9)),
    ] {
        let (config, _) = litellm(json!({
            "model_list": models,
            "router_settings": { "num_retries": retries, "fallbacks": fallbacks },
        }));
        assert_eq!(config["retry"]["max_attempts"], calls, "{retries} {fallbacks}");
    }
}

#[test]
fn there_is_time_for_several_tries() {
    let model =
        |name: &str| json!({ "model_name": name, "litellm_params": { "model": format!("openai/{name}") } });
    let models = json!([model("a"), model("b")]);
    let fallbacks = json!([{ "a": ["b"] }]);
    for (timeout, retries, fallbacks, deadline) in [
        (600, 0, &fallbacks, json!("1200s")),
        (600, 1, &fallbacks, json!("1800s")),
        (600, 9, &fallbacks, json!("1800s")),
        (600, 0, &json!([]), Value::Null),
        (30, 1, &fallbacks, json!("120s")),
    ] {
        let (config, _) = litellm(json!({
            "model_list": models,
            "litellm_settings": { "request_timeout": timeout },
            "router_settings": { "num_retries": retries, "fallbacks": fallbacks },
        }));
        assert_eq!(config["retry"]["deadline"], deadline, "{timeout} {retries} {fallbacks}");
    }
}

#[test]
fn a_call_has_the_time_that_it_had() {
    let (config, notes) = litellm(json!({
        "litellm_settings": { "request_timeout": 60 }, "router_settings": { "timeout": 600 },
    }));
    assert_eq!(config["timeouts"], json!({ "total": "60s", "whole": "60s" }));
    assert_eq!(told(&notes, "router_settings.timeout: is not carried over"), 1, "{notes:#?}");
}

#[test]
fn what_only_the_environment_knows_of_an_address_is_told() {
    for (params, what) in [
        (
            json!({ "model": "azure/a", "api_base": "https://x.openai.azure.com", "api_version": "os.environ/X" }),
            "litellm_params.api_version: is in the environment",
        ),
        (
            json!({ "model": "vertex_ai/a", "vertex_project": "p", "vertex_location": "os.environ/X" }),
            "litellm_params.vertex_location: is in the environment",
        ),
    ] {
        let (config, notes) =
            litellm(json!({ "model_list": [{ "model_name": "m", "litellm_params": params }] }));
        assert!(!config.to_string().contains("os.environ"), "{config}");
        assert_eq!(told(&notes, what), 1, "{what}: {notes:#?}");
    }
}

#[test]
fn what_is_in_litellms_database_is_missed() {
    let (_, notes) = litellm(json!({ "general_settings": { "database_url": "os.environ/DATABASE_URL" } }));
    let what = "database_url: its keys, teams, users, budgets and models are not carried over: every client but the master key";
    assert_eq!(told(&notes, what), 1, "{notes:#?}");
}

#[test]
fn a_cache_that_calls_ask_for_is_not_one_for_all() {
    let cache = |mode: &str| {
        let params = json!({ "type": "local", "mode": mode });
        litellm(json!({ "litellm_settings": { "cache": true, "cache_params": params } }))
    };
    let (config, notes) = cache("default_off");
    assert_eq!(config["cache"], Value::Null);
    assert_eq!(told(&notes, "cache_params.mode: calls ask for their answers to be kept"), 1, "{notes:#?}");
    for types in [json!([]), json!(["embedding"])] {
        let params = json!({ "type": "local", "supported_call_types": types });
        let (config, notes) =
            litellm(json!({ "litellm_settings": { "cache": true, "cache_params": params } }));
        assert_eq!(config["cache"], Value::Null);
        assert_eq!(told(&notes, "supported_call_types: answers to chats are not kept"), 1, "{notes:#?}");
    }
    let (config, notes) = cache("default_on");
    assert_eq!(config["cache"]["enabled"], true);
    assert_eq!(told(&notes, "cache_params.mode"), 0, "{notes:#?}");
}

#[test]
fn what_is_switched_off_or_hidden_is_told() {
    let (config, notes) = litellm(json!({
        "litellm_settings": { "ssl_verify": false, "set_verbose": false },
        "router_settings": { "model_group_alias": { "secret": { "model": "m", "hidden": true } } },
    }));
    assert_eq!(config["aliases"]["secret"], "openai/gpt-4o");
    assert_eq!(told(&notes, "litellm_settings.ssl_verify: is not carried over"), 1, "{notes:#?}");
    assert_eq!(told(&notes, "set_verbose"), 0, "{notes:#?}");
    assert_eq!(told(&notes, "model_group_alias.secret: is listed with the others"), 1, "{notes:#?}");
}

#[test]
fn a_password_in_the_file_is_pointed_out() {
    let params = json!({ "host": "redis.internal", "password": "hunter2", "ssl": true });
    let (config, notes) = litellm(json!({ "litellm_settings": { "cache": true, "cache_params": params } }));
    assert_eq!(config["cache"]["redis"], "rediss://:hunter2@redis.internal:6379");
    assert_eq!(told(&notes, "cache_params.ssl"), 0, "{notes:#?}");
    assert_eq!(told(&notes, "cache_params.password: stands in the file itself"), 1, "{notes:#?}");
    assert_eq!(told(&notes, "hunter2"), 0);
}

#[test]
fn a_gateway_without_keys_is_said_to_be_open() {
    let open = |file: Value| {
        let mut file = file;
        file["model_list"] = json!([{ "model_name": "m", "litellm_params": { "model": "openai/gpt-4o" } }]);
        let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
        told(&converted.notes, "there is no key, so the gateway answers everybody")
    };
    assert_eq!(open(json!({})), 1);
    assert_eq!(open(json!({ "general_settings": { "master_key": "ä" } })), 1);
    assert_eq!(open(json!({ "general_settings": { "master_key": null } })), 1);
    assert_eq!(open(json!({ "keys": [{ "key": "sk-1" }] })), 0);
}
