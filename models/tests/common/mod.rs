//! How often each model runs.

/// Runs `model` in so many orders: at random, and by few changes at places that matter (the PCT algorithm), which finds
/// what needs a long run without a change and then one at the wrong moment.
///
/// `MODEL_RUNS` says how many of each, 300 unless told. What fails prints the order in which it did, and `MODEL_REPLAY` runs
/// that again.
///
/// Shuttle, and not loom: the code under test is locks with whole collections behind them, and three or four threads of it
/// have more orders than anybody can run through. Its atomics are counters beside a lock, or flags with one writer:
/// there is nothing in it that only a weak memory order would show, which is what loom is for.
pub(crate) fn check(model: impl Fn() + Send + Sync + 'static) {
    if let Ok(order) = std::env::var("MODEL_REPLAY") {
        return shuttle::replay(model, &order);
    }
    let runs = std::env::var("MODEL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(300);
    let model = std::sync::Arc::new(model);
    let again = std::sync::Arc::clone(&model);
    shuttle::check_random(move || again(), runs);
    shuttle::check_pct(move || model(), runs, 3);
}
