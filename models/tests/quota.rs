//! The life of a reservation: whatever order threads go on in, it ends once, in every department or in none.

mod common;

use common::check;
use llm_layers_model::{
    CallId, ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, PriceBook},
    quota::{
        Amount, Applied, Calendar, Days, Decision, Department, Departments, Limits, MemoryStore, QuotaLayer,
        QuotaStore, Reservation, Settlement, StoreFuture,
    },
};
use shuttle::{
    future::block_on,
    rand::{Rng as _, thread_rng},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// A clock that threads set.
#[derive(Debug, Clone)]
struct Set(Arc<AtomicU64>);

impl Set {
    const BEGIN: u64 = 1_790_000_000_000;

    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(Self::BEGIN)))
    }
}

impl Clock for Set {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn departments(names: &[&str], limit: u64) -> Departments {
    let limits = Limits::new().with_day_requests(limit);
    names.iter().map(|name| Department::new(*name, limits)).collect()
}

/// The futures of a store in memory are ready.
fn now<T>(future: StoreFuture<T>) -> T {
    block_on(future).expect("memory does not fail")
}

fn days(clock: &impl Clock) -> Days {
    Calendar::utc().days_around(clock.now())
}

/// What is settled and what is reserved in the day, in requests.
fn standing(store: &MemoryStore, clock: &impl Clock, department: &str) -> (u64, u64) {
    let day = now(store.usage(&department.into(), &days(clock))).in_day;
    (day.settled.requests, day.reserved.requests)
}

#[test]
fn calls_of_departments_in_any_order_never_wait_for_each_other_and_never_exceed_a_limit() {
    check(|| {
        let (store, clock) = (MemoryStore::new().with_clock(Set::new()), Set::new());
        let names = [["a", "b"], ["b", "a"], ["b", "c"]];
        let granted: Vec<_> = names
            .map(|names| {
                let (store, clock) = (store.clone(), clock.clone());
                thread::spawn(move || {
                    let (id, names) = (CallId::mint(clock.now()), departments(&names, 2));
                    let amount = Amount::new(1, 5, NanoUsd::ZERO);
                    let lease = Duration::from_secs(60);
                    let reservation = Reservation::new(id, names.clone(), amount, lease, days(&clock));
                    let is_granted = matches!(now(store.reserve(&reservation)), Decision::Granted(_));
                    for name in ["a", "b", "c"] {
                        let (settled, reserved) = standing(&store, &clock, name);
                        assert!(settled + reserved <= 2, "{name}: {settled} and {reserved}");
                    }
                    if is_granted {
                        assert_eq!(now(store.settle(&Settlement::new(id, names, amount))), Applied::First);
                    }
                    is_granted
                })
            })
            .into_iter()
            .map(|call| call.join().expect("no panic"))
            .collect();
        // Two of the three at least have room, and each is in both of its departments or in none.
        assert!(granted.iter().filter(|granted| **granted).count() >= 2, "{granted:?}");
        for name in ["a", "b", "c"] {
            let of_it =
                names.iter().zip(&granted).filter(|(names, granted)| names.contains(&name) && **granted);
            assert_eq!(standing(&store, &clock, name), (of_it.count() as u64, 0), "{name}");
        }
    });
}

#[test]
fn a_lease_that_expires_while_it_is_settled_and_released_is_charged_once() {
    check(|| {
        let clock = Set::new();
        let store = MemoryStore::new().with_clock(clock.clone());
        let (id, both) = (CallId::mint(clock.now()), departments(&["a", "b"], 10));
        let amount = Amount::new(1, 100, NanoUsd::ZERO);
        let reservation = Reservation::new(id, both.clone(), amount, Duration::from_millis(10), days(&clock))
            .with_on_expiry(amount);
        assert!(matches!(now(store.reserve(&reservation)), Decision::Granted(_)));
        let truth = Amount::new(1, 7, NanoUsd::ZERO);
        let settle = || {
            let (store, settlement) = (store.clone(), Settlement::new(id, both.clone(), truth));
            thread::spawn(move || now(store.settle(&settlement)))
        };
        let (first, second) = (settle(), settle());
        let time = thread::spawn({
            let (store, clock) = (store.clone(), clock.clone());
            move || {
                clock.0.fetch_add(20, Ordering::SeqCst);
                // Whoever looks sweeps.
                standing(&store, &clock, "b");
            }
        });
        let extended = thread::spawn({
            let (store, both) = (store.clone(), both.clone());
            move || now(store.extend(id, &both, Duration::from_millis(5)))
        });
        let applied = [first.join().unwrap(), second.join().unwrap()];
        time.join().unwrap();
        extended.join().unwrap();
        let is_duplicate = |applied: &&Applied| **applied == Applied::Duplicate;
        assert_eq!(applied.iter().filter(is_duplicate).count(), 1, "{applied:?}");
        now(store.release(id, &both));
        for name in ["a", "b"] {
            let day = now(store.usage(&name.into(), &days(&clock))).in_day;
            assert_eq!((day.settled, day.reserved), (truth, Amount::ZERO), "{name}: {applied:?}");
        }
    });
}

#[test]
fn a_release_that_overtakes_its_reservation_leaves_nothing_reserved() {
    check(|| {
        let clock = Set::new();
        let store = MemoryStore::new().with_clock(clock.clone());
        let (id, both) = (CallId::mint(clock.now()), departments(&["a", "b"], 10));
        let amount = Amount::new(1, 100, NanoUsd::ZERO);
        let reserving = thread::spawn({
            let (store, both, days) = (store.clone(), both.clone(), days(&clock));
            move || now(store.reserve(&Reservation::new(id, both, amount, Duration::from_secs(60), days)))
        });
        let releasing = thread::spawn({
            let (store, both) = (store.clone(), both.clone());
            move || now(store.release(id, &both))
        });
        let decision = reserving.join().unwrap();
        releasing.join().unwrap();
        assert!(matches!(decision, Decision::Granted(_) | Decision::Ended), "{decision:?}");
        for name in ["a", "b"] {
            assert_eq!(standing(&store, &clock, name), (0, 0), "{decision:?}");
        }
    });
}

#[test]
fn calls_through_the_layer_that_end_in_every_way_leave_nothing_reserved() {
    check(|| {
        let store = MemoryStore::new();
        let policies = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(2)));
        let quota = QuotaLayer::new(store.clone(), policies, PriceBook::default());
        let made = Arc::new(AtomicU64::new(0));
        let service = quota.layer(service_fn({
            let made = Arc::clone(&made);
            move |request: LlmRequest| {
                let made = Arc::clone(&made);
                async move {
                    request.progress.mark_dispatched();
                    made.fetch_add(1, Ordering::SeqCst);
                    shuttle::future::yield_now().await;
                    Ok::<_, Error>(LlmResponse::new(
                        request.model,
                        Completion::text("hi", TokenUsage::new(7, 3)),
                    ))
                }
            }
        }));
        let calls: Vec<_> = (0..3)
            .map(|_| {
                let service = service.clone();
                thread::spawn(move || {
                    let body = ChatBody::builder().user("Hello").max_output_tokens(10).build().unwrap();
                    let context = RequestContext::new().with_departments(["a", "b"]);
                    let call = service.oneshot(LlmRequest::new("p/m", body).with_context(context));
                    let mut call = Box::pin(call);
                    // Left before, during or after.
                    match thread_rng().gen_range(0..4) {
                        0 => None,
                        1 => {
                            let waker = std::task::Waker::noop();
                            let _ = call.as_mut().poll(&mut std::task::Context::from_waker(waker));
                            None
                        }
                        2 => block_on(call).ok().map(drop).map(|()| false),
                        _ => block_on(call).ok().map(|answer| block_on(answer.text()).is_ok()),
                    }
                })
            })
            .collect();
        for call in calls {
            call.join().expect("no panic");
        }
        let made = made.load(Ordering::SeqCst);
        assert!(made <= 2, "{made} calls within a limit of two");
        for name in ["a", "b"] {
            assert_eq!(standing(&store, &SystemClock, name), (made, 0), "{name}");
        }
    });
}
