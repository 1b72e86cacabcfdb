//! How often a call through the whole stack asks the allocator for memory: bounds that only ever go down.

#[allow(dead_code, unreachable_pub, reason = "shared with the bench of the stack")]
#[path = "../benches/stack/preset.rs"]
mod preset;

use allocation_counter::AllocationInfo;
use futures_util::FutureExt;
use llm_layers::{
    CallId, LlmRequest,
    cache::{CacheLayer, MokaStore},
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Amount, Calendar, Decision, Department, Departments, Limits, MemoryStore, QuotaStore, Reservation,
        Settlement,
    },
};
use preset::{CHUNKS, Leaf, Parts, cache_policy, preset, request, run};
use std::time::Duration;
use tower::{Layer, Service};

/// The usual of many runs: now and then a table doubles, or a cache tidies up.
fn usual<T>(mut make: impl FnMut() -> T, mut run: impl FnMut(T)) -> AllocationInfo {
    for _ in 0..200 {
        run(make());
    }
    let runs = (0..101).map(|_| {
        let made = make();
        allocation_counter::measure(|| run(made))
    });
    let mut runs: Vec<_> = runs.collect();
    runs.sort_by_key(|info| info.count_total);
    runs[runs.len() / 2]
}

fn fresh(bytes: usize, streaming: bool) -> impl FnMut() -> LlmRequest {
    let mut salt = 0;
    move || {
        salt += 1;
        request(bytes, salt, streaming)
    }
}

fn misses(bytes: usize, streaming: bool) -> AllocationInfo {
    let mut stack = preset(Leaf::new(), Parts::in_memory(false));
    usual(fresh(bytes, streaming), |request| run(&mut stack, request))
}

fn hits(bytes: usize, streaming: bool) -> AllocationInfo {
    let mut stack = preset(Leaf::new(), Parts::in_memory(false));
    usual(|| request(bytes, 0, streaming), |request| run(&mut stack, request))
}

#[test]
fn a_miss_allocates_at_most_16_times_whatever_the_prompts_size() {
    let (small, large) = (misses(200, false), misses(100_000, false));
    assert!(small.count_total <= 16, "{} allocations", small.count_total);
    assert_eq!(small.count_total, large.count_total);
    assert!(
        large.bytes_total.abs_diff(small.bytes_total) < 256,
        "{} B, {} B",
        large.bytes_total,
        small.bytes_total
    );
}

#[test]
fn a_coalesced_miss_allocates_at_most_3_times_more() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let count = |coalescing: bool| {
        let mut stack = preset(Leaf::new(), Parts::in_memory(coalescing));
        let call = |request| {
            let answer = runtime.block_on(stack.call(request)).unwrap();
            preset::read(answer);
        };
        usual(fresh(200, false), call).count_total
    };
    let (alone, shared) = (count(false), count(true));
    assert!(shared <= alone + 3, "{alone} allocations alone, {shared} shared");
}

#[test]
fn a_hit_allocates_at_most_6_times_whatever_the_prompts_size() {
    let (small, large) = (hits(200, false), hits(100_000, false));
    assert!(small.count_total <= 6, "{} allocations", small.count_total);
    assert_eq!((small.count_total, small.bytes_total), (large.count_total, large.bytes_total));
}

#[test]
fn a_stream_allocates_at_most_32_times_and_nothing_for_a_chunk_whatever_the_prompts_size() {
    let (small, large) = (misses(200, true).count_total, misses(100_000, true).count_total);
    assert!(small <= 32 && small < CHUNKS as u64, "{small} allocations");
    assert_eq!(small, large);
    assert!(hits(200, true).count_total <= 16);
}

#[test]
fn what_a_cache_keeps_takes_about_as_many_bytes_as_it_says() {
    for (answer, chunks, streaming) in [(200, 0, false), (20_000, 0, false), (0, 5, true), (0, 200, true)] {
        let store = MokaStore::new(64 << 20);
        let layer = CacheLayer::new(store.clone(), cache_policy(false));
        let mut service = layer.layer(Leaf::saying(answer, chunks));
        let fill = |service: &mut _, from: usize| {
            (from..from + 256).for_each(|salt| run(service, request(200, salt, streaming)));
            store.len()
        };
        // Tables that have room for all.
        fill(&mut service, 0);
        let before = store.bytes();
        let taken = allocation_counter::measure(|| assert_eq!(fill(&mut service, 256), 512)).bytes_current;
        let (taken, said) = (taken as f64, (store.bytes() - before) as f64);
        let ratio = said / taken;
        // The other shape is in it, whether or not it was asked for.
        assert!((1.2..2.2).contains(&ratio), "{answer} B, {chunks} chunks: {said} B of {taken} B");
    }
}

#[test]
fn quotas_in_memory_allocate_nothing_however_many_departments_a_call_has() {
    let limits = Limits::new().with_day_tokens(1 << 60).with_month_cost(NanoUsd::new(1 << 60));
    for count in [1, 2, 8, 9, 64] {
        let store = MemoryStore::new();
        let names = (0..count).map(|n| Department::new(format!("department {n}"), limits));
        let departments: Departments = names.collect();
        let amount = Amount::new(1, 500, NanoUsd::new(500));
        let days = Calendar::utc().days_around(SystemClock.now());
        let pair = usual(
            || CallId::mint(SystemClock.now()),
            |id| {
                let lease = Duration::from_secs(60);
                let reservation = Reservation::new(id, departments.clone(), amount, lease, days.clone());
                let decision = store.reserve(&reservation).now_or_never().unwrap().unwrap();
                assert!(matches!(decision, Decision::Granted(_)));
                let settlement = Settlement::new(id, departments.clone(), amount);
                store.settle(&settlement).now_or_never().unwrap().unwrap();
            },
        );
        assert_eq!(pair.count_total, 0, "{count} departments");
    }
}
