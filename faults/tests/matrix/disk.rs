//! A disk that is full, and files that somebody else holds.

use crate::upstream::{charged, file, of, shown};
use faults::{
    Gateway, Options, Upstream, chat, events,
    matrix::{Row, Verdict},
    until,
};
use rusqlite::Connection;
use std::{io::Write, time::Duration};
use tokio::time::Instant;

fn config(upstream: &Upstream, more: &str) -> String {
    file(more, upstream) + "[[keys]]\nkey = \"nobody\"\nuser = \"nobody\"\n"
}

/// On a file system of its own, which is filled to its last byte.
pub(crate) async fn full() -> Vec<Verdict> {
    let upstream = Upstream::start([]).await;
    let usage = "\n[usage]\npath = \"disk/usage.db\"\nhold_last_byte = \"1s\"\n";
    let options = Options { disk: Some(2 << 20), ..Options::default() };
    let gateway = Gateway::start_with(&config(&upstream, usage), options).await;
    let good = chat("up/good", false);
    // SQLite does not find its way there by itself.
    let copied = || {
        for name in ["usage.db", "usage.db-wal"] {
            let _ = std::fs::copy(gateway.on_its_disk(name), gateway.room.join(name));
        }
        events(&gateway.room.join("usage.db"))
    };
    assert_eq!(gateway.ask("ada", &good).await.expect("an answer").shown(), "a whole answer");
    let filler = gateway.on_its_disk("filler");
    let mut filling = std::fs::File::create(&filler).expect("a file");
    while filling.write_all(&[0; 512]).is_ok() {}
    drop(filling);

    // Until there is a write that fails, nobody knows.
    let mut told = Vec::new();
    let is_known = async || {
        told.push(gateway.ask("ada", &good).await.expect("an answer").shown());
        (!gateway.is_ready().await).then_some(())
    };
    let is_known = until(Duration::from_secs(30), is_known).await.is_some();
    let refused = gateway.ask("ada", &good).await.expect("an answer");
    std::fs::remove_file(&filler).expect("it was there");
    let since = Instant::now();
    let again = async || gateway.ask("ada", &good).await.ok().filter(|reply| reply.status == 200);
    let is_back = until(Duration::from_secs(5), again).await.is_some();
    let took = since.elapsed();
    let asked = upstream.asked("good");
    let own = until(Duration::from_secs(10), async || Some(copied()).filter(|own| own.len() == asked)).await;
    let own = own.unwrap_or_else(copied);
    let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
    let standing = gateway.standing("ada", "ops").await;
    told.retain(|told| told != "a whole answer");
    told.sort();
    told.dedup();
    let is_whole = own.len() == asked;
    let row = Row {
        section: "The disk",
        event: "it is full where usage is recorded",
        caller: refused.shown(),
        recorded: if is_whole { "each call that was made, when there is room" } else { "NOT ALL CALLS" }
            .to_owned(),
        charged: charged(standing.settled, &own).replace("what was reported", "each call that was made"),
        reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
        recovery: "5 s",
    };
    let recorded = "each call that was made, when there is room";
    vec![
        row.judge(["503 usage_store_unavailable", recorded, "each call that was made", "nothing"])
            .and(is_known, format!("it says that it is ready; answers: {told:?}"))
            .and(is_back, format!("not back after {took:?}"))
            .and(is_whole, format!("{} records of {asked} calls: {}", own.len(), shown(&own))),
    ]
}

/// Somebody else writes into the ledger for longer than anybody waits.
pub(crate) async fn locked_records() -> Vec<Verdict> {
    let upstream = Upstream::start([]).await;
    let gateway = Gateway::start(&config(&upstream, "")).await;
    let good = chat("up/good", false);
    assert_eq!(gateway.ask("ada", &good).await.expect("an answer").shown(), "a whole answer");
    assert!(
        until(Duration::from_secs(5), async || Some(()).filter(|()| of(&gateway, "ada").len() == 1))
            .await
            .is_some()
    );
    let other = Connection::open(gateway.room.join("usage.db")).expect("a ledger");
    other.execute_batch("BEGIN EXCLUSIVE").expect("a lock");
    let since = Instant::now();
    let reply = gateway.ask("ada", &good).await.expect("an answer");
    let took = since.elapsed();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = of(&gateway, "ada").len();
    let is_ready = gateway.is_ready().await;
    other.execute_batch("ROLLBACK").expect("no lock");
    let own =
        until(Duration::from_secs(10), async || Some(of(&gateway, "ada")).filter(|own| own.len() == 2)).await;
    let own = own.unwrap_or_default();
    let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
    let standing = gateway.standing("ada", "ops").await;
    let row = Row {
        section: "The disk",
        event: "the file of records is locked by somebody else",
        caller: reply.shown(),
        recorded: shown(&own[1.min(own.len())..]) + ", when it is free",
        charged: charged(standing.settled, &own),
        reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
        recovery: "10 s",
    };
    vec![
        row.judge(["a whole answer", "1 ok, when it is free", "what was reported", "nothing"])
            .and(took < Duration::from_secs(1), format!("the call took {took:?}"))
            .and(before == 1, format!("{before} records while it is locked"))
            .and(!is_ready, "it says that it is ready"),
    ]
}

/// Somebody else writes into the counters for longer than anybody waits.
pub(crate) async fn locked_counters() -> Vec<Verdict> {
    let upstream = Upstream::start([]).await;
    let config = config(&upstream, "").replace("timeout = \"5s\"", "timeout = \"500ms\"");
    let gateway = Gateway::start(&config).await;
    let good = chat("up/good", false);
    assert_eq!(gateway.ask("ada", &good).await.expect("an answer").shown(), "a whole answer");
    let other = Connection::open(gateway.room.join("quota.db")).expect("a file of counters");
    other.busy_timeout(Duration::from_secs(5)).expect("a file of counters");
    other.execute_batch("BEGIN EXCLUSIVE").expect("a lock");
    let since = Instant::now();
    let refused = gateway.ask("ada", &good).await.expect("an answer");
    let took = since.elapsed();
    let unlimited = gateway.ask("nobody", &good).await.expect("an answer");
    let asked = upstream.asked("good");
    other.execute_batch("ROLLBACK").expect("no lock");
    let since = Instant::now();
    let again = async || gateway.ask("ada", &good).await.ok().filter(|reply| reply.status == 200);
    let is_back = until(Duration::from_secs(5), again).await.is_some();
    let back = since.elapsed();
    let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
    let counted = async || gateway.try_standing("ada", "ops").await.filter(|now| now.settled.0 == 2);
    let counted = until(Duration::from_secs(10), counted).await.is_some();
    let row = Row {
        section: "The disk",
        event: "the file of counters is locked by somebody else",
        caller: refused.shown(),
        recorded: if asked == 2 { "nothing" } else { "SOMETHING" }.to_owned(),
        charged: if counted { "nothing" } else { "SOMETHING" }.to_owned(),
        reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
        recovery: "5 s",
    };
    vec![
        row.judge(["503 usage_store_unavailable", "nothing", "nothing", "nothing"])
            .and(took < Duration::from_secs(2), format!("refused after {took:?}"))
            .and(unlimited.shown() == "a whole answer", format!("without limits: {}", unlimited.shown()))
            .and(is_back, format!("not back after {back:?}")),
    ]
}
