use super::{
    Entry, Fetch, NotStored,
    ask::{Plan, Shared},
    decide::{self, Ended},
    entry::{Answer, Bond},
    stats::count,
    worker::{Job, Write},
};
use crate::{
    ChoiceFinish, Completion, LlmResponse, ModelName, StreamChunk,
    body::{Arrival, End, Keeper, Observe, Summary},
};
use std::{mem, sync::Arc};

/// Keeps an answer while it passes, and stores it if it comes to a good end.
pub(super) struct Capture {
    shared: Arc<Shared>,
    plan: Plan,
    head: Option<Head>,
    /// The chunks' JSON, one after another: what a provider sends may be a small part of a large buffer.
    chunks: Keeper,
    bytes: usize,
    begun: u128,
    has_error: bool,
    has_calls: bool,
}

struct Head {
    model: ModelName,
    provider: Option<Arc<str>>,
    is_ours: bool,
}

impl Capture {
    pub(super) fn new(shared: Arc<Shared>, plan: Plan) -> Self {
        Self {
            shared,
            plan,
            head: None,
            chunks: Keeper::default(),
            bytes: 0,
            begun: 0,
            has_error: false,
            has_calls: false,
        }
    }

    fn is_too_large(&self) -> bool {
        self.bytes > self.shared.policy.max_entry_bytes
    }

    fn whole(&mut self, completion: &Completion) -> Result<(), NotStored> {
        let facts = completion.facts();
        let is_too_large = completion.data().len() > self.shared.policy.max_entry_bytes;
        decide::keep(&Ended {
            begun: facts.begun(),
            has_content: facts.has_content,
            has_error: facts.has_error,
            has_calls: facts.has_calls,
            is_too_large,
            ..self.ended(facts.finishes())
        })?;
        self.store(Answer::Whole(completion.detached()))
    }

    fn streamed(&mut self, summary: &Summary) -> Result<(), NotStored> {
        let ended = self.ended(&summary.finish_reasons);
        decide::keep(&Ended { has_content: summary.has_content, ..ended })?;
        let chunks = mem::take(&mut self.chunks).finish();
        self.store(Answer::Stream(chunks.into()))
    }

    fn ended<'a>(&self, finishes: &'a [ChoiceFinish]) -> Ended<'a> {
        Ended {
            is_complete: true,
            has_content: false,
            has_error: self.has_error,
            begun: self.begun,
            finishes,
            has_calls: self.has_calls,
            tool_calls: self.shared.policy.tool_calls,
            is_too_large: self.is_too_large(),
            is_ours: self.head.as_ref().is_some_and(|head| head.is_ours),
            has_time: !self.plan.ttl.is_zero(),
            has_epoch: self.plan.wanted.stamp.is_some(),
        }
    }

    /// Once, at the end.
    fn store(&mut self, answer: Answer) -> Result<(), NotStored> {
        let Self { shared, plan, head, .. } = self;
        let (Some(head), Some(stamp)) = (head.take(), plan.wanted.stamp.take()) else {
            return Err(NotStored::NoEpoch);
        };
        let created_at = shared.policy.clock.now();
        let (scope, rights) = (shared.scope_digest(&plan.context), Some(plan.context.kept_rights()));
        let bond = Bond { key: plan.wanted.key, scope, rights, stamp, created_at, ttl: plan.ttl };
        #[cfg(feature = "semantic")]
        let learn = plan.probe.take().map(|probe| (probe, bond.clone()));
        let entry = Arc::new(Entry::new(bond, head.model, head.provider, answer));
        let bytes = entry.weight();
        let write = match plan.asks_kbs {
            true => Write::IfAllowed(mem::take(&mut plan.context), plan.buckets.clone(), entry),
            false => match shared.put(entry, &plan.buckets)? {
                Fetch::Ready(()) => {
                    count(&shared.counters.stored);
                    #[cfg(feature = "semantic")]
                    shared.learn(learn);
                    return Ok(());
                }
                Fetch::Pending(put) => Write::Begun(put),
            },
        };
        let job = Job {
            shared: Arc::clone(shared),
            write,
            #[cfg(feature = "semantic")]
            learn,
        };
        shared.queue.as_ref().ok_or(NotStored::QueueFull)?.push(job, bytes)
    }
}

impl Observe for Capture {
    fn on_head(&mut self, head: &LlmResponse) {
        let asked = &self.plan.model;
        let is_same = head.model == *asked
            || asked.split().is_none()
                && head.provider.is_some()
                && head.model.split().is_some_and(|(_, bare)| bare == asked.as_str());
        // What a cache below has kept is as old as it says, and not to grow older here.
        let is_ours = is_same && !head.cache.is_hit();
        self.head = Some(Head { model: head.model.clone(), provider: head.provider.clone(), is_ours });
    }

    fn on_chunk(&mut self, chunk: &StreamChunk, _: &Arrival) {
        self.bytes = self.bytes.saturating_add(chunk.data().len());
        if self.is_too_large() || self.plan.wanted.stamp.is_none() || self.plan.ttl.is_zero() {
            self.chunks = Keeper::default();
            return;
        }
        let facts = chunk.facts();
        self.begun |= facts.begun();
        self.has_error |= facts.has_error;
        self.has_calls |= facts.has_calls;
        self.chunks.push(chunk);
    }

    fn on_end(mut self, end: End<'_>) {
        let stored = match end {
            End::Whole(completion) => self.whole(completion),
            End::StreamEnded(summary) => self.streamed(summary),
            End::Failed(..) | End::Abandoned(_) => Err(NotStored::Incomplete),
        };
        if let Err(reason) = stored {
            self.shared.counters.not_stored(reason);
        }
    }
}
