//! What is told of a call beside its span, as events of the logs API.

use opentelemetry::{
    KeyValue, Value,
    logs::{AnyValue, LogRecord, Logger, Severity},
    trace::SpanContext,
};
use std::time::SystemTime;

/// A logger of whatever type.
pub(super) trait Emit: Send + Sync {
    fn emit(&self, event: Event);
}

pub(super) struct Events<L>(pub(super) L);

pub(super) struct Event {
    pub(super) name: &'static str,
    pub(super) severity: Severity,
    pub(super) at: SystemTime,
    /// Of the span that it belongs to.
    pub(super) span: Option<SpanContext>,
    pub(super) attributes: Vec<KeyValue>,
}

impl<L: Logger + Send + Sync> Emit for Events<L> {
    fn emit(&self, event: Event) {
        let Event { name, severity, at, span, attributes } = event;
        if !self.0.event_enabled(severity, TARGET, Some(name)) {
            return;
        }
        let mut record = self.0.create_log_record();
        record.set_event_name(name);
        record.set_target(TARGET);
        record.set_timestamp(at);
        record.set_observed_timestamp(at);
        record.set_severity_number(severity);
        record.set_severity_text(severity.name());
        if let Some(span) = span {
            record.set_trace_context(span.trace_id(), span.span_id(), Some(span.trace_flags()));
        }
        record.add_attributes(attributes.into_iter().map(|KeyValue { key, value, .. }| (key, any(value))));
        self.0.emit(record);
    }
}

const TARGET: &str = "llm_layers::gen_ai";

fn any(value: Value) -> AnyValue {
    match value {
        Value::Bool(flag) => flag.into(),
        Value::I64(number) => number.into(),
        Value::F64(number) => number.into(),
        Value::String(text) => text.into(),
        Value::Array(opentelemetry::Array::String(texts)) => texts.into_iter().collect(),
        other => other.to_string().into(),
    }
}
