use super::{Place, Slot, UsageEvent, UsageSink};
use crate::{Error, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Keeps events in memory, up to a bound: for tests, and for programs that read them soon. Clones share them.
#[derive(Debug, Clone)]
pub struct MemorySink(Arc<Mutex<Events>>);

#[derive(Debug)]
struct Events {
    kept: Vec<UsageEvent>,
    /// Events that are to come.
    admitted: usize,
    capacity: usize,
}

#[derive(Debug)]
struct MemoryPlace {
    sink: MemorySink,
    used: bool,
}

impl MemorySink {
    /// Keeps at most `capacity` events; beyond, calls are refused until they are [taken](Self::take).
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Events { kept: Vec::new(), admitted: 0, capacity })))
    }

    /// Takes all events out.
    pub fn take(&self) -> Vec<UsageEvent> {
        std::mem::take(&mut self.lock().kept)
    }

    /// How many events are to come: calls that have not ended.
    pub fn admitted(&self) -> usize {
        self.lock().admitted
    }

    fn lock(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UsageSink for MemorySink {
    fn admit(&self) -> Result<Slot, Error> {
        let mut events = self.lock();
        if events.kept.len() + events.admitted >= events.capacity {
            return Err(Error::new(ErrorKind::StoreUnavailable { store: "usage".into() }));
        }
        events.admitted += 1;
        Ok(Slot::new(MemoryPlace { sink: self.clone(), used: false }))
    }
}

impl Place for MemoryPlace {
    fn record(mut self: Box<Self>, event: UsageEvent, done: Option<oneshot::Sender<()>>) {
        self.used = true;
        let mut events = self.sink.lock();
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
        if !self.used {
            self.sink.lock().admitted -= 1;
        }
    }
}
