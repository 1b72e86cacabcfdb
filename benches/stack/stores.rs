//! The same stack with a ledger in SQLite, and with everything in Redis.

use crate::{
    fresh,
    measure::{Row, table},
    preset::{self, Leaf, Parts, cache_policy, policies, preset, prices, request, run},
    redis_server::RedisServer,
    stack_row,
};
use futures_util::{StreamExt, stream};
use llm_layers::{
    LlmRequest,
    cache::{CacheLayer, MokaStore, RedisBytes, SealedStore, TieredStore},
    quota::{MemoryStore, QuotaLayer, RedisQuotaStore, WorkerOptions},
    store::{Redis, RedisOptions},
    usage::{
        Durability, Outbox, OutboxOptions, QueueOptions, QueueSink, RedisStream, RedisStreamOptions,
        SqliteLedger,
    },
};
use std::{path::Path, time::Duration};
use tokio::time::Instant;
use tower::{Service, ServiceExt};

pub fn stores() {
    let directory = std::env::temp_dir().join(format!("llm-layers-stack-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    in_sqlite(&directory);
    in_redis(&directory);
    std::fs::remove_dir_all(&directory).expect("removed");
}

fn drained(sink: QueueSink) -> impl FnMut() {
    move || {
        while sink.pending() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn in_sqlite(directory: &Path) {
    let path = directory.join("usage.db");
    let (sink, _worker) =
        SqliteLedger::start(path, Durability::Kill, QueueOptions::default()).expect("a ledger");
    let ledger = |name: &str, kept: bool| {
        let parts = Parts {
            usage: sink.clone(),
            quota: QuotaLayer::new(MemoryStore::new(), policies(), prices()),
            cache: CacheLayer::new(MokaStore::new(64 << 20), cache_policy(false)),
        };
        let mut stack = preset(Leaf::new(), parts);
        if kept {
            run(&mut stack, request(200, 0, false));
            return Row::new(name, move |_: LlmRequest| run(&mut stack, request(200, 0, false)));
        }
        Row::new(name, move |request| run(&mut stack, request)).resting(drained(sink.clone()))
    };
    table(
        "the stack with its ledger in SQLite, whole answer, prompt of 200 B, never asked before",
        64,
        1,
        fresh(200, false),
        vec![
            stack_row("full stack, miss, usage in memory", Leaf::new(), false),
            ledger("full stack, miss, usage in SQLite", false),
        ],
    );
}

/// Quotas, usage and cache in one Redis on this machine: time for a call, alone and with others in flight.
fn in_redis(directory: &Path) {
    let Some(server) = RedisServer::start("stack, Redis") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let redis = Redis::new(&server.url(), RedisOptions::default()).expect("an address");
        let events = RedisStream::new(&redis, RedisStreamOptions::default());
        let (usage, _usage) =
            Outbox::start(directory.join("outbox"), Durability::Kill, events, OutboxOptions::default())
                .expect("an outbox");
        let secret = llm_layers::cache::CacheSecret::new([7; 32]);
        let far = SealedStore::new(RedisBytes::new(&redis, "bench"), secret);
        let (cache, _cache) =
            CacheLayer::start(TieredStore::new(MokaStore::new(64 << 20), far), cache_policy(false));
        let quota = RedisQuotaStore::new(redis.clone()).with_deadline(Duration::from_secs(10));
        let options = WorkerOptions::default();
        let (quota, _quota) = QuotaLayer::pair(quota, policies(), prices(), options);
        let quota = quota.with_deadline(Duration::from_secs(10));
        let stack = preset(Leaf::new(), Parts { usage, quota, cache });
        println!("\nthe stack with quotas, usage and cache in Redis, whole answer, prompt of 200 B");
        println!("{:<46}{:>10}{:>10}{:>12}", "", "µs p50", "µs p99", "calls/s");
        let mut salt = 0;
        for (name, at_once, kept) in [
            ("miss, one at a time", 1, false),
            ("miss, 64 at once", 64, false),
            ("hit in memory, one at a time", 1, true),
        ] {
            let calls = if kept { 5_000 } else { 3_000 };
            let mut times = Vec::with_capacity(calls);
            let start = Instant::now();
            let made: Vec<_> = (0..calls)
                .map(|_| {
                    salt += usize::from(!kept);
                    (stack.clone(), preset::request(200, salt, false))
                })
                .collect();
            let mut answers = stream::iter(made.into_iter().map(|(mut stack, request)| async move {
                let start = Instant::now();
                let answer = stack.ready().await.expect("ready").call(request).await.expect("an answer");
                preset::read(answer);
                start.elapsed().as_nanos() as f64 / 1000.0
            }))
            .buffer_unordered(at_once);
            while let Some(time) = answers.next().await {
                times.push(time);
            }
            let rate = calls as f64 / start.elapsed().as_secs_f64();
            times.sort_by(f64::total_cmp);
            let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("{name:<46}{p50:>10.1}{p99:>10.1}{rate:>12.0}");
        }
    });
}
