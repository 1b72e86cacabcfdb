//! Groups, their shares, and what is asked after them.

use super::{super::convert_table, From, config};
use serde_json::{Value, json};

/// What it is here, and what is told of it.
fn litellm(file: &Value) -> (Value, Vec<String>) {
    let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
    assert!(converted.problems.is_none(), "{}\n{}", converted.problems.unwrap(), converted.toml);
    (config(&converted), converted.notes)
}

fn model(group: &str, model: &str) -> Value {
    let mut params = json!({ "model": model });
    if model.starts_with("azure/") {
        params["api_base"] = "https://eu.openai.azure.com".into();
    }
    json!({ "model_name": group, "litellm_params": params })
}

fn weighted(group: &str, name: &str, params: &Value) -> Value {
    let mut all = model(group, name);
    let params = params.as_object().unwrap().clone();
    all["litellm_params"].as_object_mut().unwrap().extend(params);
    all
}

fn told(notes: &[String], what: &str) -> usize {
    notes.iter().filter(|note| note.contains(what)).count()
}

#[test]
fn a_group_has_no_fallbacks_of_another_that_shares_its_model() {
    let (config, notes) = litellm(&json!({ "model_list": [
        model("gpt-4o", "azure/gpt-4o-eu"),
        model("gpt-4o-any", "azure/gpt-4o-eu"),
        model("gpt-4o-any", "openai/gpt-4o"),
    ] }));
    assert_eq!(config["aliases"]["gpt-4o"], "azure/gpt-4o-eu");
    assert_eq!(
        config["aliases"]["gpt-4o-any"],
        json!([{ "model": "gpt-4o-any/gpt-4o-eu" }, { "model": "openai/gpt-4o" }])
    );
    assert_eq!(
        config["fallbacks"],
        json!({ "gpt-4o-any/gpt-4o-eu": ["openai/gpt-4o"], "openai/gpt-4o": ["gpt-4o-any/gpt-4o-eu"] })
    );
    let own = |name: &str, member: &str| config["providers"][name][member].clone();
    assert_eq!(own("gpt-4o-any", "base_url"), own("azure", "base_url"));
    assert_eq!(own("gpt-4o-any", "headers"), own("azure", "headers"));
    assert_eq!(told(&notes, "(gpt-4o-any): others share azure/gpt-4o-eu"), 1, "{notes:#?}");

    let cheap = |fallbacks: Value| {
        litellm(&json!({
            "model_list": [
                model("cheap", "openai/gpt-4o-mini"),
                model("internal", "openai/gpt-4o-mini"),
                model("claude", "anthropic/claude"),
            ],
            "litellm_settings": fallbacks,
        }))
    };
    let (config, notes) = cheap(json!({ "fallbacks": [{ "cheap": ["claude"] }] }));
    assert_eq!(config["aliases"]["internal"], "openai/gpt-4o-mini");
    assert_eq!(config["aliases"]["cheap"], "cheap/gpt-4o-mini");
    assert_eq!(config["fallbacks"], json!({ "cheap/gpt-4o-mini": ["anthropic/claude"] }));
    assert_eq!(told(&notes, "(cheap): others share openai/gpt-4o-mini"), 1, "{notes:#?}");
    // What is alike is one.
    let (config, notes) = cheap(json!({ "default_fallbacks": ["claude"] }));
    assert_eq!(config["aliases"]["cheap"], "openai/gpt-4o-mini");
    assert_eq!(config["fallbacks"], json!({ "openai/gpt-4o-mini": ["anthropic/claude"] }));
    assert_eq!(told(&notes, "others share"), 0, "{notes:#?}");
}

#[test]
fn a_name_that_a_pattern_serves_has_no_fallbacks_of_a_group() {
    let (config, notes) = litellm(&json!({
        "model_list": [model("openai/*", "openai/*"), model("smart", "openai/gpt-4o"), model("claude", "anthropic/claude")],
        "litellm_settings": { "fallbacks": [{ "smart": ["claude"] }, { "openai/*": ["claude"] }] },
    }));
    assert_eq!(config["aliases"]["smart"], "smart/gpt-4o");
    assert_eq!(config["fallbacks"], json!({ "smart/gpt-4o": ["anthropic/claude"] }));
    assert_eq!(told(&notes, "(openai/*): what is asked for by a pattern has no fallbacks"), 1, "{notes:#?}");
}

#[test]
fn another_name_of_a_group_has_the_fallbacks_that_are_told_for_it() {
    let file = |name: &str| {
        let (config, _) = litellm(&json!({
            "model_list": [model("a", "openai/gpt-4o"), model("claude", "anthropic/claude")],
            "router_settings": { "model_group_alias": { "b": "a" }, "fallbacks": [{ name: ["claude"] }] },
        }));
        let chain = |name: &str| config["fallbacks"][config["aliases"][name].as_str().unwrap()].clone();
        (chain("a"), chain("b"))
    };
    let claude = json!(["anthropic/claude"]);
    assert_eq!(file("a"), (claude.clone(), Value::Null));
    assert_eq!(file("b"), (Value::Null, claude));
}

#[test]
fn default_fallbacks_are_of_groups_that_are_split_as_well() {
    let (config, _) = litellm(&json!({
        "model_list": [
            model("fast", "openai/gpt-4o-mini"), model("fast", "groq/llama"), model("claude", "anthropic/claude"),
        ],
        "litellm_settings": { "default_fallbacks": ["claude"] },
    }));
    assert_eq!(
        config["fallbacks"],
        json!({
            "openai/gpt-4o-mini": ["groq/llama", "anthropic/claude"],
            "groq/llama": ["openai/gpt-4o-mini", "anthropic/claude"],
        })
    );
}

#[test]
fn fallbacks_of_all_are_of_those_that_have_none() {
    let list = [
        model("gpt-4o", "openai/gpt-4o"),
        model("openai/o3", "openai/o3"),
        model("mini", "openai/gpt-4o-mini"),
        model("claude", "anthropic/claude"),
    ];
    let (mini, claude) = ("openai/gpt-4o-mini", "anthropic/claude");
    for (name, cause) in [
        ("fallbacks", None),
        ("context_window_fallbacks", Some("context_window")),
        ("content_policy_fallbacks", Some("content_filter")),
    ] {
        // A name without its provider is that name, too.
        for own in ["gpt-4o", "o3"] {
            let rules = json!([{ own: ["mini"] }, { "*": ["claude"] }]);
            let (config, _) = litellm(&json!({ "model_list": list, "litellm_settings": { name: rules } }));
            let chain = |model: &str| match cause {
                None => config["fallbacks"][model].clone(),
                Some(cause) => config["fallbacks"][model][cause].clone(),
            };
            let expected = |model: &str| json!([if model == own { mini } else { claude }]);
            assert_eq!(chain("openai/gpt-4o"), expected("gpt-4o"), "{name}");
            assert_eq!(chain("openai/o3"), expected("o3"), "{name}");
            assert_eq!(chain(mini), json!([claude]), "{name}");
            assert_eq!(chain(claude), Value::Null, "{name}");
        }
    }
    let settings = json!({ "fallbacks": [{ "*": ["mini"] }], "default_fallbacks": ["claude"] });
    let (config, notes) = litellm(&json!({ "model_list": list, "litellm_settings": settings }));
    assert_eq!(config["fallbacks"]["openai/gpt-4o"], json!([claude]));
    assert_eq!(told(&notes, "default_fallbacks: stand in the place of those of \"*\""), 1, "{notes:#?}");
}

#[test]
fn where_there_are_fallbacks_of_a_cause_there_are_no_others_after_it() {
    let (config, _) = litellm(&json!({
        "model_list": [model("a", "openai/a"), model("b", "openai/b"), model("long", "openai/long")],
        "litellm_settings": {
            "fallbacks": [{ "a": ["b"] }, { "b": ["a"] }], "context_window_fallbacks": [{ "a": ["long"] }],
        },
    }));
    let chain = |otherwise: &str, long: Value| json!({ "otherwise": [otherwise], "context_window": long });
    assert_eq!(
        config["fallbacks"],
        json!({ "openai/a": chain("openai/b", json!(["openai/long"])), "openai/b": chain("openai/a", json!([])) })
    );
}

#[test]
fn fallbacks_have_fallbacks_of_their_own() {
    let (config, _) = litellm(&json!({
        "model_list": [model("a", "openai/a"), model("b", "openai/b"), model("c", "openai/c"), model("d", "openai/d")],
        "litellm_settings": { "fallbacks": [{ "a": ["b", "d"] }, { "b": ["c", "a"] }] },
    }));
    assert_eq!(
        config["fallbacks"],
        json!({ "openai/a": ["openai/b", "openai/c", "openai/d"], "openai/b": ["openai/c", "openai/a", "openai/d"] })
    );
}

#[test]
fn the_routers_own_fallbacks_go_before_all_others() {
    let (config, notes) = litellm(&json!({
        "model_list": [model("a", "openai/a"), model("b", "openai/b"), model("c", "openai/c")],
        "litellm_settings": { "fallbacks": [{ "a": ["b"] }, { "nobody": ["nothing"] }] },
        "router_settings": { "fallbacks": [{ "a": ["c"] }, "b", { "none": ["c", "nothing"] }] },
    }));
    assert_eq!(config["fallbacks"], json!({ "openai/a": ["openai/c"] }));
    for what in [
        "litellm_settings.fallbacks: is not carried over",
        "router_settings.fallbacks: has what is no table",
        "router_settings.fallbacks.none: is of no model",
        "router_settings.fallbacks.none: \"nothing\" leads to no model",
    ] {
        assert_eq!(told(&notes, what), 1, "{what}: {notes:#?}");
    }
    assert_eq!(told(&notes, "nobody"), 0, "{notes:#?}");
}

#[test]
fn a_fallback_that_is_a_table_is_its_model() {
    let target = json!({ "model": "claude", "temperature": 0, "api_key": "sk-secret" });
    let (config, notes) = litellm(&json!({
        "model_list": [model("gpt-4o", "openai/gpt-4o"), model("claude", "anthropic/claude")],
        "litellm_settings": { "fallbacks": [{ "gpt-4o": [target, { "messages": [] }] }] },
    }));
    assert_eq!(config["fallbacks"], json!({ "openai/gpt-4o": ["anthropic/claude"] }));
    for what in ["carried over, and not temperature, api_key", "has a target that is no model"] {
        assert_eq!(told(&notes, what), 1, "{what}: {notes:#?}");
    }
    assert_eq!(told(&notes, "sk-secret"), 0);
}

#[test]
fn a_model_has_the_name_that_its_provider_knows() {
    for (asked, end, noted) in [
        ("openai/responses/gpt-5-pro", "openai/gpt-5-pro", "is asked by chat completions"),
        ("azure/responses/mine", "azure/mine", "is asked by chat completions"),
        ("azure/o_series/mine", "azure/mine", ""),
        ("azure/gpt5_series/mine", "azure/mine", ""),
        ("bedrock/nova/arn:x", "bedrock/arn:x", ""),
        ("bedrock/converse/us-west-2/a.b", "bedrock/a.b", ""),
        ("bedrock/agent/A/B", "", "is asked in a way that is not known here"),
        ("bedrock/mantle/openai.gpt-oss", "", "is asked in a way that is not known here"),
    ] {
        let (config, notes) =
            litellm(&json!({ "model_list": [model("m", asked), model("other", "openai/o")] }));
        assert_eq!(config["aliases"]["m"].as_str().unwrap_or_default(), end, "{asked}");
        if end == "azure/mine" {
            let base_url = config["providers"]["azure"]["base_url"].as_str().unwrap();
            assert!(base_url.contains("/deployments/mine?"), "{base_url}");
        }
        let wanted = usize::from(!noted.is_empty());
        assert_eq!(told(&notes, "completions") + told(&notes, "in a way"), wanted, "{asked}: {notes:#?}");
        assert!(noted.is_empty() || told(&notes, noted) == 1, "{asked}: {notes:#?}");
    }
}

#[test]
fn shares_are_those_of_litellm() {
    for (one, two, weights) in [
        (json!({ "weight": 1 }), json!({ "weight": 0 }), (1, 0)),
        (json!({ "weight": 0.9 }), json!({ "weight": "0.1" }), (9, 1)),
        (json!({ "weight": 3 }), json!({}), (3, 0)),
        (json!({ "weight": 0, "rpm": 200 }), json!({ "rpm": 600 }), (1, 3)),
        (json!({ "tpm": 1000 }), json!({ "tpm": 2000, "rpm": null }), (1, 2)),
        (json!({}), json!({}), (1, 1)),
    ] {
        let list = [weighted("m", "openai/a", &one), weighted("m", "groq/b", &two)];
        let (config, notes) = litellm(&json!({ "model_list": list }));
        let weight = |at: usize| config["aliases"]["m"][at]["weight"].as_u64().unwrap_or(1);
        // One that has all is as good with any.
        let weights = if weights.1 == 0 { (1, 0) } else { weights };
        assert_eq!((weight(0), weight(1)), weights, "{one} {two}");
        assert_eq!(config["fallbacks"]["openai/a"], json!(["groq/b"]));
        let drained = usize::from(weights.1 == 0);
        assert_eq!(told(&notes, "has no share for groq/b"), drained, "{notes:#?}");
        assert_eq!(told(&notes, "is split by chance"), 1 - drained, "{notes:#?}");
    }
    let place =
        |base: &str, weight: u8| weighted("m", "openai/a", &json!({ "api_base": base, "weight": weight }));
    let list = [place("https://one.example", 0), place("https://two.example", 1)];
    let (config, _) = litellm(&json!({ "model_list": list }));
    // What is drained is no deployment beside the other.
    assert_eq!(
        config["aliases"]["m"],
        json!([{ "model": "openai-2/a" }, { "model": "openai/a", "weight": 0 }])
    );
    assert_eq!(config["fallbacks"], json!({ "openai-2/a": ["openai/a"] }));
}
