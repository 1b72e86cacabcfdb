//! Instruments for one series: where attributes can be bound, they are looked up once.

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram},
};

/// What measures.
pub(super) trait Instrument {
    type Value;
    #[cfg(feature = "otel-bound")]
    type Bound;

    #[cfg(feature = "otel-bound")]
    fn bind(&self, attributes: &[KeyValue]) -> Self::Bound;

    #[cfg(feature = "otel-bound")]
    fn record_bound(bound: &Self::Bound, value: Self::Value);

    #[cfg(not(feature = "otel-bound"))]
    fn record(&self, value: Self::Value, attributes: &[KeyValue]);
}

/// One series of it.
pub(super) struct Bound<I: Instrument> {
    #[cfg(feature = "otel-bound")]
    bound: std::sync::OnceLock<I::Bound>,
    #[cfg(not(feature = "otel-bound"))]
    of: std::marker::PhantomData<fn(I)>,
}

impl<I: Instrument> Default for Bound<I> {
    fn default() -> Self {
        Self {
            #[cfg(feature = "otel-bound")]
            bound: std::sync::OnceLock::new(),
            #[cfg(not(feature = "otel-bound"))]
            of: std::marker::PhantomData,
        }
    }
}

impl<I: Instrument> Bound<I> {
    /// Records a value of this series, whose attributes are always the same.
    pub(super) fn record(&self, instrument: &I, value: I::Value, attributes: &[KeyValue]) {
        #[cfg(feature = "otel-bound")]
        I::record_bound(self.bound.get_or_init(|| instrument.bind(attributes)), value);
        #[cfg(not(feature = "otel-bound"))]
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

            #[cfg(not(feature = "otel-bound"))]
            fn record(&self, value: T, attributes: &[KeyValue]) {
                Self::$record(self, value, attributes);
            }
        }
    };
}

instrument!(Histogram, BoundHistogram, record);
instrument!(Counter, BoundCounter, add);
