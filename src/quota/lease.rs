use super::{
    amount::{Amount, Delta, Department, Departments, KINDS, PERIODS, WindowUsage},
    calendar::{Day, Days, system_time},
};
use crate::{CallId, Period, QuotaKind, clock::SystemClock};
use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Which reservation it is: minted once per `call`.
pub type LeaseId = CallId;

/// What a call may use up at most, to be reserved before it is made.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Reservation {
    /// Whose. Sent once; sent again it reserves nothing more.
    pub id: LeaseId,
    /// Who is charged, all or none.
    pub departments: Departments,
    /// How much, [clamped](Amount::clamped).
    pub amount: Amount,
    /// What is charged if nobody settles it in time, [clamped](Amount::clamped).
    pub on_expiry: Amount,
    /// How long it is held, in whole milliseconds of the store's clock.
    pub lease: Duration,
    /// Of these the store's clock picks one, and with it the windows that are charged, whenever it is settled.
    pub days: Days,
    /// Whether a department that the store does not know has to be [seeded](super::QuotaStore::seed) first.
    pub needs_seed: bool,
}

/// What a store says to a [`Reservation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It is reserved.
    Granted(Grant),
    /// It does not fit, and nothing is reserved.
    Denied(Denial),
    /// It was released before it came, or has expired since, and nothing more is reserved.
    Ended,
}

/// A reservation that holds until it is settled, released or expires.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "what is reserved has to be settled or released"]
#[non_exhaustive]
pub struct Grant {
    /// Whose.
    pub id: LeaseId,
    /// The day that is charged.
    pub day: Day,
    /// Of all limits, the one of which the smallest part is left.
    pub tightest: Option<Headroom>,
}

/// How much of a limit is left.
///
/// For a layer of your own that keeps a limit, and puts it on [`LlmResponse::quota`](crate::LlmResponse::quota):
///
/// ```
/// use llm_layers::{Period, QuotaKind, http::rate_limit_headers, quota::Headroom};
/// use std::time::Duration;
///
/// let left = Headroom::new("research", QuotaKind::Requests, Period::Day, 60, 59, Duration::from_secs(12));
/// let [_, (name, value), _] = rate_limit_headers(&left);
/// assert_eq!((name.as_str(), value.to_str()?), ("x-ratelimit-remaining-requests", "59"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Headroom {
    /// The department.
    pub department: Arc<str>,
    /// What is limited.
    pub quota: QuotaKind,
    /// Over which time.
    pub period: Period,
    /// The limit, in requests, tokens or nano-dollars.
    pub limit: u64,
    /// What was used up when the call came.
    pub settled: u64,
    /// What other calls in flight had reserved by then.
    pub reserved: u64,
    /// What is neither used up nor reserved, by others or by this call.
    pub remaining: u64,
    /// When the window ends.
    pub resets_at: SystemTime,
    /// How long it goes on, by the store's clock.
    pub resets_in: Duration,
}

impl Headroom {
    /// So much of a limit remains, and the rest is used up.
    pub fn new(
        department: impl Into<Arc<str>>,
        quota: QuotaKind,
        period: Period,
        limit: u64,
        remaining: u64,
        resets_in: Duration,
    ) -> Self {
        Self {
            department: department.into(),
            quota,
            period,
            limit,
            settled: limit.saturating_sub(remaining),
            reserved: 0,
            remaining,
            resets_at: SystemClock.in_future(resets_in),
            resets_in,
        }
    }

    /// So much was used up when the call came.
    #[must_use]
    pub const fn with_settled(mut self, settled: u64) -> Self {
        self.settled = settled;
        self
    }

    /// So much had other calls in flight reserved.
    #[must_use]
    pub const fn with_reserved(mut self, reserved: u64) -> Self {
        self.reserved = reserved;
        self
    }
}

/// Which limit stands in the way.
///
/// Of several: one that a retry does not get past for the longest time. See [`Verdict`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial {
    /// The department.
    pub department: Arc<str>,
    /// What is limited.
    pub quota: QuotaKind,
    /// Over which time.
    pub period: Period,
    /// The limit, in requests, tokens or nano-dollars.
    pub limit: u64,
    /// What is used up.
    pub settled: u64,
    /// What calls in flight have reserved.
    pub reserved: u64,
    /// What was asked for.
    pub requested: u64,
    /// When the window ends.
    pub resets_at: SystemTime,
    /// How long it goes on, by the store's clock.
    pub resets_in: Duration,
    /// Whether it would fit if no call were in flight.
    pub in_flight_only: bool,
}

/// What a call used up in truth.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settlement {
    /// Whose.
    pub id: LeaseId,
    /// Who is charged: those of the reservation.
    pub departments: Departments,
    /// How much, [clamped](Amount::clamped). It may be more than was reserved.
    pub amount: Amount,
}

/// What a settlement did. With several departments, the first of these that is true of any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The reservation was replaced by the truth.
    First,
    /// The reservation had expired; what was charged then was replaced by the truth.
    TrueUp,
    /// It was settled or released before, or never made: nothing changed.
    Duplicate,
}

/// What a department had used up before a store knew it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Baseline {
    /// Of which day and month.
    pub day: Day,
    /// Used up in the day.
    pub day_settled: Amount,
    /// Used up in the month, this day included.
    pub month_settled: Amount,
}

/// A correction of what a department has used up in one window.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Adjustment {
    /// Which correction: sent again it changes nothing.
    pub id: CallId,
    /// The department.
    pub department: Arc<str>,
    /// The window.
    pub window: WindowName,
    /// How much is added, or taken away.
    pub by: Delta,
}

/// The name of a window among the counters of a department.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WindowName {
    /// A day, by its [`date`](Day::date).
    Day(u32),
    /// A month, by its [name](Day::month).
    Month(u32),
}

/// What a department has reserved in a window, by its counter and by its leases, and what expired leases have charged there, at one
/// moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recount {
    /// What the counter says, or said before it was corrected.
    pub counted: Amount,
    /// What live leases hold in it together.
    pub held: Amount,
    /// What expired leases have charged in it together, which the truth replaces when they are settled.
    pub charged: Amount,
    /// All leases of the department that have yet to be settled, live and expired, of other windows too, sorted.
    pub leases: Vec<LeaseId>,
}

/// What one department has used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// The day that it is about.
    pub day: Day,
    /// What was used up and reserved in that day.
    pub in_day: WindowUsage,
    /// What was used up and reserved in its month.
    pub in_month: WindowUsage,
    /// Whether the store knows the department: a reservation was granted or it was
    /// [seeded](super::QuotaStore::seed).
    pub is_known: bool,
}

/// Decides on a [`Reservation`], in the same way for all stores.
///
/// Show it what each department has used up, in their order, and ask. A department that holds a live lease of the
/// same id is not shown: it has what it asks for. No limit means a limit of `i64::MAX`.
///
/// Of several limits that stand in the way, the denial names the one that keeps the caller away for the longest: one
/// that is used up before one that is only reserved, then the one whose window ends last; of those the first by kind (requests,
/// tokens, cost), of the same kind the one that leaves least, so that who asks for no more than that fits all of them; of equal ones
/// the first by department.
#[derive(Debug)]
pub struct Verdict<'a> {
    reservation: &'a Reservation,
    day: &'a Day,
    now: u64,
    denial: Option<Finding<'a>>,
    tightest: Option<Finding<'a>>,
}

/// What there is to say of one limit.
#[derive(Debug, Clone, Copy)]
struct Finding<'a> {
    department: &'a Arc<str>,
    quota: QuotaKind,
    period: Period,
    limit: u64,
    settled: u64,
    reserved: u64,
    requested: u64,
}

// ===== impl Reservation and Settlement =====

impl Reservation {
    /// Reserves `amount`, for as long as `lease`; all of it is charged if it expires.
    pub fn new(id: LeaseId, departments: Departments, amount: Amount, lease: Duration, days: Days) -> Self {
        let amount = amount.clamped();
        Self { id, departments, amount, on_expiry: amount, lease, days, needs_seed: false }
    }

    /// Sets [`on_expiry`](Self::on_expiry).
    #[must_use]
    pub fn with_on_expiry(mut self, amount: Amount) -> Self {
        self.on_expiry = amount.clamped();
        self
    }

    /// Sets [`needs_seed`](Self::needs_seed).
    #[must_use]
    pub const fn with_needs_seed(mut self, needs_seed: bool) -> Self {
        self.needs_seed = needs_seed;
        self
    }
}

impl Settlement {
    /// Charges `amount` to all of `departments`.
    pub fn new(id: LeaseId, departments: Departments, amount: Amount) -> Self {
        Self { id, departments, amount: amount.clamped() }
    }
}

impl Baseline {
    /// This was used up in `day`, and in its month.
    pub const fn new(day: Day, day_settled: Amount, month_settled: Amount) -> Self {
        Self { day, day_settled, month_settled }
    }
}

impl Adjustment {
    /// Changes what `department` has used up in `window`.
    pub fn new(id: CallId, department: impl Into<Arc<str>>, window: WindowName, by: Delta) -> Self {
        Self { id, department: department.into(), window, by }
    }
}

impl Standing {
    /// Nothing is used up, by a department that nobody knows.
    pub fn nothing(day: Day) -> Self {
        Self { day, in_day: WindowUsage::default(), in_month: WindowUsage::default(), is_known: false }
    }

    /// What was used up in the day, or in the month.
    pub const fn over(&self, period: Period) -> &WindowUsage {
        match period {
            Period::Day => &self.in_day,
            Period::Month => &self.in_month,
        }
    }
}

impl Applied {
    /// What is true of both together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::First, _) | (_, Self::First) => Self::First,
            (Self::TrueUp, _) | (_, Self::TrueUp) => Self::TrueUp,
            (Self::Duplicate, Self::Duplicate) => Self::Duplicate,
        }
    }
}

impl Grant {
    /// A grant of which nothing more is known.
    pub const fn new(id: LeaseId, day: Day) -> Self {
        Self { id, day, tightest: None }
    }
}

// ===== impl WindowName =====

impl WindowName {
    /// Whether a lease of this day and month is charged to it.
    pub(super) const fn is_of(self, date: u32, month: u32) -> bool {
        match self {
            Self::Day(day) => day == date,
            Self::Month(name) => name == month,
        }
    }
}

// ===== impl Recount =====

impl Recount {
    /// What these leases hold, beside what is counted. None of them has expired.
    pub fn new(counted: Amount, held: Amount, mut leases: Vec<LeaseId>) -> Self {
        leases.sort_unstable();
        Self { counted, held, charged: Amount::ZERO, leases }
    }

    /// Sets [`charged`](Self::charged).
    #[must_use]
    pub const fn with_charged(mut self, charged: Amount) -> Self {
        self.charged = charged;
        self
    }

    /// What is counted beyond what is held.
    pub fn leaked(&self) -> Delta {
        self.counted.since(&self.held)
    }
}

// ===== impl Verdict =====

impl<'a> Verdict<'a> {
    /// Decides on `reservation`, for a call that is made on `day`, `now` in milliseconds by the store's clock.
    pub const fn new(reservation: &'a Reservation, day: &'a Day, now: u64) -> Self {
        Self { reservation, day, now, denial: None, tightest: None }
    }

    /// What `department` has used up and reserved so far.
    pub fn consider(&mut self, department: &'a Department, in_day: &WindowUsage, in_month: &WindowUsage) {
        for period in PERIODS {
            let used = if period == Period::Day { in_day } else { in_month };
            for quota in KINDS {
                let finding = Finding {
                    department: &department.id,
                    quota,
                    period,
                    limit: department.limits.ceiling(period, quota),
                    settled: used.settled.get(quota),
                    reserved: used.reserved.get(quota),
                    requested: self.reservation.amount.get(quota),
                };
                if finding.remaining().is_none() {
                    if self.denial.is_none_or(|first| finding.outweighs(&first)) {
                        self.denial = Some(finding);
                    }
                } else if department.limits.get(period, quota).is_some()
                    && self.tightest.is_none_or(|first| finding.is_tighter_than(&first))
                {
                    self.tightest = Some(finding);
                }
            }
        }
    }

    /// Whether all of it fits.
    pub const fn fits(&self) -> bool {
        self.denial.is_none()
    }

    /// What to answer.
    pub fn decision(&self) -> Decision {
        let until = |period| match period {
            Period::Day => self.day.until,
            Period::Month => self.day.month_until,
        };
        let resets_at = |period| system_time(until(period));
        let resets_in = |period| Duration::from_millis(until(period).saturating_sub(self.now));
        if let Some(found) = &self.denial {
            return Decision::Denied(Denial {
                department: Arc::clone(found.department),
                quota: found.quota,
                period: found.period,
                limit: found.limit,
                settled: found.settled,
                reserved: found.reserved,
                requested: found.requested,
                resets_at: resets_at(found.period),
                resets_in: resets_in(found.period),
                in_flight_only: found.is_in_flight_only(),
            });
        }
        let tightest = self.tightest.as_ref().map(|found| Headroom {
            department: Arc::clone(found.department),
            quota: found.quota,
            period: found.period,
            limit: found.limit,
            settled: found.settled,
            reserved: found.reserved,
            remaining: found.remaining().unwrap_or(0),
            resets_at: resets_at(found.period),
            resets_in: resets_in(found.period),
        });
        Decision::Granted(Grant { id: self.reservation.id, day: *self.day, tightest })
    }
}

impl Finding<'_> {
    /// What would be left; `None` if it does not fit.
    fn remaining(&self) -> Option<u64> {
        let taken = self.settled.saturating_add(self.reserved).saturating_add(self.requested);
        self.limit.checked_sub(taken)
    }

    fn is_in_flight_only(&self) -> bool {
        self.settled.saturating_add(self.requested) <= self.limit
    }

    /// Whether it keeps a caller away for longer than another, or leaves less of the same.
    fn outweighs(&self, other: &Self) -> bool {
        let lasts = |it: &Self| (!it.is_in_flight_only(), it.period == Period::Month);
        let leaves = |it: &Self| {
            let kind = KINDS.iter().position(|kind| *kind == it.quota);
            (kind, it.limit.saturating_sub(it.settled.saturating_add(it.reserved)))
        };
        (lasts(self), Reverse(leaves(self))) > (lasts(other), Reverse(leaves(other)))
    }

    fn is_tighter_than(&self, other: &Self) -> bool {
        let left = |finding: &Self| u128::from(finding.remaining().unwrap_or(0));
        left(self) * u128::from(other.limit) < left(other) * u128::from(self.limit)
    }
}
