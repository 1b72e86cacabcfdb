//! A store as if it were far away.
#![allow(dead_code, reason = "not all of it is used by every test")]

use llm_layers::quota::{
    Adjustment, Applied, Baseline, Days, Decision, Departments, LeaseId, MemoryStore, QuotaStore,
    Reservation, Settlement, Standing, StoreError, StoreFuture,
};
use std::{
    future::{pending, poll_fn},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

/// The store in memory, but its answers take a turn, or fail, or never come.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) store: MemoryStore,
    fault: Arc<Mutex<Fault>>,
    asked: Arc<AtomicU64>,
    reserved: Arc<AtomicU64>,
}

/// What is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It cannot be reached: nothing is done.
    Refuses,
    /// Nothing is done, and nobody says so.
    Hangs,
    /// It is done, and nobody says so.
    LosesReplies,
    /// It is done late.
    Slow(Duration),
    /// It is done, and the answer comes late.
    Late(Duration),
}

impl Remote {
    pub(crate) fn new(store: MemoryStore) -> Self {
        Self {
            store,
            fault: Arc::new(Mutex::new(Fault::None)),
            asked: Arc::default(),
            reserved: Arc::default(),
        }
    }

    pub(crate) fn fail(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often it was asked for a reservation.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    fn late<T: Send + 'static>(
        &self,
        answer: impl FnOnce(MemoryStore) -> StoreFuture<T> + Send + 'static,
    ) -> StoreFuture<T> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (store, fault) = (self.store.clone(), *self.fault.lock().unwrap());
        StoreFuture::boxed(async move {
            turn().await;
            match fault {
                Fault::Refuses => return Err(StoreError::definite("connection refused")),
                Fault::Hangs => return pending().await,
                Fault::Slow(time) => tokio::time::sleep(time).await,
                Fault::None | Fault::LosesReplies | Fault::Late(_) => {}
            }
            let answer = answer(store).await;
            if fault == Fault::LosesReplies {
                return pending().await;
            }
            if let Fault::Late(time) = fault {
                tokio::time::sleep(time).await;
            }
            turn().await;
            answer
        })
    }
}

/// `Pending` once, and woken at once: tokio's own wakes only when the runtime has a turn.
async fn turn() {
    let mut is_over = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut is_over, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl QuotaStore for Remote {
    fn reserve(&self, reservation: &Reservation) -> StoreFuture<Decision> {
        self.reserved.fetch_add(1, Ordering::Relaxed);
        let reservation = reservation.clone();
        self.late(move |store| store.reserve(&reservation))
    }

    fn extend(&self, id: LeaseId, departments: &Departments, by: Duration) -> StoreFuture<bool> {
        let departments = departments.clone();
        self.late(move |store| store.extend(id, &departments, by))
    }

    fn settle(&self, settlement: &Settlement) -> StoreFuture<Applied> {
        let settlement = settlement.clone();
        self.late(move |store| store.settle(&settlement))
    }

    fn settle_each(&self, settlement: &Settlement) -> StoreFuture<Vec<Applied>> {
        let settlement = settlement.clone();
        self.late(move |store| store.settle_each(&settlement))
    }

    fn release(&self, id: LeaseId, departments: &Departments) -> StoreFuture<()> {
        let departments = departments.clone();
        self.late(move |store| store.release(id, &departments))
    }

    fn usage(&self, department: &Arc<str>, days: &Days) -> StoreFuture<Standing> {
        let (department, days) = (Arc::clone(department), days.clone());
        self.late(move |store| store.usage(&department, &days))
    }

    fn seed(&self, department: &Arc<str>, baseline: &Baseline) -> StoreFuture<bool> {
        let (department, baseline) = (Arc::clone(department), *baseline);
        self.late(move |store| store.seed(&department, &baseline))
    }

    fn adjust(&self, adjustment: &Adjustment) -> StoreFuture<bool> {
        let adjustment = adjustment.clone();
        self.late(move |store| store.adjust(&adjustment))
    }
}
