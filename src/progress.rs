use crate::CallId;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// How far a call has come: whether a provider was asked.
///
/// A leaf calls [`mark_dispatched`](Self::mark_dispatched) just before bytes go out; what was not
/// dispatched costs nothing, what was is paid for. A layer that must know it for its own call and no other
/// (each attempt of a fallback, each lease of a quota) hands a [`child`](Self::child) down: a mark on the
/// child marks its ancestors, not the other way round.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Node>);

#[derive(Debug, Default)]
struct Node {
    dispatched: AtomicBool,
    /// What the call is charged to.
    lease: Option<CallId>,
    parent: Option<Progress>,
}

impl Progress {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The progress of one part of this call.
    #[must_use]
    pub fn child(&self) -> Self {
        self.below(self.0.lease)
    }

    /// As [`child`](Self::child), of a call that is charged to this lease.
    pub(crate) fn charged_to(&self, lease: CallId) -> Self {
        self.below(Some(lease))
    }

    /// The lease of [quotas](crate::quota) that the call is charged to, if it is.
    pub fn lease(&self) -> Option<CallId> {
        self.0.lease
    }

    fn below(&self, lease: Option<CallId>) -> Self {
        Self(Arc::new(Node { dispatched: AtomicBool::new(false), lease, parent: Some(self.clone()) }))
    }

    /// Notes that a provider is about to be asked.
    pub fn mark_dispatched(&self) {
        let mut next = Some(self);
        while let Some(Self(node)) = next {
            node.dispatched.store(true, Ordering::Release);
            next = node.parent.as_ref();
        }
    }

    /// Whether a provider was asked.
    pub fn is_dispatched(&self) -> bool {
        self.0.dispatched.load(Ordering::Acquire)
    }
}
