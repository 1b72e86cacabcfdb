use crate::{ModelName, clock::SystemClock};
use bytes::Bytes;
use http::StatusCode;
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

/// The category of an [`Error`](crate::Error), with the facts that a caller needs to answer it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request is not one.
    InvalidRequest {
        /// The member at fault, such as `messages[0].role`; `None` if it is the request as a whole.
        member: Option<Box<str>>,
        /// What is wrong with it.
        reason: InvalidReason,
    },
    /// The request could never fit into a limit.
    RequestTooLarge {
        /// The department whose limit it is.
        department_id: Arc<str>,
        /// What is limited.
        quota: QuotaKind,
        /// For how long the limit is.
        period: Period,
        /// The largest amount that would fit, in requests, tokens or nano-dollars.
        largest: u64,
    },
    /// A department may not use this model.
    ModelNotAllowed {
        /// The department that forbids it.
        department_id: Arc<str>,
        /// The model, by its canonical name.
        model: ModelName,
    },
    /// A limit on cost applies, and the model's price is unknown.
    ModelUnpriced {
        /// The model, by its canonical name.
        model: ModelName,
    },
    /// No provider serves this model.
    ModelNotFound {
        /// The model.
        model: ModelName,
    },
    /// There is no provider at all.
    NoProvider,
    /// A department is over one of its limits.
    QuotaExceeded(QuotaExceeded),
    /// A store that must be asked did not answer, and the call was refused for that reason.
    StoreUnavailable {
        /// Which store.
        store: Cow<'static, str>,
    },
    /// More calls are in flight than are allowed.
    Overloaded,
    /// A provider failed.
    Provider(ProviderFailure),
    /// A provider answered, and said nothing.
    EmptyResponse {
        /// The model that did.
        model: ModelName,
    },
    /// A stream broke off.
    StreamInterrupted {
        /// The model that was streaming, if known.
        model: Option<ModelName>,
        /// Whether content had been passed on before.
        after_content: bool,
    },
    /// Something took too long.
    Timeout {
        /// What was waited for.
        phase: TimeoutPhase,
    },
    /// The caller wanted a cached answer or none, and there was none.
    NotCached,
    /// The caller went away.
    Cancelled,
    /// Anything else, foreign errors included.
    Other,
}

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidReason {
    /// It is not JSON.
    Syntax {
        /// Where, from 1.
        line: usize,
        /// Where, from 1.
        column: usize,
    },
    /// It must be there.
    Missing,
    /// It must not be empty.
    Empty,
    /// It is there twice.
    Duplicate,
    /// It has the wrong type.
    Mistyped {
        /// What it must be.
        expected: &'static str,
    },
    /// Arrays and objects nest too deep.
    TooDeep {
        /// How deep they may.
        limit: usize,
    },
    /// There are too many of them.
    TooMany {
        /// How many there may be.
        limit: usize,
    },
    /// The body is too large.
    TooLarge {
        /// How many bytes it may have.
        limit: usize,
    },
    /// The body is not JSON by its content type.
    MediaType,
    /// The body is compressed, or encoded otherwise.
    Encoded,
    /// The body does not come as HTTP has it, such as in chunks of no size.
    Framing,
    /// There is nothing that it could become at other providers.
    Unsupported,
    /// It names models that nobody can check, where the caller's departments are bound to a list of models, or to what they
    /// cost.
    FurtherModels,
    /// It is a header `x-llm-…` that nobody reads.
    UnknownHeader,
}

/// Which limit was reached, and when it opens again.
///
/// For a layer of your own that keeps a limit:
///
/// ```
/// use llm_layers::{Error, ErrorKind, Period, QuotaExceeded, QuotaKind};
/// use std::time::Duration;
///
/// let exceeded = QuotaExceeded::new("research", QuotaKind::Requests, Period::Day, 60, Duration::from_secs(12));
/// let error = Error::new(ErrorKind::QuotaExceeded(exceeded));
/// assert_eq!((error.status().as_u16(), error.retry_after()), (429, Some(Duration::from_secs(12))));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaExceeded {
    /// The department.
    pub department_id: Arc<str>,
    /// What is limited.
    pub quota: QuotaKind,
    /// Over which time.
    pub period: Period,
    /// The limit, in requests, tokens or nano-dollars.
    pub limit: u64,
    /// What is used up.
    pub current: u64,
    /// What calls in flight have reserved.
    pub reserved: u64,
    /// When the window ends.
    pub resets_at: std::time::SystemTime,
    /// How long it goes on, by the store's clock.
    pub resets_in: Duration,
    /// How long until it is worth trying again: until the window ends, or sooner where only calls in flight are in the way.
    pub retry_after: Duration,
    /// Whether only reservations in flight stand in the way.
    pub in_flight_only: bool,
}

/// What a quota counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuotaKind {
    /// Calls.
    Requests,
    /// Tokens, in and out.
    Tokens,
    /// Nano-dollars.
    Cost,
}

/// The calendar window of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Period {
    /// From midnight.
    Day,
    /// From the first.
    Month,
}

/// What was waited for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TimeoutPhase {
    /// The beginning of an answer; of one that is not streamed, all of it.
    Head,
    /// Its first content.
    FirstContent,
    /// The next chunk.
    Idle,
    /// Its end.
    Total,
    /// Anything, before the caller's or the fallback's deadline.
    Deadline,
}

/// How a provider failed.
#[derive(Clone)]
#[non_exhaustive]
pub struct ProviderFailure {
    /// What kind of failure.
    pub class: ErrorClass,
    /// The provider.
    pub provider: Arc<str>,
    /// The model, as it was asked for there.
    pub model: ModelName,
    /// Its HTTP status, if it got that far.
    pub status: Option<StatusCode>,
    /// Its own code for the failure.
    pub code: Option<Box<str>>,
    /// The member of the request that it refuses, as it names it. Its path and nothing of its value.
    pub param: Option<Box<str>>,
    /// How long it asks to be left alone.
    pub retry_after: Option<Duration>,
    /// Whether the request is larger than what the account may use in a minute: another account may have a larger limit.
    pub is_account_limit: bool,
    /// The id that it gave the request.
    pub request_id: Option<Box<str>>,
    /// The beginning of what it said. May quote the prompt: not shown by `Debug`, not for clients.
    pub body: Option<Bytes>,
}

/// What kind of failure a provider had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorClass {
    /// It could not be reached; nothing was sent.
    Connect,
    /// The connection broke.
    Transport,
    /// It reported a failure of its own.
    Upstream,
    /// Its stream ended before its end.
    Truncated,
    /// It sent what is not its protocol.
    BadFrame,
    /// It sent more than is taken.
    TooLarge,
    /// It was asked too often.
    RateLimited,
    /// It refused the credentials, or they have no credit left.
    Auth,
    /// It refused the request.
    BadRequest,
    /// The prompt is too long for the model, or larger than what the account may use in a minute.
    ContextWindow,
    /// It refused the content.
    ContentFilter,
    /// It is not available.
    Unavailable,
}

impl ErrorClass {
    /// Whether the same request may succeed at the same provider.
    pub const fn is_retryable(self) -> bool {
        !matches!(
            self,
            Self::Auth | Self::BadRequest | Self::ContextWindow | Self::ContentFilter | Self::TooLarge
        )
    }

    /// Whether the request is to blame, not the provider.
    pub const fn is_callers_fault(self) -> bool {
        matches!(self, Self::BadRequest | Self::ContextWindow | Self::ContentFilter)
    }

    /// A name of few letters, for labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Transport => "transport",
            Self::Upstream => "upstream",
            Self::Truncated => "truncated",
            Self::BadFrame => "bad_frame",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Auth => "auth",
            Self::BadRequest => "bad_request",
            Self::ContextWindow => "context_window",
            Self::ContentFilter => "content_filter",
            Self::Unavailable => "unavailable",
        }
    }
}

impl ProviderFailure {
    /// A failure of which nothing more is known.
    pub fn new(class: ErrorClass, provider: impl Into<Arc<str>>, model: impl Into<ModelName>) -> Self {
        Self {
            class,
            provider: provider.into(),
            model: model.into(),
            status: None,
            code: None,
            param: None,
            retry_after: None,
            is_account_limit: false,
            request_id: None,
            body: None,
        }
    }
}

impl QuotaExceeded {
    /// All of a limit is used up, and it is worth trying again when its window ends.
    pub fn new(
        department_id: impl Into<Arc<str>>,
        quota: QuotaKind,
        period: Period,
        limit: u64,
        resets_in: Duration,
    ) -> Self {
        Self {
            department_id: department_id.into(),
            quota,
            period,
            limit,
            current: limit,
            reserved: 0,
            resets_at: SystemClock.in_future(resets_in),
            resets_in,
            retry_after: resets_in,
            in_flight_only: false,
        }
    }

    /// So much is used up.
    #[must_use]
    pub const fn with_current(mut self, current: u64) -> Self {
        self.current = current;
        self
    }

    /// So much is reserved by calls in flight.
    #[must_use]
    pub const fn with_reserved(mut self, reserved: u64) -> Self {
        self.reserved = reserved;
        self
    }

    /// Only calls in flight stand in the way, so that it is worth trying again after so long.
    #[must_use]
    pub const fn with_in_flight_only(mut self, retry_after: Duration) -> Self {
        (self.in_flight_only, self.retry_after) = (true, retry_after);
        self
    }
}

impl fmt::Debug for ProviderFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderFailure")
            .field("class", &self.class)
            .field("provider", &self.provider)
            .field("model", &self.model)
            .field("status", &self.status)
            .field("code", &self.code)
            .field("param", &self.param)
            .field("retry_after", &self.retry_after)
            .field("is_account_limit", &self.is_account_limit)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// The name may be the caller's own words: it is shown, but not at any length.
fn brief(model: &ModelName) -> &str {
    model.char_indices().nth(128).map_or(model, |(end, _)| &model[..end])
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRequest { member: Some(member), reason } => write!(f, "`{member}` {reason}"),
            Self::InvalidRequest { member: None, reason } => write!(f, "the request {reason}"),
            Self::RequestTooLarge { department_id, quota, period, largest } => {
                let (unit, period) = (unit(*quota), by(*period));
                write!(
                    f,
                    "the request exceeds the {period} limit of department {department_id}, {largest} {unit}"
                )
            }
            Self::ModelNotAllowed { department_id, model } => {
                write!(f, "department {department_id} may not use model {}", brief(model))
            }
            Self::ModelUnpriced { model } => write!(f, "model {} has no known price", brief(model)),
            Self::ModelNotFound { model } => write!(f, "no provider serves model {}", brief(model)),
            Self::NoProvider => f.write_str("no provider is registered"),
            Self::QuotaExceeded(quota) => quota.fmt(f),
            Self::StoreUnavailable { store } => write!(f, "the {store} store is unavailable"),
            Self::Overloaded => f.write_str("too many calls are in flight"),
            Self::Provider(failure) => failure.fmt(f),
            Self::EmptyResponse { model } => write!(f, "model {model} answered nothing"),
            Self::StreamInterrupted { model: Some(model), .. } => {
                write!(f, "the answer of {model} broke off")
            }
            Self::StreamInterrupted { model: None, .. } => f.write_str("the answer broke off"),
            Self::Timeout { phase } => write!(f, "timed out waiting for {phase}"),
            Self::NotCached => f.write_str("the answer is not cached"),
            Self::Cancelled => f.write_str("the caller went away"),
            Self::Other => f.write_str("the request failed"),
        }
    }
}

impl fmt::Display for InvalidReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { line, column } => write!(f, "is not valid JSON (line {line}, column {column})"),
            Self::Missing => f.write_str("is missing"),
            Self::Empty => f.write_str("must not be empty"),
            Self::Duplicate => f.write_str("is there twice"),
            Self::Mistyped { expected } => write!(f, "must be {expected}"),
            Self::TooDeep { limit } => write!(f, "nests deeper than {limit}"),
            Self::TooMany { limit } => write!(f, "has more than {limit} members"),
            Self::TooLarge { limit } => write!(f, "is larger than {limit} bytes"),
            Self::MediaType => f.write_str("must have the content type application/json"),
            Self::Encoded => f.write_str("must come as it is, without a content encoding"),
            Self::Framing => f.write_str("does not come as HTTP has it"),
            Self::Unsupported => f.write_str("is not supported"),
            Self::FurtherModels => {
                f.write_str("names further models, which is not allowed where models or costs are limited")
            }
            Self::UnknownHeader => f.write_str("is a header that is not known"),
        }
    }
}

const fn unit(quota: QuotaKind) -> &'static str {
    match quota {
        QuotaKind::Requests => "requests",
        QuotaKind::Tokens => "tokens",
        QuotaKind::Cost => "nano-dollars",
    }
}

const fn by(period: Period) -> &'static str {
    match period {
        Period::Day => "daily",
        Period::Month => "monthly",
    }
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let period = by(self.period);
        let quota = match self.quota {
            QuotaKind::Requests => "request",
            QuotaKind::Tokens => "token",
            QuotaKind::Cost => "cost",
        };
        let unit = unit(self.quota);
        let Self { department_id, limit, current, reserved, .. } = self;
        write!(
            f,
            "department {department_id} is over its {period} {quota} limit ({current} used and {reserved} reserved of {limit} {unit})"
        )
    }
}

impl fmt::Display for TimeoutPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "the beginning of the answer",
            Self::FirstContent => "the first content",
            Self::Idle => "the next chunk",
            Self::Total => "the end of the answer",
            Self::Deadline => "an answer before the deadline",
        })
    }
}

impl fmt::Display for ProviderFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { provider, model, .. } = self;
        let said = match self.class {
            ErrorClass::Connect => "could not be reached",
            ErrorClass::Transport => "lost the connection",
            ErrorClass::Upstream => "reported a failure",
            ErrorClass::Truncated => "ended its stream early",
            ErrorClass::BadFrame => "sent a malformed answer",
            ErrorClass::TooLarge => "sent more than is taken",
            ErrorClass::RateLimited => "limits the rate of requests",
            ErrorClass::Auth => "refused the credentials",
            ErrorClass::BadRequest => "refused the request",
            // In Anthropic's words: clients know it by them, for its errors have no code.
            ErrorClass::ContextWindow => "says that the prompt is too long",
            ErrorClass::ContentFilter => "refused the content",
            ErrorClass::Unavailable => "is unavailable",
        };
        write!(f, "provider {provider} {said}")?;
        // A service that is gone is so for every model.
        match (model.is_empty(), self.status) {
            (true, None) => Ok(()),
            (true, Some(status)) => write!(f, " (status {})", status.as_u16()),
            (false, None) => write!(f, " (model {model})"),
            (false, Some(status)) => write!(f, " (model {model}, status {})", status.as_u16()),
        }
    }
}
