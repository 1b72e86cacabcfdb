//! Several deployments of one provider under `Fallback`: which one a further try goes to, when it is made, and who rests.

use llm_layers::{
    ChatBody, Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ProviderFailure,
    RequestContext, ResponseBody, StreamChunk, TokenUsage,
    drain::{DrainLayer, DrainOptions},
    fallback::{Action, Backoff, Cause, Chains, ChainsBuilder, FallbackLayer},
    providers::Providers,
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use std::time::Duration;
use tokio::time::{Instant, advance, timeout};
use tokio_test::{assert_pending, assert_ready_err, task};
use tower::{Layer, Service, ServiceExt};

const SECOND: Duration = Duration::from_secs(1);

fn request() -> LlmRequest {
    LlmRequest::new("x/m", ChatBody::builder().user("Hi").streaming().build().unwrap())
}

fn failure(class: ErrorClass) -> Error {
    Error::provider(class, "x", "m")
}

fn limited(seconds: u64) -> Error {
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "x", "m");
    failure.retry_after = Some(Duration::from_secs(seconds));
    Error::new(ErrorKind::Provider(failure))
}

fn open_stream() -> Reply {
    Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Gate, Step::Chunk(StreamChunk::text("b"))])
}

fn several(count: usize, timeouts: CallTimeoutLayer) -> (Vec<Scripted>, Providers) {
    let all: Vec<_> = (0..count).map(|_| Scripted::new()).collect();
    let builder =
        all.iter().fold(Providers::builder().each(move |_| timeouts), |b, one| b.provider("x", one.clone()));
    (all, builder.build().unwrap())
}

async fn call(providers: &Providers) -> Result<LlmResponse, Error> {
    providers.clone().oneshot(request()).await
}

/// Opens a stream of this one.
async fn hold(one: &Scripted, others: &[&Scripted], providers: &Providers) -> LlmResponse {
    let before = one.requests().len();
    let mut held = Vec::new();
    loop {
        one.push(open_stream());
        others.iter().for_each(|other| other.push(open_stream()));
        let answer = call(providers).await.unwrap();
        one.forget_replies();
        others.iter().for_each(|other| other.forget_replies());
        if one.requests().len() > before {
            return answer;
        }
        held.push(answer);
    }
}

async fn ask<S>(service: &S, chains: ChainsBuilder) -> Result<LlmResponse, Error>
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone,
{
    let slow = Backoff::new(SECOND, SECOND);
    let chains = chains.backoff(slow).build().unwrap();
    FallbackLayer::new(chains).layer(service.clone()).oneshot(request()).await
}

fn asked(all: &[Scripted]) -> Vec<usize> {
    all.iter().map(|one| one.requests().len()).collect()
}

// ===== further tries =====

#[tokio::test(start_paused = true)]
async fn a_further_try_goes_to_another_deployment_and_is_not_waited_for() {
    let broken = [Step::Chunk(StreamChunk::role()), Step::Fail(failure(ErrorClass::Transport))];
    for (way, reply) in [
        ("limited for long", Reply::error(limited(30))),
        ("limited", Reply::error(limited(8))),
        ("unreachable", Reply::error(failure(ErrorClass::Connect))),
        ("overloaded here", Reply::error(Error::new(ErrorKind::Overloaded))),
        ("broken before content", Reply::stream(broken)),
    ] {
        let (all, providers) = several(2, CallTimeoutLayer::new());
        // The other has more to do, and would be chosen for that alone never.
        let _held = hold(&all[1], &[&all[0]], &providers).await;
        let before = asked(&all);
        all[0].push(reply);
        let started = Instant::now();
        let answer = ask(&providers, Chains::builder().retries(1)).await.expect(way);
        assert_eq!((answer.attempts.len(), started.elapsed()), (1, Duration::ZERO), "{way}");
        assert_eq!(asked(&all), [before[0] + 1, before[1] + 1], "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_deployment_is_asked_once_before_one_is_asked_again() {
    let (all, providers) = several(4, CallTimeoutLayer::new());
    let others: Vec<_> = all[..3].iter().collect();
    let _held = hold(&all[3], &others, &providers).await;
    for one in &all[..3] {
        (0..4).for_each(|_| one.push(Reply::error(failure(ErrorClass::Upstream))));
    }
    let before = asked(&all);
    let started = Instant::now();
    ask(&providers, Chains::builder().retries(3)).await.unwrap();
    let times: Vec<_> = asked(&all).iter().zip(before).map(|(now, before)| now - before).collect();
    assert_eq!((times, started.elapsed()), (vec![1; 4], Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn where_no_other_is_left_the_wait_is_as_told() {
    let (all, providers) = several(2, CallTimeoutLayer::new());
    all.iter().for_each(|one| one.push(Reply::error(limited(2))));
    let started = Instant::now();
    let answer = ask(&providers, Chains::builder().retries(2)).await.unwrap();
    let waits: Vec<_> = answer.attempts.iter().map(|attempt| attempt.wait).collect();
    assert_eq!((waits, started.elapsed().as_secs()), (vec![Duration::ZERO; 2], 2));

    // Too long: the next model, of which nobody knows yet.
    let (all, providers) = several(2, CallTimeoutLayer::new());
    all.iter().for_each(|one| one.push(Reply::error(limited(20))));
    let started = Instant::now();
    let chains = Chains::builder().retries(2).chain("x/m", ["x/n"]);
    assert_eq!(ask(&providers, chains).await.unwrap().model, "x/n");
    assert_eq!((asked(&all).iter().sum::<usize>(), started.elapsed()), (3, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn the_next_model_of_a_provider_is_not_asked_of_the_deployment_that_failed() {
    let (all, providers) = several(2, CallTimeoutLayer::new());
    let _held = hold(&all[1], &[&all[0]], &providers).await;
    let before = asked(&all);
    (0..2).for_each(|_| all[0].push(Reply::error(failure(ErrorClass::Connect))));
    let chains = Chains::builder().chain("x/m", ["x/n"]).on(Cause::Unreachable, Action::Next);
    assert_eq!(ask(&providers, chains).await.unwrap().model, "x/n");
    assert_eq!(asked(&all), [before[0] + 1, before[1] + 1]);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_whose_answer_says_nothing_is_not_asked_again() {
    let whole = || Reply::complete(Completion::text(" \n", TokenUsage::new(3, 0)));
    let streamed = || Reply::stream([Step::Chunk(StreamChunk::role()), Step::Chunk(StreamChunk::text(" "))]);
    let filtered = || {
        let said = r#"{"choices":[{"index":0,"message":{},"finish_reason":"content_filter"}]}"#;
        Reply::complete(Completion::parse(said).unwrap())
    };
    let replies = [("whole", whole as fn() -> Reply), ("streamed", streamed), ("filtered", filtered)];
    let (drain, _worker) = DrainLayer::start(DrainOptions::within(SECOND));
    for ((way, reply), drains) in replies.into_iter().flat_map(|reply| [(reply, false), (reply, true)]) {
        let (all, providers) = several(2, CallTimeoutLayer::new());
        let started = Instant::now();
        for _ in 0..100 {
            all[0].push(reply());
            let chains = Chains::builder().retries(1).chain_on(Cause::ContentFilter, "x/m", ["x/n"]);
            let answer = match drains {
                false => ask(&providers, chains).await,
                true => ask(&drain.layer(providers.clone()), chains).await,
            };
            answer.unwrap_or_else(|error| panic!("{way}, {drains}: {error}"));
        }
        assert_eq!(started.elapsed(), Duration::ZERO, "{way}, {drains}");
        assert!(asked(&all)[0] > 10, "{way}, {drains}: {:?}", asked(&all));
    }
}

/// A prompt that is larger than what this deployment's account may use in a minute.
fn over_account_limit() -> Error {
    let mut failure = ProviderFailure::new(ErrorClass::ContextWindow, "x", "m");
    failure.is_account_limit = true;
    Error::new(ErrorKind::Provider(failure))
}

#[tokio::test(start_paused = true)]
async fn what_exceeds_the_limit_of_one_account_is_asked_of_the_others_before_the_chain() {
    let too_long = || failure(ErrorClass::ContextWindow);
    let longer = |chains: ChainsBuilder| chains.chain_on(Cause::ContextWindow, "x/m", ["x/long"]);
    let ask_with = async |replies: [Option<Error>; 2], chains: ChainsBuilder| {
        let (all, providers) = several(2, CallTimeoutLayer::new());
        let _held = hold(&all[1], &[&all[0]], &providers).await;
        let before = asked(&all);
        for (one, reply) in all.iter().zip(replies) {
            reply.into_iter().for_each(|error| one.push(Reply::error(error)));
        }
        let started = Instant::now();
        let answer = ask(&providers, chains).await.map(|answer| answer.model.to_string());
        assert_eq!(started.elapsed(), Duration::ZERO);
        let times: Vec<_> = asked(&all).iter().zip(before).map(|(now, before)| now - before).collect();
        (answer.map_err(|error| error.class()), times)
    };
    let retrying = || Chains::builder().retries(1);
    let class = Err(Some(ErrorClass::ContextWindow));
    let limit = || Some(over_account_limit());

    for chains in [retrying(), longer(retrying())] {
        assert_eq!(ask_with([limit(), None], chains).await, (Ok("x/m".to_owned()), vec![1, 1]));
    }
    let stop = retrying().on(Cause::ContextWindow, Action::Stop);
    assert_eq!(ask_with([limit(), None], stop).await, (class.clone(), vec![1, 0]));
    // Nobody is left: the chain, or else what was said.
    assert_eq!(ask_with([limit(), limit()], retrying()).await, (class.clone(), vec![1, 1]));
    let (answer, times) = ask_with([limit(), limit()], longer(retrying())).await;
    assert_eq!((answer.as_deref(), times.iter().sum()), (Ok("x/long"), 3));
    // What is too long for the model is so for each deployment of it.
    assert_eq!(ask_with([Some(too_long()), None], retrying()).await, (class.clone(), vec![1, 0]));

    // One that is only busy would take it: that is worth another try.
    let (all, providers) = several(2, CallTimeoutLayer::new());
    let _held = hold(&all[1], &[&all[0]], &providers).await;
    (0..2).for_each(|_| all[0].push(Reply::error(over_account_limit())));
    all[1].push(Reply::error(limited(2)));
    let error = ask(&providers, Chains::builder().retries(2)).await.unwrap_err();
    assert_eq!(error.attempts().len(), 3);
    assert_eq!((error.class(), error.retry_after()), (Some(ErrorClass::RateLimited), Some(2 * SECOND)));

    let (all, providers) = several(1, CallTimeoutLayer::new());
    all[0].push(Reply::error(over_account_limit()));
    let error = ask(&providers, retrying()).await.unwrap_err();
    assert_eq!((error.class(), asked(&all)), (Some(ErrorClass::ContextWindow), vec![1]));
}

// ===== rests =====

/// The first of two hangs until it rests; the other has been heard.
async fn first_hangs() -> (Vec<Scripted>, Providers) {
    let (all, providers) = several(2, CallTimeoutLayer::new().with_head(30 * SECOND));
    (0..100).for_each(|_| all[0].push(Reply::stall()));
    while asked(&all)[0] < 3 {
        drop(async { call(&providers).await?.text().await }.await);
    }
    (all, providers)
}

#[tokio::test(start_paused = true)]
async fn after_its_rest_a_deployment_has_one_call_until_it_is_heard() {
    let (all, providers) = first_hangs().await;
    let mut held = Vec::new();
    for _ in 0..50 {
        all[1].push(open_stream());
        held.push(call(&providers).await.unwrap());
    }
    assert_eq!(asked(&all)[0], 3, "it rests");
    advance(5 * SECOND).await;
    let forty = || (0..40).map(|_| task::spawn(providers.clone().oneshot(request()))).collect::<Vec<_>>();
    let mut calls = forty();
    calls.iter_mut().for_each(|call| drop(call.poll()));
    assert_eq!(asked(&all)[0], 4, "one finds out");

    // Its failure is the next rest.
    advance(30 * SECOND).await;
    calls.iter_mut().filter(|call| call.is_woken()).for_each(|call| drop(call.poll()));
    let mut calls = forty();
    calls.iter_mut().for_each(|call| drop(call.poll()));
    assert_eq!(asked(&all)[0], 4);

    // Who leaves early has not found out.
    advance(5 * SECOND).await;
    for nth in 5..8 {
        let mut call = task::spawn(providers.clone().oneshot(request()));
        assert_pending!(call.poll());
        assert_eq!(asked(&all)[0], nth);
    }

    // The first that is heard of it is enough, though the answer goes on.
    all[0].forget_replies();
    all[0].push(open_stream());
    let ResponseBody::Stream(mut chunks) = call(&providers).await.unwrap().body else { panic!("a stream") };
    call(&providers).await.unwrap();
    assert_eq!(asked(&all)[0], 8, "a head says nothing yet");
    chunks.next().await.unwrap().unwrap();
    for _ in 0..20 {
        call(&providers).await.unwrap();
    }
    assert_eq!(asked(&all)[0], 28);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_takes_long_to_find_out_keeps_the_others_off_for_one_rest_only() {
    let (all, providers) = several(2, CallTimeoutLayer::new().with_whole(300 * SECOND));
    while asked(&all)[0] < 3 {
        all[0].push(Reply::error(failure(ErrorClass::Connect)));
        drop(call(&providers).await);
        all[0].forget_replies();
    }
    advance(5 * SECOND).await;
    let whole = LlmRequest::new("x/m", ChatBody::builder().user("Hi").build().unwrap());
    let mut trial = loop {
        all[0].push(Reply::stall());
        let mut call = task::spawn(providers.clone().oneshot(whole.clone()));
        if call.poll().is_pending() {
            break call;
        }
    };
    let mut held = Vec::new();
    let mut read_a_hundred = async || {
        let before = asked(&all)[0];
        for _ in 0..100 {
            all.iter().for_each(|one| one.push(open_stream()));
            let mut answer = call(&providers).await.unwrap();
            let ResponseBody::Stream(chunks) = &mut answer.body else { panic!("a stream") };
            chunks.next().await.unwrap().unwrap();
            held.push(answer);
            all.iter().for_each(Scripted::forget_replies);
        }
        asked(&all)[0] - before
    };
    assert_eq!(read_a_hundred().await, 0, "one finds out");
    advance(5 * SECOND).await;
    let count = read_a_hundred().await;
    assert!(count > 50, "it is well: {count}");

    // What the first one met in the end is no news.
    advance(300 * SECOND).await;
    assert_ready_err!(trial.poll());
    let count = read_a_hundred().await;
    assert!(count > 10, "it is still well: {count}");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_goes_on_hanging_costs_one_caller_each_rest() {
    let (all, providers) = first_hangs().await;
    let mut calls = Vec::new();
    for nth in 4..10 {
        advance(5 * SECOND).await;
        for _ in 0..20 {
            all[1].push(open_stream());
            let mut call = task::spawn(providers.clone().oneshot(request()));
            let answer = call.poll();
            calls.push((call, answer));
        }
        assert_eq!(asked(&all)[0], nth);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_that_does_not_rest_is_asked_though_it_is_found_out_about() {
    let (all, providers) = first_hangs().await;
    advance(5 * SECOND).await;
    let mut probe = loop {
        let before = asked(&all)[0];
        let mut call = task::spawn(providers.clone().oneshot(request()));
        if call.poll().is_pending() && asked(&all)[0] > before {
            break call;
        }
    };
    // The other is given its rest meanwhile.
    all[1].push(Reply::error(limited(60)));
    call(&providers).await.unwrap_err();
    all[0].forget_replies();
    let before = asked(&all);
    call(&providers).await.unwrap();
    assert_eq!(asked(&all), [before[0] + 1, before[1]]);
    assert_pending!(probe.poll());
}

/// Waits for an answer for five seconds at most.
async fn impatient(providers: &Providers, way: &str) -> Result<String, Error> {
    let layer = FallbackLayer::new(Chains::default());
    match way {
        "the gateway's deadline" => {
            layer.with_deadline(5 * SECOND).layer(providers.clone()).oneshot(request()).await?.text().await
        }
        "their deadline" => {
            let context = RequestContext::new().with_timeout(5 * SECOND);
            providers.clone().oneshot(request().with_context(context)).await?.text().await
        }
        _ => {
            let read = async { call(providers).await?.text().await };
            timeout(5 * SECOND, read).await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Cancelled)))
        }
    }
}

const WAYS: [&str; 3] = ["the gateway's deadline", "their deadline", "they hang up"];

#[tokio::test(start_paused = true)]
async fn a_deployment_that_nobody_hears_before_he_leaves_rests() {
    let silences: [fn() -> Reply; 2] = [Reply::stall, || Reply::stream([Step::Stall])];
    for (way, silence) in WAYS.into_iter().flat_map(|way| silences.map(|silence| (way, silence))) {
        let (all, providers) = several(2, CallTimeoutLayer::new().with_head(30 * SECOND));
        while asked(&all)[1] == 0 {
            call(&providers).await.unwrap();
        }
        let before = asked(&all)[0];
        (0..100).for_each(|_| all[0].push(silence()));
        for _ in 0..100 {
            drop(impatient(&providers, way).await);
        }
        assert_eq!(asked(&all)[0] - before, 3, "{way}");

        // It finds no more patience after its rest.
        advance(5 * SECOND).await;
        for _ in 0..100 {
            drop(impatient(&providers, way).await);
        }
        assert_eq!(asked(&all)[0] - before, 4, "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_is_heard_in_between_does_not_rest_for_those_who_leave() {
    for way in WAYS {
        let (all, providers) = several(2, CallTimeoutLayer::new().with_head(30 * SECOND));
        for _ in 0..50 {
            all[0].push(Reply::stall());
            all[0].push(Reply::stall());
            all[0].push(Reply::text("hi"));
        }
        for _ in 0..100 {
            drop(impatient(&providers, way).await);
        }
        assert!(asked(&all)[0] > 25, "{way}: {}", asked(&all)[0]);
    }
}
