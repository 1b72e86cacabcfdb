//! What is served where.

use crate::{access::Account, telemetry::Telemetry};
use axum::{
    Extension, Router,
    extract::{
        FromRequest, Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use llm_layers::{
    LlmRequest, LlmResponse, RequestContext,
    config::Config,
    http::{
        Asked, anthropic,
        axum::{
            BodyBudget, ChatAnswer, ChatRequest, CountTokensRequest, ErrorResponse, HeldBody, MessagesAnswer,
            MessagesRequest, TokenCount,
            admin::{self, UsageQuestion, json_response},
            identify, too_many_in_flight,
        },
    },
    stack::{BoxService, Caller, Handle, KeyPermit},
};
use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";
const MODELS: &str = "/v1/models";
const MODEL: &str = "/v1/models/{*model}";
const USAGE: &str = "/v1/usage";
const QUOTA: &str = "/v1/quota/{department}";
const INVALIDATE: &str = "/v1/cache/invalidate";

/// The template of the API's route that a path leads to.
pub(crate) fn template(path: &str) -> Option<&'static str> {
    [CHAT, MESSAGES, COUNT_TOKENS, MODELS, MODEL, USAGE, QUOTA, INVALIDATE].into_iter().find(|template| {
        let Some((fixed, name)) = template.split_once('{') else { return path == *template };
        let said = path.strip_prefix(fixed).unwrap_or_default();
        !said.is_empty() && (name.starts_with('*') || !said.contains('/'))
    })
}

/// Whether the process is about to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopping(Arc<AtomicBool>);

impl Stopping {
    pub(crate) fn begin(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

struct Chat {
    stack: BoxService,
    handle: Handle,
    bodies: BodyBudget,
}

pub(crate) fn router(
    stack: BoxService,
    handle: &Handle,
    stopping: &Stopping,
    telemetry: &Telemetry,
) -> Router {
    // Each layer of routes clones what is below it, for each request.
    let bodies = BodyBudget::new(handle.config().server.max_buffered_bytes);
    let chat = Arc::new(Chat { stack, handle: handle.clone(), bodies });
    let api = Router::new()
        .route(CHAT, post(complete).with_state(Arc::clone(&chat)))
        .route(MESSAGES, post(message).with_state(Arc::clone(&chat)))
        .route(COUNT_TOKENS, post(count_tokens).with_state(chat))
        .route(MODELS, get(models))
        .route(MODEL, get(model))
        .route(USAGE, get(usage))
        .route(QUOTA, get(quota))
        .route(INVALIDATE, post(invalidate))
        .with_state(handle.clone())
        .route_layer(middleware::from_fn_with_state((stopping.clone(), handle.clone()), admit));
    let metrics = match telemetry.has_metrics() {
        true => {
            let telemetry = telemetry.clone();
            Router::new().route("/metrics", get(move || ready(telemetry.metrics())))
        }
        false => Router::new(),
    };
    Router::new()
        .route("/healthz", get(|| ready(json_response(r#"{"status":"ok"}"#))))
        .route("/readyz", get(readiness).with_state((stopping.clone(), handle.clone())))
        .merge(api)
        .merge(metrics)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(handle.clone())
}

/// Lets in who has a key, as who it is, unless the server is going.
async fn admit(
    State((stopping, handle)): State<(Stopping, Handle)>,
    mut request: Request,
    next: Next,
) -> Response {
    let refused = match stopping.has_begun() {
        true => Err(going(request.uri(), request.headers())),
        false => identify(&handle, &mut request),
    };
    if let Some(account) = request.extensions().get::<Account>() {
        account.asked_by(request.extensions());
    }
    match refused {
        Ok(()) => next.run(request).await,
        Err(refused) => unread(refused, request, &handle.config()).await.into_response(),
    }
}

/// Refuses a request of whose body nothing was read.
pub(crate) async fn unread(refused: ErrorResponse, request: Request, config: &Config) -> ErrorResponse {
    refused.discarding(request, config.server.max_body_bytes.saturating_mul(2)).await
}

/// `POST /v1/chat/completions`
async fn complete(
    State(chat): State<Arc<Chat>>,
    Extension(account): Extension<Account>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<ChatAnswer, ErrorResponse> {
    let config = chat.handle.config();
    let (ChatRequest(request), place) = chat.read(&caller, request, &config, false).await?;
    let (asked, result) = chat.ask(account, place, request, &config).await;
    let answer = ChatAnswer::new(asked, result).with_keep_alive(Some(config.server.keep_alive.0));
    Ok(answer.with_decisions(config.telemetry.decision_headers))
}

/// `POST /v1/messages`
async fn message(
    State(chat): State<Arc<Chat>>,
    Extension(account): Extension<Account>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<MessagesAnswer, ErrorResponse> {
    let config = chat.handle.config();
    let (MessagesRequest(request), place) = chat.read(&caller, request, &config, true).await?;
    let (asked, result) = chat.ask(account, place, request, &config).await;
    let answer = MessagesAnswer::new(asked, result).with_keep_alive(Some(config.server.keep_alive.0));
    Ok(answer.with_decisions(config.telemetry.decision_headers))
}

/// `POST /v1/messages/count_tokens`
async fn count_tokens(
    State(chat): State<Arc<Chat>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<TokenCount, ErrorResponse> {
    let config = chat.handle.config();
    let (CountTokensRequest(request), place) = chat.read(&caller, request, &config, true).await?;
    Ok(TokenCount::of(request, place).await)
}

fn late() -> ErrorResponse {
    invalid(StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")
}

fn invalid(status: StatusCode, message: &str) -> ErrorResponse {
    ErrorResponse::custom(status, "invalid_request_error", None, message)
}

pub(crate) fn closing(refused: ErrorResponse) -> ErrorResponse {
    refused.with_header(header::CONNECTION, HeaderValue::from_static("close"))
}

/// A call's place among those of its key, until its answer has ended, and the room that its body takes up, until it begins.
type Place = (KeyPermit, HeldBody);

impl Chat {
    async fn read<T: FromRequest<(), Rejection = ErrorResponse>>(
        &self,
        caller: &Caller,
        mut request: Request,
        config: &Config,
        is_messages: bool,
    ) -> Result<(T, Place), ErrorResponse> {
        let Some(permit) = caller.admit() else {
            return Err(unread(too_many_in_flight(is_messages), request, config).await);
        };
        let held = match self.bodies.hold(&mut request, config.server.max_body_bytes) {
            Ok(held) => held,
            Err(error) => {
                let full = ErrorResponse::from(error).for_messages(is_messages);
                return Err(unread(full, request, config).await);
            }
        };
        match tokio::time::timeout(config.server.body_timeout.0, T::from_request(request, &())).await {
            Ok(read) => Ok((read?, (permit, held))),
            Err(_) => Err(closing(late().for_messages(is_messages))),
        }
    }

    async fn ask(
        &self,
        account: Account,
        (permit, held): Place,
        mut request: LlmRequest,
        config: &Config,
    ) -> (Asked, Result<LlmResponse, llm_layers::Error>) {
        account.asked(&request);
        if config.telemetry.decision_headers {
            request.keep_decisions();
        }
        let asked = Asked::by(&request);
        let result = self.stack.clone().oneshot(request).await.map(|answer| {
            account.answered(&answer);
            answer.observe(account).observe(permit)
        });
        drop(held);
        (asked, result)
    }
}

/// `GET /v1/models`
async fn models(State(handle): State<Handle>, Extension(context): Extension<RequestContext>) -> Response {
    admin::models(&handle, &context)
}

/// `GET /v1/models/openai/gpt-4o-mini`
async fn model(
    State(handle): State<Handle>,
    Extension(context): Extension<RequestContext>,
    path: Uri,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ErrorResponse> {
    match name {
        Ok(Path(name)) => admin::model(&handle, &context, &name, anthropic::is_spoken(path.path(), &headers)),
        Err(_) => Err(nothing_at(&path, &headers)),
    }
}

/// `GET /v1/usage?department=r-and-d&by=model,day&from=2026-11-01`
async fn usage(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    question: Result<Query<UsageQuestion>, QueryRejection>,
) -> Result<Response, ErrorResponse> {
    admin::usage(&handle, &caller, question.ok().map(|Query(question)| question).as_ref()).await
}

/// `GET /v1/quota/{department}`
async fn quota(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    department: Result<Path<String>, PathRejection>,
) -> Result<Response, ErrorResponse> {
    let Path(department) =
        department.map_err(|_| invalid(StatusCode::BAD_REQUEST, "the department's name is not valid"))?;
    admin::quota(&handle, &caller, &department).await
}

/// `POST /v1/cache/invalidate`
async fn invalidate(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ErrorResponse> {
    let config = handle.config();
    let (parts, mut body) = request.into_parts();
    let all = Limited::new(&mut body, MAX_FORGET).collect();
    let body = match tokio::time::timeout(config.server.body_timeout.0, all).await {
        Ok(Ok(all)) => all.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let message = format!("the body is larger than {MAX_FORGET} bytes");
            let refused = invalid(StatusCode::PAYLOAD_TOO_LARGE, &message);
            return Err(unread(refused, Request::from_parts(parts, body), &config).await);
        }
        Ok(Err(_)) => return Err(closing(invalid(StatusCode::BAD_REQUEST, "the body cannot be read"))),
        Err(_) => return Err(closing(late())),
    };
    admin::invalidate(&handle, &caller, &parts.headers, &body).await
}

/// How large a word on what to forget may be.
const MAX_FORGET: usize = 64 << 10;

/// `GET /readyz`
async fn readiness(
    State((stopping, handle)): State<(Stopping, Handle)>,
    path: Uri,
    headers: HeaderMap,
) -> Result<Response, ErrorResponse> {
    match stopping.has_begun() {
        true => Err(going(&path, &headers)),
        false => admin::readiness(&handle),
    }
}

async fn not_found(State(handle): State<Handle>, request: Request) -> ErrorResponse {
    unread(nothing_at(request.uri(), request.headers()), request, &handle.config()).await
}

async fn method_not_allowed(State(handle): State<Handle>, request: Request) -> ErrorResponse {
    let (code, message) = ("method_not_allowed", "this path takes another method");
    let refused = wrong(request.uri(), request.headers(), StatusCode::METHOD_NOT_ALLOWED, code, message);
    unread(refused, request, &handle.config()).await
}

fn nothing_at(path: &Uri, headers: &HeaderMap) -> ErrorResponse {
    wrong(path, headers, StatusCode::NOT_FOUND, "unknown_url", "there is nothing at this path")
}

/// In the shape that whoever asks there reads.
pub(crate) fn wrong(
    path: &Uri,
    headers: &HeaderMap,
    status: StatusCode,
    code: &'static str,
    message: &str,
) -> ErrorResponse {
    let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
    ErrorResponse::custom(status, kind, Some(code), message)
        .for_messages(anthropic::is_spoken(path.path(), headers))
}

fn going(path: &Uri, headers: &HeaderMap) -> ErrorResponse {
    wrong(path, headers, StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "the server is shutting down")
        .with_header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}
