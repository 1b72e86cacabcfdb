//! What a backend has seen, in one form for both.

use llm_layers::telemetry::{Observer, OtelObserver, SemConv, TracingObserver};
use opentelemetry::{
    Array, Value,
    logs::{AnyValue, LoggerProvider, Severity},
    metrics::MeterProvider,
    trace::{SpanKind, Status, Tracer, TracerProvider},
};
use opentelemetry_sdk::{
    logs::{InMemoryLogExporter, SdkLoggerProvider},
    metrics::{
        InMemoryMetricExporter, PeriodicReader, SdkMeterProvider,
        data::{AggregatedMetrics, MetricData},
    },
    trace::{InMemorySpanExporter, SdkTracerProvider, SpanData},
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span,
};
use tracing_subscriber::{Layer, Registry, layer::Context, layer::SubscriberExt, registry::LookupSpan};

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Attr {
    Str(String),
    Int(i64),
    Double(f64),
    Bool(bool),
    Strs(Vec<String>),
}

#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) id: u64,
    pub(crate) parent: Option<u64>,
    /// The description of a status that is an error.
    pub(crate) error: Option<String>,
    pub(crate) attributes: BTreeMap<String, Attr>,
    pub(crate) events: Vec<(String, BTreeMap<String, Attr>)>,
    pub(crate) duration: Option<Duration>,
}

impl Seen {
    pub(crate) fn get(&self, name: &str) -> Option<&Attr> {
        self.attributes.get(name)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Attr::Str(text) => Some(text),
            other => panic!("{name} is {other:?}"),
        }
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        match self.get(name)? {
            Attr::Int(number) => Some(*number),
            other => panic!("{name} is {other:?}"),
        }
    }

    /// A list, or its JSON text where the backend knows no lists.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        match self.get(name) {
            None => Vec::new(),
            Some(Attr::Strs(texts)) => texts.clone(),
            Some(Attr::Str(json)) => serde_json::from_str(json).unwrap(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

/// A backend that keeps what it is told.
pub(crate) trait Backend {
    type Observer: Observer;
    const HAS_LISTS: bool;

    fn new(semconv: SemConv) -> Self;
    fn observer(&self) -> Self::Observer;
    /// Spans that have ended, in the order of their ends.
    fn spans(&self) -> Vec<Seen>;
    /// Everything, as text.
    fn everything(&self) -> String;
    /// The id of the span that is current here.
    fn current() -> Option<u64>;
}

// ===== OpenTelemetry =====

pub(crate) struct Otel {
    semconv: SemConv,
    exporter: InMemorySpanExporter,
    tracers: SdkTracerProvider,
    metrics: InMemoryMetricExporter,
    meters: SdkMeterProvider,
    logs: InMemoryLogExporter,
    loggers: SdkLoggerProvider,
}

impl Otel {
    /// As the observer, with spans by another tracer.
    pub(crate) fn observer_by<T>(&self, tracer: T) -> OtelObserver
    where
        T: Tracer<Span: Send + Sync + 'static> + Send + Sync + 'static,
    {
        OtelObserver::new(tracer, self.meter())
            .with_semconv(self.semconv)
            .with_logger(self.loggers.logger("test"))
    }

    /// The events: name, severity, span and attributes of each.
    pub(crate) fn events(&self) -> Vec<(String, Severity, u64, BTreeMap<String, String>)> {
        let logs = self.logs.get_emitted_logs().unwrap();
        let text = |value: &AnyValue| match value {
            AnyValue::String(text) => text.to_string(),
            other => panic!("no list holds {other:?}"),
        };
        let events = logs.iter().map(|log| {
            let record = &log.record;
            let span = record.trace_context().map_or(0, |context| id(context.span_id));
            let attributes = record.attributes_iter().map(|(key, value)| {
                let value = match value {
                    AnyValue::String(text) => text.to_string(),
                    AnyValue::ListAny(all) => format!("{:?}", all.iter().map(text).collect::<Vec<_>>()),
                    other => format!("{other:?}"),
                };
                (key.to_string(), value)
            });
            let name = record.event_name().unwrap_or_default().to_owned();
            (name, record.severity_number().unwrap(), span, attributes.collect())
        });
        events.collect()
    }
}

impl Backend for Otel {
    type Observer = OtelObserver;
    const HAS_LISTS: bool = true;

    fn new(semconv: SemConv) -> Self {
        let exporter = InMemorySpanExporter::default();
        let tracers = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let metrics = InMemoryMetricExporter::default();
        let reader =
            PeriodicReader::builder(metrics.clone()).with_interval(Duration::from_secs(3600)).build();
        let meters = SdkMeterProvider::builder().with_reader(reader).build();
        let logs = InMemoryLogExporter::default();
        let loggers = SdkLoggerProvider::builder().with_simple_exporter(logs.clone()).build();
        Self { semconv, exporter, tracers, metrics, meters, logs, loggers }
    }

    fn observer(&self) -> OtelObserver {
        self.observer_by(self.tracers.tracer("test"))
    }

    fn spans(&self) -> Vec<Seen> {
        self.exporter.get_finished_spans().unwrap().iter().map(seen).collect()
    }

    fn everything(&self) -> String {
        let spans = self.exporter.get_finished_spans().unwrap();
        self.meters.force_flush().unwrap();
        let logs = self.logs.get_emitted_logs().unwrap();
        format!("{spans:?} {:?} {logs:?}", self.metrics.get_finished_metrics().unwrap())
    }

    fn current() -> Option<u64> {
        use opentelemetry::trace::TraceContextExt;
        let context = opentelemetry::Context::current();
        context.has_active_span().then(|| id(context.span().span_context().span_id()))
    }
}

fn id(id: opentelemetry::trace::SpanId) -> u64 {
    u64::from_be_bytes(id.to_bytes())
}

fn seen(span: &SpanData) -> Seen {
    let all = |attributes: &[opentelemetry::KeyValue]| -> BTreeMap<String, Attr> {
        let named: BTreeMap<_, _> =
            attributes.iter().map(|kv| (kv.key.to_string(), attr(&kv.value))).collect();
        assert_eq!(named.len(), attributes.len(), "an attribute is there twice: {attributes:?}");
        named
    };
    let parent = id(span.parent_span_id);
    Seen {
        name: span.name.to_string(),
        kind: match span.span_kind {
            SpanKind::Client => "client",
            SpanKind::Internal => "internal",
            _ => "another",
        },
        id: id(span.span_context.span_id()),
        parent: (parent != 0).then_some(parent),
        error: match &span.status {
            Status::Error { description } => Some(description.to_string()),
            Status::Unset => None,
            Status::Ok => panic!("the status of what went well stays unset"),
        },
        attributes: all(&span.attributes),
        events: span.events.iter().map(|event| (event.name.to_string(), all(&event.attributes))).collect(),
        duration: Some(span.end_time.duration_since(span.start_time).unwrap()),
    }
}

fn attr(value: &Value) -> Attr {
    match value {
        Value::Bool(flag) => Attr::Bool(*flag),
        Value::I64(number) => Attr::Int(*number),
        Value::F64(number) => Attr::Double(*number),
        Value::String(text) => Attr::Str(text.to_string()),
        Value::Array(Array::String(texts)) => Attr::Strs(texts.iter().map(ToString::to_string).collect()),
        other => panic!("no attribute is {other:?}"),
    }
}

/// One series of a metric.
#[derive(Debug, Clone)]
pub(crate) struct Point {
    pub(crate) attributes: BTreeMap<String, Attr>,
    pub(crate) count: u64,
    pub(crate) sum: f64,
    pub(crate) bounds: Vec<f64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Metric {
    pub(crate) unit: String,
    pub(crate) points: Vec<Point>,
}

impl Otel {
    pub(crate) fn meter(&self) -> opentelemetry::metrics::Meter {
        self.meters.meter("test")
    }

    pub(crate) fn metrics(&self) -> BTreeMap<String, Metric> {
        self.meters.force_flush().unwrap();
        let all = self.metrics.get_finished_metrics().unwrap();
        let last = all.last().expect("metrics were exported");
        let mut found = BTreeMap::new();
        for metric in last.scope_metrics().flat_map(|scope| scope.metrics()) {
            let points = match metric.data() {
                AggregatedMetrics::F64(data) => points(data, |n| n),
                AggregatedMetrics::U64(data) => points(data, |n| n as f64),
                AggregatedMetrics::I64(data) => points(data, |n| n as f64),
            };
            found.insert(metric.name().to_owned(), Metric { unit: metric.unit().to_owned(), points });
        }
        found
    }
}

fn points<T: Copy>(data: &MetricData<T>, number: impl Fn(T) -> f64) -> Vec<Point> {
    fn all<'a>(attributes: impl Iterator<Item = &'a opentelemetry::KeyValue>) -> BTreeMap<String, Attr> {
        attributes.map(|kv| (kv.key.to_string(), attr(&kv.value))).collect()
    }
    match data {
        MetricData::Histogram(histogram) => histogram
            .data_points()
            .map(|point| Point {
                attributes: all(point.attributes()),
                count: point.count(),
                sum: number(point.sum()),
                bounds: point.bounds().collect(),
            })
            .collect(),
        MetricData::Sum(sum) => sum
            .data_points()
            .map(|point| Point {
                attributes: all(point.attributes()),
                count: 1,
                sum: number(point.value()),
                bounds: Vec::new(),
            })
            .collect(),
        MetricData::Gauge(gauge) => gauge
            .data_points()
            .map(|point| Point {
                attributes: all(point.attributes()),
                count: 1,
                sum: number(point.value()),
                bounds: Vec::new(),
            })
            .collect(),
        MetricData::ExponentialHistogram(_) => panic!("none is exponential"),
    }
}

// ===== tracing =====

/// A subscriber that keeps every span that is closed, and every event.
pub(crate) struct Tracing {
    semconv: SemConv,
    kept: Kept,
    _default: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    open: HashMap<u64, (tokio::time::Instant, Seen)>,
    closed: Vec<Seen>,
    events: String,
}

impl Backend for Tracing {
    type Observer = TracingObserver;
    const HAS_LISTS: bool = false;

    fn new(semconv: SemConv) -> Self {
        let kept = Kept::default();
        let subscriber = Registry::default().with(kept.clone());
        Self { semconv, kept, _default: tracing::subscriber::set_default(subscriber) }
    }

    fn observer(&self) -> TracingObserver {
        TracingObserver::new().with_semconv(self.semconv)
    }

    fn spans(&self) -> Vec<Seen> {
        self.kept.0.lock().unwrap().closed.clone()
    }

    fn everything(&self) -> String {
        let log = self.kept.0.lock().unwrap();
        assert!(log.open.is_empty(), "spans are open");
        format!("{:?} {}", log.closed, log.events)
    }

    fn current() -> Option<u64> {
        tracing::Span::current().id().map(|id| id.into_u64())
    }
}

impl Tracing {
    pub(crate) fn events(&self) -> String {
        self.kept.0.lock().unwrap().events.clone()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Kept {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let mut seen = Seen {
            name: attributes.metadata().name().to_owned(),
            kind: "internal",
            id: id.into_u64(),
            parent: span.parent().map(|parent| parent.id().into_u64()),
            error: None,
            attributes: BTreeMap::new(),
            events: Vec::new(),
            duration: None,
        };
        attributes.record(&mut Visitor(&mut seen.attributes));
        self.0.lock().unwrap().open.insert(id.into_u64(), (tokio::time::Instant::now(), seen));
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        let mut log = self.0.lock().unwrap();
        values.record(&mut Visitor(&mut log.open.get_mut(&id.into_u64()).unwrap().1.attributes));
    }

    fn on_event(&self, event: &tracing::Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("llm_layers") {
            return;
        }
        let mut fields = BTreeMap::new();
        event.record(&mut Visitor(&mut fields));
        let mut log = self.0.lock().unwrap();
        let metadata = event.metadata();
        log.events += &format!("{} {} {fields:?}\n", metadata.level(), metadata.name());
        let span = context.event_span(event).map(|span| span.id().into_u64());
        if let Some((_, seen)) = span.and_then(|id| log.open.get_mut(&id)) {
            seen.events.push((metadata.name().to_owned(), fields));
        }
    }

    /// For OpenTelemetry a span ends when it was last left.
    fn on_exit(&self, id: &span::Id, _: Context<'_, S>) {
        if let Some((began, seen)) = self.0.lock().unwrap().open.get_mut(&id.into_u64()) {
            seen.duration = Some(began.elapsed());
        }
    }

    fn on_close(&self, id: span::Id, _: Context<'_, S>) {
        let mut log = self.0.lock().unwrap();
        let (_, mut seen) = log.open.remove(&id.into_u64()).unwrap();
        // As tracing-opentelemetry reads them.
        let mut take = |name: &str| match seen.attributes.remove(name) {
            Some(Attr::Str(text)) => Some(text),
            Some(other) => panic!("{name} is {other:?}"),
            None => None,
        };
        let (name, kind) = (take("otel.name"), take("otel.kind"));
        let (status, description) = (take("otel.status_code"), take("otel.status_description"));
        seen.name = name.unwrap_or(seen.name);
        seen.kind = if kind.as_deref() == Some("client") { "client" } else { "internal" };
        seen.error = status.map(|status| {
            assert_eq!(status, "ERROR");
            description.unwrap_or_default()
        });
        log.closed.push(seen);
    }
}

struct Visitor<'a>(&'a mut BTreeMap<String, Attr>);

impl Visit for Visitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().to_owned(), Attr::Double(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), Attr::Int(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        panic!("{} = {value} would reach OpenTelemetry as a text", field.name());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), Attr::Bool(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), Attr::Str(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let known = ["message", "exception.message"];
        assert!(known.contains(&field.name()), "{} has no type", field.name());
        self.0.insert(field.name().to_owned(), Attr::Str(format!("{value:?}")));
    }
}
