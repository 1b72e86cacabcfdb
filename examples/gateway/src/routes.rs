//! What is served where.

use crate::{
    access::{self, Account, Accounts, UnderWay},
    auth::{self, Keys},
    cache::{self, Cache},
    config::Config,
    ledger::{self, Ledger},
    quota::{self, Quotas},
    stack::{self, Stack},
    telemetry::Telemetry,
};
use axum::{
    Extension, Router,
    body::Bytes,
    extract::{FromRequest, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use llm_layers::{
    BodyLimits, LlmRequest, LlmResponse,
    cache::CacheControl,
    http::{
        Asked,
        axum::{ChatAnswer, ChatRequest, ErrorResponse, MessagesAnswer, MessagesRequest},
        cache_control,
    },
};
use serde_json::json;
use std::{
    error::Error,
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tower::ServiceExt;

/// How long a client may take to send its request's body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether the process is about to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping(Arc<AtomicBool>);

impl Stopping {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[derive(Clone)]
struct Chat {
    stack: Stack,
    keep_alive: Duration,
    shows_decisions: bool,
}

/// What the stack and the other routes share.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) ledger: Option<Ledger>,
    pub(crate) quotas: Option<Quotas>,
    pub(crate) cache: Option<Cache>,
    pub(crate) telemetry: Telemetry,
}

pub(crate) fn router(
    config: &Config,
    stopping: &Stopping,
    under_way: &UnderWay,
    parts: Parts,
) -> Result<Router, Box<dyn Error>> {
    let Parts { ledger, quotas, cache, telemetry } = parts;
    let chat = Chat {
        stack: stack::build(config, ledger.as_ref(), quotas.as_ref(), cache.as_ref(), &telemetry)?,
        keep_alive: config.server.keep_alive,
        shows_decisions: config.telemetry.decision_headers,
    };
    let accounts = Accounts::new(under_way.clone(), telemetry.tracer());
    let limits = BodyLimits::default().with_max_bytes(config.server.max_body_bytes);
    let models = models(config);
    let api = Router::new()
        .route(
            "/v1/chat/completions",
            post(complete).with_state(chat.clone()).layer(Extension(limits.clone())),
        )
        .route("/v1/messages", post(message).with_state(chat).layer(Extension(limits)))
        .route("/v1/models", get(move || ready(json_response(models.clone()))))
        .route("/v1/usage", get(ledger::usage).with_state(ledger.clone()))
        .route("/v1/quota/{department}", get(quota::standing).with_state(quotas.clone()))
        .route("/v1/cache/invalidate", post(cache::invalidate).with_state(cache))
        .route_layer(middleware::from_fn_with_state(Keys::new(config), auth::authenticate))
        .route_layer(middleware::from_fn_with_state(stopping.clone(), refuse_when_stopping));
    let metrics = match telemetry.has_metrics() {
        true => {
            let telemetry = telemetry.clone();
            Router::new().route("/metrics", get(move || ready(telemetry.metrics())))
        }
        false => Router::new(),
    };
    Ok(Router::new()
        .route("/healthz", get(|| ready(json_response(r#"{"status":"ok"}"#))))
        .route("/readyz", get(readiness).with_state((stopping.clone(), ledger, quotas)))
        .merge(api)
        .merge(metrics)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(stopping.clone(), close_when_stopping))
        .layer(middleware::from_fn_with_state(accounts, access::account)))
}

/// `POST /v1/chat/completions`
async fn complete(
    State(chat): State<Chat>,
    Extension(account): Extension<Account>,
    request: Request,
) -> Result<ChatAnswer, ErrorResponse> {
    let control = cache_control(request.headers());
    let read = tokio::time::timeout(READ_TIMEOUT, ChatRequest::from_request(request, &()));
    let late = |_| {
        let (kind, message) = ("invalid_request_error", LATE_BODY);
        ErrorResponse::custom(StatusCode::REQUEST_TIMEOUT, kind, None, message)
    };
    let ChatRequest(request) = read.await.map_err(late)??;
    let (asked, result) = chat.ask(account, request, control).await;
    let answer = ChatAnswer::new(asked, result).with_keep_alive(Some(chat.keep_alive));
    Ok(answer.with_decisions(chat.shows_decisions))
}

/// `POST /v1/messages`
async fn message(
    State(chat): State<Chat>,
    Extension(account): Extension<Account>,
    request: Request,
) -> Result<MessagesAnswer, ErrorResponse> {
    let control = cache_control(request.headers());
    let read = tokio::time::timeout(READ_TIMEOUT, MessagesRequest::from_request(request, &()));
    let late = |_| ErrorResponse::custom_of_messages(StatusCode::REQUEST_TIMEOUT, LATE_BODY);
    let MessagesRequest(request) = read.await.map_err(late)??;
    let (asked, result) = chat.ask(account, request, control).await;
    let answer = MessagesAnswer::new(asked, result).with_keep_alive(Some(chat.keep_alive));
    Ok(answer.with_decisions(chat.shows_decisions))
}

const LATE_BODY: &str = "the request's body did not come in time";

impl Chat {
    async fn ask(
        &self,
        account: Account,
        mut request: LlmRequest,
        control: CacheControl,
    ) -> (Asked, Result<LlmResponse, llm_layers::Error>) {
        account.asked(&request);
        // It can only narrow what is done anyhow.
        request.context = request.context.with_cache_control(control);
        if self.shows_decisions {
            request.keep_decisions();
        }
        let asked = Asked::by(&request);
        let result = self.stack.clone().oneshot(request).await.map(|answer| {
            account.answered(&answer);
            answer.observe(account)
        });
        (asked, result)
    }
}

/// What may be asked for, as JSON: aliases, and each provider's models.
fn models(config: &Config) -> Bytes {
    let aliases = config.aliases.load();
    let entry =
        |id: &str, owner: &str| json!({ "id": id, "object": "model", "created": 0, "owned_by": owner });
    let models = config.providers.iter().flat_map(|(provider, settings)| {
        settings.models.iter().map(move |model| entry(&format!("{provider}/{model}"), provider))
    });
    let all: Vec<_> = aliases.names().into_iter().map(|name| entry(name, "gateway")).chain(models).collect();
    Bytes::from(json!({ "object": "list", "data": all }).to_string())
}

type Ready = (Stopping, Option<Ledger>, Option<Quotas>);

async fn readiness(State((stopping, ledger, quotas)): State<Ready>) -> Response {
    if stopping.has_begun() {
        return going().into_response();
    }
    if ledger.is_some_and(|ledger| !ledger.is_healthy()) {
        let (message, code) = ("usage cannot be recorded", Some("usage_store_unavailable"));
        return ErrorResponse::custom(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
            .into_response();
    }
    if quotas.is_some_and(|quotas| !quotas.is_healthy()) {
        let (message, code) = ("quotas cannot be counted", Some("quota_store_unavailable"));
        return ErrorResponse::custom(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
            .into_response();
    }
    json_response(r#"{"status":"ready"}"#)
}

async fn not_found() -> ErrorResponse {
    let message = "there is nothing at this path";
    ErrorResponse::custom(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
}

async fn method_not_allowed() -> ErrorResponse {
    let (message, code) = ("this path takes another method", Some("method_not_allowed"));
    ErrorResponse::custom(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", code, message)
}

fn going() -> ErrorResponse {
    let message = "the server is shutting down";
    ErrorResponse::custom(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
        .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

async fn refuse_when_stopping(State(stopping): State<Stopping>, request: Request, next: Next) -> Response {
    match stopping.has_begun() {
        false => next.run(request).await,
        true => going().into_response(),
    }
}

/// Whoever has more to ask finds another server by connecting anew.
async fn close_when_stopping(State(stopping): State<Stopping>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if stopping.has_begun() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn json_response(json: impl Into<Bytes>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.into()).into_response()
}
