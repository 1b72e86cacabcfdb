//! The thread that has the connection: operations in groups, a group in a transaction, an operation in a savepoint.

use super::{
    checkpoint,
    error::{QuotaFileError, QuotaFileErrorKind},
    store::connect,
    tables::{Answer, FileClock, Tables, apart},
};
use crate::{
    clock::Clock,
    quota::{StoreError, calendar::unix_millis},
    sqlite::FileId,
    usage::Durability,
};
use rusqlite::{Connection, ErrorCode};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
        mpsc::SyncSender,
    },
    thread,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

pub(super) enum Message {
    Do(Box<dyn Job>),
    /// It is over, behind all that came before.
    Stop,
}

/// An operation that somebody may wait for.
pub(super) trait Job: Send {
    /// Whether it is to be done: not if nobody waits for it any more.
    fn begin(&self) -> bool;

    fn is_withdrawn(&self) -> bool;

    /// Does it, in a transaction that may fail yet. How many departments it was about.
    fn run(&mut self, tables: &Tables<'_>) -> rusqlite::Result<()>;

    /// It was committed; or else it was not, or nobody knows.
    fn finish(self: Box<Self>, outcome: Result<(), Failure>);
}

#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: QuotaFileError,
    pub(super) is_ambiguous: bool,
}

/// Who has an operation: it waits until the thread takes it or its caller takes it back.
#[derive(Debug, Default)]
pub(super) struct Claim(AtomicU8);

pub(super) struct Operation<T, F> {
    pub(super) run: F,
    pub(super) answer: Option<Result<T, StoreError>>,
    pub(super) claim: Arc<Claim>,
    pub(super) reply: oneshot::Sender<Result<T, StoreError>>,
}

/// What the thread and its callers know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Somebody else has the file.
    pub(super) is_locked: AtomicBool,
    /// There is no time left.
    pub(super) gives_up: AtomicBool,
}

pub(super) struct Worker {
    pub(super) connection: Connection,
    /// Which file that is.
    pub(super) file: Option<FileId>,
    pub(super) durability: Durability,
    pub(super) path: Arc<Path>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) group: usize,
    pub(super) shared: Arc<Shared>,
    /// How many operations there were since what is old was last looked for.
    pub(super) unpruned: usize,
    pub(super) pruned_to: i64,
    pub(super) checkpoint: SyncSender<()>,
    /// How many operations there were since the last time.
    pub(super) unchecked: usize,
}

const WAITS: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// How long the file is held at most without leaving it to others for [`GAP`].
const TURN: Duration = Duration::from_millis(10);
/// Longer than [`POLL`], so that who waits gets the file.
const GAP: Duration = Duration::from_micros(600);
/// How often a lock is tried, in microseconds, at first.
const POLL: std::ops::Range<u64> = 100..300;
/// From when on a lock is tried less often.
const LONG: Duration = Duration::from_secs(1);
const LONG_POLL: Duration = Duration::from_millis(10);

/// After how many operations what is old is looked for, and how much of it is forgotten at once: more than so many
/// operations can leave behind.
const PRUNE_EVERY: usize = 64;
const PRUNED: i64 = 256;

impl Worker {
    pub(super) fn run(mut self, mut jobs: mpsc::Receiver<Message>) {
        let mut messages = Vec::new();
        let mut group = Vec::new();
        let mut turn = None;
        loop {
            messages.clear();
            while messages.len() < self.group {
                let Ok(message) = jobs.try_recv() else { break };
                messages.push(message);
            }
            if messages.is_empty() {
                turn = None;
                if jobs.blocking_recv_many(&mut messages, self.group) == 0 {
                    return;
                }
            }
            let mut is_over = false;
            for message in messages.drain(..) {
                match message {
                    Message::Do(job) => group.push(job),
                    Message::Stop => is_over = true,
                }
            }
            if is_over {
                jobs.close();
            }
            let since = *turn.get_or_insert_with(Instant::now);
            self.work(&mut group);
            if self.shared.gives_up.load(Ordering::Acquire) {
                return;
            }
            if is_over && jobs.is_empty() {
                return;
            }
            if since.elapsed() >= TURN {
                thread::sleep(GAP);
                turn = None;
            }
        }
    }

    /// Does a group, and answers it.
    fn work(&mut self, group: &mut Vec<Box<dyn Job>>) {
        let begun = self.begin(group);
        group.retain(|job| begun.is_err() || job.begin());
        let outcome = begun.and_then(|()| self.attempt(group));
        self.unchecked += group.len();
        if self.unchecked >= checkpoint::EVERY {
            self.unchecked = 0;
            // If it is at it still, the next time.
            let _ = self.checkpoint.try_send(());
        }
        for job in group.drain(..) {
            job.finish(outcome.clone());
        }
    }

    /// Takes the file's lock, as long as somebody waits for it.
    fn begin(&mut self, group: &mut Vec<Box<dyn Job>>) -> Result<(), Failure> {
        self.follow().map_err(|error| Failure { error, is_ambiguous: false })?;
        let mut since = None;
        let outcome = loop {
            group.retain(|job| !job.is_withdrawn());
            if group.is_empty() {
                // Nothing to do, and nobody to tell.
                break Err(self.definite(QuotaFileErrorKind::Locked));
            }
            match self.execute("BEGIN IMMEDIATE") {
                Ok(()) => break Ok(()),
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
                Err(error) => break Err(self.failed(error)),
            }
            if self.shared.gives_up.load(Ordering::Acquire) {
                break Err(self.definite(QuotaFileErrorKind::Locked));
            }
            self.shared.is_locked.store(true, Ordering::Release);
            let is_long = since.get_or_insert_with(Instant::now).elapsed() > LONG;
            thread::sleep(if is_long { LONG_POLL } else { Duration::from_micros(fastrand::u64(POLL)) });
        };
        self.shared.is_locked.store(false, Ordering::Release);
        outcome
    }

    /// Opens the file anew if it was removed, or another has taken its place: what is counted in one that has no name
    /// any more is lost, and nobody else sees it.
    fn follow(&mut self) -> Result<(), QuotaFileError> {
        if self.file.is_none() || FileId::of(&self.path) != self.file {
            self.file = None;
            self.connection = connect(&self.path, self.durability)?;
            self.file = FileId::of(&self.path);
        }
        Ok(())
    }

    fn attempt(&mut self, group: &mut Vec<Box<dyn Job>>) -> Result<(), Failure> {
        match self.in_transaction(group) {
            Ok(()) => self.commit(),
            Err(error) => {
                self.roll_back();
                Err(self.failed(error))
            }
        }
    }

    fn in_transaction(&mut self, group: &mut Vec<Box<dyn Job>>) -> rusqlite::Result<()> {
        let seen = FileClock::read(&self.connection)?;
        let mut now = seen.now;
        let mut failed = Vec::new();
        for (at, job) in group.iter_mut().enumerate() {
            let machine = unix_millis(self.clock.now());
            // A clock that goes back stands still until its time has come again.
            now = now.max(machine);
            let tables = Tables { connection: &self.connection, path: &self.path, now, ahead: now - machine };
            if let Err(error) = apart(&self.connection, || job.run(&tables))? {
                failed.push((at, error));
            }
        }
        let clock = seen.moved_to(now);
        self.unpruned += group.len();
        if self.unpruned >= PRUNE_EVERY {
            self.unpruned = 0;
            let tables = Tables { connection: &self.connection, path: &self.path, now, ahead: 0 };
            // What is old can wait, and those who are asking cannot.
            let _ = apart(&self.connection, || tables.prune(PRUNED, &clock, &mut self.pruned_to))?;
        }
        if clock != seen {
            clock.write(&self.connection)?;
        }
        for (at, error) in failed.into_iter().rev() {
            let job = group.remove(at);
            let error = QuotaFileError::of_one(&self.path, error);
            job.finish(Err(Failure { error, is_ambiguous: false }));
        }
        Ok(())
    }

    fn commit(&self) -> Result<(), Failure> {
        let Err(error) = self.execute("COMMIT") else { return Ok(()) };
        // What was not written whole is not there; what was not synced may be, after a crash.
        let is_ambiguous = error.sqlite_error_code() != Some(ErrorCode::DiskFull);
        self.roll_back();
        Err(Failure { is_ambiguous, ..self.failed(error) })
    }

    fn roll_back(&self) {
        if !self.connection.is_autocommit() {
            // What cannot be rolled back now is by SQLite, when the next one begins.
            let _ = self.execute("ROLLBACK");
        }
    }

    fn execute(&self, sql: &'static str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute(()).map(drop)
    }

    fn failed(&self, error: rusqlite::Error) -> Failure {
        Failure { error: QuotaFileError::of(&self.path, error), is_ambiguous: false }
    }

    fn definite(&self, kind: QuotaFileErrorKind) -> Failure {
        Failure { error: QuotaFileError::new(&self.path, kind), is_ambiguous: false }
    }
}

// ===== impl Claim =====

impl Claim {
    /// Whether it was still waiting; now it is the thread's.
    fn take(&self) -> bool {
        self.0.compare_exchange(WAITS, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether it was still waiting; now it will never be done.
    pub(super) fn withdraw(&self) -> bool {
        self.0.compare_exchange(WAITS, WITHDRAWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

// ===== impl Operation =====

impl<T, F> Job for Operation<T, F>
where
    T: Send,
    F: Fn(&Tables<'_>) -> Answer<T> + Send,
{
    fn begin(&self) -> bool {
        self.claim.take()
    }

    fn is_withdrawn(&self) -> bool {
        self.claim.0.load(Ordering::Acquire) == WITHDRAWN
    }

    fn run(&mut self, tables: &Tables<'_>) -> rusqlite::Result<()> {
        self.answer = Some((self.run)(tables)?);
        Ok(())
    }

    fn finish(self: Box<Self>, outcome: Result<(), Failure>) {
        let answer = match (outcome, self.answer) {
            (Ok(()), Some(answer)) => answer,
            (Ok(()), None) => unreachable!("what was committed was run"),
            (Err(Failure { error, is_ambiguous: true }), _) => Err(StoreError::ambiguous(error)),
            (Err(Failure { error, .. }), _) => Err(error.into()),
        };
        // Who does not wait for it need not be told.
        let _ = self.reply.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use std::sync::mpsc::sync_channel;

    /// Taken back just when the lock was had.
    struct Late(Arc<AtomicBool>);

    impl Job for Late {
        fn begin(&self) -> bool {
            false
        }

        fn is_withdrawn(&self) -> bool {
            false
        }

        fn run(&mut self, _: &Tables<'_>) -> rusqlite::Result<()> {
            self.0.store(true, Ordering::Relaxed);
            Ok(())
        }

        fn finish(self: Box<Self>, _: Result<(), Failure>) {}
    }

    #[test]
    fn what_is_taken_back_while_the_lock_is_had_is_not_done() {
        let directory = std::env::temp_dir().join(format!("llm-layers-late-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&directory).unwrap();
        let path: Arc<Path> = directory.join("quota.db").into();
        let (checkpoint, _wanted) = sync_channel(1);
        let mut worker = Worker {
            connection: connect(&path, Durability::Kill).unwrap(),
            file: FileId::of(&path),
            durability: Durability::Kill,
            path,
            clock: Arc::new(SystemClock),
            group: 1,
            shared: Arc::default(),
            unpruned: 0,
            pruned_to: 0,
            checkpoint,
            unchecked: 0,
        };
        let is_done = Arc::<AtomicBool>::default();
        worker.work(&mut vec![Box::new(Late(Arc::clone(&is_done)))]);
        assert!(!is_done.load(Ordering::Relaxed));
        assert!(worker.connection.is_autocommit(), "others may have the file");
        drop(worker);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
