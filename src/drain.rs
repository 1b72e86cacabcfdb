//! Reads on where a caller has left, so that what his stream used up is known and not guessed.
//!
//! A provider bills for an answer whose reader went away: at least what it had written by then, and often all of it. Who leaves in the
//! middle of a stream leaves its usage unsaid, for it comes last; [`quota`](crate::quota) and [`usage`](crate::usage) then go by
//! an upper bound, or an estimate. With this layer outside of them the stream is read to its end all the same, for a bounded time,
//! by a [`DrainWorker`] that the host holds, and both see the truth. Three things to know:
//!
//! - **It costs what the rest of the answer costs.** Without it, hanging up stops many providers from writing on.
//! - At most [so many](DrainOptions::streams) streams are read on at once; what is more, or takes longer than
//!   [`within`](DrainOptions::within), is hung up as ever.
//! - What is recorded then has ended well: that its caller had left is on the gateway's span. His
//!   [deadline](crate::RequestContext::deadline) is a way to leave as well, and ends nothing that is read on.
//!
//! Belongs directly outside of [`quota`](crate::quota), and inside of a [cache](crate::cache), whose shared calls would otherwise be
//! kept up by readers who have left. A call that is dropped before its head is hung up at once.
//! A stack of a [configuration](crate::config) has no entry for it, for it spends money: a program adds it with
//! `StackBuilder::with_layer(Place::Miss, drain)`, holds the worker, and shuts it down before the stack.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, LlmRequest, ResponseBody,
//!     drain::{DrainLayer, DrainOptions},
//!     price::Prices,
//!     provider::Echo,
//!     usage::{MemorySink, Outcome, UsageLayer},
//! };
//! use std::time::Duration;
//! use tower::{Layer, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::Error> {
//! let sink = MemorySink::new(8);
//! let (drain, worker) = DrainLayer::start(DrainOptions::within(Duration::from_secs(30)));
//! let service = drain.layer(UsageLayer::new(sink.clone(), Prices::default()).layer(Echo::new()));
//!
//! let request = LlmRequest::new("acme/one", ChatBody::builder().user("One two three").streaming().build()?);
//! let answer = service.oneshot(request).await?;
//! let ResponseBody::Stream(mut chunks) = answer.body else { panic!("it was to stream") };
//! chunks.next().await;
//! drop(chunks);
//!
//! worker.shutdown(Duration::from_secs(30)).await;
//! assert_eq!(sink.take()[0].outcome, Outcome::Ok);
//! # Ok(())
//! # }
//! ```

use crate::{ChunkStream, Error, LlmRequest, LlmResponse, ResponseBody, StreamChunk, body::BodyClock};
use futures_core::Stream;
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use pin_project::pin_project;
use std::{
    fmt,
    future::poll_fn,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{JoinHandle, coop::consume_budget},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Drain`] to a service.
///
/// See the [module docs](self) for where it belongs.
#[derive(Clone)]
pub struct DrainLayer {
    shared: Shared,
}

/// Hands streams whose readers have left to a [`DrainWorker`].
#[derive(Debug, Clone)]
pub struct Drain<S> {
    inner: S,
    shared: Shared,
}

/// For how long streams are read on, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DrainOptions {
    /// A stream is read on for so long after its reader has left.
    pub within: Duration,
    /// How many are read on at once; 256 unless told.
    pub streams: usize,
}

/// Reads on, on a task of its own. Dropped without [`shutdown`](Self::shutdown), it lets the task go on until all layers and
/// streams are gone.
#[must_use = "streams that are read on are only waited for by `shutdown`"]
pub struct DrainWorker {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Response future of [`Drain`].
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    inner: F,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    queue: mpsc::Sender<Left>,
    places: Arc<Semaphore>,
}

/// A stream without a reader, and its place.
struct Left(ChunkStream, OwnedSemaphorePermit);

/// A stream that somebody reads.
struct Watched {
    chunks: Option<ChunkStream>,
    shared: Shared,
}

// ===== impl DrainOptions =====

impl DrainOptions {
    /// Streams are read on for so long.
    pub const fn within(time: Duration) -> Self {
        Self { within: time, streams: 256 }
    }

    /// Sets [`streams`](Self::streams).
    #[must_use]
    pub const fn with_streams(mut self, streams: usize) -> Self {
        self.streams = streams;
        self
    }
}

// ===== impl DrainLayer =====

impl DrainLayer {
    /// Starts the task that reads on.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(options: DrainOptions) -> (Self, DrainWorker) {
        let streams = options.streams.clamp(1, Semaphore::MAX_PERMITS);
        let (queue, left) = mpsc::channel(streams);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(read_on(left, stopped, options.within));
        let shared = Shared { queue, places: Arc::new(Semaphore::new(streams)) };
        (Self { shared }, DrainWorker { stop, task })
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Drain<S> {
        Drain { inner, shared: self.shared.clone() }
    }
}

impl fmt::Debug for DrainLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainLayer").field("shared", &self.shared).finish()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("places", &self.places.available_permits()).finish_non_exhaustive()
    }
}

// ===== impl DrainWorker =====

async fn read_on(mut left: mpsc::Receiver<Left>, mut stopped: oneshot::Receiver<()>, within: Duration) {
    let mut reading = FuturesUnordered::new();
    let (mut is_stopped, mut is_over) = (false, false);
    poll_fn(|cx| {
        if !is_stopped && let Poll::Ready(said) = Pin::new(&mut stopped).poll(cx) {
            is_stopped = true;
            // Dropped, nobody says so.
            if said.is_ok() {
                left.close();
            }
        }
        while !is_over && let Poll::Ready(stream) = left.poll_recv(cx) {
            match stream {
                Some(Left(mut chunks, place)) => {
                    let read = async move {
                        let to_its_end = async {
                            while let Some(Ok(_)) = chunks.next().await {
                                // One that is never silent would leave no time to anybody, nor to its own end.
                                consume_budget().await;
                            }
                        };
                        // Twice, for a panic of a `drop` in the midst of another would end the process.
                        let to_its_end = AssertUnwindSafe(to_its_end).catch_unwind();
                        let _ = tokio::time::timeout(within, to_its_end).await;
                        drop((chunks, place));
                    };
                    reading.push(AssertUnwindSafe(read).catch_unwind());
                }
                None => is_over = true,
            }
        }
        while let Poll::Ready(Some(_)) = reading.poll_next_unpin(cx) {}
        if is_over && reading.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl DrainWorker {
    /// Takes no further streams, and waits for those that it reads until they have ended or `deadline` has passed. What is left
    /// then is hung up. Whether nothing was.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        let Self { stop, mut task } = self;
        let _ = stop.send(());
        let ended = tokio::time::timeout(deadline, &mut task).await;
        if ended.is_err() {
            task.abort();
            // Whoever watches the streams is told before this returns.
            let _ = task.await;
        }
        matches!(ended, Ok(Ok(())))
    }
}

impl fmt::Debug for DrainWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainWorker").finish_non_exhaustive()
    }
}

// ===== impl Drain =====

impl<S> Drain<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<LlmRequest> for Drain<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        ResponseFuture { inner: self.inner.call(request), shared: self.shared.clone() }
    }
}

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.inner.poll(cx)).map_err(Into::into)?;
        if let ResponseBody::Stream(mut chunks) = answer.body {
            // It ends the reading, and what is read on has nobody to keep it for.
            let deadline = chunks.take_deadline();
            let watched = Watched { chunks: Some(chunks), shared: this.shared.clone() };
            let mut chunks = ChunkStream::new(watched);
            if deadline.is_some() {
                chunks.limit(BodyClock::new(None, None, None, deadline));
            }
            answer.body = ResponseBody::Stream(chunks);
        }
        Poll::Ready(Ok(answer))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

// ===== impl Watched =====

impl Stream for Watched {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(chunks) = &mut self.chunks else { return Poll::Ready(None) };
        let next = ready!(Pin::new(chunks).poll_next(cx));
        if !matches!(&next, Some(Ok(chunk)) if !chunk.is_final()) {
            // It has ended, and there is nothing to read on.
            self.chunks = None;
        }
        Poll::Ready(next)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(chunks) = self.chunks.take()
            && let Ok(place) = Arc::clone(&self.shared.places).try_acquire_owned()
        {
            // Refused only where nobody reads on any more: then it is dropped, as without this layer.
            let _ = self.shared.queue.try_send(Left(chunks, place));
        }
    }
}
