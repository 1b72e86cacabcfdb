//! The ledger in SQLite: against the model in memory, replayed, and on files that are not as they should be.

use futures_util::FutureExt as _;
use llm_layers::{
    CacheStatus, Certainty, ChatBody, Error, ErrorClass, ErrorKind, LlmRequest, RequestContext, TokenUsage,
    clock::Clock,
    fallback::Backoff,
    price::{Cost, NanoUsd, Price, PriceBook, Prices, Rates, ServiceTier},
    provider::Echo,
    quota::{Calendar, HistoryQuery, UsageHistory, Used},
    testing::{Reply, Scripted, Step},
    usage::{
        DepartmentSums, Durability, EventId, GroupBy, LedgerError, LedgerErrorKind, LedgerReader, MemorySink,
        Outcome, QueueOptions, QueueSink, Saved, SqliteLedger, UsageEvent, UsageGroup, UsageLayer,
        UsageQuery, UsageSink, UsageStore, UsageTotals, Window, Worker, department_sums, totals, totals_by,
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use rusqlite::Connection;
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tower::{Layer, Service, ServiceExt};

// ===== what all tests need =====

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("llm-layers-ledger-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn db(&self) -> PathBuf {
        self.0.join("usage.db")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Events can only be made by the layer: this makes one, and the rest is set from outside.
fn blank() -> UsageEvent {
    static BLANK: std::sync::OnceLock<UsageEvent> = std::sync::OnceLock::new();
    let made = BLANK.get_or_init(|| {
        let sink = MemorySink::new(1);
        let service = UsageLayer::new(sink.clone(), Prices::default()).layer(Echo::new());
        service.oneshot(request("p/m")).now_or_never().unwrap().unwrap();
        sink.take().remove(0)
    });
    made.clone()
}

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Is anybody there?").build().unwrap())
}

fn event(number: u128) -> UsageEvent {
    let mut event = blank();
    event.id = EventId::from_bytes(number.to_be_bytes());
    event
}

fn ledger(path: &Path) -> SqliteLedger {
    SqliteLedger::open(path, Durability::Memory).unwrap()
}

fn rows(path: &Path, table: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM {table}");
    Connection::open(path).unwrap().query_row(&sql, (), |row| row.get(0)).unwrap()
}

fn all() -> UsageQuery {
    UsageQuery::new()
}

fn start(path: &Path) -> (QueueSink, Worker) {
    let soon = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    SqliteLedger::start(path, Durability::Kill, QueueOptions::default().with_backoff(soon)).unwrap()
}

const SECONDS: Duration = Duration::from_secs(20);

// ===== against the model =====

const NAMES: [&str; 6] = ["a", "O'Brien\"; DROP TABLE events; --", "", "研究 🦀", "%_?1", "nul\0inside"];
const OUTCOMES: [Outcome; 6] =
    [Outcome::Ok, Outcome::Empty, Outcome::Error, Outcome::Aborted, Outcome::CacheHit, Outcome::Coalesced];
const GROUPS: [GroupBy; 9] = [
    GroupBy::Agent,
    GroupBy::User,
    GroupBy::Tenant,
    GroupBy::Model,
    GroupBy::Provider,
    GroupBy::TaskType,
    GroupBy::Outcome,
    GroupBy::Day,
    GroupBy::Month,
];

fn name() -> impl Strategy<Value = &'static str> {
    select(&NAMES[..])
}

/// Around three ends of months, the beginning of 1970 among them.
fn time() -> impl Strategy<Value = SystemTime> {
    const HOUR: i64 = 3_600_000_000_000;
    let near = select(&[0_i64, 1_709_251_200_000_000_000, 1_767_225_600_000_000_000][..]);
    (near, select(&[-49 * HOUR, -24 * HOUR, -1, 0, 1, 24 * HOUR, 800 * HOUR][..])).prop_map(|(near, by)| {
        let at = near + by;
        let nanos = Duration::from_nanos(at.unsigned_abs());
        if at < 0 { UNIX_EPOCH - nanos } else { UNIX_EPOCH + nanos }
    })
}

fn context() -> impl Strategy<Value = RequestContext> {
    let names = || option::of(name());
    (vec(name(), 0..4), names(), names(), names(), names()).prop_map(
        |(departments, user, tenant, agent, task)| {
            let mut context = RequestContext::new().with_departments(departments).with_request_id("r");
            if let Some(user) = user {
                context = context.with_user_id(user);
            }
            if let Some(tenant) = tenant {
                context = context.with_tenant_id(tenant);
            }
            if let Some(agent) = agent {
                context = context.with_agent_name(agent);
            }
            if let Some(task) = task {
                context = context.with_task_type(task);
            }
            context
        },
    )
}

fn usage() -> impl Strategy<Value = TokenUsage> {
    let tokens = || option::of(prop_oneof![0..2_000_u64, Just(1 << 53), Just(u64::MAX)]);
    let certainty = select(&[Certainty::Exact, Certainty::Estimated, Certainty::Unknown][..]);
    (tokens(), tokens(), tokens(), tokens(), tokens(), tokens(), certainty).prop_map(
        |(input, output, read, write, hour, reasoning, certainty)| {
            let mut usage = TokenUsage::new(0, 0).with_certainty(certainty);
            (usage.input_tokens, usage.output_tokens) = (input, output);
            (usage.cache_read_tokens, usage.cache_write_tokens) = (read, write);
            (usage.cache_write_1h_tokens, usage.reasoning_tokens) = (hour, reasoning);
            usage
        },
    )
}

fn cost() -> impl Strategy<Value = Cost> {
    let amount = prop_oneof![0..5_000_000_i64, Just(i64::MAX / 30)];
    option::of(amount).prop_map(|amount| {
        let mut cost = Cost::unpriced();
        cost.amount = amount.map(NanoUsd::new);
        cost
    })
}

fn events() -> impl Strategy<Value = Vec<UsageEvent>> {
    let saved = option::of((usage(), cost()));
    let who = (context(), name(), option::of(name()), time(), select(&OUTCOMES[..]));
    vec((who, usage(), cost(), saved, 0..4_u64), 0..24).prop_map(|events| {
        let events = events.into_iter().enumerate();
        let event =
            |(number, ((context, model, provider, ended_at, outcome), usage, cost, saved, seconds))| {
                let mut event = event(number as u128);
                (event.context, event.model) = (context, <&str>::into(model));
                event.provider = Option::<&str>::map(provider, Into::into);
                (event.ended_at, event.outcome, event.usage, event.cost) = (ended_at, outcome, usage, cost);
                event.saved =
                    Option::<(TokenUsage, Cost)>::map(saved, |(usage, cost)| Box::new(Saved { usage, cost }));
                event.latency = Duration::from_secs(seconds);
                event
            };
        events.map(event).collect()
    })
}

fn query() -> impl Strategy<Value = UsageQuery> {
    let names = || option::weighted(0.15, name());
    let who = (names(), names(), names(), names());
    let what = (names(), names(), names(), option::weighted(0.15, select(&OUTCOMES[..])));
    let when = (option::weighted(0.3, time()), option::weighted(0.3, time()));
    (who, what, when).prop_map(
        |((agent, user, tenant, department), (model, provider, task, outcome), (from, until))| {
            let mut query = UsageQuery::new();
            type With = fn(UsageQuery, &'static str) -> UsageQuery;
            let filters: [(With, Option<&'static str>); 7] = [
                (UsageQuery::with_agent, agent),
                (UsageQuery::with_user, user),
                (UsageQuery::with_tenant, tenant),
                (UsageQuery::with_department, department),
                (UsageQuery::with_model, model),
                (UsageQuery::with_provider, provider),
                (UsageQuery::with_task_type, task),
            ];
            for (with, value) in filters {
                if let Some(value) = value {
                    query = with(query, value);
                }
            }
            if let Some(outcome) = outcome {
                query = query.with_outcome(outcome);
            }
            if let Some(from) = from {
                query = query.from(from);
            }
            if let Some(until) = until {
                query = query.until(until);
            }
            query
        },
    )
}

type Answers = (UsageTotals, Vec<UsageGroup>, Vec<DepartmentSums>);

async fn asked(path: &Path, query: &UsageQuery, groups: &[GroupBy]) -> Answers {
    let reader = LedgerReader::open(path).await.unwrap();
    (
        reader.totals(query).await.unwrap(),
        reader.totals_by(query, groups).await.unwrap(),
        reader.department_sums(query, groups).await.unwrap(),
    )
}

fn model(events: &[UsageEvent], query: &UsageQuery, groups: &[GroupBy]) -> Answers {
    (
        totals(events, query).unwrap(),
        totals_by(events, query, groups).unwrap(),
        department_sums(events, query, groups).unwrap(),
    )
}

/// A query of what another one tells.
fn retold(query: &UsageQuery) -> UsageQuery {
    type With = fn(UsageQuery, &str) -> UsageQuery;
    let filters: [(With, Option<&str>); 7] = [
        (|query, name| query.with_agent(name), query.agent()),
        (|query, name| query.with_user(name), query.user()),
        (|query, name| query.with_tenant(name), query.tenant()),
        (|query, name| query.with_department(name), query.department()),
        (|query, name| query.with_model(name), query.model()),
        (|query, name| query.with_provider(name), query.provider()),
        (|query, name| query.with_task_type(name), query.task_type()),
    ];
    let told = filters.into_iter().fold(UsageQuery::new(), |told, (with, name)| match name {
        Some(name) => with(told, name),
        None => told,
    });
    let told = query.outcome().into_iter().fold(told, UsageQuery::with_outcome);
    let told = query.since().into_iter().fold(told, UsageQuery::from);
    query.before().into_iter().fold(told, UsageQuery::until)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_ledger_of_somebody_elses_can_be_asked_the_same(
        events in events(),
        query in query(),
        groups in vec(select(&GROUPS[..]), 0..4),
    ) {
        prop_assert_eq!(&retold(&query), &query);
        let mut counted = BTreeMap::<Vec<Option<Box<str>>>, Vec<UsageEvent>>::new();
        for event in events.iter().filter(|event| query.matches(event)) {
            let key = groups.iter().map(|group| group.key_of(event)).collect();
            counted.entry(key).or_default().push(event.clone());
        }
        let all = |events: &[UsageEvent]| totals(events, &all()).unwrap();
        let counted = counted.into_iter().map(|(key, events)| UsageGroup::new(key, all(&events)));
        prop_assert_eq!(counted.collect::<Vec<_>>(), totals_by(&events, &query, &groups).unwrap());
    }

    #[test]
    fn seed_23_sqlite_answers_as_the_model_does(
        events in events(),
        queries in vec((query(), vec(select(&GROUPS[..]), 0..4)), 1..6),
    ) {
        let directory = Directory::new();
        let path = directory.db();
        let mut ledger = ledger(&path);
        for group in events.chunks(7) {
            ledger.write(group).unwrap();
        }
        runtime().block_on(async {
            for (query, groups) in &queries {
                prop_assert_eq!(asked(&path, query, groups).await, model(&events, query, groups));
            }
            Ok(())
        })?;
    }

    #[test]
    fn seed_21_what_is_delivered_again_changes_nothing(
        events in events(),
        deliveries in vec((0..24_usize, 0..24_usize), 0..8),
    ) {
        let directory = Directory::new();
        let path = directory.db();
        let mut first = ledger(&path);
        first.write(&events).unwrap();
        for (from, to) in deliveries {
            let to = to.min(events.len());
            first.write(&events[from.min(to)..to]).unwrap();
        }
        // Also by another process, later.
        drop(first);
        ledger(&path).write(&events).unwrap();
        let groups = [GroupBy::Day, GroupBy::Model];
        let found = runtime().block_on(asked(&path, &all(), &groups));
        prop_assert_eq!(found, model(&events, &all(), &groups));
        prop_assert_eq!(rows(&path, "events"), events.len() as i64);
    }

    #[test]
    fn seed_21_parts_sum_to_the_whole(events in events(), groups in vec(select(&GROUPS[..]), 0..4)) {
        let whole = totals(&events, &all()).unwrap();
        let parts = totals_by(&events, &all(), &groups).unwrap();
        prop_assert_eq!(parts.iter().map(|part| part.totals.calls).sum::<u64>(), whole.calls);
        prop_assert_eq!(parts.iter().map(|part| part.totals.input_tokens).sum::<u128>(), whole.input_tokens);
        let cost = parts.iter().map(|part| part.totals.cost);
        prop_assert_eq!(NanoUsd::checked_sum(cost), Some(whole.cost));
        let charged: usize = events.iter().map(|event| event.context.department_ids().len().max(1)).sum();
        let sums = department_sums(&events, &all(), &groups).unwrap();
        prop_assert_eq!(sums.iter().map(|sum| sum.sums.calls).sum::<u64>(), charged as u64);
    }
}

#[tokio::test]
async fn a_cost_that_does_not_fit_is_an_error_and_not_a_wrong_sum() {
    let directory = Directory::new();
    let dear = |number| {
        let mut event = event(number);
        event.cost.amount = Some(NanoUsd::MAX);
        event
    };
    ledger(&directory.db()).write(&[dear(1), dear(2)]).unwrap();
    let reader = LedgerReader::open(directory.db()).await.unwrap();
    let error = reader.totals(&all()).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::Overflow);
    assert_eq!(totals(&[dear(1), dear(2)], &all()), None);
    // Nothing is wrong with those that fit.
    assert_eq!(reader.totals(&all().with_agent("nobody")).await.unwrap().calls, 0);
}

#[tokio::test]
async fn a_reader_tells_of_no_more_groups_than_it_is_asked_to() {
    let directory = Directory::new();
    let days = |day: u64| {
        let mut event = event(day.into());
        event.ended_at = UNIX_EPOCH + Duration::from_secs(day * 24 * 3600);
        event.context = RequestContext::new().with_departments([format!("d{}", day % 3)]);
        event
    };
    ledger(&directory.db()).write(&(0..59).map(days).collect::<Vec<_>>()).unwrap();
    let reader = LedgerReader::open(directory.db()).await.unwrap();
    let two = reader.clone().with_most_groups(2);
    assert_eq!(two.totals(&all()).await.unwrap().calls, 59);
    // Of 59 days are two months.
    assert_eq!(two.totals_by(&all(), &[GroupBy::Month]).await.unwrap().len(), 2);
    let error = two.totals_by(&all(), &[GroupBy::Day]).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::TooManyGroups);
    let error = two.department_sums(&all(), &[]).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::TooManyGroups);
    assert_eq!(reader.totals_by(&all(), &[GroupBy::Day]).await.unwrap().len(), 59);
}

#[test]
fn every_field_is_in_its_column() {
    let directory = Directory::new();
    let path = directory.db();
    let mut event = event(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
    event.ended_at = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_001);
    event.context = RequestContext::new()
        .with_departments(["d1", "d2"])
        .with_user_id("ada")
        .with_tenant_id("acme")
        .with_agent_name("reviewer")
        .with_task_type("review")
        .with_conversation_id("talk-1")
        .with_request_id("req-1");
    event.requested = "fast".into();
    event.model = "p/m".into();
    event.answered = Some("m-2026".into());
    event.provider = Some("p".into());
    (event.attempt, event.streamed) = (2, true);
    event.lease = Some(EventId::from_bytes(0x100f_0e0d_0c0b_0a09_0807_0605_0403_0201_u128.to_be_bytes()));
    event.usage = TokenUsage::new(10, 20)
        .with_cache_read_tokens(1)
        .with_cache_write_tokens(2)
        .with_cache_write_1h_tokens(3)
        .with_reasoning_tokens(4)
        .with_certainty(Certainty::Estimated);
    let book = PriceBook::of("sheet", [("p/m", Price::new(Rates::per_million("3", "15").unwrap()))]).unwrap();
    let prices = Prices::new(book.with_version("v7"));
    event.cost = prices.cost("p/m", &TokenUsage::new(1000, 0));
    event.saved = Some(Box::new(Saved {
        usage: TokenUsage::new(5, 6).with_cache_read_tokens(7),
        cost: prices.cost("p/m", &TokenUsage::new(0, 1000)),
    }));
    event.assumed_cost = Some(NanoUsd::new(5));
    event.service_tier = Some(ServiceTier::Priority);
    event.latency = Duration::from_nanos(77);
    event.first_content = Some(Duration::from_nanos(33));
    event.outcome = Outcome::CacheHit;
    event.cache = CacheStatus::Hit { age: Duration::from_nanos(9) };
    ledger(&path).write(&[event]).unwrap();

    let connection = Connection::open(&path).unwrap();
    let mut statement = connection.prepare("SELECT * FROM events").unwrap();
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let found: Vec<String> = statement
        .query_row((), |row| {
            Ok(names
                .iter()
                .map(|name| {
                    let value = match row.get_ref_unwrap(&**name) {
                        rusqlite::types::ValueRef::Null => "-".to_owned(),
                        rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                        rusqlite::types::ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                        rusqlite::types::ValueRef::Blob(bytes) => {
                            bytes.iter().map(|b| format!("{b:02x}")).collect()
                        }
                        rusqlite::types::ValueRef::Real(_) => unreachable!("no column is real"),
                    };
                    format!("{name}={value}")
                })
                .collect())
        })
        .unwrap();
    let expected = "seq=1 id=0102030405060708090a0b0c0d0e0f10 ended_at=1700000000000000001 tenant=acme user=ada \
        agent=reviewer task_type=review request_id=req-1 requested=fast model=p/m answered=m-2026 provider=p attempt=2 \
        streamed=1 input_tokens=10 output_tokens=20 cache_read_tokens=1 cache_write_tokens=2 cache_write_1h_tokens=3 \
        reasoning_tokens=4 certainty=estimated cost=3000000 price_entry=p/m price_source=sheet price_version=v7 latency=77 \
        first_content=33 outcome=cache_hit cache=hit cache_age=9 saved_input_tokens=5 saved_output_tokens=6 \
        saved_cache_read_tokens=7 saved_cache_write_tokens=- saved_cache_write_1h_tokens=- saved_reasoning_tokens=- \
        saved_certainty=exact saved_cost=15000000 saved_price_entry=p/m saved_price_source=sheet saved_price_version=v7 cache_reason=- conversation=talk-1 \
        lease=100f0e0d0c0b0a090807060504030201 service_tier=priority assumed_cost=5";
    assert_eq!(found, expected.split(' ').collect::<Vec<_>>());
    assert_eq!(rows(&path, "departments"), 2);
}

// ===== files that are not as they should be =====

fn refused(path: &Path) -> LedgerErrorKind {
    let error = SqliteLedger::open(path, Durability::Kill).unwrap_err();
    assert!(error.to_string().contains(&path.display().to_string()), "{error} names no file");
    error.kind()
}

#[test]
fn bad_files_are_refused_by_name_and_stay_as_they_are() {
    let directory = Directory::new();
    let in_directory = |name: &str| directory.0.join(name);
    let made = |name: &str, sql: &str| {
        let path = in_directory(name);
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        path
    };
    let newer = in_directory("newer.db");
    drop(ledger(&newer));
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 6).unwrap();
    let text = in_directory("text.db");
    fs::write(&text, "dear diary, ".repeat(500)).unwrap();
    let torn = in_directory("torn.db");
    {
        let mut ledger = ledger(&torn);
        let events: Vec<_> = (0..500).map(event).collect();
        ledger.write(&events).unwrap();
    }
    let mut bytes = fs::read(&torn).unwrap();
    bytes.truncate(4096 + 100);
    fs::write(&torn, bytes).unwrap();
    let cases = [
        (newer, LedgerErrorKind::Newer { found: 6, known: 5 }),
        (made("foreign.db", "CREATE TABLE t (x); INSERT INTO t VALUES (1)"), LedgerErrorKind::Foreign),
        (made("versioned.db", "PRAGMA user_version = 1"), LedgerErrorKind::Foreign),
        (text, LedgerErrorKind::Corrupt),
        (torn, LedgerErrorKind::Corrupt),
    ];
    for (path, kind) in cases {
        let before = fs::read(&path).unwrap();
        assert_eq!(refused(&path), kind, "{}", path.display());
        assert!(fs::read(&path).unwrap() == before, "{} was changed", path.display());
    }
    assert_eq!(refused(&directory.0), LedgerErrorKind::Unreachable);
    assert_eq!(refused(&in_directory("none/usage.db")), LedgerErrorKind::Unreachable);
}

#[tokio::test]
async fn a_file_of_the_first_version_is_read_and_brought_up_to_date() {
    let directory = Directory::new();
    let path = directory.db();
    Connection::open(&path).unwrap().execute_batch(include_str!("data/usage-version-1.sql")).unwrap();
    let noon = UNIX_EPOCH + Duration::from_secs(1_795_435_200);
    let query = |department| {
        let query = all().with_department(department);
        [query.clone(), query.from(noon + Duration::from_secs(4 * 86_400))]
    };
    let calls = async |reader: &LedgerReader| {
        let mut found = Vec::new();
        for query in ["research", "sales", "O'Brien", "nobody"].into_iter().flat_map(query) {
            let calls = reader.totals(&query).await.unwrap().calls;
            let sums = reader.department_sums(&query, &[]).await.unwrap();
            assert_eq!(sums.iter().map(|row| row.sums.calls).sum::<u64>(), calls);
            found.push(calls);
        }
        found
    };
    let expected = [6, 4, 3, 2, 3, 2, 0, 0];
    let old_reader = LedgerReader::open(&path).await.unwrap();
    assert_eq!(calls(&old_reader).await, expected, "read as it is");
    let version = |connection: &Connection| -> i64 {
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
    };
    assert_eq!(version(&Connection::open(&path).unwrap()), 1, "reading changes nothing");

    let mut ledger = ledger(&path);
    let connection = Connection::open(&path).unwrap();
    assert_eq!(version(&connection), 5);
    let untimed = "SELECT count(*) FROM departments JOIN events ON seq = event \
                   WHERE departments.ended_at <> events.ended_at";
    assert_eq!(connection.query_row(untimed, (), |row| row.get::<_, i64>(0)).unwrap(), 0);
    assert_eq!((rows(&path, "events"), rows(&path, "departments")), (12, 12));
    // Those that were written by the old version are not written again.
    let mut more = event(0);
    more.context = RequestContext::new().with_departments(["research"]);
    let mut new = more.clone();
    (new.id, new.ended_at) = (EventId::from_bytes([9; 16]), noon + Duration::from_secs(5 * 86_400));
    ledger.write(&[more, new]).unwrap();
    let expected = [7, 5, 3, 2, 3, 2, 0, 0];
    assert_eq!(calls(&old_reader).await, expected, "by one who opened it before");
    assert_eq!(calls(&LedgerReader::open(&path).await.unwrap()).await, expected);
}

#[tokio::test]
async fn a_reader_makes_no_file_and_refuses_what_is_no_ledger() {
    let directory = Directory::new();
    let error = LedgerReader::open(directory.db()).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::Unreachable);
    assert!(!directory.db().exists());
    fs::write(directory.db(), "").unwrap();
    assert_eq!(LedgerReader::open(directory.db()).await.unwrap_err().kind(), LedgerErrorKind::Foreign);
    fs::write(directory.db(), "dear diary, ".repeat(500)).unwrap();
    let error = LedgerReader::open(directory.db()).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::Corrupt);
    assert!(matches!(Error::from(error).kind(), ErrorKind::StoreUnavailable { .. }));
    let error = LedgerReader::open(&directory.0).await.unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::Unreachable, "{error}");
}

#[test]
fn names_that_mean_something_to_sqlite_are_files_too() {
    // In one test, because the directory belongs to the whole process.
    let error = SqliteLedger::open("file:usage.db?mode=memory/none/usage.db", Durability::Kill).unwrap_err();
    assert_eq!(error.kind(), LedgerErrorKind::Unreachable);
    assert!(error.path().is_absolute());
    let directory = Directory::new();
    let path = directory.0.join(":memory:");
    ledger(&path).write(&[event(1)]).unwrap();
    assert_eq!(rows(&path, "events"), 1);
}

#[cfg(unix)]
#[test]
fn a_file_that_may_only_be_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let directory = Directory::new();
    drop(ledger(&directory.db()));
    fs::set_permissions(directory.db(), fs::Permissions::from_mode(0o444)).unwrap();
    if fs::OpenOptions::new().append(true).open(directory.db()).is_err() {
        assert_eq!(refused(&directory.db()), LedgerErrorKind::ReadOnly);
        return;
    }
    // Root may write to every file, unless that right is taken away.
    assert!(std::env::var_os("WITHOUT_RIGHTS").is_none(), "the right is still there");
    let test = "a_file_that_may_only_be_read_is_refused";
    let child = std::process::Command::new("setpriv")
        .arg("--bounding-set=-dac_override")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("WITHOUT_RIGHTS", "1")
        .output()
        .expect("setpriv, of util-linux");
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
fn a_file_that_is_locked_for_longer_than_is_waited_is_refused() {
    let directory = Directory::new();
    drop(ledger(&directory.db()));
    let other = Connection::open(directory.db()).unwrap();
    other.pragma_update(None, "locking_mode", "exclusive").unwrap();
    other.execute_batch("BEGIN EXCLUSIVE; DELETE FROM departments; COMMIT").unwrap();
    assert_eq!(refused(&directory.db()), LedgerErrorKind::Locked);
}

/// Gives a file of SQLite another name, with those that belong to it.
#[cfg(unix)]
fn moved(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let with = |path: &Path| format!("{}{end}", path.display());
        let _ = fs::rename(with(from), with(to));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_reader_reads_the_file_that_stands_there_now() {
    let directory = Directory::new();
    let (path, aside) = (directory.db(), directory.0.join("aside.db"));
    ledger(&path).write(&[event(1), event(2)]).unwrap();
    let reader = LedgerReader::open(&path).await.unwrap();
    assert_eq!(reader.totals(&all()).await.unwrap().calls, 2);
    moved(&path, &aside);
    assert_eq!(reader.totals(&all()).await.unwrap_err().kind(), LedgerErrorKind::Unreachable);
    ledger(&path).write(&[event(3)]).unwrap();
    assert_eq!(reader.totals(&all()).await.unwrap().calls, 1);
    assert_eq!(LedgerReader::open(&aside).await.unwrap().totals(&all()).await.unwrap().calls, 2);
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_recorded_while_the_file_is_gone_waits_for_it() {
    let directory = Directory::new();
    let path = directory.db();
    let mut store = ledger(&path);
    store.write(&[event(1)]).unwrap();
    let aside = directory.0.join("aside.db");
    moved(&path, &aside);
    let error = store.write(&[event(2)]).unwrap_err();
    let error = error.downcast::<LedgerError>().unwrap();
    assert_eq!(error.kind(), LedgerErrorKind::Unreachable);
    assert!(!path.exists(), "an empty one would say that nothing was used");
    moved(&aside, &path);
    store.write(&[event(2)]).unwrap();
    assert_eq!(rows(&path, "events"), 2);
    // Another in its place.
    moved(&path, &aside);
    drop(ledger(&path));
    store.write(&[event(3)]).unwrap();
    assert_eq!((rows(&path, "events"), rows(&aside, "events")), (1, 2));
    // Which is no ledger.
    moved(&path, &directory.0.join("third.db"));
    fs::write(&path, "dear diary, ".repeat(500)).unwrap();
    let error = store.write(&[event(4)]).unwrap_err().downcast::<LedgerError>().unwrap();
    assert_eq!(error.kind(), LedgerErrorKind::Corrupt);
    assert!(fs::read(&path).unwrap().starts_with(b"dear diary"));
}

// ===== stores that fail for a while =====

/// Stops a store at each group until it is told to go on, and fails while it is told to.
struct Gated {
    store: SqliteLedger,
    steps: mpsc::Receiver<bool>,
    written: Arc<Mutex<Vec<EventId>>>,
}

impl UsageStore for Gated {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), llm_layers::BoxError> {
        match self.steps.recv() {
            Ok(false) => Err("told to fail".into()),
            Ok(true) | Err(_) => {
                self.store.write(group)?;
                self.written.lock().unwrap().extend(group.iter().map(|event| event.id));
                Ok(())
            }
        }
    }
}

fn gated(
    path: &Path,
    options: QueueOptions,
) -> (QueueSink, Worker, mpsc::Sender<bool>, Arc<Mutex<Vec<EventId>>>) {
    let (go, steps) = mpsc::channel();
    let written = Arc::default();
    let store = Gated { store: ledger(path), steps, written: Arc::clone(&written) };
    let soon = Backoff::new(Duration::ZERO, Duration::ZERO);
    let (sink, worker) = QueueSink::start(store, options.with_backoff(soon)).unwrap();
    (sink, worker, go, written)
}

fn is_unavailable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StoreUnavailable { .. })
}

#[tokio::test]
async fn events_wait_for_a_locked_file_and_are_written_once_it_is_free() {
    let directory = Directory::new();
    let (sink, worker) = start(&directory.db());
    let other = Connection::open(directory.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let tickets: Vec<_> = (0..9).map(|n| sink.admit().unwrap().record_with_ticket(event(n))).collect();
    // Longer than a lock is waited for.
    let mut tries = 0;
    while worker.report().last_error.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tries += 1;
        assert!(tries < 500, "nobody says that the file is locked");
    }
    assert!(!sink.is_healthy());
    let report = worker.report();
    assert_eq!((report.written, report.left), (0, 9));
    let error = report.last_error.unwrap();
    assert!(error.contains("locked") && error.contains("usage.db"), "{error}");
    other.execute_batch("COMMIT").unwrap();
    for ticket in tickets {
        assert!(tokio::time::timeout(SECONDS, ticket).await.unwrap());
    }
    assert!(sink.is_healthy());
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.written, report.left, report.last_error), (9, 0, None));
    assert_eq!(rows(&directory.db(), "events"), 9);
}

#[tokio::test]
async fn a_full_queue_refuses_calls_and_takes_them_again_when_there_is_room() {
    let directory = Directory::new();
    let (sink, worker, go, written) =
        gated(&directory.db(), QueueOptions::default().with_capacity(4).with_group(1));
    let provider = Scripted::new();
    let mut service = UsageLayer::new(sink.clone(), Prices::default()).layer(provider.clone());
    assert!(sink.is_healthy());
    let mut tries = 0;
    let refused = loop {
        match service.ready().await.unwrap().call(request("p/m")).await {
            Ok(_) => tries += 1,
            Err(error) => break error,
        }
        assert!(tries < 10, "the queue has no bound");
    };
    assert!(is_unavailable(&refused), "{refused}");
    assert_eq!(tries, 4);
    assert_eq!(provider.requests().len(), tries);
    assert!(!sink.is_healthy());

    (0..tries).for_each(|_| go.send(true).unwrap());
    while sink.pending() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(sink.is_healthy());
    service.ready().await.unwrap().call(request("p/m")).await.unwrap();
    drop(go);
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.written, report.left), (tries as u64 + 1, 0));
    assert_eq!(written.lock().unwrap().iter().collect::<HashSet<_>>().len(), tries + 1);
    assert_eq!(rows(&directory.db(), "events"), tries as i64 + 1);
}

#[tokio::test]
async fn events_are_gathered_unless_somebody_waits_or_it_is_over() {
    let directory = Directory::new();
    let options = QueueOptions::default().with_linger(Duration::from_secs(3600));
    let (sink, worker) = SqliteLedger::start(directory.db(), Durability::Memory, options).unwrap();
    sink.admit().unwrap().record(event(1));
    for number in 2..9 {
        let ticket = sink.admit().unwrap().record_with_ticket(event(number));
        assert!(tokio::time::timeout(SECONDS, ticket).await.expect("is not waited for"));
    }
    sink.admit().unwrap().record(event(9));
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.written, report.left), (9, 0));
}

#[tokio::test]
async fn a_shutdown_reports_what_it_could_not_write_and_why() {
    let directory = Directory::new();
    let (sink, worker) = start(&directory.db());
    assert!(sink.admit().unwrap().record_with_ticket(event(1)).await);
    let other = Connection::open(directory.db()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    (2..5).for_each(|n| sink.admit().unwrap().record(event(n)));
    let ticket = sink.admit().unwrap().record_with_ticket(event(5));
    // Time enough for one try.
    let report = worker.shutdown(Duration::from_millis(1500)).await;
    assert_eq!((report.written, report.left), (1, 4));
    assert!(report.last_error.unwrap().contains("locked"));
    // Nobody is told that it is safe.
    assert!(!tokio::time::timeout(SECONDS, ticket).await.unwrap());
    assert!(sink.admit().is_err() && !sink.is_healthy());
}

// ===== as the seed, or better =====

#[tokio::test]
async fn seed_21_one_event_for_each_attempt_in_full_to_each_department() {
    let directory = Directory::new();
    let (sink, worker) = start(&directory.db());
    let provider = Scripted::new();
    let prices =
        PriceBook::of("sheet", [("p/m", Price::new(Rates::per_million("1", "2").unwrap()))]).unwrap();
    let usage = TokenUsage::new(1_000, 500);
    let mut service = UsageLayer::new(sink, prices).layer(provider.clone());
    let mut call = async |reply: Reply, departments: &[&str], model: &str| {
        provider.push(reply);
        let mut request = request(model);
        request.context = RequestContext::new()
            .with_departments(departments.iter().copied())
            .with_agent_name("agent")
            .with_user_id("ada");
        let answer = service.ready().await.unwrap().call(request).await;
        if let Ok(answer) = answer {
            let _ = answer.text().await;
        }
    };
    let complete = || Reply::complete(llm_layers::Completion::text("Hi.", usage));
    call(complete(), &["d1", "d2"], "p/m").await;
    call(complete(), &[], "p/m").await;
    // Failed after it was sent; a stream without usage; a stream that breaks.
    call(
        Reply::error(Error::provider(ErrorClass::Unavailable, "p", "m").with_dispatched(true)),
        &["d1"],
        "p/m",
    )
    .await;
    let word = || Step::Chunk(llm_layers::StreamChunk::text("Hello there"));
    call(Reply::stream([word(), Step::Chunk(llm_layers::StreamChunk::end())]), &["d2"], "p/m").await;
    call(Reply::stream([word(), Step::Cut]), &["d2"], "unknown").await;
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.written, report.left), (5, 0));

    let reader = LedgerReader::open(directory.db()).await.unwrap();
    let query = all().with_agent("agent").with_user("ada");
    let whole = reader.totals(&query).await.unwrap();
    assert_eq!((whole.calls, whole.unpriced_calls), (5, 1));
    let priced = reader.totals(&query.clone().with_outcome(Outcome::Ok)).await.unwrap();
    // Missing usage is estimated, not taken for nothing.
    assert_eq!((priced.calls, priced.estimated_calls), (3, 1));
    assert!(priced.input_tokens > 2_000 && priced.output_tokens > 1_000, "{priced:?}");
    let sums = reader.department_sums(&query.with_model("p/m"), &[GroupBy::Outcome]).await.unwrap();
    let calls: Vec<_> = sums
        .iter()
        .map(|sum| (sum.department.as_deref(), sum.key[0].as_deref().unwrap(), sum.sums.calls))
        .collect();
    let expected = [(None, "ok", 1), (Some("d1"), "error", 1), (Some("d1"), "ok", 1), (Some("d2"), "ok", 2)];
    assert_eq!(calls, expected);
    let cost = NanoUsd::new(2_000_000);
    assert_eq!((sums[0].sums.cost, sums[2].sums.cost), (cost, cost));
    assert!(sums[3].sums.cost > cost);
}

#[tokio::test]
async fn seed_22_recording_fails_and_the_answer_is_delivered_and_the_record_kept() {
    let directory = Directory::new();
    let (sink, worker, go, written) = gated(&directory.db(), QueueOptions::default());
    let service = UsageLayer::new(sink.clone(), Prices::default()).layer(Echo::new());
    (0..3).for_each(|_| go.send(false).unwrap());
    let answer = service.oneshot(request("p/m")).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "Is anybody there?");
    while sink.is_healthy() {
        tokio::task::yield_now().await;
    }
    assert_eq!((sink.pending(), rows(&directory.db(), "events")), (1, 0));
    go.send(true).unwrap();
    let report = worker.shutdown(SECONDS).await;
    assert_eq!((report.written, report.left, report.last_error), (1, 0, None));
    assert_eq!(written.lock().unwrap().len(), 1);
    assert_eq!(rows(&directory.db(), "events"), 1);
}

#[tokio::test]
async fn seed_23_queries_by_agent_department_and_time_in_windows_of_utc() {
    let directory = Directory::new();
    let (sink, worker) = start(&directory.db());
    // 2024-02-29 12:00 UTC.
    let noon = UNIX_EPOCH + Duration::from_secs(1_709_208_000);
    let half = Duration::from_secs(12 * 3600);
    // The calls take a moment.
    let minute = Duration::from_secs(60);
    let begins = [noon - half - minute, noon - half, noon, noon + half - minute, noon + half];
    for (begun, agent) in begins.into_iter().zip(["a", "a", "b", "a", "a"]) {
        let service = UsageLayer::new(sink.clone(), Prices::default()).with_clock(begun).layer(Echo::new());
        let mut request = request("p/m");
        request.context = RequestContext::new().with_agent_name(agent).with_departments(["d", agent]);
        service.oneshot(request).await.unwrap();
    }
    assert_eq!(noon.now(), noon);
    assert_eq!(worker.shutdown(SECONDS).await.written, 5);
    let reader = LedgerReader::open(directory.db()).await.unwrap();
    let calls = async |query: UsageQuery| reader.totals(&query).await.unwrap().calls;
    let (day, month) = (Window::day(noon), Window::month(noon));
    assert_eq!(calls(all()).await, 5);
    assert_eq!(calls(all().within(day)).await, 3);
    assert_eq!(calls(all().within(month)).await, 4);
    assert_eq!(calls(all().within(Window::month(noon + half))).await, 1);
    assert_eq!(calls(all().within(day).with_agent("a")).await, 2);
    assert_eq!(calls(all().within(month).with_department("a")).await, 3);
    let by_day = reader.totals_by(&all(), &[GroupBy::Month, GroupBy::Day]).await.unwrap();
    let days: Vec<_> =
        by_day.iter().map(|group| (group.key[1].as_deref().unwrap(), group.totals.calls)).collect();
    assert_eq!(days, [("2024-02-28", 1), ("2024-02-29", 3), ("2024-03-01", 1)]);
    assert_eq!(by_day[2].key[0].as_deref(), Some("2024-03"));
    let sums = reader.department_sums(&all().within(day), &[]).await.unwrap();
    let sums: Vec<_> = sums.iter().map(|sum| (sum.department.as_deref().unwrap(), sum.sums.calls)).collect();
    assert_eq!(sums, [("a", 2), ("b", 1), ("d", 3)]);
}

// ===== who reads what was just recorded =====

/// A call is made, and the ledger is asked at once. Long before its records are due.
fn asked_at_once(directory: &Directory, between: impl FnOnce()) -> (u64, Duration) {
    let options = QueueOptions::default().with_linger(Duration::from_secs(30));
    runtime().block_on(async {
        let (sink, worker) = SqliteLedger::start(directory.db(), Durability::Kill, options).unwrap();
        let reader = LedgerReader::open(directory.db()).await.unwrap().behind(&sink);
        between();
        let service = UsageLayer::new(sink, Prices::default()).layer(Echo::new());
        let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build().unwrap());
        service.oneshot(request).await.unwrap();
        let since = tokio::time::Instant::now();
        let seen = reader.totals(&UsageQuery::new()).await.unwrap().calls;
        assert_eq!(reader.department_sums(&UsageQuery::new(), &[]).await.unwrap().len() as u64, seen);
        let took = since.elapsed();
        drop(worker);
        (seen, took)
    })
}

#[test]
fn seed_23_a_call_that_has_ended_is_in_the_ledger_for_whoever_asks_then() {
    let directory = Directory::new();
    assert_eq!(asked_at_once(&directory, || ()).0, 1);
}

#[test]
fn while_nothing_can_be_written_what_was_written_before_is_told() {
    let directory = Directory::new();
    let path = directory.db();
    let mut lock = None;
    let (seen, took) = asked_at_once(&directory, || {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        lock = Some(connection);
    });
    assert_eq!(seen, 0);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

// ===== questions that take long =====

/// A ledger whose events take minutes to be added up, unless few are meant.
fn endless(path: &Path) {
    drop(ledger(path));
    let slow = "
        ALTER TABLE events RENAME TO empty;
        ALTER TABLE empty DROP COLUMN latency;
        CREATE TABLE events AS SELECT * FROM empty;
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 50000)
        INSERT INTO events (seq, ended_at, model, certainty) SELECT i, 0, 'm', 'exact' FROM n;
        ALTER TABLE events ADD COLUMN latency INTEGER AS (length(hex(zeroblob(1000000 + seq))))";
    Connection::open(path).unwrap().execute_batch(slow).unwrap();
}

#[test]
fn what_departments_have_used_up_is_told_while_others_ask_large_questions() {
    let directory = Directory::new();
    let path = directory.db();
    endless(&path);
    let (runtime, day) = (runtime(), Calendar::utc().day(UNIX_EPOCH));
    let told = runtime.block_on(async {
        let reader = LedgerReader::open(&path).await.unwrap();
        let history = reader.clone();
        let asking: Vec<_> = (0..9)
            .map(|_| {
                let reader = reader.clone().with_most_groups(9);
                tokio::spawn(async move { reader.totals(&all()).await })
            })
            .collect();
        for _ in 0..9 {
            tokio::task::yield_now().await;
        }
        let told =
            tokio::time::timeout(Duration::from_secs(20), history.used(HistoryQuery::new("new", day))).await;
        assert!(asking.iter().all(|one| !one.is_finished()));
        asking.iter().for_each(tokio::task::JoinHandle::abort);
        told
    });
    runtime.shutdown_background();
    assert_eq!(told.expect("it waits for the others").unwrap(), Used::default());
}

#[test]
fn a_question_whose_asker_has_left_keeps_nobody_waiting() {
    let directory = Directory::new();
    let path = directory.db();
    endless(&path);
    let runtime = runtime();
    let asked = runtime.block_on(async {
        let reader = LedgerReader::open(&path).await.unwrap();
        for _ in 0..6 {
            let left = tokio::time::timeout(Duration::from_millis(100), reader.totals(&all())).await;
            assert!(left.is_err(), "it ended by itself");
        }
        let few = all().with_model("another");
        tokio::time::timeout(Duration::from_secs(20), reader.totals(&few)).await
    });
    runtime.shutdown_background();
    assert_eq!(asked.expect("those before have not ended").unwrap().calls, 0);
}
