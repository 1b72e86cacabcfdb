use crate::{
    Certainty, ChatBody, Error, ErrorClass, ErrorKind, LlmResponse, Progress, TokenUsage,
    body::End,
    price::{Billed, ServiceTier, Terms},
};
use std::borrow::Cow;

/// What is known, at its end, of what a call used up: the same for the record of it and for the limits on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// As the provider reported it.
    pub(crate) usage: Option<TokenUsage>,
    /// How many bytes of text came that no report covers.
    pub(crate) unreported_bytes: u64,
    /// The tier in which the provider says that it served the call.
    pub(crate) tier: Option<ServiceTier>,
    /// How many requests the provider may bill: none that it refused.
    requests: u64,
}

/// What a request says that its cost depends on, besides what it uses up: the same for the record of it and for its span.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Charge {
    terms: Terms,
    input_bytes: usize,
    /// Whether the provider was given others to choose from.
    has_further_models: bool,
}

impl Charge {
    pub(crate) fn of(body: &ChatBody) -> Self {
        let has_further_models = body.further_models().is_some();
        Self { terms: body.terms(), input_bytes: body.input_bytes(), has_further_models }
    }

    /// The name of the price: of `model`, which was asked for, or of the one that its provider has chosen.
    pub(crate) fn model<'a>(
        &self,
        model: &'a str,
        provider: Option<&str>,
        answered: Option<&str>,
    ) -> Cow<'a, str> {
        match answered.filter(|_| self.has_further_models) {
            Some(chosen) => provider.into_iter().flat_map(|name| [name, "/"]).chain([chosen]).collect(),
            None => Cow::Borrowed(model),
        }
    }

    /// With estimates where nothing was said.
    pub(crate) fn billed(&self, spent: Spent) -> Billed {
        spent.billed(self.terms, estimate(self.input_bytes as u64), estimate)
    }
}

impl Spent {
    /// At the end of this part of a call. Who does not follow one may leave it out.
    pub(crate) fn at(end: &End<'_>, progress: Option<&Progress>) -> Self {
        // Of an answer that was here, and was handed to nobody.
        let withheld = match end {
            End::Failed(error, _) => error.spent(),
            End::Abandoned(_) => progress.and_then(Progress::spent),
            End::Whole(_) | End::StreamEnded(_) => None,
        };
        if let Some(spent) = withheld {
            return spent;
        }
        let (error, summary) = match end {
            End::Whole(completion) => {
                let text_bytes = completion.text_bytes();
                let usage = believed(completion.usage(), text_bytes);
                let unreported_bytes = if tells_output(usage) { 0 } else { text_bytes };
                return Self { usage, unreported_bytes, tier: completion.service_tier(), requests: 1 };
            }
            End::StreamEnded(summary) | End::Abandoned(summary) => (None, summary),
            End::Failed(error, summary) => (Some(*error), summary),
        };
        // What a stream has reported is told of by its error too.
        let told = error.and_then(Error::usage).copied().filter(|told| summary.usage != Some(*told));
        let usage = told.or_else(|| believed(summary.usage.as_ref(), summary.text_bytes));
        let is_refused = usage.is_none()
            && summary.text_bytes == 0
            && error.is_some_and(|error| are_refused(error, progress));
        let reported_bytes = match (told, tells_output(usage)) {
            (_, false) => 0,
            // It knows of all that came.
            (Some(_), true) => summary.text_bytes,
            (None, true) => summary.reported_bytes,
        };
        Self {
            usage: usage.or(is_refused.then_some(NOTHING)),
            unreported_bytes: summary.text_bytes.saturating_sub(reported_bytes),
            tier: summary.service_tier,
            requests: u64::from(!is_refused),
        }
    }

    /// As [`filled`](Self::filled), of a call on these terms.
    pub(crate) fn billed(
        self,
        terms: Terms,
        input_tokens: u64,
        output_tokens: impl FnOnce(u64) -> u64,
    ) -> Billed {
        let (terms, requests) = (terms.told(self.tier), self.requests);
        Billed { terms, usage: self.filled(input_tokens, output_tokens), requests }
    }

    /// What was reported, with these in its gaps: the tokens of the prompt, and those of so many bytes of text.
    pub(crate) fn filled(self, input_tokens: u64, output_tokens: impl FnOnce(u64) -> u64) -> TokenUsage {
        let mut usage = self.usage.unwrap_or_default();
        let is_output_known = usage.output_tokens.is_some() && self.unreported_bytes == 0;
        if usage.input_tokens.is_none() || !is_output_known {
            usage.certainty = Certainty::Estimated;
        }
        usage.input_tokens.get_or_insert(input_tokens);
        if !is_output_known {
            let more = output_tokens(self.unreported_bytes);
            usage.output_tokens = Some(usage.output_tokens.unwrap_or(0).saturating_add(more));
        }
        usage
    }
}

/// Who has answered was asked, whether or not it was marked; unless he is a cache.
pub(crate) fn mark_answered(head: &LlmResponse, progress: &Progress) {
    if !head.cache.is_hit() {
        progress.mark_dispatched();
    }
}

/// Whether a provider was asked.
pub(crate) fn was_sent(end: &End<'_>, progress: &Progress) -> bool {
    match end {
        End::Failed(error, _) => error.was_sent(progress),
        End::Abandoned(_) => progress.is_dispatched(),
        End::Whole(_) | End::StreamEnded(_) => true,
    }
}

/// About four bytes a token, as texts in Latin script have: for records, never for limits.
pub(crate) const fn estimate(bytes: u64) -> u64 {
    bytes.div_ceil(4)
}

/// A provider that refuses a request by its status, before it has said anything, bills nothing for it; none says so.
const NOTHING: TokenUsage = TokenUsage::new(0, 0).with_certainty(Certainty::Estimated);

/// A report of nothing at all beside more than a few words is none.
fn believed(usage: Option<&TokenUsage>, text_bytes: u64) -> Option<TokenUsage> {
    let says_something = |usage: &&TokenUsage| {
        text_bytes <= A_FEW_WORDS
            || usage.input_tokens.unwrap_or(0) > 0
            || usage.output_tokens.unwrap_or(0) > 0
    };
    usage.filter(says_something).copied()
}

/// In bytes.
const A_FEW_WORDS: u64 = 64;

fn tells_output(usage: Option<TokenUsage>) -> bool {
    usage.is_some_and(|usage| usage.output_tokens.is_some())
}

/// Of all that was tried below, and shares this progress, whether nothing was sent but what was refused.
fn are_refused(error: &Error, progress: Option<&Progress>) -> bool {
    let of_others = progress.is_some_and(Progress::is_sent) && error.class() == Some(ErrorClass::Connect);
    (is_refusal(error) || of_others) && !progress.is_some_and(Progress::is_billable)
}

/// By its provider's status.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Provider(failure) if failure.status.is_some_and(|s| !s.is_success()))
}
