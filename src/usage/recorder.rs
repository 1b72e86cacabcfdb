use super::{
    event::{EventId, Outcome, Saved, UsageEvent},
    layer::Settings,
    sink::{Slot, Ticket},
    spent::{Spent, estimate, was_sent},
};
use crate::{
    CacheStatus, CallId, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, RequestContext,
    TokenUsage,
    body::{End, Observe},
    price::Cost,
};
use std::{
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, SystemTime},
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
    started: Instant,
    call: Call,
}

/// By what whoever hands the answer out learns that its record is safe.
#[derive(Clone, Default)]
pub(super) struct Committed(Arc<Mutex<Option<Ticket>>>);

/// What is known of a call before its end.
enum Call {
    Sure {
        input_bytes: usize,
        progress: Progress,
        /// Made at the beginning, and handed on as it is: it is not moved on the request's path.
        event: Box<UsageEvent>,
    },
    /// Recorded only if it is found to be a hit, as most are not.
    Maybe(Asked, CacheStatus),
}

struct Asked {
    context: RequestContext,
    requested: ModelName,
    model: ModelName,
    provider: Option<Arc<str>>,
    attempt: u16,
    streamed: bool,
    input_bytes: usize,
    lease: Option<CallId>,
}

/// How a call ended, in the terms of its record.
struct Ended {
    outcome: Outcome,
    usage: TokenUsage,
    answered: Option<Box<str>>,
    first_content: Option<Duration>,
}

impl Committed {
    fn set(&self, ticket: Ticket) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ticket);
    }

    /// Waits until the event is safe; at once if there is none.
    pub(super) async fn wait(self, limit: Duration) -> Result<(), Error> {
        // The recorder is told of the end first, so that the ticket is here if there is one.
        let ticket = poll_fn(|_| Poll::Ready(self.0.lock().unwrap_or_else(PoisonError::into_inner).take()));
        let Some(ticket) = ticket.await else { return Ok(()) };
        match tokio::time::timeout(limit, ticket).await {
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
        let asked = Asked {
            context: request.context.clone(),
            requested: request.requested.clone(),
            model: request.model.clone(),
            provider: None,
            attempt: request.attempt,
            streamed: request.body.is_streaming(),
            input_bytes: request.body.input_bytes(),
            lease: request.progress.lease(),
        };
        let call = match settings.which {
            Which::Calls => {
                let (input_bytes, mut event) = (asked.input_bytes, asked.event(settings.clock.now()));
                (event.cache, event.cache_miss) = request.cache();
                Call::Sure { input_bytes, progress: request.progress.clone(), event }
            }
            Which::Hits => Call::Maybe(asked, CacheStatus::default()),
        };
        Self { slot, settings: Arc::clone(settings), committed, started: Instant::now(), call }
    }
}

impl Observe for Recorder {
    fn on_head(&mut self, head: &LlmResponse) {
        let (model, provider, cache) = match &mut self.call {
            Call::Sure { event, .. } => {
                if head.cache != CacheStatus::Unused {
                    event.cache_miss = head.cache_miss;
                }
                (&mut event.model, &mut event.provider, &mut event.cache)
            }
            Call::Maybe(asked, cache) => (&mut asked.model, &mut asked.provider, cache),
        };
        if head.cache != CacheStatus::Unused {
            *cache = head.cache;
        }
        let is_recorded = self.settings.which == Which::Calls || cache.is_hit();
        if head.provider.is_some() && is_recorded {
            // Canonical, and of the model that answered, wherever this layer stands.
            model.clone_from(&head.model);
            provider.clone_from(&head.provider);
        }
    }

    fn on_end(self, end: End<'_>) {
        let Self { slot, settings, committed, started, call } = self;
        let (mut event, latency, input_bytes) = match call {
            // What did not reach a provider used nothing up.
            Call::Sure { progress, event, .. } if !event.cache.is_hit() && !was_sent(&end, &progress) => {
                return;
            }
            Call::Sure { mut event, input_bytes, .. } => {
                let latency = started.elapsed();
                event.ended_at = event.ended_at.checked_add(latency).unwrap_or(event.ended_at);
                (event, latency, input_bytes)
            }
            Call::Maybe(_, cache) if !cache.is_hit() => return,
            Call::Maybe(asked, cache) => {
                let input_bytes = asked.input_bytes;
                let (ended_at, latency) = (settings.clock.now(), started.elapsed());
                let mut event = asked.event(ended_at.checked_sub(latency).unwrap_or(ended_at));
                (event.ended_at, event.cache) = (ended_at, cache);
                (event, latency, input_bytes)
            }
        };
        event.latency = latency;
        let ended = ended(&end, started, latency, input_bytes);
        (event.answered, event.first_content) = (ended.answered, ended.first_content);
        let cost = settings.prices.cost(&event.model, &ended.usage);
        match event.cache.is_hit() {
            false => (event.usage, event.cost) = (ended.usage, cost),
            true => {
                (event.usage, event.cost) = (TokenUsage::new(0, 0), Cost::nothing());
                event.saved = Some(Box::new(Saved { usage: ended.usage, cost }));
            }
        }
        event.outcome = match (event.cache, ended.outcome) {
            (CacheStatus::Hit { .. }, Outcome::Ok) => Outcome::CacheHit,
            (CacheStatus::Coalesced, Outcome::Ok) => Outcome::Coalesced,
            (_, outcome) => outcome,
        };
        match committed {
            Some(committed) => committed.set(slot.record_with_ticket(event)),
            None => slot.record(event),
        }
    }
}

impl Asked {
    /// An event of which nothing more is known than when it began.
    fn event(self, began_at: SystemTime) -> Box<UsageEvent> {
        let Self { context, requested, model, provider, attempt, streamed, lease, .. } = self;
        Box::new(UsageEvent {
            id: EventId::mint(began_at),
            lease,
            // Until there is a latency to add.
            ended_at: began_at,
            context,
            requested,
            model,
            answered: None,
            provider,
            attempt,
            streamed,
            usage: TokenUsage::default(),
            cost: Cost::unpriced(),
            saved: None,
            latency: Duration::ZERO,
            first_content: None,
            outcome: Outcome::Aborted,
            cache: CacheStatus::default(),
            cache_miss: None,
        })
    }
}

fn ended(end: &End<'_>, started: Instant, latency: Duration, input_bytes: usize) -> Ended {
    let spent = Spent::at(end);
    let usage = spent.filled(estimate(input_bytes as u64), estimate(spent.text_bytes));
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
        summary.first_content_at.map(|at| Instant::from_std(at).saturating_duration_since(started));
    Ended { outcome, usage, answered: summary.model.clone(), first_content }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("which", &self.settings.which).finish_non_exhaustive()
    }
}
