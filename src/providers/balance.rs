use crate::{
    Error, ErrorKind, TimeoutPhase,
    body::{End, Observe},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// When a deployment is left alone, and for how long.
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
    /// In milliseconds since `epoch`.
    cool_until: AtomicU64,
    epoch: Instant,
    cool_down: CoolDown,
}

impl Health {
    pub(crate) fn new(cool_down: CoolDown) -> Self {
        Self {
            in_flight: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
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

    fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self, error: &Error) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let asked = error.retry_after().filter(|_| matches!(error.kind(), ErrorKind::Provider(_)));
        let mut rest = asked.unwrap_or_default().min(self.cool_down.max);
        if failures >= self.cool_down.failures {
            rest = rest.max(self.cool_down.time);
            self.failures.store(0, Ordering::Relaxed);
        }
        let until = self.millis(Instant::now()).saturating_add(millis(rest));
        self.cool_until.fetch_max(until, Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Which of several to ask: of two by chance the one with fewer calls in flight; those that are to be left
/// alone only if all are.
pub(super) fn choose(all: &[Arc<Health>]) -> usize {
    let count = all.len();
    if count == 1 {
        return 0;
    }
    let now = Instant::now();
    let cooling = all.iter().filter(|health| health.is_cooling(now)).count();
    let usable = if cooling == count { count } else { count - cooling };
    let nth = |n: usize| {
        let mut usable =
            all.iter().enumerate().filter(|(_, health)| cooling == count || !health.is_cooling(now));
        // One may have begun to cool in between: any other will do.
        usable.nth(n).map_or(0, |(at, _)| at)
    };
    let first = fastrand::usize(..usable);
    if usable == 1 {
        return nth(first);
    }
    let second = (first + 1 + fastrand::usize(..usable - 1)) % usable;
    let (first, second) = (nth(first), nth(second));
    let load = |at: usize| all[at].in_flight.load(Ordering::Relaxed);
    if load(second) < load(first) { second } else { first }
}

/// A call's share in the balance, from before it is sent until its answer has ended.
#[derive(Debug)]
pub(super) struct InFlight {
    health: Arc<Health>,
}

impl InFlight {
    pub(super) fn new(health: Arc<Health>) -> Self {
        health.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { health }
    }
}

impl Observe for InFlight {
    fn on_end(self, end: End<'_>) {
        match end {
            End::Whole(_) | End::StreamEnded(_) => self.health.succeeded(),
            End::Failed(error, _) if is_deployments_fault(error) => self.health.failed(error),
            // Nobody's fault, or not known whose.
            End::Failed(..) | End::Abandoned(_) => {}
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.health.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
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
