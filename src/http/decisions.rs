use crate::{CacheStatus, Period, QuotaKind, decision::DecisionRecord};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{fmt::Write as _, time::Duration};

/// The longest value; further items are left out, and the value ends in `...`.
const MAX_VALUE: usize = 1024;

/// Writes how an answer, or an error, came to be, for people who debug: what was asked for and what answered, each attempt
/// with its failure, wait and latency, rights, cache and quotas.
///
/// These headers show names of models and departments, and what was used up: send them to those who may know.
///
/// | header | for example |
/// |---|---|
/// | `x-llm-requested-model` | `fast` |
/// | `x-llm-aliases` | `usual, openai/a` |
/// | `x-llm-model` | `openai/b` |
/// | `x-llm-provider` | `openai` |
/// | `x-llm-attempts` | `openai/a; failure=rate_limited; wait_ms=0; latency_ms=12, openai/b; wait_ms=100; latency_ms=250` |
/// | `x-llm-access` | `openai/a; department=r-and-d; allowed=true` |
/// | `x-llm-cache` | `hit; age_s=3` |
/// | `x-llm-quota` | `r-and-d; quota=tokens; period=day; limit=1000; current=400; reserved=100; allowed=true` |
/// | `x-llm-failure` | `quota_exceeded` |
///
/// In names, all but letters, digits and `-._~/:@+` are percent-encoded.
pub fn write_decisions(record: &DecisionRecord, headers: &mut HeaderMap) {
    let mut write = |name: &'static str, items: Vec<String>| {
        if let Ok(value) = HeaderValue::try_from(joined(items)) {
            if !value.is_empty() {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    };
    let one = |name: Option<&str>| name.map(encoded).into_iter().collect();
    write("x-llm-requested-model", one(record.requested.as_deref()));
    write("x-llm-aliases", record.aliases.iter().map(|alias| encoded(alias)).collect());
    write("x-llm-model", one(record.model.as_deref()));
    write("x-llm-provider", one(record.provider.as_deref()));
    let millis = |time: Duration| time.as_millis();
    let attempts = record.attempts.iter().map(|attempt| {
        let mut item = encoded(&attempt.model);
        if let Some(failure) = attempt.failure {
            let _ = write!(item, "; failure={failure}");
        }
        let _ = write!(item, "; wait_ms={}", millis(attempt.wait));
        if let Some(latency) = attempt.latency {
            let _ = write!(item, "; latency_ms={}", millis(latency));
        }
        item
    });
    write("x-llm-attempts", attempts.collect());
    let access = record.access.iter().map(|access| {
        let mut item = encoded(&access.model);
        if let Some(department) = &access.department_id {
            let _ = write!(item, "; department={}", encoded(department));
        }
        let _ = write!(item, "; allowed={}", access.allowed);
        item
    });
    write("x-llm-access", access.collect());
    let mut cache = match record.cache.status {
        CacheStatus::Unused if record.cache.why.is_empty() => String::new(),
        CacheStatus::Unused => "unused".to_owned(),
        CacheStatus::Hit { age } => format!("hit; age_s={}", age.as_secs()),
        CacheStatus::Miss => "miss".to_owned(),
        CacheStatus::Coalesced => "coalesced".to_owned(),
        CacheStatus::Bypass(reason) => format!("bypass; reason={}", reason.as_str()),
    };
    if !record.cache.why.is_empty() {
        let _ = write!(cache, "; why={}", encoded(record.cache.why));
    }
    write("x-llm-cache", vec![cache]);
    let quotas = record.quotas.iter().map(|quota| {
        let kind = match quota.quota {
            QuotaKind::Requests => "requests",
            QuotaKind::Tokens => "tokens",
            QuotaKind::Cost => "cost",
        };
        let period = match quota.period {
            Period::Day => "day",
            Period::Month => "month",
        };
        let department = encoded(&quota.department_id);
        let (limit, current, reserved) = (quota.limit, quota.current, quota.reserved);
        let allowed = quota.allowed;
        format!(
            "{department}; quota={kind}; period={period}; limit={limit}; current={current}; reserved={reserved}; allowed={allowed}"
        )
    });
    write("x-llm-quota", quotas.collect());
    write("x-llm-failure", one(record.failure));
}

fn joined(items: Vec<String>) -> String {
    let mut all = String::new();
    for item in items {
        let separator = if all.is_empty() { "" } else { ", " };
        if all.len() + separator.len() + item.len() > MAX_VALUE {
            all.push_str("...");
            break;
        }
        all.extend([separator, &item]);
    }
    all
}

/// Names are the caller's words: none of them ends a header, or an item of it.
fn encoded(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte.into()),
            b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b'@' | b'+' => out.push(byte.into()),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Attempt, ChatBody, Completion, Error, ErrorClass, LlmRequest, LlmResponse, TokenUsage,
        decision::{AccessDecision, CacheDecision, Note, QuotaDecision},
    };

    fn written(record: &DecisionRecord) -> Vec<(String, String)> {
        let mut headers = HeaderMap::new();
        write_decisions(record, &mut headers);
        headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
    }

    #[test]
    fn all_that_is_known_is_written() {
        let mut request = LlmRequest::new("fast", ChatBody::builder().user("hi").build().unwrap());
        request.keep_decisions();
        let decisions = request.decisions();
        decisions.note(|| Note::Alias { from: "fast".into(), to: "openai/a".into() });
        decisions.note(|| Note::Access(AccessDecision::new("openai/a", Some("r&d".into()), true)));
        decisions.note(|| Note::Cache(CacheDecision::new(CacheStatus::Miss, "not there")));
        decisions.note(|| {
            let quota = QuotaDecision::new("r&d", QuotaKind::Tokens, Period::Day, 1000);
            Note::Quota(quota.with_use(400, 100))
        });
        let mut answer = LlmResponse::new("openai/b", Completion::text("hi", TokenUsage::new(1, 1)));
        answer.provider = Some("openai".into());
        answer.cache = CacheStatus::Miss;
        answer.decisions = decisions.clone();
        let down = Error::provider(ErrorClass::RateLimited, "openai", "a");
        answer.attempts = vec![Attempt::new("openai/a", down)];
        let expected = [
            ("x-llm-requested-model", "fast"),
            ("x-llm-aliases", "openai/a"),
            ("x-llm-model", "openai/b"),
            ("x-llm-provider", "openai"),
            (
                "x-llm-attempts",
                "openai/a; failure=rate_limited; wait_ms=0; latency_ms=0, openai/b; wait_ms=0",
            ),
            ("x-llm-access", "openai/a; department=r%26d; allowed=true"),
            ("x-llm-cache", "miss; why=not%20there"),
            (
                "x-llm-quota",
                "r%26d; quota=tokens; period=day; limit=1000; current=400; reserved=100; allowed=true",
            ),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(written(&answer.decision_record()), expected);
    }

    #[test]
    fn no_name_breaks_a_header_and_none_grows_without_bound() {
        let attempt = || Attempt::new("a\r\nset-cookie: x=1, \u{e4};", Error::new(crate::ErrorKind::Other));
        let error = Error::new(crate::ErrorKind::Other);
        let error = error.with_attempts((0..100).map(|_| attempt()).collect());
        let headers = written(&error.decision_record());
        assert_eq!(
            headers.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
            ["x-llm-attempts", "x-llm-failure"]
        );
        let value = &headers[0].1;
        assert!(value.starts_with("a%0D%0Aset-cookie:%20x%3D1%2C%20%C3%A4%3B; failure=other"), "{value}");
        assert!(value.len() <= MAX_VALUE + 3 && value.ends_with("..."), "{value}");
    }
}
