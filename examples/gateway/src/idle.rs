//! What a connection has to do: who is answered on it, and how long it is kept while it asks nothing.

use crate::under_way::UnderWay;
use hyper::rt::Timer;
use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// How long the head of a request may take: from its first byte on, and of the first one from when the connection is there.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// The requests of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicUsize,
    /// Their answers may still wait to be sent.
    ended: AtomicUsize,
    under_way: UnderWay,
}

/// One whose answer has not ended, until it is dropped.
#[derive(Debug)]
pub(crate) struct Request(Requests);

/// A connection that is closed where nothing comes for too long while nobody is answered. Hyper's own clock of heads runs between
/// requests too, and cannot tell the one from the other.
#[derive(Debug)]
pub(crate) struct Idle<S> {
    stream: S,
    requests: Requests,
    timeout: Duration,
    /// How many requests have ended, and their answers are sent.
    sent: usize,
    /// How many requests had begun when the last bytes came.
    begun: usize,
    /// A head has begun to come.
    is_head: bool,
    /// Whether it is the rest of a head that the timer runs for, if it runs.
    waits: Option<bool>,
    timer: Pin<Box<Sleep>>,
}

/// Hyper looks for the next request as soon as an answer has ended only if it has a clock to start then. This one does not run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Never;

impl Timer for Never {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Self)
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Self)
    }
}

impl hyper::rt::Sleep for Never {}

impl Future for Never {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl Requests {
    /// They are under way until they are sent, or their connection is gone.
    pub(crate) fn new(under_way: UnderWay) -> Self {
        Self(Arc::new(Counts { under_way, ..Counts::default() }))
    }

    pub(crate) fn begin(&self) -> Request {
        self.0.under_way.begin();
        self.0.begun.fetch_add(1, Ordering::AcqRel);
        Request(self.clone())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.0.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl<S> Idle<S> {
    /// Closes `stream` if no request comes for `timeout` after the last answer has ended.
    pub(crate) fn new(stream: S, requests: Requests, timeout: Duration) -> Self {
        // One that has just come is to ask.
        let (sent, begun, is_head, waits) = (0, 0, true, Some(true));
        let timer = Box::pin(sleep(HEAD_TIMEOUT));
        Self { stream, requests, timeout, sent, begun, is_head, waits, timer }
    }

    /// Whether somebody is answered; and if it is another one than before, what came before is over.
    fn is_answering(&mut self) -> bool {
        let begun = self.requests.0.begun.load(Ordering::Acquire);
        if begun != self.begun {
            (self.begun, self.is_head, self.waits) = (begun, false, None);
        }
        self.sent != begun
    }

    fn sent(&mut self, requests: usize) {
        self.requests.0.under_way.end(requests - self.sent);
        self.sent = requests;
    }

    /// Whether it has waited for too long.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waits != Some(self.is_head) {
            self.waits = Some(self.is_head);
            let limit = if self.is_head { HEAD_TIMEOUT } else { self.timeout };
            self.timer.as_mut().reset(Instant::now() + limit);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl<S> Drop for Idle<S> {
    fn drop(&mut self) {
        self.sent(self.requests.0.begun.load(Ordering::Acquire));
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Idle<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, into);
        if self.is_answering() {
            return polled;
        }
        match polled {
            Poll::Ready(_) => {
                self.is_head |= into.filled().len() > before;
                polled
            }
            // As if the client had closed it.
            Poll::Pending => self.poll_over(cx).map(Ok),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Idle<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        // Hyper flushes once it has written all that it has, and the end of an answer goes into its buffer before its body is dropped.
        if polled.is_ready() {
            let ended = self.requests.0.ended.load(Ordering::Acquire);
            self.sent(ended);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use hyper::{Response, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use std::convert::Infallible;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::advance,
    };

    const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const SLOW: &[u8] = b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n";

    /// Hyper, with 75 s between requests. It takes ten minutes for what is slow.
    fn connected() -> DuplexStream {
        connected_with_room_for(1 << 16)
    }

    fn connected_with_room_for(bytes: usize) -> DuplexStream {
        connected_among(&UnderWay::default(), bytes)
    }

    fn connected_among(under_way: &UnderWay, bytes: usize) -> DuplexStream {
        let (client, server) = duplex(bytes);
        let requests = Requests::new(under_way.clone());
        let idle = Idle::new(server, requests.clone(), Duration::from_secs(75));
        let service = service_fn(move |request: hyper::Request<_>| {
            let begun = requests.begin();
            async move {
                if request.uri().path() == "/slow" {
                    sleep(Duration::from_secs(600)).await;
                }
                drop(begun);
                let long = "x".repeat(if request.uri().path() == "/long" { 10_000 } else { 0 });
                Ok::<_, Infallible>(Response::new(Body::from(long + "ok")))
            }
        });
        let mut http = http1::Builder::new();
        tokio::spawn(http.timer(Never).serve_connection(TokioIo::new(idle), service));
        client
    }

    async fn is_answered(client: &mut DuplexStream, head: &[u8]) {
        client.write_all(head).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "it is closed");
        }
    }

    /// After how many seconds it is closed without a word.
    async fn closed_after(client: &mut DuplexStream) -> u64 {
        let since = Instant::now();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        since.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_a_connection_is_kept_for_its_time_and_no_longer() {
        let mut client = connected();
        for pause in [0, 61, 74] {
            advance(Duration::from_secs(pause)).await;
            is_answered(&mut client, HEAD).await;
        }
        assert_eq!(closed_after(&mut client).await, 75);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_is_waited_for_since_it_began() {
        assert_eq!(closed_after(&mut connected()).await, 60, "nothing at all");
        for is_first in [true, false] {
            let mut client = connected();
            if !is_first {
                is_answered(&mut client, HEAD).await;
                sleep(Duration::from_secs(70)).await;
            }
            // Byte by byte: that some come does not help.
            for byte in &HEAD[..5] {
                client.write_all(&[*byte]).await.unwrap();
                sleep(Duration::from_secs(10)).await;
            }
            assert_eq!(closed_after(&mut client).await, 10, "{is_first}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_an_answer_is_not_idle() {
        let mut client = connected();
        is_answered(&mut client, SLOW).await;
        sleep(Duration::from_secs(74)).await;
        is_answered(&mut client, SLOW).await;
        assert_eq!(closed_after(&mut client).await, 75);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_come_at_once_are_answered_one_after_the_other() {
        let mut client = connected();
        client.write_all(SLOW).await.unwrap();
        client.write_all(&HEAD[..9]).await.unwrap();
        is_answered(&mut client, b"").await;
        sleep(Duration::from_secs(30)).await;
        is_answered(&mut client, &HEAD[9..]).await;
        assert_eq!(closed_after(&mut client).await, 75);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_an_answer_slowly_is_not_idle() {
        let mut client = connected_with_room_for(1_000);
        client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") {
            sleep(Duration::from_secs(50)).await;
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "{} bytes", answer.len());
        }
        assert!(closed_after(&mut client).await <= 75);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_answered_is_under_way_until_all_is_sent() {
        let under_way = UnderWay::default();
        let mut client = connected_among(&under_way, 1_000);
        for _ in 0..2 {
            client.write_all(b"GET /long HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let (mut answer, mut seen) = (Vec::new(), Vec::new());
            while !answer.ends_with(b"ok") {
                sleep(Duration::from_secs(1)).await;
                seen.push((answer.len(), under_way.count()));
                client.read_buf(&mut answer).await.unwrap();
            }
            assert!(seen.len() > 3);
            for (taken, count) in seen {
                assert_eq!(count, usize::from(taken + 1_000 < answer.len()), "{taken} bytes");
            }
            under_way.none().await;
        }
        client.write_all(SLOW).await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(under_way.count(), 1);
        drop(client);
        under_way.none().await;
    }
}
