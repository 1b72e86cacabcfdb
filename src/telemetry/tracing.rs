use super::{
    observer::{CallEnd, CallSpan, CallStart, Observer, Role, Scope, Target},
    semconv::{self, SemConv, Value},
};
use crate::decision::DecisionRecord;
use std::sync::Arc;
use tracing::{Level, Span, field::Empty};

/// Where spans and events come from, for filters.
pub(super) const TARGET: &str = "llm_layers::gen_ai";

/// Tells `tracing` of calls: a span each, and a warning for each that fails.
///
/// Target `llm_layers::gen_ai`, level INFO. With tracing-opentelemetry (0.32 or newer) the spans become those of the
/// conventions, but for `gen_ai.response.finish_reasons` and other lists, which `tracing` cannot hold: they are JSON text.
/// Install either that and this observer, or [`OtelObserver`](super::OtelObserver), but not both with spans: each call would
/// be two. [`events_only`](Self::events_only) goes well with `OtelObserver`.
///
/// Costs nothing that could be measured while no subscriber wants its spans.
#[derive(Debug, Clone, Copy, Default)]
pub struct TracingObserver {
    semconv: SemConv,
    events_only: bool,
}

/// One call, for `tracing`.
#[derive(Debug)]
pub struct TracingSpan {
    span: Span,
    semconv: SemConv,
    role: Role,
    /// What an event tells of the request, where there is no span to tell it.
    asked: Option<Box<Asked>>,
}

#[derive(Debug)]
struct Asked {
    operation: &'static str,
    target: Arc<Target>,
    model: Box<str>,
}

/// A `tracing` span that is entered while the service below runs.
#[derive(Debug, Clone)]
pub struct TracingScope(Span);

impl TracingObserver {
    /// A span for each call.
    pub fn new() -> Self {
        Self::default()
    }

    /// No spans: a warning for each call that fails, and an event at level DEBUG for each that does not.
    pub const fn events_only() -> Self {
        Self { semconv: SemConv::V1_41, events_only: true }
    }

    /// Speaks this version of the conventions.
    #[must_use]
    pub const fn with_semconv(mut self, semconv: SemConv) -> Self {
        self.semconv = semconv;
        self
    }
}

/// All fields are declared here, for what is not is dropped in silence.
macro_rules! client_span {
    ($parent:expr, $name:expr, $kind:expr) => {
        tracing::info_span!(
            target: TARGET,
            parent: $parent,
            "gen_ai.client",
            otel.name = $name,
            otel.kind = $kind,
            otel.status_code = Empty,
            otel.status_description = Empty,
            gen_ai.operation.name = Empty,
            gen_ai.provider.name = Empty,
            gen_ai.request.model = Empty,
            server.address = Empty,
            server.port = Empty,
            gen_ai.request.stream = Empty,
            gen_ai.request.choice.count = Empty,
            gen_ai.request.seed = Empty,
            gen_ai.request.top_k = Empty,
            gen_ai.request.temperature = Empty,
            gen_ai.request.top_p = Empty,
            gen_ai.request.frequency_penalty = Empty,
            gen_ai.request.presence_penalty = Empty,
            gen_ai.request.max_tokens = Empty,
            gen_ai.request.stop_sequences = Empty,
            gen_ai.request.reasoning.level = Empty,
            gen_ai.conversation.id = Empty,
            gen_ai.response.id = Empty,
            gen_ai.response.model = Empty,
            gen_ai.response.finish_reasons = Empty,
            gen_ai.response.time_to_first_chunk = Empty,
            gen_ai.usage.input_tokens = Empty,
            gen_ai.usage.output_tokens = Empty,
            gen_ai.usage.cache_read.input_tokens = Empty,
            gen_ai.usage.cache_creation.input_tokens = Empty,
            gen_ai.usage.cache_write.input_tokens = Empty,
            gen_ai.usage.reasoning.output_tokens = Empty,
            gen_ai.usage.cost = Empty,
            gen_ai.system_instructions = Empty,
            gen_ai.input.messages = Empty,
            gen_ai.output.messages = Empty,
            gen_ai.tool.definitions = Empty,
            "gen_ai.output.type" = Empty,
            "error.type" = Empty,
            llm_layers.requested_model = Empty,
            llm_layers.fallback.attempt = Empty,
        )
    };
}

macro_rules! gateway_span {
    ($parent:expr, $name:expr) => {
        tracing::info_span!(
            target: TARGET,
            parent: $parent,
            "gateway",
            otel.name = $name,
            otel.kind = "internal",
            otel.status_code = Empty,
            otel.status_description = Empty,
            "error.type" = Empty,
            llm_layers.requested_model = Empty,
            llm_layers.model = Empty,
            llm_layers.attempts = Empty,
            llm_layers.cache.hit = Empty,
            llm_layers.department.id = Empty,
        )
    };
}

impl Observer for TracingObserver {
    type Span = TracingSpan;

    fn start(&self, start: &CallStart<'_>, parent: Option<&TracingScope>) -> Option<TracingSpan> {
        let span = if self.events_only || !tracing::enabled!(target: TARGET, Level::INFO) {
            Span::none()
        } else {
            self.span(start, parent)
        };
        let wants_events = || {
            start.role == Role::Client
                && tracing::enabled!(target: TARGET, Level::WARN)
                && (self.events_only || span.is_disabled())
        };
        let asked = wants_events().then(|| {
            Box::new(Asked {
                operation: start.operation(),
                target: Arc::clone(start.target),
                model: start.model().into(),
            })
        });
        if span.is_disabled() && asked.is_none() {
            return None;
        }
        Some(TracingSpan { span, semconv: self.semconv, role: start.role, asked })
    }
}

impl TracingObserver {
    fn span(self, start: &CallStart<'_>, parent: Option<&TracingScope>) -> Span {
        let name = start.name();
        let (name, current) = (name.as_ref(), Span::current());
        let parent = match parent {
            Some(TracingScope(parent)) if current.is_none() => parent.id(),
            _ => current.id(),
        };
        let span = match start.role {
            Role::Client if start.is_in_process() => client_span!(parent, name, "internal"),
            Role::Client => client_span!(parent, name, "client"),
            Role::Gateway => gateway_span!(parent, name),
        };
        if !span.is_disabled() {
            let mut set = |name: &'static str, value: Value<'_>| record(&span, name, value);
            start.identity(&mut set);
            start.attributes(self.semconv, &mut set);
        }
        span
    }
}

/// Unsigned numbers reach OpenTelemetry as text, so that all integers are `i64`.
fn record(span: &Span, name: &'static str, value: Value<'_>) {
    match value {
        Value::Str(text) | Value::Static(text) => span.record(name, text),
        Value::Shared(text) => span.record(name, &**text),
        Value::Int(number) => span.record(name, number),
        Value::Double(number) => span.record(name, number),
        Value::Bool(flag) => span.record(name, flag),
        Value::Strs(texts) => span.record(name, serde_json::to_string(texts).unwrap_or_default().as_str()),
    };
}

impl CallSpan for TracingSpan {
    type Scope = TracingScope;

    fn scope(&self) -> Option<TracingScope> {
        (!self.span.is_disabled()).then(|| TracingScope(self.span.clone()))
    }

    fn is_recording(&self) -> bool {
        !self.span.is_disabled()
    }

    fn end(self, end: &CallEnd<'_>) {
        if self.is_recording() {
            end.attributes(self.semconv, &mut |name, value| record(&self.span, name, value));
            if end.error_type().is_some() {
                self.span.record("otel.status_code", "ERROR");
                if let Some(description) = end.description() {
                    self.span.record("otel.status_description", description);
                }
            }
        }
        // Entered once more: a span ends for OpenTelemetry when it was last left.
        self.span.in_scope(|| {
            if let Some(record) = end.record {
                decided(record);
            }
            self.tell(end);
        });
    }
}

impl TracingSpan {
    fn tell(&self, end: &CallEnd<'_>) {
        if self.role == Role::Gateway {
            return;
        }
        if let Some(content) = end.event {
            let (mut instructions, mut input, mut output, mut tools) = (None, None, None, None);
            content.attributes(&mut |name, value| {
                let Value::Str(json) = value else { return };
                let place = match name {
                    "gen_ai.system_instructions" => &mut instructions,
                    "gen_ai.input.messages" => &mut input,
                    "gen_ai.output.messages" => &mut output,
                    _ => &mut tools,
                };
                *place = Some(json.to_owned());
            });
            tracing::event!(
                name: "gen_ai.client.inference.operation.details",
                target: TARGET,
                Level::INFO,
                gen_ai.operation.name = self.asked.as_ref().map(|asked| asked.operation),
                gen_ai.provider.name = self.asked.as_ref().map(|asked| &*asked.target.provider),
                gen_ai.request.model = self.asked.as_ref().map(|asked| &*asked.model),
                gen_ai.response.id = end.response_id().as_deref(),
                gen_ai.system_instructions = instructions,
                gen_ai.input.messages = input,
                gen_ai.output.messages = output,
                gen_ai.tool.definitions = tools,
                "error.type" = end.error_type(),
                "what was said in a call to a model"
            );
        }
        if let (Some(error_type), Some(error)) = (end.error_type(), end.error()) {
            let address = self.asked.as_ref().and_then(|asked| asked.target.address.as_ref());
            tracing::event!(
                name: "gen_ai.client.operation.exception",
                target: TARGET,
                Level::WARN,
                gen_ai.operation.name = self.asked.as_ref().map(|asked| asked.operation),
                gen_ai.provider.name = self.asked.as_ref().map(|asked| &*asked.target.provider),
                gen_ai.request.model = self.asked.as_ref().map(|asked| &*asked.model),
                server.address = address.map(|(host, _)| &**host),
                server.port = address.map(|(_, port)| i64::from(*port)),
                "exception.type" = error_type,
                "exception.message" = %error,
                "a call to a model failed"
            );
        } else if let Some(asked) = &self.asked {
            let usage = end.usage().unwrap_or_default();
            let count = |count: Option<u64>| count.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
            tracing::event!(
                name: "gen_ai.client.operation",
                target: TARGET,
                Level::DEBUG,
                gen_ai.operation.name = asked.operation,
                gen_ai.provider.name = &*asked.target.provider,
                gen_ai.request.model = &*asked.model,
                gen_ai.usage.input_tokens = count(usage.input_tokens),
                gen_ai.usage.output_tokens = count(usage.output_tokens),
                "error.type" = end.error_type(),
                duration_s = end.duration.as_secs_f64(),
                "a call to a model"
            );
        }
    }
}

/// As events of the span that is current; at level DEBUG, for there are several to each call. Their messages are their names,
/// for that is what tracing-opentelemetry calls them by.
fn decided(record: &DecisionRecord) {
    if !tracing::enabled!(target: TARGET, Level::DEBUG) {
        return;
    }
    for alias in &record.aliases {
        tracing::event!(name: "llm_layers.alias", target: TARGET, Level::DEBUG, llm_layers.model = &**alias, "llm_layers.alias");
    }
    for access in &record.access {
        tracing::event!(
            name: "llm_layers.access",
            target: TARGET,
            Level::DEBUG,
            llm_layers.model = &*access.model,
            llm_layers.department.id = access.department_id.as_deref(),
            llm_layers.access.allowed = access.allowed,
            "llm_layers.access"
        );
    }
    if let Some(result) = semconv::cache(record.cache.status) {
        tracing::event!(
            name: "llm_layers.cache",
            target: TARGET,
            Level::DEBUG,
            llm_layers.cache.result = result,
            llm_layers.cache.why = record.cache.why,
            "llm_layers.cache"
        );
    }
    for quota in &record.quotas {
        tracing::event!(
            name: "llm_layers.quota",
            target: TARGET,
            Level::DEBUG,
            llm_layers.department.id = &*quota.department_id,
            llm_layers.quota.kind = semconv::quota(quota.quota),
            llm_layers.quota.period = semconv::period(quota.period),
            llm_layers.quota.limit = number(quota.limit),
            llm_layers.quota.current = number(quota.current),
            llm_layers.quota.reserved = number(quota.reserved),
            llm_layers.quota.allowed = quota.allowed,
            "llm_layers.quota"
        );
    }
    for attempt in &record.attempts {
        tracing::event!(
            name: "llm_layers.attempt",
            target: TARGET,
            Level::DEBUG,
            llm_layers.model = &*attempt.model,
            llm_layers.failure = attempt.failure,
            llm_layers.wait_s = attempt.wait.as_secs_f64(),
            llm_layers.latency_s = attempt.latency.map(|latency| latency.as_secs_f64()),
            "llm_layers.attempt"
        );
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Scope for TracingScope {
    fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        self.0.in_scope(f)
    }
}
