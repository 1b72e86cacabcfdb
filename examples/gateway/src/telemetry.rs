//! Spans, metrics and events: by OTLP where the environment says so, and for Prometheus.

use axum::{
    body::Bytes,
    http::{Request, Response, header},
    response::IntoResponse,
};
use http_body_util::{BodyExt, Full, Limited};
use llm_layers::{
    cache::CacheStats,
    provider::openai::{HyperClient, hyper_client},
    quota::QuotaLayer,
    telemetry::{CaptureContent, OtelObserver, SemConv, TracingObserver, otel},
};
use opentelemetry::{
    logs::LoggerProvider,
    metrics::{Meter, MeterProvider},
    trace::{TracerProvider, noop::NoopTracer},
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::{
    Resource,
    logs::SdkLoggerProvider,
    metrics::{PeriodicReader, SdkMeterProvider},
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use prometheus::{Encoder, Registry, TextEncoder};
use std::{error::Error, time::Duration};
use tokio::{runtime::Handle, task::spawn_blocking};
use tower::ServiceExt;

/// What the layers tell: OpenTelemetry if anybody listens, and the log.
pub(crate) type Observer = (Option<OtelObserver>, TracingObserver);

/// How long the last spans and metrics may take when the server ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an attribute with what was said may be.
const MAX_CONTENT: usize = 16 << 10;

/// All that exports.
#[derive(Clone, Default)]
pub(crate) struct Telemetry {
    tracers: Option<SdkTracerProvider>,
    meters: Option<SdkMeterProvider>,
    loggers: Option<SdkLoggerProvider>,
    registry: Option<Registry>,
    observer: Option<OtelObserver>,
    capture: CaptureContent,
}

impl Telemetry {
    /// As the environment and the file say. Must be called where tokio runs.
    pub(crate) fn start(
        config: &llm_layers::config::Telemetry,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let wanted = Wanted::read(&|name| std::env::var(name).ok());
        let resource = resource();
        // Also where nobody gets spans: a caller's trace goes on to the providers that are told of it.
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let tracers = match wanted.traces {
            true => {
                let exporter = span_exporter(wanted.timeout)?;
                let tracers = SdkTracerProvider::builder().with_batch_exporter(exporter);
                Some(tracers.with_resource(resource.clone()).build())
            }
            false => None,
        };
        let loggers = match wanted.logs {
            true => {
                let loggers = SdkLoggerProvider::builder().with_batch_exporter(log_exporter(wanted.timeout)?);
                Some(loggers.with_resource(resource.clone()).build())
            }
            false => None,
        };
        let mut meters = SdkMeterProvider::builder().with_resource(resource);
        if wanted.metrics {
            meters = meters.with_reader(PeriodicReader::builder(metric_exporter(wanted.timeout)?).build());
        }
        let registry = config.metrics.then(Registry::new);
        if let Some(registry) = &registry {
            let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone());
            meters = meters.with_reader(exporter.scope_info_enabled(false).build()?);
        }
        let meters = (wanted.metrics || registry.is_some()).then(|| meters.build());

        let capture = CaptureContent::from_env(MAX_CONTENT);
        if !capture.is_nothing() {
            tracing::warn!("prompts and answers are exported or logged, as the environment says");
        }
        if let Some(meters) = &meters {
            let tasks = Handle::current().metrics();
            meters
                .meter("gateway")
                .u64_observable_gauge("gateway.tasks")
                .with_description("Tasks that have not ended: of connections, answers and workers.")
                .with_callback(move |gauge| gauge.observe(tasks.num_alive_tasks() as u64, &[]))
                .build();
        }
        let mut telemetry = Self { tracers, meters, loggers, registry, observer: None, capture };
        if telemetry.tracers.is_some() || telemetry.meters.is_some() || telemetry.loggers.is_some() {
            let meter = telemetry.meter();
            let observer = match &telemetry.tracers {
                Some(tracers) => OtelObserver::new(tracers.tracer_with_scope(otel::scope()), meter),
                None => OtelObserver::new(NoopTracer::new(), meter),
            };
            let observer = match &telemetry.loggers {
                Some(loggers) => observer.with_logger(loggers.logger_with_scope(otel::scope())),
                None => observer,
            };
            telemetry.observer = Some(observer.with_bound_instruments().with_semconv(SemConv::from_env()));
        }
        Ok(telemetry)
    }

    fn meter(&self) -> Meter {
        match &self.meters {
            Some(meters) => meters.meter_with_scope(otel::scope()),
            None => opentelemetry::metrics::noop::NoopMeterProvider::new().meter("nobody"),
        }
    }

    /// Whom the layers tell.
    pub(crate) fn observer(&self) -> Observer {
        (self.observer.clone(), TracingObserver::events_only())
    }

    /// What of prompts and answers is put on spans.
    pub(crate) fn capture(&self) -> CaptureContent {
        self.capture.clone()
    }

    /// What the spans of requests are made by, if anybody gets them.
    pub(crate) fn tracer(&self) -> Option<SdkTracer> {
        let tracers = self.tracers.as_ref()?;
        Some(tracers.tracer("gateway"))
    }

    /// Shows how recording does.
    pub(crate) fn watch(&self, handle: &llm_layers::stack::Handle) {
        if self.meters.is_none() {
            return;
        }
        match (handle.usage_outbox(), handle.usage_queue()) {
            (Some(outbox), _) => otel::observe_outbox(&self.meter(), outbox),
            (None, Some(queue)) => otel::observe_queue(&self.meter(), queue),
            (None, None) => {}
        }
    }

    /// Shows how many lines of the log nobody reads.
    pub(crate) fn watch_log(&self) {
        if self.meters.is_some() {
            self.meter()
                .u64_observable_counter("gateway.log.lines.lost")
                .with_unit("{line}")
                .with_description(
                    "Lines of the log that were left out, because nobody read those before them",
                )
                .with_callback(|counter| counter.observe(crate::log::lost(), &[]))
                .build();
        }
    }

    /// Shows what a semantic cache finds, or would have found in its shadow.
    pub(crate) fn watch_cache(&self, stack: &llm_layers::stack::Handle) {
        if self.meters.is_none() || stack.cache_stats().is_none() {
            return;
        }
        let show = |name: &'static str, unit, what, of: fn(&CacheStats) -> u64| {
            let stack = stack.clone();
            self.meter()
                .u64_observable_counter(name)
                .with_unit(unit)
                .with_description(what)
                .with_callback(move |counter| {
                    counter.observe(stack.cache_stats().as_ref().map_or(0, of), &[]);
                })
                .build();
        };
        show(
            "llm_layers.cache.semantic.hits",
            "{request}",
            "Calls that were answered as a similar question was",
            |stats| stats.semantic_hits,
        );
        show(
            "llm_layers.cache.semantic.shadow_hits",
            "{request}",
            "Calls that were made though a similar question had an answer",
            |stats| stats.semantic_would_hit,
        );
        show(
            "llm_layers.cache.semantic.guarded",
            "{request}",
            "Calls that were made because words of a similar question were others",
            |stats| stats.guarded_off,
        );
        show(
            "llm_layers.cache.semantic.embedder_failures",
            "{request}",
            "Times that the embedder failed or was late",
            |stats| stats.embedder_failures,
        );
    }

    /// Shows how quotas do.
    pub(crate) fn watch_quota(&self) -> impl Fn(QuotaLayer) -> QuotaLayer + use<> {
        let meter = self.meters.is_some().then(|| self.meter());
        move |layer| match &meter {
            Some(meter) => otel::observe_quota(meter, layer),
            None => layer,
        }
    }

    /// Whether there is anything at `GET /metrics`.
    pub(crate) const fn has_metrics(&self) -> bool {
        self.registry.is_some()
    }

    /// Everything that is counted, in Prometheus' text format.
    pub(crate) fn metrics(&self) -> impl IntoResponse + use<> {
        let families = self.registry.as_ref().map(Registry::gather).unwrap_or_default();
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        if let Err(error) = encoder.encode(&families, &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text)
    }

    /// Sends what is left.
    pub(crate) async fn close(self) {
        let Self { tracers, meters, loggers, .. } = self;
        // On a thread of its own: what sends needs this one.
        let closed = spawn_blocking(move || {
            if let Some(Err(error)) = tracers.map(|tracers| tracers.shutdown_with_timeout(FLUSH_TIMEOUT)) {
                tracing::warn!(%error, "the last spans are lost");
            }
            if let Some(Err(error)) = meters.map(|meters| meters.shutdown_with_timeout(FLUSH_TIMEOUT)) {
                tracing::warn!(%error, "the last metrics are lost");
            }
            if let Some(Err(error)) = loggers.map(|loggers| loggers.shutdown_with_timeout(FLUSH_TIMEOUT)) {
                tracing::warn!(%error, "the last events are lost");
            }
        });
        let _ = closed.await;
    }
}

/// What the standard variables ask for.
#[derive(Debug, PartialEq)]
struct Wanted {
    traces: bool,
    metrics: bool,
    logs: bool,
    timeout: Duration,
}

impl Wanted {
    fn read(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let var = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let is_disabled = var("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let wanted = |signal: &str| {
            let has_endpoint = var("OTEL_EXPORTER_OTLP_ENDPOINT").is_some()
                || var(&format!("OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")).is_some();
            let exporter = var(&format!("OTEL_{signal}_EXPORTER"));
            let is_named =
                exporter.as_deref().map(|names| names.split(',').any(|name| name.trim() == "otlp"));
            !is_disabled && is_named.unwrap_or(has_endpoint)
        };
        let timeout = var("OTEL_EXPORTER_OTLP_TIMEOUT").and_then(|millis| millis.trim().parse().ok());
        Self {
            traces: wanted("TRACES"),
            metrics: wanted("METRICS"),
            logs: wanted("LOGS"),
            timeout: Duration::from_millis(timeout.unwrap_or(10_000)),
        }
    }
}

fn resource() -> Resource {
    let is_named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty())
        || std::env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name("llm-gateway").build() }
}

fn is_grpc(signal: &str) -> bool {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let protocol = var(&format!("OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"));
    protocol.or_else(|| var("OTEL_EXPORTER_OTLP_PROTOCOL")).as_deref() == Some("grpc")
}

fn span_exporter(timeout: Duration) -> Result<SpanExporter, ExporterBuildError> {
    if is_grpc("TRACES") {
        return SpanExporter::builder().with_tonic().build();
    }
    let http = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    http.with_http_client(Client::new(timeout)).build()
}

fn metric_exporter(timeout: Duration) -> Result<MetricExporter, ExporterBuildError> {
    if is_grpc("METRICS") {
        return MetricExporter::builder().with_tonic().build();
    }
    let http = MetricExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    http.with_http_client(Client::new(timeout)).build()
}

fn log_exporter(timeout: Duration) -> Result<LogExporter, ExporterBuildError> {
    if is_grpc("LOGS") {
        return LogExporter::builder().with_tonic().build();
    }
    let http = LogExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
    http.with_http_client(Client::new(timeout)).build()
}

/// Sends OTLP by the client that providers are asked with. The exporters work on threads of their own, where tokio does not
/// run.
#[derive(Debug)]
struct Client {
    http: HyperClient,
    runtime: Handle,
    timeout: Duration,
}

impl Client {
    fn new(timeout: Duration) -> Self {
        Self { http: hyper_client(), runtime: Handle::current(), timeout }
    }
}

/// More than any collector has to say.
const MAX_REPLY: usize = 1 << 20;

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let call = self.http.clone().oneshot(request.map(Full::new));
        let send = async move {
            let (head, body) = call.await?.into_parts();
            let body = Limited::new(body, MAX_REPLY).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        let timeout = self.timeout;
        // Timers too are made where tokio runs.
        self.runtime.spawn(async move { tokio::time::timeout(timeout, send).await }).await??
    }
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry")
            .field("traces", &self.tracers.is_some())
            .field("metrics", &self.meters.is_some())
            .field("logs", &self.loggers.is_some())
            .field("prometheus", &self.registry.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(variables: &[(&str, &str)]) -> (bool, bool, bool) {
        let env = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let Wanted { traces, metrics, logs, .. } = Wanted::read(&env);
        (traces, metrics, logs)
    }

    #[test]
    fn the_standard_variables_decide() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318");
        assert_eq!(wanted(&[]), (false, false, false));
        assert_eq!(wanted(&[endpoint]), (true, true, true));
        assert_eq!(wanted(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), (false, false, false));
        assert_eq!(wanted(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x")]), (true, false, false));
        assert_eq!(wanted(&[endpoint, ("OTEL_METRICS_EXPORTER", "none")]), (true, false, true));
        assert_eq!(wanted(&[endpoint, ("OTEL_METRICS_EXPORTER", "prometheus")]), (true, false, true));
        assert_eq!(wanted(&[endpoint, ("OTEL_LOGS_EXPORTER", "none")]), (true, true, false));
        assert_eq!(wanted(&[("OTEL_TRACES_EXPORTER", "otlp")]), (true, false, false));
        assert_eq!(wanted(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), (false, false, false));
    }
}
