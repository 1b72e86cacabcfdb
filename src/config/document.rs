//! TOML as a plain value, and where each entry stands.

use super::problem::Problem;
use serde_json::{Map, Number, Value};
use std::collections::HashMap;
use toml::de::{DeTable, DeValue};

/// Where entries stand in a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lines(HashMap<String, usize>);

impl Lines {
    /// The line of an entry, or of the table in which it is missing.
    pub(crate) fn of(&self, entry: &str) -> Option<usize> {
        let mut entry = entry;
        loop {
            if let Some(line) = self.0.get(entry) {
                return Some(*line);
            }
            entry = parent(entry)?;
        }
    }

    /// Whether the entry was given at all.
    pub(crate) fn has(&self, entry: &str) -> bool {
        self.0.contains_key(entry)
    }
}

/// The entry that this one is a part of.
fn parent(entry: &str) -> Option<&str> {
    let mut is_quoted = false;
    let mut end = None;
    let mut is_escaped = false;
    for (at, letter) in entry.char_indices() {
        match letter {
            '"' if !is_escaped => is_quoted = !is_quoted,
            '.' | '[' if !is_quoted => end = Some(at),
            _ => {}
        }
        is_escaped = letter == '\\' && !is_escaped;
    }
    end.map(|end| &entry[..end])
}

/// The name of a field in the table `path`.
pub(crate) fn field(path: &str, name: &str) -> String {
    let is_plain =
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let name = if is_plain { name.to_owned() } else { format!("{name:?}") };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// The name of a place in the list `path`.
pub(crate) fn place(path: &str, at: usize) -> String {
    format!("{path}[{at}]")
}

pub(super) struct Document {
    pub(super) value: Value,
    pub(super) lines: Lines,
}

impl Document {
    /// Reads TOML.
    ///
    /// # Errors
    ///
    /// All that is not TOML.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(text);
        // Newlines up to a place are counted by bisection: a file is read in one pass, whatever its length.
        let ends: Vec<usize> = memchr::memchr_iter(b'\n', text.as_bytes()).collect();
        let line = |at: usize| 1 + ends.partition_point(|end| *end < at);
        if !errors.is_empty() {
            // One word on all of it, rather than one on each line.
            if let Some((at, what)) = foreign(text) {
                let what = format!("this looks like {what}, and a configuration is TOML");
                return Err(vec![Problem { line: Some(at + 1), ..Problem::new("", what) }]);
            }
            let problem = |error: toml::de::Error| {
                let at = error.span().map_or(0, |span| span.start);
                Problem { line: Some(line(at)), ..Problem::new("", error.message()) }
            };
            return Err(errors.into_iter().map(problem).collect());
        }
        let mut lines = Lines::default();
        let value = object(table.get_ref(), "", &line, &mut lines);
        Ok(Self { value, lines })
    }
}

/// What a text looks like that is no TOML, and at which line, from 0.
fn foreign(text: &str) -> Option<(usize, &'static str)> {
    let mut lines = text.lines().map(str::trim).enumerate();
    let is_said = |line: &str| !(line.is_empty() || line.starts_with('#') || line == "---");
    let (at, first) = lines.find(|(_, line)| is_said(line))?;
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let is_yaml = match first.split_once(':') {
        _ if first.starts_with("- ") => true,
        Some((name, rest)) => is_name(name) && (rest.is_empty() || rest.starts_with(' ')),
        None => false,
    };
    match first.starts_with('{') {
        true => Some((at, "JSON")),
        false => is_yaml.then_some((at, "YAML")),
    }
}

fn object(table: &DeTable<'_>, path: &str, line: &dyn Fn(usize) -> usize, lines: &mut Lines) -> Value {
    let entry = |(name, value): (&toml::Spanned<std::borrow::Cow<'_, str>>, &toml::Spanned<DeValue<'_>>)| {
        let path = field(path, name.get_ref());
        lines.0.insert(path.clone(), line(name.span().start));
        (name.get_ref().to_string(), convert(value.get_ref(), &path, line, lines))
    };
    Value::Object(table.iter().map(entry).collect::<Map<_, _>>())
}

fn convert(value: &DeValue<'_>, path: &str, line: &dyn Fn(usize) -> usize, lines: &mut Lines) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(is) => Value::Bool(*is),
        DeValue::Integer(number) => i64::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map_or(Value::Null, |number| Value::Number(number.into())),
        DeValue::Float(number) => {
            let number = number.as_str().replace('_', "").parse().ok().and_then(Number::from_f64);
            number.map_or(Value::Null, Value::Number)
        }
        // Nothing here is a time of the calendar.
        DeValue::Datetime(_) => Value::Null,
        DeValue::Array(values) => {
            let item = |(at, value): (usize, &toml::Spanned<DeValue<'_>>)| {
                let path = place(path, at);
                lines.0.insert(path.clone(), line(value.span().start));
                convert(value.get_ref(), &path, line, lines)
            };
            Value::Array(values.iter().enumerate().map(item).collect())
        }
        DeValue::Table(table) => object(table, path, line, lines),
    }
}
