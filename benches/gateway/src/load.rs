//! Clients over loopback: each a connection that is kept, and the next question when the last is answered.

use crate::{
    Fallible,
    case::{Asked, Case, NUMBER},
};
use memchr::memmem;
use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
    time::{Instant, sleep_until, timeout},
};

/// Longer than any answer takes here.
const PATIENCE: Duration = Duration::from_secs(20);

/// What came of a round.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// In nanoseconds, ascending.
    pub(crate) latencies: Vec<u64>,
    pub(crate) errors: usize,
    /// How many answers were said to have been kept.
    pub(crate) kept: usize,
    pub(crate) first_error: Option<String>,
    pub(crate) took: Duration,
}

impl Outcome {
    /// The latency that so many of a thousand stay within, in microseconds.
    pub(crate) fn permille(&self, permille: usize) -> f64 {
        let at = (self.latencies.len() * permille / 1000).min(self.latencies.len().saturating_sub(1));
        self.latencies.get(at).map_or(f64::NAN, |nanos| *nanos as f64 / 1000.0)
    }
}

/// Questions are numbered, over all rounds.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Asks `requests` questions at `address`.
pub(crate) async fn run(address: SocketAddr, case: &Case, requests: usize) -> Fallible<Outcome> {
    let template: Rc<[u8]> = case.request().into();
    let (left, began) = (Rc::new(Cell::new(requests)), Instant::now());
    let tasks = LocalSet::new();
    let mut clients = Vec::new();
    for _ in 0..case.in_flight.min(requests) {
        let client = Client::connect(address, *case, &template).await?;
        clients.push(tasks.spawn_local(client.ask_all(Rc::clone(&left), requests, began)));
    }
    tasks.await;
    let mut outcome = Outcome { took: began.elapsed(), ..Outcome::default() };
    for client in clients {
        let part = client.await?;
        outcome.latencies.extend(part.latencies);
        outcome.errors += part.errors;
        outcome.kept += part.kept;
        outcome.first_error = outcome.first_error.or(part.first_error);
    }
    outcome.latencies.sort_unstable();
    Ok(outcome)
}

struct Client {
    stream: TcpStream,
    case: Case,
    request: Vec<u8>,
    number: usize,
    read: Vec<u8>,
    body: Vec<u8>,
}

impl Client {
    async fn connect(address: SocketAddr, case: Case, template: &[u8]) -> Fallible<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let number = memmem::find(template, NUMBER).ok_or("a request without a number")?;
        let (request, read, body) = (template.to_owned(), Vec::with_capacity(64 << 10), Vec::new());
        Ok(Self { stream, case, request, number, read, body })
    }

    async fn ask_all(mut self, left: Rc<Cell<usize>>, all: usize, began: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        while left.get() > 0 {
            let at = all - left.get();
            left.set(left.get() - 1);
            let mut since = None;
            if let Asked::AtRate(rate) = self.case.asked {
                // Who is late counts from when it was due, so that a server that stalls is not asked less for it.
                let due = began + Duration::from_secs(1) * u32::try_from(at).unwrap_or(u32::MAX) / rate;
                match Instant::now() < due {
                    true => sleep_until(due).await,
                    false => since = Some(due),
                }
            }
            if self.case.asked != Asked::Again {
                let number = format!("{:016}", next_number());
                self.request[self.number..self.number + NUMBER.len()].copy_from_slice(number.as_bytes());
            }
            let since = since.unwrap_or_else(Instant::now);
            let asked = timeout(PATIENCE, self.ask()).await.unwrap_or(Err("no answer in time".into()));
            match asked {
                Ok(is_kept) => {
                    outcome.latencies.push(u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX));
                    outcome.kept += usize::from(is_kept);
                }
                Err(error) => {
                    outcome.errors += 1;
                    outcome.first_error.get_or_insert(error.to_string());
                    // Whatever else comes over this connection answers another question.
                    break;
                }
            }
        }
        outcome
    }

    /// Asks one question, and reads its answer to the end. Whether that was kept from an earlier one.
    async fn ask(&mut self) -> Fallible<bool> {
        self.stream.write_all(&self.request).await?;
        let head = loop {
            if let Some(at) = memmem::find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let said = str::from_utf8(&self.read[..head])?.to_ascii_lowercase();
        if !said.starts_with("http/1.1 200") {
            return Err(String::from_utf8_lossy(&self.read).into());
        }
        let header = |name: &str| {
            let value = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::trim)
        };
        let length: Option<usize> = header("content-length").map(str::parse).transpose()?;
        let is_kept = header("age").is_some();
        self.body.clear();
        match length {
            Some(length) => {
                while self.read.len() < head + length {
                    self.more().await?;
                }
                self.body.extend_from_slice(&self.read[head..head + length]);
                self.read.drain(..head + length);
            }
            None => self.chunked(head).await?,
        }
        self.check()?;
        Ok(is_kept)
    }

    async fn more(&mut self) -> Fallible {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err("the connection was closed".into()),
            _ => Ok(()),
        }
    }

    async fn chunked(&mut self, mut at: usize) -> Fallible {
        loop {
            let line = loop {
                match memmem::find(&self.read[at..], b"\r\n") {
                    Some(end) => break at + end,
                    None => self.more().await?,
                }
            };
            let size = usize::from_str_radix(str::from_utf8(&self.read[at..line])?, 16)?;
            let (start, end) = (line + 2, line + 2 + size);
            while self.read.len() < end + 2 {
                self.more().await?;
            }
            self.body.extend_from_slice(&self.read[start..end]);
            at = end + 2;
            if size == 0 {
                self.read.drain(..at);
                return Ok(());
            }
        }
    }

    /// Whether it is all that the upstream says, and nothing else.
    fn check(&self) -> Fallible {
        let is_whole = match (self.case.events(), self.body.starts_with(b"event: message_start\n")) {
            (0, _) => self.body.starts_with(br#"{"id""#) && self.body.ends_with(b"}"),
            // The floor answers as the upstream does.
            (events, false) => {
                self.body.ends_with(b"data: [DONE]\n\n")
                    && memmem::find_iter(&self.body, b"\n\n").count() == events
            }
            (_, true) => {
                let texts = memmem::find_iter(&self.body, b"\"text_delta\"").count();
                self.body.ends_with(b"data: {\"type\":\"message_stop\"}\n\n") && texts == self.case.chunks
            }
        };
        is_whole.then_some(()).ok_or_else(|| String::from_utf8_lossy(&self.body).into())
    }
}
