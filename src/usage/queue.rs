use super::{
    Done, Slot, UsageEvent, UsageSink,
    writer::{Caught, SetAside, Writer},
};
use crate::{
    BoxError, Error, ErrorKind,
    ended::{Ended, running},
    fallback::Backoff,
    forward::forward,
    store::Trouble,
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        thread, timeout,
    },
};
use std::{
    fmt, io,
    sync::{Arc, PoisonError},
    time::Duration,
};

/// Where a [`QueueSink`] writes to, on a thread of its own.
///
/// ```
/// use llm_layers::{
///     BoxError, ChatBody, LlmRequest,
///     price::Prices,
///     provider::Echo,
///     usage::{EventId, QueueOptions, QueueSink, UsageEvent, UsageLayer, UsageStore},
/// };
/// use std::{collections::HashMap, sync::{Arc, Mutex}, time::Duration};
/// use tower::{Layer, ServiceExt};
///
/// /// By its id, so that an event that is offered again is there once.
/// #[derive(Clone, Default)]
/// struct Kept(Arc<Mutex<HashMap<EventId, UsageEvent>>>);
///
/// impl UsageStore for Kept {
///     fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
///         let mut kept = self.0.lock().map_err(|_| "a writer has panicked")?;
///         kept.extend(group.iter().map(|event| (event.id, event.clone())));
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let kept = Kept::default();
/// let (sink, worker) = QueueSink::start(kept.clone(), QueueOptions::default())?;
/// let service = UsageLayer::new(sink, Prices::default()).layer(Echo::new());
/// service.oneshot(LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?)).await?;
///
/// assert_eq!(worker.shutdown(Duration::from_secs(5)).await.left, 0);
/// assert!(kept.0.lock().unwrap().values().all(|event| event.model == "acme/one"));
/// assert_eq!(kept.0.lock().unwrap().len(), 1);
/// # Ok(())
/// # }
/// ```
pub trait UsageStore: Send + 'static {
    /// Writes a group of events, all or none, each once whatever is written again.
    ///
    /// # Errors
    ///
    /// The group is offered again later, also where it panics; it may have been written all the same. If it is an event that is to blame and
    /// not the store, the error should be [`Refused`](super::Refused): then the others are written without it at once. Otherwise that is
    /// found out once a group has failed several times: an event is to blame that is refused again and again while others are
    /// written. See [`knows_refusals`](Self::knows_refusals).
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError>;

    /// Whether it says [`Refused`](super::Refused) wherever an event is to blame. Then nothing is found out by trying: what fails otherwise
    /// is offered until it is written.
    fn knows_refusals(&self) -> bool {
        false
    }

    /// As [`write`](Self::write), for events that come out of a log. By where they stand in it, a store can tell for good
    /// which of them it has, however late they are offered again. Unless it wants to, it need not.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    fn write_from(&mut self, position: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError> {
        let _ = position;
        self.write(group)
    }
}

forward! {
    UsageStore for [Box] {
        fn knows_refusals(&self) -> bool;
    } {
        fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError>;
        fn write_from(&mut self, position: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError>;
    }
}

/// Where a group of events stands in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPosition<'a> {
    /// Which log: chosen by chance, once for each file.
    pub log: u128,
    /// Where each of the events ends in it, in bytes from its beginning: they rise.
    pub ends: &'a [u64],
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
    /// How long events are gathered before a group is written, unless somebody waits for one of them, or reads the ledger
    /// [behind](super::LedgerReader::behind) them; 10 ms unless told. So long no call has to wake the thread that writes, which
    /// costs more than recording itself; and what a process has not written when it is killed is lost, unless answers wait for
    /// it ([`UsageLayer::durable`](super::UsageLayer::durable)).
    pub linger: Duration,
}

/// Hands events to a [`UsageStore`] through a bounded queue. Clones share it.
#[derive(Clone)]
pub struct QueueSink(Arc<Gate>);

/// Owns the thread that writes. Dropped without [`shutdown`](Self::shutdown), it lets the thread go on by itself until
/// all sinks and slots are gone.
#[must_use = "events that are under way are only waited for by `shutdown`"]
pub struct Worker {
    inbox: Arc<Inbox>,
    ended: Ended,
}

/// What was written, and what was not.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How many events were written since the start.
    pub written: u64,
    /// How many were recorded, and not written when the time was up.
    pub left: u64,
    /// Of these: how many the store had been offered, so that they may be written all the same. The others will not be.
    pub in_doubt: u64,
    /// How many the store refuses for ever: see [`QueueSink::take_set_aside`].
    pub set_aside: u64,
    /// Why the last group was not written, if it was not.
    pub last_error: Option<Arc<str>>,
}

/// Lets the thread end when the last sink and the last slot are gone.
struct Gate(Arc<Inbox>);

/// What the thread and all others share. A lock that is held for one push or one exchange costs a call less than a
/// channel, whose permits count references and wake by themselves.
#[derive(Debug)]
pub(super) struct Inbox {
    capacity: usize,
    /// Calls that have not ended, and events that are not written.
    under_way: AtomicUsize,
    recorded: AtomicU64,
    written: AtomicU64,
    set_aside: AtomicU64,
    is_failing: AtomicBool,
    trouble: Trouble,
    /// The thread has ended; changed while it has the letters.
    is_over: AtomicBool,
    last_error: Mutex<Option<Arc<str>>>,
    letters: Mutex<Letters>,
    changed: Condvar,
    /// What the store refuses for ever; each keeps its place until somebody takes it.
    aside: Mutex<Vec<SetAside>>,
}

#[derive(Debug, Default)]
struct Letters {
    new: Vec<Letter>,
    /// Nobody will record any more, or wait for it.
    is_closing: bool,
    /// There is no time left to offer again what the store refused.
    gives_up: bool,
    /// Somebody waits for an event to be written.
    is_awaited: bool,
    /// The thread waits until it is woken.
    is_asleep: bool,
    /// How many events the store was offered, and has not taken for certain.
    in_doubt: usize,
}

pub(super) type Letter = (UsageEvent, Option<Done>);

/// A place in the queue.
pub(super) struct QueuePlace(Option<Arc<Gate>>);

impl Default for QueueOptions {
    fn default() -> Self {
        Self {
            capacity: 1 << 16,
            group: 1024,
            backoff: Backoff::default(),
            linger: Duration::from_millis(10),
        }
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
        let inbox = Arc::new(Inbox {
            capacity: options.capacity.max(1),
            under_way: AtomicUsize::new(0),
            recorded: AtomicU64::new(0),
            written: AtomicU64::new(0),
            set_aside: AtomicU64::new(0),
            is_failing: AtomicBool::new(false),
            trouble: Trouble::default(),
            is_over: AtomicBool::new(false),
            last_error: Mutex::default(),
            letters: Mutex::default(),
            changed: Condvar::new(),
            aside: Mutex::default(),
        });
        let (running, ended) = running();
        let of_thread = Arc::clone(&inbox);
        thread::Builder::new().name("usage".into()).spawn(move || {
            run(store, options, &of_thread);
            running.done();
        })?;
        let worker = Worker { inbox: Arc::clone(&inbox), ended };
        Ok((Self(Arc::new(Gate(inbox))), worker))
    }

    /// Whether the store takes what it is given, and there is room in the queue: what `/readyz` should tell.
    pub fn is_healthy(&self) -> bool {
        let inbox = self.inbox();
        !inbox.is_failing.load(Ordering::Acquire)
            && inbox.under_way.load(Ordering::Acquire) < inbox.capacity
            && !inbox.is_over.load(Ordering::Acquire)
    }

    /// How many events were recorded and are not written yet.
    pub fn pending(&self) -> u64 {
        self.inbox().pending()
    }

    /// How many events were recorded and nobody will write any more: none, unless the store still failed when the
    /// time for [`shutdown`](Worker::shutdown) was up.
    pub fn lost(&self) -> u64 {
        if self.inbox().is_over.load(Ordering::Acquire) { self.pending() } else { 0 }
    }

    /// How many events were written since the start.
    pub fn written(&self) -> u64 {
        self.inbox().written.load(Ordering::Acquire)
    }

    /// How many events the store has refused for ever since the start. They keep nobody else from being written.
    pub fn set_aside(&self) -> u64 {
        self.inbox().set_aside.load(Ordering::Acquire)
    }

    /// Takes out what the store refuses for ever, to be kept elsewhere. Until it is taken it has its place in the queue,
    /// so that nothing is lost, and the queue may be full of it.
    pub fn take_set_aside(&self) -> Vec<SetAside> {
        let inbox = self.inbox();
        let taken = std::mem::take(&mut *inbox.aside.lock().unwrap_or_else(PoisonError::into_inner));
        inbox.under_way.fetch_sub(taken.len(), Ordering::AcqRel);
        taken
    }

    /// Has what was recorded so far written at once, and says by how many events [`has_done`](Self::has_done) can tell
    /// that it was.
    #[cfg(feature = "rusqlite")]
    pub(super) fn hurry(&self) -> u64 {
        let inbox = self.inbox();
        let mut letters = inbox.letters();
        letters.is_awaited |= !letters.new.is_empty();
        let recorded = inbox.recorded.load(Ordering::Acquire);
        drop(letters);
        inbox.changed.notify_all();
        recorded
    }

    /// Whether so many events are written, or refused for ever. `None` if they never will be.
    #[cfg(feature = "rusqlite")]
    pub(super) fn has_done(&self, events: u64) -> Option<bool> {
        let inbox = self.inbox();
        let is_over = inbox.is_over.load(Ordering::Acquire);
        let is_done = inbox.done() >= events;
        (is_done || !is_over).then_some(is_done)
    }

    fn inbox(&self) -> &Inbox {
        &self.0.0
    }
}

impl UsageSink for QueueSink {
    fn admit(&self) -> Result<Slot, Error> {
        let inbox = self.inbox();
        let is_full = inbox.under_way.fetch_add(1, Ordering::AcqRel) >= inbox.capacity;
        if is_full || inbox.is_over.load(Ordering::Acquire) {
            inbox.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(Error::new(ErrorKind::StoreUnavailable { store: "usage".into() }));
        }
        Ok(Slot::of_queue(QueuePlace(Some(Arc::clone(&self.0)))))
    }

    fn is_healthy(&self) -> bool {
        Self::is_healthy(self)
    }
}

impl QueuePlace {
    pub(super) fn record(mut self, event: UsageEvent, done: Option<Done>) {
        if let Some(gate) = self.0.take() {
            gate.0.push(event, done);
        }
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.0.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.letters().is_closing = true;
        self.0.changed.notify_all();
    }
}

impl fmt::Debug for QueueSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueueSink").field("pending", &self.pending()).finish_non_exhaustive()
    }
}

// ===== impl Inbox =====

impl Inbox {
    fn letters(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: UsageEvent, done: Option<Done>) {
        let mut letters = self.letters();
        // With the lock: what is recorded later is written later, and nobody else counts.
        self.recorded.store(self.recorded.load(Ordering::Relaxed) + 1, Ordering::Release);
        if self.is_over.load(Ordering::Acquire) {
            // Nobody reads it; whoever waits learns so at once.
            return;
        }
        let is_awaited = done.is_some() && !letters.is_awaited;
        letters.is_awaited |= is_awaited;
        letters.new.push((event, done));
        let must_wake = is_awaited || letters.is_asleep;
        drop(letters);
        if must_wake {
            self.changed.notify_all();
        }
    }

    /// Exchanges `taken`, which is empty, for what there is; `false` if it is over.
    ///
    /// A thread that sleeps is woken by the next call, at that call's cost: so it does only after [`QUIET`] rounds in
    /// which nothing came.
    fn take(&self, taken: &mut Vec<Letter>, linger: Duration) -> bool {
        let mut letters = self.letters();
        let gather = |letters| {
            let is_quiet = |letters: &mut Letters| !letters.is_awaited && !letters.is_closing;
            self.changed
                .wait_timeout_while(letters, linger, is_quiet)
                .unwrap_or_else(PoisonError::into_inner)
                .0
        };
        for _ in 0..QUIET {
            letters = gather(letters);
            if !letters.new.is_empty() || letters.is_closing || linger.is_zero() {
                break;
            }
        }
        letters.is_asleep = true;
        let is_idle = |letters: &mut Letters| letters.new.is_empty() && !letters.is_closing;
        letters = self.changed.wait_while(letters, is_idle).unwrap_or_else(PoisonError::into_inner);
        (letters.is_asleep, letters.is_awaited) = (false, false);
        std::mem::swap(&mut letters.new, taken);
        !taken.is_empty()
    }

    fn pending(&self) -> u64 {
        self.recorded.load(Ordering::Acquire).saturating_sub(self.done())
    }

    fn done(&self) -> u64 {
        self.written.load(Ordering::Acquire) + self.set_aside.load(Ordering::Acquire)
    }

    fn report(&self, in_doubt: usize) -> Report {
        let left = self.pending();
        Report {
            written: self.written.load(Ordering::Acquire),
            left,
            in_doubt: left.min(in_doubt as u64),
            set_aside: self.set_aside.load(Ordering::Acquire),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(super) fn failed(&self, error: &BoxError) {
        // First why, so that whoever sees that it fails can read it.
        let error = error.to_string();
        self.trouble.fails("usage cannot be written", &error);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.into());
        self.is_failing.store(true, Ordering::Release);
    }

    pub(super) fn works(&self) {
        if self.is_failing.swap(false, Ordering::AcqRel) {
            self.trouble.works("usage is written again");
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(super) fn wrote(&self, events: usize) {
        self.under_way.fetch_sub(events, Ordering::AcqRel);
        // At the end: who sees that nothing is pending sees the rest, too.
        self.written.fetch_add(events as u64, Ordering::AcqRel);
    }

    pub(super) fn put_aside(&self, refused: SetAside) {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner).push(refused);
        self.set_aside.fetch_add(1, Ordering::AcqRel);
    }

    /// Says before events are offered that they may be written from now on; `false` if there is no time left for it, and
    /// they must not be.
    pub(super) fn offers(&self, events: usize) -> bool {
        let mut letters = self.letters();
        let has_time = !letters.gives_up;
        if has_time {
            letters.in_doubt = events;
        }
        has_time
    }

    /// What has come meanwhile, up to so many.
    pub(super) fn more(&self, most: usize, into: &mut impl Extend<Letter>) {
        let mut letters = self.letters();
        let most = letters.new.len().min(most);
        into.extend(letters.new.drain(..most));
    }

    /// Waits before a group is offered again; `false` if there is no time left.
    pub(super) fn wait_to_retry(&self, time: Duration) -> bool {
        let has_time = |letters: &mut Letters| !letters.gives_up;
        let waited = self.changed.wait_timeout_while(self.letters(), time, has_time);
        !waited.unwrap_or_else(PoisonError::into_inner).0.gives_up
    }
}

// ===== impl Worker =====

impl Worker {
    /// Writes all that was recorded, and waits for it until `deadline` has passed. Events of calls that have not ended
    /// by then, or that are recorded afterwards, are not written. Of those that are left then, only the group that the store
    /// was offered last may be written all the same: see [`Report::in_doubt`].
    pub async fn shutdown(self, deadline: Duration) -> Report {
        self.close(deadline).await
    }

    /// As [`shutdown`](Self::shutdown), for as many as ask for it: the shortest deadline counts.
    pub(crate) async fn close(&self, deadline: Duration) -> Report {
        let inbox = &*self.inbox;
        inbox.letters().is_closing = true;
        inbox.changed.notify_all();
        let is_over = timeout(deadline, self.ended.wait()).await.is_ok();
        let mut letters = inbox.letters();
        letters.gives_up |= !is_over;
        let in_doubt = if letters.gives_up { letters.in_doubt } else { 0 };
        drop(letters);
        inbox.changed.notify_all();
        inbox.report(in_doubt)
    }

    /// What was written so far.
    pub fn report(&self) -> Report {
        let in_doubt = self.inbox.letters().in_doubt;
        self.inbox.report(in_doubt)
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("report", &self.report()).finish_non_exhaustive()
    }
}

// ===== the thread =====

/// Says that the thread has ended, however it did.
struct Over<'a>(&'a Inbox);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let mut letters = self.0.letters();
        self.0.is_over.store(true, Ordering::Release);
        // With the tickets: whoever waits learns that it is in vain.
        letters.new.clear();
    }
}

fn run(store: impl UsageStore, options: QueueOptions, inbox: &Inbox) {
    let most = options.group.max(1);
    let mut letters = Vec::new();
    // Before anybody's ticket says so: it is the first to be dropped.
    let mut writer = Writer::new(Caught(store), most, options.backoff, inbox);
    let _over = Over(inbox);
    let mut linger = options.linger;
    while inbox.take(&mut letters, linger) {
        // Where much comes there is nothing to wait for.
        linger = if letters.len() < most { options.linger } else { Duration::ZERO };
        let mut waiting = letters.drain(..);
        loop {
            writer.extend(waiting.by_ref().take(most));
            if writer.is_empty() {
                break;
            }
            if !writer.write() {
                return;
            }
        }
        drop(waiting);
        // What an outage has piled up need not be kept room for.
        letters.shrink_to(4 * most);
    }
}

/// How often nothing has to come before the thread goes to sleep.
const QUIET: u32 = if cfg!(shuttle) { 2 } else { 50 };
