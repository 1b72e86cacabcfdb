use super::Secret;
use std::{cell::RefCell, net::SocketAddr, time::Duration};
use toml::{Table, Value};

/// All that is wrong with a configuration, each with the entry's name in front.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<String>>);

impl Problems {
    pub(super) fn add(&self, entry: &str, what: impl std::fmt::Display) {
        self.0.borrow_mut().push(format!("{entry}: {what}"));
    }

    pub(super) fn into_inner(self) -> Vec<String> {
        self.0.into_inner()
    }
}

/// One table of the file. Its fields are taken out one by one; what is left when it is dropped is unknown.
///
/// Values are never shown: any of them may be a key in the wrong place.
pub(super) struct Section<'a> {
    path: String,
    table: Table,
    problems: &'a Problems,
}

impl<'a> Section<'a> {
    pub(super) const fn new(path: String, table: Table, problems: &'a Problems) -> Self {
        Self { path, table, problems }
    }

    pub(super) fn name(&self, field: &str) -> String {
        let plain = field.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        let field = if plain { field.to_owned() } else { format!("{field:?}") };
        if self.path.is_empty() { field } else { format!("{}.{field}", self.path) }
    }

    pub(super) fn problem(&self, field: &str, what: impl std::fmt::Display) {
        self.problems.add(&self.name(field), what);
    }

    /// Whether nothing is left in it.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.table.contains_key(field)
    }

    /// Leaves all fields out.
    pub(super) fn ignore(&mut self) {
        self.table.clear();
    }

    pub(super) fn decimal(&mut self, field: &str) -> Option<f64> {
        self.read(field, "a number, at least 0", |value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|number| number as f64))?;
            (number.is_finite() && number >= 0.0).then_some(number)
        })
    }

    /// Leaves a field out.
    pub(super) fn take(&mut self, field: &str) -> Option<Value> {
        self.table.remove(field)
    }

    fn read<T>(&mut self, field: &str, expected: &str, read: impl FnOnce(Value) -> Option<T>) -> Option<T> {
        let value = read(self.table.remove(field)?);
        if value.is_none() {
            self.problem(field, format_args!("must be {expected}"));
        }
        value
    }

    pub(super) fn number<T: TryFrom<i64>>(&mut self, field: &str, least: i64, default: T) -> T {
        let expected = format!("an integer, at least {least}");
        let number = self.read(field, &expected, |value| {
            value.as_integer().filter(|number| *number >= least).and_then(|number| number.try_into().ok())
        });
        number.unwrap_or(default)
    }

    pub(super) fn duration(&mut self, field: &str, default: Duration) -> Duration {
        let read = self
            .read(field, "a time such as \"250ms\", \"30s\" or \"5m\"", |value| duration(value.as_str()?));
        read.unwrap_or(default)
    }

    pub(super) fn address(&mut self, field: &str) -> Option<SocketAddr> {
        self.read(field, "an address such as \"127.0.0.1:8080\"", |value| value.as_str()?.parse().ok())
    }

    pub(super) fn flag(&mut self, field: &str, default: bool) -> bool {
        self.read(field, "true or false", |value| value.as_bool()).unwrap_or(default)
    }

    /// A text that is not blank.
    pub(super) fn text(&mut self, field: &str) -> Option<String> {
        self.read(field, "a text that is not empty", text)
    }

    pub(super) fn texts(&mut self, field: &str) -> Vec<String> {
        let read = self.read(field, "a list of texts that are not empty", texts);
        read.unwrap_or_default()
    }

    /// A literal, or the environment variable that holds it.
    pub(super) fn secret(&mut self, field: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<Secret> {
        let secret = match self.table.remove(field)? {
            Value::String(literal) => literal,
            Value::Table(mut table) => match (table.remove("env"), table.is_empty()) {
                (Some(Value::String(name)), true) => match env(&name) {
                    Some(value) => value,
                    None => {
                        self.problem(field, format_args!("the environment variable {name:?} is not set"));
                        return None;
                    }
                },
                _ => {
                    self.problem(field, "must be a text or { env = \"NAME\" }");
                    return None;
                }
            },
            _ => {
                self.problem(field, "must be a text or { env = \"NAME\" }");
                return None;
            }
        };
        if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
            self.problem(field, "must be visible ASCII, and not empty");
            return None;
        }
        Some(Secret(secret))
    }

    /// A table within; an empty one if there is none.
    pub(super) fn section(&mut self, field: &str) -> Self {
        let table = self.read(field, "a table", |value| match value {
            Value::Table(table) => Some(table),
            _ => None,
        });
        Self::new(self.name(field), table.unwrap_or_default(), self.problems)
    }

    /// The tables of an array of tables.
    pub(super) fn sections(&mut self, field: &str) -> Vec<Self> {
        let tables = self.read(field, "an array of tables", |value| match value {
            Value::Array(values) => values.into_iter().map(|value| value.try_into::<Table>().ok()).collect(),
            _ => None,
        });
        let tables: Vec<Table> = tables.unwrap_or_default();
        let path = |at: usize| format!("{}[{at}]", self.name(field));
        tables.into_iter().enumerate().map(|(at, table)| Self::new(path(at), table, self.problems)).collect()
    }

    /// The names of the fields that are left.
    pub(super) fn fields(&self) -> Vec<String> {
        self.table.keys().cloned().collect()
    }

    /// Whether a field is an array of tables, rather than something simple.
    pub(super) fn is_array(&self, field: &str) -> bool {
        self.table.get(field).is_some_and(Value::is_array)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for field in self.table.keys() {
            self.problem(field, "is unknown");
        }
    }
}

fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text),
        _ => None,
    }
}

fn texts(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(values) => values.into_iter().map(text).collect(),
        _ => None,
    }
}

fn duration(text: &str) -> Option<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
    // Nobody waits for a year, and clocks do not overflow.
    (1..=31_536_000_000).contains(&millis).then(|| Duration::from_millis(millis))
}
