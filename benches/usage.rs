//! What recording costs on the request's path, above the bare leaf, and how many records the ledger takes in a second.
//!
//! `cargo bench --bench usage --features rusqlite,redis [-- path | -- sustained]`. Rows about Redis need `redis-server`. Every row is measured in turn with the bare leaf, round by round;
//! the table shows the median difference, and the difference of the quickest rounds, for machines that have other work too. A round is a burst of calls that the queue has room for; what the ledger's
//! thread still has to do is waited for between rounds. The bare hash is there for scale: one machine is quicker than another. How often memory is asked for is told by `--bench allocations`.

#[path = "../tests/support/redis.rs"]
mod redis_server;

use futures_util::FutureExt;
use llm_layers::{
    ChatBody, Completion, Error, LlmRequest, LlmResponse, ModelName, RequestContext, TokenUsage,
    price::{Price, PriceBook, Prices, Rates},
    store::{Redis, RedisOptions},
    usage::{
        Durability, MemorySink, Outbox, OutboxOptions, OutboxSink, OutboxWorker, QueueOptions, QueueSink,
        RedisStream, RedisStreamOptions, SqliteLedger, UsageEvent, UsageLayer, UsageSink, UsageStore,
    },
};
use redis_server::RedisServer;
use std::{
    future::Ready,
    hint::black_box,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;
use tower::{Layer, Service};

const ROUNDS: usize = 1_001;
const CALLS: usize = 100;
const WARM: usize = 20;
const RECORDS: usize = 200_000;

/// Answers at once with what was made before.
#[derive(Clone)]
struct Leaf(Completion);

impl Service<LlmRequest> for Leaf {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        request.progress.mark_dispatched();
        std::future::ready(Ok(LlmResponse::new(request.model, self.0.clone())))
    }
}

struct Row {
    name: &'static str,
    nanos: Vec<f64>,
    call: Box<dyn FnMut(LlmRequest)>,
    /// Waits until nothing is left to do.
    settle: Box<dyn FnMut()>,
}

fn row<S>(name: &'static str, mut service: S, settle: impl FnMut() + 'static) -> Row
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + 'static,
{
    let call = move |request| {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
        let answer = service.call(request).now_or_never().expect("answers at once").expect("an answer");
        drop(black_box(answer));
    };
    let (call, settle) = (Box::new(call), Box::new(settle));
    Row { name, nanos: Vec::new(), call, settle }
}

/// Something of known cost.
fn scale() -> Row {
    let text = [7; 256];
    let call = move |_| {
        black_box(blake3::keyed_hash(&[7; 32], black_box(&text)));
    };
    let (call, settle) = (Box::new(call), Box::new(|| ()));
    Row { name: "keyed hash of 256 B", nanos: Vec::new(), call, settle }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn request() -> LlmRequest {
    let mut request = LlmRequest::new(
        ModelName::from("p/model"),
        ChatBody::builder().user("Hello").build().expect("valid"),
    );
    request.context = RequestContext::new()
        .with_user_id("ada")
        .with_agent_name("reviewer")
        .with_task_type("review")
        .with_request_id("req-1")
        .with_departments(["research", "operations"]);
    request
}

/// The same, as it comes in again: with a progress of its own, which clones would share.
fn another(request: &LlmRequest) -> LlmRequest {
    LlmRequest::new(request.model.clone(), request.body.clone()).with_context(request.context.clone())
}

fn prices() -> Prices {
    let price = Price::new(Rates::per_million("3", "15").expect("valid"));
    Prices::new(PriceBook::of("sheet", [("p/model", price)]).expect("valid"))
}

/// Takes everything and keeps nothing.
struct Nowhere;

impl UsageStore for Nowhere {
    fn write(&mut self, _: &[UsageEvent]) -> Result<(), llm_layers::BoxError> {
        Ok(())
    }
}

fn drained(sink: QueueSink) -> impl FnMut() {
    move || {
        while sink.pending() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn outbox(server: &RedisServer, directory: &Path, level: Durability) -> (OutboxSink, OutboxWorker) {
    let redis = Redis::new(&server.url(), RedisOptions::default()).expect("an address");
    let stream = RedisStream::new(&redis, RedisStreamOptions::default());
    Outbox::start(directory, level, stream, OutboxOptions::default()).expect("an outbox")
}

/// Waits until all is in the log and in Redis, so that neither thread disturbs the next round.
fn logged(sink: OutboxSink) -> impl FnMut() {
    move || {
        while sink.pending() > 0 || sink.status().events > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Counts what a run does, where no time is measured.
type Count = fn(&mut dyn FnMut()) -> u64;

pub(crate) fn on_the_path(directory: &Path, count: Option<Count>) {
    let leaf = Leaf(Completion::text("An answer of a few words.", TokenUsage::new(20, 7)));
    let memory = MemorySink::new(10 * CALLS);
    let kept = memory.clone();
    let (nowhere, _thread) = QueueSink::start(Nowhere, QueueOptions::default()).expect("a thread");
    let (sqlite, _ledger) =
        SqliteLedger::start(directory.join("path.db"), Durability::Kill, QueueOptions::default())
            .expect("a ledger");
    let layer = |name, sink: QueueSink| {
        row(name, UsageLayer::new(sink.clone(), prices()).layer(leaf.clone()), drained(sink))
    };
    let rows = [
        row("bare leaf", leaf.clone(), || ()),
        scale(),
        row("usage, memory", UsageLayer::new(memory, prices()).layer(leaf.clone()), move || {
            drop(kept.take())
        }),
        layer("usage, a queue to nowhere", nowhere),
        layer("usage, SQLite", sqlite),
    ];
    let server = RedisServer::start("usage, Redis, on the path");
    let outbox = server.as_ref().map(|server| outbox(server, &directory.join("path"), Durability::Kill));
    let mut rows = Vec::from(rows);
    if let Some((sink, _)) = &outbox {
        let row_of = UsageLayer::new(sink.clone(), prices()).layer(leaf.clone());
        rows.push(row("usage, outbox and Redis", row_of, logged(sink.clone())));
    }
    let request = request();
    rows.iter_mut().for_each(|row| (row.call)(request.clone()));
    if let Some(count) = count {
        println!("\n{:<44}{:>12}", "recording a call with two departments", "allocations");
        for Row { name, call, .. } in &mut rows {
            let mut again = Some(request.clone());
            println!("{name:<44}{:>12}", count(&mut || call(again.take().expect("it is run once"))));
        }
        return;
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            (row.settle)();
            let requests: Vec<_> = (0..CALLS).map(|_| another(&request)).collect();
            // Whoever has slept until all was written finds his caches cold.
            (0..WARM).for_each(|_| (row.call)(another(&request)));
            let start = Instant::now();
            requests.into_iter().for_each(|request| (row.call)(request));
            row.nanos.push(start.elapsed().as_nanos() as f64 / CALLS as f64);
        }
    }
    println!("recording a call with two departments, on the request's path");
    println!("{:<28}{:>12}{:>12}", "", "ns", "least");
    let ([leaf, hash], above) = rows.split_first_chunk().expect("the leaf and the hash are the first");
    for Row { name, nanos, .. } in [hash, leaf] {
        println!("{name:<28}{:>12.0}{:>12.0}", median(nanos.clone()), least(nanos));
    }
    for Row { name, nanos, .. } in above {
        let above = median(nanos.iter().zip(&leaf.nanos).map(|(row, leaf)| row - leaf).collect());
        println!("+ {name:<26}{above:>12.0}{:>12.0}", least(nanos) - least(&leaf.nanos));
    }
}

fn events(count: usize) -> Vec<UsageEvent> {
    let sink = MemorySink::new(count);
    let leaf = Leaf(Completion::text("An answer of a few words.", TokenUsage::new(20, 7)));
    let mut row = row("", UsageLayer::new(sink.clone(), prices()).layer(leaf), || ());
    let request = request();
    (0..count).for_each(|_| (row.call)(request.clone()));
    sink.take()
}

/// A store by itself, in groups of one size; and all of it, from the queue to the last commit.
fn sustained(directory: &Path) {
    println!(
        "\nrecords of two departments each, for a second\n{:<28}{:>12}{:>12}{:>12}",
        "", "memory", "kill", "power loss"
    );
    let levels = [Durability::Memory, Durability::Kill, Durability::PowerLoss];
    let file = |name: String| -> PathBuf { directory.join(name) };
    for group in [1, 64, 1024] {
        print!("{:<28}", format!("groups of {group}"));
        for level in levels {
            let slow = level == Durability::PowerLoss && group < 1024;
            let events = events(if slow || group == 1 { RECORDS / 100 * group.min(10) } else { RECORDS });
            let mut store =
                SqliteLedger::open(file(format!("{group}-{level:?}.db")), level).expect("a ledger");
            let start = Instant::now();
            events.chunks(group).for_each(|group| store.write(group).expect("written"));
            print!("{:>12.0}", events.len() as f64 / start.elapsed().as_secs_f64());
        }
        println!();
    }
    print!("{:<28}", "through the queue");
    for level in levels {
        let (sink, worker) =
            SqliteLedger::start(file(format!("queue-{level:?}.db")), level, QueueOptions::default())
                .expect("a ledger");
        let events = events(RECORDS);
        let start = Instant::now();
        for event in events {
            let slot = loop {
                match sink.admit() {
                    Ok(slot) => break slot,
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                }
            };
            slot.record(event);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let report = runtime.block_on(worker.shutdown(Duration::from_secs(60)));
        assert_eq!((report.written, report.left), (RECORDS as u64, 0));
        print!("{:>12.0}", RECORDS as f64 / start.elapsed().as_secs_f64());
    }
    println!();
}

/// What Redis takes in groups of one size; and all of it, from the queue to the last entry in Redis.
fn into_redis(directory: &Path) {
    let Some(server) = RedisServer::start("usage, Redis, sustained") else { return };
    println!("\nrecords of two departments each into Redis, for a second");
    let redis = Redis::new(&server.url(), RedisOptions::default()).expect("an address");
    for group in [1, 64, 256, 1024] {
        let options = RedisStreamOptions::default().with_name(format!("groups-{group}"));
        let mut stream = RedisStream::new(&redis, options);
        let events = events(if group == 1 { 5_000 } else { 40_000 });
        let start = Instant::now();
        events.chunks(group).for_each(|group| stream.write(group).expect("written"));
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<28}{:>12.0}", format!("groups of {group}"), events.len() as f64 / seconds);
    }
    for level in [Durability::Kill, Durability::PowerLoss] {
        let (sink, worker) = outbox(&server, &directory.join(format!("outbox-{level:?}")), level);
        let events = events(60_000);
        let count = events.len();
        let start = Instant::now();
        for event in events {
            let slot = loop {
                match sink.admit() {
                    Ok(slot) => break slot,
                    Err(_) => std::thread::sleep(Duration::from_micros(200)),
                }
            };
            slot.record(event);
        }
        while sink.pending() > 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        let logged = start.elapsed().as_secs_f64();
        let bytes = sink.status().bytes;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let report = runtime.block_on(worker.shutdown(Duration::from_secs(60)));
        assert_eq!((report.unlogged, report.log.events), (0, 0));
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{:<28}{:>12.0}    in the log {:>12.0}, {bytes} bytes left in it then",
            format!("outbox, {level:?}"),
            count as f64 / seconds,
            count as f64 / logged
        );
    }
    let memory = server.ask(&["INFO", "memory"]);
    let used = memory.lines().find(|line| line.starts_with("used_memory:")).unwrap_or_default();
    let entries = server.ask(&["XLEN", "{llm-usage}:events"]);
    println!("{used} with {entries} entries of the outboxes, and of 125,000 events more");
}

fn main() {
    let directory = std::env::temp_dir().join(format!("llm-layers-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    if only.as_deref() != Some("sustained") {
        on_the_path(&directory, None);
    }
    if only.as_deref() != Some("path") {
        sustained(&directory);
        into_redis(&directory);
    }
    std::fs::remove_dir_all(&directory).expect("removed");
}
