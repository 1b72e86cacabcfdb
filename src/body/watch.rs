use super::{
    observe::{End, Observe, Summary},
    stream::panicked,
};
use crate::{Error, LlmResponse, caught::contained};
use pin_project::{pin_project, pinned_drop};
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// Holds an [observer](Observe) from `call` until there is an answer to hand it to.
///
/// Make it before you call the inner service, so that a panic in there ends it too:
///
/// ```
/// # use llm_layers::{Error, LlmRequest, LlmResponse, body::{End, Observe, Watch, Watched}};
/// # use std::task::{Context, Poll};
/// # use tower_service::Service;
/// # struct Layered<S> { inner: S }
/// struct Tally;
///
/// impl Observe for Tally {
///     fn on_end(self, end: End<'_>) {
///         eprintln!("{end:?}");
///     }
/// }
///
/// impl<S> Service<LlmRequest> for Layered<S>
/// where
///     S: Service<LlmRequest, Response = LlmResponse>,
///     S::Error: Into<Error>,
/// {
///     type Response = LlmResponse;
///     type Error = Error;
///     type Future = Watched<S::Future, Tally>;
///
///     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
///         self.inner.poll_ready(cx).map_err(Into::into)
///     }
///
///     fn call(&mut self, request: LlmRequest) -> Self::Future {
///         let watch = Watch::new(Tally);
///         watch.over(self.inner.call(request))
///     }
/// }
/// ```
pub struct Watch<O: Observe> {
    observer: Option<O>,
    /// In the hands of the service below: an end that comes now is a panic's.
    inside: bool,
}

/// Response future of a layer that observes: see [`Watch`].
#[pin_project(PinnedDrop)]
pub struct Watched<F, O: Observe> {
    /// There until it has failed, or is dropped.
    #[pin]
    future: Option<F>,
    watch: Watch<O>,
}

impl<O: Observe> Watch<O> {
    /// From now on `observer` learns how the call ends.
    pub const fn new(observer: O) -> Self {
        Self { observer: Some(observer), inside: true }
    }

    /// Watches `future`, the inner service's.
    pub fn over<F>(mut self, future: F) -> Watched<F, O> {
        self.inside = false;
        Watched { future: Some(future), watch: self }
    }

    fn end(&mut self, end: End<'_>) {
        if let Some(observer) = self.observer.take() {
            observer.on_end(end);
        }
    }
}

impl<F, O, E> Future for Watched<F, O>
where
    F: Future<Output = Result<LlmResponse, E>>,
    E: Into<Error>,
    O: Observe,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        this.watch.inside = true;
        // Looked at where it lies: an answer is large, and passes many of these.
        let future = this.future.as_mut().as_pin_mut().expect("it is there until it has failed");
        let mut polled = future.poll(cx).map_err(Into::into);
        this.watch.inside = false;
        match &mut polled {
            Poll::Pending => {}
            Poll::Ready(Ok(response)) => {
                if let Some(observer) = &mut this.watch.observer {
                    observer.on_head(response);
                }
                if let Some(observer) = this.watch.observer.take() {
                    response.add_observer(observer);
                }
            }
            Poll::Ready(Err(error)) => {
                // What a hedge below still has under way ends first, for it is part of what is told.
                contained(|| this.future.set(None));
                this.watch.end(End::Failed(error, &Summary::default()));
            }
        }
        polled
    }
}

#[pinned_drop]
impl<F, O: Observe> PinnedDrop for Watched<F, O> {
    fn drop(self: Pin<&mut Self>) {
        let mut future = self.project().future;
        contained(|| future.set(None));
    }
}

impl<O: Observe> Drop for Watch<O> {
    fn drop(&mut self) {
        match self.inside {
            true => self.end(End::Failed(&panicked(), &Summary::default())),
            false => self.end(End::Abandoned(&Summary::default())),
        }
    }
}

impl<O: Observe> fmt::Debug for Watch<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("ended", &self.observer.is_none()).finish_non_exhaustive()
    }
}

impl<F, O: Observe> fmt::Debug for Watched<F, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("watch", &self.watch).finish_non_exhaustive()
    }
}
