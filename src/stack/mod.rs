//! The documented order of layers, as one call.
//!
//! [`stack`] makes of a [`Config`] a service with every layer that it asks for, in the order of `docs/order.md`, and a [`Handle`] to all that is
//! around calls: who has a key, what was used, what is left, a new configuration, the end.
//!
//! ```
//! use llm_layers::{ChatBody, LlmRequest, config::Config, stack::stack};
//! use std::time::Duration;
//! use tower::ServiceExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let text = r#"
//!     usage = { enabled = false }
//!     providers.echo = { kind = "echo" }
//!     aliases = { fast = "echo/small" }
//! "#;
//! let (service, handle) = stack(Config::parse(text)?).await?;
//! let request = LlmRequest::new("fast", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(service.clone().oneshot(request.clone()).await?.model, "echo/small");
//!
//! // Calls that come from now on see the new tables, all of them or none.
//! handle.reload(Config::parse(&text.replace("small", "large"))?)?;
//! assert_eq!(service.oneshot(request).await?.model, "echo/large");
//!
//! assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
//! # Ok(())
//! # }
//! ```
//!
//! [`StackBuilder`] leaves parts out, replaces them, adds layers of your own at [places](Place) that are known, and refuses what cannot be
//! meant: a limit that nothing enforces, a record of hits without a cache, an order in which a substitute is not checked.
//! [`Handle::layers`] gives the single layers, for a stack of your own.
//!
//! # A new configuration
//!
//! [`Handle::reload`] exchanges tables: aliases, chains, prices, policies, keys, providers, time limits. It checks the whole first, and then
//! stores one pointer: a call takes the stack of its moment once and keeps it to its end, so that none sees a half of each. What
//! lasts stays: stores, counters, cache, workers, permits, calls in flight, and how deployments are doing that are the same as before. What
//! cannot be exchanged, such as the address of a store, is refused by its entry, and nothing is changed then. [`Watch`] looks whether a file
//! has changed.
//!
//! # Cancel safety
//!
//! Of the service, that of the layers in it. [`Handle::shutdown`] that is dropped has lost nothing: another call waits for the same, and
//! tells all of it.

mod answers;
mod assemble;
#[cfg(feature = "redis")]
mod awaited;
mod builder;
mod counters;
mod deployments;
mod describe;
#[cfg(all(feature = "semantic", feature = "hyper-client"))]
mod embedder;
mod error;
mod handle;
mod keys;
mod ledger;
mod live;
mod order;
mod own;
mod restart;
mod watch;

pub use self::{
    assemble::Layers,
    builder::StackBuilder,
    describe::Description,
    error::StackError,
    handle::{Handle, ListedModel, QuotaView, Readiness, ShutdownReport, UsageReport},
    keys::{Caller, KeyPermit},
    order::{Part, Place},
    watch::Watch,
};

#[cfg(feature = "axum")]
pub(crate) use self::ledger::MOST_GROUPS;
use crate::{Error, LlmRequest, LlmResponse, config::Config};
use tower::util::BoxCloneSyncService;

/// A whole stack, boxed once. Cloning it costs a box and a reference count, whatever is in it; clones of the layers are used again for
/// later calls, if none is of your own.
pub type BoxService = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// The documented order with all that `config` asks for: [`StackBuilder`] with nothing changed.
///
/// # Errors
///
/// All that is wrong with the configuration, or the store that cannot be opened.
pub async fn stack(config: Config) -> Result<(BoxService, Handle), StackError> {
    StackBuilder::new(config).build().await
}
