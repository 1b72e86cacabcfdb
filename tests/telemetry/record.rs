//! The decision record: what every answer and every error says of how it came to be.

use crate::lifecycle::ask;
use llm_layers::{
    Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ServiceBuilderExt as _, TokenUsage,
    alias::AliasTable,
    decision::{AccessDecision, CacheDecision, Note, QuotaDecision},
    fallback::{Chains, FallbackLayer},
    providers::Providers,
    testing::{Reply, Scripted, Step},
};
use std::{sync::Arc, time::Duration};
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

fn stack(provider: &Scripted) -> Stack {
    let providers = Providers::builder().provider("p", provider.clone()).build().unwrap();
    let aliases = AliasTable::builder().alias("fast", "usual").alias("usual", "p/a").build().unwrap();
    let chains = Chains::builder().chain("p/a", ["p/b"]).build().unwrap();
    let stack = ServiceBuilder::new().alias(aliases).layer(FallbackLayer::new(chains)).service(providers);
    Stack::new(stack)
}

fn down() -> Reply {
    Reply::error(Error::provider(ErrorClass::Unavailable, "p", "a"))
        .after([Step::Wait(Duration::from_secs(2))])
}

fn fast(keep: bool) -> LlmRequest {
    let mut request = LlmRequest::new("fast", ask(false).body);
    if keep {
        request.keep_decisions();
    }
    request
}

#[tokio::test(start_paused = true)]
async fn an_answer_tells_the_names_the_attempts_and_how_long_they_took() {
    let slow = || Reply::text("hi").after([Step::Wait(Duration::from_secs(3))]);
    let provider = Scripted::new().reply(down()).reply(slow());
    let answer = stack(&provider).oneshot(fast(true)).await.unwrap();
    let record = answer.decision_record();
    assert_eq!(record.requested.as_deref(), Some("fast"));
    assert_eq!(record.aliases, ["usual", "p/a"]);
    assert_eq!(record.attempts.len(), 2);
    let [failed, answered] = &record.attempts[..] else { unreachable!() };
    assert_eq!((failed.model.as_str(), failed.failure), ("p/a", Some("unavailable")));
    assert_eq!(failed.latency, Some(Duration::from_secs(2)));
    assert_eq!((answered.model.as_str(), answered.failure), ("p/b", None));
    assert_eq!((answered.wait, answered.latency), (Duration::ZERO, Some(Duration::from_secs(3))));
    assert_eq!((record.model.as_deref(), record.provider.as_deref()), (Some("p/b"), Some("p")));
    assert_eq!(record.failure, None);

    // Nobody has asked: nothing is noted, and what the answer knows by itself is there.
    let provider = Scripted::new().reply(down()).reply(slow());
    let record = stack(&provider).oneshot(fast(false)).await.unwrap().decision_record();
    assert_eq!((record.requested, record.aliases.len()), (None, 0));
    let tried: Vec<_> = record.attempts.iter().map(|attempt| (&*attempt.model, attempt.failure)).collect();
    assert_eq!(tried, [("p/a", Some("unavailable")), ("p/b", None)]);
}

#[tokio::test(start_paused = true)]
async fn an_error_tells_them_too() {
    let provider = Scripted::new().reply(down()).reply(down());
    let error = stack(&provider).oneshot(fast(true)).await.unwrap_err();
    let record = error.decision_record();
    assert_eq!(record.requested.as_deref(), Some("fast"));
    assert_eq!(record.aliases, ["usual", "p/a"]);
    let tried: Vec<_> = record.attempts.iter().map(|attempt| (&*attempt.model, attempt.failure)).collect();
    assert_eq!(tried, [("p/a", Some("unavailable")), ("p/b", Some("unavailable"))]);
    assert_eq!((record.model, record.failure), (None, Some("unavailable")));
}

#[tokio::test(start_paused = true)]
async fn what_other_layers_note_is_in_it() {
    let department: Arc<str> = "ops".into();
    let quota = QuotaDecision::new(
        Arc::clone(&department),
        llm_layers::QuotaKind::Tokens,
        llm_layers::Period::Day,
        1000,
    )
    .with_use(400, 100);
    let access = AccessDecision::new("p/a", Some(department), true);
    let cache = CacheDecision::new(llm_layers::CacheStatus::Miss, "not there");
    let notes = (quota.clone(), access.clone(), cache.clone());
    // Stands for access, quota and cache.
    let gates = service_fn(move |request: LlmRequest| {
        let (quota, access, cache) = notes.clone();
        request.decisions().note(|| Note::Access(access));
        request.decisions().note(|| Note::Cache(cache));
        request.decisions().note(|| Note::Quota(quota));
        async move {
            let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)));
            answer.cache = llm_layers::CacheStatus::Miss;
            Ok::<_, Error>(answer)
        }
    });
    let stack = ServiceBuilder::new().layer(FallbackLayer::new(Chains::default())).service(gates);
    let record = stack.oneshot(fast(true)).await.unwrap().decision_record();
    assert_eq!((record.quotas, record.access, record.cache), (vec![quota], vec![access], cache));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_tells_whom_and_what_without_being_asked_to() {
    let error = Error::new(ErrorKind::ModelNotAllowed { department_id: "ops".into(), model: "p/a".into() });
    let record = error.decision_record();
    assert_eq!(record.access, [AccessDecision::new("p/a", Some("ops".into()), false)]);
    assert_eq!(record.failure, Some("model_not_allowed"));
}

#[test]
fn notes_are_bounded() {
    let request = fast(true);
    for _ in 0..10_000 {
        let model = request.model.clone();
        request.decisions().note(|| Note::Alias { from: model.clone(), to: model });
    }
    assert_eq!(request.decisions().notes().len(), 256);
}
