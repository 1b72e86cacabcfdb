use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Keeps from asking a store that does not answer: after some failures in a row, one try per pause.
///
/// Nothing is held while a try is under way, so that nothing is lost if it is dropped.
#[derive(Debug)]
pub(crate) struct Breaker {
    threshold: u32,
    pause: Duration,
    failures: AtomicU32,
    next_try: Mutex<Option<Instant>>,
}

impl Breaker {
    /// Opens after `threshold` failures in a row, and lets a try through each `pause`.
    pub(crate) const fn new(threshold: u32, pause: Duration) -> Self {
        Self { threshold, pause, failures: AtomicU32::new(0), next_try: Mutex::new(None) }
    }

    /// Whether the store may be asked now.
    pub(crate) fn lets_through(&self) -> bool {
        if !self.is_open() {
            return true;
        }
        let now = Instant::now();
        let mut next_try = self.next_try.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = next_try.is_none_or(|at| at <= now);
        if is_due {
            *next_try = now.checked_add(self.pause);
        }
        is_due
    }

    /// Whether the store has not answered lately, and may be asked again.
    pub(crate) fn is_due(&self) -> bool {
        self.is_open() && {
            let next_try = *self.next_try.lock().unwrap_or_else(PoisonError::into_inner);
            next_try.is_none_or(|at| at <= Instant::now())
        }
    }

    /// The store has answered. Whether it had failed the last time.
    pub(crate) fn succeeded(&self) -> bool {
        self.failures.load(Ordering::Acquire) != 0 && self.failures.swap(0, Ordering::AcqRel) != 0
    }

    /// The store has not answered, or could not.
    pub(crate) fn failed(&self) {
        let failures = self.failures.fetch_add(1, Ordering::AcqRel);
        if failures.saturating_add(1) >= self.threshold {
            let mut next_try = self.next_try.lock().unwrap_or_else(PoisonError::into_inner);
            *next_try = Instant::now().checked_add(self.pause);
        }
    }

    /// Whether the store has not answered lately.
    pub(crate) fn is_open(&self) -> bool {
        self.failures.load(Ordering::Acquire) >= self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_try_per_pause_until_the_store_answers_again() {
        let pause = Duration::from_secs(1);
        let breaker = Breaker::new(2, pause);
        breaker.failed();
        breaker.succeeded();
        breaker.failed();
        assert!(breaker.lets_through() && !breaker.is_open());
        breaker.failed();
        assert!(breaker.is_open() && !breaker.lets_through());
        assert!(!breaker.is_due());
        tokio::time::advance(pause).await;
        assert!(breaker.is_due() && breaker.is_due() && breaker.lets_through());
        assert!(!breaker.is_due() && !breaker.lets_through(), "one try, even if nobody hears of its end");
        tokio::time::advance(pause).await;
        assert!(breaker.lets_through());
        breaker.succeeded();
        assert!(breaker.lets_through() && breaker.lets_through() && !breaker.is_due());
    }
}
