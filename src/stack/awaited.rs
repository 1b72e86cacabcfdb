//! Counters in a server of Redis, of which nobody has seen yet that they are safe there, or that are not.

use super::StackError;
use crate::{
    quota::{
        Adjustment, Applied, Baseline, Days, Decision, Departments, LeaseId, QuotaStore, Recount,
        RedisQuotaStore, RedisUnfit, Reservation, Settlement, Standing, StoreError, StoreFuture, WindowName,
    },
    store::{Redis, Trouble},
};
use std::{
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::task::JoinSet;

/// As long as a server is not there, or not what it must be, nothing is reserved there.
pub(super) struct Awaited {
    store: RedisQuotaStore,
    is_awaited: Arc<AtomicBool>,
    /// Ends with the store: when the last service and the last handle are gone.
    _looks: JoinSet<()>,
}

/// How soon a store that could not be asked, or is not what it must be, is asked again; and one to which a connection was made.
const AGAIN: Duration = Duration::from_millis(500);
/// How often a store that is what it must be is asked whether it still is.
const EVERY: Duration = Duration::from_secs(10);

const NOT_COUNTED: &str = "quotas cannot be counted";

/// Refuses a server that must not be trusted with counters. One that cannot be asked may come yet; until then calls are
/// refused, and the stack is not ready. What was told of it; `None` if it answers.
pub(super) async fn check(redis: Redis, timeout: Duration) -> Result<Option<Trouble>, StackError> {
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

/// As [`check`], where nobody can wait: blocks. On connections and a runtime of its own: the one that calls are made on must not be
/// blocked in.
pub(super) fn check_blocking(redis: &Redis, timeout: Duration) -> Result<Option<Trouble>, StackError> {
    let redis = redis.apart();
    let check = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| StackError::store("quota.redis", error))?;
        runtime.block_on(check(redis, timeout))
    };
    let checking = thread::Builder::new().name("quota-check".into()).spawn(check);
    let checking = checking.map_err(|error| StackError::store("quota.redis", error))?;
    checking.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

impl Awaited {
    /// Asks the server again and again, now and then and when a connection was made, whether it is there and is what it must be.
    /// `trouble` is what was found so far.
    pub(super) fn new(redis: Redis, timeout: Duration, trouble: Option<Trouble>) -> Self {
        let is_awaited = Arc::new(AtomicBool::new(trouble.is_some()));
        let mut connections = redis.connections();
        let store = RedisQuotaStore::new(redis).with_deadline(timeout);
        let mut looks = JoinSet::new();
        looks.spawn({
            let (store, is_awaited, trouble) =
                (store.clone(), Arc::clone(&is_awaited), trouble.unwrap_or_default());
            async move {
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
            }
        });
        Self { store, is_awaited, _looks: looks }
    }

    /// Whether it is not fit as far as is known.
    pub(super) const fn is_awaited(&self) -> &Arc<AtomicBool> {
        &self.is_awaited
    }
}

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
