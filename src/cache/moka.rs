use super::{CacheKey, CacheStore, Entry, Fetch};
use moka::{Expiry, sync::Cache};
use std::{
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

/// Keeps entries in this process's memory, up to a number of bytes, each for its own time. Clones share them.
///
/// ```
/// use llm_layers::cache::MokaStore;
///
/// let store = MokaStore::new(256 << 20);
/// assert_eq!(store.len(), 0);
/// ```
#[derive(Clone)]
pub struct MokaStore(Cache<CacheKey, Arc<Entry>, BuildHasherDefault<Fold>>);

/// An entry's own time.
struct Own;

/// Ten years: a clock takes no time that ends beyond its own.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// About how many bytes moka takes for an entry besides: its place in the table, and in the queues of what is asked for least and
/// what ends first.
const NODE: usize = 352;

/// A key is a hash already.
#[derive(Default)]
struct Fold(u64);

impl MokaStore {
    /// Keeps at most about this many bytes; what is asked for least goes first.
    pub fn new(max_bytes: u64) -> Self {
        let cache = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|_: &CacheKey, entry: &Arc<Entry>| {
                u32::try_from(entry.weight().saturating_add(NODE)).unwrap_or(u32::MAX)
            })
            .expire_after(Own)
            .build_with_hasher(BuildHasherDefault::default());
        Self(cache)
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes they take.
    pub fn bytes(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.weighted_size()
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.0.invalidate_all();
    }
}

impl CacheStore for MokaStore {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        Fetch::Ready(self.0.get(key))
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        self.0.insert(*entry.key(), entry);
        Fetch::Ready(())
    }

    fn evict(&self, key: &CacheKey) -> bool {
        self.0.invalidate(key);
        false
    }
}

impl Expiry<CacheKey, Arc<Entry>> for Own {
    fn expire_after_create(&self, _: &CacheKey, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.ttl().min(LONGEST))
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl().min(LONGEST))
    }
}

impl Hasher for Fold {
    fn write(&mut self, bytes: &[u8]) {
        // The length of an array comes first, then the array.
        if let Some(first) = bytes.first_chunk() {
            self.0 ^= u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Debug for MokaStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaStore")
            .field("entries", &self.0.entry_count())
            .field("bytes", &self.0.weighted_size())
            .finish_non_exhaustive()
    }
}
