//! Gives the same answer to the same question and the same rights, and never to others.
mod ask;
mod breaker;
mod capture;
mod control;
mod decide;
mod encode;
mod entry;
mod epoch;
mod flight;
mod kb;
mod key;
mod layer;
#[cfg(feature = "moka")]
mod moka;
mod scope;
mod seal;
mod service;
mod shape;
mod stats;
mod store;
mod tiered;
mod worker;

#[cfg(feature = "moka")]
pub use self::moka::MokaStore;
pub use self::{
    control::CacheControl,
    decide::{BypassReason, NotStored},
    entry::Entry,
    epoch::{BUCKETS, Bucket, EpochKind, EpochStore},
    kb::{KbCaching, KbSettings},
    key::{CacheKey, CacheSecret, MEMBERS_LEFT_OUT},
    layer::{CacheLayer, CachePolicy, Coalescing},
    scope::CacheScope,
    seal::SealedStore,
    service::{Cache, ResponseFuture},
    stats::CacheStats,
    store::{ByteStore, CacheStore, Fetch},
    tiered::TieredStore,
    worker::{CacheReport, CacheWorker},
};
