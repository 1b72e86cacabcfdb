use super::error::{LedgerError, LedgerErrorKind};
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::{path::Path, sync::Arc, time::Duration};

/// Written into the file's header, so that nobody else's database is taken for a ledger.
const APPLICATION: i64 = 0x4c4c_6c75;
const VERSION: i64 = 1;

/// An event is kept once by its id. Its departments are a table of their own: totals add up `events`, sums over
/// departments add up the join. Times are nanoseconds, money is nano-dollars; `NULL` is what is not known.
const TABLES: &str = "
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    ended_at INTEGER NOT NULL,
    tenant TEXT,
    user TEXT,
    agent TEXT,
    task_type TEXT,
    request_id TEXT,
    requested TEXT NOT NULL,
    model TEXT NOT NULL,
    answered TEXT,
    provider TEXT,
    attempt INTEGER NOT NULL,
    streamed INTEGER NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_tokens INTEGER,
    cache_write_tokens INTEGER,
    cache_write_1h_tokens INTEGER,
    reasoning_tokens INTEGER,
    certainty TEXT NOT NULL,
    cost INTEGER,
    price_entry TEXT,
    price_source TEXT,
    price_version TEXT,
    latency INTEGER NOT NULL,
    first_content INTEGER,
    outcome TEXT NOT NULL,
    cache TEXT NOT NULL,
    cache_age INTEGER,
    saved_input_tokens INTEGER,
    saved_output_tokens INTEGER,
    saved_cache_read_tokens INTEGER,
    saved_cache_write_tokens INTEGER,
    saved_cache_write_1h_tokens INTEGER,
    saved_reasoning_tokens INTEGER,
    saved_certainty TEXT,
    saved_cost INTEGER,
    saved_price_entry TEXT,
    saved_price_source TEXT,
    saved_price_version TEXT
) STRICT;
CREATE INDEX events_by_time ON events (ended_at);
CREATE TABLE departments (
    event INTEGER NOT NULL REFERENCES events (seq),
    department TEXT NOT NULL,
    PRIMARY KEY (event, department)
) STRICT, WITHOUT ROWID;
";

/// What a file holds.
enum Found {
    Nothing,
    Ledger,
}

/// Opens a file, without changing anything in it.
pub(super) fn open(path: &Arc<Path>, flags: OpenFlags, busy: Duration) -> Result<Connection, LedgerError> {
    let failed = |error| LedgerError::of(path, error);
    let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(busy).map_err(failed)?;
    Ok(connection)
}

/// An absolute path: SQLite gives a meaning to `:memory:` and `file:`, and we want none.
pub(super) fn absolute(path: &Path) -> Result<Arc<Path>, LedgerError> {
    match std::path::absolute(path) {
        Ok(path) => Ok(path.into()),
        Err(error) => Err(LedgerError::failed(&path.into(), error)),
    }
}

/// Makes the tables in a file that is empty.
pub(super) fn create(path: &Arc<Path>, connection: &mut Connection) -> Result<(), LedgerError> {
    let failed = |error| LedgerError::of(path, error);
    let found = check(path, connection)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        return Err(LedgerError::new(path, LedgerErrorKind::ReadOnly));
    }
    let mode: String =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0)).map_err(failed)?;
    if mode != "wal" {
        return Err(LedgerError::failed(path, "the file system takes no write-ahead log"));
    }
    if matches!(found, Found::Ledger) {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Another process may have been faster.
    if matches!(check(path, &transaction)?, Found::Nothing) {
        transaction.execute_batch(TABLES).map_err(failed)?;
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
        transaction.pragma_update(None, "user_version", VERSION).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// Refuses a file that is not a ledger.
pub(super) fn verify(path: &Arc<Path>, connection: &Connection) -> Result<(), LedgerError> {
    match check(path, connection)? {
        Found::Ledger => Ok(()),
        Found::Nothing => Err(LedgerError::new(path, LedgerErrorKind::Foreign)),
    }
}

fn check(path: &Arc<Path>, connection: &Connection) -> Result<Found, LedgerError> {
    let failed = |error| LedgerError::of(path, error);
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0)).map_err(failed)?;
    let application = pragma("application_id").map_err(failed)?;
    let version = pragma("user_version").map_err(failed)?;
    match (application, version) {
        (0, 0) if tables == 0 => Ok(Found::Nothing),
        (APPLICATION, VERSION) => Ok(Found::Ledger),
        (APPLICATION, found) if found > VERSION => {
            Err(LedgerError::new(path, LedgerErrorKind::Newer { found, known: VERSION }))
        }
        _ => Err(LedgerError::new(path, LedgerErrorKind::Foreign)),
    }
}
