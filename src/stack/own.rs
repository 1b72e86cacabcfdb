//! What a program has of its own, in place of what a configuration says or beside it.

use super::{
    answers, assemble,
    builder::MapQuota,
    counters::OnBadPolicies,
    deployments::Leaves,
    order::{Needs, Part},
};
use crate::{
    config::{self, Config, Kind, Problem, field, plan::Given},
    policies::Policies,
    price::Prices,
    quota::{QuotaStore, UsageHistory},
    usage::{UsageReader, UsageSink},
};
use std::sync::Arc;

#[derive(Default)]
pub(super) struct Own {
    pub(super) leaves: Leaves,
    pub(super) usage_sink: Option<Arc<dyn UsageSink>>,
    pub(super) usage_reader: Option<Arc<dyn UsageReader>>,
    pub(super) usage_history: Option<Arc<dyn UsageHistory>>,
    pub(super) quota_store: Option<Arc<dyn QuotaStore>>,
    pub(super) prices: Option<Prices>,
    pub(super) policies: Option<Policies>,
    pub(super) map_quota: Option<MapQuota>,
    pub(super) answers: answers::Own,
    pub(super) layers: assemble::Own,
    pub(super) on_bad_policies: Option<OnBadPolicies>,
}

impl Own {
    /// What the configuration's check has to know of it.
    pub(super) fn given(&self) -> Given {
        Given {
            usage_sink: self.usage_sink.is_some(),
            usage_history: self.usage_history.is_some(),
            quota_store: self.quota_store.is_some(),
            cache_store: self.answers.store.is_some(),
            is_cache_shared: self.answers.is_shared,
            kb_settings: self.answers.kbs.is_some(),
            prices: self.prices.clone(),
            policies: self.policies.clone(),
            leaves: self.leaves.keys().cloned().collect(),
        }
    }

    /// Leaves that the configuration does not name, and those that it names and the program does not give.
    pub(super) fn misfitting_leaves(&self, config: &Config) -> impl Iterator<Item = Problem> {
        let providers = &config.providers;
        let is_missing = |(name, provider): &(&String, &config::Provider)| {
            provider.kind == Kind::Own && !self.leaves.contains_key(name.as_str())
        };
        let missing = providers.iter().filter(is_missing).map(|(name, _)| {
            let what = "kind = \"own\" is for a leaf that the program gives, and it gives none";
            Problem::new(field("providers", name), what)
        });
        let unnamed = self.leaves.keys().filter(|name| !providers.contains_key(&***name)).map(|name| {
            let what = "the program gives a leaf for it, and the configuration does not name it";
            Problem::new(field("providers", name), what)
        });
        missing.chain(unnamed)
    }

    /// What of it would have nothing to do in a stack with these parts.
    pub(super) fn idle(&self, needs: &Needs, is_there: impl Fn(Part) -> bool) -> Vec<Problem> {
        let is_recorded = is_there(Part::Usage) || is_there(Part::Hits);
        let (is_limited, is_cached) = (is_there(Part::Quota), needs.has_cache);
        let (unlimited, uncached) = ("nothing is limited", "nothing is to be kept");
        let unrecorded = "the stack was built without what records into it";
        [
            (self.quota_store.is_some() && !is_limited, "quota", "a store", unlimited),
            (self.usage_history.is_some() && !is_limited, "quota", "a history", unlimited),
            (self.answers.store.is_some() && !is_cached, "cache", "a store", uncached),
            (self.answers.kbs.is_some() && !is_cached, "cache", "settings of knowledge bases", uncached),
            (self.usage_sink.is_some() && !is_recorded, "usage", "a sink", unrecorded),
            (self.usage_reader.is_some() && !is_recorded, "usage", "a reader", "nothing is recorded"),
        ]
        .into_iter()
        .filter(|(is_idle, ..)| *is_idle)
        .map(|(_, entry, what, why)| Problem::new(entry, format_args!("the program gives {what}, and {why}")))
        .collect()
    }
}
