//! A provider that answers at once, with as little work as possible: what is measured is not it.
//!
//! The model says what is answered: `whole`, or `stream-N`, `burst-N` and `paced-N` for N pieces of text that are
//! written one by one, all together, or one in a millisecond.

use crate::Fallible;
use memchr::memmem;
use std::{fmt::Write as _, io, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval},
};

const WHOLE: &str = concat!(
    r#"{"id":"chatcmpl-BenchBenchBenchBenchBench01","object":"chat.completion","created":1760000000,"#,
    r#""model":"mock-2025-01-01","choices":[{"index":0,"message":{"role":"assistant","content":"#,
    r#""The answer is that a gateway should cost next to nothing, and that is what is measured here.","#,
    r#""refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"#,
    r#""usage":{"prompt_tokens":24,"completion_tokens":21,"total_tokens":45,"#,
    r#""prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
    r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"#,
    r#""service_tier":"default","system_fingerprint":"fp_0123456789"}"#
);

/// What a provider says besides.
const HEADERS: &str = concat!(
    "date: Thu, 01 Jan 2026 00:00:00 GMT\r\n",
    "openai-organization: bench\r\n",
    "openai-processing-ms: 1\r\n",
    "openai-version: 2020-10-01\r\n",
    "x-ratelimit-limit-requests: 10000\r\n",
    "x-ratelimit-remaining-requests: 9999\r\n",
    "x-request-id: req_0123456789abcdef0123456789abcdef\r\n",
);

pub(crate) async fn serve(listener: TcpListener) -> Fallible {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            // Whoever hangs up is not asked why.
            let _ = Connection { stream, read: Vec::new(), answers: Vec::new() }.serve().await;
        });
    }
}

struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    /// By model, made once.
    answers: Vec<(String, Arc<Answer>)>,
}

struct Answer {
    /// What is written at once, each.
    parts: Vec<Vec<u8>>,
    pause: Option<Duration>,
}

impl Connection {
    async fn serve(&mut self) -> io::Result<()> {
        while let Some(model) = self.request().await? {
            let answer = self.answer(&model);
            let mut ticks = answer.pause.map(interval);
            if let Some(ticks) = &mut ticks {
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            for part in &answer.parts {
                if let Some(ticks) = &mut ticks {
                    ticks.tick().await;
                }
                self.stream.write_all(part).await?;
            }
        }
        Ok(())
    }

    /// Reads one request, and tells its model; `None` where the connection ends.
    async fn request(&mut self) -> io::Result<Option<String>> {
        let head = loop {
            if let Some(at) = memmem::find(&self.read, b"\r\n\r\n") {
                break at + 4;
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        };
        let length = content_length(&self.read[..head]).ok_or(io::ErrorKind::InvalidData)?;
        self.read.reserve((head + length).saturating_sub(self.read.len()));
        while self.read.len() < head + length {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Ok(None);
            }
        }
        let body = &self.read[head..head + length];
        let model = model(&body[..length.min(256)]).unwrap_or("whole").to_owned();
        self.read.drain(..head + length);
        Ok(Some(model))
    }

    fn answer(&mut self, model: &str) -> Arc<Answer> {
        if let Some((_, answer)) = self.answers.iter().find(|(known, _)| known == model) {
            return Arc::clone(answer);
        }
        let answer = Arc::new(Answer::of(model));
        self.answers.push((model.to_owned(), Arc::clone(&answer)));
        answer
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = str::from_utf8(head).ok()?;
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

fn model(body: &[u8]) -> Option<&str> {
    let at = memmem::find(body, br#""model":""#)? + br#""model":""#.len();
    let end = memchr::memchr(b'"', &body[at..])?;
    str::from_utf8(&body[at..at + end]).ok()
}

impl Answer {
    fn of(model: &str) -> Self {
        let streamed = model.split_once('-').and_then(|(kind, count)| Some((kind, count.parse().ok()?)));
        let Some((kind, count)) = streamed else {
            let length = WHOLE.len();
            let head = format!("HTTP/1.1 200 OK\r\n{HEADERS}content-type: application/json\r\n");
            let whole = format!("{head}content-length: {length}\r\n\r\n{WHOLE}");
            return Self { parts: vec![whole.into()], pause: None };
        };
        let mut parts = chunks(count);
        if kind == "burst" {
            parts = vec![parts.concat()];
        }
        Self { parts, pause: (kind == "paced").then_some(Duration::from_millis(1)) }
    }
}

/// The head with the first event, one event each, and the last with the end of the body.
fn chunks(count: usize) -> Vec<Vec<u8>> {
    let event = |choices: &str, usage: &str| {
        let json = format!(
            r#"{{"id":"chatcmpl-BenchBenchBenchBenchBench01","object":"chat.completion.chunk","created":1760000000,"model":"mock-2025-01-01","service_tier":"default","system_fingerprint":"fp_0123456789","choices":[{choices}],"usage":{usage}}}"#
        );
        format!("data: {json}\n\n")
    };
    let choice = |delta: &str, finish: &str| {
        format!(r#"{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish}}}"#)
    };
    let role = choice(r#""role":"assistant","content":"","refusal":null"#, "null");
    let mut events = vec![event(&role, "null")];
    let text = choice(r#""content":" word""#, "null");
    events.extend(std::iter::repeat_n(event(&text, "null"), count));
    events.push(event(&choice("", r#""stop""#), "null"));
    let usage = r#"{"prompt_tokens":24,"completion_tokens":100,"total_tokens":124}"#;
    events.push(event("", usage));
    events.push("data: [DONE]\n\n".to_owned());

    let framed = events.iter().map(|event| format!("{:x}\r\n{event}\r\n", event.len()));
    let mut parts: Vec<String> = framed.collect();
    let mut head = format!("HTTP/1.1 200 OK\r\n{HEADERS}content-type: text/event-stream\r\n");
    let _ = write!(head, "transfer-encoding: chunked\r\n\r\n{}", parts[0]);
    parts[0] = head;
    if let Some(last) = parts.last_mut() {
        last.push_str("0\r\n\r\n");
    }
    parts.into_iter().map(String::into_bytes).collect()
}
