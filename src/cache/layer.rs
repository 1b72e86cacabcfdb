use super::{
    Bucket, CacheSecret, CacheStats, CacheStore, EpochKind, KbSettings,
    ask::Shared,
    epoch::EpochStore,
    key::Origins,
    service::Cache,
    worker::{self, CacheWorker},
};
use crate::{
    Error, ErrorKind,
    clock::{Clock, SystemClock},
};
use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tower_layer::Layer;

/// Applies [`Cache`] to a service. All services that one layer builds share its entries, flights and counts.
///
/// See the [module docs](super) for where it belongs.
#[derive(Clone)]
pub struct CacheLayer {
    shared: Arc<Shared>,
    origins: Origins,
}

/// What is cached, for whom, and for how long.
///
/// ```
/// # #[cfg(not(feature = "moka"))] fn main() {}
/// # #[cfg(feature = "moka")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// use llm_layers::{
///     CacheStatus, ChatBody, LlmRequest, RequestContext,
///     cache::{BypassReason, CacheLayer, CachePolicy, CacheSecret, Coalescing, MokaStore},
///     provider::Echo,
/// };
/// use std::time::Duration;
/// use tower::{Layer, ServiceExt};
///
/// let policy = CachePolicy::new(CacheSecret::random())
///     .with_ttl(Duration::from_secs(600))
///     .with_max_temperature(0.2)
///     .with_coalescing(Coalescing::new());
/// let service = CacheLayer::new(MokaStore::new(64 << 20), policy).layer(Echo::new());
///
/// let ask = |temperature: f64| {
///     let body = ChatBody::builder().user("Hello").temperature(temperature).build()?;
///     let context = RequestContext::new().with_user_id("ada");
///     Ok::<_, llm_layers::Error>(LlmRequest::new("acme/one", body).with_context(context))
/// };
/// assert_eq!(service.clone().oneshot(ask(0.0)?).await?.cache, CacheStatus::Miss);
/// assert!(service.clone().oneshot(ask(0.0)?).await?.cache.is_hit());
/// assert_eq!(service.oneshot(ask(0.9)?).await?.cache, CacheStatus::Bypass(BypassReason::Temperature));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct CachePolicy {
    pub(super) secret: CacheSecret,
    pub(super) ttl: Duration,
    pub(super) max_temperature: Option<f64>,
    pub(super) tool_calls: bool,
    pub(super) is_public: bool,
    pub(super) max_entry_bytes: usize,
    pub(super) read_deadline: Duration,
    pub(super) write_deadline: Duration,
    pub(super) kb_settings: Option<Arc<dyn KbSettings>>,
    pub(super) kb_deadline: Duration,
    pub(super) epochs: Option<Arc<dyn EpochStore>>,
    pub(super) epoch_max_age: Duration,
    pub(super) coalescing: Option<Coalescing>,
    #[cfg(feature = "semantic")]
    pub(super) semantic: Option<super::Semantic>,
    pub(super) queue: usize,
    pub(super) queue_bytes: usize,
    pub(super) clock: Arc<dyn Clock>,
}

/// How equal calls that are in flight together share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Coalescing {
    /// How many calls may be in flight, shared or not; what would be one more is [`Overloaded`](ErrorKind::Overloaded). 1,024
    /// unless told.
    pub max_flights: usize,
    /// Whether a call goes on when all who waited for it have left; it is hung up unless told.
    pub finishes_alone: bool,
}

// ===== impl CachePolicy =====

impl CachePolicy {
    /// Keeps whole answers that ended by themselves, at most 1 MiB each, for an hour, for the user who asked.
    pub fn new(secret: CacheSecret) -> Self {
        Self {
            secret,
            ttl: Duration::from_secs(60 * 60),
            max_temperature: None,
            tool_calls: false,
            is_public: false,
            max_entry_bytes: 1 << 20,
            read_deadline: Duration::from_millis(50),
            write_deadline: Duration::from_secs(1),
            kb_settings: None,
            kb_deadline: Duration::from_millis(50),
            epochs: None,
            epoch_max_age: Duration::from_secs(1),
            coalescing: None,
            #[cfg(feature = "semantic")]
            semantic: None,
            queue: 1024,
            queue_bytes: 64 << 20,
            clock: Arc::new(SystemClock),
        }
    }

    /// Keeps answers for this long; a caller can only ask for less.
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Leaves requests alone whose temperature is above this one. One that says nothing is taken to say 1, the usual
    /// default of providers.
    #[must_use]
    pub const fn with_max_temperature(mut self, temperature: f64) -> Self {
        self.max_temperature = Some(temperature);
        self
    }

    /// Keeps answers that call tools too.
    #[must_use]
    pub const fn with_tool_calls(mut self) -> Self {
        self.tool_calls = true;
        self
    }

    /// Lets callers without a user share answers with each other, within their tenant and the same rights. Those with a
    /// user never do.
    #[must_use]
    pub const fn with_public_scope(mut self) -> Self {
        self.is_public = true;
        self
    }

    /// Keeps answers of at most this many bytes of JSON. Bounds what a shared call holds for those who read slower, too.
    #[must_use]
    pub const fn with_max_entry_bytes(mut self, bytes: usize) -> Self {
        self.max_entry_bytes = bytes;
        self
    }

    /// Waits this long for a store; 50 ms unless told. Then it is a miss.
    #[must_use]
    pub const fn with_read_deadline(mut self, limit: Duration) -> Self {
        self.read_deadline = limit;
        self
    }

    /// Waits this long for a store to keep an entry, off the path of any call; a second unless told.
    #[must_use]
    pub const fn with_write_deadline(mut self, limit: Duration) -> Self {
        self.write_deadline = limit;
        self
    }

    /// Asks these settings whether answers that draw on a knowledge base may be kept. Without any, none are.
    #[must_use]
    pub fn with_kb_settings(mut self, settings: impl KbSettings) -> Self {
        self.kb_settings = Some(Arc::new(settings));
        self
    }

    /// Waits this long for the settings; 50 ms unless told. Then it is a no.
    #[must_use]
    pub const fn with_kb_deadline(mut self, limit: Duration) -> Self {
        self.kb_deadline = limit;
        self
    }

    /// Goes by these epochs, rather than those that the store brings along.
    #[must_use]
    pub fn with_epochs(mut self, epochs: Arc<dyn EpochStore>) -> Self {
        self.epochs = Some(epochs);
        self
    }

    /// Trusts epochs of others for this long; a second unless told. What draws on a knowledge base asks each time.
    #[must_use]
    pub const fn with_epoch_max_age(mut self, age: Duration) -> Self {
        self.epoch_max_age = age;
        self
    }

    /// Lets equal calls that are in flight together share one.
    #[must_use]
    pub const fn with_coalescing(mut self, coalescing: Coalescing) -> Self {
        self.coalescing = Some(coalescing);
        self
    }

    /// Looks for similar questions where the same one was not found. Read the [warning](super::semantic) first.
    #[cfg(feature = "semantic")]
    #[must_use]
    pub fn with_semantic(mut self, semantic: super::Semantic) -> Self {
        self.semantic = Some(semantic);
        self
    }

    /// Lets this many entries, of this many bytes together, wait to be written; 1,024 and 64 MiB unless told.
    #[must_use]
    pub const fn with_queue(mut self, entries: usize, bytes: usize) -> Self {
        self.queue = entries;
        self.queue_bytes = bytes;
        self
    }

    /// Tells the age of entries by this clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }
}

impl fmt::Debug for CachePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachePolicy")
            .field("ttl", &self.ttl)
            .field("max_temperature", &self.max_temperature)
            .field("tool_calls", &self.tool_calls)
            .field("is_public", &self.is_public)
            .field("max_entry_bytes", &self.max_entry_bytes)
            .field("has_kb_settings", &self.kb_settings.is_some())
            .field("coalescing", &self.coalescing)
            .finish_non_exhaustive()
    }
}

// ===== impl Coalescing =====

impl Coalescing {
    /// 1,024 flights, each hung up when nobody waits for it any more.
    pub const fn new() -> Self {
        Self { max_flights: 1024, finishes_alone: false }
    }

    /// Sets [`max_flights`](Self::max_flights).
    #[must_use]
    pub const fn with_max_flights(mut self, flights: usize) -> Self {
        self.max_flights = flights;
        self
    }

    /// Sets [`finishes_alone`](Self::finishes_alone): what was begun is brought to its end, and kept.
    #[must_use]
    pub const fn finishing_alone(mut self) -> Self {
        self.finishes_alone = true;
        self
    }
}

impl Default for Coalescing {
    fn default() -> Self {
        Self::new()
    }
}

// ===== impl CacheLayer =====

impl CacheLayer {
    /// Keeps entries in `store`, which must be one in memory: what takes time to write, and what draws on knowledge
    /// bases, needs the worker that [`start`](Self::start) gives, and is not kept without one.
    pub fn new(store: impl CacheStore, policy: CachePolicy) -> Self {
        let shared = Arc::new(Shared::new(Arc::new(store), policy, None));
        Self { shared, origins: Origins::default() }
    }

    /// Keeps entries in `store`, and starts the worker that writes what cannot be written at once.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(store: impl CacheStore, policy: CachePolicy) -> (Self, CacheWorker) {
        let (queue, jobs) = worker::queue(policy.queue, policy.queue_bytes);
        let shared = Arc::new(Shared::new(Arc::new(store), policy, Some(queue)));
        let worker = CacheWorker::start(Arc::downgrade(&shared), jobs);
        (Self { shared, origins: Origins::default() }, worker)
    }

    /// Tells `origin` apart from others who answer, or have answered, under the same name of a provider: by its kind and its
    /// addresses, for example. The services that this layer builds from now on neither find what was kept of another origin,
    /// nor is theirs found there. Nobody can tell the origin from what is kept, and [`CacheKey::new`](super::CacheKey::new) does not
    /// know it: it names no entry of theirs.
    ///
    /// Without any, who answers is the provider's name, and [`invalidate`](Self::invalidate) is for when somebody else does.
    #[must_use]
    pub fn with_origin(mut self, provider: impl Into<Arc<str>>, origin: impl AsRef<[u8]>) -> Self {
        self.origins.add(provider.into(), origin.as_ref());
        self
    }

    /// What it has done so far.
    pub fn stats(&self) -> CacheStats {
        self.shared.counters.read()
    }

    /// Switches it off or on, for all services at once. What was kept stays.
    pub fn set_on(&self, is_on: bool) {
        self.shared.is_on.store(is_on, Ordering::Release);
    }

    /// Makes all invalid that was kept for one tenant or user, that one model has answered, or that drew on one
    /// knowledge base: here at once, in other processes that share the epochs within
    /// [`epoch_max_age`](CachePolicy::with_epoch_max_age). Costs the same however much that is. Others may lose
    /// entries by it too.
    ///
    /// Answers that are on their way are not kept, and no other call joins them.
    ///
    /// # Errors
    ///
    /// [`StoreUnavailable`](ErrorKind::StoreUnavailable): others may not have heard of it. Ask again.
    pub async fn invalidate(&self, kind: EpochKind, id: &str) -> Result<(), Error> {
        let raised = self.shared.epochs.raise(Bucket::of(kind, id));
        let failed = || Error::new(ErrorKind::StoreUnavailable { store: "cache".into() });
        let raised = tokio::time::timeout(self.shared.policy.write_deadline, raised).await;
        self.shared.epochs.have_been_raised();
        match raised {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed().with_source(error)),
            Err(late) => Err(failed().with_source(late)),
        }
    }

    /// How many shared calls are in flight.
    pub fn flights(&self) -> usize {
        self.shared.flights.as_ref().map_or(0, |flights| flights.count())
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Cache::new(inner, Arc::clone(&self.shared), self.origins.clone())
    }
}

impl fmt::Debug for CacheLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer").field("policy", &self.shared.policy).finish_non_exhaustive()
    }
}
