//! The recommended stack over a leaf that answers at once, and requests for it. Shared by the bench, the comparison
//! with peers and the test that counts allocations.

use futures_util::{FutureExt, StreamExt, stream};
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, FinishReason, LlmRequest, LlmResponse, RequestContext,
    ResponseBody, ServiceBuilderExt as _, StreamChunk, TokenUsage,
    access::AccessLayer,
    alias::AliasTable,
    cache::{CacheLayer, CachePolicy, CacheSecret, Coalescing, MokaStore},
    fallback::{Chains, FallbackLayer},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Prices, Rates},
    providers::Providers,
    quota::{Limits, MemoryStore, QuotaLayer},
    telemetry::{TelemetryLayer, TracingObserver},
    timeout::CallTimeoutLayer,
    usage::{MemorySink, UsageLayer, UsageSink},
};
use std::{
    future::{Ready, ready},
    hint::black_box,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Service, ServiceBuilder, util::BoxCloneSyncService};

pub const CHUNKS: usize = 50;

pub type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// Answers at once with what was made before.
#[derive(Clone)]
pub struct Leaf {
    completion: Completion,
    chunks: Arc<[StreamChunk]>,
}

impl Leaf {
    pub fn new() -> Self {
        Self::streaming(CHUNKS)
    }

    /// Its streams have so many chunks.
    pub fn streaming(chunks: usize) -> Self {
        Self::saying(26, chunks)
    }

    /// Its whole answers have so many bytes of text, its streams so many chunks.
    pub fn saying(bytes: usize, chunks: usize) -> Self {
        let words = (0..chunks.saturating_sub(3)).map(|n| StreamChunk::text(format!("word {n} ")));
        let end =
            [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(20, 50))];
        let chunks = words.chain(end).chain([StreamChunk::end()]).collect();
        Self { completion: Completion::text("x".repeat(bytes), TokenUsage::new(20, 7)), chunks }
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
        request.progress.mark_dispatched();
        let body = if request.body.is_streaming() {
            let chunks = Arc::clone(&self.chunks);
            let chunks = stream::iter(0..chunks.len()).map(move |at| Ok(chunks[at].clone()));
            ResponseBody::Stream(ChunkStream::new(chunks))
        } else {
            ResponseBody::Complete(self.completion.clone())
        };
        ready(Ok(LlmResponse::new(request.model, body)))
    }
}

/// What differs between one stack and another.
pub struct Parts<K> {
    pub usage: K,
    pub quota: QuotaLayer,
    pub cache: CacheLayer,
}

impl Parts<MemorySink> {
    /// Everything in memory.
    pub fn in_memory(coalescing: bool) -> Self {
        Self {
            usage: MemorySink::new(1 << 20),
            quota: QuotaLayer::new(MemoryStore::new(), policies(), prices()),
            cache: CacheLayer::new(MokaStore::new(64 << 20), cache_policy(coalescing)),
        }
    }
}

pub fn cache_policy(coalescing: bool) -> CachePolicy {
    let policy = CachePolicy::new(CacheSecret::new([7; 32]));
    if coalescing { policy.with_coalescing(Coalescing::new()) } else { policy }
}

/// High limits of every kind, and a list of models.
pub fn policies() -> PolicyTable {
    let (many, money) = (1 << 60, NanoUsd::new(1 << 60));
    let limits = Limits::new()
        .with_day_requests(many)
        .with_day_tokens(many)
        .with_month_tokens(many)
        .with_month_cost(money);
    PolicyTable::new(DepartmentPolicy::new(limits).with_models(["p/*"]))
}

pub fn prices() -> Prices {
    let price = || Price::new(Rates::per_million("3", "15").expect("valid"));
    Prices::new(PriceBook::of("sheet", [("p/model", price()), ("p/other", price())]).expect("valid"))
}

pub fn aliases() -> AliasTable {
    AliasTable::builder().alias("fast", "p/model").alias("slow", "p/other").build().expect("valid")
}

pub fn chains() -> Chains {
    Chains::builder().chain("p/model", ["p/other"]).build().expect("valid")
}

pub const MINUTE: Duration = Duration::from_secs(60);

pub fn timeouts() -> CallTimeoutLayer {
    CallTimeoutLayer::new().with_head(MINUTE).with_idle(MINUTE).with_total(MINUTE)
}

pub fn providers(leaf: Leaf) -> Providers {
    Providers::builder()
        .each(|endpoint| {
            let telemetry = TelemetryLayer::at(TracingObserver::new(), endpoint);
            ServiceBuilder::new().layer(telemetry).layer(timeouts()).into_inner()
        })
        .provider("p", leaf)
        .build()
        .expect("valid")
}

/// All layers in the recommended order, boxed once.
pub fn preset<K: UsageSink + Clone>(leaf: Leaf, parts: Parts<K>) -> Stack {
    let Parts { usage, quota, cache } = parts;
    let providers = providers(leaf);
    let fallback = FallbackLayer::new(chains()).with_providers(providers.names()).with_deadline(MINUTE);
    Stack::new(
        ServiceBuilder::new()
            .telemetry(TelemetryLayer::gateway(TracingObserver::new()))
            .answer_concurrency_limit(4096)
            .alias(aliases())
            .layer(fallback)
            .layer(AccessLayer::new(policies()))
            .layer(UsageLayer::hits(usage.clone(), prices()))
            .layer(cache)
            .quota(quota)
            .usage(usage, prices())
            .service(providers),
    )
}

/// The JSON of a request of about so many bytes; of different salts, no two are the same.
pub fn json(bytes: usize, salt: usize, streaming: bool) -> String {
    let text = "x".repeat(bytes.saturating_sub(129));
    format!(
        r#"{{"model":"fast","messages":[{{"role":"user","content":"{salt:08} {text}"}}],"temperature":0.2,"max_tokens":500,"stream":{streaming}}}"#
    )
}

/// A caller with everything that layers look at.
pub fn caller() -> RequestContext {
    RequestContext::new()
        .with_user_id("ada")
        .with_tenant_id("acme")
        .with_agent_name("reviewer")
        .with_task_type("review")
        .with_request_id("req-1")
        .with_departments(["research"])
}

/// A request of its own, as it comes in.
pub fn request(bytes: usize, salt: usize, streaming: bool) -> LlmRequest {
    let body = ChatBody::parse(json(bytes, salt, streaming)).expect("valid");
    LlmRequest::new("fast", body).with_context(caller())
}

/// Runs one call to the end of its answer.
pub fn run<S>(service: &mut S, request: LlmRequest)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
{
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
    let answer = service.call(request).now_or_never().expect("answers at once").expect("an answer");
    read(answer);
}

/// Reads an answer, all of which is there, to its end.
pub fn read(answer: LlmResponse) {
    match answer.body {
        ResponseBody::Complete(completion) => drop(black_box(completion)),
        ResponseBody::Stream(mut chunks) => {
            while let Some(chunk) = chunks.next().now_or_never().expect("is there at once") {
                drop(black_box(chunk.expect("no chunk fails")));
            }
        }
    }
}
