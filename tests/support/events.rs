//! Events to record. Included by `#[path = "support/events.rs"] mod events;`.
#![allow(dead_code, unreachable_pub, reason = "each test uses some of it")]

use futures_util::FutureExt as _;
use llm_layers::{
    CacheStatus, Certainty, ChatBody, LlmRequest, RequestContext, TokenUsage,
    cache::{BypassReason, MissReason},
    price::{NanoUsd, Price, PriceBook, Prices, Rates, ServiceTier},
    provider::Echo,
    usage::{EventId, MemorySink, Outcome, Saved, UsageEvent, UsageLayer},
};
use std::{
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tower::{Layer as _, ServiceExt as _};

/// A directory that goes with the test.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("llm-layers-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Events can only be made by the layer: this makes one with a price, and the rest is set from outside.
pub fn blank() -> UsageEvent {
    static BLANK: OnceLock<UsageEvent> = OnceLock::new();
    let made = BLANK.get_or_init(|| {
        let sink = MemorySink::new(1);
        let price = Price::new(Rates::per_million("3", "15").unwrap());
        let prices = Prices::new(PriceBook::of("sheet", [("p/m", price)]).unwrap());
        let service = UsageLayer::new(sink.clone(), prices).layer(Echo::new());
        let request = LlmRequest::new("p/m", ChatBody::builder().user("Is anybody there?").build().unwrap());
        service.oneshot(request).now_or_never().unwrap().unwrap();
        sink.take().remove(0)
    });
    made.clone()
}

/// With no, one, two or three departments, and this number as its cost.
pub fn event(number: u64) -> UsageEvent {
    let mut event = blank();
    event.id = EventId::mint(event.ended_at);
    event.lease = (number % 2 == 1).then(|| EventId::mint(event.ended_at));
    let all = ["research", "sales", "R&D {x} \"ü\"\n\0"];
    let departments = all.into_iter().take((number % 4) as usize);
    event.context = RequestContext::new().with_departments(departments).with_request_id(number.to_string());
    event.cost.amount = Some(NanoUsd::new(number as i64));
    event.assumed_cost = number.is_multiple_of(3).then_some(NanoUsd::new(number as i64));
    event.service_tier = ServiceTier::ALL.get(number as usize % 7).copied();
    event
}

pub fn events(numbers: std::ops::Range<u64>) -> Vec<UsageEvent> {
    numbers.map(event).collect()
}

pub fn number(event: &UsageEvent) -> u64 {
    event.context.request_id().unwrap().parse().unwrap()
}

/// With anything in any of its fields.
pub fn any_event() -> UsageEvent {
    const TEXTS: [&str; 8] = [
        "",
        "a",
        "O'Brien\"; DROP TABLE events; --",
        "研究 🦀",
        "%_?1",
        "nul\0inside",
        "\r\n$5\r\nhello\r\n",
        "\\u0000",
    ];
    let text = || TEXTS[fastrand::usize(..TEXTS.len())];
    let often = || fastrand::u8(..4) > 0;
    let tokens = || match fastrand::u8(..4) {
        0 => None,
        1 => Some(0),
        2 => Some(i64::MAX as u64),
        _ => Some(fastrand::u64(..1 << 53)),
    };
    let usage = || {
        let mut usage = TokenUsage::default();
        usage.input_tokens = tokens();
        usage.output_tokens = tokens();
        usage.cache_read_tokens = tokens();
        usage.cache_write_tokens = tokens();
        usage.cache_write_1h_tokens = tokens();
        usage.reasoning_tokens = tokens();
        usage.certainty = [Certainty::Exact, Certainty::Estimated, Certainty::Unknown][fastrand::usize(..3)];
        usage
    };
    let cost = || {
        let mut cost = blank().cost;
        let amounts = [i64::MIN, -1, 0, 1, 100_000_000_000_000, 9_007_199_254_740_993, i64::MAX];
        cost.amount = often().then(|| NanoUsd::new(amounts[fastrand::usize(..amounts.len())]));
        match &mut cost.origin {
            Some(origin) if often() => {
                let origin = std::sync::Arc::make_mut(origin);
                (origin.entry, origin.source, origin.version) = (text().into(), text().into(), text().into());
            }
            origin => *origin = None,
        }
        cost
    };
    let duration = || Duration::from_nanos(fastrand::i64(0..).unsigned_abs());
    let mut context = RequestContext::new();
    for with in [
        RequestContext::with_tenant_id as fn(RequestContext, &'static str) -> RequestContext,
        RequestContext::with_user_id,
        RequestContext::with_agent_name,
        RequestContext::with_task_type,
        RequestContext::with_conversation_id,
        RequestContext::with_request_id,
    ] {
        if often() {
            context = with(context, text());
        }
    }
    let mut event = blank();
    event.id = EventId::mint(event.ended_at);
    event.context = context.with_departments((0..fastrand::usize(..6)).map(|_| text()));
    if fastrand::bool() {
        event.ended_at = std::time::UNIX_EPOCH - Duration::from_nanos(fastrand::u64(..1 << 62));
    }
    event.requested = text().into();
    event.model = text().into();
    event.answered = often().then(|| text().into());
    event.provider = often().then(|| text().into());
    event.attempt = fastrand::u16(..);
    event.lease = fastrand::bool().then(|| EventId::mint(event.ended_at));
    event.streamed = fastrand::bool();
    event.usage = usage();
    event.cost = cost();
    event.saved = fastrand::bool().then(|| Box::new(Saved { usage: usage(), cost: cost() }));
    event.latency = duration();
    event.first_content = often().then(duration);
    let outcomes = [
        Outcome::Ok,
        Outcome::Empty,
        Outcome::Error,
        Outcome::Aborted,
        Outcome::CacheHit,
        Outcome::Coalesced,
    ];
    event.outcome = outcomes[fastrand::usize(..outcomes.len())];
    event.cache = match fastrand::u8(..5) {
        0 => CacheStatus::Unused,
        1 => CacheStatus::Miss,
        2 => CacheStatus::Coalesced,
        3 => CacheStatus::Bypass(BypassReason::NoUser),
        _ => CacheStatus::Hit { age: duration() },
    };
    if event.cache == CacheStatus::Miss {
        event.cache_miss =
            [None, Some(MissReason::Absent), Some(MissReason::Unreadable)][fastrand::usize(..3)];
    }
    event
}

/// All that is kept of an event, to compare.
pub fn shown(event: &UsageEvent) -> String {
    let mut event = event.clone();
    let context = std::mem::take(&mut event.context);
    let who = [
        context.tenant_id(),
        context.user_id(),
        context.agent_name(),
        context.task_type(),
        context.conversation_id(),
        context.request_id(),
    ];
    format!("{event:?} {who:?} {:?}", context.department_ids())
}
