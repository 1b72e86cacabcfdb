//! A process that records under load is killed, again and again, while Redis goes up and down, and nothing that was
//! acknowledged is lost or doubled.
//!
//! The child is this test itself, started anew with variables that say where Redis and the log are. It prints a line when an
//! event is acknowledged, and when an answer was received in full; the parent kills it at a random moment and reads
//! what came.

#[path = "support/events.rs"]
mod events;
#[path = "support/redis.rs"]
mod redis_server;

use events::{Directory, blank};
use llm_layers::{
    ChatBody, LlmRequest, RequestContext,
    fallback::Backoff,
    price::Prices,
    provider::Echo,
    store::{Redis, RedisOptions},
    usage::{
        Durability, EventId, Outbox, OutboxOptions, OutboxSink, OutboxWorker, QueueOptions, RedisStream,
        RedisStreamOptions, StreamReader, UsageLayer, UsageSink,
    },
};
use redis_server::RedisServer;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tower::{Layer, ServiceExt};

const LOG: &str = "LLM_LAYERS_KILL_OUTBOX";
const URL: &str = "LLM_LAYERS_KILL_REDIS";
const KILLS: usize = 24;

fn redis(url: &str) -> Redis {
    let short = Duration::from_millis(300);
    Redis::new(url, RedisOptions::default().with_connect_timeout(short).with_deadline(short)).unwrap()
}

fn outbox(directory: impl AsRef<Path>, url: &str) -> (OutboxSink, OutboxWorker) {
    let soon = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
    let options = OutboxOptions::default()
        .with_queue(QueueOptions::default().with_group(32))
        .with_segment_bytes(64 << 10)
        .with_group(50)
        .with_backoff(soon);
    let stream = RedisStream::new(&redis(url), RedisStreamOptions::default());
    Outbox::start(directory, Durability::Kill, stream, options).unwrap()
}

/// One line at once: a pipe takes up to 4096 bytes whole or not at all.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Does nothing unless it is the child.
#[test]
fn child() {
    let Ok(directory) = std::env::var(LOG) else { return };
    let (sink, _worker) = outbox(directory, &std::env::var(URL).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for task in 0..4 {
            tasks.push(tokio::spawn(calls(sink.clone(), task)));
        }
        tasks.push(tokio::spawn(tickets(sink.clone())));
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Receives answers in full, whole and streamed, and only then says so.
async fn calls(sink: OutboxSink, task: u64) {
    let service =
        UsageLayer::new(sink, Prices::default()).durable(Duration::from_secs(60)).layer(Echo::new());
    for call in 0_u64.. {
        let body =
            ChatBody::builder().user("Is anybody there?").set("stream", call % 2 == 0).build().unwrap();
        let id = format!("{}-{task}-{call}", std::process::id());
        let mut request = LlmRequest::new("p/m", body);
        request.context =
            RequestContext::new().with_request_id(id.clone()).with_departments(["research", "sales"]);
        let answer = service.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "Is anybody there?");
        say(&format!("answer {id}"));
    }
}

/// Records events of its own, many at once.
async fn tickets(sink: OutboxSink) {
    let blank = blank();
    loop {
        let tickets: Vec<_> = (0..5)
            .map(|_| {
                let mut event = blank.clone();
                event.id = EventId::mint(event.ended_at);
                event.context = RequestContext::new().with_departments(["research"]);
                (event.id, sink.admit().unwrap().record_with_ticket(event))
            })
            .collect();
        for (id, ticket) in tickets {
            assert!(ticket.await);
            say(&format!("event {id}"));
        }
    }
}

#[test]
fn seed_22_nothing_that_was_acknowledged_is_lost_or_doubled_when_process_and_redis_are_killed() {
    let test = "seed_22_nothing_that_was_acknowledged_is_lost_or_doubled";
    let Some(mut server) = RedisServer::start_durable(test) else { return };
    let directory = Directory::new();
    let path = directory.join("outbox");
    let (mut events, mut answers) = (Vec::new(), Vec::new());
    let mut busy = 0;
    for kill in 0..KILLS {
        let before = events.len() + answers.len();
        run_and_kill(&path, &mut server, kill, &mut events, &mut answers);
        busy += usize::from(events.len() + answers.len() > before);
    }
    // A kill before the first word proves nothing.
    assert!(busy >= KILLS * 5 / 6, "only {busy} of {KILLS} children came to work");
    assert!(events.len() > KILLS && answers.len() > KILLS, "{} and {}", events.len(), answers.len());

    server.restart();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sink, worker) = outbox(&path, &server.url());
        drop(sink);
        let report = worker.shutdown(Duration::from_secs(120)).await;
        assert_eq!((report.log.events, report.log.damages), (0, 0), "{report:?}");
        check(&server.url(), &events, &answers).await;
    });
    println!("{} events and {} answers acknowledged, {KILLS} kills", events.len(), answers.len());
}

fn run_and_kill(
    path: &Path,
    server: &mut RedisServer,
    kill: usize,
    events: &mut Vec<String>,
    answers: &mut Vec<String>,
) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(LOG, path)
        .env(URL, server.url())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let (at_work, came_to_work) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let told = |line: &Vec<u8>| {
            if line.starts_with(b"event ") || line.starts_with(b"answer ") {
                let _ = at_work.send(());
            }
        };
        lines.map(Result::unwrap).inspect(told).collect::<Vec<_>>()
    });
    // Now and then it is killed while it begins, wherever that is on a busy machine.
    if kill % 6 != 5 {
        came_to_work.recv_timeout(Duration::from_secs(30)).expect("it comes to work");
    }
    let some = |most| std::thread::sleep(Duration::from_millis(fastrand::u64(20..most)));
    some(200);
    match kill % 4 {
        0 => {
            server.kill();
            some(150);
        }
        1 => {
            server.restart();
            some(150);
        }
        2 => {
            server.freeze();
            some(150);
            server.thaw();
        }
        _ => {}
    }
    some(150);
    child.kill().unwrap();
    child.wait().unwrap();
    for line in reader.join().unwrap() {
        let line = String::from_utf8(line).unwrap();
        match line.split_once(' ') {
            Some(("event", id)) if id.len() == 32 => events.push(id.to_owned()),
            Some(("answer", id)) => answers.push(id.to_owned()),
            // What the test harness says.
            _ => {}
        }
    }
}

async fn check(url: &str, events: &[String], answers: &[String]) {
    let mut reader = StreamReader::new(redis(url).with_deadline(Duration::from_secs(20)), "llm-usage");
    let mut by_event: HashMap<String, usize> = HashMap::new();
    let mut by_request: HashMap<String, usize> = HashMap::new();
    loop {
        let more = reader.read(500).await.unwrap();
        if more.is_empty() {
            break;
        }
        for event in more {
            let departments = if event.context.request_id().is_some() { 2 } else { 1 };
            assert_eq!(event.context.department_ids().len(), departments);
            *by_event.entry(event.id.to_string()).or_default() += 1;
            if let Some(request) = event.context.request_id() {
                *by_request.entry(request.to_owned()).or_default() += 1;
            }
        }
    }
    let doubled: Vec<_> = by_event.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "events that are there more than once: {doubled:?}");
    assert!(by_request.values().all(|count| *count == 1), "a call was recorded twice");
    for id in events {
        assert_eq!(by_event.get(id), Some(&1), "the acknowledged event {id}");
    }
    for id in answers {
        assert_eq!(by_request.get(id), Some(&1), "the record of the answer {id}, received in full");
    }
}
