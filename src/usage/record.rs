//! An event as named texts: what is kept in logs and streams. Names and units are the columns of the ledger in SQLite:
//! times and durations in nanoseconds, money in nano-dollars, all in whole numbers. What there is not is left out.

use super::{
    EventId, Outcome, Saved, UsageEvent,
    event::{stored_duration, stored_tokens},
    query::nanos,
};
use crate::{
    CacheStatus, Certainty, RequestContext, TokenUsage,
    cache::{BypassReason, MissReason},
    price::{Cost, NanoUsd, PriceOrigin, ServiceTier},
};
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use std::{
    collections::HashMap,
    fmt::{self, Write},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The version of these fields. What reads them refuses any other.
pub(super) const VERSION: u32 = 1;

/// A field that is missing, or not as it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadField(pub(super) &'static str);

impl fmt::Display for BadField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the field {} is missing or wrong", self.0)
    }
}

impl std::error::Error for BadField {}

/// The names of what is counted in the same way for what is billed and for what was saved.
struct Names {
    tokens: [&'static str; 6],
    certainty: &'static str,
    cost: &'static str,
    price: [&'static str; 3],
}

const BILLED: Names = Names {
    tokens: [
        "input_tokens",
        "output_tokens",
        "cache_read_tokens",
        "cache_write_tokens",
        "cache_write_1h_tokens",
        "reasoning_tokens",
    ],
    certainty: "certainty",
    cost: "cost",
    price: ["price_entry", "price_source", "price_version"],
};

const SAVED: Names = Names {
    tokens: [
        "saved_input_tokens",
        "saved_output_tokens",
        "saved_cache_read_tokens",
        "saved_cache_write_tokens",
        "saved_cache_write_1h_tokens",
        "saved_reasoning_tokens",
    ],
    certainty: "saved_certainty",
    cost: "saved_cost",
    price: ["saved_price_entry", "saved_price_source", "saved_price_version"],
};

/// Hands each field that there is to `put`, but not the departments.
pub(super) fn write(event: &UsageEvent, put: &mut dyn FnMut(&'static str, &str)) {
    let UsageEvent { id, ended_at, context, requested, model, answered, provider, attempt, streamed, .. } =
        event;
    let UsageEvent { lease, usage, cost, saved, latency, first_content, outcome, cache, cache_miss, .. } =
        event;
    let UsageEvent { assumed_cost, service_tier, .. } = event;
    let mut fields = Fields { put, text: String::new() };
    fields.shown("id", id);
    if let Some(lease) = lease {
        fields.shown("lease", lease);
    }
    fields.shown("ended_at", nanos(*ended_at));
    fields.text("tenant", context.tenant_id());
    fields.text("user", context.user_id());
    fields.text("agent", context.agent_name());
    fields.text("task_type", context.task_type());
    fields.text("conversation", context.conversation_id());
    fields.text("request_id", context.request_id());
    fields.text("requested", Some(requested.as_str()));
    fields.text("model", Some(model.as_str()));
    fields.text("answered", answered.as_deref());
    fields.text("provider", provider.as_deref());
    fields.shown("attempt", attempt);
    fields.shown("streamed", u8::from(*streamed));
    fields.usage(&BILLED, usage, cost);
    if let Some(cost) = assumed_cost {
        fields.shown("assumed_cost", cost.nanos());
    }
    fields.text("service_tier", service_tier.map(ServiceTier::name));
    fields.shown("latency", stored_duration(*latency));
    if let Some(time) = first_content {
        fields.shown("first_content", stored_duration(*time));
    }
    fields.text("outcome", Some(outcome.as_str()));
    fields.text("cache", Some(cache.as_str()));
    match cache {
        CacheStatus::Hit { age } => fields.shown("cache_age", stored_duration(*age)),
        CacheStatus::Miss => fields.text("cache_miss", cache_miss.map(MissReason::as_str)),
        CacheStatus::Bypass(reason) => fields.text("cache_bypass", Some(reason.as_str())),
        CacheStatus::Unused | CacheStatus::Coalesced => {}
    }
    if let Some(Saved { usage, cost }) = saved.as_deref() {
        fields.usage(&SAVED, usage, cost);
    }
}

/// Puts an event together again; all but its knowledge bases and its deadline, which are not kept.
pub(super) fn read<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    departments: Vec<Arc<str>>,
) -> Result<UsageEvent, BadField> {
    let text = |name| get(name).ok_or(BadField(name));
    let mut context = RequestContext::new();
    for (name, with) in [
        ("tenant", RequestContext::with_tenant_id as fn(RequestContext, &'a str) -> RequestContext),
        ("user", RequestContext::with_user_id),
        ("agent", RequestContext::with_agent_name),
        ("task_type", RequestContext::with_task_type),
        ("conversation", RequestContext::with_conversation_id),
        ("request_id", RequestContext::with_request_id),
    ] {
        if let Some(value) = get(name) {
            context = with(context, value);
        }
    }
    if !departments.is_empty() {
        context = context.with_departments(departments);
    }
    let (usage, cost) = read_usage(get, &BILLED)?;
    let saved = match get(SAVED.certainty) {
        Some(_) => {
            let (usage, cost) = read_usage(get, &SAVED)?;
            Some(Box::new(Saved { usage, cost }))
        }
        None => None,
    };
    let duration = |name| number(get, name).map(Duration::from_nanos);
    Ok(UsageEvent {
        id: read_id(text("id")?).ok_or(BadField("id"))?,
        lease: get("lease").map(|id| read_id(id).ok_or(BadField("lease"))).transpose()?,
        ended_at: time(number(get, "ended_at")?),
        context,
        requested: text("requested")?.into(),
        model: text("model")?.into(),
        answered: get("answered").map(Into::into),
        provider: get("provider").map(Into::into),
        attempt: number(get, "attempt")?,
        streamed: number::<u8>(get, "streamed")? == 1,
        usage,
        cost,
        assumed_cost: get("assumed_cost")
            .map(|_| number(get, "assumed_cost").map(NanoUsd::new))
            .transpose()?,
        // One that a newer version knows is not worth losing the record for.
        service_tier: get("service_tier").and_then(ServiceTier::from_name),
        saved,
        latency: duration("latency")?,
        first_content: get("first_content").map(|_| duration("first_content")).transpose()?,
        outcome: Outcome::from_name(text("outcome")?).ok_or(BadField("outcome"))?,
        cache: match text("cache")? {
            "unused" => CacheStatus::Unused,
            "hit" => CacheStatus::Hit { age: duration("cache_age")? },
            "miss" => CacheStatus::Miss,
            "bypass" => {
                let reason = BypassReason::from_name(text("cache_bypass")?);
                CacheStatus::Bypass(reason.ok_or(BadField("cache_bypass"))?)
            }
            "coalesced" => CacheStatus::Coalesced,
            _ => return Err(BadField("cache")),
        },
        // One that a newer version gives is not worth losing the record for.
        cache_miss: get("cache_miss").and_then(MissReason::from_name),
    })
}

struct Fields<'a> {
    put: &'a mut dyn FnMut(&'static str, &str),
    text: String,
}

impl Fields<'_> {
    fn text(&mut self, name: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            (self.put)(name, value);
        }
    }

    fn shown(&mut self, name: &'static str, value: impl fmt::Display) {
        self.text.clear();
        // A string takes whatever it is given.
        let _ = write!(self.text, "{value}");
        (self.put)(name, &self.text);
    }

    fn usage(&mut self, names: &Names, usage: &TokenUsage, cost: &Cost) {
        let TokenUsage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, .. } = usage;
        let TokenUsage { cache_write_1h_tokens, reasoning_tokens, certainty, .. } = usage;
        let counts = [
            input_tokens,
            output_tokens,
            cache_read_tokens,
            cache_write_tokens,
            cache_write_1h_tokens,
            reasoning_tokens,
        ];
        for (name, count) in names.tokens.into_iter().zip(counts) {
            if let Some(count) = count {
                self.shown(name, stored_tokens(*count));
            }
        }
        let certainty = match certainty {
            Certainty::Exact => "exact",
            Certainty::Estimated => "estimated",
            Certainty::Unknown => "unknown",
        };
        self.text(names.certainty, Some(certainty));
        if let Some(amount) = cost.amount {
            self.shown(names.cost, amount.nanos());
        }
        if let Some(PriceOrigin { entry, source, version, .. }) = cost.origin.as_deref() {
            for (name, value) in names.price.into_iter().zip([entry, source, version]) {
                self.text(name, Some(value));
            }
        }
    }
}

fn number<'a, N: std::str::FromStr>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    name: &'static str,
) -> Result<N, BadField> {
    get(name).and_then(|value| value.parse().ok()).ok_or(BadField(name))
}

fn read_usage<'a>(
    get: &dyn Fn(&str) -> Option<&'a str>,
    names: &Names,
) -> Result<(TokenUsage, Cost), BadField> {
    let count = |at: usize| {
        let name = names.tokens[at];
        get(name).map(|_| number(get, name)).transpose()
    };
    let certainty = match get(names.certainty) {
        Some("exact") => Certainty::Exact,
        Some("estimated") => Certainty::Estimated,
        Some("unknown") => Certainty::Unknown,
        _ => return Err(BadField(names.certainty)),
    };
    let usage = TokenUsage {
        input_tokens: count(0)?,
        output_tokens: count(1)?,
        cache_read_tokens: count(2)?,
        cache_write_tokens: count(3)?,
        cache_write_1h_tokens: count(4)?,
        reasoning_tokens: count(5)?,
        certainty,
        ..TokenUsage::default()
    };
    let amount = get(names.cost).map(|_| number(get, names.cost).map(NanoUsd::new)).transpose()?;
    let [entry, source, version] = names.price.map(|name| get(name).map(Arc::from));
    let origin = match (entry, source, version) {
        (Some(entry), Some(source), Some(version)) => Some(Arc::new(PriceOrigin { entry, source, version })),
        _ => None,
    };
    Ok((usage, Cost { amount, origin }))
}

fn read_id(text: &str) -> Option<EventId> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
        .map(|id| EventId::from_bytes(id.to_be_bytes()))
}

fn time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

// ===== one record of a log =====

/// Appends the event as one line of JSON without its end.
pub(super) fn encode(event: &UsageEvent, into: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(into, &Line(event))
}

/// What every [encoded](encode) event begins with.
pub(super) const START: &[u8] = br#"{"departments":["#;

/// Reads what [`encode`] has written.
pub(super) fn decode(line: &[u8]) -> Result<UsageEvent, BadField> {
    let stored: Stored = serde_json::from_slice(line).map_err(|_| BadField("all"))?;
    read(
        &|name| stored.fields.get(name).map(String::as_str),
        stored.departments.into_iter().map(Into::into).collect(),
    )
}

struct Line<'a>(&'a UsageEvent);
struct Departments<'a>(&'a [Arc<str>]);
struct AsMap<'a>(&'a UsageEvent);

#[derive(Deserialize)]
struct Stored {
    departments: Vec<String>,
    fields: HashMap<String, String>,
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("departments", &Departments(self.0.context.department_ids()))?;
        map.serialize_entry("fields", &AsMap(self.0))?;
        map.end()
    }
}

impl Serialize for Departments<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|id| &**id))
    }
}

impl Serialize for AsMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut result = Ok(());
        write(self.0, &mut |name, value| {
            if result.is_ok() {
                result = map.serialize_entry(name, value);
            }
        });
        result?;
        map.end()
    }
}
