//! What the program gives in place of what a configuration says, beside stores and leaves.

use super::*;
use llm_layers::{
    config::Problem,
    quota::{Amount, HistoryFuture, HistoryQuery, UsageHistory, Used},
    usage::{GroupBy, UsageQuery, UsageReader},
};

/// Every department has used up so many requests.
#[derive(Clone)]
struct Past(u64);

impl UsageHistory for Past {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        let used = Amount::new(self.0, 0, NanoUsd::ZERO);
        Box::pin(async move { Ok(Used { in_day: used, in_month: used }) })
    }
}

#[tokio::test]
async fn a_sink_that_takes_nothing_more_makes_a_stack_unready() {
    let sink = MemorySink::new(1);
    let pointer: Box<dyn UsageSink> = Box::new(Arc::new(sink.clone()));
    let (service, handle) = StackBuilder::new(config("")).with_usage_sink(pointer).build().await.unwrap();
    assert_eq!(handle.readiness(), Readiness::Ready);
    service.clone().oneshot(request("echo/a")).await.unwrap();
    assert_eq!(handle.readiness(), Readiness::UsageUnavailable);
    let refused = service.clone().oneshot(request("echo/a")).await.unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::StoreUnavailable { .. }), "{refused}");
    assert_eq!(sink.take().len(), 1);
    assert_eq!(handle.readiness(), Readiness::Ready);
    service.oneshot(request("echo/a")).await.unwrap();
}

#[tokio::test]
async fn counters_are_made_anew_from_the_history_that_a_program_gives() {
    let text = "departments.a.day_requests = 3\n";
    let builder = StackBuilder::new(config(text))
        .with_usage_sink(MemorySink::new(8))
        .with_usage_history(Past(2))
        .with_quota_store(MemoryStore::new());
    let (service, handle) = builder.build().await.unwrap();
    let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
    let view = handle.quota("a").await.unwrap().unwrap();
    assert_eq!(view.standing.in_day.settled.requests, 2);
    ask().await.unwrap();
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::QuotaExceeded(_)));
}

#[tokio::test]
async fn counters_that_nobody_can_make_good_are_warned_of() {
    let warnings = |builder: StackBuilder| {
        let said = |problem: &Problem| format!("{}: {}", problem.entry, problem.what);
        builder.describe().unwrap().warnings().iter().map(said).collect::<Vec<_>>()
    };
    let limited = |text: &str| StackBuilder::new(config(&format!("departments.a.day_requests = 1\n{text}")));
    let recorded = |text: &str| limited(text).with_usage_sink(MemorySink::new(1));
    let lost = "quota: records go into a sink of the program's own, and it gives no history: counters that are lost begin at nothing";
    assert_eq!(warnings(recorded("quota.path = \"q.db\"\n")), [lost]);
    assert_eq!(warnings(recorded("").with_quota_store(MemoryStore::new())), [lost]);
    let forgotten = "quota.store: without [usage], what was used is forgotten at each start";
    assert_eq!(warnings(limited("quota.store = \"memory\"\n")), [forgotten]);
    let forgotten = "quota.store: records go into a sink of the program's own, and it gives no history: what was used is forgotten at each start";
    assert_eq!(warnings(recorded("quota.store = \"memory\"\n")), [forgotten]);
    for text in ["", "quota.store = \"memory\"\n"] {
        assert_eq!(warnings(recorded(text).with_usage_history(Past(0))), [""; 0], "{text}");
        assert_eq!(warnings(limited(text).with_usage_history(Past(0))), [""; 0], "{text}");
    }
    // Nothing is lost where nothing is counted.
    assert_eq!(warnings(StackBuilder::new(config("")).with_usage_sink(MemorySink::new(1))), [""; 0]);
    let idle = refusal(StackBuilder::new(config("")).with_usage_history(Past(0)).describe());
    assert_eq!(idle, ["quota: the program gives a history, and nothing is limited"]);
}

#[tokio::test]
async fn what_was_used_is_read_from_the_ledger_of_a_program() {
    let ledger = MemorySink::new(8);
    let reader: Box<dyn UsageReader> = Box::new(ledger.clone());
    let builder = StackBuilder::new(config("")).with_usage_sink(ledger).with_usage_reader(reader);
    let (service, handle) = builder.build().await.unwrap();
    for department in ["a", "b", "a"] {
        service.clone().oneshot(of(request("echo/a"), "ada", &[department])).await.unwrap();
    }
    let usage = handle.usage().unwrap();
    assert_eq!(usage.totals(&UsageQuery::new()).await.unwrap().calls, 3);
    let groups = usage.totals_by(&UsageQuery::new().with_department("a"), &[GroupBy::User]).await.unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!((groups[0].key[0].as_deref(), groups[0].totals.calls), (Some("ada"), 2));
    #[cfg(feature = "axum")]
    {
        use llm_layers::http::axum::admin;
        let root = Caller::of(RequestContext::new()).admin();
        let answer = admin::usage(&handle, &root, Some(&admin::UsageQuestion::default())).await;
        assert_eq!(answer.unwrap_or_else(|_| panic!("it is recorded")).status(), http::StatusCode::OK);
    }

    // What goes into a sink without one is known to nobody.
    let (_, handle) =
        StackBuilder::new(config("")).with_usage_sink(MemorySink::new(1)).build().await.unwrap();
    assert!(handle.usage().is_none());
    let idle = refusal(StackBuilder::new(config("")).with_usage_reader(MemorySink::new(1)).describe());
    assert_eq!(idle, ["usage: the program gives a reader, and nothing is recorded"]);
}
