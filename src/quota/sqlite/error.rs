use crate::{
    BoxError, Error, ErrorKind,
    quota::StoreError,
    sqlite::{Problem, Trouble},
};
use std::{fmt, path::Path, sync::Arc};

/// What is wrong with a file of quotas or policies, and with which. Nothing in it was overwritten.
#[derive(Debug, Clone)]
pub struct QuotaFileError {
    path: Arc<Path>,
    kind: QuotaFileErrorKind,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaFileErrorKind {
    /// It cannot be opened: no such directory, no right to it, or a directory itself.
    Unreachable,
    /// Somebody else has locked it for longer than was waited.
    Locked,
    /// There is no room for more on its disk.
    Full,
    /// It may be read, but not written.
    ReadOnly,
    /// It was written by a newer version of this crate.
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
    /// More operations are waiting than the queue has places for.
    Crowded,
    /// The disk, or the machine, took longer than was waited.
    Slow,
    /// The store was shut down.
    Closed,
    /// Something else; the source says what.
    Failed,
}

impl QuotaFileError {
    pub(super) fn new(path: &Arc<Path>, kind: QuotaFileErrorKind) -> Self {
        Self { path: Arc::clone(path), kind, source: None }
    }

    pub(super) fn failed(path: &Arc<Path>, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into().into()), ..Self::new(path, QuotaFileErrorKind::Failed) }
    }

    pub(super) fn of(path: &Arc<Path>, problem: impl Into<Problem>) -> Self {
        let error = match problem.into() {
            Problem::ReadOnly => return Self::new(path, QuotaFileErrorKind::ReadOnly),
            Problem::Newer { found, known } => {
                return Self::new(path, QuotaFileErrorKind::Newer { found, known });
            }
            Problem::Foreign => return Self::new(path, QuotaFileErrorKind::Foreign),
            Problem::Other(error) => return Self::failed(path, error),
            Problem::Sqlite(error) => error,
        };
        let kind = match Trouble::of(&error) {
            Trouble::Unreachable => QuotaFileErrorKind::Unreachable,
            Trouble::Locked => QuotaFileErrorKind::Locked,
            Trouble::Full => QuotaFileErrorKind::Full,
            Trouble::ReadOnly => QuotaFileErrorKind::ReadOnly,
            Trouble::Corrupt => QuotaFileErrorKind::Corrupt,
            Trouble::Failed => QuotaFileErrorKind::Failed,
        };
        Self { path: Arc::clone(path), kind, source: Some(Arc::new(error)) }
    }

    /// What is wrong.
    pub const fn kind(&self) -> QuotaFileErrorKind {
        self.kind
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for QuotaFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quota file {}: ", self.path.display())?;
        match self.kind {
            QuotaFileErrorKind::Unreachable => f.write_str("cannot be opened"),
            QuotaFileErrorKind::Locked => f.write_str("locked by somebody else"),
            QuotaFileErrorKind::Full => f.write_str("no room for more"),
            QuotaFileErrorKind::ReadOnly => f.write_str("may not be written"),
            QuotaFileErrorKind::Newer { found, known } => {
                write!(f, "its version is {found}, and {known} is the newest known here")
            }
            QuotaFileErrorKind::Foreign => f.write_str("a database of something else"),
            QuotaFileErrorKind::Corrupt => f.write_str("no database, or a damaged one"),
            QuotaFileErrorKind::Crowded => f.write_str("too many operations are waiting"),
            QuotaFileErrorKind::Slow => f.write_str("took too long"),
            QuotaFileErrorKind::Closed => f.write_str("shut down"),
            QuotaFileErrorKind::Failed => f.write_str("failed"),
        }
    }
}

impl std::error::Error for QuotaFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl From<QuotaFileError> for StoreError {
    /// Nothing was done.
    fn from(error: QuotaFileError) -> Self {
        Self::definite(error)
    }
}

impl From<QuotaFileError> for Error {
    fn from(error: QuotaFileError) -> Self {
        Self::new(ErrorKind::StoreUnavailable { store: "quota".into() }).with_source(error)
    }
}
