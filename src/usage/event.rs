use crate::{
    CacheStatus, CallId, ModelName, RequestContext, TokenUsage,
    cache::MissReason,
    price::{Cost, NanoUsd, ServiceTier},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// What one call to a provider used up, or one answer from a cache saved.
///
/// Counts in full for each department of its [context](Self::context); without any it counts once, for nobody.
///
/// For tests of a store of your own it may be made by hand; its fields are public.
///
/// ```
/// use llm_layers::{RequestContext, TokenUsage, usage::{Outcome, UsageEvent}};
/// use std::time::SystemTime;
///
/// let mut event = UsageEvent::new("acme/one", TokenUsage::new(9, 1), SystemTime::UNIX_EPOCH);
/// event.context = RequestContext::new().with_departments(["research"]);
/// assert_eq!((event.outcome, event.cost.amount), (Outcome::Ok, None));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UsageEvent {
    /// Which call: minted for it, never taken from the request.
    pub id: EventId,
    /// What quotas charge it to, if they do: attempts share it that are made in the name of one reservation.
    pub lease: Option<CallId>,
    /// When it ended, by the clock.
    pub ended_at: SystemTime,
    /// Who asked.
    pub context: RequestContext,
    /// The model that the caller named.
    pub requested: ModelName,
    /// The model that was asked, by its canonical name.
    pub model: ModelName,
    /// The model as the provider names it, often with a date.
    pub answered: Option<Box<str>>,
    /// The provider.
    pub provider: Option<Arc<str>>,
    /// Which attempt of a fallback.
    pub attempt: u16,
    /// Whether a stream was asked for.
    pub streamed: bool,
    /// The tokens that are billed.
    pub usage: TokenUsage,
    /// What they cost.
    pub cost: Cost,
    /// What quotas charge instead where that is not known, by a price that is
    /// [assumed](super::UsageLayer::assuming).
    pub assumed_cost: Option<NanoUsd>,
    /// The tier in which the provider says that it served the call. Without a word of it the cost is that of the dearer
    /// one: the standard tier, or the one that was asked for.
    pub service_tier: Option<ServiceTier>,
    /// What an answer from a cache would have cost.
    pub saved: Option<Box<Saved>>,
    /// From the call to its end.
    pub latency: Duration,
    /// From the call to its first content.
    pub first_content: Option<Duration>,
    /// How it ended.
    pub outcome: Outcome,
    /// What the cache had to do with it, be it further out or further in.
    pub cache: CacheStatus,
    /// Why the cache had no answer, if it was asked.
    pub cache_miss: Option<MissReason>,
}

impl UsageEvent {
    /// An answer of `model`, asked for by this name, of nobody and without a price, with an id of its own.
    pub fn new(model: impl Into<ModelName>, usage: TokenUsage, ended_at: SystemTime) -> Self {
        let model = model.into();
        Self {
            id: EventId::mint(ended_at),
            lease: None,
            ended_at,
            context: RequestContext::new(),
            requested: model.clone(),
            provider: model.split().map(|(provider, _)| provider.into()),
            model,
            answered: None,
            attempt: 0,
            streamed: false,
            usage,
            cost: Cost::unpriced(),
            assumed_cost: None,
            service_tier: None,
            saved: None,
            latency: Duration::ZERO,
            first_content: None,
            outcome: Outcome::Ok,
            cache: CacheStatus::Unused,
            cache_miss: None,
        }
    }
}

/// What was not spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The tokens.
    pub usage: TokenUsage,
    /// Their cost.
    pub cost: Cost,
}

/// Which call an event is of.
pub type EventId = CallId;

/// How a call ended, as far as its record is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// With an answer.
    Ok,
    /// With an answer that says nothing.
    Empty,
    /// With an error, or a stream that broke.
    Error,
    /// The caller went away.
    Aborted,
    /// With an answer from a cache.
    CacheHit,
    /// With an answer that another call had asked for.
    Coalesced,
}

impl Outcome {
    pub(crate) const ALL: [Self; 6] =
        [Self::Ok, Self::Empty, Self::Error, Self::Aborted, Self::CacheHit, Self::Coalesced];

    /// The outcome of this [name](Self::as_str), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }

    /// A name of few letters, for columns and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Empty => "empty",
            Self::Error => "error",
            Self::Aborted => "aborted",
            Self::CacheHit => "cache_hit",
            Self::Coalesced => "coalesced",
        }
    }
}

/// A count as stores keep it: in 63 bits, which no provider reaches.
pub(super) fn stored_tokens(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Nanoseconds as stores keep them: 292 years at most.
pub(super) fn stored_duration(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}
