//! The clock of the gateway's machine jumps.

use crate::upstream::{charged, file};
use faults::{
    Gateway, Options, Upstream, chat, events,
    matrix::{Row, Verdict},
    redis::RedisServer,
    until,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Where distributions have it: below a folder of the machine's, or not.
fn library() -> PathBuf {
    let roots = ["/usr/lib", "/usr/lib64"].map(PathBuf::from);
    let folders = roots.iter().flat_map(|root| std::fs::read_dir(root).into_iter().flatten().flatten());
    let folders: Vec<_> = folders.map(|folder| folder.path()).collect();
    let mut found = roots.iter().chain(&folders).map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.exists()).expect("libfaketime, which scripts/peers installs")
}

/// The variables that shift the calendar of a process; how long things take is not touched.
pub(crate) fn offset(by: &str) -> Vec<(String, String)> {
    let library = library().display().to_string();
    [("LD_PRELOAD", &*library), ("FAKETIME_DONT_FAKE_MONOTONIC", "1"), ("FAKETIME", by)].map(own).to_vec()
}

fn own((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// As [`offset`], but by what a file says, at any time.
fn by_file(file: &Path) -> Vec<(String, String)> {
    let mut env = offset("+0");
    env.retain(|(name, _)| name != "FAKETIME");
    env.push(own(("FAKETIME_TIMESTAMP_FILE", &file.display().to_string())));
    env.push(own(("FAKETIME_NO_CACHE", "1")));
    env
}

pub(crate) async fn jump() -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (event, to, is_redis) in [
        ("the clock jumps a day ahead, counters in SQLite", "+1d", false),
        ("the clock jumps a day back, counters in SQLite", "-1d", false),
        ("the clock jumps a day ahead, counters in Redis", "+1d", true),
        ("the clock jumps a day back, counters in Redis", "-1d", true),
    ] {
        let upstream = Upstream::start([]).await;
        let server = if is_redis { RedisServer::start("jump") } else { None };
        let store = server.as_ref().map(|server| format!("store = \"redis\"\nredis = \"{}\"", server.url()));
        let config = file(&store.unwrap_or_default(), &upstream);
        let room = faults::Room::new();
        let time = room.join("time");
        std::fs::write(&time, "+0\n").expect("a file");
        let options = Options { env: by_file(&time), room: Some(room), ..Options::default() };
        let gateway = Gateway::start_with(&config, options).await;
        let mut replies = Vec::new();
        let ask = async |times: usize, replies: &mut Vec<String>| {
            for number in 0..times {
                let reply = gateway.ask("ada", &chat("up/good", number % 2 == 0)).await.expect("an answer");
                replies.push(reply.shown().replace("a whole stream", "a whole answer"));
            }
        };
        ask(4, &mut replies).await;
        std::fs::write(&time, format!("{to}\n")).expect("a file");
        ask(4, &mut replies).await;
        std::fs::write(&time, "+0\n").expect("a file");
        ask(4, &mut replies).await;
        replies.sort();
        replies.dedup();
        let recorded = async || Some(events(&gateway.room.join("usage.db"))).filter(|own| own.len() == 12);
        let own = until(Duration::from_secs(10), recorded).await.unwrap_or_default();
        let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
        let standing = gateway.standing("ada", "ops").await;
        // With the clock of Redis, all of them are of today; in a file, a day ahead has begun and goes on.
        let of_today = standing.settled.0 as usize;
        let charged = charged(standing.settled, &own[own.len() - of_today.min(own.len())..]);
        let row = Row {
            section: "The clock",
            event,
            caller: replies.join(", "),
            recorded: if own.len() == 12 { "all" } else { "NOT ALL" }.to_owned(),
            charged: format!("{charged}, {of_today} of 12 in the day that is asked for"),
            reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
            recovery: "at once",
        };
        let charged = match (is_redis, to) {
            (false, "+1d") => "what was reported, 8 of 12 in the day that is asked for",
            _ => "what was reported, 12 of 12 in the day that is asked for",
        };
        verdicts.push(row.judge(["a whole answer", "all", charged, "nothing"]));
    }
    verdicts
}

/// An answer that is kept is too old when the clock says so, and is not believed where it is from ahead.
pub(crate) async fn jump_with_cache() -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (event, to, expected) in [
        ("the clock jumps a day ahead, answers in a cache", "+1d", "a whole answer, asked for anew"),
        ("the clock jumps a day back, answers in a cache", "-1d", "a whole answer, asked for anew"),
    ] {
        let upstream = Upstream::start([]).await;
        let config = file("[cache]\nttl = \"2s\"", &upstream);
        let room = faults::Room::new();
        let time = room.join("time");
        std::fs::write(&time, "+0\n").expect("a file");
        let options = Options { env: by_file(&time), room: Some(room), ..Options::default() };
        let gateway = Gateway::start_with(&config, options).await;
        let good = chat("up/good", false);
        let ask = async || {
            let reply = gateway.ask("ada", &good).await.expect("an answer");
            (reply.shown(), reply.header("age").is_some())
        };
        let since = tokio::time::Instant::now();
        let first = ask().await;
        std::fs::write(&time, format!("{to}\n")).expect("a file");
        let (caller, is_hit) = ask().await;
        let caller = match is_hit {
            false => format!("{caller}, asked for anew"),
            true => {
                // As long as it is to be kept and no longer, by whatever clock.
                let is_gone = until(Duration::from_secs(10), async || (!ask().await.1).then_some(())).await;
                let took = since.elapsed();
                let kept = is_gone.is_some() && took > Duration::from_millis(1500);
                format!("{caller}, from the cache, {}", if kept { "for its 2 s" } else { "FOR EVER" })
            }
        };
        let asked = upstream.asked("good");
        let is_all = async || {
            let own = events(&gateway.room.join("usage.db"));
            let calls = own.iter().filter(|event| event.outcome == "ok").count();
            (calls >= asked).then_some(calls)
        };
        let calls = until(Duration::from_secs(10), is_all).await;
        let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
        let settled = gateway.standing("ada", "ops").await.settled;
        let own: Vec<_> = events(&gateway.room.join("usage.db"))
            .into_iter()
            .filter(|event| event.outcome == "ok")
            .collect();
        let of_today = settled.0 as usize;
        let charged = charged(settled, &own[own.len() - of_today.min(own.len())..]);
        let row = Row {
            section: "The clock",
            event,
            caller,
            recorded: if calls == Some(asked) { "all" } else { "NOT ALL" }.to_owned(),
            charged: format!("{charged}, {of_today} of 2 in the day that is asked for"),
            reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
            recovery: "at once",
        };
        let in_day = if to == "+1d" { 1 } else { 2 };
        let in_day = format!("what was reported, {in_day} of 2 in the day that is asked for");
        let verdict = row.judge([expected, "all", &in_day, "nothing"]);
        verdicts.push(
            verdict
                .and(first == ("a whole answer".to_owned(), false), format!("at first: {first:?}"))
                .and(asked == 2, format!("the provider was asked {asked} times")),
        );
    }
    verdicts
}
