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
use std::{collections::BTreeMap, fmt::Write};

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

/// What a department was charged for what ended in a window, but for what belongs to these leases; `None` if the sum is too
/// large for anybody.
pub(super) fn charged(
    connection: &Connection,
    department: &str,
    window: Window,
    except: &[CallId],
    version: i64,
) -> rusqlite::Result<Option<Charged>> {
    let charged = |requests: i64, tokens: i128, cost: i128| {
        let (tokens, cost) = (tokens.try_into().unwrap_or(u64::MAX), i64::try_from(cost).ok()?);
        Some(Charged { requests: requests.unsigned_abs(), tokens, cost: NanoUsd::new(cost) })
    };
    if version < LEASED {
        let query = UsageQuery::new().with_department(department).within(window);
        let sums = run(connection, &query, &Over::Events, &[], version, 1)?.into_values().next();
        let totals = sums.unwrap_or_default().totals();
        return Ok(totals.map(|totals| Charged {
            requests: totals.calls.saturating_sub(totals.saved_calls),
            tokens: totals.input_tokens.saturating_add(totals.output_tokens).try_into().unwrap_or(u64::MAX),
            cost: totals.cost,
        }));
    }
    let except: Vec<String> = except.iter().map(ToString::to_string).collect();
    let except = serde_json::to_string(&except).expect("texts");
    let cost = if version < ASSUMED { "cost" } else { "coalesce(cost, assumed_cost)" };
    let mut statement = connection.prepare_cached(&CHARGED.replace("COST", cost))?;
    statement.query_row((department, nanos(window.from), nanos(window.until), except), |row| {
        let sum = |at: usize| {
            let (high, low): (Option<i64>, Option<i64>) = (row.get(at)?, row.get(at + 1)?);
            Ok::<_, rusqlite::Error>((i128::from(high.unwrap_or(0)) << 32) + i128::from(low.unwrap_or(0)))
        };
        Ok(charged(row.get(0)?, sum(1)? + sum(3)?, sum(5)?))
    })
}

const CHARGED: &str = "
SELECT count(DISTINCT coalesce(lease, id)),
    sum(input_tokens >> 32), sum(input_tokens & 4294967295),
    sum(output_tokens >> 32), sum(output_tokens & 4294967295),
    sum(COST >> 32), sum(COST & 4294967295)
FROM events
WHERE seq IN (SELECT event FROM departments WHERE department = ?1 AND ended_at >= ?2 AND ended_at < ?3)
    AND saved_certainty IS NULL
    AND (lease IS NULL OR lease NOT IN (SELECT unhex(value) FROM json_each(?4)))";

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
    fn plan(query: &UsageQuery, over: &Over) -> String {
        let directory = std::env::temp_dir().join(format!("llm-layers-plan-{}", fastrand::u64(..)));
        std::fs::create_dir_all(&directory).unwrap();
        let mut connection = Connection::open(directory.join("usage.db")).unwrap();
        SCHEMA.create(&mut connection).unwrap();
        let (sql, values) = statement(query, over, &[GroupBy::Model], true);
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(rusqlite::params_from_iter(values), |row| row.get::<_, String>(3));
        let plan = rows.unwrap().collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ");
        std::fs::remove_dir_all(&directory).unwrap();
        plan
    }

    #[test]
    fn one_department_is_found_without_reading_the_others() {
        let query = UsageQuery::new().with_department("research");
        for query in [query.clone(), query.from(UNIX_EPOCH).until(UNIX_EPOCH)] {
            for over in [Over::Events, Over::Departments] {
                let plan = plan(&query, &over);
                assert!(plan.contains("departments_by_time (department=?"), "{plan}");
                assert!(plan.contains("SEARCH events USING INTEGER PRIMARY KEY"), "{plan}");
                assert!(!plan.contains("SCAN"), "{plan}");
            }
        }
        let plan = plan(&UsageQuery::new().from(UNIX_EPOCH), &Over::Departments);
        assert!(plan.contains("events_by_time (ended_at>?)"), "{plan}");
    }
}
