//! Usage as a stream of Redis.

mod reader;
mod stream;

pub use self::{
    reader::{StreamError, StreamReader},
    stream::{RedisStream, RedisStreamOptions, Trim},
};
