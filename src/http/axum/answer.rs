use super::{ErrorResponse, Events, error::write_request_id};
use crate::{
    ChunkStream, Error, LlmResponse, ResponseBody,
    http::{Asked, FillIn, into_chunks, rate_limit_headers},
};
use axum_core::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use std::time::Duration;

/// Responds with an answer, or with why there is none.
///
/// A whole answer is JSON, and server-sent [`Events`] to a caller who asked for a stream; a stream is
/// always events.
#[derive(Debug)]
pub struct ChatAnswer {
    asked: Asked,
    result: Result<LlmResponse, Error>,
    keep_alive: Option<Duration>,
}

impl ChatAnswer {
    /// What the stack said to a request; ask what it [`Asked`] for before the stack takes it.
    pub const fn new(asked: Asked, result: Result<LlmResponse, Error>) -> Self {
        Self { asked, result, keep_alive: Some(Duration::from_secs(15)) }
    }

    /// How long a stream may be silent before a comment is sent; 15 seconds unless told, `None` for never.
    #[must_use]
    pub const fn with_keep_alive(mut self, silence: Option<Duration>) -> Self {
        self.keep_alive = silence;
        self
    }
}

impl IntoResponse for ChatAnswer {
    fn into_response(self) -> Response {
        let Self { asked, result, keep_alive } = self;
        let mut response = match result {
            Err(error) => ErrorResponse::from(error).into_response(),
            Ok(answer) => {
                let limits = answer.quota.as_ref().map(rate_limit_headers);
                let mut fill = FillIn::new(answer.model).with_choices(asked.choices());
                let (content_type, body) = match answer.body {
                    ResponseBody::Complete(completion) if !asked.is_streaming() => {
                        ("application/json", Body::from(fill.completion(&completion)))
                    }
                    body => {
                        let events = Events::new(into_stream(body), fill)
                            .with_usage(asked.wants_stream_usage())
                            .with_keep_alive(keep_alive);
                        ("text/event-stream", Body::new(events))
                    }
                };
                let mut response = respond(content_type, body);
                response.headers_mut().extend(limits.into_iter().flatten());
                response
            }
        };
        if let Some(id) = asked.request_id() {
            write_request_id(response.headers_mut(), id);
        }
        response
    }
}

fn respond(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if content_type == "text/event-stream" {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    response
}

fn into_stream(body: ResponseBody) -> ChunkStream {
    match body {
        ResponseBody::Stream(chunks) => chunks,
        ResponseBody::Complete(completion) => {
            let chunks = into_chunks(&completion).into_iter().map(Ok);
            ChunkStream::new(futures_util::stream::iter(chunks))
        }
    }
}
