//! Connections that can be hung up on: who serves them are tonic's tasks, and those are not ours to end.

use llm_layers::{End, Observe};
use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tonic::transport::server::Connected;

/// How long a connection may be open without the first bytes of HTTP/2.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);

/// How many bytes these are: RFC 9113, section 3.4.
const GREETING: usize = 24;

/// Who is hung up on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HangUp {
    Nobody,
    /// Who has not said anything yet: neither a goodbye nor a sign of life reaches him.
    Strangers,
    Everybody,
}

/// Held by whatever is open. It says who is hung up on; who says so can wait until nobody holds one.
#[derive(Clone)]
pub(crate) struct Line(watch::Receiver<HangUp>);

impl Line {
    pub(crate) fn new() -> (watch::Sender<HangUp>, Self) {
        let (hang_up, line) = watch::channel(HangUp::Nobody);
        (hang_up, Self(line))
    }

    async fn until(mut self, least: HangUp) {
        let _ = self.0.wait_for(|hang_up| *hang_up >= least).await;
    }
}

/// An answer, until it has ended.
impl Observe for Line {
    fn on_end(self, _: End<'_>) {}
}

/// Reading and writing fail once it is hung up on: its server drops all answers then, as when a client leaves.
pub(crate) struct Connection {
    stream: TcpStream,
    /// `None` from then on.
    open: Option<Pending>,
    /// As long as it may take until the client has said what all say first, and how much of that is to come.
    greeting: Option<(Pending, usize)>,
}

type Pending = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Connection {
    pub(crate) fn new(stream: TcpStream, line: Line) -> Self {
        let strangers = line.clone().until(HangUp::Strangers);
        let greeting = async {
            let _ = timeout(GREETING_TIMEOUT, strangers).await;
        };
        let open = line.until(HangUp::Everybody);
        Self { stream, open: Some(Box::pin(open)), greeting: Some((Box::pin(greeting), GREETING)) }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let mut waits = |pending: &mut Pending| pending.as_mut().poll(cx).is_pending();
        let is_open = self.open.as_mut().is_some_and(&mut waits)
            && self.greeting.as_mut().is_none_or(|(greeting, _)| waits(greeting));
        if !is_open {
            self.open = None;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.stream))
    }

    fn has_read(&mut self, bytes: usize) {
        if let Some((_, to_come)) = &mut self.greeting {
            *to_come = to_come.saturating_sub(bytes);
            if *to_come == 0 {
                self.greeting = None;
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = self.poll_open(cx)?.poll_read(cx, into);
        self.has_read(into.filled().len() - before);
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_open(cx)?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_open(cx)?.poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_open(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        time::{Instant, advance},
    };

    async fn connected(line: &Line) -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, Connection::new(listener.accept().await.unwrap().0, line.clone()))
    }

    async fn read(connection: &mut Connection) -> io::Result<usize> {
        connection.read(&mut [0; 64]).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_greeted_in_time_is_hung_up_on() {
        let (_hang_up, line) = Line::new();
        let (mut client, mut connection) = connected(&line).await;
        let since = Instant::now();
        client.write_all(&[b'P'; GREETING - 1]).await.unwrap();
        assert_eq!(read(&mut connection).await.unwrap(), GREETING - 1);
        assert_eq!(read(&mut connection).await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(since.elapsed().as_secs(), GREETING_TIMEOUT.as_secs());
        assert!(connection.write(b"hello").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_greeted_is_hung_up_on_with_everybody_only() {
        let (hang_up, line) = Line::new();
        let (mut client, mut connection) = connected(&line).await;
        let (_stranger, mut strange) = connected(&line).await;
        client.write_all(&[b'P'; GREETING]).await.unwrap();
        assert_eq!(read(&mut connection).await.unwrap(), GREETING);
        hang_up.send_replace(HangUp::Strangers);
        assert!(read(&mut strange).await.is_err());
        advance(2 * GREETING_TIMEOUT).await;
        client.write_all(b"more").await.unwrap();
        assert_eq!(read(&mut connection).await.unwrap(), 4);
        hang_up.send_replace(HangUp::Everybody);
        assert!(read(&mut connection).await.is_err());
    }
}
