//! The edge for [tonic](https://docs.rs/tonic): what a gRPC service of yours needs around the stack, whatever its contract.
//!
//! * Errors: an [`Error`](crate::Error) becomes a [`Status`](tonic::Status), so that `?` is enough in a handler: see [`status`].
//! * Who asks: [`bearer`] finds the key that you check; who it belongs to is yours to say. Where a stack's
//!   configuration has the keys (feature `config`), `identify` does both.
//! * How long: [`context`] makes the caller's `grpc-timeout` the deadline of the call.
//! * Answers: [`Messages`] makes a stream of your messages of an answer, and [`write_head`] tells in metadata what is
//!   known of it. [`WriteTimeout`] hangs up on a caller who takes nothing of it.
//!
//! A caller who goes away drops the handler or the stream, and with it the call: nothing has to be done for that.
//!
//! ```
//! use llm_layers::{ChatBody, Error, LlmRequest, LlmResponse, RequestContext, http::tonic::{Messages, bearer, context}};
//! use tonic::{Request, Response, Status};
//! use tower::{Service, ServiceExt};
//!
//! /// Answers a text with the pieces of another: what a handler of yours may look like.
//! async fn ask<S>(stack: S, request: Request<String>) -> Result<Response<impl Stream<Item = Result<String, Status>>>, Status>
//! where
//!     S: Service<LlmRequest, Response = LlmResponse, Error = Error>,
//! {
//!     let (metadata, _, text) = request.into_parts();
//!     if bearer(&metadata) != Some(b"the-key") {
//!         return Err(Status::unauthenticated("the API key is missing or wrong"));
//!     }
//!     let context = context(&metadata, RequestContext::new().with_user_id("ada"))?;
//!     let deadline = context.deadline();
//!     let request = LlmRequest::new("fast", ChatBody::builder().user(text).streaming().build()?);
//!     let answer = stack.oneshot(request.with_context(context)).await?;
//!     let pieces = Messages::new(answer.body, |chunk| Ok(Some(chunk.content().into_owned()).filter(|text| !text.is_empty())));
//!     Ok(Response::new(pieces.with_deadline(deadline)))
//! }
//! # use futures_core::Stream;
//! # use std::pin::pin;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Status> {
//! # let mut request = Request::new("Is anybody there?".to_owned());
//! # request.metadata_mut().insert("authorization", "Bearer the-key".parse().unwrap());
//! # let mut pieces = pin!(ask(llm_layers::provider::Echo::new(), request).await?.into_inner());
//! # let mut text = String::new();
//! # while let Some(piece) = std::future::poll_fn(|cx| pieces.as_mut().poll_next(cx)).await {
//! #     text += &piece?;
//! # }
//! # assert_eq!(text, "Is anybody there?");
//! # assert_eq!(ask(llm_layers::provider::Echo::new(), Request::new(text)).await.err().unwrap().code(), tonic::Code::Unauthenticated);
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "config")]
mod identify;
mod messages;
mod metadata;
mod status;
mod write_timeout;

#[cfg(feature = "config")]
pub use self::identify::identify;
pub use self::{
    messages::Messages,
    metadata::{bearer, context, timeout, write_head, write_request_id},
    status::{code, error_of, status},
    write_timeout::WriteTimeout,
};
