//! What is true of quotas whatever happens: the invariants, under every way to end, at every point, in any order.

#[path = "quota/remote.rs"]
mod remote;

use llm_layers::{
    CacheStatus, CallId, ChatBody, Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, Period,
    QuotaKind, RequestContext, ResponseBody, StreamChunk, TokenUsage,
    access::AccessLayer,
    clock::Clock,
    fallback::{Chains, FallbackLayer},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Rates},
    quota::{
        Amount, Applied, Calendar, Day, Days, Decision, Department, Departments, Limits, MemoryStore,
        OnExpiry, QuotaLayer, QuotaStore, Reservation, Settlement, WorkerOptions,
    },
    testing::{ManualClock, Reply, Scripted, Step},
    usage::{MemorySink, UsageLayer, UsageQuery},
};
use proptest::prelude::*;
use remote::{Fault, Remote};
use std::{
    collections::HashMap,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const LEASE: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn noon() -> SystemTime {
    at(1_795_435_200)
}

fn tokens(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::new(tokens as i64 * 3))
}

/// The store in memory never lets anybody wait.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(future).expect("ready at once")
}

fn prices() -> PriceBook {
    let price = || Price::new(Rates::per_million("3", "15").unwrap());
    PriceBook::of("sheet", [("p/model", price()), ("p/other", price())]).unwrap()
}

fn body() -> ChatBody {
    ChatBody::builder().user("Hello").set("max_tokens", 20).build().unwrap()
}

fn request() -> LlmRequest {
    let context = RequestContext::new().with_departments(["research", "operations"]);
    LlmRequest::new("p/model", body()).with_context(context)
}

// ===== the store, by a second reckoning =====

/// What a call is in a model that knows nothing of windows, sweeps or counters: only what became of it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Unknown,
    Held { until: u64 },
    Charged { part: u64, until: Option<u64> },
    Barred { until: u64 },
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Reserve(usize, u64),
    Settle(usize, u64),
    Release(usize),
    Extend(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let call = 0..5_usize;
    prop_oneof![
        4 => (call.clone(), 0..40_u64).prop_map(|(call, tokens)| Op::Reserve(call, tokens)),
        3 => (call.clone(), 0..80_u64).prop_map(|(call, tokens)| Op::Settle(call, tokens)),
        1 => call.clone().prop_map(Op::Release),
        1 => call.prop_map(Op::Extend),
        2 => prop_oneof![1..70_000_u64, Just(60_000), Just(300_000)].prop_map(Op::Wait),
    ]
}

/// I1–I5, I8, I14 against that model: one department, a limit of 100 tokens, what a call asked for first is what it
/// asks for.
fn check(ops: &[Op]) {
    const LIMIT: u64 = 100;
    let clock = ManualClock::new(noon());
    let store = MemoryStore::new().with_clock(clock.clone());
    let departments = Departments::one(Department::new("a", Limits::new().with_day_tokens(LIMIT)));
    let days = Days::only(Calendar::utc().day(noon()));
    let ids: Vec<_> = (0..5).map(|_| CallId::mint(noon())).collect();
    let mut asked = HashMap::new();
    let mut fates = [Fate::Unknown; 5];
    // What ended calls were charged: it stays.
    let mut history = 0;
    let mut now = 0;
    at_once(async {
        for op in ops {
            for (call, fate) in fates.iter_mut().enumerate() {
                match *fate {
                    Fate::Held { until } if until <= now => {
                        *fate = Fate::Charged { part: asked[&call] / 2, until: None };
                    }
                    Fate::Barred { until } if until <= now => *fate = Fate::Unknown,
                    _ => {}
                }
            }
            let held = |fates: &[Fate; 5], asked: &HashMap<usize, u64>| -> u64 {
                let held = fates.iter().enumerate().filter(|(_, fate)| matches!(fate, Fate::Held { .. }));
                held.map(|(call, _)| asked[&call]).sum()
            };
            let charged = |fates: &[Fate; 5]| -> u64 {
                fates.iter().map(|fate| if let Fate::Charged { part, .. } = fate { *part } else { 0 }).sum()
            };
            match *op {
                Op::Reserve(call, wanted) => {
                    let wanted = *asked.entry(call).or_insert(wanted);
                    let reservation =
                        Reservation::new(ids[call], departments.clone(), tokens(wanted), LEASE, days.clone())
                            .with_on_expiry(tokens(wanted / 2));
                    let settled = history + charged(&fates);
                    let fits = settled + held(&fates, &asked) + wanted <= LIMIT;
                    let decision = store.reserve(&reservation).await.unwrap();
                    match fates[call] {
                        Fate::Unknown if fits => {
                            assert!(matches!(decision, Decision::Granted(_)), "{decision:?}");
                            fates[call] = Fate::Held { until: now + 60_000 };
                        }
                        Fate::Unknown => {
                            let Decision::Denied(denial) = decision else { panic!("{decision:?}") };
                            assert_eq!(denial.in_flight_only, settled + wanted <= LIMIT);
                        }
                        Fate::Held { .. } => assert!(matches!(decision, Decision::Granted(_))),
                        Fate::Charged { .. } | Fate::Barred { .. } => assert_eq!(decision, Decision::Ended),
                    }
                }
                Op::Settle(call, truth) => {
                    let settlement = Settlement::new(ids[call], departments.clone(), tokens(truth));
                    let applied = store.settle(&settlement).await.unwrap();
                    let expected = match fates[call] {
                        Fate::Held { .. } => Applied::First,
                        Fate::Charged { .. } => Applied::TrueUp,
                        Fate::Unknown | Fate::Barred { .. } => Applied::Duplicate,
                    };
                    assert_eq!(applied, expected);
                    if applied != Applied::Duplicate {
                        history += truth;
                        fates[call] = Fate::Unknown;
                    }
                }
                Op::Release(call) => {
                    store.release(ids[call], &departments).await.unwrap();
                    fates[call] = match fates[call] {
                        Fate::Unknown => Fate::Barred { until: now + 300_000 },
                        Fate::Held { .. } | Fate::Charged { .. } => Fate::Unknown,
                        barred @ Fate::Barred { .. } => barred,
                    };
                }
                Op::Extend(call) => {
                    let extended = store.extend(ids[call], &departments, LEASE).await.unwrap();
                    if let Fate::Held { until } = &mut fates[call] {
                        *until = (*until).max(now + 60_000);
                    }
                    assert_eq!(extended, matches!(fates[call], Fate::Held { .. }));
                }
                Op::Wait(time) => {
                    clock.advance(Duration::from_millis(time));
                    now += time;
                    continue;
                }
            }
            let standing = store.usage(&"a".into(), &days).await.unwrap();
            let (settled, reserved) = (standing.in_day.settled.tokens, standing.in_day.reserved.tokens);
            assert_eq!((settled, reserved), (history + charged(&fates), held(&fates, &asked)));
            assert_eq!(standing.in_day, standing.in_month);
        }
        // I4: all is quiet in the end.
        clock.advance(LEASE);
        let standing = store.usage(&"a".into(), &days).await.unwrap();
        assert_eq!(standing.in_day.reserved, Amount::ZERO);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn i1_to_i5_i8_i14_counters_are_what_became_of_the_calls(ops in proptest::collection::vec(op(), 0..60)) {
        check(&ops);
    }

    /// I2, I9 and I7: whatever is admitted, no department is over any of its limits, and all have it or none.
    #[test]
    fn i2_i7_i9_no_grant_leads_over_a_limit_of_anybody(
        limits in proptest::collection::vec((0..300_u64, 0..2_000_u64), 3),
        calls in proptest::collection::vec((1..8_u8, 0..100_u64, 0..100_u64, 0..40_u64), 1..60),
    ) {
        let clock = ManualClock::new(noon());
        let store = MemoryStore::new().with_clock(clock.clone());
        let of = |at: usize| {
            let limits = Limits::new().with_day_tokens(limits[at].0).with_month_tokens(limits[at].1);
            Department::new(format!("d{at}"), limits)
        };
        at_once(async {
            let mut spent = [0; 3];
            let mut by_day: HashMap<(usize, u32), u64> = HashMap::new();
            for (mask, bound, truth, hours) in calls {
                let members: Vec<_> = (0..3).filter(|at| mask & (1 << at) != 0).collect();
                let departments: Departments = members.iter().map(|at| of(*at)).collect();
                let days = Calendar::utc().days_around(clock.now());
                let reservation =
                    Reservation::new(CallId::mint(noon()), departments.clone(), tokens(bound), LEASE, days.clone());
                let granted = match store.reserve(&reservation).await.unwrap() {
                    Decision::Granted(_) => true,
                    Decision::Denied(_) => false,
                    Decision::Ended => panic!("it is new"),
                };
                for (at, limits) in limits.iter().enumerate() {
                    let standing = store.usage(&of(at).id, &days).await.unwrap();
                    let held = if granted && members.contains(&at) { bound } else { 0 };
                    assert_eq!(standing.in_day.reserved.tokens, held, "all or none");
                    if held > 0 {
                        for (period, limit) in [(standing.in_day, limits.0), (standing.in_month, limits.1)] {
                            assert!(period.settled.tokens + period.reserved.tokens <= limit);
                        }
                    }
                }
                if granted {
                    // I1: an upper bound is one.
                    let truth = truth.min(bound);
                    store.settle(&Settlement::new(reservation.id, departments.clone(), tokens(truth))).await.unwrap();
                    let today = Calendar::utc().day(clock.now()).date;
                    for at in &members {
                        spent[*at] += truth;
                        *by_day.entry((*at, today)).or_default() += truth;
                    }
                }
                // Within this month, so that its days are its sum.
                if clock.now() + Duration::from_secs(hours * 3600) < at(1_796_083_200) {
                    clock.advance(Duration::from_secs(hours * 3600));
                }
            }
            for (at, spent) in spent.into_iter().enumerate() {
                let mut sum = 0;
                for ahead in 0..8 {
                    let day = Calendar::utc().day(noon() + Duration::from_secs(ahead * 86_400));
                    let standing = store.usage(&of(at).id, &Days::only(day)).await.unwrap();
                    assert_eq!(standing.in_day.settled.tokens, by_day.get(&(at, day.date)).copied().unwrap_or(0));
                    sum += standing.in_day.settled.tokens;
                    if day.month == 202_611 {
                        assert_eq!(standing.in_month.settled.tokens, spent);
                    }
                }
                assert_eq!(sum, spent);
            }
        });
    }
}

#[test]
fn every_sequence_of_six_steps_of_one_call_counts_once() {
    let steps = [Op::Reserve(0, 40), Op::Settle(0, 70), Op::Release(0), Op::Extend(0), Op::Wait(60_000)];
    let mut tried = 0;
    for length in 1..=6 {
        for number in 0..steps.len().pow(length) {
            let ops: Vec<_> =
                (0..length).map(|place| steps[number / steps.len().pow(place) % steps.len()]).collect();
            check(&ops);
            tried += 1;
        }
    }
    assert_eq!(tried, 19_530);
}

// ===== the layer =====

/// I1, I10, I13, and the first test of all: never over the limit, nor absurdly below it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seed_12_two_hundred_callers_at_once_never_get_past_a_limit() {
    let store = MemoryStore::new();
    race(QuotaLayer::new(store.clone(), race_table(), prices()), &store, async || {}).await;

    let store = MemoryStore::new();
    let far = Remote::new(store.clone());
    let (layer, worker) = QuotaLayer::pair(far, race_table(), prices(), WorkerOptions::default());
    let settle = async || assert_eq!(worker.shutdown(Duration::from_secs(10)).await.left, 0);
    race(layer, &store, settle).await;
}

/// What is reserved for a call: its prompt at most, and its answer.
const LARGEST: u64 = 35 + 20;
const RACE_LIMIT: u64 = 200 * 10 * LARGEST / 8;

fn race_table() -> PolicyTable {
    PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_tokens(RACE_LIMIT)))
}

async fn race(layer: QuotaLayer, store: &MemoryStore, settle: impl AsyncFnOnce()) {
    let sink = MemorySink::new(100_000);
    let service = ServiceBuilder::new().layer(layer).layer(UsageLayer::new(sink.clone(), prices())).service(
        service_fn(|request: LlmRequest| async move {
            request.progress.mark_dispatched();
            tokio::task::yield_now().await;
            let answer = fastrand::u64(0..=20);
            let prompt = fastrand::u64(0..=request.body.input_bytes() as u64);
            Ok::<_, Error>(LlmResponse::new(
                request.model,
                Completion::text("hi", TokenUsage::new(prompt, answer)),
            ))
        }),
    );
    let calls = (0..200).map(|_| {
        let service = service.clone();
        tokio::spawn(async move {
            let mut refused = 0;
            for _ in 0..10 {
                match service.clone().oneshot(request()).await {
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::QuotaExceeded(_)) => refused += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            refused
        })
    });
    let mut refused = 0;
    for call in calls.collect::<Vec<_>>() {
        refused += call.await.unwrap();
    }
    assert!(refused > 0, "the limit was never reached");
    let standing = async |department: &str| {
        let days = Calendar::utc().days_around(now());
        store.usage(&department.into(), &days).await.unwrap().in_day
    };
    // One alone uses up what they have left each other.
    loop {
        let is_settled = standing("research").await.reserved == Amount::ZERO;
        match service.clone().oneshot(request()).await {
            Err(_) if is_settled => break,
            _ => tokio::task::yield_now().await,
        }
    }
    settle().await;
    let recorded = sink.totals(&UsageQuery::new()).unwrap();
    for department in ["research", "operations"] {
        let in_day = standing(department).await;
        let Amount { requests, tokens, cost } = in_day.settled;
        assert!(tokens <= RACE_LIMIT, "{tokens} of {RACE_LIMIT}");
        assert!(tokens + LARGEST > RACE_LIMIT, "only {tokens} of {RACE_LIMIT}");
        assert_eq!(in_day.reserved, Amount::ZERO);
        // What is settled is what is recorded: in the same place, at the same price.
        assert_eq!(requests, recorded.calls);
        assert_eq!(u128::from(tokens), recorded.input_tokens + recorded.output_tokens);
        assert_eq!(cost, recorded.cost);
    }
}

fn now() -> SystemTime {
    llm_layers::clock::SystemClock.now()
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// Polls the call, then its stream, so often; then drops what there is. Whether it came to its end.
fn stop_after(
    mut service: impl Service<LlmRequest, Response = LlmResponse, Error = Error>,
    polls: usize,
) -> bool {
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut call = pin!(service.call(request()));
    let mut left = polls;
    let answer = loop {
        if left == 0 {
            return false;
        }
        left -= 1;
        if let Poll::Ready(answer) = call.as_mut().poll(&mut cx) {
            break answer;
        }
        assert!(woken.0.swap(false, Ordering::AcqRel), "no Pending without a waker");
    };
    let Ok(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) = answer else { return true };
    loop {
        if left == 0 {
            return false;
        }
        left -= 1;
        let next = pin!(chunks.next());
        if let Poll::Ready(None | Some(Err(_))) = next.poll(&mut cx) {
            return true;
        }
    }
}

/// I4, I11: at whichever poll a caller leaves, nothing stays reserved, and what was sent is charged.
#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_nothing_stays_reserved_and_what_was_sent_is_charged() {
    let chunks = || [Step::Yield, Step::Chunk(StreamChunk::text("a"))];
    let ways: [&dyn Fn() -> Reply; 4] = [
        &|| Reply::text("hi").after([Step::Yield, Step::Yield]),
        &|| Reply::stream(chunks().into_iter().chain(chunks())).after([Step::Yield]),
        &|| Reply::stream(chunks().into_iter().chain([Step::Cut])),
        &|| {
            Reply::error(Error::provider(ErrorClass::Transport, "p", "m").with_dispatched(true))
                .after([Step::Yield])
        },
    ];
    let mut stops = 0;
    for way in ways {
        for is_far in [false, true] {
            for polls in 0.. {
                let store = MemoryStore::new().with_clock(noon());
                let table = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_tokens(1000)));
                let (layer, worker) = if is_far {
                    let remote = Remote::new(store.clone());
                    let (layer, worker) = QuotaLayer::pair(remote, table, prices(), WorkerOptions::default());
                    (layer, Some(worker))
                } else {
                    (QuotaLayer::new(store.clone(), table, prices()), None)
                };
                let provider = Scripted::new().reply(way());
                let marked = provider.clone();
                let leaf = service_fn(move |request: LlmRequest| {
                    let provider = marked.clone();
                    async move {
                        request.progress.mark_dispatched();
                        provider.oneshot(request).await
                    }
                });
                let ended = stop_after(layer.with_clock(noon()).layer(leaf), polls);
                if let Some(worker) = worker {
                    let report = worker.shutdown(Duration::from_secs(60)).await;
                    assert_eq!((report.left, report.last_error), (0, None));
                }
                let was_sent = !provider.requests().is_empty();
                for department in ["research", "operations"] {
                    let days = Calendar::utc().days_around(noon());
                    let in_day = store.usage(&department.into(), &days).await.unwrap().in_day;
                    assert_eq!(in_day.reserved, Amount::ZERO, "after {polls} polls");
                    assert_eq!(in_day.settled.requests, u64::from(was_sent), "after {polls} polls");
                    assert_eq!(in_day.settled.tokens > 0, was_sent);
                }
                stops += 1;
                if ended {
                    break;
                }
            }
        }
    }
    assert!(stops > 40, "{stops}");
}

/// I3–I6 and I11 of the layer, under a store that fails in any way at any time: after it has recovered and leases have
/// run out, the counters are what the provider has seen.
#[test]
fn i3_to_i6_i11_whatever_a_store_does_the_counters_return_to_the_truth() {
    let faults = [
        Fault::None,
        Fault::Refuses,
        Fault::Hangs,
        Fault::LosesReplies,
        Fault::Slow(Duration::from_millis(100)),
        Fault::Slow(Duration::from_secs(1)),
    ];
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = MemoryStore::new().with_clock(noon());
            let remote = Remote::new(store.clone());
            let table = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_tokens(1_000_000)));
            let (layer, worker) = QuotaLayer::pair(remote.clone(), table, prices(), WorkerOptions::default());
            let provider = Scripted::new();
            let marked = provider.clone();
            let service = layer.with_clock(noon()).layer(service_fn(move |request: LlmRequest| {
                let provider = marked.clone();
                async move {
                    request.progress.mark_dispatched();
                    provider.oneshot(request).await
                }
            }));
            let mut calls = Vec::new();
            for _ in 0..30 {
                remote.fail(faults[random.usize(..faults.len())]);
                provider
                    .push(Reply::text("hi").after([Step::Wait(Duration::from_millis(random.u64(0..500)))]));
                let call = tokio::spawn(service.clone().oneshot(request()));
                tokio::time::sleep(Duration::from_millis(random.u64(0..1500))).await;
                if random.u8(..5) == 0 {
                    call.abort();
                }
                calls.push(call);
            }
            for call in calls {
                let _ = call.await;
            }
            remote.fail(Fault::None);
            let report = worker.shutdown(Duration::from_secs(600)).await;
            assert_eq!((report.left, report.given_up), (0, 0), "seed {seed}");
            let sent = provider.requests().len() as u64;
            let days = Calendar::utc().days_around(noon());
            let in_day = store.usage(&"research".into(), &days).await.unwrap().in_day;
            assert_eq!((in_day.settled.requests, in_day.reserved), (sent, Amount::ZERO), "seed {seed}");
            assert!(sent > 0);
        });
    }
}

/// I13: what a cache answers moves no counter, wherever the layer stands.
#[tokio::test]
async fn i13_answers_that_nobody_was_asked_for_move_no_counter() {
    let store = MemoryStore::new().with_clock(noon());
    let table = PolicyTable::new(DepartmentPolicy::new(Limits::new().with_day_requests(1)));
    let service =
        QuotaLayer::new(store.clone(), table, prices()).layer(service_fn(|request: LlmRequest| async move {
            let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(7, 3)));
            answer.cache = CacheStatus::Coalesced;
            Ok::<_, Error>(answer)
        }));
    for _ in 0..5 {
        service.clone().oneshot(request()).await.unwrap();
    }
    let days = Calendar::utc().days_around(noon());
    let in_day = store.usage(&"research".into(), &days).await.unwrap().in_day;
    assert_eq!((in_day.settled, in_day.reserved), (Amount::ZERO, Amount::ZERO));
}

// ===== leases that run out =====

#[tokio::test]
async fn a_lease_that_nobody_settles_charges_what_was_agreed() {
    let amount = |tokens, nanos| Amount::new(1, tokens, NanoUsd::new(nanos));
    for (on_expiry, charges) in [
        (OnExpiry::ChargePrompt, amount(35, 35 * 3_000)),
        (OnExpiry::ChargeAll, amount(35 + 20, 35 * 3_000 + 20 * 15_000)),
        (OnExpiry::Release, Amount::ZERO),
    ] {
        let clock = ManualClock::new(noon());
        let store = MemoryStore::new().with_clock(clock.clone());
        let table = PolicyTable::default();
        let layer = QuotaLayer::new(store.clone(), table, prices()).with_on_expiry(on_expiry);
        let provider = Scripted::new().reply(Reply::stall());
        let call = tokio::spawn(layer.with_clock(clock.clone()).layer(provider).oneshot(request()));
        tokio::task::yield_now().await;
        let days = Calendar::utc().days_around(noon());
        clock.advance(Duration::from_secs(24 * 3600));
        let usage = |days: Days| {
            let store = store.clone();
            async move { store.usage(&"research".into(), &days).await.unwrap().in_day }
        };
        let days = Days::only(days[1]);
        let expired = usage(days.clone()).await;
        assert_eq!((expired.settled, expired.reserved), (charges, Amount::ZERO), "{on_expiry:?}");
        call.abort();
        let _ = call.await;
    }
}

// ===== access and fallback =====

fn openly() -> PolicyTable {
    PolicyTable::default()
        .with("research", DepartmentPolicy::default().with_models(["p/model", "q/*"]))
        .with("operations", DepartmentPolicy::default())
        .with("nobody", DepartmentPolicy::default().with_models([""; 0]))
}

fn of(model: &str, departments: &[&str]) -> LlmRequest {
    let context = RequestContext::new().with_departments(departments.iter().copied());
    LlmRequest::new(model, body()).with_context(context)
}

#[tokio::test]
async fn seed_10_every_department_must_allow_the_model_and_an_empty_list_allows_none() {
    let provider = Scripted::new();
    let service = AccessLayer::new(openly()).layer(provider.clone());
    for (model, departments, refused_by) in [
        ("p/model", &["research"][..], None),
        ("q/anything/at/all", &["research", "operations"], None),
        ("p/other", &["research"], Some("research")),
        ("p/other", &["operations"], None),
        ("p/other", &["operations", "research"], Some("research")),
        ("p/model", &["research", "nobody"], Some("nobody")),
        ("p/other", &["stranger"], None),
        ("p/other", &[], None),
        ("P/MODEL", &["research"], Some("research")),
        ("p/model-2", &["research"], Some("research")),
    ] {
        let before = provider.requests().len();
        let answer = service.clone().oneshot(of(model, departments)).await;
        match (answer, refused_by) {
            (Ok(_), None) => assert_eq!(provider.requests().len(), before + 1),
            (Err(error), Some(expected)) => {
                let ErrorKind::ModelNotAllowed { department_id, model: refused } = error.kind() else {
                    panic!("{error:?}")
                };
                assert_eq!((&**department_id, &**refused), (expected, model));
                assert_eq!((error.status().as_u16(), error.is_retryable()), (403, false));
                assert_eq!(provider.requests().len(), before, "nobody is asked");
            }
            (answer, expected) => panic!("{model} for {departments:?}: {answer:?}, {expected:?}"),
        }
    }
}

#[tokio::test]
async fn seed_10_limits_and_lists_hold_for_every_attempt() {
    let chains = || Chains::builder().chain("p/model", ["p/other", "q/spare"]).build().unwrap();
    let store = MemoryStore::new().with_clock(noon());
    let limits = Limits::new().with_day_requests(3).with_day_cost(NanoUsd::MAX);
    let table = PolicyTable::default()
        .with("research", DepartmentPolicy::new(limits).with_models(["p/model", "q/*"]));
    let spare = Price::new(Rates::per_million("1", "1").unwrap());
    let book = prices().with_overrides(PriceBook::of("spare", [("q/spare", spare)]).unwrap());
    let provider = Scripted::new();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::new(chains()))
        .layer(AccessLayer::new(table.clone()))
        .layer(QuotaLayer::new(store.clone(), table, book).with_clock(noon()))
        .service(provider.clone());
    let fails = || Reply::complete(Completion::text("", TokenUsage::new(10, 0)));
    let answers = || Reply::complete(Completion::text("hi", TokenUsage::new(10, 10)));

    provider.push(fails());
    provider.push(answers());
    let answer = service.clone().oneshot(of("p/model", &["research"])).await.unwrap();
    assert_eq!(answer.model, "q/spare");
    let tried: Vec<_> = provider.requests().iter().map(|request| request.model.to_string()).collect();
    assert_eq!(tried, ["p/model", "q/spare"], "the one that is not allowed is skipped");
    // Each at its own price: the empty answer too.
    let days = Calendar::utc().days_around(noon());
    let standing = store.usage(&"research".into(), &days).await.unwrap();
    assert_eq!(standing.in_day.settled, Amount::new(2, 30, NanoUsd::new(10 * 3_000 + 20 * 1_000)));

    // The third request is the last: the second attempt is refused, and that is final.
    provider.push(fails());
    let error = service.clone().oneshot(of("p/model", &["research"])).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::QuotaExceeded(_)), "{error:?}");
    assert_eq!(provider.requests().len(), 3);

    // What the caller asked for himself is refused, not substituted.
    let error = service.oneshot(of("p/other", &["research"])).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::ModelNotAllowed { .. }), "{error:?}");
    assert_eq!(provider.requests().len(), 3);
}

// ===== the calendar =====

#[test]
fn days_and_months_of_utc_begin_and_end_where_they_should() {
    let utc = Calendar::utc();
    // The last moment of a day, of a month, of February in a leap year and in another, of a year.
    for (last, date, month, next) in [
        (1_795_478_399, 20_261_123, 202_611, (20_261_124, 202_611)),
        (1_796_083_199, 20_261_130, 202_611, (20_261_201, 202_612)),
        (1_709_251_199, 20_240_229, 202_402, (20_240_301, 202_403)),
        (1_709_164_799, 20_240_228, 202_402, (20_240_229, 202_402)),
        (1_740_787_199, 20_250_228, 202_502, (20_250_301, 202_503)),
        (1_798_761_599, 20_261_231, 202_612, (20_270_101, 202_701)),
    ] {
        let day = utc.day(at(last));
        assert_eq!((day.date, day.month), (date, month));
        assert_eq!(day.ends_at(), at(last + 1));
        let following = utc.day(at(last + 1));
        assert_eq!((following.date, following.month), next);
        assert_eq!(following.from, day.until);
        let ends_month = day.month != following.month;
        assert_eq!(day.month_until == day.until, ends_month);
    }
}

/// Days have no gaps and do not overlap, and a store finds its day if it is off by up to a day.
fn check_days(calendar: &Calendar, from: u64, hours: u64) {
    let mut last: Option<Day> = None;
    for hour in (0..hours).step_by(5) {
        let now = from + hour * 3600;
        let day = calendar.day(at(now));
        assert!(day.contains(now * 1000), "{day:?} {now}");
        assert!(day.month_from <= day.from && day.until <= day.month_until);
        for skew in [-12_i64, 12] {
            let skewed = now.checked_add_signed(skew * 3600).unwrap();
            assert_eq!(calendar.days_around(at(skewed)).at(now * 1000), Some(&day), "{skew} hours off");
        }
        if let Some(last) = last.filter(|last| last.date != day.date) {
            assert!(day.date > last.date);
            assert_eq!(day.from, last.until);
            assert_eq!(day.month != last.month, day.month_from == last.month_until);
        }
        last = Some(day);
    }
}

#[test]
fn two_years_of_days_in_utc() {
    check_days(&Calendar::utc(), 1_704_067_200, 2 * 366 * 24);
}

#[cfg(feature = "time-zones")]
#[test]
fn days_of_zones_with_summer_time_have_23_or_25_hours_and_no_gaps() {
    let lengths = |zone: &str, from: u64, hours: u64| {
        let calendar = Calendar::in_zone(zone).unwrap();
        check_days(&calendar, from, hours);
        let mut lengths: Vec<u64> = (0..hours)
            .step_by(20)
            .map(|hour| calendar.day(at(from + hour * 3600)))
            .map(|day| (day.until - day.from) / 60_000)
            .collect();
        lengths.sort_unstable();
        lengths.dedup();
        lengths
    };
    let year = 366 * 24;
    assert_eq!(lengths("Europe/Berlin", 1_767_225_600, year), [23 * 60, 24 * 60, 25 * 60]);
    // Half an hour of summer time.
    assert_eq!(lengths("Australia/Lord_Howe", 1_767_225_600, year), [1410, 1440, 1470]);
    assert_eq!(lengths("Asia/Kathmandu", 1_767_225_600, year), [1440]);
    // Summer time began at midnight: that day begins at one.
    assert_eq!(lengths("America/Sao_Paulo", 1_514_764_800, year), [23 * 60, 24 * 60, 25 * 60]);
    // The 30th of December 2011 was left out.
    assert_eq!(lengths("Pacific/Apia", 1_324_500_000, 20 * 24), [1440]);
    let berlin = Calendar::in_zone("Europe/Berlin").unwrap();
    // 2026-11-30 23:30 UTC is in December there.
    assert_eq!(berlin.day(at(1_796_081_400)).month, 202_612);
    assert!(Calendar::in_zone("Europe/Nowhere").is_err());
}

// ===== the edges of numbers =====

#[test]
fn counters_neither_overflow_nor_lose_a_unit() {
    let most = Amount::MOST;
    assert_eq!(most.tokens, (i64::MAX / 4) as u64);
    let clock = ManualClock::new(noon());
    let store = MemoryStore::new().with_clock(clock);
    let a = Departments::one(Department::new("a", Limits::new()));
    let days = Days::only(Calendar::utc().day(noon()));
    at_once(async {
        let mut granted = 0;
        for _ in 0..6 {
            let reservation = Reservation::new(CallId::mint(noon()), a.clone(), most, LEASE, days.clone());
            granted += u64::from(matches!(store.reserve(&reservation).await.unwrap(), Decision::Granted(_)));
        }
        assert_eq!(granted, 4, "no limit is a limit of what a counter holds");
        for _ in 0..6 {
            let id = CallId::mint(noon());
            let free = Departments::one(Department::new("b", Limits::new()));
            let reservation = Reservation::new(id, free.clone(), Amount::ZERO, LEASE, days.clone());
            assert!(matches!(store.reserve(&reservation).await.unwrap(), Decision::Granted(_)));
            store.settle(&Settlement::new(id, free, Amount::new(1, u64::MAX, NanoUsd::MAX))).await.unwrap();
        }
        let in_day = store.usage(&"b".into(), &days).await.unwrap().in_day;
        assert_eq!(in_day.settled, Amount::new(6, i64::MAX as u64, NanoUsd::MAX), "it stays at its end");
        let debt = Amount::new(1, 1, NanoUsd::new(-5)).clamped();
        assert_eq!(debt.cost, NanoUsd::ZERO);
    });
}

fn limits() -> impl Strategy<Value = Limits> {
    let (counts, costs) = (|| any::<(Option<u64>, Option<u64>)>(), any::<(Option<i64>, Option<i64>)>());
    (counts(), counts(), costs).prop_map(
        |((day, month), (day_tokens, month_tokens), (day_cost, month_cost))| {
            let mut limits = Limits::new();
            (limits.day_requests, limits.month_requests) = (day, month);
            (limits.day_tokens, limits.month_tokens) = (day_tokens, month_tokens);
            (limits.day_cost, limits.month_cost) = (day_cost.map(NanoUsd::new), month_cost.map(NanoUsd::new));
            limits
        },
    )
}

proptest! {
    #[test]
    fn what_one_call_counts_for_is_at_most_a_quarter_of_a_counter(requests: u64, tokens: u64, cost: i64) {
        let (asked, most) = (Amount::new(requests, tokens, NanoUsd::new(cost)), Amount::MOST);
        let (id, days) = (CallId::mint(noon()), Days::only(Calendar::utc().day(noon())));
        let a = Departments::one(Department::new("a", Limits::new()));
        let reservation = Reservation::new(id, a.clone(), asked, LEASE, days).with_on_expiry(asked);
        let settlement = Settlement::new(id, a, asked);
        for counted in [reservation.amount, reservation.on_expiry, settlement.amount] {
            prop_assert_eq!(counted.requests, requests.min(most.requests));
            prop_assert_eq!(counted.tokens, tokens.min(most.tokens));
            prop_assert_eq!(counted.cost.nanos(), cost.clamp(0, most.cost.nanos()));
        }
    }

    #[test]
    fn a_limit_is_at_most_what_a_counter_holds_and_of_two_the_stricter_one(one in limits(), other in limits()) {
        let twice = [("b", Limits::new()), ("a", one), ("c", Limits::new()), ("a", other)];
        let departments = Departments::new(twice.map(|(id, limits)| Department::new(id, limits)));
        let ids: Vec<&str> = departments.iter().map(|department| &*department.id).collect();
        prop_assert_eq!(ids, ["a", "b", "c"]);
        let most = i64::MAX as u64;
        let least = |counts: [Option<u64>; 2]| counts.into_iter().flatten().fold(most, u64::min);
        let cost = |limit: Option<NanoUsd>| limit.map(|limit| limit.nanos().max(0) as u64);
        for (period, of) in [
            (Period::Day, [one, other].map(|it| (it.day_requests, it.day_tokens, it.day_cost))),
            (Period::Month, [one, other].map(|it| (it.month_requests, it.month_tokens, it.month_cost))),
        ] {
            let ceiling = |kind| departments[0].limits.ceiling(period, kind);
            prop_assert_eq!(ceiling(QuotaKind::Requests), least(of.map(|it| it.0)));
            prop_assert_eq!(ceiling(QuotaKind::Tokens), least(of.map(|it| it.1)));
            prop_assert_eq!(ceiling(QuotaKind::Cost), least(of.map(|it| cost(it.2))));
        }
    }
}
