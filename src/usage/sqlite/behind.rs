use crate::usage::QueueSink;
use std::time::Duration;

/// What a ledger is filled by: whoever has to know all that was recorded until now waits for it.
#[derive(Clone)]
pub(super) enum Behind {
    Queue(QueueSink),
    #[cfg(feature = "redis")]
    Copy(crate::usage::OutboxSink, std::sync::Arc<crate::usage::collector::Shared>),
}

/// How often is looked. Each look costs a lock or two.
const LOOK: Duration = Duration::from_millis(1);

impl Behind {
    /// Waits until what was recorded by now can be read; `false` if it never can. Nothing is lost if it is dropped.
    pub(super) async fn catch_up(&self) -> bool {
        match self {
            Self::Queue(sink) => {
                let events = sink.hurry();
                until(|| sink.has_done(events)).await
            }
            #[cfg(feature = "redis")]
            Self::Copy(sink, collector) => {
                let events = sink.queue().hurry();
                if !until(|| sink.queue().has_done(events)).await {
                    return false;
                }
                let (_, logged) = sink.left_log();
                if !until(|| Some(sink.left_log().0 >= logged)).await {
                    return false;
                }
                let turn = collector.hurry();
                until(|| collector.has_copied(turn)).await
            }
        }
    }
}

async fn until(is_done: impl Fn() -> Option<bool>) -> bool {
    loop {
        match is_done() {
            Some(false) => tokio::time::sleep(LOOK).await,
            Some(true) => return true,
            None => return false,
        }
    }
}
