use super::error::LedgerError;
use crate::sqlite::{self, Schema};
use rusqlite::{Connection, OpenFlags};
use std::{path::Path, sync::Arc, time::Duration};

pub(super) const SCHEMA: Schema =
    Schema { application: 0x4c4c_6c75, versions: &[TABLES, BY_DEPARTMENT, REASONS, LEASES, TIERS] };

/// The version from which on `departments` tells the time too.
pub(super) const TIMED_DEPARTMENTS: i64 = 2;

/// The version from which on events tell what they are charged to.
pub(super) const LEASED: i64 = 4;

/// The version from which on events tell what quotas charge where there is no price.
pub(super) const ASSUMED: i64 = 5;

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

/// What one department has used up is found without reading what the others have.
const BY_DEPARTMENT: &str = "
ALTER TABLE departments ADD COLUMN ended_at INTEGER NOT NULL DEFAULT 0;
UPDATE departments SET ended_at = (SELECT ended_at FROM events WHERE seq = event);
CREATE INDEX departments_by_time ON departments (department, ended_at);
";

/// Why a cache was not asked (`no-user`), or had no answer (`expired`), beside what it had to do with a call; and the conversation.
const REASONS: &str = "
ALTER TABLE events ADD COLUMN cache_reason TEXT;
ALTER TABLE events ADD COLUMN conversation TEXT;
";

/// What quotas charge an event to.
const LEASES: &str = "
ALTER TABLE events ADD COLUMN lease BLOB;
";

/// In which tier a call was served, and what quotas charge where there is no price.
const TIERS: &str = "
ALTER TABLE events ADD COLUMN service_tier TEXT;
ALTER TABLE events ADD COLUMN assumed_cost INTEGER;
";

/// How far streams were copied into the file. Beside the versions, for nothing that they have is read otherwise: a gateway that does not know it
/// may write there too.
#[cfg(feature = "redis")]
pub(super) const COPIED: &str = "
CREATE TABLE IF NOT EXISTS copied (
    stream TEXT NOT NULL PRIMARY KEY,
    cursor TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Opens a file, without changing anything in it.
pub(super) fn open(path: &Arc<Path>, flags: OpenFlags, busy: Duration) -> Result<Connection, LedgerError> {
    sqlite::open(path, flags, busy).map_err(|error| LedgerError::of(path, error))
}

pub(super) fn absolute(path: &Path) -> Result<Arc<Path>, LedgerError> {
    match sqlite::absolute(path) {
        Ok(path) => Ok(path.into()),
        Err(error) => Err(LedgerError::failed(&path.into(), error)),
    }
}
