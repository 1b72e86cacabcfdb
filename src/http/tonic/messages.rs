use crate::{ChunkStream, Error, ResponseBody, StreamChunk, deadline::Deadline, http::into_stream};
use futures_core::Stream;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tonic::Status;

/// The chunks of an answer as the messages of a gRPC stream.
///
/// Each chunk is given to `translate`, the terminal one too, which says what message it makes, if any. The stream ends after
/// the terminal chunk; one that breaks, and a translation that fails, ends with a status, and nothing follows: never a
/// clean-looking end. A whole answer, such as one from a cache, is given out in the same form.
///
/// # Cancel safety
///
/// Dropping it, as tonic does when the caller goes away, hangs up on the provider.
pub struct Messages<F> {
    /// `None` after the end.
    chunks: Option<ChunkStream>,
    translate: F,
    deadline: Deadline,
}

impl<F, T> Messages<F>
where
    F: FnMut(&StreamChunk) -> Result<Option<T>, Error> + Unpin,
{
    /// What `translate` makes of an answer's chunks.
    pub fn new(answer: ResponseBody, translate: F) -> Self {
        Self { chunks: Some(into_stream(answer)), translate, deadline: Deadline::new(None) }
    }
}

impl<F> Messages<F> {
    /// Ends the stream with `DEADLINE_EXCEEDED` at this time, by which the caller has stopped waiting: that of the request's
    /// [context](crate::RequestContext::deadline). The answer has failed then, with a
    /// [`Timeout`](crate::ErrorKind::Timeout). The layers' own limits hold besides.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<std::time::Instant>) -> Self {
        self.deadline = Deadline::new(deadline.map(Instant::from_std));
        self
    }

    /// Whether the answer has: it holds nothing any more.
    pub(super) const fn has_ended(&self) -> bool {
        self.chunks.is_none()
    }

    /// Ends it before its chunks have: to those who watch the answer it has failed.
    fn fail(&mut self, error: Error) -> Status {
        match self.chunks.take() {
            Some(mut chunks) => chunks.cut(error).into(),
            None => error.into(),
        }
    }
}

impl<F, T> Stream for Messages<F>
where
    F: FnMut(&StreamChunk) -> Result<Option<T>, Error> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // A provider that always has the next chunk ready leaves no silence to notice it in.
        let mut is_late = this.deadline.is_over();
        loop {
            let Some(chunks) = &mut this.chunks else { return Poll::Ready(None) };
            if is_late {
                return Poll::Ready(Some(Err(this.fail(Deadline::error()))));
            }
            match Pin::new(chunks).poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => {
                    if chunk.is_final() {
                        this.chunks = None;
                    }
                    match (this.translate)(&chunk) {
                        Ok(None) => {}
                        Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                        Err(error) => return Poll::Ready(Some(Err(this.fail(error)))),
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    this.chunks = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(None) => this.chunks = None,
                Poll::Pending => match this.deadline.poll(cx) {
                    Poll::Ready(_) => is_late = true,
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}

impl<F> fmt::Debug for Messages<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("chunks", &self.chunks)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
