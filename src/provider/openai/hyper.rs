use super::{ConfigError, OpenAiCompatible};
use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{sync::Arc, time::Duration};

/// The client that [`hyper_client`] makes: a service whose clones share one pool of connections.
pub type HyperClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A hyper client with rustls, for HTTP/1.1.
///
/// Calls that are made at once have a connection each. By HTTP/2 they would share one: a reader that takes nothing of its
/// answer would hold up all others once the connection's window is full, and what exceeds the server's bound of
/// concurrent streams, often a hundred, would wait unseen.
///
/// Certificates are checked against Mozilla's roots. Connecting takes ten seconds at most; a connection that
/// nobody uses is closed after a minute and a half, one whose other end has vanished is noticed. Plain
/// `http://` works too, for servers nearby. It follows no redirect.
pub fn hyper_client() -> HyperClient {
    client(mozillas())
}

/// As [`hyper_client`], and trusts the certificates in `pem` besides: those of an authority of your own, for providers within
/// your network.
///
/// # Errors
///
/// [`ConfigError::Certificate`]: there is none in it, or one that cannot be read.
pub fn hyper_client_trusting(pem: impl AsRef<[u8]>) -> Result<HyperClient, ConfigError> {
    let (mut roots, mut count) = (mozillas(), 0);
    for certificate in CertificateDer::pem_slice_iter(pem.as_ref()) {
        let certificate = certificate.map_err(|_| ConfigError::Certificate)?;
        roots.add(certificate).map_err(|_| ConfigError::Certificate)?;
        count += 1;
    }
    if count == 0 { Err(ConfigError::Certificate) } else { Ok(client(roots)) }
}

fn mozillas() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn client(roots: RootCertStore) -> HyperClient {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of rustls's default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(10)));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
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
