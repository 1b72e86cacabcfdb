//! What is refused, held and told at the edge, before anybody is asked: the real binary.

mod common;

use common::{CHAT, Client, Gateway, JSON, Upstream, asking, whole};
use serde_json::{Value, json};

const KEYS: &str = r#"
[[keys]]
key = "app-key"
user = "portal"
tenant = "acme"
departments = ["research", "ops"]
trusted = true
[[keys]]
key = "host-key"
user = "host"
trusted = true
[[keys]]
key = "ada-key"
user = "ada"
tenant = "acme"
departments = ["research", "ops"]
max_in_flight = 1
[[keys]]
key = "root-key"
user = "root"
admin = true
"#;

const ECHO: &str = "[providers.echo]\nkind = \"echo\"\n";

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

async fn ask(gateway: &Gateway, key: &str, headers: &[(&str, &str)]) -> common::Reply {
    let bearer = bearer(key);
    let all = [&[JSON, ("authorization", &bearer)], headers].concat();
    gateway.post(&all, asking("echo/x").as_bytes()).await
}

// ===== headers =====

#[tokio::test]
async fn a_header_of_this_family_that_means_nothing_is_refused_by_its_name_whoever_sends_it() {
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}")).await;
    for name in [
        "x-llm-tenants",
        "x-llm-knowledge-base",
        "X-LLM-Department",
        "x-llm-",
        "x-llm-model",
        "x-llm-user-id",
    ] {
        for key in ["app-key", "ada-key", "root-key"] {
            let reply = ask(&gateway, key, &[(name, "a")]).await;
            assert_eq!(reply.status, 400, "{name} {key}: {}", reply.body);
            assert_eq!(reply.error(), ("invalid_request_error".to_owned(), json!("unknown_header")));
            let said = reply.json()["error"]["message"].as_str().unwrap().to_owned();
            assert!(said.contains(&name.to_lowercase()), "{name}: {said}");
        }
        let headers = [JSON, ("x-api-key", "ada-key"), (name, "a")];
        let reply = gateway.send("POST", "/v1/messages", &headers, asking("echo/x").as_bytes()).await;
        assert_eq!((reply.status, &reply.json()["type"]), (400, &json!("error")), "{name}");
        let headers = [("authorization", "Bearer ada-key"), (name, "a")];
        assert_eq!(gateway.send("GET", "/v1/models", &headers, b"").await.status, 400, "{name}");
    }
    assert_eq!(ask(&gateway, "ada-key", &[("x-llm-timeout", "5"), ("x-llmother", "a")]).await.status, 200);
    let anonymous = Gateway::start(ECHO).await;
    assert_eq!(anonymous.post(&[JSON, ("x-llm-usr", "a")], asking("echo/x").as_bytes()).await.status, 400);
}

#[tokio::test]
async fn an_application_of_no_tenant_says_whose_its_users_are_and_one_of_a_tenant_its_own_only() {
    let more = "[tenants.bank.aliases]\n\"echo/x\" = \"echo/bank\"\n[cache]\nenabled = true\n";
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}{more}")).await;
    let tenant = |name: &'static str| ("x-llm-tenant", name);
    let user = ("x-llm-user", "eve");
    for (name, model) in [("bank", "bank"), ("acme", "x")] {
        for hit in [false, true] {
            let reply = ask(&gateway, "host-key", &[tenant(name), user]).await;
            assert_eq!((reply.status, &reply.json()["model"]), (200, &json!(model)), "{name}");
            assert_eq!(reply.header("cache-status").unwrap().contains("hit"), hit, "{name}");
        }
    }
    assert!(!ask(&gateway, "host-key", &[user]).await.header("cache-status").unwrap().contains("hit"));
    assert_eq!(ask(&gateway, "app-key", &[tenant("acme"), user]).await.status, 200);
    for (key, headers, code) in [
        ("app-key", &[tenant("bank")][..], "invalid_identity"),
        ("host-key", &[tenant("")], "invalid_identity"),
        ("host-key", &[tenant("bank"), tenant("acme")], "invalid_identity"),
        ("ada-key", &[tenant("acme")], "untrusted_identity"),
        ("root-key", &[tenant("bank")], "untrusted_identity"),
    ] {
        let reply = ask(&gateway, key, headers).await;
        assert_eq!((reply.status, reply.error().1), (400, json!(code)), "{key} {headers:?}");
    }
}

#[tokio::test]
async fn two_keys_in_one_request_are_refused_wherever_they_stand_unless_they_are_the_same() {
    let gateway = Gateway::start(&format!("{KEYS}{ECHO}")).await;
    for (path, authorization, other, status) in [
        (CHAT, "Bearer app-key", "ada-key", 400),
        ("/v1/messages", "Bearer app-key", "ada-key", 400),
        (CHAT, "bearer wrong", "ada-key", 400),
        // An empty value names no key.
        (CHAT, "Bearer ada-key", "", 200),
        (CHAT, "Bearer", "ada-key", 200),
        (CHAT, "Bearer ", "ada-key", 200),
        (CHAT, "", "ada-key", 200),
        (CHAT, "Bearer", "", 401),
        (CHAT, "", "", 401),
        (CHAT, "Bearer ada-key", "ada-key", 200),
        (CHAT, "Bearer  ada-key", " ada-key ", 200),
    ] {
        let headers = [JSON, ("authorization", authorization), ("x-api-key", other)];
        let reply = gateway.send("POST", path, &headers, asking("echo/x").as_bytes()).await;
        assert_eq!(reply.status, status, "{path} {authorization} {other}: {}", reply.body);
        if (path, status) == (CHAT, 400) {
            assert_eq!(reply.error().1, json!("ambiguous_request"), "{authorization} {other}");
        }
    }
}

// ===== the log =====

#[tokio::test]
async fn the_log_says_why_the_edge_has_refused_and_whose_calls_they_are_and_no_users() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "[server]\nbody_timeout = \"50ms\"\n{KEYS}{ECHO}[providers.a]\nbase_url = \"{}\"\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let body = asking("echo/x");
    let line = async |id: &str, words: &[&str]| {
        let log = gateway.log(&[&format!("request_id={id} ")]).await;
        let line = log.lines().find(|line| line.contains(&format!("request_id={id} "))).unwrap();
        for word in words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains("eve") && !line.contains("user=") && !line.contains("-key"), "{line}");
    };
    let whose = ["tenant=\"acme\"", "departments=\"research,ops\""];
    for (at, (method, path, headers, code, is_known)) in [
        ("POST", CHAT, &[("authorization", "Bearer wrong")][..], "invalid_api_key", false),
        ("POST", "/v1/messages", &[("x-api-key", "wrong")], "invalid_api_key", false),
        (
            "POST",
            CHAT,
            &[("authorization", "Bearer ada-key"), ("x-llm-user", "eve")],
            "untrusted_identity",
            true,
        ),
        (
            "POST",
            "/v1/messages",
            &[("x-api-key", "ada-key"), ("x-llm-user", "eve")],
            "untrusted_identity",
            true,
        ),
        ("POST", CHAT, &[("x-api-key", "app-key"), ("x-llm-departments", "eve")], "invalid_identity", true),
        ("POST", CHAT, &[("x-api-key", "ada-key"), ("x-llm-other", "eve")], "unknown_header", true),
        ("POST", CHAT, &[("x-api-key", "ada-key"), ("x-api-key", "ada-key")], "ambiguous_request", false),
        ("GET", "/v1/usage", &[("x-api-key", "ada-key")], "not_admin", true),
        ("GET", "/v1/nothing", &[], "unknown_url", false),
    ]
    .into_iter()
    .enumerate()
    {
        let id = format!("refused-{at}");
        let headers = [headers, &[JSON, ("x-request-id", &id)]].concat();
        assert!(gateway.send(method, path, &headers, body.as_bytes()).await.status >= 400);
        let code = format!("error_code=\"{code}\"");
        line(&id, &[&code, "error_type=", "error=", "attempts=0"]).await;
        if is_known {
            line(&id, &whose).await;
        }
    }
    let mut late = gateway.connect().await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\nx-request-id: late\r\nx-api-key: ada-key\r\n");
    late.write(&(head + "content-type: application/json\r\ncontent-length: 10\r\n\r\n{")).await;
    assert_eq!(late.reply().await.status, 408);
    line("late", &["status=408", "error=\"the request's body did not come in time\"", whose[0]]).await;

    // One who waits for a provider, one more than the key may have, and how the first is told of when he leaves.
    let mut waiting = gateway.connect().await;
    let key = ("x-api-key", "ada-key");
    waiting.ask("POST", CHAT, &[JSON, key, ("x-request-id", "left")], asking("a/m").as_bytes()).await;
    let mut call = upstream.call().await;
    let more = [JSON, key, ("x-request-id", "more")];
    assert_eq!(gateway.post(&more, body.as_bytes()).await.status, 429);
    line("more", &["error_code=\"too_many_in_flight\"", whose[0], whose[1]]).await;
    drop(waiting);
    assert!(call.hung_up().await);
    line("left", &["status=499", "attempts=1", whose[0], whose[1]]).await;

    let headers = [("x-request-id", "stated"), ("x-llm-user", "eve"), ("x-llm-departments", "ops")];
    assert_eq!(ask(&gateway, "app-key", &headers).await.status, 200);
    line("stated", &["status=200", "tenant=\"acme\"", "departments=\"ops\"", "attempts=1"]).await;
}

#[tokio::test]
async fn a_filter_of_the_log_that_is_empty_or_cannot_be_read_is_as_none_and_the_latter_is_told() {
    for (filter, is_told) in [("", false), (" ", false), ("a=b=c", true), ("llm_layers=loud", true)] {
        let gateway = Gateway::start_with(Some(ECHO), &[("RUST_LOG", filter)]).await;
        assert_eq!(gateway.chat(&asking("echo/x")).await.status, 200);
        let log = gateway.log(&["INFO", "status=200"]).await;
        assert_eq!(log.matches("RUST_LOG").count(), usize::from(is_told), "{filter:?}: {log}");
    }
    let gateway = Gateway::start_with(Some(ECHO), &[("RUST_LOG", "gateway=debug,error")]).await;
    assert_eq!(gateway.chat(&asking("echo/x")).await.status, 200);
    gateway.log(&["INFO", "status=200"]).await;
}

// ===== connections =====

#[tokio::test]
async fn a_connection_is_idle_for_as_long_as_it_is_told_and_one_that_waits_for_an_answer_is_not() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "[server]\nidle_timeout = \"200ms\"\nkeep_alive = \"150ms\"\n[providers.a]\nbase_url = \"{}\"\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let body = asking("a/m").replacen('{', r#"{"stream":true,"#, 1);
    let mut client = gateway.connect().await;
    for _ in 0..2 {
        client.ask("POST", CHAT, &[JSON], body.as_bytes()).await;
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("Hel").await;
        assert_eq!(client.head().await.status, 200);
        client.piece().await.unwrap();
        for _ in 0..3 {
            assert_eq!(client.piece().await.unwrap(), ": keep-alive\n\n");
        }
        call.end().await;
        client.rest().await;
    }
    assert!(client.closed().await);
}

/// What hyper makes of one who has nothing more to ask and says so: he has left.
#[tokio::test]
async fn who_closes_his_half_before_he_is_answered_has_left_and_is_told_of_in_the_log() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&format!("[providers.a]\nbase_url = \"{}\"\n", upstream.url)).await;
    let mut client = gateway.connect().await;
    client.ask("POST", CHAT, &[JSON, ("x-request-id", "half")], asking("a/m").as_bytes()).await;
    let mut call = upstream.call().await;
    client.close_half().await;
    assert!(client.closed().await && call.hung_up().await);
    gateway.log(&["request_id=half", "status=499", "attempts=1"]).await;
}

/// A list of prices that does not come is waited for.
#[tokio::test]
async fn a_signal_that_comes_before_it_is_ready_ends_it() {
    let config = format!("{ECHO}[prices]\nown = \"pipe.toml\"\n");
    let (mut command, folder) = common::command(Some(&config), &[("TOKIO_WORKER_THREADS", "1")]);
    let pipe = folder.join("pipe.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let child = command.spawn().unwrap();
    // Bit by bit, the signals that it waits for: 15 is among them.
    let status = format!("/proc/{}/status", child.id().unwrap());
    common::soon(async {
        loop {
            let status = std::fs::read_to_string(&status).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
            if u64::from_str_radix(caught, 16).unwrap() >> 14 & 1 == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let id = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    // The list is read when the file is checked, and once more when the stack is built: only the first time it comes.
    let opening = tokio::task::spawn_blocking(move || {
        std::fs::write(pipe, "[models.\"a/m\"]\ninput = \"1\"\noutput = \"2\"\n")
    });
    common::soon(opening).await.unwrap().unwrap();
    let output = common::soon(child.wait_with_output()).await.unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b""[..]), "{output:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

// ===== bodies =====

/// A request whose body is this large, to be had by nobody.
fn large(bytes: usize) -> String {
    asking("gone/x").replacen("Hi", &"x".repeat(bytes), 1)
}

/// One who has sent so much of a larger body, and sends no more.
async fn stalled(gateway: &Gateway, path: &str, bytes: usize, is_chunked: bool) -> Client {
    let mut client = gateway.connect().await;
    let head = format!("POST {path} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n");
    let body = large(bytes);
    match is_chunked {
        true => {
            let size = body.len();
            client.write(&format!("{head}transfer-encoding: chunked\r\n\r\n{size:x}\r\n{body}\r\n")).await;
        }
        false => client.write(&format!("{head}content-length: 600000\r\n\r\n{body}")).await,
    }
    client
}

/// Waits until a large body would be taken, or would not: by one that is announced and never sent.
async fn until(gateway: &Gateway, is_full: bool) {
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n");
    let head = head + "expect: 100-continue\r\ncontent-length: 590000\r\n\r\n";
    common::soon(async {
        loop {
            let mut client = gateway.connect().await;
            client.write(&head).await;
            if client.head().await.status == if is_full { 503 } else { 100 } {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn bodies_that_are_held_have_one_bound_and_what_is_beyond_is_refused_until_some_are_gone() {
    let limits = "[server]\nmax_body_bytes = 600000\nmax_buffered_bytes = 1000000\n";
    let gateway = Gateway::start(&format!("{limits}{ECHO}")).await;
    let body = large(590_000);
    for (path, is_chunked) in [(CHAT, false), (CHAT, true), ("/v1/messages", false), ("/v1/messages", true)] {
        // A length that is but announced takes no room.
        let _announced = stalled(&gateway, path, 10, false).await;
        assert_eq!(gateway.chat(&body).await.status, 404);
        let one = stalled(&gateway, path, 500_000, is_chunked).await;
        until(&gateway, true).await;
        let refused = gateway.chat(&body).await;
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")));
        assert_eq!(refused.error(), ("server_error".to_owned(), json!("overloaded")));
        let refused = gateway.send("POST", "/v1/messages", &[JSON], body.as_bytes()).await;
        let kind = &refused.json()["error"]["type"];
        assert_eq!((refused.status, kind), (503, &json!("overloaded_error")));
        // Those who ask little are served all the while.
        assert_eq!(gateway.chat(&asking("echo/x")).await.status, 200);
        // Too large is too large.
        assert_eq!(gateway.chat(&large(600_000)).await.status, 413);
        // Who is in the middle of it is told, too.
        let mut two = stalled(&gateway, path, 550_000, true).await;
        two.write("0\r\n\r\n").await;
        let reply = two.reply().await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
        drop(one);
        until(&gateway, false).await;
        assert_eq!(gateway.chat(&body).await.status, 404);
    }
}

#[tokio::test]
async fn a_body_is_held_until_its_answer_begins_and_no_longer() {
    let mut upstream = Upstream::start().await;
    let limits = "[server]\nmax_body_bytes = 600000\nmax_buffered_bytes = 1000000\n";
    let gateway =
        Gateway::start(&format!("{limits}{ECHO}[providers.a]\nbase_url = \"{}\"\n", upstream.url)).await;
    let body = large(590_000).replacen("gone/x", "a/m", 1);
    let streamed = body.replacen('{', r#"{"stream":true,"#, 1);
    let mut client = gateway.connect().await;
    client.ask("POST", CHAT, &[JSON], streamed.as_bytes()).await;
    let mut call = upstream.call().await;
    assert_eq!(gateway.chat(&large(590_000)).await.status, 503);
    call.begin().await;
    call.say("Hel").await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(gateway.chat(&large(590_000)).await.status, 404);
    call.end().await;
    client.rest().await;
    let (reply, ()) = tokio::join!(gateway.chat(&body), async {
        upstream.call().await.answer(200, &whole("ok")).await;
    });
    assert_eq!(reply.status, 200);
}

// ===== models =====

#[tokio::test]
async fn a_key_is_told_of_the_models_that_it_may_use_under_the_names_that_it_may_use() {
    let gateway = Gateway::start(
        r#"
        [[keys]]
        key = "bank-key"
        user = "eve"
        tenant = "bank"
        departments = ["trade"]
        [[keys]]
        key = "none-key"
        user = "eve"
        departments = ["trade", "none"]
        [[keys]]
        key = "all-key"
        user = "root"
        [[keys]]
        key = "host-key"
        user = "host"
        departments = ["trade", "free"]
        trusted = true
        [providers.echo]
        kind = "echo"
        models = ["large", "small"]
        [providers.other]
        kind = "echo"
        models = ["secret"]
        [aliases]
        fast = "echo/small"
        best = [{ model = "echo/large" }, { model = "other/secret" }]
        hidden = "other/secret"
        "other/secret" = "other/secret"
        [tenants.bank.aliases]
        hidden = "echo/large"
        own = "fast"
        lost = "other/secret"
        [departments.trade]
        models = ["echo/*"]
        [departments.none]
        models = []
        [quota]
        store = "memory"
        "#,
    )
    .await;
    let theirs = ("anthropic-version", "2023-06-01");
    let listed = async |headers: &[(&str, &str)]| {
        let reply = gateway.send("GET", "/v1/models", headers, b"").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let json = reply.json();
        let ids: Vec<String> = json["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(json["first_id"], ids.first().map_or(Value::Null, |id| json!(id)));
        assert_eq!(json["last_id"], ids.last().map_or(Value::Null, |id| json!(id)));
        ids
    };
    let all = ["best", "fast", "hidden", "lost", "other/secret", "own", "echo/large", "echo/small"];
    for (headers, expected) in [
        (
            &[("x-api-key", "bank-key")][..],
            &["best", "fast", "hidden", "own", "echo/large", "echo/small"][..],
        ),
        (
            &[("x-api-key", "bank-key"), theirs],
            &["best", "fast", "hidden", "own", "echo/large", "echo/small"],
        ),
        (&[("x-api-key", "none-key")], &[]),
        (
            &[("x-api-key", "all-key")],
            &["best", "fast", "hidden", "other/secret", "echo/large", "echo/small"],
        ),
        (&[("x-api-key", "host-key")], &["best", "fast", "echo/large", "echo/small"]),
        (&[("x-api-key", "host-key"), ("x-llm-departments", "free"), ("x-llm-tenant", "bank")], &all),
    ] {
        assert_eq!(listed(headers).await, expected, "{headers:?}");
        for id in all {
            let status = if expected.contains(&id) { 200 } else { 404 };
            let reply = gateway.send("GET", &format!("/v1/models/{id}"), headers, b"").await;
            assert_eq!(reply.status, status, "{headers:?} {id}");
            if status == 404 {
                let unknown = gateway.send("GET", "/v1/models/gone", headers, b"").await;
                assert_eq!(reply.body, unknown.body, "as of one that nobody has");
            }
        }
    }
}
