//! Teams, users, keys and their budgets, as departments and keys.

use super::{
    super::{
        draft::{Department, Draft, Key, quoted},
        read::{dollars, is_true, some, text, texts},
    },
    LEFT_OUT, known, secret,
};
use serde_json::{Map, Value};

/// Where files that are not kept in LiteLLM's database have them.
pub(super) const TABLES: [&str; 3] = ["teams", "users", "keys"];

/// What is carried over of a key as it is.
const KEY: &[&str] = &["key", "token", "key_alias", "user_id", "team_id", "max_parallel_requests"];

/// The department of a budget for all.
const EVERYBODY: &str = "everybody";

pub(super) fn convert(
    root: &Map<String, Value>,
    general: &Map<String, Value>,
    litellm: &Map<String, Value>,
    draft: &mut Draft,
) {
    let list = |name| {
        let lists = [root.get(name), general.get(name), litellm.get(name)];
        lists.into_iter().flatten().filter_map(Value::as_array).flatten().filter_map(Value::as_object)
    };
    let mut teams = Vec::new();
    for team in list("teams") {
        let id = text(team.get("team_id")).or_else(|| text(team.get("team_alias")));
        let Some(id) = id else {
            draft.note("teams", "one has neither team_id nor team_alias, and is left out");
            continue;
        };
        let name = department(text(team.get("team_alias")).unwrap_or_else(|| id.clone()));
        limit(&format!("teams.{name}"), &name, team, &["team_id", "team_alias"], draft);
        draft.departments.entry(name.clone()).or_default();
        teams.push((id, name));
    }
    let mut users = Vec::new();
    for user in list("users") {
        let Some(id) = text(user.get("user_id")) else {
            draft.note("users", "one has no user_id, and is left out");
            continue;
        };
        let name = format!("user:{id}");
        if limit(&format!("users.{id}"), &name, user, &["user_id", "user_email", "user_role", "teams"], draft)
        {
            users.push((id, name));
        }
    }
    for (at, key) in list("keys").enumerate() {
        let path = format!("keys[{at}]");
        let alias = text(key.get("key_alias"));
        let told = text(key.get("key")).or_else(|| text(key.get("token")));
        let Some(told) = told else {
            draft.note(&path, "has no key, and is left out");
            continue;
        };
        let Some(told) = secret(&path, &told, draft) else { continue };
        let user = text(key.get("user_id"));
        let mut departments = Vec::new();
        if let Some(team) = text(key.get("team_id")) {
            match teams.iter().find(|(id, name)| *id == team || *name == team) {
                Some((_, name)) => departments.push(name.clone()),
                None => {
                    draft.note(&path, "its team is not in the file; a department stands for it");
                    let team = department(team);
                    draft.departments.entry(team.clone()).or_default();
                    departments.push(team);
                }
            }
        }
        departments
            .extend(users.iter().find(|(id, _)| Some(id) == user.as_ref()).map(|(_, name)| name.clone()));
        let own = format!("key:{}", alias.clone().unwrap_or_else(|| at.to_string()));
        if limit(&path, &own, key, KEY, draft) {
            departments.push(own);
        }
        let user = user.or(alias).unwrap_or_else(|| format!("key-{at}"));
        if draft.keys.iter().any(|known| known.key == told) {
            draft.note(&path, "is there twice, and is left out");
            continue;
        }
        let most = key.get("max_parallel_requests");
        let most = known(&format!("{path}.max_parallel_requests"), most, some, draft);
        draft.keys.push(Key {
            key: told,
            user,
            departments,
            admin: false,
            trusted: false,
            max_in_flight: most,
        });
    }

    let for_all = Map::from_iter(
        ["max_budget", "budget_duration"]
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), litellm.get(*name)?.clone()))),
    );
    if limit("litellm_settings", EVERYBODY, &for_all, &[], draft) {
        for key in &mut draft.keys {
            key.departments.retain(|name| name != EVERYBODY);
            key.departments.push(EVERYBODY.to_owned());
        }
    }
    if draft.keys.is_empty() && !draft.departments.is_empty() {
        draft.note(
            "general_settings.master_key",
            "is missing: without keys nobody is limited, and the limits are left out",
        );
        draft.departments.clear();
    }
    let money = |department: &Department| department.limits.keys().any(|limit| limit.ends_with("cost"));
    if draft.departments.values().any(money) {
        draft.note(
            "budgets",
            "a model without a price is refused where money is limited; name LiteLLM's list of prices in [prices]",
        );
    }
}

/// A team's name, unless that has a meaning of its own.
fn department(team: String) -> String {
    if matches!(team.as_str(), "*" | EVERYBODY) { format!("team:{team}") } else { team }
}

/// Limits of one department; whether there are any.
fn limit(
    path: &str,
    department: &str,
    entry: &Map<String, Value>,
    known: &[&str],
    draft: &mut Draft,
) -> bool {
    let mut limits = Department::default();
    if entry.get("max_budget").is_some_and(|budget| !budget.is_null()) {
        let path = format!("{path}.max_budget");
        let money = dollars(entry.get("max_budget"), 0);
        match text(entry.get("budget_duration")).as_deref() {
            _ if money.is_none() => draft.note(&path, "is no amount of dollars, and is left out"),
            Some("1d" | "24h" | "86400s" | "daily") => {
                limits.limits.extend(money.map(|money| ("day_cost", quoted(&money))))
            }
            Some("30d" | "31d" | "28d" | "1mo" | "monthly") => {
                draft.note(&path, "is for each month of the calendar now, and not from its first use on");
                limits.limits.extend(money.map(|money| ("month_cost", quoted(&money))));
            }
            Some(_) => {
                draft.note(&path, "is not carried over: there are days and months, and no other times")
            }
            None => {
                draft.note(&path, "is not carried over: it is for ever, and there are only days and months")
            }
        }
    }
    let models = texts(entry.get("models"));
    let is_all = |model: &String| matches!(model.as_str(), "*" | "all-proxy-models" | "all-team-models");
    if !models.is_empty() && !models.iter().any(is_all) {
        let mut allowed = Vec::new();
        for model in models {
            let ends = draft.ends(&model);
            if ends.is_empty() {
                draft.note(&format!("{path}.models"), format_args!("{model:?} is no model, and is left out"));
            }
            allowed.extend(ends);
        }
        allowed.dedup();
        limits.models = Some(allowed);
    }
    if is_true(entry.get("blocked")) {
        draft.note(path, "is blocked, and may use no model");
        limits.models = Some(Vec::new());
    }
    for name in entry.keys() {
        match name.as_str() {
            "max_budget" | "budget_duration" | "models" | "blocked" => {}
            name if known.contains(&name) => {}
            "tpm_limit" | "rpm_limit" | "max_parallel_requests" => {
                draft.note(&format!("{path}.{name}"), "is not carried over: limits are for days and months");
            }
            name => draft.note(&format!("{path}.{name}"), LEFT_OUT),
        }
    }
    let any = limits.models.is_some() || !limits.limits.is_empty();
    if any {
        draft.departments.insert(department.to_owned(), limits);
    }
    any
}
