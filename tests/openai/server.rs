//! A scripted HTTP/1.1 server on loopback that sends any bytes and breaks off in any way.

use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::JoinSet,
};

pub(crate) struct Server {
    pub(crate) url: String,
    told: Arc<Notify>,
    events: mpsc::UnboundedReceiver<Event>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Read a request; each script begins with one.
    Hear,
    Send(Vec<u8>),
    /// Wait for [`Server::tell`].
    UntilTold,
    /// Read until the client hangs up.
    UntilHungUp,
    /// End with RST; a script's end is a FIN.
    Reset,
}

#[derive(Debug)]
pub(crate) enum Event {
    Asked(Asked),
    HungUp,
}

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) connection: usize,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) fn send(text: impl AsRef<str>) -> Step {
    Step::Send(text.as_ref().as_bytes().to_vec())
}

/// A head for a stream whose parts are [`part`]s.
pub(crate) fn stream_head() -> Step {
    send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

pub(crate) fn part(text: &str) -> Step {
    part_of(text.as_bytes())
}

/// As [`part`], of a stream that is no text.
pub(crate) fn part_of(bytes: &[u8]) -> Step {
    Step::Send([format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat())
}

impl Server {
    /// Plays `script` on each connection.
    pub(crate) async fn playing(script: impl IntoIterator<Item = Step>) -> Self {
        let script: Vec<_> = std::iter::once(Step::Hear).chain(script).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let told = Arc::new(Notify::new());
        let (events_in, events) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let tell = Arc::clone(&told);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, told, events) = (script.clone(), Arc::clone(&tell), events_in.clone());
                connections.spawn(async move { play(stream, connection, script, &told, &events).await });
            }
        });
        Self { url, told, events, _tasks: tasks }
    }

    pub(crate) fn tell(&self) {
        self.told.notify_one();
    }

    pub(crate) async fn asked(&mut self) -> Asked {
        match self.events.recv().await.unwrap() {
            Event::Asked(asked) => asked,
            Event::HungUp => panic!("the client hung up"),
        }
    }

    pub(crate) async fn hung_up(&mut self) {
        let event = self.events.recv().await.unwrap();
        assert!(matches!(event, Event::HungUp), "{event:?}");
    }
}

async fn play(
    mut stream: TcpStream,
    connection: usize,
    script: Vec<Step>,
    told: &Notify,
    events: &mpsc::UnboundedSender<Event>,
) {
    for step in script {
        match step {
            Step::Hear => match hear(&mut stream, connection).await {
                Some(asked) => events.send(Event::Asked(asked)).unwrap_or_default(),
                None => return,
            },
            Step::Send(bytes) => stream.write_all(&bytes).await.unwrap_or_default(),
            Step::UntilTold => told.notified().await,
            Step::UntilHungUp => {
                while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
                events.send(Event::HungUp).unwrap_or_default();
            }
            Step::Reset => return stream.set_zero_linger().unwrap(),
        }
    }
    stream.shutdown().await.unwrap_or_default();
}

async fn hear(stream: &mut TcpStream, connection: usize) -> Option<Asked> {
    let mut heard = Vec::new();
    loop {
        if let Some(end) = heard.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8(heard[..end].to_vec()).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let body = &heard[end + 4..];
            if body.len() == length.parse::<usize>().unwrap() {
                let body = String::from_utf8(body.to_vec()).unwrap();
                return Some(Asked { connection, head, body });
            }
        }
        let mut more = [0; 4096];
        match stream.read(&mut more).await {
            Ok(count @ 1..) => heard.extend_from_slice(&more[..count]),
            _ => return None,
        }
    }
}
