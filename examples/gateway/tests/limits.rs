//! Limits, allow-lists and the cache, as clients of the gateway see them.

mod common;

use common::{CHAT, Gateway, Reply, Upstream, asking, run, whole};
use serde_json::{Value, json};
use std::time::Duration;

const KEYS: &str = r#"
[[keys]]
key = "ada-key"
user = "ada"
departments = ["r & d/ä"]
[[keys]]
key = "bob-key"
user = "bob"
departments = ["r & d/ä", "ops"]
[[keys]]
key = "root-key"
user = "root"
admin = true
[providers.echo]
kind = "echo"
models = ["echo"]
"#;

async fn ask(gateway: &Gateway, key: &str, text: &str, headers: &[(&str, &str)]) -> Reply {
    // Spelt by hand: in which order `json!` writes members, another crate may change.
    let body = format!(r#"{{"model":"echo/echo","messages":[{{"content":{},"role":"user"}}]}}"#, json!(text));
    let bearer = format!("Bearer {key}");
    let mut all = vec![("content-type", "application/json"), ("authorization", &bearer)];
    all.extend(headers);
    gateway.post(&all, body.as_bytes()).await
}

async fn get(gateway: &Gateway, key: &str, path: &str) -> Reply {
    gateway.send("GET", path, &[("authorization", &format!("Bearer {key}"))], b"").await
}

/// Waits until the day's calls are settled, which they are after their answers.
async fn all_settled(gateway: &Gateway, calls: u64) {
    for _ in 0..400 {
        if get(gateway, "ada-key", DEPARTMENT).await.json()["day"]["requests"]["settled"] == calls {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{calls} calls are not settled");
}

const DEPARTMENT: &str = "/v1/quota/r%20%26%20d%2F%C3%A4";

#[tokio::test]
async fn seed_11_a_department_is_refused_beyond_its_limit_and_told_until_when() {
    let config = format!("{KEYS}[departments.\"r & d/ä\"]\nday_requests = 2\nmonth_tokens = 100000\n");
    let gateway = Gateway::start(&config).await;
    for left in ["1", "0"] {
        let reply = ask(&gateway, "ada-key", "hi", &[]).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("x-ratelimit-limit-requests"), Some("2"));
        assert_eq!(reply.header("x-ratelimit-remaining-requests"), Some(left));
    }
    all_settled(&gateway, 2).await;
    for key in ["ada-key", "bob-key"] {
        let reply = ask(&gateway, key, "hi", &[]).await;
        assert_eq!(reply.status, 429);
        assert_eq!(reply.error(), ("insufficient_quota".to_owned(), json!("insufficient_quota")));
        assert_eq!(reply.header("x-should-retry"), Some("false"));
        let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=86_400).contains(&seconds), "{seconds}");
        assert!(reply.body.contains("2 used and 0 reserved of 2 requests"), "{}", reply.body);
    }
    // Who is in no department has no limits.
    assert_eq!(ask(&gateway, "root-key", "hi", &[]).await.status, 200);

    for key in ["ada-key", "root-key"] {
        let reply = get(&gateway, key, DEPARTMENT).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let told = reply.json();
        assert_eq!(told["department"], "r & d/ä");
        assert_eq!(
            told["day"]["requests"],
            json!({ "limit": 2, "settled": 2, "reserved": 0, "remaining": 0 })
        );
        assert_eq!(told["month"]["tokens"]["limit"], 100_000);
        assert_eq!(told["month"]["tokens"]["settled"], 4);
        assert_eq!(
            told["day"]["cost_usd"],
            json!({ "limit": null, "settled": "0", "reserved": "0", "remaining": null })
        );
        assert!(told["day"]["resets_at"].as_str().unwrap().ends_with("T00:00:00Z"));
    }
    let other = get(&gateway, "ada-key", "/v1/quota/ops").await;
    assert_eq!((other.status, other.error().1), (403, json!("not_in_department")));
}

#[tokio::test]
async fn counters_survive_a_restart_and_the_loss_of_their_file() {
    let folder = std::env::temp_dir().join(format!("gateway-limits-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "{KEYS}[departments.\"*\"]\nday_requests = 3\n[usage]\npath = {:?}\n[quota]\npath = {:?}\n",
        file("usage.db"),
        file("quota.db")
    );
    for life in 0..3 {
        let mut gateway = Gateway::start(&config).await;
        // Told by the ledger where the counters are not known yet.
        let root = [("authorization", "Bearer root-key")];
        let told = gateway.send("GET", "/v1/quota/r%20%26%20d%2F%C3%A4", &root, b"").await.json();
        assert_eq!(told["day"]["requests"]["settled"], life, "{told}");
        let reply = ask(&gateway, "ada-key", "hi", &[]).await;
        assert_eq!(
            (reply.status, reply.header("x-ratelimit-remaining-requests").unwrap()),
            (200, &*(2 - life).to_string())
        );
        gateway.terminate();
        assert_eq!(gateway.ended().await, 0);
        if life == 1 {
            // Now they are rebuilt from what was recorded.
            for name in ["quota.db", "quota.db-wal", "quota.db-shm"] {
                let _ = std::fs::remove_file(folder.join(name));
            }
        }
    }
    let gateway = Gateway::start(&config).await;
    assert_eq!(ask(&gateway, "ada-key", "hi", &[]).await.status, 429);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn seed_10_a_model_that_is_not_on_the_list_is_refused_cached_or_not() {
    let config = format!("{KEYS}[cache]\nenabled = true\n[departments.ops]\nmodels = [\"echo/other\"]\n");
    let gateway = Gateway::start(&config).await;
    assert_eq!(ask(&gateway, "ada-key", "hi", &[]).await.status, 200);
    let refused = ask(&gateway, "bob-key", "hi", &[]).await;
    assert_eq!(
        (refused.status, refused.error()),
        (403, ("permission_error".to_owned(), json!("model_not_allowed")))
    );
    assert!(refused.body.contains("ops"), "{}", refused.body);
}

#[tokio::test]
async fn policies_may_be_edited_while_the_gateway_runs() {
    let path = std::env::temp_dir().join(format!("gateway-policies-{}.db", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let gateway =
        Gateway::start(&format!("{KEYS}[quota]\npolicies = {:?}\n", path.display().to_string())).await;
    assert_eq!(ask(&gateway, "ada-key", "hi", &[]).await.status, 200);
    let edit = |sql: &str| {
        let status = std::process::Command::new("python3")
            .args(["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2])"])
            .arg(&path)
            .arg(sql)
            .status();
        assert!(status.unwrap().success());
    };
    let becomes = async |status: u16| {
        let begun = tokio::time::Instant::now();
        while ask(&gateway, "ada-key", "hi", &[]).await.status != status {
            assert!(begun.elapsed() < Duration::from_secs(10), "nobody has seen the change");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    edit("INSERT INTO policies (department, models) VALUES ('r & d/ä', '[]');");
    becomes(403).await;
    edit("UPDATE policies SET models = NULL, day_requests = 1;");
    becomes(429).await;
    // What means nothing is not taken, and said.
    edit("UPDATE policies SET day_requests = NULL, day_cost = 'many';");
    gateway.log(&["the policies stay as they were", "day_cost"]).await;
    assert_eq!(ask(&gateway, "ada-key", "hi", &[]).await.status, 429);
    edit("DELETE FROM policies;");
    becomes(200).await;
    let _ = std::fs::remove_file(path);
}

fn status(reply: &Reply) -> &str {
    reply.header("cache-status").unwrap_or("none")
}

#[tokio::test]
async fn seed_15_the_same_question_of_the_same_user_is_answered_from_the_cache() {
    let gateway = Gateway::start(&format!("{KEYS}[cache]\nenabled = true\n")).await;
    let first = ask(&gateway, "ada-key", "hi", &[]).await;
    assert_eq!(status(&first), "llm-layers; fwd=miss");
    let second = ask(&gateway, "ada-key", "hi", &[]).await;
    assert_eq!((status(&second), second.header("age")), ("llm-layers; hit", Some("0")));
    assert_eq!(first.json()["choices"], second.json()["choices"]);
    assert_eq!(first.json()["usage"], second.json()["usage"]);
    assert_eq!(status(&ask(&gateway, "bob-key", "hi", &[]).await), "llm-layers; fwd=miss", "never another's");

    // One entry for both shapes; messages must be spelt the same.
    let body = r#"{"model":"echo/echo","stream":true,"messages":[{"content":"hi","role":"user"}]}"#;
    let headers = [("content-type", "application/json"), ("authorization", "Bearer ada-key")];
    let streamed = gateway.post(&headers, body.as_bytes()).await;
    assert_eq!(status(&streamed), "llm-layers; hit");
    assert!(streamed.body.contains("\"content\":\"hi\"") && streamed.body.ends_with("data: [DONE]\n\n"));

    // A client can ask for less.
    assert_eq!(
        status(&ask(&gateway, "ada-key", "hi", &[("cache-control", "no-store")]).await),
        "llm-layers; fwd=bypass; detail=no-store"
    );
    assert_eq!(
        status(&ask(&gateway, "ada-key", "hi", &[("cache-control", "no-cache")]).await),
        "llm-layers; fwd=request; detail=refresh"
    );
    let only = [("cache-control", "only-if-cached")];
    assert_eq!(ask(&gateway, "ada-key", "hi", &only).await.status, 200);
    let none = ask(&gateway, "ada-key", "something new", &only).await;
    assert_eq!((none.status, none.error().1), (504, json!("not_cached")));

    // Hits are recorded, at no cost.
    let usage = get(&gateway, "root-key", "/v1/usage?by=outcome&user=ada").await.json();
    let calls = |outcome: &str| -> Value {
        let groups = usage["groups"].as_array().unwrap();
        groups
            .iter()
            .find(|group| group["key"]["outcome"] == outcome)
            .map_or(json!(0), |group| group["totals"]["calls"].clone())
    };
    assert_eq!((calls("ok"), calls("cache_hit")), (json!(3), json!(3)));
}

#[tokio::test]
async fn the_log_tells_of_each_answer_what_the_cache_did_and_how_often_providers_were_asked() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "{KEYS}[cache]\nenabled = true\ncoalesce = true\n[providers.a]\nbase_url = {:?}\nmodels = [\"m\"]\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let key = [("content-type", "application/json"), ("authorization", "Bearer ada-key")];
    let body = asking("a/m");
    let send = || gateway.post(&key, body.as_bytes());
    let (one, other, ()) = tokio::join!(send(), send(), async {
        upstream.call().await.answer(200, &whole("ok")).await;
    });
    // Whoever came too late to share the call has found its answer.
    assert_eq!([one.status, other.status, send().await.status], [200; 3]);
    assert!(!upstream.was_called());
    gateway.log(&["cache=\"miss\"", "attempts=1"]).await;
    gateway.log(&["cache=\"hit\"", "attempts=0"]).await;
    gateway.log_of(2, &["model=\"a/m\"", "attempts=0"]).await;
    ask(&gateway, "ada-key", "hi", &[("cache-control", "no-store")]).await;
    gateway.log(&["cache=\"bypass\"", "attempts=1"]).await;
    gateway.get("/healthz").await;
    let log = gateway.log(&["/healthz"]).await;
    assert_eq!(log.matches(" cache=").count(), 4, "{log}");
}

#[tokio::test]
async fn an_administrator_makes_answers_invalid_and_nobody_else() {
    let aliases = "[aliases]\nquick = \"fast\"\nfast = \"echo/echo\"\n";
    let gateway = Gateway::start(&format!("{KEYS}{aliases}[cache]\nenabled = true\n")).await;
    let forget = async |key: &str, body: Value| {
        let bearer = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
        gateway.send("POST", "/v1/cache/invalidate", &headers, body.to_string().as_bytes()).await
    };
    let mut at = 0;
    // A model by each of its names: in full, without its one provider, by what stands for it.
    let models = ["echo/echo", "echo", "fast", "quick"].map(|model| json!({ "model": model }));
    for what in [json!({ "user": "ada" })].into_iter().chain(models) {
        at += 1;
        let text = format!("question {at}");
        ask(&gateway, "ada-key", &text, &[]).await;
        assert_eq!(status(&ask(&gateway, "ada-key", &text, &[]).await), "llm-layers; hit");
        let refused = forget("ada-key", what.clone()).await;
        assert_eq!((refused.status, refused.error().1), (403, json!("not_admin")));
        assert_eq!(status(&ask(&gateway, "ada-key", &text, &[]).await), "llm-layers; hit");
        assert_eq!(forget("root-key", what.clone()).await.status, 200);
        let again = ask(&gateway, "ada-key", &text, &[]).await;
        assert_eq!(status(&again), "llm-layers; fwd=stale; detail=invalidated", "{what}");
    }
    for wrong in
        [json!({}), json!({ "user": 5 }), json!({ "user": "a", "tenant": "b" }), json!({ "planet": "x" })]
    {
        assert_eq!(forget("root-key", wrong).await.status, 400);
    }
}

#[tokio::test]
async fn too_much_to_forget_is_refused_as_any_other_body() {
    let gateway =
        Gateway::start(&format!("{KEYS}[server]\nbody_timeout = \"50ms\"\n[cache]\nenabled = true\n")).await;
    let path = "/v1/cache/invalidate";
    let headers = [("content-type", "application/json"), ("authorization", "Bearer root-key")];
    for bytes in [100_000, 3_000_000] {
        let mut client = gateway.connect().await;
        client.ask("POST", path, &headers, &vec![b' '; bytes]).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.error().0), (413, "invalid_request_error".to_owned()), "{bytes}");
        client.ask("POST", path, &headers, br#"{"user":"ada"}"#).await;
        assert_eq!(client.reply().await.status, 200, "{bytes}");
    }
    let mut client = gateway.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer root-key\r\n");
    client.write(&(head + "content-type: application/json\r\ncontent-length: 10\r\n\r\n{")).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (408, Some("close")));
}

#[tokio::test]
async fn what_is_not_configured_is_not_found() {
    let gateway = Gateway::start(KEYS).await;
    let quota = get(&gateway, "root-key", "/v1/quota/ops").await;
    assert_eq!((quota.status, quota.error().1), (404, json!("quota_disabled")));
    let headers = [("content-type", "application/json"), ("authorization", "Bearer root-key")];
    let cache = gateway.send("POST", "/v1/cache/invalidate", &headers, b"{}").await;
    assert_eq!((cache.status, cache.error().1), (404, json!("cache_disabled")));
    let reply = ask(&gateway, "ada-key", "hi", &[]).await;
    assert_eq!((reply.status, status(&reply)), (200, "none"));
    assert_eq!(gateway.send("POST", CHAT, &[], b"{}").await.status, 401);
}

#[tokio::test]
async fn a_wrong_limit_or_cache_is_named() {
    let config = format!(
        r#"{KEYS}
        [departments.a]
        day_tokens = -1
        [departments.b]
        day_cost = 5
        [departments.c]
        planets = 1
        [quota]
        store = "paper"
        mode = "maybe"
        time_zone = "Europe/Nowhere"
        unpriced = "assume"
        [cache]
        enabled = true
        secret = "short"
        encrypt = true
        max_flights = 5
        "#
    );
    let output = run(&config).await;
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    let named = [
        "departments.a",
        "departments.b",
        "departments.c",
        "quota.store",
        "quota.mode",
        "quota.time_zone",
        "quota.unpriced",
        "cache.secret",
        "cache.encrypt",
        "cache.max_flights",
    ];
    for entry in named {
        assert!(said.contains(entry), "{entry} is not named in {said}");
    }
    let nobody =
        "[providers.echo]\nkind = \"echo\"\n[departments.a]\nday_tokens = 1\n[cache]\nenabled = true\n";
    let said = String::from_utf8(run(nobody).await.stderr).unwrap();
    assert!(
        said.contains("departments: nobody is in one") && said.contains("cache: nothing would be kept"),
        "{said}"
    );
}
