//! A configuration on its way to be written.

use llm_layers::provider::{
    genai::{Dialect, Genai},
    openai::OpenAiCompatible,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) keys: Vec<Key>,
    pub(super) providers: BTreeMap<String, Provider>,
    pub(super) aliases: BTreeMap<String, Vec<(String, u64)>>,
    pub(super) fallbacks: BTreeMap<String, Fallback>,
    pub(super) departments: BTreeMap<String, Department>,
    /// Tables of single values, as they are written.
    settings: BTreeMap<&'static str, Vec<(&'static str, String)>>,
    variables: BTreeSet<String>,
    notes: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Key {
    pub(super) key: Secret,
    pub(super) user: String,
    pub(super) departments: Vec<String>,
    pub(super) admin: bool,
    /// Whether it says itself for whom it asks.
    pub(super) trusted: bool,
    pub(super) max_in_flight: Option<u64>,
}

/// A secret, or where it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Secret {
    Text(String),
    Env(String),
}

#[derive(Debug, Default)]
pub(super) struct Provider {
    pub(super) kind: &'static str,
    pub(super) places: Vec<Place>,
    pub(super) models: BTreeMap<String, Price>,
    pub(super) total: Option<Duration>,
}

/// Where a provider is, and with what it is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) base_url: Option<String>,
    pub(super) api_key: Option<Secret>,
    pub(super) headers: BTreeMap<String, Secret>,
}

/// Dollars for a million tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Price {
    pub(super) input: Option<String>,
    pub(super) output: Option<String>,
    pub(super) cache_read: Option<String>,
    pub(super) cache_write: Option<String>,
}

/// Canonical names, in their order; none, where nothing is asked after such a failure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fallback {
    pub(super) otherwise: Vec<String>,
    pub(super) context_window: Option<Vec<String>>,
    pub(super) content_filter: Option<Vec<String>>,
}

#[derive(Debug, Default)]
pub(super) struct Department {
    pub(super) models: Option<Vec<String>>,
    /// As they are named, and as they are written.
    pub(super) limits: BTreeMap<&'static str, String>,
}

impl Secret {
    /// `os.environ/NAME`, `${NAME}`, or the text itself; nothing of what could not be sent.
    pub(super) fn read(text: &str) -> Option<Self> {
        match Self::variable(text) {
            Some(name) => {
                let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
                let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                (first && plain && name.len() <= 128).then(|| Self::Env(name.to_owned()))
            }
            None => {
                let sent = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
                sent.then(|| Self::Text(text.to_owned()))
            }
        }
    }

    /// The same from a variable that can be set everywhere, where one of its name cannot.
    pub(super) fn renamed(text: &str) -> Option<String> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = Self::variable(text)?.chars().map(plain).take(127).collect();
        let name = if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name };
        name.contains(|c| c != '_').then_some(name)
    }

    fn variable(text: &str) -> Option<&str> {
        let variable = text.strip_prefix("os.environ/");
        let name = variable.or_else(|| text.strip_prefix("${")?.strip_suffix('}'))?;
        Some(name.split_once(':').map_or(name, |(name, _)| name))
    }

    fn write(&self, variables: &mut BTreeSet<String>) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Env(name) => {
                variables.insert(name.clone());
                format!("{{ env = {} }}", quoted(name))
            }
        }
    }
}

impl Draft {
    pub(super) fn note(&mut self, entry: &str, what: impl std::fmt::Display) {
        // Names come from the file: they cannot forge a line.
        let entry: String = entry.chars().filter(|c| !c.is_control()).take(160).collect();
        self.notes.push(format!("{entry}: {what}"));
    }

    pub(super) fn set(&mut self, table: &'static str, name: &'static str, value: String) {
        let table = self.settings.entry(table).or_default();
        table.retain(|(other, _)| *other != name);
        table.push((name, value));
    }

    pub(super) fn set_secret(&mut self, table: &'static str, name: &'static str, secret: &Secret) {
        let written = secret.write(&mut self.variables);
        self.set(table, name, written);
    }

    /// How many models are asked after one at most.
    pub(super) fn longest_fallback(&self) -> usize {
        let lists = |one: &Fallback| {
            let by_cause = [&one.context_window, &one.content_filter];
            by_cause.into_iter().flatten().chain([&one.otherwise]).map(Vec::len).max().unwrap_or_default()
        };
        self.fallbacks.values().map(lists).max().unwrap_or_default()
    }

    /// Whether it can be asked there.
    pub(super) fn can_be_asked(kind: &str, base_url: Option<&str>) -> bool {
        match (dialect(kind), base_url) {
            (Some(dialect), None) => dialect.default_base_url().is_some(),
            (Some(dialect), Some(url)) => Genai::new(dialect, url).is_ok(),
            (None, Some(url)) => kind == "openai" && OpenAiCompatible::new((), url).is_ok(),
            (None, None) => kind == "echo",
        }
    }

    /// What an alias, or a name, stands for: canonical names.
    pub(super) fn ends(&self, name: &str) -> Vec<String> {
        match self.aliases.get(name) {
            Some(shares) => shares.iter().map(|(end, _)| end.clone()).collect(),
            None => self.is_served(name).then(|| name.to_owned()).into_iter().collect(),
        }
    }

    /// What a provider's own model is called leads there, and stands for nothing else.
    pub(super) fn drop_aliases_of_models(&mut self) {
        let names: Vec<_> = self.aliases.keys().filter(|name| self.is_served(name)).cloned().collect();
        for name in names {
            self.aliases.remove(&name);
            self.note(
                &name,
                "is what a provider's own model is called, and leads there; rename one of the two",
            );
        }
    }

    pub(super) fn is_served(&self, name: &str) -> bool {
        name.split_once('/')
            .is_some_and(|(provider, model)| !model.is_empty() && self.providers.contains_key(provider))
    }

    /// A name for a provider that is not taken.
    pub(super) fn free_name(&self, wanted: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
        let wanted: String = wanted.chars().map(plain).take(64).collect();
        let wanted = if wanted.is_empty() { "provider".to_owned() } else { wanted };
        let numbered = (2..).map(|n| format!("{wanted}-{n}"));
        let mut names = std::iter::once(wanted.clone()).chain(numbered);
        names.find(|name| !self.providers.contains_key(name)).expect("there are numbers enough")
    }

    /// Leaves out what names a pattern where one model is meant.
    fn drop_patterns(&mut self) {
        let is_pattern = |name: &String| name.contains('*');
        let mut dropped = Vec::new();
        self.aliases.retain(|name, shares| {
            let is_one = !shares.iter().any(|(end, _)| is_pattern(end));
            dropped.extend((!is_one).then(|| name.clone()));
            is_one
        });
        self.fallbacks.retain(|model, fallback| {
            let Fallback { otherwise, context_window, content_filter } = fallback;
            let mut has_some = is_pattern(model);
            for list in
                [Some(otherwise), context_window.as_mut(), content_filter.as_mut()].into_iter().flatten()
            {
                has_some |= list.iter().any(is_pattern);
                list.retain(|name| !is_pattern(name));
            }
            dropped.extend(has_some.then(|| format!("fallbacks.{model}")));
            !is_pattern(model)
        });
        for (name, provider) in &mut self.providers {
            provider.models.retain(|model, _| {
                dropped.extend(is_pattern(model).then(|| format!("{name}/{model}")));
                !is_pattern(model)
            });
        }
        for name in dropped {
            self.note(&name, "has a pattern where one model is meant, which is left out");
        }
    }

    /// The text, and the notes.
    pub(super) fn finish(mut self) -> (String, Vec<String>) {
        self.drop_patterns();
        let mut out = String::new();
        let mut variables = std::mem::take(&mut self.variables);
        for key in &self.keys {
            let _ = writeln!(
                out,
                "[[keys]]\nkey = {}\nuser = {}",
                key.key.write(&mut variables),
                quoted(&key.user)
            );
            if !key.departments.is_empty() {
                let _ = writeln!(out, "departments = {}", list(&key.departments));
            }
            for (name, is_so) in [("admin", key.admin), ("trusted", key.trusted)] {
                if is_so {
                    let _ = writeln!(out, "{name} = true");
                }
            }
            if let Some(most) = key.max_in_flight {
                let _ = writeln!(out, "max_in_flight = {most}");
            }
            out.push('\n');
        }
        for (name, provider) in &self.providers {
            provider.write(name, &mut out, &mut variables);
        }
        if !self.aliases.is_empty() {
            out.push_str("[aliases]\n");
            for (name, shares) in &self.aliases {
                let _ = match shares.as_slice() {
                    [(end, _)] => writeln!(out, "{} = {}", name_of(name), quoted(end)),
                    shares => {
                        let share = |(end, weight): &(String, u64)| match weight {
                            1 => format!("{{ model = {} }}", quoted(end)),
                            weight => format!("{{ model = {}, weight = {weight} }}", quoted(end)),
                        };
                        let shares: Vec<_> = shares.iter().map(share).collect();
                        writeln!(out, "{} = [{}]", name_of(name), shares.join(", "))
                    }
                };
            }
            out.push('\n');
        }
        self.write_fallbacks(&mut out);
        for (name, department) in &self.departments {
            let _ = writeln!(out, "[departments.{}]", name_of(name));
            if let Some(models) = &department.models {
                let _ = writeln!(out, "models = {}", list(models));
            }
            for (limit, value) in &department.limits {
                let _ = writeln!(out, "{limit} = {value}");
            }
            out.push('\n');
        }
        for (table, values) in &self.settings {
            let _ = writeln!(out, "[{table}]");
            for (name, value) in values {
                let _ = writeln!(out, "{name} = {value}");
            }
            out.push('\n');
        }
        let mut notes = self.notes;
        if !variables.is_empty() {
            let variables: Vec<_> = variables.into_iter().collect();
            notes.push(format!("set these environment variables: {}", variables.join(", ")));
        }
        (out, notes)
    }

    fn write_fallbacks(&self, out: &mut String) {
        let fallbacks: Vec<_> = self
            .fallbacks
            .iter()
            .map(|(model, fallback)| (model, fallback.without(model)))
            .filter(|(_, fallback)| !fallback.is_empty())
            .collect();
        if fallbacks.is_empty() {
            return;
        }
        out.push_str("[fallbacks]\n");
        for (model, Fallback { otherwise, context_window, content_filter }) in fallbacks {
            let told = [
                ("otherwise", Some(&otherwise).filter(|models| !models.is_empty())),
                ("context_window", context_window.as_ref()),
                ("content_filter", content_filter.as_ref()),
            ];
            let causes: Vec<_> = told
                .into_iter()
                .filter_map(|(name, models)| Some(format!("{name} = {}", list(models?))))
                .collect();
            let _ = match causes.as_slice() {
                [_] if !otherwise.is_empty() => writeln!(out, "{} = {}", name_of(model), list(&otherwise)),
                causes => writeln!(out, "{} = {{ {} }}", name_of(model), causes.join(", ")),
            };
        }
        out.push('\n');
    }
}

impl Fallback {
    /// A model is not its own fallback, and nobody is asked twice; none is told only where there would be some otherwise.
    pub(super) fn without(&self, model: &str) -> Self {
        let once = |models: &[String]| {
            let mut seen = BTreeSet::from([model]);
            models.iter().filter(|other| seen.insert(other.as_str())).cloned().collect::<Vec<_>>()
        };
        let otherwise = once(&self.otherwise);
        let of_cause = |models: &Option<Vec<String>>| {
            models.as_deref().map(once).filter(|models| !models.is_empty() || !otherwise.is_empty())
        };
        let (context_window, content_filter) =
            (of_cause(&self.context_window), of_cause(&self.content_filter));
        Self { otherwise, context_window, content_filter }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.otherwise.is_empty() && self.context_window.is_none() && self.content_filter.is_none()
    }
}

impl Provider {
    fn write(&self, name: &str, out: &mut String, variables: &mut BTreeSet<String>) {
        let path = format!("providers.{}", name_of(name));
        let _ = writeln!(out, "[{path}]\nkind = {}", quoted(self.kind));
        let is_one = self.places.len() == 1;
        if let ([place], true) = (self.places.as_slice(), is_one) {
            place.write(out, variables);
        }
        let models: Vec<_> = self.models.iter().map(|(model, price)| price.write(model)).collect();
        match models.as_slice() {
            [] => {}
            [one] => {
                let _ = writeln!(out, "models = [{one}]");
            }
            all => {
                let _ = writeln!(out, "models = [\n    {},\n]", all.join(",\n    "));
            }
        }
        if let Some(total) = self.total {
            let _ = writeln!(out, "timeouts = {{ total = {0}, whole = {0} }}", time(total));
        }
        out.push('\n');
        if !is_one {
            for place in &self.places {
                let _ = writeln!(out, "[[{path}.deployments]]");
                place.write(out, variables);
                out.push('\n');
            }
        }
    }
}

impl Place {
    fn write(&self, out: &mut String, variables: &mut BTreeSet<String>) {
        if let Some(base_url) = &self.base_url {
            let _ = writeln!(out, "base_url = {}", quoted(base_url));
        }
        if let Some(key) = &self.api_key {
            let _ = writeln!(out, "api_key = {}", key.write(variables));
        }
        if !self.headers.is_empty() {
            let headers = self.headers.iter();
            let headers: Vec<_> = headers
                .map(|(name, value)| format!("{} = {}", name_of(name), value.write(variables)))
                .collect();
            let _ = writeln!(out, "headers = {{ {} }}", headers.join(", "));
        }
    }
}

impl Price {
    fn write(&self, model: &str) -> String {
        let rates = [
            ("input", &self.input),
            ("output", &self.output),
            ("cache_read", &self.cache_read),
            ("cache_write", &self.cache_write),
        ];
        let rates: Vec<_> = rates
            .into_iter()
            .filter_map(|(name, rate)| Some(format!("{name} = {}", quoted(rate.as_ref()?))))
            .collect();
        match rates.is_empty() || (self.input.is_none() && self.output.is_none()) {
            true => quoted(model),
            false => format!("{{ name = {}, price = {{ {} }} }}", quoted(model), rates.join(", ")),
        }
    }
}

/// The dialect of a kind that is not OpenAI's.
pub(super) fn dialect(kind: &str) -> Option<Dialect> {
    [Dialect::Anthropic, Dialect::Gemini, Dialect::Vertex, Dialect::Bedrock, Dialect::Cohere, Dialect::Ollama]
        .into_iter()
        .find(|dialect| dialect.as_str() == kind)
}

/// A time as it is written; at least a millisecond, at most a year.
pub(super) fn time(time: Duration) -> String {
    let millis = time.as_millis().clamp(1, 31_536_000_000);
    match millis.is_multiple_of(1000) {
        true => format!("\"{}s\"", millis / 1000),
        false => format!("\"{millis}ms\""),
    }
}

/// A text in TOML. What JSON escapes TOML reads the same, but for a character that JSON leaves alone.
pub(super) fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON").replace('\u{7f}', "\\u007f")
}

fn name_of(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if bare { name.to_owned() } else { quoted(name) }
}

fn list(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}
