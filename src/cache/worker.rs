use super::{Entry, Fetch, NotStored, ask::Shared, decide::Kbs, epoch::Buckets, stats::count};
use crate::{
    BoxError, RequestContext,
    clock::after,
    ended::{Ended, running},
};
use futures_util::{StreamExt, stream};
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::Poll,
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
};

/// Owns what a cache does after its answers have ended. Dropped without [`shutdown`](Self::shutdown) it goes on until
/// its layer and all services are gone.
#[must_use = "what is under way is only waited for by `shutdown`"]
pub struct CacheWorker {
    shared: Weak<Shared>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    task: AbortHandle,
    ended: Ended,
}

/// What was not done when the time was up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheReport {
    /// Shared calls that were hung up.
    pub flights: usize,
    /// Whether all entries were written, those apart that the store has refused.
    pub is_written: bool,
}

/// A bounded way to the worker.
pub(super) struct Queue {
    jobs: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
}

/// An entry to be written.
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    pub(super) write: Write,
    #[cfg(feature = "semantic")]
    pub(super) learn: Option<super::semantic::Learn>,
}

pub(super) enum Write {
    /// If the knowledge bases of the call still allow it.
    IfAllowed(RequestContext, Buckets, Arc<Entry>),
    Begun(Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>),
}

type Queued = (Job, OwnedSemaphorePermit);

/// How many entries are written at once.
const WRITERS: usize = 16;

pub(super) fn queue(entries: usize, bytes: usize) -> (Queue, mpsc::Receiver<Queued>) {
    let (jobs, received) = mpsc::channel(entries.clamp(1, Semaphore::MAX_PERMITS));
    let bytes = Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
    (Queue { jobs, bytes }, received)
}

impl Queue {
    pub(super) fn push(&self, job: Job, bytes: usize) -> Result<(), NotStored> {
        let bytes = u32::try_from(bytes).map_err(|_| NotStored::TooLarge)?;
        let room = Arc::clone(&self.bytes).try_acquire_many_owned(bytes).map_err(|_| NotStored::QueueFull)?;
        self.jobs.try_send((job, room)).map_err(|_| NotStored::QueueFull)
    }
}

impl Job {
    async fn run(self) {
        let Self { shared, write, .. } = self;
        let put = match write {
            Write::Begun(put) => Fetch::Pending(put),
            Write::IfAllowed(context, buckets, entry) => {
                if shared.ask_kbs(&context).await != Kbs::Allow {
                    return shared.counters.not_stored(NotStored::KbForbids);
                }
                match shared.put(entry, &buckets) {
                    Ok(put) => put,
                    Err(reason) => return shared.counters.not_stored(reason),
                }
            }
        };
        let written = match shared.breaker.is_open() {
            true => None,
            false => Some(tokio::time::timeout(shared.policy.write_deadline, put.wait()).await),
        };
        match written {
            Some(Ok(Ok(()))) => {
                count(&shared.counters.stored);
                #[cfg(feature = "semantic")]
                shared.learn(self.learn);
            }
            _ => {
                count(&shared.counters.store_failures);
                shared.counters.not_stored(NotStored::StoreFailed);
            }
        }
    }
}

impl CacheWorker {
    pub(super) fn start(shared: Weak<Shared>, mut jobs: mpsc::Receiver<Queued>) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let (running, ended) = running();
        let task = tokio::spawn(async move {
            let mut waits_for_stop = true;
            let jobs = stream::poll_fn(move |cx| {
                if waits_for_stop && let Poll::Ready(stopped) = Pin::new(&mut stopped).poll(cx) {
                    waits_for_stop = false;
                    if stopped.is_ok() {
                        jobs.close();
                    }
                }
                jobs.poll_recv(cx)
            });
            jobs.for_each_concurrent(WRITERS, |(job, _room)| job.run()).await;
            running.done();
        });
        Self { shared, stop: Mutex::new(Some(stop)), task: task.abort_handle(), ended }
    }

    /// Lets shared calls come to their end, and writes what was to be written, until `deadline` has passed. From now on
    /// no call is shared, and nothing is written that would take time.
    pub async fn shutdown(self, deadline: Duration) -> CacheReport {
        self.close(deadline).await
    }

    /// As [`shutdown`](Self::shutdown), for as many as ask for it: the shortest deadline counts.
    pub(crate) async fn close(&self, deadline: Duration) -> CacheReport {
        let until = after(deadline);
        let flights = match self.shared.upgrade().and_then(|shared| shared.flights.clone()) {
            Some(flights) => flights.shutdown(until).await,
            None => 0,
        };
        // What a call has just brought is in the queue by now.
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
        }
        // It has to be able to say that there was nothing to do.
        let until = until.max(after(Duration::from_millis(5)));
        let ended = tokio::time::timeout_at(until, self.ended.wait()).await;
        if ended.is_err() {
            self.task.abort();
        }
        CacheReport { flights, is_written: ended == Ok(true) }
    }
}

impl fmt::Debug for CacheWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheWorker").field("is_finished", &self.task.is_finished()).finish_non_exhaustive()
    }
}
