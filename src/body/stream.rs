use super::{
    BodyClock, Kept,
    observe::{Arrival, DynObserve, End, Observe, Summary},
};
use crate::{Error, ErrorKind, StreamChunk, caught::contained, providers::Chosen};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    thread,
    vec::Drain,
};
use tokio::time::Instant;

/// A streamed answer, and all that can happen to it.
///
/// One concrete type for every provider and layer. It owns what would otherwise be a wrapper per layer:
/// who watches the stream, its time limits, what was read ahead, and the check that it really ended.
///
/// A good stream ends with one terminal chunk. One that closes without it gives a last `Err`,
/// [`StreamInterrupted`](ErrorKind::StreamInterrupted): a cut connection never looks like an end. After the
/// terminal chunk or an error the source is dropped and everything else is `None`.
///
/// # Cancel safety
///
/// Dropping it hangs up on the provider and tells every observer that the answer was abandoned.
///
/// # Examples
///
/// ```
/// use futures_util::stream;
/// use llm_layers::{ChunkStream, ErrorKind, StreamChunk, TokenUsage};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let usage = StreamChunk::usage_only(TokenUsage::new(9, 2));
/// let whole = [StreamChunk::text("Hello"), StreamChunk::text("!"), usage, StreamChunk::end()];
/// let mut chunks = ChunkStream::new(stream::iter(whole.map(Ok)));
/// let mut text = String::new();
/// while let Some(chunk) = chunks.next().await {
///     text.push_str(&chunk?.content());
/// }
/// assert_eq!((text.as_str(), chunks.summary().usage), ("Hello!", Some(TokenUsage::new(9, 2))));
///
/// // Without its terminal chunk, it has broken off.
/// let mut cut = ChunkStream::new(stream::iter([Ok(StreamChunk::text("Hel"))]));
/// assert_eq!(cut.next().await.expect("a chunk")?.content(), "Hel");
/// let error = cut.next().await.expect("an error").unwrap_err();
/// assert!(matches!(error.kind(), ErrorKind::StreamInterrupted { after_content: true, .. }));
/// assert!(cut.next().await.is_none());
/// # Ok(())
/// # }
/// ```
#[must_use = "a stream does nothing unless it is read"]
pub struct ChunkStream(Box<Inner>);

pub(crate) type Source = Pin<Box<dyn Stream<Item = Result<StreamChunk, Error>> + Send>>;

/// Where chunks come from.
enum Origin {
    Source(Source),
    /// They are all here, and need no box of their own.
    Kept(Replay),
    Nowhere,
}

/// Gives out what was kept, as it came.
struct Replay {
    chunks: Arc<Kept>,
    at: usize,
}

struct Inner {
    origin: Origin,
    state: State,
    ends_cleanly: bool,
    held: ReadAhead,
    /// Innermost layer first; empty once the source has ended.
    observers: Vec<Box<dyn DynObserve>>,
    summary: Summary,
    /// Why it has ended, if it has and not well.
    failure: Option<Error>,
    clock: Option<BodyClock>,
    /// The deployment that it is of.
    chosen: Option<Chosen>,
    /// Few have one, and it is large.
    barrier: Option<Box<Barrier>>,
}

/// Chunks that were read before anybody asked for them, each with the number of observers that have seen it.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    chunks: VecDeque<(StreamChunk, usize)>,
    bytes: usize,
}

/// What must have happened before the terminal chunk is handed out.
struct Barrier {
    /// How many observers learn of the end before it is waited for.
    inside: usize,
    done: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>,
    last: Option<StreamChunk>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Seen by nobody but a `Drop` or a poll after a panic of the source or of an observer.
    Polling,
    Ended,
}

impl ChunkStream {
    /// A stream whose last item is a terminal chunk.
    pub fn new(source: impl Stream<Item = Result<StreamChunk, Error>> + Send + 'static) -> Self {
        Self::of(Origin::Source(Box::pin(source)))
    }

    /// What was kept of another one, its terminal chunk included.
    pub(crate) fn kept(chunks: Arc<Kept>) -> Self {
        Self::of(Origin::Kept(Replay { chunks, at: 0 }))
    }

    fn of(origin: Origin) -> Self {
        Self(Box::new(Inner {
            origin,
            state: State::Open,
            ends_cleanly: false,
            held: ReadAhead::default(),
            observers: Vec::new(),
            summary: Summary::default(),
            failure: None,
            clock: None,
            chosen: None,
            barrier: None,
        }))
    }

    /// A stream that has no terminal chunk of its own: it ends where `source` ends.
    ///
    /// For leaves whose source cannot break off unseen. Where a cut connection looks like an end, make the
    /// terminal chunk yourself and use [`new`](Self::new).
    pub fn ending_cleanly(source: impl Stream<Item = Result<StreamChunk, Error>> + Send + 'static) -> Self {
        let mut chunks = Self::new(source);
        chunks.0.ends_cleanly = true;
        chunks
    }

    /// The next chunk; `None` after the end.
    ///
    /// # Errors
    ///
    /// The stream broke. Nothing follows.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Result<StreamChunk, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// What has been read from the provider so far.
    pub const fn summary(&self) -> &Summary {
        &self.0.summary
    }

    /// Lets `observer` see all that is still to be handed out. If nothing is, it is told at once how the stream has ended.
    pub fn observe(&mut self, observer: impl Observe) {
        if self.0.is_over() {
            let summary = &self.0.summary;
            return observer.on_end(match &self.0.failure {
                Some(error) => End::Failed(error, summary),
                None => End::StreamEnded(summary),
            });
        }
        if self.0.observers.is_empty() {
            // As many as the recommended stack has.
            self.0.observers.reserve(8);
        }
        self.0.observers.push(Box::new(observer));
    }

    /// Bounds the time that it may take, besides the bounds that it has.
    pub(crate) fn limit(&mut self, clock: BodyClock) {
        match &mut self.0.clock {
            Some(present) => present.tighten(&clock),
            unset => *unset = Some(clock),
        }
    }

    /// No longer ends with the caller's own deadline, which was this.
    pub(crate) fn take_deadline(&mut self) -> Option<Instant> {
        self.0.clock.as_mut()?.deadline.take()
    }

    /// Says which deployment it is of, and so where it breaks if it does.
    pub(crate) fn set_chosen(&mut self, chosen: Chosen) {
        self.0.chosen = Some(chosen);
    }

    /// Ends it with an error that is not its source's; it must not have ended.
    #[cfg(any(feature = "axum", feature = "tonic"))]
    pub(crate) fn cut(&mut self, error: Error) -> Error {
        self.0.fail(error)
    }

    /// Puts `wrap` around where the chunks come from; what was read ahead stays.
    pub(crate) fn wrap(&mut self, wrap: impl FnOnce(Source) -> Source) {
        let source: Source = match mem::replace(&mut self.0.origin, Origin::Nowhere) {
            Origin::Source(source) => source,
            Origin::Kept(replay) => Box::pin(replay),
            Origin::Nowhere => return,
        };
        self.0.origin = Origin::Source(wrap(source));
    }

    /// Hands the terminal chunk out only when `done` has come to its end; if that fails, so does the stream. Who
    /// observes the stream by now learns of its end before, who comes later does so afterwards.
    pub(crate) fn hold_end(&mut self, done: impl Future<Output = Result<(), Error>> + Send + 'static) {
        let (inside, before) = (self.0.observers.len(), self.0.barrier.take());
        let done = async move {
            if let Some(before) = before {
                before.done.await?;
            }
            done.await
        };
        self.0.barrier = Some(Box::new(Barrier { inside, done: Box::pin(done), last: None }));
    }

    /// Puts back what was read ahead. Who has watched it pass does not see it again.
    pub(crate) fn unread(&mut self, mut ahead: ReadAhead) {
        for (_, seen) in &mut ahead.chunks {
            *seen = self.0.observers.len();
        }
        ahead.chunks.append(&mut self.0.held.chunks);
        self.0.held = ahead;
    }
}

impl Stream for ChunkStream {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_chunk(cx)
    }
}

// ===== impl Replay =====

impl Iterator for Replay {
    type Item = StreamChunk;

    fn next(&mut self) -> Option<StreamChunk> {
        let chunk = self.chunks.get(self.at);
        self.at += 1;
        chunk
    }
}

impl Stream for Replay {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.next().map(Ok))
    }
}

impl fmt::Debug for ChunkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkStream")
            .field("state", &self.0.state)
            .field("held", &self.0.held.chunks())
            .field("observers", &self.0.observers.len())
            .finish_non_exhaustive()
    }
}

// ===== impl ReadAhead =====

impl ReadAhead {
    pub(crate) fn push(&mut self, chunk: StreamChunk) {
        self.bytes += chunk.data().len();
        self.chunks.push_back((chunk, 0));
    }

    pub(crate) fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

// ===== impl Inner =====

impl Inner {
    fn hand_out(&mut self, chunk: &StreamChunk, seen: usize, arrival: &Arrival) {
        let state = mem::replace(&mut self.state, State::Polling);
        for observer in self.observers.iter_mut().skip(seen) {
            observer.on_chunk(chunk, arrival);
        }
        self.state = state;
        if chunk.is_final() {
            self.close();
            tell(self.observers.drain(..), End::StreamEnded(&self.summary), &self.summary);
        }
    }

    /// The last chunk is here; is it time to hand it out?
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<StreamChunk, Error>> {
        let barrier = self.barrier.as_mut().expect("only called with one");
        ready!(barrier.done.as_mut().poll(cx))?;
        let last = barrier.last.take().expect("only called with one");
        self.barrier = None;
        Poll::Ready(Ok(last))
    }

    fn fail(&mut self, error: Error) -> Error {
        self.close();
        let error = failed(error, &self.summary);
        let error = match self.chosen.take() {
            Some(chosen) => error.with_chosen(chosen),
            None => error,
        };
        self.failure = Some(error.clone());
        tell(self.observers.drain(..), End::Failed(&error, &self.summary), &self.summary);
        error
    }

    /// Whether nothing is left to be handed out.
    fn is_over(&self) -> bool {
        self.state == State::Ended && self.held.chunks.is_empty() && !self.holds_last()
    }

    /// Whether the barrier keeps the last chunk back.
    fn holds_last(&self) -> bool {
        self.barrier.as_ref().is_some_and(|barrier| barrier.last.is_some())
    }

    /// Hangs up: whoever keeps the stream does not keep the connection.
    fn close(&mut self) {
        self.state = State::Ended;
        let origin = mem::replace(&mut self.origin, Origin::Nowhere);
        // Whoever watches is told of the end all the same.
        contained(|| drop(origin));
        self.clock = None;
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StreamChunk, Error>>> {
        self.state = State::Polling;
        let polled = match &mut self.origin {
            Origin::Source(source) => source.as_mut().poll_next(cx),
            Origin::Kept(replay) => Poll::Ready(replay.next().map(Ok)),
            Origin::Nowhere => Poll::Ready(None),
        };
        self.state = State::Open;
        if let Some(clock) = &mut self.clock {
            if polled.is_pending() {
                let phase = ready!(clock.poll_silence(self.summary.has_content, cx));
                return Poll::Ready(Some(Err(Error::new(ErrorKind::Timeout { phase }))));
            }
            clock.heard();
        }
        polled
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StreamChunk, Error>>> {
        if let Some((chunk, seen)) = self.held.chunks.pop_front()
            && self.passes(&chunk, seen, &Arrival::default())
        {
            return Poll::Ready(Some(Ok(chunk)));
        }
        if self.holds_last() {
            return Poll::Ready(Some(match ready!(self.poll_last(cx)) {
                Ok(last) => {
                    self.hand_out(&last, 0, &Arrival::default());
                    Ok(last)
                }
                Err(error) => {
                    self.barrier = None;
                    Err(self.fail(error))
                }
            }));
        }
        match self.state {
            State::Open => {}
            State::Ended => return Poll::Ready(None),
            State::Polling => return Poll::Ready(Some(Err(self.fail(panicked())))),
        }
        // Looked at where it lies: a chunk is large, and there are many.
        let mut polled = self.poll_source(cx);
        match &mut polled {
            Poll::Pending => return polled,
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(next @ None) if self.ends_cleanly => *next = Some(Ok(StreamChunk::end())),
            Poll::Ready(next) => {
                let error = match next.take() {
                    Some(Err(error)) => error,
                    _ => self.broken_off(),
                };
                *next = Some(Err(self.fail(error)));
                return polled;
            }
        }
        match &polled {
            Poll::Ready(Some(Ok(chunk))) => {
                let arrival = Arrival::default();
                self.summary.add(chunk, &arrival, self.is_timed());
                if self.passes(chunk, 0, &arrival) { polled } else { self.poll_chunk(cx) }
            }
            _ => polled,
        }
    }

    /// Shows a chunk to those who watch and have not seen it; `false` if it is the last one and has to wait for the barrier.
    fn passes(&mut self, chunk: &StreamChunk, seen: usize, arrival: &Arrival) -> bool {
        let Some(barrier) = self.barrier.as_ref().filter(|_| chunk.is_final()) else {
            self.hand_out(chunk, seen, arrival);
            return true;
        };
        let inside = barrier.inside.min(self.observers.len());
        self.close();
        self.state = State::Polling;
        for observer in self.observers[..inside].iter_mut().skip(seen) {
            observer.on_chunk(chunk, arrival);
        }
        tell(self.observers.drain(..inside), End::StreamEnded(&self.summary), &self.summary);
        self.state = State::Ended;
        if let Some(barrier) = &mut self.barrier {
            barrier.last = Some(chunk.clone());
        }
        false
    }

    /// When chunks come that were kept is of interest to nobody but those who watch: then the clock is not read.
    const fn is_timed(&self) -> bool {
        !self.observers.is_empty() || !matches!(self.origin, Origin::Kept(_))
    }

    fn broken_off(&self) -> Error {
        let model = self.summary.model.as_deref().map(Into::into);
        Error::new(ErrorKind::StreamInterrupted { model, after_content: self.summary.has_content })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.state == State::Polling {
            self.fail(panicked());
        }
        // First, so that a permit is not free before the connection is.
        self.close();
        tell(self.observers.drain(..), End::Abandoned(&self.summary), &self.summary);
    }
}

/// Tells all of the end, also if one of them panics. To those outside of it that is a panic of the service below, as it is
/// where an answer is whole.
fn tell(observers: Drain<'_, Box<dyn DynObserve>>, end: End<'_>, summary: &Summary) {
    let mut panic = None;
    for observer in observers {
        let told = catch_unwind(AssertUnwindSafe(|| match &panic {
            None => observer.on_end(end),
            Some(_) => observer.on_end(End::Failed(&failed(panicked(), summary), summary)),
        }));
        if let Err(cause) = told {
            panic.get_or_insert(cause);
        }
    }
    if let Some(cause) = panic
        // In the midst of another it would end the process.
        && !thread::panicking()
    {
        resume_unwind(cause);
    }
}

/// An error of a stream, with what it is known to have used up.
fn failed(error: Error, summary: &Summary) -> Error {
    let error = error.with_dispatched(true);
    match summary.usage {
        Some(usage) if error.usage().is_none() => error.with_usage(usage),
        _ => error,
    }
}

pub(super) fn panicked() -> Error {
    Error::new(ErrorKind::Other).with_source("the service below panicked")
}
