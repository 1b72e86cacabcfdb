//! `DrainLayer`: what a stream used up is known although its reader has left.

use futures_util::stream::iter;
use llm_layers::{
    ChatBody, ChunkStream, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, RequestContext,
    ResponseBody, StreamChunk, TimeoutPhase, TokenUsage,
    drain::{DrainLayer, DrainOptions},
    policies::{DepartmentPolicy, PolicyTable},
    price::Prices,
    quota::{Calendar, Limits, MemoryStore, QuotaLayer, QuotaStore},
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
    usage::{MemorySink, Outcome, UsageLayer},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    provider: Scripted,
    sink: MemorySink,
    store: MemoryStore,
    quota: QuotaLayer,
}

impl Bench {
    fn new() -> Self {
        let store = MemoryStore::new().with_clock(Noon);
        let policy = DepartmentPolicy::new(Limits::new().with_day_tokens(100_000));
        let quota =
            QuotaLayer::new(store.clone(), PolicyTable::new(policy), Prices::default()).with_clock(Noon);
        Self { provider: Scripted::new(), sink: MemorySink::new(100), store, quota }
    }

    fn under(
        &self,
        drain: &DrainLayer,
    ) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send> + Clone + use<> {
        let usage = UsageLayer::new(self.sink.clone(), Prices::default());
        let timeouts = CallTimeoutLayer::new().with_idle(30 * SECOND);
        drain.layer(self.quota.layer(usage.layer(timeouts.layer(self.provider.clone()))))
    }

    /// Tokens settled and reserved today.
    async fn counted(&self) -> (u64, u64) {
        let days = Calendar::utc().days_around(llm_layers::clock::Clock::now(&Noon));
        let used = self.store.usage(&Arc::from("a"), &days).await.unwrap().in_day;
        (used.settled.tokens, used.reserved.tokens)
    }

    /// The outcomes that are recorded, each with its tokens.
    fn recorded(&self) -> Vec<(Outcome, u64)> {
        let events = self.sink.take();
        let tokens = |usage: &TokenUsage| usage.input_tokens.unwrap() + usage.output_tokens.unwrap();
        events.iter().map(|event| (event.outcome, tokens(&event.usage))).collect()
    }
}

#[derive(Debug)]
struct Noon;

impl llm_layers::clock::Clock for Noon {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_435_200)
    }
}

fn ask() -> LlmRequest {
    let body = ChatBody::builder().user("Tell me a lot").max_output_tokens(1000).streaming().build().unwrap();
    LlmRequest::new("p/m", body).with_context(RequestContext::new().with_departments(["a"]))
}

/// A word, a gate, another word and the usage of 7 and 30 tokens.
fn story() -> Reply {
    let usage = StreamChunk::usage_only(TokenUsage::new(7, 30));
    Reply::stream([
        Step::Chunk(StreamChunk::text("once")),
        Step::Gate,
        Step::Chunk(StreamChunk::text("upon")),
        Step::Chunk(usage),
    ])
}

async fn first_word<S>(service: S) -> ChunkStream
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    first_word_of(ask(), service).await
}

async fn first_word_of<S>(request: LlmRequest, service: S) -> ChunkStream
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    let ResponseBody::Stream(mut chunks) = service.oneshot(request).await.unwrap().body else {
        panic!("a stream")
    };
    assert_eq!(chunks.next().await.unwrap().unwrap().content(), "once");
    chunks
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_charged_what_the_provider_reports_in_the_end() {
    let bench = Bench::new();
    let (drain, worker) = DrainLayer::start(DrainOptions::within(60 * SECOND));
    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    tokio::time::sleep(SECOND).await;
    assert!(bench.counted().await.1 > 0, "it goes on");
    assert_eq!(bench.recorded(), []);
    bench.provider.open();
    assert!(worker.shutdown(60 * SECOND).await);
    assert_eq!(bench.counted().await, (37, 0));
    assert_eq!(bench.recorded(), [(Outcome::Ok, 37)]);
    assert_eq!(bench.provider.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_caller_who_has_left_ends_no_stream_that_is_read_on() {
    for stays_until_then in [false, true] {
        let bench = Bench::new();
        let (drain, worker) = DrainLayer::start(DrainOptions::within(60 * SECOND));
        bench.provider.push(story());
        let mut hurried = ask();
        hurried.context = hurried.context.with_timeout(5 * SECOND);
        let mut chunks = first_word_of(hurried, bench.under(&drain)).await;
        if stays_until_then {
            let started = tokio::time::Instant::now();
            let error = chunks.next().await.unwrap().unwrap_err();
            let deadline = ErrorKind::Timeout { phase: TimeoutPhase::Deadline };
            assert_eq!(format!("{:?}", error.kind()), format!("{deadline:?}"));
            assert_eq!(started.elapsed(), 5 * SECOND);
        } else {
            tokio::time::sleep(SECOND).await;
        }
        drop(chunks);
        tokio::time::sleep(10 * SECOND).await;
        assert_eq!(bench.recorded(), [], "it goes on");
        bench.provider.open();
        assert!(worker.shutdown(60 * SECOND).await);
        assert_eq!(bench.counted().await, (37, 0));
        assert_eq!(bench.recorded(), [(Outcome::Ok, 37)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_falls_silent_is_not_read_on() {
    let bench = Bench::new();
    let (drain, worker) = DrainLayer::start(DrainOptions::within(60 * SECOND));
    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    tokio::time::sleep(31 * SECOND).await;
    assert_eq!(bench.recorded()[0].0, Outcome::Error);
    assert!(worker.shutdown(SECOND).await);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_stays_notices_nothing() {
    let bench = Bench::new();
    let (drain, worker) = DrainLayer::start(DrainOptions::within(60 * SECOND));
    bench.provider.push(story());
    let mut chunks = first_word(bench.under(&drain)).await;
    bench.provider.open();
    let mut rest = Vec::new();
    while let Some(chunk) = chunks.next().await {
        rest.push(chunk.unwrap());
    }
    assert!(rest.len() == 3 && rest[2].is_final());
    assert_eq!(bench.recorded(), [(Outcome::Ok, 37)]);
    drop(chunks);
    // A break is one too, and nothing to read on.
    let broken = Error::provider(ErrorClass::Transport, "p", "m");
    bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::text("once")), Step::Fail(broken)]));
    let mut chunks = first_word(bench.under(&drain)).await;
    chunks.next().await.unwrap().unwrap_err();
    drop(chunks);
    assert_eq!(bench.recorded()[0].0, Outcome::Error);
    assert!(worker.shutdown(SECOND).await);
}

#[tokio::test(start_paused = true)]
async fn it_is_read_on_no_longer_than_told_and_no_more_of_them() {
    let bench = Bench::new();
    let (drain, worker) = DrainLayer::start(DrainOptions::within(10 * SECOND).with_streams(2));
    for _ in 0..3 {
        bench.provider.push(story());
        drop(first_word(bench.under(&drain)).await);
    }
    assert_eq!((bench.provider.alive(), bench.recorded().len()), (2, 1), "there are two places");
    tokio::time::sleep(11 * SECOND).await;
    let left = bench.recorded();
    assert_eq!((bench.provider.alive(), left.len()), (0, 2));
    assert!(left.iter().all(|(outcome, _)| *outcome == Outcome::Aborted));
    assert_eq!(bench.counted().await.1, 0);
    // There is room again.
    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    bench.provider.open();
    tokio::time::sleep(SECOND).await;
    assert_eq!(bench.recorded(), [(Outcome::Ok, 37)]);

    // At the end nothing is waited for beyond the deadline, and all is told.
    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    assert!(!worker.shutdown(SECOND).await);
    assert_eq!((bench.recorded()[0].0, bench.counted().await.1), (Outcome::Aborted, 0));
    // Then streams are hung up, as without it.
    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    assert_eq!((bench.provider.alive(), bench.recorded()[0].0), (0, Outcome::Aborted));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_its_head_is_hung_up() {
    let bench = Bench::new();
    let (drain, _worker) = DrainLayer::start(DrainOptions::within(10 * SECOND));
    bench.provider.push(story().after([Step::Gate]));
    let mut call = tokio_test::task::spawn(bench.under(&drain).oneshot(ask()));
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!((bench.provider.alive(), bench.counted().await.1), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_ends_alone() {
    let bench = Bench::new();
    let (drain, worker) = DrainLayer::start(DrainOptions::within(60 * SECOND));
    bench.provider.push(story());
    let panics = [Step::Chunk(StreamChunk::text("once")), Step::Wait(SECOND), Step::Panic];
    bench.provider.push(Reply::stream(panics));
    drop(first_word(bench.under(&drain)).await);
    drop(first_word(bench.under(&drain)).await);
    tokio::time::sleep(2 * SECOND).await;
    let told: Vec<_> = bench.sink.take().iter().map(|event| event.outcome).collect();
    assert_eq!(told, [Outcome::Error], "the other one goes on");

    bench.provider.push(story());
    drop(first_word(bench.under(&drain)).await);
    bench.provider.open();
    bench.provider.open();
    assert!(worker.shutdown(60 * SECOND).await);
    assert_eq!(bench.recorded(), [(Outcome::Ok, 37), (Outcome::Ok, 37)]);
    assert_eq!((bench.counted().await.1, bench.provider.alive()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_never_silent_is_read_on_no_longer_than_told_either() {
    let sink = MemorySink::new(1);
    let (drain, worker) = DrainLayer::start(DrainOptions::within(10 * SECOND));
    let leaf = service_fn(async |request: LlmRequest| {
        let words = (0..100_000).map(|_| Ok(StreamChunk::text("once")));
        Ok::<_, Error>(LlmResponse::new(
            request.model,
            ResponseBody::Stream(ChunkStream::ending_cleanly(iter(words))),
        ))
    });
    drop(first_word(drain.layer(UsageLayer::new(sink.clone(), Prices::default()).layer(leaf))).await);
    tokio::task::yield_now().await;
    tokio::time::advance(11 * SECOND).await;
    assert!(worker.shutdown(SECOND).await);
    let told: Vec<_> = sink.take().iter().map(|event| event.outcome).collect();
    assert_eq!(told, [Outcome::Aborted]);
}
