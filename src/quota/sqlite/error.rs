use crate::quota::StoreError;

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
    }
}

impl From<QuotaFileError> for StoreError {
    /// Nothing was done.
    fn from(error: QuotaFileError) -> Self {
        Self::definite(error)
    }
}
