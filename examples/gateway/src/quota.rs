//! What departments may do: enforced, and told to whoever may know.

use crate::{
    config::{Caller, Config, Counters, Limits},
    ledger::Ledger,
};
use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use llm_layers::{
    Period, QuotaKind,
    access::AccessLayer,
    clock::{Clock, SystemClock},
    http::axum::ErrorResponse,
    policies::{Follower, Policies, SqlitePolicies},
    price::NanoUsd,
    quota::{
        self, Calendar, MemoryStore, QuotaLayer, QuotaStore, RedisQuotaStore, RedisUnfit, SqliteOptions,
        SqliteStore, Standing, StoreError, WorkerOptions,
    },
};
use serde_json::{Value, json};
use std::{error::Error, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// How long settlements may take when the server ends.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Limits, allow-lists, and the counters.
#[derive(Clone)]
pub(crate) struct Quotas {
    policies: Policies,
    calendar: Calendar,
    layer: QuotaLayer,
    workers: Arc<Mutex<Option<Workers>>>,
    _follower: Option<Arc<Follower>>,
}

struct Workers {
    settling: Option<quota::Worker>,
    file: Option<Arc<SqliteStore>>,
}

impl Quotas {
    pub(crate) async fn open(
        limits: &Limits,
        config: &Config,
        ledger: Option<&Ledger>,
    ) -> Result<Self, Box<dyn Error>> {
        let policies = Policies::new(limits.policies.clone());
        let follower = match &limits.policies_file {
            Some(path) => {
                let source = SqlitePolicies::open(path)?;
                let told = |error| tracing::error!(%error, "the policies stay as they were");
                let follower = policies.follow(source, SqlitePolicies::EVERY, told);
                Some(Arc::new(follower.map_err(|error| error as Box<dyn Error>)?))
            }
            None => None,
        };
        let (layer, workers) = layer(limits, config, &policies).await?;
        let mut layer = layer
            .with_mode(limits.mode)
            .with_unbounded(limits.unbounded)
            .with_on_tight(limits.on_tight)
            .with_unpriced(limits.unpriced.clone())
            .with_calendar(limits.calendar.clone())
            .with_deadline(limits.timeout);
        if let Some(ledger) = ledger {
            layer = layer.with_history(ledger.reader().clone());
        }
        let (calendar, workers) = (limits.calendar.clone(), Arc::new(Mutex::new(Some(workers))));
        Ok(Self { policies, calendar, layer, workers, _follower: follower })
    }

    pub(crate) fn layer(&self) -> QuotaLayer {
        self.layer.clone()
    }

    pub(crate) fn access(&self) -> AccessLayer {
        AccessLayer::new(self.policies.clone())
    }

    /// Whether calls can be admitted.
    pub(crate) fn is_healthy(&self) -> bool {
        self.layer.is_available()
    }

    /// Settles what is left.
    pub(crate) async fn close(&self) {
        let Some(Workers { settling, file }) = self.workers.lock().await.take() else { return };
        if let Some(worker) = settling {
            let report = worker.shutdown(SETTLE_TIMEOUT).await;
            match report.left {
                0 => tracing::info!(settled = report.settled, "quotas are settled"),
                left => {
                    let error = report.last_error.as_deref();
                    tracing::error!(left, error, "quotas are not settled; the leases will run out");
                }
            }
        }
        if let Some(file) = file
            && !file.shutdown(SETTLE_TIMEOUT).await
        {
            tracing::error!("the file of quotas is still busy");
        }
    }
}

async fn layer(
    limits: &Limits,
    config: &Config,
    policies: &Policies,
) -> Result<(QuotaLayer, Workers), Box<dyn Error>> {
    let (policies, prices) = (policies.clone(), config.prices.clone());
    Ok(match &limits.counters {
        Counters::Memory => {
            let layer = QuotaLayer::new(MemoryStore::new(), policies, prices);
            (layer, Workers { settling: None, file: None })
        }
        Counters::File(path) => {
            let options = SqliteOptions::new().with_timeout(limits.timeout);
            let store = Arc::new(SqliteStore::open(path, options)?);
            let (layer, worker) =
                QuotaLayer::pair(Arc::clone(&store), policies, prices, WorkerOptions::default());
            (layer, Workers { settling: Some(worker), file: Some(store) })
        }
        Counters::Redis(redis) => {
            let store = RedisQuotaStore::new(redis.clone()).with_deadline(limits.timeout);
            match store.check().await {
                Ok(()) => {}
                // It may come yet; until then calls are refused.
                Err(RedisUnfit::Unavailable(error)) => tracing::error!(%error, "quotas cannot be counted"),
                Err(unfit) => return Err(unfit.into()),
            }
            let (layer, worker) = QuotaLayer::pair(store, policies, prices, WorkerOptions::default());
            (layer, Workers { settling: Some(worker), file: None })
        }
    })
}

/// `GET /v1/quota/{department}`
pub(crate) async fn standing(
    State(quotas): State<Option<Quotas>>,
    Extension(caller): Extension<Caller>,
    department: Result<Path<String>, PathRejection>,
) -> Result<Response, ErrorResponse> {
    let invalid = |message: &str| {
        ErrorResponse::custom(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    };
    let Path(department) = department.map_err(|_| invalid("the department's name is not valid"))?;
    // Whoever may not know does not learn whether there is anything to know.
    if !caller.is_admin && !caller.context.department_ids().iter().any(|own| **own == *department) {
        let (kind, code) = ("permission_error", Some("not_in_department"));
        let message = "this key may not ask about this department";
        return Err(ErrorResponse::custom(StatusCode::FORBIDDEN, kind, code, message));
    }
    let Some(quotas) = quotas else {
        let (kind, code) = ("invalid_request_error", Some("quota_disabled"));
        let message = "nothing is limited here";
        return Err(ErrorResponse::custom(StatusCode::NOT_FOUND, kind, code, message));
    };
    let department: Arc<str> = department.into();
    let standing = quotas.standing(&department).await.map_err(|error| {
        tracing::error!(%error, "quotas cannot be read");
        let (kind, code) = ("server_error", Some("usage_store_unavailable"));
        ErrorResponse::custom(StatusCode::SERVICE_UNAVAILABLE, kind, code, "quotas cannot be read")
    })?;
    let answer = quotas.tell(&department, &standing);
    Ok(([(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response())
}

const KINDS: [(&str, QuotaKind); 3] =
    [("requests", QuotaKind::Requests), ("tokens", QuotaKind::Tokens), ("cost_usd", QuotaKind::Cost)];

impl Quotas {
    async fn standing(&self, department: &Arc<str>) -> Result<Standing, StoreError> {
        let days = self.calendar.days_around(SystemClock.now());
        self.layer.store().usage(department, &days).await
    }

    fn tell(&self, department: &Arc<str>, standing: &Standing) -> Value {
        let table = self.policies.load();
        let policy = table.of(department);
        let windows = [
            ("day", Period::Day, standing.day.ends_at()),
            ("month", Period::Month, standing.day.month_ends_at()),
        ];
        let windows = windows.map(|(name, period, resets_at)| {
            let used = standing.over(period);
            let amounts = KINDS.map(|(name, kind)| {
                let shown = |amount: u64| match kind {
                    QuotaKind::Cost => {
                        NanoUsd::new(i64::try_from(amount).unwrap_or(i64::MAX)).to_string().into()
                    }
                    _ => json!(amount),
                };
                let (settled, reserved) = (used.settled.get(kind), used.reserved.get(kind));
                let limit = policy.limits.get(period, kind);
                let remaining = limit.map(|limit| limit.saturating_sub(settled).saturating_sub(reserved));
                let amount = json!({
                    "limit": limit.map(shown),
                    "settled": shown(settled),
                    "reserved": shown(reserved),
                    "remaining": remaining.map(shown),
                });
                (name.to_owned(), amount)
            });
            let mut window = serde_json::Map::from_iter(amounts);
            let resets_at = humantime::format_rfc3339_seconds(resets_at).to_string();
            window.insert("resets_at".to_owned(), resets_at.into());
            (name.to_owned(), Value::Object(window))
        });
        let mut answer = serde_json::Map::from_iter(windows);
        answer.insert("department".to_owned(), (**department).into());
        Value::Object(answer)
    }
}
