use super::{
    CacheKey, Entry,
    epoch::{Bucket, EpochStore},
};
use crate::{
    BoxError,
    caught::{caught, caught_in},
    forward::forward,
};
use bytes::Bytes;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// What somebody was asked for: here already, or on its way. Who has it in memory needs no box.
pub enum Fetch<T> {
    /// Here.
    Ready(T),
    /// On its way.
    Pending(Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>),
}

/// Keeps [entries](Entry).
///
/// It may forget any entry at any time, and what it gives back is checked: against the key that was asked for, the
/// caller's scope, the epochs and the time. Its errors are misses, and so are its panics.
///
/// ```
/// use llm_layers::{
///     ChatBody, LlmRequest, RequestContext,
///     cache::{CacheKey, CacheLayer, CachePolicy, CacheSecret, CacheStore, Entry, Fetch},
///     provider::Echo,
/// };
/// use std::{collections::HashMap, sync::{Arc, Mutex}};
/// use tower::{Layer, ServiceExt};
///
/// /// In earnest it is bounded, and drops what is older than its time. What is too old is not given to anybody in any case.
/// #[derive(Default)]
/// struct Map(Mutex<HashMap<CacheKey, Arc<Entry>>>);
///
/// impl CacheStore for Map {
///     fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
///         Fetch::Ready(self.0.lock().unwrap().get(key).cloned())
///     }
///
///     fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
///         self.0.lock().unwrap().insert(*entry.key(), entry);
///         Fetch::Ready(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let service = CacheLayer::new(Map::default(), CachePolicy::new(CacheSecret::random())).layer(Echo::new());
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?)
///     .with_context(RequestContext::new().with_user_id("ada"));
/// assert!(!service.clone().oneshot(request.clone()).await?.cache.is_hit());
/// assert!(service.oneshot(request).await?.cache.is_hit());
/// # Ok(())
/// # }
/// ```
pub trait CacheStore: Send + Sync + 'static {
    /// The entry of this key, if there is one.
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>>;

    /// Keeps `entry` under [its key](Entry::key), no longer than [its time](Entry::ttl), in place of what was there.
    ///
    /// Called when an answer ends, maybe within a `Drop`: what cannot be done in memory is left to the future, which
    /// runs off the path of any call.
    fn put(&self, entry: Arc<Entry>) -> Fetch<()>;

    /// Forgets what is in memory here under this key, because it is no good any more; `true` if a better one may be
    /// further away, so that it is worth to ask again.
    fn evict(&self, key: &CacheKey) -> bool {
        let _ = key;
        false
    }

    /// What is under this key further away than in memory here, where it may be newer, for who wants none as old as what is here;
    /// `None` if nothing is further away.
    fn further(&self, key: &CacheKey) -> Option<Fetch<Option<Arc<Entry>>>> {
        let _ = key;
        None
    }

    /// The epochs that all who share this store go by; `None` if nobody else does. Asked for where a layer or a stack is made; where that panics, nothing is found.
    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        None
    }
}

/// Keeps bytes under keys, in other processes too: what [`SealedStore`](super::SealedStore) makes a [`CacheStore`] of.
pub trait ByteStore: Send + Sync + 'static {
    /// What was put under this key, if it is still there.
    fn get(&self, key: &CacheKey) -> Fetch<Option<Bytes>>;

    /// Keeps `value` for `ttl`, in place of what was there.
    fn put(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Fetch<()>;

    /// The epochs that all who share this store go by.
    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        None
    }
}

/// A store as the cache asks it: what it does wrong is its own fault, and nobody's call breaks for it.
pub(super) struct Guarded(Arc<dyn CacheStore>);

impl<T> Fetch<T> {
    /// On its way by `future`.
    pub fn pending(future: impl Future<Output = Result<T, BoxError>> + Send + 'static) -> Self {
        Self::Pending(Box::pin(future))
    }

    /// Waits for it.
    ///
    /// # Errors
    ///
    /// Whatever kept it from coming, a panic of its future too.
    pub async fn wait(self) -> Result<T, BoxError> {
        match self {
            Self::Ready(value) => Ok(value),
            Self::Pending(future) => caught_in(WHO, future).await?,
        }
    }

    /// Asks somebody of the host's, whose panic is an error.
    pub(super) fn of(asked: impl FnOnce() -> Self) -> Self
    where
        T: 'static,
    {
        caught(WHO, asked).unwrap_or_else(|panicked| Self::pending(async { Err(panicked.into()) }))
    }
}

/// A store, an embedder, settings: the error says which.
const WHO: &str = "it";

const UNKNOWN: &str = "it panicked where it was asked for its epochs";

impl Guarded {
    pub(super) fn new(store: Arc<dyn CacheStore>) -> Self {
        Self(store)
    }

    pub(super) fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        Fetch::of(|| self.0.get(key))
    }

    /// `None` if it has failed at once.
    pub(super) fn put(&self, entry: Arc<Entry>) -> Option<Fetch<()>> {
        caught(WHO, || self.0.put(entry)).ok()
    }

    pub(super) fn evict(&self, key: &CacheKey) -> bool {
        caught(WHO, || self.0.evict(key)).unwrap_or(false)
    }

    pub(super) fn further(&self, key: &CacheKey) -> Option<Fetch<Option<Arc<Entry>>>> {
        caught(WHO, || self.0.further(key)).ok().flatten()
    }

    /// Those of a store that panics are known to nobody.
    pub(super) fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        caught(WHO, || self.0.epochs()).unwrap_or_else(|_| Some(Arc::new(Unknown)))
    }
}

/// The epochs of a store that did not give any.
struct Unknown;

impl EpochStore for Unknown {
    fn read(&self, _: &[Bucket]) -> Fetch<Vec<u64>> {
        Fetch::pending(async { Err(UNKNOWN.into()) })
    }

    fn raise(&self, _: Bucket) -> Fetch<()> {
        Fetch::pending(async { Err(UNKNOWN.into()) })
    }
}

impl<T> fmt::Debug for Fetch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}

forward! {
    CacheStore for [Arc, Box] {
        fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>>;
        fn put(&self, entry: Arc<Entry>) -> Fetch<()>;
        fn evict(&self, key: &CacheKey) -> bool;
        fn further(&self, key: &CacheKey) -> Option<Fetch<Option<Arc<Entry>>>>;
        fn epochs(&self) -> Option<Arc<dyn EpochStore>>;
    }
}

forward! {
    ByteStore for [Arc, Box] {
        fn get(&self, key: &CacheKey) -> Fetch<Option<Bytes>>;
        fn put(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Fetch<()>;
        fn epochs(&self) -> Option<Arc<dyn EpochStore>>;
    }
}
