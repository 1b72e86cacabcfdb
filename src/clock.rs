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

use std::{
    fmt::Debug,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

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

/// When so much time has passed: a limit that is as good as for ever makes no clock run over.
pub(crate) fn after(limit: Duration) -> Instant {
    Instant::now() + limit.min(Duration::from_secs(365 * 24 * 60 * 60))
}

/// A clock that stands where it is set.
impl Clock for SystemTime {
    fn now(&self) -> SystemTime {
        *self
    }
}
