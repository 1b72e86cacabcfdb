//! What is asked after a group has failed.
//!
//! LiteLLM looks that up by the name that was asked for, and a gateway by the model that it leads to.

use super::{
    super::{
        draft::{Draft, Fallback, Provider},
        read::{table, text},
    },
    models::{Group, Groups},
};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// How far LiteLLM follows them.
const DEPTH: usize = 5;

const LISTS: [&str; 3] = ["fallbacks", "context_window_fallbacks", "content_policy_fallbacks"];

/// One of LiteLLM's lists.
#[derive(Default)]
struct Rules {
    path: String,
    by_name: Vec<(String, Vec<String>)>,
    /// Of names that have none of their own.
    of_all: Option<Vec<String>>,
}

/// A group, and the names that are asked after it, by the list; `None` where there is no such list.
struct Chained {
    group: Group,
    after: [Option<Vec<String>>; 3],
}

pub(super) fn convert(
    groups: Groups,
    router: &Map<String, Value>,
    litellm: &Map<String, Value>,
    draft: &mut Draft,
) {
    let mut lists = LISTS.map(|name| Rules::read(told(name, router, litellm, draft), draft));
    if let Some((path, names)) = told("default_fallbacks", router, litellm, draft) {
        let names = targets(&path, names, draft);
        let [rules, ..] = &mut lists;
        if rules.get_or_insert_default().of_all.replace(names).is_some() {
            draft.note(&path, "stand in the place of those of \"*\"");
        }
    }
    for (name, _) in &groups.patterns {
        if lists.iter().flatten().any(|rules| rules.of(name, draft).is_some()) {
            draft.note(
                &format!("model_list ({name})"),
                "what is asked for by a pattern has no fallbacks of the pattern's",
            );
        }
    }
    let unnamed = unnamed(&groups, &lists, draft);
    let mut all: Vec<Chained> = groups
        .named
        .into_iter()
        .chain(unnamed)
        .map(|group| {
            let after = lists.each_ref().map(|rules| rules.as_ref().map(|rules| rules.after(&group, draft)));
            Chained { group, after }
        })
        .collect();
    for rules in lists.iter().flatten() {
        rules.note_what_is_of_nobody(&all, &groups.patterns, draft);
    }
    part(&mut all, draft);
    for one in &all {
        for end in one.group.asked_first() {
            let fallback = one.fallback(end, draft);
            draft.fallbacks.insert(end.to_owned(), fallback);
        }
    }
    draft.drop_aliases_of_models();
}

/// What LiteLLM goes by: the router's own, if it has any.
fn told<'a>(
    name: &str,
    router: &'a Map<String, Value>,
    litellm: &'a Map<String, Value>,
    draft: &mut Draft,
) -> Option<(String, &'a Value)> {
    let found = |path: &str, settings: &'a Map<String, Value>| {
        let value = settings.get(name).filter(|value| match value {
            Value::Array(all) => !all.is_empty(),
            Value::Object(all) => !all.is_empty(),
            value => !value.is_null(),
        });
        Some((format!("{path}.{name}"), value?))
    };
    match (found("router_settings", router), found("litellm_settings", litellm)) {
        (Some(first), Some((path, _))) => {
            draft.note(&path, "is not carried over: those in router_settings are what LiteLLM goes by");
            Some(first)
        }
        (first, second) => first.or(second),
    }
}

/// The names of groups.
fn targets(path: &str, told: &Value, draft: &mut Draft) -> Vec<String> {
    let all = match told {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    };
    let mut names = Vec::new();
    for one in all {
        // A table changes members of the request, too.
        let told = table(Some(one));
        let rest: Vec<_> = told
            .into_iter()
            .flat_map(Map::keys)
            .map(String::as_str)
            .filter(|member| *member != "model")
            .collect();
        if !rest.is_empty() {
            draft.note(path, format_args!("a target's model is carried over, and not {}", rest.join(", ")));
        }
        let Some(name) = text(told.map_or(Some(one), |told| told.get("model"))) else {
            draft.note(path, "has a target that is no model, which is left out");
            continue;
        };
        if draft.ends(&name).is_empty() {
            draft.note(path, format_args!("{name:?} leads to no model, and is left out"));
        }
        names.push(name);
    }
    names
}

/// What can be asked for by the name of a model alone.
fn unnamed(groups: &Groups, lists: &[Option<Rules>], draft: &Draft) -> Vec<Group> {
    let is_end = |name: &str| groups.named.iter().any(|group| group.ends.iter().any(|(end, _)| end == name));
    let is_named = |name: &str| groups.named.iter().any(|group| group.name == name);
    let listed = draft.providers.iter().flat_map(|(name, provider)| {
        let models = provider.models.keys();
        models.map(move |model| format!("{name}/{model}"))
    });
    let keys = lists.iter().flatten().flat_map(|rules| rules.by_name.iter().map(|(key, _)| key));
    let keys = keys.filter(|key| !key.contains('*') && draft.is_served(key)).cloned();
    let all: BTreeSet<String> = listed.chain(keys).collect();
    all.into_iter()
        .filter(|name| !is_named(name) && (!is_end(name) || groups.is_of_a_pattern(name)))
        .map(|name| Group { asked: name.clone(), ends: vec![(name.clone(), 1)], name })
        .collect()
}

/// Fallbacks are of a model: groups that share one, but not what is asked after it, have it from a provider each.
fn part(all: &mut [Chained], draft: &mut Draft) {
    let mut known = BTreeMap::new();
    let ends: BTreeSet<String> =
        all.iter().flat_map(|one| one.group.asked_first()).map(ToOwned::to_owned).collect();
    for end in ends {
        let mut parts: Vec<(Fallback, Vec<usize>)> = Vec::new();
        for (at, one) in all.iter().enumerate() {
            if !one.group.asked_first().any(|asked| asked == end) {
                continue;
            }
            let fallback = one.fallback(&end, draft);
            match parts.iter_mut().find(|(known, _)| *known == fallback) {
                Some((_, part)) => part.push(at),
                None => parts.push((fallback, vec![at])),
            }
        }
        // Whoever asks for the model by its own name gets what that name has, or else nothing.
        let is_its_name = |part: &[usize]| part.iter().any(|at| is_its_name(&all[*at].group.name, &end));
        parts.sort_by_key(|(fallback, part)| (!is_its_name(part), !fallback.is_empty()));
        for (_, part) in parts.iter().skip(1) {
            let name = all[part[0]].group.name.clone();
            let own = own_model(&name, &end, &mut known, draft);
            for at in part {
                let group = &mut all[*at].group;
                let what = format_args!("others share {end}, but not its fallbacks: here it is {own}");
                draft.note(&format!("model_list ({})", group.name), what);
                let aliases = draft.aliases.get_mut(&group.name).into_iter().flatten();
                for (known, _) in group.ends.iter_mut().chain(aliases).filter(|(known, _)| *known == end) {
                    known.clone_from(&own);
                }
            }
        }
    }
}

/// Whether a group is called as a model is, or as a provider that is its own.
fn is_its_name(group: &str, end: &str) -> bool {
    group == end || end.split_once('/').is_some_and(|(provider, _)| provider == group)
}

/// The same model of the same provider under another name.
fn own_model(
    group: &str,
    end: &str,
    known: &mut BTreeMap<(String, String), String>,
    draft: &mut Draft,
) -> String {
    let (provider, model) = end.split_once('/').expect("ends are canonical names");
    let name = known.entry((group.to_owned(), provider.to_owned())).or_insert_with(|| {
        let name = draft.free_name(group);
        let Provider { kind, places, total, .. } = &draft.providers[provider];
        let own = Provider { kind, places: places.clone(), models: BTreeMap::new(), total: *total };
        draft.providers.insert(name.clone(), own);
        name
    });
    let price = draft.providers[provider].models.get(model).cloned().unwrap_or_default();
    let own = draft.providers.get_mut(name).expect("was put there");
    own.models.insert(model.to_owned(), price);
    format!("{name}/{model}")
}

impl Rules {
    fn read(told: Option<(String, &Value)>, draft: &mut Draft) -> Option<Self> {
        let (path, told) = told?;
        let mut rules = Self { path, ..Self::default() };
        let entries: Vec<_> = match told {
            Value::Array(entries) => {
                if !entries.iter().all(Value::is_object) {
                    draft.note(&rules.path, "has what is no table of a model and its fallbacks");
                }
                entries.iter().filter_map(Value::as_object).flatten().collect()
            }
            told => table(Some(told)).into_iter().flatten().collect(),
        };
        for (name, told) in entries {
            let names = targets(&format!("{}.{name}", rules.path), told, draft);
            match name.as_str() {
                "*" => rules.of_all = Some(names),
                name => rules.by_name.push((name.to_owned(), names)),
            }
        }
        Some(rules)
    }

    fn note_what_is_of_nobody(&self, all: &[Chained], patterns: &[(String, Vec<String>)], draft: &mut Draft) {
        let names = all.iter().map(|one| &one.group.asked).chain(patterns.iter().map(|(name, _)| name));
        let used: BTreeSet<&String> =
            names.filter_map(|name| self.own(name, draft)).map(|(key, _)| key).collect();
        for (key, _) in self.by_name.iter().filter(|(key, _)| !used.contains(key)) {
            draft.note(&format!("{}.{key}", self.path), "is of no model, and is left out");
        }
    }

    /// What stands there for a name: as it is, without its provider, or with that.
    fn own(&self, name: &str, draft: &Draft) -> Option<&(String, Vec<String>)> {
        let told = |wanted: &str| self.by_name.iter().find(|(key, _)| key == wanted);
        let short = |name: &str| name.split_once('/').map(|(_, short)| short.to_owned());
        let is_longer = |key: &String| short(key).as_deref() == Some(name) && draft.ends(name).contains(key);
        let longer = || self.by_name.iter().find(|(key, _)| is_longer(key));
        told(name).or_else(|| told(&short(name)?)).or_else(longer)
    }

    fn of(&self, name: &str, draft: &Draft) -> Option<&[String]> {
        self.own(name, draft).map(|(_, names)| names.as_slice()).or(self.of_all.as_deref())
    }

    /// The names that LiteLLM asks one after another: after each of them those of its own, too.
    fn after(&self, group: &Group, draft: &Draft) -> Vec<String> {
        let mut all = vec![group.asked.clone()];
        self.follow(self.of(&group.asked, draft).unwrap_or_default(), 0, &mut all, draft);
        all.split_off(1)
    }

    fn follow(&self, names: &[String], mut depth: usize, all: &mut Vec<String>, draft: &Draft) {
        if depth >= DEPTH {
            return;
        }
        for name in names {
            if !all.contains(name) {
                all.push(name.clone());
                depth += 1;
                if let Some((_, names)) = self.own(name, draft) {
                    self.follow(names, depth, all, draft);
                }
            }
        }
    }
}

impl Chained {
    /// What is asked after one of the group's models: its others, and what its name has.
    fn fallback(&self, end: &str, draft: &Draft) -> Fallback {
        let named = |names: &Vec<String>| names.iter().flat_map(|name| draft.ends(name)).collect::<Vec<_>>();
        let [otherwise, context_window, content_filter] =
            self.after.each_ref().map(|names| names.as_ref().map(named));
        let others = self.group.ends.iter().map(|(other, _)| other.clone());
        let fallback = Fallback {
            otherwise: others.chain(otherwise.unwrap_or_default()).collect(),
            context_window,
            content_filter,
        };
        fallback.without(end)
    }
}
