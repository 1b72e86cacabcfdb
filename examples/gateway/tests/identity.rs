//! Who asks, for whom, and how much of him: the real binary.

mod common;

use common::{CHAT, Gateway, JSON, Upstream, asking, check};
use serde_json::{Value, json};

const KEYS: &str = r#"
[[keys]]
key = "app-key"
user = "portal"
tenant = "acme"
departments = ["research", "ops"]
trusted = true
[[keys]]
key = "ada-key"
user = "ada"
departments = ["research"]
[[keys]]
key = "root-key"
user = "root"
admin = true
[providers.echo]
kind = "echo"
[departments.research]
day_requests = 2
[departments.ops]
[quota]
store = "memory"
[cache.knowledge_bases.handbook]
cache = true
"#;

async fn ask(gateway: &Gateway, key: &str, text: &str, headers: &[(&str, &str)]) -> common::Reply {
    let body = json!({ "model": "echo/echo", "messages": [{ "role": "user", "content": text }] });
    let bearer = format!("Bearer {key}");
    let mut all = vec![JSON, ("authorization", &bearer)];
    all.extend(headers);
    gateway.post(&all, body.to_string().as_bytes()).await
}

fn is_hit(reply: &common::Reply) -> bool {
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.header("cache-status").is_some_and(|status| status.contains("hit"))
}

async fn usage(gateway: &Gateway, question: &str) -> u64 {
    let reply = gateway
        .send("GET", &format!("/v1/usage?{question}"), &[("authorization", "Bearer root-key")], b"")
        .await;
    reply.json()["totals"]["calls"].as_u64().unwrap()
}

#[tokio::test]
async fn seed_15_an_application_that_is_trusted_asks_for_its_own_users_and_keeps_them_apart() {
    let gateway = Gateway::start(KEYS).await;
    let user = |name: &'static str| ("x-llm-user", name);
    let ops = ("x-llm-departments", "ops");
    assert!(!is_hit(&ask(&gateway, "app-key", "a", &[user("eve"), ops]).await));
    assert!(is_hit(&ask(&gateway, "app-key", "a", &[user("eve"), ops]).await));
    // Another user, the application itself, and a key's user of that name in no tenant.
    assert!(!is_hit(&ask(&gateway, "app-key", "a", &[user("ada"), ops]).await));
    assert!(!is_hit(&ask(&gateway, "app-key", "a", &[ops]).await));
    assert!(!is_hit(&ask(&gateway, "ada-key", "a", &[]).await));

    // A knowledge base: only with rights, and with the same ones.
    let kb = |value: &'static str| ("x-llm-knowledge-bases", value);
    let ask_kb = async |value| {
        let mut hit = false;
        for _ in 0..40 {
            hit = is_hit(&ask(&gateway, "app-key", "k", &[user("eve"), ops, kb(value)]).await);
            if hit {
                break;
            }
        }
        hit
    };
    assert!(ask_kb("handbook; acl=1; version=7").await);
    assert!(!is_hit(
        &ask(&gateway, "app-key", "k", &[user("eve"), ops, kb("handbook; acl=2; version=7")]).await
    ));
    assert!(!is_hit(
        &ask(&gateway, "app-key", "k", &[user("eve"), ops, kb("handbook; acl=1; version=8")]).await
    ));
    for never in ["handbook", "wiki; acl=1"] {
        assert!(!ask_kb(never).await, "{never}");
    }

    // What is recorded is his, and only ops has paid.
    let recorded = async |question: &str, calls: u64| {
        common::soon(async {
            while usage(&gateway, question).await != calls {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    recorded("user=portal", 1).await;
    recorded("department=research", 1).await;
    let umlaut = [user("J%C3%B6rg%2C%20ich"), ops, ("x-llm-task", "summary"), ("x-llm-agent", "bot")];
    assert!(!is_hit(&ask(&gateway, "app-key", "a", &umlaut).await));
    recorded("user=J%C3%B6rg%2C%20ich&task_type=summary&agent=bot&tenant=acme", 1).await;
}

#[tokio::test]
async fn what_others_say_of_themselves_is_refused_and_never_obeyed() {
    let gateway = Gateway::start(KEYS).await;
    let all = [
        ("x-llm-user", "root"),
        ("x-llm-departments", "ops"),
        ("x-llm-knowledge-bases", "handbook; acl=1"),
        ("x-llm-agent", "a"),
        ("x-llm-task", "t"),
        ("x-llm-conversation", "c"),
        ("X-LLM-User", "ada"),
    ];
    for header in all {
        for key in ["ada-key", "root-key"] {
            let reply = ask(&gateway, key, "x", &[header]).await;
            assert_eq!(reply.status, 400, "{header:?}");
            assert_eq!(reply.error(), ("invalid_request_error".to_owned(), json!("untrusted_identity")));
        }
    }
    let anonymous = Gateway::start_with(None, &[]).await;
    assert_eq!(anonymous.post(&[JSON, all[0]], asking("fast").as_bytes()).await.status, 400);

    // Of one that is trusted too, if it makes no sense or is not his to say.
    for header in [
        ("x-llm-departments", "board"),
        ("x-llm-departments", "research, board"),
        ("x-llm-departments", ""),
        ("x-llm-user", " "),
        ("x-llm-user", "%zz"),
        ("x-llm-user", "a%0Ab"),
        ("x-llm-knowledge-bases", "a; acl=1, a; acl=2"),
        ("x-llm-knowledge-bases", "a; acl=1; acl=2"),
        ("x-llm-knowledge-bases", "a; owner=me"),
        ("x-llm-knowledge-bases", "; acl=1"),
    ] {
        let reply = ask(&gateway, "app-key", "x", &[header]).await;
        assert_eq!(reply.status, 400, "{header:?}");
        assert_eq!(reply.error().1, json!("invalid_identity"), "{header:?}");
    }
    let twice = [("x-llm-user", "a"), ("x-llm-user", "b")];
    assert_eq!(ask(&gateway, "app-key", "x", &twice).await.status, 400);
    let long = "a".repeat(257);
    assert_eq!(ask(&gateway, "app-key", "x", &[("x-llm-user", &long)]).await.status, 400);
    assert_eq!(usage(&gateway, "").await, 0);
}

#[tokio::test]
async fn the_departments_that_an_application_names_are_charged_and_no_others() {
    let gateway = Gateway::start(KEYS).await;
    for text in ["1", "2", "3"] {
        assert_eq!(ask(&gateway, "app-key", text, &[("x-llm-departments", "ops")]).await.status, 200);
    }
    for (text, status) in [("4", 200), ("5", 200), ("6", 429)] {
        assert_eq!(ask(&gateway, "app-key", text, &[("x-llm-departments", "research")]).await.status, status);
    }
    assert_eq!(ask(&gateway, "app-key", "7", &[]).await.status, 429, "all of them unless told");
}

#[tokio::test]
async fn a_request_is_bounded_in_every_direction() {
    let limits = "[server]\nmax_header_bytes = 8192\nmax_headers = 20\nmax_depth = 8\nmax_messages = 3\nmax_tools = 2\n";
    let gateway = Gateway::start(&format!("{limits}[providers.echo]\nkind = \"echo\"\n")).await;
    let message = json!({ "role": "user", "content": "x" });
    let ask = async |messages: Value, tools: Value| {
        let body = json!({ "model": "echo/x", "messages": messages, "tools": tools }).to_string();
        gateway.chat(&body).await
    };
    let three = json!([message, message, message]);
    assert_eq!(ask(three.clone(), json!([])).await.status, 200);
    let reply = ask(json!([message, message, message, message]), json!([])).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("messages")));
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    assert_eq!(ask(three.clone(), json!([tool, tool])).await.status, 200);
    let reply = ask(three.clone(), json!([tool, tool, tool])).await;
    assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!("tools")));
    let deep = json!([{ "role": "user", "content": "x", "deep": [[[[[[[[]]]]]]]] }]);
    assert_eq!(ask(deep, json!([])).await.status, 400);

    // By Anthropic's API too.
    let body =
        json!({ "model": "echo/x", "max_tokens": 9, "messages": [message, message, message, message] });
    let reply = gateway.send("POST", "/v1/messages", &[JSON], body.to_string().as_bytes()).await;
    assert_eq!(reply.status, 400, "{}", reply.body);

    let large = "x".repeat(9000);
    assert_eq!(gateway.post(&[JSON, ("x-large", &large)], b"{}").await.status, 431);
    let names: Vec<String> = (0..25).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (&**name, "1")).collect();
    assert_eq!(gateway.post(&many, b"{}").await.status, 431);
    assert_eq!(gateway.chat(&asking("echo/x")).await.status, 200);
}

/// What is read at once is not counted while it is read.
#[tokio::test]
async fn the_head_of_a_request_is_bounded_however_it_comes() {
    let gateway = Gateway::start("[providers.echo]\nkind = \"echo\"\n").await;
    let large = "x".repeat(90_000);
    assert_eq!(gateway.send("GET", "/healthz", &[("x-large", &large)], b"").await.status, 431);
    let (a, b) = large.split_at(60_000);
    assert_eq!(gateway.send("GET", "/healthz", &[("x-a", a)], b"").await.status, 200);
    assert_eq!(gateway.send("GET", "/healthz", &[("x-a", a), ("x-b", b)], b"").await.status, 431);

    // So near to the bound that hyper takes it. Without a space behind its colon a header takes a byte less than is counted.
    let fields: String = (10..70).map(|n| format!("x{n}:b\r\n")).collect();
    let head = |path: &str, bytes: usize| {
        let head = format!("GET {path} HTTP/1.1\r\nhost:g\r\n{fields}x:");
        let more = "x".repeat(bytes - head.len() - 4);
        head + &more + "\r\n\r\n"
    };
    for path in ["/healthz", "/v1/messages"] {
        let mut client = gateway.connect().await;
        client.write(&head(path, 65_530)).await;
        let reply = client.reply().await;
        let kind = json!("invalid_request_error");
        assert_eq!((reply.status, &reply.json()["error"]["type"]), (431, &kind), "{path}");
        assert_eq!(reply.json()["type"] == "error", path == "/v1/messages");
        assert!(reply.header("x-request-id").is_some());
        client.write(&head("/healthz", 65_400)).await;
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test]
async fn a_key_has_so_many_streams_and_gets_a_place_back_when_one_ends() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "[[keys]]\nkey = \"k\"\nuser = \"ada\"\nmax_in_flight = 1\n[[keys]]\nkey = \"other\"\nuser = \"bob\"\n[providers.a]\nbase_url = \"{}\"\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let body = r#"{"model":"a/m","messages":[{"role":"user","content":"Hi"}],"stream":true}"#;
    let bearer = |key: &str| format!("Bearer {key}");
    let begin = async |upstream: &mut Upstream, key: &str| {
        let mut client = gateway.connect().await;
        client.ask("POST", CHAT, &[JSON, ("authorization", &bearer(key))], body.as_bytes()).await;
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("Hel").await;
        assert_eq!(client.head().await.status, 200);
        (client, call)
    };
    let (mut one, call) = begin(&mut upstream, "k").await;
    let refused = gateway.post(&[JSON, ("authorization", "Bearer k")], body.as_bytes()).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.error(), ("rate_limit_error".to_owned(), json!("too_many_in_flight")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    // Another key has places of its own.
    let (_other, _call) = begin(&mut upstream, "other").await;
    call.end().await;
    one.rest().await;
    let (two, _call) = begin(&mut upstream, "k").await;
    // Whoever hangs up gives it back too.
    drop(two);
    common::soon(async {
        loop {
            let mut client = gateway.connect().await;
            client
                .ask(
                    "POST",
                    CHAT,
                    &[JSON, ("authorization", "Bearer k")],
                    br#"{"model":"gone/x","messages":[{"role":"user","content":"Hi"}]}"#,
                )
                .await;
            if client.reply().await.status == 404 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn nothing_in_a_request_steers_where_it_goes_or_with_which_headers() {
    let mut upstream = Upstream::start().await;
    let config = format!(
        "[providers.a]\nbase_url = \"{}\"\napi_key = \"sk-up\"\nheaders = {{ x-own = \"configured\" }}\n",
        upstream.url
    );
    let gateway = Gateway::start(&config).await;
    let body = r#"{"model":"a/../../etc\u002fm?x=1#y","messages":[{"role":"user","content":"Hi"}],"base_url":"http://evil","api_base":"http://evil","extra_headers":{"x-evil":"1"}}"#;
    let headers = [
        JSON,
        ("x-own", "mine"),
        ("authorization", "Bearer mine"),
        ("x-forwarded-host", "evil"),
        ("cookie", "c=1"),
    ];
    let (reply, ()) = tokio::join!(gateway.post(&headers, body.as_bytes()), async {
        let call = upstream.call().await;
        let head = call.head.to_lowercase();
        assert!(head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{head}");
        assert!(head.contains("x-own: configured") && head.contains("authorization: bearer sk-up"), "{head}");
        for theirs in ["mine", "evil", "cookie"] {
            assert!(!head.contains(theirs), "{theirs}: {head}");
        }
        call.answer(200, &common::whole("ok")).await;
    });
    assert_eq!(reply.status, 200, "{}", reply.body);
}

// ===== check =====

#[tokio::test]
async fn check_says_what_a_file_comes_to_and_opens_nothing() {
    let config =
        format!("{KEYS}[aliases]\nfast = \"echo/small\"\n[fallbacks]\n\"echo/small\" = [\"echo/large\"]\n");
    let output = check(&config, &[]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    for word in ["concurrency", "alias", "fallback", "access", "cache", "quota", "usage", "keys: 3", "fast\n"]
    {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(!said.contains("app-key"), "{said}");

    let output = check(&config, &["--model", "fast"]).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("-> echo/small") && said.contains("after a failure: echo/large"), "{said}");

    let output = check(&config, &["--model", "gone/x"]).await;
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no provider serves"));

    let own = format!("{config}[tenants.bank]\naliases.fast = \"echo/own\"\n");
    for (model, tenant, code, leads) in [
        ("fast", &["--tenant", "bank"][..], 0, "-> echo/own"),
        ("fast", &["--tenant", "other"], 0, "-> echo/small"),
        ("gone/x", &["--tenant", "bank"], 1, "no provider serves \"gone/x\" for the tenant \"bank\""),
    ] {
        let output = check(&own, &[&["--model", model], tenant].concat()).await;
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(leads), "{model} {tenant:?}: {said}");
    }

    let output = check("[providers.echo]\nknid = \"echo\"\n[cache]\n", &[]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    for line in [
        "gateway.toml:2: providers.echo.knid: is unknown; did you mean \"kind\"?",
        "gateway.toml:3: cache: nothing would be kept",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(check("", &["--modle", "x"]).await.status.code(), Some(2));
    let output = check("", &["--tenant", "bank"]).await;
    assert!(String::from_utf8(output.stderr).unwrap().contains("--tenant is for --model NAME"));
    assert_eq!(
        check("identity = \"host\"\n[providers.echo]\nkind = \"echo\"\n", &[]).await.status.code(),
        Some(2)
    );
}

#[tokio::test]
async fn what_nobody_takes_is_told_by_the_exit_code() {
    let litellm = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/convert/litellm.yaml");
    let full = "standard output: No space left on device";
    for (arguments, into, code, told) in [
        (&["--version"][..], ">/dev/full", 1, full),
        (&["check", "gateway.toml"], ">/dev/full", 1, full),
        (&["check", "gateway.toml", "--model", "echo/x"], ">/dev/full", 1, full),
        (&["convert", "litellm", litellm], ">/dev/full", 1, full),
        (&["--config", "gateway.toml", "--listen", "127.0.0.1:0"], ">/dev/full", 1, full),
        (&["check", "no/such.toml"], "2>/dev/full", 2, ""),
        (&["check", "gateway.toml", "--model", "gone/x"], "2>/dev/full", 1, ""),
    ] {
        let (_, folder) = common::command(None, &[]);
        std::fs::write(folder.join("gateway.toml"), "[providers.echo]\nkind = \"echo\"\n").unwrap();
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", &format!("exec \"$0\" \"$@\" {into}"), env!("CARGO_BIN_EXE_gateway")]);
        let output = common::soon(shell.args(arguments).current_dir(&folder).output()).await.unwrap();
        std::fs::remove_dir_all(folder).unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}
