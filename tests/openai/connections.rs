//! Over real connections, with both clients.

use crate::{
    canned::*,
    server::{Server, Step, part, send, stream_head},
};
use llm_layers::{
    Error, ErrorClass, LlmRequest, LlmResponse, ResponseBody,
    price::PriceBook,
    provider::openai::OpenAiCompatible,
    timeout::CallTimeoutLayer,
    usage::{MemorySink, UsageLayer},
};
use std::{
    future::{Ready, ready},
    time::Duration,
};
use tokio::{io::AsyncReadExt, time::Instant};
use tower::{Layer, ServiceBuilder, ServiceExt, retry, util::BoxCloneSyncService};

type Provider = BoxCloneSyncService<LlmRequest, LlmResponse, Error>;

fn clients(url: &str) -> [(&'static str, Provider); 2] {
    // With the feature `genai`, reqwest has TLS and does not choose whose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let reqwest = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    [
        ("hyper", Provider::new(OpenAiCompatible::hyper(url).unwrap())),
        ("reqwest", Provider::new(OpenAiCompatible::reqwest(reqwest, url).unwrap())),
    ]
}

fn json_head(length: usize) -> Step {
    send(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: r-1\r\ncontent-length: {length}\r\n\r\n"
    ))
}

async fn failing(script: Vec<Step>, request: LlmRequest, class: ErrorClass) {
    let server = Server::playing(script).await;
    for (name, provider) in clients(&server.url) {
        let error = failure(provider, request.clone()).await;
        assert_eq!(error.class(), Some(class), "{name}: {error:?}");
        assert_eq!(error.dispatched(), class != ErrorClass::Connect, "{name}");
        assert_eq!(&*facts(&error).provider, "127.0.0.1");
        assert!(!format!("{error} {error:?}").contains("/v1"), "{name} shows the URL: {error:?}");
    }
}

#[tokio::test]
async fn both_clients_ask_and_are_answered_in_one_piece_and_in_many() {
    let mut server = Server::playing([json_head(ANSWER.len()), send(ANSWER)]).await;
    for (name, provider) in clients(&server.url) {
        let response = provider.oneshot(whole()).await.unwrap();
        assert_eq!(response.provider_request_id.as_deref(), Some("r-1"));
        assert_eq!(response.text().await.unwrap(), "Hello", "{name}");
        let asked = server.asked().await;
        assert!(asked.head.starts_with("post /v1/chat/completions http/1.1\r\n"), "{}", asked.head);
        assert!(asked.head.contains("\r\ncontent-type: application/json"));
        assert_eq!(asked.body, r#"{"model":"m-1","messages":[{"role":"user","content":"hello"}]}"#);
    }
    let events = [HELLO, STOP, USAGE, "[DONE]"].map(|event| part(&sse(&[event])));
    let server = Server::playing([stream_head()].into_iter().chain(events).chain([send("0\r\n\r\n")])).await;
    for (name, provider) in clients(&server.url) {
        let (chunks, error) = chunks(provider.oneshot(streaming()).await.unwrap()).await;
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(
            chunks.iter().map(|c| &c.data()[..]).collect::<Vec<_>>(),
            [HELLO, STOP, USAGE, ""].map(str::as_bytes)
        );
    }
}

#[tokio::test]
async fn a_retry_that_meets_nobody_any_more_is_recorded_if_the_first_try_was_sent() {
    for which in [0, 1] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (name, provider) =
            clients(&format!("http://{}", listener.local_addr().unwrap())).into_iter().nth(which).unwrap();
        let dies = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        });
        let sink = MemorySink::new(8);
        let service = ServiceBuilder::new()
            .layer(UsageLayer::new(sink.clone(), PriceBook::new()))
            .retry(Once(false))
            .service(provider);
        let error = failure(service, whole()).await;
        dies.await.unwrap();
        assert_eq!(
            (error.class(), error.dispatched()),
            (Some(ErrorClass::Connect), true),
            "{name}: {error:?}"
        );
        let events = sink.take();
        assert_eq!(events.len(), 1, "{name}");
        assert!(events[0].usage.input_tokens > Some(0), "{name}: {:?}", events[0].usage);
    }
}

/// Tries once more.
#[derive(Clone)]
struct Once(bool);

impl retry::Policy<LlmRequest, LlmResponse, Error> for Once {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut LlmRequest, result: &mut Result<LlmResponse, Error>) -> Option<Ready<()>> {
        (result.is_err() && !std::mem::replace(&mut self.0, true)).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &LlmRequest) -> Option<LlmRequest> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn nobody_listening_is_connect_and_nothing_was_dispatched() {
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    for (name, provider) in clients(&url) {
        let error = failure(provider, whole()).await;
        assert_eq!(error.class(), Some(ErrorClass::Connect), "{name}: {error:?}");
        assert!(!error.dispatched() && error.is_retryable());
    }
}

#[tokio::test]
async fn a_failed_handshake_is_connect_and_nothing_was_dispatched() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let first_byte = tokio::spawn(async move { listener.accept().await.unwrap().0.read_u8().await });
    // Our reqwest has no TLS at all, which is found out before it connects.
    for (name, provider) in clients(&url).into_iter().rev() {
        let error = failure(provider, whole()).await;
        assert_eq!(error.class(), Some(ErrorClass::Connect), "{name}: {error:?}");
        assert!(!error.dispatched());
    }
    assert!(first_byte.is_finished(), "nobody began a handshake");
    assert_eq!(first_byte.await.unwrap().unwrap(), 22, "not a TLS handshake");
}

#[tokio::test]
async fn a_connection_that_is_closed_or_reset_before_the_head_is_transport() {
    failing(vec![], whole(), ErrorClass::Transport).await;
    failing(vec![Step::Reset], whole(), ErrorClass::Transport).await;
    failing(vec![send("HTTP/1.1 200 O")], streaming(), ErrorClass::Transport).await;
}

#[tokio::test]
async fn what_is_not_http_is_transport() {
    failing(vec![send("SSH-2.0-OpenSSH_9.9\r\n\r\n")], whole(), ErrorClass::Transport).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_is_transport() {
    let half = || vec![json_head(ANSWER.len()), send(&ANSWER[..20])];
    failing(half(), whole(), ErrorClass::Transport).await;
    failing([half(), vec![Step::Reset]].concat(), whole(), ErrorClass::Transport).await;
}

#[tokio::test]
async fn a_stream_that_is_cut_after_its_first_chunk_is_transport() {
    for ending in [None, Some(Step::Reset)] {
        let script = [stream_head(), part(&sse(&[HELLO])), Step::UntilTold].into_iter().chain(ending);
        let server = Server::playing(script).await;
        for (name, provider) in clients(&server.url) {
            let ResponseBody::Stream(mut stream) = provider.oneshot(streaming()).await.unwrap().body else {
                panic!()
            };
            assert_eq!(stream.next().await.unwrap().unwrap().data(), HELLO);
            server.tell();
            let error = stream.next().await.unwrap().unwrap_err();
            assert_eq!(error.class(), Some(ErrorClass::Transport), "{name}: {error:?}");
            assert!(stream.next().await.is_none());
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_closed_cleanly_is_truncated_unless_it_was_finished() {
    let head = || send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n");
    failing(vec![head(), send(sse(&[HELLO]))], streaming(), ErrorClass::Truncated).await;
    let finished = Server::playing([head(), send(sse(&[HELLO, STOP]))]).await;
    for (name, provider) in clients(&finished.url) {
        let (chunks, error) = chunks(provider.oneshot(streaming()).await.unwrap()).await;
        assert!(error.is_none() && chunks.len() == 3, "{name}: {error:?}");
    }
}

#[tokio::test]
async fn a_refusal_whose_body_never_ends_is_a_refusal_at_64_kib() {
    let script = [
        send("HTTP/1.1 429 Too Many\r\nretry-after: 2\r\ncontent-length: 999999999\r\n\r\n"),
        send("x".repeat(100_000)),
        Step::UntilHungUp,
    ];
    failing(script.to_vec(), whole(), ErrorClass::RateLimited).await;
}

#[tokio::test(start_paused = true)]
async fn a_refusal_whose_explanation_stalls_is_that_refusal_after_two_seconds() {
    let head = || send("HTTP/1.1 429 Too Many\r\nretry-after: 20\r\ntransfer-encoding: chunked\r\n\r\n");
    for said in [None, Some(r#"{"error":{"message":"slow"#)] {
        let script = [Some(head()), said.map(part), Some(Step::UntilHungUp)];
        let mut server = Server::playing(script.into_iter().flatten()).await;
        for (name, provider) in clients(&server.url) {
            for request in [whole(), streaming()] {
                let limits = CallTimeoutLayer::new().with_head(Duration::from_secs(30));
                let start = Instant::now();
                let error = failure(limits.layer(provider.clone()), request).await;
                assert_eq!(error.class(), Some(ErrorClass::RateLimited), "{name}: {error:?}");
                assert_eq!(error.retry_after(), Some(Duration::from_secs(20)));
                assert_eq!(
                    facts(&error).body.as_deref().unwrap_or_default(),
                    said.unwrap_or_default().as_bytes()
                );
                assert_eq!(start.elapsed().as_secs(), 2);
                server.asked().await;
                server.hung_up().await;
            }
        }
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let head = "HTTP/1.1 307 Temporary\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    failing(vec![send(head)], whole(), ErrorClass::BadFrame).await;
}

#[tokio::test]
async fn dropping_the_stream_hangs_up() {
    let script = [stream_head(), part(&sse(&[HELLO])), Step::UntilHungUp];
    let mut server = Server::playing(script).await;
    for (_, provider) in clients(&server.url) {
        // The client lives on: it is not the pool that hangs up.
        let ResponseBody::Stream(mut stream) = provider.clone().oneshot(streaming()).await.unwrap().body
        else {
            panic!()
        };
        server.asked().await;
        assert_eq!(stream.next().await.unwrap().unwrap().data(), HELLO);
        drop(stream);
        server.hung_up().await;
        drop(provider);
    }
}

#[tokio::test]
async fn dropping_the_call_before_the_head_hangs_up() {
    let mut server = Server::playing([Step::UntilHungUp]).await;
    for (_, provider) in clients(&server.url) {
        let mut call = tokio_test::task::spawn(provider.clone().oneshot(whole()));
        tokio::select! {
            _ = &mut call => panic!("nobody answers"),
            _ = server.asked() => {}
        }
        drop(call);
        server.hung_up().await;
        drop(provider);
    }
}

#[tokio::test]
async fn a_connection_is_used_again_after_done_even_if_nobody_polls_for_none() {
    let answer = [stream_head(), part(&sse(&[HELLO, STOP, "[DONE]"])), send("0\r\n\r\n")];
    let answers = (0..10).flat_map(|_| answer.clone().into_iter().chain([Step::Hear]));
    let mut server = Server::playing(answers).await;
    for (name, provider) in clients(&server.url) {
        let mut connections = std::collections::BTreeSet::new();
        for _ in 0..10 {
            let ResponseBody::Stream(mut stream) = provider.clone().oneshot(streaming()).await.unwrap().body
            else {
                panic!()
            };
            while !stream.next().await.unwrap().unwrap().is_final() {}
            connections.insert(server.asked().await.connection);
            // The client's own tasks put the connection back.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        assert!(connections.len() < 5, "{name} opened {} connections for 10 calls", connections.len());
    }
}
