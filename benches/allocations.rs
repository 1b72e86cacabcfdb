//! How often memory is asked for, by the rows of the benches that tell the times: apart from these, for who counts takes time.
//!
//! `cargo bench --bench allocations --features otel,redis,rusqlite`. What may never become more is in `tests/allocations.rs`.

#[expect(dead_code, reason = "it is a bench of its own")]
mod cache;
#[expect(dead_code, reason = "it is a bench of its own")]
mod telemetry;
#[expect(dead_code, reason = "it is a bench of its own")]
mod usage;

fn count(run: &mut dyn FnMut()) -> u64 {
    allocation_counter::measure(run).count_total
}

fn main() {
    for bytes in [200, 100_000] {
        cache::hits(bytes, 1, Some(count));
    }
    cache::misses(200, 1, Some(count));
    telemetry::tables(Some(count));
    let directory = std::env::temp_dir().join(format!("llm-layers-allocations-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    usage::on_the_path(&directory, Some(count));
    std::fs::remove_dir_all(&directory).expect("it is still there");
}
