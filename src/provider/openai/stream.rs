//! A body of server-sent events as chunks, polled straight through.

use super::origin::Origin;
use crate::{BoxError, Error, ErrorClass, StreamChunk, answer::ChunkReader};
use bytes::Bytes;
use futures_core::Stream;
use http_body::Body;
use pin_project::pin_project;
use sse_stream::{Sse, SseByteStream};
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

/// The chunks of an answer: ends with a terminal chunk or an error.
#[pin_project]
pub(super) struct Events<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    #[pin]
    events: SseByteStream<Frames<B>>,
    since_event: SinceEvent,
    origin: Origin,
    reader: ChunkReader,
    /// Choices, one bit each, that were seen and that had their finish reason.
    begun: u128,
    finished: u128,
    is_over: bool,
}

/// How many bytes the parser was given since it gave an event.
#[derive(Clone, Default)]
struct SinceEvent(Arc<AtomicUsize>);

/// The data of a body in pieces, so that the parser never holds much more than one event.
#[pin_project]
struct Frames<B> {
    #[pin]
    body: B,
    rest: Bytes,
    since_event: SinceEvent,
    limit: usize,
}

/// Why there are no more frames.
#[derive(Debug)]
enum NoFrame {
    TooLarge,
    Broken(BoxError),
}

impl<B> Events<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(body: B, origin: Origin) -> Self {
        let since_event = SinceEvent::default();
        let limit = origin.endpoint.max_event_bytes;
        let frames = Frames { body, rest: Bytes::new(), since_event: since_event.clone(), limit };
        let events = SseByteStream::new(frames);
        let reader = ChunkReader::default();
        Self { events, since_event, origin, reader, begun: 0, finished: 0, is_over: false }
    }

    /// What `event` is to whoever reads the answer, if anything.
    fn read(self: Pin<&mut Self>, event: Sse, cx: &mut Context<'_>) -> Option<Result<StreamChunk, Error>> {
        let this = self.project();
        let data = event.data.unwrap_or_default();
        if event.event.as_deref() == Some("error") {
            return Some(Err(this.origin.reported(data.into())));
        }
        match data.trim_ascii() {
            "" => return None,
            "[DONE]" => {
                // A body that was read to its end leaves a connection that can be used again.
                *this.is_over = true;
                let _ = this.events.poll_next(cx);
                return Some(Ok(StreamChunk::end()));
            }
            _ => {}
        }
        let chunk = match this.reader.read(data.into()) {
            Ok(chunk) => chunk,
            Err((error, data)) => {
                // Not the error itself: it would quote the answer.
                let why = format!("an event is no chunk (line {}, column {})", error.line(), error.column());
                return Some(Err(this.origin.malformed(why, data)));
            }
        };
        if chunk.facts().has_error {
            return Some(Err(this.origin.reported_beside(chunk.usage(), chunk.data().clone())));
        }
        *this.begun |= chunk.facts().begun();
        *this.finished |= chunk.facts().finished();
        Some(Ok(chunk))
    }

    /// The body has ended without a mark.
    fn end(&self) -> Result<StreamChunk, Error> {
        match self.begun != 0 && self.begun & !self.finished == 0 {
            true => Ok(StreamChunk::end()),
            false => Err(self.origin.error(ErrorClass::Truncated)),
        }
    }

    fn broken(&self, error: sse_stream::Error) -> Error {
        match error {
            sse_stream::Error::Body(error) => match error.downcast::<NoFrame>().map(|e| *e) {
                Ok(NoFrame::TooLarge) => self.origin.error(ErrorClass::TooLarge),
                Ok(NoFrame::Broken(error)) | Err(error) => self.origin.cut(error),
            },
            other => self.origin.malformed(other, Bytes::new()),
        }
    }
}

impl<B> Stream for Events<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        loop {
            let polled = ready!(self.as_mut().project().events.poll_next(cx));
            let item = match polled {
                Some(Ok(event)) => {
                    self.since_event.0.store(0, Ordering::Relaxed);
                    match self.as_mut().read(event, cx) {
                        Some(item) => item,
                        None => continue,
                    }
                }
                Some(Err(error)) => Err(self.broken(error)),
                None => self.end(),
            };
            *self.as_mut().project().is_over |= !matches!(&item, Ok(chunk) if !chunk.is_final());
            return Poll::Ready(Some(item));
        }
    }
}

impl<B> Stream for Frames<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Item = Result<Bytes, NoFrame>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        while this.rest.is_empty() {
            match ready!(this.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(NoFrame::Broken(error.into())))),
                Some(Ok(frame)) => *this.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let room = this.limit.saturating_sub(this.since_event.0.load(Ordering::Relaxed));
        if room == 0 {
            return Poll::Ready(Some(Err(NoFrame::TooLarge)));
        }
        let piece = this.rest.split_to(this.rest.len().min(room));
        this.since_event.0.fetch_add(piece.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(piece)))
    }
}

impl fmt::Display for NoFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => f.write_str("an event is larger than is taken"),
            Self::Broken(_) => f.write_str("the body broke off"),
        }
    }
}

impl std::error::Error for NoFrame {}
