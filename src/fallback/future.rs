use super::{
    layer::Shared,
    policy::{Cause, Decision, Failure, Policy, is_account_limit},
};
use crate::{
    Attempt, Error, ErrorKind, LlmRequest, LlmResponse, ModelName, Progress, caught::contained,
    deadline::Deadline, decision::Note, providers::ProviderNames,
};
use pin_project::{pin_project, pinned_drop};
use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};
use tower_service::Service;

/// Response future of [`Fallback`](super::Fallback).
#[pin_project(PinnedDrop)]
pub struct ResponseFuture<S: Service<LlmRequest>, P> {
    shared: Arc<Shared<S>>,
    /// Of its own, but for the first attempt of most.
    service: Option<Box<S>>,
    attempts: Attempts<P>,
    #[pin]
    state: State<S::Future>,
    deadline: Deadline,
}

#[pin_project(project = StateProj)]
enum State<F> {
    /// Waiting for an answer with content.
    Calling(#[pin] F),
    /// Waiting until it is time to try again.
    Waiting(Pin<Box<Sleep>>),
    /// Waiting for the service to accept the next attempt.
    Readying,
    /// The time was up before the call: nobody was asked.
    Late,
    /// The first model has no provider: nobody was asked.
    Unroutable,
}

/// What was tried, and who decides what is tried next.
struct Attempts<P> {
    policy: P,
    request: LlmRequest,
    /// That of all attempts together; `None` as long as it is that of the request.
    progress: Option<Progress>,
    models: Vec<ModelName>,
    failed: Vec<Attempt>,
    /// Whether a provider was asked by one of them.
    was_sent: bool,
    /// There is an answer, or an error, that tells of them.
    are_told: bool,
    calls_left: u16,
    skips_left: u16,
    wait: Duration,
    started: Instant,
}

enum Next {
    Call,
    CallAfter(Duration),
    Stop(Error),
}

// ===== impl ResponseFuture =====

impl<S, P> ResponseFuture<S, P>
where
    S: Service<LlmRequest> + Clone,
    P: Policy,
{
    pub(super) fn new(ready: &mut S, mut request: LlmRequest, mut policy: P, shared: Arc<Shared<S>>) -> Self {
        policy.begin(&request);
        // What became of another call of the same request is not told of this one.
        request.progress = request.progress.child();
        let started = Instant::now();
        let bounds = &shared.bounds;
        let whole = bounds.whole_deadline.filter(|_| !request.body.is_streaming());
        let deadline = whole.or(bounds.deadline).and_then(|limit| started.checked_add(limit));
        let deadline = deadline.into_iter().chain(request.context.deadline().map(Into::into)).min();
        let mut attempts = Attempts {
            policy,
            request,
            progress: None,
            models: Vec::new(),
            failed: Vec::new(),
            was_sent: false,
            are_told: false,
            calls_left: bounds.max_attempts,
            // Skips cost nothing but time; a policy that names ever new strangers still comes to its end.
            skips_left: 64,
            wait: Duration::ZERO,
            started,
        };
        let deadline = Deadline::new(deadline);
        let state = if deadline.has_passed(started) {
            State::Late
        } else if attempts.is_routable(&bounds.providers) {
            State::Calling(attempts.call(ready, started))
        } else {
            State::Unroutable
        };
        // What is ready holds a place, which the first attempt that is made is to have.
        let kept = !matches!(state, State::Calling(_));
        let service = kept.then(|| Box::new(mem::replace(ready, shared.spare())));
        Self { shared, service, attempts, state, deadline }
    }
}

impl<S, P> Future for ResponseFuture<S, P>
where
    S: Service<LlmRequest, Response = LlmResponse> + Clone,
    S::Error: Into<Error>,
    P: Policy,
{
    type Output = Result<LlmResponse, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let failure = match this.state.as_mut().project() {
                StateProj::Calling(future) => {
                    let mut polled = future.poll(cx).map_err(Into::into);
                    if let Poll::Ready(Ok(answer)) = &mut polled {
                        this.attempts.answered(answer);
                        return polled;
                    }
                    match polled {
                        Poll::Ready(Err(error)) => {
                            this.attempts.give_back(&error);
                            error
                        }
                        _ => {
                            let late = ready!(this.deadline.poll(cx));
                            late.with_dispatched(this.attempts.request.progress.is_dispatched())
                        }
                    }
                }
                StateProj::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    this.state.set(State::Readying);
                    continue;
                }
                StateProj::Readying => {
                    let now = Instant::now();
                    if this.deadline.has_passed(now) {
                        return Poll::Ready(Err(this.attempts.verdict()));
                    }
                    let service = this.service.get_or_insert_with(|| Box::new(this.shared.spare()));
                    match service.poll_ready(cx) {
                        Poll::Ready(Ok(())) => {
                            let call = this.attempts.call(&mut **service, now);
                            this.state.set(State::Calling(call));
                            continue;
                        }
                        Poll::Ready(Err(error)) => {
                            // No policy is asked: this service takes no further call. Nobody was asked, and no time spent.
                            this.attempts.note(error.into(), Duration::ZERO);
                            return Poll::Ready(Err(this.attempts.verdict()));
                        }
                        Poll::Pending => {
                            ready!(this.deadline.poll(cx));
                            return Poll::Ready(Err(this.attempts.verdict()));
                        }
                    }
                }
                StateProj::Late => Deadline::error(),
                StateProj::Unroutable => not_found(&this.attempts.request.model),
            };
            // Dropping the failed attempt here also hangs up on its provider.
            contained(|| this.state.set(State::Readying));
            match this.attempts.after(failure, this.deadline.at(), &this.shared.bounds.providers) {
                Next::Call => {}
                Next::CallAfter(wait) => this.state.set(State::Waiting(Box::pin(tokio::time::sleep(wait)))),
                Next::Stop(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn not_found(model: &ModelName) -> Error {
    Error::new(ErrorKind::ModelNotFound { model: model.clone() })
}

#[pinned_drop]
impl<S: Service<LlmRequest>, P> PinnedDrop for ResponseFuture<S, P> {
    fn drop(self: Pin<&mut Self>) {
        let mut this = self.project();
        let is_calling = matches!(*this.state, State::Calling(_));
        contained(|| this.state.set(State::Readying));
        this.attempts.given_up(is_calling);
    }
}

impl<S: Service<LlmRequest>, P> fmt::Debug for ResponseFuture<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Calling(_) => "Calling",
            State::Waiting(_) => "Waiting",
            State::Readying => "Readying",
            State::Late => "Late",
            State::Unroutable => "Unroutable",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .field("failed", &self.attempts.failed.len())
            .finish_non_exhaustive()
    }
}

// ===== impl Attempts =====

impl<P: Policy> Attempts<P> {
    fn call<S: Service<LlmRequest>>(&mut self, ready: &mut S, now: Instant) -> S::Future {
        self.calls_left -= 1;
        self.started = now;
        ready.call(self.request.clone())
    }

    /// A call that is refused before anybody is asked is a skip.
    fn give_back(&mut self, error: &Error) {
        let is_full = matches!(error.kind(), ErrorKind::Overloaded);
        let is_refused = is_full || Cause::of(error) == Some(Cause::Skipped);
        if is_refused && !error.was_sent(&self.request.progress) {
            self.calls_left += 1;
            self.skips_left = self.skips_left.saturating_sub(1);
        }
    }

    fn is_routable(&self, providers: &Option<ProviderNames>) -> bool {
        providers.as_ref().is_none_or(|providers| {
            // With no provider at all the innermost service says so.
            providers.is_empty() || providers.provider_for(&self.request.model).is_some()
        })
    }

    /// Notes a failure and finds out what to do about it.
    fn after(&mut self, error: Error, deadline: Option<Instant>, providers: &Option<ProviderNames>) -> Next {
        let now = Instant::now();
        let latency = now.saturating_duration_since(self.started);
        self.note(error, latency);
        let time_left = deadline.map(|deadline| deadline.saturating_duration_since(now));
        loop {
            let Some(last) = self.failed.last() else { return Next::Stop(not_found(&self.request.model)) };
            let is_first = self.models.len() == 1;
            let is_over = time_left.is_some_and(|left| left.is_zero());
            if is_final(&last.error, is_first) || is_over || self.calls_left == 0 || self.skips_left == 0 {
                return Next::Stop(self.verdict());
            }
            let failed = self.request.failed();
            let has_other_deployment = last.error.chosen().is_some_and(|chosen| chosen.has_other(failed));
            let failure = Failure {
                request: &self.request,
                error: &last.error,
                attempts: &self.failed,
                models: &self.models,
                time_left,
                calls_left: self.calls_left,
                has_other_deployment,
            };
            match self.policy.decide(&failure) {
                Decision::Stop => return Next::Stop(self.verdict()),
                Decision::Retry { after } => {
                    // No use in waiting for a time when nobody waits any more.
                    if time_left.is_some_and(|left| after >= left) {
                        return Next::Stop(self.verdict());
                    }
                    self.wait = after;
                    self.prepare();
                    return if after.is_zero() { Next::Call } else { Next::CallAfter(after) };
                }
                Decision::Next(model) if self.models.contains(&model) => return Next::Stop(self.verdict()),
                Decision::Next(model) => {
                    self.wait = Duration::ZERO;
                    self.request.model = model;
                    if self.is_routable(providers) {
                        self.prepare();
                        return Next::Call;
                    }
                    self.skips_left -= 1;
                    self.note(not_found(&self.request.model), Duration::ZERO);
                }
            }
        }
    }

    fn note(&mut self, error: Error, latency: Duration) {
        let model = self.request.model.clone();
        if !self.models.contains(&model) {
            self.models.push(model.clone());
        }
        self.was_sent |= error.was_sent(&self.request.progress);
        if let Some(chosen) = error.chosen() {
            self.request.add_failed(chosen.clone());
        }
        self.failed.push(Attempt { model, error, wait: mem::take(&mut self.wait), latency });
    }

    fn answered(&mut self, answer: &mut LlmResponse) {
        // What a fallback below has tried came last.
        self.failed.append(&mut answer.attempts);
        answer.attempts = mem::take(&mut self.failed);
        self.are_told = true;
        let decisions = self.request.decisions();
        decisions.note(|| Note::Answered {
            attempt: self.request.attempt,
            model: answer.model.clone(),
            wait: self.wait,
            latency: self.started.elapsed(),
        });
        if decisions.are_kept() {
            answer.decisions = decisions.clone();
        }
    }

    fn prepare(&mut self) {
        self.request.attempt = self.request.attempt.saturating_add(1);
        let progress = self.progress.get_or_insert_with(|| self.request.progress.clone());
        self.request.progress = progress.child();
    }

    /// The last failure of a model that was really asked; if none was, why the first was not. That a substitute refuses
    /// what the first model did not refuse is nothing that the caller could mend, nor what one account takes at most where
    /// another is only busy: then the last that is worth another try.
    fn verdict(&mut self) -> Error {
        let failed = mem::take(&mut self.failed);
        self.are_told = true;
        let real = || failed.iter().rev().filter(|one| Cause::of(&one.error) != Some(Cause::Skipped));
        let (first, last) = (failed.first(), real().next());
        let is_of_one = |one: &Attempt| is_account_limit(&one.error);
        let is_firsts = |one: &&Attempt| first.is_some_and(|first| one.model == first.model);
        let first_refuses = failed.iter().filter(is_firsts).any(|one| refuses(one) && !is_of_one(one));
        let worth_more = match last.is_some_and(|last| refuses(last) && (is_of_one(last) || !first_refuses)) {
            true => real().find(|attempt| attempt.error.is_retryable()),
            false => None,
        };
        match worth_more.or(last).or(first) {
            Some(attempt) => {
                let error = attempt.error.clone();
                let decisions = self.request.decisions();
                error.with_dispatched(self.was_sent).with_attempts(failed).with_decisions(decisions)
            }
            None => not_found(&self.request.model),
        }
    }
}

impl<P> Attempts<P> {
    /// Nobody waits any more: what was tried is told to the span of the whole call.
    fn given_up(&mut self, is_calling: bool) {
        if self.are_told {
            return;
        }
        self.request.tell(|so_far| {
            let mut tried = mem::take(&mut self.failed);
            // What a fallback below has tried comes last, and in the place of the attempt that it was.
            if is_calling && so_far.attempts.is_empty() {
                let (wait, latency) = (self.wait, self.started.elapsed());
                let (model, error) = (self.request.model.clone(), Error::new(ErrorKind::Cancelled));
                tried.push(Attempt { model, error, wait, latency });
            }
            so_far.attempts.splice(0..0, tried);
        });
    }
}

/// Whether the model refused the request.
fn refuses(attempt: &Attempt) -> bool {
    let cause = Cause::of(&attempt.error);
    matches!(cause, Some(Cause::BadRequest | Cause::ContextWindow | Cause::ContentFilter))
}

/// What no policy is asked about. What the caller asked for is refused, what was only a substitute is skipped.
fn is_final(error: &Error, is_first: bool) -> bool {
    match error.kind() {
        ErrorKind::ModelNotAllowed { .. } | ErrorKind::ModelUnpriced { .. } => is_first,
        _ => Cause::of(error).is_none(),
    }
}
