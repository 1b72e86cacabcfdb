use crate::{CallId, usage::Spent};
use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// How far a call has come: whether a provider was asked.
///
/// A leaf calls [`mark_dispatched`](Self::mark_dispatched) just before bytes go out, or
/// [`MarkDispatch`](crate::provider::dispatch::MarkDispatch) does for it; what was not
/// dispatched costs nothing, what was is paid for. A layer that must know it for its own call and no other
/// (each attempt of a fallback, each lease of a quota) hands a [`child`](Self::child) down: a mark on the
/// child marks its ancestors, not the other way round.
///
/// Clones are the same part of the call. Up to 64 parts share one allocation. Who sends clones of one request, as tower's `Retry` does, makes several
/// attempts in the same part: of those that have ended it is known, besides, whether any was sent, and whether any may be billed.
#[derive(Clone)]
pub struct Progress {
    family: Arc<Family>,
    /// One for this part and each that it is a part of, within the family. Its own is the highest: who is younger has a
    /// higher one.
    bits: u64,
}

/// Parts that share an allocation.
struct Family {
    dispatched: AtomicU64,
    /// In which an attempt has ended by its provider's refusal.
    refused: AtomicU64,
    /// In which an attempt has ended that its provider may bill.
    billable: AtomicU64,
    /// How many parts there are, or were; those in families of their own, which these have, too.
    parts: AtomicU64,
    /// What they are charged to.
    lease: Option<CallId>,
    /// One of them, and what it and its parts are charged to instead: most calls have one such part.
    charged: OnceLock<(u64, CallId)>,
    /// In a box: few calls have one, and each has room for it.
    noted: Mutex<Option<Box<Noted>>>,
    /// What all of them are parts of.
    parent: Option<Progress>,
}

/// What an answer used up that nobody was given.
struct Noted {
    /// Of the part that it is of, and of all that this is a part of.
    bits: u64,
    spent: Spent,
    /// How many parts there were: it says nothing of those that came later.
    parts: u64,
}

impl Progress {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Self::founding(None, None)
    }

    /// The progress of one part of this call.
    #[must_use]
    pub fn child(&self) -> Self {
        self.sharing().unwrap_or_else(|| Self::founding(self.lease(), Some(self.clone())))
    }

    /// Becomes the progress of one part of this call. A second one for whoever looks at it.
    pub(crate) fn descend(&mut self) -> Self {
        let child = self.child();
        self.become_twice(child)
    }

    /// As [`descend`](Self::descend), of a part that is charged to this lease.
    pub(crate) fn descend_charged_to(&mut self, lease: CallId) -> Self {
        let child = self.charged_to(lease);
        self.become_twice(child)
    }

    /// What was counted for this one counts for the second, if both share an allocation.
    fn become_twice(&mut self, child: Self) -> Self {
        let mut second = mem::replace(self, child);
        match Arc::ptr_eq(&second.family, &self.family) {
            true => second.bits = self.bits,
            false => second = self.clone(),
        }
        second
    }

    /// As [`child`](Self::child), of a call that is charged to this lease.
    fn charged_to(&self, lease: CallId) -> Self {
        let charged = &self.family.charged;
        match self.sharing().filter(|part| charged.set((part.own(), lease)).is_ok()) {
            Some(part) => part,
            None => Self::founding(Some(lease), Some(self.clone())),
        }
    }

    /// The lease of [quotas](crate::quota) that the call is charged to, if it is.
    pub fn lease(&self) -> Option<CallId> {
        match self.family.charged.get() {
            Some((part, lease)) if self.bits & part != 0 => Some(*lease),
            _ => self.family.lease,
        }
    }

    /// A part in the same family, if there is room for one.
    fn sharing(&self) -> Option<Self> {
        let mut next = self.family.parent.as_ref();
        while let Some(Self { family, .. }) = next {
            family.parts.fetch_add(1, Ordering::Relaxed);
            next = family.parent.as_ref();
        }
        let number = u32::try_from(self.family.parts.fetch_add(1, Ordering::Relaxed)).ok()?;
        let own = 1_u64.checked_shl(number)?;
        Some(Self { family: Arc::clone(&self.family), bits: self.bits | own })
    }

    fn founding(lease: Option<CallId>, parent: Option<Self>) -> Self {
        let family = Family {
            dispatched: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            billable: AtomicU64::new(0),
            parts: AtomicU64::new(1),
            lease,
            charged: OnceLock::new(),
            noted: Mutex::default(),
            parent,
        };
        Self { family: Arc::new(family), bits: 1 }
    }

    const fn own(&self) -> u64 {
        1 << self.bits.ilog2()
    }

    /// Notes that a provider is about to be asked.
    pub fn mark_dispatched(&self) {
        self.mark(|family| &family.dispatched);
    }

    /// Notes that an attempt was sent, and refused before anything was said.
    pub(crate) fn mark_refused(&self) {
        self.mark(|family| &family.refused);
    }

    /// Notes that an attempt was sent, and not refused.
    pub(crate) fn mark_billable(&self) {
        self.mark(|family| &family.billable);
    }

    fn mark(&self, parts: impl Fn(&Family) -> &AtomicU64) {
        let mut next = Some(self);
        while let Some(Self { family, bits }) = next {
            let parts = parts(family);
            // Looked at first: clones of one request may be sent from many threads, and mark the same ancestors.
            if parts.load(Ordering::Relaxed) & bits != *bits {
                parts.fetch_or(*bits, Ordering::Release);
            }
            next = family.parent.as_ref();
        }
    }

    /// Notes what an answer used up that is here, and that nobody will be given: whoever sees no more than that the call
    /// was dropped learns it by this.
    pub(crate) fn note_spent(&self, spent: Spent) {
        let mut next = Some(self);
        while let Some(Self { family, bits }) = next {
            let parts = family.parts.load(Ordering::Relaxed);
            *family.noted() = Some(Box::new(Noted { bits: *bits, spent, parts }));
            next = family.parent.as_ref();
        }
    }

    /// What was [noted](Self::note_spent) of this part, if nothing was tried since.
    pub(crate) fn spent(&self) -> Option<Spent> {
        let parts = self.family.parts.load(Ordering::Relaxed);
        let noted = self.family.noted();
        noted
            .as_ref()
            .filter(|noted| noted.bits & self.own() != 0 && noted.parts == parts)
            .map(|noted| noted.spent)
    }

    /// Whether a provider was asked.
    pub fn is_dispatched(&self) -> bool {
        self.is_marked(&self.family.dispatched)
    }

    /// Whether an attempt that has ended is known to have reached its provider.
    pub(crate) fn is_sent(&self) -> bool {
        self.is_billable() || self.is_marked(&self.family.refused)
    }

    /// Whether an attempt has ended that its provider may bill.
    pub(crate) fn is_billable(&self) -> bool {
        self.is_marked(&self.family.billable)
    }

    fn is_marked(&self, parts: &AtomicU64) -> bool {
        parts.load(Ordering::Acquire) & self.own() != 0
    }
}

impl Family {
    fn noted(&self) -> MutexGuard<'_, Option<Box<Noted>>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("is_dispatched", &self.is_dispatched())
            .field("lease", &self.lease())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completion, TokenUsage, body::End};
    use proptest::prelude::*;
    use std::{collections::HashSet, time::SystemTime};

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Child(usize),
        Charged(usize),
        Mark(usize, Mark),
        Spend(usize),
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Mark {
        Dispatched,
        Refused,
        Billable,
    }

    fn step() -> impl Strategy<Value = Step> {
        let of = any::<prop::sample::Index>().prop_map(|at| at.index(usize::MAX));
        (of, 0..20).prop_map(|(of, kind)| match kind {
            0 => Step::Charged(of),
            1..3 => Step::Mark(of, Mark::Dispatched),
            3 => Step::Mark(of, Mark::Refused),
            4 => Step::Mark(of, Mark::Billable),
            5 => Step::Spend(of),
            _ => Step::Child(of),
        })
    }

    #[test]
    fn a_note_says_nothing_of_what_is_tried_after_it() {
        let answer = Completion::text("", TokenUsage::new(7, 0));
        let spent = Spent::at(&End::Whole(&answer), None);
        let call = Progress::new();
        // Beyond 64, parts are in families of their own.
        for _ in 0..200 {
            let (part, sibling) = (call.child(), call.child());
            let attempt = part.child();
            attempt.note_spent(spent);
            assert!([&call, &part, &attempt].iter().all(|progress| progress.spent().is_some()));
            assert!(sibling.spent().is_none());
            drop(part.child());
            assert!([&call, &part].iter().all(|progress| progress.spent().is_none()));
        }
    }

    proptest! {
        /// However many there are, and however they descend from one another.
        #[test]
        fn a_mark_or_a_note_is_of_the_part_and_its_ancestors_and_of_nobody_else(steps in prop::collection::vec(step(), 1..300)) {
            // Of each: a second one for it, its parent, its lease, and its marks.
            let root = Progress::new();
            let mut all = vec![(root.clone(), root, None, None, Vec::new())];
            let spent = |progress: &Progress| progress.spent().and_then(|spent| spent.usage?.input_tokens);
            for (number, step) in (0_u64..).zip(steps) {
                // Which have a note of this step.
                let mut noted = HashSet::new();
                match step {
                    Step::Child(of) => {
                        let of = of % all.len();
                        let mut child = all[of].0.clone();
                        let second = child.descend();
                        all.push((child, second, Some(of), all[of].3, Vec::new()));
                    }
                    Step::Charged(of) => {
                        let (of, lease) = (of % all.len(), CallId::mint(SystemTime::UNIX_EPOCH));
                        let mut child = all[of].0.clone();
                        let second = child.descend_charged_to(lease);
                        all.push((child, second, Some(of), Some(lease), Vec::new()));
                    }
                    Step::Mark(of, mark) => {
                        let mut next = Some(of % all.len());
                        let marked = &all[of % all.len()].1;
                        match mark {
                            Mark::Dispatched => marked.mark_dispatched(),
                            Mark::Refused => marked.mark_refused(),
                            Mark::Billable => marked.mark_billable(),
                        }
                        while let Some(at) = next {
                            all[at].4.push(mark);
                            next = all[at].2;
                        }
                    }
                    Step::Spend(of) => {
                        let mut next = Some(of % all.len());
                        let answer = Completion::text("", TokenUsage::new(number, 0));
                        all[of % all.len()].1.note_spent(Spent::at(&End::Whole(&answer), None));
                        while let Some(at) = next {
                            noted.insert(at);
                            next = all[at].2;
                        }
                    }
                }
                for (at, (progress, second, _, lease, marks)) in all.iter().enumerate() {
                    let has = |mark| marks.contains(&mark);
                    for progress in [progress, second] {
                        prop_assert_eq!(spent(progress) == Some(number), noted.contains(&at));
                        prop_assert_eq!((progress.is_dispatched(), progress.lease()), (has(Mark::Dispatched), *lease));
                        prop_assert_eq!(progress.is_billable(), has(Mark::Billable));
                        prop_assert_eq!(progress.is_sent(), has(Mark::Billable) || has(Mark::Refused));
                    }
                }
            }
        }
    }

    #[test]
    fn parts_of_one_call_are_told_apart_on_many_threads() {
        let root = Progress::new();
        let make = || (0..100).map(|_| root.child()).collect::<Vec<_>>();
        let all = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (at, part) in all.iter().enumerate() {
            part.mark_dispatched();
            let marked = all.iter().filter(|part| part.is_dispatched()).count();
            assert_eq!(marked, at + 1);
        }
        assert!(root.is_dispatched());
    }
}
