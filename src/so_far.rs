use crate::{Attempt, CacheStatus};
use std::{
    any::Any,
    fmt,
    sync::{Mutex, PoisonError},
};

/// What has become of a call, as long as there is neither an answer nor an error to tell it.
#[derive(Debug, Default)]
pub(crate) struct SoFar {
    /// What a cache had to do with it.
    pub(crate) cache: CacheStatus,
    /// What was tried until it was given up, the attempt under way the last.
    pub(crate) attempts: Vec<Attempt>,
}

/// What the span of a whole call leaves in the request for those within: where to tell how far they came, and its scope,
/// where no thread-local carries it.
pub(crate) struct Around<T: ?Sized> {
    so_far: Mutex<SoFar>,
    scope: T,
}

impl<T> Around<T> {
    pub(crate) fn new(scope: T) -> Self {
        Self { so_far: Mutex::default(), scope }
    }
}

impl<T: ?Sized> Around<T> {
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut SoFar) -> R) -> R {
        f(&mut self.so_far.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Around<dyn Any + Send + Sync> {
    /// The scope, if there is one and it is of this type.
    pub(crate) fn scope<T: 'static>(&self) -> Option<&T> {
        self.scope.downcast_ref::<Option<T>>()?.as_ref()
    }
}

impl<T: ?Sized> fmt::Debug for Around<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Around").finish_non_exhaustive()
    }
}
