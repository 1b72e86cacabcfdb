use super::{recorder::Which, service::RecordUsage, sink::UsageSink};
use crate::{
    clock::{Clock, SystemClock},
    price::Prices,
};
use std::{fmt, sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`RecordUsage`] to a service.
///
/// See the [module docs](super) for where it belongs.
#[derive(Clone)]
pub struct UsageLayer<K> {
    sink: K,
    settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) which: Which,
    pub(super) prices: Prices,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) durable_within: Option<Duration>,
}

impl<K: UsageSink + Clone> UsageLayer<K> {
    /// Records every call into `sink`, at these prices.
    pub fn new(sink: K, prices: impl Into<Prices>) -> Self {
        let clock = Arc::new(SystemClock);
        Self {
            sink,
            settings: Arc::new(Settings {
                which: Which::Calls,
                prices: prices.into(),
                clock,
                durable_within: None,
            }),
        }
    }

    /// Records only the answers that came from a cache or were shared with another call, for stacks with a
    /// cache: outside of it. They cost nothing; what they would have cost is recorded as saved.
    pub fn hits(sink: K, prices: impl Into<Prices>) -> Self {
        let mut layer = Self::new(sink, prices);
        Arc::make_mut(&mut layer.settings).which = Which::Hits;
        layer
    }

    /// Holds the last byte of each answer back until its record is where the sink keeps what it does not lose.
    ///
    /// If that takes longer than `limit`, the call fails as [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable), or
    /// its stream ends so: nobody gets a whole answer that has no record.
    #[must_use]
    pub fn durable(mut self, limit: Duration) -> Self {
        Arc::make_mut(&mut self.settings).durable_within = Some(limit);
        self
    }

    /// Tells the time by this clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        Arc::make_mut(&mut self.settings).clock = Arc::new(clock);
        self
    }
}

impl<S, K: Clone> Layer<S> for UsageLayer<K> {
    type Service = RecordUsage<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        RecordUsage::new(inner, self.sink.clone(), Arc::clone(&self.settings))
    }
}

impl<K> fmt::Debug for UsageLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageLayer").field("which", &self.settings.which).finish_non_exhaustive()
    }
}
