//! A query as a statement: fragments that are written here, and what is asked for only in bound parameters.

use super::schema::{ASSUMED, LEASED, TIMED_DEPARTMENTS};
use crate::{
    CallId,
    price::NanoUsd,
    usage::{
        GroupBy, UsageQuery, Window,
        query::{Sums, day_name, nanos},
    },
};
use rusqlite::{Connection, Row, types::Value};
use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
};

/// Of one row: the department if it is a sum over departments, and the key.
pub(super) type Key = (Option<Box<str>>, Vec<Option<Box<str>>>);

pub(super) enum Over {
    Events,
    Departments,
}

struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    /// `condition` ends where the parameter goes.
    fn and(&mut self, condition: &'static str, value: Option<impl Into<Value>>, end: &'static str) {
        let Some(value) = value else { return };
        self.values.push(value.into());
        let start = if self.sql.is_empty() { " WHERE " } else { " AND " };
        let _ = write!(self.sql, "{start}{condition}?{}{end}", self.values.len());
    }
}

/// What a department was charged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Charged {
    /// Attempts that share a lease are one.
    pub(crate) requests: u64,
    pub(crate) tokens: u64,
    pub(crate) cost: NanoUsd,
}

/// Runs a query over tables of this version; what is in no group is not in the answer. Ends with the first group beyond `most`.
pub(super) fn run(
    connection: &Connection,
    query: &UsageQuery,
    over: &Over,
    groups: &[GroupBy],
    version: i64,
    most: usize,
) -> rusqlite::Result<BTreeMap<Key, Sums>> {
    let (sql, values) = statement(query, over, groups, version >= TIMED_DEPARTMENTS);
    let mut sums = BTreeMap::<Key, Sums>::new();
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    while sums.len() <= most
        && let Some(row) = rows.next()?
    {
        let (key, more) = read(row, groups)?;
        // Months come in days.
        sums.entry(key).or_default().add(&more);
    }
    Ok(sums)
}

/// What a department was charged for what ended in each of these windows, but for what belongs to these leases; `None` if a sum
/// is too large for anybody.
pub(super) fn charged<const N: usize>(
    connection: &Connection,
    department: &str,
    windows: [Window; N],
    except: &[CallId],
    version: i64,
) -> rusqlite::Result<Option<[Charged; N]>> {
    let windows = windows.map(|window| (nanos(window.from), nanos(window.until)));
    let mut charges = windows.map(|_| Charges::default());
    let from = windows.iter().map(|(from, _)| *from).min();
    let until = windows.iter().map(|(_, until)| *until).max();
    let except: HashSet<_> = except.iter().map(|lease| lease.to_bytes()).collect();
    let mut statement = connection.prepare_cached(&charged_rows(version))?;
    let mut rows = statement.query((department, from, until))?;
    while let Some(row) = rows.next()? {
        let lease: Option<[u8; 16]> = row.get(1)?;
        if lease.is_some_and(|lease| except.contains(&lease)) {
            continue;
        }
        let ended_at: i64 = row.get(0)?;
        let (input, output, cost) = (row.get(2)?, row.get(3)?, row.get(4)?);
        for ((from, until), charges) in windows.iter().zip(&mut charges) {
            if (*from..*until).contains(&ended_at) {
                charges.add(lease, [input, output], cost);
            }
        }
    }
    let charged = charges.map(Charges::charged);
    Ok(charged.iter().all(Option::is_some).then(|| charged.map(Option::unwrap_or_default)))
}

/// What is added up, and not by SQLite: it would keep the leases in a tree, and that in a file if there are many.
#[derive(Default)]
struct Charges {
    unleased: u64,
    /// Nearly in order, for they are minted by the clock: sorted sooner than looked up.
    leases: Vec<[u8; 16]>,
    tokens: i128,
    cost: i128,
}

impl Charges {
    fn add(&mut self, lease: Option<[u8; 16]>, tokens: [Option<i64>; 2], cost: Option<i64>) {
        match lease {
            Some(lease) => self.leases.push(lease),
            None => self.unleased += 1,
        }
        self.tokens += tokens.into_iter().flatten().map(i128::from).sum::<i128>();
        self.cost += i128::from(cost.unwrap_or(0));
    }

    fn charged(mut self) -> Option<Charged> {
        self.leases.sort_unstable();
        self.leases.dedup();
        Some(Charged {
            requests: self.unleased + self.leases.len() as u64,
            tokens: self.tokens.try_into().unwrap_or(u64::MAX),
            cost: NanoUsd::new(i64::try_from(self.cost).ok()?),
        })
    }
}

/// In the order of the index: neighbours are neighbours in the table too.
fn charged_rows(version: i64) -> String {
    let ended_at = if version < TIMED_DEPARTMENTS { "events.ended_at" } else { "departments.ended_at" };
    let lease = if version < LEASED { "NULL" } else { "lease" };
    let cost = if version < ASSUMED { "cost" } else { "coalesce(cost, assumed_cost)" };
    format!(
        "SELECT {ended_at}, {lease}, input_tokens, output_tokens, {cost}
         FROM departments CROSS JOIN events ON events.seq = departments.event
         WHERE department = ?1 AND {ended_at} >= ?2 AND {ended_at} < ?3 AND saved_certainty IS NULL"
    )
}

fn statement(query: &UsageQuery, over: &Over, groups: &[GroupBy], is_timed: bool) -> (String, Vec<Value>) {
    let Conditions { sql: conditions, values } = conditions(query, over, is_timed);
    let (tables, department) = match over {
        Over::Events => ("events", "NULL"),
        Over::Departments => ("events LEFT JOIN departments ON departments.event = events.seq", "department"),
    };
    let mut sql = format!("SELECT {department}, ");
    groups.iter().for_each(|group| {
        let _ = write!(sql, "{}, ", column(*group));
    });
    sql.push_str(
        "count(*), count(CASE WHEN certainty <> 'exact' THEN 1 END), count(*) - count(cost), count(saved_certainty), \
         count(CASE WHEN saved_cost IS NULL THEN saved_certainty END)",
    );
    // In halves, whose sums fit: SQLite gives up where a sum does not.
    for name in Sums::COLUMNS {
        let _ = write!(sql, ", sum({name} >> 32), sum({name} & 4294967295)");
    }
    let _ = write!(sql, " FROM {tables}{conditions} GROUP BY 1");
    (0..groups.len()).for_each(|group| {
        let _ = write!(sql, ", {}", group + 2);
    });
    (sql, values)
}

fn conditions(query: &UsageQuery, over: &Over, is_timed: bool) -> Conditions {
    let UsageQuery { agent, user, tenant, department, model, provider, task_type, outcome, from, until } =
        query;
    let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map(str::to_owned);
    let mut all = Conditions { sql: String::new(), values: Vec::new() };
    let (from, until) = (from.map(nanos), until.map(nanos));
    all.and("agent = ", text(agent), "");
    all.and("user = ", text(user), "");
    all.and("tenant = ", text(tenant), "");
    all.and("model = ", text(model), "");
    all.and("provider = ", text(provider), "");
    all.and("task_type = ", text(task_type), "");
    all.and("outcome = ", outcome.map(|outcome| outcome.as_str().to_owned()), "");
    let is_one = is_timed && department.is_some();
    match over {
        Over::Departments => all.and("department = ", text(department), ""),
        Over::Events if is_one => {
            all.and("seq IN (SELECT event FROM departments WHERE department = ", text(department), "");
            all.and("ended_at >= ", from, "");
            all.and("ended_at < ", until, "");
            all.sql.push(')');
            return all;
        }
        Over::Events => all.and(
            "EXISTS (SELECT 1 FROM departments WHERE event = seq AND department = ",
            text(department),
            ")",
        ),
    }
    if is_one {
        all.and("departments.ended_at >= ", from, "");
        all.and("departments.ended_at < ", until, "");
    } else {
        all.and("events.ended_at >= ", from, "");
        all.and("events.ended_at < ", until, "");
    }
    all
}

const fn column(group: GroupBy) -> &'static str {
    match group {
        GroupBy::Agent => "agent",
        GroupBy::User => "user",
        GroupBy::Tenant => "tenant",
        GroupBy::Model => "model",
        GroupBy::Provider => "provider",
        GroupBy::TaskType => "task_type",
        GroupBy::Outcome => "outcome",
        // Division there rounds towards zero.
        GroupBy::Day | GroupBy::Month => {
            "events.ended_at / 86400000000000 - (events.ended_at < 0 AND events.ended_at % 86400000000000 <> 0)"
        }
    }
}

fn read(row: &Row<'_>, groups: &[GroupBy]) -> rusqlite::Result<(Key, Sums)> {
    let mut at = 0;
    let mut next = || {
        at += 1;
        at - 1
    };
    let department = row.get(next())?;
    let mut key = Vec::with_capacity(groups.len());
    for group in groups {
        key.push(match group {
            GroupBy::Day => Some(day_name(row.get(next())?).into()),
            GroupBy::Month => Some(day_name(row.get(next())?)[..7].into()),
            _ => row.get(next())?,
        });
    }
    let mut count = || row.get(next()).map(i64::unsigned_abs);
    let mut sums = Sums {
        calls: count()?,
        estimated_calls: count()?,
        unpriced_calls: count()?,
        saved_calls: count()?,
        unpriced_saved_calls: count()?,
        columns: Default::default(),
    };
    for sum in &mut sums.columns {
        let (high, low): (Option<i64>, Option<i64>) = (row.get(next())?, row.get(next())?);
        *sum = (i128::from(high.unwrap_or(0)) << 32) + i128::from(low.unwrap_or(0));
    }
    Ok(((department, key), sums))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::sqlite::schema::SCHEMA;
    use std::time::UNIX_EPOCH;

    /// How SQLite goes about a query.
    fn plan((sql, values): (String, Vec<Value>)) -> String {
        let directory = std::env::temp_dir().join(format!("llm-layers-plan-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&directory).unwrap();
        let mut connection = Connection::open(directory.join("usage.db")).unwrap();
        SCHEMA.create(&mut connection).unwrap();
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3));
        let plan = rows.unwrap().collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ");
        std::fs::remove_dir_all(&directory).unwrap();
        plan
    }

    fn asked(query: &UsageQuery, over: &Over) -> String {
        plan(statement(query, over, &[GroupBy::Model], true))
    }

    #[test]
    fn one_department_is_found_without_reading_the_others() {
        let query = UsageQuery::new().with_department("research");
        for query in [query.clone(), query.from(UNIX_EPOCH).until(UNIX_EPOCH)] {
            for over in [Over::Events, Over::Departments] {
                let plan = asked(&query, &over);
                assert!(plan.contains("departments_by_time (department=?"), "{plan}");
                assert!(plan.contains("SEARCH events USING INTEGER PRIMARY KEY"), "{plan}");
                assert!(!plan.contains("SCAN"), "{plan}");
            }
        }
        let plan = asked(&UsageQuery::new().from(UNIX_EPOCH), &Over::Departments);
        assert!(plan.contains("events_by_time (ended_at>?)"), "{plan}");
    }

    #[test]
    fn what_a_department_was_charged_is_added_up_without_a_file_of_sqlites() {
        for version in [1, TIMED_DEPARTMENTS, LEASED, ASSUMED] {
            let values = vec!["research".to_owned().into(), 0.into(), 1.into()];
            let plan = plan((charged_rows(version), values));
            assert!(!plan.contains("TEMP B-TREE"), "{plan}");
            if version >= TIMED_DEPARTMENTS {
                let of_department = "departments_by_time (department=? AND ended_at>? AND ended_at<?)";
                assert!(plan.contains(of_department), "{plan}");
                assert!(!plan.contains("SCAN"), "{plan}");
            }
        }
    }
}
