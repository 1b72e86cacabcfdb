//! What threads share. Under `cfg(shuttle)`, which only `models/` sets, it is shuttle's: then a scheduler decides at each lock
//! and each atomic who goes on, and the models in `models/tests` see the same code in thousands of orders.

#[cfg(shuttle)]
pub(crate) use self::model::*;
#[cfg(not(shuttle))]
pub(crate) use self::real::*;

#[cfg(not(shuttle))]
mod real {
    pub(crate) use std::{
        sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic},
        thread,
    };
    pub(crate) use tokio::{
        runtime::Handle,
        task::AbortHandle,
        time::{timeout, timeout_at},
    };
}

#[cfg(shuttle)]
mod model {
    use shuttle::rand::{Rng as _, thread_rng};
    pub(crate) use shuttle::{
        future::AbortHandle,
        sync::{Mutex, MutexGuard, RwLock, RwLockWriteGuard, atomic},
        thread,
    };
    use std::{
        convert::Infallible,
        future::poll_fn,
        pin::pin,
        sync::{Arc, LockResult},
        task::Poll,
    };

    /// Spawns what shuttle runs.
    #[derive(Debug, Clone)]
    pub(crate) struct Handle;

    impl Handle {
        pub(crate) const fn try_current() -> Result<Self, Infallible> {
            Ok(Self)
        }

        pub(crate) fn spawn<F>(&self, future: F) -> shuttle::future::JoinHandle<F::Output>
        where
            F: Future<Output: Send + 'static> + Send + 'static,
        {
            shuttle::future::spawn(future)
        }
    }

    /// Time passes when chance says so: a future that is not ready may be too late at any poll.
    pub(crate) async fn timeout<T>(_: impl Sized, future: impl Future<Output = T>) -> Result<T, ()> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending if thread_rng().gen_bool(0.3) => Poll::Ready(Err(())),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    pub(crate) use self::timeout as timeout_at;

    /// As std's, with a clock that strikes at any time.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(Arc<shuttle::sync::Condvar>);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait_while<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<MutexGuard<'a, T>> {
            self.0.wait_while(guard, condition)
        }

        pub(crate) fn wait_timeout_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _: impl Sized,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'a, T>, bool)> {
            while condition(&mut guard) {
                // Others go on meanwhile, and what they say may be what ends it.
                let is_over = Arc::new(atomic::AtomicBool::new(false));
                let (clock, strikes) = (Arc::clone(&self.0), Arc::clone(&is_over));
                thread::spawn(move || {
                    while !strikes.load(atomic::Ordering::SeqCst) {
                        clock.notify_all();
                        thread::yield_now();
                    }
                });
                guard = self.0.wait(guard).expect("nobody panics");
                is_over.store(true, atomic::Ordering::SeqCst);
                if thread_rng().gen_bool(0.5) {
                    return Ok((guard, true));
                }
            }
            Ok((guard, false))
        }
    }
}
