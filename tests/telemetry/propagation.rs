//! Trace headers in requests to providers.

use crate::{
    lifecycle::ask,
    seen::{Backend, Otel},
};
use bytes::Bytes;
use http_body_util::Full;
use llm_layers::{
    BoxError,
    provider::openai::OpenAiCompatible,
    telemetry::{SemConv, TelemetryLayer, otel},
};
use opentelemetry::{
    Context, KeyValue,
    baggage::BaggageExt,
    propagation::TextMapCompositePropagator,
    trace::{TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    propagation::{BaggagePropagator, TraceContextPropagator},
    trace::{Sampler, SdkTracerProvider},
};
use std::sync::{Arc, Mutex};
use tower::{Layer, ServiceExt, service_fn};

const ANSWER: &str = r#"{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}"#;

#[tokio::test]
async fn seed_25_those_who_opt_in_get_the_clients_span_and_no_baggage() {
    // Global, and for all tests of this file's process: with baggage, which must not go out.
    let both: Vec<Box<dyn opentelemetry::propagation::TextMapPropagator + Send + Sync>> =
        vec![Box::new(TraceContextPropagator::new()), Box::new(BaggagePropagator::new())];
    opentelemetry::global::set_text_map_propagator(TextMapCompositePropagator::new(both));

    let sent: Arc<Mutex<Vec<http::HeaderMap>>> = Arc::default();
    let leaf = || {
        let sent = Arc::clone(&sent);
        let http = service_fn(move |request: http::Request<Full<Bytes>>| {
            sent.lock().unwrap().push(request.headers().clone());
            async {
                let answer = http::Response::builder().header("content-type", "application/json");
                Ok::<_, BoxError>(answer.body(Full::new(Bytes::from(ANSWER)))?)
            }
        });
        OpenAiCompatible::new(http, "http://127.0.0.1:9/v1").unwrap()
    };
    let backend = Otel::new(SemConv::V1_41);
    let client = TelemetryLayer::client(backend.observer(), "openai");
    let _guard = Context::current_with_baggage([KeyValue::new("user", "ada")]).attach();

    client.layer(leaf()).oneshot(ask(false)).await.unwrap();
    client.layer(leaf().with_trace_headers()).oneshot(ask(false)).await.unwrap();
    let sent = std::mem::take(&mut *sent.lock().unwrap());
    assert_eq!(sent.len(), 2);
    assert!(!sent[0].contains_key("traceparent"), "nobody has asked for it");
    let parent = sent[1]["traceparent"].to_str().unwrap();
    let span = &backend.spans()[1];
    assert!(parent.contains(&format!("-{:016x}-01", span.id)), "{parent} is not {:x}", span.id);
    assert!(!sent[1].contains_key("baggage"));

    // What came in goes on, also where nothing is sampled.
    let mut incoming = http::HeaderMap::new();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    incoming.insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-00").parse().unwrap());
    incoming.insert("tracestate", "a=b".parse().unwrap());
    let unsampled =
        SdkTracerProvider::builder().with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOff))).build();
    let context = otel::extract(&incoming);
    let span = unsampled.tracer("test").start_with_context("unsampled", &context);
    let _inside = context.with_span(span).attach();
    let mut outgoing = http::HeaderMap::new();
    otel::inject(&mut outgoing);
    let parent = outgoing["traceparent"].to_str().unwrap();
    assert!(parent.starts_with(&format!("00-{trace}-")) && parent.ends_with("-00"), "{parent}");
    assert_eq!(outgoing["tracestate"], "a=b");
    assert_eq!(outgoing.len(), 2);
}
