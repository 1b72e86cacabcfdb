use crate::cache::CacheControl;
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Who is asking, with which rights.
///
/// Set by the host from what it has authenticated, never from the request's body: a `user` member in the
/// body is the client's claim and selects nothing. Cloning costs one reference count.
///
/// ```
/// use llm_layers::{KbScope, RequestContext};
///
/// let context = RequestContext::new()
///     .with_user_id("ada")
///     .with_departments(["research", "operations"])
///     .with_kb(KbScope::new("handbook").with_acl_hash("5f2c"));
/// assert_eq!(context.user_id(), Some("ada"));
/// assert!(!format!("{context:?}").contains("ada"));
/// ```
#[derive(Clone, Default)]
pub struct RequestContext(Option<Arc<Facts>>);

#[derive(Clone, Default)]
struct Facts {
    user_id: Option<Arc<str>>,
    tenant_id: Option<Arc<str>>,
    department_ids: Vec<Arc<str>>,
    agent_name: Option<Arc<str>>,
    task_type: Option<Arc<str>>,
    conversation_id: Option<Arc<str>>,
    request_id: Option<Arc<str>>,
    kbs: Vec<KbScope>,
    deadline: Option<Instant>,
    cache_control: CacheControl,
}

/// What decides who may be given the same answer.
pub(crate) struct Rights<'a> {
    pub(crate) tenant_id: Option<&'a str>,
    pub(crate) user_id: Option<&'a str>,
    pub(crate) kbs: &'a [KbScope],
}

/// [`Rights`] that outlive the call.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeptRights {
    tenant_id: Option<Arc<str>>,
    user_id: Option<Arc<str>>,
    kbs: Vec<KbScope>,
}

/// A knowledge base that a prompt draws on, and the caller's rights to it.
///
/// One value, so that nobody names a knowledge base and forgets the rights that guard it: without a hash
/// the rights are unknown, and nothing is cached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct KbScope {
    /// The knowledge base.
    pub id: Arc<str>,
    /// A hash over the caller's effective rights.
    pub acl_hash: Option<Arc<str>>,
    /// The version of its content, where the host knows one.
    pub version: Option<Arc<str>>,
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident, $with:ident;)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> Option<&str> {
            self.0.as_ref()?.$name.as_deref()
        }

        #[doc = concat!("Sets [`", stringify!($name), "`](Self::", stringify!($name), ").")]
        #[must_use]
        pub fn $with(mut self, value: impl Into<Arc<str>>) -> Self {
            self.facts().$name = Some(value.into());
            self
        }
    )*};
}

impl RequestContext {
    /// A context that names nobody.
    pub const fn new() -> Self {
        Self(None)
    }

    facts! {
        /// The authenticated user. Without one nothing is cached.
        user_id, with_user_id;
        /// The tenant that the user belongs to.
        tenant_id, with_tenant_id;
        /// The agent that asks, for records only.
        agent_name, with_agent_name;
        /// The kind of task, for records only.
        task_type, with_task_type;
        /// The conversation, if the host has a real id for it.
        conversation_id, with_conversation_id;
        /// The id that the host gave this request: a label, not a key.
        request_id, with_request_id;
    }

    /// The departments that the call is charged to, each once, in the order given.
    pub fn department_ids(&self) -> &[Arc<str>] {
        self.0.as_ref().map_or(&[], |facts| &facts.department_ids)
    }

    /// Sets [`department_ids`](Self::department_ids); one that is named twice counts once.
    #[must_use]
    pub fn with_departments<I: Into<Arc<str>>>(mut self, ids: impl IntoIterator<Item = I>) -> Self {
        let mut departments: Vec<Arc<str>> = Vec::new();
        for id in ids.into_iter().map(Into::into) {
            if !departments.contains(&id) {
                departments.push(id);
            }
        }
        self.facts().department_ids = departments;
        self
    }

    /// The knowledge bases that the prompt draws on. None means that nothing was retrieved.
    pub fn kbs(&self) -> &[KbScope] {
        self.0.as_ref().map_or(&[], |facts| &facts.kbs)
    }

    /// Adds a knowledge base.
    #[must_use]
    pub fn with_kb(mut self, kb: KbScope) -> Self {
        self.facts().kbs.push(kb);
        self
    }

    /// When the caller stops waiting.
    pub fn deadline(&self) -> Option<std::time::Instant> {
        self.0.as_ref()?.deadline.map(Instant::into_std)
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub fn with_deadline(mut self, deadline: std::time::Instant) -> Self {
        self.facts().deadline = Some(deadline.into());
        self
    }

    /// Sets [`deadline`](Self::deadline) to `timeout` from now.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.facts().deadline = Instant::now().checked_add(timeout);
        self
    }

    /// As [`with_timeout`](Self::with_timeout), unless there is an earlier deadline.
    #[cfg(feature = "axum")]
    pub(crate) fn with_timeout_within(self, timeout: Duration) -> Self {
        let deadline = self.deadline();
        let other = self.with_timeout(timeout);
        match (deadline, other.deadline()) {
            (Some(deadline), Some(later)) if later > deadline => other.with_deadline(deadline),
            _ => other,
        }
    }

    /// The same, from somebody who waits as long as it takes.
    pub(crate) fn without_deadline(mut self) -> Self {
        if self.deadline().is_some() {
            self.facts().deadline = None;
        }
        self
    }

    /// How a cache may be used for this call: as the caller wishes, which only narrows what its policy allows.
    pub fn cache_control(&self) -> CacheControl {
        self.0.as_ref().map_or_else(CacheControl::new, |facts| facts.cache_control)
    }

    /// Sets [`cache_control`](Self::cache_control).
    #[must_use]
    pub fn with_cache_control(mut self, control: CacheControl) -> Self {
        self.facts().cache_control = control;
        self
    }

    /// The caller's rights. A new fact has to be thought of here.
    pub(crate) fn rights(&self) -> Rights<'_> {
        let Some(facts) = &self.0 else { return Rights { tenant_id: None, user_id: None, kbs: &[] } };
        let Facts {
            user_id,
            tenant_id,
            department_ids: _,
            agent_name: _,
            task_type: _,
            conversation_id: _,
            request_id: _,
            kbs,
            deadline: _,
            cache_control: _,
        } = &**facts;
        Rights { tenant_id: tenant_id.as_deref(), user_id: user_id.as_deref(), kbs }
    }

    /// The caller's rights, to be kept with what was made for him.
    pub(crate) fn kept_rights(&self) -> KeptRights {
        let (tenant_id, user_id) = match &self.0 {
            Some(facts) => (facts.tenant_id.clone(), facts.user_id.clone()),
            None => (None, None),
        };
        KeptRights { tenant_id, user_id, kbs: self.kbs().to_vec() }
    }

    fn facts(&mut self) -> &mut Facts {
        Arc::make_mut(self.0.get_or_insert_default())
    }
}

impl KeptRights {
    /// Whether a caller has the same, told in the same way. One who has them told in another way may have the same, too.
    pub(crate) fn are(&self, rights: &Rights<'_>) -> bool {
        let Rights { tenant_id, user_id, kbs } = rights;
        self.tenant_id.as_deref() == *tenant_id && self.user_id.as_deref() == *user_id && self.kbs == *kbs
    }

    /// About how many bytes of memory they take.
    pub(crate) fn weight(&self) -> usize {
        let len = |text: &Option<Arc<str>>| text.as_ref().map_or(0, |text| text.len());
        let kb = |kb: &KbScope| size_of::<KbScope>() + kb.id.len() + len(&kb.acl_hash) + len(&kb.version);
        len(&self.tenant_id) + len(&self.user_id) + self.kbs.iter().map(kb).sum::<usize>()
    }
}

impl fmt::Debug for RequestContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestContext")
            .field("request_id", &self.request_id())
            .field("has_user_id", &self.user_id().is_some())
            .field("departments", &self.department_ids().len())
            .field("kbs", &self.kbs().len())
            .finish_non_exhaustive()
    }
}

impl KbScope {
    /// A knowledge base with unknown rights.
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self { id: id.into(), acl_hash: None, version: None }
    }

    /// Sets [`acl_hash`](Self::acl_hash).
    #[must_use]
    pub fn with_acl_hash(mut self, hash: impl Into<Arc<str>>) -> Self {
        self.acl_hash = Some(hash.into());
        self
    }

    /// Sets [`version`](Self::version).
    #[must_use]
    pub fn with_version(mut self, version: impl Into<Arc<str>>) -> Self {
        self.version = Some(version.into());
        self
    }
}
