//! Exactly once, as a law over every place where usage is kept: whatever of it is delivered again, in whatever pieces, how often and
//! after whatever restarts, the sums are those of each event once.

#[path = "support/events.rs"]
mod events;
#[path = "support/redis.rs"]
mod redis_server;

use events::{Directory, any_event};
use llm_layers::{
    BoxError,
    fallback::Backoff,
    price::NanoUsd,
    store::{Redis, RedisOptions},
    usage::{
        DepartmentSums, Durability, GroupBy, LedgerReader, MemorySink, Outbox, OutboxOptions, QueueOptions,
        RedisStream, RedisStreamOptions, SqliteLedger, StreamReader, UsageEvent, UsageGroup, UsageQuery,
        UsageSink, UsageStore, UsageTotals, department_sums, totals, totals_by,
    },
};
use proptest::{collection::vec, prelude::*};
use redis_server::RedisServer;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

const SECONDS: Duration = Duration::from_secs(20);
const GROUPS: [GroupBy; 3] = [GroupBy::Month, GroupBy::Outcome, GroupBy::User];

/// One delivery: what has come so far, up to here and from here on, in groups of so many, after a restart or not.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    from: usize,
    to: usize,
    group: usize,
    restarts: bool,
}

fn deliveries() -> impl Strategy<Value = Vec<Delivery>> {
    let one = (0..40_usize, 0..40_usize, 1..11_usize, any::<bool>());
    vec(one, 1..7).prop_map(|all| {
        let all = all.into_iter();
        // Mostly prefixes.
        all.map(|(from, to, group, restarts)| Delivery {
            from: if from % 3 == 0 { from.min(to) } else { 0 },
            to,
            group,
            restarts,
        })
        .collect()
    })
}

/// So many, with anything in them, whose sums fit.
fn events(count: usize) -> Vec<UsageEvent> {
    let small = |amount: &mut Option<NanoUsd>| {
        *amount = amount.map(|amount| NanoUsd::new(amount.nanos() % 1_000_000_007));
    };
    let mut events: Vec<_> = (0..count).map(|_| any_event()).collect();
    for event in &mut events {
        small(&mut event.cost.amount);
        event.saved.iter_mut().for_each(|saved| small(&mut saved.cost.amount));
    }
    events
}

type Answers = (UsageTotals, Vec<UsageGroup>, Vec<DepartmentSums>);

fn model<'a>(events: impl IntoIterator<Item = &'a UsageEvent> + Clone) -> Answers {
    let all = UsageQuery::new();
    (
        totals(events.clone(), &all).unwrap(),
        totals_by(events.clone(), &all, &GROUPS).unwrap(),
        department_sums(events, &all, &GROUPS).unwrap(),
    )
}

/// Those that were delivered, each once.
fn expected(events: &[UsageEvent], deliveries: &[Delivery]) -> Answers {
    let is_there = |at: usize| deliveries.iter().any(|delivery| (delivery.from..delivery.to).contains(&at));
    let there: Vec<_> = events.iter().enumerate().filter(|(at, _)| is_there(*at)).map(|(_, e)| e).collect();
    model(there)
}

fn pieces(
    events: &[UsageEvent],
    Delivery { from, to, group, .. }: Delivery,
) -> impl Iterator<Item = &[UsageEvent]> {
    let to = to.min(events.len());
    events[from.min(to)..to].chunks(group)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn of_file(path: &Path) -> Answers {
    let all = UsageQuery::new();
    runtime().block_on(async {
        let reader = LedgerReader::open(path).await.unwrap();
        (
            reader.totals(&all).await.unwrap(),
            reader.totals_by(&all, &GROUPS).await.unwrap(),
            reader.department_sums(&all, &GROUPS).await.unwrap(),
        )
    })
}

fn ledger(path: &Path) -> SqliteLedger {
    SqliteLedger::open(path, Durability::Memory).unwrap()
}

/// A store that is there or not.
struct Maybe<S>(Option<S>);

impl<S: UsageStore> UsageStore for Maybe<S> {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.0.as_mut().ok_or("down")?.write(group)
    }

    fn write_from(
        &mut self,
        position: llm_layers::usage::LogPosition<'_>,
        group: &[UsageEvent],
    ) -> Result<(), BoxError> {
        self.0.as_mut().ok_or("down")?.write_from(position, group)
    }
}

/// Through an outbox into the store that `open` gives: recorded while it is away, passed on, and passed on again from the same files.
fn through_outbox<S: UsageStore>(events: &[UsageEvent], deliveries: &[Delivery], open: impl Fn() -> S) {
    let directory = Directory::new();
    let soon = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    let queue = QueueOptions::default().with_backoff(soon);
    let options = OutboxOptions::default().with_queue(queue).with_backoff(soon);
    let path = directory.join("outbox");
    let start = |store: Option<S>, group: usize| {
        // The thread of the one before has the directory until it has noticed that it is over.
        for _ in 0..500 {
            let store = if store.is_some() { Some(open()) } else { None };
            let options = options.with_group(group);
            match Outbox::start(&path, Durability::Kill, Maybe(store), options) {
                Ok(started) => return started,
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        panic!("the outbox stays locked");
    };
    runtime().block_on(async {
        for delivery in deliveries {
            let (sink, worker) = start(None, delivery.group);
            let mut tickets = Vec::new();
            for event in pieces(events, *delivery).flatten() {
                tickets.push(sink.admit().unwrap().record_with_ticket(event.clone()));
            }
            for ticket in tickets {
                assert!(ticket.await);
            }
            drop(sink);
            worker.shutdown(Duration::from_millis(1)).await;
            let kept: Vec<(PathBuf, Vec<u8>)> = logs(&path);
            for _ in 0..=usize::from(delivery.restarts) {
                let (sink, worker) = start(Some(open()), delivery.group);
                drop(sink);
                let report = worker.shutdown(SECONDS).await;
                assert_eq!((report.unlogged, report.log.events), (0, 0), "{report:?}");
                if delivery.restarts {
                    // As if they had never been removed.
                    kept.iter().for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
                }
            }
        }
        let (sink, worker) = start(Some(open()), 7);
        drop(sink);
        assert_eq!(worker.shutdown(SECONDS).await.log.events, 0);
    });
}

fn logs(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let logs = paths.filter(|path| path.extension().is_some_and(|end| end == "log"));
    logs.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn seed_21_replaying_changes_nothing_in_memory(count in 0..40_usize, deliveries in deliveries()) {
        let events = events(count);
        let sink = MemorySink::new(10_000);
        for delivery in &deliveries {
            for event in pieces(&events, *delivery).flatten() {
                sink.admit().unwrap().record(event.clone());
            }
        }
        let all = UsageQuery::new();
        let found = (
            sink.totals(&all).unwrap(),
            sink.totals_by(&all, &GROUPS).unwrap(),
            sink.department_sums(&all, &GROUPS).unwrap(),
        );
        prop_assert_eq!(&found, &expected(&events, &deliveries));
        let taken = sink.take();
        prop_assert_eq!(taken.len() as u64, found.0.calls);
        prop_assert_eq!(&model(&taken), &found);
    }

    #[test]
    fn seed_21_replaying_changes_nothing_in_sqlite(count in 0..40_usize, deliveries in deliveries()) {
        let (events, directory) = (events(count), Directory::new());
        let path = directory.join("usage.db");
        let mut store = ledger(&path);
        for delivery in &deliveries {
            if delivery.restarts {
                store = ledger(&path);
            }
            pieces(&events, *delivery).for_each(|group| store.write(group).unwrap());
        }
        prop_assert_eq!(of_file(&path), expected(&events, &deliveries));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn seed_21_replaying_changes_nothing_through_an_outbox(count in 0..40_usize, deliveries in deliveries()) {
        let (events, directory) = (events(count), Directory::new());
        let path = directory.join("usage.db");
        through_outbox(&events, &deliveries, || ledger(&path));
        prop_assert_eq!(of_file(&path), expected(&events, &deliveries));
    }
}

#[test]
fn seed_21_replaying_changes_nothing_in_redis_and_what_is_copied_from_there() {
    let Some(server) = RedisServer::start("seed_21_replaying_changes_nothing_in_redis") else { return };
    let redis = Redis::new(&server.url(), RedisOptions::default().with_deadline(SECONDS)).unwrap();
    let next = AtomicU64::new(0);
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(count in 0..40_usize, deliveries in deliveries(), outbox in any::<bool>())| {
        let events = events(count);
        let name = format!("usage-{}", next.fetch_add(1, Ordering::SeqCst));
        let open = || RedisStream::new(&redis, RedisStreamOptions::default().with_name(name.as_str()));
        if outbox && deliveries.len() < 4 {
            through_outbox(&events, &deliveries, open);
        } else {
            let mut store = open();
            for delivery in &deliveries {
                if delivery.restarts {
                    store = open();
                }
                pieces(&events, *delivery).for_each(|group| store.write(group).unwrap());
            }
        }
        let directory = Directory::new();
        let path = directory.join("usage.db");
        runtime().block_on(async {
            // From the beginning, and from the beginning again as far as each delivery went.
            for most in deliveries.iter().map(|delivery| Some(delivery.to)).chain([None]) {
                let (mut reader, mut file) = (StreamReader::new(redis.apart(), &name), ledger(&path));
                let mut copied = 0;
                while most.is_none_or(|most| copied < most) {
                    let more = reader.copy_to(&mut file, 5).await.unwrap();
                    if more == 0 {
                        break;
                    }
                    copied += more;
                }
            }
        });
        prop_assert_eq!(of_file(&path), expected(&events, &deliveries));
    });
}
