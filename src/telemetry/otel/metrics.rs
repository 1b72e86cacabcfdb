use super::{
    super::{
        observer::CallEnd,
        semconv::{self, SemConv},
    },
    bound::{Binding, Bound},
    series::Series,
};
use crate::{CacheStatus, ErrorKind, TokenUsage, cache::BypassReason, quota::QuotaLayer, usage::QueueSink};
use opentelemetry::{
    KeyValue, Value,
    metrics::{Counter, Histogram, Meter},
};
use std::time::Duration;

/// Bounds for seconds.
const SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Bounds for tokens.
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Bounds for how much too high an estimate is; below 1 it was too low.
const RATIOS: [f64; 14] = [0.5, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0];

/// All that is counted and measured; made once.
pub(super) struct Instruments {
    duration: Histogram<f64>,
    first_chunk: Histogram<f64>,
    output_chunk: Histogram<f64>,
    tokens: Tokens,
    gateway: Gateway,
}

enum Tokens {
    V1_41(Histogram<u64>),
    Latest(Box<Latest>),
}

struct Latest {
    input: Counter<u64>,
    output: Counter<u64>,
    cache_read: Counter<u64>,
    cache_write: Counter<u64>,
    reasoning: Counter<u64>,
    input_of_call: Histogram<u64>,
    output_of_call: Histogram<u64>,
}

/// Our own, under our own prefix.
struct Gateway {
    duration: Histogram<f64>,
    cache: Counter<u64>,
    by_cache: ByCache,
    fallbacks: Counter<u64>,
    refusals: Counter<u64>,
}

/// Series of the gateway, by what the cache had to do with a call: most calls are of one of them.
struct ByCache {
    unused: Answered,
    hit: Answered,
    miss: Answered,
    bypass: Answered,
    coalesced: Answered,
}

struct Answered {
    attributes: Vec<KeyValue>,
    duration: Bound<Histogram<f64>>,
    count: Bound<Counter<u64>>,
}

impl ByCache {
    fn new(binding: Binding) -> Self {
        let answered = |status| {
            let result = semconv::cache(status);
            let result = result.map(|result| KeyValue::new("llm_layers.cache.result", result));
            let attributes = result.into_iter().collect();
            Answered { attributes, duration: Bound::new(binding), count: Bound::new(binding) }
        };
        Self {
            unused: answered(CacheStatus::Unused),
            hit: answered(CacheStatus::Hit { age: Duration::ZERO }),
            miss: answered(CacheStatus::Miss),
            bypass: answered(CacheStatus::Bypass(BypassReason::NoUser)),
            coalesced: answered(CacheStatus::Coalesced),
        }
    }

    const fn of(&self, status: CacheStatus) -> &Answered {
        match status {
            CacheStatus::Unused => &self.unused,
            CacheStatus::Hit { .. } => &self.hit,
            CacheStatus::Miss => &self.miss,
            CacheStatus::Bypass(_) => &self.bypass,
            CacheStatus::Coalesced => &self.coalesced,
        }
    }
}

impl Instruments {
    pub(super) fn new(meter: &Meter, semconv: SemConv, binding: Binding) -> Self {
        let seconds = |name: &'static str, what: &'static str| {
            let builder = meter.f64_histogram(name).with_unit("s").with_description(what);
            builder.with_boundaries(SECONDS.to_vec()).build()
        };
        let tokens = |name: &'static str, what: &'static str| {
            let builder = meter.u64_histogram(name).with_unit("{token}").with_description(what);
            builder.with_boundaries(TOKENS.to_vec()).build()
        };
        let counter = |name: &'static str, unit: &'static str, what: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        let (duration, first_chunk, output_chunk) = match semconv {
            SemConv::V1_41 => (
                "gen_ai.client.operation.duration",
                "gen_ai.client.operation.time_to_first_chunk",
                "gen_ai.client.operation.time_per_output_chunk",
            ),
            SemConv::Latest => (
                "gen_ai.client.inference.duration",
                "gen_ai.client.inference.time_to_first_chunk",
                "gen_ai.client.inference.time_per_output_chunk",
            ),
        };
        let used = |name: &'static str, what: &'static str| counter(name, "{token}", what);
        Self {
            duration: seconds(duration, "How long calls to models took, until their answers had ended"),
            first_chunk: seconds(first_chunk, "How long streams took to their first chunk"),
            output_chunk: seconds(output_chunk, "How long streams took from one chunk to the next"),
            tokens: match semconv {
                SemConv::V1_41 => {
                    Tokens::V1_41(tokens("gen_ai.client.token.usage", "Tokens that a call used up"))
                }
                SemConv::Latest => Tokens::Latest(Box::new(Latest {
                    input: used("gen_ai.client.inference.usage.input_tokens", "Tokens of prompts"),
                    output: used("gen_ai.client.inference.usage.output_tokens", "Tokens of answers"),
                    cache_read: used(
                        "gen_ai.client.inference.usage.cache_read.input_tokens",
                        "Of the prompts: read from the provider's cache",
                    ),
                    cache_write: used(
                        "gen_ai.client.inference.usage.cache_write.input_tokens",
                        "Of the prompts: written to the provider's cache",
                    ),
                    reasoning: used(
                        "gen_ai.client.inference.usage.reasoning.output_tokens",
                        "Of the answers: thoughts",
                    ),
                    input_of_call: tokens(
                        "gen_ai.client.inference.operation.input_tokens",
                        "Tokens of a call's prompt",
                    ),
                    output_of_call: tokens(
                        "gen_ai.client.inference.operation.output_tokens",
                        "Tokens of a call's answer",
                    ),
                })),
            },
            gateway: Gateway {
                duration: seconds(
                    "llm_layers.gateway.duration",
                    "How long callers waited until their answers had ended, all attempts included",
                ),
                cache: counter(
                    "llm_layers.cache.requests",
                    "{request}",
                    "What the cache had to do with calls",
                ),
                by_cache: ByCache::new(binding),
                fallbacks: counter("llm_layers.fallbacks", "{attempt}", "Attempts that others had to follow"),
                refusals: counter("llm_layers.quota.refusals", "{request}", "Calls that a quota has refused"),
            },
        }
    }

    /// The time from one chunk of a stream to the next.
    pub(super) fn output_chunk(&self, series: &Series, time: Duration) {
        series.output_chunk.record(&self.output_chunk, time.as_secs_f64(), &series.all);
    }

    /// A call to a provider has ended.
    pub(super) fn client(&self, end: &CallEnd<'_>, series: &Series) {
        if let Some(time) = end.time_to_first_chunk() {
            series.first_chunk.record(&self.first_chunk, time.as_secs_f64(), &series.all);
        }
        let usage = end.usage().unwrap_or_default();
        let failed = end.error_type().map(|kind| series.failed(kind));
        match &self.tokens {
            Tokens::V1_41(tokens) => {
                if let Some(count) = usage.input_tokens {
                    series.input_tokens.record(tokens, count, &series.input);
                }
                if let Some(count) = usage.output_tokens {
                    series.output_tokens.record(tokens, count, &series.output);
                }
            }
            Tokens::Latest(tokens) => tokens.record(&usage, series, failed.as_deref()),
        }
        let duration = end.duration.as_secs_f64();
        match failed {
            None => series.duration.record(&self.duration, duration, &series.all),
            Some(failed) => self.duration.record(duration, &failed),
        }
    }

    /// A whole call has ended.
    pub(super) fn gateway(&self, end: &CallEnd<'_>) {
        let Gateway { duration, cache, by_cache, fallbacks, refusals } = &self.gateway;
        let answered = by_cache.of(end.cache);
        if end.cache != CacheStatus::Unused {
            answered.count.record(cache, 1, &answered.attributes);
        }
        let seconds = end.duration.as_secs_f64();
        match end.error_type() {
            None => answered.duration.record(duration, seconds, &answered.attributes),
            Some(kind) => {
                let mut attributes = answered.attributes.clone();
                attributes.push(KeyValue::new("error.type", label(kind)));
                duration.record(seconds, &attributes);
            }
        }

        for attempt in end.followed() {
            let reason = [KeyValue::new("llm_layers.fallback.reason", attempt.error.reason())];
            fallbacks.add(1, &reason);
        }
        if let Some(ErrorKind::QuotaExceeded(quota)) = end.error().map(crate::Error::kind) {
            refusals.add(
                1,
                &[
                    KeyValue::new("llm_layers.quota.kind", semconv::quota(quota.quota)),
                    KeyValue::new("llm_layers.quota.period", semconv::period(quota.period)),
                    KeyValue::new("llm_layers.quota.in_flight_only", quota.in_flight_only),
                ],
            );
        }
    }
}

impl Latest {
    /// Zeros too, as these conventions want it.
    fn record(&self, usage: &TokenUsage, series: &Series, failed: Option<&[KeyValue]>) {
        let (input, output) = (usage.input_tokens.unwrap_or(0), usage.output_tokens.unwrap_or(0));
        let counts = [
            (&self.input, Some(input)),
            (&self.output, Some(output)),
            (&self.cache_read, usage.cache_read_tokens),
            (&self.cache_write, usage.cache_write_tokens),
            (&self.reasoning, usage.reasoning_tokens),
        ];
        for (counter, count) in counts {
            if let Some(count) = count {
                counter.add(count, &series.input);
            }
        }
        match failed {
            Some(failed) => {
                self.input_of_call.record(input, failed);
                self.output_of_call.record(output, failed);
            }
            None => {
                series.input_tokens.record(&self.input_of_call, input, &series.all);
                series.output_tokens.record(&self.output_of_call, output, &series.all);
            }
        }
    }
}

/// Types of errors come from a closed list, most of which lives as long as the program.
pub(super) fn label(error_type: &str) -> Value {
    match error_type {
        "429" => "429".into(),
        "500" => "500".into(),
        "502" => "502".into(),
        "503" => "503".into(),
        semconv::CANCELLED => semconv::CANCELLED.into(),
        "timeout" => "timeout".into(),
        other => other.to_owned().into(),
    }
}

/// Shows how quotas do: `llm_layers.quota.reservations`, the calls that hold one now, `llm_layers.quota.shadow_refusals`, those that
/// would have been refused but for the [shadow](crate::quota::Mode::Shadow), and `llm_layers.quota.estimate_ratio`, by
/// how much what was reserved is more than what was used up, in tokens. Gives the layer back that is to be stacked.
pub fn observe_quota(meter: &Meter, layer: QuotaLayer) -> QuotaLayer {
    let ratio = meter
        .f64_histogram("llm_layers.quota.estimate_ratio")
        // Without a unit: Prometheus' exporter would say the name's last word twice.
        .with_description("Tokens that were reserved for a call, for each that it used up")
        .with_boundaries(RATIOS.to_vec())
        .build();
    let layer = layer.on_settle(move |settled| {
        if settled.used.tokens > 0 {
            ratio.record(settled.reserved.tokens as f64 / settled.used.tokens as f64, &[]);
        }
    });
    let stats = layer.stats_reader();
    meter
        .u64_observable_gauge("llm_layers.quota.reservations")
        .with_unit("{reservation}")
        .with_description("Calls that hold a reservation of a quota")
        .with_callback(move |gauge| gauge.observe(stats().in_flight, &[]))
        .build();
    let stats = layer.stats_reader();
    meter
        .u64_observable_counter("llm_layers.quota.shadow_refusals")
        .with_unit("{request}")
        .with_description("Calls over a limit that were made all the same")
        .with_callback(move |counter| counter.observe(stats().would_deny, &[]))
        .build();
    layer
}

/// Shows how a queue of usage records does: `llm_layers.usage.queue.depth`, `llm_layers.usage.records.written`,
/// `llm_layers.usage.records.set_aside`, which the store refuses, and `llm_layers.usage.records.lost`, which is always 0 unless the
/// process ended while its store was down.
pub fn observe_queue(meter: &Meter, queue: &QueueSink) {
    observe_records(meter, queue, || (0, 0));
}

/// As [`observe_queue`], for records that wait in an outbox: those that are in it are `written`; what the store behind it refuses
/// counts as `set_aside`, and what was damaged in it as `lost`. And how much waits there: `llm_layers.usage.outbox.depth` and
/// `llm_layers.usage.outbox.size`.
#[cfg(feature = "outbox")]
pub fn observe_outbox(meter: &Meter, outbox: &crate::usage::OutboxSink) {
    let shown = outbox.clone();
    observe_records(meter, outbox.queue(), move || {
        let status = shown.status();
        (status.refused, status.damages)
    });
    let shown = outbox.clone();
    meter
        .u64_observable_gauge("llm_layers.usage.outbox.depth")
        .with_unit("{record}")
        .with_description("Usage records in the outbox that are not passed on yet")
        .with_callback(move |gauge| gauge.observe(shown.status().events, &[]))
        .build();
    let shown = outbox.clone();
    meter
        .u64_observable_gauge("llm_layers.usage.outbox.size")
        .with_unit("By")
        .with_description("Size of the files of the outbox")
        .with_callback(move |gauge| gauge.observe(shown.status().bytes, &[]))
        .build();
}

/// With what is refused and lost behind the queue.
fn observe_records(
    meter: &Meter,
    queue: &QueueSink,
    behind: impl Fn() -> (u64, u64) + Clone + Send + Sync + 'static,
) {
    let shown = queue.clone();
    meter
        .u64_observable_gauge("llm_layers.usage.queue.depth")
        .with_unit("{record}")
        .with_description("Usage records that are not written yet")
        .with_callback(move |gauge| gauge.observe(shown.pending(), &[]))
        .build();
    let shown = queue.clone();
    meter
        .u64_observable_counter("llm_layers.usage.records.written")
        .with_unit("{record}")
        .with_description("Usage records that are written")
        .with_callback(move |counter| counter.observe(shown.written(), &[]))
        .build();
    let (shown, refused) = (queue.clone(), behind.clone());
    meter
        .u64_observable_counter("llm_layers.usage.records.set_aside")
        .with_unit("{record}")
        .with_description("Usage records that the store refuses while it takes others")
        .with_callback(move |counter| counter.observe(shown.set_aside() + refused().0, &[]))
        .build();
    let shown = queue.clone();
    meter
        .u64_observable_counter("llm_layers.usage.records.lost")
        .with_unit("{record}")
        .with_description("Usage records that nobody will write any more")
        .with_callback(move |counter| counter.observe(shown.lost() + behind().1, &[]))
        .build();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Error, Period, QuotaExceeded, QuotaKind,
        body::{End, Summary},
        telemetry::observer::Role,
    };
    use opentelemetry::metrics::MeterProvider;
    use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};

    #[test]
    fn each_status_of_the_cache_has_a_series_with_its_own_name() {
        let by_cache = ByCache::new(Binding::default());
        for status in [
            CacheStatus::Unused,
            CacheStatus::Hit { age: Duration::from_secs(1) },
            CacheStatus::Miss,
            CacheStatus::Bypass(BypassReason::NoStore),
            CacheStatus::Coalesced,
        ] {
            let labels: Vec<_> =
                by_cache.of(status).attributes.iter().map(|label| label.value.as_str()).collect();
            assert_eq!(labels, Vec::from_iter(semconv::cache(status)));
        }
    }

    #[test]
    fn a_refusal_is_counted_by_kind_and_period_and_not_by_department() {
        let exporter = InMemoryMetricExporter::default();
        let reader =
            PeriodicReader::builder(exporter.clone()).with_interval(Duration::from_secs(3600)).build();
        let meters = SdkMeterProvider::builder().with_reader(reader).build();
        let instruments = Instruments::new(&meters.meter("test"), SemConv::default(), Binding::default());
        for n in 0..1000 {
            let error = Error::new(ErrorKind::QuotaExceeded(QuotaExceeded {
                department_id: format!("department-{n}").into(),
                quota: QuotaKind::Tokens,
                period: Period::Day,
                limit: 10,
                current: 10,
                reserved: 0,
                resets_at: std::time::UNIX_EPOCH,
                resets_in: Duration::from_secs(1),
                retry_after: Duration::from_secs(1),
                in_flight_only: false,
            }));
            instruments.gateway(&CallEnd {
                role: Role::Gateway,
                end: End::Failed(&error, &Summary::default()),
                duration: Duration::ZERO,
                started: tokio::time::Instant::now().into_std(),
                head: None,
                cache: CacheStatus::Unused,
                failed: &[],
                was_asked: false,
                cost: None,
                content: None,
                event: None,
                record: None,
                choices: 1,
            });
        }
        meters.force_flush().unwrap();
        let told = format!("{:?}", exporter.get_finished_metrics().unwrap());
        assert!(told.contains("llm_layers.quota.refusals") && told.contains("value: 1000"), "{told}");
        for label in ["llm_layers.quota.kind", "tokens", "llm_layers.quota.period", "day", "quota_exceeded"] {
            assert!(told.contains(label), "{label}");
        }
        assert!(!told.contains("department"), "{told}");
    }
}
