use crate::{
    access::AccessLayer,
    alias::{AliasLayer, Aliases},
    cache::{CacheLayer, CachePolicy, CacheStore},
    concurrency::ConcurrencyLimitLayer,
    fallback::FallbackLayer,
    peek::PeekLayer,
    policies::Policies,
    price::Prices,
    quota::QuotaLayer,
    telemetry::TelemetryLayer,
    timeout::CallTimeoutLayer,
    usage::{UsageLayer, UsageSink},
};
use tower::{ServiceBuilder, layer::util::Stack};

mod sealed {
    pub trait Sealed {}
    impl<L> Sealed for tower::ServiceBuilder<L> {}
}

/// Adds the layers of this crate to [`tower::ServiceBuilder`], one method for each.
///
/// ```
/// use llm_layers::{ServiceBuilderExt as _, alias::AliasTable, fallback::Chains, timeout::CallTimeoutLayer};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stack = tower::ServiceBuilder::new()
///     .answer_concurrency_limit(256)
///     .alias(AliasTable::builder().alias("fast", "acme/one").build()?)
///     .fallback(Chains::builder().chain("acme/one", ["acme/two"]).build()?)
///     .call_timeout(CallTimeoutLayer::new().with_total(Duration::from_secs(600)));
/// # let _ = stack;
/// # Ok(())
/// # }
/// ```
///
/// Which order is right and why is in `docs/order.md`.
pub trait ServiceBuilderExt<L>: sealed::Sealed + Sized {
    /// Refuses models that a department may not use. See [`access`](crate::access).
    fn access(self, policies: impl Into<Policies>) -> ServiceBuilder<Stack<AccessLayer, L>>;

    /// Resolves short names. See [`alias`](crate::alias).
    fn alias(self, aliases: impl Into<Aliases>) -> ServiceBuilder<Stack<AliasLayer, L>>;

    /// Lets at most `max` calls in until their answers have ended. See [`concurrency`](crate::concurrency).
    fn answer_concurrency_limit(self, max: usize) -> ServiceBuilder<Stack<ConcurrencyLimitLayer, L>>;

    /// Gives the same answer to the same question and the same rights. See [`cache`](crate::cache).
    fn cache(self, store: impl CacheStore, policy: CachePolicy) -> ServiceBuilder<Stack<CacheLayer, L>>;

    /// Bounds the time of a call. See [`timeout`](crate::timeout).
    fn call_timeout(self, limits: CallTimeoutLayer) -> ServiceBuilder<Stack<CallTimeoutLayer, L>>;

    /// Tries again and tries other models. See [`fallback`](crate::fallback).
    fn fallback<P>(self, policy: P) -> ServiceBuilder<Stack<FallbackLayer<P>, L>>;

    /// Holds answers back until they have content. See [`peek`](crate::peek).
    fn peek(self) -> ServiceBuilder<Stack<PeekLayer, L>>;

    /// Tells an observer of each call. See [`telemetry`](crate::telemetry).
    fn telemetry<O>(self, layer: TelemetryLayer<O>) -> ServiceBuilder<Stack<TelemetryLayer<O>, L>>;

    /// Keeps departments within their limits. See [`quota`](crate::quota).
    fn quota(self, quota: QuotaLayer) -> ServiceBuilder<Stack<QuotaLayer, L>>;

    /// Records what calls used up and cost. See [`usage`](crate::usage).
    fn usage<K: UsageSink + Clone>(
        self,
        sink: K,
        prices: impl Into<Prices>,
    ) -> ServiceBuilder<Stack<UsageLayer<K>, L>>;
}

impl<L> ServiceBuilderExt<L> for ServiceBuilder<L> {
    fn access(self, policies: impl Into<Policies>) -> ServiceBuilder<Stack<AccessLayer, L>> {
        self.layer(AccessLayer::new(policies))
    }

    fn alias(self, aliases: impl Into<Aliases>) -> ServiceBuilder<Stack<AliasLayer, L>> {
        self.layer(AliasLayer::new(aliases))
    }

    fn answer_concurrency_limit(self, max: usize) -> ServiceBuilder<Stack<ConcurrencyLimitLayer, L>> {
        self.layer(ConcurrencyLimitLayer::new(max))
    }

    fn cache(self, store: impl CacheStore, policy: CachePolicy) -> ServiceBuilder<Stack<CacheLayer, L>> {
        self.layer(CacheLayer::new(store, policy))
    }

    fn call_timeout(self, limits: CallTimeoutLayer) -> ServiceBuilder<Stack<CallTimeoutLayer, L>> {
        self.layer(limits)
    }

    fn fallback<P>(self, policy: P) -> ServiceBuilder<Stack<FallbackLayer<P>, L>> {
        self.layer(FallbackLayer::new(policy))
    }

    fn peek(self) -> ServiceBuilder<Stack<PeekLayer, L>> {
        self.layer(PeekLayer::new())
    }

    fn telemetry<O>(self, layer: TelemetryLayer<O>) -> ServiceBuilder<Stack<TelemetryLayer<O>, L>> {
        self.layer(layer)
    }

    fn quota(self, quota: QuotaLayer) -> ServiceBuilder<Stack<QuotaLayer, L>> {
        self.layer(quota)
    }

    fn usage<K: UsageSink + Clone>(
        self,
        sink: K,
        prices: impl Into<Prices>,
    ) -> ServiceBuilder<Stack<UsageLayer<K>, L>> {
        self.layer(UsageLayer::new(sink, prices))
    }
}
