//! OpenTelemetry by its API alone: without an SDK nothing is exported, and it costs little.
//!
//! ```
//! use llm_layers::{
//!     ChatBody, LlmRequest, ServiceBuilderExt as _, provider::Echo,
//!     telemetry::{OtelObserver, TelemetryLayer},
//! };
//! use opentelemetry::global;
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::Error> {
//! // Of whatever SDK your program has set up.
//! let observer = OtelObserver::new(global::tracer("my-program"), global::meter("my-program"));
//! let stack = ServiceBuilder::new().telemetry(TelemetryLayer::gateway(observer)).service(Echo::new());
//! let request = LlmRequest::new("any", ChatBody::builder().user("Hello").build()?);
//! assert_eq!(stack.oneshot(request).await?.text().await?, "Hello");
//! # Ok(())
//! # }
//! ```

mod bound;
mod events;
mod labels;
mod metrics;
mod propagation;
mod series;
mod span;

#[cfg(feature = "outbox")]
pub use self::metrics::observe_outbox;
pub use self::{
    metrics::{observe_queue, observe_quota},
    propagation::{extract, inject},
    span::{OtelScope, OtelSpan},
};

use self::{
    bound::Binding,
    events::{Emit, Events},
    labels::Labels,
    metrics::Instruments,
    series::AllSeries,
};
use super::{
    observer::{CallStart, Observer},
    semconv::SemConv,
};
use opentelemetry::{
    Context, InstrumentationScope, global,
    logs::Logger,
    metrics::Meter,
    trace::{Span, SpanBuilder, TraceContextExt, Tracer},
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Tells OpenTelemetry of calls: a span each, and the conventions' metrics.
///
/// Works with any SDK behind `opentelemetry` 0.33. The instruments are made once, here; make one observer and clone it.
#[derive(Clone)]
pub struct OtelObserver(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    tracer: Arc<dyn Begin>,
    /// There is no SDK: a span of the first call without a parent was none. A tracer does not change.
    never_traces: Arc<AtomicBool>,
    /// The last span was recorded.
    samples: Arc<AtomicBool>,
    meter: Meter,
    instruments: Arc<Instruments>,
    series: Arc<AllSeries>,
    max_models: usize,
    events: Option<Arc<dyn Emit>>,
    semconv: SemConv,
    binding: Binding,
}

impl OtelObserver {
    /// Spans by `tracer`, metrics by `meter`.
    pub fn new<T>(tracer: T, meter: Meter) -> Self
    where
        T: Tracer + Send + Sync + 'static,
        T::Span: Send + Sync + 'static,
    {
        let (semconv, binding) = (SemConv::default(), Binding::default());
        let instruments = Arc::new(Instruments::new(&meter, semconv, binding));
        Self(Arc::new(Inner {
            tracer: Arc::new(tracer),
            never_traces: Arc::default(),
            samples: Arc::default(),
            meter,
            instruments,
            series: Arc::new(AllSeries::new(Labels::new(MAX_MODELS), semconv, binding)),
            max_models: MAX_MODELS,
            events: None,
            semconv,
            binding,
        }))
    }

    /// By the providers that the program has made global **before** this is called.
    pub fn global() -> Self {
        let scope = scope();
        Self::new(global::tracer_with_scope(scope.clone()), global::meter_with_scope(scope))
    }

    /// Speaks this version of the conventions.
    #[must_use]
    pub fn with_semconv(mut self, semconv: SemConv) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.semconv = semconv;
        inner.remake();
        self
    }

    /// Has attributes of metrics looked up once for all calls of a kind, which makes a record some ten times cheaper. Only for an SDK with its
    /// feature `experimental_metrics_bound_instruments`: one without loses most of what is measured.
    #[cfg(feature = "otel-bound")]
    #[must_use]
    pub fn with_bound_instruments(mut self) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.binding.is_bound = true;
        inner.remake();
        self
    }

    /// Tells of failures by events of this logger, `gen_ai.client.operation.exception`, and of what was said where
    /// [`CaptureContent::Event`](super::CaptureContent::Event) asks for it. Each belongs to the span of its call.
    #[must_use]
    pub fn with_logger(mut self, logger: impl Logger + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).events = Some(Arc::new(Events(logger)));
        self
    }

    /// How many names of models metrics tell apart, those asked for and those that answered together; 256 unless
    /// told. All others, and those of calls that failed by the caller's fault, are `_OTHER`: whoever may ask for any
    /// name cannot make any number of series.
    #[must_use]
    pub fn with_max_models(mut self, models: usize) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.max_models = models;
        inner.remake();
        self
    }
}

impl Inner {
    /// As what was set has it.
    fn remake(&mut self) {
        let Self { semconv, binding, max_models, .. } = *self;
        self.instruments = Arc::new(Instruments::new(&self.meter, semconv, binding));
        self.series = Arc::new(AllSeries::new(Labels::new(max_models), semconv, binding));
    }

    fn never_traces(&self) -> bool {
        self.never_traces.load(Ordering::Relaxed)
    }

    /// `None` if nobody traces, so that there is nothing to make current.
    fn begin(&self, parent: &Context, span: SpanBuilder) -> Option<Begun> {
        let begun = self.tracer.begin(span, parent);
        if begun.is_none() && !parent.has_active_span() && !parent.is_telemetry_suppressed() {
            self.never_traces.store(true, Ordering::Relaxed);
        }
        let samples = begun.as_ref().is_some_and(|begun| begun.is_recording);
        if samples != self.samples.load(Ordering::Relaxed) {
            self.samples.store(samples, Ordering::Relaxed);
        }
        begun
    }

    /// Whether a span below `parent` will most likely be recorded, as most samplers decide: as its parent, or as the last
    /// one. It is a guess: what is known of the request is then told together with the span's name, which takes less time.
    fn will_sample(&self, parent: &Context) -> bool {
        let parent = parent.span();
        let parent = parent.span_context();
        if parent.is_valid() { parent.is_sampled() } else { self.samples.load(Ordering::Relaxed) }
    }
}

/// A context with a new span.
struct Begun {
    context: Context,
    is_recording: bool,
}

/// A tracer of whatever type.
trait Begin: Send + Sync {
    /// `None` if there is nothing in the new context that was not in its parent: no SDK.
    fn begin(&self, span: SpanBuilder, parent: &Context) -> Option<Begun>;
}

impl<T> Begin for T
where
    T: Tracer + Send + Sync,
    T::Span: Send + Sync + 'static,
{
    fn begin(&self, span: SpanBuilder, parent: &Context) -> Option<Begun> {
        let span = self.build_with_context(span, parent);
        // Asked before it is shared, and needs a lock.
        let is_recording = span.is_recording();
        let is_new = is_recording || {
            let context = span.span_context();
            context.is_valid() && context != parent.span().span_context()
        };
        is_new.then(|| Begun { context: parent.with_span(span), is_recording })
    }
}

/// What to name a tracer and a meter of this crate.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("llm-layers").with_version(env!("CARGO_PKG_VERSION")).build()
}

const MAX_MODELS: usize = 256;

impl Observer for OtelObserver {
    type Span = OtelSpan;

    fn start(&self, start: &CallStart<'_>, parent: Option<&OtelScope>) -> Option<OtelSpan> {
        Some(OtelSpan::start(self, start, parent))
    }
}

impl fmt::Debug for OtelObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelObserver").field("semconv", &self.0.semconv).finish_non_exhaustive()
    }
}
