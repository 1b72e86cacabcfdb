//! What Redis can do wrong: as what counts, as what keeps records, as a cache.

use crate::upstream::{charged, file, of, shown};
use faults::{
    Act, Gateway, Upstream, chat,
    matrix::{Row, Verdict},
    redis::{Mode, Proxy, RedisCluster, RedisServer, is_installed},
    until,
};
use std::{sync::Mutex, time::Duration};
use tokio::time::Instant;

const COUNTS: &str = "Redis that counts what departments use up";

/// A gateway's file, with counters at `url`.
fn counting(upstream: &Upstream, url: &str, more: &str) -> String {
    let config = file(&format!("store = \"redis\"\nredis = \"{url}\"\n{more}"), upstream);
    config.replace("timeout = \"5s\"", "timeout = \"500ms\"")
}

fn slow() -> Vec<(String, Vec<Act>)> {
    vec![("slow".to_owned(), vec![Act::Wait(Duration::from_millis(1000)), Upstream::whole("All is well.")])]
}

/// What a fault does to the call under way, and to those that come.
struct Events {
    under_way: &'static str,
    new: &'static str,
    /// Whether it is a matter of one department alone.
    stays_ready: bool,
    recovery: (&'static str, Duration),
}

async fn quotas(
    events: Events,
    config: &str,
    upstream: &Upstream,
    spoil: impl FnOnce(),
    mend: impl FnOnce(),
) -> Vec<Verdict> {
    let gateway = &Gateway::start(config).await;
    let (good, slow) = (chat("up/good", false), chat("up/slow", false));
    let mut answered = 0;
    let first = gateway.ask("ada", &good).await.expect("an answer");
    assert_eq!(first.shown(), "a whole answer", "{}", gateway.log());
    answered += 1;
    let asking = async {
        let reply = gateway.ask("ada", &slow).await.expect("an answer");
        reply.shown()
    };
    let breaking = async {
        let is_asked =
            until(Duration::from_secs(5), async || (upstream.asked("slow") > 0).then_some(())).await;
        assert!(is_asked.is_some());
        tokio::task::block_in_place(spoil);
    };
    let (under_way, ()) = tokio::join!(asking, breaking);
    answered += u64::from(under_way == "a whole answer");

    let since = Instant::now();
    let refused = gateway.ask("ada", &good).await.expect("an answer");
    let took = since.elapsed();
    let has_told = refused.header("retry-after").is_some();
    let is_told = if events.stays_ready {
        // More often than failures of a store are borne.
        for _ in 0..6 {
            let _ = gateway.ask("ada", &good).await;
        }
        gateway.is_ready().await
    } else {
        let is_known = async || {
            let _ = gateway.ask("ada", &good).await;
            (!gateway.is_ready().await).then_some(())
        };
        until(Duration::from_secs(20), is_known).await.is_some()
    };

    tokio::task::block_in_place(mend);
    let since = Instant::now();
    let again = async || gateway.ask("ada", &good).await.ok().filter(|reply| reply.status == 200);
    let is_back = until(events.recovery.1, again).await.is_some();
    let recovered = since.elapsed();
    answered += u64::from(is_back);
    let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(20)).await;
    // A settlement that had to wait may come after the first look.
    let all = async || {
        let standing = gateway.try_standing("ada", "ops").await?;
        (standing.settled.0 == answered).then_some(())
    };
    let is_counted = until(Duration::from_secs(20), all).await.is_some();
    let standing = gateway.standing("ada", "ops").await;
    let own = until(Duration::from_secs(5), async || {
        Some(of(gateway, "ada")).filter(|own| own.len() as u64 >= answered)
    });
    let own = own.await.unwrap_or_else(|| of(gateway, "ada"));
    let slow_ones: Vec<_> = own.iter().filter(|event| event.model == "up/slow").cloned().collect();
    let refused_ones = own.len() as u64 - answered;

    let reserved = if is_settled { "nothing" } else { "SOMETHING FOR EVER" };
    let row = |event, caller: String, recorded, charged, recovery| Row {
        section: COUNTS,
        event,
        caller,
        recorded,
        charged,
        reserved: reserved.to_owned(),
        recovery,
    };
    let whole = charged(standing.settled, &own);
    let first = row(events.under_way, under_way, shown(&slow_ones), whole, "–");
    let first = first.judge(["a whole answer", "1 ok", "what was reported", "nothing"]);
    let recorded = if refused_ones == 0 { "nothing".to_owned() } else { format!("{refused_ones} TOO MANY") };
    let uncharged = if standing.settled.0 == answered { "nothing" } else { "SOMETHING" };
    let second = row(events.new, refused.shown(), recorded, uncharged.to_owned(), events.recovery.0);
    let second = second
        .judge(["503 usage_store_unavailable", "nothing", "nothing", "nothing"])
        .and(took < Duration::from_secs(2), format!("refused after {took:?}"))
        .and(has_told, "without Retry-After")
        .and(is_told, format!("it says that it is {}ready", if events.stays_ready { "not " } else { "" }))
        .and(is_back, format!("not back after {recovered:?}"))
        .and(is_counted, format!("{answered} answers are counted as {standing:?}"));
    vec![first, second]
}

pub(crate) async fn quotas_killed() -> Vec<Verdict> {
    let upstream = Upstream::start(slow()).await;
    let Some(server) = RedisServer::start_durable("quotas_killed") else { return Vec::new() };
    let config = counting(&upstream, &server.url(), "");
    let server = Mutex::new(server);
    let events = Events {
        under_way: "it is killed during a call",
        new: "it is killed before a call",
        stays_ready: false,
        recovery: ("5 s", Duration::from_secs(5)),
    };
    quotas(events, &config, &upstream, || server.lock().unwrap().kill(), || server.lock().unwrap().restart())
        .await
}

pub(crate) async fn quotas_frozen() -> Vec<Verdict> {
    let upstream = Upstream::start(slow()).await;
    let Some(server) = RedisServer::start("quotas_frozen") else { return Vec::new() };
    let config = counting(&upstream, &server.url(), "");
    let events = Events {
        under_way: "it is frozen during a call",
        new: "it is frozen before a call",
        stays_ready: false,
        recovery: ("5 s", Duration::from_secs(5)),
    };
    quotas(events, &config, &upstream, || server.freeze(), || server.thaw()).await
}

pub(crate) async fn quotas_emptied() -> Vec<Verdict> {
    let upstream = Upstream::start(slow()).await;
    let Some(server) = RedisServer::start("quotas_emptied") else { return Vec::new() };
    let config = counting(&upstream, &server.url(), "");
    let server = Mutex::new(server);
    let events = Events {
        under_way: "it loses all it had during a call",
        new: "it loses all it had before a call",
        stays_ready: false,
        recovery: ("5 s", Duration::from_secs(5)),
    };
    quotas(
        events,
        &config,
        &upstream,
        || server.lock().unwrap().kill(),
        || server.lock().unwrap().restart_empty(),
    )
    .await
}

pub(crate) async fn quotas_answered_wrongly() -> Vec<Verdict> {
    lies([
        (
            "it says something else during a call",
            "it says something else before a call",
            Mode::Lie("+WAT\r\n"),
        ),
        ("it says a number during a call", "it says a number before a call", Mode::Lie(":7\r\n")),
        (
            "it says what is no answer during a call",
            "it says what is no answer before a call",
            Mode::Lie("\0\u{7f}HTTP/1.1\r\n\r\n"),
        ),
        (
            "it reports errors during a call",
            "it reports errors before a call",
            Mode::Lie("-ERR so it goes\r\n"),
        ),
        (
            "it is still reading its file during a call",
            "it is still reading its file before a call",
            Mode::Deny("-LOADING Redis is loading the dataset in memory\r\n"),
        ),
        (
            "it wants a password during a call",
            "it wants a password before a call",
            Mode::Deny("-NOAUTH Authentication required.\r\n"),
        ),
    ])
    .await
}

/// A server that is there, and says that it cannot: each as it comes to say so.
pub(crate) async fn quotas_refused() -> Vec<Verdict> {
    type Change = fn(&RedisServer);
    let cases: [(&str, &str, Change, Change); 4] = [
        (
            "it may only be read during a call",
            "it may only be read before a call",
            |server| told(server, &["REPLICAOF", "127.0.0.1", "1"]),
            |server| told(server, &["REPLICAOF", "NO", "ONE"]),
        ),
        (
            "it has no memory left during a call",
            "it has no memory left before a call",
            |server| told(server, &["CONFIG", "SET", "maxmemory", "1"]),
            |server| told(server, &["CONFIG", "SET", "maxmemory", "0"]),
        ),
        (
            "it takes our rights away during a call",
            "it takes our rights away before a call",
            |server| told(server, &["ACL", "SETUSER", "default", "-@all", "+acl", "+keys"]),
            |server| told(server, &["ACL", "SETUSER", "default", "+@all"]),
        ),
        (
            "it cannot write to its disk during a call",
            "it cannot write to its disk before a call",
            |server| {
                let gone = std::env::temp_dir().join(format!("faults-gone-{}", fastrand::u64(..)));
                std::fs::create_dir(&gone).expect("a folder");
                told(server, &["CONFIG", "SET", "save", "3600 1"]);
                told(server, &["CONFIG", "SET", "dir", gone.to_str().expect("text")]);
                std::fs::remove_dir(&gone).expect("it is empty");
                server.ask(&["BGSAVE"]);
                while !server.ask(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err") {
                    std::thread::sleep(Duration::from_millis(10));
                }
            },
            |server| told(server, &["CONFIG", "SET", "save", ""]),
        ),
    ];
    let mut verdicts = Vec::new();
    for (under_way, new, spoil, mend) in cases {
        let upstream = Upstream::start(slow()).await;
        if !is_installed("quotas_refused") {
            return Vec::new();
        }
        let server = RedisServer::with_options(&["--enable-protected-configs", "yes"]);
        let config = counting(&upstream, &server.url(), "");
        let events = Events { under_way, new, stays_ready: false, recovery: ("5 s", Duration::from_secs(5)) };
        verdicts.extend(quotas(events, &config, &upstream, || spoil(&server), || mend(&server)).await);
    }
    verdicts
}

fn told(server: &RedisServer, command: &[&str]) {
    let reply = server.ask(command);
    assert_eq!(reply.trim(), "OK", "{command:?}");
}

async fn lies(all: impl IntoIterator<Item = (&'static str, &'static str, Mode)>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (under_way, new, mode) in all {
        let upstream = Upstream::start(slow()).await;
        let Some(server) = RedisServer::start("lies") else { return Vec::new() };
        let proxy = Proxy::start(server.port());
        let config = counting(&upstream, &proxy.url(), "");
        let events = Events { under_way, new, stays_ready: false, recovery: ("5 s", Duration::from_secs(5)) };
        let mend = || {
            // Whoever has been lied to has to connect anew.
            proxy.set(Mode::Refuse);
            proxy.set(Mode::Pass);
        };
        verdicts.extend(quotas(events, &config, &upstream, || proxy.set(mode), mend).await);
    }
    verdicts
}

/// Somebody else's texts stand where counters and leases were.
pub(crate) async fn quotas_overwritten() -> Vec<Verdict> {
    let upstream = Upstream::start(slow()).await;
    let Some(server) = RedisServer::start("quotas_overwritten") else { return Vec::new() };
    let config = counting(&upstream, &server.url(), "");
    let events = Events {
        under_way: "somebody writes over its counters during a call",
        new: "somebody writes over its counters before a call",
        stays_ready: true,
        recovery: ("5 s", Duration::from_secs(5)),
    };
    let keys = || server.ask(&["KEYS", "*"]).lines().map(str::to_owned).collect::<Vec<_>>();
    let spoil = || {
        let mut names = keys();
        assert!(!names.is_empty(), "there are counters");
        // Those of leases too, which are there in the middle of a call only.
        for name in names.clone() {
            let (stem, _) = name.rsplit_once(':').expect("a key of a department");
            names.extend(["counters", "leases", "expiries"].map(|of| format!("{stem}:{of}")));
        }
        names.iter().for_each(|name| {
            server.ask(&["SET", name, "not a counter"]);
        });
    };
    let mend = || {
        keys().iter().for_each(|name| {
            server.ask(&["DEL", name]);
        });
    };
    quotas(events, &config, &upstream, spoil, mend).await
}

pub(crate) async fn quotas_fail_over() -> Vec<Verdict> {
    let upstream = Upstream::start(slow()).await;
    let cluster = tokio::task::block_in_place(|| RedisCluster::start_with_replicas("quotas_fail_over"));
    let Some(cluster) = cluster else { return Vec::new() };
    let config = counting(&upstream, &cluster.urls().join(","), "redis_cluster = true");
    let cluster = Mutex::new(cluster);
    let spoil = || {
        // Whichever of them counts for this department: its replica takes over by itself.
        for master in &mut cluster.lock().unwrap().nodes[..3] {
            let counts = master.ask(&["KEYS", "*"]);
            if !counts.trim().is_empty() {
                master.kill();
            }
        }
    };
    let events = Events {
        under_way: "a master dies during a call, and its replica takes over",
        new: "a master dies before a call, and its replica takes over",
        stays_ready: false,
        recovery: ("15 s", Duration::from_secs(15)),
    };
    quotas(events, &config, &upstream, spoil, || {}).await
}

/// Calls go on, and are recorded when it is back.
pub(crate) async fn records() -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (event, is_frozen) in [("it is killed", false), ("it is frozen", true)] {
        let upstream = Upstream::start([]).await;
        let Some(mut server) = RedisServer::start_durable("records") else { return Vec::new() };
        let config = format!(
            r#"
            [usage]
            redis = "{}"
            hold_last_byte = "5s"
            [providers.up]
            base_url = "{}"
            [[keys]]
            key = "ada"
            user = "ada"
            admin = true
            departments = ["ops"]
            "#,
            server.url(),
            upstream.url
        );
        let gateway = Gateway::start(&config).await;
        let good = chat("up/good", false);
        assert_eq!(gateway.ask("ada", &good).await.expect("an answer").shown(), "a whole answer");
        tokio::task::block_in_place(|| if is_frozen { server.freeze() } else { server.kill() });
        let since = Instant::now();
        let mut told = Vec::new();
        for _ in 0..5 {
            told.push(gateway.ask("ada", &good).await.expect("an answer").shown());
        }
        let took = since.elapsed();
        let is_ready = gateway.is_ready().await;
        tokio::task::block_in_place(|| if is_frozen { server.thaw() } else { server.restart() });
        let recorded = async || Some(of(&gateway, "ada")).filter(|own| own.len() >= 6);
        let own = until(Duration::from_secs(15), recorded).await;
        let own = own.unwrap_or_else(|| of(&gateway, "ada"));
        told.sort();
        told.dedup();
        let row = Row {
            section: "Redis that keeps the record of usage",
            event,
            caller: told.join(", "),
            recorded: shown(&own[1.min(own.len())..]).replace("5 ok", "1 ok, when it is back"),
            charged: "–".to_owned(),
            reserved: "–".to_owned(),
            recovery: "15 s",
        };
        verdicts.push(
            row.judge(["a whole answer", "1 ok, when it is back", "–", "–"])
                .and(took < Duration::from_secs(3), format!("five calls took {took:?}"))
                .and(is_ready, "it says that it is not ready, though all is recorded in its log"),
        );
    }
    verdicts
}

/// Calls are made as if nothing had been kept.
pub(crate) async fn cache() -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (event, mode) in [
        ("it is away", Mode::Refuse),
        ("it does not answer", Mode::Swallow),
        ("it says something else", Mode::Lie("+WAT\r\n")),
        ("it answers with what somebody else was told", Mode::Lie("$5\r\nhello\r\n")),
        ("it is still reading its file", Mode::Deny("-LOADING Redis is loading the dataset in memory\r\n")),
        ("it wants a password", Mode::Deny("-NOAUTH Authentication required.\r\n")),
    ] {
        let upstream = Upstream::start([]).await;
        let Some(server) = RedisServer::start("cache") else { return Vec::new() };
        let proxy = Proxy::start(server.port());
        let secret = "a-secret-of-more-than-thirty-two-letters";
        let cache = format!("[cache]\nenabled = true\nredis = \"{}\"\nsecret = \"{secret}\"", proxy.url());
        let config = file(&cache, &upstream);
        // The second has nothing in its own memory.
        let (one, other) = tokio::join!(Gateway::start(&config), Gateway::start(&config));
        // What is not written in time is not written: it is asked until something is.
        let mut kept = 0;
        let question = |number: usize| chat(&format!("up/good{number}"), false);
        let keys = async || {
            kept += 1;
            let _ = one.ask("ada", &question(kept)).await;
            until(Duration::from_secs(1), async || {
                (!server.ask(&["KEYS", "*"]).trim().is_empty()).then_some(())
            })
            .await
        };
        assert!(until(Duration::from_secs(20), keys).await.is_some(), "nothing is kept");
        let good = question(kept);
        proxy.set(mode);
        let since = Instant::now();
        let reply = other.ask("ada", &good).await.expect("an answer");
        let took = since.elapsed();
        let asked = upstream.asked(&format!("good{kept}"));
        proxy.set(Mode::Refuse);
        proxy.set(Mode::Pass);
        let other_question = chat("up/other", false);
        let hit = async || {
            let _ = one.ask("ada", &other_question).await;
            let reply = other.ask("ada", &other_question).await.ok()?;
            reply.header("age").is_some().then_some(())
        };
        let is_back = until(Duration::from_secs(15), hit).await.is_some();
        let own =
            until(Duration::from_secs(5), async || Some(of(&other, "ada")).filter(|own| !own.is_empty()))
                .await;
        let row = Row {
            section: "Redis that keeps a cache",
            event,
            caller: reply.shown(),
            recorded: shown(&own.unwrap_or_default()[..1]),
            charged: "–".to_owned(),
            reserved: "–".to_owned(),
            recovery: "15 s",
        };
        verdicts.push(
            row.judge(["a whole answer", "1 ok", "–", "–"])
                .and(took < Duration::from_secs(3), format!("the call took {took:?}"))
                .and(asked == 2, format!("the provider was asked {asked} times"))
                .and(is_back, "nothing is taken from it again"),
        );
    }
    verdicts
}
