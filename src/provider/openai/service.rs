use super::{
    endpoint::{ConfigError, Endpoint},
    future::{Again, ResponseFuture},
    origin::Origin,
    wire,
};
use crate::{
    BoxError, Error, LlmRequest, LlmResponse, ModelName, provider::dispatch::Asked, providers::Deployment,
};
use bytes::Bytes;
use http_body::Body;
use http_body_util::Full;
use std::{
    borrow::Cow,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// A provider with OpenAI's chat completions API, over the HTTP service `H`.
///
/// Sends [`LlmRequest::model`] as it arrives here: [`Providers`](crate::providers::Providers) has taken the
/// provider's name off. Cloning costs what cloning `H` costs, and one reference count; a call for a stream clones `H` as well.
///
/// The [module docs](super) have an example that needs no network.
#[derive(Clone)]
pub struct OpenAiCompatible<H> {
    http: H,
    endpoint: Arc<Endpoint>,
}

impl<H> OpenAiCompatible<H> {
    /// Asks at `base_url`, such as `https://api.openai.com/v1`; its query is kept (Azure's `api-version`).
    ///
    /// # Errors
    ///
    /// A URL that is none, is not `http` or `https`, or carries a user or a password.
    pub fn new(http: H, base_url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Ok(Self { http, endpoint: Arc::new(Endpoint::new(base_url.as_ref(), "/chat/completions")?) })
    }

    /// Names the provider in errors; its host unless told.
    #[must_use]
    pub fn with_provider_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.endpoint().provider = name.into();
        self
    }

    /// Sends `key` as a bearer token.
    ///
    /// # Errors
    ///
    /// A key that is empty, or that no header can carry: one read from a file may end in a newline.
    pub fn with_api_key(mut self, key: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.endpoint().set_api_key(key.as_ref())?;
        Ok(self)
    }

    /// Sends a header with each request, such as Azure's `api-key`; never shown by `Debug`.
    ///
    /// # Errors
    ///
    /// A name or a value that no header can have.
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Result<Self, ConfigError> {
        self.endpoint().set_header(name.as_ref(), value.as_ref())?;
        Ok(self)
    }

    /// Bounds a whole answer; 32 MiB unless told. A larger one is [`TooLarge`](crate::ErrorClass::TooLarge).
    #[must_use]
    pub fn with_max_answer_bytes(mut self, bytes: usize) -> Self {
        self.endpoint().max_answer_bytes = bytes;
        self
    }

    /// Bounds one event of a stream, with the comments before it; 8 MiB unless told. A larger one is
    /// [`TooLarge`](crate::ErrorClass::TooLarge).
    #[must_use]
    pub fn with_max_event_bytes(mut self, bytes: usize) -> Self {
        self.endpoint().max_event_bytes = bytes;
        self
    }

    /// Sends the bound of an answer under this member, `max_completion_tokens` or `max_tokens`, also where a request has it
    /// under the other: OpenAI's newer models refuse the older name, and other servers do not know the newer one. A request
    /// that has both is sent as it is.
    #[must_use]
    pub fn with_output_member(mut self, member: impl Into<Cow<'static, str>>) -> Self {
        self.endpoint().output_member = Some(member.into());
        self
    }

    /// Says whether a stream is asked for its usage, by `stream_options.include_usage`, where the caller does not ask: true
    /// unless told, but at Mistral's own API, which tells usage unasked. A server that refuses a member that the caller did not
    /// send is asked once more without it; `false` spares it the first request. What is not told is estimated.
    #[must_use]
    pub fn with_stream_usage(mut self, asks: bool) -> Self {
        self.endpoint().stream_usage = asks;
        self
    }

    /// Says whether thoughts of earlier turns are sent, as `reasoning_content` of their messages, that an edge has put there for
    /// a caller of [another dialect](crate::Dispensable): true unless told at DeepSeek, Moonshot, Z.ai, Xiaomi and OpenRouter,
    /// whose models go on from them or refuse to go on without, and false elsewhere, for many refuse the member. What a caller
    /// of OpenAI's dialect sends is sent either way.
    #[must_use]
    pub fn with_returned_thoughts(mut self, returned: bool) -> Self {
        self.endpoint().returned_thoughts = returned;
        self
    }

    /// Sends `traceparent` and `tracestate` with each request, for providers that are yours: a model server, another
    /// gateway. What is sent is what is current when the call is made, by the program's global propagator; without one,
    /// nothing. Baggage is never sent.
    #[cfg(feature = "otel")]
    #[must_use]
    pub fn with_trace_headers(mut self) -> Self {
        self.endpoint().trace_headers = true;
        self
    }

    /// The provider's name, as errors give it.
    pub fn provider_name(&self) -> &str {
        &self.endpoint.provider
    }

    /// The host that is asked, an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// The port that is asked, the scheme's own if the URL names none.
    pub fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// A deployment for [`Providers`](crate::providers::Providers) that tells its address, and marks for itself
    /// when bytes go out.
    pub fn into_deployment(self) -> Deployment<Self> {
        let (host, port) = (self.host().to_owned(), self.port());
        Deployment::new(self).with_address(host, port).marking_dispatch()
    }

    /// The HTTP service.
    pub const fn get_ref(&self) -> &H {
        &self.http
    }

    /// The HTTP service.
    pub fn into_inner(self) -> H {
        self.http
    }

    fn endpoint(&mut self) -> &mut Endpoint {
        Arc::make_mut(&mut self.endpoint)
    }
}

impl<H, B> Service<LlmRequest> for OpenAiCompatible<H>
where
    H: Service<http::Request<Full<Bytes>>, Response = http::Response<B>> + Clone,
    H::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture<H, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.http.poll_ready(cx).map_err(|error| {
            // Nobody has asked for a model yet.
            Origin::new(Arc::clone(&self.endpoint), ModelName::from("")).gone(error.into())
        })
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        let http_request = wire::request(&self.endpoint, &request, self.endpoint.stream_usage);
        let origin = Origin::new(Arc::clone(&self.endpoint), request.model.clone());
        let streaming = request.body.is_streaming();
        let asked = Asked::new(&request.progress);
        request.progress.mark_dispatched();
        let again = wire::adds_options(&self.endpoint, &request.body)
            .then(|| Again { http: self.http.clone(), request });
        ResponseFuture::new(self.http.call(http_request), origin, streaming, again, asked)
    }
}

impl<H> fmt::Debug for OpenAiCompatible<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAiCompatible")
            .field("provider", &self.endpoint.provider)
            .field("host", &self.endpoint.host)
            .field("port", &self.endpoint.port)
            .finish_non_exhaustive()
    }
}
