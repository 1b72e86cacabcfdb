//! What a program gives needs nothing compiled in for what it replaces. Says the most with no feature but `config`.

use llm_layers::{
    ChatBody, LlmRequest, RequestContext,
    cache::{CacheKey, CacheStore, Entry, Fetch},
    config::Config,
    provider::Echo,
    quota::MemoryStore,
    stack::StackBuilder,
    usage::MemorySink,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tower::ServiceExt;

/// A cache of the program's own.
#[derive(Default)]
struct Map(Mutex<HashMap<CacheKey, Arc<Entry>>>);

impl CacheStore for Map {
    fn get(&self, key: &CacheKey) -> Fetch<Option<Arc<Entry>>> {
        Fetch::Ready(self.0.lock().unwrap().get(key).cloned())
    }

    fn put(&self, entry: Arc<Entry>) -> Fetch<()> {
        self.0.lock().unwrap().insert(*entry.key(), entry);
        Fetch::Ready(())
    }
}

const TEXT: &str = r#"
    identity = "host"
    usage.path = "not/there/usage.db"
    quota.path = "not/there/quota.db"
    cache = {}
    [departments.research]
    day_requests = 2
    [providers.cloud]
    base_url = "http://127.0.0.1:1/v1"
    [providers.claude]
    kind = "anthropic"
"#;

#[tokio::test]
async fn what_the_program_replaces_needs_nothing_that_is_compiled_in() {
    let config = || Config::parse(TEXT).unwrap_or_else(|error| panic!("{error}"));
    let sink = MemorySink::new(64);
    let builder = StackBuilder::new(config())
        .with_usage_sink(sink.clone())
        .with_quota_store(MemoryStore::new())
        .with_cache_store(Map::default())
        .with_provider("cloud", Echo::new())
        .with_provider("claude", Echo::new());
    let (service, handle) = builder.build().await.unwrap_or_else(|error| panic!("{error}"));
    let ask = |text: &str| {
        let context = RequestContext::new().with_user_id("ada").with_departments(["research"]);
        let body = ChatBody::builder().user(text).build().unwrap();
        service.clone().oneshot(LlmRequest::new("cloud/a", body).with_context(context))
    };
    assert!(!ask("one").await.unwrap().cache.is_hit());
    assert!(ask("one").await.unwrap().cache.is_hit());
    ask("two").await.unwrap();
    assert_eq!(ask("three").await.unwrap_err().status().as_u16(), 429);
    assert_eq!(sink.take().len(), 3);
    handle.reload(config()).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_is_neither_given_nor_compiled_in_is_told_when_the_stack_is_built() {
    let builder = StackBuilder::new(Config::parse(TEXT).unwrap());
    let needed = [
        (cfg!(feature = "rusqlite"), "usage: the record of usage in SQLite"),
        (cfg!(feature = "rusqlite"), "quota: counting in SQLite"),
        (cfg!(feature = "moka"), "cache: the cache in memory"),
        (cfg!(feature = "hyper-client"), "providers.cloud: the client for OpenAI-compatible servers"),
        (cfg!(feature = "genai"), "providers.claude.kind: this dialect"),
    ];
    let missing = needed.iter().filter(|(is_there, _)| !is_there);
    let missing: Vec<_> = missing.map(|(_, what)| format!("{what} is not compiled in: ")).collect();
    let told = builder.describe().err().map(|error| error.to_string()).unwrap_or_default();
    assert_eq!(told.lines().count(), missing.len(), "{told}");
    assert!(missing.iter().all(|what| told.contains(what)), "{told}");
}
