use crate::quota::StoreError;
use std::{path::Path, sync::Arc};

crate::sqlite::file_error! {
    /// What is wrong with a file of quotas or policies, and with which. Nothing in it was overwritten.
    QuotaFileError, "quota file" of the store "quota",
    /// What is wrong with a file.
    QuotaFileErrorKind {
        /// More operations are waiting than the queue has places for.
        Crowded => "too many operations are waiting",
        /// The disk, or the machine, took longer than was waited.
        Slow => "took too long",
        /// The store was shut down.
        Closed => "shut down",
        /// What is kept of a department makes no sense; that of others is not concerned.
        Damaged => "what it has of a department is damaged",
        /// It has seen a time more than a day ahead of the machine's clock: one of the two is wrong.
        Ahead => "its clock is ahead of the machine's by more than a day",
    }
}

impl QuotaFileError {
    /// Of an operation that failed where others go on.
    pub(super) fn of_one(path: &Arc<Path>, error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => {
                Self { source: Some(Arc::new(error)), ..Self::new(path, QuotaFileErrorKind::Damaged) }
            }
            error => Self::of(path, error),
        }
    }
}

impl From<QuotaFileError> for StoreError {
    /// Nothing was done.
    fn from(error: QuotaFileError) -> Self {
        match error.kind() {
            QuotaFileErrorKind::Damaged => Self::damaged(error),
            _ => Self::definite(error),
        }
    }
}
