use crate::{
    Error, ErrorKind, StreamChunk, TimeoutPhase,
    body::{Arrival, End, Observe},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// When a deployment is left alone, and for how long.
///
/// What counts are failures of its own. That a caller leaves, or has no more time, is none; but where as many in a row have waited for
/// a second or more and then left, without a sign of it while others of its provider were heard, it is left alone, too.
///
/// After its rest it has one call at a time until it is heard: an answer, or the first chunk of one, that began since. If that call fails,
/// the next rest begins at once; if it takes longer than a rest, it has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoolDown {
    failures: u32,
    time: Duration,
    max: Duration,
}

impl CoolDown {
    /// After this many failures in a row, for this long.
    pub const fn new(failures: u32, time: Duration) -> Self {
        Self { failures, time, max: Duration::from_secs(60) }
    }

    /// A deployment may ask for a longer rest by `Retry-After`, but for no longer than this; 60 s unless told.
    #[must_use]
    pub const fn with_max(mut self, max: Duration) -> Self {
        self.max = max;
        self
    }
}

impl Default for CoolDown {
    /// After 3 failures in a row, for 5 s.
    fn default() -> Self {
        Self::new(3, Duration::from_secs(5))
    }
}

/// How one deployment is doing.
#[derive(Debug)]
pub(crate) struct Health {
    in_flight: AtomicUsize,
    failures: AtomicU32,
    /// Whether it was heard in the last call of which that can be told.
    is_heard: AtomicBool,
    /// Calls in a row that were left unheard.
    unheard: AtomicU32,
    /// It has rested, and nothing was heard of it since.
    is_on_trial: AtomicBool,
    /// Calls in flight that began on trial.
    trials: AtomicUsize,
    /// When the last of these began, in milliseconds since `epoch`.
    tried_at: AtomicU64,
    /// The same.
    cool_until: AtomicU64,
    epoch: Instant,
    cool_down: CoolDown,
}

impl Health {
    pub(crate) fn new(cool_down: CoolDown) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            is_heard: AtomicBool::new(false),
            unheard: AtomicU32::new(0),
            is_on_trial: AtomicBool::new(false),
            trials: AtomicUsize::new(0),
            tried_at: AtomicU64::new(0),
            cool_until: AtomicU64::new(0),
            epoch: Instant::now(),
            cool_down,
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.epoch))
    }

    fn is_cooling(&self, now: Instant) -> bool {
        self.cool_until.load(Ordering::Relaxed) > self.millis(now)
    }

    fn is_on_trial(&self) -> bool {
        self.is_on_trial.load(Ordering::Relaxed)
    }

    /// Whether somebody finds out how it is. An answer that is not streamed may take minutes, as may a connection that is dead:
    /// after as long as a rest, that is no longer waited for.
    fn is_found_out(&self, now: Instant) -> bool {
        let until = || self.tried_at.load(Ordering::Relaxed).saturating_add(millis(self.cool_down.time));
        self.is_on_trial() && self.trials.load(Ordering::Relaxed) > 0 && until() > self.millis(now)
    }

    /// Whether it may be asked: after a rest, only while nobody else finds out how it is.
    fn is_free(&self, now: Instant) -> bool {
        !self.is_found_out(now) && !self.is_cooling(now)
    }

    fn heard(&self) {
        // Looked at first: all calls to it share this.
        if !self.is_heard.load(Ordering::Relaxed) || self.unheard.load(Ordering::Relaxed) > 0 {
            self.is_heard.store(true, Ordering::Relaxed);
            self.unheard.store(0, Ordering::Relaxed);
        }
    }

    /// Others were heard: it is this one, and not those who leave.
    fn left_unheard(&self, is_trial: bool) {
        let unheard = self.unheard.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if is_trial || unheard >= self.cool_down.failures {
            self.unheard.store(0, Ordering::Relaxed);
            self.is_on_trial.store(true, Ordering::Relaxed);
            self.rest(self.cool_down.time);
        }
    }

    fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, error: &Error, is_trial: bool) {
        self.is_heard.store(false, Ordering::Relaxed);
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let asked = error.retry_after().filter(|_| matches!(error.kind(), ErrorKind::Provider(_)));
        let mut rest = asked.unwrap_or_default().min(self.cool_down.max);
        if is_trial || failures >= self.cool_down.failures {
            rest = rest.max(self.cool_down.time);
            self.failures.store(0, Ordering::Relaxed);
            self.is_on_trial.store(true, Ordering::Relaxed);
        }
        self.rest(rest);
    }

    fn rest(&self, rest: Duration) {
        let until = self.millis(Instant::now()).saturating_add(millis(rest));
        self.cool_until.fetch_max(until, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The deployment that is asked in one attempt, and the others of its provider.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    all: Arc<[Arc<Health>]>,
    at: usize,
}

impl Chosen {
    /// Of two by chance the one with fewer calls in flight. Those that have `failed` in this call, and then those that are to
    /// be left alone, only if there is no other.
    pub(super) fn of(all: &Arc<[Arc<Health>]>, failed: &[Self]) -> Self {
        let all = Arc::clone(all);
        let at = if all.len() == 1 { 0 } else { choose(&all, failed) };
        Self { all, at }
    }

    /// For whoever may ask another one later; `None` where there is none.
    pub(super) fn among_others(&self) -> Option<Self> {
        (self.all.len() > 1).then(|| self.clone())
    }

    pub(super) const fn at(&self) -> usize {
        self.at
    }

    pub(super) fn health(&self) -> &Arc<Health> {
        &self.all[self.at]
    }

    fn others(&self) -> impl Iterator<Item = &Arc<Health>> {
        self.all.iter().enumerate().filter(|(at, _)| *at != self.at).map(|(_, other)| other)
    }

    /// Whether another one can be asked at once.
    pub(crate) fn has_other(&self, failed: &[Self]) -> bool {
        let now = Instant::now();
        self.others().any(|other| other.is_free(now) && !has_failed(other, failed))
    }
}

fn has_failed(health: &Arc<Health>, failed: &[Chosen]) -> bool {
    failed.iter().any(|failed| Arc::ptr_eq(failed.health(), health))
}

fn choose(all: &[Arc<Health>], failed: &[Chosen]) -> usize {
    let now = Instant::now();
    let is_free = |health: &Arc<Health>| health.is_free(now);
    fewer_in_flight(all, |health| is_free(health) && !has_failed(health, failed))
        .or_else(|| fewer_in_flight(all, is_free))
        .or_else(|| fewer_in_flight(all, |health| !health.is_cooling(now)))
        .or_else(|| fewer_in_flight(all, |_| true))
        .unwrap_or_default()
}

fn fewer_in_flight(all: &[Arc<Health>], is_usable: impl Fn(&Arc<Health>) -> bool) -> Option<usize> {
    let usable = || all.iter().enumerate().filter(|(_, health)| is_usable(health)).map(|(at, _)| at);
    let count = usable().count();
    let first = fastrand::usize(..count.max(1));
    // One may have begun to cool in between: any other will do.
    let nth = |n: usize| usable().nth(n).or_else(|| usable().next());
    if count < 2 {
        return nth(first);
    }
    let second = (first + 1 + fastrand::usize(..count - 1)) % count;
    let (first, second) = (nth(first)?, nth(second)?);
    let load = |at: usize| all[at].in_flight.load(Ordering::Relaxed);
    Some(if load(second) < load(first) { second } else { first })
}

/// Who leaves sooner has learnt nothing of the deployment.
const PATIENCE: Duration = Duration::from_secs(1);

/// A call's share in the balance, from before it is sent until its answer has ended.
#[derive(Debug)]
pub(super) struct InFlight {
    chosen: Chosen,
    /// When it was sent, if there are others that could have been asked.
    sent: Option<Instant>,
    is_trial: bool,
    is_heard: bool,
}

impl InFlight {
    pub(super) fn new(chosen: Chosen) -> Self {
        let health = chosen.health();
        health.in_flight.fetch_add(1, Ordering::Relaxed);
        let is_trial = health.is_on_trial();
        if is_trial {
            health.trials.fetch_add(1, Ordering::Relaxed);
            health.tried_at.store(health.millis(Instant::now()), Ordering::Relaxed);
        }
        Self { chosen, sent: None, is_trial, is_heard: false }
    }

    pub(super) fn is_sent(&mut self) {
        self.sent = (self.chosen.all.len() > 1).then(Instant::now);
    }

    /// The deployment has answered, or begun to.
    fn heard(&mut self) {
        if self.is_heard {
            return;
        }
        self.is_heard = true;
        let health = self.chosen.health();
        health.heard();
        if self.is_trial {
            health.is_on_trial.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it is what finds out: nothing was heard since the rest, in this call or another.
    fn finds_out(&self) -> bool {
        self.is_trial && !self.is_heard && self.chosen.health().is_on_trial()
    }

    /// Nobody waits any more.
    fn left(&self) {
        let has_waited = self.sent.is_some_and(|sent| sent.elapsed() >= PATIENCE);
        if self.is_heard || !has_waited {
            return;
        }
        let health = self.chosen.health();
        health.is_heard.store(false, Ordering::Relaxed);
        if self.chosen.others().any(|other| other.is_heard.load(Ordering::Relaxed)) {
            health.left_unheard(self.finds_out());
        }
    }
}

impl Observe for InFlight {
    fn on_chunk(&mut self, _: &StreamChunk, _: &Arrival) {
        self.heard();
    }

    fn on_end(mut self, end: End<'_>) {
        match end {
            End::Whole(_) | End::StreamEnded(_) => {
                self.heard();
                self.chosen.health().succeeded();
            }
            End::Failed(error, _) if is_deployments_fault(error) => {
                self.chosen.health().failed(error, self.finds_out());
            }
            // It has answered, though not as its caller would have it.
            End::Failed(error, _) if error.class().is_some() => self.heard(),
            End::Abandoned(_) => self.left(),
            End::Failed(error, _) if is_deadline(error) => self.left(),
            // Nobody's fault, or not known whose.
            End::Failed(..) => {}
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let health = self.chosen.health();
        health.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.is_trial {
            health.trials.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn is_deadline(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline })
}

fn is_deployments_fault(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Provider(failure) => !failure.class.is_callers_fault(),
        ErrorKind::Timeout { phase } => *phase != TimeoutPhase::Deadline,
        // Overloaded is a limit of ours around it; the balance sees to that.
        ErrorKind::StreamInterrupted { .. } | ErrorKind::Other => true,
        _ => false,
    }
}
