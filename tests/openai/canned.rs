//! Requests to ask and answers without a network.

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::Full;
use llm_layers::{
    BoxError, ChatBody, Error, ErrorKind, LlmRequest, LlmResponse, ProviderFailure, StreamChunk,
    provider::openai::OpenAiCompatible,
};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tower::{Service, ServiceExt, service_fn, util::BoxCloneSyncService};

pub(crate) const URL: &str = "https://llm.example/v1";
pub(crate) const SSE: &[(&str, &str)] = &[("content-type", "text/event-stream")];
pub(crate) const JSON: &[(&str, &str)] = &[("content-type", "application/json; charset=utf-8")];

pub(crate) fn whole() -> LlmRequest {
    LlmRequest::new("m-1", ChatBody::builder().user("hello").build().unwrap())
}

pub(crate) fn streaming() -> LlmRequest {
    LlmRequest::new("m-1", ChatBody::builder().user("hello").streaming().build().unwrap())
}

pub(crate) fn request(json: &str) -> LlmRequest {
    let mut request = LlmRequest::parse(json.to_owned()).unwrap();
    request.model = "m-1".into();
    request
}

/// The HTTP request that `request` becomes, as seen by whatever answers it.
pub(crate) async fn sent(
    configure: impl FnOnce(OpenAiCompatible<Recorder>) -> OpenAiCompatible<Recorder>,
    url: &str,
    request: LlmRequest,
) -> http::Request<Full<Bytes>> {
    let (recorder, recorded) = recorder();
    let provider = configure(OpenAiCompatible::new(recorder, url).unwrap());
    provider.oneshot(request).await.unwrap_err();
    recorded.lock().unwrap().take().unwrap()
}

pub(crate) async fn sent_json(request: LlmRequest) -> String {
    json_of(sent(|provider| provider, URL, request).await).await
}

pub(crate) async fn json_of(sent: http::Request<Full<Bytes>>) -> String {
    use http_body_util::BodyExt;
    String::from_utf8(sent.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

type Recorded = Arc<std::sync::Mutex<Option<http::Request<Full<Bytes>>>>>;
pub(crate) type Recorder =
    tower::util::BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<Full<Bytes>>, Infallible>;

fn recorder() -> (Recorder, Recorded) {
    let recorded = Recorded::default();
    let record = Arc::clone(&recorded);
    let service = service_fn(move |request: http::Request<Full<Bytes>>| {
        *record.lock().unwrap() = Some(request);
        std::future::ready(Ok(http::Response::builder().status(500).body(Full::default()).unwrap()))
    });
    (Recorder::new(service), recorded)
}

pub(crate) type Canned<B> =
    OpenAiCompatible<BoxCloneSyncService<http::Request<Full<Bytes>>, http::Response<B>, Infallible>>;

/// A provider that answers everything with this.
pub(crate) fn answering<B>(status: u16, headers: &[(&str, &str)], body: B) -> Canned<B>
where
    B: Clone + Send + Sync + 'static,
{
    let headers: Vec<(HeaderName, HeaderValue)> =
        headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
    let http = service_fn(move |_| {
        let mut response = http::Response::new(body.clone());
        *response.status_mut() = status.try_into().unwrap();
        response.headers_mut().extend(headers.clone());
        std::future::ready(Ok(response))
    });
    OpenAiCompatible::new(BoxCloneSyncService::new(http), URL).unwrap().with_provider_name("acme")
}

pub(crate) fn text(text: impl Into<Bytes>) -> Full<Bytes> {
    Full::new(text.into())
}

/// A body of these pieces, one frame each, that counts what is taken of it.
#[derive(Clone)]
pub(crate) struct Pieces {
    next: std::collections::VecDeque<Piece>,
    polls: Arc<AtomicUsize>,
}

#[derive(Clone)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers,
    Break,
    /// Nothing more, and no end.
    Stall,
}

impl Pieces {
    pub(crate) fn new(pieces: impl IntoIterator<Item = Piece>) -> Self {
        Self { next: pieces.into_iter().collect(), polls: Arc::default() }
    }

    pub(crate) fn data<D: Into<Bytes>>(pieces: impl IntoIterator<Item = D>) -> Self {
        Self::new(pieces.into_iter().map(|data| Piece::Data(data.into())))
    }

    pub(crate) fn polls(&self) -> impl Fn() -> usize + use<> {
        let polls = Arc::clone(&self.polls);
        move || polls.load(Ordering::Relaxed)
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(match self.next.pop_front() {
            Some(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Some(Piece::Trailers) => Some(Ok(Frame::trailers(http::HeaderMap::new()))),
            Some(Piece::Break) => Some(Err(std::io::ErrorKind::ConnectionReset.into())),
            Some(Piece::Stall) => return Poll::Pending,
            None => None,
        })
    }
}

/// The chunks of a streamed answer, and the error that it ended in, if it did.
pub(crate) async fn chunks(response: LlmResponse) -> (Vec<StreamChunk>, Option<Error>) {
    let llm_layers::ResponseBody::Stream(mut stream) = response.body else { panic!("not a stream") };
    let mut chunks = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(chunk) => chunks.push(chunk),
            Err(error) => return (chunks, Some(error)),
        }
    }
    (chunks, None)
}

/// The error that a call ends in, before the head or in its stream.
pub(crate) async fn failure<P>(provider: P, request: LlmRequest) -> Error
where
    P: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    match provider.oneshot(request).await {
        Err(error) => error,
        Ok(response) => match response.body {
            llm_layers::ResponseBody::Complete(whole) => panic!("an answer: {whole:?}"),
            llm_layers::ResponseBody::Stream(_) => chunks(response).await.1.expect("an error"),
        },
    }
}

pub(crate) fn facts(error: &Error) -> &ProviderFailure {
    match error.kind() {
        ErrorKind::Provider(failure) => failure,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn said(failure: &ProviderFailure) -> &str {
    failure.body.as_ref().and_then(|body| str::from_utf8(body).ok()).unwrap_or_default()
}

pub(crate) fn boxed(error: impl Into<BoxError>) -> BoxError {
    error.into()
}

pub(crate) fn sse(events: &[&str]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

pub(crate) const HELLO: &str = r#"{"id":"c1","choices":[{"index":0,"delta":{"content":"Hello"}}]}"#;
pub(crate) const STOP: &str = r#"{"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
pub(crate) const USAGE: &str =
    r#"{"id":"c1","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#;
pub(crate) const ANSWER: &str = r#"{"id":"c1","choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}"#;
