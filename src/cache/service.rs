use super::{
    BypassReason, MissReason,
    ask::{Asking, Found, Plan, Shared},
    capture::Capture,
    flight::{Beginning, Boarding, Call, Flights, Reader, Route},
    key::Origins,
    stats::count,
};
use crate::{
    CacheStatus, Error, ErrorKind, LlmRequest, LlmResponse, ResponseBody,
    body::{BodyClock, Watch, Watched},
    deadline::Deadline,
    decision::{CacheDecision, Note},
    request::NoAnswer,
    sync::Handle,
};
use std::{
    fmt,
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};
use tokio::time::Instant;
use tower_service::Service;

/// Answers equal requests of the same scope without asking the inner service again.
#[derive(Clone)]
pub struct Cache<S> {
    inner: S,
    shared: Arc<Shared>,
    origins: Origins,
}

/// Response future of [`Cache`].
pub struct ResponseFuture<S: Service<LlmRequest>> {
    state: State<S>,
}

/// Nothing in it is pinned where it lies.
impl<S: Service<LlmRequest>> Unpin for ResponseFuture<S> {}

enum State<S: Service<LlmRequest>> {
    Done(Option<Result<LlmResponse, Error>>),
    Asking {
        found: Pin<Box<dyn Future<Output = Found> + Send>>,
        shared: Arc<Shared>,
        rest: Option<(S, LlmRequest)>,
    },
    /// Seldom, and in a box as the calls below are.
    Readying {
        service: S,
        rest: Option<Box<(LlmRequest, Purpose)>>,
    },
    /// In a box, as all calls: in its place it would be carried through all layers outside of this one, by each hit too.
    Passing {
        call: Pin<Box<S::Future>>,
        reason: BypassReason,
    },
    Calling(Pin<Box<Watched<S::Future, Capture>>>, MissReason),
    /// Calls are not shared any more.
    Alone(Pin<Box<dyn Future<Output = Result<LlmResponse, Error>> + Send>>, MissReason),
    Following {
        reader: Option<Reader>,
        why: MissReason,
        shared: Arc<Shared>,
        deadline: Deadline,
    },
}

/// What comes after the question.
#[expect(clippy::large_enum_variant, reason = "a box would cost every call an allocation")]
enum Next<S: Service<LlmRequest>> {
    State(State<S>),
    Call(LlmRequest, Purpose),
}

/// What a call is made for.
#[expect(clippy::large_enum_variant, reason = "most calls that are made are misses")]
enum Purpose {
    Bypass(BypassReason),
    Miss(Capture, MissReason),
}

// ===== impl Cache =====

impl<S> Cache<S> {
    pub(super) const fn new(inner: S, shared: Arc<Shared>, origins: Origins) -> Self {
        Self { inner, shared, origins }
    }

    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Cache<S>
where
    S: Service<LlmRequest, Response = LlmResponse> + Clone,
    S::Error: Into<Error>,
{
    /// Makes the call at once if the inner service is ready for it, as it mostly is: a clone of all that is below costs
    /// two changes of a shared count for each layer.
    fn make(&mut self, request: LlmRequest, purpose: Purpose) -> State<S> {
        match self.inner.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => purpose.call(&mut self.inner, request),
            Poll::Ready(Err(error)) => State::Done(Some(Err(error.into()))),
            // The instance that was asked is the one that is waited for.
            Poll::Pending => {
                let clone = self.inner.clone();
                let service = mem::replace(&mut self.inner, clone);
                State::Readying { service, rest: Some(Box::new((request, purpose))) }
            }
        }
    }
}

/// Always ready: the inner service is only needed, and waited for inside the call, where there is no answer yet.
impl<S> Service<LlmRequest> for Cache<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Future: Send + 'static> + Clone + Send + 'static,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let state = match self.shared.ask(&request, self.origins.of(&request)) {
            // At once, for an answer is large.
            Asking::Now(Found::Hit(answer)) => State::Done(Some(Ok(answer))),
            Asking::Now(found) => match State::after(found, &self.shared, || self.inner.clone(), request) {
                Next::State(state) => state,
                Next::Call(request, purpose) => self.make(request, purpose),
            },
            Asking::Later(found) => State::Asking {
                found,
                shared: Arc::clone(&self.shared),
                rest: Some((self.inner.clone(), request)),
            },
        };
        ResponseFuture { state }
    }
}

impl<S: fmt::Debug> fmt::Debug for Cache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("inner", &self.inner).finish_non_exhaustive()
    }
}

// ===== impl State =====

impl Purpose {
    #[inline]
    fn call<S>(self, ready: &mut S, mut request: LlmRequest) -> State<S>
    where
        S: Service<LlmRequest, Response = LlmResponse>,
        S::Error: Into<Error>,
    {
        match self {
            Self::Bypass(reason) => {
                request.set_cache(NoAnswer::Bypass(reason));
                State::Passing { call: Box::pin(ready.call(request)), reason }
            }
            Self::Miss(capture, why) => {
                request.set_cache(NoAnswer::Miss(why));
                let watch = Watch::new(capture);
                State::Calling(Box::pin(watch.over(ready.call(request))), why)
            }
        }
    }
}

impl<S> State<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Future: Send + 'static> + Send + 'static,
    S::Error: Into<Error>,
{
    /// What to do once it is known what the cache has.
    fn after(
        found: Found,
        shared: &Arc<Shared>,
        service: impl FnOnce() -> S,
        request: LlmRequest,
    ) -> Next<S> {
        #[cfg(feature = "semantic")]
        let mut found = found;
        #[cfg(feature = "semantic")]
        if let Found::Miss(plan) = &mut found
            && let Some(found) = shared.ask_similar(plan, &request)
        {
            let rest = Some((service(), request));
            return Next::State(Self::Asking { found, shared: Arc::clone(shared), rest });
        }
        let decided = |status, why| {
            request.tell(|so_far| so_far.cache = status);
            request.decisions().note(|| Note::Cache(CacheDecision::new(status, why)));
        };
        match &found {
            // The answer says so itself.
            Found::Hit(_) => {}
            Found::Bypass(reason) => decided(CacheStatus::Bypass(*reason), reason.as_str()),
            Found::Miss(plan) => decided(CacheStatus::Miss, plan.why.as_str()),
        }
        let only_if_cached = request.context.cache_control().only_if_cached;
        let not_cached = || Self::Done(Some(Err(Error::new(ErrorKind::NotCached))));
        Next::State(match found {
            Found::Hit(answer) => Self::Done(Some(Ok(answer))),
            Found::Bypass(reason) => {
                shared.counters.bypass(reason);
                match only_if_cached {
                    true => not_cached(),
                    false => return Next::Call(request, Purpose::Bypass(reason)),
                }
            }
            Found::Miss(_) if only_if_cached => {
                count(&shared.counters.misses);
                not_cached()
            }
            Found::Miss(plan) => {
                if let Some((flights, route, runtime)) = may_share(&plan, shared, &request) {
                    let deadline = Deadline::of(&request);
                    let (again, why) = (plan.clone(), plan.why);
                    let call = call_of(shared, flights, plan, service(), request);
                    return Next::State(
                        match flights.board(&runtime, route, call, || shared.ask_again(&again)) {
                            Boarding::Found(answer) => Self::Done(Some(Ok(answer))),
                            Boarding::Full => Self::Done(Some(Err(Error::new(ErrorKind::Overloaded)))),
                            Boarding::Closed(call) => {
                                count(&shared.counters.misses);
                                Self::Alone(Box::pin(within(deadline.at(), call.future)), why)
                            }
                            Boarding::Aboard(reader) => Self::Following {
                                reader: Some(reader),
                                why,
                                shared: Arc::clone(shared),
                                deadline,
                            },
                        },
                    );
                }
                count(&shared.counters.misses);
                let why = plan.why;
                let capture = Capture::new(Arc::clone(shared), plan);
                return Next::Call(request, Purpose::Miss(capture, why));
            }
        })
    }
}

/// Where a call can be shared, if it can.
fn may_share<'a>(
    plan: &Plan,
    shared: &'a Shared,
    request: &LlmRequest,
) -> Option<(&'a Arc<Flights>, Route, Handle)> {
    let flights = shared.flights.as_ref().filter(|flights| !flights.carry(request))?;
    // Who wants no kept answer does not want one that was asked for before either.
    let route = plan.route(&shared.epochs).filter(|_| !plan.wanted.control.no_cache)?;
    let is_late = Deadline::of(request).is_over();
    let runtime = Handle::try_current().ok().filter(|_| !is_late)?;
    Some((flights, route, runtime))
}

/// The call that `request` would make, for itself and for all who wait for the same.
fn call_of<S>(
    shared: &Arc<Shared>,
    flights: &Flights,
    plan: Plan,
    mut service: S,
    mut request: LlmRequest,
) -> Call
where
    S: Service<LlmRequest, Response = LlmResponse, Future: Send + 'static> + Send + 'static,
    S::Error: Into<Error>,
{
    let progress = request.progress.clone();
    // Each caller keeps his own; the call is hung up when nobody is left.
    request.context = request.context.without_deadline();
    request.set_cache(NoAnswer::Miss(plan.why));
    flights.mark(&mut request);
    let shared = Arc::clone(shared);
    let future = Box::pin(async move {
        poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
        let watch = Watch::new(Capture::new(shared, plan));
        watch.over(service.call(request)).await
    });
    Call { future, progress }
}

// ===== impl ResponseFuture =====

impl<S> Future for ResponseFuture<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Future: Send + 'static> + Send + 'static,
    S::Error: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let state = &mut self.get_mut().state;
        loop {
            let next = match state {
                State::Done(answer) => {
                    return Poll::Ready(answer.take().expect("polled after completion"));
                }
                State::Asking { found, shared, rest } => {
                    let found = ready!(found.as_mut().poll(cx));
                    let (service, request) = rest.take().expect("taken only here, and the state changes");
                    let mut service = Some(service);
                    let take = || service.take().expect("taken once");
                    match State::after(found, shared, take, request) {
                        Next::State(state) => state,
                        Next::Call(request, purpose) => State::Readying {
                            service: service.take().expect("nobody has taken it"),
                            rest: Some(Box::new((request, purpose))),
                        },
                    }
                }
                State::Readying { service, rest } => {
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    let (request, purpose) = *rest.take().expect("taken only here, and the state changes");
                    purpose.call(service, request)
                }
                State::Passing { call, reason } => {
                    let polled = call.as_mut().poll(cx).map_err(Into::into);
                    return marked(polled, CacheStatus::Bypass(*reason), None);
                }
                State::Calling(call, why) => {
                    return marked(call.as_mut().poll(cx), CacheStatus::Miss, Some(*why));
                }
                State::Alone(call, why) => {
                    return marked(call.as_mut().poll(cx), CacheStatus::Miss, Some(*why));
                }
                State::Following { reader, why, shared, deadline } => {
                    let following = reader.as_mut().expect("taken only below, at the end");
                    let head = match following.poll_head(cx) {
                        Poll::Ready(head) => head,
                        Poll::Pending => Err(ready!(deadline.poll(cx))),
                    };
                    let reader = reader.take().expect("it was just there");
                    return Poll::Ready(follow(head, reader, *why, shared, deadline.at()));
                }
            };
            *state = next;
        }
    }
}

type Polled = Poll<Result<LlmResponse, Error>>;

/// Says what the cache had to do with an answer, unless one below has given it.
#[inline]
fn marked(mut polled: Polled, status: CacheStatus, why: Option<MissReason>) -> Polled {
    if let Poll::Ready(Ok(answer)) = &mut polled
        && !answer.cache.is_hit()
    {
        (answer.cache, answer.cache_miss) = (status, why);
    }
    polled
}

fn follow(
    head: Result<Beginning, Error>,
    mut reader: Reader,
    why: MissReason,
    shared: &Arc<Shared>,
    deadline: Option<Instant>,
) -> Result<LlmResponse, Error> {
    match &head {
        Ok(Beginning { cache: CacheStatus::Coalesced, whole, .. }) => {
            count(&shared.counters.coalesced);
            match whole {
                Some(completion) => shared.counters.saved(completion.usage()),
                None => reader = reader.saving_for(shared),
            }
        }
        _ => count(&shared.counters.misses),
    }
    let mut answer = head?.answer(reader);
    if answer.cache == CacheStatus::Miss {
        answer.cache_miss = Some(why);
    }
    bound(&mut answer, deadline);
    Ok(answer)
}

/// Keeps to the caller's own deadline, of which a call that may be shared knows nothing.
async fn within(
    deadline: Option<Instant>,
    call: impl Future<Output = Result<LlmResponse, Error>>,
) -> Result<LlmResponse, Error> {
    let Some(at) = deadline else { return call.await };
    let late = |_| Err(Deadline::error());
    let mut answer = tokio::time::timeout_at(at, call).await.unwrap_or_else(late)?;
    bound(&mut answer, deadline);
    Ok(answer)
}

fn bound(answer: &mut LlmResponse, deadline: Option<Instant>) {
    if let (Some(_), ResponseBody::Stream(chunks)) = (deadline, &mut answer.body) {
        chunks.limit(BodyClock::new(None, None, None, deadline));
    }
}

impl<S: Service<LlmRequest>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Done(_) => "Done",
            State::Asking { .. } => "Asking",
            State::Readying { .. } => "Readying",
            State::Passing { .. } => "Passing",
            State::Calling(..) => "Calling",
            State::Alone(..) => "Alone",
            State::Following { .. } => "Following",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
