//! Calls that end before there is a head: what was decided until then is told all the same.

use crate::{
    lifecycle::ask,
    seen::{Attr, Backend, Metric, Otel, Tracing},
};
use llm_layers::{
    Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ServiceBuilderExt as _,
    alias::AliasTable,
    cache::{CacheLayer, CachePolicy, CacheSecret, MokaStore},
    fallback::{Chains, FallbackLayer},
    providers::Providers,
    telemetry::{OtelObserver, SemConv, TelemetryLayer},
    testing::{Reply, Scripted, Step},
};
use opentelemetry::trace::{TracerProvider, noop::NoopTracer};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::timeout;
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

const SECOND: Duration = Duration::from_secs(1);

fn stack<O: llm_layers::telemetry::Observer>(observer: O, provider: Scripted) -> Stack {
    let each = observer.clone();
    let providers = Providers::builder()
        .each(move |endpoint| TelemetryLayer::at(each.clone(), endpoint))
        .provider("p", provider)
        .build()
        .unwrap();
    let aliases = AliasTable::builder().alias("fast", "p/a").build().unwrap();
    let chains = Chains::builder().chain("p/a", ["p/b", "p/c"]).build().unwrap();
    let stack = ServiceBuilder::new()
        .telemetry(TelemetryLayer::gateway(observer))
        .alias(aliases)
        .layer(FallbackLayer::new(chains))
        .layer(CacheLayer::new(MokaStore::new(1 << 20), CachePolicy::new(CacheSecret::new([7; 32]))))
        .service(providers);
    Stack::new(stack)
}

fn fast() -> LlmRequest {
    LlmRequest::new("fast", ask(false).body).with_context(ask(false).context)
}

fn down() -> Reply {
    Reply::error(Error::provider(ErrorClass::Unavailable, "p", "m")).after([Step::Wait(SECOND)])
}

fn hanging() -> Reply {
    Reply::text("hi").after([Step::Gate])
}

/// The first attempt fails, the second hangs, and the caller goes.
async fn leaves(stack: Stack) {
    timeout(10 * SECOND, stack.oneshot(fast())).await.unwrap_err();
}

async fn the_callers_leave_behind<B: Backend>(backend: &B) {
    leaves(stack(backend.observer(), Scripted::new().reply(down()).reply(hanging()))).await;
    let spans = backend.spans();
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let gateway = spans.iter().find(|span| span.kind == "internal").unwrap();
    assert_eq!(gateway.text("error.type"), Some("cancelled"));
    assert_eq!(gateway.int("llm_layers.attempts"), Some(2));
    assert_eq!(gateway.get("llm_layers.cache.hit"), Some(&Attr::Bool(false)));
    let told: Vec<_> =
        gateway.events.iter().map(|(name, _)| name.trim_start_matches("llm_layers.")).collect();
    assert_eq!(told, ["alias", "cache", "attempt", "attempt"]);
    let text = |text: &str| Some(Attr::Str(text.to_owned()));
    assert_eq!(gateway.events[1].1.get("llm_layers.cache.result").cloned(), text("miss"));
    let attempts = gateway.events[2..].iter();
    let attempts: Vec<_> = attempts
        .map(|(_, event)| (event.get("llm_layers.model").cloned(), event.get("llm_layers.failure").cloned()))
        .collect();
    let expected = [(text("p/a"), text("unavailable")), (text("p/b"), text("cancelled"))];
    assert_eq!(attempts, expected);
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_before_the_caller_left_is_on_the_gateways_span_otel() {
    the_callers_leave_behind(&Otel::new(SemConv::V1_41)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_before_the_caller_left_is_on_the_gateways_span_tracing() {
    the_callers_leave_behind(&Tracing::new(SemConv::V1_41)).await;
}

/// The sums of a metric's series, by one label.
fn by(metrics: &BTreeMap<String, Metric>, name: &str, label: &str) -> Vec<(String, f64)> {
    let points = metrics.get(name).map(|metric| metric.points.clone()).unwrap_or_default();
    let mut sums: Vec<_> = points
        .iter()
        .map(|point| match point.attributes.get(label) {
            Some(Attr::Str(text)) => {
                (text.clone(), if point.bounds.is_empty() { point.sum } else { point.count as f64 })
            }
            other => panic!("{label} is {other:?}"),
        })
        .collect();
    sums.sort_by(|a, b| a.0.cmp(&b.0));
    sums
}

fn one(name: &str, sum: f64) -> Vec<(String, f64)> {
    vec![(name.to_owned(), sum)]
}

/// Counted alike, whatever becomes of spans.
fn observers(backend: &Otel) -> [OtelObserver; 3] {
    let unsampled = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
    [
        backend.observer(),
        backend.observer_by(unsampled.tracer("test")),
        backend.observer_by(NoopTracer::new()),
    ]
}

#[tokio::test(start_paused = true)]
async fn fallbacks_and_the_cache_are_counted_though_the_caller_left() {
    let backend = Otel::new(SemConv::V1_41);
    for (calls, observer) in (1..).zip(observers(&backend)) {
        leaves(stack(observer, Scripted::new().reply(down()).reply(hanging()))).await;
        let (metrics, calls) = (backend.metrics(), f64::from(calls));
        // The last attempt had nothing to follow it.
        let fallbacks = by(&metrics, "llm_layers.fallbacks", "llm_layers.fallback.reason");
        assert_eq!(fallbacks, one("unavailable", calls));
        let cache = by(&metrics, "llm_layers.cache.requests", "llm_layers.cache.result");
        assert_eq!(cache, one("miss", calls));
        let duration = by(&metrics, "llm_layers.gateway.duration", "llm_layers.cache.result");
        assert_eq!(duration, one("miss", calls));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_did_is_counted_of_calls_that_fail() {
    let backend = Otel::new(SemConv::V1_41);
    for (calls, observer) in (1..).zip(observers(&backend)) {
        let provider = Scripted::new().reply(down()).reply(down()).reply(down());
        stack(observer, provider).oneshot(fast()).await.unwrap_err();
        let (metrics, calls) = (backend.metrics(), f64::from(calls));
        let cache = by(&metrics, "llm_layers.cache.requests", "llm_layers.cache.result");
        assert_eq!(cache, one("miss", calls));
        let duration = by(&metrics, "llm_layers.gateway.duration", "llm_layers.cache.result");
        assert_eq!(duration, one("miss", calls));
    }
    let spans = backend.spans();
    let gateway = spans.iter().find(|span| span.kind == "internal").unwrap();
    assert_eq!(gateway.get("llm_layers.cache.hit"), Some(&Attr::Bool(false)));
    assert_eq!(gateway.int("llm_layers.attempts"), Some(3));
}

/// A time limit of the program's own, between the two: its error knows nothing of attempts.
#[tokio::test(start_paused = true)]
async fn attempts_are_told_where_the_error_does_not_know_them() {
    let backend = Otel::new(SemConv::V1_41);
    let inner = stack((), Scripted::new().reply(down()).reply(hanging()));
    let service = ServiceBuilder::new()
        .telemetry(TelemetryLayer::gateway(backend.observer()))
        .map_err(Error::from)
        .timeout(10 * SECOND)
        .service(inner);
    let error = service.oneshot(fast()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "{error:?}");
    let gateway = &backend.spans()[0];
    assert_eq!(gateway.int("llm_layers.attempts"), Some(2));
    assert_eq!(gateway.events.iter().filter(|(name, _)| name == "llm_layers.attempt").count(), 2);
    let fallbacks = by(&backend.metrics(), "llm_layers.fallbacks", "llm_layers.fallback.reason");
    assert_eq!(fallbacks, one("unavailable", 1.0));
}

#[tokio::test(start_paused = true)]
async fn a_fallback_in_a_fallback_tells_of_each_attempt_in_its_order() {
    let backend = Otel::new(SemConv::V1_41);
    let provider = Scripted::new().reply(down()).reply(down()).reply(down()).reply(hanging());
    let inner = stack((), provider);
    let chains = Chains::builder().chain("p/x", ["p/a"]).retries(0).build().unwrap();
    let service = ServiceBuilder::new()
        .telemetry(TelemetryLayer::gateway(backend.observer()))
        .layer(FallbackLayer::new(chains))
        .service(inner);
    let request = LlmRequest::new("p/x", ask(false).body);
    timeout(10 * SECOND, service.oneshot(request)).await.unwrap_err();
    let gateway = &backend.spans()[0];
    let attempts = gateway.events.iter().filter(|(name, _)| name == "llm_layers.attempt");
    let models: Vec<_> = attempts.map(|(_, event)| event["llm_layers.model"].clone()).collect();
    assert_eq!(models, ["p/x", "p/a", "p/b", "p/c"].map(|model| Attr::Str(model.to_owned())));
}

/// Without a fallback nobody counts attempts: there was one if a provider was asked.
#[tokio::test(start_paused = true)]
async fn without_a_fallback_there_is_an_attempt_if_a_provider_was_asked() {
    let backend = Otel::new(SemConv::V1_41);
    let attempts = async |reply: Reply| {
        let providers = Providers::builder().provider("p", Scripted::new().reply(reply)).build().unwrap();
        let layer = TelemetryLayer::gateway(backend.observer());
        let request = LlmRequest::new("p/a", ask(false).body);
        let _ = timeout(10 * SECOND, tower::Layer::layer(&layer, providers).oneshot(request)).await;
        backend.spans().last().unwrap().int("llm_layers.attempts")
    };
    assert_eq!(attempts(Reply::text("hi")).await, Some(1));
    assert_eq!(attempts(down()).await, Some(1));
    assert_eq!(attempts(hanging()).await, Some(1));

    let layer = TelemetryLayer::gateway(backend.observer());
    // One request, that is sent twice: the second is refused before anybody is asked.
    let refuse =
        service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(Error::new(ErrorKind::Overloaded)) });
    let request = LlmRequest::new("p/a", ask(false).body);
    request.progress.mark_dispatched();
    tower::Layer::layer(&layer, refuse).oneshot(request).await.unwrap_err();
    assert_eq!(backend.spans().last().unwrap().int("llm_layers.attempts"), Some(0));
}
