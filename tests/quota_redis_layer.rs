//! Calls under quotas that are counted in a real Redis, while it is killed, frozen or emptied under load.

#[path = "quota/damaged.rs"]
mod damaged;
#[path = "quota/past.rs"]
mod past;
#[path = "support/redis.rs"]
mod redis_server;

use self::redis_server::{Mode, Proxy, RedisCluster, RedisServer};
use futures_util::future::join_all;
use llm_layers::{
    ChatBody, Completion, Error, ErrorKind, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::Prices,
    quota::{
        Amount, Calendar, Delta, HistoryFuture, HistoryQuery, LeaseId, Limits, QuotaLayer, QuotaStore,
        RedisQuotaStore, StoreError, UsageHistory, Used, WorkerOptions, audit, repair,
    },
    store::{Redis, RedisOptions},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, service_fn};

const CALLERS: usize = 32;
const DEPARTMENTS: [&str; 2] = ["research", "all"];
/// What a refusal may take: one and a half deadlines.
const PATIENCE: Duration = Duration::from_millis(375);
const MOST: u64 = 50;

/// What the provider was asked for in truth: by the calls that came there, and by those that were answered.
#[derive(Clone, Default)]
struct Ledger {
    used: Arc<Mutex<HashMap<Option<LeaseId>, Amount>>>,
    began: Arc<AtomicU64>,
}

impl Ledger {
    fn sum(&self, except: &[LeaseId]) -> Amount {
        let used = self.used.lock().unwrap();
        let counted = used.iter().filter(|(lease, _)| lease.is_none_or(|lease| !except.contains(&lease)));
        counted.fold(Amount::ZERO, |sum, (_, used)| sum.plus(used))
    }
}

impl UsageHistory for Ledger {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let ledger = self.clone();
        Box::pin(async move {
            // No ledger is read in no time: answers that were on their way when counters were lost have come by then.
            sleep(Duration::from_millis(5)).await;
            let used = ledger.sum(&query.in_flight);
            Ok(Used { in_day: used, in_month: used })
        })
    }
}

/// What became of the calls.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    refused: AtomicU64,
    slowest_refusal: AtomicU64,
    is_over: AtomicBool,
}

struct Load {
    ledger: Ledger,
    seen: Arc<Seen>,
    store: RedisQuotaStore,
}

impl Load {
    fn answered(&self) -> u64 {
        self.seen.answered.load(Ordering::Acquire)
    }

    /// Waits until so many more calls have been answered.
    async fn flows(&self, calls: u64) -> Duration {
        let (since, start) = (Instant::now(), self.answered());
        while self.answered() < start + calls {
            assert!(since.elapsed() < Duration::from_secs(20), "no calls flow");
            sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    }

    /// No call reaches the provider for so long, once those that were admitted are there.
    async fn stands(&self, time: Duration) {
        sleep(Duration::from_millis(50)).await;
        let (began, refused) =
            (self.ledger.began.load(Ordering::Acquire), self.seen.refused.load(Ordering::Acquire));
        sleep(time).await;
        assert_eq!(self.ledger.began.load(Ordering::Acquire), began, "calls that nobody reserved for");
        assert!(self.seen.refused.load(Ordering::Acquire) > refused, "calls hang");
    }
}

/// How far counters may be off before they are repaired.
#[derive(PartialEq, Eq)]
enum Off {
    Not,
    /// What had not reached a replica may have been done or not.
    Either,
}

fn one_server(url: &str) -> RedisQuotaStore {
    RedisQuotaStore::new(Redis::new(url, RedisOptions::default()).unwrap())
}

/// Keeps calls coming while `faults` happen, then compares what is counted with what was used.
async fn under_load(store: RedisQuotaStore, off: Off, faults: impl AsyncFnOnce(&Load)) {
    store.check().await.unwrap();
    let mut policy = DepartmentPolicy::default();
    policy.limits = Limits::new().with_day_tokens(1 << 40).with_month_requests(1 << 40);
    let ledger = Ledger::default();
    let (layer, worker) = QuotaLayer::pair(
        store.clone(),
        PolicyTable::new(policy),
        Prices::default(),
        WorkerOptions::default(),
    );
    let layer = layer.with_history(ledger.clone());
    let books = ledger.clone();
    let provider = service_fn(move |request: LlmRequest| {
        let books = books.clone();
        async move {
            request.progress.mark_dispatched();
            books.began.fetch_add(1, Ordering::AcqRel);
            sleep(Duration::from_millis(fastrand::u64(1..10))).await;
            let usage = TokenUsage::new(5, fastrand::u64(0..=MOST));
            let used = Amount::new(1, 5 + usage.output_tokens.unwrap(), Default::default());
            books.used.lock().unwrap().insert(request.progress.lease(), used);
            Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", usage)))
        }
    });
    let service = layer.layer(provider);
    let load = Load { ledger, seen: Arc::default(), store };
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (service, seen) = (service.clone(), Arc::clone(&load.seen));
            tokio::spawn(async move {
                while !seen.is_over.load(Ordering::Acquire) {
                    let body = ChatBody::builder().user("Hello?").set("max_tokens", MOST).build().unwrap();
                    let mut request = LlmRequest::new("p/m", body);
                    request.context = RequestContext::new().with_departments(DEPARTMENTS);
                    let since = Instant::now();
                    match service.clone().oneshot(request).await {
                        Ok(answer) => {
                            assert_eq!(answer.text().await.unwrap(), "hi");
                            seen.answered.fetch_add(1, Ordering::AcqRel);
                        }
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "{error}");
                            let took = u64::try_from(since.elapsed().as_millis()).unwrap();
                            seen.slowest_refusal.fetch_max(took, Ordering::AcqRel);
                            seen.refused.fetch_add(1, Ordering::AcqRel);
                            sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            })
        })
        .collect();

    load.flows(100).await;
    faults(&load).await;
    let took = load.flows(100).await;
    load.seen.is_over.store(true, Ordering::Release);
    for caller in join_all(callers).await {
        caller.unwrap();
    }
    drop((service, layer));
    let report = worker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.left, report.given_up), (0, 0), "{report:?}");

    let Seen { answered, refused, slowest_refusal, .. } = &*load.seen;
    let (answered, refused) = (answered.load(Ordering::Acquire), refused.load(Ordering::Acquire));
    let slowest = Duration::from_millis(slowest_refusal.load(Ordering::Acquire));
    println!("{answered} answered, {refused} refused in at most {slowest:?}; the last 100 in {took:?}");
    assert!(refused > 0);
    assert!(slowest <= PATIENCE, "{slowest:?}");
    let truth = load.ledger.sum(&[]);
    assert_eq!(truth.requests, answered);

    let (calendar, now) = (Calendar::utc(), SystemClock.now());
    if off == Off::Either {
        // Leases whose end was lost.
        load.store.advance(WorkerOptions::default().lease);
    }
    for department in DEPARTMENTS {
        let standing = load.store.usage(&department.into(), &calendar.days_around(now)).await.unwrap();
        assert_eq!(standing.in_month.reserved, Amount::ZERO, "{department}");
    }
    let drifts = audit(&load.store, &load.ledger, &calendar, now, DEPARTMENTS).await.unwrap();
    println!("drifts {:?}", drifts.iter().map(|drift| drift.by).collect::<Vec<_>>());
    // What is to be added: nothing was charged twice, and no more is missing than what was in flight.
    let in_flight = CALLERS as i64;
    for Delta { requests, .. } in drifts.iter().map(|drift| drift.by) {
        match off {
            Off::Not => panic!("{drifts:?}"),
            Off::Either => assert!((-in_flight..=in_flight).contains(&requests), "{drifts:?}"),
        }
    }
    repair(&load.store, &drifts).await.unwrap();
    assert_eq!(audit(&load.store, &load.ledger, &calendar, now, DEPARTMENTS).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_started_again() {
    let Some(mut server) = RedisServer::start_durable("quota_redis_layer: killed") else { return };
    let url = server.url();
    under_load(one_server(&url), Off::Not, async |load| {
        for _ in 0..2 {
            server.kill();
            load.stands(Duration::from_millis(500)).await;
            server.restart();
            let took = load.flows(50).await;
            println!("50 calls {took:?} after the restart");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_frozen_and_thawed() {
    let Some(server) = RedisServer::start("quota_redis_layer: frozen") else { return };
    under_load(one_server(&server.url()), Off::Not, async |load| {
        for time in [300, 1500] {
            server.freeze();
            load.stands(Duration::from_millis(time)).await;
            server.thaw();
            let took = load.flows(50).await;
            println!("50 calls {took:?} after the thaw");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_empty() {
    let Some(mut server) = RedisServer::start("quota_redis_layer: emptied") else { return };
    let url = server.url();
    under_load(one_server(&url), Off::Not, async |load| {
        // At once, while calls are in flight, and after a while.
        for pause in [0, 300] {
            server.kill();
            if pause > 0 {
                load.stands(Duration::from_millis(pause)).await;
            }
            server.restart_empty();
            let took = load.flows(50).await;
            println!("50 calls {took:?} after it came back empty");
        }
    })
    .await;
}

#[tokio::test]
async fn a_damaged_department_is_refused_and_no_other() {
    let Some(server) = RedisServer::start("quota_redis_layer: damaged") else { return };
    let store = one_server(&server.url());
    let [counters, ..] = store.keys("broken");
    damaged::is_nobody_elses(store, || {
        server.ask(&["DEL", &counters]);
        server.ask(&["SET", &counters, "text"]);
    })
    .await;
}

#[tokio::test]
async fn a_past_that_is_not_known_here_is_charged_once_after_a_repair_too() {
    let Some(server) = RedisServer::start("quota_redis_layer: restored") else { return };
    past::is_charged_once(one_server(&server.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_loses_and_delays_replies() {
    let Some(server) = RedisServer::start("quota_redis_layer: lossy") else { return };
    let proxy = Proxy::start(server.port());
    under_load(one_server(&proxy.url()), Off::Not, async |load| {
        proxy.set(Mode::CutEvery(20));
        sleep(Duration::from_millis(1500)).await;
        proxy.set(Mode::Delay(Duration::from_millis(400)));
        load.stands(Duration::from_millis(800)).await;
        proxy.set(Mode::Swallow);
        load.stands(Duration::from_millis(800)).await;
        proxy.set(Mode::Pass);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_replaced_by_its_replica() {
    let Some(mut cluster) = RedisCluster::start_with_replicas("quota_redis_layer: failover") else { return };
    let store = RedisQuotaStore::new(Redis::cluster(cluster.urls(), RedisOptions::default()).unwrap());
    let slot = cluster.nodes[0].ask(&["CLUSTER", "KEYSLOT", &store.keys(DEPARTMENTS[0])[0]]);
    let master = cluster.owner(slot.parse().unwrap(), 0).unwrap();
    under_load(store, Off::Either, async |load| {
        cluster.nodes[master].kill();
        load.stands(Duration::from_millis(600)).await;
        let took = load.flows(50).await;
        println!("50 calls {took:?} later");
        cluster.nodes[master].restart();
        cluster.wait_until_ready();
        load.flows(50).await;
    })
    .await;
}

/// A department of which the keys are on this node.
fn department_on(cluster: &RedisCluster, store: &RedisQuotaStore, node: usize) -> String {
    let names = (0..).map(|number| format!("department {number}"));
    let mut on_it = names.filter(|name| {
        let slot = cluster.nodes[0].ask(&["CLUSTER", "KEYSLOT", &store.keys(name)[0]]);
        cluster.owner(slot.parse().unwrap(), 0) == Some(node)
    });
    on_it.next().unwrap()
}

/// A cluster of which the other nodes go on when one is away.
fn cluster_in_parts(test: &str) -> Option<(RedisCluster, RedisQuotaStore)> {
    let cluster = RedisCluster::start(test)?;
    for node in &cluster.nodes {
        node.ask(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]);
    }
    let store = RedisQuotaStore::new(Redis::cluster(cluster.urls(), RedisOptions::default()).unwrap());
    Some((cluster, store))
}

fn call(departments: &[&str]) -> LlmRequest {
    let mut request = LlmRequest::new("p/m", ChatBody::builder().user("Hello?").build().unwrap());
    request.context = RequestContext::new().with_departments(departments.iter().copied());
    request
}

async fn answered(request: LlmRequest) -> Result<LlmResponse, Error> {
    request.progress.mark_dispatched();
    Ok(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(5, 5))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_away_costs_no_call_of_departments_on_others() {
    let Some((cluster, store)) = cluster_in_parts("quota_redis_layer: part") else { return };
    let (away, there) = (department_on(&cluster, &store, 2), department_on(&cluster, &store, 0));
    let mut policy = DepartmentPolicy::default();
    policy.limits = Limits::new().with_day_requests(1 << 40);
    let (layer, worker) =
        QuotaLayer::pair(store, PolicyTable::new(policy), Prices::default(), WorkerOptions::default());
    let service = layer.layer(service_fn(answered));
    for department in [&away, &there] {
        service.clone().oneshot(call(&[department])).await.unwrap();
    }
    cluster.nodes[2].freeze();
    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..16)
        .map(|number| {
            let (service, is_over) = (service.clone(), Arc::clone(&is_over));
            // Some are charged to both.
            let both = [away.clone(), there.clone()];
            tokio::spawn(async move {
                let departments: Vec<_> = both.iter().take(1 + number % 2).map(|name| &**name).collect();
                while !is_over.load(Ordering::Acquire) {
                    let since = Instant::now();
                    assert!(service.clone().oneshot(call(&departments)).await.is_err());
                    assert!(since.elapsed() < PATIENCE * 2, "{:?}", since.elapsed());
                    sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    let since = Instant::now();
    // Seldom: others fail again and again meanwhile.
    while since.elapsed() < Duration::from_secs(3) {
        sleep(Duration::from_millis(50)).await;
        service.clone().oneshot(call(&[&there])).await.unwrap();
        assert!(layer.is_available());
    }
    is_over.store(true, Ordering::Release);
    join_all(callers).await.into_iter().for_each(Result::unwrap);
    cluster.nodes[2].thaw();
    let back = async {
        while service.clone().oneshot(call(&[&away, &there])).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), back).await.unwrap();
    drop((service, layer));
    let report = worker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.left, report.given_up), (0, 0), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_department_on_a_node_that_comes_back_empty_pays_for_what_others_have_paid_for() {
    let Some((mut cluster, store)) = cluster_in_parts("quota_redis_layer: certain") else { return };
    let (lost, kept) = (department_on(&cluster, &store, 2), department_on(&cluster, &store, 0));
    let (layer, worker) = QuotaLayer::pair(
        store.clone(),
        PolicyTable::new(DepartmentPolicy::default()),
        Prices::default(),
        WorkerOptions::default(),
    );
    let (admitted, may_end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, waits) = (Arc::clone(&admitted), Arc::clone(&may_end));
    let service = layer.layer(service_fn(move |request| {
        let (told, waits) = (Arc::clone(&told), Arc::clone(&waits));
        async move {
            told.notify_one();
            waits.notified().await;
            answered(request).await
        }
    }));
    let both = call(&[&lost, &kept]);
    let answer = tokio::spawn(service.clone().oneshot(both));
    admitted.notified().await;
    cluster.nodes[2].kill();
    let days = Calendar::utc().days_around(SystemClock.now());
    let name = Arc::from(&*lost);
    // Nothing is sent any more: it surely is not done there.
    let refuses = async {
        while !matches!(store.usage(&name, &days).await, Err(StoreError::Definite(_))) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refuses).await.unwrap();
    may_end.notify_one();
    answer.await.unwrap().unwrap();
    let failed = async {
        while worker.report().last_error.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), failed).await.unwrap();
    cluster.nodes[2].restart_empty();
    cluster.wait_until_ready();
    drop((service, layer));
    let report = worker.shutdown(Duration::from_secs(20)).await;
    assert_eq!((report.settled, report.left, report.given_up), (1, 0, 0), "{report:?}");
    for department in [&kept, &lost] {
        let standing = store.usage(&(&**department).into(), &days).await.unwrap();
        assert_eq!(standing.in_day.settled.requests, 1, "{department}");
        assert_eq!(standing.in_day.reserved, Amount::ZERO, "{department}");
    }
}
