use super::{Durability, SqliteLedger, StreamReader, UsageEvent};
use crate::{
    BoxError,
    ended::{Ended, running},
    store::Redis,
};
use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

/// How many entries are copied at once.
const ENTRIES: usize = 500;
/// How long to wait at the end of the stream.
const PAUSE: Duration = Duration::from_millis(200);
/// How long to wait after a failure.
const LONG_PAUSE: Duration = Duration::from_secs(2);

/// Copies what all have recorded in a [`RedisStream`](super::RedisStream) into a file of SQLite, out of which questions are answered: on a
/// thread of its own, until it is [stopped](Self::stop) or dropped.
///
/// How far it has come is in the ledger itself: one that was put back from a copy, or made anew, gets what it has missed for as
/// long as it is in the stream. What is copied twice is there once.
#[must_use = "nothing is copied any more once it is dropped"]
pub struct Collector {
    shared: Arc<Shared>,
    ended: Ended,
}

#[derive(Default)]
pub(super) struct Shared {
    is_over: AtomicBool,
    last_error: Mutex<Option<Arc<str>>>,
    turns: Mutex<Turns>,
    wanted: Condvar,
}

/// Who wants all that is in the stream to be copied, and who has it.
#[derive(Default)]
struct Turns {
    wanted: u64,
    done: u64,
}

struct Copying {
    reader: StreamReader,
    ledger: SqliteLedger,
    stream: Box<str>,
    runtime: Runtime,
    goal: Option<Goal>,
}

/// How far has to be copied for whoever wanted it.
struct Goal {
    turn: u64,
    /// What was the last entry of the stream when they were heard.
    entry: Box<str>,
}

impl Collector {
    /// Copies the stream `name` into the ledger at `path`, which is made if there is none.
    ///
    /// # Errors
    ///
    /// The ledger cannot be opened.
    pub fn start(redis: &Redis, name: &str, path: impl AsRef<Path>) -> Result<Self, BoxError> {
        // What a power failure takes is copied again: the place in the stream goes with it.
        let ledger = SqliteLedger::open(path, Durability::Kill)?;
        let reader = StreamReader::new(redis.apart(), name);
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared::default());
        let mut copying = Copying { reader, ledger, stream: name.into(), runtime, goal: None };
        let of_thread = Arc::clone(&shared);
        let (running, ended) = running();
        let run = move || {
            let _over = Over(&of_thread);
            copying.run(&of_thread);
            drop(copying);
            running.done();
        };
        thread::Builder::new().name("usage-copy".into()).spawn(run)?;
        Ok(Self { shared, ended })
    }

    /// It ends soon afterwards.
    pub fn stop(&self) {
        let _turns = self.shared.turns();
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.wanted.notify_all();
    }

    /// Stops, and waits until the ledger is closed or `deadline` has passed. Whether it is.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        self.close(deadline).await
    }

    /// As [`shutdown`](Self::shutdown), for as many as ask for it.
    pub(crate) async fn close(&self, deadline: Duration) -> bool {
        self.stop();
        timeout(deadline, self.ended.wait()).await.is_ok()
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    /// Why nothing could be copied the last time; `None` if it could.
    pub fn last_error(&self) -> Option<Arc<str>> {
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("last_error", &self.last_error()).finish_non_exhaustive()
    }
}

/// Says that the thread has ended, however it did: nobody waits for it in vain.
struct Over<'a>(&'a Shared);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

impl Shared {
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has what is in the stream copied at once, and says by which turn [`has_copied`](Self::has_copied) can tell that it was.
    pub(super) fn hurry(&self) -> u64 {
        let mut turns = self.turns();
        turns.wanted += 1;
        self.wanted.notify_all();
        turns.wanted
    }

    /// `None` if it never will be.
    pub(super) fn has_copied(&self, turn: u64) -> Option<bool> {
        let is_over = self.is_over();
        let is_done = self.turns().done >= turn;
        (is_done || !is_over).then_some(is_done)
    }

    /// All that was in the stream has been copied for whoever wanted it by then.
    fn copied_for(&self, turn: u64) {
        self.turns().done = turn;
    }

    /// At the end of the stream.
    fn pause(&self) {
        let turns = self.turns();
        let is_idle = |turns: &mut Turns| turns.wanted == turns.done && !self.is_over();
        let _ = self.wanted.wait_timeout_while(turns, PAUSE, is_idle);
    }

    /// After a failure.
    fn long_pause(&self) {
        let _ = self.wanted.wait_timeout_while(self.turns(), LONG_PAUSE, |_| !self.is_over());
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

impl Copying {
    fn run(&mut self, shared: &Shared) {
        let mut is_failing = false;
        while !shared.is_over() {
            let copied = self.copy_on(shared);
            let failed = copied.as_ref().err().map(|error| {
                let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
                Arc::from(format!("{error}{cause}"))
            });
            if failed.is_some() != is_failing {
                is_failing = failed.is_some();
                report(failed.as_deref());
            }
            *shared.last_error.lock().unwrap_or_else(PoisonError::into_inner) = failed;
            match copied {
                Ok(0) => shared.pause(),
                Ok(_) => {}
                Err(_) => shared.long_pause(),
            }
        }
    }

    /// Copies some more, and tells those who have what they wanted. Where others record without a pause, the end of the stream
    /// never comes.
    fn copy_on(&mut self, shared: &Shared) -> Result<usize, BoxError> {
        let Turns { wanted, done } = *shared.turns();
        if self.goal.is_none() && wanted > done {
            let last = self.runtime.block_on(self.reader.last())?;
            self.goal = last.map(|entry| Goal { turn: wanted, entry });
        }
        let copied = self.copy()?;
        if copied == 0 {
            self.goal = None;
            shared.copied_for(wanted);
        } else if let Some(goal) = self.goal.take_if(|goal| self.reader.has_read(&goal.entry)) {
            shared.copied_for(goal.turn);
        }
        Ok(copied)
    }

    fn copy(&mut self) -> Result<usize, BoxError> {
        let Self { reader, ledger, stream, runtime, .. } = self;
        // Another file may have taken the place of the one before, and have less.
        let copied = ledger.copied(stream)?;
        if copied.as_deref() != Some(reader.cursor()) {
            reader.go_to(copied);
        }
        let write = |events: &[UsageEvent], cursor: &str| Ok(ledger.copy(events, stream, cursor)?);
        Ok(runtime.block_on(reader.read_to(write, ENTRIES))?)
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn report(failed: Option<&str>) {
    #[cfg(feature = "tracing")]
    match failed {
        Some(error) => tracing::error!(error, "usage cannot be copied from redis"),
        None => tracing::info!("usage is copied from redis again"),
    }
}
