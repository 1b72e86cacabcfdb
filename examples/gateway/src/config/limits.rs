//! What departments may do, and where it is counted.

use super::{Env, Section, redis};
use llm_layers::{
    policies::{DepartmentPolicy, PolicyTable},
    price::{Price, Rates},
    quota::{Calendar, Mode, OnTight, Unbounded, Unpriced},
    store::Redis,
};
use std::{path::PathBuf, time::Duration};

/// Limits and allow-lists, and how they are enforced.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) policies: PolicyTable,
    /// Where policies are edited while the gateway runs, instead of here.
    pub(crate) policies_file: Option<PathBuf>,
    pub(crate) counters: Counters,
    pub(crate) mode: Mode,
    pub(crate) unbounded: Unbounded,
    pub(crate) on_tight: OnTight,
    pub(crate) unpriced: Unpriced,
    pub(crate) calendar: Calendar,
    pub(crate) timeout: Duration,
}

/// Where it is counted what departments use up.
#[derive(Debug)]
pub(crate) enum Counters {
    /// In this process, from what the record of usage says at the start.
    Memory,
    File(PathBuf),
    Redis(Redis),
}

/// The department of all those that have no entry.
const OTHERS: &str = "*";

impl Limits {
    pub(super) fn read(mut departments: Section<'_>, mut table: Section<'_>, env: Env<'_>) -> Option<Self> {
        let policies_file = table.text("policies").map(PathBuf::from);
        let policies = policies(&mut departments);
        let is_asked_for = !table.is_empty() || policies_file.is_some();
        let default = Self {
            counters: counters(&mut table, env),
            mode: word(&mut table, "mode", &[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)]),
            unbounded: match table.has("max_output_tokens") {
                true => Unbounded::Inject(table.number("max_output_tokens", 1, 4096)),
                false => Unbounded::default(),
            },
            on_tight: match table.has("shrink_to") {
                true => OnTight::ShrinkMaxTokens { min: table.number("shrink_to", 1, 256) },
                false => OnTight::default(),
            },
            unpriced: unpriced(&mut table),
            calendar: calendar(&mut table),
            timeout: table.duration("timeout", Duration::from_millis(250)),
            policies,
            policies_file,
        };
        let is_limited = default.policies.has_limits() || default.policies.has_allow_lists();
        if default.policies_file.is_some() && (is_limited || default.policies.departments().next().is_some())
        {
            table.problem("policies", "holds the departments; they must not stand in [departments] as well");
        }
        (is_asked_for || is_limited).then_some(default)
    }
}

fn policies(departments: &mut Section<'_>) -> PolicyTable {
    let mut entries = Vec::new();
    let mut table = PolicyTable::default();
    for name in departments.fields() {
        let Some(value) = departments.take(&name) else { continue };
        match value.try_into::<DepartmentPolicy>() {
            Ok(policy) if name == OTHERS => table = PolicyTable::new(policy),
            Ok(policy) => entries.push((name, policy)),
            // Says what is wrong with which field, and no value.
            Err(error) => departments.problem(&name, error.message()),
        }
    }
    entries.into_iter().fold(table, |table, (name, policy)| table.with(name, policy))
}

fn counters(table: &mut Section<'_>, env: Env<'_>) -> Counters {
    let path = table.text("path");
    let shared = redis(table, env);
    let store = if table.has("store") { table.text("store") } else { None };
    let store = store.as_deref().unwrap_or(if shared.is_some() { "redis" } else { "sqlite" });
    if path.is_some() && store != "sqlite" {
        table.problem("path", "is for counters in sqlite");
    }
    match (store, shared) {
        ("redis", Some(redis)) => Counters::Redis(redis),
        ("redis", None) => {
            table.problem("redis", "is missing");
            Counters::Memory
        }
        (_, Some(_)) => {
            table.problem("redis", "is for counters in redis");
            Counters::Memory
        }
        ("memory", None) => Counters::Memory,
        ("sqlite", None) => Counters::File(path.unwrap_or_else(|| "quota.db".to_owned()).into()),
        _ => {
            table.problem("store", "must be \"sqlite\", \"redis\" or \"memory\"");
            Counters::Memory
        }
    }
}

fn unpriced(table: &mut Section<'_>) -> Unpriced {
    let (input, output) = (table.text("assume_input_cost"), table.text("assume_output_cost"));
    let words = [("reject", Some(Unpriced::Reject)), ("free", Some(Unpriced::Free)), ("assume", None)];
    match (word(table, "unpriced", &words), input, output) {
        (Some(chosen), None, None) => chosen,
        (None, Some(input), Some(output)) => match Rates::per_million(&input, &output) {
            Ok(rates) => Unpriced::Assume(Price::new(rates)),
            Err(error) => {
                table.problem("assume_input_cost", error);
                Unpriced::Reject
            }
        },
        (None, ..) => {
            let needed = "needs assume_input_cost and assume_output_cost, in dollars per million tokens";
            table.problem("unpriced", needed);
            Unpriced::Reject
        }
        (Some(_), ..) => {
            table.problem("assume_input_cost", "is for unpriced = \"assume\"");
            Unpriced::Reject
        }
    }
}

fn calendar(table: &mut Section<'_>) -> Calendar {
    let Some(zone) = table.text("time_zone") else { return Calendar::utc() };
    Calendar::in_zone(&zone).unwrap_or_else(|error| {
        table.problem("time_zone", error);
        Calendar::utc()
    })
}

/// One of a few words; the first unless told.
fn word<T: Clone>(table: &mut Section<'_>, field: &str, words: &[(&str, T)]) -> T {
    let default = || words[0].1.clone();
    let said = table.text(field);
    let found = said.as_ref().map(|said| words.iter().find(|(word, _)| word == said));
    match found {
        None => default(),
        Some(Some((_, value))) => value.clone(),
        Some(None) => {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            table.problem(field, format_args!("must be one of {}", all.join(", ")));
            default()
        }
    }
}
