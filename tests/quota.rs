//! The layer: what it reserves, refuses, settles and gives back.

#[path = "support/faulty.rs"]
mod faulty;
#[path = "quota/late.rs"]
mod late;
#[cfg(feature = "tracing")]
#[path = "support/log.rs"]
mod log;
#[macro_use]
#[path = "quota/pass_on.rs"]
mod pass_on;
#[path = "quota/parts.rs"]
mod parts;
#[path = "quota/past.rs"]
mod past;
#[path = "quota/remote.rs"]
mod remote;

use faulty::faulty;
use futures_util::FutureExt as _;
use llm_layers::{
    CacheStatus, ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind, InvalidReason, LlmRequest,
    LlmResponse, Period, ProviderFailure, QuotaExceeded, QuotaKind, RequestContext, ResponseBody,
    StreamChunk, TokenUsage,
    access::AccessLayer,
    clock::Clock,
    decision::{AccessDecision, QuotaDecision},
    fallback::{Backoff, Chains, FallbackLayer},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Prices, Rate, Rates, ServiceTier},
    providers::Providers,
    quota::{
        Adjustment, Amount, Applied, Baseline, ByteEstimator, Calendar, Days, Decision, Delta, Department,
        Departments, HistoryFuture, HistoryQuery, Hits, LeaseId, Limits, MemoryStore, Mode, OnTight, Quota,
        QuotaLayer, QuotaStore, Report, Reservation, Settlement, Standing, StoreError, StoreFuture,
        TokenEstimator as _, Unbounded, Unpriced, Unreported, UsageHistory, Used, WindowName, Worker,
        WorkerOptions, audit, repair,
    },
    testing::{ManualClock, Reply, Scripted, Step},
    usage::{Done, Place, Slot, UsageEvent, UsageLayer, UsageSink},
};
use remote::{Fault, Remote};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;
use tower::{Layer, Service as _, ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// 2026-11-23 12:00 UTC.
fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_435_200)
}

/// A clock of the store, a layer, and a provider below it.
struct Bench {
    clock: ManualClock,
    store: MemoryStore,
    layer: QuotaLayer,
    provider: Scripted,
}

/// 3 dollars a million in, 15 out: 3,000 and 15,000 nano-dollars a token.
fn prices() -> PriceBook {
    PriceBook::of("sheet", [("p/model", Price::new(Rates::per_million("3", "15").unwrap()))]).unwrap()
}

fn table(limits: Limits) -> PolicyTable {
    PolicyTable::default()
        .with("research", DepartmentPolicy::new(limits))
        .with("operations", DepartmentPolicy::default())
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let clock = ManualClock::new(noon());
        let store = MemoryStore::new().with_clock(clock.clone());
        let layer = QuotaLayer::new(store.clone(), table(limits), prices()).with_clock(clock.clone());
        Self { clock, store, layer, provider: Scripted::new() }
    }

    fn with(mut self, change: impl FnOnce(QuotaLayer) -> QuotaLayer) -> Self {
        self.layer = change(self.layer);
        self
    }

    fn service(&self) -> Quota<Scripted> {
        self.layer.layer(self.provider.clone())
    }

    async fn call(&self, request: LlmRequest) -> Result<LlmResponse, Error> {
        self.service().oneshot(request).await
    }

    async fn refusal(&self, request: LlmRequest) -> Error {
        self.call(request).await.expect_err("a refusal")
    }

    async fn standing(&self, department: &str) -> Standing {
        let days = Calendar::utc().days_around(self.clock.now());
        self.store.usage(&department.into(), &days).await.unwrap()
    }

    /// What is settled and reserved for research today.
    async fn research(&self) -> (Amount, Amount) {
        let Standing { in_day, .. } = self.standing("research").await;
        (in_day.settled, in_day.reserved)
    }
}

/// The same, over a store that is far away.
fn far(bench: &Bench, options: WorkerOptions) -> (Remote, QuotaLayer, Worker) {
    let remote = Remote::new(bench.store.clone());
    let limits = Limits::new().with_day_tokens(10_000);
    let (layer, worker) = QuotaLayer::pair(remote.clone(), table(limits), prices(), options);
    (remote, layer.with_clock(bench.clock.clone()), worker)
}

fn plain() -> ChatBody {
    ChatBody::builder().user("Hello").set("max_tokens", 100).build().unwrap()
}

fn ask(body: ChatBody) -> LlmRequest {
    LlmRequest::new("p/model", body).with_context(RequestContext::new().with_departments(["research"]))
}

fn request() -> LlmRequest {
    ask(plain())
}

fn prompt() -> u64 {
    plain().input_bytes() as u64
}

fn whole(input: u64, output: u64) -> Reply {
    Reply::complete(Completion::text("hi", TokenUsage::new(input, output)))
}

fn used(tokens: u64, nanos: i64) -> Amount {
    Amount::new(1, tokens, NanoUsd::new(nanos))
}

fn exceeded(error: &Error) -> &QuotaExceeded {
    let ErrorKind::QuotaExceeded(exceeded) = error.kind() else { panic!("{error:?}") };
    exceeded
}

fn is_unavailable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreUnavailable { store } if store == "quota")
}

// ===== what is reserved and settled =====

#[tokio::test]
async fn seed_12_the_upper_bound_is_reserved_and_replaced_by_the_truth() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000));
    bench.provider.push(whole(7, 3).after([Step::Gate]));
    let service = bench.service();
    let call = tokio::spawn(service.oneshot(request()));
    tokio::task::yield_now().await;
    let bound = prompt() + 100;
    let cost = (prompt() * 3_000 + 100 * 15_000) as i64;
    assert_eq!(bench.research().await, (Amount::ZERO, used(bound, cost)));
    bench.provider.open();
    let answer = call.await.unwrap().unwrap();
    assert_eq!(bench.research().await, (used(10, 7 * 3_000 + 3 * 15_000), Amount::ZERO));
    let left = answer.quota.expect("a limit applies");
    assert_eq!((left.quota, left.limit, left.remaining), (QuotaKind::Tokens, 10_000, 10_000 - bound));
    assert_eq!(left.resets_in, Duration::from_secs(12 * 3600));
}

#[tokio::test]
async fn a_stream_is_settled_at_its_end_and_not_before() {
    let bench = Bench::new(Limits::new());
    let chunks =
        [Step::Chunk(StreamChunk::text("hi")), Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 3)))];
    bench.provider.push(Reply::stream(chunks));
    let answer = bench.call(request()).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream") };
    chunks.next().await.unwrap().unwrap();
    assert_eq!(bench.research().await.0, Amount::ZERO);
    assert_eq!(bench.research().await.1.tokens, prompt() + 100);
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
    }
    assert_eq!(bench.research().await, (used(10, 66_000), Amount::ZERO));
}

#[tokio::test]
async fn a_caller_who_leaves_pays_the_prompt_and_what_came() {
    for (unreported, tokens) in [
        (Unreported::UpperBound, prompt() + 8),
        (Unreported::Estimate, prompt().div_ceil(4) + 2),
        (Unreported::Full, prompt() + 100),
    ] {
        let bench = Bench::new(Limits::new()).with(|layer| layer.with_unreported(unreported));
        bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::text("12345678")), Step::Stall]));
        let answer = bench.call(request()).await.unwrap();
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream") };
        chunks.next().await.unwrap().unwrap();
        drop(chunks);
        let (settled, reserved) = bench.research().await;
        assert_eq!((settled.tokens, reserved), (tokens, Amount::ZERO), "{unreported:?}");
        assert!(settled.cost > NanoUsd::ZERO);
    }
}

#[tokio::test]
async fn who_was_answered_pays_also_where_the_leaf_does_not_say_that_it_asks() {
    let bench = Bench::new(Limits::new());
    let service = bench.layer.layer(service_fn(|request: LlmRequest| async move {
        let said =
            [StreamChunk::text("hi"), StreamChunk::usage_only(TokenUsage::new(7, 3)), StreamChunk::end()];
        let chunks = ChunkStream::new(futures_util::stream::iter(said.map(Ok)));
        Ok::<_, Error>(LlmResponse::new(request.model, chunks))
    }));
    let ResponseBody::Stream(mut chunks) = service.oneshot(request()).await.unwrap().body else {
        panic!("a stream")
    };
    chunks.next().await.unwrap().unwrap();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    assert_eq!(bench.research().await, (used(10, 66_000), Amount::ZERO));
}

#[tokio::test]
async fn a_report_from_the_middle_of_a_stream_is_not_all_that_a_caller_who_leaves_pays() {
    let text = |bytes: usize| Step::Chunk(StreamChunk::text("x".repeat(bytes)));
    let report = || Step::Chunk(StreamChunk::usage_only(TokenUsage::new(10, 1)));
    for (unreported, steps, tokens) in [
        (Unreported::UpperBound, vec![report(), text(80)], 10 + 1 + 80),
        (Unreported::UpperBound, vec![report(), text(4000)], 10 + 100),
        (Unreported::UpperBound, vec![text(80), report()], 11),
        (Unreported::Estimate, vec![report(), text(80)], 10 + 1 + 20),
        (Unreported::Full, vec![report(), text(80)], 10 + 100),
    ] {
        let bench = Bench::new(Limits::new()).with(|layer| layer.with_unreported(unreported));
        let read = steps.len();
        bench.provider.push(Reply::stream(steps.into_iter().chain([Step::Stall])));
        let answer = bench.call(request()).await.unwrap();
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream") };
        for _ in 0..read {
            chunks.next().await.unwrap().unwrap();
        }
        drop(chunks);
        assert_eq!(bench.research().await.0.tokens, tokens, "{unreported:?}");
    }
}

#[tokio::test]
async fn a_report_from_the_middle_of_a_stream_is_not_all_that_one_that_breaks_costs() {
    let text = || Step::Chunk(StreamChunk::text("x".repeat(80)));
    let report = |input, output| Step::Chunk(StreamChunk::usage_only(TokenUsage::new(input, output)));
    let broken = || Error::provider(ErrorClass::Transport, "p", "model");
    let knows = || broken().with_usage(TokenUsage::new(10, 30));
    for (steps, tokens) in [
        (vec![report(10, 1), text(), Step::Cut], 10 + 1 + 80),
        (vec![report(10, 1), text(), Step::Fail(broken())], 10 + 1 + 80),
        (vec![text(), report(10, 20), Step::Cut], 10 + 20),
        (vec![report(10, 1), text(), Step::Fail(knows())], 10 + 30),
        // Nothing is what a server reports that does not count, as where it ends well.
        (vec![report(0, 0), text(), Step::Cut], prompt() + 80),
        (vec![text(), report(0, 0), Step::Cut], prompt() + 80),
    ] {
        let bench = Bench::new(Limits::new());
        bench.provider.push(Reply::stream(steps));
        bench.call(request()).await.unwrap().text().await.unwrap_err();
        assert_eq!(bench.research().await.0.tokens, tokens);
    }
}

#[tokio::test]
async fn a_call_is_charged_by_the_tier_that_served_it() {
    let rates = |input: &str, output: &str| Rates::per_million(input, output).unwrap();
    let price = Price::new(rates("3", "15"))
        .with_service_tier(ServiceTier::Priority, rates("6", "30"))
        .with_service_tier(ServiceTier::Ultrafast, rates("30", "150"));
    let book = PriceBook::of("sheet", [("p/model", price)]).unwrap();
    const STANDARD: i64 = 7 * 3_000 + 3 * 15_000;
    for (asked, answered, times) in [
        ("priority", Some("priority"), 2),
        ("priority", Some("default"), 1),
        ("priority", None, 2),
        ("flex", None, 1),
        ("unheard of", None, 10),
    ] {
        let clock = ManualClock::new(noon());
        let store = MemoryStore::new().with_clock(clock.clone());
        let bench = Bench::new(Limits::new());
        let layer = QuotaLayer::new(store.clone(), table(Limits::new()), book.clone()).with_clock(clock);
        let member = answered.map(|tier| format!(r#""service_tier":"{tier}","#)).unwrap_or_default();
        let usage = r#""usage":{"prompt_tokens":7,"completion_tokens":3}"#;
        let answer = format!(r#"{{{member}"choices":[{{"message":{{"content":"hi"}}}}],{usage}}}"#);
        let reply = Reply::complete(Completion::parse(answer).unwrap());
        let bench = Bench { store, layer, provider: Scripted::new().reply(reply), ..bench };
        bench.call(ask(plain().with("service_tier", asked).unwrap())).await.unwrap();
        assert_eq!(bench.research().await.0, used(10, times * STANDARD), "{asked} {answered:?}");
    }
}

#[tokio::test]
async fn what_is_reserved_is_the_price_of_the_dearest_tier_that_may_serve_it() {
    let rates = |input: &str, output: &str| Rates::per_million(input, output).unwrap();
    let price = Price::new(rates("3", "15")).with_service_tier(ServiceTier::Priority, rates("6", "30"));
    let book = PriceBook::of("sheet", [("p/model", price)]).unwrap();
    let standard = prompt() as i64 * 3_000 + 100 * 15_000;
    let limits = Limits::new().with_day_cost(NanoUsd::new(2 * standard - 1));
    let bench = Bench::new(limits);
    let layer = QuotaLayer::new(bench.store.clone(), table(limits), book).with_clock(bench.clock.clone());
    let bench = Bench { layer, ..bench };
    let tier = |name: &str| ask(plain().with("service_tier", name).unwrap());
    for dear in ["priority", "unheard of"] {
        let error = bench.refusal(tier(dear)).await;
        assert!(
            matches!(error.kind(), ErrorKind::RequestTooLarge { quota: QuotaKind::Cost, .. }),
            "{error:?}"
        );
    }
    assert_eq!(bench.provider.requests().len(), 0);
    bench.provider.push(whole(7, 3));
    bench.call(tier("default")).await.unwrap();
}

#[tokio::test]
async fn what_is_reserved_is_the_price_of_what_the_request_may_bring_and_get() {
    const SHEET: &str = r#"{"p/model": {
        "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_audio_token_cost": 4e-06,
        "input_cost_per_audio_token": 3e-06, "output_cost_per_audio_token": 1e-05, "output_cost_per_image_token": 3e-05,
        "search_context_cost_per_query": { "search_context_size_low": 0.005, "search_context_size_high": 0.012 }
    }}"#;
    let book = PriceBook::from_litellm("sheet", SHEET.as_bytes()).unwrap();
    let text = r#""hi""#;
    let speech = r#"[{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}]"#;
    let image = r#"[{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}]"#;
    let spoken = r#""hi","audio":{"id":"audio_1"}"#;
    let searching = r#"["text"],"web_search_options":{"search_context_size":"low"}"#;
    for (content, modalities, input, output) in [
        (text, searching, 1_000, 2_000),
        (text, r#"["text"],"tools":[{"type":"web_search"}]"#, 1_000, 2_000),
        (text, r#"["text"]"#, 1_000, 2_000),
        (image, r#"["text"]"#, 1_000, 2_000),
        (speech, r#"["text"]"#, 4_000, 2_000),
        (spoken, r#"["text"]"#, 4_000, 2_000),
        (text, r#"["text","audio"]"#, 1_000, 10_000),
        (text, r#"["TEXT","IMAGE"]"#, 1_000, 30_000),
        (text, "null", 1_000, 30_000),
    ] {
        let body = format!(
            r#"{{"messages":[{{"role":"user","content":{content}}}],"max_tokens":100,"modalities":{modalities}}}"#
        );
        let request = ask(ChatBody::parse(body).unwrap());
        let prompt = ByteEstimator::new().prompt_upper_bound(&request) as i64;
        let bench = Bench::new(Limits::new());
        let layer = QuotaLayer::new(bench.store.clone(), table(Limits::new()), book.clone());
        let bench = Bench { layer: layer.with_clock(bench.clock.clone()), ..bench };
        bench.provider.push(Reply::stall());
        let mut call = Box::pin(bench.service().oneshot(request));
        assert!((&mut call).now_or_never().is_none());
        let reserved = bench.research().await.1;
        let search = match modalities {
            m if m.contains("low") => 5_000_000,
            m if m.contains("search") => 12_000_000,
            _ => 0,
        };
        let most = prompt * input + 100 * output + search;
        assert_eq!(reserved.cost, NanoUsd::new(most), "{content} {modalities}");
    }
}

#[tokio::test]
async fn what_has_lost_its_price_meanwhile_costs_what_was_reserved() {
    let bench = Bench::new(Limits::new());
    let book = Prices::new(prices());
    let layer = QuotaLayer::new(bench.store.clone(), table(Limits::new()), book.clone());
    let bench = Bench { layer: layer.with_clock(bench.clock.clone()), ..bench };
    bench.provider.push(whole(7, 3).after([Step::Gate]));
    let call = tokio::spawn(bench.service().oneshot(request()));
    tokio::task::yield_now().await;
    let (_, reserved) = bench.research().await;
    book.store(PriceBook::new());
    bench.provider.open();
    call.await.unwrap().unwrap();
    assert_eq!(reserved.cost, NanoUsd::new(prompt() as i64 * 3_000 + 100 * 15_000));
    assert_eq!(bench.research().await, (Amount::new(1, 10, reserved.cost), Amount::ZERO));
}

#[tokio::test]
async fn wherever_it_stands_the_model_that_answered_is_charged() {
    let price = |input, output| Price::new(Rates::per_million(input, output).unwrap());
    let book =
        PriceBook::of("sheet", [("p/model", price("3", "15")), ("p/other", price("30", "150"))]).unwrap();
    let bench = Bench::new(Limits::new());
    let layer = QuotaLayer::new(bench.store.clone(), table(Limits::new()), book);
    let bench = Bench { layer: layer.with_clock(bench.clock.clone()), ..bench };
    let down = Error::provider(ErrorClass::Unavailable, "p", "model");
    let provider = Scripted::new().reply(Reply::error(down)).reply(whole(7, 3));
    let chains = Chains::builder().chain("p/model", ["p/other"]).build().unwrap();
    let providers = Providers::builder().provider("p", provider).build().unwrap();
    bench.layer.layer(FallbackLayer::new(chains).layer(providers)).oneshot(request()).await.unwrap();
    assert_eq!(bench.research().await.0, used(10, 7 * 30_000 + 3 * 150_000));
}

#[tokio::test]
async fn what_costs_more_than_any_amount_fits_into_no_limit() {
    let rate = || Rate::each("1000000000").unwrap();
    let dear = Price::new(Rates::new().with_input(rate()).with_output(rate()));
    let book = PriceBook::of("sheet", [("p/model", dear)]).unwrap();
    let limits = Limits::new().with_day_cost("1000000".parse().unwrap());
    let bench = Bench::new(limits);
    let layer = QuotaLayer::new(bench.store.clone(), table(limits), book).with_clock(bench.clock.clone());
    let bench = Bench { layer, ..bench };
    let error = bench.refusal(request()).await;
    assert!(matches!(error.kind(), ErrorKind::RequestTooLarge { quota: QuotaKind::Cost, .. }), "{error:?}");
    assert_eq!(bench.provider.requests().len(), 0);
}

#[tokio::test]
async fn a_request_that_is_refused_is_charged_no_request() {
    let rates = Rates::per_million("3", "15").unwrap().with_request(Rate::each("0.005").unwrap());
    let book = PriceBook::of("sheet", [("p/model", Price::new(rates))]).unwrap();
    let bench = Bench::new(Limits::new());
    let layer = QuotaLayer::new(bench.store.clone(), table(Limits::new()), book);
    let bench = Bench { layer: layer.with_clock(bench.clock.clone()), ..bench };
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "p", "model");
    failure.status = Some(http::StatusCode::TOO_MANY_REQUESTS);
    bench.provider.push(Reply::error(Error::new(ErrorKind::Provider(failure)).with_dispatched(true)));
    bench.call(request()).await.unwrap_err();
    assert_eq!(bench.research().await.0, used(0, 0));
    bench.provider.push(whole(0, 1));
    bench.call(request()).await.unwrap();
    assert_eq!(bench.research().await.0, Amount::new(2, 1, NanoUsd::new(5_015_000)));
}

#[tokio::test]
async fn what_fails_after_it_has_said_something_was_not_refused() {
    let mut failure = ProviderFailure::new(ErrorClass::Unavailable, "p", "model");
    failure.status = Some(http::StatusCode::SERVICE_UNAVAILABLE);
    let failure = Error::new(ErrorKind::Provider(failure)).with_dispatched(true);
    let bench = Bench::new(Limits::new());
    bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::text("x".repeat(80))), Step::Fail(failure)]));
    bench.call(request()).await.unwrap().text().await.unwrap_err();
    assert_eq!(bench.research().await.0.tokens, prompt() + 80);
}

#[tokio::test]
async fn what_was_not_sent_is_given_back_and_what_failed_is_not() {
    let error = |class| Error::provider(class, "p", "model");
    let bench = Bench::new(Limits::new());
    bench.provider.push(Reply::error(error(ErrorClass::Connect)));
    bench.call(request()).await.unwrap_err();
    assert_eq!(bench.research().await, (Amount::ZERO, Amount::ZERO));

    bench.provider.push(Reply::error(error(ErrorClass::Transport).with_dispatched(true)));
    bench.call(request()).await.unwrap_err();
    assert_eq!(bench.research().await.0.tokens, prompt());

    let reported = error(ErrorClass::Upstream).with_dispatched(true).with_usage(TokenUsage::new(5, 6));
    bench.provider.push(Reply::error(reported));
    bench.call(request()).await.unwrap_err();
    assert_eq!(bench.research().await.0, Amount::new(2, prompt() + 11, bench.research().await.0.cost));
    assert_eq!(bench.research().await.1, Amount::ZERO);
}

#[tokio::test]
async fn the_same_request_sent_twice_is_charged_twice() {
    let bench = Bench::new(Limits::new());
    let request = request();
    for _ in 0..2 {
        bench.provider.push(whole(7, 3));
        bench.call(request.clone()).await.unwrap();
    }
    assert_eq!(bench.research().await.0, Amount::new(2, 20, NanoUsd::new(132_000)));
}

#[tokio::test]
async fn a_refusal_keeps_no_place_of_the_service_below() {
    // By the store, and before it is asked: of a model without a price.
    for (limits, model) in [
        (Limits::new().with_day_requests(0), "p/model"),
        (Limits::new().with_day_cost(NanoUsd::new(1)), "p/unknown"),
    ] {
        let bench = Bench::new(limits);
        let below = ServiceBuilder::new().concurrency_limit(1).service(bench.provider.clone());
        let mut refused = bench.layer.layer(below);
        let mut other = refused.clone();
        let mut request = request();
        request.model = model.into();
        refused.ready().await.unwrap().call(request).await.unwrap_err();
        other.ready().now_or_never().expect("a place").unwrap();
    }
}

#[tokio::test]
async fn a_panic_below_gives_everything_back() {
    let bench = Bench::new(Limits::new());
    bench.provider.push(Reply::panic());
    let call = tokio::spawn(bench.service().oneshot(request()));
    assert!(call.await.is_err());
    assert_eq!(bench.research().await.1, Amount::ZERO);
}

#[tokio::test]
async fn an_empty_answer_is_charged_like_any_other() {
    let bench = Bench::new(Limits::new());
    bench.provider.push(Reply::complete(Completion::text("", TokenUsage::new(7, 0))));
    bench.call(request()).await.unwrap();
    assert_eq!(bench.research().await.0, used(7, 21_000));
}

#[tokio::test]
async fn more_than_was_reserved_is_charged_in_full_and_the_next_call_is_refused() {
    let bench = Bench::new(Limits::new().with_day_tokens(1000));
    bench.provider.push(whole(5000, 5000));
    bench.call(request()).await.unwrap();
    assert_eq!(bench.research().await.0.tokens, 10_000);
    assert!(!exceeded(&bench.refusal(request()).await).in_flight_only);
}

#[tokio::test]
async fn seed_10_each_department_is_charged_in_full_and_once() {
    let bench = Bench::new(Limits::new());
    bench.provider.push(whole(7, 3));
    let context = RequestContext::new().with_departments(["operations", "research", "operations"]);
    bench.call(request().with_context(context)).await.unwrap();
    assert_eq!(bench.standing("operations").await.in_day.settled, used(10, 66_000));
    assert_eq!(bench.standing("research").await.in_day.settled, used(10, 66_000));
}

#[tokio::test]
async fn seed_10_every_quantity_is_limited_by_the_day_and_by_the_month() {
    // A call costs 10 tokens and 66,000 nano-dollars; what is reserved for one has room beside two others and not three.
    let tokens = prompt() + 100 + 29;
    let nanos = prompt() * 3_000 + 100 * 15_000 + 2 * 66_000;
    let cost = || NanoUsd::new(nanos.try_into().unwrap());
    for (limits, quota, period, limit, current) in [
        (Limits::new().with_day_requests(3), QuotaKind::Requests, Period::Day, 3, 3),
        (Limits::new().with_month_requests(3), QuotaKind::Requests, Period::Month, 3, 3),
        (Limits::new().with_day_tokens(tokens), QuotaKind::Tokens, Period::Day, tokens, 30),
        (Limits::new().with_month_tokens(tokens), QuotaKind::Tokens, Period::Month, tokens, 30),
        (Limits::new().with_day_cost(cost()), QuotaKind::Cost, Period::Day, nanos, 198_000),
        (Limits::new().with_month_cost(cost()), QuotaKind::Cost, Period::Month, nanos, 198_000),
    ] {
        let bench = Bench::new(limits);
        let mut answered = 0;
        let error = loop {
            bench.provider.push(whole(7, 3));
            match bench.call(request()).await {
                Ok(_) => answered += 1,
                Err(error) => break error,
            }
        };
        let said = exceeded(&error);
        assert_eq!((said.quota, said.period, said.limit), (quota, period, limit), "{limits:?}");
        assert_eq!((said.current, said.reserved, answered), (current, 0, 3), "{limits:?}");
        let then = if period == Period::Day { 1_795_478_400 } else { 1_796_083_200 };
        assert_eq!(said.resets_at, UNIX_EPOCH + Duration::from_secs(then), "{limits:?}");
    }
}

#[tokio::test]
async fn seed_10_the_strictest_department_wins_and_the_others_are_charged_nothing_for_it() {
    let bench = Bench::new(Limits::new());
    let policy = |requests| DepartmentPolicy::new(Limits::new().with_day_requests(requests));
    let table = PolicyTable::default().with("research", policy(3)).with("operations", policy(2));
    let layer = QuotaLayer::new(bench.store.clone(), table, prices()).with_clock(bench.clock.clone());
    let bench = bench.with(|_| layer);
    let request =
        || request().with_context(RequestContext::new().with_departments(["research", "operations"]));
    for _ in 0..2 {
        bench.provider.push(whole(7, 3));
        bench.call(request()).await.unwrap();
    }
    let error = bench.refusal(request()).await;
    assert_eq!((&*exceeded(&error).department_id, exceeded(&error).limit), ("operations", 2));
    for department in ["research", "operations"] {
        let in_day = bench.standing(department).await.in_day;
        assert_eq!((in_day.settled.requests, in_day.reserved), (2, Amount::ZERO), "{department}");
    }
}

// ===== windows =====

#[tokio::test]
async fn a_call_over_midnight_and_over_the_month_is_charged_where_it_was_admitted() {
    // 2026-11-30 23:59:59
    let bench = Bench::new(Limits::new().with_day_requests(1).with_month_requests(1));
    bench.clock.set(UNIX_EPOCH + Duration::from_secs(1_796_083_199));
    bench.provider.push(whole(7, 3).after([Step::Gate]));
    let call = tokio::spawn(bench.service().oneshot(request()));
    tokio::task::yield_now().await;
    assert!(exceeded(&bench.refusal(request()).await).in_flight_only);
    bench.clock.advance(SECOND);
    bench.provider.open();
    call.await.unwrap().unwrap();
    assert_eq!(bench.research().await, (Amount::ZERO, Amount::ZERO), "December is new");
    bench.call(request()).await.unwrap();
    let november = Calendar::utc().day(bench.clock.now() - SECOND);
    assert_eq!((november.date, november.month), (20_261_130, 202_611));
    let then = bench.store.usage(&"research".into(), &llm_layers::quota::Days::only(november)).await.unwrap();
    assert_eq!((then.in_day.settled, then.in_month.settled), (used(10, 66_000), used(10, 66_000)));
}

#[tokio::test]
async fn the_stores_clock_picks_the_window_whatever_the_gateways_says() {
    for hours in [-12_i64, 12, -80, 80, -24 * 400, 24 * 400] {
        let bench = Bench::new(Limits::new().with_day_requests(1));
        let shift = Duration::from_secs(hours.unsigned_abs() * 3600);
        let wrong = if hours < 0 { noon() - shift } else { noon() + shift };
        let bench = bench.with(|layer| layer.with_clock(wrong));
        bench.provider.push(whole(7, 3));
        bench.call(request()).await.unwrap();
        let Standing { day, in_day, .. } = bench.standing("research").await;
        assert_eq!((day.date, in_day.settled.requests), (20_261_123, 1), "{hours} hours off");
        let error = bench.refusal(request()).await;
        assert_eq!(error.retry_after(), Some(Duration::from_secs(12 * 3600)), "{hours} hours off");
    }
}

// ===== refusals =====

#[tokio::test]
async fn seed_11_a_refusal_says_all_there_is_to_know_and_nobody_is_asked() {
    let bench = Bench::new(Limits::new().with_day_requests(5).with_month_tokens(1000));
    bench.provider.push(whole(900, 50));
    bench.call(request()).await.unwrap();
    let error = bench.refusal(request()).await;
    let said = exceeded(&error);
    assert_eq!(
        (&*said.department_id, said.quota, said.period),
        ("research", QuotaKind::Tokens, Period::Month)
    );
    assert_eq!((said.limit, said.current, said.reserved, said.in_flight_only), (1000, 950, 0, false));
    // The first of December.
    assert_eq!(said.resets_at, UNIX_EPOCH + Duration::from_secs(1_796_083_200));
    assert_eq!(error.retry_after(), Some(said.resets_at.duration_since(noon()).unwrap()));
    assert!(!error.is_retryable());
    assert_eq!((error.status().as_u16(), llm_layers::http::should_retry(&error)), (429, Some(false)));
    assert_eq!(bench.provider.requests().len(), 1);
    assert_eq!(bench.layer.stats().denied, 1);
    assert_eq!(bench.research().await.1, Amount::ZERO, "a refusal leaves nothing");
    let headers = llm_layers::http::rate_limit_headers_of(&error).expect("it is about a limit");
    let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    let expected = [
        "x-ratelimit-limit-tokens: 1000",
        "x-ratelimit-remaining-tokens: 50",
        "x-ratelimit-reset-tokens: 180h0m0s",
    ];
    assert_eq!(headers, expected);
}

#[cfg(feature = "axum")]
#[tokio::test]
async fn seed_11_answers_and_refusals_say_how_much_is_left_in_their_headers() {
    use axum_core::response::IntoResponse;
    use llm_layers::http::{Asked, axum::ChatAnswer};
    let bench = Bench::new(Limits::new().with_day_cost("12.5".parse().unwrap()).with_day_requests(1));
    for status in [200, 429] {
        let asked = Asked::by(&request());
        let response = ChatAnswer::new(asked, bench.call(request()).await).into_response();
        assert_eq!(response.status().as_u16(), status);
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("x-ratelimit-limit-requests"), Some("1"));
        assert_eq!(header("x-ratelimit-remaining-requests"), Some("0"));
        assert_eq!(header("x-ratelimit-reset-requests"), Some("12h0m0s"));
        let refused = status == 429;
        assert_eq!(header("retry-after"), refused.then_some("43200"));
        assert_eq!(header("x-should-retry"), refused.then_some("false"));
    }
}

#[tokio::test]
async fn if_only_calls_in_flight_are_in_the_way_it_is_worth_coming_back_in_seconds() {
    let bench = Bench::new(Limits::new().with_day_tokens(prompt() + 150));
    bench.provider.push(Reply::stall());
    let _call = tokio::spawn(bench.service().oneshot(request()));
    tokio::task::yield_now().await;
    let error = bench.refusal(request()).await;
    let said = exceeded(&error);
    assert_eq!((said.current, said.reserved, said.in_flight_only), (0, prompt() + 100, true));
    assert_eq!(error.retry_after(), Some(2 * SECOND));
    // The limit itself is whole again at midnight, as its answers say.
    assert_eq!(said.resets_at, noon() + 12 * 3600 * SECOND);
    let [_, _, (name, reset)] = llm_layers::http::rate_limit_headers_of(&error).expect("it is about a limit");
    assert_eq!((name.as_str(), reset.as_bytes()), ("x-ratelimit-reset-tokens", &b"12h0m0s"[..]));
    assert!(error.is_retryable());
    assert_eq!(llm_layers::http::should_retry(&error), None);
    assert_eq!(llm_layers::http::error_code(&error), Some("rate_limit_exceeded"));
}

#[tokio::test]
async fn a_request_that_can_never_fit_says_what_would() {
    let bench = Bench::new(Limits::new().with_day_tokens(120).with_month_tokens(90));
    let error = bench.refusal(request()).await;
    assert!(
        matches!(
            error.kind(),
            ErrorKind::RequestTooLarge { department_id, quota: QuotaKind::Tokens, period: Period::Month, largest: 90 }
                if &**department_id == "research"
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "the request exceeds the monthly limit of department research, 90 tokens");
    assert!(!error.is_retryable());
    assert_eq!(bench.provider.requests().len(), 0);
}

#[tokio::test]
async fn seed_14_without_departments_nothing_is_limited_or_counted() {
    let limits = Limits::new().with_day_requests(0);
    let bench = Bench::new(limits);
    let bench = bench.with(|_| {
        QuotaLayer::new(MemoryStore::new(), PolicyTable::new(DepartmentPolicy::new(limits)), prices())
    });
    bench.provider.push(whole(7, 3));
    let answer = bench.call(request().with_context(RequestContext::new())).await.unwrap();
    assert_eq!(answer.quota, None);
    let error = bench.refusal(request()).await;
    assert_eq!(exceeded(&error).limit, 0, "who has a department without an entry is under the default");
}

#[tokio::test]
async fn limits_that_are_lowered_hold_for_the_next_call() {
    let bench = Bench::new(Limits::new().with_day_requests(10));
    let policies = llm_layers::policies::Policies::new(table(Limits::new().with_day_requests(10)));
    let bench = bench.with(|_| QuotaLayer::new(MemoryStore::new(), policies.clone(), prices()));
    bench.call(request()).await.unwrap();
    policies.store(table(Limits::new().with_day_requests(1)));
    assert_eq!(exceeded(&bench.refusal(request()).await).current, 1);
}

// ===== bounds of answers =====

fn sent(bench: &Bench, name: &str) -> Option<String> {
    let requests = bench.provider.requests();
    let raw = requests.last().expect("a request").body.raw(name)?;
    Some(String::from_utf8(raw.to_vec()).unwrap())
}

#[tokio::test]
async fn an_answer_without_a_bound_is_given_one_where_it_matters() {
    let unbounded = || ChatBody::builder().user("Hello").build().unwrap();
    let bench = Bench::new(Limits::new().with_day_tokens(10_000));
    let call = bench.call(ask(unbounded())).await.unwrap();
    assert_eq!(sent(&bench, "max_tokens").as_deref(), Some("4096"));
    let bound = unbounded().input_bytes() as u64 + 4096;
    assert_eq!(call.quota.unwrap().remaining, 10_000 - bound);

    let mut openai = ask(unbounded());
    openai.model = "openai/o3".into();
    bench.call(openai).await.unwrap();
    assert_eq!(sent(&bench, "max_completion_tokens").as_deref(), Some("4096"));
    assert_eq!(sent(&bench, "max_tokens"), None);

    let own = bench
        .with(|layer| layer.with_output_member(["p/*"], "max_length").with_unbounded(Unbounded::Inject(7)));
    own.call(ask(unbounded())).await.unwrap();
    assert_eq!(sent(&own, "max_length").as_deref(), Some("7"));

    // Whatever else the request has, that is what the model reads.
    let asks = |length: u64| unbounded().with("max_length", length).unwrap().with("max_tokens", 1).unwrap();
    own.provider.push(whole(5, 5).after([Step::Gate]));
    let answer = tokio::spawn(own.service().oneshot(ask(asks(16))));
    tokio::task::yield_now().await;
    assert_eq!(own.research().await.1.tokens, asks(16).input_bytes() as u64 + 16);
    own.provider.open();
    answer.await.unwrap().unwrap();
    assert_eq!(
        (sent(&own, "max_length").as_deref(), sent(&own, "max_tokens").as_deref()),
        (Some("16"), Some("1"))
    );
    own.call(ask(asks(u64::MAX))).await.unwrap_err();
    let strict = own.with(|layer| layer.with_unbounded(Unbounded::Reject));
    strict.call(ask(asks(16))).await.unwrap();
    let own = strict;

    let known = own.with(|layer| layer.with_model_output(["p/mod*"], 50));
    known.provider.push(whole(5, 5).after([Step::Gate]));
    let first = tokio::spawn(known.service().oneshot(ask(unbounded())));
    tokio::task::yield_now().await;
    assert_eq!((sent(&known, "max_length"), sent(&known, "max_tokens")), (None, None), "its model bounds it");
    let input = unbounded().input_bytes() as u64;
    assert_eq!(known.research().await.1.tokens, input + 50);
    known.provider.open();
    first.await.unwrap().unwrap();

    let small = Bench::new(Limits::new().with_day_tokens(input + 40));
    small.provider.push(whole(5, 5).after([Step::Gate]));
    let first = tokio::spawn(small.service().oneshot(ask(unbounded())));
    tokio::task::yield_now().await;
    assert_eq!(sent(&small, "max_tokens").as_deref(), Some("40"), "there is not room for more");
    let error = small.refusal(ask(unbounded())).await;
    assert!(exceeded(&error).in_flight_only, "it is not cut off for what will be free in a moment");
    small.provider.open();
    first.await.unwrap().unwrap();
    small.provider.push(whole(5, input + 10));
    small.call(ask(unbounded())).await.unwrap();
    assert_eq!(sent(&small, "max_tokens").as_deref(), Some("30"));
    let error = small.refusal(ask(unbounded())).await;
    assert!(!exceeded(&error).in_flight_only, "{error:?}");

    // There is room for fifty, and for more when the first has ended.
    let room = Bench::new(Limits::new().with_day_tokens(2 * input + 60));
    room.provider.push(whole(5, 5).after([Step::Gate]));
    let first = tokio::spawn(room.service().oneshot(ask(unbounded().with("max_tokens", 10).unwrap())));
    tokio::task::yield_now().await;
    assert!(exceeded(&room.refusal(ask(unbounded())).await).in_flight_only);
    assert_eq!(room.provider.requests().len(), 1);
    room.provider.open();
    first.await.unwrap().unwrap();

    let free = Bench::new(Limits::new().with_day_requests(10));
    free.call(ask(unbounded())).await.unwrap();
    assert_eq!(sent(&free, "max_tokens"), None, "nobody limits tokens");

    let strict = Bench::new(Limits::new().with_day_cost(NanoUsd::MAX));
    let strict = strict.with(|layer| layer.with_unbounded(Unbounded::Reject));
    let error = strict.refusal(ask(unbounded())).await;
    assert!(
        matches!(error.kind(), ErrorKind::InvalidRequest { member: Some(member), .. } if &**member == "max_tokens")
    );
}

#[tokio::test]
async fn an_absurd_bound_is_lowered_in_the_request_too() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000_000));
    let both = ChatBody::builder().user("Hello").set("max_tokens", 5).set("max_completion_tokens", u64::MAX);
    bench.call(ask(both.build().unwrap())).await.unwrap();
    assert_eq!(sent(&bench, "max_completion_tokens").as_deref(), Some("1048576"));
    assert_eq!(sent(&bench, "max_tokens").as_deref(), Some("5"), "lower than that already");

    for odd in ["-1", "1e3", "99999999999999999999"] {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"Hello"}}],"max_tokens":{odd}}}"#);
        let Ok(body) = ChatBody::parse(body) else { continue };
        let error = bench.refusal(ask(body)).await;
        assert!(matches!(error.kind(), ErrorKind::InvalidRequest { .. }), "{odd}: {error:?}");
    }
    assert_eq!(bench.provider.requests().len(), 1);
}

/// llama.cpp's server obeys its own member before the others; servers that do not know it need the other.
#[tokio::test]
async fn no_member_that_some_servers_know_escapes_the_bound() {
    let asks = |bound: Option<u64>, own: &str| {
        let own: serde_json::Value = serde_json::from_str(own).unwrap();
        let body = ChatBody::builder().user("Hello").set("n_predict", own).build().unwrap();
        ask(bound.map_or(body.clone(), |bound| body.with("max_tokens", bound).unwrap()))
    };
    let input = asks(Some(16), "5000").body.input_bytes() as u64;
    for (bound, own, reserved, sent_bound, sent_own) in [
        (Some(16), "5000", 5000, "16", "5000"),
        (Some(16), "5", 16, "16", "5"),
        (Some(16), "-1", 16, "16", "16"),
        (Some(16), "\"many\"", 16, "16", "16"),
        (None, "5000", 5000, "5000", "5000"),
        (None, "-1", 4096, "4096", "4096"),
        (None, "99999999", 1 << 20, "1048576", "1048576"),
    ] {
        let bench = Bench::new(Limits::new().with_day_tokens(10_000_000));
        bench.provider.push(whole(5, 5).after([Step::Gate]));
        let answer = tokio::spawn(bench.service().oneshot(asks(bound, own)));
        tokio::task::yield_now().await;
        assert_eq!(bench.research().await.1.tokens, input + reserved, "{bound:?} {own}");
        let sent = (sent(&bench, "max_tokens"), sent(&bench, "n_predict"));
        assert_eq!(
            (sent.0.as_deref(), sent.1.as_deref()),
            (Some(sent_bound), Some(sent_own)),
            "{bound:?} {own}"
        );
        bench.provider.open();
        answer.await.unwrap().unwrap();
    }

    let tight = Bench::new(Limits::new().with_day_tokens(input + 100));
    let tight = tight.with(|layer| layer.with_on_tight(OnTight::ShrinkMaxTokens { min: 10 }));
    tight.call(asks(Some(16), "5000")).await.unwrap();
    assert_eq!(sent(&tight, "n_predict").as_deref(), Some("100"));

    let free = Bench::new(Limits::new().with_day_requests(10));
    free.call(asks(None, "-1")).await.unwrap();
    assert_eq!((sent(&free, "max_tokens"), sent(&free, "n_predict").as_deref()), (None, Some("-1")));
}

#[tokio::test]
async fn no_request_names_further_models_where_models_or_costs_are_limited() {
    let among = |member: &str, models: serde_json::Value| ask(plain().with(member, models).unwrap());
    let bound = |limits, models: Option<&[&str]>| {
        let policy = DepartmentPolicy::new(limits);
        let policy = models.map_or(policy.clone(), |models| policy.with_models(models));
        let table = PolicyTable::default().with("research", policy);
        let store = MemoryStore::new().with_clock(ManualClock::new(noon()));
        let quota = QuotaLayer::new(store, table.clone(), prices());
        let provider = Scripted::new();
        let stack = AccessLayer::new(table).layer(quota.layer(provider.clone()));
        (move |request| stack.clone().oneshot(request), provider)
    };
    let cost = Limits::new().with_day_cost(NanoUsd::MAX);
    for (limits, models) in
        [(cost, None), (Limits::new(), Some(&["p/*"][..])), (Limits::new(), Some(&["p/model"]))]
    {
        let (call, provider) = bound(limits, models);
        for member in ["models", "fallbacks"] {
            for further in [
                serde_json::json!(["p/dear"]),
                serde_json::json!("p/dear"),
                serde_json::json!([{"model": "x"}]),
            ] {
                let error = call(among(member, further)).await.unwrap_err();
                let ErrorKind::InvalidRequest { member: Some(named), reason } = error.kind() else {
                    panic!("{error:?}")
                };
                assert_eq!((&**named, reason), (member, &InvalidReason::FurtherModels));
            }
            for none in [serde_json::json!([]), serde_json::json!(null)] {
                call(among(member, none)).await.unwrap();
            }
        }
        assert_eq!(provider.requests().len(), 4, "nobody was asked for more");
    }
    // Whoever is bound to neither sends what he likes.
    let (call, provider) = bound(Limits::new().with_day_tokens(1_000_000), None);
    call(among("models", serde_json::json!(["p/dear"]))).await.unwrap();
    assert_eq!(provider.requests()[0].body.raw("models"), Some(&br#"["p/dear"]"#[..]));
}

/// Takes every record, and never says that one is safe.
#[derive(Clone, Default)]
struct Unsafe(Arc<Mutex<Vec<UsageEvent>>>, Arc<Mutex<Vec<Done>>>);

impl UsageSink for Unsafe {
    fn admit(&self) -> Result<Slot, Error> {
        Ok(Slot::new(self.clone()))
    }
}

impl Place for Unsafe {
    fn record(self: Box<Self>, event: UsageEvent, done: Option<Done>) {
        self.0.lock().unwrap().push(event);
        self.1.lock().unwrap().extend(done);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_held_for_its_record_is_charged_as_it_is_recorded() {
    let rates = |input, output| Rates::per_million(input, output).unwrap();
    let price = Price::new(rates("3", "15")).with_service_tier(ServiceTier::Flex, rates("1", "5"));
    let prices = PriceBook::of("sheet", [("p/model", price)]).unwrap();
    let flex = |usage: &str| {
        let json = format!(
            r#"{{"service_tier":"flex",{usage}"choices":[{{"message":{{"content":"{}"}}}}]}}"#,
            "word ".repeat(200)
        );
        Reply::complete(Completion::parse(json).unwrap())
    };
    let reported = r#""usage":{"prompt_tokens":20,"completion_tokens":4000},"#;
    let input = plain().with("service_tier", "flex").unwrap().input_bytes() as u64;
    for (usage, tokens) in [(reported, 4020), ("", input + 100)] {
        // The caller leaves, at once or for its own deadline; or the record is late.
        for leaves_after in [Some(0), Some(3), None] {
            let mut bench = Bench::new(Limits::new().with_day_tokens(1_000_000));
            bench.layer = QuotaLayer::new(
                bench.store.clone(),
                table(Limits::new().with_day_tokens(1_000_000)),
                prices.clone(),
            )
            .with_clock(bench.clock.clone());
            let sink = Unsafe::default();
            let record = UsageLayer::new(sink.clone(), Prices::new(prices.clone())).durable(5 * SECOND);
            bench.provider.push(flex(usage));
            let service = bench.layer.layer(record.layer(bench.provider.clone()));
            let call = service.oneshot(ask(plain().with("service_tier", "flex").unwrap()));
            match leaves_after {
                Some(seconds) => drop(tokio::time::timeout(seconds * SECOND, call).await.unwrap_err()),
                None => drop(call.await.unwrap_err()),
            }
            let (settled, reserved) = bench.research().await;
            assert_eq!(
                (settled.requests, settled.tokens, reserved),
                (1, tokens, Amount::ZERO),
                "{leaves_after:?}"
            );
            let cost = sink.0.lock().unwrap()[0].cost.amount.unwrap();
            if !usage.is_empty() {
                assert_eq!(settled.cost, cost, "{leaves_after:?}");
            }
            // In the tier that it was served in.
            assert!(settled.cost < NanoUsd::new(5_000 * tokens as i64));
        }
    }
}

#[tokio::test]
async fn so_many_choices_that_no_provider_gives_are_refused_and_keep_nobody_out() {
    let bench = Bench::new(Limits::new().with_day_tokens(i64::MAX as u64));
    for n in [1025, u64::MAX] {
        let error = bench.refusal(ask(plain().with("n", n).unwrap())).await;
        let ErrorKind::InvalidRequest { member, reason } = error.kind() else { panic!("{error:?}") };
        assert_eq!((member.as_deref(), reason), (Some("n"), &InvalidReason::TooMany { limit: 1024 }));
    }
    bench.call(ask(plain().with("n", 1024).unwrap())).await.unwrap();
    // In the shadow it is the provider who says so.
    let shadow = Bench::new(Limits::new()).with(|layer| layer.with_mode(Mode::Shadow));
    shadow.call(ask(plain().with("n", u64::MAX).unwrap())).await.unwrap();
}

#[tokio::test]
async fn every_choice_counts() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000));
    let body = plain().with("n", 5).unwrap();
    let answer = bench.call(ask(body)).await.unwrap();
    assert_eq!(answer.quota.unwrap().remaining, 10_000 - prompt() - 500);
}

#[tokio::test]
async fn images_count_for_what_they_are_and_not_for_their_bytes() {
    let bench = Bench::new(Limits::new().with_day_tokens(5_000));
    let bench = bench.with(|layer| layer.with_estimator(ByteEstimator::new().with_part_tokens(1000)));
    let url = format!("data:image/png;base64,{}", "A".repeat(100_000));
    let parts = [llm_layers::Part::text("What is this?"), llm_layers::Part::image_url(url)];
    let message = llm_layers::Message::user_parts(parts);
    let body = ChatBody::builder().message(message).set("max_tokens", 10).build().unwrap();
    let left = bench.call(ask(body)).await.unwrap().quota.unwrap().remaining;
    assert!((3_800..3_950).contains(&left), "{left}");
}

#[tokio::test]
async fn a_tight_answer_is_shortened_and_with_it_what_is_reserved() {
    let limits = Limits::new().with_day_tokens(prompt() + 60);
    let shrinks = |layer: QuotaLayer| layer.with_on_tight(OnTight::ShrinkMaxTokens { min: 10 });
    let bench = Bench::new(limits).with(shrinks);
    bench.provider.push(whole(5, 5).after([Step::Gate]));
    let call = tokio::spawn(bench.service().oneshot(request()));
    tokio::task::yield_now().await;
    assert_eq!(sent(&bench, "max_tokens").as_deref(), Some("60"));
    assert_eq!(bench.research().await.1.tokens, prompt() + 60);
    bench.provider.open();
    call.await.unwrap().unwrap();
    // 10 are used, so that 50 fit now.
    bench.provider.push(whole(5, prompt() + 30));
    bench.call(request()).await.unwrap();
    assert_eq!(sent(&bench, "max_tokens").as_deref(), Some("50"));
    let error = bench.refusal(request()).await;
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)), "less than ten: {error:?}");
    assert_eq!(bench.research().await.1, Amount::ZERO);

    // Not to nothing: to some servers that is no bound.
    let none = Bench::new(Limits::new().with_day_tokens(prompt()));
    let none = none.with(|layer| layer.with_on_tight(OnTight::ShrinkMaxTokens { min: 0 }));
    let error = none.refusal(request()).await;
    assert!(matches!(error.kind(), ErrorKind::RequestTooLarge { .. }), "{error:?}");
    assert_eq!(none.provider.requests().len(), 0);

    // A token out is 15,000 nano-dollars.
    let money = Limits::new().with_month_cost(NanoUsd::new(prompt() as i64 * 3_000 + 40 * 15_000 + 14_999));
    let bench = Bench::new(money).with(shrinks);
    bench.call(request()).await.unwrap();
    assert_eq!(sent(&bench, "max_tokens").as_deref(), Some("40"));
}

/// So much is used up, in today's window or in that of the month.
async fn use_up(store: &MemoryStore, department: &str, period: Period, tokens: u64, cost: i64) {
    let window = if period == Period::Day { WindowName::Day(20_261_123) } else { WindowName::Month(202_611) };
    let by = Delta { requests: 0, tokens: tokens as i64, cost: NanoUsd::new(cost) };
    let adjustment = Adjustment::new(LeaseId::mint(noon()), department, window, by);
    assert!(store.adjust(&adjustment).await.unwrap());
}

/// Day and month have so many tokens, and what would buy them as answers.
fn equal_limits(tokens: u64) -> Limits {
    let money = NanoUsd::new(tokens as i64 * 15_000);
    Limits::new()
        .with_day_tokens(tokens)
        .with_month_tokens(tokens)
        .with_day_cost(money)
        .with_month_cost(money)
}

#[tokio::test]
async fn an_answer_is_shortened_to_the_tightest_of_any_number_of_limits() {
    const MOST: u64 = 100_000;
    for seed in 0..64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let provider = Scripted::new();
        let store = MemoryStore::new().with_clock(noon());
        let policies = PolicyTable::new(DepartmentPolicy::new(equal_limits(MOST)));
        let layer = QuotaLayer::new(store.clone(), policies, prices())
            .with_clock(noon())
            .with_on_tight(OnTight::ShrinkMaxTokens { min: 10 });
        let departments: Vec<String> = (0..16).map(|number| format!("department {number}")).collect();
        let mut tightest = u64::MAX;
        for department in &departments {
            // What others have in flight is reserved in day and month.
            let in_flight = random.u64(0..2) * random.u64(1..MOST / 2);
            let amount = Amount::new(1, in_flight, NanoUsd::new(in_flight as i64 * 15_000));
            let one = Departments::one(Department::new(department.as_str(), Limits::new()));
            let days = Calendar::utc().days_around(noon());
            let reservation = Reservation::new(LeaseId::mint(noon()), one, amount, 60 * SECOND, days);
            store.reserve(&reservation).await.unwrap();
            for period in [Period::Day, Period::Month] {
                // Room for an answer of so many tokens, and for its price.
                let [room, affordable] = [(); 2].map(|()| random.u64(100..2_000));
                let tokens = MOST - in_flight - prompt() - room;
                let cost = (MOST - in_flight - affordable) * 15_000 - prompt() * 3_000;
                use_up(&store, department, period, tokens, cost as i64).await;
                tightest = tightest.min(room).min(affordable);
            }
        }
        let body = plain().with("max_tokens", 5_000).unwrap();
        let context = RequestContext::new().with_departments(departments);
        let request = LlmRequest::new("p/model", body).with_context(context);
        layer.layer(provider.clone()).oneshot(request).await.unwrap();
        let sent = provider.requests()[0].body.raw("max_tokens").unwrap().to_vec();
        assert_eq!(String::from_utf8(sent).unwrap(), tightest.to_string(), "seed {seed}");
    }
}

/// Others settle whenever it is asked: there is always a little less room than was planned with.
#[derive(Debug, Clone)]
struct Shrinking(MemoryStore);

impl QuotaStore for Shrinking {
    pass_on!([0] extend, settle, release, usage, seed, adjust);

    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let (store, reservation) = (self.0.clone(), reservation.clone());
        StoreFuture::boxed(async move {
            use_up(&store, "research", Period::Month, 5, 0).await;
            store.reserve(&reservation).await
        })
    }
}

#[tokio::test]
async fn a_store_that_denies_whatever_is_left_refuses_and_is_not_unavailable() {
    let bench = Bench::new(Limits::new());
    use_up(&bench.store, "research", Period::Month, 5_000, 0).await;
    let limits = Limits::new().with_month_tokens(10_000);
    let store = Shrinking(bench.store.clone());
    let (layer, _worker) = QuotaLayer::pair(store, table(limits), prices(), WorkerOptions::default());
    let layer = layer.with_clock(noon()).with_on_tight(OnTight::ShrinkMaxTokens { min: 10 });
    let request = ask(plain().with("max_tokens", 9_000).unwrap());
    let error = layer.layer(bench.provider.clone()).oneshot(request).await.unwrap_err();
    assert_eq!((exceeded(&error).quota, exceeded(&error).limit), (QuotaKind::Tokens, 10_000));
    assert_eq!((layer.stats().denied, layer.stats().unavailable), (1, 0));
    assert!(layer.is_available());
}

#[cfg(feature = "tokenizer")]
#[tokio::test]
async fn a_prompt_is_counted_where_its_bytes_do_not_fit() {
    let text = "the quick brown fox jumps over the lazy dog ".repeat(100);
    let body = ChatBody::builder().user(text).set("max_tokens", 10).build().unwrap();
    let limits = Limits::new().with_day_tokens(2_000);
    let error = Bench::new(limits).refusal(ask(body.clone())).await;
    assert!(matches!(error.kind(), ErrorKind::RequestTooLarge { .. }));
    let bench =
        Bench::new(limits).with(|layer| layer.with_estimator(llm_layers::quota::BpeEstimator::default()));
    let left = bench.call(ask(body)).await.unwrap().quota.unwrap().remaining;
    // About 900 tokens, half as much again for a tokenizer that nobody knows.
    assert!((550..700).contains(&left), "{left}");
}

// ===== prices =====

#[tokio::test]
async fn a_model_without_a_price_is_refused_where_money_is_limited() {
    let limits = Limits::new().with_month_cost(NanoUsd::new(1_000_000_000));
    let unknown = || {
        let mut request = request();
        request.model = "p/unknown".into();
        request
    };
    let bench = Bench::new(limits);
    let error = bench.refusal(unknown()).await;
    assert!(matches!(error.kind(), ErrorKind::ModelUnpriced { model } if *model == "p/unknown"));

    let assumed = Price::new(Rates::per_million("1", "1").unwrap());
    let bench = bench.with(|layer| layer.with_unpriced(Unpriced::Assume(assumed)));
    bench.provider.push(whole(7, 3));
    bench.call(unknown()).await.unwrap();
    assert_eq!(bench.research().await.0, used(10, 10_000));

    let bench = bench.with(|layer| layer.with_unpriced(Unpriced::Free));
    bench.provider.push(whole(7, 3));
    bench.call(unknown()).await.unwrap();
    assert_eq!(bench.research().await.0, Amount::new(2, 20, NanoUsd::new(10_000)));

    let bench = Bench::new(Limits::new().with_day_tokens(1000));
    bench.provider.push(whole(7, 3));
    bench.call(unknown()).await.unwrap();
    assert_eq!(bench.research().await.0, used(10, 0));
}

// ===== shadow, hits =====

#[tokio::test]
async fn in_the_shadow_everything_passes_and_is_counted() {
    let bench = Bench::new(Limits::new().with_day_tokens(10).with_month_cost(NanoUsd::new(1)));
    let bench = bench.with(|layer| layer.with_mode(Mode::Shadow).with_unbounded(Unbounded::Reject));
    for _ in 0..2 {
        bench.provider.push(whole(7, 30));
        let body = ChatBody::builder().user("Hello").build().unwrap();
        bench.call(ask(body.clone())).await.unwrap();
        assert_eq!(bench.provider.requests().last().unwrap().body.to_json("m"), body.to_json("m"));
    }
    assert_eq!(bench.research().await.0.requests, 2);
    assert_eq!(bench.research().await.1, Amount::ZERO);
    assert_eq!((bench.layer.stats().denied, bench.layer.stats().would_deny), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn in_the_shadow_a_store_that_is_down_stops_nobody() {
    let bench = Bench::new(Limits::new());
    let (remote, layer, _worker) = far(&bench, WorkerOptions::default());
    let service = layer.with_mode(Mode::Shadow).layer(bench.provider.clone());
    for fault in [Fault::Refuses, Fault::Hangs] {
        remote.fail(fault);
        service.clone().oneshot(request()).await.unwrap();
    }
    assert_eq!(bench.provider.requests().len(), 2);
}

#[tokio::test]
async fn an_answer_from_a_cache_costs_nothing() {
    for (hits, status, expected) in [
        (Hits::Free, CacheStatus::Coalesced, Amount::ZERO),
        (Hits::Count, CacheStatus::Coalesced, Amount::new(1, 10, NanoUsd::ZERO)),
    ] {
        let told = Arc::new(AtomicU64::new(0));
        let counts = Arc::clone(&told);
        let bench = Bench::new(Limits::new()).with(|layer| {
            layer.with_hits(hits).on_settle(move |it| _ = counts.fetch_add(it.used.tokens, Ordering::Relaxed))
        });
        let service = bench.layer.layer(service_fn(move |request: LlmRequest| async move {
            let completion = Completion::text("hi", TokenUsage::new(7, 3));
            let mut answer = LlmResponse::new(request.model, completion);
            answer.cache = status;
            Ok::<_, Error>(answer)
        }));
        service.oneshot(request()).await.unwrap();
        assert_eq!(bench.research().await, (expected, Amount::ZERO), "{hits:?}");
        assert_eq!(
            told.load(Ordering::Relaxed),
            expected.tokens,
            "whoever watches is told of all that is charged"
        );
    }
}

// ===== the store fails =====

#[tokio::test(start_paused = true)]
async fn seed_13_a_store_that_is_down_means_refused_in_time_and_nobody_is_asked() {
    for fault in [Fault::Refuses, Fault::Hangs, Fault::LosesReplies, Fault::Slow(SECOND)] {
        let bench = Bench::new(Limits::new());
        let (remote, layer, _worker) = far(&bench, WorkerOptions::default());
        let service = layer.layer(bench.provider.clone());
        remote.fail(fault);
        let start = Instant::now();
        let error = service.oneshot(request()).await.unwrap_err();
        assert!(is_unavailable(&error), "{fault:?}: {error:?}");
        assert!(start.elapsed() <= Duration::from_millis(251), "{fault:?}: {:?}", start.elapsed());
        assert_eq!((error.status().as_u16(), error.retry_after()), (503, Some(SECOND)));
        assert_eq!(bench.provider.requests().len(), 0, "{fault:?}");
        assert_eq!(layer.stats().unavailable, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reservation_whose_answer_was_lost_is_given_back() {
    let bench = Bench::new(Limits::new());
    let (remote, layer, worker) = far(&bench, WorkerOptions::default());
    remote.fail(Fault::LosesReplies);
    let service = layer.layer(bench.provider.clone());
    assert!(is_unavailable(&service.oneshot(request()).await.unwrap_err()));
    assert!(bench.research().await.1.tokens > 0, "it was reserved all the same");
    remote.fail(Fault::None);
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.settled, report.left), (1, 0));
    assert_eq!(bench.research().await, (Amount::ZERO, Amount::ZERO));
}

#[tokio::test(start_paused = true)]
async fn after_some_failures_the_store_is_left_alone_and_then_calls_flow_again() {
    let bench = Bench::new(Limits::new());
    let (remote, layer, _worker) = far(&bench, WorkerOptions::default());
    let service = layer.layer(bench.provider.clone());
    remote.fail(Fault::Refuses);
    for _ in 0..20 {
        assert!(is_unavailable(&service.clone().oneshot(request()).await.unwrap_err()));
    }
    assert_eq!(remote.asked(), 5);
    assert!(!layer.is_available());
    remote.fail(Fault::None);
    tokio::time::sleep(SECOND).await;
    service.clone().oneshot(request()).await.unwrap();
    assert!(layer.is_available());
    service.oneshot(request()).await.unwrap();
}

/// Whoever is not ready gets no calls, and would never be again if only calls told.
#[tokio::test(start_paused = true)]
async fn a_layer_that_is_asked_whether_it_is_available_finds_out() {
    for fault in [Fault::Refuses, Fault::Hangs, Fault::LosesReplies] {
        let bench = Bench::new(Limits::new().with_day_requests(1));
        let (remote, layer, worker) = far(&bench, WorkerOptions::default());
        let service = layer.layer(bench.provider.clone());
        let ask = || async {
            let is_available = layer.is_available();
            tokio::time::sleep(SECOND).await;
            is_available
        };
        assert!(ask().await && remote.asked() == 0, "nobody has failed");
        remote.fail(fault);
        for _ in 0..5 {
            assert!(is_unavailable(&service.clone().oneshot(request()).await.unwrap_err()));
        }
        let refused = layer.stats().unavailable;
        for tries in 1..=20 {
            assert!(!ask().await);
            assert!(!layer.is_available(), "{fault:?}: another is under way, or was lately");
            assert!(remote.reserved() <= 6 + tries, "{fault:?}: once a second");
        }
        assert!(remote.reserved() >= 14, "{fault:?}: {}", remote.reserved());
        remote.fail(Fault::None);
        ask().await;
        ask().await;
        assert!(ask().await, "{fault:?}");
        // It is nobody's call: none is counted, and none is in the way of one.
        assert_eq!(layer.stats().unavailable, refused);
        service.oneshot(request()).await.unwrap();
        let report = worker.shutdown(60 * SECOND).await;
        assert_eq!(report.left, 0);
        assert_eq!(bench.research().await.0.requests, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_settlement_is_tried_until_it_is_done_and_the_answer_does_not_wait() {
    let bench = Bench::new(Limits::new());
    let (remote, layer, worker) = far(&bench, WorkerOptions::default());
    bench.provider.push(whole(7, 3).after([Step::Gate]));
    let call = tokio::spawn(layer.layer(bench.provider.clone()).oneshot(request()));
    tokio::time::sleep(SECOND).await;
    remote.fail(Fault::Hangs);
    bench.provider.open();
    call.await.unwrap().unwrap();
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((worker.report().settled, worker.report().left), (0, 1));
    assert!(worker.report().last_error.is_some());
    remote.fail(Fault::None);
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.settled, report.left, report.last_error), (1, 0, None));
    assert_eq!(bench.research().await, (used(10, 66_000), Amount::ZERO));
}

/// Whatever the store, one attempt at a time is in the way of a call, and none that has failed.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_has_ended_is_not_in_the_way_of_the_next() {
    let failed = |class| Reply::error(Error::provider(class, "p", "model"));
    for limits in [
        Limits::new().with_day_requests(1),
        Limits::new().with_day_tokens(prompt() + 100),
        Limits::new().with_month_cost(NanoUsd::new((prompt() as i64) * 3_000 + 100 * 15_000)),
    ] {
        for mode in [Mode::Enforce, Mode::Shadow] {
            let bench = Bench::new(Limits::new());
            let remote = Remote::new(bench.store.clone());
            remote.fail(Fault::Slow(Duration::from_millis(20)));
            let options = WorkerOptions::default();
            let (layer, worker) = QuotaLayer::pair(remote.clone(), table(limits), prices(), options);
            let layer = layer.with_clock(bench.clock.clone()).with_mode(mode);
            let service = layer.layer(bench.provider.clone());
            bench.provider.push(failed(ErrorClass::Connect));
            service.clone().oneshot(request()).await.unwrap_err();
            service.oneshot(request()).await.unwrap();
            assert_eq!((layer.stats().denied, layer.stats().would_deny), (0, 0), "{limits:?}");
            worker.shutdown(SECOND).await;
        }
    }
    // Where all is settled at once there is nothing to wait for, nor need there be a runtime.
    std::thread::spawn(|| {
        let bench = Bench::new(Limits::new().with_day_requests(1));
        bench.provider.push(Reply::text("first").after([Step::Stall]));
        let mut first = Box::pin(bench.service().oneshot(request()));
        assert!(first.as_mut().now_or_never().is_none());
        let refused = bench.service().oneshot(request()).now_or_never();
        assert!(exceeded(&refused.expect("at once").unwrap_err()).in_flight_only);
    })
    .join()
    .unwrap();
    // Others in flight still are, and in the shadow they refuse nobody.
    for (mode, is_refused) in [(Mode::Enforce, true), (Mode::Shadow, false)] {
        let bench = Bench::new(Limits::new());
        let remote = Remote::new(bench.store.clone());
        let limits = table(Limits::new().with_day_requests(1));
        let (layer, _worker) = QuotaLayer::pair(remote, limits, prices(), WorkerOptions::default());
        let layer = layer.with_clock(bench.clock.clone()).with_mode(mode);
        bench.provider.push(Reply::text("first").after([Step::Stall]));
        let service = layer.layer(bench.provider.clone());
        let _first = tokio::spawn(service.clone().oneshot(request()));
        tokio::time::sleep(SECOND).await;
        assert_eq!(service.oneshot(request()).await.is_err(), is_refused);
    }
    // A store that does not settle makes nobody wait for longer than for any answer of it.
    let bench = Bench::new(Limits::new());
    let (remote, layer, _worker) = far(&bench, WorkerOptions::default());
    let service = layer.with_deadline(SECOND).layer(bench.provider.clone());
    bench.provider.push(failed(ErrorClass::Connect));
    let most = ask(plain().with("max_tokens", 9_000).unwrap());
    service.clone().oneshot(most.clone()).await.unwrap_err();
    remote.fail(Fault::Hangs);
    let since = Instant::now();
    service.oneshot(most).await.unwrap_err();
    assert!(since.elapsed() <= 2 * SECOND, "{:?}", since.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_a_place_for_its_end_no_call_is_made() {
    let bench = Bench::new(Limits::new());
    let (remote, layer, worker) = far(&bench, WorkerOptions::default().with_capacity(2));
    let service = layer.layer(bench.provider.clone());
    let calls: Vec<_> = (0..2)
        .map(|_| {
            bench.provider.push(whole(7, 3).after([Step::Gate]));
            tokio::spawn(service.clone().oneshot(request()))
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    let asked = remote.asked();
    assert!(is_unavailable(&service.clone().oneshot(request()).await.unwrap_err()));
    assert_eq!(remote.asked(), asked, "not even the store");
    bench.provider.open();
    bench.provider.open();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    tokio::time::sleep(SECOND).await;
    service.clone().oneshot(request()).await.unwrap();
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.settled, report.left), (3, 0));
    assert!(is_unavailable(&service.oneshot(request()).await.unwrap_err()), "the worker is gone");
}

/// Two parts, of which either can fail: one has the departments whose names begin with "op", the other all others.
#[derive(Debug, Clone)]
struct InParts([Remote; 2]);

impl InParts {
    fn new(store: &MemoryStore) -> Self {
        Self([store.clone(), store.clone()].map(Remote::new))
    }

    fn of(&self, department: &str) -> &Remote {
        &self.0[usize::from(department.starts_with("op"))]
    }
}

impl QuotaStore for InParts {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        self.of(&reservation.departments[0].id).reserve(reservation)
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        self.of(&departments[0].id).extend(id, departments, by)
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        self.of(&settlement.departments[0].id).settle(settlement)
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        self.of(&departments[0].id).release(id, departments)
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        self.of(department).usage(department, days)
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        self.of(department).seed(department, baseline)
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        self.of(&adjustment.department).adjust(adjustment)
    }
}

/// A layer over a store in parts, and what calls it.
fn in_parts(bench: &Bench, options: WorkerOptions) -> (InParts, QuotaLayer, Worker) {
    let store = InParts::new(&bench.store);
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(Limits::new()), prices(), options);
    (store, layer.with_clock(bench.clock.clone()), worker)
}

fn for_operations() -> LlmRequest {
    request().with_context(RequestContext::new().with_departments(["operations"]))
}

/// So many calls of operations are made and have ended, none of which can be settled.
async fn leave_unsettled(
    bench: &Bench,
    service: &Quota<Scripted>,
    store: &InParts,
    fault: Fault,
    calls: usize,
) {
    let calls: Vec<_> = (0..calls)
        .map(|_| {
            bench.provider.push(whole(7, 3).after([Step::Gate]));
            tokio::spawn(service.clone().oneshot(for_operations()))
        })
        .collect();
    tokio::time::sleep(SECOND).await;
    store.of("operations").fail(fault);
    for call in calls {
        bench.provider.open();
        call.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_settled_of_one_department_keeps_no_other_waiting() {
    for fault in [Fault::Refuses, Fault::Hangs] {
        let bench = Bench::new(Limits::new());
        let (store, layer, worker) = in_parts(&bench, WorkerOptions::default().with_parallel(4));
        let service = layer.layer(bench.provider.clone());
        leave_unsettled(&bench, &service, &store, fault, 20).await;
        tokio::time::sleep(60 * SECOND).await;
        for calls in 1..=10 {
            bench.provider.push(whole(7, 3));
            service.clone().oneshot(request()).await.unwrap();
            tokio::time::sleep(SECOND).await;
            let (settled, reserved) = bench.research().await;
            assert_eq!((settled.requests, reserved), (calls, Amount::ZERO), "{fault:?}");
        }
        assert_eq!((worker.report().settled, worker.report().left), (10, 20), "{fault:?}");
        store.of("operations").fail(Fault::None);
        let report = worker.shutdown(60 * SECOND).await;
        assert_eq!((report.settled, report.left), (30, 0), "{fault:?}");
        assert_eq!(bench.standing("operations").await.in_day.settled.requests, 20);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ends_all_the_time_does_not_keep_waiting_what_is_tried_again() {
    let bench = Bench::new(Limits::new());
    let (store, layer, worker) = in_parts(&bench, WorkerOptions::default().with_parallel(2));
    let service = layer.layer(bench.provider.clone());
    leave_unsettled(&bench, &service, &store, Fault::Refuses, 4).await;
    tokio::time::sleep(60 * SECOND).await;
    store.of("operations").fail(Fault::None);
    // Four end each second, and two can be settled.
    store.of("research").fail(Fault::Slow(SECOND));
    let layer = layer.with_deadline(10 * SECOND);
    for _ in 0..120 {
        let service = layer.layer(bench.provider.clone());
        tokio::spawn(service.oneshot(request()));
        tokio::time::sleep(SECOND / 4).await;
    }
    assert!(worker.report().left > 50, "{:?}", worker.report());
    assert_eq!(bench.standing("operations").await.in_day.settled.requests, 4);
}

#[tokio::test(start_paused = true)]
async fn a_call_has_its_place_until_it_is_settled_and_not_until_it_is_tried() {
    let bench = Bench::new(Limits::new());
    let (store, layer, worker) = in_parts(&bench, WorkerOptions::default().with_capacity(3));
    let service = layer.layer(bench.provider.clone());
    leave_unsettled(&bench, &service, &store, Fault::Refuses, 3).await;
    tokio::time::sleep(60 * SECOND).await;
    assert!(is_unavailable(&service.clone().oneshot(request()).await.unwrap_err()));
    assert!(!layer.is_available());
    store.of("operations").fail(Fault::None);
    tokio::time::sleep(60 * SECOND).await;
    service.clone().oneshot(request()).await.unwrap();
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.settled, report.left), (4, 0));
}

/// Has a lease that it can never settle: the one that used up ten tokens.
#[derive(Debug, Clone)]
struct Stuck(Remote);

impl QuotaStore for Stuck {
    pass_on!([0] reserve, extend, release, usage, seed, adjust);

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        match settlement.amount.tokens {
            10 => StoreFuture::ready(Err(StoreError::definite("its record is no record"))),
            _ => self.0.settle(settlement),
        }
    }
}

/// Panics at the first two tries to settle, before and after it has done it, and whenever it is to extend a lease.
#[derive(Debug, Clone)]
struct Panicky(Remote, Arc<AtomicU64>);

impl QuotaStore for Panicky {
    pass_on!([0] reserve, release, usage, seed, adjust);

    fn extend(&self, _: LeaseId, _: &Departments, _: Duration) -> StoreFuture<bool> {
        panic!("a bug where leases are extended")
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let tries = self.1.fetch_add(1, Ordering::SeqCst);
        assert!(tries > 0, "a bug before anything is done");
        let settled = self.0.settle(settlement);
        StoreFuture::boxed(async move {
            let settled = settled.await;
            assert!(tries > 1, "a bug after it is done");
            settled
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_is_tried_again_and_stops_nobody() {
    let bench = Bench::new(Limits::new());
    let store = Panicky(Remote::new(bench.store.clone()), Arc::default());
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(Limits::new()), prices(), seldom());
    let layer = layer.with_clock(bench.clock.clone());
    bench.provider.push(whole(7, 3).after([Step::Wait(300 * SECOND)]));
    layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let report = worker.report();
    assert_eq!((report.settled, report.left), (0, 1));
    assert_eq!(report.last_error.as_deref(), Some("the store panicked"));

    bench.provider.push(whole(7, 3));
    layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
    let report = worker.shutdown(300 * SECOND).await;
    assert_eq!((report.settled, report.left, report.last_error), (2, 0, None));
    assert_eq!(bench.research().await, (Amount::new(2, 20, NanoUsd::new(132_000)), Amount::ZERO));
}

/// Tries again once a minute, for whoever waits for a day.
fn seldom() -> WorkerOptions {
    WorkerOptions::default().with_backoff(Backoff::new(60 * SECOND, 60 * SECOND))
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_alone_cannot_be_settled_is_reported_and_the_layer_is_available() {
    let bench = Bench::new(Limits::new());
    let store = Stuck(Remote::new(bench.store.clone()));
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(Limits::new()), prices(), seldom());
    let layer = layer.with_clock(bench.clock.clone());
    bench.provider.push(whole(7, 3));
    layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
    tokio::time::sleep(SECOND / 10).await;
    assert!(!layer.is_available(), "who knows whether it is the store");
    for second in 0..3600 {
        tokio::time::sleep(SECOND).await;
        assert!(layer.is_available() || second < 2, "after {second} seconds");
    }
    let report = worker.report();
    assert_eq!((report.left, report.given_up), (1, 0));
    assert!(report.last_error.is_some());
    assert!(store.0.reserved() <= 3, "it was asked {} times", store.0.reserved());
    tokio::time::sleep(24 * 3600 * SECOND).await;
    assert_eq!((worker.report().left, worker.report().given_up), (0, 1));
    assert!(layer.is_available());
}

#[tokio::test(start_paused = true)]
async fn a_department_that_cannot_be_settled_does_not_make_the_layer_unavailable_for_others() {
    let bench = Bench::new(Limits::new());
    let (store, layer, worker) = in_parts(&bench, WorkerOptions::default());
    let service = layer.layer(bench.provider.clone());
    service.clone().oneshot(request()).await.unwrap();
    leave_unsettled(&bench, &service, &store, Fault::Refuses, 3).await;
    tokio::time::sleep(SECOND / 10).await;
    assert!(!layer.is_available());
    for second in 0..60 {
        tokio::time::sleep(SECOND).await;
        assert!(layer.is_available() || second < 5, "after {second} seconds");
    }
    // Nor does whoever asks for it make the store look as if it failed.
    assert_eq!(worker.report().left, 3);
    service.oneshot(request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_settle_since_it_is_away_is_available_when_it_is_back() {
    let bench = Bench::new(Limits::new());
    let (store, layer, worker) = in_parts(&bench, WorkerOptions::default());
    let service = layer.layer(bench.provider.clone());
    service.clone().oneshot(request()).await.unwrap();
    leave_unsettled(&bench, &service, &store, Fault::Hangs, 3).await;
    store.of("research").fail(Fault::Hangs);
    tokio::time::sleep(11 * SECOND).await;
    for _ in 0..60 {
        assert!(!layer.is_available());
        tokio::time::sleep(SECOND).await;
    }
    let asked = store.of("research").reserved() + store.of("operations").reserved();
    assert!((30..=70).contains(&asked), "once a second: {asked}");
    store.of("research").fail(Fault::None);
    // A call tells as well as anything.
    service.oneshot(request()).await.unwrap();
    assert!(layer.is_available());
    store.of("operations").fail(Fault::None);
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.left, report.last_error), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_given_up_does_not_make_the_layer_unavailable() {
    let bench = Bench::new(Limits::new());
    let (store, layer, worker) = in_parts(&bench, seldom());
    let service = layer.layer(bench.provider.clone());
    // Nobody else is known who could be asked for.
    leave_unsettled(&bench, &service, &store, Fault::Refuses, 2).await;
    for _ in 0..24 * 60 - 1 {
        tokio::time::sleep(60 * SECOND).await;
        assert!(!layer.is_available());
    }
    tokio::time::sleep(120 * SECOND).await;
    assert_eq!((worker.report().left, worker.report().given_up), (0, 2));
    assert!(layer.is_available());
    service.oneshot(request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_calls_in_flight_but_not_for_ever() {
    let bench = Bench::new(Limits::new());
    let (_, layer, worker) = far(&bench, WorkerOptions::default());
    bench.provider.push(Reply::stall());
    let call = tokio::spawn(layer.layer(bench.provider.clone()).oneshot(request()));
    tokio::time::sleep(SECOND).await;
    let start = Instant::now();
    worker.shutdown(5 * SECOND).await;
    assert_eq!(start.elapsed(), 5 * SECOND);
    call.abort();
}

/// A store's clock that goes with tokio's.
#[derive(Debug)]
struct Paused(Instant);

impl Clock for Paused {
    fn now(&self) -> SystemTime {
        noon() + self.0.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_extended_while_its_stream_is_held_and_nobody_reads() {
    let bench =
        Bench { store: MemoryStore::new().with_clock(Paused(Instant::now())), ..Bench::new(Limits::new()) };
    let options = WorkerOptions::default().with_lease(60 * SECOND).with_backoff(Backoff::new(SECOND, SECOND));
    let (remote, layer, worker) = far(&bench, options);
    let chunks =
        [Step::Chunk(StreamChunk::text("hi")), Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 3)))];
    bench.provider.push(Reply::stream(chunks));
    let answer = layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
    let reserved = || async {
        let days = Calendar::utc().days_around(noon());
        bench.store.usage(&"research".into(), &days).await.unwrap().in_day
    };
    for _ in 0..20 {
        tokio::time::sleep(60 * SECOND).await;
        let in_day = reserved().await;
        assert_eq!((in_day.settled, in_day.reserved.requests), (Amount::ZERO, 1));
    }
    let extended = remote.asked() - 1;
    assert!((20..=45).contains(&extended), "{extended}");
    answer.text().await.unwrap();
    worker.shutdown(60 * SECOND).await;
    assert_eq!(reserved().await.settled, used(10, 66_000));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_while_its_lease_is_extended_is_settled_once_and_leaves_no_lease() {
    let bench =
        Bench { store: MemoryStore::new().with_clock(Paused(Instant::now())), ..Bench::new(Limits::new()) };
    let options = WorkerOptions::default().with_lease(60 * SECOND);
    let (remote, layer, worker) = far(&bench, options);
    bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 3)))]));
    let answer = layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
    let asked = remote.asked();
    // What is asked for first is done last.
    remote.fail(Fault::Slow(2 * SECOND));
    while remote.asked() == asked {
        tokio::time::sleep(SECOND / 10).await;
    }
    remote.fail(Fault::None);
    answer.text().await.unwrap();
    // Longer than any lease.
    tokio::time::sleep(300 * SECOND).await;
    let days = Calendar::utc().days_around(noon());
    let in_day = bench.store.usage(&"research".into(), &days).await.unwrap().in_day;
    assert_eq!((in_day.settled, in_day.reserved), (used(10, 66_000), Amount::ZERO));
    assert_eq!(worker.report().restored, 0);
    worker.shutdown(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_has_ended_before_its_turn_to_be_extended_comes_is_not_made_anew() {
    let bench =
        Bench { store: MemoryStore::new().with_clock(Paused(Instant::now())), ..Bench::new(Limits::new()) };
    let options = WorkerOptions::default().with_lease(60 * SECOND).with_parallel(1);
    let (remote, layer, worker) = far(&bench, options);
    let service = layer.layer(bench.provider.clone());
    let mut answers = Vec::new();
    for _ in 0..2 {
        let usage = StreamChunk::usage_only(TokenUsage::new(7, 3));
        bench.provider.push(Reply::stream([Step::Chunk(usage)]));
        answers.push(service.clone().oneshot(request()).await.unwrap());
    }
    let asked = remote.asked();
    remote.fail(Fault::Slow(2 * SECOND));
    while remote.asked() == asked {
        tokio::time::sleep(SECOND / 10).await;
    }
    remote.fail(Fault::None);
    // One of them is being extended, the other is to be.
    for answer in answers {
        answer.text().await.unwrap();
    }
    // Longer than any lease.
    tokio::time::sleep(300 * SECOND).await;
    let days = Calendar::utc().days_around(noon());
    let in_day = bench.store.usage(&"research".into(), &days).await.unwrap().in_day;
    assert_eq!((in_day.settled, in_day.reserved), (Amount::new(2, 20, NanoUsd::new(132_000)), Amount::ZERO));
    assert_eq!(worker.report().restored, 0);
    worker.shutdown(60 * SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_over_while_it_extends_a_lease_settles_it_all_the_same() {
    for is_told in [true, false] {
        let store = MemoryStore::new().with_clock(Paused(Instant::now()));
        let bench = Bench { store, ..Bench::new(Limits::new()) };
        let (remote, layer, worker) = far(&bench, WorkerOptions::default().with_lease(60 * SECOND));
        bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 3)))]));
        let answer = layer.layer(bench.provider.clone()).oneshot(request()).await.unwrap();
        let asked = remote.asked();
        remote.fail(Fault::Slow(2 * SECOND));
        while remote.asked() == asked {
            tokio::time::sleep(SECOND / 10).await;
        }
        remote.fail(Fault::None);
        answer.text().await.unwrap();
        drop(layer);
        if is_told {
            let start = Instant::now();
            let report = worker.shutdown(60 * SECOND).await;
            assert_eq!((report.settled, report.left), (1, 0));
            assert!(start.elapsed() <= 2 * SECOND, "{:?}", start.elapsed());
        } else {
            drop(worker);
            tokio::time::sleep(3 * SECOND).await;
        }
        let days = Calendar::utc().days_around(noon());
        let in_day = bench.store.usage(&"research".into(), &days).await.unwrap().in_day;
        assert_eq!((in_day.settled, in_day.reserved), (used(10, 66_000), Amount::ZERO), "{is_told}");
    }
}

// ===== lost counters, audits =====

/// Has lost one of several departments when it is told what became of a call.
#[derive(Debug, Clone)]
struct LosesOne(MemoryStore, Arc<AtomicU64>);

impl QuotaStore for LosesOne {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let mut reservation = reservation.clone();
        if self.1.fetch_add(1, Ordering::Relaxed) == 0 {
            let kept = reservation.departments.iter().filter(|it| &*it.id != "lost").cloned();
            reservation.departments = kept.collect();
        }
        let answer = self.0.reserve(&reservation);
        StoreFuture::boxed(answer)
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        StoreFuture::boxed(self.0.extend(id, departments, by))
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        StoreFuture::boxed(self.0.settle(settlement))
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        StoreFuture::boxed(self.0.settle_each(settlement))
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        StoreFuture::boxed(self.0.release(id, departments))
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        StoreFuture::boxed(self.0.usage(department, days))
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        StoreFuture::boxed(self.0.seed(department, baseline))
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        StoreFuture::boxed(self.0.adjust(adjustment))
    }
}

#[tokio::test(start_paused = true)]
async fn a_department_that_alone_has_lost_its_lease_is_charged_at_the_end_and_the_others_once() {
    let store = LosesOne(MemoryStore::new().with_clock(ManualClock::new(noon())), Arc::default());
    let (layer, worker) =
        QuotaLayer::pair(store.clone(), table(Limits::new()), prices(), WorkerOptions::default());
    let provider = Scripted::new().reply(whole(7, 3));
    let context = RequestContext::new().with_departments(["kept", "lost"]);
    let layer = layer.with_clock(ManualClock::new(noon()));
    layer.layer(provider).oneshot(request().with_context(context)).await.unwrap();
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.settled, report.left, report.restored), (1, 0, 1));
    let days = Calendar::utc().days_around(noon());
    for department in ["kept", "lost"] {
        let in_day = store.usage(&department.into(), &days).await.unwrap().in_day;
        assert_eq!((in_day.settled, in_day.reserved), (used(10, 66_000), Amount::ZERO), "{department}");
    }
}

#[derive(Debug, Clone, Default)]
struct Ledger {
    used: Used,
    asked: Arc<AtomicU64>,
    is_down: Arc<AtomicU64>,
}

impl UsageHistory for Ledger {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let ledger = self.clone();
        Box::pin(async move {
            assert_eq!(query.day.date, 20_261_123);
            ledger.asked.fetch_add(1, Ordering::Relaxed);
            if ledger.is_down.load(Ordering::Relaxed) > 0 {
                return Err("the ledger is down".into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(if &*query.department == "research" { ledger.used } else { Used::default() })
        })
    }
}

#[tokio::test(start_paused = true)]
async fn lost_counters_are_rebuilt_once_before_any_call_is_made() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000));
    let used = Used { in_day: used(9_000, 5), in_month: Amount::new(7, 20_000, NanoUsd::new(9)) };
    let ledger = Ledger { used, ..Ledger::default() };
    let bench = bench.with(|layer| layer.with_history(ledger.clone()));
    let calls: Vec<_> = (0..10).map(|_| tokio::spawn(bench.service().oneshot(request()))).collect();
    let mut granted = 0;
    for call in calls {
        granted += u64::from(call.await.unwrap().is_ok());
    }
    assert_eq!(ledger.asked.load(Ordering::Relaxed), 1);
    assert!(granted > 0 && granted == bench.provider.requests().len() as u64);
    let Standing { in_day, in_month, is_known, .. } = bench.standing("research").await;
    assert!(is_known);
    assert_eq!((in_day.settled.requests, in_month.settled.requests), (1 + granted, 7 + granted));
    assert!(in_day.settled.tokens >= 9_000 && in_month.settled.tokens >= 20_000);
}

/// Forgets everything when it is told to.
#[derive(Clone)]
struct Forgetful(Arc<Mutex<Remote>>, ManualClock);

impl Forgetful {
    fn forget(&self) {
        *self.0.lock().unwrap() = Remote::new(MemoryStore::new().with_clock(self.1.clone()));
    }

    fn now(&self) -> Remote {
        self.0.lock().unwrap().clone()
    }
}

impl QuotaStore for Forgetful {
    pass_on!([now()] reserve, extend, settle, release, usage, seed, adjust);
}

async fn in_flight_while_the_store_forgets(with_history: bool, after: Duration) -> (Amount, Amount, Report) {
    let clock = ManualClock::new(noon());
    let store =
        Forgetful(Arc::new(Mutex::new(Remote::new(MemoryStore::new().with_clock(clock.clone())))), clock);
    let limits = Limits::new().with_day_tokens(10_000);
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(limits), prices(), WorkerOptions::default());
    let mut layer = layer.with_clock(store.1.clone());
    if with_history {
        let used = Used { in_day: used(500, 5), in_month: used(600, 6) };
        layer = layer.with_history(Ledger { used, ..Ledger::default() });
    }
    let provider = Scripted::new().reply(whole(7, 3).after([Step::Gate]));
    let service = layer.layer(provider.clone());
    let held = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(SECOND).await;
    assert_eq!(layer.stats().in_flight, 1);
    store.forget();
    // Another call finds it out, and is answered.
    provider.push(whole(20, 0));
    service.clone().oneshot(request()).await.unwrap();
    tokio::time::sleep(after).await;
    let days = Calendar::utc().days_around(noon());
    let reserved = store.usage(&"research".into(), &days).await.unwrap().in_day.reserved;
    // Into the next day: it counts where it was admitted.
    store.1.advance(24 * 3600 * SECOND);
    provider.open();
    held.await.unwrap().unwrap();
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.left, report.given_up, layer.stats().in_flight), (0, 0, 0));
    let in_day = store.usage(&"research".into(), &Days::only(days[1])).await.unwrap().in_day;
    assert_eq!(in_day.reserved, Amount::ZERO);
    (reserved, in_day.settled, report)
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_held_while_its_store_forgets_is_made_anew_and_charged_once() {
    let both = Amount::new(2, 30, NanoUsd::new(126_000));
    let before = used(500, 5);
    for (with_history, expected) in [(false, both), (true, both.plus(&before))] {
        // It ends before anybody has looked after it.
        let (_, settled, report) = in_flight_while_the_store_forgets(with_history, SECOND / 2).await;
        assert_eq!((settled, report.restored), (expected, 1), "{with_history}");
    }
    // Whoever is told of the loss reserves again at once, so that others cannot use it up.
    let (reserved, settled, report) = in_flight_while_the_store_forgets(true, 6 * SECOND).await;
    assert_eq!((reserved.requests, reserved.tokens), (1, prompt() + 100));
    assert_eq!((settled, report.restored), (both.plus(&before), 1));
    // Whoever is not finds out when it extends.
    let (reserved, settled, report) = in_flight_while_the_store_forgets(false, 200 * SECOND).await;
    assert_eq!((reserved.requests, settled, report.restored), (1, both, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_left_out_of_a_past_that_is_lost_too_is_left_to_the_ledger() {
    let clock = ManualClock::new(noon());
    let store =
        Forgetful(Arc::new(Mutex::new(Remote::new(MemoryStore::new().with_clock(clock.clone())))), clock);
    let limits = Limits::new().with_day_tokens(10_000);
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(limits), prices(), WorkerOptions::default());
    let layer = layer.with_clock(store.1.clone()).with_history(Ledger::default());
    let provider = Scripted::new().reply(whole(7, 3).after([Step::Gate]));
    let service = layer.layer(provider.clone());
    let held = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(SECOND).await;
    store.forget();
    provider.push(whole(20, 0));
    service.clone().oneshot(request()).await.unwrap();
    // Nobody calls any more who would have it told again.
    store.forget();
    provider.open();
    held.await.unwrap().unwrap();
    let start = Instant::now();
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.left, report.given_up, report.restored), (0, 0, 0), "{report:?}");
    assert!(start.elapsed() < SECOND, "{:?}", start.elapsed());
}

/// A ledger that takes its time, in which calls are recorded.
#[derive(Clone)]
struct Unhurried {
    takes: Duration,
    /// Of calls that have ended, unless it is told that they are in flight.
    recorded: Amount,
}

impl UsageHistory for Unhurried {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let Self { takes, recorded } = *self;
        let recorded = if query.in_flight.is_empty() { recorded } else { Amount::ZERO };
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            Ok(Used { in_day: recorded, in_month: recorded })
        })
    }
}

fn forgetful(ledger: Unhurried) -> (Forgetful, QuotaLayer, Worker) {
    let clock = ManualClock::new(noon());
    let remote = Remote::new(MemoryStore::new().with_clock(clock.clone()));
    let store = Forgetful(Arc::new(Mutex::new(remote)), clock);
    let limits = table(Limits::new().with_day_tokens(10_000));
    let (layer, worker) = QuotaLayer::pair(store.clone(), limits, prices(), WorkerOptions::default());
    let layer = layer.with_clock(store.1.clone()).with_deadline(60 * SECOND).with_history(ledger);
    (store, layer, worker)
}

/// Two calls, each charged once.
async fn are_charged_once(store: &Forgetful, worker: Worker) {
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.left, report.given_up), (0, 0), "{report:?}");
    let days = Calendar::utc().days_around(noon());
    let in_day = store.usage(&"research".into(), &days).await.unwrap().in_day;
    assert_eq!((in_day.settled, in_day.reserved), (Amount::new(2, 20, NanoUsd::new(132_000)), Amount::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_granted_before_a_loss_and_ends_while_the_ledger_is_asked_is_charged_once() {
    let (store, layer, worker) = forgetful(Unhurried { takes: 2 * SECOND, recorded: used(10, 66_000) });
    let service = layer.layer(Scripted::new().reply(whole(7, 3)).reply(whole(7, 3)));
    store.now().store.seed(&"research".into(), &nothing()).await.unwrap();
    store.now().fail(Fault::Late(SECOND));
    let granted = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(SECOND / 2).await;
    store.forget();
    // The ledger is asked about nobody in flight, and has the call when it answers.
    service.oneshot(request()).await.unwrap();
    granted.await.unwrap().unwrap();
    are_charged_once(&store, worker).await;
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_store_is_told_of_a_past_while_it_says_that_it_knows_none_is_charged_once() {
    let (store, layer, worker) = forgetful(Unhurried { takes: 9 * SECOND / 2, recorded: used(10, 66_000) });
    let provider = Scripted::new().reply(whole(7, 3).after([Step::Gate]));
    let service = layer.layer(provider.clone());
    store.now().store.seed(&"research".into(), &nothing()).await.unwrap();
    let held = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(SECOND).await;
    store.forget();
    provider.push(whole(7, 3));
    let other = tokio::spawn(service.oneshot(request()));
    tokio::time::sleep(SECOND).await;
    // It is asked for the lease just before it is told, and its answer comes after that.
    store.now().fail(Fault::Late(3 * SECOND));
    provider.open();
    held.await.unwrap().unwrap();
    tokio::time::sleep(13 * SECOND / 4).await;
    store.now().fail(Fault::None);
    other.await.unwrap().unwrap();
    are_charged_once(&store, worker).await;
}

fn nothing() -> Baseline {
    Baseline::new(Calendar::utc().day(noon()), Amount::ZERO, Amount::ZERO)
}

/// Loses everything when a settlement comes for what was made anew, and takes none until it is mended.
#[derive(Clone)]
struct LosesAgain(Forgetful, Arc<Mutex<Loss>>);

#[derive(PartialEq)]
enum Loss {
    Not,
    /// The next settlement is told that there is no lease, the one after it loses all.
    Soon,
    Next,
    Down,
}

impl QuotaStore for LosesAgain {
    pass_on!([0] reserve, extend, release, usage, seed, adjust);

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let mut loss = self.1.lock().unwrap();
        match *loss {
            Loss::Not => return self.0.settle(settlement),
            Loss::Soon => {
                *loss = Loss::Next;
                return self.0.settle(settlement);
            }
            Loss::Next => {
                *loss = Loss::Down;
                self.0.forget();
            }
            Loss::Down => {}
        }
        StoreFuture::ready(Err(StoreError::ambiguous("no answer")))
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_made_anew_and_lost_again_is_charged_once() {
    let clock = ManualClock::new(noon());
    let remote = Remote::new(MemoryStore::new().with_clock(clock.clone()));
    let store = LosesAgain(Forgetful(Arc::new(Mutex::new(remote)), clock), Arc::new(Mutex::new(Loss::Not)));
    let limits = Limits::new().with_day_tokens(10_000);
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(limits), prices(), WorkerOptions::default());
    let used = Used { in_day: used(500, 5), in_month: used(600, 6) };
    let ledger = Ledger { used, ..Ledger::default() };
    let layer = layer.with_clock(store.0.1.clone()).with_history(ledger);
    let provider = Scripted::new().reply(whole(7, 3).after([Step::Gate]));
    let service = layer.layer(provider.clone());
    let held = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(SECOND).await;
    store.0.forget();
    provider.push(whole(20, 0));
    service.clone().oneshot(request()).await.unwrap();
    tokio::time::sleep(SECOND).await;
    *store.1.lock().unwrap() = Loss::Soon;
    provider.open();
    held.await.unwrap().unwrap();
    tokio::time::sleep(SECOND).await;
    assert!(*store.1.lock().unwrap() == Loss::Down);
    // Has the store told of a past again, without the call that is not settled.
    provider.push(whole(30, 0));
    service.clone().oneshot(request()).await.unwrap();
    *store.1.lock().unwrap() = Loss::Not;
    let report = worker.shutdown(60 * SECOND).await;
    assert_eq!((report.left, report.given_up), (0, 0), "{report:?}");
    let days = Calendar::utc().days_around(noon());
    let in_day = store.usage(&"research".into(), &days).await.unwrap().in_day;
    assert_eq!((in_day.settled.requests, in_day.settled.tokens), (1 + 2, 500 + 10 + 30));
    assert_eq!(in_day.reserved, Amount::ZERO);
}

#[tokio::test(start_paused = true)]
async fn whoever_watches_is_told_what_was_reserved_and_what_was_used() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let bench = Bench::new(Limits::new().with_day_tokens(10_000))
        .with(|layer| layer.on_settle(move |settled| told.lock().unwrap().push(*settled)));
    bench.provider.push(whole(7, 3).after([Step::Gate]));
    let call = tokio::spawn(bench.service().oneshot(request()));
    tokio::time::sleep(SECOND).await;
    assert_eq!((bench.layer.stats().in_flight, seen.lock().unwrap().len()), (1, 0));
    bench.provider.open();
    call.await.unwrap().unwrap();
    let settled = seen.lock().unwrap()[0];
    assert_eq!((settled.reserved.tokens, settled.used.tokens), (prompt() + 100, 10));
    // What was not sent is no measure of anything.
    let unsent =
        service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(Error::new(ErrorKind::Overloaded)) });
    bench.layer.layer(unsent).oneshot(request()).await.unwrap_err();
    assert_eq!((seen.lock().unwrap().len(), bench.layer.stats().in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_was_used_up_is_settled_though_whoever_watches_panics() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000))
        .with(|layer| layer.on_settle(|_| panic!("a defect of the host's")));
    bench.provider.push(whole(7, 3));
    bench.call(request()).await.unwrap();
    bench.provider.push(Reply::words(["a", "b"]));
    bench.call(request()).await.unwrap().text().await.unwrap();
    let (settled, reserved) = bench.research().await;
    assert_eq!((settled.requests, reserved), (2, Amount::ZERO));
    assert!(settled.tokens > 10, "{settled:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_settled_though_the_leaf_panics_where_it_is_dropped() {
    let bench = Bench::new(Limits::new().with_day_tokens(10_000));
    let service = bench.layer.layer(faulty(&bench.provider));
    bench.provider.push(whole(7, 3).after([Step::Stall]));
    let mut call = tokio_test::task::spawn(service.clone().oneshot(request()));
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!(bench.research().await, (used(prompt(), prompt() as i64 * 3_000), Amount::ZERO));
    bench.provider.push(Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Stall]));
    let answer = service.oneshot(request()).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    let (settled, reserved) = bench.research().await;
    assert_eq!((settled.requests, reserved), (2, Amount::ZERO));
}

#[tokio::test(start_paused = true)]
async fn while_the_ledger_is_down_unknown_departments_are_refused_in_time() {
    let bench = Bench::new(Limits::new());
    let ledger = Ledger::default();
    ledger.is_down.store(1, Ordering::Relaxed);
    let bench = bench.with(|layer| layer.with_history(ledger.clone()));
    let start = Instant::now();
    assert!(is_unavailable(&bench.refusal(request()).await));
    assert!(start.elapsed() <= Duration::from_millis(251), "{:?}", start.elapsed());
    assert!(ledger.asked.load(Ordering::Relaxed) < 10);
    ledger.is_down.store(0, Ordering::Relaxed);
    tokio::time::sleep(SECOND).await;
    bench.call(request()).await.unwrap();
}

/// A ledger that takes so long for research.
struct SlowLedger(Duration);

impl UsageHistory for SlowLedger {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let wait = if &*query.department == "research" { self.0 } else { Duration::ZERO };
        Box::pin(async move {
            tokio::time::sleep(wait).await;
            Ok(Used::default())
        })
    }
}

/// Panics when it is asked, or later.
#[derive(Clone, Default)]
struct PanickingLedger(Arc<AtomicU64>);

impl UsageHistory for PanickingLedger {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        assert!(self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(2), "a defect of the ledger's");
        Box::pin(async { panic!("a defect of the ledger's") })
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_panics_is_as_one_that_is_down() {
    let ledger = PanickingLedger::default();
    let bench = Bench::new(Limits::new()).with(|layer| layer.with_history(ledger.clone()));
    assert!(is_unavailable(&bench.refusal(request()).await));
    assert!((2..10).contains(&ledger.0.load(Ordering::Relaxed)), "{:?}", ledger.0);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_is_slow_for_one_department_refuses_no_other() {
    // After the deadline; and so short before it that the store has no time to answer.
    for (wait, store_takes) in [(60 * SECOND, 1), (Duration::from_millis(120), 50)] {
        let bench = Bench::new(Limits::new());
        let (remote, layer, worker) = far(&bench, WorkerOptions::default());
        remote.fail(Fault::Slow(Duration::from_millis(store_takes)));
        let layer = layer.with_history(SlowLedger(wait));
        let service = layer.layer(bench.provider.clone());
        let calls: Vec<_> = (0..10).map(|_| tokio::spawn(service.clone().oneshot(request()))).collect();
        for call in calls {
            assert!(is_unavailable(&call.await.unwrap().unwrap_err()), "{wait:?}");
        }
        assert!(layer.is_available(), "{wait:?}: the store has answered");
        service.oneshot(for_operations()).await.unwrap();
        assert_eq!(worker.shutdown(60 * SECOND).await.left, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_audit_finds_what_is_wrong_and_a_repair_corrects_it_by_differences() {
    let bench = Bench::new(Limits::new());
    bench.provider.push(whole(7, 3));
    bench.call(request()).await.unwrap();
    let truth = Amount::new(2, 8, NanoUsd::new(70_000));
    let ledger = Ledger { used: Used { in_day: truth, in_month: used(10, 66_000) }, ..Ledger::default() };
    let calendar = Calendar::utc();
    let look = || audit(&bench.store, &ledger, &calendar, noon(), ["research", "operations"]);
    let drifts = look().await.unwrap();
    assert_eq!(drifts.len(), 1);
    assert_eq!((drifts[0].counted, drifts[0].recorded), (used(10, 66_000), truth));
    // Settled in between: it stays.
    bench.provider.push(whole(100, 0));
    bench.call(request()).await.unwrap();
    assert_eq!(repair(&bench.store, &drifts).await.unwrap(), 1);
    assert_eq!(bench.research().await.0, Amount::new(3, 108, NanoUsd::new(370_000)));
}

#[tokio::test]
async fn a_past_that_is_not_known_here_is_charged_once_after_a_repair_too() {
    past::is_charged_once(MemoryStore::new()).await;
}

#[tokio::test]
async fn a_call_that_is_not_settled_before_its_lease_expires_is_charged_once_after_a_repair_too() {
    let clock = ManualClock::new(noon());
    late::is_charged_once(MemoryStore::new().with_clock(clock.clone()), noon(), |by| clock.advance(by)).await;
}

/// A ledger that is slow: while it is read a call is made, and is recorded.
struct Meanwhile {
    bench: Bench,
    is_settled: bool,
    calls: AtomicU64,
}

impl UsageHistory for Meanwhile {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let store = self.bench.store.clone();
        let amount = used(10, 66_000);
        let departments = Departments::one(Department::new(query.department, Limits::new()));
        let days = Calendar::utc().days_around(noon());
        let reservation =
            Reservation::new(LeaseId::mint(noon()), departments.clone(), amount, 60 * SECOND, days);
        let settlement = self.is_settled.then(|| Settlement::new(reservation.id, departments, amount));
        Box::pin(async move {
            store.reserve(&reservation).await.unwrap();
            if let Some(settlement) = settlement {
                store.settle(&settlement).await.unwrap();
            }
            let all = (0..=number).fold(amount, |all, _| all.plus(&amount));
            Ok(Used { in_day: all, in_month: all })
        })
    }
}

#[tokio::test]
async fn a_call_that_is_made_while_an_audit_reads_the_ledger_is_no_drift_to_be_repaired() {
    for is_settled in [true, false] {
        let bench = Bench::new(Limits::new());
        let store = bench.store.clone();
        bench.provider.push(whole(7, 3));
        bench.call(request()).await.unwrap();
        let ledger = Meanwhile { bench, is_settled, calls: AtomicU64::new(0) };
        let drifts = audit(&store, &ledger, &Calendar::utc(), noon(), ["research"]).await.unwrap();
        assert_eq!(repair(&store, &drifts).await.unwrap(), 0, "{drifts:?}");
        let (settled, reserved) = ledger.bench.research().await;
        assert_eq!(settled.plus(&reserved), Amount::new(2, 20, NanoUsd::new(132_000)));
    }
}

#[tokio::test]
async fn a_request_that_keeps_its_decisions_tells_who_allowed_it_and_what_is_used_up() {
    let bench = Bench::new(Limits::new().with_day_requests(2));
    let policies = table(Limits::new()).with("sales", DepartmentPolicy::default().with_models(["p/other"]));
    let providers = Providers::builder().provider("p", bench.provider.clone()).build().unwrap();
    let service = AccessLayer::new(policies).layer(bench.layer.layer(providers));
    let keeping = |context: RequestContext| {
        let mut request = ask(plain()).with_context(context);
        request.keep_decisions();
        request
    };
    let research = || keeping(RequestContext::new().with_departments(["research"]));
    for used in [1, 2] {
        let record = service.clone().oneshot(research()).await.unwrap().decision_record();
        assert_eq!(record.access, [AccessDecision::new("p/model", None, true)]);
        let quota = QuotaDecision::new("research", QuotaKind::Requests, Period::Day, 2).with_use(used - 1, 0);
        assert_eq!(record.quotas, [quota]);
    }
    let record = service.clone().oneshot(research()).await.unwrap_err().decision_record();
    assert_eq!((record.quotas.len(), record.quotas[0].current, record.quotas[0].allowed), (1, 2, false));
    let sales = keeping(RequestContext::new().with_departments(["research", "sales"]));
    let record = service.oneshot(sales).await.unwrap_err().decision_record();
    assert_eq!(record.access, [AccessDecision::new("p/model", Some("sales".into()), false)]);
    assert_eq!(record.quotas, []);
}

#[tokio::test(start_paused = true)]
async fn a_store_may_have_for_ever_to_answer() {
    let bench = Bench::new(Limits::new());
    let (_, layer, _worker) = far(&bench, WorkerOptions::default());
    let service = layer.with_deadline(Duration::MAX).layer(bench.provider.clone());
    service.oneshot(request()).await.unwrap();
}
