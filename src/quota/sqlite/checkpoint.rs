//! The thread that brings the write-ahead log into the file: a disk that is busy takes its time for that, and nobody
//! who waits for an answer has to wait for it.

use rusqlite::Connection;
use std::sync::mpsc;

/// After how many operations: some thousand pages of log.
pub(super) const EVERY: usize = 1024;
/// At how many pages of log whoever writes stops to do it himself, because the thread cannot keep up.
pub(super) const LAST_PAGES: i64 = 20_000;

/// Each time it is told to, until nobody can any more.
pub(super) fn run(connection: &Connection, wanted: &mpsc::Receiver<()>) {
    while wanted.recv().is_ok() {
        // As much as there is without waiting for anybody; what fails is done the next time.
        let _ = connection.query_row("PRAGMA wal_checkpoint(passive)", (), |_| Ok(()));
    }
}
