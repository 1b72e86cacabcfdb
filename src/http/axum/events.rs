use crate::{
    ChunkStream, Error, ErrorClass, StreamChunk,
    http::{DONE, FillIn, KEEP_ALIVE, anthropic::MessageEvents, error_event, write_event},
};
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame};
use std::{
    convert::Infallible,
    fmt,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A stream of chunks as a body of server-sent events, for axum and anything else that takes an
/// [`http_body::Body`].
///
/// Chunks that are ready at once leave together, up to 16 KiB. None is held back by the clock to wait for another; where they come
/// faster than each could be written, some turns of the scheduler show what has come with them. After
/// the terminal chunk comes `[DONE]`, or what the dialect has for it; after an error, an event that says so and nothing else. A chunk of
/// nothing but usage is left out unless it was asked for.
///
/// # Cancel safety
///
/// Dropping it drops the stream, which hangs up on the provider.
pub struct Events {
    /// `None` after the end.
    chunks: Option<ChunkStream>,
    dialect: Dialect,
    buffer: BytesMut,
    keep_alive: Option<Duration>,
    silent_since: Option<Instant>,
    /// Registered at the first silence, moved only when it fires.
    sleep: Option<Pin<Box<Sleep>>>,
    looks: Looks,
}

/// Whether to look once more for what comes next before a write.
///
/// An HTTP client hands a body on piece by piece, even what it has read at once: each piece comes when its own task has
/// had a turn. A turn is cheaper than a write, and is waited for where that has brought something; else it is tried now and
/// then.
#[derive(Debug)]
struct Looks {
    /// Made for the first look.
    turn: Option<Arc<Turn>>,
    /// How many writes go without.
    pause: u8,
    /// How often it was looked since the last write.
    taken: u8,
    /// How much there was at the last look.
    seen: usize,
}

/// Tells whether other tasks have had their turn: an HTTP server may ask for the next frame several times in one of its own.
#[derive(Debug)]
struct Turn {
    is_over: AtomicBool,
    task: AtomicWaker,
}

#[derive(Debug)]
enum Dialect {
    OpenAi { fill: FillIn, usage: bool },
    Anthropic(Box<MessageEvents>),
}

/// How much may be joined to save writes.
const MAX_JOINED: usize = 16 << 10;

/// How many turns a write may wait.
const MAX_LOOKS: u8 = 8;

/// How many writes go without a look after one that was in vain.
const PAUSE: u8 = 16;

impl Events {
    /// The events of `chunks`, each made complete by `fill`.
    pub fn new(chunks: ChunkStream, fill: FillIn) -> Self {
        Self::of(chunks, Dialect::OpenAi { fill, usage: false })
    }

    /// The events of `chunks` in Anthropic's Messages dialect.
    pub fn of_message(chunks: ChunkStream, events: MessageEvents) -> Self {
        Self::of(chunks, Dialect::Anthropic(Box::new(events)))
    }

    fn of(chunks: ChunkStream, dialect: Dialect) -> Self {
        Self {
            chunks: Some(chunks),
            dialect,
            buffer: BytesMut::with_capacity(4 << 10),
            keep_alive: None,
            silent_since: None,
            sleep: None,
            looks: Looks { turn: None, pause: PAUSE / 4, taken: 0, seen: 0 },
        }
    }

    /// Passes on the chunk that carries nothing but usage; not unless told. Messages always say it.
    #[must_use]
    pub const fn with_usage(mut self, wanted: bool) -> Self {
        if let Dialect::OpenAi { usage, .. } = &mut self.dialect {
            *usage = wanted;
        }
        self
    }

    /// Sends a comment whenever the stream was silent for so long; never unless told, or if that is no time at all.
    #[must_use]
    pub const fn with_keep_alive(mut self, silence: Option<Duration>) -> Self {
        self.keep_alive = match silence {
            Some(Duration::ZERO) => None,
            silence => silence,
        };
        self
    }

    fn write(&mut self, chunk: &StreamChunk) {
        match &mut self.dialect {
            Dialect::OpenAi { fill, usage } => {
                let is_wanted = !chunk.data().is_empty() && (*usage || !chunk.is_usage_only());
                if is_wanted {
                    write_event(&fill.chunk(chunk), &mut self.buffer);
                }
                if chunk.is_final() {
                    self.buffer.extend_from_slice(DONE);
                }
            }
            Dialect::Anthropic(events) => {
                events.write(chunk, &mut self.buffer);
                if events.is_over()
                    && !chunk.is_final()
                    && let Some(mut chunks) = self.chunks.take()
                {
                    // To those who watch the answer it has failed; nobody has left.
                    chunks.cut(Error::provider(ErrorClass::TooLarge, "", events.model().clone()));
                }
            }
        }
        if chunk.is_final() {
            self.chunks = None;
        }
    }

    fn write_error(&mut self, error: &Error) {
        match self.dialect {
            Dialect::OpenAi { .. } => self.buffer.extend_from_slice(&error_event(error)),
            Dialect::Anthropic(_) => MessageEvents::write_error(error, &mut self.buffer),
        }
    }

    fn keep_alive(&self) -> Bytes {
        match self.dialect {
            Dialect::OpenAi { .. } => KEEP_ALIVE.into(),
            Dialect::Anthropic(_) => {
                let mut ping = BytesMut::new();
                MessageEvents::write_ping(&mut ping);
                ping.freeze()
            }
        }
    }

    fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(keep_alive) = self.keep_alive else { return Poll::Pending };
        let mut now = Instant::now();
        let Some(at) = self.silent_since.get_or_insert(now).checked_add(keep_alive) else {
            return Poll::Pending;
        };
        while now < at {
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if sleep.is_elapsed() {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            now = Instant::now();
        }
        self.silent_since = Some(now);
        Poll::Ready(())
    }
}

impl Turn {
    /// Wakes the task when those that are ready to run now have run.
    fn begin(self: &Arc<Self>, cx: &Context<'_>) {
        self.is_over.store(false, Ordering::Release);
        self.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(self));
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
    }
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Looks {
    /// Whether the task will be woken to look again, and nothing is to be written before.
    fn again(&mut self, buffered: usize, cx: &Context<'_>) -> bool {
        if buffered == 0 {
            return false;
        }
        let turn = self.turn.as_ref().filter(|_| self.taken > 0 && self.seen == buffered);
        if let Some(turn) = turn {
            turn.task.register(cx.waker());
            if !turn.is_over.load(Ordering::Acquire) {
                return true;
            }
        }
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        let is_in_vain = self.taken > 0 && self.seen == buffered;
        if is_in_vain || self.taken == MAX_LOOKS {
            // Even the last look may be in vain if others were not.
            self.pause = if self.taken == 1 { PAUSE } else { 0 };
            self.taken = 0;
            return false;
        }
        (self.taken, self.seen) = (self.taken + 1, buffered);
        let turn = || Arc::new(Turn { is_over: AtomicBool::new(true), task: AtomicWaker::new() });
        self.turn.get_or_insert_with(turn).begin(cx);
        true
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        while this.buffer.len() < MAX_JOINED {
            let Some(chunks) = &mut this.chunks else { break };
            match Pin::new(chunks).poll_next(cx) {
                Poll::Ready(Some(Ok(chunk))) => this.write(&chunk),
                // The last that it says.
                Poll::Ready(Some(Err(error))) => this.write_error(&error),
                Poll::Ready(None) => this.chunks = None,
                Poll::Pending if this.looks.again(this.buffer.len(), cx) => return Poll::Pending,
                Poll::Pending if !this.buffer.is_empty() => break,
                Poll::Pending => {
                    return this.poll_keep_alive(cx).map(|()| Some(Ok(Frame::data(this.keep_alive()))));
                }
            }
        }
        this.silent_since = None;
        let events = this.buffer.split().freeze();
        Poll::Ready((!events.is_empty()).then(|| Ok(Frame::data(events))))
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_none() && self.buffer.is_empty()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("chunks", &self.chunks)
            .field("dialect", &self.dialect)
            .field("keep_alive", &self.keep_alive)
            .finish_non_exhaustive()
    }
}
