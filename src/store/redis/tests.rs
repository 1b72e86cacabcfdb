#[path = "../../../tests/support/redis.rs"]
mod server;
#[path = "../../../tests/support/tls.rs"]
mod tls;

use self::server::{Mode, Proxy, RedisCluster, RedisServer, free_port};
use self::tls::Authority;
use super::*;
use tokio::time::Instant;

fn options() -> RedisOptions {
    let short = Duration::from_millis(400);
    RedisOptions::default().with_connect_timeout(short).with_deadline(short)
}

fn redis(url: &str) -> Redis {
    Redis::new(url, options()).unwrap()
}

fn cmd(words: &[&str]) -> Cmd {
    let mut command = Cmd::new();
    command.arg(words);
    command
}

async fn add(redis: &Redis, key: &str) -> Result<i64, RedisError> {
    match redis.command(Some(key.as_bytes()), &cmd(&["INCR", key])).await? {
        Value::Int(count) => Ok(count),
        other => panic!("{other:?}"),
    }
}

/// Tries until it works, and says how long that took.
async fn add_until_done(redis: &Redis, key: &str, limit: Duration) -> Duration {
    let since = Instant::now();
    loop {
        match add(redis, key).await {
            Ok(_) => return since.elapsed(),
            Err(error) if since.elapsed() > limit => panic!("still {error} after {:?}", since.elapsed()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_reported_at_once_as_surely_not_done() {
    let redis = redis(&format!("redis://127.0.0.1:{}", free_port()));
    for _ in 0..3 {
        let since = Instant::now();
        let error = add(&redis, "n").await.unwrap_err();
        assert!(since.elapsed() < Duration::from_millis(300), "{:?}", since.elapsed());
        assert_eq!(*error.kind(), RedisErrorKind::Unreachable);
        assert!(!error.is_ambiguous());
    }
}

#[tokio::test]
async fn an_address_that_never_answers_is_given_up_within_the_deadline() {
    // Takes connections by its backlog, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let redis = redis(&format!("redis://{}", silent.local_addr().unwrap()));
    let since = Instant::now();
    let errors = join_all((0..50).map(|_| add(&redis, "n"))).await;
    assert!(since.elapsed() < Duration::from_millis(600), "{:?}", since.elapsed());
    assert!(errors.iter().all(|result| result.as_ref().is_err_and(|error| !error.is_ambiguous())));
}

#[tokio::test]
async fn a_server_that_was_killed_and_started_again_is_used_again_and_who_waited_idle_notices_nothing() {
    let Some(mut server) = RedisServer::start("redis_restart") else { return };
    let redis = redis(&server.url());
    for count in 1..=3 {
        assert_eq!(add(&redis, "n").await.unwrap(), 1, "round {count}");
        server.kill();
        let error = add(&redis, "n").await.unwrap_err();
        assert_ne!(*error.kind(), RedisErrorKind::Timeout);
        server.restart();
        // Empty, as it keeps nothing.
        assert_eq!(add(&redis, "n").await.unwrap(), 1);
        server.restart();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_frozen_server_costs_the_deadline_and_works_again_when_it_thaws() {
    let Some(server) = RedisServer::start("redis_freeze") else { return };
    let redis = redis(&server.url());
    add(&redis, "n").await.unwrap();
    server.freeze();
    // Short of patience with the connection, and beyond it.
    for _ in 0..4 {
        let since = Instant::now();
        let error = add(&redis, "n").await.unwrap_err();
        assert!(since.elapsed() < Duration::from_millis(550), "{:?}", since.elapsed());
        assert!(matches!(error.kind(), RedisErrorKind::Timeout | RedisErrorKind::Unreachable), "{error}");
    }
    server.thaw();
    let took = add_until_done(&redis, "m", Duration::from_secs(2)).await;
    println!("used again {took:?} after the thaw");
    assert_eq!(server.ask(&["GET", "m"]), "1");
}

#[tokio::test]
async fn a_lost_reply_is_ambiguous_and_what_was_refused_is_not() {
    let Some(server) = RedisServer::start("redis_lost") else { return };
    let proxy = Proxy::start(server.port());
    let redis = redis(&proxy.url());
    assert_eq!(add(&redis, "n").await.unwrap(), 1);
    for mode in [Mode::Cut, Mode::Swallow] {
        let before: i64 = server.ask(&["GET", "n"]).parse().unwrap();
        proxy.set(mode);
        let error = add(&redis, "n").await.unwrap_err();
        assert!(error.is_ambiguous(), "{error}");
        assert_eq!(server.ask(&["GET", "n"]), (before + 1).to_string(), "it was done once");
        proxy.set(Mode::Pass);
        add_until_done(&redis, "m", Duration::from_secs(2)).await;
    }
    server.ask(&["SET", "text", "a"]);
    let error = add(&redis, "text").await.unwrap_err();
    assert_eq!(*error.kind(), RedisErrorKind::Server("ERR".into()));
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = add(&redis, "n").await.unwrap_err();
    assert_eq!((error.kind(), error.is_ambiguous()), (&RedisErrorKind::Server("OOM".into()), false));
}

#[tokio::test]
async fn a_half_open_connection_is_given_up_after_a_while_though_each_caller_leaves_early() {
    let Some(server) = RedisServer::start("redis_half_open") else { return };
    let proxy = Proxy::start(server.port());
    let redis = redis(&proxy.url());
    add(&redis, "n").await.unwrap();
    proxy.set(Mode::Swallow);
    let hasty = redis.clone().with_deadline(Duration::from_millis(60));
    add(&hasty, "n").await.unwrap_err();
    // The connection that has lost replies is closed only when another reply comes: none does, as nobody asks for so long.
    tokio::time::sleep(Duration::from_millis(450)).await;
    add(&hasty, "n").await.unwrap_err();
    proxy.set(Mode::Pass);
    assert!(add(&redis, "m").await.is_ok(), "a new connection");
}

#[tokio::test]
async fn a_server_that_was_made_a_replica_is_left_for_whom_its_address_leads_to() {
    let Some(server) = RedisServer::start("redis_demoted") else { return };
    let next = RedisServer::with_options(&["--appendonly", "no"]);
    let proxy = Proxy::start(server.port());
    let redis = redis(&proxy.url());
    add(&redis, "n").await.unwrap();
    server.ask(&["REPLICAOF", "127.0.0.1", &next.port().to_string()]);
    proxy.lead_to(next.port());
    let error = add(&redis, "n").await.unwrap_err();
    assert_eq!((error.kind(), error.is_ambiguous()), (&RedisErrorKind::Server("READONLY".into()), false));
    assert_eq!(add(&redis, "m").await.unwrap(), 1);
    assert_eq!(next.ask(&["GET", "m"]), "1");
}

const COUNT: &str = "return redis.call('INCRBY', KEYS[1], ARGV[1])";

#[tokio::test]
async fn a_script_is_sent_in_full_only_to_a_server_that_does_not_know_it() {
    let Some(server) = RedisServer::start("redis_script") else { return };
    let redis = redis(&server.url());
    let script = Script::new(COUNT);
    let calls = |name: &str| {
        let stats = server.ask(&["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:")));
        line.map_or(0, |line| line.split(['=', ',']).nth(1).unwrap().parse::<u32>().unwrap())
    };
    for count in 1..=3 {
        let run = script.run(&["n"]).arg(2);
        assert_eq!(redis.run(&run).await.unwrap(), Value::Int(2 * count));
    }
    assert_eq!((calls("evalsha"), calls("eval")), (3, 1));
    server.ask(&["SCRIPT", "FLUSH"]);
    assert_eq!(redis.run(&script.run(&["n"]).arg(2)).await.unwrap(), Value::Int(8));
    assert_eq!((calls("evalsha"), calls("eval")), (4, 2));
}

#[tokio::test]
async fn what_fails_inside_of_a_script_may_have_been_done_in_part() {
    let Some(server) = RedisServer::start("redis_script_error") else { return };
    let redis = redis(&server.url());
    server.ask(&["SET", "text", "a"]);
    let script = Script::new("redis.call('SET', KEYS[1], 'x') return redis.call('INCR', KEYS[2])");
    let error = redis.run(&script.run(&["done", "text"])).await.unwrap_err();
    assert!(error.is_ambiguous());
    assert_eq!(server.ask(&["GET", "done"]), "x");
}

#[tokio::test]
async fn passwords_are_in_no_message() {
    let Some(server) = RedisServer::start("redis_password") else { return };
    server.ask(&["CONFIG", "SET", "requirepass", "right-horse"]);
    let good = redis(&format!("redis://:right-horse@127.0.0.1:{}", server.port()));
    assert_eq!(add(&good, "n").await.unwrap(), 1);
    assert!(!format!("{good:?}").contains("horse"));
    let bad = redis(&format!("redis://:wrong-horse@127.0.0.1:{}", server.port()));
    let error = add(&bad, "n").await.unwrap_err();
    assert_eq!((error.kind(), error.is_ambiguous()), (&RedisErrorKind::Refused, false));
    assert!(!format!("{error} {error:?} {bad:?}").contains("horse"));
    let none = redis(&server.url());
    assert_eq!(*add(&none, "n").await.unwrap_err().kind(), RedisErrorKind::Refused);
    for url in ["redis//:horse@h", "http://:horse@h", "redis://:horse@h:port", "redis://:horse@h/db", ""] {
        let error = Redis::new(url, options()).unwrap_err();
        assert_eq!(*error.kind(), RedisErrorKind::InvalidUrl);
        assert!(!format!("{error} {error:?}").contains("horse"));
    }
    assert!(Redis::cluster(Vec::<String>::new(), options()).is_err());
}

#[tokio::test]
async fn many_at_once_share_a_connection() {
    let Some(server) = RedisServer::start("redis_many") else { return };
    let redis = redis(&server.url()).with_deadline(Duration::from_secs(10));
    let results = join_all((0..2000).map(|_| add(&redis, "n"))).await;
    let mut counts: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    counts.sort_unstable();
    assert_eq!(counts, (1..=2000).collect::<Vec<_>>());
    assert_eq!(server.ask(&["CLIENT", "LIST"]).lines().count(), 2, "and the one who asks");
}

#[test]
fn a_database_of_a_cluster_is_no_address() {
    let cluster = |urls: &[&str]| Redis::cluster(urls, options()).map_err(|error| error.kind().clone());
    cluster(&["redis://127.0.0.1:1", "redis://127.0.0.1:2/0"]).unwrap();
    let error = cluster(&["redis://127.0.0.1:1", "redis://127.0.0.1:2/3"]).unwrap_err();
    assert_eq!(error, RedisErrorKind::InvalidUrl);
}

fn cluster_of(cluster: &RedisCluster) -> Redis {
    Redis::cluster(cluster.urls(), options()).unwrap()
}

#[tokio::test]
async fn in_a_cluster_each_key_is_asked_for_where_it_is_also_after_it_has_moved() {
    let Some(cluster) = RedisCluster::start("redis_cluster") else { return };
    let nodes = &cluster.nodes;
    let redis = Redis::cluster([nodes[1].url()], options()).unwrap();
    redis.ping().await.unwrap();
    for number in 0..300 {
        let key = format!("key-{number}");
        assert_eq!(nodes[0].ask(&["CLUSTER", "KEYSLOT", &key]), slot(key.as_bytes()).to_string());
        assert_eq!(add(&redis, &key).await.unwrap(), 1);
    }
    let sizes: Vec<usize> = nodes.iter().map(|node| node.ask(&["DBSIZE"]).parse().unwrap()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 300);
    assert!(sizes.iter().all(|size| *size > 50), "{sizes:?}");

    // One slot, from its owner to the next node: while it moves, and when it has.
    let key = "{moving}key";
    assert_eq!(add(&redis, key).await.unwrap(), 1);
    let number = slot(key.as_bytes());
    let from = cluster.owner(number, 0).unwrap();
    let to = (from + 1) % 3;
    let ids: Vec<_> = nodes.iter().map(|node| node.ask(&["CLUSTER", "MYID"])).collect();
    let set = |node: usize, how: &str, id: usize| {
        nodes[node].ask(&["CLUSTER", "SETSLOT", &number.to_string(), how, &ids[id]])
    };
    assert_eq!(set(to, "IMPORTING", from), "OK");
    assert_eq!(set(from, "MIGRATING", to), "OK");
    assert_eq!(add(&redis, "{moving}new").await.unwrap(), 1, "not there any more, so at the new place");
    assert_eq!(add(&redis, key).await.unwrap(), 2, "still at the old place");
    let port = nodes[to].port().to_string();
    nodes[from].ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "1000"]);
    assert_eq!(add(&redis, key).await.unwrap(), 3);
    let script = Script::new(COUNT);
    for (key, sum) in [(key, 4), ("{moving}new", 2)] {
        assert_eq!(redis.run(&script.run(&[key]).arg(1)).await.unwrap(), Value::Int(sum));
    }
    for node in [to, from, 3 - to - from] {
        assert_eq!(set(node, "NODE", to), "OK");
    }
    assert_eq!(add(&redis, key).await.unwrap(), 5);
}

#[tokio::test]
async fn in_a_cluster_calls_go_to_the_replica_that_takes_over() {
    let Some(mut cluster) = RedisCluster::start_with_replicas("redis_failover") else { return };
    let redis = cluster_of(&cluster);
    let keys: Vec<_> = (0..30).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        assert_eq!(add(&redis, key).await.unwrap(), 1);
    }
    let elsewhere = keys.iter().find(|key| slot(key.as_bytes()) >= 11_000).unwrap().clone();

    cluster.nodes[0].kill();
    not_held_up(&redis, &elsewhere).await;
    let since = Instant::now();
    for key in &keys {
        add_until_done(&redis, key, Duration::from_secs(20)).await;
    }
    println!("all slots served again {:?} after a master was killed", since.elapsed());
    // A majority of masters has to vote.
    cluster.nodes[0].restart();
    cluster.wait_until_ready();

    cluster.nodes[1].freeze();
    not_held_up(&redis, &elsewhere).await;
    let since = Instant::now();
    for key in &keys {
        add_until_done(&redis, key, Duration::from_secs(20)).await;
    }
    println!("all slots served again {:?} after a master was frozen", since.elapsed());
    cluster.nodes[1].thaw();
    add_until_done(&redis, &keys[0], Duration::from_secs(5)).await;
    redis.ping().await.unwrap();
}

/// What other nodes serve goes on, as far as they say so.
async fn not_held_up(redis: &Redis, key: &str) {
    let (start, mut most) = (Instant::now(), Duration::ZERO);
    while start.elapsed() < Duration::from_millis(500) {
        let since = Instant::now();
        if let Err(error) = add(redis, key).await {
            assert_eq!(error.kind(), &RedisErrorKind::Server("CLUSTERDOWN".into()), "{error}");
        }
        most = most.max(since.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(most < Duration::from_millis(300), "{most:?}");
}

#[tokio::test]
async fn over_tls_only_a_server_that_is_known_is_spoken_to() {
    let name = "over_tls_only_a_server_that_is_known_is_spoken_to";
    if !server::is_installed(name) {
        return;
    }
    let port = free_port();
    let authority = Authority::new();
    let signed = authority.sign(&["127.0.0.1"]);
    let directory = std::env::temp_dir().join(format!("llm-layers-tls-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (certificate, key) = (file("server.pem", &signed.pem), file("server.key", &signed.key));
    let number = port.to_string();
    let server = RedisServer::with_options(&[
        "--tls-port",
        &number,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-auth-clients",
        "no",
    ]);
    let url = format!("rediss://127.0.0.1:{port}");
    std::fs::remove_dir_all(&directory).unwrap();
    let trusting = options().with_root_certificate(authority.pem().as_bytes());
    let known = Redis::new(&url, trusting.clone()).unwrap();
    assert_eq!(add(&known, "n").await.unwrap(), 1);
    known.ping().await.unwrap();
    assert_eq!(server.ask(&["GET", "n"]), "1");

    // Signed by nobody that is known; and no TLS at all.
    let stranger = redis(&url);
    let plain = Redis::new(&format!("rediss://127.0.0.1:{}", server.port()), trusting).unwrap();
    for redis in [stranger, plain] {
        let error = add(&redis, "n").await.unwrap_err();
        // One that knows no TLS waits for the end of a line.
        assert!(matches!(error.kind(), RedisErrorKind::Unreachable | RedisErrorKind::Timeout), "{error}");
        assert!(!error.is_ambiguous());
    }
    assert_eq!(server.ask(&["GET", "n"]), "1");
}
