use crate::LlmRequest;
use arc_swap::ArcSwap;
use std::{
    sync::{Arc, Mutex},
    task::{Context, Poll},
};
use tower_service::Service;

/// The stack of this moment: each call takes it once, and keeps it to its end.
///
/// One load for all tables, so that no call sees the aliases of one configuration and the chains of another.
pub(super) struct Live<S> {
    current: Arc<ArcSwap<Version<S>>>,
    ready: Option<Ready<S>>,
}

/// The stack of one configuration.
pub(super) struct Version<S> {
    stack: S,
    /// Clones whose call has been made. Another clone changes a shared count for each layer, from whichever core it is
    /// made on, and as many again when it is dropped.
    spare: Mutex<Vec<S>>,
    /// How many of them are kept at most.
    most: usize,
}

/// A clone of the stack for one call.
struct Ready<S> {
    version: Arc<Version<S>>,
    stack: S,
}

/// How many clones are kept at most.
const SPARE: usize = 64;

impl<S> Version<S> {
    /// A stack whose layers hold nothing between calls.
    pub(super) const fn new(stack: S) -> Self {
        Self { stack, spare: Mutex::new(Vec::new()), most: SPARE }
    }

    /// A stack with layers of the host's: where a call is refused outside of one, the place that it has taken for the call is only given
    /// back with the clone.
    pub(super) const fn unshared(stack: S) -> Self {
        Self { stack, spare: Mutex::new(Vec::new()), most: 0 }
    }
}

impl<S: Clone> Version<S> {
    /// A clone that nobody else has.
    fn take(&self) -> S {
        // Nobody waits for it: where another one looks just now, a clone is cheaper.
        let spare = self.spare.try_lock().ok().and_then(|mut spare| spare.pop());
        spare.unwrap_or_else(|| self.stack.clone())
    }

    fn give_back(&self, stack: S) {
        if let Ok(mut spare) = self.spare.try_lock()
            && spare.len() < self.most
        {
            spare.push(stack);
        }
    }
}

impl<S> Live<S> {
    pub(super) const fn new(current: Arc<ArcSwap<Version<S>>>) -> Self {
        Self { current, ready: None }
    }
}

impl<S> Clone for Live<S> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.current))
    }
}

impl<S: Service<LlmRequest> + Clone> Service<LlmRequest> for Live<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let ready = self.ready.get_or_insert_with(|| {
            let version = self.current.load_full();
            Ready { stack: version.take(), version }
        });
        ready.stack.poll_ready(cx)
    }

    fn call(&mut self, request: LlmRequest) -> Self::Future {
        // The one that is ready is used up; the next call may find another.
        let Ready { version, mut stack } = self.ready.take().expect("`poll_ready` comes before `call`");
        let call = stack.call(request);
        version.give_back(stack);
        call
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatBody, Error, ErrorKind, LlmResponse, stack::BoxService};
    use std::{
        future::ready,
        sync::atomic::{AtomicUsize, Ordering},
        task::Waker,
    };
    use tower::service_fn;

    struct Counted(Arc<AtomicUsize>);

    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(&self.0))
        }
    }

    /// Counts its clones, and panics when it is told to.
    fn stack(clones: &Arc<AtomicUsize>) -> Version<BoxService> {
        let counted = Counted(Arc::clone(clones));
        Version::new(BoxService::new(service_fn(move |request: LlmRequest| {
            let _part_of_it = &counted;
            assert!(request.model != "panic", "as it was told to");
            ready(Err::<LlmResponse, _>(Error::new(ErrorKind::Cancelled)))
        })))
    }

    type Current = Arc<ArcSwap<Version<BoxService>>>;

    fn live() -> (Live<BoxService>, Current, Arc<AtomicUsize>) {
        let clones = Arc::default();
        let current = Arc::new(ArcSwap::from_pointee(stack(&clones)));
        (Live::new(Arc::clone(&current)), current, clones)
    }

    fn is_ready(live: &mut Live<BoxService>) -> bool {
        live.poll_ready(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn call(live: &mut Live<BoxService>, model: &str) {
        let body = ChatBody::builder().user("Hello").build().unwrap();
        assert!(is_ready(live));
        drop(live.call(LlmRequest::new(model, body)));
    }

    #[test]
    fn calls_one_after_the_other_share_a_clone_of_the_stack() {
        let (live, _current, clones) = live();
        for _ in 0..10 {
            call(&mut live.clone(), "one");
        }
        assert_eq!(clones.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn calls_at_the_same_time_have_a_clone_each() {
        let (live, current, clones) = live();
        let mut many: Vec<_> = (0..2 * SPARE).map(|_| live.clone()).collect();
        assert!(many.iter_mut().all(is_ready));
        assert_eq!(clones.load(Ordering::Relaxed), 2 * SPARE);
        many.iter_mut().for_each(|live| call(live, "one"));
        assert_eq!(current.load().spare.lock().unwrap().len(), SPARE);
    }

    #[test]
    fn a_clone_that_was_not_called_or_panicked_is_not_used_again() {
        let (live, current, clones) = live();
        let mut unused = live.clone();
        assert!(is_ready(&mut unused));
        drop(unused);
        let mut panics = live.clone();
        let call_it = std::panic::AssertUnwindSafe(|| call(&mut panics, "panic"));
        assert!(std::panic::catch_unwind(call_it).is_err());
        assert!(current.load().spare.lock().unwrap().is_empty());
        call(&mut live.clone(), "one");
        assert_eq!(clones.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn another_configuration_has_clones_of_its_own() {
        let (mut live, current, clones) = live();
        assert!(is_ready(&mut live));
        let old = current.load_full();
        current.store(Arc::new(stack(&clones)));
        call(&mut live, "one");
        assert_eq!((old.spare.lock().unwrap().len(), current.load().spare.lock().unwrap().len()), (1, 0));
        call(&mut live, "one");
        assert_eq!(current.load().spare.lock().unwrap().len(), 1);
    }
}
