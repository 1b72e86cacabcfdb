use super::{
    BoxService, Description, Handle, StackError,
    answers::Answers,
    assemble::{self, Layers},
    counters::Quotas,
    deployments::{Around, Deployments},
    handle::{Lasting, Rebuild},
    ledger::Ledger,
    live::{Live, Version},
    order::{self, Needs, Part, Place},
    own::Own,
};
use crate::{
    BoxError, Error, LlmRequest, LlmResponse,
    cache::{CacheStore, KbSettings},
    concurrency::ConcurrencyLimitLayer,
    config::{Config, Problem, plan::Plan, process_env},
    policies::Policies,
    price::Prices,
    providers::Deployment,
    quota::{QuotaLayer, QuotaStore, UsageHistory},
    telemetry::{CaptureContent, Observer},
    usage::{UsageReader, UsageSink},
};
use arc_swap::ArcSwap;
use std::{
    fmt,
    sync::{Arc, OnceLock},
};
use tower::util::{BoxCloneSyncService, MapErr};
use tower_layer::Layer;
use tower_service::Service;

/// Where the variables are that secrets are read from.
pub(super) type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Builds a stack of a configuration, and of what a program has of its own. What this replaces need not be compiled in.
///
/// ```
/// use llm_layers::{
///     ChatBody, LlmRequest, config::Config, provider::Echo,
///     stack::{Part, StackBuilder},
///     usage::MemorySink,
/// };
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // A leaf and a sink of one's own; the configuration says where the leaf is used.
/// let config = Config::parse("usage = { enabled = false }\nproviders.mine = { kind = \"own\" }\naliases = { fast = \"mine/one\" }")?;
/// let sink = MemorySink::new(1024);
/// let (service, _handle) = StackBuilder::new(config)
///     .without(Part::Concurrency)
///     .with_provider("mine", Echo::new())
///     .with_usage_sink(sink.clone())
///     .build()
///     .await?;
/// service.oneshot(LlmRequest::new("fast", ChatBody::builder().user("Hello").build()?)).await?;
/// assert_eq!(sink.take().len(), 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing happens before it is built"]
pub struct StackBuilder<O = ()> {
    config: Config,
    env: Env,
    observer: O,
    capture: CaptureContent,
    order: Vec<Part>,
    is_own_order: bool,
    own: Own,
}

pub(super) type MapQuota = Box<dyn Fn(QuotaLayer) -> QuotaLayer + Send + Sync>;

impl StackBuilder {
    /// The documented order with all that `config` asks for.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            env: Arc::new(process_env),
            observer: (),
            capture: CaptureContent::Nothing,
            order: Part::ORDER.to_vec(),
            is_own_order: false,
            own: Own::default(),
        }
    }
}

impl<O: Observer> StackBuilder<O> {
    /// Reads secrets from `env` rather than from the environment of this process.
    pub fn with_env(mut self, env: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.env = Arc::new(env);
        self
    }

    /// Tells `observer` of every call, as a whole and at each deployment.
    pub fn with_observer<P: Observer>(self, observer: P) -> StackBuilder<P> {
        let Self { config, env, observer: _, capture, order, is_own_order, own } = self;
        StackBuilder { config, env, observer, capture, order, is_own_order, own }
    }

    /// Puts what is said on the spans of clients. **Prompts and answers then leave the process.**
    pub fn with_content(mut self, capture: CaptureContent) -> Self {
        self.capture = capture;
        self
    }

    /// Leaves a part out. What the configuration says that this part would do is an error then.
    pub fn without(mut self, part: Part) -> Self {
        self.order.retain(|other| *other != part);
        self
    }

    /// Another order, from the outside in; what it does not have is left out. Each layer is boxed then, for their types are no longer known.
    pub fn with_order(mut self, order: impl IntoIterator<Item = Part>) -> Self {
        self.order = order.into_iter().collect();
        self.is_own_order = true;
        self
    }

    /// The leaf of a provider that the configuration names, with `kind = "own"` or in place of what it says; called again, a further
    /// deployment of it.
    pub fn with_provider<S>(self, name: impl Into<Arc<str>>, leaf: S) -> Self
    where
        S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.with_deployment(name, Deployment::new(leaf))
    }

    /// As [`with_provider`](Self::with_provider), with what is known of where it is.
    pub fn with_deployment<S>(mut self, name: impl Into<Arc<str>>, leaf: Deployment<S>) -> Self
    where
        S: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        let into_error: fn(S::Error) -> Error = Into::into;
        let leaf = leaf.map_service(|leaf| BoxCloneSyncService::new(MapErr::new(leaf, into_error)));
        self.own.leaves.entry(name.into()).or_default().push(leaf);
        self
    }

    /// Records into `sink`, whatever `[usage]` says. The stack is ready as long as the sink [is healthy](UsageSink::is_healthy).
    ///
    /// What was recorded there is known to nobody: give a [reader](Self::with_usage_reader) of it, and with limits a
    /// [history](Self::with_usage_history).
    pub fn with_usage_sink(mut self, sink: impl UsageSink) -> Self {
        self.own.usage_sink = Some(Arc::new(sink));
        self
    }

    /// Answers [`Handle::usage`] by `reader`, whatever `[usage]` says: by a ledger that a sink of your own fills.
    pub fn with_usage_reader(mut self, reader: impl UsageReader) -> Self {
        self.own.usage_reader = Some(Arc::new(reader));
        self
    }

    /// Rebuilds counters from `history` where their store is new or has lost them, whatever `[usage]` says: what a sink of your own has
    /// recorded.
    pub fn with_usage_history(mut self, history: impl UsageHistory) -> Self {
        self.own.usage_history = Some(Arc::new(history));
        self
    }

    /// Counts in `store`, whatever `[quota]` says of stores.
    pub fn with_quota_store(mut self, store: impl QuotaStore) -> Self {
        self.own.quota_store = Some(Arc::new(store));
        self
    }

    /// Prices all calls by `prices`, which the configuration must not have beside them. They may be exchanged while calls are made, and stay
    /// when a configuration is reloaded.
    pub fn with_prices(mut self, prices: impl Into<Prices>) -> Self {
        self.own.prices = Some(prices.into());
        self
    }

    /// Has departments do what `policies` let them, which the configuration must not have beside them. They may be exchanged while calls are
    /// made, such as by a source that they [follow](Policies::follow), and stay when a configuration is reloaded.
    ///
    /// ```
    /// use llm_layers::{
    ///     BoxError, config::Config, stack::StackBuilder,
    ///     policies::{DepartmentPolicy, Policies, PolicySource, PolicyTable},
    /// };
    /// use std::time::Duration;
    ///
    /// /// In earnest, a table of one's own administration.
    /// struct Administration;
    ///
    /// impl PolicySource for Administration {
    ///     fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
    ///         let research = DepartmentPolicy::default().with_models(["echo/*"]);
    ///         Ok(Some(PolicyTable::default().with("research", research)))
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let text = r#"
    ///     identity = "host"
    ///     usage.enabled = false
    ///     providers.echo.kind = "echo"
    ///     quota.store = "memory"
    /// "#;
    /// let policies = Policies::default();
    /// let _follower = policies.follow(Administration, Duration::from_secs(1), |error| eprintln!("{error}"))?;
    /// let (_service, handle) = StackBuilder::new(Config::parse(text)?).with_policies(policies).build().await?;
    /// let view = handle.quota("research").await?.ok_or("it is limited")?;
    /// assert!(view.policy.allows("echo/small") && !view.policy.allows("other/small"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_policies(mut self, policies: impl Into<Policies>) -> Self {
        self.own.policies = Some(policies.into());
        self
    }

    /// Stacks what `map` makes of the layer of quotas: one that is watched, for instance. It is given the layer when the store of
    /// counters is opened, which is once: when the stack is built, or with the first limits. Reloads change policies and prices of what
    /// comes back, whose counters, hooks and store last. A reload that fails after that gives it another one the next time.
    ///
    /// ```
    /// # use llm_layers::{config::Config, stack::StackBuilder};
    /// # fn watched(config: Config) -> StackBuilder {
    /// StackBuilder::new(config).map_quota(|layer| {
    ///     layer.on_settle(|settled| println!("{} of {} tokens", settled.used.tokens, settled.reserved.tokens))
    /// })
    /// # }
    /// ```
    pub fn map_quota(mut self, map: impl Fn(QuotaLayer) -> QuotaLayer + Send + Sync + 'static) -> Self {
        self.own.map_quota = Some(Box::new(map));
        self
    }

    /// Keeps answers in `store`, whatever `[cache]` says of stores.
    ///
    /// What is kept is found by who has the same `cache.secret`: no other stack, and not this one after a restart, unless the configuration
    /// has one. A store with [epochs](CacheStore::epochs), which others share, is refused without it.
    pub fn with_cache_store(mut self, store: impl CacheStore) -> Self {
        self.own.answers.set_store(Arc::new(store));
        self
    }

    /// Asks `settings` about knowledge bases, whatever `[cache.knowledge_bases]` says.
    pub fn with_kb_settings(mut self, settings: impl KbSettings) -> Self {
        self.own.answers.kbs = Some(Arc::new(settings));
        self
    }

    /// Puts a layer of your own at a place; of several at one place the first is the outermost. It is applied anew to each configuration: what
    /// is to last belongs into the layer, not into the service that it makes. Each call has a clone of that service.
    pub fn with_layer<L>(mut self, place: Place, layer: L) -> Self
    where
        L: Layer<BoxService> + Send + Sync + 'static,
        L::Service: Service<LlmRequest, Response = LlmResponse, Error: Into<Error>, Future: Send>
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.own.layers.add(place, layer);
        self
    }

    /// Is told why policies that are followed (`quota.policies`) cannot be read, of each cause once; they stay as they were.
    pub fn on_bad_policies(mut self, told: impl Fn(&BoxError) + Send + Sync + 'static) -> Self {
        self.own.on_bad_policies = Some(Arc::new(told));
        self
    }

    /// What would be built. Opens nothing.
    ///
    /// # Errors
    ///
    /// All that is wrong with the configuration, and with what the builder was told beside it.
    pub fn describe(&self) -> Result<Description, StackError> {
        let plan = self.plan()?;
        let order: Vec<_> = self.order.iter().copied().filter(|part| self.is_there(*part, &plan)).collect();
        let places = self.own.layers.places().collect();
        Ok(Description::new(self.config.clone(), plan, self.own.given(), order, places))
    }

    /// Opens the stores, starts the workers, and puts the layers together.
    ///
    /// # Errors
    ///
    /// All that is wrong with the configuration and with what the builder was told beside it; or a store that cannot be opened.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn build(self) -> Result<(BoxService, Handle), StackError> {
        let plan = self.plan()?;
        let given = self.own.given();
        let has = |part| self.is_there(part, &plan);
        let ledger = match (&self.own.usage_sink, &plan.usage) {
            _ if !self.order.contains(&Part::Usage) && !self.order.contains(&Part::Hits) => None,
            (Some(sink), _) => Some(Ledger::of_host(Arc::clone(sink))),
            (None, Some(usage)) => Some(Ledger::open(usage).await?),
            (None, None) => None,
        };
        let ledger = ledger.map(|ledger| ledger.read_by(self.own.usage_reader.clone()));
        let quotas = match &plan.limits {
            Some(limits) if has(Part::Quota) => {
                let own = &self.own;
                let history = own.usage_history.clone().or_else(|| ledger.as_ref()?.history());
                let (limits, told) = ((&self.config, limits), own.on_bad_policies.clone());
                let quotas = Quotas::open(limits, own.quota_store.clone(), history, told).await?;
                OnceLock::from(quotas.map(own.map_quota.as_deref()))
            }
            _ => OnceLock::new(),
        };
        let answers = match (&self.config.cache, &plan.cache) {
            (Some(settings), Some(plan)) if has(Part::Cache) => {
                Some(Answers::start(settings, plan, self.own.answers.clone()))
            }
            _ => None,
        };
        let server = &self.config.server;
        let concurrency = ConcurrencyLimitLayer::new(server.max_in_flight)
            .with_queue(server.max_waiting, server.max_wait.0);
        let wrap = Around { observer: self.observer.clone(), capture: self.capture };
        let lasting = Lasting {
            given,
            order: self.order.clone(),
            env: self.env,
            ledger,
            quotas,
            on_bad_policies: self.own.on_bad_policies,
            map_quota: self.own.map_quota,
            runtime: tokio::runtime::Handle::current(),
            answers,
            concurrency,
            deployments: Deployments::new(self.own.leaves, Box::new(wrap)),
        };
        let layers = lasting.layers(&self.config, &plan, lasting.quotas.get())?;
        let (own, order, observer) = (self.own.layers, self.order, self.observer);
        let is_all_ours = own.places().next().is_none();
        let (service, rebuild): (BoxService, Rebuild) = if self.is_own_order {
            let build = move |layers: &Layers| assemble::reordered(layers, &own, &order, &observer);
            live(build, is_all_ours, &layers.0)
        } else {
            let build = move |layers: &Layers| assemble::documented(layers, &own, &order, &observer);
            live(build, is_all_ours, &layers.0)
        };
        Ok((service, Handle::new(self.config, plan, lasting, layers, rebuild)))
    }

    fn is_there(&self, part: Part, plan: &Plan) -> bool {
        let is_recorded = plan.usage.is_some() || self.own.usage_sink.is_some();
        self.order.contains(&part)
            && match part {
                Part::Quota | Part::Access => plan.limits.is_some(),
                Part::Cache => plan.cache.is_some(),
                Part::Hits => plan.cache.is_some() && is_recorded,
                Part::Usage => is_recorded,
                _ => true,
            }
    }

    fn plan(&self) -> Result<Plan, StackError> {
        let env = &*self.env;
        let mut problems = order::check(&self.order, &self.config, self.own.policies.is_some());
        problems.extend(self.own.misfitting_leaves(&self.config));
        let plan = Plan::new(&self.config, &|name| env(name), Some(&self.own.given()));
        match &plan {
            Ok(plan) => problems.extend(self.idle(plan)),
            Err(error) => problems.splice(..0, error.problems().iter().cloned()).for_each(drop),
        }
        for problem in &mut problems {
            problem.line = self.config.lines().of(&problem.entry);
        }
        match plan {
            Ok(plan) if problems.is_empty() => Ok(plan),
            _ => Err(StackError::of(problems)),
        }
    }

    /// What the program gives that would have nothing to do.
    fn idle(&self, plan: &Plan) -> Vec<Problem> {
        let needs = Needs::of(plan, plan.usage.is_some() || self.own.usage_sink.is_some());
        let mut problems = match self.is_own_order {
            true => order::idle(&self.order, &needs),
            false => Vec::new(),
        };
        problems.extend(self.own.idle(&needs, |part| self.is_there(part, plan)));
        problems
    }
}

/// A service that is exchanged, boxed once, and what exchanges it.
fn live<S>(
    build: impl Fn(&Layers) -> S + Send + Sync + 'static,
    is_all_ours: bool,
    layers: &Layers,
) -> (BoxService, Rebuild)
where
    S: Service<LlmRequest, Response = LlmResponse, Error = Error, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static,
{
    let version = move |layers: &Layers| match is_all_ours {
        true => Version::new(build(layers)),
        false => Version::unshared(build(layers)),
    };
    let current = Arc::new(ArcSwap::from_pointee(version(layers)));
    let service = BoxCloneSyncService::new(Live::new(Arc::clone(&current)));
    (service, Box::new(move |layers| current.store(Arc::new(version(layers)))))
}

impl<O> fmt::Debug for StackBuilder<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackBuilder")
            .field("config", &self.config)
            .field("order", &self.order)
            .field("leaves", &self.own.leaves.keys())
            .field("layers", &self.own.layers)
            .finish_non_exhaustive()
    }
}
