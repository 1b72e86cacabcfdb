//! A process that records under load is killed, again and again, and nothing that was acknowledged is lost.
//!
//! The child is this test itself, started anew with a variable that says where the ledger is. It prints a line when an
//! event is acknowledged, and when an answer was received in full; the parent kills it at a random moment and reads
//! what came.

use llm_layers::{
    ChatBody, LlmRequest, RequestContext,
    price::Prices,
    provider::Echo,
    usage::{Durability, EventId, QueueOptions, QueueSink, SqliteLedger, UsageEvent, UsageLayer, UsageSink},
};
use rusqlite::Connection;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};
use tower::{Layer, ServiceExt};

const LEDGER: &str = "LLM_LAYERS_KILL_LEDGER";
const KILLS: usize = 50;

/// One line at once: a pipe takes up to 4096 bytes whole or not at all.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Does nothing unless it is the child.
#[test]
fn child() {
    let Ok(ledger) = std::env::var(LEDGER) else { return };
    let options = QueueOptions::default().with_group(32);
    let (sink, _worker) = SqliteLedger::start(ledger, Durability::Kill, options).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for task in 0..8 {
            tasks.push(tokio::spawn(calls(sink.clone(), task)));
            tasks.push(tokio::spawn(tickets(sink.clone())));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

/// Receives answers in full, whole and streamed, and only then says so.
async fn calls(sink: QueueSink, task: u64) {
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
async fn tickets(sink: QueueSink) {
    let made = llm_layers::usage::MemorySink::new(1);
    let service = UsageLayer::new(made.clone(), Prices::default()).layer(Echo::new());
    let body = ChatBody::builder().user("Hello").build().unwrap();
    service.oneshot(LlmRequest::new("p/m", body)).await.unwrap();
    let blank: UsageEvent = made.take().remove(0);
    loop {
        let tickets: Vec<_> = (0..20)
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
fn nothing_that_was_acknowledged_is_lost_when_the_process_is_killed() {
    let directory = std::env::temp_dir().join(format!("llm-layers-kill-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("usage.db");
    let (mut events, mut answers) = (Vec::new(), Vec::new());
    let mut busy = 0;
    for number in 0..KILLS {
        let before = events.len() + answers.len();
        // Now and then before there is a word: while the ledger is opened.
        run_and_kill(&path, number % 10 != 0, &mut events, &mut answers);
        busy += usize::from(events.len() + answers.len() > before);
    }
    // A kill before the first word proves nothing.
    assert!(busy >= KILLS * 9 / 10, "only {busy} of {KILLS} children came to work");
    assert!(events.len() > KILLS && answers.len() > KILLS, "{} and {}", events.len(), answers.len());
    check(&path, &events, &answers);
    println!("{} events and {} answers acknowledged, {KILLS} kills", events.len(), answers.len());
    std::fs::remove_dir_all(&directory).unwrap();
}

fn run_and_kill(path: &Path, is_at_work: bool, events: &mut Vec<String>, answers: &mut Vec<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(LEDGER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let (began, work) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let say = |line: &Vec<u8>| {
            if line.starts_with(b"event ") || line.starts_with(b"answer ") {
                let _ = began.send(());
            }
        };
        lines.map(Result::unwrap).inspect(say).collect::<Vec<_>>()
    });
    if is_at_work {
        work.recv_timeout(Duration::from_secs(60)).expect("a child that comes to work");
    }
    std::thread::sleep(Duration::from_millis(fastrand::u64(0..250)));
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

fn check(path: &Path, events: &[String], answers: &[String]) {
    let connection = Connection::open(path).unwrap();
    let sound: String = connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let mut found: HashMap<(String, Option<String>), Vec<i64>> = HashMap::new();
    let mut statement = connection
        .prepare(
            "SELECT lower(hex(id)), request_id, (SELECT count(*) FROM departments WHERE event = seq) FROM events",
        )
        .unwrap();
    let mut rows = statement.query(()).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let key = (row.get(0).unwrap(), row.get(1).unwrap());
        found.entry(key).or_default().push(row.get(2).unwrap());
    }
    let mut by_event: HashMap<&str, usize> = HashMap::new();
    let mut by_request: HashMap<&str, usize> = HashMap::new();
    for ((id, request), rows) in &found {
        let departments = if request.is_some() { 2 } else { 1 };
        assert_eq!(rows, &[departments], "event {id} is there more than once, or in part");
        *by_event.entry(id).or_default() += 1;
        if let Some(request) = request {
            *by_request.entry(request).or_default() += 1;
        }
    }
    for id in events {
        assert_eq!(by_event.get(&**id), Some(&1), "the acknowledged event {id}");
    }
    for id in answers {
        assert_eq!(by_request.get(&**id), Some(&1), "the record of the answer {id}, received in full");
    }
    assert!(by_request.values().all(|count| *count == 1), "a call was recorded twice");
}
