use super::{ConfigError, OpenAiCompatible};
use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use std::time::Duration;

/// The client that [`hyper_client`] makes: a service whose clones share one pool of connections.
pub type HyperClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A hyper client with rustls, for HTTP/1.1 and HTTP/2.
///
/// Certificates are checked against Mozilla's roots. Connecting takes ten seconds at most; a connection that
/// nobody uses is closed after a minute and a half, one whose other end has vanished is noticed. Plain
/// `http://` works too, for servers nearby. It follows no redirect.
pub fn hyper_client() -> HyperClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let https = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .expect("ring has the suites of rustls's default versions")
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .http2_keep_alive_interval(Duration::from_secs(20))
        .http2_keep_alive_timeout(Duration::from_secs(10))
        .build(https)
}

impl OpenAiCompatible<HyperClient> {
    /// Asks at `base_url` with a [`hyper_client`] of its own.
    ///
    /// ```
    /// use llm_layers::provider::openai::OpenAiCompatible;
    ///
    /// # fn main() -> Result<(), llm_layers::provider::openai::ConfigError> {
    /// let provider = OpenAiCompatible::hyper("https://api.openai.com/v1")?.with_api_key("sk-1234")?;
    /// assert_eq!((provider.host(), provider.port()), ("api.openai.com", 443));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn hyper(base_url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::new(hyper_client(), base_url)
    }
}
