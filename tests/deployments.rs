//! Several deployments of one provider under `Fallback`: which one a further try goes to, and when it is made.

use llm_layers::{
    ChatBody, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ProviderFailure, StreamChunk,
    fallback::{Action, Backoff, Cause, Chains, ChainsBuilder, FallbackLayer},
    providers::Providers,
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

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

async fn ask(providers: &Providers, chains: ChainsBuilder) -> Result<LlmResponse, Error> {
    let slow = Backoff::new(SECOND, SECOND);
    let chains = chains.backoff(slow).build().unwrap();
    FallbackLayer::new(chains).layer(providers.clone()).oneshot(request()).await
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
