//! Whether it is ready, as whoever hands out the calls asks.

mod common;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;

use common::{Gateway, asking};
use redis_server::RedisServer;
use std::{collections::HashSet, time::Duration};

const CONFIG: &str = r#"
    keys = [{ key = "ada", user = "ada", departments = ["research"] }]
    departments = { research = { day_requests = 100 } }
    providers = { echo = { kind = "echo" } }
    usage = { enabled = false }
    quota = { redis = { env = "QUOTA_REDIS" } }
"#;

/// One that is not ready gets no calls: it has to find out by itself that counters can be asked again.
#[tokio::test]
async fn a_gateway_whose_counters_were_away_becomes_ready_without_a_call() {
    let test = "a_gateway_whose_counters_were_away_becomes_ready_without_a_call";
    let Some(mut counters) = RedisServer::start(test) else { return };
    let gateway = Gateway::start_with(Some(CONFIG), &[("QUOTA_REDIS", &counters.url())]).await;
    let ask = async || {
        let headers = [("content-type", "application/json"), ("authorization", "Bearer ada")];
        gateway.send("POST", common::CHAT, &headers, asking("echo/a").as_bytes()).await.status
    };
    let ready = async || gateway.get("/readyz").await;
    assert_eq!((ask().await, ready().await.status), (200, 200));

    counters.kill();
    for _ in 0..5 {
        assert_eq!(ask().await, 503);
    }
    assert_eq!(ready().await.error().1, "quota_store_unavailable");
    gateway.log(&["quotas cannot be counted", "redis 127.0.0.1"]).await;
    // As long as it is away nothing changes.
    for _ in 0..30 {
        assert_eq!(ready().await.status, 503);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    counters.restart();
    common::soon(async {
        while ready().await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(ask().await, 200);
    let log = gateway.log(&["quotas are counted again"]).await;
    // Each cause once: the connection that broke may be seen before there is no other one.
    let causes: Vec<_> = log
        .lines()
        .filter_map(|line| line.split_once("quotas cannot be counted "))
        .map(|line| line.1)
        .collect();
    assert_eq!(causes.iter().collect::<HashSet<_>>().len(), causes.len(), "{log}");
    assert!(causes.len() <= 2, "{log}");
}

/// Who is not ready is asked why.
#[tokio::test]
async fn a_gateway_that_waits_for_counters_that_would_be_thrown_away_says_so() {
    let Some(mut counters) = RedisServer::start("a_gateway_that_waits_for_counters") else { return };
    counters.kill();
    let gateway = Gateway::start_with(Some(CONFIG), &[("QUOTA_REDIS", &counters.url())]).await;
    gateway.log(&["quotas cannot be counted", "cannot be reached"]).await;
    counters.restart();
    common::soon(async {
        while gateway.get("/readyz").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let log = gateway.log(&["quotas are counted again"]).await;
    let told = log.lines().filter(|line| line.contains("ERROR") && line.contains("quotas cannot be counted"));
    assert_eq!(told.count(), 1, "{log}");
    drop(gateway);

    let mut evicting = RedisServer::with_options(&["--maxmemory-policy", "allkeys-lru"]);
    evicting.kill();
    let gateway = Gateway::start_with(Some(CONFIG), &[("QUOTA_REDIS", &evicting.url())]).await;
    evicting.restart();
    gateway.log(&["quotas cannot be counted", "allkeys-lru"]).await;
    assert_eq!(gateway.get("/readyz").await.error().1, "quota_store_unavailable");
}
