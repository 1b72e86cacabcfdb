use super::{
    amount::{Amount, Department, Departments, Limits, PERIODS},
    lease::Denial,
    options::{Mode, OnExpiry, OnTight, Unbounded, Unpriced},
    shared::Shared,
};
use crate::{
    Error, ErrorKind, InvalidReason, LlmRequest, Period, QuotaKind,
    chat::{OUTPUT_MEMBERS, OVERRIDING_OUTPUT_MEMBER},
    policies::PolicyTable,
    price::{CostError, NanoUsd, Price, Terms},
};
use std::{slice, sync::Arc};

/// What a call is going to reserve, and why.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) departments: Departments,
    pub(super) amount: Amount,
    pub(super) on_expiry: Amount,
    /// Tokens of the prompt, at most.
    pub(super) prompt: u64,
    /// Tokens of each choice, at most; 0 if that is not known and does not matter.
    pub(super) output: u64,
    pub(super) choices: u64,
    price: Option<Arc<Price>>,
    pub(super) terms: Terms,
    /// Whether the bound of the answer is ours, not the caller's.
    is_ours: bool,
    /// Whether the prompt was counted.
    is_counted: bool,
}

/// What stands in the way of a call.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// It could never fit.
    TooLarge { department: Arc<str>, quota: QuotaKind, period: Period, largest: u64 },
    /// It does not fit now.
    Denied(Denial),
}

impl Plan {
    /// Nothing, of the same departments.
    pub(super) fn nothing(&self) -> Self {
        let departments = self
            .departments
            .iter()
            .map(|department| Department::new(Arc::clone(&department.id), Limits::new()));
        Self {
            departments: departments.collect(),
            amount: Amount::ZERO,
            on_expiry: Amount::ZERO,
            ..self.clone()
        }
    }
}

impl Shared {
    pub(super) fn departments(&self, table: &PolicyTable, request: &LlmRequest) -> Departments {
        let department = |id: &Arc<str>| Department::new(Arc::clone(id), table.of(id).limits);
        match request.context.department_ids() {
            [id] => Departments::one(department(id)),
            ids => ids.iter().map(department).collect(),
        }
    }

    /// What `request` reserves; its answer is bounded now, if it has to be.
    pub(super) fn plan(&self, request: &mut LlmRequest, departments: Departments) -> Result<Plan, Error> {
        let is_shadow = self.mode == Mode::Shadow;
        let limits = |limited: fn(&Department) -> bool| departments.iter().any(limited);
        let has_cost = limits(|department| department.limits.has_cost());
        let has_tokens = limits(|department| department.limits.has_tokens());
        if let (true, Some(member)) = (has_cost && !is_shadow, request.body.further_models()) {
            // Reserved and settled by the price of the one that is known, they could cost anything.
            return Err(Error::invalid(member, InvalidReason::FurtherModels));
        }

        let Asked { choices, output, is_overriding } = match self.asked(request) {
            // What the provider will refuse is let through to it.
            Err(_) if is_shadow => Asked::default(),
            asked => asked?,
        };
        let mut is_ours = false;
        let output = match (output, self.model_output(&request.model)) {
            (Some(asked), Some(most)) => asked.min(most),
            (None, Some(most)) => most,
            (Some(asked), None) if asked <= self.largest_output || is_shadow => {
                asked.min(self.largest_output)
            }
            (Some(_), None) => {
                self.bound(request, self.largest_output)?;
                self.largest_output
            }
            (None, None) if !(has_cost || has_tokens) => 0,
            (None, None) => match self.unbounded {
                Unbounded::Inject(tokens) if is_shadow => tokens,
                Unbounded::Inject(tokens) => {
                    is_ours = true;
                    self.bound(request, tokens)?;
                    tokens
                }
                Unbounded::Reject if is_shadow => 0,
                Unbounded::Reject => {
                    return Err(Error::invalid(self.output_member(&request.model), InvalidReason::Missing));
                }
            },
        };
        if is_overriding && output > 0 && !is_shadow {
            self.bound(request, output)?;
        }

        let mut plan = Plan {
            departments,
            amount: Amount::ZERO,
            on_expiry: Amount::ZERO,
            prompt: self.estimator.prompt_upper_bound(request),
            output,
            choices,
            price: self.prices.price(&request.model),
            terms: request.body.terms(),
            is_ours,
            is_counted: !self.estimator.can_tighten(),
        };
        let mut is_priced = plan.update(self);
        if let (false, Unpriced::Assume(price)) = (is_priced, &self.unpriced) {
            plan.price = Some(Arc::new(price.clone()));
            is_priced = plan.update(self);
        }
        if !is_priced && has_cost && matches!(self.unpriced, Unpriced::Reject) && !is_shadow {
            return Err(Error::new(ErrorKind::ModelUnpriced { model: request.model.clone() }));
        }
        Ok(plan)
    }

    /// Makes the plan smaller, and the request with it; `false` if that is all there is to be done.
    pub(super) async fn adapt(&self, request: &mut LlmRequest, plan: &mut Plan, obstacle: &Obstacle) -> bool {
        if matches!(obstacle.quota(), QuotaKind::Requests) || self.mode == Mode::Shadow {
            return false;
        }
        if !plan.is_counted {
            plan.is_counted = true;
            let (estimator, asked) = (Arc::clone(&self.estimator), request.clone());
            let counted = tokio::task::spawn_blocking(move || estimator.tighten(&asked)).await;
            if let Ok(Some(prompt)) = counted
                && prompt < plan.prompt
            {
                plan.prompt = prompt;
                plan.update(self);
                return true;
            }
        }
        let min = match self.on_tight {
            OnTight::ShrinkMaxTokens { min } => min,
            // Nobody has asked for so much. But if it will fit in a moment, it is not cut off for that.
            OnTight::Refuse if plan.is_ours && !obstacle.is_in_flight_only() => LEAST,
            OnTight::Refuse => return false,
        };
        let Some(output) = plan.longest_that_fits(obstacle).filter(|output| *output >= min.max(1)) else {
            return false;
        };
        if output >= plan.output || self.bound(request, output).is_err() {
            return false;
        }
        plan.output = output;
        plan.update(self);
        true
    }

    /// Bounds each choice by so many tokens: under the members by which the request has a higher bound, or else the one that
    /// the model wants.
    fn bound(&self, request: &mut LlmRequest, tokens: u64) -> Result<(), Error> {
        let told = self.told_member(&request.model);
        let mut is_bounded = false;
        for name in told.as_ref().map_or(&OUTPUT_MEMBERS[..], slice::from_ref) {
            let Some(asked) = request.body.raw(name).filter(|value| *value != b"null") else { continue };
            is_bounded = true;
            // What is no number is refused by whoever reads it first.
            if whole_number(asked).is_none_or(|asked| asked > tokens) {
                request.body = request.body.with(name, tokens)?;
            }
        }
        let overriding = request.body.raw(OVERRIDING_OUTPUT_MEMBER).filter(|_| told.is_none());
        if overriding.is_some_and(|asked| whole_number(asked).is_none_or(|asked| asked > tokens)) {
            request.body = request.body.with(OVERRIDING_OUTPUT_MEMBER, tokens)?;
        }
        if !is_bounded {
            request.body = request.body.with(self.output_member(&request.model), tokens)?;
        }
        Ok(())
    }

    /// The member that a model was said to read, and no other.
    fn told_member(&self, model: &str) -> Option<&str> {
        self.output_members.iter().find(|(models, _)| models.allows(model)).map(|(_, member)| &**member)
    }

    fn output_member(&self, model: &str) -> &str {
        let usual = if model.starts_with("openai/") { "max_completion_tokens" } else { "max_tokens" };
        self.told_member(model).unwrap_or(usual)
    }

    fn asked(&self, request: &LlmRequest) -> Result<Asked, Error> {
        let told = self.told_member(&request.model);
        let bounds = told.as_ref().map_or(&OUTPUT_MEMBERS[..], slice::from_ref);
        let mut asked = Asked::default();
        for (name, value) in request.body.raw_members().filter(|(_, value)| *value != b"null") {
            let number = || {
                let reason = InvalidReason::Mistyped { expected: "a whole number" };
                whole_number(value).ok_or_else(|| Error::invalid(&*String::from_utf8_lossy(name), reason))
            };
            match name {
                b"n" => match number()? {
                    choices @ ..=MOST_CHOICES => asked.choices = choices.max(1),
                    // They would be reserved in full, and keep all others out.
                    _ => {
                        return Err(Error::invalid(
                            "n",
                            InvalidReason::TooMany { limit: MOST_CHOICES as usize },
                        ));
                    }
                },
                name if bounds.iter().any(|member| member.as_bytes() == name) => {
                    asked.output = asked.output.max(Some(number()?))
                }
                name if told.is_none() && name == OVERRIDING_OUTPUT_MEMBER.as_bytes() => {
                    asked.is_overriding = true;
                    // Some servers do not know it: what it says may raise a bound, and is none by itself.
                    asked.output = asked.output.max(whole_number(value));
                }
                _ => {}
            }
        }
        Ok(asked)
    }

    fn model_output(&self, model: &str) -> Option<u64> {
        self.model_outputs.iter().find(|(models, _)| models.allows(model)).map(|(_, tokens)| *tokens)
    }
}

impl Plan {
    /// Reckons what is to be reserved. Whether there is a price.
    fn update(&mut self, shared: &Shared) -> bool {
        let answer = self.output.saturating_mul(self.choices);
        let tokens = self.prompt.saturating_add(answer);
        let cost = self.cost(self.prompt, answer);
        self.amount = Amount::new(1, tokens, cost.unwrap_or(NanoUsd::ZERO)).clamped();
        self.on_expiry = match shared.on_expiry {
            OnExpiry::ChargePrompt => {
                let cost = self.cost(self.prompt, 0).unwrap_or(NanoUsd::ZERO);
                Amount::new(1, self.prompt, cost).clamped()
            }
            OnExpiry::ChargeAll => self.amount,
            OnExpiry::Release => Amount::ZERO,
        };
        cost.is_some()
    }

    /// The most that it may cost; `None` if there is no price for all of it.
    fn cost(&self, prompt: u64, answer: u64) -> Option<NanoUsd> {
        let price = self.price.as_ref()?;
        match price.most_on(self.terms, prompt, answer) {
            Ok(cost) => Some(cost),
            Err(CostError::Overflow) => Some(NanoUsd::MAX),
            Err(_) => None,
        }
    }

    /// Whether it could never fit. That a department may make no calls at all is not its size.
    pub(super) fn too_large(&self) -> Option<Obstacle> {
        [QuotaKind::Tokens, QuotaKind::Cost].into_iter().find_map(|quota| {
            let limits = self.departments.iter().flat_map(|department| {
                PERIODS.map(|period| Some((department.limits.get(period, quota)?, department, period)))
            });
            let (largest, department, period) = limits.flatten().min_by_key(|(limit, ..)| *limit)?;
            let is_too_large = self.amount.get(quota) > largest;
            is_too_large.then(|| Obstacle::TooLarge {
                department: Arc::clone(&department.id),
                quota,
                period,
                largest,
            })
        })
    }

    /// How long each choice may be so that there is room for all of them.
    fn longest_that_fits(&self, obstacle: &Obstacle) -> Option<u64> {
        let (quota, room) = match obstacle {
            Obstacle::TooLarge { quota, largest, .. } => (*quota, *largest),
            Obstacle::Denied(denial) => {
                let taken = denial.settled.saturating_add(denial.reserved);
                (denial.quota, denial.limit.checked_sub(taken)?)
            }
        };
        let fits = |output: u64| {
            let answer = output.saturating_mul(self.choices);
            match quota {
                QuotaKind::Requests => false,
                QuotaKind::Tokens => self.prompt.saturating_add(answer) <= room,
                QuotaKind::Cost => self
                    .cost(self.prompt, answer)
                    .is_none_or(|cost| u64::try_from(cost.nanos()).unwrap_or(0) <= room),
            }
        };
        if !fits(0) {
            return None;
        }
        // The longest that fits, between what does and what does not.
        let (mut good, mut bad) = (0, self.output);
        while bad - good > 1 {
            let middle = good + (bad - good) / 2;
            if fits(middle) { good = middle } else { bad = middle }
        }
        Some(good)
    }
}

/// The shortest answer that is worth a bound of ours.
const LEAST: u64 = 16;

impl Obstacle {
    const fn is_in_flight_only(&self) -> bool {
        matches!(self, Self::Denied(Denial { in_flight_only: true, .. }))
    }

    const fn quota(&self) -> QuotaKind {
        match self {
            Self::TooLarge { quota, .. } => *quota,
            Self::Denied(denial) => denial.quota,
        }
    }
}

/// What a request asks for that makes a difference to what it may use up.
struct Asked {
    choices: u64,
    /// The highest bound, if there are several.
    output: Option<u64>,
    /// Whether there is one that some servers obey before all others.
    is_overriding: bool,
}

impl Default for Asked {
    fn default() -> Self {
        Self { choices: 1, output: None, is_overriding: false }
    }
}

fn whole_number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// No provider gives more.
const MOST_CHOICES: u64 = 1024;
