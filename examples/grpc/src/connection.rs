//! Connections that can be hung up on: who serves them are tonic's tasks, and those are not ours to end.

use llm_layers::{End, Observe};
use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
};
use tonic::transport::server::Connected;

/// Held by whatever is open. It says whether all are hung up on; who says so can wait until nobody holds one.
#[derive(Clone)]
pub(crate) struct Line(watch::Receiver<bool>);

impl Line {
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (hang_up, line) = watch::channel(false);
        (hang_up, Self(line))
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
    open: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, Line(mut line): Line) -> Self {
        let open = async move {
            let _ = line.wait_for(|is_hung_up| *is_hung_up).await;
        };
        Self { stream, open: Some(Box::pin(open)) }
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        let is_open = self.open.as_mut().is_some_and(|open| open.as_mut().poll(cx).is_pending());
        if !is_open {
            self.open = None;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.stream))
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
        self.poll_open(cx)?.poll_read(cx, into)
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
