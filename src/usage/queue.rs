use super::{Place, Slot, UsageEvent, UsageSink};
use crate::{BoxError, Error, ErrorKind, fallback::Backoff};
use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// Where a [`QueueSink`] writes to, on a thread of its own.
pub trait UsageStore: Send + 'static {
    /// Writes a group of events, all or none, each once whatever is written again.
    ///
    /// # Errors
    ///
    /// The group is offered again later; it may have been written all the same.
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError>;
}

/// How a [`QueueSink`] is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueOptions {
    /// How many events may be under way, calls that have not ended included; 65,536 unless told.
    pub capacity: usize,
    /// How many events are written at once, at most; 1,024 unless told.
    pub group: usize,
    /// How long to wait before a group is offered again.
    pub backoff: Backoff,
}

/// Hands events to a [`UsageStore`] through a bounded queue. Clones share it.
#[derive(Clone)]
pub struct QueueSink {
    queue: mpsc::Sender<Message>,
    state: Arc<State>,
}

/// Owns the thread that writes. Dropped without [`shutdown`](Self::shutdown), it lets the thread go on by itself until
/// all sinks and slots are gone.
#[must_use = "events that are under way are only waited for by `shutdown`"]
pub struct Worker {
    state: Arc<State>,
    stop: mpsc::Sender<Message>,
    thread: thread::JoinHandle<()>,
    finished: oneshot::Receiver<()>,
}

/// What was written, and what was not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How many events were written since the start.
    pub written: u64,
    /// How many were recorded, and not written when the time was up.
    pub left: u64,
    /// Why the last group was not written, if it was not.
    pub last_error: Option<Arc<str>>,
}

type Message = Option<(UsageEvent, Option<oneshot::Sender<()>>)>;

#[derive(Debug, Default)]
struct State {
    recorded: AtomicU64,
    written: AtomicU64,
    is_failing: AtomicBool,
    gives_up: AtomicBool,
    last_error: Mutex<Option<Arc<str>>>,
    wake: Wake,
}

/// Cuts a wait short.
#[derive(Debug, Default)]
struct Wake(Mutex<()>, std::sync::Condvar);

struct QueuePlace {
    permit: mpsc::OwnedPermit<Message>,
    state: Arc<State>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { capacity: 1 << 16, group: 1024, backoff: Backoff::default() }
    }
}

impl QueueOptions {
    /// Sets [`capacity`](Self::capacity).
    #[must_use]
    pub const fn with_capacity(mut self, events: usize) -> Self {
        self.capacity = events;
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

// ===== impl QueueSink =====

impl QueueSink {
    /// Starts the thread that writes into `store`.
    ///
    /// # Errors
    ///
    /// The system gives no thread.
    pub fn start(store: impl UsageStore, options: QueueOptions) -> io::Result<(Self, Worker)> {
        // One place more, for the word that it is over.
        let (queue, events) = mpsc::channel(options.capacity.max(1) + 1);
        let state = Arc::new(State::default());
        let (done, finished) = oneshot::channel();
        let thread = {
            let state = Arc::clone(&state);
            thread::Builder::new().name("usage".into()).spawn(move || {
                run(store, events, options, &state);
                let _ = done.send(());
            })?
        };
        let worker = Worker { state: Arc::clone(&state), stop: queue.clone(), thread, finished };
        Ok((Self { queue, state }, worker))
    }

    /// Whether the store takes what it is given, and there is room in the queue: what `/readyz` should tell.
    pub fn is_healthy(&self) -> bool {
        !self.state.is_failing.load(Ordering::Acquire) && self.queue.capacity() > 1 && !self.queue.is_closed()
    }

    /// How many events were recorded and are not written yet.
    pub fn pending(&self) -> u64 {
        self.state.pending()
    }

    /// How many events were written since the start.
    pub fn written(&self) -> u64 {
        self.state.written.load(Ordering::Acquire)
    }
}

impl UsageSink for QueueSink {
    fn admit(&self) -> Result<Slot, Error> {
        let unavailable = || Error::new(ErrorKind::StoreUnavailable { store: "usage".into() });
        if self.queue.capacity() <= 1 {
            return Err(unavailable());
        }
        let permit = self.queue.clone().try_reserve_owned().map_err(|_| unavailable())?;
        Ok(Slot::new(QueuePlace { permit, state: Arc::clone(&self.state) }))
    }
}

impl Place for QueuePlace {
    fn record(self: Box<Self>, event: UsageEvent, done: Option<oneshot::Sender<()>>) {
        self.state.recorded.fetch_add(1, Ordering::AcqRel);
        self.permit.send(Some((event, done)));
    }
}

impl fmt::Debug for QueueSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSink").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

// ===== impl State =====

impl State {
    fn pending(&self) -> u64 {
        self.recorded.load(Ordering::Acquire).saturating_sub(self.written.load(Ordering::Acquire))
    }

    fn report(&self) -> Report {
        let last_error = self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report { written: self.written.load(Ordering::Acquire), left: self.pending(), last_error }
    }

    fn failed(&self, error: &BoxError) {
        self.is_failing.store(true, Ordering::Release);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string().into());
    }

    fn wrote(&self, events: usize) {
        self.written.fetch_add(events as u64, Ordering::AcqRel);
        self.is_failing.store(false, Ordering::Release);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Wake {
    fn wait(&self, time: Duration) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Woken early or not, the store is tried again.
        drop(self.1.wait_timeout(guard, time));
    }
}

// ===== impl Worker =====

impl Worker {
    /// Writes all that was recorded, and waits for it until `deadline` has passed. Events of calls that have not ended
    /// by then, or that are recorded afterwards, are not written.
    pub async fn shutdown(self, deadline: Duration) -> Report {
        let Self { state, stop, thread, mut finished } = self;
        let ended = tokio::time::timeout(deadline, async {
            // Behind all that is in the queue.
            let _ = stop.send(None).await;
            let _ = (&mut finished).await;
        });
        if ended.await.is_err() {
            state.gives_up.store(true, Ordering::Release);
            state.wake.1.notify_all();
        } else {
            // It has said that it is done.
            let _ = thread.join();
        }
        state.report()
    }

    /// What was written so far.
    pub fn report(&self) -> Report {
        self.state.report()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("report", &self.report()).finish_non_exhaustive()
    }
}

fn run(
    mut store: impl UsageStore,
    mut events: mpsc::Receiver<Message>,
    options: QueueOptions,
    state: &State,
) {
    let (mut messages, mut group, mut tickets) = (Vec::new(), Vec::new(), Vec::new());
    while events.blocking_recv_many(&mut messages, options.group.max(1)) > 0 {
        let mut is_over = false;
        for message in messages.drain(..) {
            match message {
                Some((event, ticket)) => {
                    group.push(event);
                    tickets.extend(ticket);
                }
                None => is_over = true,
            }
        }
        let mut tries = 0;
        while !group.is_empty() {
            match store.write(&group) {
                Ok(()) => {
                    state.wrote(group.len());
                    group.clear();
                    for ticket in tickets.drain(..) {
                        // Who does not wait for it need not be told.
                        let _ = ticket.send(());
                    }
                }
                Err(error) => {
                    state.failed(&error);
                    if state.gives_up.load(Ordering::Acquire) {
                        return;
                    }
                    state.wake.wait(options.backoff.after(tries));
                    tries += 1;
                }
            }
        }
        if is_over {
            return;
        }
    }
}
