use super::{
    balance::{Chosen, Health},
    builder::ProvidersBuilder,
    names::ProviderNames,
    place::{Place, Reply},
};
use crate::{Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, decision::Decisions};
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// All providers, as one service. Cloning costs two reference counts.
#[derive(Clone)]
pub struct Providers {
    names: ProviderNames,
    providers: Arc<[Provider]>,
}

struct Provider {
    places: Vec<Place>,
    healths: Arc<[Arc<Health>]>,
}

/// Response future of [`Providers`].
pub struct ResponseFuture {
    state: State,
    progress: Progress,
    decisions: Decisions,
    provider: Option<Arc<str>>,
    model: ModelName,
    chosen: Option<Chosen>,
}

enum State {
    Refused(Option<Error>),
    Asking(Reply),
}

// ===== impl Providers =====

impl Providers {
    /// No providers yet.
    pub fn builder() -> ProvidersBuilder {
        ProvidersBuilder::new()
    }

    pub(super) fn new(names: ProviderNames, providers: impl Iterator<Item = Vec<Place>>) -> Self {
        let providers = providers.map(|places| {
            let healths = places.iter().map(|place| Arc::clone(place.health())).collect();
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

    fn route(&self, request: &mut LlmRequest) -> Result<(&Place, Chosen, Arc<str>), Error> {
        let model = &mut request.model;
        if self.names.is_empty() {
            return Err(Error::new(ErrorKind::NoProvider));
        }
        let Some((at, bare)) = self.names.route(model) else {
            return Err(Error::new(ErrorKind::ModelNotFound { model: model.clone() }));
        };
        let (provider, name) = (&self.providers[at], self.names.at(at));
        if bare.len() != model.len() {
            *model = bare.into();
        }
        let chosen = Chosen::of(&provider.healths, request.failed());
        Ok((&provider.places[chosen.at()], chosen, name))
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
        let (state, provider, model, chosen) = match self.route(&mut request) {
            Ok((place, chosen, provider)) => {
                request.set_provider(&provider);
                let model = match asked.split() {
                    Some(_) => asked,
                    None => ModelName::in_provider(&provider, &asked),
                };
                let kept = chosen.among_others();
                (State::Asking(place.ask(request, chosen)), Some(provider), model, kept)
            }
            Err(error) => (State::Refused(Some(error)), None, asked, None),
        };
        ResponseFuture { state, progress, decisions, provider, model, chosen }
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
        let this = self.get_mut();
        let reply = match &mut this.state {
            State::Refused(error) => {
                return Poll::Ready(Err(error.take().expect("polled after completion")));
            }
            State::Asking(reply) => reply,
        };
        let mut polled = reply.as_mut().poll(cx);
        if let Poll::Ready(Ok(answer)) = &mut polled {
            answer.provider = this.provider.take();
            answer.model.clone_from(&this.model);
            answer.decisions = mem::take(&mut this.decisions);
            if let Some(chosen) = this.chosen.take() {
                answer.set_chosen(chosen);
            }
            return polled;
        }
        polled.map_err(|error| {
            let error = match this.chosen.take() {
                Some(chosen) => error.with_chosen(chosen),
                None => error,
            };
            if !reply.is_called() {
                return error;
            }
            let sent = error.was_sent(&this.progress);
            error.with_dispatched(sent).with_decisions(&this.decisions)
        })
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Refused(_) => "Refused",
            State::Asking(reply) if reply.is_called() => "Calling",
            State::Asking(_) => "Readying",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
