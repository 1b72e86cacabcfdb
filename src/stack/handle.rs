use super::{
    Caller, StackError,
    answers::Answers,
    assemble::Layers,
    builder::{Env, MapQuota},
    counters::{OnBadPolicies, Quotas},
    deployments::Deployments,
    keys::Keys,
    ledger::Ledger,
    order::{self, Part},
    restart,
};
use crate::{
    Error, RequestContext,
    access::AccessLayer,
    alias::AliasLayer,
    cache::{CacheStats, EpochKind},
    clock::after,
    concurrency::ConcurrencyLimitLayer,
    config::{
        Config, ConfigError, Problem,
        plan::{Given, Plan},
    },
    fallback::FallbackLayer,
    policies::{DepartmentPolicy, Policies},
    price::Prices,
    quota::{self, Standing, StoreError},
    usage::{QueueSink, UsageReader},
};
use arc_swap::{ArcSwap, Guard};
use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// All that is around the calls of a stack. Clones share it.
///
/// `reload` is shown by the [module docs](super).
///
/// ```
/// use llm_layers::{ChatBody, LlmRequest, config::Config, stack::{Readiness, stack}};
/// use std::time::Duration;
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (service, handle) = stack(Config::parse(r#"
///     usage.enabled = false
///     providers.echo = { kind = "echo", models = ["small"] }
///     keys = [{ key = "ada-key", user = "ada", departments = ["research"] }]
///     quota.store = "memory"
///     departments.research.day_requests = 10
/// "#)?).await?;
/// assert_eq!(handle.readiness(), Readiness::Ready);
/// assert_eq!(&*handle.models()[0].id, "echo/small");
///
/// assert!(handle.caller(Some(b"another")).is_none());
/// let ada = handle.caller(Some(b"ada-key")).ok_or("it is in the configuration")?;
/// let request = LlmRequest::new("echo/small", ChatBody::builder().user("Hello").build()?);
/// service.oneshot(request.with_context(ada.context().clone())).await?;
///
/// let view = handle.quota("research").await?.ok_or("it is limited")?;
/// assert_eq!((view.policy.limits.day_requests, view.standing.in_day.settled.requests), (Some(10), 1));
/// assert!(handle.shutdown(Duration::from_secs(5)).await.is_clean());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    lasting: Lasting,
    running: ArcSwap<Running>,
    rebuild: Rebuild,
    /// One configuration after another.
    reloading: Mutex<()>,
}

/// Puts the layers of another configuration in the place of those that are there.
pub(super) type Rebuild = Box<dyn Fn(&Layers) + Send + Sync>;

/// What stays when the configuration changes.
pub(super) struct Lasting {
    pub(super) given: Given,
    pub(super) order: Vec<Part>,
    pub(super) env: Env,
    pub(super) ledger: Option<Ledger>,
    /// From the first limits on.
    pub(super) quotas: OnceLock<Quotas>,
    pub(super) on_bad_policies: Option<OnBadPolicies>,
    pub(super) map_quota: Option<MapQuota>,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) answers: Option<Answers>,
    pub(super) concurrency: ConcurrencyLimitLayer,
    pub(super) deployments: Deployments,
}

/// What does not.
struct Running {
    config: Arc<Config>,
    plan: Plan,
    layers: Layers,
    policies: Policies,
    keys: Keys,
}

/// A model that may be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListedModel {
    /// What it is asked for as.
    pub id: Box<str>,
    /// Its provider; `None` for an alias.
    pub provider: Option<Arc<str>>,
}

/// What a department may use, and what it has used.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QuotaView {
    /// The department.
    pub department: Arc<str>,
    /// What it may do.
    pub policy: DepartmentPolicy,
    /// What it has used, and what is reserved.
    pub standing: Standing,
}

/// Whether calls can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Readiness {
    /// They can.
    Ready,
    /// They cannot be recorded.
    UsageUnavailable,
    /// Quotas cannot be counted.
    QuotaUnavailable,
}

/// What was done and what was left when a stack was shut down.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Shared calls that were hung up.
    pub cut_flights: usize,
    /// Answers that were to be kept were not written.
    pub cache_is_unwritten: bool,
    /// What became of quotas that were to be settled; `None` if none had to be.
    pub quota: Option<quota::Report>,
    /// The file of quotas was still busy.
    pub quota_file_is_busy: bool,
    /// What became of the records; `None` if none is ours to write.
    pub usage: Option<UsageReport>,
}

/// What became of records of usage.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageReport {
    /// How many were written since the start.
    pub written: u64,
    /// How many were not.
    pub left: u64,
    /// Of these: how many may be written all the same.
    pub in_doubt: u64,
    /// How many the store refuses for ever.
    pub set_aside: u64,
    /// How often something in the outbox was no record, or was gone, and is lost.
    pub damaged: u64,
    /// How many wait on the disk for the next start.
    pub kept: u64,
    /// Why the last of them were not written.
    pub last_error: Option<Arc<str>>,
}

impl ShutdownReport {
    /// Whether nothing was lost or cut off.
    pub fn is_clean(&self) -> bool {
        let Self { cut_flights, cache_is_unwritten, quota, quota_file_is_busy, usage } = self;
        *cut_flights == 0
            && !cache_is_unwritten
            && quota.as_ref().is_none_or(|quota| quota.left == 0)
            && !quota_file_is_busy
            && usage
                .as_ref()
                .is_none_or(|usage| usage.left == 0 && usage.set_aside == 0 && usage.damaged == 0)
    }
}

impl Lasting {
    /// The layers of a configuration.
    pub(super) fn layers(
        &self,
        config: &Config,
        plan: &Plan,
        quotas: Option<&Quotas>,
    ) -> Result<(Layers, Policies), StackError> {
        let has = |part| self.order.contains(&part);
        let Given { prices, policies, .. } = &self.given;
        let prices = prices.clone().unwrap_or_else(|| Prices::new(plan.prices.clone()));
        let policies = policies.clone().unwrap_or_else(|| Policies::new(plan.policies.clone()));
        let providers =
            self.deployments.build(&plan.providers).map_err(|error| StackError::store("providers", error))?;
        let names = providers.names();
        let (access, quota, policies) = match (quotas, &plan.limits) {
            (Some(quotas), Some(limits)) => {
                let (access, quota, policies) = quotas.layers(limits, policies, &plan.providers, &prices);
                (Some(access.with_providers(names.clone())), Some(quota), policies)
            }
            (_, limits) => {
                let access = || AccessLayer::new(policies.clone()).with_providers(names.clone());
                let access = limits.as_ref().map(|_| access());
                (access, None, policies)
            }
        };
        let fallback = FallbackLayer::new(plan.chains.clone())
            .with_providers(names)
            .with_max_attempts(plan.max_attempts)
            .with_deadline(plan.deadline)
            .with_whole_deadline(plan.whole_deadline);
        if let (Some(answers), Some(plan)) = (&self.answers, &plan.cache) {
            answers.take(plan);
        }
        let hold_last_byte = config.usage.hold_last_byte.map(|time| time.0);
        let ledger = self.ledger.as_ref();
        let unpriced = plan.limits.as_ref().map(|limits| &limits.unpriced);
        let layers = Layers {
            concurrency: self.concurrency.clone(),
            alias: AliasLayer::new(plan.aliases.clone()),
            fallback,
            access: access.filter(|_| has(Part::Access)),
            hits: ledger
                .filter(|_| self.answers.is_some() && has(Part::Hits))
                .map(|ledger| ledger.hits(&prices)),
            cache: self.answers.as_ref().map(|answers| answers.layer(&plan.providers)),
            quota,
            usage: ledger
                .filter(|_| has(Part::Usage))
                .map(|ledger| ledger.layer(&prices, unpriced, hold_last_byte)),
            providers,
        };
        Ok((layers, policies))
    }

    /// Counters for the first limits, if these are the first.
    fn first_quotas(&self, config: &Config, plan: &Plan) -> Result<Option<Quotas>, StackError> {
        match &plan.limits {
            Some(limits) if self.quotas.get().is_none() && self.order.contains(&Part::Quota) => {
                // For the workers.
                let _runtime = self.runtime.enter();
                let told = self.on_bad_policies.clone();
                let history = self.ledger.as_ref().and_then(Ledger::history);
                let quotas = Quotas::open_blocking((config, limits), history, told)?;
                Ok(Some(quotas.map(self.map_quota.as_deref())))
            }
            _ => Ok(None),
        }
    }
}

impl Running {
    /// Whether a layer of this stack lets the caller's departments use this model, by its canonical name.
    fn allows(&self, caller: &RequestContext, model: &str) -> bool {
        let (policies, providers) = (self.policies.peek(), self.layers.providers.names());
        let mut departments = caller.department_ids().iter();
        self.layers.access.is_none() || departments.all(|id| policies.of(id).allows_at(&providers, model))
    }
}

impl Handle {
    pub(super) fn new(
        config: Config,
        plan: Plan,
        lasting: Lasting,
        (layers, policies): (Layers, Policies),
        rebuild: Rebuild,
    ) -> Self {
        let keys = Keys::new(plan.keys.as_deref(), &Keys::default());
        let running = Running { config: Arc::new(config), plan, layers, policies, keys };
        let (running, reloading) = (ArcSwap::from_pointee(running), Mutex::new(()));
        Self(Arc::new(Shared { lasting, running, rebuild, reloading }))
    }

    fn running(&self) -> Guard<Arc<Running>> {
        self.0.running.load()
    }

    /// The counters, if anything is limited at the moment: they outlast the limits.
    fn quotas(&self) -> Option<&Quotas> {
        let is_limited = self.running().plan.limits.is_some();
        self.0.lasting.quotas.get().filter(|_| is_limited)
    }

    /// What is odd in the configuration that calls are made by, and may be meant: worth a line in the log at each start and after each
    /// [`reload`](Self::reload).
    pub fn warnings(&self) -> Vec<Problem> {
        self.running().plan.warnings.clone()
    }

    /// The configuration that calls are made by.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.running().config)
    }

    /// The layers of this moment, for a stack of your own.
    pub fn layers(&self) -> Layers {
        self.running().layers.clone()
    }

    /// Goes by another configuration from now on: calls that come are under its tables, those in flight stay under the ones that they
    /// began with. Blocks for as long as price lists take to read, and where the first limits come, the store that counts them to open.
    ///
    /// # Errors
    ///
    /// All that is wrong with it, and all that would need a restart. Nothing has changed then.
    pub fn reload(&self, config: Config) -> Result<(), ConfigError> {
        let shared = &*self.0;
        let _one = shared.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        let env = &*shared.lasting.env;
        let running = shared.running.load_full();
        let lasting = &shared.lasting;
        let plan = Plan::new(&config, &|name| env(name), Some(&lasting.given));
        let mut problems = plan.as_ref().err().map_or_else(Vec::new, |error| error.problems().to_vec());
        let new = (&config, plan.as_ref().ok());
        problems.extend(restart::needed((&running.config, &running.plan), new, lasting));
        problems.extend(order::check(&lasting.order, &config, lasting.given.policies.is_some()));
        for problem in &mut problems {
            problem.line = config.lines().of(&problem.entry);
        }
        ConfigError::unless_empty(problems)?;
        let mut plan = plan?;
        if config.retry.budget == running.config.retry.budget {
            plan.chains.share_budget_of(&running.plan.chains);
        }
        let refused = |error| match error {
            StackError::Config(error) => error,
            StackError::Store { entry, source } => {
                let mut problem = Problem::new(entry, source);
                problem.line = config.lines().of(entry);
                ConfigError::new(vec![problem])
            }
        };
        let first = lasting.first_quotas(&config, &plan).map_err(refused)?;
        let quotas = first.as_ref().or(lasting.quotas.get());
        let (layers, policies) = lasting.layers(&config, &plan, quotas).map_err(refused)?;
        if let Some(quotas) = first {
            // One configuration after another: nobody was faster.
            let _ = lasting.quotas.set(quotas);
        }
        let keys = Keys::new(plan.keys.as_deref(), &running.keys);
        // A call that was let in by the old keys may be under the new tables: it is who it was.
        (shared.rebuild)(&layers);
        shared.running.store(Arc::new(Running { config: Arc::new(config), plan, layers, policies, keys }));
        Ok(())
    }

    /// Who has this key, compared by its hash; `None` if nobody has. Without any keys in the configuration everybody is the
    /// same nobody, who may ask everything; but with `identity = "host"` nobody is, for then it is not keys that tell: [`Caller::of`] is who asks.
    pub fn caller(&self, key: Option<&[u8]>) -> Option<Caller> {
        let running = self.running();
        running.keys.find(key, running.config.identity)
    }

    /// What may be asked for by its name: aliases of everybody, and of each provider the models that it lists.
    pub fn models(&self) -> Vec<ListedModel> {
        self.models_for(&RequestContext::new())
    }

    /// What this caller may ask for by its name: aliases of everybody and of his tenant, and of each provider the models that it lists. What
    /// leads to nothing but models that one of his departments may not use is none of them.
    pub fn models_for(&self, caller: &RequestContext) -> Vec<ListedModel> {
        let running = self.running();
        let (aliases, tenant) = (running.plan.aliases.load(), caller.tenant_id());
        let names = aliases.names_for(tenant);
        let models = running.plan.providers.iter().flat_map(|provider| {
            let name = &provider.name;
            provider.models.iter().map(move |model| ListedModel {
                id: format!("{name}/{model}").into(),
                provider: Some(Arc::clone(name)),
            })
        });
        // An alias of the same name goes before.
        let models = models.filter(|model| names.binary_search(&&*model.id).is_err());
        let listed =
            names.iter().map(|name| ListedModel { id: (*name).into(), provider: None }).chain(models);
        let may_use = |model: &ListedModel| {
            let ends = aliases.ends_for(&(&*model.id).into(), tenant);
            ends.iter().any(|end| running.allows(caller, end))
        };
        listed.filter(may_use).collect()
    }

    /// Whether calls can be made, as far as it is known without making one.
    pub fn readiness(&self) -> Readiness {
        let ledger = &self.0.lasting.ledger;
        if ledger.as_ref().is_some_and(|ledger| !ledger.is_healthy()) {
            return Readiness::UsageUnavailable;
        }
        match self.quotas().is_some_and(|quotas| !quotas.is_healthy()) {
            true => Readiness::QuotaUnavailable,
            false => Readiness::Ready,
        }
    }

    /// What was used, to be asked; `None` if it is not recorded, or into a sink of the host's without a
    /// [reader](super::StackBuilder::with_usage_reader). The ledger of a configuration tells of 50,000 groups at most.
    pub fn usage(&self) -> Option<&dyn UsageReader> {
        self.0.lasting.ledger.as_ref()?.reader()
    }

    /// Through which records go; `None` if they do not go through ours.
    pub fn usage_queue(&self) -> Option<&QueueSink> {
        self.0.lasting.ledger.as_ref()?.queue()
    }

    /// Where records wait for Redis, with what was refused or damaged there; `None` if they do not go to Redis.
    #[cfg(all(feature = "redis", feature = "rusqlite"))]
    pub fn usage_outbox(&self) -> Option<&crate::usage::OutboxSink> {
        self.0.lasting.ledger.as_ref()?.outbox()
    }

    /// What a department may use and has used; `None` if nothing is limited at the moment.
    ///
    /// # Errors
    ///
    /// The store cannot be asked, or does not know the department and cannot be told of its past, within `quota.timeout`.
    pub async fn quota(&self, department: &str) -> Result<Option<QuotaView>, StoreError> {
        let Some(quotas) = self.quotas() else { return Ok(None) };
        let policies = self.running().policies.clone();
        quotas.view(department, &policies).await.map(Some)
    }

    /// Makes all invalid that was kept of somebody or something; `false` if nothing is cached. The name of a model may be
    /// an alias: it is for all that it leads to, for whichever tenant.
    ///
    /// # Errors
    ///
    /// As [`CacheLayer::invalidate`](crate::cache::CacheLayer::invalidate).
    pub async fn invalidate(&self, kind: EpochKind, id: &str) -> Result<bool, Error> {
        let Some(answers) = &self.0.lasting.answers else { return Ok(false) };
        answers.invalidate(kind, id).await?;
        if kind == EpochKind::Model {
            // What is kept has the name that the caller's led to.
            let ends = self.running().plan.aliases.load().ends(&id.into());
            for model in ends.iter().filter(|model| **model != *id) {
                answers.invalidate(kind, model.as_str()).await?;
            }
        }
        Ok(true)
    }

    /// What the cache has done so far; `None` if nothing is cached.
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.0.lasting.answers.as_ref().map(Answers::stats)
    }

    /// Lets the workers finish what has ended, and stops them: from the outside in, for what one leaves to be done is the next one's. Belongs
    /// after the last answer has ended; calls that come later are refused, or not settled and not recorded.
    ///
    /// May be called again, also at the same time: each call tells all that was done and left since the start, and what the shortest deadline
    /// has cut off is cut off for all.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it has told all to come to its end, or some of it; another call waits for the whole.
    pub async fn shutdown(&self, deadline: Duration) -> ShutdownReport {
        let until = after(deadline);
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut report = ShutdownReport::default();
        let Lasting { ledger, quotas, answers, .. } = &self.0.lasting;
        if let Some(answers) = answers {
            let done = answers.close(left()).await;
            (report.cut_flights, report.cache_is_unwritten) = (done.flights, !done.is_written);
        }
        if let Some(quotas) = quotas.get() {
            quotas.close(until, &mut report).await;
        }
        if let Some(ledger) = ledger {
            ledger.close(left(), &mut report).await;
        }
        report
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.running();
        f.debug_struct("Handle")
            .field("order", &self.0.lasting.order)
            .field("providers", &running.layers.providers)
            .field("keys", &running.keys)
            .finish_non_exhaustive()
    }
}
