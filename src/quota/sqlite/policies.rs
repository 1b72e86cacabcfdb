use super::{
    error::{QuotaFileError, QuotaFileErrorKind},
    store::absolute,
};
use crate::{
    BoxError,
    policies::{DepartmentPolicy, PolicySource, PolicyTable},
    price::{AmountError, NanoUsd},
    quota::Limits,
    sqlite::{self, Schema},
};
use rusqlite::{Connection, OpenFlags, Row, TransactionBehavior, types::ValueRef};
use std::{fmt, path::Path, sync::Arc, time::Duration};

/// Policies in a file of SQLite, which somebody edits while they are in force.
///
/// Table `policies` has a row for each department, `default_policy` one row for all others. Their columns are those of
/// [`Limits`], `NULL` where there is no limit; costs are dollars as text. `models` is a list in JSON of names and
/// patterns, `NULL` for all models; `note` is for whoever edits.
///
/// A [`read`](PolicySource::read) takes all of it at one moment, in one transaction: whoever changes several rows at once
/// does so between `BEGIN` and `COMMIT`. While nobody has committed anything, it costs some microseconds. If any cell is
/// wrong, none of it is taken: see [`BadPolicies`].
///
/// ```
/// # let directory = std::env::temp_dir().join(format!("llm-layers-doc-policies-{}", std::process::id()));
/// # std::fs::create_dir_all(&directory)?;
/// # let path = directory.join("policies.db");
/// use llm_layers::policies::{Policies, SqlitePolicies};
///
/// let policies = Policies::default();
/// let source = SqlitePolicies::open(&path)?;
/// let follower = policies.follow(source, SqlitePolicies::EVERY, |error| eprintln!("still the old policies: {error}"))?;
/// assert!(policies.load().of("research").limits.is_unlimited());
///
/// // By anybody, at any time.
/// rusqlite::Connection::open(&path)?.execute(
///     r#"INSERT INTO policies (department, day_tokens, month_cost, models)
///        VALUES ('research', 1000000, '250', '["openai/*"]')"#,
///     (),
/// )?;
/// while policies.load().of("research").allows("anthropic/claude-sonnet-4-5") {
///     std::thread::yield_now();
/// }
/// assert_eq!(policies.load().of("research").limits.day_tokens, Some(1_000_000));
/// # drop(follower);
/// # std::fs::remove_dir_all(&directory)?;
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub struct SqlitePolicies {
    path: Arc<Path>,
    opened: Option<Opened>,
}

/// Cells in a table of policies that mean nothing. All policies stay as they were before.
#[derive(Debug, Clone)]
pub struct BadPolicies {
    path: Arc<Path>,
    cells: Vec<BadPolicy>,
}

/// A cell that means nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BadPolicy {
    /// Whose row it is in; `None` is the default's, or one that has no name.
    pub department: Option<Arc<str>>,
    /// Which column.
    pub column: Box<str>,
    /// What is wrong with it.
    pub reason: Box<str>,
}

struct Opened {
    connection: Connection,
    /// Which file it is: another one may have been put into its place.
    file: FileId,
    /// What was last read, as a number that changes with each commit of somebody else.
    version: Option<i64>,
}

const SCHEMA: Schema = Schema { application: 0x4c4c_6c70, versions: &[TABLES] };

const TABLES: &str = "
CREATE TABLE policies (
    department TEXT PRIMARY KEY NOT NULL,
    day_requests INTEGER CHECK (day_requests >= 0),
    month_requests INTEGER CHECK (month_requests >= 0),
    day_tokens INTEGER CHECK (day_tokens >= 0),
    month_tokens INTEGER CHECK (month_tokens >= 0),
    day_cost TEXT,
    month_cost TEXT,
    models TEXT,
    note TEXT
) STRICT;
CREATE TABLE default_policy (
    one INTEGER PRIMARY KEY NOT NULL DEFAULT 1 CHECK (one = 1),
    day_requests INTEGER CHECK (day_requests >= 0),
    month_requests INTEGER CHECK (month_requests >= 0),
    day_tokens INTEGER CHECK (day_tokens >= 0),
    month_tokens INTEGER CHECK (month_tokens >= 0),
    day_cost TEXT,
    month_cost TEXT,
    models TEXT,
    note TEXT
) STRICT;
INSERT INTO default_policy (one) VALUES (1);
";

const COLUMNS: [&str; 7] =
    ["day_requests", "month_requests", "day_tokens", "month_tokens", "day_cost", "month_cost", "models"];

/// How long a lock is waited for.
const BUSY: Duration = Duration::from_millis(200);

impl SqlitePolicies {
    /// How often to look: what was committed is in force within half of this on average, and never much later than it.
    pub const EVERY: Duration = Duration::from_millis(250);

    /// Opens the policies in this file, which is made if there is none: then there are no limits. One that may only be
    /// read is enough.
    ///
    /// # Errors
    ///
    /// As [`SqliteStore::open`](super::SqliteStore::open). What is in the tables is not looked at yet.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, QuotaFileError> {
        let path = absolute(path.as_ref())?;
        let opened = match Opened::new(&path) {
            Err(error)
                if matches!(error.kind(), QuotaFileErrorKind::Foreign | QuotaFileErrorKind::Unreachable) =>
            {
                // It is not there, or there is nothing in it.
                make(&path)?;
                Opened::new(&path)?
            }
            opened => opened?,
        };
        Ok(Self { path, opened: Some(opened) })
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl PolicySource for SqlitePolicies {
    fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
        let is_other = |opened: &Opened| FileId::of(&self.path).is_none_or(|file| file != opened.file);
        if self.opened.as_ref().is_none_or(is_other) {
            self.opened = None;
            self.opened = Some(Opened::new(&self.path)?);
        }
        let Some(opened) = &mut self.opened else { return Ok(None) };
        let read = opened.read().map_err(|error| QuotaFileError::of(&self.path, error))?;
        let Some(read) = read else { return Ok(None) };
        read.map(Some).map_err(|cells| BadPolicies { path: Arc::clone(&self.path), cells }.into())
    }
}

fn make(path: &Arc<Path>) -> Result<(), QuotaFileError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = sqlite::open(path, flags, BUSY).map_err(|error| QuotaFileError::of(path, error))?;
    SCHEMA.create(&mut connection).map_err(|problem| QuotaFileError::of(path, problem))
}

// ===== impl Opened =====

impl Opened {
    fn new(path: &Arc<Path>) -> Result<Self, QuotaFileError> {
        let unreachable = || QuotaFileError::new(path, QuotaFileErrorKind::Unreachable);
        // Before it is opened: if it is exchanged just then, it is opened once more.
        let file = FileId::of(path).ok_or_else(unreachable)?;
        let connection = sqlite::open(path, OpenFlags::SQLITE_OPEN_READ_ONLY, BUSY)
            .map_err(|error| QuotaFileError::of(path, error))?;
        SCHEMA.verify(&connection).map_err(|problem| QuotaFileError::of(path, problem))?;
        Ok(Self { connection, file, version: None })
    }

    /// The table, if somebody has committed something since.
    fn read(&mut self) -> rusqlite::Result<Option<Result<PolicyTable, Vec<BadPolicy>>>> {
        // One snapshot, from the first statement on.
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
        let version = transaction.pragma_query_value(None, "data_version", |row| row.get(0))?;
        if self.version == Some(version) {
            return Ok(None);
        }
        let mut bad = Vec::new();
        let otherwise = rows(&transaction, "SELECT * FROM default_policy", &mut bad)?;
        let departments = rows(&transaction, "SELECT * FROM policies", &mut bad)?;
        transaction.commit()?;
        // Not before: what could not be read is read again.
        self.version = Some(version);
        if !bad.is_empty() {
            return Ok(Some(Err(bad)));
        }
        let otherwise = otherwise.into_iter().next().map(|(_, policy)| policy).unwrap_or_default();
        let table =
            departments.into_iter().fold(PolicyTable::new(otherwise), |table, (department, policy)| {
                match department {
                    Some(department) => table.with(department, policy),
                    None => table,
                }
            });
        Ok(Some(Ok(table)))
    }
}

type Policy = (Option<Arc<str>>, DepartmentPolicy);

fn rows(
    connection: &Connection,
    sql: &'static str,
    bad: &mut Vec<BadPolicy>,
) -> rusqlite::Result<Vec<Policy>> {
    let mut select = connection.prepare(sql)?;
    let columns: Vec<Box<str>> = select.column_names().map(Into::into).collect();
    for missing in COLUMNS.iter().filter(|name| !columns.iter().any(|column| &**column == **name)) {
        bad.push(BadPolicy { department: None, column: (*missing).into(), reason: "is missing".into() });
    }
    let mut rows = select.query(())?;
    let mut policies = Vec::new();
    while let Some(row) = rows.next()? {
        policies.push(policy(row, &columns, bad)?);
    }
    Ok(policies)
}

fn policy(row: &Row<'_>, columns: &[Box<str>], bad: &mut Vec<BadPolicy>) -> rusqlite::Result<Policy> {
    let (mut policy, mut department) = (DepartmentPolicy::default(), None);
    if let Some(at) = columns.iter().position(|column| &**column == "department") {
        match row.get_ref(at)?.as_str() {
            Ok(name) => department = Some(name.into()),
            Err(_) => bad.push(BadPolicy {
                department: None,
                column: "department".into(),
                reason: "is not a text".into(),
            }),
        }
    }
    for (at, column) in columns.iter().enumerate() {
        let value = row.get_ref(at)?;
        let Limits { day_requests, month_requests, day_tokens, month_tokens, day_cost, month_cost, .. } =
            &mut policy.limits;
        let read = match &**column {
            "day_requests" => number(value).map(|limit| *day_requests = limit),
            "month_requests" => number(value).map(|limit| *month_requests = limit),
            "day_tokens" => number(value).map(|limit| *day_tokens = limit),
            "month_tokens" => number(value).map(|limit| *month_tokens = limit),
            "day_cost" => money(value).map(|limit| *day_cost = limit),
            "month_cost" => money(value).map(|limit| *month_cost = limit),
            "models" => models(value).map(|names| {
                policy.models = names.map(|names| names.into_iter().collect());
            }),
            "department" | "one" | "note" => Ok(()),
            // A limit that nobody knows would not be kept.
            _ if value != ValueRef::Null => Err("is a column that is not known".into()),
            _ => Ok(()),
        };
        if let Err(reason) = read {
            bad.push(BadPolicy { department: department.clone(), column: column.clone(), reason });
        }
    }
    Ok((department, policy))
}

fn number(value: ValueRef<'_>) -> Result<Option<u64>, Box<str>> {
    match value {
        ValueRef::Null => Ok(None),
        ValueRef::Integer(number) => match u64::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err("is negative".into()),
        },
        _ => Err("is not a whole number".into()),
    }
}

/// Dollars.
fn money(value: ValueRef<'_>) -> Result<Option<NanoUsd>, Box<str>> {
    let text = match value {
        ValueRef::Null => return Ok(None),
        ValueRef::Integer(dollars) => dollars.to_string(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
        _ => return Err("is not dollars as text".into()),
    };
    text.parse().map(Some).map_err(|error: AmountError| error.to_string().into())
}

fn models(value: ValueRef<'_>) -> Result<Option<Vec<String>>, Box<str>> {
    let text = match value {
        ValueRef::Null => return Ok(None),
        ValueRef::Text(text) => text,
        _ => return Err("is not a text".into()),
    };
    let names: Vec<String> = serde_json::from_slice(text).map_err(|_| r#"is not a list such as ["a/*"]"#)?;
    if names.iter().any(|name| name.trim().is_empty()) {
        return Err("has a name that is empty".into());
    }
    Ok(Some(names))
}

/// Which file it is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId((u64, u64));

impl FileId {
    /// `None` if there is no file.
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        #[cfg(unix)]
        let id = (std::os::unix::fs::MetadataExt::dev(&found), std::os::unix::fs::MetadataExt::ino(&found));
        // Where files that are open cannot be exchanged.
        #[cfg(not(unix))]
        let id = (0, u64::from(found.is_file()));
        Some(Self(id))
    }
}

// ===== impl BadPolicies =====

impl BadPolicies {
    /// Which cells, at least one.
    pub fn cells(&self) -> &[BadPolicy] {
        &self.cells
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for BadPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policies {}: ", self.path.display())?;
        let (shown, more) = self.cells.split_at(self.cells.len().min(3));
        for (n, cell) in shown.iter().enumerate() {
            let separator = if n > 0 { "; " } else { "" };
            match &cell.department {
                Some(department) => write!(f, "{separator}{department:?} {}: {}", cell.column, cell.reason)?,
                None => write!(f, "{separator}default {}: {}", cell.column, cell.reason)?,
            }
        }
        if more.is_empty() { Ok(()) } else { write!(f, "; and {} more", more.len()) }
    }
}

impl std::error::Error for BadPolicies {}

impl fmt::Debug for SqlitePolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlitePolicies").field("path", &self.path).finish_non_exhaustive()
    }
}
