//! `model_list`: groups of deployments, as providers and aliases.

use super::{
    super::{
        draft::{self, Draft, Place, Price, Provider},
        read::{is_true, table, text},
    },
    LEFT_OUT,
    deployment::Deployment,
    shares::shares,
};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, time::Duration};

const SEVERAL_PRICES: &str = "has more than one price, of which the first counts";

/// A name that is asked for.
pub(super) struct Group {
    pub(super) name: String,
    /// By which LiteLLM looks up what is asked after it.
    pub(super) asked: String,
    /// Canonical names and their shares; those without one come last.
    pub(super) ends: Vec<(String, u64)>,
}

#[derive(Default)]
pub(super) struct Groups {
    pub(super) named: Vec<Group>,
    /// Names, or what they stand for, that are patterns.
    pub(super) patterns: Vec<(String, Vec<String>)>,
}

pub(super) fn list(list: Option<&Value>, draft: &mut Draft) -> Groups {
    let mut read: BTreeMap<String, Vec<Deployment>> = BTreeMap::new();
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
            read.entry(group).or_default().push(deployment);
        }
    }
    let mut known: BTreeMap<(&'static str, Place, Option<Duration>), String> = BTreeMap::new();
    let mut groups = Groups::default();
    for (group, deployments) in read {
        let ends = match one_provider(&group, &deployments, draft) {
            Some(end) => vec![(end, 1)],
            None => {
                let shares = shares(&deployments);
                let each = deployments.into_iter().map(|one| place(one, &mut known, draft));
                each.zip(shares).collect::<Vec<_>>()
            }
        };
        name_group(group, ends, &mut groups, draft);
    }
    draft.drop_aliases_of_models();
    groups.named.retain(|group| draft.ends(&group.name).iter().eq(group.ends.iter().map(|(end, _)| end)));
    if draft.providers.is_empty() {
        draft.note("model_list", "has nothing that could be carried over; an echo stands in for it");
        let echo = Provider { kind: "echo", ..Provider::default() };
        draft.providers.insert("echo".to_owned(), echo);
        return groups;
    }
    let mut prices = draft.providers.values().flat_map(|provider| provider.models.values());
    if prices.any(|price| *price == Price::default()) {
        draft.note(
            "model_list",
            "models without a price of their own have none here: name LiteLLM's list of prices in [prices]",
        );
    }
    groups
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
    let Deployment { kind, name, model, place, price, timeout, .. } = one;
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

fn name_group(name: String, ends: Vec<(String, u64)>, groups: &mut Groups, draft: &mut Draft) {
    let path = format!("model_list ({name})");
    if name.contains('*') || ends.iter().any(|(end, _)| end.contains('*')) {
        // Any model of a provider can be asked for by `provider/model`.
        let is_served = ends.iter().all(|(end, _)| *end == name && end.ends_with("/*"));
        let ends: Vec<_> = ends.into_iter().map(|(end, _)| end).collect();
        if !is_served {
            let what = format_args!("patterns do not carry names over; ask for {}", ends.join(" or "));
            draft.note(&path, what);
        }
        groups.patterns.push((name, ends));
        return;
    }
    let mut shares: Vec<(String, u64)> = Vec::new();
    for (end, weight) in ends {
        match shares.iter_mut().find(|(known, _)| *known == end) {
            Some((_, known)) => *known += weight,
            None => shares.push((end, weight)),
        }
    }
    shares.sort_by_key(|(_, weight)| *weight == 0);
    let without: Vec<_> = shares.iter().filter(|(_, weight)| *weight == 0).map(|(end, _)| &**end).collect();
    if shares.len() > without.len() + 1 {
        draft.note(
            &path,
            "is split by chance among models of different providers, each the fallback of the others",
        );
    }
    if !without.is_empty() {
        let what = format_args!("has no share for {}, asked only after the others", without.join(" and "));
        draft.note(&path, what);
    }
    if shares.len() != 1 || shares[0].0 != name {
        draft.aliases.insert(name.clone(), shares.clone());
    }
    groups.named.push(Group { asked: name.clone(), name, ends: shares });
}

/// `model_group_alias` and `model_alias_map`.
pub(super) fn aliases(path: &str, settings: &Map<String, Value>, groups: &mut Groups, draft: &mut Draft) {
    for table_name in ["model_group_alias", "model_alias_map"] {
        for (name, target) in table(settings.get(table_name)).into_iter().flatten() {
            let path = format!("{path}.{table_name}.{name}");
            if table(Some(target)).is_some_and(|table| is_true(table.get("hidden"))) {
                draft.note(&path, "is listed with the others now");
            }
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
                Some(ends) => {
                    draft.aliases.insert(name.clone(), ends.clone());
                    // A group's other name has fallbacks of its own; a model's is exchanged before they are looked up.
                    let asked = if table_name == "model_group_alias" { name.clone() } else { target };
                    groups.named.push(Group { name: name.clone(), asked, ends });
                }
                None => draft.note(&path, "leads to no model, and is left out"),
            }
        }
    }
}

impl Group {
    /// What is asked before any other of them.
    pub(super) fn asked_first(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().filter(|(_, share)| *share > 0).map(|(end, _)| end.as_str())
    }
}

impl Groups {
    /// Whether a model can be asked for by a pattern.
    pub(super) fn is_of_a_pattern(&self, model: &str) -> bool {
        let begins = |end: &String| end.split_once('*').is_some_and(|(begin, _)| model.starts_with(begin));
        self.patterns.iter().flat_map(|(_, ends)| ends).any(begins)
    }
}
