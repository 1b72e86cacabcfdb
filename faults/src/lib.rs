//! Breaks a real gateway in every way there is, and writes down what comes of it.
//!
//! The gateway is a process of its own; its upstream is a server that does whatever a [`Script`] says, down to the
//! bytes; Redis is a real one. `tests/matrix.rs` asserts a row for each fault, and docs/failure-matrix.md is made
//! of these rows; `tests/soak.rs` mixes faults under load; `tests/isolation.rs` looks for what crosses accounts.

#![forbid(unsafe_code)]

mod client;
mod gateway;
mod ledger;
pub mod matrix;
#[path = "../../tests/support/redis.rs"]
#[allow(missing_docs, reason = "it is shared with the tests of the library")]
pub mod redis;
mod upstream;

pub use self::{
    client::{Client, Reply, chat, json_of},
    gateway::{Gateway, Options, Room},
    ledger::{Event, events},
    upstream::{Act, Script, Seen, Upstream, nowhere},
};

use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes, on however slow a machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What `future` comes to, or a panic.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in good time")
}

/// Asks again and again until there is an answer; `None` if there is none within `limit`.
pub async fn until<T>(limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let since = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Some(answer);
        }
        if since.elapsed() > limit {
            return None;
        }
        sleep(Duration::from_millis(10)).await;
    }
}
