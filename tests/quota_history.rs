//! Counters that are lost, and the ledger that knows better.

#[path = "support/events.rs"]
mod events;
#[macro_use]
#[path = "quota/pass_on.rs"]
mod pass_on;

use self::events::Directory;
use llm_layers::{
    ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::{Cost, NanoUsd, Price, PriceBook, Rates},
    quota::{
        Adjustment, Amount, Applied, Baseline, Calendar, Days, Decision, Departments, HistoryFuture,
        HistoryQuery, LeaseId, Limits, MemoryStore, QuotaLayer, QuotaStore, Reservation, Settlement,
        Standing, StoreFuture, UsageHistory, Used, WorkerOptions, audit, repair,
    },
    usage::{Durability, LedgerReader, QueueOptions, SqliteLedger, UsageLayer, UsageSink},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tower::{ServiceBuilder, ServiceExt, service_fn};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_that_were_lost_are_rebuilt_from_the_ledger_and_agree_with_it() {
    let directory = std::env::temp_dir().join(format!("llm-layers-quota-history-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("usage.db");
    let (sink, worker) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default()).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap();
    let prices = || {
        let price = Price::new(Rates::per_million("3", "15").unwrap());
        PriceBook::of("sheet", [("p/model", price)]).unwrap()
    };
    let policies = || PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(8)));
    let service = |store: &MemoryStore| {
        let quota = QuotaLayer::new(store.clone(), policies(), prices()).with_history(reader.clone());
        let quota = quota.with_deadline(Duration::from_secs(10));
        ServiceBuilder::new()
            .layer(quota)
            .layer(UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(10)))
            .service(service_fn(|request: LlmRequest| async move {
                Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(7, 3))))
            }))
    };
    let request = || {
        let body = ChatBody::builder().user("Hello").max_output_tokens(10).build().unwrap();
        LlmRequest::new("p/model", body).with_context(RequestContext::new().with_departments(["a", "b"]))
    };
    let before = MemoryStore::new();
    for _ in 0..5 {
        service(&before).oneshot(request()).await.unwrap();
    }
    // A new process, an empty store, the same ledger: five of eight calls are gone.
    let after = MemoryStore::new();
    for call in 0..4 {
        assert_eq!(service(&after).oneshot(request()).await.is_ok(), call < 3, "call {call}");
    }
    let now = SystemClock.now();
    let calendar = Calendar::utc();
    let days = Days::only(calendar.day(now));
    for department in ["a", "b"] {
        let standing = after.usage(&department.into(), &days).await.unwrap();
        assert_eq!(standing.in_day.settled, Amount::new(8, 80, NanoUsd::new(8 * 66_000)));
        assert_eq!(standing.in_day, standing.in_month);
    }
    assert_eq!(audit(&after, &reader, &calendar, now, ["a", "b"]).await.unwrap(), []);
    // The first store has missed three calls.
    let drifts = audit(&before, &reader, &calendar, now, ["a", "b"]).await.unwrap();
    assert_eq!(drifts.len(), 4, "day and month of two departments");
    assert_eq!(repair(&before, &drifts).await.unwrap(), 4);
    assert_eq!(audit(&before, &reader, &calendar, now, ["a", "b"]).await.unwrap(), []);
    worker.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn attempts_that_share_a_lease_are_one_request_and_those_in_flight_are_left_out() {
    let directory = Directory::new();
    let path = directory.join("usage.db");
    let (sink, worker) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default()).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap().behind(&sink);
    let now = SystemClock.now();
    let [first, second] = [LeaseId::mint(now), LeaseId::mint(now)];
    let record = |lease, cost| {
        let mut event = events::event(1);
        (event.lease, event.ended_at) = (lease, now);
        event.usage = TokenUsage::new(7, 3);
        event.cost.amount = Some(NanoUsd::new(cost));
        sink.admit().unwrap().record(event);
    };
    record(Some(first), 1);
    record(Some(first), 20);
    record(Some(second), 300);
    record(None, 4_000);
    record(None, 50_000);
    let used = async |in_flight: &[LeaseId]| {
        let query = HistoryQuery::new("research", Calendar::utc().day(now)).with_in_flight(in_flight);
        let Used { in_day, in_month } = reader.used(query).await.unwrap();
        assert_eq!(in_day, in_month);
        in_day
    };
    // Where nobody knows what it cost, what quotas have charged counts.
    let unpriced = |assumed_cost: Option<i64>| {
        let mut event = events::event(1);
        (event.lease, event.ended_at, event.usage) = (None, now, TokenUsage::new(0, 0));
        (event.cost, event.assumed_cost) = (Cost::unpriced(), assumed_cost.map(NanoUsd::new));
        sink.admit().unwrap().record(event);
    };
    unpriced(Some(600_000));
    unpriced(None);
    // What was recorded just now is there already.
    assert_eq!(used(&[]).await, Amount::new(6, 50, NanoUsd::new(654_321)));
    assert_eq!(used(&[first]).await, Amount::new(5, 30, NanoUsd::new(654_300)));
    assert_eq!(used(&[second, first]).await, Amount::new(4, 20, NanoUsd::new(654_000)));
    worker.shutdown(Duration::from_secs(10)).await;
}

/// Counters in memory that count how often they are asked for a reservation.
#[derive(Clone, Default)]
struct Counting(MemoryStore, Arc<AtomicUsize>);

impl QuotaStore for Counting {
    pass_on!([0] extend, settle, release, usage, seed, adjust);

    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        self.1.fetch_add(1, Ordering::AcqRel);
        self.0.reserve(reservation)
    }

    fn is_immediate(&self) -> bool {
        true
    }
}

/// A ledger that looks up one department after the other, a millisecond each.
struct OneByOne(Arc<tokio::sync::Mutex<()>>);

impl UsageHistory for OneByOne {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        let turn = Arc::clone(&self.0);
        Box::pin(async move {
            let _turn = turn.lock().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Used::default())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn many_departments_that_are_new_at_once_ask_the_store_a_few_times_each() {
    let store = Counting::default();
    let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(8)));
    let (quota, worker) =
        QuotaLayer::pair(store.clone(), policies, PriceBook::default(), WorkerOptions::default());
    let quota = quota.with_history(OneByOne(Arc::default())).with_deadline(Duration::from_millis(250));
    let service = ServiceBuilder::new().layer(quota).service(service_fn(|request: LlmRequest| async move {
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(7, 3))))
    }));
    let calls = (0..100).map(|number| {
        let body = ChatBody::builder().user("Hello").max_output_tokens(10).build().unwrap();
        let context = RequestContext::new().with_departments([format!("new {number}")]);
        service.clone().oneshot(LlmRequest::new("p/model", body).with_context(context))
    });
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 100);
    let asked = store.1.load(Ordering::Acquire);
    // Once more each: a call is first tried without waiting.
    assert!(asked <= 300, "the store was asked {asked} times for 100 calls");
    drop(service);
    worker.shutdown(Duration::from_secs(10)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_questions_at_once_share_a_few_connections() {
    let directory = std::env::temp_dir().join(format!("llm-layers-quota-questions-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("usage.db");
    let (_sink, worker) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default()).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap();
    let open = || {
        let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path)).count()
    };
    let day = Calendar::utc().day(SystemClock.now());
    let asking: Vec<_> = (0..64)
        .map(|number| tokio::spawn(reader.used(HistoryQuery::new(format!("new {number}"), day))))
        .collect();
    let mut most = 0;
    while !asking.iter().all(|one| one.is_finished()) {
        most = most.max(open());
        tokio::task::yield_now().await;
    }
    for one in asking {
        assert_eq!(one.await.unwrap().unwrap(), Used::default());
    }
    assert!(most.max(open()) <= 1 + 4, "{most} connections");
    worker.shutdown(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(directory).unwrap();
}
