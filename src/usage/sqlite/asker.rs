use rusqlite::{Connection, InterruptHandle, ffi};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whoever waits for a query, which ends when this is dropped.
#[derive(Default)]
pub(super) struct Asker(Arc<Mutex<State>>);

/// Their query, on the thread where it runs.
pub(super) struct Asked(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    has_left: bool,
    /// Only while the query runs: the connection is somebody else's afterwards.
    running: Option<InterruptHandle>,
}

impl Asker {
    pub(super) fn asked(&self) -> Asked {
        Asked(Arc::clone(&self.0))
    }
}

impl Asked {
    /// # Errors
    ///
    /// What the query says, which is that it was interrupted if the asker has left.
    pub(super) fn run<T>(
        &self,
        connection: &Connection,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        let mut state = lock(&self.0);
        if state.has_left {
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_INTERRUPT), None));
        }
        state.running = Some(connection.get_interrupt_handle());
        drop(state);
        let answer = query(connection);
        lock(&self.0).running = None;
        answer
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.has_left = true;
        if let Some(running) = &state.running {
            running.interrupt();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
