#[cfg(feature = "redis")]
use super::schema::COPIED;
use super::{
    error::{LedgerError, LedgerErrorKind},
    schema::{SCHEMA, absolute, open},
};
use crate::{
    BoxError, CacheStatus, CallId, Certainty, TokenUsage,
    cache::MissReason,
    price::{Cost, NanoUsd, ServiceTier},
    sqlite::{self, FileId},
    usage::{
        Durability, QueueOptions, QueueSink, Refused, UsageEvent, UsageStore, Worker,
        event::{stored_duration, stored_tokens},
        query::nanos,
    },
};
#[cfg(feature = "redis")]
use rusqlite::OptionalExtension as _;
use rusqlite::{Connection, ErrorCode, OpenFlags, Statement, Transaction, TransactionBehavior};
use std::{fmt, path::Path, sync::Arc, time::Duration};

/// Events in a file of SQLite, each once, whatever is written again.
///
/// Written to by one process, in [WAL mode](https://www.sqlite.org/wal.html), so not on a network file system;
/// read by any number, with a [`LedgerReader`](super::LedgerReader) or `sqlite3`. Beside the file are two more, with `-wal` and
/// `-shm` after its name, that belong to it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("llm-layers-doc-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("usage.db");
/// use llm_layers::{
///     ChatBody, LlmRequest, price::Prices, provider::Echo,
///     usage::{Durability, LedgerReader, QueueOptions, SqliteLedger, UsageLayer, UsageQuery},
/// };
/// use std::time::Duration;
/// use tower::{Layer, ServiceExt};
///
/// let (sink, worker) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default())?;
/// let service = UsageLayer::new(sink, Prices::default()).layer(Echo::new());
/// service.oneshot(LlmRequest::new("acme/one", ChatBody::builder().user("Hello!").build()?)).await?;
///
/// let report = worker.shutdown(Duration::from_secs(5)).await;
/// assert_eq!((report.written, report.left), (1, 0));
/// let totals = LedgerReader::open(&path).await?.totals(&UsageQuery::new()).await?;
/// assert_eq!((totals.calls, totals.unpriced_calls), (1, 1));
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok(())
/// # }
/// ```
pub struct SqliteLedger {
    connection: Connection,
    path: Arc<Path>,
    durability: Durability,
    file: Option<FileId>,
}

/// How long somebody else's lock is waited for, each time.
const BUSY: Duration = Duration::from_secs(1);

/// What the one who writes remembers of the file: the pages of a large group, for events go to the ends of its tables.
const CACHE_KIB: i64 = 1024;

impl SqliteLedger {
    /// Opens the ledger in this file, which is made if there is none. Blocks, for a second or so if it is locked. A file
    /// of an older version is brought up to date, which takes some seconds for each million of events.
    ///
    /// # Errors
    ///
    /// All but [`Overflow`](super::LedgerErrorKind::Overflow). Nothing was changed then.
    pub fn open(path: impl AsRef<Path>, durability: Durability) -> Result<Self, LedgerError> {
        let path = absolute(path.as_ref())?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut connection = open(&path, flags, BUSY)?;
        SCHEMA.create(&mut connection).map_err(|problem| LedgerError::of(&path, problem))?;
        let set = sqlite::set_durability(&connection, durability)
            .and_then(|()| connection.pragma_update(None, "cache_size", -CACHE_KIB))
            // Each department would look for the event that was written right before it.
            .and_then(|()| connection.pragma_update(None, "foreign_keys", false));
        set.map_err(|error| LedgerError::of(&path, error))?;
        let file = FileId::of(&path);
        Ok(Self { connection, path, durability, file })
    }

    /// Opens the ledger, and starts a thread that writes into it what the sink is given.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn start(
        path: impl AsRef<Path>,
        durability: Durability,
        options: QueueOptions,
    ) -> Result<(QueueSink, Worker), LedgerError> {
        let ledger = Self::open(path, durability)?;
        let path = Arc::clone(&ledger.path);
        QueueSink::start(ledger, options).map_err(|error| LedgerError::failed(&path, error))
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file anew if another has taken its place. One that is gone is not made again: whoever asks what was used up
    /// would be told that it is nothing.
    fn follow(&mut self) -> Result<(), LedgerError> {
        match FileId::of(&self.path) {
            None => Err(LedgerError::new(&self.path, LedgerErrorKind::Unreachable)),
            file if file == self.file => Ok(()),
            Some(_) => {
                *self = Self::open(&self.path, self.durability)?;
                Ok(())
            }
        }
    }

    fn insert(&mut self, group: &[UsageEvent]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        add(&transaction, group)?;
        transaction.commit()
    }
}

#[cfg(feature = "redis")]
impl SqliteLedger {
    /// How far a stream was copied into the file that stands there now; `None` if nothing of it was.
    pub(in crate::usage) fn copied(&mut self, stream: &str) -> Result<Option<Box<str>>, LedgerError> {
        self.follow()?;
        let cursor = || {
            self.connection.execute_batch(COPIED)?;
            let mut cursor = self.connection.prepare_cached("SELECT cursor FROM copied WHERE stream = ?1")?;
            cursor.query_row([stream], |row| row.get(0)).optional()
        };
        cursor().map_err(|error| LedgerError::of(&self.path, error))
    }

    /// Writes what was read of a stream, and how far it was: all or none. Into the file that was asked how far, whatever stands there
    /// now: another has places of its own.
    pub(in crate::usage) fn copy(
        &mut self,
        group: &[UsageEvent],
        stream: &str,
        cursor: &str,
    ) -> Result<(), LedgerError> {
        let mut copy = || {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            add(&transaction, group)?;
            let mut row = transaction.prepare_cached(
                "INSERT INTO copied (stream, cursor) VALUES (?1, ?2)
                 ON CONFLICT DO UPDATE SET cursor = excluded.cursor",
            )?;
            row.execute((stream, cursor))?;
            drop(row);
            transaction.commit()
        };
        copy().map_err(|error| LedgerError::of(&self.path, error))
    }
}

fn add(transaction: &Transaction<'_>, group: &[UsageEvent]) -> rusqlite::Result<()> {
    let mut event_row = transaction.prepare_cached(INSERT_EVENT)?;
    let mut department_row = transaction.prepare_cached(INSERT_DEPARTMENT)?;
    let mut unset = u64::MAX;
    for event in group {
        bind(Columns { row: &mut event_row, next: 1, unset: &mut unset }, event)?;
        // An event that is there already is there with its departments.
        if event_row.raw_execute()? == 1 {
            let (seq, ended_at) = (transaction.last_insert_rowid(), nanos(event.ended_at));
            for department in event.context.department_ids() {
                department_row.execute((seq, &**department, ended_at))?;
            }
        }
    }
    Ok(())
}

impl UsageStore for SqliteLedger {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.follow()?;
        self.insert(group).map_err(|error| {
            let is_events_fault = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::TooBig | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch)
            );
            let error = LedgerError::of(&self.path, error);
            if is_events_fault { Refused::new(error).into() } else { error.into() }
        })
    }

    fn knows_refusals(&self) -> bool {
        true
    }
}

impl Drop for SqliteLedger {
    /// Brings all into the one file, whoever has it open besides: those who copy it copy no other.
    fn drop(&mut self) {
        // What lies beside another file that has taken its place is no longer ours.
        if FileId::of(&self.path) == self.file {
            // What fails is in the log beside it, as it was.
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(truncate)", (), |_| Ok(()));
        }
    }
}

impl fmt::Debug for SqliteLedger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLedger").field("path", &self.path).finish_non_exhaustive()
    }
}

const INSERT_DEPARTMENT: &str =
    "INSERT INTO departments (event, department, ended_at) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";

const INSERT_EVENT: &str = "
INSERT INTO events (
    id, ended_at, tenant, user, agent, task_type, request_id, requested, model, answered, provider, attempt, streamed,
    input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cache_write_1h_tokens, reasoning_tokens, certainty,
    cost, price_entry, price_source, price_version, latency, first_content, outcome, cache, cache_age,
    saved_input_tokens, saved_output_tokens, saved_cache_read_tokens, saved_cache_write_tokens,
    saved_cache_write_1h_tokens, saved_reasoning_tokens, saved_certainty,
    saved_cost, saved_price_entry, saved_price_source, saved_price_version, cache_reason, conversation, lease,
    service_tier, assumed_cost
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?,
    ?, ?
) ON CONFLICT DO NOTHING";

fn bind(mut columns: Columns<'_, '_>, event: &UsageEvent) -> rusqlite::Result<()> {
    let UsageEvent { id, ended_at, context, requested, model, answered, provider, attempt, streamed, .. } =
        event;
    let UsageEvent { lease, usage, cost, saved, latency, first_content, outcome, cache, cache_miss, .. } =
        event;
    let UsageEvent { assumed_cost, service_tier, .. } = event;
    let (age, reason) = match cache {
        CacheStatus::Hit { age } => (Some(stored_duration(*age)), None),
        CacheStatus::Miss => (None, cache_miss.map(MissReason::as_str)),
        CacheStatus::Bypass(reason) => (None, Some(reason.as_str())),
        CacheStatus::Unused | CacheStatus::Coalesced => (None, None),
    };
    columns.bind(Some(id.to_bytes()))?;
    columns.bind(Some(nanos(*ended_at)))?;
    columns.bind(context.tenant_id())?;
    columns.bind(context.user_id())?;
    columns.bind(context.agent_name())?;
    columns.bind(context.task_type())?;
    columns.bind(context.request_id())?;
    columns.bind(Some(requested.as_str()))?;
    columns.bind(Some(model.as_str()))?;
    columns.bind(answered.as_deref())?;
    columns.bind(provider.as_deref())?;
    columns.bind(Some(attempt))?;
    columns.bind(Some(streamed))?;
    columns.usage(Some(usage))?;
    columns.cost(Some(cost))?;
    columns.bind(Some(stored_duration(*latency)))?;
    columns.bind(first_content.map(stored_duration))?;
    columns.bind(Some(outcome.as_str()))?;
    columns.bind(Some(cache.as_str()))?;
    columns.bind(age)?;
    columns.usage(saved.as_ref().map(|saved| &saved.usage))?;
    columns.cost(saved.as_ref().map(|saved| &saved.cost))?;
    columns.bind(reason)?;
    columns.bind(context.conversation_id())?;
    columns.bind(lease.map(CallId::to_bytes))?;
    columns.bind(service_tier.map(ServiceTier::name))?;
    columns.bind(assumed_cost.map(NanoUsd::nanos))
}

/// Fills a row from left to right.
struct Columns<'a, 'conn> {
    row: &'a mut Statement<'conn>,
    next: usize,
    /// Columns that are `NULL` since the row before, by bit: most of each row are, and stay so.
    unset: &'a mut u64,
}

impl Columns<'_, '_> {
    fn bind(&mut self, value: Option<impl rusqlite::ToSql>) -> rusqlite::Result<()> {
        let (column, bit) = (self.next, 1 << self.next);
        self.next += 1;
        if value.is_none() && *self.unset & bit != 0 {
            return Ok(());
        }
        *self.unset = if value.is_none() { *self.unset | bit } else { *self.unset & !bit };
        self.row.raw_bind_parameter(column, value)
    }

    fn usage(&mut self, usage: Option<&TokenUsage>) -> rusqlite::Result<()> {
        let mut tokens =
            |of: fn(&TokenUsage) -> Option<u64>| self.bind(usage.and_then(of).map(stored_tokens));
        tokens(|usage| usage.input_tokens)?;
        tokens(|usage| usage.output_tokens)?;
        tokens(|usage| usage.cache_read_tokens)?;
        tokens(|usage| usage.cache_write_tokens)?;
        tokens(|usage| usage.cache_write_1h_tokens)?;
        tokens(|usage| usage.reasoning_tokens)?;
        self.bind(usage.map(|usage| match usage.certainty {
            Certainty::Exact => "exact",
            Certainty::Estimated => "estimated",
            Certainty::Unknown => "unknown",
        }))
    }

    fn cost(&mut self, cost: Option<&Cost>) -> rusqlite::Result<()> {
        let origin = cost.and_then(|cost| cost.origin.as_ref());
        self.bind(cost.and_then(|cost| cost.amount).map(|amount| amount.nanos()))?;
        self.bind(origin.map(|origin| &*origin.entry))?;
        self.bind(origin.map(|origin| &*origin.source))?;
        self.bind(origin.map(|origin| &*origin.version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        RequestContext,
        fallback::Backoff,
        usage::{EventId, LedgerErrorKind, UsageSink},
    };
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::UNIX_EPOCH,
    };

    fn event(number: u128, department: &str) -> UsageEvent {
        UsageEvent {
            id: EventId::from_bytes(number.to_be_bytes()),
            context: RequestContext::new().with_departments([department]),
            ..UsageEvent::new("m", TokenUsage::new(1, 1), UNIX_EPOCH)
        }
    }

    fn in_directory(test: &str, run: impl FnOnce(&Path)) {
        let directory = std::env::temp_dir().join(format!("llm-layers-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        run(&directory.join("usage.db"));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    /// A disk that has this many pages.
    fn set_pages(ledger: &SqliteLedger, pages: i64) {
        ledger.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())).unwrap();
    }

    fn events(ledger: &SqliteLedger) -> i64 {
        ledger.connection.query_row("SELECT count(*) FROM events", (), |row| row.get(0)).unwrap()
    }

    fn failure(ledger: &mut SqliteLedger, group: &[UsageEvent]) -> LedgerErrorKind {
        let error = ledger.write(group).unwrap_err();
        assert!(error.to_string().contains("usage.db"), "{error}");
        error.downcast_ref::<LedgerError>().unwrap().kind()
    }

    #[test]
    fn all_is_in_the_one_file_when_nobody_writes_any_more() {
        in_directory("one-file", |path| {
            let mut ledger = SqliteLedger::open(path, Durability::Kill).unwrap();
            ledger.write(&[event(1, "a"), event(2, "b")]).unwrap();
            let open = |path: &Path| sqlite::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY, BUSY).unwrap();
            let reads = open(path);
            let count = |connection: &Connection| {
                connection.query_row("SELECT count(*) FROM events", (), |row| row.get::<_, i64>(0)).unwrap()
            };
            assert_eq!(count(&reads), 2);
            drop(ledger);
            let copy = path.with_extension("copy");
            std::fs::copy(path, &copy).unwrap();
            let copied = open(&copy);
            assert_eq!((count(&copied), count(&reads)), (2, 2));
        });
    }

    #[test]
    fn what_lies_beside_another_file_is_left_alone() {
        in_directory("another-file", |path| {
            drop(SqliteLedger::open(path.with_extension("new"), Durability::Kill).unwrap());
            let mut ledger = SqliteLedger::open(path, Durability::Kill).unwrap();
            ledger.write(&[event(1, "a")]).unwrap();
            let log = || std::fs::metadata(path.with_extension("db-wal")).unwrap().len();
            let before = log();
            std::fs::rename(path.with_extension("new"), path).unwrap();
            drop(ledger);
            assert!(before > 0 && log() == before, "{} of {before}", log());
        });
    }

    #[test]
    fn a_group_is_written_whole_or_not_at_all() {
        in_directory("whole", |path| {
            let mut ledger = SqliteLedger::open(path, Durability::Memory).unwrap();
            ledger.write(&[event(1, "a")]).unwrap();
            let group = [event(2, "b"), event(3, &"x".repeat(300_000))];
            set_pages(&ledger, 20);
            assert_eq!(failure(&mut ledger, &group), LedgerErrorKind::Full);
            assert_eq!(events(&ledger), 1);
            set_pages(&ledger, 1_000_000);
            ledger.connection.pragma_update(None, "query_only", true).unwrap();
            assert_eq!(failure(&mut ledger, &group), LedgerErrorKind::ReadOnly);
            ledger.connection.pragma_update(None, "query_only", false).unwrap();
            ledger.write(&group).unwrap();
            assert_eq!(events(&ledger), 3);
        });
    }

    #[test]
    fn an_event_that_the_tables_do_not_take_is_its_own_fault_and_not_the_files() {
        in_directory("rule", |path| {
            let mut ledger = SqliteLedger::open(path, Durability::Memory).unwrap();
            let rule = "CREATE TRIGGER rule BEFORE INSERT ON departments WHEN NEW.department = 'b'
                        BEGIN SELECT RAISE(ABORT, 'not b'); END";
            ledger.connection.execute_batch(rule).unwrap();
            let error = ledger.write(&[event(1, "a"), event(2, "b")]).unwrap_err();
            assert!(error.is::<Refused>(), "{error}");
            assert!(error.source().unwrap().to_string().contains("usage.db"));
            assert_eq!(events(&ledger), 0);
        });
    }

    /// Has room when it is told so.
    struct Disk(SqliteLedger, Arc<AtomicBool>);

    impl UsageStore for Disk {
        fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
            set_pages(&self.0, if self.1.load(Ordering::Acquire) { 1_000_000 } else { 20 });
            self.0.write(group)
        }
    }

    #[test]
    fn events_wait_for_room_on_a_full_disk() {
        in_directory("room", |path| {
            let has_room = Arc::new(AtomicBool::new(false));
            let store = Disk(SqliteLedger::open(path, Durability::Kill).unwrap(), Arc::clone(&has_room));
            let soon = Backoff::new(Duration::ZERO, Duration::ZERO);
            let (sink, worker) = QueueSink::start(store, QueueOptions::default().with_backoff(soon)).unwrap();
            let record = |event| sink.admit().unwrap().record(event);
            (0..9).for_each(|n| record(event(n, &"x".repeat(50_000))));
            while sink.is_healthy() {
                std::thread::yield_now();
            }
            assert!(worker.report().last_error.unwrap().contains("no room"));
            has_room.store(true, Ordering::Release);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let report = runtime.block_on(worker.shutdown(Duration::from_secs(20)));
            assert_eq!((report.written, report.left, report.last_error), (9, 0, None));
            assert_eq!(events(&SqliteLedger::open(path, Durability::Kill).unwrap()), 9);
        });
    }
}
