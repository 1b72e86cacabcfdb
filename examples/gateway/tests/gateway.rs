//! The real binary against scripted upstreams on loopback.

mod common;
#[path = "../../../tests/support/proxy.rs"]
mod proxy;

use common::{CHAT, Client, Gateway, JSON, Upstream, asking, nowhere, run, whole};
use proxy::Tunnels;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, timeout};

fn one(url: &str, more: &str) -> String {
    format!("{more}\n[providers.a]\nbase_url = \"{url}\"\nmodels = [\"m\", \"n/o\"]\n")
}

/// A stream that has said "Hel", and has not ended.
async fn begun(gateway: &Gateway, upstream: &mut Upstream) -> (Client, common::Call) {
    begun_as(gateway, upstream, &[]).await
}

async fn begun_as(
    gateway: &Gateway,
    upstream: &mut Upstream,
    headers: &[(&str, &str)],
) -> (Client, common::Call) {
    let (mut client, call) = tokio::join!(gateway.stream_as("a/m", headers), async {
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("Hel").await;
        call
    });
    assert_eq!(content(&client.piece().await.unwrap()), "Hel");
    (client, call)
}

fn content(piece: &str) -> Value {
    let json = piece.strip_prefix("data: ").unwrap();
    serde_json::from_str::<Value>(json.trim()).unwrap()["choices"][0]["delta"]["content"].clone()
}

// ===== without a file =====

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nobody_back() {
    let mut gateway = Gateway::start_unread(None, &[]).await;
    // More lines than a pipe holds.
    for _ in 0..1_000 {
        assert_eq!(gateway.get("/v1/models").await.status, 200);
    }
    assert!(gateway.get("/metrics").await.body.contains("gateway_log_lines_lost_total"));
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
}

#[tokio::test]
async fn a_line_of_the_log_is_short_whatever_a_client_calls_its_method() {
    let gateway = Gateway::start(ECHO).await;
    let reply = gateway.send(&"M".repeat(50_000), &format!("/{}", "p".repeat(9_000)), &[], b"").await;
    assert_eq!(reply.status, 404);
    let log = gateway.log(&["status=404"]).await;
    let line = log.lines().find(|line| line.contains("status=404")).expect("is there");
    assert!(line.contains("method=MMMM") && line.len() < 500, "{} bytes: {line:.600}", line.len());
}

#[tokio::test]
async fn without_a_file_it_echoes_to_anybody() {
    let gateway = Gateway::start_with(None, &[]).await;
    let reply = gateway.chat(&asking("fast")).await;
    let json = reply.json();
    assert_eq!(reply.status, 200);
    assert_eq!(json["choices"][0]["message"], json!({ "role": "assistant", "content": "Hi" }));
    assert_eq!(json["object"], "chat.completion");
    assert!(json["usage"]["total_tokens"].is_u64());

    let mut client = gateway.stream("echo/any").await;
    let stream = client.rest().await;
    assert!(stream.contains(r#""role":"assistant""#) && stream.ends_with("data: [DONE]\n\n"), "{stream}");
    assert!(!stream.contains("prompt_tokens"));

    assert_eq!(gateway.get("/healthz").await.status, 200);
    assert_eq!(gateway.get("/readyz").await.status, 200);
    let models = gateway.get("/v1/models").await.json();
    assert_eq!(models["object"], "list");
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(ids, ["fast", "echo/echo"]);
    assert_eq!((&models["first_id"], &models["last_id"]), (&json!("fast"), &json!("echo/echo")));
    assert_eq!(models["has_more"], false);
    for id in ["fast", "echo/echo"] {
        let model = gateway.get(&format!("/v1/models/{id}")).await.json();
        assert_eq!((&model["id"], &model["object"]), (&json!(id), &json!("model")));
    }
    let unlisted = gateway.get("/v1/models/echo/other").await;
    let code = (String::from("invalid_request_error"), json!("model_not_found"));
    assert_eq!((unlisted.status, unlisted.error()), (404, code));
    // Anthropic's clients are told what is wrong in their own shape.
    for (method, path, status) in [("GET", "/v1/messages", 405), ("POST", "/v1/messages/batches", 404)] {
        let reply = gateway.send(method, path, &[], b"").await;
        assert_eq!((reply.status, reply.json()["type"].as_str()), (status, Some("error")), "{path}");
    }
}

#[tokio::test]
async fn usage_comes_with_a_stream_if_it_is_asked_for() {
    let gateway = Gateway::start_with(None, &[]).await;
    let body = r#"{"model":"fast","messages":[{"role":"user","content":"Hi"}],"stream":true,"stream_options":{"include_usage":true}}"#;
    let reply = gateway.chat(body).await;
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events: Vec<_> = reply.body.split_terminator("\n\n").collect();
    let usage: Value =
        serde_json::from_str(events[events.len() - 2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&usage["choices"], usage["usage"]["prompt_tokens"].is_u64()), (&json!([]), true));
}

#[tokio::test]
async fn a_server_that_refuses_to_be_asked_for_usage_answers_all_the_same() {
    for (more, refusals) in [("", 1), ("stream_usage = false\n", 0)] {
        let mut upstream = Upstream::start().await;
        let gateway = Gateway::start(&(one(&upstream.url, "") + more)).await;
        let answer = async {
            for _ in 0..refusals {
                let call = upstream.call().await;
                assert!(call.body.contains("stream_options"), "{}", call.body);
                call.answer(422, r#"{"detail":[{"loc":["body","stream_options"],"msg":"extra"}]}"#).await;
            }
            let mut call = upstream.call().await;
            assert!(!call.body.contains("stream_options"), "{}", call.body);
            call.begin().await;
            call.say("Hello").await;
            call.end().await;
        };
        let (mut client, ()) = tokio::join!(gateway.stream("a/m"), answer);
        assert!(client.rest().await.contains("Hello"));
    }
}

// ===== bad input =====

#[tokio::test]
async fn bad_input_is_refused_in_openais_shape_shows_up_nowhere_and_the_server_goes_on() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "[server]\nmax_body_bytes = 2000\n")).await;
    let deep = format!(r#"{{"model":"a/m","messages":[{}{}]}}"#, "[".repeat(200), "]".repeat(200));
    let large =
        format!(r#"{{"model":"a/m","messages":[{{"role":"user","content":"{}"}}]}}"#, "secret".repeat(500));
    let request = "invalid_request_error";
    let table = [
        ("secret prompt", 400, Value::Null, Value::Null),
        (r#"{"model":"a/m","messages":[{"role":"user","content":"secret"#, 400, Value::Null, Value::Null),
        (r#"["secret"]"#, 400, Value::Null, json!("invalid_type")),
        (
            r#"{"model":"a/m","model":"a/m","messages":[{"role":"user","content":"secret"}]}"#,
            400,
            json!("model"),
            Value::Null,
        ),
        (r#"{"model":"a/m"}"#, 400, json!("messages"), json!("missing_required_parameter")),
        (r#"{"model":"a/m","messages":[]}"#, 400, json!("messages"), json!("empty_array")),
        (r#"{"model":"a/m","messages":"secret"}"#, 400, json!("messages"), json!("invalid_type")),
        (
            r#"{"model":7,"messages":[{"role":"user","content":"secret"}]}"#,
            400,
            json!("model"),
            json!("invalid_type"),
        ),
        (
            r#"{"messages":[{"role":"user","content":"secret"}]}"#,
            400,
            json!("model"),
            json!("missing_required_parameter"),
        ),
        (
            r#"{"model":"a/m","temperature":"secret","messages":[{"role":"user"}]}"#,
            400,
            json!("temperature"),
            json!("invalid_type"),
        ),
        (
            r#"{"model":"gone/m","messages":[{"role":"user","content":"secret"}]}"#,
            404,
            json!("model"),
            json!("model_not_found"),
        ),
        (&deep, 400, Value::Null, Value::Null),
        (&large, 413, Value::Null, Value::Null),
    ];
    for (body, status, param, code) in table {
        let reply = gateway.chat(body).await;
        assert_eq!((reply.status, reply.error()), (status, (request.to_owned(), code)), "{body}");
        assert_eq!(reply.json()["error"]["param"], param, "{body}");
        assert!(!reply.body.contains("secret"), "{body}");
        assert!(reply.header("x-request-id").is_some());
    }
    let (body, plain) = (asking("a/m"), ("content-type", "text/plain"));
    for (method, path, headers, status) in [
        ("POST", CHAT, &[plain][..], 415),
        ("POST", CHAT, &[], 415),
        ("GET", CHAT, &[JSON], 405),
        ("POST", "/v1/models", &[JSON], 405),
        ("POST", "/v1/secret", &[JSON], 404),
        ("GET", "/", &[], 404),
    ] {
        let reply = gateway.send(method, path, headers, body.as_bytes()).await;
        assert_eq!((reply.status, reply.error().0), (status, request.to_owned()), "{method} {path}");
        assert!(reply.header("x-request-id").is_some());
    }
    assert!(!upstream.was_called());

    let (reply, ()) =
        tokio::join!(gateway.chat(&body), async { upstream.call().await.answer(200, &whole("ok")).await });
    assert_eq!(reply.json()["choices"][0]["message"]["content"], "ok");
    let log = gateway.log(&["model=\"a/m\"", "status=200"]).await;
    assert_eq!(log.lines().filter(|line| line.contains("request_id=")).count(), 13 + 6 + 1, "{log}");
    assert!(!log.replace("/v1/secret", "").contains("secret"), "{log}");
}

/// By a program that reads HTTP otherwise than this one does, somebody else's request could hide in it.
#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    let keys = "[[keys]]\nkey = \"sk\"\nuser = \"ada\"\n[[keys]]\nkey = \"other\"\nuser = \"bob\"\n";
    let gateway = Gateway::start(&format!("{keys}{ECHO}")).await;
    let chunked = |body: &str| format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let host = "host: gateway\r\n";
    for path in [CHAT, "/v1/messages"] {
        let body = r#"{"model":"echo/x","max_tokens":9,"messages":[{"role":"user","content":"Hi"}]}"#;
        let send = async |head: &str, body: &str| {
            let mut client = gateway.connect().await;
            client.write(&format!("POST {path} {head}content-type: application/json\r\n\r\n{body}")).await;
            let reply = client.reply().await;
            let is_closed = reply.header("connection") == Some("close") && client.closed().await;
            (reply, is_closed)
        };
        let key = "authorization: Bearer sk\r\n";
        let length = format!("content-length: {}\r\n", body.len());
        let good = format!("HTTP/1.1\r\n{host}{key}{length}");
        assert_eq!(send(&good, body).await.0.status, 200);
        let good = format!("HTTP/1.1\r\n{host}{key}transfer-encoding: Chunked\r\n");
        assert_eq!(send(&good, &chunked(body)).await.0.status, 200);
        let old = format!("HTTP/1.0\r\n{key}{length}");
        assert_eq!(send(&old, body).await.0.status, 200, "HTTP/1.0 has no `Host`");

        let te = format!("HTTP/1.1\r\n{host}{key}transfer-encoding: ");
        for (head, body) in [
            (format!("HTTP/1.1\r\n{key}{length}"), body.to_owned()),
            (format!("HTTP/1.1\r\n{host}{host}{key}{length}"), body.to_owned()),
            (format!("HTTP/1.0\r\n{host}host: b\r\n{key}{length}"), body.to_owned()),
            (format!("{te}gzip, chunked\r\n"), chunked(body)),
            (format!("{te}chunked, chunked\r\n"), chunked(body)),
            (format!("{te}chunked\r\ntransfer-encoding: chunked\r\n"), chunked(body)),
            (format!("{te}identity\r\ntransfer-encoding: chunked\r\n"), chunked(body)),
        ] {
            let (reply, is_closed) = send(&head, &body).await;
            assert!(reply.status == 400 && is_closed, "{path} {head:?}: {reply:?}");
            let error = &reply.json()["error"];
            assert_eq!(error["type"], "invalid_request_error", "{head:?}: {reply:?}");
            assert_eq!(reply.json()["type"] == "error", path == "/v1/messages", "{reply:?}");
            assert!(reply.header("x-request-id").is_some());
        }
        // The key of one and the key of another.
        for keys in [
            "authorization: Bearer sk\r\nauthorization: Bearer other\r\n",
            "authorization: Bearer sk\r\nauthorization: Bearer sk\r\n",
            "x-api-key: sk\r\nx-api-key: other\r\n",
        ] {
            let (reply, _) = send(&format!("HTTP/1.1\r\n{host}{keys}{length}"), body).await;
            assert_eq!(reply.status, 400, "{keys:?}: {reply:?}");
            assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
            assert_eq!(reply.json()["type"] == "error", path == "/v1/messages", "{reply:?}");
        }
        // Hyper has dropped the length, obeys the chunks, and lets nothing follow them.
        for lengths in [
            "content-length: 3\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        ] {
            let (reply, is_closed) = send(&format!("HTTP/1.1\r\n{host}{key}{lengths}"), &chunked(body)).await;
            assert!(reply.status == 200 && is_closed, "{reply:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_sends_far_too_much_still_reads_why_it_is_refused() {
    let gateway = Gateway::start(&format!("[server]\nmax_body_bytes = 4000000\n{ECHO}")).await;
    let reply = gateway.post(&[JSON], &vec![b' '; 7_000_000]).await;
    assert_eq!(reply.status, 413);
}

/// He is still there, and reads it.
#[tokio::test]
async fn who_sends_what_is_no_body_is_told_so_and_the_connection_is_closed() {
    let gateway = Gateway::start(ECHO).await;
    for path in [CHAT, "/v1/messages"] {
        for body in
            ["zz\r\n{}\r\n0\r\n\r\n".to_owned(), format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(20_000))]
        {
            let mut client = gateway.connect().await;
            let head =
                "host: gateway\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            client.write(&format!("POST {path} HTTP/1.1\r\n{head}{body}")).await;
            let reply = client.reply().await;
            let kind = &reply.json()["error"]["type"];
            assert_eq!((reply.status, kind), (400, &json!("invalid_request_error")), "{reply:?}");
            assert_eq!(
                (reply.header("connection"), client.closed().await),
                (Some("close"), true),
                "{reply:?}"
            );
        }
    }
}

/// Who is refused before his request's body was read, and is not told that the connection is closed, asks again on it.
#[tokio::test]
async fn a_connection_is_good_for_the_next_request_unless_the_answer_says_that_it_is_closed() {
    let keys = "[[keys]]\nkey = \"sk\"\nuser = \"ada\"\nmax_in_flight = 1\n[[keys]]\nkey = \"good\"\nuser = \"bob\"\n";
    let mut upstream = Upstream::start().await;
    let config = one(&upstream.url, &format!("[server]\nmax_body_bytes = 100000\n{keys}"));
    let gateway = Gateway::start(&config).await;
    let (full, good) = (("authorization", "Bearer sk"), ("authorization", "Bearer good"));
    let plain = ("content-type", "text/plain");
    let mut waiting = gateway.connect().await;
    waiting.ask("POST", CHAT, &[JSON, full], asking("a/m").as_bytes()).await;
    let _unanswered = upstream.call().await;
    for bytes in [10, 90_000, 150_000, 1_000_000] {
        let too_large = if bytes > 100_000 { 413 } else { 400 };
        for (method, path, headers, status) in [
            ("POST", CHAT, &[JSON][..], 401),
            ("POST", "/v1/messages", &[JSON], 401),
            ("POST", "/v1/cache/invalidate", &[JSON], 401),
            ("POST", CHAT, &[JSON, full], 429),
            ("POST", "/v1/messages", &[JSON, full], 429),
            ("POST", "/v1/messages/count_tokens", &[JSON, full], 429),
            ("POST", CHAT, &[plain, good], 415),
            ("POST", CHAT, &[JSON, good], too_large),
            ("POST", "/v1/messages", &[JSON, good], too_large),
            ("POST", "/v1/messages/count_tokens", &[JSON, good], too_large),
            ("POST", "/v1/nothing", &[JSON, good], 404),
            ("PUT", CHAT, &[JSON, good], 405),
        ] {
            let mut client = gateway.connect().await;
            let sent = client.try_ask(method, path, headers, &vec![b' '; bytes]).await;
            let reply = client.reply().await;
            assert_eq!(reply.status, status, "{bytes} {method} {path} {headers:?}");
            if reply.header("connection") == Some("close") {
                assert!(bytes > 200_000, "{bytes} {method} {path} {headers:?}");
                assert!(client.closed().await);
                continue;
            }
            sent.unwrap();
            client.ask("GET", "/healthz", &[], b"").await;
            assert_eq!(client.reply().await.status, 200, "{bytes} {method} {path} {headers:?}");
        }
    }
    // Who waits for a word before he sends it has nothing to send.
    for (key, kind, bytes, status) in [
        ("none", "application/json", 10, 401),
        ("good", "text/plain", 10, 415),
        ("good", "application/json", 100_001, 413),
    ] {
        let mut client = gateway.connect().await;
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: gateway\r\nexpect: 100-continue\r\n");
        let more =
            format!("authorization: Bearer {key}\r\ncontent-type: {kind}\r\ncontent-length: {bytes}\r\n\r\n");
        client.write(&(head + &more)).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (status, Some("close")));
        assert!(client.closed().await);
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_refused_and_the_connection_closed_by_word() {
    let gateway = Gateway::start(&format!("[server]\nbody_timeout = \"50ms\"\n{ECHO}")).await;
    for path in [CHAT, "/v1/messages"] {
        let mut client = gateway.connect().await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n");
        client.write(&(head + "content-length: 10\r\n\r\n{")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("connection")), (408, Some("close")), "{path}");
        assert!(client.closed().await);
    }
}

const ECHO: &str = "[providers.echo]\nkind = \"echo\"\n";

#[tokio::test]
async fn a_bad_configuration_ends_it_with_code_2_and_names_every_entry() {
    let output = run(r#"
[server]
max_body_byte = 1
[[keys]]
key = { env = "GATEWAY_TEST_UNSET" }
user = "ada"
[[keys]]
key = "sk-secret"
user = "bob"
[[keys]]
key = "sk-secret"
user = "eve"
[providers.a]
base_url = ""
[aliases]
fast = "gone/x"
[fallbacks]
"a/x" = ["a/y", "a/x"]
"#)
    .await;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let stderr = String::from_utf8(output.stderr).unwrap();
    for entry in
        ["server.max_body_byte", "keys[0].key", "keys[2].key", "providers.a.base_url", "aliases.fast"]
    {
        assert!(stderr.contains(entry), "{entry}: {stderr}");
    }
    assert!(!stderr.contains("sk-secret"));

    let output = run(&format!("{ECHO}[fallbacks]\n\"echo/x\" = [\"gone/y\"]")).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("gone/y"));
}

// ===== who asks =====

#[tokio::test]
async fn only_who_has_a_key_is_let_in_and_no_key_is_seen_anywhere_else() {
    let mut upstream = Upstream::start().await;
    let config = one(&upstream.url, "[[keys]]\nkey = { env = \"TEST_KEY\" }\nuser = \"ada\"\n")
        + "api_key = { env = \"UPSTREAM_KEY\" }\n";
    let env = [("TEST_KEY", "sk-client"), ("UPSTREAM_KEY", "sk-upstream"), ("RUST_LOG", "debug")];
    let gateway = Gateway::start_with(Some(&config), &env).await;
    let body = asking("a/m");
    for key in
        ["", "sk-client", "Basic sk-client", "Bearer", "Bearer ", "Bearer sk-clien", "Bearer sk-client2"]
    {
        let headers = [JSON, ("authorization", key)];
        for headers in [&headers[..], &headers[..1]] {
            let reply = gateway.post(headers, body.as_bytes()).await;
            assert_eq!(reply.status, 401, "{key}");
            assert_eq!(reply.error(), ("invalid_request_error".to_owned(), json!("invalid_api_key")));
            assert!(reply.header("www-authenticate").is_some() && reply.header("x-request-id").is_some());
        }
    }
    assert_eq!(gateway.get("/v1/models").await.status, 401);
    assert_eq!(gateway.get("/healthz").await.status, 200);
    assert!(!upstream.was_called());

    let answer = async {
        let call = upstream.call().await;
        let head = call.head.to_ascii_lowercase();
        assert!(head.contains("authorization: bearer sk-upstream"), "{head}");
        assert!(!head.contains("sk-client") && !call.body.contains("sk-client"));
        call.answer(401, r#"{"error":{"message":"wrong key sk-upstream for Hi"}}"#).await;
    };
    let headers = [JSON, ("authorization", "bearer sk-client")];
    let (reply, ()) = tokio::join!(gateway.post(&headers, body.as_bytes()), answer);
    assert_eq!((reply.status, reply.error().1), (502, json!("upstream_error")));
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    assert!(!reply.body.contains("sk-"));
    let log = gateway.log(&["status=502"]).await;
    assert!(!log.contains("sk-") && !log.contains("\"Hi\""), "{log}");

    let models = gateway.send("GET", "/v1/models", &headers, b"").await.json();
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, ["a/m", "a/n/o"]);
}

#[tokio::test]
async fn a_sane_request_id_is_kept_and_any_other_replaced() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "")).await;
    let headers = [JSON, ("x-request-id", "mine-1")];
    let answer = async {
        let call = upstream.call().await;
        assert!(call.head.to_ascii_lowercase().contains("x-request-id: mine-1"), "{}", call.head);
        call.answer(200, &whole("ok")).await;
    };
    let body = asking("a/m");
    let (reply, ()) = tokio::join!(gateway.post(&headers, body.as_bytes()), answer);
    assert_eq!(reply.header("x-request-id"), Some("mine-1"));
    gateway.log(&["request_id=mine-1", "status=200"]).await;

    // A new one is the same everywhere.
    let answer = async {
        let call = upstream.call().await;
        let head = call.head.clone();
        call.answer(200, &whole("ok")).await;
        head
    };
    let (reply, head) = tokio::join!(gateway.chat(&body), answer);
    let id = reply.header("x-request-id").unwrap();
    assert!(head.to_ascii_lowercase().contains(&format!("x-request-id: {id}")), "{head}");

    let mut seen = Vec::new();
    for id in ["two words", "ümlaut", &"x".repeat(129), ""] {
        let reply = gateway.send("GET", "/healthz", &[("x-request-id", id)], b"").await;
        seen.push(reply.header("x-request-id").unwrap().to_owned());
    }
    assert!(seen.iter().all(|id| id.starts_with("req-") && id.len() == 36), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[tokio::test]
async fn anthropics_clients_are_refused_in_their_shape_with_the_id_where_they_look_wherever_they_ask() {
    let keys = "[[keys]]\nkey = \"sk\"\nuser = \"ada\"\n";
    let gateway = Gateway::start(&format!("{keys}{ECHO}")).await;
    let (key, theirs) = (("x-api-key", "sk"), ("anthropic-version", "2023-06-01"));
    for (method, path, headers, status) in [
        ("POST", "/v1/messages", &[JSON][..], 401),
        ("POST", "/v1/messages", &[JSON, key, ("x-llm-user", "bob")], 400),
        ("POST", "/v1/messages", &[JSON, key], 400),
        ("POST", "/v1/messages", &[key], 415),
        ("GET", "/v1/messages", &[key], 405),
        ("POST", "/v1/messages/count_tokens", &[JSON], 401),
        ("POST", "/v1/messages/count_tokens", &[JSON, key], 400),
        ("POST", "/v1/messages/count_tokens", &[key], 415),
        ("GET", "/v1/messages/count_tokens", &[key], 405),
        ("POST", "/v1/messages/batches", &[JSON, key], 404),
        ("GET", "/v1/models", &[theirs], 401),
        ("POST", "/v1/models", &[theirs, key], 405),
        ("GET", "/v1/models/unlisted", &[theirs, key], 404),
        ("GET", "/v1/models/%ff", &[theirs, key], 404),
        ("GET", "/v1/files", &[theirs, key], 404),
        ("POST", "/v1/complete", &[theirs, key, JSON], 404),
    ] {
        let headers = [headers, &[("x-request-id", "mine-1")]].concat();
        let reply = gateway.send(method, path, &headers, b"{}").await;
        assert_eq!((reply.status, &reply.json()["type"]), (status, &json!("error")), "{method} {path}");
        assert_eq!(reply.header("request-id"), Some("mine-1"), "{method} {path} {status}");
        assert_eq!(reply.header("x-request-id"), Some("mine-1"), "{method} {path} {status}");
    }
    for (method, path) in [("POST", CHAT), ("GET", CHAT)] {
        let reply = gateway.send(method, path, &[theirs, JSON], b"{}").await;
        assert_eq!(reply.error().0, "invalid_request_error", "{method} {path}");
        assert!(reply.json()["error"]["code"].is_string(), "{method} {path}: {reply:?}");
    }
}

// ===== answers and failures =====

#[tokio::test]
async fn the_request_goes_on_byte_for_byte_under_its_real_name() {
    let mut upstream = Upstream::start().await;
    let config = one(&upstream.url, "") + "[aliases]\nfast = \"a/n/o\"\n";
    let gateway = Gateway::start(&config).await;
    let rest = r#""messages":[{"role":"user","content":"H\u0069"}],"temperature":1.0,"unknown":{"a" : 1e2}}"#;
    let body = format!(r#"{{"model":"fast",{rest}"#);
    let answer = async {
        let call = upstream.call().await;
        assert_eq!(call.body, format!(r#"{{"model":"n/o",{rest}"#));
        call.answer(200, r#"{"id":"theirs","choices":[{"message":{"content":"ok"}}],"odd":1.50}"#).await;
    };
    let (reply, ()) = tokio::join!(gateway.chat(&body), answer);
    let json = reply.json();
    assert_eq!((&json["id"], &json["model"]), (&json!("theirs"), &json!("a/n/o")));
    assert_eq!(json["choices"][0]["message"], json!({ "role": "assistant", "content": "ok" }));
    assert!(reply.body.contains(r#""odd":1.50"#) && json["created"].is_u64());
}

#[tokio::test]
async fn another_provider_answers_when_the_first_is_down() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "[providers.down]\nbase_url = \"{}\"\n[providers.up]\nbase_url = \"{}\"\n\
         [aliases]\nspare = \"up/b\"\n[fallbacks]\n\"down/a\" = [\"spare\"]\n",
        nowhere().await,
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let body = asking("down/a");
    let answer = async { upstream.call().await.answer(200, &whole("ok")).await };
    let (reply, ()) = tokio::join!(gateway.chat(&body), answer);
    assert_eq!((reply.status, reply.json()["model"].clone()), (200, json!("up/b")));
    gateway.log(&["requested=\"down/a\"", "model=\"up/b\"", "attempts=2"]).await;

    // And when a stream breaks before it has said anything.
    let (mut client, ()) = tokio::join!(gateway.stream("down/a"), async {
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("Hi").await;
        call.end().await;
    });
    assert!(client.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn without_anybody_who_answers_the_failure_is_told() {
    let gateway = Gateway::start(&one(&nowhere().await, "")).await;
    let reply = gateway.chat(&asking("a/m")).await;
    assert_eq!((reply.status, reply.error()), (502, ("server_error".to_owned(), json!("upstream_error"))));
    gateway.log(&["status=502", "error_code=\"upstream_error\"", "attempts=1"]).await;
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_not_waited_for_for_ever() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "[timeouts]\nhead = \"100ms\"\n")).await;
    let body = asking("a/m");
    let (reply, mut call) = tokio::join!(gateway.chat(&body), upstream.call());
    assert_eq!((reply.status, reply.error()), (504, ("server_error".to_owned(), json!("timeout"))));
    assert!(call.hung_up().await);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_an_error_and_no_done() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "")).await;
    let (mut client, ()) = tokio::join!(gateway.stream("a/m"), async {
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("Hel").await;
    });
    let stream = client.rest().await;
    let events: Vec<_> = stream.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 2, "{stream}");
    let first: Value = serde_json::from_str(events[0].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(first["choices"][0]["delta"], json!({ "role": "assistant", "content": "Hel" }));
    let last: Value = serde_json::from_str(events[1].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((&last["error"]["code"], &last["error"]["param"]), (&json!("upstream_error"), &Value::Null));
    gateway.log(&["ending=\"broken\"", "status=200"]).await;
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "[server]\nkeep_alive = \"50ms\"\n")).await;
    let (mut client, call) = begun(&gateway, &mut upstream).await;
    for _ in 0..2 {
        assert_eq!(client.piece().await.unwrap(), ": keep-alive\n\n");
    }
    call.end().await;
    assert!(client.rest().await.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_client_that_hangs_up_hangs_up_on_the_provider() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "")).await;
    let (client, mut call) = begun(&gateway, &mut upstream).await;
    drop(client);
    assert!(call.hung_up().await);
    gateway.log(&["ending=\"abandoned\""]).await;

    // Before the head, too.
    let mut client = gateway.connect().await;
    client.ask("POST", CHAT, &[JSON], asking("a/m").as_bytes()).await;
    let mut call = upstream.call().await;
    drop(client);
    assert!(call.hung_up().await);
    gateway.log(&["status=499"]).await;
}

#[tokio::test]
async fn more_calls_than_are_allowed_are_refused_until_a_stream_has_ended() {
    let mut upstream = Upstream::start().await;
    let limits = "[server]\nmax_in_flight = 1\nmax_waiting = 0\n";
    let gateway = Gateway::start(&one(&upstream.url, limits)).await;
    let (mut client, mut call) = begun(&gateway, &mut upstream).await;
    let refused = gateway.chat(&asking("a/m")).await;
    assert_eq!((refused.status, refused.error()), (503, ("server_error".to_owned(), json!("overloaded"))));
    assert!(refused.header("retry-after").is_some());
    call.say("lo").await;
    call.end().await;
    client.rest().await;
    let body = asking("a/m");
    let answer = async { upstream.call().await.answer(200, &whole("ok")).await };
    let (reply, ()) = tokio::join!(gateway.chat(&body), answer);
    assert_eq!(reply.status, 200);
}

/// With Nagle's algorithm a small chunk waits for the acknowledgement of the one before, and the other end
/// delays that by 40 ms where it takes the connection for a conversation: hence the requests before.
#[tokio::test]
async fn a_chunk_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&one(&upstream.url, "")).await;
    let mut delays = Vec::new();
    for _ in 0..5 {
        let mut client = gateway.connect().await;
        for _ in 0..8 {
            client.ask("GET", "/healthz", &[], b"").await;
            client.reply().await;
        }
        let streamed = asking("a/m").replacen('{', r#"{"stream":true,"#, 1);
        client.ask("POST", CHAT, &[JSON], streamed.as_bytes()).await;
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("1").await;
        client.head().await;
        client.piece().await;
        let sent = Instant::now();
        call.say("2").await;
        client.piece().await;
        delays.push(sent.elapsed());
    }
    // One that is quick is enough: without TCP_NODELAY none is.
    assert!(delays.iter().any(|delay| *delay < Duration::from_millis(30)), "{delays:?}");
}

// ===== the end =====

#[tokio::test]
async fn a_stream_finishes_after_the_signal_while_others_are_told_that_it_stops() {
    let mut upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&one(&upstream.url, "")).await;
    let (mut client, mut call) = begun(&gateway, &mut upstream).await;
    let mut idle = gateway.connect().await;
    gateway.terminate();
    gateway.log(&["stopping"]).await;

    let ready = gateway.get("/readyz").await;
    assert_eq!((ready.status, ready.error().1), (503, json!("shutting_down")));
    assert_eq!(ready.header("connection"), Some("close"));
    assert_eq!(gateway.get("/healthz").await.status, 200);
    assert_eq!(gateway.chat(&asking("a/m")).await.status, 503);
    let message = gateway.send("POST", "/v1/messages", &[JSON], asking("a/m").as_bytes()).await;
    assert_eq!((message.status, message.header("retry-after")), (503, Some("1")));
    let said = message.json();
    assert_eq!((&said["type"], &said["error"]["type"]), (&json!("error"), &json!("overloaded_error")));

    call.say("lo").await;
    assert_eq!(content(&client.piece().await.unwrap()), "lo");
    call.end().await;
    assert!(client.rest().await.ends_with("data: [DONE]\n\n"));
    assert_eq!(gateway.ended().await, 0);
    assert!(idle.closed().await);
}

#[tokio::test]
async fn an_answer_that_its_client_takes_slowly_is_sent_to_its_end_after_the_signal() {
    let mut upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&one(&upstream.url, "")).await;
    // More than the buffers of the system take.
    let answer = whole(&"x".repeat(16 << 20));
    let mut client = Client::connect_narrowly(&gateway.address).await;
    client.ask("POST", CHAT, &[JSON], asking("a/m").as_bytes()).await;
    upstream.call().await.answer(200, &answer).await;
    let head = client.head().await;
    gateway.terminate();
    gateway.log(&["stopping"]).await;
    // Longer than what idle connections are given to close.
    assert!(timeout(Duration::from_secs(2), gateway.ended()).await.is_err(), "it does not wait");
    let length = head.header("content-length").unwrap().parse().unwrap();
    assert_eq!(client.body(length).await.len(), length);
    assert_eq!(gateway.ended().await, 0);
}

#[tokio::test]
async fn a_stream_that_does_not_finish_is_cut_when_the_grace_is_over() {
    let mut upstream = Upstream::start().await;
    let mut gateway = Gateway::start(&one(&upstream.url, "[server]\nshutdown_grace = \"100ms\"\n")).await;
    let (mut client, mut call) = begun(&gateway, &mut upstream).await;
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    assert!(client.closed().await);
    assert!(call.hung_up().await);
}

#[tokio::test]
async fn what_is_cut_when_the_grace_is_over_is_recorded_and_charged() {
    let mut upstream = Upstream::start().await;
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let [usage, quota] = ["cut-usage.db", "cut-quota.db"].map(|name| directory.join(name));
    for (file, end) in
        [&usage, &quota].into_iter().flat_map(|file| ["", "-wal", "-shm"].map(|end| (file, end)))
    {
        let _ = std::fs::remove_file(format!("{}{end}", file.display()));
    }
    let config = format!(
        "[server]\nshutdown_grace = \"100ms\"\n[usage]\npath = {:?}\n[quota]\nstore = \"sqlite\"\npath = {:?}\n\
         [[keys]]\nkey = \"one\"\nuser = \"ada\"\ndepartments = [\"r-and-d\"]\n\
         [[keys]]\nkey = \"root\"\nuser = \"root\"\nadmin = true\n\
         [departments.r-and-d]\nday_tokens = 100000\n",
        usage.display().to_string(),
        quota.display().to_string()
    );
    let mut gateway = Gateway::start(&one(&upstream.url, &config)).await;
    let key = [("authorization", "Bearer one")];
    let (_client, mut call) = begun_as(&gateway, &mut upstream, &key).await;
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    assert!(call.hung_up().await);
    let gateway = Gateway::start(&one(&upstream.url, &config)).await;
    let told =
        async |path: &str| gateway.send("GET", path, &[("authorization", "Bearer root")], b"").await.json();
    let usage = told("/v1/usage?outcome=aborted").await;
    assert_eq!(
        (&usage["totals"]["calls"], &usage["totals"]["estimated_calls"]),
        (&json!(1), &json!(1)),
        "{usage}"
    );
    let quota = told("/v1/quota/r-and-d").await;
    let tokens = &quota["day"]["tokens"];
    assert!(tokens["settled"].as_u64() > Some(0) && tokens["reserved"] == 0, "{quota}");
}

#[tokio::test]
async fn what_was_recorded_is_in_one_file_when_it_has_ended() {
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("one-file");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let usage = directory.join("usage.db").display().to_string();
    let config = format!("[usage]\npath = {usage:?}\n[providers.echo]\nkind = \"echo\"\n");
    let mut gateway = Gateway::start(&config).await;
    assert_eq!(gateway.chat(&asking("echo/a")).await.status, 200);
    assert_eq!(gateway.get("/v1/usage").await.json()["totals"]["calls"], 1);
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    let left: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["usage.db"]);
    let gateway = Gateway::start(&config).await;
    assert_eq!(gateway.get("/v1/usage").await.json()["totals"]["calls"], 1);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    let output = command.args(["--listen", &address]).output().await.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("gateway: {address}: Address already in use")), "{said}");
}

#[tokio::test]
async fn what_is_no_number_of_threads_is_told_by_a_line_and_the_exit_code() {
    for threads in ["0", "two", ""] {
        let mut gateway = tokio::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        gateway.args(["--listen", "127.0.0.1:0"]).env("TOKIO_WORKER_THREADS", threads);
        let output = gateway.output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = (Some(1), "gateway: TOKIO_WORKER_THREADS: no number of threads\n");
        assert_eq!((output.status.code(), &*said), expected, "{threads:?}");
    }
}

#[tokio::test]
async fn a_provider_is_asked_through_the_proxy_that_the_file_names_and_through_no_other() {
    let mut upstream = Upstream::start().await;
    let (mut tunnels, mut others) = (Tunnels::open().await, Tunnels::open().await);
    let file = |proxy: &str| format!("[providers.a]\nbase_url = \"{}\"\n{proxy}\n", upstream.url);
    let (with, without) = (file("proxy = { env = \"PROXY\" }"), file(""));
    let (proxy, other) = (tunnels.url("ada:hidden@"), others.url(""));
    let env = [("PROXY", &*proxy), ("HTTPS_PROXY", &*other)];
    let body = asking("a/m");
    for (config, is_proxied) in [(with, true), (without, false)] {
        let gateway = Gateway::start_with(Some(&config), &env).await;
        let (reply, ()) = tokio::join!(gateway.chat(&body), async {
            upstream.call().await.answer(200, &whole("ok")).await;
        });
        assert_eq!(reply.status, 200);
        let words = ["HTTPS_PROXY", "is not obeyed"];
        if is_proxied {
            let asked = tunnels.asked().await;
            assert!(asked.starts_with("connect 127.0.0.1:"), "{asked}");
            assert!(asked.contains("proxy-authorization: basic "), "{asked}");
            let said = gateway.log_of(0, &[]).await;
            assert!(!said.contains("is not obeyed") && !said.contains("hidden"), "{said}");
        } else {
            assert_eq!(gateway.log(&words).await.matches("is not obeyed").count(), 1);
        }
    }
    assert!(others.was_not_asked() && tunnels.was_not_asked());
}

#[tokio::test]
async fn without_anything_under_way_it_ends_at_once() {
    let mut gateway = Gateway::start_with(None, &[]).await;
    gateway.get("/healthz").await;
    let began = Instant::now();
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    assert!(began.elapsed() < Duration::from_secs(5));
}

// ===== usage =====

/// Two keys, and prices of our own.
fn with_prices(gateway: &str) -> String {
    let prices = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("prices.toml");
    std::fs::write(&prices, "[models.\"a/m\"]\ninput = \"1\"\noutput = \"2\"\n").unwrap();
    let keys = r#"
        [[keys]]
        key = "one"
        user = "ada"
        departments = ["r-and-d", "ops"]
        [[keys]]
        key = "root"
        user = "root"
        admin = true
    "#;
    format!("{keys}\n[prices]\nown = {:?}\n{gateway}", prices.display().to_string())
}

async fn usage(gateway: &Gateway, question: &str) -> Value {
    let root = ("authorization", "Bearer root");
    // Records are written soon after the answer.
    for _ in 0..200 {
        let reply = gateway.send("GET", &format!("/v1/usage{question}"), &[root], b"").await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        let json = reply.json();
        if json["totals"]["calls"] != 0 {
            return json;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing was recorded");
}

#[tokio::test]
async fn what_was_used_is_recorded_and_told_to_who_may_know() {
    let mut upstream = Upstream::start().await;
    let gateway = Gateway::start(&with_prices(&one(&upstream.url, ""))).await;
    let one = ("authorization", "Bearer one");
    let (headers, body) = ([JSON, one], asking("a/m"));
    let (reply, ()) = tokio::join!(gateway.post(&headers, body.as_bytes()), async {
        upstream.call().await.answer(200, &whole("Hi")).await;
    });
    assert_eq!(reply.status, 200, "{}", reply.body);

    let used = usage(&gateway, "?window=day&by=model,outcome").await;
    assert_eq!(used["totals"]["calls"], 1);
    assert!(used["totals"]["cost_nano_usd"].as_i64().unwrap() > 0, "{used}");
    assert_eq!(used["groups"][0]["key"], json!({ "model": "a/m", "outcome": "ok" }));
    let departments: Vec<_> =
        used["department_sums"].as_array().unwrap().iter().map(|sum| &sum["department"]).collect();
    assert_eq!(departments, ["ops", "r-and-d"]);
    assert_eq!(usage(&gateway, "?department=ops&user=ada").await["totals"], used["totals"]);

    let refused = gateway.send("GET", "/v1/usage", &[one], b"").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("not_admin")));
    let root = ("authorization", "Bearer root");
    for (name, wrong) in
        [("window", "year"), ("by", "colour"), ("from", "yesterday"), ("outcome", "fine"), ("secret", "1")]
    {
        let reply = gateway.send("GET", &format!("/v1/usage?{name}={wrong}"), &[root], b"").await;
        assert_eq!(reply.status, 400, "{name}: {}", reply.body);
        assert!(reply.body.contains(&format!("`{name}`")), "{}", reply.body);
    }
    assert_eq!(gateway.send("GET", "/v1/usage?by=model&by=day", &[root], b"").await.status, 400);
}
