use super::{
    event::{EventId, Outcome, Saved, UsageEvent},
    layer::Settings,
    sink::{Slot, Ticket},
    spent::{Charge, Spent, mark_answered, was_sent},
};
use crate::{
    CacheStatus, CallId, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, RequestContext,
    TokenUsage,
    body::{End, Observe},
    cache::MissReason,
    price::{Billed, Cost, ServiceTier},
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

/// Collects what is known of one call, and records it when its answer ends. In a box: a future is carried through all
/// layers outside of its own before it is polled.
pub(super) struct Recorder(Box<Call>);

struct Call {
    slot: Slot,
    settings: Arc<Settings>,
    committed: Option<Committed>,
    started: Instant,
    /// Of calls only: where hits are recorded, nobody is asked.
    progress: Option<Progress>,
    lease: Option<CallId>,
    context: RequestContext,
    requested: ModelName,
    model: ModelName,
    provider: Option<Arc<str>>,
    attempt: u16,
    streamed: bool,
    charge: Charge,
    cache: CacheStatus,
    cache_miss: Option<MissReason>,
}

/// By what whoever hands the answer out learns that its record is safe.
#[derive(Clone, Default)]
pub(super) struct Committed(Arc<Mutex<Option<Ticket>>>);

/// How a call ended, in the terms of its record.
struct Ended {
    outcome: Outcome,
    billed: Billed,
    tier: Option<ServiceTier>,
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
        progress: Option<Progress>,
        request: &LlmRequest,
    ) -> Self {
        let (cache, cache_miss) = match settings.which {
            Which::Calls => request.cache(),
            Which::Hits => Default::default(),
        };
        Self(Box::new(Call {
            slot,
            settings: Arc::clone(settings),
            committed,
            started: Instant::now(),
            progress,
            lease: request.progress.lease(),
            context: request.context.clone(),
            requested: request.requested.clone(),
            model: request.model.clone(),
            provider: request.provider().cloned(),
            attempt: request.attempt,
            streamed: request.body.is_streaming(),
            charge: Charge::of(&request.body),
            cache,
            cache_miss,
        }))
    }
}

impl Call {
    /// Whether there is anything to be recorded of a call that ends so.
    fn counts(&self, end: &End<'_>) -> bool {
        // What did not reach a provider used nothing up.
        self.cache.is_hit() || self.progress.as_ref().is_some_and(|progress| was_sent(end, progress))
    }
}

impl Observe for Recorder {
    fn on_head(&mut self, head: &LlmResponse) {
        let this = &mut *self.0;
        if let Some(progress) = &this.progress {
            mark_answered(head, progress);
        }
        let is_calls = this.settings.which == Which::Calls;
        if head.cache != CacheStatus::Unused {
            this.cache = head.cache;
            this.cache_miss = head.cache_miss.filter(|_| is_calls);
        }
        if head.provider.is_some() && (is_calls || this.cache.is_hit()) {
            // Canonical, and of the model that answered, wherever this layer stands.
            this.model.clone_from(&head.model);
            this.provider.clone_from(&head.provider);
        }
    }

    fn on_end(self, end: End<'_>) {
        if !self.0.counts(&end) {
            return;
        }
        // Out of the box one by one: all at once they would be moved once more.
        let call = self.0;
        let now = Instant::now();
        let (ended_at, latency) = (call.settings.clock.at(now.into_std()), now.duration_since(call.started));
        let Ended { outcome, mut billed, tier, answered, first_content } = ended(&end, &call, latency);
        // Outside of the providers, who fails before there is a head does not say who it is.
        let provider = call.provider.or_else(|| asked(&end, &call.model));
        let model = call.charge.model(&call.model, provider.as_deref(), answered.as_deref());
        let cost = call.settings.prices.bill(&model, &mut billed);
        let outcome = match (call.cache, outcome) {
            (CacheStatus::Hit { .. }, Outcome::Ok) => Outcome::CacheHit,
            (CacheStatus::Coalesced, Outcome::Ok) => Outcome::Coalesced,
            (_, outcome) => outcome,
        };
        let assumed_cost = match (&call.settings.assumed, cost.amount) {
            (Some(price), None) if !call.cache.is_hit() => price.bill(&billed).ok().map(|(amount, _)| amount),
            _ => None,
        };
        let (usage, cost, saved) = match call.cache.is_hit() {
            false => (billed.usage, cost, None),
            true => {
                let saved = Saved { usage: billed.usage, cost };
                (TokenUsage::new(0, 0), Cost::nothing(), Some(Box::new(saved)))
            }
        };
        let event = UsageEvent {
            id: EventId::mint(ended_at),
            lease: call.lease,
            ended_at,
            context: call.context,
            requested: call.requested,
            model: call.model,
            answered,
            provider,
            attempt: call.attempt,
            streamed: call.streamed,
            usage,
            cost,
            assumed_cost,
            service_tier: tier,
            saved,
            latency,
            first_content,
            outcome,
            cache: call.cache,
            cache_miss: call.cache_miss,
        };
        match call.committed {
            Some(committed) => committed.set(call.slot.record_with_ticket(event)),
            None => call.slot.record(event),
        }
    }
}

/// The provider of a call that has failed: the one that its error names, or that its model names first.
fn asked(end: &End<'_>, model: &ModelName) -> Option<Arc<str>> {
    let first_name = || model.split().map(|(provider, _)| provider.into());
    match end {
        End::Failed(error, _) => match error.kind() {
            ErrorKind::Provider(failure) => Some(Arc::clone(&failure.provider)),
            _ => first_name(),
        },
        End::Abandoned(_) => first_name(),
        End::Whole(_) | End::StreamEnded(_) => None,
    }
}

fn ended(end: &End<'_>, call: &Call, latency: Duration) -> Ended {
    let spent = Spent::at(end, call.progress.as_ref());
    let tier = spent.tier;
    let billed = call.charge.billed(spent);
    let said = |has_content| if has_content { Outcome::Ok } else { Outcome::Empty };
    let (outcome, summary) = match end {
        End::Whole(completion) => {
            return Ended {
                outcome: said(completion.has_content()),
                billed,
                tier,
                answered: completion.model().map(Into::into),
                first_content: completion.has_content().then_some(latency),
            };
        }
        End::StreamEnded(summary) => (said(summary.has_content), summary),
        End::Failed(_, summary) => (Outcome::Error, summary),
        End::Abandoned(summary) => (Outcome::Aborted, summary),
    };
    let first_content =
        summary.first_content_at.map(|at| Instant::from_std(at).saturating_duration_since(call.started));
    Ended { outcome, billed, tier, answered: summary.model.clone(), first_content }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("which", &self.0.settings.which).finish_non_exhaustive()
    }
}
