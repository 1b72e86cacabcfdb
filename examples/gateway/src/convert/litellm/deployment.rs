//! One entry of `model_list`.

use super::{
    super::{
        draft::{Draft, Place, Price, Secret},
        read::{number, price, table, text},
    },
    LEFT_OUT,
    endpoint::Endpoint,
    known, secret, sent,
};
use llm_layers::config::may_be_told;
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

/// What LiteLLM calls the rates of a [`Price`], in their order.
const RATES: [&str; 4] = [
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
];

pub(super) struct Deployment {
    pub(super) kind: &'static str,
    /// What LiteLLM calls the provider.
    pub(super) name: String,
    pub(super) model: String,
    pub(super) place: Place,
    /// 0 where there is none.
    pub(super) weight: f64,
    pub(super) rpm: f64,
    pub(super) tpm: f64,
    pub(super) price: Price,
    pub(super) timeout: Option<Duration>,
}

impl Deployment {
    /// `None`, which is told, for one that nobody here can ask.
    pub(super) fn read(path: &str, entry: &Map<String, Value>, draft: &mut Draft) -> Option<Self> {
        let empty = Map::new();
        let params = table(entry.get("litellm_params")).unwrap_or(&empty);
        let info = table(entry.get("model_info")).unwrap_or(&empty);
        let mode = text(info.get("mode"));
        if mode.as_deref().is_some_and(|mode| !matches!(mode, "chat" | "completion" | "responses")) {
            draft.note(path, "is not for chat, and is left out");
            return None;
        }
        let Some(asked) = text(params.get("model")) else {
            draft.note(path, "has no litellm_params.model, and is left out");
            return None;
        };
        let endpoint = Endpoint::read(path, &asked, params, draft)?;
        let params_path = format!("{path}.litellm_params");
        let (api_key, headers) = credentials(&params_path, params, &endpoint, draft);
        note_the_rest(path, params, info, draft);
        let price = rates(path, info, params, draft);
        let Endpoint { kind, base_url, name, model, .. } = endpoint;
        let [weight, rpm, tpm] = ["weight", "rpm", "tpm"].map(|name| {
            known(&format!("{params_path}.{name}"), params.get(name), number, draft).unwrap_or(0.0)
        });
        let timeout = known(&format!("{params_path}.timeout"), params.get("timeout"), seconds, draft);
        Some(Self {
            kind,
            name,
            model,
            place: Place { base_url, api_key, headers },
            weight,
            rpm,
            tpm,
            price,
            timeout,
        })
    }
}

/// The key, and headers that stand for one or beside it.
fn credentials(
    path: &str,
    params: &Map<String, Value>,
    endpoint: &Endpoint,
    draft: &mut Draft,
) -> (Option<Secret>, BTreeMap<String, Secret>) {
    let mut headers = BTreeMap::new();
    let mut api_key = match text(params.get("api_key")) {
        Some(key) => secret(&format!("{path}.api_key"), &key, draft),
        None => (!endpoint.variable.is_empty()).then(|| Secret::Env(endpoint.variable.to_owned())),
    };
    if endpoint.has_own_header()
        && let Some(key) = api_key.take()
    {
        headers.insert("api-key".to_owned(), key);
    }
    if let Some(organization) = text(params.get("organization")) {
        let organization = sent(&format!("{path}.organization"), &organization, draft);
        headers.extend(organization.map(|sent| ("openai-organization".to_owned(), sent)));
    }
    for (header, value) in table(params.get("extra_headers")).into_iter().flatten() {
        match text(Some(value)).and_then(|value| Secret::read(&value)).filter(|_| may_be_told(header)) {
            Some(value) => drop(headers.insert(header.to_ascii_lowercase(), value)),
            None => draft.note(
                &format!("{path}.extra_headers.{header}"),
                "cannot be told to a provider, and is left out",
            ),
        }
    }
    (api_key, headers)
}

fn note_the_rest(path: &str, params: &Map<String, Value>, info: &Map<String, Value>, draft: &mut Draft) {
    for name in params.keys() {
        match name.as_str() {
            "model"
            | "api_key"
            | "api_base"
            | "base_url"
            | "api_version"
            | "custom_llm_provider"
            | "organization"
            | "extra_headers"
            | "timeout"
            | "weight"
            | "vertex_project"
            | "vertex_location"
            | "aws_region_name"
            | "base_model" => {}
            name if RATES.contains(&name) => {}
            "rpm" | "tpm" | "max_parallel_requests" => draft.note(
                &format!("{path}.litellm_params.{name}"),
                "limits are of departments, in a day or a month; a provider's own limit is met by fallbacks",
            ),
            _ => draft.note(&format!("{path}.litellm_params.{name}"), LEFT_OUT),
        }
    }
    for name in info.keys().map(String::as_str) {
        if !["id", "mode", "base_model"].contains(&name) && !RATES.contains(&name) {
            draft.note(&format!("{path}.model_info.{name}"), LEFT_OUT);
        }
    }
}

/// What a deployment costs by its own words.
fn rates(path: &str, info: &Map<String, Value>, params: &Map<String, Value>, draft: &mut Draft) -> Price {
    let told = |name| info.get(name).or_else(|| params.get(name)).filter(|told| !told.is_null());
    let [input, output, cache_read, cache_write] = RATES.map(|name| {
        let told = told(name);
        let rate = price(told, 6);
        if told.is_some() && rate.is_none() {
            draft.note(&format!("{path}.{name}"), "is no price, and is left out");
        }
        rate
    });
    let price = Price { input, output, cache_read, cache_write };
    if price == Price::default() && told("base_model").is_some() {
        draft
            .note(&format!("{path}.base_model"), "is not carried over: give the model the price of that one");
    }
    price
}

pub(super) fn seconds(value: Option<&Value>) -> Option<Duration> {
    number(value)
        .filter(|seconds| *seconds > 0.0)
        .map(|seconds| Duration::from_secs_f64(seconds.min(31_536_000.0)))
}
