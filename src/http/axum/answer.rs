use super::{ErrorResponse, Events, error::write_request_id};
use crate::{
    Error, LlmRequest, LlmResponse, ResponseBody,
    http::{
        Asked, FillIn, age_seconds,
        anthropic::{self, MessageEvents},
        cache_status_of, into_stream, rate_limit_headers, write_decisions,
    },
    usage::estimate,
};
use axum_core::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use std::time::Duration;

/// RFC 9211.
const CACHE_STATUS: header::HeaderName = header::HeaderName::from_static("cache-status");

/// Responds with an answer, or with why there is none.
///
/// A whole answer is JSON, and server-sent [`Events`] to a caller who asked for a stream; a stream is
/// always events.
#[derive(Debug)]
pub struct ChatAnswer {
    asked: Asked,
    result: Result<LlmResponse, Error>,
    keep_alive: Option<Duration>,
    shows_decisions: bool,
}

impl ChatAnswer {
    /// What the stack said to a request; ask what it [`Asked`] for before the stack takes it.
    pub const fn new(asked: Asked, result: Result<LlmResponse, Error>) -> Self {
        Self { asked, result, keep_alive: Some(Duration::from_secs(15)), shows_decisions: false }
    }

    /// How long a stream may be silent before a comment is sent; 15 seconds unless told, `None` for never.
    #[must_use]
    pub const fn with_keep_alive(mut self, silence: Option<Duration>) -> Self {
        self.keep_alive = silence;
        self
    }

    /// Shows in headers how the answer came to be: see [`write_decisions`]. What the request has
    /// [kept](crate::LlmRequest::keep_decisions) is among it.
    #[must_use]
    pub const fn with_decisions(mut self, shown: bool) -> Self {
        self.shows_decisions = shown;
        self
    }

    fn respond(self, dialect: Dialect) -> Response {
        let Self { asked, result, keep_alive, shows_decisions } = self;
        let record = shows_decisions.then(|| match &result {
            Ok(answer) => answer.decision_record(),
            Err(error) => error.decision_record(),
        });
        let mut response = match result {
            Ok(answer) => {
                let limits = answer.quota.as_ref().map(rate_limit_headers);
                let (age, cache) = (age_seconds(answer.cache), cache_status_of(&answer));
                let mut response = dialect.answer(&asked, answer, keep_alive);
                let headers = response.headers_mut();
                headers.extend(limits.into_iter().flatten());
                headers.extend(cache.map(|said| (CACHE_STATUS, said)));
                headers.extend(age.map(|age| (header::AGE, age.into())));
                response
            }
            Err(error) => dialect.error(error),
        };
        if let Some(record) = record {
            write_decisions(&record, response.headers_mut());
        }
        if let Some(id) = asked.request_id() {
            write_request_id(response.headers_mut(), id);
        }
        response
    }
}

impl IntoResponse for ChatAnswer {
    fn into_response(self) -> Response {
        self.respond(Dialect::OpenAi)
    }
}

/// Responds with an answer as a message of Anthropic's Messages API, or with why there is none.
///
/// In everything else as [`ChatAnswer`].
#[derive(Debug)]
pub struct MessagesAnswer(ChatAnswer);

impl MessagesAnswer {
    /// What the stack said to a request; ask what it [`Asked`] for before the stack takes it.
    pub const fn new(asked: Asked, result: Result<LlmResponse, Error>) -> Self {
        Self(ChatAnswer::new(asked, result))
    }

    /// As [`ChatAnswer::with_keep_alive`].
    #[must_use]
    pub const fn with_keep_alive(mut self, silence: Option<Duration>) -> Self {
        self.0.keep_alive = silence;
        self
    }

    /// As [`ChatAnswer::with_decisions`].
    #[must_use]
    pub const fn with_decisions(mut self, shown: bool) -> Self {
        self.0.shows_decisions = shown;
        self
    }
}

impl IntoResponse for MessagesAnswer {
    fn into_response(self) -> Response {
        self.0.respond(Dialect::Anthropic)
    }
}

/// Responds with how many tokens the prompt of a request has: what Anthropic's clients ask before they send it.
#[derive(Debug)]
pub struct TokenCount {
    tokens: u64,
    request_id: Option<Box<str>>,
}

impl TokenCount {
    /// Counts by [`input_tokens`](anthropic::input_tokens), on a thread where it may take its time: it goes on when nobody waits for it
    /// any more, and `held`, what bounds such requests, is dropped when it has ended.
    pub async fn of(request: LlmRequest, held: impl Send + 'static) -> Self {
        let request_id = request.context.request_id().map(Into::into);
        let estimated = estimate(request.body.input_bytes() as u64);
        let count = move || {
            let tokens = anthropic::input_tokens(&request);
            drop(request);
            drop(held);
            tokens
        };
        let counted = tokio::task::spawn_blocking(count).await;
        Self { tokens: counted.unwrap_or(estimated.max(1)), request_id }
    }
}

impl IntoResponse for TokenCount {
    fn into_response(self) -> Response {
        let mut response = respond("application/json", Body::from(anthropic::token_count(self.tokens)));
        if let Some(id) = &self.request_id {
            write_request_id(response.headers_mut(), id);
        }
        response
    }
}

/// What an answer is written in.
#[derive(Clone, Copy)]
enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    fn error(self, error: Error) -> Response {
        match self {
            Self::OpenAi => ErrorResponse::from(error).into_response(),
            Self::Anthropic => ErrorResponse::of_messages(error).into_response(),
        }
    }

    fn answer(self, asked: &Asked, answer: LlmResponse, keep_alive: Option<Duration>) -> Response {
        let LlmResponse { model, body, .. } = answer;
        let events = |events: Events| Body::new(events.with_keep_alive(keep_alive));
        let (content_type, body) = match (self, body) {
            (Self::OpenAi, ResponseBody::Complete(completion)) if !asked.is_streaming() => {
                let json = FillIn::new(model).with_choices(asked.choices()).completion(&completion);
                ("application/json", Body::from(json))
            }
            (Self::Anthropic, ResponseBody::Complete(completion)) if !asked.is_streaming() => (
                "application/json",
                Body::from(anthropic::message_naming(&completion, &model, asked.tool_names())),
            ),
            (Self::OpenAi, body) => {
                let fill = FillIn::new(model).with_choices(asked.choices());
                let chunks = Events::new(into_stream(body), fill).with_usage(asked.wants_stream_usage());
                ("text/event-stream", events(chunks))
            }
            (Self::Anthropic, body) => {
                let chunks = Events::of_message(
                    into_stream(body),
                    MessageEvents::new(model).with_tool_names(asked.tool_names().clone()),
                );
                ("text/event-stream", events(chunks))
            }
        };
        respond(content_type, body)
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
