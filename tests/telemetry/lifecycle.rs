//! Each way to end, for both backends.

use crate::{
    conventions::check,
    seen::{Attr, Backend, Otel, Seen, Tracing},
};
use futures_util::StreamExt;
use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind, FinishReason, LlmRequest, LlmResponse,
    ProviderFailure, RequestContext, ResponseBody, StreamChunk, TokenUsage,
    price::{Price, PriceBook, Prices, Rates},
    providers::{Deployment, Providers},
    telemetry::{CallSpan, CaptureContent, Observer, Redact, SemConv, TelemetryLayer, TracingObserver},
    testing::{Contract, Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
    usage::{MemorySink, UsageLayer},
};
use opentelemetry::logs::Severity;
use std::{
    future::ready,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};

pub(crate) const PROMPT: &str = "sesame-prompt-8f2e";
pub(crate) const USER: &str = "sesame-user-77ac";
pub(crate) const SECRETS: [&str; 3] = [PROMPT, USER, "sesame-answer-19bd"];

const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn ask(streaming: bool) -> LlmRequest {
    let body = ChatBody::builder()
        .system(PROMPT)
        .user(PROMPT)
        .temperature(0.25)
        .set("top_p", 0.5)
        .set("top_k", 40)
        .set("seed", 7)
        .set("max_tokens", 100)
        .set("stop", ["END", "FIN"])
        .set("reasoning_effort", "low")
        .set("response_format", serde_json::json!({ "type": "json_object" }))
        .set("stream", streaming)
        .build()
        .unwrap();
    let context = RequestContext::new().with_user_id(USER).with_conversation_id("conv-5");
    LlmRequest::new("openai/gpt-4o-mini", body).with_context(context)
}

fn providers<B: Backend>(backend: &B, provider: &Scripted) -> Providers {
    let observer = backend.observer();
    let timeout = CallTimeoutLayer::new().with_head(10 * SECOND).with_idle(10 * SECOND);
    Providers::builder()
        .each(move |endpoint| (TelemetryLayer::at(observer.clone(), endpoint), timeout))
        .deployment("openai", Deployment::new(provider.clone()).with_address("api.example", 443))
        .build()
        .unwrap()
}

/// A whole answer, with all that a provider may say of it.
fn whole() -> Completion {
    Completion::parse(
        r#"{"id":"chatcmpl-1","model":"gpt-4o-mini-2024-07-18","choices":[
            {"index":0,"message":{"role":"assistant","content":"sesame-answer-19bd"},"finish_reason":"stop"},
            {"index":1,"message":{"role":"assistant","content":"sesame-answer-19bd"},"finish_reason":"length"}],
            "usage":{"prompt_tokens":20,"completion_tokens":7,
                "prompt_tokens_details":{"cached_tokens":4,"cache_write_tokens":3},
                "completion_tokens_details":{"reasoning_tokens":2}}}"#,
    )
    .unwrap()
}

pub(crate) fn chunk(text: &str) -> Step {
    let json = serde_json::json!({ "id": "chatcmpl-1", "model": "gpt-4o-mini-2024-07-18",
        "choices": [{ "index": 0, "delta": { "content": text } }] });
    Step::Chunk(StreamChunk::parse(json.to_string()).unwrap())
}

/// Three chunks a second apart, then finish reason and usage.
fn stream() -> Vec<Step> {
    vec![
        Step::Wait(SECOND),
        chunk("sesame-answer-19bd"),
        Step::Wait(SECOND),
        chunk("b"),
        Step::Wait(SECOND),
        chunk("c"),
        Step::Chunk(StreamChunk::finish(&FinishReason::Stop)),
        Step::Chunk(StreamChunk::usage_only(TokenUsage::new(20, 7))),
    ]
}

fn limited() -> Error {
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "openai", "gpt-4o-mini");
    failure.status = Some(http::StatusCode::TOO_MANY_REQUESTS);
    Error::new(ErrorKind::Provider(failure)).with_dispatched(true)
}

fn chunks(answer: LlmResponse) -> ChunkStream {
    let ResponseBody::Stream(chunks) = answer.body else { panic!("expected a stream") };
    chunks
}

/// What is expected of the one span that there is.
struct Expected {
    error: Option<&'static str>,
    finish: &'static [&'static str],
    usage: Option<(i64, i64)>,
    first_chunk: Option<f64>,
    seconds: u64,
}

const FINE: Expected =
    Expected { error: None, finish: &["stop"], usage: Some((20, 7)), first_chunk: Some(1.0), seconds: 3 };
const CANCELLED: Expected =
    Expected { error: Some("cancelled"), finish: &["error"], usage: None, first_chunk: None, seconds: 0 };

fn one<B: Backend>(backend: &B, semconv: SemConv) -> Seen {
    let spans = backend.spans();
    assert_eq!(spans.len(), 1, "exactly one span: {spans:#?}");
    let span = spans.into_iter().next().unwrap();
    assert_eq!(span.kind, "client");
    check(&span, semconv, B::HAS_LISTS, false);
    let told = backend.everything();
    for secret in SECRETS {
        assert!(!told.contains(secret), "{secret} is told");
    }
    span
}

fn expect<B: Backend>(backend: &B, semconv: SemConv, expected: &Expected) {
    let span = one(backend, semconv);
    assert_eq!(span.text("error.type"), expected.error, "{span:#?}");
    assert_eq!(span.texts("gen_ai.response.finish_reasons"), expected.finish);
    let usage = span.int("gen_ai.usage.input_tokens").zip(span.int("gen_ai.usage.output_tokens"));
    assert_eq!(usage, expected.usage);
    let first = expected.first_chunk.map(Attr::Double);
    assert_eq!(span.get("gen_ai.response.time_to_first_chunk"), first.as_ref());
    assert_eq!(span.duration, Some(Duration::from_secs(expected.seconds)), "{span:#?}");
}

/// Runs `test` for each backend and each version.
macro_rules! each_backend {
    ($($name:ident => $test:ident;)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(start_paused = true)]
            async fn otel() {
                for semconv in [SemConv::V1_41, SemConv::Latest] {
                    $test(&Otel::new(semconv), semconv).await;
                }
            }

            #[tokio::test(start_paused = true)]
            async fn tracing() {
                for semconv in [SemConv::V1_41, SemConv::Latest] {
                    $test(&Tracing::new(semconv), semconv).await;
                }
            }
        }
    )*};
}

each_backend! {
    seed_25_a_whole_answer_is_a_span_of_a_client => whole_answer;
    seed_25_a_stream_has_a_span_too => streamed;
    seed_25_an_error_is_on_its_span => whole_error;
    a_stream_that_breaks => stream_error;
    a_stream_that_is_cut => stream_cut;
    a_stream_dropped_after_some_chunks => dropped_after_chunks;
    a_stream_that_is_not_read_to_none => terminal_chunk_is_the_end;
    a_call_dropped_before_its_head => dropped_before_head;
    a_call_that_is_never_polled => never_polled;
    a_time_limit_inside => timeout_inside;
    a_time_limit_outside => timeout_outside;
    a_panic => panics;
    an_answer_that_says_nothing => empty;
    dropped_at_any_poll => any_poll;
    what_is_current => current;
    content_on_request => content;
    content_that_cannot_be_redacted => not_redacted;
    what_it_cost_on_request => cost;
    what_it_cost_is_what_the_ledger_says => cost_in_ledger;
    in_a_process => in_process;
    the_contract => contract;
}

async fn whole_answer<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::complete(whole()).after([Step::Wait(SECOND)]));
    providers(backend, &provider).oneshot(ask(false)).await.unwrap();
    let expected = Expected { finish: &["stop", "length"], first_chunk: None, seconds: 1, ..FINE };
    expect(backend, semconv, &expected);
    let span = one(backend, semconv);
    assert_eq!(span.name, "chat gpt-4o-mini");
    let texts = [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "openai"),
        ("gen_ai.request.model", "gpt-4o-mini"),
        ("gen_ai.output.type", "json"),
        ("gen_ai.conversation.id", "conv-5"),
        ("gen_ai.response.id", "chatcmpl-1"),
        ("gen_ai.response.model", "gpt-4o-mini-2024-07-18"),
        ("server.address", "api.example"),
        ("llm_layers.requested_model", "openai/gpt-4o-mini"),
    ];
    for (name, text) in texts {
        assert_eq!(span.text(name), Some(text), "{name}");
    }
    let written = match semconv {
        SemConv::V1_41 => "gen_ai.usage.cache_creation.input_tokens",
        _ => "gen_ai.usage.cache_write.input_tokens",
    };
    let numbers = [
        ("server.port", 443),
        ("gen_ai.request.seed", 7),
        ("gen_ai.request.max_tokens", 100),
        ("gen_ai.usage.cache_read.input_tokens", 4),
        (written, 3),
        ("gen_ai.usage.reasoning.output_tokens", 2),
        ("llm_layers.fallback.attempt", 0),
    ];
    for (name, number) in numbers {
        assert_eq!(span.int(name), Some(number), "{name}");
    }
    assert_eq!(span.get("gen_ai.request.temperature"), Some(&Attr::Double(0.25)));
    assert_eq!(span.texts("gen_ai.request.stop_sequences"), ["END", "FIN"]);
    let level = (semconv == SemConv::Latest).then_some("low");
    assert_eq!(span.text("gen_ai.request.reasoning.level"), level);
    assert_eq!(span.get("gen_ai.request.stream"), None);
    assert_eq!(span.error, None);
}

async fn streamed<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stream(stream()));
    let answer = providers(backend, &provider).oneshot(ask(true)).await.unwrap();
    assert_eq!(backend.spans().len(), 0, "a head is not an end");
    answer.text().await.unwrap();
    expect(backend, semconv, &FINE);
    assert_eq!(one(backend, semconv).get("gen_ai.request.stream"), Some(&Attr::Bool(true)));
}

async fn terminal_chunk_is_the_end<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stream(stream()));
    let mut chunks = chunks(providers(backend, &provider).oneshot(ask(true)).await.unwrap());
    while !chunks.next().await.unwrap().unwrap().is_final() {
        assert_eq!(backend.spans().len(), 0);
    }
    expect(backend, semconv, &FINE);
    // The reader keeps it; that is no longer our time.
    tokio::time::advance(SECOND).await;
    drop(chunks);
    expect(backend, semconv, &FINE);
}

async fn whole_error<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::error(limited()));
    providers(backend, &provider).oneshot(ask(false)).await.unwrap_err();
    let expected = Expected { error: Some("429"), finish: &[], usage: None, first_chunk: None, seconds: 0 };
    expect(backend, semconv, &expected);
    let span = one(backend, semconv);
    assert_eq!(span.error.as_deref(), Some("the provider limits the rate of requests"));
    assert_eq!(span.get("gen_ai.response.id"), None);
}

async fn stream_error<B: Backend>(backend: &B, semconv: SemConv) {
    let broke = Error::provider(ErrorClass::Transport, "openai", "gpt-4o-mini");
    let steps = stream().into_iter().take(4).chain([Step::Fail(broke)]);
    let provider = Scripted::new().reply(Reply::stream(steps));
    providers(backend, &provider).oneshot(ask(true)).await.unwrap().text().await.unwrap_err();
    let expected = Expected {
        error: Some("connect"),
        finish: &["error"],
        usage: None,
        first_chunk: Some(1.0),
        seconds: 2,
    };
    expect(backend, semconv, &expected);
    assert_eq!(one(backend, semconv).text("gen_ai.response.id"), Some("chatcmpl-1"));
}

async fn stream_cut<B: Backend>(backend: &B, semconv: SemConv) {
    let steps = stream().into_iter().take(4).chain([Step::Cut]);
    let provider = Scripted::new().reply(Reply::stream(steps));
    providers(backend, &provider).oneshot(ask(true)).await.unwrap().text().await.unwrap_err();
    let expected = Expected {
        error: Some("decode"),
        finish: &["error"],
        usage: None,
        first_chunk: Some(1.0),
        seconds: 2,
    };
    expect(backend, semconv, &expected);
}

async fn dropped_after_chunks<B: Backend>(_: &B, semconv: SemConv) {
    for read in [0, 1, 2, 3] {
        let backend = B::new(semconv);
        let provider = Scripted::new().reply(Reply::stream(stream()));
        let mut chunks = chunks(providers(&backend, &provider).oneshot(ask(true)).await.unwrap());
        for _ in 0..read {
            chunks.next().await.unwrap().unwrap();
        }
        // Idle for a while: the span is as long as the caller held the answer.
        tokio::time::advance(SECOND).await;
        drop(chunks);
        let first_chunk = (read > 0).then_some(1.0);
        expect(&backend, semconv, &Expected { first_chunk, seconds: read + 1, ..CANCELLED });
    }
}

async fn dropped_before_head<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stall());
    let mut call = task::spawn(providers(backend, &provider).oneshot(ask(true)));
    assert_pending!(call.poll());
    tokio::time::advance(2 * SECOND).await;
    drop(call);
    expect(backend, semconv, &Expected { seconds: 2, ..CANCELLED });
}

async fn never_polled<B: Backend>(backend: &B, semconv: SemConv) {
    // Without `Providers`, which waits for its deployments before it calls them.
    let layer = TelemetryLayer::client(backend.observer(), "openai").with_address("api.example", 443);
    let mut service = layer.layer(Scripted::new());
    drop(service.ready().await.unwrap().call(ask(true)));
    expect(backend, semconv, &CANCELLED);
}

async fn timeout_inside<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stall());
    providers(backend, &provider).oneshot(ask(true)).await.unwrap_err();
    let expected =
        Expected { error: Some("timeout"), finish: &[], usage: None, first_chunk: None, seconds: 10 };
    expect(backend, semconv, &expected);
}

async fn timeout_outside<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stall());
    let call = providers(backend, &provider).oneshot(ask(true));
    tokio::time::timeout(5 * SECOND, call).await.unwrap_err();
    expect(backend, semconv, &Expected { seconds: 5, ..CANCELLED });
}

async fn panics<B: Backend>(_: &B, semconv: SemConv) {
    let replies = [
        (Reply::panic(), [].as_slice()),
        (Reply::text("").after([Step::Panic]), &[]),
        (Reply::stream([chunk("a"), Step::Panic]), &["error"]),
    ];
    for (reply, finish) in replies {
        let backend = B::new(semconv);
        let service = providers(&backend, &Scripted::new().reply(reply));
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let answer = assert_ready!(task::spawn(service.oneshot(ask(true))).poll()).unwrap();
            let mut chunks = chunks(answer);
            loop {
                let _ = assert_ready!(task::spawn(chunks.next()).poll());
            }
        }));
        assert!(panicked.is_err());
        let first_chunk = (!finish.is_empty()).then_some(0.0);
        let expected = Expected { error: Some("_OTHER"), finish, usage: None, first_chunk, seconds: 0 };
        expect(&backend, semconv, &expected);
        assert_eq!(B::current(), None, "nothing is left current");
    }
}

async fn empty<B: Backend>(backend: &B, semconv: SemConv) {
    let blank = Completion::text(" ", TokenUsage::new(20, 7));
    let provider = Scripted::new().reply(Reply::complete(blank));
    providers(backend, &provider).oneshot(ask(false)).await.unwrap();
    let expected = Expected { error: Some("empty_response"), first_chunk: None, seconds: 0, ..FINE };
    expect(backend, semconv, &expected);
}

async fn any_poll<B: Backend>(_: &B, semconv: SemConv) {
    for polls in 1..16 {
        let backend = B::new(semconv);
        let steps = ["a", "b"].into_iter().flat_map(|text| [Step::Yield, chunk(text)]);
        let provider = Scripted::new().reply(Reply::stream(steps).after([Step::Yield]));
        let mut left = polls;
        let mut call = task::spawn(providers(&backend, &provider).oneshot(ask(true)));
        let mut answer = None;
        while left > 0 && answer.is_none() {
            left -= 1;
            if let std::task::Poll::Ready(ready) = call.poll() {
                answer = Some(ready.unwrap());
            }
        }
        drop(call);
        let mut ended = false;
        if let Some(mut chunks) = answer.map(chunks) {
            for _ in 0..left {
                let next = task::spawn(chunks.next()).poll();
                ended |= matches!(next, std::task::Poll::Ready(Some(Ok(chunk))) if chunk.is_final());
            }
        }
        let span = one(&backend, semconv);
        assert_eq!(span.text("error.type"), (!ended).then_some("cancelled"), "after {polls} polls");
    }
}

/// The service below and its stream work within the span; whoever reads the stream does not.
async fn current<B: Backend>(backend: &B, semconv: SemConv) {
    // Thread-locals are all that is looked at, so that no backend has to go with the stream.
    let inside: Arc<Mutex<Vec<Option<u64>>>> = Arc::default();
    let looks = Arc::clone(&inside);
    let look = move || looks.lock().unwrap().push(B::current());
    let layer = TelemetryLayer::client(backend.observer(), "openai").with_address("api.example", 443);
    let service = service_fn(move |request: LlmRequest| {
        look();
        let look = look.clone();
        async move {
            look();
            tokio::time::sleep(SECOND).await;
            look();
            let stream = futures_util::stream::iter(stream()).filter_map(move |step| {
                look();
                ready(match step {
                    Step::Chunk(chunk) => Some(Ok(chunk)),
                    _ => None,
                })
            });
            Ok::<_, Error>(LlmResponse::new(request.model, ChunkStream::ending_cleanly(stream)))
        }
    });
    let mut chunks = chunks(tower::Layer::layer(&layer, service).oneshot(ask(true)).await.unwrap());
    assert_eq!(B::current(), None);
    while let Some(chunk) = chunks.next().await {
        chunk.unwrap();
        assert_eq!(B::current(), None, "between chunks nothing of ours is current");
    }
    let span = one(backend, semconv);
    let inside = inside.lock().unwrap();
    assert_eq!(inside.len(), 3 + 8);
    assert!(inside.iter().all(|seen| *seen == Some(span.id)), "{inside:?}");
}

async fn content<B: Backend>(backend: &B, semconv: SemConv) {
    let observer = backend.observer();
    let capture = CaptureContent::span(2000);
    let providers = Providers::builder()
        .each(move |endpoint| TelemetryLayer::at(observer.clone(), endpoint).with_content(capture.clone()))
        .provider("openai", Scripted::new().reply(Reply::stream(stream())))
        .build()
        .unwrap();
    providers.oneshot(ask(true)).await.unwrap().text().await.unwrap();
    let spans = backend.spans();
    assert_eq!(spans.len(), 1);
    check(&spans[0], semconv, B::HAS_LISTS, true);
    let said = [
        ("gen_ai.system_instructions", format!(r#"[{{"type":"text","content":"{PROMPT}"}}]"#)),
        (
            "gen_ai.input.messages",
            format!(r#"[{{"role":"user","parts":[{{"type":"text","content":"{PROMPT}"}}]}}]"#),
        ),
        (
            "gen_ai.output.messages",
            r#"[{"role":"assistant","parts":[{"type":"text","content":"sesame-answer-19bdbc"}],"finish_reason":"stop"}]"#
                .to_owned(),
        ),
    ];
    for (name, json) in said {
        assert_eq!(spans[0].text(name), Some(&*json), "{name}");
    }
}

/// Sixteen digits, whatever is between them.
fn without_numbers(text: &str) -> String {
    let (mut kept, mut number) = (String::new(), String::new());
    for c in text.chars() {
        number.push(c);
        if number.chars().filter(char::is_ascii_digit).count() == 16 {
            number.clear();
        } else if !c.is_ascii_digit() && c != ' ' {
            kept += &number;
            number.clear();
        }
    }
    kept + &number
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_taken_out_of_a_long_stream_is_not_told_in_part() {
    let capture = CaptureContent::Span { max_bytes: 200, redact: Redact::new(without_numbers) };
    let said = async |before: String, after: &str| {
        let backend = Otel::new(SemConv::V1_41);
        let text = before + "4111 1111 1111 1111" + after;
        let pieces = text.as_bytes().chunks(11).map(|piece| std::str::from_utf8(piece).unwrap());
        let delta = |index: u32, delta: serde_json::Value| {
            let chunk = serde_json::json!({ "choices": [{ "index": index, "delta": delta }] });
            Step::Chunk(StreamChunk::parse(chunk.to_string()).unwrap())
        };
        let steps = pieces.flat_map(|piece| {
            let call = serde_json::json!({ "index": 0, "function": { "arguments": piece } });
            [
                delta(0, serde_json::json!({ "reasoning": piece })),
                delta(1, serde_json::json!({ "content": piece })),
                delta(2, serde_json::json!({ "tool_calls": [call] })),
            ]
        });
        let end = [Step::Chunk(StreamChunk::end())];
        let provider = Scripted::new().reply(Reply::stream(steps.chain(end).collect::<Vec<_>>()));
        let service = saying(backend.observer(), capture.clone(), provider);
        service.oneshot(ask(true)).await.unwrap().text().await.unwrap();
        backend.spans()[0].text("gen_ai.output.messages").unwrap().to_owned()
    };
    for length in (0..300).chain(4_000..4_300).step_by(41) {
        for after in ["", &" and more of it".repeat(400)] {
            let told = said("a".repeat(length), after).await;
            assert!(!told.contains("41") && told.contains("parts"), "{length}: {told}");
            assert!(length < 200 || told.contains(&"a".repeat(50)), "{length}: {told}");
        }
        // What is taken out makes room for what comes later.
        let told = said("a".repeat(length % 60) + &"4111 1111 1111 1111 ".repeat(400), "").await;
        assert!(!told.contains("41"), "{length}: {told}");
    }
}

fn not_redacting() -> CaptureContent {
    CaptureContent::SpanAndEvent { max_bytes: 2000, redact: Redact::new(|_| panic!("as it was told to")) }
}

async fn not_redacted<B: Backend>(backend: &B, semconv: SemConv) {
    let provider = Scripted::new().reply(Reply::stream(stream())).reply(Reply::complete(whole()));
    let service = saying(backend.observer(), not_redacting(), provider);
    service.clone().oneshot(ask(true)).await.unwrap().text().await.unwrap();
    service.oneshot(ask(false)).await.unwrap();
    let spans = backend.spans();
    assert_eq!(spans.len(), 2);
    for span in spans {
        check(&span, semconv, B::HAS_LISTS, false);
        assert_eq!((span.text("error.type"), span.int("gen_ai.usage.input_tokens")), (None, Some(20)));
    }
    let told = backend.everything();
    assert!(!SECRETS.iter().any(|secret| told.contains(secret)), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_cannot_redact_is_told_of_once() {
    let backend = Tracing::new(SemConv::V1_41);
    let provider = Scripted::new().reply(Reply::stream(stream())).reply(Reply::complete(whole()));
    let service = saying(backend.observer(), not_redacting(), provider);
    service.clone().oneshot(ask(true)).await.unwrap().text().await.unwrap();
    service.oneshot(ask(false)).await.unwrap();
    let told = backend.events();
    assert_eq!(told.matches("what was said is not told").count(), 1, "{told}");
}

fn saying<O: Observer>(observer: O, capture: CaptureContent, provider: Scripted) -> Providers
where
    <O::Span as CallSpan>::Scope: Sync,
{
    Providers::builder()
        .each(move |endpoint| TelemetryLayer::at(observer.clone(), endpoint).with_content(capture.clone()))
        .provider("openai", provider)
        .build()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_said_is_an_event_where_that_is_asked_for() {
    const DETAILS: &str = "gen_ai.client.inference.operation.details";
    for (capture, on_span) in
        [(CaptureContent::event(2000), false), (CaptureContent::span_and_event(2000), true)]
    {
        let backend = Otel::new(SemConv::V1_41);
        let provider = Scripted::new().reply(Reply::stream(stream()));
        let service = saying(backend.observer(), capture.clone(), provider);
        service.oneshot(ask(true)).await.unwrap().text().await.unwrap();
        let (spans, events) = (backend.spans(), backend.events());
        assert_eq!((spans.len(), events.len()), (1, 1));
        assert_eq!(spans[0].get("gen_ai.input.messages").is_some(), on_span);
        let (name, severity, span, attributes) = &events[0];
        assert_eq!((&**name, *severity, *span), (DETAILS, Severity::Info, spans[0].id));
        assert!(attributes["gen_ai.input.messages"].contains(PROMPT));
        assert!(attributes["gen_ai.output.messages"].contains("sesame-answer-19bdbc"));
        assert!(attributes["gen_ai.system_instructions"].contains(PROMPT));
        assert_eq!(attributes["gen_ai.operation.name"], "chat");

        let backend = Tracing::new(SemConv::V1_41);
        let provider = Scripted::new().reply(Reply::stream(stream()));
        let service = saying(backend.observer(), capture, provider);
        service.oneshot(ask(true)).await.unwrap().text().await.unwrap();
        assert_eq!(backend.spans()[0].get("gen_ai.input.messages").is_some(), on_span);
        let told = backend.events();
        assert!(
            told.starts_with(&format!("INFO {DETAILS}")) && told.contains("sesame-answer-19bdbc"),
            "{told}"
        );
    }
    // On spans alone, or not at all: no event.
    for capture in [CaptureContent::span(2000), CaptureContent::Nothing] {
        let backend = Otel::new(SemConv::V1_41);
        saying(backend.observer(), capture, Scripted::new()).oneshot(ask(false)).await.unwrap();
        assert_eq!(backend.events(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn seed_25_a_failure_is_an_event_of_its_span_with_its_type_and_nothing_of_the_call() {
    let backend = Otel::new(SemConv::V1_41);
    let provider = Scripted::new().reply(Reply::error(limited()));
    saying(backend.observer(), CaptureContent::Nothing, provider).oneshot(ask(false)).await.unwrap_err();
    let events = backend.events();
    assert_eq!(events.len(), 1);
    let (name, severity, span, attributes) = &events[0];
    assert_eq!((&**name, *severity), ("gen_ai.client.operation.exception", Severity::Warn));
    assert_eq!(*span, backend.spans()[0].id);
    assert_eq!(attributes["exception.type"], "429");
    assert!(!attributes["exception.message"].is_empty());
    let told = backend.everything();
    assert!(!SECRETS.iter().any(|secret| told.contains(secret)));
}

async fn cost<B: Backend>(backend: &B, _: SemConv) {
    let price = Price::new(Rates::per_million("1", "2").unwrap());
    let prices = PriceBook::of("test", [("openai/gpt-4o-mini", price)]).unwrap();
    let layer = TelemetryLayer::client(backend.observer(), "openai").with_cost(prices);
    // By the name that is listed, whether the provider is still part of it or not.
    for model in ["gpt-4o-mini", "openai/gpt-4o-mini", "unpriced"] {
        let answer = Completion::text("hi", TokenUsage::new(20, 7));
        let service = layer.layer(Scripted::new().reply(Reply::complete(answer)));
        service.oneshot(LlmRequest::new(model, ask(false).body)).await.unwrap();
    }
    let cost: Vec<_> = backend.spans().iter().map(|span| span.get("gen_ai.usage.cost").cloned()).collect();
    let expected = Some(Attr::Double((20.0 + 2.0 * 7.0) / 1e6));
    assert_eq!(cost, [expected.clone(), expected, None]);
}

/// What the ledger says of the same call.
async fn cost_in_ledger<B: Backend>(backend: &B, _: SemConv) {
    let price = |input, output| Price::new(Rates::per_million(input, output).unwrap());
    let book = PriceBook::of("test", [("x/a", price("1", "2")), ("x/b", price("30", "40"))]).unwrap();
    let prices = Prices::from(book);
    let long = "word ".repeat(100);
    let answer = |model: &str, text: &str, usage: [u64; 2]| {
        let answer = serde_json::json!({
            "model": model,
            "choices": [{ "index": 0, "message": { "content": text }, "finish_reason": "stop" }],
            "usage": { "prompt_tokens": usage[0], "completion_tokens": usage[1] },
        });
        Reply::complete(Completion::parse(answer.to_string()).unwrap())
    };
    let alone = || ChatBody::builder().user(PROMPT);
    let chosen = || alone().set("models", ["a", "b"]);
    let begun =
        [Step::Chunk(StreamChunk::text(&long)), Step::Fail(Error::provider(ErrorClass::Transport, "x", "a"))];
    for (calls, (way, body, reply)) in [
        ("reported", alone(), answer("a", "hi", [20, 7])),
        ("another name", alone(), answer("b", "hi", [20, 7])),
        ("chosen", chosen(), answer("b", "hi", [20, 7])),
        ("not believed", alone(), answer("a", &long, [0, 0])),
        ("broken", alone().streaming(), Reply::stream(begun)),
        ("refused", alone(), Reply::error(limited())),
    ]
    .into_iter()
    .enumerate()
    {
        let (sink, observer, told) = (MemorySink::new(8), backend.observer(), prices.clone());
        let providers = Providers::builder()
            .each(move |endpoint| TelemetryLayer::at(observer.clone(), endpoint).with_cost(told.clone()))
            .provider("x", Scripted::new().reply(reply))
            .build()
            .unwrap();
        let service = UsageLayer::new(sink.clone(), prices.clone()).layer(providers);
        if let Ok(answer) = service.oneshot(LlmRequest::new("x/a", body.build().unwrap())).await {
            let _ = answer.text().await;
        }
        let (spans, events) = (backend.spans(), sink.take());
        assert_eq!(spans.len(), calls + 1, "{way}");
        let cost = events.first().and_then(|event| event.cost.amount);
        let expected = cost.map(|cost| Attr::Double(cost.nanos() as f64 / 1e9));
        assert_eq!(spans[calls].get("gen_ai.usage.cost"), expected.as_ref(), "{way}");
        assert!(cost.is_some_and(|cost| (cost.nanos() > 0) == (way != "refused")), "{way}: {cost:?}");
    }
    let busy = service_fn(|_: LlmRequest| ready(Err::<LlmResponse, _>(Error::new(ErrorKind::Overloaded))));
    let layer = TelemetryLayer::client(backend.observer(), "x").with_cost(prices);
    layer.layer(busy).oneshot(ask(false)).await.unwrap_err();
    assert_eq!(backend.spans().last().unwrap().get("gen_ai.usage.cost"), None, "nobody was asked");
}

async fn in_process<B: Backend>(backend: &B, _: SemConv) {
    let layer = TelemetryLayer::client(backend.observer(), "Local").in_process();
    let service = layer.layer(Scripted::new());
    service.oneshot(LlmRequest::new("llama", ask(false).body)).await.unwrap();
    let spans = backend.spans();
    assert_eq!((spans.len(), spans[0].kind, &*spans[0].name), (1, "internal", "chat llama"));
    assert_eq!(spans[0].text("gen_ai.provider.name"), Some("local"));
}

async fn contract<B: Backend>(backend: &B, _: SemConv)
where
    B::Observer: 'static,
{
    Contract::layer(TelemetryLayer::client(backend.observer(), "p")).check().await;
    Contract::layer(TelemetryLayer::gateway(backend.observer())).check().await;
    assert!(!backend.spans().is_empty());
    backend.everything();
}

#[tokio::test(start_paused = true)]
async fn nobody_and_both_keep_the_contract_too() {
    let (otel, tracing) = (Otel::new(SemConv::V1_41), Tracing::new(SemConv::V1_41));
    Contract::layer(TelemetryLayer::client((), "p")).check().await;
    let both = (otel.observer(), tracing.observer());
    Contract::layer(TelemetryLayer::client(both, "p")).check().await;
    assert_eq!(otel.spans().len(), tracing.spans().len());
    assert!(!otel.spans().is_empty());
    Contract::layer(TelemetryLayer::client(TracingObserver::events_only(), "p")).check().await;
    assert!(tracing.events().contains("WARN gen_ai.client.operation.exception"), "{}", tracing.events());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_a_warning_with_its_type() {
    let backend = Tracing::new(SemConv::V1_41);
    let provider = Scripted::new().reply(Reply::error(limited()));
    providers(&backend, &provider).oneshot(ask(false)).await.unwrap_err();
    let events = backend.events();
    assert_eq!(events.lines().count(), 1, "{events}");
    assert!(events.starts_with("WARN gen_ai.client.operation.exception"), "{events}");
    assert!(events.contains(r#""exception.type": Str("429")"#), "{events}");
}
