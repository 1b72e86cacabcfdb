//! A client that sees every byte, and may leave at any of them.

use crate::soon;
use serde_json::{Value, json};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
};

/// One connection to a gateway.
#[derive(Debug)]
pub struct Client(BufReader<TcpStream>);

/// An answer, or as much of it as has come.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers, as they came.
    pub headers: Vec<(String, String)>,
    /// Its body, without what HTTP puts around pieces.
    pub body: String,
}

/// A chat request of this model.
pub fn chat(model: &str, stream: bool) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "Is anybody there?" }], "stream": stream })
}

impl Reply {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; `null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The events of a stream.
    pub fn events(&self) -> Vec<&str> {
        self.body.split("\n\n").filter_map(|event| event.trim_start().strip_prefix("data: ")).collect()
    }

    /// The text that a stream or a whole answer says.
    pub fn text(&self) -> String {
        let text = |value: &Value| {
            let choice = &value["choices"][0];
            choice["delta"]["content"].as_str().or(choice["message"]["content"].as_str()).map(str::to_owned)
        };
        match self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")) {
            true => self.events().iter().filter_map(|event| text(&json_of(event))).collect(),
            false => text(&self.json()).unwrap_or_default(),
        }
    }

    /// What whoever asked has got, in a few words.
    pub fn shown(&self) -> String {
        let code = |error: &Value| error["error"]["code"].as_str().unwrap_or("without a code").to_owned();
        let is_stream = self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        if !is_stream {
            return match self.status {
                200 if self.json()["choices"].is_array() => "a whole answer".to_owned(),
                200 => "200 WITHOUT AN ANSWER".to_owned(),
                status => format!("{status} {}", code(&self.json())),
            };
        }
        let begins = if self.text().is_empty() { "" } else { "content, then " };
        match self.events().last() {
            Some(&"[DONE]") if self.body.ends_with("data: [DONE]\n\n") => "a whole stream".to_owned(),
            Some(last) if json_of(last)["error"].is_object() => {
                format!("{begins}an event `{}`", code(&json_of(last)))
            }
            _ => format!("{begins}A CUT WITHOUT A WORD"),
        }
    }
}

/// JSON, or `null`.
pub fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub async fn connect(address: &str) -> io::Result<Self> {
        let stream = soon(TcpStream::connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Connects, and takes few bytes at once that it has not read.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub async fn connect_narrow(address: &str) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        Ok(Self(BufReader::with_capacity(
            1024,
            soon(socket.connect(address.parse().expect("an address"))).await?,
        )))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// The other end has hung up.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        soon(self.0.write_all(bytes)).await
    }

    /// The bytes of a request.
    pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: gateway\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    /// The bytes of a chat request with this key.
    pub fn chat_request(key: &str, body: &Value) -> Vec<u8> {
        let bearer = format!("Bearer {key}");
        let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
        Self::request("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes())
    }

    /// Reads the head of an answer.
    ///
    /// # Errors
    ///
    /// The other end has hung up.
    pub async fn head(&mut self) -> io::Result<Reply> {
        let status = self.line().await?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut reply = Reply { status: status.ok_or(io::ErrorKind::InvalidData)?, ..Reply::default() };
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(": ") else { return Ok(reply) };
            reply.headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    /// Reads an answer to its end. One that breaks off is as it came.
    ///
    /// # Errors
    ///
    /// There was no head.
    pub async fn reply(&mut self) -> io::Result<Reply> {
        let mut reply = self.head().await?;
        if reply.header("transfer-encoding") == Some("chunked") {
            while let Ok(Some(piece)) = self.piece().await {
                reply.body += &piece;
            }
        } else if let Some(length) = reply.header("content-length") {
            let mut body = vec![0; length.parse().map_err(|_| io::ErrorKind::InvalidData)?];
            soon(self.0.read_exact(&mut body)).await?;
            reply.body = String::from_utf8_lossy(&body).into_owned();
        }
        Ok(reply)
    }

    /// The next piece of a chunked body; `None` at its end.
    ///
    /// # Errors
    ///
    /// The other end has hung up.
    pub async fn piece(&mut self) -> io::Result<Option<String>> {
        let line = self.line().await?;
        let size = usize::from_str_radix(&line, 16).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mut piece = vec![0; size + 2];
        soon(self.0.read_exact(&mut piece)).await?;
        piece.truncate(size);
        Ok((size > 0).then(|| String::from_utf8_lossy(&piece).into_owned()))
    }

    /// Whether the other end hangs up within `limit`, whatever it still says.
    pub async fn is_hung_up_on(&mut self, limit: Duration) -> bool {
        let mut rest = [0; 4096];
        let end = async { while !matches!(self.0.read(&mut rest).await, Ok(0) | Err(_)) {} };
        tokio::time::timeout(limit, end).await.is_ok()
    }

    /// Says no more, and goes on listening.
    ///
    /// # Errors
    ///
    /// The other end has hung up.
    pub async fn say_no_more(&mut self) -> io::Result<()> {
        self.0.get_mut().shutdown().await
    }

    /// Hangs up by a reset rather than by a word.
    pub fn reset(self) {
        let _ = self.0.into_inner().set_zero_linger();
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match soon(self.0.read_line(&mut line)).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
