//! Whether two threads do twice as much: the stack beside moka's `get` and `insert` with as much private work.

use crate::{
    measure::median,
    preset::{Leaf, Parts, Stack, preset, request, run},
};
use llm_layers::LlmRequest;
use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};
use tokio::time::Instant;

const CALLS: usize = 20_000;
const ROUNDS: usize = 9;

/// What each thread does in a round, made before the time begins.
type Job = Box<dyn FnOnce() + Send>;

/// Runs all jobs at once, each on a thread of its own; the time from the first to the last.
fn together(jobs: Vec<Job>) -> Duration {
    let barrier = Arc::new(Barrier::new(jobs.len()));
    let threads = jobs.into_iter().map(|job| {
        let barrier = Arc::clone(&barrier);
        thread::spawn(move || {
            barrier.wait();
            let start = Instant::now();
            job();
            (start, Instant::now())
        })
    });
    let times: Vec<_> = threads.collect::<Vec<_>>().into_iter().map(|t| t.join().expect("it ran")).collect();
    let first = times.iter().map(|(start, _)| *start).min().expect("one at least");
    let last = times.iter().map(|(_, end)| *end).max().expect("one at least");
    last - first
}

/// How much more two threads do than one, in one round after the other.
fn scaling(name: &str, mut job: impl FnMut(usize) -> Job) -> f64 {
    let mut ratios = Vec::new();
    let (mut of_one, mut of_two) = (Vec::new(), Vec::new());
    let mut number = 0;
    let mut next = || {
        number += 1;
        job(number)
    };
    together(vec![next()]);
    for _ in 0..ROUNDS {
        let one = together(vec![next()]).as_secs_f64();
        let two = together(vec![next(), next()]).as_secs_f64();
        ratios.push(2.0 * one / two);
        of_one.push(1e9 * one / CALLS as f64);
        of_two.push(1e9 * two / CALLS as f64);
    }
    let ratio = median(ratios);
    println!("{name:<46}{:>10.0}{:>10.0}{ratio:>10.2}", median(of_one), median(of_two));
    ratio
}

/// About as long as a call, on nothing that anybody else sees.
fn private_work(seed: u64, rounds: u64) {
    let text = [seed as u8; 256];
    for _ in 0..rounds {
        black_box(blake3::keyed_hash(&[7; 32], black_box(&text)));
    }
}

fn calls(stack: &Stack, requests: Vec<LlmRequest>) -> Job {
    let mut stack = stack.clone();
    Box::new(move || {
        for request in requests {
            run(&mut stack, request);
        }
    })
}

pub fn threads() {
    println!("\none thread and two: ns for a call of each, and how much more two do");
    println!("{:<46}{:>10}{:>10}{:>10}", "", "one", "two", "scaling");
    scaling("private work alone", |number| {
        Box::new(move || (0..CALLS).for_each(|_| private_work(number as u64, 8)))
    });
    let value: Arc<[u8]> = Arc::new([1; 100]);
    let cache = moka::sync::Cache::<[u8; 32], Arc<[u8]>>::new(10_000);
    let floor = scaling("moka's get + insert and private work", |number| {
        let (cache, value) = (cache.clone(), Arc::clone(&value));
        Box::new(move || {
            for at in 0..CALLS {
                let mut key = [0; 32];
                key[..8].copy_from_slice(&((number * CALLS + at) as u64).to_le_bytes());
                black_box(cache.get(&key));
                private_work(at as u64, 8);
                cache.insert(key, Arc::clone(&value));
            }
        })
    });
    let parts = Parts::in_memory(false);
    let taken = parts.usage.clone();
    let stack = preset(Leaf::new(), parts);
    let misses = scaling("full stack, misses", |number| {
        drop(taken.take());
        calls(&stack, (0..CALLS).map(|at| request(200, number * CALLS + at, false)).collect())
    });
    let hits = scaling("full stack, hits of one entry", |_| {
        drop(taken.take());
        calls(&stack, (0..CALLS).map(|_| request(200, 0, false)).collect())
    });
    let others = scaling("full stack, hits of 1,000 entries", |_| {
        drop(taken.take());
        calls(&stack, (0..CALLS).map(|at| request(200, at % 1000, false)).collect())
    });
    println!(
        "beside moka: misses {:.2}, hits of one entry {:.2}, hits of many {:.2}",
        misses / floor,
        hits / floor,
        others / floor
    );
}
