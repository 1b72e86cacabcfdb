//! How many pairs of reserve and settle a file of SQLite takes in a second, and how long one takes.
//!
//! `cargo bench --bench quota_sqlite --features rusqlite`. Limits on tokens and money of each department, over the day and the month;
//! each caller waits for one answer before it asks for the next.

use llm_layers::{
    CallId,
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Amount, Applied, Calendar, Decision, Department, Departments, Limits, QuotaStore, Reservation,
        Settlement, SqliteOptions, SqliteStore,
    },
    usage::Durability,
};
use std::{path::Path, time::Duration};
use tokio::time::Instant;

const TIME: Duration = Duration::from_secs(2);

fn main() {
    let directory = std::env::temp_dir().join(format!("llm-layers-bench-quota-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    println!(
        "{:<12}{:>12}{:>14}{:>14}{:>14}{:>14}{:>14}",
        "survives", "callers", "departments", "pairs/s", "median us", "99 % us", "slowest us"
    );
    for level in [Durability::Memory, Durability::Kill, Durability::PowerLoss] {
        for callers in [1, 16, 200] {
            for departments in [1, 3] {
                row(&directory, level, callers, departments);
            }
        }
    }
    std::fs::remove_dir_all(&directory).expect("removed");
}

fn row(directory: &Path, level: Durability, callers: usize, departments: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let options = SqliteOptions::new().with_durability(level).with_timeout(Duration::from_secs(20));
    let path = directory.join(format!("{level:?}-{callers}-{departments}.db"));
    let store = SqliteStore::open(path, options).expect("a store");
    let limits = Limits::new()
        .with_day_tokens(u64::MAX)
        .with_month_tokens(u64::MAX)
        .with_day_cost(NanoUsd::MAX)
        .with_month_cost(NanoUsd::MAX);
    let departments_of_all: Departments =
        (0..departments).map(|n| Department::new(format!("d{n}"), limits)).collect();
    let (mut nanos, took) = runtime.block_on(async {
        let begun = Instant::now();
        let callers: Vec<_> = (0..callers)
            .map(|_| tokio::spawn(calls(store.clone(), departments_of_all.clone(), begun + TIME)))
            .collect();
        let mut nanos = Vec::new();
        for caller in callers {
            nanos.extend(caller.await.expect("no panic"));
        }
        let took = begun.elapsed();
        assert!(store.shutdown(Duration::from_secs(20)).await);
        (nanos, took)
    });
    nanos.sort_unstable();
    let at = |part: f64| nanos[((nanos.len() - 1) as f64 * part) as usize] / 1000;
    println!(
        "{:<12}{callers:>12}{departments:>14}{:>14.0}{:>14}{:>14}{:>14}",
        format!("{level:?}"),
        nanos.len() as f64 / took.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

async fn calls(store: SqliteStore, departments: Departments, until: Instant) -> Vec<u64> {
    let mut nanos = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        let now = SystemClock.now();
        let amount = Amount::new(1, 1000, NanoUsd::new(1_000_000));
        let (lease, days) = (Duration::from_secs(120), Calendar::utc().days_around(now));
        let reservation = Reservation::new(CallId::mint(now), departments.clone(), amount, lease, days);
        let Decision::Granted(grant) = store.reserve(&reservation).await.expect("an answer") else {
            panic!("there is room");
        };
        let truth = Amount::new(1, 300, NanoUsd::new(300_000));
        let settlement = Settlement::new(grant.id, departments.clone(), truth);
        assert_eq!(store.settle(&settlement).await.expect("an answer"), Applied::First);
        nanos.push(begun.elapsed().as_nanos() as u64);
    }
    nanos
}
