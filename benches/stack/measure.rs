//! Tables of nanoseconds and allocations. Shared with the comparison with peers.

use std::time::Duration;
use tokio::time::Instant;

/// Something that is timed in turn with the others of its table, in many short rounds, so that a machine that slows
/// down slows all of them.
pub struct Row<T> {
    name: String,
    nanos: Vec<f64>,
    allocations: u64,
    bytes: u64,
    run: Box<dyn FnMut(T)>,
    /// What is done between rounds, in nobody's time.
    rest: Box<dyn FnMut()>,
}

/// What a table has found for one row.
pub struct Found {
    /// The median of all rounds.
    pub nanos: f64,
    /// The quickest of all rounds: for machines that have other work, too.
    pub least: f64,
    pub allocations: u64,
    pub bytes: u64,
}

impl<T: 'static> Row<T> {
    pub fn new(name: impl Into<String>, run: impl FnMut(T) + 'static) -> Self {
        Self {
            name: name.into(),
            nanos: Vec::new(),
            allocations: 0,
            bytes: 0,
            run: Box::new(run),
            rest: Box::new(|| ()),
        }
    }

    pub fn resting(mut self, rest: impl FnMut() + 'static) -> Self {
        self.rest = Box::new(rest);
        self
    }
}

/// How long a table takes, about: the environment variable `BENCH_SECONDS`, or 2.
fn budget() -> Duration {
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(2.0))
}

/// Times each row in rounds of `calls`, each on something that `make` has made before for the row of this number; `per` is what a row's time is
/// divided by. The first row is what the others are compared with.
pub fn table<T: 'static>(
    title: &str,
    calls: usize,
    per: usize,
    mut make: impl FnMut(usize) -> T,
    mut rows: Vec<Row<T>>,
) -> Vec<Found> {
    for (at, row) in rows.iter_mut().enumerate() {
        // Tables grow, and are not counted: the second time is like all that come.
        for _ in 0..2 * calls {
            (row.run)(make(at));
        }
        let counts = (0..16).map(|_| {
            let made = make(at);
            let info = allocation_counter::measure(|| (row.run)(made));
            (info.count_total, info.bytes_total)
        });
        let mut counts: Vec<_> = counts.collect();
        counts.sort_unstable();
        // The usual one: now and then a table doubles, or a cache tidies up.
        (row.allocations, row.bytes) = counts[counts.len() / 2];
        (row.rest)();
    }
    let end = Instant::now() + budget();
    while rows[0].nanos.len() < 5 || Instant::now() < end {
        for (at, row) in rows.iter_mut().enumerate() {
            let made: Vec<T> = (0..calls).map(|_| make(at)).collect();
            let start = Instant::now();
            made.into_iter().for_each(&mut row.run);
            row.nanos.push(start.elapsed().as_nanos() as f64 / (calls * per) as f64);
            (row.rest)();
        }
    }
    println!("\n{title}");
    println!("{:<46}{:>10}{:>10}{:>10}{:>8}{:>10}", "", "ns", "least", "+ ns", "allocs", "bytes");
    let (first, others) = rows.split_first().expect("one at least");
    let mut found = Vec::new();
    for row in std::iter::once(first).chain(others) {
        let nanos = median(row.nanos.clone());
        let least = row.nanos.iter().copied().fold(f64::INFINITY, f64::min);
        let above = median(row.nanos.iter().zip(&first.nanos).map(|(row, first)| row - first).collect());
        let Row { name, allocations, bytes, .. } = row;
        println!("{name:<46}{nanos:>10.0}{least:>10.0}{above:>10.0}{allocations:>8}{bytes:>10}");
        found.push(Found { nanos, least, allocations: *allocations, bytes: *bytes });
    }
    found
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
