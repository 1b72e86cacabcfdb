//! A configuration: a file of TOML, checked as a whole.
//!
//! [`Config::parse`] reads a text and tells everything that is wrong with it at once, each problem with its entry and its line:
//! unknown fields, values of a wrong type, names that lead nowhere, circles, contradictions, secrets that cannot be found. What is not compiled
//! in is told here too, but for stores and providers that a program may replace: those are told when the stack is built. No message shows a value, for any of them may be a key in the wrong place. What
//! [`stack`](crate::stack) builds is made of a configuration; `docs/configuration.md` says what each entry does, and
//! [`schema`] gives it to editors.
//!
//! ```
//! use llm_layers::config::Config;
//!
//! let config = Config::parse(r#"
//!     [usage]
//!     enabled = false
//!     [providers.echo]
//!     kind = "echo"
//!     [aliases]
//!     fast = "echo/echo"
//! "#)?;
//! assert_eq!(config.providers.len(), 1);
//!
//! let error = Config::parse("[usage]\nenabled = false\n[aliases]\nfast = \"gone/model\"\n[cache]\nttll = \"1h\"\n").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "providers: there must be one\n\
//!      line 4: aliases.fast: leads to gone/model, which no provider serves\n\
//!      line 5: cache: nothing would be kept, for there are no keys and so no users; with identity = \"host\" the program says who asks\n\
//!      line 6: cache.ttll: is unknown; did you mean \"ttl\"?"
//! );
//! # Ok::<(), llm_layers::config::ConfigError>(())
//! ```
//!
//! A `Config` may also be made in code: it is plain data, and [`Config::default`] has what holds for entries that are left out.

mod document;
pub(crate) mod plan;
mod problem;
mod schema;
mod sections;
mod value;

pub(crate) use self::{
    document::{Lines, field},
    value::{Env, Revealed},
};
pub use self::{
    plan::may_be_told,
    problem::{ConfigError, Problem},
    sections::{
        Action, Actions, Alias, Cache, Department, Deployment, Fallback, FallbackByCause, Identity, Key,
        Kind, KnowledgeBase, Log, Model, ModelDetails, ModelPrice, OutputMember, PriceLists, Provider, Quota,
        QuotaMode, QuotaStoreKind, RecordDurability, Retry, RetryBudget, SemanticCache, SemanticMode, Server,
        Share, StickySplit, Telemetry, Tenant, TimeoutOverrides, Timeouts, UnpricedModels, Usage,
    },
    value::{Address, BaseUrl, Dollars, PerMillion, Secret, Time},
};

use self::{document::Document, plan::Plan, schema::Checker};
use schemars::JsonSchema;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Everything that a stack can be told.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Configuration of llm-layers")]
#[non_exhaustive]
pub struct Config {
    /// Where the server listens.
    pub listen: Listen,
    /// By what it is told who asks.
    pub identity: Identity,
    /// The server, and what a request may ask of it.
    pub server: Server,
    /// Who may ask. Without any, everybody, as nobody in particular.
    #[schemars(length(min = 1))]
    pub keys: Option<Vec<Key>>,
    /// The providers, by their names.
    pub providers: BTreeMap<String, Provider>,
    /// What names of models stand for. A name may be a pattern with `*`.
    pub aliases: BTreeMap<String, Alias>,
    /// What is different for single tenants.
    pub tenants: BTreeMap<String, Tenant>,
    /// What is asked next when a model fails before it has said anything: by the name that aliases lead to. Targets may be
    /// aliases.
    pub fallbacks: BTreeMap<String, Fallback>,
    /// How often and how long is tried.
    pub retry: Retry,
    /// Time limits of each call to a provider.
    pub timeouts: Timeouts,
    /// One record for each call to a provider.
    pub usage: Usage,
    /// What departments may do; `"*"` is every department without an entry.
    pub departments: BTreeMap<String, Department>,
    /// How limits are kept.
    pub quota: Option<Quota>,
    /// Answers that are given again.
    pub cache: Option<Cache>,
    /// Where prices are read from.
    pub prices: PriceLists,
    /// What is told of the calls.
    pub telemetry: Telemetry,
    #[serde(skip)]
    lines: Lines,
    /// Of the text that it was read from.
    #[serde(skip)]
    digest: Option<blake3::Hash>,
}

/// Where a server listens; `127.0.0.1:8080` unless told.
pub type Listen = Address;

impl Default for Address {
    fn default() -> Self {
        Self(([127, 0, 0, 1], 8080).into())
    }
}

impl Config {
    /// Reads TOML, with secrets from the environment of this process.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        Self::parse_with(text, &process_env)
    }

    /// Reads TOML, with secrets from `env`.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn parse_with(
        text: &str,
        env: &(dyn Fn(&str) -> Option<String> + Sync),
    ) -> Result<Self, ConfigError> {
        let Document { mut value, lines } = Document::parse(text).map_err(ConfigError::new)?;
        let schema = schema::schema();
        let found = Checker::check(&schema, &mut value);
        let mut problems = found.problems;
        let digest = Some(blake3::hash(text.as_bytes()));
        let config = serde_json::from_value::<Self>(value);
        let config = config.map(|config| Self { lines: lines.clone(), digest, ..config });
        let refers_to = config.as_ref().map_or_else(|_| Vec::new(), Self::files);
        match config {
            Ok(config) => {
                let further = match Plan::new(&config, env, None) {
                    Ok(_) if problems.is_empty() => return Ok(config),
                    Ok(_) => Vec::new(),
                    Err(error) => error.problems().to_vec(),
                };
                problems.extend(further.into_iter().filter(|problem| !is_of(&found.mended, &problem.entry)));
            }
            // Its own words may quote what is in the file.
            Err(_) if problems.is_empty() => {
                problems.push(Problem::new("", "a number is too large, or an entry cannot be read"));
            }
            Err(_) => {}
        }
        for problem in &mut problems {
            problem.line = problem.line.or_else(|| lines.of(&problem.entry));
        }
        Err(ConfigError::new(problems).referring_to(refers_to))
    }

    /// Reads a file of TOML, with secrets from the environment of this process.
    ///
    /// # Errors
    ///
    /// It cannot be read, or all that is wrong with it; each problem is told with the name of the file.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what = match error.kind() {
                std::io::ErrorKind::InvalidData => "is not UTF-8".to_owned(),
                _ => error.to_string(),
            };
            ConfigError::new(vec![Problem::new("", what)])
        });
        text.and_then(|text| Self::parse(&text)).map_err(|error| error.of_file(path))
    }

    /// Checks a configuration that was made, or changed, in code.
    ///
    /// # Errors
    ///
    /// All that is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        Plan::new(self, &process_env, None).map(drop)
    }

    /// The files that it refers to: secrets and price lists. For whoever looks whether anything has changed.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        files.extend(self.prices.litellm.clone());
        files.extend(self.prices.own.clone());
        let keys = self.keys.iter().flatten().filter_map(|key| key.key.as_ref());
        let providers = self.providers.values().flat_map(|provider| {
            let deployments = provider.deployments.iter().flatten();
            let all = deployments.flat_map(|one| one.api_key.iter().chain(one.headers.values()));
            provider.api_key.iter().chain(&provider.proxy).chain(provider.headers.values()).chain(all)
        });
        let cache = self.cache.iter();
        let embedders = cache.clone().filter_map(|cache| cache.semantic.as_ref());
        let embedders = embedders.flat_map(|one| one.api_key.iter().chain(one.headers.values()));
        let stores =
            self.usage.redis.iter().chain(self.quota.iter().filter_map(|quota| quota.redis.as_ref()));
        let stores = stores.chain(cache.flat_map(|cache| cache.redis.iter().chain(&cache.secret)));
        let all = keys.chain(providers).chain(stores).chain(embedders);
        files.extend(all.filter_map(|secret| match secret {
            Secret::File(path) => Some(path.clone()),
            _ => None,
        }));
        files.sort();
        files.dedup();
        files
    }

    /// How long an answer that is not streamed may take at a provider with limits of its own.
    pub(crate) fn whole(&self, own: TimeoutOverrides) -> Time {
        let all = self.timeouts;
        let of_all = || all.whole.or(self.tells_head().then_some(all.head)).unwrap_or(Time::secs(300));
        own.whole.or(own.head).unwrap_or_else(of_all)
    }

    fn tells_head(&self) -> bool {
        self.timeouts.head != Timeouts::default().head || self.lines.has("timeouts.head")
    }

    pub(crate) const fn digest(&self) -> Option<blake3::Hash> {
        self.digest
    }

    pub(crate) const fn lines(&self) -> &Lines {
        &self.lines
    }
}

/// The JSON schema of a configuration, as it is checked in at `docs/config.schema.json`.
pub fn schema() -> serde_json::Value {
    schema::schema()
}

pub(crate) fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Whether what is said of `entry` may come from its not being as it was written any more.
fn is_of(mended: &[String], entry: &str) -> bool {
    let is_in = |whole: &str, part: &str| {
        part.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    // What is said of a whole table is said of more than the one field.
    let is_part = entry.contains(['.', '[']);
    mended.iter().any(|mended| is_in(mended, entry) || (is_part && is_in(entry, mended)))
}
