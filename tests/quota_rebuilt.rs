//! Counters in a real Redis that are lost over and over while calls end, and the ledger in a file that they are rebuilt from.

#[path = "support/events.rs"]
mod events;
#[path = "support/redis.rs"]
mod redis_server;

use self::{events::Directory, redis_server::RedisServer};
use futures_util::future::join_all;
use llm_layers::{
    ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::Prices,
    quota::{Calendar, Limits, QuotaLayer, RedisQuotaStore, UsageHistory, WorkerOptions, audit},
    store::{Redis, RedisOptions},
    usage::{
        Collector, Durability, LedgerReader, Outbox, OutboxOptions, QueueOptions, RedisStream,
        RedisStreamOptions, SqliteLedger, UsageLayer, UsageSink,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::yield_now, time::sleep};
use tower::{ServiceBuilder, ServiceExt, service_fn};

const CALLERS: usize = 64;
const DEPARTMENTS: [&str; 2] = ["research", "all"];

/// Calls that end all the time, while the counters are thrown away so often.
async fn lose_counters(
    server: &RedisServer,
    times: usize,
    sink: impl UsageSink + Clone,
    history: impl UsageHistory + Clone,
) {
    let store = RedisQuotaStore::new(Redis::new(&server.url(), RedisOptions::default()).unwrap());
    store.check().await.unwrap();
    let mut policy = DepartmentPolicy::default();
    policy.limits = Limits::new().with_day_tokens(1 << 40).with_month_requests(1 << 40);
    let (quota, worker) = QuotaLayer::pair(
        store.clone(),
        PolicyTable::new(policy),
        Prices::default(),
        WorkerOptions::default(),
    );
    let quota = quota.with_history(history.clone()).with_deadline(Duration::from_secs(5));
    let provider = service_fn(|request: LlmRequest| async move {
        request.progress.mark_dispatched();
        sleep(Duration::from_millis(fastrand::u64(1..100))).await;
        let usage = TokenUsage::new(5, fastrand::u64(0..=50));
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", usage)))
    });
    let service =
        ServiceBuilder::new().layer(quota).layer(UsageLayer::new(sink, Prices::default())).service(provider);
    let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (service, is_over, answered) = (service.clone(), Arc::clone(&is_over), Arc::clone(&answered));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Acquire) {
                    let body = ChatBody::builder().user("Hello?").set("max_tokens", 50).build().unwrap();
                    let mut request = LlmRequest::new("p/m", body);
                    request.context = RequestContext::new().with_departments(DEPARTMENTS);
                    match service.clone().oneshot(request).await {
                        Ok(answer) => {
                            assert_eq!(answer.text().await.unwrap(), "hi");
                            answered.fetch_add(1, Ordering::AcqRel);
                        }
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "{error}");
                            // Refused at once: without this nobody would ever listen to Redis again.
                            yield_now().await;
                        }
                    }
                }
            })
        })
        .collect();
    let flow = async || {
        let enough = answered.load(Ordering::Acquire) + 100;
        while answered.load(Ordering::Acquire) < enough {
            sleep(Duration::from_millis(1)).await;
        }
    };
    flow().await;
    for _ in 0..times {
        // Its counters and no records: those are in streams.
        for department in DEPARTMENTS {
            let keys = store.keys(department);
            let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
            server.ask(&[&["DEL"], &keys[..]].concat());
        }
        flow().await;
    }
    is_over.store(true, Ordering::Release);
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    drop(service);
    let report = worker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.left, report.given_up), (0, 0), "{report:?}");
    println!("{} answered, {} leases made anew", answered.load(Ordering::Acquire), report.restored);
    assert!(report.restored > 0, "nothing was in flight");
    let (calendar, now) = (Calendar::utc(), SystemClock.now());
    let drifts = audit(&store, &history, &calendar, now, DEPARTMENTS).await.unwrap();
    assert!(drifts.is_empty(), "{:?}", drifts.iter().map(|drift| drift.by).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_that_are_lost_while_calls_end_are_rebuilt_to_the_last_token() {
    let Some(server) = RedisServer::start("quota_rebuilt: a ledger in a file") else { return };
    let directory = Directory::new();
    let path = directory.join("usage.db");
    let (sink, worker) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default()).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap().behind(&sink);
    lose_counters(&server, 40, sink, reader).await;
    worker.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_they_are_where_records_go_through_redis() {
    let Some(server) = RedisServer::start("quota_rebuilt: a ledger behind a stream") else { return };
    let directory = Directory::new();
    // What is written beside a ledger has names that no other ledger has.
    let path = directory.join("usage.new");
    let redis = Redis::new(&server.url(), RedisOptions::default()).unwrap();
    let stream = RedisStream::new(&redis, RedisStreamOptions::default());
    let (sink, worker) =
        Outbox::start(directory.join("outbox"), Durability::Kill, stream, OutboxOptions::default()).unwrap();
    let collector = Collector::start(&redis, "llm-usage", &path).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap().behind_copy(&sink, &collector);
    lose_counters(&server, 20, sink, reader).await;
    drop(collector);
    worker.shutdown(Duration::from_secs(10)).await;
}
