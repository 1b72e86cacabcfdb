//! `CacheLayer`: the same answer for the same question and the same rights, and never for others.

use bytes::Bytes;
use llm_layers::{
    CacheStatus, ChatBody, Completion, Error, ErrorClass, ErrorKind, FinishReason, KbScope, LlmRequest,
    LlmResponse, RequestContext, ResponseBody, StreamChunk, TokenUsage,
    cache::{
        Bucket, BypassReason, CacheControl, CacheKey, CacheLayer, CachePolicy, CacheScope, CacheSecret,
        CacheStore, Entry, EpochKind, EpochStore, Fetch, KbCaching, MissReason, MokaStore, NotStored,
    },
    clock::Clock,
    decision::Note,
    http::cache_status_of,
    price::{NanoUsd, Price, PriceBook, Prices, Rates},
    providers::Providers,
    testing::{Contract, Reply, Scripted, Step},
    usage::{MemorySink, Outcome, UsageLayer},
};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tower::{Layer, Service, ServiceExt, service_fn};

fn secret() -> CacheSecret {
    CacheSecret::new([7; 32])
}

fn policy() -> CachePolicy {
    CachePolicy::new(secret())
}

fn layer(policy: CachePolicy) -> CacheLayer {
    CacheLayer::new(MokaStore::new(1 << 20), policy)
}

fn ada() -> RequestContext {
    RequestContext::new().with_user_id("ada")
}

fn ask(text: &str) -> LlmRequest {
    LlmRequest::new("acme/one", ChatBody::builder().user(text).build().unwrap()).with_context(ada())
}

fn stream(text: &str) -> LlmRequest {
    LlmRequest::new("acme/one", ChatBody::builder().user(text).streaming().build().unwrap())
        .with_context(ada())
}

fn with(request: LlmRequest, change: impl FnOnce(RequestContext) -> RequestContext) -> LlmRequest {
    let context = change(request.context.clone());
    request.with_context(context)
}

fn control(control: CacheControl) -> impl FnOnce(RequestContext) -> RequestContext {
    move |context| context.with_cache_control(control)
}

async fn read<S>(service: &S, request: LlmRequest) -> (String, CacheStatus)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone,
{
    let answer = service.clone().oneshot(request).await.unwrap();
    let cache = answer.cache;
    (answer.text().await.unwrap(), cache)
}

async fn chunks<S>(service: &S, request: LlmRequest) -> Vec<Bytes>
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone,
{
    let answer = service.clone().oneshot(request).await.unwrap();
    let ResponseBody::Stream(mut stream) = answer.body else { panic!("expected a stream") };
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.unwrap();
        all.push(chunk.data().clone());
        assert_eq!(chunk.is_final(), chunk.data().is_empty());
    }
    all
}

const HIT: CacheStatus = CacheStatus::Hit { age: Duration::ZERO };

/// A clock that is put forward by hand.
#[derive(Debug, Clone)]
struct Watch(Arc<Mutex<SystemTime>>);

impl Watch {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000))))
    }

    fn forward(&self, time: Duration) {
        *self.0.lock().unwrap() += time;
    }
}

impl Clock for Watch {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_contract() {
    // Each call finds nothing: the contract looks at what passes.
    let request = LlmRequest::new("probe/model", ChatBody::builder().user("hi").build().unwrap());
    let fresh = with(request.clone().with_context(ada()), control(CacheControl::new().with_no_cache()));
    Contract::layer(layer(policy())).always_ready().with_request(fresh).check().await;
    Contract::layer(layer(policy())).always_ready().with_request(request).check().await;
}

#[tokio::test]
async fn a_hit_asks_nobody_and_does_not_wait_for_the_service_below() {
    let clock = Watch::new();
    let layer = layer(policy().with_clock(clock.clone()));
    let provider = Scripted::new().with_places(1).reply(Reply::text("first")).reply(Reply::text("second"));
    let service = layer.layer(provider.clone());
    assert_eq!(read(&service, ask("a")).await, ("first".to_owned(), CacheStatus::Miss));
    // Somebody else has the only place; nobody who is answered from here needs one.
    let mut other = provider.clone();
    other.ready().await.unwrap();
    clock.forward(Duration::from_secs(5));
    let age = Duration::from_secs(5);
    assert_eq!(read(&service, ask("a")).await, ("first".to_owned(), CacheStatus::Hit { age }));
    assert_eq!(provider.requests().len(), 1);
    drop(other);
    assert_eq!(read(&service, ask("b")).await, ("second".to_owned(), CacheStatus::Miss));
    let stats = layer.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored), (1, 2, 2));
    assert_eq!((stats.saved_input_tokens, stats.saved_output_tokens), (3, 1));
}

#[tokio::test]
async fn seed_20_a_stream_is_kept_while_it_passes_and_replayed_as_it_came() {
    let tool = StreamChunk::parse(
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]},"finish_reason":null}]}"#,
    );
    let more = StreamChunk::parse(
        r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]},"finish_reason":null}]}"#,
    );
    let thought = StreamChunk::parse(
        r#"{"choices":[{"index":0,"delta":{"reasoning_content":"Hm. "},"finish_reason":null}]}"#,
    );
    let steps = [
        StreamChunk::role(),
        thought.unwrap(),
        StreamChunk::text("Hel"),
        StreamChunk::text("lo"),
        tool.unwrap(),
        more.unwrap(),
        StreamChunk::finish(&FinishReason::Stop),
        StreamChunk::usage_only(TokenUsage::new(7, 5)),
    ];
    let layer = layer(policy().with_tool_calls());
    let provider = Scripted::new().reply(Reply::stream(steps.clone().map(Step::Chunk)));
    let service = layer.layer(provider.clone());
    let live = chunks(&service, stream("a")).await;
    let replayed = chunks(&service, stream("a")).await;
    assert_eq!((live.len(), &live), (9, &replayed));
    let sent: Vec<_> = steps.iter().map(|chunk| chunk.data().clone()).chain([Bytes::new()]).collect();
    assert_eq!(replayed, sent);

    // The same entry as a whole answer.
    let answer = service.clone().oneshot(ask("a")).await.unwrap();
    let ResponseBody::Complete(whole) = answer.body else { panic!("expected a whole answer") };
    let json: serde_json::Value = whole.json().unwrap();
    let message = &json["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["content"], "Hello");
    assert_eq!(message["reasoning_content"], "Hm. ");
    let call = serde_json::json!([{"id":"c","type":"function","function":{"name":"f","arguments":"{}"}}]);
    assert_eq!(message["tool_calls"], call);
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole.usage(), Some(&TokenUsage::new(7, 5)));
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test]
async fn a_whole_answer_is_replayed_as_a_stream() {
    let layer = layer(policy());
    let provider = Scripted::new().reply(Reply::complete(Completion::text("Hello", TokenUsage::new(7, 5))));
    let service = layer.layer(provider.clone());
    read(&service, ask("a")).await;
    let replayed = chunks(&service, stream("a")).await;
    assert_eq!(replayed.len(), 4, "what is said, why it ended, what it used up, the end");
    let answer = service.clone().oneshot(stream("a")).await.unwrap();
    assert!(answer.cache.is_hit());
    let ResponseBody::Stream(mut stream) = answer.body else { panic!("expected a stream") };
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.content(), "Hello");
    assert!(first.data().windows(18).any(|part| part == br#""role":"assistant""#));
    while stream.next().await.is_some() {}
    assert_eq!(stream.summary().usage, Some(TokenUsage::new(7, 5)));
    assert_eq!(provider.requests().len(), 1);
}

#[tokio::test]
async fn seed_15_others_are_never_given_it() {
    let kb = |acl: &str| KbScope::new("kb").with_acl_hash(acl);
    let allow = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy().with_kb_settings(allow));
    let echo = service_fn(|request: LlmRequest| async move {
        let said = format!("{:?} {:?}", request.context.user_id(), request.context.kbs());
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text(said, TokenUsage::new(1, 1))))
    });
    let service = layer.layer(echo);
    let callers = [
        ada(),
        RequestContext::new().with_user_id("eve"),
        ada().with_tenant_id("acme"),
        ada().with_kb(kb("1")),
        ada().with_kb(kb("2")),
        ada().with_kb(kb("1").with_version("2")),
        RequestContext::new(),
        RequestContext::new().with_user_id(""),
        ada().with_kb(KbScope::new("kb")),
    ];
    for round in 0..3 {
        for context in &callers {
            let (said, cache) = read(&service, ask("a").with_context(context.clone())).await;
            assert_eq!(said, format!("{:?} {:?}", context.user_id(), context.kbs()));
            let may_hit = context.user_id().is_some_and(|u| !u.is_empty())
                && context.kbs().iter().all(|kb| kb.acl_hash.is_some());
            assert_eq!(cache.is_hit(), may_hit && round > 0, "{context:?}");
            // What draws on a knowledge base is written by the worker.
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(layer.stats().hits, 12);
    assert!(worker.shutdown(Duration::from_secs(5)).await.is_written);
}

#[tokio::test]
async fn seed_17_without_a_user_nothing_is_kept_unless_the_host_says_that_it_is_public() {
    let provider = Scripted::new();
    let strict = layer(policy()).layer(provider.clone());
    let nobody = || ask("a").with_context(RequestContext::new().with_tenant_id("acme"));
    for _ in 0..2 {
        assert_eq!(read(&strict, nobody()).await.1, CacheStatus::Bypass(BypassReason::NoUser));
    }
    assert_eq!(provider.requests().len(), 2);

    let provider = Scripted::new();
    let public = layer(policy().with_public_scope()).layer(provider.clone());
    assert_eq!(read(&public, nobody()).await.1, CacheStatus::Miss);
    assert_eq!(read(&public, ask("a")).await.1, CacheStatus::Miss);
    assert!(read(&public, nobody()).await.1.is_hit());
    let elsewhere = ask("a").with_context(RequestContext::new().with_tenant_id("other"));
    assert_eq!(read(&public, elsewhere).await.1, CacheStatus::Miss);
    assert_eq!(provider.requests().len(), 3);
}

#[tokio::test]
async fn seed_16_knowledge_bases_are_asked_before_the_read_and_all_must_allow() {
    tokio::time::pause();
    let kbs = |ids: &[&str]| {
        let ids: Vec<_> = ids.iter().map(|id| KbScope::new(*id).with_acl_hash("1")).collect();
        with(ask("a"), |context| ids.into_iter().fold(context, RequestContext::with_kb))
    };
    let settings = |kb: &KbScope, _: &RequestContext| match &*kb.id {
        "open" => Fetch::Ready(KbCaching::Allowed),
        "slow" => Fetch::pending(std::future::pending()),
        "down" => Fetch::pending(async { Err("no database".into()) }),
        _ => Fetch::Ready(KbCaching::Disabled),
    };
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy().with_kb_settings(settings));
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    let unknown = CacheStatus::Bypass(BypassReason::KbUnknown);
    let disabled = CacheStatus::Bypass(BypassReason::KbDisabled);
    let no_hash = CacheStatus::Bypass(BypassReason::NoAclHash);
    for round in 0..2 {
        let begun = tokio::time::Instant::now();
        let open = if round == 0 { CacheStatus::Miss } else { HIT };
        assert_eq!(discriminant(read(&service, kbs(&["open"])).await.1), discriminant(open));
        assert_eq!(read(&service, kbs(&["open", "slow"])).await.1, unknown);
        assert_eq!(read(&service, kbs(&["down"])).await.1, unknown);
        assert_eq!(read(&service, kbs(&["closed"])).await.1, disabled);
        assert_eq!(read(&service, kbs(&["open", "closed"])).await.1, disabled);
        let bare = with(ask("a"), |context| context.with_kb(KbScope::new("open")));
        assert_eq!(read(&service, bare).await.1, no_hash);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(begun.elapsed() < Duration::from_millis(60), "the settings have a deadline");
    }
    assert_eq!(provider.requests().len(), 11);
    let _ = worker.shutdown(Duration::ZERO).await;

    // Nobody who knows: no.
    let service = self::layer(policy()).layer(provider);
    assert_eq!(read(&service, kbs(&["open"])).await.1, unknown);
}

fn discriminant(status: CacheStatus) -> std::mem::Discriminant<CacheStatus> {
    std::mem::discriminant(&status)
}

#[tokio::test(start_paused = true)]
async fn seed_16_a_setting_that_is_flipped_while_the_provider_answers_counts() {
    let allows = Arc::new(AtomicBool::new(true));
    let asked = Arc::new(AtomicUsize::new(0));
    let settings = {
        let (allows, asked) = (Arc::clone(&allows), Arc::clone(&asked));
        move |_: &KbScope, _: &RequestContext| {
            let (allows, asked) = (Arc::clone(&allows), Arc::clone(&asked));
            Fetch::pending(async move {
                asked.fetch_add(1, Ordering::SeqCst);
                Ok(if allows.load(Ordering::SeqCst) { KbCaching::Allowed } else { KbCaching::Disabled })
            })
        }
    };
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy().with_kb_settings(settings));
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    let request = || with(ask("a"), |context| context.with_kb(KbScope::new("kb").with_acl_hash("1")));

    provider.push(Reply::text("early").after([Step::Gate]));
    let call = tokio::spawn(service.clone().oneshot(request()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    allows.store(false, Ordering::SeqCst);
    provider.open();
    assert_eq!(call.await.unwrap().unwrap().cache, CacheStatus::Miss);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2, "before the read, and before the write");
    assert_eq!((layer.stats().stored, layer.stats().not_stored), (0, vec![(NotStored::KbForbids, 1)]));

    allows.store(true, Ordering::SeqCst);
    assert_eq!(read(&service, request()).await.1, CacheStatus::Miss);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(read(&service, request()).await.1.is_hit());
    // Revoked: what was kept is not given out any more.
    allows.store(false, Ordering::SeqCst);
    assert_eq!(read(&service, request()).await.1, CacheStatus::Bypass(BypassReason::KbDisabled));
    let _ = worker.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn seed_18_invalidation_takes_back_what_was_kept_and_what_is_on_its_way() {
    let allow = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy().with_kb_settings(allow));
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    let request = || {
        with(ask("a"), |context| {
            context.with_tenant_id("acme").with_kb(KbScope::new("kb").with_acl_hash("1"))
        })
    };
    let settle = || async {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
    };
    let targets = [
        (EpochKind::User, "ada"),
        (EpochKind::Tenant, "acme"),
        (EpochKind::Model, "acme/one"),
        (EpochKind::KnowledgeBase, "kb"),
    ];
    for (kind, id) in targets {
        assert_eq!(read(&service, request()).await.1, CacheStatus::Miss, "{kind:?}");
        settle().await;
        assert!(read(&service, request()).await.1.is_hit(), "{kind:?}");
        layer.invalidate(kind, "somebody else").await.unwrap();
        assert!(read(&service, request()).await.1.is_hit(), "{kind:?}");
        layer.invalidate(kind, id).await.unwrap();
    }
    provider.push(Reply::text("old").after([Step::Gate]));
    let call = tokio::spawn(service.clone().oneshot(request()));
    settle().await;
    layer.invalidate(EpochKind::KnowledgeBase, "kb").await.unwrap();
    provider.open();
    call.await.unwrap().unwrap();
    settle().await;
    assert_eq!(read(&service, request()).await.1, CacheStatus::Miss);
    assert!(worker.shutdown(Duration::from_secs(5)).await.is_written);
}

/// Shared by all who have a clone, and known for a second.
#[derive(Clone, Default)]
struct SharedEpochs(Arc<AtomicUsize>);

impl EpochStore for SharedEpochs {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        let epoch = self.0.load(Ordering::SeqCst) as u64;
        Fetch::Ready([1].into_iter().chain(buckets.iter().map(|_| epoch)).collect())
    }

    fn raise(&self, _: Bucket) -> Fetch<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Fetch::Ready(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_from_before_an_invalidation_takes_no_newer_ones_place() {
    let kb = |context: RequestContext| context.with_kb(KbScope::new("kb").with_acl_hash("1"));
    for (is_shared, has_kb) in [(false, false), (false, true), (true, false), (true, true)] {
        let allow = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
        let policy = policy().with_kb_settings(allow);
        let policy = if is_shared { policy.with_epochs(Arc::<SharedEpochs>::default()) } else { policy };
        let (layer, _worker) = CacheLayer::start(MokaStore::new(1 << 20), policy);
        let provider =
            Scripted::new().reply(Reply::text("old").after([Step::Gate])).reply(Reply::text("new"));
        let service = layer.layer(provider.clone());
        let ask = || if has_kb { with(ask("a"), kb) } else { ask("a") };
        let turn = || tokio::time::sleep(Duration::from_millis(1));
        turn().await;
        let late = tokio::spawn(service.clone().oneshot(ask()));
        turn().await;
        layer.invalidate(EpochKind::User, "ada").await.unwrap();
        turn().await;
        assert_eq!(read(&service, ask()).await, ("new".to_owned(), CacheStatus::Miss));
        turn().await;
        provider.open();
        assert_eq!(late.await.unwrap().unwrap().text().await.unwrap(), "old");
        turn().await;
        let (said, cache) = read(&service, ask()).await;
        assert!(said == "new" && cache.is_hit(), "{is_shared} {has_kb}: {said} {cache:?}");
        let stats = layer.stats();
        assert_eq!(
            (stats.stored, stats.not_stored),
            (1, vec![(NotStored::Invalidated, 1)]),
            "{is_shared} {has_kb}"
        );
    }
}

/// Fails when it is told to.
#[derive(Clone)]
struct Failing(MokaStore, Arc<AtomicBool>);

impl CacheStore for Failing {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        match self.1.load(Ordering::SeqCst) {
            true => Fetch::pending(async { Err("down".into()) }),
            false => self.0.get(key),
        }
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        self.0.put(entry)
    }
}

#[tokio::test]
async fn why_there_was_no_answer_is_told_in_answer_decisions_and_header() {
    let (clock, is_down) = (Watch::new(), Arc::<AtomicBool>::default());
    let policy = policy().with_ttl(Duration::from_secs(100)).with_clock(clock.clone());
    let layer = CacheLayer::new(Failing(MokaStore::new(1 << 20), Arc::clone(&is_down)), policy);
    let service = layer.layer(Scripted::new());
    let told = async |asked: CacheControl| {
        let mut request = with(ask("a"), control(asked));
        request.keep_decisions();
        let answer = service.clone().oneshot(request).await.unwrap();
        let record = answer.decision_record();
        assert_eq!(record.cache.status, answer.cache);
        if let Some(why) = answer.cache_miss {
            assert_eq!(record.cache.why, why.as_str());
        }
        let header = cache_status_of(&answer).unwrap();
        (answer.cache_miss, header.to_str().unwrap().to_owned())
    };
    let any = CacheControl::new;
    let miss = |why, header: &str| (Some(why), format!("llm-layers; fwd={header}"));
    assert_eq!(told(any()).await, miss(MissReason::Absent, "miss"));
    assert_eq!(told(any()).await, (None, "llm-layers; hit".to_owned()));
    assert_eq!(told(any().with_no_cache()).await, miss(MissReason::Refresh, "request; detail=refresh"));
    clock.forward(Duration::from_secs(10));
    let young = any().with_max_age(Duration::from_secs(9));
    assert_eq!(told(young).await, miss(MissReason::TooOld, "request; detail=too-old"));
    clock.forward(Duration::from_secs(100));
    assert_eq!(told(any()).await, miss(MissReason::Expired, "stale; detail=expired"));
    layer.invalidate(EpochKind::User, "ada").await.unwrap();
    assert_eq!(told(any()).await, miss(MissReason::Invalidated, "stale; detail=invalidated"));
    is_down.store(true, Ordering::SeqCst);
    assert_eq!(told(any()).await, miss(MissReason::StoreFailed, "miss; detail=store-failed"));
    assert_eq!(
        told(any().with_no_store()).await,
        (None, "llm-layers; fwd=bypass; detail=no-store".to_owned())
    );

    // Also where there is no answer at all.
    let mut request = with(ask("never asked"), control(any().with_only_if_cached()));
    request.keep_decisions();
    let decisions = request.decisions().clone();
    service.oneshot(request).await.unwrap_err();
    let Note::Cache(cache) = &decisions.notes()[0] else { panic!("{:?}", decisions.notes()) };
    assert_eq!((cache.status, cache.why), (CacheStatus::Miss, "store-failed"));
}

#[tokio::test]
async fn a_caller_can_only_narrow() {
    let clock = Watch::new();
    let layer = layer(policy().with_ttl(Duration::from_secs(100)).with_clock(clock.clone()));
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    let ask = |c: CacheControl| with(ask("a"), control(c));
    let any = CacheControl::new;

    let only = any().with_only_if_cached();
    let error = service.clone().oneshot(ask(only)).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotCached));
    assert_eq!(provider.requests().len(), 0);

    let bypass = CacheStatus::Bypass(BypassReason::NoStore);
    assert_eq!(read(&service, ask(any().with_no_store())).await.1, bypass);
    assert_eq!(read(&service, ask(any())).await.1, CacheStatus::Miss);
    assert_eq!(read(&service, ask(any().with_no_store())).await.1, bypass);
    assert!(read(&service, ask(only)).await.1.is_hit());

    clock.forward(Duration::from_secs(50));
    assert!(read(&service, ask(any().with_max_age(Duration::from_secs(50)))).await.1.is_hit());
    provider.push(Reply::text("fresh"));
    assert_eq!(read(&service, ask(any().with_no_cache())).await, ("fresh".to_owned(), CacheStatus::Miss));
    assert_eq!(read(&service, ask(any())).await, ("fresh".to_owned(), HIT));
    clock.forward(Duration::from_secs(50));
    let error = service.clone().oneshot(ask(only.with_max_age(Duration::from_secs(49)))).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotCached));

    // A longer time than the policy's is not to be had, nor a part of a second of nothing.
    let long = any().with_no_cache().with_ttl(Duration::from_secs(1_000_000));
    read(&service, ask(long)).await;
    clock.forward(Duration::from_secs(99));
    assert!(read(&service, ask(any())).await.1.is_hit());
    clock.forward(Duration::from_secs(1));
    assert_eq!(read(&service, ask(any().with_ttl(Duration::from_secs(10)))).await.1, CacheStatus::Miss);
    clock.forward(Duration::from_secs(10));
    assert_eq!(read(&service, ask(any().with_ttl(Duration::ZERO))).await.1, CacheStatus::Miss);
    assert_eq!(read(&service, ask(any())).await.1, CacheStatus::Miss);
    assert_eq!(layer.stats().not_stored, [(NotStored::NoTime, 1)]);

    let both =
        any().with_no_cache().with_ttl(Duration::from_secs(5)).and(any().with_ttl(Duration::from_secs(9)));
    assert_eq!(both, any().with_no_cache().with_ttl(Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn who_wants_no_kept_answer_is_given_none_also_where_a_knowledge_base_allows_it() {
    let allowed = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
    let (layer, _worker) = CacheLayer::start(MokaStore::new(1 << 20), policy().with_kb_settings(allowed));
    let provider = Scripted::new().reply(Reply::text("kept")).reply(Reply::text("fresh"));
    let service = layer.layer(provider);
    let ask = || with(ask("a"), |context| context.with_kb(KbScope::new("open").with_acl_hash("1")));
    // The worker has it as soon as nobody else has anything to do.
    let written = || tokio::time::sleep(Duration::from_millis(1));
    assert_eq!(read(&service, ask()).await, ("kept".to_owned(), CacheStatus::Miss));
    written().await;
    let (text, status) = read(&service, ask()).await;
    assert!(text == "kept" && status.is_hit(), "{text} {status:?}");
    let fresh = with(ask(), control(CacheControl::new().with_no_cache()));
    assert_eq!(read(&service, fresh).await, ("fresh".to_owned(), CacheStatus::Miss));
    written().await;
    let (text, status) = read(&service, ask()).await;
    assert!(text == "fresh" && status.is_hit(), "{text} {status:?}");
}

#[tokio::test]
async fn a_store_is_told_to_keep_nothing_for_longer_than_the_policy_says() {
    let store = MokaStore::new(1 << 20);
    let service =
        CacheLayer::new(store.clone(), policy().with_ttl(Duration::from_secs(100))).layer(Scripted::new());
    for (text, wanted, kept) in [("long", 1_000, 100), ("short", 10, 10)] {
        let request = with(ask(text), control(CacheControl::new().with_ttl(Duration::from_secs(wanted))));
        read(&service, request.clone()).await;
        let key = CacheKey::new(&secret(), &CacheScope::of(&request.context).unwrap(), &request);
        let Fetch::Ready(Some(entry)) = store.get(&key) else { panic!("{text} is not there") };
        assert_eq!(entry.ttl(), Duration::from_secs(kept));
    }
}

#[tokio::test]
async fn what_is_too_old_for_one_stays_for_others() {
    let clock = Watch::new();
    let layer = layer(policy().with_clock(clock.clone()));
    let provider =
        Scripted::new().reply(Reply::text("one")).reply(Reply::error(Error::new(ErrorKind::Overloaded)));
    let service = layer.layer(provider);
    read(&service, ask("a")).await;
    clock.forward(Duration::from_secs(10));
    let young = control(CacheControl::new().with_max_age(Duration::from_secs(5)));
    service.clone().oneshot(with(ask("a"), young)).await.unwrap_err();
    assert_eq!(read(&service, ask("a")).await.0, "one");
}

/// Epochs that nobody raises, the same for all who share them.
struct Epochs;

impl EpochStore for Epochs {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        Fetch::Ready(vec![1; buckets.len() + 1])
    }

    fn raise(&self, _: Bucket) -> Fetch<()> {
        Fetch::Ready(())
    }
}

#[tokio::test]
async fn what_another_has_kept_for_longer_is_given_for_no_longer_than_here() {
    let (clock, store) = (Watch::new(), MokaStore::new(1 << 20));
    let [longer, shorter] = [100, 10].map(|ttl| {
        let policy = policy()
            .with_clock(clock.clone())
            .with_epochs(Arc::new(Epochs))
            .with_ttl(Duration::from_secs(ttl));
        CacheLayer::new(store.clone(), policy).layer(Scripted::new())
    });
    assert_eq!(read(&longer, ask("a")).await.1, CacheStatus::Miss);
    clock.forward(Duration::from_secs(9));
    assert!(read(&shorter, ask("a")).await.1.is_hit());
    clock.forward(Duration::from_secs(1));
    assert!(read(&longer, ask("a")).await.1.is_hit());
    assert_eq!(read(&shorter, ask("a")).await.1, CacheStatus::Miss);
}

#[tokio::test]
async fn what_is_too_random_or_switched_off_is_left_alone() {
    let layer = layer(policy().with_max_temperature(0.5));
    let service = layer.layer(Scripted::new());
    let body = |temperature: f64| ChatBody::builder().user("a").temperature(temperature).build().unwrap();
    let ask = |body| LlmRequest::new("acme/one", body).with_context(ada());
    let random = CacheStatus::Bypass(BypassReason::Temperature);
    assert_eq!(read(&service, ask(body(0.51))).await.1, random);
    assert_eq!(read(&service, ask(body(0.5))).await.1, CacheStatus::Miss);
    assert!(read(&service, ask(body(0.5))).await.1.is_hit());
    // What providers take it to be is 1.
    assert_eq!(read(&service, ask(ChatBody::builder().user("a").build().unwrap())).await.1, random);
    // What no number holds is not known to be low.
    let endless = r#"{"messages":[{"role":"user","content":"a"}],"temperature":-1e999}"#;
    assert_eq!(read(&service, ask(ChatBody::parse(endless.to_owned()).unwrap())).await.1, random);
    layer.set_on(false);
    assert_eq!(read(&service, ask(body(0.5))).await.1, CacheStatus::Bypass(BypassReason::Off));
    layer.set_on(true);
    assert!(read(&service, ask(body(0.5))).await.1.is_hit());
    assert_eq!(layer.stats().bypasses, [(BypassReason::Off, 1), (BypassReason::Temperature, 3)]);
}

/// Each way to end that is not a good one: asked again, the provider is asked again.
#[tokio::test(start_paused = true)]
async fn only_what_came_to_a_good_end_is_kept() {
    let words = || [StreamChunk::role(), StreamChunk::text("Hel"), StreamChunk::text("lo")].map(Step::Chunk);
    let finish = |reason| Step::Chunk(StreamChunk::finish(&reason));
    let and = |steps: &[Step]| Reply::stream(words().into_iter().chain(steps.iter().cloned()));
    let whole = |json: &str| Reply::complete(Completion::parse(json.to_owned()).unwrap());
    let failure = || Error::provider(ErrorClass::Transport, "acme", "one");
    let two = StreamChunk::parse(r#"{"choices":[{"index":1,"delta":{"content":"b"}}]}"#).unwrap();
    let error = StreamChunk::parse(r#"{"error":{"message":"x"},"choices":[]}"#).unwrap();
    let calls = |member: &str, calls: &str| {
        let delta = format!(r#"{{"choices":[{{"index":0,"delta":{{"{member}":{calls}}}}}]}}"#);
        Step::Chunk(StreamChunk::parse(delta).unwrap())
    };
    let replies: Vec<(NotStored, Reply)> = vec![
        (NotStored::Incomplete, Reply::error(failure())),
        (NotStored::Incomplete, and(&[Step::Fail(failure())])),
        (NotStored::Incomplete, and(&[Step::Cut])),
        (NotStored::Incomplete, and(&[finish(FinishReason::Stop), Step::Cut])),
        (NotStored::Unfinished, and(&[])),
        (NotStored::Unfinished, and(&[finish(FinishReason::Length)])),
        (NotStored::Unfinished, and(&[finish(FinishReason::ContentFilter)])),
        (NotStored::Unfinished, and(&[finish(FinishReason::ToolCalls)])),
        (NotStored::Unfinished, and(&[finish(FinishReason::Other("abort".into()))])),
        (NotStored::Unfinished, and(&[Step::Chunk(two), finish(FinishReason::Stop)])),
        (NotStored::Empty, and(&[Step::Chunk(error), finish(FinishReason::Stop)])),
        (NotStored::Empty, Reply::stream([Step::Chunk(StreamChunk::role()), finish(FinishReason::Stop)])),
        (NotStored::Empty, Reply::text(" \n")),
        (
            NotStored::Unfinished,
            Reply::complete(Completion::tool_call("c", "f", "{}", TokenUsage::new(1, 1))),
        ),
        (
            NotStored::Unfinished,
            whole(r#"{"choices":[{"message":{"content":"x"},"finish_reason":"length"}]}"#),
        ),
        (NotStored::Unfinished, whole(r#"{"choices":[{"message":{"content":"x"}}]}"#)),
        // OpenAI ends calls of tools that were forced with `stop`, and others end all of them so.
        (
            NotStored::Unfinished,
            whole(
                r#"{"choices":[{"message":{"tool_calls":[{"id":"c","function":{"name":"f"}}]},"finish_reason":"stop"}]}"#,
            ),
        ),
        (
            NotStored::Unfinished,
            whole(r#"{"choices":[{"message":{"function_call":{"name":"f"}},"finish_reason":"stop"}]}"#),
        ),
        (
            NotStored::Unfinished,
            and(&[calls("tool_calls", r#"[{"index":0,"id":"c"}]"#), finish(FinishReason::Stop)]),
        ),
        (
            NotStored::Unfinished,
            and(&[calls("function_call", r#"{"name":"f"}"#), finish(FinishReason::Stop)]),
        ),
        (NotStored::Empty, whole(r#"{"choices":[]}"#)),
        (
            NotStored::Empty,
            whole(r#"{"error":{"code":1},"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}"#),
        ),
        (NotStored::TooLarge, Reply::text(&"x".repeat(5000))),
        (NotStored::TooLarge, Reply::words(["x".repeat(5000).as_str()])),
    ];
    for (at, (reason, reply)) in replies.into_iter().enumerate() {
        let layer = layer(policy().with_max_entry_bytes(4000));
        let provider = Scripted::new().reply(reply);
        let service = layer.layer(provider.clone());
        if let Ok(answer) = service.clone().oneshot(ask("a")).await {
            let _ = answer.text().await;
        }
        assert_eq!(layer.stats().not_stored, [(reason, 1)], "{at}");
        assert_eq!(read(&service, ask("a")).await, ("hi".to_owned(), CacheStatus::Miss), "{at}");
        assert_eq!(provider.requests().len(), 2);
        assert_eq!(layer.stats().stored, 1, "{at}: the good answer was kept");
    }

    // Where they are enabled, calls of tools are.
    let layer = layer(policy().with_tool_calls());
    let call = Completion::tool_call("c", "f", "{}", TokenUsage::new(1, 1));
    let service = layer.layer(Scripted::new().reply(Reply::complete(call)));
    read(&service, ask("a")).await;
    assert!(read(&service, ask("a")).await.1.is_hit());
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_at_any_poll_leaves_nothing_behind() {
    let steps = || {
        let words = ["a", "b", "c"].map(StreamChunk::text);
        let end = [StreamChunk::finish(&FinishReason::Stop), StreamChunk::usage_only(TokenUsage::new(3, 2))];
        let chunks = words.into_iter().chain(end);
        Reply::stream(chunks.flat_map(|chunk| [Step::Yield, Step::Chunk(chunk)])).after([Step::Yield])
    };
    let mut kept = 0;
    for polls in 0..40 {
        let layer = layer(policy());
        let provider = Scripted::new().with_places(1).reply(steps());
        let service = layer.layer(provider.clone());
        let task = async {
            let answer = service.clone().oneshot(stream("a")).await.unwrap();
            let ResponseBody::Stream(mut stream) = answer.body else { panic!("expected a stream") };
            while let Some(chunk) = stream.next().await {
                chunk.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut task = Box::pin(task);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..polls {
            if task.as_mut().poll(&mut cx).is_ready() {
                break;
            }
        }
        drop(task);
        assert_eq!((provider.alive(), provider.free()), (0, 1), "{polls}");
        let stats = layer.stats();
        assert!(stats.stored + stats.not_stored.len() as u64 <= 1, "{polls}: {stats:?}");
        if stats.stored == 1 {
            kept += 1;
            assert_eq!(read(&service, stream("a")).await.0, "abc");
        } else {
            provider.forget_replies();
            provider.push(Reply::text("anew"));
            assert_eq!(read(&service, stream("a")).await.0, "anew");
        }
    }
    assert!((1..40).contains(&kept), "{kept}: some left early, some stayed to the end");
}

#[tokio::test]
async fn an_answer_of_another_model_is_not_kept_under_this_one() {
    // A fallback below, which has given a substitute's answer.
    let below = service_fn(|_: LlmRequest| async {
        Ok::<_, Error>(LlmResponse::new("acme/two", Completion::text("substitute", TokenUsage::new(1, 1))))
    });
    let layer = layer(policy());
    let service = layer.layer(below);
    for _ in 0..2 {
        assert_eq!(read(&service, ask("a")).await.1, CacheStatus::Miss);
    }
    assert_eq!(layer.stats().not_stored, [(NotStored::NotOurs, 2)]);

    // The canonical name of a bare one is the same model.
    let providers = Providers::builder().provider("acme", Scripted::new()).build().unwrap();
    let layer = self::layer(policy());
    let service = layer.layer(providers);
    for model in ["acme/one", "one"] {
        let mut request = ask("a");
        request.model = model.into();
        assert_eq!(read(&service, request.clone()).await.1, CacheStatus::Miss);
        let hit = service.clone().oneshot(request).await.unwrap();
        assert!(hit.cache.is_hit());
        assert_eq!((hit.model.as_str(), hit.provider.as_deref()), ("acme/one", Some("acme")));
    }
}

#[tokio::test]
async fn a_hit_carries_nothing_of_the_call_that_it_comes_from() {
    let below = service_fn(|request: LlmRequest| async move {
        let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)));
        answer.extensions.insert("of the first caller");
        answer.provider_request_id = Some("req-1".into());
        Ok::<_, Error>(answer)
    });
    let service = layer(policy()).layer(below);
    let live = service.clone().oneshot(ask("a")).await.unwrap();
    assert!(live.extensions.get::<&str>().is_some() && live.provider_request_id.is_some());
    let hit = service.clone().oneshot(ask("a")).await.unwrap();
    assert!(hit.cache.is_hit() && hit.extensions.is_empty() && hit.provider_request_id.is_none());
}

#[tokio::test]
async fn seed_19_a_hit_costs_nothing_in_whatever_order_the_layers_stand() {
    let prices = || {
        let price = Price::new(Rates::per_million("1", "2").unwrap());
        Prices::new(PriceBook::of("test", [("acme/one", price)]).unwrap())
    };
    let reply = || Reply::complete(Completion::text("hi", TokenUsage::new(1000, 500)));
    let paid = NanoUsd::new(2_000_000);

    // As it should be: calls inside of the cache, hits outside.
    let (calls, hits) = (MemorySink::new(8), MemorySink::new(8));
    let inside = UsageLayer::new(calls.clone(), prices()).layer(Scripted::new().reply(reply()));
    let cache = layer(policy());
    let service = UsageLayer::hits(hits.clone(), prices()).layer(cache.layer(inside));
    for _ in 0..3 {
        read(&service, ask("a")).await;
    }
    assert_eq!((cache.stats().hits, cache.stats().misses), (2, 1));
    let calls = calls.take();
    assert_eq!((calls.len(), calls[0].cost.amount, calls[0].outcome), (1, Some(paid), Outcome::Ok));
    let hits = hits.take();
    assert_eq!(hits.len(), 2);
    for hit in hits {
        assert_eq!((hit.cost.amount, hit.usage.output_tokens), (Some(NanoUsd::ZERO), Some(0)));
        assert_eq!(hit.outcome, Outcome::CacheHit);
        let saved = hit.saved.unwrap();
        assert_eq!((saved.cost.amount, saved.usage), (Some(paid), TokenUsage::new(1000, 500)));
    }

    // Why a provider had to be asked is recorded with the call, though that layer stands within.
    let calls = MemorySink::new(8);
    let service = layer(policy()).layer(UsageLayer::new(calls.clone(), prices()).layer(Scripted::new()));
    read(&service, ask("a")).await;
    read(&service, with(ask("a"), control(CacheControl::new().with_no_cache()))).await;
    read(&service, with(ask("a"), control(CacheControl::new().with_no_store()))).await;
    service.get_ref().clone().oneshot(ask("a")).await.unwrap();
    let found: Vec<_> = calls.take().iter().map(|event| (event.cache, event.cache_miss)).collect();
    let expected = [
        (CacheStatus::Miss, Some(MissReason::Absent)),
        (CacheStatus::Miss, Some(MissReason::Refresh)),
        (CacheStatus::Bypass(BypassReason::NoStore), None),
        (CacheStatus::Unused, None),
    ];
    assert_eq!(found, expected);

    // Everything is recorded outside: still paid once.
    let all = MemorySink::new(8);
    let cache = layer(policy()).layer(Scripted::new().reply(reply()));
    let service = UsageLayer::new(all.clone(), prices()).layer(cache);
    for _ in 0..3 {
        read(&service, stream("a")).await;
    }
    let all = all.take();
    let costs: Vec<_> = all.iter().map(|event| (event.cost.amount, event.outcome)).collect();
    let nothing = (Some(NanoUsd::ZERO), Outcome::CacheHit);
    assert_eq!(costs, [(Some(paid), Outcome::Ok), nothing, nothing]);
    // Another cache outside does not make a call of a hit.
    let sink = MemorySink::new(8);
    let inner = layer(policy()).layer(Scripted::new().reply(reply()));
    let outer = layer(policy());
    let service = UsageLayer::new(sink.clone(), prices()).layer(outer.layer(inner.clone()));
    read(&inner, ask("a")).await;
    assert!(read(&service, ask("a")).await.1.is_hit());
    assert_eq!(sink.take()[0].outcome, Outcome::CacheHit);
    assert_eq!(outer.stats().not_stored, [(NotStored::NotOurs, 1)]);
}

#[tokio::test]
async fn nothing_of_a_caller_shows_in_debug() {
    let layer = layer(policy());
    let service = layer.layer(Scripted::new());
    read(&service, ask("geheim")).await;
    let request = with(ask("geheim"), |context| context.with_tenant_id("acme"));
    let future = service.clone().oneshot(request);
    let shown = format!("{layer:?} {service:?} {future:?} {:?} {:?}", layer.stats(), policy());
    let shown = shown.replace("unreadable", "");
    assert!(!shown.contains("geheim") && !shown.contains("ada"), "{shown}");
}

/// The figures of the design: what is counted here is the same on any machine.
#[test]
fn a_hit_allocates_little_and_nothing_that_grows_with_the_prompt() {
    use futures_util::FutureExt as _;

    for bytes in [200, 100_000] {
        for (streaming, most) in [(false, 2), (true, 4)] {
            let mut service = layer(policy()).layer(Scripted::new().reply(Reply::words(["a", "b"])));
            let body = ChatBody::builder().user("x".repeat(bytes)).set("stream", streaming).build().unwrap();
            let request = || LlmRequest::new("acme/one", body.clone()).with_context(ada());
            let first = service.call(request()).now_or_never().unwrap().unwrap();
            assert_eq!(first.text().now_or_never().unwrap().unwrap(), "ab");
            let mut call = |request| {
                let answer = service.call(request).now_or_never().unwrap().unwrap();
                let first = match answer.body {
                    ResponseBody::Complete(completion) => Ok(completion),
                    ResponseBody::Stream(mut chunks) => Err(chunks.next().now_or_never().unwrap()),
                };
                assert!(matches!(first, Ok(_) | Err(Some(Ok(_)))));
                answer.cache.is_hit()
            };
            assert!(call(request()));
            let next = request();
            let mut is_hit = false;
            let count = allocation_counter::measure(|| is_hit = call(next)).count_total;
            assert!(is_hit);
            assert!(count <= most, "{bytes} {streaming}: {count}");
        }
    }
}

#[tokio::test]
async fn a_time_without_end_is_a_long_time() {
    let service = layer(policy().with_ttl(Duration::MAX)).layer(Scripted::new());
    read(&service, ask("a")).await;
    assert!(read(&service, ask("a")).await.1.is_hit());
}

fn says(text: &'static str) -> Scripted {
    let provider = Scripted::new();
    (0..9).for_each(|_| provider.push(Reply::text(text)));
    provider
}

fn of(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("q").build().unwrap()).with_context(ada())
}

/// There a model has lost its provider's name.
#[tokio::test]
async fn around_each_deployment_it_tells_providers_apart() {
    let cache = layer(policy());
    let (a, b) = (says("from a"), says("from b"));
    let around = |cache: &CacheLayer| {
        let cache = cache.clone();
        Providers::builder().each(move |_| cache.clone())
    };
    let service = around(&cache)
        .provider("a", a.clone())
        .provider("a", a.clone())
        .provider("b", b.clone())
        .build()
        .unwrap();
    for is_hit in [false, true] {
        for (model, text, provider) in [("a/m", "from a", "a"), ("b/m", "from b", "b")] {
            let answer = service.clone().oneshot(of(model)).await.unwrap();
            assert_eq!((answer.cache.is_hit(), &*answer.model), (is_hit, model));
            assert_eq!(answer.provider.as_deref(), Some(provider));
            assert_eq!(answer.text().await.unwrap(), text);
        }
    }
    // Deployments of one provider share what they have; a provider that is the only one needs no name.
    assert_eq!((a.requests().len(), b.requests().len()), (1, 1));
    let only = around(&cache).provider("a", a.clone()).build().unwrap();
    assert!(read(&only, of("m")).await.1.is_hit());

    // It is no answer for who asks further out, where it would say that another model gave it.
    assert_eq!(read(&cache.layer(says("outside")), of("m")).await.0, "outside");
    assert_eq!(read(&cache.layer(says("outside")), of("a/m")).await.0, "outside");

    // All of them know a model by one name.
    cache.invalidate(EpochKind::Model, "a/m").await.unwrap();
    assert!(!read(&service, of("a/m")).await.1.is_hit());
    assert!(read(&service, of("b/m")).await.1.is_hit());
}

#[tokio::test]
async fn providers_of_the_same_name_in_different_ones_are_told_apart() {
    let cache = layer(policy());
    let inner = |text| {
        let cache = cache.clone();
        Providers::builder().each(move |_| cache.clone()).provider("a", says(text)).build().unwrap()
    };
    let service = Providers::builder().provider("x", inner("x")).provider("y", inner("y")).build().unwrap();
    for is_hit in [false, true] {
        for provider in ["x", "y"] {
            let (text, cache) = read(&service, of(&format!("{provider}/a/m"))).await;
            assert_eq!((text.as_str(), cache.is_hit()), (provider, is_hit));
        }
    }
    cache.invalidate(EpochKind::Model, "x/a/m").await.unwrap();
    assert!(!read(&service, of("x/a/m")).await.1.is_hit());
}
