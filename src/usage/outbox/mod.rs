//! A log on the disk in front of a store that may be down.

mod error;
mod forward;
mod log;
mod segment;

pub use self::error::{OutboxError, OutboxErrorKind};

use self::{
    forward::Forwarder,
    log::{Log, Shared},
};
use super::{Durability, QueueOptions, QueueSink, Slot, UsageEvent, UsageSink, UsageStore, Worker};
use crate::{
    Error, ErrorKind,
    clock::after,
    ended::{Ended, running},
    fallback::Backoff,
};
use std::{fmt, io, path::Path, sync::Arc, thread, time::Duration};

/// Keeps events in a log until a store has them, for stores that are elsewhere.
///
/// An event is acknowledged when it is in the log, as durably as was asked for; a thread of its own passes it on, in
/// order unless the store fails, again and again until the store has taken it, also after a restart. The store writes each event once, whatever
/// is offered again. When the log is full, or cannot be written, new calls are refused, and nothing that was acknowledged
/// is lost.
///
/// A log belongs to one process, which locks its directory. In it are files of records, `len | crc32 | body`, a body being
/// an event in JSON. What is no whole record is skipped and counted, and its file kept aside as `.log.bad`. An event that the
/// store refuses for ever while it takes others ([`Refused`](super::Refused)) is moved to `refused.log`, so that it holds
/// nobody up: [`Outbox::read`] reads both.
///
/// When its directory is removed while it is used, it takes nothing more and touches nothing that is made there afterwards: the
/// process has to be started again. Events of a file that is removed or cut off by itself are counted as damages.
///
/// ```
/// use llm_layers::{
///     BoxError, ChatBody, LlmRequest,
///     price::Prices,
///     provider::Echo,
///     usage::{Durability, Outbox, OutboxOptions, UsageEvent, UsageLayer, UsageStore},
/// };
/// use std::time::Duration;
/// use tower::{Layer, ServiceExt};
///
/// /// A store that is away, or is not.
/// struct Elsewhere {
///     is_away: bool,
/// }
///
/// impl UsageStore for Elsewhere {
///     fn write(&mut self, _: &[UsageEvent]) -> Result<(), BoxError> {
///         if self.is_away { Err("nobody answers".into()) } else { Ok(()) }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = std::env::temp_dir().join(format!("llm-layers-doc-outbox-{}", std::process::id()));
/// let start = |is_away| {
///     Outbox::start(&directory, Durability::Kill, Elsewhere { is_away }, OutboxOptions::default())
/// };
/// let (sink, worker) = start(true)?;
/// let service = UsageLayer::new(sink, Prices::default()).layer(Echo::new());
/// service.oneshot(LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?)).await?;
/// let report = worker.shutdown(Duration::from_millis(100)).await;
/// assert_eq!((report.unlogged, report.log.events), (0, 1));
///
/// // The next start passes on what is left.
/// let (_sink, worker) = start(false)?;
/// let report = worker.shutdown(Duration::from_secs(5)).await;
/// assert_eq!((report.log.forwarded, report.log.events), (1, 0));
/// # std::fs::remove_dir_all(directory)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Outbox;

/// How an [`Outbox`] is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxOptions {
    /// The queue in memory before the log.
    pub queue: QueueOptions,
    /// How many bytes the log may hold, but for the last group; 1 GiB unless told. An event is about 500 bytes.
    pub max_bytes: u64,
    /// From which size on a file is ended and a new one begun; 8 MiB unless told. A file is removed when all of it is
    /// passed on.
    pub segment_bytes: u64,
    /// How many events are passed on at once, at most; 256 unless told.
    pub group: usize,
    /// How long to wait before a group is offered again.
    pub backoff: Backoff,
}

/// Hands events to the log of an [`Outbox`]. Clones share it.
#[derive(Clone)]
pub struct OutboxSink {
    queue: QueueSink,
    shared: Arc<Shared>,
}

/// Owns the threads of an [`Outbox`]. Dropped without [`shutdown`](Self::shutdown), it lets them go on by themselves until
/// all sinks and slots are gone and all is passed on.
#[must_use = "events that are under way are only waited for by `shutdown`"]
pub struct OutboxWorker {
    queue: Worker,
    shared: Arc<Shared>,
    ended: Ended,
}

/// What an [`Outbox`] holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// How many events are in the log and not passed on.
    pub events: u64,
    /// How large its files are.
    pub bytes: u64,
    /// How many events were passed on since the start.
    pub forwarded: u64,
    /// How often something in the log was no record, and was skipped.
    pub damages: u64,
    /// How many files ended in the midst of a record, as after a power failure.
    pub torn: u64,
    /// How many events were moved to `refused.log` since the start, as the store takes others and not these.
    pub refused: u64,
    /// Why the latest group was not passed on, if it was not.
    pub last_error: Option<Arc<str>>,
}

/// What became of the events when an [`Outbox`] was shut down.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxReport {
    /// What is left in the log, for the next start.
    pub log: OutboxStatus,
    /// How many events were recorded and are not even in the log: they are lost.
    pub unlogged: u64,
    /// Why they are not.
    pub last_error: Option<Arc<str>>,
}

impl Default for OutboxOptions {
    fn default() -> Self {
        Self {
            queue: QueueOptions::default(),
            max_bytes: 1 << 30,
            segment_bytes: 8 << 20,
            group: 256,
            backoff: Backoff::default(),
        }
    }
}

impl OutboxOptions {
    /// Sets [`queue`](Self::queue).
    #[must_use]
    pub const fn with_queue(mut self, queue: QueueOptions) -> Self {
        self.queue = queue;
        self
    }

    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub const fn with_max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets [`segment_bytes`](Self::segment_bytes).
    #[must_use]
    pub const fn with_segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes;
        self
    }

    /// Sets [`group`](Self::group).
    #[must_use]
    pub const fn with_group(mut self, events: usize) -> Self {
        self.group = events;
        self
    }

    /// Sets [`backoff`](Self::backoff).
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }
}

impl Outbox {
    /// Opens the log in this directory, which is made if there is none, and starts two threads: one that writes into it what
    /// the sink is given, one that passes on to `target` what is in it. Blocks while it reads what is there, and for a second
    /// if another process uses the directory.
    ///
    /// At [`Durability::Kill`] and [`Durability::Memory`] a record is given to the system before it is acknowledged, at
    /// [`Durability::PowerLoss`] brought to the disk.
    ///
    /// # Errors
    ///
    /// Nothing was changed then.
    pub fn start(
        directory: impl AsRef<Path>,
        durability: Durability,
        target: impl UsageStore,
        options: OutboxOptions,
    ) -> Result<(OutboxSink, OutboxWorker), OutboxError> {
        let directory = directory.as_ref();
        let (log, shared, lock) = Log::open(directory, durability, options.max_bytes, options.segment_bytes)?;
        let failed = |error: io::Error| OutboxError::of(directory, error);
        let forwarder = Forwarder::new(Arc::clone(&shared), lock, target, options.group, options.backoff);
        let (running, ended) = running();
        let run = move || {
            forwarder.run();
            running.done();
        };
        let (sink, queue) = QueueSink::start(log, options.queue).map_err(failed)?;
        thread::Builder::new().name("usage-outbox".into()).spawn(run).map_err(failed)?;
        let worker = OutboxWorker { queue, shared: Arc::clone(&shared), ended };
        Ok((OutboxSink { queue: sink, shared }, worker))
    }

    /// Reads the events of a file that was kept aside, `….log.bad` or `refused.log`, as far as they are whole.
    ///
    /// # Errors
    ///
    /// [`Unreachable`](OutboxErrorKind::Unreachable), or it is no file of ours.
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<UsageEvent>, OutboxError> {
        segment::read(path.as_ref())
    }
}

// ===== impl OutboxSink =====

impl OutboxSink {
    /// Whether what is recorded is written into the log, and there is room in it and in the queue: what `/readyz` should
    /// tell. Whether the store takes it is in the [status](Self::status).
    pub fn is_healthy(&self) -> bool {
        self.queue.is_healthy() && self.shared.has_room()
    }

    /// How many events were recorded and are not in the log yet.
    pub fn pending(&self) -> u64 {
        self.queue.pending()
    }

    /// What the log holds.
    pub fn status(&self) -> OutboxStatus {
        status(&self.shared)
    }

    /// How many events have left the log since the start, and how many will have once all that is in it has.
    #[cfg(all(feature = "redis", feature = "rusqlite"))]
    pub(super) fn left_log(&self) -> (u64, u64) {
        let state = self.shared.state();
        let done = state.forwarded + state.refused + state.damages;
        (done, done + state.events)
    }

    /// The queue in front of the log, for those who watch it.
    pub const fn queue(&self) -> &QueueSink {
        &self.queue
    }
}

impl UsageSink for OutboxSink {
    fn admit(&self) -> Result<Slot, Error> {
        if !self.is_healthy() {
            return Err(Error::new(ErrorKind::StoreUnavailable { store: "usage".into() }));
        }
        self.queue.admit()
    }

    fn is_healthy(&self) -> bool {
        Self::is_healthy(self)
    }
}

impl fmt::Debug for OutboxSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxSink").field("pending", &self.pending()).field("log", &self.status()).finish()
    }
}

// ===== impl OutboxWorker =====

impl OutboxWorker {
    /// Writes all that was recorded into the log, passes on what is in it, and waits for both until `deadline` has passed.
    /// What is left in the log then is passed on after the next start.
    pub async fn shutdown(self, deadline: Duration) -> OutboxReport {
        self.close(deadline).await
    }

    /// As [`shutdown`](Self::shutdown), for as many as ask for it: the shortest deadline counts.
    pub(crate) async fn close(&self, deadline: Duration) -> OutboxReport {
        let until = after(deadline);
        let report = self.queue.close(deadline).await;
        if tokio::time::timeout_at(until, self.ended.wait()).await.is_err() {
            self.shared.update(|state| state.gives_up = true);
        }
        OutboxReport { log: self.status(), unlogged: report.left, last_error: report.last_error }
    }

    /// What the log holds.
    pub fn status(&self) -> OutboxStatus {
        status(&self.shared)
    }
}

impl fmt::Debug for OutboxWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxWorker").field("log", &self.status()).finish_non_exhaustive()
    }
}

fn status(shared: &Shared) -> OutboxStatus {
    let state = shared.state();
    OutboxStatus {
        events: state.events,
        bytes: state.bytes,
        forwarded: state.forwarded,
        damages: state.damages,
        torn: state.torn,
        refused: state.refused,
        last_error: state.last_error.clone(),
    }
}
