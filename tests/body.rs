//! How answers end: `ChunkStream`, `Observe`, `Watch`, and what Peek reads ahead.

#[path = "support/faulty.rs"]
mod faulty;

use self::faulty::faulty;
use futures_core::Stream;
use futures_util::FutureExt as _;
use llm_layers::{
    ChatBody, ChunkStream, Completion, End, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest,
    LlmResponse, Observe, ResponseBody, StreamChunk, TokenUsage, Watch,
    body::{Arrival, Summary, Watched},
    peek::PeekLayer,
    testing::{Reply, Scripted, Step},
};
use proptest::prelude::*;
use std::{
    collections::VecDeque,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, layer::layer_fn, service_fn};

fn request() -> LlmRequest {
    LlmRequest::new("acme/one", ChatBody::builder().user("Hi").build().unwrap())
}

fn broken() -> Error {
    Error::provider(ErrorClass::Transport, "acme", "one")
}

fn text(text: &str) -> Step {
    Step::Chunk(StreamChunk::text(text))
}

fn stream_of(answer: LlmResponse) -> ChunkStream {
    match answer.body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(_) => panic!("not a stream"),
    }
}

// ===== a layer that observes =====

/// What observers have seen, in the order in which they saw it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    /// The ends alone.
    fn ends(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().filter(|line| line.contains('!')).cloned().collect()
    }
}

struct Spy {
    name: &'static str,
    log: Log,
    /// How many calls were alive below when it ended.
    provider: Option<Scripted>,
}

impl Spy {
    const fn new(name: &'static str, log: Log) -> Self {
        Self { name, log, provider: None }
    }
}

fn said(chunk: &StreamChunk) -> String {
    match chunk.is_final() {
        true => "end".into(),
        false => chunk.content().into_owned(),
    }
}

impl Observe for Spy {
    fn on_chunk(&mut self, chunk: &StreamChunk, _: &Arrival) {
        self.log.push(format!("{}: {}", self.name, said(chunk)));
    }

    fn on_end(self, end: End<'_>) {
        let end = match end {
            End::Whole(completion) => format!("whole({})", completion.content()),
            End::StreamEnded(summary) => format!("ended({})", summary.chunks),
            End::Failed(error, summary) => format!("failed({error}; {})", summary.chunks),
            End::Abandoned(summary) => format!("abandoned({})", summary.chunks),
            other => format!("{other:?}"),
        };
        let alive =
            self.provider.as_ref().map_or(String::new(), |provider| format!(" {} alive", provider.alive()));
        self.log.push(format!("{}! {end}{alive}", self.name));
    }
}

/// The layer of the docs of `Watch`.
#[derive(Clone)]
struct Spying<S> {
    inner: S,
    name: &'static str,
    log: Log,
}

impl<S> Service<LlmRequest> for Spying<S>
where
    S: Service<LlmRequest, Response = LlmResponse>,
    S::Error: Into<Error>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = Watched<S::Future, Spy>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let watch = Watch::new(Spy::new(self.name, self.log.clone()));
        watch.over(self.inner.call(request))
    }
}

fn spy<S>(name: &'static str, log: &Log) -> impl Layer<S, Service = Spying<S>> + Clone + use<S> {
    let log = log.clone();
    layer_fn(move |inner| Spying { inner, name, log: log.clone() })
}

// ===== exactly one end =====

const PANICKED: &str = "spy! failed(the request failed; ";

#[tokio::test]
async fn every_way_to_end_is_told_once_and_by_its_name() {
    let lost = "provider acme lost the connection (model one)";
    let cut = "the answer broke off";
    type Case = (&'static str, fn() -> Reply, String);
    let cases: [Case; 9] = [
        ("whole", || Reply::text("hi"), "spy! whole(hi)".into()),
        ("late whole", || Reply::text("hi").after([Step::Yield]), "spy! whole(hi)".into()),
        ("error", || Reply::error(broken()), format!("spy! failed({lost}; 0)")),
        ("stream", || Reply::stream([text("a"), text("b")]), "spy! ended(3)".into()),
        ("empty stream", || Reply::stream([]), "spy! ended(1)".into()),
        (
            "broken stream",
            || Reply::stream([text("a"), Step::Fail(broken())]),
            format!("spy! failed({lost}; 1)"),
        ),
        ("cut stream", || Reply::stream([text("a"), text("b"), Step::Cut]), format!("spy! failed({cut}; 2)")),
        ("cut at once", || Reply::stream([Step::Cut]), format!("spy! failed({cut}; 0)")),
        ("broken at once", || Reply::stream([Step::Fail(broken())]), format!("spy! failed({lost}; 0)")),
    ];
    for (way, reply, expected) in cases {
        let log = Log::default();
        let provider = Scripted::new().reply(reply());
        let answer = spy("spy", &log).layer(provider.clone()).oneshot(request()).await;
        let held = match answer {
            Ok(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) => {
                assert_eq!(log.ends(), [""; 0], "{way}: not before it is over");
                let mut last = None;
                while let Some(chunk) = chunks.next().await {
                    assert!(last.is_none(), "{way}: something follows the end");
                    if !chunk.as_ref().is_ok_and(|chunk| !chunk.is_final()) {
                        last = Some(chunk);
                        assert_eq!(log.ends(), [&*expected], "{way}: the last item is the end");
                        assert_eq!(
                            provider.alive(),
                            0,
                            "{way}: whoever keeps the stream keeps no connection"
                        );
                    }
                }
                assert!(last.is_some(), "{way}: an end that can be seen");
                for _ in 0..3 {
                    assert!(chunks.next().await.is_none(), "{way}");
                }
                Some(chunks)
            }
            _ => None,
        };
        assert_eq!(log.ends(), [&*expected], "{way}");
        drop(held);
        assert_eq!(log.ends(), [&*expected], "{way}: once");
    }
}

#[tokio::test]
async fn whoever_leaves_at_any_point_has_abandoned_it() {
    let script = || Reply::stream([text("a"), Step::Yield, text("b")]).after([Step::Yield]);
    // The future unpolled, polled once; the stream unread, then after each item.
    for stop in 0..5 {
        let log = Log::default();
        let provider = Scripted::new().reply(script());
        let mut service = spy("spy", &log).layer(provider.clone());
        let mut call = Box::pin(service.ready().await.unwrap().call(request()));
        let chunks = match stop {
            0 => 0,
            1 => {
                assert!((&mut call).now_or_never().is_none());
                0
            }
            read => {
                let mut chunks = stream_of((&mut call).await.unwrap());
                for _ in 2..read {
                    chunks.next().await.unwrap().unwrap();
                }
                drop(chunks);
                read - 2
            }
        };
        drop(call);
        assert_eq!(log.ends(), [format!("spy! abandoned({chunks})")], "{stop}");
        assert_eq!(provider.alive(), 0);
    }
}

#[tokio::test]
async fn a_panic_below_is_a_failure_wherever_it_happens() {
    // In `call`.
    let log = Log::default();
    let mut service = spy("spy", &log).layer(Scripted::new().reply(Reply::panic()));
    service.ready().await.unwrap();
    std::panic::catch_unwind(AssertUnwindSafe(|| drop(service.call(request())))).unwrap_err();
    assert_eq!(log.ends(), [format!("{PANICKED}0)")]);

    // In the future.
    let log = Log::default();
    let reply = Reply::text("").after([Step::Yield, Step::Panic]);
    let call = spy("spy", &log).layer(Scripted::new().reply(reply)).oneshot(request());
    AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    assert_eq!(log.ends(), [format!("{PANICKED}0)")]);

    // In the stream: dropped while it unwinds, dropped afterwards, and polled again.
    for polled_again in [None, Some(false), Some(true)] {
        let log = Log::default();
        let provider = Scripted::new().reply(Reply::stream([text("a"), Step::Panic, text("never")]));
        let answer = spy("spy", &log).layer(provider.clone()).oneshot(request()).await.unwrap();
        let mut chunks = stream_of(answer);
        chunks.next().await.unwrap().unwrap();
        match polled_again {
            None => {
                let read = async move { chunks.next().await };
                drop(AssertUnwindSafe(read).catch_unwind().await.unwrap_err());
            }
            Some(again) => {
                drop(AssertUnwindSafe(chunks.next()).catch_unwind().await.unwrap_err());
                assert_eq!(log.ends(), [""; 0]);
                if again {
                    let error = chunks.next().await.unwrap().unwrap_err();
                    assert!(matches!(error.kind(), ErrorKind::Other) && error.dispatched());
                    assert!(chunks.next().await.is_none());
                    assert_eq!(provider.alive(), 0);
                }
                drop(chunks);
            }
        }
        assert_eq!(log.ends(), [format!("{PANICKED}1)")], "{polled_again:?}");
        assert_eq!(provider.alive(), 0);
    }
}

/// Panics when it is told this.
struct Faulty(&'static str);

impl Observe for Faulty {
    fn on_chunk(&mut self, chunk: &StreamChunk, _: &Arrival) {
        assert!(said(chunk) != self.0, "a bug of who observes");
    }

    fn on_end(self, end: End<'_>) {
        let is_told = match end {
            End::Failed(..) => "failed",
            End::Abandoned(_) => "abandoned",
            _ => "ended",
        };
        assert!(is_told != self.0, "a bug of who observes");
    }
}

#[tokio::test]
async fn a_leaf_that_panics_where_it_is_dropped_takes_no_end_from_anybody() {
    let fails = || Step::Fail(broken());
    let failed = "failed(provider acme lost the connection (model one); 1)";
    for (last, reads, end) in [(None, 9, "ended(2)"), (Some(fails()), 9, failed), (None, 1, "abandoned(1)")] {
        let log = Log::default();
        let provider = Scripted::new().reply(Reply::stream([text("a")].into_iter().chain(last)));
        let answer = spy("spy", &log).layer(faulty(&provider)).oneshot(request()).await.unwrap();
        let mut chunks = stream_of(answer);
        for _ in 0..reads {
            chunks.next().await;
        }
        drop(chunks);
        assert_eq!(log.ends(), [format!("spy! {end}")]);
        assert_eq!(provider.alive(), 0);
    }

    let log = Log::default();
    let provider = Scripted::new().reply(Reply::text("").after([Step::Stall]));
    let mut call = tokio_test::task::spawn(spy("spy", &log).layer(faulty(&provider)).oneshot(request()));
    assert!(call.poll().is_pending());
    drop(call);
    assert_eq!(log.ends(), ["spy! abandoned(0)"]);
}

#[tokio::test]
async fn an_observer_that_panics_is_to_those_outside_of_it_a_panic_below() {
    const BELOW: &str = "failed(the request failed; 2)";
    let failed = "failed(provider acme lost the connection (model one); 1)";
    let cases = [
        ("ended", None, "ended(2)", BELOW),
        // Nobody knows of the end yet.
        ("end", None, BELOW, BELOW),
        ("failed", Some(Step::Fail(broken())), failed, "failed(the request failed; 1)"),
    ];
    for (at, last, inside, outside) in cases {
        let steps = [text("a")].into_iter().chain(last);
        let answer = Scripted::new().reply(Reply::stream(steps)).oneshot(request()).await.unwrap();
        let log = Log::default();
        let answer = answer.observe(Spy::new("inside", log.clone())).observe(Faulty(at));
        let mut chunks = stream_of(answer.observe(Faulty(at)).observe(Spy::new("outside", log.clone())));
        chunks.next().await.unwrap().unwrap();
        drop(AssertUnwindSafe(chunks.next()).catch_unwind().await.expect_err("it goes on"));
        drop(chunks);
        assert_eq!(log.ends(), [format!("inside! {inside}"), format!("outside! {outside}")], "{at}");
    }

    let log = Log::default();
    let answer = Scripted::new().reply(Reply::stream([text("a")])).oneshot(request()).await.unwrap();
    let answer = answer.observe(Faulty("abandoned")).observe(Spy::new("outside", log.clone()));
    std::panic::catch_unwind(AssertUnwindSafe(|| drop(answer))).expect_err("it goes on");
    assert_eq!(log.ends(), ["outside! failed(the request failed; 0)"]);
}

#[tokio::test]
async fn an_observer_that_panics_in_the_midst_of_another_panic_does_not_end_the_process() {
    let log = Log::default();
    let answer = Scripted::new().reply(Reply::stream([text("a")])).oneshot(request()).await.unwrap();
    let answer = answer.observe(Faulty("abandoned")).observe(Spy::new("outside", log.clone()));
    let panics = move || {
        let _dropped = answer;
        panic!("a bug of the caller")
    };
    std::panic::catch_unwind(AssertUnwindSafe(panics)).expect_err("it goes on");
    assert_eq!(log.ends(), ["outside! failed(the request failed; 0)"]);
}

#[tokio::test]
async fn a_foreign_error_is_told_as_ours() {
    let log = Log::default();
    let inner =
        service_fn(|_: LlmRequest| async { Err::<LlmResponse, _>(llm_layers::BoxError::from("boom")) });
    spy("spy", &log).layer(inner).oneshot(request()).await.unwrap_err();
    assert_eq!(log.ends(), ["spy! failed(the request failed; 0)"]);
}

#[tokio::test]
async fn the_provider_is_hung_up_on_before_anybody_is_told() {
    let scripts: [(&str, Vec<Step>, usize); 5] = [
        ("ended", vec![text("a")], 2),
        ("failed", vec![text("a"), Step::Fail(broken())], 2),
        ("failed", vec![text("a"), Step::Cut], 2),
        ("abandoned", vec![text("a"), text("b")], 1),
        ("abandoned", vec![text("a"), Step::Stall], 0),
    ];
    for (end, steps, read) in scripts {
        let log = Log::default();
        let provider = Scripted::new().reply(Reply::stream(steps));
        let answer = provider.clone().oneshot(request()).await.unwrap();
        let spy = Spy { provider: Some(provider.clone()), ..Spy::new("spy", log.clone()) };
        let mut chunks = stream_of(answer.observe(spy));
        for _ in 0..read {
            drop(chunks.next().await);
        }
        drop(chunks);
        let [told] = &log.ends()[..] else { panic!("{end}: told once") };
        assert!(told.starts_with(&format!("spy! {end}")) && told.ends_with(" 0 alive"), "{told}");
    }
}

#[tokio::test]
async fn observers_are_told_innermost_first_and_each_of_everything() {
    let log = Log::default();
    let provider = Scripted::new().reply(Reply::stream([text("a"), text("b")]));
    let layers = (spy("out", &log), spy("mid", &log), spy("in", &log));
    let mut chunks = stream_of(layers.layer(provider).oneshot(request()).await.unwrap());
    while chunks.next().await.is_some() {}
    let all = ["in: a", "mid: a", "out: a", "in: b", "mid: b", "out: b", "in: end", "mid: end", "out: end"];
    let ends = ["in! ended(3)", "mid! ended(3)", "out! ended(3)"];
    assert_eq!(log.take(), [&all[..], &ends[..]].concat());

    let cases: [(Reply, usize, [&str; 3]); 3] = [
        (Reply::text("hi"), 0, ["in! whole(hi)", "mid! whole(hi)", "out! whole(hi)"]),
        (
            Reply::stream([Step::Cut]),
            1,
            [
                "in! failed(the answer broke off; 0)",
                "mid! failed(the answer broke off; 0)",
                "out! failed(the answer broke off; 0)",
            ],
        ),
        (Reply::stream([text("a")]), 0, ["in! abandoned(0)", "mid! abandoned(0)", "out! abandoned(0)"]),
    ];
    for (reply, read, expected) in cases {
        let layers = (spy("out", &log), spy("mid", &log), spy("in", &log));
        let answer = layers.layer(Scripted::new().reply(reply)).oneshot(request()).await.unwrap();
        if let ResponseBody::Stream(mut chunks) = answer.body {
            for _ in 0..read {
                drop(chunks.next().await);
            }
        }
        assert_eq!(log.take(), expected);
    }
}

#[tokio::test]
async fn an_observer_that_comes_after_the_end_is_told_which_it_was() {
    let good = [text("a"), Step::Chunk(StreamChunk::usage_only(TokenUsage::new(7, 3)))];
    let failed = "late! failed(provider acme lost the connection (model one); 1)";
    for (steps, end) in [(&good[..], "late! ended(3)"), (&[text("a"), Step::Fail(broken())], failed)] {
        let answer = Scripted::new().reply(Reply::stream(steps.to_vec())).oneshot(request()).await.unwrap();
        let mut chunks = stream_of(answer);
        while chunks.next().await.is_some() {}
        let log = Log::default();
        chunks.observe(Spy::new("late", log.clone()));
        assert_eq!(log.take(), [end]);
        drop(chunks);
        assert_eq!(log.take(), [""; 0]);
    }
}

#[tokio::test]
async fn an_observer_that_comes_late_sees_what_is_still_to_be_handed_out() {
    let log = Log::default();
    let provider = Scripted::new().reply(Reply::stream([text("a"), text("b")]));
    let mut chunks = stream_of(provider.clone().oneshot(request()).await.unwrap());
    chunks.next().await.unwrap().unwrap();
    chunks.observe(Spy::new("late", log.clone()));
    while chunks.next().await.is_some() {}
    assert_eq!(log.take(), ["late: b", "late: end", "late! ended(3)"]);
    // After the end there is nothing to see, but it is told so, once.
    chunks.observe(Spy::new("too late", log.clone()));
    assert!(chunks.next().await.is_none());
    drop(chunks);
    assert_eq!(log.take().len(), 1);
}

// ===== what a stream is =====

struct Source(VecDeque<Option<Result<StreamChunk, Error>>>);

impl Stream for Source {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.pop_front() {
            Some(Some(item)) => Poll::Ready(Some(item)),
            Some(None) => Poll::Ready(None),
            None => panic!("polled after its end"),
        }
    }
}

fn source(items: impl IntoIterator<Item = Option<Result<StreamChunk, Error>>>) -> Source {
    Source(items.into_iter().collect())
}

async fn read(mut chunks: ChunkStream) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some(chunk) = chunks.next().await {
        seen.push(match chunk {
            Ok(chunk) => said(&chunk),
            Err(error) => error.to_string(),
        });
    }
    assert!(chunks.next().await.is_none());
    seen
}

#[tokio::test]
async fn the_source_is_never_polled_after_its_end() {
    let a = || Some(Ok(StreamChunk::text("a")));
    let end = || Some(Ok(StreamChunk::text("z").into_final()));
    assert_eq!(read(ChunkStream::new(source([a(), end(), a()]))).await, ["a", "end"]);
    assert_eq!(read(ChunkStream::new(source([a(), Some(Err(broken())), a()]))).await.len(), 2);
    assert_eq!(read(ChunkStream::new(source([a(), None, a()]))).await, ["a", "the answer broke off"]);
    assert_eq!(read(ChunkStream::ending_cleanly(source([a(), None, a()]))).await, ["a", "end"]);
    assert_eq!(read(ChunkStream::ending_cleanly(source([None]))).await, ["end"]);
    assert_eq!(read(ChunkStream::ending_cleanly(source([a(), end(), None]))).await, ["a", "end"]);
    assert_eq!(read(ChunkStream::ending_cleanly(source([a(), Some(Err(broken()))]))).await.len(), 2);
}

#[tokio::test]
async fn a_stream_without_a_mark_of_its_own_ends_as_well_as_any() {
    let log = Log::default();
    let mut chunks = ChunkStream::ending_cleanly(source([Some(Ok(StreamChunk::text("a"))), None]));
    chunks.observe(Spy::new("spy", log.clone()));
    chunks.next().await.unwrap().unwrap();
    let last = chunks.next().await.unwrap().unwrap();
    assert!(last.is_final() && last.data().is_empty() && !last.has_content());
    assert_eq!(log.take(), ["spy: a", "spy: end", "spy! ended(2)"]);
}

#[tokio::test]
async fn a_stream_that_breaks_says_whether_it_had_said_something_and_what_that_cost() {
    for (steps, after_content) in [
        (vec![Step::Chunk(StreamChunk::role()), text(" "), Step::Cut], false),
        (vec![Step::Chunk(StreamChunk::role()), text("a"), text(" "), Step::Cut], true),
    ] {
        let provider = Scripted::new().reply(Reply::stream(steps));
        let error = provider.oneshot(request()).await.unwrap().text().await.unwrap_err();
        let ErrorKind::StreamInterrupted { after_content: said, .. } = error.kind() else {
            panic!("{error:?}")
        };
        assert_eq!(*said, after_content);
        assert_eq!(error.is_retryable(), !after_content);
        assert!(error.dispatched());
    }
    // Usage that was reported before is known to whoever gets the error; the error's own is not replaced.
    let usage = TokenUsage::new(7, 3);
    for own in [None, Some(TokenUsage::new(1, 1))] {
        let failure = own.map_or_else(broken, |own| broken().with_usage(own));
        let steps = [text("a"), Step::Chunk(StreamChunk::usage_only(usage)), Step::Fail(failure)];
        let error =
            Scripted::new().reply(Reply::stream(steps)).oneshot(request()).await.unwrap().text().await;
        assert_eq!(error.unwrap_err().usage(), Some(&own.unwrap_or(usage)));
    }
}

#[tokio::test]
async fn dropping_next_loses_nothing() {
    let provider = Scripted::new().reply(Reply::stream([text("a"), Step::Gate, text("b")]));
    let mut chunks = stream_of(provider.clone().oneshot(request()).await.unwrap());
    drop(chunks.next());
    assert_eq!(said(&chunks.next().await.unwrap().unwrap()), "a");
    for _ in 0..3 {
        assert!(chunks.next().now_or_never().is_none());
    }
    provider.open();
    assert_eq!(said(&chunks.next().await.unwrap().unwrap()), "b");
}

#[test]
fn no_runtime_is_needed_to_read() {
    let mut cx = Context::from_waker(Waker::noop());
    let log = Log::default();
    let mut chunks = ChunkStream::new(source([Some(Ok(StreamChunk::text("a"))), None]));
    chunks.observe(Spy::new("spy", log.clone()));
    assert!(Pin::new(&mut chunks).poll_next(&mut cx).is_ready());
    assert!(Pin::new(&mut chunks).poll_next(&mut cx).is_ready());
    assert_eq!(log.ends().len(), 1);
}

// ===== the summary =====

#[derive(Clone, Default)]
struct Last(Arc<Mutex<Vec<Summary>>>);

impl Observe for Last {
    fn on_end(self, end: End<'_>) {
        match end {
            End::StreamEnded(summary) | End::Failed(_, summary) | End::Abandoned(summary) => {
                self.0.lock().unwrap().push(summary.clone());
            }
            other => panic!("{other:?}"),
        }
    }
}

fn chunk(json: &str) -> Step {
    Step::Chunk(StreamChunk::parse(json.to_owned()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_summary_tells_the_latest_usage_the_reasons_and_the_times() {
    let second = Duration::from_secs(1);
    let start = Instant::now();
    let jsons = [
        r#"{"id":"first","model":"gpt-2025","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
        r#"{"id":"other","model":"other","choices":[{"index":1,"delta":{"content":"a"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}"#,
        r#"{"choices":[{"index":1,"delta":{},"finish_reason":"length"},{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}"#,
        r#"{"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"tool_calls"}]}"#,
        r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}"#,
    ];
    let steps = jsons.iter().flat_map(|json| [Step::Wait(second), chunk(json)]);
    let provider = Scripted::new().reply(Reply::stream(steps.chain([Step::Wait(second)])));
    let last = Last::default();
    let mut answer = provider.oneshot(request()).await.unwrap().observe(last.clone());
    assert_eq!(answer.summary().unwrap().chunks, 0);
    let ResponseBody::Stream(chunks) = &mut answer.body else { panic!("not a stream") };
    let mut before = Vec::new();
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
        before.push((
            chunks.summary().has_content,
            chunks.summary().usage.and_then(|usage| usage.output_tokens),
        ));
    }
    assert_eq!(
        before,
        [(false, None), (true, Some(1)), (true, Some(1)), (true, Some(1)), (true, Some(9)), (true, Some(9))]
    );

    let summaries = last.0.lock().unwrap();
    let [summary] = &summaries[..] else { panic!("one end") };
    assert_eq!(summary.chunks, 6);
    assert_eq!(summary.bytes as usize, jsons.iter().map(|json| json.len()).sum::<usize>());
    assert_eq!(summary.usage, Some(TokenUsage::new(5, 9)));
    let mut reasons: Vec<_> = summary.finish_reasons.iter().map(|f| (f.index, f.reason.clone())).collect();
    reasons.sort_by_key(|(index, _)| *index);
    assert_eq!(
        reasons,
        [(0, FinishReason::ToolCalls), (1, FinishReason::Length)],
        "the latest of each choice"
    );
    assert_eq!((summary.id.as_deref(), summary.model.as_deref()), (Some("first"), Some("gpt-2025")));
    let after = |at: Option<std::time::Instant>| at.unwrap() - start.into_std();
    assert_eq!((after(summary.first_chunk_at), after(summary.first_content_at)), (second, 2 * second));
}

#[tokio::test]
async fn however_many_choices_an_event_ends_a_few_are_kept() {
    let ends = |indices: &mut dyn Iterator<Item = u32>, reason| {
        let ends = indices.map(|index| format!(r#"{{"index":{index},"finish_reason":"{reason}"}}"#));
        StreamChunk::parse(format!(r#"{{"choices":[{}]}}"#, ends.collect::<Vec<_>>().join(","))).unwrap()
    };
    let many = ends(&mut (0..100_000), "stop");
    assert_eq!(many.finish_reasons().len(), 128);
    let backwards = ends(&mut (0..500).rev(), "stop");
    assert_eq!(backwards.finish_reasons().last().unwrap().index, 0);
    assert!(backwards.finish_reasons().len() < 256);

    let steps = [many, ends(&mut (500..501), "length"), ends(&mut (3..4), "length"), backwards];
    let mut chunks = ChunkStream::new(source(steps.map(|chunk| Some(Ok(chunk)))));
    for (latest, reason) in [(127, "stop"), (500, "length"), (3, "length"), (0, "stop")] {
        chunks.next().await.unwrap().unwrap();
        let kept = &chunks.summary().finish_reasons;
        assert_eq!(kept.len(), 128);
        let last = kept.last().unwrap();
        assert_eq!((last.index, last.reason.as_str()), (latest, reason));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_content_has_no_time_of_it() {
    let provider = Scripted::new().reply(Reply::stream([Step::Chunk(StreamChunk::role()), text(" \n")]));
    let last = Last::default();
    let answer = provider.oneshot(request()).await.unwrap().observe(last.clone());
    answer.text().await.unwrap();
    let summary = last.0.lock().unwrap().pop().unwrap();
    assert!(!summary.has_content && summary.first_content_at.is_none() && summary.first_chunk_at.is_some());
    assert!(summary.usage.is_none() && summary.finish_reasons.is_empty());
}

struct Times(Arc<Mutex<Vec<std::time::Instant>>>);

impl Observe for Times {
    fn on_chunk(&mut self, _: &StreamChunk, arrival: &Arrival) {
        self.0.lock().unwrap().push(arrival.at());
    }

    fn on_end(self, _: End<'_>) {}
}

#[tokio::test(start_paused = true)]
async fn all_observers_are_told_the_same_time_of_a_chunk() {
    struct Slow;
    impl Observe for Slow {
        fn on_chunk(&mut self, _: &StreamChunk, _: &Arrival) {
            // Time cannot be moved from in here; real time passes.
            std::hint::black_box((0..10_000).sum::<u64>());
        }

        fn on_end(self, _: End<'_>) {}
    }
    tokio::time::resume();
    let (first, second) = (Arc::default(), Arc::default());
    let answer = Scripted::new().reply(Reply::words(["a", "b"])).oneshot(request()).await.unwrap();
    let answer = answer.observe(Times(Arc::clone(&first))).observe(Slow).observe(Times(Arc::clone(&second)));
    answer.text().await.unwrap();
    assert_eq!(first.lock().unwrap().len(), 6);
    assert_eq!(*first.lock().unwrap(), *second.lock().unwrap());
}

// ===== read ahead =====

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => "[ab]{0,2}".prop_map(|t| text(&t)),
        2 => Just(text(" ")),
        2 => Just(Step::Yield),
        1 => Just(Step::Chunk(StreamChunk::usage_only(TokenUsage::new(1, 2)))),
    ]
}

fn end() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![Step::Chunk(StreamChunk::text("z").into_final())]),
        1 => Just(vec![Step::Cut]),
        1 => Just(vec![Step::Fail(broken())]),
    ]
}

proptest! {
    /// Peeks of any bounds between observers: who stands inside of a Peek sees what it reads, who stands
    /// outside sees what is handed out; all see each chunk once and in order, and all see the same end.
    #[test]
    fn however_often_it_is_peeked_at_each_observer_sees_each_chunk_once_and_in_order(
        steps in prop::collection::vec(step(), 0..10),
        end in end(),
        (inner, outer) in (1..6_usize, 1..6_usize),
        take in 0..14_usize,
    ) {
        let steps: Vec<Step> = steps.into_iter().chain(end).collect();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            // What there is to see, by reading without any layer.
            let plain = Scripted::new().reply(Reply::stream(steps.clone()));
            let all = read(stream_of(plain.oneshot(request()).await.unwrap())).await;

            let log = Log::default();
            let layers = (
                spy("out", &log),
                PeekLayer::new().with_max_chunks(outer),
                spy("mid", &log),
                PeekLayer::new().with_max_chunks(inner),
                spy("in", &log),
            );
            let provider = Scripted::new().reply(Reply::stream(steps.clone()));
            let mut seen = Vec::new();
            let refused = match layers.layer(provider.clone()).oneshot(request()).await {
                Ok(answer) => {
                    let mut chunks = stream_of(answer);
                    for _ in 0..take {
                        let Some(chunk) = chunks.next().await else { break };
                        seen.push(chunk.map_or_else(|error| error.to_string(), |chunk| said(&chunk)));
                    }
                    false
                }
                Err(_) => true,
            };
            assert_eq!(provider.alive(), 0);
            assert_eq!(seen, all[..seen.len()], "nothing is lost, doubled or moved");

            let log = log.take();
            let mut ends = Vec::new();
            for name in ["in", "mid", "out"] {
                let own = format!("{name}: ");
                let of: Vec<_> = log.iter().filter_map(|line| line.strip_prefix(&own)).collect();
                assert_eq!(of, all[..of.len()], "{name}: each once and in order");
                assert!(of.len() + 1 >= seen.len(), "{name}: all that was handed out, but for an error");
                let end = format!("{name}! ");
                let end: Vec<_> = log.iter().filter_map(|line| line.strip_prefix(&end)).collect();
                assert_eq!(end.len(), 1, "{name}: one end");
                // And nothing after it.
                assert!(log.iter().rfind(|line| line.starts_with(name)).unwrap().contains('!'));
                ends.push((of.len(), end[0].to_owned()));
            }
            assert!(ends[0].0 >= ends[1].0 && ends[1].0 >= ends[2].0, "inner ones see no less: {ends:?}");
            if !refused && take > all.len() {
                let errors = usize::from(!all.last().unwrap().eq("end"));
                for (chunks, end) in ends {
                    assert_eq!(chunks + errors, all.len());
                    assert!(end.starts_with(if errors == 0 { "ended" } else { "failed" }), "{end}");
                }
            }
        });
    }
}

#[tokio::test]
async fn two_peeks_in_detail() {
    let log = Log::default();
    let layers = (spy("out", &log), PeekLayer::new(), spy("mid", &log), PeekLayer::new(), spy("in", &log));
    let provider = Scripted::new().reply(Reply::stream([text(""), text("a"), text("b")]));
    let mut chunks = stream_of(layers.layer(provider).oneshot(request()).await.unwrap());
    assert_eq!(log.take(), ["in: ", "in: a", "mid: ", "mid: a"]);
    assert_eq!(chunks.summary().chunks, 2);
    chunks.next().await.unwrap().unwrap();
    assert_eq!(log.take(), ["out: "]);
    chunks.next().await.unwrap().unwrap();
    assert_eq!(log.take(), ["out: a"]);
    chunks.next().await.unwrap().unwrap();
    assert_eq!(log.take(), ["in: b", "mid: b", "out: b"]);
    drop(chunks);
    assert_eq!(log.take(), ["in! abandoned(3)", "mid! abandoned(3)", "out! abandoned(3)"]);
}

#[tokio::test]
async fn an_end_that_was_read_ahead_is_told_inside_at_once_and_outside_when_it_is_handed_out() {
    let log = Log::default();
    let layers = (spy("out", &log), PeekLayer::new(), spy("in", &log));
    let last = StreamChunk::text("a").into_final();
    let provider = Scripted::new().reply(Reply::stream([text(" "), Step::Chunk(last)]));
    let mut chunks = stream_of(layers.layer(provider.clone()).oneshot(request()).await.unwrap());
    assert_eq!(log.take(), ["in:  ", "in: end", "in! ended(2)"]);
    assert_eq!(provider.alive(), 0);
    chunks.next().await.unwrap().unwrap();
    assert_eq!(log.take(), ["out:  "]);
    assert!(chunks.next().await.unwrap().unwrap().is_final());
    assert_eq!(log.take(), ["out: end", "out! ended(2)"]);
    assert!(chunks.next().await.is_none());

    // Whoever leaves before it is handed out has abandoned it; the provider had finished.
    let last = StreamChunk::text("a").into_final();
    let provider = Scripted::new().reply(Reply::stream([Step::Chunk(last)]));
    let layers = (spy("out", &log), PeekLayer::new(), spy("in", &log));
    drop(layers.layer(provider).oneshot(request()).await.unwrap());
    assert_eq!(log.take(), ["in: end", "in! ended(1)", "out! abandoned(1)"]);
}

#[tokio::test]
async fn what_peek_refuses_has_ended_well_inside_and_failed_outside() {
    let log = Log::default();
    let completion = Completion::text(" ", TokenUsage::new(3, 1));
    for (reply, inside) in [
        (Reply::complete(completion), "in! whole( )"),
        (
            Reply::stream([text(" "), Step::Chunk(StreamChunk::usage_only(TokenUsage::new(3, 1)))]),
            "in! ended(3)",
        ),
    ] {
        let layers = (spy("out", &log), PeekLayer::new(), spy("in", &log));
        let error = layers.layer(Scripted::new().reply(reply)).oneshot(request()).await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::EmptyResponse { model, .. } if *model == "acme/one"));
        assert_eq!((error.usage(), error.dispatched()), (Some(&TokenUsage::new(3, 1)), true));
        assert_eq!(log.ends(), [inside, "out! failed(model acme/one answered nothing; 0)"]);
        log.take();
    }
}

#[tokio::test(start_paused = true)]
async fn a_peek_in_the_midst_of_waiting_is_dropped_without_a_trace() {
    let log = Log::default();
    let provider = Scripted::new().reply(Reply::stream([text(" "), Step::Stall]));
    let layers = (spy("out", &log), PeekLayer::new(), spy("in", &log));
    let mut call = Box::pin(layers.layer(provider.clone()).oneshot(request()));
    assert!((&mut call).now_or_never().is_none());
    advance(Duration::from_secs(1)).await;
    assert_eq!((log.take(), provider.alive()), (vec!["in:  ".to_owned()], 1));
    drop(call);
    assert_eq!(log.take(), ["in! abandoned(1)", "out! abandoned(0)"]);
    assert_eq!(provider.alive(), 0);
}

// ===== shape =====

#[test]
fn debug_says_nothing_of_what_was_said() {
    let mut chunks = ChunkStream::new(source([Some(Ok(StreamChunk::text("Geheimnis")))]));
    chunks.next().now_or_never().unwrap().unwrap().unwrap();
    let watch = Watch::new(Spy::new("spy", Log::default()));
    let shown = format!("{chunks:?} {:?} {watch:?}", chunks.summary());
    assert!(!shown.contains("Geheimnis"), "{shown}");
    fn is_send<T: Send + 'static>(_: &T) {}
    is_send(&chunks);
    is_send(&watch);
}
