//! The conventions' metrics and our own: names, units, bounds, labels, and how many series there are.

use crate::{
    lifecycle::{SECRETS, ask},
    seen::{Attr, Backend, Metric, Otel},
};
use llm_layers::{
    BoxError, CacheStatus, ChatBody, Completion, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest,
    LlmResponse, ProviderFailure, RequestContext, StreamChunk, TokenUsage,
    fallback::{Chains, FallbackLayer},
    policies::{DepartmentPolicy, PolicyTable},
    price::Prices,
    providers::{Deployment, Providers},
    quota::{Limits, MemoryStore, QuotaLayer},
    telemetry::{
        OtelObserver, SemConv, TelemetryLayer,
        otel::{observe_queue, observe_quota},
    },
    testing::{Reply, Scripted, Step},
    usage::{QueueOptions, QueueSink, UsageEvent, UsageLayer, UsageStore},
};
use opentelemetry::{
    KeyValue,
    metrics::{
        Counter, Histogram, HistogramBuilder, InstrumentBuilder, InstrumentProvider, Meter, SyncInstrument,
    },
    trace::noop::NoopTracer,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn};

const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const TOKENS: [f64; 14] = [
    1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0, 67108864.0,
];

fn providers(observer: &OtelObserver, provider: &Scripted) -> Providers {
    let observer = observer.clone();
    Providers::builder()
        .each(move |endpoint| TelemetryLayer::at(observer.clone(), endpoint))
        .deployment("openai", Deployment::new(provider.clone()).with_address("api.example", 443))
        .build()
        .unwrap()
}

fn chunk(text: &str) -> Step {
    let json =
        serde_json::json!({ "model": "dated", "choices": [{ "index": 0, "delta": { "content": text } }] });
    Step::Chunk(StreamChunk::parse(json.to_string()).unwrap())
}

fn wait(millis: u64) -> Step {
    Step::Wait(Duration::from_millis(millis))
}

/// One whole answer, one stream, one that has no usage, one refusal.
fn provider() -> Scripted {
    let whole = Completion::parse(
        r#"{"model":"dated","choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}],
            "usage":{"prompt_tokens":20,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":5}}}"#,
    )
    .unwrap();
    let end = [
        Step::Chunk(StreamChunk::finish(&FinishReason::Stop)),
        Step::Chunk(StreamChunk::usage_only(TokenUsage::new(30, 9))),
    ];
    let stream = [wait(500), chunk("a"), wait(100), chunk("b"), wait(200), chunk("c")].into_iter().chain(end);
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "openai", "gpt-4o-mini");
    failure.status = Some(http::StatusCode::TOO_MANY_REQUESTS);
    let refused = Error::new(ErrorKind::Provider(failure)).with_dispatched(true);
    Scripted::new()
        .reply(Reply::complete(whole).after([wait(1000)]))
        .reply(Reply::stream(stream))
        .reply(Reply::complete(
            Completion::parse(r#"{"model":"dated","choices":[{"message":{"content":"?"}}]}"#).unwrap(),
        ))
        .reply(Reply::error(refused).after([wait(250)]))
}

async fn four_calls(backend: &Otel) {
    four_calls_by(&backend.observer()).await;
}

async fn four_calls_by(observer: &OtelObserver) {
    let provider = provider();
    for streaming in [false, true, false, false] {
        if let Ok(answer) = providers(observer, &provider).oneshot(ask(streaming)).await {
            answer.text().await.unwrap();
        }
    }
}

fn keys(attributes: &BTreeMap<String, Attr>) -> Vec<&str> {
    attributes.keys().map(String::as_str).collect()
}

const COMMON: [&str; 6] = [
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.response.model",
    "server.address",
    "server.port",
];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut all: Vec<_> = COMMON.into_iter().chain(more.iter().copied()).collect();
    all.sort_unstable();
    all
}

fn histogram<'a>(
    metrics: &'a BTreeMap<String, Metric>,
    name: &str,
    unit: &str,
    bounds: &[f64],
) -> &'a Metric {
    let metric = metrics.get(name).unwrap_or_else(|| panic!("{name} is not there: {:?}", metrics.keys()));
    assert_eq!(metric.unit, unit, "{name}");
    assert!(!metric.points.is_empty());
    for point in &metric.points {
        assert_eq!(point.bounds, bounds, "{name}");
        let text = |key| match &point.attributes[key] {
            Attr::Str(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text("gen_ai.operation.name"), "chat");
        assert_eq!(text("gen_ai.provider.name"), "openai");
        assert_eq!(text("gen_ai.request.model"), "gpt-4o-mini");
        assert_eq!(text("server.address"), "api.example");
        assert_eq!(point.attributes["server.port"], Attr::Int(443));
    }
    metric
}

#[tokio::test(start_paused = true)]
async fn seed_25_the_metrics_of_1_41() {
    let backend = Otel::new(SemConv::V1_41);
    four_calls(&backend).await;
    let metrics = backend.metrics();
    let names: Vec<_> = metrics.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "gen_ai.client.operation.duration",
            "gen_ai.client.operation.time_per_output_chunk",
            "gen_ai.client.operation.time_to_first_chunk",
            "gen_ai.client.token.usage",
        ]
    );

    let duration = histogram(&metrics, "gen_ai.client.operation.duration", "s", &SECONDS);
    assert_eq!(duration.points.len(), 2);
    let (failed, fine): (Vec<_>, Vec<_>) =
        duration.points.iter().partition(|point| point.attributes.contains_key("error.type"));
    assert_eq!((fine[0].count, fine[0].sum), (3, 1.0 + 0.8));
    assert_eq!(keys(&fine[0].attributes), with(&[]));
    assert_eq!((failed[0].count, failed[0].sum), (1, 0.25));
    assert_eq!(failed[0].attributes["error.type"], Attr::Str("429".into()));

    // A metric is a span's own duration, and its own error.
    let spans = backend.spans();
    let seconds: f64 = spans.iter().map(|span| span.duration.unwrap().as_secs_f64()).sum();
    assert!((seconds - (1.0 + 0.8 + 0.25)).abs() < 1e-9, "{seconds}");
    assert_eq!(spans.iter().filter(|span| span.text("error.type") == Some("429")).count(), 1);

    let first = histogram(&metrics, "gen_ai.client.operation.time_to_first_chunk", "s", &SECONDS);
    assert_eq!((first.points.len(), first.points[0].count, first.points[0].sum), (1, 1, 0.5));
    let next = histogram(&metrics, "gen_ai.client.operation.time_per_output_chunk", "s", &SECONDS);
    // Two words and the one with the finish reason; neither usage nor the end are chunks.
    assert_eq!((next.points.len(), next.points[0].count), (1, 3));
    assert!((next.points[0].sum - 0.3).abs() < 1e-9);
    assert_eq!(keys(&next.points[0].attributes), with(&[]));

    let tokens = histogram(&metrics, "gen_ai.client.token.usage", "{token}", &TOKENS);
    let mut sums: Vec<_> = tokens
        .points
        .iter()
        .map(|point| {
            assert_eq!(keys(&point.attributes), with(&["gen_ai.token.type"]));
            (format!("{:?}", point.attributes["gen_ai.token.type"]), point.count, point.sum)
        })
        .collect();
    sums.sort_by(|a, b| a.0.cmp(&b.0));
    // Where nobody knows how much was used, nothing is recorded.
    assert_eq!(sums, [(r#"Str("input")"#.into(), 2, 50.0), (r#"Str("output")"#.into(), 2, 16.0)]);
}

#[tokio::test(start_paused = true)]
async fn the_metrics_of_the_latest_conventions() {
    let backend = Otel::new(SemConv::Latest);
    four_calls(&backend).await;
    let metrics = backend.metrics();
    let names: Vec<_> = metrics.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "gen_ai.client.inference.duration",
            "gen_ai.client.inference.operation.input_tokens",
            "gen_ai.client.inference.operation.output_tokens",
            "gen_ai.client.inference.time_per_output_chunk",
            "gen_ai.client.inference.time_to_first_chunk",
            "gen_ai.client.inference.usage.cache_read.input_tokens",
            "gen_ai.client.inference.usage.input_tokens",
            "gen_ai.client.inference.usage.output_tokens",
        ]
    );
    let duration = histogram(&metrics, "gen_ai.client.inference.duration", "s", &SECONDS);
    assert_eq!(duration.points.iter().map(|point| point.count).sum::<u64>(), 4);
    let input = histogram(&metrics, "gen_ai.client.inference.operation.input_tokens", "{token}", &TOKENS);
    // Failed calls and those without usage are zeros here.
    assert_eq!(
        input
            .points
            .iter()
            .map(|point| (point.count, point.sum))
            .fold((0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (4, 50.0)
    );
    // Of those that failed, what is told of a call says why; what adds up over calls does not.
    let (plain, failed) = (with(&[]), with(&["error.type"]));
    let failed: Vec<_> = failed.into_iter().filter(|key| *key != "gen_ai.response.model").collect();
    let counted = with(&["gen_ai.token.modality"]);
    let unanswered: Vec<_> = counted.iter().copied().filter(|key| *key != "gen_ai.response.model").collect();
    for (name, expected) in [
        ("duration", vec![&plain, &failed]),
        ("operation.input_tokens", vec![&plain, &failed]),
        ("operation.output_tokens", vec![&plain, &failed]),
        ("time_per_output_chunk", vec![&plain]),
        ("time_to_first_chunk", vec![&plain]),
        ("usage.input_tokens", vec![&counted, &unanswered]),
        ("usage.output_tokens", vec![&counted, &unanswered]),
        ("usage.cache_read.input_tokens", vec![&counted]),
    ] {
        let points = &metrics[&format!("gen_ai.client.inference.{name}")].points;
        let mut found: Vec<_> = points.iter().map(|point| keys(&point.attributes)).collect();
        found.sort_by_key(|keys| !keys.contains(&"gen_ai.response.model"));
        assert!(found.iter().eq(expected), "{name}: {found:?}");
    }
    let used = &metrics["gen_ai.client.inference.usage.input_tokens"];
    assert_eq!(used.unit, "{token}");
    assert_eq!(used.points.iter().map(|point| point.sum).sum::<f64>(), 50.0);
    for point in &used.points {
        assert_eq!(point.attributes["gen_ai.token.modality"], Attr::Str("unknown".into()));
    }
    assert_eq!(metrics["gen_ai.client.inference.usage.cache_read.input_tokens"].points[0].sum, 5.0);
}

fn series(metrics: &BTreeMap<String, Metric>) -> usize {
    metrics.values().map(|metric| metric.points.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_users_and_departments_add_no_series() {
    let backend = Otel::new(SemConv::V1_41);
    let observer = backend.observer();
    let stack = TelemetryLayer::gateway(observer.clone()).with_departments();
    let stack = stack.layer(providers(&observer, &Scripted::new()));
    let asked = |n: usize| {
        let context = RequestContext::new()
            .with_user_id(format!("user-{n}"))
            .with_tenant_id(format!("tenant-{n}"))
            .with_conversation_id(format!("conversation-{n}"))
            .with_request_id(format!("request-{n}"))
            .with_departments([format!("department-{n}")]);
        ask(false).with_context(context)
    };
    stack.clone().oneshot(asked(0)).await.unwrap();
    let before = series(&backend.metrics());
    for n in 1..=10_000 {
        stack.clone().oneshot(asked(n)).await.unwrap();
    }
    let metrics = backend.metrics();
    assert_eq!(series(&metrics), before);
    let calls: u64 = metrics["gen_ai.client.operation.duration"].points.iter().map(|point| point.count).sum();
    assert_eq!(calls, 10_001);
}

#[tokio::test(start_paused = true)]
async fn models_that_callers_make_up_add_a_bounded_number_of_series() {
    let backend = Otel::new(SemConv::V1_41);
    let observer = backend.observer().with_max_models(10);
    // Any name is accepted, or none is.
    for refused in [true, false] {
        let unknown = Error::provider(ErrorClass::BadRequest, "openai", "x");
        for n in 0..100 {
            let provider = Scripted::new();
            if refused {
                provider.push(Reply::error(unknown.clone()));
            }
            let request = LlmRequest::new(format!("openai/made-up-{refused}-{n}"), ask(false).body);
            let _ = providers(&observer, &provider).oneshot(request).await;
        }
        let points = &backend.metrics()["gen_ai.client.operation.duration"].points;
        let expected = if refused { 1 } else { 1 + 10 + 1 };
        assert_eq!(points.len(), expected, "{points:?}");
        assert!(
            points.iter().any(|point| point.attributes["gen_ai.request.model"] == Attr::Str("_OTHER".into()))
        );
    }
}

#[tokio::test(start_paused = true)]
async fn fallbacks_cache_and_quota_are_counted_of_the_facts_on_answer_and_error() {
    let backend = Otel::new(SemConv::V1_41);
    let observer = backend.observer();
    let down = |class| Reply::error(Error::provider(class, "openai", "a"));
    let provider = Scripted::new()
        .reply(down(ErrorClass::Unavailable))
        .reply(Reply::text(" "))
        .reply(Reply::text("hi"))
        .reply(down(ErrorClass::Unavailable))
        .reply(down(ErrorClass::Unavailable))
        .reply(down(ErrorClass::Unavailable));
    let chains = Chains::builder().chain("openai/a", ["openai/b", "openai/c"]).build().unwrap();
    let stack = TelemetryLayer::gateway(observer.clone())
        .layer(FallbackLayer::new(chains).layer(providers(&observer, &provider)));
    let ask_a = || LlmRequest::new("openai/a", ask(false).body);
    stack.clone().oneshot(ask_a()).await.unwrap();
    stack.oneshot(ask_a()).await.unwrap_err();
    let hit = TelemetryLayer::gateway(observer.clone()).layer(service_fn(|request: LlmRequest| async move {
        let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)));
        answer.cache = CacheStatus::Hit { age: Duration::ZERO };
        Ok::<_, Error>(answer)
    }));
    hit.oneshot(ask_a()).await.unwrap();

    let metrics = backend.metrics();
    let mut reasons: Vec<_> = metrics["llm_layers.fallbacks"]
        .points
        .iter()
        .map(|point| (format!("{:?}", point.attributes["llm_layers.fallback.reason"]), point.sum))
        .collect();
    reasons.sort_by(|a, b| a.0.cmp(&b.0));
    // Of the second call, the last failure had nothing to follow it.
    assert_eq!(
        reasons,
        [(r#"Str("empty_response")"#.to_owned(), 1.0), (r#"Str("unavailable")"#.to_owned(), 1.0 + 2.0)]
    );
    let cache = &metrics["llm_layers.cache.requests"].points;
    assert_eq!((cache.len(), cache[0].sum), (1, 1.0));
    assert_eq!(cache[0].attributes["llm_layers.cache.result"], Attr::Str("hit".into()));
    let gateway = &metrics["llm_layers.gateway.duration"];
    assert_eq!(
        (gateway.unit.as_str(), gateway.points.iter().map(|point| point.count).sum::<u64>()),
        ("s", 3)
    );
    // A hit is no inference.
    let calls: u64 = metrics["gen_ai.client.operation.duration"].points.iter().map(|point| point.count).sum();
    assert_eq!(calls, 6);
    let told = backend.everything();
    assert!(!SECRETS.iter().any(|secret| told.contains(secret)));
}

#[tokio::test(start_paused = true)]
async fn quotas_show_reservations_in_flight_and_how_far_estimates_are_off() {
    let backend = Otel::new(SemConv::V1_41);
    let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_tokens(100_000)));
    let layer =
        observe_quota(&backend.meter(), QuotaLayer::new(MemoryStore::new(), policies, Prices::default()));
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    let asked = |department: &str| {
        let body = ChatBody::builder().user("Hello?").max_output_tokens(50).build().unwrap();
        LlmRequest::new("openai/a", body).with_context(RequestContext::new().with_departments([department]))
    };
    let bound = asked("a").body.input_bytes() as f64 + 50.0;
    provider.push(Reply::complete(Completion::text("hi", TokenUsage::new(7, 3))).after([Step::Gate]));
    let call = tokio::spawn(service.clone().oneshot(asked("a")));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let value = |name: &str| backend.metrics()[name].points[0].sum;
    assert_eq!(value("llm_layers.quota.reservations"), 1.0);
    provider.open();
    call.await.unwrap().unwrap();
    service.oneshot(asked("another department")).await.unwrap();
    assert_eq!(value("llm_layers.quota.reservations"), 0.0);
    assert_eq!(value("llm_layers.quota.shadow_refusals"), 0.0);
    let shadow = layer.clone().with_mode(llm_layers::quota::Mode::Shadow).layer(provider.clone());
    let mut most = asked("a");
    most.body = most.body.with("max_completion_tokens", 200_000).unwrap();
    shadow.oneshot(most).await.unwrap();
    assert_eq!(value("llm_layers.quota.shadow_refusals"), 1.0);
    let ratio = &backend.metrics()["llm_layers.quota.estimate_ratio"];
    assert_eq!((ratio.unit.as_str(), ratio.points.len(), ratio.points[0].count), ("", 1, 3));
    assert!(ratio.points[0].sum >= bound / 10.0, "{} of {bound}", ratio.points[0].sum);
}

/// Takes nothing until it is told to.
struct Down(tokio::sync::watch::Receiver<bool>);

impl UsageStore for Down {
    fn write(&mut self, _: &[UsageEvent]) -> Result<(), BoxError> {
        if *self.0.borrow() { Ok(()) } else { Err("down".into()) }
    }
}

#[tokio::test]
async fn a_queue_shows_how_many_records_wait_and_that_none_is_lost() {
    let backend = Otel::new(SemConv::V1_41);
    let (up, is_up) = tokio::sync::watch::channel(false);
    let (sink, worker) = QueueSink::start(Down(is_up), QueueOptions::default()).unwrap();
    observe_queue(&backend.meter(), &sink);
    let service = UsageLayer::new(sink, Prices::default()).layer(Scripted::new());
    for _ in 0..5 {
        service.clone().oneshot(ask(false)).await.unwrap();
    }
    let value = |name: &str| backend.metrics()[name].points[0].sum;
    assert_eq!(value("llm_layers.usage.queue.depth"), 5.0);
    up.send(true).unwrap();
    assert_eq!(worker.shutdown(Duration::from_secs(30)).await.written, 5);
    assert_eq!(value("llm_layers.usage.queue.depth"), 0.0);
    assert_eq!(value("llm_layers.usage.records.written"), 5.0);
    assert_eq!(value("llm_layers.usage.records.lost"), 0.0);
}

/// An SDK of metrics that knows nothing of bound instruments: how often each was told of something.
#[derive(Clone, Default)]
struct Plain(Arc<Mutex<BTreeMap<String, usize>>>);

struct Told {
    name: String,
    by: Plain,
}

impl<T> SyncInstrument<T> for Told {
    fn measure(&self, _: T, _: &[KeyValue]) {
        *self.by.0.lock().unwrap().entry(self.name.clone()).or_default() += 1;
    }
}

impl Plain {
    fn told(&self, name: &str) -> Arc<Told> {
        Arc::new(Told { name: name.to_owned(), by: self.clone() })
    }
}

impl InstrumentProvider for Plain {
    fn f64_histogram(&self, builder: HistogramBuilder<'_, Histogram<f64>>) -> Histogram<f64> {
        Histogram::new(self.told(&builder.name))
    }

    fn u64_histogram(&self, builder: HistogramBuilder<'_, Histogram<u64>>) -> Histogram<u64> {
        Histogram::new(self.told(&builder.name))
    }

    fn u64_counter(&self, builder: InstrumentBuilder<'_, Counter<u64>>) -> Counter<u64> {
        Counter::new(self.told(&builder.name))
    }
}

#[tokio::test(start_paused = true)]
async fn an_sdk_without_bound_instruments_is_told_all_whoever_turns_a_feature_on() {
    let plain = Plain::default();
    let meter = Meter::new(Arc::new(plain.clone()));
    let observer = OtelObserver::new(NoopTracer::new(), meter);
    four_calls_by(&observer).await;
    let answer = Scripted::new().reply(Reply::complete(Completion::text("hi", TokenUsage::new(1, 1))));
    let layer = TelemetryLayer::gateway(observer.clone());
    layer.layer(providers(&observer, &answer)).oneshot(ask(false)).await.unwrap();
    let told = plain.0.lock().unwrap().clone();
    let of = |name: &str| told.get(name).copied().unwrap_or_default();
    assert_eq!(of("gen_ai.client.operation.duration"), 5, "{told:?}");
    assert_eq!(of("gen_ai.client.operation.time_to_first_chunk"), 1, "{told:?}");
    assert_eq!(of("gen_ai.client.operation.time_per_output_chunk"), 3, "{told:?}");
    assert!(of("gen_ai.client.token.usage") >= 6, "{told:?}");
    assert_eq!(of("llm_layers.gateway.duration"), 1, "{told:?}");
}

#[cfg(feature = "otel-bound")]
#[tokio::test(start_paused = true)]
async fn bound_instruments_measure_the_same() {
    for semconv in [SemConv::V1_41, SemConv::Latest] {
        let (plain, bound) = (Otel::new(semconv), Otel::new(semconv));
        four_calls_by(&plain.observer()).await;
        // Whatever is set after it.
        let observer = bound.observer().with_bound_instruments();
        four_calls_by(&observer.with_max_models(256).with_semconv(semconv)).await;
        let points = |backend: &Otel| {
            let all = backend.metrics();
            let points = all.iter().flat_map(|(name, metric)| metric.points.iter().map(move |it| (name, it)));
            let mut points: Vec<_> = points.map(|point| format!("{point:?}")).collect();
            points.sort_unstable();
            points
        };
        assert!(points(&plain).len() > 3);
        assert_eq!(points(&plain), points(&bound));
    }
}

#[cfg(feature = "outbox")]
#[tokio::test]
async fn an_outbox_shows_what_waits_and_what_was_refused_or_damaged_behind_the_queue() {
    use llm_layers::{
        telemetry::otel::observe_outbox,
        usage::{Durability, Outbox, OutboxOptions, Refused},
    };

    /// Refuses each event for ever, once it is there.
    struct Refuses(tokio::sync::watch::Receiver<bool>);

    impl UsageStore for Refuses {
        fn write(&mut self, _: &[UsageEvent]) -> Result<(), BoxError> {
            match *self.0.borrow() {
                true => Err(Refused::new("never").into()),
                false => Err("not there".into()),
            }
        }
    }

    let directory = std::env::temp_dir().join(format!("llm-layers-outbox-metrics-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&directory);
    let backend = Otel::new(SemConv::V1_41);
    let (up, is_up) = tokio::sync::watch::channel(false);
    let start = || {
        Outbox::start(&directory, Durability::Kill, Refuses(is_up.clone()), OutboxOptions::default()).unwrap()
    };
    let (sink, worker) = start();
    let service = UsageLayer::new(sink.clone(), Prices::default()).layer(Scripted::new());
    for _ in 0..5 {
        service.clone().oneshot(ask(false)).await.unwrap();
    }
    drop((service, sink));
    assert_eq!(worker.shutdown(Duration::from_millis(50)).await.log.events, 5);
    let log = directory.join("00000000000000000001.log");
    let mut bytes = std::fs::read(&log).unwrap();
    let last = bytes.len() - 5;
    bytes[last] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    // As the next process does.
    let (sink, worker) = start();
    observe_outbox(&backend.meter(), &sink);
    let value = |name: &str| backend.metrics()[name].points[0].sum;
    assert_eq!(value("llm_layers.usage.outbox.depth"), 4.0);
    assert!(value("llm_layers.usage.outbox.size") > 500.0);
    assert_eq!(value("llm_layers.usage.records.lost"), 1.0);
    assert_eq!(value("llm_layers.usage.records.set_aside"), 0.0);
    up.send(true).unwrap();
    assert_eq!(worker.shutdown(Duration::from_secs(30)).await.log.refused, 4);
    assert_eq!(value("llm_layers.usage.outbox.depth"), 0.0);
    assert_eq!(value("llm_layers.usage.records.set_aside"), 4.0);
    std::fs::remove_dir_all(directory).unwrap();
}
