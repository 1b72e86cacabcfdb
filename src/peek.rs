//! Holds an answer back until it proves to have content.
//!
//! A provider may answer `200 OK` and then say nothing, or break off before its first word. Below this layer
//! that is an `Ok` with a bad body; above it, an `Err`: [`EmptyResponse`](ErrorKind::EmptyResponse), or the
//! error of the stream. So fallback, retries and breakers above need not know about streams.
//!
//! An answer without content that a filter has ended is a refusal of the content
//! ([`ContentFilter`](ErrorClass::ContentFilter)). One that met its bound on tokens would do so again: its error is not
//! [retryable](Error::is_retryable).
//!
//! Content is text that is not blank, reasoning, a tool call, a refusal, audio or an image. What is held back
//! is bounded: at the bound the answer is passed on as it is, for a bound must not invent a failure.
//! [`Fallback`](crate::fallback) contains it; alone it belongs under tower's own `Retry`.
//!
//! ```
//! use llm_layers::{ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, TokenUsage, peek::PeekLayer};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Error> {
//! let service = ServiceBuilder::new().layer(PeekLayer::new()).service(service_fn(|_: LlmRequest| async {
//!     Ok::<_, Error>(LlmResponse::new("acme/one", Completion::text(" \n", TokenUsage::new(3, 1))))
//! }));
//! let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?);
//! let error = service.oneshot(request).await.unwrap_err();
//! assert!(matches!(error.kind(), ErrorKind::EmptyResponse { .. }));
//! # Ok(())
//! # }
//! ```
//!
//! # Cancel safety
//!
//! Dropping the future drops the answer that it holds, and so hangs up on the provider.

use crate::{
    ChunkStream, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest, LlmResponse, ResponseBody,
    body::ReadAhead, caught::contained,
};
use futures_core::Stream;
use pin_project::pin_project;
use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`Peek`] to a service.
#[derive(Debug, Clone, Copy)]
pub struct PeekLayer {
    bounds: Bounds,
}

/// Resolves only once the inner service's answer has content.
#[derive(Debug, Clone, Copy)]
pub struct Peek<S> {
    inner: S,
    bounds: Bounds,
}

#[derive(Debug, Clone, Copy)]
struct Bounds {
    chunks: usize,
    bytes: usize,
}

/// Response future of [`Peek`].
#[pin_project]
#[derive(Debug)]
pub struct ResponseFuture<F> {
    bounds: Bounds,
    #[pin]
    state: State<F>,
}

#[pin_project(project = StateProj)]
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a box would cost every streamed answer an allocation")]
enum State<F> {
    Calling(#[pin] F),
    Peeking { answer: Option<LlmResponse>, held: ReadAhead },
}

// ===== impl PeekLayer =====

impl PeekLayer {
    /// Holds back at most 64 chunks and 64 KiB.
    pub const fn new() -> Self {
        Self { bounds: Bounds { chunks: 64, bytes: 64 << 10 } }
    }

    /// Holds back at most this many chunks.
    #[must_use]
    pub const fn with_max_chunks(mut self, chunks: usize) -> Self {
        self.bounds.chunks = chunks;
        self
    }

    /// Holds back at most this many bytes.
    #[must_use]
    pub const fn with_max_bytes(mut self, bytes: usize) -> Self {
        self.bounds.bytes = bytes;
        self
    }
}

impl Default for PeekLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for PeekLayer {
    type Service = Peek<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Peek { inner, bounds: self.bounds }
    }
}

// ===== impl Peek =====

impl<S> Peek<S> {
    /// The inner service.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Unwraps the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S> Service<LlmRequest> for Peek<S>
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
        ResponseFuture { bounds: self.bounds, state: State::Calling(self.inner.call(request)) }
    }
}

// ===== impl ResponseFuture =====

impl<F, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let (answer, held) = match this.state.as_mut().project() {
                StateProj::Calling(future) => {
                    // Looked at where it lies: most are whole, and an answer is large.
                    let polled = future.poll(cx).map_err(Into::into);
                    let Poll::Ready(Ok(answer)) = &polled else { return polled };
                    if matches!(&answer.body, ResponseBody::Complete(completion) if completion.has_content())
                    {
                        return polled;
                    }
                    let answer = ready!(polled)?;
                    let next = State::Peeking { answer: Some(answer), held: ReadAhead::default() };
                    contained(|| this.state.set(next));
                    continue;
                }
                StateProj::Peeking { answer, held } => (answer, held),
            };
            let found = match &mut answer.as_mut().expect("polled after completion").body {
                ResponseBody::Complete(completion) => Ok(completion.has_content()),
                ResponseBody::Stream(chunks) => ready!(poll_content(chunks, held, *this.bounds, cx)),
            };
            let mut answer = answer.take().expect("just borrowed");
            return Poll::Ready(match found {
                Ok(true) => {
                    if let ResponseBody::Stream(chunks) = &mut answer.body {
                        chunks.unread(mem::take(held));
                    }
                    Ok(answer)
                }
                Ok(false) => Err(empty(answer)),
                Err(error) => Err(error),
            });
        }
    }
}

/// Pulls chunks into `held` until one has content or there is no more room; `false` if the stream ends
/// without any.
fn poll_content(
    chunks: &mut ChunkStream,
    held: &mut ReadAhead,
    bounds: Bounds,
    cx: &mut Context<'_>,
) -> Poll<Result<bool, Error>> {
    while let Some(chunk) = ready!(Pin::new(&mut *chunks).poll_next(cx)?) {
        let (found, last) = (chunk.has_content(), chunk.is_final());
        held.push(chunk);
        if found || last || held.chunks() >= bounds.chunks || held.bytes() >= bounds.bytes {
            return Poll::Ready(Ok(found || !last));
        }
    }
    Poll::Ready(Ok(false))
}

/// What an answer without content is to those who asked for one.
fn empty(answer: LlmResponse) -> Error {
    let (usage, finishes) = match &answer.body {
        ResponseBody::Complete(completion) => (completion.usage().copied(), completion.finish_reasons()),
        ResponseBody::Stream(chunks) => (chunks.summary().usage, &*chunks.summary().finish_reasons),
    };
    let error = if finishes.iter().any(|finish| finish.reason == FinishReason::ContentFilter) {
        let (provider, model) = answer.model.split().unwrap_or(("unknown", &answer.model));
        let provider = answer.provider.clone().unwrap_or_else(|| provider.into());
        Error::provider(ErrorClass::ContentFilter, provider, model)
    } else {
        let same = finishes.windows(2).all(|two| two[0].reason == two[1].reason);
        let finish = finishes.first().filter(|_| same).map(|finish| finish.reason.clone());
        let error = Error::new(ErrorKind::EmptyResponse { model: answer.model });
        match finish {
            Some(reason) => error.with_finish_reason(reason),
            None => error,
        }
    };
    let error = error.with_dispatched(true);
    let error = match answer.chosen {
        Some(chosen) => error.with_chosen(chosen),
        None => error,
    };
    match usage {
        Some(usage) => error.with_usage(usage),
        None => error,
    }
}
