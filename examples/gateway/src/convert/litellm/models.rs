//! `model_list`: groups of deployments, as providers and aliases.

use super::{
    super::{
        draft::{self, Draft, Fallback, Place, Price, Provider},
        read::{table, text, texts},
    },
    LEFT_OUT,
    deployment::Deployment,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

const SEVERAL_PRICES: &str = "has more than one price, of which the first counts";

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
        if let Some(deployment) = Deployment::read(&path, entry, draft) {
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
