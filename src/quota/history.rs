use super::{
    amount::{Amount, Delta},
    calendar::{Calendar, Day, Days},
    lease::{Adjustment, LeaseId, Recount, Standing, WindowName},
    store::{QuotaStore, StoreError},
};
#[cfg(feature = "rusqlite")]
use crate::usage::Window;
use crate::{BoxError, CallId, Period, forward::forward};
use std::{pin::Pin, sync::Arc, time::SystemTime};

/// Knows what departments have used up, whatever has become of a store's counters: a ledger.
pub trait UsageHistory: Send + Sync + 'static {
    /// What was used up by all calls that have ended, but for those that are still [in flight](HistoryQuery::in_flight) for
    /// quotas. What ended before it is asked must not be missing: it would never be charged.
    fn used(&self, query: HistoryQuery) -> HistoryFuture;
}

forward! {
    UsageHistory for [Arc, Box] {
        fn used(&self, query: HistoryQuery) -> HistoryFuture;
    }
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
    /// What the ledger says, with what expired leases have charged that have yet to be settled.
    pub recorded: Amount,
    /// What would have to be added to the counter, or taken away.
    pub by: Delta,
    /// What is reserved in the window beyond what leases hold: for nobody, and until the window ends, unless it is given back.
    pub leaked: Delta,
    /// Whether calls came or went while the ledger was read: then the difference may be theirs. Of a store that cannot
    /// [tell its leases](QuotaStore::recount), also whether anything is reserved.
    pub is_in_flight: bool,
    /// Whether the store knows the department. If not, a layer [with a history](super::QuotaLayer::with_history) tells it what the ledger
    /// says before the next call: it must not be told twice.
    pub is_known: bool,
}

/// Compares counters with the ledger, for the day and the month of `now`, and what is reserved there with what leases hold.
///
/// Calls in flight are in neither: the ledger is asked [without](HistoryQuery::in_flight) them. So it is with those whose lease has expired,
/// which may be settled for as long as a store remembers it ([`EXPIRED_KEPT`](super::EXPIRED_KEPT)). A call counts in the windows in which it
/// was admitted, and is recorded in those in which it ended; one whose usage nobody reported is recorded by an estimate and
/// may be charged by an upper bound. So not every drift is a fault.
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
        let before = Look::at(store, &department, day).await?;
        let query = HistoryQuery::new(Arc::clone(&department), day).with_in_flight(before.leases());
        let used = history.used(query).await.map_err(StoreError::Definite)?;
        // A call that came meanwhile may be in one and not in the other.
        let after = Look::at(store, &department, day).await?;
        for (period, window, recorded, recount) in [
            (Period::Day, WindowName::Day(day.date), used.in_day, &after.in_day),
            (Period::Month, WindowName::Month(day.month), used.in_month, &after.in_month),
        ] {
            let counted = after.standing.over(period);
            let charged = recount.as_ref().map_or(Amount::ZERO, |recount| recount.charged);
            let recorded = recorded.plus(&charged);
            let by = recorded.since(&counted.settled);
            let leaked = recount.as_ref().map_or(Delta::ZERO, Recount::leaked);
            if !by.is_zero() || !leaked.is_zero() {
                drifts.push(Drift {
                    department: Arc::clone(&department),
                    window,
                    counted: counted.settled,
                    recorded,
                    by,
                    leaked,
                    is_in_flight: before != after || (recount.is_none() && counted.reserved != Amount::ZERO),
                    is_known: before.standing.is_known && after.standing.is_known,
                });
            }
        }
    }
    Ok(drifts)
}

/// Corrects counters by what an [`audit`] has found. Returns how many.
///
/// What is reserved for nobody is given back, whatever calls do meanwhile. What is settled is corrected by differences, so that what is
/// settled meanwhile stays, except where calls came or went during the audit, and of departments that the store does not know: audit those
/// again. Each difference has an id that is made of what was found: whoever writes the same again, after an error or beside somebody
/// else, changes nothing, for as long as a store remembers it ([`ENDED_KEPT`](super::ENDED_KEPT)).
///
/// # Errors
///
/// The store cannot be asked; corrections before it were made.
pub async fn repair(store: &dyn QuotaStore, drifts: &[Drift]) -> Result<usize, StoreError> {
    let mut repaired = 0;
    for drift in drifts {
        let mut is_repaired = false;
        if !drift.leaked.is_zero() {
            let recount = store.recount(&drift.department, drift.window, true).await?;
            is_repaired |= recount.is_some_and(|recount| !recount.leaked().is_zero());
        }
        if drift.is_known && !drift.is_in_flight && !drift.by.is_zero() {
            let department = Arc::clone(&drift.department);
            let adjustment = Adjustment::new(drift.id(), department, drift.window, drift.by);
            is_repaired |= store.adjust(&adjustment).await?;
        }
        repaired += usize::from(is_repaired);
    }
    Ok(repaired)
}

/// How a department stands, and which leases it has.
#[derive(PartialEq)]
struct Look {
    standing: Standing,
    in_day: Option<Recount>,
    in_month: Option<Recount>,
}

impl Look {
    async fn at(store: &dyn QuotaStore, department: &Arc<str>, day: Day) -> Result<Self, StoreError> {
        Ok(Self {
            standing: store.usage(department, &Days::only(day)).await?,
            in_day: store.recount(department, WindowName::Day(day.date), false).await?,
            in_month: store.recount(department, WindowName::Month(day.month), false).await?,
        })
    }

    fn leases(&self) -> &[LeaseId] {
        self.in_day.as_ref().map_or(&[], |recount| &recount.leases)
    }
}

impl Drift {
    /// The same for the same difference in the same place.
    fn id(&self) -> CallId {
        let Self { department, window, counted, recorded, by: _, leaked: _, is_in_flight: _, is_known: _ } =
            self;
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
