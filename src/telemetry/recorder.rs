use super::{
    content::Collector,
    layer::Settings,
    observer::{CallEnd, CallSpan, Head, Role},
};
use crate::{
    Attempt, CacheStatus, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, StreamChunk,
    body::{Arrival, End, Observe},
    decision::{self, DecisionRecord, Decisions},
    so_far::{Around, SoFar},
    usage::{Charge, Spent, mark_answered, was_sent},
};
use std::{mem, sync::Arc};
use tokio::time::Instant;

/// Collects what is known of one call, and ends its span when its answer ends.
pub(super) struct Recorder<S: CallSpan>(Box<Inner<S>>);

/// Boxed, for it goes from hand to hand: from the layer to its future, and from there to the stream.
struct Inner<S: CallSpan> {
    span: S,
    whole: Option<Whole<S::Scope>>,
    role: Role,
    started: Instant,
    choices: u32,
    head: Option<Kept>,
    decisions: Decisions,
    content: Option<Box<Collector>>,
    on_span: bool,
    on_event: bool,
    priced: Option<Priced>,
}

/// What a call's cost depends on, where that is told.
struct Priced {
    settings: Arc<Settings>,
    model: ModelName,
    charge: Charge,
    progress: Progress,
}

/// Of the whole call: what its request shows to those within, for as long as it goes on, and whether a provider was asked.
pub(super) type Whole<C> = (Arc<Around<Option<C>>>, Progress);

struct Kept {
    model: ModelName,
    cache: CacheStatus,
    attempts: Vec<Attempt>,
    record: Option<Box<DecisionRecord>>,
}

impl<S: CallSpan> Recorder<S> {
    pub(super) fn new(
        span: S,
        whole: Option<Whole<S::Scope>>,
        settings: &Arc<Settings>,
        request: &mut LlmRequest,
        started: Instant,
    ) -> Self {
        let role = settings.target.role;
        let is_recorded = role == Role::Client && span.is_recording();
        let on_span = is_recorded && settings.capture.on_span();
        let on_event = role == Role::Client && settings.capture.on_event();
        let has_attributes = is_recorded || on_event;
        let content = if on_span || on_event { settings.capture.collector(&request.body) } else { None };
        let priced = (has_attributes && settings.prices.is_some()).then(|| {
            // Prices are listed under the canonical name.
            let provider = &settings.target.prefix;
            let model = match request.model.split() {
                Some((prefix, _)) if *prefix == **provider => request.model.clone(),
                _ => ModelName::in_provider(provider, &request.model),
            };
            // The same request may be sent twice, by a retry or a hedge above: each call has its own.
            let (charge, progress) = (Charge::of(&request.body), request.progress.descend());
            Priced { settings: Arc::clone(settings), model, charge, progress }
        });
        Self(Box::new(Inner {
            span,
            whole,
            role,
            started,
            // Asked for only by attributes.
            choices: if has_attributes { CallEnd::choices(request) } else { 1 },
            head: None,
            decisions: request.decisions().clone(),
            content,
            on_span,
            on_event,
            priced,
        }))
    }
}

impl Priced {
    /// In US dollars, as in the ledger; none if nobody was asked, or nobody knows.
    fn cost(&self, call: &CallEnd<'_>) -> Option<f64> {
        if call.cache.is_hit() || !was_sent(&call.end, &self.progress) {
            return None;
        }
        let Settings { prices, target, .. } = &*self.settings;
        let answered = call.response_model();
        let model = self.charge.model(&self.model, Some(&target.prefix), answered.as_deref());
        let billed = self.charge.billed(Spent::at(&call.end, Some(&self.progress)));
        Some(prices.as_ref()?.amount(&model, &billed)?.nanos() as f64 / 1e9)
    }
}

impl<S: CallSpan> Observe for Recorder<S> {
    fn on_head(&mut self, head: &LlmResponse) {
        let this = &mut *self.0;
        if let Some(priced) = &this.priced {
            mark_answered(head, &priced.progress);
        }
        let is_gateway = this.role == Role::Gateway;
        this.head = Some(Kept {
            model: head.model.clone(),
            cache: head.cache,
            attempts: if is_gateway { head.attempts.clone() } else { Vec::new() },
            record: (is_gateway && this.span.is_recording())
                .then(|| Box::new(decision::of_answer(&this.decisions, head))),
        });
    }

    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        self.0.span.on_chunk(chunk, arrival);
        if let Some(content) = &mut self.0.content {
            content.chunk(chunk);
        }
    }

    fn on_end(self, end: End<'_>) {
        let Inner { span, whole, role, started, choices, mut head, decisions, .. } = *self.0;
        let Inner { content, on_span, on_event, priced, .. } = *self.0;
        let duration = started.elapsed();
        let content = content.and_then(|mut collector| {
            let is_cut = match end {
                End::Whole(completion) => {
                    collector.whole(completion);
                    false
                }
                End::StreamEnded(_) => false,
                End::Failed(..) | End::Abandoned(_) => true,
            };
            collector.finish(is_cut)
        });
        let begun = head.as_mut().and_then(|kept| kept.record.take());
        let (so_far, was_asked) = match &whole {
            Some((around, progress)) => (around.with(mem::take), progress.is_dispatched()),
            None => (SoFar::default(), false),
        };
        let failed = match (&head, &end) {
            (Some(head), _) => &*head.attempts,
            // An error of a layer further out knows nothing of them.
            (None, End::Failed(error, _)) if !error.attempts().is_empty() => error.attempts(),
            (None, _) => &*so_far.attempts,
        };
        let is_recorded = role == Role::Gateway && span.is_recording();
        let record = match (begun, end) {
            (Some(record), End::Failed(error, _)) => Some(Box::new(decision::of_broken(*record, error))),
            (None, End::Failed(error, _)) if is_recorded => {
                Some(Box::new(decision::of_error(&decisions, error, failed)))
            }
            (None, End::Abandoned(_)) if is_recorded => {
                let left = Error::new(ErrorKind::Cancelled);
                Some(Box::new(decision::of_error(&decisions, &left, failed)))
            }
            (begun, _) => begun,
        };
        let mut told = CallEnd {
            role,
            end,
            duration,
            started: started.into_std(),
            head: head.as_ref().map(|kept| Head {
                model: &kept.model,
                cache: kept.cache,
                attempts: &kept.attempts,
            }),
            cache: head.as_ref().map_or(so_far.cache, |kept| kept.cache),
            failed,
            was_asked,
            cost: None,
            content: content.as_ref().filter(|_| on_span),
            event: content.as_ref().filter(|_| on_event),
            record: record.as_deref(),
            choices,
        };
        told.cost = priced.and_then(|priced| priced.cost(&told));
        span.end(&told);
        drop(whole);
    }
}
