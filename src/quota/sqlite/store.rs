use super::{
    checkpoint,
    error::{QuotaFileError, QuotaFileErrorKind},
    tables::{Answer, SCHEMA, Tables},
    worker::{Claim, Message, Operation, Shared, Worker},
};
use crate::{
    clock::{Clock, SystemClock},
    quota::{
        Adjustment, Applied, Baseline, Days, Decision, Departments, LeaseId, QuotaStore, Recount,
        Reservation, Settlement, Standing, StoreError, StoreFuture, WindowName,
    },
    sqlite::{self, FileId},
    usage::Durability,
};
use rusqlite::{Connection, OpenFlags, config::DbConfig};
use std::{
    fmt,
    path::Path,
    sync::{Arc, atomic::Ordering, mpsc::sync_channel},
    thread,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// Counts quotas in a file of SQLite, for all processes of one machine that open it. Clones share a connection, and the
/// thread that has it.
///
/// See the [module docs](super).
#[derive(Clone)]
pub struct SqliteStore {
    jobs: mpsc::Sender<Message>,
    path: Arc<Path>,
    timeout: Duration,
    shared: Arc<Shared>,
    /// Closed when the threads have ended.
    ended: watch::Receiver<()>,
}

/// How a [`SqliteStore`] is set up.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqliteOptions {
    /// What an answer survives; [`Kill`](Durability::Kill) unless told.
    pub durability: Durability,
    /// How long an operation takes at most; 250 ms unless told.
    pub timeout: Duration,
    /// How many operations may wait; 4,096 unless told.
    pub capacity: usize,
    /// How many are done in one transaction, at most; 256 unless told.
    pub group: usize,
    /// What time it is; the machine's clock unless told.
    pub clock: Arc<dyn Clock>,
}

/// Takes an operation back that nobody waits for any more.
struct Withdraw(Arc<Claim>);

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            durability: Durability::Kill,
            timeout: Duration::from_millis(250),
            capacity: 4096,
            group: 256,
            clock: Arc::new(SystemClock),
        }
    }
}

impl SqliteOptions {
    /// As they are unless told.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`durability`](Self::durability).
    #[must_use]
    pub const fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub const fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`capacity`](Self::capacity).
    #[must_use]
    pub const fn with_capacity(mut self, operations: usize) -> Self {
        self.capacity = operations;
        self
    }

    /// Sets [`group`](Self::group).
    #[must_use]
    pub const fn with_group(mut self, operations: usize) -> Self {
        self.group = operations;
        self
    }

    /// Sets [`clock`](Self::clock).
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

// ===== impl SqliteStore =====

impl SqliteStore {
    /// Opens the counters in this file, which is made if there is none, and starts the thread that writes into it.
    /// Blocks, for a second or so if the file is locked.
    ///
    /// # Errors
    ///
    /// [`Unreachable`](QuotaFileErrorKind::Unreachable), [`Locked`](QuotaFileErrorKind::Locked),
    /// [`Full`](QuotaFileErrorKind::Full), [`ReadOnly`](QuotaFileErrorKind::ReadOnly),
    /// [`Newer`](QuotaFileErrorKind::Newer), [`Foreign`](QuotaFileErrorKind::Foreign),
    /// [`Corrupt`](QuotaFileErrorKind::Corrupt), [`Failed`](QuotaFileErrorKind::Failed). Nothing was changed then.
    pub fn open(path: impl AsRef<Path>, options: SqliteOptions) -> Result<Self, QuotaFileError> {
        let path = absolute(path.as_ref())?;
        let connection = connect(&path, options.durability)?;
        Self::start(connection, path, options)
    }

    fn start(
        connection: Connection,
        path: Arc<Path>,
        options: SqliteOptions,
    ) -> Result<Self, QuotaFileError> {
        let (jobs, waiting) = mpsc::channel(options.capacity.max(1));
        let (checkpoint, wanted) = sync_channel(1);
        let (running, ended) = watch::channel(());
        let running = Arc::new(running);
        let shared = Arc::<Shared>::default();
        let worker = Worker {
            connection,
            file: FileId::of(&path),
            durability: options.durability,
            path: Arc::clone(&path),
            clock: options.clock,
            group: options.group.max(1),
            shared: Arc::clone(&shared),
            unpruned: usize::MAX / 2,
            pruned_to: 0,
            checkpoint,
            unchecked: 0,
        };
        // It is over when both are.
        let (also, log_path, durability) = (Arc::clone(&running), Arc::clone(&path), options.durability);
        start_thread(&path, "quota-log", move || {
            checkpoint::run(&log_path, durability, &wanted);
            drop(also);
        })?;
        start_thread(&path, "quota", move || {
            worker.run(waiting);
            drop(running);
        })?;
        Ok(Self { jobs, path, timeout: options.timeout, shared, ended })
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does all that was asked for before, closes the file, and waits for it until `deadline` has passed; what is asked
    /// for afterwards is [`Closed`](QuotaFileErrorKind::Closed), for all clones. Whether it was done in time: if not,
    /// what waited was not done.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        let mut ended = self.ended.clone();
        let in_time = tokio::time::timeout(deadline, async {
            let _ = self.jobs.send(Message::Stop).await;
            // Nothing is ever sent: it is over when the threads are gone.
            while ended.changed().await.is_ok() {}
        });
        let in_time = in_time.await.is_ok();
        if !in_time {
            self.shared.gives_up.store(true, Ordering::Release);
        }
        in_time
    }

    fn submit<T, F>(&self, run: F) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: Fn(&Tables<'_>) -> Answer<T> + Send + 'static,
    {
        let claim = Arc::<Claim>::default();
        let (reply, answer) = oneshot::channel();
        let operation = Operation { run, answer: None, claim: Arc::clone(&claim), reply };
        if let Err(refused) = self.jobs.try_send(Message::Do(Box::new(operation))) {
            let kind = match refused {
                mpsc::error::TrySendError::Full(_) => QuotaFileErrorKind::Crowded,
                mpsc::error::TrySendError::Closed(_) => QuotaFileErrorKind::Closed,
            };
            return StoreFuture::ready(Err(QuotaFileError::new(&self.path, kind).into()));
        }
        let (path, shared, timeout) = (Arc::clone(&self.path), Arc::clone(&self.shared), self.timeout);
        // Here, and not in there: a future may be dropped before it is polled.
        let withdraw = Withdraw(claim);
        StoreFuture::boxed(async move {
            let kind = match tokio::time::timeout(timeout, answer).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => QuotaFileErrorKind::Closed,
                Err(_) if shared.is_locked.load(Ordering::Acquire) => QuotaFileErrorKind::Locked,
                Err(_) => QuotaFileErrorKind::Slow,
            };
            let error = QuotaFileError::new(&path, kind);
            Err(if withdraw.0.withdraw() { error.into() } else { StoreError::ambiguous(error) })
        })
    }
}

impl QuotaStore for SqliteStore {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let reservation = reservation.clone();
        self.submit(move |tables| tables.reserve(&reservation))
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        let departments = departments.clone();
        self.submit(move |tables| tables.extend(id, &departments, by))
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let settlement = settlement.clone();
        self.submit(move |tables| {
            let each = tables.settle_each(&settlement)?;
            Ok(each.map(|each| each.into_iter().fold(Applied::Duplicate, Applied::and)))
        })
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        let settlement = settlement.clone();
        self.submit(move |tables| tables.settle_each(&settlement))
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        let departments = departments.clone();
        self.submit(move |tables| tables.release(id, &departments))
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        let (department, days) = (Arc::clone(department), days.clone());
        self.submit(move |tables| tables.usage(&department, &days))
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        let (department, baseline) = (Arc::clone(department), *baseline);
        self.submit(move |tables| tables.seed(&department, &baseline))
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        let adjustment = adjustment.clone();
        self.submit(move |tables| tables.adjust(&adjustment))
    }

    fn recount(
        &self,
        department: &Arc<str>,
        window: WindowName,
        correct: bool,
    ) -> StoreFuture<Option<Recount>> {
        let department = Arc::clone(department);
        self.submit(move |tables| Ok(tables.recount(&department, window, correct)?.map(Some)))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Drop for Withdraw {
    fn drop(&mut self) {
        self.0.withdraw();
    }
}

pub(super) fn absolute(path: &Path) -> Result<Arc<Path>, QuotaFileError> {
    match sqlite::absolute(path) {
        Ok(path) => Ok(path.into()),
        Err(error) => Err(QuotaFileError::failed(&path.into(), error)),
    }
}

fn start_thread(
    path: &Arc<Path>,
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), QuotaFileError> {
    let started = thread::Builder::new().name(name.into()).spawn(run);
    started.map(drop).map_err(|error| QuotaFileError::failed(path, error))
}

pub(super) fn connect(path: &Arc<Path>, durability: Durability) -> Result<Connection, QuotaFileError> {
    let failed = |error| QuotaFileError::of(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = sqlite::open(path, flags, BUSY).map_err(failed)?;
    SCHEMA.create(&mut connection).map_err(|problem| QuotaFileError::of(path, problem))?;
    sqlite::set_durability(&connection, durability).map_err(failed)?;
    connection.pragma_update(None, "wal_autocheckpoint", checkpoint::LAST_PAGES).map_err(failed)?;
    // The thread waits for locks by itself.
    connection.busy_timeout(Duration::ZERO).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Statistics or not, plans stay as they are: otherwise each new time of expiry makes a new one.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(failed)?;
    Ok(connection)
}

/// How long a lock is waited for while opening.
const BUSY: Duration = Duration::from_secs(1);
/// More than there are.
const STATEMENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CallId,
        price::NanoUsd,
        quota::{Amount, Calendar, Department, Limits},
    };

    fn departments(name: &str) -> Departments {
        Departments::one(Department::new(name, Limits::new()))
    }

    fn kind(error: &StoreError) -> QuotaFileErrorKind {
        assert!(!error.is_ambiguous(), "{error:?}");
        let source = std::error::Error::source(error).unwrap();
        assert!(source.to_string().contains("quota.db"), "{source}");
        source.downcast_ref::<QuotaFileError>().unwrap().kind()
    }

    /// Runs on a store over a connection that was tampered with.
    async fn on(tamper: impl FnOnce(&Connection), test: impl AsyncFnOnce(&SqliteStore, Connection)) {
        let directory = std::env::temp_dir().join(format!("llm-layers-tampered-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&directory).unwrap();
        let path = absolute(&directory.join("quota.db")).unwrap();
        let options = SqliteOptions::new().with_timeout(Duration::from_secs(20));
        let connection = connect(&path, Durability::Kill).unwrap();
        tamper(&connection);
        let store = SqliteStore::start(connection, Arc::clone(&path), options).unwrap();
        test(&store, Connection::open(&path).unwrap()).await;
        assert!(store.shutdown(Duration::from_secs(20)).await);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    async fn reserve(store: &SqliteStore, department: &str) -> Result<Decision, StoreError> {
        let now = SystemClock.now();
        let amount = Amount::new(1, 10, NanoUsd::ZERO);
        let days = Calendar::utc().days_around(now);
        let lease = Duration::from_secs(60);
        let reservation = Reservation::new(CallId::mint(now), departments(department), amount, lease, days);
        store.reserve(&reservation).await
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_nothing_is_there_in_part() {
        let tamper = |connection: &Connection| {
            connection.pragma_update_and_check(None, "max_page_count", 40, |_| Ok(())).unwrap();
        };
        on(tamper, async |store, file| {
            let mut granted = 0;
            let error = loop {
                match reserve(store, &format!("{granted} {}", "x".repeat(2000))).await {
                    Ok(_) => granted += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(kind(&error), QuotaFileErrorKind::Full);
            assert!(granted > 3, "{granted}");
            let count = |table: &str| -> i64 {
                file.query_row(&format!("SELECT count(*) FROM {table}"), (), |row| row.get(0)).unwrap()
            };
            assert_eq!(
                [count("accounts"), count("counters"), count("leases")],
                [granted, granted * 2, granted]
            );
            // What needs no room is done.
            let days = Calendar::utc().days_around(SystemClock.now());
            assert!(!store.usage(&"nobody".into(), &days).await.unwrap().is_known);
        })
        .await;
    }

    #[tokio::test]
    async fn a_commit_that_fails_may_have_been_done() {
        let tamper = |connection: &Connection| {
            connection
                .execute_batch(
                    "PRAGMA foreign_keys = on; CREATE TABLE parents (id INTEGER PRIMARY KEY); \
                     CREATE TABLE children (id REFERENCES parents DEFERRABLE INITIALLY DEFERRED); \
                     CREATE TRIGGER orphan AFTER INSERT ON leases BEGIN INSERT INTO children VALUES (1); END",
                )
                .unwrap();
        };
        on(tamper, async |store, file| {
            let error = reserve(store, "a").await.unwrap_err();
            assert!(error.is_ambiguous(), "{error:?}");
            // And the next one is not kept from it.
            file.execute_batch("DROP TRIGGER orphan").unwrap();
            assert!(matches!(reserve(store, "a").await.unwrap(), Decision::Granted(_)));
            let leases: i64 = file.query_row("SELECT count(*) FROM leases", (), |row| row.get(0)).unwrap();
            assert_eq!(leases, 1);
        })
        .await;
    }

    #[tokio::test]
    async fn a_file_that_may_not_be_written_is_said() {
        let tamper = |connection: &Connection| connection.pragma_update(None, "query_only", true).unwrap();
        on(tamper, async |store, _| {
            assert_eq!(kind(&reserve(store, "a").await.unwrap_err()), QuotaFileErrorKind::ReadOnly);
        })
        .await;
    }
}
