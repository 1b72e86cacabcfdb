//! What was used up, by whom, and when.

mod aggregate;
mod reader;
mod totals;

pub use self::{
    aggregate::{department_sums, totals, totals_by},
    reader::{ReadError, ReadFuture, UsageReader},
    totals::{DepartmentSums, UsageGroup, UsageSummary, UsageTotals},
};
pub use crate::calendar::Window;

#[cfg(feature = "rusqlite")]
pub(super) use self::totals::Sums;
#[cfg(feature = "rusqlite")]
pub(super) use crate::calendar::day_name;
#[cfg(any(feature = "rusqlite", feature = "outbox"))]
pub(super) use crate::calendar::nanos;

use super::Outcome;
use std::{sync::Arc, time::SystemTime};

/// Which events count: all, but for what is set.
///
/// ```
/// use llm_layers::usage::{GroupBy, MemorySink, UsageQuery, Window};
/// use std::time::SystemTime;
///
/// let sink = MemorySink::new(1024);
/// let january = Window::month(SystemTime::UNIX_EPOCH);
/// let query = UsageQuery::new().with_agent("reviewer").within(january);
///
/// // Each event once.
/// assert_eq!(sink.totals(&query).unwrap().calls, 0);
/// // Each event once for each of its departments.
/// assert!(sink.department_sums(&query, &[GroupBy::Model, GroupBy::Day]).unwrap().is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsageQuery {
    pub(super) agent: Option<Arc<str>>,
    pub(super) user: Option<Arc<str>>,
    pub(super) tenant: Option<Arc<str>>,
    pub(super) department: Option<Arc<str>>,
    pub(super) model: Option<Arc<str>>,
    pub(super) provider: Option<Arc<str>>,
    pub(super) task_type: Option<Arc<str>>,
    pub(super) outcome: Option<Outcome>,
    pub(super) from: Option<SystemTime>,
    pub(super) until: Option<SystemTime>,
}

/// What events are grouped by. Departments are not here: an event may be in several, see
/// [`DepartmentSums`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupBy {
    /// The agent.
    Agent,
    /// The user.
    User,
    /// The tenant.
    Tenant,
    /// The model that was asked.
    Model,
    /// The provider.
    Provider,
    /// The kind of task.
    TaskType,
    /// How the call ended, as [`Outcome::as_str`] names it.
    Outcome,
    /// The day of the end, in UTC: `2026-11-22`.
    Day,
    /// The month of the end, in UTC: `2026-11`.
    Month,
}

macro_rules! filters {
    ($($(#[$doc:meta])* $with:ident, $name:ident;)*) => {$(
        $(#[$doc])*
        #[must_use]
        pub fn $with(mut self, value: impl Into<Arc<str>>) -> Self {
            self.$name = Some(value.into());
            self
        }

        #[doc = concat!("What [`", stringify!($with), "`](Self::", stringify!($with), ") was told.")]
        pub fn $name(&self) -> Option<&str> {
            self.$name.as_deref()
        }
    )*};
}

impl UsageQuery {
    /// All events.
    pub fn new() -> Self {
        Self::default()
    }

    filters! {
        /// Only what this agent asked.
        with_agent, agent;
        /// Only what this user asked.
        with_user, user;
        /// Only what users of this tenant asked.
        with_tenant, tenant;
        /// Only what is charged to this department, with others or alone.
        with_department, department;
        /// Only calls of this model, by its canonical name.
        with_model, model;
        /// Only calls of this provider.
        with_provider, provider;
        /// Only tasks of this kind.
        with_task_type, task_type;
    }

    /// Only calls that ended so.
    #[must_use]
    pub const fn with_outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Only calls that ended at this time or later.
    #[must_use]
    pub const fn from(mut self, time: SystemTime) -> Self {
        self.from = Some(time);
        self
    }

    /// Only calls that ended before this time.
    #[must_use]
    pub const fn until(mut self, time: SystemTime) -> Self {
        self.until = Some(time);
        self
    }

    /// What [`with_outcome`](Self::with_outcome) was told.
    pub const fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }

    /// From when on calls must have ended, as [`from`](Self::from) and [`within`](Self::within) have it.
    pub const fn since(&self) -> Option<SystemTime> {
        self.from
    }

    /// Before when calls must have ended, as [`until`](Self::until) and [`within`](Self::within) have it.
    pub const fn before(&self) -> Option<SystemTime> {
        self.until
    }

    /// Only calls that ended in this window.
    #[must_use]
    pub const fn within(self, window: Window) -> Self {
        self.from(window.from).until(window.until)
    }
}
