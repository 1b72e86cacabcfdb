//! The stack that a configuration describes, with the same layers.

use super::preset::{Leaf, run};
use crate::measure::Row;
use futures_util::FutureExt;
use llm_layers::{
    LlmRequest,
    config::Config,
    stack::{BoxService, Handle, StackBuilder},
    usage::MemorySink,
};
use std::hint::black_box;
use tokio::runtime::{Builder, Runtime};

const CONFIGURATION: &str = r#"
identity = "host"
aliases = { fast = "p/model", slow = "p/other" }
fallbacks = { "p/model" = ["p/other"] }
retry.retries = 0
cache.max_bytes = 67108864
usage.enabled = false
quota.store = "memory"

[providers.p]
kind = "own"
prices.model = { input = "3", output = "15" }
prices.other = { input = "3", output = "15" }

[departments.research]
models = ["p/*"]
day_requests = 1000000000
day_tokens = 1000000000000
month_tokens = 10000000000000
month_cost = "100000000"
"#;

/// The stack, what belongs to it, and where it records.
fn built() -> (BoxService, (Handle, Runtime), MemorySink) {
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let within = runtime.enter();
    let sink = MemorySink::new(1 << 20);
    let config = Config::parse(CONFIGURATION).expect("a configuration");
    let builder = StackBuilder::new(config).with_provider("p", Leaf::new()).with_usage_sink(sink.clone());
    let (stack, handle) = builder.build().now_or_never().expect("nothing to wait for").expect("a stack");
    drop(within);
    (stack, (handle, runtime), sink)
}

/// A call on a clone of its own, as a server makes it; and the clone alone.
pub fn rows() -> [Row<LlmRequest>; 2] {
    let (stack, lasting, sink) = built();
    let clones = stack.clone();
    [
        Row::new("as `stack` builds it, a clone for each miss", move |request| {
            run(&mut stack.clone(), request);
        })
        .resting(move || drop((sink.take(), &lasting))),
        Row::new("as `stack` builds it, a clone and its drop", move |_| drop(black_box(clones.clone()))),
    ]
}
