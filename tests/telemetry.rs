//! `TelemetryLayer`: one span for each call, ended once, with what the conventions ask for, however the call ends.

#[path = "telemetry/conventions.rs"]
mod conventions;
#[path = "telemetry/events.rs"]
mod events;
#[path = "telemetry/lifecycle.rs"]
mod lifecycle;
#[path = "telemetry/metrics.rs"]
mod metrics;
#[cfg(feature = "openai")]
#[path = "telemetry/propagation.rs"]
mod propagation;
#[path = "telemetry/record.rs"]
mod record;
#[path = "telemetry/seen.rs"]
mod seen;
#[path = "telemetry/stack.rs"]
mod stack;
#[path = "telemetry/unanswered.rs"]
mod unanswered;
