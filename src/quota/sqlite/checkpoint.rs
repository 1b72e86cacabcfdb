//! The thread that brings the write-ahead log into the file: a disk that is busy takes its time for that, and nobody
//! who waits for an answer has to wait for it.

use crate::{sqlite, usage::Durability};
use rusqlite::OpenFlags;
use std::{path::Path, sync::mpsc, time::Duration};

/// After how many operations: some thousand pages of log.
pub(super) const EVERY: usize = 1024;
/// At how many pages of log whoever writes stops to do it himself, because the thread cannot keep up.
pub(super) const LAST_PAGES: i64 = 20_000;

/// Each time it is told to, until nobody can any more.
pub(super) fn run(path: &Path, durability: Durability, wanted: &mpsc::Receiver<()>) {
    while wanted.recv().is_ok() {
        // What fails is done the next time.
        let _ = checkpoint(path, durability);
    }
}

/// Brings as much into the file as it can without waiting for anybody.
fn checkpoint(path: &Path, durability: Durability) -> rusqlite::Result<()> {
    // Anew each time: another file may have taken its place.
    let connection = sqlite::open(path, OpenFlags::SQLITE_OPEN_READ_WRITE, Duration::ZERO)?;
    sqlite::set_durability(&connection, durability)?;
    connection.query_row("PRAGMA wal_checkpoint(passive)", (), |_| Ok(()))
}
