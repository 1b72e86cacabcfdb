use super::stream::stream_key;
use crate::{
    BoxError,
    store::{Redis, RedisError},
    usage::{UsageEvent, UsageStore, record},
};
use redis::{Cmd, Value, from_redis_value_ref};
use std::{collections::HashMap, fmt, sync::Arc};

/// Reads the events of a [`RedisStream`](super::RedisStream), in their order.
///
/// It keeps no place of its own in Redis: keep [`cursor`](Self::cursor) with what you have made of the events, and go on
/// from there. Reading something again does no harm where it is written to a store that knows events by their ids, as
/// [`copy_to`](Self::copy_to) does.
///
/// ```no_run
/// # #[cfg(feature = "rusqlite")]
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use llm_layers::{
///     store::{Redis, RedisOptions},
///     usage::{Durability, SqliteLedger, StreamReader},
/// };
///
/// let redis = Redis::new("redis://127.0.0.1", RedisOptions::default())?;
/// let mut ledger = SqliteLedger::open("all-gateways.db", Durability::PowerLoss)?;
/// let mut reader = StreamReader::new(redis, "llm-usage");
/// while reader.copy_to(&mut ledger, 500).await? > 0 {
///     reader.remove_read().await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct StreamReader {
    redis: Redis,
    key: String,
    cursor: Arc<str>,
    cut: u64,
}

/// What was read.
struct Read {
    events: Vec<UsageEvent>,
    cursor: Arc<str>,
    cut: u64,
}

/// Why a stream could not be read. The cursor has not moved.
#[derive(Debug)]
#[non_exhaustive]
pub enum StreamError {
    /// Redis did not answer, or not so.
    Redis(RedisError),
    /// An entry is of a newer version.
    Newer {
        /// The id of the entry in the stream.
        entry: Box<str>,
        /// Its version.
        found: Box<str>,
    },
    /// An entry is none of ours, or its event is not whole.
    Foreign {
        /// The id of the entry in the stream.
        entry: Box<str>,
    },
    /// The store that was copied to failed.
    Store(BoxError),
}

type Entry = (String, HashMap<String, String>);

impl StreamReader {
    /// Reads the stream of this [name](super::RedisStreamOptions::name) from its beginning.
    pub fn new(redis: Redis, name: &str) -> Self {
        Self { redis, key: stream_key(name), cursor: "0-0".into(), cut: 0 }
    }

    /// Goes on behind this [`cursor`](Self::cursor).
    #[must_use]
    pub fn after(mut self, cursor: impl Into<Arc<str>>) -> Self {
        self.cursor = cursor.into();
        self
    }

    /// How far was read: the id of an entry in the stream.
    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    /// How many entries were left out because others of the same event were trimmed away.
    pub const fn cut(&self) -> u64 {
        self.cut
    }

    /// Reads the next events: about as many as have `entries` entries, at least one if there is one. None at the end.
    ///
    /// # Errors
    ///
    /// The cursor is where it was.
    pub async fn read(&mut self, entries: usize) -> Result<Vec<UsageEvent>, StreamError> {
        let read = self.peek(entries).await?;
        (self.cursor, self.cut) = (read.cursor, self.cut + read.cut);
        Ok(read.events)
    }

    /// Reads as [`read`](Self::read), writes what was read to `store`, and says how many events these were. Blocks while the
    /// store writes.
    ///
    /// # Errors
    ///
    /// The cursor is where it was.
    pub async fn copy_to(
        &mut self,
        store: &mut impl UsageStore,
        entries: usize,
    ) -> Result<usize, StreamError> {
        let read = self.peek(entries).await?;
        if !read.events.is_empty() {
            store.write(&read.events).map_err(StreamError::Store)?;
        }
        (self.cursor, self.cut) = (read.cursor, self.cut + read.cut);
        Ok(read.events.len())
    }

    /// Removes from the stream what was read, up to the cursor. Others who read the same stream must have read it too.
    ///
    /// # Errors
    ///
    /// Redis did not do it.
    pub async fn remove_read(&self) -> Result<(), StreamError> {
        let Some((millis, number)) = self.cursor.split_once('-') else { return Ok(()) };
        let next = number.parse::<u64>().map_or(0, |number| number.saturating_add(1));
        let mut command = redis::cmd("XTRIM");
        command.arg(&self.key).arg("MINID").arg(format!("{millis}-{next}"));
        self.redis.command(Some(self.key.as_bytes()), &command).await.map_err(StreamError::Redis)?;
        Ok(())
    }

    async fn peek(&self, entries: usize) -> Result<Read, StreamError> {
        let mut most = entries.max(1);
        loop {
            let found = self.range(most).await?;
            let is_end = found.len() < most;
            let read = assemble(found, is_end, &self.cursor)?;
            if !read.events.is_empty() || is_end {
                return Ok(read);
            }
            // One event has more entries than that.
            most *= 2;
        }
    }

    async fn range(&self, most: usize) -> Result<Vec<Entry>, StreamError> {
        let mut command: Cmd = redis::cmd("XRANGE");
        command.arg(&self.key).arg(format!("({}", self.cursor)).arg("+").arg("COUNT").arg(most);
        let value = self.redis.command(Some(self.key.as_bytes()), &command).await;
        let Value::Array(found) = value.map_err(StreamError::Redis)? else {
            return Err(StreamError::Redis(RedisError::unexpected()));
        };
        found
            .iter()
            .map(|entry| {
                from_redis_value_ref(entry).map_err(|_| StreamError::Redis(RedisError::unexpected()))
            })
            .collect()
    }
}

/// Puts events together of their entries; what is cut off at the end is left for the next time.
fn assemble(found: Vec<Entry>, is_end: bool, cursor: &Arc<str>) -> Result<Read, StreamError> {
    let mut found = found.into_iter();
    let mut read = Read { events: Vec::new(), cursor: Arc::clone(cursor), cut: 0 };
    while let Some((entry, fields)) = found.next() {
        let foreign = || StreamError::Foreign { entry: entry.as_str().into() };
        match fields.get("v") {
            Some(version) if *version == record::VERSION.to_string() => {}
            Some(version) => {
                return Err(StreamError::Newer { entry: entry.into(), found: version.as_str().into() });
            }
            None => return Err(foreign()),
        }
        let number = |fields: &HashMap<String, String>, name| fields.get(name)?.parse::<usize>().ok();
        let parts = match (number(&fields, "part"), number(&fields, "parts")) {
            (Some(0), Some(parts)) => parts,
            // A cursor is always at the end of an event.
            (Some(_), Some(_)) if read.events.is_empty() => {
                (read.cut, read.cursor) = (read.cut + 1, entry.into());
                continue;
            }
            _ => return Err(foreign()),
        };
        let mut departments: Vec<Arc<str>> = Vec::new();
        departments.extend(fields.get("department").map(|name| name.as_str().into()));
        let mut last = entry.clone();
        for part in 1..parts {
            match found.next() {
                Some((entry, more))
                    if number(&more, "part") == Some(part) && more.get("id") == fields.get("id") =>
                {
                    departments.extend(more.get("department").map(|name| name.as_str().into()));
                    last = entry;
                }
                None if !is_end => return Ok(read),
                _ => return Err(foreign()),
            }
        }
        let get = |name: &str| fields.get(name).map(String::as_str);
        read.events.push(record::read(&get, departments).map_err(|_| foreign())?);
        read.cursor = last.into();
    }
    Ok(read)
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("redis", &self.redis)
            .field("key", &self.key)
            .field("cursor", &self.cursor)
            .finish()
    }
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Redis(_) => f.write_str("the stream of usage cannot be read"),
            Self::Newer { entry, found } => {
                write!(
                    f,
                    "entry {entry} is of version {found}, and {} is the newest known here",
                    record::VERSION
                )
            }
            Self::Foreign { entry } => {
                write!(f, "entry {entry} is no record of usage, or not all of it is there")
            }
            Self::Store(_) => f.write_str("what was read could not be written"),
        }
    }
}

impl std::error::Error for StreamError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Redis(error) => Some(error),
            Self::Store(error) => Some(&**error),
            Self::Newer { .. } | Self::Foreign { .. } => None,
        }
    }
}
