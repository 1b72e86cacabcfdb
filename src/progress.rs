use crate::{CallId, usage::Spent};
use std::{
    fmt, mem,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// How far a call has come: whether a provider was asked.
///
/// A leaf calls [`mark_dispatched`](Self::mark_dispatched) just before bytes go out; what was not
/// dispatched costs nothing, what was is paid for. A layer that must know it for its own call and no other
/// (each attempt of a fallback, each lease of a quota) hands a [`child`](Self::child) down: a mark on the
/// child marks its ancestors, not the other way round.
///
/// Clones are the same part of the call. Up to 64 parts share one allocation.
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
    /// How many parts there are, or were.
    parts: AtomicU32,
    /// What they are charged to.
    lease: Option<CallId>,
    /// One of them, and what it and its parts are charged to instead: most calls have one such part.
    charged: OnceLock<(u64, CallId)>,
    /// Of some of them, what their answers used up that are here, and not handed on yet.
    spent: Mutex<Vec<(u64, Spent)>>,
    /// What all of them are parts of.
    parent: Option<Progress>,
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
        let parts = &self.family.parts;
        // Looked at first: counted up for ever, it would begin anew some day.
        let has_room = parts.load(Ordering::Relaxed) < u64::BITS;
        let own = has_room.then(|| 1_u64.checked_shl(parts.fetch_add(1, Ordering::Relaxed)))??;
        Some(Self { family: Arc::clone(&self.family), bits: self.bits | own })
    }

    fn founding(lease: Option<CallId>, parent: Option<Self>) -> Self {
        let family = Family {
            dispatched: AtomicU64::new(0),
            parts: AtomicU32::new(1),
            lease,
            charged: OnceLock::new(),
            spent: Mutex::default(),
            parent,
        };
        Self { family: Arc::new(family), bits: 1 }
    }

    const fn own(&self) -> u64 {
        1 << self.bits.ilog2()
    }

    /// Notes that a provider is about to be asked.
    pub fn mark_dispatched(&self) {
        let mut next = Some(self);
        while let Some(Self { family, bits }) = next {
            // Looked at first: clones of one request may be sent from many threads, and mark the same ancestors.
            if family.dispatched.load(Ordering::Relaxed) & bits != *bits {
                family.dispatched.fetch_or(*bits, Ordering::Release);
            }
            next = family.parent.as_ref();
        }
    }

    /// Notes what an answer used up that is here, and not handed on yet: whoever only sees the call end learns it by this.
    pub(crate) fn note_spent(&self, spent: Spent) {
        let mut next = Some(self);
        while let Some(Self { family, bits }) = next {
            family.spent.lock().unwrap_or_else(PoisonError::into_inner).push((*bits, spent));
            next = family.parent.as_ref();
        }
    }

    /// What was last [noted](Self::note_spent) of this part.
    pub(crate) fn spent(&self) -> Option<Spent> {
        let noted = self.family.spent.lock().unwrap_or_else(PoisonError::into_inner);
        noted.iter().rev().find(|(bits, _)| bits & self.own() != 0).map(|(_, spent)| *spent)
    }

    /// Whether a provider was asked.
    pub fn is_dispatched(&self) -> bool {
        self.family.dispatched.load(Ordering::Acquire) & self.own() != 0
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
    use std::time::SystemTime;

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Child(usize),
        Charged(usize),
        Mark(usize),
        Spend(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let of = any::<prop::sample::Index>().prop_map(|at| at.index(usize::MAX));
        (of, 0..20).prop_map(|(of, kind)| match kind {
            0 => Step::Charged(of),
            1..4 => Step::Mark(of),
            4 => Step::Spend(of),
            _ => Step::Child(of),
        })
    }

    proptest! {
        /// However many there are, and however they descend from one another.
        #[test]
        fn a_mark_or_note_is_of_the_part_and_its_ancestors_and_of_nobody_else(steps in prop::collection::vec(step(), 1..300)) {
            // Of each: a second one for it, its parent, its lease, whether it is marked, and which note is the last.
            let root = Progress::new();
            let mut all = vec![(root.clone(), root, None, None, false, None)];
            for (number, step) in (0_u64..).zip(steps) {
                match step {
                    Step::Child(of) => {
                        let of = of % all.len();
                        let mut child = all[of].0.clone();
                        let second = child.descend();
                        all.push((child, second, Some(of), all[of].3, false, None));
                    }
                    Step::Charged(of) => {
                        let (of, lease) = (of % all.len(), CallId::mint(SystemTime::UNIX_EPOCH));
                        let mut child = all[of].0.clone();
                        let second = child.descend_charged_to(lease);
                        all.push((child, second, Some(of), Some(lease), false, None));
                    }
                    Step::Mark(of) => {
                        let mut next = Some(of % all.len());
                        all[of % all.len()].1.mark_dispatched();
                        while let Some(at) = next {
                            all[at].4 = true;
                            next = all[at].2;
                        }
                    }
                    Step::Spend(of) => {
                        let mut next = Some(of % all.len());
                        let answer = Completion::text("", TokenUsage::new(number, 0));
                        all[of % all.len()].1.note_spent(Spent::at(&End::Whole(&answer), None));
                        while let Some(at) = next {
                            all[at].5 = Some(number);
                            next = all[at].2;
                        }
                    }
                }
                for (progress, second, _, lease, is_marked, noted) in &all {
                    let spent = |progress: &Progress| progress.spent().and_then(|spent| spent.usage?.input_tokens);
                    prop_assert_eq!((spent(progress), spent(second)), (*noted, *noted));
                    prop_assert_eq!((progress.is_dispatched(), progress.lease()), (*is_marked, *lease));
                    prop_assert_eq!((second.is_dispatched(), second.lease()), (*is_marked, *lease));
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
