use crate::clock::after;
use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A connection whose other end has to take what it is sent.
///
/// An answer that nobody reads would keep its place among the calls in flight, its reservation and its connection to a
/// provider for as long as the client likes: no layer can tell that from a client that reads slowly, for both ask for the next chunk
/// when there is room. Writing fails with [`TimedOut`](io::ErrorKind::TimedOut) when the other end has taken nothing for `limit`,
/// however little it takes before. The server then drops the answer, and all that belongs to it ends as when a client leaves.
///
/// It is for connections of HTTP/1, which carry one answer at a time. One of HTTP/2 has others to write, and pings, while it has no room for
/// an answer: serve `http1_only`, or bound the streams of a connection and its age.
///
/// Below `axum::serve` it comes by a listener of your own:
///
/// ```
/// use axum::serve::Listener;
/// use llm_layers::http::axum::WriteTimeout;
/// use std::{io, net::SocketAddr, time::Duration};
/// use tokio::net::{TcpListener, TcpStream};
///
/// struct Impatient(TcpListener);
///
/// impl Listener for Impatient {
///     type Io = WriteTimeout<TcpStream>;
///     type Addr = SocketAddr;
///
///     async fn accept(&mut self) -> (Self::Io, Self::Addr) {
///         let (stream, peer) = Listener::accept(&mut self.0).await;
///         (WriteTimeout::new(stream, Duration::from_secs(60)), peer)
///     }
///
///     fn local_addr(&self) -> io::Result<Self::Addr> {
///         self.0.local_addr()
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> io::Result<()> {
/// let listener = Impatient(TcpListener::bind("127.0.0.1:0").await?);
/// let server = axum::serve(listener, axum::Router::new());
/// # drop(server);
/// # Ok(())
/// # }
/// ```
///
/// Needs tokio's time.
pub struct WriteTimeout<S> {
    stream: S,
    limit: Duration,
    /// Made when something has to wait for the first time: most connections never need one.
    timer: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<S> WriteTimeout<S> {
    /// Gives up on `stream` when nothing is taken for `limit`.
    pub const fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, timer: None, is_waiting: false }
    }

    /// The connection.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Unwraps the connection.
    pub fn into_inner(self) -> S {
        self.stream
    }

    fn taken<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.is_waiting = false;
            return polled;
        }
        let limit = self.limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.is_waiting {
            self.is_waiting = true;
            timer.as_mut().reset(after(limit));
        }
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: fmt::Debug> fmt::Debug for WriteTimeout<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, limit, is_waiting, .. } = self;
        f.debug_struct("WriteTimeout")
            .field("stream", stream)
            .field("limit", limit)
            .field("is_waiting", is_waiting)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.taken(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        self.taken(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.taken(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter, duplex};
    use tokio::time::{Instant, timeout};

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_a_little_is_not() {
        let limit = Duration::from_secs(60);
        let (own, mut other) = duplex(10);
        let mut patient = WriteTimeout::new(own, limit);
        let reading = tokio::spawn(async move {
            for _ in 0..5 {
                sleep(limit - Duration::from_secs(1)).await;
                other.read_exact(&mut [0; 10]).await.unwrap();
            }
            other
        });
        patient.write_all(&[0; 60]).await.unwrap();
        let _other = reading.await.unwrap();
        let since = Instant::now();
        let error = patient.write_all(&[0; 20]).await.unwrap_err();
        assert_eq!((error.kind(), since.elapsed()), (io::ErrorKind::TimedOut, limit));
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_and_what_was_buffered_do_not_wait_for_ever_either() {
        let limit = Duration::from_secs(60);
        let (own, _other) = duplex(10);
        let mut buffered = WriteTimeout::new(BufWriter::new(own), limit);
        buffered.write_all(&[0; 20]).await.unwrap();
        let flushed = timeout(2 * limit, buffered.flush()).await.expect("it gives up");
        assert_eq!(flushed.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (own, _other) = duplex(10);
        let mut plain = WriteTimeout::new(own, limit);
        let pieces = [IoSlice::new(&[0; 20])];
        assert_eq!(plain.write_vectored(&pieces).await.unwrap(), 10);
        let written = timeout(2 * limit, plain.write_vectored(&pieces)).await.expect("it gives up");
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_limit_without_end_is_none() {
        let (own, mut other) = duplex(10);
        let mut patient = WriteTimeout::new(own, Duration::MAX);
        let mut bytes = [0; 20];
        let (written, read) = tokio::join!(patient.write_all(&[0; 20]), other.read_exact(&mut bytes));
        assert!(written.is_ok() && read.is_ok());
    }
}
