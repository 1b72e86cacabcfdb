//! What the cache costs: a hit, whole and up to the first chunk of a stream, with the hash alone and moka's bare `get`
//! beside it; and a miss above the bare leaf, with what it keeps.
//!
//! `cargo bench --bench cache`; how often memory is asked for is told by `--bench allocations`. Bodies are new for each call, so that their hash is in the time, unless a row says
//! otherwise. `ns` is the median of the rounds, `least` the quickest of them, for machines that have other work too. Making the request is not in it.

use futures_util::{FutureExt, StreamExt, stream};
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, FinishReason, LlmRequest, LlmResponse, RequestContext,
    ResponseBody, StreamChunk, TokenUsage,
    cache::{CacheKey, CacheLayer, CachePolicy, CacheScope, CacheSecret, Coalescing, MokaStore},
};
use std::{
    future::Ready,
    hint::black_box,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tokio::time::Instant;
use tower::{Layer, Service};

const CHUNKS: usize = 50;
const ROUNDS: usize = 401;

/// Answers at once with what was made before.
#[derive(Clone)]
struct Leaf {
    completion: Completion,
    chunks: Arc<[StreamChunk]>,
}

impl Leaf {
    fn new() -> Self {
        let words = (0..CHUNKS - 3).map(|n| StreamChunk::text(format!("word {n} ")));
        let end =
            [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(20, 50))];
        let chunks = words.chain(end).chain([StreamChunk::end()]).collect();
        Self { completion: Completion::text("An answer of a few words.", TokenUsage::new(20, 7)), chunks }
    }
}

impl Service<LlmRequest> for Leaf {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let body = if request.body.is_streaming() {
            let chunks = Arc::clone(&self.chunks);
            let chunks = stream::iter(0..CHUNKS).map(move |at| Ok(chunks[at].clone()));
            ResponseBody::Stream(ChunkStream::new(chunks))
        } else {
            ResponseBody::Complete(self.completion.clone())
        };
        std::future::ready(Ok(LlmResponse::new(request.model, body)))
    }
}

fn json(bytes: usize, salt: usize, streaming: bool) -> String {
    let frame =
        r#"{"model":"p/model","messages":[{"role":"user","content":""}],"temperature":0.2,"stream":false}"#;
    let text = format!("{salt:08}{}", "x".repeat(bytes - frame.len() - 8));
    format!(
        r#"{{"model":"p/model","messages":[{{"role":"user","content":"{text}"}}],"temperature":0.2,"stream":{streaming}}}"#
    )
}

fn request(bytes: usize, salt: usize, streaming: bool) -> LlmRequest {
    let body = ChatBody::parse(json(bytes, salt, streaming)).expect("valid");
    let context = RequestContext::new().with_user_id("ada").with_tenant_id("acme");
    LlmRequest::new("p/model", body).with_context(context)
}

/// One call, to its head and, if it is a stream, on to its first chunk or its end.
fn call<S>(service: &mut S, request: LlmRequest, to_the_end: bool)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
    let answer = service.call(request).now_or_never().expect("answers at once").expect("an answer");
    match answer.body {
        ResponseBody::Complete(completion) => drop(black_box(completion)),
        ResponseBody::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().now_or_never().expect("is there at once") {
                drop(black_box(chunk.expect("no chunk fails")));
                if !to_the_end {
                    break;
                }
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Counts what a run does, where no time is measured.
type Count = fn(&mut dyn FnMut()) -> u64;

/// The median time of `run`, each time on something that was made before and is not in the time; or what `count` says of one.
fn measure<T: Clone>(
    (name, count): (&str, Option<Count>),
    calls: usize,
    make: impl Fn(usize) -> T,
    mut run: impl FnMut(T),
) -> f64 {
    run(make(0));
    if let Some(count) = count {
        let first = make(1);
        let (kept, mut first) = (first.clone(), Some(first));
        println!("{name:<44}{:>12}", count(&mut || run(first.take().expect("it is run once"))));
        drop(kept);
        return 0.0;
    }
    let rounds = (0..ROUNDS).map(|_| {
        // As many as stay in the processor's cache, as a request does that has just been read.
        let made: Vec<T> = (0..calls).map(&make).collect();
        // To drop it is not in the time either.
        let kept = made.clone();
        let start = Instant::now();
        made.into_iter().for_each(&mut run);
        let time = start.elapsed().as_nanos() as f64 / calls as f64;
        drop(kept);
        time
    });
    let rounds: Vec<f64> = rounds.collect();
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let nanos = median(rounds);
    println!("{name:<44}{nanos:>12.0}{least:>12.0}");
    nanos
}

fn title(of: &str, bytes: usize, count: Option<Count>) {
    let columns = match count {
        Some(_) => format!("{:>12}", "allocations"),
        None => format!("{:>12}{:>12}", "ns", "least"),
    };
    println!("\n{:<44}{columns}", format!("{of}, prompt of {bytes} B"));
}

fn beside(count: Option<Count>, what: &str, nanos: f64) {
    if count.is_none() {
        println!("  {what:<42}{nanos:>12.0}");
    }
}

fn policy(secret: &CacheSecret) -> CachePolicy {
    CachePolicy::new(secret.clone())
}

pub(crate) fn hits(bytes: usize, calls: usize, count: Option<Count>) {
    let secret = CacheSecret::new([7; 32]);
    title("a hit", bytes, count);
    let hash = measure(
        ("the hash alone", count),
        calls,
        |_| request(bytes, 0, false),
        |request| {
            let scope = CacheScope::of(&request.context).expect("a user");
            black_box(CacheKey::new(&secret, &scope, &request));
        },
    );
    let keys = moka::sync::Cache::<[u8; 32], Arc<[u8]>>::new(1000);
    keys.insert([9; 32], Arc::new([1; 100]));
    measure(("moka's bare get", count), calls, |_| [9; 32], |key| drop(black_box(keys.get(&key))));

    let layer = CacheLayer::new(MokaStore::new(64 << 20), policy(&secret));
    let mut service = layer.layer(Leaf::new());
    call(&mut service, request(bytes, 0, false), true);
    let whole = measure(
        ("whole", count),
        calls,
        |_| request(bytes, 0, false),
        |request| {
            call(&mut service, request, false);
        },
    );
    beside(count, "of it, beside the hash", whole - hash);
    let made = request(bytes, 0, false);
    measure(
        ("whole, hashed before", count),
        calls,
        |_| made.clone(),
        |request| call(&mut service, request, false),
    );
    let streamed = |_: usize| request(bytes, 0, true);
    measure(("first chunk, kept whole", count), calls, streamed, |request| {
        call(&mut service, request, false)
    });

    let layer = CacheLayer::new(MokaStore::new(64 << 20), policy(&secret));
    let mut service = layer.layer(Leaf::new());
    call(&mut service, request(bytes, 0, true), true);
    let stream = measure(("first chunk, kept as a stream", count), calls, streamed, |request| {
        call(&mut service, request, false);
    });
    beside(count, "of it, beside the hash", stream - hash);
    let name = format!("all {CHUNKS} chunks, kept as a stream");
    measure((&name, count), calls, streamed, |request| call(&mut service, request, true));
}

pub(crate) fn misses(bytes: usize, calls: usize, count: Option<Count>) {
    title("a miss", bytes, count);
    let next = std::cell::Cell::new(0_usize);
    let keys = moka::sync::Cache::<[u8; 32], Arc<[u8]>>::new(1000);
    let value: Arc<[u8]> = Arc::new([1; 100]);
    let any_key = |_: usize| {
        next.set(next.get() + 1);
        let mut key = [0; 32];
        key[..8].copy_from_slice(&next.get().to_le_bytes());
        key
    };
    measure(("moka's bare insert", count), calls, any_key, |key| keys.insert(key, Arc::clone(&value)));
    let fresh = |streaming: bool| {
        next.set(next.get() + 1);
        request(bytes, next.get(), streaming)
    };
    for (name, streaming) in [("whole", false), ("stream", true)] {
        let mut leaf = Leaf::new();
        let bare = measure(
            (&format!("bare leaf, {name}"), count),
            calls,
            |_| fresh(streaming),
            |request| {
                call(&mut leaf, request, true);
            },
        );
        let layer = CacheLayer::new(MokaStore::new(8 << 20), policy(&CacheSecret::new([7; 32])));
        let mut service = layer.layer(Leaf::new());
        let cached = measure(
            (&format!("cache, {name}, kept"), count),
            calls,
            |_| fresh(streaming),
            |request| {
                call(&mut service, request, true);
            },
        );
        beside(count, "above the leaf", cached - bare);
        let off = CacheLayer::new(MokaStore::new(8 << 20), policy(&CacheSecret::new([7; 32])));
        off.set_on(false);
        let mut service = off.layer(Leaf::new());
        measure(
            (&format!("cache, {name}, bypassed"), count),
            calls,
            |_| fresh(streaming),
            |request| {
                call(&mut service, request, true);
            },
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let policy = policy(&CacheSecret::new([7; 32])).with_coalescing(Coalescing::new());
    let layer = CacheLayer::new(MokaStore::new(8 << 20), policy);
    let service = layer.layer(Leaf::new());
    measure(
        ("cache, whole, coalescing", count),
        calls,
        |_| fresh(false),
        |request| {
            let answer = runtime.block_on(service.clone().call(request)).expect("an answer");
            drop(black_box(answer));
        },
    );
}

fn main() {
    hits(200, 50, None);
    hits(100_000, 5, None);
    misses(200, 50, None);
}
