//! A thousand callers of one shared call, in a process of their own, so that its time can be measured.

use llm_layers::{
    ChatBody, FinishReason, LlmRequest, RequestContext, StreamChunk, TokenUsage,
    cache::{CacheLayer, CachePolicy, CacheSecret, Coalescing, MokaStore},
    price::{Price, PriceBook},
    testing::{Reply, Scripted, Step},
    usage::{MemorySink, Outcome, UsageLayer},
};
use std::time::Duration;
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

/// How long this process has had a processor, so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
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
    let ask = || {
        let service = service.clone();
        tokio::spawn(async move { service.oneshot(stream("q")).await?.text().await })
    };
    let initiator = ask();
    // Until it flies.
    while provider.requests().is_empty() {
        tokio::task::yield_now().await;
    }
    let followers: Vec<_> = (0..999).map(|_| ask()).collect();
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
            let mut before = Duration::ZERO;
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let so_far = cpu_time();
                if so_far == std::mem::replace(&mut before, so_far) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            let spent = cpu_time() - before;
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
