//! The log, each line with the trace that it belongs to.

use llm_layers::config::Log;
use opentelemetry::{Context, trace::TraceContextExt};
use std::{fmt, io::BufWriter, sync::OnceLock};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format, JsonFields, Writer},
    },
    registry::LookupSpan,
};

/// How many lines wait for whoever reads the log: a megabyte or two.
const LINES: usize = 4_096;

static LOST: OnceLock<ErrorCounter> = OnceLock::new();

/// How many lines were left out, because nobody read those before them.
pub(crate) fn lost() -> u64 {
    LOST.get().map_or(0, |lost| lost.dropped_lines() as u64)
}

/// Writes the log to standard error, on a thread of its own: whoever is slow to read it holds no request back. What he does
/// not read in time is left out. The last lines are written when the guard is dropped.
pub(crate) fn init(log: Log) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES)
        // Written as soon as no further line waits.
        .finish(BufWriter::new(std::io::stderr()));
    LOST.get_or_init(|| writer.error_counter());
    let json = log == Log::Json;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,opentelemetry=warn,opentelemetry_sdk=warn"));
    // What it says may quote what a provider said.
    let filter = filter.add_directive("genai=off".parse().expect("a directive"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    if json {
        let lines = Format::default().json().flatten_event(true);
        builder.fmt_fields(JsonFields::new()).event_format(Traced { lines, json }).init();
    } else {
        let lines = Format::default().with_ansi(false);
        builder.event_format(Traced { lines, json }).init();
    }
    guard
}

/// Adds `trace_id` and `span_id` of what is current.
struct Traced<F> {
    lines: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let current = Context::map_current(|current| {
            let span = current.span().span_context().clone();
            span.is_valid().then_some(span)
        });
        let Some(span) = current else { return self.lines.format_event(context, writer, event) };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let (trace, span) = (span.trace_id(), span.span_id());
        match (self.json, line.strip_prefix('{')) {
            (true, Some(rest)) => write!(writer, r#"{{"trace_id":"{trace}","span_id":"{span}",{rest}"#),
            _ => writeln!(writer, "{} trace_id={trace} span_id={span}", line.trim_end()),
        }
    }
}
