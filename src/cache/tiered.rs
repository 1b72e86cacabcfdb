use super::{CacheKey, CacheStore, Entry, Fetch, epoch::EpochStore};
use crate::BoxError;
use std::{fmt, sync::Arc, time::Duration};

/// Two stores, a near one and a far one: what is not in the near one is looked for in the far one, and kept in both.
///
/// Epochs are the far one's, for it is the one that is shared. The near one does not hear of what others put there: it keeps its
/// copies for a bounded time, and is passed over by who wants none as old as what it has.
pub struct TieredStore<N, F> {
    near: Arc<N>,
    far: F,
    near_time: Duration,
}

impl<N: CacheStore, F: CacheStore> TieredStore<N, F> {
    /// `near`, then `far`. What is near is kept for a minute at most.
    pub fn new(near: N, far: F) -> Self {
        Self { near: Arc::new(near), far, near_time: Duration::from_secs(60) }
    }

    /// Keeps what is near for no longer than this, and asks the far one again then: so long may an answer be given here after
    /// somebody else has asked for a new one, or by a clock that is behind.
    #[must_use]
    pub const fn with_near_time(mut self, time: Duration) -> Self {
        self.near_time = time;
        self
    }

    /// The near one.
    pub fn near(&self) -> &N {
        &self.near
    }

    /// The far one.
    pub const fn far(&self) -> &F {
        &self.far
    }
}

impl<N: CacheStore, F: CacheStore> TieredStore<N, F> {
    /// What the far one has, which is near from then on.
    fn ask_far(
        &self,
        key: &CacheKey,
    ) -> impl Future<Output = Result<Option<Arc<Entry>>, BoxError>> + Send + use<N, F> {
        let (far, near, time, key) = (self.far.get(key), Arc::clone(&self.near), self.near_time, *key);
        async move {
            // A liar's answer is not kept.
            let found = match far.wait().await? {
                Some(found) if *found.key() == key => found,
                other => return Ok(other),
            };
            // The far one may have missed what was put into both.
            let own = Fetch::of(|| near.get(&key)).wait().await.ok().flatten();
            if let Some(own) = own.filter(|own| !own.is_over() && own.is_newer_than(&found)) {
                return Ok(Some(own));
            }
            // What the near one makes of it is not worth failing for.
            let _ = Fetch::of(|| near.put(found.copy_for(time))).wait().await;
            Ok(Some(found))
        }
    }
}

impl<N: CacheStore, F: CacheStore> CacheStore for TieredStore<N, F> {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        let near = match self.near.get(key) {
            Fetch::Ready(Some(entry)) if !entry.is_over() => return Fetch::Ready(Some(entry)),
            near => near,
        };
        let far = self.ask_far(key);
        Fetch::pending(async move {
            match near.wait().await {
                Ok(Some(entry)) if !entry.is_over() => Ok(Some(entry)),
                _ => far.await,
            }
        })
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        match (self.near.put(entry.copy_for(self.near_time)), self.far.put(entry)) {
            (Fetch::Ready(()), far) => far,
            (near, far) => Fetch::pending(async move {
                let near = near.wait().await;
                far.wait().await?;
                near
            }),
        }
    }

    fn evict(&self, key: &CacheKey) -> bool {
        self.near.evict(key);
        true
    }

    fn further(&self, key: &CacheKey) -> Option<Fetch<Option<Arc<Entry>>>> {
        Some(Fetch::pending(self.ask_far(key)))
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        self.far.epochs().or_else(|| self.near.epochs())
    }
}

impl<N: fmt::Debug, F: fmt::Debug> fmt::Debug for TieredStore<N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredStore").field("near", &self.near).field("far", &self.far).finish()
    }
}
