//! Tower's `Retry` and `Hedge` inside of limits and records: all that they tried is one call to those.

use llm_layers::{
    BoxError, ChatBody, Completion, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ProviderFailure,
    RequestContext, TokenUsage,
    clock::{Clock as _, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::PriceBook,
    provider::dispatch::MarkDispatchLayer,
    providers::{Deployment, Providers},
    quota::{Calendar, Limits, MemoryStore, QuotaLayer, QuotaStore as _, WindowUsage},
    usage::{MemorySink, Outcome, UsageEvent, UsageLayer},
};
use std::{
    collections::VecDeque,
    future::{Ready, pending, ready},
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt as _, hedge, retry, service_fn, util::BoxCloneSyncService,
};

const MINUTE: Duration = Duration::from_secs(60);

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// How one try ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Try {
    NoConnection,
    /// By its status, before it has said anything.
    Refused,
    Cut,
    Silence,
    Answer,
}

use Try::{Answer, Cut, NoConnection, Refused, Silence};

impl Try {
    /// Whether the provider heard of it.
    fn is_sent(self) -> bool {
        self != NoConnection
    }

    fn is_billable(self) -> bool {
        !matches!(self, NoConnection | Refused)
    }

    fn end(self) -> Result<LlmResponse, Error> {
        let failed = |class| Err(Error::provider(class, "p", "a"));
        match self {
            NoConnection => failed(ErrorClass::Connect),
            Refused => {
                let mut failure = ProviderFailure::new(ErrorClass::RateLimited, "p", "a");
                failure.status = Some(http::StatusCode::TOO_MANY_REQUESTS);
                Err(Error::new(ErrorKind::Provider(failure)))
            }
            Cut => failed(ErrorClass::Truncated),
            Silence => unreachable!("nothing comes"),
            Answer => Ok(LlmResponse::new("a", Completion::text("hi", TokenUsage::new(3, 1)))),
        }
    }
}

/// A leaf as hosts write them: it marks, then tries to connect.
fn leaf(tries: &[Try]) -> Stack {
    let left = Arc::new(Mutex::new(VecDeque::from(tries.to_vec())));
    Stack::new(service_fn(move |request: LlmRequest| {
        let next = left.lock().unwrap().pop_front().expect("no further try");
        async move {
            request.progress.mark_dispatched();
            match next {
                Silence => pending().await,
                ended => ended.end(),
            }
        }
    }))
}

/// All ways in which a leaf can be put into a stack.
fn leaves(tries: &[Try]) -> Vec<(&'static str, Stack)> {
    let providers =
        |deployment| Stack::new(Providers::builder().deployment("p", deployment).build().unwrap());
    vec![
        ("called is asked", providers(Deployment::new(leaf(tries)))),
        ("it marks by itself", providers(Deployment::new(leaf(tries)).marking_dispatch())),
        ("it is marked by a layer", Stack::new(MarkDispatchLayer::new().layer(leaf(tries)))),
    ]
}

#[derive(Clone)]
struct Until(usize);

impl retry::Policy<LlmRequest, LlmResponse, Error> for Until {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut LlmRequest, result: &mut Result<LlmResponse, Error>) -> Option<Ready<()>> {
        self.0 -= 1;
        (self.0 > 0 && result.is_err()).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &LlmRequest) -> Option<LlmRequest> {
        Some(request.clone())
    }
}

#[derive(Clone)]
struct Always;

impl hedge::Policy<LlmRequest> for Always {
    fn clone_request(&self, request: &LlmRequest) -> Option<LlmRequest> {
        Some(request.clone())
    }

    fn can_retry(&self, _: &LlmRequest) -> bool {
        true
    }
}

/// What limits and records know of a call to `service`.
struct Known {
    result: Result<LlmResponse, Error>,
    events: Vec<UsageEvent>,
    day: WindowUsage,
}

struct Books {
    store: MemoryStore,
    sink: MemorySink,
}

impl Books {
    fn new() -> Self {
        Self { store: MemoryStore::new(), sink: MemorySink::new(8) }
    }

    /// Limits and records around `service`.
    fn around<S>(
        &self,
        service: S,
    ) -> impl Service<LlmRequest, Response = LlmResponse, Error = Error> + use<S>
    where
        S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>> + Clone,
    {
        let policies = PolicyTable::default()
            .with("research", DepartmentPolicy::new(Limits::new().with_day_tokens(100_000)));
        ServiceBuilder::new()
            .layer(QuotaLayer::new(self.store.clone(), policies, PriceBook::new()))
            .layer(UsageLayer::new(self.sink.clone(), PriceBook::new()))
            .service(service)
    }

    async fn day(&self) -> WindowUsage {
        let days = Calendar::utc().days_around(SystemClock.now());
        self.store.usage(&"research".into(), &days).await.unwrap().in_day
    }
}

fn request() -> LlmRequest {
    let body = ChatBody::builder().user("Say hi.").max_output_tokens(100).build().unwrap();
    let context = RequestContext::new().with_departments(["research"]);
    LlmRequest::new("p/a", body).with_context(context)
}

async fn call<S>(service: S) -> Known
where
    S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>> + Clone,
{
    let books = Books::new();
    let result = books.around(service).oneshot(request()).await;
    assert_eq!(books.sink.admitted(), 0);
    Known { result, events: books.sink.take(), day: books.day().await }
}

fn is_right(known: &Known, tries: &[Try], case: &str) {
    let any = |is: fn(Try) -> bool| tries.iter().copied().any(is);
    let (is_sent, is_billable) = (any(Try::is_sent), any(Try::is_billable));
    let Known { result, events, day } = known;
    assert_eq!((day.settled.requests, day.reserved.tokens), (u64::from(is_sent), 0), "{case}");
    assert_eq!(day.settled.tokens > 0, is_billable, "{case}");
    assert_eq!(events.len(), usize::from(is_sent), "{case}");
    for event in events {
        let outcome = if result.is_ok() { Outcome::Ok } else { Outcome::Error };
        assert_eq!((event.outcome, event.usage.input_tokens > Some(0)), (outcome, is_billable), "{case}");
    }
}

/// All that can become of up to three tries, each after failures.
fn histories() -> Vec<Vec<Try>> {
    let mut all = vec![vec![]];
    let mut from = 0;
    for _ in 0..3 {
        let to = all.len();
        for at in from..to {
            if all[at].last() != Some(&Answer) {
                all.extend([NoConnection, Refused, Cut, Answer].map(|last| [&all[at][..], &[last]].concat()));
            }
        }
        from = to;
    }
    all.split_off(1)
}

#[tokio::test(start_paused = true)]
async fn below_a_retry_what_was_sent_is_charged_and_recorded_whatever_was_tried_last() {
    assert_eq!(histories().len(), 4 + 3 * 4 + 9 * 4);
    for tries in histories() {
        for (how, leaf) in leaves(&tries) {
            let case = format!("{how}: {tries:?}");
            let known = call(retry::Retry::new(Until(tries.len()), leaf)).await;
            is_right(&known, &tries, &case);
            if let Err(error) = &known.result {
                assert_eq!(error.dispatched(), tries.iter().any(|one| one.is_sent()), "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn below_a_retry_around_a_deployment_too() {
    for tries in histories() {
        let retry = |_: &_| retry::RetryLayer::new(Until(tries.len()));
        for marks in [false, true] {
            let deployment = Deployment::new(leaf(&tries));
            let deployment = if marks { deployment.marking_dispatch() } else { deployment };
            let providers = Providers::builder().each(retry).deployment("p", deployment).build().unwrap();
            is_right(&call(providers).await, &tries, &format!("{marks}: {tries:?}"));
        }
    }
}

fn hedged(leaf: Stack) -> impl Service<LlmRequest, Response = LlmResponse, Error = BoxError> + Clone {
    let leaf = leaf.map_err(BoxError::from);
    let hedged = hedge::Hedge::new_with_mock_latencies(leaf, Always, 1, 0.9, MINUTE, &[10; 20]);
    // It is not Clone.
    ServiceBuilder::new().buffer(1).service(hedged)
}

#[tokio::test(start_paused = true)]
async fn below_a_hedge_what_still_runs_was_sent() {
    for tries in [
        &[Silence, NoConnection][..],
        &[Silence, Refused],
        &[Silence, Cut],
        &[Silence, Answer],
        &[NoConnection],
        &[Refused],
    ] {
        for (how, leaf) in leaves(tries) {
            is_right(&call(hedged(leaf)).await, tries, &format!("{how}: {tries:?}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_before_the_head_is_charged_and_recorded_only_if_the_call_was_marked() {
    let silent = || service_fn(|_: LlmRequest| pending::<Result<LlmResponse, Error>>());
    let marked = MarkDispatchLayer::new().layer(silent());
    for (leaf, is_marked) in [(Stack::new(silent()), false), (Stack::new(marked), true)] {
        let books = Books::new();
        let left = tokio::time::timeout(MINUTE, books.around(leaf).oneshot(request())).await;
        assert!(left.is_err());
        let (events, day) = (books.sink.take(), books.day().await);
        assert_eq!((events.len(), day.settled.requests), (usize::from(is_marked), u64::from(is_marked)));
        assert_eq!((day.settled.tokens > 0, day.reserved.tokens), (is_marked, 0));
    }
}
