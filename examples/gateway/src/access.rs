//! What is around every request: its id, and its line in the log.

use crate::{
    head::Fault,
    idle,
    routes::{Stopping, template},
};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::Request,
    http::{Extensions, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body::{Frame, SizeHint};
use llm_layers::{
    CacheStatus, End, Error, LlmRequest, LlmResponse, ModelName, Observe, Progress, RequestContext,
    http::{REQUEST_ID, X_REQUEST_ID, axum::Refusal, error_code, error_type, request_id},
    stack::{Caller, Handle},
    telemetry::otel,
};
use opentelemetry::{
    Context, KeyValue,
    trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_sdk::trace::SdkTracer;
use std::{
    borrow::Cow,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
};
use tokio::time::Instant;
use tower::Service as _;

/// What is told about one request when it is over. The handler fills it in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Account(Arc<Mutex<Facts>>);

#[derive(Debug, Default)]
struct Facts {
    requested: Option<ModelName>,
    model: Option<ModelName>,
    attempts: usize,
    cache: CacheStatus,
    ending: Option<&'static str>,
    error: Option<Error>,
    refusal: Option<Refusal>,
    /// Who asks. Of him the tenant and the departments are told, and never the user.
    caller: Option<RequestContext>,
    progress: Option<Progress>,
}

impl Facts {
    /// At least: of one who has left nobody knows more than whether somebody was asked for him.
    fn attempts(&self) -> usize {
        let was_asked = self.progress.as_ref().is_some_and(Progress::is_dispatched);
        self.attempts.max(usize::from(was_asked))
    }

    fn departments(&self) -> Option<Cow<'_, str>> {
        match self.caller.as_ref()?.department_ids() {
            [] => None,
            [one] => Some(Cow::Borrowed(one)),
            several => Some(Cow::Owned(several.join(","))),
        }
    }
}

impl Account {
    fn with<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// By whom, as far as it was found out.
    pub(crate) fn asked_by(&self, found: &Extensions) {
        let caller = found.get().or_else(|| found.get().map(Caller::context));
        self.with(|facts| facts.caller = caller.cloned());
    }

    pub(crate) fn asked(&self, request: &LlmRequest) {
        self.with(|facts| {
            facts.requested = Some(request.requested.clone());
            facts.progress = Some(request.progress.clone());
        });
    }

    pub(crate) fn answered(&self, answer: &LlmResponse) {
        for failed in &answer.attempts {
            tracing::debug!(
                model = failed.model.as_str(),
                error = failed.error.to_string(),
                "an attempt failed"
            );
        }
        self.with(|facts| {
            facts.model = Some(answer.model.clone());
            facts.attempts = answer.attempts.len() + usize::from(!answer.cache.is_hit());
            facts.cache = answer.cache;
        });
    }

    fn failed(&self, error: &Error) {
        self.with(|facts| {
            facts.attempts = facts.attempts.max(error.attempts().len());
            facts.error = Some(error.clone());
        });
    }
}

impl Observe for Account {
    fn on_end(self, end: End<'_>) {
        let ending = match end {
            End::Failed(error, _) => {
                self.failed(error);
                "broken"
            }
            End::Abandoned(_) => "abandoned",
            _ => "whole",
        };
        self.with(|facts| facts.ending = Some(ending));
    }
}

/// What accounts are made of.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    tracer: Option<SdkTracer>,
    stopping: Stopping,
    handle: Handle,
    /// Does not change while it runs: neither does the size of the buffers.
    max_header_bytes: usize,
}

impl Accounts {
    pub(crate) fn new(tracer: Option<SdkTracer>, stopping: Stopping, handle: Handle) -> Self {
        let max_header_bytes = handle.config().server.max_header_bytes;
        Self { tracer, stopping, handle, max_header_bytes }
    }

    /// The span of a request, as a part of the trace that its headers name; where nobody gets spans, the caller's as it is.
    /// None for what is not the API.
    fn begin(&self, request: &Request) -> Option<Context> {
        let path = request.uri().path();
        let parent = path.starts_with("/v1/").then(|| otel::extract(request.headers()))?;
        let Some(tracer) = &self.tracer else { return parent.has_active_span().then_some(parent) };
        // Not the path: whatever a client asks for is not a name.
        let route = template(path);
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            _ => "_OTHER",
        };
        let verb = if method == "_OTHER" { "HTTP" } else { method };
        let builder = match route {
            Some(route) => tracer.span_builder(format!("{verb} {route}")),
            None => tracer.span_builder(verb),
        };
        let known = [KeyValue::new("http.request.method", method), KeyValue::new("url.scheme", "http")];
        let route = route.map(|route| KeyValue::new("http.route", route));
        let builder = builder.with_kind(SpanKind::Server).with_attributes(known.into_iter().chain(route));
        Some(parent.with_span(builder.start_with_context(tracer, &parent)))
    }
}

/// Gives the request its id, and tells about it when its answer has ended. Around all routes, so that no route has it as its own middleware.
pub(crate) async fn account(
    accounts: Arc<Accounts>,
    mut router: Router,
    mut request: Request,
    begun: idle::Request,
) -> Response {
    let id = match request_id(request.headers()) {
        Some(id) => id.to_owned(),
        None => format!("req-{:032x}", fastrand::u128(..)),
    };
    let fault = Fault::of(&request, accounts.max_header_bytes);
    let id_header = HeaderValue::from_str(&id).expect("visible ASCII");
    request.headers_mut().insert(X_REQUEST_ID, id_header.clone());
    let trace = accounts.begin(&request);
    let mut entry = Entry::new(id, &request, begun, trace.clone());
    request.extensions_mut().insert(entry.account.clone());

    let mut response = match fault {
        None => {
            let answered = router.call(request);
            let Ok(response) = match trace {
                Some(trace) => answered.with_context(trace).await,
                None => answered.await,
            };
            response
        }
        Some(fault) => fault.answer(request, &accounts.handle.config()).await.into_response(),
    };
    // Of refusals too, which know nothing of it. Each of the two families of clients shows its own.
    response.headers_mut().insert(REQUEST_ID, id_header.clone());
    response.headers_mut().insert(X_REQUEST_ID, id_header);
    if accounts.stopping.has_begun() {
        // Whoever has more to ask finds another server by connecting anew.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    entry.status = Some(response.status());
    if let Some(error) = response.extensions().get::<Error>() {
        entry.account.failed(error);
    } else if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        entry.account.with(|facts| facts.refusal = Some(refusal));
    }
    response.map(|inner| Body::new(Accounted { inner, entry }))
}

/// One request in the log, written when it is dropped: with the body of its answer, or when the client hangs up.
struct Entry {
    id: String,
    method: String,
    path: String,
    began: Instant,
    status: Option<StatusCode>,
    account: Account,
    /// On its connection.
    _begun: idle::Request,
    trace: Option<Context>,
}

impl Entry {
    fn new(id: String, request: &Request, begun: idle::Request, trace: Option<Context>) -> Self {
        Self {
            id,
            // Of one that nobody knows, no more than it takes to see that.
            method: beginning(request.method().as_str(), 16).to_owned(),
            path: beginning(request.uri().path(), 64).to_owned(),
            began: Instant::now(),
            status: None,
            account: Account::default(),
            _begun: begun,
            trace,
        }
    }
}

fn beginning(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

impl Drop for Entry {
    fn drop(&mut self) {
        let facts = self.account.with(std::mem::take);
        let _current = self.trace.clone().map(Context::attach);
        let (error, refusal) = (facts.error.as_ref(), facts.refusal.as_ref());
        // Whatever a client has written is a text of its own field: either format of the log escapes it.
        tracing::info!(
            request_id = %self.id,
            method = %self.method,
            path = self.path,
            tenant = facts.caller.as_ref().and_then(RequestContext::tenant_id),
            departments = facts.departments().as_deref(),
            status = self.status.map_or(499, |status| status.as_u16()),
            requested = facts.requested.as_ref().map(ModelName::as_str),
            model = facts.model.as_ref().map(ModelName::as_str),
            attempts = facts.attempts(),
            cache = Some(facts.cache).filter(|cache| *cache != CacheStatus::Unused).map(CacheStatus::as_str),
            ending = facts.ending,
            error_type = error.map(error_type).or(refusal.map(|refusal| &*refusal.kind)),
            error_code = error.and_then(error_code).or(refusal.and_then(|refusal| refusal.code.as_deref())),
            error = error.map(ToString::to_string).or(refusal.map(|refusal| refusal.message.to_string())),
            duration_ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
        let Some(trace) = &self.trace else { return };
        let span = trace.span();
        let status = self.status.map_or(499, |status| status.as_u16());
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        let failed = facts.error.as_ref().map(|error| llm_layers::telemetry::error_type(error).to_owned());
        if let Some(failed) = failed.filter(|_| status >= 500 || facts.ending == Some("broken")) {
            span.set_attribute(KeyValue::new("error.type", failed));
            span.set_status(Status::error(""));
        }
        span.end();
    }
}

/// The body of an answer, with its entry in the log.
struct Accounted {
    // Dropped first: what the account is told then is in the entry.
    inner: Body,
    entry: Entry,
}

impl http_body::Body for Accounted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let _current = self.entry.trace.clone().map(Context::attach);
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
