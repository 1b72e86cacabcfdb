//! Names and headers that mean something to whatever is behind: to Redis, SQL, the file system, HTTP, metrics, a log.
//! SECURITY.md names these tests.

use faults::{Client, Gateway, Options, Reply, Upstream, chat, events, redis::RedisServer, until};
use serde_json::json;
use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

/// What a user or a department may be called by who means no good.
const NAMES: [&str; 14] = [
    "../../../../tmp/escape",
    "/etc/passwd",
    "a{b}c",
    "}{",
    "x'; DROP TABLE events; --",
    "\r\nSET pwned 1\r\n",
    "%_",
    "a:b",
    "nul\0inside",
    "grün 研究 🦀",
    " a ",
    "\" admin=\"true",
    "2026-01-01T00:00:00Z ERROR forged\n2026-01-01T00:00:00Z ERROR forged",
    "${jndi:ldap://127.0.0.1/a}",
];

fn limits(redis: &RedisServer) -> String {
    format!(
        "[departments.\"*\"]\nday_requests = 1000\n[quota]\nstore = \"redis\"\nredis = \"{}\"\ntimeout = \"5s\"\n",
        redis.url()
    )
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

/// Another name than that of the department, which the log may tell.
fn user(name: &str) -> String {
    format!("{name} of users")
}

/// Each line of the log is one that the gateway has begun.
fn is_unforged(log: &str) -> bool {
    log.lines().all(|line| !line.contains("ERROR forged") || line.contains("INFO"))
        && log.lines().all(|line| line.starts_with("20") && line.as_bytes().get(26) == Some(&b'Z'))
}

#[tokio::test]
async fn hostile_names_of_users_and_departments_are_names_and_nothing_else() {
    let Some(redis) = RedisServer::start("hostile_names") else { return };
    let upstream = Upstream::start([]).await;
    let mut config = format!("{}[providers.up]\nbase_url = {:?}\n", limits(&redis), upstream.url);
    for (number, name) in NAMES.iter().enumerate() {
        let (key, user, name) = (key(number), json!(user(name)), json!(name));
        let _ = writeln!(config, "[[keys]]\nkey = \"{key}\"\nuser = {user}\ndepartments = [{name}]");
    }
    let gateway = Gateway::start(&config).await;
    for (number, name) in NAMES.iter().enumerate() {
        for _ in 0..=number {
            let reply = gateway.ask(&key(number), &chat("up/good", false)).await.expect("an answer");
            assert_eq!(reply.shown(), "a whole answer", "{name:?}");
        }
    }
    let all = NAMES.len() * (NAMES.len() + 1) / 2;
    let file = gateway.room.join("usage.db");
    let recorded =
        until(Duration::from_secs(20), async || Some(events(&file)).filter(|own| own.len() == all)).await;
    let recorded = recorded.expect("all are recorded");
    for (number, name) in NAMES.iter().enumerate() {
        let path: String = name.bytes().fold(String::new(), |mut path, byte| {
            let _ = write!(path, "%{byte:02X}");
            path
        });
        assert!(gateway.is_settled(&key(number), &path, Duration::from_secs(10)).await);
        let standing = gateway.standing(&key(number), &path).await;
        assert_eq!(standing.settled.0, number as u64 + 1, "{name:?} is counted by itself");
        let user = user(name);
        let own = recorded.iter().filter(|event| event.user.as_deref() == Some(&user));
        let own: Vec<_> = own.map(|event| event.departments.join("\n")).collect();
        assert_eq!(own.len(), number + 1, "{name:?} is recorded by itself");
        // The lines of a name with lines in it are told apart by nobody here.
        assert!(
            own.iter().all(|departments| departments == &name.lines().collect::<Vec<_>>().join("\n")),
            "{own:?}"
        );
        let other = gateway.get(&key((number + 1) % NAMES.len()), &format!("/v1/quota/{path}")).await;
        assert_eq!(other.status, 403, "{name:?} is told to nobody else");
    }

    assert_eq!(redis.ask(&["GET", "pwned"]), "");
    let keys = redis.ask(&["KEYS", "*"]);
    assert!(keys.lines().count() >= NAMES.len(), "{keys}");
    for key in keys.lines() {
        assert!(key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"{}:_-=".contains(&byte)), "{key:?}");
    }
    let files = std::fs::read_dir(gateway.room.join("")).expect("a folder");
    let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    let known = ["disk", "gateway.toml", "usage.db", "usage.db-shm", "usage.db-wal"];
    assert!(files.iter().all(|file| known.contains(&&**file)), "{files:?}");
    assert!(!std::path::Path::new("/tmp/escape").exists());
    let metrics = gateway.get("", "/metrics").await.body;
    let log = gateway.log();
    assert!(metrics.len() > 100 && log.lines().count() > all, "there is something to look at");
    for name in NAMES.iter().filter(|name| name.trim().len() > 3) {
        assert!(!metrics.contains(name), "{name:?} is shown");
    }
    assert!(!log.contains("of users"), "the log names users");
    assert!(is_unforged(&log), "{log}");
}

#[tokio::test]
async fn whatever_a_model_is_called_the_provider_is_asked_at_its_own_address() {
    let upstream = Upstream::start([]).await;
    let config = format!(
        "[telemetry]\ndecision_headers = true\n[providers.up]\nbase_url = {:?}\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let is_sane = |model: &str| !model.contains(char::is_control);
    let models = [
        "../../../admin",
        "http://169.254.169.254/latest/meta-data",
        "//127.0.0.1:1/",
        "@127.0.0.1:1",
        "x\r\nx-evil: 1\r\n\r\nGET / HTTP/1.1",
        "x\n2026-01-01T00:00:00Z ERROR forged",
        "?key=1#fragment",
        "\0",
        "🦀",
        "gpt\"} evil 1\n# HELP evil",
    ];
    for model in models {
        let reply = gateway.ask("k", &chat(&format!("up/{model}"), false)).await.expect("an answer");
        let expected = if is_sane(model) { "a whole answer" } else { "400 invalid_type" };
        assert_eq!(reply.shown(), expected, "{model:?}");
        assert!(reply.headers.iter().all(|(name, _)| !name.contains("evil")), "{:?}", reply.headers);
    }
    let log = upstream.log();
    let sane: Vec<_> = models.into_iter().filter(|model| is_sane(model)).collect();
    assert_eq!(log.len(), sane.len());
    for (seen, model) in log.iter().zip(sane) {
        assert!(seen.head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{:?}", seen.head);
        assert_eq!(seen.model, model);
        let own = upstream.url.trim_start_matches("http://").trim_end_matches("/v1");
        assert!(seen.head.contains(&format!("host: {own}\r\n")), "{:?}", seen.head);
        assert!(!seen.head.contains("evil"), "{:?}", seen.head);
    }
    let metrics = gateway.get("", "/metrics").await.body;
    assert!(
        metrics.lines().all(|line| !line.starts_with("# HELP evil") && !line.ends_with("} evil 1")),
        "{metrics}"
    );
    assert!(is_unforged(&gateway.log()), "{}", gateway.log());
}

#[tokio::test]
async fn a_client_says_who_it_is_by_its_key_and_by_nothing_else() {
    let upstream = Upstream::start([]).await;
    let config = format!(
        "[providers.up]\nbase_url = {:?}\napi_key = \"provider-key\"\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\ndepartments = [\"ops\"]\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let mut body = chat("up/good", false);
    body["user"] = json!("root");
    body["metadata"] = json!({ "user_id": "root", "department": "board", "tenant": "other" });
    let claims = [
        "x-user",
        "x-user-id",
        "x-department",
        "x-departments",
        "x-tenant",
        "x-tenant-id",
        "x-forwarded-user",
        "x-agent",
        "openai-organization",
        "openai-project",
        "x-acl-hash",
        "x-knowledge-bases",
    ];
    let mut headers = vec![("content-type", "application/json"), ("authorization", "Bearer k")];
    headers.extend(claims.iter().map(|name| (*name, "root")));
    let mut client = gateway.connect().await;
    let request = Client::request("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
    client.write(&request).await.expect("it listens");
    assert_eq!(client.reply().await.expect("an answer").shown(), "a whole answer");
    let file = gateway.room.join("usage.db");
    let own =
        until(Duration::from_secs(10), async || Some(events(&file)).filter(|own| !own.is_empty())).await;
    let own = own.expect("a record");
    assert_eq!((own[0].user.as_deref(), &*own[0].departments), (Some("ada"), &["ops".to_owned()][..]));

    // What only an application that is trusted may say is refused, so that nobody thinks that it was believed.
    for name in ["x-llm-user", "x-llm-departments", "x-llm-knowledge-bases"] {
        let headers = [("content-type", "application/json"), ("authorization", "Bearer k"), (name, "root")];
        let mut client = gateway.connect().await;
        let request = Client::request("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
        client.write(&request).await.expect("it listens");
        assert_eq!(client.reply().await.expect("an answer").status, 400, "{name}");
    }

    // Nor does what it has sent as headers reach the provider: least of all its key.
    let head = &upstream.log()[0].head;
    assert!(head.contains("Bearer provider-key"), "{head}");
    for name in claims {
        assert!(!head.to_ascii_lowercase().contains(&format!("{name}:")), "{head}");
    }
    for refused in ["", "Bearer", "Bearer ", "Bearer k2", "Bearer K", "Basic k", "Bearer k\u{e9}"] {
        let headers = [("content-type", "application/json"), ("authorization", refused)];
        let mut client = gateway.connect().await;
        let request = Client::request(
            "POST",
            "/v1/chat/completions",
            &headers,
            chat("up/good", false).to_string().as_bytes(),
        );
        client.write(&request).await.expect("it listens");
        assert_eq!(client.reply().await.expect("an answer").status, 401, "{refused:?}");
    }
}

/// Sends bytes, and reads what comes.
async fn raw(gateway: &Gateway, bytes: &[u8]) -> Option<Reply> {
    let mut client = gateway.connect().await;
    client.write(bytes).await.expect("it listens");
    client.reply().await.ok()
}

#[tokio::test]
async fn a_request_that_can_be_read_in_two_ways_is_read_in_none() {
    let upstream = Upstream::start([]).await;
    let gateway = Gateway::start(&format!("[providers.up]\nbase_url = {:?}\n", upstream.url)).await;
    let body = chat("up/good", false).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n";
    let length = body.len();
    let smuggled = [
        format!("{head}content-length: {length}\r\ncontent-length: 5\r\n\r\n{body}"),
        format!("{head}content-length: +{length}\r\n\r\n{body}"),
        format!("{head}content-length : {length}\r\n\r\n{body}"),
        format!("{head}transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n"),
        format!("{head}x: a\rb\r\ncontent-length: {length}\r\n\r\n{body}"),
        format!("{head}x: a\0b\r\ncontent-length: {length}\r\n\r\n{body}"),
    ];
    for request in smuggled {
        let reply = raw(&gateway, request.as_bytes()).await;
        assert!(reply.as_ref().is_none_or(|reply| reply.status == 400), "{request:?}: {reply:?}");
    }
    assert!(upstream.log().is_empty());
    let good = format!("{head}content-length: {length}\r\n\r\n{body}");
    assert_eq!(raw(&gateway, good.as_bytes()).await.expect("an answer").shown(), "a whole answer");
}

#[tokio::test]
async fn what_is_too_much_is_refused_before_it_is_read() {
    let upstream = Upstream::start([]).await;
    // All of it less than what others allow, so that it is ours that counts.
    let config = format!(
        "[server]\nmax_body_bytes = 100000\nmax_headers = 20\nmax_header_bytes = 16384\nmax_depth = 20\nmax_messages = 10\n\
         max_tools = 10\n[providers.up]\nbase_url = {:?}\n",
        upstream.url
    );
    let gateway = Gateway::start_with(&config, Options::default()).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n";
    let many: String = (0..25).fold(String::new(), |mut all, number| {
        let _ = write!(all, "x-{number}: 1\r\n");
        all
    });
    let long = format!("x-long: {}\r\n", "a".repeat(20_000));
    for headers in [many, long] {
        let reply = raw(&gateway, format!("{head}{headers}content-length: 0\r\n\r\n").as_bytes()).await;
        assert!(reply.as_ref().is_none_or(|reply| reply.status == 431), "{reply:?}");
    }
    // It does not wait for what was announced.
    let reply = raw(&gateway, format!("{head}content-length: 99999999999\r\n\r\n").as_bytes()).await;
    assert_eq!(reply.expect("an answer").status, 413);
    let good = chat("up/good", false);
    let with = |name: &str, value: serde_json::Value| {
        let mut body = good.clone();
        body[name] = value;
        body.to_string()
    };
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let too_much = [
        (format!("{{\"model\":\"up/good\",\"messages\":{}", "[".repeat(50_000)), "nesting that does not end"),
        (with("metadata", serde_json::from_str(&nested(30)).unwrap()), "nesting"),
        (with("messages", json!(vec![good["messages"][0].clone(); 11])), "messages"),
        (with("tools", json!(vec![json!({ "type": "function", "function": { "name": "f" } }); 11])), "tools"),
        (with("padding", json!("x".repeat(100_000))), "bytes"),
    ];
    for (body, what) in too_much {
        let headers = [("content-type", "application/json")];
        let request = Client::request("POST", "/v1/chat/completions", &headers, body.as_bytes());
        let reply = raw(&gateway, &request).await.expect("an answer");
        assert!(matches!(reply.status, 400 | 413), "too many {what}: {reply:?}");
    }
    assert!(upstream.log().is_empty());
    assert_eq!(gateway.ask("", &chat("up/good", false)).await.expect("an answer").shown(), "a whole answer");
}
