//! What was decided on the way to an answer: by which names, attempts, rights, cache and quotas it came.
//!
//! Every answer and every error has a [`DecisionRecord`], put together when somebody asks for it:
//! [`LlmResponse::decision_record`], [`Error::decision_record`]. What an answer knows by itself is always in it: who
//! answered, what was tried before and why it failed, what a cache had to do with it. The rest is noted on the way
//! only if the request [keeps its decisions](crate::LlmRequest::keep_decisions); otherwise nothing is written down.
//!
//! A layer notes what it has decided by [`Decisions::note`]:
//!
//! ```
//! use llm_layers::{ChatBody, LlmRequest, decision::Note};
//!
//! # fn main() -> Result<(), llm_layers::Error> {
//! let mut request = LlmRequest::new("fast", ChatBody::builder().user("Hello").build()?);
//! request.keep_decisions();
//! let (from, to) = (request.model.clone(), "acme/one".into());
//! request.decisions().note(|| Note::Alias { from, to });
//! assert_eq!(request.decisions().notes().len(), 1);
//! # Ok(())
//! # }
//! ```

use crate::cache::MissReason;
use crate::{
    Attempt, CacheStatus, Error, ErrorKind, LlmResponse, ModelName, Period, QuotaExceeded, QuotaKind,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// More than any call takes; an endless loop in a policy does not fill the memory.
const MAX_NOTES: usize = 256;

/// Where a call's layers note what they decide. Clones are the same notes; without
/// [`keep_decisions`](crate::LlmRequest::keep_decisions) there are none, at no cost.
#[derive(Clone, Default)]
pub struct Decisions(Option<Arc<Log>>);

struct Log {
    requested: ModelName,
    notes: Mutex<Vec<Note>>,
}

/// One thing that a layer has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// A name stands for another.
    Alias {
        /// The alias.
        from: ModelName,
        /// What it stands for.
        to: ModelName,
    },
    /// Who may use a model.
    Access(AccessDecision),
    /// What a cache had to do with it.
    Cache(CacheDecision),
    /// How far a quota is used up.
    Quota(QuotaDecision),
    /// An attempt had an answer.
    Answered {
        /// Which attempt, from 0.
        attempt: u16,
        /// The model that answered.
        model: ModelName,
        /// How long was waited before it.
        wait: Duration,
        /// How long it took until there was an answer with content.
        latency: Duration,
    },
}

/// Whether a department may use a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccessDecision {
    /// The model, by its canonical name.
    pub model: ModelName,
    /// The department that was asked about, or that forbids it.
    pub department_id: Option<Arc<str>>,
    /// Whether it may be used.
    pub allowed: bool,
}

/// What a cache did, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheDecision {
    /// What it did.
    pub status: CacheStatus,
    /// Why, in a word or two of a closed list, `similar` for an answer to a similar question; empty if it was not asked, or has the answer
    /// to this one.
    pub why: &'static str,
}

/// How far a department's quota was used up when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct QuotaDecision {
    /// The department.
    pub department_id: Arc<str>,
    /// What is limited.
    pub quota: QuotaKind,
    /// Over which time.
    pub period: Period,
    /// The limit, in requests, tokens or nano-dollars.
    pub limit: u64,
    /// What was used up.
    pub current: u64,
    /// What calls in flight had reserved.
    pub reserved: u64,
    /// Whether the call fits.
    pub allowed: bool,
}

/// All that was decided about one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// What the caller asked for, if the request kept its decisions.
    pub requested: Option<ModelName>,
    /// The names that it stood for, one after the other; none if it was no alias.
    pub aliases: Vec<ModelName>,
    /// What was tried, in order, the one that answered last.
    pub attempts: Vec<AttemptRecord>,
    /// Who was asked about rights.
    pub access: Vec<AccessDecision>,
    /// What a cache had to do with it.
    pub cache: CacheDecision,
    /// The quotas that were asked.
    pub quotas: Vec<QuotaDecision>,
    /// The model that answered.
    pub model: Option<ModelName>,
    /// The provider that answered, where several are registered.
    pub provider: Option<Arc<str>>,
    /// Why there is no answer: the error's [reason](Error::reason).
    pub failure: Option<&'static str>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AttemptRecord {
    /// The model that was asked, or would have been.
    pub model: ModelName,
    /// Why it failed: the error's [reason](Error::reason). `None` if it answered.
    pub failure: Option<&'static str>,
    /// How long was waited before it.
    pub wait: Duration,
    /// How long it took; `None` for the one that answered, unless the request kept its decisions.
    pub latency: Option<Duration>,
}

// ===== impl Decisions =====

impl Decisions {
    pub(crate) fn keep(requested: &ModelName) -> Self {
        let (requested, notes) = (requested.clone(), Mutex::default());
        Self(Some(Arc::new(Log { requested, notes })))
    }

    /// Whether anything is noted.
    pub const fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Notes what `decision` gives; it is not run if nothing is kept.
    pub fn note(&self, decision: impl FnOnce() -> Note) {
        if let Some(log) = &self.0 {
            let decision = decision();
            let mut notes = log.notes.lock().unwrap_or_else(PoisonError::into_inner);
            if notes.len() < MAX_NOTES {
                notes.push(decision);
            }
        }
    }

    /// What was noted so far, in order.
    pub fn notes(&self) -> Vec<Note> {
        let lock = |log: &Arc<Log>| log.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.0.as_ref().map(lock).unwrap_or_default()
    }

    /// The record of a call that was answered, or not, by these facts.
    fn record(&self, failed: &[Attempt]) -> DecisionRecord {
        let mut record = DecisionRecord {
            requested: self.0.as_ref().map(|log| log.requested.clone()),
            attempts: failed.iter().map(AttemptRecord::failed).collect(),
            ..DecisionRecord::default()
        };
        for note in self.notes() {
            match note {
                Note::Alias { to, .. } => record.aliases.push(to),
                Note::Access(access) => record.access.push(access),
                Note::Cache(cache) => record.cache = cache,
                Note::Quota(quota) => record.quotas.push(quota),
                Note::Answered { .. } => {}
            }
        }
        record
    }

    /// The attempt that answered, by what the outermost of those who try has noted.
    fn answered(&self, model: &ModelName) -> AttemptRecord {
        let noted = self.notes().into_iter().rev().find_map(|note| match note {
            Note::Answered { wait, latency, .. } => Some((wait, Some(latency))),
            _ => None,
        });
        let (wait, latency) = noted.unwrap_or_default();
        AttemptRecord { model: model.clone(), failure: None, wait, latency }
    }
}

impl fmt::Debug for Decisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions").field("are_kept", &self.are_kept()).finish_non_exhaustive()
    }
}

// ===== impl AccessDecision, CacheDecision, QuotaDecision =====

impl AccessDecision {
    /// A department may use a model, or not.
    pub fn new(model: impl Into<ModelName>, department_id: Option<Arc<str>>, allowed: bool) -> Self {
        Self { model: model.into(), department_id, allowed }
    }
}

impl CacheDecision {
    /// A cache did this, for a reason that is one of a few.
    pub const fn new(status: CacheStatus, why: &'static str) -> Self {
        Self { status, why }
    }
}

impl QuotaDecision {
    /// A quota of which nothing is used up.
    pub fn new(department_id: impl Into<Arc<str>>, quota: QuotaKind, period: Period, limit: u64) -> Self {
        let department_id = department_id.into();
        Self { department_id, quota, period, limit, current: 0, reserved: 0, allowed: true }
    }

    /// What was used up, and what calls in flight had reserved.
    #[must_use]
    pub const fn with_use(mut self, current: u64, reserved: u64) -> Self {
        self.current = current;
        self.reserved = reserved;
        self
    }

    fn refused(quota: &QuotaExceeded) -> Self {
        Self {
            allowed: false,
            ..Self::new(Arc::clone(&quota.department_id), quota.quota, quota.period, quota.limit)
                .with_use(quota.current, quota.reserved)
        }
    }
}

impl AttemptRecord {
    fn failed(attempt: &Attempt) -> Self {
        Self {
            model: attempt.model.clone(),
            failure: Some(attempt.error.reason()),
            wait: attempt.wait,
            latency: Some(attempt.latency),
        }
    }
}

// ===== where a record comes from =====

impl LlmResponse {
    /// What was decided on the way to this answer.
    pub fn decision_record(&self) -> DecisionRecord {
        of_answer(&self.decisions, self)
    }
}

/// What was decided on the way to `answer`, by these notes.
pub(crate) fn of_answer(decisions: &Decisions, answer: &LlmResponse) -> DecisionRecord {
    let mut record = decisions.record(&answer.attempts);
    if record.cache.status != answer.cache {
        record.cache = CacheDecision::new(answer.cache, "");
    }
    if record.cache.why.is_empty() {
        record.cache.why = match answer.cache {
            CacheStatus::Bypass(reason) => reason.as_str(),
            _ if answer.is_similar => "similar",
            _ => answer.cache_miss.map_or("", MissReason::as_str),
        };
    }
    if !answer.cache.is_hit() {
        record.attempts.push(decisions.answered(&answer.model));
    }
    record.model = Some(answer.model.clone());
    record.provider.clone_from(&answer.provider);
    record
}

impl Error {
    /// What was decided on the way to this error.
    pub fn decision_record(&self) -> DecisionRecord {
        of_error(self.decisions(), self, self.attempts())
    }
}

/// What was decided on the way to an answer, which then broke off with `error`.
pub(crate) fn of_broken(mut record: DecisionRecord, error: &Error) -> DecisionRecord {
    record.failure = Some(error.reason());
    if let Some(last) = record.attempts.last_mut() {
        last.failure = record.failure;
    }
    record
}

/// What was decided on the way to `error`, by these notes, when this had failed.
pub(crate) fn of_error(decisions: &Decisions, error: &Error, failed: &[Attempt]) -> DecisionRecord {
    let mut record = decisions.record(failed);
    record.failure = Some(error.reason());
    for error in failed.iter().map(|attempt| &attempt.error).chain([error]) {
        match error.kind() {
            ErrorKind::QuotaExceeded(quota) => {
                let refused = QuotaDecision::refused(quota);
                if !record.quotas.contains(&refused) {
                    record.quotas.push(refused);
                }
            }
            ErrorKind::ModelNotAllowed { department_id, model } => {
                let refused = AccessDecision::new(model.clone(), Some(Arc::clone(department_id)), false);
                if !record.access.contains(&refused) {
                    record.access.push(refused);
                }
            }
            _ => {}
        }
    }
    record
}
