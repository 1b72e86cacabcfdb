use super::{DepartmentSums, GroupBy, UsageGroup, UsageQuery, UsageSummary, UsageTotals};
use crate::{BoxError, forward::forward};
use futures_util::future::try_join3;
use std::{fmt, pin::Pin, sync::Arc};

/// Answers what was used: a ledger, of whatever kind.
///
/// A store that keeps events adds them up by [`totals`](super::totals), [`totals_by`](super::totals_by) and
/// [`department_sums`](super::department_sums); one with a language of its own translates the query, which
/// tells what it asks for, and tests itself against these.
///
/// ```
/// use llm_layers::{
///     BoxError,
///     usage::{
///         self, DepartmentSums, GroupBy, ReadError, ReadFuture, UsageEvent, UsageGroup, UsageQuery, UsageReader, UsageTotals,
///     },
/// };
///
/// /// In earnest, somewhere else.
/// struct Archive(Vec<UsageEvent>);
///
/// fn answer<T: Send + 'static>(sums: Option<T>) -> ReadFuture<T> {
///     Box::pin(async { sums.ok_or_else(|| ReadError::failed("sums of money are too large")) })
/// }
///
/// impl UsageReader for Archive {
///     fn totals(&self, query: &UsageQuery) -> ReadFuture<UsageTotals> {
///         answer(usage::totals(&self.0, query))
///     }
///
///     fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>> {
///         answer(usage::totals_by(&self.0, query, groups))
///     }
///
///     fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>> {
///         answer(usage::department_sums(&self.0, query, groups))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// let reader: Box<dyn UsageReader> = Box::new(Archive(Vec::new()));
/// assert_eq!(reader.totals(&UsageQuery::new().with_user("ada")).await?.calls, 0);
/// # Ok(())
/// # }
/// ```
pub trait UsageReader: Send + Sync + 'static {
    /// Adds up the events that `query` means, each once.
    fn totals(&self, query: &UsageQuery) -> ReadFuture<UsageTotals>;

    /// As [`totals`](Self::totals), for each group; in the order of their keys.
    fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>>;

    /// Adds up the events that `query` means, each in full for every department that it is charged to; in the order of departments, then keys.
    /// With a [department](UsageQuery::department) in the query, for no other.
    fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>>;

    /// All three. Unless a reader does better, they are asked for at once, and what is recorded meanwhile may be in some of them:
    /// one that can should tell what was there at one moment.
    fn summary(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<UsageSummary> {
        let totals = self.totals(query);
        let (groups, departments) = (self.totals_by(query, groups), self.department_sums(query, groups));
        Box::pin(async {
            let (totals, groups, departments) = try_join3(totals, groups, departments).await?;
            Ok(UsageSummary { totals, groups, departments })
        })
    }
}

/// The answer of a [`UsageReader`].
pub type ReadFuture<T> = Pin<Box<dyn Future<Output = Result<T, ReadError>> + Send>>;

/// Why a [`UsageReader`] does not tell what was used.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// There are more groups than it tells of at once: whoever asks should ask for less.
    TooManyGroups,
    /// It cannot be read.
    Failed(BoxError),
}

impl ReadError {
    /// It cannot be read, for this reason.
    pub fn failed(cause: impl Into<BoxError>) -> Self {
        Self::Failed(cause.into())
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyGroups => "there are more groups than are told of at once",
            Self::Failed(_) => "the record of usage cannot be read",
        })
    }
}

impl std::error::Error for ReadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::TooManyGroups => None,
            Self::Failed(cause) => Some(&**cause),
        }
    }
}

forward! {
    UsageReader for [Arc, Box] {
        fn totals(&self, query: &UsageQuery) -> ReadFuture<UsageTotals>;
        fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>>;
        fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>>;
        fn summary(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<UsageSummary>;
    }
}
