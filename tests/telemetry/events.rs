//! What events tell: as much as the span of their call, and where a provider is that failed.

use crate::{
    lifecycle::{ask, chunk},
    seen::{Attr, Backend, Otel, Tracing},
};
use llm_layers::{
    Error, ErrorClass, LlmRequest, StreamChunk, TokenUsage,
    price::{Price, PriceBook, Rates},
    providers::{Deployment, Providers},
    telemetry::{CaptureContent, SemConv, TelemetryLayer, TracingObserver},
    testing::{Reply, Scripted, Step},
};
use opentelemetry::trace::{TracerProvider, noop::NoopTracer};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use std::{collections::BTreeMap, time::Duration};
use tower::{Layer, ServiceExt};

const DETAILS: &str = "gen_ai.client.inference.operation.details";

/// Two choices, priced, and cut off: what is computed only for whoever asks is in it.
fn asked() -> LlmRequest {
    let request = ask(true);
    let body = request.body.with("n", 2).unwrap();
    LlmRequest::new("openai/gpt-4o-mini", body).with_context(request.context)
}

fn cut() -> Reply {
    let usage = Step::Chunk(StreamChunk::usage_only(TokenUsage::new(20, 7)));
    let broken = Step::Fail(Error::provider(ErrorClass::Transport, "openai", "gpt-4o-mini"));
    Reply::stream([Step::Wait(Duration::from_secs(1)), chunk("sesame-answer-19bd"), usage, broken])
}

fn told(attribute: &Attr) -> String {
    match attribute {
        Attr::Str(text) => text.clone(),
        Attr::Bool(flag) => format!("Boolean({flag})"),
        Attr::Strs(texts) => format!("{texts:?}"),
        other => format!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_event_of_what_was_said_has_all_that_the_span_has_sampled_or_not() {
    for semconv in [SemConv::V1_41, SemConv::Latest] {
        let backend = Otel::new(semconv);
        let unsampled = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
        let price = Price::new(Rates::per_million("1", "2").unwrap());
        let prices = PriceBook::of("test", [("openai/gpt-4o-mini", price)]).unwrap();
        for observer in [
            backend.observer(),
            backend.observer_by(unsampled.tracer("test")),
            backend.observer_by(NoopTracer::new()),
        ] {
            let layer = TelemetryLayer::client(observer, "openai")
                .with_address("api.example", 443)
                .with_cost(prices.clone())
                .with_content(CaptureContent::span_and_event(2000));
            let answer = layer.layer(Scripted::new().reply(cut())).oneshot(asked()).await.unwrap();
            answer.text().await.unwrap_err();
        }
        let spans = backend.spans();
        assert_eq!(spans.len(), 1, "{spans:#?}");
        assert!(spans[0].get("gen_ai.usage.cost").is_some(), "{spans:#?}");
        assert_eq!(spans[0].texts("gen_ai.response.finish_reasons"), ["error", "error"]);
        let expected: BTreeMap<_, _> =
            spans[0].attributes.iter().map(|(name, value)| (name.clone(), told(value))).collect();
        let events = backend.events().into_iter().filter(|(name, ..)| name == DETAILS);
        let events: Vec<_> = events.map(|(.., attributes)| attributes).collect();
        assert_eq!(events, [expected.clone(), expected.clone(), expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_warning_without_a_span_says_where_the_provider_is_that_failed() {
    let backend = Tracing::new(SemConv::V1_41);
    let down = Error::provider(ErrorClass::Unavailable, "openai", "gpt-4o-mini");
    for (host, port) in [("one.example", 443), ("two.example", 8443)] {
        let deployment = Deployment::new(Scripted::new().reply(Reply::error(down.clone())));
        let providers = Providers::builder()
            .each(|endpoint| TelemetryLayer::at(TracingObserver::events_only(), endpoint))
            .deployment("openai", deployment.with_address(host, port))
            .build()
            .unwrap();
        providers.oneshot(ask(false)).await.unwrap_err();
        let events = backend.events();
        let last = events.lines().last().unwrap();
        assert!(last.starts_with("WARN gen_ai.client.operation.exception"), "{last}");
        for (name, value) in [
            ("gen_ai.provider.name", r#"Str("openai")"#.to_owned()),
            ("gen_ai.request.model", r#"Str("gpt-4o-mini")"#.to_owned()),
            ("server.address", format!("Str({host:?})")),
            ("server.port", format!("Int({port})")),
        ] {
            assert!(last.contains(&format!("{name:?}: {value}")), "{name} in {last}");
        }
    }
}
