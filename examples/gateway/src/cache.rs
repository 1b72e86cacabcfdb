//! Answers that are given again, and how they are made invalid.

use crate::config;
use axum::{
    Extension,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use llm_layers::{
    cache::{CacheLayer, CacheWorker, EpochKind, MokaStore, RedisBytes, SealedStore, TieredStore},
    http::axum::ErrorResponse,
};
use serde::Deserialize;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How long entries may take to be written when the server ends.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The cache of all calls.
#[derive(Clone)]
pub(crate) struct Cache {
    layer: CacheLayer,
    worker: Arc<Mutex<Option<CacheWorker>>>,
}

impl Cache {
    pub(crate) fn start(config: &config::Cache) -> Self {
        let near = MokaStore::new(config.max_bytes);
        let (layer, worker) = match &config.shared {
            None => CacheLayer::start(near, config.policy.clone()),
            Some(redis) => {
                let bytes = RedisBytes::new(redis, "llm-cache");
                let policy = config.policy.clone().with_epochs(Arc::new(bytes.clone()));
                let mut far = SealedStore::new(bytes, config.secret.clone());
                if config.is_encrypted {
                    far = far.encrypted();
                }
                CacheLayer::start(TieredStore::new(near, far), policy)
            }
        };
        Self { layer, worker: Arc::new(Mutex::new(Some(worker))) }
    }

    pub(crate) fn layer(&self) -> CacheLayer {
        self.layer.clone()
    }

    /// Lets shared calls end, and writes what is left.
    pub(crate) async fn close(&self) {
        let Some(worker) = self.worker.lock().await.take() else { return };
        let report = worker.shutdown(WRITE_TIMEOUT).await;
        if report.flights > 0 {
            tracing::warn!(calls = report.flights, "shared calls were cut off");
        }
    }
}

/// What is to be forgotten: `{"user": "ada"}`, `{"tenant": …}`, `{"model": …}` or `{"knowledge_base": …}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Forget {
    Tenant(String),
    User(String),
    Model(String),
    KnowledgeBase(String),
}

/// `POST /v1/cache/invalidate`
pub(crate) async fn invalidate(
    State(cache): State<Option<Cache>>,
    Extension(caller): Extension<config::Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ErrorResponse> {
    let refused =
        |status, kind, code, message: &str| ErrorResponse::custom(status, kind, Some(code), message);
    if !caller.is_admin {
        let message = "this key may not make cached answers invalid";
        return Err(refused(StatusCode::FORBIDDEN, "permission_error", "not_admin", message));
    }
    let Some(cache) = cache else {
        let message = "nothing is cached here";
        return Err(refused(StatusCode::NOT_FOUND, "invalid_request_error", "cache_disabled", message));
    };
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let forget = is_json.then(|| serde_json::from_slice(&body)).and_then(Result::ok);
    let (kind, id) = match forget {
        Some(Forget::Tenant(id)) => (EpochKind::Tenant, id),
        Some(Forget::User(id)) => (EpochKind::User, id),
        Some(Forget::Model(id)) => (EpochKind::Model, id),
        Some(Forget::KnowledgeBase(id)) => (EpochKind::KnowledgeBase, id),
        None => {
            let message = "the body must be JSON with one of tenant, user, model, knowledge_base, and a text";
            return Err(ErrorResponse::custom(
                StatusCode::BAD_REQUEST,
                "invalid_request_error",
                None,
                message,
            ));
        }
    };
    cache.layer.invalidate(kind, &id).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json!({ "invalidated": true }).to_string())
        .into_response())
}
