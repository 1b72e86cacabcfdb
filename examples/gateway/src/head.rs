//! What is wrong with the head of a request before anybody looks what it asks for.

use crate::routes::{closing, unread, wrong};
use axum::{
    extract::Request,
    http::{StatusCode, Version, header},
};
use llm_layers::{config::Config, http::axum::ErrorResponse};

/// Why a request is not taken.
pub(crate) struct Fault {
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

const fn ambiguous(message: &'static str) -> Fault {
    Fault { status: StatusCode::BAD_REQUEST, code: "ambiguous_request", message }
}

impl Fault {
    /// What a server in front of this one may read otherwise is a fault. Lengths hyper has settled already.
    pub(crate) fn of(request: &Request, max_bytes: usize) -> Option<Self> {
        let uri = request.uri();
        let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
        let (mut bytes, mut hosts, mut encodings, mut is_chunked) = (target, 0, 0, true);
        for (name, value) in request.headers() {
            // With the colon, a space, and the end of the line.
            bytes += name.as_str().len() + value.len() + 4;
            if name == header::HOST {
                hosts += 1;
            } else if name == header::TRANSFER_ENCODING {
                encodings += 1;
                is_chunked &= value.as_bytes().eq_ignore_ascii_case(b"chunked");
            }
        }
        if hosts > 1 {
            return Some(ambiguous("there is more than one `Host`"));
        }
        if hosts == 0 && request.version() == Version::HTTP_11 && uri.authority().is_none() {
            let message = "HTTP/1.1 needs a `Host`";
            return Some(Self { status: StatusCode::BAD_REQUEST, code: "missing_host", message });
        }
        if encodings > 1 || !is_chunked {
            return Some(ambiguous("`Transfer-Encoding` may be one `chunked` and nothing else"));
        }
        let (status, code) = (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large");
        let message = "the request's headers are too large";
        (bytes > max_bytes).then_some(Self { status, code, message })
    }

    pub(crate) async fn answer(self, request: Request, config: &Config) -> ErrorResponse {
        let refused = wrong(request.uri(), request.headers(), self.status, self.code, self.message);
        match self.status {
            // Where its body ends is a part of the question.
            StatusCode::BAD_REQUEST => closing(refused),
            _ => unread(refused, request, config).await,
        }
    }
}
