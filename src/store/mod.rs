//! What layers keep their state in.
//!
//! [`Redis`] (feature `redis`) is a connection to a server or a cluster that any number of layers share; what is kept
//! there and how is said where it is used.

mod breaker;
#[cfg(feature = "redis")]
pub(crate) mod redis;

pub(crate) use self::breaker::Breaker;

#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisError, RedisErrorKind, RedisOptions};
