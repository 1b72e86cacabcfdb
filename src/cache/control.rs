use std::time::Duration;

/// How one caller wants a cache to be used. Only narrows what the [policy](super::CachePolicy) allows: nobody chooses a
/// scope or a longer life by it.
///
/// ```
/// use llm_layers::{RequestContext, cache::CacheControl};
/// use std::time::Duration;
///
/// let fresh = CacheControl::new().with_max_age(Duration::from_secs(60));
/// let context = RequestContext::new().with_user_id("ada").with_cache_control(fresh);
/// assert_eq!(context.cache_control().max_age, Some(Duration::from_secs(60)));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheControl {
    /// Neither look for an answer nor keep the one that comes.
    pub no_store: bool,
    /// Do not look for an answer; keep the one that comes.
    pub no_cache: bool,
    /// A kept answer or none: [`NotCached`](crate::ErrorKind::NotCached), and nobody is asked.
    pub only_if_cached: bool,
    /// No answer older than this.
    pub max_age: Option<Duration>,
    /// Keep the answer no longer than this.
    pub ttl: Option<Duration>,
}

impl CacheControl {
    /// As the policy says.
    pub const fn new() -> Self {
        Self { no_store: false, no_cache: false, only_if_cached: false, max_age: None, ttl: None }
    }

    /// Sets [`no_store`](Self::no_store).
    #[must_use]
    pub const fn with_no_store(mut self) -> Self {
        self.no_store = true;
        self
    }

    /// Sets [`no_cache`](Self::no_cache).
    #[must_use]
    pub const fn with_no_cache(mut self) -> Self {
        self.no_cache = true;
        self
    }

    /// Sets [`only_if_cached`](Self::only_if_cached).
    #[must_use]
    pub const fn with_only_if_cached(mut self) -> Self {
        self.only_if_cached = true;
        self
    }

    /// Sets [`max_age`](Self::max_age).
    #[must_use]
    pub const fn with_max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub const fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The stricter of both in everything.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let least = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        Self {
            no_store: self.no_store || other.no_store,
            no_cache: self.no_cache || other.no_cache,
            only_if_cached: self.only_if_cached || other.only_if_cached,
            max_age: least(self.max_age, other.max_age),
            ttl: least(self.ttl, other.ttl),
        }
    }
}
