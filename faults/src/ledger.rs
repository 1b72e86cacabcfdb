//! What a gateway has recorded, read from its file.

use rusqlite::{Connection, OpenFlags};
use std::path::Path;

/// One record.
#[derive(Debug, Clone)]
pub struct Event {
    /// The id of the request.
    pub request_id: String,
    /// Who asked.
    pub user: Option<String>,
    /// What was asked for, as the provider knows it.
    pub model: String,
    /// Which attempt of the request.
    pub attempt: u16,
    /// How it ended.
    pub outcome: String,
    /// How sure its tokens are.
    pub certainty: String,
    /// Its tokens, in and out.
    pub tokens: (i64, i64),
    /// What it cost, in nano-dollars.
    pub cost: Option<i64>,
    /// Whom it is charged to.
    pub departments: Vec<String>,
}

/// All records in a file, in the order in which they were written; none, if there is no file yet.
///
/// # Panics
///
/// It is no ledger.
pub fn events(path: &Path) -> Vec<Event> {
    if !path.exists() {
        return Vec::new();
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let file = Connection::open_with_flags(path, flags).expect("a ledger");
    file.busy_timeout(std::time::Duration::from_secs(10)).expect("a ledger");
    let mut query = file
        .prepare(
            "SELECT request_id, user, model, outcome, certainty, input_tokens, output_tokens, cost,
                (SELECT group_concat(department, char(10)) FROM departments WHERE event = seq), attempt
            FROM events ORDER BY seq",
        )
        .expect("the tables of a ledger");
    let rows = query.query_map([], |row| {
        let departments: Option<String> = row.get(8)?;
        Ok(Event {
            request_id: row.get::<_, Option<String>>(0)?.unwrap_or_default(),
            user: row.get(1)?,
            model: row.get(2)?,
            attempt: row.get(9)?,
            outcome: row.get(3)?,
            certainty: row.get(4)?,
            tokens: (row.get::<_, Option<i64>>(5)?.unwrap_or(0), row.get::<_, Option<i64>>(6)?.unwrap_or(0)),
            cost: row.get(7)?,
            departments: departments.map(|all| all.lines().map(str::to_owned).collect()).unwrap_or_default(),
        })
    });
    rows.expect("records").collect::<Result<_, _>>().expect("records")
}
