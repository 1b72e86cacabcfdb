//! A department that a store does not know, in any store.

use llm_layers::{
    ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::PolicyTable,
    price::{NanoUsd, Prices},
    quota::{
        Amount, Calendar, HistoryFuture, HistoryQuery, QuotaLayer, QuotaStore, UsageHistory, Used,
        WorkerOptions, audit, repair,
    },
};
use std::time::Duration;
use tower::{Layer, ServiceExt, service_fn};

/// A ledger with three calls.
#[derive(Clone)]
struct Three;

impl UsageHistory for Three {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        let three = Amount::new(3, 900, NanoUsd::new(5));
        Box::pin(async move { Ok(Used { in_day: three, in_month: three }) })
    }
}

/// As after an old backup was restored: audit, repair, and then a call.
pub(crate) async fn is_charged_once(store: impl QuotaStore + Clone) {
    let (calendar, now) = (Calendar::utc(), SystemClock.now());
    let drifts = audit(&store, &Three, &calendar, now, ["restored"]).await.unwrap();
    assert_eq!(drifts.iter().map(|drift| drift.is_known).collect::<Vec<_>>(), [false; 2], "day and month");
    assert_eq!(repair(&store, &drifts).await.unwrap(), 0);
    let options = WorkerOptions::default();
    let (layer, worker) = QuotaLayer::pair(store.clone(), PolicyTable::default(), Prices::default(), options);
    let layer = layer.with_history(Three).with_deadline(Duration::from_secs(5));
    let service = layer.layer(service_fn(|request: LlmRequest| async move {
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(7, 3))))
    }));
    let body = ChatBody::builder().user("Hello").max_output_tokens(10).build().unwrap();
    let context = RequestContext::new().with_departments(["restored"]);
    service.oneshot(LlmRequest::new("p/model", body).with_context(context)).await.unwrap();
    assert_eq!(worker.shutdown(Duration::from_secs(10)).await.left, 0);
    let standing = store.usage(&"restored".into(), &calendar.days_around(now)).await.unwrap();
    let four = Amount::new(4, 910, NanoUsd::new(5));
    assert_eq!((standing.in_day.settled, standing.in_month.settled), (four, four));
    let drifts = audit(&store, &Three, &calendar, now, ["restored"]).await.unwrap();
    assert_eq!(repair(&store, &drifts).await.unwrap(), 2, "it is known now");
}
