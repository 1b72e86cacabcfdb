use super::{Genai, answer, dialect::Wire, fault, frames::Frames, request, stream::Chunks};
use crate::{
    ChunkStream, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress,
    provider::{dispatch::Asked, openai::origin::Origin},
};
use ::genai::{
    ModelIden, ServiceTarget,
    chat::{ChatStream, ChatStreamEvent},
    resolver::Endpoint,
};
use futures_core::Stream;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Response future of [`Genai`]. Nothing is sent before it is polled; dropping it hangs up.
pub struct ResponseFuture(BoxFuture<Result<LlmResponse, Error>>);

impl ResponseFuture {
    pub(super) fn new(provider: Genai, request: LlmRequest) -> Self {
        let mut asked = Asked::new(&request.progress);
        Self(Box::pin(async move {
            let mut ended = answer(provider, request).await;
            asked.end(&mut ended);
            ended
        }))
    }
}

async fn answer(provider: Genai, request: LlmRequest) -> Result<LlmResponse, Error> {
    let Some(wire) = provider.dialect.wire(&request.model) else {
        return Err(Error::new(ErrorKind::ModelNotFound { model: request.model }));
    };
    let LlmRequest { ref model, ref progress, ref body, .. } = request;
    let request::Ask { chat, mut options } = request::translate(wire, model, &request)?;
    options.extra_headers = Some(provider.headers(&request).into());
    let target = ServiceTarget {
        endpoint: Endpoint::from_owned(provider.endpoint.uri.to_string()),
        auth: provider.key.clone(),
        // Whole: genai is to infer nothing from a name.
        model: ModelIden::new(provider.dialect.adapter(), model.as_str()),
    };
    let mut origin = Origin::new(Arc::clone(&provider.endpoint), model.clone());
    if !body.is_streaming() {
        progress.mark_dispatched();
        let answered = provider.client.exec_chat(target, chat, Some(&options)).await;
        let answered = answered.map_err(|error| fault::of(&mut origin, error))?;
        return Ok(LlmResponse::new(model.clone(), answer::completion(wire, &origin, answered)?));
    }
    let frames = Arc::new(Frames::default());
    options.raw_frame_sink = Some(Arc::clone(&frames) as _);
    let stream = provider.client.exec_chat_stream(target, chat, Some(&options)).await;
    let stream = stream.map_err(|error| fault::of(&mut origin, error))?.stream;
    let (stream, first) = begun(wire, stream, &frames, progress).await;
    let first = first.transpose().map_err(|error| fault::of_stream(&mut origin, &frames, error))?;
    let model = ModelName::clone(model);
    Ok(LlmResponse::new(model, ChunkStream::new(Chunks::new(wire, stream, first, frames, origin))))
}

/// Sends the request: a stream of genai's does so when it is first polled, and says only then whether it was refused.
/// Waits until the provider has said anything.
async fn begun(
    wire: Wire,
    mut stream: ChatStream,
    frames: &Frames,
    progress: &Progress,
) -> (ChatStream, Option<Result<ChatStreamEvent, ::genai::Error>>) {
    progress.mark_dispatched();
    let first = std::future::poll_fn(|cx| {
        loop {
            match Pin::new(&mut stream).poll_next(cx) {
                // Made by genai before it has sent anything.
                Poll::Ready(Some(Ok(ChatStreamEvent::Start))) => {}
                Poll::Ready(Some(Err(error))) if fault::is_of_nothing(wire, frames, &error) => {}
                Poll::Ready(Some(event)) => return Poll::Ready(Some(event)),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending if frames.any() => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let first = first.await;
    (stream, first)
}

impl Future for ResponseFuture {
    type Output = Result<LlmResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
