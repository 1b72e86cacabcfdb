use super::{
    asker::Asker,
    behind::Behind,
    error::{LedgerError, LedgerErrorKind},
    schema::{SCHEMA, absolute, open},
    select::{self, Charged, Key, Over},
};
use crate::{
    CallId,
    sqlite::FileId,
    usage::{
        DepartmentSums, GroupBy, QueueSink, ReadError, ReadFuture, UsageGroup, UsageQuery, UsageReader,
        UsageSummary, UsageTotals, Window, query::Sums,
    },
};
use rusqlite::{Connection, OpenFlags};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Semaphore;

/// Asks a ledger, which may be written to meanwhile. Clones share its connections.
///
/// Needs a tokio runtime: each query runs on one of its threads for blocking work, over a connection that can only read.
/// Four do at once; others wait for their turn, for whoever opened connections for all of them would be slower. What a
/// [history](crate::quota::UsageHistory) is asked has four of its own, so that no call waits for somebody's large question.
/// It reads the events of the department, if one is asked for; else of the time; without either, all. A file of an older
/// version is asked all the same, by time only. Where another file takes its place, that one is asked from then on.
///
/// # Cancel safety
///
/// A query that is dropped ends soon.
#[derive(Clone)]
pub struct LedgerReader {
    path: Arc<Path>,
    shown: Connections,
    history: Connections,
    behind: Option<Behind>,
    most_groups: usize,
}

/// Those that nobody asks by at the moment, and turns to ask by one.
#[derive(Clone)]
struct Connections {
    idle: Arc<Mutex<Vec<Opened>>>,
    turns: Arc<Semaphore>,
}

/// A connection, and the version of the tables when it was opened: newer ones have the old columns too.
struct Opened {
    connection: Connection,
    version: i64,
    /// Another may take its place.
    file: Option<FileId>,
}

/// How long a lock is waited for: in WAL mode readers meet one only while somebody opens or closes the file.
const BUSY: Duration = Duration::from_secs(5);
/// How long what was just recorded is waited for.
const PATIENCE: Duration = Duration::from_millis(250);
/// How many connections there are of each kind.
const CONNECTIONS: usize = 4;

impl LedgerReader {
    /// Opens the ledger in this file, which must be there.
    ///
    /// # Errors
    ///
    /// [`Unreachable`](LedgerErrorKind::Unreachable), [`Locked`](LedgerErrorKind::Locked),
    /// [`Newer`](LedgerErrorKind::Newer), [`Foreign`](LedgerErrorKind::Foreign), [`Corrupt`](LedgerErrorKind::Corrupt),
    /// [`Failed`](LedgerErrorKind::Failed).
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, LedgerError> {
        let path = absolute(path.as_ref())?;
        let (shown, history) = (Connections::new(), Connections::new());
        let reader = Self { path, shown, history, behind: None, most_groups: usize::MAX };
        reader.run(&reader.history, |_, _| Ok(())).await?;
        Ok(reader)
    }

    /// Whoever asks waits until all is in the ledger that this sink, which writes into it, was given until then. Without it, a
    /// call that ended milliseconds ago may be missing. As a [history](crate::quota::UsageHistory) of what quotas have charged it
    /// waits as long as it takes; everybody else is told what there is if nothing can be written for a quarter of a second.
    #[must_use]
    pub fn behind(mut self, sink: &QueueSink) -> Self {
        self.behind = Some(Behind::Queue(sink.clone()));
        self
    }

    /// As [`behind`](Self::behind), where the sink writes into a stream in Redis that is copied into the ledger.
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn behind_copy(
        mut self,
        sink: &crate::usage::OutboxSink,
        collector: &crate::usage::Collector,
    ) -> Self {
        self.behind = Some(Behind::Copy(sink.clone(), collector.shared()));
        self
    }

    /// Tells of no more groups than these, for they are all in memory at once: there is no bound unless told.
    #[must_use]
    pub const fn with_most_groups(mut self, groups: usize) -> Self {
        self.most_groups = groups;
        self
    }

    /// Adds up what was charged to a department by the events of each window, but for those of these leases.
    ///
    /// # Errors
    ///
    /// As [`totals`](Self::totals), or what was recorded can no longer be written.
    pub(crate) async fn charged<const N: usize>(
        &self,
        department: Arc<str>,
        windows: [Window; N],
        except: Arc<[CallId]>,
    ) -> Result<[Charged; N], LedgerError> {
        if let Some(behind) = &self.behind
            && !behind.catch_up().await
        {
            return Err(LedgerError::failed(&self.path, "what was recorded will not be written"));
        }
        let charged = self.run(&self.history, move |connection, version| {
            select::charged(connection, &department, windows, &except, version)
        });
        charged.await?.ok_or_else(|| LedgerError::new(&self.path, LedgerErrorKind::Overflow))
    }

    /// Adds up the events that `query` means, each once.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), and [`Overflow`](LedgerErrorKind::Overflow).
    pub async fn totals(&self, query: &UsageQuery) -> Result<UsageTotals, LedgerError> {
        let groups = self.totals_by(query, &[]).await?;
        Ok(groups.into_iter().next().map(|group| group.totals).unwrap_or_default())
    }

    /// As [`totals`](Self::totals), for each group; in the order of their keys.
    ///
    /// # Errors
    ///
    /// As [`totals`](Self::totals), and [`TooManyGroups`](LedgerErrorKind::TooManyGroups).
    pub async fn totals_by(
        &self,
        query: &UsageQuery,
        groups: &[GroupBy],
    ) -> Result<Vec<UsageGroup>, LedgerError> {
        let [sums] = self.select(query, [Over::Events], groups).await?;
        self.add_up(sums, group)
    }

    /// Adds up the events that `query` means, each in full for every department that it is charged to; in the order
    /// of departments, then keys.
    ///
    /// # Errors
    ///
    /// As [`totals_by`](Self::totals_by).
    pub async fn department_sums(
        &self,
        query: &UsageQuery,
        groups: &[GroupBy],
    ) -> Result<Vec<DepartmentSums>, LedgerError> {
        let [sums] = self.select(query, [Over::Departments], groups).await?;
        self.add_up(sums, department)
    }

    /// [`totals`](Self::totals), [`totals_by`](Self::totals_by) and [`department_sums`](Self::department_sums) of one moment.
    ///
    /// # Errors
    ///
    /// As [`totals_by`](Self::totals_by).
    pub async fn summary(&self, query: &UsageQuery, groups: &[GroupBy]) -> Result<UsageSummary, LedgerError> {
        let [events, departments] = self.select(query, [Over::Events, Over::Departments], groups).await?;
        let mut all = Sums::default();
        events.values().for_each(|sums| all.add(sums));
        Ok(UsageSummary {
            totals: all.totals().ok_or_else(|| LedgerError::new(&self.path, LedgerErrorKind::Overflow))?,
            groups: self.add_up(events, group)?,
            departments: self.add_up(departments, department)?,
        })
    }

    /// The sums over each of these, of one moment.
    async fn select<const N: usize>(
        &self,
        query: &UsageQuery,
        over: [Over; N],
        groups: &[GroupBy],
    ) -> Result<[BTreeMap<Key, Sums>; N], LedgerError> {
        if let Some(behind) = &self.behind {
            // An outage is no reason not to tell of what was before it.
            let _ = tokio::time::timeout(PATIENCE, behind.catch_up()).await;
        }
        let (query, groups, most) = (query.clone(), groups.to_vec(), self.most_groups);
        let sums = self
            .run(&self.shown, move |connection, version| {
                let _moment = connection.unchecked_transaction()?;
                let mut all = over.map(|over| (over, BTreeMap::new()));
                for (over, sums) in &mut all {
                    *sums = select::run(connection, &query, over, &groups, version, most)?;
                }
                Ok(all.map(|(_, sums)| sums))
            })
            .await?;
        match sums.iter().any(|sums| sums.len() > most) {
            true => Err(LedgerError::new(&self.path, LedgerErrorKind::TooManyGroups)),
            false => Ok(sums),
        }
    }

    fn add_up<T>(
        &self,
        sums: BTreeMap<Key, Sums>,
        row: fn(Key, UsageTotals) -> T,
    ) -> Result<Vec<T>, LedgerError> {
        let rows = sums.into_iter().map(|(key, sums)| Some(row(key, sums.totals()?)));
        rows.collect::<Option<_>>().ok_or_else(|| LedgerError::new(&self.path, LedgerErrorKind::Overflow))
    }

    async fn run<T, F>(&self, connections: &Connections, query: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, i64) -> rusqlite::Result<T> + Send + 'static,
    {
        let (path, connections) = (Arc::clone(&self.path), connections.clone());
        let turn = Arc::clone(&connections.turns).acquire_owned().await.expect("it is never closed");
        let asker = Asker::default();
        let asked = asker.asked();
        let answer = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let file = FileId::of(&path);
            let idle = connections.idle().pop().filter(|idle| idle.file == file);
            let Opened { connection, version, file } = match idle {
                Some(idle) => idle,
                None => connect(&path, file)?,
            };
            let answer = asked
                .run(&connection, |connection| query(connection, version))
                .map_err(|error| LedgerError::of(&path, error))?;
            connections.idle().push(Opened { connection, version, file });
            Ok(answer)
        });
        answer.await.unwrap_or_else(|error| Err(LedgerError::failed(&self.path, error)))
    }

    /// Closes the connections that nobody asks by at the moment: whoever writes is then the last, and leaves one file.
    #[cfg(feature = "config")]
    pub(crate) fn rest(&self) {
        self.shown.idle().clear();
        self.history.idle().clear();
    }
}

impl Connections {
    fn new() -> Self {
        Self { idle: Arc::default(), turns: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Opened>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn group((_, key): Key, totals: UsageTotals) -> UsageGroup {
    UsageGroup { key, totals }
}

fn department((department, key): Key, sums: UsageTotals) -> DepartmentSums {
    DepartmentSums { department, key, sums }
}

fn connect(path: &Arc<Path>, file: Option<FileId>) -> Result<Opened, LedgerError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY, BUSY)?;
    let version = SCHEMA.verify(&connection).map_err(|problem| LedgerError::of(path, problem))?;
    Ok(Opened { connection, version, file })
}

impl UsageReader for LedgerReader {
    fn totals(&self, query: &UsageQuery) -> ReadFuture<UsageTotals> {
        let (reader, query) = (self.clone(), query.clone());
        Box::pin(async move { Ok(reader.totals(&query).await?) })
    }

    fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>> {
        let (reader, query, groups) = (self.clone(), query.clone(), groups.to_vec());
        Box::pin(async move { Ok(reader.totals_by(&query, &groups).await?) })
    }

    fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>> {
        let (reader, query, groups) = (self.clone(), query.clone(), groups.to_vec());
        Box::pin(async move { Ok(reader.department_sums(&query, &groups).await?) })
    }

    fn summary(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<UsageSummary> {
        let (reader, query, groups) = (self.clone(), query.clone(), groups.to_vec());
        Box::pin(async move { Ok(reader.summary(&query, &groups).await?) })
    }
}

impl From<LedgerError> for ReadError {
    fn from(error: LedgerError) -> Self {
        match error.kind() {
            LedgerErrorKind::TooManyGroups => Self::TooManyGroups,
            _ => Self::failed(error),
        }
    }
}

impl fmt::Debug for LedgerReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerReader").field("path", &self.path).finish_non_exhaustive()
    }
}
