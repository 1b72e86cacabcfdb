//! Short names for models.
//!
//! [`AliasLayer`] rewrites [`LlmRequest::model`] from what the caller says to a canonical `provider/model`,
//! so that everything below, allow-lists, prices and cache keys included, sees one name. What the caller
//! said stays in [`LlmRequest::requested`]. Stands outside of [`fallback`](crate::fallback), whose targets are
//! resolved by the same table.
//!
//! ```
//! use llm_layers::{ChatBody, Completion, Error, LlmRequest, LlmResponse, TokenUsage, alias::{AliasLayer, AliasTable}};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let table = AliasTable::builder()
//!     .alias("fast", "openai/gpt-4o-mini")
//!     .alias("claude-*", "anthropic/claude-sonnet-4-5")
//!     .split("balanced", [("fast", 9), ("anthropic/claude-haiku-4-5", 1)])
//!     .build()?;
//! println!("{}", table.explain("balanced"));
//!
//! let service = ServiceBuilder::new()
//!     .layer(AliasLayer::new(table))
//!     .service(service_fn(|request: LlmRequest| async move {
//!         Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(3, 1))))
//!     }));
//! let request = LlmRequest::new("claude-latest", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(service.oneshot(request).await?.model, "anthropic/claude-sonnet-4-5");
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! The layer holds nothing: a dropped call leaves nothing behind.

mod check;
mod glob;
mod layer;
mod table;

pub(crate) use self::glob::Glob;
pub use self::{
    check::{AliasError, AliasProblem},
    layer::{Alias, AliasLayer, Aliases},
    table::{AliasTable, AliasTableBuilder},
};

#[cfg(doc)]
use crate::LlmRequest;
