//! LiteLLM's `config.yaml`.

mod budgets;
mod deployment;
mod endpoint;
mod fallbacks;
mod models;
mod providers;
mod settings;
mod shares;

use super::{
    draft::{Draft, Key, Secret},
    read::{table, text},
};
use serde_json::{Map, Value};

pub(super) fn convert(root: &Map<String, Value>, draft: &mut Draft) {
    let empty = Map::new();
    let part = |name| table(root.get(name)).unwrap_or(&empty);
    let (general, litellm, router) =
        (part("general_settings"), part("litellm_settings"), part("router_settings"));

    let mut groups = models::list(root.get("model_list"), draft);
    for (path, settings) in [("router_settings", router), ("litellm_settings", litellm)] {
        models::aliases(path, settings, &mut groups, draft);
    }
    fallbacks::convert(groups, router, litellm, draft);
    master_key(general, draft);
    budgets::convert(root, general, litellm, draft);
    if draft.keys.is_empty() {
        draft.note("general_settings.master_key", "there is no key, so the gateway answers everybody");
    }
    settings::convert(general, litellm, router, draft);

    for name in root.keys() {
        match name.as_str() {
            "model_list" | "general_settings" | "litellm_settings" | "router_settings" => {}
            name if budgets::TABLES.contains(&name) => {}
            "environment_variables" => draft.note(name, "set them in the environment of the process"),
            "include" => draft.note(name, "is not followed; convert the files that it names, too"),
            _ => draft.note(name, LEFT_OUT),
        }
    }
}

const LEFT_OUT: &str = "is not carried over";

fn master_key(general: &Map<String, Value>, draft: &mut Draft) {
    let path = "general_settings.master_key";
    let Some(key) = text(general.get("master_key")) else { return };
    let key = secret(path, &key, draft).map(|key| Key {
        key,
        user: "admin".to_owned(),
        departments: Vec::new(),
        admin: true,
        trusted: false,
        max_in_flight: None,
    });
    draft.keys.extend(key);
}

/// A secret that can be sent, or that it cannot; one that stands in the file itself is carried over, and pointed out.
fn secret(path: &str, text: &str, draft: &mut Draft) -> Option<Secret> {
    let secret = sent(path, text, draft);
    if matches!(secret, Some(Secret::Text(_))) {
        draft.note(path, IN_THE_FILE);
    }
    secret
}

const IN_THE_FILE: &str = "stands in the file itself; { env = \"NAME\" } would keep it out";

/// What can be sent in a header, secret or not, or that it cannot.
fn sent(path: &str, text: &str, draft: &mut Draft) -> Option<Secret> {
    let sent = Secret::read(text).or_else(|| {
        let name = Secret::renamed(text)?;
        draft.note(path, format_args!("is read from the variable {name}: its own name can hardly be set"));
        Some(Secret::Env(name))
    });
    if sent.is_none() {
        draft.note(path, "cannot be sent in a header, and is left out");
    }
    sent
}

/// What a setting says, or that it says nothing that can be read.
fn known<T>(
    path: &str,
    told: Option<&Value>,
    read: impl FnOnce(Option<&Value>) -> Option<T>,
    draft: &mut Draft,
) -> Option<T> {
    let known = read(told);
    if let (None, Some(told)) = (&known, told.filter(|told| !told.is_null())) {
        let is_elsewhere = told.as_str().is_some_and(|text| text.trim().starts_with("os.environ/"));
        draft.note(
            path,
            match is_elsewhere {
                true => "is in the environment, from which only secrets are read, and is left out",
                false => "cannot be used as it is, and is left out",
            },
        );
    }
    known
}
