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
