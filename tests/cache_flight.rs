//! Coalescing: equal calls that are in flight together share one, and depend on none of their callers.

#[path = "support/faulty.rs"]
mod faulty;

use self::faulty::faulty;
use futures_util::FutureExt as _;
use llm_layers::{
    CacheStatus, ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest,
    LlmResponse, RequestContext, ResponseBody, StreamChunk, TimeoutPhase, TokenUsage,
    cache::{
        CacheControl, CacheLayer, CachePolicy, CacheSecret, Coalescing, EpochKind, MokaStore, NotStored,
    },
    fallback::{Chains, FallbackLayer},
    providers::Providers,
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};

fn policy(coalescing: Coalescing) -> CachePolicy {
    CachePolicy::new(CacheSecret::new([7; 32])).with_coalescing(coalescing)
}

fn layer() -> CacheLayer {
    CacheLayer::new(MokaStore::new(1 << 20), policy(Coalescing::new()))
}

fn ask(text: &str) -> LlmRequest {
    let body = ChatBody::builder().user(text).build().unwrap();
    LlmRequest::new("acme/one", body).with_context(RequestContext::new().with_user_id("ada"))
}

fn stream(text: &str) -> LlmRequest {
    let body = ChatBody::builder().user(text).streaming().build().unwrap();
    LlmRequest::new("acme/one", body).with_context(RequestContext::new().with_user_id("ada"))
}

fn words(words: &[&str]) -> impl Iterator<Item = StreamChunk> {
    let end = [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(3, 2))];
    let words: Vec<_> = words.iter().map(|word| StreamChunk::text(*word)).collect();
    [StreamChunk::role()].into_iter().chain(words).chain(end)
}

fn gated(text: &[&str]) -> Reply {
    Reply::stream(words(text).flat_map(|chunk| [Step::Gate, Step::Chunk(chunk)]))
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn chunks(answer: LlmResponse) -> ChunkStream {
    match answer.body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(_) => panic!("expected a stream"),
    }
}

async fn gives_back(layer: &CacheLayer, provider: &Scripted) {
    settle().await;
    assert_eq!((provider.alive(), layer.flights()), (0, 0), "nothing is left behind");
}

#[tokio::test]
async fn equal_calls_share_one_and_late_ones_get_its_beginning_too() {
    let layer = layer();
    let provider = Scripted::new().reply(gated(&["a", "b"]));
    let service = layer.layer(provider.clone());
    let mut first = task::spawn(service.clone().oneshot(stream("q")));
    assert_pending!(first.poll());
    settle().await;
    let mut first = chunks(assert_ready!(first.poll()).unwrap());
    provider.open();
    provider.open();
    settle().await;
    assert_eq!(first.next().await.unwrap().unwrap().content(), "");
    assert_eq!(first.next().await.unwrap().unwrap().content(), "a");

    let late = service.clone().oneshot(stream("q")).await.unwrap();
    assert_eq!(late.cache, CacheStatus::Coalesced);
    let mut late = chunks(late);
    // All that was there already, then live.
    assert_eq!(late.next().await.unwrap().unwrap().content(), "");
    assert_eq!(late.next().await.unwrap().unwrap().content(), "a");
    let mut next = task::spawn(late.next());
    assert_pending!(next.poll());
    provider.open();
    settle().await;
    assert!(next.is_woken());
    assert_eq!(assert_ready!(next.poll()).unwrap().unwrap().content(), "b");
    drop(next);
    (0..3).for_each(|_| provider.open());
    let rest = LlmResponse::new("acme/one", late).text().await.unwrap();
    assert_eq!(rest, "");
    assert_eq!(LlmResponse::new("acme/one", first).text().await.unwrap(), "b");
    gives_back(&layer, &provider).await;
    assert_eq!(provider.requests().len(), 1);
    let stats = layer.stats();
    assert_eq!((stats.misses, stats.coalesced, stats.stored), (1, 1, 1));
    assert_eq!((stats.saved_input_tokens, stats.saved_output_tokens), (3, 2));
    assert!(service.clone().oneshot(stream("q")).await.unwrap().cache.is_hit());
}

#[tokio::test]
async fn whole_answers_are_shared_too_and_other_questions_and_users_are_not() {
    let layer = layer();
    let provider = Scripted::new();
    for text in ["one", "two", "three"] {
        provider.push(Reply::text(text).after([Step::Gate]));
    }
    let service = layer.layer(provider.clone());
    let eve = || ask("q").with_context(RequestContext::new().with_user_id("eve"));
    let calls = [ask("q"), ask("q"), ask("other"), eve(), ask("q")];
    let calls = calls.map(|request| tokio::spawn(service.clone().oneshot(request)));
    settle().await;
    assert_eq!((provider.requests().len(), layer.flights()), (3, 3));
    (0..3).for_each(|_| provider.open());
    let mut answers = Vec::new();
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        answers.push((answer.cache, answer.text().await.unwrap()));
    }
    let own = |text: &str| (CacheStatus::Miss, text.to_owned());
    let shared = (CacheStatus::Coalesced, "one".to_owned());
    assert_eq!(answers, [own("one"), shared.clone(), own("two"), own("three"), shared]);
    gives_back(&layer, &provider).await;
}

#[tokio::test]
async fn the_initiator_may_leave_and_all_may_and_then_it_is_hung_up() {
    let layer = layer();
    let provider = Scripted::new().reply(gated(&["a"])).reply(gated(&["b"]).after([Step::Gate]));
    let service = layer.layer(provider.clone());
    let mut first = task::spawn(service.clone().oneshot(stream("q")));
    let mut second = task::spawn(service.clone().oneshot(stream("q")));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    drop(first);
    settle().await;
    (0..4).for_each(|_| provider.open());
    let answer = second.await.unwrap();
    assert_eq!(answer.cache, CacheStatus::Coalesced);
    assert_eq!(answer.text().await.unwrap(), "a");
    assert_eq!(provider.requests().len(), 1);
    gives_back(&layer, &provider).await;

    let calls = [(); 3].map(|()| tokio::spawn(service.clone().oneshot(stream("other"))));
    settle().await;
    assert_eq!(provider.alive(), 1);
    calls.iter().for_each(|call| call.abort());
    gives_back(&layer, &provider).await;
    assert_eq!(layer.stats().not_stored, [(NotStored::Incomplete, 1)]);
}

#[tokio::test]
async fn a_call_goes_on_alone_where_that_is_asked_for() {
    let rules = Coalescing::new().finishing_alone();
    let layer = CacheLayer::new(MokaStore::new(1 << 20), policy(rules));
    let provider = Scripted::new().reply(gated(&["a"]));
    let service = layer.layer(provider.clone());
    let call = tokio::spawn(service.clone().oneshot(stream("q")));
    settle().await;
    call.abort();
    settle().await;
    assert_eq!((provider.alive(), layer.flights()), (1, 1));
    (0..4).for_each(|_| provider.open());
    gives_back(&layer, &provider).await;
    assert!(service.oneshot(stream("q")).await.unwrap().cache.is_hit());
}

/// The call depends on nobody's being polled: neither its initiator's, nor that of whoever comes next.
#[tokio::test]
async fn callers_who_are_never_polled_hold_nobody_up() {
    let layer = layer();
    let refused = || Reply::error(refusal()).after([Step::Gate]);
    let provider = Provider::new([Some(refused()), Some(refused()), None]);
    let mut service = layer.layer(provider.clone());
    let _first = service.call(ask("q"));
    let _second = service.call(ask("q"));
    let third = tokio::spawn(service.call(ask("q")));
    settle().await;
    provider.scripted.open();
    provider.scripted.open();
    let answer = third.await.unwrap().unwrap();
    assert_eq!(answer.text().await.unwrap(), "hi");
    assert_eq!(provider.scripted.requests().len(), 3);
}

/// Does not say that anything was sent when it refuses.
#[derive(Clone)]
struct Provider {
    scripted: Scripted,
}

impl Provider {
    fn new(replies: impl IntoIterator<Item = Option<Reply>>) -> Self {
        let scripted = Scripted::new();
        replies.into_iter().flatten().for_each(|reply| scripted.push(reply));
        Self { scripted }
    }
}

impl Service<LlmRequest> for Provider {
    type Response = LlmResponse;
    type Error = Error;
    type Future = <Scripted as Service<LlmRequest>>::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        self.scripted.poll_ready(cx)
    }

    fn call(&mut self, mut request: LlmRequest) -> Self::Future {
        request.progress = llm_layers::Progress::new();
        self.scripted.call(request)
    }
}

#[tokio::test]
async fn a_failure_of_the_provider_is_shared_so_that_fifty_misses_make_few_calls() {
    let failures: [fn() -> Error; 4] = [
        || Error::provider(ErrorClass::Unavailable, "acme", "one"),
        || Error::provider(ErrorClass::Connect, "acme", "one"),
        || Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Head }),
        || Error::new(ErrorKind::Other),
    ];
    for failure in failures {
        let layer = layer();
        let provider = Scripted::new();
        let fails = || Reply::error(failure().with_dispatched(true)).after([Step::Yield, Step::Yield]);
        (0..50).for_each(|_| provider.push(fails()));
        let service = layer.layer(provider.clone());
        let calls: Vec<_> = (0..50).map(|_| tokio::spawn(service.clone().oneshot(ask("q")))).collect();
        let mut sent = 0;
        for call in calls {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(error.to_string(), failure().to_string());
            sent += usize::from(error.dispatched());
        }
        assert!(provider.requests().len() <= 2, "{:?}: {}", failure(), provider.requests().len());
        // Nobody but the one who asked has used anything up.
        assert_eq!(sent, provider.requests().len());
        gives_back(&layer, &provider).await;
        // And it is not remembered.
        provider.forget_replies();
        assert_eq!(service.oneshot(ask("q")).await.unwrap().text().await.unwrap(), "hi");
    }
}

fn unreachable() -> Error {
    Error::provider(ErrorClass::Connect, "acme", "one").with_dispatched(false)
}

#[tokio::test]
async fn where_nothing_was_sent_the_next_caller_tries_and_after_two_all_believe_it() {
    let layer = layer();
    let provider = Provider::new([]);
    let fails = || Reply::error(unreachable()).after([Step::Yield, Step::Yield]);
    (0..50).for_each(|_| provider.scripted.push(fails()));
    let service = layer.layer(provider.clone());
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(service.clone().oneshot(ask("q")))).collect();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!((error.class(), error.dispatched()), (Some(ErrorClass::Connect), false));
    }
    assert_eq!(provider.scripted.requests().len(), 2);
    gives_back(&layer, &provider.scripted).await;

    // It is there again for the second.
    let layer = self::layer();
    let provider = Provider::new([Some(fails()), None]);
    let service = layer.layer(provider.clone());
    let calls: Vec<_> = (0..50).map(|_| tokio::spawn(service.clone().oneshot(ask("q")))).collect();
    let mut failed = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => assert_eq!(answer.text().await.unwrap(), "hi"),
            Err(error) => failed += usize::from(error.class() == Some(ErrorClass::Connect)),
        }
    }
    assert_eq!((failed, provider.scripted.requests().len()), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn fifty_who_wait_for_what_is_down_wait_no_longer_than_two_tries() {
    const TRY: Duration = Duration::from_millis(250);
    for kind in [
        ErrorKind::StoreUnavailable { store: "quota".into() },
        ErrorKind::Overloaded,
        ErrorKind::Timeout { phase: TimeoutPhase::Head },
    ] {
        let tries = Arc::new(AtomicUsize::new(0));
        let below = {
            let (tries, kind) = (Arc::clone(&tries), kind.clone());
            service_fn(move |_: LlmRequest| {
                tries.fetch_add(1, Ordering::SeqCst);
                let kind = kind.clone();
                async move {
                    tokio::time::sleep(TRY).await;
                    Err::<LlmResponse, _>(Error::new(kind))
                }
            })
        };
        let (layer, began) = (layer(), Instant::now());
        let service = layer.layer(below);
        let calls: Vec<_> = (0..50).map(|_| tokio::spawn(service.clone().oneshot(ask("q")))).collect();
        for call in calls {
            let error = call.await.unwrap().unwrap_err();
            assert_eq!(
                (std::mem::discriminant(error.kind()), error.dispatched()),
                (std::mem::discriminant(&kind), false)
            );
        }
        assert_eq!((tries.load(Ordering::SeqCst), layer.flights()), (2, 0), "{kind:?}");
        assert!(began.elapsed() <= 2 * TRY + Duration::from_millis(10), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_break_after_the_head_is_everybodys_too() {
    let layer = layer();
    let broken = Error::provider(ErrorClass::Transport, "acme", "one");
    let steps = [Step::Chunk(StreamChunk::text("a")), Step::Gate, Step::Fail(broken)];
    let provider = Scripted::new().reply(Reply::stream(steps));
    let service = layer.layer(provider.clone());
    let calls: Vec<_> = (0..10).map(|_| tokio::spawn(service.clone().oneshot(stream("q")))).collect();
    settle().await;
    provider.open();
    for call in calls {
        let error = call.await.unwrap().unwrap().text().await.unwrap_err();
        assert_eq!(error.class(), Some(ErrorClass::Transport));
    }
    assert_eq!(provider.requests().len(), 1);
    gives_back(&layer, &provider).await;
}

fn refusal() -> Error {
    Error::new(ErrorKind::ModelNotAllowed { department_id: "poor".into(), model: "acme/one".into() })
}

#[tokio::test]
async fn a_refusal_is_its_own_and_the_next_one_tries_one_at_a_time() {
    let (calls, together, most) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let below = {
        let (calls, together, most) = (Arc::clone(&calls), Arc::clone(&together), Arc::clone(&most));
        service_fn(move |request: LlmRequest| {
            let (calls, together, most) = (Arc::clone(&calls), Arc::clone(&together), Arc::clone(&most));
            async move {
                calls.fetch_add(1, Ordering::SeqCst);
                most.fetch_max(together.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                together.fetch_sub(1, Ordering::SeqCst);
                match request.context.agent_name() {
                    Some("poor") => Err(refusal()),
                    _ => {
                        let hi = Completion::text("hi", TokenUsage::new(1, 1));
                        Ok(LlmResponse::new(request.model, hi))
                    }
                }
            }
        })
    };
    let layer = layer();
    let service = layer.layer(below);
    let from = |agent: &str| {
        let context = RequestContext::new().with_user_id("ada").with_agent_name(agent);
        tokio::spawn(service.clone().oneshot(ask("q").with_context(context)))
    };
    let poor: Vec<_> = (0..20).map(|_| from("poor")).collect();
    let rich: Vec<_> = (0..20).map(|_| from("rich")).collect();
    for call in poor {
        // Who came early enough was refused; whoever was asked for later had an answer by then.
        match call.await.unwrap() {
            Ok(answer) => assert_eq!(answer.cache, CacheStatus::Coalesced),
            Err(error) => assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. })),
        }
    }
    let mut own = 0;
    for call in rich {
        own += usize::from(call.await.unwrap().unwrap().cache == CacheStatus::Miss);
    }
    assert_eq!((own, most.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(calls.load(Ordering::SeqCst), 21);

    // Refused all alone.
    let context = RequestContext::new().with_user_id("eve").with_agent_name("poor");
    let error = service.oneshot(ask("q").with_context(context)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. }));
    assert_eq!(layer.flights(), 0);
}

#[tokio::test]
async fn an_answer_that_has_come_is_not_lost_by_a_panic_where_its_call_is_dropped() {
    for request in [ask("q"), stream("q")] {
        let layer = layer();
        let provider = Scripted::new();
        let service = layer.layer(faulty(&provider));
        let calls: Vec<_> = (0..3).map(|_| tokio::spawn(service.clone().oneshot(request.clone()))).collect();
        for call in calls {
            assert_eq!(call.await.unwrap().unwrap().text().await.unwrap(), "hi");
        }
        assert_eq!(provider.requests().len(), 1);
        gives_back(&layer, &provider).await;
    }
}

#[tokio::test]
async fn a_panic_is_an_error_to_all_and_the_next_call_is_good() {
    for reply in [Reply::panic(), Reply::text("").after([Step::Gate, Step::Panic])] {
        let layer = layer();
        let provider = Scripted::new().with_places(1).reply(reply);
        let service = layer.layer(provider.clone());
        let calls: Vec<_> = (0..10).map(|_| tokio::spawn(service.clone().oneshot(ask("q")))).collect();
        settle().await;
        provider.open();
        for call in calls {
            match call.await.unwrap() {
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Other), "{error:?}"),
                // Who came when it was over already.
                Ok(answer) => assert_eq!(answer.text().await.unwrap(), "hi"),
            }
        }
        assert_eq!(service.oneshot(ask("q")).await.unwrap().text().await.unwrap(), "hi");
        gives_back(&layer, &provider).await;
        assert_eq!(provider.free(), 1);
    }
    let layer = layer();
    let steps = [Step::Chunk(StreamChunk::text("a")), Step::Gate, Step::Panic];
    let provider = Scripted::new().reply(Reply::stream(steps));
    let service = layer.layer(provider.clone());
    let calls: Vec<_> = (0..10).map(|_| tokio::spawn(service.clone().oneshot(stream("q")))).collect();
    settle().await;
    provider.open();
    for call in calls {
        let error = call.await.unwrap().unwrap().text().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Other), "{error:?}");
    }
    gives_back(&layer, &provider).await;
}

#[tokio::test]
async fn beyond_the_bound_nobody_joins_and_only_who_is_too_far_behind_is_cut_off() {
    let text = "x".repeat(500);
    let rules = policy(Coalescing::new()).with_max_entry_bytes(4000);
    let layer = CacheLayer::new(MokaStore::new(1 << 20), rules);
    let many = vec![text.as_str(); 20];
    let provider = Scripted::new().reply(gated(&many)).reply(Reply::words(["new"]));
    let service = layer.layer(provider.clone());
    let calls = [(); 2].map(|()| tokio::spawn(service.clone().oneshot(stream("q"))));
    settle().await;
    let [quick, slow] = calls;
    let (mut quick, mut slow) = (chunks(quick.await.unwrap().unwrap()), chunks(slow.await.unwrap().unwrap()));
    assert!(slow.next().now_or_never().is_none());
    let mut read = String::new();
    for at in 0..13 {
        provider.open();
        settle().await;
        read += &quick.next().await.unwrap().unwrap().content();
        if at == 2 {
            // Within the bound: somebody joins.
            let joined = service.clone().oneshot(stream("q")).await.unwrap();
            assert_eq!(joined.cache, CacheStatus::Coalesced);
        }
    }
    let late = service.clone().oneshot(stream("q")).await.unwrap();
    assert_eq!((late.cache, late.text().await.unwrap().as_str()), (CacheStatus::Miss, "new"));
    let error = slow.next().await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StreamInterrupted { after_content: false, .. }), "{error:?}");
    loop {
        provider.open();
        settle().await;
        match quick.next().await {
            Some(chunk) => read += &chunk.unwrap().content(),
            None => break,
        }
    }
    assert_eq!(read.len(), 500 * 20);
    assert_eq!(layer.stats().not_stored, [(NotStored::TooLarge, 1)]);
    gives_back(&layer, &provider).await;
}

/// As a provider sends it that is quicker than the network: all at once.
#[tokio::test(start_paused = true)]
async fn a_lone_reader_gets_all_that_comes_at_once_however_much() {
    let image = "A".repeat(1_300_000);
    let large = [StreamChunk::role(), StreamChunk::text(&image), StreamChunk::finish(&FinishReason::Stop)];
    let small: Vec<_> = words(&["word "; 40]).collect();
    for (bound, burst) in [(1 << 20, large.to_vec()), (4096, small)] {
        let whole: String = burst.iter().map(|chunk| chunk.content().into_owned()).collect();
        let rules = policy(Coalescing::new()).with_max_entry_bytes(bound);
        let layer = CacheLayer::new(MokaStore::new(64 << 20), rules);
        let provider = Scripted::new().reply(Reply::stream(burst.into_iter().map(Step::Chunk)));
        let chains = Chains::builder().chain("acme/one", ["acme/two"]).build().unwrap();
        let service = FallbackLayer::new(chains).layer(layer.layer(provider.clone()));
        assert_eq!(service.oneshot(stream("q")).await.unwrap().text().await.unwrap(), whole);
        assert_eq!(layer.stats().not_stored, [(NotStored::TooLarge, 1)]);
        gives_back(&layer, &provider).await;
        assert_eq!(provider.requests().len(), 1);
    }
}

/// Who stands still, wherever, holds those up who read on only until they are where he is.
#[tokio::test]
async fn who_reads_no_more_holds_up_nobody_else_and_what_nobody_reads_is_not_asked_for() {
    let text = "x".repeat(500);
    let layer =
        CacheLayer::new(MokaStore::new(1 << 20), policy(Coalescing::new()).with_max_entry_bytes(4000));
    let provider = Scripted::new().reply(Reply::words([text.as_str(); 40]));
    let service = layer.layer(provider.clone());
    let calls = [(); 3].map(|()| tokio::spawn(service.clone().oneshot(stream("q"))));
    settle().await;
    let mut readers = Vec::new();
    for call in calls {
        readers.push(chunks(call.await.unwrap().unwrap()));
    }
    let [mut ahead, mut still, mut last] = <[_; 3]>::try_from(readers).ok().unwrap();
    // All stand still, and the provider with them.
    settle().await;
    assert_eq!(provider.alive(), 1);
    for _ in 0..4 {
        still.next().await.unwrap().unwrap();
    }
    for _ in 0..20 {
        ahead.next().await.unwrap().unwrap();
    }
    settle().await;
    assert_eq!(provider.alive(), 1);
    // More than the bound behind the one who is ahead.
    let cut = |after_content| {
        move |error: Error| match error.kind() {
            ErrorKind::StreamInterrupted { after_content: told, .. } => assert_eq!(*told, after_content),
            _ => panic!("{error:?}"),
        }
    };
    cut(true)(still.next().await.unwrap().unwrap_err());
    cut(false)(last.next().await.unwrap().unwrap_err());
    drop((still, last));
    assert_eq!(LlmResponse::new("acme/one", ahead).text().await.unwrap().len(), 500 * 21);
    gives_back(&layer, &provider).await;
}

#[tokio::test]
async fn who_is_less_than_the_bound_behind_is_not_cut_off_by_a_burst() {
    let text = "x".repeat(500);
    let layer =
        CacheLayer::new(MokaStore::new(1 << 20), policy(Coalescing::new()).with_max_entry_bytes(4000));
    let provider = Scripted::new().reply(Reply::words([text.as_str(); 40]));
    let service = layer.layer(provider.clone());
    let calls = [(); 2].map(|()| tokio::spawn(service.clone().oneshot(stream("q"))));
    settle().await;
    let [quick, slow] = calls;
    let (mut quick, mut slow) = (chunks(quick.await.unwrap().unwrap()), chunks(slow.await.unwrap().unwrap()));
    for _ in 0..5 {
        quick.next().await.unwrap().unwrap();
        settle().await;
    }
    // Who was ahead may leave, and the other one goes on.
    assert_eq!(slow.next().await.unwrap().unwrap().content(), "");
    for _ in 0..20 {
        quick.next().await.unwrap().unwrap();
        slow.next().await.unwrap().unwrap();
    }
    drop(quick);
    assert_eq!(LlmResponse::new("acme/one", slow).text().await.unwrap().len(), 500 * 20);
    gives_back(&layer, &provider).await;
}

/// Nothing that they could still get is left for them.
#[tokio::test]
async fn when_only_those_are_left_who_were_cut_off_it_is_over_unless_it_goes_on_alone() {
    let text = "x".repeat(500);
    for finishes_alone in [false, true] {
        let mut rules = Coalescing::new();
        rules.finishes_alone = finishes_alone;
        let layer = CacheLayer::new(MokaStore::new(1 << 20), policy(rules).with_max_entry_bytes(4000));
        let end = [Step::Gate, Step::Chunk(StreamChunk::text("end"))];
        let many = [text.as_str(); 40].map(|text| Step::Chunk(StreamChunk::text(text)));
        let provider = Scripted::new().reply(Reply::stream(many.into_iter().chain(end)));
        let service = layer.layer(provider.clone());
        let calls = [(); 2].map(|()| tokio::spawn(service.clone().oneshot(stream("q"))));
        settle().await;
        let [quick, slow] = calls;
        let (mut quick, slow) = (chunks(quick.await.unwrap().unwrap()), slow.await.unwrap().unwrap());
        for _ in 0..20 {
            quick.next().await.unwrap().unwrap();
        }
        drop(quick);
        settle().await;
        assert_eq!(provider.alive(), usize::from(finishes_alone));
        if finishes_alone {
            provider.open();
        }
        gives_back(&layer, &provider).await;
        assert!(matches!(slow.text().await.unwrap_err().kind(), ErrorKind::StreamInterrupted { .. }));
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_hung_up_on_is_told_whether_he_has_had_content() {
    for (first, has_content) in [(StreamChunk::role(), false), (StreamChunk::text("a"), true)] {
        let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy(Coalescing::new()));
        let provider = Scripted::new().reply(Reply::stream([Step::Chunk(first), Step::Stall]));
        let service = layer.layer(provider.clone());
        let mut reader = chunks(service.oneshot(stream("q")).await.unwrap());
        reader.next().await.unwrap().unwrap();
        worker.shutdown(Duration::from_secs(1)).await;
        let error = reader.next().await.unwrap().unwrap_err();
        let ErrorKind::StreamInterrupted { after_content, .. } = error.kind() else { panic!("{error:?}") };
        assert_eq!(*after_content, has_content);
    }
}

/// As with any other order of layers: what it costs is what order.md says, and not that nobody gets an answer.
#[tokio::test(start_paused = true)]
async fn the_call_of_a_flight_does_not_wait_for_itself_further_in() {
    let (same, other) = (layer(), layer());
    let chains = || Chains::builder().chain("acme/one", ["acme/two"]).build().unwrap();
    let provider = Scripted::new();
    let twice = same.layer(same.layer(provider.clone()));
    let around_another = same.layer(other.layer(same.layer(other.layer(provider.clone()))));
    let fallback = FallbackLayer::new(chains()).layer(same.layer(provider.clone()));
    let around_fallback = same.layer(fallback);
    let services = [
        BoxCloneSyncService::new(twice),
        BoxCloneSyncService::new(around_another),
        BoxCloneSyncService::new(around_fallback),
    ];
    for (at, service) in services.into_iter().enumerate() {
        for request in [ask, stream] {
            provider.push(Reply::words(["hi"]).after([Step::Wait(Duration::from_secs(1))]));
            let asked = provider.requests().len();
            let question = format!("q {at} {}", request("q").body.is_streaming());
            let calls = [(); 3].map(|()| tokio::spawn(service.clone().oneshot(request(&question))));
            let mut shared = 0;
            for call in calls {
                let answer = tokio::time::timeout(Duration::from_secs(60), call).await;
                let answer = answer.expect("it waits for itself").unwrap().unwrap();
                shared += usize::from(answer.cache == CacheStatus::Coalesced);
                assert_eq!(answer.text().await.unwrap(), "hi");
            }
            assert_eq!((shared, provider.requests().len()), (2, asked + 1), "{question}");
            gives_back(&same, &provider).await;
            assert_eq!(other.flights(), 0);
        }
    }
}

#[tokio::test]
async fn flights_are_bounded() {
    let layer = CacheLayer::new(MokaStore::new(1 << 20), policy(Coalescing::new().with_max_flights(2)));
    let provider = Scripted::new();
    (0..2).for_each(|_| provider.push(Reply::text("hi").after([Step::Gate])));
    let service = layer.layer(provider.clone());
    let calls = ["a", "b", "a"].map(|text| tokio::spawn(service.clone().oneshot(ask(text))));
    settle().await;
    let error = service.clone().oneshot(ask("c")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Overloaded));
    provider.open();
    provider.open();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    service.oneshot(ask("c")).await.unwrap();
    gives_back(&layer, &provider).await;
}

/// A poor one's answer may be cut off, and his refusal is nobody else's.
#[tokio::test]
async fn only_those_of_the_same_departments_share_a_call() {
    let layer = layer();
    let provider = Scripted::new();
    (0..4).for_each(|_| provider.push(Reply::text("hi").after([Step::Gate])));
    let service = layer.layer(provider.clone());
    let of = |departments: &[&str]| {
        let context = RequestContext::new().with_user_id("ada").with_departments(departments.iter().copied());
        tokio::spawn(service.clone().oneshot(ask("q").with_context(context)))
    };
    let calls: Vec<_> =
        [&["rich"][..], &["poor"], &["rich", "poor"], &[], &["poor"], &["rich", "poor"]].map(of).into();
    settle().await;
    assert_eq!((provider.requests().len(), layer.flights()), (4, 4));
    (0..4).for_each(|_| provider.open());
    let mut how = Vec::new();
    for call in calls {
        how.push(call.await.unwrap().unwrap().cache);
    }
    use CacheStatus::{Coalesced, Miss};
    assert_eq!(how, [Miss, Miss, Miss, Miss, Coalesced, Coalesced]);
    // What was kept is everybody's.
    let context = RequestContext::new().with_user_id("ada").with_departments(["new"]);
    assert!(service.oneshot(ask("q").with_context(context)).await.unwrap().cache.is_hit());
}

#[tokio::test]
async fn who_wants_a_fresh_answer_and_who_comes_after_an_invalidation_does_not_join() {
    let layer = layer();
    let provider = Scripted::new();
    (0..3).for_each(|_| provider.push(Reply::text("hi").after([Step::Gate])));
    let service = layer.layer(provider.clone());
    let fresh = || {
        let context = RequestContext::new().with_user_id("ada");
        ask("q").with_context(context.with_cache_control(CacheControl::new().with_no_cache()))
    };
    let first = tokio::spawn(service.clone().oneshot(ask("q")));
    settle().await;
    let second = tokio::spawn(service.clone().oneshot(fresh()));
    settle().await;
    layer.invalidate(EpochKind::User, "ada").await.unwrap();
    let third = tokio::spawn(service.clone().oneshot(ask("q")));
    settle().await;
    assert_eq!(provider.requests().len(), 3);
    (0..3).for_each(|_| provider.open());
    for call in [first, second, third] {
        assert_eq!(call.await.unwrap().unwrap().cache, CacheStatus::Miss);
    }
}

#[tokio::test(start_paused = true)]
async fn each_caller_keeps_his_own_deadline_and_only_that() {
    let layer = layer();
    let slow = Reply::stream(
        words(&["a"]).flat_map(|chunk| [Step::Wait(Duration::from_secs(2)), Step::Chunk(chunk)]),
    );
    let provider = Scripted::new().reply(slow.after([Step::Wait(Duration::from_secs(2))]));
    // Which obeys the deadline of whoever is said to ask.
    let service = layer.layer(CallTimeoutLayer::new().layer(provider.clone()));
    let within = |seconds| {
        let context = RequestContext::new().with_user_id("ada").with_timeout(Duration::from_secs(seconds));
        tokio::spawn(service.clone().oneshot(stream("q").with_context(context)))
    };
    let (initiator, middle, patient) = (within(1), within(5), within(60));
    let late = |error: Error| matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline });
    let error = initiator.await.unwrap().unwrap_err();
    assert!(late(error));
    let error = middle.await.unwrap().unwrap().text().await.unwrap_err();
    assert!(late(error));
    assert_eq!(patient.await.unwrap().unwrap().text().await.unwrap(), "a");
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_flights_and_hangs_up_on_what_is_left() {
    for (wait, is_whole) in [(1, true), (60, false)] {
        let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy(Coalescing::new()));
        let reply = Reply::words(["a"]).after([Step::Wait(Duration::from_secs(wait))]);
        let provider = Scripted::new().reply(reply);
        let service = layer.layer(provider.clone());
        let call = tokio::spawn(async { service.oneshot(stream("q")).await?.text().await });
        tokio::time::sleep(Duration::from_millis(1)).await;
        let report = worker.shutdown(Duration::from_secs(5)).await;
        assert_eq!((report.flights, report.is_written), (usize::from(!is_whole), true));
        match call.await.unwrap() {
            Ok(text) => assert!(is_whole && text == "a"),
            Err(error) => assert!(!is_whole && matches!(error.kind(), ErrorKind::Overloaded), "{error:?}"),
        }
        assert_eq!((provider.alive(), layer.flights()), (0, 0));
        // From now on each goes alone.
        provider.push(Reply::text("alone"));
        let mut call = task::spawn(layer.layer(provider.clone()).oneshot(ask("new")));
        let answer = assert_ready!(call.poll()).unwrap();
        assert_eq!((answer.cache, answer.text().await.unwrap().as_str()), (CacheStatus::Miss, "alone"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_silent_leaves_others_their_time_and_is_hung_up_as_well() {
    let rules = Coalescing::new().finishing_alone();
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy(rules));
    let leaf = service_fn(async |request: LlmRequest| {
        let words = (0..100_000).map(|_| Ok(StreamChunk::text("once")));
        let words = ChunkStream::ending_cleanly(futures_util::stream::iter(words));
        Ok::<_, Error>(LlmResponse::new(request.model, ResponseBody::Stream(words)))
    });
    drop(layer.layer(leaf).oneshot(stream("q")).await.unwrap());
    settle().await;
    assert_eq!((worker.shutdown(Duration::ZERO).await.flights, layer.flights()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_may_take_for_ever_and_takes_as_long_as_it_must() {
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy(Coalescing::new()));
    let reply = Reply::words(["a"]).after([Step::Wait(Duration::from_secs(60))]);
    let service = layer.layer(Scripted::new().reply(reply));
    let call = tokio::spawn(async { service.oneshot(stream("q")).await?.text().await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let report = worker.shutdown(Duration::MAX).await;
    assert_eq!((report.flights, report.is_written), (0, true));
    assert_eq!(call.await.unwrap().unwrap(), "a");
}

#[tokio::test(start_paused = true)]
async fn who_goes_alone_after_a_shutdown_keeps_his_deadline() {
    let second = Duration::from_secs(1);
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy(Coalescing::new()));
    worker.shutdown(second).await;
    let provider = Scripted::new().reply(Reply::text("a").after([Step::Stall]));
    provider.push(Reply::stream(words(&["a"]).map(Step::Chunk).chain([Step::Stall])));
    for request in [ask("q"), stream("r")] {
        let context = request.context.clone().with_timeout(second);
        let call = async {
            let answer = layer.layer(provider.clone()).oneshot(request.with_context(context)).await?;
            answer.text().await
        };
        let error = tokio::time::timeout(2 * second, call).await.expect("in time").unwrap_err();
        let is_late = matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline });
        assert!(is_late, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_comes_too_late_begins_no_call_that_knows_no_deadline() {
    let provider = Scripted::new();
    let layer = CacheLayer::new(MokaStore::new(1 << 20), policy(Coalescing::new().finishing_alone()));
    let service = layer.layer(FallbackLayer::new(Chains::default()).layer(provider.clone()));
    for request in [ask("q"), stream("q")] {
        let context = request.context.clone().with_timeout(Duration::ZERO);
        let error = service.clone().oneshot(request.with_context(context)).await.unwrap_err();
        settle().await;
        assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }), "{error:?}");
        assert_eq!(provider.requests().len(), 0);
    }
}

/// A runtime that is over drops the task that was to make the call, unpolled.
#[test]
fn a_shared_call_that_is_never_begun_leaves_nobody_waiting() {
    let build = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for finishes_alone in [false, true] {
        let mut rules = Coalescing::new();
        rules.finishes_alone = finishes_alone;
        let layer = CacheLayer::new(MokaStore::new(1 << 20), policy(rules));
        let provider = Scripted::new();
        let service = layer.layer(provider.clone());
        let (first, second) = (build(), build());
        // The one whose call it is has asked, and his runtime ends before the task has had a turn.
        let mut leader = {
            let _entered = first.enter();
            let mut leader = Box::pin(service.clone().oneshot(ask("q")));
            assert!(leader.as_mut().now_or_never().is_none());
            leader
        };
        let follower = second.spawn(service.clone().oneshot(ask("q")));
        second.block_on(tokio::task::yield_now());
        drop(first);
        let error = second.block_on(follower).unwrap().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Overloaded), "{error:?}");
        let error = second.block_on(leader.as_mut()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Overloaded) && !error.dispatched(), "{error:?}");
        assert_eq!((provider.requests().len(), layer.flights()), (0, 0));
        assert!(
            second.block_on(service.clone().oneshot(ask("q"))).is_ok(),
            "the next one is not kept waiting"
        );
    }
}

#[tokio::test]
async fn the_initiator_alone_gets_what_came_along_with_the_answer() {
    let below = service_fn(|request: LlmRequest| async move {
        tokio::task::yield_now().await;
        let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)));
        answer.extensions.insert("of the initiator");
        answer.provider_request_id = Some("req-1".into());
        Ok::<_, Error>(answer)
    });
    let service = layer().layer(below);
    let calls = [(); 3].map(|()| tokio::spawn(service.clone().oneshot(ask("q"))));
    let mut shared = 0;
    for call in calls {
        let answer = call.await.unwrap().unwrap();
        let is_own = answer.cache == CacheStatus::Miss;
        assert_eq!(answer.extensions.is_empty(), !is_own);
        assert_eq!(answer.provider_request_id.is_some(), is_own);
        shared += usize::from(!is_own);
    }
    assert_eq!(shared, 2);
}

#[tokio::test(start_paused = true)]
async fn who_shares_an_answer_that_says_nothing_asks_another_deployment_at_once() {
    let whole = || Reply::complete(Completion::text(" ", TokenUsage::new(3, 0)));
    let streamed = || Reply::stream([Step::Chunk(StreamChunk::role())]);
    for is_streamed in [false, true] {
        let blank = if is_streamed { streamed } else { whole };
        let request = if is_streamed { stream } else { ask };
        let all = [Scripted::new(), Scripted::new()];
        let [one, two] = all.clone();
        let providers = Providers::builder().provider("acme", one).provider("acme", two).build().unwrap();
        let chains = Chains::builder().retries(1).build().unwrap();
        let service = FallbackLayer::new(chains).layer(layer().layer(providers));
        let started = Instant::now();
        for nth in 0..50 {
            all[0].push(blank());
            let call = || tokio::spawn(service.clone().oneshot(request(&nth.to_string())));
            let calls = [call(), call()];
            for call in calls {
                assert!(!call.await.unwrap().unwrap().text().await.unwrap().is_empty());
            }
        }
        assert!(all[0].requests().len() > 10);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
