//! Similar questions: found only by the same caller with the same rights, and only where the words agree too.

#[path = "support/log.rs"]
mod log;

use http::HeaderValue;
use llm_layers::{
    CacheStatus, ChatBody, Completion, Error, ErrorKind, KbScope, LlmRequest, LlmResponse, Message, Part,
    RequestContext, TokenUsage,
    cache::{
        Cache, CacheControl, CacheLayer, CachePolicy, CacheSecret, Coalescing, EpochKind, Fetch, KbCaching,
        MokaStore, Semantic,
    },
    clock::Clock,
    http::cache_status_of,
};
use log::Log;
use proptest::prelude::*;
use std::{
    io::{BufRead, BufReader, Write},
    pin::Pin,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tower::{Layer, ServiceExt, util::BoxCloneSyncService};

const ONE: &str = "What is the capital of France?";
const SIMILAR: &str = "Please, what is the capital of France";

/// A bag of words, each in one of 64 places.
fn bag(text: &str) -> Vec<f32> {
    let mut all = vec![0.0; 64];
    for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        all[word.bytes().fold(7_usize, |hash, byte| hash.wrapping_mul(31) + usize::from(byte)) % 64] += 1.0;
    }
    all
}

#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn semantic(&self) -> Semantic {
        let count = Arc::clone(&self.0);
        Semantic::new(move |text: &str| {
            count.fetch_add(1, Ordering::SeqCst);
            let vector = bag(text);
            Fetch::pending(async move {
                tokio::task::yield_now().await;
                Ok(vector)
            })
        })
        .with_threshold(0.8)
        .answering()
    }
}

fn policy(semantic: Semantic) -> CachePolicy {
    CachePolicy::new(CacheSecret::new([7; 32])).with_semantic(semantic)
}

fn layer(policy: CachePolicy) -> CacheLayer {
    CacheLayer::new(MokaStore::new(1 << 20), policy)
}

type Leaf = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// Answers with the question and who asks it, so that another's answer shows.
fn over(layer: &CacheLayer) -> Cache<Leaf> {
    layer.layer(BoxCloneSyncService::new(tower::service_fn(|request: LlmRequest| async move {
        let text = format!("{:?} {}", who(&request.context), request.body.messages().last().unwrap().text());
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text(text, TokenUsage::new(9, 1))))
    })))
}

fn who(context: &RequestContext) -> impl std::fmt::Debug {
    let kbs: Vec<_> = context.kbs().iter().map(|kb| (&*kb.id, kb.acl_hash.as_deref())).collect();
    (context.tenant_id(), context.user_id(), kbs)
}

fn ada() -> RequestContext {
    RequestContext::new().with_user_id("ada")
}

fn body(text: &str) -> ChatBody {
    ChatBody::builder().user(text).build().unwrap()
}

async fn hits(service: &Cache<Leaf>, body: ChatBody, context: RequestContext) -> bool {
    let request = LlmRequest::new("acme/one", body).with_context(context);
    service.clone().oneshot(request).await.unwrap().cache.is_hit()
}

#[tokio::test(start_paused = true)]
async fn seed_18_a_similar_question_has_the_kept_answer_and_another_has_not() {
    let counted = Counted::default();
    let layer = layer(policy(counted.semantic()));
    let service = over(&layer);
    assert!(!hits(&service, body(ONE), ada()).await);
    assert_eq!(counted.get(), 1);
    assert!(hits(&service, body(ONE), ada()).await);
    assert_eq!(counted.get(), 1, "an exact hit needs no vector");
    assert!(hits(&service, body(SIMILAR), ada()).await);
    let streamed = ChatBody::builder().user(SIMILAR).streaming().build().unwrap();
    assert!(hits(&service, streamed, ada()).await);
    assert_eq!((counted.get(), layer.stats().semantic_hits, layer.stats().hits), (3, 2, 3));
    for other in [
        "What is the capital of Spain?",
        "What is not the capital of France?",
        "What is the 2nd capital of France?",
    ] {
        assert!(!hits(&service, body(other), ada()).await, "{other}");
    }
    assert_eq!((layer.stats().guarded_off, layer.stats().semantic_hits), (3, 2));
    assert_eq!((layer.stats().misses, layer.stats().stored), (4, 4));
}

/// Nor is a call of a tool learnt, whatever it says of its end.
#[tokio::test(start_paused = true)]
async fn what_is_not_kept_is_not_learnt() {
    let layer = layer(policy(Counted::default().semantic()));
    let calls = r#"{"choices":[{"message":{"tool_calls":[{"id":"c","function":{"name":"f"}}]},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1}}"#;
    let service: Cache<Leaf> =
        layer.layer(BoxCloneSyncService::new(tower::service_fn(move |request: LlmRequest| async move {
            Ok::<_, Error>(LlmResponse::new(request.model, Completion::parse(calls).unwrap()))
        })));
    assert!(!hits(&service, body(ONE), ada()).await);
    assert!(!hits(&service, body(SIMILAR), ada()).await);
    assert_eq!((layer.stats().stored, layer.stats().semantic_hits), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_a_similar_question_says_so() {
    let layer = layer(policy(Counted::default().semantic()));
    let service = over(&layer);
    hits(&service, body(ONE), ada()).await;
    for (text, header, why) in
        [(SIMILAR, "llm-layers; hit; detail=similar", "similar"), (ONE, "llm-layers; hit", "")]
    {
        let request = LlmRequest::new("acme/one", body(text)).with_context(ada());
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (cache_status_of(&answer).unwrap(), answer.decision_record().cache.why),
            (HeaderValue::from_static(header), why)
        );
    }
}

/// Equal questions share a call, and so does nobody who only asks alike.
#[tokio::test(start_paused = true)]
async fn seed_18_with_coalescing_a_similar_question_waits_for_no_call_and_finds_its_answer_afterwards() {
    let counted = Counted::default();
    let layer = layer(policy(counted.semantic()).with_coalescing(Coalescing::new()));
    let (calls, gate) = (Arc::<AtomicUsize>::default(), Arc::new(tokio::sync::Semaphore::new(0)));
    let service = {
        let (calls, gate) = (Arc::clone(&calls), Arc::clone(&gate));
        layer.layer(BoxCloneSyncService::new(tower::service_fn(move |request: LlmRequest| {
            calls.fetch_add(1, Ordering::SeqCst);
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok::<_, Error>(LlmResponse::new(
                    request.model,
                    Completion::text("Paris", TokenUsage::new(9, 1)),
                ))
            }
        })))
    };
    let ask = |text: &str, context: RequestContext| {
        tokio::spawn(service.clone().oneshot(LlmRequest::new("acme/one", body(text)).with_context(context)))
    };
    let turn = || tokio::time::sleep(Duration::from_millis(1));
    let equal: Vec<_> = (0..5).map(|_| ask(ONE, ada())).collect();
    turn().await;
    let similar = ask(SIMILAR, ada());
    let others = ask(SIMILAR, RequestContext::new().with_user_id("eve"));
    turn().await;
    assert_eq!((calls.load(Ordering::SeqCst), layer.flights()), (3, 3), "what is not there yet is not found");
    gate.add_permits(10);
    let mut how = Vec::new();
    for call in equal {
        how.push(call.await.unwrap().unwrap().cache);
    }
    assert_eq!(how.iter().filter(|cache| **cache == CacheStatus::Miss).count(), 1);
    assert_eq!(how.iter().filter(|cache| **cache == CacheStatus::Coalesced).count(), 4);
    assert_eq!(similar.await.unwrap().unwrap().cache, CacheStatus::Miss);
    assert_eq!(others.await.unwrap().unwrap().cache, CacheStatus::Miss);
    // Now it is there, for her and for nobody else.
    let third = "what is the capital of France, please";
    assert!(ask(third, ada()).await.unwrap().unwrap().cache.is_hit());
    assert_eq!((calls.load(Ordering::SeqCst), layer.flights(), layer.stats().semantic_hits), (3, 0, 1));
    let stranger = RequestContext::new().with_user_id("mallory");
    assert_eq!(ask(third, stranger).await.unwrap().unwrap().cache, CacheStatus::Miss);
}

#[tokio::test(start_paused = true)]
async fn all_but_the_last_message_must_be_equal() {
    let layer = layer(policy(Counted::default().semantic()));
    let service = over(&layer);
    assert!(!hits(&service, body(ONE), ada()).await);
    let history = || ChatBody::builder().system("Be brief.").user("Hi").assistant("Hello!");
    let others = [
        history().user(SIMILAR).build().unwrap(),
        ChatBody::builder().user(SIMILAR).temperature(0.5).build().unwrap(),
        ChatBody::builder().user(SIMILAR).assistant("It is").build().unwrap(),
        ChatBody::builder().message(Message::new("system", SIMILAR)).build().unwrap(),
        ChatBody::builder().message(Message::user_parts([Part::text(SIMILAR)])).build().unwrap(),
        ChatBody::parse(format!(r#"{{"messages":[{{"role":"user","name":"x","content":"{SIMILAR}"}}]}}"#))
            .unwrap(),
    ];
    for other in others {
        assert!(!hits(&service, other, ada()).await);
    }
    assert!(hits(&service, history().user("What is the capital of France").build().unwrap(), ada()).await);
    let request = LlmRequest::new("acme/two", body(SIMILAR)).with_context(ada());
    assert!(!service.clone().oneshot(request).await.unwrap().cache.is_hit());
    assert_eq!(layer.stats().semantic_hits, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_embedded_for_whom_nothing_may_be_cached() {
    let counted = Counted::default();
    let layer = layer(policy(counted.semantic()));
    let service = over(&layer);
    let kb = ada().with_kb(KbScope::new("handbook"));
    let no_store = ada().with_cache_control(CacheControl::new().with_no_store());
    for context in [RequestContext::new(), kb, no_store] {
        assert!(!hits(&service, body(ONE), context).await);
    }
    layer.set_on(false);
    assert!(!hits(&service, body(ONE), ada()).await);
    layer.set_on(true);
    let parts =
        ChatBody::builder().message(Message::user_parts([Part::image_url("data:x")])).build().unwrap();
    assert!(!hits(&service, parts, ada()).await);
    assert!(!hits(&service, body(&"long ".repeat(1000)), ada()).await);
    assert_eq!((counted.get(), layer.stats().bypasses.len()), (0, 4));
}

#[tokio::test(start_paused = true)]
async fn in_the_shadow_it_counts_and_does_not_answer() {
    let semantic = Semantic::new(|text: &str| Fetch::Ready(bag(text))).with_threshold(0.8);
    let layer = layer(policy(semantic));
    let service = over(&layer);
    assert!(!hits(&service, body(ONE), ada()).await);
    assert!(!hits(&service, body(SIMILAR), ada()).await);
    let stats = layer.stats();
    assert_eq!((stats.semantic_would_hit, stats.semantic_hits, stats.hits, stats.misses), (1, 0, 0, 2));
    assert_eq!((stats.saved_input_tokens, stats.stored), (0, 2));
    let only = ada().with_cache_control(CacheControl::new().with_only_if_cached());
    let request =
        LlmRequest::new("acme/one", body("Hello, what is the capital of France")).with_context(only);
    let error = service.clone().oneshot(request).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotCached));
}

#[tokio::test(start_paused = true)]
async fn why_the_embedder_fails_is_logged_once_and_never_what_it_was_asked() {
    let (log, calls) = (Log::default(), AtomicUsize::new(0));
    let _told = tracing::subscriber::set_default(log.subscriber());
    let semantic = Semantic::new(move |text: &str| {
        let text = text.to_owned();
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Fetch::pending(std::future::pending()),
            2 | 3 => Fetch::pending(async move { Err(format!("{text:?} is too much for me").into()) }),
            _ => Fetch::Ready(bag(&text)),
        }
    });
    let service = over(&layer(policy(semantic)));
    for number in 0..6 {
        assert!(!hits(&service, body(&format!("{ONE} {number}")), ada()).await);
    }
    let log = log.text();
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!(
        lines[0].contains("in time") && lines[1].contains("it fails") && lines[2].contains("again"),
        "{log}"
    );
    assert!(!log.contains("France"), "{log}");
}

#[tokio::test(start_paused = true)]
async fn an_embedder_that_is_slow_fails_or_lies_makes_a_miss() {
    for how in 0..7 {
        let semantic = Semantic::new(move |_: &str| match how {
            0 => Fetch::pending(std::future::pending()),
            1 => Fetch::pending(async { Err("down".into()) }),
            2 => Fetch::Ready(vec![f32::NAN; 4]),
            3 => Fetch::Ready(vec![0.0; 4]),
            4 => panic!("a defect of the host's"),
            5 => Fetch::pending(async { panic!("a defect of the host's") }),
            _ => Fetch::Ready(vec![]),
        });
        let layer = layer(policy(semantic.with_threshold(0.0).answering()));
        let service = over(&layer);
        let start = tokio::time::Instant::now();
        for at in 0..20 {
            assert!(!hits(&service, body(&format!("{}{ONE}", " ".repeat(at))), ada()).await);
        }
        assert!(start.elapsed() <= Duration::from_millis(600), "{how}: {:?}", start.elapsed());
        assert_eq!((layer.stats().misses, layer.stats().stored), (20, 20));
        assert_eq!(layer.stats().embedder_failures, 5, "{how}: then it is left alone for a while");
        assert!(hits(&service, body(ONE), ada()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_of_the_embedder_than_told() {
    let counted = Counted::default();
    let count = Arc::clone(&counted.0);
    let semantic = Semantic::new(move |_: &str| {
        count.fetch_add(1, Ordering::SeqCst);
        Fetch::pending(std::future::pending())
    });
    let layer = layer(policy(semantic.with_concurrency(3).answering()));
    let service = over(&layer);
    let calls = (0..10).map(|at| hits(&service, body(&format!("{at}")), ada()).boxed_local());
    assert_eq!(futures_util::future::join_all(calls).await, [false; 10]);
    assert_eq!(counted.get(), 3);
    // One who leaves makes room.
    let left = hits(&service, body("left"), ada());
    assert!(tokio::time::timeout(Duration::from_millis(1), left).await.is_err());
    assert!(!hits(&service, body("x"), ada()).await);
    assert_eq!(counted.get(), 5);
}

trait BoxedLocal: Future + Sized {
    fn boxed_local<'a>(self) -> Pin<Box<dyn Future<Output = Self::Output> + 'a>>
    where
        Self: 'a,
    {
        Box::pin(self)
    }
}
impl<F: Future> BoxedLocal for F {}

#[derive(Debug, Clone)]
struct Watch(Arc<Mutex<SystemTime>>);

impl Clock for Watch {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_over_or_made_invalid_is_not_found() {
    let watch = Watch(Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000))));
    let layer = layer(policy(Counted::default().semantic()).with_clock(watch.clone()));
    let service = over(&layer);
    let young = CacheControl::new().with_max_age(Duration::from_secs(5));
    assert!(!hits(&service, body(ONE), ada()).await);
    *watch.0.lock().unwrap() += Duration::from_secs(10);
    assert!(
        !hits(&service, body("Hi, what is the capital of France?"), ada().with_cache_control(young)).await
    );
    assert!(hits(&service, body(SIMILAR), ada()).await);
    layer.invalidate(EpochKind::User, "ada").await.unwrap();
    assert!(!hits(&service, body(SIMILAR), ada()).await);
    assert!(hits(&service, body("Hey, what is the capital of France?"), ada()).await);
    *watch.0.lock().unwrap() += Duration::from_secs(3601);
    assert!(!hits(&service, body("Hello, what is the capital of France?"), ada()).await);
}

/// What was true when the vector was asked for may be so no more when it comes.
#[tokio::test(start_paused = true)]
async fn an_invalidation_while_the_embedder_works_holds() {
    let is_slow = Arc::new(AtomicBool::new(false));
    let slow = Arc::clone(&is_slow);
    let semantic = Semantic::new(move |text: &str| {
        let (vector, slow) = (bag(text), slow.load(Ordering::SeqCst));
        Fetch::pending(async move {
            tokio::time::sleep(Duration::from_millis(if slow { 50 } else { 0 })).await;
            Ok(vector)
        })
    });
    let layer = layer(policy(semantic.with_threshold(0.8).answering()));
    let service = over(&layer);
    assert!(!hits(&service, body(ONE), ada()).await);
    is_slow.store(true, Ordering::SeqCst);
    let asked = hits(&service, body(SIMILAR), ada());
    let invalid = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        layer.invalidate(EpochKind::User, "ada").await.unwrap();
    };
    assert!(!tokio::join!(asked, invalid).0);
    assert_eq!(layer.stats().semantic_hits, 0);
}

#[tokio::test(start_paused = true)]
async fn a_knowledge_base_that_forbids_it_in_between_is_heard() {
    let allows = Arc::new(AtomicUsize::new(usize::MAX));
    let left = Arc::clone(&allows);
    let settings = move |_: &KbScope, _: &RequestContext| {
        let is_allowed = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        Fetch::Ready(if is_allowed { KbCaching::Allowed } else { KbCaching::Disabled })
    };
    let policy = policy(Counted::default().semantic()).with_kb_settings(settings);
    let (layer, worker) = CacheLayer::start(MokaStore::new(1 << 20), policy);
    let service = over(&layer);
    let kb = |hash: &str| ada().with_kb(KbScope::new("handbook").with_acl_hash(hash));
    assert!(!hits(&service, body(ONE), kb("a")).await);
    while layer.stats().stored < 1 {
        tokio::task::yield_now().await;
    }
    assert!(hits(&service, body(SIMILAR), kb("a")).await);
    assert!(!hits(&service, body(SIMILAR), kb("b")).await);
    while layer.stats().stored < 2 {
        tokio::task::yield_now().await;
    }
    // Allowed for the exact read, forbidden for the similar one.
    allows.store(1, Ordering::SeqCst);
    assert!(!hits(&service, body("Hey, what is the capital of France?"), kb("a")).await);
    assert_eq!((layer.stats().semantic_hits, layer.stats().bypasses.len()), (1, 1));
    // Allowed for the read, and not to be kept: nobody finds it.
    allows.store(1, Ordering::SeqCst);
    assert!(!hits(&service, body("Who wrote Hamlet?"), kb("a")).await);
    while layer.stats().not_stored.is_empty() {
        tokio::task::yield_now().await;
    }
    allows.store(usize::MAX, Ordering::SeqCst);
    assert!(!hits(&service, body("Please, who wrote Hamlet?"), kb("a")).await);
    worker.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn no_more_is_remembered_than_told() {
    let layer = layer(policy(Counted::default().semantic().with_bounds(2, 1, 1 << 20)));
    let service = over(&layer);
    for text in ["Who wrote Hamlet?", "When was Rome built?", "Why is grass green?"] {
        assert!(!hits(&service, body(text), ada()).await);
    }
    assert!(!hits(&service, body("Please, who wrote Hamlet"), ada()).await, "the oldest");
    assert!(hits(&service, body("Please, why is grass green"), ada()).await);
    assert!(!hits(&service, body(ONE), RequestContext::new().with_user_id("eve")).await);
    assert!(!hits(&service, body("Hi, why is grass green"), ada()).await, "another partition");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whoever asks, by whatever rights: an answer found by likeness is one that the same scope has asked for.
    #[test]
    fn never_an_answer_across_scopes(
        calls in prop::collection::vec((0..3_usize, 0..3_usize, 0..4_usize, 0..4_usize), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let settings = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
            let policy = policy(Counted::default().semantic().with_threshold(-1.0)).with_kb_settings(settings);
            let (layer, _worker) = CacheLayer::start(MokaStore::new(1 << 20), policy);
            let service = over(&layer);
            for (tenant, user, rights, text) in calls {
                let mut context = RequestContext::new().with_user_id(["a", "b", "ab"][user]);
                if tenant > 0 {
                    context = context.with_tenant_id(["a", "b"][tenant - 1]);
                }
                if rights > 0 {
                    context = context.with_kb(KbScope::new("handbook").with_acl_hash(["x", "y", "z"][rights - 1]));
                }
                let text = [ONE, SIMILAR, "Hello, what is the capital of France", "What is the capital of the France"][text];
                let expected = format!("{:?} ", who(&context));
                let request = LlmRequest::new("acme/one", body(text)).with_context(context);
                let answer = service.clone().oneshot(request).await.unwrap().text().await.unwrap();
                assert!(answer.starts_with(&expected), "{answer} for {expected}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(layer.stats().mismatches, 0);
        });
    }
}

/// The vectors of a real model, by a process that reads texts and writes vectors.
fn real(python: &str, texts: &[String]) -> Vec<Vec<f32>> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/minilm.py");
    let mut child =
        Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let vectors = texts.iter().map(|text| {
        writeln!(input, "{}", serde_json::to_string(text).unwrap()).unwrap();
        serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()
    });
    let vectors = vectors.collect();
    drop(input);
    assert!(child.wait().unwrap().success());
    vectors
}

fn cosine(one: &[f32], other: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
}

#[tokio::test]
#[ignore = "needs a real embedder: scripts/semantic-check"]
async fn what_a_real_embedder_gets_right_is_measured() {
    let python = std::env::var("SEMANTIC_PYTHON").expect("run it by scripts/semantic-check");
    let pairs: Vec<Vec<String>> = include_str!("data/semantic-pairs.tsv")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').map(Into::into).collect())
        .collect();
    let texts: Vec<String> = pairs.iter().flat_map(|pair| pair[1..].to_vec()).collect();
    assert_eq!(texts.len(), 2 * pairs.len());
    let vectors = real(&python, &texts);
    let known: Arc<std::collections::HashMap<_, _>> = Arc::new(texts.into_iter().zip(vectors).collect());

    println!("threshold  guard            false hits  paraphrases served");
    for threshold in [0.95, 0.90, 0.80, 0.70] {
        for guard in ["none", "other words", "default"] {
            let mut counts = [(0, 0); 2];
            for pair in &pairs {
                let (kind, one, other) = (&pair[0], &pair[1], &pair[2]);
                let is_hit = if guard == "none" {
                    cosine(&known[one], &known[other]) >= threshold
                } else {
                    let known = Arc::clone(&known);
                    let semantic = Semantic::new(move |text: &str| Fetch::Ready(known[text].clone()));
                    let semantic = semantic.with_threshold(threshold).answering();
                    let semantic = if guard == "default" { semantic } else { semantic.with_other_words() };
                    let service = over(&layer(policy(semantic)));
                    assert!(!hits(&service, body(one), ada()).await);
                    hits(&service, body(other), ada()).await
                };
                if is_hit && kind != "same" && guard != "none" {
                    println!("    false, {guard}: {one} | {other}");
                }
                let (hits, all) = &mut counts[usize::from(kind == "same")];
                *hits += usize::from(is_hit);
                *all += 1;
                assert!(!(is_hit && kind != "same" && guard == "default"), "{one} | {other}");
            }
            let rate = |(hits, all): (usize, usize)| {
                format!("{hits}/{all} = {:.0} %", 100.0 * hits as f64 / all as f64)
            };
            println!("{threshold:9}  {guard:11}  {:>14}  {:>18}", rate(counts[0]), rate(counts[1]));
        }
    }
}
