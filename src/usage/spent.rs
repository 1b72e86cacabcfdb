use crate::{Certainty, Error, ErrorKind, Progress, TokenUsage, body::End};

/// What is known, at its end, of what a call used up: the same for the record of it and for the limits on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// As the provider reported it.
    pub(crate) usage: Option<TokenUsage>,
    /// How many bytes of text came.
    pub(crate) text_bytes: u64,
}

impl Spent {
    pub(crate) fn at(end: &End<'_>) -> Self {
        match end {
            End::Whole(completion) => {
                Self { usage: completion.usage().copied(), text_bytes: completion.text_bytes() }
            }
            End::StreamEnded(summary) | End::Abandoned(summary) => {
                Self { usage: summary.usage, text_bytes: summary.text_bytes }
            }
            End::Failed(error, summary) => {
                let usage = error.usage().copied().or(summary.usage);
                let usage = usage.or_else(|| is_refusal(error).then_some(NOTHING));
                Self { usage, text_bytes: summary.text_bytes }
            }
        }
    }

    /// What was reported, with these in its gaps.
    pub(crate) fn filled(self, input_tokens: u64, output_tokens: u64) -> TokenUsage {
        let mut usage = self.usage.unwrap_or_default();
        if usage.input_tokens.is_none() || usage.output_tokens.is_none() {
            usage.input_tokens.get_or_insert(input_tokens);
            usage.output_tokens.get_or_insert(output_tokens);
            usage.certainty = Certainty::Estimated;
        }
        usage
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

/// A provider that refuses a request by its status bills nothing for it; none says so.
const NOTHING: TokenUsage = TokenUsage::new(0, 0).with_certainty(Certainty::Estimated);

fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Provider(failure) if failure.status.is_some_and(|s| !s.is_success()))
}
