//! The store in memory, by hand: what all other stores are compared with has to be right by itself.

use llm_layers::{
    CallId, Period, QuotaKind,
    price::NanoUsd,
    quota::{
        Adjustment, Amount, Applied, Baseline, Calendar, Day, Days, Decision, Delta, Department, Departments,
        ENDED_KEPT, EXPIRED_KEPT, Limits, MemoryStore, QuotaStore, Recount, Reservation, SWEEP, Settlement,
        Standing, StoreError, WindowName,
    },
    testing::{ManualClock, StoreCheck},
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LEASE: Duration = Duration::from_secs(60);
const MILLI: Duration = Duration::from_millis(1);

/// 2026-11-23 12:00 UTC.
fn noon() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_795_435_200)
}

struct Bench {
    clock: ManualClock,
    store: MemoryStore,
}

impl Bench {
    fn new() -> Self {
        let clock = ManualClock::new(noon());
        let store = MemoryStore::new().with_clock(clock.clone());
        Self { clock, store }
    }

    fn days(&self) -> Days {
        use llm_layers::clock::Clock;
        Calendar::utc().days_around(self.clock.now())
    }

    async fn reserve(&self, id: CallId, departments: &Departments, amount: Amount) -> Decision {
        let reservation = Reservation::new(id, departments.clone(), amount, LEASE, self.days())
            .with_on_expiry(Amount::new(1, amount.tokens / 2, NanoUsd::ZERO));
        self.store.reserve(&reservation).await.unwrap()
    }

    async fn granted(&self, departments: &Departments, amount: Amount) -> CallId {
        let id = id();
        assert!(matches!(self.reserve(id, departments, amount).await, Decision::Granted(_)));
        id
    }

    async fn settle(&self, id: CallId, departments: &Departments, amount: Amount) -> Applied {
        self.store.settle(&Settlement::new(id, departments.clone(), amount)).await.unwrap()
    }

    async fn standing(&self, department: &str) -> Standing {
        self.store.usage(&department.into(), &self.days()).await.unwrap()
    }

    /// Tokens settled and reserved, which are the same in day and month.
    async fn tokens(&self, department: &str) -> (u64, u64) {
        let Standing { in_day, in_month, .. } = self.standing(department).await;
        assert_eq!(in_day, in_month);
        (in_day.settled.tokens, in_day.reserved.tokens)
    }
}

fn id() -> CallId {
    CallId::mint(noon())
}

fn tokens(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::ZERO)
}

fn limited(limit: u64) -> Departments {
    Departments::one(Department::new("a", Limits::new().with_day_tokens(limit)))
}

#[tokio::test]
async fn the_store_in_memory_agrees_with_itself() {
    let Bench { clock, store } = Bench::new();
    StoreCheck::new(store).with_clock(clock).check().await;
}

#[tokio::test]
async fn a_reservation_is_replaced_by_the_truth_once() {
    let (bench, a) = (Bench::new(), limited(100));
    let call = bench.granted(&a, tokens(100)).await;
    assert_eq!(bench.tokens("a").await, (0, 100));
    assert_eq!(bench.settle(call, &a, tokens(30)).await, Applied::First);
    assert_eq!(bench.tokens("a").await, (30, 0));
    assert_eq!(bench.settle(call, &a, tokens(30)).await, Applied::Duplicate);
    bench.store.release(call, &a).await.unwrap();
    assert_eq!(bench.tokens("a").await, (30, 0));
}

#[tokio::test]
async fn what_does_not_fit_is_denied_with_all_there_is_to_say() {
    let (bench, a) = (Bench::new(), limited(100));
    let call = bench.granted(&a, tokens(60)).await;
    let Decision::Denied(denial) = bench.reserve(id(), &a, tokens(41)).await else { panic!() };
    assert_eq!((&*denial.department, denial.quota, denial.period), ("a", QuotaKind::Tokens, Period::Day));
    assert_eq!((denial.limit, denial.settled, denial.reserved, denial.requested), (100, 0, 60, 41));
    assert!(denial.in_flight_only);
    assert_eq!(denial.resets_in, Duration::from_secs(12 * 3600));
    assert_eq!(denial.resets_at, noon() + denial.resets_in);
    bench.settle(call, &a, tokens(60)).await;
    let Decision::Denied(denial) = bench.reserve(id(), &a, tokens(41)).await else { panic!() };
    assert_eq!((denial.settled, denial.reserved, denial.in_flight_only), (60, 0, false));
    let Decision::Granted(grant) = bench.reserve(id(), &a, tokens(40)).await else { panic!() };
    assert_eq!(grant.tightest.unwrap().remaining, 0);
}

#[tokio::test]
async fn overshoot_is_charged_in_full() {
    let (bench, a) = (Bench::new(), limited(100));
    let call = bench.granted(&a, tokens(10)).await;
    bench.settle(call, &a, tokens(1000)).await;
    assert_eq!(bench.tokens("a").await, (1000, 0));
    assert!(matches!(bench.reserve(id(), &a, tokens(0)).await, Decision::Denied(_)));
}

#[tokio::test]
async fn a_settlement_says_for_each_department_what_it_did_there() {
    let bench = Bench::new();
    let both = ["a", "b"].map(|name| Department::new(name, Limits::new())).into_iter().collect();
    let call = bench.granted(&Departments::one(Department::new("b", Limits::new())), tokens(60)).await;
    let settlement = Settlement::new(call, both, tokens(30));
    let each = bench.store.settle_each(&settlement).await.unwrap();
    assert_eq!(each, [Applied::Duplicate, Applied::First]);
    assert_eq!(bench.store.settle_each(&settlement).await.unwrap(), [Applied::Duplicate; 2]);
    assert_eq!((bench.tokens("a").await, bench.tokens("b").await), ((0, 0), (30, 0)));
}

#[tokio::test]
async fn an_expired_lease_charges_its_part_and_is_trued_up_once() {
    let (bench, a) = (Bench::new(), limited(1000));
    let [settled, released] = [bench.granted(&a, tokens(100)).await, bench.granted(&a, tokens(200)).await];
    bench.clock.advance(LEASE - MILLI);
    assert_eq!(bench.tokens("a").await, (0, 300));
    bench.clock.advance(MILLI);
    assert_eq!(bench.tokens("a").await, (150, 0));
    assert_eq!(bench.reserve(settled, &a, tokens(100)).await, Decision::Ended);
    assert_eq!(bench.settle(settled, &a, tokens(20)).await, Applied::TrueUp);
    assert_eq!(bench.tokens("a").await, (120, 0));
    assert_eq!(bench.settle(settled, &a, tokens(20)).await, Applied::Duplicate);
    bench.store.release(released, &a).await.unwrap();
    assert_eq!(bench.tokens("a").await, (20, 0));
    assert_eq!(bench.standing("a").await.in_day.settled.requests, 1);
}

#[tokio::test]
async fn an_expired_lease_is_forgotten_after_a_day() {
    let (bench, a) = (Bench::new(), limited(1000));
    let call = bench.granted(&a, tokens(100)).await;
    bench.clock.advance(LEASE);
    bench.tokens("a").await;
    assert_eq!(bench.store.leases(), 1);
    bench.clock.advance(EXPIRED_KEPT);
    assert_eq!(bench.settle(call, &a, tokens(20)).await, Applied::Duplicate);
    assert_eq!(bench.store.leases(), 0);
}

#[tokio::test]
async fn a_department_with_a_call_in_flight_is_not_forgotten_when_its_month_is_over() {
    let (bench, a) = (Bench::new(), limited(1000));
    // Half a minute before December.
    bench.clock.advance(Duration::from_secs(7 * 86_400 + 12 * 3600) - LEASE / 2);
    let call = bench.granted(&a, tokens(100)).await;
    bench.clock.advance(LEASE / 2);
    // So many that those are looked for who may be forgotten.
    for n in 0..2000 {
        let other = Departments::one(Department::new(format!("of December {n}"), Limits::new()));
        bench.granted(&other, tokens(1)).await;
    }
    assert_eq!(bench.settle(call, &a, tokens(40)).await, Applied::First);
}

#[tokio::test]
async fn a_reservation_that_comes_after_its_release_is_refused() {
    let (bench, a) = (Bench::new(), limited(1000));
    let call = id();
    bench.store.release(call, &a).await.unwrap();
    assert_eq!(bench.reserve(call, &a, tokens(1)).await, Decision::Ended);
    bench.clock.advance(ENDED_KEPT);
    assert!(matches!(bench.reserve(call, &a, tokens(1)).await, Decision::Granted(_)));
}

#[tokio::test]
async fn a_lease_that_is_extended_lives_on() {
    let (bench, a) = (Bench::new(), limited(1000));
    let call = bench.granted(&a, tokens(100)).await;
    bench.clock.advance(LEASE / 2);
    assert!(bench.store.extend(call, &a, LEASE).await.unwrap());
    assert!(bench.store.extend(call, &a, MILLI).await.unwrap(), "it is not made shorter");
    bench.clock.advance(LEASE - MILLI);
    assert_eq!(bench.tokens("a").await, (0, 100));
    bench.clock.advance(MILLI);
    assert!(!bench.store.extend(call, &a, LEASE).await.unwrap());
    assert_eq!(bench.tokens("a").await, (50, 0));
}

#[tokio::test]
async fn all_departments_are_charged_or_none() {
    let bench = Bench::new();
    let a = Department::new("a", Limits::new());
    let b = Department::new("b", Limits::new().with_month_requests(1));
    let both = Departments::new([b.clone(), a.clone(), b.clone()]);
    assert_eq!(both.len(), 2);
    bench.granted(&both, tokens(7)).await;
    assert!(matches!(bench.reserve(id(), &both, tokens(7)).await, Decision::Denied(_)));
    assert_eq!((bench.tokens("a").await, bench.tokens("b").await), ((0, 7), (0, 7)));
}

#[tokio::test]
async fn the_denial_names_the_limit_that_lasts_longest() {
    let bench = Bench::new();
    let used_up = Department::new("used up", Limits::new().with_day_tokens(10));
    let in_flight = Department::new("in flight", Limits::new().with_month_tokens(15));
    let both = Departments::new([used_up.clone(), in_flight.clone()]);
    let call = bench.granted(&Departments::one(used_up), tokens(10)).await;
    bench.settle(call, &both, tokens(10)).await;
    bench.granted(&Departments::one(in_flight), tokens(15)).await;
    let Decision::Denied(denial) = bench.reserve(id(), &both, tokens(1)).await else { panic!() };
    assert_eq!((&*denial.department, denial.in_flight_only), ("used up", false));
}

#[tokio::test]
async fn no_operation_sweeps_more_than_its_share() {
    let (bench, a) = (Bench::new(), limited(100_000));
    for _ in 0..3 * SWEEP {
        bench.granted(&a, tokens(10)).await;
    }
    bench.clock.advance(LEASE);
    for swept in 1..=3 {
        let left = 3 * SWEEP - swept * SWEEP;
        let settled = swept * SWEEP * 5;
        assert_eq!(bench.tokens("a").await, (settled as u64, left as u64 * 10));
    }
}

#[tokio::test]
async fn a_department_is_seeded_once_and_before_it_is_charged() {
    let (bench, a) = (Bench::new(), limited(100));
    let reservation =
        Reservation::new(id(), a.clone(), tokens(50), LEASE, bench.days()).with_needs_seed(true);
    let error = bench.store.reserve(&reservation).await.unwrap_err();
    let StoreError::Unseeded { departments, day } = error else { panic!("{error}") };
    assert_eq!(departments, [std::sync::Arc::clone(&a[0].id)]);
    let baseline = Baseline::new(day, tokens(60), tokens(80));
    assert!(bench.store.seed(&a[0].id, &baseline).await.unwrap());
    assert!(!bench.store.seed(&a[0].id, &baseline).await.unwrap());
    assert!(matches!(bench.store.reserve(&reservation).await, Ok(Decision::Denied(_))));
    let standing = bench.standing("a").await;
    assert_eq!((standing.in_day.settled.tokens, standing.in_month.settled.tokens), (60, 80));
}

#[tokio::test]
async fn a_correction_is_made_once_and_never_below_nothing() {
    let (bench, a) = (Bench::new(), limited(100));
    let call = bench.granted(&a, tokens(50)).await;
    bench.settle(call, &a, tokens(50)).await;
    let Standing { day, .. } = bench.standing("a").await;
    let by = Delta { requests: -5, tokens: -20, cost: NanoUsd::new(7) };
    let correction = Adjustment::new(id(), "a", WindowName::Day(day.date), by);
    assert!(bench.store.adjust(&correction).await.unwrap());
    assert!(!bench.store.adjust(&correction).await.unwrap());
    let standing = bench.standing("a").await;
    assert_eq!(standing.in_day.settled, Amount::new(0, 30, NanoUsd::new(7)));
    assert_eq!(standing.in_month.settled, tokens(50));
}

#[tokio::test]
async fn what_was_used_is_kept_until_its_month_is_over_however_many_departments_there_are() {
    let bench = Bench::new();
    let called = Departments::one(Department::new("called", Limits::new()));
    let call = bench.granted(&called, tokens(20)).await;
    bench.settle(call, &called, tokens(20)).await;
    let baseline = Baseline::new(Calendar::utc().day(noon()), tokens(20), tokens(20));
    assert!(!bench.store.seed(&"called".into(), &baseline).await.unwrap(), "it is known");
    assert!(bench.store.seed(&"seeded".into(), &baseline).await.unwrap());
    let days = [WindowName::Day(20_261_123), WindowName::Month(202_611)];
    for window in days {
        let by = Delta { requests: 1, tokens: 20, cost: NanoUsd::ZERO };
        assert!(bench.store.adjust(&Adjustment::new(id(), "corrected", window, by)).await.unwrap());
    }
    let others = async |times: &str| {
        for number in 0..3000 {
            let one = Departments::one(Department::new(format!("{times} {number}"), Limits::new()));
            let call = bench.granted(&one, tokens(1)).await;
            bench.settle(call, &one, tokens(1)).await;
        }
    };
    bench.clock.advance(ENDED_KEPT);
    others("soon").await;
    let all = ["called", "seeded", "corrected"];
    for department in all {
        assert_eq!(bench.tokens(department).await, (20, 0), "{department}");
    }
    // The third of December.
    bench.clock.advance(Duration::from_secs(10 * 86_400));
    others("next month").await;
    let november = Days::only(Calendar::utc().day(noon()));
    for department in all {
        let standing = bench.store.usage(&department.into(), &november).await.unwrap();
        assert_eq!(standing.in_month.settled, Amount::ZERO, "{department}");
    }
}

#[tokio::test]
async fn a_clock_off_the_days_is_told_and_nothing_is_charged() {
    let (bench, a) = (Bench::new(), limited(100));
    let days = bench.days();
    bench.clock.advance(Duration::from_secs(3 * 86_400));
    let reservation = Reservation::new(id(), a.clone(), tokens(1), LEASE, days);
    let error = bench.store.reserve(&reservation).await.unwrap_err();
    assert!(
        matches!(error, StoreError::OffCalendar { now } if now == noon() + Duration::from_secs(3 * 86_400))
    );
    assert_eq!(bench.tokens("a").await, (0, 0));
    assert!(!bench.standing("a").await.is_known);
}

#[tokio::test]
async fn a_recount_tells_what_leases_hold_or_have_charged_in_a_window_and_which_they_are() {
    let bench = Bench::new();
    let a = limited(1000);
    let (settled, held) = (bench.granted(&a, tokens(30)).await, bench.granted(&a, tokens(40)).await);
    bench.settle(settled, &a, tokens(30)).await;
    bench.store.release(id(), &a).await.unwrap();
    let recount =
        async |department: &str, window| bench.store.recount(&department.into(), window, true).await.unwrap();
    let today = Calendar::utc().day(noon());
    for window in [WindowName::Day(today.date), WindowName::Month(today.month)] {
        assert_eq!(recount("a", window).await, Some(Recount::new(tokens(40), tokens(40), vec![held])));
    }
    // It is live, and of another day.
    let nothing = Amount::ZERO;
    let tomorrow = WindowName::Day(today.date + 1);
    assert_eq!(recount("a", tomorrow).await, Some(Recount::new(nothing, nothing, vec![held])));
    bench.clock.advance(LEASE);
    let charged = Amount::new(1, 20, NanoUsd::ZERO);
    let expired = Recount::new(nothing, nothing, vec![held]);
    assert_eq!(recount("a", tomorrow).await, Some(expired.clone()));
    for window in [WindowName::Day(today.date), WindowName::Month(today.month)] {
        assert_eq!(recount("a", window).await, Some(expired.clone().with_charged(charged)));
    }
    bench.settle(held, &a, tokens(30)).await;
    assert_eq!(recount("a", WindowName::Day(today.date)).await, Some(Recount::default()));
    assert_eq!(recount("nobody", WindowName::Day(today.date)).await, Some(Recount::default()));
    assert!(!bench.standing("nobody").await.is_known);
}

#[test]
fn days_are_next_to_each_other() {
    let days = Calendar::utc().days_around(noon());
    let dates: Vec<_> = days.iter().map(|day: &Day| (day.date, day.month)).collect();
    assert_eq!(dates, [(20_261_122, 202_611), (20_261_123, 202_611), (20_261_124, 202_611)]);
}

#[test]
fn days_that_overlap_or_are_out_of_order_are_left_out() {
    let [yesterday, today, tomorrow] = Calendar::utc().days_around(noon())[..] else { panic!() };
    let (mut long, mut empty) = (tomorrow, tomorrow);
    long.from = today.until - 1;
    empty.until = empty.from;
    let days = Days::new([today, yesterday, today, long, empty, tomorrow]);
    assert_eq!(days[..], [today, tomorrow]);
}

#[tokio::test]
async fn a_clock_is_set_and_what_is_counted_stays_and_is_shared() {
    let bench = Bench::new();
    let departments = Departments::new([Department::new("a", Limits::new())]);
    bench.granted(&departments, Amount::new(1, 10, NanoUsd::ZERO)).await;
    assert_eq!(bench.standing("a").await.in_day.reserved.tokens, 10);
    // By this clock the lease is over, and all who share the counters see what became of it.
    let later = noon() + Duration::from_secs(3600);
    let other = bench.store.clone().with_clock(later);
    let standing = other.usage(&"a".into(), &Calendar::utc().days_around(later)).await.unwrap();
    assert_eq!((standing.in_day.reserved.tokens, standing.in_day.settled.tokens), (0, 5));
    assert_eq!(bench.standing("a").await.in_day.settled.tokens, 5);
}
