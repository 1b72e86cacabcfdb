//! Quotas in Redis, against real servers: the reference's answers, faults, and several processes at once.

#[path = "quota/late.rs"]
mod late;
#[path = "quota/leaked.rs"]
mod leaked;
#[path = "support/redis.rs"]
mod redis_server;

use self::redis_server::{Mode, Proxy, RedisCluster, RedisServer, free_port};
use futures_util::future::join_all;
use llm_layers::{
    CallId,
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Adjustment, Amount, Applied, Baseline, Calendar, Days, Decision, Delta, Department, Departments,
        Limits, QuotaStore, RedisQuotaStore, RedisUnfit, Reservation, Settlement, Standing, StoreError,
        WindowName,
    },
    store::{Redis, RedisOptions},
    testing::{StoreCheck, quota::Script},
};
use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

const LEASE: Duration = Duration::from_secs(600);
const DEADLINE: Duration = Duration::from_millis(250);
/// What a refusal may take.
const PATIENCE: Duration = Duration::from_millis(375);

fn store(url: &str) -> RedisQuotaStore {
    RedisQuotaStore::new(Redis::new(url, RedisOptions::default()).unwrap())
}

fn cluster_store(cluster: &RedisCluster) -> RedisQuotaStore {
    RedisQuotaStore::new(Redis::cluster(cluster.urls(), RedisOptions::default()).unwrap())
}

fn id() -> CallId {
    CallId::mint(SystemClock.now())
}

fn days() -> Days {
    Calendar::utc().days_around(SystemClock.now())
}

fn tokens(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::new(tokens as i64 * 10))
}

fn limited(name: &str, limit: u64) -> Departments {
    Departments::one(Department::new(name, Limits::new().with_month_tokens(limit)))
}

fn unlimited(names: &[String]) -> Departments {
    names.iter().map(|name| Department::new(name.as_str(), Limits::new())).collect()
}

fn reservation(id: CallId, departments: &Departments, amount: u64) -> Reservation {
    Reservation::new(id, departments.clone(), tokens(amount), LEASE, days())
}

async fn reserve(store: &impl QuotaStore, departments: &Departments, amount: u64) -> (CallId, Decision) {
    let id = id();
    (id, store.reserve(&reservation(id, departments, amount)).await.unwrap())
}

async fn granted(store: &impl QuotaStore, departments: &Departments, amount: u64) -> CallId {
    let (id, decision) = reserve(store, departments, amount).await;
    assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
    id
}

async fn settle(store: &impl QuotaStore, id: CallId, departments: &Departments, amount: u64) -> Applied {
    store.settle(&Settlement::new(id, departments.clone(), tokens(amount))).await.unwrap()
}

async fn standing(store: &impl QuotaStore, department: &str) -> Standing {
    store.usage(&department.into(), &days()).await.unwrap()
}

/// Tokens settled and reserved, in the month.
async fn counted(store: &impl QuotaStore, department: &str) -> (u64, u64) {
    let used = standing(store, department).await.in_month;
    (used.settled.tokens, used.reserved.tokens)
}

/// Asks until an answer comes.
async fn until_done<T, F>(limit: Duration, what: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let since = Instant::now();
    loop {
        match what().await {
            Ok(value) => return value,
            Err(error) if since.elapsed() > limit => panic!("still {error:?} after {:?}", since.elapsed()),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn until_granted(store: &impl QuotaStore, departments: &Departments, limit: Duration) -> Duration {
    let since = Instant::now();
    // Sent again under the same id it is the same reservation.
    let reservation = reservation(id(), departments, 1);
    let decision = until_done(limit, || store.reserve(&reservation)).await;
    assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
    until_done(limit, || store.release(reservation.id, departments)).await;
    since.elapsed()
}

/// Reserves, and expects an error in time.
async fn refused(store: &impl QuotaStore, departments: &Departments) -> (CallId, StoreError) {
    let (id, since) = (id(), Instant::now());
    let error = store.reserve(&reservation(id, departments, 100)).await.unwrap_err();
    assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
    (id, error)
}

async fn says_what_it_did_in_each(store: &impl QuotaStore) {
    // In as many slots as there are, if it is a cluster.
    let names: Vec<String> = (0..9).map(|at| format!("department {at}")).collect();
    let call = granted(store, &unlimited(&names[3..]), 60).await;
    let settlement = Settlement::new(call, unlimited(&names), tokens(30));
    let each = store.settle_each(&settlement).await.unwrap();
    assert_eq!((&each[..3], &each[3..]), (&[Applied::Duplicate; 3][..], &[Applied::First; 6][..]));
    assert_eq!(store.settle_each(&settlement).await.unwrap(), [Applied::Duplicate; 9]);
    for (at, name) in names.iter().enumerate() {
        assert_eq!(counted(store, name).await, (if at < 3 { 0 } else { 30 }, 0), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settlement_says_for_each_department_what_it_did_there() {
    let Some(server) = RedisServer::start("quota_redis: each department") else { return };
    says_what_it_did_in_each(&store(&server.url())).await;
    let Some(cluster) = RedisCluster::start("quota_redis: each department") else { return };
    says_what_it_did_in_each(&cluster_store(&cluster)).await;
}

// ===== the same answers as the reference =====

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_answers_as_the_reference() {
    let Some(server) = RedisServer::start("quota_redis: one server") else { return };
    let store = store(&server.url()).with_deadline(Duration::from_secs(10));
    let clock = store.clone();
    StoreCheck::new(store)
        .with_advance(move |by| {
            clock.advance(by);
            async {}
        })
        .check()
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_answers_as_the_reference() {
    let Some(cluster) = RedisCluster::start("quota_redis: cluster") else { return };
    let store = cluster_store(&cluster).with_deadline(Duration::from_secs(10));
    let clock = store.clone();
    StoreCheck::new(store)
        .with_advance(move |by| {
            clock.advance(by);
            async {}
        })
        .with_length(4)
        .check()
        .await;
    let sizes = cluster.nodes.iter().map(|node| node.ask(&["DBSIZE"]).parse::<u64>().unwrap());
    assert!(sizes.clone().all(|size| size > 100), "{:?}", sizes.collect::<Vec<_>>());
}

/// As long as those of one server, and longer: other scripts than [`a_cluster_answers_as_the_reference`] has tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_answers_as_the_reference_in_long_sequences_too() {
    let Some(cluster) = RedisCluster::start("quota_redis: long sequences") else { return };
    let store = cluster_store(&cluster).with_deadline(Duration::from_secs(10));
    let clock = store.clone();
    let check = StoreCheck::new(store).with_advance(move |by| {
        clock.advance(by);
        async {}
    });
    let (began, mut steps) = (Instant::now(), 0);
    for seed in 1000.. {
        let script = Script::random(seed, [6, 60, 250][seed as usize % 3]);
        steps += script.steps.len();
        if let Err(mismatch) = check.run(&script).await {
            panic!("{seed}: {mismatch}");
        }
        // At least so many, and on a fast machine more.
        if seed >= 1060 && began.elapsed() > Duration::from_secs(5) {
            break;
        }
    }
    println!("{steps} steps");
}

/// What each node was asked: one script before a call, one more where departments are of several slots.
#[tokio::test]
async fn a_reservation_is_one_round_trip_and_two_where_departments_span_slots() {
    let Some(cluster) = RedisCluster::start("quota_redis: round trips") else { return };
    let store = cluster_store(&cluster).with_deadline(Duration::from_secs(10));
    let scripts = || -> u64 {
        let count = |node: &RedisServer| {
            let stats = node.ask(&["INFO", "commandstats"]);
            let calls = |line: &str| line.split(['=', ',']).nth(1).unwrap().parse::<u64>().unwrap();
            let evals = stats.lines().filter(|line| line.starts_with("cmdstat_eval"));
            evals.map(calls).sum::<u64>()
        };
        cluster.nodes.iter().map(count).sum()
    };
    let names = one_of_each(&cluster, &store);
    let (one, all) = (unlimited(&names[..1]), unlimited(&names));
    // Each node learns its scripts first.
    for departments in [&one, &all] {
        let id = granted(&store, departments, 10).await;
        settle(&store, id, departments, 5).await;
    }
    let asked = async |departments: &Departments| {
        let before = scripts();
        let id = granted(&store, departments, 10).await;
        let reserved = scripts();
        settle(&store, id, departments, 5).await;
        (reserved - before, scripts() - reserved)
    };
    assert_eq!(asked(&one).await, (1, 1));
    let nodes = names.len() as u64;
    assert!(nodes >= 2);
    // In each slot it is taken, and confirmed: two round trips, for each trip asks all slots at once.
    assert_eq!(asked(&all).await, (2 * nodes, nodes));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_all_departments_in_one_slot_answers_as_the_reference() {
    let Some(cluster) = RedisCluster::start("quota_redis: one slot") else { return };
    let store = cluster_store(&cluster).with_prefix("{quota}").with_deadline(Duration::from_secs(10));
    store.check().await.unwrap();
    StoreCheck::new(store).with_length(3).with_scripts(50).with_callers(50).check().await;
    let mut sizes: Vec<u64> =
        cluster.nodes.iter().map(|node| node.ask(&["DBSIZE"]).parse().unwrap()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes[..2], [0, 0]);
}

// ===== what is there =====

#[tokio::test]
async fn keys_say_nothing_of_the_department_and_are_of_one_slot() {
    let store = store("redis://127.0.0.1:1").with_prefix("mine");
    let names = ["sales", "", "{}", "{a}b", "a:b", "a b", "\u{65e5}\u{672c}", "a\0b"];
    let keys: Vec<_> = names.iter().map(|name| store.keys(name)).collect();
    for [counters, leases, expiries] in &keys {
        let tag = counters.strip_prefix("mine:{").and_then(|rest| rest.strip_suffix("}:counters")).unwrap();
        assert!(tag.len() == 40 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()), "{tag}");
        assert_eq!(
            (leases, expiries),
            (&format!("mine:{{{tag}}}:leases"), &format!("mine:{{{tag}}}:expiries"))
        );
    }
    let distinct: std::collections::HashSet<_> = keys.iter().flatten().collect();
    assert_eq!(distinct.len(), names.len() * 3);
}

#[tokio::test]
async fn counters_of_old_windows_are_forgotten_and_those_of_two_months_are_kept() {
    let Some(server) = RedisServer::start("quota_redis: windows") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1_000_000));
    let [counters, leases, expiries] = store.keys("a");
    let start = SystemClock.now();
    let day_number = |number: u32| Calendar::utc().day(start + Duration::from_secs(86_400) * number);
    for number in 0..200 {
        let day = day_number(number);
        let (id, on) = (id(), Days::only(day));
        store.reserve(&Reservation::new(id, a.clone(), tokens(5), LEASE, on.clone())).await.unwrap();
        assert_eq!(settle(&store, id, &a, 5).await, Applied::First);
        let fields = server.ask(&["HKEYS", &counters]);
        assert!(fields.lines().count() <= 62 * 6 + 2 * 6 + 2, "{}", fields.lines().count());
        let last = day_number(number.saturating_sub(28));
        let standing = store.usage(&"a".into(), &Days::only(last)).await.unwrap();
        assert_eq!(standing.in_day.settled.tokens, 5, "of {} on {}", last.date, day.date);
    }
    let month = day_number(199).month;
    let last = if month % 100 == 1 { month - 89 } else { month - 1 };
    let fields = server.ask(&["HKEYS", &counters]);
    let mut months: Vec<u32> =
        fields.lines().filter_map(|field| field.strip_prefix('m')?.split_once(':')?.0.parse().ok()).collect();
    months.sort_unstable();
    months.dedup();
    assert_eq!(months, [last, month]);
    // What nobody uses is forgotten some time.
    assert!(server.ask(&["TTL", &counters]).parse::<i64>().unwrap() > 100 * 86_400);
    assert_eq!(server.ask(&["EXISTS", &leases, &expiries]), "0", "nothing is in flight");
    granted(&store, &a, 1).await;
    for key in [leases, expiries] {
        assert!(server.ask(&["TTL", &key]).parse::<i64>().unwrap() > 100 * 86_400);
    }
    // Also where nothing but a correction was written.
    let by = Delta { requests: 1, tokens: 1, cost: NanoUsd::ZERO };
    let correction = Adjustment::new(id(), "b", WindowName::Day(days()[1].date), by);
    assert!(store.adjust(&correction).await.unwrap());
    let [counters, ..] = store.keys("b");
    assert!(server.ask(&["TTL", &counters]).parse::<i64>().unwrap() > 100 * 86_400);
}

#[tokio::test]
async fn a_clock_that_goes_months_ahead_and_comes_back_lets_nobody_past_a_limit() {
    let Some(server) = RedisServer::start("quota_redis: clock") else { return };
    let (ahead, here, a) = (store(&server.url()), store(&server.url()), limited("a", 100));
    let call = granted(&here, &a, 90).await;
    assert_eq!(settle(&here, call, &a, 90).await, Applied::First);
    // More than two months each time, and further than before.
    for times in 1..=2 {
        let later = Duration::from_secs(70 * 86_400);
        ahead.advance(later);
        let days = Calendar::utc().days_around(SystemClock.now() + later * times);
        let then = Reservation::new(id(), a.clone(), tokens(1), LEASE, days);
        assert!(matches!(ahead.reserve(&then).await.unwrap(), Decision::Granted(_)));
        assert_eq!(counted(&here, "a").await, (90, 0));
        let (_, decision) = reserve(&here, &a, 11).await;
        assert!(matches!(decision, Decision::Denied(_)), "{decision:?}");
        assert_eq!(settle(&here, granted(&here, &a, 1).await, &a, 0).await, Applied::First);
    }
}

#[tokio::test]
async fn a_counter_that_is_none_is_an_error_and_nothing_is_granted() {
    let Some(server) = RedisServer::start("quota_redis: broken") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let [counters, leases, _] = store.keys("a");
    granted(&store, &a, 10).await;
    let month = days()[1].month;
    let is_damaged = async || {
        matches!(store.reserve(&reservation(id(), &a, 1)).await, Err(StoreError::Damaged(_)))
            && server.ask(&["HLEN", &leases]) == "1"
    };
    let more_than_the_most = "9223372036854775808";
    for lie in ["1e3", "-5", "", "12.5", "0x10", "007", more_than_the_most, "99999999999999999999"] {
        for counter in ["ts", "cs"] {
            let field = format!("m{month}:{counter}");
            server.ask(&["HSET", &counters, &field, lie]);
            assert!(is_damaged().await, "{lie:?}");
            server.ask(&["HDEL", &counters, &field]);
        }
    }
    server.ask(&["DEL", &counters]);
    server.ask(&["SET", &counters, "text"]);
    assert!(is_damaged().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reserved_for_nobody_is_found_and_given_back_and_nothing_else() {
    let Some(server) = RedisServer::start("quota_redis: leaked") else { return };
    let store = |prefix: &'static str| {
        store(&server.url()).with_prefix(prefix).with_deadline(Duration::from_secs(20))
    };
    leaked::is_not_what_calls_hold(store("busy")).await;
    let store = store("leaked");
    let [_, leases, expiries] = store.keys("leaky");
    leaked::is_found_and_given_back(store, |lease| {
        for command in [["HDEL", &leases], ["ZREM", &expiries]] {
            assert_eq!(server.ask(&[command[0], command[1], &lease.to_string()]), "1");
        }
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_not_settled_before_its_lease_expires_is_charged_once_after_a_repair_too() {
    let Some(server) = RedisServer::start("quota_redis: late") else { return };
    let store = store(&server.url());
    late::is_charged_once(store.clone(), SystemClock.now(), |by| store.advance(by)).await;
}

#[tokio::test]
async fn a_lease_that_is_none_is_an_error_and_is_not_taken_back_in_part() {
    let Some(server) = RedisServer::start("quota_redis: broken lease") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let [counters, leases, _] = store.keys("a");
    let call = granted(&store, &a, 10).await;
    let (there, month) = (server.ask(&["HGET", &leases, &call.to_string()]), days()[1].month);
    for lie in ["r", "r 20261123 202611", "z 20261123 202611 1 1 1 1 1 1", &there.replace(" 10 ", " ten ")] {
        server.ask(&["HSET", &leases, &call.to_string(), lie]);
        let settled = store.settle(&Settlement::new(call, a.clone(), tokens(7))).await;
        assert!(matches!(settled, Err(StoreError::Damaged(_))), "{lie:?}: {settled:?}");
        let recount = store.recount(&"a".into(), WindowName::Month(month), true).await;
        assert!(matches!(recount, Err(StoreError::Damaged(_))), "{lie:?}: {recount:?}");
    }
    server.ask(&["HSET", &leases, &call.to_string(), &there]);
    // When windows were forgotten last is made good.
    server.ask(&["HSET", &counters, "month", "text"]);
    granted(&store, &a, 5).await;
    assert_eq!(server.ask(&["HGET", &counters, "month"]), month.to_string());
    assert_eq!(settle(&store, call, &a, 7).await, Applied::First);
    assert_eq!(counted(&store, "a").await, (7, 5));
}

#[tokio::test]
async fn a_full_memory_refuses_what_is_new_and_settles_what_is_there() {
    let Some(server) = RedisServer::start("quota_redis: memory") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let [settled, released] = [granted(&store, &a, 100).await, granted(&store, &a, 200).await];
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let (_, error) = refused(&store, &a).await;
    assert!(matches!(error, StoreError::Definite(_)), "{error:?}");
    assert!(store.extend(settled, &a, LEASE * 2).await.unwrap());
    assert_eq!(settle(&store, settled, &a, 70).await, Applied::First);
    store.release(released, &a).await.unwrap();
    assert_eq!(counted(&store, "a").await, (70, 0));
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    granted(&store, &a, 930).await;
}

#[tokio::test]
async fn a_master_that_has_lost_its_replicas_refuses_where_it_was_told_to() {
    let Some(server) = RedisServer::start("quota_redis: replicas") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let call = granted(&store, &a, 100).await;
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let (_, error) = refused(&store, &a).await;
    assert!(matches!(error, StoreError::Definite(_)), "{error:?}");
    let settlement = Settlement::new(call, a.clone(), tokens(40));
    assert!(matches!(store.settle(&settlement).await, Err(StoreError::Definite(_))));
    server.ask(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    assert_eq!(settle(&store, call, &a, 40).await, Applied::First);
    assert_eq!(counted(&store, "a").await, (40, 0));
}

#[tokio::test]
async fn the_servers_clock_picks_the_day_and_a_call_is_charged_to_that_of_its_admission() {
    const DAY: Duration = Duration::from_secs(86_400);
    let Some(server) = RedisServer::start("quota_redis: days") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let (start, table) = (SystemClock.now(), days());
    let reserve = async |days: &Days| {
        let id = id();
        let reservation = Reservation::new(id, a.clone(), tokens(10), DAY * 60, days.clone());
        store.reserve(&reservation).await.map(|decision| match decision {
            Decision::Granted(grant) => (id, grant.day),
            other => panic!("{other:?}"),
        })
    };
    // Whatever a gateway's clock says.
    for skewed in [start + DAY / 2, start - DAY / 2] {
        let (id, day) = reserve(&Calendar::utc().days_around(skewed)).await.unwrap();
        assert_eq!(day, table[1]);
        store.release(id, &a).await.unwrap();
    }
    let (today, _) = reserve(&table).await.unwrap();
    store.advance(DAY);
    let (tomorrow, day) = reserve(&table).await.unwrap();
    assert_eq!(day, table[2]);
    for (id, truth) in [(today, 3), (tomorrow, 5)] {
        assert_eq!(settle(&store, id, &a, truth).await, Applied::First);
    }
    for (day, settled) in [(table[1], 3), (table[2], 5)] {
        let standing = store.usage(&"a".into(), &Days::only(day)).await.unwrap();
        assert_eq!((standing.in_day.settled.tokens, standing.in_day.reserved.tokens), (settled, 0));
    }
    store.advance(DAY * 2);
    let error = reserve(&table).await.unwrap_err();
    let StoreError::OffCalendar { now } = error else { panic!("{error:?}") };
    let off = now.duration_since(start + DAY * 3).unwrap();
    assert!(off < Duration::from_secs(60), "{off:?}");
    assert_eq!(server.ask(&["HLEN", &store.keys("a")[1]]), "0");
    let error = store.usage(&"a".into(), &table).await.unwrap_err();
    assert!(matches!(error, StoreError::OffCalendar { .. }));
}

// ===== check =====

#[tokio::test]
async fn a_server_that_may_lose_counters_or_cannot_write_them_is_found() {
    let Some(server) = RedisServer::start("quota_redis: check") else { return };
    let here = store(&server.url());
    here.check().await.unwrap();
    for policy in ["allkeys-lru", "volatile-ttl", "allkeys-random"] {
        server.ask(&["CONFIG", "SET", "maxmemory-policy", policy]);
        let unfit = here.check().await.unwrap_err();
        assert!(matches!(&unfit, RedisUnfit::Evicts { policy: found, .. } if **found == *policy), "{unfit}");
        assert!(unfit.to_string().contains(&server.port().to_string()), "{unfit}");
    }
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let replica = RedisServer::with_options(&["--replicaof", "127.0.0.1", &server.port().to_string()]);
    let there = store(&replica.url());
    assert!(matches!(there.check().await, Err(RedisUnfit::Replica { .. })));
    let (_, error) = refused(&there, &limited("a", 100)).await;
    assert!(matches!(error, StoreError::Definite(_)), "{error:?}");
    let nowhere = store(&format!("redis://127.0.0.1:{}", free_port()));
    assert!(matches!(nowhere.check().await, Err(RedisUnfit::Unavailable(_))));
    let alone = RedisServer::with_options(&["--cluster-enabled", "yes"]);
    assert!(matches!(store(&alone.url()).check().await, Err(RedisUnfit::InCluster { .. })));
}

#[tokio::test]
async fn who_was_made_a_replica_is_left_for_whom_its_address_leads_to_though_nothing_is_written() {
    let Some(server) = RedisServer::start("quota_redis: demoted") else { return };
    let next = RedisServer::with_options(&["--appendonly", "no"]);
    let proxy = Proxy::start(server.port());
    let store = store(&proxy.url());
    store.check().await.unwrap();
    server.ask(&["REPLICAOF", "127.0.0.1", &next.port().to_string()]);
    proxy.lead_to(next.port());
    assert!(matches!(store.check().await, Err(RedisUnfit::Replica { .. })));
    store.check().await.unwrap();
    granted(&store, &limited("a", 100), 10).await;
    assert_ne!(next.ask(&["DBSIZE"]), "0");
}

/// What `docs/operations-redis-quota.md` gives a gateway.
const RIGHTS: &str = include_str!("../docs/operations-redis-quota.md");

#[tokio::test]
async fn the_rights_that_are_documented_are_enough_and_none_is_left_over() {
    let Some(server) = RedisServer::start("quota_redis: rights") else { return };
    let rights = RIGHTS.lines().find_map(|line| line.strip_prefix("ACL SETUSER gateway ")).unwrap();
    let words: Vec<_> = rights.split(' ').collect();
    let check = async |words: &[&str]| {
        let user = format!("user{}", fastrand::u64(..));
        assert_eq!(server.ask(&[&["ACL", "SETUSER", &*user], words].concat()), "OK");
        let store = store(&format!("redis://{user}:secret@127.0.0.1:{}", server.port()));
        let is_fit = store.check().await.is_ok();
        let a = limited("a", 1 << 40);
        let all = async {
            let day = days()[1];
            let [lost, call, held] = [id(), id(), id()];
            store.release(lost, &a).await?;
            store.seed(&"b".into(), &Baseline::new(day, tokens(1), tokens(1))).await?;
            let by = Delta { requests: 1, tokens: 1, cost: NanoUsd::ZERO };
            let window = WindowName::Day(day.date);
            store.adjust(&Adjustment::new(id(), "a", window, by)).await?;
            for id in [call, held] {
                store.reserve(&reservation(id, &a, 10)).await?;
                store.extend(id, &a, LEASE * 2).await?;
            }
            store.settle(&Settlement::new(call, a.clone(), tokens(5))).await?;
            store.recount(&"a".into(), window, true).await?;
            store.advance(LEASE * 3);
            store.usage(&"a".into(), &days()).await.map(drop)
        };
        let result: Result<(), StoreError> = all.await;
        server.ask(&["FLUSHALL"]);
        server.ask(&["SCRIPT", "FLUSH"]);
        (is_fit, result.is_ok())
    };
    assert_eq!(check(&words).await, (true, true));
    // Only in a cluster, or while a slot is moved; and what the client introduces itself by is not needed.
    let elsewhere = ["+cluster|slots", "+asking", "+hello", "+ping"];
    for word in words.iter().filter(|word| word.starts_with('+') && !elsewhere.contains(word)) {
        let fewer: Vec<_> = words.iter().copied().filter(|other| other != word).collect();
        let (is_fit, works) = check(&fewer).await;
        assert!(!is_fit, "nobody is told that {word} is missing");
        // A cluster confirms by it.
        assert!(!works || *word == "+hsetnx" || *word == "+info", "{word} is not needed");
    }
    let elsewhere: Vec<_> =
        words.iter().map(|word| if word.starts_with('~') { "~other:*" } else { word }).collect();
    assert_eq!(check(&elsewhere).await, (false, false));
}

#[tokio::test]
async fn rights_that_are_taken_away_while_calls_are_made_leave_nothing_half_done() {
    let Some(server) = RedisServer::start("quota_redis: rights taken away") else { return };
    let words = RIGHTS.lines().find_map(|line| line.strip_prefix("ACL SETUSER gateway ")).unwrap();
    let words: Vec<_> = words.split(' ').collect();
    server.ask(&[&["ACL", "SETUSER", "gateway"], &*words].concat());
    let store = store(&format!("redis://gateway:secret@127.0.0.1:{}", server.port()));
    let a = limited("a", 1 << 40);
    let commands = words.iter().filter_map(|word| word.strip_prefix('+'));
    let commands: Vec<_> = commands.filter(|name| name.starts_with(['h', 'z', 'p', 't'])).collect();
    assert!(commands.contains(&"zrem") && commands.contains(&"hkeys"));
    for command in commands.iter().filter(|name| !["hello", "ping"].contains(name)) {
        let (may, may_not) = (format!("+{command}"), format!("-{command}"));
        let [settled, released, expired] =
            [granted(&store, &a, 10).await, granted(&store, &a, 20).await, granted(&store, &a, 40).await];
        server.ask(&["ACL", "SETUSER", "gateway", &may_not]);
        let refused = reservation(id(), &a, 80);
        let _ = store.reserve(&refused).await;
        let settlement = Settlement::new(settled, a.clone(), tokens(1));
        let _ = store.settle(&settlement).await;
        let _ = store.release(released, &a).await;
        let _ = store.extend(expired, &a, LEASE).await;
        let _ = store.recount(&"a".into(), WindowName::Day(days()[1].date), true).await;
        server.ask(&["ACL", "SETUSER", "gateway", &may]);
        // Sent again, as a worker does.
        let _ = store.settle(&settlement).await.unwrap();
        store.release(released, &a).await.unwrap();
        store.release(refused.id, &a).await.unwrap();
        assert_eq!(counted(&store, "a").await, (1, 40), "without {command}");
        settle(&store, expired, &a, 2).await;
        assert_eq!(counted(&store, "a").await, (3, 0), "without {command}");
        server.ask(&["FLUSHALL"]);
    }
}

#[tokio::test]
async fn in_a_cluster_each_node_is_checked_and_a_prefix_that_scatters_is_found() {
    let Some(cluster) = RedisCluster::start("quota_redis: check cluster") else { return };
    let store = cluster_store(&cluster).with_deadline(Duration::from_secs(2));
    store.check().await.unwrap();
    let scattered = store.clone().with_prefix("a{}b");
    assert!(matches!(scattered.check().await, Err(RedisUnfit::Scattered)));
    cluster.nodes[2].ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lfu"]);
    let unfit = store.check().await.unwrap_err();
    assert!(
        matches!(&unfit, RedisUnfit::Evicts { server, .. } if server.ends_with(&cluster.nodes[2].port().to_string()))
    );
}

// ===== faults =====

#[tokio::test]
async fn a_server_that_was_killed_refuses_at_once_and_goes_on_with_what_it_had() {
    let Some(mut server) = RedisServer::start_durable("quota_redis: killed") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let call = granted(&store, &a, 300).await;
    server.kill();
    for _ in 0..3 {
        refused(&store, &a).await;
    }
    let (_, error) = refused(&store, &a).await;
    assert!(matches!(error, StoreError::Definite(_)), "nobody listens: {error:?}");
    server.restart();
    let took = until_granted(&store, &a, Duration::from_secs(5)).await;
    println!("granted again {took:?} after the restart");
    assert_eq!(counted(&store, "a").await, (0, 300));
    assert_eq!(settle(&store, call, &a, 120).await, Applied::First);
    assert_eq!(counted(&store, "a").await, (120, 0));
}

#[tokio::test]
async fn a_server_that_came_back_empty_says_so_until_it_is_told_the_truth() {
    let Some(mut server) = RedisServer::start("quota_redis: emptied") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let day = days()[1];
    let wary = |id| reservation(id, &a, 300).with_needs_seed(true);
    for round in 0..2 {
        let in_vain = store.reserve(&wary(id())).await;
        let Err(StoreError::Unseeded { departments, .. }) = in_vain else { panic!("{in_vain:?}") };
        assert_eq!(departments, [Arc::clone(&a[0].id)]);
        // Two gateways at once, of which one does it.
        let truth = Baseline::new(day, tokens(600), tokens(650));
        let [one, other] = join_all([(); 2].map(|()| store.seed(&a[0].id, &truth))).await.try_into().unwrap();
        assert_ne!(one.unwrap(), other.unwrap());
        let call = id();
        assert!(matches!(store.reserve(&wary(call)).await.unwrap(), Decision::Granted(_)));
        assert!(matches!(store.reserve(&wary(id())).await.unwrap(), Decision::Denied(_)), "650 + 300 + 300");
        assert_eq!(counted(&store, "a").await, (650, 300));
        assert_eq!(standing(&store, "a").await.in_day.settled.tokens, 600);
        server.restart_empty();
        if round == 0 {
            // What was in flight is unknown there: it changes nothing.
            let settlement = Settlement::new(call, a.clone(), tokens(10));
            let settled = until_done(Duration::from_secs(5), || store.settle(&settlement));
            assert_eq!(settled.await, Applied::Duplicate);
            assert_eq!(counted(&store, "a").await, (0, 0));
        }
    }
}

#[tokio::test]
async fn a_frozen_server_refuses_in_time_and_whatever_comes_first_at_the_thaw_nothing_is_left() {
    let Some(server) = RedisServer::start("quota_redis: frozen") else { return };
    let (store, other, a) = (store(&server.url()), store(&server.url()), limited("a", 100_000));
    granted(&store, &a, 1).await;
    granted(&other, &a, 1).await;
    for _ in 0..8 {
        server.freeze();
        let calls: Vec<_> = join_all((0..20).map(|_| refused(&store, &a))).await;
        assert_eq!(calls.len(), 20);
        assert!(calls.iter().any(|(_, error)| error.is_ambiguous()));
        // Sent on another connection while all of it waits: some releases come before their reservations.
        let given_up = join_all(calls.iter().map(|(id, _)| other.release(*id, &a))).await;
        assert!(given_up.iter().all(Result::is_err));
        server.thaw();
        until_granted(&store, &a, Duration::from_secs(3)).await;
        for (id, _) in &calls {
            until_done(Duration::from_secs(3), || store.release(*id, &a)).await;
            let again = store.reserve(&reservation(*id, &a, 100)).await.unwrap();
            if again != Decision::Ended {
                // It had come, and was given back.
                store.release(*id, &a).await.unwrap();
            }
        }
        assert_eq!(counted(&store, "a").await, (0, 2));
    }
}

#[tokio::test]
async fn a_reservation_that_comes_after_its_release_is_refused() {
    let Some(server) = RedisServer::start("quota_redis: late") else { return };
    let (store, a) = (store(&server.url()), limited("a", 1000));
    let call = id();
    store.release(call, &a).await.unwrap();
    assert_eq!(store.reserve(&reservation(call, &a, 10)).await.unwrap(), Decision::Ended);
    assert_eq!(counted(&store, "a").await, (0, 0));
    store.advance(llm_layers::quota::ENDED_KEPT);
    assert!(matches!(store.reserve(&reservation(call, &a, 10)).await.unwrap(), Decision::Granted(_)));
}

#[tokio::test]
async fn a_reply_that_is_lost_is_ambiguous_and_repeating_counts_nothing_twice() {
    let Some(server) = RedisServer::start("quota_redis: lost") else { return };
    let proxy = Proxy::start(server.port());
    let (store, direct, a) = (store(&proxy.url()), store(&server.url()), limited("a", 1000));
    granted(&store, &a, 1).await;
    let mut settled = 0;
    for mode in [Mode::Cut, Mode::Swallow, Mode::Delay(DEADLINE * 2)] {
        proxy.set(mode);
        let (lost, error) = refused(&store, &a).await;
        assert!(error.is_ambiguous(), "{mode:?}: {error:?}");
        // It comes to pass; with a delay, some time.
        until_done(Duration::from_secs(1), || async {
            match counted(&direct, "a").await {
                (_, 101) => Ok(()),
                other => Err(StoreError::definite(format!("{other:?}"))),
            }
        })
        .await;
        proxy.set(Mode::Pass);
        until_done(Duration::from_secs(3), || store.release(lost, &a)).await;
        assert_eq!(counted(&direct, "a").await, (settled, 1));

        let call = granted(&store, &a, 100).await;
        proxy.set(mode);
        let settlement = Settlement::new(call, a.clone(), tokens(40));
        assert!(store.settle(&settlement).await.unwrap_err().is_ambiguous());
        proxy.set(Mode::Pass);
        let again = until_done(Duration::from_secs(3), || store.settle(&settlement)).await;
        assert_eq!(again, Applied::Duplicate);
        settled += 40;
        assert_eq!(counted(&direct, "a").await, (settled, 1));
    }
}

/// Calls as a gateway makes them: what is ambiguous is released, what is granted is settled, until it is done. What was
/// used up.
async fn call(store: &impl QuotaStore, departments: &Departments, most: u64, truth: u64) -> Option<u64> {
    let (id, since) = (id(), Instant::now());
    match store.reserve(&reservation(id, departments, most)).await {
        Ok(Decision::Granted(_)) => {
            let settlement = Settlement::new(id, departments.clone(), tokens(truth));
            let settled = until_done(Duration::from_secs(30), || store.settle(&settlement)).await;
            assert_ne!(settled, Applied::TrueUp);
            return Some(truth);
        }
        Ok(Decision::Denied(_)) => {}
        Ok(Decision::Ended) => panic!("a call that is new has ended"),
        Err(error) => {
            assert!(since.elapsed() < PATIENCE, "{:?}", since.elapsed());
            if error.is_ambiguous() {
                until_done(Duration::from_secs(30), || store.release(id, departments)).await;
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_through_a_network_that_loses_replies_are_each_counted_once() {
    let Some(server) = RedisServer::start("quota_redis: lossy") else { return };
    let proxy = Proxy::start(server.port());
    let (through, direct) = (store(&proxy.url()), store(&server.url()));
    let a = limited("a", 1_000_000);
    proxy.set(Mode::CutEvery(7));
    let tasks = (0..20).map(|caller| {
        let (store, a) = (through.clone(), a.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller);
            let (mut used, mut calls) = (0, 0);
            for _ in 0..40 {
                if let Some(truth) = call(&store, &a, 100, random.u64(0..=100)).await {
                    (used, calls) = (used + truth, calls + 1);
                }
            }
            (used, calls)
        })
    });
    let (used, calls) = join_all(tasks)
        .await
        .into_iter()
        .map(Result::unwrap)
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{calls} calls of 800, {} connections cut", proxy.cuts());
    assert!(proxy.cuts() > 10 && calls > 200, "{} cuts, {calls} calls", proxy.cuts());
    let used_up = standing(&direct, "a").await.in_month;
    assert_eq!(used_up.settled, Amount::new(calls, used, NanoUsd::new(used as i64 * 10)));
    assert_eq!(used_up.reserved, Amount::ZERO);
}

// ===== several slots =====

/// A department of each node.
fn one_of_each(cluster: &RedisCluster, store: &RedisQuotaStore) -> Vec<String> {
    let owner = |name: &String| {
        let slot = cluster.nodes[0].ask(&["CLUSTER", "KEYSLOT", &store.keys(name)[0]]);
        cluster.owner(slot.parse().unwrap(), 0).unwrap()
    };
    (0..3).map(|node| (0..).map(|n| format!("d{n}")).find(|name| owner(name) == node).unwrap()).collect()
}

#[tokio::test]
async fn what_one_slot_denies_is_taken_back_in_the_others() {
    let Some(cluster) = RedisCluster::start("quota_redis: denied") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let limits = [Limits::new(), Limits::new().with_day_tokens(50), Limits::new()];
    let all = Departments::new(
        names.iter().zip(limits).map(|(name, limits)| Department::new(name.as_str(), limits)),
    );
    let (_, decision) = reserve(&store, &all, 60).await;
    let Decision::Denied(denial) = decision else { panic!("{decision:?}") };
    assert_eq!((&*denial.department, denial.in_flight_only), (&*names[1], false));
    for name in &names {
        let standing = standing(&store, name).await;
        assert_eq!((standing.in_month.reserved, standing.is_known), (Amount::ZERO, false));
        assert_eq!(
            cluster.nodes.iter().filter(|node| node.ask(&["EXISTS", &store.keys(name)[1]]) == "1").count(),
            0
        );
    }
    let call = granted(&store, &all, 40).await;
    assert!(matches!(store.reserve(&reservation(call, &all, 40)).await.unwrap(), Decision::Granted(_)));
    assert_eq!(settle(&store, call, &all, 30).await, Applied::First);
    for name in &names {
        assert_eq!(counted(&store, name).await, (30, 0));
    }
}

#[tokio::test]
async fn what_is_taken_back_is_what_is_pending_and_never_what_was_charged() {
    let Some(cluster) = RedisCluster::start("quota_redis: taken back") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    let reservation = reservation(id(), &all, 40).with_on_expiry(tokens(20));
    let decision = until_done(Duration::from_secs(2), || store.reserve(&reservation)).await;
    assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
    assert!(standing(&store, &names[0]).await.is_known, "or its past would be added once more");
    cluster.nodes[1].freeze();
    for passes in [Duration::ZERO, LEASE] {
        // Sent again, it fails in one slot; it expires before it is taken back in the others.
        let again = tokio::spawn(store.reserve(&reservation));
        tokio::time::sleep(DEADLINE / 3).await;
        store.advance(passes);
        again.await.unwrap().unwrap_err();
        for name in [&names[0], &names[2]] {
            let expected = if passes.is_zero() { (0, 40) } else { (20, 0) };
            assert_eq!(counted(&store, name).await, expected, "{name} after {passes:?}");
        }
    }
    cluster.nodes[1].thaw();
    let settlement = Settlement::new(reservation.id, all, tokens(30));
    assert_eq!(until_done(Duration::from_secs(2), || store.settle(&settlement)).await, Applied::TrueUp);
    for name in &names {
        assert_eq!(counted(&store, name).await, (30, 0));
    }
}

#[tokio::test]
async fn a_call_that_one_slot_has_lost_goes_on_in_the_others() {
    let Some(cluster) = RedisCluster::start("quota_redis: lost in one slot") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    let call = granted(&store, &all, 40).await;
    cluster.nodes[1].ask(&["FLUSHALL"]);
    let again = store.reserve(&reservation(call, &all, 40).with_needs_seed(true)).await;
    let Err(StoreError::Unseeded { departments, .. }) = again else { panic!("{again:?}") };
    assert_eq!(departments, [Arc::from(names[1].as_str())]);
    assert_eq!(settle(&store, call, &all, 30).await, Applied::First);
    for (name, used) in names.iter().zip([30, 0, 30]) {
        assert_eq!(counted(&store, name).await, (used, 0));
    }
}

#[tokio::test]
async fn what_a_gateway_left_pending_is_given_back_after_two_seconds() {
    let Some(cluster) = RedisCluster::start("quota_redis: pending") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    until_granted(&store, &all, Duration::from_secs(2)).await;
    cluster.nodes[1].freeze();
    // Gone before it was done.
    let call = id();
    let reservation = reservation(call, &all, 100);
    tokio::time::timeout(Duration::from_millis(100), store.reserve(&reservation)).await.unwrap_err();
    for name in [&names[0], &names[2]] {
        assert_eq!(counted(&store, name).await, (0, 100));
    }
    cluster.nodes[1].thaw();
    // Its turn comes with the thaw.
    until_done(Duration::from_secs(1), || async {
        match counted(&store, &names[1]).await {
            (0, 100) => Ok(()),
            other => Err(StoreError::definite(format!("{other:?}"))),
        }
    })
    .await;
    store.advance(Duration::from_millis(2000));
    for name in &names {
        assert_eq!(counted(&store, name).await, (0, 0));
    }
    assert_eq!(settle(&store, call, &all, 100).await, Applied::Duplicate);
}

#[tokio::test]
async fn a_node_that_does_not_answer_refuses_the_whole_and_nothing_stays_in_the_others() {
    let Some(cluster) = RedisCluster::start("quota_redis: node frozen") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    until_granted(&store, &all, Duration::from_secs(2)).await;
    cluster.nodes[2].freeze();
    let (call, error) = refused(&store, &all).await;
    assert!(error.is_ambiguous(), "{error:?}");
    for name in &names[..2] {
        assert_eq!(counted(&store, name).await, (0, 0));
    }
    cluster.nodes[2].thaw();
    until_done(Duration::from_secs(3), || store.release(call, &all)).await;
    until_granted(&store, &all, Duration::from_secs(3)).await;
    for name in &names {
        assert_eq!(counted(&store, name).await, (0, 0));
    }
}

/// Waits until the replica of this master has all that it has.
async fn replicated(node: &RedisServer) {
    until_done(Duration::from_secs(5), || async {
        let info = node.ask(&["INFO", "replication"]);
        let written = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        let received = info.split(",offset=").nth(1).and_then(|rest| rest.split(',').next());
        match written.is_some() && written == received {
            true => Ok(()),
            false => Err(StoreError::definite("not replicated yet")),
        }
    })
    .await;
}

/// Calls until one is granted: what it used up, and how often it was refused before.
async fn until_called(store: &RedisQuotaStore, departments: &Departments) -> (u64, u32) {
    let since = Instant::now();
    for refusals in 0.. {
        if let Some(used) = call(store, departments, 100, 60).await {
            println!("granted again after {:?} and {refusals} refusals", since.elapsed());
            return (used, refusals);
        }
        assert!(since.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    unreachable!()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_where_a_replica_takes_over() {
    let Some(mut cluster) = RedisCluster::start_with_replicas("quota_redis: failover") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    until_granted(&store, &all, Duration::from_secs(2)).await;
    let mut used = 0;
    for is_killed in [true, false] {
        for _ in 0..20 {
            used += call(&store, &all, 100, 60).await.unwrap();
        }
        let held = granted(&store, &all, 100).await;
        // What a replica does not have yet is lost with its master.
        let master = usize::from(!is_killed);
        replicated(&cluster.nodes[master]).await;
        match is_killed {
            true => cluster.nodes[master].kill(),
            false => cluster.nodes[master].freeze(),
        }
        let (once, refusals) = until_called(&store, &all).await;
        assert!(refusals > 0);
        assert_eq!(settle(&store, held, &all, 77).await, Applied::First);
        used += once + 77;
        // A majority of masters has to vote on the next one.
        match is_killed {
            true => cluster.nodes[master].restart(),
            false => cluster.nodes[master].thaw(),
        }
        cluster.wait_until_ready();
        used += until_called(&store, &all).await.0;
        // What was pending where all of the cluster was down a moment later could not be taken back.
        store.advance(Duration::from_secs(2));
        for name in &names {
            assert_eq!(counted(&store, name).await, (used, 0), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_stall_at_any_moment_leave_no_call_counted_in_part() {
    let Some(cluster) = RedisCluster::start("quota_redis: stalls") else { return };
    let store = cluster_store(&cluster);
    let names = one_of_each(&cluster, &store);
    let all = unlimited(&names);
    until_granted(&store, &all, Duration::from_secs(2)).await;
    let callers: Vec<_> = (0..12)
        .map(|caller| {
            let (store, all) = (store.clone(), all.clone());
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(caller);
                let (since, mut sum, mut refused) = (Instant::now(), (0, 0), 0);
                while since.elapsed() < Duration::from_secs(6) {
                    match call(&store, &all, 100, random.u64(0..=100)).await {
                        Some(used) => sum = (sum.0 + 1, sum.1 + used),
                        None => refused += 1,
                    }
                }
                (sum, refused)
            })
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(7);
    while !callers.iter().all(tokio::task::JoinHandle::is_finished) {
        let node = &cluster.nodes[random.usize(..3)];
        // Sometimes within the deadline, sometimes not, and never long enough to be given up by the others.
        node.freeze();
        tokio::time::sleep(Duration::from_millis(random.u64(50..600))).await;
        node.thaw();
        tokio::time::sleep(Duration::from_millis(random.u64(1..100))).await;
    }
    let (mut calls, mut used, mut refusals) = (0, 0, 0);
    for caller in join_all(callers).await {
        let (sum, refused) = caller.unwrap();
        (calls, used, refusals) = (calls + sum.0, used + sum.1, refusals + refused);
    }
    println!("{calls} calls, {refusals} refusals");
    assert!(calls > 100 && refusals > 20, "{calls} calls, {refusals} refusals");
    store.advance(Duration::from_secs(2));
    for name in &names {
        let used_up = standing(&store, name).await.in_month;
        assert_eq!(used_up.settled, Amount::new(calls, used, NanoUsd::new(used as i64 * 10)), "{name}");
        assert_eq!(used_up.reserved, Amount::ZERO, "{name}");
    }
}

// ===== several processes =====

const CHILD: &str = "LLM_LAYERS_QUOTA_URL";
const CALLERS: u64 = 100;
const LARGEST: u64 = 100;
const LIMIT: u64 = 60_000;

/// Does nothing unless it is the child: half of the callers, until the limit keeps them out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let store = store(&url).with_deadline(Duration::from_secs(10));
    let shared = limited("shared", LIMIT);
    let tasks = (0..CALLERS).map(|caller| {
        let (store, shared) = (store.clone(), shared.clone());
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller ^ u64::from(std::process::id()));
            let mut used = 0;
            loop {
                let (id, decision) = reserve(&store, &shared, LARGEST).await;
                match decision {
                    Decision::Granted(_) => {
                        let truth = random.u64(0..=LARGEST);
                        assert_eq!(settle(&store, id, &shared, truth).await, Applied::First);
                        used += truth;
                    }
                    Decision::Denied(denial) if denial.in_flight_only => tokio::task::yield_now().await,
                    Decision::Denied(_) => return used,
                    Decision::Ended => panic!(),
                }
            }
        })
    });
    let used: u64 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    println!("used={used}");
}

#[tokio::test]
async fn two_processes_with_two_hundred_callers_share_one_limit() {
    let Some(server) = RedisServer::start("quota_redis: processes") else { return };
    let children: Vec<_> = (0..2)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "child", "--nocapture", "--test-threads=1"])
                .env(CHILD, server.url())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut used = Vec::new();
    for mut child in children {
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        used.extend(
            lines.map_while(Result::ok).filter_map(|line| line.split("used=").nth(1)?.parse::<u64>().ok()),
        );
        assert!(child.wait().unwrap().success());
    }
    println!("used {used:?} of {LIMIT}");
    assert_eq!(used.len(), 2);
    assert!(used.iter().all(|used| *used > 0));
    let used: u64 = used.iter().sum();
    assert_eq!(counted(&store(&server.url()), "shared").await, (used, 0));
    assert!(used <= LIMIT, "{used}");
    assert!(used + 2 * CALLERS * LARGEST >= LIMIT, "{used}");
}
