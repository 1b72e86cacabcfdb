//! The life of a record: what was recorded is written once, whoever leaves and whenever the end comes.

mod common;

use common::check;
use futures_util::FutureExt as _;
use llm_layers_model::{
    BoxError, ChatBody, LlmRequest,
    price::PriceBook,
    provider::Echo,
    usage::{MemorySink, QueueOptions, QueueSink, UsageEvent, UsageLayer, UsageSink as _, UsageStore},
};
use shuttle::{
    future::block_on,
    rand::{Rng as _, thread_rng},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tower::{Layer as _, ServiceExt as _};

/// Writes into a list, and fails now and then: before it has written, or after.
#[derive(Clone, Default)]
struct Ledger {
    written: Arc<Mutex<Vec<u16>>>,
    is_moody: bool,
}

impl UsageStore for Ledger {
    fn write(&mut self, group: &[UsageEvent]) -> Result<(), BoxError> {
        let mood = if self.is_moody { thread_rng().gen_range(0..4) } else { 3 };
        if mood == 0 {
            return Err("down".into());
        }
        let mut written = self.written.lock().unwrap();
        for event in group {
            // By its id, as every store of usage does.
            if !written.contains(&event.attempt) {
                written.push(event.attempt);
            }
        }
        if mood == 1 { Err("nobody knows".into()) } else { Ok(()) }
    }

    fn knows_refusals(&self) -> bool {
        true
    }
}

fn event(number: u16) -> UsageEvent {
    // Events can only be made by the layer: this is one of its, with a number of ours.
    static MADE: OnceLock<UsageEvent> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let sink = MemorySink::new(1);
        let service = UsageLayer::new(sink.clone(), PriceBook::default()).layer(Echo::new());
        let body = ChatBody::builder().user("Is anybody there?").build().unwrap();
        service.oneshot(LlmRequest::new("p/m", body)).now_or_never().unwrap().unwrap();
        sink.take().remove(0)
    });
    let mut event = made.clone();
    event.attempt = number;
    event
}

fn options() -> QueueOptions {
    QueueOptions::default().with_capacity(3).with_group(2)
}

#[test]
fn what_is_recorded_before_the_end_is_written_once_and_tickets_say_so() {
    check(|| {
        let ledger = Ledger { is_moody: true, ..Ledger::default() };
        let (sink, worker) = QueueSink::start(ledger.clone(), options()).unwrap();
        let callers: Vec<_> = (0..3)
            .map(|number| {
                let sink = sink.clone();
                thread::spawn(move || {
                    let slot = sink.admit().expect("there is a place for each");
                    match thread_rng().gen_range(0..3) {
                        // Never sent.
                        0 => {
                            drop(slot);
                            None
                        }
                        1 => {
                            slot.record(event(number));
                            Some(number)
                        }
                        _ => {
                            assert!(block_on(slot.record_with_ticket(event(number))), "it is written");
                            Some(number)
                        }
                    }
                })
            })
            .collect();
        let recorded: BTreeSet<_> = callers.into_iter().filter_map(|caller| caller.join().unwrap()).collect();
        drop(sink);
        let report = block_on(worker.shutdown(Duration::MAX));
        let written = ledger.written.lock().unwrap().clone();
        let once: BTreeSet<_> = written.iter().copied().collect();
        assert_eq!(once.len(), written.len(), "{written:?}");
        if report.left == 0 {
            assert_eq!(once, recorded);
            assert_eq!(report.written, recorded.len() as u64);
        } else {
            // The time was up: what is missing is told, but for what the store was just offered.
            let missing = recorded.difference(&once).count() as u64;
            assert!(
                missing <= report.left && report.left <= missing + report.in_doubt,
                "{report:?} {once:?}"
            );
        }
    });
}

#[test]
fn an_end_beside_records_loses_none_without_saying_so() {
    check(|| {
        let ledger = Ledger::default();
        let (sink, worker) = QueueSink::start(ledger.clone(), options()).unwrap();
        let callers: Vec<_> = (0..2)
            .map(|number| {
                let sink = sink.clone();
                thread::spawn(move || {
                    let slot = sink.admit().ok()?;
                    Some((number, block_on(slot.record_with_ticket(event(number)))))
                })
            })
            .collect();
        block_on(worker.shutdown(Duration::MAX));
        for caller in callers {
            // Whoever was told that it is written finds it; whoever was not may find it all the same.
            if let Some((number, is_written)) = caller.join().unwrap() {
                let is_there = ledger.written.lock().unwrap().contains(&number);
                assert!(is_there || !is_written, "{number} was acknowledged, and is not there");
            }
        }
        assert!(sink.admit().is_err() || sink.lost() == 0);
    });
}

#[test]
fn there_are_never_more_records_under_way_than_there_is_room() {
    check(|| {
        let ledger = Ledger::default();
        let (sink, worker) = QueueSink::start(ledger.clone(), options()).unwrap();
        let held = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..3)
            .map(|number| {
                let (sink, held) = (sink.clone(), Arc::clone(&held));
                thread::spawn(move || {
                    let place = |_| {
                        let slot = sink.admit().ok()?;
                        assert!(held.fetch_add(1, Ordering::SeqCst) < 3, "more places than there are");
                        Some(slot)
                    };
                    let slots: Vec<_> = (0..2).map_while(place).collect();
                    let count = slots.len();
                    for (at, slot) in slots.into_iter().enumerate() {
                        held.fetch_sub(1, Ordering::SeqCst);
                        slot.record(event(number * 2 + at as u16));
                    }
                    count
                })
            })
            .collect();
        let recorded: usize = callers.into_iter().map(|caller| caller.join().unwrap()).sum();
        drop(sink.clone());
        let report = block_on(worker.shutdown(Duration::MAX));
        if report.left == 0 {
            assert_eq!(ledger.written.lock().unwrap().len(), recorded);
            assert!(sink.pending() == 0);
        }
    });
}
