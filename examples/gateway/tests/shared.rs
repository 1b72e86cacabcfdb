//! Two gateways that share one Redis: one limit, one cache.

mod common;
#[path = "../../../tests/support/redis.rs"]
mod redis_server;

use common::{Gateway, Reply};
use redis_server::RedisServer;
use serde_json::json;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::task::JoinSet;

const REQUESTS: u64 = 20;
const TOKENS: u64 = 1000;

async fn gateway(counters: &RedisServer, answers: &RedisServer) -> Gateway {
    let config = format!(
        r#"
        [[keys]]
        key = "ada"
        user = "ada"
        departments = ["counted"]
        [[keys]]
        key = "bob"
        user = "bob"
        departments = ["weighed"]
        [[keys]]
        key = "root"
        user = "root"
        admin = true
        departments = ["free"]
        [departments.counted]
        day_requests = {REQUESTS}
        [departments.weighed]
        day_tokens = {TOKENS}
        [providers.echo]
        kind = "echo"
        [usage]
        enabled = false
        [quota]
        store = "redis"
        redis = {{ env = "QUOTA_REDIS" }}
        [cache]
        enabled = true
        redis = {{ env = "CACHE_REDIS" }}
        secret = {{ env = "CACHE_SECRET" }}
        "#
    );
    let secret = "the-same-secret-for-all-that-share-answers";
    let env = [("QUOTA_REDIS", &*counters.url()), ("CACHE_REDIS", &*answers.url()), ("CACHE_SECRET", secret)];
    Gateway::start_with(Some(&config), &env).await
}

async fn ask(address: &str, key: &str, text: &str, streaming: bool) -> Reply {
    let body = json!({
        "model": "echo/echo",
        "max_tokens": 50,
        "stream": streaming,
        "messages": [{ "role": "user", "content": text }],
    });
    let bearer = format!("Bearer {key}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let mut client = common::Client::connect(address).await;
    client.ask("POST", common::CHAT, &headers, body.to_string().as_bytes()).await;
    client.reply().await
}

/// Asks both at once, so often, never the same; how many were answered, and how many refused.
async fn ask_all(gateways: [&Gateway; 2], key: &'static str, times: usize) -> (u64, u64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut calls = JoinSet::new();
    for at in 0..times {
        let address = gateways[at % 2].address.clone();
        let text = format!("question {}", NEXT.fetch_add(1, Ordering::Relaxed));
        calls.spawn(async move { ask(&address, key, &text, at % 3 == 0).await.status });
    }
    let statuses = calls.join_all().await;
    let count = |status: u16| statuses.iter().filter(|seen| **seen == status).count() as u64;
    assert_eq!(count(200) + count(429), times as u64, "{statuses:?}");
    (count(200), count(429))
}

async fn standing(gateway: &Gateway, department: &str, quota: &str) -> serde_json::Value {
    let path = format!("/v1/quota/{department}");
    let reply = gateway.send("GET", &path, &[("authorization", "Bearer root")], b"").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()["day"][quota].clone()
}

/// What is settled after an answer takes a moment.
async fn settled(gateway: &Gateway, department: &str, quota: &str) -> u64 {
    common::soon(async {
        loop {
            let standing = standing(gateway, department, quota).await;
            if standing["reserved"] == 0 {
                return standing["settled"].as_u64().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn two_gateways_that_share_a_redis_hold_one_limit() {
    let test = "two_gateways_that_share_a_redis_hold_one_limit";
    let (Some(counters), Some(answers)) = (RedisServer::start(test), RedisServer::start(test)) else {
        return;
    };
    let (a, b) = tokio::join!(gateway(&counters, &answers), gateway(&counters, &answers));

    let (answered, refused) = ask_all([&a, &b], "ada", 60).await;
    assert_eq!((answered, refused), (REQUESTS, 60 - REQUESTS));
    for gateway in [&a, &b] {
        assert_eq!(settled(gateway, "counted", "requests").await, REQUESTS);
        assert_eq!(ask(&gateway.address, "ada", "one more", false).await.status, 429);
    }

    // Calls that use less than they reserve: all that fit go through in the end, and never more.
    let mut answered = 0;
    for _ in 0..40 {
        answered += ask_all([&a, &b], "bob", 8).await.0;
        let used = settled(&a, "weighed", "tokens").await;
        assert!(used <= TOKENS, "{used} tokens of {TOKENS}");
    }
    assert!(answered > 0);
    assert_eq!(settled(&a, "weighed", "tokens").await, settled(&b, "weighed", "tokens").await);
}

async fn forget(gateway: &Gateway, user: &str) {
    let forget = json!({ "user": user }).to_string();
    let headers = [("content-type", "application/json"), ("authorization", "Bearer root")];
    let reply = gateway.send("POST", "/v1/cache/invalidate", &headers, forget.as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
}

fn status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or("none")
}

/// Asks until the cache says what is expected: what is written takes a moment, and epochs are trusted for a second.
async fn until(gateway: &Gateway, key: &str, text: &str, expected: &str) -> Reply {
    common::soon(async {
        loop {
            let reply = ask(&gateway.address, key, text, false).await;
            assert_eq!(reply.status, 200, "{}", reply.body);
            if status(&reply).contains(expected) {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// The answer that is kept, once it is: the provider is not asked.
async fn kept(gateway: &Gateway, key: &str, text: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    let only = [
        ("content-type", "application/json"),
        ("authorization", &*bearer),
        ("cache-control", "only-if-cached"),
    ];
    let messages = json!([{ "role": "user", "content": text }]);
    let question = json!({ "model": "echo/echo", "max_tokens": 50, "messages": messages }).to_string();
    common::soon(async {
        loop {
            let reply = gateway.post(&only, question.as_bytes()).await;
            if reply.status == 200 {
                return reply;
            }
            assert_eq!(reply.error().1, "not_cached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn what_one_gateway_has_answered_the_other_answers_from_the_shared_cache() {
    let test = "what_one_gateway_has_answered_the_other_answers_from_the_shared_cache";
    let (Some(counters), Some(answers)) = (RedisServer::start(test), RedisServer::start(test)) else {
        return;
    };
    let (a, b) = tokio::join!(gateway(&counters, &answers), gateway(&counters, &answers));

    // Only ever asked of the first, as a stream.
    let first = ask(&a.address, "root", "Is anybody there?", true).await;
    assert!(status(&first).contains("fwd=miss") && first.body.ends_with("data: [DONE]\n\n"), "{first:?}");
    let hit = kept(&b, "root", "Is anybody there?").await;
    assert_eq!(status(&hit), "llm-layers; hit");
    assert_eq!(hit.json()["choices"][0]["message"]["content"], "Is anybody there?");
    assert_eq!(settled(&b, "free", "requests").await, 1, "a hit costs nothing");

    // Another's question is another question, and what one makes invalid is so for both.
    assert!(status(&ask(&b.address, "bob", "Is anybody there?", false).await).contains("fwd=miss"));
    forget(&a, "root").await;
    until(&b, "root", "Is anybody there?", "fwd=").await;
}

#[tokio::test]
async fn limits_and_answers_may_be_in_one_redis_and_to_forget_these_leaves_those_alone() {
    let test = "limits_and_answers_may_be_in_one_redis_and_to_forget_these_leaves_those_alone";
    let Some(both) = RedisServer::start(test) else { return };
    let (a, b) = tokio::join!(gateway(&both, &both), gateway(&both, &both));

    // Each is asked once, and counted once, however often it is answered.
    for text in ["one", "two", "three"] {
        assert_eq!(status(&ask(&a.address, "ada", text, false).await), "llm-layers; fwd=miss");
        kept(&b, "ada", text).await;
    }
    for gateway in [&a, &b] {
        assert_eq!(settled(gateway, "counted", "requests").await, 3);
    }

    forget(&a, "ada").await;
    until(&b, "ada", "one", "fwd=").await;
    for gateway in [&a, &b] {
        assert_eq!(settled(gateway, "counted", "requests").await, 4, "the three before, and the one anew");
    }
    let (answered, refused) = ask_all([&a, &b], "ada", 30).await;
    assert_eq!((answered, refused), (REQUESTS - 4, 30 - (REQUESTS - 4)));
    // Who has nothing left is still answered from what was kept since.
    assert_eq!(ask(&b.address, "ada", "two", false).await.status, 429);
    kept(&a, "ada", "one").await;
}
