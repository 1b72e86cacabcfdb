//! What is printed: in Markdown, to be pasted.

use crate::{
    case::SMALL,
    measure::{Measured, Round},
};

fn median(rounds: &[Round], of: fn(&Round) -> f64) -> f64 {
    let mut all: Vec<f64> = rounds.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Measured {
    /// Microseconds of a request, or of a chunk.
    fn cpu(&self, rounds: &[Round]) -> f64 {
        median(rounds, |round| round.cpu) / self.case.chunks.max(1) as f64
    }
}

/// The medians of all rounds.
pub(crate) fn row(measured: &Measured, is_first: bool) {
    if is_first {
        println!(
            "CPU in µs per request or chunk; added latency in µs over asking the upstream directly; the median of \
             {} round(s).\n",
            measured.gateway.len()
        );
        println!(
            "| case | in flight | per | floor CPU | gateway CPU | floor +p50 | gateway +p50 | floor +p99 | \
             gateway +p99 | gateway/s |"
        );
        println!("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|");
    }
    let Measured { case, direct, floor, gateway } = measured;
    let added = |rounds: &[Round], of: fn(&Round) -> f64| median(rounds, of) - median(direct, of);
    println!(
        "| {} | {} | {} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
        case.name,
        case.in_flight,
        case.unit(),
        measured.cpu(floor),
        measured.cpu(gateway),
        added(floor, |round| round.p50),
        added(gateway, |round| round.p50),
        added(floor, |round| round.p99),
        added(gateway, |round| round.p99),
        median(gateway, |round| round.per_second),
    );
}

/// What it is all for.
pub(crate) fn ratios(all: &[Measured]) {
    let small = all.iter().find(|measured| measured.case.name == SMALL).map(|m| m.cpu(&m.floor));
    println!("\n| CPU of the gateway, of the floor's | is | aim |");
    println!("|---|--:|--:|");
    for measured in all {
        let Some(goal) = measured.case.goal else { continue };
        let (gateway, floor) = (measured.cpu(&measured.gateway), measured.cpu(&measured.floor));
        let (name, unit) = (measured.case.name, measured.case.unit());
        println!("| {name}, per {unit} | {:.2} | ≤ {goal} |", gateway / floor);
        if let (true, Some(small)) = (name == "hit", small) {
            println!("| {name}, of a small miss | {:.2} | < 1 |", gateway / small);
        }
    }
    if let Some(one) = all.iter().find(|measured| measured.case.name == "one") {
        let added = median(&one.gateway, |round| round.p50) - median(&one.floor, |round| round.p50);
        println!("\nAdded p50 with one in flight, over the floor: {added:.0} µs (aim: ≤ 60).");
    }
}

pub(crate) fn memory(requests: usize, seen: &[u64], after: [u64; 2]) {
    let mib = |kib: &u64| format!("{:.1}", *kib as f64 / 1024.0);
    if !seen.is_empty() {
        let seen: Vec<_> = seen.iter().map(mib).collect();
        println!(
            "\nMemory of a gateway in MiB after each tenth of {requests} different requests: {} (aim: < 30).",
            seen.join(", ")
        );
    }
    let [gateway, floor] = after.each_ref().map(mib);
    println!("After all cases above: {gateway} MiB, the floor {floor}.");
}
