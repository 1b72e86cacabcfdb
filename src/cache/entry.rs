use super::{CacheKey, epoch::Stamp, shape};
use crate::{
    ChunkStream, Completion, ModelName, ResponseBody, TokenUsage, body::Kept, clock::after,
    context::KeptRights,
};
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// A kept answer, bound to the key and the scope that it was asked for with. Serves whole answers and streams.
pub struct Entry {
    pub(super) bond: Bond,
    pub(super) model: ModelName,
    pub(super) provider: Option<Arc<str>>,
    pub(super) answer: Answer,
    usage: Option<TokenUsage>,
    /// How long, and until when, a store keeps this copy of it.
    kept_for: Duration,
    kept_until: Option<Instant>,
    /// The shape that it did not come in, made when first asked for.
    whole: OnceLock<Option<Completion>>,
    chunks: OnceLock<Arc<Kept>>,
}

/// What a reader checks before an entry is used.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Bond {
    pub(super) key: CacheKey,
    pub(super) scope: [u8; 32],
    /// What `scope` is the digest of, where that is known: it takes less time to compare.
    pub(super) rights: Option<KeptRights>,
    pub(super) stamp: Stamp,
    pub(super) created_at: SystemTime,
    pub(super) ttl: Duration,
}

/// An answer in the shape that it came in.
#[derive(Clone)]
pub(super) enum Answer {
    Whole(Completion),
    Stream(Arc<Kept>),
}

/// About how many bytes of memory is taken by what was read of an answer.
const FACTS: usize = 160;

impl Entry {
    pub(super) fn new(bond: Bond, model: ModelName, provider: Option<Arc<str>>, answer: Answer) -> Self {
        let usage = match &answer {
            Answer::Whole(completion) => completion.usage().copied(),
            Answer::Stream(chunks) => chunks.usage().copied(),
        };
        Self {
            kept_for: bond.ttl,
            kept_until: None,
            bond,
            model,
            provider,
            answer,
            usage,
            whole: OnceLock::new(),
            chunks: OnceLock::new(),
        }
    }

    /// The same, to be kept for no longer than this from now on.
    pub(super) fn copy_for(self: &Arc<Self>, time: Duration) -> Arc<Self> {
        if self.kept_for <= time {
            return Arc::clone(self);
        }
        let Self { bond, model, provider, answer, .. } = &**self;
        let copy = Self::new(bond.clone(), model.clone(), provider.clone(), answer.clone());
        Arc::new(Self { kept_for: time, kept_until: Some(after(time)), ..copy })
    }

    /// Whether its time as a [copy](Self::copy_for) is over.
    pub(super) fn is_over(&self) -> bool {
        self.kept_until.is_some_and(|until| until <= Instant::now())
    }

    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.bond.created_at > other.bond.created_at
    }

    /// What it is found by.
    pub const fn key(&self) -> &CacheKey {
        &self.bond.key
    }

    /// How long it may be kept.
    pub const fn ttl(&self) -> Duration {
        self.kept_for
    }

    /// About how many bytes of memory it takes.
    pub fn weight(&self) -> usize {
        let answer = match &self.answer {
            Answer::Whole(completion) => completion.data().len(),
            Answer::Stream(chunks) => chunks.weight(),
        };
        // The other shape is about as large as the one that it came in.
        let bond = 8 * self.bond.stamp.kbs.len() + self.bond.rights.as_ref().map_or(0, KeptRights::weight);
        2 * (answer + FACTS) + size_of::<Self>() + self.model.len() + bond
    }

    /// What the answer used up when it was made.
    pub const fn usage(&self) -> Option<&TokenUsage> {
        self.usage.as_ref()
    }

    /// The answer in the shape that is asked for; `None` if it cannot be had in that one.
    pub(super) fn body(&self, streaming: bool) -> Option<ResponseBody> {
        match (&self.answer, streaming) {
            (Answer::Whole(completion), false) => Some(completion.clone().into()),
            (Answer::Stream(chunks), true) => Some(replay(chunks)),
            (Answer::Whole(completion), true) => {
                let chunks = || Arc::new(crate::http::into_chunks(completion).into_iter().collect());
                Some(replay(self.chunks.get_or_init(chunks)))
            }
            (Answer::Stream(chunks), false) => {
                self.whole.get_or_init(|| shape::whole(chunks.data())).clone().map(Into::into)
            }
        }
    }
}

fn replay(chunks: &Arc<Kept>) -> ResponseBody {
    ChunkStream::kept(Arc::clone(chunks)).into()
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.bond.key)
            .field("model", &self.model)
            .field("weight", &self.weight())
            .finish_non_exhaustive()
    }
}
