//! Providers over TLS: who is who, before anything is said.

#[path = "../support/tls.rs"]
mod certificates;
#[path = "../support/proxy.rs"]
mod proxy;

use crate::canned::*;
use certificates::{Authority, Certificate};
use llm_layers::{
    Error, ErrorClass, LlmResponse,
    provider::{
        Proxy,
        openai::{
            ConfigError, HyperClient, OpenAiCompatible, hyper_client, hyper_client_through,
            hyper_client_trusting,
        },
    },
};
use proxy::Tunnels;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

/// A provider with this certificate: its port, and how many bytes it was told in the clear, after a handshake.
async fn provider(certificate: &Certificate) -> (u16, Arc<AtomicUsize>) {
    let chain = vec![CertificateDer::from_pem_slice(certificate.pem.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
    // As most do. It answers in HTTP/1.1 alone: who is asked by HTTP/2 shares a connection with all others, which a slow
    // reader of theirs fills, and waits for a turn where there are many.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (acceptor, told) = (TlsAcceptor::from(Arc::new(config)), Arc::new(AtomicUsize::new(0)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::clone(&told);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, heard) = (acceptor.clone(), Arc::clone(&heard));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = vec![0; 64 << 10];
                let read = stream.read(&mut request).await.unwrap_or(0);
                heard.fetch_add(read, Ordering::SeqCst);
                let body = r#"{"choices":[{"index":0,"message":{"content":"hi"},"finish_reason":"stop"}]}"#;
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                let answer = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (port, told)
}

async fn ask(client: HyperClient, host: &str, port: u16) -> Result<LlmResponse, Error> {
    let leaf = OpenAiCompatible::new(client, format!("https://{host}:{port}/v1")).unwrap();
    leaf.with_api_key("sk-secret").unwrap().oneshot(whole()).await
}

#[tokio::test]
async fn a_provider_whose_certificate_is_believed_is_asked() {
    let authority = Authority::new();
    let (port, told) = provider(&authority.sign(&["localhost"])).await;
    let client = hyper_client_trusting(authority.pem()).unwrap();
    assert_eq!(ask(client, "localhost", port).await.unwrap().text().await.unwrap(), "hi");
    assert!(told.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_provider_that_is_not_who_it_says_is_told_nothing() {
    let (authority, other) = (Authority::new(), Authority::new());
    let good = authority.sign(&["localhost"]);
    let trusting = || hyper_client_trusting(authority.pem()).unwrap();
    for (why, certificate, client) in [
        ("signed by nobody that is known", &good, hyper_client()),
        ("signed by another authority", &other.sign(&["localhost"]), trusting()),
        ("of another name", &authority.sign(&["llm.example"]), trusting()),
        ("run out", &authority.sign_expired(&["localhost"]), trusting()),
    ] {
        let (port, told) = provider(certificate).await;
        let error = ask(client, "localhost", port).await.unwrap_err();
        assert_eq!(error.class(), Some(ErrorClass::Connect), "{why}: {error:?}");
        assert!(!error.dispatched() && error.is_retryable(), "{why}: another provider may be asked");
        assert_eq!(told.load(Ordering::SeqCst), 0, "{why}: neither the prompt nor the key");
        assert!(!format!("{error:?} {error}").contains("sk-secret"));
    }
    // It is good: what was refused was refused for the reason that is given.
    let (port, _) = provider(&good).await;
    ask(trusting(), "localhost", port).await.unwrap();
}

#[tokio::test]
async fn a_provider_behind_a_proxy_is_asked_through_it_and_has_to_be_who_it_says() {
    let authority = Authority::new();
    let (port, told) = provider(&authority.sign(&["localhost"])).await;
    let mut tunnels = Tunnels::open().await;
    let proxy = Proxy::new(tunnels.url("ada:s%40cret@")).unwrap();
    let trusting = hyper_client_through(&proxy, Some(authority.pem().as_bytes())).unwrap();
    assert_eq!(ask(trusting, "localhost", port).await.unwrap().text().await.unwrap(), "hi");
    let asked = tunnels.asked().await;
    assert!(asked.starts_with(&format!("connect localhost:{port} http/1.1\r\n")), "{asked}");
    // ada:s@cret
    assert!(asked.contains("\r\nproxy-authorization: basic ywrhonnay3jlda==\r\n"), "{asked}");
    let before = told.swap(0, Ordering::SeqCst);
    assert!(before > 0);

    let doubting = hyper_client_through(&proxy, None).unwrap();
    let error = ask(doubting, "localhost", port).await.unwrap_err();
    assert_eq!((error.class(), error.dispatched()), (Some(ErrorClass::Connect), false), "{error:?}");
    assert!(tunnels.asked().await.starts_with("connect localhost"));
    assert_eq!(told.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_away_is_a_provider_that_cannot_be_reached() {
    let away = Tunnels::open().await.url("ada:secret@");
    let (refusing, silent) = (Tunnels::refusing().await, Tunnels::silent().await);
    for url in [away, refusing.url("ada:secret@")] {
        let proxy = Proxy::new(url).unwrap();
        let error = ask(hyper_client_through(&proxy, None).unwrap(), "llm.example", 443).await.unwrap_err();
        assert_eq!((error.class(), error.dispatched()), (Some(ErrorClass::Connect), false), "{error:?}");
        assert!(!format!("{error:?} {error} {proxy:?}").contains("secret"));
    }
    let proxy = Proxy::new(silent.url("")).unwrap();
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let error = ask(hyper_client_through(&proxy, None).unwrap(), "llm.example", 443).await.unwrap_err();
    assert_eq!((error.class(), started.elapsed().as_secs()), (Some(ErrorClass::Connect), 10), "{error:?}");
}

#[tokio::test]
async fn what_is_asked_in_the_clear_goes_through_the_proxy_too() {
    for (host, expected) in [("llm.example", "llm.example:80"), ("llm.example:8080", "llm.example:8080")] {
        let mut proxied = Tunnels::refusing().await;
        let client = hyper_client_through(&Proxy::new(proxied.url("")).unwrap(), None).unwrap();
        let leaf = OpenAiCompatible::new(client, format!("http://{host}/v1")).unwrap();
        leaf.oneshot(whole()).await.unwrap_err();
        let asked = proxied.asked().await;
        assert!(asked.starts_with(&format!("connect {expected} http/1.1")), "{asked}");
    }
}

#[test]
fn what_is_no_certificate_is_refused_and_not_shown() {
    for pem in ["", "sk-secret", "-----BEGIN CERTIFICATE-----\nsk-secret\n-----END CERTIFICATE-----\n"] {
        let error = hyper_client_trusting(pem).unwrap_err();
        assert_eq!(error, ConfigError::Certificate);
        assert!(!format!("{error:?} {error}").contains("sk-secret"));
    }
}
