//! Several gateways that record usage in one Redis.

mod common;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;

use common::{Gateway, JSON, asking, run};
use redis_server::RedisServer;
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

const ROOT: (&str, &str) = ("authorization", "Bearer root");

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gateway-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn outbox(&self) -> String {
        self.0.join("outbox").display().to_string()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn gateway(server: &RedisServer, usage: &str) -> Gateway {
    let config = format!(
        r#"
        [[keys]]
        key = "root"
        user = "root"
        admin = true
        departments = ["ops", "r-and-d"]
        [providers.echo]
        kind = "echo"
        [usage]
        redis = {{ env = "USAGE_REDIS" }}
        hold_last_byte = "5s"
        {usage}
        "#
    );
    Gateway::start_with(Some(&config), &[("USAGE_REDIS", &server.url())]).await
}

async fn call(gateway: &Gateway, times: usize) {
    for _ in 0..times {
        let reply = gateway.post(&[JSON, ROOT], asking("echo/m").as_bytes()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
    }
}

async fn totals(gateway: &Gateway) -> Value {
    let reply = gateway.send("GET", "/v1/usage", &[ROOT], b"").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

#[tokio::test]
async fn what_was_copied_is_in_one_file_when_it_has_ended() {
    let Some(server) = RedisServer::start("what_was_copied_is_in_one_file") else { return };
    let directory = Directory::new("one-copy");
    let path = directory.0.join("usage.db").display().to_string();
    let mut gateway = gateway(&server, &format!("path = {path:?}\noutbox = {:?}", directory.outbox())).await;
    call(&gateway, 1).await;
    until(&gateway, 1).await;
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    let files = std::fs::read_dir(&directory.0).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = files.filter(|name| name != "outbox").collect();
    left.sort();
    assert_eq!(left, ["usage.db"]);
}

/// Waits until it tells of so many calls, and of no more a moment later.
async fn until(gateway: &Gateway, calls: u64) -> Value {
    for _ in 0..400 {
        if totals(gateway).await["totals"]["calls"].as_u64().unwrap() >= calls {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let all = totals(gateway).await;
            assert_eq!(all["totals"]["calls"], calls);
            return all;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{} of {calls} calls", totals(gateway).await["totals"]);
}

#[tokio::test]
async fn each_gateway_tells_what_all_have_used_also_when_redis_was_away() {
    let test = "each_gateway_tells_what_all_have_used";
    let Some(mut server) = RedisServer::start_durable(test) else { return };
    let (one, two) = (gateway(&server, "").await, gateway(&server, "").await);
    call(&one, 5).await;
    call(&two, 7).await;
    until(&one, 12).await;
    until(&two, 12).await;

    server.kill();
    call(&one, 6).await;
    assert_eq!(one.get("/readyz").await.status, 200, "the outbox takes what is recorded");
    server.restart();
    server.freeze();
    call(&two, 4).await;
    server.thaw();
    let all = until(&one, 22).await;
    assert_eq!(until(&two, 22).await, all);
    let sums = all["department_sums"].as_array().unwrap();
    assert_eq!(sums.len(), 2);
    assert!(sums.iter().all(|sum| sum["sums"]["calls"] == 22), "in full for each department");
    one.log(&["usage cannot be copied from redis"]).await;
    one.log(&["usage is copied from redis again"]).await;
}

#[tokio::test]
async fn seed_22_a_gateway_that_is_killed_while_redis_is_away_loses_no_call_that_was_answered() {
    let test = "seed_22_a_gateway_that_is_killed";
    let Some(mut server) = RedisServer::start_durable(test) else { return };
    let directory = Directory::new(test);
    let outbox = format!("outbox = {:?}", directory.outbox());
    server.kill();
    for _ in 0..3 {
        let gateway = gateway(&server, &outbox).await;
        call(&gateway, 5).await;
        // Ends as by SIGKILL when it is dropped.
    }
    server.restart();
    let gateway = gateway(&server, &outbox).await;
    until(&gateway, 15).await;
}

#[tokio::test]
async fn seed_22_what_is_not_passed_on_at_the_end_is_told_and_stays_in_the_outbox() {
    let test = "seed_22_what_is_not_passed_on";
    let Some(mut server) = RedisServer::start_durable(test) else { return };
    let directory = Directory::new(test);
    let outbox = format!("outbox = {:?}", directory.outbox());
    {
        let mut gateway = gateway(&server, &outbox).await;
        server.kill();
        call(&gateway, 3).await;
        gateway.terminate();
        assert_eq!(gateway.ended().await, 0);
        gateway.log(&["left in the outbox", "left=3"]).await;
    }
    server.restart();
    until(&gateway(&server, &outbox).await, 3).await;
}

#[tokio::test]
async fn a_full_outbox_refuses_calls_until_redis_is_back() {
    let Some(mut server) = RedisServer::start_durable("a_full_outbox_refuses_calls") else { return };
    let gateway = gateway(&server, "outbox_max_bytes = 65536").await;
    server.kill();
    let long =
        format!(r#"{{"model":"echo/{}","messages":[{{"role":"user","content":"Hi"}}]}}"#, "m".repeat(200));
    let mut answered = 0;
    let refused = loop {
        let reply = gateway.post(&[JSON, ROOT], long.as_bytes()).await;
        match reply.status {
            200 => answered += 1,
            _ => break reply,
        }
        assert!(answered < 500);
    };
    assert_eq!(refused.status, 503, "{}", refused.body);
    assert_eq!(gateway.get("/readyz").await.status, 503);
    gateway.log(&["usage is not passed on, and kept in the outbox", "redis 127.0.0.1"]).await;
    server.restart();
    for _ in 0..400 {
        if gateway.get("/readyz").await.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    call(&gateway, 1).await;
    until(&gateway, answered + 1).await;
    gateway.log(&["usage is passed on again"]).await;
}

#[tokio::test]
async fn a_gateway_whose_outbox_is_removed_takes_no_more_calls_and_says_why() {
    let test = "a_gateway_whose_outbox_is_removed";
    let Some(server) = RedisServer::start(test) else { return };
    let directory = Directory::new(test);
    let gateway = gateway(&server, &format!("outbox = {:?}", directory.outbox())).await;
    call(&gateway, 1).await;
    until(&gateway, 1).await;
    std::fs::remove_dir_all(directory.outbox()).unwrap();
    // The first is made, and its end held back for a record that never comes; the next is not even made.
    for _ in 0..2 {
        let refused = gateway.post(&[JSON, ROOT], asking("echo/m").as_bytes()).await;
        assert_eq!(refused.error().1, "usage_store_unavailable");
    }
    gateway.log(&["usage cannot be written", "removed while it was used"]).await;
    assert_eq!(gateway.get("/readyz").await.status, 503);
}

#[tokio::test]
async fn two_gateways_do_not_share_an_outbox() {
    let Some(server) = RedisServer::start("two_gateways_do_not_share_an_outbox") else { return };
    let directory = Directory::new("share");
    let outbox = format!("outbox = {:?}", directory.outbox());
    let _one = gateway(&server, &outbox).await;
    let config =
        format!("[providers.echo]\nkind = \"echo\"\n[usage]\nredis = {:?}\n{outbox}\n", server.url());
    let output = run(&config).await;
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another process uses it") && said.contains(&directory.outbox()), "{said}");
}
