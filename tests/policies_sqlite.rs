//! Policies in a table of SQLite that somebody edits: seen soon, whole, and not at all if a cell is wrong.

use llm_layers::{
    policies::{
        BadPolicies, BadPolicy, DepartmentPolicy, Policies, PolicySource, PolicyTable, SqlitePolicies,
    },
    price::NanoUsd,
    quota::{Limits, QuotaFileErrorKind, SqliteOptions, SqliteStore},
};
use proptest::{collection::btree_map, collection::vec, option, prelude::*};
use rusqlite::Connection;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// A directory that goes with the test.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name =
            format!("llm-layers-policies-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn db(&self) -> PathBuf {
        self.0.join("policies.db")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn edit(path: &Path, sql: &str) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection.execute_batch(sql).unwrap();
}

fn bad(source: &mut SqlitePolicies) -> Vec<BadPolicy> {
    let error = source.read().unwrap_err();
    assert!(error.to_string().contains("policies.db"), "{error}");
    error.downcast_ref::<BadPolicies>().unwrap().cells().to_vec()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn what_is_in_the_table_is_read_and_only_when_it_has_changed() {
    let directory = Directory::new();
    let mut source = SqlitePolicies::open(directory.db()).unwrap();
    assert_eq!(source.read().unwrap(), Some(PolicyTable::default()), "a new file limits nobody");
    assert_eq!(source.read().unwrap(), None);
    edit(
        &directory.db(),
        r#"
        BEGIN;
        INSERT INTO policies (department, day_requests, month_tokens, day_cost, month_cost, models, note) VALUES
            ('research', 100, 9007199254740993, '0.000000001', 250, '["openai/*", "acme/one"]', 'asked for by Ada');
        INSERT INTO policies (department, models) VALUES ('nobody', '[]');
        INSERT INTO policies (department, month_requests, day_tokens) VALUES ('O''Brien 研究', 0, 9223372036854775807);
        UPDATE default_policy SET day_cost = '12.50', models = '["acme/*"]';
        COMMIT;
        "#,
    );
    let table = source.read().unwrap().unwrap();
    assert_eq!(source.read().unwrap(), None);
    let limits = Limits::new()
        .with_day_requests(100)
        .with_month_tokens((1 << 53) + 1)
        .with_day_cost(NanoUsd::new(1))
        .with_month_cost(NanoUsd::new(250_000_000_000));
    let otherwise = DepartmentPolicy::new(Limits::new().with_day_cost(NanoUsd::new(12_500_000_000)));
    let expected = PolicyTable::new(otherwise.with_models(["acme/*"]))
        .with("research", DepartmentPolicy::new(limits).with_models(["openai/*", "acme/one"]))
        .with("nobody", DepartmentPolicy::default().with_models([""; 0]))
        .with(
            "O'Brien 研究",
            DepartmentPolicy::new(Limits::new().with_month_requests(0).with_day_tokens(i64::MAX as u64)),
        );
    assert_eq!(table, expected);
    assert!(!table.of("nobody").allows("acme/one"));
    assert!(table.of("somebody").allows("acme/two") && !table.of("somebody").allows("openai/gpt-4o"));

    // What was not committed is not seen, and what was taken back never was.
    let writer = Connection::open(directory.db()).unwrap();
    writer.execute_batch("BEGIN; DELETE FROM policies").unwrap();
    assert_eq!(source.read().unwrap(), None);
    writer.execute_batch("ROLLBACK").unwrap();
    assert_eq!(source.read().unwrap(), None);
}

fn limits() -> impl Strategy<Value = [Option<i64>; 6]> {
    let limit = option::of(prop_oneof![
        Just(0),
        Just(i64::MAX),
        0..1_000_000_i64,
        any::<i64>().prop_map(|n| n & i64::MAX)
    ]);
    proptest::array::uniform6(limit)
}

fn policy(limits: &[Option<i64>; 6], models: Option<&Vec<String>>) -> DepartmentPolicy {
    let [a, b, c, d, e, f] = *limits;
    let mut of = Limits::new();
    let count = |limit: Option<i64>| limit.map(|limit| limit as u64);
    (of.day_requests, of.month_requests, of.day_tokens, of.month_tokens) =
        (count(a), count(b), count(c), count(d));
    (of.day_cost, of.month_cost) = (e.map(NanoUsd::new), f.map(NanoUsd::new));
    let policy = DepartmentPolicy::new(of);
    match models {
        Some(models) => policy.with_models(models),
        None => policy,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_table_is_read_as_it_was_written(
        departments in btree_map("\\PC{0,9}", (limits(), option::of(vec("[a-z*/,\" ]{0,5}[a-z]", 0..4))), 0..9),
        otherwise in limits(),
    ) {
        let directory = Directory::new();
        let mut source = SqlitePolicies::open(directory.db()).unwrap();
        let mut writer = Connection::open(directory.db()).unwrap();
        let transaction = writer.transaction().unwrap();
        let money = |limit: Option<i64>| limit.map(|limit| NanoUsd::new(limit).to_string());
        let [a, b, c, d, e, f] = otherwise;
        transaction.execute(
            "UPDATE default_policy SET day_requests = ?, month_requests = ?, day_tokens = ?, month_tokens = ?, \
             day_cost = ?, month_cost = ?",
            (a, b, c, d, money(e), money(f)),
        ).unwrap();
        let mut expected = PolicyTable::new(policy(&otherwise, None));
        for (name, (limits, models)) in &departments {
            let [a, b, c, d, e, f] = *limits;
            transaction.execute(
                "INSERT INTO policies VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (name, a, b, c, d, money(e), money(f), models.as_ref().map(|names| serde_json::to_string(names).unwrap())),
            ).unwrap();
            expected = expected.with(name.as_str(), policy(limits, models.as_ref()));
        }
        transaction.commit().unwrap();
        prop_assert_eq!(source.read().unwrap().unwrap(), expected);
    }
}

#[test]
fn a_commit_is_in_force_within_a_second_and_never_in_part() {
    const COMMITS: i64 = 60;
    let directory = Directory::new();
    let policies = Policies::default();
    let source = SqlitePolicies::open(directory.db()).unwrap();
    edit(&directory.db(), "INSERT INTO policies (department, day_tokens) VALUES ('a', 0), ('b', 0)");
    let _follower =
        policies.follow(source, SqlitePolicies::EVERY, |error| panic!("nothing is wrong: {error}")).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let reader = {
        let (policies, is_over) = (policies.clone(), Arc::clone(&is_over));
        thread::spawn(move || {
            let mut seen = BTreeMap::<u64, usize>::new();
            while !is_over.load(Ordering::Acquire) {
                let table = policies.load();
                let [a, b] = ["a", "b"].map(|name| table.of(name).limits.day_tokens.unwrap());
                assert_eq!(a, b, "one of two that were changed at once");
                assert!(seen.last_key_value().is_none_or(|(last, _)| *last <= a), "an older table came back");
                *seen.entry(a).or_default() += 1;
                thread::yield_now();
            }
            seen.len()
        })
    };
    let mut slowest = Duration::ZERO;
    for commit in 1..=COMMITS {
        edit(
            &directory.db(),
            &format!(
                "BEGIN; UPDATE policies SET day_tokens = {commit} WHERE department = 'a'; \
                 UPDATE policies SET day_tokens = {commit} WHERE department = 'b'; COMMIT"
            ),
        );
        if commit % 10 > 0 {
            continue;
        }
        let committed = Instant::now();
        while policies.load().of("a").limits.day_tokens != Some(commit as u64) {
            assert!(committed.elapsed() < SECOND, "not in force after {:?}", committed.elapsed());
            thread::yield_now();
        }
        slowest = slowest.max(committed.elapsed());
    }
    is_over.store(true, Ordering::Release);
    assert!(reader.join().unwrap() >= 6);
    println!("in force after {slowest:?} at most");
}

#[test]
fn a_cell_that_means_nothing_is_named_and_the_old_policies_stay_as_a_whole() {
    let directory = Directory::new();
    let policies = Policies::default();
    let source = SqlitePolicies::open(directory.db()).unwrap();
    edit(&directory.db(), "INSERT INTO policies (department, day_tokens) VALUES ('a', 1), ('b', 1)");
    let errors = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&errors);
    let every = Duration::from_millis(20);
    let _follower = policies.follow(source, every, move |error| told.lock().unwrap().push(error)).unwrap();
    let wait = |until: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !until() {
            assert!(begun.elapsed() < SECOND * 10);
            thread::yield_now();
        }
    };
    let values = [
        ("day_cost", "'-5'", "is negative"),
        ("month_cost", "'many'", "is not a decimal number"),
        ("day_cost", "''", "is empty"),
        ("month_cost", "'0.0000000001'", "more than 9 decimal places"),
        ("month_cost", "'$5'", "has a unit"),
        ("models", "'openai/*'", "is not a list"),
        ("models", "'[1]'", "is not a list"),
        ("models", "'[\" \"]'", "is empty"),
    ];
    for (n, (column, value, reason)) in values.into_iter().enumerate() {
        edit(
            &directory.db(),
            &format!(
                "BEGIN; UPDATE policies SET day_tokens = 99 WHERE department = 'a'; \
                 UPDATE policies SET {column} = {value} WHERE department = 'b'; COMMIT"
            ),
        );
        wait(&|| errors.lock().unwrap().len() > n);
        {
            let errors = errors.lock().unwrap();
            let error = errors[n].downcast_ref::<BadPolicies>().unwrap();
            let [cell] = error.cells() else { panic!("{error}") };
            assert_eq!((cell.department.as_deref(), &*cell.column), (Some("b"), column));
            assert!(cell.reason.contains(reason), "{column} = {value}: {error}");
            assert!(error.to_string().contains(&format!("\"b\" {column}: ")), "{error}");
        }
        // Not even the row that is right.
        let table = policies.load();
        assert_eq!((table.of("a").limits.day_tokens, table.of("b").limits.day_tokens), (Some(1), Some(1)));
        let mended = format!("UPDATE policies SET {column} = NULL, day_tokens = 1, day_requests = {n}");
        edit(&directory.db(), &mended);
        wait(&|| policies.load().of("a").limits.day_requests == Some(n as u64));
    }
    edit(&directory.db(), "UPDATE policies SET day_tokens = 2");
    wait(&|| policies.load().of("b").limits.day_tokens == Some(2));
    assert_eq!(errors.lock().unwrap().len(), values.len(), "each said once");
}

#[test]
fn the_table_itself_refuses_what_it_can() {
    let directory = Directory::new();
    drop(SqlitePolicies::open(directory.db()).unwrap());
    let file = Connection::open(directory.db()).unwrap();
    for value in ["-1", "'many'", "0.5"] {
        let sql = format!("INSERT INTO policies (department, day_tokens) VALUES ('a', {value})");
        assert!(file.execute(&sql, ()).is_err(), "{value}");
    }
    assert!(file.execute("INSERT INTO policies (department) VALUES (NULL)", ()).is_err());
    assert!(file.execute("INSERT INTO default_policy (one) VALUES (2)", ()).is_err());
}

/// Made by hand, without any of the checks.
#[test]
fn tables_without_checks_are_checked_all_the_same() {
    let directory = Directory::new();
    drop(SqlitePolicies::open(directory.db()).unwrap());
    let all = "day_requests, month_requests, day_tokens, month_tokens, day_cost, month_cost, models";
    let remake = |columns: &str, rows: &str| {
        edit(
            &directory.db(),
            &format!(
                "BEGIN; DROP TABLE policies; CREATE TABLE policies (department, {columns}); {rows}; COMMIT"
            ),
        );
    };
    let mut source = SqlitePolicies::open(directory.db()).unwrap();
    remake(
        all,
        "INSERT INTO policies VALUES ('a', -1, 'many', 1.5, x'00', 0.15, 3, NULL), (NULL, 1, 1, 1, 1, 1, 1, '[]')",
    );
    let found = bad(&mut source);
    let found: Vec<_> =
        found.iter().map(|cell| (cell.department.as_deref(), &*cell.column, &*cell.reason)).collect();
    let a = Some("a");
    assert_eq!(
        found,
        [
            (a, "day_requests", "is negative"),
            (a, "month_requests", "is not a whole number"),
            (a, "day_tokens", "is not a whole number"),
            (a, "month_tokens", "is not a whole number"),
            (a, "day_cost", "is not dollars as text"),
            (None, "department", "is not a text"),
        ]
    );
    // A limit that nobody knows would not be kept; a column that has nothing in it does no harm.
    let more = format!("{all}, hour_tokens");
    remake(&more, "INSERT INTO policies (department, hour_tokens) VALUES ('a', NULL), ('b', 5)");
    let [cell] = &bad(&mut source)[..] else { panic!() };
    assert_eq!((cell.department.as_deref(), &*cell.column), (Some("b"), "hour_tokens"));
    remake(&more, "INSERT INTO policies (department, day_tokens) VALUES ('a', 7)");
    assert_eq!(source.read().unwrap().unwrap().of("a").limits.day_tokens, Some(7));
    remake(&all.replace("day_cost, ", ""), "");
    let [cell] = &bad(&mut source)[..] else { panic!() };
    assert_eq!((&*cell.column, &*cell.reason), ("day_cost", "is missing"));
}

#[test]
fn a_file_that_is_exchanged_or_gone_is_noticed() {
    let directory = Directory::new();
    let (path, other) = (directory.db(), directory.0.join("other.db"));
    drop(SqlitePolicies::open(&other).unwrap());
    edit(&other, "INSERT INTO policies (department, day_tokens) VALUES ('a', 5)");
    let mut source = SqlitePolicies::open(&path).unwrap();
    assert!(source.read().unwrap().is_some());
    // The log of the old file is not that of the new one.
    for name in ["policies.db-wal", "policies.db-shm"] {
        let _ = fs::remove_file(directory.0.join(name));
    }
    edit(&other, "PRAGMA wal_checkpoint(truncate)");
    fs::rename(&other, &path).unwrap();
    assert_eq!(source.read().unwrap().unwrap().of("a").limits.day_tokens, Some(5));
    assert_eq!(source.read().unwrap(), None);

    fs::rename(&path, &other).unwrap();
    for _ in 0..2 {
        let error = source.read().unwrap_err();
        assert!(error.to_string().contains("cannot be opened"), "{error}");
        assert!(!path.exists(), "no empty file took its place");
    }
    fs::rename(&other, &path).unwrap();
    assert_eq!(source.read().unwrap().unwrap().of("a").limits.day_tokens, Some(5));
}

#[tokio::test]
async fn bad_files_are_refused_by_name_and_stay_as_they_are() {
    let directory = Directory::new();
    let in_directory = |name: &str| directory.0.join(name);
    let made = |name: &str, sql: &str| {
        edit(&in_directory(name), sql);
        in_directory(name)
    };
    let newer = in_directory("newer.db");
    drop(SqlitePolicies::open(&newer).unwrap());
    edit(&newer, "PRAGMA user_version = 9");
    let counters = in_directory("quota.db");
    assert!(SqliteStore::open(&counters, SqliteOptions::new()).unwrap().shutdown(SECOND * 20).await);
    let text = in_directory("text.db");
    fs::write(&text, "dear diary, ".repeat(500)).unwrap();
    let cases = [
        (newer, QuotaFileErrorKind::Newer { found: 9, known: 1 }),
        (counters, QuotaFileErrorKind::Foreign),
        (made("foreign.db", "CREATE TABLE t (x)"), QuotaFileErrorKind::Foreign),
        (text, QuotaFileErrorKind::Corrupt),
    ];
    for (path, kind) in cases {
        let before = fs::read(&path).unwrap();
        let error = SqlitePolicies::open(&path).unwrap_err();
        assert_eq!(error.kind(), kind, "{}", path.display());
        assert!(error.to_string().contains(&path.display().to_string()), "{error} names no file");
        assert!(fs::read(&path).unwrap() == before, "{} was changed", path.display());
    }
    let error = SqlitePolicies::open(in_directory("none/policies.db")).unwrap_err();
    assert_eq!(error.kind(), QuotaFileErrorKind::Unreachable);
}
