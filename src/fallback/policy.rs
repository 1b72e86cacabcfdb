use crate::{Attempt, Error, ErrorClass, ErrorKind, LlmRequest, ModelName, TimeoutPhase};
use std::time::Duration;

/// Decides what to do after a failure.
///
/// Cloned for each call, so that `&mut self` is that call's own state. A closure is one:
///
/// ```
/// use llm_layers::fallback::{Decision, Failure, FallbackLayer};
///
/// let layer = FallbackLayer::new(|failure: &Failure<'_>| match &*failure.request.model {
///     "acme/large" => Decision::Next("acme/small".into()),
///     _ => Decision::Stop,
/// });
/// ```
pub trait Policy: Clone {
    /// A call begins.
    fn begin(&mut self, request: &LlmRequest) {
        let _ = request;
    }

    /// An attempt failed. Not asked about failures that are final whatever it says.
    fn decide(&mut self, failure: &Failure<'_>) -> Decision;
}

impl<F: FnMut(&Failure<'_>) -> Decision + Clone> Policy for F {
    fn decide(&mut self, failure: &Failure<'_>) -> Decision {
        self(failure)
    }
}

/// What to do after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// The same model, after some time.
    Retry {
        /// How long to wait.
        after: Duration,
    },
    /// Another model. One that was tried before means [`Stop`](Self::Stop).
    Next(ModelName),
    /// Enough: the caller gets the last real failure, but no refusal of the request by a substitute while an earlier
    /// failure is worth another try.
    Stop,
}

/// A failed attempt, for a [`Policy`].
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Failure<'a> {
    /// The request as it was sent in this attempt.
    pub request: &'a LlmRequest,
    /// Why it failed.
    pub error: &'a Error,
    /// All that failed so far, this attempt the last.
    pub attempts: &'a [Attempt],
    /// The models that were tried or skipped, the caller's first.
    pub models: &'a [ModelName],
    /// How long all attempts together may still take, if that is bounded: a [`Retry`](Decision::Retry) that waits
    /// as long is [`Stop`](Decision::Stop).
    pub time_left: Option<Duration>,
    /// How many calls may still be made.
    pub calls_left: u16,
    /// Whether another deployment of the same provider can be asked at once, that has not failed in this call and does not rest:
    /// a [`Retry`](Decision::Retry) goes there, and has nothing to wait for.
    pub has_other_deployment: bool,
}

/// Why an attempt failed, as far as it matters for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cause {
    /// The provider could not be reached, or the connection broke.
    Unreachable,
    /// The provider failed by its own account.
    ServerError,
    /// The provider was asked too often, or too much is in flight for it.
    RateLimited,
    /// It took too long.
    Timeout,
    /// The answer said nothing.
    Empty,
    /// The answer broke off before its first content, or was none.
    Broken,
    /// The answer is larger than is taken, and would be again.
    TooLarge,
    /// The provider refused the credentials.
    Auth,
    /// The provider refused the request.
    BadRequest,
    /// The prompt is too long for the model, or larger than what the account may use in a minute.
    ContextWindow,
    /// The provider refused the content, or filtered all of the answer.
    ContentFilter,
    /// The model cannot be used here: no provider, not allowed, no price.
    Skipped,
    /// Something else, such as a foreign error.
    Other,
}

impl Cause {
    /// The cause of `error`, or `None` if it is final.
    pub fn of(error: &Error) -> Option<Self> {
        Some(match error.kind() {
            ErrorKind::Timeout { phase: TimeoutPhase::Deadline }
            | ErrorKind::InvalidRequest { .. }
            | ErrorKind::RequestTooLarge { .. }
            | ErrorKind::QuotaExceeded(_)
            | ErrorKind::StoreUnavailable { .. }
            | ErrorKind::NoProvider
            | ErrorKind::NotCached
            | ErrorKind::Cancelled => return None,
            ErrorKind::Provider(failure) => match failure.class {
                ErrorClass::Connect | ErrorClass::Transport => Self::Unreachable,
                ErrorClass::Upstream | ErrorClass::Unavailable => Self::ServerError,
                ErrorClass::Truncated | ErrorClass::BadFrame => Self::Broken,
                ErrorClass::TooLarge => Self::TooLarge,
                ErrorClass::RateLimited => Self::RateLimited,
                ErrorClass::Auth => Self::Auth,
                ErrorClass::BadRequest => Self::BadRequest,
                ErrorClass::ContextWindow => Self::ContextWindow,
                ErrorClass::ContentFilter => Self::ContentFilter,
            },
            ErrorKind::Overloaded => Self::RateLimited,
            ErrorKind::Timeout { .. } => Self::Timeout,
            ErrorKind::EmptyResponse { .. } => Self::Empty,
            ErrorKind::StreamInterrupted { .. } => Self::Broken,
            ErrorKind::ModelNotFound { .. }
            | ErrorKind::ModelNotAllowed { .. }
            | ErrorKind::ModelUnpriced { .. } => Self::Skipped,
            ErrorKind::Other => Self::Other,
        })
    }
}

/// Whether another account may take the same request.
pub(super) fn is_account_limit(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Provider(failure) if failure.is_account_limit)
}
