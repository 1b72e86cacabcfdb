use super::{
    balance::{Health, InFlight, choose},
    builder::ProvidersBuilder,
    names::ProviderNames,
};
use crate::{
    End, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Observe, Progress, TimeoutPhase,
    body::{Summary, Watch, Watched},
    decision::Decisions,
};
use pin_project::pin_project;
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, Sleep};
use tower::util::BoxCloneSyncService;
use tower_service::Service;

type BoxProvider = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;
type BoxFuture = <BoxProvider as Service<LlmRequest>>::Future;

/// All providers, as one service. Cloning costs two reference counts.
#[derive(Clone)]
pub struct Providers {
    names: ProviderNames,
    providers: Arc<[Provider]>,
}

struct Provider {
    places: Vec<Place>,
    healths: Vec<Arc<Health>>,
}

/// A deployment, with how it has been doing. Clones share that.
#[derive(Clone)]
pub(crate) struct Place {
    pub(super) service: BoxProvider,
    pub(super) health: Arc<Health>,
    pub(super) marks_dispatch: bool,
}

#[cfg(feature = "config")]
impl Place {
    pub(crate) fn health(&self) -> &Arc<Health> {
        &self.health
    }
}

/// Response future of [`Providers`].
#[pin_project]
pub struct ResponseFuture {
    #[pin]
    state: State,
    progress: Progress,
    decisions: Decisions,
    provider: Option<Arc<str>>,
    model: ModelName,
    /// Until when the caller waits for a deployment to be ready; from then on its own time limits hold.
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

#[pin_project(project = StateProj)]
enum State {
    Refused(Option<Error>),
    Readying {
        service: BoxProvider,
        request: Option<LlmRequest>,
        in_flight: Option<InFlight>,
        marks_dispatch: bool,
    },
    Calling(#[pin] Watched<BoxFuture, InFlight>),
}

// ===== impl Providers =====

impl Providers {
    /// No providers yet.
    pub fn builder() -> ProvidersBuilder {
        ProvidersBuilder::new()
    }

    pub(super) fn new(names: ProviderNames, providers: impl Iterator<Item = Vec<Place>>) -> Self {
        let providers = providers.map(|places| {
            let healths = places.iter().map(|place| Arc::clone(&place.health)).collect();
            Provider { places, healths }
        });
        Self { names, providers: providers.collect() }
    }

    /// The providers' names, to tell [`FallbackLayer`](crate::fallback::FallbackLayer) and
    /// [`AliasTable`](crate::alias::AliasTable).
    pub fn names(&self) -> ProviderNames {
        self.names.clone()
    }

    /// Whether there is a provider at all.
    pub fn has_providers(&self) -> bool {
        !self.names.is_empty()
    }

    /// The provider that serves `model`, without asking it.
    pub fn provider_for(&self, model: &str) -> Option<&str> {
        self.names.provider_for(model)
    }

    fn route(&self, request: &mut LlmRequest) -> Result<(&Place, Arc<str>), Error> {
        if self.names.is_empty() {
            return Err(Error::new(ErrorKind::NoProvider));
        }
        let Some((at, bare)) = self.names.route(&request.model) else {
            return Err(Error::new(ErrorKind::ModelNotFound { model: request.model.clone() }));
        };
        let (provider, name) = (&self.providers[at], self.names.at(at));
        if bare.len() != request.model.len() {
            request.model = bare.into();
        }
        Ok((&provider.places[choose(&provider.healths)], name))
    }
}

/// Always ready: the chosen deployment's own readiness is waited for inside the call.
impl Service<LlmRequest> for Providers {
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        let (asked, progress) = (request.model.clone(), request.progress.clone());
        let decisions = request.decisions().clone();
        let deadline = request.context.deadline().map(Instant::from_std);
        let routed = self.route(&mut request).map(|(place, provider)| {
            let model = match asked.split() {
                Some(_) => asked.clone(),
                None => ModelName::in_provider(&provider, &asked),
            };
            let state = State::Readying {
                service: place.service.clone(),
                request: Some(request),
                in_flight: Some(InFlight::new(Arc::clone(&place.health))),
                marks_dispatch: place.marks_dispatch,
            };
            (state, provider, model)
        });
        let (state, provider, model) = match routed {
            Ok((state, provider, model)) => (state, Some(provider), model),
            Err(error) => (State::Refused(Some(error)), None, asked),
        };
        ResponseFuture { state, progress, decisions, provider, model, deadline, timer: None }
    }
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deployments = self.names.iter().zip(&*self.providers).map(|(name, p)| (name, p.places.len()));
        f.debug_map().entries(deployments).finish()
    }
}

// ===== impl ResponseFuture =====

impl Future for ResponseFuture {
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Refused(error) => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
                StateProj::Readying { service, request, in_flight, marks_dispatch } => {
                    let ready = match service.poll_ready(cx) {
                        Poll::Ready(ready) => ready,
                        Poll::Pending => ready!(poll_deadline(*this.deadline, this.timer, cx)),
                    };
                    if let Err(error) = ready {
                        if let Some(in_flight) = in_flight.take() {
                            in_flight.on_end(End::Failed(&error, &Summary::default()));
                        }
                        return Poll::Ready(Err(error));
                    }
                    let request = request.take().expect("taken only here, and the state changes");
                    let in_flight = in_flight.take().expect("taken only here, and the state changes");
                    if !*marks_dispatch {
                        request.progress.mark_dispatched();
                    }
                    let watch = Watch::new(in_flight);
                    State::Calling(watch.over(service.call(request)))
                }
                StateProj::Calling(future) => {
                    return Poll::Ready(match ready!(future.poll(cx)) {
                        Ok(mut answer) => {
                            answer.provider = this.provider.take();
                            answer.model = this.model.clone();
                            answer.decisions = mem::take(this.decisions);
                            Ok(answer)
                        }
                        Err(error) => {
                            let sent = error.was_sent(this.progress);
                            Err(error.with_dispatched(sent).with_decisions(this.decisions))
                        }
                    });
                }
            };
            this.state.set(next);
        }
    }
}

fn poll_deadline(
    deadline: Option<Instant>,
    timer: &mut Option<Pin<Box<Sleep>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Error>> {
    let Some(deadline) = deadline else { return Poll::Pending };
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
    timer.as_mut().poll(cx).map(|()| Err(Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Deadline })))
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Refused(_) => "Refused",
            State::Readying { .. } => "Readying",
            State::Calling(_) => "Calling",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
