use super::task::Task;
use crate::{Error, LlmRequest, LlmResponse, Progress, ResponseBody};
use tower_service::Service;

/// Checks that a leaf keeps the contract: answers both ways, ends each stream with exactly one terminal chunk,
/// says when it asks its provider, and can be dropped at any point.
///
/// `request` must be one that the leaf answers with content.
///
/// # Panics
///
/// Says which rule is broken.
///
/// ```
/// use llm_layers::{ChatBody, LlmRequest, provider::Echo, testing::check_leaf};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let body = ChatBody::builder().user("Is anybody there?").build()?;
/// check_leaf(Echo::new(), LlmRequest::new("any", body)).await;
/// # Ok(())
/// # }
/// ```
pub async fn check_leaf<S>(leaf: S, request: LlmRequest)
where
    S: Service<LlmRequest, Response = LlmResponse> + Clone + Send + Sync + 'static,
    S::Error: Into<Error>,
    S::Future: Send,
{
    let call = async |streaming: bool| {
        let mut request = request.clone();
        request.body = request.body.with("stream", streaming).expect("a boolean");
        request.progress = Progress::new();
        let progress = request.progress.clone();
        let mut service = leaf.clone();
        std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into).expect("ready");
        let future = service.call(request);
        (future, progress)
    };

    let (future, progress) = call(false).await;
    let answer = future.await.map_err(Into::into).expect("a whole answer");
    assert!(progress.is_dispatched(), "a leaf marks the progress when it asks its provider");
    let ResponseBody::Complete(completion) = answer.body else {
        panic!("a leaf answers as it was asked: whole")
    };
    assert!(completion.has_content(), "the answer has content");
    assert!(!completion.finish_reasons().is_empty(), "the answer says why it is over");

    let (future, progress) = call(true).await;
    let answer = future.await.map_err(Into::into).expect("a streamed answer");
    assert!(progress.is_dispatched(), "a leaf marks the progress of a stream too");
    let ResponseBody::Stream(mut chunks) = answer.body else {
        panic!("a leaf answers as it was asked: streamed")
    };
    let (mut total, mut last) = (0, false);
    while let Some(chunk) = chunks.next().await {
        assert!(!last, "nothing follows the terminal chunk");
        last = chunk.expect("no chunk fails").is_final();
        total += 1;
    }
    assert!(last, "the last chunk is terminal");
    assert!(chunks.summary().has_content, "the stream has content");

    for read in 0..total {
        let (future, _) = call(true).await;
        let ResponseBody::Stream(mut chunks) = future.await.map_err(Into::into).expect("an answer").body
        else {
            panic!("a leaf answers as it was asked: streamed")
        };
        for _ in 0..read {
            chunks.next().await.expect("as many as before").expect("no chunk fails");
        }
    }
    // Never polled, and before there is an answer.
    drop(call(true).await);
    for streaming in [false, true] {
        let mut future = Box::pin(call(streaming).await.0);
        let _ = Task::default().poll(&mut future);
    }
}
