use super::request::discard;
use crate::{
    Error,
    http::{self as edge, anthropic},
};
use axum_core::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// An error in the shape that OpenAI's clients read, or Anthropic's.
///
/// The [`Error`] it is made from goes along in the response's extensions, for those who log, or the [`Refusal`].
#[derive(Debug, Clone)]
pub struct ErrorResponse {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    cause: Cause,
}

#[derive(Debug, Clone)]
enum Cause {
    Error(Error),
    Refusal(Refusal),
}

/// What an error of the host's own says, in the extensions of its response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The `type`, as OpenAI's clients read it.
    pub kind: Box<str>,
    /// The `code`, where there is one.
    pub code: Option<Box<str>>,
    /// The message.
    pub message: Box<str>,
}

impl ErrorResponse {
    /// An error of the host's own, such as a missing key or an unknown path.
    ///
    /// ```
    /// use http::StatusCode;
    /// use llm_layers::http::axum::ErrorResponse;
    ///
    /// let refused = ErrorResponse::custom(
    ///     StatusCode::UNAUTHORIZED,
    ///     "invalid_request_error",
    ///     Some("invalid_api_key"),
    ///     "the API key is missing or wrong",
    /// );
    /// ```
    pub fn custom(status: StatusCode, kind: &str, code: Option<&str>, message: &str) -> Self {
        let body = edge::error_json(message, kind, None, code);
        let refusal = Refusal { kind: kind.into(), code: code.map(Into::into), message: message.into() };
        Self { status, headers: HeaderMap::new(), body, cause: Cause::Refusal(refusal) }
    }

    /// The same in the shape that Anthropic's clients read, if `is_messages`.
    #[must_use]
    pub fn for_messages(mut self, is_messages: bool) -> Self {
        if is_messages {
            self.body = match &self.cause {
                Cause::Error(error) => anthropic::error_body(error),
                Cause::Refusal(refusal) => anthropic::error_json(self.status, &refusal.message),
            };
        }
        self
    }

    /// An error in the shape that Anthropic's clients read.
    pub fn of_messages(error: Error) -> Self {
        Self { body: anthropic::error_body(&error), ..Self::from(error) }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Repeats the id that the host gave the request.
    #[must_use]
    pub fn with_request_id(mut self, id: &str) -> Self {
        write_request_id(&mut self.headers, id);
        self
    }

    /// Refuses a request whose body nobody has read.
    ///
    /// Many clients read no answer before they have sent all, and would see nothing but a connection that is cut: up to `most`
    /// bytes are read and thrown away, if they come within five seconds. Where there is more, or the client waits for a word
    /// before it sends any (`Expect: 100-continue`), the answer says that the connection is closed, so that nobody asks again on it.
    ///
    /// ```
    /// use axum_core::{body::Body, extract::Request};
    /// use http::StatusCode;
    /// use llm_layers::http::axum::ErrorResponse;
    ///
    /// async fn not_found(request: Request) -> ErrorResponse {
    ///     let message = "there is nothing at this path";
    ///     let gone = ErrorResponse::custom(StatusCode::NOT_FOUND, "invalid_request_error", None, message);
    ///     gone.discarding(request, 1 << 20).await
    /// }
    /// ```
    pub async fn discarding(self, request: Request, most: usize) -> Self {
        let (parts, body) = request.into_parts();
        let is_read = discard(&parts.headers, body, most).await;
        self.closing_unless(is_read)
    }

    pub(super) fn closing_unless(self, is_read: bool) -> Self {
        match is_read {
            true => self,
            false => self.with_header(header::CONNECTION, HeaderValue::from_static("close")),
        }
    }

    pub(super) fn answering(self, request_id: Option<&str>) -> Self {
        match request_id {
            Some(id) => self.with_request_id(id),
            None => self,
        }
    }
}

impl From<Error> for ErrorResponse {
    fn from(error: Error) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(seconds) = edge::retry_after_seconds(&error) {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(retry) = edge::should_retry(&error) {
            let retry = HeaderValue::from_static(if retry { "true" } else { "false" });
            headers.insert("x-should-retry", retry);
        }
        headers.extend(edge::rate_limit_headers_of(&error).into_iter().flatten());
        let (status, body) = (edge::status(&error), edge::error_body(&error));
        Self { status, headers, body, cause: Cause::Error(error) }
    }
}

impl IntoResponse for ErrorResponse {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.cause {
            Cause::Error(error) => drop(response.extensions_mut().insert(error)),
            Cause::Refusal(refusal) => drop(response.extensions_mut().insert(refusal)),
        }
        response
    }
}

pub(super) fn write_request_id(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        // Each of the two families of clients shows its own.
        headers.insert(edge::REQUEST_ID, id.clone());
        headers.insert(edge::X_REQUEST_ID, id);
    }
}
