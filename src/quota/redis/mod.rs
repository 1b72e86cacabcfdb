//! Counts in Redis, for all gateways that share it.

mod check;
mod reserve;
mod steps;

pub use self::check::RedisUnfit;

use self::steps::{Answer, Ending};
use super::{
    Adjustment, Amount, Applied, Baseline, Days, Decision, Departments, LeaseId, QuotaStore, Recount,
    Reservation, Settlement, Standing, StoreError, StoreFuture, WindowName, calendar::system_time,
};
use crate::store::{
    Redis, RedisError, RedisErrorKind,
    redis::{Run, slot},
};
use futures_util::future::join_all;
use redis::Value;
#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Counts in Redis 7.0 or newer, or Valkey: one server, or a cluster.
///
/// All that share it share the counters, and days and leases go by the servers' clock. The limits come with each
/// reservation: all need the same policies, prices and calendar.
/// Each operation is one script and one round trip, done or not done. The exception is an operation in a cluster on
/// departments of several slots:
///
/// - A reservation is taken in each slot as *pending*, and confirmed when all have granted it: two round trips. What is
///   pending counts as reserved; it is taken back where another slot denies it, and expires as released after two
///   seconds if its gateway is gone.
/// - The others are done in all slots at once. If only some succeed, that is [`Ambiguous`](StoreError::Ambiguous), and sent
///   again they complete.
///
/// # What is there
///
/// For each department three keys, of one slot: `llm-quota:{…}:counters`, `…:leases` and `…:expiries`, where `…` is a
/// hash of its id, see [`keys`](Self::keys). They take about 400 bytes on the first day, 10 kB when days of two months
/// are there, and 300 bytes for each call in flight. Counters of windows before the last month are forgotten once a
/// month, and a department that nobody has used for 200 days altogether.
///
/// Counters that are lost, with a server that kept nothing on its disk, are known to be lost: a reservation that
/// [needs it](Reservation::needs_seed) says [`Unseeded`](StoreError::Unseeded). A server that throws away keys when its
/// memory is full would lose some of them unnoticed: [`check`](Self::check) refuses it. `docs/operations-redis-quota.md`
/// says what to set, and what a failover may lose.
///
/// # Time
///
/// An operation takes at most [the deadline](Self::with_deadline), 250 ms unless told, whatever happens to the servers or
/// the network; a reservation that is taken back in other slots, at most a quarter more. Connections come back by
/// themselves.
///
/// # Cancel safety
///
/// An operation that is dropped may have been done, as one that is ambiguous.
///
/// # Examples
///
/// ```no_run
/// use llm_layers::{
///     policies::{DepartmentPolicy, PolicyTable},
///     price::Prices,
///     quota::{Limits, QuotaLayer, RedisQuotaStore, WorkerOptions},
///     store::{Redis, RedisOptions},
/// };
/// use std::time::Duration;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::new("redis://:secret@10.0.0.1:6379", RedisOptions::default())?;
/// let store = RedisQuotaStore::new(redis);
/// // At the start, and for readiness.
/// store.check().await?;
///
/// let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_tokens(1_000_000)));
/// let (layer, worker) = QuotaLayer::pair(store, policies, Prices::default(), WorkerOptions::default());
/// // … layer the service, and serve. At the end:
/// # drop(layer);
/// worker.shutdown(Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RedisQuotaStore {
    redis: Redis,
    prefix: Arc<str>,
    deadline: Duration,
    #[cfg(feature = "testing")]
    offset: Arc<AtomicU64>,
}

/// Where a department is kept.
#[derive(Debug)]
struct Account {
    counters: String,
    leases: String,
    expiries: String,
}

const DEADLINE: Duration = Duration::from_millis(250);
const PREFIX: &str = "llm-quota";

// ===== impl RedisQuotaStore =====

impl RedisQuotaStore {
    /// Counts there, under `llm-quota:`.
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            prefix: PREFIX.into(),
            deadline: DEADLINE,
            #[cfg(feature = "testing")]
            offset: Arc::default(),
        }
    }

    /// Counts under keys that begin with `prefix` and a colon. All that share limits must have the same.
    ///
    /// With a `{tag}` in it, all departments are in one slot of a cluster: each reservation is one round trip then, and
    /// one node does all the work.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// How long an operation may take, connecting included; 250 ms unless told.
    #[must_use]
    pub const fn with_deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// The keys of a department: its counters, its leases, and when they expire.
    pub fn keys(&self, department: &str) -> [String; 3] {
        let Account { counters, leases, expiries } = self.account(department);
        [counters, leases, expiries]
    }

    /// Lets the servers' clock be further on, for this store and its clones.
    #[cfg(feature = "testing")]
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.offset.fetch_add(by, Ordering::Relaxed);
    }

    #[cfg(feature = "testing")]
    fn offset(&self) -> u64 {
        self.offset.load(Ordering::Relaxed)
    }

    #[cfg(not(feature = "testing"))]
    const fn offset(&self) -> u64 {
        0
    }

    fn account(&self, department: &str) -> Account {
        // Whatever is in a name, it is in no key.
        let hash = blake3::hash(department.as_bytes()).to_hex();
        let key = |of: &str| format!("{}:{{{}}}:{of}", self.prefix, &hash[..40]);
        Account { counters: key("counters"), leases: key("leases"), expiries: key("expiries") }
    }

    fn accounts(&self, departments: &Departments) -> Vec<Account> {
        departments.iter().map(|department| self.account(&department.id)).collect()
    }

    /// Which of them can be had by one script: all, or in a cluster those of one slot. In the order of the slots.
    fn groups(&self, accounts: &[Account]) -> Vec<Vec<usize>> {
        let mut groups = BTreeMap::<u16, Vec<usize>>::new();
        for (at, account) in accounts.iter().enumerate() {
            let slot = if self.redis.is_cluster() { slot(account.counters.as_bytes()) } else { 0 };
            groups.entry(slot).or_default().push(at);
        }
        groups.into_values().collect()
    }

    fn deadline(&self) -> Instant {
        // As good as for ever, and no clock runs over.
        Instant::now() + self.deadline.min(Duration::from_secs(86_400))
    }

    async fn run(&self, run: &Run<'_>, until: Instant) -> Result<Value, StoreError> {
        let left = until.saturating_duration_since(Instant::now());
        Ok(self.redis.clone().with_deadline(left).run(run).await?)
    }

    /// Runs a script in all slots of these departments.
    async fn run_everywhere(
        &self,
        departments: &Departments,
        build: impl Fn(&[&Account]) -> Run<'static>,
    ) -> Result<Vec<(Vec<usize>, Value)>, StoreError> {
        let (accounts, until) = (self.accounts(departments), self.deadline());
        let groups = self.groups(&accounts);
        let runs: Vec<_> = groups
            .iter()
            .map(|group| build(&group.iter().map(|at| &accounts[*at]).collect::<Vec<_>>()))
            .collect();
        let results = join_all(runs.iter().map(|run| self.run(run, until))).await;
        let is_in_part = results.iter().any(Result::is_ok);
        let values = all(results).map_err(|error| match error {
            StoreError::Definite(cause) | StoreError::Damaged(cause) if is_in_part => {
                StoreError::Ambiguous(cause)
            }
            error => error,
        })?;
        Ok(groups.into_iter().zip(values).collect())
    }

    async fn finish(
        &self,
        how: Ending,
        id: LeaseId,
        departments: &Departments,
        truth: &Amount,
    ) -> Result<Vec<Applied>, StoreError> {
        let build = |accounts: &[&Account]| steps::finish(accounts, self.offset(), how, id, truth);
        let mut each = vec![Applied::Duplicate; departments.len()];
        for (group, value) in self.run_everywhere(departments, build).await? {
            let said = steps::finished(&value).filter(|said| said.len() == group.len());
            for (at, applied) in group.into_iter().zip(said.ok_or_else(unexpected)?) {
                each[at] = applied;
            }
        }
        Ok(each)
    }

    async fn run_one(&self, run: &Run<'_>) -> Result<bool, StoreError> {
        let value = self.run(run, self.deadline()).await?;
        steps::flag(&value).ok_or_else(unexpected)
    }

    async fn standing(&self, department: &str, days: &Days) -> Result<Standing, StoreError> {
        let run = steps::usage(&self.account(department), self.offset(), days);
        let value = self.run(&run, self.deadline()).await?;
        match steps::answer(&value).ok_or_else(unexpected)? {
            Answer::Off { now } => Err(StoreError::OffCalendar { now: system_time(now) }),
            Answer::Told(told) => {
                let (Some(day), [found]) = (days.get(told.row), &*told.found) else {
                    return Err(unexpected());
                };
                let (in_day, in_month, is_known) = (found.in_day, found.in_month, found.is_known);
                Ok(Standing { day: *day, in_day, in_month, is_known })
            }
        }
    }
}

impl QuotaStore for RedisQuotaStore {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let (store, reservation) = (self.clone(), reservation.clone());
        StoreFuture::boxed(async move { store.reserve_everywhere(&reservation).await })
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        let (store, departments) = (self.clone(), departments.clone());
        StoreFuture::boxed(async move {
            let build = |accounts: &[&Account]| steps::extend(accounts, store.offset(), id, by);
            let values = store.run_everywhere(&departments, build).await?;
            values
                .iter()
                .try_fold(true, |all, (_, value)| Ok(all & steps::flag(value).ok_or_else(unexpected)?))
        })
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let (store, settlement) = (self.clone(), settlement.clone());
        StoreFuture::boxed(async move {
            let Settlement { id, departments, amount } = &settlement;
            let each = store.finish(Ending::Settle, *id, departments, amount).await?;
            Ok(each.into_iter().fold(Applied::Duplicate, Applied::and))
        })
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        let (store, settlement) = (self.clone(), settlement.clone());
        StoreFuture::boxed(async move {
            let Settlement { id, departments, amount } = &settlement;
            store.finish(Ending::Settle, *id, departments, amount).await
        })
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        let (store, departments) = (self.clone(), departments.clone());
        StoreFuture::boxed(async move {
            store.finish(Ending::Release, id, &departments, &Amount::ZERO).await.map(drop)
        })
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        let (store, department, days) = (self.clone(), Arc::clone(department), days.clone());
        StoreFuture::boxed(async move { store.standing(&department, &days).await })
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        let (store, run) = (self.clone(), steps::seed(&self.account(department), self.offset(), baseline));
        StoreFuture::boxed(async move { store.run_one(&run).await })
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        let account = self.account(&adjustment.department);
        let (store, run) = (self.clone(), steps::adjust(&account, self.offset(), adjustment));
        StoreFuture::boxed(async move { store.run_one(&run).await })
    }

    fn recount(
        &self,
        department: &Arc<str>,
        window: WindowName,
        correct: bool,
    ) -> StoreFuture<Option<Recount>> {
        let account = self.account(department);
        let (store, run) = (self.clone(), steps::recount(&account, self.offset(), window, correct));
        StoreFuture::boxed(async move {
            let value = store.run(&run, store.deadline()).await?;
            steps::recounted(&value).map(Some).ok_or_else(unexpected)
        })
    }

    /// Its slot, in a cluster.
    fn part(&self, department: &str) -> u16 {
        if self.redis.is_cluster() { slot(self.account(department).counters.as_bytes()) } else { 0 }
    }
}

// ===== impl Account =====

impl Account {
    fn keys(&self) -> [&str; 3] {
        [&self.counters, &self.leases, &self.expiries]
    }
}

// ===== errors =====

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        if matches!(error.kind(), RedisErrorKind::Server(code) if DAMAGED.contains(&&**code)) {
            return Self::damaged(error);
        }
        match error.is_ambiguous() {
            true => Self::ambiguous(error),
            false => Self::definite(error),
        }
    }
}

/// What is said of keys that are not as a script leaves them: all of them are read before the first is written.
const DAMAGED: [&str; 2] = ["QUOTA", "WRONGTYPE"];

/// All, or the error that says the least; of a server that failed rather than of a department that is damaged.
fn all<T>(results: Vec<Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
    let weight = |error: &StoreError| match error {
        StoreError::Damaged(_) => 0,
        StoreError::Ambiguous(_) => 2,
        _ => 1,
    };
    let mut worst: Option<StoreError> = None;
    let mut values = Vec::with_capacity(results.len());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(error) if worst.as_ref().is_none_or(|worst| weight(worst) < weight(&error)) => {
                worst = Some(error);
            }
            Err(_) => {}
        }
    }
    worst.map_or(Ok(values), Err)
}

fn unexpected() -> StoreError {
    RedisError::unexpected().into()
}
