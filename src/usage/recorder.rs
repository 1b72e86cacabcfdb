use super::{
    event::{EventId, Outcome, Saved, UsageEvent},
    layer::Settings,
    sink::{Slot, Ticket},
    spent::{Spent, estimate, was_sent},
};
use crate::{
    CacheStatus, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, RequestContext, TokenUsage,
    body::{End, Observe},
    price::Cost,
};
use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};
use tokio::time::Instant;

/// Which calls are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Calls,
    /// Only answers that nobody was asked for.
    Hits,
}

/// Collects what is known of one call, and records it when its answer ends.
pub(super) struct Recorder {
    slot: Slot,
    settings: Arc<Settings>,
    committed: Option<Committed>,
    call: Call,
}

/// By what whoever hands the answer out learns that its record is safe.
#[derive(Clone)]
pub(super) struct Committed {
    ticket: Arc<Mutex<Option<Ticket>>>,
    limit: Duration,
}

struct Call {
    id: EventId,
    context: RequestContext,
    requested: ModelName,
    model: ModelName,
    provider: Option<Arc<str>>,
    attempt: u16,
    streamed: bool,
    input_bytes: usize,
    progress: Progress,
    cache: CacheStatus,
    started: Instant,
}

/// How a call ended, in the terms of its record.
struct Ended {
    outcome: Outcome,
    usage: TokenUsage,
    answered: Option<Box<str>>,
    first_content: Option<Duration>,
}

impl Committed {
    pub(super) fn within(limit: Duration) -> Self {
        Self { ticket: Arc::default(), limit }
    }

    fn set(&self, ticket: Ticket) {
        *self.ticket.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticket);
    }

    /// Waits until the event is safe; at once if there is none.
    pub(super) async fn wait(self) -> Result<(), Error> {
        // The recorder is told of the end first, so that the ticket is here if there is one.
        let ticket =
            poll_fn(|_| Poll::Ready(self.ticket.lock().unwrap_or_else(PoisonError::into_inner).take()));
        let Some(ticket) = ticket.await else { return Ok(()) };
        match tokio::time::timeout(self.limit, ticket).await {
            Ok(true) => Ok(()),
            _ => Err(Error::new(ErrorKind::StoreUnavailable { store: "usage".into() })),
        }
    }
}

impl Recorder {
    pub(super) fn start(
        settings: &Arc<Settings>,
        slot: Slot,
        committed: Option<Committed>,
        request: &LlmRequest,
    ) -> Self {
        let call = Call {
            id: EventId::mint(settings.clock.now()),
            context: request.context.clone(),
            requested: request.requested.clone(),
            model: request.model.clone(),
            provider: None,
            attempt: request.attempt,
            streamed: request.body.is_streaming(),
            input_bytes: request.body.input_bytes(),
            progress: request.progress.clone(),
            cache: CacheStatus::default(),
            started: Instant::now(),
        };
        Self { slot, settings: Arc::clone(settings), committed, call }
    }
}

impl Observe for Recorder {
    fn on_head(&mut self, head: &LlmResponse) {
        if head.provider.is_some() {
            // Canonical, and of the model that answered, wherever this layer stands.
            self.call.model.clone_from(&head.model);
            self.call.provider.clone_from(&head.provider);
        }
        self.call.cache = head.cache;
    }

    fn on_end(self, end: End<'_>) {
        let Self { slot, settings, committed, call } = self;
        let is_hit = call.cache.is_hit();
        // What did not reach a provider used nothing up.
        let counts = is_hit || (settings.which == Which::Calls && was_sent(&end, &call.progress));
        if !counts {
            return;
        }
        let latency = call.started.elapsed();
        let ended = call.ended(&end, latency);
        let cost = settings.prices.cost(&call.model, &ended.usage);
        let (usage, cost, saved) = match is_hit {
            false => (ended.usage, cost, None),
            true => {
                let nothing = TokenUsage::new(0, 0);
                (nothing, Cost::nothing(), Some(Saved { usage: ended.usage, cost }))
            }
        };
        let event = UsageEvent {
            id: call.id,
            ended_at: settings.clock.now(),
            context: call.context,
            requested: call.requested,
            model: call.model,
            answered: ended.answered,
            provider: call.provider,
            attempt: call.attempt,
            streamed: call.streamed,
            usage,
            cost,
            saved,
            latency,
            first_content: ended.first_content,
            outcome: match (call.cache, ended.outcome) {
                (CacheStatus::Hit { .. }, Outcome::Ok) => Outcome::CacheHit,
                (CacheStatus::Coalesced, Outcome::Ok) => Outcome::Coalesced,
                (_, outcome) => outcome,
            },
            cache: call.cache,
        };
        match committed {
            Some(committed) => committed.set(slot.record_with_ticket(event)),
            None => slot.record(event),
        }
    }
}

impl Call {
    fn ended(&self, end: &End<'_>, latency: Duration) -> Ended {
        let spent = Spent::at(end);
        let usage = spent.filled(estimate(self.input_bytes as u64), estimate(spent.text_bytes));
        let said = |has_content| if has_content { Outcome::Ok } else { Outcome::Empty };
        let (outcome, summary) = match end {
            End::Whole(completion) => {
                return Ended {
                    outcome: said(completion.has_content()),
                    usage,
                    answered: completion.model().map(Into::into),
                    first_content: completion.has_content().then_some(latency),
                };
            }
            End::StreamEnded(summary) => (said(summary.has_content), summary),
            End::Failed(_, summary) => (Outcome::Error, summary),
            End::Abandoned(summary) => (Outcome::Aborted, summary),
        };
        let first_content =
            summary.first_content_at.map(|at| Instant::from_std(at).saturating_duration_since(self.started));
        Ended { outcome, usage, answered: summary.model.clone(), first_content }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("id", &self.call.id)
            .field("which", &self.settings.which)
            .finish_non_exhaustive()
    }
}
