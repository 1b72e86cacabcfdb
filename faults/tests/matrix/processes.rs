//! The gateway itself is told to stop, or is killed, under load.

use crate::upstream::{PROMPT, charged, file};
use faults::{
    Act, Gateway, Options, Reply, Upstream, chat, events,
    matrix::{Row, Verdict},
    until,
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::task::JoinSet;

const CALLERS: usize = 32;

fn config(upstream: &Upstream) -> String {
    file("[usage]\nhold_last_byte = \"5s\"", upstream)
}

/// Answers that take a while, so that there is always something under way.
fn scripts() -> Vec<(String, Vec<Act>)> {
    let pause = || Act::Wait(Duration::from_millis(60));
    let stream = vec![
        Act::Head,
        Act::say("All"),
        pause(),
        Act::say(" is"),
        pause(),
        Act::say(" well."),
        Act::stop(),
        Act::usage(),
        Act::done(),
        Act::End,
    ];
    vec![("stream".to_owned(), stream), ("whole".to_owned(), vec![pause(), Upstream::whole("All is well.")])]
}

/// Callers who ask again and again until nobody answers any more.
fn load(gateway: &Gateway) -> JoinSet<Vec<Reply>> {
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        let address: Arc<str> = gateway.address.as_str().into();
        callers.spawn(async move {
            let is_stream = caller % 2 == 0;
            let body = chat(if is_stream { "up/stream" } else { "up/whole" }, is_stream);
            let mut replies = Vec::new();
            loop {
                let Ok(mut client) = faults::Client::connect(&address).await else { return replies };
                if client.write(&faults::Client::chat_request("ada", &body)).await.is_err() {
                    return replies;
                }
                match client.reply().await {
                    Ok(reply) => replies.push(reply),
                    Err(_) => return replies,
                }
            }
        });
    }
    callers
}

fn is_whole(reply: &Reply) -> bool {
    matches!(&*reply.shown(), "a whole answer" | "a whole stream")
}

fn is_cut(reply: &Reply) -> bool {
    reply.shown().ends_with("A CUT WITHOUT A WORD")
}

fn id(reply: &Reply) -> String {
    reply.header("x-request-id").unwrap_or_default().to_owned()
}

pub(crate) async fn terminated() -> Vec<Verdict> {
    let upstream = Upstream::start(scripts()).await;
    let mut gateway = Gateway::start(&config(&upstream)).await;
    let callers = load(&gateway);
    let is_busy = until(Duration::from_secs(20), async || (upstream.log().len() > 100).then_some(())).await;
    assert!(is_busy.is_some());
    gateway.signal("TERM");
    let code = gateway.ended().await;
    let replies = callers.join_all().await.concat();
    let (whole, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| is_whole(reply));
    let mut told: Vec<_> = refused.iter().map(|reply| reply.shown()).collect();
    told.sort();
    told.dedup();
    let own = events(&gateway.room.join("usage.db"));
    let asked = upstream.log().len();
    let options = Options { room: Some(gateway.room.clone()), ..Options::default() };
    let again = Gateway::start_with(&config(&upstream), options).await;
    let standing = again.standing("ada", "ops").await;
    let row = Row {
        section: "The gateway",
        event: "SIGTERM under load",
        caller: format!("whoever was answered: to the end; whoever asks then: {}", told.join(", ")),
        recorded: if own.len() == asked { "all" } else { "NOT ALL" }.to_owned(),
        charged: charged(standing.settled, &own),
        reserved: if standing.reserved == (0, 0) { "nothing" } else { "SOMETHING" }.to_owned(),
        recovery: "at the next start",
    };
    vec![
        row.judge([
            "whoever was answered: to the end; whoever asks then: 503 shutting_down",
            "all",
            "what was reported",
            "nothing",
        ])
        .and(code == Some(0), format!("it ended with {code:?}"))
        .and(
            whole.len() == own.len() && asked == own.len(),
            format!("{} answers, {} records, {asked} calls at the provider", whole.len(), own.len()),
        ),
    ]
}

/// After the kill another one runs in the same folder, a while later by its clock, so that leases have run out.
pub(crate) async fn killed() -> Vec<Verdict> {
    let upstream = Upstream::start(scripts()).await;
    let mut gateway = Gateway::start(&config(&upstream)).await;
    let callers = load(&gateway);
    let is_busy = until(Duration::from_secs(20), async || (upstream.log().len() > 100).then_some(())).await;
    assert!(is_busy.is_some());
    gateway.signal("KILL");
    gateway.ended().await;
    let replies = callers.join_all().await.concat();
    let whole: HashSet<_> = replies.iter().filter(|reply| is_whole(reply)).map(id).collect();
    let own = events(&gateway.room.join("usage.db"));
    let recorded: HashSet<_> = own.iter().map(|event| event.request_id.clone()).collect();
    let lost = whole.difference(&recorded).count();
    let room = gateway.room.clone();

    let options = Options { room: Some(room.clone()), ..Options::default() };
    let mut again = Gateway::start_with(&config(&upstream), options).await;
    let at_once = again.standing("ada", "ops").await;
    let good = again.ask("ada", &chat("up/good", false)).await.expect("an answer").shown();
    again.is_settled("ada", "ops", Duration::ZERO).await;
    again.signal("TERM");
    again.ended().await;

    let env = crate::clocks::offset("+6m");
    let later =
        Gateway::start_with(&config(&upstream), Options { room: Some(room), env, ..Options::default() })
            .await;
    for _ in 0..20 {
        // A few leases are looked at with each call.
        later.ask("ada", &chat("up/good", false)).await.expect("an answer");
    }
    let is_settled = later.is_settled("ada", "ops", Duration::from_secs(5)).await;
    let standing = later.standing("ada", "ops").await;
    let under_way = at_once.reserved.0;
    let reported = (Upstream::TOKENS.0 + Upstream::TOKENS.1) as u64;
    // What was settled before, what expired, and the calls since.
    let (calls, tokens) = at_once.settled;
    let expected = (calls + under_way + 21, tokens + under_way * PROMPT + 21 * reported);
    let row = Row {
        section: "The gateway",
        event: "SIGKILL under load, and a new start",
        caller: if replies.iter().all(|reply| is_whole(reply) || is_cut(reply)) {
            "whoever had a whole answer: nothing more; others: a cut".to_owned()
        } else {
            replies.iter().filter(|reply| !is_whole(reply)).map(Reply::shown).collect()
        },
        recorded: if lost == 0 { "each answer that came whole" } else { "NOT EACH ANSWER" }.to_owned(),
        charged: if standing.settled == expected {
            "all, and the prompts of what was under way".to_owned()
        } else {
            format!("{:?} INSTEAD OF {expected:?}", standing.settled)
        },
        reserved: if is_settled {
            "what was under way, until its leases run out (5 minutes)"
        } else {
            "SOMETHING FOR EVER"
        }
        .to_owned(),
        recovery: "at the next start",
    };
    vec![
        row.judge([
            "whoever had a whole answer: nothing more; others: a cut",
            "each answer that came whole",
            "all, and the prompts of what was under way",
            "what was under way, until its leases run out (5 minutes)",
        ])
        .and(lost == 0, format!("{lost} of {} answers are not recorded", whole.len()))
        .and(under_way > 0, "nothing was under way")
        .and(good == "a whole answer", format!("after the start: {good}")),
    ]
}

/// So many connections that it can take no further one, and ask no provider.
pub(crate) async fn out_of_files() -> Vec<Verdict> {
    let upstream = Upstream::start(scripts()).await;
    let options = Options { files: Some(96), ..Options::default() };
    let gateway = Gateway::start_with(&config(&upstream), options).await;
    let good = chat("up/good", false);
    let mut early = gateway.connect().await;
    let request = faults::Client::chat_request("ada", &good);
    early.write(&request).await.expect("it listens");
    assert_eq!(early.reply().await.expect("an answer").shown(), "a whole answer");

    // The system takes connections also where nobody accepts them.
    let mut held = Vec::new();
    let is_full = async || {
        held.push(gateway.connect().await);
        gateway.log().contains("cannot accept connections").then_some(())
    };
    let is_full = until(Duration::from_secs(20), is_full).await.is_some();
    // Who is there already is served, by the connection that there is.
    early.write(&request).await.expect("it listens");
    let reply = early.reply().await.expect("an answer");
    let errors = gateway.log().matches("cannot accept connections").count();
    drop(held);
    let since = tokio::time::Instant::now();
    let again = async || gateway.ask("ada", &good).await.ok().filter(|reply| reply.status == 200);
    let is_back = until(Duration::from_secs(5), again).await.is_some();
    let took = since.elapsed();
    let file = gateway.room.join("usage.db");
    let recorded =
        until(Duration::from_secs(10), async || Some(events(&file)).filter(|own| own.len() == 3)).await;
    let own = recorded.unwrap_or_else(|| events(&file));
    let is_settled = gateway.is_settled("ada", "ops", Duration::from_secs(10)).await;
    let standing = gateway.standing("ada", "ops").await;
    let row = Row {
        section: "The gateway",
        event: "it has no file descriptors left",
        caller: format!("who is connected: {}; who comes: waits", reply.shown()),
        recorded: if own.len() == 3 { "all" } else { "NOT ALL" }.to_owned(),
        charged: charged(standing.settled, &own),
        reserved: if is_settled { "nothing" } else { "SOMETHING FOR EVER" }.to_owned(),
        recovery: "5 s",
    };
    vec![
        row.judge([
            "who is connected: a whole answer; who comes: waits",
            "all",
            "what was reported",
            "nothing",
        ])
        .and(is_full, "it was never full")
        .and(errors < 20, format!("it tried {errors} times in vain"))
        .and(is_back, format!("not back after {took:?}")),
    ]
}
