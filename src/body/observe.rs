use crate::{ChoiceFinish, Completion, Error, LlmResponse, StreamChunk, TokenUsage, price::ServiceTier};
use std::cell::OnceCell;
use tokio::time::Instant;

/// Watches one call until its answer has ended.
///
/// Hand it to a [`Watch`](super::Watch) in `call`; from there it goes on to the answer's body.
/// [`on_end`](Self::on_end) runs exactly once, whatever happens: an answer, an error, a stream that ends,
/// breaks or is dropped, a future dropped before its head, a panic below.
pub trait Observe: Send + 'static {
    /// There is an answer, and its body comes next. Not called if the call fails.
    fn on_head(&mut self, head: &LlmResponse) {
        let _ = head;
    }

    /// A chunk of a stream passes by. Not called for whole answers.
    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        let _ = (chunk, arrival);
    }

    /// It is over.
    ///
    /// May run inside `Drop`: it must not block, wait, spawn or panic. Count in memory, or hand over to a
    /// place that was reserved before the call.
    fn on_end(self, end: End<'_>);
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum End<'a> {
    /// It was whole from the start.
    Whole(&'a Completion),
    /// The stream came to its terminal chunk.
    StreamEnded(&'a Summary),
    /// The call failed, or the stream broke; without a head the summary is empty.
    Failed(&'a Error, &'a Summary),
    /// The caller went away before the end.
    Abandoned(&'a Summary),
}

/// What has been seen of a stream, kept once by the stream itself.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Summary {
    /// How many chunks, the terminal one included.
    pub chunks: u64,
    /// How many bytes of JSON.
    pub bytes: u64,
    /// How many bytes of text, of thoughts, and of the names and arguments of tool calls, as JSON spells them: what is said by
    /// several names in a chunk counts once, and of a picture or the like at most 8 KiB.
    pub text_bytes: u64,
    /// Whether any had content.
    pub has_content: bool,
    /// The latest report of usage.
    pub usage: Option<TokenUsage>,
    /// How many of the [`text_bytes`](Self::text_bytes) had come by then.
    pub(crate) reported_bytes: u64,
    /// The tier in which the provider says that it serves the call.
    pub service_tier: Option<ServiceTier>,
    /// Why each choice ended, as far as it has; of all from the 128th on, why the latest did.
    pub finish_reasons: Vec<ChoiceFinish>,
    /// The id that the provider gave the answer.
    pub id: Option<Box<str>>,
    /// The model as the provider names it.
    pub model: Option<Box<str>>,
    /// When the first chunk came. Of an answer that was kept it is only known if somebody watches it.
    pub first_chunk_at: Option<std::time::Instant>,
    /// When the first content came. As for [`first_chunk_at`](Self::first_chunk_at).
    pub first_content_at: Option<std::time::Instant>,
}

/// When a chunk came: the clock is read once for all observers, and only if one of them asks.
#[derive(Debug, Default)]
pub struct Arrival(OnceCell<Instant>);

impl Arrival {
    /// The time.
    pub fn at(&self) -> std::time::Instant {
        self.0.get_or_init(Instant::now).into_std()
    }
}

impl Summary {
    pub(super) fn add(&mut self, chunk: &StreamChunk, arrival: &Arrival, is_timed: bool) {
        self.chunks += 1;
        self.bytes += chunk.data().len() as u64;
        self.text_bytes += u64::from(chunk.facts().text_bytes);
        if is_timed && self.first_chunk_at.is_none() {
            self.first_chunk_at = Some(arrival.at());
        }
        if !self.has_content && chunk.has_content() {
            self.has_content = true;
            self.first_content_at = is_timed.then(|| arrival.at());
        }
        if let Some(usage) = chunk.usage() {
            self.usage = Some(*usage);
            self.reported_bytes = self.text_bytes;
        }
        self.service_tier = chunk.service_tier().or(self.service_tier);
        for finish in chunk.finish_reasons() {
            self.finish_reasons.retain(|seen| seen.place() != finish.place());
            self.finish_reasons.push(finish.clone());
        }
        if self.id.is_none() {
            self.id = chunk.id().map(Into::into);
        }
        if self.model.is_none() {
            self.model = chunk.model().map(Into::into);
        }
    }
}

/// [`Observe`] as a trait object.
pub(super) trait DynObserve: Send {
    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival);
    fn on_end(self: Box<Self>, end: End<'_>);
}

impl<O: Observe> DynObserve for O {
    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        Observe::on_chunk(self, chunk, arrival);
    }

    fn on_end(self: Box<Self>, end: End<'_>) {
        Observe::on_end(*self, end);
    }
}
