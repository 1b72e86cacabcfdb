//! Equal calls that are in flight together share one.
//!
//! The call itself is a task that the map owns, so that it depends on no caller's being polled. What it brings is kept,
//! up to a bound, for as long as it flies; each caller reads it at his own pace. Beyond the bound it is brought at the pace
//! of the one who is ahead of all others, so that he is never cut off.

mod reader;

pub(super) use self::reader::{Beginning, Reader};
use super::{CacheKey, Coalescing, ask::Shared, epoch::Stamp};
use crate::{
    Attempt, CacheStatus, Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ModelName,
    Progress, ResponseBody, StreamChunk,
    decision::Decisions,
    providers::Chosen,
    quota::Headroom,
    sync::{AbortHandle, Handle, Mutex, MutexGuard, timeout_at},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    future::poll_fn,
    iter, mem,
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{sync::watch, task::coop::consume_budget, time::Instant};

/// All that are in flight. Locked before any of its flights, never after.
pub(super) struct Flights {
    map: Mutex<Map>,
    /// How many tasks there are, those that are in the map no longer included.
    running: watch::Sender<usize>,
    rules: Coalescing,
    window: usize,
    /// For calls that are part of none but these.
    mark: Arc<Aboard>,
}

/// Says in a request that it is the call of a flight, and of which layer's; then of which further out.
pub(crate) struct Aboard {
    flights: u64,
    outer: Option<Arc<Self>>,
}

#[derive(Default)]
struct Map {
    flights: HashMap<Route, Arc<Flight>>,
    /// `None` while it is being spawned.
    tasks: HashMap<u64, Option<AbortHandle>>,
    next_task: u64,
    is_closed: bool,
    /// How many had to be hung up.
    cut: usize,
}

/// Which calls are equal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Route {
    pub(super) key: CacheKey,
    pub(super) since: Since,
    pub(super) streaming: bool,
    /// How long the answer is to be kept.
    pub(super) ttl: Duration,
    /// What they have left bounds an answer, or refuses it. In order.
    pub(super) departments: Box<[Arc<str>]>,
}

/// What must not have been made invalid in between.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Since {
    Epochs(Stamp),
    /// The epochs cannot be had: so many times something was made invalid here. Nothing is kept of it.
    Raised(u64),
}

/// One caller's own call, made only if it comes to that.
pub(super) struct Call {
    pub(super) future: Pin<Box<dyn Future<Output = Result<LlmResponse, Error>> + Send>>,
    pub(super) progress: Progress,
}

pub(super) struct Flight {
    flights: Arc<Flights>,
    route: Route,
    task: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Readers that are there, with the calls that they would make; those are dropped once there is a head.
    waiting: BTreeMap<u64, Call>,
    next_reader: u64,
    /// Whose call it is that flies.
    leader: u64,
    head: Option<Head>,
    whole: Option<Completion>,
    chunks: VecDeque<StreamChunk>,
    /// The number of the first chunk that is still there.
    first: u64,
    /// Of the chunks that are there, and of all that were.
    held: usize,
    total: usize,
    /// The number of the first chunk with content.
    content: Option<u64>,
    /// For whose call it was refused before it was sent.
    refused: BTreeMap<u64, Error>,
    end: Option<Result<(), Error>>,
    /// Of each reader who is there.
    places: Vec<Option<Place>>,
    free_places: Vec<usize>,
    /// Of the task, while it waits for readers.
    carrier: Option<Waker>,
}

/// How far a reader has come: the number of the chunk that is next for him, and the bytes of those before.
#[derive(Default)]
struct Place {
    at: u64,
    read: usize,
    waker: Option<Waker>,
}

struct Head {
    model: ModelName,
    provider: Option<Arc<str>>,
    chosen: Option<Chosen>,
    cache: CacheStatus,
    is_similar: bool,
    /// For the one whose call it is.
    own: Option<Own>,
}

struct Own {
    attempts: Vec<Attempt>,
    provider_request_id: Option<Arc<str>>,
    quota: Option<Headroom>,
    decisions: Decisions,
    extensions: http::Extensions,
}

/// How a caller comes to his answer.
pub(super) enum Boarding {
    Aboard(Reader),
    /// It was there after all.
    Found(LlmResponse),
    Full,
    /// It is not shared any more: he has to go alone.
    Closed(Call),
}

/// Tells whoever reads if the task ends without having said so, be it that it was never begun.
struct Landing {
    flight: Arc<Flight>,
    is_begun: bool,
}

/// Counts the task as running.
struct Running(Arc<Flights>, u64);

// ===== impl Flights =====

impl Flights {
    pub(super) fn new(rules: Coalescing, window: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = Arc::new(Aboard { flights: NEXT.fetch_add(1, Ordering::Relaxed), outer: None });
        Self { map: Mutex::default(), running: watch::Sender::new(0), rules, window, mark }
    }

    /// Whether `request` is the call of one of them already: aboard another it might wait for itself.
    pub(super) fn carry(&self, request: &LlmRequest) -> bool {
        iter::successors(request.aboard(), |aboard| aboard.outer.as_ref())
            .any(|aboard| aboard.flights == self.mark.flights)
    }

    /// Makes `request` one that they [`carry`](Self::carry).
    pub(super) fn mark(&self, request: &mut LlmRequest) {
        let mark = match request.aboard() {
            None => Arc::clone(&self.mark),
            outer => Arc::new(Aboard { flights: self.mark.flights, outer: outer.cloned() }),
        };
        request.set_aboard(mark);
    }

    pub(super) fn count(&self) -> usize {
        self.lock().flights.len()
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is one on `route` to be joined.
    #[cfg(feature = "semantic")]
    pub(super) fn has(&self, route: &Route) -> bool {
        self.lock().flights.contains_key(route)
    }

    /// Joins the flight on `route`, or begins one with `call`, unless `look` finds that it has just landed.
    pub(super) fn board(
        self: &Arc<Self>,
        runtime: &Handle,
        route: Route,
        call: Call,
        look: impl FnOnce() -> Option<LlmResponse>,
    ) -> Boarding {
        let mut map = self.lock();
        if map.is_closed {
            return Boarding::Closed(call);
        }
        if let Some(flight) = map.flights.get(&route) {
            return Boarding::Aboard(Reader::new(flight, Some(call)));
        }
        if let Some(answer) = look() {
            return Boarding::Found(answer);
        }
        if map.flights.len() >= self.rules.max_flights {
            return Boarding::Full;
        }
        let task = map.next_task;
        map.next_task += 1;
        let flight = Arc::new(Flight {
            flights: Arc::clone(self),
            route: route.clone(),
            task,
            state: Mutex::default(),
        });
        let reader = Reader::new(&flight, None);
        flight.lock().leader = reader.id;
        map.flights.insert(route, Arc::clone(&flight));
        map.tasks.insert(task, None);
        self.running.send_modify(|running| *running += 1);
        drop(map);
        // A runtime that shuts down drops the task at once, and with it what locks the map.
        let running = Running(Arc::clone(self), task);
        let landing = Landing { flight, is_begun: false };
        let spawned = runtime.spawn(in_remote_trace(in_current_span(fly(landing, call, running))));
        let spawned = spawned.abort_handle();
        match self.lock().tasks.get_mut(&task) {
            Some(place) => *place = Some(spawned),
            None => spawned.abort(),
        }
        Boarding::Aboard(reader)
    }

    /// Waits for all that fly; says how many had to be hung up, also by others who did not want to wait as long.
    pub(super) async fn shutdown(&self, until: Instant) -> usize {
        self.lock().is_closed = true;
        let mut running = self.running.subscribe();
        if timeout_at(until, running.wait_for(|running| *running == 0)).await.is_ok() {
            return self.lock().cut;
        }
        let mut map = self.lock();
        let tasks: Vec<_> = map.tasks.drain().map(|(_, task)| task).collect();
        map.cut += tasks.len();
        let cut = map.cut;
        drop(map);
        tasks.iter().flatten().for_each(AbortHandle::abort);
        cut
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.lock().tasks.remove(&self.1);
        self.0.running.send_modify(|running| *running -= 1);
    }
}

#[cfg(feature = "tracing")]
fn in_current_span<F: Future>(future: F) -> impl Future<Output = F::Output> {
    tracing::Instrument::in_current_span(future)
}

#[cfg(not(feature = "tracing"))]
fn in_current_span<F: Future>(future: F) -> impl Future<Output = F::Output> {
    future
}

/// A caller's trace that nobody records here. What is recorded comes with the request, and must not live as long as this.
#[cfg(feature = "otel")]
fn in_remote_trace<F: Future>(future: F) -> impl Future<Output = F::Output> {
    use opentelemetry::{
        Context,
        trace::{FutureExt, TraceContextExt},
    };
    let current = Context::current();
    let is_remote = current.span().span_context().is_remote();
    future.with_context(if is_remote { current } else { Context::new() })
}

#[cfg(not(feature = "otel"))]
fn in_remote_trace<F: Future>(future: F) -> impl Future<Output = F::Output> {
    future
}

/// Calls for one caller after another until one is not refused; then carries the answer to all.
async fn fly(mut landing: Landing, mut call: Call, running: Running) {
    landing.is_begun = true;
    let flight = &landing.flight;
    let mut unsent = 0;
    loop {
        let Call { future, progress } = call;
        let error = match future.await {
            Ok(answer) => {
                flight.carry(answer).await;
                break;
            }
            Err(error) => error,
        };
        let whose = whose(&error, &progress);
        unsent += u32::from(whose == Whose::Unsent);
        if whose == Whose::Everybodys || unsent >= MAX_UNSENT {
            flight.land(Err(error));
            break;
        }
        match flight.refuse(error) {
            Some(next) => call = next,
            None => break,
        }
    }
    drop(landing);
    drop(running);
}

/// How many callers find out that a provider cannot be reached, or a store or a place not be had, before all others believe it:
/// one after another they would wait many times as long as one.
const MAX_UNSENT: u32 = 2;

/// Whom a failure concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The one whose call it was.
    Callers,
    /// Nobody yet: no provider has heard of it.
    Unsent,
    Everybodys,
}

fn whose(error: &Error, progress: &Progress) -> Whose {
    match error.kind() {
        ErrorKind::QuotaExceeded(_)
        | ErrorKind::ModelNotAllowed { .. }
        | ErrorKind::ModelUnpriced { .. }
        | ErrorKind::RequestTooLarge { .. }
        | ErrorKind::InvalidRequest { .. } => Whose::Callers,
        ErrorKind::Provider(_) if error.class() == Some(ErrorClass::Connect) && !error.was_sent(progress) => {
            Whose::Unsent
        }
        // What stands in everybody's way, and may be gone for the next: a place, a store, or time that was waited for.
        ErrorKind::Overloaded | ErrorKind::StoreUnavailable { .. } | ErrorKind::Timeout { .. }
            if !error.was_sent(progress) =>
        {
            Whose::Unsent
        }
        ErrorKind::Provider(_)
        | ErrorKind::EmptyResponse { .. }
        | ErrorKind::StreamInterrupted { .. }
        | ErrorKind::ModelNotFound { .. }
        | ErrorKind::NoProvider => Whose::Everybodys,
        _ if error.was_sent(progress) => Whose::Everybodys,
        _ => Whose::Callers,
    }
}

// ===== impl Flight =====

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let places = state.places.iter_mut().flatten();
        let wakers: Vec<Waker> = places.filter_map(|place| place.waker.take()).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        changed
    }

    /// Nobody joins it from now on.
    fn leave_map(&self, map: &mut Map) {
        if map.flights.get(&self.route).is_some_and(|flight| flight.task == self.task) {
            map.flights.remove(&self.route);
        }
    }

    /// The leader's call was refused: whose call comes next?
    fn refuse(&self, error: Error) -> Option<Call> {
        let mut map = self.flights.lock();
        self.update(|state| {
            let leader = state.leader;
            state.refused.insert(leader, error);
            match state.waiting.pop_first() {
                Some((id, call)) => {
                    state.leader = id;
                    Some(call)
                }
                None => {
                    self.leave_map(&mut map);
                    state.end = Some(Ok(()));
                    None
                }
            }
        })
    }

    async fn carry(&self, answer: LlmResponse) {
        let LlmResponse {
            model,
            provider,
            provider_request_id,
            cache,
            cache_miss: _,
            is_similar,
            quota,
            attempts,
            decisions,
            body,
            extensions,
            chosen,
        } = answer;
        let own = Some(Own { attempts, provider_request_id, quota, decisions, extensions });
        let head = Head { model, provider, chosen, cache, is_similar, own };
        let mut chunks = match body {
            ResponseBody::Complete(completion) => {
                self.lock().whole = Some(completion);
                return self.land_with(Ok(()), Some(head), None);
            }
            ResponseBody::Stream(chunks) => chunks,
        };
        let unused = self.update(|state| {
            state.head = Some(head);
            mem::take(&mut state.waiting)
        });
        drop(unused);
        let (window, mut total) = (self.flights.window, 0_usize);
        loop {
            match chunks.next().await {
                Some(Ok(chunk)) if chunk.is_final() => return self.land_with(Ok(()), None, Some(chunk)),
                Some(Ok(chunk)) => {
                    let total_before = total;
                    total = total.saturating_add(chunk.data().len());
                    if total_before <= window && total > window {
                        // Whoever came now might not get its beginning.
                        self.leave_map(&mut self.flights.lock());
                    }
                    let is_full = self.update(|state| {
                        state.add(chunk.detached());
                        state.held > window
                    });
                    if is_full {
                        poll_fn(|cx| self.poll_room(cx)).await;
                    }
                    // One that is never silent would leave no time to others, and could not be hung up.
                    consume_budget().await;
                }
                Some(Err(error)) => return self.land(Err(error)),
                None => return,
            }
        }
    }

    /// Waits for the one who is ahead where more would be held than the window: what he has not read is never dropped.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.make_room(self.flights.window) {
            return Poll::Ready(());
        }
        match &mut state.carrier {
            Some(waker) => waker.clone_from(cx.waker()),
            unset => *unset = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn land(&self, end: Result<(), Error>) {
        self.land_with(end, None, None);
    }

    fn land_with(&self, end: Result<(), Error>, head: Option<Head>, last: Option<StreamChunk>) {
        let mut map = self.flights.lock();
        self.leave_map(&mut map);
        let unused = self.update(|state| {
            if let Some(chunk) = last {
                state.add(chunk.detached());
            }
            if head.is_some() {
                state.head = head;
            }
            state.end = Some(end);
            mem::take(&mut state.waiting)
        });
        drop(map);
        drop(unused);
    }
}

impl State {
    fn place(&mut self, at: usize) -> &mut Place {
        self.places[at].as_mut().expect("its reader is there")
    }

    fn add(&mut self, chunk: StreamChunk) {
        if chunk.has_content() {
            self.content.get_or_insert(self.first + self.chunks.len() as u64);
        }
        self.held += chunk.data().len();
        self.total = self.total.saturating_add(chunk.data().len());
        self.chunks.push_back(chunk);
    }

    /// Those who have not been cut off.
    fn followers(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().flatten().filter(|place| place.at >= self.first)
    }

    /// Whether another chunk may come. Drops what all have read, and what is further behind the one who is ahead than
    /// `window`.
    fn make_room(&mut self, window: usize) -> bool {
        if self.held <= window {
            return true;
        }
        let end = self.first + self.chunks.len() as u64;
        let places = self.followers().map(|place| (place.at, place.read));
        let Some(((slowest, _), (fastest, read))) =
            places.fold(None, |most: Option<((u64, usize), (u64, usize))>, place| match most {
                None => Some((place, place)),
                Some((slowest, fastest)) => Some((slowest.min(place), fastest.max(place))),
            })
        else {
            self.drop_while(|state| state.held > window);
            return true;
        };
        let unread = self.total - read;
        self.drop_while(|state| {
            state.held > window && (state.first < slowest || state.held.saturating_sub(unread) > window)
        });
        self.held <= window || fastest == end
    }

    /// The last one stays.
    fn drop_while(&mut self, may: impl Fn(&Self) -> bool) {
        while self.chunks.len() > 1
            && may(self)
            && let Some(oldest) = self.chunks.pop_front()
        {
            self.held -= oldest.data().len();
            self.first += 1;
        }
    }

    /// Whether content is among the chunks before `at`.
    fn has_content_before(&self, at: u64) -> bool {
        self.content.is_some_and(|content| content < at)
    }
}

impl Place {
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            unset => *unset = Some(cx.waker().clone()),
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.flight.lock().end.is_some() {
            return;
        }
        let (head, after_content) = {
            let state = self.flight.lock();
            // Whoever comes to the end has read all of it.
            (state.head.as_ref().map(|head| head.model.clone()), state.content.is_some())
        };
        let error = match head {
            _ if std::thread::panicking() => {
                Error::new(ErrorKind::Other).with_source("the service below panicked")
            }
            // Hung up at shutdown.
            Some(model) => Error::new(ErrorKind::StreamInterrupted { model: Some(model), after_content }),
            None => Error::new(ErrorKind::Overloaded),
        };
        self.flight.land(Err(error.with_dispatched(self.is_begun)));
    }
}

impl fmt::Debug for Flights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("count", &self.count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Period, QuotaExceeded, QuotaKind, TimeoutPhase};
    use std::time::SystemTime;

    #[test]
    fn what_concerns_the_caller_is_never_shared() {
        let quota = ErrorKind::QuotaExceeded(QuotaExceeded {
            department_id: "r&d".into(),
            quota: QuotaKind::Tokens,
            period: Period::Day,
            limit: 1,
            current: 1,
            reserved: 0,
            resets_at: SystemTime::UNIX_EPOCH,
            resets_in: Duration::ZERO,
            retry_after: Duration::ZERO,
            in_flight_only: false,
        });
        let (idle, sent) = (Progress::new(), Progress::new());
        sent.mark_dispatched();
        // By kind alone: even a call that was sent before does not make it the provider's fault.
        let own = [
            quota,
            ErrorKind::ModelUnpriced { model: "m".into() },
            ErrorKind::RequestTooLarge {
                department_id: "d".into(),
                quota: crate::QuotaKind::Tokens,
                period: crate::Period::Day,
                largest: 1,
            },
        ];
        for kind in own {
            assert_eq!(whose(&Error::new(kind.clone()), &sent), Whose::Callers, "{kind:?}");
        }
        // By whether anything was sent.
        for (kind, unsent) in [
            (ErrorKind::Overloaded, Whose::Unsent),
            (ErrorKind::Other, Whose::Callers),
            (ErrorKind::StoreUnavailable { store: "quota".into() }, Whose::Unsent),
            (ErrorKind::Timeout { phase: TimeoutPhase::Head }, Whose::Unsent),
        ] {
            assert_eq!(whose(&Error::new(kind.clone()), &idle), unsent, "{kind:?}");
            assert_eq!(whose(&Error::new(kind.clone()), &sent), Whose::Everybodys, "{kind:?}");
            let dispatched = Error::new(kind.clone()).with_dispatched(true);
            assert_eq!(whose(&dispatched, &idle), Whose::Everybodys, "{kind:?}");
        }
        let provider = |class| Error::provider(class, "p", "m");
        assert_eq!(whose(&provider(ErrorClass::RateLimited), &idle), Whose::Everybodys);
        assert_eq!(whose(&provider(ErrorClass::Connect).with_dispatched(true), &idle), Whose::Everybodys);
        // The leaf marks it before it tries, and knows better when it could not connect.
        for progress in [&idle, &sent] {
            assert_eq!(whose(&provider(ErrorClass::Connect).with_dispatched(false), progress), Whose::Unsent);
        }
    }
}
