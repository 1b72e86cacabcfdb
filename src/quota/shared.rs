use super::{
    amount::{Amount, Departments},
    calendar::{Calendar, Day, Days, unix_millis},
    estimate::TokenEstimator,
    history::{HistoryQuery, UsageHistory, Used},
    hold::{Hold, Lease},
    lease::{Baseline, Decision, Denial, Grant, Headroom, LeaseId, Reservation},
    live::{Live, Rebuilding, unlimited},
    options::{Hits, Mode, OnExpiry, OnTight, Settled, Stats, Unbounded, Unpriced, Unreported},
    parts::{Parts, parts},
    plan::{Obstacle, Plan},
    store::{QuotaStore, StoreError},
    worker::Outbox,
};
use crate::{
    BoxError, Error, ErrorKind, LlmRequest, QuotaExceeded,
    caught::caught_in,
    clock::{Clock, after},
    policies::AllowList,
    policies::Policies,
    price::{Billed, NanoUsd, Prices},
    store::Trouble,
};
use arc_swap::ArcSwapOption;
use std::{
    borrow::Cow,
    mem,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// All that calls of one layer share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn QuotaStore>,
    /// `None`: leases are settled where they end.
    pub(super) outbox: Option<Outbox>,
    /// Those of the outbox, if there is one; else there are none.
    pub(super) live: Arc<Live>,
    pub(super) policies: Policies,
    pub(super) prices: Prices,
    pub(super) estimator: Arc<dyn TokenEstimator>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) calendar: Calendar,
    pub(super) mode: Mode,
    pub(super) unbounded: Unbounded,
    pub(super) on_tight: OnTight,
    pub(super) on_expiry: OnExpiry,
    pub(super) unpriced: Unpriced,
    pub(super) unreported: Unreported,
    pub(super) hits: Hits,
    pub(super) largest_output: u64,
    pub(super) model_outputs: Vec<(AllowList, u64)>,
    pub(super) output_members: Vec<(AllowList, Cow<'static, str>)>,
    pub(super) lease: Duration,
    pub(super) deadline: Duration,
    pub(super) retry_in_flight: Duration,
    pub(super) history: Option<Arc<dyn UsageHistory>>,
    pub(super) on_settle: Option<OnSettle>,
    pub(super) state: Arc<State>,
}

/// Who learns of each call that is settled.
pub(super) type OnSettle = Arc<dyn Fn(&Settled) + Send + Sync>;

/// What changes.
pub(super) struct State {
    pub(super) parts: Parts,
    trouble: Trouble,
    damage: Trouble,
    /// The day of the last call, and those around it.
    days: ArcSwapOption<(Day, Days)>,
    /// How far the store's clock is ahead of ours, in milliseconds, once it was found to be in another day.
    offset: AtomicI64,
    denied: AtomicU64,
    would_deny: AtomicU64,
    unavailable: AtomicU64,
    pub(super) in_flight: AtomicU64,
}

/// What becomes of a call.
#[expect(clippy::large_enum_variant, reason = "most calls are granted")]
pub(super) enum Admission {
    /// It is made, and counts for nobody.
    Free,
    /// It is made, and settled when it has ended.
    Granted(Lease, Option<Headroom>),
    Refused(Error),
    /// The store has yet to answer, or more has to be thought about.
    Asking(Asking),
}

/// What is found out before a call is made, with the request as it is then.
pub(super) type Asking = std::pin::Pin<
    Box<dyn Future<Output = (LlmRequest, Result<Option<(Lease, Option<Headroom>)>, Error>)> + Send>,
>;

impl State {
    pub(super) fn new() -> Self {
        Self {
            parts: Parts::default(),
            trouble: Trouble::default(),
            damage: Trouble::default(),
            days: ArcSwapOption::empty(),
            offset: AtomicI64::new(0),
            denied: AtomicU64::new(0),
            would_deny: AtomicU64::new(0),
            unavailable: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
        }
    }

    pub(super) fn stats(&self) -> Stats {
        Stats {
            denied: self.denied.load(Ordering::Relaxed),
            would_deny: self.would_deny.load(Ordering::Relaxed),
            unavailable: self.unavailable.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Decides at once where that is possible.
    pub(super) fn admit(self: &Arc<Self>, request: &mut LlmRequest) -> Admission {
        if request.context.department_ids().is_empty() {
            return Admission::Free;
        }
        let now = self.clock.now();
        let Some(mut hold) = self.hold(now) else {
            let error = self.unavailable(None);
            return if self.mode == Mode::Shadow { Admission::Free } else { Admission::Refused(error) };
        };
        let departments = self.departments(&self.policies.peek(), request);
        let plan = match self.plan(request, departments) {
            Ok(plan) => plan,
            Err(error) => return Admission::Refused(error),
        };
        if !self.store.is_immediate() || plan.too_large().is_some() {
            return self.ask(request, plan, hold);
        }
        let reservation = self.reservation(&plan, hold.id(), now);
        match self.store.reserve(&reservation).now() {
            Ok(Ok(Decision::Granted(Grant { tightest, day, .. }))) => {
                hold.asks(reservation.departments);
                hold.granted(&plan, day);
                Admission::Granted(Lease::new(hold, &plan, request), tightest)
            }
            // Nothing was written, and there is more to be tried.
            _ => self.ask(request, plan, hold),
        }
    }

    /// A lease to be, with a place for its end; `None` if there is none.
    fn hold(self: &Arc<Self>, now: SystemTime) -> Option<Hold> {
        let place = match &self.outbox {
            None => None,
            Some(outbox) => Some(outbox.place()?),
        };
        Some(Hold::new(Arc::clone(self), LeaseId::mint(now), place))
    }

    fn ask(self: &Arc<Self>, request: &LlmRequest, plan: Plan, hold: Hold) -> Admission {
        let (shared, mut request) = (Arc::clone(self), request.clone());
        Admission::Asking(Box::pin(async move {
            let answer = shared.answer(&mut request, plan, hold).await;
            (request, answer)
        }))
    }

    async fn answer(
        self: &Arc<Self>,
        request: &mut LlmRequest,
        mut plan: Plan,
        mut hold: Hold,
    ) -> Result<Option<(Lease, Option<Headroom>)>, Error> {
        let mut deadline = after(self.deadline);
        let is_shadow = self.mode == Mode::Shadow;
        let (mut last, mut has_waited, settled) = (None, false, self.live.settled());
        for _ in 0..ADAPTED {
            let obstacle = match plan.too_large().filter(|_| !is_shadow) {
                Some(obstacle) => obstacle,
                None => match self.reserve(&plan, &mut hold, deadline).await {
                    Ok(Ok(grant)) => {
                        hold.granted(&plan, grant.day);
                        return Ok(Some((Lease::new(hold, &plan, request), grant.tightest)));
                    }
                    Ok(Err(denial)) => {
                        // By what has ended, be it an attempt of this very call, and is not settled yet: where a worker does that.
                        if denial.reserved > 0 && !has_waited && self.outbox.is_some() {
                            has_waited = true;
                            let since = Instant::now();
                            let ends = self.live.ends_are_settled(&plan.departments);
                            let _ = tokio::time::timeout(self.deadline, ends).await;
                            if self.live.settled() != settled {
                                deadline += since.elapsed();
                                continue;
                            }
                        }
                        if is_shadow {
                            self.state.would_deny.fetch_add(1, Ordering::Relaxed);
                            plan.departments = unlimited(&plan.departments);
                            continue;
                        }
                        Obstacle::Denied(denial)
                    }
                    Err(cause) => {
                        let error = self.unavailable(cause);
                        return if is_shadow { Ok(None) } else { Err(error) };
                    }
                },
            };
            let thought = Instant::now();
            if !self.adapt(request, &mut plan, &obstacle).await {
                return Err(self.refusal(obstacle));
            }
            // It is the store that has so long and no longer.
            deadline += thought.elapsed();
            last = Some(obstacle);
        }
        // Others are faster to take what is left. In the shadow nobody is refused.
        last.map_or(Ok(None), |obstacle| Err(self.refusal(obstacle)))
    }

    fn refusal(&self, obstacle: Obstacle) -> Error {
        self.state.denied.fetch_add(1, Ordering::Relaxed);
        Error::new(match obstacle {
            Obstacle::TooLarge { department, quota, period, largest } => {
                ErrorKind::RequestTooLarge { department_id: department, quota, period, largest }
            }
            Obstacle::Denied(denial) => {
                ErrorKind::QuotaExceeded(QuotaExceeded::from_denial(denial, self.retry_in_flight))
            }
        })
    }

    fn unavailable(&self, cause: Option<StoreError>) -> Error {
        self.state.unavailable.fetch_add(1, Ordering::Relaxed);
        let error = Error::new(ErrorKind::StoreUnavailable { store: Cow::Borrowed("quota") });
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn reservation(&self, plan: &Plan, id: LeaseId, now: SystemTime) -> Reservation {
        Reservation::new(id, plan.departments.clone(), plan.amount, self.lease, self.days(now))
            .with_on_expiry(plan.on_expiry)
            .with_needs_seed(self.history.is_some())
    }

    /// Asks a store that has not answered lately, in the background, whether it does: for nothing, in the name of those whom it
    /// did not answer last. Without it, a host that gets no calls because it is not available would never be so again.
    pub(super) fn probe(self: &Arc<Self>) {
        let Some(plan) = self.state.parts.due() else {
            if !self.state.parts.is_mute()
                && let Some(departments) = self.outbox.as_ref().and_then(Outbox::doubted)
            {
                self.probe_for(unlimited(&departments));
            }
            return;
        };
        // It may be one part of the store alone.
        if self.state.parts.is_mute()
            && let Some(others) = self.outbox.as_ref().and_then(Outbox::next_known)
            && parts(&*self.store, &others) != parts(&*self.store, &plan.departments)
        {
            self.probe_for(unlimited(&others));
        }
        let hold = self.hold(self.clock.now());
        let (Some(mut hold), Ok(runtime)) = (hold, tokio::runtime::Handle::try_current()) else { return };
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            let deadline = after(shared.deadline);
            if shared.reserve(&plan, &mut hold, deadline).await.is_err() {
                // What was reserved all the same is nothing, and expires.
                hold.holds_nothing();
            }
        });
    }

    /// Asks a store that could not settle a lease whether it was the lease or the store: for nothing, in the name of some whose leases
    /// it was told of. That it fails for them says nothing about others, so that no call is refused for it.
    fn probe_for(self: &Arc<Self>, departments: Departments) {
        let now = self.clock.now();
        let (Some(mut hold), Ok(runtime)) = (self.hold(now), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let shared = Arc::clone(self);
        runtime.spawn(async move {
            let nothing = Reservation::new(
                hold.id(),
                departments.clone(),
                Amount::ZERO,
                shared.lease,
                shared.days(now),
            )
            .with_needs_seed(shared.history.is_some());
            hold.asks(departments.clone());
            let answer = tokio::time::timeout(shared.deadline, shared.store.reserve(&nothing)).await;
            if !matches!(answer, Ok(Ok(Decision::Granted(_)))) {
                // What was reserved all the same is nothing, and expires.
                hold.holds_nothing();
            }
            if let Ok(
                Ok(_)
                | Err(StoreError::OffCalendar { .. } | StoreError::Unseeded { .. } | StoreError::Damaged(_)),
            ) = answer
            {
                shared.answered(&departments);
            }
        });
    }

    /// The store works for these, whatever it has said.
    fn answered(&self, departments: &Departments) {
        if self.state.parts.succeeded(&*self.store, departments) {
            self.state.trouble.works("quotas are counted again");
        }
        if let Some(outbox) = &self.outbox {
            outbox.answered();
        }
    }

    /// Asks the store, again where it says what it lacks. An error has the cause, if the store was asked.
    async fn reserve(
        self: &Arc<Self>,
        plan: &Plan,
        hold: &mut Hold,
        deadline: Instant,
    ) -> Result<Result<Grant, Denial>, Option<StoreError>> {
        // It may be midnight there just now, but not again and again.
        let mut clocks = 2;
        let mut has_waited = false;
        loop {
            if !self.state.parts.lets_through(&*self.store, &plan.departments) {
                return Err(None);
            }
            let now = self.clock.now();
            let reservation = self.reservation(plan, hold.id(), now);
            hold.asks(plan.departments.clone());
            let mut is_late = false;
            let answer = match self.store.reserve(&reservation).now() {
                Ok(answer) => answer,
                Err(answer) => tokio::time::timeout_at(deadline, answer).await.unwrap_or_else(|elapsed| {
                    is_late = true;
                    Err(StoreError::ambiguous(elapsed))
                }),
            };
            let error = match answer {
                Ok(decision) => {
                    self.answered(&plan.departments);
                    return match decision {
                        Decision::Granted(grant) => Ok(Ok(grant)),
                        Decision::Denied(denial) => {
                            hold.holds_nothing();
                            Ok(Err(denial))
                        }
                        // Nobody else has this id: it was released in the name of this call.
                        Decision::Ended => {
                            hold.holds_nothing();
                            Err(None)
                        }
                    };
                }
                Err(error) => error,
            };
            match &error {
                StoreError::OffCalendar { now: theirs } if clocks > 0 => {
                    clocks -= 1;
                    self.answered(&plan.departments);
                    hold.holds_nothing();
                    self.adjust_clock(now, *theirs);
                }
                StoreError::Unseeded { departments, day } if self.history.is_some() => {
                    self.answered(&plan.departments);
                    hold.holds_nothing();
                    self.live.are_unknown(departments);
                    self.seed(departments, *day);
                    // Whoever looks for the past of a department goes on with it, also if nobody waits.
                    if tokio::time::timeout_at(deadline, self.live.are_rebuilt(departments)).await.is_err() {
                        return Err(Some(error));
                    }
                    has_waited = true;
                }
                // That of these departments alone: others are not refused for it.
                StoreError::Damaged(_) => {
                    self.answered(&plan.departments);
                    hold.holds_nothing();
                    let names: Vec<_> = plan.departments.iter().map(|department| &*department.id).collect();
                    let cause = format!("{}: {}", names.join(", "), error.cause());
                    self.state.damage.fails("counters of a department are damaged", &cause);
                    return Err(Some(error));
                }
                _ => {
                    // What a ledger has left of the time may be too short for any store.
                    if !(is_late && has_waited) {
                        self.state.parts.failed(&*self.store, plan);
                        self.state.trouble.fails("quotas cannot be counted", &error.cause());
                    }
                    if !error.is_ambiguous() {
                        hold.holds_nothing();
                    }
                    return Err(Some(error));
                }
            }
        }
    }

    /// Looks up what these departments have used up, and tells the store, which takes it once.
    fn seed(self: &Arc<Self>, departments: &[Arc<str>], day: Day) {
        let Some(history) = &self.history else { return };
        for department in departments {
            let Some(rebuilding) = Rebuilding::begin(&self.live, department) else { continue };
            let (shared, history) = (Arc::clone(self), Arc::clone(history));
            let department = Arc::clone(department);
            tokio::spawn(async move {
                let past = caught_in("the ledger", past(&*history, &department, day, &rebuilding));
                let is_seeded = match past.await {
                    Ok(Ok((used, left_out))) => {
                        let baseline = Baseline::new(day, used.in_day, used.in_month);
                        let told = shared.store.seed(&department, &baseline).await;
                        if let Ok(true) = told {
                            rebuilding.leaves_out(&left_out);
                        }
                        told.is_ok()
                    }
                    Ok(Err(_)) | Err(_) => false,
                };
                if !is_seeded {
                    // The next call finds the department as unknown as this one has.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                drop(rebuilding);
            });
        }
    }

    /// The days that a reservation may fall on.
    pub(super) fn days(&self, now: SystemTime) -> Days {
        let offset = self.state.offset.load(Ordering::Acquire);
        let shift = Duration::from_millis(offset.unsigned_abs());
        let now = if offset < 0 { now.checked_sub(shift) } else { now.checked_add(shift) }.unwrap_or(now);
        let millis = unix_millis(now);
        if let Some(known) = &*self.state.days.load()
            && known.0.contains(millis)
        {
            return known.1.clone();
        }
        let days = self.calendar.days_around(now);
        if let Some(today) = days.at(millis) {
            self.state.days.store(Some(Arc::new((*today, days.clone()))));
        }
        days
    }

    /// The store lives in other days than we do: it is the one that counts.
    fn adjust_clock(&self, ours: SystemTime, theirs: SystemTime) {
        let millis = |ahead: Duration| i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        let offset = match theirs.duration_since(ours) {
            Ok(ahead) => millis(ahead),
            Err(behind) => -millis(behind.duration()),
        };
        self.state.offset.store(offset, Ordering::Release);
    }

    /// What a call cost, if there is a price.
    pub(super) fn cost(&self, model: &str, billed: &Billed) -> Option<NanoUsd> {
        self.prices.amount(model, billed).or_else(|| match &self.unpriced {
            Unpriced::Assume(price) => price.bill(billed).ok().map(|(amount, _)| amount),
            Unpriced::Reject | Unpriced::Free => None,
        })
    }

    /// What is charged for a hit that counts.
    pub(super) fn hit(&self, tokens: u64) -> Option<Amount> {
        (self.hits == Hits::Count).then(|| Amount::new(1, tokens, NanoUsd::ZERO))
    }
}

/// What a department has used up, but for what its leases will be charged when they are settled, which the store does not
/// do before it knows the department.
async fn past(
    history: &dyn UsageHistory,
    department: &Arc<str>,
    day: Day,
    rebuilding: &Rebuilding,
) -> Result<(Used, Vec<LeaseId>), BoxError> {
    let mut leases = rebuilding.in_flight();
    let mut asked = 0;
    loop {
        let query = HistoryQuery::new(Arc::clone(department), day).with_in_flight(&*leases);
        let used = history.used(query).await?;
        asked += 1;
        let before = mem::replace(&mut leases, rebuilding.in_flight());
        // None comes or goes, but for one whose answer was still on its way when the counters were lost. Where some go on
        // coming and going, somebody else has told the store by now.
        if before == leases || asked == LOOKS {
            return Ok((used, before));
        }
    }
}

/// A wait for what has ended, a count of the prompt, and a shorter answer for whatever is in the way one after the other: what
/// could never fit, by tokens and by cost, then the same of each weight that a denial has, of which there are four; and it fits.
const ADAPTED: usize = 1 + 1 + 2 + 4 * 2 + 1;
/// How often a ledger is asked anew because of leases that came or went.
const LOOKS: u32 = 4;

impl QuotaExceeded {
    fn from_denial(denial: Denial, retry_in_flight: Duration) -> Self {
        let retry_after = if denial.in_flight_only { retry_in_flight } else { denial.resets_in };
        Self {
            department_id: denial.department,
            quota: denial.quota,
            period: denial.period,
            limit: denial.limit,
            current: denial.settled,
            reserved: denial.reserved,
            resets_at: denial.resets_at,
            resets_in: denial.resets_in,
            retry_after: retry_after.min(denial.resets_in),
            in_flight_only: denial.in_flight_only,
        }
    }
}
