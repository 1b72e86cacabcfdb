//! Limits, allow-lists, and the counters.

#[cfg(feature = "redis")]
use super::awaited::{self, Awaited};
use super::{QuotaView, ShutdownReport, StackError};
use crate::{
    access::AccessLayer,
    clock::{Clock, SystemClock},
    config::{
        Config, Quota, Revealed,
        plan::{Counters, LimitsPlan, PlannedProvider},
    },
    policies::Policies,
    price::Prices,
    quota::{
        self, Calendar, HistoryQuery, MemoryStore, QuotaLayer, QuotaStore, Standing, StoreError,
        UsageHistory, WorkerOptions,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// What keeps departments within their limits, whatever these are at the moment.
pub(super) struct Quotas {
    /// With no tables of its own.
    base: QuotaLayer,
    /// `None`: the policies are those of the configuration.
    followed: Option<Policies>,
    calendar: Calendar,
    /// How long counters and what they are told of the past may take.
    timeout: Duration,
    workers: Workers,
    opened_by: OpenedBy,
    /// Nobody has been able to ask the store yet, or it is not what it must be.
    is_awaited: Arc<AtomicBool>,
    #[cfg(feature = "rusqlite")]
    _follower: Option<crate::policies::Follower>,
}

/// What counters were opened by, which lasts as long as they do.
#[derive(Clone)]
pub(super) struct OpenedBy {
    pub(super) quota: Quota,
    pub(super) address: Option<Revealed>,
}

#[derive(Default)]
struct Workers {
    settling: Option<quota::Worker>,
    #[cfg(feature = "rusqlite")]
    file: Option<Arc<crate::quota::SqliteStore>>,
}

/// Told when policies that are followed cannot be read.
pub(super) type OnBadPolicies = Arc<dyn Fn(&crate::BoxError) + Send + Sync>;

impl OpenedBy {
    pub(super) fn new(config: &Config, plan: &LimitsPlan) -> Self {
        let address = match &plan.counters {
            Counters::Redis(redis) => Some(redis.address.clone()),
            Counters::Memory | Counters::File(_) => None,
        };
        Self { quota: config.quota.clone().unwrap_or_default(), address }
    }
}

impl Quotas {
    pub(super) async fn open(
        (config, plan): (&Config, &LimitsPlan),
        own: Option<Arc<dyn QuotaStore>>,
        history: Option<Arc<dyn UsageHistory>>,
        on_bad_policies: Option<OnBadPolicies>,
    ) -> Result<Self, StackError> {
        #[cfg(feature = "redis")]
        if let (None, Counters::Redis(redis)) = (&own, &plan.counters) {
            let trouble = awaited::check(redis.redis.clone(), plan.timeout).await?;
            let store = Awaited::new(redis.redis.clone(), plan.timeout, trouble);
            return Self::awaiting((config, plan), store, history, on_bad_policies);
        }
        Self::start((config, plan), own, history, on_bad_policies)
    }

    /// As [`open`](Self::open), where nobody can wait: blocks.
    pub(super) fn open_blocking(
        (config, plan): (&Config, &LimitsPlan),
        history: Option<Arc<dyn UsageHistory>>,
        on_bad_policies: Option<OnBadPolicies>,
    ) -> Result<Self, StackError> {
        #[cfg(feature = "redis")]
        if let Counters::Redis(redis) = &plan.counters {
            let trouble = awaited::check_blocking(&redis.redis, plan.timeout)?;
            let store = Awaited::new(redis.redis.clone(), plan.timeout, trouble);
            return Self::awaiting((config, plan), store, history, on_bad_policies);
        }
        Self::start((config, plan), None, history, on_bad_policies)
    }

    #[cfg(feature = "redis")]
    fn awaiting(
        limits: (&Config, &LimitsPlan),
        store: Awaited,
        history: Option<Arc<dyn UsageHistory>>,
        on_bad_policies: Option<OnBadPolicies>,
    ) -> Result<Self, StackError> {
        let is_awaited = Arc::clone(store.is_awaited());
        let quotas = Self::start(limits, Some(Arc::new(store)), history, on_bad_policies)?;
        Ok(Self { is_awaited, ..quotas })
    }

    fn start(
        (config, plan): (&Config, &LimitsPlan),
        own: Option<Arc<dyn QuotaStore>>,
        history: Option<Arc<dyn UsageHistory>>,
        on_bad_policies: Option<OnBadPolicies>,
    ) -> Result<Self, StackError> {
        #[cfg(feature = "rusqlite")]
        let (followed, follower) = match &plan.policies_file {
            Some(path) => {
                use crate::policies::SqlitePolicies;
                let failed = |error: crate::BoxError| StackError::store("quota.policies", error);
                let source = SqlitePolicies::open(path).map_err(|error| failed(error.into()))?;
                let policies = Policies::default();
                let told = move |error| {
                    if let Some(told) = &on_bad_policies {
                        told(&error);
                    }
                };
                let follower = policies.follow(source, SqlitePolicies::EVERY, told).map_err(failed)?;
                (Some(policies), Some(follower))
            }
            None => (None, None),
        };
        #[cfg(not(feature = "rusqlite"))]
        let (followed, _) = (None, on_bad_policies);
        let (base, workers) = match own {
            Some(store) => Self::pair(store),
            None => Self::counters(plan)?,
        };
        let base = base.with_calendar(plan.calendar.clone()).with_deadline(plan.timeout);
        #[cfg(feature = "tokenizer")]
        let base = base.with_estimator(crate::quota::BpeEstimator::default());
        let base = match history {
            Some(history) => base.with_history(history),
            None => base,
        };
        Ok(Self {
            base,
            followed,
            calendar: plan.calendar.clone(),
            timeout: plan.timeout,
            workers,
            opened_by: OpenedBy::new(config, plan),
            is_awaited: Arc::default(),
            #[cfg(feature = "rusqlite")]
            _follower: follower,
        })
    }

    /// What the host makes of the layer.
    pub(super) fn map(self, map: Option<&(dyn Fn(QuotaLayer) -> QuotaLayer + Send + Sync)>) -> Self {
        match map {
            Some(map) => Self { base: map(self.base), ..self },
            None => self,
        }
    }

    fn pair(store: impl QuotaStore) -> (QuotaLayer, Workers) {
        let (policies, prices) = (Policies::default(), Prices::default());
        let (layer, worker) = QuotaLayer::pair(store, policies, prices, WorkerOptions::default());
        (layer, Workers { settling: Some(worker), ..Workers::default() })
    }

    fn counters(plan: &LimitsPlan) -> Result<(QuotaLayer, Workers), StackError> {
        Ok(match &plan.counters {
            Counters::Memory => {
                let layer = QuotaLayer::new(MemoryStore::new(), Policies::default(), Prices::default());
                (layer, Workers::default())
            }
            #[cfg(feature = "rusqlite")]
            Counters::File(path) => {
                use crate::quota::{SqliteOptions, SqliteStore};
                let options = SqliteOptions::new().with_timeout(plan.timeout);
                let store = SqliteStore::open(path, options)
                    .map_err(|error| StackError::store("quota.path", error))?;
                let store = Arc::new(store);
                let (layer, workers) = Self::pair(Arc::clone(&store));
                (layer, Workers { file: Some(store), ..workers })
            }
            _ => unreachable!(
                "a server is awaited, and what is not built in the configuration's check refuses"
            ),
        })
    }

    /// Both layers, by the tables of one configuration.
    pub(super) fn layers(
        &self,
        plan: &LimitsPlan,
        policies: Policies,
        providers: &[PlannedProvider],
        prices: &Prices,
    ) -> (AccessLayer, QuotaLayer, Policies) {
        let policies = self.followed.clone().unwrap_or(policies);
        let mut layer = self
            .base
            .clone()
            .with_tables(policies.clone(), prices.clone())
            .with_mode(plan.mode)
            .with_unbounded(plan.unbounded)
            .with_on_tight(plan.on_tight)
            .with_unpriced(plan.unpriced.clone());
        for (model, tokens) in providers.iter().flat_map(|provider| &provider.max_outputs) {
            layer = layer.with_model_output([model], *tokens);
        }
        (AccessLayer::new(policies.clone()), layer, policies)
    }

    /// What may not change while it is there.
    pub(super) const fn opened_by(&self) -> &OpenedBy {
        &self.opened_by
    }

    /// Whether calls can be admitted.
    pub(super) fn is_healthy(&self) -> bool {
        !self.is_awaited.load(Ordering::Acquire) && self.base.is_available()
    }

    pub(super) async fn view(&self, department: &str, policies: &Policies) -> Result<QuotaView, StoreError> {
        let department: Arc<str> = department.into();
        let standing = tokio::time::timeout(self.timeout, self.standing(&department)).await;
        let standing = standing.map_err(StoreError::definite)??;
        let policy = policies.load().of(&department).clone();
        Ok(QuotaView { department, policy, standing })
    }

    async fn standing(&self, department: &Arc<str>) -> Result<Standing, StoreError> {
        let days = self.calendar.days_around(SystemClock.now());
        let mut standing = self.base.store().usage(department, &days).await?;
        if let Some(history) = self.base.history().filter(|_| !standing.is_known) {
            // As the next call will find it: the store is told by then.
            let query = HistoryQuery::new(Arc::clone(department), standing.day);
            let used = history.used(query).await.map_err(StoreError::Definite)?;
            (standing.in_day.settled, standing.in_month.settled) = (used.in_day, used.in_month);
        }
        Ok(standing)
    }

    /// Settles what is left.
    pub(super) async fn close(&self, deadline: tokio::time::Instant, report: &mut ShutdownReport) {
        let left =
            || deadline.saturating_duration_since(tokio::time::Instant::now()).max(Duration::from_millis(1));
        if let Some(worker) = &self.workers.settling {
            report.quota = Some(worker.close(left()).await);
        }
        #[cfg(feature = "rusqlite")]
        if let Some(file) = &self.workers.file {
            report.quota_file_is_busy = !file.shutdown(left()).await;
        }
    }
}
