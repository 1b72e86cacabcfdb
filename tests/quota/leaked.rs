//! What is reserved for nobody, in any store.

use crate::late::{Records, tokens};
use llm_layers::{
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Amount, Calendar, Days, Decision, Delta, Department, Departments, LeaseId, Limits, QuotaStore,
        Reservation, Settlement, WindowName, audit, repair,
    },
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const NAME: &str = "leaky";
const HOUR: Duration = Duration::from_secs(3600);

fn department() -> Departments {
    Departments::one(Department::new(NAME, Limits::new().with_month_requests(100_000)))
}

async fn reserve(store: &impl QuotaStore, size: u64) -> LeaseId {
    let now = SystemClock.now();
    let days = Calendar::utc().days_around(now);
    let reservation = Reservation::new(LeaseId::mint(now), department(), tokens(size), HOUR, days);
    assert!(matches!(store.reserve(&reservation).await.unwrap(), Decision::Granted(_)));
    reservation.id
}

/// `lose` makes the store lose a lease, and keep what is reserved for it.
pub(crate) async fn is_found_and_given_back(store: impl QuotaStore + Clone, lose: impl FnOnce(LeaseId)) {
    let (calendar, now, records) = (Calendar::utc(), SystemClock.now(), Records::default());
    let day = calendar.day(now);
    let look = || audit(&store, &records, &calendar, now, [NAME]);
    let standing = async || store.usage(&NAME.into(), &Days::only(day)).await.unwrap();
    let ended = reserve(&store, 50).await;
    store.settle(&Settlement::new(ended, department(), tokens(70))).await.unwrap();
    records.add(ended, 70);
    let (lost, held) = (reserve(&store, 40).await, reserve(&store, 10).await);
    // It has ended, and is not settled yet.
    records.add(held, 8);
    assert_eq!(look().await.unwrap(), []);

    lose(lost);
    // A settlement was lost besides.
    records.add(LeaseId::mint(now), 5);
    let drifts = look().await.unwrap();
    let windows: Vec<_> = drifts.iter().map(|drift| drift.window).collect();
    assert_eq!(windows, [WindowName::Day(day.date), WindowName::Month(day.month)]);
    for drift in &drifts {
        let cost = NanoUsd::new;
        assert_eq!(drift.leaked, Delta { requests: 1, tokens: 40, cost: cost(400) });
        assert_eq!(drift.by, Delta { requests: 1, tokens: 5, cost: cost(50) });
        assert!(!drift.is_in_flight, "which leases are is known");
    }
    assert_eq!(repair(&store, &drifts).await.unwrap(), 2);
    assert_eq!(look().await.unwrap(), []);
    assert_eq!(repair(&store, &drifts).await.unwrap(), 0);
    let found = standing().await;
    assert_eq!(found.in_day, found.in_month);
    assert_eq!((found.in_day.settled, found.in_day.reserved), (tokens(70).plus(&tokens(5)), tokens(10)));
    store.settle(&Settlement::new(held, department(), tokens(8))).await.unwrap();
    let found = standing().await.in_month;
    assert_eq!((found.settled.tokens, found.reserved), (83, Amount::ZERO));
    assert_eq!(look().await.unwrap(), []);
}

/// Recounts as long as calls come and go.
pub(crate) async fn is_not_what_calls_hold(store: impl QuotaStore + Clone) {
    const CALLERS: usize = 8;
    const CALLS: u64 = 40;
    let is_over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                for size in 1..=CALLS {
                    let id = reserve(&store, size).await;
                    tokio::task::yield_now().await;
                    store.settle(&Settlement::new(id, department(), tokens(size))).await.unwrap();
                }
            })
        })
        .collect();
    let day = Calendar::utc().day(SystemClock.now());
    let recounting = tokio::spawn({
        let (store, is_over) = (store.clone(), Arc::clone(&is_over));
        async move {
            let mut looks = 0;
            while looks == 0 || !is_over.load(Ordering::Acquire) {
                for window in [WindowName::Day(day.date), WindowName::Month(day.month)] {
                    let recount = store.recount(&NAME.into(), window, true).await.unwrap().unwrap();
                    assert_eq!(recount.counted, recount.held, "{recount:?}");
                }
                looks += 1;
                tokio::task::yield_now().await;
            }
        }
    });
    for caller in callers {
        caller.await.unwrap();
    }
    is_over.store(true, Ordering::Release);
    recounting.await.unwrap();
    let used = store.usage(&NAME.into(), &Days::only(day)).await.unwrap().in_month;
    let all = CALLERS as u64 * CALLS * (CALLS + 1) / 2;
    assert_eq!((used.settled.tokens, used.reserved), (all, Amount::ZERO));
}
