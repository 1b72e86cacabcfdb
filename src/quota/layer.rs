use super::{
    calendar::Calendar,
    estimate::{ByteEstimator, TokenEstimator},
    history::UsageHistory,
    memory::MemoryStore,
    options::{Hits, Mode, OnExpiry, OnTight, Settled, Stats, Unbounded, Unpriced, Unreported},
    service::Quota,
    shared::{Shared, State},
    store::QuotaStore,
    worker::{Outbox, Worker, WorkerOptions},
};
use crate::{
    clock::{Clock, SystemClock},
    policies::Policies,
    price::Prices,
};
use std::{borrow::Cow, fmt, sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`Quota`] to a service.
///
/// See the [module docs](super) for where it belongs.
///
/// To find out first what limits would do:
///
/// ```
/// use llm_layers::{
///     ChatBody, LlmRequest, RequestContext,
///     policies::{DepartmentPolicy, PolicyTable},
///     price::Prices,
///     provider::Echo,
///     quota::{Limits, MemoryStore, Mode, QuotaLayer, Unbounded, Unpriced},
/// };
/// use tower::{Layer, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// let limits = Limits::new().with_day_requests(1);
/// let policies = PolicyTable::default().with("research", DepartmentPolicy::new(limits));
/// let layer = QuotaLayer::new(MemoryStore::new(), policies, Prices::default())
///     .with_mode(Mode::Shadow)
///     .with_unbounded(Unbounded::Inject(1024))
///     .with_unpriced(Unpriced::Free);
/// let service = layer.layer(Echo::new());
///
/// let context = RequestContext::new().with_departments(["research"]);
/// let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hello").build()?).with_context(context);
/// for _ in 0..3 {
///     service.clone().oneshot(request.clone()).await?;
/// }
/// let stats = layer.stats();
/// assert_eq!((stats.denied, stats.would_deny), (0, 2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct QuotaLayer {
    shared: Arc<Shared>,
}

/// Where leases are settled at once, none outlives its call but by a fault.
const LEASE_IN_PLACE: Duration = Duration::from_secs(24 * 3600);

impl QuotaLayer {
    /// Counts in `store`, in the memory of this process: leases are settled where calls end.
    pub fn new(store: MemoryStore, policies: impl Into<Policies>, prices: impl Into<Prices>) -> Self {
        Self::over(Arc::new(store), None, LEASE_IN_PLACE, policies.into(), prices.into())
    }

    /// Counts in any store. What has to be done when calls have ended is done by the worker, which belongs to the host: it
    /// is to be [shut down](Worker::shutdown) when no more calls come.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn pair(
        store: impl QuotaStore,
        policies: impl Into<Policies>,
        prices: impl Into<Prices>,
        options: WorkerOptions,
    ) -> (Self, Worker) {
        let store: Arc<dyn QuotaStore> = Arc::new(store);
        let (outbox, worker) = Worker::start(Arc::clone(&store), options);
        (Self::over(store, Some(outbox), options.lease, policies.into(), prices.into()), worker)
    }

    fn over(
        store: Arc<dyn QuotaStore>,
        outbox: Option<Outbox>,
        lease: Duration,
        policies: Policies,
        prices: Prices,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                live: outbox.as_ref().map_or_else(Arc::default, |outbox| Arc::clone(outbox.live())),
                store,
                outbox,
                policies,
                prices,
                estimator: Arc::new(ByteEstimator::new()),
                clock: Arc::new(SystemClock),
                calendar: Calendar::utc(),
                mode: Mode::default(),
                unbounded: Unbounded::default(),
                on_tight: OnTight::default(),
                on_expiry: OnExpiry::default(),
                unpriced: Unpriced::default(),
                unreported: Unreported::default(),
                hits: Hits::default(),
                largest_output: 1 << 20,
                model_outputs: Vec::new(),
                output_members: Vec::new(),
                lease,
                deadline: Duration::from_millis(250),
                retry_in_flight: Duration::from_secs(2),
                history: None,
                on_settle: None,
                state: Arc::new(State::new()),
            }),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        change(Arc::make_mut(&mut self.shared));
        self
    }

    /// Refuses, or only counts what it would have refused.
    #[must_use]
    pub fn with_mode(self, mode: Mode) -> Self {
        self.with(|shared| shared.mode = mode)
    }

    /// Bounds prompts by this estimator; by their [bytes](ByteEstimator) unless told.
    #[must_use]
    pub fn with_estimator(self, estimator: impl TokenEstimator) -> Self {
        self.with(|shared| shared.estimator = Arc::new(estimator))
    }

    /// What to do with requests whose answers have no bound.
    #[must_use]
    pub fn with_unbounded(self, unbounded: Unbounded) -> Self {
        self.with(|shared| shared.unbounded = unbounded)
    }

    /// What to do with requests that would fit if their answers were shorter.
    #[must_use]
    pub fn with_on_tight(self, on_tight: OnTight) -> Self {
        self.with(|shared| shared.on_tight = on_tight)
    }

    /// What a lease charges that expires.
    #[must_use]
    pub fn with_on_expiry(self, on_expiry: OnExpiry) -> Self {
        self.with(|shared| shared.on_expiry = on_expiry)
    }

    /// What models cost that have no price.
    #[must_use]
    pub fn with_unpriced(self, unpriced: Unpriced) -> Self {
        self.with(|shared| shared.unpriced = unpriced)
    }

    /// What is charged for a call whose usage nobody reports.
    #[must_use]
    pub fn with_unreported(self, unreported: Unreported) -> Self {
        self.with(|shared| shared.unreported = unreported)
    }

    /// What answers from a cache count for, where the cache stands inside.
    #[must_use]
    pub fn with_hits(self, hits: Hits) -> Self {
        self.with(|shared| shared.hits = hits)
    }

    /// No answer has more tokens than this, whatever its request says: 1,048,576 unless told.
    #[must_use]
    pub fn with_largest_output(self, tokens: u64) -> Self {
        self.with(|shared| shared.largest_output = tokens)
    }

    /// These models, by name or pattern, answer with at most so many tokens, whatever they are asked for. What is said
    /// first counts.
    #[must_use]
    pub fn with_model_output<M: AsRef<str>>(self, models: impl IntoIterator<Item = M>, tokens: u64) -> Self {
        self.with(|shared| shared.model_outputs.push((models.into_iter().collect(), tokens)))
    }

    /// These models, by name or pattern, take the bound of their answers under this member of the request. Unless told,
    /// `max_completion_tokens` of the provider `openai`, and `max_tokens` elsewhere; and `n_predict`, which llama.cpp's
    /// server obeys before these, is no higher than they are. What is said first counts.
    #[must_use]
    pub fn with_output_member<M: AsRef<str>>(
        self,
        models: impl IntoIterator<Item = M>,
        member: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.with(|shared| shared.output_members.push((models.into_iter().collect(), member.into())))
    }

    /// Days and months by this calendar; by that of UTC unless told. All that share a store must have the same.
    #[must_use]
    pub fn with_calendar(self, calendar: Calendar) -> Self {
        self.with(|shared| {
            shared.calendar = calendar;
            shared.state = Arc::new(State::new());
        })
    }

    /// Tells the time by this clock. It does not matter for windows, which the store's clock picks.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        self.with(|shared| shared.clock = Arc::new(clock))
    }

    /// Waits so long for the store, then refuses the call: 250 ms unless told.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        self.with(|shared| shared.deadline = deadline)
    }

    /// When to come back if only calls in flight are in the way; 2 seconds unless told.
    #[must_use]
    pub fn with_retry_in_flight(self, wait: Duration) -> Self {
        self.with(|shared| shared.retry_in_flight = wait)
    }

    /// A department that the store does not know, because it is new or because its counters were lost, is charged first
    /// what it has used up by this ledger. Until that is done its calls are refused as
    /// [`StoreUnavailable`](crate::ErrorKind::StoreUnavailable).
    #[must_use]
    pub fn with_history(self, history: impl UsageHistory) -> Self {
        self.with(|shared| shared.history = Some(Arc::new(history)))
    }

    /// What it is charged by that the store does not know.
    #[cfg(feature = "config")]
    pub(crate) fn history(&self) -> Option<&Arc<dyn UsageHistory>> {
        self.shared.history.as_ref()
    }

    /// Runs this too when a call is charged, where its answer ends: it must neither block nor panic.
    #[must_use]
    pub fn on_settle(self, hook: impl Fn(&Settled) + Send + Sync + 'static) -> Self {
        self.with(|shared| {
            let before = shared.on_settle.take();
            shared.on_settle = Some(Arc::new(move |settled: &Settled| {
                before.iter().for_each(|before| before(settled));
                hook(settled);
            }));
        })
    }

    /// The same counters, by other policies and prices.
    #[cfg(feature = "config")]
    pub(crate) fn with_tables(self, policies: Policies, prices: Prices) -> Self {
        self.with(|shared| (shared.policies, shared.prices) = (policies, prices))
    }

    /// The store that it counts in.
    pub fn store(&self) -> &Arc<dyn QuotaStore> {
        &self.shared.store
    }

    /// Reads [`stats`](Self::stats), and keeps nothing else alive.
    #[cfg(feature = "otel")]
    pub(crate) fn stats_reader(&self) -> impl Fn() -> Stats + Send + Sync + use<> {
        let state = Arc::clone(&self.shared.state);
        move || state.stats()
    }

    /// What it has refused so far; all its services together.
    pub fn stats(&self) -> Stats {
        self.shared.state.stats()
    }

    /// Whether calls can be admitted: the store, or a [part](QuotaStore::part) of it, has answered lately, and since a lease could not be settled, and there is room
    /// for more. For a host that tells whether it is ready. A lease that alone cannot be settled is seen in [`Report::left`] and
    /// [`Report::last_error`].
    ///
    /// After failures no call may come that would show that the store answers again, for a host that is not ready gets none. So whoever
    /// asks has the store asked in the background, once a second at most and within a runtime of tokio: for nothing, in the name of those
    /// whom it did not answer last, or one after the other of those whose leases came to their end.
    ///
    /// [`Report::left`]: super::Report::left
    /// [`Report::last_error`]: super::Report::last_error
    pub fn is_available(&self) -> bool {
        self.shared.probe();
        !self.shared.state.parts.is_mute() && self.shared.outbox.as_ref().is_none_or(Outbox::is_well)
    }
}

impl<S> Layer<S> for QuotaLayer {
    type Service = Quota<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Quota::new(inner, Arc::clone(&self.shared))
    }
}

impl fmt::Debug for QuotaLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaLayer")
            .field("mode", &self.shared.mode)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
