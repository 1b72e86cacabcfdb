//! Stores of bytes that others share: slow, down, lying, and what two processes see of each other.

use bytes::Bytes;
use llm_layers::{
    BoxError, CacheStatus, ChatBody, Completion, Error, FinishReason, KbScope, LlmRequest, LlmResponse,
    RequestContext, StreamChunk, TokenUsage,
    cache::{
        Bucket, ByteStore, CacheControl, CacheKey, CacheLayer, CachePolicy, CacheSecret, CacheStore,
        CacheWorker, Coalescing, Entry, EpochKind, EpochStore, Fetch, KbCaching, MissReason, MokaStore,
        NotStored, SealedStore, TieredStore,
    },
    clock::Clock,
    http::cache_status_of,
    testing::{Reply, Scripted, Step},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tower::{Layer, Service, ServiceExt, service_fn};

/// Keeps bytes for as many processes as there are clones, and misbehaves as it is told.
#[derive(Clone, Default)]
struct Bytestore(Arc<Inner>);

#[derive(Default)]
struct Inner {
    kept: Mutex<HashMap<CacheKey, Bytes>>,
    epochs: Mutex<HashMap<Bucket, u64>>,
    mode: Mutex<Mode>,
    reads: AtomicUsize,
    epoch_reads: AtomicUsize,
    lies: AtomicUsize,
    lost: AtomicU64,
}

#[derive(Clone, Copy, Default, PartialEq, Debug)]
enum Mode {
    #[default]
    Good,
    Down,
    Frozen,
    /// Gives another's reply for one read in a hundred, as a connection does that has lost count.
    Lying,
    /// Changes one bit of each reply.
    Corrupt,
    /// Gives half of each reply.
    Cut,
    /// Does not do what it says it does.
    Forgetful,
}

impl Bytestore {
    fn set(&self, mode: Mode) {
        *self.0.mode.lock().unwrap() = mode;
    }

    fn mode(&self) -> Mode {
        *self.0.mode.lock().unwrap()
    }

    async fn behave(self) -> Result<Self, BoxError> {
        match self.mode() {
            Mode::Down => Err("connection refused".into()),
            Mode::Frozen => std::future::pending().await,
            _ => Ok(self),
        }
    }

    fn read(&self, key: &CacheKey) -> Option<Bytes> {
        let at = self.0.reads.fetch_add(1, Ordering::SeqCst);
        let kept = self.0.kept.lock().unwrap();
        let own = kept.get(key).cloned();
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            own.clone().map(|bytes| {
                let mut bytes = bytes.to_vec();
                change(&mut bytes);
                Bytes::from(bytes)
            })
        };
        match self.mode() {
            Mode::Lying if at % 100 == 7 => {
                let lie = kept.iter().find(|(other, _)| *other != key).map(|(_, bytes)| bytes.clone());
                self.0.lies.fetch_add(usize::from(lie.is_some()), Ordering::SeqCst);
                lie
            }
            Mode::Corrupt => changed(&|bytes| {
                let len = bytes.len();
                bytes[at * 31 % len] ^= 1 << (at % 8);
            }),
            Mode::Cut => changed(&|bytes| bytes.truncate(bytes.len() / 2)),
            _ => own,
        }
    }
}

impl ByteStore for Bytestore {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Bytes>> {
        let (store, key) = (self.clone(), *key);
        Fetch::pending(async move { Ok(store.behave().await?.read(&key)) })
    }

    fn put(&self, key: &CacheKey, value: Bytes, ttl: Duration) -> Fetch<()> {
        assert!(!ttl.is_zero(), "always with a time");
        let (store, key) = (self.clone(), *key);
        Fetch::pending(async move {
            let store = store.behave().await?;
            if store.mode() != Mode::Forgetful {
                store.0.kept.lock().unwrap().insert(key, value);
            }
            Ok(())
        })
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        Some(Arc::new(self.clone()))
    }
}

impl EpochStore for Bytestore {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        let (store, buckets) = (self.clone(), buckets.to_vec());
        Fetch::pending(async move {
            let store = store.behave().await?;
            store.0.epoch_reads.fetch_add(1, Ordering::SeqCst);
            let epochs = store.0.epochs.lock().unwrap();
            let of = buckets.iter().map(|bucket| epochs.get(bucket).copied().unwrap_or(0));
            Ok([1 + store.0.lost.load(Ordering::SeqCst)].into_iter().chain(of).collect())
        })
    }

    fn raise(&self, bucket: Bucket) -> Fetch<()> {
        let store = self.clone();
        Fetch::pending(async move {
            let store = store.behave().await?;
            *store.0.epochs.lock().unwrap().entry(bucket).or_default() += 1;
            Ok(())
        })
    }
}

fn secret() -> CacheSecret {
    CacheSecret::new([7; 32])
}

fn policy() -> CachePolicy {
    CachePolicy::new(secret())
}

/// One process among those that share `store`.
fn start(store: &Bytestore) -> (CacheLayer, CacheWorker) {
    CacheLayer::start(SealedStore::new(store.clone(), secret()), policy())
}

fn tiered(store: &Bytestore) -> (CacheLayer, CacheWorker) {
    let far = SealedStore::new(store.clone(), secret()).encrypted();
    CacheLayer::start(TieredStore::new(MokaStore::new(1 << 20), far), policy())
}

fn ask(text: &str) -> LlmRequest {
    let context = RequestContext::new().with_user_id("ada").with_tenant_id("acme");
    LlmRequest::new("acme/one", ChatBody::builder().user(text).build().unwrap()).with_context(context)
}

async fn read<S>(service: &S, request: LlmRequest) -> (String, CacheStatus)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone,
{
    let answer = service.clone().oneshot(request).await.unwrap();
    let cache = answer.cache;
    (answer.text().await.unwrap(), cache)
}

/// Says what it was asked.
fn echo()
-> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send + 'static> + Clone + Send {
    service_fn(|request: LlmRequest| async move {
        let asked = request.body.messages().last().unwrap().text().into_owned();
        let said =
            Completion::text(format!("{asked} {:?}", request.context.user_id()), TokenUsage::new(1, 1));
        Ok::<_, Error>(LlmResponse::new(request.model, said))
    })
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn seed_18_processes_share_what_one_has_kept_in_both_shapes() {
    for (tiers, encrypts) in [(false, false), (true, true)] {
        let store = Bytestore::default();
        let process = || if tiers { tiered(&store) } else { start(&store) };
        let (one, first_worker) = process();
        let (two, second_worker) = process();
        let steps = [
            StreamChunk::role(),
            StreamChunk::text("geheim"),
            StreamChunk::finish(&FinishReason::Stop),
            StreamChunk::usage_only(TokenUsage::new(3, 2)).into_final(),
        ];
        let provider = Scripted::new().reply(Reply::stream(steps.map(Step::Chunk)));
        let (one, two) = (one.layer(provider.clone()), two.layer(provider.clone()));
        assert_eq!(read(&one, ask("a")).await.1, CacheStatus::Miss);
        settle().await;
        let (said, cache) = read(&two, ask("a")).await;
        assert_eq!((said.as_str(), cache.is_hit()), ("geheim", true), "{tiers}");
        let mut streamed = ask("a");
        streamed.body = streamed.body.with("stream", true).unwrap();
        let (said, cache) = read(&two, streamed).await;
        assert_eq!((said.as_str(), cache.is_hit()), ("geheim", true), "{tiers}");
        assert_eq!(provider.requests().len(), 1);
        let reads = store.0.reads.load(Ordering::SeqCst);
        assert_eq!(reads, if tiers { 2 } else { 3 }, "the near one keeps what came from the far one");

        let kept: Vec<Bytes> = store.0.kept.lock().unwrap().values().cloned().collect();
        let shows = |bytes: &Bytes| bytes.windows(6).any(|part| part == b"geheim");
        assert_eq!(kept.iter().map(shows).collect::<Vec<_>>(), [!encrypts]);
        for worker in [first_worker, second_worker] {
            assert!(worker.shutdown(Duration::from_secs(1)).await.is_written);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_what_was_written_is_a_miss_and_what_it_is_is_counted() {
    for encrypts in [false, true] {
        for mode in [Mode::Corrupt, Mode::Cut, Mode::Forgetful, Mode::Good] {
            let store = Bytestore::default();
            let sealed = SealedStore::new(store.clone(), secret());
            let sealed = if encrypts { sealed.encrypted() } else { sealed };
            let (layer, _worker) = CacheLayer::start(sealed, policy());
            let service = layer.layer(echo());
            read(&service, ask("a")).await;
            settle().await;
            store.set(mode);
            let (mut hits, rounds) = (0, 300);
            for _ in 0..rounds {
                let (said, cache) = read(&service, ask("a")).await;
                assert_eq!(said, "a Some(\"ada\")");
                hits += usize::from(cache.is_hit());
                settle().await;
            }
            let all = if matches!(mode, Mode::Good | Mode::Forgetful) { rounds } else { 0 };
            assert_eq!(hits, all, "{mode:?} {encrypts}");
            let stats = layer.stats();
            assert_eq!((stats.unreadable, stats.store_failures), (rounds as u64 - all as u64, 0), "{mode:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_gives_anothers_reply_for_one_read_in_a_hundred_never_gives_a_wrong_answer() {
    let store = Bytestore::default();
    let (layer, worker) = start(&store);
    let service = layer.layer(echo());
    store.set(Mode::Lying);
    let (mut hits, mut asked) = (0, 0);
    for round in 0..50 {
        for at in 0..100 {
            let user = format!("user {}", at % 10);
            let context = RequestContext::new().with_user_id(user.as_str());
            let text = format!("question {}", at / 10);
            let (said, cache) = read(&service, ask(&text).with_context(context)).await;
            assert_eq!(said, format!("{text} {:?}", Some(user)), "{round}");
            hits += usize::from(cache.is_hit());
            asked += 1;
        }
        settle().await;
    }
    let lies = store.0.lies.load(Ordering::SeqCst);
    assert!(lies > 40, "it lied {lies} times");
    assert!(hits > asked * 9 / 10, "{hits} of {asked}");
    assert_eq!((layer.stats().unreadable, layer.stats().store_failures), (lies as u64, 0));
    let _ = worker.shutdown(Duration::from_secs(1)).await;
}

/// A store in memory that gives whatever entry it has.
#[derive(Clone, Default)]
struct Mixed(Arc<Mutex<Vec<Arc<Entry>>>>);

impl CacheStore for Mixed {
    fn get(&self, _: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        let entries = self.0.lock().unwrap();
        Fetch::Ready(fastrand::choice(entries.iter()).cloned())
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        self.0.lock().unwrap().push(entry);
        Fetch::Ready(())
    }
}

#[tokio::test]
async fn an_entry_of_another_key_or_scope_is_never_given_out() {
    let store = Mixed::default();
    let layer = CacheLayer::new(store.clone(), policy());
    let near = MokaStore::new(1 << 20);
    let over = CacheLayer::new(TieredStore::new(near.clone(), store), policy());
    for service in [layer.layer(echo()), over.layer(echo())] {
        // One entry in 35 is the one that is asked for: fewer would now and then be too few hits.
        for at in 0..2000 {
            let (user, text) = (format!("user {}", at % 5), format!("question {}", at % 7));
            let context = RequestContext::new().with_user_id(user.as_str());
            let (said, _) = read(&service, ask(&text).with_context(context)).await;
            assert_eq!(said, format!("{text} {:?}", Some(user)));
        }
    }
    let stats = layer.stats();
    assert!(stats.mismatches > 100 && stats.hits > 5, "{stats:?}");
    assert!(!near.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_or_frozen_costs_a_short_wait_and_then_none() {
    for mode in [Mode::Down, Mode::Frozen] {
        let store = Bytestore::default();
        let (layer, worker) = start(&store);
        let service = layer.layer(echo());
        read(&service, ask("a")).await;
        settle().await;
        store.set(mode);
        let begun = tokio::time::Instant::now();
        for _ in 0..100 {
            assert_eq!(read(&service, ask("a")).await.1, CacheStatus::Miss);
        }
        assert!(begun.elapsed() <= Duration::from_millis(5 * 51), "{mode:?}: {:?}", begun.elapsed());
        settle().await;
        store.set(Mode::Good);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(read(&service, ask("a")).await.1.is_hit(), "{mode:?}: it is asked again after a while");
        settle().await;
        let stats = layer.stats();
        assert!(stats.store_failures >= 100, "{stats:?}");
        assert_eq!((stats.stored, stats.not_stored), (1, vec![(NotStored::StoreFailed, 100)]));
        let _ = worker.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_full_costs_the_entry_and_nothing_else() {
    let store = Bytestore::default();
    let policy = policy().with_queue(2, 1 << 20);
    let (layer, worker) = CacheLayer::start(SealedStore::new(store.clone(), secret()), policy);
    let service = layer.layer(echo());
    read(&service, ask("first")).await;
    settle().await;
    // One write is begun after the other until all writers are busy and the queue is full.
    for at in 0..40 {
        store.set(Mode::Good);
        assert_eq!(read(&service, ask(&format!("{at}"))).await.1, CacheStatus::Miss);
        // Before the worker comes to it.
        store.set(Mode::Frozen);
        settle().await;
    }
    let stats = layer.stats();
    assert!(
        stats.not_stored.iter().any(|(reason, count)| *reason == NotStored::QueueFull && *count > 0),
        "{stats:?}"
    );
    let report = worker.shutdown(Duration::from_millis(100)).await;
    assert!(!report.is_written);

    // Without a worker there is nobody who writes.
    let layer = CacheLayer::new(SealedStore::new(Bytestore::default(), secret()), self::policy());
    read(&layer.layer(echo()), ask("a")).await;
    assert_eq!(layer.stats().not_stored, [(NotStored::QueueFull, 1)]);
}

#[tokio::test(start_paused = true)]
async fn another_process_hears_of_an_invalidation_within_a_second() {
    let store = Bytestore::default();
    let (one, _first) = tiered(&store);
    let (two, _second) = tiered(&store);
    let (here, there) = (one.layer(echo()), two.layer(echo()));
    read(&here, ask("a")).await;
    settle().await;
    assert!(read(&here, ask("a")).await.1.is_hit());
    assert!(read(&there, ask("a")).await.1.is_hit());
    let asked = store.0.epoch_reads.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert!(read(&there, ask("a")).await.1.is_hit());
    }
    assert_eq!(store.0.epoch_reads.load(Ordering::SeqCst), asked, "what is known is not asked for");
    one.invalidate(EpochKind::User, "ada").await.unwrap();
    tokio::time::sleep(Duration::from_millis(1001)).await;
    assert_eq!(read(&there, ask("a")).await.1, CacheStatus::Miss);
    settle().await;
    assert!(read(&here, ask("a")).await.1.is_hit(), "and what is kept since then is good here too");
    one.invalidate(EpochKind::Tenant, "acme").await.unwrap();
    assert_eq!(read(&here, ask("a")).await.1, CacheStatus::Miss, "here it counts at once");

    // Epochs that were lost do not bring anything back.
    settle().await;
    store.0.epochs.lock().unwrap().clear();
    store.0.lost.fetch_add(1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(read(&here, ask("a")).await.1, CacheStatus::Miss);
    assert_eq!(read(&there, ask("b")).await.1, CacheStatus::Miss);

    store.set(Mode::Down);
    let error = one.invalidate(EpochKind::User, "ada").await.unwrap_err();
    assert!(error.is_retryable() && !format!("{error} {error:?}").contains("ada"));
}

/// A clock that is put forward by hand.
#[derive(Debug, Clone)]
struct Watch(Arc<Mutex<SystemTime>>);

impl Watch {
    fn at(seconds: u64) -> Self {
        Self(Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds))))
    }
}

impl Clock for Watch {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// All clocks, tokio's too.
async fn pass(clocks: &[&Watch], seconds: u64) {
    let time = Duration::from_secs(seconds);
    clocks.iter().for_each(|clock| *clock.0.lock().unwrap() += time);
    tokio::time::advance(time).await;
}

fn tiered_at(store: &Bytestore, clock: &Watch) -> (CacheLayer, CacheWorker) {
    let far = SealedStore::new(store.clone(), secret());
    CacheLayer::start(TieredStore::new(MokaStore::new(1 << 20), far), policy().with_clock(clock.clone()))
}

fn control(control: CacheControl) -> LlmRequest {
    let request = ask("a");
    let context = request.context.clone().with_cache_control(control);
    request.with_context(context)
}

#[tokio::test(start_paused = true)]
async fn what_another_process_has_asked_for_anew_is_soon_new_here_too() {
    let (store, clock) = (Bytestore::default(), Watch::at(0));
    let provider = Scripted::new().reply(Reply::text("one")).reply(Reply::text("two"));
    let [(one, _first), (two, _second), (three, _third)] = [(); 3].map(|()| tiered_at(&store, &clock));
    let [one, two, three] = [one, two, three].map(|layer| layer.layer(provider.clone()));
    read(&one, ask("a")).await;
    settle().await;
    for service in [&one, &two, &three] {
        assert_eq!(read(service, ask("a")).await.0, "one");
    }
    pass(&[&clock], 10).await;
    read(&one, control(CacheControl::new().with_no_cache())).await;
    settle().await;
    // Who wants nothing old is given what others have before anybody is paid.
    let young = CacheControl::new().with_max_age(Duration::from_secs(5));
    let (said, cache) = read(&two, control(young)).await;
    assert!(said == "two" && cache.is_hit(), "{said} {cache:?}");
    assert_eq!(read(&two, ask("a")).await.0, "two", "and so is who comes after him");
    assert_eq!(read(&three, ask("a")).await.0, "one", "within a minute");
    pass(&[&clock], 60).await;
    assert_eq!(read(&three, ask("a")).await.0, "two");
    // Also where it is one's own answer that another has replaced.
    provider.push(Reply::text("three"));
    read(&three, control(CacheControl::new().with_no_cache())).await;
    settle().await;
    pass(&[&clock], 60).await;
    assert_eq!(read(&one, ask("a")).await.0, "three");
    assert_eq!(provider.requests().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_further_away_takes_no_newer_ones_place() {
    let (store, clock) = (Bytestore::default(), Watch::at(0));
    let provider = Scripted::new().reply(Reply::text("one")).reply(Reply::text("two"));
    let (layer, _worker) = tiered_at(&store, &clock);
    let service = layer.layer(provider.clone());
    read(&service, ask("a")).await;
    settle().await;
    pass(&[&clock], 10).await;
    store.set(Mode::Forgetful);
    read(&service, control(CacheControl::new().with_no_cache())).await;
    settle().await;
    pass(&[&clock], 1).await;
    let youngest = CacheControl::new().with_max_age(Duration::ZERO).with_only_if_cached();
    service.clone().oneshot(control(youngest)).await.unwrap_err();
    let (said, cache) = read(&service, ask("a")).await;
    assert!(said == "two" && cache.is_hit(), "{said} {cache:?}");
    // Nor is it the answer where what is near would do.
    let young = CacheControl::new().with_max_age(Duration::from_secs(5));
    assert_eq!(read(&service, control(young)).await.0, "two");
    assert_eq!(provider.requests().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_outlives_its_time_by_much_where_clocks_are_apart() {
    let store = Bytestore::default();
    // Half an hour ahead.
    let (ahead, here) = (Watch::at(1800), Watch::at(0));
    let [(one, _first), (two, _second)] = [&ahead, &here].map(|clock| tiered_at(&store, clock));
    let provider = Scripted::new();
    let [one, two] = [one, two].map(|layer| layer.layer(provider.clone()));
    read(&one, ask("a")).await;
    settle().await;
    pass(&[&ahead, &here], 59 * 60).await;
    assert!(read(&two, ask("a")).await.1.is_hit());
    pass(&[&ahead, &here], 60).await;
    // As Redis does, whose clock is nobody's here.
    store.0.kept.lock().unwrap().clear();
    assert_eq!(read(&two, ask("a")).await.1, CacheStatus::Miss);
}

#[tokio::test(start_paused = true)]
async fn what_is_from_the_future_is_not_believed() {
    for (seconds, is_hit) in [(59, true), (61, false)] {
        let store = Bytestore::default();
        let [(one, _first), (two, _second)] =
            [Watch::at(seconds), Watch::at(0)].map(|clock| tiered_at(&store, &clock));
        let provider = Scripted::new();
        let [one, two] = [one, two].map(|layer| layer.layer(provider.clone()));
        read(&one, ask("a")).await;
        settle().await;
        assert_eq!(read(&two, ask("a")).await.1.is_hit(), is_hit, "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_away_equal_calls_still_share_one_until_they_are_made_invalid() {
    let store = Bytestore::default();
    let far = SealedStore::new(store.clone(), secret());
    let allow = |_: &KbScope, _: &RequestContext| Fetch::Ready(KbCaching::Allowed);
    let policy = policy().with_coalescing(Coalescing::new()).with_kb_settings(allow);
    let (layer, _worker) = CacheLayer::start(TieredStore::new(MokaStore::new(1 << 20), far), policy);
    let provider = Scripted::new();
    (0..4).for_each(|_| provider.push(Reply::text("hi").after([Step::Gate])));
    let service = layer.layer(provider.clone());
    store.set(Mode::Down);
    let call = || tokio::spawn(service.clone().oneshot(ask("a")));
    let mut calls: Vec<_> = (0..5).map(|_| call()).collect();
    settle().await;
    assert_eq!((provider.requests().len(), layer.flights()), (1, 1));
    layer.invalidate(EpochKind::User, "ada").await.unwrap_err();
    calls.extend([call(), call()]);
    settle().await;
    assert_eq!((provider.requests().len(), layer.flights()), (2, 2));
    // Others may have taken back rights, and nobody here has heard of it.
    let kb = || {
        let request = ask("a");
        let context = request.context.clone().with_kb(KbScope::new("kb").with_acl_hash("1"));
        tokio::spawn(service.clone().oneshot(request.with_context(context)))
    };
    calls.extend([kb(), kb()]);
    settle().await;
    assert_eq!((provider.requests().len(), layer.flights()), (4, 2));
    (0..4).for_each(|_| provider.open());
    let mut how = Vec::new();
    for call in calls {
        how.push(call.await.unwrap().unwrap().cache);
    }
    use CacheStatus::{Coalesced, Miss};
    assert_eq!(how, [Miss, Coalesced, Coalesced, Coalesced, Coalesced, Miss, Coalesced, Miss, Miss]);
    assert_eq!(layer.stats().not_stored.iter().map(|(_, count)| count).sum::<u64>(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_draws_on_a_knowledge_base_asks_for_epochs_each_time() {
    let store = Bytestore::default();
    let allow =
        |_: &llm_layers::KbScope, _: &RequestContext| Fetch::Ready(llm_layers::cache::KbCaching::Allowed);
    let process = || {
        let far = SealedStore::new(store.clone(), secret());
        let policy = policy().with_kb_settings(allow);
        CacheLayer::start(TieredStore::new(MokaStore::new(1 << 20), far), policy)
    };
    let ((one, _first), (two, _second)) = (process(), process());
    let (here, there) = (one.layer(echo()), two.layer(echo()));
    let request = || {
        let kb = llm_layers::KbScope::new("kb").with_acl_hash("1");
        ask("a").with_context(RequestContext::new().with_user_id("ada").with_kb(kb))
    };
    read(&here, request()).await;
    settle().await;
    assert!(read(&there, request()).await.1.is_hit());
    one.invalidate(EpochKind::KnowledgeBase, "kb").await.unwrap();
    assert_eq!(read(&there, request()).await.1, CacheStatus::Miss);
}

#[tokio::test(start_paused = true)]
async fn entries_of_another_secret_or_without_the_encryption_that_is_asked_for_are_not_taken() {
    let store = Bytestore::default();
    let layer = |secret: [u8; 32], encrypts: bool| {
        let sealed = SealedStore::new(store.clone(), CacheSecret::new(secret));
        let sealed = if encrypts { sealed.encrypted() } else { sealed };
        // The same keys: it is the seal that differs.
        CacheLayer::start(sealed, policy())
    };
    let (plain, _w) = layer([1; 32], false);
    read(&plain.layer(echo()), ask("a")).await;
    settle().await;
    assert!(read(&plain.layer(echo()), ask("a")).await.1.is_hit());
    for (secret, encrypts) in [([2; 32], false), ([1; 32], true), ([2; 32], true)] {
        let (other, _w) = layer(secret, encrypts);
        let service = other.layer(echo());
        // However many there are, each is written anew: the store itself is well.
        for question in ["a", "b", "c", "d", "e", "f", "g"] {
            read(&plain.layer(echo()), ask(question)).await;
            settle().await;
            let answer = service.clone().oneshot(ask(question)).await.unwrap();
            assert_eq!((answer.cache, answer.cache_miss), (CacheStatus::Miss, Some(MissReason::Unreadable)));
            assert_eq!(cache_status_of(&answer).unwrap(), "llm-layers; fwd=miss; detail=unreadable");
            drop(answer.text().await);
            settle().await;
            assert!(read(&service, ask(question)).await.1.is_hit());
        }
        assert_eq!((other.stats().unreadable, other.stats().store_failures), (7, 0));
    }
}

/// Panics where it is told to.
#[derive(Clone)]
struct Panics {
    at: Arc<Mutex<Option<At>>>,
    kept: MokaStore,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    Get,
    GetLater,
    Put,
    PutLater,
    Evict,
    Epochs,
    EpochsLater,
    WhichEpochs,
}

impl Panics {
    fn new(at: At) -> Self {
        Self { at: Arc::new(Mutex::new(Some(at))), kept: MokaStore::new(1 << 20) }
    }

    fn fails(&self, at: At) {
        let fails = *self.at.lock().unwrap() == Some(at);
        assert!(!fails, "a defect of the host's, at {at:?}");
    }

    fn mend(&self) {
        *self.at.lock().unwrap() = None;
    }
}

impl CacheStore for Panics {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        self.fails(At::Get);
        let (this, kept) = (self.clone(), self.kept.get(key));
        match *self.at.lock().unwrap() {
            Some(At::GetLater) => Fetch::pending(async move {
                tokio::task::yield_now().await;
                this.fails(At::GetLater);
                kept.wait().await
            }),
            _ => kept,
        }
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        self.fails(At::Put);
        let this = self.clone();
        match *self.at.lock().unwrap() {
            Some(At::PutLater) => Fetch::pending(async move {
                tokio::task::yield_now().await;
                this.fails(At::PutLater);
                this.kept.put(entry).wait().await
            }),
            _ => self.kept.put(entry),
        }
    }

    fn evict(&self, key: &CacheKey) -> bool {
        self.fails(At::Evict);
        self.kept.evict(key)
    }

    fn epochs(&self) -> Option<Arc<dyn EpochStore>> {
        self.fails(At::WhichEpochs);
        Some(Arc::new(self.clone()))
    }
}

impl EpochStore for Panics {
    fn read(&self, buckets: &[Bucket]) -> Fetch<Vec<u64>> {
        self.fails(At::Epochs);
        let (this, count) = (self.clone(), buckets.len());
        Fetch::pending(async move {
            this.fails(At::EpochsLater);
            Ok(vec![1; count + 1])
        })
    }

    fn raise(&self, _: Bucket) -> Fetch<()> {
        self.fails(At::Epochs);
        let this = self.clone();
        Fetch::pending(async move {
            this.fails(At::EpochsLater);
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_breaks_no_call_and_no_worker() {
    for at in [At::Get, At::GetLater, At::Put, At::PutLater, At::Evict, At::Epochs, At::EpochsLater] {
        for coalesces in [false, true] {
            for streams in [false, true] {
                let store = Panics::new(at);
                let policy = match coalesces {
                    true => policy().with_coalescing(Coalescing::new()),
                    false => policy(),
                };
                let (layer, worker) =
                    CacheLayer::start(store.clone(), policy.with_ttl(Duration::from_secs(60)));
                let reply = || if streams { Reply::words(["hi"]) } else { Reply::text("hi") };
                let provider = Scripted::new();
                (0..9).for_each(|_| provider.push(reply()));
                let service = layer.layer(provider.clone());
                for text in ["a", "b", "a"] {
                    assert_eq!(read(&service, ask(text)).await.0, "hi", "{at:?}");
                    settle().await;
                }
                let stats = layer.stats();
                assert_eq!(stats.store_failures > 0, at != At::Evict, "{at:?}");
                let epochs_fail = matches!(at, At::Epochs | At::EpochsLater);
                assert_eq!(layer.invalidate(EpochKind::User, "eve").await.is_err(), epochs_fail);
                if matches!(at, At::Put | At::PutLater) {
                    assert_eq!(stats.not_stored, [(NotStored::StoreFailed, 3)], "{at:?}");
                }

                // It is mended, and kept is what comes from now on.
                store.mend();
                tokio::time::advance(Duration::from_secs(2)).await;
                read(&service, ask("c")).await;
                settle().await;
                assert!(read(&service, ask("c")).await.1.is_hit(), "{at:?}");
                assert!(worker.shutdown(Duration::from_secs(1)).await.is_written);
            }
        }
    }
}

#[tokio::test]
async fn nothing_is_found_in_a_store_whose_epochs_nobody_knows_and_no_call_breaks() {
    let store = Panics::new(At::WhichEpochs);
    let layer = CacheLayer::new(store.clone(), policy());
    let service = layer.layer(echo());
    for _ in 0..2 {
        assert_eq!(read(&service, ask("a")).await.1, CacheStatus::Miss);
    }
    assert_eq!(layer.stats().store_failures, 2);
    layer.invalidate(EpochKind::User, "ada").await.unwrap_err();
}

/// What is older than its time is taken out first.
#[tokio::test]
async fn a_store_that_panics_when_it_is_to_forget_breaks_no_call() {
    let store = Panics::new(At::Evict);
    let (layer, _worker) = CacheLayer::start(store, policy().with_epochs(Arc::new(Bytestore::default())));
    let service = layer.layer(echo());
    read(&service, ask("a")).await;
    layer.invalidate(EpochKind::User, "ada").await.unwrap();
    for _ in 0..2 {
        assert_eq!(read(&service, ask("a")).await.1, CacheStatus::Miss);
        layer.invalidate(EpochKind::User, "ada").await.unwrap();
    }
}

#[tokio::test]
async fn without_a_worker_a_store_that_panics_breaks_no_call_either() {
    let layer = CacheLayer::new(Panics::new(At::Put), policy());
    let service = layer.layer(echo());
    read(&service, ask("a")).await;
    assert_eq!(layer.stats().not_stored, [(NotStored::StoreFailed, 1)]);
    assert_eq!(layer.stats().store_failures, 1);
}

#[tokio::test]
async fn what_the_far_store_has_is_given_out_though_the_near_one_panics_when_it_keeps_it() {
    let (far, epochs) = (MokaStore::new(1 << 20), Arc::new(Bytestore::default()));
    let policy = || policy().with_epochs(Arc::<Bytestore>::clone(&epochs));
    let (filling, _worker) = CacheLayer::start(far.clone(), policy());
    read(&filling.layer(echo()), ask("a")).await;
    let (layer, _worker) = CacheLayer::start(TieredStore::new(Panics::new(At::Put), far), policy());
    assert!(read(&layer.layer(echo()), ask("a")).await.1.is_hit());
}

#[tokio::test]
async fn settings_that_panic_mean_no() {
    let calls = [false, true].map(|later| {
        move |_: &KbScope, _: &RequestContext| match later {
            false => panic!("a defect of the host's"),
            true => Fetch::<KbCaching>::pending(async { panic!("a defect of the host's") }),
        }
    });
    for settings in calls {
        let layer = CacheLayer::new(MokaStore::new(1 << 20), policy().with_kb_settings(settings));
        let context =
            RequestContext::new().with_user_id("ada").with_kb(KbScope::new("kb").with_acl_hash("1"));
        let (_, cache) = read(&layer.layer(echo()), ask("a").with_context(context)).await;
        assert!(matches!(cache, CacheStatus::Bypass(_)), "{cache:?}");
    }
}
