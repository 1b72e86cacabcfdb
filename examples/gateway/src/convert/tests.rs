mod routes;
mod settings;

use super::{Converted, From, convert, convert_table};
use llm_layers::config::Config;
use proptest::prelude::*;
use serde_json::{Value, json};

fn converted(from: From, text: &str) -> Converted {
    let converted = convert(from, text).unwrap();
    assert!(converted.problems.is_none(), "{}\n{}", converted.problems.unwrap(), converted.toml);
    converted
}

fn notes(converted: &Converted, about: &str) -> usize {
    converted.notes.iter().filter(|note| note.contains(about)).count()
}

/// What Rust makes of it, for what must not depend on how it is spelled.
fn config(converted: &Converted) -> Value {
    toml::from_str(&converted.toml).unwrap()
}

const PROXY: &str = include_str!("../../tests/convert/litellm.yaml");
const SEED: &str = include_str!("../../tests/convert/seed.yaml");

#[test]
fn a_proxy_of_litellms_becomes_a_gateway() {
    let converted = converted(From::LiteLlm, PROXY);
    let config = config(&converted);
    let providers = &config["providers"];
    assert_eq!(providers["anthropic"]["kind"], "anthropic");
    assert_eq!(providers["anthropic"]["api_key"], json!({ "env": "ANTHROPIC_API_KEY" }));
    // Two regions of one deployment can take each other's place.
    let azure = &providers["gpt-4o"]["deployments"];
    assert_eq!(azure.as_array().unwrap().len(), 2);
    assert_eq!(
        azure[0]["base_url"],
        "https://eu.openai.azure.com/openai/deployments/gpt-4o-eu?api-version=2024-10-21"
    );
    assert_eq!(azure[0]["headers"], json!({ "api-key": { "env": "AZURE_EU_KEY" } }));
    assert_eq!(config["aliases"]["gpt-4o"], "gpt-4o/gpt-4o-eu");
    // LiteLLM has no fallbacks for a group's other name.
    assert_eq!(config["aliases"]["smart"], "smart/gpt-4o-eu");
    assert_eq!(&providers["smart"]["deployments"], azure);
    assert_eq!(config["fallbacks"]["smart/gpt-4o-eu"], Value::Null);
    assert_eq!(
        config["aliases"]["fast"],
        json!([{ "model": "openai/gpt-4o-mini" }, { "model": "groq/llama-3.1-8b-instant", "weight": 0 }])
    );
    assert_eq!(
        config["fallbacks"]["openai/gpt-4o-mini"],
        json!({ "otherwise": ["groq/llama-3.1-8b-instant"], "context_window": [], "content_filter": [] })
    );
    assert_eq!(config["aliases"]["local"], "hosted_vllm/meta-llama/Llama-3.1-8B-Instruct");
    let mini = json!({ "input": "0.15", "output": "0.6" });
    assert_eq!(providers["openai"]["models"][0]["price"], mini);
    assert_eq!(
        config["fallbacks"]["gpt-4o/gpt-4o-eu"],
        json!({
            "otherwise": ["anthropic/claude-sonnet-4-5"],
            "context_window": ["anthropic/claude-sonnet-4-5"],
            "content_filter": ["hosted_vllm/meta-llama/Llama-3.1-8B-Instruct"],
        })
    );
    assert_eq!(config["retry"]["retries"], 2);
    assert_eq!(config["timeouts"], json!({ "total": "300s", "whole": "300s" }));
    assert_eq!(config["server"], json!({ "max_in_flight_per_key": 200 }));
    assert_eq!(config["cache"]["ttl"], "600s");
    assert_eq!(config["departments"]["research"]["month_cost"], "250.5");
    assert_eq!(
        config["departments"]["research"]["models"],
        json!(["gpt-4o/gpt-4o-eu", "anthropic/claude-sonnet-4-5"])
    );
    assert_eq!(config["departments"]["everybody"]["day_cost"], "1000");
    assert_eq!(config["keys"][0]["admin"], true);
    assert_eq!(config["keys"][1]["departments"], json!(["research", "key:ada-laptop", "everybody"]));

    for about in [
        "(embeddings)",
        "rpm",
        "routing_strategy",
        "cooldown_time",
        "success_callback",
        "guardrails",
        "max_budget",
        "ANTHROPIC_API_KEY",
        "keys[0]: stands in the file itself",
        "cache_params.password: stands in the file itself",
        "every client but the master key",
    ] {
        assert!(notes(&converted, about) > 0, "{about}: {:#?}", converted.notes);
    }
    let shown = converted.notes.join("\n");
    assert!(!shown.contains("sk-ada-secret") && !shown.contains("hunter2"), "{shown}");
}

/// The only model of a proxy that has one: what it is called, where, and with which key; and what is noted.
fn only(params: &Value) -> (Option<(String, String, Value)>, Vec<String>) {
    let file = json!({ "model_list": [{ "model_name": "m", "litellm_params": params }] });
    let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
    assert!(converted.problems.is_none(), "{}", converted.toml);
    let config = config(&converted);
    let found = config["aliases"]["m"].as_str().map(|end| {
        let provider = &config["providers"][end.split_once('/').unwrap().0];
        assert_eq!(provider["kind"], "openai");
        let base_url = provider["base_url"].as_str().unwrap().to_owned();
        (end.to_owned(), base_url, provider["api_key"]["env"].clone())
    });
    (found, converted.notes)
}

#[test]
fn a_providers_name_is_no_part_of_the_models_wherever_it_is_asked() {
    for (model, base, end, base_url, key) in [
        (
            "databricks/dbrx",
            "https://d.example/serving-endpoints",
            "databricks/dbrx",
            "",
            "DATABRICKS_API_KEY",
        ),
        ("groq/llama", "https://x.example/v1", "groq/llama", "", "GROQ_API_KEY"),
        ("nebius/Qwen/Qwen3", "https://x.example/v1", "nebius/Qwen/Qwen3", "", "NEBIUS_API_KEY"),
        ("huggingface/tgi", "https://x.example", "huggingface/tgi", "https://x.example/v1", "HF_TOKEN"),
        ("huggingface/tgi", "https://x.example/v1/", "huggingface/tgi", "https://x.example/v1", "HF_TOKEN"),
        // By its address LiteLLM knows whose it is, and takes the name as a whole.
        ("meta-llama/scout", "https://api.groq.com/openai/v1", "groq/meta-llama/scout", "", "GROQ_API_KEY"),
    ] {
        let base_url = if base_url.is_empty() { base } else { base_url };
        for told in ["api_base", "base_url"] {
            let (found, notes) = only(&json!({ "model": model, told: base }));
            assert_eq!(found, Some((end.to_owned(), base_url.to_owned(), key.into())), "{model}: {notes:?}");
            assert!(!notes.iter().any(|note| note.contains("is no provider")), "{model}: {notes:?}");
        }
    }
}

#[test]
fn dialects_that_are_not_spoken_and_names_of_nobody_are_told() {
    for base in [None, Some("https://x.example/v1")] {
        let (found, notes) = only(&json!({ "model": "watsonx/granite", "api_base": base }));
        assert_eq!(found, None);
        let told =
            "model_list[0] (m): \"watsonx\" has a dialect that is not spoken here; the model is left out";
        assert!(notes.iter().any(|note| note == told), "{notes:?}");
    }
    let (found, notes) = only(&json!({ "model": "acme/one", "api_base": "https://x.example/v1" }));
    // Nobody's key is for whoever that is.
    let (elsewhere, _) =
        only(&json!({ "model": "acme/one", "api_base": "https://api.perplexity.ai.x.example" }));
    assert_eq!(elsewhere.unwrap().2, Value::Null);
    let base_url = "https://x.example/v1".to_owned();
    assert_eq!(found, Some(("openai_like/acme/one".to_owned(), base_url, Value::Null)));
    assert!(notes.iter().any(|note| note.contains("\"acme\" is no provider")), "{notes:?}");
    let (found, notes) = only(&json!({ "model": "acme/one" }));
    assert_eq!(found, None);
    assert!(notes.iter().any(|note| note.contains("\"acme\" is no provider")), "{notes:?}");
}

#[test]
fn a_key_of_openais_is_for_openais_models() {
    let asked = |model: &str| only(&json!({ "model": model, "api_base": "https://x.example/v1" })).0.unwrap();
    for model in ["llama3", "my-model", "o", "openchat", "o365-bot", "gpt-oss-20b", "gpt-j-6b", "gpt-4all"] {
        let (end, _, key) = asked(model);
        assert_eq!((end, key), (format!("openai_like/{model}"), Value::Null));
    }
    for model in ["gpt-4o", "gpt-4.1", "gpt-5-mini", "o3-mini", "o1", "chatgpt-4o-latest", "ft:gpt-4o:acme"] {
        let (end, _, key) = asked(model);
        assert_eq!((end, key), (format!("openai/{model}"), "OPENAI_API_KEY".into()));
    }
    // The key that is told is told to whom it is for.
    let told =
        json!({ "model": "llama3", "api_base": "https://x.example/v1", "api_key": "os.environ/OWN_KEY" });
    assert_eq!(only(&told).0.unwrap().2, "OWN_KEY");
    // Where nothing else is said, it is OpenAI's.
    let (end, base_url, key) = only(&json!({ "model": "llama3" })).0.unwrap();
    assert_eq!(
        (&*end, &*base_url, key),
        ("openai/llama3", "https://api.openai.com/v1", "OPENAI_API_KEY".into())
    );
}

#[test]
fn headers_that_the_client_writes_itself_are_left_out_and_told() {
    let params = json!({
        "model": "openai/m", "api_base": "http://10.0.0.1/v1",
        "extra_headers": { "X-Team": "a", "Accept": "application/json", "Expect": "100-continue" },
    });
    let model = json!({ "model_name": "m", "litellm_params": params });
    let converted = converted(From::LiteLlm, &json!({ "model_list": [model] }).to_string());
    let headers = config(&converted)["providers"]
        .as_object()
        .unwrap()
        .values()
        .map(|provider| provider["headers"].clone())
        .collect::<Vec<_>>();
    assert_eq!(headers, [json!({ "x-team": "a" })]);
    for header in ["Accept", "Expect"] {
        assert_eq!(notes(&converted, &format!("extra_headers.{header}")), 1, "{:?}", converted.notes);
    }
}

#[test]
fn a_price_is_carried_over_or_missed() {
    let costs = json!({
        "model": "openai/gpt-4o", "input_cost_per_token": 2.5e-6, "output_cost_per_token": "0.00001",
        "cache_read_input_token_cost": 1.25e-6, "cache_creation_input_token_cost": 3e-6,
    });
    let (_, told) = only(&costs);
    assert!(!told.iter().any(|note| note.contains("cost") || note.contains("price")), "{told:?}");
    let noted = |params: Value, info: Value, what: &str| {
        let model = json!({ "model_name": "m", "litellm_params": params, "model_info": info });
        let file = json!({ "model_list": [model] });
        let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
        assert_eq!(notes(&converted, what), 1, "{what}: {:#?}", converted.notes);
    };
    let model = || json!({ "model": "openai/gpt-4o" });
    noted(model(), json!({}), "name LiteLLM's list of prices in [prices]");
    noted(model(), json!({ "base_model": "azure/gpt-4o" }), "base_model: is not carried over");
    noted(model(), json!({ "input_cost_per_token": -1 }), "input_cost_per_token: is no price");
    let params = json!({ "model": "openai/gpt-4o", "output_cost_per_token": "much" });
    noted(params, json!({}), "output_cost_per_token: is no price");
}

#[test]
fn a_model_has_one_price_and_others_are_told() {
    for second in ["https://one.example/", "https://two.example/"] {
        let model = |base: &str, cost| {
            let params = json!({ "model": "azure/gpt-4o", "api_base": base, "input_cost_per_token": cost });
            json!({ "model_name": "m", "litellm_params": params })
        };
        let first = "https://one.example/";
        let list = [model(first, Value::Null), model(second, json!(1e-6)), model(second, json!(2e-6))];
        let converted = convert_table(From::LiteLlm, json!({ "model_list": list }).as_object().unwrap());
        let config = config(&converted);
        let (provider, _) = config["aliases"]["m"].as_str().unwrap().split_once('/').unwrap();
        assert_eq!(config["providers"][provider]["models"][0]["price"], json!({ "input": "1" }));
        assert_eq!(notes(&converted, "has more than one price"), 1, "{:#?}", converted.notes);
    }
}

#[test]
fn models_of_azures_foundry_are_asked_where_they_are() {
    let key = |name: &str| json!({ "env": name });
    for (params, base_url, header, bearer) in [
        (
            json!({ "api_base": "https://x.services.ai.azure.com/", "api_version": "2024-05-01-preview" }),
            "https://x.services.ai.azure.com/models?api-version=2024-05-01-preview",
            key("AZURE_AI_API_KEY"),
            Value::Null,
        ),
        (
            json!({ "api_base": "https://x.services.ai.azure.com/models/chat/completions?api-version=1", "api_key": "os.environ/OWN" }),
            "https://x.services.ai.azure.com/models?api-version=1",
            key("OWN"),
            Value::Null,
        ),
        (
            json!({ "api_base": "https://m.eastus.models.ai.azure.com/v1" }),
            "https://m.eastus.models.ai.azure.com/v1",
            Value::Null,
            key("AZURE_AI_API_KEY"),
        ),
    ] {
        let mut params = params;
        params["model"] = "azure_ai/mistral-large".into();
        let file = json!({ "model_list": [{ "model_name": "m", "litellm_params": params }] });
        let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
        assert!(converted.problems.is_none(), "{}", converted.toml);
        let config = config(&converted);
        assert_eq!(config["aliases"]["m"], "azure_ai/mistral-large");
        let provider = &config["providers"]["azure_ai"];
        assert_eq!(
            (&provider["base_url"], &provider["headers"]["api-key"], &provider["api_key"]),
            (&json!(base_url), &header, &bearer)
        );
    }
    for (model, base) in
        [("azure_ai/claude-sonnet-4-5", Some("https://x.services.ai.azure.com")), ("azure_ai/phi-4", None)]
    {
        let (found, notes) = only(&json!({ "model": model, "api_base": base }));
        assert_eq!(found, None);
        assert!(notes.iter().any(|note| note.contains("left out")), "{notes:?}");
    }
}

#[test]
fn the_seeds_cents_become_dollars() {
    let converted = converted(From::Seed, SEED);
    let config = config(&converted);
    assert_eq!(config["departments"]["sales"]["day_cost"], "5");
    assert_eq!(config["departments"]["sales"]["month_cost"], "99.99");
    assert_eq!(config["departments"]["sales"]["day_tokens"], 100_000);
    assert_eq!(config["departments"]["sales"]["models"], json!(["deepseek/deepseek-chat"]));
    let chat = json!({ "input": "0.27", "output": "1.1" });
    assert_eq!(config["providers"]["deepseek"]["models"][0]["price"], chat);
    assert_eq!(config["aliases"]["fast"], "deepseek/deepseek-chat");
    assert_eq!(config["fallbacks"]["deepseek/deepseek-chat"], json!(["openai/gpt-4o-mini"]));
    assert_eq!(config["keys"][0]["trusted"], true);
    assert_eq!(config["cache"]["secret"], json!({ "env": "CACHE_SECRET" }));
}

#[test]
fn patterns_are_left_out_where_one_model_is_meant() {
    let seed = "llm:\n  providers: { echo: { models: { '*': { cost_per_1k_input: 1 }, m: { cost_per_1k_input: 1 } } } }\n  \
                model_aliases: { any: 'echo/*', one: echo/m }\n  fallbacks: { 'echo/*': [echo/m], echo/m: ['echo/x*', echo/y] }\n";
    let converted = converted(From::Seed, seed);
    let config = config(&converted);
    assert_eq!(config["providers"]["echo"]["models"].as_array().unwrap().len(), 1);
    assert_eq!(config["aliases"], json!({ "one": "echo/m" }));
    assert_eq!(config["fallbacks"], json!({ "echo/m": ["echo/y"] }));
    assert_eq!(notes(&converted, "has a pattern"), 4, "{:#?}", converted.notes);
}

#[test]
fn what_is_no_configuration_is_told_by_its_line_and_not_shown() {
    for text in ["- a\n- b", "just text", "", "a: [sk-secret\nb: }"] {
        let problem = convert(From::LiteLlm, text).unwrap_err();
        assert!(!problem.contains("sk-secret"), "{problem}");
    }
}

#[test]
fn an_empty_list_of_models_is_a_gateway_that_echoes() {
    let converted = converted(From::LiteLlm, "model_list: []");
    assert_eq!(config(&converted)["providers"]["echo"]["kind"], "echo");
}

#[test]
fn whoever_is_blocked_stays_so() {
    let text = r#"
        model_list: [{ model_name: m, litellm_params: { model: openai/gpt-4o } }]
        teams: [{ team_id: a, models: [m], blocked: true }, { team_id: b, blocked: false }]
        keys: [{ key: sk-one, team_id: a }, { key: sk-two, team_id: b, key_alias: two, blocked: true }, { key: sk-three, team_id: b }]
    "#;
    let converted = converted(From::LiteLlm, text);
    let config = config(&converted);
    let none = json!({ "models": [] });
    assert_eq!(config["departments"], json!({ "a": none, "b": {}, "key:two": none }));
    let departments: Vec<_> =
        config["keys"].as_array().unwrap().iter().map(|key| &key["departments"]).collect();
    assert_eq!(departments, [&json!(["a"]), &json!(["b", "key:two"]), &json!(["b"])]);
    assert_eq!(notes(&converted, "is blocked"), 2);
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "gpt-4o",
            "fast",
            "a/b",
            "openai/gpt-4o",
            "*",
            "openai/*",
            "x*y",
            " ",
            "",
            "everybody",
            "ünï cödé",
            "q\"uo\\te",
            "a.b",
            "echo",
            "anthropic",
            "os.environ/X",
        ])
        .prop_map(ToOwned::to_owned),
        "[a-z]{1,6}",
        ".{0,12}",
    ]
}

fn anything() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        (0.0..1e12).prop_map(Into::into),
        name().prop_map(Into::into),
        prop::sample::select(vec![
            "1d",
            "30d",
            "7d",
            "redis",
            "local",
            "os.environ/KEY",
            "https://x.example",
            "sk-1"
        ])
        .prop_map(Into::into),
        prop::collection::vec(name(), 0..3).prop_map(Into::into),
    ]
}

fn entries(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::vec((prop::sample::select(names), anything()), 0..6).prop_map(|all| {
        Value::Object(all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    })
}

fn model() -> impl Strategy<Value = Value> {
    let providers = prop::sample::select(vec![
        "",
        "openai/",
        "azure/",
        "anthropic/",
        "gemini/",
        "vertex_ai/",
        "bedrock/",
        "bedrock/converse/",
        "ollama/",
        "cohere/",
        "groq/",
        "hosted_vllm/",
        "databricks/",
        "heroku/",
        "watsonx/",
        "azure_ai/",
        "nobody/",
    ]);
    let params = entries(&[
        "api_key",
        "api_base",
        "api_version",
        "rpm",
        "weight",
        "timeout",
        "organization",
        "extra_headers",
        "aws_region_name",
        "vertex_project",
        "custom_llm_provider",
        "input_cost_per_token",
        "temperature",
    ]);
    let info = entries(&["mode", "input_cost_per_token", "output_cost_per_token", "id"]);
    (name(), providers, name(), params, info).prop_map(|(group, provider, model, mut params, info)| {
        params["model"] = format!("{provider}{model}").into();
        json!({ "model_name": group, "litellm_params": params, "model_info": info })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn whatever_litellm_is_told_what_comes_out_is_valid(
        models in prop::collection::vec(model(), 0..6),
        aliases in prop::collection::hash_map(name(), name(), 0..4),
        fallbacks in prop::collection::vec((name(), prop::collection::vec(name(), 0..3)), 0..4),
        litellm in entries(&[
            "num_retries", "request_timeout", "cache", "max_budget", "budget_duration", "default_fallbacks", "drop_params",
        ]),
        params in entries(&["type", "host", "port", "password", "ttl", "mode"]),
        router in entries(&["timeout", "stream_timeout", "retry_after", "routing_strategy", "num_retries"]),
        master in prop::option::of(anything()),
        teams in prop::collection::vec(entries(&["team_id", "team_alias", "max_budget", "budget_duration", "models"]), 0..3),
        users in prop::collection::vec(entries(&["user_id", "max_budget", "budget_duration", "models"]), 0..3),
        keys in prop::collection::vec(entries(&["key", "key_alias", "user_id", "team_id", "max_budget", "budget_duration", "models"]), 0..3),
    ) {
        let mut litellm = litellm;
        litellm["cache_params"] = params;
        let fallbacks: Vec<_> = fallbacks.into_iter().map(|(model, targets)| json!({ model: targets })).collect();
        litellm["fallbacks"] = fallbacks.clone().into();
        litellm["context_window_fallbacks"] = fallbacks.into();
        let mut router = router;
        router["model_group_alias"] = json!(aliases);
        let mut file = json!({
            "model_list": models, "litellm_settings": litellm, "router_settings": router, "teams": teams, "users": users,
            "keys": keys,
        });
        if let Some(master) = master {
            file["general_settings"] = json!({ "master_key": master });
        }
        let converted = convert_table(From::LiteLlm, file.as_object().unwrap());
        prop_assert!(converted.problems.is_none(), "{}\n{}\n{file}", converted.problems.unwrap(), converted.toml);
        prop_assert!(converted.notes.iter().all(|note| !note.contains('\n')));
    }

    #[test]
    fn whatever_the_seed_is_told_what_comes_out_is_valid(
        providers in prop::collection::hash_map(
            name(), entries(&["type", "base_url", "api_key", "models", "timeout", "enabled"]), 0..4,
        ),
        aliases in prop::collection::hash_map(name(), name(), 0..4),
        fallbacks in prop::collection::hash_map(name(), prop::collection::vec(name(), 0..3), 0..3),
        cache in entries(&["enabled", "backend", "ttl", "similarity_threshold"]),
        quotas in prop::collection::vec(entries(&["department_id", "quota_type", "period", "limit_value"]), 0..4),
    ) {
        let file = json!({
            "providers": providers, "model_aliases": aliases, "fallbacks": fallbacks, "cache": cache, "quotas": quotas,
        });
        let converted = convert_table(From::Seed, file.as_object().unwrap());
        prop_assert!(converted.problems.is_none(), "{}\n{}\n{file}", converted.problems.unwrap(), converted.toml);
    }
}

#[test]
fn what_is_written_is_read_again_as_it_was() {
    let converted = converted(From::LiteLlm, PROXY);
    let read = Config::parse_with(&converted.toml, &|name| Some(super::sample(name))).unwrap();
    assert_eq!(read.keys.unwrap().len(), 2);
}
