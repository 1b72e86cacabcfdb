//! Keeps departments within their limits: requests, tokens and money, by the day and by the month.
//!
//! A call's upper bound is *reserved* before it is made and replaced by the truth, *settled*, when its answer has
//! ended, so that no number of calls at once gets past a limit. Both are counted by a [`QuotaStore`].

mod amount;
mod calendar;
mod lease;
mod memory;
#[cfg(feature = "rusqlite")]
pub mod sqlite;
mod store;

#[cfg(feature = "time-zones")]
pub use self::calendar::UnknownZone;
#[cfg(feature = "rusqlite")]
pub use self::sqlite::{QuotaFileError, QuotaFileErrorKind, SqliteOptions, SqliteStore};
pub use self::{
    amount::{Amount, Delta, Department, Departments, Limits, WindowUsage},
    calendar::{Calendar, Day, Days},
    lease::{
        Adjustment, Applied, Baseline, Decision, Denial, Grant, Headroom, LeaseId, Reservation, Settlement,
        Standing, Verdict, WindowName,
    },
    memory::MemoryStore,
    store::{ENDED_KEPT, EXPIRED_KEPT, QuotaStore, SWEEP, StoreError, StoreFuture},
};
