//! The configuration file: read as a whole, checked as a whole, all problems told at once.

mod cache;
mod limits;
mod section;

pub(crate) use self::{
    cache::Cache,
    limits::{Counters, Limits},
};

use self::section::{Problems, Section};
use blake3::Hash;
use llm_layers::{
    RequestContext,
    alias::{AliasTable, Aliases},
    fallback::{Backoff, Chains},
    price::{PriceBook, Prices},
    provider::openai::OpenAiCompatible,
    providers::ProviderNames,
    store::{Redis, RedisOptions},
    timeout::CallTimeoutLayer,
    usage::Durability,
};
use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// A configuration that can work.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    pub(crate) server: Server,
    /// Who has which key, by its hash. `None`: everybody is anonymous.
    pub(crate) keys: Option<Vec<(Hash, Caller)>>,
    pub(crate) providers: BTreeMap<String, Provider>,
    pub(crate) aliases: Aliases,
    pub(crate) chains: Chains,
    pub(crate) max_attempts: u16,
    pub(crate) deadline: Duration,
    pub(crate) timeouts: CallTimeoutLayer,
    /// `None`: nothing is recorded.
    pub(crate) usage: Option<Usage>,
    pub(crate) prices: Prices,
    /// `None`: departments may do what they like.
    pub(crate) limits: Option<Limits>,
    /// `None`: every call is made.
    pub(crate) cache: Option<Cache>,
    pub(crate) telemetry: Telemetry,
}

/// What is told of the calls, and where; OTLP is set up by the environment.
#[derive(Debug)]
pub(crate) struct Telemetry {
    /// Whether `GET /metrics` answers.
    pub(crate) metrics: bool,
    /// Whether the log is JSON.
    pub(crate) json_log: bool,
    /// Whether answers show in headers how they came to be.
    pub(crate) decision_headers: bool,
}

/// Who has a key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caller {
    pub(crate) context: RequestContext,
    /// Whether it may ask what everybody has used.
    pub(crate) is_admin: bool,
}

/// Where usage is recorded.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) path: PathBuf,
    pub(crate) durability: Durability,
    /// How long the last byte of an answer may wait for its record, if it is to wait.
    pub(crate) hold_last_byte: Option<Duration>,
    /// With whom it is shared: the file is a copy then.
    pub(crate) shared: Option<SharedUsage>,
}

/// Where several gateways record usage together.
#[derive(Debug)]
pub(crate) struct SharedUsage {
    pub(crate) redis: Redis,
    /// How long records stay there.
    pub(crate) keep: Duration,
    pub(crate) outbox: PathBuf,
    pub(crate) outbox_max_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) max_body_bytes: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
    pub(crate) shutdown_grace: Duration,
    pub(crate) keep_alive: Duration,
}

#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) kind: Kind,
    /// What `GET /v1/models` lists.
    pub(crate) models: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Echo,
    OpenAi(Vec<Deployment>),
}

#[derive(Debug)]
pub(crate) struct Deployment {
    pub(crate) base_url: String,
    pub(crate) api_key: Option<Secret>,
    /// Whether it is told which trace a request belongs to.
    pub(crate) trace_headers: bool,
}

/// A key. Not shown by `Debug`.
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What runs without a file: a provider that echoes.
const DEFAULT: &str = r#"
[providers.echo]
kind = "echo"
models = ["echo"]
[aliases]
fast = "echo/echo"
"#;

impl Config {
    /// What runs without a file.
    pub(crate) fn without_file() -> Self {
        Self::read(DEFAULT, &|_| None).expect("checked by a test")
    }

    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// All problems, each with the entry's name.
    pub(crate) fn read(text: &str, env: Env<'_>) -> Result<Self, Vec<String>> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            // The error's own text quotes the line, and with it whatever key stands there.
            let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
            let line = before.matches('\n').count() + 1;
            vec![format!("line {line}: {}", error.message())]
        })?;
        let problems = Problems::default();
        let config = Self::check(Section::new(String::new(), table, &problems), env, &problems);
        match problems.into_inner() {
            problems if problems.is_empty() => Ok(config.expect("what is missing is a problem")),
            problems => Err(problems),
        }
    }

    fn check(mut file: Section<'_>, env: Env<'_>, problems: &Problems) -> Option<Self> {
        let listen = file.address("listen").unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
        let server = Server::read(file.section("server"));
        let keys = file.has("keys").then(|| keys(file.sections("keys"), env));
        if keys.as_ref().is_some_and(Vec::is_empty) {
            file.problem("keys", "there must be one; without the table everybody is anonymous");
        }
        let mut table = file.section("providers");
        let named: Vec<String> = table.fields();
        if named.is_empty() {
            file.problem("providers", "there must be one");
        }
        let mut providers = BTreeMap::new();
        for name in &named {
            if name.trim().is_empty() || name.contains('/') {
                table.problem(name, "the name must not be empty or have a slash in it");
            }
            providers
                .extend(Provider::read(table.section(name), env).map(|provider| (name.clone(), provider)));
        }
        // A provider that is there, but wrong, is one problem, not one for each entry that names it.
        let names = ProviderNames::new(named);
        let aliases = aliases(file.section("aliases"), &names, problems);
        let retry = file.section("retry");
        let (chains, max_attempts, deadline) =
            chains(file.section("fallbacks"), retry, aliases.as_ref(), &names, problems);
        let timeouts = timeouts(file.section("timeouts"));
        let usage = Usage::read(file.section("usage"), env);
        let prices = prices(file.section("prices"));
        let limits = Limits::read(file.section("departments"), file.section("quota"), env);
        if limits.is_some() && keys.is_none() {
            problems.add("departments", "nobody is in one, for there are no keys");
        }
        let cache = Cache::read(file.section("cache"), env);
        if cache.is_some() && keys.is_none() {
            problems.add("cache", "nothing would be kept, for there are no keys and so no users");
        }
        let telemetry = Telemetry::read(file.section("telemetry"));
        let (aliases, chains) = (aliases?, chains?);
        Some(Self {
            listen,
            server,
            keys,
            providers,
            aliases,
            chains,
            max_attempts,
            deadline,
            timeouts,
            usage,
            prices,
            limits,
            cache,
            telemetry,
        })
    }
}

impl Server {
    fn read(mut table: Section<'_>) -> Self {
        let seconds = Duration::from_secs;
        Self {
            max_body_bytes: table.number("max_body_bytes", 1, 32 << 20),
            max_in_flight: table.number("max_in_flight", 1, 256),
            max_waiting: table.number("max_waiting", 0, 256),
            max_wait: table.duration("max_wait", seconds(1)),
            shutdown_grace: table.duration("shutdown_grace", seconds(30)),
            keep_alive: table.duration("keep_alive", seconds(15)),
        }
    }
}

impl Telemetry {
    fn read(mut table: Section<'_>) -> Self {
        let json_log = match table.text("log").as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(_) => {
                table.problem("log", "must be \"text\" or \"json\"");
                false
            }
        };
        Self {
            metrics: table.flag("metrics", true),
            json_log,
            decision_headers: table.flag("decision_headers", false),
        }
    }
}

impl Usage {
    fn read(mut table: Section<'_>, env: Env<'_>) -> Option<Self> {
        let is_on = table.flag("enabled", true);
        let path = if table.has("path") { table.text("path") } else { Some("usage.db".to_owned()) };
        let durability = match table.text("durability").as_deref() {
            None | Some("kill") => Durability::Kill,
            Some("power-loss") => Durability::PowerLoss,
            Some("memory") => Durability::Memory,
            Some(_) => {
                table.problem("durability", "must be \"memory\", \"kill\" or \"power-loss\"");
                Durability::Kill
            }
        };
        let hold = table.has("hold_last_byte");
        let hold_last_byte = hold.then(|| table.duration("hold_last_byte", Duration::from_secs(5)));
        let shared = SharedUsage::read(&mut table, env);
        path.filter(|_| is_on).map(|path| Self { path: path.into(), durability, hold_last_byte, shared })
    }
}

impl SharedUsage {
    fn read(table: &mut Section<'_>, env: Env<'_>) -> Option<Self> {
        let day = Duration::from_secs(24 * 60 * 60);
        let is_shared = table.has("redis");
        for field in ["redis_cluster", "redis_keep", "outbox", "outbox_max_bytes"] {
            if table.has(field) && !is_shared {
                table.problem(field, "is for usage that is recorded in redis");
            }
        }
        let outbox = table.text("outbox").unwrap_or_else(|| "usage-outbox".to_owned());
        let keep = table.duration("redis_keep", 90 * day);
        let outbox_max_bytes = table.number("outbox_max_bytes", 1 << 16, 1 << 30);
        let redis = redis(table, env)?;
        Some(Self { redis, keep, outbox: outbox.into(), outbox_max_bytes })
    }
}

/// The server or the cluster at `redis`.
fn redis(table: &mut Section<'_>, env: Env<'_>) -> Option<Redis> {
    let is_cluster = table.flag("redis_cluster", false);
    let urls = table.secret("redis", env)?;
    let urls: Vec<_> = urls.reveal().split(',').collect();
    let redis = match urls.as_slice() {
        [url] if !is_cluster => Redis::new(url, RedisOptions::default()),
        urls => Redis::cluster(urls, RedisOptions::default()),
    };
    redis.map_err(|error| table.problem("redis", error)).ok()
}

/// Reads price lists, yours before LiteLLM's.
fn prices(mut table: Section<'_>) -> Prices {
    let mut book = PriceBook::new();
    for field in ["litellm", "own"] {
        let Some(path) = table.text(field) else { continue };
        match PriceBook::read(&path) {
            Ok(list) => book = book.with_overrides(list),
            Err(error) => table.problem(field, error),
        }
    }
    book.into()
}

impl Provider {
    fn read(mut table: Section<'_>, env: Env<'_>) -> Option<Self> {
        let models = table.texts("models");
        let kind = if table.has("kind") { table.text("kind") } else { None };
        match kind.as_deref() {
            Some("echo") => return Some(Self { kind: Kind::Echo, models }),
            Some("openai") | None => {}
            Some(_) => table.problem("kind", "must be \"openai\" or \"echo\""),
        }
        let deployments = if table.has("deployments") {
            for field in ["base_url", "api_key", "trace_headers"] {
                if table.has(field) {
                    table.problem(field, "belongs into each of the deployments");
                    drop(table.take(field));
                }
            }
            let tables = table.sections("deployments");
            if tables.is_empty() {
                table.problem("deployments", "there must be one");
            }
            tables.into_iter().map(|mut table| Deployment::read(&mut table, env)).collect()
        } else {
            Deployment::read(&mut table, env).map(|only| vec![only])
        };
        Some(Self { kind: Kind::OpenAi(deployments?), models })
    }
}

impl Deployment {
    fn read(table: &mut Section<'_>, env: Env<'_>) -> Option<Self> {
        let api_key = table.secret("api_key", env);
        if !table.has("base_url") {
            table.problem("base_url", "is missing");
        }
        let base_url = table.text("base_url")?;
        if let Err(error) = OpenAiCompatible::new((), &base_url) {
            table.problem("base_url", error);
        }
        let trace_headers = table.flag("trace_headers", false);
        Some(Self { base_url, api_key, trace_headers })
    }
}

fn keys(tables: Vec<Section<'_>>, env: Env<'_>) -> Vec<(Hash, Caller)> {
    let mut keys: Vec<(Hash, Caller)> = Vec::new();
    for mut table in tables {
        if !table.has("key") {
            table.problem("key", "is missing");
        }
        let key = table.secret("key", env).map(|key| blake3::hash(key.reveal().as_bytes()));
        if keys.iter().any(|(other, _)| Some(*other) == key) {
            table.problem("key", "is the same as in an entry before");
        }
        let mut context = RequestContext::new();
        match table.has("user").then(|| table.text("user")) {
            Some(Some(user)) => context = context.with_user_id(user),
            Some(None) => {}
            None => table.problem("user", "is missing"),
        }
        if let Some(tenant) = table.text("tenant") {
            context = context.with_tenant_id(tenant);
        }
        if let Some(agent) = table.text("agent") {
            context = context.with_agent_name(agent);
        }
        context = context.with_departments(table.texts("departments"));
        let is_admin = table.flag("admin", false);
        keys.extend(key.map(|key| (key, Caller { context, is_admin })));
    }
    keys
}

fn aliases(mut table: Section<'_>, names: &ProviderNames, problems: &Problems) -> Option<Aliases> {
    let mut builder = AliasTable::builder().providers(names.clone());
    for alias in table.fields() {
        if table.is_array(&alias) {
            let mut targets = Vec::new();
            for mut target in table.sections(&alias) {
                if !target.has("model") {
                    target.problem("model", "is missing");
                }
                let weight = target.number("weight", 0, 1);
                targets.extend(target.text("model").map(|model| (model, weight)));
            }
            builder = builder.split(alias, targets);
        } else if let Some(target) = table.text(&alias) {
            builder = builder.alias(alias, target);
        }
    }
    match builder.build() {
        Ok(table) => Some(table.into()),
        Err(error) => {
            error.problems().iter().for_each(|problem| problems.add("aliases", problem));
            None
        }
    }
}

fn chains(
    mut table: Section<'_>,
    mut retry: Section<'_>,
    aliases: Option<&Aliases>,
    names: &ProviderNames,
    problems: &Problems,
) -> (Option<Chains>, u16, Duration) {
    let (base, max) = (Duration::from_millis(100), Duration::from_secs(2));
    let backoff = Backoff::new(retry.duration("base", base), retry.duration("max", max));
    let mut builder =
        Chains::builder().retries(retry.number("retries", 0, 0)).backoff(backoff).providers(names.clone());
    let max_attempts = retry.number("max_attempts", 1, 8);
    let deadline = retry.duration("deadline", Duration::from_secs(120));
    for model in table.fields() {
        if names.provider_for(&model).is_none() {
            table.problem(&model, "no provider serves it");
        }
        builder = builder.chain(model.clone(), table.texts(&model));
    }
    // Without aliases that work, targets cannot be told right from wrong.
    let Some(aliases) = aliases else { return (None, max_attempts, deadline) };
    match builder.aliases(aliases.clone()).build() {
        Ok(chains) => (Some(chains), max_attempts, deadline),
        Err(error) => {
            error.problems().iter().for_each(|problem| problems.add("fallbacks", problem));
            (None, max_attempts, deadline)
        }
    }
}

fn timeouts(mut table: Section<'_>) -> CallTimeoutLayer {
    let mut bound = |field, seconds| table.duration(field, Duration::from_secs(seconds));
    CallTimeoutLayer::new()
        .with_head(bound("head", 30))
        .with_first_content(bound("first_content", 60))
        .with_idle(bound("idle", 30))
        .with_total(bound("total", 600))
}

#[cfg(test)]
mod tests;
