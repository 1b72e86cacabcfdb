//! `CallTimeoutLayer` over a scripted provider, with time standing still unless it is moved.

#[path = "support/faulty.rs"]
mod faulty;

use self::faulty::faulty;
use futures_core::Stream;
use llm_layers::{
    ChatBody, ChunkStream, End, Error, ErrorKind, LlmRequest, LlmResponse, Observe, RequestContext,
    ResponseBody, StreamChunk, TimeoutPhase,
    peek::PeekLayer,
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use std::{
    future::pending,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

fn request() -> LlmRequest {
    LlmRequest::new("acme/one", ChatBody::builder().user("Hi").build().unwrap())
}

fn layer() -> CallTimeoutLayer {
    CallTimeoutLayer::new()
}

fn phase(error: &Error) -> TimeoutPhase {
    match error.kind() {
        ErrorKind::Timeout { phase } => *phase,
        other => panic!("{other:?}"),
    }
}

fn word() -> Step {
    Step::Chunk(StreamChunk::text("a"))
}

fn blank() -> Step {
    Step::Chunk(StreamChunk::role())
}

async fn call(
    layer: CallTimeoutLayer,
    provider: &Scripted,
    request: LlmRequest,
) -> Result<LlmResponse, Error> {
    layer.layer(provider.clone()).oneshot(request).await
}

async fn stream(layer: CallTimeoutLayer, provider: &Scripted) -> ChunkStream {
    stream_of(call(layer, provider, request()).await.unwrap())
}

fn stream_of(answer: LlmResponse) -> ChunkStream {
    match answer.body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(_) => panic!("not a stream"),
    }
}

/// Polls the stream by hand, within its task.
struct Reader(task::Spawn<ChunkStream>);

impl Reader {
    fn new(chunks: ChunkStream) -> Self {
        Self(task::spawn(chunks))
    }

    fn poll(&mut self) -> Poll<Option<Result<StreamChunk, Error>>> {
        self.0.enter(|cx, chunks| chunks.poll_next(cx))
    }

    fn is_woken(&self) -> bool {
        self.0.is_woken()
    }

    #[track_caller]
    fn word(&mut self) {
        assert!(assert_ready!(self.poll()).expect("not the end").expect("no error").has_content());
    }

    #[track_caller]
    fn silent(&mut self) {
        assert_pending!(self.poll());
    }

    /// One error of this phase, and then nothing, ever.
    #[track_caller]
    fn timed_out(&mut self, expected: TimeoutPhase, provider: &Scripted) {
        let error = assert_ready!(self.poll()).expect("not the end").expect_err("an error");
        assert_eq!(phase(&error), expected);
        assert!(error.dispatched());
        assert_eq!(provider.alive(), 0, "it hangs up at once, though the stream is still held");
        assert!(assert_ready!(self.poll()).is_none());
        assert!(assert_ready!(self.poll()).is_none());
    }
}

#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<String>>>);

impl Observe for Ends {
    fn on_end(self, end: End<'_>) {
        let said = match end {
            End::Failed(error, summary) => format!("failed: {error}, after {}", summary.chunks),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(said);
    }
}

// ===== until the head =====

#[tokio::test(start_paused = true)]
async fn a_call_without_a_head_ends_at_the_first_of_its_bounds() {
    let all = || {
        layer()
            .with_head(4 * SECOND)
            .with_first_content(3 * SECOND)
            .with_total(2 * SECOND)
            .with_idle(SECOND / 10)
    };
    for (layer, deadline, after, expected) in [
        (layer().with_head(SECOND), None, SECOND, TimeoutPhase::Head),
        (layer().with_first_content(SECOND), None, SECOND, TimeoutPhase::FirstContent),
        (layer().with_total(SECOND), None, SECOND, TimeoutPhase::Total),
        (layer(), Some(SECOND), SECOND, TimeoutPhase::Deadline),
        (all(), None, 2 * SECOND, TimeoutPhase::Total),
        (all().with_head(SECOND), None, SECOND, TimeoutPhase::Head),
        (all().with_total(9 * SECOND), None, 3 * SECOND, TimeoutPhase::FirstContent),
        (all(), Some(SECOND), SECOND, TimeoutPhase::Deadline),
        (all(), Some(9 * SECOND), 2 * SECOND, TimeoutPhase::Total),
    ] {
        let mut request = request();
        if let Some(deadline) = deadline {
            request.context = request.context.with_timeout(deadline);
        }
        let provider = Scripted::new().reply(Reply::stall());
        let mut service = layer.layer(provider.clone());
        let mut call = task::spawn(service.ready().await.unwrap().call(request));
        assert_pending!(call.poll());
        advance(after - MILLI).await;
        assert_pending!(call.poll());
        advance(2 * MILLI).await;
        assert!(call.is_woken(), "{expected}");
        let error = assert_ready_err!(call.poll());
        assert_eq!(phase(&error), expected);
        assert!(error.dispatched() && error.is_retryable());
        assert_eq!(error.status().as_u16(), 504);
        drop(call);
        assert_eq!(provider.alive(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn whole_answers_may_have_a_bound_of_their_own() {
    let all =
        || layer().with_head(SECOND).with_first_content(2 * SECOND).with_idle(SECOND).with_whole(9 * SECOND);
    let late = || Scripted::new().reply(Reply::text("hi").after([Step::Wait(8 * SECOND)]));
    assert_eq!(call(all(), &late(), request()).await.unwrap().text().await.unwrap(), "hi");
    for (layer, is_streamed, after, expected) in [
        (all(), false, 9 * SECOND, TimeoutPhase::Head),
        (all().with_whole(SECOND / 2), false, SECOND / 2, TimeoutPhase::Head),
        (all().with_total(3 * SECOND), false, 3 * SECOND, TimeoutPhase::Total),
        (all(), true, SECOND, TimeoutPhase::Head),
        (
            CallTimeoutLayer::new().with_whole(SECOND).with_first_content(2 * SECOND),
            true,
            2 * SECOND,
            TimeoutPhase::FirstContent,
        ),
    ] {
        let body = ChatBody::builder().user("Hi");
        let body = if is_streamed { body.streaming() } else { body };
        let request = LlmRequest::new("acme/one", body.build().unwrap());
        let (provider, started) = (Scripted::new().reply(Reply::stall()), Instant::now());
        let error = call(layer, &provider, request).await.unwrap_err();
        assert_eq!((phase(&error), started.elapsed()), (expected, after));
    }
    // Who gives a stream to one who asked for none has as long until it says something.
    let provider =
        Scripted::new().reply(Reply::stream([blank(), Step::Stall]).after([Step::Wait(3 * SECOND)]));
    let started = Instant::now();
    let layer = layer().with_head(SECOND).with_first_content(SECOND).with_whole(5 * SECOND);
    let mut chunks = stream(layer, &provider).await;
    assert!(!chunks.next().await.unwrap().unwrap().has_content());
    let error = chunks.next().await.unwrap().unwrap_err();
    assert_eq!((phase(&error), started.elapsed()), (TimeoutPhase::FirstContent, 5 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn without_a_setting_and_without_a_deadline_nothing_is_bounded() {
    let provider = Scripted::new().reply(Reply::stall());
    for layer in
        [layer(), layer().with_idle(SECOND), layer().with_total(Duration::MAX).with_head(Duration::MAX)]
    {
        let mut service = layer.layer(provider.clone());
        let mut call = task::spawn(service.ready().await.unwrap().call(request()));
        assert_pending!(call.poll());
        advance(Duration::from_secs(100_000_000)).await;
        assert_pending!(call.poll());
        provider.push(Reply::stall());
    }
}

#[tokio::test(start_paused = true)]
async fn the_clock_starts_at_the_call_and_not_at_its_first_poll() {
    let provider = Scripted::new().reply(Reply::stall());
    let mut service = layer().with_head(SECOND).layer(provider.clone());
    let mut call = task::spawn(service.ready().await.unwrap().call(request()));
    advance(SECOND).await;
    assert_eq!(phase(&assert_ready_err!(call.poll())), TimeoutPhase::Head);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_there_wins_over_a_bound_that_has_passed() {
    let provider = Scripted::new().reply(Reply::text("hi").after([Step::Gate]));
    let mut service = layer().with_head(SECOND).layer(provider.clone());
    let mut call = task::spawn(service.ready().await.unwrap().call(request()));
    assert_pending!(call.poll());
    advance(2 * SECOND).await;
    provider.open();
    assert_ready_ok!(call.poll());
}

#[tokio::test(start_paused = true)]
async fn whole_answers_and_errors_in_time_pass_as_they_are() {
    let wait = || [Step::Wait(SECOND - MILLI)];
    let failure = Error::new(ErrorKind::NotCached);
    let provider =
        Scripted::new().reply(Reply::text("hi").after(wait())).reply(Reply::error(failure).after(wait()));
    let all = layer().with_head(SECOND).with_first_content(SECOND).with_idle(MILLI).with_total(SECOND);
    assert_eq!(call(all, &provider, request()).await.unwrap().text().await.unwrap(), "hi");
    let error = call(all, &provider, request()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotCached) && !error.dispatched());
}

#[tokio::test(start_paused = true)]
async fn a_timeout_says_whether_the_provider_was_reached() {
    let inner = service_fn(|request: LlmRequest| async move {
        if request.requested == "reached" {
            request.progress.mark_dispatched();
        }
        pending::<Result<LlmResponse, Error>>().await
    });
    for reached in [true, false] {
        let mut request = request();
        request.requested = if reached { "reached" } else { "not" }.into();
        let error = layer().with_head(SECOND).layer(inner).oneshot(request).await.unwrap_err();
        assert_eq!(error.dispatched(), reached);
    }
}

#[tokio::test(start_paused = true)]
async fn seed_26_a_timeout_of_one_request_bounds_it_and_no_other() {
    let provider = Scripted::new().reply(Reply::stall());
    let mut hurried = request();
    hurried.context = hurried.context.with_timeout(SECOND);
    let start = Instant::now();
    let error = call(layer().with_total(60 * SECOND), &provider, hurried).await.unwrap_err();
    assert_eq!((phase(&error), start.elapsed().as_secs()), (TimeoutPhase::Deadline, 1));
    provider.push(Reply::text("late").after([Step::Wait(50 * SECOND)]));
    call(layer().with_total(60 * SECOND), &provider, request()).await.unwrap();
}

// ===== until the first content =====

#[tokio::test(start_paused = true)]
async fn first_content_is_content_and_not_the_first_chunk() {
    let steps = [blank(), Step::Gate, blank(), Step::Gate, word()];
    let provider = Scripted::new().reply(Reply::stream(steps));
    let mut reader = Reader::new(stream(layer().with_first_content(3 * SECOND), &provider).await);
    for _ in 0..2 {
        assert!(!assert_ready!(reader.poll()).unwrap().unwrap().has_content());
        reader.silent();
        advance(SECOND).await;
        provider.open();
        assert!(reader.is_woken());
    }
    reader.word();

    let provider = Scripted::new().reply(Reply::stream([blank(), Step::Stall]));
    let mut reader = Reader::new(stream(layer().with_first_content(3 * SECOND), &provider).await);
    assert!(!assert_ready!(reader.poll()).unwrap().unwrap().has_content());
    reader.silent();
    advance(3 * SECOND + MILLI).await;
    assert!(reader.is_woken());
    reader.timed_out(TimeoutPhase::FirstContent, &provider);
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_content_in_time_is_cut_though_it_is_never_idle() {
    let steps = (0..100).flat_map(|_| [blank(), Step::Wait(SECOND / 10)]);
    let provider = Scripted::new().reply(Reply::stream(steps));
    let start = Instant::now();
    let mut chunks = stream(layer().with_first_content(SECOND).with_idle(SECOND / 2), &provider).await;
    let error = loop {
        if let Err(error) = chunks.next().await.unwrap() {
            break error;
        }
    };
    assert_eq!((phase(&error), start.elapsed().as_millis()), (TimeoutPhase::FirstContent, 1_000));
    assert_eq!(provider.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_the_first_content_its_bound_is_off() {
    let provider = Scripted::new().reply(Reply::stream([word(), Step::Wait(60 * SECOND), word()]));
    let mut chunks = stream(layer().with_first_content(SECOND), &provider).await;
    for _ in 0..3 {
        chunks.next().await.unwrap().unwrap();
    }
    assert!(chunks.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silence_before_the_first_content_is_bounded_by_its_bound_alone() {
    let limits = layer().with_first_content(60 * SECOND).with_idle(30 * SECOND);
    let slow = vec![Step::Wait(40 * SECOND), word(), Step::Stall];
    for (rest, expected, after) in [
        (slow, TimeoutPhase::Idle, 70 * SECOND),
        (vec![Step::Stall], TimeoutPhase::FirstContent, 60 * SECOND),
    ] {
        for (blanks, is_peeked) in [(0, false), (1, false), (2, false), (0, true), (2, true)] {
            let steps = std::iter::repeat_n(blank(), blanks).chain(rest.clone());
            let provider = Scripted::new().reply(Reply::stream(steps));
            let (start, inner) = (Instant::now(), limits.layer(provider.clone()));
            let answer = match is_peeked {
                true => PeekLayer::new().layer(inner).oneshot(request()).await,
                false => inner.oneshot(request()).await,
            };
            let error = match answer {
                Ok(answer) => answer.text().await.unwrap_err(),
                Err(error) => error,
            };
            assert_eq!((phase(&error), start.elapsed()), (expected, after), "{blanks}, {is_peeked}");
            assert_eq!(provider.alive(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_first_content_has_no_bound_the_idle_time_counts_from_the_head() {
    let provider = Scripted::new().reply(Reply::stream([Step::Wait(2 * SECOND), word()]));
    let start = Instant::now();
    let mut chunks = stream(layer().with_idle(SECOND).with_total(60 * SECOND), &provider).await;
    assert_eq!(phase(&chunks.next().await.unwrap().unwrap_err()), TimeoutPhase::Idle);
    assert_eq!(start.elapsed(), SECOND);
}

// ===== between chunks =====

#[tokio::test(start_paused = true)]
async fn silence_is_cut_when_the_idle_time_is_over_and_not_before() {
    let provider = Scripted::new().reply(Reply::stream([word(), Step::Stall]));
    let ends = Ends::default();
    let answer = call(layer().with_idle(SECOND), &provider, request()).await.unwrap().observe(ends.clone());
    let mut reader = Reader::new(stream_of(answer));
    reader.word();
    reader.silent();
    advance(SECOND - MILLI).await;
    reader.silent();
    assert!(ends.0.lock().unwrap().is_empty());
    advance(2 * MILLI).await;
    assert!(reader.is_woken(), "the timer wakes whoever reads");
    reader.timed_out(TimeoutPhase::Idle, &provider);
    assert_eq!(*ends.0.lock().unwrap(), ["failed: timed out waiting for the next chunk, after 1"]);
    drop(reader);
    assert_eq!(ends.0.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_never_trips_the_idle_clock() {
    let steps = [word(), word(), Step::Gate, word(), Step::Gate, word()];
    let provider = Scripted::new().reply(Reply::stream(steps));
    let mut reader = Reader::new(stream(layer().with_idle(SECOND), &provider).await);
    advance(60 * SECOND).await;
    reader.word();
    advance(60 * SECOND).await;
    reader.word();
    // It looks once, goes away for long, and what it finds came meanwhile.
    reader.silent();
    advance(SECOND / 2).await;
    provider.open();
    advance(60 * SECOND).await;
    reader.word();
    // A silence during which nobody asked does not count.
    advance(60 * SECOND).await;
    reader.silent();
    advance(SECOND - MILLI).await;
    reader.silent();
    provider.open();
    reader.word();
}

#[tokio::test(start_paused = true)]
async fn a_silence_that_was_over_long_before_anybody_came_back_begins_anew() {
    let idle = 20 * SECOND;
    let provider = Scripted::new().reply(Reply::stream([word(), Step::Gate, word(), Step::Stall]));
    let mut reader = Reader::new(stream(layer().with_idle(idle), &provider).await);
    reader.word();
    reader.silent();
    for away in [25 * SECOND, 10_000 * SECOND] {
        advance(away).await;
        reader.silent();
    }
    advance(idle - MILLI).await;
    reader.silent();
    provider.open();
    reader.word();
    reader.silent();
    advance(25 * SECOND).await;
    reader.silent();
    // Who stays is told in time.
    advance(idle + MILLI).await;
    assert!(reader.is_woken());
    reader.timed_out(TimeoutPhase::Idle, &provider);
}

#[tokio::test(start_paused = true)]
async fn no_other_bound_is_longer_for_who_comes_late() {
    for (limits, phase) in [
        (layer().with_idle(SECOND).with_total(20 * SECOND), TimeoutPhase::Total),
        (layer().with_idle(SECOND).with_first_content(20 * SECOND), TimeoutPhase::FirstContent),
    ] {
        let provider = Scripted::new().reply(Reply::stream([blank(), Step::Stall]));
        let mut reader = Reader::new(stream(limits, &provider).await);
        assert!(assert_ready!(reader.poll()).is_some());
        reader.silent();
        advance(25 * SECOND).await;
        reader.timed_out(phase, &provider);
    }
}

#[tokio::test(start_paused = true)]
async fn each_chunk_starts_the_silence_anew() {
    let steps = (0..50).flat_map(|_| [word(), Step::Wait(SECOND - MILLI)]);
    let provider = Scripted::new().reply(Reply::stream(steps.chain([Step::Stall])));
    let mut chunks = stream(layer().with_idle(SECOND), &provider).await;
    for _ in 0..50 {
        chunks.next().await.unwrap().unwrap();
    }
    let last = Instant::now();
    assert_eq!(phase(&chunks.next().await.unwrap().unwrap_err()), TimeoutPhase::Idle);
    // From when it was asked: the provider waited once more, and then fell silent for good.
    assert_eq!(last.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_chunks_at_the_edge_of_silence_never_time_out() {
    let steps = (0..10_000).flat_map(|n| [Step::Wait(SECOND / 2 + MILLI * (n % 400)), word()]);
    let provider = Scripted::new().reply(Reply::stream(steps));
    let limits = layer().with_idle(SECOND).with_first_content(SECOND).with_total(100_000 * SECOND);
    let mut chunks = stream(limits, &provider).await;
    for n in 0..10_000 {
        let chunk = chunks.next().await.unwrap();
        assert!(chunk.is_ok(), "chunk {n}: {chunk:?}");
    }
    assert!(chunks.next().await.unwrap().unwrap().is_final());
}

/// A stream that wakes its reader by itself, and counts how often it is polled.
struct Ticking {
    polls: Arc<AtomicUsize>,
    sleep: Pin<Box<tokio::time::Sleep>>,
    every: Duration,
    left: usize,
}

impl Stream for Ticking {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        if self.sleep.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if self.left == 0 {
            return Poll::Ready(Some(Ok(StreamChunk::end())));
        }
        self.left -= 1;
        let next = Instant::now() + self.every;
        self.sleep.as_mut().reset(next);
        Poll::Ready(Some(Ok(StreamChunk::text("a"))))
    }
}

#[tokio::test(start_paused = true)]
async fn the_timer_is_not_moved_by_chunks_and_fires_no_more_than_once_per_idle_time() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let inner = service_fn(move |_: LlmRequest| {
        let every = 7 * MILLI;
        let sleep = Box::pin(tokio::time::sleep(every));
        let source = Ticking { polls: Arc::clone(&counted), sleep, every, left: 10_000 };
        async { Ok::<_, Error>(LlmResponse::new("m", ChunkStream::new(source))) }
    });
    let mut chunks = stream_of(layer().with_idle(SECOND).layer(inner).oneshot(request()).await.unwrap());
    let mut seen = 0;
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
        seen += 1;
    }
    assert_eq!(seen, 10_001);
    // Twice per chunk, silent and then there; and once for each second of the seventy, when the timer that
    // was not moved fires for nothing.
    let spurious = polls.load(Ordering::SeqCst) - 2 * seen;
    assert!((60..=71).contains(&spurious), "{spurious}");
}

// ===== until the end =====

#[tokio::test(start_paused = true)]
async fn a_stream_is_cut_at_its_total_time_however_lively_it_is() {
    let steps = (0..1_000).flat_map(|_| [Step::Wait(SECOND / 4), word()]);
    let provider = Scripted::new().reply(Reply::stream(steps).after([Step::Wait(SECOND)]));
    let start = Instant::now();
    let limits = layer().with_total(10 * SECOND).with_idle(SECOND).with_head(2 * SECOND);
    let mut chunks = stream(limits, &provider).await;
    let mut seen = 0;
    let error = loop {
        match chunks.next().await.unwrap() {
            Ok(_) => seen += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((phase(&error), start.elapsed()), (TimeoutPhase::Total, 10 * SECOND));
    assert!((35..=36).contains(&seen), "{seen}");
    assert_eq!(provider.alive(), 0);
    assert!(chunks.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_goes_on_after_the_head_and_is_called_by_its_name() {
    for limits in
        [layer(), layer().with_total(60 * SECOND).with_idle(50 * SECOND).with_first_content(40 * SECOND)]
    {
        let provider = Scripted::new().reply(Reply::stream([word(), Step::Stall]));
        let mut hurried = request();
        hurried.context = hurried.context.with_timeout(3 * SECOND);
        let answer = call(limits, &provider, hurried).await.unwrap();
        let mut reader = Reader::new(stream_of(answer));
        reader.word();
        reader.silent();
        advance(3 * SECOND + MILLI).await;
        reader.timed_out(TimeoutPhase::Deadline, &provider);
    }
}

#[tokio::test(start_paused = true)]
async fn of_nested_timeouts_the_stricter_holds_whichever_is_outside() {
    let strict = layer().with_first_content(2 * SECOND).with_idle(SECOND).with_total(5 * SECOND);
    let lax = layer().with_first_content(20 * SECOND).with_idle(10 * SECOND).with_total(50 * SECOND);
    let mixed = (
        layer().with_first_content(2 * SECOND).with_idle(10 * SECOND).with_total(5 * SECOND),
        layer().with_first_content(20 * SECOND).with_idle(SECOND).with_total(50 * SECOND),
    );
    let scripts: [(Vec<Step>, TimeoutPhase, Duration); 3] = [
        (
            vec![
                blank(),
                Step::Wait(SECOND / 2),
                blank(),
                Step::Wait(SECOND / 2),
                blank(),
                Step::Wait(3 * SECOND / 4),
                blank(),
                Step::Stall,
            ],
            TimeoutPhase::FirstContent,
            2 * SECOND,
        ),
        (vec![word(), Step::Stall], TimeoutPhase::Idle, SECOND),
        ((0..100).flat_map(|_| [word(), Step::Wait(SECOND / 2)]).collect(), TimeoutPhase::Total, 5 * SECOND),
    ];
    for (outer, inner) in
        [(strict, lax), (lax, strict), mixed, (mixed.1, mixed.0), (layer(), strict), (strict, layer())]
    {
        for (steps, expected, after) in &scripts {
            let provider = Scripted::new().reply(Reply::stream(steps.clone()));
            let start = Instant::now();
            let answer = (outer, inner).layer(provider.clone()).oneshot(request()).await.unwrap();
            let mut chunks = stream_of(answer);
            let error = loop {
                if let Err(error) = chunks.next().await.expect("it does not end well") {
                    break error;
                }
            };
            assert_eq!((phase(&error), start.elapsed()), (*expected, *after), "{outer:?} around {inner:?}");
            assert_eq!(provider.alive(), 0);
        }
        let provider = Scripted::new().reply(Reply::stall());
        let start = Instant::now();
        let error = (outer, inner).layer(provider).oneshot(request()).await.unwrap_err();
        assert_eq!((phase(&error), start.elapsed()), (TimeoutPhase::FirstContent, 2 * SECOND));
    }
}

#[tokio::test(start_paused = true)]
async fn a_bound_that_is_added_while_a_timer_runs_is_kept() {
    // Peek waits for the first word under the inner bounds; the outer ones come later and end sooner.
    let provider = Scripted::new().reply(Reply::stream([blank(), Step::Wait(SECOND), word(), Step::Stall]));
    let layers = (layer().with_idle(2 * SECOND), PeekLayer::new(), layer().with_idle(60 * SECOND));
    let start = Instant::now();
    let mut chunks = stream_of(layers.layer(provider.clone()).oneshot(request()).await.unwrap());
    for _ in 0..2 {
        chunks.next().await.unwrap().unwrap();
    }
    assert_eq!(phase(&chunks.next().await.unwrap().unwrap_err()), TimeoutPhase::Idle);
    assert_eq!(start.elapsed(), 3 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_a_layer_between_takes_away_is_kept_outside() {
    let provider = Scripted::new().reply(Reply::stream([word(), Step::Stall]));
    let inner =
        layer().with_total(60 * SECOND).layer(provider.clone()).map_request(|mut request: LlmRequest| {
            request.context = Default::default();
            request
        });
    let mut hurried = request();
    hurried.context = hurried.context.with_timeout(SECOND);
    let answer = layer().layer(inner).oneshot(hurried).await.unwrap();
    let mut reader = Reader::new(stream_of(answer));
    reader.word();
    reader.silent();
    advance(SECOND + MILLI).await;
    reader.timed_out(TimeoutPhase::Deadline, &provider);
}

#[tokio::test(start_paused = true)]
async fn what_was_peeked_at_is_given_out_though_the_time_has_passed() {
    let provider = Scripted::new().reply(Reply::stream([blank(), blank(), word(), Step::Stall]));
    let answer =
        (PeekLayer::new(), layer().with_total(SECOND)).layer(provider.clone()).oneshot(request()).await;
    let mut reader = Reader::new(stream_of(answer.unwrap()));
    advance(60 * SECOND).await;
    for _ in 0..2 {
        assert_ready!(reader.poll()).unwrap().unwrap();
    }
    reader.word();
    reader.timed_out(TimeoutPhase::Total, &provider);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_comes_to_its_end_in_time_is_never_an_error_afterwards() {
    let provider = Scripted::new().reply(Reply::words(["a", "b"]));
    let ends = Ends::default();
    let limits = layer().with_total(SECOND).with_idle(SECOND).with_first_content(SECOND);
    let answer = call(limits, &provider, request()).await.unwrap().observe(ends.clone());
    let mut chunks = stream_of(answer);
    while !chunks.next().await.unwrap().unwrap().is_final() {}
    advance(60 * SECOND).await;
    assert!(chunks.next().await.is_none());
    drop(chunks);
    assert_eq!(ends.0.lock().unwrap().len(), 1);
    assert!(ends.0.lock().unwrap()[0].starts_with("StreamEnded"));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_stream_while_its_timer_runs_hangs_up() {
    let provider = Scripted::new().reply(Reply::stream([word(), Step::Stall]));
    let mut reader = Reader::new(stream(layer().with_idle(SECOND), &provider).await);
    reader.word();
    reader.silent();
    assert_eq!(provider.alive(), 1);
    drop(reader);
    assert_eq!(provider.alive(), 0);
}

// ===== without a runtime =====

fn all_limits() -> CallTimeoutLayer {
    layer().with_head(SECOND).with_first_content(SECOND).with_idle(SECOND).with_total(SECOND)
}

/// No runtime here: a timer that is registered panics.
#[test]
fn an_answer_that_is_ready_needs_no_timer() {
    let mut cx = Context::from_waker(Waker::noop());
    let provider = Scripted::new().reply(Reply::text("hi")).reply(Reply::words(["a", "b"]));
    let mut service = (all_limits(), all_limits()).layer(provider);
    for _ in 0..2 {
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut hurried = request();
        hurried.context = hurried.context.with_timeout(SECOND);
        let mut call = Box::pin(service.call(hurried));
        let Poll::Ready(Ok(answer)) = call.as_mut().poll(&mut cx) else { panic!("not ready") };
        let ResponseBody::Stream(mut chunks) = answer.body else { continue };
        let mut seen = 0;
        while let Poll::Ready(Some(chunk)) = Pin::new(&mut chunks).poll_next(&mut cx) {
            chunk.unwrap();
            seen += 1;
        }
        assert_eq!(seen, 6);
    }
}

/// The counterpart, which shows that the test above would notice.
#[test]
fn a_pending_one_does_need_a_timer() {
    let mut cx = Context::from_waker(Waker::noop());
    let provider = Scripted::new().reply(Reply::stall());
    let mut service = all_limits().layer(provider);
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut call = Box::pin(service.call(request()));
    let polled = std::panic::catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(&mut cx).is_ready()));
    assert!(polled.is_err());
}

#[tokio::test(start_paused = true)]
async fn who_no_longer_waits_is_not_sent_for() {
    let provider = Scripted::new();
    let service = CallTimeoutLayer::new().layer(provider.clone());
    let late = request().with_context(RequestContext::new().with_timeout(Duration::ZERO));
    let error = service.oneshot(late).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Timeout { phase: TimeoutPhase::Deadline }));
    assert!(!error.dispatched() && provider.requests().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_panics_where_it_is_dropped_is_a_timeout_all_the_same() {
    let provider = Scripted::new();
    let service = layer().with_head(SECOND).with_idle(SECOND).layer(faulty(&provider));
    provider.push(Reply::text("").after([Step::Stall]));
    assert_eq!(phase(&service.clone().oneshot(request()).await.unwrap_err()), TimeoutPhase::Head);
    provider.push(Reply::stream([word(), Step::Stall]));
    let error = service.clone().oneshot(request()).await.unwrap().text().await.unwrap_err();
    assert_eq!(phase(&error), TimeoutPhase::Idle);
    assert_eq!(service.oneshot(request()).await.unwrap().text().await.unwrap(), "hi");
    assert_eq!(provider.alive(), 0);
}
