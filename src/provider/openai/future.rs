use super::{
    collect::{Collect, CollectEnd},
    origin::{MAX_KEPT, Origin},
    stream::Events,
    wire::{self, BYTE_ORDER_MARK},
};
use crate::{
    BoxError, ChunkStream, Completion, Error, ErrorClass, LlmRequest, LlmResponse, ResponseBody,
    provider::dispatch::Asked,
};
use bytes::{Buf as _, Bytes};
use http::{HeaderMap, header};
use http_body::Body;
use http_body_util::Full;
use pin_project::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Sleep;
use tower_service::Service;

/// How long an explanation may take: whoever is refused may have to be asked elsewhere.
const EXPLAINED_WITHIN: Duration = Duration::from_secs(2);

/// Response future of [`OpenAiCompatible`](super::OpenAiCompatible).
#[pin_project]
pub struct ResponseFuture<H, B>
where
    H: Service<http::Request<Full<Bytes>>>,
{
    #[pin]
    state: State<H, H::Future, B>,
    origin: Origin,
    streaming: bool,
    /// Where the server may refuse what the caller did not send.
    again: Option<Again<H>>,
    asked: Asked,
}

/// Whom to ask once more, and what.
pub(super) struct Again<H> {
    pub(super) http: H,
    pub(super) request: LlmRequest,
}

#[pin_project(project = StateProj)]
enum State<H, F, B> {
    Asking(#[pin] F),
    ReadingAnswer(#[pin] Collect<B>),
    ReadingRefusal(#[pin] Collect<B>, HeaderMap, Option<Pin<Box<Sleep>>>),
    Readying(Again<H>),
}

impl<H, B> ResponseFuture<H, B>
where
    H: Service<http::Request<Full<Bytes>>>,
{
    pub(super) const fn new(
        future: H::Future,
        origin: Origin,
        streaming: bool,
        again: Option<Again<H>>,
        asked: Asked,
    ) -> Self {
        Self { state: State::Asking(future), origin, streaming, again, asked }
    }
}

impl<H, B> Future for ResponseFuture<H, B>
where
    H: Service<http::Request<Full<Bytes>>, Response = http::Response<B>>,
    H::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut polled = self.as_mut().poll_answer(cx);
        if let Poll::Ready(ended) = &mut polled {
            self.project().asked.end(ended);
        }
        polled
    }
}

impl<H, B> ResponseFuture<H, B>
where
    H: Service<http::Request<Full<Bytes>>, Response = http::Response<B>>,
    H::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    fn poll_answer(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<LlmResponse, Error>> {
        let mut this = self.project();
        let origin = this.origin;
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Asking(future) => {
                    let response =
                        ready!(future.poll(cx)).map_err(|error| origin.unanswered(error.into()))?;
                    let (head, body) = response.into_parts();
                    origin.answered(head.status, &head.headers);
                    match Answer::of(&head, *this.streaming) {
                        Answer::Refusal => {
                            State::ReadingRefusal(Collect::new(body, MAX_KEPT), head.headers, None)
                        }
                        Answer::Whole if is_longer(&head.headers, origin.endpoint.max_answer_bytes) => {
                            return Poll::Ready(Err(origin.error(ErrorClass::TooLarge)));
                        }
                        Answer::Whole => {
                            State::ReadingAnswer(Collect::new(body, origin.endpoint.max_answer_bytes))
                        }
                        Answer::Stream => {
                            let events = Events::new(body, origin.clone());
                            return Poll::Ready(Ok(respond(origin, ChunkStream::new(events))));
                        }
                        Answer::Unexpected(why) => {
                            return Poll::Ready(Err(origin.malformed(why, Bytes::new())));
                        }
                    }
                }
                StateProj::ReadingAnswer(body) => {
                    let read = ready!(body.poll(cx));
                    return Poll::Ready(match read.end {
                        CollectEnd::Whole => whole(origin, read.data),
                        CollectEnd::OverLimit => Err(origin.error(ErrorClass::TooLarge)),
                        CollectEnd::Broken(error) => Err(origin.cut(error)),
                    });
                }
                StateProj::ReadingRefusal(mut body, headers, sleep) => {
                    // However much of the explanation there is: the status says enough.
                    let said = match body.as_mut().poll(cx) {
                        Poll::Ready(read) => read.data,
                        Poll::Pending => {
                            let within = || Box::pin(tokio::time::sleep(EXPLAINED_WITHIN));
                            ready!(sleep.get_or_insert_with(within).as_mut().poll(cx));
                            body.take()
                        }
                    };
                    let is_ours = |status| wire::refuses_options(status, &said);
                    match this.again.take().filter(|_| origin.status.is_some_and(is_ours)) {
                        Some(again) => {
                            origin.ask_again();
                            State::Readying(again)
                        }
                        None => return Poll::Ready(Err(origin.refused(headers, said))),
                    }
                }
                StateProj::Readying(again) => {
                    ready!(again.http.poll_ready(cx)).map_err(|error| origin.gone(error.into()))?;
                    let request = wire::request(&origin.endpoint, &again.request, false);
                    State::Asking(again.http.call(request))
                }
            };
            this.state.set(next);
        }
    }
}

/// What a head announces.
enum Answer {
    Refusal,
    Whole,
    Stream,
    Unexpected(&'static str),
}

impl Answer {
    fn of(head: &http::response::Parts, streaming: bool) -> Self {
        if !head.status.is_success() {
            return Self::Refusal;
        }
        let media_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.and_then(|t| t.split(';').next()).unwrap_or_default().trim();
        let is = |other: &str| media_type.eq_ignore_ascii_case(other);
        match streaming {
            false if is("text/event-stream") => Self::Unexpected("a stream that was not asked for"),
            false => Self::Whole,
            true if is("application/json") || is("application/problem+json") => Self::Whole,
            true if is("text/html") => Self::Unexpected("a web page"),
            // Some name their streams text/plain, or do not name them.
            true => Self::Stream,
        }
    }
}

fn is_longer(headers: &HeaderMap, limit: usize) -> bool {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    announced.is_some_and(|length: u64| length > limit as u64)
}

fn whole(origin: &mut Origin, mut data: Bytes) -> Result<LlmResponse, Error> {
    if data.starts_with(BYTE_ORDER_MARK) {
        data.advance(BYTE_ORDER_MARK.len());
    }
    let completion = Completion::parse(data.clone()).map_err(|error| {
        // Not the error itself: it would quote the answer.
        let why = format!("no chat completion (line {}, column {})", error.line(), error.column());
        origin.malformed(why, data.clone())
    })?;
    if completion.facts().has_error {
        return Err(origin.reported_beside(completion.usage(), data));
    }
    Ok(respond(origin, completion))
}

fn respond(origin: &mut Origin, body: impl Into<ResponseBody>) -> LlmResponse {
    let mut response = LlmResponse::new(origin.model.clone(), body);
    response.provider_request_id = mem::take(&mut origin.request_id);
    response
}

impl<H, B> fmt::Debug for ResponseFuture<H, B>
where
    H: Service<http::Request<Full<Bytes>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Asking(_) => "asking",
            State::ReadingAnswer(_) => "reading the answer",
            State::ReadingRefusal(..) => "reading the refusal",
            State::Readying(_) => "asking once more",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}
