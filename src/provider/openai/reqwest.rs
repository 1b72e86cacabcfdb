use super::{ConfigError, OpenAiCompatible};
use bytes::Bytes;
use http_body_util::Full;
use pin_project::pin_project;
use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// A [`reqwest::Client`] as a service of [`http::Request`]s.
///
/// Build the client with `redirect(reqwest::redirect::Policy::none())`: followed to another host, a request
/// would take its prompt there, and each header but `authorization`. TLS is what the features of your own
/// `reqwest` say it is. The feature `genai` of this crate turns on its `rustls-no-provider`: a program that builds clients of its own
/// then installs a provider of rustls first, or turns on `rustls` of its own `reqwest`.
#[derive(Debug, Clone)]
pub struct ReqwestClient(pub reqwest::Client);

/// Response future of [`ReqwestClient`].
#[pin_project]
pub struct ReqwestFuture(#[pin] State);

#[pin_project(project = StateProj)]
enum State {
    Asking(#[pin] <reqwest::Client as Service<reqwest::Request>>::Future),
    /// `None` once it was given out.
    Invalid(Option<reqwest::Error>),
}

impl Service<http::Request<Full<Bytes>>> for ReqwestClient {
    type Response = http::Response<reqwest::Body>;
    type Error = reqwest::Error;
    type Future = ReqwestFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx).map_err(reqwest::Error::without_url)
    }

    fn call(&mut self, request: http::Request<Full<Bytes>>) -> Self::Future {
        let request = request.map(reqwest::Body::wrap);
        ReqwestFuture(match reqwest::Request::try_from(request) {
            Ok(request) => State::Asking(self.0.call(request)),
            Err(error) => State::Invalid(Some(error)),
        })
    }
}

impl Future for ReqwestFuture {
    type Output = Result<http::Response<reqwest::Body>, reqwest::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match self.project().0.project() {
            StateProj::Asking(future) => ready!(future.poll(cx)).map(Into::into),
            StateProj::Invalid(error) => Err(error.take().expect("a future is not polled after its end")),
        };
        // The URL may carry a key.
        Poll::Ready(result.map_err(reqwest::Error::without_url))
    }
}

impl fmt::Debug for ReqwestFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReqwestFuture").finish_non_exhaustive()
    }
}

impl OpenAiCompatible<ReqwestClient> {
    /// Asks at `base_url` with `client`; see [`ReqwestClient`] for how to build one.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn reqwest(client: reqwest::Client, base_url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::new(ReqwestClient(client), base_url)
    }
}
