//! What is answered from a cache.

use super::{Env, Section, redis};
use llm_layers::{
    cache::{CachePolicy, CacheSecret, Coalescing},
    store::Redis,
};
use std::time::Duration;

/// A cache, and who else has it.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(crate) policy: CachePolicy,
    pub(crate) secret: CacheSecret,
    pub(crate) max_bytes: u64,
    /// With whom it is shared.
    pub(crate) shared: Option<Redis>,
    /// Whether what is shared is encrypted.
    pub(crate) is_encrypted: bool,
}

impl Cache {
    pub(super) fn read(mut table: Section<'_>, env: Env<'_>) -> Option<Self> {
        if table.is_empty() || !table.flag("enabled", true) {
            table.ignore();
            return None;
        }
        let shared = redis(&mut table, env);
        let secret = match table.secret("secret", env) {
            Some(secret) => {
                // Any text will do; what it lacks in length nobody can add.
                if secret.reveal().len() < 32 {
                    table.problem("secret", "must have at least 32 characters");
                }
                CacheSecret::new(*blake3::hash(secret.reveal().as_bytes()).as_bytes())
            }
            None => {
                if shared.is_some() {
                    table.problem("secret", "is missing; all gateways that share a cache need the same");
                }
                CacheSecret::random()
            }
        };
        let mut policy = CachePolicy::new(secret.clone())
            .with_ttl(table.duration("ttl", Duration::from_secs(3600)))
            .with_max_entry_bytes(table.number("max_entry_bytes", 1024, 1 << 20));
        if let Some(temperature) = table.decimal("max_temperature") {
            policy = policy.with_max_temperature(temperature);
        }
        if table.flag("tool_calls", false) {
            policy = policy.with_tool_calls();
        }
        if table.flag("coalesce", false) {
            let flights = table.number("max_flights", 1, 1024);
            policy = policy.with_coalescing(Coalescing::new().with_max_flights(flights));
        } else if table.has("max_flights") {
            table.problem("max_flights", "is for coalesce = true");
        }
        let is_encrypted = table.flag("encrypt", false);
        if is_encrypted && shared.is_none() {
            table.problem("encrypt", "is for a cache that is shared in redis");
        }
        let max_bytes = table.number("max_bytes", 1 << 16, 64 << 20);
        Some(Self { policy, secret, max_bytes, shared, is_encrypted })
    }
}
