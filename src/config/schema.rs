//! Checks a document against the schema that is made of the types, so that all that is wrong is told at once.
//!
//! Only what our own schema has in it is understood. What is wrong is taken out of the document, or put right if it must be
//! there, so that what remains can be read and checked further.

use super::{
    document::{field, place},
    problem::Problem,
    value::{FORMATS, Format},
};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The schema of a configuration, as JSON Schema 2020-12.
pub(super) fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<super::Config>().to_value();
    tidy(&mut schema);
    schema
}

/// Takes out that a field may be null: TOML has no null.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Array(all) => all.iter_mut().for_each(tidy),
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|one| one != "null");
                if let [one] = &types[..] {
                    let one = one.clone();
                    object.insert("type".into(), one);
                }
            }
            if let Some(Value::Array(any)) = object.get_mut("anyOf") {
                any.retain(|one| one["type"] != "null");
                if let [Value::Object(one)] = &any[..] {
                    let one = one.clone();
                    object.remove("anyOf");
                    for (name, value) in one {
                        object.entry(name).or_insert(value);
                    }
                }
            }
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            object.values_mut().for_each(tidy);
        }
        _ => {}
    }
}

/// What is wrong, and the entries that are not as they were written any more.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<Problem>,
    pub(super) mended: Vec<String>,
}

pub(super) struct Checker<'a> {
    root: &'a Value,
    findings: Findings,
}

impl<'a> Checker<'a> {
    /// Checks `document`, and mends it.
    pub(super) fn check(root: &'a Value, document: &mut Value) -> Findings {
        let mut checker = Self { root, findings: Findings::default() };
        checker.value(root, document, "");
        checker.findings
    }

    fn problem(&mut self, entry: &str, what: String) {
        self.findings.problems.push(Problem::new(entry, what));
    }

    fn mended(&mut self, entry: &str, what: String) {
        self.findings.mended.push(entry.to_owned());
        self.problem(entry, what);
    }

    fn resolve(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str().and_then(|name| self.root.pointer(name.trim_start_matches('#'))) {
            Some(target) => self.resolve(target),
            None => schema,
        }
    }

    /// `false` if the value is not one that the schema allows: then it says so and leaves the value to be taken out.
    fn value(&mut self, schema: &'a Value, value: &mut Value, path: &str) -> bool {
        let schema = self.resolve(schema);
        if let Some(words) = self.words(schema) {
            let is_one = value.as_str().is_some_and(|text| words.contains(&text));
            if !is_one {
                let text = value.as_str().unwrap_or_default();
                let meant = did_you_mean(closest(text, words.iter().copied()));
                let what = format!("must be {}{meant}", self.expected(schema));
                self.mended(path, what);
            }
            return is_one;
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let branch = any.iter().map(|one| self.resolve(one)).find(|one| is_of_type(one, value));
            return match branch {
                Some(branch) => self.value(branch, value, path),
                None => self.refuse(schema, path),
            };
        }
        if !is_of_type(schema, value) || !is_within(schema, value) {
            return self.refuse(schema, path);
        }
        match value {
            Value::Object(table) => self.table(schema, table, path),
            Value::Array(values) => {
                for (at, value) in values.iter_mut().enumerate() {
                    let path = place(path, at);
                    if !self.value(&schema["items"], value, &path) {
                        *value = self.sample(&schema["items"]);
                    }
                }
            }
            _ => {}
        }
        true
    }

    fn refuse(&mut self, schema: &'a Value, path: &str) -> bool {
        let what = format!("must be {}", self.expected(schema));
        self.mended(path, what);
        false
    }

    fn table(&mut self, schema: &'a Value, table: &mut Map<String, Value>, path: &str) {
        let known = schema["properties"].as_object();
        let others = &schema["additionalProperties"];
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let names: Vec<String> = table.keys().cloned().collect();
        for name in &names {
            let path = field(path, name);
            let schema = match known.and_then(|known| known.get(name)) {
                Some(schema) => schema,
                None if others.is_object() => others,
                None => {
                    let free = known.into_iter().flatten().map(|(known, _)| known.as_str());
                    let meant = closest(name, free.filter(|known| !table.contains_key(*known)));
                    self.problem(&path, format!("is unknown{}", did_you_mean(meant)));
                    table.remove(name);
                    continue;
                }
            };
            let mut value = table.remove(name).unwrap_or_default();
            if self.value(schema, &mut value, &path) {
                table.insert(name.clone(), value);
            } else if required.contains(&name.as_str()) {
                table.insert(name.clone(), self.sample(schema));
            }
        }
        for name in required {
            if table.contains_key(name) {
                continue;
            }
            self.mended(&field(path, name), "is missing".into());
            table.insert(name.into(), self.sample(&schema["properties"][name]));
        }
        let count = u64::try_from(table.len()).unwrap_or(u64::MAX);
        if schema["maxProperties"].as_u64().is_some_and(|most| count > most)
            || schema["minProperties"].as_u64().is_some_and(|least| count < least)
        {
            self.mended(path, format!("must be {}", self.expected(schema)));
            let first = known.into_iter().flatten().next();
            *table = first.map(|(name, schema)| (name.clone(), self.sample(schema))).into_iter().collect();
        }
    }

    /// The words of an enumeration.
    fn words(&self, schema: &'a Value) -> Option<Vec<&'a str>> {
        if let Some(words) = schema["enum"].as_array() {
            return words.iter().map(Value::as_str).collect();
        }
        let all = schema["oneOf"].as_array()?.iter().map(|one| {
            self.words(self.resolve(one)).or_else(|| one["const"].as_str().map(|word| vec![word]))
        });
        all.collect::<Option<Vec<_>>>().map(|all| all.concat())
    }

    /// What the schema allows, after "must be".
    fn expected(&self, schema: &'a Value) -> String {
        let schema = self.resolve(schema);
        if let Some(words) = self.words(schema) {
            let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
            return match &words[..] {
                [one] => one.clone(),
                [first @ .., last] => format!("{} or {last}", first.join(", ")),
                [] => "nothing".into(),
            };
        }
        if let Some(any) = schema["anyOf"].as_array() {
            let any: Vec<_> = any.iter().map(|one| self.expected(one)).collect();
            return any.join(" or ");
        }
        if let Some(format) = format(schema) {
            return format.expected.into();
        }
        match schema["type"].as_str() {
            Some("string") => "a text that is not empty".into(),
            Some("boolean") => "true or false".into(),
            Some("integer") => match (schema["minimum"].as_i64(), schema["maximum"].as_i64()) {
                (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
                (Some(least), None) => format!("a whole number, at least {least}"),
                _ => "a whole number".into(),
            },
            Some("number") => match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
                (Some(least), Some(most)) => format!("a number from {least} to {most}"),
                (Some(least), None) => format!("a number, at least {least}"),
                _ => "a number".into(),
            },
            Some("array") if schema["minItems"].as_u64() > Some(0) => {
                format!("a list, not empty, each of it {}", self.expected(&schema["items"]))
            }
            Some("array") => format!("a list, each of it {}", self.expected(&schema["items"])),
            Some("object") if schema["maxProperties"] == 1 => {
                let names = schema["properties"].as_object().into_iter().flatten();
                let names: Vec<_> = names.map(|(name, _)| format!("{{ {name} = … }}")).collect();
                names.join(" or ")
            }
            _ => "a table".into(),
        }
    }

    /// A value that the schema allows, to read on with.
    fn sample(&self, schema: &'a Value) -> Value {
        let schema = self.resolve(schema);
        if let Some(words) = self.words(schema) {
            return words.first().copied().unwrap_or_default().into();
        }
        if let Some(first) = schema["anyOf"].get(0) {
            return self.sample(first);
        }
        if let Some(format) = format(schema) {
            return format.sample.into();
        }
        match schema["type"].as_str() {
            Some("string") => "?".into(),
            Some("boolean") => false.into(),
            Some("integer" | "number") => {
                schema["minimum"].as_f64().map_or(1, |least| least.ceil() as i64).into()
            }
            Some("array") => Value::Array(Vec::new()),
            _ => {
                let mut table = Map::new();
                for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                    table.insert(name.into(), self.sample(&schema["properties"][name]));
                }
                Value::Object(table)
            }
        }
    }
}

fn format(schema: &Value) -> Option<&'static Format> {
    let name = schema["format"].as_str()?;
    FORMATS.iter().find(|format| format.name == name)
}

fn is_of_type(schema: &Value, value: &Value) -> bool {
    match schema["type"].as_str() {
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        // An enumeration is one of words, too.
        _ => value.is_string(),
    }
}

fn is_within(schema: &Value, value: &Value) -> bool {
    let is_least = |least: &Value, number: f64| least.as_f64().is_none_or(|least| number >= least);
    let is_most = |most: &Value, number: f64| most.as_f64().is_none_or(|most| number <= most);
    match value {
        Value::String(text) => {
            let needs_text = schema["minLength"].as_u64() > Some(0);
            !(needs_text && text.trim().is_empty())
                && format(schema).is_none_or(|format| (format.is_right)(text))
        }
        Value::Number(number) => number.as_f64().is_some_and(|number| {
            is_least(&schema["minimum"], number) && is_most(&schema["maximum"], number)
        }),
        Value::Array(values) => {
            let count = values.len() as f64;
            is_least(&schema["minItems"], count) && is_most(&schema["maxItems"], count)
        }
        _ => true,
    }
}

/// The end of a sentence on what leads nowhere.
pub(super) fn did_you_mean(meant: Option<&str>) -> String {
    meant.map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default()
}

/// The word that is most like `word`, if it is like it at all.
pub(super) fn closest<'w>(word: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let word = word.to_lowercase();
    let most = (word.chars().count() / 3).max(1);
    let measured = words.map(|other| (distance(&word, other), other));
    measured.filter(|(far, _)| *far <= most).min_by_key(|(far, _)| *far).map(|(_, word)| word)
}

/// How many letters have to be changed, added, left out or exchanged with the next.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) =
        (one.chars().take(64).collect(), other.chars().take(64).collect());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(a != b)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}
