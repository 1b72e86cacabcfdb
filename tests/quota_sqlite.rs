//! The quota store in SQLite: the same as in memory, in files that several processes share, are killed over, lock or
//! find not as they should be.

#[path = "quota_sqlite/clock.rs"]
mod clock;
#[path = "quota/damaged.rs"]
mod damaged;
#[path = "quota/late.rs"]
mod late;
#[path = "quota/leaked.rs"]
mod leaked;
#[path = "quota/past.rs"]
mod past;

use llm_layers::{
    CallId, ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, Policies, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Rates},
    quota::{
        Amount, Applied, Baseline, Calendar, Days, Decision, Delta, Department, Departments, Limits,
        QuotaFileError, QuotaFileErrorKind, QuotaLayer, QuotaStore, Reservation, Settlement, SqliteOptions,
        SqliteStore, Standing, StoreError, WindowName, WorkerOptions, audit, repair,
    },
    testing::{ManualClock, StoreCheck},
    usage::{Durability, LedgerReader, QueueOptions, SqliteLedger, UsageLayer},
};
use rusqlite::Connection;
use std::{
    collections::HashSet,
    error::Error as _,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::Instant;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};

// ===== what all tests need =====

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("llm-layers-quota-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn db(&self) -> PathBuf {
        self.0.join("quota.db")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// 2026-11-23 12:00 UTC.
fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_435_200)
}

/// Where nobody waits but for the machine.
fn patient() -> SqliteOptions {
    SqliteOptions::new().with_durability(Durability::Memory).with_timeout(Duration::from_secs(20))
}

#[tokio::test]
async fn it_is_the_same_as_in_memory() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    StoreCheck::new(store.clone()).with_clock(clock).check().await;
    assert!(store.shutdown(Duration::from_secs(20)).await);
}

// ===== what survives =====

const HOUR: Duration = Duration::from_secs(3600);

fn days(now: SystemTime) -> Days {
    Calendar::utc().days_around(now)
}

fn one(department: &str, limits: Limits) -> Departments {
    Departments::one(Department::new(department, limits))
}

fn tokens(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::ZERO)
}

fn reservation(departments: &Departments, size: u64, now: SystemTime) -> Reservation {
    Reservation::new(CallId::mint(now), departments.clone(), tokens(size), HOUR, days(now))
        .with_on_expiry(tokens(size / 2))
}

async fn reserve(store: &SqliteStore, department: &str, size: u64, now: SystemTime) -> CallId {
    let reservation = reservation(&one(department, Limits::new()), size, now);
    let decision = store.reserve(&reservation).await.unwrap();
    assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
    reservation.id
}

async fn standing(store: &SqliteStore, department: &str, now: SystemTime) -> Standing {
    store.usage(&department.into(), &days(now)).await.unwrap()
}

/// Tokens settled and reserved in the day.
async fn in_day(store: &SqliteStore, department: &str, now: SystemTime) -> (u64, u64) {
    let day = standing(store, department, now).await.in_day;
    (day.settled.tokens, day.reserved.tokens)
}

fn kind(error: &StoreError) -> QuotaFileErrorKind {
    error.source().unwrap().downcast_ref::<QuotaFileError>().unwrap().kind()
}

fn count(path: &Path, what: &str) -> i64 {
    let sql = format!("SELECT {what}");
    Connection::open(path).unwrap().query_row(&sql, (), |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_settlement_says_for_each_department_what_it_did_there() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock)).unwrap();
    let both = ["a", "b"].map(|name| Department::new(name, Limits::new())).into_iter().collect();
    let settlement = Settlement::new(reserve(&store, "b", 60, noon()).await, both, tokens(30));
    assert_eq!(store.settle_each(&settlement).await.unwrap(), [Applied::Duplicate, Applied::First]);
    assert_eq!(store.settle_each(&settlement).await.unwrap(), [Applied::Duplicate; 2]);
    assert_eq!((in_day(&store, "a", noon()).await, in_day(&store, "b", noon()).await), ((0, 0), (30, 0)));
}

#[tokio::test]
async fn counters_and_leases_are_there_after_a_restart() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let open = || SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    let first = open();
    let (settled, open_lease) =
        (reserve(&first, "a", 100, noon()).await, reserve(&first, "a", 40, noon()).await);
    let departments = one("a", Limits::new());
    first.settle(&Settlement::new(settled, departments.clone(), tokens(70))).await.unwrap();
    assert!(first.shutdown(HOUR).await);
    let error = first.usage(&"a".into(), &days(noon())).await.unwrap_err();
    assert_eq!(kind(&error), QuotaFileErrorKind::Closed);
    assert!(!error.is_ambiguous());

    let second = open();
    assert_eq!(in_day(&second, "a", noon()).await, (70, 40));
    assert!(standing(&second, "a", noon()).await.is_known);
    clock.advance(HOUR);
    assert_eq!(in_day(&second, "a", noon()).await, (90, 0), "it expired while nobody was there");
    let late = Settlement::new(open_lease, departments, tokens(30));
    assert_eq!(second.settle(&late).await.unwrap(), Applied::TrueUp);
    assert_eq!(in_day(&second, "a", noon()).await, (100, 0));
}

#[tokio::test]
async fn a_clock_that_goes_back_stands_still() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let open = || SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    let store = open();
    reserve(&store, "a", 100, noon()).await;
    let yesterday = noon() - 24 * HOUR;
    clock.set(yesterday);
    reserve(&store, "a", 10, noon()).await;
    let day = standing(&store, "a", noon()).await;
    assert_eq!((day.day.date, day.in_day.reserved.tokens), (20_261_123, 110), "not the day before");
    assert!(store.shutdown(HOUR).await);

    // Nor for another process.
    let store = open();
    assert_eq!(in_day(&store, "a", noon()).await, (0, 110));
    // Days that are around a clock that is wrong have none that is meant.
    let error = store.usage(&"a".into(), &days(noon() - 72 * HOUR)).await.unwrap_err();
    assert!(matches!(error, StoreError::OffCalendar { now } if now == noon()), "{error:?}");
    // What was taken while it stood still expires an hour after the time at which it did.
    clock.set(noon() + HOUR);
    assert_eq!(in_day(&store, "a", noon()).await, (55, 0));

    // Who knows that it was ahead by mistake sets it back by hand.
    clock.set(yesterday);
    Connection::open(directory.db()).unwrap().execute("UPDATE clock SET now = 0", ()).unwrap();
    assert_eq!(standing(&store, "a", yesterday).await.day.date, 20_261_122);
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_is_not_is_kept() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    for day in 0..200_u32 {
        let now = clock.now();
        let department = format!("of day {day}");
        for n in 0..4 {
            let id = reserve(&store, &department, 10, now).await;
            if n > 0 {
                store.settle(&Settlement::new(id, one(&department, Limits::new()), tokens(7))).await.unwrap();
            }
            // A tombstone of a department that is never heard of again.
            store.release(CallId::mint(now), &one(&format!("ghost {day} {n}"), Limits::new())).await.unwrap();
        }
        reserve(&store, "always", 10, now).await;
        clock.advance(24 * HOUR);
    }
    let file = directory.db();
    let (days, accounts) = (
        count(&file, "count(DISTINCT window) FROM counters WHERE period = 'day'"),
        count(&file, "count(*) FROM accounts"),
    );
    assert!((62..90).contains(&days), "{days} days");
    assert!((62..220).contains(&accounts), "{accounts} departments of {}", 200 * 5 + 1);
    let months = count(&file, "count(DISTINCT window) FROM counters WHERE period = 'month'");
    assert!((3..=5).contains(&months), "{months} months");
    assert!(count(&file, "count(*) FROM leases") < 150);
    let reserved = count(&file, "count(*) FROM leases WHERE state = 'reserved'");
    assert!((1..30).contains(&reserved), "{reserved} of 400 are not settled yet");
    // The one that expired unheard of was charged.
    let last_month = noon() + 170 * 24 * HOUR;
    let day = Calendar::utc().day(last_month);
    let used = store.usage(&"of day 170".into(), &Days::only(day)).await.unwrap();
    assert_eq!((used.in_day.settled.tokens, used.in_day.reserved.tokens), (3 * 7 + 5, 0));
}

#[tokio::test]
async fn one_department_that_is_damaged_does_not_keep_others_from_theirs() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let now = SystemClock.now();
    let both = Departments::new(["a", "b"].map(|name| Department::new(name, Limits::new())));
    let held = reservation(&both, 10, now);
    assert!(matches!(store.reserve(&held).await.unwrap(), Decision::Granted(_)));
    let file = Connection::open(directory.db()).unwrap();
    file.execute_batch(
        "PRAGMA ignore_check_constraints = on; UPDATE counters SET settled_tokens = -1 \
         WHERE account = (SELECT seq FROM accounts WHERE department = 'b')",
    )
    .unwrap();
    // In one group.
    file.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (of_both, of_a) = (reservation(&both, 10, now), reservation(&one("a", Limits::new()), 5, now));
    let settled = store.settle(&Settlement::new(held.id, both.clone(), tokens(7)));
    let (of_both, of_a) = (store.reserve(&of_both), store.reserve(&of_a));
    file.execute_batch("COMMIT").unwrap();
    for error in [settled.await.unwrap_err(), of_both.await.unwrap_err()] {
        assert_eq!((kind(&error), error.is_ambiguous()), (QuotaFileErrorKind::Damaged, false));
    }
    assert!(matches!(of_a.await.unwrap(), Decision::Granted(_)));
    // What was settled before it came to the damage was taken back.
    assert_eq!(in_day(&store, "a", now).await, (0, 15));
}

#[tokio::test]
async fn a_damaged_department_is_refused_and_no_other() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    damaged::is_nobody_elses(store, || {
        let file = Connection::open(directory.db()).unwrap();
        let lie = "PRAGMA ignore_check_constraints = on; UPDATE counters SET settled_tokens = -1 \
                   WHERE account = (SELECT seq FROM accounts WHERE department = 'broken')";
        file.execute_batch(lie).unwrap();
    })
    .await;
}

#[tokio::test]
async fn what_a_damaged_department_has_left_overdue_keeps_nobody_from_anything() {
    let directory = Directory::new();
    let clock = ManualClock::new(noon());
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    for department in ["broken", "of broken leases", "gone"] {
        for _ in 0..40 {
            reserve(&store, department, 10, noon()).await;
        }
    }
    let file = Connection::open(directory.db()).unwrap();
    file.execute_batch(
        "PRAGMA ignore_check_constraints = on; \
         UPDATE counters SET settled_tokens = -1 WHERE account = (SELECT seq FROM accounts WHERE department = 'broken'); \
         UPDATE leases SET tokens = -1 WHERE account = (SELECT seq FROM accounts WHERE department = 'of broken leases')",
    )
    .unwrap();
    clock.advance(8 * 24 * HOUR);
    let now = clock.now();
    for _ in 0..64 * 8 {
        reserve(&store, "sound", 10, now).await;
    }
    // Those of others end all the same.
    let left =
        "count(*) FROM leases JOIN accounts ON seq = account WHERE state = 'reserved' AND department = ";
    assert_eq!(count(&directory.db(), &format!("{left}'gone'")), 0);
    assert_eq!(count(&directory.db(), &format!("{left}'broken'")), 40);
    let error = store.usage(&"broken".into(), &days(now)).await.unwrap_err();
    assert_eq!(kind(&error), QuotaFileErrorKind::Damaged);
}

// ===== somebody else has the file =====

#[tokio::test(start_paused = true)]
async fn a_locked_file_is_said_in_time_and_what_was_given_up_is_never_done() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), SqliteOptions::new().with_timeout(TIMEOUT)).unwrap();
    let now = SystemClock.now();
    let other = Connection::open(directory.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let departments = one("a", Limits::new());
    let ask = || store.reserve(&reservation(&departments, 10, now));
    let dropped: Vec<_> = (0..50).map(|_| ask()).collect();
    // Its thread, for which no time stands still, has to meet the lock first; then it waits for those above.
    for tries in 0.. {
        if kind(&ask().await.unwrap_err()) == QuotaFileErrorKind::Locked {
            break;
        }
        assert!(tries < 10_000, "it is not said that the file is locked");
        std::thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    let asked: Vec<_> = (0..50).map(|_| tokio::spawn(ask())).collect();
    for (n, decision) in asked.into_iter().enumerate() {
        let error = decision.await.unwrap().unwrap_err();
        assert!(!error.is_ambiguous(), "{n}: {error:?}");
        assert_eq!(kind(&error), QuotaFileErrorKind::Locked);
        assert!(error.source().unwrap().to_string().contains("quota.db"));
    }
    assert!(begun.elapsed() < TIMEOUT * 11 / 10, "{:?}", begun.elapsed());
    tokio::time::resume();
    drop(dropped);
    other.execute_batch("COMMIT").unwrap();
    // Without a restart, and nothing of what was refused has been done.
    reserve(&store, "a", 7, now).await;
    assert_eq!(in_day(&store, "a", now).await, (0, 7));
    assert_eq!(count(&directory.db(), "count(*) FROM leases"), 1);
}

/// A clock that tells that it is asked, and says what time it is as soon as nobody holds it any more.
#[derive(Debug)]
struct Held(mpsc::Sender<()>, Mutex<mpsc::Receiver<()>>);

impl Clock for Held {
    fn now(&self) -> SystemTime {
        let _ = self.0.send(());
        let _ = self.1.lock().unwrap().recv();
        SystemClock.now()
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_begun_and_did_not_end_in_time_may_have_been_done() {
    let directory = Directory::new();
    let ((asks, is_asked), (holds, held)) = (mpsc::channel(), mpsc::channel());
    let options = SqliteOptions::new().with_clock(Held(asks, Mutex::new(held)));
    let store = SqliteStore::open(directory.db(), options).unwrap();
    let now = SystemClock.now();
    let reserved = store.reserve(&reservation(&one("a", Limits::new()), 10, now));
    // The thread has begun.
    is_asked.recv().unwrap();
    let error = reserved.await.unwrap_err();
    assert!(error.is_ambiguous() && kind(&error) == QuotaFileErrorKind::Slow, "{error:?}");
    tokio::time::resume();
    drop(holds);
    assert_eq!(in_day(&store, "a", now).await, (0, 10));
}

#[tokio::test]
async fn a_file_that_is_removed_is_made_anew_for_all_who_share_it() {
    let directory = Directory::new();
    let stores = [(); 2].map(|()| SqliteStore::open(directory.db(), patient()).unwrap());
    let now = SystemClock.now();
    for store in &stores {
        reserve(store, "a", 10, now).await;
    }
    for name in ["quota.db", "quota.db-wal", "quota.db-shm"] {
        fs::remove_file(directory.0.join(name)).unwrap();
    }
    let needs_seed = reservation(&one("a", Limits::new()), 10, now).with_needs_seed(true);
    let error = stores[0].reserve(&needs_seed).await.unwrap_err();
    assert!(matches!(error, StoreError::Unseeded { .. }), "{error:?}");
    // Neither counts by itself in what is gone.
    for store in &stores {
        reserve(store, "a", 10, now).await;
    }
    for store in &stores {
        assert_eq!(in_day(store, "a", now).await, (0, 20));
    }
    for store in &stores {
        assert!(store.shutdown(HOUR).await);
    }
    assert_eq!(count(&directory.db(), "count(*) FROM leases"), 2);

    // What takes its place and is something else is refused.
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    fs::rename(directory.db(), directory.0.join("away.db")).unwrap();
    fs::write(directory.db(), "dear diary, ".repeat(500)).unwrap();
    let error = store.usage(&"a".into(), &days(now)).await.unwrap_err();
    assert_eq!((kind(&error), error.is_ambiguous()), (QuotaFileErrorKind::Corrupt, false));
    fs::rename(directory.0.join("away.db"), directory.db()).unwrap();
    assert_eq!(in_day(&store, "a", now).await, (0, 20));
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_at_once() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient().with_capacity(8).with_group(4)).unwrap();
    let other = Connection::open(directory.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let now = SystemClock.now();
    let departments = one("a", Limits::new());
    let asked: Vec<_> = (0..100).map(|_| store.reserve(&reservation(&departments, 10, now))).collect();
    let (mut refused, mut waiting) = (0, Vec::new());
    for decision in asked {
        match decision.now() {
            Ok(decision) => {
                let error = decision.unwrap_err();
                assert_eq!((kind(&error), error.is_ambiguous()), (QuotaFileErrorKind::Crowded, false));
                refused += 1;
            }
            Err(waits) => waiting.push(waits),
        }
    }
    assert!((100 - 8 - 4..100 - 8 + 1).contains(&refused), "{refused}");
    other.execute_batch("COMMIT").unwrap();
    let granted = waiting.len() as u64;
    for decision in waiting {
        assert!(matches!(decision.await.unwrap(), Decision::Granted(_)));
    }
    assert_eq!(in_day(&store, "a", now).await, (0, granted * 10));
}

#[tokio::test]
async fn shutdown_does_what_was_asked_for_and_gives_up_in_time() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient().with_group(4)).unwrap();
    let now = SystemClock.now();
    let departments = one("a", Limits::new());
    let asked: Vec<_> = (0..50).map(|_| store.reserve(&reservation(&departments, 10, now))).collect();
    assert!(store.shutdown(HOUR).await);
    for decision in asked {
        assert!(matches!(decision.await.unwrap(), Decision::Granted(_)));
    }
    assert!(!directory.0.join("quota.db-wal").exists(), "the log was put into the file");

    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let other = Connection::open(directory.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let asked = store.reserve(&reservation(&departments, 10, now));
    let begun = Instant::now();
    assert!(!store.shutdown(Duration::from_millis(100)).await);
    // Far less than it is patient for.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let error = asked.await.unwrap_err();
    assert!(!error.is_ambiguous(), "{error:?}");
    other.execute_batch("COMMIT").unwrap();
    assert_eq!(count(&directory.db(), "count(*) FROM leases"), 50);
}

// ===== files that are not as they should be =====

fn refused(path: &Path) -> QuotaFileErrorKind {
    let error = SqliteStore::open(path, SqliteOptions::new()).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error} names no file");
    error.kind()
}

#[tokio::test]
async fn bad_files_are_refused_by_name_and_stay_as_they_are() {
    let directory = Directory::new();
    let in_directory = |name: &str| directory.0.join(name);
    let made = |name: &str, sql: &str| {
        let path = in_directory(name);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path
    };
    let newer = in_directory("newer.db");
    assert!(SqliteStore::open(&newer, SqliteOptions::new()).unwrap().shutdown(HOUR).await);
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let ledger = in_directory("ledger.db");
    drop(llm_layers::usage::SqliteLedger::open(&ledger, Durability::Memory).unwrap());
    let text = in_directory("text.db");
    fs::write(&text, "dear diary, ".repeat(500)).unwrap();
    let cases = [
        (newer, QuotaFileErrorKind::Newer { found: 9, known: 2 }),
        (ledger, QuotaFileErrorKind::Foreign),
        (made("foreign.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)"), QuotaFileErrorKind::Foreign),
        (text, QuotaFileErrorKind::Corrupt),
    ];
    for (path, kind) in cases {
        let before = fs::read(&path).unwrap();
        assert_eq!(refused(&path), kind, "{}", path.display());
        assert!(fs::read(&path).unwrap() == before, "{} was changed", path.display());
    }
    assert_eq!(refused(&directory.0), QuotaFileErrorKind::Unreachable);
    assert_eq!(refused(&in_directory("none/quota.db")), QuotaFileErrorKind::Unreachable);
    let locked = made("locked.db", "");
    let other = Connection::open(&locked).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    assert_eq!(refused(&locked), QuotaFileErrorKind::Locked);
}

#[tokio::test]
async fn of_two_who_seed_at_once_one_does() {
    let directory = Directory::new();
    let stores = [(); 2].map(|()| SqliteStore::open(directory.db(), patient()).unwrap());
    let now = SystemClock.now();
    let day = Calendar::utc().day(now);
    for n in 0..50 {
        let department: Arc<str> = format!("d{n}").into();
        let baseline = Baseline::new(day, tokens(3), tokens(5));
        let [a, b] = [&stores[0], &stores[1]].map(|store| tokio::spawn(store.seed(&department, &baseline)));
        assert!(a.await.unwrap().unwrap() != b.await.unwrap().unwrap());
        let standing = standing(&stores[n % 2], &department, now).await;
        assert_eq!((standing.in_day.settled.tokens, standing.in_month.settled.tokens), (3, 5));
    }
}

// ===== with a ledger =====

/// Makes calls of 70 tokens and 210 micro-dollars each, counted in one file and recorded in another.
async fn make_calls(directory: &Directory, calls: usize) {
    let path = directory.0.join("usage.db");
    let (sink, ledger) = SqliteLedger::start(&path, Durability::Kill, QueueOptions::default()).unwrap();
    let prices =
        PriceBook::of("ours", [("acme/one", Price::new(Rates::per_million("3", "3").unwrap()))]).unwrap();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_month_requests(1000)));
    let (quota, worker) =
        QuotaLayer::pair(store.clone(), Policies::new(policies), prices.clone(), WorkerOptions::default());
    let quota =
        quota.with_history(LedgerReader::open(&path).await.unwrap()).with_deadline(Duration::from_secs(20));
    let provider = service_fn(|request: LlmRequest| async move {
        request.progress.mark_dispatched();
        Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(40, 30))))
    });
    let service = ServiceBuilder::new().layer(quota).layer(UsageLayer::new(sink, prices)).service(provider);
    for _ in 0..calls {
        let body = ChatBody::builder().user("Hello").set("max_tokens", 50).build().unwrap();
        let context = RequestContext::new().with_departments(["research", "sales"]);
        let request = LlmRequest::new("acme/one", body).with_context(context);
        service.clone().oneshot(request).await.unwrap().text().await.unwrap();
    }
    drop(service);
    assert_eq!(worker.shutdown(Duration::from_secs(20)).await.left, 0);
    assert_eq!(ledger.shutdown(Duration::from_secs(20)).await.left, 0);
    assert!(store.shutdown(Duration::from_secs(20)).await);
}

#[tokio::test]
async fn counters_that_are_lost_are_rebuilt_from_the_ledger_once() {
    let directory = Directory::new();
    make_calls(&directory, 5).await;
    for name in ["quota.db", "quota.db-wal", "quota.db-shm"] {
        let _ = fs::remove_file(directory.0.join(name));
    }
    make_calls(&directory, 2).await;
    make_calls(&directory, 1).await;
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let now = SystemClock.now();
    for department in ["research", "sales"] {
        let standing = standing(&store, department, now).await;
        assert!(standing.is_known);
        assert_eq!(standing.in_month.settled, Amount::new(8, 560, NanoUsd::new(1_680_000)));
        assert_eq!(standing.in_month.reserved, Amount::ZERO);
    }
}

#[tokio::test]
async fn an_audit_lists_what_differs_from_the_ledger_and_a_second_repair_does_nothing() {
    let directory = Directory::new();
    make_calls(&directory, 3).await;
    let ledger = LedgerReader::open(directory.0.join("usage.db")).await.unwrap();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let (calendar, now) = (Calendar::utc(), SystemClock.now());
    let look = || audit(&store, &ledger, &calendar, now, ["research", "sales", "nobody"]);
    assert_eq!(look().await.unwrap(), []);

    let file = Connection::open(directory.db()).unwrap();
    file.execute_batch(
        "UPDATE counters SET settled_tokens = settled_tokens + 11, settled_cost = settled_cost - 7 \
         WHERE period = 'month' AND account = (SELECT seq FROM accounts WHERE department = 'sales')",
    )
    .unwrap();
    let drifts = look().await.unwrap();
    let [drift] = &drifts[..] else { panic!("{drifts:?}") };
    assert_eq!((&*drift.department, drift.window), ("sales", WindowName::Month(calendar.day(now).month)));
    assert_eq!(drift.by, Delta { requests: 0, tokens: -11, cost: NanoUsd::new(7) });
    assert_eq!(drift.recorded, Amount::new(3, 210, NanoUsd::new(630_000)));
    assert_eq!(repair(&store, &drifts).await.unwrap(), 1);
    assert_eq!(repair(&store, &drifts).await.unwrap(), 0, "the same correction again");
    assert_eq!(look().await.unwrap(), []);
}

#[tokio::test]
async fn a_past_that_is_not_known_here_is_charged_once_after_a_repair_too() {
    let directory = Directory::new();
    past::is_charged_once(std::sync::Arc::new(SqliteStore::open(directory.db(), patient()).unwrap())).await;
}

#[tokio::test]
async fn a_call_that_is_not_settled_before_its_lease_expires_is_charged_once_after_a_repair_too() {
    let (directory, clock) = (Directory::new(), ManualClock::new(noon()));
    let store = SqliteStore::open(directory.db(), patient().with_clock(clock.clone())).unwrap();
    late::is_charged_once(store, noon(), |by| clock.advance(by)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reserved_for_nobody_is_found_and_given_back_and_nothing_else() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    leaked::is_not_what_calls_hold(store).await;
    let other = Directory::new();
    let store = SqliteStore::open(other.db(), patient()).unwrap();
    leaked::is_found_and_given_back(store, |lease| {
        let file = Connection::open(other.db()).unwrap();
        assert_eq!(file.execute("DELETE FROM leases WHERE id = ?1", (lease.to_bytes(),)).unwrap(), 1);
    })
    .await;
}

// ===== other processes =====

const FILE: &str = "LLM_LAYERS_QUOTA_FILE";

fn child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// A line of its own, whatever the harness has begun; at once: a pipe takes up to 4096 bytes whole or not at all.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// What a child has said, word by word; and a word as soon as it says that it is at work.
fn heard(child: &mut Child) -> (mpsc::Receiver<()>, std::thread::JoinHandle<Vec<Vec<String>>>) {
    let lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let (at_work, is_at_work) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        let lines = lines.map(|line| String::from_utf8(line.unwrap()).unwrap());
        let words = lines.map(|line| {
            if line.starts_with("granted ") {
                let _ = at_work.send(());
            }
            line.split(' ').map(str::to_owned).collect()
        });
        words.collect()
    });
    (is_at_work, thread)
}

const CALLERS: u64 = 100;
const CALLS: u64 = 20;
const LARGEST: u64 = 100;
const LIMIT: u64 = 2 * CALLERS * CALLS * LARGEST / 8;

/// Does nothing unless it is a child.
#[tokio::test]
async fn child_that_shares() {
    let Ok(path) = std::env::var(FILE) else { return };
    let store = SqliteStore::open(path, SqliteOptions::new().with_timeout(Duration::from_secs(20))).unwrap();
    let departments = Departments::new([
        Department::new("shared", Limits::new().with_day_tokens(LIMIT)),
        Department::new("all", Limits::new()),
    ]);
    let mut tasks = Vec::new();
    for caller in 0..CALLERS {
        let (store, departments) = (store.clone(), departments.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(caller ^ u64::from(std::process::id()));
            let (mut used, mut denied) = (0, 0);
            for _ in 0..CALLS {
                let reservation = reservation(&departments, LARGEST, SystemClock.now());
                match store.reserve(&reservation).await.unwrap() {
                    Decision::Granted(_) => {}
                    Decision::Denied(_) => {
                        denied += 1;
                        continue;
                    }
                    Decision::Ended => panic!("a new lease has ended"),
                }
                let truth = random.u64(0..=LARGEST);
                let settlement = Settlement::new(reservation.id, departments.clone(), tokens(truth));
                assert_eq!(store.settle(&settlement).await.unwrap(), Applied::First);
                used += truth;
            }
            (used, denied)
        }));
    }
    let (mut used, mut denied) = (0, 0);
    for task in tasks {
        let (by_one, denied_to_one) = task.await.unwrap();
        used += by_one;
        denied += denied_to_one;
    }
    assert!(store.shutdown(Duration::from_secs(20)).await);
    say(&format!("used {used} {denied}"));
}

#[tokio::test]
async fn two_processes_share_one_limit() {
    let directory = Directory::new();
    let store = SqliteStore::open(directory.db(), patient()).unwrap();
    let mut children =
        [child("child_that_shares", &directory.db()), child("child_that_shares", &directory.db())];
    let heard = children.each_mut().map(heard);
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    let (mut used, mut denied) = (0, 0);
    for words in heard.map(|(_, thread)| thread.join().unwrap()) {
        let [said] = &words.iter().filter(|words| words[0] == "used").collect::<Vec<_>>()[..] else {
            panic!("{words:?}");
        };
        let (by_one, denied_to_one) = (said[1].parse::<u64>().unwrap(), said[2].parse::<u64>().unwrap());
        assert!(by_one > 0, "one of them came to nothing");
        used += by_one;
        denied += denied_to_one;
    }
    let now = SystemClock.now();
    for department in ["shared", "all"] {
        assert_eq!(in_day(&store, department, now).await, (used, 0), "{department}");
    }
    assert!(used <= LIMIT, "{used} of {LIMIT}");
    assert!(denied > 0, "the limit was never reached");
    assert!(used + 2 * CALLERS * LARGEST >= LIMIT, "only {used} of {LIMIT}");
}

const KILLS: usize = 25;
const TASKS: usize = 8;

/// Does nothing unless it is a child.
#[tokio::test]
async fn child_that_is_killed() {
    let Ok(path) = std::env::var(FILE) else { return };
    let store = SqliteStore::open(path, SqliteOptions::new().with_timeout(Duration::from_secs(20))).unwrap();
    let departments = Departments::new(["a", "b"].map(|name| Department::new(name, Limits::new())));
    for _ in 0..TASKS {
        let (store, departments) = (store.clone(), departments.clone());
        tokio::spawn(async move {
            loop {
                let reservation = reservation(&departments, 100, SystemClock.now());
                assert!(matches!(store.reserve(&reservation).await.unwrap(), Decision::Granted(_)));
                say(&format!("granted {}", reservation.id));
                let settlement = Settlement::new(reservation.id, departments.clone(), tokens(70));
                assert_eq!(store.settle(&settlement).await.unwrap(), Applied::First);
                say(&format!("settled {}", reservation.id));
            }
        });
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn after_kills_the_file_is_sound_and_what_was_left_expires() {
    let directory = Directory::new();
    let path = directory.db();
    let (mut granted, mut settled, mut busy) = (HashSet::new(), HashSet::new(), 0);
    for kill in 0..KILLS {
        let before = granted.len();
        let mut child = child("child_that_is_killed", &path);
        let (is_at_work, words) = heard(&mut child);
        // Now and then at any moment, while it opens the file too; but a kill before the first word proves little.
        if kill % 5 > 0 {
            is_at_work.recv_timeout(Duration::from_secs(60)).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..150))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        for line in words.join().unwrap() {
            match &line.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                ["granted", id] if id.len() == 32 => drop(granted.insert((*id).to_owned())),
                ["settled", id] if id.len() == 32 => drop(settled.insert((*id).to_owned())),
                _ => {}
            }
        }
        busy += usize::from(granted.len() > before);
    }
    assert!(busy >= KILLS * 8 / 10, "only {busy} of {KILLS} children came to work");
    let file = Connection::open(&path).unwrap();
    let sound: String = file.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
    assert_eq!(sound, "ok");
    let live = count(&path, "count(*) FROM leases");
    assert!(live > 0 && live <= (2 * KILLS * TASKS) as i64, "{live}");
    let reserved = "coalesce(sum(reserved_tokens), 0) FROM counters WHERE period = 'day'";
    assert_eq!(count(&path, reserved), count(&path, "sum(tokens) FROM leases"));

    let clock = ManualClock::new(SystemClock.now() + HOUR);
    let store = SqliteStore::open(&path, patient().with_clock(clock.clone())).unwrap();
    let day = Days::only(Calendar::utc().day(SystemClock.now()));
    for department in ["a", "b"] {
        let mut usage = store.usage(&department.into(), &day).await.unwrap();
        for _ in 0..KILLS * TASKS {
            usage = store.usage(&department.into(), &day).await.unwrap();
        }
        let Amount { requests, tokens, .. } = usage.in_month.settled;
        assert_eq!(usage.in_month.reserved, Amount::ZERO);
        let (granted, settled) = (granted.len() as u64, settled.len() as u64);
        let in_flight = (KILLS * TASKS) as u64;
        assert!((granted..=granted + in_flight).contains(&requests), "{requests} of {granted}");
        // Each was charged once: 70 if it was settled, or else 50.
        let charged_in_full = (tokens - 50 * requests) / 20;
        assert_eq!(50 * requests + 20 * charged_in_full, tokens);
        assert!(
            (settled..=granted).contains(&charged_in_full),
            "{charged_in_full} of {settled} to {granted}"
        );
    }
    println!("{} granted and {} settled, {KILLS} kills, {live} left", granted.len(), settled.len());
}
