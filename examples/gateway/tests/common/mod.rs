//! The real gateway as a child process, a client that sees every byte, and upstreams that follow a script.
#![allow(dead_code, reason = "each test file uses a part of it")]

use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, ChildStderr, Command},
    sync::mpsc,
    time::timeout,
};

pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

/// Longer than anything here takes, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The collector that `scripts/peers` installs, if it has.
pub(crate) fn collector() -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let peers = std::env::var_os("LLM_LAYERS_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
    let pythons = std::fs::read_dir(peers.join("collector/lib")).ok()?;
    let agents = pythons.filter_map(Result::ok).map(|it| it.path().join("site-packages/rotel/rotel-agent"));
    agents.into_iter().find(|agent| agent.exists())
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in good time")
}

// ===== the gateway =====

pub(crate) struct Gateway {
    child: Child,
    pub(crate) address: String,
    stderr: Arc<Mutex<String>>,
    /// Held while nobody reads it, so that it does not close.
    unread: Option<ChildStderr>,
    folder: PathBuf,
}

/// In a folder of its own, where its ledger is.
pub(crate) fn command(config: Option<&str>, env: &[(&str, &str)]) -> (Command, PathBuf) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("gateway-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(["--listen", "127.0.0.1:0"]).env_remove("RUST_LOG");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTEL_")) {
        command.env_remove(name);
    }
    command.envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command.current_dir(&folder);
    if let Some(text) = config {
        std::fs::write(folder.join("gateway.toml"), text).unwrap();
        command.args(["--config", "gateway.toml"]);
    }
    (command, folder)
}

/// Runs a gateway that is expected to end by itself.
pub(crate) async fn run(config: &str) -> Output {
    let (mut command, folder) = command(Some(config), &[]);
    let output = soon(command.output()).await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    output
}

/// `gateway check`, with further arguments.
pub(crate) async fn check(config: &str, more: &[&str]) -> Output {
    let (_, folder) = command(None, &[]);
    std::fs::write(folder.join("gateway.toml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(["check", "gateway.toml"]).args(more).current_dir(&folder).stdin(Stdio::null());
    let output = soon(command.output()).await.unwrap();
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["gateway.toml"], "it opens nothing");
    std::fs::remove_dir_all(folder).unwrap();
    output
}

impl Gateway {
    pub(crate) async fn start(config: &str) -> Self {
        Self::start_with(Some(config), &[]).await
    }

    pub(crate) async fn start_with(config: Option<&str>, env: &[(&str, &str)]) -> Self {
        let mut gateway = Self::start_unread(config, env).await;
        let mut lines = BufReader::new(gateway.unread.take().unwrap()).lines();
        let log = Arc::clone(&gateway.stderr);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                *log.lock().unwrap() += &(line + "\n");
            }
        });
        gateway
    }

    /// One whose log nobody reads.
    pub(crate) async fn start_unread(config: Option<&str>, env: &[(&str, &str)]) -> Self {
        let (mut command, folder) = command(config, env);
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = soon(stdout.next_line()).await.unwrap();
        let mut unread = child.stderr.take().unwrap();
        let Some(line) = line else {
            let mut told = String::new();
            unread.read_to_string(&mut told).await.unwrap();
            panic!("it does not start: {told}");
        };
        let address = line.strip_prefix("listening on http://").expect(&line).to_owned();
        Self { child, address, stderr: Arc::default(), unread: Some(unread), folder }
    }

    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.address).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"").await
    }

    pub(crate) async fn chat(&self, body: &str) -> Reply {
        self.post(&[("content-type", "application/json")], body.as_bytes()).await
    }

    pub(crate) async fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.send("POST", CHAT, headers, body).await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut client = self.connect().await;
        client.ask(method, path, headers, body).await;
        client.reply().await
    }

    /// Asks for a stream, and reads its head.
    pub(crate) async fn stream(&self, model: &str) -> Client {
        self.stream_as(model, &[]).await
    }

    /// As [`stream`](Self::stream), with these headers.
    pub(crate) async fn stream_as(&self, model: &str, headers: &[(&str, &str)]) -> Client {
        let mut client = self.connect().await;
        let body =
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi"}}],"stream":true}}"#);
        let headers = [headers, &[("content-type", "application/json")]].concat();
        client.ask("POST", CHAT, &headers, body.as_bytes()).await;
        let reply = client.head().await;
        assert_eq!(reply.status, 200);
        client
    }

    /// What it has logged, once there is a line with each of these words.
    pub(crate) async fn log(&self, words: &[&str]) -> String {
        self.log_of(1, words).await
    }

    /// What it has logged, once there are so many lines with each of these words.
    pub(crate) async fn log_of(&self, lines: usize, words: &[&str]) -> String {
        soon(async {
            loop {
                let log = self.stderr.lock().unwrap().clone();
                let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
                if log.lines().filter(has_all).count() >= lines {
                    return log;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    pub(crate) fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Puts another file in the place of its configuration, as editors do.
    pub(crate) fn rewrite(&self, config: &str) {
        let (new, path) = (self.folder.join("gateway.toml.new"), self.folder.join("gateway.toml"));
        std::fs::write(&new, config).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// Puts a pipe in the place of the file.
    pub(crate) fn pipe(&self) -> PathBuf {
        let (new, path) = (self.folder.join("gateway.toml.new"), self.folder.join("gateway.toml"));
        assert!(std::process::Command::new("mkfifo").arg(&new).status().unwrap().success());
        std::fs::rename(new, &path).unwrap();
        path
    }

    /// Waits until it lists a model of this name.
    pub(crate) async fn lists(&self, headers: &[(&str, &str)], model: &str) {
        let model = format!("\"id\":{model:?}");
        soon(async {
            while !self.send("GET", "/v1/models", headers, b"").await.body.contains(&model) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    pub(crate) async fn ended(&mut self) -> i32 {
        soon(self.child.wait()).await.unwrap().code().unwrap()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) const CHAT: &str = "/v1/chat/completions";

pub(crate) fn asking(model: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hi"}}]}}"#)
}

// ===== the client =====

pub(crate) struct Client(BufReader<TcpStream>);

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.body))
    }

    /// The type and code of an error in OpenAI's shape.
    pub(crate) fn error(&self) -> (String, Value) {
        assert_eq!(self.header("content-type"), Some("application/json"));
        let error = &self.json()["error"];
        assert!(error["message"].is_string() && error.as_object().unwrap().contains_key("param"), "{error}");
        (error["type"].as_str().unwrap().to_owned(), error["code"].clone())
    }
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Self {
        let stream = soon(TcpStream::connect(address)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// One whose system takes little that it has not read.
    pub(crate) async fn connect_narrowly(address: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        Self(BufReader::new(soon(socket.connect(address.parse().unwrap())).await.unwrap()))
    }

    pub(crate) async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        self.try_ask(method, path, headers, body).await.unwrap();
    }

    pub(crate) async fn write(&mut self, text: &str) {
        soon(self.0.write_all(text.as_bytes())).await.unwrap();
    }

    /// As [`ask`](Self::ask), of a server that may close before it has read all.
    pub(crate) async fn try_ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: gateway\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        soon(self.0.write_all(&[head.as_bytes(), body].concat())).await
    }

    pub(crate) async fn head(&mut self) -> Reply {
        let status = self.line().await;
        let status = status.split(' ').nth(1).unwrap_or_else(|| panic!("no status: {status:?}"));
        let mut reply = Reply { status: status.parse().unwrap(), headers: Vec::new(), body: String::new() };
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else { return reply };
            reply.headers.push((name.to_owned(), value.to_owned()));
        }
    }

    pub(crate) async fn reply(&mut self) -> Reply {
        let mut reply = self.head().await;
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = self.rest().await;
        } else if let Some(length) = reply.header("content-length") {
            reply.body = self.body(length.parse().unwrap()).await;
        }
        reply
    }

    pub(crate) async fn body(&mut self, length: usize) -> String {
        let mut body = vec![0; length];
        soon(self.0.read_exact(&mut body)).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    /// The next piece of a chunked body; `None` at its end.
    pub(crate) async fn piece(&mut self) -> Option<String> {
        let size = usize::from_str_radix(&self.line().await, 16).unwrap();
        let mut piece = vec![0; size + 2];
        soon(self.0.read_exact(&mut piece)).await.unwrap();
        piece.truncate(size);
        (size > 0).then(|| String::from_utf8(piece).unwrap())
    }

    pub(crate) async fn rest(&mut self) -> String {
        let mut all = String::new();
        while let Some(piece) = self.piece().await {
            all += &piece;
        }
        all
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn close_half(&mut self) {
        soon(self.0.shutdown()).await.unwrap();
    }

    /// Whether the other end has closed the connection, without a word more.
    pub(crate) async fn closed(&mut self) -> bool {
        matches!(soon(self.0.read(&mut [0])).await, Ok(0) | Err(_))
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        soon(self.0.read_line(&mut line)).await.unwrap();
        line.trim_end().to_owned()
    }
}

// ===== upstreams =====

/// A server on loopback that takes one request on each connection and does with it what a test wants.
pub(crate) struct Upstream {
    pub(crate) url: String,
    calls: mpsc::UnboundedReceiver<Call>,
}

/// One request to an upstream, and the connection that it came on.
pub(crate) struct Call {
    pub(crate) head: String,
    pub(crate) body: String,
    stream: BufReader<TcpStream>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (send, calls) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let send = send.clone();
                tokio::spawn(async move {
                    if let Some(call) = Call::read(BufReader::new(stream)).await {
                        let _ = send.send(call);
                    }
                });
            }
        });
        Self { url, calls }
    }

    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    pub(crate) fn was_called(&mut self) -> bool {
        self.calls.try_recv().is_ok()
    }
}

/// A URL where nobody listens.
pub(crate) async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

impl Call {
    async fn read(mut stream: BufReader<TcpStream>) -> Option<Self> {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line == "\r\n" {
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        Some(Self { head, body: String::from_utf8(body).ok()?, stream })
    }

    pub(crate) async fn write(&mut self, text: &str) {
        soon(self.stream.write_all(text.as_bytes())).await.unwrap();
    }

    pub(crate) async fn answer(mut self, status: u16, body: &str) {
        self.write(&format!(
            "HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
    }

    /// Begins a stream of events; what follows is written as it is, and ends with the connection.
    pub(crate) async fn begin(&mut self) {
        self.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await;
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.write(&event(text)).await;
    }

    pub(crate) async fn end(mut self) {
        self.write(
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        )
        .await;
    }

    /// Waits until the gateway hangs up.
    pub(crate) async fn hung_up(&mut self) -> bool {
        matches!(soon(self.stream.read(&mut [0])).await, Ok(0) | Err(_))
    }
}

pub(crate) fn event(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

pub(crate) fn whole(text: &str) -> String {
    format!(r#"{{"choices":[{{"index":0,"message":{{"content":"{text}"}},"finish_reason":"stop"}}]}}"#)
}
