use super::{
    amount::{Amount, Departments},
    calendar::Day,
    lease::{LeaseId, Settlement},
    live::Held,
    options::{Settled, Unreported},
    plan::Plan,
    shared::Shared,
    worker::{Finish, Place},
};
use crate::{
    CacheStatus, LlmRequest, LlmResponse, ModelName, Progress,
    body::{End, Observe},
    caught::contained,
    price::{NanoUsd, Terms},
    usage::{Spent, estimate, mark_answered, was_sent},
};
use std::sync::{Arc, atomic::Ordering};

/// Whatever the store holds, or may hold, in the name of one call. Dropped, it is given back.
pub(super) struct Hold {
    shared: Arc<Shared>,
    id: LeaseId,
    /// `None`: there is nothing to give back.
    departments: Option<Departments>,
    /// The day that is charged, once it is known.
    day: Option<Day>,
    /// Where its end is handed over; `None` where leases are settled at once.
    place: Option<Place>,
}

/// A lease of a call that is made: settled when its answer has ended.
pub(super) struct Lease {
    hold: Hold,
    reserved: Amount,
    prompt: u64,
    answer: u64,
    input_bytes: u64,
    terms: Terms,
    model: ModelName,
    progress: Progress,
    cache: CacheStatus,
}

// ===== impl Hold =====

impl Hold {
    pub(super) fn new(shared: Arc<Shared>, id: LeaseId, place: Option<Place>) -> Self {
        Self { shared, id, departments: None, day: None, place }
    }

    pub(super) const fn id(&self) -> LeaseId {
        self.id
    }

    /// From now on the store may hold something.
    pub(super) fn asks(&mut self, departments: Departments) {
        self.departments = Some(departments);
    }

    /// The store said that it does not.
    pub(super) fn holds_nothing(&mut self) {
        self.departments = None;
    }

    /// The store said that it does: what it was asked for.
    pub(super) fn granted(&mut self, plan: &Plan, day: Day) {
        self.day = Some(day);
        if let Some(outbox) = &self.shared.outbox {
            let Plan { departments, amount, on_expiry, .. } = plan;
            let needs_seed = self.shared.history.is_some();
            outbox.keep_alive(self.id, Held::new(departments.clone(), *amount, *on_expiry, day, needs_seed));
        }
    }

    fn settle(mut self, amount: Amount) {
        if let Some(departments) = self.departments.take() {
            let needs_seed = self.shared.history.is_some();
            let settlement = Settlement::new(self.id, departments, amount);
            self.finish(Finish::Settle { settlement, day: self.day, needs_seed });
        }
    }

    /// At once, or by the worker.
    fn finish(&mut self, finish: Finish) {
        match self.place.take() {
            Some(place) => place.hand_over(finish),
            None => {
                // Ready: only such stores are settled at once.
                let _ = match finish {
                    Finish::Settle { settlement, .. } => self.shared.store.settle(&settlement).now().is_ok(),
                    Finish::Release(id, departments) => {
                        self.shared.store.release(id, &departments).now().is_ok()
                    }
                };
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(departments) = self.departments.take() {
            self.finish(Finish::Release(self.id, departments));
        }
    }
}

// ===== impl Lease =====

impl Lease {
    pub(super) fn new(hold: Hold, plan: &Plan, request: &mut LlmRequest) -> Self {
        // The same request may be sent twice, by a retry or a hedge above: each call has its own.
        let progress = request.progress.descend_charged_to(hold.id);
        hold.shared.state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self {
            hold,
            reserved: plan.amount,
            prompt: plan.prompt,
            answer: plan.output.saturating_mul(plan.choices),
            input_bytes: request.body.input_bytes() as u64,
            terms: plan.terms,
            model: request.model.clone(),
            progress,
            cache: CacheStatus::default(),
        }
    }

    /// What the call used up, as far as anybody knows.
    fn truth(&self, end: &End<'_>) -> Amount {
        let spent = Spent::at(end, Some(&self.progress));
        // Of what was reserved for the answer, what is left beside that which was reported.
        let left = self.answer.saturating_sub(spent.usage.and_then(|usage| usage.output_tokens).unwrap_or(0));
        let (prompt, terms) = (self.prompt, self.terms);
        let billed = match self.hold.shared.unreported {
            Unreported::UpperBound if self.answer > 0 => spent.billed(terms, prompt, |bytes| bytes.min(left)),
            Unreported::UpperBound => spent.billed(terms, prompt, |bytes| bytes),
            Unreported::Estimate => spent.billed(terms, estimate(self.input_bytes), estimate),
            Unreported::Full => spent.billed(terms, prompt, |_| left),
        };
        let usage = billed.usage;
        let tokens = usage.input_tokens.unwrap_or(0).saturating_add(usage.output_tokens.unwrap_or(0));
        let cost = self.hold.shared.cost(&self.model, &billed).unwrap_or(match tokens {
            0 => NanoUsd::ZERO,
            // What had a price when it was admitted is not free now.
            _ => self.reserved.cost,
        });
        Amount::new(1, tokens, cost)
    }

    fn charge(self, used: Amount) {
        if let Some(hook) = &self.hold.shared.on_settle {
            // What was used up is not given back because of a panic in there.
            contained(|| hook(&Settled { reserved: self.reserved, used }));
        }
        self.hold.settle(used);
    }
}

impl Observe for Lease {
    fn on_head(&mut self, head: &LlmResponse) {
        if head.provider.is_some() {
            // Canonical, and of the model that answered, wherever this layer stands.
            self.model.clone_from(&head.model);
        }
        self.cache = head.cache;
        mark_answered(head, &self.progress);
    }

    fn on_end(self, end: End<'_>) {
        self.hold.shared.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.cache.is_hit() {
            let usage = Spent::at(&end, None).filled(0, |_| 0);
            let tokens = usage.input_tokens.unwrap_or(0).saturating_add(usage.output_tokens.unwrap_or(0));
            if let Some(amount) = self.hold.shared.hit(tokens) {
                self.charge(amount);
            }
            return;
        }
        // What did not reach a provider is given back as it is dropped.
        if was_sent(&end, &self.progress) {
            let truth = self.truth(&end);
            self.charge(truth);
        }
    }
}
