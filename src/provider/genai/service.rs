use super::{Dialect, ResponseFuture, client};
use crate::{
    Error, LlmRequest, LlmResponse,
    provider::{
        Proxy,
        openai::{ConfigError, endpoint::Endpoint},
    },
    providers::Deployment,
};
use ::genai::resolver::AuthData;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// A provider that is spoken to in a [`Dialect`] of its own.
///
/// Sends [`LlmRequest::model`] as it arrives here: [`Providers`](crate::providers::Providers) has taken the
/// provider's name off. Dialect, address, key and headers are what they were set to; a request chooses a model and
/// nothing else. Cloning costs a few reference counts, and clones share one pool of connections.
#[derive(Clone)]
pub struct Genai {
    pub(super) client: ::genai::Client,
    pub(super) dialect: Dialect,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) key: AuthData,
}

impl Genai {
    /// Asks at `base_url`, such as the [default](Dialect::default_base_url) of the dialect. What stands there is what
    /// precedes `messages`, `models/…`, `model/…`, `chat` or `api/chat`; a URL of nothing but a host gets the version
    /// that its provider has: `https://api.anthropic.com` is `https://api.anthropic.com/v1`.
    ///
    /// # Errors
    ///
    /// A URL that is none, is not `http` or `https`, has a query, or carries a user or a password.
    pub fn new(dialect: Dialect, base_url: impl AsRef<str>) -> Result<Self, ConfigError> {
        let base_url = base_url.as_ref();
        let mut endpoint = Endpoint::new(base_url, "/")?;
        if endpoint.uri.query().is_some() {
            return Err(ConfigError::BaseUrl { reason: "it must not have a query" });
        }
        if endpoint.uri.path() == "/" {
            endpoint = Endpoint::new(base_url, dialect.default_path())?;
        }
        Ok(Self {
            client: client::with(client::reqwest()),
            dialect,
            endpoint: Arc::new(endpoint),
            key: AuthData::from_single(""),
        })
    }

    /// Asks by `client`; build it with `redirect(reqwest::redirect::Policy::none())`. Unless told, it is one with
    /// rustls that checks certificates against Mozilla's roots, follows no redirect, knows no proxy and connects within
    /// ten seconds.
    #[must_use]
    pub fn with_client(mut self, client: reqwest::Client) -> Self {
        self.client = client::with(client);
        self
    }

    /// Asks through `proxy`, by a client that is otherwise the one it has unless told: by `CONNECT`, and by `http://` as proxies are asked
    /// to pass on what they read.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Proxy`]: the client cannot use it.
    pub fn with_proxy(mut self, proxy: &Proxy) -> Result<Self, ConfigError> {
        self.client = client::with(client::reqwest_through(proxy)?);
        Ok(self)
    }

    /// Names the provider in errors; its host unless told.
    #[must_use]
    pub fn with_provider_name(mut self, name: impl Into<Arc<str>>) -> Self {
        Arc::make_mut(&mut self.endpoint).provider = name.into();
        self
    }

    /// Sends `key` where the dialect has it.
    ///
    /// # Errors
    ///
    /// A key that is empty, or that no header can carry: one read from a file may end in a newline.
    pub fn with_api_key(mut self, key: impl AsRef<str>) -> Result<Self, ConfigError> {
        let key = key.as_ref();
        // Checks it; the header itself is the dialect's business, but for Ollama, where genai has none.
        let endpoint = Arc::make_mut(&mut self.endpoint);
        endpoint.set_api_key(key)?;
        if self.dialect != Dialect::Ollama {
            endpoint.headers.remove(AUTHORIZATION);
        }
        self.key = AuthData::from_single(key);
        Ok(self)
    }

    /// Sends a header with each request, such as `anthropic-beta`; never shown by `Debug`.
    ///
    /// # Errors
    ///
    /// A name or a value that no header can have.
    pub fn with_header(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Result<Self, ConfigError> {
        Arc::make_mut(&mut self.endpoint).set_header(name.as_ref(), value.as_ref())?;
        Ok(self)
    }

    /// The dialect.
    pub const fn dialect(&self) -> Dialect {
        self.dialect
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

    /// What goes with each request, by the names that genai gives them: it sends two of a name in two spellings.
    pub(super) fn headers(&self, request: &LlmRequest) -> Vec<(String, String)> {
        let id = request.context.request_id().filter(|id| id.len() <= 256);
        let id = id.filter(|id| http::HeaderValue::from_str(id).is_ok());
        let id = id.map(|id| ("x-request-id".to_owned(), id.to_owned()));
        let own = self.endpoint.headers.iter().filter(|(name, _)| **name != CONTENT_TYPE);
        let own = own.filter_map(|(name, value)| {
            let capital = *name == AUTHORIZATION && matches!(self.dialect, Dialect::Cohere | Dialect::Vertex);
            let name = if capital { "Authorization" } else { name.as_str() };
            Some((name.to_owned(), value.to_str().ok()?.to_owned()))
        });
        id.into_iter().chain(own).collect()
    }
}

impl Service<LlmRequest> for Genai {
    type Response = LlmResponse;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        ResponseFuture::new(self.clone(), request)
    }
}

impl fmt::Debug for Genai {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Genai")
            .field("dialect", &self.dialect)
            .field("provider", &self.endpoint.provider)
            .field("host", &self.endpoint.host)
            .field("port", &self.endpoint.port)
            .finish_non_exhaustive()
    }
}
