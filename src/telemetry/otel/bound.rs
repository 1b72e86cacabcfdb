//! Instruments for one series: where a program binds attributes, they are looked up once.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram},
};

/// Whether the SDK can bind attributes, which only the program knows: one that cannot would lose what is measured.
#[derive(Clone, Copy, Default)]
pub(super) struct Binding {
    #[cfg(feature = "otel-bound")]
    pub(super) is_bound: bool,
}

/// What measures.
pub(super) trait Instrument {
    type Value;
    #[cfg(feature = "otel-bound")]
    type Bound;

    #[cfg(feature = "otel-bound")]
    fn bind(&self, attributes: &[KeyValue]) -> Self::Bound;

    #[cfg(feature = "otel-bound")]
    fn record_bound(bound: &Self::Bound, value: Self::Value);

    fn record(&self, value: Self::Value, attributes: &[KeyValue]);
}

/// One series of it.
pub(super) struct Bound<I: Instrument> {
    /// `None`: attributes are looked up each time.
    #[cfg(feature = "otel-bound")]
    bound: Option<std::sync::OnceLock<I::Bound>>,
    #[cfg(not(feature = "otel-bound"))]
    of: std::marker::PhantomData<fn(I)>,
}

impl<I: Instrument> Bound<I> {
    pub(super) fn new(binding: Binding) -> Self {
        #[cfg(not(feature = "otel-bound"))]
        let Binding {} = binding;
        Self {
            #[cfg(feature = "otel-bound")]
            bound: binding.is_bound.then(std::sync::OnceLock::new),
            #[cfg(not(feature = "otel-bound"))]
            of: std::marker::PhantomData,
        }
    }

    /// Records a value of this series, whose attributes are always the same.
    pub(super) fn record(&self, instrument: &I, value: I::Value, attributes: &[KeyValue]) {
        #[cfg(feature = "otel-bound")]
        if let Some(bound) = &self.bound {
            return I::record_bound(bound.get_or_init(|| instrument.bind(attributes)), value);
        }
        instrument.record(value, attributes);
    }
}

macro_rules! instrument {
    ($instrument:ident, $bound:ident, $record:ident) => {
        impl<T> Instrument for $instrument<T> {
            type Value = T;
            #[cfg(feature = "otel-bound")]
            type Bound = opentelemetry::metrics::$bound<T>;

            #[cfg(feature = "otel-bound")]
            fn bind(&self, attributes: &[KeyValue]) -> Self::Bound {
                Self::bind(self, attributes)
            }

            #[cfg(feature = "otel-bound")]
            fn record_bound(bound: &Self::Bound, value: T) {
                bound.$record(value);
            }

            fn record(&self, value: T, attributes: &[KeyValue]) {
                Self::$record(self, value, attributes);
            }
        }
    };
}

instrument!(Histogram, BoundHistogram, record);
instrument!(Counter, BoundCounter, add);
