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
        Self(Arc::new(Node { dispatched: AtomicBool::new(false), parent: Some(self.clone()) }))
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
