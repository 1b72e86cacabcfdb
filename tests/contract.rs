//! Every layer of the crate keeps the contract, and the contract finds those that do not.

use llm_layers::{
    ChatBody, Error, LlmRequest, LlmResponse, Progress, RequestContext,
    access::AccessLayer,
    alias::{AliasLayer, AliasTable},
    concurrency::ConcurrencyLimitLayer,
    drain::{DrainLayer, DrainOptions},
    fallback::{Chains, FallbackLayer},
    peek::PeekLayer,
    policies::{DepartmentPolicy, PolicyTable},
    price::PriceBook,
    provider::{Echo, dispatch::MarkDispatchLayer},
    providers::Providers,
    quota::{Limits, MemoryStore, Mode, QuotaLayer, WorkerOptions},
    telemetry::TelemetryLayer,
    testing::{Contract, Probe, Scripted, check_leaf},
    timeout::CallTimeoutLayer,
};
#[path = "quota/remote.rs"]
mod remote;

use remote::Remote;
use std::{
    future::{Ready, ready},
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};

#[tokio::test(start_paused = true)]
async fn alias() {
    let table = AliasTable::builder().alias("probe/model", "probe/other").build().unwrap();
    Contract::layer(AliasLayer::new(table)).check().await;
}

#[tokio::test(start_paused = true)]
async fn peek() {
    Contract::layer(PeekLayer::new()).check().await;
}

#[tokio::test(start_paused = true)]
async fn fallback() {
    Contract::layer(FallbackLayer::new(Chains::default())).check().await;
    Contract::layer(FallbackLayer::new(Chains::default()).with_deadline(Duration::from_secs(60)))
        .check()
        .await;
}

#[tokio::test(start_paused = true)]
async fn call_timeout() {
    let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
    let layer = CallTimeoutLayer::new().with_head(second).with_first_content(second).with_idle(second);
    Contract::layer(layer.with_total(minute)).check().await;
    Contract::layer(CallTimeoutLayer::new()).check().await;
}

#[tokio::test(start_paused = true)]
async fn mark_dispatch() {
    Contract::layer(MarkDispatchLayer::new()).check().await;
    // What only answers is a leaf once it is marked.
    let answers = |mut request: LlmRequest| {
        request.progress = Progress::new();
        Echo::new().oneshot(request)
    };
    let leaf = MarkDispatchLayer::new().layer(service_fn(answers));
    check_leaf(leaf, LlmRequest::new("any", ChatBody::builder().user("Hello").build().unwrap())).await;
}

#[tokio::test(start_paused = true)]
async fn concurrency_limit() {
    Contract::layer(ConcurrencyLimitLayer::new(1)).check().await;
}

#[cfg(feature = "moka")]
#[tokio::test(start_paused = true)]
async fn cache() {
    use llm_layers::cache::{CacheControl, CacheLayer, CachePolicy, CacheSecret, MokaStore};

    let layer = || CacheLayer::new(MokaStore::new(1 << 20), CachePolicy::new(CacheSecret::random()));
    let request = || LlmRequest::new("probe/model", ChatBody::builder().user("hi").build().unwrap());
    // Nobody's call passes; so does one that has to be answered anew, and is kept.
    Contract::layer(layer()).always_ready().with_request(request()).check().await;
    let fresh = CacheControl::new().with_no_cache();
    let context = RequestContext::new().with_user_id("ada").with_cache_control(fresh);
    Contract::layer(layer()).always_ready().with_request(request().with_context(context)).check().await;
}

fn of_a_department() -> LlmRequest {
    LlmRequest::new("probe/model", ChatBody::builder().user("Say hi.").build().unwrap())
        .with_context(RequestContext::new().with_departments(["research", "operations"]))
}

#[tokio::test(start_paused = true)]
async fn access() {
    let table = PolicyTable::new(DepartmentPolicy::default().with_models(["probe/*"]));
    Contract::layer(AccessLayer::new(table)).with_request(of_a_department()).check().await;
}

/// One department, and just so much that a call fits again as soon as the one before has given back what it held.
#[tokio::test(start_paused = true)]
async fn quota() {
    let limits = Limits::new().with_day_tokens(1_000_000).with_month_requests(1000);
    let table = || PolicyTable::new(DepartmentPolicy::new(limits));
    let prices = PriceBook::new;
    let quota = QuotaLayer::new(MemoryStore::new(), table(), prices());
    Contract::layer(quota.clone()).with_request(of_a_department()).check().await;
    Contract::layer(quota.with_mode(Mode::Shadow)).with_request(of_a_department()).check().await;

    let (quota, worker) =
        QuotaLayer::pair(Remote::new(MemoryStore::new()), table(), prices(), WorkerOptions::default());
    Contract::layer(quota).with_request(of_a_department()).check().await;
    let report = worker.shutdown(Duration::from_secs(60)).await;
    assert_eq!((report.left, report.given_up), (0, 0));
    assert!(report.settled > 50, "{report:?}");
}

/// With nobody who would read on: what is read on is given back only when it has ended, which is what tests/drain.rs is about.
#[tokio::test(start_paused = true)]
async fn drain() {
    let (drain, worker) = DrainLayer::start(DrainOptions::within(Duration::from_secs(60)));
    worker.shutdown(Duration::ZERO).await;
    Contract::layer(drain).check().await;
}

#[tokio::test(start_paused = true)]
async fn telemetry() {
    // With backends that listen: tests/telemetry.rs.
    Contract::layer(TelemetryLayer::client((), "probe")).check().await;
    Contract::layer(TelemetryLayer::gateway(())).check().await;
    #[cfg(feature = "tracing")]
    Contract::layer(TelemetryLayer::client(llm_layers::telemetry::TracingObserver::new(), "probe"))
        .check()
        .await;
    #[cfg(feature = "otel")]
    Contract::layer(TelemetryLayer::client(llm_layers::telemetry::OtelObserver::global(), "probe"))
        .check()
        .await;
}

#[tokio::test(start_paused = true)]
async fn providers() {
    Contract::new(|probe| Providers::builder().provider("probe", probe).build().unwrap())
        .always_ready()
        .check()
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_stack() {
    let stack = |probe: Probe| {
        let minute = Duration::from_secs(60);
        let providers = Providers::builder()
            .each(move |_| CallTimeoutLayer::new().with_total(minute))
            .provider("probe", probe)
            .build()
            .unwrap();
        ServiceBuilder::new()
            .layer(ConcurrencyLimitLayer::new(8))
            .layer(AliasLayer::new(AliasTable::default()))
            .layer(
                FallbackLayer::new(Chains::default()).with_providers(providers.names()).with_deadline(minute),
            )
            .service(providers)
    };
    Contract::new(stack).always_ready().check().await;
}

#[tokio::test(start_paused = true)]
async fn the_scripted_leaf() {
    let request = LlmRequest::new("probe/model", ChatBody::builder().user("hi").build().unwrap());
    let scripted = || {
        let words = || llm_layers::testing::Reply::words(["a", "b"]);
        (0..20).fold(Scripted::new().reply(llm_layers::testing::Reply::text("hi")), |s, _| s.reply(words()))
    };
    check_leaf(scripted(), request).await;
}

// ===== what the contract must find =====

macro_rules! broken {
    ($layer:ident, $service:ident, $($body:tt)*) => {
        #[derive(Debug, Clone)]
        struct $layer;
        #[derive(Debug)]
        struct $service<S>(S);
        impl<S> Layer<S> for $layer {
            type Service = $service<S>;
            fn layer(&self, inner: S) -> $service<S> {
                $service(inner)
            }
        }
        impl<S: Clone> Clone for $service<S> {
            fn clone(&self) -> Self {
                Self(self.0.clone())
            }
        }
        impl<S> Service<LlmRequest> for $service<S>
        where
            S: Service<LlmRequest, Response = LlmResponse, Future: Send + 'static> + Clone + Send + 'static,
            S::Error: Into<Error>,
        {
            type Response = LlmResponse;
            type Error = Error;
            $($body)*
        }
    };
}

type BoxFuture = std::pin::Pin<Box<dyn Future<Output = Result<LlmResponse, Error>> + Send>>;

broken! { ClonesAndCalls, ClonesAndCallsService,
    type Future = BoxFuture;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }
    fn call(&mut self, request: LlmRequest) -> BoxFuture {
        let mut inner = self.0.clone();
        Box::pin(async move { inner.call(request).await.map_err(Into::into) })
    }
}

broken! { AlwaysSaysReady, AlwaysSaysReadyService,
    type Future = BoxFuture;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, request: LlmRequest) -> BoxFuture {
        let mut inner = self.0.clone();
        Box::pin(async move {
            std::future::poll_fn(|cx| inner.poll_ready(cx)).await.map_err(Into::into)?;
            inner.call(request).await.map_err(Into::into)
        })
    }
}

broken! { Forgets, ForgetsService,
    type Future = BoxFuture;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }
    fn call(&mut self, request: LlmRequest) -> BoxFuture {
        let call = self.0.call(request);
        // Goes on although the caller has left.
        let task = tokio::spawn(async move { call.await.map_err(Into::into) });
        Box::pin(async move { task.await.unwrap() })
    }
}

broken! { HidesKinds, HidesKindsService,
    type Future = BoxFuture;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }
    fn call(&mut self, request: LlmRequest) -> BoxFuture {
        let call = self.0.call(request);
        Box::pin(async move {
            call.await.map_err(|_| Error::new(llm_layers::ErrorKind::Other))
        })
    }
}

broken! { RefusesInPollReady, RefusesInPollReadyService,
    type Future = Ready<Result<LlmResponse, Error>>;
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Err(Error::new(llm_layers::ErrorKind::Overloaded)))
    }
    fn call(&mut self, _: LlmRequest) -> Self::Future {
        ready(Err(Error::new(llm_layers::ErrorKind::Overloaded)))
    }
}

/// Keeps the waker of whoever asks first.
struct FirstWaker(BoxFuture, Option<Waker>);

impl Future for FirstWaker {
    type Output = Result<LlmResponse, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let waker = self.1.get_or_insert_with(|| cx.waker().clone()).clone();
        self.0.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

broken! { KeepsAWaker, KeepsAWakerService,
    type Future = FirstWaker;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }
    fn call(&mut self, request: LlmRequest) -> FirstWaker {
        let call = self.0.call(request);
        FirstWaker(Box::pin(async move { call.await.map_err(Into::into) }), None)
    }
}

/// A lock that a panic below poisons.
#[derive(Clone)]
struct Locks<S>(S, Arc<Mutex<()>>);

#[derive(Clone)]
struct LocksLayer;

impl<S> Layer<S> for LocksLayer {
    type Service = Locks<S>;

    fn layer(&self, inner: S) -> Locks<S> {
        Locks(inner, Arc::default())
    }
}

impl<S> Service<LlmRequest> for Locks<S>
where
    S: Service<LlmRequest>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: LlmRequest) -> S::Future {
        let _locked = self.1.lock().unwrap();
        self.0.call(request)
    }
}

async fn finding(contract: Contract) -> String {
    let found = futures_util::FutureExt::catch_unwind(AssertUnwindSafe(contract.check())).await;
    let panic = found.expect_err("the contract must not hold");
    let said = panic.downcast_ref::<String>().cloned();
    said.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn broken_layers_are_found() {
    let found = finding(Contract::layer(ClonesAndCalls)).await;
    assert!(found.contains("called without having been polled ready"), "{found}");
    let found = finding(Contract::layer(KeepsAWaker)).await;
    assert!(found.contains("it is woken when the service below goes on"), "{found}");
    let found = finding(Contract::layer(LocksLayer)).await;
    assert!(found.contains("Poison"), "{found}");
    let found = finding(Contract::layer(AlwaysSaysReady)).await;
    assert!(found.contains("backpressure passes"), "{found}");
    let found = finding(Contract::layer(Forgets)).await;
    assert!(found.contains("nothing is left running") || found.contains("no Pending"), "{found}");
    let found = finding(Contract::layer(HidesKinds)).await;
    assert!(found.contains("keeps its kind"), "{found}");
    let found = finding(Contract::layer(RefusesInPollReady)).await;
    assert!(found.contains("poll_ready fails only when"), "{found}");
    let found = finding(Contract::layer(PeekLayer::new()).always_ready()).await;
    assert!(found.contains("always ready"), "{found}");
}

#[tokio::test]
#[should_panic(expected = "marks the progress of a stream")]
async fn a_leaf_that_marks_whole_answers_only_is_found() {
    let leaf = service_fn(|mut request: LlmRequest| async move {
        if request.body.is_streaming() {
            request.progress = Progress::new();
        }
        Echo::new().oneshot(request).await
    });
    check_leaf(leaf, LlmRequest::new("acme/one", ChatBody::builder().user("Hi").build().unwrap())).await;
}
