//! The documented order as one call: what it is made of, what it refuses, and how it takes another configuration.

mod awaited;
mod ended;
mod given;
mod keys;
mod made;
#[path = "../support/redis.rs"]
mod redis_server;
mod refused;
mod reload;
mod said;
mod standing;

use self::redis_server::RedisServer;
use futures_util::FutureExt as _;
use llm_layers::{
    ChatBody, ChunkStream, Error, ErrorKind, KbScope, LlmRequest, LlmResponse, RequestContext, ResponseBody,
    StreamChunk, TimeoutPhase, TokenUsage,
    cache::{EpochKind, Fetch, KbCaching, MokaStore},
    config::{Config, ConfigError},
    drain::{DrainLayer, DrainOptions},
    price::NanoUsd,
    provider::Echo,
    quota::MemoryStore,
    stack::{BoxService, Caller, Handle, Part, Place, Readiness, StackBuilder, StackError, Watch, stack},
    testing::{Reply, Scripted, Step},
    usage::{MemorySink, Outcome, UsageSink},
};
use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use tower::{Service, ServiceExt, layer::layer_fn, service_fn};

const ECHO: &str = "usage.enabled = false\nidentity = \"host\"\nproviders.echo.kind = \"echo\"\n";

fn config(text: &str) -> Config {
    Config::parse(&format!("{ECHO}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

fn request(model: &str) -> LlmRequest {
    LlmRequest::new(model, ChatBody::builder().user("Hello").build().unwrap())
}

fn of(request: LlmRequest, user: &str, departments: &[&str]) -> LlmRequest {
    let context = RequestContext::new().with_user_id(user).with_departments(departments.iter().copied());
    request.with_context(context)
}

async fn model(service: &BoxService, name: &str) -> String {
    service.clone().oneshot(request(name)).await.unwrap().model.as_str().to_owned()
}

fn refusal<T>(result: Result<T, StackError>) -> Vec<String> {
    match result {
        Err(StackError::Config(error)) => said(&error),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it was built"),
    }
}

/// With its line.
fn told<T>(result: Result<T, StackError>) -> String {
    result.map(drop).unwrap_err().to_string()
}

fn said(error: &ConfigError) -> Vec<String> {
    error.problems().iter().map(|problem| format!("{}: {}", problem.entry, problem.what)).collect()
}

fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("llm-layers-stack-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}
