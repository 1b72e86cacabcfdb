use super::{
    Content,
    semconv::{self, SemConv, Value},
};
use crate::StreamChunk;
use crate::{
    Attempt, CacheStatus, Error, LlmRequest, ModelName, TokenUsage,
    body::{Arrival, End, Summary},
    decision::DecisionRecord,
    price::ServiceTier,
};
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

/// Where a [`TelemetryLayer`](super::TelemetryLayer) reports to.
///
/// The layer knows when a call begins and how it ends; an observer gives that a form. There is one for
/// [`tracing`](super::TracingObserver) and one for the API of [OpenTelemetry](super::OtelObserver), `()` for nothing, and a
/// pair for both.
///
/// ```
/// use llm_layers::{
///     ChatBody, LlmRequest,
///     provider::Echo,
///     telemetry::{CallEnd, CallSpan, CallStart, Observer, TelemetryLayer},
/// };
/// use std::sync::mpsc;
/// use tower::{Layer, ServiceExt};
///
/// /// Tells what was asked and what came of it.
/// #[derive(Clone)]
/// struct Report(mpsc::Sender<String>);
///
/// struct Call(Report, String);
///
/// impl Observer for Report {
///     type Span = Call;
///
///     fn start(&self, start: &CallStart<'_>, _parent: Option<&()>) -> Option<Call> {
///         Some(Call(self.clone(), start.model().to_owned()))
///     }
/// }
///
/// impl CallSpan for Call {
///     type Scope = ();
///
///     fn scope(&self) -> Option<()> {
///         None
///     }
///
///     fn is_recording(&self) -> bool {
///         false
///     }
///
///     fn end(self, end: &CallEnd<'_>) {
///         let Self(Report(lines), model) = self;
///         // Whoever reads them may be gone.
///         let _ = lines.send(format!("{model}: {}", end.error_type().unwrap_or("ok")));
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, lines) = mpsc::channel();
/// let service = TelemetryLayer::client(Report(sender), "acme").layer(Echo::new());
/// let request = LlmRequest::new("one", ChatBody::builder().user("Hello").streaming().build()?);
/// let answer = service.clone().oneshot(request.clone()).await?;
/// answer.text().await?;
/// assert_eq!(lines.recv()?, "one: ok");
///
/// drop(service.oneshot(request).await?);
/// assert_eq!(lines.recv()?, "one: cancelled");
/// # Ok(())
/// # }
/// ```
pub trait Observer: Clone + Send + Sync + 'static {
    /// One call.
    type Span: CallSpan;

    /// A call begins. `None` if nobody wants to know of it: then it costs nothing more.
    ///
    /// `parent` is what the gateway's span has handed down within the request: for services that run on another task than
    /// whoever called them. What is current on this thread goes before it.
    fn start(
        &self,
        start: &CallStart<'_>,
        parent: Option<&<Self::Span as CallSpan>::Scope>,
    ) -> Option<Self::Span>;
}

/// One call that is observed.
pub trait CallSpan: Send + 'static {
    /// What makes the span current.
    type Scope: Scope;

    /// What the service below runs in, and its stream; `None` if there is nothing to make current.
    fn scope(&self) -> Option<Self::Scope>;

    /// Whether attributes are wanted, so that those that cost something should be computed.
    fn is_recording(&self) -> bool;

    /// A chunk of a stream passes by.
    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        let _ = (chunk, arrival);
    }

    /// It is over. May run inside `Drop`: no blocking, no panic.
    fn end(self, end: &CallEnd<'_>);
}

/// Makes a span current while a closure runs.
pub trait Scope: Clone + Send + Sync + 'static {
    /// Runs `f` inside of the span.
    fn run<T>(&self, f: impl FnOnce() -> T) -> T;
}

/// Which of the two spans it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A call to a provider: carries model and usage.
    Client,
    /// The whole call, all attempts included: carries neither, for backends would count them twice.
    Gateway,
}

/// A call that begins.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CallStart<'a> {
    /// Which span it is.
    pub role: Role,
    /// What is asked.
    pub request: &'a LlmRequest,
    /// Whether what is said is wanted as an event, which then tells all of this too.
    pub on_event: bool,
    pub(super) target: &'a Arc<Target>,
}

/// What is the same for all calls of a layer.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) role: Role,
    /// The span's name if it is not made of operation and model.
    pub(super) name: Arc<str>,
    pub(super) provider: Arc<str>,
    /// As it stands before models.
    pub(super) prefix: Arc<str>,
    pub(super) address: Option<(Arc<str>, u16)>,
    pub(super) in_process: bool,
    pub(super) departments: bool,
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct CallEnd<'a> {
    /// Which span it is.
    pub role: Role,
    /// How the answer ended.
    pub end: End<'a>,
    /// How long it took.
    pub duration: Duration,
    /// When it began.
    pub started: Instant,
    /// What is known of the answer's head, if there was one.
    pub head: Option<Head<'a>>,
    /// What a cache had to do with it, as far as it came.
    pub cache: CacheStatus,
    /// The attempts that failed, in order. Where there is no answer, the last of them had nothing to follow it.
    pub failed: &'a [Attempt],
    /// What it cost, in US dollars, if that is known and wanted.
    pub cost: Option<f64>,
    /// What was said, if that is wanted on spans.
    pub content: Option<&'a Content>,
    /// What was said, if that is wanted as an event.
    pub event: Option<&'a Content>,
    /// What was decided on the way, for the gateway's span.
    pub record: Option<&'a DecisionRecord>,
    pub(super) choices: u32,
    /// Whether a provider was, in a whole call.
    pub(super) was_asked: bool,
}

/// The head of an answer, as far as it is told.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The model that answered, with its provider above [`Providers`](crate::providers::Providers).
    pub model: &'a ModelName,
    /// What a cache had to do with it.
    pub cache: CacheStatus,
    /// What failed before.
    pub attempts: &'a [Attempt],
}

/// More choices than this are not told apart.
const MAX_CHOICES: u64 = 128;

// ===== impl CallStart =====

impl<'a> CallStart<'a> {
    /// The operation.
    pub const fn operation(&self) -> &'static str {
        semconv::operation(self.request.operation)
    }

    /// The provider, by its well-known name if it has one.
    pub fn provider(&self) -> &'a Arc<str> {
        &self.target.provider
    }

    /// Host and port of the provider.
    pub fn address(&self) -> Option<&'a (Arc<str>, u16)> {
        self.target.address.as_ref()
    }

    /// Whether the model runs in this process, so that the span is not a client's.
    pub fn is_in_process(&self) -> bool {
        self.target.in_process
    }

    /// The model as it is sent: without its provider.
    pub fn model(&self) -> &'a str {
        let model = self.request.model.as_str();
        match model.strip_prefix(&*self.target.prefix).and_then(|rest| rest.strip_prefix('/')) {
            Some(rest) if !rest.is_empty() => rest,
            _ => model,
        }
    }

    /// The model as it is sent, if that is how the request has it.
    pub(super) fn shared_model(&self) -> Option<&'a Arc<str>> {
        let model = &self.request.model;
        (self.model().len() == model.len()).then(|| model.shared())
    }

    /// The span's name.
    pub fn name(&self) -> Cow<'a, str> {
        match self.role {
            Role::Gateway => Cow::Borrowed(&self.target.name),
            Role::Client if self.model().is_empty() => Cow::Borrowed(self.operation()),
            Role::Client => {
                let (operation, model) = (self.operation(), self.model());
                let mut name = String::with_capacity(operation.len() + 1 + model.len());
                name.push_str(operation);
                name.push(' ');
                name.push_str(model);
                Cow::Owned(name)
            }
        }
    }

    /// What samplers are to see in any case: what is known when the span begins.
    pub fn identity(&self, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        if self.role == Role::Gateway {
            return set("llm_layers.requested_model", Value::Shared(self.request.requested.shared()));
        }
        set("gen_ai.operation.name", Value::Static(self.operation()));
        set("gen_ai.provider.name", Value::Shared(self.provider()));
        if !self.model().is_empty() {
            match self.shared_model() {
                Some(model) => set("gen_ai.request.model", Value::Shared(model)),
                None => set("gen_ai.request.model", Value::Str(self.model())),
            }
        }
        if let Some((host, port)) = self.address() {
            set("server.address", Value::Shared(host));
            set("server.port", Value::Int((*port).into()));
        }
    }

    /// What else there is to say of the request.
    pub fn attributes(&self, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        let request = self.request;
        if self.role == Role::Gateway {
            if self.target.departments {
                let departments: Vec<&str> =
                    request.context.department_ids().iter().map(|id| &**id).collect();
                set("llm_layers.department.id", Value::Strs(&departments));
            }
            return;
        }
        set("llm_layers.requested_model", Value::Shared(request.requested.shared()));
        set("llm_layers.fallback.attempt", Value::Int(request.attempt.into()));
        super::params::attributes(&request.body, semconv, set);
        if let Some(id) = request.context.conversation_id() {
            set("gen_ai.conversation.id", Value::Str(id));
        }
    }
}

// ===== impl CallEnd =====

impl<'a> CallEnd<'a> {
    /// The error's type out of a closed list; `None` if it went well.
    pub fn error_type(&self) -> Option<&'a str> {
        match self.end {
            End::Failed(error, _) => Some(semconv::error_type(error)),
            End::Abandoned(_) => Some(semconv::CANCELLED),
            _ if self.says_nothing() => Some(semconv::EMPTY),
            End::Whole(_) | End::StreamEnded(_) => None,
        }
    }

    /// A sentence about what went wrong, with nothing of the call in it.
    pub fn description(&self) -> Option<&'static str> {
        match self.end {
            End::Failed(error, _) => Some(semconv::description(error.kind())),
            _ if self.says_nothing() => Some(semconv::EMPTY_DESCRIPTION),
            _ => None,
        }
    }

    fn says_nothing(&self) -> bool {
        match self.end {
            End::Whole(completion) => !completion.has_content(),
            End::StreamEnded(summary) => !summary.has_content,
            End::Failed(..) | End::Abandoned(_) => false,
        }
    }

    /// The error, if there is one.
    pub const fn error(&self) -> Option<&'a Error> {
        match self.end {
            End::Failed(error, _) => Some(error),
            _ => None,
        }
    }

    /// What was used up, as far as the provider has said.
    pub fn usage(&self) -> Option<TokenUsage> {
        match self.end {
            End::Whole(completion) => completion.usage().copied(),
            End::StreamEnded(summary) | End::Abandoned(summary) => summary.usage,
            End::Failed(error, summary) => error.usage().copied().or(summary.usage),
        }
    }

    /// The tier in which the provider says that it served the call.
    pub fn service_tier(&self) -> Option<ServiceTier> {
        match self.end {
            End::Whole(completion) => completion.service_tier(),
            End::StreamEnded(summary) | End::Abandoned(summary) | End::Failed(_, summary) => {
                summary.service_tier
            }
        }
    }

    /// The model as the provider names it.
    pub fn response_model(&self) -> Option<Cow<'a, str>> {
        match self.end {
            End::Whole(completion) => completion.model(),
            End::StreamEnded(summary) | End::Abandoned(summary) | End::Failed(_, summary) => {
                summary.model.as_deref().map(Cow::Borrowed)
            }
        }
    }

    /// The id that the provider gave the answer.
    pub fn response_id(&self) -> Option<Cow<'a, str>> {
        match self.end {
            End::Whole(completion) => completion.id(),
            End::StreamEnded(summary) | End::Abandoned(summary) | End::Failed(_, summary) => {
                summary.id.as_deref().map(Cow::Borrowed)
            }
        }
    }

    /// How long it took until the first chunk of a stream.
    pub fn time_to_first_chunk(&self) -> Option<Duration> {
        match self.end {
            End::Whole(_) => None,
            End::StreamEnded(summary) | End::Abandoned(summary) | End::Failed(_, summary) => {
                let at = summary.first_chunk_at?;
                Some(at.saturating_duration_since(self.started))
            }
        }
    }

    /// Why each choice ended, in their order; `error` for one that did not come to its end.
    pub fn finish_reasons(&self) -> Vec<&'a str> {
        let (finishes, is_cut) = match self.end {
            End::Whole(completion) => (completion.finish_reasons(), false),
            End::StreamEnded(summary) => (&*summary.finish_reasons, false),
            End::Abandoned(summary) => (&*summary.finish_reasons, true),
            // Before there is an answer there are no choices that could fail.
            End::Failed(_, summary) => (&*summary.finish_reasons, self.head.is_some()),
        };
        if !is_cut && finishes.is_sorted_by_key(|finish| finish.index) {
            return finishes.iter().map(|finish| finish.reason.as_str()).collect();
        }
        let mut reasons: Vec<(u32, &str)> =
            finishes.iter().map(|finish| (finish.index, finish.reason.as_str())).collect();
        if is_cut {
            for index in 0..self.choices {
                if !finishes.iter().any(|finish| finish.index == index) {
                    reasons.push((index, "error"));
                }
            }
        }
        reasons.sort_by_key(|(index, _)| *index);
        reasons.into_iter().map(|(_, reason)| reason).collect()
    }

    /// As [`finish_reasons`](Self::finish_reasons), without a list where there is one choice, as there is nearly always.
    fn reasons(&self, told: impl FnOnce(&[&'a str])) {
        match self.end {
            End::Whole(completion) if completion.finish_reasons().len() == 1 => {
                told(&[completion.finish_reasons()[0].reason.as_str()]);
            }
            End::StreamEnded(Summary { finish_reasons, .. }) if finish_reasons.len() == 1 => {
                told(&[finish_reasons[0].reason.as_str()]);
            }
            _ => told(&self.finish_reasons()),
        }
    }

    /// What there is to say of the answer, or of why there is none.
    pub fn attributes(&self, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        if let Some(error_type) = self.error_type() {
            set("error.type", Value::Str(error_type));
        }
        match self.role {
            Role::Client => self.client(semconv, set),
            Role::Gateway => self.gateway(set),
        }
    }

    fn client(&self, semconv: SemConv, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        if let Some(id) = self.response_id() {
            set("gen_ai.response.id", Value::Str(&id));
        }
        if let Some(model) = self.response_model() {
            set("gen_ai.response.model", Value::Str(&model));
        }
        self.reasons(|reasons| {
            if !reasons.is_empty() {
                set("gen_ai.response.finish_reasons", Value::Strs(reasons));
            }
        });
        if let Some(time) = self.time_to_first_chunk() {
            set("gen_ai.response.time_to_first_chunk", Value::Double(time.as_secs_f64()));
        }
        if let Some(usage) = self.usage() {
            let counts = [
                ("gen_ai.usage.input_tokens", usage.input_tokens),
                ("gen_ai.usage.output_tokens", usage.output_tokens),
                ("gen_ai.usage.cache_read.input_tokens", usage.cache_read_tokens),
                (semconv.cache_write_tokens(), usage.cache_write_tokens),
                ("gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens),
            ];
            for (name, count) in counts {
                if let Some(count) = count {
                    set(name, semconv::int(count));
                }
            }
        }
        if let Some(cost) = self.cost {
            set("gen_ai.usage.cost", Value::Double(cost));
        }
        if let Some(content) = self.content {
            content.attributes(set);
        }
    }

    fn gateway(&self, set: &mut dyn FnMut(&'static str, Value<'_>)) {
        if let Some(head) = self.head {
            set("llm_layers.model", Value::Shared(head.model.shared()));
        }
        if self.cache != CacheStatus::Unused {
            set("llm_layers.cache.hit", Value::Bool(self.cache.is_hit()));
        }
        set("llm_layers.attempts", semconv::int(self.attempts() as u64));
    }

    /// How many attempts were made; what a cache has answered is one too.
    pub fn attempts(&self) -> usize {
        match self.head {
            Some(_) => self.failed.len() + 1,
            // Without a fallback nobody has counted.
            None => self.failed.len().max(self.was_asked.into()),
        }
    }

    /// The attempts that were followed by others.
    pub fn followed(&self) -> &'a [Attempt] {
        match self.failed {
            [followed @ .., _] if self.head.is_none() => followed,
            failed => failed,
        }
    }

    pub(super) fn choices(request: &LlmRequest) -> u32 {
        request.body.n().unwrap_or(1).clamp(1, MAX_CHOICES) as u32
    }
}

// ===== nothing =====

impl Observer for () {
    type Span = ();

    fn start(&self, _: &CallStart<'_>, _: Option<&()>) -> Option<()> {
        None
    }
}

impl CallSpan for () {
    type Scope = ();

    fn scope(&self) -> Option<()> {
        None
    }

    fn is_recording(&self) -> bool {
        false
    }

    fn end(self, _: &CallEnd<'_>) {}
}

impl Scope for () {
    fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
}

// ===== both =====

impl<A: Observer, B: Observer> Observer for (A, B) {
    type Span = (Option<A::Span>, Option<B::Span>);

    fn start(
        &self,
        start: &CallStart<'_>,
        parent: Option<&<Self::Span as CallSpan>::Scope>,
    ) -> Option<Self::Span> {
        let first = self.0.start(start, parent.and_then(|parent| parent.0.as_ref()));
        let second = self.1.start(start, parent.and_then(|parent| parent.1.as_ref()));
        (first.is_some() || second.is_some()).then_some((first, second))
    }
}

impl<A: CallSpan, B: CallSpan> CallSpan for (Option<A>, Option<B>) {
    type Scope = (Option<A::Scope>, Option<B::Scope>);

    fn scope(&self) -> Option<Self::Scope> {
        let scopes = (self.0.as_ref().and_then(A::scope), self.1.as_ref().and_then(B::scope));
        (scopes.0.is_some() || scopes.1.is_some()).then_some(scopes)
    }

    fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(A::is_recording) || self.1.as_ref().is_some_and(B::is_recording)
    }

    fn on_chunk(&mut self, chunk: &StreamChunk, arrival: &Arrival) {
        if let Some(first) = &mut self.0 {
            first.on_chunk(chunk, arrival);
        }
        if let Some(second) = &mut self.1 {
            second.on_chunk(chunk, arrival);
        }
    }

    fn end(self, end: &CallEnd<'_>) {
        // As they were begun: what is within ends first.
        if let Some(second) = self.1 {
            second.end(end);
        }
        if let Some(first) = self.0 {
            first.end(end);
        }
    }
}

impl<A: Scope, B: Scope> Scope for (Option<A>, Option<B>) {
    fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        match self {
            (Some(first), Some(second)) => first.run(|| second.run(f)),
            (Some(first), None) => first.run(f),
            (None, Some(second)) => second.run(f),
            (None, None) => f(),
        }
    }
}

/// An observer that may be there or not, decided when the program starts.
impl<O: Observer> Observer for Option<O> {
    type Span = O::Span;

    fn start(
        &self,
        start: &CallStart<'_>,
        parent: Option<&<Self::Span as CallSpan>::Scope>,
    ) -> Option<Self::Span> {
        self.as_ref()?.start(start, parent)
    }
}
