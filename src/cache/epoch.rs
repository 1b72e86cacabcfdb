use super::{CacheScope, Fetch};
use crate::{BoxError, LlmRequest};
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Epochs of each kind. Ids share them by hash, so that there is a bound: a raised one drops its neighbours too.
pub const BUCKETS: u16 = 4096;

/// What can be made invalid as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum EpochKind {
    /// All that was kept for a tenant.
    Tenant,
    /// All that was kept for a user.
    User,
    /// All that a model has answered, by the name that the cache sees; around a deployment, with the provider in front.
    Model,
    /// All that drew on a knowledge base.
    KnowledgeBase,
}

/// One of the [`BUCKETS`] of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket(
    /// Those of each kind, one kind after the other.
    u16,
);

/// Keeps epochs for several processes.
pub trait EpochStore: Send + Sync + 'static {
    /// A number that changes when the epochs were lost, then the epoch of each of `buckets`, 0 if it was never raised.
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>>;

    /// Raises the epoch of `bucket`, for all to see.
    fn raise(&self, bucket: Bucket) -> Fetch<()>;
}

/// Under which epochs an entry was made. It is good as long as they are the same.
#[derive(Clone, Eq, Hash, Default)]
#[expect(clippy::derived_hash_with_manual_eq, reason = "it compares the same, more quickly")]
pub(super) struct Stamp {
    /// Of the store, the tenant, the user and the model.
    pub(super) own: [u64; 4],
    pub(super) kbs: Box<[u64]>,
}

/// The epochs as far as this process knows them.
pub(super) struct Epochs {
    known: Box<[Known]>,
    generation: AtomicU64,
    /// How often any was raised, or was to be raised, here.
    raised: AtomicU64,
    /// None: nobody else raises any, and what is known here is all there is.
    shared: Option<Shared>,
    base: Instant,
}

struct Shared {
    store: Arc<dyn EpochStore>,
    max_age: Duration,
    /// When the latest epoch was raised here, as in [`Known::at`]. What was asked before may be answered after it.
    raised_at: Mutex<u64>,
}

#[derive(Default)]
struct Known {
    epoch: AtomicU64,
    /// Nanoseconds since `base`, from 1; 0 is not known.
    at: AtomicU64,
}

// ===== impl Stamp =====

impl PartialEq for Stamp {
    /// Number by number: mostly there is no knowledge base, and a C library that compares no bytes at all with a masked
    /// load, from where nothing is, takes 70 ns for it.
    fn eq(&self, other: &Self) -> bool {
        self.own == other.own && self.kbs.iter().eq(&other.kbs)
    }
}

// ===== impl Bucket =====

impl Bucket {
    /// Where `id` belongs.
    pub fn of(kind: EpochKind, id: &str) -> Self {
        Self::of_bytes(kind, id.bytes())
    }

    fn of_bytes(kind: EpochKind, id: impl Iterator<Item = u8>) -> Self {
        // FNV-1a: the same in all processes and versions.
        let hash = id.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let folded = hash ^ (hash >> 32) ^ (hash >> 16);
        Self(kind as u16 * BUCKETS + (folded % u64::from(BUCKETS)) as u16)
    }

    /// Of what.
    pub const fn kind(self) -> EpochKind {
        match self.0 / BUCKETS {
            0 => EpochKind::Tenant,
            1 => EpochKind::User,
            2 => EpochKind::Model,
            _ => EpochKind::KnowledgeBase,
        }
    }

    /// Which one, below [`BUCKETS`].
    pub const fn index(self) -> u16 {
        self.0 % BUCKETS
    }

    const fn at(self) -> usize {
        self.0 as usize
    }
}

/// By whose epochs an answer goes.
#[derive(Clone)]
pub(super) struct Buckets {
    /// Of the tenant, the user and the model.
    pub(super) own: [Bucket; 3],
    pub(super) kbs: Box<[Bucket]>,
}

pub(super) fn buckets(scope: &CacheScope<'_>, request: &LlmRequest) -> Buckets {
    let model = &*request.model;
    let own = [
        Bucket::of(EpochKind::Tenant, scope.tenant.unwrap_or_default()),
        Bucket::of(EpochKind::User, scope.user.unwrap_or_default()),
        match request.provider() {
            None => Bucket::of(EpochKind::Model, model),
            Some(provider) => {
                let name = provider.bytes().chain([b'/']).chain(model.bytes());
                Bucket::of_bytes(EpochKind::Model, name)
            }
        },
    ];
    let kbs = scope.kbs.iter().map(|kb| Bucket::of(EpochKind::KnowledgeBase, &kb.id)).collect();
    Buckets { own, kbs }
}

// ===== impl Epochs =====

impl Epochs {
    pub(super) fn new(store: Option<Arc<dyn EpochStore>>, max_age: Duration) -> Self {
        let known = (0..4 * usize::from(BUCKETS)).map(|_| Known::default()).collect();
        let shared = store.map(|store| Shared { store, max_age, raised_at: Mutex::default() });
        // Entries of another process, or of one before, must not pass for ours where nobody tells us of epochs.
        let generation = AtomicU64::new(fastrand::u64(1..));
        Self { known, generation, raised: AtomicU64::new(0), shared, base: Instant::now() }
    }

    /// The epochs, as far as they may be trusted without asking.
    pub(super) fn known(&self, Buckets { own, kbs }: &Buckets) -> Option<Stamp> {
        if let Some(shared) = &self.shared {
            // What draws on a knowledge base is asked for each time.
            let oldest = self.elapsed().saturating_sub(nanos(shared.max_age));
            let is_fresh = |bucket: &Bucket| {
                let at = self.known[bucket.at()].at.load(Ordering::Acquire);
                at > 0 && at >= oldest
            };
            if !kbs.is_empty() || !own.iter().all(is_fresh) {
                return None;
            }
        }
        let epoch = |bucket: Bucket| self.known[bucket.at()].epoch.load(Ordering::Acquire);
        let [tenant, user, model] = own.map(epoch);
        let generation = self.generation.load(Ordering::Acquire);
        Some(Stamp { own: [generation, tenant, user, model], kbs: kbs.iter().copied().map(epoch).collect() })
    }

    /// The epochs as they are now.
    pub(super) async fn read(&self, asked: &Buckets) -> Result<Stamp, BoxError> {
        let Some(shared) = &self.shared else {
            return self.known(asked).ok_or_else(|| "epochs are always known here".into());
        };
        let buckets = [&asked.own[..], &asked.kbs].concat();
        let asked_at = self.elapsed();
        let epochs = Fetch::of(|| shared.store.read(&buckets)).wait().await?;
        let Some((&generation, epochs)) = epochs.split_first().filter(|(_, e)| e.len() == buckets.len())
        else {
            return Err("the store of epochs has answered something else".into());
        };
        self.learn(shared, asked_at, generation, &buckets, epochs);
        let (first, rest) = epochs.split_at(asked.own.len());
        Ok(Stamp { own: [generation, first[0], first[1], first[2]], kbs: rest.into() })
    }

    fn learn(&self, shared: &Shared, asked_at: u64, generation: u64, buckets: &[Bucket], epochs: &[u64]) {
        let raised_at = shared.raised_at.lock().unwrap_or_else(PoisonError::into_inner);
        if self.generation.swap(generation, Ordering::AcqRel) != generation {
            self.known.iter().for_each(|known| known.at.store(0, Ordering::Release));
        }
        for (bucket, epoch) in buckets.iter().zip(epochs) {
            let known = &self.known[bucket.at()];
            // An answer that was long on its way must not replace a later one.
            if known.at.load(Ordering::Acquire).max(*raised_at) < asked_at {
                known.epoch.store(*epoch, Ordering::Release);
                known.at.store(asked_at, Ordering::Release);
            }
        }
    }

    /// Whether one was raised since `stamp`, as far as that is known here.
    pub(super) fn have_passed(&self, stamp: &Stamp, Buckets { own, kbs }: &Buckets) -> bool {
        let [generation, epochs @ ..] = &stamp.own;
        let known = |bucket: &Bucket| self.known[bucket.at()].epoch.load(Ordering::Acquire);
        let mut all = own.iter().zip(epochs).chain(kbs.iter().zip(&stamp.kbs));
        *generation != self.generation.load(Ordering::Acquire)
            || all.any(|(bucket, epoch)| known(bucket) > *epoch)
    }

    /// For calls that share what they ask for while the store of epochs is away.
    pub(super) fn times_raised(&self) -> u64 {
        self.raised.load(Ordering::Acquire)
    }

    /// Whatever becomes of [`raise`](Self::raise): who asks from now on waits for no call from before.
    pub(super) fn have_been_raised(&self) {
        self.raised.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) async fn raise(&self, bucket: Bucket) -> Result<(), BoxError> {
        let known = &self.known[bucket.at()];
        let Some(shared) = &self.shared else {
            known.epoch.fetch_add(1, Ordering::AcqRel);
            return Ok(());
        };
        let raised = Fetch::of(|| shared.store.raise(bucket)).wait().await;
        let mut raised_at = shared.raised_at.lock().unwrap_or_else(PoisonError::into_inner);
        *raised_at = self.elapsed();
        // It may have happened, whatever was answered: ask before the next hit.
        known.at.store(0, Ordering::Release);
        raised
    }

    fn elapsed(&self) -> u64 {
        nanos(self.base.elapsed()).saturating_add(1)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Epochs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epochs").field("are_shared", &self.shared.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use std::{future::ready, pin::pin};
    use tokio::sync::Notify;

    /// Answers when it is told to, with what it knew when it was asked.
    #[derive(Clone, Default)]
    struct Slow(Arc<(AtomicU64, Notify)>);

    impl EpochStore for Slow {
        fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
            let (store, epoch) = (self.clone(), self.0.0.load(Ordering::Acquire));
            let epochs = [1].into_iter().chain(buckets.iter().map(|_| epoch)).collect();
            Fetch::pending(async move {
                store.0.1.notified().await;
                Ok(epochs)
            })
        }

        fn raise(&self, _: Bucket) -> Fetch<()> {
            self.0.0.fetch_add(1, Ordering::AcqRel);
            Fetch::pending(ready(Ok(())))
        }
    }

    fn of_a(kbs: &[Bucket]) -> Buckets {
        let own = [EpochKind::Tenant, EpochKind::User, EpochKind::Model].map(|kind| Bucket::of(kind, "a"));
        Buckets { own, kbs: kbs.into() }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_an_epoch_was_raised_is_not_believed_after_it() {
        let store = Slow::default();
        let epochs = Epochs::new(Some(Arc::new(store.clone())), Duration::from_secs(1));
        let own = of_a(&[]);
        tokio::time::advance(Duration::from_millis(1)).await;
        let mut asked = pin!(epochs.read(&own));
        assert!(asked.as_mut().now_or_never().is_none());
        epochs.raise(own.own[0]).await.unwrap();
        store.0.1.notify_one();
        assert_eq!(asked.await.unwrap().own, [1, 0, 0, 0], "who asked before may have what was kept before");
        assert!(epochs.known(&own).is_none(), "nobody else");
        tokio::time::advance(Duration::from_millis(1)).await;
        store.0.1.notify_one();
        assert_eq!(epochs.read(&own).await.unwrap().own, [1, 1, 1, 1]);
        assert_eq!(epochs.known(&own).unwrap().own, [1, 1, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn epochs_are_as_old_as_the_question_and_those_of_knowledge_bases_are_always_asked_for() {
        let (store, max_age) = (Slow::default(), Duration::from_secs(1));
        let epochs = Epochs::new(Some(Arc::new(store.clone())), max_age);
        let own = of_a(&[]);
        let kbs = of_a(&[Bucket::of(EpochKind::KnowledgeBase, "a")]);
        tokio::time::advance(max_age).await;
        let mut asked = pin!(epochs.read(&kbs));
        assert!(asked.as_mut().now_or_never().is_none());
        tokio::time::advance(max_age / 2).await;
        store.0.1.notify_one();
        asked.await.unwrap();
        assert!(epochs.known(&own).is_some() && epochs.known(&kbs).is_none());
        tokio::time::advance(max_age / 2).await;
        assert!(epochs.known(&own).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(epochs.known(&own).is_none(), "longer ago than they may be trusted");
    }
}
