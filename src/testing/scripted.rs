use crate::{ChunkStream, Completion, Error, LlmRequest, LlmResponse, ResponseBody, StreamChunk, TokenUsage};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::Sleep;
use tower_service::Service;

/// A provider that does as it is told, and remembers what it was asked.
///
/// It answers with its [replies](Self::push) in their order, and with a short text when there are none left. It
/// can be short of [places](Self::with_places), and panics if it is called without having been polled ready. Clones
/// are the same provider.
///
/// ```
/// use llm_layers::{ChatBody, Error, LlmRequest, StreamChunk, testing::{Reply, Scripted, Step}};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Error> {
/// let provider = Scripted::new();
/// provider.push(Reply::stream([Step::Chunk(StreamChunk::text("h")), Step::Cut]));
///
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
/// assert!(provider.clone().oneshot(request).await?.text().await.is_err());
/// assert_eq!(provider.requests()[0].model, "acme/one");
/// assert_eq!(provider.alive(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Default)]
pub struct Scripted {
    shared: Arc<Shared>,
    place: Option<Place>,
}

#[derive(Default)]
struct Shared(Mutex<State>);

struct State {
    replies: VecDeque<Reply>,
    requests: Vec<LlmRequest>,
    alive: usize,
    free: usize,
    dead: bool,
    opened: usize,
    wakers: Vec<Waker>,
}

/// What a [`Scripted`] provider does with one call.
#[derive(Debug)]
pub struct Reply {
    panic_in_call: bool,
    before: Vec<Step>,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Complete(Completion),
    Stream(Vec<Step>),
    Fail(Error),
}

/// One step of a reply.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Step {
    /// A chunk.
    Chunk(StreamChunk),
    /// An error, and the end.
    Fail(Error),
    /// The connection is cut: the end without a terminal chunk.
    Cut,
    /// Nothing for a while.
    Wait(Duration),
    /// `Pending` once, and woken at once.
    Yield,
    /// Nothing until [`Scripted::open`] is called once more.
    Gate,
    /// Nothing, ever.
    Stall,
    /// A panic.
    Panic,
}

/// A place that a ready instance, or a call, takes from others.
struct Place(Arc<Shared>);

/// A call, as long as its future or its stream lives.
struct Alive(Arc<Shared>);

/// A reply being played.
#[doc(hidden)]
pub struct Play {
    steps: VecDeque<Step>,
    sleep: Option<Pin<Box<Sleep>>>,
    shared: Arc<Shared>,
    held: Option<(Alive, Place)>,
    /// What comes after `steps`; taken for a call, `None` for a stream.
    then: Option<(Then, LlmRequest)>,
}

// ===== impl Scripted =====

impl Scripted {
    /// A provider with as many places as anybody wants.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts this many calls at once.
    #[must_use]
    pub fn with_places(self, places: usize) -> Self {
        self.shared.lock().free = places;
        self
    }

    /// As [`push`](Self::push), for building.
    #[must_use]
    pub fn reply(self, reply: Reply) -> Self {
        self.push(reply);
        self
    }

    /// Answers one more call like this.
    pub fn push(&self, reply: Reply) {
        self.shared.lock().replies.push_back(reply);
    }

    /// Takes back the replies that it has not given yet.
    pub fn forget_replies(&self) {
        self.shared.lock().replies.clear();
    }

    /// What it was asked, in order.
    pub fn requests(&self) -> Vec<LlmRequest> {
        self.shared.lock().requests.clone()
    }

    /// How many calls have futures or streams that live.
    pub fn alive(&self) -> usize {
        self.shared.lock().alive
    }

    /// How many places are free.
    pub fn free(&self) -> usize {
        self.shared.lock().free
    }

    /// Adds a place.
    pub fn add_place(&self) {
        let mut state = self.shared.lock();
        state.free += 1;
        state.wake();
    }

    /// Opens a [`Step::Gate`].
    pub fn open(&self) {
        let mut state = self.shared.lock();
        state.opened += 1;
        state.wake();
    }

    /// From now on `poll_ready` fails: the service is dead.
    pub fn kill(&self) {
        let mut state = self.shared.lock();
        state.dead = true;
        state.wake();
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            replies: VecDeque::new(),
            requests: Vec::new(),
            alive: 0,
            free: usize::MAX / 2,
            dead: false,
            opened: 0,
            wakers: Vec::new(),
        }
    }
}

impl State {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Scripted panics must not spoil what is asserted afterwards.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.free += 1;
        state.wake();
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.lock().alive -= 1;
    }
}

/// A clone is not ready, whatever the original is.
impl Clone for Scripted {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), place: None }
    }
}

impl Service<LlmRequest> for Scripted {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Play;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.shared.lock();
        if state.dead {
            return Poll::Ready(Err(Error::new(crate::ErrorKind::Other).with_source("the provider is dead")));
        }
        if self.place.is_none() {
            if state.free == 0 {
                state.wakers.push(cx.waker().clone());
                return Poll::Pending;
            }
            state.free -= 1;
            self.place = Some(Place(Arc::clone(&self.shared)));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let place = self.place.take().expect("called without having been polled ready");
        let mut state = self.shared.lock();
        let reply = state.replies.pop_front().unwrap_or_else(|| Reply::text("hi"));
        state.requests.push(request.clone());
        assert!(!reply.panic_in_call, "scripted panic in call");
        request.progress.mark_dispatched();
        state.alive += 1;
        Play {
            steps: reply.before.into(),
            sleep: None,
            shared: Arc::clone(&self.shared),
            held: Some((Alive(Arc::clone(&self.shared)), place)),
            then: Some((reply.then, request)),
        }
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Scripted")
            .field("replies", &state.replies.len())
            .field("requests", &state.requests.len())
            .field("alive", &state.alive)
            .finish_non_exhaustive()
    }
}

// ===== impl Reply =====

impl Reply {
    const fn new(then: Then) -> Self {
        Self { panic_in_call: false, before: Vec::new(), then }
    }

    /// A whole answer.
    pub const fn complete(completion: Completion) -> Self {
        Self::new(Then::Complete(completion))
    }

    /// A whole answer of this text.
    pub fn text(text: &str) -> Self {
        Self::complete(Completion::text(text, TokenUsage::new(3, 1)))
    }

    /// An error instead of an answer.
    pub const fn error(error: Error) -> Self {
        Self::new(Then::Fail(error))
    }

    /// A streamed answer; it ends where the steps end, with a terminal chunk unless the last one says otherwise.
    pub fn stream(steps: impl IntoIterator<Item = Step>) -> Self {
        Self::new(Then::Stream(steps.into_iter().collect()))
    }

    /// A streamed answer of these words, with its role, finish reason and usage.
    pub fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let words = words.into_iter().map(StreamChunk::text);
        let end =
            [StreamChunk::finish(&crate::FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(3, 2))];
        Self::stream([StreamChunk::role()].into_iter().chain(words).chain(end).map(Step::Chunk))
    }

    /// No answer, ever.
    pub fn stall() -> Self {
        Self::text("").after([Step::Stall])
    }

    /// A panic inside `call`.
    pub fn panic() -> Self {
        Self { panic_in_call: true, ..Self::text("") }
    }

    /// Goes through these steps before the head; chunks among them are left out.
    #[must_use]
    pub fn after(mut self, steps: impl IntoIterator<Item = Step>) -> Self {
        self.before.extend(steps);
        self
    }
}

// ===== impl Play =====

impl Play {
    /// The next chunk; `None` when the steps are done, and `Some(None)` when the connection is cut.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Option<Option<Result<StreamChunk, Error>>>> {
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Chunk(chunk) => return Poll::Ready(Some(Some(Ok(chunk)))),
                Step::Fail(error) => return Poll::Ready(Some(Some(Err(error)))),
                Step::Cut => return Poll::Ready(Some(None)),
                Step::Wait(time) => {
                    let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
                    if sleep.as_mut().poll(cx).is_pending() {
                        self.steps.push_front(Step::Wait(time));
                        return Poll::Pending;
                    }
                    self.sleep = None;
                }
                Step::Yield => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Step::Gate => {
                    let mut state = self.shared.lock();
                    if state.opened == 0 {
                        state.wakers.push(cx.waker().clone());
                        drop(state);
                        self.steps.push_front(Step::Gate);
                        return Poll::Pending;
                    }
                    state.opened -= 1;
                }
                Step::Stall => {
                    self.steps.push_front(Step::Stall);
                    return Poll::Pending;
                }
                Step::Panic => panic!("scripted panic"),
            }
        }
        Poll::Ready(None)
    }
}

impl Future for Play {
    type Output = Result<LlmResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some(step) = ready!(this.poll_step(cx)) {
            if let Some(Err(error)) = step {
                return Poll::Ready(Err(error));
            }
        }
        let (then, request) = this.then.take().expect("polled after completion");
        let held = this.held.take();
        let body = match then {
            Then::Fail(error) => return Poll::Ready(Err(error)),
            Then::Complete(completion) => ResponseBody::Complete(completion),
            Then::Stream(steps) => {
                let shared = Arc::clone(&this.shared);
                let play = Self { steps: steps.into(), sleep: None, shared, held, then: None };
                ResponseBody::Stream(ChunkStream::new(play))
            }
        };
        Poll::Ready(Ok(LlmResponse::new(request.model, body)))
    }
}

impl Stream for Play {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match ready!(self.poll_step(cx)) {
            Some(item) => Poll::Ready(item),
            None => Poll::Ready(Some(Ok(StreamChunk::end()))),
        }
    }
}

impl fmt::Debug for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Play").field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}
