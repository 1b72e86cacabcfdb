use super::policy::{Cause, Decision, Failure, Policy, is_account_limit};
use crate::{Attempt, LlmRequest, ModelName, alias::Aliases, providers::ProviderNames};
use arc_swap::ArcSwap;
use std::{collections::HashMap, fmt, sync::Arc, time::Duration};
use tower::retry::budget::{Budget, TpsBudget};

/// The usual [`Policy`]: for each model the models to try after it, and how often to try the same one.
///
/// A chain is looked up by the canonical name that the caller's model resolved to, and only by that: the
/// chains of its targets are not followed. Targets may be aliases, resolved for each attempt by the same table, tenant
/// and user. The table may be exchanged while it is used; a call keeps the one it found at its first failure.
///
/// ```
/// use llm_layers::{
///     ChatBody, Completion, Error, ErrorClass, LlmRequest, LlmResponse, TokenUsage,
///     fallback::{Action, Backoff, Cause, Chains, FallbackLayer},
/// };
/// use std::time::Duration;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let chains = Chains::builder()
///     .chain("acme/small", ["other/small"])
///     .chain_on(Cause::ContextWindow, "acme/small", ["acme/long"])
///     .retries(2)
///     .backoff(Backoff::new(Duration::from_millis(100), Duration::from_secs(2)))
///     .on(Cause::RateLimited, Action::Next)
///     .build()?;
/// let service = FallbackLayer::new(chains).layer(service_fn(async |request: LlmRequest| {
///     match request.model.as_str() {
///         "acme/small" => Err(Error::provider(ErrorClass::ContextWindow, "acme", "small")),
///         _ => Ok(LlmResponse::new(request.model, Completion::text("hi", TokenUsage::new(90_000, 1)))),
///     }
/// }));
/// let request = LlmRequest::new("acme/small", ChatBody::builder().user("All of it …").build()?);
/// assert_eq!(service.oneshot(request).await?.model, "acme/long");
///
/// let error = Chains::builder().chain("acme/small", ["acme/small"]).build().unwrap_err();
/// assert_eq!(error.problems().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Chains {
    table: Arc<ArcSwap<ChainTable>>,
    aliases: Option<Aliases>,
    budget: Option<Arc<TpsBudget>>,
    // Of this call.
    retries: u32,
    found: Option<Arc<ChainTable>>,
}

/// The chains, and the rules by which they are followed: immutable, checked when it is built.
#[derive(Debug, Clone, Default)]
pub struct ChainTable {
    chains: HashMap<ModelName, Vec<ModelName>>,
    /// Chains that are followed after failures of one cause, instead.
    by_cause: HashMap<(ModelName, Cause), Vec<ModelName>>,
    actions: HashMap<Cause, Action>,
    retries: u32,
    backoff: Backoff,
    max_wait: Duration,
}

/// What to do about failures of one cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Try the same model again, as often as is configured; then the next one.
    Retry,
    /// Try the next model.
    Next,
    /// Tell the caller.
    Stop,
}

/// How long to wait before the same model is tried again: anything up to `base`, then up to twice as much each
/// time, and never more than `max`.
///
/// Full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

/// Builds [`Chains`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ChainsBuilder {
    table: Settings,
    aliases: Option<Aliases>,
    providers: Option<ProviderNames>,
    budget: Option<Arc<TpsBudget>>,
}

#[derive(Debug, Clone)]
struct Settings(ChainTable);

/// All that is wrong with the chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainError {
    problems: Vec<ChainProblem>,
}

/// One thing that is wrong with a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChainProblem {
    /// A chain leads back to the model that it is for.
    Cycle {
        /// The model.
        model: ModelName,
        /// The target that means the same.
        target: ModelName,
    },
    /// A target stands twice in a chain.
    Repeated {
        /// The model.
        model: ModelName,
        /// The target.
        target: ModelName,
    },
    /// A target leads to no provider.
    Dangling {
        /// The model.
        model: ModelName,
        /// The target.
        target: ModelName,
    },
    /// The chain is for an alias, which is never what a call arrives with.
    KeyIsAlias {
        /// The alias.
        model: ModelName,
        /// What it means.
        target: ModelName,
    },
}

// ===== impl Chains =====

impl Chains {
    /// No chains yet.
    pub fn builder() -> ChainsBuilder {
        ChainsBuilder::default()
    }

    /// Calls that come from now on use `table`.
    pub fn store(&self, table: ChainTable) {
        self.table.store(Arc::new(table));
    }
}

impl Default for Chains {
    fn default() -> Self {
        Self::from_parts(ChainsBuilder::default())
    }
}

impl Chains {
    fn from_parts(builder: ChainsBuilder) -> Self {
        let table = Arc::new(ArcSwap::from_pointee(builder.table.0));
        Self { table, aliases: builder.aliases, budget: builder.budget, retries: 0, found: None }
    }

    /// Goes on with the budget of others, if both have one.
    #[cfg(feature = "config")]
    pub(crate) fn share_budget_of(&mut self, others: &Self) {
        if self.budget.is_some() && others.budget.is_some() {
            self.budget.clone_from(&others.budget);
        }
    }

    /// The models that are still to be tried, in their order.
    fn targets(
        &self,
        table: &ChainTable,
        cause: Cause,
        failure: &Failure<'_>,
    ) -> impl Iterator<Item = ModelName> {
        let chain = failure.models.first().map(|first| table.chain(first, cause, failure.attempts));
        let targets = chain.unwrap_or_default().iter().map(|target| match &self.aliases {
            Some(aliases) => aliases.resolve(target, failure.request),
            None => target.clone(),
        });
        targets.filter(|target| !failure.models.contains(target))
    }

    fn next(&self, table: &ChainTable, cause: Cause, failure: &Failure<'_>) -> Decision {
        self.targets(table, cause, failure).next().map_or(Decision::Stop, Decision::Next)
    }
}

impl Policy for Chains {
    fn begin(&mut self, _: &LlmRequest) {
        (self.retries, self.found) = (0, None);
        if let Some(budget) = &self.budget {
            budget.deposit();
        }
    }

    fn decide(&mut self, failure: &Failure<'_>) -> Decision {
        let Some(cause) = Cause::of(failure.error) else { return Decision::Stop };
        let table = Arc::clone(self.found.get_or_insert_with(|| self.table.load_full()));
        let action = match table.action(cause) {
            // What met its bound would meet it again.
            Action::Retry if cause == Cause::Empty && !failure.error.is_retryable() => Action::Next,
            Action::Next if failure.has_other_deployment && is_account_limit(failure.error) => Action::Retry,
            action => action,
        };
        match action {
            Action::Stop => Decision::Stop,
            Action::Next => {
                self.retries = 0;
                self.next(&table, cause, failure)
            }
            Action::Retry => {
                let wait = match failure.has_other_deployment {
                    true => Duration::ZERO,
                    false => {
                        let asked = failure.error.retry_after().unwrap_or_default();
                        table.backoff.after(self.retries).max(asked)
                    }
                };
                // Who is tried again must not take the place of who is not tried yet.
                let others = self.targets(&table, cause, failure).count();
                if self.retries < table.retries
                    && usize::from(failure.calls_left) > others
                    && wait <= table.max_wait
                    && failure.time_left.is_none_or(|left| wait < left)
                    && self.budget.as_ref().is_none_or(|budget| budget.withdraw())
                {
                    self.retries += 1;
                    return Decision::Retry { after: wait };
                }
                self.retries = 0;
                self.next(&table, cause, failure)
            }
        }
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chains").field("table", &self.table.load()).finish_non_exhaustive()
    }
}

// ===== impl ChainTable =====

impl ChainTable {
    /// What is followed for `first` after `attempts`, the last of which failed for `cause`.
    fn chain(&self, first: &ModelName, cause: Cause, attempts: &[Attempt]) -> &[ModelName] {
        let of = |cause| self.by_cause.get(&(first.clone(), cause));
        // What the request itself has met it would meet again with the models for everything else.
        let met = attempts
            .iter()
            .rev()
            .filter_map(|attempt| Cause::of(&attempt.error))
            .filter(|cause| matches!(cause, Cause::ContextWindow | Cause::ContentFilter))
            .find_map(of);
        met.or_else(|| of(cause)).or_else(|| self.chains.get(first)).map_or(&[], Vec::as_slice)
    }

    fn action(&self, cause: Cause) -> Action {
        self.actions.get(&cause).copied().unwrap_or(match cause {
            Cause::Unreachable
            | Cause::ServerError
            | Cause::RateLimited
            | Cause::Timeout
            | Cause::Empty
            | Cause::Broken => Action::Retry,
            _ => Action::Next,
        })
    }
}

impl Backoff {
    /// Up to `base`, doubling, up to `max`.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max }
    }

    /// How long to wait after `retries` earlier ones.
    pub fn after(&self, retries: u32) -> Duration {
        let most = self.base.saturating_mul(1_u32.checked_shl(retries).unwrap_or(u32::MAX)).min(self.max);
        most.mul_f64(fastrand::f64())
    }
}

impl Default for Backoff {
    /// 100 ms, up to 2 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(2))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self(ChainTable { max_wait: Duration::from_secs(10), ..ChainTable::default() })
    }
}

// ===== impl ChainsBuilder =====

impl ChainsBuilder {
    /// After `model`, a canonical name, try `targets` in their order.
    pub fn chain<M: Into<ModelName>>(
        mut self,
        model: impl Into<ModelName>,
        targets: impl IntoIterator<Item = M>,
    ) -> Self {
        self.table.0.chains.entry(model.into()).or_default().extend(targets.into_iter().map(Into::into));
        self
    }

    /// After failures of `model` for this cause, try these `targets` instead: a model with a longer context
    /// for prompts that are too long, say. After a [`ContextWindow`](Cause::ContextWindow) or a
    /// [`ContentFilter`](Cause::ContentFilter) no others are tried in this call, for they would meet the same.
    pub fn chain_on<M: Into<ModelName>>(
        mut self,
        cause: Cause,
        model: impl Into<ModelName>,
        targets: impl IntoIterator<Item = M>,
    ) -> Self {
        let chain = self.table.0.by_cause.entry((model.into(), cause)).or_default();
        chain.extend(targets.into_iter().map(Into::into));
        self
    }

    /// What to do about failures of this cause.
    ///
    /// Unless told: the same model again, as often as [`retries`](Self::retries) says, for what may be better next time
    /// (unreachable, server error, rate limit, timeout, empty, broken); the next model for the rest, and always after an
    /// answer that met its bound on tokens before it said anything. What is larger than one
    /// [account](crate::ProviderFailure::is_account_limit) takes in a minute is tried again where another deployment can be asked.
    pub fn on(mut self, cause: Cause, action: Action) -> Self {
        self.table.0.actions.insert(cause, action);
        self
    }

    /// How often the same model is tried again, each model anew; 0 unless told. Less often where it would take the last
    /// [calls](super::FallbackLayer::with_max_attempts) from models that are still to be tried.
    pub fn retries(mut self, retries: u32) -> Self {
        self.table.0.retries = retries;
        self
    }

    /// How long to wait before the same model is tried again. A longer `Retry-After` wins. Nothing is waited for where another
    /// deployment of its provider is asked, that has not failed in this call and does not rest.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.table.0.backoff = backoff;
        self
    }

    /// Who asks for a longer wait than this, or than there is time, is not tried again, but left for the next model;
    /// 10 s unless told.
    pub fn max_wait(mut self, max: Duration) -> Self {
        self.table.0.max_wait = max;
        self
    }

    /// Tries the same model again only while the budget lasts, so that retries cannot multiply an outage.
    pub fn retry_budget(mut self, budget: TpsBudget) -> Self {
        self.budget = Some(Arc::new(budget));
        self
    }

    /// Resolves targets by these aliases.
    pub fn aliases(mut self, aliases: Aliases) -> Self {
        self.aliases = Some(aliases);
        self
    }

    /// Tells which providers there are, so that a target that leads to none is an error.
    pub fn providers(mut self, providers: ProviderNames) -> Self {
        self.providers = Some(providers);
        self
    }

    /// Checks the chains.
    ///
    /// # Errors
    ///
    /// All that is wrong with them.
    pub fn build(self) -> Result<Chains, ChainError> {
        self.check()?;
        Ok(Chains::from_parts(self))
    }

    /// Checks the chains, for [`Chains::store`].
    ///
    /// # Errors
    ///
    /// All that is wrong with them.
    pub fn build_table(self) -> Result<ChainTable, ChainError> {
        self.check()?;
        Ok(self.table.0)
    }

    fn check(&self) -> Result<(), ChainError> {
        let aliases = self.aliases.as_ref().map(Aliases::load);
        // Whoever asks, and whatever a split comes to.
        let ends = |model: &ModelName| match &aliases {
            Some(table) => table.ends(model),
            None => vec![model.clone()],
        };
        let mut problems = Vec::new();
        let ChainTable { chains, by_cause, .. } = &self.table.0;
        let all = chains.iter().chain(by_cause.iter().map(|((model, _), targets)| (model, targets)));
        for (model, targets) in all {
            if let Some(target) = ends(model).first().filter(|_| !ends(model).contains(model)) {
                problems.push(ChainProblem::KeyIsAlias { model: model.clone(), target: target.clone() });
            }
            for (at, target) in targets.iter().enumerate() {
                let ends = ends(target);
                let repeated = targets[..at].contains(target);
                let served =
                    |end| self.providers.as_ref().is_none_or(|names| names.provider_for(end).is_some());
                let (model, target) = (model.clone(), target.clone());
                if ends.iter().all(|end| *end == model) {
                    problems.push(ChainProblem::Cycle { model, target });
                } else if repeated {
                    problems.push(ChainProblem::Repeated { model, target });
                } else if !ends.iter().all(|end| served(end)) {
                    problems.push(ChainProblem::Dangling { model, target });
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(ChainError { problems }) }
    }
}

impl ChainError {
    /// Each problem.
    pub fn problems(&self) -> &[ChainProblem] {
        &self.problems
    }
}

impl std::error::Error for ChainError {}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if at == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl fmt::Display for ChainProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cycle { model, target } => write!(f, "fallback {target} of {model} is {model} itself"),
            Self::Repeated { model, target } => write!(f, "fallback {target} of {model} is listed twice"),
            Self::Dangling { model, target } => {
                write!(f, "fallback {target} of {model} leads to no provider")
            }
            Self::KeyIsAlias { model, target } => {
                write!(f, "fallbacks of {model} are never used, for it is an alias of {target}")
            }
        }
    }
}
