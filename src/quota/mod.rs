//! Keeps departments within their limits: requests, tokens and money, by the day and by the month.
//!
//! [`QuotaLayer`] *reserves* what a call may use up at most, before it is made, and *settles* what it did use up when its
//! answer has ended, however it ends: so that no number of calls at once gets past a limit. All departments of the caller
//! are charged, or none; the strictest limit decides. What a call uses above what was reserved is charged in full, and the next
//! one is refused. Three things are easy to get wrong:
//!
//! - Limits hold as long as what is reserved is an upper bound. So a request that does not bound its answer is given a
//!   bound, or refused: see [`Unbounded`].
//! - The store decides, and its clock picks the day and the month, once, when a call is admitted. Without an answer of the
//!   store within [250 ms](QuotaLayer::with_deadline) the call is refused as
//!   [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable), and nobody is asked.
//! - A caller without departments is not limited, and counts for nobody. A department without an entry in the
//!   [`policies`](crate::policies) has the table's default.
//!
//! Belongs inside of a cache and of [`Fallback`](crate::fallback), and directly outside of [`usage`](crate::usage): each attempt
//! is reserved and settled by itself, at its own model's price, and what is settled is recorded in the same place.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, RequestContext, ServiceBuilderExt as _, TokenUsage,
//!     policies::{DepartmentPolicy, PolicyTable},
//!     price::PriceBook,
//!     quota::{Limits, MemoryStore, QuotaLayer},
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let policies = PolicyTable::default()
//!     .with("research", DepartmentPolicy::new(Limits::new().with_day_tokens(1000).with_day_requests(100)));
//! let quota = QuotaLayer::new(MemoryStore::new(), policies, PriceBook::new());
//! let service = ServiceBuilder::new().quota(quota).service(service_fn(|request: LlmRequest| async move {
//!     // Or else whoever hangs up before the head is charged nothing.
//!     request.progress.mark_dispatched();
//!     Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(300, 200))))
//! }));
//!
//! let body = ChatBody::builder().user("Hello").max_output_tokens(400).build()?;
//! let context = RequestContext::new().with_departments(["research"]);
//! let request = LlmRequest::new("acme/one", body).with_context(context);
//! service.clone().oneshot(request.clone()).await?;
//! service.clone().oneshot(request.clone()).await?;
//!
//! let error = service.oneshot(request).await.unwrap_err();
//! let ErrorKind::QuotaExceeded(exceeded) = error.kind() else { panic!("{error}") };
//! assert_eq!((exceeded.limit, exceeded.current, exceeded.in_flight_only), (1000, 1000, false));
//! # Ok(())
//! # }
//! ```
//!
//! # Refusals
//!
//! | error | when | worth trying again |
//! |---|---|---|
//! | [`QuotaExceeded`](crate::ErrorKind::QuotaExceeded) | it does not fit | when the window ends; in seconds if only calls in flight are in the way |
//! | [`RequestTooLarge`](crate::ErrorKind::RequestTooLarge) | it is larger than the limit itself | never |
//! | [`ModelUnpriced`](crate::ErrorKind::ModelUnpriced) | money is limited, and the price is not known: see [`Unpriced`] | never |
//! | [`InvalidRequest`](crate::ErrorKind::InvalidRequest) | its bound is no number, or there has to be one | never |
//! | [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable) | the store does not answer, its counters are being rebuilt, or there is no place for the settlement | soon |
//!
//! An answer says in [`LlmResponse::quota`](crate::LlmResponse::quota) how much is left of the tightest limit.
//!
//! # What is charged
//!
//! | the call | is charged |
//! |---|---|
//! | came to its end | what the provider reported |
//! | was never sent | nothing |
//! | was refused by the provider's status | one request |
//! | failed otherwise, broke off, or was left by its caller | what was reported, or else by [`Unreported`]: the prompt, and what came |
//! | was answered by a cache | nothing: see [`Hits`] |
//! | is never heard of again, for the gateway died | by [`OnExpiry`]: the prompt, once its lease has run out |
//!
//! Whether it was sent is what the leaf has [marked](crate::Progress::mark_dispatched). [`Providers`](crate::providers) marks for it; without
//! them, [`MarkDispatchLayer`](crate::provider::dispatch::MarkDispatchLayer) does, around a leaf that does not by itself.
//!
//! # When something fails
//!
//! | | then |
//! |---|---|
//! | the store refuses, or does not answer in time | the call is refused; if it may have been reserved, it is given back by the worker. After five failures in a row the store is asked once a second |
//! | what the store has of a department is damaged | its calls are refused, and nobody else's |
//! | the store is down, or panics, at the end of a call | the answer is not affected; the worker tries again until it is settled |
//! | the worker has no place left, or is gone | calls are refused before anything is asked |
//! | the gateway is killed | leases run out: 5 minutes after they were last extended |
//! | a lease was settled late | what was charged on expiry is replaced by the truth, once |
//! | the gateway's clock is wrong | no effect |
//! | the store has lost its counters | [`with_history`](QuotaLayer::with_history): they are rebuilt from the ledger, once, before any call is made |
//! | counters and ledger differ | [`audit`] finds it, [`repair`] corrects it |
//! | a lease is lost and what it has reserved is not | the same: callers may be kept out until then, or until the window ends |
//!
//! A lease that is held when its store loses everything is made anew: when it is next extended, at once where this gateway was
//! told of the loss, or else when it is settled; the call is charged where it was admitted. Only what one department of several
//! has lost, of calls that end before that, is left for an audit.
//!
//! # Stores
//!
//! [`MemoryStore`] counts in this process; leases are settled where calls end. With any other [`QuotaStore`],
//! [`QuotaLayer::pair`] gives a [`Worker`] besides, which settles and extends leases, and is shut down by the host.
//! `testing::StoreCheck` (feature `testing`) checks a store of your own.
//!
//! # Cancel safety
//!
//! Dropped at any point, a call gives back what it held; what was sent is charged.

mod amount;
mod calendar;
mod estimate;
mod history;
mod hold;
mod layer;
mod lease;
mod live;
mod memory;
mod options;
mod parts;
mod plan;
#[cfg(feature = "redis")]
mod redis;
mod service;
mod shared;
#[cfg(feature = "rusqlite")]
pub mod sqlite;
mod store;
mod worker;

#[cfg(feature = "time-zones")]
pub use self::calendar::UnknownZone;
#[cfg(feature = "tokenizer")]
pub use self::estimate::BpeEstimator;
#[cfg(feature = "tokenizer")]
pub(crate) use self::estimate::{is_openais, text_tokens};
#[cfg(feature = "redis")]
pub use self::redis::{RedisQuotaStore, RedisUnfit};
#[cfg(feature = "rusqlite")]
pub use self::sqlite::{QuotaFileError, QuotaFileErrorKind, SqliteOptions, SqliteStore};
pub use self::{
    amount::{Amount, Delta, Department, Departments, Limits, WindowUsage},
    calendar::{Calendar, Day, Days},
    estimate::{ByteEstimator, TokenEstimator},
    history::{Drift, HistoryFuture, HistoryQuery, UsageHistory, Used, audit, repair},
    layer::QuotaLayer,
    lease::{
        Adjustment, Applied, Baseline, Decision, Denial, Grant, Headroom, LeaseId, Recount, Reservation,
        Settlement, Standing, Verdict, WindowName,
    },
    memory::MemoryStore,
    options::{Hits, Mode, OnExpiry, OnTight, Settled, Stats, Unbounded, Unpriced, Unreported},
    service::{Quota, ResponseFuture},
    store::{ENDED_KEPT, EXPIRED_KEPT, QuotaStore, SWEEP, StoreError, StoreFuture},
    worker::{Report, Worker, WorkerOptions},
};
