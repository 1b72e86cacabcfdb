//! What each layer costs above the bare leaf: nanoseconds and allocations for a request, and for a chunk of a stream.
//!
//! `cargo bench --bench layers`. Every row is measured in turn with the bare leaf, round by round, so that a
//! machine that slows down slows both; the table shows the median difference. Times include the counting of
//! allocations.

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, FinishReason, LlmRequest, LlmResponse, ModelName, ResponseBody,
    ServiceBuilderExt as _, StreamChunk, TokenUsage,
    alias::AliasTable,
    fallback::{Chains, FallbackLayer},
    price::{Price, PriceBook, Rates},
    providers::{Deployment, Providers},
    timeout::CallTimeoutLayer,
    usage::{Done, Place, Slot, UsageEvent, UsageSink},
};
use std::{future::Ready, hint::black_box, sync::Arc, time::Duration};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, util::BoxCloneSyncService};

const CHUNKS: usize = 50;
const ROUNDS: usize = 21;
const MINUTE: Duration = Duration::from_secs(60);

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

/// Has room for every event, and forgets it.
#[derive(Clone)]
struct Nowhere;

impl UsageSink for Nowhere {
    fn admit(&self) -> Result<Slot, Error> {
        Ok(Slot::new(Self))
    }
}

impl Place for Nowhere {
    fn record(self: Box<Self>, event: UsageEvent, _: Option<Done>) {
        drop(black_box(event));
    }
}

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// Runs one call to its end, and says how many chunks it had.
fn run<S: Service<LlmRequest, Response = LlmResponse, Error = Error>>(
    service: &mut S,
    model: &ModelName,
    body: &ChatBody,
) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
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
    nanos: Vec<f64>,
    allocations: u64,
    bytes: u64,
    run: Box<dyn FnMut(&ChatBody)>,
}

fn row<S>(name: &'static str, model: &'static str, mut service: S) -> Row
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + 'static,
{
    let model = ModelName::from(model);
    let run = Box::new(move |body: &ChatBody| run(&mut service, &model, body));
    Row { name, nanos: Vec::new(), allocations: 0, bytes: 0, run }
}

fn rows() -> Vec<Row> {
    let leaf = Leaf::new();
    let table =
        || AliasTable::builder().alias("fast", "p/model").alias("slow", "p/other").build().expect("valid");
    let timeouts = CallTimeoutLayer::new().with_head(MINUTE).with_idle(MINUTE).with_total(MINUTE);
    let prices = || {
        let price = Price::new(Rates::per_million("0.15", "0.60").expect("valid"));
        PriceBook::of("bench", [("p/model", price)]).expect("valid")
    };
    let chains = || Chains::builder().chain("p/model", ["p/other"]).build().expect("valid");
    let providers = Providers::builder()
        .each(move |_| timeouts)
        .deployment("p", Deployment::new(leaf.clone()))
        .build()
        .expect("valid");
    let stack = ServiceBuilder::new()
        .answer_concurrency_limit(1024)
        .alias(table())
        .layer(FallbackLayer::new(chains()).with_providers(providers.names()).with_deadline(MINUTE))
        .usage(Nowhere, prices())
        .service(providers.clone());
    vec![
        row("bare leaf", "p/model", leaf.clone()),
        row("BoxCloneSyncService", "p/model", Stack::new(leaf.clone())),
        row("alias", "fast", ServiceBuilder::new().alias(table()).service(leaf.clone())),
        row("peek", "p/model", ServiceBuilder::new().peek().service(leaf.clone())),
        row("fallback + peek", "p/model", FallbackLayer::new(chains()).layer(leaf.clone())),
        row("call timeout", "p/model", timeouts.layer(leaf.clone())),
        row("usage", "p/model", ServiceBuilder::new().usage(Nowhere, prices()).service(leaf.clone())),
        row(
            "concurrency limit",
            "p/model",
            ServiceBuilder::new().answer_concurrency_limit(1024).service(leaf),
        ),
        row("providers + call timeout", "p/model", providers),
        row("the stack", "fast", stack.clone()),
        row("the stack, boxed", "fast", Stack::new(stack)),
    ]
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(title: &str, body: &ChatBody, per: usize, calls: usize) {
    let mut rows = rows();
    for row in &mut rows {
        (row.run)(body);
        let info = allocation_counter::measure(|| (row.run)(body));
        (row.allocations, row.bytes) = (info.count_total, info.bytes_total);
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let start = Instant::now();
            for _ in 0..calls {
                (row.run)(body);
            }
            row.nanos.push(start.elapsed().as_nanos() as f64 / (calls * per) as f64);
        }
    }
    println!("\n{title}");
    println!("{:<28}{:>12}{:>14}{:>14}", "", "ns", "allocations", "bytes");
    let (leaf, above) = rows.split_first().expect("the leaf is the first");
    println!(
        "{:<28}{:>12.0}{:>14}{:>14}",
        leaf.name,
        median(leaf.nanos.clone()),
        leaf.allocations,
        leaf.bytes
    );
    for row in above {
        let nanos = median(row.nanos.iter().zip(&leaf.nanos).map(|(row, leaf)| row - leaf).collect());
        let allocations = row.allocations as i64 - leaf.allocations as i64;
        let bytes = row.bytes as i64 - leaf.bytes as i64;
        println!("+ {:<26}{nanos:>12.0}{allocations:>14}{bytes:>14}", row.name);
    }
}

fn body(bytes: usize, streaming: bool) -> ChatBody {
    ChatBody::builder()
        .user("x".repeat(bytes - 100))
        .temperature(0.2)
        .set("stream", streaming)
        .build()
        .expect("valid")
}

fn time(name: &str, calls: usize, mut f: impl FnMut()) {
    f();
    let allocations = allocation_counter::measure(&mut f).count_total;
    let rounds = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        (0..calls).for_each(|_| f());
        start.elapsed().as_nanos() as f64 / calls as f64
    });
    println!("{name:<28}{:>12.0}{allocations:>14}", median(rounds.collect()));
}

fn main() {
    for (size, bytes) in [("200 B", 200), ("100 KB", 100_000)] {
        table(&format!("whole answer, prompt of {size}: for a request"), &body(bytes, false), 1, 2_000);
        table(
            &format!("stream of {CHUNKS} chunks, prompt of {size}: for a chunk (allocations: for all)"),
            &body(bytes, true),
            CHUNKS,
            200,
        );
    }
    println!("\nthe request itself\n{:<28}{:>12}{:>14}", "", "ns", "allocations");
    for (size, bytes, calls) in [("200 B", 200, 2_000), ("100 KB", 100_000, 50)] {
        let body = body(bytes, false);
        let json: Bytes = body.to_json("p/model");
        time(&format!("parse, {size}"), calls, || drop(black_box(LlmRequest::parse(json.clone()))));
        let request = LlmRequest::parse(json.clone()).expect("valid");
        time(&format!("clone, {size}"), calls, || drop(black_box(request.clone())));
        time(&format!("write, {size}"), calls, || drop(black_box(request.body.to_json("model"))));
    }
}
