//! Providers over TLS: who is who, before anything is said.

#[path = "../support/tls.rs"]
mod certificates;

use crate::canned::*;
use certificates::{Authority, Certificate};
use llm_layers::{
    Error, ErrorClass, LlmResponse,
    provider::openai::{ConfigError, HyperClient, OpenAiCompatible, hyper_client, hyper_client_trusting},
};
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

#[test]
fn what_is_no_certificate_is_refused_and_not_shown() {
    for pem in ["", "sk-secret", "-----BEGIN CERTIFICATE-----\nsk-secret\n-----END CERTIFICATE-----\n"] {
        let error = hyper_client_trusting(pem).unwrap_err();
        assert_eq!(error, ConfigError::Certificate);
        assert!(!format!("{error:?} {error}").contains("sk-secret"));
    }
}
