//! Both layers in a stack: who is whose parent, who carries usage, what goes to providers.

use crate::{
    conventions::check,
    lifecycle::{SECRETS, ask},
    seen::{Attr, Backend, Otel, Seen, Tracing},
};
use llm_layers::{
    Completion, Error, ErrorClass, LlmRequest, LlmResponse, ServiceBuilderExt as _, StreamChunk, TokenUsage,
    alias::AliasTable,
    fallback::{Chains, FallbackLayer},
    providers::{Deployment, Providers},
    telemetry::{SemConv, TelemetryLayer},
    testing::{Reply, Scripted, Step},
};
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// The documented order, with tower's buffer, whose worker is another task, in its middle.
fn stack<B: Backend>(backend: &B, provider: &Scripted) -> Stack {
    let observer = backend.observer();
    let each = observer.clone();
    let providers = Providers::builder()
        .each(move |endpoint| TelemetryLayer::at(each.clone(), endpoint))
        .deployment("openai", Deployment::new(provider.clone()).with_address("api.example", 443))
        .build()
        .unwrap();
    let aliases = AliasTable::builder().alias("fast", "openai/a").build().unwrap();
    let chains = Chains::builder().chain("openai/a", ["openai/b"]).build().unwrap();
    let stack = ServiceBuilder::new()
        .telemetry(TelemetryLayer::gateway(observer))
        .alias(aliases)
        .layer(FallbackLayer::new(chains))
        .map_err(Error::from)
        .buffer(8)
        .service(providers);
    Stack::new(stack)
}

fn by_kind(spans: &[Seen], kind: &str) -> Vec<Seen> {
    spans.iter().filter(|span| span.kind == kind).cloned().collect()
}

async fn through_a_stack<B: Backend>(backend: &B) {
    let down = Error::provider(ErrorClass::Unavailable, "openai", "a");
    for streaming in [false, true] {
        let answer = if streaming { Reply::words(["h", "i"]) } else { Reply::text("hi") };
        let provider = Scripted::new().reply(Reply::error(down.clone())).reply(answer);
        let stack = stack(backend, &provider);
        let before = backend.spans().len();
        // On another task, as a server would.
        tokio::spawn(async move {
            let answer = stack.oneshot(LlmRequest::new("fast", ask(streaming).body)).await.unwrap();
            // Whoever reads the stream may do so on yet another task.
            tokio::spawn(answer.text()).await.unwrap().unwrap();
        })
        .await
        .unwrap();

        let spans = backend.spans().split_off(before);
        assert_eq!(spans.len(), 3, "{spans:#?}");
        for span in &spans {
            check(span, SemConv::V1_41, B::HAS_LISTS, false);
        }
        let (clients, gateways) = (by_kind(&spans, "client"), by_kind(&spans, "internal"));
        assert_eq!((clients.len(), gateways.len()), (2, 1));
        let gateway = &gateways[0];
        assert_eq!((gateway.name.as_str(), gateway.parent), ("gateway chat", None));
        assert!(clients.iter().all(|client| client.parent == Some(gateway.id)), "{spans:#?}");
        assert_eq!(gateway.text("llm_layers.requested_model"), Some("fast"));
        assert_eq!(gateway.text("llm_layers.model"), Some("openai/b"));
        assert_eq!(gateway.int("llm_layers.attempts"), Some(2));
        assert_eq!(gateway.error, None, "a healed error is not the gateway's");
        let attempts: Vec<_> =
            clients.iter().map(|client| client.int("llm_layers.fallback.attempt")).collect();
        assert_eq!(attempts, [Some(0), Some(1)]);

        // Backends add up what they find in a trace.
        let used = |span: &Seen| span.attributes.keys().any(|key| key.starts_with("gen_ai.usage."));
        assert_eq!(spans.iter().filter(|span| used(span)).count(), 1);

        let events: Vec<_> = gateway.events.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(events, ["llm_layers.alias", "llm_layers.attempt", "llm_layers.attempt"]);
        let (_, failed) = &gateway.events[1];
        assert_eq!(failed["llm_layers.failure"], Attr::Str("unavailable".into()));
        let (_, answered) = &gateway.events[2];
        assert_eq!(answered["llm_layers.model"], Attr::Str("openai/b".into()));
        assert!(!answered.contains_key("llm_layers.failure"));
    }
    let told = backend.everything();
    assert!(!SECRETS.iter().any(|secret| told.contains(secret)), "{told}");
}

#[tokio::test]
async fn attempts_are_children_of_the_gateway_whatever_task_they_run_on_otel() {
    through_a_stack(&Otel::new(SemConv::V1_41)).await;
}

#[tokio::test]
async fn attempts_are_children_of_the_gateway_whatever_task_they_run_on_tracing() {
    through_a_stack(&Tracing::new(SemConv::V1_41)).await;
}

/// The call itself is made on another task, that knows nothing of the caller's.
#[tokio::test]
async fn an_answer_that_breaks_off_has_its_attempts_on_the_gateways_span() {
    let backend = Otel::new(SemConv::V1_41);
    let failed = |class, model| Reply::error(Error::provider(class, "openai", model));
    let broken = Error::provider(ErrorClass::Transport, "openai", "b");
    let broken = Reply::stream([Step::Chunk(StreamChunk::text("h")), Step::Fail(broken)]);
    let provider = Scripted::new().reply(failed(ErrorClass::Unavailable, "a")).reply(broken);
    let answer = stack(&backend, &provider).oneshot(LlmRequest::new("fast", ask(true).body)).await.unwrap();
    answer.text().await.unwrap_err();
    let gateway = &by_kind(&backend.spans(), "internal")[0];
    assert_eq!(gateway.int("llm_layers.attempts"), Some(2));
    let attempts = gateway.events.iter().filter(|(name, _)| name == "llm_layers.attempt");
    let attempts: Vec<_> = attempts
        .map(|(_, told)| (told["llm_layers.model"].clone(), told.get("llm_layers.failure").cloned()))
        .collect();
    let text = |text: &str| Attr::Str(text.into());
    let tried = [(text("openai/a"), Some(text("unavailable"))), (text("openai/b"), Some(text("transport")))];
    assert_eq!(attempts, tried);
}

async fn called_on_another_task<B: Backend>(backend: &B) {
    let observer = backend.observer();
    let client = TelemetryLayer::client(observer.clone(), "openai").with_address("api.example", 443);
    let leaf = tower::Layer::layer(&client, Scripted::new().reply(Reply::words(["h", "i"])));
    let spawned = service_fn(move |request: LlmRequest| {
        let call = tokio::spawn(leaf.clone().oneshot(request));
        async move { call.await.unwrap() }
    });
    let stack = ServiceBuilder::new().telemetry(TelemetryLayer::gateway(observer)).service(spawned);
    let request = ask(true);
    let answer = stack.oneshot(request.clone()).await.unwrap();
    answer.text().await.unwrap();
    // The caller may keep the request: the span has ended all the same.
    let spans = backend.spans();
    assert_eq!(spans.len(), 2, "{spans:#?}");
    let (client, gateway) = (&by_kind(&spans, "client")[0], &by_kind(&spans, "internal")[0]);
    assert_eq!(client.parent, Some(gateway.id), "{spans:#?}");
    drop(request);
}

#[tokio::test]
async fn a_call_made_on_another_task_is_a_child_of_the_gateway_otel() {
    called_on_another_task(&Otel::new(SemConv::V1_41)).await;
}

#[tokio::test]
async fn a_call_made_on_another_task_is_a_child_of_the_gateway_tracing() {
    called_on_another_task(&Tracing::new(SemConv::V1_41)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_current_goes_before_what_the_request_brings() {
    let backend = Otel::new(SemConv::V1_41);
    let observer = backend.observer();
    let client = TelemetryLayer::client(observer.clone(), "openai");
    let leaf = tower::Layer::layer(&client, Scripted::new());
    // A span of the program's own, between the two layers.
    let own = TelemetryLayer::gateway(observer.clone()).with_name("own");
    let stack = ServiceBuilder::new().telemetry(TelemetryLayer::gateway(observer)).layer(own).service(leaf);
    stack.oneshot(ask(false)).await.unwrap();
    let spans = backend.spans();
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(names, ["chat gpt-4o-mini", "own", "gateway chat"]);
    assert_eq!(spans[0].parent, Some(spans[1].id));
    assert_eq!(spans[1].parent, Some(spans[2].id));
}

#[tokio::test(start_paused = true)]
async fn seed_25_a_refusal_is_on_the_gateways_span_and_there_is_no_client() {
    let backend = Otel::new(SemConv::V1_41);
    let refuse = service_fn(|_: LlmRequest| async {
        Err::<LlmResponse, _>(Error::new(llm_layers::ErrorKind::StoreUnavailable { store: "usage".into() }))
    });
    let layer = TelemetryLayer::gateway(backend.observer()).with_departments();
    let context = llm_layers::RequestContext::new().with_departments(["r-and-d", "ops"]);
    tower::Layer::layer(&layer, refuse).oneshot(ask(false).with_context(context)).await.unwrap_err();
    let spans = backend.spans();
    assert_eq!(spans.len(), 1);
    check(&spans[0], SemConv::V1_41, true, true);
    assert_eq!(spans[0].text("error.type"), Some("usage_store_unavailable"));
    assert_eq!(spans[0].texts("llm_layers.department.id"), ["r-and-d", "ops"]);
}

#[tokio::test(start_paused = true)]
async fn seed_25_a_hit_is_on_the_gateways_span_and_costs_no_tokens() {
    let backend = Otel::new(SemConv::V1_41);
    let hit = service_fn(|request: LlmRequest| async move {
        let mut answer = LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(1, 1)));
        answer.cache = llm_layers::CacheStatus::Hit { age: std::time::Duration::from_secs(3) };
        Ok::<_, Error>(answer)
    });
    let layer = TelemetryLayer::gateway(backend.observer());
    tower::Layer::layer(&layer, hit).oneshot(ask(false)).await.unwrap();
    let spans = backend.spans();
    assert_eq!((spans.len(), spans[0].get("llm_layers.cache.hit")), (1, Some(&Attr::Bool(true))));
    check(&spans[0], SemConv::V1_41, true, false);
    assert!(!backend.metrics().contains_key("gen_ai.client.token.usage"));
}
