//! The log in front of a store: what is acknowledged reaches the store once and in order, whatever happens to the store,
//! the process, the disk and the files.

#[path = "support/events.rs"]
mod events;
#[cfg(feature = "tracing")]
#[path = "support/log.rs"]
mod log;

use events::{Directory, any_event, event, events, number, shown};
use llm_layers::{
    BoxError, ErrorKind,
    fallback::Backoff,
    usage::{
        Durability, LogPosition, Outbox, OutboxError, OutboxErrorKind, OutboxOptions, OutboxSink,
        OutboxStatus, OutboxWorker, QueueOptions, Refused, UsageEvent, UsageSink, UsageStore,
    },
};
use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A store that may be down, and knows events again as Redis does.
#[derive(Clone, Default)]
struct Elsewhere(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    is_down: bool,
    /// Fails so often, after it has written.
    ambiguous: usize,
    panics: bool,
    /// Takes none of these, and says whose fault it is or not.
    refused: Vec<u64>,
    says_so: bool,
    knows: bool,
    /// Refuses these so often when they come alone out of the log, and until then any group with one of them.
    reluctant: HashMap<u64, usize>,
    events: Vec<UsageEvent>,
    ids: HashSet<String>,
    places: HashMap<u128, u64>,
    offered: usize,
}

impl Elsewhere {
    fn down() -> Self {
        let store = Self::default();
        store.set_down(true);
        store
    }

    fn set_down(&self, is_down: bool) {
        self.0.lock().unwrap().is_down = is_down;
    }

    fn numbers(&self) -> Vec<u64> {
        self.0.lock().unwrap().events.iter().map(number).collect()
    }

    async fn until(&self, count: usize) {
        self.until_so(|contents| contents.events.len() >= count).await;
    }

    async fn until_so(&self, is_so: impl Fn(&Contents) -> bool) {
        let all = async {
            while !is_so(&self.0.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(SECONDS, all).await.unwrap_or_else(|_| panic!("only {:?}", self.numbers()));
    }
}

impl UsageStore for Elsewhere {
    /// Without a place they are known by their ids.
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let mut contents = self.0.lock().unwrap();
        contents.refuses(group)?;
        for event in group {
            if contents.ids.insert(event.id.to_string()) {
                contents.events.push(event.clone());
            }
        }
        Ok(())
    }

    fn knows_refusals(&self) -> bool {
        self.0.lock().unwrap().knows
    }

    fn write_from(&mut self, position: LogPosition<'_>, group: &[UsageEvent]) -> Result<(), BoxError> {
        let panics = self.0.lock().unwrap().panics;
        assert!(!panics, "told to");
        let mut contents = self.0.lock().unwrap();
        assert_eq!(position.ends.len(), group.len());
        contents.offered += group.len();
        contents.refuses(group)?;
        contents.hesitates(group)?;
        for (event, end) in group.iter().zip(position.ends) {
            let place = contents.places.entry(position.log).or_default();
            if *end > *place {
                *place = *end;
                if contents.ids.insert(event.id.to_string()) {
                    contents.events.push(event.clone());
                }
            }
        }
        match contents.ambiguous.checked_sub(1) {
            Some(left) => {
                contents.ambiguous = left;
                Err("no answer".into())
            }
            None => Ok(()),
        }
    }
}

impl Contents {
    fn hesitates(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let mut left = self.reluctant.iter_mut().filter(|(_, left)| **left > 0);
        let first = left.find(|(reluctant, _)| group.iter().any(|event| number(event) == **reluctant));
        let Some((_, left)) = first else { return Ok(()) };
        *left -= usize::from(group.len() == 1);
        Err("not yet".into())
    }

    fn refuses(&self, group: &[UsageEvent]) -> Result<(), BoxError> {
        if self.is_down {
            return Err("down".into());
        }
        match !self.refused.is_empty() && group.iter().any(|event| self.refused.contains(&number(event))) {
            true if self.says_so => Err(Refused::new("not that one").into()),
            true => Err("not that one".into()),
            false => Ok(()),
        }
    }
}

const SECONDS: Duration = Duration::from_secs(20);

fn options() -> OutboxOptions {
    let soon = Backoff::new(Duration::from_millis(1), Duration::from_millis(10));
    let queue = QueueOptions::default().with_backoff(soon);
    OutboxOptions::default().with_queue(queue).with_backoff(soon).with_group(7)
}

fn start_with(
    directory: &Path,
    store: &Elsewhere,
    options: OutboxOptions,
) -> Result<(OutboxSink, OutboxWorker), OutboxError> {
    Outbox::start(directory, Durability::Kill, store.clone(), options)
}

fn start(directory: &Directory, store: &Elsewhere) -> (OutboxSink, OutboxWorker) {
    start_with(directory.path(), store, options()).unwrap()
}

/// Records, and waits until all are acknowledged.
async fn record(sink: &OutboxSink, events: Vec<UsageEvent>) {
    let tickets: Vec<_> =
        events.into_iter().map(|event| sink.admit().unwrap().record_with_ticket(event)).collect();
    for ticket in tickets {
        assert!(tokio::time::timeout(SECONDS, ticket).await.unwrap());
    }
}

/// Ends without passing anything on, as if it were killed.
async fn crash(worker: OutboxWorker, sink: OutboxSink) {
    drop(sink);
    worker.shutdown(Duration::from_millis(50)).await;
    // Its thread has the lock until it has noticed.
    tokio::time::sleep(Duration::from_millis(50)).await;
}

fn logs(directory: &Directory) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    let mut logs: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
    logs.sort();
    logs
}

fn count_of(directory: &Directory, end: &str) -> usize {
    let paths = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.to_str().unwrap().ends_with(end)).count()
}

/// What is told by any thread of this process from now on.
#[cfg(feature = "tracing")]
fn all_that_is_told() -> &'static log::Log {
    static LOG: std::sync::OnceLock<log::Log> = std::sync::OnceLock::new();
    LOG.get_or_init(|| {
        let log = log::Log::default();
        tracing::subscriber::set_global_default(log.subscriber()).unwrap();
        log
    })
}

// ===== what it is for =====

#[tokio::test]
async fn what_is_recorded_arrives_once_and_in_order_and_the_log_is_empty_afterwards() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..500)).await;
    assert!(sink.is_healthy());
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.log.events, report.log.forwarded, report.unlogged), (0, 500, 0));
    assert_eq!((report.log.bytes, report.log.last_error), (0, None));
    assert_eq!(store.numbers(), (0..500).collect::<Vec<_>>());
    assert_eq!(logs(&directory), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn events_come_out_as_they_went_in() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    let (sink, worker) = start(&directory, &store);
    let events: Vec<_> = (0..2000).map(|_| any_event()).collect();
    record(&sink, events.clone()).await;
    worker.shutdown(SECONDS).await;
    let arrived = &store.0.lock().unwrap().events;
    assert_eq!(arrived.len(), events.len());
    for (arrived, event) in arrived.iter().zip(&events) {
        assert_eq!(shown(arrived), shown(event));
    }
}

#[tokio::test]
async fn seed_22_what_was_acknowledged_while_the_store_was_down_arrives_after_a_restart() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    for round in 0..5 {
        let (sink, worker) = start(&directory, &store);
        record(&sink, events(round * 20..round * 20 + 20)).await;
        assert!(sink.is_healthy(), "the log takes them");
        crash(worker, sink).await;
    }
    assert_eq!(store.numbers(), Vec::<u64>::new());
    let (sink, worker) = start(&directory, &store);
    assert_eq!(sink.status().events, 100);
    store.set_down(false);
    store.until(100).await;
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.log.events, report.log.damages, report.log.torn), (0, 0, 0));
    // One of those behind may have been tried first, to see whether it is the store.
    let mut numbers = store.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    assert_eq!(count_of(&directory, ".bad"), 0);
    drop(sink);
}

#[tokio::test]
async fn a_store_that_fails_after_it_has_written_is_offered_the_same_again() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    store.0.lock().unwrap().ambiguous = 20;
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..200)).await;
    let report = worker.shutdown(Duration::MAX).await;
    assert_eq!(report.log.events, 0);
    assert_eq!(store.numbers(), (0..200).collect::<Vec<_>>());
    assert!(store.0.lock().unwrap().offered >= 220, "some more than once");
}

#[tokio::test]
async fn an_event_that_its_store_refuses_for_ever_is_moved_away_and_blocks_no_other() {
    for (says_so, refused) in [(true, vec![3, 4, 20]), (false, vec![0, 1, 30]), (false, vec![37])] {
        let (directory, store) = (Directory::new(), Elsewhere::default());
        let (sink, worker) = start(&directory, &store);
        {
            let mut contents = store.0.lock().unwrap();
            (contents.refused, contents.says_so) = (refused.clone(), says_so);
        }
        record(&sink, events(0..40)).await;
        store.until(40 - refused.len()).await;
        while sink.status().events > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let status = sink.status();
        assert_eq!((status.refused, status.damages), (refused.len() as u64, 0));
        let report = worker.shutdown(SECONDS).await;
        assert_eq!((report.log.events, report.log.last_error, report.unlogged), (0, None, 0));
        let mut numbers = store.numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..40).filter(|number| !refused.contains(number)).collect::<Vec<_>>());
        // It is there, as it was, and nowhere else.
        let aside = Outbox::read(directory.join("refused.log")).unwrap();
        assert_eq!(aside.iter().map(number).collect::<Vec<_>>(), refused);
        assert_eq!(logs(&directory), [directory.join("refused.log")]);
        // The next start leaves it alone.
        let (_sink, worker) = start(&directory, &store);
        assert_eq!(worker.shutdown(SECONDS).await.log.events, 0);
        assert_eq!(Outbox::read(directory.join("refused.log")).unwrap().len(), refused.len());
    }
}

#[tokio::test]
async fn what_is_moved_away_can_be_read_though_its_file_was_not_even_begun() {
    for begun in [&b""[..], b"llmus", b"llmusage\x01\0"] {
        let directory = Directory::new();
        fs::write(directory.join("refused.log"), begun).unwrap();
        let store = Elsewhere(Arc::new(Mutex::new(Contents {
            refused: vec![1],
            says_so: true,
            ..Contents::default()
        })));
        let (sink, worker) = start(&directory, &store);
        record(&sink, events(0..3)).await;
        store.until(2).await;
        drop(sink);
        assert_eq!(worker.shutdown(SECONDS).await.log.refused, 1);
        let aside = Outbox::read(directory.join("refused.log")).unwrap();
        assert_eq!(aside.iter().map(number).collect::<Vec<_>>(), [1], "{begun:?}");
    }
}

#[tokio::test]
async fn while_the_store_is_down_nothing_is_moved_away() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..10)).await;
    while store.0.lock().unwrap().offered < 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((sink.status().refused, sink.status().events), (0, 10));
    store.set_down(false);
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.log.refused, report.log.forwarded), (0, 10));
}

#[tokio::test]
async fn each_event_is_refused_on_its_own_account_before_it_is_moved_away() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    // Each once less than it takes.
    store.0.lock().unwrap().reluctant = (0..4).map(|number| (number, 2)).collect();
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..10)).await;
    store.set_down(false);
    store.until(10).await;
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.log.refused, report.log.forwarded, report.log.events), (0, 10, 0));
    assert_eq!(store.0.lock().unwrap().reluctant.values().sum::<usize>(), 0);
}

#[tokio::test]
async fn nothing_is_moved_away_that_a_store_would_say_it_refuses() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    {
        let mut contents = store.0.lock().unwrap();
        (contents.refused, contents.knows) = (vec![0], true);
    }
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..10)).await;
    store.until_so(|contents| contents.offered > 200).await;
    assert_eq!((sink.status().refused, sink.status().events), (0, 10));
    store.0.lock().unwrap().refused.clear();
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.log.refused, report.log.forwarded), (0, 10));
    assert_eq!(store.numbers(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn seed_22_what_is_left_at_the_deadline_is_reported_and_stays_in_the_log() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..30)).await;
    let report = worker.shutdown(Duration::from_millis(100)).await;
    assert_eq!((report.log.events, report.unlogged), (30, 0));
    assert_eq!(report.log.last_error.as_deref(), Some("down"));
    assert_eq!(logs(&directory).len(), 1);
}

#[tokio::test]
async fn files_are_ended_and_removed_as_they_are_passed_on() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let (sink, worker) = start_with(directory.path(), &store, options().with_segment_bytes(4096)).unwrap();
    for round in 0..20 {
        record(&sink, events(round * 10..round * 10 + 10)).await;
    }
    let files = logs(&directory).len();
    assert!((10..=20).contains(&files), "{files}");
    assert_eq!(
        sink.status().bytes,
        logs(&directory).iter().map(|path| fs::metadata(path).unwrap().len()).sum::<u64>()
    );
    store.set_down(false);
    store.until(200).await;
    let gone = async {
        while logs(&directory).len() > 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SECONDS, gone).await.unwrap();
    worker.shutdown(SECONDS).await;
    assert_eq!(store.numbers(), (0..200).collect::<Vec<_>>());
}

#[tokio::test]
async fn nobody_gets_a_place_while_the_log_is_full_and_nothing_is_lost() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let limited = options().with_max_bytes(20_000).with_segment_bytes(2000);
    let (sink, worker) = start_with(directory.path(), &store, limited).unwrap();
    let mut acknowledged = 0;
    while sink.is_healthy() {
        record(&sink, vec![event(acknowledged)]).await;
        acknowledged += 1;
    }
    let refused = sink.admit().unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::StoreUnavailable { .. }));
    assert!((15..60).contains(&acknowledged), "{acknowledged}");
    let bytes = sink.status().bytes;
    assert!((20_000..30_000).contains(&bytes), "{bytes}");
    store.set_down(false);
    store.until(acknowledged as usize).await;
    let healthy = async {
        while !sink.is_healthy() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SECONDS, healthy).await.unwrap();
    record(&sink, events(acknowledged..acknowledged + 5)).await;
    worker.shutdown(SECONDS).await;
    assert_eq!(store.numbers(), (0..acknowledged + 5).collect::<Vec<_>>());
}

#[tokio::test]
async fn events_of_calls_under_way_wait_in_the_queue_while_the_log_is_full() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let (sink, worker) = start_with(directory.path(), &store, options().with_max_bytes(900)).unwrap();
    let slots: Vec<_> = (0..50).map(|_| sink.admit().unwrap()).collect();
    let mut next = 50;
    while sink.is_healthy() {
        record(&sink, vec![event(next)]).await;
        next += 1;
    }
    let tickets: Vec<_> =
        slots.into_iter().zip(0..).map(|(slot, number)| slot.record_with_ticket(event(number))).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(sink.pending(), 50);
    store.set_down(false);
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.unlogged, report.log.events), (0, 0), "{report:?}");
    for ticket in tickets {
        assert!(ticket.await);
    }
    assert_eq!(store.numbers(), (50..next).chain(0..50).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_store_that_panics_is_offered_again_what_is_in_the_log() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    store.0.lock().unwrap().panics = true;
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..3)).await;
    let told = async {
        while sink.status().last_error.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SECONDS, told).await.unwrap();
    assert_eq!(sink.status().last_error.as_deref(), Some("the store panicked"));
    assert!(sink.is_healthy(), "the log takes more");
    store.0.lock().unwrap().panics = false;
    assert_eq!(worker.shutdown(SECONDS).await.log.forwarded, 3);
    // One of those behind may have been tried first, to see whether it is the store.
    let mut numbers = store.numbers();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
}

// ===== files that are not as they should be =====

/// Twelve events in one file, not passed on.
async fn written(directory: &Directory) -> PathBuf {
    let store = Elsewhere::down();
    let (sink, worker) = start(directory, &store);
    record(&sink, events(0..12)).await;
    crash(worker, sink).await;
    logs(directory).remove(0)
}

/// Starts over what is there, and says what has arrived.
async fn replayed(directory: &Directory) -> (Vec<u64>, llm_layers::usage::OutboxReport) {
    let store = Elsewhere::default();
    let (_sink, worker) = start(directory, &store);
    let report = worker.shutdown(SECONDS).await;
    (store.numbers(), report)
}

#[tokio::test]
async fn a_file_that_is_cut_off_anywhere_gives_all_that_is_whole_before_the_cut() {
    let directory = Directory::new();
    let whole = fs::read(written(&directory).await).unwrap();
    let name = "00000000000000000001.log";
    let mut before = 0;
    for cut in (0..whole.len()).filter(|cut| cut % 7 == 0 || *cut < 50) {
        let directory = Directory::new();
        fs::write(directory.join(name), &whole[..cut]).unwrap();
        let (numbers, report) = replayed(&directory).await;
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>(), "at {cut}");
        assert!(numbers.len() == before || numbers.len() == before + 1, "at {cut}");
        before = numbers.len();
        let is_torn = report.log.torn == 1;
        assert_eq!((report.log.damages, count_of(&directory, ".bad")), (0, usize::from(is_torn)), "at {cut}");
    }
    assert_eq!(before, 11);
}

#[tokio::test]
async fn a_damaged_record_is_skipped_and_counted_and_its_file_is_kept() {
    let directory = Directory::new();
    let whole = fs::read(written(&directory).await).unwrap();
    for time in 0..60 {
        let directory = Directory::new();
        let mut damaged = whole.clone();
        let last = whole.len() - 1;
        let at = if time == 0 { last } else { fastrand::usize(32..last) };
        damaged[at] ^= 1 << fastrand::u8(..8);
        fs::write(directory.join("00000000000000000001.log"), &damaged).unwrap();
        let (numbers, report) = replayed(&directory).await;
        assert_eq!(numbers.len(), 11, "byte {at} of {}", whole.len());
        let in_order: Vec<_> = (0..12).filter(|number| numbers.contains(number)).collect();
        assert_eq!(numbers, in_order);
        assert_eq!(report.log.damages + report.log.torn, 1);
        // Only of a length that is damaged nobody knows whether the end is missing.
        assert!(at < last || report.log.damages == 1, "nothing is missing");
        assert_eq!((count_of(&directory, ".bad"), count_of(&directory, ".log")), (1, 0));
        let kept = fs::read(directory.join("00000000000000000001.log.bad")).unwrap();
        assert!(kept == damaged, "not a byte of it was changed");
    }
}

#[tokio::test]
async fn what_is_cut_off_or_damaged_while_it_waits_is_counted_and_its_file_is_kept() {
    // By one call of the system each: the file is read meanwhile.
    type Damage = fn(&Path, &[u8]) -> std::io::Result<()>;
    let cases: [(Damage, _); 4] = [
        (|path, bytes| open(path).set_len(bytes.len() as u64 - 9), 11..12),
        (|path, _| open(path).set_len(0), 0..12),
        (
            |path, bytes| open(path).write_all_at(&[bytes[bytes.len() - 10] ^ 1], bytes.len() as u64 - 10),
            11..12,
        ),
        (|path, _| fs::remove_file(path), 0..12),
    ];
    for (damage, lost) in cases {
        let (directory, store) = (Directory::new(), Elsewhere::down());
        let (sink, worker) = start(&directory, &store);
        record(&sink, events(0..12)).await;
        let path = logs(&directory).remove(0);
        let bytes = fs::read(&path).unwrap();
        damage(&path, &bytes).unwrap();
        let is_there = path.exists();
        record(&sink, events(12..15)).await;
        // What was read before is offered no more: fewer than ten are at once.
        let offered = store.0.lock().unwrap().offered;
        store.until_so(|contents| contents.offered >= offered + 20).await;
        store.set_down(false);
        let report = worker.shutdown(SECONDS).await;
        let mut numbers = store.numbers();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..15).filter(|number| !lost.contains(number)).collect::<Vec<_>>());
        let OutboxStatus { events, damages, bytes, .. } = report.log;
        assert_eq!((events, damages, bytes, report.unlogged), (0, lost.end - lost.start, 0, 0));
        assert_eq!((count_of(&directory, ".bad"), count_of(&directory, ".log")), (usize::from(is_there), 0));
    }
}

fn open(path: &Path) -> fs::File {
    fs::File::options().write(true).open(path).unwrap()
}

#[tokio::test]
async fn a_directory_that_is_moved_away_has_lost_nothing_and_goes_on_when_it_is_back() {
    let (directory, store) = (Directory::new(), Elsewhere::down());
    let (here, there) = (directory.join("outbox"), directory.join("moved"));
    let (sink, worker) = start_with(&here, &store, options()).unwrap();
    record(&sink, events(0..12)).await;
    fs::rename(&here, &there).unwrap();
    let noticed = async {
        while !sink.status().last_error.is_some_and(|error| error.contains("cannot be opened")) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SECONDS, noticed).await.unwrap();
    store.set_down(false);
    assert_eq!((sink.status().events, sink.status().damages), (12, 0));
    fs::rename(&there, &here).unwrap();
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((store.numbers(), report.log.damages), ((0..12).collect(), 0));
}

#[tokio::test]
async fn a_whole_record_that_nobody_can_read_is_counted_once_and_its_file_is_kept() {
    let directory = Directory::new();
    let path = written(&directory).await;
    let mut bytes = fs::read(&path).unwrap();
    let body = br#"{"departments":["#;
    let length = (body.len() as u32).to_le_bytes();
    let sum = crc32(&[&length[..], body].concat()).to_le_bytes();
    let _ = bytes.splice(32..32, [&length[..], &sum, body].concat());
    fs::write(&path, &bytes).unwrap();
    let store = Elsewhere::down();
    let (_sink, worker) = start(&directory, &store);
    // Again and again, from the same place.
    store.until_so(|contents| contents.offered >= 40).await;
    store.set_down(false);
    let report = worker.shutdown(SECONDS).await;
    assert_eq!(store.numbers(), (0..12).collect::<Vec<_>>());
    assert_eq!((report.log.events, report.log.damages, report.log.torn), (0, 1, 0));
    assert!(fs::read(path.with_extension("log.bad")).unwrap() == bytes);
}

#[tokio::test]
async fn a_new_file_comes_behind_all_that_wait_or_were_kept_aside() {
    let directory = Directory::new();
    let first = written(&directory).await;
    fs::write(directory.join("00000000000000000007.log.bad"), "kept").unwrap();
    let (sink, worker) = start(&directory, &Elsewhere::down());
    assert_eq!(logs(&directory), [first, directory.join("00000000000000000008.log")]);
    crash(worker, sink).await;
}

#[tokio::test]
async fn what_was_kept_aside_is_never_overwritten() {
    let directory = Directory::new();
    for count in 1..=3 {
        let path = written(&directory).await;
        let mut damaged = fs::read(&path).unwrap();
        damaged[100] ^= 1;
        fs::write(&path, damaged).unwrap();
        replayed(&directory).await;
        assert_eq!((count_of(&directory, ".bad"), count_of(&directory, ".log")), (count, 0));
    }
}

#[tokio::test]
async fn a_directory_that_is_removed_takes_nothing_more() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..3)).await;
    store.until(3).await;
    fs::remove_dir_all(directory.path()).unwrap();
    fs::create_dir(directory.path()).unwrap();
    let ticket = sink.admit().unwrap().record_with_ticket(event(3));
    assert!(tokio::time::timeout(Duration::from_millis(300), ticket).await.is_err());
    assert!(!sink.is_healthy() && sink.admit().is_err());
    let report = worker.shutdown(Duration::from_millis(100)).await;
    assert_eq!((report.unlogged, store.numbers()), (1, vec![0, 1, 2]));
    assert!(report.last_error.as_ref().is_some_and(|error| error.contains("removed")), "{report:?}");
}

#[tokio::test]
async fn what_another_keeps_in_a_directory_that_was_removed_is_left_alone() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..3)).await;
    store.until(3).await;
    fs::remove_dir_all(directory.path()).unwrap();
    let another = Elsewhere::down();
    let (others_sink, others_worker) = start(&directory, &another);
    record(&others_sink, events(10..13)).await;
    worker.shutdown(Duration::from_millis(300)).await;
    crash(others_worker, others_sink).await;
    assert_eq!(replayed(&directory).await.0, [10, 11, 12]);
    assert_eq!(store.numbers(), [0, 1, 2]);
    drop(sink);
}

#[tokio::test]
async fn what_is_no_log_of_ours_or_of_a_newer_version_is_refused_by_name_and_left_alone() {
    let whole = fs::read(written(&Directory::new()).await);
    drop(whole);
    let directory = Directory::new();
    let whole = fs::read(written(&directory).await).unwrap();
    let with_sum = |mut head: Vec<u8>| {
        let sum = crc32(&head[..28]);
        head[28..32].copy_from_slice(&sum.to_le_bytes());
        head
    };
    let mut newer = whole.clone();
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let mut damaged = whole.clone();
    damaged[15] ^= 1;
    let cases = [
        (with_sum(newer), OutboxErrorKind::Newer { found: 2, known: 1 }),
        (damaged, OutboxErrorKind::Foreign),
        (b"2026-11-23 something else entirely, with a long line of text".to_vec(), OutboxErrorKind::Foreign),
        (b"short".to_vec(), OutboxErrorKind::Foreign),
    ];
    for (bytes, kind) in cases {
        let directory = Directory::new();
        let (good, bad) =
            (directory.join("00000000000000000001.log"), directory.join("00000000000000000002.log"));
        fs::write(&good, &whole).unwrap();
        fs::write(&bad, &bytes).unwrap();
        let store = Elsewhere::default();
        let error = start_with(directory.path(), &store, options()).unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.path(), bad);
        assert!(error.to_string().contains("00000000000000000002.log"), "{error}");
        assert!(fs::read(&bad).unwrap() == bytes && fs::read(&good).unwrap() == whole);
        assert_eq!((logs(&directory).len(), store.numbers().len()), (2, 0));
        // Moved away, the rest goes on.
        fs::rename(&bad, directory.join("aside")).unwrap();
        assert_eq!(replayed(&directory).await.0.len(), 12);
    }
}

/// As in the format, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[tokio::test]
async fn two_processes_do_not_share_a_log() {
    let (directory, store) = (Directory::new(), Elsewhere::default());
    let (sink, worker) = start(&directory, &store);
    let error = start_with(directory.path(), &store, options()).unwrap_err();
    assert_eq!((error.kind(), error.path()), (OutboxErrorKind::InUse, directory.path()));
    record(&sink, events(0..3)).await;
    worker.shutdown(SECONDS).await;
    drop(sink);
    assert_eq!(store.numbers(), [0, 1, 2]);
    start_with(directory.path(), &store, options()).unwrap().1.shutdown(SECONDS).await;
}

#[test]
fn a_directory_that_cannot_be_one_is_named() {
    let directory = Directory::new();
    fs::write(directory.join("file"), "").unwrap();
    for path in [directory.join("file"), directory.join("file/below"), "/proc/none/of/it".into()] {
        let error = start_with(&path, &Elsewhere::default(), options()).unwrap_err();
        assert_eq!(error.kind(), OutboxErrorKind::Unreachable, "{error}");
        assert!(error.path().starts_with(&path) || path.starts_with(error.path()), "{error}");
    }
}

// ===== a disk that is full =====

const FULL: &str = "LLM_LAYERS_OUTBOX_FULL";

/// Does nothing unless it is the child, which may write files of 8 KiB at most.
#[test]
fn child() {
    let Ok(directory) = std::env::var(FULL) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Elsewhere::down();
        let (sink, worker) = start_with(Path::new(&directory), &store, options()).unwrap();
        let mut acknowledged = 0;
        // A group that does not fit any more goes into the next file; one that is larger than any file cannot be written.
        for number in 0..60 {
            record(&sink, vec![event(number)]).await;
            acknowledged += 1;
        }
        let mut large = event(1000);
        large.model = "x".repeat(10_000).into();
        let ticket = sink.admit().unwrap().record_with_ticket(large);
        assert!(tokio::time::timeout(Duration::from_millis(300), ticket).await.is_err());
        assert!(!sink.is_healthy() && sink.admit().is_err());
        let report = worker.shutdown(Duration::from_millis(100)).await;
        assert_eq!(report.unlogged, 1);
        println!("acknowledged {acknowledged}, {}", report.last_error.unwrap());
    });
}

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged_and_what_was_is_there() {
    let directory = Directory::new();
    let program = std::env::current_exe().unwrap();
    let output = Command::new("bash")
        // Without the signal, a write beyond the limit is an error. In blocks of 1024 bytes.
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact child --nocapture"])
        .arg(program)
        .env(FULL, directory.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("acknowledged 60,") && text.contains("no room for more on the disk"), "{text}");
    assert!(logs(&directory).len() > 3);
    let (numbers, report) = replayed(&directory).await;
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
    assert_eq!((report.log.damages, report.log.torn), (0, 0), "what was there in part is gone");
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn what_reaches_no_store_is_told_once_by_the_name_of_its_file() {
    let told = all_that_is_told();
    let (directory, store) = (Directory::new(), Elsewhere::default());
    store.0.lock().unwrap().refused = vec![3, 5, 8];
    store.0.lock().unwrap().says_so = true;
    let (sink, worker) = start(&directory, &store);
    record(&sink, events(0..12)).await;
    assert_eq!(worker.shutdown(SECONDS).await.log.refused, 3);
    // Each in a file of its own: found at the start, or while it waits; and a record that nobody can read.
    let found = Directory::new();
    let path = written(&found).await;
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    replayed(&found).await;
    let (waits, store) = (Directory::new(), Elsewhere::down());
    let (sink, worker) = start(&waits, &store);
    record(&sink, events(0..12)).await;
    fs::remove_file(logs(&waits).remove(0)).unwrap();
    record(&sink, events(12..15)).await;
    // What was read before is offered no more: fewer than ten are at once.
    let offered = store.0.lock().unwrap().offered;
    store.until_so(|contents| contents.offered >= offered + 20).await;
    store.set_down(false);
    assert!(worker.shutdown(SECONDS).await.log.damages > 0);
    let told = told.text();
    for (directory, what) in [
        (&directory, "usage was refused for ever, and is kept aside"),
        (&found, "usage in the outbox is damaged, and left out"),
        (&waits, "usage in the outbox is damaged, and left out"),
    ] {
        let name = directory.path().display().to_string();
        let lines: Vec<_> = told.lines().filter(|line| line.contains(&name) && line.contains(what)).collect();
        assert_eq!(lines.len(), 1, "{what}: {told}");
        assert!(lines[0].contains("ERROR"), "{}", lines[0]);
    }
}
