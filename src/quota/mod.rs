//! Keeps departments within their limits: requests, tokens and money, by the day and by the month.
//!
//! A call's upper bound is *reserved* before it is made and replaced by the truth, *settled*, when its answer has
//! ended, so that no number of calls at once gets past a limit. Both are counted by a [`QuotaStore`].

mod amount;
mod calendar;
mod estimate;
mod history;
mod hold;
mod layer;
mod lease;
mod memory;
mod options;
mod plan;
#[cfg(feature = "redis")]
mod redis;
mod service;
mod shared;
#[cfg(feature = "rusqlite")]
pub mod sqlite;
mod store;
mod worker;

#[cfg(feature = "time-zones")]
pub use self::calendar::UnknownZone;
#[cfg(feature = "tokenizer")]
pub use self::estimate::BpeEstimator;
#[cfg(feature = "redis")]
pub use self::redis::{RedisQuotaStore, RedisUnfit};
#[cfg(feature = "rusqlite")]
pub use self::sqlite::{QuotaFileError, QuotaFileErrorKind, SqliteOptions, SqliteStore};
pub use self::{
    amount::{Amount, Delta, Department, Departments, Limits, WindowUsage},
    calendar::{Calendar, Day, Days},
    estimate::{ByteEstimator, TokenEstimator},
    history::{Drift, HistoryFuture, UsageHistory, Used, audit, repair},
    layer::QuotaLayer,
    lease::{
        Adjustment, Applied, Baseline, Decision, Denial, Grant, Headroom, LeaseId, Reservation, Settlement,
        Standing, Verdict, WindowName,
    },
    memory::MemoryStore,
    options::{Hits, Mode, OnExpiry, OnTight, Stats, Unbounded, Unpriced, Unreported},
    service::{Quota, ResponseFuture},
    store::{ENDED_KEPT, EXPIRED_KEPT, QuotaStore, SWEEP, StoreError, StoreFuture},
    worker::{Report, Worker, WorkerOptions},
};
