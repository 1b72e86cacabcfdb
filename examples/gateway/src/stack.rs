//! The layers, in their documented order.

use crate::{
    cache::Cache,
    config::{Config, Kind},
    ledger::Ledger,
    quota::Quotas,
    telemetry::Telemetry,
};
use llm_layers::{
    Error, LlmRequest, LlmResponse,
    alias::AliasLayer,
    concurrency::ConcurrencyLimitLayer,
    fallback::FallbackLayer,
    provider::{
        Echo,
        openai::{OpenAiCompatible, hyper_client},
    },
    providers::Providers,
    telemetry::TelemetryLayer,
};
use std::error;
use tower::{
    ServiceBuilder,
    util::{BoxCloneSyncService, option_layer},
};

/// All layers as one service, boxed once.
pub(crate) type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

pub(crate) fn build(
    config: &Config,
    ledger: Option<&Ledger>,
    quotas: Option<&Quotas>,
    cache: Option<&Cache>,
    telemetry: &Telemetry,
) -> Result<Stack, Box<dyn error::Error>> {
    let (timeouts, client) = (config.timeouts, hyper_client());
    let (observer, capture) = (telemetry.observer(), telemetry.capture());
    let mut providers = Providers::builder().each(move |endpoint| {
        let client = TelemetryLayer::at(observer.clone(), endpoint).with_content(capture.clone());
        (client, timeouts)
    });
    for (name, provider) in &config.providers {
        match &provider.kind {
            Kind::Echo => providers = providers.provider(name.as_str(), Echo::new()),
            Kind::OpenAi(deployments) => {
                for deployment in deployments {
                    let mut leaf = OpenAiCompatible::new(client.clone(), &deployment.base_url)?
                        .with_provider_name(name.as_str());
                    if let Some(key) = &deployment.api_key {
                        leaf = leaf.with_api_key(key.reveal())?;
                    }
                    if deployment.trace_headers {
                        leaf = leaf.with_trace_headers();
                    }
                    providers = providers.deployment(name.as_str(), leaf.into_deployment());
                }
            }
        }
    }
    let providers = providers.build()?;

    let server = &config.server;
    let limit =
        ConcurrencyLimitLayer::new(server.max_in_flight).with_queue(server.max_waiting, server.max_wait);
    let fallback = FallbackLayer::new(config.chains.clone())
        .with_providers(providers.names())
        .with_max_attempts(config.max_attempts)
        .with_deadline(config.deadline);
    let stack = ServiceBuilder::new()
        .layer(telemetry.gateway())
        .layer(limit)
        .layer(AliasLayer::new(config.aliases.clone()))
        .layer(fallback)
        .layer(option_layer(quotas.map(Quotas::access)))
        .layer(option_layer(ledger.filter(|_| cache.is_some()).map(|ledger| ledger.hits(config))))
        .layer(option_layer(cache.map(Cache::layer)))
        .layer(option_layer(quotas.map(Quotas::layer)))
        .layer(option_layer(ledger.map(|ledger| ledger.layer(config))))
        .service(providers);
    Ok(BoxCloneSyncService::new(stack))
}
