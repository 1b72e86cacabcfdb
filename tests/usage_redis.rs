//! Usage in a stream of a real Redis: each event once, whatever happens to the server, the connection and the replies.

#[path = "support/events.rs"]
mod events;
#[path = "support/redis.rs"]
mod redis_server;

use events::{Directory, any_event, event, events, number, shown};
use llm_layers::{
    RequestContext,
    fallback::Backoff,
    quota::{Calendar, HistoryQuery, UsageHistory},
    store::{Redis, RedisOptions},
    usage::{
        Collector, Durability, EventId, LedgerReader, LogPosition, Outbox, OutboxOptions, OutboxSink,
        OutboxWorker, QueueOptions, QueueSink, RedisStream, RedisStreamOptions, SqliteLedger, StreamError,
        StreamReader, Trim, UsageEvent, UsageQuery, UsageSink, UsageStore, department_sums, totals,
    },
};
use redis_server::{Mode, Proxy, RedisCluster, RedisServer};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    slice,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const SECONDS: Duration = Duration::from_secs(60);
const NAME: &str = "llm-usage";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn options() -> RedisOptions {
    let short = Duration::from_millis(400);
    RedisOptions::default().with_connect_timeout(short).with_deadline(short)
}

fn handle(url: &str) -> Redis {
    Redis::new(url, options()).unwrap()
}

fn stream(redis: &Redis) -> RedisStream {
    RedisStream::new(redis, RedisStreamOptions::default())
}

/// All that is in the stream.
fn read_all(redis: &Redis) -> Vec<UsageEvent> {
    runtime().block_on(async {
        let mut reader = StreamReader::new(redis.apart().with_deadline(SECONDS), NAME);
        let mut all = Vec::new();
        loop {
            let more = reader.read(97).await.unwrap();
            if more.is_empty() {
                // The reader gives out once what is there twice.
                assert_eq!((reader.cut(), reader.doubled()), (0, 0));
                return all;
            }
            all.extend(more);
        }
    })
}

fn numbers(events: &[UsageEvent]) -> Vec<u64> {
    events.iter().map(number).collect()
}

/// Each of these events once, in full for each of its departments.
fn check(redis: &Redis, expected: &[UsageEvent]) {
    let found = read_all(redis);
    assert_eq!(found.len(), expected.len());
    let by_id = |events: &[UsageEvent]| -> HashMap<EventId, String> {
        events.iter().map(|event| (event.id, shown(event))).collect()
    };
    assert_eq!(by_id(&found), by_id(expected));
}

fn outbox(directory: &Directory, redis: &Redis) -> (OutboxSink, OutboxWorker) {
    let soon = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
    let queue = QueueOptions::default().with_backoff(soon);
    let options = OutboxOptions::default().with_queue(queue).with_backoff(soon).with_group(20);
    Outbox::start(directory.join("outbox"), Durability::Kill, stream(redis), options).unwrap()
}

async fn record(sink: &OutboxSink, events: &[UsageEvent]) {
    let tickets: Vec<_> =
        events.iter().map(|event| sink.admit().unwrap().record_with_ticket(event.clone())).collect();
    for ticket in tickets {
        assert!(ticket.await);
    }
}

// ===== what is written =====

#[test]
fn seed_21_an_event_is_an_entry_for_each_department_or_one_without() {
    let Some(server) = RedisServer::start("seed_21_an_event_is_an_entry_for_each_department") else { return };
    let redis = handle(&server.url());
    let events = events(0..4);
    stream(&redis).write(&events).unwrap();
    assert_eq!(server.ask(&["XLEN", "{llm-usage}:events"]), "7", "1 + 1 + 2 + 3");
    let entries = server.ask(&["XRANGE", "{llm-usage}:events", "-", "+"]);
    let words: Vec<_> = entries.split('\n').collect();
    let count = |name: &str, value: &str| words.windows(2).filter(|pair| pair == &[name, value]).count();
    assert_eq!(count("department", "research"), 3);
    assert_eq!(count("department", "sales"), 2);
    assert_eq!(count("id", &events[3].id.to_string()), 3);
    assert_eq!((count("part", "0"), count("part", "2"), count("parts", "3"), count("v", "1")), (4, 1, 3, 7));
    assert_eq!((count("cost", "3"), count("cost", "0")), (3, 1));
    assert_eq!((count("model", "p/m"), count("outcome", "ok"), count("price_source", "sheet")), (7, 7, 7));
    check(&redis, &events);
}

#[test]
fn amounts_and_texts_at_the_edges_of_their_formats_come_back_as_they_were() {
    let Some(server) = RedisServer::start("amounts_and_texts_at_the_edges") else { return };
    let redis = handle(&server.url()).with_deadline(SECONDS);
    let events: Vec<_> = (0..3000).map(|_| any_event()).collect();
    let mut store = stream(&redis);
    events.chunks(300).for_each(|group| store.write(group).unwrap());
    check(&redis, &events);
}

// ===== once =====

#[test]
fn seed_21_replaying_any_prefix_of_deliveries_any_number_of_times_changes_nothing() {
    let Some(server) = RedisServer::start("seed_21_replaying_any_prefix") else { return };
    let redis = handle(&server.url()).with_deadline(SECONDS);
    let directory = Directory::new();
    let events = events(0..300);
    let groups: Vec<_> = events.chunks(17).collect();
    let mut store = stream(&redis);
    for delivered in 1..=groups.len() {
        store.write(groups[delivered - 1]).unwrap();
        for _ in 0..2 {
            for group in &groups[..fastrand::usize(..=delivered)] {
                store.write(group).unwrap();
                // Also cut another way.
                store.write(&group[fastrand::usize(..group.len())..]).unwrap();
            }
        }
    }
    // Another process that was told the same.
    groups.iter().for_each(|group| stream(&redis).write(group).unwrap());
    check(&redis, &events);

    let path = directory.join("usage.db");
    let mut ledger = SqliteLedger::open(&path, Durability::Memory).unwrap();
    runtime().block_on(async {
        let redis = redis.apart();
        for round in 0..5 {
            let mut reader = StreamReader::new(redis.clone(), NAME);
            // Rounds that read a part only, and one that goes on from a cursor.
            let mut left = if round == 4 { usize::MAX } else { fastrand::usize(1..20) };
            while left > 0 && reader.copy_to(&mut ledger, 30).await.unwrap() > 0 {
                left -= 1;
                reader = StreamReader::new(redis.clone(), NAME).after(reader.cursor());
            }
        }
        let reader = LedgerReader::open(&path).await.unwrap();
        let query = UsageQuery::new();
        assert_eq!(reader.totals(&query).await.unwrap(), totals(&events, &query).unwrap());
        assert_eq!(
            reader.department_sums(&query, &[]).await.unwrap(),
            department_sums(&events, &query, &[]).unwrap()
        );
    });
}

#[test]
fn what_comes_out_of_a_log_is_known_again_however_late() {
    let Some(server) = RedisServer::start("what_comes_out_of_a_log") else { return };
    let redis = handle(&server.url());
    let mut store = stream(&redis);
    let events = events(0..10);
    let ends: Vec<u64> = (1..=10).map(|number| 32 + 100 * number).collect();
    let position = |range: std::ops::Range<usize>| LogPosition { log: 7, ends: &ends[range] };
    store.write_from(position(0..6), &events[..6]).unwrap();
    // As if their time had run out.
    let forget = || {
        server.ask(&["KEYS", "{llm-usage}:ids:*"]).split('\n').for_each(|key| drop(server.ask(&["DEL", key])))
    };
    forget();
    store.write_from(position(0..10), &events).unwrap();
    check(&redis, &events);
    forget();
    store.write_from(position(2..7), &events[2..7]).unwrap();
    check(&redis, &events);
    // What came late again has not taken the place back.
    forget();
    store.write_from(position(0..10), &events).unwrap();
    check(&redis, &events);
    assert!(
        server.ask(&["TTL", "{llm-usage}:log:00000000000000000000000000000007"]).parse::<u32>().unwrap()
            > 31_000_000
    );
    // The same in another file of the log, as after a write that failed: known by their ids, while these are remembered.
    store.write_from(LogPosition { log: 7, ends: &[2000] }, &[event(10)]).unwrap();
    let again = read_all(&redis);
    store.write_from(LogPosition { log: 8, ends: &[200] }, &again[10..]).unwrap();
    assert_eq!(read_all(&redis).len(), 11);
    let sets = server.ask(&["KEYS", "{llm-usage}:ids:*"]);
    let ttl: u32 = server.ask(&["TTL", &sets]).parse().unwrap();
    assert!((259_100..=259_200).contains(&ttl), "{ttl}");
}

/// What a server has after it was killed in the midst of a group and its log was cut, not mended: half of the group in front of
/// all of it.
#[test]
fn seed_21_a_stream_that_its_server_has_doubled_is_copied_once() {
    let Some(server) = RedisServer::start("seed_21_a_stream_that_its_server_has_doubled") else { return };
    let redis = handle(&server.url());
    // Of two entries, one, two and one.
    let events: Vec<_> = [2, 5, 6, 0, 8, 9].into_iter().map(event).collect();
    let mut store = stream(&redis);
    store.write(&events[..4]).unwrap();
    let entries = |from: &str| -> Vec<Vec<String>> {
        let said = server.ask(&["XRANGE", "{llm-usage}:events", from, "+"]);
        let mut all: Vec<Vec<String>> = Vec::new();
        for word in said.split('\n') {
            match word.split_once('-') {
                Some((time, number)) if time.parse::<u64>().is_ok() && number.parse::<u64>().is_ok() => {
                    all.push(Vec::new());
                }
                _ => all.last_mut().unwrap().push(word.to_owned()),
            }
        }
        all
    };
    let again = |entry: &[String]| {
        let words = ["XADD", "{llm-usage}:events", "*"].into_iter().chain(entry.iter().map(String::as_str));
        server.ask(&words.collect::<Vec<_>>());
    };
    // Whole events and one in part, then the same from the beginning, as often as it happens.
    let group = entries("-");
    assert_eq!(group.len(), 6);
    for cut in 1..6 {
        group[..cut].iter().for_each(|entry| again(entry));
    }
    group.iter().for_each(|entry| again(entry));
    store.write(&events[4..]).unwrap();
    // At the end of all, one in part: it may yet become whole.
    again(&group[3]);

    let ledger = |reader: &mut StreamReader, entries: usize| {
        let directory = Directory::new();
        let path = directory.join("usage.db");
        let mut ledger = SqliteLedger::open(&path, Durability::Memory).unwrap();
        runtime().block_on(async {
            while reader.copy_to(&mut ledger, entries).await.unwrap() > 0 {}
            let totals_of = LedgerReader::open(&path).await.unwrap();
            let query = UsageQuery::new();
            assert_eq!(totals_of.totals(&query).await.unwrap(), totals(&events, &query).unwrap());
            assert_eq!(
                totals_of.department_sums(&query, &[]).await.unwrap(),
                department_sums(&events, &query, &[]).unwrap()
            );
        });
    };
    for at_once in [1, 2, 3, 6, 1000] {
        let mut reader = StreamReader::new(redis.apart(), NAME);
        ledger(&mut reader, at_once);
        assert_eq!((reader.cut(), reader.doubled()), (1 + 1, 1 + 2 + 2 + 3 + 4), "{at_once} at once");
    }
    // Also for those who have no ledger that knows ids.
    runtime().block_on(async {
        let mut reader = StreamReader::new(redis.apart(), NAME);
        let mut read = Vec::new();
        loop {
            let some = reader.read(2).await.unwrap();
            if some.is_empty() {
                break;
            }
            read.extend(numbers(&some));
        }
        assert_eq!(read, [2, 5, 6, 0, 8, 9]);
        // What was at the end in part is passed over once there is more.
        assert_eq!(reader.cut(), 2);
        let late = event(10);
        std::thread::scope(|scope| {
            scope.spawn(|| stream(&redis).write(slice::from_ref(&late)).unwrap());
        });
        assert_eq!(numbers(&reader.read(100).await.unwrap()), [10]);
        assert_eq!(reader.cut(), 3);
    });
}

// ===== a server that fails =====

#[test]
fn seed_21_lost_replies_double_nothing_and_lose_nothing() {
    let Some(server) = RedisServer::start("seed_21_lost_replies") else { return };
    let proxy = Proxy::start(server.port());
    let redis = handle(&proxy.url());
    let directory = Directory::new();
    let events = events(0..1000);
    runtime().block_on(async {
        let (sink, worker) = outbox(&directory, &redis);
        // A connection begins with replies of its own.
        proxy.set(Mode::CutEvery(4));
        for (number, group) in events.chunks(50).enumerate() {
            record(&sink, group).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            proxy.set(match number % 5 {
                0 => Mode::Swallow,
                1 => Mode::Cut,
                2 => Mode::Delay(Duration::from_millis(30)),
                3 => Mode::Refuse,
                _ => Mode::CutEvery(4),
            });
        }
        proxy.set(Mode::CutEvery(5));
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.log.events, report.unlogged), (0, 0), "{report:?}");
    });
    assert!(proxy.cuts() >= 5, "{} cuts", proxy.cuts());
    check(&handle(&server.url()), &events);
}

#[test]
fn seed_22_a_server_that_is_killed_frozen_and_started_again_gets_each_event_once() {
    let Some(mut server) = RedisServer::start_durable("seed_22_a_server_that_is_killed_frozen") else {
        return;
    };
    let redis = handle(&server.url());
    let directory = Directory::new();
    let events = events(0..1500);
    runtime().block_on(async {
        let (sink, worker) = outbox(&directory, &redis);
        for (round, group) in events.chunks(100).enumerate() {
            record(&sink, &group[..50]).await;
            match round % 3 {
                0 => server.kill(),
                1 => server.freeze(),
                _ => {}
            }
            record(&sink, &group[50..]).await;
            assert!(sink.is_healthy(), "answers are not held up while Redis is away");
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..700))).await;
            match round % 3 {
                0 => server.restart(),
                1 => server.thaw(),
                _ => {}
            }
        }
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.log.events, report.unlogged), (0, 0), "{report:?}");
    });
    check(&redis, &events);
}

#[test]
fn a_group_is_written_with_all_its_entries_or_not_at_all() {
    let Some(server) = RedisServer::start("a_group_is_written_with_all_its_entries") else { return };
    let redis = handle(&server.url());
    let mut store = stream(&redis);
    let events = events(0..50);
    server.ask(&["SET", "{llm-usage}:events", "something else"]);
    let error = store.write(&events).unwrap_err().to_string();
    assert!(error.contains("WRONGTYPE") || error.contains("ERR"), "{error}");
    assert_eq!(server.ask(&["DBSIZE"]), "1", "nothing is marked as written");
    server.ask(&["DEL", "{llm-usage}:events"]);
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    assert!(store.write(&events).unwrap_err().to_string().contains("OOM"));
    assert_eq!(server.ask(&["DBSIZE"]), "0");
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    for _ in 0..3 {
        store.write(&events).unwrap();
        check(&redis, &events);
    }
}

#[test]
fn a_right_that_is_missing_or_taken_away_costs_no_event() {
    let Some(server) = RedisServer::start("a_right_that_is_missing_costs_no_event") else { return };
    let all =
        ["on", ">secret", "~{llm-usage}:*", "+@read", "+@write", "+@scripting", "+@connection", "+time"];
    server.ask(&[&["ACL", "SETUSER", "gateway"], &all[..]].concat());
    let redis = handle(&server.url());
    let mut store = stream(&handle(&format!("redis://gateway:secret@127.0.0.1:{}", server.port())));
    let mut written = Vec::new();
    for (number, command) in ["sadd", "xadd", "expire", "set", "xlen", "get", "scard"].iter().enumerate() {
        let number = number as u64;
        let events = events(number * 10..number * 10 + 10);
        let position = LogPosition { log: 7, ends: &Vec::from_iter(number * 10 + 1..=number * 10 + 10) };
        server.ask(&["ACL", "SETUSER", "gateway", &format!("-{command}")]);
        assert!(store.write_from(position, &events).is_err(), "{command}");
        server.ask(&["ACL", "SETUSER", "gateway", &format!("+{command}")]);
        store.write_from(position, &events).unwrap();
        written.extend(events);
        check(&redis, &written);
    }
}

/// Redis, which is full whenever the first event is among those that it is offered, so often.
struct OftenFull {
    stream: RedisStream,
    server: u16,
    left: u32,
}

impl OftenFull {
    fn is_full(&self, is_full: bool) {
        redis_server::ask(self.server, &["CONFIG", "SET", "maxmemory", if is_full { "1" } else { "0" }])
            .unwrap();
    }
}

impl UsageStore for OftenFull {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), llm_layers::BoxError> {
        self.stream.write(group)
    }

    fn write_from(
        &mut self,
        position: LogPosition<'_>,
        group: &[UsageEvent],
    ) -> Result<(), llm_layers::BoxError> {
        if self.left == 0 || number(&group[0]) != 0 {
            return self.stream.write_from(position, group);
        }
        self.left -= 1;
        self.is_full(true);
        let result = self.stream.write_from(position, group);
        self.is_full(false);
        assert!(result.as_ref().is_err_and(|error| error.to_string().contains("OOM")), "{result:?}");
        result
    }

    fn knows_refusals(&self) -> bool {
        self.stream.knows_refusals()
    }
}

#[test]
fn no_event_is_moved_away_because_redis_is_full_now_and_then() {
    let Some(server) = RedisServer::start("no_event_is_moved_away") else { return };
    let (redis, directory) = (handle(&server.url()), Directory::new());
    let soon = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    let options = OutboxOptions::default().with_backoff(soon);
    let target = OftenFull { stream: stream(&redis), server: server.port(), left: 20 };
    let all = events(0..12);
    runtime().block_on(async {
        let (sink, worker) =
            Outbox::start(directory.join("outbox"), Durability::Kill, target, options).unwrap();
        record(&sink, &all).await;
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.log.refused, report.log.events, report.log.forwarded), (0, 0, 12));
    });
    check(&redis, &all);
}

#[test]
fn what_was_recorded_is_found_in_the_copy_while_others_go_on_recording() {
    let Some(server) = RedisServer::start("what_was_recorded_is_found_in_the_copy") else { return };
    let (redis, directory) = (handle(&server.url()), Directory::new());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for busy in 1..=2 {
            let (mut store, is_over) = (stream(&redis), &is_over);
            scope.spawn(move || {
                for number in busy * 1_000_000.. {
                    if is_over.load(Ordering::Acquire) {
                        break;
                    }
                    store.write(&[event(number)]).unwrap();
                }
            });
        }
        let found = runtime().block_on(async {
            let (sink, worker) = outbox(&directory, &redis);
            let path = directory.join("ledger.db");
            let collector = Collector::start(&redis, NAME, &path).unwrap();
            let reader = LedgerReader::open(&path).await.unwrap().behind_copy(&sink, &collector);
            let mut mine = event(7);
            mine.context = RequestContext::new().with_departments(["mine"]);
            record(&sink, std::slice::from_ref(&mine)).await;
            let day = Calendar::utc().day(mine.ended_at);
            let used = tokio::time::timeout(SECONDS / 6, reader.used(HistoryQuery::new("mine", day))).await;
            is_over.store(true, Ordering::Release);
            worker.shutdown(SECONDS).await;
            collector.shutdown(SECONDS).await;
            used
        });
        assert_eq!(found.expect("nobody was told").unwrap().in_day.requests, 1);
    });
}

/// A file of SQLite and what belongs to it.
fn files(path: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|end| format!("{}{end}", path.display()).into())
}

#[test]
fn a_copy_that_was_put_back_or_removed_gets_what_it_has_missed() {
    let Some(server) = RedisServer::start("a_copy_that_was_put_back") else { return };
    let (redis, directory) = (handle(&server.url()), Directory::new());
    let (path, backup) = (directory.join("usage.db"), directory.join("backup.db"));
    let runtime = runtime();
    let start = || Collector::start(&redis, NAME, &path).unwrap();
    let stop = |collector: Collector| assert!(runtime.block_on(collector.shutdown(SECONDS)));
    let write = |numbers: std::ops::Range<u64>| stream(&redis).write(&events(numbers)).unwrap();
    let remove = || files(&path).iter().for_each(|file| drop(fs::remove_file(file)));
    let until = |calls: u64| {
        let found = runtime.block_on(async {
            let reader = LedgerReader::open(&path).await.unwrap();
            tokio::time::timeout(SECONDS / 4, async {
                // None while the file is away.
                while reader.totals(&UsageQuery::new()).await.map_or(0, |totals| totals.calls) != calls {
                    tokio::task::yield_now().await;
                }
            })
            .await
        });
        assert!(found.is_ok(), "there are not {calls}");
    };
    write(0..5);
    let collector = start();
    until(5);
    stop(collector);
    fs::copy(&path, &backup).unwrap();
    let collector = start();
    write(5..10);
    until(10);
    stop(collector);

    // Put back while nobody copies.
    remove();
    fs::copy(&backup, &path).unwrap();
    let collector = start();
    until(10);

    // Put back while it is copied, and nothing comes.
    remove();
    fs::copy(&backup, directory.join("new.db")).unwrap();
    fs::rename(directory.join("new.db"), &path).unwrap();
    until(10);
    stop(collector);

    remove();
    let collector = start();
    until(10);
    write(10..12);
    until(12);
    stop(collector);
}

// ===== a cluster =====

#[test]
fn seed_21_in_a_cluster_too_each_event_is_written_once_also_while_a_replica_takes_over() {
    let test = "seed_21_in_a_cluster_too";
    let Some(cluster) = RedisCluster::start_with_replicas(test) else { return };
    let redis = Redis::cluster(cluster.urls(), options()).unwrap();
    let directory = Directory::new();
    let events = events(0..1000);
    let owner = cluster.nodes.iter().find_map(|node| {
        let slot = node.ask(&["CLUSTER", "KEYSLOT", "{llm-usage}:events"]).parse().unwrap();
        cluster.owner(slot, 0)
    });
    let owner = owner.unwrap();
    runtime().block_on(async {
        let (sink, worker) = outbox(&directory, &redis);
        for (number, group) in events.chunks(100).enumerate() {
            record(&sink, group).await;
            match number {
                2 => drop(cluster.nodes[owner + 3].ask(&["CLUSTER", "FAILOVER"])),
                6 => drop(cluster.nodes[owner].ask(&["CLUSTER", "FAILOVER"])),
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.log.events, report.unlogged), (0, 0), "{report:?}");
    });
    check(&redis, &events);
}

// ===== without an outbox =====

#[test]
fn behind_a_queue_alone_each_event_is_written_once_too() {
    let Some(server) = RedisServer::start("behind_a_queue_alone") else { return };
    let proxy = Proxy::start(server.port());
    let redis = handle(&proxy.url());
    let events = events(0..500);
    let soon = Backoff::new(Duration::from_millis(5), Duration::from_millis(50));
    runtime().block_on(async {
        let options = QueueOptions::default().with_group(10).with_backoff(soon);
        let (sink, worker) = QueueSink::start(stream(&redis), options).unwrap();
        proxy.set(Mode::CutEvery(5));
        events.iter().for_each(|event| sink.admit().unwrap().record(event.clone()));
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.written, report.left), (500, 0));
    });
    assert!(proxy.cuts() >= 5, "{} cuts", proxy.cuts());
    check(&handle(&server.url()), &events);
}

// ===== reading =====

#[test]
fn a_reader_says_which_entry_it_cannot_read_and_does_not_go_beyond_it() {
    let Some(server) = RedisServer::start("a_reader_says_which_entry") else { return };
    let redis = handle(&server.url());
    let mut store = stream(&redis);
    let all = events(0..6);
    store.write(&all[..3]).unwrap();
    let newer = server.ask(&["XADD", "{llm-usage}:events", "*", "v", "2", "what", "ever"]);
    store.write(&all[3..]).unwrap();
    runtime().block_on(async {
        let mut reader = StreamReader::new(redis.apart(), NAME);
        assert_eq!(numbers(&reader.read(4).await.unwrap()), [0, 1, 2]);
        let before = reader.cursor().to_owned();
        let error = reader.read(100).await.unwrap_err();
        assert!(
            matches!(&error, StreamError::Newer { entry, found } if **entry == newer && &**found == "2"),
            "{error}"
        );
        assert_eq!(reader.cursor(), before);
        // Whoever knows better goes on behind it.
        let mut reader = reader.after(newer);
        assert_eq!(numbers(&reader.read(100).await.unwrap()), [3, 4, 5]);
        server.ask(&["XADD", "{llm-usage}:events", "*", "temperature", "20"]);
        assert!(matches!(reader.read(100).await.unwrap_err(), StreamError::Foreign { .. }));
    });
}

#[test]
fn what_comes_behind_the_place_that_was_read_after_a_loss_is_read_too() {
    let Some(server) = RedisServer::start("what_comes_behind_the_place_that_was_read") else { return };
    let redis = handle(&server.url());
    let (mut store, runtime) = (stream(&redis), runtime());
    let directory = Directory::new();
    let mut ledger = SqliteLedger::open(directory.join("usage.db"), Durability::Memory).unwrap();
    let all = events(0..8);
    let key = "{llm-usage}:events";
    // A clock that is ahead: no entry has an earlier id than the one before it.
    let is_ahead = |by: &str| server.ask(&["XSETID", key, &format!("{by}-0")]);
    let mut reader = StreamReader::new(redis.apart(), NAME);
    let mut read = || {
        let mut copied = 0;
        loop {
            match runtime.block_on(reader.copy_to(&mut ledger, 2)).unwrap() {
                0 => return (copied, reader.cursor().to_owned()),
                more => copied += more,
            }
        }
    };
    store.write(&all[..2]).unwrap();
    server.ask(&["COPY", key, "{llm-usage}:replica"]);
    is_ahead("88888888888888");
    store.write(&all[2..3]).unwrap();
    let (copied, before) = read();
    assert_eq!(copied, 3);
    assert!(before.starts_with("88888888888888-"), "{before}");

    // A replica takes over that has not all, and whose clock is not ahead.
    server.ask(&["COPY", "{llm-usage}:replica", key, "REPLACE"]);
    store.write(&all[3..4]).unwrap();
    assert_eq!(read().0, 1);

    // The same, and the clock has caught up before anybody reads.
    is_ahead("88888888888888");
    store.write(&all[4..5]).unwrap();
    assert_eq!(read().0, 1);
    server.ask(&["COPY", "{llm-usage}:replica", key, "REPLACE"]);
    store.write(&all[5..6]).unwrap();
    is_ahead("99999999999999");
    store.write(&all[6..7]).unwrap();
    assert_eq!(read().0, 2);

    // A server that has nothing at all any more.
    server.ask(&["DEL", key]);
    assert_eq!(read().0, 0);
    store.write(&all[7..]).unwrap();
    assert_eq!(read().0, 1);
    let reader = runtime.block_on(LedgerReader::open(directory.join("usage.db"))).unwrap();
    let totals = runtime.block_on(reader.totals(&UsageQuery::new())).unwrap();
    assert_eq!(totals.calls, 8);
}

#[test]
fn what_was_read_can_be_removed_and_a_stream_can_be_kept_short_by_itself() {
    let Some(server) = RedisServer::start("what_was_read_can_be_removed") else { return };
    let redis = handle(&server.url());
    stream(&redis).write(&events(0..10)).unwrap();
    runtime().block_on(async {
        let mut reader = StreamReader::new(redis.apart(), NAME);
        let read = reader.read(8).await.unwrap();
        reader.remove_read().await.unwrap();
        let mut again = StreamReader::new(redis.apart(), NAME);
        let rest = again.read(1000).await.unwrap();
        assert_eq!(again.cut(), 0);
        assert_eq!([numbers(&read), numbers(&rest)].concat(), (0..10).collect::<Vec<_>>());
        again.remove_read().await.unwrap();
        assert_eq!(server.ask(&["XLEN", "{llm-usage}:events"]), "0");
    });
    for (name, trim) in [("short", Trim::Entries(100)), ("young", Trim::Age(Duration::ZERO))] {
        let options = RedisStreamOptions::default().with_name(name).with_trim(trim);
        let mut store = RedisStream::new(&redis, options);
        for round in 0..20 {
            std::thread::sleep(Duration::from_millis(2));
            store.write(&events(round * 100..round * 100 + 100)).unwrap();
        }
        let length: usize = server.ask(&["XLEN", &format!("{{{name}}}:events")]).parse().unwrap();
        assert!((100..600).contains(&length), "{name}: {length} of 3200");
        runtime().block_on(async {
            let mut reader = StreamReader::new(redis.apart(), name);
            let found = numbers(&reader.read(10_000).await.unwrap());
            assert_eq!(found.last(), Some(&1999));
            assert!(reader.cut() < 3);
        });
    }
}
