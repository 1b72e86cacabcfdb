//! What is chosen while a program runs is behind a pointer, which must change nothing: no method falls back to a default.

use llm_layers::{
    BoxError, ChatBody, Error, ErrorKind, KbScope, LlmRequest, RequestContext,
    cache::{Fetch, KbCaching, KbSettings},
    clock::Clock,
    policies::{PolicySource, PolicyTable},
    quota::{Calendar, HistoryFuture, HistoryQuery, TokenEstimator, UsageHistory, Used},
    usage::{
        DepartmentSums, GroupBy, LogPosition, ReadFuture, Slot, UsageEvent, UsageGroup, UsageQuery,
        UsageReader, UsageSink, UsageStore, UsageSummary, UsageTotals,
    },
};
use std::{
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

/// Writes down which of its methods were called.
#[derive(Debug, Clone, Default)]
struct Seen(Arc<Mutex<Vec<&'static str>>>);

impl Seen {
    fn call(&self, method: &'static str) {
        self.0.lock().unwrap().push(method);
    }

    /// What was called since it was last asked.
    fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl UsageStore for Seen {
    fn write(&mut self, _: &[UsageEvent]) -> Result<(), BoxError> {
        self.call("write");
        Ok(())
    }

    fn knows_refusals(&self) -> bool {
        self.call("knows_refusals");
        true
    }

    fn write_from(&mut self, _: LogPosition<'_>, _: &[UsageEvent]) -> Result<(), BoxError> {
        self.call("write_from");
        Ok(())
    }
}

impl UsageSink for Seen {
    fn admit(&self) -> Result<Slot, Error> {
        self.call("admit");
        Err(Error::new(ErrorKind::Other))
    }

    fn is_healthy(&self) -> bool {
        self.call("is_healthy");
        false
    }
}

impl Clock for Seen {
    fn now(&self) -> SystemTime {
        self.call("now");
        SystemTime::UNIX_EPOCH
    }

    fn at(&self, _: Instant) -> SystemTime {
        self.call("at");
        SystemTime::UNIX_EPOCH
    }
}

impl TokenEstimator for Seen {
    fn prompt_upper_bound(&self, _: &LlmRequest) -> u64 {
        self.call("prompt_upper_bound");
        1
    }

    fn can_tighten(&self) -> bool {
        self.call("can_tighten");
        true
    }

    fn tighten(&self, _: &LlmRequest) -> Option<u64> {
        self.call("tighten");
        None
    }
}

impl UsageHistory for Seen {
    fn used(&self, _: HistoryQuery) -> HistoryFuture {
        self.call("used");
        Box::pin(async { Ok(Used::default()) })
    }
}

impl PolicySource for Seen {
    fn read(&mut self) -> Result<Option<PolicyTable>, BoxError> {
        self.call("read");
        Ok(None)
    }
}

impl KbSettings for Seen {
    fn caching(&self, _: &KbScope, _: &RequestContext) -> Fetch<KbCaching> {
        self.call("caching");
        Fetch::Ready(KbCaching::Allowed)
    }
}

impl UsageReader for Seen {
    fn totals(&self, _: &UsageQuery) -> ReadFuture<UsageTotals> {
        self.call("totals");
        Box::pin(async { Ok(UsageTotals::default()) })
    }

    fn totals_by(&self, _: &UsageQuery, _: &[GroupBy]) -> ReadFuture<Vec<UsageGroup>> {
        self.call("totals_by");
        Box::pin(async { Ok(Vec::new()) })
    }

    fn department_sums(&self, _: &UsageQuery, _: &[GroupBy]) -> ReadFuture<Vec<DepartmentSums>> {
        self.call("department_sums");
        Box::pin(async { Ok(Vec::new()) })
    }

    fn summary(&self, _: &UsageQuery, _: &[GroupBy]) -> ReadFuture<UsageSummary> {
        self.call("summary");
        Box::pin(async { Ok(UsageSummary::new(UsageTotals::default(), Vec::new(), Vec::new())) })
    }
}

// By the trait of what they are given: of a pointer, its own.

fn ask_store(mut store: impl UsageStore) {
    store.write(&[]).unwrap();
    store.write_from(LogPosition { log: 1, ends: &[] }, &[]).unwrap();
    assert!(store.knows_refusals());
}

fn ask_sink(sink: &impl UsageSink) {
    sink.admit().unwrap_err();
    assert!(!sink.is_healthy());
}

fn ask_clock(clock: &impl Clock) {
    clock.now();
    clock.at(tokio::time::Instant::now().into_std());
}

fn ask_estimator(estimator: &impl TokenEstimator) {
    let request = LlmRequest::new("acme/one", ChatBody::builder().user("Hi").build().unwrap());
    estimator.prompt_upper_bound(&request);
    assert!(estimator.can_tighten());
    estimator.tighten(&request);
}

fn ask_history(history: &impl UsageHistory) {
    drop(history.used(HistoryQuery::new("research", Calendar::utc().day(SystemTime::UNIX_EPOCH))));
}

fn ask_reader(reader: &impl UsageReader) {
    let query = UsageQuery::new();
    drop(reader.totals(&query));
    drop(reader.totals_by(&query, &[]));
    drop(reader.department_sums(&query, &[]));
    drop(reader.summary(&query, &[]));
}

fn ask_source(mut source: impl PolicySource) {
    source.read().unwrap();
}

fn ask_settings(settings: &impl KbSettings) {
    drop(settings.caching(&KbScope::new("handbook"), &RequestContext::new()));
}

#[test]
fn a_box_asks_what_is_in_it_by_each_method() {
    let seen = Seen::default();
    ask_store(Box::new(seen.clone()) as Box<dyn UsageStore>);
    assert_eq!(seen.calls(), ["write", "write_from", "knows_refusals"]);
    ask_sink(&(Box::new(seen.clone()) as Box<dyn UsageSink>));
    assert_eq!(seen.calls(), ["admit", "is_healthy"]);
    ask_clock(&(Box::new(seen.clone()) as Box<dyn Clock>));
    assert_eq!(seen.calls(), ["now", "at"]);
    ask_estimator(&(Box::new(seen.clone()) as Box<dyn TokenEstimator>));
    assert_eq!(seen.calls(), ["prompt_upper_bound", "can_tighten", "tighten"]);
    ask_history(&(Box::new(seen.clone()) as Box<dyn UsageHistory>));
    assert_eq!(seen.calls(), ["used"]);
    ask_reader(&(Box::new(seen.clone()) as Box<dyn UsageReader>));
    assert_eq!(seen.calls(), ["totals", "totals_by", "department_sums", "summary"]);
    ask_source(Box::new(seen.clone()) as Box<dyn PolicySource>);
    assert_eq!(seen.calls(), ["read"]);
}

#[test]
fn an_arc_asks_what_is_in_it_by_each_method() {
    let seen = Seen::default();
    ask_sink(&(Arc::new(seen.clone()) as Arc<dyn UsageSink>));
    assert_eq!(seen.calls(), ["admit", "is_healthy"]);
    ask_clock(&(Arc::new(seen.clone()) as Arc<dyn Clock>));
    assert_eq!(seen.calls(), ["now", "at"]);
    ask_estimator(&(Arc::new(seen.clone()) as Arc<dyn TokenEstimator>));
    assert_eq!(seen.calls(), ["prompt_upper_bound", "can_tighten", "tighten"]);
    ask_history(&(Arc::new(seen.clone()) as Arc<dyn UsageHistory>));
    assert_eq!(seen.calls(), ["used"]);
    ask_reader(&(Arc::new(seen.clone()) as Arc<dyn UsageReader>));
    assert_eq!(seen.calls(), ["totals", "totals_by", "department_sums", "summary"]);
    ask_settings(&(Arc::new(seen.clone()) as Arc<dyn KbSettings>));
    assert_eq!(seen.calls(), ["caching"]);
}

#[cfg(feature = "semantic")]
mod embedder {
    use super::*;
    use llm_layers::cache::semantic::Embedder;

    impl Embedder for Seen {
        fn embed(&self, _: &str) -> Fetch<Vec<f32>> {
            self.call("embed");
            Fetch::Ready(Vec::new())
        }
    }

    fn ask_embedder(embedder: &impl Embedder) {
        drop(embedder.embed("Hi"));
    }

    #[test]
    fn an_arc_asks_what_is_in_it() {
        let seen = Seen::default();
        ask_embedder(&(Arc::new(seen.clone()) as Arc<dyn Embedder>));
        assert_eq!(seen.calls(), ["embed"]);
    }
}
