//! The server as a process, peers as processes, and an upstream that follows a script.

#![allow(dead_code, reason = "no test uses all of it")]

use self::xai::{GetCompletionsRequest, MessageRole, chat_client::ChatClient, content::Content};
use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::clone_on_ref_ptr, reason = "made by a machine")]
pub(crate) mod xai {
    tonic::include_proto!("xai_api");
}

pub(crate) type Client = ChatClient<tonic::transport::Channel>;

pub(crate) fn asking(model: &str) -> tonic::Request<GetCompletionsRequest> {
    let content = vec![xai::Content { content: Some(Content::Text("Hi".to_owned())) }];
    let message = xai::Message { content, role: MessageRole::RoleUser.into(), ..Default::default() };
    tonic::Request::new(GetCompletionsRequest {
        model: model.to_owned(),
        messages: vec![message],
        ..Default::default()
    })
}

/// Longer than anything here takes, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("in good time")
}

/// A process that is killed with its owner.
pub(crate) struct Server {
    process: Child,
    /// `HOST:PORT`.
    pub(crate) address: String,
    told: Arc<Mutex<String>>,
    config: PathBuf,
}

impl Server {
    /// The server with a configuration; an empty one is none.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, &["--listen", "127.0.0.1:0"])
    }

    pub(crate) fn start_with(config: &str, arguments: &[&str]) -> Self {
        Self::start_by(&mut Command::new(env!("CARGO_BIN_EXE_grpc")), config, arguments)
    }

    /// The same after some commands of the shell, such as `ulimit`.
    pub(crate) fn start_after(commands: &str, config: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{commands}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_grpc")]);
        Self::start_by(&mut shell, config, &["--listen", "127.0.0.1:0"])
    }

    fn start_by(command: &mut Command, config: &str, arguments: &[&str]) -> Self {
        command.args(arguments);
        let name = format!("{}-{:016x}.toml", std::process::id(), fastrand::u64(..));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if !config.is_empty() {
            std::fs::write(&path, config).expect("writes");
            command.arg("--config").arg(&path);
        }
        let mut server = Self::spawn(command);
        server.config = path;
        server
    }

    pub(crate) fn aimock(peers: &Path) -> Self {
        let mut command = Command::new(peers.join("node/node_modules/.bin/llmock"));
        Self::spawn(command.args(["-p", "0", "-f"]).arg(root().join("tests/peers/aimock")))
    }

    /// Starts `command` and waits for the address that it says it listens on.
    fn spawn(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let address = lines.find_map(|line| {
            let line = line.expect("text");
            line.find("127.0.0.1:").map(|at| line[at..].trim().to_owned())
        });
        // Whoever writes must find a reader.
        std::thread::spawn(move || lines.for_each(drop));
        let errors = BufReader::new(process.stderr.take().expect("piped")).lines();
        let told = Arc::<Mutex<String>>::default();
        std::thread::spawn({
            let told = Arc::clone(&told);
            move || {
                errors.map_while(Result::ok).for_each(|line| *told.lock().expect("whole") += &(line + "\n"))
            }
        });
        Self { process, address: address.expect("says where it listens"), told, config: PathBuf::new() }
    }

    /// What it has told on stderr, once that has this in it so many times.
    pub(crate) async fn tells(&self, text: &str, times: usize) -> String {
        soon(async {
            loop {
                let told = self.told.lock().expect("whole").clone();
                if told.matches(text).count() >= times {
                    return told;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// Puts another file in the place of its configuration.
    pub(crate) fn rewrite(&self, config: &str) {
        let new = self.config.with_extension("new");
        std::fs::write(&new, config).expect("writes");
        std::fs::rename(new, &self.config).expect("renames");
    }

    /// Puts a pipe in the place of its configuration.
    pub(crate) fn pipe(&self) -> PathBuf {
        let new = self.config.with_extension("new");
        assert!(Command::new("mkfifo").arg(&new).status().expect("runs").success());
        std::fs::rename(new, &self.config).expect("renames");
        self.config.clone()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().expect("runs").success());
    }

    pub(crate) fn origin(&self) -> tonic::codegen::http::Uri {
        format!("http://{}", self.address).parse().expect("a URL")
    }

    pub(crate) async fn client(&self) -> Client {
        ChatClient::connect(self.origin().to_string()).await.expect("listens")
    }

    /// Tells it to stop, and waits until it takes no more connections.
    pub(crate) async fn terminate(&self) {
        self.signal("-TERM");
        soon(async {
            while TcpStream::connect(&self.address).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(crate) async fn ended(&mut self) -> Option<i32> {
        soon(async {
            loop {
                if let Some(status) = self.process.try_wait().expect("a process") {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Where the peers are, or a line that says that the test `name` did not run.
pub(crate) fn peers(name: &str) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let peers = std::env::var_os("LLM_LAYERS_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
    let there =
        ["py/bin/python", "node/node_modules/.bin/llmock"].iter().all(|file| peers.join(file).exists());
    if !there {
        // Not by `println!`, which is shown of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: the peers are not installed, run scripts/peers");
    }
    there.then_some(peers)
}

/// Runs xAI's client, which says what is wrong.
pub(crate) fn converse(peers: &Path, arguments: &[&str], prepare: impl FnOnce(&mut Command)) {
    let mut command = Command::new(peers.join("py/bin/python"));
    command.arg(root().join("tests/peers/xai_client.py")).args(arguments);
    prepare(&mut command);
    let output = command.output().expect("runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}\n{out}");
    assert_eq!(out.lines().count(), arguments.len() - 1, "a line for each case: {out}");
}

// ===== upstreams =====

/// A server on loopback that takes one request on each connection and does with it what a test wants.
pub(crate) struct Upstream {
    pub(crate) url: String,
    calls: mpsc::UnboundedReceiver<Call>,
}

pub(crate) struct Call {
    pub(crate) head: String,
    pub(crate) body: String,
    stream: tokio::io::BufReader<TcpStream>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let (send, calls) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let send = send.clone();
                tokio::spawn(async move {
                    if let Some(call) = Call::read(tokio::io::BufReader::new(stream)).await {
                        let _ = send.send(call);
                    }
                });
            }
        });
        Self { url, calls }
    }

    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.expect("a call")
    }
}

impl Call {
    async fn read(mut stream: tokio::io::BufReader<TcpStream>) -> Option<Self> {
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            if stream.read_line(&mut head).await.ok()? == 0 {
                return None;
            }
            if let Some(value) = head[start..].to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        Some(Self { head, body: String::from_utf8(body).ok()?, stream })
    }

    async fn write(&mut self, text: &str) {
        soon(self.stream.write_all(text.as_bytes())).await.expect("writes");
    }

    pub(crate) async fn answer(mut self, status: u16, body: &str) {
        let head = "content-type: application/json\r\nconnection: close";
        self.write(&format!(
            "HTTP/1.1 {status} OK\r\n{head}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    }

    /// Begins a stream of events, which ends with the connection.
    pub(crate) async fn begin(&mut self) {
        self.write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await;
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.write(&format!(r#"data: {{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}]}}"#)).await;
        self.write("\n\n").await;
    }

    /// Says it again and again until the server hangs up.
    pub(crate) async fn insist(&mut self, text: &str) {
        let event =
            format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n");
        soon(async {
            while self.stream.write_all(event.as_bytes()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(crate) async fn end(mut self) {
        self.write(
            "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        )
        .await;
    }

    /// Waits until the server hangs up.
    pub(crate) async fn hung_up(&mut self) -> bool {
        matches!(soon(self.stream.read(&mut [0])).await, Ok(0) | Err(_))
    }
}
