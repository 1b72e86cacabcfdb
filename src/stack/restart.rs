//! What cannot be exchanged while calls are made.

use super::{
    counters::{OpenedBy, Quotas},
    handle::Lasting,
};
use crate::config::{
    Cache, Config, Identity, Kind, Problem, Quota, Server, Telemetry, Usage, field, plan::Plan,
};

/// Compares fields, of which none is forgotten: all have to be named, as one that needs a restart or as one that does not.
macro_rules! compare {
    ($told:expr, $path:literal, $type:ident { restart: [$($restart:ident),*], live: [$($live:ident),*] }, $old:expr, $new:expr) => {{
        let $type { $($restart: _,)* $($live: _,)* } = $old;
        $(if $old.$restart != $new.$restart {
            $told(field($path, stringify!($restart)));
        })*
    }};
}

/// The entries that are not as they were, and would have to be: all that can be known of a configuration that comes to no plan.
pub(super) fn needed(
    (old, old_plan): (&Config, &Plan),
    (new, new_plan): (&Config, Option<&Plan>),
    lasting: &Lasting,
) -> Vec<Problem> {
    let mut entries = Vec::new();
    let mut told = |entry: String| entries.push(entry);
    if old.listen != new.listen {
        told("listen".into());
    }
    if old.identity != new.identity {
        told("identity".into());
    }
    compare!(
        told,
        "server",
        Server {
            restart: [
                max_buffered_bytes,
                max_header_bytes,
                max_headers,
                max_in_flight,
                max_waiting,
                max_wait,
                write_timeout,
                idle_timeout
            ],
            live: [
                max_body_bytes,
                max_depth,
                max_messages,
                max_tools,
                max_in_flight_per_key,
                body_timeout,
                shutdown_grace,
                keep_alive
            ]
        },
        &old.server,
        &new.server
    );
    compare!(
        told,
        "telemetry",
        Telemetry { restart: [metrics, log], live: [decision_headers] },
        &old.telemetry,
        &new.telemetry
    );
    compare!(
        told,
        "usage",
        Usage {
            restart: [enabled, path, durability, redis_cluster, redis_keep, outbox, outbox_max_bytes],
            live: [hold_last_byte, redis]
        },
        &old.usage,
        &new.usage
    );
    let usage = |plan: &Plan| {
        let shared = plan.usage.as_ref().and_then(|usage| usage.shared.as_ref());
        shared.map(|shared| shared.redis.address.clone())
    };
    if new_plan.is_some_and(|new| usage(old_plan) != usage(new)) {
        told("usage.redis".into());
    }
    // Limits that come first are counted from then on, and those that go leave their counters where they are, asked by nobody.
    if let (Some(OpenedBy { quota, address }), Some(new_plan)) =
        (lasting.quotas.get().map(Quotas::opened_by), new_plan)
    {
        if let Some(limits) = &new_plan.limits {
            let new = OpenedBy::new(new, limits);
            compare!(
                told,
                "quota",
                Quota {
                    restart: [store, path, redis_cluster, policies, timeout, time_zone],
                    live: [
                        redis,
                        mode,
                        max_output_tokens,
                        shrink_to,
                        unpriced,
                        assume_input_cost,
                        assume_output_cost
                    ]
                },
                quota,
                &new.quota
            );
            if *address != new.address {
                told("quota.redis".into());
            }
        } else if quota.policies.is_some() {
            told("quota.policies".into());
        }
    }
    match (&old.cache, &new.cache) {
        (Some(old), Some(new)) => {
            compare!(
                told,
                "cache",
                Cache {
                    restart: [
                        enabled,
                        ttl,
                        max_bytes,
                        max_entry_bytes,
                        max_temperature,
                        tool_calls,
                        coalesce,
                        max_flights,
                        redis_cluster,
                        encrypt,
                        semantic
                    ],
                    live: [redis, secret, knowledge_bases]
                },
                old,
                new
            );
            let of = |plan: &Plan| {
                let cache = plan.cache.as_ref()?;
                Some((cache.shared.as_ref().map(|shared| shared.address.clone()), cache.secret.clone()))
            };
            if let (Some((old_redis, old_secret)), Some((new_redis, new_secret))) =
                (of(old_plan), new_plan.and_then(of))
            {
                if old_redis != new_redis {
                    told("cache.redis".into());
                }
                if old_secret != new_secret {
                    told("cache.secret".into());
                }
            }
            #[cfg(all(feature = "semantic", feature = "hyper-client"))]
            if let (Some(old), Some(new)) = (&old_plan.cache, new_plan.and_then(|plan| plan.cache.as_ref()))
                && old.semantic != new.semantic
            {
                told("cache.semantic".into());
            }
        }
        (None, None) => {}
        (old, new) => {
            let is_on = |cache: &Option<Cache>| cache.as_ref().is_some_and(|cache| cache.enabled);
            if is_on(old) != is_on(new) {
                told("cache".into());
            }
        }
    }
    let mut problems: Vec<_> = entries
        .into_iter()
        .map(|entry| Problem::new(entry, "cannot be changed while calls are made: it needs a restart"))
        .collect();
    // Else a file of which a part is lost lets everybody in.
    if old.keys.is_some() && new.keys.is_none() && new.identity == Identity::Keys {
        problems.push(Problem::new(
            "keys",
            "without any everybody may ask for everything, which needs a restart",
        ));
    }
    for (name, provider) in &new.providers {
        if provider.kind == Kind::Own && !lasting.deployments.has(name) {
            let what =
                "kind = \"own\" is for a leaf that the program gives, and it gives none: it needs a restart";
            problems.push(Problem::new(field("providers", name), what));
        }
    }
    problems
}
