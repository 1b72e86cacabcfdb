//! What is noted of an attempt to ask a provider.

use crate::{Error, ErrorClass, LlmResponse, Progress, usage::is_refusal};
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// One attempt to ask a provider, noted in the call's progress when there is a head, or none will come: whoever tries
/// again and shares that progress may hear of the last attempt alone.
pub(crate) struct Asked(Option<Progress>);

/// Response future of a service that asks a provider.
#[pin_project]
pub struct ResponseFuture<F> {
    #[pin]
    future: F,
    asked: Asked,
}

impl Asked {
    /// Before it is marked, so that a panic ends it too.
    pub(crate) fn new(progress: &Progress) -> Self {
        Self(Some(progress.clone()))
    }

    pub(crate) const fn over<F>(self, future: F) -> ResponseFuture<F> {
        ResponseFuture { future, asked: self }
    }

    pub(crate) fn polled(&mut self, polled: &mut Poll<Result<LlmResponse, Error>>) {
        if let Poll::Ready(ended) = polled {
            self.end(ended);
        }
    }

    /// Where an attempt that was not sent shares the progress with one that was, its error says so.
    pub(crate) fn end(&mut self, ended: &mut Result<LlmResponse, Error>) {
        let Some(progress) = self.0.take() else { return };
        match ended {
            Ok(answer) if answer.cache.is_hit() => {}
            Ok(_) => progress.mark_billable(),
            Err(error) if error.class() == Some(ErrorClass::Connect) && !error.dispatched() => {
                if progress.is_sent() {
                    *error = error.clone().with_dispatched(true);
                }
            }
            Err(error) if !error.was_sent(&progress) => {}
            Err(error) if is_refusal(error) && error.usage().is_none() => progress.mark_refused(),
            Err(_) => progress.mark_billable(),
        }
    }
}

/// Who leaves a provider that was asked has asked it.
impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(progress) = self.0.take().filter(Progress::is_dispatched) {
            progress.mark_billable();
        }
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
        // Looked at where it lies: an answer is large, and passes many of these.
        let mut polled = this.future.poll(cx).map_err(Into::into);
        this.asked.polled(&mut polled);
        polled
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").field("ended", &self.asked.0.is_none()).finish_non_exhaustive()
    }
}
