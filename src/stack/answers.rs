//! Answers that are given again.

use crate::{
    Error, KbScope, RequestContext,
    cache::{
        CacheLayer, CachePolicy, CacheSecret, CacheStats, CacheStore, CacheWorker, Coalescing, EpochKind,
        Fetch, KbCaching, KbSettings,
    },
    caught::caught,
    config::{
        self,
        plan::{CachePlan, PlannedProvider},
    },
};
use arc_swap::ArcSwap;
use std::{collections::BTreeSet, sync::Arc, time::Duration};

/// The cache of all calls.
pub(super) struct Answers {
    layer: CacheLayer,
    allowed: AllowedKbs,
    worker: CacheWorker,
}

/// The knowledge bases that allow it. Exchanged with each configuration.
#[derive(Clone, Default)]
struct AllowedKbs(Arc<ArcSwap<BTreeSet<Arc<str>>>>);

impl KbSettings for AllowedKbs {
    fn caching(&self, kb: &KbScope, _: &RequestContext) -> Fetch<KbCaching> {
        Fetch::Ready(match self.0.load().contains(&kb.id) {
            true => KbCaching::Allowed,
            false => KbCaching::Disabled,
        })
    }
}

/// What the host gives in place of what the configuration says.
#[derive(Clone, Default)]
pub(super) struct Own {
    pub(super) store: Option<Arc<dyn CacheStore>>,
    pub(super) is_shared: bool,
    pub(super) kbs: Option<Arc<dyn KbSettings>>,
}

impl Own {
    pub(super) fn set_store(&mut self, store: Arc<dyn CacheStore>) {
        // A store that fails to say so may be anybody's.
        self.is_shared = caught("the store", || store.epochs().is_some()).unwrap_or(true);
        self.store = Some(store);
    }
}

impl Answers {
    pub(super) fn start(settings: &config::Cache, plan: &CachePlan, own: Own) -> Self {
        let secret = match &plan.secret {
            Some(secret) => CacheSecret::new(*blake3::hash(secret.reveal().as_bytes()).as_bytes()),
            None => CacheSecret::random(),
        };
        let allowed = AllowedKbs::default();
        let mut policy = CachePolicy::new(secret.clone())
            .with_ttl(settings.ttl.0)
            .with_max_entry_bytes(settings.max_entry_bytes);
        policy = match own.kbs {
            Some(kbs) => policy.with_kb_settings(kbs),
            None => policy.with_kb_settings(allowed.clone()),
        };
        if let Some(temperature) = settings.max_temperature {
            policy = policy.with_max_temperature(temperature);
        }
        if settings.tool_calls {
            policy = policy.with_tool_calls();
        }
        if settings.coalesce {
            policy = policy.with_coalescing(Coalescing::new().with_max_flights(plan.max_flights));
        }
        #[cfg(all(feature = "semantic", feature = "hyper-client"))]
        if let (Some(semantic), Some(plan)) = (&settings.semantic, &plan.semantic) {
            policy = policy.with_semantic(super::embedder::semantic(semantic, plan));
        }
        let (layer, worker) = match own.store {
            Some(store) => CacheLayer::start(store, policy),
            None => Self::own_store(settings, plan, &secret, policy),
        };
        let answers = Self { layer, allowed, worker };
        answers.take(plan);
        answers
    }

    #[cfg(feature = "moka")]
    fn own_store(
        settings: &config::Cache,
        plan: &CachePlan,
        secret: &CacheSecret,
        policy: CachePolicy,
    ) -> (CacheLayer, CacheWorker) {
        let near = crate::cache::MokaStore::new(settings.max_bytes);
        match &plan.shared {
            None => CacheLayer::start(near, policy),
            #[cfg(feature = "redis")]
            Some(shared) => {
                use crate::cache::{RedisBytes, SealedStore, TieredStore};
                let bytes = RedisBytes::new(&shared.redis, "llm-cache");
                let policy = policy.with_epochs(Arc::new(bytes.clone()));
                let far = SealedStore::new(bytes, secret.clone());
                #[cfg(feature = "encrypt")]
                let far = if settings.encrypt { far.encrypted() } else { far };
                CacheLayer::start(TieredStore::new(near, far), policy)
            }
            #[cfg(not(feature = "redis"))]
            Some(_) => unreachable!("refused by the configuration's check: {secret:?}"),
        }
    }

    #[cfg(not(feature = "moka"))]
    fn own_store(
        _: &config::Cache,
        _: &CachePlan,
        _: &CacheSecret,
        _: CachePolicy,
    ) -> (CacheLayer, CacheWorker) {
        unreachable!("refused by the configuration's check")
    }

    /// Goes by another configuration from now on.
    pub(super) fn take(&self, plan: &CachePlan) {
        self.allowed.0.store(Arc::new(plan.allowed_kbs.clone()));
    }

    /// For calls of these providers.
    pub(super) fn layer(&self, providers: &[PlannedProvider]) -> CacheLayer {
        let layer = self.layer.clone();
        providers.iter().fold(layer, |layer, one| layer.with_origin(Arc::clone(&one.name), origin(one)))
    }

    pub(super) fn stats(&self) -> CacheStats {
        self.layer.stats()
    }

    pub(super) async fn invalidate(&self, kind: EpochKind, id: &str) -> Result<(), Error> {
        self.layer.invalidate(kind, id).await
    }

    /// Lets shared calls end, and writes what is left. How many shared calls were cut off, and whether all was written.
    pub(super) async fn close(&self, deadline: Duration) -> crate::cache::CacheReport {
        self.worker.close(deadline).await
    }
}

/// By whom a provider answers: its kind and where its servers are, in no order; not the keys that they take.
fn origin(provider: &PlannedProvider) -> String {
    let servers: BTreeSet<_> =
        provider.deployments.iter().map(|one| one.base_url.shown().trim_end_matches('/')).collect();
    servers.into_iter().fold(format!("{:?}", provider.kind), |all, server| all + "\n" + server)
}
