//! One error for the whole stack.

mod convert;
mod kind;

pub use self::kind::{
    ErrorClass, ErrorKind, InvalidReason, Period, ProviderFailure, QuotaExceeded, QuotaKind, TimeoutPhase,
};

use crate::{
    FinishReason, ModelName, Progress, TokenUsage, decision::Decisions, providers::Chosen, usage::Spent,
};
use http::StatusCode;
use std::{fmt, sync::Arc, time::Duration};

/// A type-erased error, the same as tower's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, and where it came from.
///
/// One word wide and cheap to clone, so that all who wait for one call can be given it. Match on
/// [`kind`](Self::kind) for facts; ask [`is_retryable`](Self::is_retryable), [`status`](Self::status) and
/// [`retry_after`](Self::retry_after) to decide. No prompt, key or user id is ever in its text.
///
/// Every layer of this crate has it as its error, and asks of the inner service's error that it converts
/// [into](Into) this one. Errors of tower's own layers do: see the conversion from [`BoxError`].
///
/// ```
/// use llm_layers::{BoxError, Error, ErrorClass, ErrorKind};
///
/// let error = Error::provider(ErrorClass::RateLimited, "acme", "model-1");
/// let told = match error.kind() {
///     ErrorKind::QuotaExceeded(exceeded) => format!("again in {:?}", exceeded.retry_after),
///     ErrorKind::Provider(failure) => format!("{} has too much to do", failure.provider),
///     _ => error.to_string(),
/// };
/// assert_eq!(told, "acme has too much to do");
/// assert_eq!((error.is_retryable(), error.status().as_u16(), error.retry_after()), (true, 429, None));
///
/// // Layers of tower box what they pass on: it is found again.
/// let boxed: BoxError = error.into();
/// assert_eq!(Error::from(boxed).class(), Some(ErrorClass::RateLimited));
/// ```
#[derive(Clone)]
pub struct Error(Arc<Repr>);

#[derive(Clone)]
struct Repr {
    kind: ErrorKind,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
    dispatched: bool,
    usage: Option<TokenUsage>,
    spent: Option<Spent>,
    finish: Option<FinishReason>,
    attempts: Vec<Attempt>,
    decisions: Decisions,
    /// Where it happened, among others.
    chosen: Option<Chosen>,
}

/// One attempt that failed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Attempt {
    /// The model that was asked, or would have been.
    pub model: ModelName,
    /// Why it failed.
    pub error: Error,
    /// How long was waited before it.
    pub wait: Duration,
    /// How long it took.
    pub latency: Duration,
}

impl Attempt {
    /// A failed attempt that was not waited for.
    pub fn new(model: impl Into<ModelName>, error: Error) -> Self {
        Self { model: model.into(), error, wait: Duration::ZERO, latency: Duration::ZERO }
    }
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind) -> Self {
        Self(Arc::new(Repr {
            kind,
            source: None,
            dispatched: false,
            usage: None,
            spent: None,
            finish: None,
            attempts: Vec::new(),
            decisions: Decisions::default(),
            chosen: None,
        }))
    }

    /// The failure of a provider, for leaves.
    ///
    /// ```
    /// use llm_layers::{Error, ErrorClass};
    ///
    /// let error = Error::provider(ErrorClass::Unavailable, "acme", "model-1");
    /// assert!(error.is_retryable());
    /// ```
    pub fn provider(class: ErrorClass, provider: impl Into<Arc<str>>, model: impl Into<ModelName>) -> Self {
        Self::new(ErrorKind::Provider(ProviderFailure::new(class, provider, model)))
    }

    /// A member of the request that is not as it must be.
    pub(crate) fn invalid(member: impl Into<String>, reason: InvalidReason) -> Self {
        // The name comes from the caller: it is shown, but not at any length, and cannot forge a line of a log.
        let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
        let member: String = member.into().chars().take(64).map(shown).collect();
        Self::new(ErrorKind::InvalidRequest { member: Some(member.into()), reason })
    }

    /// A request that is wrong as a whole.
    pub fn invalid_body(reason: InvalidReason) -> Self {
        Self::new(ErrorKind::InvalidRequest { member: None, reason })
    }

    /// Attaches the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.repr().source = Some(Arc::from(source.into()));
        self
    }

    /// Says what it is, now that more is known; the cause stays.
    #[cfg(feature = "openai")]
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.repr().kind = kind;
        self
    }

    /// Says whether a provider was asked before this happened.
    #[must_use]
    pub fn with_dispatched(mut self, dispatched: bool) -> Self {
        self.set_dispatched(dispatched);
        self
    }

    pub(crate) fn set_dispatched(&mut self, dispatched: bool) {
        if self.0.dispatched != dispatched {
            self.repr().dispatched = dispatched;
        }
    }

    /// Says what is known to have been used up.
    #[must_use]
    pub fn with_usage(mut self, usage: TokenUsage) -> Self {
        self.repr().usage = Some(usage);
        self
    }

    /// Says what an answer used up that is withheld.
    pub(crate) fn with_spent(mut self, spent: Spent) -> Self {
        let repr = self.repr();
        (repr.usage, repr.spent) = (spent.usage, Some(spent));
        self
    }

    pub(crate) fn spent(&self) -> Option<Spent> {
        self.0.spent
    }

    /// Says why the answer ended that was none.
    #[must_use]
    pub fn with_finish_reason(mut self, reason: FinishReason) -> Self {
        self.repr().finish = Some(reason);
        self
    }

    /// Says what was tried.
    #[must_use]
    pub fn with_attempts(mut self, attempts: Vec<Attempt>) -> Self {
        if !(attempts.is_empty() && self.0.attempts.is_empty()) {
            self.repr().attempts = attempts;
        }
        self
    }

    /// Attaches what the layers have noted on the way, if it is kept.
    #[must_use]
    pub fn with_decisions(mut self, decisions: &Decisions) -> Self {
        if decisions.are_kept() && !self.0.decisions.are_kept() {
            self.repr().decisions = decisions.clone();
        }
        self
    }

    /// Says at which deployment it happened.
    pub(crate) fn with_chosen(mut self, chosen: Chosen) -> Self {
        self.repr().chosen = Some(chosen);
        self
    }

    pub(crate) fn chosen(&self) -> Option<&Chosen> {
        self.0.chosen.as_ref()
    }

    fn repr(&mut self) -> &mut Repr {
        Arc::make_mut(&mut self.0)
    }

    /// What went wrong, for `match`.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The class of a provider's failure, if it is one.
    pub fn class(&self) -> Option<ErrorClass> {
        match self.kind() {
            ErrorKind::Provider(failure) => Some(failure.class),
            _ => None,
        }
    }

    /// Whether a provider was asked before this happened, so that something may have been used up.
    pub fn dispatched(&self) -> bool {
        self.0.dispatched
    }

    /// Whether a provider was asked, as far as this error and the call's progress can tell. A leaf that could not
    /// connect has marked the progress before it tried, and knows better now; but of another attempt it knows nothing.
    pub(crate) fn was_sent(&self, progress: &Progress) -> bool {
        self.dispatched()
            || match self.class() {
                Some(ErrorClass::Connect) => progress.is_sent(),
                _ => progress.is_dispatched(),
            }
    }

    /// What is known to have been used up all the same.
    pub fn usage(&self) -> Option<&TokenUsage> {
        self.0.usage.as_ref()
    }

    /// Why an answer without content ended, if its provider says so, and the same of all choices.
    pub fn finish_reason(&self) -> Option<&FinishReason> {
        self.0.finish.as_ref()
    }

    /// The attempts that failed, if several were made, this error's own the last of its model.
    pub fn attempts(&self) -> &[Attempt] {
        &self.0.attempts
    }

    /// What the layers have noted on the way, if the request kept its decisions.
    pub fn decisions(&self) -> &Decisions {
        &self.0.decisions
    }

    /// Why, in a name of few letters out of a closed list: the [class](ErrorClass) of a provider's failure, or the
    /// kind. For labels.
    pub fn reason(&self) -> &'static str {
        match self.kind() {
            ErrorKind::InvalidRequest { .. } => "invalid_request",
            ErrorKind::RequestTooLarge { .. } => "request_too_large",
            ErrorKind::ModelNotAllowed { .. } => "model_not_allowed",
            ErrorKind::ModelUnpriced { .. } => "model_unpriced",
            ErrorKind::ModelNotFound { .. } => "model_not_found",
            ErrorKind::NoProvider => "no_provider",
            ErrorKind::QuotaExceeded(_) => "quota_exceeded",
            ErrorKind::StoreUnavailable { .. } => "store_unavailable",
            ErrorKind::Overloaded => "overloaded",
            ErrorKind::Provider(failure) => failure.class.as_str(),
            ErrorKind::EmptyResponse { .. } => "empty_response",
            ErrorKind::StreamInterrupted { .. } => "stream_interrupted",
            ErrorKind::Timeout { .. } => "timeout",
            ErrorKind::NotCached => "not_cached",
            ErrorKind::Cancelled => "cancelled",
            ErrorKind::Other => "other",
        }
    }

    /// Whether the same request may succeed if it is sent again.
    pub fn is_retryable(&self) -> bool {
        match self.kind() {
            ErrorKind::Provider(failure) => failure.class.is_retryable(),
            ErrorKind::QuotaExceeded(quota) => quota.in_flight_only,
            ErrorKind::StreamInterrupted { after_content, .. } => !after_content,
            // It would meet its bound again.
            ErrorKind::EmptyResponse { .. } => self.0.finish != Some(FinishReason::Length),
            ErrorKind::Timeout { .. }
            | ErrorKind::Overloaded
            | ErrorKind::StoreUnavailable { .. }
            | ErrorKind::NoProvider => true,
            ErrorKind::InvalidRequest { .. }
            | ErrorKind::RequestTooLarge { .. }
            | ErrorKind::ModelNotAllowed { .. }
            | ErrorKind::ModelUnpriced { .. }
            | ErrorKind::ModelNotFound { .. }
            | ErrorKind::NotCached
            | ErrorKind::Cancelled
            | ErrorKind::Other => false,
        }
    }

    /// The HTTP status that a gateway answers with.
    pub fn status(&self) -> StatusCode {
        crate::http::status(self)
    }

    /// How long to wait before the next try, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind() {
            ErrorKind::Provider(failure) => failure.retry_after,
            ErrorKind::QuotaExceeded(quota) => Some(quota.retry_after),
            ErrorKind::StoreUnavailable { .. } | ErrorKind::Overloaded | ErrorKind::NoProvider => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Error");
        out.field("kind", &self.0.kind).field("dispatched", &self.0.dispatched);
        if let Some(source) = &self.0.source {
            out.field("source", source);
        }
        if !self.0.attempts.is_empty() {
            out.field("attempts", &self.0.attempts.len());
        }
        out.finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind.fmt(f)?;
        match (self.kind(), self.finish_reason()) {
            (ErrorKind::EmptyResponse { .. }, Some(FinishReason::Length)) => {
                f.write_str(" within its bound on tokens")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
