use super::{
    Leaf,
    balance::{CoolDown, Health},
    names::ProviderNames,
    place::Place,
    service::Providers,
};
use crate::{Error, LlmRequest, LlmResponse};
use std::{collections::BTreeMap, fmt, sync::Arc};
use tower::layer::util::{Identity, Stack};
use tower_layer::Layer;
use tower_service::Service;

/// One place where a provider's models are served.
#[derive(Debug, Clone)]
pub struct Deployment<S> {
    service: S,
    address: Option<(Arc<str>, u16)>,
    marks_dispatch: bool,
}

/// Which deployment a layer is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Endpoint {
    /// The provider's name.
    pub provider: Arc<str>,
    /// The host and port of this deployment, if it has any.
    pub address: Option<(Arc<str>, u16)>,
}

/// Builds [`Providers`].
#[must_use]
pub struct ProvidersBuilder<F = fn(&Endpoint) -> Identity> {
    each: F,
    cool_down: CoolDown,
    providers: BTreeMap<Arc<str>, Vec<Place>>,
}

/// A provider's name that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProvidersError {
    name: Arc<str>,
}

impl<S> Deployment<S> {
    /// Served by `service`.
    pub const fn new(service: S) -> Self {
        Self { service, address: None, marks_dispatch: false }
    }

    /// Where it really is, for telemetry.
    #[must_use]
    pub fn with_address(mut self, host: impl Into<Arc<str>>, port: u16) -> Self {
        self.address = Some((host.into(), port));
        self
    }

    /// The service itself marks the [progress](crate::Progress) just before bytes go out. Without this, being
    /// called counts as being asked.
    #[must_use]
    pub const fn marking_dispatch(mut self) -> Self {
        self.marks_dispatch = true;
        self
    }

    /// The same, with its service in something else.
    #[cfg(feature = "config")]
    pub(crate) fn map_service<T>(self, into: impl FnOnce(S) -> T) -> Deployment<T> {
        Deployment { service: into(self.service), address: self.address, marks_dispatch: self.marks_dispatch }
    }

    /// What a layer around it is told.
    pub(crate) fn endpoint(&self, provider: Arc<str>) -> Endpoint {
        Endpoint { provider, address: self.address.clone() }
    }

    /// With a layer around it, and how it has been doing.
    pub(crate) fn into_place<L>(self, layer: &L, health: Arc<Health>) -> Place
    where
        L: Layer<Leaf<S>>,
        L::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        Place::new(layer.layer(Leaf::around(self.service, self.marks_dispatch)), health)
    }
}

impl ProvidersBuilder {
    pub(super) fn new() -> Self {
        Self { each: |_| Identity::new(), cool_down: CoolDown::default(), providers: BTreeMap::new() }
    }
}

impl<F> ProvidersBuilder<F> {
    /// Puts a layer around each deployment that is added from now on, inside of those that were given before.
    pub fn each<G, L, M>(self, layer: G) -> ProvidersBuilder<impl Fn(&Endpoint) -> Stack<M, L>>
    where
        F: Fn(&Endpoint) -> L,
        G: Fn(&Endpoint) -> M,
    {
        let Self { each, cool_down, providers } = self;
        let each = move |endpoint: &Endpoint| Stack::new(layer(endpoint), each(endpoint));
        ProvidersBuilder { each, cool_down, providers }
    }

    /// When a deployment that is added from now on is left alone.
    pub const fn cool_down(mut self, cool_down: CoolDown) -> Self {
        self.cool_down = cool_down;
        self
    }

    /// Adds a provider; under the name of one that is there already, a further deployment of it.
    pub fn provider<S, L>(self, name: impl Into<Arc<str>>, service: S) -> Self
    where
        F: Fn(&Endpoint) -> L,
        L: Layer<Leaf<S>>,
        L::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.deployment(name, Deployment::new(service))
    }

    /// Adds a deployment of the provider `name`.
    pub fn deployment<S, L>(mut self, name: impl Into<Arc<str>>, deployment: Deployment<S>) -> Self
    where
        F: Fn(&Endpoint) -> L,
        L: Layer<Leaf<S>>,
        L::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let name = name.into();
        let layer = (self.each)(&deployment.endpoint(Arc::clone(&name)));
        let place = deployment.into_place(&layer, Arc::new(Health::new(self.cool_down)));
        self.providers.entry(name).or_default().push(place);
        self
    }

    /// Adds a deployment that is ready to be asked.
    #[cfg(feature = "config")]
    pub(crate) fn place(mut self, name: impl Into<Arc<str>>, place: Place) -> Self {
        self.providers.entry(name.into()).or_default().push(place);
        self
    }

    /// The finished service. Without a provider it answers [`NoProvider`](crate::ErrorKind::NoProvider).
    ///
    /// # Errors
    ///
    /// A provider's name that is empty or has a slash in it.
    pub fn build(self) -> Result<Providers, ProvidersError> {
        match self.providers.keys().find(|name| name.trim().is_empty() || name.contains('/')) {
            Some(name) => Err(ProvidersError { name: Arc::clone(name) }),
            None => {
                // Both are sorted by name, so that places line up.
                let names = ProviderNames::new(self.providers.keys().cloned());
                Ok(Providers::new(names, self.providers.into_values()))
            }
        }
    }
}

impl<F> fmt::Debug for ProvidersBuilder<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProvidersBuilder").field("providers", &self.providers.keys()).finish_non_exhaustive()
    }
}

impl std::error::Error for ProvidersError {}

impl fmt::Display for ProvidersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "provider name {:?} is empty or has a slash in it", self.name)
    }
}
