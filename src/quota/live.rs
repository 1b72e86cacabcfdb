//! The leases of calls that go on, or have ended and are not settled: what is known of them, should the store lose them.

use super::{
    amount::{Amount, Department, Departments, Limits},
    calendar::{Day, Days},
    lease::{Applied, Decision, LeaseId, Reservation, Settlement},
    parts::parts,
    store::{QuotaStore, StoreError},
};
use futures_util::future::join_all;
use std::{
    collections::{HashMap, HashSet},
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// The leases of calls that go on.
#[derive(Default)]
pub(super) struct Live {
    leases: Mutex<Leases>,
    /// Somebody is done with looking after one, or looking up the past of a department.
    freed: Notify,
    /// How many were settled.
    settled: AtomicU64,
}

#[derive(Default)]
struct Leases {
    held: HashMap<LeaseId, Held>,
    /// Those that have ended and are not settled, and whose they are.
    ending: HashMap<LeaseId, Departments>,
    /// Departments whose past is being looked up.
    rebuilding: HashSet<Arc<str>>,
    /// What such a past leaves out, so that it has to be charged whatever the store had done before.
    owed: HashSet<(LeaseId, Arc<str>)>,
    /// Those that are being looked after: such a one must not be settled meanwhile, for it would be made anew.
    busy: HashSet<LeaseId>,
}

/// A lease that is being looked after.
pub(super) struct Busy<'a>(&'a Live, LeaseId);

/// What is to be charged for a lease that has ended, settled or made anew.
pub(super) struct Unpaid {
    id: LeaseId,
    amount: Amount,
    day: Day,
    needs_seed: bool,
    /// Whose lease is not settled yet, in each part of the store by itself: what has failed in one says nothing of the others.
    /// With whether no try before may have done it.
    unsettled: Vec<(Departments, bool)>,
    /// What the store has lost of it: each department is charged by itself.
    lost: Vec<(Department, Step)>,
}

/// How far a department has come that has lost a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A try without an answer may have settled it.
    Doubtful,
    Lost,
    /// There is a lease again: it is settled as any other, once, whoever does it again.
    Made,
}

/// A department whose past is being looked up in the ledger, by one at a time. Until it is dropped, nothing that it is charged
/// for is given up.
pub(super) struct Rebuilding {
    live: Arc<Live>,
    department: Arc<str>,
}

/// What became of a lease that the store did not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restored {
    Made,
    /// It has expired or was released.
    Over,
    /// What its departments have used up before comes first, from the ledger, when a call needs it.
    NotYet,
}

/// What is known of a lease: enough to make it anew.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) departments: Departments,
    amount: Amount,
    on_expiry: Amount,
    day: Day,
    needs_seed: bool,
    /// When it was extended; `None` if it is to be as soon as possible.
    since: Option<Instant>,
}

impl Rebuilding {
    /// Unless somebody is at it.
    pub(super) fn begin(live: &Arc<Live>, department: &Arc<str>) -> Option<Self> {
        let is_first = live.lock().rebuilding.insert(Arc::clone(department));
        is_first.then(|| Self { live: Arc::clone(live), department: Arc::clone(department) })
    }

    /// The leases that are not settled, in their order.
    pub(super) fn in_flight(&self) -> Vec<LeaseId> {
        let leases = self.live.lock();
        let held = leases.held.iter().map(|(id, held)| (id, &held.departments));
        let of_it = |departments: &Departments| departments.iter().any(|it| it.id == self.department);
        let all = held.chain(&leases.ending).filter(|(_, it)| of_it(it));
        let mut ids: Vec<LeaseId> = all.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        ids
    }

    /// The store was told of a past without these.
    pub(super) fn leaves_out(&self, ids: &[LeaseId]) {
        let mut leases = self.live.lock();
        let Leases { held, ending, owed, .. } = &mut *leases;
        let are_left = ids.iter().filter(|id| held.contains_key(*id) || ending.contains_key(*id));
        owed.extend(are_left.map(|id| (*id, Arc::clone(&self.department))));
    }
}

impl Drop for Rebuilding {
    fn drop(&mut self) {
        self.live.lock().rebuilding.remove(&self.department);
        self.live.freed.notify_waiters();
    }
}

impl Held {
    pub(super) fn new(
        departments: Departments,
        amount: Amount,
        on_expiry: Amount,
        day: Day,
        needs_seed: bool,
    ) -> Self {
        Self { departments, amount, on_expiry, day, needs_seed, since: Some(Instant::now()) }
    }

    /// Makes a lease anew that the store has lost, where it was admitted, whatever limits say now.
    pub(super) async fn restore(
        &self,
        store: &dyn QuotaStore,
        id: LeaseId,
        lease: Duration,
    ) -> Result<Restored, StoreError> {
        let (departments, days) = (unlimited(&self.departments), Days::only(self.day));
        let reservation = Reservation::new(id, departments, self.amount, lease, days)
            .with_on_expiry(self.on_expiry)
            .with_needs_seed(self.needs_seed);
        match store.reserve(&reservation).await {
            Ok(Decision::Granted(_)) => Ok(Restored::Made),
            Ok(Decision::Denied(_) | Decision::Ended) => Ok(Restored::Over),
            Err(StoreError::Unseeded { .. }) => Ok(Restored::NotYet),
            Err(error) => Err(error),
        }
    }
}

impl Unpaid {
    pub(super) fn new(store: &dyn QuotaStore, settlement: &Settlement, day: Day, needs_seed: bool) -> Self {
        let all = &settlement.departments;
        let unsettled = match &*parts(store, all) {
            [] => Vec::new(),
            [_] => vec![(all.clone(), true)],
            several => several
                .iter()
                .map(|part| {
                    let is_in = |department: &&Department| store.part(&department.id) == *part;
                    (all.iter().filter(is_in).cloned().collect(), true)
                })
                .collect(),
        };
        let Settlement { id, amount, .. } = *settlement;
        Self { id, amount, day, needs_seed, unsettled, lost: Vec::new() }
    }

    /// Charges all that is left to be. Goes on where it has failed.
    pub(super) async fn charge(
        &mut self,
        store: &dyn QuotaStore,
        live: &Live,
        restored: &AtomicU64,
        lease: Duration,
    ) -> Result<(), StoreError> {
        let settled = self.settle(store, live).await;
        self.restore(store, live, restored, lease).await?;
        settled
    }

    /// Settles what the store knows. Where there is no lease, it was lost, unless it was settled before.
    async fn settle(&mut self, store: &dyn QuotaStore, live: &Live) -> Result<(), StoreError> {
        let tries: Vec<_> = self
            .unsettled
            .iter_mut()
            .map(|(departments, is_sure)| {
                // Dropped meanwhile, it may have been done.
                let was_sure = std::mem::replace(is_sure, false);
                (store.settle_each(&Settlement::new(self.id, departments.clone(), self.amount)), was_sure)
            })
            .collect();
        let (answers, were_sure): (Vec<_>, Vec<_>) = tries.into_iter().unzip();
        let answers = join_all(answers).await;
        let mut failed = None;
        let tried = std::mem::take(&mut self.unsettled);
        for (((departments, _), was_sure), answer) in tried.into_iter().zip(were_sure).zip(answers) {
            match answer {
                Ok(each) => {
                    let step = if was_sure { Step::Lost } else { Step::Doubtful };
                    for (department, applied) in departments.iter().zip(each) {
                        match applied {
                            Applied::Duplicate => {
                                let department = Department::new(Arc::clone(&department.id), Limits::new());
                                self.lost.push((department, step));
                            }
                            _ => live.is_charged(self.id, &department.id),
                        }
                    }
                }
                Err(error) => {
                    self.unsettled.push((departments, was_sure && !error.is_ambiguous()));
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes it anew where it was lost and charges it, in one department after the other.
    async fn restore(
        &mut self,
        store: &dyn QuotaStore,
        live: &Live,
        restored: &AtomicU64,
        lease: Duration,
    ) -> Result<(), StoreError> {
        while let Some((department, step)) = self.lost.last_mut() {
            let one: Departments = [department.clone()].into_iter().collect();
            let next = match *step {
                Step::Doubtful => live.owes(self.id, &department.id).await.then_some(Step::Lost),
                Step::Lost => {
                    let none = Held::new(one.clone(), Amount::ZERO, Amount::ZERO, self.day, self.needs_seed);
                    match none.restore(store, self.id, lease).await? {
                        Restored::Made => {
                            restored.fetch_add(1, Ordering::AcqRel);
                            live.has_it_again(self.id, &one);
                            Some(Step::Made)
                        }
                        Restored::Over => None,
                        // The ledger will be asked for it, by the next call.
                        Restored::NotYet if live.leave_to_ledger(self.id, &department.id) => None,
                        Restored::NotYet => {
                            live.are_rebuilt(std::slice::from_ref(&department.id)).await;
                            Some(Step::Lost)
                        }
                    }
                }
                Step::Made => {
                    match store.settle(&Settlement::new(self.id, one, self.amount)).await? {
                        // By a try that had no answer, or else the store has lost that lease too.
                        Applied::Duplicate => Some(Step::Doubtful),
                        Applied::First | Applied::TrueUp => None,
                    }
                }
            };
            if let Some(next) = next {
                *step = next;
                continue;
            }
            live.is_charged(self.id, &department.id);
            self.lost.pop();
        }
        Ok(())
    }
}

pub(super) fn unlimited(departments: &Departments) -> Departments {
    departments.iter().map(|it| Department::new(Arc::clone(&it.id), Limits::new())).collect()
}

impl Live {
    pub(super) fn keep_alive(&self, id: LeaseId, held: Held) {
        self.lock().held.insert(id, held);
    }

    /// Those that are held for these departments are due.
    pub(super) fn are_unknown(&self, departments: &[Arc<str>]) {
        for held in self.lock().held.values_mut() {
            if held.departments.iter().any(|held| departments.contains(&held.id)) {
                held.since = None;
            }
        }
    }

    /// Its call has ended.
    pub(super) fn ends(&self, id: LeaseId) {
        let mut leases = self.lock();
        if let Some(held) = leases.held.remove(&id) {
            leases.ending.insert(id, held.departments);
        }
    }

    /// The store has made it anew.
    pub(super) fn has_it_again(&self, id: LeaseId, departments: &Departments) {
        self.lock().owes_nothing(id, departments);
    }

    fn lock(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the end of a call waiting, unless it has ended.
    pub(super) fn begin(&self, id: LeaseId) -> Option<Busy<'_>> {
        let mut leases = self.lock();
        let is_live = leases.held.contains_key(&id);
        (is_live && leases.busy.insert(id)).then(|| Busy(self, id))
    }

    /// Waits until nobody looks after it. Nobody will begin again with one whose end was handed over.
    pub(super) async fn is_free(&self, id: LeaseId) {
        self.until(|leases| !leases.busy.contains(&id)).await;
    }

    /// Waits until it is so, which whoever changes it tells by [`freed`](Self::freed).
    async fn until(&self, is_so: impl Fn(&Leases) -> bool) {
        let mut freed = pin!(self.freed.notified());
        loop {
            freed.as_mut().enable();
            if is_so(&self.lock()) {
                return;
            }
            freed.as_mut().await;
            freed.set(self.freed.notified());
        }
    }

    /// Whether a lease that may have been settled before has to be charged all the same. If not, that is the end of it.
    async fn owes(&self, id: LeaseId, department: &Arc<str>) -> bool {
        loop {
            self.are_rebuilt(std::slice::from_ref(department)).await;
            let mut leases = self.lock();
            if leases.owed.contains(&(id, Arc::clone(department))) {
                return true;
            }
            if !leases.rebuilding.contains(department) {
                leases.end(id, department);
                return false;
            }
        }
    }

    /// Waits until nobody looks up the past of any of these. Where many are new at once, whoever asked the store whenever one of
    /// them was found would ask it as often as there are others.
    pub(super) async fn are_rebuilt(&self, departments: &[Arc<str>]) {
        self.until(|leases| !departments.iter().any(|one| leases.rebuilding.contains(one))).await;
    }

    /// Gives up to charge a lease to a department, unless somebody who looks up its past counts on it.
    fn leave_to_ledger(&self, id: LeaseId, department: &Arc<str>) -> bool {
        let mut leases = self.lock();
        // Once more: the store may have been told after it was asked. If it has lost that too, it is owed to nobody.
        let was_owed = leases.owed.remove(&(id, Arc::clone(department)));
        let is_left = !was_owed && !leases.rebuilding.contains(department);
        if is_left {
            leases.end(id, department);
        }
        is_left
    }

    fn is_charged(&self, id: LeaseId, department: &Arc<str>) {
        self.lock().end(id, department);
    }

    pub(super) fn is_settled(&self, id: LeaseId) {
        let mut leases = self.lock();
        if let Some(departments) = leases.ending.remove(&id) {
            leases.owes_nothing(id, &departments);
        }
        drop(leases);
        self.settled.fetch_add(1, Ordering::AcqRel);
        self.freed.notify_waiters();
    }

    /// How many have been settled so far.
    pub(super) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// Waits until all is settled that has ended by now in the names of these departments.
    pub(super) async fn ends_are_settled(&self, departments: &Departments) {
        let of_them =
            |others: &Departments| others.iter().any(|it| departments.iter().any(|one| one.id == it.id));
        let ids: Vec<LeaseId> = {
            let leases = self.lock();
            leases.ending.iter().filter(|(_, others)| of_them(others)).map(|(id, _)| *id).collect()
        };
        self.until(|leases| !ids.iter().any(|id| leases.ending.contains_key(id))).await;
    }

    /// Those of which half has passed.
    pub(super) fn due(&self, lease: Duration) -> Vec<(LeaseId, Held)> {
        let now = Instant::now();
        let leases = self.lock();
        let is_due = |held: &Held| held.since.is_none_or(|since| now.duration_since(since) >= lease / 2);
        leases.held.iter().filter(|(_, held)| is_due(held)).map(|(id, held)| (*id, held.clone())).collect()
    }

    pub(super) fn extended(&self, id: LeaseId, at: Instant) {
        if let Some(held) = self.lock().held.get_mut(&id) {
            held.since = Some(at);
        }
    }
}

impl Leases {
    /// The store has it again.
    fn owes_nothing(&mut self, id: LeaseId, departments: &Departments) {
        if !self.owed.is_empty() {
            departments.iter().for_each(|it| _ = self.owed.remove(&(id, Arc::clone(&it.id))));
        }
    }

    /// Nothing is left to be charged to this department.
    fn end(&mut self, id: LeaseId, department: &Arc<str>) {
        self.owed.remove(&(id, Arc::clone(department)));
        if let Some(departments) = self.ending.get_mut(&id) {
            *departments = departments.iter().filter(|it| it.id != *department).cloned().collect();
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.lock().busy.remove(&self.1);
        self.0.freed.notify_waiters();
    }
}
