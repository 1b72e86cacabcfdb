//! The whole stack, under and above tower's own layers.

use llm_layers::{
    BoxError, ChatBody, Error, ErrorClass, ErrorKind, LlmRequest, LlmResponse, ServiceBuilderExt as _,
    StreamChunk,
    alias::AliasTable,
    fallback::{Chains, FallbackLayer},
    providers::{Deployment, Providers},
    testing::{Reply, Scripted, Step},
    timeout::CallTimeoutLayer,
};
use std::{future::ready, time::Duration};
use tower::{Service, ServiceBuilder, ServiceExt, hedge, retry, util::BoxCloneSyncService};

type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

const MINUTE: Duration = Duration::from_secs(60);

fn request() -> LlmRequest {
    LlmRequest::new("fast", ChatBody::builder().user("Say hi.").build().unwrap())
}

fn down() -> Error {
    Error::provider(ErrorClass::Unavailable, "p", "a")
}

/// The recommended order, with one deployment of `provider`, and `model` falling back to nothing.
fn stack(provider: &Scripted) -> Stack {
    let providers = Providers::builder()
        .each(|_| CallTimeoutLayer::new().with_head(MINUTE).with_idle(MINUTE))
        .deployment("p", Deployment::new(provider.clone()).marking_dispatch())
        .build()
        .unwrap();
    let aliases = AliasTable::builder().alias("fast", "p/a").providers(providers.names()).build().unwrap();
    let stack = ServiceBuilder::new()
        .answer_concurrency_limit(8)
        .alias(aliases)
        .layer(FallbackLayer::new(Chains::default()).with_providers(providers.names()).with_deadline(MINUTE))
        .service(providers);
    Stack::new(stack)
}

async fn text(
    service: impl Service<LlmRequest, Response = LlmResponse, Error = impl Into<Error>>,
) -> Result<String, Error> {
    service.oneshot(request()).await.map_err(Into::into)?.text().await
}

#[tokio::test(start_paused = true)]
async fn it_answers_whole_and_streamed() {
    let provider = Scripted::new().reply(Reply::text("whole")).reply(Reply::words(["in ", "pieces"]));
    assert_eq!(text(stack(&provider)).await.unwrap(), "whole");
    let answer = stack(&provider).oneshot(request()).await.unwrap();
    assert_eq!((answer.model.as_str(), answer.provider.as_deref()), ("p/a", Some("p")));
    assert_eq!(answer.text().await.unwrap(), "in pieces");
    assert_eq!(provider.requests()[0].model, "a");
    assert_eq!(provider.requests()[0].requested, "fast");
}

#[tokio::test(start_paused = true)]
async fn under_towers_timeout() {
    let provider = Scripted::new().reply(Reply::words(["hi"])).reply(Reply::stall());
    let mut service = ServiceBuilder::new().timeout(Duration::from_secs(5)).service(stack(&provider));
    let answer = service.ready().await.unwrap().call(request()).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "hi");
    let error = Error::from(service.ready().await.unwrap().call(request()).await.unwrap_err());
    assert!(matches!(error.kind(), ErrorKind::Timeout { .. }));
    assert_eq!(provider.alive(), 0);
}

#[tokio::test(start_paused = true)]
async fn under_towers_load_shed_and_concurrency_limit() {
    let provider = Scripted::new().reply(Reply::stall());
    let service = ServiceBuilder::new().load_shed().concurrency_limit(1).service(stack(&provider));
    let mut first = service.clone();
    let held = first.ready().await.unwrap().call(request());
    let error = Error::from(service.clone().oneshot(request()).await.unwrap_err());
    assert!(matches!(error.kind(), ErrorKind::Overloaded));
    drop(held);
    // Nobody polled that call, so that its reply is still to come.
    provider.forget_replies();
    assert_eq!(text(service.map_err(Error::from)).await.unwrap(), "hi");
}

#[tokio::test(start_paused = true)]
async fn under_towers_buffer() {
    let provider = Scripted::new().reply(Reply::words(["hi"])).reply(Reply::error(down()));
    let service = ServiceBuilder::new().buffer(4).service(stack(&provider));
    assert_eq!(text(service.clone().map_err(Error::from)).await.unwrap(), "hi");
    let error = Error::from(service.oneshot(request()).await.unwrap_err());
    assert_eq!(error.class(), Some(ErrorClass::Unavailable));
    assert_eq!(error.attempts().len(), 1);
}

#[derive(Clone)]
struct Twice(bool);

impl retry::Policy<LlmRequest, LlmResponse, Error> for Twice {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut LlmRequest, result: &mut Result<LlmResponse, Error>) -> Option<Self::Future> {
        let again = !std::mem::replace(&mut self.0, true) && result.as_ref().is_err_and(Error::is_retryable);
        again.then(|| ready(()))
    }

    fn clone_request(&mut self, request: &LlmRequest) -> Option<LlmRequest> {
        Some(request.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn under_towers_retry_also_when_a_stream_breaks_early() {
    let provider = Scripted::new()
        .reply(Reply::stream([Step::Chunk(StreamChunk::role()), Step::Cut]))
        .reply(Reply::words(["hi"]));
    let service = ServiceBuilder::new().retry(Twice(false)).service(stack(&provider));
    assert_eq!(text(service).await.unwrap(), "hi");
    assert_eq!(provider.requests().len(), 2);
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

#[tokio::test(start_paused = true)]
async fn under_towers_hedge() {
    let provider = Scripted::new().reply(Reply::stall()).reply(Reply::words(["hi"]));
    let service = stack(&provider).map_err(BoxError::from);
    let hedged = hedge::Hedge::new_with_mock_latencies(service, Always, 1, 0.9, MINUTE, &[10; 20]);
    let answer = hedged.oneshot(request()).await.map_err(Error::from).unwrap();
    assert_eq!(answer.text().await.unwrap(), "hi");
    assert_eq!(provider.requests().len(), 2);
    assert_eq!(provider.alive(), 0, "the slower call is hung up on");
}

#[tokio::test(start_paused = true)]
async fn above_towers_layers() {
    let provider = Scripted::new()
        .reply(Reply::error(down()))
        .reply(Reply::stall())
        .reply(Reply::words(["hi"]))
        .with_places(1);
    let leaf = ServiceBuilder::new()
        .buffer(4)
        .concurrency_limit(1)
        .timeout(Duration::from_secs(5))
        .service(provider.clone());
    let shed = ServiceBuilder::new().load_shed().service(leaf);
    let providers = Providers::builder().provider("p", shed).build().unwrap();
    let chains = Chains::builder().chain("p/a", ["p/b", "p/c"]).build().unwrap();
    let layer = FallbackLayer::new(chains).with_providers(providers.names());
    let mut service = tower::Layer::layer(&layer, providers);
    let request = LlmRequest::new("p/a", ChatBody::builder().user("Say hi.").build().unwrap());
    let answer = service.ready().await.unwrap().call(request).await.unwrap();
    let failed: Vec<_> = answer.attempts.iter().map(|a| a.error.kind().clone()).collect();
    assert!(matches!(&failed[..], [ErrorKind::Provider(_), ErrorKind::Timeout { .. }]), "{failed:?}");
    assert_eq!(answer.text().await.unwrap(), "hi");
    assert_eq!((provider.alive(), provider.free()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_caller_may_hang_up_at_any_point() {
    let reply = || {
        let pieces = ["a", "b"].map(|text| [Step::Yield, Step::Chunk(StreamChunk::text(text))]);
        Reply::stream(pieces.into_iter().flatten()).after([Step::Yield])
    };
    for polls in 0..12 {
        let provider = Scripted::new().with_places(1).reply(reply());
        let service = stack(&provider);
        let mut left = polls;
        {
            let mut call = tokio_test::task::spawn(service.clone().oneshot(request()));
            let mut answer = None;
            while left > 0 && answer.is_none() {
                left -= 1;
                if let std::task::Poll::Ready(ready) = call.poll() {
                    answer = Some(ready.unwrap());
                }
            }
            if let Some(LlmResponse { body: llm_layers::ResponseBody::Stream(mut chunks), .. }) = answer {
                while left > 0 {
                    left -= 1;
                    let _ = tokio_test::task::spawn(chunks.next()).poll();
                }
            }
        }
        provider.forget_replies();
        assert_eq!(provider.alive(), 0, "after {polls} polls");
        assert_eq!(text(service).await.unwrap(), "hi", "after {polls} polls");
        assert_eq!(provider.free(), 1, "after {polls} polls");
    }
}
