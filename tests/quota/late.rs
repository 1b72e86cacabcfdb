//! A call that is not settled before its lease expires, in any store.

use llm_layers::{
    price::NanoUsd,
    quota::{
        Amount, Applied, Calendar, Days, Decision, Delta, Department, Departments, HistoryFuture,
        HistoryQuery, LeaseId, Limits, QuotaStore, Reservation, Settlement, UsageHistory, Used, audit,
        repair,
    },
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

const NAME: &str = "late";
const LEASE: Duration = Duration::from_secs(1);

/// Calls by their leases, and the tokens that they have used up.
#[derive(Clone, Default)]
pub(crate) struct Records(Arc<Mutex<Vec<(LeaseId, u64)>>>);

impl Records {
    pub(crate) fn add(&self, lease: LeaseId, tokens: u64) {
        self.0.lock().unwrap().push((lease, tokens));
    }
}

impl UsageHistory for Records {
    fn used(&self, query: HistoryQuery) -> HistoryFuture {
        let records = self.0.lock().unwrap();
        let known = records.iter().filter(|(lease, _)| !query.in_flight.contains(lease));
        let sum = known.fold(Amount::ZERO, |sum, (_, used)| sum.plus(&tokens(*used)));
        Box::pin(async move { Ok(Used { in_day: sum, in_month: sum }) })
    }
}

pub(crate) fn tokens(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::new(tokens as i64 * 10))
}

/// `now` is that of the store's clock, which `advance` sets forward.
pub(crate) async fn is_charged_once(store: impl QuotaStore, now: SystemTime, advance: impl Fn(Duration)) {
    let (calendar, records) = (Calendar::utc(), Records::default());
    let departments = Departments::one(Department::new(NAME, Limits::new()));
    let look = async || audit(&store, &records, &calendar, now, [NAME]).await.unwrap();
    let settled = async || {
        let standing = store.usage(&NAME.into(), &Days::only(calendar.day(now))).await.unwrap();
        assert_eq!(standing.in_day, standing.in_month);
        standing.in_day.settled
    };
    let mut all = Amount::ZERO;
    for truth in [1500, 700] {
        for is_recorded in [false, true] {
            let days = calendar.days_around(now);
            let reservation =
                Reservation::new(LeaseId::mint(now), departments.clone(), tokens(9000), LEASE, days)
                    .with_on_expiry(tokens(1000));
            assert!(matches!(store.reserve(&reservation).await.unwrap(), Decision::Granted(_)));
            advance(LEASE * 2);
            assert_eq!(settled().await, all.plus(&tokens(1000)));
            if is_recorded {
                records.add(reservation.id, truth);
            }
            assert_eq!(look().await, []);
            // What another call was not charged is found beside it.
            records.add(LeaseId::mint(now), 5);
            let drifts = look().await;
            let by = Delta { requests: 1, tokens: 5, cost: NanoUsd::new(50) };
            assert_eq!(drifts.iter().map(|drift| drift.by).collect::<Vec<_>>(), [by; 2]);
            assert!(drifts.iter().all(|drift| drift.recorded == drift.counted.plus(&tokens(5))));
            assert_eq!(repair(&store, &drifts).await.unwrap(), 2);
            assert_eq!(look().await, []);

            let settlement = Settlement::new(reservation.id, departments.clone(), tokens(truth));
            assert_eq!(store.settle(&settlement).await.unwrap(), Applied::TrueUp);
            if !is_recorded {
                records.add(reservation.id, truth);
            }
            all = all.plus(&tokens(5)).plus(&tokens(truth));
            assert_eq!(settled().await, all);
            assert_eq!(look().await, []);
        }
    }
}
