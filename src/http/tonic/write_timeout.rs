use super::Messages;
use crate::{Error, StreamChunk, clock::after};
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tonic::Status;

/// [`Messages`] that their reader has to take.
///
/// HTTP/2 asks for the next message when the reader has room for it. One who makes none would keep the answer's place among the
/// calls in flight, its reservation and its connection to a provider for as long as he likes, alive by every sign. Here he is
/// hung up on when he has asked for nothing during `limit` though there was something, and the answer ends as when a caller leaves; should
/// he go on after that, he finds `DEADLINE_EXCEEDED`. Silence of the provider is not counted, nor is what is left to read after
/// the answer's end.
///
/// # Cancel safety
///
/// As that of [`Messages`].
pub struct WriteTimeout<F> {
    /// `None` once it is hung up on.
    messages: Arc<Mutex<Option<Messages<F>>>>,
    reader: Arc<Reader>,
    waker: Waker,
    limit: Duration,
    watch: AbortHandle,
}

/// Is woken in his place.
struct Reader {
    waker: AtomicWaker,
    /// Since when there is something that he does not ask for.
    idle_since: Mutex<Option<Instant>>,
}

impl<F: Send + 'static> WriteTimeout<F> {
    /// Hangs up on who takes nothing of `messages` for `limit`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn new(messages: Messages<F>, limit: Duration) -> Self {
        let messages = Arc::new(Mutex::new(Some(messages)));
        let idle_since = Mutex::new(Some(Instant::now()));
        let reader = Arc::new(Reader { waker: AtomicWaker::new(), idle_since });
        let watch = tokio::spawn(watch(Arc::downgrade(&messages), Arc::clone(&reader), limit)).abort_handle();
        Self { messages, waker: Arc::clone(&reader).into(), reader, limit, watch }
    }
}

/// A task, for nobody polls what nobody asks for.
async fn watch<F>(messages: Weak<Mutex<Option<Messages<F>>>>, reader: Arc<Reader>, limit: Duration) {
    loop {
        // While he waits, nothing can be due before this.
        let mut due = after(limit);
        {
            let Some(messages) = messages.upgrade() else { return };
            let mut messages = lock(&messages);
            if messages.as_ref().is_none_or(Messages::has_ended) {
                return;
            }
            let idle_since = *lock(&reader.idle_since);
            if let Some(since) = idle_since {
                let idle = since.elapsed();
                if idle >= limit {
                    let hung_up_on = messages.take();
                    // Outside of the locks: whoever is dropped may wake the reader.
                    drop(messages);
                    drop(hung_up_on);
                    return;
                }
                due = after(limit - idle);
            }
        }
        sleep_until(due).await;
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for Reader {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        lock(&self.idle_since).get_or_insert_with(Instant::now);
        self.waker.wake();
    }
}

impl<F, T> Stream for WriteTimeout<F>
where
    F: FnMut(&StreamChunk) -> Result<Option<T>, Error> + Unpin,
{
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut messages = lock(&self.messages);
        let was_idle = lock(&self.reader.idle_since).take().is_some();
        let Some(asked) = &mut *messages else {
            // Told once.
            return Poll::Ready(was_idle.then(|| Err(hung_up(self.limit))));
        };
        self.reader.waker.register(cx.waker());
        let polled = Pin::new(asked).poll_next(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            lock(&self.reader.idle_since).get_or_insert_with(Instant::now);
        }
        polled
    }
}

fn hung_up(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("nothing was taken of the answer for {limit:?}"))
}

impl<F> Drop for WriteTimeout<F> {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl<F> fmt::Debug for WriteTimeout<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTimeout")
            .field("messages", &*lock(&self.messages))
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}
