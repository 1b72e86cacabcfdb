//! A query as a statement: fragments that are written here, and what is asked for only in bound parameters.

use crate::usage::{
    GroupBy, UsageQuery,
    query::{Sums, day_name, nanos},
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

/// Runs a query; what is in no group is not in the answer.
pub(super) fn run(
    connection: &Connection,
    query: &UsageQuery,
    over: &Over,
    groups: &[GroupBy],
) -> rusqlite::Result<BTreeMap<Key, Sums>> {
    let Conditions { sql: conditions, values } = conditions(query, over);
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

    let mut sums = BTreeMap::<Key, Sums>::new();
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let (key, more) = read(row, groups)?;
        // Months come in days.
        sums.entry(key).or_default().add(&more);
    }
    Ok(sums)
}

fn conditions(query: &UsageQuery, over: &Over) -> Conditions {
    let UsageQuery { agent, user, tenant, department, model, provider, task_type, outcome, from, until } =
        query;
    let text = |value: &Option<std::sync::Arc<str>>| value.as_deref().map(str::to_owned);
    let mut all = Conditions { sql: String::new(), values: Vec::new() };
    all.and("ended_at >= ", from.map(nanos), "");
    all.and("ended_at < ", until.map(nanos), "");
    all.and("agent = ", text(agent), "");
    all.and("user = ", text(user), "");
    all.and("tenant = ", text(tenant), "");
    all.and("model = ", text(model), "");
    all.and("provider = ", text(provider), "");
    all.and("task_type = ", text(task_type), "");
    all.and("outcome = ", outcome.map(|outcome| outcome.as_str().to_owned()), "");
    match over {
        Over::Departments => all.and("department = ", text(department), ""),
        Over::Events => all.and(
            "EXISTS (SELECT 1 FROM departments WHERE event = seq AND department = ",
            text(department),
            ")",
        ),
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
            "ended_at / 86400000000000 - (ended_at < 0 AND ended_at % 86400000000000 <> 0)"
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
