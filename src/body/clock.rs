use crate::TimeoutPhase;
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// How long a stream may take: one timer, registered at the first `Pending` and moved only when it fires.
#[derive(Debug, Default)]
pub(crate) struct BodyClock {
    pub(crate) first_content: Option<Instant>,
    pub(crate) idle: Option<Duration>,
    pub(crate) total: Option<Instant>,
    /// The caller's own: that it passes is nobody else's fault.
    pub(crate) deadline: Option<Instant>,
    /// Since when the provider has been silent while somebody listened.
    silent_since: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

/// How long after its timer has fired a reader may come, and still have waited all the time.
const LATE: Duration = Duration::from_secs(1);

impl BodyClock {
    pub(crate) const fn new(
        first_content: Option<Instant>,
        idle: Option<Duration>,
        total: Option<Instant>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { first_content, idle, total, deadline, silent_since: None, sleep: None }
    }

    /// The stricter of both.
    pub(super) fn tighten(&mut self, other: &Self) {
        fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
            a.into_iter().chain(b).min()
        }
        self.first_content = least(self.first_content, other.first_content);
        self.idle = least(self.idle, other.idle);
        self.total = least(self.total, other.total);
        self.deadline = least(self.deadline, other.deadline);
    }

    pub(super) fn heard(&mut self) {
        self.silent_since = None;
    }

    /// Whether the idle time of a silence was over so long ago that whoever comes now was elsewhere when his timer fired.
    fn was_left(&self, silent_since: Instant, now: Instant) -> bool {
        let over = self.idle.and_then(|idle| silent_since.checked_add(idle));
        over.is_some_and(|over| now.saturating_duration_since(over) > LATE)
    }

    /// The provider has nothing to say; is that too long?
    pub(super) fn poll_silence(&mut self, has_content: bool, cx: &mut Context<'_>) -> Poll<TimeoutPhase> {
        let mut now = Instant::now();
        if self.silent_since.is_some_and(|since| self.was_left(since, now)) {
            self.silent_since = None;
        }
        let silent_since = *self.silent_since.get_or_insert(now);
        loop {
            let first_content = self.first_content.filter(|_| !has_content);
            // A model that thinks is silent: as long as the first content has a bound, that is the one.
            let idle = self.idle.filter(|_| first_content.is_none());
            let idle = idle.and_then(|idle| silent_since.checked_add(idle));
            let deadlines = [
                (first_content, TimeoutPhase::FirstContent),
                (idle, TimeoutPhase::Idle),
                (self.total, TimeoutPhase::Total),
                (self.deadline, TimeoutPhase::Deadline),
            ];
            let next =
                deadlines.into_iter().filter_map(|(at, phase)| Some((at?, phase))).min_by_key(|(at, _)| *at);
            let Some((at, phase)) = next else { return Poll::Pending };
            if at <= now {
                return Poll::Ready(phase);
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.deadline() > at || sleep.is_elapsed() {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            now = Instant::now();
        }
    }
}
