//! The service: finds out who asks, translates what is asked, calls the stack, and translates the answer back.

use crate::{
    answer::{self, Chunks},
    connection::Line,
    request,
    xai::{self, chat_server::Chat},
};
use llm_layers::{
    End, Error, LlmResponse, Observe, RequestContext, StreamChunk,
    http::{
        axum::BodyBudget,
        body_limits,
        tonic::{Messages, WriteTimeout, identify, write_head},
    },
    stack::{BoxService, Handle, KeyPermit},
};
use std::sync::Arc;
use tonic::{
    Code, Extensions, Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
};
use tower::ServiceExt as _;

pub(crate) struct Service {
    pub(crate) stack: BoxService,
    pub(crate) handle: Handle,
    /// Held by each call, until its answer has ended.
    pub(crate) line: Line,
    pub(crate) messages: BodyBudget,
}

/// Who asks, and his place among the calls of his key. In a request's extensions.
#[derive(Clone)]
pub(crate) struct Admitted {
    context: RequestContext,
    place: Place,
}

/// Extensions have to be cloned, and a permit is one.
#[derive(Clone)]
struct Place(#[expect(dead_code, reason = "it is held")] Arc<KeyPermit>);

impl Observe for Place {
    fn on_end(self, _: End<'_>) {}
}

type Translate = Box<dyn FnMut(&StreamChunk) -> Result<Option<xai::GetChatCompletionChunk>, Error> + Send>;

#[tonic::async_trait]
impl Chat for Service {
    type GetCompletionChunkStream = WriteTimeout<Translate>;

    async fn get_completion(
        &self,
        request: Request<xai::GetCompletionsRequest>,
    ) -> Result<Response<xai::GetChatCompletionResponse>, Status> {
        let (Admitted { context, place }, asked) = taken(request)?;
        let (answer, choices) = self.ask(&asked, false, &context, place).await?;
        let head = head(&answer);
        Ok(response(head, answer::whole(answer, choices).await?))
    }

    async fn get_completion_chunk(
        &self,
        request: Request<xai::GetCompletionsRequest>,
    ) -> Result<Response<Self::GetCompletionChunkStream>, Status> {
        let (Admitted { context, place }, asked) = taken(request)?;
        let (answer, choices) = self.ask(&asked, true, &context, place).await?;
        let head = head(&answer);
        let mut chunks = Chunks::new(&answer.model, choices);
        let translate: Translate = Box::new(move |chunk| chunks.next(chunk));
        let messages = Messages::new(answer.body, translate).with_deadline(context.deadline());
        let limit = self.handle.config().server.write_timeout.0;
        Ok(response(head, WriteTimeout::new(messages, limit)))
    }
}

impl Service {
    pub(crate) fn new(stack: BoxService, handle: Handle, line: Line) -> Self {
        let messages = BodyBudget::new(handle.config().server.max_buffered_bytes);
        Self { stack, handle, line, messages }
    }

    /// Before the message has come: of those who may not ask nothing is kept.
    pub(crate) fn admit(&self, metadata: &MetadataMap) -> Result<Admitted, Status> {
        let (context, caller) = identify(&self.handle, metadata)?;
        let place = caller.admit().ok_or_else(too_many)?;
        Ok(Admitted { context, place: Place(Arc::new(place)) })
    }

    /// The answer, and how many choices it was asked for.
    async fn ask(
        &self,
        asked: &xai::GetCompletionsRequest,
        streaming: bool,
        context: &RequestContext,
        place: Place,
    ) -> Result<(LlmResponse, u64), Error> {
        let line = self.line.clone();
        let limits = body_limits(&self.handle.config().server);
        let request = request::read(asked, streaming, &limits)?.with_context(context.clone());
        let choices = request.body.n().unwrap_or(1);
        let answer = self.stack.clone().oneshot(request).await?;
        Ok((answer.observe(place).observe(line), choices))
    }
}

fn too_many() -> Status {
    exhausted("too many calls of this key are in flight")
}

pub(crate) fn full() -> Status {
    exhausted("too many messages are held in memory")
}

/// Places and memory are free again whenever an answer ends.
fn exhausted(what: &str) -> Status {
    let mut again = MetadataMap::new();
    again.insert("retry-after", MetadataValue::from_static("1"));
    again.insert("grpc-retry-pushback-ms", MetadataValue::from_static("1000"));
    Status::with_metadata(Code::ResourceExhausted, what, again)
}

fn taken<T>(request: Request<T>) -> Result<(Admitted, T), Status> {
    let (_, mut extensions, asked) = request.into_parts();
    let admitted = extensions.remove().ok_or_else(|| Status::internal("nobody was let in"))?;
    Ok((admitted, asked))
}

fn head(answer: &LlmResponse) -> MetadataMap {
    let mut head = MetadataMap::new();
    write_head(answer, &mut head);
    head
}

fn response<T>(head: MetadataMap, message: T) -> Response<T> {
    Response::from_parts(head, message, Extensions::default())
}
