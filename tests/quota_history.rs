//! Counters that are lost, and the ledger that knows better.

use llm_layers::{
    ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Rates},
    quota::{Amount, Calendar, Days, Limits, MemoryStore, QuotaLayer, QuotaStore, audit, repair},
    usage::{Durability, LedgerReader, QueueOptions, SqliteLedger, UsageLayer},
};
use std::time::Duration;
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
