//! Through a proxy.

use crate::{common::*, proxy::Tunnels, server::Server};
use llm_layers::{
    ErrorClass,
    provider::{
        Proxy,
        genai::{Dialect, Genai},
    },
};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpListener};
use tower::ServiceExt as _;

#[tokio::test]
async fn a_provider_by_tls_is_asked_through_a_tunnel_and_has_to_be_who_it_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tunnels = Tunnels::open().await;
    let proxy = Proxy::new(tunnels.url("ada:s%40cret@")).unwrap();
    let leaf = Genai::new(Dialect::Anthropic, format!("https://{address}")).unwrap();
    let leaf = leaf.with_proxy(&proxy).unwrap().with_api_key("secret-key").unwrap();
    let asked = tokio::spawn(leaf.oneshot(hello(model(Dialect::Anthropic), false)));
    let head = tunnels.asked().await;
    let (mut provider, _) = listener.accept().await.unwrap();
    assert!(head.starts_with(&format!("connect {address} http/1.1\r\n")), "{head}");
    assert!(head.contains("\r\nproxy-authorization: basic ywrhonnay3jlda==\r\n"), "{head}");
    // A handshake, and no word in the clear.
    assert_eq!(provider.read_u8().await.unwrap(), 22);
    drop(provider);
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!((error.class(), error.dispatched()), (Some(ErrorClass::Connect), false), "{error:?}");
    assert!(!format!("{error:?} {:?}", std::error::Error::source(&error)).contains("cret"));
}

#[tokio::test]
async fn a_provider_in_the_clear_is_asked_by_way_of_the_proxy() {
    let body = json!({ "type": "message", "role": "assistant", "content": [{ "type": "text", "text": "hi" }], "stop_reason": "end_turn", "usage": { "input_tokens": 1, "output_tokens": 1 } });
    let mut proxy = Server::playing([whole(200, "", &body.to_string())]).await;
    let url = proxy.url.strip_suffix("/v1").unwrap().replace("http://", "http://ada:secret@");
    let leaf = Genai::new(Dialect::Anthropic, "http://llm.example").unwrap();
    let leaf = leaf.with_proxy(&Proxy::new(url).unwrap()).unwrap().with_api_key("secret-key").unwrap();
    let answer = leaf.oneshot(hello(model(Dialect::Anthropic), false)).await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "hi");
    let head = proxy.asked().await.head;
    assert!(head.starts_with("post http://llm.example/v1/messages http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nproxy-authorization: basic "), "{head}");
}
