//! `UsageLayer`: one event for each call that was sent, however it ends.

use futures_util::FutureExt as _;
use llm_layers::{
    BoxError, CacheStatus, Certainty, ChatBody, ChunkStream, Completion, Error, ErrorClass, ErrorKind,
    LlmRequest, LlmResponse, ProviderFailure, RequestContext, ResponseBody, StreamChunk, TimeoutPhase,
    TokenUsage,
    body::{Arrival, End, Observe},
    clock::{Clock as _, SystemClock},
    fallback::{Backoff, Chains, FallbackLayer},
    peek::PeekLayer,
    price::{NanoUsd, Price, PriceBook, Prices, Rate, Rates, ServiceTier},
    providers::Providers,
    testing::{Contract, Reply, Scripted, Step},
    usage::{
        EventId, MemorySink, Outcome, QueueOptions, QueueSink, Refused, UsageEvent, UsageLayer, UsageSink,
        UsageStore,
    },
};
use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

fn prices() -> Prices {
    let price = |input: &str, output: &str| Price::new(Rates::per_million(input, output).unwrap());
    Prices::new(PriceBook::of("test", [("p/a", price("1", "2")), ("p/b", price("10", "20"))]).unwrap())
}

fn request() -> LlmRequest {
    let context = RequestContext::new()
        .with_user_id("ada")
        .with_agent_name("bot")
        .with_task_type("summary")
        .with_departments(["r&d", "ops", "r&d"]);
    LlmRequest::new("p/a", ChatBody::builder().user("Say hi, please.").build().unwrap()).with_context(context)
}

fn record(sink: &MemorySink) -> UsageLayer<MemorySink> {
    UsageLayer::new(sink.clone(), prices())
}

/// The only event that there is.
fn only(sink: &MemorySink) -> UsageEvent {
    let events = sink.take();
    assert_eq!((events.len(), sink.admitted()), (1, 0), "{events:?}");
    events.into_iter().next().unwrap()
}

async fn one(reply: Reply) -> (Result<LlmResponse, Error>, MemorySink) {
    let sink = MemorySink::new(8);
    let result = record(&sink).layer(Scripted::new().reply(reply)).oneshot(request()).await;
    (result, sink)
}

#[tokio::test(start_paused = true)]
async fn it_keeps_the_contract() {
    let sink = MemorySink::new(usize::MAX);
    Contract::layer(record(&sink)).check().await;
    Contract::layer(record(&sink).durable(Duration::from_secs(5))).check().await;
    Contract::layer(UsageLayer::hits(sink.clone(), prices())).check().await;
    assert!(!sink.take().is_empty());
    assert_eq!(sink.admitted(), 0);
}

#[tokio::test(start_paused = true)]
async fn seed_21_a_whole_answer_is_recorded_with_all_that_is_known() {
    let reply = Reply::complete(Completion::text("hi", TokenUsage::new(1000, 500)));
    let (result, sink) = one(reply.after([Step::Wait(Duration::from_millis(250))])).await;
    result.unwrap();
    let event = only(&sink);
    assert_eq!(event.context.department_ids().iter().map(|d| &**d).collect::<Vec<_>>(), ["r&d", "ops"]);
    assert_eq!(event.context.agent_name(), Some("bot"));
    assert_eq!(event.context.task_type(), Some("summary"));
    assert_eq!((event.requested.as_str(), event.model.as_str()), ("p/a", "p/a"));
    assert_eq!(event.usage, TokenUsage::new(1000, 500));
    assert_eq!(event.cost.amount, Some(NanoUsd::new(2_000_000)));
    assert_eq!((event.outcome, event.streamed, event.attempt), (Outcome::Ok, false, 0));
    assert_eq!(event.latency, Duration::from_millis(250));
    assert_eq!(event.first_content, Some(Duration::from_millis(250)));
}

#[tokio::test(start_paused = true)]
async fn seed_21_a_stream_is_recorded_at_its_end_and_not_before() {
    let (result, sink) = one(Reply::words(["h", "i"])).await;
    let ResponseBody::Stream(mut chunks) = result.unwrap().body else { panic!("expected a stream") };
    while let Some(chunk) = chunks.next().await {
        let is_final = chunk.unwrap().is_final();
        assert_eq!(sink.admitted(), usize::from(!is_final));
    }
    drop(chunks);
    let event = only(&sink);
    assert_eq!((event.outcome, event.usage), (Outcome::Ok, TokenUsage::new(3, 2)));
}

#[tokio::test(start_paused = true)]
async fn seed_21_usage_that_is_not_reported_is_estimated_and_says_so() {
    let chunks = ["four", "four"].map(|text| Step::Chunk(StreamChunk::text(text)));
    let (result, sink) = one(Reply::stream(chunks)).await;
    result.unwrap().text().await.unwrap();
    let event = only(&sink);
    assert_eq!(event.usage.certainty, Certainty::Estimated);
    assert!(event.usage.input_tokens > Some(0) && event.usage.output_tokens > Some(0), "{:?}", event.usage);
    assert!(event.cost.amount > Some(NanoUsd::ZERO));
}

#[tokio::test(start_paused = true)]
async fn seed_21_broken_and_abandoned_streams_are_recorded_with_what_was_seen() {
    let words = || (0..40).map(|_| Step::Chunk(StreamChunk::text("word ")));
    let broken = Step::Fail(Error::provider(ErrorClass::Transport, "p", "a"));
    let (result, sink) = one(Reply::stream(words().chain([broken]))).await;
    result.unwrap().text().await.unwrap_err();
    let event = only(&sink);
    assert_eq!((event.outcome, event.usage.certainty), (Outcome::Error, Certainty::Estimated));
    assert!(event.usage.output_tokens > Some(40));

    let (result, sink) = one(Reply::stream(words().chain([Step::Stall]))).await;
    let ResponseBody::Stream(mut chunks) = result.unwrap().body else { panic!("expected a stream") };
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    let event = only(&sink);
    assert_eq!(event.outcome, Outcome::Aborted);
    assert!(event.usage.output_tokens > Some(0) && event.usage.output_tokens < Some(10));
    assert_eq!(event.first_content, Some(Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn seed_06_a_discarded_empty_answer_is_billed_at_its_own_price() {
    let sink = MemorySink::new(8);
    let blank = Completion::text(" ", TokenUsage::new(1000, 0));
    let provider = Scripted::new().reply(Reply::complete(blank)).reply(Reply::text("hi"));
    let chains = Chains::builder().chain("p/a", ["p/b"]).build().unwrap();
    let stack = FallbackLayer::new(chains).layer(record(&sink).layer(provider));
    stack.oneshot(request()).await.unwrap();
    let events = sink.take();
    assert_eq!(events.len(), 2);
    assert_eq!((events[0].model.as_str(), events[0].outcome, events[0].attempt), ("p/a", Outcome::Empty, 0));
    assert_eq!(events[0].cost.amount, Some(NanoUsd::new(1_000_000)));
    assert_eq!((events[1].model.as_str(), events[1].outcome, events[1].attempt), ("p/b", Outcome::Ok, 1));
    assert_ne!(events[0].id, events[1].id);
}

#[tokio::test]
async fn an_answer_without_content_that_was_filtered_is_billed_as_it_reports() {
    let filtered = r#"{"choices":[{"index":0,"message":{},"finish_reason":"content_filter"}],"usage":{"prompt_tokens":1000,"completion_tokens":0}}"#;
    let filtered = || Scripted::new().reply(Reply::complete(Completion::parse(filtered).unwrap()));
    let (inside, outside) = (MemorySink::new(8), MemorySink::new(8));
    let stack = FallbackLayer::new(Chains::default()).layer(record(&inside).layer(filtered()));
    let error = record(&outside).layer(stack).oneshot(request()).await.unwrap_err();
    assert_eq!(error.class(), Some(ErrorClass::ContentFilter));
    for (sink, outcome) in [(inside, Outcome::Empty), (outside, Outcome::Error)] {
        let event = only(&sink);
        assert_eq!((event.outcome, event.usage), (outcome, TokenUsage::new(1000, 0)));
        assert_eq!(event.cost.amount, Some(NanoUsd::new(1_000_000)));
    }
}

#[tokio::test(start_paused = true)]
async fn wherever_it_stands_the_model_that_answered_is_billed() {
    let sink = MemorySink::new(8);
    let down = Error::provider(ErrorClass::Unavailable, "p", "a");
    let provider = Scripted::new().reply(Reply::error(down));
    let chains = Chains::builder().chain("p/a", ["p/b"]).build().unwrap();
    let providers = Providers::builder().provider("p", provider).build().unwrap();
    let stack = record(&sink).layer(FallbackLayer::new(chains).layer(providers));
    stack.oneshot(request()).await.unwrap();
    let event = only(&sink);
    assert_eq!((event.requested.as_str(), event.model.as_str()), ("p/a", "p/b"));
    assert_eq!(event.provider.as_deref(), Some("p"));
    assert_eq!(event.cost.amount, Some(NanoUsd::new(3 * 10_000 + 20_000)));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_without_a_name_is_recorded_with_the_one_that_it_tells_later() {
    let chunks = [
        r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}"#,
        r#"{"id":"c-1","model":"a-2025","choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}"#,
    ];
    let steps = chunks.map(|chunk| Step::Chunk(StreamChunk::parse(chunk).unwrap()));
    let (sink, provider) = (MemorySink::new(8), Scripted::new().reply(Reply::stream(steps)));
    let answer = record(&sink).layer(provider).oneshot(request()).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("not a stream") };
    while chunks.next().await.transpose().unwrap().is_some() {}
    let summary = chunks.summary();
    assert_eq!((summary.id.as_deref(), summary.model.as_deref()), (Some("c-1"), Some("a-2025")));
    assert_eq!(only(&sink).answered.as_deref(), Some("a-2025"));
}

#[tokio::test(start_paused = true)]
async fn the_model_that_a_provider_has_chosen_among_several_is_billed() {
    for (further, answered, cost) in [
        (r#"["b"]"#, "b", Some(2_000)),
        (r#"["b"]"#, "a", Some(1_000)),
        // Nobody knows what it costs.
        (r#"["b"]"#, "nowhere", None),
        // It was the only one: providers add dates and the like.
        ("[]", "nowhere", Some(1_000)),
    ] {
        let prices = PriceBook::of(
            "sheet",
            [
                ("p/a", Price::new(Rates::per_million("1", "1").unwrap())),
                ("p/b", Price::new(Rates::per_million("2", "2").unwrap())),
            ],
        );
        let sink = MemorySink::new(8);
        let leaf = Scripted::new().reply(Reply::complete(
            Completion::parse(format!(
                r#"{{"model":"{answered}","choices":[{{"message":{{"content":"hi"}}}}],"usage":{{"prompt_tokens":1,"completion_tokens":0}}}}"#
            ))
            .unwrap(),
        ));
        let providers = Providers::builder().provider("p", leaf).build().unwrap();
        let service = UsageLayer::new(sink.clone(), Prices::new(prices.unwrap())).layer(providers);
        let further: serde_json::Value = serde_json::from_str(further).unwrap();
        let body = ChatBody::builder().user("Hello").set("models", further).build().unwrap();
        service.oneshot(LlmRequest::new("p/a", body)).await.unwrap();
        let event = only(&sink);
        assert_eq!((event.cost.amount, event.model.as_str()), (cost.map(NanoUsd::new), "p/a"), "{answered}");
    }
}

#[tokio::test(start_paused = true)]
async fn failures_are_recorded_if_they_were_sent() {
    let refused = {
        let mut failure = ProviderFailure::new(ErrorClass::Upstream, "p", "a");
        failure.status = Some(http::StatusCode::INTERNAL_SERVER_ERROR);
        Error::new(ErrorKind::Provider(failure)).with_dispatched(true)
    };
    let (result, sink) = one(Reply::error(refused)).await;
    result.unwrap_err();
    let event = only(&sink);
    assert_eq!(event.outcome, Outcome::Error);
    assert_eq!(
        event.usage,
        TokenUsage::new(0, 0).with_certainty(Certainty::Estimated),
        "a refusal is not billed"
    );

    let broke = Error::provider(ErrorClass::Transport, "p", "a").with_dispatched(true);
    let (_, sink) = one(Reply::error(broke)).await;
    assert!(only(&sink).usage.input_tokens > Some(0), "the prompt was sent");

    let reported = Error::provider(ErrorClass::Upstream, "p", "a").with_usage(TokenUsage::new(7, 1));
    let (_, sink) = one(Reply::error(reported)).await;
    assert_eq!(only(&sink).usage, TokenUsage::new(7, 1));

    let unsent = Error::provider(ErrorClass::Connect, "p", "a");
    let (_, sink) = one(Reply::error(unsent)).await;
    assert_eq!((sink.take().len(), sink.admitted()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_failed_before_a_head_is_known_all_the_same() {
    let error = |kind| Error::new(kind).with_dispatched(true);
    for (error, provider) in [
        (Error::provider(ErrorClass::Transport, "q", "a").with_dispatched(true), "q"),
        (error(ErrorKind::Timeout { phase: llm_layers::TimeoutPhase::Head }), "p"),
    ] {
        let (_, sink) = one(Reply::error(error)).await;
        assert_eq!(only(&sink).provider.as_deref(), Some(provider));
    }
    let sink = MemorySink::new(8);
    let service = record(&sink).layer(Scripted::new().reply(Reply::stall()));
    let mut call = task::spawn(service.oneshot(request()));
    assert_pending!(call.poll());
    drop(call);
    let event = only(&sink);
    assert_eq!((event.outcome, event.provider.as_deref()), (Outcome::Aborted, Some("p")));
}

#[tokio::test(start_paused = true)]
async fn around_a_deployment_the_provider_is_the_one_that_is_asked_however_the_call_ends() {
    let failed = Error::new(ErrorKind::Timeout { phase: TimeoutPhase::Head });
    for (reply, outcome) in [
        (Reply::text("hi"), Outcome::Ok),
        (Reply::error(failed), Outcome::Error),
        (Reply::stall(), Outcome::Aborted),
    ] {
        let sink = MemorySink::new(8);
        let each = record(&sink);
        let builder = Providers::builder().each(move |_| each.clone());
        let providers = builder.provider("cloud", Scripted::new().reply(reply)).build().unwrap();
        // A model whose own name has a slash.
        let asked = LlmRequest::new("cloud/meta-llama/x", request().body);
        let mut call = task::spawn(providers.oneshot(asked));
        let _ = call.poll();
        drop(call);
        let event = only(&sink);
        let said = (event.outcome, event.model.as_str(), event.provider.as_deref());
        assert_eq!(said, (outcome, "meta-llama/x", Some("cloud")));
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_reached_a_provider_is_not_recorded() {
    let sink = MemorySink::new(8);
    let providers = Providers::builder().provider("p", Scripted::new().with_places(0)).build().unwrap();
    let mut service = record(&sink).layer(providers);
    let missing = LlmRequest::new("x/y", request().body);
    service.ready().await.unwrap().call(missing).await.unwrap_err();
    // Waits for a deployment that is never ready.
    let mut waiting = task::spawn(service.ready().await.unwrap().call(request()));
    assert_pending!(waiting.poll());
    drop(waiting);
    assert_eq!((sink.take().len(), sink.admitted()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_poll_it_is_one_event_if_it_was_sent() {
    let reply = || {
        let pieces = ["a", "b"].map(|text| [Step::Yield, Step::Chunk(StreamChunk::text(text))]);
        Reply::stream(pieces.into_iter().flatten()).after([Step::Yield])
    };
    for polls in 0..12 {
        let sink = MemorySink::new(8);
        let provider = Scripted::new().reply(reply());
        let mut service = record(&sink).layer(provider.clone());
        service.ready().await.unwrap();
        let mut left = polls;
        let mut ended = false;
        {
            let mut call = task::spawn(service.call(request()));
            let mut answer = None;
            while left > 0 && answer.is_none() {
                left -= 1;
                if let std::task::Poll::Ready(ready) = call.poll() {
                    answer = Some(ready.unwrap());
                }
            }
            if let Some(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) = answer {
                while left > 0 {
                    left -= 1;
                    let next = task::spawn(chunks.next()).poll();
                    ended |= matches!(next, std::task::Poll::Ready(Some(Ok(chunk))) if chunk.is_final());
                }
            }
        }
        let event = only(&sink);
        let expected = if ended { Outcome::Ok } else { Outcome::Aborted };
        assert_eq!(event.outcome, expected, "after {polls} polls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_below_is_recorded_as_an_error() {
    for reply in [
        Reply::text("").after([Step::Panic]),
        Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Panic]),
    ] {
        let sink = MemorySink::new(8);
        let mut service = record(&sink).layer(Scripted::new().reply(reply));
        service.ready().await.unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let answer = assert_ready!(task::spawn(service.call(request())).poll()).unwrap();
            let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
            loop {
                let _ = assert_ready!(task::spawn(chunks.next()).poll());
            }
        }));
        assert!(panicked.is_err());
        assert_eq!(only(&sink).outcome, Outcome::Error);
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_request_sent_twice_is_two_events() {
    let sink = MemorySink::new(8);
    let service = record(&sink).layer(Scripted::new());
    let request = request();
    service.clone().oneshot(request.clone()).await.unwrap();
    service.oneshot(request).await.unwrap();
    let events = sink.take();
    assert_eq!(events.iter().map(|event| event.id).collect::<HashSet<_>>().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn without_a_place_nobody_is_asked() {
    let sink = MemorySink::new(1);
    let provider = Scripted::new().reply(Reply::stall());
    let service = record(&sink).layer(provider.clone());
    let mut first = task::spawn(service.clone().oneshot(request()));
    assert_pending!(first.poll());
    let error = service.clone().oneshot(request()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { store } if store == "usage"));
    assert_eq!(provider.requests().len(), 1);
    drop(first);
    only(&sink);
    service.oneshot(request()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_price_is_unpriced_and_not_nothing() {
    let sink = MemorySink::new(8);
    let service = UsageLayer::new(sink.clone(), Prices::default()).layer(Scripted::new());
    service.oneshot(request()).await.unwrap();
    assert_eq!(only(&sink).cost.amount, None);
}

/// What one call costs that asks for a service tier, and is told of one.
async fn cost_in(asked: Option<&str>, answered: Option<&str>, is_streamed: bool) -> UsageEvent {
    let rates = |input: &str, output: &str| Rates::per_million(input, output).unwrap();
    let price = Price::new(rates("1", "2"))
        .with_service_tier(ServiceTier::Priority, rates("10", "20"))
        .with_service_tier(ServiceTier::Ultrafast, rates("100", "200"))
        .with_service_tier(ServiceTier::Flex, rates("0.1", "0.2"));
    let member = answered.map(|tier| format!(r#""service_tier":"{tier}","#)).unwrap_or_default();
    let usage = r#""usage":{"prompt_tokens":1000,"completion_tokens":500}"#;
    let said = |said: &str| format!(r#"{{{member}"choices":[{{"{said}":{{"content":"hi"}}}}],{usage}}}"#);
    let reply = match is_streamed {
        false => Reply::complete(Completion::parse(said("message")).unwrap()),
        true => Reply::stream([Step::Chunk(StreamChunk::parse(said("delta")).unwrap())]),
    };
    let sink = MemorySink::new(8);
    let book = PriceBook::of("test", [("p/a", price)]).unwrap();
    let mut request = request();
    if let Some(asked) = asked {
        request.body = request.body.with("service_tier", asked).unwrap();
    }
    let service = UsageLayer::new(sink.clone(), book).layer(Scripted::new().reply(reply));
    service.oneshot(request).await.unwrap().text().await.unwrap();
    only(&sink)
}

#[tokio::test(start_paused = true)]
async fn a_call_costs_what_the_tier_costs_that_served_it() {
    const STANDARD: i64 = 2_000_000;
    for (asked, answered, cost) in [
        (None, None, STANDARD),
        (Some("priority"), Some("priority"), 10 * STANDARD),
        // It had no room there.
        (Some("priority"), Some("default"), STANDARD),
        (None, Some("priority"), 10 * STANDARD),
        (Some("flex"), Some("flex"), STANDARD / 10),
        (Some("ultrafast"), Some("ultrafast"), 100 * STANDARD),
        // Nobody says: the dearer of those that it may have been.
        (Some("priority"), None, 10 * STANDARD),
        (Some("flex"), None, STANDARD),
        (Some("auto"), None, STANDARD),
        (Some("unheard of"), Some("unheard of"), 100 * STANDARD),
        (Some("unheard of"), Some("on_demand"), STANDARD),
    ] {
        for is_streamed in [false, true] {
            let event = cost_in(asked, answered, is_streamed).await;
            assert_eq!(event.cost.amount, Some(NanoUsd::new(cost)), "{asked:?} {answered:?} {is_streamed}");
            assert_eq!(event.service_tier, answered.and_then(ServiceTier::from_name));
        }
    }
}

/// Entries as LiteLLM has them.
const DEARER_THAN_TEXT: &str = r#"{
    "p/audio": { "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,
                 "input_cost_per_audio_token": 3.2e-05, "output_cost_per_audio_token": 6.4e-05 },
    "p/image": { "input_cost_per_token": 3e-07, "output_cost_per_token": 2.5e-06, "output_cost_per_image_token": 3e-05 },
    "p/text": { "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05 }
}"#;

const SPEECH: &str = r#"{"role":"user","content":[
    {"type":"text","text":"Well?"},{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}]}"#;

/// What a call comes to of which the provider reports this usage.
async fn recorded(catalogue: &str, model: &str, message: &str, members: &str, usage: &str) -> UsageEvent {
    let sink = MemorySink::new(8);
    let book = PriceBook::from_litellm("litellm", catalogue.as_bytes()).unwrap();
    let answer = format!(r#"{{"choices":[{{"message":{{"content":"Yes."}}}}],"usage":{usage}}}"#);
    let provider = Scripted::new().reply(Reply::complete(Completion::parse(answer).unwrap()));
    let body = ChatBody::parse(format!(r#"{{"messages":[{message}]{members}}}"#)).unwrap();
    let service = UsageLayer::new(sink.clone(), book).layer(provider);
    service.oneshot(LlmRequest::new(model, body)).await.unwrap();
    only(&sink)
}

#[tokio::test(start_paused = true)]
async fn audio_and_images_cost_what_they_cost_and_what_is_not_told_apart_the_dearest() {
    const TEXT: &str = r#"{"role":"user","content":"Well?"}"#;
    let counts = |input: &str, output: &str| {
        format!(
            r#"{{"prompt_tokens":1000,"completion_tokens":500,"prompt_tokens_details":{{{input}}},
                "completion_tokens_details":{{{output}}}}}"#
        )
    };
    let (exact, estimated) = (Certainty::Exact, Certainty::Estimated);
    let both = r#","modalities":["text","audio"]"#;
    let text = r#","modalities":["text"]"#;
    let told = counts(r#""audio_tokens":950"#, r#""audio_tokens":480"#);
    let nothing = counts(r#""audio_tokens":0"#, r#""audio_tokens":0"#);
    let untold = counts("", "");
    let drawn = counts("", r#""audio_tokens":0,"image_tokens":490"#);
    for (model, message, members, usage, dollars, certainty) in [
        ("p/audio", SPEECH, both, &told, "0.061445", exact),
        // Whatever was asked for.
        ("p/audio", TEXT, text, &told, "0.061445", exact),
        ("p/audio", SPEECH, both, &nothing, "0.0075", exact),
        ("p/audio", SPEECH, both, &untold, "0.064", estimated),
        ("p/audio", SPEECH, text, &untold, "0.037", estimated),
        ("p/audio", TEXT, text, &untold, "0.0075", exact),
        // Who does not say what he wants may get either.
        ("p/audio", TEXT, "", &untold, "0.0345", estimated),
        ("p/image", TEXT, "", &drawn, "0.015025", exact),
        ("p/image", TEXT, "", &untold, "0.0153", estimated),
        ("p/image", TEXT, text, &untold, "0.00155", exact),
        ("p/text", SPEECH, both, &told, "0.0075", exact),
        ("p/text", SPEECH, both, &untold, "0.0075", exact),
    ] {
        let event = recorded(DEARER_THAN_TEXT, model, message, members, usage).await;
        let amount = event.cost.amount.expect("a price");
        assert_eq!(amount.to_string(), dollars, "{model} {members} {usage}");
        assert_eq!(event.usage.certainty, certainty, "{model} {members} {usage}");
    }
}

/// Entries as LiteLLM has them.
const SEARCHING: &str = r#"{
    "perplexity/sonar": {
        "litellm_provider": "perplexity", "input_cost_per_token": 1e-06, "output_cost_per_token": 1e-06,
        "search_context_cost_per_query": { "search_context_size_high": 0.012, "search_context_size_low": 0.005,
                                           "search_context_size_medium": 0.008 } },
    "perplexity/sonar-deep-research": {
        "litellm_provider": "perplexity", "input_cost_per_token": 2e-06, "output_cost_per_token": 8e-06,
        "search_context_cost_per_query": { "search_context_size_high": 0.005, "search_context_size_low": 0.005,
                                           "search_context_size_medium": 0.005 } },
    "gpt-4o-search-preview": {
        "litellm_provider": "openai", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05,
        "search_context_cost_per_query": { "search_context_size_medium": 0.025 } },
    "claude-sonnet-4-5": {
        "litellm_provider": "anthropic", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
        "search_context_cost_per_query": { "search_context_size_high": 0.01, "search_context_size_low": 0.01,
                                           "search_context_size_medium": 0.01 } }
}"#;

#[tokio::test(start_paused = true)]
async fn searches_are_charged_as_reported_or_else_one_that_may_have_been() {
    let (exact, estimated) = (Certainty::Exact, Certainty::Estimated);
    let (sonar, deep) = ("perplexity/sonar", "perplexity/sonar-deep-research");
    let (preview, claude) = ("openai/gpt-4o-search-preview", "anthropic/claude-sonnet-4-5");
    let low = r#","web_search_options":{"search_context_size":"low"}"#;
    for (model, members, reported, dollars, certainty) in [
        (sonar, "", "", "0.0125", estimated),
        (sonar, low, "", "0.0055", estimated),
        (sonar, low, r#","num_search_queries":1"#, "0.0055", exact),
        (sonar, "", r#","num_search_queries":2"#, "0.0245", estimated),
        (sonar, "", r#","num_search_queries":0"#, "0.0125", estimated),
        (deep, "", r#","num_search_queries":21"#, "0.1078", exact),
        (preview, "", "", "0.0285", estimated),
        (claude, "", "", "0.0051", exact),
        (claude, r#","web_search_options":null"#, "", "0.0051", exact),
        (claude, r#","web_search_options":{}"#, "", "0.0151", estimated),
        (claude, r#","tools":[{"type":"web_search_20250305","name":"web_search"}]"#, "", "0.0151", estimated),
        (claude, r#","tools":[{"google_search":{}}]"#, "", "0.0151", estimated),
        // One of the caller's own.
        (claude, r#","tools":[{"type":"function","function":{"name":"web_search"}}]"#, "", "0.0051", exact),
        (claude, "", r#","server_tool_use":{"web_search_requests":3}"#, "0.0351", exact),
        (claude, "", r#","prompt_tokens_details":{"web_search_requests":3}"#, "0.0351", exact),
        (
            claude,
            r#","web_search_options":{}"#,
            r#","server_tool_use":{"web_search_requests":0}"#,
            "0.0051",
            exact,
        ),
    ] {
        let usage = format!(r#"{{"prompt_tokens":200,"completion_tokens":300{reported}}}"#);
        let message = r#"{"role":"user","content":"What is new?"}"#;
        let event = recorded(SEARCHING, model, message, members, &usage).await;
        let amount = event.cost.amount.expect("a price");
        assert_eq!(amount.to_string(), dollars, "{model} {members} {reported}");
        assert_eq!(event.usage.certainty, certainty, "{model} {members} {reported}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_refused_costs_nothing_even_where_requests_do() {
    let rates = Rates::per_million("1", "2").unwrap().with_request(Rate::each("0.005").unwrap());
    let book = PriceBook::of("test", [("p/a", Price::new(rates))]).unwrap();
    let call = async |reply: Reply| {
        let sink = MemorySink::new(8);
        let service = UsageLayer::new(sink.clone(), book.clone()).layer(Scripted::new().reply(reply));
        let _ = service.oneshot(request()).await;
        only(&sink).cost.amount
    };
    let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "p", "a");
    failure.status = Some(http::StatusCode::TOO_MANY_REQUESTS);
    let refused = Error::new(ErrorKind::Provider(failure)).with_dispatched(true);
    assert_eq!(call(Reply::error(refused)).await, Some(NanoUsd::ZERO));
    let answer = Completion::text("hi", TokenUsage::new(1000, 500));
    assert_eq!(call(Reply::complete(answer)).await, Some(NanoUsd::new(2_000_000 + 5_000_000)));
    // It may have been served all the same.
    let broke = Error::provider(ErrorClass::Transport, "p", "a").with_dispatched(true);
    assert!(call(Reply::error(broke)).await > Some(NanoUsd::new(5_000_000)));
}

/// A leaf that does not say when it asks, as a function that somebody has written.
#[tokio::test(start_paused = true)]
async fn whoever_has_answered_was_asked_whether_or_not_it_was_marked() {
    for chunks_read in 0..4 {
        let sink = MemorySink::new(8);
        let leaf = service_fn(|request: LlmRequest| async move {
            let usage = StreamChunk::usage_only(TokenUsage::new(1000, 500));
            let said = [StreamChunk::role(), StreamChunk::text("hi"), usage, StreamChunk::end()];
            let chunks = ChunkStream::new(futures_util::stream::iter(said.map(Ok)));
            Ok::<_, Error>(LlmResponse::new(request.model, chunks))
        });
        let answer = record(&sink).layer(leaf).oneshot(request()).await.unwrap();
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
        for _ in 0..chunks_read {
            chunks.next().await.unwrap().unwrap();
        }
        drop(chunks);
        let event = only(&sink);
        assert_eq!(event.outcome, Outcome::Aborted);
        assert_eq!(event.usage.output_tokens == Some(500), chunks_read == 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_the_last_report_of_a_stream_is_estimated() {
    let text = |bytes: usize| Step::Chunk(StreamChunk::text("x".repeat(bytes)));
    let report = |output| Step::Chunk(StreamChunk::usage_only(TokenUsage::new(10, output)));
    let read = |steps: Vec<Step>| async move {
        let (result, sink) = one(Reply::stream(steps)).await;
        let ResponseBody::Stream(mut chunks) = result.unwrap().body else { panic!("expected a stream") };
        while let Some(Some(_)) = chunks.next().now_or_never() {}
        drop(chunks);
        only(&sink).usage
    };
    // The same whether it is broken off, or ends and nothing more is said.
    let cut = async |steps: Vec<Step>| {
        let whole = read(steps.clone()).await;
        let left = read(steps.into_iter().chain([Step::Stall]).collect()).await;
        assert_eq!(whole, left);
        left
    };
    // As Anthropic's first event does, of which a token is known.
    let early = cut(vec![report(1), text(400)]).await;
    assert_eq!(early, TokenUsage::new(10, 101).with_certainty(Certainty::Estimated));
    let often = cut(vec![text(400), report(90), text(40), report(99)]).await;
    assert_eq!(often, TokenUsage::new(10, 99), "nothing came after it");
    let of_prompt = StreamChunk::parse(r#"{"choices":[],"usage":{"prompt_tokens":10}}"#).unwrap();
    let silent = cut(vec![text(400), Step::Chunk(of_prompt)]).await;
    assert_eq!(silent, TokenUsage::new(10, 100).with_certainty(Certainty::Estimated));
    let nothing = Step::Chunk(StreamChunk::usage_only(TokenUsage::new(0, 0)));
    let absurd = cut(vec![text(400), nothing]).await;
    assert_eq!((absurd.output_tokens, absurd.certainty), (Some(100), Certainty::Estimated));
    assert!(absurd.input_tokens > Some(0), "no provider gives anything for nothing");
}

#[tokio::test(start_paused = true)]
async fn an_estimate_is_of_what_was_said_however_it_is_spelled() {
    let output = async |choice: &str, pieces: usize| {
        let chunk = StreamChunk::parse(format!(r#"{{"choices":[{{"index":0,{choice}}}]}}"#)).unwrap();
        let steps = (0..pieces).map(|_| Step::Chunk(chunk.clone())).chain([Step::Stall]);
        let (result, sink) = one(Reply::stream(steps)).await;
        let ResponseBody::Stream(mut chunks) = result.unwrap().body else { panic!("expected a stream") };
        while let Some(Some(_)) = chunks.next().now_or_never() {}
        drop(chunks);
        only(&sink).usage.output_tokens.unwrap()
    };
    for choice in [
        r#""delta":{"content":"word"}"#,
        r#""text":"word""#,
        r#""text":"word","delta":{"token_id":7,"role":"assistant","content":"word","tool_calls":null}"#,
        r#""delta":{"content":[{"type":"text","text":"word"}]}"#,
        r#""delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"word"}]}]}"#,
        r#""delta":{"reasoning":"word","reasoning_content":"word"}"#,
        r#""delta":{"content":"","reasoning":"word","reasoning_details":[{"type":"reasoning.text","text":"word","format":"unknown","index":0}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"function":{"arguments":"word"}}]}"#,
        r#""delta":{"tool_calls":[{"index":0,"id":"call_0123456789","type":"function","function":{"name":"wo","arguments":"rd"}}]}"#,
        r#""delta":{"function_call":{"name":"","arguments":"word"}}"#,
        r#""delta":{"audio":{"id":"audio_0123456789","transcript":"word","expires_at":1729268602}}"#,
    ] {
        assert_eq!(output(choice, 100).await, 100, "{choice}");
    }
    let picture = "A".repeat(1 << 20);
    let picture =
        format!(r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}}"#);
    for choice in [
        format!(r#""delta":{{"images":[{picture}]}}"#),
        format!(r#""delta":{{"content":[{{"type":"text","text":"word"}},{picture}]}}"#),
    ] {
        let tokens = output(&choice, 1).await;
        assert!((500..5_000).contains(&tokens), "{tokens}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_of_nothing_beside_a_text_is_none() {
    let answer = Completion::text("x".repeat(400), TokenUsage::new(0, 0));
    let (result, sink) = one(Reply::complete(answer)).await;
    result.unwrap();
    let event = only(&sink);
    assert_eq!((event.usage.output_tokens, event.usage.certainty), (Some(100), Certainty::Estimated));
    assert!(event.usage.input_tokens > Some(0) && event.cost.amount > Some(NanoUsd::new(200_000)));
}

#[tokio::test(start_paused = true)]
async fn what_quotas_assume_is_recorded_beside_a_cost_that_is_not_known() {
    let sink = MemorySink::new(8);
    let assumed = Price::new(Rates::per_million("3", "15").unwrap());
    let layer = |book: Prices| UsageLayer::new(sink.clone(), book).assuming(assumed.clone());
    let answer = || Scripted::new().reply(Reply::complete(Completion::text("hi", TokenUsage::new(100, 10))));
    layer(Prices::default()).layer(answer()).oneshot(request()).await.unwrap();
    let event = only(&sink);
    assert_eq!((event.cost.amount, event.assumed_cost), (None, Some(NanoUsd::new(450_000))));
    layer(prices()).layer(answer()).oneshot(request()).await.unwrap();
    assert_eq!(only(&sink).assumed_cost, None, "there is a price");
    let hit = cached(CacheStatus::Hit { age: Duration::ZERO });
    layer(Prices::default()).layer(hit).oneshot(request()).await.unwrap();
    assert_eq!(only(&sink).assumed_cost, None, "a hit costs nothing");
}

/// Stands for a cache: answers with this status.
fn cached(
    status: CacheStatus,
) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send> + Clone {
    service_fn(move |request: LlmRequest| async move {
        let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1000, 500)));
        answer.cache = status;
        Ok::<_, Error>(answer)
    })
}

#[tokio::test(start_paused = true)]
async fn seed_19_a_hit_costs_nothing_and_what_it_saved_is_recorded() {
    let sink = MemorySink::new(8);
    for (status, outcome) in [
        (CacheStatus::Hit { age: Duration::from_secs(5) }, Outcome::CacheHit),
        (CacheStatus::Coalesced, Outcome::Coalesced),
    ] {
        // In whatever order the layers stand.
        for layer in [UsageLayer::hits(sink.clone(), prices()), record(&sink)] {
            layer.layer(cached(status)).oneshot(request()).await.unwrap();
            let event = only(&sink);
            assert_eq!((event.outcome, event.usage), (outcome, TokenUsage::new(0, 0)));
            assert_eq!(event.cost.amount, Some(NanoUsd::ZERO));
            let saved = event.saved.unwrap();
            assert_eq!(
                (saved.usage, saved.cost.amount),
                (TokenUsage::new(1000, 500), Some(NanoUsd::new(2_000_000)))
            );
        }
    }
    for status in [CacheStatus::Miss, CacheStatus::Unused] {
        let layer = UsageLayer::hits(sink.clone(), prices());
        layer.layer(cached(status)).oneshot(request()).await.unwrap();
        assert!(sink.take().is_empty(), "what was asked for is recorded inside");
    }
}

// ===== durable =====

/// Acknowledges when it is told to.
#[derive(Clone, Default)]
struct Slow(Arc<Mutex<Vec<llm_layers::usage::Done>>>);

struct SlowPlace(Slow);

impl UsageSink for Slow {
    fn admit(&self) -> Result<llm_layers::usage::Slot, Error> {
        Ok(llm_layers::usage::Slot::new(SlowPlace(self.clone())))
    }
}

impl llm_layers::usage::Place for SlowPlace {
    fn record(self: Box<Self>, _: UsageEvent, done: Option<llm_layers::usage::Done>) {
        self.0.0.lock().unwrap().extend(done);
    }
}

impl Slow {
    fn acknowledge(&self) {
        for done in self.0.lock().unwrap().drain(..) {
            done.tell();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn durable_the_last_byte_waits_for_the_record() {
    let sink = Slow::default();
    let layer = UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(5));
    let provider = Scripted::new().reply(Reply::text("hi")).reply(Reply::words(["h"]));
    let mut service = layer.layer(provider);

    let mut whole = task::spawn(service.ready().await.unwrap().call(request()));
    assert_pending!(whole.poll());
    sink.acknowledge();
    assert!(whole.is_woken());
    assert_ready!(whole.poll()).unwrap();

    let answer = service.ready().await.unwrap().call(request()).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
    for _ in 0..4 {
        assert!(!chunks.next().await.unwrap().unwrap().is_final());
    }
    let mut last = task::spawn(chunks.next());
    assert_pending!(last.poll());
    sink.acknowledge();
    assert!(last.is_woken());
    assert!(assert_ready!(last.poll()).unwrap().unwrap().is_final());
    drop(last);
    assert!(chunks.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn durable_a_last_byte_that_was_read_ahead_waits_too() {
    let sink = Slow::default();
    let layer = UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(5));
    let last = || Reply::stream([Step::Chunk(StreamChunk::text("h").into_final())]);
    let service = layer.layer(PeekLayer::new().layer(Scripted::new().reply(last()).reply(last())));
    let answer = service.clone().oneshot(request()).await.unwrap();
    let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
    let mut last = task::spawn(chunks.next());
    assert_pending!(last.poll());
    sink.acknowledge();
    assert!(last.is_woken());
    assert_eq!(assert_ready!(last.poll()).unwrap().unwrap().content(), "h");
    drop(last);
    assert!(chunks.next().await.is_none());

    let error = service.oneshot(request()).await.unwrap().text().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }));
}

#[tokio::test(start_paused = true)]
async fn durable_an_answer_whose_record_does_not_come_is_not_whole() {
    let layer = UsageLayer::new(Slow::default(), prices()).durable(Duration::from_secs(5));
    let provider = Scripted::new().reply(Reply::text("hi")).reply(Reply::words(["h"]));
    let service = layer.layer(provider);
    let whole = service.clone().oneshot(request()).await.unwrap_err();
    let streamed = service.oneshot(request()).await.unwrap().text().await.unwrap_err();
    for error in [whole, streamed] {
        assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }));
        // Limits outside of it charge what was used up, and not a guess.
        assert!(error.dispatched() && error.usage().is_some(), "{:?}", error.usage());
    }
}

/// What somebody outside of it has seen.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Observe for Told {
    fn on_chunk(&mut self, chunk: &StreamChunk, _: &Arrival) {
        self.0.lock().unwrap().push(chunk.content().into_owned());
    }

    fn on_end(self, end: End<'_>) {
        let end = match end {
            End::StreamEnded(_) => "ended",
            End::Failed(..) => "failed",
            _ => "other",
        };
        self.0.lock().unwrap().push(end.to_owned());
    }
}

#[tokio::test(start_paused = true)]
async fn durable_who_watches_outside_learns_the_end_when_the_caller_does() {
    for (is_recorded, seen) in [(true, &["h", "ended"][..]), (false, &["failed"])] {
        let sink = Slow::default();
        let layer = UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(5));
        let last = Step::Chunk(StreamChunk::text("h").into_final());
        let provider = Scripted::new().reply(Reply::stream([last]));
        let [early, late] = [Told::default(), Told::default()];
        let answer = layer.layer(provider.clone()).oneshot(request()).await.unwrap().observe(early.clone());
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("expected a stream") };
        assert!(chunks.next().now_or_never().is_none());
        assert_eq!(provider.alive(), 0, "the provider is not kept waiting for the store");
        chunks.observe(late.clone());
        assert_eq!([&early, &late].map(|told| told.0.lock().unwrap().len()), [0, 0]);
        if is_recorded {
            sink.acknowledge();
        }
        assert_eq!(chunks.next().await.unwrap().is_ok(), is_recorded);
        assert_eq!([&early, &late].map(|told| told.0.lock().unwrap().clone()), [seen, seen]);
        assert!(chunks.next().await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn durable_the_last_byte_waits_for_each_of_two_records() {
    for is_inner_first in [true, false] {
        let [inner, outer] = [Slow::default(), Slow::default()];
        let durable = |sink: &Slow| UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(5));
        let provider = Scripted::new().reply(Reply::words(["h"]));
        let service = durable(&outer).layer(durable(&inner).layer(provider));
        let mut text = task::spawn(service.oneshot(request()).await.unwrap().text());
        assert_pending!(text.poll());
        let [first, second] = if is_inner_first { [inner, outer] } else { [outer, inner] };
        first.acknowledge();
        assert_pending!(text.poll());
        second.acknowledge();
        assert!(text.is_woken());
        assert_eq!(assert_ready!(text.poll()).unwrap(), "h");
    }
}

// ===== the queue =====

/// Fails as often as it is told, then keeps each event once.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<(usize, Vec<EventId>)>>);

impl UsageStore for Store {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let (failures, kept) = &mut *self.0.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            return Err("the store is down".into());
        }
        for event in group {
            assert!(!kept.contains(&event.id), "a group is offered again only if it was not written");
            kept.push(event.id);
        }
        Ok(())
    }
}

fn quickly() -> QueueOptions {
    QueueOptions::default().with_backoff(Backoff::new(Duration::from_millis(1), Duration::from_millis(2)))
}

#[tokio::test]
async fn seed_22_a_store_that_fails_loses_neither_answer_nor_record() {
    let store = Store::default();
    store.0.lock().unwrap().0 = 5;
    let (sink, worker) = QueueSink::start(store.clone(), quickly()).unwrap();
    let service = UsageLayer::new(sink.clone(), prices()).layer(Scripted::new());
    for _ in 0..10 {
        assert_eq!(service.clone().oneshot(request()).await.unwrap().text().await.unwrap(), "hi");
    }
    let report = worker.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.written, report.left, report.last_error), (10, 0, None));
    assert_eq!(store.0.lock().unwrap().1.len(), 10);
    assert_eq!(sink.pending(), 0);
    let error = service.oneshot(request()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "after the end nobody is asked");
}

#[tokio::test]
async fn a_queue_that_is_full_refuses_calls_and_is_not_healthy() {
    let store = Store::default();
    store.0.lock().unwrap().0 = usize::MAX;
    let (sink, worker) = QueueSink::start(store, quickly().with_capacity(3)).unwrap();
    let provider = Scripted::new();
    let service = UsageLayer::new(sink.clone(), prices()).layer(provider.clone());
    let mut served = 0;
    // What cannot be written keeps its place.
    while service.clone().oneshot(request()).await.is_ok() {
        served += 1;
        assert!(served < 100, "it is bounded");
    }
    assert_eq!((served, provider.requests().len()), (3, 3));
    assert!(!sink.is_healthy());
    let report = worker.shutdown(Duration::from_millis(20)).await;
    assert_eq!((report.written, report.left), (0, 3));
    assert_eq!(report.last_error.as_deref(), Some("the store is down"));
}

/// Takes nothing that comes from one user, however it is offered; and nothing at all while it is down.
#[derive(Clone, Default)]
struct Picky(Arc<Mutex<Picked>>);

#[derive(Default)]
struct Picked {
    kept: Vec<EventId>,
    is_down: bool,
    says_so: bool,
    offers: usize,
}

impl UsageStore for Picky {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let mut picked = self.0.lock().unwrap();
        picked.offers += 1;
        if picked.is_down {
            return Err("the store is down".into());
        }
        if group.iter().any(|event| event.context.user_id() == Some("mallory")) {
            let cause = "no such user";
            return Err(if picked.says_so { Refused::new(cause).into() } else { cause.into() });
        }
        for event in group.iter().filter(|event| !picked.kept.contains(&event.id)).collect::<Vec<_>>() {
            picked.kept.push(event.id);
        }
        Ok(())
    }
}

/// An event of this user.
fn event_by(user: &str) -> UsageEvent {
    let kept = MemorySink::new(1);
    let mut event = {
        let service = UsageLayer::new(kept.clone(), prices()).layer(Scripted::new());
        service.oneshot(request()).now_or_never().unwrap().unwrap();
        kept.take().remove(0)
    };
    event.id = EventId::mint(SystemClock.now());
    event.context = event.context.with_user_id(user);
    event
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn one_of_many_is_refused(says_so: bool) {
    let store = Picky::default();
    store.0.lock().unwrap().says_so = says_so;
    let (sink, worker) = QueueSink::start(store.clone(), quickly().with_capacity(64)).unwrap();
    let users = |number| if number % 8 == 3 { "mallory" } else { "ada" };
    let tickets: Vec<_> =
        (0..32).map(|n| sink.admit().unwrap().record_with_ticket(event_by(users(n)))).collect();
    for (number, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.await, users(number) == "ada", "{number}");
    }
    until(|| sink.is_healthy()).await;
    assert_eq!((sink.written(), sink.set_aside(), sink.pending(), sink.lost()), (28, 4, 0, 0));
    // They have their places until somebody takes them: nothing is lost for want of room.
    let places: Vec<_> = std::iter::from_fn(|| sink.admit().ok()).collect();
    assert_eq!(places.len(), 60);
    let aside = sink.take_set_aside();
    assert_eq!(aside.len(), 4);
    assert!(
        aside
            .iter()
            .all(|one| one.event.context.user_id() == Some("mallory") && &*one.cause == "no such user")
    );
    let more: Vec<_> = std::iter::from_fn(|| sink.admit().ok()).collect();
    assert_eq!(more.len(), 4);
    drop((places, more));
    assert!(sink.take_set_aside().is_empty());
    let report = worker.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.written, report.left, report.in_doubt, report.set_aside), (28, 0, 0, 4));
    let kept = &store.0.lock().unwrap().kept;
    assert_eq!(kept.iter().collect::<HashSet<_>>().len(), 28);
    assert_eq!(kept.len(), 28, "none twice");
}

#[tokio::test]
async fn seed_22_an_event_that_its_store_refuses_for_ever_is_set_aside_and_blocks_no_other() {
    one_of_many_is_refused(true).await;
}

#[tokio::test]
async fn so_it_is_where_the_store_does_not_say_whose_fault_it_is() {
    one_of_many_is_refused(false).await;
}

#[tokio::test]
async fn an_event_alone_is_offered_until_another_shows_whose_fault_it_is() {
    let store = Picky::default();
    let (sink, worker) = QueueSink::start(store.clone(), quickly()).unwrap();
    sink.admit().unwrap().record(event_by("mallory"));
    until(|| store.0.lock().unwrap().offers > 20).await;
    assert_eq!((sink.set_aside(), sink.is_healthy()), (0, false), "it may be the store");
    sink.admit().unwrap().record(event_by("ada"));
    until(|| sink.set_aside() == 1).await;
    until(|| sink.is_healthy()).await;
    let report = worker.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.written, report.left, report.set_aside), (1, 0, 1));
}

#[tokio::test]
async fn while_the_store_is_down_nothing_is_set_aside() {
    let store = Picky::default();
    store.0.lock().unwrap().is_down = true;
    let (sink, worker) = QueueSink::start(store.clone(), quickly()).unwrap();
    (0..20).for_each(|_| sink.admit().unwrap().record(event_by("ada")));
    until(|| store.0.lock().unwrap().offers > 100).await;
    assert_eq!((sink.set_aside(), sink.pending()), (0, 20));
    store.0.lock().unwrap().is_down = false;
    let report = worker.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.written, report.left, report.set_aside), (20, 0, 0));
}

/// Takes what it is told to, by how many events each offer had so far, the present one included.
struct Flapping {
    offers: Arc<Mutex<Vec<usize>>>,
    takes: fn(&[usize]) -> Result<(), BoxError>,
    knows: bool,
}

impl UsageStore for Flapping {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let mut offers = self.offers.lock().unwrap();
        offers.push(group.len());
        (self.takes)(&offers)
    }

    fn knows_refusals(&self) -> bool {
        self.knows
    }
}

/// What a store is offered of 40 events that are recorded at once; it takes them all in the end.
async fn offered(knows: bool, takes: fn(&[usize]) -> Result<(), BoxError>) -> Vec<usize> {
    let offers = Arc::default();
    let store = Flapping { offers: Arc::clone(&offers), takes, knows };
    let (sink, worker) = QueueSink::start(store, quickly().with_linger(Duration::from_secs(60))).unwrap();
    (0..39).for_each(|_| sink.admit().unwrap().record(event_by("ada")));
    assert!(sink.admit().unwrap().record_with_ticket(event_by("ada")).await);
    let report = worker.shutdown(Duration::from_secs(30)).await;
    assert_eq!((report.written, report.left, report.set_aside), (40, 0, 0));
    offers.lock().unwrap().clone()
}

fn alone(offers: &[usize]) -> usize {
    offers.iter().filter(|events| **events == 1).count()
}

#[tokio::test]
async fn a_store_that_goes_down_once_more_is_not_taken_for_a_refusal_of_what_it_was_offered() {
    let offers = offered(false, |offers| match (offers.last(), alone(offers)) {
        (Some(1), 1) | (Some(2..), 2..) => Ok(()),
        _ => Err("down".into()),
    });
    // Four times together, one to see that it works, and the next of the others until it is the store that is suspected.
    let expected = [&[40; 4][..], &[1; 17], &[39]].concat();
    assert_eq!(offers.await, expected);
}

#[tokio::test]
async fn of_a_store_that_says_what_it_refuses_nothing_is_found_out_by_trying() {
    let offers = offered(true, |offers| match offers.len() {
        10.. => Ok(()),
        _ => Err("down".into()),
    });
    assert_eq!(offers.await, [40; 10]);
}

#[tokio::test]
async fn what_fails_alone_while_nothing_else_is_written_is_not_set_aside() {
    let offers = offered(false, |offers| match (offers.last(), alone(offers)) {
        (_, 100..) => Ok(()),
        (Some(1), _) => Err("down".into()),
        _ => Err(Refused::new("one of them").into()),
    });
    assert!(alone(&offers.await) >= 100);
}

/// Takes as long as it is told to.
struct Stuck(Arc<Mutex<Vec<EventId>>>, std::sync::mpsc::Receiver<()>);

impl UsageStore for Stuck {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        self.1.recv()?;
        self.0.lock().unwrap().extend(group.iter().map(|event| event.id));
        Ok(())
    }
}

#[tokio::test]
async fn what_is_left_for_certain_at_the_end_is_never_written() {
    let (kept, (go, wait)) = (Arc::<Mutex<Vec<EventId>>>::default(), std::sync::mpsc::channel());
    let options = quickly().with_group(4).with_linger(Duration::ZERO);
    let (sink, worker) = QueueSink::start(Stuck(Arc::clone(&kept), wait), options).unwrap();
    sink.admit().unwrap().record(event_by("first"));
    until(|| worker.report().in_doubt == 1).await;
    (0..20).for_each(|_| sink.admit().unwrap().record(event_by("ada")));
    go.send(()).unwrap();
    until(|| worker.report().in_doubt == 4).await;
    let report = worker.shutdown(Duration::from_millis(10)).await;
    assert_eq!((report.written, report.left, report.in_doubt), (1, 20, 4));
    // The store comes to life again, with time for all of it.
    (0..10).for_each(|_| go.send(()).unwrap_or_default());
    until(|| go.send(()).is_err()).await;
    assert_eq!(kept.lock().unwrap().len(), 5, "what it had in hand, and no more");
    assert_eq!(sink.lost(), 16);
}

/// Falls over as often as it is told to, and then writes.
struct Broken(std::sync::mpsc::Receiver<()>);

impl UsageStore for Broken {
    fn write(&mut self, _: &[UsageEvent]) -> Result<(), BoxError> {
        match self.0.recv() {
            Ok(()) => panic!("the store is broken"),
            Err(_) => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_store_that_panics_is_offered_again_what_it_was_given() {
    let (fall_over, wait) = std::sync::mpsc::channel();
    let (sink, worker) = QueueSink::start(Broken(wait), quickly()).unwrap();
    let limit = Duration::from_secs(30);
    let service = UsageLayer::new(sink.clone(), prices()).durable(limit).layer(Scripted::new());
    let early = sink.admit().unwrap().record_with_ticket(event_by("ada"));
    fall_over.send(()).unwrap();
    until(|| worker.report().last_error.is_some()).await;
    assert_eq!(worker.report().last_error.as_deref(), Some("the store panicked"));
    assert!(!sink.is_healthy());
    let late = tokio::spawn(service.oneshot(request()));
    (0..10).for_each(|_| fall_over.send(()).unwrap());
    drop(fall_over);
    assert!(early.await, "who waited is told when it is written");
    late.await.unwrap().unwrap();
    until(|| sink.is_healthy()).await;
    let report = worker.shutdown(limit).await;
    assert_eq!((report.written, report.left, report.set_aside, report.last_error), (2, 0, 0, None));
}

#[tokio::test]
async fn a_thread_that_is_over_keeps_nobody_waiting() {
    let (fall_over, wait) = std::sync::mpsc::channel();
    let (sink, worker) = QueueSink::start(Broken(wait), quickly()).unwrap();
    let service = UsageLayer::new(sink.clone(), prices()).durable(Duration::from_secs(30));
    let late = sink.admit().unwrap();
    let early = sink.admit().unwrap().record_with_ticket(event_by("ada"));
    until(|| worker.report().in_doubt == 1).await;
    let report = worker.shutdown(Duration::ZERO).await;
    assert_eq!((report.written, report.left, report.in_doubt), (0, 1, 1));
    fall_over.send(()).unwrap();
    assert!(!early.await, "it has no record");
    let error = service.layer(Scripted::new()).oneshot(request()).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::StoreUnavailable { .. }), "nobody is asked");
    assert!(!sink.is_healthy());
    assert!(!late.record_with_ticket(event_by("ada")).await, "who had a place before learns it, too");
    assert_eq!(sink.lost(), 2);
}

#[tokio::test]
async fn a_ticket_resolves_when_the_event_is_written() {
    let store = Store::default();
    let (sink, worker) = QueueSink::start(store.clone(), quickly()).unwrap();
    let service = UsageLayer::new(sink, prices()).durable(Duration::from_secs(30)).layer(Scripted::new());
    for calls in 1..=5 {
        service.clone().oneshot(request()).await.unwrap();
        assert_eq!(store.0.lock().unwrap().1.len(), calls);
    }
    drop(service);
    assert_eq!(worker.shutdown(Duration::from_secs(30)).await.written, 5);
}

#[test]
fn ids_sort_by_time_and_differ() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert!(EventId::mint(at(1)) < EventId::mint(at(2)));
    let ids: HashSet<_> = (0..1000).map(|_| EventId::mint(at(1))).collect();
    assert_eq!(ids.len(), 1000);
    let id = EventId::mint(at(7));
    assert_eq!(EventId::from_bytes(id.to_bytes()), id);
}

#[tokio::test(start_paused = true)]
async fn it_stands_in_a_stack_by_name() {
    let sink = MemorySink::new(8);
    let stack = ServiceBuilder::new().layer(record(&sink).with_clock(SystemClock)).service(Scripted::new());
    stack.oneshot(request()).await.unwrap();
    let event = only(&sink);
    assert!(!format!("{event:?}").contains("\"ada\""), "the user's id is not for logs");
}
