//! Code of the host's, whose panics must end nobody else's work.

use futures_util::FutureExt as _;
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Who did.
#[derive(Debug)]
pub(crate) struct Panicked(&'static str);

/// Whatever was changed halfway is the host's, and his to make good.
pub(crate) fn caught<T>(who: &'static str, ask: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(ask)).map_err(|_| Panicked(who))
}

/// As [`caught`], of a future.
pub(crate) async fn caught_in<T>(who: &'static str, asked: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(asked).catch_unwind().await.map_err(|_| Panicked(who))
}

/// As [`caught`], where nobody asks what came of it: a hook, or a drop. A panic in there is no end of what goes on without it.
pub(crate) fn contained(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}

impl std::error::Error for Panicked {}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked", self.0)
    }
}
