use super::{recorder::Which, service::RecordUsage, sink::UsageSink};
use crate::{
    clock::{Clock, SystemClock},
    price::{Price, Prices},
};
use std::{fmt, sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`RecordUsage`] to a service.
///
/// See the [module docs](super) for where it belongs.
///
/// Calls inside of a cache, and hits outside of it:
///
/// ```
/// # #[cfg(not(feature = "moka"))] fn main() {}
/// # #[cfg(feature = "moka")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// use llm_layers::{
///     ChatBody, LlmRequest, RequestContext, ServiceBuilderExt as _,
///     cache::{CachePolicy, CacheSecret, MokaStore},
///     price::Prices,
///     provider::Echo,
///     usage::{MemorySink, Outcome, UsageLayer},
/// };
/// use std::time::Duration;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// let sink = MemorySink::new(1000);
/// let service = ServiceBuilder::new()
///     .layer(UsageLayer::hits(sink.clone(), Prices::default()))
///     .cache(MokaStore::new(64 << 20), CachePolicy::new(CacheSecret::random()))
///     .layer(UsageLayer::new(sink.clone(), Prices::default()).durable(Duration::from_secs(1)))
///     .service(Echo::new());
///
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?)
///     .with_context(RequestContext::new().with_user_id("ada"));
/// service.clone().oneshot(request.clone()).await?;
/// service.oneshot(request).await?;
///
/// let events = sink.take();
/// assert_eq!(events.iter().map(|event| event.outcome).collect::<Vec<_>>(), [Outcome::Ok, Outcome::CacheHit]);
/// let saved = events[1].saved.as_ref().expect("a hit says what it would have used up");
/// assert_eq!((events[1].usage.input_tokens, saved.usage), (Some(0), events[0].usage));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct UsageLayer<K> {
    sink: K,
    settings: Arc<Settings>,
}

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) which: Which,
    pub(super) prices: Prices,
    /// Where those know no price.
    pub(super) assumed: Option<Price>,
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
                assumed: None,
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

    /// Records beside a call whose cost is not known what it is assumed to have cost: what
    /// [quotas](crate::quota::Unpriced::Assume) charge for it, to be found again when they ask what was used up.
    #[must_use]
    pub fn assuming(mut self, price: Price) -> Self {
        Arc::make_mut(&mut self.settings).assumed = Some(price);
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
