//! Each fault, one after the other or side by side, and what comes of it.
//!
//! With `FAULTS=write` docs/failure-matrix.md is made anew; any other word runs the groups whose name has it.

mod clients;
mod clocks;
mod disk;
mod processes;
mod redis;
mod upstream;

use faults::matrix::{Row, Verdict, file};
use std::{path::Path, pin::Pin, process::ExitCode, sync::Mutex, thread};
use tokio::{runtime::Runtime, time::Instant};

type Run = Pin<Box<dyn Future<Output = Vec<Verdict>>>>;

/// A group of faults that share a gateway or a subject.
struct Group {
    name: &'static str,
    run: fn() -> Run,
}

macro_rules! group {
    ($function:path) => {
        Group { name: stringify!($function), run: || Box::pin($function()) }
    };
}

/// In the order of the file.
const GROUPS: &[Group] = &[
    group!(upstream::answers),
    group!(upstream::streams),
    group!(clients::leave),
    group!(redis::quotas_killed),
    group!(redis::quotas_frozen),
    group!(redis::quotas_emptied),
    group!(redis::quotas_answered_wrongly),
    group!(redis::quotas_refused),
    group!(redis::quotas_overwritten),
    group!(redis::quotas_fail_over),
    group!(redis::records),
    group!(redis::cache),
    group!(disk::full),
    group!(disk::locked_records),
    group!(disk::locked_counters),
    group!(processes::terminated),
    group!(processes::killed),
    group!(processes::out_of_files),
    group!(clocks::jump),
    group!(clocks::jump_with_cache),
];

/// How many run at the same time: more would only measure how busy the machine is.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let mode = std::env::var("FAULTS").unwrap_or_default();
    let is_all = matches!(&*mode, "" | "write");
    let chosen: Vec<_> = GROUPS.iter().filter(|group| is_all || group.name.contains(&mode)).collect();
    let left = Mutex::new(chosen.iter().enumerate());
    let next = || left.lock().expect("no panic").next();
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((number, group)) = next() {
                    let since = Instant::now();
                    // A panic is one group's.
                    let run = thread::scope(|scope| {
                        scope.spawn(|| Runtime::new().expect("a runtime").block_on((group.run)())).join().ok()
                    });
                    done.lock().expect("no panic").push((number, group.name, run, since.elapsed()));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no panic");
    done.sort_by_key(|(number, ..)| *number);
    let (mut rows, mut failures) = (Vec::new(), 0);
    for (_, name, run, took) in done {
        let Some(verdicts) = run else {
            println!("FAILED {name}: it panicked");
            failures += 1;
            continue;
        };
        println!("{name}: {} faults in {:.1} s", verdicts.len(), took.as_secs_f32());
        for Verdict { row, problems } in verdicts {
            for problem in &problems {
                println!("FAILED {name}, {}: {problem}", row.event);
            }
            failures += problems.len();
            rows.push(row);
        }
    }
    failures += compare(&rows, is_all && failures == 0, mode == "write");
    println!("{} faults, {failures} failures", rows.len());
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the file says what was found; how often it does not.
fn compare(rows: &[Row], is_all: bool, write: bool) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/failure-matrix.md");
    if write {
        std::fs::write(&path, file(rows)).expect("the file is written");
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let told: Vec<&str> = text.lines().collect();
    let missing: Vec<_> = rows.iter().map(Row::line).filter(|line| !told.contains(&&**line)).collect();
    for line in &missing {
        println!("FAILED docs/failure-matrix.md does not say: {line}");
    }
    let is_stale = is_all && missing.is_empty() && text != file(rows);
    if is_stale {
        println!("FAILED docs/failure-matrix.md says more than was found: scripts/test --faults --write");
    }
    missing.len() + usize::from(is_stale)
}
