//! Who asks: a key becomes a [`Caller`].

use crate::config::{Caller, Config};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use blake3::Hash;
use llm_layers::http::axum::ErrorResponse;
use std::{collections::HashMap, fmt, sync::Arc};

/// The keys, as hashes. What is compared is hashes, so that the time it takes tells nothing about a key.
#[derive(Clone)]
pub(crate) struct Keys(Option<Arc<HashMap<Hash, Caller>>>);

impl Keys {
    pub(crate) fn new(config: &Config) -> Self {
        Self(config.keys.as_ref().map(|keys| Arc::new(keys.iter().cloned().collect())))
    }

    /// Who has sent these headers; `None` if that cannot be told, and must be.
    fn identify(&self, headers: &HeaderMap) -> Option<Caller> {
        // Without keys there is nothing to keep from anybody.
        let Some(keys) = &self.0 else {
            return Some(Caller { is_admin: true, ..Caller::default() });
        };
        keys.get(&blake3::hash(key(headers)?)).cloned()
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.0.as_ref().map(|keys| keys.len())).finish()
    }
}

/// As OpenAI's clients send it, or as Anthropic's do.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    bearer(headers).or_else(|| Some(headers.get("x-api-key")?.as_bytes().trim_ascii()))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, key) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Lets in who has a key, as who it is.
pub(crate) async fn authenticate(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    match keys.identify(request.headers()) {
        Some(caller) => {
            request.extensions_mut().insert(caller.context.clone());
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        None => {
            let message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`";
            let (kind, code) = ("invalid_request_error", Some("invalid_api_key"));
            let refused = match request.uri().path() {
                "/v1/messages" => ErrorResponse::custom_of_messages(StatusCode::UNAUTHORIZED, message),
                _ => ErrorResponse::custom(StatusCode::UNAUTHORIZED, kind, code, message),
            };
            refused.with_header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")).into_response()
        }
    }
}
