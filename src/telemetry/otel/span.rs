use super::{
    super::{
        observer::{CallEnd, CallSpan, CallStart, Role, Scope},
        semconv::{self, Value},
    },
    OtelObserver,
    events::{Emit, Event},
    series::{Kind, Series},
};
use crate::{
    ErrorClass, StreamChunk,
    body::Arrival,
    clock::{Clock, SystemClock},
    decision::DecisionRecord,
};
use opentelemetry::{
    Array, Context, KeyValue, StringValue,
    logs::Severity,
    trace::{SpanBuilder, SpanKind, Status, TraceContextExt},
};
use std::{
    fmt,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// One call, for OpenTelemetry.
pub struct OtelSpan {
    /// `None` where nobody traces.
    context: Option<Context>,
    is_recording: bool,
    started_at: Option<SystemTime>,
    observer: OtelObserver,
    role: Role,
    kind: Kind,
    /// All that there is to say of the request, where an event is to tell it.
    asked: Option<Vec<KeyValue>>,
    /// From the first chunk of a stream on.
    stream: Option<Stream>,
}

struct Stream {
    series: Arc<Series>,
    last: Instant,
}

/// An OpenTelemetry context that is attached while the service below runs.
#[derive(Debug, Clone)]
pub struct OtelScope(Context);

impl OtelSpan {
    pub(super) fn start(observer: &OtelObserver, start: &CallStart<'_>, parent: Option<&OtelScope>) -> Self {
        let inner = &observer.0;
        let (mut started_at, mut has_told) = (None, false);
        let begun = match inner.never_traces() {
            true => None,
            false => {
                let current = Context::current();
                let parent = match parent {
                    Some(OtelScope(parent)) if !current.has_active_span() => parent,
                    _ => &current,
                };
                // Of a span, or at least of its request: its list need not grow.
                has_told = inner.will_sample(parent);
                let mut attributes = Vec::with_capacity(if has_told { 20 } else { 8 });
                let mut set = |name, value: Value<'_>| attributes.push(attribute(name, value));
                start.identity(&mut set);
                if has_told {
                    start.attributes(inner.semconv, &mut set);
                }
                started_at = Some(SystemClock.now());
                let mut builder = SpanBuilder::from_name(start.name().into_owned());
                builder.span_kind = Some(match start.role {
                    Role::Client if !start.is_in_process() => SpanKind::Client,
                    _ => SpanKind::Internal,
                });
                builder.start_time = started_at;
                builder.attributes = Some(attributes);
                inner.begin(parent, builder)
            }
        };
        let is_recording = begun.as_ref().is_some_and(|begun| begun.is_recording);
        let context = begun.map(|begun| begun.context);
        if let (true, false, Some(context)) = (is_recording, has_told, &context) {
            let mut attributes = Vec::with_capacity(8);
            start.attributes(inner.semconv, &mut |name, value| attributes.push(attribute(name, value)));
            context.span().set_attributes(attributes);
        }
        let asked = (start.on_event && inner.events.is_some()).then(|| {
            let mut attributes = Vec::with_capacity(32);
            let mut set = |name, value: Value<'_>| attributes.push(attribute(name, value));
            start.identity(&mut set);
            start.attributes(inner.semconv, &mut set);
            attributes
        });
        Self {
            context,
            is_recording,
            started_at,
            observer: observer.clone(),
            role: start.role,
            kind: Kind::of(start),
            asked,
            stream: None,
        }
    }
}

impl OtelSpan {
    /// Tells of a failure, and of what was said.
    fn tell(&self, asked: Option<Vec<KeyValue>>, events: &dyn Emit, end: &CallEnd<'_>) {
        let error_type = end.error_type().filter(|_| end.error().is_some());
        if error_type.is_none() && end.event.is_none() {
            return;
        }
        let at = SystemClock.now();
        let span = self.context.as_ref().map(|context| context.span().span_context().clone());
        if let (Some(content), Some(mut attributes)) = (end.event, asked) {
            let mut set = |name, value: Value<'_>| attributes.push(attribute(name, value));
            CallEnd { content: Some(content), ..*end }.attributes(self.observer.0.semconv, &mut set);
            let name = "gen_ai.client.inference.operation.details";
            events.emit(Event { name, severity: Severity::Info, at, span: span.clone(), attributes });
        }
        if let Some(error_type) = error_type {
            let mut attributes = vec![
                attribute("gen_ai.operation.name", Value::Static(self.kind.operation())),
                attribute("gen_ai.provider.name", Value::Shared(self.kind.provider())),
                attribute("exception.type", Value::Str(error_type)),
            ];
            if !self.kind.model().is_empty() {
                attributes.push(attribute("gen_ai.request.model", Value::Str(self.kind.model())));
            }
            if let Some((host, port)) = self.kind.address() {
                attributes.push(attribute("server.address", Value::Shared(host)));
                attributes.push(attribute("server.port", Value::Int((*port).into())));
            }
            if let Some(message) = end.description() {
                attributes.push(attribute("exception.message", Value::Static(message)));
            }
            let name = "gen_ai.client.operation.exception";
            events.emit(Event { name, severity: Severity::Warn, at, span, attributes });
        }
    }
}

impl CallSpan for OtelSpan {
    type Scope = OtelScope;

    fn scope(&self) -> Option<OtelScope> {
        self.context.clone().map(OtelScope)
    }

    fn is_recording(&self) -> bool {
        self.is_recording
    }

    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        // Only what is said is a chunk: not the terminal one, nor the one with the usage.
        if self.role == Role::Gateway || chunk.facts().choices == 0 {
            return;
        }
        let now = arrival.at();
        let observer = &self.observer.0;
        match &mut self.stream {
            Some(Stream { series, last }) => {
                observer.instruments.output_chunk(series, now.saturating_duration_since(*last));
                *last = now;
            }
            None => {
                let series = observer.series.of(&self.kind, chunk.model().as_deref(), true);
                self.stream = Some(Stream { series, last: now });
            }
        }
    }

    fn end(mut self, end: &CallEnd<'_>) {
        let asked = self.asked.take();
        let observer = &self.observer.0;
        match self.role {
            Role::Client => {
                let is_callers_fault =
                    end.error().and_then(crate::Error::class).is_some_and(ErrorClass::is_callers_fault);
                let answered = end.response_model();
                let series = observer.series.of(&self.kind, answered.as_deref(), !is_callers_fault);
                observer.instruments.client(end, &series);
            }
            Role::Gateway => observer.instruments.gateway(end),
        }
        if let (Role::Client, Some(events)) = (self.role, &observer.events) {
            self.tell(asked, &**events, end);
        }
        let Some(context) = self.context.filter(|_| self.is_recording) else { return };
        let span = context.span();
        let mut attributes = Vec::with_capacity(8);
        end.attributes(observer.semconv, &mut |name, value| attributes.push(attribute(name, value)));
        span.set_attributes(attributes);
        if end.error_type().is_some() {
            span.set_status(Status::error(end.description().unwrap_or_default()));
        }
        if let Some(record) = end.record {
            decided(record, &mut |name, attributes| span.add_event(name, attributes));
        }
        // By the same clock as the metrics.
        match self.started_at {
            Some(started_at) => span.end_with_timestamp(started_at + end.duration),
            None => span.end(),
        }
    }
}

fn attribute(name: &'static str, value: Value<'_>) -> KeyValue {
    let value = match value {
        Value::Str(text) => text.to_owned().into(),
        Value::Shared(text) => StringValue::from(Arc::clone(text)).into(),
        Value::Static(text) => text.into(),
        Value::Int(number) => number.into(),
        Value::Double(number) => number.into(),
        Value::Bool(flag) => flag.into(),
        Value::Strs(texts) => {
            opentelemetry::Value::Array(Array::String(texts.iter().map(|text| known(text)).collect()))
        }
    };
    KeyValue::new(name, value)
}

/// Most lists are of one finish reason, and that is one of a few.
fn known(text: &str) -> StringValue {
    match text {
        "stop" => "stop".into(),
        "length" => "length".into(),
        "tool_calls" => "tool_calls".into(),
        "error" => "error".into(),
        other => other.to_owned().into(),
    }
}

/// What was decided on the way, each an event.
fn decided(record: &DecisionRecord, event: &mut dyn FnMut(&'static str, Vec<KeyValue>)) {
    let text = |name: &'static str, text: &str| KeyValue::new(name, text.to_owned());
    let number =
        |name: &'static str, count: u64| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX));
    for alias in &record.aliases {
        event("llm_layers.alias", vec![text("llm_layers.model", alias)]);
    }
    for access in &record.access {
        let mut all = vec![
            text("llm_layers.model", &access.model),
            KeyValue::new("llm_layers.access.allowed", access.allowed),
        ];
        all.extend(access.department_id.as_deref().map(|id| text("llm_layers.department.id", id)));
        event("llm_layers.access", all);
    }
    if let Some(result) = semconv::cache(record.cache.status) {
        let why = (!record.cache.why.is_empty()).then_some(record.cache.why);
        let result = KeyValue::new("llm_layers.cache.result", result);
        let why = why.map(|why| KeyValue::new("llm_layers.cache.why", why));
        event("llm_layers.cache", [result].into_iter().chain(why).collect());
    }
    for quota in &record.quotas {
        event(
            "llm_layers.quota",
            vec![
                text("llm_layers.department.id", &quota.department_id),
                KeyValue::new("llm_layers.quota.kind", semconv::quota(quota.quota)),
                KeyValue::new("llm_layers.quota.period", semconv::period(quota.period)),
                number("llm_layers.quota.limit", quota.limit),
                number("llm_layers.quota.current", quota.current),
                number("llm_layers.quota.reserved", quota.reserved),
                KeyValue::new("llm_layers.quota.allowed", quota.allowed),
            ],
        );
    }
    for attempt in &record.attempts {
        let mut all = vec![
            text("llm_layers.model", &attempt.model),
            KeyValue::new("llm_layers.wait", attempt.wait.as_secs_f64()),
        ];
        all.extend(attempt.failure.map(|failure| KeyValue::new("llm_layers.failure", failure)));
        let latency = attempt.latency.map(|latency| latency.as_secs_f64());
        all.extend(latency.map(|seconds| KeyValue::new("llm_layers.latency", seconds)));
        event("llm_layers.attempt", all);
    }
}

impl Scope for OtelScope {
    fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        let _guard = self.0.clone().attach();
        f()
    }
}

impl fmt::Debug for OtelSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelSpan").field("is_recording", &self.is_recording()).finish_non_exhaustive()
    }
}
