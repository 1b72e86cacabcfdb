use super::{
    content::Collector,
    layer::Settings,
    observer::{CallEnd, CallSpan, Head, Role},
};
use crate::{
    Attempt, CacheStatus, LlmRequest, LlmResponse, ModelName, StreamChunk,
    body::{Arrival, End, Observe},
    decision::{self, DecisionRecord, Decisions},
    price::{Billed, Tiers},
};
use std::sync::Arc;
use tokio::time::Instant;

/// Collects what is known of one call, and ends its span when its answer ends.
pub(super) struct Recorder<S: CallSpan>(Box<Inner<S>>);

/// Boxed, for it goes from hand to hand: from the layer to its future, and from there to the stream.
struct Inner<S: CallSpan> {
    span: S,
    /// What the request shows to those within, for as long as the call goes on.
    handed_down: Option<Arc<S::Scope>>,
    role: Role,
    started: Instant,
    choices: u32,
    head: Option<Kept>,
    decisions: Decisions,
    content: Option<Box<Collector>>,
    on_span: bool,
    on_event: bool,
    /// What it is priced by, where it is.
    priced: Option<(Arc<Settings>, ModelName, Tiers)>,
}

struct Kept {
    model: ModelName,
    cache: CacheStatus,
    attempts: Vec<Attempt>,
    record: Option<Box<DecisionRecord>>,
}

impl<S: CallSpan> Recorder<S> {
    pub(super) fn new(
        span: S,
        handed_down: Option<Arc<S::Scope>>,
        settings: &Arc<Settings>,
        request: &LlmRequest,
        started: Instant,
    ) -> Self {
        let role = settings.target.role;
        let is_client = role == Role::Client && span.is_recording();
        let on_span = is_client && settings.capture.on_span();
        let on_event = role == Role::Client && settings.capture.on_event();
        let content = if on_span || on_event { settings.capture.collector(&request.body) } else { None };
        let priced = (is_client && settings.prices.is_some()).then(|| {
            // Prices are listed under the canonical name.
            let provider = &settings.target.prefix;
            let model = match request.model.split() {
                Some((prefix, _)) if *prefix == **provider => request.model.clone(),
                _ => ModelName::in_provider(provider, &request.model),
            };
            (Arc::clone(settings), model, request.body.tiers())
        });
        Self(Box::new(Inner {
            span,
            handed_down,
            role,
            started,
            // Asked for only by attributes.
            choices: if is_client { CallEnd::choices(request) } else { 1 },
            head: None,
            decisions: request.decisions().clone(),
            content,
            on_span,
            on_event,
            priced,
        }))
    }
}

impl<S: CallSpan> Observe for Recorder<S> {
    fn on_head(&mut self, head: &LlmResponse) {
        let this = &mut *self.0;
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
        let Inner { span, handed_down, role, started, choices, mut head, decisions, .. } = *self.0;
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
        let record = match (&end, role) {
            (End::Failed(error, _), Role::Gateway) if span.is_recording() => {
                let begun = head.as_mut().and_then(|kept| kept.record.take());
                Some(match begun {
                    Some(record) => Box::new(decision::of_broken(*record, error)),
                    None => Box::new(decision::of_error(&decisions, error)),
                })
            }
            _ => None,
        };
        let mut told = CallEnd {
            role,
            end,
            duration,
            started,
            head: head.as_ref().map(|kept| Head {
                model: &kept.model,
                cache: kept.cache,
                attempts: &kept.attempts,
            }),
            cost: None,
            content: content.as_ref().filter(|_| on_span),
            event: content.as_ref().filter(|_| on_event),
            record: record.as_deref().or(head.as_ref().and_then(|kept| kept.record.as_deref())),
            choices,
        };
        if let (Some((settings, model, tiers)), Some(usage)) = (priced, told.usage()) {
            let tiers = tiers.told(told.service_tier());
            let billed = Billed { tiers, usage, requests: 1 };
            let amount = settings.prices.as_ref().and_then(|prices| prices.amount(&model, &billed));
            told.cost = amount.map(|amount| amount.nanos() as f64 / 1e9);
        }
        span.end(&told);
        drop(handed_down);
    }
}
