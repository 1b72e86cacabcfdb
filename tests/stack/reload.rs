//! Another configuration while calls are made, and a file that changes.

use super::*;

#[tokio::test]
async fn a_reload_exchanges_tables_and_a_bad_one_changes_nothing() {
    let (service, handle) = stack(config("aliases.fast = \"echo/one\"\n")).await.unwrap();
    handle
        .reload(config(
            "aliases.fast = \"new/two\"\nproviders.new.kind = \"echo\"\nproviders.new.models = [\"x\"]\n",
        ))
        .unwrap();
    assert_eq!(model(&service, "fast").await, "new/two");
    assert_eq!(handle.models().len(), 2);

    // Wrong in itself, though it could be read: made in code.
    let mut bad = config("aliases.fast = \"echo/three\"\n");
    bad.aliases.insert("loop".into(), llm_layers::config::Alias::Model("loop2".into()));
    bad.aliases.insert("loop2".into(), llm_layers::config::Alias::Model("loop".into()));
    let error = handle.reload(bad).unwrap_err();
    assert_eq!(said(&error), ["aliases.loop: leads in a circle: loop -> loop2 -> loop"]);
    assert_eq!(model(&service, "fast").await, "new/two");
}

#[tokio::test]
async fn what_needs_a_restart_is_refused_by_its_entry_and_nothing_is_half_applied() {
    let base = "aliases.fast = \"echo/one\"\nquota.store = \"memory\"\ndepartments.a.day_requests = 5\ncache.ttl = \"1h\"\n";
    let (service, handle) = stack(config(base)).await.unwrap();
    for (change, entry) in [
        (base.replace("\"memory\"", "\"sqlite\""), "quota.store"),
        (format!("listen = \"127.0.0.1:1\"\n{base}"), "listen"),
        (format!("server.max_in_flight = 7\n{base}"), "server.max_in_flight"),
        (base.replace("1h", "2h"), "cache.ttl"),
        (base.replace("cache.ttl = \"1h\"\n", ""), "cache"),
        (format!("telemetry.log = \"json\"\n{base}"), "telemetry.log"),
        (format!("quota.time_zone = \"Europe/Berlin\"\n{base}"), "quota.time_zone"),
        (format!("providers.own.kind = \"own\"\n{base}"), "providers.own"),
    ] {
        let error = handle.reload(config(&change.replace("echo/one", "echo/two"))).unwrap_err();
        let problems = said(&error);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("{entry}: ")) && problems[0].contains("needs a restart"),
            "{problems:?}"
        );
        assert!(error.problems()[0].line.is_some() || entry == "cache", "{error}");
    }
    assert_eq!(model(&service, "fast").await, "echo/one");
    // The same with other tables is taken.
    handle.reload(config(&base.replace("echo/one", "echo/two"))).unwrap();
    assert_eq!(model(&service, "fast").await, "echo/two");
}

#[tokio::test]
async fn a_changed_store_address_needs_a_restart_wherever_it_comes_from() {
    let folder = folder("address");
    let file = folder.join("changed");
    let outbox = folder.join("outbox");
    let secret = "0123456789abcdef0123456789abcdef";
    let limits = "quota.timeout = \"50ms\"\ndepartments.a.day_requests = 1\n";
    let (one, two) = ("redis://127.0.0.1:1", "redis://127.0.0.1:2");
    for (entry, more, before, after) in [
        ("quota.redis", limits.to_owned(), one, two),
        ("usage.redis", format!("usage.enabled = true\nusage.outbox = {outbox:?}\n"), one, two),
        ("cache.redis", format!("cache.secret = {secret:?}\n"), one, two),
        ("cache.secret", String::new(), secret, "fedcba9876543210fedcba9876543210"),
    ] {
        let text =
            format!("identity = \"host\"\nproviders.echo.kind = \"echo\"\n{more}{entry}.file = {file:?}\n");
        let text = if entry == "usage.redis" { text } else { format!("usage.enabled = false\n{text}") };
        let config = || Config::parse(&text).unwrap();
        fs::write(&file, before).unwrap();
        let (_, handle) = stack(config()).await.unwrap();
        handle.reload(config()).unwrap();
        fs::write(&file, after).unwrap();
        let refused = said(&handle.reload(config()).unwrap_err());
        assert!(refused[0].starts_with(&format!("{entry}: ")), "{refused:?}");
        assert!(refused.len() == 1 && refused[0].contains("needs a restart"), "{refused:?}");
        handle.shutdown(Duration::ZERO).await;
    }
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn what_is_cached_and_who_is_inside_outlasts_a_reload() {
    let text = |n: usize| {
        config(&format!(
            "cache.ttl = \"1h\"\nserver.max_in_flight = 1\nserver.max_waiting = 0\naliases.x = \"echo/{n}\"\n"
        ))
    };
    let (service, handle) = stack(text(0)).await.unwrap();
    let ask = |user: &str| service.clone().oneshot(of(request("echo/a"), user, &[]));
    assert!(!ask("ada").await.unwrap().cache.is_hit());
    handle.reload(text(1)).unwrap();
    assert!(ask("ada").await.unwrap().cache.is_hit());
    // And is still nobody else's.
    assert!(!ask("bob").await.unwrap().cache.is_hit());

    let body = ChatBody::builder().user("Hello").streaming().build().unwrap();
    let answer = service.clone().oneshot(LlmRequest::new("echo/a", body)).await.unwrap();
    handle.reload(text(2)).unwrap();
    let error = ask("ada").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Overloaded), "{error}");
    answer.text().await.unwrap();
    ask("ada").await.unwrap();
}

/// Says its name, and keeps nothing.
async fn named_server(name: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let said = format!(
        r#"{{"id":"c","object":"chat.completion","created":1,"model":"a","choices":[{{"index":0,"message":{{"role":"assistant","content":"{name}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":1,"completion_tokens":1}}}}"#
    );
    let answer = move || std::future::ready(([("content-type", "application/json")], said.clone()));
    let app = axum::Router::new().fallback(answer);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

#[tokio::test]
async fn what_is_cached_is_of_the_servers_that_have_answered() {
    let (old, new) = (named_server("old").await, named_server("new").await);
    let of_servers = |servers: &[(&str, &str)]| {
        let each = servers.iter().map(|(url, key)| {
            format!("[[providers.cloud.deployments]]\nbase_url = \"{url}\"\napi_key = \"{key}\"\n")
        });
        config(&format!("[cache]\n[providers.cloud]\n{}", each.collect::<String>()))
    };
    let (service, handle) = stack(of_servers(&[(&old, "1")])).await.unwrap();
    let ask = async || {
        let answer = service.clone().oneshot(of(request("cloud/a"), "ada", &[])).await.unwrap();
        let is_hit = answer.cache.is_hit();
        (answer.text().await.unwrap(), is_hit)
    };
    assert_eq!(ask().await, ("old".into(), false));
    handle.reload(of_servers(&[(&format!("{old}/"), "another")])).unwrap();
    assert_eq!(ask().await, ("old".into(), true), "it is the same server");
    handle.reload(of_servers(&[(&new, "1")])).unwrap();
    assert_eq!(ask().await, ("new".into(), false));
    assert_eq!(ask().await, ("new".into(), true));
    handle.reload(of_servers(&[(&old, "1")])).unwrap();
    assert_eq!(ask().await, ("old".into(), true), "what it has said is its answer still");
    handle.reload(of_servers(&[(&old, "1"), (&new, "1")])).unwrap();
    assert!(!ask().await.1);
    handle.reload(of_servers(&[(&new, "1"), (&old, "2"), (&new, "3")])).unwrap();
    assert!(ask().await.1, "in whichever order, and however many");
    handle.reload(config("[cache]\n[providers.cloud]\nkind = \"echo\"\n")).unwrap();
    assert_eq!(ask().await, ("Hello".into(), false), "and of its kind");
}

#[tokio::test]
async fn the_first_limits_and_lists_hold_without_a_restart_and_the_last_may_go() {
    let base = "";
    let (service, handle) = stack(config(base)).await.unwrap();
    let ask = |department: &str| service.clone().oneshot(of(request("echo/a"), "ada", &[department]));
    ask("a").await.unwrap();
    assert!(handle.quota("a").await.unwrap().is_none());

    let limited = format!(
        "{base}quota.store = \"memory\"\ndepartments.a.day_requests = 1\ndepartments.b.models = []\n"
    );
    handle.reload(config(&limited)).unwrap();
    ask("a").await.unwrap();
    let error = ask("a").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)), "{error}");
    let error = ask("b").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. }), "{error}");
    assert_eq!(handle.quota("a").await.unwrap().unwrap().policy.limits.day_requests, Some(1));

    // Without any, nobody has one; and the counters are still there for those that come.
    handle.reload(config(base)).unwrap();
    assert!(handle.quota("a").await.unwrap().is_none());
    ask("a").await.unwrap();
    ask("b").await.unwrap();
    handle.reload(config(&limited)).unwrap();
    ask("a").await.unwrap_err();
    // They stay where they are.
    let elsewhere = limited.replace("\"memory\"", "\"sqlite\"");
    for _ in 0..2 {
        let error = handle.reload(config(&elsewhere)).unwrap_err();
        assert!(
            said(&error)[0].starts_with("quota.store: ") && said(&error)[0].contains("needs a restart"),
            "{error}"
        );
        handle.reload(config(base)).unwrap();
    }
    assert!(handle.shutdown(Duration::from_secs(1)).await.is_clean());
}

#[tokio::test]
async fn without_limits_a_store_that_is_down_refuses_nothing() {
    if !redis_server::is_installed("without_limits_a_store_that_is_down_refuses_nothing") {
        return;
    }
    for more in ["", "quota.mode = \"shadow\"\n"] {
        let mut server = RedisServer::with_options(&[]);
        let limited = format!("quota.redis = {:?}\n{more}departments.a.day_requests = 9\n", server.url());
        let (service, handle) = stack(config(&limited)).await.unwrap();
        let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
        ask().await.unwrap();
        server.kill();
        assert_eq!(ask().await.is_ok(), !more.is_empty());
        assert_eq!(handle.readiness(), Readiness::QuotaUnavailable);

        handle.reload(config("")).unwrap();
        ask().await.unwrap();
        assert_eq!(handle.readiness(), Readiness::Ready);
        assert!(handle.quota("a").await.unwrap().is_none());
        handle.reload(config(&limited)).unwrap();
        assert_eq!(ask().await.is_ok(), !more.is_empty());
        handle.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_call_that_began_under_the_last_limits_is_charged_when_they_are_gone() {
    let cloud = Scripted::new();
    cloud.push(Reply::text("Hello").after([Step::Gate]));
    let base = "providers.cloud.kind = \"own\"\n";
    let limited = format!("{base}quota.store = \"memory\"\ndepartments.a.day_requests = 9\n");
    let builder = StackBuilder::new(config(&limited)).with_provider("cloud", cloud.clone());
    let (service, handle) = builder.build().await.unwrap();
    let mut call = Box::pin(service.oneshot(of(request("cloud/a"), "ada", &["a"])));
    assert!((&mut call).now_or_never().is_none());
    handle.reload(config(base)).unwrap();
    cloud.open();
    call.await.unwrap();
    handle.reload(config(&limited)).unwrap();
    let day = handle.quota("a").await.unwrap().unwrap().standing.in_day;
    assert_eq!((day.settled.requests, day.reserved.requests), (1, 0));
}

#[tokio::test]
async fn first_limits_know_what_the_ledger_has_and_are_counted_where_they_are_told() {
    let folder = folder("first");
    let config = |text: &str| {
        Config::parse(&format!("identity = \"host\"\nproviders.echo.kind = \"echo\"\n{text}")).unwrap()
    };
    let base = format!("usage.path = {:?}\n", folder.join("usage.db"));
    let (service, handle) = stack(config(&base)).await.unwrap();
    let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
    for _ in 0..3 {
        ask().await.unwrap();
    }
    while handle.usage_queue().unwrap().pending() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let path = folder.join("quota.db");
    let limited = format!("{base}quota.path = {path:?}\ndepartments.a.day_requests = 4\n");
    // Not where nothing can be opened: nothing has changed then, and another place may be told.
    let nowhere = limited.replace("quota.db", "nowhere/quota.db");
    let error = handle.reload(config(&nowhere)).unwrap_err();
    assert!(said(&error)[0].starts_with("quota.path: ") && !path.exists(), "{error}");
    handle.reload(config(&limited)).unwrap();
    assert!(path.exists());
    ask().await.unwrap();
    let error = ask().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(exceeded) if exceeded.limit == 4), "{error}");
    assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
}

#[tokio::test]
async fn a_redis_that_comes_later_and_would_throw_counters_away_counts_nothing_until_it_does_not() {
    let test = "a_redis_that_comes_later_and_would_throw_counters_away_counts_nothing_until_it_does_not";
    if !redis_server::is_installed(test) {
        return;
    }
    let mut server = RedisServer::with_options(&["--maxmemory-policy", "allkeys-lru"]);
    server.kill();
    let text = format!("quota.redis = {:?}\ndepartments.a.day_requests = 9\n", server.url());
    let (service, handle) = stack(config(&text)).await.unwrap();
    let ask = async || service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await;
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::StoreUnavailable { .. }));
    server.restart();
    let soon = Duration::from_secs(20);
    // It is asked again and again what it is.
    let reached = async {
        while !server.ask(&["INFO", "commandstats"]).contains("cmdstat_hello") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(soon, reached).await.unwrap();
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::StoreUnavailable { .. }));
    assert_eq!(handle.readiness(), Readiness::QuotaUnavailable);
    assert_eq!(server.ask(&["DBSIZE"]), "0");
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    let ready = async {
        while handle.readiness() != Readiness::Ready {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(soon, ready).await.unwrap();
    ask().await.unwrap();
    assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
}

const WITHOUT_THREADS: &str = "LLM_LAYERS_WITHOUT_THREADS";

#[tokio::test]
async fn first_limits_in_a_redis_are_refused_where_no_thread_can_be_had() {
    if std::env::var_os(WITHOUT_THREADS).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reload::first_limits_in_a_redis_are_refused_where_no_thread_can_be_had"])
            .args(["--nocapture", "--test-threads=1"])
            .env(WITHOUT_THREADS, "")
            // More than any address space has.
            .env("RUST_MIN_STACK", (1_u64 << 47).to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let failed = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{said}{failed}");
        return;
    }
    assert!(std::thread::Builder::new().spawn(|| ()).is_err());
    let (service, handle) = stack(config("")).await.unwrap();
    let limited = "quota.redis = \"redis://127.0.0.1:1\"\ndepartments.a.day_requests = 9\n";
    let error = handle.reload(config(limited)).unwrap_err();
    assert!(said(&error)[0].starts_with("quota.redis: "), "{error}");
    // Nothing has changed.
    service.oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap();
    assert!(handle.shutdown(Duration::from_secs(1)).await.is_clean());
}

#[tokio::test]
async fn a_file_that_has_lost_its_keys_lets_nobody_in() {
    let echo = "usage.enabled = false\nproviders.echo.kind = \"echo\"\n";
    let keys = format!("{echo}keys = [{{ key = \"ada-key\", user = \"ada\" }}]\n");
    let parse = |text: &str| Config::parse(text).unwrap();
    let (_service, handle) = stack(parse(&keys)).await.unwrap();
    let error = handle.reload(parse(echo)).unwrap_err();
    let expected = "keys: without any everybody may ask for everything, which needs a restart";
    assert_eq!(said(&error), [expected]);
    assert!(handle.caller(None).is_none() && handle.caller(Some(b"ada-key")).is_some());
    // The other way it is taken at once.
    let (_service, handle) = stack(parse(echo)).await.unwrap();
    assert!(handle.caller(None).is_some());
    handle.reload(parse(&keys)).unwrap();
    assert!(handle.caller(None).is_none() && handle.caller(Some(b"ada-key")).is_some());
}

#[tokio::test]
async fn first_limits_in_a_redis_that_is_away_refuse_calls_and_make_it_unready() {
    let (service, handle) = stack(config("")).await.unwrap();
    let limited =
        "quota.redis = \"redis://127.0.0.1:1\"\nquota.timeout = \"50ms\"\ndepartments.a.day_requests = 1\n";
    handle.reload(config(limited)).unwrap();
    let error = service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "{error}");
    service.clone().oneshot(of(request("echo/a"), "ada", &[])).await.unwrap();
    assert_eq!(handle.readiness(), Readiness::QuotaUnavailable);
}

#[tokio::test]
async fn what_a_stack_was_built_without_cannot_come_by_another_configuration() {
    let base = "quota.store = \"memory\"\ndepartments.a.models = [\"echo/*\"]\n";
    for (part, more, entry) in [
        (Part::Quota, "departments.a.day_requests = 1\n", "departments.a"),
        (Part::Access, "departments.b.models = []\n", "departments.b.models"),
        (Part::Alias, "aliases.fast = \"echo/one\"\n", "aliases"),
        (Part::Fallback, "fallbacks.\"echo/a\" = [\"echo/b\"]\n", "fallbacks"),
        (Part::Cache, "cache.ttl = \"1h\"\n", "cache"),
        (Part::Concurrency, "server.max_in_flight = 9\n", "server.max_in_flight"),
        (Part::Fallback, "retry.retries = 3\n", "retry"),
    ] {
        let base = if part == Part::Access { "" } else { base };
        let (service, handle) = StackBuilder::new(config(base)).without(part).build().await.unwrap();
        handle.reload(config(base)).unwrap();
        let error = handle.reload(config(&format!("{base}{more}"))).unwrap_err();
        assert!(said(&error).iter().any(|said| said.starts_with(&format!("{entry}: "))), "{part}: {error}");
        service.oneshot(of(request("echo/a"), "ada", &["a"])).await.unwrap();
    }
}

#[tokio::test]
async fn a_department_at_90_percent_is_at_90_percent_after_100_reloads() {
    let text = "quota.store = \"memory\"\ndepartments.a.day_requests = 10\n";
    let (service, handle) = stack(config(text)).await.unwrap();
    let ask = || service.clone().oneshot(of(request("echo/a"), "ada", &["a"]));
    for _ in 0..9 {
        ask().await.unwrap();
    }
    for round in 0..100 {
        // Something is different each time, and once something is wrong.
        let more = format!("aliases.fast = \"echo/{round}\"\n{text}");
        handle.reload(config(&more)).unwrap();
        handle.reload(config(&format!("server.max_waiting = {round}\n{more}"))).unwrap_err();
        let view = handle.quota("a").await.unwrap().unwrap();
        assert_eq!(view.standing.over(llm_layers::Period::Day).settled.requests, 9);
    }
    ask().await.unwrap();
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::QuotaExceeded(_)));
    // A higher limit counts from where it was.
    handle.reload(config(&text.replace("10", "11"))).unwrap();
    ask().await.unwrap();
    assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::QuotaExceeded(_)));
}

#[tokio::test(start_paused = true)]
async fn deployments_that_stay_keep_their_rest_and_those_that_change_do_not() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let down = service_fn(move |request: LlmRequest| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            Err::<LlmResponse, _>(Error::provider(llm_layers::ErrorClass::Unavailable, "own", request.model))
        }
    });
    let text = "providers.own.kind = \"own\"\n";
    let builder =
        StackBuilder::new(config(text)).with_provider("own", down).with_provider("own", Echo::new());
    let (service, handle) = builder.build().await.unwrap();
    while calls.load(Ordering::Relaxed) < 3 {
        let _ = service.clone().oneshot(request("own/a")).await;
    }
    // It rests now, whatever else is reloaded: also when a time limit around it has changed.
    for round in 1..50 {
        handle
            .reload(config(&format!("{text}timeouts.head = \"{round}s\"\naliases.x = \"own/{round}\"\n")))
            .unwrap();
        service.clone().oneshot(request("x")).await.unwrap();
    }
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

/// A server that answers all it is asked with this, and what it was sent.
async fn server(status: &'static str, body: &'static str) -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
            while !read.ends_with(b"}") {
                let count = stream.read(&mut buffer).await.unwrap();
                assert!(count > 0);
                read.extend_from_slice(&buffer[..count]);
            }
            log.lock().unwrap().push(String::from_utf8(read).unwrap());
            let head = format!("content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            stream.write_all(format!("HTTP/1.1 {status}\r\n{head}").as_bytes()).await.unwrap();
        }
    });
    (url, seen)
}

#[tokio::test]
async fn a_server_that_rests_rests_whatever_else_it_is_to_be_sent() {
    const HELLO: &str = r#"{"id":"1","object":"chat.completion","created":1,"model":"a",
        "choices":[{"index":0,"message":{"role":"assistant","content":"Hello"},"finish_reason":"stop"}]}"#;
    let (down, failed) = server("503 Service Unavailable", "{}").await;
    let (up, asked) = server("200 OK", HELLO).await;
    let text = |member: &str, traces: bool| {
        config(&format!(
            "[providers.own]\noutput_member = {member:?}\n\
             [[providers.own.deployments]]\nbase_url = {down:?}\ntrace_headers = {traces}\n\
             [[providers.own.deployments]]\nbase_url = {up:?}\ntrace_headers = {traces}\n"
        ))
    };
    let (service, handle) = stack(text("max_tokens", false)).await.unwrap();
    let ask = || {
        let body = ChatBody::builder().user("Hello").max_output_tokens(9).build().unwrap();
        service.clone().oneshot(LlmRequest::new("own/a", body))
    };
    let times = |log: &std::sync::Mutex<Vec<String>>| log.lock().unwrap().len();
    while times(&failed) < 3 {
        let _ = ask().await;
    }
    for round in 0..10 {
        let (member, traces) = [("max_completion_tokens", false), ("max_tokens", true)][round % 2];
        handle.reload(text(member, traces)).unwrap();
        ask().await.unwrap();
        // It is as it was told last for all that.
        let sent = asked.lock().unwrap().last().unwrap().clone();
        assert!(sent.contains(&format!("{member:?}:9")), "{sent}");
    }
    assert_eq!(times(&failed), 3);
}

#[tokio::test]
async fn calls_in_flight_on_a_provider_that_is_removed_finish() {
    let cloud = Scripted::new();
    let text = "providers.cloud.kind = \"own\"\n";
    let reply = [
        Step::Chunk(StreamChunk::text("Hel")),
        Step::Gate,
        Step::Chunk(StreamChunk::text("lo")),
        Step::Chunk(StreamChunk::end()),
    ];
    cloud.push(Reply::stream(reply));
    let builder = StackBuilder::new(config(text)).with_provider("cloud", cloud.clone());
    let (service, handle) = builder.build().await.unwrap();
    let body = ChatBody::builder().user("Hello").streaming().build().unwrap();
    let answer = service.clone().oneshot(LlmRequest::new("cloud/a", body)).await.unwrap();
    handle.reload(config("")).unwrap();
    let error = service.oneshot(request("cloud/a")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ModelNotFound { .. }), "{error}");
    cloud.open();
    assert_eq!(answer.text().await.unwrap(), "Hello");
    assert_eq!(cloud.alive(), 0);
}

/// One table of each kind names a generation; a call that saw two of them would end on a model of none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_sees_half_of_two_configurations() {
    let generation = |n: usize| {
        config(&format!(
            "providers.down.kind = \"own\"\naliases.fast = \"down/g{n}\"\naliases.then = \"echo/g{n}\"\n\
             fallbacks.\"down/g{n}\" = [\"then\"]\n"
        ))
    };
    let down = service_fn(|request: LlmRequest| async move {
        tokio::task::yield_now().await;
        Err::<LlmResponse, _>(Error::provider(llm_layers::ErrorClass::Unavailable, "down", request.model))
    });
    let (service, handle) =
        StackBuilder::new(generation(0)).with_provider("down", down).build().await.unwrap();
    let reloads = tokio::spawn(async move {
        for n in 1..=200 {
            handle.reload(generation(n)).unwrap();
            tokio::task::yield_now().await;
        }
    });
    let mut calls = 0;
    while !reloads.is_finished() || calls == 0 {
        let answer = service.clone().oneshot(request("fast")).await.expect("its own generation's chain");
        let first = answer.attempts[0].model.as_str().strip_prefix("down/").unwrap().to_owned();
        assert_eq!(answer.model.as_str(), format!("echo/{first}"));
        calls += 1;
    }
    reloads.await.unwrap();
}

#[tokio::test]
async fn a_service_that_was_ready_before_a_reload_makes_its_call_by_what_it_was_ready_for() {
    let (mut service, handle) = stack(config("aliases.fast = \"echo/one\"\n")).await.unwrap();
    let ready = service.ready().await.unwrap();
    handle.reload(config("aliases.fast = \"echo/two\"\n")).unwrap();
    assert_eq!(ready.call(request("fast")).await.unwrap().model, "echo/one");
    assert_eq!(service.ready().await.unwrap().call(request("fast")).await.unwrap().model, "echo/two");
}

#[test]
fn a_change_is_taken_when_it_has_settled_and_told_once() {
    let folder = folder("watch");
    let path = folder.join("c.toml");
    let write = |text: &str| fs::write(&path, format!("{ECHO}{text}")).unwrap();
    write("");
    let mut watch = Watch::new(&path, &Config::read(&path).unwrap());
    assert!(watch.look().is_none());

    write("aliases.a = \"echo/a\"\n");
    assert!(watch.look().is_none(), "it may still be written");
    assert_eq!(watch.look().unwrap().unwrap().aliases.len(), 1);
    assert!(watch.look().is_none());

    // Half of a file, and then the rest.
    write("aliases.a = \"ech");
    assert!(watch.look().is_none());
    write("aliases.a = \"echo/b\"\n");
    assert!(watch.look().is_none());
    assert!(watch.look().unwrap().is_ok());

    // A bad one is told once.
    write("aliases.a = \"gone/b\"\n");
    assert!(watch.look().is_none());
    assert!(watch.look().unwrap().unwrap_err().to_string().contains("c.toml:4: aliases.a: leads to gone/b"));
    assert!(watch.look().is_none() && watch.look().is_none());

    // Gone for a moment, as editors do, it is not told; for good it is.
    fs::remove_file(&path).unwrap();
    assert!(watch.look().is_none());
    write("aliases.a = \"echo/c\"\n");
    assert!(watch.look().is_none());
    assert!(watch.look().unwrap().is_ok());

    // As Kubernetes does it: a link that points elsewhere.
    let linked = folder.join("linked.toml");
    std::os::unix::fs::symlink(&path, folder.join("data")).unwrap();
    std::os::unix::fs::symlink(folder.join("data"), &linked).unwrap();
    let mut watch = Watch::new(&linked, &Config::read(&linked).unwrap());
    fs::write(folder.join("two.toml"), format!("{ECHO}aliases.z = \"echo/z\"\n")).unwrap();
    std::os::unix::fs::symlink(folder.join("two.toml"), folder.join("data.new")).unwrap();
    fs::rename(folder.join("data.new"), folder.join("data")).unwrap();
    assert!(watch.look().is_none());
    assert!(watch.look().unwrap().unwrap().aliases.contains_key("z"));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_file_that_the_new_one_names_may_come_after_it() {
    let folder = folder("late");
    let (path, secret) = (folder.join("c.toml"), folder.join("key"));
    fs::write(&path, ECHO).unwrap();
    let mut watch = Watch::new(&path, &Config::read(&path).unwrap());
    fs::write(
        &path,
        format!("{ECHO}[[keys]]\nkey.file = {secret:?}\nuser = \"ada\"\n").replace("\"host\"", "\"keys\""),
    )
    .unwrap();
    assert!(watch.look().is_none());
    let refused = watch.look().unwrap().unwrap_err();
    assert_eq!(refused.problems()[0].entry, "keys[0].key");
    assert!(watch.look().is_none());

    fs::write(&secret, "ada-key").unwrap();
    assert!(watch.look().is_none(), "it may still be written");
    assert_eq!(watch.look().unwrap().unwrap().keys.unwrap().len(), 1);
    assert!(watch.look().is_none());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_pipe_is_read_once_and_never_looked_into() {
    let folder = folder("pipe");
    let pipe = folder.join("pipe.toml");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    // Whoever opens it would wait for one who writes.
    let mut watch = Watch::new(&pipe, &config(""));
    assert!((0..4).all(|_| watch.look().is_none()));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_secret_of_the_same_length_and_age_is_another_one() {
    let folder = folder("rotated");
    let (path, secret) = (folder.join("c.toml"), folder.join("key"));
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        // As of a store whose files are all of one age.
        fs::File::open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    write("one", "ada-key-1");
    write("two", "ada-key-2");
    std::os::unix::fs::symlink(folder.join("one"), &secret).unwrap();
    let text =
        format!("{ECHO}[providers.cloud]\nbase_url = \"http://127.0.0.1:1\"\napi_key.file = {secret:?}\n");
    fs::write(&path, text).unwrap();
    let mut watch = Watch::new(&path, &Config::read(&path).unwrap());
    assert!(watch.look().is_none());
    std::os::unix::fs::symlink(folder.join("two"), folder.join("key.new")).unwrap();
    fs::rename(folder.join("key.new"), &secret).unwrap();
    assert!(watch.look().is_none());
    assert!(watch.look().is_some_and(|read| read.is_ok()));
    assert!(watch.look().is_none());
    fs::remove_dir_all(folder).unwrap();
}

#[cfg(all(feature = "semantic", feature = "hyper-client"))]
#[tokio::test]
async fn another_key_of_the_embedder_is_told_to_need_a_restart() {
    let folder = folder("embedder");
    let key = folder.join("key");
    fs::write(&key, "one").unwrap();
    let text = format!(
        "[cache.semantic]\nbase_url = \"http://127.0.0.1:1/v1\"\nmodel = \"m\"\napi_key.file = {key:?}\n"
    );
    let (_, handle) = stack(config(&text)).await.unwrap();
    assert_eq!(config(&text).files(), [key.as_path()]);
    handle.reload(config(&text)).unwrap();
    fs::write(&key, "two").unwrap();
    let refused = said(&handle.reload(config(&text)).unwrap_err());
    assert!(refused.len() == 1 && refused[0].starts_with("cache.semantic: "), "{refused:?}");
    assert!(refused[0].contains("needs a restart"), "{refused:?}");
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn a_redis_that_is_told_to_throw_counters_away_counts_nothing_until_it_does_not() {
    let test = "a_redis_that_is_told_to_throw_counters_away_counts_nothing_until_it_does_not";
    if !redis_server::is_installed(test) {
        return;
    }
    let server = RedisServer::with_options(&[]);
    let text = format!("quota.redis = {:?}\ndepartments.a.day_requests = 100000\n", server.url());
    let (service, handle) = stack(config(&text)).await.unwrap();
    let ask = async || service.clone().oneshot(of(request("echo/a"), "ada", &["a"])).await;
    ask().await.unwrap();
    // By a connection that is made anew, as after a failover, long before it is asked for its turn; then in its turn.
    for (is_cut_off, soon) in [(true, Duration::from_secs(7)), (false, Duration::from_secs(30))] {
        assert_eq!(handle.readiness(), Readiness::Ready);
        server.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
        if is_cut_off {
            server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        let found = async {
            while handle.readiness() != Readiness::QuotaUnavailable {
                let _ = ask().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(soon, found).await.unwrap();
        assert!(matches!(ask().await.unwrap_err().kind(), ErrorKind::StoreUnavailable { .. }));
        server.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
        let ready = async {
            while handle.readiness() != Readiness::Ready {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(7), ready).await.unwrap();
        ask().await.unwrap();
    }
    assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
}
