use super::{
    content::CaptureContent,
    observer::{Role, Target},
    semconv,
    service::Telemetry,
};
use crate::{price::Prices, providers::Endpoint};
use std::{fmt, sync::Arc};
use tower_layer::Layer;

/// Applies [`Telemetry`] to a service.
///
/// See the [module docs](super) for where each of the two belongs.
#[derive(Clone)]
pub struct TelemetryLayer<O> {
    observer: O,
    settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) target: Arc<Target>,
    pub(super) capture: CaptureContent,
    pub(super) prices: Option<Prices>,
}

impl<O> TelemetryLayer<O> {
    fn new(observer: O, target: Target) -> Self {
        let settings = Settings { target: Arc::new(target), capture: CaptureContent::Nothing, prices: None };
        Self { observer, settings: Arc::new(settings) }
    }

    /// One client's span for each call to `provider`: around a leaf, or around each deployment.
    pub fn client(observer: O, provider: impl Into<Arc<str>>) -> Self {
        let prefix: Arc<str> = provider.into();
        Self::new(
            observer,
            Target {
                role: Role::Client,
                name: "".into(),
                provider: semconv::provider(&prefix),
                prefix,
                address: None,
                in_process: false,
                departments: false,
            },
        )
    }

    /// As [`client`](Self::client), with all that is known of a deployment: what
    /// [`Providers::builder().each(..)`](crate::providers::ProvidersBuilder::each) is told.
    pub fn at(observer: O, endpoint: &Endpoint) -> Self {
        let layer = Self::client(observer, Arc::clone(&endpoint.provider));
        match &endpoint.address {
            Some((host, port)) => layer.with_address(Arc::clone(host), *port),
            None => layer,
        }
    }

    /// One span for the whole call, whatever is tried: outermost. It has no model and no usage, which are on the
    /// clients' spans.
    pub fn gateway(observer: O) -> Self {
        let name = "gateway chat".into();
        let nobody: Arc<str> = "".into();
        Self::new(
            observer,
            Target {
                role: Role::Gateway,
                name,
                provider: Arc::clone(&nobody),
                prefix: nobody,
                address: None,
                in_process: false,
                departments: false,
            },
        )
    }

    fn target(&mut self) -> &mut Target {
        Arc::make_mut(&mut self.settings().target)
    }

    fn settings(&mut self) -> &mut Settings {
        Arc::make_mut(&mut self.settings)
    }

    /// Where the provider is, behind any proxies.
    #[must_use]
    pub fn with_address(mut self, host: impl Into<Arc<str>>, port: u16) -> Self {
        self.target().address = Some((host.into(), port));
        self
    }

    /// Names the gateway's span; `gateway chat` unless told. It should say nothing of the call.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.target().name = name.into();
        self
    }

    /// The model runs in this process: its span is an internal one.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        self.target().in_process = true;
        self
    }

    /// Puts the caller's departments on the gateway's span, as `llm_layers.department.id`.
    #[must_use]
    pub fn with_departments(mut self) -> Self {
        self.target().departments = true;
        self
    }

    /// Puts what is said on the client's span. **Prompts and answers then leave the process.**
    #[must_use]
    pub fn with_content(mut self, capture: CaptureContent) -> Self {
        self.settings().capture = capture;
        self
    }

    /// Puts what a call cost on the client's span, as `gen_ai.usage.cost` in US dollars: not part of the conventions,
    /// and read by several backends all the same. It is what [`usage`](crate::usage) records with the same prices: an estimate, where
    /// nothing was reported.
    #[must_use]
    pub fn with_cost(mut self, prices: impl Into<Prices>) -> Self {
        self.settings().prices = Some(prices.into());
        self
    }
}

impl<S, O: Clone> Layer<S> for TelemetryLayer<O> {
    type Service = Telemetry<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Telemetry::new(inner, self.observer.clone(), Arc::clone(&self.settings))
    }
}

impl<O> fmt::Debug for TelemetryLayer<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryLayer").field("target", &self.settings.target).finish_non_exhaustive()
    }
}
