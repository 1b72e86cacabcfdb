//! Vectors from an OpenAI-compatible server.

use crate::{
    BoxError,
    cache::{Embedder, Fetch, Semantic},
    config::{SemanticCache, SemanticMode, plan::SemanticPlan},
    provider::openai::{HyperClient, below, hyper_client},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tower::ServiceExt;

/// More than any vector takes.
const MAX_ANSWER: usize = 1 << 20;

struct Server {
    http: HyperClient,
    uri: http::Uri,
    headers: HeaderMap,
    model: Arc<str>,
}

pub(super) fn semantic(settings: &SemanticCache, plan: &SemanticPlan) -> Semantic {
    let mut headers =
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let bearer = plan.api_key.as_ref().map(|key| ("authorization", format!("Bearer {}", key.reveal())));
    let others = plan.headers.iter().map(|(name, value)| (&**name, value.reveal().to_owned()));
    for (name, value) in bearer.into_iter().chain(others) {
        // That they can be sent the plan has seen.
        if let (Ok(name), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            value.set_sensitive(true);
            headers.insert(name, value);
        }
    }
    let server = Server {
        http: hyper_client(),
        uri: below(&settings.base_url.0, "/embeddings").unwrap_or_default(),
        headers,
        model: settings.model.as_str().into(),
    };
    let mut semantic = Semantic::new(server);
    if settings.mode == SemanticMode::Answer {
        semantic = semantic.answering();
    }
    if settings.other_words {
        semantic = semantic.with_other_words();
    }
    if let Some(threshold) = settings.threshold {
        semantic = semantic.with_threshold(threshold as f32);
    }
    if let Some(timeout) = settings.timeout {
        semantic = semantic.with_deadline(timeout.0);
    }
    if let Some(calls) = settings.concurrency {
        semantic = semantic.with_concurrency(calls);
    }
    if let Some(bytes) = settings.max_text_bytes {
        semantic = semantic.with_max_text_bytes(bytes);
    }
    semantic
}

#[derive(Deserialize)]
struct Answer {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    embedding: Vec<f32>,
}

impl Embedder for Server {
    fn embed(&self, text: &str) -> Fetch<Vec<f32>> {
        let body = json!({ "model": &*self.model, "input": text, "encoding_format": "float" }).to_string();
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let http = self.http.clone();
        Fetch::pending(async move {
            let answer = http.oneshot(request).await?;
            if !answer.status().is_success() {
                return Err(BoxError::from(format!("the server of embeddings answers {}", answer.status())));
            }
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await?.to_bytes();
            let Answer { data } = serde_json::from_slice(&body)?;
            let first = data.into_iter().next().ok_or("the server of embeddings gave none")?;
            Ok(first.embedding)
        })
    }
}
