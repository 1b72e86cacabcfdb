//! What time it is, by the calendar.

use std::{fmt::Debug, time::SystemTime};

/// Tells the time of day. Time that is measured comes from [`tokio::time`] instead, which tests can pause.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Now.
    fn now(&self) -> SystemTime;
}

/// The clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that stands where it is set.
impl Clock for SystemTime {
    fn now(&self) -> SystemTime {
        *self
    }
}
