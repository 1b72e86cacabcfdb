//! The life of an answer that several callers share: each gets all of it or an error, the call ends once, and when all have
//! left nothing is left.

mod common;

use common::check;
use futures_util::{StreamExt as _, stream};
use llm_layers_model::{
    ChatBody, ChunkStream, Error, ErrorClass, FinishReason, LlmRequest, LlmResponse, Observe, RequestContext,
    ResponseBody, StreamChunk, TokenUsage,
    body::{End, Watch},
    cache::{CacheLayer, CachePolicy, CacheSecret, Coalescing, MokaStore},
};
use shuttle::{
    future::{block_on, yield_now},
    rand::{Rng as _, thread_rng},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};
use std::{future::ready, sync::Arc};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// How many calls have begun, and have ended.
#[derive(Clone, Default)]
struct Calls(Arc<[AtomicUsize; 2]>);

impl Calls {
    fn count(&self) -> [usize; 2] {
        [self.0[0].load(Ordering::SeqCst), self.0[1].load(Ordering::SeqCst)]
    }
}

/// Notes how a call ends; twice would be one too many.
struct Ending(Calls);

impl Observe for Ending {
    fn on_end(self, _: End<'_>) {
        self.0.0[1].fetch_add(1, Ordering::SeqCst);
    }
}

fn ask() -> LlmRequest {
    let body = ChatBody::builder().user("Is anybody there?").streaming().build().unwrap();
    LlmRequest::new("p/m", body).with_context(RequestContext::new().with_user_id("ada"))
}

const WORDS: [&str; 3] = ["All", " is", " well."];

/// Three words, and then its end; what `fails` says breaks after that many, or before there is a head.
fn answer(fails: Option<usize>) -> Result<ChunkStream, Error> {
    let down = || Error::provider(ErrorClass::Transport, "p", "m").with_dispatched(true);
    if fails == Some(0) {
        return Err(down());
    }
    let words = WORDS.into_iter().map(StreamChunk::text);
    let end = [
        StreamChunk::finish(&FinishReason::Stop),
        StreamChunk::usage_only(TokenUsage::new(3, 2)),
        StreamChunk::end(),
    ];
    let chunks = words.chain(end).map(Ok).take(fails.unwrap_or(usize::MAX));
    let chunks = chunks.chain(fails.map(|_| Err(down())));
    Ok(ChunkStream::new(
        stream::iter(chunks)
            .then(|chunk| async {
                yield_now().await;
                chunk
            })
            .boxed(),
    ))
}

/// What one caller got: the text, and whether it was all.
fn call(
    service: impl tower::Service<LlmRequest, Response = LlmResponse, Error = Error>,
    patience: usize,
) -> Option<(String, bool)> {
    block_on(async move {
        let Ok(answer) = service.oneshot(ask()).await else { return Some((String::new(), false)) };
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream was asked for") };
        let mut text = String::new();
        for _ in 0..patience {
            match chunks.next().await {
                Some(Ok(chunk)) if chunk.is_final() => return Some((text, true)),
                Some(Ok(chunk)) => text += &chunk.content(),
                Some(Err(_)) => return Some((text, false)),
                None => panic!("an end without a word"),
            }
        }
        None
    })
}

/// A cache whose callers share calls.
fn cache() -> CacheLayer {
    bounded(1 << 20)
}

fn bounded(bytes: usize) -> CacheLayer {
    let policy = CachePolicy::new(CacheSecret::new([7; 32]))
        .with_coalescing(Coalescing::new())
        .with_max_entry_bytes(bytes);
    CacheLayer::new(MokaStore::new(1 << 20), policy)
}

fn shared(patience: [Option<usize>; 3], fails: bool) {
    let calls = Calls::default();
    let fails = if fails { Some(thread_rng().gen_range(0..3)) } else { None };
    let layer = cache();
    let service = layer.layer(service_fn({
        let calls = calls.clone();
        move |request: LlmRequest| {
            request.progress.mark_dispatched();
            let calls = calls.clone();
            calls.0[0].fetch_add(1, Ordering::SeqCst);
            let watch = Watch::new(Ending(calls));
            watch.over(async move {
                yield_now().await;
                Ok::<_, Error>(LlmResponse::new(request.model, ResponseBody::Stream(answer(fails)?)))
            })
        }
    }));
    let callers = patience.map(|patience| {
        let service = service.clone();
        let patience = patience.unwrap_or_else(|| thread_rng().gen_range(0..4));
        thread::spawn(move || call(service, patience))
    });
    for caller in callers {
        match caller.join().expect("no panic") {
            Some((text, true)) => assert_eq!(text, WORDS.concat()),
            Some((text, false)) => {
                assert!(fails.is_some(), "an error that nobody made, after {text:?}");
                assert!(WORDS.concat().starts_with(&text), "{text:?}");
            }
            // Left.
            None => {}
        }
    }
    settled(&calls, &layer);
}

/// Each call that has begun has ended, once, and nobody is waited for.
fn settled(calls: &Calls, layer: &CacheLayer) {
    // The task that was hung up ends when it is its turn.
    for _ in 0..100 {
        thread::yield_now();
    }
    let [begun, ended] = calls.count();
    assert!((1..=3).contains(&begun), "{begun} calls");
    assert_eq!(begun, ended, "a call that has begun ends once");
    assert_eq!(layer.flights(), 0, "a flight that nobody is on");
}

/// A stream that has begun, and never goes on.
fn endless() -> ChunkStream {
    let begun = stream::iter([Ok(StreamChunk::text("All"))]);
    ChunkStream::new(begun.chain(stream::pending()).boxed())
}

#[test]
fn when_all_have_left_the_call_is_hung_up() {
    check(|| {
        let calls = Calls::default();
        let layer = cache();
        let service = layer.layer(service_fn({
            let calls = calls.clone();
            move |request: LlmRequest| {
                request.progress.mark_dispatched();
                calls.0[0].fetch_add(1, Ordering::SeqCst);
                let answer = LlmResponse::new(request.model, ResponseBody::Stream(endless()));
                ready(Ok::<_, Error>(answer.observe(Ending(calls.clone()))))
            }
        }));
        let callers = [0, 1, 1].map(|patience| {
            let service = service.clone();
            thread::spawn(move || call(service, patience))
        });
        for caller in callers {
            assert_eq!(caller.join().expect("no panic"), None, "it has no end");
        }
        settled(&calls, &layer);
    });
}

#[test]
fn whoever_stays_gets_all_of_it_whoever_leaves() {
    check(|| shared([Some(100), None, None], false));
}

#[test]
fn whoever_comes_late_or_leaves_early_changes_nothing_for_others() {
    check(|| shared([Some(100), Some(100), None], false));
}

#[test]
fn a_failure_is_everybodys_and_leaves_nothing() {
    check(|| shared([Some(100), None, Some(100)], true));
}

/// The call waits for the one who is ahead, and he is never cut off, whoever that is.
#[test]
fn beyond_the_bound_somebody_gets_all_of_it() {
    check(|| {
        let calls = Calls::default();
        let layer = bounded(300);
        let service = layer.layer(service_fn({
            let calls = calls.clone();
            move |request: LlmRequest| {
                request.progress.mark_dispatched();
                calls.0[0].fetch_add(1, Ordering::SeqCst);
                let answer =
                    answer(None).map(|chunks| LlmResponse::new(request.model, ResponseBody::Stream(chunks)));
                ready(answer.map(|answer| answer.observe(Ending(calls.clone()))))
            }
        }));
        // Who is ahead may leave, and then it is over for those who were too far behind him.
        let last = if thread_rng().gen_bool(0.5) { 100 } else { thread_rng().gen_range(0..4) };
        let callers = [100, 100, last].map(|patience| {
            let service = service.clone();
            thread::spawn(move || call(service, patience))
        });
        let told: Vec<_> = callers.into_iter().map(|caller| caller.join().expect("no panic")).collect();
        for (text, _) in told.iter().flatten() {
            assert!(WORDS.concat().starts_with(text), "{text:?}");
        }
        assert!(last < 100 || told.iter().flatten().any(|(_, is_whole)| *is_whole), "{told:?}");
        settled(&calls, &layer);
    });
}
