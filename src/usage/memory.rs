use super::{
    DepartmentSums, Done, GroupBy, ReadError, ReadFuture, Slot, UsageEvent, UsageGroup, UsageQuery,
    UsageReader, UsageSink, UsageSummary, UsageTotals, query,
};
use crate::{Error, ErrorKind};
use std::{
    collections::HashSet,
    future::ready,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Keeps events in memory, up to a bound: for tests, and for programs that read them soon. Clones share them.
///
/// An event that is recorded again, which is known by its id, takes a place again, but is taken out and added up once.
#[derive(Debug, Clone)]
pub struct MemorySink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kept: Mutex<Vec<UsageEvent>>,
    /// Places that are taken: by events, and by those that are to come.
    taken: AtomicUsize,
    capacity: usize,
}

/// For how many events there is room at most when those before them are taken.
const ROOM: usize = 1024;

/// A place that is taken.
#[derive(Debug)]
pub(super) struct MemoryPlace(Option<MemorySink>);

impl MemorySink {
    /// Keeps at most `capacity` events; beyond, calls are refused until they are [taken](Self::take).
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Inner { kept: Mutex::default(), taken: AtomicUsize::new(0), capacity }))
    }

    /// Takes all events out.
    pub fn take(&self) -> Vec<UsageEvent> {
        let mut kept = self.lock();
        // As many may come again, and no call shall have to make room for them.
        let room = Vec::with_capacity(kept.len().min(ROOM));
        let mut events = mem::replace(&mut *kept, room);
        self.0.taken.fetch_sub(events.len(), Ordering::AcqRel);
        drop(kept);
        let mut seen = HashSet::with_capacity(events.len());
        events.retain(|event| seen.insert(event.id));
        events
    }

    /// How many events are to come: calls that have not ended.
    pub fn admitted(&self) -> usize {
        let kept = self.lock();
        // With the lock: no place becomes an event meanwhile.
        self.0.taken.load(Ordering::Acquire).saturating_sub(kept.len())
    }

    /// Adds up the events that are kept, each once. `None` if the cost is more than
    /// [`NanoUsd::MAX`](crate::price::NanoUsd::MAX).
    pub fn totals(&self, query: &UsageQuery) -> Option<UsageTotals> {
        query::totals(each_once(&self.lock()), query)
    }

    /// As [`totals`](Self::totals), for each group; in the order of their keys.
    pub fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> Option<Vec<UsageGroup>> {
        query::totals_by(each_once(&self.lock()), query, groups)
    }

    /// Adds up the events that are kept, each in full for every department that it is charged to; in the order of
    /// departments, then keys.
    pub fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> Option<Vec<DepartmentSums>> {
        query::department_sums(each_once(&self.lock()), query, groups)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<UsageEvent>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UsageReader for MemorySink {
    fn totals(&self, query: &UsageQuery) -> ReadFuture<UsageTotals> {
        answer(self.totals(query))
    }

    fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>> {
        answer(self.totals_by(query, groups))
    }

    fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>> {
        answer(self.department_sums(query, groups))
    }

    fn summary(&self, query: &UsageQuery, groups: &[GroupBy]) -> ReadFuture<UsageSummary> {
        let kept = self.lock();
        let totals = query::totals(each_once(&kept), query);
        let by = query::totals_by(each_once(&kept), query, groups);
        let departments = query::department_sums(each_once(&kept), query, groups);
        let all = totals.zip(by).zip(departments);
        answer(all.map(|((totals, groups), departments)| UsageSummary { totals, groups, departments }))
    }
}

fn answer<T: Send + 'static>(sums: Option<T>) -> ReadFuture<T> {
    Box::pin(ready(sums.ok_or_else(|| ReadError::failed("sums of money are too large"))))
}

fn each_once(events: &[UsageEvent]) -> impl Iterator<Item = &UsageEvent> {
    let mut seen = HashSet::with_capacity(events.len());
    events.iter().filter(move |event| seen.insert(event.id))
}

impl UsageSink for MemorySink {
    fn admit(&self) -> Result<Slot, Error> {
        let one_more = |taken: usize| (taken < self.0.capacity).then(|| taken + 1);
        let place = self.0.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        place.map_err(|_| Error::new(ErrorKind::StoreUnavailable { store: "usage".into() }))?;
        Ok(Slot::of_memory(MemoryPlace(Some(self.clone()))))
    }

    fn is_healthy(&self) -> bool {
        self.0.taken.load(Ordering::Acquire) < self.0.capacity
    }
}

impl MemoryPlace {
    pub(super) fn record(mut self, event: UsageEvent, done: Option<Done>) {
        let Some(sink) = self.0.take() else { return };
        sink.lock().push(event);
        if let Some(done) = done {
            done.tell();
        }
    }
}

impl Drop for MemoryPlace {
    fn drop(&mut self) {
        if let Some(sink) = &self.0 {
            sink.0.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
