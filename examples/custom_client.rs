//! A client of your own, and no server: short names, a second model for when the first is down, and a record of what was
//! used, around a leaf that you have written yourself.
//!
//! ```sh
//! cargo run --example custom_client
//! cargo run --example custom_client "Say hello."
//! ```

use llm_layers::{
    ChatBody, ChunkStream, Completion, Error, ErrorClass, FinishReason, LlmRequest, LlmResponse,
    ServiceBuilderExt as _, StreamChunk, TokenUsage,
    alias::AliasTable,
    fallback::Chains,
    price::{Price, PriceBook, Rates},
    providers::Providers,
    usage::{GroupBy, MemorySink, UsageQuery},
};
use std::{
    env,
    future::{Ready, ready},
    task::{Context, Poll},
};
use tower::{Service, ServiceBuilder, ServiceExt as _};

/// A model that runs in this process: it says what was said, backwards. Yours would ask a library, a pipe, or a server
/// with a protocol that nobody else speaks.
#[derive(Debug, Clone)]
struct Backwards {
    is_loaded: bool,
}

impl Service<LlmRequest> for Backwards {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        if !self.is_loaded {
            return ready(Err(Error::provider(ErrorClass::Connect, "large", request.model)));
        }
        // From here on something may have been used up, whatever happens next.
        request.progress.mark_dispatched();
        let said =
            request.body.messages().last().map(|message| message.text().into_owned()).unwrap_or_default();
        let words: Vec<String> = said.split_whitespace().rev().map(|word| format!("{word} ")).collect();
        let usage = TokenUsage::new(words.len() as u64, words.len() as u64);
        ready(Ok(match request.body.is_streaming() {
            false => LlmResponse::new(request.model, Completion::text(words.concat(), usage)),
            true => {
                let words = words.into_iter().map(StreamChunk::text);
                let end = [
                    StreamChunk::finish(&FinishReason::Stop),
                    StreamChunk::usage_only(usage),
                    StreamChunk::end(),
                ];
                let chunks = words.chain(end).map(Ok).collect::<Vec<_>>();
                LlmResponse::new(request.model, ChunkStream::new(futures_util::stream::iter(chunks)))
            }
        }))
    }
}

/// The client: anything that is a `Service<LlmRequest>` is one.
fn client(
    sink: MemorySink,
) -> Result<impl Service<LlmRequest, Response = LlmResponse, Error = Error> + Clone, Box<dyn std::error::Error>>
{
    let price = Price::new(Rates::per_million("1.00", "2.00")?);
    let prices = PriceBook::of("ours", [("small/backwards", price)])?;
    Ok(ServiceBuilder::new()
        .alias(AliasTable::builder().alias("smart", "large/backwards").build()?)
        .fallback(Chains::builder().chain("large/backwards", ["small/backwards"]).build()?)
        .usage(sink, prices)
        .service(
            Providers::builder()
                .provider("large", Backwards { is_loaded: false })
                .provider("small", Backwards { is_loaded: true })
                .build()?,
        ))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sink = MemorySink::new(1000);
    let client = client(sink.clone())?;
    let prompt = env::args().nth(1).unwrap_or_else(|| "there? anybody Is".into());
    for streaming in [false, true] {
        let body = ChatBody::builder().user(&*prompt).set("stream", streaming).build()?;
        let answer = client.clone().oneshot(LlmRequest::new("smart", body)).await?;
        for failed in &answer.attempts {
            eprintln!("{}", failed.error);
        }
        eprint!("{}: ", answer.model);
        println!("{}", answer.text().await?);
    }
    for group in sink.totals_by(&UsageQuery::default(), &[GroupBy::Model]).unwrap_or_default() {
        println!("{:?}: {:?}", group.key, group.totals);
    }
    Ok(())
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use llm_layers::testing::check_leaf;

    fn request(model: &str, streaming: bool) -> LlmRequest {
        let body = ChatBody::builder().user("there? anybody Is").set("stream", streaming);
        LlmRequest::new(model, body.build().unwrap())
    }

    #[tokio::test]
    async fn the_leaf_keeps_the_contract() {
        check_leaf(Backwards { is_loaded: true }, request("backwards", false)).await;
    }

    #[tokio::test]
    async fn the_second_model_answers_and_its_usage_is_recorded_at_its_price() {
        let sink = MemorySink::new(10);
        let client = client(sink.clone()).unwrap();
        for streaming in [false, true] {
            let answer = client.clone().oneshot(request("smart", streaming)).await.unwrap();
            assert_eq!((&*answer.model, answer.attempts.len()), ("small/backwards", 1));
            assert_eq!(answer.text().await.unwrap().trim_end(), "Is anybody there?");
        }
        let events = sink.take();
        assert_eq!(events.len(), 2);
        for event in events {
            assert_eq!((&*event.requested, &*event.model), ("smart", "small/backwards"));
            assert_eq!(event.usage, TokenUsage::new(3, 3));
            assert_eq!(event.cost.amount.map(|cost| cost.to_string()), Some("0.000009".to_owned()));
        }
    }
}
