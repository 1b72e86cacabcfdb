//! `ConcurrencyLimitLayer`: who is let in, who waits, and when a permit comes back.

use futures_core::Stream;
use futures_util::FutureExt as _;
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, RequestContext,
    ResponseBody, ServiceBuilderExt as _, StreamChunk, TimeoutPhase, TokenUsage,
    concurrency::{ConcurrencyLimit, ConcurrencyLimitLayer},
    fallback::{Backoff, Chains},
    testing::{Reply, Scripted, Step},
};
use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

type Limited = ConcurrencyLimit<Scripted>;
type Call = task::Spawn<<Limited as Service<LlmRequest>>::Future>;

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Hi").build().unwrap())
}

fn broken() -> Error {
    Error::provider(ErrorClass::Transport, "acme", "one")
}

fn word() -> Step {
    Step::Chunk(StreamChunk::text("a"))
}

/// A call of `model`, not yet polled.
fn call(service: &Limited, model: &str) -> Call {
    let mut service = service.clone();
    let mut ready = task::spawn(());
    let polled = ready.enter(|cx, _| service.poll_ready(cx));
    assert_ready_ok!(polled);
    task::spawn(service.call(request(model)))
}

#[track_caller]
fn assert_overloaded(error: &Error) {
    assert!(matches!(error.kind(), ErrorKind::Overloaded), "{error:?}");
    assert_eq!((error.status().as_u16(), error.retry_after()), (503, Some(SECOND)));
    assert!(error.is_retryable() && !error.dispatched());
}

fn stream_of(answer: LlmResponse) -> ChunkStream {
    match answer.body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(_) => panic!("not a stream"),
    }
}

// ===== until when =====

#[tokio::test(start_paused = true)]
async fn a_whole_answer_gives_its_permit_back_at_once() {
    let layer = ConcurrencyLimitLayer::new(1);
    let provider = Scripted::new().reply(Reply::text("hi").after([Step::Gate]));
    let service = layer.layer(provider.clone());
    let mut first = call(&service, "m");
    assert_eq!(layer.available(), 0, "taken by `call`");
    assert_pending!(first.poll());
    provider.open();
    let _answer = assert_ready_ok!(first.poll());
    assert_eq!(layer.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_keeps_its_permit_until_its_terminal_chunk_and_no_longer() {
    let layer = ConcurrencyLimitLayer::new(1);
    let provider = Scripted::new().reply(Reply::stream([word(), word()]));
    let service = layer.layer(provider.clone());
    let mut chunks = stream_of(assert_ready_ok!(call(&service, "m").poll()));
    let mut waiting = call(&service, "next");
    for _ in 0..2 {
        chunks.next().await.unwrap().unwrap();
        assert_eq!(layer.available(), 0);
        assert_pending!(waiting.poll());
    }
    assert!(chunks.next().await.unwrap().unwrap().is_final());
    assert!(waiting.is_woken());
    assert_ready_ok!(waiting.poll());
    assert_eq!(layer.available(), 1);
    drop(chunks);
    assert_eq!(layer.available(), 1, "given back once");
}

#[tokio::test(start_paused = true)]
async fn a_call_may_be_made_outside_of_a_runtime_whether_or_not_there_is_a_permit() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(2, SECOND);
    let service = layer.layer(Scripted::new().reply(Reply::words(["a"])));
    let outside = |model: &'static str| {
        let service = service.clone();
        std::thread::spawn(move || call(&service, model)).join().expect("no panic")
    };
    let chunks = stream_of(assert_ready_ok!(outside("first").poll()));
    let mut second = outside("second");
    assert_pending!(second.poll());
    drop(chunks);
    assert_ready_ok!(second.poll());
    let _held = call(&service, "held");
    let mut third = outside("third");
    assert_pending!(third.poll());
    // Outside, the clock is not paused.
    advance(60 * SECOND).await;
    assert_overloaded(&assert_ready_err!(third.poll()));
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_keeps_no_place_of_the_service_below() {
    let below = ServiceBuilder::new().concurrency_limit(1).service(Scripted::new());
    let mut refused = ConcurrencyLimitLayer::new(0).with_queue(0, SECOND).layer(below);
    let mut other = refused.clone();
    assert_overloaded(&refused.ready().await.unwrap().call(request("m")).await.unwrap_err());
    other.ready().now_or_never().expect("a place").unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_other_end_gives_the_permit_back_too() {
    type Replies = [(&'static str, fn() -> Reply); 7];
    let replies: Replies = [
        ("an error", || Reply::error(broken())),
        ("a late error", || Reply::error(broken()).after([Step::Yield])),
        ("a stream that breaks", || Reply::stream([word(), Step::Fail(broken())])),
        ("a stream that is cut", || Reply::stream([word(), Step::Cut])),
        ("a panic in call", Reply::panic),
        ("a panic before the head", || Reply::text("").after([Step::Panic])),
        ("a panic in the stream", || Reply::stream([word(), Step::Panic])),
    ];
    for (way, reply) in replies {
        // In the end directly, and after a wait.
        for waits in [false, true] {
            let layer = ConcurrencyLimitLayer::new(1);
            let provider = Scripted::new().with_places(10);
            let mut service = layer.layer(provider.clone());
            let held = waits.then(|| {
                provider.push(Reply::stream([Step::Gate]));
                stream_of(assert_ready_ok!(call(&service, "first").poll()))
            });
            provider.push(reply());
            let ended = AssertUnwindSafe(async {
                let call = service.ready().await.unwrap().call(request("m"));
                drop(held);
                let Ok(answer) = call.await else { return };
                let mut chunks = stream_of(answer);
                chunks.next().await.unwrap().unwrap();
                assert_eq!(layer.available(), 0, "{way}");
                chunks.next().await.unwrap().unwrap_err();
                assert_eq!(layer.available(), 1, "{way}: though the stream is still held");
            });
            drop(ended.catch_unwind().await);
            drop(service);
            assert_eq!((layer.available(), layer.waiting()), (1, 0), "{way}, waits: {waits}");
            assert_eq!((provider.alive(), provider.free()), (0, 10), "{way}, waits: {waits}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_at_any_point_gives_the_permit_back() {
    for read in 0..4 {
        let layer = ConcurrencyLimitLayer::new(1);
        let provider = Scripted::new().reply(Reply::stream([word(), word()]).after([Step::Yield]));
        let service = layer.layer(provider.clone());
        let mut call = call(&service, "m");
        if read > 0 {
            assert_pending!(call.poll());
        }
        if read > 1 {
            let mut chunks = stream_of(assert_ready_ok!(call.poll()));
            for _ in 2..read {
                chunks.next().await.unwrap().unwrap();
            }
            assert_eq!(layer.available(), 0);
        }
        drop(call);
        assert_eq!((layer.available(), provider.alive()), (1, 0), "{read}");
    }
}

// ===== the queue =====

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_and_beyond_it_a_call_is_refused_at_once() {
    let layer = ConcurrencyLimitLayer::new(2).with_queue(3, SECOND);
    let provider = Scripted::new();
    (0..5).for_each(|_| provider.push(Reply::text("hi").after([Step::Gate])));
    let service = layer.layer(provider.clone());
    let mut inside: Vec<_> = (0..2).map(|_| call(&service, "in")).collect();
    inside.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let mut waiting: Vec<_> = (0..3).map(|_| call(&service, "waits")).collect();
    waiting.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!((layer.available(), layer.waiting()), (0, 3));

    // It is the call that is refused, and not `poll_ready`.
    let mut clone = service.clone();
    assert_ready_ok!(task::spawn(()).enter(|cx, _| clone.poll_ready(cx)));
    let beyond = request("beyond");
    let progress = beyond.progress.clone();
    let mut beyond = task::spawn(clone.call(beyond));
    assert_overloaded(&assert_ready_err!(beyond.poll()));
    assert!(!progress.is_dispatched());
    assert_eq!(provider.requests().len(), 2, "who waits or is refused is not sent");

    provider.open();
    assert!(inside.iter_mut().filter_map(|call| call.is_woken().then(|| call.poll())).any(|p| p.is_ready()));
    assert!(waiting[0].is_woken());
    assert_pending!(waiting[0].poll());
    assert_eq!((layer.waiting(), provider.requests().len()), (2, 3));
    let mut again = call(&service, "again");
    assert_pending!(again.poll());
    assert_eq!(layer.waiting(), 3);
}

#[tokio::test(start_paused = true)]
async fn as_many_as_are_let_in_may_wait_for_a_second_unless_told() {
    let layer = ConcurrencyLimitLayer::new(2);
    let provider = Scripted::new().reply(Reply::stall()).reply(Reply::stall());
    let service = layer.layer(provider.clone());
    let mut all: Vec<_> = (0..5).map(|_| call(&service, "m")).collect();
    assert_overloaded(&assert_ready_err!(all[4].poll()));
    all.truncate(4);
    all.iter_mut().for_each(|call| assert_pending!(call.poll()));
    advance(SECOND - MILLI).await;
    assert!(all.iter().all(|call| !call.is_woken()));
    advance(2 * MILLI).await;
    for waiting in &mut all[2..] {
        assert!(waiting.is_woken());
        assert_overloaded(&assert_ready_err!(waiting.poll()));
    }
    assert_pending!(all[0].poll());
    assert_pending!(all[1].poll());
    assert_eq!((layer.waiting(), provider.requests().len()), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn each_waits_its_own_time() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(10, 3 * SECOND);
    let service = layer.layer(Scripted::new().reply(Reply::stall()));
    let mut inside = call(&service, "in");
    assert_pending!(inside.poll());
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut next = call(&service, "waits");
        assert_pending!(next.poll());
        waiting.push(next);
        advance(SECOND).await;
    }
    // The first has waited for three seconds, the second for two.
    advance(MILLI).await;
    assert_overloaded(&assert_ready_err!(waiting[0].poll()));
    assert_pending!(waiting[1].poll());
    assert_eq!(layer.waiting(), 2);
    drop(inside);
    assert_ready_ok!(waiting[1].poll());
    assert_ready_ok!(waiting[2].poll());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_his_caller() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(2, 60 * SECOND);
    let service = layer.layer(Scripted::new().reply(Reply::stall()));
    let mut first = call(&service, "m");
    assert_pending!(first.poll());
    let timed = |timeout: Duration| {
        let mut request = request("m");
        request.context = request.context.with_timeout(timeout);
        task::spawn(service.clone().oneshot(request))
    };
    let (mut short, mut long) = (timed(100 * MILLI), timed(90 * SECOND));
    assert_pending!(short.poll());
    assert_pending!(long.poll());
    advance(100 * MILLI).await;
    let error = assert_ready_err!(short.poll());
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }), "{error:?}");
    assert!(!error.dispatched());
    assert_eq!(layer.waiting(), 1);
    advance(60 * SECOND).await;
    assert_overloaded(&assert_ready_err!(long.poll()));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_never_polled_holds_its_place_no_longer_than_others() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(1, SECOND);
    let service = layer.layer(Scripted::new().reply(Reply::stall()));
    let mut inside = call(&service, "in");
    assert_pending!(inside.poll());
    let mut unpolled = call(&service, "waits");
    assert_eq!(layer.waiting(), 1);
    advance(2 * SECOND).await;
    assert_overloaded(&assert_ready_err!(unpolled.poll()));
    assert_eq!(layer.waiting(), 0, "and gives it back with its refusal");
}

#[tokio::test(start_paused = true)]
async fn who_came_first_is_let_in_first_and_nobody_overtakes() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(20, 60 * SECOND);
    let provider = Scripted::new();
    let service = layer.layer(provider.clone());
    provider.push(Reply::stream([Step::Gate]));
    let mut held = stream_of(assert_ready_ok!(call(&service, "0").poll()));
    let mut waiting: Vec<_> = (1..=10).map(|n| call(&service, &n.to_string())).collect();
    waiting.iter_mut().for_each(|call| assert_pending!(call.poll()));
    for n in 1..=10 {
        drop(held);
        // The permit is free, and promised: whoever comes now stands behind.
        assert_eq!(layer.available(), 0);
        let mut late = call(&service, "late");
        assert_pending!(late.poll());
        drop(late);

        let woken: Vec<_> = waiting.iter().map(|call| call.is_woken()).collect();
        assert_eq!(woken.iter().position(|woken| *woken), Some(0), "{n}");
        assert_eq!(woken.iter().filter(|woken| **woken).count(), 1, "{n}");
        provider.push(Reply::stream([Step::Gate]));
        held = stream_of(assert_ready_ok!(waiting.remove(0).poll()));
        assert_eq!(provider.requests().last().unwrap().model, *n.to_string());
    }
    drop(held);
    assert_eq!((layer.available(), layer.waiting()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_gives_the_place_back_and_a_promised_permit_to_the_next() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(3, 60 * SECOND);
    let provider = Scripted::new().with_places(4).reply(Reply::stream([Step::Gate]));
    let service = layer.layer(provider.clone());
    let held = stream_of(assert_ready_ok!(call(&service, "0").poll()));
    let mut waiting: Vec<_> = (1..=3).map(|n| call(&service, &n.to_string())).collect();
    waiting.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!((layer.waiting(), provider.free()), (3, 3), "who waits holds nothing below");

    drop(waiting.remove(1));
    assert_eq!(layer.waiting(), 2);
    drop(held);
    assert!(waiting[0].is_woken() && !waiting[1].is_woken());
    drop(waiting.remove(0));
    assert!(waiting[0].is_woken(), "it was promised to one who left");
    assert_ready_ok!(waiting.remove(0).poll());
    assert_eq!(provider.requests().iter().map(|r| r.model.to_string()).collect::<Vec<_>>(), ["0", "3"]);
    assert_eq!((layer.available(), layer.waiting(), provider.free()), (1, 0, 4));

    // Dropped before it was polled at all.
    provider.push(Reply::stream([Step::Gate]));
    let held = stream_of(assert_ready_ok!(call(&service, "0").poll()));
    drop(call(&service, "unpolled"));
    assert_eq!(layer.waiting(), 0);
    drop(held);
    assert_eq!(layer.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn odd_bounds_do_what_they_say() {
    let shut = ConcurrencyLimitLayer::new(0);
    let service = shut.layer(Scripted::new());
    assert_overloaded(&assert_ready_err!(call(&service, "m").poll()));

    let no_queue = ConcurrencyLimitLayer::new(1).with_queue(0, 60 * SECOND);
    let service = no_queue.layer(Scripted::new().reply(Reply::stall()));
    let _inside = call(&service, "m");
    assert_overloaded(&assert_ready_err!(call(&service, "m").poll()));

    let no_time = ConcurrencyLimitLayer::new(1).with_queue(5, Duration::ZERO);
    let service = no_time.layer(Scripted::new().reply(Reply::stall()));
    let _inside = call(&service, "m");
    let error = call(&service, "m").await.unwrap_err();
    assert_overloaded(&error);

    let endless = ConcurrencyLimitLayer::new(usize::MAX).with_queue(usize::MAX, Duration::MAX);
    let service = endless.layer(Scripted::new());
    assert_ready_ok!(call(&service, "m").poll());
    let patient = ConcurrencyLimitLayer::new(1).with_queue(1, Duration::MAX);
    let service = patient.layer(Scripted::new().reply(Reply::stall()));
    let inside = call(&service, "m");
    let mut waiting = call(&service, "m");
    assert_pending!(waiting.poll());
    advance(100_000 * SECOND).await;
    assert_pending!(waiting.poll());
    drop(inside);
    assert!(waiting.is_woken());
}

// ===== among others =====

#[tokio::test(start_paused = true)]
async fn all_services_of_one_layer_share_its_permits_and_layers_apart_do_not() {
    let layer = ConcurrencyLimitLayer::new(1).with_queue(0, SECOND);
    let (a, b) = (layer.layer(Scripted::new().reply(Reply::stall())), layer.clone().layer(Scripted::new()));
    let held = call(&a, "m");
    assert_overloaded(&assert_ready_err!(call(&b.clone(), "m").poll()));
    let other = ConcurrencyLimitLayer::new(1).layer(Scripted::new());
    assert_ready_ok!(call(&other, "m").poll());
    drop(held);
    assert_ready_ok!(call(&b, "m").poll());
}

#[tokio::test(start_paused = true)]
async fn backpressure_below_passes_and_takes_no_permit() {
    let layer = ConcurrencyLimitLayer::new(1);
    let provider = Scripted::new().with_places(0);
    let mut service = layer.layer(provider.clone());
    let mut ready = task::spawn(());
    assert_pending!(ready.enter(|cx, _| service.poll_ready(cx)));
    provider.add_place();
    assert!(ready.is_woken());
    assert_ready_ok!(ready.enter(|cx, _| service.poll_ready(cx)));
    assert_eq!(layer.available(), 1);
    provider.kill();
    assert_ready_err!(ready.enter(|cx, _| service.poll_ready(cx)));
}

#[tokio::test(start_paused = true)]
async fn foreign_errors_keep_their_source() {
    let inner =
        service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(llm_layers::BoxError::from("boom")) });
    let error = ConcurrencyLimitLayer::new(1).layer(inner).oneshot(request("m")).await.unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "boom");
}

// ===== many threads =====

#[derive(Default)]
struct Count {
    now: AtomicUsize,
    most: AtomicUsize,
    total: AtomicUsize,
}

/// One call in flight.
struct Flight(Arc<Count>);

impl Flight {
    fn new(count: &Arc<Count>) -> Self {
        count.most.fetch_max(count.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        count.total.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Chunks {
    _flight: Flight,
    left: usize,
    pending: bool,
}

impl Stream for Chunks {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pending = !self.pending;
        if self.pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        match self.left.checked_sub(1) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Some(Ok(StreamChunk::end()))),
        }
        Poll::Ready(Some(Ok(StreamChunk::text("a"))))
    }
}

async fn answer(count: Arc<Count>, request: LlmRequest) -> Result<LlmResponse, Error> {
    let flight = Flight::new(&count);
    tokio::task::yield_now().await;
    match fastrand::u8(..4) {
        0 => Err(broken()),
        1 => Ok(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)))),
        _ => {
            let source = Chunks { _flight: flight, left: fastrand::usize(..6), pending: false };
            Ok(LlmResponse::new(request.model, ChunkStream::new(source)))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_more_than_allowed_are_in_flight_whatever_many_threads_do() {
    const MAX: usize = 5;
    let count = Arc::new(Count::default());
    let counted = Arc::clone(&count);
    let layer = ConcurrencyLimitLayer::new(MAX).with_queue(1_000, 60 * SECOND);
    let service = layer.layer(service_fn(move |request| answer(Arc::clone(&counted), request)));
    let tasks: Vec<_> = (0..64)
        .map(|_| {
            let mut service = service.clone();
            tokio::spawn(async move {
                for _ in 0..100 {
                    let call = service.ready().await.unwrap().call(request("m"));
                    let read = async {
                        match call.await {
                            Ok(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) => {
                                for _ in 0..fastrand::usize(..8) {
                                    drop(chunks.next().await);
                                }
                            }
                            Ok(_) => {}
                            Err(error) => assert_eq!(error.class(), Some(ErrorClass::Transport), "{error:?}"),
                        }
                    };
                    // Some leave at some point, in the queue or inside.
                    let patience = if fastrand::bool() { usize::MAX } else { fastrand::usize(..20) };
                    let leave = async {
                        for _ in 0..patience {
                            tokio::task::yield_now().await;
                        }
                    };
                    tokio::select! { biased; () = read => {} () = leave => {} }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (most, total) = (count.most.load(Ordering::SeqCst), count.total.load(Ordering::SeqCst));
    assert_eq!(most, MAX, "of {total} calls");
    assert!(total > 3_000, "{total}");
    assert_eq!(count.now.load(Ordering::SeqCst), 0);
    assert_eq!((layer.available(), layer.waiting()), (MAX, 0));
}

/// Two limits, and a retry between them.
#[tokio::test(start_paused = true)]
async fn who_waits_holds_nothing_that_a_further_attempt_needs() {
    let provider = Scripted::new().reply(Reply::error(broken()).after([Step::Wait(MILLI)]));
    let chains = Chains::builder().retries(1).backoff(Backoff::new(MILLI, MILLI));
    let service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1).with_queue(1, 60 * SECOND))
        .fallback(chains.build().unwrap())
        .concurrency_limit(1)
        .service(provider.clone());
    let began = Instant::now();
    let calls = (service.clone().oneshot(request("one")), service.oneshot(request("two")));
    let (first, second) = tokio::join!(calls.0, calls.1);
    assert_eq!((first.unwrap().attempts.len(), second.unwrap().attempts.len()), (1, 0));
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    let asked: Vec<_> = provider.requests().iter().map(|request| request.model.to_string()).collect();
    assert_eq!(asked, ["one", "one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_turn_has_come_waits_for_the_service_no_longer_than_its_caller() {
    let layer = ConcurrencyLimitLayer::new(1);
    let provider = Scripted::new().reply(Reply::stream([Step::Gate]));
    let mut inner = ServiceBuilder::new().concurrency_limit(1).service(provider.clone());
    let service = layer.layer(inner.clone());
    let held = stream_of(service.clone().oneshot(request("one")).await.unwrap());

    let context = RequestContext::new().with_deadline((Instant::now() + 10 * SECOND).into_std());
    let mut second = task::spawn(service.oneshot(request("two").with_context(context)));
    assert_pending!(second.poll());
    inner.ready().await.unwrap();
    drop(held);
    assert_pending!(second.poll());
    assert_eq!((layer.available(), layer.waiting()), (0, 0), "it has its turn");
    advance(11 * SECOND).await;
    let error = assert_ready_err!(second.poll());
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }), "{error:?}");
    assert_eq!((layer.available(), provider.requests().len()), (1, 1));
}
