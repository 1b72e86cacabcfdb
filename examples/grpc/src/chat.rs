//! The service: finds out who asks, translates what is asked, calls the stack, and translates the answer back.

use crate::{
    answer::{self, Chunks},
    request,
    xai::{self, chat_server::Chat},
};
use blake3::Hash;
use llm_layers::{
    BodyLimits, Error, LlmRequest, LlmResponse, RequestContext, StreamChunk,
    http::tonic::{Messages, bearer, context, write_head, write_request_id},
};
use std::collections::HashMap;
use tonic::{Extensions, Request, Response, Status, metadata::MetadataMap};
use tower::{ServiceExt as _, util::BoxCloneSyncService};

/// All layers as one service.
pub(crate) type Stack = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

/// Who has which key, by the keys' hashes, so that the time it takes tells nothing about a key. `None`: anybody may ask, as
/// nobody in particular.
pub(crate) type Keys = Option<HashMap<Hash, RequestContext>>;

pub(crate) struct Service {
    pub(crate) stack: Stack,
    pub(crate) keys: Keys,
    pub(crate) limits: BodyLimits,
}

type Translate = Box<dyn FnMut(&StreamChunk) -> Result<Option<xai::GetChatCompletionChunk>, Error> + Send>;

#[tonic::async_trait]
impl Chat for Service {
    type GetCompletionChunkStream = Messages<Translate>;

    async fn get_completion(
        &self,
        request: Request<xai::GetCompletionsRequest>,
    ) -> Result<Response<xai::GetChatCompletionResponse>, Status> {
        let (context, asked) = self.identify(request)?;
        let answer = async {
            let (answer, choices) = self.ask(&asked, false, &context).await?;
            let head = head(&answer);
            Ok((head, answer::whole(answer, choices).await?))
        };
        respond(&context, answer.await)
    }

    async fn get_completion_chunk(
        &self,
        request: Request<xai::GetCompletionsRequest>,
    ) -> Result<Response<Self::GetCompletionChunkStream>, Status> {
        let (context, asked) = self.identify(request)?;
        let answer = self.ask(&asked, true, &context).await.map(|(answer, choices)| {
            let head = head(&answer);
            let mut chunks = Chunks::new(&answer.model, choices);
            let translate: Translate = Box::new(move |chunk| chunks.next(chunk));
            (head, Messages::new(answer.body, translate).with_deadline(context.deadline()))
        });
        respond(&context, answer)
    }
}

impl Service {
    fn identify<T>(&self, request: Request<T>) -> Result<(RequestContext, T), Status> {
        let (metadata, _, asked) = request.into_parts();
        let who = match &self.keys {
            None => Some(RequestContext::new()),
            Some(keys) => bearer(&metadata).and_then(|key| keys.get(&blake3::hash(key)).cloned()),
        };
        let message = "the API key is missing or wrong; send it as `authorization: Bearer KEY`";
        let mut context = context(&metadata, who.ok_or_else(|| Status::unauthenticated(message))?);
        if context.request_id().is_none() {
            context = context.with_request_id(format!("{:032x}", fastrand::u128(..)));
        }
        Ok((context, asked))
    }

    /// The answer, and how many choices it was asked for.
    async fn ask(
        &self,
        asked: &xai::GetCompletionsRequest,
        streaming: bool,
        context: &RequestContext,
    ) -> Result<(LlmResponse, u64), Error> {
        let request = request::read(asked, streaming, &self.limits)?.with_context(context.clone());
        let choices = request.body.n().unwrap_or(1);
        Ok((self.stack.clone().oneshot(request).await?, choices))
    }
}

fn head(answer: &LlmResponse) -> MetadataMap {
    let mut head = MetadataMap::new();
    write_head(answer, &mut head);
    head
}

fn respond<T>(
    context: &RequestContext,
    answer: Result<(MetadataMap, T), Error>,
) -> Result<Response<T>, Status> {
    let id = context.request_id().unwrap_or_default();
    match answer {
        Ok((mut head, message)) => {
            write_request_id(id, &mut head);
            Ok(Response::from_parts(head, message, Extensions::default()))
        }
        Err(error) => {
            let mut status = Status::from(error);
            write_request_id(id, status.metadata_mut());
            Err(status)
        }
    }
}
