//! Gives the same answer to the same question and the same rights, and never to others.
//!
//! An answer is kept under a [key](CacheKey) of 256 bits over everything that can change it: the [scope](CacheScope) of
//! the caller (tenant, user, each knowledge base with a hash of his rights), the model that is asked, and every member
//! of the body but [four](MEMBERS_LEFT_OUT). What is found is checked against all of it again before it is given out.
//!
//! * **Opt-in by rights.** A caller without a user id, a knowledge base without a hash of rights, with settings that
//!   forbid it or that cannot be read: the cache is [bypassed](BypassReason). Settings are asked before the read and
//!   again before the write.
//! * **Only what is whole is kept:** answers that ended by themselves, with content, in every choice. Streams are kept
//!   while they pass and replayed chunk by chunk; an entry serves whole answers and streams.
//! * **A hit asks nobody.** The layer is ready at once, and readies the service below on a miss only. A hit costs
//!   nothing, in whatever order the layers stand: [`CacheStatus`](crate::CacheStatus) says so in the answer.
//! * **Trouble is a miss.** A store that is slow, down, corrupt, that panics or that answers for another key costs a bounded wait. Why
//!   it was one is told in [`LlmResponse::cache_miss`](crate::LlmResponse::cache_miss), and in the decisions that a request keeps.
//!
//! Belongs inside of [`Fallback`](crate::fallback) and outside of quota and [usage](crate::usage), with
//! [`UsageLayer::hits`](crate::usage::UsageLayer::hits) around it. Outside of a fallback, a substitute's answer is not kept.
//!
//! ```
//! use llm_layers::{
//!     CacheStatus, ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, ServiceBuilderExt as _,
//!     TokenUsage,
//!     cache::{CachePolicy, CacheSecret},
//! };
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[cfg(not(feature = "moka"))] fn main() {}
//! # #[cfg(feature = "moka")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! use llm_layers::cache::MokaStore;
//!
//! // Of this process alone; several that share a store need the same secret.
//! let policy = CachePolicy::new(CacheSecret::random()).with_ttl(Duration::from_secs(600));
//! let service = ServiceBuilder::new().cache(MokaStore::new(64 << 20), policy).service(service_fn(
//!     |request: LlmRequest| async move {
//!         request.progress.mark_dispatched();
//!         Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(9, 1))))
//!     },
//! ));
//!
//! let ask = |user: &str| {
//!     let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
//!     Ok::<_, Error>(request.with_context(RequestContext::new().with_user_id(user)))
//! };
//! assert_eq!(service.clone().oneshot(ask("ada")?).await?.cache, CacheStatus::Miss);
//! assert!(service.clone().oneshot(ask("ada")?).await?.cache.is_hit());
//! assert_eq!(service.clone().oneshot(ask("eve")?).await?.cache, CacheStatus::Miss);
//! # Ok(())
//! # }
//! ```
//!
//! # Stores
//!
//! `MokaStore` (feature `moka`) keeps entries in memory, bounded in bytes. What others share is a [`ByteStore`] in a
//! [`SealedStore`], which takes back only what it has written, and encrypts if it is told to (feature `encrypt`);
//! `RedisBytes` (feature `redis`) is one.
//! [`TieredStore`] puts one in front of the other. What takes time is written by a [`CacheWorker`], which
//! [`CacheLayer::start`] gives: off the path of any call, from a bounded queue.
//!
//! # Making entries invalid
//!
//! [`CacheLayer::invalidate`] raises an epoch of a user, a tenant, a model or a knowledge base; entries from before are
//! not found any more. Epochs are what the processes that share a store share too ([`EpochStore`]), each trusting what it
//! knows for a second. Who brings none has entries that no other process takes, and that do not outlive this one.
//!
//! # Shared calls
//!
//! With [`CachePolicy::with_coalescing`], equal calls that miss together are one call. It is a task of its own: whoever
//! began it may leave. Each caller reads from the beginning and then live, at his own pace; beyond the
//! [bound of an entry](CachePolicy::with_max_entry_bytes) nobody joins any more, it is read from the provider as quickly as
//! the quickest caller reads, and who is further behind him than that is cut off. A failure of the provider is everybody's; a refusal that has to do with the caller, such as his quota, is his
//! alone, and the next one tries. Where nobody could be asked (no connection, no place, a store that is down), the next one tries
//! too, and if he fares no better, all believe it. Only callers of the same departments share a call, for what these have left
//! may bound the answer; they pay for it once.
//! Where the service below waits, those who wait for it have their own deadlines, not his.
//!
//! The task runs on the tokio runtime of the caller who began it, and goes on only while that runtime is driven. Where several share one layer, such as
//! one `current_thread` runtime for each thread, those who joined from others wait for as long as his stands still, or until their own deadlines.
//!
//! # Cancel safety
//!
//! A call that is dropped hangs up and keeps nothing; a shared one goes on as long as anybody waits for it.

mod ask;
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
#[cfg(feature = "redis")]
mod redis;
mod scope;
mod seal;
#[cfg(feature = "semantic")]
pub mod semantic;
mod service;
mod shape;
mod stats;
mod store;
mod tiered;
mod worker;

pub(crate) use self::flight::Aboard;
#[cfg(feature = "moka")]
pub use self::moka::MokaStore;
#[cfg(feature = "redis")]
pub use self::redis::RedisBytes;
#[cfg(feature = "semantic")]
pub use self::semantic::{Embedder, Semantic};
pub use self::{
    control::CacheControl,
    decide::{BypassReason, MissReason, NotStored},
    entry::Entry,
    epoch::{BUCKETS, Bucket, EpochKind, EpochStore},
    kb::{KbCaching, KbSettings},
    key::{CacheKey, CacheSecret, MEMBERS_LEFT_OUT},
    layer::{CacheLayer, CachePolicy, Coalescing},
    scope::CacheScope,
    seal::{SealedStore, Unreadable},
    service::{Cache, ResponseFuture},
    stats::CacheStats,
    store::{ByteStore, CacheStore, Fetch},
    tiered::TieredStore,
    worker::{CacheReport, CacheWorker},
};
