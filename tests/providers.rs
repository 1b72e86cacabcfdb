//! `Providers`: which provider, which of its deployments, and when one is left alone.

use futures_util::FutureExt as _;
use llm_layers::{
    ChatBody, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, Progress, ProviderFailure, ResponseBody,
    StreamChunk, TimeoutPhase,
    concurrency::ConcurrencyLimitLayer,
    providers::{CoolDown, Deployment, Endpoint, Leaf, ProviderNames, Providers, ProvidersBuilder},
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use proptest::prelude::*;
use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, layer::layer_fn, service_fn, util::MapRequestLayer};

const SECOND: Duration = Duration::from_secs(1);

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Hi").build().unwrap())
}

fn failure(class: ErrorClass) -> Error {
    Error::provider(class, "acme", "one")
}

fn failure_after(class: ErrorClass, retry_after: Duration) -> Error {
    let mut failure = ProviderFailure::new(class, "acme", "one");
    failure.retry_after = Some(retry_after);
    Error::new(ErrorKind::Provider(failure))
}

async fn call(providers: &Providers, model: &str) -> Result<LlmResponse, Error> {
    providers.clone().oneshot(request(model)).await
}

async fn read(providers: &Providers) -> Result<String, Error> {
    call(providers, "x/m").await?.text().await
}

fn open_stream() -> Reply {
    Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Gate, Step::Chunk(StreamChunk::text("b"))])
}

// ===== which provider =====

#[tokio::test]
async fn seed_01_without_a_provider_every_call_is_refused_and_says_so() {
    let providers = Providers::builder().build().unwrap();
    assert!(!providers.has_providers() && providers.names().is_empty());
    for model in ["gpt", "openai/gpt", ""] {
        let request = request(model);
        let progress = request.progress.clone();
        let error = providers.clone().oneshot(request).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NoProvider), "{error:?}");
        assert_eq!(error.to_string(), "no provider is registered");
        assert_eq!(error.status(), http_status(503));
        assert!(!error.dispatched() && !progress.is_dispatched());
    }
}

fn http_status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).unwrap()
}

#[tokio::test]
async fn seed_01_a_name_that_cannot_be_addressed_is_no_provider() {
    for name in ["", " ", "a/b", "/"] {
        let error = Providers::builder()
            .provider("good", Scripted::new())
            .provider(name, Scripted::new())
            .build()
            .expect_err(name);
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[tokio::test]
async fn seed_03_the_first_slash_parts_provider_and_model() {
    let (router, openai) = (Scripted::new(), Scripted::new());
    let providers = Providers::builder()
        .provider("openai", openai.clone())
        .provider("router", router.clone())
        .build()
        .unwrap();
    for (asked, below, provider) in [
        ("openai/gpt-4o", "gpt-4o", "openai"),
        ("router/meta/llama/3", "meta/llama/3", "router"),
        ("router//odd", "/odd", "router"),
        ("router/openai/gpt-4o", "openai/gpt-4o", "router"),
    ] {
        let answer = call(&providers, asked).await.unwrap();
        assert_eq!((&*answer.model, answer.provider.as_deref()), (asked, Some(provider)));
        let asked_of = if provider == "openai" { &openai } else { &router };
        let last = asked_of.requests().pop().unwrap();
        assert_eq!((&*last.model, &*last.requested), (below, asked));
    }
    assert_eq!((openai.requests().len(), router.requests().len()), (1, 3));

    for unknown in ["gpt-4o", "Openai/gpt", "open/gpt", "openai", "openai/", "/gpt", "/", "", "openai /gpt"] {
        let error = call(&providers, unknown).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ModelNotFound { model } if *model == unknown), "{error:?}");
        assert_eq!(error.status(), http_status(404));
        assert!(!error.dispatched() && !error.is_retryable());
    }
    assert_eq!((openai.requests().len(), router.requests().len()), (1, 3), "nobody else was asked");
}

#[tokio::test]
async fn seed_03_a_bare_name_goes_to_the_only_provider() {
    let only = Scripted::new();
    let providers =
        Providers::builder().provider("only", only.clone()).provider("only", only.clone()).build().unwrap();
    let answer = call(&providers, "gpt").await.unwrap();
    assert_eq!((&*answer.model, answer.provider.as_deref()), ("only/gpt", Some("only")));
    assert_eq!(only.requests()[0].model, "gpt");
    for unknown in ["other/gpt", ""] {
        let error = call(&providers, unknown).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ModelNotFound { .. }), "{unknown}: {error:?}");
    }
}

#[tokio::test]
async fn seed_04_the_provider_of_a_model_is_told_without_calling() {
    let scripted = Scripted::new().with_places(0);
    let one = Providers::builder().provider("openai", scripted.clone()).build().unwrap();
    assert!(one.has_providers());
    assert_eq!(one.provider_for("gpt"), Some("openai"));
    assert_eq!(one.provider_for("openai/gpt/x"), Some("openai"));
    assert_eq!(one.provider_for("meta/llama"), None);
    let two = Providers::builder()
        .provider("openai", scripted.clone())
        .provider("acme", scripted.clone())
        .build()
        .unwrap();
    assert_eq!(two.provider_for("gpt"), None);
    assert_eq!(two.provider_for("acme/gpt"), Some("acme"));
    assert_eq!(two.names().iter().collect::<Vec<_>>(), ["acme", "openai"]);
    assert_eq!(Providers::builder().build().unwrap().provider_for("gpt"), None);
    assert_eq!(scripted.requests().len(), 0);
}

proptest! {
    /// `provider_for`, `canonical` and a real call never disagree.
    #[test]
    fn seed_04_what_is_told_is_what_is_done(
        names in prop::collection::btree_set("[ab]{1,2}", 0..4),
        model in "[ab]{0,2}(/[ab]{0,2}){0,2}",
    ) {
        let builder = names.iter().fold(Providers::builder(), |b, name| b.provider(&**name, Scripted::new()));
        let providers = builder.build().unwrap();
        let done = tokio_test::block_on(call(&providers, &model));
        let told = providers.provider_for(&model);
        prop_assert_eq!(done.as_ref().ok().and_then(|answer| answer.provider.as_deref()), told);
        let canonical = providers.names().canonical(&model.as_str().into());
        if let Ok(answer) = done {
            prop_assert_eq!(&answer.model, &canonical);
        }
        prop_assert_eq!(providers.provider_for(&canonical), told);
        prop_assert_eq!(providers.names().canonical(&canonical), canonical.clone());
        let again = ProviderNames::new(names.iter().rev().chain(&names).map(|name| &**name));
        prop_assert_eq!(again, providers.names());
    }
}

// ===== around each deployment =====

#[tokio::test]
async fn each_layer_is_told_its_endpoint_and_only_those_added_later_get_it() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let providers = Providers::builder()
        .provider("plain", Scripted::new())
        .each(move |endpoint| {
            tell.lock().unwrap().push((endpoint.provider.to_string(), endpoint.address.clone()));
            let name = Arc::clone(&endpoint.provider);
            layer_fn(move |inner: Leaf<Scripted>| {
                let name = Arc::clone(&name);
                inner.map_request(move |mut request: LlmRequest| {
                    request.model = format!("{} around {name}", request.model).into();
                    request
                })
            })
        })
        .deployment("acme", Deployment::new(Scripted::new()).with_address("eu.acme.example", 443))
        .deployment("acme", Deployment::new(Scripted::new()).with_address("us.acme.example", 8443))
        .provider("local", Scripted::new())
        .build()
        .unwrap();
    let address = |host: &str, port: u16| Some((Arc::from(host), port));
    let expected = [
        ("acme".to_owned(), address("eu.acme.example", 443)),
        ("acme".to_owned(), address("us.acme.example", 8443)),
        ("local".to_owned(), None),
    ];
    assert_eq!(*told.lock().unwrap(), expected);
    // What the layers and the leaf below make of the name does not change what is reported.
    assert_eq!(call(&providers, "acme/one").await.unwrap().model, "acme/one");
    assert_eq!(call(&providers, "plain/one").await.unwrap().model, "plain/one");
}

#[tokio::test]
async fn layers_that_are_given_one_after_another_all_stand_around_a_deployment_the_first_outermost() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let tell = |who: &'static str| {
        let seen = Arc::clone(&seen);
        move |endpoint: &Endpoint| {
            let (seen, whose) = (Arc::clone(&seen), format!("{who} of {}", endpoint.provider));
            MapRequestLayer::new(move |request: LlmRequest| {
                seen.lock().unwrap().push(whose.clone());
                request
            })
        }
    };
    let providers = Providers::builder()
        .each(tell("first"))
        .provider("a", Scripted::new())
        .each(tell("second"))
        .each(tell("third"))
        .provider("b", Scripted::new())
        .build()
        .unwrap();
    call(&providers, "a/one").await.unwrap();
    call(&providers, "b/one").await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["first of a", "first of b", "second of b", "third of b"]);
}

#[tokio::test]
async fn a_foreign_error_keeps_its_kind_or_becomes_other() {
    let foreign =
        service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(llm_layers::BoxError::from("boom")) });
    let providers = Providers::builder().provider("acme", foreign).build().unwrap();
    let error = call(&providers, "acme/one").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Other) && error.dispatched(), "{error:?}");
}

// ===== was it sent? =====

#[derive(Clone)]
struct Silent {
    mark: bool,
    class: ErrorClass,
}

impl Service<LlmRequest> for Silent {
    type Response = LlmResponse;
    type Error = Error;
    type Future = std::future::Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        if self.mark {
            request.progress.mark_dispatched();
        }
        std::future::ready(Err(failure(self.class)))
    }
}

#[tokio::test]
async fn an_error_says_whether_the_provider_was_reached() {
    // (the leaf marks by itself, it does mark, how it fails) -> (progress, error)
    for (marking, marks, class, expected) in [
        (false, false, ErrorClass::Transport, (true, true)),
        (true, false, ErrorClass::Transport, (false, false)),
        (true, true, ErrorClass::Transport, (true, true)),
        (false, false, ErrorClass::Connect, (true, false)),
        (true, true, ErrorClass::Connect, (true, false)),
        (true, false, ErrorClass::Connect, (false, false)),
    ] {
        let deployment = Deployment::new(Silent { mark: marks, class });
        let deployment = if marking { deployment.marking_dispatch() } else { deployment };
        let providers = Providers::builder().deployment("acme", deployment).build().unwrap();
        let mut request = request("acme/one");
        let parent = Progress::new();
        request.progress = parent.child();
        let progress = request.progress.clone();
        let error = providers.oneshot(request).await.unwrap_err();
        let case = format!("marking {marking}, marks {marks}, {class:?}");
        assert_eq!((progress.is_dispatched(), error.dispatched()), expected, "{case}");
        assert_eq!(parent.is_dispatched(), expected.0, "{case}");
    }
}

#[tokio::test]
async fn waiting_for_readiness_is_not_being_sent() {
    let scripted = Scripted::new().with_places(0);
    let mut providers = Providers::builder().provider("acme", scripted.clone()).build().unwrap();
    let request = request("acme/one");
    let progress = request.progress.clone();
    assert!(matches!(
        providers.poll_ready(&mut Context::from_waker(std::task::Waker::noop())),
        Poll::Ready(Ok(()))
    ));
    let mut answer = task::spawn(providers.call(request));
    assert_pending!(answer.poll());
    assert!(!progress.is_dispatched() && scripted.requests().is_empty());
    scripted.add_place();
    assert!(answer.is_woken());
    assert_ready_ok!(answer.poll());
    assert!(progress.is_dispatched());

    let dead = Scripted::new();
    dead.kill();
    let providers = Providers::builder().provider("acme", dead).build().unwrap();
    let error = call(&providers, "acme/one").await.unwrap_err();
    assert!(!error.dispatched());
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_around_a_deployment_refuses_was_not_sent() {
    let mut late = request("acme/one");
    late.context = late.context.with_timeout(SECOND);
    advance(2 * SECOND).await;
    is_refused_unsent(Providers::builder().each(|_| CallTimeoutLayer::new()), 0, late).await;

    let limit = ConcurrencyLimitLayer::new(1).with_queue(0, SECOND);
    is_refused_unsent(Providers::builder().each(move |_| limit.clone()), 1, request("acme/one")).await;

    let busy = |_: &Endpoint| ServiceBuilder::new().load_shed().concurrency_limit(1).into_inner();
    is_refused_unsent(Providers::builder().each(busy), 1, request("acme/one")).await;
}

/// With so many calls under way.
async fn is_refused_unsent<F, L, S>(builder: ProvidersBuilder<F>, under_way: usize, request: LlmRequest)
where
    F: Fn(&Endpoint) -> L,
    L: Layer<Leaf<Scripted>, Service = S>,
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let scripted = Scripted::new().reply(Reply::stall());
    let providers = builder.provider("acme", scripted.clone()).build().unwrap();
    let mut others: Vec<_> =
        (0..under_way).map(|_| task::spawn(providers.clone().oneshot(self::request("acme/one")))).collect();
    others.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let progress = request.progress.clone();
    let error = providers.oneshot(request).await.unwrap_err();
    assert_eq!(scripted.requests().len(), under_way, "{error:?}");
    assert!(!error.dispatched() && !progress.is_dispatched(), "{error:?}");
}

#[tokio::test]
async fn a_deployment_that_is_not_chosen_is_never_polled() {
    let (free, full) = (Scripted::new(), Scripted::new().with_places(1));
    let providers =
        Providers::builder().provider("free", free.clone()).provider("full", full.clone()).build().unwrap();
    call(&providers, "free/x").await.unwrap();
    assert_eq!((full.free(), full.requests().len()), (1, 0));

    // Of two deployments a call readies one.
    let (a, b) = (Scripted::new().with_places(0), Scripted::new().with_places(0));
    let providers = Providers::builder().provider("x", a.clone()).provider("x", b.clone()).build().unwrap();
    let mut waiting = task::spawn(providers.clone().call(request("x/m")));
    assert_pending!(waiting.poll());
    a.add_place();
    b.add_place();
    assert_pending_or_done(&mut waiting);
    assert_eq!(a.requests().len() + b.requests().len(), 1);
    assert_eq!(a.free() + b.free(), 2, "the place of the other was never taken");
}

fn assert_pending_or_done(call: &mut task::Spawn<<Providers as Service<LlmRequest>>::Future>) {
    assert_ready!(call.poll()).unwrap();
}

// ===== balance =====

fn two() -> (Scripted, Scripted, Providers) {
    two_with(|builder| builder)
}

fn two_with(set: impl FnOnce(ProvidersBuilder) -> ProvidersBuilder) -> (Scripted, Scripted, Providers) {
    let (a, b) = (Scripted::new(), Scripted::new());
    let builder = set(Providers::builder()).provider("x", a.clone()).provider("x", b.clone());
    (a, b, builder.build().unwrap())
}

/// Who of two is asked by the next `calls` calls which end at once.
async fn asked(a: &Scripted, b: &Scripted, providers: &Providers, calls: usize) -> (usize, usize) {
    let before = (a.requests().len(), b.requests().len());
    for _ in 0..calls {
        drop(call(providers, "x/m").await);
    }
    (a.requests().len() - before.0, b.requests().len() - before.1)
}

async fn is_even(a: &Scripted, b: &Scripted, providers: &Providers) -> bool {
    let (to_a, to_b) = asked(a, b, providers, 200).await;
    // Seven standard deviations.
    to_a.abs_diff(to_b) < 100
}

/// Opens a stream, and says whom it is from.
async fn hold(a: &Scripted, b: &Scripted, providers: &Providers) -> (bool, LlmResponse) {
    for scripted in [a, b] {
        scripted.forget_replies();
        scripted.push(open_stream());
    }
    let before = a.requests().len();
    let answer = call(providers, "x/m").await.unwrap();
    for scripted in [a, b] {
        scripted.forget_replies();
    }
    (a.requests().len() > before, answer)
}

#[tokio::test]
async fn idle_deployments_share_calls_evenly() {
    fastrand::seed(1);
    let (a, b, providers) = two();
    assert!(is_even(&a, &b, &providers).await);

    let many: Vec<_> = (0..5).map(|_| Scripted::new()).collect();
    let builder = many.iter().fold(Providers::builder(), |b, scripted| b.provider("x", scripted.clone()));
    let providers = builder.build().unwrap();
    for _ in 0..5_000 {
        call(&providers, "x/m").await.unwrap();
    }
    for scripted in many {
        assert!(scripted.requests().len().abs_diff(1_000) < 250, "{}", scripted.requests().len());
    }
}

#[tokio::test]
async fn a_stream_counts_as_in_flight_until_it_ends_and_not_only_until_its_head() {
    fastrand::seed(2);
    type End = fn(&Scripted, LlmResponse) -> Option<LlmResponse>;
    let ways: [(&str, End); 3] = [
        ("finished", |scripted, answer| {
            scripted.open();
            let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
            while !chunks.next().now_or_never().unwrap().unwrap().unwrap().is_final() {}
            // The terminal chunk is the end, though the stream is still held.
            Some(LlmResponse::new("kept", chunks))
        }),
        ("dropped unread", |_, answer| {
            drop(answer);
            None
        }),
        ("dropped after a chunk", |_, answer| {
            let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
            chunks.next().now_or_never().unwrap().unwrap().unwrap();
            drop(chunks);
            None
        }),
    ];
    for (way, end) in ways {
        let (a, b, providers) = two();
        let (first_is_a, first) = hold(&a, &b, &providers).await;
        let (busy, idle) = if first_is_a { (&a, &b) } else { (&b, &a) };
        assert_eq!(asked(busy, idle, &providers, 50).await, (0, 50), "{way}: the idle one is asked");

        let (second_is_a, second) = hold(&a, &b, &providers).await;
        assert_ne!(second_is_a, first_is_a, "{way}");
        assert!(is_even(&a, &b, &providers).await, "{way}: one each");

        let kept = end(busy, first);
        assert_eq!(asked(busy, idle, &providers, 50).await, (50, 0), "{way}: given back");
        drop(second);
        assert!(is_even(&a, &b, &providers).await, "{way}: all given back");
        drop(kept);
    }
}

#[tokio::test]
async fn what_fails_breaks_is_dropped_or_panics_gives_its_share_back() {
    fastrand::seed(3);
    // None of this is to cool anything.
    let never = CoolDown::new(u32::MAX, SECOND);
    type Reply_ = fn() -> Reply;
    let replies: [(&str, Reply_); 8] = [
        ("whole", || Reply::text("hi")),
        ("error", || Reply::error(failure(ErrorClass::Upstream))),
        ("late error", || Reply::error(failure(ErrorClass::Upstream)).after([Step::Yield])),
        ("stream that breaks", || Reply::stream([Step::Fail(failure(ErrorClass::Transport))])),
        ("stream that is cut", || Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Cut])),
        ("panic in call", Reply::panic),
        ("panic before the head", || Reply::text("").after([Step::Panic])),
        ("panic in the stream", || Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Panic])),
    ];
    for (way, reply) in replies {
        let (a, b, providers) = two_with(|builder| builder.cool_down(never));
        for _ in 0..20 {
            a.push(reply());
        }
        for _ in 0..40 {
            drop(AssertUnwindSafe(read(&providers)).catch_unwind().await);
        }
        a.forget_replies();
        assert!(a.requests().len() > 5, "{way}");
        assert_eq!(a.alive() + b.alive(), 0, "{way}");
        assert!(is_even(&a, &b, &providers).await, "{way}: a share was kept");
    }

    // Dropped before the head, and while it waits for readiness.
    let (a, b, providers) = two();
    for scripted in [&a, &b] {
        (0..20).for_each(|_| scripted.push(Reply::stall()));
    }
    for polls in 0..20 {
        let mut call = task::spawn(providers.clone().call(request("x/m")));
        (0..polls % 3).for_each(|_| assert_pending!(call.poll()));
    }
    for scripted in [&a, &b] {
        scripted.forget_replies();
    }
    assert!(is_even(&a, &b, &providers).await);
    let (a, b) = (Scripted::new().with_places(0), Scripted::new().with_places(0));
    let providers = Providers::builder().provider("x", a.clone()).provider("x", b.clone()).build().unwrap();
    for _ in 0..20 {
        let mut call = task::spawn(providers.clone().call(request("x/m")));
        assert_pending!(call.poll());
    }
    a.add_place();
    b.add_place();
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test]
async fn a_call_that_waits_for_readiness_counts_as_in_flight() {
    let (a, b) = (Scripted::new().with_places(0), Scripted::new().with_places(0));
    let providers = Providers::builder().provider("x", a.clone()).provider("x", b.clone()).build().unwrap();
    let mut waiting: Vec<_> = (0..20).map(|_| task::spawn(providers.clone().call(request("x/m")))).collect();
    waiting.iter_mut().for_each(|call| assert_pending!(call.poll()));
    for _ in 0..20 {
        a.add_place();
        b.add_place();
    }
    waiting.iter_mut().for_each(|call| drop(assert_ready_ok!(call.poll())));
    assert_eq!((a.requests().len(), b.requests().len()), (10, 10));
}

// ===== cool-down =====

/// Has `a` fail `times` times with `error`; `b` answers.
async fn fail(a: &Scripted, b: &Scripted, providers: &Providers, error: &Error, times: usize) {
    b.forget_replies();
    for _ in 0..times {
        a.push(Reply::error(error.clone()));
        let before = a.requests().len();
        let mut calls = 0;
        while a.requests().len() == before {
            drop(call(providers, "x/m").await);
            calls += 1;
            assert!(calls < 200, "it is not asked any more");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_keeps_failing_is_left_alone_for_a_while() {
    fastrand::seed(4);
    let cool = CoolDown::new(3, 5 * SECOND);
    for class in [
        ErrorClass::Upstream,
        ErrorClass::Connect,
        ErrorClass::Transport,
        ErrorClass::Auth,
        ErrorClass::RateLimited,
    ] {
        let (a, b, providers) = two_with(|builder| builder.cool_down(cool));
        fail(&a, &b, &providers, &failure(class), 2).await;
        assert!(is_even(&a, &b, &providers).await, "{class:?}: twice is not enough, and a success forgives");
        fail(&a, &b, &providers, &failure(class), 2).await;
        assert!(is_even(&a, &b, &providers).await, "{class:?}: they were not in a row");

        fail(&a, &b, &providers, &failure(class), 3).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100), "{class:?}");
        advance(5 * SECOND - Duration::from_millis(2)).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100), "{class:?}: not a moment too early");
        advance(Duration::from_millis(3)).await;
        assert!(is_even(&a, &b, &providers).await, "{class:?}: recovered");
    }
}

#[tokio::test(start_paused = true)]
async fn the_default_is_three_failures_and_five_seconds() {
    fastrand::seed(5);
    let (a, b, providers) = two();
    fail(&a, &b, &providers, &failure(ErrorClass::Upstream), 3).await;
    assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100));
    advance(5 * SECOND).await;
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_the_deployments_fault_never_cools_it() {
    fastrand::seed(6);
    let deadline = Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Deadline });
    let errors = [
        failure(ErrorClass::BadRequest),
        failure(ErrorClass::ContextWindow),
        failure(ErrorClass::ContentFilter),
        failure_after(ErrorClass::BadRequest, SECOND),
        Error::new(ErrorKind::Cancelled),
        Error::new(ErrorKind::ModelNotFound { model: "m".into() }),
        deadline,
    ];
    for error in errors {
        let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(1, SECOND)));
        fail(&a, &b, &providers, &error, 10).await;
        assert!(is_even(&a, &b, &providers).await, "{error}");
    }

    // A caller who hangs up.
    let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(1, SECOND)));
    for _ in 0..20 {
        drop(hold(&a, &b, &providers).await);
    }
    for _ in 0..20 {
        a.push(Reply::stall());
        b.push(Reply::stall());
        let mut call = task::spawn(providers.clone().call(request("x/m")));
        assert_pending!(call.poll());
        drop(call);
        a.forget_replies();
        b.forget_replies();
    }
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_or_a_panic_counts_as_a_failure() {
    fastrand::seed(7);
    type Reply_ = fn() -> Reply;
    let replies: [(&str, Reply_); 5] = [
        ("breaks", || Reply::stream([Step::Fail(failure(ErrorClass::Transport))])),
        ("is cut", || Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Cut])),
        ("panics", || Reply::stream([Step::Panic])),
        ("panics in call", Reply::panic),
        ("times out", || Reply::error(Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Head }))),
    ];
    for (way, reply) in replies {
        let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(1, SECOND)));
        a.push(reply());
        while a.requests().is_empty() {
            drop(AssertUnwindSafe(read(&providers)).catch_unwind().await);
        }
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100), "a stream that {way}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_deadline_never_cools_a_deployment_streams_included() {
    fastrand::seed(8);
    let (a, b) = (Scripted::new(), Scripted::new());
    let providers = Providers::builder()
        .cool_down(CoolDown::new(1, SECOND))
        .each(|_| CallTimeoutLayer::new().with_total(60 * SECOND).with_idle(30 * SECOND))
        .provider("x", a.clone())
        .provider("x", b.clone())
        .build()
        .unwrap();
    let stalls: [fn() -> Reply; 2] =
        [Reply::stall, || Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Stall])];
    for stall in stalls {
        for scripted in [&a, &b] {
            (0..20).for_each(|_| scripted.push(stall()));
        }
        for _ in 0..20 {
            let mut request = request("x/m");
            request.context = request.context.with_timeout(SECOND);
            let error = async { providers.clone().oneshot(request).await?.text().await }.await.unwrap_err();
            assert!(
                matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }),
                "{error:?}"
            );
        }
        for scripted in [&a, &b] {
            scripted.forget_replies();
        }
        assert!(is_even(&a, &b, &providers).await);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_kept_up_to_its_bound() {
    fastrand::seed(9);
    let limited = |seconds| failure_after(ErrorClass::RateLimited, seconds * SECOND);
    let cool = CoolDown::new(3, SECOND).with_max(10 * SECOND);
    for (asks, gets) in [(4, 4), (10, 10), (3_600, 10)] {
        let (a, b, providers) = two_with(|builder| builder.cool_down(cool));
        // Once is enough if it says how long.
        fail(&a, &b, &providers, &limited(asks), 1).await;
        advance(gets * SECOND - Duration::from_millis(2)).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100), "asks for {asks} s");
        advance(Duration::from_millis(3)).await;
        assert!(is_even(&a, &b, &providers).await, "asks for {asks} s");
    }
    let unheard_of = failure_after(ErrorClass::RateLimited, Duration::MAX);
    let (a, b, providers) = two_with(|builder| builder.cool_down(cool));
    fail(&a, &b, &providers, &unheard_of, 1).await;
    advance(11 * SECOND).await;
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn a_short_retry_after_does_not_excuse_a_deployment_that_keeps_failing() {
    fastrand::seed(10);
    for short in [Duration::ZERO, Duration::from_millis(1)] {
        let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(3, 5 * SECOND)));
        let error = failure_after(ErrorClass::Unavailable, short);
        for _ in 0..3 {
            fail(&a, &b, &providers, &error, 1).await;
            advance(Duration::from_millis(3)).await;
        }
        advance(4 * SECOND).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100), "{short:?}");
        advance(SECOND).await;
        assert!(is_even(&a, &b, &providers).await, "{short:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_its_rest_a_deployment_may_fail_as_often_as_before_once_it_is_heard() {
    fastrand::seed(13);
    let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(3, SECOND)));
    let upstream = failure(ErrorClass::Upstream);
    fail(&a, &b, &providers, &upstream, 3).await;
    // Each failure is one of a caller's, and nothing says yet that it is well.
    for _ in 0..3 {
        advance(SECOND).await;
        fail(&a, &b, &providers, &upstream, 1).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100));
    }
    advance(SECOND).await;
    assert!(is_even(&a, &b, &providers).await);
    fail(&a, &b, &providers, &upstream, 2).await;
    assert!(is_even(&a, &b, &providers).await);

    // That it refuses a request is a sign of life.
    fail(&a, &b, &providers, &upstream, 3).await;
    advance(SECOND).await;
    fail(&a, &b, &providers, &failure(ErrorClass::BadRequest), 1).await;
    fail(&a, &b, &providers, &upstream, 2).await;
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_later_does_not_shorten_a_rest() {
    fastrand::seed(14);
    let limited = |seconds| failure_after(ErrorClass::RateLimited, seconds * SECOND);
    let (a, b, providers) = two();
    a.push(Reply::error(limited(1)).after([Step::Gate]));
    b.push(Reply::stall());
    let mut calls = [(); 2].map(|()| task::spawn(providers.clone().call(request("x/m"))));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    fail(&a, &b, &providers, &limited(10), 1).await;
    a.open();
    assert_eq!(calls.iter_mut().map(|call| call.poll()).filter(Poll::is_ready).count(), 1);
    drop(calls);
    advance(9 * SECOND).await;
    assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100));
    advance(SECOND).await;
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn a_rest_without_end_is_no_panic() {
    fastrand::seed(11);
    let forever = CoolDown::new(1, Duration::MAX).with_max(Duration::MAX);
    let errors = [failure(ErrorClass::Upstream), failure_after(ErrorClass::Upstream, Duration::MAX)];
    for error in errors {
        let (a, b, providers) = two_with(|builder| builder.cool_down(forever));
        fail(&a, &b, &providers, &error, 1).await;
        advance(Duration::from_secs(1_000_000)).await;
        assert_eq!(asked(&a, &b, &providers, 100).await, (0, 100));
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_one_is_never_left_alone() {
    fastrand::seed(12);
    let hour = failure_after(ErrorClass::Unavailable, 3_600 * SECOND);
    let cool = CoolDown::new(1, 60 * SECOND);
    let only = Scripted::new();
    let providers = Providers::builder().cool_down(cool).provider("x", only.clone()).build().unwrap();
    for _ in 0..10 {
        only.push(Reply::error(hour.clone()));
        call(&providers, "x/m").await.unwrap_err();
    }
    call(&providers, "x/m").await.unwrap();

    let (a, b, providers) = two_with(|builder| builder.cool_down(cool));
    fail(&a, &b, &providers, &hour, 1).await;
    b.push(Reply::error(hour.clone()));
    call(&providers, "x/m").await.unwrap_err();
    // Now both are to be left alone, and so neither is.
    assert!(is_even(&a, &b, &providers).await);
}

#[tokio::test(start_paused = true)]
async fn of_three_two_go_on_sharing_while_one_rests() {
    fastrand::seed(13);
    let all: Vec<_> = (0..3).map(|_| Scripted::new()).collect();
    let builder = all.iter().fold(Providers::builder().cool_down(CoolDown::new(1, SECOND)), |b, scripted| {
        b.provider("x", scripted.clone())
    });
    let providers = builder.build().unwrap();
    all[1].push(Reply::error(failure(ErrorClass::Upstream)));
    while all[1].requests().is_empty() {
        drop(call(&providers, "x/m").await);
    }
    let before: Vec<_> = all.iter().map(|scripted| scripted.requests().len()).collect();
    for _ in 0..1_000 {
        call(&providers, "x/m").await.unwrap();
    }
    let shares: Vec<_> =
        all.iter().zip(before).map(|(scripted, before)| scripted.requests().len() - before).collect();
    assert!(shares[1] == 0 && shares[0].abs_diff(500) < 100, "{shares:?}");
}

#[tokio::test]
async fn clones_share_the_balance_and_the_future_says_no_more_than_its_state() {
    fastrand::seed(14);
    let (a, b, providers) = two();
    let (first_is_a, _held) = hold(&a, &b, &providers.clone()).await;
    let other = providers.clone();
    let (to_a, to_b) = asked(&a, &b, &other, 50).await;
    assert_eq!(if first_is_a { (to_a, to_b) } else { (to_b, to_a) }, (0, 50));

    let mut refused = task::spawn(providers.clone().call(request("nobody/m")));
    assert!(format!("{:?}", *refused).contains("Refused"));
    assert_ready_err!(refused.poll());
    assert_eq!(format!("{providers:?}"), r#"{"x": 2}"#);
}

#[tokio::test(start_paused = true)]
async fn a_dead_deployment_is_left_alone_too() {
    fastrand::seed(15);
    let (a, b, providers) = two_with(|builder| builder.cool_down(CoolDown::new(1, SECOND)));
    a.kill();
    let failures = async || {
        let mut failures = 0;
        for _ in 0..100 {
            failures += usize::from(call(&providers, "x/m").await.is_err());
        }
        failures
    };
    assert_eq!(failures().await, 1);
    advance(2 * SECOND).await;
    assert_eq!(failures().await, 1, "it was tried again once");
    assert_eq!((a.requests().len(), b.requests().len()), (0, 198));
}

#[tokio::test]
async fn what_a_busy_one_is_spared_is_shared_by_all_others() {
    fastrand::seed(16);
    let all: Vec<_> = (0..4).map(|_| Scripted::new().reply(open_stream())).collect();
    let builder = all.iter().fold(Providers::builder(), |b, scripted| b.provider("x", scripted.clone()));
    let providers = builder.build().unwrap();
    let _held = call(&providers, "x/m").await.unwrap();
    all.iter().for_each(Scripted::forget_replies);
    for _ in 0..3_000 {
        call(&providers, "x/m").await.unwrap();
    }
    let mut shares: Vec<_> = all.iter().map(|scripted| scripted.requests().len()).collect();
    shares.sort_unstable();
    assert_eq!(shares[0], 1, "{shares:?}");
    assert!(shares[1..].iter().all(|share| share.abs_diff(1_000) < 200), "{shares:?}");
}
