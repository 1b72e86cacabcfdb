use super::{
    amount::{Amount, Delta, Department, Departments, WindowUsage},
    calendar::{Day, Days, millis, system_time, unix_millis},
    lease::{
        Adjustment, Applied, Baseline, Decision, LeaseId, Recount, Reservation, Settlement, Standing,
        Verdict, WindowName,
    },
    store::{ENDED_KEPT, EXPIRED_KEPT, QuotaStore, SWEEP, StoreError, StoreFuture},
};
use crate::{
    calendar,
    clock::{Clock, SystemClock},
    sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard},
};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    mem,
    sync::{Arc, PoisonError},
    time::Duration,
};

/// Counts in the memory of this process: exact, and gone when it ends.
///
/// The reference for all other stores, see [`QuotaStore`]. Clones share the counters. A department is forgotten when
/// it has no leases and nothing in the current month.
#[derive(Clone)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Each department has a lock of its own. Who needs several takes them in the order of their ids.
    accounts: RwLock<Accounts>,
}

#[derive(Default)]
struct Accounts {
    by_department: HashMap<Arc<str>, Mutex<Account>, foldhash::fast::RandomState>,
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
        let shared = Shared { accounts: RwLock::default() };
        Self { clock: Arc::new(SystemClock), shared: Arc::new(shared) }
    }

    /// Goes by this clock. What is counted stays, and is shared with clones as before.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    fn now(&self) -> u64 {
        unix_millis(self.clock.now())
    }

    /// How many leases there are, tombstones included: over all departments.
    pub fn leases(&self) -> usize {
        let accounts = self.shared.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.by_department.values().map(|account| lock(account).leases.len()).sum()
    }
}

impl QuotaStore for MemoryStore {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let now = self.now();
        StoreFuture::ready(
            self.shared.locked(&reservation.departments, now, |held| reserve(held, reservation, now)),
        )
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        let now = self.now();
        let until = now.saturating_add(millis(by));
        StoreFuture::ready(Ok(self.shared.locked(departments, now, |held| {
            let mut is_held = true;
            held.each(&mut |_, account| {
                account.sweep(now);
                is_held &= account.extend(id, until);
            });
            is_held
        })))
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let now = self.now();
        StoreFuture::ready(Ok(self.shared.locked(&settlement.departments, now, |held| {
            let mut applied = Applied::Duplicate;
            held.each(&mut |_, account| {
                account.sweep(now);
                applied = applied.and(account.finish(settlement.id, settlement.amount));
            });
            applied
        })))
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        let now = self.now();
        StoreFuture::ready(Ok(self.shared.locked(&settlement.departments, now, |held| {
            let mut each = Vec::with_capacity(settlement.departments.len());
            held.each(&mut |_, account| {
                account.sweep(now);
                each.push(account.finish(settlement.id, settlement.amount));
            });
            each
        })))
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        let now = self.now();
        self.shared.locked(departments, now, |held| {
            held.each(&mut |_, account| {
                account.sweep(now);
                if !account.leases.contains_key(&id) {
                    account.bury(id, now);
                }
                account.finish(id, Amount::ZERO);
            });
        });
        StoreFuture::ready(Ok(()))
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        let now = self.now();
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
        let now = self.now();
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
        let now = self.now();
        StoreFuture::ready(Ok(self.shared.swept_one(&adjustment.department, now, |account| {
            if account.leases.contains_key(&adjustment.id) {
                return false;
            }
            account.bury(adjustment.id, now);
            account.idle_from = account.idle_from.max(month_over(adjustment.window));
            let used = account.window(adjustment.window);
            used.settled = used.settled.changed(adjustment.by);
            true
        })))
    }

    fn recount(
        &self,
        department: &Arc<str>,
        window: WindowName,
        correct: bool,
    ) -> StoreFuture<Option<Recount>> {
        let now = self.now();
        let accounts = self.shared.accounts.read().unwrap_or_else(PoisonError::into_inner);
        let recount = accounts.by_department.get(department).map_or_else(Recount::default, |account| {
            let mut account = lock(account);
            account.sweep(now);
            account.recount(window, correct)
        });
        StoreFuture::ready(Ok(Some(recount)))
    }

    fn is_immediate(&self) -> bool {
        true
    }
}

fn reserve<'a>(
    held: &mut Held<'a, '_>,
    reservation: &'a Reservation,
    now: u64,
) -> Result<Decision, StoreError> {
    let Reservation { id, amount, on_expiry, lease, days, needs_seed, .. } = reservation;
    let day = days.at(now);
    let mut verdict = day.map(|day| (day, Verdict::new(reservation, day, now)));
    let (mut has_ended, mut unknown) = (false, Vec::new());
    held.each(&mut |department, account| {
        account.sweep(now);
        let Some((day, verdict)) = &mut verdict else { return };
        match account.leases.get(id).map(|lease| lease.state) {
            Some(State::Expired | State::Ended) => has_ended = true,
            Some(State::Reserved) => {}
            None => {
                let (in_day, in_month) = account.used(day);
                verdict.consider(department, &in_day, &in_month);
            }
        }
        if *needs_seed && !account.is_known {
            unknown.push(Arc::clone(&department.id));
        }
    });
    let Some((day, verdict)) = verdict else {
        return Err(StoreError::OffCalendar { now: system_time(now) });
    };
    if has_ended {
        return Ok(Decision::Ended);
    }
    if !unknown.is_empty() {
        return Err(StoreError::Unseeded { departments: unknown, day: *day });
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
        held.each(&mut |_, account| account.admit(*id, lease, day));
    }
    Ok(verdict.decision())
}

// ===== impl Held =====

/// So many departments are locked one by one.
const FEW: usize = 8;

/// The accounts of some departments, all of them locked at once, and no list of them on the heap.
enum Held<'d, 'a> {
    One(&'d Department, MutexGuard<'a, Account>),
    Few([Option<(&'d Department, MutexGuard<'a, Account>)>; FEW]),
    /// Of many departments it is cheaper to lock everybody out, for as long as it takes to look them all up.
    Many(&'d Departments, RwLockWriteGuard<'a, Accounts>),
}

impl<'d> Held<'d, '_> {
    /// Shows all accounts to `f`, in the order of their departments.
    fn each(&mut self, f: &mut dyn FnMut(&'d Department, &mut Account)) {
        match self {
            Held::One(department, account) => f(department, account),
            Held::Few(all) => {
                all.iter_mut().flatten().for_each(|(department, account)| f(department, account))
            }
            Held::Many(departments, accounts) => {
                for department in departments.iter() {
                    let account = accounts.by_department.get_mut(&department.id).expect("it was just opened");
                    f(department, account.get_mut().unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }
}

// ===== impl Shared =====

impl Shared {
    /// Runs `work` on the accounts of these departments, all of them locked.
    fn locked<'d, T>(
        &self,
        departments: &'d Departments,
        now: u64,
        work: impl FnOnce(&mut Held<'d, '_>) -> T,
    ) -> T {
        if departments.len() > FEW {
            let mut accounts = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
            accounts.open(departments.iter().map(|department| &department.id), now);
            return work(&mut Held::Many(departments, accounts));
        }
        loop {
            let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
            let find = |department: &'d Department| accounts.by_department.get(&department.id).map(lock);
            if let [department] = &departments[..] {
                if let Some(account) = find(department) {
                    return work(&mut Held::One(department, account));
                }
            } else {
                // In the order of their ids: nobody waits for one that waits for him.
                let mut few = [const { None }; FEW];
                let mut is_whole = true;
                for (place, department) in few.iter_mut().zip(departments.iter()) {
                    *place = find(department).map(|account| (department, account));
                    is_whole &= place.is_some();
                }
                if is_whole {
                    return work(&mut Held::Few(few));
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

    fn open<'a>(&self, departments: impl IntoIterator<Item = &'a Arc<str>>, now: u64) {
        self.accounts.write().unwrap_or_else(PoisonError::into_inner).open(departments, now);
    }
}

impl Accounts {
    /// Opens accounts for those that have none.
    fn open<'a>(&mut self, departments: impl IntoIterator<Item = &'a Arc<str>>, now: u64) {
        // Before any is opened: a new one looks as if it could be forgotten.
        if self.by_department.len() >= self.prune_at {
            self.by_department.retain(|_, account| {
                let account = account.get_mut().unwrap_or_else(PoisonError::into_inner);
                account.sweep(now);
                !account.leases.is_empty() || now < account.idle_from
            });
            self.prune_at = (self.by_department.len() * 2).max(PRUNE_AT_LEAST);
        }
        for department in departments {
            if !self.by_department.contains_key(department) {
                self.by_department.insert(Arc::clone(department), Mutex::default());
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

    fn recount(&mut self, window: WindowName, correct: bool) -> Recount {
        let (mut held, mut charged, mut leases) = (Amount::ZERO, Amount::ZERO, Vec::new());
        for (id, lease) in &self.leases {
            let (sum, amount) = match lease.state {
                State::Reserved => (&mut held, lease.amount),
                State::Expired => (&mut charged, lease.on_expiry),
                State::Ended => continue,
            };
            leases.push(*id);
            if window.is_of(lease.date, lease.month) {
                *sum = sum.plus(&amount);
            }
        }
        let (windows, name) = match window {
            WindowName::Day(date) => (&self.days, date),
            WindowName::Month(month) => (&self.months, month),
        };
        let counted = find(windows, name).reserved;
        if correct && counted != held {
            self.window(window).reserved = held;
        }
        Recount::new(counted, held, leases).with_charged(charged)
    }

    fn used(&self, day: &Day) -> (WindowUsage, WindowUsage) {
        (find(&self.days, day.date), find(&self.months, day.month))
    }

    fn window(&mut self, name: WindowName) -> &mut WindowUsage {
        match name {
            WindowName::Day(date) => window(&mut self.days, date, DAYS_KEPT),
            WindowName::Month(month) => window(&mut self.months, month, MONTHS_KEPT),
        }
    }

    fn windows(&mut self, date: u32, month: u32) -> (&mut WindowUsage, &mut WindowUsage) {
        (window(&mut self.days, date, DAYS_KEPT), window(&mut self.months, month, MONTHS_KEPT))
    }
}

/// When the month of a window is over in every time zone.
fn month_over(window: WindowName) -> u64 {
    let month = match window {
        WindowName::Day(date) => date / 100,
        WindowName::Month(month) => month,
    };
    let (year, month) = (i64::from(month / 100), i64::from(month % 100));
    let (year, next) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    u64::try_from(calendar::day_number(year, next, 2)).unwrap_or(0).saturating_mul(86_400_000)
}

fn find(windows: &[(u32, WindowUsage)], name: u32) -> WindowUsage {
    let found = windows.iter().rev().find(|(window, _)| *window == name);
    found.map_or_else(WindowUsage::default, |(_, used)| *used)
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
