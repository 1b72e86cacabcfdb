use super::{Bucket, ByteStore, CacheKey, EpochKind, EpochStore, Fetch};
use crate::store::{Redis, RedisError};
use bytes::Bytes;
use redis::{Value, cmd};
use std::{fmt, sync::Arc, time::Duration};

/// Keeps what a cache shares with other processes in Redis: bytes for a [`SealedStore`](super::SealedStore), each with its
/// time, and the epochs.
///
/// Every command is one of one key, so that entries spread over the nodes of a cluster. Each process asks for the epochs
/// of a caller once a second at most, in the same round trip as for the entry.
///
/// Its memory should be bounded, with a policy that lets entries go: `maxmemory-policy volatile-lru` leaves the epochs
/// alone, which have no time. If they are lost all the same, so is everything that was kept. Counters of quotas belong
/// into another instance.
///
/// ```no_run
/// use llm_layers::{
///     cache::{CacheLayer, CachePolicy, CacheSecret, MokaStore, RedisBytes, SealedStore, TieredStore},
///     store::{Redis, RedisOptions},
/// };
///
/// # async fn example(secret: CacheSecret) -> Result<(), llm_layers::store::RedisError> {
/// let redis = Redis::new("redis://127.0.0.1", RedisOptions::default())?;
/// let shared = SealedStore::new(RedisBytes::new(&redis, "llm-cache"), secret.clone());
/// let store = TieredStore::new(MokaStore::new(256 << 20), shared);
/// let (layer, worker) = CacheLayer::start(store, CachePolicy::new(secret));
/// # let _ = (layer, worker);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisBytes(Arc<Inner>);

struct Inner {
    /// Entries may be large: they do not stand in anybody's way, nor anybody in theirs.
    redis: Redis,
    name: Box<str>,
    epochs: String,
}

/// The field of the epochs' own number.
const NUMBER: &str = "n";

impl RedisBytes {
    /// Keeps all under keys that begin with `name`, on connections of its own.
    pub fn new(redis: &Redis, name: &str) -> Self {
        let (name, epochs) = (Box::from(name), format!("{name}:epochs"));
        Self(Arc::new(Inner { redis: redis.apart(), name, epochs }))
    }

    fn key(&self, key: &CacheKey) -> String {
        format!("{}:e:{key}", self.0.name)
    }

    async fn read_epochs(&self, fields: &[String]) -> Result<Vec<u64>, RedisError> {
        let Inner { redis, epochs, .. } = &*self.0;
        let mut command = cmd("HMGET");
        command.arg(epochs).arg(NUMBER).arg(fields);
        loop {
            let read = numbers(redis.command(Some(epochs.as_bytes()), &command).await?)?;
            match read.split_first() {
                Some((Some(number), rest)) => {
                    return Ok([*number].into_iter().chain(rest.iter().map(|e| e.unwrap_or(0))).collect());
                }
                Some((None, _)) => {
                    // New, or lost: from now on it is another one. Whoever is first chooses the number.
                    let mut command = cmd("HSETNX");
                    command.arg(epochs).arg(NUMBER).arg(fastrand::u64(1..=u64::MAX >> 1));
                    redis.command(Some(epochs.as_bytes()), &command).await?;
                }
                None => return Err(RedisError::unexpected()),
            }
        }
    }
}

/// Each a number, or absent.
fn numbers(value: Value) -> Result<Vec<Option<u64>>, RedisError> {
    let Value::Array(values) = value else { return Err(RedisError::unexpected()) };
    let number = |value| match value {
        Value::Nil => Ok(None),
        Value::BulkString(text) => {
            let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            number.map(Some).ok_or_else(RedisError::unexpected)
        }
        _ => Err(RedisError::unexpected()),
    };
    values.into_iter().map(number).collect()
}

fn field(bucket: Bucket) -> String {
    let kind = match bucket.kind() {
        EpochKind::Tenant => 't',
        EpochKind::User => 'u',
        EpochKind::Model => 'm',
        EpochKind::KnowledgeBase => 'k',
    };
    format!("{kind}{}", bucket.index())
}

impl ByteStore for RedisBytes {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Bytes>> {
        let (store, key) = (self.clone(), self.key(key));
        Fetch::pending(async move {
            let mut command = cmd("GET");
            command.arg(&key);
            match store.0.redis.command(Some(key.as_bytes()), &command).await? {
                Value::Nil => Ok(None),
                Value::BulkString(bytes) => Ok(Some(bytes.into())),
                _ => Err(RedisError::unexpected().into()),
            }
        })
    }

    fn put(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Fetch<()> {
        let (store, key) = (self.clone(), self.key(key));
        Fetch::pending(async move {
            let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, MOST_MILLIS);
            let mut command = cmd("SET");
            command.arg(&key).arg(&value[..]).arg("PX").arg(millis);
            store.0.redis.command(Some(key.as_bytes()), &command).await?;
            Ok(())
        })
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        Some(Arc::new(self.clone()))
    }
}

/// Ten years: Redis takes no time that ends beyond its own.
const MOST_MILLIS: u64 = 10 * 365 * 24 * 3600 * 1000;

impl EpochStore for RedisBytes {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        let (store, fields) = (self.clone(), buckets.iter().copied().map(field).collect::<Vec<_>>());
        Fetch::pending(async move { Ok(store.read_epochs(&fields).await?) })
    }

    fn raise(&self, bucket: Bucket) -> Fetch<()> {
        let store = self.clone();
        Fetch::pending(async move {
            let Inner { redis, epochs, .. } = &*store.0;
            let mut command = cmd("HINCRBY");
            command.arg(epochs).arg(field(bucket)).arg(1);
            redis.command(Some(epochs.as_bytes()), &command).await?;
            Ok(())
        })
    }
}

impl fmt::Debug for RedisBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBytes").field("redis", &self.0.redis).field("name", &self.0.name).finish()
    }
}
