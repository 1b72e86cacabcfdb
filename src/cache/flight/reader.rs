//! What each caller of a flight reads, at his own pace.

use super::{Call, Flight, Own, Place, Shared};
use crate::{
    CacheStatus, ChunkStream, Completion, Error, ErrorKind, LlmResponse, ModelName, ResponseBody,
    StreamChunk, TokenUsage, providers::Chosen,
};
use futures_core::Stream;
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

/// One caller's way to a flight.
pub(in crate::cache) struct Reader {
    flight: Arc<Flight>,
    pub(super) id: u64,
    place: usize,
    usage: Option<TokenUsage>,
    /// For whom it counts what is saved; `None` if somebody has to be paid for it.
    saves: Option<Arc<Shared>>,
}

/// How an answer begins for one caller.
pub(in crate::cache) struct Beginning {
    model: ModelName,
    provider: Option<Arc<str>>,
    chosen: Option<Chosen>,
    pub(in crate::cache) cache: CacheStatus,
    is_similar: bool,
    own: Option<Own>,
    /// `None`: it is streamed.
    pub(in crate::cache) whole: Option<Completion>,
}

impl Reader {
    pub(super) fn new(flight: &Arc<Flight>, call: Option<Call>) -> Self {
        let mut state = flight.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        if let (Some(call), None, None) = (call, &state.head, &state.end) {
            state.waiting.insert(id, call);
        }
        let place = state.free_places.pop().unwrap_or_else(|| {
            state.places.push(None);
            state.places.len() - 1
        });
        state.places[place] = Some(Place::default());
        drop(state);
        Self { flight: Arc::clone(flight), id, place, usage: None, saves: None }
    }

    /// Waits until it is known how the answer begins: with a whole one, or with `None` for what is left of this reader
    /// to read.
    pub(in crate::cache) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Beginning, Error>> {
        let mut state = self.flight.lock();
        if let Some(error) = state.refused.remove(&self.id) {
            return Poll::Ready(Err(error));
        }
        let leads = state.leader == self.id;
        let whole = state.whole.clone();
        if let Some(head) = &mut state.head {
            let cache = match head.cache {
                cache if cache.is_hit() => cache,
                _ if leads => CacheStatus::Miss,
                _ => CacheStatus::Coalesced,
            };
            let own = if leads { head.own.take() } else { None };
            return Poll::Ready(Ok(Beginning {
                model: head.model.clone(),
                provider: head.provider.clone(),
                chosen: head.chosen.clone(),
                cache,
                is_similar: head.is_similar,
                own,
                whole,
            }));
        }
        if let Some(Err(error)) = &state.end {
            let error = error.clone();
            // Who did not pay has used nothing up.
            return Poll::Ready(Err(if leads { error } else { error.with_dispatched(false) }));
        }
        state.place(self.place).wait(cx);
        Poll::Pending
    }

    /// What is read is saved, once it is all there.
    pub(in crate::cache) fn saving_for(mut self, shared: &Arc<Shared>) -> Self {
        self.saves = Some(Arc::clone(shared));
        self
    }
}

impl Beginning {
    /// The answer, of which `reader` gives what is streamed.
    pub(in crate::cache) fn answer(self, reader: Reader) -> LlmResponse {
        let body = match self.whole {
            Some(completion) => ResponseBody::Complete(completion),
            None => ResponseBody::Stream(ChunkStream::new(reader)),
        };
        let mut answer = LlmResponse::new(self.model, body);
        answer.provider = self.provider;
        if let Some(chosen) = self.chosen {
            answer.set_chosen(chosen);
        }
        answer.cache = self.cache;
        answer.is_similar = self.is_similar;
        if let Some(Own { attempts, provider_request_id, quota, decisions, extensions }) = self.own {
            answer.attempts = attempts;
            answer.provider_request_id = provider_request_id;
            answer.quota = quota;
            answer.decisions = decisions;
            answer.extensions = extensions;
        }
        answer
    }
}

impl Stream for Reader {
    type Item = Result<StreamChunk, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let mut state = this.flight.lock();
        let at = state.place(this.place).at;
        let Some(next) = at.checked_sub(state.first) else {
            let model = state.head.as_ref().map(|head| head.model.clone());
            let after_content = state.has_content_before(at);
            return Poll::Ready(Some(Err(Error::new(ErrorKind::StreamInterrupted { model, after_content }))));
        };
        if let Some(chunk) = state.chunks.get(next as usize).cloned() {
            let place = state.place(this.place);
            place.at += 1;
            place.read = place.read.saturating_add(chunk.data().len());
            let carrier = state.carrier.take();
            drop(state);
            carrier.into_iter().for_each(Waker::wake);
            this.usage = chunk.usage().copied().or(this.usage);
            if let Some(shared) = this.saves.as_ref().filter(|_| chunk.is_final()) {
                shared.counters.saved(this.usage.as_ref());
            }
            return Poll::Ready(Some(Ok(chunk)));
        }
        match &state.end {
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            Some(Ok(())) => Poll::Ready(None),
            None => {
                state.place(this.place).wait(cx);
                Poll::Pending
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let flight = Arc::clone(&self.flight);
        let mut map = flight.flights.lock();
        let mut state = flight.lock();
        let place = state.places[self.place].take();
        state.free_places.push(self.place);
        state.refused.remove(&self.id);
        let unused = state.waiting.remove(&self.id);
        let nobody_is_left = state.followers().next().is_none();
        let is_over = nobody_is_left && state.end.is_none() && !flight.flights.rules.finishes_alone;
        let carrier = state.carrier.take();
        drop(state);
        if is_over {
            flight.leave_map(&mut map);
            if let Some(Some(task)) = map.tasks.remove(&flight.task) {
                task.abort();
            }
        }
        drop(map);
        drop((unused, place));
        carrier.into_iter().for_each(Waker::wake);
    }
}
