use crate::{
    BodyLimits, CacheStatus, ChatBody, Error, InvalidReason, ModelName, Progress, RequestContext,
    cache::{Aboard, BypassReason, MissReason},
    decision::Decisions,
    providers::Chosen,
    so_far::{Around, SoFar},
};
use bytes::Bytes;
use std::{
    any::Any,
    fmt,
    sync::{Arc, Weak},
};

/// A request on its way down the stack.
///
/// Cloning costs a few reference counts whatever the prompt's size, so that a retry, a hedge or a fallback
/// can keep one for the next attempt.
///
/// ```
/// use llm_layers::{ChatBody, LlmRequest, RequestContext};
///
/// # fn main() -> Result<(), llm_layers::Error> {
/// let request = LlmRequest::new("fast", ChatBody::builder().user("Hello").build()?)
///     .with_context(RequestContext::new().with_user_id("ada"));
/// let same = LlmRequest::parse(r#"{"model":"fast","messages":[{"role":"user","content":"Hello"}]}"#)?;
/// assert_eq!(request.model, same.model);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct LlmRequest {
    /// What is asked for: an alias, `provider/model`, or a bare name. Layers rewrite it on the way down.
    pub model: ModelName,
    /// What the caller asked for, kept through alias and fallback.
    pub requested: ModelName,
    /// How far this call has come.
    pub progress: Progress,
    /// The chat request.
    pub body: ChatBody,
    /// Who asks, with which rights.
    pub context: RequestContext,
    /// What is to be done.
    pub operation: Operation,
    /// Which attempt this is, from 0, counted up by [`Fallback`](crate::fallback::Fallback). A label: ids
    /// of leases and records are minted for each call.
    pub attempt: u16,
    decisions: Decisions,
    /// Whose model it is, where `model` has lost that name.
    provider: Option<Arc<str>>,
    /// The deployments that have failed in earlier attempts.
    failed: Option<Arc<Vec<Chosen>>>,
    /// What a cache further out had for it, if there is one: no answer.
    cache: Option<NoAnswer>,
    /// Which shared calls it is part of.
    aboard: Option<Arc<Aboard>>,
    /// What the span of the whole call has left for those within.
    /// Weak, for requests are kept by anybody, and a span must not live as long as they do.
    around: Option<Weak<Around<dyn Any + Send + Sync>>>,
    extensions: Option<Arc<http::Extensions>>,
}

/// What an edge has put into the body on behalf of a caller of another dialect, and an answer can do without: a leaf
/// leaves it out where its provider would refuse it. What a caller of OpenAI's dialect sends is none of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispensable {
    /// Thoughts of earlier turns, as `reasoning_content` of their messages. Some providers refuse to go on without them, and
    /// others refuse them.
    pub thoughts: bool,
    /// A `reasoning_effort` of `none`, which many models do not know.
    pub effort: bool,
}

/// Why a cache gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    Bypass(BypassReason),
    Miss(MissReason),
}

/// What a request asks a provider to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Continue a conversation.
    #[default]
    Chat,
}

impl LlmRequest {
    /// A request for `model` from nobody in particular.
    pub fn new(model: impl Into<ModelName>, body: ChatBody) -> Self {
        let model = model.into();
        Self {
            requested: model.clone(),
            model,
            progress: Progress::new(),
            body,
            context: RequestContext::new(),
            operation: Operation::Chat,
            attempt: 0,
            decisions: Decisions::default(),
            provider: None,
            failed: None,
            cache: None,
            aboard: None,
            around: None,
            extensions: None,
        }
    }

    /// Reads an OpenAI-style chat request within the default [`BodyLimits`].
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) that names the member at fault.
    pub fn parse(json: impl Into<Bytes>) -> Result<Self, Error> {
        Self::parse_within(json, &BodyLimits::default())
    }

    /// Reads an OpenAI-style chat request within `limits`.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) that names the member at fault.
    pub fn parse_within(json: impl Into<Bytes>, limits: &BodyLimits) -> Result<Self, Error> {
        Self::of(ChatBody::parse_within(json, limits)?)
    }

    /// A request for the model that the body names.
    pub(crate) fn of(body: ChatBody) -> Result<Self, Error> {
        let model = body.model().ok_or_else(|| Error::invalid("model", InvalidReason::Missing))?;
        Ok(Self::new(model, body))
    }

    /// Says who asks.
    #[must_use]
    pub fn with_context(mut self, context: RequestContext) -> Self {
        self.context = context;
        self
    }

    /// What of the body its provider may be spared.
    pub fn dispensable(&self) -> Dispensable {
        self.body.translated().map(|translated| translated.dispensable).unwrap_or_default()
    }

    /// From now on layers note what they decide, for the [record](crate::decision) of this call.
    pub fn keep_decisions(&mut self) {
        if !self.decisions.are_kept() {
            self.decisions = Decisions::keep(&self.requested);
        }
    }

    /// Where layers note what they decide.
    pub const fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// What a cache further out had to do with it.
    pub(crate) const fn cache(&self) -> (CacheStatus, Option<MissReason>) {
        match self.cache {
            None => (CacheStatus::Unused, None),
            Some(NoAnswer::Bypass(reason)) => (CacheStatus::Bypass(reason), None),
            Some(NoAnswer::Miss(why)) => (CacheStatus::Miss, Some(why)),
        }
    }

    pub(crate) const fn set_cache(&mut self, had: NoAnswer) {
        self.cache = Some(had);
    }

    pub(crate) const fn aboard(&self) -> Option<&Arc<Aboard>> {
        self.aboard.as_ref()
    }

    pub(crate) fn set_aboard(&mut self, aboard: Arc<Aboard>) {
        self.aboard = Some(aboard);
    }

    /// The span of the whole call, as long as it lives.
    pub(crate) fn around(&self) -> Option<Arc<Around<dyn Any + Send + Sync>>> {
        self.around.as_ref()?.upgrade()
    }

    pub(crate) fn set_around<T: Send + Sync + 'static>(&mut self, around: &Arc<Around<Option<T>>>) {
        let around: Weak<Around<Option<T>>> = Arc::downgrade(around);
        self.around = Some(around);
    }

    /// Tells the span of the whole call, if there is one, how far this has come.
    pub(crate) fn tell(&self, so_far: impl FnOnce(&mut SoFar)) {
        if let Some(around) = self.around() {
            around.with(so_far);
        }
    }

    /// The provider that the model is of, within [`Providers`](crate::providers::Providers); of one in another, both.
    pub(crate) const fn provider(&self) -> Option<&Arc<str>> {
        self.provider.as_ref()
    }

    pub(crate) fn set_provider(&mut self, name: &Arc<str>) {
        self.provider = Some(match &self.provider {
            None => Arc::clone(name),
            Some(outer) => format!("{outer}/{name}").into(),
        });
    }

    /// The deployments that are not asked again while there are others.
    pub(crate) fn failed(&self) -> &[Chosen] {
        self.failed.as_deref().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn add_failed(&mut self, chosen: Chosen) {
        Arc::make_mut(self.failed.get_or_insert_default()).push(chosen);
    }

    /// What can change the answer, the caller's rights apart. A new field has to be thought of here.
    pub(crate) fn identity(&self) -> (Operation, Option<&str>, &ModelName, Dispensable, &ChatBody) {
        let Self {
            provider,
            model,
            requested: _,
            progress: _,
            body,
            context: _,
            operation,
            attempt: _,
            decisions: _,
            failed: _,
            cache: _,
            aboard: _,
            around: _,
            // No layer of this crate decides anything on them.
            extensions: _,
        } = self;
        (*operation, provider.as_deref(), model, self.dispensable(), body)
    }

    /// Something that a layer of yours has attached. No layer of this crate decides anything on it.
    pub fn extension<T: Clone + Send + Sync + 'static>(&self) -> Option<&T> {
        self.extensions.as_ref()?.get()
    }

    /// Attaches something for a layer of yours further down; clones of the request made before do not see it.
    pub fn insert_extension<T: Clone + Send + Sync + 'static>(&mut self, value: T) {
        Arc::make_mut(self.extensions.get_or_insert_default()).insert(value);
    }
}

impl fmt::Debug for LlmRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LlmRequest")
            .field("model", &self.model)
            .field("requested", &self.requested)
            .field("operation", &self.operation)
            .field("attempt", &self.attempt)
            .field("body", &self.body)
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}
