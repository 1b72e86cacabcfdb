//! One deployment of whatever type, asked by one box: of a service's clone, the request and the call together.

use super::balance::{Chosen, Health, InFlight};
use crate::{
    End, Error, LlmRequest, LlmResponse, Observe,
    body::{Summary, Watch, Watched},
    deadline::Deadline,
};
use pin_project::pin_project;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// A deployment, with how it has been doing. Clones share that.
#[derive(Clone)]
pub(crate) struct Place(Arc<dyn Dispatch>);

/// A deployment of this type.
struct Of<S> {
    service: S,
    health: Arc<Health>,
}

trait Dispatch: Send + Sync {
    fn health(&self) -> &Arc<Health>;

    fn ask(&self, request: LlmRequest, chosen: Chosen) -> Reply;
}

pub(super) type Reply = Pin<Box<dyn Replying + Send>>;

pub(super) trait Replying: Future<Output = Result<LlmResponse, Error>> {
    /// Whether the service was called: an error before that is of waiting for it.
    fn is_called(&self) -> bool;
}

#[pin_project]
struct Ask<S: Service<LlmRequest>> {
    #[pin]
    state: State<S>,
    /// Until when the caller waits for a deployment to be ready; from then on its own time limits hold.
    deadline: Deadline,
}

#[pin_project(project = StateProj)]
enum State<S: Service<LlmRequest>> {
    Readying { service: S, rest: Option<(LlmRequest, InFlight)> },
    Calling(#[pin] Watched<S::Future, InFlight>),
}

impl Place {
    pub(super) fn new<S>(service: S, health: Arc<Health>) -> Self
    where
        S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        Self(Arc::new(Of { service, health }))
    }

    pub(crate) fn health(&self) -> &Arc<Health> {
        self.0.health()
    }

    /// Waits until the service is ready, then calls it.
    pub(super) fn ask(&self, request: LlmRequest, chosen: Chosen) -> Reply {
        self.0.ask(request, chosen)
    }
}

impl<S> Dispatch for Of<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    fn health(&self) -> &Arc<Health> {
        &self.health
    }

    fn ask(&self, request: LlmRequest, chosen: Chosen) -> Reply {
        let deadline = Deadline::of(&request);
        let state =
            State::Readying { service: self.service.clone(), rest: Some((request, InFlight::new(chosen))) };
        Box::pin(Ask { state, deadline })
    }
}

impl<S> Replying for Ask<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>>,
{
    fn is_called(&self) -> bool {
        matches!(self.state, State::Calling(_))
    }
}

impl<S> Future for Ask<S>
where
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>>,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Readying { service, rest } => {
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready.map_err(Into::into),
                        Poll::Pending => Err(ready!(this.deadline.poll(cx))),
                    };
                    let (request, mut in_flight) =
                        rest.take().expect("taken only here, and the state changes");
                    if let Err(error) = ready {
                        in_flight.on_end(End::Failed(&error, &Summary::default()));
                        return Poll::Ready(Err(error));
                    }
                    in_flight.is_sent();
                    let watch = Watch::new(in_flight);
                    State::Calling(watch.over(service.call(request)))
                }
                StateProj::Calling(future) => return future.poll(cx),
            };
            this.state.set(next);
        }
    }
}
