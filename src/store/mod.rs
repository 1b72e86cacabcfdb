//! What layers keep their state in.
//!
//! [`Redis`] (feature `redis`) is a connection to a server or a cluster that any number of layers share; what is kept
//! there and how is said where it is used. It connects when it is first asked, and again by itself.
//!
#![cfg_attr(feature = "redis", doc = "```")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use llm_layers::store::{Redis, RedisOptions};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::store::RedisError> {
//! let options = RedisOptions::default().with_deadline(Duration::from_millis(250));
//! let redis = Redis::new("redis://:secret@127.0.0.1:6379", options)?;
//! // No password is shown.
//! assert!(!format!("{redis:?}").contains("secret"));
//! assert!(Redis::new("http://127.0.0.1", RedisOptions::default()).is_err());
//! # Ok(())
//! # }
//! ```

mod breaker;
#[cfg(feature = "redis")]
pub(crate) mod redis;

pub(crate) use self::breaker::Breaker;

#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisError, RedisErrorKind, RedisOptions};

/// Says in the log that something has begun to fail.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
pub(crate) fn fails(what: &'static str, error: &dyn std::fmt::Display) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "{what}");
}

/// Says in the log that it does no longer.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
pub(crate) fn works(what: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::info!("{what}");
}
