//! Limits, allow-lists, and the counters.

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
#[cfg(feature = "redis")]
use crate::{
    quota::{
        Adjustment, Applied, Baseline, Days, Decision, Departments, LeaseId, Recount, RedisQuotaStore,
        RedisUnfit, Reservation, Settlement, StoreFuture, WindowName,
    },
    store::Trouble,
};
#[cfg(feature = "redis")]
use std::{panic, thread};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
#[cfg(feature = "redis")]
use tokio::task::JoinSet;

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
    /// Ends with the counters.
    #[cfg(feature = "redis")]
    looks: JoinSet<()>,
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

/// Counters of which nobody has seen yet that they are safe where they are, or that are not: nothing is reserved there.
#[cfg(feature = "redis")]
struct Awaited {
    store: RedisQuotaStore,
    is_awaited: Arc<AtomicBool>,
}

/// How soon a store that could not be asked, or is not what it must be, is asked again; and one to which a connection was made.
#[cfg(feature = "redis")]
const AGAIN: Duration = Duration::from_millis(500);
/// How often a store that is what it must be is asked whether it still is.
#[cfg(feature = "redis")]
const EVERY: Duration = Duration::from_secs(10);

#[cfg(feature = "redis")]
const NOT_COUNTED: &str = "quotas cannot be counted";

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
            let trouble = Self::check(redis.redis.clone(), plan.timeout).await?;
            let quotas = Self::start((config, plan), own, history, on_bad_policies)?;
            return Ok(quotas.awaiting(trouble, redis.redis.clone(), plan.timeout));
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
            // On connections and a runtime of its own: the one that calls are made on must not be blocked in.
            let (apart, timeout) = (redis.redis.apart(), plan.timeout);
            let check = move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| StackError::store("quota.redis", error))?;
                runtime.block_on(Self::check(apart, timeout))
            };
            let checking = thread::Builder::new().name("quota-check".into()).spawn(check);
            let checking = checking.map_err(|error| StackError::store("quota.redis", error))?;
            let trouble = checking.join().unwrap_or_else(|panic| panic::resume_unwind(panic))?;
            let quotas = Self::start((config, plan), None, history, on_bad_policies)?;
            return Ok(quotas.awaiting(trouble, redis.redis.clone(), timeout));
        }
        Self::start((config, plan), None, history, on_bad_policies)
    }

    /// Refuses a server that must not be trusted with counters. One that cannot be asked may come yet; until then calls are
    /// refused, and the stack is not ready. What was told of it; `None` if it answers.
    #[cfg(feature = "redis")]
    async fn check(redis: crate::store::Redis, timeout: Duration) -> Result<Option<Trouble>, StackError> {
        match RedisQuotaStore::new(redis).with_deadline(timeout).check().await {
            Ok(()) => Ok(None),
            Err(RedisUnfit::Unavailable(error)) => {
                let trouble = Trouble::default();
                trouble.fails(NOT_COUNTED, &error.to_string());
                Ok(Some(trouble))
            }
            Err(unfit) => Err(StackError::store("quota.redis", unfit)),
        }
    }

    /// Asks the server again and again, now and then and when a connection was made, whether it is there and is what it must be.
    #[cfg(feature = "redis")]
    fn awaiting(mut self, trouble: Option<Trouble>, redis: crate::store::Redis, timeout: Duration) -> Self {
        self.is_awaited.store(trouble.is_some(), Ordering::Release);
        let (is_awaited, trouble) = (Arc::clone(&self.is_awaited), trouble.unwrap_or_default());
        let mut connections = redis.connections();
        let store = RedisQuotaStore::new(redis).with_deadline(timeout);
        self.looks.spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                if !is_awaited.load(Ordering::Acquire) {
                    let _ = tokio::time::timeout(EVERY, connections.changed()).await;
                }
                match store.check().await {
                    Ok(()) => {
                        is_awaited.store(false, Ordering::Release);
                        trouble.works("quotas are counted again");
                    }
                    // Which was told, or is by whoever is refused.
                    Err(RedisUnfit::Unavailable(_)) => {}
                    Err(unfit) => {
                        is_awaited.store(true, Ordering::Release);
                        trouble.fails(NOT_COUNTED, &unfit.to_string());
                    }
                }
            }
        });
        self
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
        let is_awaited = Arc::default();
        let (base, workers) = match own {
            Some(store) => Self::pair(store),
            None => Self::counters(plan, &is_awaited)?,
        };
        let base = base.with_calendar(plan.calendar.clone()).with_deadline(plan.timeout);
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
            is_awaited,
            #[cfg(feature = "redis")]
            looks: JoinSet::new(),
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

    fn counters(
        plan: &LimitsPlan,
        is_awaited: &Arc<AtomicBool>,
    ) -> Result<(QuotaLayer, Workers), StackError> {
        #[cfg(not(feature = "redis"))]
        let _ = is_awaited;
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
            #[cfg(feature = "redis")]
            Counters::Redis(redis) => {
                let store = RedisQuotaStore::new(redis.redis.clone()).with_deadline(plan.timeout);
                Self::pair(Awaited { store, is_awaited: Arc::clone(is_awaited) })
            }
            #[cfg(not(all(feature = "rusqlite", feature = "redis")))]
            _ => unreachable!("refused by the configuration's check"),
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

// ===== impl Awaited =====

#[cfg(feature = "redis")]
#[deny(clippy::missing_trait_methods)]
impl QuotaStore for Awaited {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        match self.is_awaited.load(Ordering::Acquire) {
            true => StoreFuture::ready(Err(StoreError::definite("it is not found fit"))),
            false => self.store.reserve(reservation),
        }
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        self.store.extend(id, departments, by)
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        self.store.settle(settlement)
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        self.store.settle_each(settlement)
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        self.store.release(id, departments)
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        self.store.usage(department, days)
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        self.store.seed(department, baseline)
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        self.store.adjust(adjustment)
    }

    fn recount(
        &self,
        department: &Arc<str>,
        window: WindowName,
        correct: bool,
    ) -> StoreFuture<Option<Recount>> {
        self.store.recount(department, window, correct)
    }

    fn is_immediate(&self) -> bool {
        self.store.is_immediate()
    }

    fn part(&self, department: &str) -> u16 {
        self.store.part(department)
    }
}
