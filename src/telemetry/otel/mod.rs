//! OpenTelemetry by its API alone: without an SDK nothing is exported, and it costs little.

mod labels;
mod metrics;
mod propagation;
mod span;

pub use self::{
    metrics::observe_queue,
    propagation::{extract, inject},
    span::{OtelScope, OtelSpan},
};

use self::{labels::Labels, metrics::Instruments};
use super::{
    observer::{CallStart, Observer},
    semconv::SemConv,
};
use opentelemetry::{
    InstrumentationScope,
    global::{self, BoxedTracer},
    metrics::Meter,
    trace::Tracer,
};
use std::{fmt, sync::Arc};

/// Tells OpenTelemetry of calls: a span each, and the conventions' metrics.
///
/// Works with any SDK behind `opentelemetry` 0.33. The instruments are made once, here; make one observer and clone it.
#[derive(Clone)]
pub struct OtelObserver {
    tracer: Arc<BoxedTracer>,
    meter: Meter,
    instruments: Arc<Instruments>,
    labels: Labels,
    semconv: SemConv,
}

impl OtelObserver {
    /// Spans by `tracer`, metrics by `meter`.
    pub fn new<T>(tracer: T, meter: Meter) -> Self
    where
        T: Tracer + Send + Sync + 'static,
        T::Span: Send + Sync + 'static,
    {
        Self::boxed(BoxedTracer::new(Box::new(tracer)), meter)
    }

    /// By the providers that the program has made global **before** this is called.
    pub fn global() -> Self {
        let scope = scope();
        Self::boxed(global::tracer_with_scope(scope.clone()), global::meter_with_scope(scope))
    }

    fn boxed(tracer: BoxedTracer, meter: Meter) -> Self {
        let semconv = SemConv::default();
        let instruments = Arc::new(Instruments::new(&meter, semconv));
        Self { tracer: Arc::new(tracer), meter, instruments, labels: Labels::new(MAX_MODELS), semconv }
    }

    /// Speaks this version of the conventions.
    #[must_use]
    pub fn with_semconv(mut self, semconv: SemConv) -> Self {
        self.instruments = Arc::new(Instruments::new(&self.meter, semconv));
        self.semconv = semconv;
        self
    }

    /// How many names of models metrics tell apart, those asked for and those that answered together; 256 unless
    /// told. All others, and those of calls that failed by the caller's fault, are `_OTHER`: whoever may ask for any
    /// name cannot make any number of series.
    #[must_use]
    pub fn with_max_models(mut self, models: usize) -> Self {
        self.labels = Labels::new(models);
        self
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
        f.debug_struct("OtelObserver").field("semconv", &self.semconv).finish_non_exhaustive()
    }
}
