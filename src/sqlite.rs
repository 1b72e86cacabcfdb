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

/// An absolute path: SQLite gives a meaning to `:memory:` and `file:`, and we want none.
pub(crate) fn absolute(path: &Path) -> std::io::Result<PathBuf> {
    std::path::absolute(path)
}

/// Opens a file, without changing anything in it.
pub(crate) fn open(path: &Path, flags: OpenFlags, busy: Duration) -> rusqlite::Result<Connection> {
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
