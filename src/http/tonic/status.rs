use crate::{Error, ErrorClass, ErrorKind, InvalidReason, http as edge};
use http::StatusCode;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What `google.rpc.ErrorInfo` says its reasons belong to.
const DOMAIN: &str = "llm-layers";

/// The code that an error has in gRPC.
pub fn code(error: &Error) -> Code {
    match error.kind() {
        // As other servers of gRPC say it of messages that are too large.
        ErrorKind::InvalidRequest { reason: InvalidReason::TooLarge { .. }, .. }
        | ErrorKind::QuotaExceeded(_) => Code::ResourceExhausted,
        ErrorKind::InvalidRequest { .. } | ErrorKind::RequestTooLarge { .. } => Code::InvalidArgument,
        ErrorKind::ModelNotAllowed { .. } | ErrorKind::ModelUnpriced { .. } => Code::PermissionDenied,
        ErrorKind::ModelNotFound { .. } => Code::NotFound,
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::RateLimited => Code::ResourceExhausted,
            class if class.is_callers_fault() => match failure.status {
                Some(StatusCode::NOT_FOUND) => Code::NotFound,
                Some(StatusCode::FORBIDDEN) => Code::PermissionDenied,
                _ => Code::InvalidArgument,
            },
            _ => Code::Unavailable,
        },
        ErrorKind::NoProvider
        | ErrorKind::StoreUnavailable { .. }
        | ErrorKind::Overloaded
        | ErrorKind::EmptyResponse { .. }
        | ErrorKind::StreamInterrupted { .. } => Code::Unavailable,
        ErrorKind::Timeout { .. } => Code::DeadlineExceeded,
        ErrorKind::NotCached => Code::FailedPrecondition,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Other => Code::Internal,
    }
}

/// An error as gRPC tells it.
///
/// * The [`code`], and the error's text as the message: no prompt, key or body of a provider is in it.
/// * Details as in `google.rpc`: an `ErrorInfo` with [`reason`](Error::reason) in capitals, and the `type` and `code` that
///   HTTP clients see; a `BadRequest` that names the member; a `QuotaFailure`; a `ResourceInfo` of the model; a `RetryInfo`.
/// * Metadata: `retry-after` in seconds, `x-ratelimit-*`, and `grpc-retry-pushback-ms`, by which clients that send
///   calls again on their own do it when it is of use, and not at all where it is not.
///
/// The error itself is the status's source, for layers of the host: see [`error_of`].
///
/// ```
/// use llm_layers::{Error, ErrorKind, http::tonic::{error_of, status}};
/// use tonic_types::StatusExt;
///
/// let error = Error::new(ErrorKind::ModelNotFound { model: "fast".into() });
/// let status = status(error);
/// assert_eq!((status.code(), status.message()), (tonic::Code::NotFound, "no provider serves model fast"));
/// assert_eq!(status.get_details_error_info().unwrap().reason, "MODEL_NOT_FOUND");
/// assert!(matches!(error_of(&status).unwrap().kind(), ErrorKind::ModelNotFound { .. }));
/// ```
pub fn status(error: Error) -> Status {
    let message = error.to_string();
    let details = details(&error, &message);
    let metadata = metadata(&error);
    let mut status = Status::with_error_details_and_metadata(code(&error), message, details, metadata);
    status.set_source(Arc::new(error));
    status
}

/// The error that a status was made of, if it was.
pub fn error_of(status: &Status) -> Option<&Error> {
    std::error::Error::source(status)?.downcast_ref()
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        status(error)
    }
}

fn details(error: &Error, message: &str) -> ErrorDetails {
    let mut facts = HashMap::from([("type".to_owned(), edge::error_type(error).to_owned())]);
    facts.extend(edge::error_code(error).map(|code| ("code".to_owned(), code.to_owned())));
    let mut details = ErrorDetails::with_error_info(error.reason().to_ascii_uppercase(), DOMAIN, facts);
    match error.kind() {
        ErrorKind::InvalidRequest { member, reason } => {
            details.add_bad_request_violation(member.as_deref().unwrap_or_default(), reason.to_string());
        }
        ErrorKind::QuotaExceeded(exceeded) => {
            details.add_quota_failure_violation(format!("department:{}", exceeded.department_id), message);
        }
        ErrorKind::ModelNotFound { model }
        | ErrorKind::ModelNotAllowed { model, .. }
        | ErrorKind::ModelUnpriced { model } => {
            details.set_resource_info("model", &**model, "", message);
        }
        _ => {}
    }
    if let Some(after) = error.retry_after() {
        details.set_retry_info(Some(after));
    }
    details
}

fn metadata(error: &Error) -> MetadataMap {
    let mut headers = http::HeaderMap::new();
    if let Some(seconds) = edge::retry_after_seconds(error) {
        headers.insert(http::header::RETRY_AFTER, seconds.into());
    }
    headers.extend(edge::rate_limit_headers_of(error).into_iter().flatten());
    if let Some(milliseconds) = pushback(error) {
        headers.insert("grpc-retry-pushback-ms", milliseconds.into());
    }
    MetadataMap::from_headers(headers)
}

/// When a client may send the same call again: -1 for never, `None` for as it thinks best.
fn pushback(error: &Error) -> Option<i32> {
    if !error.is_retryable() {
        return Some(-1);
    }
    let after = error.retry_after()?;
    let milliseconds = after.saturating_add(Duration::from_nanos(999_999)).as_millis();
    // What does not fit is weeks: the client will not be there any more.
    Some(milliseconds.try_into().unwrap_or(-1))
}
