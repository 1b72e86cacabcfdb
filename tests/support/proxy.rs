//! A proxy that passes connections on. Included by `#[path = "support/proxy.rs"] mod proxy;`.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

/// A proxy on loopback that knows `CONNECT`. It is gone when this is dropped.
pub struct Tunnels {
    address: String,
    heads: mpsc::UnboundedReceiver<String>,
    _task: JoinSet<()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Open,
    Refusing,
    Silent,
}

impl Tunnels {
    pub async fn open() -> Self {
        Self::in_manner(Manner::Open).await
    }

    pub async fn refusing() -> Self {
        Self::in_manner(Manner::Refusing).await
    }

    pub async fn silent() -> Self {
        Self::in_manner(Manner::Silent).await
    }

    async fn in_manner(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (heads_in, heads) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(pass_on(stream, manner, heads_in.clone()));
            }
        });
        Self { address, heads, _task: task }
    }

    /// Where it is, for one of these credentials, which end in `@`.
    pub fn url(&self, credentials: &str) -> String {
        format!("http://{credentials}{}", self.address)
    }

    /// The next head that it was sent, in small letters. Whoever goes around it fails here, and does not hang.
    pub async fn asked(&mut self) -> String {
        let head = timeout(Duration::from_secs(20), self.heads.recv()).await;
        head.expect("the proxy is asked").unwrap()
    }

    /// Whether nobody has come since.
    pub fn was_not_asked(&mut self) -> bool {
        self.heads.try_recv().is_err()
    }
}

async fn pass_on(mut stream: TcpStream, manner: Manner, heads: mpsc::UnboundedSender<String>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let _ = heads.send(head.clone());
    let to = head.strip_prefix("connect ").and_then(|rest| rest.split(' ').next());
    match (manner, to) {
        (Manner::Silent, _) => std::future::pending().await,
        (Manner::Open, Some(to)) => {
            let Ok(mut server) = TcpStream::connect(to).await else { return };
            let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
            let _ = copy_bidirectional(&mut stream, &mut server).await;
        }
        _ => {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(refusal.as_bytes()).await;
        }
    }
}
