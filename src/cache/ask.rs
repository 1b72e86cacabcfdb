//! Looks for an answer, and says what to do if there is none.

use super::{
    BypassReason, CacheControl, CacheKey, CachePolicy, CacheScope, CacheStore, Entry, Fetch, KbCaching,
    MissReason, NotStored, Unreadable,
    decide::{self, Asked, Kbs},
    epoch::{Buckets, Epochs, Stamp, buckets},
    flight::{Flights, Route, Since},
    key::Origin,
    stats::{Counters, count},
    store::Guarded,
    worker::Queue,
};
use crate::{
    BoxError, CacheStatus, LlmRequest, LlmResponse, ModelName, RequestContext, ResponseBody, store::Breaker,
};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A store, or an embedder, that has failed so often in a row is left alone for so long.
pub(super) const MOST_FAILURES: u32 = 5;
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// By so much the clock of whoever has made an entry may be ahead. Beyond, nobody knows how old it is.
const MOST_AHEAD: Duration = Duration::from_secs(60);

/// What all services and calls of one layer share.
pub(super) struct Shared {
    pub(super) policy: CachePolicy,
    pub(super) store: Guarded,
    pub(super) epochs: Epochs,
    pub(super) counters: Counters,
    pub(super) flights: Option<Arc<Flights>>,
    pub(super) queue: Option<Queue>,
    pub(super) is_on: AtomicBool,
    pub(super) breaker: Breaker,
    #[cfg(feature = "semantic")]
    pub(super) search: Option<super::semantic::Search>,
}

/// What became of a question.
pub(super) enum Found {
    Hit(LlmResponse),
    Miss(Plan),
    Bypass(BypassReason),
}

/// What an entry is worth to a call.
#[derive(Clone, Copy)]
pub(super) enum Look {
    /// It is not the one that was asked for.
    Foreign,
    /// It is no good for anybody any more.
    Dead(MissReason),
    /// It is older than this caller wants it.
    TooOld,
    Good(Duration),
}

/// What a store has said, or why it has not.
pub(super) type Read = Result<Option<(Arc<Entry>, Look)>, MissReason>;

/// [`Found`] now or later.
#[expect(clippy::large_enum_variant, reason = "a box would cost every hit an allocation")]
pub(super) enum Asking {
    Now(Found),
    Later(Pin<Box<dyn Future<Output = Found> + Send>>),
}

/// What an entry has to be, besides being his who asks.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) key: CacheKey,
    /// The epochs before anybody was asked; `None` if they could not be had.
    pub(super) stamp: Option<Stamp>,
    pub(super) control: CacheControl,
}

/// What is needed to keep the answer to a call, should it be worth it.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) wanted: Wanted,
    /// By whose epochs it goes.
    pub(super) buckets: Buckets,
    /// Whose answer it will be.
    pub(super) context: RequestContext,
    pub(super) ttl: Duration,
    /// What was asked for.
    pub(super) model: ModelName,
    /// Whether knowledge bases must be asked, and again before the answer is kept.
    pub(super) asks_kbs: bool,
    pub(super) streaming: bool,
    /// Why there is no answer yet.
    pub(super) why: MissReason,
    #[cfg(feature = "semantic")]
    pub(super) origin: Option<Origin>,
    #[cfg(feature = "semantic")]
    pub(super) is_searched: bool,
    /// By what similar questions are to find the answer.
    #[cfg(feature = "semantic")]
    pub(super) probe: Option<Arc<super::semantic::Probe>>,
}

impl Look {
    /// Why it is no answer.
    const fn why(self) -> MissReason {
        match self {
            Self::Foreign => MissReason::Mismatch,
            Self::Dead(why) => why,
            Self::TooOld => MissReason::TooOld,
            Self::Good(_) => MissReason::Shape,
        }
    }
}

impl Plan {
    /// Where its call can be shared; `None` if it cannot be told which calls are equal.
    pub(super) fn route(&self, epochs: &Epochs) -> Option<Route> {
        let since = match &self.wanted.stamp {
            Some(stamp) => Since::Epochs(stamp.clone()),
            // Others may have taken back what was allowed.
            None if self.asks_kbs => return None,
            None => Since::Raised(epochs.times_raised()),
        };
        let mut departments: Box<[_]> = self.context.department_ids().into();
        departments.sort_unstable();
        Some(Route { key: self.wanted.key, since, streaming: self.streaming, ttl: self.ttl, departments })
    }
}

impl Shared {
    pub(super) fn new(store: Arc<dyn CacheStore>, policy: CachePolicy, queue: Option<Queue>) -> Self {
        let store = Guarded::new(store);
        let epochs = policy.epochs.clone().or_else(|| store.epochs());
        Self {
            epochs: Epochs::new(epochs, policy.epoch_max_age),
            store,
            counters: Counters::default(),
            flights: policy.coalescing.map(|c| Arc::new(Flights::new(c, policy.max_entry_bytes))),
            queue,
            is_on: AtomicBool::new(true),
            breaker: Breaker::new(MOST_FAILURES, PAUSE),
            #[cfg(feature = "semantic")]
            search: policy.semantic.clone().map(super::semantic::Search::new),
            policy,
        }
    }

    /// Looks for an answer to `request`: without waiting, if nobody has to be waited for.
    pub(super) fn ask(self: &Arc<Self>, request: &LlmRequest, origin: Option<&Origin>) -> Asking {
        let (scope, asked) = match self.asked(request) {
            Ok(asked) => asked,
            Err(reason) => return Asking::Now(Found::Bypass(reason)),
        };
        let buckets = buckets(&scope, request);
        let control = request.context.cache_control();
        let asks_kbs = asked.kbs == Kbs::Unasked;
        let streaming = request.body.is_streaming();
        let wanted = Wanted {
            key: CacheKey::of(&self.policy.secret, &scope, request, origin),
            stamp: self.epochs.known(&buckets),
            control,
        };
        let must_wait = asks_kbs || wanted.stamp.is_none();
        let (mut looked, mut pending) = (None, None);
        if !must_wait && !control.no_cache {
            match self.store.get(&wanted.key) {
                Fetch::Ready(None) => {}
                Fetch::Ready(Some(entry)) => {
                    let look = self.look_at(&entry, &wanted, &request.context);
                    // Before anything is made that only those need who have to call.
                    if let Look::Good(age) = look
                        && let Some(body) = entry.body(streaming)
                    {
                        return Asking::Now(Found::Hit(self.hit(&entry, body, age)));
                    }
                    looked = Some((entry, look));
                }
                fetch => pending = Some(fetch),
            }
        }
        let mut plan = Plan {
            wanted,
            buckets,
            context: request.context.clone(),
            ttl: control.ttl.map_or(self.policy.ttl, |ttl| ttl.min(self.policy.ttl)),
            model: request.model.clone(),
            asks_kbs,
            streaming,
            why: if control.no_cache { MissReason::Refresh } else { MissReason::Absent },
            #[cfg(feature = "semantic")]
            origin: origin.cloned(),
            #[cfg(feature = "semantic")]
            is_searched: false,
            #[cfg(feature = "semantic")]
            probe: None,
        };
        if must_wait {
            let shared = Arc::clone(self);
            return Asking::Later(Box::pin(async move { shared.ask_all(asked, plan).await }));
        }
        if let Some(pending) = pending {
            return self.ask_later(pending, plan);
        }
        match looked.as_ref().and_then(|(_, look)| self.further(*look, &mut plan)) {
            Some(further) => self.ask_later(further, plan),
            None => Asking::Now(self.judge(Ok(looked), plan)),
        }
    }

    /// What is further away, where what is near is no good for this caller.
    fn further(&self, look: Look, plan: &mut Plan) -> Option<Fetch<Option<Arc<Entry>>>> {
        let key = &plan.wanted.key;
        let further = match look {
            Look::Dead(_) => self.store.evict(key).then(|| self.store.get(key)),
            Look::TooOld => self.store.further(key),
            Look::Foreign | Look::Good(_) => None,
        }?;
        plan.why = look.why();
        Some(further)
    }

    fn ask_later(self: &Arc<Self>, entry: Fetch<Option<Arc<Entry>>>, plan: Plan) -> Asking {
        let shared = Arc::clone(self);
        Asking::Later(Box::pin(async move {
            let mut plan = plan;
            let found = shared.within_deadline(shared.fetch(entry, &mut plan)).await;
            shared.judge(found, plan)
        }))
    }

    /// The entry; if what is near is dead or too old, what is further away.
    async fn fetch(
        &self,
        entry: Fetch<Option<Arc<Entry>>>,
        plan: &mut Plan,
    ) -> Result<Option<(Arc<Entry>, Look)>, BoxError> {
        let looked_at = |entry: Option<Arc<Entry>>, plan: &Plan| {
            entry.map(|entry| {
                let look = self.look_at(&entry, &plan.wanted, &plan.context);
                (entry, look)
            })
        };
        let looked = looked_at(entry.wait().await?, plan);
        match looked.as_ref().and_then(|(_, look)| self.further(*look, plan)) {
            Some(further) => Ok(looked_at(further.wait().await?, plan)),
            None => Ok(looked),
        }
    }

    pub(super) fn asked<'a>(&self, request: &'a LlmRequest) -> Result<(CacheScope<'a>, Asked), BypassReason> {
        let scope = CacheScope::or_public(&request.context);
        let asked = Asked {
            is_on: self.is_on.load(Ordering::Acquire),
            no_store: request.context.cache_control().no_store,
            has_user: request.context.user_id().is_some_and(|user| !user.is_empty()),
            is_public: self.policy.is_public,
            kbs: match &scope {
                Err(_) => Kbs::NoAclHash,
                Ok(scope) if scope.kbs.is_empty() => Kbs::None,
                Ok(_) if self.policy.kb_settings.is_none() => Kbs::Unknown,
                Ok(_) => Kbs::Unasked,
            },
            is_too_random: self.policy.max_temperature.is_some_and(|most| {
                // What is no number is not known to be low enough.
                !request.body.temperature().is_ok_and(|t| t.unwrap_or(1.0) <= most)
            }),
        };
        decide::admit(&asked)?;
        Ok((scope?, asked))
    }

    /// As [`ask`](Self::ask), where somebody has to be waited for: settings first, then epochs and store together.
    async fn ask_all(&self, asked: Asked, mut plan: Plan) -> Found {
        match self.find(asked, &mut plan).await {
            Ok(found) => self.judge(found, plan),
            Err(reason) => Found::Bypass(reason),
        }
    }

    /// What there is for `plan`, which learns the epochs.
    pub(super) async fn find(&self, asked: Asked, plan: &mut Plan) -> Result<Read, BypassReason> {
        if plan.asks_kbs {
            let kbs = self.ask_kbs(&plan.context).await;
            decide::admit(&Asked { kbs, ..asked })?;
        }
        let entry = match plan.wanted.control.no_cache {
            true => Fetch::Ready(None),
            false => self.store.get(&plan.wanted.key),
        };
        let both = async {
            let epochs = self.epochs.read(&plan.buckets);
            let (stamp, entry) = futures_util::future::join(epochs, entry.wait()).await;
            // Also if what is there is of no use: then the answer takes its place.
            plan.wanted.stamp = Some(stamp?);
            self.fetch(Fetch::Ready(entry?), plan).await
        };
        Ok(self.within_deadline(both).await)
    }

    /// What the knowledge bases of a call say, all of them together.
    pub(super) async fn ask_kbs(&self, context: &RequestContext) -> Kbs {
        let Some(settings) = &self.policy.kb_settings else { return Kbs::Unknown };
        let all = context.kbs().iter().map(|kb| Fetch::of(|| settings.caching(kb, context)).wait());
        let all = futures_util::future::try_join_all(all);
        match tokio::time::timeout(self.policy.kb_deadline, all).await {
            Ok(Ok(all)) if all.iter().all(|one| *one == KbCaching::Allowed) => Kbs::Allow,
            Ok(Ok(_)) => Kbs::Forbid,
            Ok(Err(_)) | Err(_) => Kbs::Unknown,
        }
    }

    async fn within_deadline<T>(
        &self,
        answer: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T, MissReason> {
        if !self.breaker.lets_through() {
            count(&self.counters.store_failures);
            return Err(MissReason::StoreFailed);
        }
        match tokio::time::timeout(self.policy.read_deadline, answer).await {
            Ok(Ok(answer)) => {
                self.breaker.succeeded();
                Ok(answer)
            }
            // It is there, and answers: others may get theirs.
            Ok(Err(error)) if error.is::<Unreadable>() => {
                self.breaker.succeeded();
                count(&self.counters.unreadable);
                Err(MissReason::Unreadable)
            }
            Ok(Err(_)) | Err(_) => {
                self.breaker.failed();
                count(&self.counters.store_failures);
                Err(MissReason::StoreFailed)
            }
        }
    }

    /// What was found is an answer or not.
    fn judge(&self, found: Read, mut plan: Plan) -> Found {
        match found {
            Ok(Some((entry, look))) => match self.serve(&entry, look, plan.streaming) {
                Some(answer) => return Found::Hit(answer),
                None => plan.why = look.why(),
            },
            Ok(None) => {}
            Err(why) => plan.why = why,
        }
        Found::Miss(plan)
    }

    /// Gives an entry to the store, unless it would take the place of one that may be newer.
    pub(super) fn put(&self, entry: Arc<Entry>, buckets: &Buckets) -> Result<Fetch<()>, NotStored> {
        if self.epochs.have_passed(&entry.bond.stamp, buckets) {
            return Err(NotStored::Invalidated);
        }
        self.store.put(entry).ok_or_else(|| {
            count(&self.counters.store_failures);
            NotStored::StoreFailed
        })
    }

    /// Looks once more where that takes no time: the answer may have been kept in between.
    pub(super) fn ask_again(&self, plan: &Plan) -> Option<LlmResponse> {
        match self.store.get(&plan.wanted.key) {
            Fetch::Ready(Some(entry)) => {
                let look = self.look_at(&entry, &plan.wanted, &plan.context);
                self.serve(&entry, look, plan.streaming)
            }
            Fetch::Ready(None) | Fetch::Pending(_) => None,
        }
    }

    /// What an entry is bound to besides its key.
    pub(super) fn scope_digest(&self, context: &RequestContext) -> [u8; 32] {
        CacheScope::told(context).digest(&self.policy.secret)
    }

    fn look_at(&self, entry: &Entry, wanted: &Wanted, asks: &RequestContext) -> Look {
        let bond = &entry.bond;
        let is_his = || {
            bond.rights.as_ref().is_some_and(|rights| rights.are(&asks.rights()))
                || self.scope_digest(asks) == bond.scope
        };
        if bond.key != wanted.key || !is_his() {
            return Look::Foreign;
        }
        let age = match self.policy.clock.now().duration_since(bond.created_at) {
            Ok(age) => age,
            Err(ahead) if ahead.duration() <= MOST_AHEAD => Duration::ZERO,
            Err(_) => return Look::Dead(MissReason::Expired),
        };
        match wanted.control.max_age {
            _ if wanted.stamp.as_ref() != Some(&bond.stamp) => Look::Dead(MissReason::Invalidated),
            _ if age >= bond.ttl.min(self.policy.ttl) => Look::Dead(MissReason::Expired),
            Some(most) if age > most => Look::TooOld,
            _ => Look::Good(age),
        }
    }

    /// The entry as an answer, if it is good and can be had in this shape.
    pub(super) fn serve(&self, entry: &Entry, look: Look, streaming: bool) -> Option<LlmResponse> {
        let body = match look {
            Look::Foreign => {
                count(&self.counters.mismatches);
                return None;
            }
            Look::Dead(_) | Look::TooOld => None,
            Look::Good(age) => entry.body(streaming).map(|body| (body, age)),
        };
        let Some((body, age)) = body else {
            count(&self.counters.stale);
            return None;
        };
        Some(self.hit(entry, body, age))
    }

    fn hit(&self, entry: &Entry, body: ResponseBody, age: Duration) -> LlmResponse {
        count(&self.counters.hits);
        self.counters.saved(entry.usage());
        let mut answer = LlmResponse::new(entry.model.clone(), body);
        answer.provider.clone_from(&entry.provider);
        answer.cache = CacheStatus::Hit { age };
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::entry::{Answer, Bond},
        *,
    };
    use crate::{
        ChatBody, Completion, KbScope, TokenUsage,
        cache::{CacheSecret, MokaStore},
        clock::{Clock, SystemClock},
    };

    fn by(user: &str, kbs: &[&str]) -> RequestContext {
        let context = RequestContext::new().with_tenant_id("acme").with_user_id(user);
        kbs.iter().fold(context, |context, kb| context.with_kb(KbScope::new(*kb).with_acl_hash("rights")))
    }

    /// The key tells callers apart already: what an entry is bound to besides has to do so by itself.
    #[test]
    fn an_entry_is_for_whom_it_was_made_also_under_the_same_key() {
        let policy = CachePolicy::new(CacheSecret::new([7; 32]));
        let shared = Arc::new(Shared::new(Arc::new(MokaStore::new(1 << 20)), policy, None));
        let body = ChatBody::builder().user("Hello").build().unwrap();
        let request = LlmRequest::new("m", body).with_context(by("ada", &[]));
        let Asking::Now(Found::Miss(plan)) = shared.ask(&request, None) else { panic!("it is empty") };
        let look = |made_for: &RequestContext, asks: RequestContext, is_far: bool| {
            let bond = Bond {
                key: plan.wanted.key,
                scope: shared.scope_digest(made_for),
                rights: (!is_far).then(|| made_for.kept_rights()),
                stamp: plan.wanted.stamp.clone().unwrap(),
                created_at: SystemClock.now(),
                ttl: Duration::from_secs(60),
            };
            let answer = Answer::Whole(Completion::text("hi", TokenUsage::new(1, 1)));
            let entry = Entry::new(bond, "m".into(), None, answer);
            shared.look_at(&entry, &plan.wanted, &asks)
        };
        for is_far in [false, true] {
            let ada = by("ada", &["a", "b"]);
            for same in [ada.clone().with_request_id("other"), by("ada", &["b", "a", "b"])] {
                assert!(matches!(look(&ada, same, is_far), Look::Good(_)), "{is_far}");
            }
            let other_rights = by("ada", &["a"]).with_kb(KbScope::new("b").with_acl_hash("others"));
            let other_tenant = ada.clone().with_tenant_id("other");
            for other in
                [by("bob", &["a", "b"]), by("ada", &["a"]), by("ada", &[]), other_rights, other_tenant]
            {
                assert!(matches!(look(&ada, other, is_far), Look::Foreign), "{is_far}");
            }
        }
    }
}
