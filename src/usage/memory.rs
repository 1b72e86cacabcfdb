use super::{
    DepartmentSums, GroupBy, Slot, UsageEvent, UsageGroup, UsageQuery, UsageSink, UsageTotals, query,
};
use crate::{Error, ErrorKind};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Keeps events in memory, up to a bound: for tests, and for programs that read them soon. Clones share them.
///
/// An event that is recorded again, which is known by its id, takes a place again, but is taken out and added up once.
#[derive(Debug, Clone)]
pub struct MemorySink(Arc<Mutex<Events>>);

#[derive(Debug)]
struct Events {
    kept: Vec<UsageEvent>,
    /// Events that are to come.
    admitted: usize,
    capacity: usize,
}

/// A place that is taken.
#[derive(Debug)]
pub(super) struct MemoryPlace(Option<MemorySink>);

impl MemorySink {
    /// Keeps at most `capacity` events; beyond, calls are refused until they are [taken](Self::take).
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Events { kept: Vec::new(), admitted: 0, capacity })))
    }

    /// Takes all events out.
    pub fn take(&self) -> Vec<UsageEvent> {
        let mut events = std::mem::take(&mut self.lock().kept);
        let mut seen = HashSet::with_capacity(events.len());
        events.retain(|event| seen.insert(event.id));
        events
    }

    /// How many events are to come: calls that have not ended.
    pub fn admitted(&self) -> usize {
        self.lock().admitted
    }

    /// Adds up the events that are kept, each once. `None` if the cost is more than
    /// [`NanoUsd::MAX`](crate::price::NanoUsd::MAX).
    pub fn totals(&self, query: &UsageQuery) -> Option<UsageTotals> {
        query::totals(self.lock().each_once(), query)
    }

    /// As [`totals`](Self::totals), for each group; in the order of their keys.
    pub fn totals_by(&self, query: &UsageQuery, groups: &[GroupBy]) -> Option<Vec<UsageGroup>> {
        query::totals_by(self.lock().each_once(), query, groups)
    }

    /// Adds up the events that are kept, each in full for every department that it is charged to; in the order of
    /// departments, then keys.
    pub fn department_sums(&self, query: &UsageQuery, groups: &[GroupBy]) -> Option<Vec<DepartmentSums>> {
        query::department_sums(self.lock().each_once(), query, groups)
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    fn each_once(&self) -> impl Iterator<Item = &UsageEvent> {
        let mut seen = HashSet::with_capacity(self.kept.len());
        self.kept.iter().filter(move |event| seen.insert(event.id))
    }
}

impl UsageSink for MemorySink {
    fn admit(&self) -> Result<Slot, Error> {
        let mut events = self.lock();
        if events.kept.len() + events.admitted >= events.capacity {
            return Err(Error::new(ErrorKind::StoreUnavailable { store: "usage".into() }));
        }
        events.admitted += 1;
        Ok(Slot::of_memory(MemoryPlace(Some(self.clone()))))
    }
}

impl MemoryPlace {
    pub(super) fn record(mut self, event: UsageEvent, done: Option<oneshot::Sender<()>>) {
        let Some(sink) = self.0.take() else { return };
        let mut events = sink.lock();
        events.admitted -= 1;
        events.kept.push(event);
        drop(events);
        if let Some(done) = done {
            // Who does not wait for it need not be told.
            let _ = done.send(());
        }
    }
}

impl Drop for MemoryPlace {
    fn drop(&mut self) {
        if let Some(sink) = &self.0 {
            sink.lock().admitted -= 1;
        }
    }
}
