//! What our errors mean in HTTP, given once.

use crate::{Error, ErrorClass, ErrorKind, InvalidReason};
use http::StatusCode;

/// The status that a gateway answers with.
pub fn status(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::InvalidRequest { reason, .. } => match reason {
            InvalidReason::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            InvalidReason::MediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            _ => StatusCode::BAD_REQUEST,
        },
        ErrorKind::RequestTooLarge { .. } => StatusCode::BAD_REQUEST,
        ErrorKind::ModelNotAllowed { .. } | ErrorKind::ModelUnpriced { .. } => StatusCode::FORBIDDEN,
        ErrorKind::ModelNotFound { .. } => StatusCode::NOT_FOUND,
        ErrorKind::QuotaExceeded(_) => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::NoProvider | ErrorKind::StoreUnavailable { .. } | ErrorKind::Overloaded => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        ErrorKind::Provider(failure) => match failure.class {
            ErrorClass::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            class if class.is_callers_fault() => {
                failure.status.filter(StatusCode::is_client_error).unwrap_or(StatusCode::BAD_REQUEST)
            }
            _ => StatusCode::BAD_GATEWAY,
        },
        ErrorKind::EmptyResponse { .. } | ErrorKind::StreamInterrupted { .. } => StatusCode::BAD_GATEWAY,
        ErrorKind::Timeout { .. } | ErrorKind::NotCached => StatusCode::GATEWAY_TIMEOUT,
        // The caller is gone, so that only logs see this.
        ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
