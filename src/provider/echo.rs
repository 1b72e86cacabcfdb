use crate::{
    ChatBody, ChunkStream, Completion, Error, LlmRequest, LlmResponse, ModelName, StreamChunk, TokenUsage,
};
use serde_json::{Value, json};
use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};
use tower_service::Service;

/// A provider that needs no network: it says again what the user said last.
///
/// Always the same answer to the same request, whole or streamed word by word, with usage that counts words.
/// What is blank is answered with `...`.
///
/// ```
/// use llm_layers::{ChatBody, LlmRequest, provider::Echo};
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let request = LlmRequest::new("any", ChatBody::builder().user("Is anybody there?").streaming().build()?);
/// assert_eq!(Echo::new().oneshot(request).await?.text().await?, "Is anybody there?");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo(());

impl Echo {
    /// An echo.
    pub const fn new() -> Self {
        Self(())
    }
}

impl Service<LlmRequest> for Echo {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        request.progress.mark_dispatched();
        let said = Said::to(&request);
        ready(Ok(match request.body.is_streaming() {
            false => LlmResponse::new(request.model, said.whole()),
            true => {
                LlmResponse::new(request.model, ChunkStream::new(futures_util::stream::iter(said.chunks())))
            }
        }))
    }
}

struct Said {
    model: ModelName,
    text: String,
    usage: Value,
}

impl Said {
    fn to(request: &LlmRequest) -> Self {
        let text = last_words(&request.body);
        let read = request.body.messages().map(|message| words(&message.text())).sum();
        let usage = TokenUsage::new(read, words(&text));
        // The spelling of usage is known in one place.
        let usage = StreamChunk::usage_only(usage).json::<Value>().map(|mut chunk| chunk["usage"].take());
        Self { model: request.model.clone(), text, usage: usage.unwrap_or_default() }
    }

    fn whole(&self) -> Completion {
        let message = json!({ "role": "assistant", "content": self.text });
        let choice = json!({ "index": 0, "message": message, "finish_reason": "stop" });
        let mut body = self.object("chat.completion", &json!([choice]));
        body["usage"] = self.usage.clone();
        Completion::parse(body.to_string()).expect("made here")
    }

    /// Made one by one, while they are read.
    fn chunks(self) -> impl Iterator<Item = Result<StreamChunk, Error>> + Send + 'static {
        let (mut at, mut step) = (0, Step::Role);
        std::iter::from_fn(move || {
            let (chunk, next) = match step {
                Step::Role => (self.delta(&json!({ "role": "assistant", "content": "" }), None), Step::Words),
                Step::Words => {
                    let rest = &self.text[at..];
                    let word = &rest[..word_end(rest)];
                    at += word.len();
                    let next = if at < self.text.len() { Step::Words } else { Step::Finish };
                    (self.delta(&json!({ "content": word }), None), next)
                }
                Step::Finish => (self.delta(&json!({}), Some("stop")), Step::Usage),
                Step::Usage => {
                    let mut body = self.object("chat.completion.chunk", &json!([]));
                    body["usage"] = self.usage.clone();
                    (chunk(&body), Step::End)
                }
                Step::End => (StreamChunk::end(), Step::Over),
                Step::Over => return None,
            };
            step = next;
            Some(Ok(chunk))
        })
    }

    fn delta(&self, delta: &Value, finish: Option<&str>) -> StreamChunk {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        chunk(&self.object("chat.completion.chunk", &json!([choice])))
    }

    fn object(&self, object: &str, choices: &Value) -> Value {
        // No id and no time: the same answer is the same bytes, and the edge fills them in.
        json!({ "object": object, "model": &*self.model, "choices": choices })
    }
}

#[derive(Clone, Copy)]
enum Step {
    Role,
    Words,
    Finish,
    Usage,
    End,
    Over,
}

fn chunk(body: &Value) -> StreamChunk {
    StreamChunk::parse(body.to_string()).expect("made here")
}

fn last_words(body: &ChatBody) -> String {
    let said = body.messages().filter(|message| message.role() == "user").last();
    let text = said.map(|message| message.text().into_owned()).unwrap_or_default();
    if text.trim().is_empty() { "...".to_owned() } else { text }
}

fn words(text: &str) -> u64 {
    text.split_whitespace().count() as u64
}

/// Where the first word of `text` ends, with the white space before it, or all of it.
fn word_end(text: &str) -> usize {
    let word = text.find(|c: char| !c.is_whitespace()).unwrap_or(text.len());
    text[word..].find(char::is_whitespace).map_or(text.len(), |end| word + end)
}
