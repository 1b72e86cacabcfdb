use super::stream::stream_key;
use crate::{
    BoxError,
    store::{Redis, RedisError},
    usage::{EventId, UsageEvent, UsageStore, record},
};
use redis::{Cmd, Value, from_redis_value_ref};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    iter::Peekable,
    sync::Arc,
    vec,
};

/// Reads the events of a [`RedisStream`](super::RedisStream), in their order.
///
/// It keeps no place of its own in Redis: keep [`cursor`](Self::cursor) with what you have made of the events, and go on
/// from there. Reading something again does no harm where it is written to a store that knows events by their ids, as
/// [`copy_to`](Self::copy_to) does.
///
/// A server that has lost the end of the stream, or all of it, may give new entries places before the cursor, where its clock is
/// behind the old one's. Where the entry at the cursor is gone and one before it is there, the whole stream is read again.
///
/// A server that was killed in the middle of a write may, when it starts again, have half of a group of entries, or a group
/// twice. What is not whole is left out: it was never acknowledged, and stands whole behind it. An event that stands
/// there twice is given once, as long as it is one of the last thousands that this reader has read; a ledger that it is
/// copied into has it once in any case.
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
    doubled: u64,
    recent: Recent,
}

/// What was read.
struct Read {
    events: Vec<UsageEvent>,
    cursor: Arc<str>,
    cut: u64,
    doubled: u64,
}

/// The events that were read last.
#[derive(Clone, Default)]
struct Recent {
    order: VecDeque<EventId>,
    ids: HashSet<EventId>,
}

/// Before all entries.
const BEGINNING: &str = "0-0";

/// More than are written at once.
const RECENT: usize = 8192;

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
    /// An entry is none of ours, or a field of it is wrong.
    Foreign {
        /// The id of the entry in the stream.
        entry: Box<str>,
    },
    /// The store that was copied to failed.
    Store(BoxError),
}

type Entry = (String, Fields);

impl StreamReader {
    /// Reads the stream of this [name](super::RedisStreamOptions::name) from its beginning.
    pub fn new(redis: Redis, name: &str) -> Self {
        let (key, cursor) = (stream_key(name), BEGINNING.into());
        Self { redis, key, cursor, cut: 0, doubled: 0, recent: Recent::default() }
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

    /// How many entries were left out because others of the same event are not there: they were trimmed away, or the
    /// server was killed while it wrote them.
    pub const fn cut(&self) -> u64 {
        self.cut
    }

    /// How many events were left out because they had been read just before.
    pub const fn doubled(&self) -> u64 {
        self.doubled
    }

    /// Reads the next events: about as many as have `entries` entries, at least one if there is one. None at the end.
    ///
    /// # Errors
    ///
    /// The cursor is where it was.
    pub async fn read(&mut self, entries: usize) -> Result<Vec<UsageEvent>, StreamError> {
        let read = self.peek(entries).await?;
        Ok(self.go_on(read))
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
        let write = |events: &[UsageEvent], _: &str| match events {
            [] => Ok(()),
            events => store.write(events),
        };
        self.read_to(write, entries).await
    }

    /// Hands what was read to `write`, with the place behind it, if there is anything.
    pub(in crate::usage) async fn read_to(
        &mut self,
        write: impl FnOnce(&[UsageEvent], &str) -> Result<(), BoxError>,
        entries: usize,
    ) -> Result<usize, StreamError> {
        let read = self.peek(entries).await?;
        if !read.events.is_empty() || read.cursor != self.cursor {
            write(&read.events, &read.cursor).map_err(StreamError::Store)?;
        }
        Ok(self.go_on(read).len())
    }

    /// Goes on behind this entry, or at the beginning, also with what it has read before.
    #[cfg(feature = "rusqlite")]
    pub(in crate::usage) fn go_to(&mut self, cursor: Option<Box<str>>) {
        self.cursor = cursor.map_or_else(|| BEGINNING.into(), Arc::from);
        self.recent = Recent::default();
    }

    fn go_on(&mut self, read: Read) -> Vec<UsageEvent> {
        let Read { events, cursor, cut, doubled } = read;
        self.cursor = cursor;
        self.cut += cut;
        self.doubled += doubled;
        events.iter().for_each(|event| self.recent.add(event.id));
        events
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

    /// The last entry of the stream; `None` if there is none.
    #[cfg(feature = "rusqlite")]
    pub(in crate::usage) async fn last(&self) -> Result<Option<Box<str>>, StreamError> {
        let mut command: Cmd = redis::cmd("XREVRANGE");
        command.arg(&self.key).arg("+").arg("-").arg("COUNT").arg(1);
        Ok(self.entries(&command).await?.into_iter().next().map(|(entry, _)| entry.into()))
    }

    /// Whether the cursor is at this entry, or behind it.
    #[cfg(feature = "rusqlite")]
    pub(in crate::usage) fn has_read(&self, entry: &str) -> bool {
        place(&self.cursor) >= place(entry)
    }

    async fn peek(&self, entries: usize) -> Result<Read, StreamError> {
        let mut most = entries.max(1);
        let cursor = match self.is_lost().await? {
            true => Arc::from(BEGINNING),
            false => Arc::clone(&self.cursor),
        };
        loop {
            let found = self.range(&cursor, most).await?;
            let is_end = found.len() < most;
            let read = self.assemble(&cursor, found)?;
            if !read.events.is_empty() || is_end {
                return Ok(read);
            }
            // One event has more entries than that.
            most *= 2;
        }
    }

    /// Whether the stream is not the one of which the cursor is a place. Entries that were removed are the oldest ones.
    async fn is_lost(&self) -> Result<bool, StreamError> {
        let mut command: Cmd = redis::cmd("XREVRANGE");
        command.arg(&self.key).arg(&*self.cursor).arg("-").arg("COUNT").arg(1);
        Ok(self.entries(&command).await?.first().is_some_and(|(id, _)| **id != *self.cursor))
    }

    async fn range(&self, cursor: &str, most: usize) -> Result<Vec<Entry>, StreamError> {
        let mut command: Cmd = redis::cmd("XRANGE");
        command.arg(&self.key).arg(format!("({cursor}")).arg("+").arg("COUNT").arg(most);
        self.entries(&command).await
    }

    async fn entries(&self, command: &Cmd) -> Result<Vec<Entry>, StreamError> {
        let value = self.redis.command(Some(self.key.as_bytes()), command).await;
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

impl StreamReader {
    /// Puts events together of their entries; what is cut off at the end is left for the next time.
    fn assemble(&self, cursor: &Arc<str>, found: Vec<Entry>) -> Result<Read, StreamError> {
        let mut found = found.into_iter().peekable();
        let cursor = Arc::clone(cursor);
        let mut read = Read { events: Vec::new(), cursor, cut: 0, doubled: 0 };
        let mut seen = HashSet::new();
        while let Some((entry, fields)) = found.next() {
            let foreign = || StreamError::Foreign { entry: entry.as_str().into() };
            match fields.get("v") {
                Some(version) if *version == record::VERSION.to_string() => {}
                Some(version) => {
                    return Err(StreamError::Newer { entry: entry.into(), found: version.as_str().into() });
                }
                None => return Err(foreign()),
            }
            let (Some(part), Some(parts)) = (number(&fields, "part"), number(&fields, "parts")) else {
                return Err(foreign());
            };
            let mut departments: Vec<Arc<str>> = Vec::new();
            let mut name = |fields: &Fields| {
                departments.extend(fields.get("department").map(|name| name.as_str().into()));
            };
            name(&fields);
            let (mut last, mut count) = (entry.clone(), 1);
            while part + count < parts
                && let Some((entry, fields)) = next_part(&mut found, &fields, part + count)
            {
                name(&fields);
                (last, count) = (entry, count + 1);
            }
            if part + count < parts && found.peek().is_none() {
                // There may be more of it when there is more.
                break;
            }
            read.cursor = last.into();
            if count < parts {
                // Nobody was told that it is there.
                read.cut += count as u64;
                continue;
            }
            let get = |name: &str| fields.get(name).map(String::as_str);
            let event = record::read(&get, departments).map_err(|_| foreign())?;
            match self.recent.ids.contains(&event.id) || !seen.insert(event.id) {
                true => read.doubled += 1,
                false => read.events.push(event),
            }
        }
        Ok(read)
    }
}

/// Where an entry stands, by its id.
#[cfg(feature = "rusqlite")]
fn place(entry: &str) -> Option<(u64, u64)> {
    let (millis, number) = entry.split_once('-')?;
    Some((millis.parse().ok()?, number.parse().ok()?))
}

type Fields = HashMap<String, String>;

fn number(fields: &Fields, name: &str) -> Option<usize> {
    fields.get(name)?.parse().ok()
}

/// The next entry, if it is this part of the same event.
fn next_part(found: &mut Peekable<vec::IntoIter<Entry>>, of: &Fields, part: usize) -> Option<Entry> {
    found.next_if(|(_, fields)| number(fields, "part") == Some(part) && fields.get("id") == of.get("id"))
}

impl Recent {
    fn add(&mut self, id: EventId) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        while self.order.len() > RECENT {
            if let Some(oldest) = self.order.pop_front() {
                self.ids.remove(&oldest);
            }
        }
    }
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
                write!(f, "entry {entry} is no record of usage")
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
