use super::{
    amount::Departments,
    calendar::Day,
    lease::{LeaseId, Settlement},
    live::{Held, Live, Restored, Unpaid},
    store::{EXPIRED_KEPT, QuotaStore, StoreError},
};
use crate::{
    caught::caught_in,
    ended::{Ended, running},
    fallback::Backoff,
    store::Breaker,
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{Instant, Interval, MissedTickBehavior},
};

/// How leases are settled that cannot be settled where they end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerOptions {
    /// How many calls may be under way, those included that have ended and are not settled; 16,384 unless told.
    pub capacity: usize,
    /// How many settlements are tried at once, at most; 64 unless told. Half of them, or one, may be those that have failed
    /// before, so that a department that cannot be settled does not keep others waiting.
    pub parallel: usize,
    /// How long to wait before one is tried again.
    pub backoff: Backoff,
    /// How long a lease lives that nobody extends; 5 minutes unless told. Leases of calls that go on are extended
    /// when half of it has passed.
    pub lease: Duration,
}

/// Settles and extends leases, on a task of its own. Dropped without [`shutdown`](Self::shutdown), it lets the task go on
/// until all layers and calls are gone.
#[must_use = "settlements that are under way are only waited for by `shutdown`"]
pub struct Worker {
    state: Arc<State>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    task: AbortHandle,
    ended: Ended,
}

/// What a [`Worker`] has done, and what it has not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How many leases were settled or released.
    pub settled: u64,
    /// How many have ended and are not settled.
    pub left: u64,
    /// How many were given up, because no store knows their lease after a day.
    pub given_up: u64,
    /// How many leases the store had lost while they were held, and were made anew.
    pub restored: u64,
    /// Why the last try failed, if it did.
    pub last_error: Option<Arc<str>>,
}

/// Where ends of calls are handed over.
#[derive(Clone)]
pub(super) struct Outbox {
    queue: mpsc::Sender<Letter>,
    places: Arc<Semaphore>,
    live: Arc<Live>,
    state: Arc<State>,
}

/// A place for the end of one call.
pub(super) struct Place {
    permit: mpsc::OwnedPermit<Letter>,
    held: OwnedSemaphorePermit,
    live: Arc<Live>,
    state: Arc<State>,
}

/// What is to be done at the end of a call.
#[derive(Debug)]
pub(super) enum Finish {
    Settle {
        settlement: Settlement,
        /// In which it was admitted, and whether departments have to be seeded: should the store have lost it.
        day: Option<Day>,
        needs_seed: bool,
    },
    Release(LeaseId, Departments),
}

/// The end of a call, and its place, which it has until it is settled: the queue's is free as soon as it is taken out.
type Letter = (Finish, OwnedSemaphorePermit);

struct State {
    sent: AtomicU64,
    settled: AtomicU64,
    given_up: AtomicU64,
    restored: AtomicU64,
    last_error: Mutex<Option<Arc<str>>>,
    /// Leases that have failed, and are neither settled nor given up.
    failing: AtomicU64,
    /// Whether the store works: open from the first failure of a lease until the store answers anything. That the same lease fails
    /// again tells nothing new.
    doubt: Breaker,
    /// Whose leases were settled, or have failed, last: whoever it is, the store can be asked in his name.
    known: Mutex<VecDeque<Departments>>,
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whose turn it is to try, in the order in which they come; who waits to try again has none. What has failed before has half of
/// them at most: where that is slow to fail, there is room for what is new, and nobody waits for ever.
struct Turns {
    all: Semaphore,
    again: Semaphore,
}

/// The task: goes on until there is nobody left who could hand something over.
struct Run {
    store: Arc<dyn QuotaStore>,
    queue: mpsc::Receiver<Letter>,
    stop: Option<oneshot::Receiver<()>>,
    live: Arc<Live>,
    state: Arc<State>,
    options: WorkerOptions,
    ticks: Interval,
    turns: Arc<Turns>,
    settling: FuturesUnordered<Work>,
    extending: Option<Work>,
    is_over: bool,
}

/// How often leases are looked after, at least.
const TICK: Duration = Duration::from_secs(5);

/// How many are known to ask the store in their names: where some are in a part that is away, others are not.
const KNOWN: usize = 4;

/// How long a store is waited for that does not keep its own time.
const PATIENCE: Duration = Duration::from_secs(10);

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { capacity: 1 << 14, parallel: 64, backoff: Backoff::default(), lease: Duration::from_secs(300) }
    }
}

impl WorkerOptions {
    /// Sets [`capacity`](Self::capacity).
    #[must_use]
    pub const fn with_capacity(mut self, calls: usize) -> Self {
        self.capacity = calls;
        self
    }

    /// Sets [`parallel`](Self::parallel).
    #[must_use]
    pub const fn with_parallel(mut self, settlements: usize) -> Self {
        self.parallel = settlements;
        self
    }

    /// Sets [`backoff`](Self::backoff).
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets [`lease`](Self::lease).
    #[must_use]
    pub const fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }
}

// ===== impl Worker =====

impl Worker {
    pub(super) fn start(store: Arc<dyn QuotaStore>, options: WorkerOptions) -> (Outbox, Self) {
        let capacity = options.capacity.clamp(1, Semaphore::MAX_PERMITS);
        let (queue, receiver) = mpsc::channel(capacity);
        let places = Arc::new(Semaphore::new(capacity));
        let (stop, stopped) = oneshot::channel();
        let (live, state) = (Arc::<Live>::default(), Arc::new(State::new()));
        let mut ticks = tokio::time::interval((options.lease / 4).clamp(Duration::from_millis(10), TICK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut run = Run {
            store,
            queue: receiver,
            stop: Some(stopped),
            live: Arc::clone(&live),
            state: Arc::clone(&state),
            options,
            ticks,
            turns: Arc::new(Turns::new(options.parallel)),
            settling: FuturesUnordered::new(),
            extending: None,
            is_over: false,
        };
        let (running, ended) = running();
        let task = tokio::spawn(async move {
            poll_fn(|cx| run.poll(cx)).await;
            running.done();
        });
        let worker = Self {
            state: Arc::clone(&state),
            stop: Mutex::new(Some(stop)),
            task: task.abort_handle(),
            ended,
        };
        (Outbox { queue, places, live, state }, worker)
    }

    /// Lets no further call in, waits until those in flight have ended and all is settled, or until `deadline` has passed.
    /// What is left then expires in the store.
    pub async fn shutdown(self, deadline: Duration) -> Report {
        self.close(deadline).await
    }

    /// As [`shutdown`](Self::shutdown), for as many as ask for it: the shortest deadline counts.
    pub(crate) async fn close(&self, deadline: Duration) -> Report {
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
        }
        if tokio::time::timeout(deadline, self.ended.wait()).await.is_err() {
            self.task.abort();
        }
        self.report()
    }

    /// What was done so far.
    pub fn report(&self) -> Report {
        self.state.report()
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("report", &self.report()).finish_non_exhaustive()
    }
}

// ===== impl Outbox =====

impl Outbox {
    /// A place for the end of a call; `None` if there is none, or nobody who would look after it.
    pub(super) fn place(&self) -> Option<Place> {
        let held = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let permit = self.queue.clone().try_reserve_owned().ok()?;
        Some(Place { permit, held, live: Arc::clone(&self.live), state: Arc::clone(&self.state) })
    }

    /// The lease is extended until its end is handed over.
    pub(super) fn keep_alive(&self, id: LeaseId, held: Held) {
        self.live.keep_alive(id, held);
    }

    /// What is known of the leases that it looks after.
    pub(super) const fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// Whether settlements get through, as far as anybody knows, and there is room for more.
    pub(super) fn is_well(&self) -> bool {
        !self.queue.is_closed() && self.places.available_permits() > 0 && !self.state.doubt.is_open()
    }

    /// The store has answered.
    pub(super) fn answered(&self) {
        self.state.doubt.succeeded();
    }

    /// In whose name to ask the store whether it works: one after the other, once a second, until it has answered.
    pub(super) fn doubted(&self) -> Option<Departments> {
        if !self.state.doubt.is_due() || !self.state.doubt.lets_through() {
            return None;
        }
        self.next_known()
    }

    /// One after the other of those whose leases came to their end.
    pub(super) fn next_known(&self) -> Option<Departments> {
        let mut known = self.state.known.lock().unwrap_or_else(PoisonError::into_inner);
        let next = known.pop_front()?;
        known.push_back(next.clone());
        Some(next)
    }
}

impl Place {
    pub(super) fn hand_over(self, finish: Finish) {
        self.live.ends(finish.id());
        self.state.sent.fetch_add(1, Ordering::AcqRel);
        self.permit.send((finish, self.held));
    }
}

impl Finish {
    const fn id(&self) -> LeaseId {
        match self {
            Self::Settle { settlement, .. } => settlement.id,
            Self::Release(id, _) => *id,
        }
    }

    const fn departments(&self) -> &Departments {
        match self {
            Self::Settle { settlement, .. } => &settlement.departments,
            Self::Release(_, departments) => departments,
        }
    }
}

impl State {
    fn new() -> Self {
        Self {
            sent: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
            restored: AtomicU64::new(0),
            last_error: Mutex::new(None),
            failing: AtomicU64::new(0),
            doubt: Breaker::new(1, Duration::from_secs(1)),
            known: Mutex::new(VecDeque::with_capacity(KNOWN)),
        }
    }

    fn report(&self) -> Report {
        let (settled, given_up) =
            (self.settled.load(Ordering::Acquire), self.given_up.load(Ordering::Acquire));
        Report {
            settled,
            left: self.sent.load(Ordering::Acquire).saturating_sub(settled + given_up),
            given_up,
            restored: self.restored.load(Ordering::Acquire),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn failed(&self, finish: &Finish, tries: u32, error: &StoreError) {
        if tries == 0 {
            self.failing.fetch_add(1, Ordering::AcqRel);
            self.knows(finish.departments());
            if !matches!(error, StoreError::Damaged(_)) {
                self.doubt.failed();
            }
        }
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.cause().into());
    }

    fn succeeded(&self, finish: &Finish, tries: u32) {
        if tries > 0 {
            self.failing.fetch_sub(1, Ordering::AcqRel);
        }
        self.knows(finish.departments());
        self.doubt.succeeded();
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.settled.fetch_add(1, Ordering::AcqRel);
    }

    fn gave_up(&self) {
        if self.failing.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Nothing is left that would tell of the store some day.
            self.doubt.succeeded();
        }
        self.given_up.fetch_add(1, Ordering::AcqRel);
    }

    fn knows(&self, departments: &Departments) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.back() != Some(departments) {
            known.retain(|others| others != departments);
            if known.len() == KNOWN {
                known.pop_front();
            }
            known.push_back(departments.clone());
        }
    }
}

// ===== impl Turns =====

impl Turns {
    fn new(parallel: usize) -> Self {
        let all = parallel.clamp(1, Semaphore::MAX_PERMITS);
        Self { all: Semaphore::new(all), again: Semaphore::new((all / 2).max(1)) }
    }

    /// Until what it returns is dropped.
    async fn next(&self, is_again: bool) -> impl Sized {
        let again = if is_again { self.again.acquire().await.ok() } else { None };
        (self.all.acquire().await.ok(), again)
    }
}

// ===== impl Run =====

impl Run {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.stop.as_mut().is_some_and(|stop| match Pin::new(stop).poll(cx) {
                Poll::Ready(Ok(())) => {
                    self.queue.close();
                    true
                }
                // Dropped: nobody will say so.
                Poll::Ready(Err(_)) => true,
                Poll::Pending => false,
            }) {
                self.stop = None;
            }
            while let Poll::Ready(Some(())) = self.settling.poll_next_unpin(cx) {}
            if !self.is_over {
                match self.queue.poll_recv(cx) {
                    Poll::Ready(Some((finish, place))) => {
                        self.settling.push(self.settle(finish, place));
                        continue;
                    }
                    Poll::Ready(None) => self.is_over = true,
                    Poll::Pending => {}
                }
            }
            if let Some(extending) = &mut self.extending
                && extending.as_mut().poll(cx).is_ready()
            {
                self.extending = None;
            }
            if self.is_over {
                // Whoever is settled may wait for what extends his lease, which wakes him.
                return if self.settling.is_empty() { Poll::Ready(()) } else { Poll::Pending };
            }
            if self.ticks.poll_tick(cx).is_pending() {
                return Poll::Pending;
            }
            if self.extending.is_none() {
                self.extending = Some(self.extend());
            }
        }
    }

    /// Settles or releases, again until it is done.
    fn settle(&self, finish: Finish, place: OwnedSemaphorePermit) -> Work {
        let (store, state, live) = (Arc::clone(&self.store), Arc::clone(&self.state), Arc::clone(&self.live));
        let (turns, backoff, lease) = (Arc::clone(&self.turns), self.options.backoff, self.options.lease);
        Box::pin(async move {
            let _place = place;
            live.is_free(finish.id()).await;
            let started = Instant::now();
            let mut unpaid = None;
            for tries in 0_u32.. {
                let turn = turns.next(tries > 0).await;
                let done = answer(async {
                    match &finish {
                        Finish::Settle { settlement, day: Some(day), needs_seed } => {
                            let new = || Unpaid::new(&*store, settlement, *day, *needs_seed);
                            let unpaid = unpaid.get_or_insert_with(new);
                            unpaid.charge(&*store, &live, &state.restored, lease).await
                        }
                        // Nobody knows where it would have to be made anew.
                        Finish::Settle { settlement, .. } => store.settle(settlement).await.map(drop),
                        Finish::Release(id, departments) => store.release(*id, departments).await,
                    }
                });
                let done = done.await;
                drop(turn);
                match done {
                    Ok(()) => {
                        live.is_settled(finish.id());
                        state.succeeded(&finish, tries);
                        return;
                    }
                    Err(error) => state.failed(&finish, tries, &error),
                }
                if started.elapsed() > EXPIRED_KEPT {
                    live.is_settled(finish.id());
                    state.gave_up();
                    return;
                }
                // Never at once, whatever chance says.
                tokio::time::sleep(backoff.after(tries).max(Duration::from_millis(1))).await;
            }
        })
    }

    /// Extends what is due. What fails is due again at the next tick.
    fn extend(&self) -> Work {
        let (store, live, lease) = (Arc::clone(&self.store), Arc::clone(&self.live), self.options.lease);
        let state = Arc::clone(&self.state);
        let parallel = self.options.parallel.max(1);
        Box::pin(async move {
            let due = futures_util::stream::iter(live.due(lease));
            due.for_each_concurrent(parallel, |(id, held)| {
                let (store, live, state) = (&store, &live, &state);
                async move {
                    let Some(_busy) = live.begin(id) else { return };
                    let at = Instant::now();
                    let extended = answer(async {
                        if store.extend(id, &held.departments, lease).await? {
                            return Ok(true);
                        }
                        // It has expired, and is charged in part; or it is lost.
                        let restored = held.restore(&**store, id, lease).await?;
                        if restored == Restored::Made {
                            state.restored.fetch_add(1, Ordering::AcqRel);
                            live.has_it_again(id, &held.departments);
                        }
                        Ok::<_, StoreError>(restored != Restored::NotYet)
                    });
                    if let Ok(true) = extended.await {
                        live.extended(id, at);
                    }
                }
            })
            .await;
        })
    }
}

/// What a store says. One that panics or is late may have done it; and it must not end the task that settles for all.
async fn answer<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let answer = tokio::time::timeout(PATIENCE, caught_in("the store", asked)).await;
    answer.map_err(StoreError::ambiguous)?.map_err(StoreError::ambiguous)?
}
