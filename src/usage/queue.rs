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
    /// How long events are gathered before a group is written, unless somebody waits for one of them; 2 ms unless
    /// told. So long no call has to wake the thread that writes, which costs more than recording itself.
    pub linger: Duration,
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
    /// Cuts the wait for a store that fails short: there is no time left.
    stop: Wake,
    /// Cuts the gathering short: somebody waits.
    hurry: Wake,
}

/// Cuts a wait short, also one that has not begun.
#[derive(Debug, Default)]
struct Wake {
    is_wanted: Mutex<bool>,
    changed: std::sync::Condvar,
}

struct QueuePlace {
    permit: mpsc::OwnedPermit<Message>,
    state: Arc<State>,
}

impl Default for QueueOptions {
    fn default() -> Self {
        Self { capacity: 1 << 16, group: 1024, backoff: Backoff::default(), linger: Duration::from_millis(2) }
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

    /// Sets [`linger`](Self::linger).
    #[must_use]
    pub const fn with_linger(mut self, time: Duration) -> Self {
        self.linger = time;
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

    /// How many events were recorded and nobody will write any more: none, unless the store still failed when the
    /// time for [`shutdown`](Worker::shutdown) was up.
    pub fn lost(&self) -> u64 {
        if self.queue.is_closed() { self.pending() } else { 0 }
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
        let is_awaited = done.is_some();
        self.permit.send(Some((event, done)));
        if is_awaited {
            self.state.hurry.now();
        }
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
        // First why, so that whoever sees that it fails can read it.
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string().into());
        self.is_failing.store(true, Ordering::Release);
    }

    fn wrote(&self, events: usize) {
        self.written.fetch_add(events as u64, Ordering::AcqRel);
        self.is_failing.store(false, Ordering::Release);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Wake {
    fn wait(&self, time: Duration) {
        let wanted = self.is_wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(wanted, time, |wanted| !*wanted);
        let (mut wanted, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *wanted = false;
    }

    fn now(&self) {
        let mut wanted = self.is_wanted.lock().unwrap_or_else(PoisonError::into_inner);
        // Who is awake already need not be woken again.
        if !std::mem::replace(&mut *wanted, true) {
            self.changed.notify_one();
        }
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
            state.hurry.now();
            let _ = (&mut finished).await;
        });
        if ended.await.is_err() {
            state.gives_up.store(true, Ordering::Release);
            state.stop.now();
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
    while receive(&mut events, &mut messages, options, state) > 0 {
        let mut is_over = false;
        let is_full = messages.len() >= options.group;
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
                    state.stop.wait(options.backoff.after(tries));
                    tries += 1;
                }
            }
        }
        if is_over {
            return;
        }
        if !is_full {
            state.hurry.wait(options.linger);
        }
    }
}

/// Takes as many messages as a group has, or as there are; none if it is over.
///
/// A thread that sleeps in the queue is woken by the next call, at that call's cost: so it does only after
/// [`QUIET`] rounds in which nothing came.
fn receive(
    events: &mut mpsc::Receiver<Message>,
    messages: &mut Vec<Message>,
    options: QueueOptions,
    state: &State,
) -> usize {
    let most = options.group.max(1);
    for _ in 0..QUIET {
        while messages.len() < most {
            let Ok(message) = events.try_recv() else { break };
            messages.push(message);
        }
        if !messages.is_empty() || events.is_closed() || options.linger.is_zero() {
            break;
        }
        state.hurry.wait(options.linger);
    }
    if messages.is_empty() { events.blocking_recv_many(messages, most) } else { messages.len() }
}

/// How often nothing has to come before the thread goes to sleep.
const QUIET: u32 = 50;
