use super::{ConfigError, OpenAiCompatible};
use crate::{BoxError, provider::Proxy};
use bytes::Bytes;
use http::{Uri, uri::Scheme};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{HttpConnector, proxy::Tunnel},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::net::TcpStream;
use tower_service::Service;

/// How long connecting may take, and a proxy's word that it has.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

/// The client that [`hyper_client`] makes: a service whose clones share one pool of connections.
pub type HyperClient = Client<HttpsConnector<HyperConnector>, Full<Bytes>>;

/// What a [`HyperClient`] connects by: itself, or through a [`Proxy`].
#[derive(Debug, Clone)]
pub struct HyperConnector(Route);

#[derive(Debug, Clone)]
enum Route {
    Direct(HttpConnector),
    Tunnel(Tunnel<HttpConnector>),
}

/// A hyper client with rustls, for HTTP/1.1.
///
/// Calls that are made at once have a connection each. By HTTP/2 they would share one: a reader that takes nothing of its
/// answer would hold up all others once the connection's window is full, and what exceeds the server's bound of
/// concurrent streams, often a hundred, would wait unseen.
///
/// Certificates are checked against Mozilla's roots. Connecting takes ten seconds at most; a connection that
/// nobody uses is closed after a minute and a half, one whose other end has vanished is noticed. Plain
/// `http://` works too, for servers nearby. It follows no redirect, and knows no proxy.
pub fn hyper_client() -> HyperClient {
    client(mozillas(), None)
}

/// As [`hyper_client`], and makes all connections through `proxy`, by `CONNECT`: certificates are the provider's, and checked as
/// ever. Trusts the certificates in `pem` besides, if there is any.
///
/// # Errors
///
/// [`ConfigError::Certificate`], as for [`hyper_client_trusting`].
pub fn hyper_client_through(proxy: &Proxy, pem: Option<&[u8]>) -> Result<HyperClient, ConfigError> {
    let roots = pem.map_or_else(|| Ok(mozillas()), mozillas_and)?;
    Ok(client(roots, Some(proxy)))
}

/// As [`hyper_client`], and trusts the certificates in `pem` besides: those of an authority of your own, for providers within
/// your network.
///
/// # Errors
///
/// [`ConfigError::Certificate`]: there is none in it, or one that cannot be read.
pub fn hyper_client_trusting(pem: impl AsRef<[u8]>) -> Result<HyperClient, ConfigError> {
    Ok(client(mozillas_and(pem.as_ref())?, None))
}

fn mozillas_and(pem: &[u8]) -> Result<RootCertStore, ConfigError> {
    let (mut roots, mut count) = (mozillas(), 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| ConfigError::Certificate)?;
        roots.add(certificate).map_err(|_| ConfigError::Certificate)?;
        count += 1;
    }
    if count == 0 { Err(ConfigError::Certificate) } else { Ok(roots) }
}

fn mozillas() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

fn client(roots: RootCertStore, proxy: Option<&Proxy>) -> HyperClient {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of rustls's default versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECTED_WITHIN));
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().wrap_connector(
            HyperConnector(match proxy {
                Some(proxy) => Route::Tunnel(tunnel(proxy, tcp)),
                None => Route::Direct(tcp),
            }),
        );
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(90))
        .build(https)
}

fn tunnel(proxy: &Proxy, tcp: HttpConnector) -> Tunnel<HttpConnector> {
    let tunnel = Tunnel::new(proxy.uri().clone(), tcp);
    match proxy.credentials() {
        Some(credentials) => tunnel.with_auth(credentials.clone()),
        None => tunnel,
    }
}

impl Service<Uri> for HyperConnector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.0 {
            Route::Direct(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Route::Tunnel(tunnel) => tunnel.poll_ready(cx).map_err(Into::into),
        }
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        match &mut self.0 {
            Route::Direct(tcp) => {
                let connecting = tcp.call(to);
                Box::pin(async { Ok(connecting.await?) })
            }
            Route::Tunnel(tunnel) => {
                let connecting = with_port(to).map(|to| tunnel.call(to));
                Box::pin(async { Ok(tokio::time::timeout(CONNECTED_WITHIN, connecting?).await??) })
            }
        }
    }
}

/// A tunnel without a port leads to that of TLS.
fn with_port(to: Uri) -> Result<Uri, http::Error> {
    match (to.scheme() == Some(&Scheme::HTTP), to.host(), to.port()) {
        (true, Some(host), None) => {
            Uri::builder().scheme("http").authority(format!("{host}:80")).path_and_query("/").build()
        }
        _ => Ok(to),
    }
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
