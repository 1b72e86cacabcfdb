use super::{
    amount::{Amount, Delta, Departments, WindowUsage},
    calendar::{Day, Days, millis, system_time, unix_millis},
    lease::{
        Adjustment, Applied, Baseline, Decision, LeaseId, Reservation, Settlement, Standing, Verdict,
        WindowName,
    },
    store::{ENDED_KEPT, EXPIRED_KEPT, QuotaStore, SWEEP, StoreError, StoreFuture},
};
use crate::clock::{Clock, SystemClock};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

/// Counts in the memory of this process: exact, and gone when it ends.
///
/// The reference for all other stores, see [`QuotaStore`]. Clones share the counters. A department is forgotten when
/// it has no leases and nothing in the current month.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    /// Each department has a lock of its own. Who needs several takes them in the order of their ids.
    accounts: RwLock<Accounts>,
}

#[derive(Default)]
struct Accounts {
    by_department: HashMap<Arc<str>, Mutex<Account>>,
    /// From how many on it is worth looking for those that can be forgotten.
    prune_at: usize,
}

#[derive(Default)]
struct Account {
    is_known: bool,
    /// Oldest first.
    days: Vec<(u32, WindowUsage)>,
    months: Vec<(u32, WindowUsage)>,
    leases: HashMap<LeaseId, Lease, BuildHasherDefault<IdHasher>>,
    expiries: BTreeSet<(u64, LeaseId)>,
    /// When the last month that was used is over.
    idle_from: u64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    state: State,
    date: u32,
    month: u32,
    amount: Amount,
    on_expiry: Amount,
    expires_at: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    Expired,
    Ended,
}

/// Ids are half chance, and nobody outside chooses them: nothing is won by mixing them further.
#[derive(Debug, Clone, Copy, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

/// The current month and the last, to the day.
const DAYS_KEPT: usize = 62;
const MONTHS_KEPT: usize = 3;

const PRUNE_AT_LEAST: usize = 1024;

impl MemoryStore {
    /// Nothing is used up.
    pub fn new() -> Self {
        Self::with_clock(SystemClock)
    }

    /// The same, by this clock.
    pub fn with_clock(clock: impl Clock) -> Self {
        Self { shared: Arc::new(Shared { clock: Arc::new(clock), accounts: RwLock::default() }) }
    }

    /// How many leases there are, tombstones included: over all departments.
    pub fn leases(&self) -> usize {
        let accounts = self.shared.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.by_department.values().map(|account| lock(account).leases.len()).sum()
    }
}

impl QuotaStore for MemoryStore {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let now = self.shared.now();
        StoreFuture::ready(
            self.shared.swept(&reservation.departments, now, |accounts| reserve(accounts, reservation, now)),
        )
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        let now = self.shared.now();
        let until = now.saturating_add(millis(by));
        StoreFuture::ready(Ok(self.shared.swept(departments, now, |accounts| {
            let mut is_held = true;
            for account in accounts {
                is_held &= account.extend(id, until);
            }
            is_held
        })))
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let now = self.shared.now();
        StoreFuture::ready(Ok(self.shared.swept(&settlement.departments, now, |accounts| {
            accounts.iter_mut().fold(Applied::Duplicate, |applied, account| {
                applied.and(account.finish(settlement.id, settlement.amount))
            })
        })))
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        let now = self.shared.now();
        self.shared.swept(departments, now, |accounts| {
            for account in accounts {
                if !account.leases.contains_key(&id) {
                    account.bury(id, now);
                }
                account.finish(id, Amount::ZERO);
            }
        });
        StoreFuture::ready(Ok(()))
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        let now = self.shared.now();
        let day = days.at(now).ok_or_else(|| StoreError::OffCalendar { now: system_time(now) });
        let accounts = self.shared.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let Some(account) = accounts.by_department.get(department) else {
            return StoreFuture::ready(day.map(|day| Standing::nothing(*day)));
        };
        let mut account = lock(account);
        account.sweep(now);
        StoreFuture::ready(day.map(|day| {
            let (in_day, in_month) = account.used(day);
            Standing { day: *day, in_day, in_month, is_known: account.is_known }
        }))
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        let now = self.shared.now();
        StoreFuture::ready(Ok(self.shared.swept_one(department, now, |account| {
            if mem::replace(&mut account.is_known, true) {
                return false;
            }
            let Baseline { day, day_settled, month_settled } = *baseline;
            account.idle_from = account.idle_from.max(day.month_until);
            let (in_day, in_month) = account.windows(day.date, day.month);
            in_day.settled = in_day.settled.plus(&day_settled);
            in_month.settled = in_month.settled.plus(&month_settled);
            true
        })))
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        let now = self.shared.now();
        StoreFuture::ready(Ok(self.shared.swept_one(&adjustment.department, now, |account| {
            if account.leases.contains_key(&adjustment.id) {
                return false;
            }
            account.bury(adjustment.id, now);
            let used = match adjustment.window {
                WindowName::Day(date) => window(&mut account.days, date, DAYS_KEPT),
                WindowName::Month(month) => window(&mut account.months, month, MONTHS_KEPT),
            };
            used.settled = used.settled.changed(adjustment.by);
            true
        })))
    }

    fn is_immediate(&self) -> bool {
        true
    }
}

fn reserve(
    accounts: &mut [MutexGuard<'_, Account>],
    reservation: &Reservation,
    now: u64,
) -> Result<Decision, StoreError> {
    let Reservation { id, departments, amount, on_expiry, lease, days, needs_seed } = reservation;
    let Some(day) = days.at(now) else { return Err(StoreError::OffCalendar { now: system_time(now) }) };
    let state = |account: &Account| account.leases.get(id).map(|lease| lease.state);
    if accounts.iter().any(|account| matches!(state(account), Some(State::Expired | State::Ended))) {
        return Ok(Decision::Ended);
    }
    if *needs_seed && accounts.iter().any(|account| !account.is_known) {
        let unknown = departments.iter().zip(accounts).filter(|(_, account)| !account.is_known);
        let departments = unknown.map(|(department, _)| Arc::clone(&department.id)).collect();
        return Err(StoreError::Unseeded { departments, day: *day });
    }
    let mut verdict = Verdict::new(reservation, day, now);
    for (department, account) in departments.iter().zip(&mut *accounts) {
        if !account.leases.contains_key(id) {
            let (in_day, in_month) = account.used(day);
            verdict.consider(department, &in_day, &in_month);
        }
    }
    if verdict.fits() {
        let lease = Lease {
            state: State::Reserved,
            date: day.date,
            month: day.month,
            amount: *amount,
            on_expiry: *on_expiry,
            expires_at: now.saturating_add(millis(*lease)),
        };
        for account in accounts {
            account.admit(*id, lease, day);
        }
    }
    Ok(verdict.decision())
}

// ===== impl Shared =====

impl Shared {
    fn now(&self) -> u64 {
        unix_millis(self.clock.now())
    }

    /// Runs `work` on the accounts of these departments, all of them locked and swept.
    fn swept<T>(
        &self,
        departments: &Departments,
        now: u64,
        work: impl FnOnce(&mut [MutexGuard<'_, Account>]) -> T,
    ) -> T {
        loop {
            let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
            if let [department] = &departments[..] {
                if let Some(account) = accounts.by_department.get(&department.id) {
                    let mut account = lock(account);
                    account.sweep(now);
                    return work(&mut [account]);
                }
            } else {
                // In the order of their ids: nobody waits for one that waits for him.
                let mut found = Vec::with_capacity(departments.len());
                found.extend(departments.iter().map_while(|it| accounts.by_department.get(&it.id)).map(lock));
                if found.len() == departments.len() {
                    found.iter_mut().for_each(|account| account.sweep(now));
                    return work(&mut found);
                }
            }
            drop(accounts);
            self.open(departments.iter().map(|department| &department.id), now);
        }
    }

    fn swept_one<T>(&self, department: &Arc<str>, now: u64, work: impl FnOnce(&mut Account) -> T) -> T {
        loop {
            let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(account) = accounts.by_department.get(department) {
                let mut account = lock(account);
                account.sweep(now);
                return work(&mut account);
            }
            drop(accounts);
            self.open([department], now);
        }
    }

    /// Opens accounts for those that have none.
    fn open<'a>(&self, departments: impl IntoIterator<Item = &'a Arc<str>>, now: u64) {
        let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let Accounts { by_department, prune_at } = &mut *accounts;
        if by_department.len() >= *prune_at {
            by_department.retain(|_, account| {
                let account = account.get_mut().unwrap_or_else(PoisonError::into_inner);
                account.sweep(now);
                !account.leases.is_empty() || now < account.idle_from
            });
            *prune_at = (by_department.len() * 2).max(PRUNE_AT_LEAST);
        }
        for department in departments {
            if !by_department.contains_key(department) {
                by_department.insert(Arc::clone(department), Mutex::default());
            }
        }
    }
}

// ===== impl Account =====

impl Account {
    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEEP {
            let Some(&(expires_at, id)) = self.expiries.first() else { return };
            if expires_at > now {
                return;
            }
            self.expiries.pop_first();
            let Some(lease) = self.leases.get_mut(&id) else { continue };
            if lease.state == State::Reserved {
                lease.state = State::Expired;
                lease.expires_at = now.saturating_add(millis(EXPIRED_KEPT));
                let lease = *lease;
                self.expiries.insert((lease.expires_at, id));
                self.replace(&lease, lease.amount, Delta::ZERO, lease.on_expiry);
            } else {
                self.leases.remove(&id);
            }
        }
    }

    fn admit(&mut self, id: LeaseId, lease: Lease, day: &Day) {
        self.is_known = true;
        if self.leases.contains_key(&id) {
            return;
        }
        self.leases.insert(id, lease);
        self.expiries.insert((lease.expires_at, id));
        self.idle_from = self.idle_from.max(day.month_until);
        let (in_day, in_month) = self.windows(lease.date, lease.month);
        in_day.reserved = in_day.reserved.plus(&lease.amount);
        in_month.reserved = in_month.reserved.plus(&lease.amount);
    }

    fn extend(&mut self, id: LeaseId, until: u64) -> bool {
        let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.state == State::Reserved) else {
            return false;
        };
        if until > lease.expires_at {
            self.expiries.remove(&(lease.expires_at, id));
            lease.expires_at = until;
            self.expiries.insert((until, id));
        }
        true
    }

    /// Ends a lease with the truth, if there is one to end.
    fn finish(&mut self, id: LeaseId, truth: Amount) -> Applied {
        let Some(&lease) = self.leases.get(&id) else { return Applied::Duplicate };
        let applied = match lease.state {
            State::Reserved => {
                self.replace(&lease, lease.amount, Delta::ZERO, truth);
                Applied::First
            }
            State::Expired => {
                self.replace(&lease, Amount::ZERO, truth.since(&lease.on_expiry), Amount::ZERO);
                Applied::TrueUp
            }
            State::Ended => return Applied::Duplicate,
        };
        self.leases.remove(&id);
        self.expiries.remove(&(lease.expires_at, id));
        applied
    }

    /// In the windows of `lease`: takes `reserved` out, and adds to what is settled.
    fn replace(&mut self, lease: &Lease, reserved: Amount, changed: Delta, charged: Amount) {
        let (in_day, in_month) = self.windows(lease.date, lease.month);
        for used in [in_day, in_month] {
            used.reserved = used.reserved.minus(&reserved);
            used.settled = used.settled.plus(&charged).changed(changed);
        }
    }

    /// Leaves a tombstone.
    fn bury(&mut self, id: LeaseId, now: u64) {
        let expires_at = now.saturating_add(millis(ENDED_KEPT));
        let (amount, on_expiry) = (Amount::ZERO, Amount::ZERO);
        self.leases
            .insert(id, Lease { state: State::Ended, date: 0, month: 0, amount, on_expiry, expires_at });
        self.expiries.insert((expires_at, id));
    }

    fn used(&self, day: &Day) -> (WindowUsage, WindowUsage) {
        let find = |windows: &[(u32, WindowUsage)], name: u32| {
            let found = windows.iter().rev().find(|(window, _)| *window == name);
            found.map_or_else(WindowUsage::default, |(_, used)| *used)
        };
        (find(&self.days, day.date), find(&self.months, day.month))
    }

    fn windows(&mut self, date: u32, month: u32) -> (&mut WindowUsage, &mut WindowUsage) {
        (window(&mut self.days, date, DAYS_KEPT), window(&mut self.months, month, MONTHS_KEPT))
    }
}

/// The window of this name, made if there is none.
fn window(windows: &mut Vec<(u32, WindowUsage)>, name: u32, kept: usize) -> &mut WindowUsage {
    let at = match windows.iter().rposition(|(window, _)| *window <= name) {
        Some(at) if windows[at].0 == name => at,
        before => {
            let mut at = before.map_or(0, |before| before + 1);
            windows.insert(at, (name, WindowUsage::default()));
            // The oldest goes, unless it is the one that is wanted, or has reservations.
            if windows.len() > kept && at > 0 && windows[0].1.reserved == Amount::ZERO {
                windows.remove(0);
                at -= 1;
            }
            at
        }
    };
    &mut windows[at].1
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accounts = self.shared.accounts.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("MemoryStore")
            .field("departments", &accounts.by_department.len())
            .finish_non_exhaustive()
    }
}
