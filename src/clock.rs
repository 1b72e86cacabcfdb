//! What time it is, by the calendar.
//!
//! ```
//! use llm_layers::clock::{Clock, SystemClock};
//! use std::time::{Duration, SystemTime};
//!
//! // For tests: a clock that stands.
//! let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600);
//! assert_eq!(noon.now(), noon);
//! assert!(SystemClock.now() > noon);
//! ```

use crate::forward::forward;
use std::{
    cell::Cell,
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Tells the time of day. Time that is measured comes from [`tokio::time`] instead, which tests can pause.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;

    /// What [`now`](Self::now) was at an instant that has just been read, for those who need both. Asks anew,
    /// unless you know something cheaper.
    fn at(&self, instant: Instant) -> SystemTime {
        let _ = instant;
        self.now()
    }
}

forward! {
    Clock for [Arc, Box] {
        fn now(&self) -> SystemTime;
        fn at(&self, instant: Instant) -> SystemTime;
    }
}

/// The clock of this machine.
///
/// [`at`](Clock::at) asks it once in 10 ms on each thread, and counts on from there: so much later it notices that the clock was set.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn at(&self, instant: Instant) -> SystemTime {
        if let Some((then, time)) = LAST_READ.get()
            && let Some(since) = instant.checked_duration_since(then)
            && since < COUNTED_ON
        {
            return time + since;
        }
        let time = self.now();
        LAST_READ.set(Some((instant, time)));
        time
    }
}

thread_local! {
    static LAST_READ: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

const COUNTED_ON: Duration = Duration::from_millis(10);

impl SystemClock {
    /// What it will say after so long; of a time that it cannot say, what it says now.
    pub(crate) fn in_future(self, after: Duration) -> SystemTime {
        let now = self.now();
        now.checked_add(after).unwrap_or(now)
    }
}

/// When so much time has passed: a limit that is as good as for ever makes no clock run over.
pub(crate) fn after(limit: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + limit.min(Duration::from_secs(365 * 24 * 60 * 60))
}

/// A clock that stands where it is set.
impl Clock for SystemTime {
    fn now(&self) -> SystemTime {
        *self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_at_an_instant_is_counted_on_for_a_while_and_asked_for_then() {
        let asked_at = tokio::time::Instant::now().into_std();
        let asked = SystemClock.at(asked_at);
        let counted = |on| SystemClock.at(asked_at + on) == asked + on;
        assert!(counted(Duration::ZERO));
        assert!(counted(COUNTED_ON - Duration::from_nanos(1)));
        // Hours that have not passed are not counted: this machine knows better.
        let hours = Duration::from_secs(7200);
        assert!(!counted(hours));
        assert!(SystemClock.at(asked_at + hours) < asked + hours / 2);
        // Nor is it counted back.
        assert!(SystemClock.at(asked_at) >= asked);
    }

    #[test]
    fn a_clock_that_stands_stands_at_any_instant() {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_secs(12 * 3600);
        assert_eq!(noon.at(tokio::time::Instant::now().into_std()), noon);
    }
}
