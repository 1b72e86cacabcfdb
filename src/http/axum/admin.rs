//! What is asked of a gateway beside answers: models, usage, quotas, the cache, whether it is ready.
//!
//! Each function is what a handler does, given the [`Handle`] and the [`Caller`] whom [`identify`](super::identify) has put into the request's
//! extensions, or a middleware of yours; where it is served is the host's to say.
//!
//! ```
//! use http::StatusCode;
//! use llm_layers::{config::Config, http::axum::admin, stack::stack};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (_service, handle) = stack(Config::parse(r#"
//!     usage.enabled = false
//!     providers.echo = { kind = "echo", models = ["small"] }
//!     keys = [{ key = "ada-key", user = "ada", departments = ["research"] }]
//!     quota.store = "memory"
//!     departments.research.day_requests = 10
//! "#)?).await?;
//! let ada = handle.caller(Some(b"ada-key")).ok_or("it is in the configuration")?;
//!
//! // `GET /readyz`, `GET /v1/models`, `GET /v1/quota/research`:
//! assert!(admin::readiness(&handle).is_ok());
//! assert_eq!(admin::models(&handle, ada.context()).status(), StatusCode::OK);
//! assert!(admin::quota(&handle, &ada, "research").await.is_ok());
//! assert!(admin::quota(&handle, &ada, "another").await.is_err(), "she is not of it");
//! # Ok(())
//! # }
//! ```
//!
//! With `identity = "host"` a program says itself who asks:
//!
//! ```
//! use llm_layers::{RequestContext, config::Config, http::axum::admin, stack::{Caller, stack}};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (_service, handle) = stack(Config::parse(r#"
//!     identity = "host"
//!     usage.enabled = false
//!     providers.echo.kind = "echo"
//!     quota.store = "memory"
//!     departments.research.day_requests = 10
//! "#)?).await?;
//!
//! // Of a session, a token, a certificate:
//! let ada = Caller::of(RequestContext::new().with_user_id("ada").with_departments(["research"]));
//! assert!(admin::quota(&handle, &ada, "research").await.is_ok());
//! assert!(admin::quota(&handle, &ada, "another").await.is_err(), "she is not of it");
//! assert!(admin::quota(&handle, &ada.admin(), "another").await.is_ok());
//! # Ok(())
//! # }
//! ```

use super::ErrorResponse;
use crate::{
    Period, QuotaKind, RequestContext,
    cache::EpochKind,
    price::NanoUsd,
    stack::{Caller, Handle, ListedModel, QuotaView, Readiness},
};
use axum_core::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A response of JSON.
pub fn json_response(json: impl Into<Body>) -> Response {
    let mut response = Response::new(json.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refused(
    status: StatusCode,
    kind: &str,
    code: impl Into<Option<&'static str>>,
    message: &str,
) -> ErrorResponse {
    ErrorResponse::custom(status, kind, code.into(), message)
}

fn forbidden(code: &'static str, message: &str) -> ErrorResponse {
    refused(StatusCode::FORBIDDEN, "permission_error", code, message)
}

fn invalid(message: &str) -> ErrorResponse {
    refused(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
}

fn not_found(code: &'static str, message: &str) -> ErrorResponse {
    refused(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
}

fn unavailable(code: &'static str, message: &str) -> ErrorResponse {
    refused(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
}

/// What a caller may ask for, as `GET /v1/models` answers, with what OpenAI's clients look for and what Anthropic's do: aliases, and
/// the models that providers list. All of it is one page.
pub fn models(handle: &Handle, caller: &RequestContext) -> Response {
    let models = handle.models_for(caller);
    let all: Vec<_> = models.iter().map(listed).collect();
    let (first, last) = (models.first().map(|model| &model.id), models.last().map(|model| &model.id));
    let page =
        json!({ "object": "list", "data": all, "has_more": false, "first_id": first, "last_id": last });
    json_response(page.to_string())
}

/// One of them, as `GET /v1/models/{model}` answers.
///
/// # Errors
///
/// 404 for a name that is not listed for this caller, whether a provider would take it or not; in Anthropic's shape if `is_messages`.
#[expect(clippy::result_large_err, reason = "it is answered at once")]
pub fn model(
    handle: &Handle,
    caller: &RequestContext,
    name: &str,
    is_messages: bool,
) -> Result<Response, ErrorResponse> {
    let message = "no model of this name is listed here";
    match handle.models_for(caller).iter().find(|model| *model.id == *name) {
        Some(model) => Ok(json_response(listed(model).to_string())),
        None => Err(not_found("model_not_found", message).for_messages(is_messages)),
    }
}

fn listed(model: &ListedModel) -> Value {
    let owner = model.provider.as_deref().unwrap_or("gateway");
    // When a model was made nobody here knows: either family has a number for that.
    json!({
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": owner,
        "type": "model",
        "display_name": model.id,
        "created_at": "1970-01-01T00:00:00Z",
    })
}

/// Whether calls can be made.
///
/// # Errors
///
/// 503, and what is missing.
#[expect(clippy::result_large_err, reason = "it is answered at once")]
pub fn readiness(handle: &Handle) -> Result<Response, ErrorResponse> {
    match handle.readiness() {
        Readiness::Ready => Ok(json_response(r#"{"status":"ready"}"#)),
        Readiness::UsageUnavailable => {
            Err(unavailable("usage_store_unavailable", "usage cannot be recorded"))
        }
        Readiness::QuotaUnavailable => {
            Err(unavailable("quota_store_unavailable", "quotas cannot be counted"))
        }
    }
}

/// What a department may use and has used, for one of its keys or an administrator.
///
/// # Errors
///
/// 403 for others, 404 if nothing is limited, 503 if it cannot be read.
pub async fn quota(handle: &Handle, caller: &Caller, department: &str) -> Result<Response, ErrorResponse> {
    // Whoever may not know does not learn whether there is anything to know.
    if !caller.may_ask_about(department) {
        return Err(forbidden("not_in_department", "this key may not ask about this department"));
    }
    match handle.quota(department).await {
        Ok(Some(view)) => Ok(json_response(standing(&view).to_string())),
        Ok(None) => Err(not_found("quota_disabled", "nothing is limited here")),
        Err(error) => {
            told(&error.cause(), "quotas cannot be read");
            Err(unavailable("usage_store_unavailable", "quotas cannot be read"))
        }
    }
}

/// What the client is not told is for the log.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn told(error: &dyn std::fmt::Display, what: &str) {
    #[cfg(feature = "tracing")]
    tracing::error!(%error, "{what}");
}

const KINDS: [(&str, QuotaKind); 3] =
    [("requests", QuotaKind::Requests), ("tokens", QuotaKind::Tokens), ("cost_usd", QuotaKind::Cost)];

fn standing(view: &QuotaView) -> Value {
    let QuotaView { department, policy, standing, .. } = view;
    let windows = [
        ("day", Period::Day, standing.day.ends_at()),
        ("month", Period::Month, standing.day.month_ends_at()),
    ];
    let windows = windows.map(|(name, period, resets_at)| {
        let used = standing.over(period);
        let amounts = KINDS.map(|(name, kind)| {
            let shown = |amount: u64| match kind {
                QuotaKind::Cost => NanoUsd::new(i64::try_from(amount).unwrap_or(i64::MAX)).to_string().into(),
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
        let mut window = Map::from_iter(amounts);
        window
            .insert("resets_at".to_owned(), humantime::format_rfc3339_seconds(resets_at).to_string().into());
        (name.to_owned(), Value::Object(window))
    });
    let mut answer = Map::from_iter(windows);
    answer.insert("department".to_owned(), (**department).into());
    Value::Object(answer)
}

/// What is to be forgotten: `{"user": "ada"}`, `{"tenant": …}`, `{"model": …}` or `{"knowledge_base": …}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Forget {
    Tenant(String),
    User(String),
    Model(String),
    KnowledgeBase(String),
}

/// Makes all invalid that the cache has kept of a user, a tenant, a model or a knowledge base, for an administrator.
/// A model may be named by an alias, for all that it leads to.
///
/// # Errors
///
/// 403 for others, 404 if nothing is cached, 400 for another body, 503 if others may not have heard of it.
pub async fn invalidate(
    handle: &Handle,
    caller: &Caller,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Response, ErrorResponse> {
    if !caller.is_admin() {
        return Err(forbidden("not_admin", "this key may not make cached answers invalid"));
    }
    if handle.cache_stats().is_none() {
        return Err(not_found("cache_disabled", "nothing is cached here"));
    }
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    let forget = is_json.then(|| serde_json::from_slice(body)).and_then(Result::ok);
    let (kind, id) = match forget {
        Some(Forget::Tenant(id)) => (EpochKind::Tenant, id),
        Some(Forget::User(id)) => (EpochKind::User, id),
        Some(Forget::Model(id)) => (EpochKind::Model, id),
        Some(Forget::KnowledgeBase(id)) => (EpochKind::KnowledgeBase, id),
        None => {
            let message = "the body must be JSON with one of tenant, user, model, knowledge_base, and a text";
            return Err(invalid(message));
        }
    };
    handle.invalidate(kind, &id).await?;
    Ok(json_response(json!({ "invalidated": true }).to_string()))
}

pub use self::usage::{UsageQuestion, usage};

mod usage {
    use super::{
        Caller, ErrorResponse, Handle, Response, forbidden, invalid, json_response, not_found, told,
        unavailable,
    };
    use crate::{
        clock::{Clock, SystemClock},
        stack::MOST_GROUPS,
        usage::{GroupBy, Outcome, ReadError, UsageQuery, UsageReader, UsageSummary, UsageTotals, Window},
    };
    use serde::{Deserialize, Serialize, de::IgnoredAny};
    use std::{
        collections::BTreeMap,
        time::{Duration, SystemTime},
    };

    /// What to ask the ledger, as in `?department=r-and-d&by=model,day&from=2026-11-01`. `None` is a question that cannot be read.
    #[derive(Debug, Clone, Default, Deserialize)]
    #[serde(default)]
    #[non_exhaustive]
    pub struct UsageQuestion {
        /// Only calls of this agent.
        pub agent: Option<String>,
        /// Only calls of this user.
        pub user: Option<String>,
        /// Only calls of this tenant.
        pub tenant: Option<String>,
        /// Only calls that this department was charged for.
        pub department: Option<String>,
        /// Only calls of this model.
        pub model: Option<String>,
        /// Only calls of this provider.
        pub provider: Option<String>,
        /// Only calls of this kind of task.
        pub task_type: Option<String>,
        /// Only calls that ended so.
        pub outcome: Option<String>,
        /// Only calls that ended from then on: a day in UTC, or a time as in RFC 3339.
        pub from: Option<String>,
        /// Only calls that ended before.
        pub until: Option<String>,
        /// `day` or `month`: the one that it is now, in UTC, in place of `from` and `until`.
        pub window: Option<String>,
        /// What the sums are told by, with commas between them. Those over departments are told by department whether it is
        /// among them or not.
        pub by: Option<String>,
        /// What is none of these.
        #[serde(flatten)]
        unknown: BTreeMap<String, IgnoredAny>,
    }

    /// What was used, for an administrator.
    ///
    /// # Errors
    ///
    /// 403 for others, 404 if it is not recorded, 400 for a question that cannot be read or has an answer of more than 50,000
    /// groups, 503 if the ledger cannot be.
    pub async fn usage(
        handle: &Handle,
        caller: &Caller,
        question: Option<&UsageQuestion>,
    ) -> Result<Response, ErrorResponse> {
        if !caller.is_admin() {
            return Err(forbidden("not_admin", "this key may not ask what was used"));
        }
        let Some(ledger) = handle.usage() else {
            return Err(not_found("usage_disabled", "usage is not recorded here"));
        };
        let question = question.ok_or_else(|| invalid("a parameter stands twice"))?;
        let (query, by) = read(question).map_err(|name| invalid(&wanted(name)))?;
        match answer(ledger, &query, &by).await {
            Ok(answer) => Ok(json_response(answer)),
            Err(ReadError::TooManyGroups) => {
                let message =
                    format!("`by` makes more than {MOST_GROUPS} groups: ask for a part, or for fewer kinds");
                Err(invalid(&message))
            }
            Err(ReadError::Failed(cause)) => {
                told(&cause, "the ledger cannot be read");
                Err(unavailable("usage_store_unavailable", "the record of usage cannot be read"))
            }
        }
    }

    /// The query, or the name of the parameter at fault.
    fn read(question: &UsageQuestion) -> Result<(UsageQuery, Vec<GroupBy>), &str> {
        if let Some(unknown) = question.unknown.keys().next() {
            return Err(unknown);
        }
        let mut query = UsageQuery::new();
        type With = fn(UsageQuery, String) -> UsageQuery;
        let only: [(&str, &Option<String>, With); 7] = [
            ("agent", &question.agent, UsageQuery::with_agent),
            ("user", &question.user, UsageQuery::with_user),
            ("tenant", &question.tenant, UsageQuery::with_tenant),
            ("department", &question.department, UsageQuery::with_department),
            ("model", &question.model, UsageQuery::with_model),
            ("provider", &question.provider, UsageQuery::with_provider),
            ("task_type", &question.task_type, UsageQuery::with_task_type),
        ];
        for (name, value, with) in only {
            match value.as_deref() {
                Some("") => return Err(name),
                Some(value) => query = with(query, value.to_owned()),
                None => {}
            }
        }
        if let Some(outcome) = &question.outcome {
            query = query.with_outcome(Outcome::from_name(outcome).ok_or("outcome")?);
        }
        let now = SystemClock.now();
        query = match question.window.as_deref() {
            None => query,
            Some(_) if question.from.is_some() || question.until.is_some() => return Err("window"),
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
        if let (Some(since), Some(before)) = (query.since(), query.before())
            && since >= before
        {
            return Err("until");
        }
        let by = question
            .by
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .filter(|name| !matches!(*name, "" | "department"));
        let mut groups = Vec::new();
        for name in by {
            let group = group(name).ok_or("by")?;
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        Ok((query, groups))
    }

    /// What the parameter of this name takes.
    fn wanted(name: &str) -> String {
        let values = match name {
            "by" => format!("any of {}, with commas between them", GROUPS.map(|(name, _)| name).join(", ")),
            "outcome" => format!("one of {}", Outcome::ALL.map(Outcome::as_str).join(", ")),
            "window" => "day or month, and neither from nor until beside it".to_owned(),
            "from" => "a day such as 2026-11-27, or a time as in RFC 3339".to_owned(),
            "until" => "a day such as 2026-11-27, or a time as in RFC 3339, and later than from".to_owned(),
            "agent" | "user" | "tenant" | "department" | "model" | "provider" | "task_type" => {
                "a name, and not empty".to_owned()
            }
            _ => return format!("`{name}` is no parameter of this"),
        };
        format!("`{name}` is to be {values}")
    }

    fn time(text: &str) -> Option<SystemTime> {
        let is_day = text.len() == 10;
        if is_day {
            return humantime::parse_rfc3339(&format!("{text}T00:00:00Z")).ok();
        }
        // A plus sign in a query is a space to most who read it.
        let zone = text.get(11..)?.find(['+', '-', ' ']).map(|at| at + 11);
        let Some((time, zone)) = zone.and_then(|at| text.split_at_checked(at)) else {
            return humantime::parse_rfc3339(text).ok();
        };
        let local = humantime::parse_rfc3339(&format!("{time}Z")).ok()?;
        let (hours, minutes) = zone.get(1..)?.split_once(':')?;
        let number = |text: &str, most: u64| match text.len() {
            2 => text.parse::<u64>().ok().filter(|number| *number <= most),
            _ => None,
        };
        let ahead = Duration::from_secs(number(hours, 23)? * 3600 + number(minutes, 59)? * 60);
        if zone.starts_with('-') { local.checked_add(ahead) } else { local.checked_sub(ahead) }
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

    #[derive(Serialize)]
    struct Answer<'a> {
        /// Each call in full for every department that it is charged to.
        department_sums: Vec<DepartmentSum<'a>>,
        groups: Vec<Group<'a>>,
        /// Each call once.
        totals: Sums,
    }

    #[derive(Serialize)]
    struct DepartmentSum<'a> {
        department: Option<&'a str>,
        key: Key<'a>,
        sums: Sums,
    }

    #[derive(Serialize)]
    struct Group<'a> {
        key: Key<'a>,
        totals: Sums,
    }

    type Key<'a> = BTreeMap<&'static str, Option<&'a str>>;

    #[derive(Serialize)]
    struct Sums {
        cache_read_tokens: u64,
        cache_write_1h_tokens: u64,
        cache_write_tokens: u64,
        calls: u64,
        cost_nano_usd: i64,
        cost_usd: String,
        estimated_calls: u64,
        input_tokens: u64,
        latency_seconds: f64,
        output_tokens: u64,
        reasoning_tokens: u64,
        saved_calls: u64,
        saved_cost_nano_usd: i64,
        saved_cost_usd: String,
        saved_input_tokens: u64,
        saved_output_tokens: u64,
        unpriced_calls: u64,
        unpriced_saved_calls: u64,
    }

    async fn answer(
        reader: &dyn UsageReader,
        query: &UsageQuery,
        by: &[GroupBy],
    ) -> Result<String, ReadError> {
        let UsageSummary { totals, groups, departments } = reader.summary(query, by).await?;
        if groups.len().max(departments.len()) > MOST_GROUPS {
            return Err(ReadError::TooManyGroups);
        }
        let named = |key| named(by, key);
        let groups = groups.iter().map(|group| Group { key: named(&group.key), totals: sums(&group.totals) });
        let departments = departments.iter().map(|sum| DepartmentSum {
            department: sum.department.as_deref(),
            key: named(&sum.key),
            sums: sums(&sum.sums),
        });
        let answer = Answer {
            department_sums: departments.collect(),
            groups: groups.collect(),
            totals: sums(&totals),
        };
        Ok(serde_json::to_string(&answer).expect("names are texts, and times are numbers"))
    }

    fn named<'a>(by: &[GroupBy], key: &'a [Option<Box<str>>]) -> Key<'a> {
        let name =
            |group: &GroupBy| GROUPS.iter().find(|(_, known)| known == group).map_or("", |(name, _)| *name);
        by.iter().zip(key).map(|(group, value)| (name(group), value.as_deref())).collect()
    }

    fn sums(totals: &UsageTotals) -> Sums {
        Sums {
            cache_read_tokens: tokens(totals.cache_read_tokens),
            cache_write_1h_tokens: tokens(totals.cache_write_1h_tokens),
            cache_write_tokens: tokens(totals.cache_write_tokens),
            calls: totals.calls,
            cost_nano_usd: totals.cost.nanos(),
            cost_usd: totals.cost.to_string(),
            estimated_calls: totals.estimated_calls,
            input_tokens: tokens(totals.input_tokens),
            latency_seconds: totals.latency.as_secs_f64(),
            output_tokens: tokens(totals.output_tokens),
            reasoning_tokens: tokens(totals.reasoning_tokens),
            saved_calls: totals.saved_calls,
            saved_cost_nano_usd: totals.saved_cost.nanos(),
            saved_cost_usd: totals.saved_cost.to_string(),
            saved_input_tokens: tokens(totals.saved_input_tokens),
            saved_output_tokens: tokens(totals.saved_output_tokens),
            unpriced_calls: totals.unpriced_calls,
            unpriced_saved_calls: totals.unpriced_saved_calls,
        }
    }

    /// Sums of tokens fit, or a few thousand years have passed.
    fn tokens(sum: u128) -> u64 {
        u64::try_from(sum).unwrap_or(u64::MAX)
    }

    #[cfg(all(test, feature = "rusqlite"))]
    mod tests {
        use super::*;
        use crate::{
            ChatBody, LlmRequest, RequestContext,
            config::Config,
            stack::{BoxService, stack},
        };
        use axum_core::response::IntoResponse as _;
        use http::StatusCode;
        use http_body_util::BodyExt as _;
        use serde_json::Value;
        use std::path::PathBuf;
        use tower::ServiceExt as _;

        #[test]
        fn times_are_those_of_rfc_3339_wherever_they_were_written() {
            let noon = humantime::parse_rfc3339("2026-11-27T12:00:00Z").unwrap();
            for same in [
                "2026-11-27T12:00:00Z",
                "2026-11-27T13:00:00+01:00",
                "2026-11-27T13:00:00 01:00",
                "2026-11-27T06:30:00-05:30",
                "2026-11-27T12:00:00.000Z",
            ] {
                assert_eq!(time(same), Some(noon), "{same}");
            }
            assert_eq!(time("2026-11-27"), noon.checked_sub(Duration::from_secs(12 * 3600)));
            for bad in [
                "",
                "today",
                "2026-11-27T12:00:00+1:00",
                "2026-11-27T12:00:00+01:99",
                "2026-13-01",
                "ü2026-11-27",
            ] {
                assert_eq!(time(bad), None, "{bad}");
            }
        }

        /// A stack with a ledger in a folder of its own, and whoever may ask it.
        async fn recording(name: &str) -> (PathBuf, (BoxService, Handle), Caller) {
            let directory = std::env::temp_dir().join(format!("llm-layers-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&directory).unwrap();
            let config = format!(
                r#"
                usage.path = '{}'
                providers.echo = {{ kind = "echo", models = ["small"] }}
                keys = [{{ key = "root-key", user = "root", admin = true }}]
                "#,
                directory.join("usage.db").display()
            );
            let built = stack(Config::parse(&config).unwrap()).await.unwrap();
            let root = built.1.caller(Some(b"root-key")).unwrap();
            (directory, built, root)
        }

        #[tokio::test]
        async fn an_answer_of_too_many_groups_is_refused_and_says_why() {
            let (directory, (service, handle), root) = recording("groups").await;
            let asked = |by: &str| {
                let question = UsageQuestion { by: Some(by.into()), ..UsageQuestion::default() };
                let (handle, root) = (&handle, &root);
                async move { usage(handle, root, Some(&question)).await }
            };
            let body = ChatBody::builder().user("Hi").build().unwrap();
            let departments: Vec<_> = (0..500).map(|number| format!("department-{number}")).collect();
            let users = MOST_GROUPS / departments.len();
            for user in 0..=users {
                if user == users {
                    assert_eq!(asked("user,model").await.unwrap().status(), StatusCode::OK);
                }
                let mut request = LlmRequest::new("echo/small", body.clone());
                request.context = RequestContext::new()
                    .with_user_id(format!("user-{user}"))
                    .with_departments(departments.iter().map(String::as_str));
                service.clone().oneshot(request).await.unwrap();
            }
            let refused = asked("user,model").await.unwrap_err().into_response();
            assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
            let body = refused.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert!(body["error"]["message"].as_str().unwrap().starts_with("`by` makes more than"), "{body}");
            assert_eq!(asked("model").await.unwrap().status(), StatusCode::OK);
            std::fs::remove_dir_all(&directory).unwrap();
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn the_sums_of_one_answer_agree_while_calls_are_recorded() {
            let (directory, (service, handle), root) = recording("agree").await;
            let body = ChatBody::builder().user("Hi").build().unwrap();
            let calling = tokio::spawn(async move {
                loop {
                    let mut request = LlmRequest::new("echo/small", body.clone());
                    request.context = RequestContext::new().with_departments(["research"]);
                    service.clone().oneshot(request).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let mut last = 0;
            for _ in 0..50 {
                let question = UsageQuestion {
                    by: Some("model,day".into()),
                    window: Some("month".into()),
                    ..UsageQuestion::default()
                };
                let answer = usage(&handle, &root, Some(&question)).await.unwrap().into_response();
                let body = answer.into_body().collect().await.unwrap().to_bytes();
                let body: Value = serde_json::from_slice(&body).unwrap();
                let calls = |of: &str, sums: &str| -> u64 {
                    let sums = body[of].as_array().unwrap().iter().map(|one| one[sums]["calls"].as_u64());
                    sums.map(Option::unwrap).sum()
                };
                last = body["totals"]["calls"].as_u64().unwrap();
                assert_eq!((calls("groups", "totals"), calls("department_sums", "sums")), (last, last));
            }
            assert!(last > 0);
            calling.abort();
            std::fs::remove_dir_all(&directory).unwrap();
        }

        #[test]
        fn a_question_that_can_mean_nothing_is_refused_and_its_parameter_named() {
            for name in ["agent", "user", "tenant", "department", "model", "provider", "task_type"] {
                let question: UsageQuestion = serde_json::from_str(&format!(r#"{{"{name}":""}}"#)).unwrap();
                assert_eq!(read(&question).unwrap_err(), name);
                assert_eq!(wanted(name), format!("`{name}` is to be a name, and not empty"));
            }
            let day = "2026-11-27";
            for (until, is_read) in
                [("2026-11-28", true), ("2026-11-27T00:00:01Z", true), (day, false), ("2026-11-26", false)]
            {
                let question = UsageQuestion {
                    from: Some(day.into()),
                    until: Some(until.into()),
                    ..UsageQuestion::default()
                };
                assert_eq!(read(&question).err(), (!is_read).then_some("until"), "{until}");
            }
        }

        #[test]
        fn a_question_is_read_as_a_whole_or_its_parameter_is_named() {
            let asked = |by: &str| UsageQuestion { by: Some(by.into()), ..UsageQuestion::default() };
            assert_eq!(read(&asked("department,model,day")).unwrap().1, [GroupBy::Model, GroupBy::Day]);
            assert!(read(&asked("department")).unwrap().1.is_empty());
            assert_eq!(read(&asked("model,colour")).unwrap_err(), "by");
            // No more columns than there are, however often they are named.
            assert_eq!(read(&asked(&"model,day,".repeat(50))).unwrap().1, [GroupBy::Model, GroupBy::Day]);
            let unknown: UsageQuestion =
                serde_json::from_str(r#"{"by":"model","modell":"a/m","zone":"UTC"}"#).unwrap();
            assert_eq!(read(&unknown).unwrap_err(), "modell");
            assert_eq!(wanted("modell"), "`modell` is no parameter of this");
            for (name, _) in GROUPS {
                assert!(wanted("by").contains(name), "{name}");
            }
            assert!(wanted("outcome").ends_with("error, aborted, cache_hit, coalesced"));
            let day = Some("2026-11-27".to_owned());
            let both = UsageQuestion { window: Some("day".into()), from: day, ..UsageQuestion::default() };
            assert_eq!(read(&both).unwrap_err(), "window");
        }
    }
}
