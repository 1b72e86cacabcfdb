//! How the cost of a miss grows with everything that there may be much of.

use crate::{
    measure::{Found, Row, table},
    preset::{
        self, Leaf, MINUTE, Parts, Stack, cache_policy, caller, json, policies, preset, prices, providers,
        run, timeouts,
    },
};
use llm_layers::{
    ChatBody, Error, ErrorKind, LlmRequest, LlmResponse, ServiceBuilderExt as _,
    access::AccessLayer,
    alias::AliasTable,
    cache::{CacheLayer, MokaStore},
    fallback::{Chains, FallbackLayer},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Prices, Rates},
    providers::Providers,
    quota::{Limits, MemoryStore, QuotaLayer},
    telemetry::{TelemetryLayer, TracingObserver},
    usage::{MemorySink, UsageLayer},
};
use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};
use tower::{Service, ServiceBuilder};

pub fn growth() {
    prompt();
    departments();
    fallback();
    models();
    users();
    department_count();
}

/// One call after the other by requests that `make` makes of a number.
fn row(
    name: String,
    parts: Parts<MemorySink>,
    make: impl FnMut(usize) -> LlmRequest + 'static,
) -> Row<usize> {
    let taken = parts.usage.clone();
    stack_row(name, preset(Leaf::new(), parts), taken, make)
}

/// The making of the request is in the time of all rows alike, and in that of the first alone.
fn stack_row(
    name: String,
    mut stack: Stack,
    taken: MemorySink,
    mut make: impl FnMut(usize) -> LlmRequest + 'static,
) -> Row<usize> {
    Row::new(name, move |salt| run(&mut stack, make(salt))).resting(move || drop(taken.take()))
}

fn numbers() -> impl FnMut(usize) -> usize {
    let mut salt = 0;
    move |_| {
        salt += 1;
        salt
    }
}

fn asked(title: &str, rows: Vec<Row<usize>>) -> Vec<Found> {
    let mut all = vec![Row::new("the request alone", |salt| drop(preset::request(200, salt, false)))];
    all.extend(rows);
    table(&format!("{title}; a miss of 200 B with the making of its request"), 64, 1, numbers(), all)
}

fn prompt() {
    println!("\nthe prompt: see the tables of 200 B and 100 KB, and");
    for bytes in [200, 1_000, 10_000, 100_000, 1_000_000] {
        let rows = vec![
            Row::new("bare leaf", {
                let mut leaf = Leaf::new();
                move |request| run(&mut leaf, request)
            }),
            Row::new("the hash alone", {
                let text = vec![7; bytes];
                move |_: LlmRequest| {
                    std::hint::black_box(blake3::keyed_hash(&[7; 32], &text));
                }
            }),
            {
                let parts = Parts::in_memory(false);
                let taken = parts.usage.clone();
                let mut stack = preset(Leaf::new(), parts);
                Row::new("full stack, miss", move |request| run(&mut stack, request))
                    .resting(move || drop(taken.take()))
            },
        ];
        let calls = (200_000 / bytes).clamp(2, 64);
        table(&format!("prompt of {bytes} B"), calls, 1, crate::fresh(bytes, false), rows);
    }
}

fn departments() {
    let rows = [0, 1, 2, 4, 8, 16, 64].map(|count| {
        row(format!("{count} departments"), Parts::in_memory(false), move |salt| {
            let names = (0..count).map(|n| format!("department {n}"));
            let mut request = preset::request(200, salt, false);
            request.context = request.context.with_departments(names);
            request
        })
    });
    asked("departments of a request", rows.into());
}

/// Fails for all models but one.
#[derive(Clone)]
struct Failing(Leaf);

impl Service<LlmRequest> for Failing {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        if &*request.model == "good" {
            return self.0.call(request);
        }
        request.progress.mark_dispatched();
        ready(Err(Error::new(ErrorKind::EmptyResponse { model: request.model })))
    }
}

fn fallback() {
    let rows = [0, 1, 2, 4, 7].map(|depth: usize| {
        let models = (1..depth).map(|n| format!("p/bad-{n}")).chain(["p/good".to_owned()]);
        let chain = match depth {
            0 => Chains::builder().build().expect("valid"),
            _ => Chains::builder().chain("p/bad-0", models).build().expect("valid"),
        };
        let first = if depth == 0 { "p/good" } else { "p/bad-0" };
        let aliases = AliasTable::builder().alias("fast", first).build().expect("valid");
        let prices = || {
            let price = || Price::new(Rates::per_million("3", "15").expect("valid"));
            let names = (0..8).map(|n| format!("p/bad-{n}")).chain(["p/good".to_owned()]);
            Prices::new(PriceBook::of("sheet", names.map(|name| (name, price()))).expect("valid"))
        };
        let providers = Providers::builder()
            .each(|endpoint| {
                let telemetry = TelemetryLayer::at(TracingObserver::new(), endpoint);
                ServiceBuilder::new().layer(telemetry).layer(timeouts()).into_inner()
            })
            .provider("p", Failing(Leaf::new()))
            .build()
            .expect("valid");
        let usage = MemorySink::new(1 << 20);
        let stack = ServiceBuilder::new()
            .telemetry(TelemetryLayer::gateway(TracingObserver::new()))
            .answer_concurrency_limit(4096)
            .alias(aliases)
            .layer(FallbackLayer::new(chain).with_providers(providers.names()).with_deadline(MINUTE))
            .layer(AccessLayer::new(policies()))
            .layer(UsageLayer::hits(usage.clone(), prices()))
            .layer(CacheLayer::new(MokaStore::new(64 << 20), cache_policy(false)))
            .quota(QuotaLayer::new(MemoryStore::new(), policies(), prices()))
            .usage(usage.clone(), prices())
            .service(providers);
        stack_row(format!("{depth} attempts fail first"), Stack::new(stack), usage, |salt| {
            preset::request(200, salt, false)
        })
    });
    asked("depth of a fallback", rows.into());
}

fn models() {
    let rows = [1, 100, 10_000, 100_000].map(|count: usize| {
        let names = |prefix: &'static str| (0..count).map(move |n| format!("{prefix}{n}"));
        let mut aliases = AliasTable::builder();
        for (name, model) in names("alias-").zip(names("p/model-")) {
            aliases = aliases.alias(name, model);
        }
        let price = || Price::new(Rates::per_million("3", "15").expect("valid"));
        let book =
            || Prices::new(PriceBook::of("sheet", names("p/model-").map(|n| (n, price()))).expect("valid"));
        let allowed = || {
            let (many, money) = (1 << 60, NanoUsd::new(1 << 60));
            let limits = Limits::new().with_day_tokens(many).with_month_cost(money);
            PolicyTable::new(DepartmentPolicy::new(limits).with_models(names("p/model-")))
        };
        let usage = MemorySink::new(1 << 20);
        let providers = providers(Leaf::new());
        let stack = ServiceBuilder::new()
            .telemetry(TelemetryLayer::gateway(TracingObserver::new()))
            .answer_concurrency_limit(4096)
            .alias(aliases.build().expect("valid"))
            .layer(
                FallbackLayer::new(preset::chains()).with_providers(providers.names()).with_deadline(MINUTE),
            )
            .layer(AccessLayer::new(allowed()))
            .layer(UsageLayer::hits(usage.clone(), book()))
            .layer(CacheLayer::new(MokaStore::new(64 << 20), cache_policy(false)))
            .quota(QuotaLayer::new(MemoryStore::new(), allowed(), book()))
            .usage(usage.clone(), book())
            .service(providers);
        stack_row(format!("{count} models, aliases and prices"), Stack::new(stack), usage, move |salt| {
            let mut request = preset::request(200, salt, false);
            request.model = format!("alias-{}", salt * 7919 % count).into();
            request
        })
    });
    asked("models that there are", rows.into());
}

/// Users are in the keys of the cache and nowhere else; entries are small, and all of them are there.
fn users() {
    let rows = [1, 1_000, 100_000, 1_000_000].map(|count: usize| {
        let parts = Parts {
            cache: CacheLayer::new(MokaStore::new(2 << 30), cache_policy(false)),
            ..Parts::in_memory(false)
        };
        let taken = parts.usage.clone();
        let mut stack = preset(Leaf::new(), parts);
        let ask = |user: usize| {
            let body = ChatBody::parse(json(200, 0, false)).expect("valid");
            LlmRequest::new("fast", body).with_context(caller().with_user_id(format!("user {user}")))
        };
        for user in 0..count {
            run(&mut stack, ask(user));
            if user % 1000 == 0 {
                drop(taken.take());
            }
        }
        stack_row(format!("hits, {count} users with an entry each"), stack, taken, move |salt| {
            ask(salt.wrapping_mul(7919) % count)
        })
    });
    asked("users in the cache", rows.into());
}

fn department_count() {
    let rows = [1, 1_000, 100_000, 1_000_000].map(|count: usize| {
        let (many, money) = (1 << 60, NanoUsd::new(1 << 60));
        let limits = Limits::new().with_day_tokens(many).with_month_cost(money);
        let mut table = PolicyTable::new(DepartmentPolicy::new(limits));
        for n in 0..count {
            table = table.with(format!("department {n}"), DepartmentPolicy::new(limits));
        }
        let store = MemoryStore::new();
        let layer = QuotaLayer::new(store, table, prices());
        let parts = Parts { quota: layer.clone(), ..Parts::in_memory(false) };
        let taken = parts.usage.clone();
        let mut stack = preset(Leaf::new(), parts);
        let ask = |salt: usize, department: usize| {
            let context = caller().with_departments([format!("department {department}")]);
            preset::request(200, salt, false).with_context(context)
        };
        // Each has been there once.
        let mut alone = ServiceBuilder::new().quota(layer).service(Leaf::new());
        (0..count).for_each(|n| {
            let mut request = ask(n, n);
            request.model = "p/model".into();
            run(&mut alone, request);
        });
        Row::new(format!("{count} departments with counters"), move |salt: usize| {
            run(&mut stack, ask(salt, salt.wrapping_mul(7919) % count));
        })
        .resting(move || drop(taken.take()))
    });
    asked("departments in memory", rows.into());
}
