crate::sqlite::file_error! {
    /// What is wrong with a ledger, and with which file. Nothing was overwritten, and nothing that was recorded is lost: what
    /// could not be written is still in the queue.
    LedgerError, "usage ledger" of the store "usage",
    /// What is wrong with a ledger.
    LedgerErrorKind {
        /// Sums of money in it are more than [`NanoUsd::MAX`](crate::price::NanoUsd::MAX).
        Overflow => "sums of money are too large",
        /// There are more groups than were [asked for](crate::usage::LedgerReader::with_most_groups).
        TooManyGroups => "there are more groups than were asked for",
    }
}
