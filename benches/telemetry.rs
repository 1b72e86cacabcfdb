//! What telemetry costs a request above the bare leaf: nanoseconds of the thread that makes it.
//!
//! `cargo bench --bench telemetry --features otel`; how often memory is asked for is told by `--bench allocations`. Every
//! row is measured in many short rounds, in turn with the others: `ns` is the median of them, `least` the quickest, for
//! machines that have other work too. Sampled spans are exported between the rounds, so that a row is what handing them
//! over costs; the row below it has the exporter's thread beside it, which gives back what this one was given, at a rate
//! that no server has. The bare hash is there for scale: one machine is quicker than another.

use futures_util::{FutureExt, StreamExt, stream};
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, FinishReason, LlmRequest, LlmResponse, ModelName, ResponseBody,
    StreamChunk, TokenUsage,
    telemetry::{Observer, OtelObserver, TelemetryLayer, TracingObserver},
};
use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider, noop::NoopMeterProvider},
    trace::{TracerProvider, noop::NoopTracer},
};
use opentelemetry_sdk::{
    error::OTelSdkResult,
    metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider},
    trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter},
};
use std::{future::Ready, hint::black_box, sync::Arc, time::Duration};
use tokio::time::Instant;
use tower::{Layer, Service};

const CHUNKS: usize = 50;
const ROUNDS: usize = 300;

/// Answers at once with what was made before.
#[derive(Clone)]
struct Leaf {
    completion: Completion,
    chunks: Arc<[StreamChunk]>,
}

impl Leaf {
    fn new() -> Self {
        let words = (0..CHUNKS - 3).map(|n| StreamChunk::text(format!("word {n} ")));
        let end =
            [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(20, 50))];
        let chunks = words.chain(end).chain([StreamChunk::end()]).collect();
        Self { completion: Completion::text("An answer of a few words.", TokenUsage::new(20, 7)), chunks }
    }
}

impl Service<LlmRequest> for Leaf {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let body = if request.body.is_streaming() {
            let chunks = Arc::clone(&self.chunks);
            ResponseBody::Stream(ChunkStream::new(
                stream::iter(0..CHUNKS).map(move |at| Ok(chunks[at].clone())),
            ))
        } else {
            ResponseBody::Complete(self.completion.clone())
        };
        std::future::ready(Ok(LlmResponse::new(request.model, body)))
    }
}

/// Runs one call to its end.
fn run<S: Service<LlmRequest, Response = LlmResponse, Error = Error>>(
    service: &mut S,
    model: &ModelName,
    body: &ChatBody,
) {
    let request = LlmRequest::new(model.clone(), body.clone());
    let answer = service.call(request).now_or_never().expect("answers at once").expect("an answer");
    match answer.body {
        ResponseBody::Complete(completion) => drop(black_box(completion)),
        ResponseBody::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().now_or_never().expect("is there at once") {
                drop(black_box(chunk.expect("no chunk fails")));
            }
        }
    }
}

struct Row {
    name: &'static str,
    /// Of a call, in each round.
    nanos: Vec<f64>,
    run: Box<dyn FnMut(&ChatBody)>,
    /// Waits until nothing is left to do, between the rounds.
    settle: Option<SdkTracerProvider>,
}

fn row<S>(name: &'static str, mut service: S) -> Row
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + 'static,
{
    let model = ModelName::from("gpt-4o-mini");
    let run = Box::new(move |body: &ChatBody| run(&mut service, &model, body));
    Row::new(name, run)
}

impl Row {
    fn new(name: &'static str, run: Box<dyn FnMut(&ChatBody)>) -> Self {
        Self { name, nanos: Vec::new(), run, settle: None }
    }

    fn measure(&mut self, body: &ChatBody, calls: usize) {
        let start = Instant::now();
        (0..calls).for_each(|_| (self.run)(body));
        self.nanos.push(start.elapsed().as_nanos() as f64 / calls as f64);
        if let Some(tracers) = &self.settle {
            tracers.force_flush().expect("it sends nowhere");
        }
    }

    /// The median of all rounds, and the least.
    fn found(&self) -> [f64; 2] {
        let mut nanos = self.nanos.clone();
        nanos.sort_by(f64::total_cmp);
        [nanos[nanos.len() / 2], nanos[0]]
    }
}

fn client<O: Observer>(name: &'static str, observer: O) -> Row {
    let layer = TelemetryLayer::client(observer, "openai").with_address("api.openai.com", 443);
    row(name, layer.layer(Leaf::new()))
}

/// The queue has room for a round, and no more: of a large one each span would be the first to touch its place.
fn tracers(batch: usize) -> SdkTracerProvider {
    let config = BatchConfigBuilder::default().with_max_queue_size(2048).with_max_export_batch_size(batch);
    let batch = BatchSpanProcessor::builder(Nowhere).with_batch_config(config.build()).build();
    SdkTracerProvider::builder().with_span_processor(batch).build()
}

/// Takes spans, and sends them nowhere.
#[derive(Debug)]
struct Nowhere;

impl SpanExporter for Nowhere {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        drop(black_box(batch));
        Ok(())
    }
}

/// Reads at the end, if at all.
fn reader() -> PeriodicReader<InMemoryMetricExporter> {
    PeriodicReader::builder(InMemoryMetricExporter::default())
        .with_interval(Duration::from_secs(3600))
        .build()
}

fn nothing() -> Meter {
    NoopMeterProvider::new().meter("bench")
}

/// Counts what a run does, where no time is measured.
type Count = fn(&mut dyn FnMut()) -> u64;

fn counted(title: &str, rows: &mut [Row], body: &ChatBody, count: Count) {
    println!("\n{title:<32}{:>12}", "allocations");
    for row in rows {
        println!("{:<32}{:>12}", row.name, count(&mut || (row.run)(body)));
    }
}

fn table(title: &str, body: &ChatBody, calls: usize, count: Option<Count>) {
    let (sampled, busy) = (tracers(2048), tracers(512));
    let traced = |name, tracers: &SdkTracerProvider| {
        let row = client(name, OtelObserver::new(tracers.tracer("bench"), nothing()));
        Row { settle: Some(tracers.clone()), ..row }
    };
    let unsampled = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
    let meters = SdkMeterProvider::builder().with_reader(reader()).build();
    let noop = NoopTracer::new;
    let text = [7; 256];
    let hash = move |_: &ChatBody| {
        black_box(blake3::keyed_hash(&[7; 32], black_box(&text)));
    };
    let mut rows = vec![
        Row::new("keyed hash of 256 B", Box::new(hash)),
        row("bare leaf", Leaf::new()),
        client("nothing: ()", ()),
        client("tracing, nobody listens", TracingObserver::new()),
        client("OpenTelemetry, no SDK", OtelObserver::new(noop(), nothing())),
        client("OpenTelemetry, unsampled", OtelObserver::new(unsampled.tracer("bench"), nothing())),
        traced("OpenTelemetry, sampled", &sampled),
        traced("  exported meanwhile", &busy),
        client("OpenTelemetry, metrics only", OtelObserver::new(noop(), meters.meter("bench"))),
    ];
    #[cfg(feature = "otel-bound")]
    rows.push(client(
        "  by bound instruments",
        OtelObserver::new(noop(), meters.meter("bench")).with_bound_instruments(),
    ));
    rows.iter_mut().for_each(|row| (row.run)(body));
    if let Some(count) = count {
        counted(title, &mut rows, body, count);
    } else {
        (0..ROUNDS).for_each(|_| rows.iter_mut().for_each(|row| row.measure(body, calls)));
        println!("\n{title:<32}{:>12}{:>12}", "ns", "least");
        let ([hash, leaf], above) = rows.split_first_chunk().expect("the hash and the leaf are the first");
        for row in [hash, leaf] {
            let [nanos, least] = row.found();
            println!("{:<32}{nanos:>12.0}{least:>12.0}", row.name);
        }
        let [bare, bare_least] = leaf.found();
        for row in above {
            let [nanos, least] = row.found();
            println!("+ {:<30}{:>12.0}{:>12.0}", row.name, nanos - bare, least - bare_least);
        }
    }
    [sampled, busy].iter().for_each(|tracers| tracers.shutdown().expect("it sends nowhere"));
}

/// One record of a histogram with the attributes that ours have, which are made once for all calls of a series.
fn record(body: &ChatBody, count: Option<Count>) {
    let meters = SdkMeterProvider::builder().with_reader(reader()).build();
    let bounds = (0..14).map(|n| f64::from(1 << n)).collect();
    let histogram = meters.meter("bench").f64_histogram("duration").with_boundaries(bounds).build();
    let shared = |text: &str| Arc::<str>::from(text);
    let attributes = [
        KeyValue::new("gen_ai.operation.name", "chat"),
        KeyValue::new("gen_ai.provider.name", shared("openai")),
        KeyValue::new("gen_ai.request.model", shared("gpt-4o-mini")),
        KeyValue::new("gen_ai.response.model", shared("gpt-4o-mini-2024-07-18")),
        KeyValue::new("server.address", shared("api.openai.com")),
        KeyValue::new("server.port", 443),
    ];
    let bound = histogram.bind(&attributes);
    let mut rows = [
        Row::new("looked up", Box::new(move |_| histogram.record(black_box(1.5), black_box(&attributes)))),
        Row::new("where it is bound", Box::new(move |_| bound.record(black_box(1.5)))),
    ];
    rows.iter_mut().for_each(|row| (row.run)(body));
    const TITLE: &str = "one record of a metric";
    if let Some(count) = count {
        counted(TITLE, &mut rows, body, count);
        return;
    }
    (0..ROUNDS).for_each(|_| rows.iter_mut().for_each(|row| row.measure(body, 1_000)));
    println!("\n{TITLE:<32}{:>12}{:>12}", "ns", "least");
    for row in &rows {
        let [nanos, least] = row.found();
        println!("{:<32}{nanos:>12.0}{least:>12.0}", row.name);
    }
}

pub(crate) fn tables(count: Option<Count>) {
    let body = |streaming: bool| {
        let builder = ChatBody::builder().user("Hello, who is there?").temperature(0.2);
        builder.set("max_tokens", 100).set("stream", streaming).build().expect("valid")
    };
    table("a whole answer", &body(false), 1_000, count);
    table(&format!("a stream of {CHUNKS} chunks"), &body(true), 50, count);
    record(&body(false), count);
}

fn main() {
    tables(None);
}
