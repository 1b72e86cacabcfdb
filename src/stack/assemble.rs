//! Puts the layers together, anew for each configuration.

use super::{
    BoxService,
    order::{Part, Place},
};
use crate::{
    Error, LlmRequest, LlmResponse,
    access::AccessLayer,
    alias::AliasLayer,
    cache::CacheLayer,
    concurrency::ConcurrencyLimitLayer,
    fallback::{Chains, FallbackLayer},
    providers::Providers,
    quota::QuotaLayer,
    telemetry::{Observer, TelemetryLayer},
    usage::{UsageLayer, UsageSink},
};
use std::{fmt, sync::Arc};
use tower::{
    ServiceBuilder,
    util::{BoxCloneSyncService, Either, option_layer},
};
use tower_layer::Layer;
use tower_service::Service;

/// The layers of one configuration, each of which may be used alone.
///
/// Taken from a [`Handle`](super::Handle), they are those of the configuration at that moment: they share stores, counters, cache and
/// permits with its stack, and go by its tables also when the stack has got new ones.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Layers {
    /// Bounds the calls in flight.
    pub concurrency: ConcurrencyLimitLayer,
    /// Resolves names of models.
    pub alias: AliasLayer,
    /// Tries again, and other models.
    pub fallback: FallbackLayer<Chains>,
    /// Refuses models that departments may not use; `None` if all may use all.
    pub access: Option<AccessLayer>,
    /// Records answers that cost nothing; `None` without a cache, or if nothing is recorded.
    pub hits: Option<UsageLayer<Arc<dyn UsageSink>>>,
    /// Gives answers again.
    pub cache: Option<CacheLayer>,
    /// Keeps departments within their limits.
    pub quota: Option<QuotaLayer>,
    /// Records calls.
    pub usage: Option<UsageLayer<Arc<dyn UsageSink>>>,
    /// All providers, with time limits and telemetry around each deployment.
    pub providers: Providers,
}

/// A layer of the host's.
type OwnLayer = Arc<dyn Fn(BoxService) -> BoxService + Send + Sync>;

/// Layers of the host's, the outermost first.
#[derive(Clone, Default)]
pub(super) struct Own(Vec<(Place, OwnLayer)>);

/// Those of one place.
#[derive(Clone)]
struct OwnAt(Vec<OwnLayer>);

impl Own {
    pub(super) fn add<L>(&mut self, place: Place, layer: L)
    where
        L: Layer<BoxService> + Send + Sync + 'static,
        L::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let into_error: fn(<L::Service as Service<LlmRequest>>::Error) -> Error = Into::into;
        let layer =
            move |inner| BoxCloneSyncService::new(tower::util::MapErr::new(layer.layer(inner), into_error));
        self.0.push((place, Arc::new(layer)));
    }

    fn at(&self, place: Place) -> OwnAt {
        let here = self.0.iter().filter(|(at, _)| *at == place);
        OwnAt(here.map(|(_, layer)| Arc::clone(layer)).collect())
    }

    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.0.iter().map(|(place, _)| *place)
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.places()).finish()
    }
}

/// Boxes only where there is something to put around it.
impl<S> Layer<S> for OwnAt
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    type Service = Either<BoxService, S>;

    fn layer(&self, inner: S) -> Self::Service {
        match &self.0[..] {
            [] => Either::Right(inner),
            layers => {
                let inner = BoxCloneSyncService::new(inner);
                Either::Left(layers.iter().rev().fold(inner, |inner, layer| layer(inner)))
            }
        }
    }
}

/// The documented order, as one type.
pub(super) fn documented<O: Observer>(
    layers: &Layers,
    own: &Own,
    order: &[Part],
    observer: &O,
) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send> + Clone + Send + Sync + use<O>
{
    let Layers { concurrency, alias, fallback, access, hits, cache, quota, usage, providers } =
        layers.clone();
    let has = |part| order.contains(&part);
    let telemetry = has(Part::Telemetry).then(|| TelemetryLayer::gateway(observer.clone()));
    ServiceBuilder::new()
        .layer(own.at(Place::Outermost))
        .layer(option_layer(telemetry))
        .layer(option_layer(has(Part::Concurrency).then_some(concurrency)))
        .layer(option_layer(has(Part::Alias).then_some(alias)))
        .layer(own.at(Place::Call))
        .layer(option_layer(has(Part::Fallback).then_some(fallback)))
        .layer(own.at(Place::Attempt))
        .layer(option_layer(access))
        .layer(option_layer(hits))
        .layer(option_layer(cache))
        .layer(own.at(Place::Miss))
        .layer(option_layer(quota))
        .layer(option_layer(usage))
        .layer(own.at(Place::Provider))
        .service(providers)
}

/// Another order: each layer boxed, for its place is only known now.
pub(super) fn reordered<O: Observer>(layers: &Layers, own: &Own, order: &[Part], observer: &O) -> BoxService {
    let Layers { concurrency, alias, fallback, access, hits, cache, quota, usage, providers } =
        layers.clone();
    let boxed = |service: Either<BoxService, BoxService>| match service {
        Either::Left(service) | Either::Right(service) => service,
    };
    let mut stack = BoxService::new(providers);
    for index in (0..=order.len()).rev() {
        stack = match order.get(index) {
            None => stack,
            Some(Part::Telemetry) => BoxService::new(TelemetryLayer::gateway(observer.clone()).layer(stack)),
            Some(Part::Concurrency) => BoxService::new(concurrency.layer(stack)),
            Some(Part::Alias) => BoxService::new(alias.layer(stack)),
            Some(Part::Fallback) => BoxService::new(fallback.layer(stack)),
            Some(Part::Access) => around(access.as_ref(), stack),
            Some(Part::Hits) => around(hits.as_ref(), stack),
            Some(Part::Cache) => around(cache.as_ref(), stack),
            Some(Part::Quota) => around(quota.as_ref(), stack),
            Some(Part::Usage) => around(usage.as_ref(), stack),
        };
        for place in Place::ALL.into_iter().rev().filter(|place| place.before(order) == index) {
            stack = boxed(own.at(place).layer(stack));
        }
    }
    stack
}

fn around<L>(layer: Option<&L>, stack: BoxService) -> BoxService
where
    L: Layer<BoxService>,
    L::Service: Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    match layer {
        Some(layer) => BoxService::new(layer.layer(stack)),
        None => stack,
    }
}
