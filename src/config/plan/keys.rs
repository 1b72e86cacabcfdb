//! Who has which key, and which limits reach them.

use super::{Check, OTHERS, is_limited};
use crate::{
    RequestContext,
    config::{
        Identity, Key,
        document::{field, place},
        schema::{closest, did_you_mean},
    },
};
use blake3::Hash;
use std::{collections::HashMap, fmt, sync::Arc};

/// A key, by its hash.
#[derive(Clone)]
pub(crate) struct PlannedKey {
    pub(crate) hash: Hash,
    pub(crate) context: RequestContext,
    pub(crate) is_admin: bool,
    pub(crate) is_trusted: bool,
    pub(crate) max_in_flight: usize,
}

impl fmt::Debug for PlannedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlannedKey").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Check<'_> {
    pub(super) fn keys(&mut self) -> Option<Vec<PlannedKey>> {
        let config = self.config;
        if config.identity == Identity::Keys {
            self.reach(config.keys.as_deref().unwrap_or_default());
        }
        let keys = config.keys.as_ref()?;
        if keys.is_empty() {
            self.problem("keys", "there must be one; without the table everybody is anonymous");
        }
        if config.identity == Identity::Host {
            self.problem("keys", "are not asked for with identity = \"host\"");
        }
        let mut planned = Vec::<PlannedKey>::new();
        let mut seen = HashMap::new();
        for (at, key) in keys.iter().enumerate() {
            let path = place("keys", at);
            let entry = |name: &str| field(&path, name);
            let hash = match (&key.key, &key.hash) {
                (Some(_), Some(_)) => {
                    self.problem(entry("hash"), "stands beside the key; one of the two is enough");
                    None
                }
                (None, None) => {
                    self.problem(entry("key"), "is missing");
                    None
                }
                (Some(key), None) => {
                    self.secret(&entry("key"), Some(key)).map(|key| blake3::hash(key.reveal().as_bytes()))
                }
                (None, Some(hash)) => {
                    let read = Hash::from_hex(hash);
                    if read.is_err() {
                        self.problem(entry("hash"), "must be a BLAKE3 hash, of 64 hexadecimal digits");
                    }
                    read.ok()
                }
            };
            if let Some(first) = hash.and_then(|hash| seen.insert(hash, at)) {
                let name = if key.hash.is_some() { "hash" } else { "key" };
                self.problem(entry(name), format_args!("is the same as that of {}", place("keys", first)));
            }
            if key.user.trim().is_empty() {
                self.problem(entry("user"), "must be a text that is not empty");
            }
            self.departments_of(key, &path);
            let mut context = RequestContext::new().with_user_id(key.user.as_str());
            if let Some(tenant) = &key.tenant {
                context = context.with_tenant_id(tenant.as_str());
            }
            if let Some(agent) = &key.agent {
                context = context.with_agent_name(agent.as_str());
            }
            context = context.with_departments(key.departments.iter().map(|name| Arc::from(name.as_str())));
            planned.extend(hash.map(|hash| PlannedKey {
                hash,
                context,
                is_admin: key.admin,
                is_trusted: key.trusted,
                max_in_flight: key.max_in_flight.unwrap_or(config.server.max_in_flight_per_key),
            }));
        }
        Some(planned)
    }

    /// Whether what a key is charged to is limited as it was meant.
    fn departments_of(&mut self, key: &Key, path: &str) {
        let departments = &self.config.departments;
        let is_open = departments.is_empty() || departments.contains_key(OTHERS);
        let entry = field(path, "departments");
        for (at, name) in key.departments.iter().enumerate() {
            let entry = place(&entry, at);
            if name == OTHERS {
                self.problem(&entry, "\"*\" is not the name of a department");
            }
            if name == OTHERS || departments.contains_key(name) {
                continue;
            }
            let meant = closest(name, departments.keys().map(String::as_str));
            match (is_open, meant) {
                // A limit that a slip of the pen takes away.
                (false, Some(_)) => {
                    let what = "has no entry in [departments], nor has \"*\": nothing would limit it";
                    self.problem(&entry, format_args!("{what}{}", did_you_mean(meant)));
                }
                (false, None) => {
                    self.warning(&entry, "has no entry in [departments], nor has \"*\": it is not limited");
                }
                (true, Some(slip)) if is_slip(name, slip) => {
                    let what = "has no entry in [departments] but \"*\"";
                    self.warning(&entry, format_args!("{what}{}", did_you_mean(meant)));
                }
                (true, _) => {}
            }
        }
        let has_limits = departments.values().any(|other| is_limited(other) || other.models.is_some());
        if has_limits && key.departments.is_empty() && !key.admin {
            self.warning(path, "is in no department: nothing limits its calls");
        }
    }

    /// Entries for somebody that no key is of.
    fn reach(&mut self, keys: &[Key]) {
        let config = self.config;
        let departments: Vec<_> = keys.iter().flat_map(|key| &key.departments).map(String::as_str).collect();
        let tenants: Vec<_> = keys.iter().filter_map(|key| key.tenant.as_deref()).collect();
        let named = |name: &&String| *name != OTHERS;
        let limited: Vec<_> = config.departments.keys().filter(named).map(String::as_str).collect();
        let overlaid: Vec<_> = config.tenants.keys().map(String::as_str).collect();
        self.unreached("departments", "no key is in this department", &limited, &departments);
        self.unreached("tenants", "no key is of this tenant", &overlaid, &tenants);
    }

    /// The `entries` of a table that none of those is who are `told` of keys.
    fn unreached(&mut self, table: &str, what: &str, entries: &[&str], told: &[&str]) {
        for name in entries.iter().filter(|name| !told.contains(name)) {
            let strangers = told.iter().copied().filter(|other| !entries.contains(other));
            let meant = did_you_mean(closest(name, strangers));
            self.warning(field(table, name), format_args!("{what}{meant}"));
        }
    }
}

/// Departments are numbered, too: those are meant.
fn is_slip(name: &str, meant: &str) -> bool {
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    digits(name) == digits(meant)
}
