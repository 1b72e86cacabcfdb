//! A connection that wakes itself is polled again, and no other thread for it.

use futures_util::task::AtomicWaker;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

/// Polls a future again that was woken while it was polled, instead of having it scheduled.
///
/// A handler that reads the body of its request is woken by its own connection, which hands it the body. The task that is woken while it
/// runs goes to the end of its thread's queue, and that wakes another thread in vain.
pub(crate) struct Again<F> {
    future: Pin<Box<F>>,
    waking: Arc<Waking>,
    waker: Waker,
}

struct Waking {
    task: AtomicWaker,
    state: AtomicU8,
}

const IDLE: u8 = 0;
const POLLED: u8 = 1;
/// It is being polled, and was woken meanwhile.
const WOKEN: u8 = 2;

/// How often it is polled at once: whoever wakes himself ever again wants others to have their turn.
const TURNS: usize = 3;

impl<F> Again<F> {
    pub(crate) fn new(future: F) -> Self {
        let waking = Arc::new(Waking { task: AtomicWaker::new(), state: AtomicU8::new(IDLE) });
        Self { future: Box::pin(future), waker: Waker::from(Arc::clone(&waking)), waking }
    }
}

impl<F: Future> Future for Again<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, waking, waker } = &mut *self;
        waking.task.register(cx.waker());
        for _ in 0..TURNS {
            waking.state.store(POLLED, Ordering::Release);
            let polled = future.as_mut().poll(&mut Context::from_waker(waker));
            let is_woken = waking.state.swap(IDLE, Ordering::AcqRel) == WOKEN;
            if polled.is_ready() || !is_woken {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match self.state.compare_exchange(POLLED, WOKEN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(WOKEN) => {}
            Err(_) => self.task.wake(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Polls once, and says how often the task was woken.
    fn polled<F: Future>(future: &mut Again<F>, wakes: &Arc<Wakes>) -> (bool, usize) {
        let waker = Waker::from(Arc::clone(wakes));
        let is_ready = Pin::new(future).poll(&mut Context::from_waker(&waker)).is_ready();
        (is_ready, wakes.0.swap(0, Ordering::Relaxed))
    }

    #[test]
    fn who_wakes_himself_is_polled_again_and_the_task_is_not_woken() {
        let (wakes, mut left) = (Arc::default(), 2);
        let mut future = Again::new(poll_fn(move |cx| {
            left -= 1;
            cx.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        assert_eq!(polled(&mut future, &wakes), (true, 0));
    }

    #[test]
    fn who_wakes_himself_ever_again_lets_others_have_their_turn() {
        let (wakes, turns) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&turns);
        let mut future = Again::new(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        assert_eq!(polled(&mut future, &wakes), (false, 1));
        assert_eq!(turns.load(Ordering::Relaxed), TURNS);
    }

    #[test]
    fn who_is_woken_later_wakes_the_task() {
        let (wakes, kept) = (Arc::<Wakes>::default(), Arc::new(AtomicWaker::new()));
        let keeps = Arc::clone(&kept);
        let mut future = Again::new(poll_fn(move |cx| {
            keeps.register(cx.waker());
            Poll::<()>::Pending
        }));
        assert_eq!(polled(&mut future, &wakes), (false, 0));
        kept.wake();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
    }

    /// Each wake leads to a poll that begins after it, be it given while the future is polled or not.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost_whenever_it_comes() {
        let (given, kept) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicWaker::new()));
        let (seen, keeps) = (Arc::clone(&given), Arc::clone(&kept));
        const WAKES: usize = 100_000;
        let waiting = tokio::spawn(Again::new(poll_fn(move |cx| {
            keeps.register(cx.waker());
            if seen.load(Ordering::Acquire) == WAKES { Poll::Ready(()) } else { Poll::Pending }
        })));
        let waking = tokio::task::spawn_blocking(move || {
            for _ in 0..WAKES {
                given.fetch_add(1, Ordering::AcqRel);
                kept.wake();
            }
        });
        waking.await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), waiting)
            .await
            .expect("it is woken")
            .unwrap();
    }
}
