//! What limits cost on the request's path, over the memory store: the store by itself, and the layer above the bare leaf.
//!
//! `cargo bench --bench quota`. Every row is measured in turn with the one that it is compared with, round by round; the table
//! shows the median difference.

use futures_util::FutureExt;
use llm_layers::{
    CallId, ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
    access::AccessLayer,
    clock::{Clock, SystemClock},
    policies::{DepartmentPolicy, PolicyTable},
    price::{NanoUsd, Price, PriceBook, Prices, Rates},
    quota::{
        Amount, Calendar, Decision, Department, Departments, Limits, MemoryStore, QuotaLayer, QuotaStore,
        Reservation, Settlement,
    },
};
use std::{future::Ready, hint::black_box, time::Duration};
use tokio::time::Instant;
use tower::{Layer, Service};

const ROUNDS: usize = 1_001;
const CALLS: usize = 100;

/// Answers at once with what was made before.
#[derive(Clone)]
struct Leaf(Completion);

impl Service<LlmRequest> for Leaf {
    type Response = LlmResponse;
    type Error = Error;
    type Future = Ready<Result<LlmResponse, Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        request.progress.mark_dispatched();
        std::future::ready(Ok(LlmResponse::new(request.model, self.0.clone())))
    }
}

struct Row {
    name: String,
    nanos: Vec<f64>,
    allocations: u64,
    bytes: u64,
    call: Box<dyn FnMut()>,
}

fn row(name: impl Into<String>, call: impl FnMut() + 'static) -> Row {
    Row { name: name.into(), nanos: Vec::new(), allocations: 0, bytes: 0, call: Box::new(call) }
}

fn service<S>(name: impl Into<String>, mut service: S, request: LlmRequest) -> Row
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error> + 'static,
{
    row(name, move || {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(service.poll_ready(&mut cx).is_ready(), "always ready");
        let answer =
            service.call(another(&request)).now_or_never().expect("answers at once").expect("an answer");
        drop(black_box(answer));
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn request(departments: usize, prompt: usize) -> LlmRequest {
    let body = ChatBody::builder().user("x".repeat(prompt)).max_output_tokens(500).build().expect("valid");
    let names = (0..departments).map(|n| format!("department {n}"));
    LlmRequest::new("p/model", body).with_context(RequestContext::new().with_departments(names))
}

/// The same, as it comes in again: with a progress of its own, which clones would share.
fn another(request: &LlmRequest) -> LlmRequest {
    LlmRequest::new(request.model.clone(), request.body.clone()).with_context(request.context.clone())
}

fn limits() -> Limits {
    let (tokens, money) = (i64::MAX as u64 / 2, NanoUsd::new(i64::MAX / 2));
    Limits::new()
        .with_day_requests(tokens)
        .with_day_tokens(tokens)
        .with_month_tokens(tokens)
        .with_month_cost(money)
}

fn policies() -> PolicyTable {
    PolicyTable::new(DepartmentPolicy::new(limits()).with_models(["p/*"]))
}

fn prices() -> Prices {
    let price = Price::new(Rates::per_million("3", "15").expect("valid"));
    Prices::new(PriceBook::of("sheet", [("p/model", price)]).expect("valid"))
}

/// A pair of reserve and settle, in a store that already holds so many leases.
fn pair(departments: usize, leases: usize) -> Row {
    let store = MemoryStore::new();
    let names = (0..departments).map(|n| Department::new(format!("department {n}"), limits()));
    let departments: Departments = names.collect();
    let days = Calendar::utc().days_around(SystemClock.now());
    let amount = Amount::new(1, 500, NanoUsd::new(500));
    let reserve = {
        let (store, departments) = (store.clone(), departments.clone());
        move || {
            let id = CallId::mint(SystemClock.now());
            let lease = Duration::from_secs(3600);
            let reservation = Reservation::new(id, departments.clone(), amount, lease, days.clone());
            let decision = store.reserve(&reservation).now_or_never().expect("at once").expect("answered");
            assert!(matches!(decision, Decision::Granted(_)));
            id
        }
    };
    for _ in 0..leases {
        reserve();
    }
    let name = format!("store, {} departments, {leases} leases", departments.len());
    row(name, move || {
        let settlement = Settlement::new(reserve(), departments.clone(), amount);
        store.settle(&settlement).now_or_never().expect("at once").expect("answered");
    })
}

fn main() {
    let leaf = || Leaf(Completion::text("An answer of a few words.", TokenUsage::new(20, 7)));
    let quota = || QuotaLayer::new(MemoryStore::new(), policies(), prices());
    let mut rows = vec![
        row("nothing", || ()),
        pair(1, 0),
        pair(1, 10_000),
        pair(2, 1000),
        pair(64, 1000),
        service("bare leaf", leaf(), request(1, 100)),
        service("access", AccessLayer::new(policies()).layer(leaf()), request(1, 100)),
        service("quota, nobody's", quota().layer(leaf()), request(0, 100)),
        service("quota", quota().layer(leaf()), request(1, 100)),
        service("quota, 100 KB of prompt", quota().layer(leaf()), request(1, 100_000)),
        service("quota, 2 departments", quota().layer(leaf()), request(2, 100)),
    ];
    let leaf_at = rows.iter().position(|row| row.name == "bare leaf").expect("it is there");
    for row in &mut rows {
        (0..1000).for_each(|_| (row.call)());
        let info = allocation_counter::measure(|| (0..CALLS).for_each(|_| (row.call)()));
        (row.allocations, row.bytes) = (info.count_total, info.bytes_total);
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            let start = Instant::now();
            (0..CALLS).for_each(|_| (row.call)());
            row.nanos.push(start.elapsed().as_nanos() as f64 / CALLS as f64);
        }
    }
    println!("{:<40}{:>12}{:>14}{:>14}", "", "ns", "allocations", "bytes");
    for (at, row) in rows.iter().enumerate() {
        let base = if at > leaf_at { &rows[leaf_at] } else { &rows[0] };
        let nanos = median(row.nanos.iter().zip(&base.nanos).map(|(row, base)| row - base).collect());
        let less = |own: u64, base: u64| (own as f64 - base as f64) / CALLS as f64;
        println!(
            "{:<40}{nanos:>12.0}{:>14.2}{:>14.0}",
            if at > leaf_at { format!("+ {}", row.name) } else { row.name.clone() },
            less(row.allocations, base.allocations),
            less(row.bytes, base.bytes)
        );
    }
}
