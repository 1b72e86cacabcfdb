//! What a stack is made of.

use super::*;

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
async fn a_bare_name_is_the_model_of_the_only_provider_on_lists_and_of_chains() {
    let text = "quota.store = \"memory\"\ndepartments.a.models = [\"one\", \"three\"]\n";
    let (service, _handle) = stack(config(text)).await.unwrap();
    let ask = |name: &str| service.clone().oneshot(of(request(name), "ada", &["a"]));
    for (name, is_allowed) in [("one", true), ("echo/one", true), ("two", false), ("echo/two", false)] {
        assert_eq!(ask(name).await.is_ok(), is_allowed, "{name}");
    }
    // What a bare name stands for cannot be told any more.
    let two = Config::parse(&format!("{ECHO}{text}providers.two.kind = \"echo\"\n")).unwrap_err();
    assert_eq!(said(&two)[0], "departments.a.models[0]: no provider serves it");
    let (service, _handle) = StackBuilder::new(config(text)).without(Part::Alias).build().await.unwrap();
    let ask = |name: &str| service.clone().oneshot(of(request(name), "ada", &["a"]));
    assert!(ask("one").await.is_ok() && ask("echo/one").await.is_ok() && ask("two").await.is_err());

    let fails = service_fn(|request: LlmRequest| async move {
        match request.model == "a" {
            true => Err(Error::provider(llm_layers::ErrorClass::Unavailable, "mine", request.model)),
            false => {
                Ok(LlmResponse::new(request.model, llm_layers::Completion::text("hi", Default::default())))
            }
        }
    });
    let text =
        "usage.enabled = false\nidentity = \"host\"\nproviders.mine.kind = \"own\"\nfallbacks.a = [\"b\"]\n";
    let builder = || StackBuilder::new(Config::parse(text).unwrap()).with_provider("mine", fails);
    assert!(builder().describe().unwrap().explain("a").unwrap().contains("after a failure: b"));
    let (service, _handle) = builder().build().await.unwrap();
    assert!(model(&service, "a").await.ends_with('b'));
}

#[cfg(feature = "rusqlite")]
#[tokio::test]
async fn a_bare_name_in_a_table_of_policies_is_the_model_of_the_only_provider() {
    let folder = folder("bare");
    let path = folder.join("policies.db");
    llm_layers::policies::SqlitePolicies::open(&path).unwrap();
    let row = "INSERT INTO policies (department, models) VALUES ('a', '[\"one\"]')";
    rusqlite::Connection::open(&path).unwrap().execute(row, ()).unwrap();
    let text = format!("quota = {{ store = \"memory\", policies = {path:?} }}\n");
    let (service, handle) = stack(config(&text)).await.unwrap();
    let ask = |name: &str| service.clone().oneshot(of(request(name), "ada", &["a"]));
    assert!(ask("one").await.is_ok() && ask("echo/one").await.is_ok() && ask("two").await.is_err());
    handle.reload(config(&format!("{text}providers.two.kind = \"echo\"\n"))).unwrap();
    assert!(ask("echo/one").await.is_err(), "whose it is cannot be told");
    fs::remove_dir_all(folder).unwrap();
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
    // A base URL may have a query, as Azure's have.
    for (mode, query) in [("shadow", ""), ("answer", "?api-version=2024-06-01")] {
        let (url, seen) = embeddings().await;
        let url = format!("{url}{query}");
        // And the key is in another header there.
        let (semantic, key) = match mode {
            "shadow" => ("api_key = \"sk-embed\"\n", "authorization: Bearer sk-embed\r\n"),
            _ => ("mode = \"answer\"\nheaders = { api-key = \"sk-embed\" }\n", "api-key: sk-embed\r\n"),
        };
        let text =
            format!("[cache.semantic]\nbase_url = {url:?}\nmodel = \"small\"\ntimeout = \"20s\"\n{semantic}");
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
        assert!(sent[0].starts_with(&format!("POST /v1/embeddings{query} HTTP/1.1\r\n")), "{}", sent[0]);
        assert!(sent[0].contains(key) && sent[0].contains(r#""model":"small""#), "{}", sent[0]);
        assert_eq!(sent[0].matches("sk-embed").count(), 1, "{}", sent[0]);
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
        .with_layer(Place::Miss, note("miss"))
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
                    (Place::Miss, "miss"),
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
                .with_layer(Place::Miss, note("miss"))
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
            "miss down/a",
            "provider down/a",
            "attempt echo/b",
            "miss echo/b",
            "provider echo/b",
        ];
        assert_eq!(calls, expected, "{own_order}");
    }
    let said = builder.describe().unwrap().to_string();
    assert!(said.contains("around each attempt"), "{said}");
}

#[tokio::test]
async fn a_layer_around_misses_sees_what_is_charged_and_no_hit() {
    use Part::{Access, Cache, Fallback, Quota, Usage};
    let text = "cache = {}\nquota.store = \"memory\"\ndepartments.a.day_requests = 1\n";
    // A limit that stands outside of the cache refuses before anything is missed there.
    for (order, expected) in [
        (None, "attempt miss provider; attempt; attempt miss"),
        (Some(vec![Fallback, Access, Cache, Quota, Usage]), "attempt miss provider; attempt; attempt miss"),
        (Some(vec![Fallback, Access, Quota, Cache, Usage]), "attempt miss provider; attempt; attempt"),
        // Without further attempts a call is one.
        (Some(vec![Access, Cache, Quota, Usage]), "attempt miss provider; attempt; attempt miss"),
    ] {
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut builder = StackBuilder::new(config(text)).with_usage_sink(MemorySink::new(64));
        let said = format!("{order:?}");
        if let Some(order) = order {
            builder = builder.with_order(order);
        }
        for (place, name) in
            [(Place::Provider, "provider"), (Place::Miss, "miss"), (Place::Attempt, "attempt")]
        {
            let seen = Arc::clone(&seen);
            let note = layer_fn(move |inner: BoxService| {
                let seen = Arc::clone(&seen);
                service_fn(move |request: LlmRequest| {
                    seen.lock().unwrap().push(name);
                    inner.clone().oneshot(request)
                })
            });
            builder = builder.with_layer(place, note);
        }
        let described = builder.describe().unwrap().to_string();
        let at = |line: &str| described.find(line).unwrap_or_else(|| panic!("{line}: {described}"));
        assert!(at("around each attempt\n") < at("\n  access"), "{described}");
        assert!(
            at("\n  cache") < at("around each attempt that")
                && at("around each attempt that") < at("\n  usage  ")
        );
        let (service, _handle) = builder.build().await.unwrap();
        let mut calls = Vec::new();
        for text in ["one", "one", "two"] {
            let request = LlmRequest::new("echo/a", ChatBody::builder().user(text).build().unwrap());
            let _ = service.clone().oneshot(of(request, "ada", &["a"])).await;
            calls.push(std::mem::take(&mut *seen.lock().unwrap()).join(" "));
        }
        assert_eq!(calls.join("; "), expected, "{said}");
    }
}

/// A stack that shares calls, a provider that has said one word, and who reads it.
async fn shared_story(change: impl FnOnce(StackBuilder) -> StackBuilder) -> (Scripted, Handle, ChunkStream) {
    let cloud = Scripted::new();
    cloud.push(Reply::stream([
        Step::Chunk(StreamChunk::text("once")),
        Step::Gate,
        Step::Chunk(StreamChunk::text("upon")),
        Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 30))),
    ]));
    let text = "providers.cloud.kind = \"own\"\ncache.coalesce = true\nquota.store = \"memory\"\n\
                departments.a.day_tokens = 100000\n";
    let builder = StackBuilder::new(config(text)).with_provider("cloud", cloud.clone());
    let (service, handle) = change(builder).build().await.unwrap();
    let body = ChatBody::builder().user("Tell me a lot").max_output_tokens(1000).streaming().build().unwrap();
    let answer = service.oneshot(of(LlmRequest::new("cloud/a", body), "ada", &["a"])).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("it was to stream") };
    assert_eq!(chunks.next().await.unwrap().unwrap().content(), "once");
    (cloud, handle, chunks)
}

/// Tokens settled and reserved today.
async fn charged(handle: &Handle) -> (u64, u64) {
    let day = handle.quota("a").await.unwrap().unwrap().standing.in_day;
    (day.settled.tokens, day.reserved.tokens)
}

#[tokio::test(start_paused = true)]
async fn a_shared_stream_whose_only_reader_has_left_is_hung_up_at_once() {
    let (cloud, handle, chunks) = shared_story(|builder| builder).await;
    let now = Instant::now();
    drop(chunks);
    while cloud.alive() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(now.elapsed().is_zero());
    let (settled, reserved) = charged(&handle).await;
    assert!(settled > 37 && reserved == 0, "by a bound: {settled}, {reserved}");
}

#[tokio::test(start_paused = true)]
async fn what_a_drain_around_misses_reads_on_is_charged_as_it_ends_and_shared_with_nobody() {
    let (drain, worker) = DrainLayer::start(DrainOptions::within(Duration::from_secs(60)));
    let sink = MemorySink::new(8);
    let recorded = sink.clone();
    let add = |builder: StackBuilder| builder.with_usage_sink(sink).with_layer(Place::Miss, drain);
    let (cloud, handle, chunks) = shared_story(add).await;
    drop(chunks);
    // The call that others could join has ended; it is the provider's answer that is read on.
    assert!(handle.shutdown(Duration::ZERO).await.cut_flights == 0);
    assert_eq!((cloud.alive(), recorded.take().len()), (1, 0));
    cloud.open();
    assert!(worker.shutdown(Duration::from_secs(60)).await);
    assert_eq!(charged(&handle).await, (37, 0));
    let events = recorded.take();
    assert_eq!((events.len(), events[0].outcome, cloud.alive()), (1, Outcome::Ok, 0));
}

#[tokio::test]
async fn layers_of_ones_own_stand_outside_of_what_comes_after_a_fallback_that_is_left_out() {
    use Part::{Access, Alias, Cache, Concurrency, Telemetry, Usage};
    let text = "quota.store = \"memory\"\naliases.fast = \"echo/a\"\ncache = {}\ndepartments.a.models = [\"echo/a\"]\n";
    for order in [None, Some(vec![Telemetry, Alias, Access, Cache, Usage]), Some(vec![Concurrency, Alias])] {
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
        let is_bare = order.as_ref().is_some_and(|order| !order.contains(&Access));
        let builder = match order {
            None => StackBuilder::new(config(text)).without(Part::Fallback),
            Some(order) if is_bare => {
                StackBuilder::new(config("aliases.fast = \"echo/a\"\n")).with_order(order)
            }
            Some(order) => {
                StackBuilder::new(config(text)).with_order(order).with_usage_sink(MemorySink::new(64))
            }
        };
        let builder = builder
            .with_layer(Place::Attempt, note("attempt"))
            .with_layer(Place::Call, note("call"))
            .with_layer(Place::Provider, note("provider"));
        let said = builder.describe().unwrap().to_string();
        let at = |word: &str| said.find(word).unwrap_or_else(|| panic!("{word}: {said}"));
        let (call, attempt) = (at("around each call\n"), at("around each attempt\n"));
        assert!(at("\n  alias ") < call && call < attempt && attempt < at("around each call to"), "{said}");
        assert!(is_bare || attempt < at("\n  access "), "{said}");
        let (service, _handle) = builder.build().await.unwrap();
        let ask = |name: &str| {
            let request = LlmRequest::new(name, ChatBody::builder().user("Hello").build().unwrap());
            service.clone().oneshot(of(request, "ada", &["a"]))
        };
        assert!(!ask("fast").await.unwrap().cache.is_hit());
        let first = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(first, ["call echo/a", "attempt echo/a", "provider echo/a"]);
        if !is_bare {
            // A hit and a refusal, too.
            assert!(ask("fast").await.unwrap().cache.is_hit());
            ask("echo/b").await.unwrap_err();
            let more = std::mem::take(&mut *seen.lock().unwrap());
            assert_eq!(more, ["call echo/a", "attempt echo/a", "call echo/b", "attempt echo/b"]);
        }
    }
}

/// As long as the layers in between make a call of each readiness, nothing is seen of it; a refusal does not.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_refused_gives_back_its_place_in_a_layer_of_ones_own() {
    for own_order in [false, true] {
        let text = "quota.store = \"memory\"\ndepartments.a.models = [\"echo/one\"]\n";
        let mut builder = StackBuilder::new(config(text));
        if own_order {
            builder = builder.with_order([Part::Access]);
        }
        let one_place = tower::limit::ConcurrencyLimitLayer::new(1);
        let (service, _handle) = builder.with_layer(Place::Provider, one_place).build().await.unwrap();

        let (mut first, mut second) = (service.clone(), service);
        first.ready().await.unwrap();
        assert!(second.ready().now_or_never().is_none(), "there is one place");
        let error = first.call(of(request("echo/two"), "ada", &["a"])).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. }), "{error}");
        let next = tokio::time::timeout(Duration::from_secs(60), second.ready()).await;
        let answer = next.expect("nobody is in flight").unwrap().call(request("echo/one")).await.unwrap();
        assert_eq!(answer.model, "echo/one");
    }
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

#[tokio::test]
async fn seed_16_stores_and_settings_of_ones_own_take_the_place_of_the_configured() {
    let asked = Arc::new(AtomicUsize::new(0));
    let settings = {
        let asked = Arc::clone(&asked);
        move |_: &KbScope, _: &RequestContext| -> Fetch<KbCaching> {
            asked.fetch_add(1, Ordering::Relaxed);
            Fetch::Ready(KbCaching::Allowed)
        }
    };
    // Of departments nothing is known to the other stack but what both count in.
    let counters = MemoryStore::new();
    let answers = Arc::new(MokaStore::new(1 << 20));
    let build = |settings| {
        let text = "quota.store = \"memory\"\ncache.ttl = \"1h\"\ndepartments.a.day_requests = 2\n";
        StackBuilder::new(config(text))
            .with_quota_store(counters.clone())
            .with_cache_store(Arc::clone(&answers))
            .with_kb_settings(settings)
            .build()
    };
    let (one, handle) = build(settings.clone()).await.unwrap();
    let (two, _other) = build(settings).await.unwrap();
    let with_kb = |text: &str| {
        let body = ChatBody::builder().user(text).build().unwrap();
        let context = RequestContext::new().with_user_id("ada").with_departments(["a"]);
        let context = context.with_kb(KbScope::new("handbook").with_acl_hash("acl"));
        LlmRequest::new("echo/a", body).with_context(context)
    };
    one.clone().oneshot(with_kb("one")).await.unwrap();
    assert!(asked.load(Ordering::Relaxed) > 0, "no entry in the configuration allows it");
    while handle.cache_stats().unwrap().stored == 0 {
        tokio::task::yield_now().await;
    }
    assert!(one.clone().oneshot(with_kb("one")).await.unwrap().cache.is_hit());
    two.clone().oneshot(with_kb("two")).await.unwrap();
    let error = one.oneshot(with_kb("three")).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)), "{error}");
}

#[tokio::test]
async fn as_many_calls_as_may_be_made_may_be_shared() {
    for (told, goes) in [("", true), ("max_flights = 1199\n", false)] {
        let deaf = Scripted::new().reply(Reply::stall());
        let text = format!(
            "providers.own.kind = \"own\"\nserver.max_in_flight = 1200\n[cache]\ncoalesce = true\n{told}"
        );
        let builder = StackBuilder::new(config(&text)).with_provider("own", deaf);
        let (service, handle) = builder.build().await.unwrap();
        let warned = handle.warnings().iter().any(|warning| warning.entry == "cache.max_flights");
        assert_eq!(warned, !goes, "{:?}", handle.warnings());
        let mut calls = Vec::new();
        for at in 0..1200 {
            let body = ChatBody::builder().user(format!("question {at}")).build().unwrap();
            let mut call = service.clone().oneshot(of(LlmRequest::new("own/a", body), "ada", &[])).boxed();
            if let Some(refused) = (&mut call).now_or_never() {
                assert!(matches!(refused.unwrap_err().kind(), ErrorKind::Overloaded));
                assert!(!goes && at == 1199);
                continue;
            }
            calls.push(call);
        }
        assert_eq!(calls.len(), if goes { 1200 } else { 1199 });
        drop(calls);
        assert!(handle.shutdown(Duration::from_secs(20)).await.is_clean());
    }
}

/// How often a provider is asked that always fails, by so many calls one after the other.
async fn asked(service: &BoxService, times: &AtomicUsize, calls: usize) -> usize {
    let before = times.load(Ordering::Relaxed);
    for _ in 0..calls {
        service.clone().oneshot(request("cloud/a")).await.unwrap_err();
    }
    times.load(Ordering::Relaxed) - before
}

#[tokio::test(start_paused = true)]
async fn further_tries_do_not_multiply_an_outage() {
    for (budget, tries) in [
        // One for five calls, and 100 in each 10 s.
        ("", 300),
        ("budget.percent = 30\n", 350),
        ("budget.percent = 60\n", 600),
        ("budget.percent = 150\n", 1600),
        ("budget.min_per_second = 0\n", 200),
        ("budget = { percent = 0, ttl = \"2s\" }\n", 20),
        ("budget = { percent = 0, min_per_second = 0 }\n", 0),
        ("budget.percent = 10000\n", 3000),
    ] {
        let times = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&times);
        let down = service_fn(move |request: LlmRequest| {
            count.fetch_add(1, Ordering::Relaxed);
            let error = Error::provider(llm_layers::ErrorClass::Unavailable, "cloud", request.model);
            async move { Err::<LlmResponse, _>(error) }
        });
        let text = format!(
            "providers.cloud.kind = \"own\"\n[retry]\nretries = 3\nbase = \"1ms\"\nmax = \"1ms\"\n{budget}"
        );
        let builder = StackBuilder::new(config(&text)).with_provider("cloud", down);
        let (service, handle) = builder.build().await.unwrap();
        let made = asked(&service, &times, 1000).await - 1000;
        assert!(made.abs_diff(tries) <= 2 + tries / 100, "{budget}: {made}");
        let is_used_up = tries < 3000;
        assert_eq!(asked(&service, &times, 4).await < 16, is_used_up, "{budget}");
        // What is used up stays so, until the budget is another one.
        handle.reload(config(&format!("aliases.fast = \"cloud/a\"\n{text}"))).unwrap();
        assert_eq!(asked(&service, &times, 4).await < 16, is_used_up, "{budget}");
        if budget.is_empty() {
            handle.reload(config(&format!("{text}budget.min_per_second = 11\n"))).unwrap();
            assert_eq!(asked(&service, &times, 4).await, 16);
        }
    }
}

/// How long a stack waits for an answer, whole or streamed, of a provider that says nothing, and what for.
async fn patience(text: &str, is_streamed: bool) -> (u64, TimeoutPhase) {
    let text = format!("providers.own.kind = \"own\"\n{text}");
    let deaf = Scripted::new().reply(Reply::stall());
    let (service, _handle) =
        StackBuilder::new(config(&text)).with_provider("own", deaf).build().await.unwrap();
    let body = ChatBody::builder().user("Hello");
    let body = if is_streamed { body.streaming() } else { body };
    let started = Instant::now();
    let error = service.oneshot(LlmRequest::new("own/a", body.build().unwrap())).await.unwrap_err();
    let ErrorKind::Timeout { phase } = error.kind() else { panic!("{error:?}") };
    (started.elapsed().as_secs(), *phase)
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_takes_all_the_time_of_a_call_leaves_some_for_another() {
    for times in [
        "timeouts = { whole = \"150s\", total = \"150s\" }\n",
        "timeouts.total = \"150s\"\n",
        "providers.own.timeouts = { whole = \"700s\", total = \"700s\" }\n",
    ] {
        let text = format!("{times}providers.own.kind = \"own\"\nfallbacks.\"own/a\" = [\"own/b\"]\n");
        let deaf = Scripted::new().reply(Reply::stall());
        let (service, handle) =
            StackBuilder::new(config(&text)).with_provider("own", deaf).build().await.unwrap();
        let body = ChatBody::builder().user("Hello").build().unwrap();
        assert_eq!(service.oneshot(LlmRequest::new("own/a", body)).await.unwrap().model, "own/b", "{times}");
        assert!(handle.warnings().is_empty(), "{:?}", handle.warnings());
    }
}

#[tokio::test(start_paused = true)]
async fn whole_answers_may_take_minutes_unless_a_head_is_told() {
    use TimeoutPhase::{Deadline, Head, Total};
    for (text, whole, streamed) in [
        ("", (300, Head), (30, Head)),
        ("timeouts.idle = \"10s\"\n", (300, Head), (30, Head)),
        ("timeouts.head = \"30s\"\n", (30, Head), (30, Head)),
        ("timeouts.head = \"3s\"\n", (3, Head), (3, Head)),
        ("timeouts.whole = \"400s\"\n", (400, Head), (30, Head)),
        ("timeouts = { head = \"3s\", whole = \"5s\" }\n", (5, Head), (3, Head)),
        ("timeouts.total = \"150s\"\n", (150, Total), (30, Head)),
        ("timeouts.total = \"20s\"\n", (20, Total), (20, Total)),
        ("providers.own.timeouts.head = \"4s\"\ntimeouts.whole = \"7s\"\n", (4, Head), (4, Head)),
        ("providers.own.timeouts.whole = \"200s\"\ntimeouts.head = \"3s\"\n", (200, Head), (3, Head)),
        // A head that is told bounds as it did.
        ("timeouts = { head = \"200s\", first_content = \"200s\" }\n", (120, Deadline), (120, Deadline)),
        ("retry.deadline = \"2m\"\n", (120, Deadline), (30, Head)),
        ("retry.deadline = \"10s\"\n", (10, Deadline), (10, Deadline)),
    ] {
        assert_eq!((patience(text, false).await, patience(text, true).await), (whole, streamed), "{text}");
    }
}

#[cfg(feature = "tokenizer")]
#[tokio::test]
async fn a_prompt_that_does_not_fit_by_its_bytes_is_counted() {
    let (service, _handle) =
        stack(config("quota.store = \"memory\"\ndepartments.a.day_tokens = 3000\n")).await.unwrap();
    let ask = async |words: usize| {
        let body = ChatBody::builder().user("story ".repeat(words)).max_output_tokens(10).build().unwrap();
        service.clone().oneshot(of(LlmRequest::new("echo/m", body), "ada", &["a"])).await
    };
    // Of 6,000 bytes, and 1,500 tokens of somebody's whose tokenizer is not public.
    ask(1000).await.unwrap();
    let error = ask(3000).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::RequestTooLarge { .. }), "{error:?}");
}
