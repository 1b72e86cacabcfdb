use super::{
    amount::Departments,
    calendar::{Day, Days},
    lease::{
        Adjustment, Applied, Baseline, Decision, LeaseId, Recount, Reservation, Settlement, Standing,
        WindowName,
    },
};
use crate::{BoxError, forward::forward};
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

/// Where quotas are counted, for all who share it.
///
/// # What a store keeps
///
/// For each department: per day and per month how much is *settled* and how much is *reserved*, its *leases* by
/// their ids, and whether it is *known*. A lease has an amount, an amount to charge on expiry, the day and month that
/// it is charged to, a time of expiry and a state.
///
/// All times are the store's own clock, in whole milliseconds; no gateway's clock decides anything. `now` is read
/// once per operation.
///
/// # States of a lease, per id and department
///
/// | | reserve | extend | settle | release | time of expiry comes |
/// |---|---|---|---|---|---|
/// | none | → *reserved*, if it fits | nothing | nothing | → *ended*, for [`ENDED_KEPT`] | |
/// | *reserved* | nothing (granted) | moves the expiry | → none: charges the truth | → none | → *expired*, for [`EXPIRED_KEPT`]: charges `on_expiry` |
/// | *expired* | nothing ([`Ended`](Decision::Ended)) | nothing | → none: charges the truth less what was charged | → none: gives back what was charged | → none |
/// | *ended* | nothing ([`Ended`](Decision::Ended)) | nothing | nothing | nothing | → none |
///
/// To charge is to add to *settled* in the day and in the month of the lease; whoever leaves *reserved* is taken out of
/// *reserved* there. Counters stay between 0 and `i64::MAX`: what would lead out of that ends at the bound.
///
/// # Expiry
///
/// Before anything else, every operation sweeps each department that it names: the at most [`SWEEP`] leases and
/// tombstones whose time has come (`expires_at <= now`), earliest first, of the same millisecond in the order of their
/// ids. A state is what has been swept: a lease that is overdue and still *reserved* counts as reserved.
///
/// # Windows
///
/// Counters are named by [`Day::date`] and [`Day::month`]. The days come with the operation, `now` picks one of them;
/// if none contains it, the operation does nothing but say so, by [`StoreError::OffCalendar`]. A lease keeps the
/// windows it was admitted to. At least the current and the last month, and their days, are kept; what is older may
/// be forgotten and then counts as nothing.
///
/// # All or none
///
/// An operation on several departments is done on all of them or on none. Who reads sees it done or not done. A store
/// that is spread over several machines may show reservations for a moment that are taken back.
///
/// # Errors
///
/// [`StoreError::Ambiguous`] if the operation may have been done, or may still be; every other error if it certainly
/// was not, and will not be. Every mutation has an id, so that it may be sent again. No operation waits for longer than
/// the store is told to.
///
/// # A store of your own
///
/// `testing::StoreCheck` (feature `testing`) does the same to it and to [`MemoryStore`](super::MemoryStore), and compares
/// every answer; the docs of `testing::quota` show how.
pub trait QuotaStore: Send + Sync + 'static {
    /// Reserves, if it fits.
    ///
    /// 1. Sweep.
    /// 2. Pick the day.
    /// 3. If a department has a tombstone for the id (*expired*, *ended*): [`Ended`](Decision::Ended).
    /// 4. If [`needs_seed`](Reservation::needs_seed) and a department is not known: [`StoreError::Unseeded`], with all
    ///    such.
    /// 5. Show each department that has no live lease of the id to a [`Verdict`](super::Verdict), with what is settled
    ///    and reserved in the day and in its month.
    /// 6. If that is a denial, return it; sweeping aside, nothing was written.
    /// 7. In each department: make it known; unless it has a live lease of the id, make one, *reserved* until
    ///    `now + lease`, and add the amount to *reserved*.
    /// 8. Return the verdict's decision.
    ///
    /// Without departments it is granted. The day of the grant is the one that `now` picked.
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision>;

    /// Moves the expiry of a *reserved* lease to `now + by`, in each department, if that is later. Whether it is
    /// *reserved* in all of them.
    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool>;

    /// Replaces the reservation by what was used up.
    ///
    /// # Errors
    ///
    /// Never because the amount is larger than what was reserved, or than a limit: it is charged in full.
    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied>;

    /// As [`settle`](Self::settle), and says for each department, in order, what it did there. What it says of all together
    /// is all that is known unless a store says more: then one that has lost the lease for some of several departments is
    /// noticed at the end of the call, and not by an [`audit`](super::audit) only.
    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        let (applied, departments) = (self.settle(settlement), settlement.departments.len());
        StoreFuture::boxed(async move { Ok(vec![applied.await?; departments]) })
    }

    /// Gives a reservation back of which nothing was used up; if it has not come yet, keeps it from coming.
    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()>;

    /// What a department has used up in the day that `now` picks, and in its month; zeros if it is not there. Makes
    /// nothing known. For another day: [`Days::only`].
    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing>;

    /// Makes a department known that is not, and adds what it had used up before to *settled*, in the day and in the
    /// month of the baseline. Does nothing if it is known. Whether it was not: of two who seed at once, one does.
    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool>;

    /// Corrects what is settled, and leaves the id as an *ended* tombstone among the leases of the department. Does
    /// nothing if there is anything of that id. Whether it did something.
    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool>;

    /// Compares what is reserved in a window with what the department's live (*reserved*) leases hold there, and says what *expired*
    /// ones have charged. With `correct`, the counter of what is reserved is made to be what they hold. All is of one moment, so that it is
    /// right while calls are made. Makes nothing known.
    ///
    /// `None`, unless a store says more: its leases cannot be told, and nothing was corrected. Then an
    /// [`audit`](super::audit) does not know which calls are in flight or have yet to be settled, and what is reserved for nobody stays so until its window ends.
    fn recount(
        &self,
        department: &Arc<str>,
        window: WindowName,
        correct: bool,
    ) -> StoreFuture<Option<Recount>> {
        let _ = (department, window, correct);
        StoreFuture::ready(Ok(None))
    }

    /// Whether all its futures are ready at once, at the cost of a few memory accesses: then calls are settled where
    /// they end, and there is nothing for a worker to do.
    fn is_immediate(&self) -> bool {
        false
    }

    /// In which part of the store a department is kept, where one may be away while others answer; 0 unless told. Calls of
    /// departments in other parts go on, and what failed in one part says nothing of the others.
    fn part(&self, department: &str) -> u16 {
        let _ = department;
        0
    }
}

/// How many leases that are due are swept by one operation, per department.
pub const SWEEP: usize = 8;

/// How long the id of a lease is remembered that was released before it came.
pub const ENDED_KEPT: Duration = Duration::from_secs(300);

/// How long the id of an expired lease is remembered, to be settled late.
pub const EXPIRED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Why a store did not do as it was told.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// Nothing was done.
    Definite(BoxError),
    /// It may have been done, or may still be: no answer came.
    Ambiguous(BoxError),
    /// Nothing was done: what is kept of one of these departments makes no sense. The store works, and may serve others.
    Damaged(BoxError),
    /// Nothing was done: none of the days that were given is that of the store's clock.
    OffCalendar {
        /// What time it is there.
        now: SystemTime,
    },
    /// Nothing was done: the store does not know these departments, because they are new or because it has lost
    /// them.
    Unseeded {
        /// Which.
        departments: Vec<Arc<str>>,
        /// The day by the store's clock.
        day: Day,
    },
}

/// The answer of a store: ready at once, or a future in a box.
#[must_use = "futures do nothing unless they are polled"]
pub struct StoreFuture<T>(Answer<T>);

enum Answer<T> {
    Ready(Option<Result<T, StoreError>>),
    Boxed(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>),
}

// ===== impl StoreFuture =====

impl<T> StoreFuture<T> {
    /// The answer is here.
    pub const fn ready(answer: Result<T, StoreError>) -> Self {
        Self(Answer::Ready(Some(answer)))
    }

    /// The answer is yet to come. The future owns what it needs; dropped, the operation may go on or not.
    pub fn boxed(answer: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> Self {
        Self(Answer::Boxed(Box::pin(answer)))
    }

    /// The answer if it is here, or else the future.
    pub fn now(self) -> Result<Result<T, StoreError>, Self> {
        match self.0 {
            Answer::Ready(Some(answer)) => Ok(answer),
            other => Err(Self(other)),
        }
    }
}

impl<T> Unpin for StoreFuture<T> {}

impl<T> Future for StoreFuture<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Answer::Ready(answer) => {
                Poll::Ready(answer.take().expect("a future is not polled after its end"))
            }
            Answer::Boxed(answer) => answer.as_mut().poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.0 {
            Answer::Ready(_) => "Ready",
            Answer::Boxed(_) => "Boxed",
        };
        f.debug_tuple("StoreFuture").field(&state).finish()
    }
}

// ===== impl StoreError =====

impl StoreError {
    /// Nothing was done.
    pub fn definite(cause: impl Into<BoxError>) -> Self {
        Self::Definite(cause.into())
    }

    /// It may have been done.
    pub fn ambiguous(cause: impl Into<BoxError>) -> Self {
        Self::Ambiguous(cause.into())
    }

    /// Nothing was done: what is kept of one of these departments makes no sense.
    pub fn damaged(cause: impl Into<BoxError>) -> Self {
        Self::Damaged(cause.into())
    }

    /// Whether it may have been done.
    pub const fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous(_))
    }

    /// Why, in the words of the store's client: what a server said may quote what it was sent.
    pub(crate) fn cause(&self) -> String {
        std::error::Error::source(self).map_or_else(|| self.to_string(), ToString::to_string)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Definite(_) => f.write_str("the quota store did not do it"),
            Self::Ambiguous(_) => f.write_str("the quota store did not say whether it did it"),
            Self::Damaged(_) => f.write_str("what the quota store has of a department is damaged"),
            Self::OffCalendar { .. } => {
                f.write_str("the quota store's clock is off the days that were given")
            }
            Self::Unseeded { departments, .. } => {
                write!(f, "the quota store does not know {} of the departments", departments.len())
            }
        }
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Definite(cause) | Self::Ambiguous(cause) | Self::Damaged(cause) => Some(&**cause),
            Self::OffCalendar { .. } | Self::Unseeded { .. } => None,
        }
    }
}

forward! {
    QuotaStore for [Arc, Box] {
        fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision>;
        fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool>;
        fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied>;
        fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>>;
        fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()>;
        fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing>;
        fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool>;
        fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool>;
        fn recount(&self, department: &Arc<str>, window: WindowName, correct: bool) -> StoreFuture<Option<Recount>>;
        fn is_immediate(&self) -> bool;
        fn part(&self, department: &str) -> u16;
    }
}
