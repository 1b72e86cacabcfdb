use super::{
    amount::{Amount, Delta},
    calendar::{Calendar, Day, Days},
    lease::{Adjustment, LeaseId, Standing, WindowName},
    store::{QuotaStore, StoreError},
};
#[cfg(feature = "rusqlite")]
use crate::usage::Window;
use crate::{BoxError, CallId, Period};
use std::{pin::Pin, sync::Arc, time::SystemTime};

/// Knows what departments have used up, whatever has become of a store's counters: a ledger.
pub trait UsageHistory: Send + Sync + 'static {
    /// What was used up by all calls that have ended, but for those that are still [in flight](HistoryQuery::in_flight) for
    /// quotas. What ended before it is asked must not be missing: it would never be charged.
    fn used(&self, query: HistoryQuery) -> HistoryFuture;
}

/// What a [`UsageHistory`] is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistoryQuery {
    /// Whose past it is.
    pub department: Arc<str>,
    /// The day, whose month is meant too.
    pub day: Day,
    /// Leases that have yet to be settled. What is recorded of them already, as
    /// [`UsageEvent::lease`](crate::usage::UsageEvent::lease) tells, is charged then, and must not be counted twice.
    pub in_flight: Arc<[LeaseId]>,
}

impl HistoryQuery {
    /// All of this day, and of its month.
    pub fn new(department: impl Into<Arc<str>>, day: Day) -> Self {
        Self { department: department.into(), day, in_flight: Arc::default() }
    }

    /// Sets [`in_flight`](Self::in_flight).
    #[must_use]
    pub fn with_in_flight(mut self, leases: impl Into<Arc<[LeaseId]>>) -> Self {
        self.in_flight = leases.into();
        self
    }
}

/// The answer of a [`UsageHistory`].
pub type HistoryFuture = Pin<Box<dyn Future<Output = Result<Used, BoxError>> + Send>>;

/// What a department has used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// In the day.
    pub in_day: Amount,
    /// In its month, the day included.
    pub in_month: Amount,
}

/// A counter that is not what the ledger says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drift {
    /// The department.
    pub department: Arc<str>,
    /// The window.
    pub window: WindowName,
    /// What the store says.
    pub counted: Amount,
    /// What the ledger says.
    pub recorded: Amount,
    /// What would have to be added to the counter, or taken away.
    pub by: Delta,
    /// Whether calls are in flight, or the counter changed while the ledger was read: then the difference may be theirs.
    pub is_in_flight: bool,
    /// Whether the store knows the department. If not, a layer [with a history](super::QuotaLayer::with_history) tells it what the ledger
    /// says before the next call: it must not be told twice.
    pub is_known: bool,
}

/// Compares counters with the ledger, for the day and the month of `now`.
///
/// A call counts in the windows in which it was admitted, and is recorded in those in which it ended; one whose usage
/// nobody reported is recorded by an estimate and may be charged by an upper bound. So not every drift is a fault.
///
/// # Errors
///
/// The store, or the ledger, cannot be asked.
pub async fn audit(
    store: &dyn QuotaStore,
    history: &dyn UsageHistory,
    calendar: &Calendar,
    now: SystemTime,
    departments: impl IntoIterator<Item = impl Into<Arc<str>>>,
) -> Result<Vec<Drift>, StoreError> {
    let mut drifts = Vec::new();
    let day = calendar.day(now);
    for department in departments {
        let department = department.into();
        let before: Standing = store.usage(&department, &Days::only(day)).await?;
        let used = history
            .used(HistoryQuery::new(Arc::clone(&department), day))
            .await
            .map_err(StoreError::Definite)?;
        // A call that came meanwhile may be in one and not in the other.
        let after = store.usage(&department, &Days::only(day)).await?;
        for (period, window, recorded) in [
            (Period::Day, WindowName::Day(day.date), used.in_day),
            (Period::Month, WindowName::Month(day.month), used.in_month),
        ] {
            let counted = after.over(period);
            let by = recorded.since(&counted.settled);
            if !by.is_zero() {
                drifts.push(Drift {
                    department: Arc::clone(&department),
                    window,
                    counted: counted.settled,
                    recorded,
                    by,
                    is_in_flight: counted.reserved != Amount::ZERO || counted != before.over(period),
                    is_known: before.is_known && after.is_known,
                });
            }
        }
    }
    Ok(drifts)
}

/// Corrects counters by the differences that an [`audit`] has found, except where calls were in flight and of departments that the
/// store does not know. Returns how many.
///
/// What is written are differences, so that what is settled meanwhile stays. Each has an id that is made of what was found:
/// whoever writes the same again, after an error or beside somebody else, changes nothing, for as long as a store
/// remembers it ([`ENDED_KEPT`](super::ENDED_KEPT)).
///
/// # Errors
///
/// The store cannot be asked; corrections before it were made.
pub async fn repair(store: &dyn QuotaStore, drifts: &[Drift]) -> Result<usize, StoreError> {
    let mut repaired = 0;
    for drift in drifts.iter().filter(|drift| drift.is_known && !drift.is_in_flight) {
        let department = Arc::clone(&drift.department);
        let adjustment = Adjustment::new(drift.id(), department, drift.window, drift.by);
        repaired += usize::from(store.adjust(&adjustment).await?);
    }
    Ok(repaired)
}

impl Drift {
    /// The same for the same difference in the same place.
    fn id(&self) -> CallId {
        let Self { department, window, counted, recorded, by: _, is_in_flight: _, is_known: _ } = self;
        let (period, name) = match window {
            WindowName::Day(date) => (b"d", date),
            WindowName::Month(month) => (b"m", month),
        };
        let mut hash = blake3::Hasher::new_derive_key("llm-layers quota repair 1");
        hash.update(period).update(&name.to_be_bytes());
        for Amount { requests, tokens, cost } in [counted, recorded] {
            hash.update(&requests.to_be_bytes()).update(&tokens.to_be_bytes());
            hash.update(&cost.nanos().to_be_bytes());
        }
        // The only part of unknown length, so it comes last.
        hash.update(department.as_bytes());
        let mut id = [0; 16];
        hash.finalize_xof().fill(&mut id);
        CallId::from_bytes(id)
    }
}

#[cfg(feature = "rusqlite")]
impl UsageHistory for crate::usage::LedgerReader {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        use super::calendar::system_time;

        let reader = self.clone();
        Box::pin(async move {
            let HistoryQuery { department, day, in_flight } = query;
            let window = |from, until| Window { from: system_time(from), until: system_time(until) };
            let windows = [window(day.from, day.until), window(day.month_from, day.month_until)];
            let charged = reader.charged(department, windows, in_flight).await?;
            let [in_day, in_month] = charged.map(|it| Amount::new(it.requests, it.tokens, it.cost));
            Ok(Used { in_day, in_month })
        })
    }
}
