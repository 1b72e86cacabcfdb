//! Records what every call to a provider has used up, and what it cost.
//!
//! [`UsageLayer`] makes one [`UsageEvent`] for each call, when its answer ends, however it ends: whole, at the end
//! of a stream, at its break, when the caller hangs up, when a call that was sent fails or is dropped before its
//! head, after a panic below. A call that never reached a provider used nothing and is not recorded: that is what was not
//! [marked](crate::Progress::mark_dispatched), by its leaf, by [`Providers`](crate::providers) for it, or by
//! [`MarkDispatchLayer`](crate::provider::dispatch::MarkDispatchLayer) around it. Usage that a
//! provider does not report is estimated from the bytes that went by, and says so.
//!
//! A place in the [sink](UsageSink) is taken before the provider is asked; where there is none, the call is refused as
//! [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable) and nobody is asked. From then on recording cannot fail:
//! a paid answer is never lost to its record.
//!
//! Belongs inside of a cache and outside of [`Providers`](crate::providers), so that each attempt of a
//! [fallback](crate::fallback) is an event of its own, at its own price. [`UsageLayer::hits`], outside of the cache, records the
//! answers that cost nothing.
//!
//! An event counts in full for each of the caller's departments: totals over events and sums over departments
//! are both right, and not the same. A [`UsageQuery`] asks for either, of a [`UsageReader`]: a [`MemorySink`], with feature `rusqlite` the
//! `LedgerReader` of a `SqliteLedger`, a ledger of yours; or of events in hand by [`totals`].
//!
//! ```
//! use llm_layers::{
//!     ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, ServiceBuilderExt as _, TokenUsage,
//!     price::{NanoUsd, Price, PriceBook, Rates},
//!     usage::MemorySink,
//! };
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let sink = MemorySink::new(1000);
//! let prices = PriceBook::of("ours", [("acme/one", Price::new(Rates::per_million("0.15", "0.60")?))])?;
//! let service = ServiceBuilder::new().usage(sink.clone(), prices).service(service_fn(
//!     |request: LlmRequest| async move {
//!         // Or else whoever hangs up before the head is not recorded.
//!         request.progress.mark_dispatched();
//!         Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1000, 100))))
//!     },
//! ));
//!
//! let context = RequestContext::new().with_departments(["research"]);
//! let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?).with_context(context);
//! service.oneshot(request).await?;
//!
//! let events = sink.take();
//! assert_eq!(events[0].usage, TokenUsage::new(1000, 100));
//! assert_eq!(events[0].cost.amount, Some(NanoUsd::new(210_000)));
//! # Ok(())
//! # }
//! ```
//!
//! # Where events are kept
//!
//! | sink | survives |
//! |---|---|
//! | [`MemorySink`] | nothing |
//! | `SqliteLedger::start` (feature `rusqlite`) | as its [`Durability`] says |
//! | `Outbox::start` (feature `outbox`) over any [`UsageStore`], such as `RedisStream` (feature `redis`) | as its [`Durability`] says, and that the store is away |
//! | [`QueueSink`] over any [`UsageStore`] | that the store is away, as long as the process runs |
//!
//! # Cancel safety
//!
//! A call that is dropped is recorded as [`Aborted`](Outcome::Aborted), if it was sent.

#[cfg(all(feature = "redis", feature = "rusqlite"))]
mod collector;
mod durability;
mod event;
mod layer;
mod memory;
#[cfg(feature = "outbox")]
mod outbox;
mod query;
mod queue;
#[cfg(feature = "outbox")]
mod record;
mod recorder;
#[cfg(feature = "redis")]
mod redis;
mod service;
mod sink;
mod spent;
#[cfg(feature = "rusqlite")]
mod sqlite;
mod writer;

#[cfg(all(feature = "redis", feature = "rusqlite"))]
pub use self::collector::Collector;
#[cfg(feature = "outbox")]
pub use self::outbox::{
    Outbox, OutboxError, OutboxErrorKind, OutboxOptions, OutboxReport, OutboxSink, OutboxStatus, OutboxWorker,
};
#[cfg(feature = "redis")]
pub use self::redis::{RedisStream, RedisStreamOptions, StreamError, StreamReader, Trim};
pub(crate) use self::spent::{Charge, Spent, estimate, is_refusal, mark_answered, was_sent};
#[cfg(feature = "rusqlite")]
pub use self::sqlite::{LedgerError, LedgerErrorKind, LedgerReader, SqliteLedger};
pub use self::{
    durability::Durability,
    event::{EventId, Outcome, Saved, UsageEvent},
    layer::UsageLayer,
    memory::MemorySink,
    query::{
        DepartmentSums, GroupBy, ReadError, ReadFuture, UsageGroup, UsageQuery, UsageReader, UsageSummary,
        UsageTotals, Window, department_sums, totals, totals_by,
    },
    queue::{LogPosition, QueueOptions, QueueSink, Report, UsageStore, Worker},
    service::{RecordUsage, ResponseFuture},
    sink::{Done, Place, Slot, Ticket, UsageSink},
    writer::{Refused, SetAside},
};
