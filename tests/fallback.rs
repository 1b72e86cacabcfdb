//! `FallbackLayer` and the `Peek` in it.

#[path = "support/faulty.rs"]
mod faulty;

use self::faulty::faulty;
use llm_layers::{
    ChatBody, Completion, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest, LlmResponse, ModelName,
    ProviderFailure, RequestContext, ResponseBody, StreamChunk, TimeoutPhase, TokenUsage,
    alias::{AliasTable, Aliases},
    concurrency::ConcurrencyLimitLayer,
    fallback::{
        Action, Backoff, Cause, ChainProblem, Chains, ChainsBuilder, Decision, Failure, FallbackLayer, Policy,
    },
    peek::PeekLayer,
    providers::{Endpoint, ProviderNames, Providers},
    testing::{Reply, Scripted, Step},
};
use std::time::Duration;
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_test::mock;

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Say hi.").build().unwrap())
}

fn down() -> Error {
    failure(ErrorClass::Unavailable)
}

fn failure(class: ErrorClass) -> Error {
    Error::provider(class, "p", "m")
}

fn retry_after(seconds: u64) -> Error {
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "p", "m");
    failure.retry_after = Some(Duration::from_secs(seconds));
    Error::new(ErrorKind::Provider(failure))
}

fn chains() -> ChainsBuilder {
    Chains::builder().chain("p/a", ["p/b", "p/c"])
}

fn over(
    provider: &Scripted,
    chains: ChainsBuilder,
) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error> {
    FallbackLayer::new(chains.build().unwrap()).layer(provider.clone())
}

async fn ask(provider: &Scripted, chains: ChainsBuilder) -> Result<LlmResponse, Error> {
    over(provider, chains).oneshot(request("p/a")).await
}

fn asked(provider: &Scripted) -> Vec<ModelName> {
    provider.requests().into_iter().map(|request| request.model).collect()
}

macro_rules! assert_asks {
    ($provider:expr, $model:expr) => {{
        let (request, answer) = $provider.next_request().await.expect("no request");
        assert_eq!(request.model, $model);
        answer
    }};
}

// ===== rows of the seed =====

#[tokio::test]
async fn seed_05_models_are_tried_in_order_and_the_last_error_is_raised() {
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains().build().unwrap()));
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request("p/a")));

    assert_asks!(provider, "p/a").send_error(down());
    assert_pending!(response.poll());
    assert_asks!(provider, "p/b").send_error(failure(ErrorClass::Auth));
    assert_pending!(response.poll());
    assert_asks!(provider, "p/c").send_error(failure(ErrorClass::BadFrame));
    let error = assert_ready_err!(response.poll());
    assert_eq!(error.class(), Some(ErrorClass::BadFrame));
    let attempts: Vec<_> =
        error.attempts().iter().map(|a| (a.model.as_str(), a.error.class().unwrap())).collect();
    let expected =
        [("p/a", ErrorClass::Unavailable), ("p/b", ErrorClass::Auth), ("p/c", ErrorClass::BadFrame)];
    assert_eq!(attempts, expected);
}

#[tokio::test]
async fn seed_05_an_answer_tells_what_failed_before_it() {
    let provider = Scripted::new().reply(Reply::error(down())).reply(Reply::text("hi"));
    let answer = ask(&provider, chains()).await.unwrap();
    assert_eq!(answer.attempts.len(), 1);
    assert_eq!(answer.attempts[0].model, "p/a");
    assert_eq!(answer.model, "p/b");
    let requests = provider.requests();
    assert_eq!(requests.iter().map(|r| r.attempt).collect::<Vec<_>>(), [0, 1]);
    assert!(requests.iter().all(|r| r.requested == "p/a"));
}

#[tokio::test]
async fn seed_05_chains_are_keyed_by_the_first_model_only() {
    let provider = (0..3).fold(Scripted::new(), |p, _| p.reply(Reply::error(down())));
    let chains = Chains::builder().chain("p/a", ["p/b"]).chain("p/b", ["p/c", "p/a"]);
    ask(&provider, chains).await.unwrap_err();
    assert_eq!(asked(&provider), ["p/a", "p/b"]);
}

#[tokio::test]
async fn seed_05_a_model_without_a_provider_is_skipped_wherever_it_stands() {
    let layer = |targets: &[&'static str]| {
        let chains = Chains::builder().chain("x/a", targets.to_vec()).build().unwrap();
        FallbackLayer::new(chains).with_providers(ProviderNames::new(["p"]))
    };
    let provider = Scripted::new();
    let answer = layer(&["x/b", "p/c"]).layer(provider.clone()).oneshot(request("x/a")).await.unwrap();
    assert_eq!(answer.model, "p/c");
    assert_eq!(asked(&provider), ["p/c"]);
    let skipped: Vec<_> = answer.attempts.iter().map(|a| a.model.as_str()).collect();
    assert_eq!(skipped, ["x/a", "x/b"]);

    let provider = Scripted::new();
    let error = layer(&["x/b"]).layer(provider.clone()).oneshot(request("x/a")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ModelNotFound { model } if model == "x/a"));
    assert_eq!(error.attempts().len(), 2);
    assert!(asked(&provider).is_empty());
}

#[tokio::test]
async fn seed_05_a_real_failure_is_not_hidden_by_a_skip_after_it() {
    let provider = Scripted::new().reply(Reply::error(down()));
    let chains = Chains::builder().chain("p/a", ["x/b"]).build().unwrap();
    let layer = FallbackLayer::new(chains).with_providers(ProviderNames::new(["p"]));
    let error = layer.layer(provider).oneshot(request("p/a")).await.unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::Unavailable));
    assert_eq!(error.attempts().len(), 2);
}

#[tokio::test]
async fn seed_05_targets_may_be_aliases_of_this_tenant() {
    let table = AliasTable::builder()
        .alias("backup", "p/b")
        .for_tenant("acme")
        .alias("backup", "p/acme")
        .build()
        .unwrap();
    let chains = Chains::builder().chain("p/a", ["backup"]).aliases(Aliases::new(table));
    let provider = Scripted::new().reply(Reply::error(down()));
    let request = request("p/a").with_context(RequestContext::new().with_tenant_id("acme"));
    over(&provider, chains).oneshot(request).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/acme"]);
}

#[tokio::test]
async fn seed_06_a_blank_answer_without_tool_calls_fails_and_keeps_its_usage() {
    let blank = Completion::text(" \n", TokenUsage::new(9, 2));
    let provider = Scripted::new().reply(Reply::complete(blank));
    let answer = ask(&provider, chains()).await.unwrap();
    assert_eq!(answer.model, "p/b");
    let error = &answer.attempts[0].error;
    assert!(matches!(error.kind(), ErrorKind::EmptyResponse { model, .. } if model == "p/a"));
    assert!(error.dispatched());
    assert_eq!(error.usage(), Some(&TokenUsage::new(9, 2)));

    let call = Completion::tool_call("1", "f", "{}", TokenUsage::new(9, 2));
    let provider = Scripted::new().reply(Reply::complete(call));
    assert_eq!(ask(&provider, chains()).await.unwrap().model, "p/a");
}

/// An answer without content whose choices end so; it used up 9 and 5 tokens.
fn nothing_but(reasons: &[&str], is_streamed: bool) -> Reply {
    let choices = |said: &str| {
        let choice = |(at, reason)| format!(r#"{{"index":{at},"{said}":{{}},"finish_reason":"{reason}"}}"#);
        reasons.iter().enumerate().map(choice).collect::<Vec<_>>().join(",")
    };
    if is_streamed {
        let chunk = StreamChunk::parse(format!(r#"{{"choices":[{}]}}"#, choices("delta"))).unwrap();
        let usage = StreamChunk::usage_only(TokenUsage::new(9, 5));
        return Reply::stream([StreamChunk::role(), chunk, usage].map(Step::Chunk));
    }
    let usage = r#"{"prompt_tokens":9,"completion_tokens":5}"#;
    let whole = format!(r#"{{"choices":[{}],"usage":{usage}}}"#, choices("message"));
    Reply::complete(Completion::parse(whole).unwrap())
}

#[tokio::test]
async fn an_answer_without_content_that_was_filtered_is_refused_content() {
    for (reasons, is_streamed) in [
        (&["content_filter"][..], false),
        (&["content_filter"], true),
        (&["stop", "content_filter"], false),
        (&["stop", "content_filter"], true),
        (&["content_filter: PROHIBITED_CONTENT"], false),
        (&["sensitive"], true),
    ] {
        let reply = || nothing_but(reasons, is_streamed);
        let other = chains().chain_on(Cause::ContentFilter, "p/a", ["p/other"]);
        let provider = Scripted::new().reply(reply());
        let answer = ask(&provider, other.retries(2).on(Cause::Empty, Action::Stop)).await.unwrap();
        assert_eq!(asked(&provider), ["p/a", "p/other"]);
        let error = &answer.attempts[0].error;
        let ErrorKind::Provider(failure) = error.kind() else { panic!("{error:?}") };
        assert_eq!(failure.class, ErrorClass::ContentFilter);
        assert_eq!((&*failure.provider, &*failure.model), ("p", "a"));
        assert!(error.dispatched());
        assert_eq!(error.usage(), Some(&TokenUsage::new(9, 5)));

        let provider = Scripted::new().reply(reply());
        let error = ask(&provider, Chains::builder().retries(2)).await.unwrap_err();
        assert_eq!((error.class(), error.status().as_u16()), (Some(ErrorClass::ContentFilter), 400));
        assert_eq!((error.is_retryable(), asked(&provider).len()), (false, 1));
    }
    // What was said before a filter cut it is an answer.
    let cut = r#"{"choices":[{"index":0,"message":{"content":"I"},"finish_reason":"content_filter"}]}"#;
    let provider = Scripted::new().reply(Reply::complete(Completion::parse(cut).unwrap()));
    assert_eq!(ask(&provider, chains()).await.unwrap().model, "p/a");
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_content_that_met_its_bound_is_not_asked_for_again() {
    for is_streamed in [false, true] {
        let reply = || nothing_but(&["length"], is_streamed);
        let provider = Scripted::new().reply(reply());
        let answer = ask(&provider, chains().retries(2).on(Cause::Empty, Action::Retry)).await.unwrap();
        assert_eq!((asked(&provider), &*answer.model), (vec!["p/a".into(), "p/b".into()], "p/b"));

        let provider = Scripted::new().reply(reply());
        let error = ask(&provider, Chains::builder().retries(2)).await.unwrap_err();
        assert_eq!(asked(&provider).len(), 1);
        assert!(matches!(error.kind(), ErrorKind::EmptyResponse { .. }), "{error:?}");
        assert_eq!(error.finish_reason(), Some(&FinishReason::Length));
        assert_eq!(error.to_string(), "model p/a answered nothing within its bound on tokens");
        assert_eq!(error.usage(), Some(&TokenUsage::new(9, 5)));
        assert!(!error.is_retryable());

        // Another try may say more where a choice ended on its own.
        for reasons in [&["stop"][..], &["length", "stop"]] {
            let provider = Scripted::new().reply(nothing_but(reasons, is_streamed));
            let answer = ask(&provider, chains().retries(2)).await.unwrap();
            assert_eq!(asked(&provider), ["p/a", "p/a"], "{reasons:?}");
            assert!(answer.attempts[0].error.is_retryable());
        }
    }
}

#[tokio::test]
async fn seed_07_a_stream_falls_back_only_before_its_first_content() {
    let role = Step::Chunk(StreamChunk::role());
    let text = Step::Chunk(StreamChunk::text("h"));
    let broken = Step::Fail(failure(ErrorClass::Transport));
    let provider = Scripted::new()
        .reply(Reply::stream([role.clone(), broken.clone()]))
        .reply(Reply::stream([role, text, broken]));
    let answer = ask(&provider, chains()).await.unwrap();
    assert_eq!(answer.model, "p/b");
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
    assert!(chunks.next().await.unwrap().is_ok());
    assert_eq!(chunks.next().await.unwrap().unwrap().content(), "h");
    let error = chunks.next().await.unwrap().unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::Transport));
    assert!(chunks.next().await.is_none());
    assert_eq!(asked(&provider), ["p/a", "p/b"]);
}

#[tokio::test]
async fn seed_07_a_stream_that_is_cut_after_content_never_looks_finished() {
    let provider = Scripted::new().reply(Reply::stream([Step::Chunk(StreamChunk::text("h")), Step::Cut]));
    let error = ask(&provider, chains()).await.unwrap().text().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StreamInterrupted { after_content: true, .. }));
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn seed_08_an_empty_stream_fails_and_one_of_tool_calls_does_not() {
    let finish = StreamChunk::finish(&FinishReason::Stop);
    let usage = StreamChunk::usage_only(TokenUsage::new(5, 0));
    let provider = Scripted::new()
        .reply(Reply::stream([]))
        .reply(Reply::stream([StreamChunk::role(), StreamChunk::text(" \n"), finish, usage].map(Step::Chunk)))
        .reply(Reply::words(["hi"]));
    let answer = ask(&provider, chains()).await.unwrap();
    assert_eq!(answer.model, "p/c");
    assert_eq!(answer.attempts.len(), 2);
    assert_eq!(answer.attempts[1].error.usage(), Some(&TokenUsage::new(5, 0)));
    assert!(answer.attempts.iter().all(|a| matches!(a.error.kind(), ErrorKind::EmptyResponse { .. })));
    assert_eq!(answer.text().await.unwrap(), "hi");

    let call =
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"f"}}]}}]}"#;
    let provider = Scripted::new().reply(Reply::stream([Step::Chunk(StreamChunk::parse(call).unwrap())]));
    assert_eq!(ask(&provider, chains()).await.unwrap().model, "p/a");
}

// ===== what no policy may break =====

/// Tries for ever.
#[derive(Clone)]
struct Endless;

impl Policy for Endless {
    fn decide(&mut self, _: &Failure<'_>) -> Decision {
        Decision::Retry { after: Duration::ZERO }
    }
}

#[tokio::test]
async fn seed_05_an_endless_policy_comes_to_its_end() {
    let provider = (0..99).fold(Scripted::new(), |p, _| p.reply(Reply::error(down())));
    let error =
        FallbackLayer::new(Endless).layer(provider.clone()).oneshot(request("p/a")).await.unwrap_err();
    assert_eq!((provider.requests().len(), error.attempts().len()), (8, 8));

    let strangers = {
        let mut n = 0;
        move |_: &Failure<'_>| {
            n += 1;
            Decision::Next(format!("x/{n}").into())
        }
    };
    let layer = FallbackLayer::new(strangers).with_providers(ProviderNames::new(["p"]));
    let error = layer.layer(provider.clone()).oneshot(request("p/a")).await.unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::Unavailable));
    assert_eq!(provider.requests().len(), 9);
}

#[tokio::test]
async fn a_model_is_not_tried_twice_by_next() {
    let back = |_: &Failure<'_>| Decision::Next("p/a".into());
    let provider = Scripted::new().reply(Reply::error(down()));
    FallbackLayer::new(back).layer(provider.clone()).oneshot(request("p/a")).await.unwrap_err();
    assert_eq!(asked(&provider), ["p/a"]);
}

#[tokio::test]
async fn final_errors_are_final() {
    let kinds = [
        ErrorKind::StoreUnavailable { store: "quota".into() },
        ErrorKind::RequestTooLarge {
            department_id: "d".into(),
            quota: llm_layers::QuotaKind::Tokens,
            period: llm_layers::Period::Day,
            largest: 1,
        },
        ErrorKind::NotCached,
        ErrorKind::Cancelled,
        ErrorKind::ModelNotAllowed { department_id: "d".into(), model: "p/a".into() },
        ErrorKind::ModelUnpriced { model: "p/a".into() },
        ErrorKind::Timeout { phase: TimeoutPhase::Deadline },
    ];
    for kind in kinds {
        let provider = Scripted::new().reply(Reply::error(Error::new(kind.clone())));
        let error = ask(&provider, chains()).await.unwrap_err();
        assert_eq!(asked(&provider), ["p/a"], "{kind:?}");
        assert_eq!(std::mem::discriminant(error.kind()), std::mem::discriminant(&kind));
    }
}

#[tokio::test]
async fn seed_10_a_forbidden_or_unpriced_target_is_skipped() {
    for kind in [
        ErrorKind::ModelNotAllowed { department_id: "d".into(), model: "p/b".into() },
        ErrorKind::ModelUnpriced { model: "p/b".into() },
        ErrorKind::ModelNotFound { model: "p/b".into() },
    ] {
        let provider = Scripted::new().reply(Reply::error(down())).reply(Reply::error(Error::new(kind)));
        assert_eq!(ask(&provider, chains()).await.unwrap().model, "p/c");
    }
    let forbidden = || ErrorKind::ModelNotAllowed { department_id: "d".into(), model: "p/b".into() };
    let provider = Scripted::new()
        .reply(Reply::error(down()))
        .reply(Reply::error(Error::new(forbidden())))
        .reply(Reply::error(Error::new(forbidden())));
    let error = ask(&provider, chains()).await.unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::Unavailable), "the real failure is the one to tell");
}

#[tokio::test]
async fn each_attempt_has_its_own_progress() {
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains().build().unwrap()));
    assert_ready_ok!(service.poll_ready());
    let request = request("p/a");
    let progress = request.progress.clone();
    let mut response = task::spawn(service.call(request));

    let (first, answer) = provider.next_request().await.unwrap();
    first.progress.mark_dispatched();
    assert!(progress.is_dispatched(), "a mark goes to the ancestors");
    answer.send_error(down());
    assert_pending!(response.poll());
    let (second, _) = provider.next_request().await.unwrap();
    assert!(!second.progress.is_dispatched(), "and not to the children");
}

// ===== retries, waiting, deadlines =====

#[tokio::test(start_paused = true)]
async fn seed_05_the_same_model_is_tried_again_before_the_next() {
    let provider = (0..4).fold(Scripted::new(), |p, _| p.reply(Reply::error(down())));
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
    let started = Instant::now();
    let answer = ask(&provider, chains().retries(1).backoff(backoff)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/a", "p/b", "p/b", "p/c"]);
    let waited: Duration = answer.attempts.iter().map(|a| a.wait).sum();
    assert!(waited <= Duration::from_secs(2) && started.elapsed() >= waited);
}

#[tokio::test(start_paused = true)]
async fn each_model_is_tried_again_as_often_whatever_made_the_one_before_it_be_left() {
    let provider = Scripted::new()
        .reply(Reply::error(down()))
        .reply(Reply::error(failure(ErrorClass::Auth)))
        .reply(Reply::error(down()));
    ask(&provider, chains().retries(1)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/a", "p/b", "p/b"]);
}

#[test]
fn a_wait_is_bounded_and_does_not_shrink_however_often_was_retried() {
    let (base, max) = (Duration::from_millis(1), Duration::from_secs(1));
    for retries in [10, 31, 32, 64, u32::MAX] {
        let longest = (0..200).map(|_| Backoff::new(base, max).after(retries)).max().unwrap();
        assert!(longest > max / 2 && longest <= max, "{retries}: {longest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn seed_05_retry_after_is_waited_for_if_it_is_short_and_a_reason_to_leave_if_it_is_long() {
    let provider = Scripted::new().reply(Reply::error(retry_after(7)));
    let started = Instant::now();
    ask(&provider, chains().retries(1)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/a"]);
    assert!(started.elapsed() >= Duration::from_secs(7) && started.elapsed() < Duration::from_secs(8));

    let provider = Scripted::new().reply(Reply::error(retry_after(3600)));
    let started = Instant::now();
    ask(&provider, chains().retries(1)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/b"]);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_a_longer_wait_than_there_is_time_is_left_for_the_next_model() {
    // The budget is for one.
    let budget = || tower::retry::budget::TpsBudget::new(Duration::from_secs(1), 1, 0.0);
    let layer = || FallbackLayer::new(chains().retries(1).retry_budget(budget()).build().unwrap());
    let five = Duration::from_secs(5);
    let timed = request("p/a").with_context(RequestContext::new().with_timeout(five));
    for (layer, request) in [(layer().with_deadline(five), request("p/a")), (layer(), timed)] {
        let provider =
            Scripted::new().reply(Reply::error(retry_after(8))).reply(Reply::error(retry_after(2)));
        let started = Instant::now();
        layer.layer(provider.clone()).oneshot(request).await.unwrap();
        // What was not waited for takes nothing out of the budget.
        assert_eq!(asked(&provider), ["p/a", "p/b", "p/b"]);
        assert_eq!(started.elapsed(), Duration::from_secs(2));
    }

    // A policy that would wait all the same ends the call.
    let provider = Scripted::new().reply(Reply::error(down())).reply(Reply::error(down()));
    let waits = |failure: &Failure<'_>| Decision::Retry { after: failure.time_left.unwrap() / 2 * 3 };
    let service = FallbackLayer::new(waits).with_deadline(five).layer(provider.clone());
    let started = Instant::now();
    let error = service.oneshot(request("p/a")).await.unwrap_err();
    assert_eq!((asked(&provider).len(), error.attempts().len()), (1, 1));
    assert_eq!((error.class(), started.elapsed()), (Some(ErrorClass::Unavailable), Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_when_the_time_is_up() {
    let five = Duration::from_secs(5);
    let layer = || FallbackLayer::new(chains().build().unwrap()).with_deadline(five);

    // The first attempt ends with the time, or is seen to have ended only after it.
    for late in [Duration::ZERO, five] {
        let end = Reply::error(down()).after([Step::Gate]);
        let provider = Scripted::new().reply(end);
        let mut response = task::spawn(layer().layer(provider.clone()).oneshot(request("p/a")));
        assert_pending!(response.poll());
        provider.open();
        tokio::time::advance(five + late).await;
        let error = assert_ready_err!(response.poll());
        assert_eq!((asked(&provider).len(), error.attempts().len()), (1, 1));
        assert_eq!((error.class(), error.dispatched()), (Some(ErrorClass::Unavailable), true));
    }

    // The time ends while a further one waits, and is seen to have ended only then.
    let provider = Scripted::new().reply(Reply::error(retry_after(4)));
    let chains = chains().retries(1).build().unwrap();
    let service = FallbackLayer::new(chains).with_deadline(five).layer(provider.clone());
    let mut response = task::spawn(service.oneshot(request("p/a")));
    assert_pending!(response.poll());
    tokio::time::advance(2 * five).await;
    let error = assert_ready_err!(response.poll());
    assert_eq!((asked(&provider).len(), error.attempts().len()), (1, 1));
    assert_eq!(error.class(), Some(ErrorClass::RateLimited));

    // The caller's own had passed before the call.
    let provider = Scripted::new();
    let context = RequestContext::new().with_timeout(five);
    tokio::time::advance(five).await;
    let late = request("p/a").with_context(context);
    let error = layer().layer(provider.clone()).oneshot(late).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }));
    assert!(asked(&provider).is_empty() && !error.dispatched());
}

#[tokio::test(start_paused = true)]
async fn a_wait_without_end_ends_a_call_with_a_deadline() {
    let provider = Scripted::new().reply(Reply::error(down()));
    let waits = |_: &Failure<'_>| Decision::Retry { after: Duration::MAX };
    let service = FallbackLayer::new(waits).with_deadline(Duration::from_secs(5)).layer(provider);
    assert_eq!(service.oneshot(request("p/a")).await.unwrap_err().class(), Some(ErrorClass::Unavailable));
}

#[tokio::test]
async fn seed_05_rules_say_what_to_do_about_each_cause() {
    let rules = |class, chains: ChainsBuilder| async move {
        let provider = Scripted::new().reply(Reply::error(failure(class)));
        let result = ask(&provider, chains).await;
        (asked(&provider), result.is_ok())
    };
    let stop = chains().on(Cause::Auth, Action::Stop);
    assert_eq!(rules(ErrorClass::Auth, stop).await, (vec!["p/a".into()], false));
    let long = || chains().chain_on(Cause::ContextWindow, "p/a", ["p/long"]);
    assert_eq!(rules(ErrorClass::ContextWindow, long()).await, (vec!["p/a".into(), "p/long".into()], true));
    assert_eq!(rules(ErrorClass::Upstream, long()).await, (vec!["p/a".into(), "p/b".into()], true));
    // What would come to the same is not asked of the same model again.
    for class in [
        ErrorClass::Auth,
        ErrorClass::BadRequest,
        ErrorClass::ContextWindow,
        ErrorClass::ContentFilter,
        ErrorClass::TooLarge,
    ] {
        assert!(!class.is_retryable());
        let again = chains().retries(3);
        assert_eq!(rules(class, again).await, (vec!["p/a".into(), "p/b".into()], true), "{class:?}");
    }
}

#[tokio::test]
async fn what_the_request_itself_meets_leaves_only_the_models_for_that() {
    for (cause, class) in
        [(Cause::ContextWindow, ErrorClass::ContextWindow), (Cause::ContentFilter, ErrorClass::ContentFilter)]
    {
        // The others would meet it, too, and hide why the right one did not answer.
        let chains = || chains().chain_on(cause, "p/a", ["p/fits", "p/fits-too"]);
        let provider = Scripted::new()
            .reply(Reply::error(failure(class)))
            .reply(Reply::error(down()))
            .reply(Reply::error(failure(ErrorClass::Upstream)))
            .reply(Reply::error(failure(class)));
        let error = ask(&provider, chains()).await.unwrap_err();
        assert_eq!(asked(&provider), ["p/a", "p/fits", "p/fits-too"], "{cause:?}");
        assert_eq!(error.class(), Some(ErrorClass::Upstream), "{cause:?}");

        // Met by a substitute only.
        let provider = Scripted::new()
            .reply(Reply::error(down()))
            .reply(Reply::error(failure(class)))
            .reply(Reply::error(down()));
        assert_eq!(ask(&provider, chains()).await.unwrap().model, "p/fits-too");
        assert_eq!(asked(&provider), ["p/a", "p/b", "p/fits", "p/fits-too"], "{cause:?}");

        // Where there are none for it, the others may do.
        let provider = Scripted::new().reply(Reply::error(failure(class))).reply(Reply::error(down()));
        assert_eq!(ask(&provider, self::chains()).await.unwrap().model, "p/c");
    }

    // Whatever else has models of its own may be over with the next.
    let chains = chains().chain_on(Cause::RateLimited, "p/a", ["p/calm"]);
    let provider = Scripted::new().reply(Reply::error(retry_after(1))).reply(Reply::error(down()));
    assert_eq!(ask(&provider, chains).await.unwrap().model, "p/b");
    assert_eq!(asked(&provider), ["p/a", "p/calm", "p/b"]);
}

#[tokio::test(start_paused = true)]
async fn further_tries_leave_a_call_for_each_model_that_is_still_to_be_asked() {
    for (retries, max, expected) in [
        (7, 8, [6, 1, 1]),
        (7, 5, [3, 1, 1]),
        (2, 8, [3, 3, 2]),
        (2, 9, [3, 3, 3]),
        (5, 3, [1, 1, 1]),
        (5, 2, [1, 1, 0]),
    ] {
        let provider = (0..20).fold(Scripted::new(), |p, _| p.reply(Reply::error(down())));
        let chains = chains().retries(retries).build().unwrap();
        let service = FallbackLayer::new(chains).with_max_attempts(max).layer(provider.clone());
        service.oneshot(request("p/a")).await.unwrap_err();
        let times =
            ["p/a", "p/b", "p/c"].map(|model| asked(&provider).iter().filter(|m| *m == model).count());
        assert_eq!(times, expected, "{retries} retries in {max} calls");
    }
}

#[tokio::test]
async fn a_substitute_that_is_refused_before_anybody_is_asked_takes_no_call_of_others() {
    let refused = [
        ErrorKind::ModelNotAllowed { department_id: "d".into(), model: "p/b".into() },
        ErrorKind::ModelUnpriced { model: "p/b".into() },
        ErrorKind::ModelNotFound { model: "p/b".into() },
        ErrorKind::Overloaded,
    ];
    for kind in refused {
        let targets: Vec<_> = (0..20).map(|n| format!("p/{n}")).collect();
        let chains = Chains::builder().chain("p/a", targets).build().unwrap();
        let refuses = move |request: LlmRequest| {
            let reply = match &*request.model {
                "p/a" => Err(down()),
                "p/19" => Ok(LlmResponse::new("p/19", Completion::text("hi", TokenUsage::new(1, 1)))),
                _ => Err(Error::new(kind.clone())),
            };
            std::future::ready(reply)
        };
        let layer = FallbackLayer::new(chains).with_max_attempts(2);
        let answer = layer.layer(tower::service_fn(refuses)).oneshot(request("p/a")).await.unwrap();
        assert_eq!((&*answer.model, answer.attempts.len()), ("p/19", 20));
    }
    // However often a policy asks for it.
    for kind in [ErrorKind::ModelNotFound { model: "p/a".into() }, ErrorKind::Overloaded] {
        let refuses =
            tower::service_fn(move |_| std::future::ready(Err::<LlmResponse, _>(Error::new(kind.clone()))));
        let error = FallbackLayer::new(Endless).layer(refuses).oneshot(request("p/a")).await.unwrap_err();
        assert!(error.attempts().len() <= 72, "{}", error.attempts().len());
    }
}

#[tokio::test]
async fn a_provider_that_is_full_here_takes_no_call_of_others() {
    let chains = Chains::builder().chain("a/m", ["b/m", "c/m"]).build().unwrap();
    let layer = FallbackLayer::new(chains).with_max_attempts(2);
    let [a, b, c] = [Scripted::new(), Scripted::new(), Scripted::new()];
    let places = |at: &Endpoint| {
        ConcurrencyLimitLayer::new(usize::from(&*at.provider == "c")).with_queue(0, Duration::ZERO)
    };
    let providers = Providers::builder()
        .each(places)
        .provider("a", a.clone())
        .provider("b", b.clone())
        .provider("c", c.clone())
        .build()
        .unwrap();
    let answer = layer.layer(providers).oneshot(request("a/m")).await.unwrap();
    assert_eq!((&*answer.model, answer.attempts.len()), ("c/m", 2));
    assert_eq!([&a, &b, &c].map(|one| one.requests().len()), [0, 0, 1]);

    // Who could not be reached was asked.
    let provider = Scripted::new();
    (0..2).for_each(|_| provider.push(Reply::error(failure(ErrorClass::Connect))));
    let layer = FallbackLayer::new(self::chains().build().unwrap()).with_max_attempts(2);
    layer.layer(provider.clone()).oneshot(request("p/a")).await.unwrap_err();
    assert_eq!(asked(&provider), ["p/a", "p/b"]);
}

#[tokio::test]
async fn that_a_substitute_refuses_the_request_does_not_hide_what_is_worth_another_try() {
    for class in [ErrorClass::BadRequest, ErrorClass::ContextWindow, ErrorClass::ContentFilter] {
        let provider = Scripted::new()
            .reply(Reply::error(retry_after(2)))
            .reply(Reply::error(failure(class)))
            .reply(Reply::error(failure(class)));
        let error = ask(&provider, chains().on(Cause::RateLimited, Action::Next)).await.unwrap_err();
        assert_eq!(asked(&provider).len(), 3);
        assert_eq!((error.class(), error.status().as_u16()), (Some(ErrorClass::RateLimited), 429));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(2)));
        assert_eq!(error.attempts().len(), 3, "all of them stay visible");

        // The model that the caller asked for refuses it, or all do: it is the caller's to mend.
        let provider = Scripted::new()
            .reply(Reply::error(failure(class)))
            .reply(Reply::error(failure(ErrorClass::Auth)))
            .reply(Reply::error(failure(class)));
        assert_eq!(ask(&provider, chains()).await.unwrap_err().class(), Some(class));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_first_model_refuses_is_not_hidden_by_another_failure_of_it() {
    for class in [ErrorClass::BadRequest, ErrorClass::ContextWindow, ErrorClass::ContentFilter] {
        for before in [down(), retry_after(2)] {
            let replies = |refusals: usize| {
                let provider = Scripted::new().reply(Reply::error(before.clone()));
                (0..refusals).fold(provider, |p, _| p.reply(Reply::error(failure(class))))
            };
            for (provider, chains, count) in [(replies(1), Chains::builder(), 2), (replies(3), chains(), 4)] {
                let error = ask(&provider, chains.retries(1)).await.unwrap_err();
                assert_eq!((asked(&provider).len(), error.attempts().len()), (count, count));
                assert_eq!((error.class(), error.is_retryable()), (Some(class), false));
                assert_eq!(error.retry_after(), None);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn seed_05_a_retry_budget_ends_retries_but_not_fallbacks() {
    let budget = tower::retry::budget::TpsBudget::new(Duration::from_secs(10), 0, 0.0);
    let provider = Scripted::new().reply(Reply::error(down()));
    ask(&provider, chains().retries(5).retry_budget(budget)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/b"]);

    // Each call pays in what its own retry takes out.
    let budget = tower::retry::budget::TpsBudget::new(Duration::from_secs(10), 0, 1.0);
    let provider = Scripted::new().reply(Reply::error(down())).reply(Reply::error(down()));
    ask(&provider, chains().retries(5).retry_budget(budget)).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/a", "p/b"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_panics_where_it_is_dropped_is_no_end_of_the_others() {
    let layer = FallbackLayer::new(chains().build().unwrap()).with_deadline(Duration::from_secs(5));
    let call = async |provider: &Scripted| layer.layer(faulty(provider)).oneshot(request("p/a")).await;
    let provider = Scripted::new().reply(Reply::error(down()));
    let answer = call(&provider).await.unwrap();
    assert_eq!((&*answer.model, asked(&provider).len()), ("p/b", 2));

    let provider = Scripted::new().reply(Reply::words(["a", "b"]));
    assert_eq!(call(&provider).await.unwrap().text().await.unwrap(), "ab");

    let provider = Scripted::new().reply(Reply::stall());
    let error = call(&provider).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }), "{error}");
    assert_eq!((error.attempts().len(), provider.alive()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn seed_05_one_deadline_bounds_all_attempts() {
    let layer = || FallbackLayer::new(chains().build().unwrap()).with_deadline(Duration::from_secs(5));
    let provider = Scripted::new()
        .reply(Reply::error(down()).after([Step::Wait(Duration::from_secs(3))]))
        .reply(Reply::stall());
    let started = Instant::now();
    let error = layer().layer(provider.clone()).oneshot(request("p/a")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }));
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert_eq!((error.attempts().len(), provider.alive()), (2, 0));
    assert!(error.dispatched() && error.attempts()[1].error.dispatched());

    // Answers that are not streamed may have one of their own.
    for (is_streamed, seconds) in [(true, 5), (false, 50)] {
        let body = ChatBody::builder().user("Say hi.");
        let body = if is_streamed { body.streaming() } else { body };
        let provider = Scripted::new().reply(Reply::stall());
        let (service, started) =
            (layer().with_whole_deadline(Duration::from_secs(50)).layer(provider), Instant::now());
        let error = service.oneshot(LlmRequest::new("p/a", body.build().unwrap())).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }));
        assert_eq!(started.elapsed().as_secs(), seconds);
    }

    // The caller's own deadline, and a wait that would outlast it.
    let provider = Scripted::new().reply(Reply::error(retry_after(9)));
    let context = RequestContext::new().with_timeout(Duration::from_secs(2));
    let chains = Chains::builder().retries(1).build().unwrap();
    let service = FallbackLayer::new(chains).layer(provider);
    let error = service.oneshot(request("p/a").with_context(context)).await.unwrap_err();
    assert_eq!(
        error.class(),
        Some(ErrorClass::RateLimited),
        "no use in waiting for a time when nobody waits"
    );
}

#[tokio::test]
async fn the_next_attempt_waits_until_the_service_is_ready() {
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains().build().unwrap()));
    provider.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request("p/a")));
    assert_asks!(provider, "p/a").send_error(down());
    assert_pending!(response.poll());
    assert!(task::spawn(provider.next_request()).poll().is_pending());
    provider.allow(1);
    assert!(response.is_woken());
    assert_pending!(response.poll());
    assert_asks!(provider, "p/b");
}

/// As `oneshot`, with the service kept until there is an answer.
async fn ready_and_call<S>(service: &mut S, request: LlmRequest) -> Result<LlmResponse, Error>
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    let answer = service.ready().await?.call(request);
    let answer = tokio::time::timeout(Duration::from_secs(60), answer);
    answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled)))
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_the_place_that_it_holds_itself() {
    let late = || request("p/a").with_context(RequestContext::new().with_timeout(Duration::ZERO));
    let layer = || {
        let chains = Chains::builder().chain("x/a", ["x/b", "p/c"]).build().unwrap();
        FallbackLayer::new(chains).with_providers(ProviderNames::new(["p"]))
    };
    let limited = layer().layer(ServiceBuilder::new().concurrency_limit(1).service(Scripted::new()));
    let mut service = limited.clone();
    assert_eq!(ready_and_call(&mut service, request("x/a")).await.unwrap().model, "p/c");
    ready_and_call(&mut service, late()).await.unwrap_err();
    assert_eq!(limited.clone().oneshot(request("p/a")).await.unwrap().model, "p/a", "nothing is kept");

    let buffered = layer().layer(ServiceBuilder::new().buffer(1).service(Scripted::new()));
    let mut service = buffered.clone();
    assert_eq!(ready_and_call(&mut service, request("x/a")).await.unwrap().model, "p/c");
    ready_and_call(&mut service, late()).await.unwrap_err();
    assert_eq!(buffered.clone().oneshot(request("p/a")).await.unwrap().model, "p/a", "nothing is kept");
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_a_place_here_gives_back_the_one_further_in() {
    let open = Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Stall]);
    let provider = Scripted::new().reply(open);
    let again = |_: &Failure<'_>| Decision::Retry { after: Duration::from_secs(1) };
    let mut service = ServiceBuilder::new()
        .layer(FallbackLayer::new(again))
        .layer(ConcurrencyLimitLayer::new(1).with_queue(0, Duration::ZERO))
        .concurrency_limit(1)
        .service(provider.clone());
    let held = service.clone().oneshot(request("p/a")).await.unwrap();
    let leaves = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(held);
    };
    let (answer, ()) = futures_util::join!(ready_and_call(&mut service, request("p/b")), leaves);
    assert_eq!(answer.unwrap().attempts.len(), 1);
    assert_eq!(asked(&provider), ["p/a", "p/b"]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_was_never_made_is_none() {
    let seconds = Duration::from_secs;
    let layer = FallbackLayer::new(chains().build().unwrap()).with_deadline(seconds(5));
    let (mut service, mut provider) = mock::spawn_layer(layer);
    provider.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request("p/a")));
    let answer = assert_asks!(provider, "p/a");
    tokio::time::advance(seconds(3)).await;
    answer.send_error(down());
    assert_pending!(response.poll());
    tokio::time::advance(seconds(2)).await;
    let error = assert_ready_err!(response.poll());
    let attempts: Vec<_> = error.attempts().iter().map(|a| (&*a.model, a.latency)).collect();
    assert_eq!(attempts, [("p/a", seconds(3))]);
}

#[tokio::test]
async fn a_service_that_fails_before_the_next_attempt_does_not_hide_the_first() {
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains().build().unwrap()));
    provider.allow(1);
    assert_ready_ok!(service.poll_ready());
    let mut request = request("p/a");
    request.keep_decisions();
    let mut response = task::spawn(service.call(request));
    let usage = TokenUsage::new(3, 4);
    let (first, answer) = provider.next_request().await.unwrap();
    first.progress.mark_dispatched();
    answer.send_error(down().with_dispatched(true).with_usage(usage));
    assert_pending!(response.poll());
    provider.send_error(Error::new(ErrorKind::Overloaded));

    let error = assert_ready_err!(response.poll());
    assert!(matches!(error.kind(), ErrorKind::Overloaded), "{error:?}");
    assert!(error.dispatched(), "the first was");
    assert!(error.decisions().are_kept());
    let attempts: Vec<_> = error.attempts().iter().map(|a| (&*a.model, a.error.class())).collect();
    assert_eq!(attempts, [("p/a", Some(ErrorClass::Unavailable)), ("p/b", None)]);
    assert_eq!(error.attempts()[0].error.usage(), Some(&usage));
}

#[tokio::test]
async fn foreign_errors_fall_back_too() {
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains().build().unwrap()));
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request("p/a")));
    assert_asks!(provider, "p/a").send_error("something else");
    assert_pending!(response.poll());
    assert_asks!(provider, "p/b");
}

// ===== construction =====

#[test]
fn wrong_chains_are_refused_by_name_all_at_once() {
    let table = AliasTable::builder().alias("fast", "p/a").build().unwrap();
    let error = Chains::builder()
        .chain("p/a", ["fast", "p/b", "p/b"])
        .chain("fast", ["p/c"])
        .chain("p/b", ["x/y"])
        .aliases(Aliases::new(table))
        .providers(ProviderNames::new(["p", "q"]))
        .build()
        .unwrap_err();
    let has = |wanted: ChainProblem| assert!(error.problems().contains(&wanted), "{wanted:?} in {error}");
    assert_eq!(error.problems().len(), 4);
    has(ChainProblem::Cycle { model: "p/a".into(), target: "fast".into() });
    has(ChainProblem::Repeated { model: "p/a".into(), target: "p/b".into() });
    has(ChainProblem::KeyIsAlias { model: "fast".into(), target: "p/a".into() });
    has(ChainProblem::Dangling { model: "p/b".into(), target: "x/y".into() });
}

#[tokio::test]
async fn chains_can_be_exchanged_between_calls() {
    let chains = chains().build().unwrap();
    let provider =
        Scripted::new().reply(Reply::error(down())).reply(Reply::text("hi")).reply(Reply::error(down()));
    let service = FallbackLayer::new(chains.clone()).layer(provider.clone());
    service.clone().oneshot(request("p/a")).await.unwrap();
    chains.store(Chains::builder().chain("p/a", ["p/new"]).build_table().unwrap());
    service.oneshot(request("p/a")).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/b", "p/a", "p/new"]);
}

#[tokio::test]
async fn a_call_keeps_the_chains_of_its_first_failure() {
    let chains = chains().build().unwrap();
    let (mut service, mut provider) = mock::spawn_layer(FallbackLayer::new(chains.clone()));
    assert_ready_ok!(service.poll_ready());
    let mut response = task::spawn(service.call(request("p/a")));
    assert_asks!(provider, "p/a").send_error(down());
    assert_pending!(response.poll());
    chains.store(Chains::builder().chain("p/a", ["p/new"]).build_table().unwrap());
    assert_asks!(provider, "p/b").send_error(down());
    assert_pending!(response.poll());
    assert_asks!(provider, "p/c");
}

#[test]
fn a_split_is_judged_by_all_that_it_may_come_to() {
    for seed in 0..200 {
        fastrand::seed(seed);
        let table = AliasTable::builder()
            .split("p/a", [("p/a", 9), ("q/a", 1)])
            .split("either", [("p/a", 9), ("p/b", 1)])
            .split("lost", [("p/b", 9), ("x/b", 1)])
            .build()
            .unwrap();
        let chains = || Chains::builder().aliases(Aliases::new(table.clone()));
        chains().chain("p/a", ["either"]).build().unwrap();
        let names = ProviderNames::new(["p", "q"]);
        let error = chains().providers(names).chain("p/a", ["lost"]).build().unwrap_err();
        assert_eq!(error.problems(), [ChainProblem::Dangling { model: "p/a".into(), target: "lost".into() }]);
    }
}

#[tokio::test]
async fn seed_05_a_fallback_over_a_fallback_keeps_all_attempts() {
    let provider =
        Scripted::new().reply(Reply::error(down())).reply(Reply::error(down())).reply(Reply::error(down()));
    let inner = FallbackLayer::new(Chains::builder().chain("p/b", ["p/c"]).retries(0).build().unwrap());
    let outer = FallbackLayer::new(Chains::builder().chain("p/a", ["p/b", "p/d"]).build().unwrap());
    let answer = outer.layer(inner.layer(provider.clone())).oneshot(request("p/a")).await.unwrap();
    assert_eq!(asked(&provider), ["p/a", "p/b", "p/c", "p/d"]);
    let failed: Vec<_> = answer.attempts.iter().map(|a| a.model.as_str()).collect();
    assert_eq!(failed, ["p/a", "p/b"], "the inner attempts are in the error of p/b");
    assert_eq!(answer.attempts[1].error.attempts().len(), 2);

    let provider = Scripted::new().reply(Reply::error(down())).reply(Reply::error(down()));
    let answer = outer.layer(inner.layer(provider)).oneshot(request("p/a")).await.unwrap();
    let failed: Vec<_> = answer.attempts.iter().map(|a| a.model.as_str()).collect();
    assert_eq!((answer.model.as_str(), &failed[..]), ("p/c", &["p/a", "p/b"][..]));
}

// ===== Peek alone =====

async fn peek(layer: PeekLayer, reply: Reply) -> Result<LlmResponse, Error> {
    layer.layer(Scripted::new().reply(reply)).oneshot(request("p/a")).await
}

#[tokio::test]
async fn held_chunks_come_first_and_none_is_lost() {
    let words = ["", " ", "h", "i"];
    let answer = peek(PeekLayer::new(), Reply::words(words)).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
    let mut seen = Vec::new();
    while let Some(chunk) = chunks.next().await {
        seen.push(chunk.unwrap());
    }
    assert_eq!(seen.len(), 8, "role, four words, finish, usage, end");
    assert_eq!(seen[1..5].iter().map(|c| c.content().into_owned()).collect::<Vec<_>>(), words);
    assert!(seen[7].is_final());
}

#[tokio::test]
async fn it_resolves_at_the_first_content_and_not_before() {
    let provider = Scripted::new().reply(Reply::stream([
        Step::Chunk(StreamChunk::role()),
        Step::Gate,
        Step::Chunk(StreamChunk::text("h")),
        Step::Stall,
    ]));
    let mut answer = task::spawn(PeekLayer::new().layer(provider.clone()).oneshot(request("p/a")));
    assert_pending!(answer.poll());
    provider.open();
    assert!(answer.is_woken());
    assert_ready_ok!(answer.poll());
}

#[tokio::test]
async fn at_its_bounds_it_passes_the_answer_on() {
    let blank = || Reply::stream((0..100).map(|_| Step::Chunk(StreamChunk::text(" "))).chain([Step::Stall]));
    let layer = PeekLayer::new();
    assert!(peek(layer.with_max_chunks(10), blank()).await.is_ok());
    assert!(peek(layer.with_max_chunks(usize::MAX).with_max_bytes(500), blank()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn dropped_while_it_holds_chunks_it_hangs_up() {
    let provider = Scripted::new().reply(Reply::stream([Step::Chunk(StreamChunk::role()), Step::Stall]));
    let mut answer = task::spawn(PeekLayer::new().layer(provider.clone()).oneshot(request("p/a")));
    assert_pending!(answer.poll());
    assert_eq!(provider.alive(), 1);
    drop(answer);
    assert_eq!(provider.alive(), 0);
}

#[tokio::test]
async fn what_became_of_another_call_of_the_same_request_is_not_told_of_this_one() {
    let request = request("p/a");
    let answers = FallbackLayer::new(Chains::default()).layer(Scripted::new());
    answers.oneshot(request.clone()).await.unwrap();
    assert!(request.progress.is_dispatched());
    // Refused below, or not even begun.
    let refuses =
        tower::service_fn(async |_: LlmRequest| Err::<LlmResponse, _>(Error::new(ErrorKind::Overloaded)));
    let error =
        FallbackLayer::new(Chains::default()).layer(refuses).oneshot(request.clone()).await.unwrap_err();
    assert!(!error.dispatched(), "{error:?}");
    let late = FallbackLayer::new(Chains::default()).with_deadline(Duration::ZERO).layer(refuses);
    assert!(!late.oneshot(request).await.unwrap_err().dispatched());
}

#[tokio::test(start_paused = true)]
async fn a_call_was_sent_if_one_of_its_attempts_was_and_not_else() {
    let connect = || failure(ErrorClass::Connect);
    let sent = || failure(ErrorClass::Transport).with_dispatched(true);
    for (failures, is_sent) in [
        // Leaves mark the call before they try to connect.
        ([connect(), connect(), connect()], false),
        ([connect(), sent(), connect()], true),
        ([sent(), connect(), connect()], true),
        ([connect(), connect(), sent()], true),
    ] {
        for marks in [false, true] {
            let provider = Scripted::new();
            failures.iter().for_each(|error| provider.push(Reply::error(error.clone())));
            let marking = tower::service_fn(move |request: LlmRequest| {
                if marks {
                    request.progress.mark_dispatched();
                }
                provider.clone().oneshot(request)
            });
            let service = FallbackLayer::new(chains().build().unwrap()).layer(marking);
            let error = service.oneshot(request("p/a")).await.unwrap_err();
            assert_eq!((error.attempts().len(), error.dispatched()), (3, is_sent), "{failures:?} {marks}");
        }
    }
}
