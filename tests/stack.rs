//! The documented order as one call: what it is made of, what it refuses, and how it takes another configuration.

use futures_util::FutureExt as _;
use llm_layers::{
    ChatBody, Error, ErrorKind, KbScope, LlmRequest, LlmResponse, RequestContext, StreamChunk,
    cache::EpochKind,
    config::{Config, ConfigError},
    price::NanoUsd,
    provider::Echo,
    quota::MemoryStore,
    stack::{BoxService, Handle, Part, Place, Readiness, StackBuilder, StackError, Watch, stack},
    testing::{Reply, Scripted, Step},
    usage::MemorySink,
};
use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tower::{Service, ServiceExt, layer::layer_fn, service_fn};

const ECHO: &str = "usage.enabled = false\nidentity = \"host\"\nproviders.echo.kind = \"echo\"\n";

fn config(text: &str) -> Config {
    Config::parse(&format!("{ECHO}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Hello").build().unwrap())
}

fn of(request: LlmRequest, user: &str, departments: &[&str]) -> LlmRequest {
    let context = RequestContext::new().with_user_id(user).with_departments(departments.iter().copied());
    request.with_context(context)
}

async fn model(service: &BoxService, name: &str) -> String {
    service.clone().oneshot(request(name)).await.unwrap().model.as_str().to_owned()
}

fn refusal<T>(result: Result<T, StackError>) -> Vec<String> {
    match result {
        Err(StackError::Config(error)) => said(&error),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was built"),
    }
}

fn said(error: &ConfigError) -> Vec<String> {
    error.problems().iter().map(|problem| format!("{}: {}", problem.entry, problem.what)).collect()
}

// ===== what it is made of =====

#[tokio::test]
async fn the_whole_configuration_is_one_service() {
    let text = "aliases.fast = \"echo/one\"\ncache = {}\n[departments.a]\nday_requests = 2\nmodels = [\"echo/one\"]\n";
    let sink = MemorySink::new(64);
    let builder = StackBuilder::new(config(&format!("quota.store = \"memory\"\n{text}")));
    let (service, handle) = builder.with_usage_sink(sink.clone()).build().await.unwrap();

    let ask = |name: &str, text: &str| {
        let request = LlmRequest::new(name, ChatBody::builder().user(text).build().unwrap());
        service.clone().oneshot(of(request, "ada", &["a"]))
    };
    assert_eq!(ask("fast", "one").await.unwrap().model, "echo/one");
    assert!(ask("fast", "one").await.unwrap().cache.is_hit());
    assert!(matches!(ask("echo/two", "x").await.unwrap_err().kind(), ErrorKind::ModelNotAllowed { .. }));
    ask("fast", "two").await.unwrap().text().await.unwrap();
    let error = ask("fast", "three").await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)), "{error}");
    // Two calls, and the hit at no cost.
    let events = sink.take();
    assert_eq!(events.len(), 3);

    let view = handle.quota("a").await.unwrap().unwrap();
    assert_eq!(view.policy.limits.day_requests, Some(2));
    assert_eq!(view.standing.over(llm_layers::Period::Day).settled.requests, 2);
    let listed: Vec<_> = handle.models().iter().map(|model| model.id.to_string()).collect();
    assert_eq!(listed, ["fast"]);

    assert!(handle.invalidate(EpochKind::User, "ada").await.unwrap());
    assert!(
        matches!(ask("fast", "one").await.unwrap_err().kind(), ErrorKind::QuotaExceeded(_)),
        "no hit any more"
    );
    assert!(handle.shutdown(Duration::from_secs(1)).await.is_clean());
}

#[tokio::test]
async fn seed_24_prices_of_models_stand_in_the_configuration() {
    let text = "[providers.echo]\nkind = \"echo\"\nmodels = [{ name = \"a\", price = { input = \"1000000\", output = \"0\" } }]\n\
                prices.b = { input = \"0\", output = \"0\", request = \"3\" }\n";
    let config = Config::parse(&format!("usage.enabled = false\n{text}")).unwrap();
    let sink = MemorySink::new(64);
    let (service, _handle) = StackBuilder::new(config).with_usage_sink(sink.clone()).build().await.unwrap();
    for name in ["echo/a", "echo/b", "echo/c"] {
        service.clone().oneshot(request(name)).await.unwrap();
    }
    let costs: Vec<_> = sink.take().iter().map(|event| event.cost.amount).collect();
    let dollars = |dollars: i64| Some(NanoUsd::new(dollars * 1_000_000_000));
    assert_eq!(costs, [dollars(1), dollars(3), None]);
}

#[tokio::test]
async fn seed_16_only_knowledge_bases_that_allow_it_are_cached() {
    let (service, handle) =
        stack(config("[cache.knowledge_bases]\nopen.cache = true\nclosed.cache = false\n")).await.unwrap();
    let ask = |kb: KbScope| {
        let context = RequestContext::new().with_user_id("ada").with_kb(kb);
        service.clone().oneshot(request("echo/a").with_context(context))
    };
    for (kb, is_kept) in [("open", true), ("closed", false), ("unknown", false)] {
        let scope = || KbScope::new(kb).with_acl_hash("1");
        ask(scope()).await.unwrap();
        // What draws on a knowledge base is written by the worker.
        let mut is_hit = false;
        for _ in 0..100 {
            tokio::task::yield_now().await;
            is_hit |= ask(scope()).await.unwrap().cache.is_hit();
        }
        assert_eq!(is_hit, is_kept, "{kb}");
        assert!(!ask(KbScope::new(kb)).await.unwrap().cache.is_hit(), "without rights");
    }
    // Another configuration forbids it.
    handle.reload(config("[cache.knowledge_bases]\nopen.cache = false\n")).unwrap();
    assert!(!ask(KbScope::new("open").with_acl_hash("1")).await.unwrap().cache.is_hit());
}

/// A server of embeddings that says the same of every text, and what it was sent.
#[cfg(all(feature = "semantic", feature = "hyper-client"))]
async fn embeddings() -> (String, Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
                while !read.ends_with(b"}") {
                    let count = stream.read(&mut buffer).await.unwrap();
                    assert!(count > 0);
                    read.extend_from_slice(&buffer[..count]);
                }
                log.lock().unwrap().push(String::from_utf8(read).unwrap());
                let body = r#"{"object":"list","data":[{"index":0,"embedding":[0.6,0.8]}]}"#;
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
            });
        }
    });
    (url, seen)
}

#[cfg(all(feature = "semantic", feature = "hyper-client"))]
#[tokio::test]
async fn seed_18_similar_questions_are_counted_unless_they_are_to_be_answered() {
    for mode in ["shadow", "answer"] {
        let (url, seen) = embeddings().await;
        let semantic = if mode == "shadow" { "" } else { "mode = \"answer\"\n" };
        let text = format!(
            "[cache.semantic]\nbase_url = {url:?}\napi_key = \"sk-embed\"\nmodel = \"small\"\ntimeout = \"20s\"\n{semantic}"
        );
        let (service, handle) = stack(config(&text)).await.unwrap();
        let ask = |text: &str, user: &str| {
            let request = LlmRequest::new("echo/a", ChatBody::builder().user(text).build().unwrap());
            service.clone().oneshot(of(request, user, &[]))
        };
        assert!(!ask("What is the capital of France?", "ada").await.unwrap().cache.is_hit());
        let similar = ask("Please, what is the capital of France", "ada").await.unwrap();
        assert_eq!(similar.cache.is_hit(), mode == "answer");
        assert!(!ask("Please, what is the capital of France", "eve").await.unwrap().cache.is_hit());
        let stats = handle.cache_stats().unwrap();
        let counted = (stats.semantic_would_hit, stats.semantic_hits);
        assert_eq!(counted, if mode == "answer" { (0, 1) } else { (1, 0) });
        let sent = seen.lock().unwrap();
        assert!(sent[0].starts_with("POST /v1/embeddings HTTP/1.1\r\n"), "{}", sent[0]);
        assert!(
            sent[0].contains("authorization: Bearer sk-embed\r\n") && sent[0].contains(r#""model":"small""#)
        );
    }
}

#[tokio::test]
async fn layers_of_ones_own_stand_where_they_are_put() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = |place: &'static str| {
        let seen = Arc::clone(&seen);
        layer_fn(move |inner: BoxService| {
            let seen = Arc::clone(&seen);
            service_fn(move |request: LlmRequest| {
                seen.lock().unwrap().push(format!("{place} {}", request.model.as_str()));
                inner.clone().oneshot(request)
            })
        })
    };
    let down = service_fn(|request: LlmRequest| async move {
        Err::<LlmResponse, _>(Error::provider(llm_layers::ErrorClass::Unavailable, "down", request.model))
    });
    let text =
        "providers.down.kind = \"own\"\naliases.fast = \"down/a\"\nfallbacks.\"down/a\" = [\"echo/b\"]\n";
    let builder = StackBuilder::new(config(text))
        .with_provider("down", down)
        .with_layer(Place::Provider, note("provider"))
        .with_layer(Place::Attempt, note("attempt"))
        .with_layer(Place::Outermost, note("outermost"))
        .with_layer(Place::Call, note("call"));
    for own_order in [false, true] {
        let order = [Part::Telemetry, Part::Alias, Part::Fallback];
        let text = StackBuilder::new(config(text)).with_provider("down", down);
        let builder = match own_order {
            false => {
                let mut text = text;
                for (place, name) in [
                    (Place::Provider, "provider"),
                    (Place::Attempt, "attempt"),
                    (Place::Outermost, "outermost"),
                    (Place::Call, "call"),
                ] {
                    text = text.with_layer(place, note(name));
                }
                text
            }
            true => text
                .with_order(order)
                .with_layer(Place::Provider, note("provider"))
                .with_layer(Place::Attempt, note("attempt"))
                .with_layer(Place::Outermost, note("outermost"))
                .with_layer(Place::Call, note("call")),
        };
        let (service, _handle) = builder.build().await.unwrap();
        assert_eq!(model(&service, "fast").await, "echo/b");
        let calls = std::mem::take(&mut *seen.lock().unwrap());
        let expected = [
            "outermost fast",
            "call down/a",
            "attempt down/a",
            "provider down/a",
            "attempt echo/b",
            "provider echo/b",
        ];
        assert_eq!(calls, expected, "{own_order}");
    }
    let said = builder.describe().unwrap().to_string();
    assert!(said.contains("around each attempt"), "{said}");
}

/// What the exchange of configurations costs is one load: nothing is made for it.
#[test]
fn a_call_makes_no_more_than_through_the_same_layers_by_hand() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let text =
            "aliases.fast = \"echo/one\"\nquota.store = \"memory\"\ndepartments.a.day_tokens = 1000000000\n";
        let (service, handle) = stack(config(text)).await.unwrap();
        let layers = handle.layers();
        let by_hand = tower::ServiceBuilder::new()
            .layer(layers.concurrency)
            .layer(layers.alias)
            .layer(layers.fallback)
            .layer(layers.access.unwrap())
            .layer(layers.quota.unwrap())
            .service(layers.providers);
        let by_hand = BoxService::new(by_hand);
        let count = |service: &BoxService| {
            let call = |service: BoxService| {
                let request = of(request("fast"), "ada", &["a"]);
                let mut made = 0;
                let info = allocation_counter::measure(|| {
                    let answer = service.oneshot(request).now_or_never().expect("nothing to wait for");
                    made += usize::from(answer.is_ok());
                });
                assert_eq!(made, 1);
                info.count_total
            };
            call(service.clone());
            call(service.clone())
        };
        assert_eq!(count(&service), count(&by_hand));
    });
}

#[tokio::test]
async fn single_layers_are_taken_out_and_share_what_lasts() {
    let text = "quota.store = \"memory\"\naliases.fast = \"echo/one\"\n[departments.a]\nday_requests = 1\n";
    let (service, handle) = stack(config(text)).await.unwrap();
    let layers = handle.layers();
    let own = tower::ServiceBuilder::new()
        .layer(layers.alias)
        .layer(layers.quota.unwrap())
        .service(layers.providers);
    assert_eq!(own.oneshot(of(request("fast"), "ada", &["a"])).await.unwrap().model, "echo/one");
    let error = service.oneshot(of(request("fast"), "ada", &["a"])).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)));
}

// ===== what it refuses =====

#[tokio::test]
async fn seed_14_a_limit_that_nothing_enforces_is_refused() {
    let text = "[departments.a]\nday_requests = 1\nmodels = [\"echo/a\"]\n";
    let refused = refusal(StackBuilder::new(config(text)).without(Part::Quota).build().await);
    assert_eq!(refused, ["departments.a: it is limited, and the stack was built without quota"]);
    let refused = refusal(StackBuilder::new(config(text)).without(Part::Access).describe());
    assert_eq!(
        refused,
        ["departments.a.models: only some models are allowed, and the stack was built without access"]
    );
}

#[tokio::test]
async fn what_a_part_would_do_that_is_left_out_is_refused() {
    let text = "aliases.a = \"echo/a\"\nfallbacks.\"echo/a\" = [\"echo/b\"]\ncache = {}\n";
    let builder =
        StackBuilder::new(config(text)).without(Part::Alias).without(Part::Fallback).without(Part::Cache);
    let refused = refusal(builder.build().await);
    for entry in ["aliases: ", "fallbacks: ", "cache: "] {
        assert!(refused.iter().any(|problem| problem.starts_with(entry)), "{refused:?}");
    }
    assert_eq!(refused.len(), 3, "{refused:?}");
}

#[tokio::test]
async fn orders_that_are_wrong_are_refused_with_the_reason() {
    use Part::{Access, Alias, Cache, Concurrency, Fallback, Hits, Quota, Telemetry, Usage};
    let text = "cache = {}\nquota.store = \"memory\"\naliases.a = \"echo/a\"\ndepartments.a.models = [\"echo/a\"]\ndepartments.a.day_requests = 1\n";
    let build = |order: &[Part]| {
        StackBuilder::new(config(text))
            .with_usage_sink(MemorySink::new(1))
            .with_order(order.iter().copied())
            .describe()
    };
    for (order, reason) in [
        (
            &[Alias, Access, Fallback, Cache, Quota, Usage][..],
            "fallback must stand outside of access: a substitute",
        ),
        (&[Alias, Fallback, Cache, Access, Quota, Usage], "access must stand outside of cache: "),
        (&[Fallback, Alias, Access, Cache, Quota, Usage], "alias must stand outside of fallback: "),
        (
            &[Alias, Fallback, Access, Cache, Hits, Quota, Usage],
            "usage of hits must stand outside of cache: ",
        ),
        (&[Alias, Fallback, Access, Cache, Usage, Quota], "quota must stand outside of usage: "),
        (&[Alias, Fallback, Access, Usage, Cache], "cache must stand outside of usage: "),
        (
            &[Alias, Fallback, Telemetry, Access, Cache, Quota, Usage],
            "telemetry must stand outside of fallback: ",
        ),
        (
            &[Alias, Fallback, Concurrency, Access, Cache, Quota],
            "concurrency must stand outside of fallback: ",
        ),
        (&[Alias, Alias, Access, Cache, Quota], "the order has alias twice"),
        (&[Alias, Access, Hits, Quota], "hits are to be recorded, and there is no cache"),
    ] {
        let refused = refusal(build(order));
        assert!(refused.iter().any(|problem| problem.contains(reason)), "{reason}: {refused:?}");
    }
    let order = [Concurrency, Alias, Fallback, Access, Quota, Cache, Usage];
    assert_eq!(build(&order).unwrap().parts(), order, "quota outside of the cache is a choice");
}

#[tokio::test]
async fn what_the_program_gives_and_what_it_owes_must_fit() {
    let mine = "providers.mine.kind = \"own\"\n";
    let refused = refusal(stack(config(mine)).await);
    assert!(refused[0].starts_with("providers.mine: kind = \"own\""), "{refused:?}");
    let refused = refusal(StackBuilder::new(config("")).with_provider("other", Echo::new()).build().await);
    assert!(refused[0].starts_with("providers.other: the program gives a leaf"), "{refused:?}");
    let refused = refusal(StackBuilder::new(config("")).with_quota_store(MemoryStore::new()).build().await);
    assert!(refused[0].starts_with("quota: the program gives a store"), "{refused:?}");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_named_by_its_entry() {
    let text = "providers.echo.kind = \"echo\"\nusage.path = \"/nowhere/at/all/usage.db\"\n";
    let error = stack(Config::parse(text).unwrap()).await.unwrap_err();
    assert!(matches!(&error, StackError::Store { entry: "usage.path", .. }), "{error:?}");
    assert!(error.to_string().starts_with("usage.path: cannot be opened: "), "{error}");
}

// ===== keys =====

#[tokio::test]
async fn seed_17_keys_say_who_asks_and_hashes_do_as_well() {
    // As `b3sum` gives it.
    let real = blake3::hash(b"hashed").to_hex();
    let text = format!(
        "usage.enabled = false\nproviders.echo.kind = \"echo\"\n[[keys]]\nkey = \"plain\"\nuser = \"ada\"\n\
         [[keys]]\nhash = \"{real}\"\nuser = \"bob\"\nadmin = true\n"
    );
    let (_, handle) = stack(Config::parse(&text).unwrap()).await.unwrap();
    let user =
        |key: &[u8]| handle.caller(Some(key)).map(|caller| caller.context().user_id().unwrap().to_owned());
    assert_eq!(user(b"plain").as_deref(), Some("ada"));
    assert_eq!(user(b"hashed").as_deref(), Some("bob"));
    assert_eq!((user(b"other"), user(b""), user(real.as_str().as_bytes())), (None, None, None));
    assert!(handle.caller(None).is_none());
    assert!(
        handle.caller(Some(b"hashed")).unwrap().is_admin()
            && !handle.caller(Some(b"plain")).unwrap().is_admin()
    );
}

#[tokio::test]
async fn without_keys_everybody_may_ask_everything_but_not_where_the_host_knows_who_asks() {
    let (_, handle) = stack(config("")).await.unwrap();
    assert!(handle.caller(None).is_none() && handle.caller(Some(b"any")).is_none());
    let open = Config::parse("usage.enabled = false\nproviders.echo.kind = \"echo\"\n").unwrap();
    let (_, handle) = stack(open).await.unwrap();
    let nobody = handle.caller(None).unwrap();
    assert!(nobody.is_admin() && !nobody.is_trusted() && nobody.context().user_id().is_none());
}

#[tokio::test]
async fn a_key_has_so_many_calls_in_flight_also_after_a_reload() {
    let text = "usage.enabled = false\nproviders.echo.kind = \"echo\"\n[[keys]]\nkey = \"k\"\nuser = \"ada\"\nmax_in_flight = 2\n";
    let config = || Config::parse(text).unwrap();
    let (_, handle) = stack(config()).await.unwrap();
    let caller = || handle.caller(Some(b"k")).unwrap();
    let one = caller().admit().unwrap();
    let _two = caller().admit().unwrap();
    assert!(caller().admit().is_none());
    handle.reload(config()).unwrap();
    assert_eq!(caller().in_flight(), 2);
    assert!(caller().admit().is_none());
    drop(one);
    assert!(caller().admit().is_some());
}

// ===== another configuration =====

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
    let path = folder("address").join("redis");
    let text =
        format!("quota.redis.file = {path:?}\nquota.timeout = \"50ms\"\ndepartments.a.day_requests = 1\n");
    fs::write(&path, "redis://127.0.0.1:1").unwrap();
    let (_, handle) = stack(config(&text)).await.unwrap();
    handle.reload(config(&text)).unwrap();
    fs::write(&path, "redis://127.0.0.1:2").unwrap();
    let error = handle.reload(config(&text)).unwrap_err();
    assert!(
        said(&error)[0].starts_with("quota.redis: ") && said(&error)[0].contains("needs a restart"),
        "{error}"
    );
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

// ===== a file that changes =====

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("llm-layers-stack-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
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

// ===== what it says of itself =====

#[test]
fn a_stack_says_what_it_is_and_shows_no_secret() {
    let text = "usage.enabled = false\nquota.store = \"memory\"\ncache = { secret = \"0123456789abcdef0123456789abcdef\" }\n\
         aliases.fast = [{ model = \"cloud/a\", weight = 3 }, { model = \"echo/b\" }]\n\
         fallbacks.\"cloud/a\" = [\"echo/b\"]\n\
         [[keys]]\nkey = \"sk-client\"\nuser = \"ada\"\n\
         [providers.cloud]\nbase_url = \"https://llm.example/v1\"\napi_key = \"sk-upstream\"\nheaders = { x-own = \"sk-header\" }\n\
         models = [{ name = \"a\", price = { input = \"0.15\", output = \"0.60\" } }]\n\
         [providers.echo]\nkind = \"echo\"\n\
         [departments.r]\nmodels = [\"echo/*\"]\nday_cost = \"5\"\n";
    let description = StackBuilder::new(Config::parse(text).unwrap()).describe().unwrap();
    let said = description.to_string();
    let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("{word}: {said}"));
    let order = [
        "concurrency",
        "alias",
        "fallback",
        "access",
        "cache",
        "quota",
        "providers",
        "https://llm.example/v1, with a key",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{said}");
    let explained = description.explain("fast").unwrap();
    for line in [
        "fast\n  -> cloud/a (3 of 4)\n  -> echo/b (1 of 4)",
        "cloud/a: asked of cloud at https://llm.example/v1 as a",
        "  price: input 0.15, output 0.6 dollars per million tokens, from configuration",
        "  after a failure: echo/b",
        "  not for: r",
        "echo/b: asked of echo, which echoes as b",
        "  price: none",
    ] {
        assert!(explained.contains(line), "{line}\n{explained}");
    }
    assert!(description.explain("gone/x").is_none());
    for text in [said, explained, format!("{description:?}")] {
        assert!(!text.contains("sk-") && !text.contains("0123456789abcdef"), "{text}");
    }
}

#[test]
fn handles_and_callers_show_nobody() {
    fn is_shared<T: Send + Sync + Clone>() {}
    is_shared::<Handle>();
    is_shared::<BoxService>();
    is_shared::<llm_layers::stack::Caller>();
}
