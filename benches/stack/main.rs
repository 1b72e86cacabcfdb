//! What the layers cost, one by one and all together, beside what they stand on.
//!
//! ```text
//! cargo bench --bench stack --features config,redis,rusqlite [-- layers | full | chunks | stores | threads | growth]
//! ```
//!
//! Prompts of 200 B and 100 KB; whole answers, and streams of 50 chunks. Requests are made before the time begins, one
//! for each call, and dropped within it. `ns` is the median of all rounds, `least` the quickest one, `+ ns` the median
//! difference to the first row of the table. Allocations are those of the thread that calls, and the counting of them is
//! in the time. Rows about Redis need `redis-server`.

#![allow(unreachable_pub, reason = "modules of a bench, some of them shared with other packages")]

mod built;
mod growth;
#[allow(dead_code, reason = "shared with the comparison with peers")]
mod measure;
mod preset;
#[path = "../../tests/support/redis.rs"]
mod redis_server;
mod stores;
mod threads;

use futures_util::FutureExt;
use llm_layers::{
    LlmRequest, LlmResponse, ServiceBuilderExt as _,
    access::AccessLayer,
    cache::{CacheKey, CacheLayer, CacheScope, CacheSecret, MokaStore},
    fallback::FallbackLayer,
    quota::{MemoryStore, QuotaLayer},
    telemetry::{TelemetryLayer, TracingObserver},
    usage::{MemorySink, UsageLayer},
};
use measure::{Row, table};
use preset::{
    CHUNKS, Leaf, MINUTE, Parts, Stack, aliases, cache_policy, chains, policies, preset, prices, run,
};
use std::{hint::black_box, sync::Arc, task::Context};
use tower::{Layer, Service, ServiceBuilder};

const SIZES: [(&str, usize); 2] = [("200 B", 200), ("100 KB", 100_000)];

/// A row over a service that is asked for `p/model`, or for what the request says.
fn row<S>(name: &str, mut service: S) -> Row<LlmRequest>
where
    S: Service<LlmRequest, Response = LlmResponse, Error = llm_layers::Error> + 'static,
{
    Row::new(name, move |request| run(&mut service, request))
}

/// Requests that nobody has sent before.
fn fresh(bytes: usize, streaming: bool) -> impl FnMut(usize) -> LlmRequest {
    let mut salt = 0;
    move |_| {
        salt += 1;
        preset::request(bytes, salt, streaming)
    }
}

fn canonical(mut make: impl FnMut(usize) -> LlmRequest) -> impl FnMut(usize) -> LlmRequest {
    move |row| {
        let mut request = make(row);
        request.model = "p/model".into();
        request
    }
}

fn calls_for(bytes: usize) -> usize {
    if bytes > 10_000 { 8 } else { 64 }
}

fn layers() {
    let leaf = Leaf::new();
    let sink = MemorySink::new(1 << 20);
    let rows = || {
        let taken = sink.clone();
        vec![
            row("bare leaf", leaf.clone()),
            row("BoxCloneSyncService", Stack::new(leaf.clone())),
            row(
                "tower: timeout + concurrency limit",
                ServiceBuilder::new()
                    .map_err(llm_layers::Error::from)
                    .timeout(MINUTE)
                    .concurrency_limit(4096)
                    .service(leaf.clone()),
            ),
            row("alias", ServiceBuilder::new().alias(aliases()).service(leaf.clone())),
            row("peek", ServiceBuilder::new().peek().service(leaf.clone())),
            row("fallback + peek", FallbackLayer::new(chains()).layer(leaf.clone())),
            row("call timeout", preset::timeouts().layer(leaf.clone())),
            row(
                "concurrency limit",
                ServiceBuilder::new().answer_concurrency_limit(4096).service(leaf.clone()),
            ),
            row("access", AccessLayer::new(policies()).layer(leaf.clone())),
            row(
                "telemetry, nobody listens",
                TelemetryLayer::client(TracingObserver::new(), "p").layer(leaf.clone()),
            ),
            row("usage, memory", UsageLayer::new(sink.clone(), prices()).layer(leaf.clone()))
                .resting(move || drop(taken.take())),
            row("usage, hits only", UsageLayer::hits(sink.clone(), prices()).layer(leaf.clone())),
            row(
                "quota, memory",
                QuotaLayer::new(MemoryStore::new(), policies(), prices()).layer(leaf.clone()),
            ),
            row(
                "cache, memory, miss",
                CacheLayer::new(MokaStore::new(64 << 20), cache_policy(false)).layer(leaf.clone()),
            ),
            row("providers + telemetry + call timeout", preset::providers(leaf.clone())),
        ]
    };
    for (size, bytes) in SIZES {
        let calls = calls_for(bytes);
        table(
            &format!("each layer alone, whole answer, prompt of {size}"),
            calls,
            1,
            canonical(fresh(bytes, false)),
            rows(),
        );
        table(
            &format!("each layer alone, stream of {CHUNKS} chunks, prompt of {size}: ns for a chunk"),
            calls,
            CHUNKS,
            canonical(fresh(bytes, true)),
            rows(),
        );
    }
}

/// The parts that the stack stands on.
fn floors(bytes: usize) -> Vec<Row<LlmRequest>> {
    let secret = CacheSecret::new([7; 32]);
    let key = move |request: LlmRequest| {
        let scope = CacheScope::of(&request.context).expect("a user");
        black_box(CacheKey::new(&secret, &scope, &request));
    };
    let value: Arc<[u8]> = Arc::new([1; 100]);
    let moka = moka::sync::Cache::<[u8; 32], Arc<[u8]>>::new(10_000);
    moka.insert([9; 32], Arc::clone(&value));
    let (get, insert, mut next) = (moka.clone(), moka, 0_u64);
    let text = vec![7; bytes + 56];
    vec![
        Row::new("nothing but the request", |request| drop(black_box(request))),
        row("bare leaf", Leaf::new()),
        Row::new("bare hash: keyed BLAKE3 of prompt + 56 B", move |_| {
            black_box(blake3::keyed_hash(&[7; 32], black_box(&text)));
        }),
        Row::new("the cache's key of the request", key),
        Row::new("moka's bare get", move |_| drop(black_box(get.get(&[9; 32])))),
        Row::new("moka's bare insert", move |_| {
            next += 1;
            let mut key = [0; 32];
            key[..8].copy_from_slice(&next.to_le_bytes());
            insert.insert(key, Arc::clone(&value));
        }),
    ]
}

/// The stack, its events taken out between rounds.
fn stack_row(name: &str, leaf: Leaf, coalescing: bool) -> Row<LlmRequest> {
    let parts = Parts::in_memory(coalescing);
    let taken = parts.usage.clone();
    let mut stack = preset(leaf, parts);
    if coalescing {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        return Row::new(name, move |request| {
            let answer = runtime.block_on(stack.call(request)).expect("an answer");
            preset::read(answer);
        })
        .resting(move || drop(taken.take()));
    }
    row(name, stack).resting(move || drop(taken.take()))
}

fn full() {
    for (size, bytes) in SIZES {
        for streaming in [false, true] {
            let calls = calls_for(bytes);
            let (shape, per) = if streaming { ("stream of 50 chunks", CHUNKS) } else { ("whole answer", 1) };
            let mut rows = if streaming { Vec::new() } else { floors(bytes) };
            if streaming {
                rows.push(row("bare leaf", Leaf::new()));
            }
            rows.push(row("BoxCloneSyncService over the leaf", Stack::new(Leaf::new())));
            rows.push(stack_row("full stack, miss", Leaf::new(), false));
            let mut clones = preset(Leaf::new(), Parts::in_memory(false));
            let of_clones = clones.clone();
            rows.push(Row::new("a clone of the full stack, and its drop", move |_| {
                drop(black_box(of_clones.clone()));
            }));
            rows.extend(built::rows());
            let per_title = if per == 1 { "" } else { ": ns for a chunk" };
            table(
                &format!("the stack, {shape}, prompt of {size}, never asked before{per_title}"),
                calls,
                per,
                fresh(bytes, streaming),
                rows,
            );
            // Parsed anew for each call, so that what is hashed is read for the first time.
            run(&mut clones, preset::request(bytes, 0, streaming));
            let parts = Parts::in_memory(false);
            let taken = parts.usage.clone();
            let mut stack = preset(Leaf::new(), parts);
            run(&mut stack, preset::request(bytes, 0, streaming));
            let mut cache = CacheLayer::new(MokaStore::new(64 << 20), cache_policy(false)).layer(Leaf::new());
            run(&mut cache, preset::request(bytes, 0, streaming));
            let mut first = stack.clone();
            table(
                &format!("the stack, {shape}, prompt of {size}, answered before: ns for a call"),
                calls,
                1,
                move |_| preset::request(bytes, 0, streaming),
                vec![
                    Row::new("nothing but the request", |request| drop(black_box(request))),
                    Row::new("the cache's key of the request", {
                        let secret = CacheSecret::new([7; 32]);
                        move |request: LlmRequest| {
                            let scope = CacheScope::of(&request.context).expect("a user");
                            black_box(CacheKey::new(&secret, &scope, &request));
                        }
                    }),
                    Row::new("cache alone, hit, head or first chunk", move |request| {
                        head(&mut cache, request);
                    }),
                    Row::new("full stack, hit, head or first chunk", move |request| {
                        head(&mut first, request);
                    }),
                    row("full stack, hit, to the end", stack).resting(move || drop(taken.take())),
                ],
            );
        }
    }
    table(
        "the stack, coalescing, whole answer, prompt of 200 B, never asked before",
        64,
        1,
        fresh(200, false),
        vec![
            stack_row("full stack, miss, not coalescing", Leaf::new(), false),
            stack_row("full stack, miss, coalescing", Leaf::new(), true),
        ],
    );
}

/// What a chunk more costs: a long stream less a short one.
fn chunks() {
    let lengths = [CHUNKS, 5 * CHUNKS];
    let rows = lengths.into_iter().flat_map(|length| {
        let (bare, stack) = (Leaf::streaming(length), Leaf::streaming(length));
        let stack = stack_row(&format!("full stack, miss, {length} chunks"), stack, false);
        [row(&format!("bare leaf, {length} chunks"), bare), stack]
    });
    let title = "the stack, streams, prompt of 200 B, never asked before: ns for a stream";
    let found = table(title, 16, 1, fresh(200, true), rows.collect());
    let [short, stack_short, long, stack_long] = &found[..] else { unreachable!("four rows") };
    let more = (lengths[1] - lengths[0]) as f64;
    let each = |long: f64, short: f64| (long - short) / more;
    println!("{:<46}{:>10}{:>10}", "a chunk more", "ns", "least");
    let [bare, stack] = [(long, short), (stack_long, stack_short)]
        .map(|(long, short)| (each(long.nanos, short.nanos), each(long.least, short.least)));
    println!("{:<46}{:>10.0}{:>10.0}", "  of the bare leaf", bare.0, bare.1);
    println!(
        "{:<46}{:>10.0}{:>10.0}",
        "  of the full stack, above the bare leaf",
        stack.0 - bare.0,
        stack.1 - bare.1
    );
}

/// One call, to its head and, if it is a stream, on to its first chunk.
fn head<S>(service: &mut S, request: LlmRequest)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = llm_layers::Error>,
{
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
    let answer = service.call(request).now_or_never().expect("answers at once").expect("an answer");
    match answer.body {
        llm_layers::ResponseBody::Complete(completion) => drop(black_box(completion)),
        llm_layers::ResponseBody::Stream(mut chunks) => {
            drop(black_box(chunks.next().now_or_never()));
        }
    }
}

fn main() {
    // Tower's timeout registers a timer, which nobody has to wait for.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let only = std::env::args().nth(1).filter(|arg| !arg.starts_with("--"));
    let parts: [(&str, fn()); 6] = [
        ("layers", layers),
        ("full", full),
        ("chunks", chunks),
        ("stores", stores::stores),
        ("threads", threads::threads),
        ("growth", growth::growth),
    ];
    if let Some(name) = only.as_deref().and_then(|only| only.strip_prefix("profile-")) {
        return profile(name);
    }
    for (name, part) in parts {
        if only.as_deref().is_none_or(|only| only == name) {
            let _in_it = (name == "layers").then(|| runtime.enter());
            part();
        }
    }
}

/// For callgrind and perf: one kind of call, over and over.
fn profile(name: &str) {
    let (is_hit, streaming) = (name.starts_with("hit"), name.ends_with("stream"));
    let parts = Parts::in_memory(false);
    let taken = parts.usage.clone();
    let mut stack = preset(Leaf::new(), parts);
    run(&mut stack, preset::request(200, 0, streaming));
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100_usize);
    for round in 0..rounds {
        let salt = |at: usize| if is_hit { 0 } else { 1 + 100 * round + at };
        measured(&mut stack, (0..100).map(|at| preset::request(200, salt(at), streaming)).collect());
        drop(taken.take());
    }
}

#[inline(never)]
fn measured(stack: &mut Stack, requests: Vec<LlmRequest>) {
    for request in requests {
        run(stack, request);
    }
}
