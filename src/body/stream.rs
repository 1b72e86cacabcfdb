use super::{
    BodyClock,
    observe::{Arrival, DynObserve, End, Observe, Summary},
};
use crate::{Error, ErrorKind, StreamChunk};
use futures_core::Stream;
use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

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
#[must_use = "a stream does nothing unless it is read"]
pub struct ChunkStream {
    source: Pin<Box<dyn Stream<Item = Result<StreamChunk, Error>> + Send>>,
    state: State,
    ends_cleanly: bool,
    /// Read ahead, with the number of observers that have seen it.
    held: VecDeque<(StreamChunk, usize)>,
    /// Innermost layer first; empty once the source has ended.
    observers: Vec<Box<dyn DynObserve>>,
    summary: Summary,
    clock: Option<Box<BodyClock>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// Seen by nobody but a `Drop` or a poll after a panic of the source.
    Polling,
    Ended,
}

impl ChunkStream {
    /// A stream whose last item is a terminal chunk.
    pub fn new(source: impl Stream<Item = Result<StreamChunk, Error>> + Send + 'static) -> Self {
        Self {
            source: Box::pin(source),
            state: State::Open,
            ends_cleanly: false,
            held: VecDeque::new(),
            observers: Vec::new(),
            summary: Summary::default(),
            clock: None,
        }
    }

    /// A stream that has no terminal chunk of its own: it ends where `source` ends.
    ///
    /// For leaves whose source cannot break off unseen. Where a cut connection looks like an end, make the
    /// terminal chunk yourself and use [`new`](Self::new).
    pub fn ending_cleanly(source: impl Stream<Item = Result<StreamChunk, Error>> + Send + 'static) -> Self {
        let mut chunks = Self::new(source);
        chunks.ends_cleanly = true;
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
        &self.summary
    }

    /// Lets `observer` see all that is still to be handed out.
    pub fn observe(&mut self, observer: impl Observe) {
        self.observers.push(Box::new(observer));
    }

    /// Bounds the time that it may take, besides the bounds that it has.
    pub(crate) fn limit(&mut self, clock: BodyClock) {
        match &mut self.clock {
            Some(present) => present.tighten(&clock),
            None => self.clock = Some(Box::new(clock)),
        }
    }

    /// Puts back what was read ahead. Who has watched it pass does not see it again.
    pub(crate) fn unread(&mut self, chunks: impl DoubleEndedIterator<Item = StreamChunk>) {
        let seen = self.observers.len();
        for chunk in chunks.rev() {
            self.held.push_front((chunk, seen));
        }
    }

    fn hand_out(&mut self, chunk: &StreamChunk, seen: usize, arrival: &Arrival) {
        for observer in self.observers.iter_mut().skip(seen) {
            observer.on_chunk(chunk, arrival);
        }
        if chunk.is_final() {
            self.close();
            for observer in self.observers.drain(..) {
                observer.on_end(End::StreamEnded(&self.summary));
            }
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.close();
        let mut error = error.with_dispatched(true);
        if let (None, Some(usage)) = (error.usage(), self.summary.usage) {
            error = error.with_usage(usage);
        }
        for observer in self.observers.drain(..) {
            observer.on_end(End::Failed(&error, &self.summary));
        }
        error
    }

    /// Hangs up: whoever keeps the stream does not keep the connection.
    fn close(&mut self) {
        self.state = State::Ended;
        self.source = Box::pin(futures_util::stream::empty());
        self.clock = None;
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<StreamChunk, Error>>> {
        self.state = State::Polling;
        let polled = self.source.as_mut().poll_next(cx);
        self.state = State::Open;
        match (polled, &mut self.clock) {
            (Poll::Pending, None) => Poll::Pending,
            (Poll::Pending, Some(clock)) => {
                let phase = ready!(clock.poll_silence(self.summary.has_content, cx));
                Poll::Ready(Some(Err(Error::new(ErrorKind::Timeout { phase }))))
            }
            (ready, clock) => {
                if let Some(clock) = clock {
                    clock.heard();
                }
                ready
            }
        }
    }
}

impl Stream for ChunkStream {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some((chunk, seen)) = this.held.pop_front() {
            this.hand_out(&chunk, seen, &Arrival::default());
            return Poll::Ready(Some(Ok(chunk)));
        }
        match this.state {
            State::Open => {}
            State::Ended => return Poll::Ready(None),
            State::Polling => return Poll::Ready(Some(Err(this.fail(panicked())))),
        }
        let chunk = match ready!(this.poll_source(cx)) {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Poll::Ready(Some(Err(this.fail(error)))),
            None if this.ends_cleanly => StreamChunk::end(),
            None => {
                let model = this.summary.model.as_deref().map(Into::into);
                let after_content = this.summary.has_content;
                let error = Error::new(ErrorKind::StreamInterrupted { model, after_content });
                return Poll::Ready(Some(Err(this.fail(error))));
            }
        };
        let arrival = Arrival::default();
        this.summary.add(&chunk, &arrival);
        this.hand_out(&chunk, 0, &arrival);
        Poll::Ready(Some(Ok(chunk)))
    }
}

impl Drop for ChunkStream {
    fn drop(&mut self) {
        if self.state == State::Polling {
            self.fail(panicked());
        }
        // First, so that a permit is not free before the connection is.
        self.close();
        for observer in self.observers.drain(..) {
            observer.on_end(End::Abandoned(&self.summary));
        }
    }
}

impl fmt::Debug for ChunkStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkStream")
            .field("state", &self.state)
            .field("held", &self.held.len())
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}

pub(super) fn panicked() -> Error {
    Error::new(ErrorKind::Other).with_source("the service below panicked")
}
