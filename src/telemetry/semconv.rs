//! Names and values of the GenAI conventions.
//!
//! Constants of our own: the registry's Rust crate marks those of GenAI deprecated and lacks the newest.

#[cfg(any(feature = "otel", feature = "tracing"))]
use crate::{CacheStatus, Period, QuotaKind};
use crate::{Error, ErrorClass, ErrorKind, Operation};
use std::sync::Arc;

/// Which version of OpenTelemetry's GenAI conventions is spoken. All of them have the status *Development*.
///
/// What differs: the names of metrics and of what was written to a provider's cache, `gen_ai.request.top_k` as an integer,
/// `gen_ai.request.reasoning.level`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SemConv {
    /// The last set that was part of the core conventions: what backends read today.
    #[default]
    V1_41,
    /// The main branch of the conventions' own repository, as of November 2026.
    Latest,
}

impl SemConv {
    /// [`Latest`](Self::Latest) if `OTEL_SEMCONV_STABILITY_OPT_IN` lists `gen_ai_latest_experimental`.
    ///
    /// The environment is never read unless you call this.
    pub fn from_env() -> Self {
        let opted = std::env::var("OTEL_SEMCONV_STABILITY_OPT_IN").unwrap_or_default();
        match opted.split(',').any(|name| name.trim() == "gen_ai_latest_experimental") {
            true => Self::Latest,
            false => Self::V1_41,
        }
    }

    pub(super) const fn cache_write_tokens(self) -> &'static str {
        match self {
            Self::V1_41 => "gen_ai.usage.cache_creation.input_tokens",
            Self::Latest => "gen_ai.usage.cache_write.input_tokens",
        }
    }
}

/// What an attribute holds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// A text.
    Str(&'a str),
    /// A text that may be shared rather than copied.
    Shared(&'a Arc<str>),
    /// A text that lives as long as the program.
    Static(&'static str),
    /// An integer.
    Int(i64),
    /// A number.
    Double(f64),
    /// True or false.
    Bool(bool),
    /// Texts.
    Strs(&'a [&'a str]),
}

pub(super) const fn int(value: u64) -> Value<'static> {
    Value::Int(if value > i64::MAX as u64 { i64::MAX } else { value as i64 })
}

/// The value of `gen_ai.operation.name`.
pub(super) const fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Chat => "chat",
    }
}

/// The value of `gen_ai.provider.name`: a well-known one if `name` is a usual way to say it, `name` in lower case otherwise.
pub(super) fn provider(name: &str) -> Arc<str> {
    let name = name.to_ascii_lowercase();
    let known = match &*name {
        "azure" | "azure_openai" | "azure-openai" => "azure.ai.openai",
        "bedrock" | "aws-bedrock" | "aws_bedrock" => "aws.bedrock",
        "gemini" | "google-gemini" => "gcp.gemini",
        "vertex" | "vertex_ai" | "vertexai" | "vertex-ai" => "gcp.vertex_ai",
        "mistral" | "mistralai" => "mistral_ai",
        "moonshot" | "moonshotai" => "moonshot_ai",
        "watsonx" => "ibm.watsonx.ai",
        "xai" | "x-ai" => "x_ai",
        _ => return name.into(),
    };
    known.into()
}

/// The value of `error.type`, out of the closed list in `docs/telemetry.md`.
pub fn error_type(error: &Error) -> &str {
    match error.kind() {
        ErrorKind::Provider(failure) => match (&failure.status, failure.class) {
            (Some(status), _) if !status.is_success() => status.as_str(),
            (_, ErrorClass::Connect | ErrorClass::Transport) => "connect",
            (_, ErrorClass::Truncated | ErrorClass::BadFrame | ErrorClass::TooLarge) => "decode",
            // Reported without a status, in the place of an answer or in its middle.
            (_, ErrorClass::RateLimited) => "rate_limit_exceeded",
            (_, ErrorClass::ContextWindow) => "context_length_exceeded",
            (_, ErrorClass::ContentFilter) => "content_filter",
            (
                _,
                ErrorClass::Auth | ErrorClass::BadRequest | ErrorClass::Unavailable | ErrorClass::Upstream,
            ) => OTHER,
        },
        ErrorKind::Timeout { .. } => "timeout",
        ErrorKind::EmptyResponse { .. } => EMPTY,
        ErrorKind::StreamInterrupted { .. } => "decode",
        ErrorKind::QuotaExceeded(_) => "quota_exceeded",
        ErrorKind::ModelNotAllowed { .. } => "model_not_allowed",
        ErrorKind::StoreUnavailable { .. } => "usage_store_unavailable",
        ErrorKind::Cancelled => CANCELLED,
        ErrorKind::InvalidRequest { .. } | ErrorKind::RequestTooLarge { .. } => "400",
        ErrorKind::ModelUnpriced { .. } => "403",
        ErrorKind::ModelNotFound { .. } => "404",
        ErrorKind::NoProvider | ErrorKind::Overloaded => "503",
        ErrorKind::NotCached => "504",
        ErrorKind::Other => OTHER,
    }
}

pub(super) const OTHER: &str = "_OTHER";
pub(super) const EMPTY: &str = "empty_response";
pub(super) const CANCELLED: &str = "cancelled";

/// A span's status description: a sentence of ours, so that nothing of a prompt or a key can be in it.
pub(super) const fn description(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::Connect => "the provider could not be reached",
            ErrorClass::Transport => "the connection to the provider broke",
            ErrorClass::Upstream => "the provider reported a failure",
            ErrorClass::Truncated => "the provider ended its stream early",
            ErrorClass::BadFrame => "the provider sent a malformed answer",
            ErrorClass::TooLarge => "the provider sent more than is taken",
            ErrorClass::RateLimited => "the provider limits the rate of requests",
            ErrorClass::Auth => "the provider refused the credentials",
            ErrorClass::BadRequest => "the provider refused the request",
            ErrorClass::ContextWindow => "the prompt is too long for the model",
            ErrorClass::ContentFilter => "the provider refused the content",
            ErrorClass::Unavailable => "the provider is unavailable",
        },
        ErrorKind::Timeout { .. } => "it took too long",
        ErrorKind::EmptyResponse { .. } => EMPTY_DESCRIPTION,
        ErrorKind::StreamInterrupted { .. } => "the answer broke off",
        ErrorKind::QuotaExceeded(_) => "a department is over its quota",
        ErrorKind::ModelNotAllowed { .. } => "the model may not be used",
        ErrorKind::StoreUnavailable { .. } => "a store is unavailable",
        ErrorKind::InvalidRequest { .. } => "the request is not valid",
        ErrorKind::RequestTooLarge { .. } => "the request exceeds its limit",
        ErrorKind::ModelUnpriced { .. } => "the model has no known price",
        ErrorKind::ModelNotFound { .. } => "no provider serves the model",
        ErrorKind::NoProvider => "no provider is registered",
        ErrorKind::Overloaded => "too many calls are in flight",
        ErrorKind::NotCached => "the answer is not cached",
        ErrorKind::Cancelled => "the caller went away",
        ErrorKind::Other => "the call failed",
    }
}

pub(super) const EMPTY_DESCRIPTION: &str = "the answer says nothing";

/// What a cache did, as a label.
#[cfg(any(feature = "otel", feature = "tracing"))]
pub(super) const fn cache(status: CacheStatus) -> Option<&'static str> {
    match status {
        CacheStatus::Unused => None,
        used => Some(used.as_str()),
    }
}

#[cfg(any(feature = "otel", feature = "tracing"))]
pub(super) const fn quota(quota: QuotaKind) -> &'static str {
    match quota {
        QuotaKind::Requests => "requests",
        QuotaKind::Tokens => "tokens",
        QuotaKind::Cost => "cost",
    }
}

#[cfg(any(feature = "otel", feature = "tracing"))]
pub(super) const fn period(period: Period) -> &'static str {
    match period {
        Period::Day => "day",
        Period::Month => "month",
    }
}
