//! Another configuration while calls are made: the real binary, its file and its signals.

mod common;

use common::{CHAT, Gateway, JSON, Upstream, asking, soon};
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// The `n`th of many: it lists `gN`, and every other one has a provider more or less.
fn generation(url: &str, n: usize) -> String {
    let (more, fast) = match n % 2 {
        0 => (format!("[providers.a]\nbase_url = \"{url}\"\n"), "echo/even"),
        _ => ("[providers.b]\nkind = \"echo\"\n".to_owned(), "b/odd"),
    };
    format!(
        "[usage]\npath = \"usage.db\"\n[providers.echo]\nkind = \"echo\"\n{more}\
         [aliases]\nfast = \"{fast}\"\n\"g{n}\" = \"echo/x\"\n[fallbacks]\n\"{fast}\" = [\"echo/other\"]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_27_a_load_of_calls_during_100_reloads_loses_none() {
    let mut upstream = Upstream::start().await;
    let url = upstream.url.clone();
    let gateway = Arc::new(Gateway::start(&generation(&url, 0)).await);

    // One stream goes on through all of it, on a provider that comes and goes.
    let (mut long, mut call) = tokio::join!(gateway.stream("a/m"), async {
        let mut call = upstream.call().await;
        call.begin().await;
        call.say("first").await;
        call
    });
    assert!(long.piece().await.unwrap().contains("first"));

    let (is_over, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|client| {
            let (gateway, is_over, calls) = (Arc::clone(&gateway), Arc::clone(&is_over), Arc::clone(&calls));
            tokio::spawn(async move {
                let mut connection = gateway.connect().await;
                while !is_over.load(Ordering::Relaxed) {
                    let stream = client % 2 == 0;
                    let words = "one two three four five six seven eight";
                    let body = json!({ "model": "fast", "messages": [{ "role": "user", "content": words }], "stream": stream });
                    connection.ask("POST", CHAT, &[JSON], body.to_string().as_bytes()).await;
                    let reply = connection.reply().await;
                    assert_eq!(reply.status, 200, "{}", reply.body);
                    match stream {
                        true => assert!(reply.body.ends_with("data: [DONE]\n\n") && !reply.body.contains("error"), "{}", reply.body),
                        false => assert_eq!(reply.json()["choices"][0]["message"]["content"], words),
                    }
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    for n in 1..=100 {
        let before = calls.load(Ordering::Relaxed);
        gateway.rewrite(&generation(&url, n));
        gateway.hang_up();
        gateway.lists(&[], &format!("g{n}")).await;
        soon(async {
            while calls.load(Ordering::Relaxed) == before {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    is_over.store(true, Ordering::Relaxed);
    for client in load {
        client.await.unwrap();
    }
    let calls = calls.load(Ordering::Relaxed);
    assert!(calls >= 100, "{calls}");

    call.say("last").await;
    assert!(long.piece().await.unwrap().contains("last"));
    call.end().await;
    assert!(long.rest().await.ends_with("data: [DONE]\n\n"));

    // And each of them is recorded.
    soon(async {
        loop {
            let usage = gateway.get("/v1/usage").await.json();
            if usage["totals"]["calls"] == calls + 1 {
                return;
            }
            assert!(usage["totals"]["calls"].as_u64().unwrap() <= calls as u64 + 1, "{usage}");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_changed_file_is_taken_without_a_signal_and_a_bad_one_is_told_with_all_problems_and_ignored() {
    let echo = "[providers.echo]\nkind = \"echo\"\n[aliases]\n";
    let gateway = Gateway::start(&format!("{echo}one = \"echo/x\"\n")).await;
    gateway.rewrite(&format!("{echo}two = \"echo/x\"\n"));
    gateway.lists(&[], "two").await;

    gateway.rewrite(&format!("{echo}three = \"gone/x\"\n[retry]\nretires = 1\n"));
    gateway.log(&["stays as it was", "line 4", "aliases.three", "gone/x"]).await;
    gateway.log(&["stays as it was", "line 6", "retry.retires", "did you mean"]).await;
    gateway.lists(&[], "two").await;

    gateway.rewrite(&format!(
        "listen = \"127.0.0.1:1\"\n{echo}four = \"echo/x\"\n[usage]\npath = \"other.db\"\n"
    ));
    gateway.log(&["stays as it was", "usage.path", "needs a restart"]).await;
    assert!(!gateway.get("/v1/models").await.body.contains("four"));
    assert_eq!(gateway.chat(&asking("two")).await.status, 200);

    gateway.rewrite(&format!("{echo}five = \"echo/x\"\n"));
    gateway.hang_up();
    gateway.lists(&[], "five").await;
}

#[tokio::test]
async fn a_signal_reads_the_file_again_though_it_is_as_it_was() {
    let echo = "[providers.echo]\nkind = \"echo\"\n[aliases]\n";
    let gateway = Gateway::start(&format!("{echo}one = \"echo/x\"\n")).await;
    gateway.rewrite(&format!("{echo}two = \"gone/x\"\n"));
    // Whoever only looks for changes tells of each once.
    for times in 1..=3 {
        gateway.log_of(times, &["stays as it was", "aliases.two"]).await;
        gateway.hang_up();
    }
    gateway.log_of(4, &["stays as it was", "aliases.two"]).await;
    gateway.lists(&[], "one").await;
}

#[tokio::test]
async fn a_key_that_is_taken_away_lets_nobody_in_and_a_limit_counts_on() {
    let config = |user: &str, limit: usize| {
        format!(
            "[[keys]]\nkey = \"{user}-key\"\nuser = \"{user}\"\ndepartments = [\"d\"]\n[[keys]]\nkey = \"root\"\nuser = \"root\"\nadmin = true\n\
             [providers.echo]\nkind = \"echo\"\n[aliases]\n\"{user}{limit}\" = \"echo/x\"\n[departments.d]\nday_requests = {limit}\n[quota]\nstore = \"memory\"\n"
        )
    };
    let gateway = Gateway::start(&config("ada", 2)).await;
    let ask = async |key: &str| {
        let bearer = format!("Bearer {key}");
        gateway.post(&[JSON, ("authorization", &bearer)], asking("echo/x").as_bytes()).await.status
    };
    assert_eq!((ask("ada-key").await, ask("bob-key").await), (200, 401));
    for (user, limit) in [("bob", 2), ("bob", 3)] {
        gateway.rewrite(&config(user, limit));
        gateway.hang_up();
        gateway.lists(&[("authorization", "Bearer root")], &format!("{user}{limit}")).await;
        assert_eq!((ask("ada-key").await, ask("bob-key").await, ask("bob-key").await), (401, 200, 429));
    }
}

#[tokio::test]
async fn who_asks_does_not_wait_for_a_file_that_takes_long_to_read() {
    let config = "[providers.echo]\nkind = \"echo\"\n";
    let gateway = Gateway::start_with(Some(config), &[("TOKIO_WORKER_THREADS", "1")]).await;
    let path = gateway.pipe();
    gateway.hang_up();
    // It can be opened once somebody reads it, and he goes on reading until it is closed.
    let opening = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(path));
    let mut pipe = soon(opening).await.unwrap().unwrap();
    assert_eq!(gateway.get("/healthz").await.status, 200);
    assert_eq!(gateway.chat(&asking("echo/x")).await.status, 200);
    std::io::Write::write_all(&mut pipe, config.as_bytes()).unwrap();
    drop(pipe);
    gateway.log(&["the configuration was read again"]).await;
}

#[tokio::test]
async fn a_file_that_is_never_read_to_its_end_does_not_keep_it_from_ending() {
    let mut gateway = Gateway::start("[providers.echo]\nkind = \"echo\"\n").await;
    let path = gateway.pipe();
    gateway.hang_up();
    let opening = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(path));
    let pipe = soon(opening).await.unwrap().unwrap();
    gateway.terminate();
    assert_eq!(gateway.ended().await, 0);
    drop(pipe);
}
