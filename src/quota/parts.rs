//! Which parts of a store have not answered lately.

use super::{amount::Departments, plan::Plan, store::QuotaStore};
use crate::store::Breaker;
use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Keeps from asking parts of a store that do not answer, and asks the others.
///
/// Calls that are charged in several parts have a breaker of their own: nobody says which of these has failed.
#[derive(Default)]
pub(super) struct Parts {
    failing: Mutex<HashMap<Box<[u16]>, Failing>>,
    /// How many these are: as long as there are none, nobody needs the lock.
    count: AtomicUsize,
    /// How often a part has answered while another failed.
    answers: AtomicU64,
    is_mute: AtomicBool,
}

struct Failing {
    breaker: Breaker,
    /// What it did not answer last.
    plan: Plan,
    /// How many answers there were when it began to fail.
    since: u64,
    last: Instant,
}

const FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// How many are told apart. What fails beyond that is asked each time.
const MOST: usize = 1024;
/// For how long a failure says something of a part that nobody has asked since.
const REMEMBERED: Duration = Duration::from_secs(60);

impl Parts {
    /// Whether the store may be asked now.
    pub(super) fn lets_through(&self, store: &dyn QuotaStore, departments: &Departments) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return true;
        }
        let failing = self.lock();
        failing.get(&*parts(store, departments)).is_none_or(|failing| failing.breaker.lets_through())
    }

    /// The store has answered. Whether something had failed, and nothing does any more.
    pub(super) fn succeeded(&self, store: &dyn QuotaStore, departments: &Departments) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let answering = parts(store, departments);
        let mut failing = self.lock();
        self.answers.fetch_add(1, Ordering::AcqRel);
        self.is_mute.store(false, Ordering::Release);
        let (before, now) = (failing.len(), Instant::now());
        failing.retain(|parts, failing| {
            failing.is_recent(now) && !parts.iter().all(|part| answering.contains(part))
        });
        self.count.store(failing.len(), Ordering::Release);
        before > 0 && failing.is_empty()
    }

    /// The store has not answered, or could not.
    pub(super) fn failed(&self, store: &dyn QuotaStore, plan: &Plan) {
        let parts = parts(store, &plan.departments);
        let mut failing = self.lock();
        let now = Instant::now();
        if failing.len() >= MOST && !failing.contains_key(&parts) {
            // Where nothing answers, those stay that are asked whether anything does.
            let is_mute = self.is_mute();
            failing.retain(|_, failing| failing.is_recent(now) || (is_mute && failing.breaker.is_open()));
            if failing.len() >= MOST {
                return;
            }
        }
        let answers = self.answers.load(Ordering::Acquire);
        let one = failing.entry(parts).or_insert_with(|| Failing {
            breaker: Breaker::new(FAILURES, PAUSE),
            plan: plan.clone(),
            since: answers,
            last: now,
        });
        one.plan = plan.clone();
        one.last = now;
        one.breaker.failed();
        if one.breaker.is_open() && one.since == answers {
            self.is_mute.store(true, Ordering::Release);
        }
        self.count.store(failing.len(), Ordering::Release);
    }

    /// Whether some part has not answered lately, and no other has since.
    pub(super) fn is_mute(&self) -> bool {
        self.is_mute.load(Ordering::Acquire)
    }

    /// What to ask a part for that has not answered lately, and may be asked again.
    pub(super) fn due(&self) -> Option<Plan> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.lock().values().find(|failing| failing.breaker.is_due()).map(|failing| failing.plan.nothing())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<[u16]>, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failing {
    fn is_recent(&self, now: Instant) -> bool {
        now.duration_since(self.last) < REMEMBERED
    }
}

/// In which parts these are.
pub(super) fn parts(store: &dyn QuotaStore, departments: &Departments) -> Box<[u16]> {
    let mut parts: Vec<u16> = departments.iter().map(|department| store.part(&department.id)).collect();
    parts.sort_unstable();
    parts.dedup();
    parts.into()
}
