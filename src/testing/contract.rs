use super::{
    scripted::{Reply, Scripted, Step},
    task::Task,
};
use crate::{
    BoxError, ChatBody, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ResponseBody, StreamChunk,
};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::Poll,
    time::Duration,
};
use tower::{
    ServiceBuilder, ServiceExt,
    util::{BoxCloneSyncService, MapErr},
};
use tower_layer::Layer;
use tower_service::Service;

/// What the contract puts below the layer under test: a [`Scripted`] provider whose errors are type-erased, as
/// they come out of tower's own layers.
pub type Probe = MapErr<Scripted, fn(Error) -> BoxError>;

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// Some of tower's own layers over a [`Scripted`] provider.
type Erased = BoxCloneSyncService<LlmRequest, LlmResponse, BoxError>;
type Build<S> = Box<dyn Fn(S) -> Stack>;

/// The contract that every layer keeps, so that any may be left out, put elsewhere, or stacked with tower's own.
///
/// - It is `Clone + Send + Sync`, and calls the very instance that it polled ready.
/// - `poll_ready` passes the inner service's backpressure on, or the layer declares itself
///   [always ready](Self::always_ready) and then waits inside the call.
/// - It takes no readiness that it does not use.
/// - Answers, whole and streamed, pass; so do errors, with their kind, even type-erased.
/// - However a call ends, everything is given back: answered, finished, broken, cut, dropped at any poll, a
///   panic below. The service is good for the next call.
/// - It never returns `Pending` without having its waker kept.
/// - What it refuses is an error of the call, never of `poll_ready`.
/// - It works below and above tower's own layers.
///
/// Run it under a tokio runtime; with its time paused if the layer has time limits.
///
/// ```
/// use llm_layers::{providers::Providers, testing::Contract};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// Contract::new(|probe| Providers::builder().provider("probe", probe).build().unwrap())
///     .always_ready()
///     .check()
///     .await;
/// # }
/// ```
#[must_use = "a contract is checked by `check`"]
pub struct Contract {
    build: Build<Probe>,
    /// Only a layer can be put around any service.
    build_erased: Option<Build<Erased>>,
    always_ready: bool,
    request: LlmRequest,
}

impl Contract {
    /// For what `build` puts around a service.
    pub fn new<S>(build: impl Fn(Probe) -> S + 'static) -> Self
    where
        S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let body = ChatBody::builder().user("Say hi.").build().expect("valid");
        let build = move |probe| Stack::new(build(probe).map_err(Into::into));
        Self {
            build: Box::new(build),
            build_erased: None,
            always_ready: false,
            request: LlmRequest::new("probe/model", body),
        }
    }

    /// For a layer.
    pub fn layer<L>(layer: L) -> Self
    where
        L: Layer<Probe> + Layer<Erased> + Clone + 'static,
        <L as Layer<Probe>>::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
        <L as Layer<Erased>>::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let boxed = layer.clone();
        let mut contract = Self::new(move |probe: Probe| layer.layer(probe));
        contract.build_erased =
            Some(Box::new(move |inner| Stack::new(boxed.layer(inner).map_err(Into::into))));
        contract
    }

    /// The layer may answer by itself or choose whom to ask: it is ready at once, and readies what it calls inside
    /// the call.
    pub const fn always_ready(mut self) -> Self {
        self.always_ready = true;
        self
    }

    /// Uses this request, where the layer needs a particular one.
    pub fn with_request(mut self, request: LlmRequest) -> Self {
        self.request = request;
        self
    }

    /// Checks all of it.
    ///
    /// # Panics
    ///
    /// Says which rule is broken.
    pub async fn check(self) {
        self.answers_and_errors_pass().await;
        self.backpressure();
        self.readiness_is_given_back().await;
        self.every_way_to_end().await;
        self.panics_below().await;
        self.wakers_are_kept().await;
        self.a_dead_service_is_said_to_be_dead().await;
        self.among_towers_layers().await;
    }

    fn setup(&self, provider: &Scripted) -> Stack {
        let erase: fn(Error) -> BoxError = Into::into;
        (self.build)(provider.clone().map_err(erase))
    }

    async fn call(&self, service: &mut Stack) -> Result<LlmResponse, Error> {
        let ready = service.ready().await;
        ready.expect("poll_ready fails only when the service below is dead").call(self.request.clone()).await
    }

    async fn answers_and_errors_pass(&self) {
        let provider = Scripted::new();
        let mut service = self.setup(&provider);

        provider.push(Reply::text("whole"));
        let answer = self.call(&mut service).await.expect("an answer passes");
        assert_eq!(answer.text().await.expect("whole"), "whole", "a whole answer passes");

        provider.push(Reply::words(["a", "b", "c"]));
        let answer = self.call(&mut service).await.expect("a stream passes");
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream stays a stream") };
        let (mut text, mut ends) = (String::new(), 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.expect("no chunk fails");
            text.push_str(&chunk.content());
            ends += usize::from(chunk.is_final());
        }
        assert_eq!((&*text, ends), ("abc", 1), "all chunks pass, the terminal one once");

        provider.push(Reply::error(Error::provider(ErrorClass::BadRequest, "probe", "model")));
        let error = self.call(&mut service).await.expect_err("an error passes");
        assert_eq!(error.class(), Some(ErrorClass::BadRequest), "an error keeps its kind, even type-erased");

        let broken = Error::provider(ErrorClass::Transport, "probe", "model");
        provider.push(Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Fail(broken)]));
        let answer = self.call(&mut service).await.expect("a stream passes");
        let error = answer.text().await.expect_err("an error in a stream passes");
        assert_eq!(error.class(), Some(ErrorClass::Transport), "an error in a stream keeps its kind");

        let asked = provider.requests();
        assert_eq!(asked.len(), 4, "one call below for one above");
        assert!(
            asked.iter().all(|r| r.requested == self.request.requested),
            "what the caller asked for is kept"
        );
    }

    fn backpressure(&self) {
        let provider = Scripted::new().with_places(0);
        let mut service = self.setup(&provider);
        let task = Task::default();
        let polled = task.run(|cx| service.poll_ready(cx));
        if self.always_ready {
            assert!(matches!(polled, Poll::Ready(Ok(()))), "a layer that says so is always ready");
            let mut call = Box::pin(service.call(self.request.clone()));
            assert!(task.poll(&mut call).is_pending(), "it waits for the service below inside the call");
            provider.add_place();
            assert!(task.is_woken(), "it is woken when the service below is ready");
            self.expect_answer(&task, &mut call);
        } else {
            assert!(polled.is_pending(), "backpressure passes");
            provider.add_place();
            assert!(task.is_woken(), "who waits to be ready is woken");
            let polled = task.run(|cx| service.poll_ready(cx));
            assert!(matches!(polled, Poll::Ready(Ok(()))), "ready when the service below is");
            let polled = task.run(|cx| service.poll_ready(cx));
            assert!(matches!(polled, Poll::Ready(Ok(()))), "ready stays ready");
            assert_eq!(provider.free(), 0, "one readiness is taken, however often it is polled");
        }
    }

    fn expect_answer<F>(&self, task: &Task, call: &mut Pin<Box<F>>)
    where
        F: Future<Output = Result<LlmResponse, Error>>,
    {
        for _ in 0..100 {
            match task.poll(call) {
                Poll::Ready(answer) => return drop(answer.expect("an answer")),
                Poll::Pending => assert!(task.is_woken(), "it goes on by itself"),
            }
        }
        panic!("it never comes to an end");
    }

    async fn readiness_is_given_back(&self) {
        let provider = Scripted::new().with_places(2);
        let mut service = self.setup(&provider);
        service.ready().await.expect("ready");
        drop(service);
        assert_eq!(provider.free(), 2, "a readiness that is not used is given back");

        let mut service = self.setup(&provider);
        for _ in 0..5 {
            drop(self.call(&mut service).await.expect("an answer"));
        }
        drop(service);
        assert_eq!((provider.free(), provider.alive()), (2, 0), "all readiness is given back after calls");
    }

    /// Runs a call up to its `polls`th poll, then drops whatever there is.
    async fn stop_after(&self, service: &mut Stack, polls: usize) -> bool {
        let task = Task::default();
        service.ready().await.expect("ready");
        let mut call = Box::pin(service.call(self.request.clone()));
        let mut left = polls;
        let answer = loop {
            if left == 0 {
                return false;
            }
            left -= 1;
            match task.poll(&mut call) {
                Poll::Ready(answer) => break answer,
                Poll::Pending => assert!(task.is_woken(), "no Pending without a waker"),
            }
        };
        let Ok(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) = answer else { return true };
        loop {
            if left == 0 {
                return false;
            }
            left -= 1;
            let mut next = Box::pin(chunks.next());
            match task.poll(&mut next) {
                Poll::Ready(None) => return true,
                Poll::Ready(Some(_)) => {}
                Poll::Pending => assert!(task.is_woken(), "no Pending without a waker"),
            }
        }
    }

    async fn every_way_to_end(&self) {
        let chunk = || [Step::Yield, Step::Chunk(StreamChunk::text("a"))];
        let broken = || Error::provider(ErrorClass::Transport, "probe", "model");
        let ways: [(&str, &dyn Fn() -> Reply); 5] = [
            ("a whole answer", &|| Reply::text("hi").after([Step::Yield, Step::Yield])),
            ("an error", &|| Reply::error(broken()).after([Step::Yield])),
            ("a stream that finishes", &|| {
                Reply::stream(chunk().into_iter().chain(chunk())).after([Step::Yield])
            }),
            ("a stream that breaks", &|| {
                Reply::stream(chunk().into_iter().chain([Step::Yield, Step::Fail(broken())]))
            }),
            ("a stream that is cut", &|| Reply::stream(chunk().into_iter().chain([Step::Yield, Step::Cut]))),
        ];
        for (way, reply) in ways {
            for polls in 0.. {
                assert!(polls < 100, "{way}: it never comes to an end");
                let provider = Scripted::new().with_places(1).reply(reply());
                let mut service = self.setup(&provider);
                let ended = self.stop_after(&mut service, polls).await;
                assert_eq!(
                    provider.alive(),
                    0,
                    "{way}, dropped after {polls} polls: nothing is left running"
                );

                provider.forget_replies();
                let answer = self.call(&mut service).await.expect("the service is good for the next call");
                answer.text().await.expect("and answers it");
                drop(service);
                assert_eq!(
                    provider.free(),
                    1,
                    "{way}, dropped after {polls} polls: everything is given back"
                );
                if ended {
                    break;
                }
            }
        }
    }

    async fn panics_below(&self) {
        type Replies = [(&'static str, fn() -> Reply); 3];
        let replies: Replies = [
            ("in call", Reply::panic),
            ("before the head", || Reply::text("").after([Step::Panic])),
            ("in the stream", || Reply::stream([Step::Chunk(StreamChunk::text("a")), Step::Panic])),
        ];
        for (place, reply) in replies {
            let provider = Scripted::new().with_places(1).reply(reply());
            let mut service = self.setup(&provider);
            service.ready().await.expect("ready");
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let task = Task::default();
                let mut call = Box::pin(service.call(self.request.clone()));
                let answer = loop {
                    match task.poll(&mut call) {
                        Poll::Ready(answer) => break answer,
                        Poll::Pending => assert!(task.is_woken(), "no Pending without a waker"),
                    }
                };
                if let Ok(LlmResponse { body: ResponseBody::Stream(mut chunks), .. }) = answer {
                    loop {
                        let next = task.poll(&mut Box::pin(chunks.next()));
                        if matches!(next, Poll::Ready(None | Some(Err(_)))) {
                            break;
                        }
                    }
                }
            }));
            // Whether the panic passes or becomes an error is the layer's choice.
            drop(outcome);
            provider.forget_replies();
            let answer = self.call(&mut service).await;
            let answer =
                answer.unwrap_or_else(|error| panic!("after a panic {place}, the next call: {error}"));
            answer.text().await.expect("and answers it");
            drop(service);
            assert_eq!(
                (provider.alive(), provider.free()),
                (0, 1),
                "a panic {place}: everything is given back"
            );
        }
    }

    async fn wakers_are_kept(&self) {
        let provider = Scripted::new();
        let mut service = self.setup(&provider);
        provider.push(Reply::stream([Step::Gate, Step::Chunk(StreamChunk::text("a"))]).after([Step::Gate]));
        service.ready().await.expect("ready");
        let mut task = Task::default();
        let mut call = Box::pin(service.call(self.request.clone()));
        let (mut opened, mut asked) = (0, 0);
        let answer = loop {
            match task.poll(&mut call) {
                Poll::Ready(answer) => break answer.expect("an answer"),
                Poll::Pending if task.is_woken() => {}
                // Who asks may change, and the last one is woken.
                Poll::Pending if asked == opened => (task, asked) = (Task::default(), asked + 1),
                Poll::Pending => {
                    assert!(opened < 2, "no Pending without a waker");
                    provider.open();
                    opened += 1;
                    assert!(task.is_woken(), "it is woken when the service below goes on");
                }
            }
        };
        let ResponseBody::Stream(mut chunks) = answer.body else { panic!("a stream stays a stream") };
        loop {
            match task.poll(&mut Box::pin(chunks.next())) {
                Poll::Ready(Some(chunk)) => assert!(chunk.is_ok(), "no chunk fails"),
                Poll::Ready(None) => break,
                Poll::Pending if task.is_woken() => {}
                Poll::Pending if asked == opened => (task, asked) = (Task::default(), asked + 1),
                Poll::Pending => {
                    assert!(opened < 2, "no Pending without a waker");
                    provider.open();
                    opened += 1;
                    assert!(task.is_woken(), "it is woken when the stream below goes on");
                }
            }
        }
        assert_eq!(opened, 2, "it went through both gates");
    }

    async fn a_dead_service_is_said_to_be_dead(&self) {
        let provider = Scripted::new();
        let mut service = self.setup(&provider);
        provider.kill();
        match service.ready().await {
            Err(_) if !self.always_ready => {}
            Err(_) => panic!("a layer that is always ready does not fail in poll_ready"),
            Ok(ready) => {
                assert!(self.always_ready, "the death of the service below passes");
                ready.call(self.request.clone()).await.expect_err("the call fails");
            }
        }
    }

    async fn among_towers_layers(&self) {
        let provider = Scripted::new();
        let above = ServiceBuilder::new()
            .map_err(|error: BoxError| Error::from(error))
            .load_shed()
            .timeout(Duration::from_secs(60))
            .service(self.setup(&provider));
        let mut above = Stack::new(above);
        self.call(&mut above).await.expect("an answer above load_shed and timeout");
        provider.push(Reply::error(Error::provider(ErrorClass::BadRequest, "probe", "model")));
        let error = self.call(&mut above).await.expect_err("an error");
        assert_eq!(error.class(), Some(ErrorClass::BadRequest), "an error survives tower's layers");

        let provider = Scripted::new();
        let below = |timeout| {
            let tower = ServiceBuilder::new().boxed_clone_sync().map_err(BoxError::from);
            let erased = tower.concurrency_limit(1).timeout(timeout).service(provider.clone());
            Some(self.build_erased.as_ref()?(erased))
        };
        let Some(mut service) = below(Duration::from_secs(60)) else { return };
        for _ in 0..3 {
            let answer = self.call(&mut service).await.expect("an answer over concurrency_limit and timeout");
            answer.text().await.expect("and it is read");
        }
        let Some(mut service) = below(Duration::from_millis(10)) else { return };
        provider.push(Reply::stall());
        let error = self.call(&mut service).await.expect_err("tower's timeout ends it");
        assert!(matches!(error.kind(), ErrorKind::Timeout { .. }), "tower's Elapsed is a timeout: {error:?}");
    }
}

impl fmt::Debug for Contract {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract").field("always_ready", &self.always_ready).finish_non_exhaustive()
    }
}
