//! A leaf that panics where its futures and its streams are dropped.

use futures_core::Stream;
use llm_layers::{ChunkStream, Error, LlmRequest, LlmResponse, ResponseBody, testing::Scripted};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tower::{Service, ServiceExt, service_fn};

pub(crate) struct Faulty<T>(pub(crate) Pin<Box<T>>);

impl<T: Future> Future for Faulty<T> {
    type Output = T::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<T: Stream> Stream for Faulty<T> {
    type Item = T::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<T> Drop for Faulty<T> {
    fn drop(&mut self) {
        // In the midst of another it would end the process.
        assert!(std::thread::panicking(), "a defect of the leaf's");
    }
}

pub(crate) fn faulty(
    provider: &Scripted,
) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send + 'static> + Clone + Send + 'static
{
    let provider = provider.clone();
    service_fn(move |request| {
        let call = provider.clone().oneshot(request);
        Faulty(Box::pin(async move {
            let mut answer = call.await?;
            if let ResponseBody::Stream(chunks) = answer.body {
                answer.body = ResponseBody::Stream(ChunkStream::new(Faulty(Box::pin(chunks))));
            }
            Ok(answer)
        }))
    })
}
