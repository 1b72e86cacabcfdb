//! Files of SQLite that are of this crate: opened, made, brought up to date, and refused if they are not.

use crate::{BoxError, usage::Durability};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// The tables of one kind of file.
pub(crate) struct Schema {
    /// Written into the file's header, so that nobody else's database is taken for ours.
    pub(crate) application: i64,
    /// What makes each version out of the one before; the first out of nothing.
    pub(crate) versions: &'static [&'static str],
}

/// Why a file is not to be used.
#[derive(Debug)]
pub(crate) enum Problem {
    ReadOnly,
    Newer { found: i64, known: i64 },
    Foreign,
    Sqlite(rusqlite::Error),
    Other(BoxError),
}

/// What SQLite means by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Unreachable,
    Locked,
    Full,
    ReadOnly,
    Corrupt,
    Failed,
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId((u64, u64));

/// An absolute path: SQLite gives a meaning to `:memory:` and `file:`, and we want none.
pub(crate) fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

/// Opens a file, without changing anything in it.
pub(crate) fn open(path: &Path, flags: OpenFlags, busy: Duration) -> rusqlite::Result<Connection> {
    if path.is_dir() {
        // Opened to be read, it would only be found out when it is.
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        return Err(rusqlite::Error::SqliteFailure(error, Some("it is a directory".to_owned())));
    }
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(busy)?;
    Ok(connection)
}

pub(crate) fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    let level = match durability {
        Durability::Memory => "off",
        Durability::Kill => "normal",
        Durability::PowerLoss => "full",
    };
    connection.pragma_update(None, "synchronous", level)?;
    // Where the system's own sync stops at the disk's cache: does nothing elsewhere.
    connection.pragma_update(None, "fullfsync", durability == Durability::PowerLoss)
}

impl Schema {
    const fn newest(&self) -> i64 {
        self.versions.len() as i64
    }

    /// Makes the tables in a file that is empty, and brings those of older versions up to date, in one transaction.
    pub(crate) fn create(&self, connection: &mut Connection) -> Result<(), Problem> {
        let found = self.check(connection)?;
        if connection.is_readonly(rusqlite::MAIN_DB)? {
            return Err(Problem::ReadOnly);
        }
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(Problem::Other("the file system takes no write-ahead log".into()));
        }
        if found == self.newest() {
            return Ok(());
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        let found = self.check(&transaction)?;
        for step in &self.versions[found as usize..] {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "application_id", self.application)?;
        transaction.pragma_update(None, "user_version", self.newest())?;
        Ok(transaction.commit()?)
    }

    /// The version of the tables in there; refuses a file that has none.
    pub(crate) fn verify(&self, connection: &Connection) -> Result<i64, Problem> {
        match self.check(connection)? {
            0 => Err(Problem::Foreign),
            version => Ok(version),
        }
    }

    /// The version of the tables in there, 0 if there is nothing.
    fn check(&self, connection: &Connection) -> Result<i64, Problem> {
        let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
        let (application, found) = (pragma("application_id")?, pragma("user_version")?);
        let known = self.newest();
        match (application, found) {
            (0, 0) if tables == 0 => Ok(0),
            (application, _) if application != self.application => Err(Problem::Foreign),
            (_, found) if found > known => Err(Problem::Newer { found, known }),
            (_, found) if found > 0 => Ok(found),
            _ => Err(Problem::Foreign),
        }
    }
}

impl FileId {
    /// `None` if there is no file.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        let id = (std::os::unix::fs::MetadataExt::dev(&found), std::os::unix::fs::MetadataExt::ino(&found));
        // Where files that are open cannot be exchanged.
        #[cfg(not(unix))]
        let id = (0, u64::from(found.is_file()));
        Some(Self(id))
    }
}

impl Trouble {
    pub(crate) fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::Unreachable,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly) => Self::ReadOnly,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Self::Corrupt,
            _ => Self::Failed,
        }
    }
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// An error that names its file, and its kinds: those of every file of SQLite, and those of its own.
macro_rules! file_error {
    (
        $(#[$error_docs:meta])* $error:ident, $what:literal of the store $store:literal,
        $(#[$kind_docs:meta])* $kind:ident { $($(#[$own_docs:meta])* $own:ident => $says:literal,)* }
    ) => {
        $(#[$error_docs])*
        #[derive(Debug, Clone)]
        pub struct $error {
            path: std::sync::Arc<std::path::Path>,
            kind: $kind,
            source: Option<std::sync::Arc<dyn std::error::Error + Send + Sync>>,
        }

        $(#[$kind_docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $kind {
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
            $($(#[$own_docs])* $own,)*
            /// Something else; the source says what.
            Failed,
        }

        impl $error {
            pub(super) fn new(path: &std::sync::Arc<std::path::Path>, kind: $kind) -> Self {
                Self { path: std::sync::Arc::clone(path), kind, source: None }
            }

            pub(super) fn failed(
                path: &std::sync::Arc<std::path::Path>,
                source: impl Into<$crate::BoxError>,
            ) -> Self {
                Self { source: Some(source.into().into()), ..Self::new(path, $kind::Failed) }
            }

            pub(super) fn of(
                path: &std::sync::Arc<std::path::Path>,
                problem: impl Into<$crate::sqlite::Problem>,
            ) -> Self {
                use $crate::sqlite::{Problem, Trouble};
                let error = match problem.into() {
                    Problem::ReadOnly => return Self::new(path, $kind::ReadOnly),
                    Problem::Newer { found, known } => return Self::new(path, $kind::Newer { found, known }),
                    Problem::Foreign => return Self::new(path, $kind::Foreign),
                    Problem::Other(error) => return Self::failed(path, error),
                    Problem::Sqlite(error) => error,
                };
                let kind = match Trouble::of(&error) {
                    Trouble::Unreachable => $kind::Unreachable,
                    Trouble::Locked => $kind::Locked,
                    Trouble::Full => $kind::Full,
                    Trouble::ReadOnly => $kind::ReadOnly,
                    Trouble::Corrupt => $kind::Corrupt,
                    Trouble::Failed => $kind::Failed,
                };
                Self { source: Some(std::sync::Arc::new(error)), ..Self::new(path, kind) }
            }

            /// What is wrong.
            pub const fn kind(&self) -> $kind {
                self.kind
            }

            /// The file.
            pub fn path(&self) -> &std::path::Path {
                &self.path
            }
        }

        impl std::fmt::Display for $error {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, concat!($what, " {}: "), self.path.display())?;
                f.write_str(match self.kind {
                    $kind::Unreachable => "cannot be opened",
                    $kind::Locked => "locked by somebody else",
                    $kind::Full => "no room for more",
                    $kind::ReadOnly => "may not be written",
                    $kind::Newer { found, known } => {
                        return write!(f, "its version is {found}, and {known} is the newest known here");
                    }
                    $kind::Foreign => "a database of something else",
                    $kind::Corrupt => "no database, or a damaged one",
                    $($kind::$own => $says,)*
                    $kind::Failed => "failed",
                })
            }
        }

        impl std::error::Error for $error {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                self.source.as_ref().map(|source| &**source as _)
            }
        }

        impl From<$error> for $crate::Error {
            fn from(error: $error) -> Self {
                Self::new($crate::ErrorKind::StoreUnavailable { store: $store.into() }).with_source(error)
            }
        }
    };
}
pub(crate) use file_error;
