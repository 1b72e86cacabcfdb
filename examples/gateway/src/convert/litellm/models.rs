//! `model_list`: groups of deployments, as providers and aliases.

use super::{
    super::{
        draft::{self, Draft, Fallback, Place, Price, Provider, Secret},
        read::{number, price, table, text, texts, whole},
    },
    LEFT_OUT,
    providers::{COMPATIBLE, DIALECTS, NOT_SPOKEN, SELF_HOSTED},
    secret,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

/// OpenAI's models, but for what follows after a dash or a dot: for others no key of theirs is told to whoever is at an `api_base`.
const OPENAI: &[&str] = &[
    "gpt-3.5-turbo",
    "gpt-4",
    "gpt-4o",
    "gpt-5",
    "chatgpt",
    "o1",
    "o3",
    "o4",
    "codex-mini",
    "davinci-002",
    "babbage-002",
];

/// What LiteLLM calls the rates of a [`Price`], in their order.
const RATES: [&str; 4] = [
    "input_cost_per_token",
    "output_cost_per_token",
    "cache_read_input_token_cost",
    "cache_creation_input_token_cost",
];

const SEVERAL_PRICES: &str = "has more than one price, of which the first counts";

struct Deployment {
    kind: &'static str,
    /// What LiteLLM calls the provider.
    name: String,
    model: String,
    place: Place,
    weight: u64,
    price: Price,
    timeout: Option<Duration>,
}

pub(super) fn list(list: Option<&Value>, draft: &mut Draft) {
    let mut groups: BTreeMap<String, Vec<Deployment>> = BTreeMap::new();
    for (at, entry) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = format!("model_list[{at}]");
        let Some(entry) = table(Some(entry)) else {
            draft.note(&path, "is not a model");
            continue;
        };
        let Some(group) = text(entry.get("model_name")) else {
            draft.note(&path, "has no model_name, and is left out");
            continue;
        };
        let path = format!("{path} ({group})");
        for name in entry
            .keys()
            .filter(|name| !["model_name", "litellm_params", "model_info"].contains(&name.as_str()))
        {
            draft.note(&format!("{path}.{name}"), LEFT_OUT);
        }
        if let Some(deployment) = deployment(&path, entry, draft) {
            groups.entry(group).or_default().push(deployment);
        }
    }
    let mut known: BTreeMap<(&'static str, Place, Option<Duration>), String> = BTreeMap::new();
    for (group, deployments) in groups {
        let ends = match one_provider(&group, &deployments, draft) {
            Some(end) => vec![(end, 1)],
            None => {
                let each = deployments.into_iter().map(|one| (one.weight, place(one, &mut known, draft)));
                each.map(|(weight, end)| (end, weight)).collect::<Vec<_>>()
            }
        };
        name_group(&group, ends, draft);
    }
    draft.drop_aliases_of_models();
    if draft.providers.is_empty() {
        draft.note("model_list", "has nothing that could be carried over; an echo stands in for it");
        let echo = Provider { kind: "echo", ..Provider::default() };
        draft.providers.insert("echo".to_owned(), echo);
        return;
    }
    let mut prices = draft.providers.values().flat_map(|provider| provider.models.values());
    if prices.any(|price| *price == Price::default()) {
        draft.note(
            "model_list",
            "models without a price of their own have none here: name LiteLLM's list of prices in [prices]",
        );
    }
}

/// A group whose deployments have the same model, and so can take each other's place.
fn one_provider(group: &str, deployments: &[Deployment], draft: &mut Draft) -> Option<String> {
    let [first, rest @ ..] = deployments else { return None };
    let alike = |one: &Deployment| {
        let Deployment { kind, model, weight, timeout, .. } = one;
        (*kind, model.as_str(), *weight, *timeout)
            == (first.kind, first.model.as_str(), first.weight, first.timeout)
    };
    if rest.is_empty() || !rest.iter().all(alike) || first.model.contains('*') {
        return None;
    }
    let mut places: Vec<Place> = deployments.iter().map(|one| one.place.clone()).collect();
    let default = draft::dialect(first.kind).and_then(|dialect| dialect.default_base_url());
    for place in &mut places {
        place.base_url = place.base_url.take().or_else(|| default.map(ToOwned::to_owned));
    }
    places.sort();
    places.dedup();
    if places.len() < 2 {
        return None;
    }
    let name = draft.free_name(group);
    let end = format!("{name}/{}", first.model);
    let mut price = Price::default();
    for one in deployments {
        if !settle(&mut price, &one.price) {
            draft.note(&end, SEVERAL_PRICES);
        }
    }
    let models = BTreeMap::from([(first.model.clone(), price)]);
    draft.providers.insert(name, Provider { kind: first.kind, places, models, total: first.timeout });
    Some(end)
}

/// The model of a deployment that is a provider, or one more model of one that is there already.
fn place(
    one: Deployment,
    known: &mut BTreeMap<(&'static str, Place, Option<Duration>), String>,
    draft: &mut Draft,
) -> String {
    let Deployment { kind, name, model, place, weight: _, price, timeout } = one;
    let identity = (kind, place.clone(), timeout);
    let name = known.entry(identity).or_insert_with(|| {
        let name = draft.free_name(&name);
        let provider = Provider { kind, places: vec![place], models: BTreeMap::new(), total: timeout };
        draft.providers.insert(name.clone(), provider);
        name
    });
    let end = format!("{name}/{model}");
    let provider = draft.providers.get_mut(name).expect("was put there");
    if !model.contains('*') && !settle(provider.models.entry(model).or_default(), &price) {
        draft.note(&end, SEVERAL_PRICES);
    }
    end
}

/// A model has one price here, which is the first that is told; `false` for another one.
fn settle(known: &mut Price, told: &Price) -> bool {
    if *known == Price::default() {
        known.clone_from(told);
    }
    *told == Price::default() || told == known
}

fn name_group(group: &str, ends: Vec<(String, u64)>, draft: &mut Draft) {
    let path = format!("model_list ({group})");
    if group.contains('*') || ends.iter().any(|(end, _)| end.contains('*')) {
        // Any model of a provider can be asked for by `provider/model`.
        let is_served = ends.iter().all(|(end, _)| end == group && end.ends_with("/*"));
        if !is_served {
            let ends: Vec<_> = ends.iter().map(|(end, _)| end.as_str()).collect();
            draft
                .note(&path, format_args!("patterns do not carry names over; ask for {}", ends.join(" or ")));
        }
        return;
    }
    let mut shares: Vec<(String, u64)> = Vec::new();
    for (end, weight) in ends {
        match shares.iter_mut().find(|(known, _)| *known == end) {
            Some((_, known)) => *known += weight,
            None => shares.push((end, weight)),
        }
    }
    if shares.len() > 1 {
        draft.note(
            &path,
            "is split by chance among models of different providers, each the fallback of the others",
        );
        let all: Vec<String> = shares.iter().map(|(end, _)| end.clone()).collect();
        for end in &all {
            draft.fallbacks.entry(end.clone()).or_default().otherwise.extend(all.iter().cloned());
        }
    }
    if shares.len() != 1 || shares[0].0 != group {
        draft.aliases.insert(group.to_owned(), shares);
    }
}

fn deployment(path: &str, entry: &Map<String, Value>, draft: &mut Draft) -> Option<Deployment> {
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
    let params_path = format!("{path}.litellm_params");
    let told = text(params.get("api_base")).or_else(|| text(params.get("base_url")));
    let (name, model) = split(path, &asked, text(params.get("custom_llm_provider")), told.as_deref(), draft);
    let own_base = |draft: &mut Draft| base(&params_path, params, draft);
    let mut headers = BTreeMap::new();
    let (kind, base_url, variable, model): (&'static str, Option<String>, &str, String) = match name.as_str()
    {
        "azure" | "azure_text" => {
            let base = own_base(draft)?;
            let version = text(params.get("api_version")).unwrap_or_else(|| "2025-02-01-preview".to_owned());
            let base = base.trim_end_matches('/');
            let url = match base.contains("/openai/v1") {
                true => base.to_owned(),
                false => format!("{base}/openai/deployments/{model}?api-version={version}"),
            };
            ("openai", Some(url), "AZURE_API_KEY", model)
        }
        "azure_ai" if !model.starts_with("claude") => {
            let url = foundry(&own_base(draft)?, text(params.get("api_version")).as_deref());
            ("openai", Some(url), "AZURE_AI_API_KEY", model)
        }
        name if name == "azure_ai" || NOT_SPOKEN.contains(&name) => {
            draft.note(
                path,
                format_args!("{name:?} has a dialect that is not spoken here; the model is left out"),
            );
            return None;
        }
        name => {
            let self_hosted = SELF_HOSTED.iter().find(|(known, ..)| *known == name);
            let compatible = COMPATIBLE.iter().find(|(known, ..)| *known == name);
            let dialect = DIALECTS.iter().find(|(known, ..)| *known == name);
            match (self_hosted, compatible, dialect) {
                (Some((_, ending, variable)), ..) => {
                    let base = own_base(draft)?;
                    let base = base.trim_end_matches('/');
                    let base = base.strip_suffix(ending).unwrap_or(base);
                    ("openai", Some(format!("{base}{ending}")), variable, model)
                }
                (_, Some((_, url, variable)), _) => {
                    let url = if told.is_some() { own_base(draft)? } else { (*url).to_owned() };
                    ("openai", Some(url), variable, model)
                }
                (.., Some((_, kind, variable))) => {
                    let (base_url, model) = native(&params_path, kind, params, model, draft)?;
                    (kind, base_url, variable, model)
                }
                (None, None, None) => {
                    draft.note(
                        path,
                        format_args!("{name:?} is no provider that is known here; the model is left out"),
                    );
                    return None;
                }
            }
        }
    };
    if model.trim().is_empty() || !Draft::can_be_asked(kind, base_url.as_deref()) {
        draft.note(path, "its address or its model cannot be used, and it is left out");
        return None;
    }
    let mut api_key = match text(params.get("api_key")) {
        Some(key) => secret(&format!("{params_path}.api_key"), &key, draft),
        None => (!variable.is_empty()).then(|| Secret::Env(variable.to_owned())),
    };
    let has_own_header = match name.as_str() {
        "azure_ai" => base_url.as_deref().is_some_and(is_foundry),
        name => name.starts_with("azure"),
    };
    if has_own_header && let Some(key) = api_key.take() {
        headers.insert("api-key".to_owned(), key);
    }
    if let Some(organization) = text(params.get("organization")).and_then(|text| Secret::read(&text)) {
        headers.insert("openai-organization".to_owned(), organization);
    }
    for (header, value) in table(params.get("extra_headers")).into_iter().flatten() {
        let header_path = format!("{params_path}.extra_headers");
        match text(Some(value)).and_then(|value| Secret::read(&value)).filter(|_| may_be_told(header)) {
            Some(value) => drop(headers.insert(header.to_ascii_lowercase(), value)),
            None => draft.note(&header_path, "one of them cannot be told to a provider, and is left out"),
        }
    }
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
                &format!("{params_path}.{name}"),
                "limits are of departments, in a day or a month; a provider's own limit is met by fallbacks",
            ),
            _ => draft.note(&format!("{params_path}.{name}"), LEFT_OUT),
        }
    }
    for name in info.keys().map(String::as_str) {
        if !["id", "mode", "base_model"].contains(&name) && !RATES.contains(&name) {
            draft.note(&format!("{path}.model_info.{name}"), LEFT_OUT);
        }
    }
    let price = rates(path, info, params, draft);
    Some(Deployment {
        kind,
        name,
        model,
        place: Place { base_url, api_key, headers },
        weight: whole(params.get("weight")).filter(|weight| (1..=1_000_000).contains(weight)).unwrap_or(1),
        price,
        timeout: seconds(params.get("timeout")),
    })
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

/// Provider and model: as they are written, or by what LiteLLM makes of a bare name. What it knows as a provider's name is no
/// part of the model's, wherever that is asked.
fn split(
    path: &str,
    asked: &str,
    provider: Option<String>,
    base: Option<&str>,
    draft: &mut Draft,
) -> (String, String) {
    let known = |name: &str| {
        name.starts_with("azure")
            || NOT_SPOKEN.contains(&name)
            || SELF_HOSTED.iter().chain(COMPATIBLE).chain(DIALECTS).any(|(known, ..)| *known == name)
    };
    match (provider, asked.split_once('/')) {
        (Some(provider), Some((prefix, model))) if prefix == provider => (provider, model.to_owned()),
        (Some(provider), _) => (provider, asked.to_owned()),
        (None, Some((prefix, model))) if known(prefix) || base.is_none() => {
            (prefix.to_owned(), model.to_owned())
        }
        (None, slash) => {
            let begins = |with: &[&str]| with.iter().any(|with| asked.starts_with(with));
            let is_there = |url| {
                let rest = base.and_then(|base| base.strip_prefix(url));
                // No longer name of a host, which may be anybody's.
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            let there = COMPATIBLE.iter().find(|(_, url, _)| is_there(*url));
            let provider = match there {
                Some((name, ..)) => name,
                // LiteLLM asks nobody, and no key of another provider's is for whoever that is.
                None if slash.is_some() => "openai_like",
                _ if begins(&["claude"]) => "anthropic",
                _ if begins(&["command"]) => "cohere",
                _ if begins(&["gemini"]) => "vertex_ai",
                _ if base.is_none() || is_openais(asked) => "openai",
                _ => "openai_like",
            };
            if let (Some((prefix, _)), None) = (slash, there) {
                draft.note(
                    path,
                    format_args!(
                        "{prefix:?} is no provider that is known here; the model is called {asked:?}"
                    ),
                );
            }
            (provider.to_owned(), asked.to_owned())
        }
    }
}

/// Where Azure's foundry has its models.
fn foundry(base: &str, version: Option<&str>) -> String {
    let (base, query) = base.split_once('?').unwrap_or((base, ""));
    let mut url = base.trim_end_matches('/').trim_end_matches("/chat/completions").to_owned();
    if is_foundry(&url) && !url.ends_with("/models") {
        url += "/models";
    }
    match (query, version) {
        ("", None) => url,
        ("", Some(version)) => format!("{url}?api-version={version}"),
        (query, _) => format!("{url}?{query}"),
    }
}

/// Where a key goes into a header of Azure's own.
fn is_foundry(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = host.split(['/', '?', ':']).next().unwrap_or_default();
    host.ends_with(".services.ai.azure.com") || host.ends_with(".openai.azure.com")
}

fn is_openais(model: &str) -> bool {
    let model = model.strip_prefix("ft:").unwrap_or(model);
    let ends = |rest: &str| rest.is_empty() || rest.starts_with(['-', '.', ':']);
    OPENAI.iter().any(|name| model.strip_prefix(*name).is_some_and(ends))
}

/// Where a provider with a dialect of its own is; `None` for where it always is.
fn native(
    path: &str,
    kind: &str,
    params: &Map<String, Value>,
    model: String,
    draft: &mut Draft,
) -> Option<(Option<String>, String)> {
    let told = params.contains_key("api_base") || params.contains_key("base_url");
    match kind {
        "bedrock" => {
            let model = ["converse/", "invoke/", "converse_like/"]
                .iter()
                .find_map(|route| model.strip_prefix(route))
                .unwrap_or(&model)
                .to_owned();
            let is_region = |text: &str| text.split('-').count() >= 3 && !text.contains('.');
            let (in_name, model) = match model.split_once('/') {
                Some((region, model)) if is_region(region) => (Some(region.to_owned()), model.to_owned()),
                _ => (None, model),
            };
            let region =
                match text(params.get("aws_region_name")).filter(|text| !text.starts_with("os.environ/")) {
                    Some(region) => region,
                    None => in_name.unwrap_or_else(|| {
                        draft.note(path, "names no region; us-east-1 is written");
                        "us-east-1".to_owned()
                    }),
                };
            draft.note(path, "is asked with an API key of Bedrock; AWS's own signatures are not made");
            let url = match told {
                true => base(path, params, draft)?,
                false => format!("https://bedrock-runtime.{region}.amazonaws.com"),
            };
            Some((Some(url), model))
        }
        "vertex" => {
            let plain = |name| text(params.get(name)).filter(|text| !text.starts_with("os.environ/"));
            let location = plain("vertex_location").unwrap_or_else(|| "us-central1".to_owned());
            let project = plain("vertex_project").unwrap_or_else(|| {
                draft.note(path, "its project is not in the file; write it into base_url");
                "PROJECT".to_owned()
            });
            draft.note(path, "is asked with an access token, which must be renewed within the hour");
            let host = match location.as_str() {
                "global" => "aiplatform.googleapis.com".to_owned(),
                location => format!("{location}-aiplatform.googleapis.com"),
            };
            Some((Some(format!("https://{host}/v1/projects/{project}/locations/{location}")), model))
        }
        "anthropic" if told => {
            let base = base(path, params, draft)?;
            let base = base.trim_end_matches('/').trim_end_matches("/messages");
            let url = if base.ends_with("/v1") { base.to_owned() } else { format!("{base}/v1") };
            Some((Some(url), model))
        }
        _ if told => Some((Some(base(path, params, draft)?), model)),
        _ => Some((None, model)),
    }
}

/// The address that is told. One that only the environment knows is marked, for it is no secret here.
fn base(path: &str, params: &Map<String, Value>, draft: &mut Draft) -> Option<String> {
    let Some(base) = text(params.get("api_base")).or_else(|| text(params.get("base_url"))) else {
        draft.note(path, "has no api_base, and is left out");
        return None;
    };
    match base.strip_prefix("os.environ/") {
        None => Some(base),
        Some(variable) => {
            let variable: String = variable
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
                .collect();
            let variable = variable.trim_matches('-');
            draft.note(
                &format!("{path}.api_base"),
                "is in the environment; write it where base_url ends in .invalid",
            );
            Some(format!("https://{variable}.invalid"))
        }
    }
}

fn may_be_told(header: &str) -> bool {
    const OURS: [&str; 10] = [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "x-request-id",
    ];
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !header.is_empty() && header.bytes().all(plain) && !OURS.contains(&header.to_ascii_lowercase().as_str())
}

pub(super) fn seconds(value: Option<&Value>) -> Option<Duration> {
    number(value)
        .filter(|seconds| *seconds > 0.0)
        .map(|seconds| Duration::from_secs_f64(seconds.min(31_536_000.0)))
}

/// `model_group_alias` and `model_alias_map`.
pub(super) fn aliases(path: &str, settings: &Map<String, Value>, draft: &mut Draft) {
    for table_name in ["model_group_alias", "model_alias_map"] {
        for (name, target) in table(settings.get(table_name)).into_iter().flatten() {
            let path = format!("{path}.{table_name}.{name}");
            let told = table(Some(target)).map_or(Some(target), |table| table.get("model"));
            let target = text(told).unwrap_or_default();
            let ends = draft.aliases.get(&target).cloned();
            let ends = ends.or_else(|| draft.is_served(&target).then(|| vec![(target.clone(), 1)]));
            match ends {
                _ if name.trim().is_empty()
                    || name.contains('*')
                    || draft.is_served(name)
                    || draft.aliases.contains_key(name) =>
                {
                    draft.note(&path, "its name is taken or cannot be used, and it is left out");
                }
                Some(ends) => drop(draft.aliases.insert(name.clone(), ends)),
                None => draft.note(&path, "leads to no model, and is left out"),
            }
        }
    }
}

pub(super) fn fallbacks(path: &str, settings: &Map<String, Value>, draft: &mut Draft) {
    type Pick = fn(&mut Fallback) -> &mut Vec<String>;
    let all: [(&str, Pick); 3] = [
        ("fallbacks", |fallback| &mut fallback.otherwise),
        ("context_window_fallbacks", |fallback| &mut fallback.context_window),
        ("content_policy_fallbacks", |fallback| &mut fallback.content_filter),
    ];
    for (name, pick) in all {
        let path = format!("{path}.{name}");
        let entries = match settings.get(name) {
            Some(Value::Array(entries)) => entries.iter().filter_map(Value::as_object).flatten().collect(),
            Some(Value::Object(entries)) => entries.iter().collect(),
            _ => Vec::new(),
        };
        for (model, targets) in entries {
            let targets = ends_of(&path, targets, draft);
            let models = match model.as_str() {
                "*" => all_models(draft),
                model => draft.ends(model),
            };
            if models.is_empty() {
                draft.note(&format!("{path}.{model}"), "is of no model, and is left out");
            }
            for model in models {
                pick(draft.fallbacks.entry(model).or_default()).extend(targets.iter().cloned());
            }
        }
    }
    let targets = settings
        .get("default_fallbacks")
        .map(|all| ends_of(&format!("{path}.default_fallbacks"), all, draft));
    if let Some(targets) = targets.filter(|targets| !targets.is_empty()) {
        for model in all_models(draft) {
            let fallback = draft.fallbacks.entry(model).or_default();
            if fallback.otherwise.is_empty() {
                fallback.otherwise.extend(targets.iter().cloned());
            }
        }
    }
}

fn all_models(draft: &Draft) -> Vec<String> {
    let providers = draft.providers.iter();
    providers
        .flat_map(|(name, provider)| provider.models.keys().map(move |model| format!("{name}/{model}")))
        .collect()
}

fn ends_of(path: &str, targets: &Value, draft: &mut Draft) -> Vec<String> {
    let mut all = Vec::new();
    for target in texts(Some(targets)) {
        let ends = draft.ends(&target);
        if ends.is_empty() {
            draft.note(path, format_args!("{target:?} leads to no model, and is left out"));
        }
        all.extend(ends);
    }
    all
}
