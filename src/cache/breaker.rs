use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Leaves a store alone for a while after it has failed several times in a row.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    closed_again_at: Option<Instant>,
}

const MOST_FAILURES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

impl Breaker {
    /// Whether the store may be asked. After a pause one call finds out for all.
    pub(super) fn admits(&self) -> bool {
        let mut state = self.lock();
        let Some(at) = state.closed_again_at else { return true };
        let now = Instant::now();
        if now < at {
            return false;
        }
        state.closed_again_at = Some(now + PAUSE);
        true
    }

    /// Whether the store is being left alone.
    pub(super) fn is_open(&self) -> bool {
        self.lock().closed_again_at.is_some_and(|at| Instant::now() < at)
    }

    pub(super) fn succeeded(&self) {
        *self.lock() = State::default();
    }

    pub(super) fn failed(&self) {
        let mut state = self.lock();
        state.failures += 1;
        if state.failures >= MOST_FAILURES {
            state.closed_again_at = Some(Instant::now() + PAUSE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
