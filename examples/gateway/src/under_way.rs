//! How many requests have to be waited for.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// How many requests are under way, until their answers are sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct UnderWay(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    requests: AtomicUsize,
    is_none: Notify,
}

impl UnderWay {
    pub(crate) fn count(&self) -> usize {
        self.0.requests.load(Ordering::Acquire)
    }

    /// Waits until there is none.
    pub(crate) async fn none(&self) {
        loop {
            let is_none = self.0.is_none.notified();
            if self.count() == 0 {
                return;
            }
            is_none.await;
        }
    }

    pub(crate) fn begin(&self) {
        self.0.requests.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn end(&self, requests: usize) {
        if requests > 0 && self.0.requests.fetch_sub(requests, Ordering::AcqRel) == requests {
            self.0.is_none.notify_waiters();
        }
    }
}
