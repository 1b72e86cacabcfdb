use crate::{
    BoxError, Error, ErrorKind,
    sqlite::{Problem, Trouble},
};
use std::{fmt, path::Path, sync::Arc};

/// What is wrong with a ledger, and with which file. Nothing was overwritten, and nothing that was recorded is lost: what
/// could not be written is still in the queue.
#[derive(Debug)]
pub struct LedgerError {
    path: Arc<Path>,
    kind: LedgerErrorKind,
    source: Option<BoxError>,
}

/// What is wrong with a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LedgerErrorKind {
    /// The file cannot be opened: no such directory, no right to it, or a directory itself.
    Unreachable,
    /// Somebody else has locked it for longer than was waited.
    Locked,
    /// There is no room for more.
    Full,
    /// It may be read, but not written.
    ReadOnly,
    /// It was written by a newer version of this crate, whose rows are not known here.
    Newer {
        /// The version of its tables.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// It is a database, but of something else.
    Foreign,
    /// It is no database, or a damaged one.
    Corrupt,
    /// Sums of money in it are more than [`NanoUsd::MAX`](crate::price::NanoUsd::MAX).
    Overflow,
    /// Something else; the source says what.
    Failed,
}

impl LedgerError {
    pub(super) fn new(path: &Arc<Path>, kind: LedgerErrorKind) -> Self {
        Self { path: Arc::clone(path), kind, source: None }
    }

    pub(super) fn failed(path: &Arc<Path>, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..Self::new(path, LedgerErrorKind::Failed) }
    }

    pub(super) fn of(path: &Arc<Path>, problem: impl Into<Problem>) -> Self {
        let error = match problem.into() {
            Problem::ReadOnly => return Self::new(path, LedgerErrorKind::ReadOnly),
            Problem::Newer { found, known } => {
                return Self::new(path, LedgerErrorKind::Newer { found, known });
            }
            Problem::Foreign => return Self::new(path, LedgerErrorKind::Foreign),
            Problem::Other(error) => return Self::failed(path, error),
            Problem::Sqlite(error) => error,
        };
        let kind = match Trouble::of(&error) {
            Trouble::Unreachable => LedgerErrorKind::Unreachable,
            Trouble::Locked => LedgerErrorKind::Locked,
            Trouble::Full => LedgerErrorKind::Full,
            Trouble::ReadOnly => LedgerErrorKind::ReadOnly,
            Trouble::Corrupt => LedgerErrorKind::Corrupt,
            Trouble::Failed => LedgerErrorKind::Failed,
        };
        Self { path: Arc::clone(path), kind, source: Some(error.into()) }
    }

    /// What is wrong.
    pub const fn kind(&self) -> LedgerErrorKind {
        self.kind
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for LedgerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "usage ledger {}: ", self.path.display())?;
        match self.kind {
            LedgerErrorKind::Unreachable => f.write_str("cannot be opened"),
            LedgerErrorKind::Locked => f.write_str("locked by somebody else"),
            LedgerErrorKind::Full => f.write_str("no room for more"),
            LedgerErrorKind::ReadOnly => f.write_str("may not be written"),
            LedgerErrorKind::Newer { found, known } => {
                write!(f, "its version is {found}, and {known} is the newest known here")
            }
            LedgerErrorKind::Foreign => f.write_str("a database of something else"),
            LedgerErrorKind::Corrupt => f.write_str("no database, or a damaged one"),
            LedgerErrorKind::Overflow => f.write_str("sums of money are too large"),
            LedgerErrorKind::Failed => f.write_str("failed"),
        }
    }
}

impl std::error::Error for LedgerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl From<LedgerError> for Error {
    fn from(error: LedgerError) -> Self {
        Self::new(ErrorKind::StoreUnavailable { store: "usage".into() }).with_source(error)
    }
}
