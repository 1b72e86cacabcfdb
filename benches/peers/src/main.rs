//! The full stack beside that of liter-llm 2.4, over equal leaves, in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml
//! ```
//!
//! Both get requests that were parsed before the time begins, one for each call and none like another, and answer at
//! once with a copy of an answer that is there. Liter's stack: tracing, budget, cost, rate limit, cache, fallback; its
//! cache leaves streams alone. Ours has everything that `benches/stack` measures.

#![forbid(unsafe_code)]

#[allow(dead_code, reason = "shared with the bench of the stack")]
#[path = "../../stack/measure.rs"]
mod measure;
#[allow(dead_code, reason = "shared with the bench of the stack")]
#[path = "../../stack/preset.rs"]
mod preset;

use futures_util::FutureExt;
use liter_llm::{
    LiterLlmError,
    tower::{
        BudgetConfig, BudgetLayer, BudgetState, CacheConfig, CacheLayer, CostTrackingLayer, FallbackLayer, LlmRequest,
        LlmResponse, ModelRateLimitLayer, RateLimitConfig, TracingLayer,
    },
    types::{ChatCompletionRequest, ChatCompletionResponse},
};
use measure::{Found, Row, table};
use std::{
    future::{Ready, ready},
    hint::black_box,
    sync::Arc,
    task::{Context, Poll, Waker},
};
use tower::{Service, ServiceBuilder, util::BoxCloneService};

/// Answers at once with a copy of what was made before.
#[derive(Clone)]
struct Leaf(Arc<ChatCompletionResponse>);

impl Leaf {
    fn new() -> Self {
        let answer = serde_json::json!({
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "gpt-4o-mini",
            "choices": [{
                "index": 0,
                "message": { "role": "assistant", "content": "An answer of a few words." },
                "finish_reason": "stop"
            }],
            "usage": { "prompt_tokens": 20, "completion_tokens": 7, "total_tokens": 27 }
        });
        Self(Arc::new(serde_json::from_value(answer).expect("an answer")))
    }
}

impl Service<LlmRequest> for Leaf {
    type Response = LlmResponse;
    type Error = LiterLlmError;
    type Future = Ready<Result<LlmResponse, LiterLlmError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), LiterLlmError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        drop(request);
        ready(Ok(LlmResponse::Chat((*self.0).clone())))
    }
}

type Stack = BoxCloneService<LlmRequest, LlmResponse, LiterLlmError>;

fn stack() -> Stack {
    let budget = BudgetConfig { global_limit: Some(1e12), ..BudgetConfig::default() };
    let rates = RateLimitConfig { rpm: Some(u32::MAX), tpm: Some(u64::MAX), ..RateLimitConfig::default() };
    let cache = CacheConfig { max_entries: 10_000, ..CacheConfig::default() };
    Stack::new(
        ServiceBuilder::new()
            .layer(TracingLayer)
            .layer(BudgetLayer::new(budget, Arc::new(BudgetState::new())))
            .layer(CostTrackingLayer)
            .layer(ModelRateLimitLayer::new(rates))
            .layer(CacheLayer::new(cache))
            .layer(FallbackLayer::new(Leaf::new()))
            .service(Leaf::new()),
    )
}

fn request(bytes: usize, salt: usize) -> LlmRequest {
    let mut request: ChatCompletionRequest =
        serde_json::from_str(&preset::json(bytes, salt, false)).expect("a request");
    request.model = "openai/gpt-4o-mini".to_owned();
    LlmRequest::Chat(request)
}

fn run<S: Service<LlmRequest, Response = LlmResponse, Error = LiterLlmError>>(service: &mut S, request: LlmRequest) {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
    let answer = service.call(request).now_or_never().expect("answers at once");
    drop(black_box(answer.expect("an answer")));
}

/// A request for either of the two.
enum Either {
    Ours(llm_layers::LlmRequest),
    Theirs(LlmRequest),
}

fn ours<S>(name: &str, mut service: S) -> Row<Either>
where
    S: Service<llm_layers::LlmRequest, Response = llm_layers::LlmResponse, Error = llm_layers::Error> + 'static,
{
    Row::new(name, move |request| match request {
        Either::Ours(request) => preset::run(&mut service, request),
        Either::Theirs(_) => unreachable!("the first two rows are ours"),
    })
}

fn theirs<S>(name: &str, mut service: S) -> Row<Either>
where
    S: Service<LlmRequest, Response = LlmResponse, Error = LiterLlmError> + 'static,
{
    Row::new(name, move |request| match request {
        Either::Theirs(request) => run(&mut service, request),
        Either::Ours(_) => unreachable!("the last two rows are theirs"),
    })
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _in_it = runtime.enter();
    for (size, bytes) in [("200 B", 200), ("100 KB", 100_000)] {
        let calls = if bytes > 10_000 { 8 } else { 64 };
        for (case, is_fresh) in [("never asked before", true), ("answered before", false)] {
            let parts = preset::Parts::in_memory(false);
            let taken = parts.usage.clone();
            let rows = vec![
                ours("bare leaf", preset::Leaf::new()),
                ours("full stack", preset::preset(preset::Leaf::new(), parts)).resting(move || drop(taken.take())),
                theirs("liter-llm: bare leaf", Leaf::new()),
                theirs("liter-llm: its stack", stack()),
            ];
            let mut salt = 0;
            let make = move |row: usize| {
                salt += usize::from(is_fresh);
                match row {
                    0 | 1 => Either::Ours(preset::request(bytes, salt, false)),
                    _ => Either::Theirs(request(bytes, salt)),
                }
            };
            let found = table(&format!("whole answer, prompt of {size}, {case}"), calls, 1, make, rows);
            let [leaf, stack, their_leaf, theirs] = &found[..] else { unreachable!("four rows") };
            let above = |stack: &Found, leaf: &Found| stack.least - leaf.least;
            println!(
                "of the quickest rounds, above their leaves: 1 / {:.1}; allocations {} and {}",
                above(theirs, their_leaf) / above(stack, leaf),
                stack.allocations - leaf.allocations,
                theirs.allocations - their_leaf.allocations,
            );
        }
    }
}
