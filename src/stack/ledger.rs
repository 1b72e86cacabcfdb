//! Where usage is recorded.

#[cfg(feature = "rusqlite")]
use super::UsageReport;
use super::{ShutdownReport, StackError};
use crate::{
    config::plan::UsagePlan,
    price::Prices,
    quota::{Unpriced, UsageHistory},
    usage::{UsageLayer, UsageReader, UsageSink},
};
use std::{sync::Arc, time::Duration};

/// Where calls are recorded, and who writes it down.
pub(super) struct Ledger {
    sink: Arc<dyn UsageSink>,
    reader: Option<Arc<dyn UsageReader>>,
    #[cfg(feature = "rusqlite")]
    own: Option<Own>,
}

#[cfg(feature = "rusqlite")]
struct Own {
    kind: OwnSink,
    reader: crate::usage::LedgerReader,
    workers: Workers,
}

#[cfg(feature = "rusqlite")]
enum OwnSink {
    File(crate::usage::QueueSink),
    #[cfg(feature = "redis")]
    Redis(crate::usage::OutboxSink),
}

#[cfg(feature = "rusqlite")]
enum Workers {
    File(crate::usage::Worker),
    #[cfg(feature = "redis")]
    Redis(crate::usage::OutboxWorker, crate::usage::Collector),
}

/// How many groups are told of at once, over events and over departments: some ten megabytes of JSON each.
#[cfg(any(feature = "axum", feature = "rusqlite"))]
pub(crate) const MOST_GROUPS: usize = 50_000;

impl Ledger {
    /// A sink of the host's.
    pub(super) fn of_host(sink: Arc<dyn UsageSink>) -> Self {
        Self {
            sink,
            reader: None,
            #[cfg(feature = "rusqlite")]
            own: None,
        }
    }

    /// Asked by a reader of the host's, if there is one.
    pub(super) fn read_by(self, reader: Option<Arc<dyn UsageReader>>) -> Self {
        Self { reader: reader.or(self.reader), ..self }
    }

    #[cfg(feature = "rusqlite")]
    pub(super) async fn open(plan: &UsagePlan) -> Result<Self, StackError> {
        use crate::usage::{LedgerReader, QueueOptions, SqliteLedger};
        let read = async || {
            let reader = LedgerReader::open(&plan.path).await;
            reader.map_err(|error| StackError::store("usage.path", error))
        };
        let (sink, kind, reader, workers): (Arc<dyn UsageSink>, _, _, _) = match &plan.shared {
            None => {
                let (sink, worker) =
                    SqliteLedger::start(&plan.path, plan.durability, QueueOptions::default())
                        .map_err(|error| StackError::store("usage.path", error))?;
                let reader = read().await?.behind(&sink);
                (Arc::new(sink.clone()), OwnSink::File(sink), reader, Workers::File(worker))
            }
            #[cfg(feature = "redis")]
            Some(shared) => {
                use crate::usage::{Collector, Outbox, OutboxOptions, RedisStream, RedisStreamOptions, Trim};
                let options = RedisStreamOptions::default().with_trim(Trim::Age(shared.keep));
                let name = Arc::clone(&options.name);
                let stream = RedisStream::new(&shared.redis.redis, options);
                let options = OutboxOptions::default().with_max_bytes(shared.outbox_max_bytes);
                let (sink, worker) = Outbox::start(&shared.outbox, plan.durability, stream, options)
                    .map_err(|error| StackError::store("usage.outbox", error))?;
                let collector = Collector::start(&shared.redis.redis, &name, &plan.path)
                    .map_err(|error| StackError::store("usage.path", error))?;
                let reader = read().await?.behind_copy(&sink, &collector);
                (Arc::new(sink.clone()), OwnSink::Redis(sink), reader, Workers::Redis(worker, collector))
            }
            #[cfg(not(feature = "redis"))]
            Some(_) => unreachable!("refused by the configuration's check"),
        };
        let shown = reader.clone().with_most_groups(MOST_GROUPS);
        Ok(Self { sink, reader: Some(Arc::new(shown)), own: Some(Own { kind, reader, workers }) })
    }

    #[cfg(not(feature = "rusqlite"))]
    pub(super) async fn open(_: &UsagePlan) -> Result<Self, StackError> {
        unreachable!("refused by the configuration's check")
    }

    pub(super) fn layer(
        &self,
        prices: &Prices,
        unpriced: Option<&Unpriced>,
        hold_last_byte: Option<Duration>,
    ) -> UsageLayer<Arc<dyn UsageSink>> {
        let mut layer = UsageLayer::new(Arc::clone(&self.sink), prices.clone());
        if let Some(Unpriced::Assume(price)) = unpriced {
            layer = layer.assuming(price.clone());
        }
        match hold_last_byte {
            Some(limit) => layer.durable(limit),
            None => layer,
        }
    }

    pub(super) fn hits(&self, prices: &Prices) -> UsageLayer<Arc<dyn UsageSink>> {
        UsageLayer::hits(Arc::clone(&self.sink), prices.clone())
    }

    pub(super) fn reader(&self) -> Option<&dyn UsageReader> {
        self.reader.as_deref()
    }

    /// Through which all records go, if they go through ours.
    pub(super) fn queue(&self) -> Option<&crate::usage::QueueSink> {
        #[cfg(feature = "rusqlite")]
        return self.own.as_ref().map(|own| match &own.kind {
            OwnSink::File(sink) => sink,
            #[cfg(feature = "redis")]
            OwnSink::Redis(sink) => sink.queue(),
        });
        #[cfg(not(feature = "rusqlite"))]
        None
    }

    /// What departments have used up, if it is known here.
    pub(super) fn history(&self) -> Option<Arc<dyn UsageHistory>> {
        #[cfg(feature = "rusqlite")]
        return self.own.as_ref().map(|own| Arc::new(own.reader.clone()) as Arc<dyn UsageHistory>);
        #[cfg(not(feature = "rusqlite"))]
        None
    }

    /// Behind the queue, where records go to Redis.
    #[cfg(all(feature = "redis", feature = "rusqlite"))]
    pub(super) fn outbox(&self) -> Option<&crate::usage::OutboxSink> {
        match &self.own.as_ref()?.kind {
            OwnSink::File(_) => None,
            OwnSink::Redis(sink) => Some(sink),
        }
    }

    /// Whether calls can be recorded, as far as it is known.
    pub(super) fn is_healthy(&self) -> bool {
        self.sink.is_healthy()
    }

    /// Writes what is left.
    pub(super) async fn close(&self, deadline: Duration, report: &mut ShutdownReport) {
        #[cfg(feature = "rusqlite")]
        {
            let Some(own) = &self.own else { return };
            own.reader.rest();
            report.usage = Some(match &own.workers {
                Workers::File(worker) => {
                    let crate::usage::Report { left, written, in_doubt, set_aside, last_error } =
                        worker.close(deadline).await;
                    UsageReport { written, left, in_doubt, set_aside, damaged: 0, kept: 0, last_error }
                }
                #[cfg(feature = "redis")]
                Workers::Redis(worker, collector) => {
                    let until = crate::clock::after(deadline);
                    collector.stop();
                    let done = worker.close(deadline).await;
                    let left = until.saturating_duration_since(tokio::time::Instant::now());
                    collector.close(left).await;
                    let last_error = done.last_error.or(done.log.last_error);
                    UsageReport {
                        written: done.log.forwarded,
                        left: done.unlogged,
                        in_doubt: 0,
                        set_aside: done.log.refused,
                        damaged: done.log.damages,
                        kept: done.log.events,
                        last_error,
                    }
                }
            });
        }
        #[cfg(not(feature = "rusqlite"))]
        let _ = (deadline, report);
    }
}
