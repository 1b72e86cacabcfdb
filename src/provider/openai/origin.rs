//! Whom a call went to: what its errors say of it.

use super::{
    endpoint::Endpoint,
    fault::{self, Fault},
    retry_after,
};
use crate::{BoxError, Error, ErrorClass, ErrorKind, ModelName, ProviderFailure, TokenUsage};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::{io, sync::Arc};

/// How much of what a provider said of a failure is read and kept.
pub(in crate::provider) const MAX_KEPT: usize = 64 << 10;

/// Where providers, and the proxies in front of them, put the id of a request; the first counts.
const REQUEST_IDS: [&str; 7] = [
    "x-request-id",
    "request-id",
    "x-amzn-requestid",
    "apim-request-id",
    "x-ms-request-id",
    "x-goog-request-id",
    "cf-ray",
];

#[derive(Clone)]
pub(in crate::provider) struct Origin {
    pub(in crate::provider) endpoint: Arc<Endpoint>,
    pub(in crate::provider) model: ModelName,
    pub(super) status: Option<StatusCode>,
    pub(in crate::provider) request_id: Option<Arc<str>>,
}

impl Origin {
    pub(in crate::provider) const fn new(endpoint: Arc<Endpoint>, model: ModelName) -> Self {
        Self { endpoint, model, status: None, request_id: None }
    }

    /// It has begun to answer.
    pub(in crate::provider) fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.status = Some(status);
        self.request_id = REQUEST_IDS
            .iter()
            .filter_map(|name| headers.get(*name)?.to_str().ok())
            .find(|id| !id.is_empty() && id.len() <= 128)
            .map(Into::into);
    }

    /// It is asked again, and what it answered before is over.
    pub(super) fn ask_again(&mut self) {
        (self.status, self.request_id) = (None, None);
    }

    fn failure(&self, class: ErrorClass) -> ProviderFailure {
        let mut failure =
            ProviderFailure::new(class, Arc::clone(&self.endpoint.provider), self.model.clone());
        failure.status = self.status;
        failure.request_id = self.request_id.as_deref().map(Into::into);
        failure
    }

    fn failed(failure: ProviderFailure) -> Error {
        Error::new(ErrorKind::Provider(failure)).with_dispatched(true)
    }

    /// An error of which nothing more is known.
    pub(in crate::provider) fn error(&self, class: ErrorClass) -> Error {
        Self::failed(self.failure(class))
    }

    /// What was said is not what the protocol allows; `why` must not quote it.
    pub(in crate::provider) fn malformed(&self, why: impl Into<BoxError>, said: Bytes) -> Error {
        let mut failure = self.failure(ErrorClass::BadFrame);
        failure.body = Some(kept(said));
        Self::failed(failure).with_source(why)
    }

    /// An answer with a status other than 2xx.
    pub(in crate::provider) fn refused(&self, headers: &HeaderMap, said: Bytes) -> Error {
        let status = self.status.unwrap_or_default();
        let fault = Fault::read(&said);
        let class = fault::class_of_status(status, &fault);
        let mut failure = self.failure(class);
        failure.is_account_limit = class == ErrorClass::ContextWindow && fault.exceeds_account();
        (failure.code, failure.param) = (fault.code(), fault.param());
        let retry_after = retry_after::read(headers, status).or(fault.retry_after);
        // The same request would be refused whenever it comes.
        failure.retry_after = retry_after.filter(|_| !class.is_callers_fault());
        failure.body = Some(kept(said));
        Self::failed(failure)
    }

    /// An error that was reported in the place of an answer, or of the rest of one.
    pub(in crate::provider) fn reported(&self, said: Bytes) -> Error {
        let fault = Fault::read(&said);
        let mut failure = self.failure(fault::class_of_report(&fault));
        failure.is_account_limit = fault.exceeds_account();
        (failure.code, failure.param) = (fault.code(), fault.param());
        failure.retry_after = fault.retry_after;
        failure.body = Some(kept(said));
        Self::failed(failure)
    }

    /// As [`reported`](Self::reported), with what was told beside it to have been used up.
    pub(super) fn reported_beside(&self, usage: Option<&TokenUsage>, said: Bytes) -> Error {
        let error = self.reported(said);
        match usage {
            Some(usage) => error.with_usage(*usage),
            None => error,
        }
    }

    /// The HTTP service will take no further request.
    pub(in crate::provider) fn gone(&self, error: BoxError) -> Error {
        let error = Error::from(error);
        match error.kind() {
            ErrorKind::Other => error.with_kind(ErrorKind::Provider(self.failure(ErrorClass::Unavailable))),
            _ => error,
        }
    }

    /// There will be no answer.
    pub(in crate::provider) fn unanswered(&self, error: BoxError) -> Error {
        let error = Error::from(error);
        match error.kind() {
            ErrorKind::Other => {
                let connect = is_connect(&error);
                let class = if connect { ErrorClass::Connect } else { ErrorClass::Transport };
                error.with_kind(ErrorKind::Provider(self.failure(class))).with_dispatched(!connect)
            }
            // A time limit beneath this leaf.
            ErrorKind::Timeout { .. } => error.with_dispatched(true),
            _ => error,
        }
    }

    /// The connection broke after the head.
    pub(in crate::provider) fn cut(&self, error: BoxError) -> Error {
        self.error(ErrorClass::Transport).with_source(error)
    }
}

fn kept(mut said: Bytes) -> Bytes {
    if said.len() <= MAX_KEPT {
        return said;
    }
    said.truncate(MAX_KEPT);
    // A slice would keep all of it in memory.
    Bytes::copy_from_slice(&said)
}

/// Whether it broke before anything was sent.
fn is_connect(error: &Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        #[cfg(feature = "hyper-client")]
        if cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| e.is_connect()) {
            return true;
        }
        #[cfg(feature = "reqwest")]
        if cause.downcast_ref::<reqwest::Error>().is_some_and(|e| e.is_connect() || e.is_builder()) {
            return true;
        }
        let io = cause.downcast_ref::<io::Error>();
        // Other kinds, such as an unreachable host, also befall connections that were open.
        if io.is_some_and(|e| {
            matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::AddrNotAvailable)
        }) {
            return true;
        }
        // As a source, an `io::Error` shows not the error that it wraps but that one's.
        next = io.and_then(io::Error::get_ref).map(|e| e as _).or_else(|| cause.source());
    }
    false
}
