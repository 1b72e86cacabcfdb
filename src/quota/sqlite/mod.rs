//! Quotas in files of SQLite, for one machine: counters that survive restarts, and policies that are edited by hand.
//!
//! [`SqliteStore`] is a [`QuotaStore`](super::QuotaStore) for all processes of a machine that open the same file: what one
//! of them reserves, the others see. Three things are easy to get wrong:
//!
//! - The file is in [WAL mode](https://www.sqlite.org/wal.html), so it does not belong on a network file system, and the
//!   files with `-wal` and `-shm` after its name belong to it.
//! - Answers come from a thread of its own, which does many operations in one transaction. They are bounded by
//!   [`timeout`](SqliteOptions::timeout), also while somebody else has locked the file; the futures need a tokio runtime with
//!   time. What was not begun by then is never done, and the error is definite; what was begun and did not end
//!   is ambiguous.
//! - Its clock never goes back, not even over a restart: what was the latest time for anybody who has the file is written in
//!   it, and while the machine's clock is behind, time stands still there. So a clock that is set back opens no
//!   window again. One that was *ahead* by mistake and is right again stands still until that time has come. If it was ahead
//!   by more than a day, nothing is reserved meanwhile ([`Ahead`](QuotaFileErrorKind::Ahead)); whoever knows that it was a mistake
//!   says `UPDATE clock SET now = 0`.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = std::env::temp_dir().join(format!("llm-layers-doc-quota-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! # let path = directory.join("quota.db");
//! use llm_layers::{
//!     CallId,
//!     clock::{Clock, SystemClock},
//!     price::NanoUsd,
//!     quota::{
//!         Amount, Calendar, Decision, Department, Departments, Limits, QuotaStore, Reservation, SqliteOptions,
//!         SqliteStore,
//!     },
//! };
//! use std::time::Duration;
//!
//! let store = SqliteStore::open(&path, SqliteOptions::new())?;
//! let limits = Limits::new().with_day_tokens(1000);
//! let departments = Departments::one(Department::new("research", limits));
//! let now = SystemClock.now();
//! let (amount, lease) = (Amount::new(1, 900, NanoUsd::ZERO), Duration::from_secs(60));
//! let reserve = |amount| {
//!     let days = Calendar::utc().days_around(now);
//!     store.reserve(&Reservation::new(CallId::mint(now), departments.clone(), amount, lease, days))
//! };
//! assert!(matches!(reserve(amount).await?, Decision::Granted(_)));
//! assert!(matches!(reserve(amount).await?, Decision::Denied(_)));
//! assert!(store.shutdown(Duration::from_secs(5)).await);
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok(())
//! # }
//! ```
//!
//! # What is kept
//!
//! The counters of a window are kept for about 70 days, which is at least the current month and the last; departments
//! that have none any more are forgotten, and seeded anew if they come back. It is done in small steps, between
//! operations. The windows of the month that the file's clock was in before it came into this one are kept in any case, so
//! that a clock which is far ahead for a while forgets nothing that is in force. `accounts`, `counters` and `leases` may be looked at by `sqlite3` at any time.
//!
//! # Cancel safety
//!
//! An operation whose future is dropped before it was begun is not done.

mod checkpoint;
mod error;
mod policies;
mod store;
mod tables;
mod worker;

pub use self::{
    error::{QuotaFileError, QuotaFileErrorKind},
    policies::{BadPolicies, BadPolicy, SqlitePolicies},
    store::{SqliteOptions, SqliteStore},
};
