use crate::{BoxError, Error, ErrorKind};
use std::{fmt, io, path::Path, sync::Arc};

/// What is wrong with an outbox, and with which file. Nothing was overwritten, and nothing that was acknowledged is lost.
#[derive(Debug)]
pub struct OutboxError {
    path: Arc<Path>,
    kind: OutboxErrorKind,
    source: Option<BoxError>,
}

/// What is wrong with an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutboxErrorKind {
    /// The directory or a file in it cannot be made or opened: no right to it, or no directory.
    Unreachable,
    /// Another process uses it.
    InUse,
    /// The directory was removed, or its lock, while it was used. What is made in its place is left alone: start again.
    Removed,
    /// As many bytes as it may hold have not been passed on yet.
    Full,
    /// There is no room for more on the disk.
    DiskFull,
    /// It may be read, but not written.
    ReadOnly,
    /// It was written by a newer version of this crate, whose records are not known here.
    Newer {
        /// The version of its records.
        found: u32,
        /// The newest that is known here.
        known: u32,
    },
    /// A file that is no log of ours, or whose head is damaged. Move it away to go on without it.
    Foreign,
    /// Something else; the source says what.
    Failed,
}

impl OutboxError {
    pub(super) fn new(path: &Path, kind: OutboxErrorKind) -> Self {
        Self { path: path.into(), kind, source: None }
    }

    pub(super) fn of(path: &Path, error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists => OutboxErrorKind::Unreachable,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                OutboxErrorKind::DiskFull
            }
            io::ErrorKind::ReadOnlyFilesystem => OutboxErrorKind::ReadOnly,
            _ => OutboxErrorKind::Failed,
        };
        Self { source: Some(error.into()), ..Self::new(path, kind) }
    }

    /// What is wrong.
    pub const fn kind(&self) -> OutboxErrorKind {
        self.kind
    }

    /// The file or the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for OutboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "usage outbox {}: ", self.path.display())?;
        match self.kind {
            OutboxErrorKind::Unreachable => f.write_str("cannot be opened"),
            OutboxErrorKind::InUse => f.write_str("another process uses it"),
            OutboxErrorKind::Removed => f.write_str("removed while it was used"),
            OutboxErrorKind::Full => f.write_str("full, as what is in it is not passed on"),
            OutboxErrorKind::DiskFull => f.write_str("no room for more on the disk"),
            OutboxErrorKind::ReadOnly => f.write_str("may not be written"),
            OutboxErrorKind::Newer { found, known } => {
                write!(f, "its version is {found}, and {known} is the newest known here")
            }
            OutboxErrorKind::Foreign => f.write_str("no log of usage, or one with a damaged head"),
            OutboxErrorKind::Failed => f.write_str("failed"),
        }
    }
}

impl std::error::Error for OutboxError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

impl From<OutboxError> for Error {
    fn from(error: OutboxError) -> Self {
        Self::new(ErrorKind::StoreUnavailable { store: "usage".into() }).with_source(error)
    }
}
