use crate::{
    BoxError,
    store::{
        Redis, RedisError,
        redis::{Run, Script},
    },
    usage::{EventId, LogPosition, UsageEvent, UsageStore, record},
};
use redis::Value;
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use tokio::runtime::{Builder, Runtime};

/// Appends events to a stream of Redis, one entry for each department, each event once.
///
/// For the thread of a [`QueueSink`](crate::usage::QueueSink), or better of an [`Outbox`](crate::usage::Outbox), which keeps
/// events on the disk while Redis is away: it blocks, and must not be used on a thread of a runtime.
///
/// An event's entries are written by one script, all or none, and next to one another. It is known again by its id for
/// [`remember`](RedisStreamOptions::remember), and out of an outbox by its place there for a year, so that nothing is
/// written twice however often and late it is offered.
///
/// # Schema
///
/// All values are texts; numbers are whole. What there is not is left out.
///
/// | field | |
/// |---|---|
/// | `v` | version of this schema: 1 |
/// | `part`, `parts` | which of the event's entries this is, from 0, and of how many: entries with `part` 0 are the events |
/// | `department` | who is charged, in full |
/// | `id` | 32 hexadecimal digits, the first 12 of them milliseconds since 1970 |
/// | `ended_at` | nanoseconds since 1970 |
/// | `tenant`, `user`, `agent`, `task_type`, `conversation`, `request_id` | who asked |
/// | `requested`, `model`, `answered`, `provider` | the model as asked for, by its canonical name, as the provider names it |
/// | `attempt`, `streamed` | which attempt, from 0; 1 if it was to stream |
/// | `input_tokens`, `output_tokens`, `cache_read_tokens`, `cache_write_tokens`, `cache_write_1h_tokens`, `reasoning_tokens` | |
/// | `certainty` | of the tokens: `exact`, `estimated`, `unknown` |
/// | `cost` | nano-dollars; without it nobody knows |
/// | `price_entry`, `price_source`, `price_version` | by which price |
/// | `latency`, `first_content` | nanoseconds |
/// | `outcome` | `ok`, `empty`, `error`, `aborted`, `cache_hit`, `coalesced` |
/// | `cache`, `cache_age`, `cache_bypass`, `cache_miss` | `unused`, `hit`, `miss`, `bypass`, `coalesced`; nanoseconds; why it was not asked, or had no answer |
/// | `saved_…` | tokens, `certainty`, `cost` and `price_…` of what was not spent |
///
/// The keys are `{name}:events`, the stream; `{name}:ids:DAY`, sets of ids; `{name}:log:…`, one for each file of an
/// outbox. In a cluster all are of one slot.
///
/// # Examples
///
/// ```no_run
/// use llm_layers::{
///     price::Prices,
///     provider::Echo,
///     store::{Redis, RedisOptions},
///     usage::{Durability, Outbox, OutboxOptions, RedisStream, RedisStreamOptions, Trim, UsageLayer},
/// };
/// use std::time::Duration;
/// use tower::Layer;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::new("redis://127.0.0.1", RedisOptions::default())?;
/// let options = RedisStreamOptions::default().with_trim(Trim::Age(Duration::from_secs(90 * 24 * 3600)));
/// let stream = RedisStream::new(&redis, options);
/// let (sink, worker) = Outbox::start("usage-outbox", Durability::Kill, stream, OutboxOptions::default())?;
/// let service = UsageLayer::new(sink, Prices::default()).layer(Echo::new());
/// // … serve. At the end:
/// # drop(service);
/// let report = worker.shutdown(Duration::from_secs(10)).await;
/// println!("{} events are left for the next start", report.log.events);
/// # Ok(())
/// # }
/// ```
pub struct RedisStream {
    redis: Redis,
    /// Made on the thread that writes.
    runtime: Option<Runtime>,
    script: Script,
    name: Arc<str>,
    remember: Duration,
    trim: Trim,
}

/// How a [`RedisStream`] is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisStreamOptions {
    /// What its keys begin with; `llm-usage` unless told.
    pub name: Arc<str>,
    /// For how long ids of events are remembered after they were written; three days unless told. An id takes about 70
    /// bytes.
    pub remember: Duration,
    /// What is removed from the stream by itself; nothing unless told.
    pub trim: Trim,
}

/// What is removed from a stream by itself, whether it was read or not. About so: Redis removes whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trim {
    /// Nothing. Whoever reads it should remove what is read, by [`StreamReader::remove_read`](super::StreamReader::remove_read).
    Never,
    /// The oldest entries beyond so many.
    Entries(u64),
    /// Entries that are older.
    Age(Duration),
}

/// For how long it is known how far a file of an outbox is written.
const REMEMBER_LOGS: Duration = Duration::from_secs(366 * 24 * 60 * 60);
const DAY_MILLIS: u128 = 24 * 60 * 60 * 1000;

impl Default for RedisStreamOptions {
    fn default() -> Self {
        let remember = Duration::from_secs(3 * 24 * 60 * 60);
        Self { name: "llm-usage".into(), remember, trim: Trim::Never }
    }
}

impl RedisStreamOptions {
    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = name.into();
        self
    }

    /// Sets [`remember`](Self::remember).
    #[must_use]
    pub const fn with_remember(mut self, time: Duration) -> Self {
        self.remember = time;
        self
    }

    /// Sets [`trim`](Self::trim).
    #[must_use]
    pub const fn with_trim(mut self, trim: Trim) -> Self {
        self.trim = trim;
        self
    }
}

impl RedisStream {
    /// A stream on these servers, on connections of its own. Asks nobody yet.
    pub fn new(redis: &Redis, options: RedisStreamOptions) -> Self {
        let RedisStreamOptions { name, remember, trim } = options;
        let script = Script::new(include_str!("stream.lua"));
        Self { redis: redis.apart(), runtime: None, script, name, remember, trim }
    }

    fn append(&mut self, group: &[UsageEvent], position: Option<LogPosition<'_>>) -> Result<(), BoxError> {
        if group.is_empty() {
            return Ok(());
        }
        let runtime = match self.runtime.take() {
            Some(runtime) => runtime,
            None => Builder::new_current_thread().enable_all().build()?,
        };
        let result = runtime.block_on(self.redis.run(&self.prepare(group, position)));
        self.runtime = Some(runtime);
        match result? {
            Value::Int(_) => Ok(()),
            _ => Err(RedisError::unexpected().into()),
        }
    }

    fn prepare(&self, group: &[UsageEvent], position: Option<LogPosition<'_>>) -> Run<'_> {
        let place = match &position {
            Some(position) => key(&self.name, &format!("log:{:032x}", position.log)),
            None => key(&self.name, "log:none"),
        };
        let mut keys = vec![stream_key(&self.name), place];
        // Where in `keys` the set of a day is.
        let mut sets = BTreeMap::new();
        for event in group {
            sets.entry(day(event.id)).or_insert_with_key(|day| {
                keys.push(key(&self.name, &format!("ids:{day}")));
                keys.len()
            });
        }
        let (how, bound) = match self.trim {
            Trim::Never => ("", String::new()),
            Trim::Entries(most) => ("MAXLEN", most.to_string()),
            Trim::Age(most) => ("MINID", most.as_millis().to_string()),
        };
        let mut run = self.script.run(&keys);
        run.push(self.remember.as_secs().max(1));
        run.push(REMEMBER_LOGS.as_secs());
        run.push(how);
        run.push(bound);
        let mut words: Vec<u8> = Vec::new();
        let mut ends: Vec<usize> = Vec::new();
        for (number, event) in group.iter().enumerate() {
            run.push(sets[&day(event.id)]);
            run.push(&event.id.to_bytes()[..]);
            match position.and_then(|position| position.ends.get(number)) {
                Some(end) => run.push(end),
                None => run.push(""),
            }
            let departments = event.context.department_ids();
            run.push(departments.len());
            words.clear();
            ends.clear();
            let mut put = |word: &str| {
                words.extend(word.as_bytes());
                ends.push(words.len());
            };
            put("v");
            put(&record::VERSION.to_string());
            record::write(event, &mut |name, value| {
                put(name);
                put(value);
            });
            run.push(ends.len());
            departments.iter().for_each(|department| run.push(&**department));
            let mut start = 0;
            for end in &ends {
                run.push(&words[start..*end]);
                start = *end;
            }
        }
        run
    }
}

/// The keys of one stream are of one slot.
fn key(name: &str, rest: &str) -> String {
    format!("{{{name}}}:{rest}")
}

pub(super) fn stream_key(name: &str) -> String {
    key(name, "events")
}

fn day(id: EventId) -> u128 {
    (u128::from_be_bytes(id.to_bytes()) >> 80) / DAY_MILLIS
}

impl UsageStore for RedisStream {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.append(group, None)
    }

    fn write_from(&mut self, position: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.append(group, Some(position))
    }

    /// None: it takes any event. What fails is Redis, which is full, starts, or is not reached.
    fn knows_refusals(&self) -> bool {
        true
    }
}

impl Drop for RedisStream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped as it is, it would panic within another.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for RedisStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStream")
            .field("redis", &self.redis)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
