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
