//! A store of many parts, of which some are away.

use super::*;
use std::{collections::BTreeSet, sync::atomic::AtomicBool};

/// Each department is a part of its own, by its number.
#[derive(Debug, Clone)]
struct Numbered {
    store: MemoryStore,
    away: Arc<Mutex<BTreeSet<u16>>>,
}

impl Numbered {
    fn are_away(&self, parts: impl IntoIterator<Item = u16>) {
        *self.away.lock().unwrap() = parts.into_iter().collect();
    }
}

impl QuotaStore for Numbered {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        let away = self.away.lock().unwrap();
        match reservation.departments.iter().any(|department| away.contains(&self.part(&department.id))) {
            true => StoreFuture::ready(Err(StoreError::definite("connection refused"))),
            false => self.store.reserve(reservation),
        }
    }

    pass_on!([store] extend, settle, release, usage, seed, adjust);

    fn part(&self, department: &str) -> u16 {
        department.parse().unwrap()
    }
}

struct Called {
    store: Numbered,
    layer: QuotaLayer,
    service: Quota<Scripted>,
    worker: Worker,
}

impl Called {
    fn new() -> Self {
        let bench = Bench::new(Limits::new());
        let store = Numbered { store: bench.store, away: Arc::default() };
        let policies = PolicyTable::new(DepartmentPolicy::default());
        let (layer, worker) = QuotaLayer::pair(store.clone(), policies, prices(), WorkerOptions::default());
        let layer = layer.with_clock(bench.clock);
        let service = layer.layer(bench.provider);
        Self { store, layer, service, worker }
    }

    async fn call(&self, department: u16) -> Result<LlmResponse, Error> {
        let departments = [department.to_string()];
        let request = request().with_context(RequestContext::new().with_departments(departments));
        self.service.clone().oneshot(request).await
    }

    async fn fails(&self, department: u16) {
        assert!(is_unavailable(&self.call(department).await.unwrap_err()));
    }
}

#[cfg(feature = "tracing")]
#[tokio::test(start_paused = true)]
async fn a_part_that_failed_long_ago_keeps_nobody_from_hearing_of_another() {
    for failures in [1, 5] {
        let (log, called) = (log::Log::default(), Called::new());
        let _guard = tracing::subscriber::set_default(log.subscriber());
        let told = |what: &str| log.text().matches(what).count();
        called.store.are_away([1]);
        for _ in 0..failures {
            called.fails(1).await;
        }
        called.call(2).await.unwrap();
        assert_eq!((told("quotas cannot be counted"), told("quotas are counted again")), (1, 0));
        tokio::time::sleep(60 * SECOND).await;
        called.call(2).await.unwrap();
        assert_eq!(told("quotas are counted again"), 1);
        called.store.are_away([1, 2]);
        called.fails(2).await;
        assert_eq!(told("quotas cannot be counted"), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn parts_that_failed_long_ago_keep_nobody_from_finding_out_that_nothing_answers() {
    const MANY: u16 = 3000;
    let called = Called::new();
    called.store.are_away(0..MANY);
    for part in 0..MANY {
        called.fails(part).await;
    }
    called.call(MANY).await.unwrap();
    assert!(called.layer.is_available());

    tokio::time::sleep(60 * SECOND).await;
    called.store.are_away(0..=MANY + 1);
    for _ in 0..5 {
        called.fails(MANY + 1).await;
    }
    assert!(!called.layer.is_available());
    // However long nobody asks.
    tokio::time::sleep(3600 * SECOND).await;
    assert!(!called.layer.is_available());
    called.store.are_away([]);
    tokio::time::sleep(SECOND).await;
    called.layer.is_available();
    tokio::time::sleep(SECOND).await;
    assert!(called.layer.is_available());
    called.call(MANY + 1).await.unwrap();
    drop((called.service, called.layer));
    assert_eq!(called.worker.shutdown(60 * SECOND).await.left, 0);
}

/// Panics where it is asked for the part of some department, until that is mended.
#[derive(Debug, Clone)]
struct Lost(MemoryStore, Arc<AtomicBool>);

impl QuotaStore for Lost {
    pass_on!([0] reserve, extend, settle, release, usage, seed, adjust);

    fn part(&self, department: &str) -> u16 {
        assert!(self.1.load(Ordering::Acquire) || department != "operations", "a bug where parts are told");
        0
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_where_it_tells_the_part_of_a_department_keeps_no_other_waiting() {
    let bench = Bench::new(Limits::new());
    let store = Lost(bench.store.clone(), Arc::default());
    let (layer, worker) = QuotaLayer::pair(store.clone(), table(Limits::new()), prices(), seldom());
    let service = layer.with_clock(bench.clock.clone()).layer(bench.provider.clone());
    for request in [for_operations(), request()] {
        bench.provider.push(whole(7, 3));
        service.clone().oneshot(request).await.unwrap();
        tokio::time::sleep(SECOND).await;
    }
    let report = worker.report();
    assert_eq!((report.settled, report.left), (1, 1));
    assert_eq!(bench.research().await, (used(10, 66_000), Amount::ZERO));

    store.1.store(true, Ordering::Release);
    drop(service);
    let report = worker.shutdown(300 * SECOND).await;
    assert_eq!((report.settled, report.left, report.last_error), (2, 0, None));
    let standing = bench.standing("operations").await.in_day;
    assert_eq!((standing.settled, standing.reserved), (used(10, 66_000), Amount::ZERO));
}
