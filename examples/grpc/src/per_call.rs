//! What is around each call: its id, who may make it, and how large its message may be and how late, and all messages together.

use crate::{
    chat::{Service, full},
    timely::Timely,
    xai::chat_server::ChatServer,
};
use llm_layers::{Error, InvalidReason, http::request_id};
use std::{
    convert::Infallible,
    future::ready,
    sync::Arc,
    task::{Context, Poll},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{
        BoxFuture,
        http::{HeaderValue, Request, Response},
    },
    metadata::MetadataMap,
    server::NamedService,
    service::AxumBody,
};

/// A server for each call, for that is when tonic is told how large a message may be, and the configuration may be another one by then.
#[derive(Clone)]
pub(crate) struct PerCall(Arc<Service>);

impl PerCall {
    pub(crate) fn new(service: Service) -> Self {
        Self(Arc::new(service))
    }
}

impl NamedService for PerCall {
    const NAME: &'static str = ChatServer::<Service>::NAME;
}

impl tower::Service<Request<Body>> for PerCall {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let id = match request_id(request.headers()) {
            Some(id) => id.to_owned(),
            None => format!("{:032x}", fastrand::u128(..)),
        };
        let id = HeaderValue::try_from(id).expect("visible ASCII");
        request.headers_mut().insert("x-request-id", id.clone());
        let (limit, within) = {
            let server = &self.0.handle.config().server;
            (server.max_body_bytes, server.body_timeout.0)
        };
        let mut request = request.map(AxumBody::new);
        let admitted = self.0.admit(&MetadataMap::from_headers(request.headers().clone()));
        let admitted = admitted.and_then(|admitted| {
            let held = self.0.messages.hold(&mut request, limit).map_err(|_| full())?;
            Ok((admitted, held))
        });
        let held = match admitted {
            Ok((admitted, held)) => {
                request.extensions_mut().insert(admitted);
                held
            }
            Err(status) => {
                let mut response = status.into_http();
                response.headers_mut().insert("x-request-id", id);
                return Box::pin(ready(Ok(response)));
            }
        };
        let request = request.map(|body| Body::new(Timely::new(body, within)));
        let mut server = ChatServer::from_arc(Arc::clone(&self.0)).max_decoding_message_size(limit);
        let answered = server.call(request);
        Box::pin(async move {
            let mut response = answered.await?;
            drop(held);
            // What tonic says of a message that is too large, and only it says so.
            let status = Status::from_header_map(response.headers());
            if status.is_some_and(|status| status.code() == Code::OutOfRange) {
                let error = Error::invalid_body(InvalidReason::TooLarge { limit });
                response = Status::from(error).into_http();
            }
            response.headers_mut().insert("x-request-id", id);
            Ok(response)
        })
    }
}
