//! Usage as a stream of Redis.

mod reader;
mod stream;

#[cfg(feature = "rusqlite")]
pub(super) use self::reader::place;
pub use self::{
    reader::{StreamError, StreamReader},
    stream::{RedisStream, RedisStreamOptions, Trim},
};
