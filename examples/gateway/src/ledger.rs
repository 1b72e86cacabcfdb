//! What was used: recorded in a file, and told to whoever may know.

use crate::{
    collect::Collector,
    config::{Caller, Config, SharedUsage, Usage},
};
use axum::{
    Extension,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use llm_layers::{
    clock::{Clock, SystemClock},
    http::axum::ErrorResponse,
    usage::{
        GroupBy, LedgerError, LedgerReader, Outbox, OutboxOptions, OutboxSink, OutboxWorker, Outcome,
        QueueOptions, QueueSink, RedisStream, RedisStreamOptions, Report, SqliteLedger, Trim, UsageLayer,
        UsageQuery, UsageSink, UsageTotals, Window, Worker,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::Mutex;

/// How long records may take to be written when the server ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);

/// Where usage is recorded, and the file that questions are answered from.
#[derive(Clone)]
pub(crate) struct Ledger {
    sink: Sink,
    workers: Arc<Mutex<Option<Workers>>>,
    reader: LedgerReader,
}

#[derive(Clone)]
enum Sink {
    File(QueueSink),
    Redis(OutboxSink),
}

enum Workers {
    File(Worker),
    Redis(OutboxWorker, Collector),
}

impl Ledger {
    pub(crate) async fn open(usage: &Usage) -> Result<Self, Box<dyn std::error::Error>> {
        let (sink, workers) = match &usage.shared {
            None => {
                let options = QueueOptions::default();
                let (sink, worker) = SqliteLedger::start(&usage.path, usage.durability, options)?;
                (Sink::File(sink), Workers::File(worker))
            }
            Some(shared) => Self::share(usage, shared)?,
        };
        let reader = LedgerReader::open(&usage.path).await?;
        Ok(Self { sink, workers: Arc::new(Mutex::new(Some(workers))), reader })
    }

    fn share(usage: &Usage, shared: &SharedUsage) -> Result<(Sink, Workers), Box<dyn std::error::Error>> {
        let options = RedisStreamOptions::default().with_trim(Trim::Age(shared.keep));
        let name = Arc::clone(&options.name);
        let stream = RedisStream::new(&shared.redis, options);
        let options = OutboxOptions::default().with_max_bytes(shared.outbox_max_bytes);
        let (sink, worker) = Outbox::start(&shared.outbox, usage.durability, stream, options)?;
        let collector = Collector::start(&shared.redis, &name, &usage.path)?;
        Ok((Sink::Redis(sink), Workers::Redis(worker, collector)))
    }

    pub(crate) fn layer(&self, config: &Config) -> UsageLayer<Arc<dyn UsageSink>> {
        let layer = UsageLayer::new(self.shared_sink(), config.prices.clone());
        match config.usage.as_ref().and_then(|usage| usage.hold_last_byte) {
            Some(limit) => layer.durable(limit),
            None => layer,
        }
    }

    fn shared_sink(&self) -> Arc<dyn UsageSink> {
        match &self.sink {
            Sink::File(sink) => Arc::new(sink.clone()),
            Sink::Redis(sink) => Arc::new(sink.clone()),
        }
    }

    /// Through which all records go.
    pub(crate) const fn queue(&self) -> &QueueSink {
        match &self.sink {
            Sink::File(sink) => sink,
            Sink::Redis(sink) => sink.queue(),
        }
    }

    pub(crate) const fn reader(&self) -> &LedgerReader {
        &self.reader
    }

    /// Records the answers that cost nothing.
    pub(crate) fn hits(&self, config: &Config) -> UsageLayer<Arc<dyn UsageSink>> {
        UsageLayer::hits(self.shared_sink(), config.prices.clone())
    }

    /// Whether calls can be recorded.
    pub(crate) fn is_healthy(&self) -> bool {
        match &self.sink {
            Sink::File(sink) => sink.is_healthy(),
            Sink::Redis(sink) => sink.is_healthy(),
        }
    }

    /// Writes what is left.
    pub(crate) async fn close(&self) {
        let (left, written, last_error) = match self.workers.lock().await.take() {
            None => return,
            Some(Workers::File(worker)) => {
                let Report { left, written, last_error, .. } = worker.shutdown(FLUSH_TIMEOUT).await;
                (left, written, last_error)
            }
            Some(Workers::Redis(worker, collector)) => {
                collector.stop();
                let report = worker.shutdown(FLUSH_TIMEOUT).await;
                if report.log.events > 0 {
                    let (left, error) = (report.log.events, report.log.last_error.as_deref());
                    tracing::warn!(left, error, "usage is left in the outbox for the next start");
                }
                (report.unlogged, report.log.forwarded, report.last_error)
            }
        };
        match left {
            0 => tracing::info!(written, "usage is recorded"),
            left => tracing::error!(left, written, error = last_error.as_deref(), "usage is not recorded"),
        }
    }
}

/// What to ask the ledger: `GET /v1/usage?department=r-and-d&by=model,day&from=2026-11-01`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    agent: Option<String>,
    user: Option<String>,
    tenant: Option<String>,
    department: Option<String>,
    model: Option<String>,
    provider: Option<String>,
    task_type: Option<String>,
    outcome: Option<String>,
    /// A day, or a time as in RFC 3339.
    from: Option<String>,
    until: Option<String>,
    /// `day` or `month`: the one that it is now, in UTC.
    window: Option<String>,
    /// Names separated by commas.
    by: Option<String>,
}

/// `GET /v1/usage`
pub(crate) async fn usage(
    State(ledger): State<Option<Ledger>>,
    Extension(caller): Extension<Caller>,
    question: Result<Query<Question>, QueryRejection>,
) -> Result<Response, ErrorResponse> {
    let invalid = |message: &str| {
        ErrorResponse::custom(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    };
    if !caller.is_admin {
        let message = "this key may not ask what was used";
        return Err(ErrorResponse::custom(
            StatusCode::FORBIDDEN,
            "permission_error",
            Some("not_admin"),
            message,
        ));
    }
    let Some(ledger) = ledger else {
        let message = "usage is not recorded here";
        let code = Some("usage_disabled");
        return Err(ErrorResponse::custom(StatusCode::NOT_FOUND, "invalid_request_error", code, message));
    };
    let Query(question) = question.map_err(|_| invalid("a parameter is unknown or stands twice"))?;
    let (query, by) = read(&question).map_err(|name| invalid(&format!("`{name}` is not valid")))?;
    let answer = answer(&ledger.reader, &query, &by).await.map_err(|error| {
        tracing::error!(%error, "the ledger cannot be read");
        let message = "the record of usage cannot be read";
        let code = Some("usage_store_unavailable");
        ErrorResponse::custom(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response())
}

/// The query, or the name of the parameter at fault.
fn read(question: &Question) -> Result<(UsageQuery, Vec<GroupBy>), &'static str> {
    let mut query = UsageQuery::new();
    let mut only = |value: &Option<String>, with: fn(UsageQuery, String) -> UsageQuery| {
        if let Some(value) = value {
            query = with(std::mem::take(&mut query), value.clone());
        }
    };
    only(&question.agent, UsageQuery::with_agent);
    only(&question.user, UsageQuery::with_user);
    only(&question.tenant, UsageQuery::with_tenant);
    only(&question.department, UsageQuery::with_department);
    only(&question.model, UsageQuery::with_model);
    only(&question.provider, UsageQuery::with_provider);
    only(&question.task_type, UsageQuery::with_task_type);
    if let Some(outcome) = &question.outcome {
        query = query.with_outcome(Outcome::from_name(outcome).ok_or("outcome")?);
    }
    let now = SystemClock.now();
    query = match question.window.as_deref() {
        None => query,
        Some("day") => query.within(Window::day(now)),
        Some("month") => query.within(Window::month(now)),
        Some(_) => return Err("window"),
    };
    if let Some(from) = &question.from {
        query = query.from(time(from).ok_or("from")?);
    }
    if let Some(until) = &question.until {
        query = query.until(time(until).ok_or("until")?);
    }
    let by = question.by.as_deref().unwrap_or_default().split(',').filter(|name| !name.is_empty());
    let by = by.map(|name| group(name).ok_or("by")).collect::<Result<_, _>>()?;
    Ok((query, by))
}

fn time(text: &str) -> Option<SystemTime> {
    let is_day = text.len() == 10;
    let time = if is_day {
        humantime::parse_rfc3339(&format!("{text}T00:00:00Z"))
    } else {
        humantime::parse_rfc3339(text)
    };
    time.ok()
}

const GROUPS: [(&str, GroupBy); 9] = [
    ("agent", GroupBy::Agent),
    ("user", GroupBy::User),
    ("tenant", GroupBy::Tenant),
    ("model", GroupBy::Model),
    ("provider", GroupBy::Provider),
    ("task_type", GroupBy::TaskType),
    ("outcome", GroupBy::Outcome),
    ("day", GroupBy::Day),
    ("month", GroupBy::Month),
];

fn group(name: &str) -> Option<GroupBy> {
    GROUPS.iter().find(|(known, _)| *known == name).map(|(_, group)| *group)
}

async fn answer(reader: &LedgerReader, query: &UsageQuery, by: &[GroupBy]) -> Result<Value, LedgerError> {
    let totals = reader.totals(query).await?;
    let groups = reader.totals_by(query, by).await?;
    let departments = reader.department_sums(query, by).await?;
    let named = |key: &[Option<Box<str>>]| -> Map<String, Value> {
        let name =
            |group: &GroupBy| GROUPS.iter().find(|(_, known)| known == group).map_or("", |(name, _)| *name);
        by.iter().zip(key).map(|(group, value)| (name(group).to_owned(), json!(value))).collect()
    };
    let groups =
        groups.iter().map(|group| json!({ "key": named(&group.key), "totals": sums(&group.totals) }));
    let departments = departments
        .iter()
        .map(|sum| json!({ "department": sum.department, "key": named(&sum.key), "sums": sums(&sum.sums) }));
    Ok(json!({
        // Each call once.
        "totals": sums(&totals),
        "groups": groups.collect::<Vec<_>>(),
        // Each call in full for every department that it is charged to.
        "department_sums": departments.collect::<Vec<_>>(),
    }))
}

fn sums(totals: &UsageTotals) -> Value {
    json!({
        "calls": totals.calls,
        "estimated_calls": totals.estimated_calls,
        "unpriced_calls": totals.unpriced_calls,
        "input_tokens": tokens(totals.input_tokens),
        "output_tokens": tokens(totals.output_tokens),
        "cache_read_tokens": tokens(totals.cache_read_tokens),
        "cache_write_tokens": tokens(totals.cache_write_tokens),
        "reasoning_tokens": tokens(totals.reasoning_tokens),
        "cost_nano_usd": totals.cost.nanos(),
        "cost_usd": totals.cost.to_string(),
        "saved_calls": totals.saved_calls,
        "saved_cost_nano_usd": totals.saved_cost.nanos(),
    })
}

/// Sums of tokens fit, or a few thousand years have passed.
fn tokens(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}
