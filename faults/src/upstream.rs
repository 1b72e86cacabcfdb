//! A provider on loopback that does what a script says, byte by byte, and keeps a log of its own.

use serde_json::{Value, json};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

/// What is done with one request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends bytes as they are.
    Raw(Vec<u8>),
    /// Sends a whole answer with this status and body, by its length.
    Whole(u16, String),
    /// Sends the head of a stream.
    Head,
    /// Sends an event of a stream.
    Event(String),
    /// Sends events, `.1` in between, until the other end hangs up or `.2` were sent.
    Drip(String, Duration, usize),
    /// Sends comments, `.0` in between, until the other end hangs up or `.1` were sent.
    Comments(Duration, usize),
    /// Ends a stream as HTTP wants it.
    End,
    /// Is silent for so long, or until the other end hangs up.
    Wait(Duration),
    /// Is silent until the other end hangs up.
    Stall,
    /// Closes the connection.
    Cut,
    /// Resets it.
    Reset,
}

/// What is done one after the other. A connection is kept afterwards, unless the script closes it.
pub type Script = Vec<Act>;

/// One request, as the upstream has seen it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The id that the gateway has passed on.
    pub request_id: String,
    /// The model, as it was asked for here.
    pub model: String,
    /// Which request it was, of all that came.
    pub number: usize,
    /// The whole request.
    pub body: Value,
    /// The head of the request.
    pub head: String,
    /// Whether the script came to its end.
    pub is_done: bool,
    /// Whether the gateway hung up before.
    pub hung_up: bool,
}

/// Where nobody listens.
pub async fn nowhere() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    format!("http://{}/v1", listener.local_addr().expect("an address"))
}

/// The server.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its base URL.
    pub url: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    scripts: Mutex<HashMap<String, Script>>,
    log: Mutex<Vec<Seen>>,
    gone: Mutex<HashMap<String, Seen>>,
    is_lean: AtomicBool,
    is_numbering: AtomicBool,
    numbers: AtomicUsize,
}

/// Bytes on their way to a gateway.
type Connection = BufReader<TcpStream>;

impl Act {
    /// An event that says so.
    pub fn say(text: &str) -> Self {
        Self::Event(json!({ "choices": [{ "index": 0, "delta": { "content": text } }] }).to_string())
    }

    /// An event with a reason to stop.
    pub fn stop() -> Self {
        Self::Event(json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] }).to_string())
    }

    /// An event with the usage that is always reported.
    pub fn usage() -> Self {
        Self::Event(json!({ "choices": [], "usage": Upstream::usage() }).to_string())
    }

    /// The event that ends a stream.
    pub fn done() -> Self {
        Self::Event("[DONE]".to_owned())
    }
}

impl Upstream {
    /// What every good answer reports.
    pub const TOKENS: (i64, i64) = (7, 5);

    /// What every good answer reports, as JSON.
    pub fn usage() -> Value {
        let (input, output) = Self::TOKENS;
        json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output })
    }

    /// A good answer.
    pub fn whole(text: &str) -> Act {
        let message = json!({ "role": "assistant", "content": text });
        let choices = json!([{ "index": 0, "message": message, "finish_reason": "stop" }]);
        Act::Whole(200, json!({ "choices": choices, "usage": Self::usage() }).to_string())
    }

    /// A good stream.
    pub fn stream(words: &[&str]) -> Script {
        let mut script = vec![Act::Head];
        script.extend(words.iter().map(|word| Act::say(word)));
        script.extend([Act::stop(), Act::usage(), Act::done(), Act::End]);
        script
    }

    /// A server that does with each request what the script of its model says; a good answer unless told.
    pub async fn start(scripts: impl IntoIterator<Item = (String, Script)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared::default());
        lock(&shared.scripts).extend(scripts);
        let accepting = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let shared = Arc::clone(&accepting);
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while shared.serve(&mut stream).await.is_some() {}
                });
            }
        });
        Self { url, shared }
    }

    /// Keeps of each request no more than its id and model, for there will be many.
    #[must_use]
    pub fn lean(self) -> Self {
        self.shared.is_lean.store(true, Ordering::Release);
        self
    }

    /// Gives each good answer the number of its request.
    #[must_use]
    pub fn numbering(self) -> Self {
        self.shared.is_numbering.store(true, Ordering::Release);
        self
    }

    /// From now on does this for this model.
    pub fn set(&self, model: &str, script: Script) {
        lock(&self.shared.scripts).insert(model.to_owned(), script);
    }

    /// All requests that are over, in the order of their ends.
    pub fn log(&self) -> Vec<Seen> {
        lock(&self.shared.log).clone()
    }

    /// How many requests of this model have come, also those that are not over.
    pub fn asked(&self, model: &str) -> usize {
        let over = lock(&self.shared.log).iter().filter(|seen| seen.model == model).count();
        over + lock(&self.shared.gone).values().filter(|seen| seen.model == model).count()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes one request; `None` when the connection is over.
    async fn serve(&self, stream: &mut Connection) -> Option<()> {
        let mut seen = read(stream).await?;
        let is_stream = seen.body["stream"] == true;
        if self.is_lean.load(Ordering::Acquire) {
            (seen.body, seen.head) = (Value::Null, String::new());
        }
        let script = lock(&self.scripts).get(&seen.model).cloned();
        seen.number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let last = match self.is_numbering.load(Ordering::Acquire) {
            true => format!("number {}.", seen.number),
            false => "well.".to_owned(),
        };
        let script = script.unwrap_or_else(|| match is_stream {
            true => Upstream::stream(&["All is ", &last]),
            false => vec![Upstream::whole(&format!("All is {last}"))],
        });
        let key = format!("{}-{:x}", seen.request_id, fastrand::u64(..));
        lock(&self.gone).insert(key.clone(), seen.clone());
        let mut going_on = Some(());
        for act in script {
            match perform(stream, act).await {
                Then::GoOn => {}
                Then::Close => {
                    going_on = None;
                    break;
                }
                Then::HungUp => {
                    (seen.hung_up, going_on) = (true, None);
                    break;
                }
            }
        }
        seen.is_done = !seen.hung_up;
        lock(&self.gone).remove(&key);
        lock(&self.log).push(seen);
        going_on
    }
}

enum Then {
    GoOn,
    Close,
    HungUp,
}

async fn perform(stream: &mut Connection, act: Act) -> Then {
    let bytes = match act {
        Act::Raw(bytes) => bytes,
        Act::Whole(status, body) => {
            let head = format!("HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n");
            format!("{head}content-length: {}\r\n\r\n{body}", body.len()).into_bytes()
        }
        Act::Head => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
            format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes()
        }
        Act::Event(data) => event(&data),
        Act::Drip(data, pause, times) => return drip(stream, &event(&data), pause, times).await,
        Act::Comments(pause, times) => return drip(stream, b"e\r\n: still here\n\n\r\n", pause, times).await,
        Act::End => b"0\r\n\r\n".to_vec(),
        Act::Wait(time) => return if is_gone(stream, time).await { Then::HungUp } else { Then::GoOn },
        Act::Stall => {
            // Nothing is silent for ever: a gateway that does not hang up is found by the tests, not waited for.
            let gone = is_gone(stream, Duration::from_secs(600)).await;
            return if gone { Then::HungUp } else { Then::Close };
        }
        Act::Cut => {
            let _ = stream.get_mut().shutdown().await;
            return Then::Close;
        }
        Act::Reset => {
            let _ = stream.get_mut().set_zero_linger();
            return Then::Close;
        }
    };
    if stream.write_all(&bytes).await.is_err() { Then::HungUp } else { Then::GoOn }
}

async fn drip(stream: &mut Connection, piece: &[u8], pause: Duration, times: usize) -> Then {
    for _ in 0..times {
        if stream.write_all(piece).await.is_err() || is_gone(stream, pause).await {
            return Then::HungUp;
        }
    }
    Then::GoOn
}

fn event(data: &str) -> Vec<u8> {
    let event = format!("data: {data}\n\n");
    format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
}

/// Whether the other end hangs up within that time. It says nothing more before an answer has ended.
async fn is_gone(stream: &mut Connection, time: Duration) -> bool {
    matches!(timeout(time, stream.read_u8()).await, Ok(Err(_)))
}

async fn read(stream: &mut Connection) -> Option<Seen> {
    let (mut seen, mut length) = (Seen::default(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if lower.starts_with("x-request-id:") {
            seen.request_id = line[13..].trim().to_owned();
        }
        seen.head += &line;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    seen.body = serde_json::from_slice(&body).ok()?;
    seen.model = seen.body["model"].as_str()?.to_owned();
    Some(seen)
}
