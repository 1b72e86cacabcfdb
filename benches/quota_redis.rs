//! What a quota in Redis costs: round trips for each call, and pairs of reserving and settling in a second beside plain
//! `INCR` on the same server and connection.
//!
//! `cargo bench --bench quota_redis --features redis,testing`. Starts its own servers; nothing without `redis-server`.

#[path = "../tests/support/redis.rs"]
mod redis_server;

use self::redis_server::{Proxy, RedisCluster, RedisServer};
use futures_util::future::join_all;
use llm_layers::{
    CallId,
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Amount, Calendar, Decision, Department, Departments, Limits, QuotaStore, RedisQuotaStore,
        Reservation, Settlement,
    },
    store::{Redis, RedisError, RedisOptions},
};
use std::time::Duration;
use tokio::time::Instant;

const TIME: Duration = Duration::from_secs(3);
const CALLS: u64 = 200;

fn departments(names: impl IntoIterator<Item = String>) -> Departments {
    let limits = Limits::new()
        .with_day_requests(u64::MAX)
        .with_day_tokens(u64::MAX)
        .with_month_tokens(u64::MAX)
        .with_month_cost(NanoUsd::new(i64::MAX));
    names.into_iter().map(|name| Department::new(name, limits)).collect()
}

fn numbered(count: usize) -> Departments {
    departments((0..count).map(|number| format!("department {number}")))
}

/// With all the time it needs: the machine may be busy with something else.
fn patient(redis: Result<Redis, RedisError>) -> RedisQuotaStore {
    RedisQuotaStore::new(redis.expect("addresses")).with_deadline(Duration::from_secs(10))
}

async fn reserve(store: &RedisQuotaStore, departments: &Departments) -> CallId {
    let now = SystemClock.now();
    let (id, amount) = (CallId::mint(now), Amount::new(1, 1_000, NanoUsd::new(1_000_000)));
    let days = Calendar::utc().days_around(now);
    let reservation = Reservation::new(id, departments.clone(), amount, Duration::from_secs(600), days);
    assert!(matches!(store.reserve(&reservation).await, Ok(Decision::Granted(_))));
    id
}

async fn settle(store: &RedisQuotaStore, departments: &Departments, id: CallId) {
    let settlement = Settlement::new(id, departments.clone(), Amount::new(1, 500, NanoUsd::new(400_000)));
    store.settle(&settlement).await.expect("it is settled");
}

/// How many are done in a second, by so many at once.
async fn rate(concurrency: usize, work: impl AsyncFn()) -> f64 {
    work().await;
    let since = Instant::now();
    let counts = join_all((0..concurrency).map(|_| async {
        let mut count = 0_u32;
        while since.elapsed() < TIME {
            work().await;
            count += 1;
        }
        f64::from(count)
    }));
    counts.await.into_iter().sum::<f64>() / since.elapsed().as_secs_f64()
}

async fn compare(what: &str, store: &RedisQuotaStore, departments: &Departments, server: &RedisServer) {
    let client = redis::Client::open(server.url()).expect("an address");
    let connection = client.get_multiplexed_async_connection().await.expect("a connection");
    for concurrency in [1, 16, 128] {
        let incr = rate(concurrency, async || {
            let mut connection = connection.clone();
            let _: i64 = redis::cmd("INCR").arg("plain").query_async(&mut connection).await.expect("a count");
        });
        let incr = incr.await;
        let (since, before) = (Instant::now(), busy(server));
        let pairs = rate(concurrency, async || {
            let id = reserve(store, departments).await;
            settle(store, departments, id).await;
        });
        let pairs = pairs.await;
        let micros = 1e6 * (busy(server) - before) / (pairs * since.elapsed().as_secs_f64());
        println!(
            "{what:<32} {concurrency:>4} at once {pairs:>7.0} pairs/s, {:>7.0} us and {micros:>4.0} us of the server each; \
             {incr:>8.0} INCR/s",
            1e6 * concurrency as f64 / pairs
        );
    }
}

/// Seconds of processor time that the server has used.
fn busy(server: &RedisServer) -> f64 {
    let info = server.ask(&["INFO", "cpu"]);
    let of = |name: &str| {
        info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok()).unwrap_or(0.0)
    };
    of("used_cpu_user:") + of("used_cpu_sys:")
}

fn scripts_run(servers: &[RedisServer]) -> u64 {
    let calls = |server: &RedisServer| {
        let stats = server.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        line.map_or(0, |line| line.split(',').next().and_then(|calls| calls.parse::<u64>().ok()).unwrap_or(0))
    };
    servers.iter().map(calls).sum()
}

async fn count_round_trips(server: &RedisServer) {
    let proxy = Proxy::start(server.port());
    let store = patient(Redis::new(&proxy.url(), RedisOptions::default()));
    for count in [1, 4, 64] {
        let departments = numbered(count);
        let warm = reserve(&store, &departments).await;
        settle(&store, &departments, warm).await;
        let (mut before, mut after) = (0, 0);
        for _ in 0..CALLS {
            let start = proxy.replies();
            let id = reserve(&store, &departments).await;
            let middle = proxy.replies();
            settle(&store, &departments, id).await;
            before += middle - start;
            after += proxy.replies() - middle;
        }
        println!(
            "one server, {count:>2} departments: {:.2} round trips before the call, {:.2} to settle",
            before as f64 / CALLS as f64,
            after as f64 / CALLS as f64
        );
    }
}

async fn in_a_cluster(cluster: &RedisCluster) {
    let store = patient(Redis::cluster(cluster.urls(), RedisOptions::default()));
    for count in [1, 3, 16] {
        let departments = numbered(count);
        let warm = reserve(&store, &departments).await;
        settle(&store, &departments, warm).await;
        let (mut took, start) = (Duration::ZERO, scripts_run(&cluster.nodes));
        let mut ids = Vec::new();
        for _ in 0..CALLS {
            let since = Instant::now();
            ids.push(reserve(&store, &departments).await);
            took += since.elapsed();
        }
        let scripts = scripts_run(&cluster.nodes) - start;
        for id in ids {
            settle(&store, &departments, id).await;
        }
        println!(
            "cluster, {count:>2} departments: {:.2} scripts a department before the call, in {:.0} us",
            scripts as f64 / CALLS as f64 / count as f64,
            took.as_secs_f64() * 1e6 / CALLS as f64
        );
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let Some(server) = RedisServer::start("quota_redis") else { return };
        count_round_trips(&server).await;
        let store = patient(Redis::new(&server.url(), RedisOptions::default()));
        for count in [1, 4] {
            compare(&format!("one server, {count} departments"), &store, &numbered(count), &server).await;
        }
        let memory = server.ask(&["MEMORY", "USAGE", &store.keys("department 0")[0]]);
        println!("counters of a department on its first day: {memory} bytes");
        drop(server);
        for fsync in ["everysec", "always"] {
            let server = RedisServer::with_options(&["--appendonly", "yes", "--appendfsync", fsync]);
            let store = patient(Redis::new(&server.url(), RedisOptions::default()));
            compare(&format!("one server, appendfsync {fsync}"), &store, &numbered(1), &server).await;
        }
        let Some(cluster) = RedisCluster::start("quota_redis") else { return };
        in_a_cluster(&cluster).await;
    });
}
