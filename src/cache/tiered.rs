use super::{CacheKey, CacheStore, Entry, Fetch, epoch::EpochStore};
use std::{fmt, sync::Arc};

/// Two stores, a near one and a far one: what is not in the near one is looked for in the far one, and kept in both.
///
/// Epochs are the far one's, for it is the one that is shared.
pub struct TieredStore<N, F> {
    near: Arc<N>,
    far: F,
}

impl<N: CacheStore, F: CacheStore> TieredStore<N, F> {
    /// `near`, then `far`.
    pub fn new(near: N, far: F) -> Self {
        Self { near: Arc::new(near), far }
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

impl<N: CacheStore, F: CacheStore> CacheStore for TieredStore<N, F> {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        let near = self.near.get(key);
        if let Fetch::Ready(Some(entry)) = near {
            return Fetch::Ready(Some(entry));
        }
        let (far, place, key) = (self.far.get(key), Arc::clone(&self.near), *key);
        Fetch::pending(async move {
            if let Ok(Some(entry)) = near.wait().await {
                return Ok(Some(entry));
            }
            let found = far.wait().await?;
            // A liar's answer is not kept.
            if let Some(entry) = found.as_ref().filter(|entry| *entry.key() == key) {
                // What the near one makes of it is not worth failing for.
                let _ = Fetch::of(|| place.put(Arc::clone(entry))).wait().await;
            }
            Ok(found)
        })
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        match (self.near.put(Arc::clone(&entry)), self.far.put(entry)) {
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

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        self.far.epochs().or_else(|| self.near.epochs())
    }
}

impl<N: fmt::Debug, F: fmt::Debug> fmt::Debug for TieredStore<N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TieredStore").field("near", &self.near).field("far", &self.far).finish()
    }
}
