//! A thousand callers of one shared call, in a process of their own, so that its time can be measured.

use llm_layers::{
    ChatBody, End, FinishReason, LlmRequest, Observe, RequestContext, StreamChunk, TokenUsage,
    body::Arrival,
    cache::{CacheLayer, CachePolicy, CacheSecret, Coalescing, MokaStore},
    price::{Price, PriceBook},
    testing::{Reply, Scripted, Step},
    usage::{MemorySink, Outcome, UsageLayer},
};
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tower::{Layer, ServiceExt};

fn stream(text: &str) -> LlmRequest {
    let body = ChatBody::builder().user(text).streaming().build().unwrap();
    LlmRequest::new("acme/one", body).with_context(RequestContext::new().with_user_id("ada"))
}

fn gated(text: &[&str]) -> Reply {
    let words = text.iter().map(|word| StreamChunk::text(*word));
    let end = [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(3, 2))];
    let chunks = [StreamChunk::role()].into_iter().chain(words).chain(end);
    Reply::stream(chunks.flat_map(|chunk| [Step::Gate, Step::Chunk(chunk)]))
}

/// How long the threads of this process have had a processor, so far: however many others there are that want one.
fn cpu_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let times = threads.filter_map(|thread| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("schedstat")).ok()?;
        stat.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(times.sum())
}

/// Counts what it sees.
struct Count(Arc<AtomicUsize>);

impl Observe for Count {
    fn on_chunk(&mut self, _: &StreamChunk, _: &Arrival) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn on_end(self, _: End<'_>) {}
}

#[test]
fn a_thousand_equal_streams_with_the_initiator_aborted_at_random() {
    for seed in 0..8 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(thousand(seed));
    }
}

fn record(sink: &MemorySink) -> UsageLayer<MemorySink> {
    let no_prices = std::iter::empty::<(&str, Price)>();
    UsageLayer::new(sink.clone(), PriceBook::of("none", no_prices).unwrap())
}

async fn thousand(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let sink = MemorySink::new(100);
    let policy = CachePolicy::new(CacheSecret::new([7; 32])).with_coalescing(Coalescing::new());
    let layer = CacheLayer::new(MokaStore::new(1 << 20), policy);
    let text: Vec<String> = (0..40).map(|at| format!("word {at} ")).collect();
    let text: Vec<&str> = text.iter().map(String::as_str).collect();
    let provider = Scripted::new();
    (0..5).for_each(|_| provider.push(gated(&text)));
    let service = layer.layer(record(&sink).layer(provider.clone()));
    let (seen, polls) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let ask = |seen: &Arc<AtomicUsize>| {
        let (service, seen, polls) = (service.clone(), Count(Arc::clone(seen)), Arc::clone(&polls));
        let read = async move { service.oneshot(stream("q")).await?.observe(seen).text().await };
        let mut read = Box::pin(read);
        tokio::spawn(poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::SeqCst);
            read.as_mut().poll(cx)
        }))
    };
    let initiator = ask(&Arc::default());
    // Until it flies.
    while provider.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    let followers: Vec<_> = (0..999).map(|_| ask(&seen)).collect();
    let leaves_at = random.usize(..43);
    for at in 0..43 {
        if at == leaves_at {
            initiator.abort();
        }
        provider.open();
        if random.bool() {
            tokio::task::yield_now().await;
        }
        if at == 20 {
            // All wait for what comes next: that costs nothing.
            while seen.load(Ordering::SeqCst) < 999 * (at + 1) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The last of them may still be at it.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let before = (polls.load(Ordering::SeqCst), cpu_time());
            tokio::time::sleep(Duration::from_millis(500)).await;
            let (polls, spent) = (polls.load(Ordering::SeqCst) - before.0, cpu_time() - before.1);
            assert_eq!(polls, 0, "nobody is woken for nothing");
            assert!(spent < Duration::from_millis(50), "{spent:?} of waiting");
        }
    }
    let whole = text.concat();
    let mut all = 0;
    for follower in followers {
        assert_eq!(follower.await.unwrap().unwrap(), whole);
        all += 1;
    }
    assert_eq!(all, 999);
    let _ = initiator.await;
    let calls = provider.requests().len();
    assert!((1..=2).contains(&calls), "{calls}");
    while layer.flights() > 0 || provider.alive() > 0 {
        tokio::task::yield_now().await;
    }
    let events = sink.take();
    assert_eq!((events.len(), sink.admitted()), (calls, 0), "each call is recorded once, and only calls are");
    assert_eq!((events[0].outcome, events[0].usage), (Outcome::Ok, TokenUsage::new(3, 2)));
}
