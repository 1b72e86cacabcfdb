//! `RedisBytes`: what a cache shares by a real Redis, alone and as a cluster.

#[path = "support/redis.rs"]
mod redis_server;

use bytes::Bytes;
use llm_layers::{
    CacheStatus, ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    cache::{
        Bucket, ByteStore, CacheKey, CacheLayer, CachePolicy, CacheSecret, CacheWorker, EpochKind,
        EpochStore, Fetch, MokaStore, RedisBytes, SealedStore, Semantic, TieredStore,
    },
    store::{Redis, RedisOptions},
};
use redis_server::{Mode, Proxy, RedisCluster, RedisServer};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt, service_fn};

const SECRET: [u8; 32] = [7; 32];

fn redis(url: &str) -> Redis {
    Redis::new(url, RedisOptions::default()).unwrap()
}

fn policy() -> CachePolicy {
    // A machine that tests run on is slower than one in earnest.
    CachePolicy::new(CacheSecret::new(SECRET)).with_read_deadline(Duration::from_secs(2))
}

/// One process of those that share a cache.
fn process(redis: &Redis, tiers: bool) -> (CacheLayer, CacheWorker) {
    let far = SealedStore::new(RedisBytes::new(redis, "c"), CacheSecret::new(SECRET));
    match tiers {
        true => CacheLayer::start(TieredStore::new(MokaStore::new(1 << 20), far), policy()),
        false => CacheLayer::start(far, policy()),
    }
}

fn ask(user: &str, text: &str) -> LlmRequest {
    let context = RequestContext::new().with_user_id(user);
    LlmRequest::new("acme/one", ChatBody::builder().user(text).build().unwrap()).with_context(context)
}

#[derive(Clone, Default)]
struct Calls(Arc<AtomicUsize>);

impl Calls {
    fn leaf(
        &self,
    ) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send + 'static>
    + Clone
    + Send
    + use<> {
        let calls = self.clone();
        service_fn(move |request: LlmRequest| {
            calls.0.fetch_add(1, Ordering::SeqCst);
            let asked = request.body.messages().last().unwrap().text().into_owned();
            let said = format!("{asked} {:?}", request.context.user_id());
            let answer = Completion::text(said, TokenUsage::new(1, 1));
            async move { Ok::<_, Error>(LlmResponse::new(request.model, answer)) }
        })
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn read<S>(service: &S, request: LlmRequest) -> (String, CacheStatus)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone,
{
    let answer = service.clone().oneshot(request).await.unwrap();
    let cache = answer.cache;
    (answer.text().await.unwrap(), cache)
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

async fn shares(redis: &Redis) {
    for tiers in [false, true] {
        let calls = Calls::default();
        let ((one, first), (two, second)) = (process(redis, tiers), process(redis, tiers));
        let (here, there) = (one.layer(calls.leaf()), two.layer(calls.leaf()));
        let before = calls.count();
        for at in 0..30 {
            let text = format!("{tiers} {at}");
            assert_eq!(read(&here, ask("ada", &text)).await.1, CacheStatus::Miss);
        }
        until("all is written", || one.stats().stored == 30).await;
        for at in 0..30 {
            let text = format!("{tiers} {at}");
            let (said, cache) = read(&there, ask("ada", &text)).await;
            assert_eq!((said, cache.is_hit()), (format!("{text} Some(\"ada\")"), true));
            assert_eq!(read(&there, ask("eve", &text)).await.1, CacheStatus::Miss);
        }
        assert_eq!(calls.count() - before, 60);
        one.invalidate(EpochKind::User, "ada").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1050)).await;
        assert_eq!(read(&there, ask("ada", &format!("{tiers} 0"))).await.1, CacheStatus::Miss);
        assert_eq!(read(&here, ask("ada", &format!("{tiers} 1"))).await.1, CacheStatus::Miss);
        assert!(read(&there, ask("eve", &format!("{tiers} 1"))).await.1.is_hit());
        for worker in [first, second] {
            assert!(worker.shutdown(Duration::from_secs(5)).await.is_written);
        }
    }
}

#[tokio::test]
async fn seed_18_processes_share_entries_and_epochs_by_one_server() {
    let Some(server) = RedisServer::start("seed_18_processes_share_entries_by_one_server") else { return };
    shares(&redis(&server.url())).await;
}

#[tokio::test]
async fn seed_18_processes_share_entries_and_epochs_by_a_cluster() {
    let Some(cluster) = RedisCluster::start("seed_18_processes_share_entries_by_a_cluster") else { return };
    shares(&Redis::cluster(cluster.urls(), RedisOptions::default()).unwrap()).await;
    let sizes: Vec<usize> =
        cluster.nodes.iter().map(|node| node.ask(&["DBSIZE"]).trim().parse().unwrap()).collect();
    assert!(sizes.iter().all(|size| *size > 5), "entries are spread: {sizes:?}");
}

#[tokio::test]
async fn what_is_kept_has_a_time_and_any_bytes_come_back() {
    let Some(server) = RedisServer::start("what_is_kept_has_a_time") else { return };
    let store = RedisBytes::new(&redis(&server.url()), "c");
    let key = |at: u8| CacheKey::from_bytes([at; 32]);
    assert_eq!(store.get(&key(0)).wait().await.unwrap(), None);
    let all: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for (at, bytes) in [&b""[..], b"\r\n$-1\r\n", &all].into_iter().enumerate() {
        let key = key(u8::try_from(at).unwrap());
        store.put(&key, Bytes::copy_from_slice(bytes), Duration::from_secs(100)).wait().await.unwrap();
        assert_eq!(store.get(&key).wait().await.unwrap().as_deref(), Some(bytes));
    }
    for name in server.ask(&["KEYS", "c:e:*"]).lines() {
        let left: i64 = server.ask(&["PTTL", name]).trim().parse().unwrap();
        assert!((90_000..=100_000).contains(&left), "{left}");
    }
    for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        store.put(&key(9), Bytes::from_static(b"x"), ttl).wait().await.unwrap();
    }
    assert!(server.ask(&["PTTL", &format!("c:e:{}", key(9))]).trim().parse::<i64>().unwrap() > 0);
}

/// Vectors are of a process; what they lead to is in Redis, checked as any other entry.
#[cfg(feature = "semantic")]
#[tokio::test]
async fn seed_18_similar_questions_find_what_is_kept_in_redis_until_it_is_gone_or_made_invalid() {
    let Some(server) = RedisServer::start("cache_redis: semantic") else { return };
    let redis = redis(&server.url());
    let process = || {
        let embedder = |text: &str| {
            let mut bag = vec![0.0_f32; 64];
            for word in
                text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
            {
                bag[word.bytes().fold(7_usize, |sum, byte| sum * 31 % 8191 + usize::from(byte)) % 64] += 1.0;
            }
            Fetch::pending(async move { Ok(bag) })
        };
        let semantic = Semantic::new(embedder).with_threshold(0.8).answering();
        let policy = policy().with_semantic(semantic).with_epoch_max_age(Duration::ZERO);
        CacheLayer::start(SealedStore::new(RedisBytes::new(&redis, "s"), CacheSecret::new(SECRET)), policy)
    };
    let ((here, worker), (there, other)) = (process(), process());
    let calls = Calls::default();
    let (service, elsewhere) = (here.layer(calls.leaf()), there.layer(calls.leaf()));
    const ONE: &str = "What is the capital of France?";
    const SIMILAR: &str = "Please, what is the capital of France";
    assert_eq!(read(&service, ask("ada", ONE)).await.1, CacheStatus::Miss);
    until("it is kept", || here.stats().stored == 1).await;
    let (text, status) = read(&service, ask("ada", SIMILAR)).await;
    assert!(status.is_hit() && text.starts_with(ONE), "{text}");
    assert_eq!(here.stats().semantic_hits, 1);
    // Not for others, not for another question, and not where nobody has asked it.
    assert_eq!(read(&service, ask("eve", SIMILAR)).await.1, CacheStatus::Miss);
    assert_eq!(read(&service, ask("ada", "What is the capital of Spain?")).await.1, CacheStatus::Miss);
    assert!(read(&elsewhere, ask("ada", ONE)).await.1.is_hit(), "the same one is found by its key");
    assert_eq!(
        read(&elsewhere, ask("ada", "what is the capital of France, please")).await.1,
        CacheStatus::Miss
    );
    // Made invalid by another process.
    there.invalidate(EpochKind::User, "ada").await.unwrap();
    assert_eq!(read(&service, ask("ada", SIMILAR)).await.1, CacheStatus::Miss);
    until("it is kept again", || here.stats().stored == 4).await;
    // Gone, as if it had been evicted.
    server.ask(&["FLUSHALL"]);
    assert_eq!(read(&service, ask("ada", ONE)).await.1, CacheStatus::Miss);
    assert_eq!(here.stats().mismatches, 0);
    drop((service, elsewhere));
    assert!(worker.shutdown(Duration::from_secs(5)).await.is_written);
    assert!(other.shutdown(Duration::from_secs(5)).await.is_written);
}

#[tokio::test]
async fn epochs_have_a_number_that_changes_when_they_are_lost() {
    let Some(server) = RedisServer::start("epochs_have_a_number") else { return };
    let store = RedisBytes::new(&redis(&server.url()), "c");
    let buckets = [Bucket::of(EpochKind::User, "ada"), Bucket::of(EpochKind::KnowledgeBase, "ada")];
    let first = store.read(&buckets).wait().await.unwrap();
    assert_eq!(first[1..], [0, 0]);
    store.raise(buckets[1]).wait().await.unwrap();
    assert_eq!(store.read(&buckets).wait().await.unwrap(), [first[0], 0, 1]);
    server.ask(&["FLUSHALL"]);
    let lost = store.read(&buckets).wait().await.unwrap();
    assert_eq!(lost[1..], [0, 0]);
    assert_ne!(first[0], lost[0]);
    // Something else under that name is no epochs.
    server.ask(&["DEL", "c:epochs"]);
    server.ask(&["SET", "c:epochs", "x"]);
    store.read(&buckets).wait().await.unwrap_err();
}

#[tokio::test]
async fn a_server_that_is_frozen_or_gone_is_a_miss_after_a_short_wait() {
    let Some(mut server) = RedisServer::start("a_server_that_is_frozen_or_gone_is_a_miss") else { return };
    let calls = Calls::default();
    let far = SealedStore::new(RedisBytes::new(&redis(&server.url()), "c"), CacheSecret::new(SECRET));
    let policy = CachePolicy::new(CacheSecret::new(SECRET));
    let (layer, worker) = CacheLayer::start(far, policy.with_read_deadline(Duration::from_millis(100)));
    let service = layer.layer(calls.leaf());
    let is_hit = || async { read(&service, ask("ada", "q")).await.1.is_hit() };
    for _ in 0..50 {
        if is_hit().await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(is_hit().await);
    for kill in [false, true] {
        if kill {
            server.kill()
        } else {
            server.freeze()
        }
        let begun = Instant::now();
        for _ in 0..50 {
            assert!(!is_hit().await);
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{kill}: {:?}", begun.elapsed());
        if kill {
            server.restart()
        } else {
            server.thaw()
        }
        let mut tries = 0;
        while !is_hit().await {
            tokio::time::sleep(Duration::from_millis(100)).await;
            tries += 1;
            assert!(tries < 100, "it is used again when it is back");
        }
    }
    let _ = worker.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn replies_that_are_lost_on_the_way_never_make_a_wrong_answer() {
    let Some(server) = RedisServer::start("replies_that_are_lost_on_the_way") else { return };
    let proxy = Proxy::start(server.port());
    let calls = Calls::default();
    let (layer, worker) = process(&redis(&proxy.url()), false);
    let service = layer.layer(calls.leaf());
    let mut round = 0;
    // After a few failures the store is left alone for a moment: it takes some time to have both.
    while round < 40 || layer.stats().hits <= 100 {
        assert!(round < 1000, "{:?}", layer.stats());
        round += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
        proxy.set(if round % 4 == 3 { Mode::CutEvery(5) } else { Mode::Pass });
        let asked = (0..20).map(|at| {
            let (user, text) = (format!("user {}", at % 4), format!("question {}", at % 5));
            let service = service.clone();
            tokio::spawn(async move {
                let said = read(&service, ask(&user, &text)).await.0;
                assert_eq!(said, format!("{text} {:?}", Some(user)));
            })
        });
        for asked in asked.collect::<Vec<_>>() {
            asked.await.unwrap();
        }
    }
    let stats = layer.stats();
    assert!(stats.store_failures > 0 && stats.mismatches == 0, "{stats:?}");
    let _ = worker.shutdown(Duration::from_secs(5)).await;
}
