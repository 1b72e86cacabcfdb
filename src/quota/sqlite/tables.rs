//! The states of [`QuotaStore`](crate::quota::QuotaStore) as rows. All arithmetic is that of [`Amount`], so that it
//! is the same as in memory; SQLite adds up nothing.

use super::{QuotaFileError, QuotaFileErrorKind};
use crate::{
    calendar,
    price::NanoUsd,
    quota::{
        Adjustment, Amount, Applied, Baseline, Day, Days, Decision, Delta, Departments, ENDED_KEPT,
        EXPIRED_KEPT, LeaseId, Recount, Reservation, SWEEP, Settlement, Standing, StoreError, Verdict,
        WindowName, WindowUsage,
        calendar::{millis, system_time},
    },
    sqlite::Schema,
};
use rusqlite::{
    Connection, OptionalExtension as _, Row, ToSql,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};
use std::{path::Path, sync::Arc, time::Duration};

pub(super) const SCHEMA: Schema = Schema { application: 0x4c4c_6c71, versions: &[TABLES, MONTH_BEFORE] };

/// Times are milliseconds, money is nano-dollars. A window is a day (20261123) or a month (202611).
const TABLES: &str = "
CREATE TABLE clock (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    now INTEGER NOT NULL
) STRICT;
INSERT INTO clock VALUES (1, 0);
CREATE TABLE accounts (
    seq INTEGER PRIMARY KEY,
    department TEXT NOT NULL UNIQUE,
    is_known INTEGER NOT NULL CHECK (is_known IN (0, 1))
) STRICT;
CREATE TABLE counters (
    account INTEGER NOT NULL REFERENCES accounts (seq),
    period TEXT NOT NULL CHECK (period IN ('day', 'month')),
    window INTEGER NOT NULL,
    settled_requests INTEGER NOT NULL CHECK (settled_requests >= 0),
    settled_tokens INTEGER NOT NULL CHECK (settled_tokens >= 0),
    settled_cost INTEGER NOT NULL CHECK (settled_cost >= 0),
    reserved_requests INTEGER NOT NULL CHECK (reserved_requests >= 0),
    reserved_tokens INTEGER NOT NULL CHECK (reserved_tokens >= 0),
    reserved_cost INTEGER NOT NULL CHECK (reserved_cost >= 0),
    PRIMARY KEY (account, period, window)
) STRICT, WITHOUT ROWID;
CREATE INDEX counters_by_window ON counters (period, window);
CREATE TABLE leases (
    account INTEGER NOT NULL REFERENCES accounts (seq),
    id BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'expired', 'ended')),
    expires_at INTEGER NOT NULL,
    day INTEGER NOT NULL,
    month INTEGER NOT NULL,
    requests INTEGER NOT NULL CHECK (requests >= 0),
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    cost INTEGER NOT NULL CHECK (cost >= 0),
    expiry_requests INTEGER NOT NULL CHECK (expiry_requests >= 0),
    expiry_tokens INTEGER NOT NULL CHECK (expiry_tokens >= 0),
    expiry_cost INTEGER NOT NULL CHECK (expiry_cost >= 0),
    PRIMARY KEY (account, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX leases_by_expiry ON leases (account, expires_at);
";

/// 202610, while the clock is in 202611.
const MONTH_BEFORE: &str = "
ALTER TABLE clock ADD COLUMN month_before INTEGER NOT NULL DEFAULT 0;
";

/// The tables, inside of a transaction that writes, at one moment.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) connection: &'a Connection,
    pub(super) path: &'a Arc<Path>,
    pub(super) now: u64,
    /// By how much that is later than it is for the machine.
    pub(super) ahead: u64,
}

/// The latest time that was seen by anybody, and in which month it was before it came into this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileClock {
    pub(super) now: u64,
    month_before: u32,
}

/// What an operation answers, unless the file itself fails.
pub(super) type Answer<T> = rusqlite::Result<Result<T, StoreError>>;

#[derive(Debug, Clone, Copy)]
struct Account {
    seq: i64,
    is_known: bool,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    state: State,
    expires_at: u64,
    date: u32,
    month: u32,
    amount: Amount,
    on_expiry: Amount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    Expired,
    Ended,
}

/// For how long windows are kept: the current month and the last, in any time zone.
const WINDOWS_KEPT: i64 = 70;
/// How long leases of departments that nobody asks for are overdue before they are looked for.
const IDLE_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many departments are looked for that have such leases, at once.
const IDLE: usize = 32;
/// How far the file's clock may be ahead of the machine's: that of the days around it.
const AHEAD: Duration = Duration::from_secs(24 * 3600);

impl Tables<'_> {
    pub(super) fn reserve(&self, reservation: &Reservation) -> Answer<Decision> {
        let Reservation { id, departments, amount, on_expiry, lease, days, needs_seed } = reservation;
        if self.is_far_ahead() {
            return Ok(Err(self.off_calendar()));
        }
        let accounts = self.swept(departments)?;
        let Some(day) = days.at(self.now) else { return Ok(Err(self.off_calendar())) };
        let mut is_held = Vec::with_capacity(accounts.len());
        let mut has_ended = false;
        for account in &accounts {
            let state = match account {
                Some(account) => self.lease(account, *id)?.map(|lease| lease.state),
                None => None,
            };
            has_ended |= matches!(state, Some(State::Expired | State::Ended));
            is_held.push(state.is_some());
        }
        if has_ended {
            return Ok(Ok(Decision::Ended));
        }
        let is_known = |account: &Option<Account>| account.is_some_and(|account| account.is_known);
        if *needs_seed && !accounts.iter().all(is_known) {
            let unknown = departments.iter().zip(&accounts).filter(|(_, account)| !is_known(account));
            let departments = unknown.map(|(department, _)| Arc::clone(&department.id)).collect();
            return Ok(Err(StoreError::Unseeded { departments, day: *day }));
        }
        let windows = [WindowName::Day(day.date), WindowName::Month(day.month)];
        let mut verdict = Verdict::new(reservation, day, self.now);
        let mut used = Vec::with_capacity(accounts.len());
        for ((department, account), is_held) in departments.iter().zip(&accounts).zip(&is_held) {
            let [in_day, in_month] = match account {
                Some(account) if !is_held => {
                    [self.used(account, windows[0])?, self.used(account, windows[1])?]
                }
                _ => <[WindowUsage; 2]>::default(),
            };
            if !is_held {
                verdict.consider(department, &in_day, &in_month);
            }
            used.push([in_day, in_month]);
        }
        if verdict.fits() {
            let lease = Lease {
                state: State::Reserved,
                expires_at: self.now.saturating_add(millis(*lease)),
                date: day.date,
                month: day.month,
                amount: *amount,
                on_expiry: *on_expiry,
            };
            for (((department, account), is_held), used) in
                departments.iter().zip(accounts).zip(is_held).zip(used)
            {
                let account = self.known(&department.id, account)?;
                if is_held {
                    continue;
                }
                self.insert(&account, *id, &lease)?;
                for (window, mut used) in windows.into_iter().zip(used) {
                    used.reserved = used.reserved.plus(amount);
                    self.set_used(&account, window, &used)?;
                }
            }
        }
        Ok(Ok(verdict.decision()))
    }

    pub(super) fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> Answer<bool> {
        let until = self.now.saturating_add(millis(by));
        let mut is_held = true;
        for account in self.swept(departments)? {
            let lease = match account {
                Some(account) => self.lease(&account, id)?.map(|lease| (account, lease)),
                None => None,
            };
            let Some((account, lease)) = lease.filter(|(_, lease)| lease.state == State::Reserved) else {
                is_held = false;
                continue;
            };
            if until > lease.expires_at {
                self.set_state(&account, id, State::Reserved, until)?;
            }
        }
        Ok(Ok(is_held))
    }

    pub(super) fn settle_each(&self, settlement: &Settlement) -> Answer<Vec<Applied>> {
        let accounts = self.swept(&settlement.departments)?.into_iter();
        let each = accounts.map(|account| {
            let Some(account) = account else { return Ok(Applied::Duplicate) };
            match self.lease(&account, settlement.id)? {
                Some(lease) => self.finish(&account, settlement.id, &lease, settlement.amount),
                None => Ok(Applied::Duplicate),
            }
        });
        each.collect::<rusqlite::Result<_>>().map(Ok)
    }

    pub(super) fn release(&self, id: LeaseId, departments: &Departments) -> Answer<()> {
        for (department, account) in departments.iter().zip(self.swept(departments)?) {
            let account = self.opened(&department.id, account)?;
            match self.lease(&account, id)? {
                Some(lease) => {
                    self.finish(&account, id, &lease, Amount::ZERO)?;
                }
                None => self.bury(&account, id)?,
            }
        }
        Ok(Ok(()))
    }

    pub(super) fn usage(&self, department: &str, days: &Days) -> Answer<Standing> {
        let account = self.swept_one(department)?;
        let Some(day) = days.at(self.now) else { return Ok(Err(self.off_calendar())) };
        let Some(account) = account else { return Ok(Ok(Standing::nothing(*day))) };
        Ok(Ok(Standing {
            day: *day,
            in_day: self.used(&account, WindowName::Day(day.date))?,
            in_month: self.used(&account, WindowName::Month(day.month))?,
            is_known: account.is_known,
        }))
    }

    pub(super) fn seed(&self, department: &str, baseline: &Baseline) -> Answer<bool> {
        let account = self.swept_one(department)?;
        if account.is_some_and(|account| account.is_known) {
            return Ok(Ok(false));
        }
        let account = self.known(department, account)?;
        let Baseline { day: Day { date, month, .. }, day_settled, month_settled } = baseline;
        self.change(&account, WindowName::Day(*date), |used| used.settled = used.settled.plus(day_settled))?;
        self.change(&account, WindowName::Month(*month), |used| {
            used.settled = used.settled.plus(month_settled);
        })?;
        Ok(Ok(true))
    }

    pub(super) fn adjust(&self, adjustment: &Adjustment) -> Answer<bool> {
        let account = self.swept_one(&adjustment.department)?;
        let account = self.opened(&adjustment.department, account)?;
        if self.lease(&account, adjustment.id)?.is_some() {
            return Ok(Ok(false));
        }
        self.bury(&account, adjustment.id)?;
        self.change(&account, adjustment.window, |used| used.settled = used.settled.changed(adjustment.by))?;
        Ok(Ok(true))
    }

    pub(super) fn recount(&self, department: &str, window: WindowName, correct: bool) -> Answer<Recount> {
        let Some(account) = self.swept_one(department)? else { return Ok(Ok(Recount::default())) };
        let mut select = self.connection.prepare_cached(
            "SELECT state, expires_at, day, month, requests, tokens, cost, \
             expiry_requests, expiry_tokens, expiry_cost, id FROM leases WHERE account = ?1",
        )?;
        let mut rows = select.query((account.seq,))?;
        let (mut held, mut charged, mut leases) = (Amount::ZERO, Amount::ZERO, Vec::new());
        while let Some(row) = rows.next()? {
            let lease = lease(row)?;
            let (sum, amount) = match lease.state {
                State::Reserved => (&mut held, lease.amount),
                State::Expired => (&mut charged, lease.on_expiry),
                State::Ended => continue,
            };
            leases.push(LeaseId::from_bytes(row.get(10)?));
            if window.is_of(lease.date, lease.month) {
                *sum = sum.plus(&amount);
            }
        }
        let counted = self.used(&account, window)?.reserved;
        if correct && counted != held {
            self.change(&account, window, |used| used.reserved = held)?;
        }
        Ok(Ok(Recount::new(counted, held, leases).with_charged(charged)))
    }

    /// Nobody here knows which of the two clocks is wrong.
    fn is_far_ahead(&self) -> bool {
        self.ahead > millis(AHEAD)
    }

    fn off_calendar(&self) -> StoreError {
        if self.is_far_ahead() {
            return QuotaFileError::new(self.path, QuotaFileErrorKind::Ahead).into();
        }
        StoreError::OffCalendar { now: system_time(self.now) }
    }

    // ===== accounts =====

    fn swept(&self, departments: &Departments) -> rusqlite::Result<Vec<Option<Account>>> {
        departments.iter().map(|department| self.swept_one(&department.id)).collect()
    }

    fn swept_one(&self, department: &str) -> rusqlite::Result<Option<Account>> {
        let mut find =
            self.connection.prepare_cached("SELECT seq, is_known FROM accounts WHERE department = ?1")?;
        let account = find
            .query_row([department], |row| Ok(Account { seq: row.get(0)?, is_known: row.get(1)? }))
            .optional()?;
        if let Some(account) = &account {
            self.sweep(account)?;
        }
        Ok(account)
    }

    fn opened(&self, department: &str, account: Option<Account>) -> rusqlite::Result<Account> {
        if let Some(account) = account {
            return Ok(account);
        }
        self.run("INSERT INTO accounts (department, is_known) VALUES (?1, 0)", (department,))?;
        Ok(Account { seq: self.connection.last_insert_rowid(), is_known: false })
    }

    fn known(&self, department: &str, account: Option<Account>) -> rusqlite::Result<Account> {
        let account = self.opened(department, account)?;
        if !account.is_known {
            self.run("UPDATE accounts SET is_known = 1 WHERE seq = ?1", (account.seq,))?;
        }
        Ok(Account { is_known: true, ..account })
    }

    // ===== counters =====

    fn used(&self, account: &Account, window: WindowName) -> rusqlite::Result<WindowUsage> {
        let mut select = self.connection.prepare_cached(
            "SELECT settled_requests, settled_tokens, settled_cost, \
             reserved_requests, reserved_tokens, reserved_cost \
             FROM counters WHERE account = ?1 AND period = ?2 AND window = ?3",
        )?;
        let (period, name) = columns(window);
        let used = select.query_row((account.seq, period, name), |row| {
            Ok(WindowUsage { settled: amount(row, 0)?, reserved: amount(row, 3)? })
        });
        Ok(used.optional()?.unwrap_or_default())
    }

    fn set_used(&self, account: &Account, window: WindowName, used: &WindowUsage) -> rusqlite::Result<()> {
        let (period, name) = columns(window);
        let WindowUsage { settled, reserved } = used;
        self.run(
            "INSERT INTO counters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) \
             ON CONFLICT DO UPDATE SET settled_requests = ?4, settled_tokens = ?5, settled_cost = ?6, \
             reserved_requests = ?7, reserved_tokens = ?8, reserved_cost = ?9",
            (
                account.seq,
                period,
                name,
                stored(settled.requests),
                stored(settled.tokens),
                settled.cost.nanos(),
                stored(reserved.requests),
                stored(reserved.tokens),
                reserved.cost.nanos(),
            ),
        )
    }

    fn change(
        &self,
        account: &Account,
        window: WindowName,
        change: impl FnOnce(&mut WindowUsage),
    ) -> rusqlite::Result<()> {
        let mut used = self.used(account, window)?;
        change(&mut used);
        self.set_used(account, window, &used)
    }

    // ===== leases =====

    fn sweep(&self, account: &Account) -> rusqlite::Result<()> {
        let mut select = self.connection.prepare_cached(
            "SELECT state, expires_at, day, month, requests, tokens, cost, \
             expiry_requests, expiry_tokens, expiry_cost, id \
             FROM leases WHERE account = ?1 AND expires_at <= ?2 ORDER BY expires_at, id LIMIT ?3",
        )?;
        let mut rows = select.query((account.seq, stored(self.now), SWEEP as i64))?;
        let mut due = Vec::new();
        while let Some(row) = rows.next()? {
            due.push((LeaseId::from_bytes(row.get(10)?), lease(row)?));
        }
        for (id, lease) in due {
            self.expire(account, id, &lease)?;
        }
        Ok(())
    }

    /// The time of a lease or of a tombstone has come.
    fn expire(&self, account: &Account, id: LeaseId, lease: &Lease) -> rusqlite::Result<()> {
        if lease.state != State::Reserved {
            return self.remove(account, id);
        }
        self.set_state(account, id, State::Expired, self.now.saturating_add(millis(EXPIRED_KEPT)))?;
        self.replace(account, lease, lease.amount, Delta::ZERO, lease.on_expiry)
    }

    /// Ends a lease with the truth, if there is one to end.
    fn finish(
        &self,
        account: &Account,
        id: LeaseId,
        lease: &Lease,
        truth: Amount,
    ) -> rusqlite::Result<Applied> {
        let applied = match lease.state {
            State::Reserved => {
                self.replace(account, lease, lease.amount, Delta::ZERO, truth)?;
                Applied::First
            }
            State::Expired => {
                let change = truth.since(&lease.on_expiry);
                self.replace(account, lease, Amount::ZERO, change, Amount::ZERO)?;
                Applied::TrueUp
            }
            State::Ended => return Ok(Applied::Duplicate),
        };
        self.remove(account, id)?;
        Ok(applied)
    }

    /// In the windows of `lease`: takes `reserved` out, and adds to what is settled.
    fn replace(
        &self,
        account: &Account,
        lease: &Lease,
        reserved: Amount,
        changed: Delta,
        charged: Amount,
    ) -> rusqlite::Result<()> {
        for window in [WindowName::Day(lease.date), WindowName::Month(lease.month)] {
            self.change(account, window, |used| {
                used.reserved = used.reserved.minus(&reserved);
                used.settled = used.settled.plus(&charged).changed(changed);
            })?;
        }
        Ok(())
    }

    fn lease(&self, account: &Account, id: LeaseId) -> rusqlite::Result<Option<Lease>> {
        let mut select = self.connection.prepare_cached(
            "SELECT state, expires_at, day, month, requests, tokens, cost, \
             expiry_requests, expiry_tokens, expiry_cost FROM leases WHERE account = ?1 AND id = ?2",
        )?;
        select.query_row((account.seq, id.to_bytes()), lease).optional()
    }

    fn insert(&self, account: &Account, id: LeaseId, lease: &Lease) -> rusqlite::Result<()> {
        let Lease { state, expires_at, date, month, amount, on_expiry } = lease;
        self.run(
            "INSERT INTO leases VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            (
                account.seq,
                id.to_bytes(),
                state,
                stored(*expires_at),
                date,
                month,
                stored(amount.requests),
                stored(amount.tokens),
                amount.cost.nanos(),
                stored(on_expiry.requests),
                stored(on_expiry.tokens),
                on_expiry.cost.nanos(),
            ),
        )
    }

    /// Leaves a tombstone.
    fn bury(&self, account: &Account, id: LeaseId) -> rusqlite::Result<()> {
        let expires_at = self.now.saturating_add(millis(ENDED_KEPT));
        let (amount, on_expiry) = (Amount::ZERO, Amount::ZERO);
        self.insert(
            account,
            id,
            &Lease { state: State::Ended, expires_at, date: 0, month: 0, amount, on_expiry },
        )
    }

    fn set_state(
        &self,
        account: &Account,
        id: LeaseId,
        state: State,
        expires_at: u64,
    ) -> rusqlite::Result<()> {
        self.run(
            "UPDATE leases SET state = ?3, expires_at = ?4 WHERE account = ?1 AND id = ?2",
            (account.seq, id.to_bytes(), state, stored(expires_at)),
        )
    }

    fn remove(&self, account: &Account, id: LeaseId) -> rusqlite::Result<()> {
        self.run("DELETE FROM leases WHERE account = ?1 AND id = ?2", (account.seq, id.to_bytes()))
    }

    // ===== what is old =====

    /// Forgets at most `most` old windows of days and of months, and looks at as many departments: what is long overdue
    /// there is ended, and a department that has nothing more is forgotten. Where it goes on next time is kept in
    /// `after`.
    ///
    /// A clock may come back from far ahead: windows of the month that it was in before are kept.
    pub(super) fn prune(&self, most: i64, clock: &FileClock, after: &mut i64) -> rusqlite::Result<()> {
        let today = i64::try_from(self.now / 86_400_000).unwrap_or(0);
        let (year, month, date) = calendar::civil(today - WINDOWS_KEPT);
        let (month, before) = (year * 100 + month, i64::from(clock.month_before));
        let (oldest_day, oldest_month) = ((month * 100 + date).min(before * 100), month.min(before));
        for (period, oldest) in [("day", oldest_day), ("month", oldest_month)] {
            self.run(
                "DELETE FROM counters WHERE (account, period, window) IN ( \
                 SELECT account, period, window FROM counters \
                 WHERE period = ?1 AND window < ?2 ORDER BY window LIMIT ?3)",
                (period, oldest, most),
            )?;
        }
        let mut next = self.connection.prepare_cached(
            "SELECT count(*), coalesce(max(seq), 0) FROM (SELECT seq FROM accounts WHERE seq > ?1 ORDER BY seq LIMIT ?2)",
        )?;
        let (found, until): (i64, i64) =
            next.query_row((*after, most), |row| Ok((row.get(0)?, row.get(1)?)))?;
        let idle = self.idle(*after, until)?;
        for &seq in &idle {
            // One that is damaged stays as it is.
            let _ = apart(self.connection, || self.sweep(&Account { seq, is_known: false }))?;
        }
        let (until, is_last) = match idle.last() {
            Some(last) if idle.len() == IDLE => (*last, false),
            _ => (until, found < most),
        };
        self.run(
            "DELETE FROM accounts WHERE seq > ?1 AND seq <= ?2 \
             AND NOT EXISTS (SELECT 1 FROM counters WHERE account = seq) \
             AND NOT EXISTS (SELECT 1 FROM leases WHERE account = seq)",
            (*after, until),
        )?;
        // From the first again, before those at the end that are new by then.
        *after = if is_last { 0 } else { until };
        Ok(())
    }

    /// The first accounts behind one and up to another that have leases nobody has asked for since they were over.
    fn idle(&self, after: i64, until: i64) -> rusqlite::Result<Vec<i64>> {
        let long_ago = stored(self.now.saturating_sub(millis(IDLE_KEPT)));
        let mut select = self.connection.prepare_cached(
            "SELECT seq FROM accounts WHERE seq > ?1 AND seq <= ?2 \
             AND EXISTS (SELECT 1 FROM leases WHERE account = seq AND expires_at <= ?3) ORDER BY seq LIMIT ?4",
        )?;
        select.query_map((after, until, long_ago, IDLE as i64), |row| row.get(0))?.collect()
    }

    fn run(&self, sql: &'static str, values: impl rusqlite::Params) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(values).map(drop)
    }
}

/// Does it as a whole or not at all. It is the outer error that takes the transaction with it, as that of a full disk does.
pub(super) fn apart<T>(
    connection: &Connection,
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<rusqlite::Result<T>> {
    let execute = |sql| connection.prepare_cached(sql)?.execute(()).map(drop);
    execute("SAVEPOINT apart")?;
    let outcome = match work() {
        Err(error) if connection.is_autocommit() => return Err(error),
        outcome => outcome,
    };
    if outcome.is_err() {
        execute("ROLLBACK TO apart")?;
    }
    execute("RELEASE apart")?;
    Ok(outcome)
}

const fn columns(window: WindowName) -> (&'static str, u32) {
    match window {
        WindowName::Day(date) => ("day", date),
        WindowName::Month(month) => ("month", month),
    }
}

fn amount(row: &Row<'_>, at: usize) -> rusqlite::Result<Amount> {
    Ok(Amount::new(count(row, at)?, count(row, at + 1)?, NanoUsd::new(row.get(at + 2)?)))
}

fn lease(row: &Row<'_>) -> rusqlite::Result<Lease> {
    Ok(Lease {
        state: row.get(0)?,
        expires_at: count(row, 1)?,
        date: row.get(2)?,
        month: row.get(3)?,
        amount: amount(row, 4)?,
        on_expiry: amount(row, 7)?,
    })
}

fn count(row: &Row<'_>, at: usize) -> rusqlite::Result<u64> {
    let found = row.get(at)?;
    u64::try_from(found).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(at, found))
}

/// As SQLite counts, and tells the time: up to `i64::MAX`.
fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

// ===== impl FileClock =====

impl FileClock {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        connection
            .prepare_cached("SELECT now, month_before FROM clock")?
            .query_row((), |row| Ok(Self { now: count(row, 0)?, month_before: row.get(1)? }))
    }

    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .prepare_cached("UPDATE clock SET now = ?1, month_before = ?2")?
            .execute((stored(self.now), self.month_before))
            .map(drop)
    }

    pub(super) fn moved_to(self, now: u64) -> Self {
        let before = month(self.now);
        Self { now, month_before: if month(now) == before { self.month_before } else { before } }
    }
}

fn month(now: u64) -> u32 {
    let (year, month, _) = calendar::civil(i64::try_from(now / 86_400_000).unwrap_or(0));
    u32::try_from(year * 100 + month).unwrap_or(u32::MAX)
}

// ===== impl State =====

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Expired => "expired",
            Self::Ended => "ended",
        }
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.as_str().into())
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        match value.as_str()? {
            "reserved" => Ok(Self::Reserved),
            "expired" => Ok(Self::Expired),
            "ended" => Ok(Self::Ended),
            _ => Err(FromSqlError::InvalidType),
        }
    }
}
