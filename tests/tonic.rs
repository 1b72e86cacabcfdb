//! The edge of gRPC: what its clients see of errors, deadlines and streams.
#![cfg(feature = "tonic")]

use futures_core::Stream;
use futures_util::stream;
use http::StatusCode;
use llm_layers::{
    ChunkStream, Completion, Error, ErrorClass, ErrorKind, FinishReason, InvalidReason, LlmResponse,
    ProviderFailure, RequestContext, ResponseBody, StreamChunk, TimeoutPhase, TokenUsage,
    body::{End, Observe},
    cache::CacheControl,
    http::tonic::{
        Messages, WriteTimeout, bearer, code, context, error_of, status, timeout, write_head,
        write_request_id,
    },
};
use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_test::{assert_pending, assert_ready, task};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::StatusExt;

fn metadata(entries: &[(&'static str, &str)]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in entries {
        metadata.insert(*name, value.parse().unwrap());
    }
    metadata
}

fn upstream(class: ErrorClass, status: u16, retry_after: Option<Duration>) -> Error {
    let mut failure = ProviderFailure::new(class, "acme", "m");
    failure.status = StatusCode::from_u16(status).ok();
    failure.retry_after = retry_after;
    failure.body = Some("your key sk-secret said tell me".into());
    Error::new(ErrorKind::Provider(failure))
}

// ===== errors =====

#[test]
fn each_kind_of_error_has_one_code_and_says_whether_to_try_again() {
    let invalid = |reason| Error::new(ErrorKind::InvalidRequest { member: Some("messages".into()), reason });
    let of = |kind| Error::new(kind);
    // A client that comes a moment too early is sent away once more.
    let second = Some(Duration::from_micros(1_499_001));
    let (never, soon, as_you_like) = (Some("-1"), Some("1000"), None);
    let cases = [
        (invalid(InvalidReason::Missing), Code::InvalidArgument, never),
        (Error::invalid_body(InvalidReason::TooLarge { limit: 9 }), Code::ResourceExhausted, never),
        (
            of(ErrorKind::ModelNotAllowed { department_id: "ops".into(), model: "m".into() }),
            Code::PermissionDenied,
            never,
        ),
        (of(ErrorKind::ModelUnpriced { model: "m".into() }), Code::PermissionDenied, never),
        (of(ErrorKind::ModelNotFound { model: "m".into() }), Code::NotFound, never),
        (of(ErrorKind::NoProvider), Code::Unavailable, soon),
        (of(ErrorKind::StoreUnavailable { store: "quota".into() }), Code::Unavailable, soon),
        (of(ErrorKind::Overloaded), Code::Unavailable, soon),
        (upstream(ErrorClass::RateLimited, 429, second), Code::ResourceExhausted, Some("1500")),
        (upstream(ErrorClass::RateLimited, 429, None), Code::ResourceExhausted, as_you_like),
        (
            upstream(ErrorClass::RateLimited, 429, Some(Duration::from_secs(1 << 30))),
            Code::ResourceExhausted,
            never,
        ),
        (upstream(ErrorClass::BadRequest, 422, None), Code::InvalidArgument, never),
        (upstream(ErrorClass::BadRequest, 404, None), Code::NotFound, never),
        (upstream(ErrorClass::ContextWindow, 400, None), Code::InvalidArgument, never),
        (upstream(ErrorClass::ContentFilter, 403, None), Code::PermissionDenied, never),
        (upstream(ErrorClass::Auth, 401, None), Code::Unavailable, never),
        (upstream(ErrorClass::Upstream, 500, None), Code::Unavailable, as_you_like),
        (upstream(ErrorClass::Connect, 0, None), Code::Unavailable, as_you_like),
        (of(ErrorKind::EmptyResponse { model: "m".into() }), Code::Unavailable, as_you_like),
        (
            of(ErrorKind::EmptyResponse { model: "m".into() }).with_finish_reason(FinishReason::Length),
            Code::Unavailable,
            never,
        ),
        (of(ErrorKind::StreamInterrupted { model: None, after_content: true }), Code::Unavailable, never),
        (of(ErrorKind::Timeout { phase: TimeoutPhase::Deadline }), Code::DeadlineExceeded, as_you_like),
        (of(ErrorKind::NotCached), Code::FailedPrecondition, never),
        (of(ErrorKind::Cancelled), Code::Cancelled, never),
        (of(ErrorKind::Other), Code::Internal, never),
    ];
    for (error, expected, pushback) in cases {
        let reason = error.reason().to_ascii_uppercase();
        assert_eq!(code(&error), expected, "{error:?}");
        let status = status(error.clone());
        assert_eq!((status.code(), status.message()), (expected, &*error.to_string()));
        let told = status.metadata().get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap());
        assert_eq!(told, pushback, "{error:?}");
        let info = status.get_details_error_info().expect("a reason");
        assert_eq!((info.reason, &*info.domain), (reason, "llm-layers"));
        assert_eq!(info.metadata["type"], llm_layers::http::error_type(&error));
        assert_eq!(info.metadata.get("code").map(|code| &**code), llm_layers::http::error_code(&error));
        assert!(error_of(&status).is_some_and(|same| same.reason() == error.reason()));
        let all = format!("{status:?}{:?}", status.details());
        assert!(!all.contains("sk-secret"), "{all}");
    }
}

#[test]
fn details_name_the_member_the_model_and_the_time_to_wait() {
    let error = Error::new(ErrorKind::InvalidRequest {
        member: Some("temperature".into()),
        reason: InvalidReason::Mistyped { expected: "a number" },
    });
    let [violation] = &status(error).get_details_bad_request().unwrap().field_violations[..] else {
        panic!("one")
    };
    assert_eq!((&*violation.field, &*violation.description), ("temperature", "must be a number"));

    let error =
        Error::new(ErrorKind::ModelNotAllowed { department_id: "ops".into(), model: "acme/m".into() });
    let resource = status(error).get_details_resource_info().unwrap();
    assert_eq!((&*resource.resource_type, &*resource.resource_name), ("model", "acme/m"));

    let limited = status(upstream(ErrorClass::RateLimited, 429, Some(Duration::from_millis(1500))));
    assert_eq!(limited.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_millis(1500)));
    assert_eq!(limited.metadata().get("retry-after").unwrap(), "2");
}

#[tokio::test]
async fn seed_11_a_quota_tells_its_department_and_when_it_opens_and_is_not_to_be_retried() {
    use llm_layers::{
        ChatBody, LlmRequest,
        policies::{DepartmentPolicy, Policies, PolicyTable},
        price::{PriceBook, Prices},
        provider::Echo,
        quota::{Limits, MemoryStore, QuotaLayer},
    };
    use tower::{Layer as _, ServiceExt as _};

    let policy = DepartmentPolicy::new(Limits::new().with_day_requests(1));
    let policies = Policies::new(PolicyTable::new(DepartmentPolicy::default()).with("ops", policy));
    let service =
        QuotaLayer::new(MemoryStore::new(), policies, Prices::new(PriceBook::new())).layer(Echo::new());
    let ask = || {
        let body = ChatBody::builder().user("Hi").build().unwrap();
        let context = RequestContext::new().with_departments(["ops"]);
        service.clone().oneshot(LlmRequest::new("m", body).with_context(context))
    };

    let mut head = MetadataMap::new();
    write_head(&ask().await.unwrap(), &mut head);
    assert_eq!(head.get("x-ratelimit-remaining-requests").unwrap(), "0");

    let refused = status(ask().await.unwrap_err());
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
    assert_eq!(refused.metadata().get("x-ratelimit-limit-requests").unwrap(), "1");
    let wait: u64 = refused.metadata().get("retry-after").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=86_400).contains(&wait));
    let [violation] = &refused.get_details_quota_failure().unwrap().violations[..] else { panic!("one") };
    assert_eq!(violation.subject, "department:ops");
    assert!(violation.description.contains("daily request limit"));
}

// ===== metadata =====

#[test]
fn a_key_is_what_stands_behind_bearer() {
    let key = |said: &str| bearer(&metadata(&[("authorization", said)])).map(<[u8]>::to_vec);
    assert_eq!(key("Bearer abc").as_deref(), Some(&b"abc"[..]));
    assert_eq!(key("bearer  abc ").as_deref(), Some(&b"abc"[..]));
    for wrong in ["Basic abc", "Bearerabc", "abc", "", "Bearer", "Bearer ", "bearer  \t"] {
        assert_eq!(key(wrong), None, "{wrong}");
    }
    assert_eq!(bearer(&MetadataMap::new()), None);
}

#[test]
fn a_timeout_is_read_as_grpc_writes_it() {
    let read = |said: &str| timeout(&metadata(&[("grpc-timeout", said)]));
    assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
    assert_eq!(read("3M"), Some(Duration::from_secs(180)));
    assert_eq!(read("4S"), Some(Duration::from_secs(4)));
    assert_eq!(read("5m"), Some(Duration::from_millis(5)));
    assert_eq!(read("6u"), Some(Duration::from_micros(6)));
    assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
    assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
    for wrong in ["", "5", "S", "+5S", "-5S", "5s", "5 S", "999999999S", "1.5S"] {
        assert_eq!(read(wrong), None, "{wrong:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_time_is_the_deadline_unless_the_host_gives_less() {
    let now = tokio::time::Instant::now().into_std();
    let asked = metadata(&[("grpc-timeout", "10S"), ("x-request-id", "mine"), ("cache-control", "no-store")]);
    let of_caller = context(&asked, RequestContext::new()).unwrap();
    assert_eq!(of_caller.deadline(), Some(now + Duration::from_millis(9_900)));
    assert_eq!(of_caller.request_id(), Some("mine"));
    assert_ne!(of_caller.cache_control(), RequestContext::new().cache_control());
    let strict = RequestContext::new().with_cache_control(CacheControl::new().with_no_cache());
    let control = context(&asked, strict).unwrap().cache_control();
    assert!(control.no_store && control.no_cache, "what the host forbids stays forbidden");

    let unknown = context(&metadata(&[("x-llm-department", "a")]), RequestContext::new()).unwrap_err();
    assert_eq!(status(unknown).message(), "`x-llm-department` is a header that is not known");

    let of_host = RequestContext::new().with_timeout(Duration::from_secs(3)).with_request_id("host");
    let both = context(&asked, of_host.clone()).unwrap();
    assert_eq!((both.deadline(), both.request_id()), (Some(now + Duration::from_secs(3)), Some("host")));
    assert_eq!(context(&MetadataMap::new(), of_host).unwrap().deadline(), Some(now + Duration::from_secs(3)));
    assert_eq!(context(&MetadataMap::new(), RequestContext::new()).unwrap().deadline(), None);
    assert_eq!(
        context(&metadata(&[("grpc-timeout", "20m")]), RequestContext::new()).unwrap().deadline(),
        Some(now + Duration::from_millis(18))
    );
}

#[test]
fn a_request_id_that_is_no_metadata_is_left_out() {
    let mut head = MetadataMap::new();
    write_request_id("a\nb", &mut head);
    assert!(head.is_empty());
    write_request_id("ab", &mut head);
    assert_eq!(head.get("x-request-id").unwrap(), "ab");
}

// ===== streams =====

type Told = Result<Option<String>, Error>;

fn text(chunk: &StreamChunk) -> Told {
    Ok(Some(chunk.content().into_owned()).filter(|text| !text.is_empty()))
}

fn scripted(chunks: impl IntoIterator<Item = Result<StreamChunk, Error>>) -> ResponseBody {
    let chunks: Vec<_> = chunks.into_iter().collect();
    ChunkStream::new(stream::iter(chunks)).into()
}

async fn all<F: FnMut(&StreamChunk) -> Told + Unpin>(messages: Messages<F>) -> Vec<Result<String, Status>> {
    use futures_util::StreamExt as _;
    messages.collect().await
}

/// Tells how a stream ended.
#[derive(Clone, Default)]
struct Ending(Arc<Mutex<Option<&'static str>>>);

impl Observe for Ending {
    fn on_end(self, end: End<'_>) {
        *self.0.lock().unwrap() = Some(match end {
            End::StreamEnded(_) => "ended",
            End::Abandoned(_) => "abandoned",
            _ => "failed",
        });
    }
}

#[tokio::test]
async fn a_stream_ends_after_its_last_chunk_and_a_whole_answer_is_a_stream_too() {
    let finish = StreamChunk::finish(&FinishReason::Stop);
    let body = scripted([StreamChunk::text("a"), StreamChunk::text("b"), finish, StreamChunk::end()].map(Ok));
    let told: Vec<_> = all(Messages::new(body, text)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(told, ["a", "b"]);
    let whole = Completion::text("Hello", TokenUsage::new(1, 1));
    let told: Vec<_> = all(Messages::new(whole.into(), text)).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(told, ["Hello"]);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_with_a_status_and_never_with_a_clean_end() {
    let body = scripted([Ok(StreamChunk::text("a")), Err(upstream(ErrorClass::Transport, 0, None))]);
    let told = all(Messages::new(body, text)).await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].as_ref().unwrap_err().code(), Code::Unavailable);
    let told = all(Messages::new(scripted([Ok(StreamChunk::text("a"))]), text)).await;
    assert_eq!(told.len(), 2);
    assert_eq!(told[1].as_ref().unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_translation_that_fails_ends_the_stream_and_hangs_up() {
    let ending = Ending::default();
    let body = scripted([StreamChunk::text("a"), StreamChunk::text("b"), StreamChunk::end()].map(Ok));
    let answer = LlmResponse::new("m", body).observe(ending.clone());
    let told =
        all(Messages::new(answer.body, |_: &StreamChunk| -> Told { Err(Error::new(ErrorKind::Other)) }))
            .await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].as_ref().unwrap_err().code(), Code::Internal);
    assert_eq!(*ending.0.lock().unwrap(), Some("failed"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_silent_stream_and_hangs_up() {
    let ending = Ending::default();
    let (send, mut receive) = mpsc::channel(1);
    let chunks = stream::poll_fn(move |cx| receive.poll_recv(cx));
    let answer = LlmResponse::new("m", ChunkStream::new(chunks)).observe(ending.clone());
    let deadline = (tokio::time::Instant::now() + Duration::from_secs(5)).into_std();
    let mut messages = task::spawn(Messages::new(answer.body, text).with_deadline(Some(deadline)));
    send.send(Ok(StreamChunk::text("a"))).await.unwrap();
    assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap(), "a");
    assert_pending!(messages.poll_next());
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(messages.is_woken());
    let late = assert_ready!(messages.poll_next()).unwrap().unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert_eq!(*ending.0.lock().unwrap(), Some("failed"));
    assert!(send.is_closed());
    assert!(assert_ready!(messages.poll_next()).is_none());
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_stream_that_is_never_silent() {
    let ending = Ending::default();
    let endless = ChunkStream::new(stream::repeat_with(|| Ok(StreamChunk::text("a"))));
    let endless = LlmResponse::new("m", endless).observe(ending.clone()).body;
    let deadline = (tokio::time::Instant::now() + Duration::from_secs(5)).into_std();
    let mut messages = task::spawn(Messages::new(endless, text).with_deadline(Some(deadline)));
    assert!(assert_ready!(messages.poll_next()).unwrap().is_ok());
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(*ending.0.lock().unwrap(), Some("failed"));
}

const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Two texts and the end, as they are sent, and how it ends.
fn watched() -> (mpsc::Sender<Result<StreamChunk, Error>>, ResponseBody, Ending) {
    let (send, mut receive) = mpsc::channel(4);
    let answer = LlmResponse::new("m", ChunkStream::new(stream::poll_fn(move |cx| receive.poll_recv(cx))));
    let ending = Ending::default();
    (send, answer.observe(ending.clone()).body, ending)
}

async fn hung_up_after(provider: &mpsc::Sender<Result<StreamChunk, Error>>, limit: Duration) {
    let since = tokio::time::Instant::now();
    tokio::time::timeout(2 * limit, provider.closed()).await.expect("it is hung up on");
    assert_eq!(since.elapsed(), limit);
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_is_hung_up_on_and_finds_no_clean_end() {
    let (send, body, ending) = watched();
    let mut messages = task::spawn(WriteTimeout::new(Messages::new(body, text), WRITE_TIMEOUT));
    for _ in 0..3 {
        send.send(Ok(StreamChunk::text("a"))).await.unwrap();
    }
    // However little he takes before, and however late.
    for _ in 0..2 {
        tokio::time::sleep(WRITE_TIMEOUT - Duration::from_secs(1)).await;
        assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap(), "a");
    }
    // He waits, and does not ask when there is something.
    assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap(), "a");
    assert_pending!(messages.poll_next());
    tokio::time::sleep(3 * WRITE_TIMEOUT).await;
    send.send(Ok(StreamChunk::text("a"))).await.unwrap();
    assert!(messages.is_woken());
    hung_up_after(&send, WRITE_TIMEOUT).await;
    assert_eq!(*ending.0.lock().unwrap(), Some("abandoned"));
    let late = assert_ready!(messages.poll_next()).unwrap().unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::DeadlineExceeded, "nothing was taken of the answer for 60s")
    );
    assert!(assert_ready!(messages.poll_next()).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_at_all_or_for_nothing_more_is_hung_up_on() {
    for asked in 0..2 {
        let (send, body, _) = watched();
        send.send(Ok(StreamChunk::text("a"))).await.unwrap();
        let mut messages = task::spawn(WriteTimeout::new(Messages::new(body, text), WRITE_TIMEOUT));
        (0..asked).for_each(|_| assert!(assert_ready!(messages.poll_next()).unwrap().is_ok()));
        hung_up_after(&send, WRITE_TIMEOUT).await;
    }
}

/// Wakes whoever has asked for the next once more when it is dropped.
#[derive(Clone, Default)]
struct LastWords(Arc<Mutex<Option<Waker>>>);

impl Stream for LastWords {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        *self.0.lock().unwrap() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl LastWords {
    fn wake(&self) {
        let waker = self.0.lock().unwrap().clone();
        waker.expect("it was asked").wake();
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        self.wake();
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_hung_up_on_may_be_woken_by_that() {
    let (chunks, ending) = (LastWords::default(), Ending::default());
    let answer = LlmResponse::new("m", ChunkStream::new(chunks.clone())).observe(ending.clone());
    let mut messages = task::spawn(WriteTimeout::new(Messages::new(answer.body, text), WRITE_TIMEOUT));
    assert_pending!(messages.poll_next());
    chunks.wake();
    tokio::time::sleep(2 * WRITE_TIMEOUT).await;
    assert_eq!(*ending.0.lock().unwrap(), Some("abandoned"));
}

#[tokio::test(start_paused = true)]
async fn neither_a_provider_that_is_silent_nor_the_rest_of_an_answer_that_has_ended_hangs_up() {
    let (send, body, ending) = watched();
    let mut messages = task::spawn(WriteTimeout::new(Messages::new(body, text), WRITE_TIMEOUT));
    assert_pending!(messages.poll_next());
    tokio::time::sleep(10 * WRITE_TIMEOUT).await;
    send.send(Ok(StreamChunk::text("a"))).await.unwrap();
    assert!(messages.is_woken());
    assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap(), "a");
    send.send(Ok(StreamChunk::end())).await.unwrap();
    tokio::time::sleep(WRITE_TIMEOUT / 2).await;
    assert!(assert_ready!(messages.poll_next()).is_none());
    assert_eq!(*ending.0.lock().unwrap(), Some("ended"));

    let body = scripted([StreamChunk::text("a").into_final()].map(Ok));
    let mut messages = task::spawn(WriteTimeout::new(Messages::new(body, text), WRITE_TIMEOUT));
    assert_eq!(assert_ready!(messages.poll_next()).unwrap().unwrap(), "a");
    tokio::time::sleep(2 * WRITE_TIMEOUT).await;
    assert!(assert_ready!(messages.poll_next()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_leaves_nobody_to_watch_it() {
    let (send, body, ending) = watched();
    let messages = WriteTimeout::new(Messages::new(body, text), WRITE_TIMEOUT);
    let metrics = tokio::runtime::Handle::current().metrics();
    // It watches.
    tokio::task::yield_now().await;
    assert_eq!(metrics.num_alive_tasks(), 1);
    drop(messages);
    assert!(send.is_closed());
    assert_eq!(*ending.0.lock().unwrap(), Some("abandoned"));
    tokio::task::yield_now().await;
    assert_eq!(metrics.num_alive_tasks(), 0);
}

#[tokio::test]
async fn a_caller_who_goes_away_hangs_up_on_the_provider() {
    struct Connection(Arc<AtomicBool>);
    impl Drop for Connection {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let closed = Arc::new(AtomicBool::new(false));
    let connection = Connection(Arc::clone(&closed));
    let chunks = stream::poll_fn(move |_| {
        let _open = &connection;
        std::task::Poll::Pending::<Option<Result<StreamChunk, Error>>>
    });
    let mut messages = task::spawn(Messages::new(ChunkStream::new(chunks).into(), text));
    assert_pending!(messages.poll_next());
    drop(messages);
    assert!(closed.load(Ordering::Relaxed));
}

#[test]
fn a_stream_of_messages_is_send() {
    fn send<T: Send + Stream>(_: T) {}
    send(Messages::new(scripted([]), text));
}

// ===== who asks =====

#[cfg(all(feature = "config", feature = "rusqlite"))]
#[tokio::test]
async fn a_key_says_who_asks_and_only_a_trusted_one_says_for_whom() {
    use llm_layers::{config::Config, http::tonic::identify, stack::stack};

    let config = r#"
        usage.enabled = false
        providers.echo.kind = "echo"
        [[keys]]
        key = "ada-key"
        user = "ada"
        max_in_flight = 1
        [[keys]]
        key = "app-key"
        user = "app"
        trusted = true
    "#;
    let (_service, handle) = stack(Config::parse(config).unwrap()).await.unwrap();
    let code = |entries: &[(&'static str, &str)]| {
        identify(&handle, &metadata(entries)).map_err(|status| status.code())
    };
    assert_eq!(code(&[]).err(), Some(Code::Unauthenticated));
    assert_eq!(code(&[("authorization", "Bearer other")]).err(), Some(Code::Unauthenticated));

    let (context, caller) = code(&[("authorization", "Bearer ada-key"), ("grpc-timeout", "5S")]).unwrap();
    assert_eq!(context.user_id(), Some("ada"));
    assert!(context.deadline().is_some());
    let place = caller.admit().expect("a place");
    assert!(caller.admit().is_none());
    drop(place);
    assert!(caller.admit().is_some());

    let mut two = metadata(&[("authorization", "Bearer ada-key")]);
    two.append("authorization", "Bearer app-key".parse().unwrap());
    let refused = identify(&handle, &two).expect_err("another server might believe the other");
    assert_eq!(refused.code(), Code::InvalidArgument);

    for (key, name) in [
        ("Bearer ada-key", "x-llm-usr"),
        ("Bearer app-key", "x-llm-usr"),
        ("Bearer app-key", "x-llm-timeout"),
    ] {
        assert_eq!(code(&[("authorization", key), (name, "1")]).err(), Some(Code::InvalidArgument), "{name}");
    }

    let stated = |key: &str| code(&[("authorization", key), ("x-llm-user", "eve")]);
    assert_eq!(stated("Bearer ada-key").err(), Some(Code::InvalidArgument));
    assert_eq!(stated("Bearer app-key").unwrap().0.user_id(), Some("eve"));
}
