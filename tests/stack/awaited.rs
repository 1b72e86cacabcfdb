//! Counters in a server of Redis that is not there, or not what it must be, for a while.

use super::{redis_server::Proxy, *};

/// Longer than from one look at a server that is well to the next.
const A_WHILE: Duration = Duration::from_secs(30);

async fn until(is_so: impl AsyncFn() -> bool) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(A_WHILE, waiting).await.unwrap();
}

fn counted_at(url: &str) -> Config {
    config(&format!("quota.redis = {url:?}\ndepartments.a.day_requests = 100000\n"))
}

async fn ask(service: &BoxService) -> Result<LlmResponse, Error> {
    service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await
}

#[tokio::test]
async fn a_stack_that_is_idle_while_its_redis_is_demoted_follows_the_address_to_the_next() {
    let Some(server) = RedisServer::start("stack: demoted") else { return };
    let next = RedisServer::with_options(&["--appendonly", "no"]);
    let proxy = Proxy::start(server.port());
    let (service, handle) = stack(counted_at(&proxy.url())).await.unwrap();
    ask(&service).await.unwrap();
    let settled = async || handle.quota("a").await.unwrap().unwrap().standing.in_day.settled.requests;
    // What is written later would hear that it is a replica.
    until(async || settled().await == 1).await;
    server.ask(&["REPLICAOF", "127.0.0.1", &next.port().to_string()]);
    proxy.lead_to(next.port());
    for readiness in [Readiness::QuotaUnavailable, Readiness::Ready] {
        until(async || handle.readiness() == readiness).await;
    }
    ask(&service).await.unwrap();
    assert_ne!(next.ask(&["DBSIZE"]), "0");
    assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
}

#[tokio::test]
async fn a_stack_whose_handle_is_gone_asks_its_redis_as_long_as_there_is_a_service() {
    let Some(mut server) = RedisServer::start("stack: handle gone") else { return };
    server.kill();
    let (service, handle) = stack(counted_at(&server.url())).await.unwrap();
    drop(handle);
    assert!(ask(&service).await.is_err());
    server.restart();
    until(async || ask(&service).await.is_ok()).await;
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    until(async || ask(&service).await.is_err()).await;
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    until(async || ask(&service).await.is_ok()).await;
    drop(service);
    // But for the one that asks.
    until(async || server.ask(&["CLIENT", "LIST"]).lines().count() == 1).await;
}
