//! What a department whose counters are damaged does to others.

#[path = "../support/log.rs"]
mod log;

use llm_layers::{
    ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    policies::{DepartmentPolicy, PolicyTable},
    price::Prices,
    quota::{Limits, QuotaLayer, QuotaStore, StoreError, WorkerOptions},
};
use log::Log;
use std::{
    error::Error as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tower::{Layer, ServiceExt, service_fn};

/// Makes calls in the name of `broken`, whose counters are damaged by `damage` once it has some: more of them than failures of a
/// store make it be left alone.
pub(crate) async fn is_nobody_elses(store: impl QuotaStore + Clone, damage: impl FnOnce()) {
    let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_month_requests(1000)));
    let (layer, worker) = QuotaLayer::pair(store, policies, Prices::default(), WorkerOptions::default());
    let layer = layer.with_deadline(Duration::from_secs(20));
    let asked = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&asked);
    let provider = service_fn(move |request: LlmRequest| {
        counts.fetch_add(1, Ordering::AcqRel);
        request.progress.mark_dispatched();
        let answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(5, 5)));
        async move { Ok::<_, Error>(answer) }
    });
    let service = layer.layer(provider);
    let call = async |departments: &[&str]| {
        let body = ChatBody::builder().user("Hello?").set("max_tokens", 50).build().unwrap();
        let context = RequestContext::new().with_departments(departments.iter().copied());
        service.clone().oneshot(LlmRequest::new("p/m", body).with_context(context)).await
    };
    for department in ["broken", "sound"] {
        call(&[department]).await.unwrap();
    }
    while worker.report().settled < 2 {
        tokio::task::yield_now().await;
    }
    damage();
    let log = Log::default();
    let _told = tracing::subscriber::set_default(log.subscriber());
    for departments in [&["broken"] as &[_], &["broken", "sound"], &["sound", "broken"]] {
        for _ in 0..6 {
            let error = call(departments).await.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "{error}");
            let cause = error.source().and_then(|cause| cause.downcast_ref::<StoreError>());
            assert!(matches!(cause, Some(StoreError::Damaged(_))), "not asked, or not understood: {cause:?}");
            assert!(layer.is_available());
        }
    }
    assert_eq!(asked.load(Ordering::Acquire), 2);
    call(&["sound"]).await.unwrap();
    assert_eq!(asked.load(Ordering::Acquire), 3);
    // For each of these callers once.
    let told = log.text();
    let told: Vec<_> = told.lines().filter_map(|line| line.split_once("are damaged error=\"")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].1.starts_with("broken: ") && told[1].1.starts_with("broken, sound: "), "{told:?}");
    drop((service, layer));
    let report = worker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.left, report.last_error), (0, None), "what was surely not reserved is not given back");
}
