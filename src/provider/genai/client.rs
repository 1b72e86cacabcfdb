//! The HTTP client that genai is given.

use crate::provider::{Proxy, openai::ConfigError};
use hyper_rustls::ConfigBuilderExt as _;
use reqwest::redirect::Policy;
use rustls::ClientConfig;
use std::{sync::Arc, time::Duration};

pub(super) fn with(client: reqwest::Client) -> ::genai::Client {
    ::genai::Client::builder().with_reqwest(client).build().expect("a client that is given needs no building")
}

/// As the hyper client of the OpenAI-compatible leaf.
pub(super) fn reqwest() -> reqwest::Client {
    builder().build().expect("nothing of it depends on the machine")
}

pub(super) fn reqwest_through(proxy: &Proxy) -> Result<reqwest::Client, ConfigError> {
    let unusable = |_| ConfigError::Proxy { reason: "it is not a URL" };
    let mut through = reqwest::Proxy::all(proxy.uri().to_string()).map_err(unusable)?;
    if let Some(credentials) = proxy.credentials() {
        through = through.custom_http_auth(credentials.clone());
    }
    builder().proxy(through).build().map_err(unusable)
}

fn builder() -> reqwest::ClientBuilder {
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of rustls's default versions")
        .with_webpki_roots()
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(Policy::none())
        .no_proxy()
        // A small answer could unpack into a large one, and a stream would wait for its packer.
        .no_gzip()
        .connect_timeout(Duration::from_secs(10))
        .tcp_keepalive(Duration::from_secs(60))
        .pool_idle_timeout(Duration::from_secs(90))
        .http1_only()
}
