//! What a provider says of a failure, in whatever shape it says it.

use super::{retry_after, wire::BYTE_ORDER_MARK};
use crate::{ErrorClass, json};
use http::StatusCode;
use serde_json::value::RawValue;
use std::{borrow::Cow, time::Duration};

/// A failure as a provider describes it. Its message may quote the prompt and stays in here.
#[derive(Debug, Default)]
pub(super) struct Fault {
    /// `code`, `type`, `status`, Azure's inner code and Google's reasons, as far as they are there.
    codes: Vec<String>,
    /// `code` as a number, also one in quotes: an HTTP status with most who send one.
    number: Option<u16>,
    /// `param`, as far as it is there.
    param: Option<String>,
    /// What it says, in lower case.
    texts: Vec<String>,
    /// Whether it shows what of the prompt a moderator has flagged, as OpenRouter does.
    has_flagged: bool,
    pub(super) retry_after: Option<Duration>,
}

const CONTEXT_CODES: [&str; 5] = [
    "context_length_exceeded",
    "context_window_exceeded",
    "model_context_window_exceeded",
    "exceed_context_size_error",
    "contextwindowexceedederror",
];

/// Lower case.
const CONTEXT_MESSAGES: [&str; 29] = [
    "maximum context length",
    "max context length",
    "context length exceeded",
    "context_length_exceeded",
    "context window",
    "contextwindowexceeded",
    "available context size",
    "maximum allowed context",
    "maximum number of tokens allowed",
    "maximum prompt length",
    "prompt is too long",
    "input is too long",
    "too long to fit into the model",
    "longer than the model's context length",
    "longer than the maximum model length",
    "model's context length is only",
    "greater than the context length",
    "input length exceeds the context length",
    "exceed context limit",
    "too many tokens",
    "too many input tokens",
    "number of input tokens exceeds",
    "input tokens exceed the configured limit",
    "exceeded model token limit",
    "range of input length should be",
    "reduce the length of the messages",
    "prompt exceeds max length",
    "`inputs` must have less than",
    "`inputs` tokens + `max_new_tokens` must be",
];

/// Lower case, and of those who were asked too often. A shorter prompt may also be tried again.
const WAIT_MESSAGES: [&str; 4] = ["please wait", "wait before", "try again in ", "try again later"];

const FILTER_CODES: [&str; 6] = [
    "content_filter",
    "content_filtered",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "moderation_blocked",
    "data_inspection_failed",
];

/// As [`AUTH_TEXTS`]. Where only the beginning is known, a caller who has it said is told of a filter, and nobody else.
const FILTER_TEXTS: [(&str, &str); 7] = [
    ("your chosen model requires moderation", ""),
    ("content violates usage guidelines", ""),
    ("content exists risk", ""),
    ("output blocked by content filtering policy", ""),
    ("invalid prompt: your prompt was flagged", ""),
    ("system detected potentially unsafe or sensitive content", ""),
    ("系统检测到输入或生成内容可能包含不安全或敏感内容", ""),
];

const RATE_CODES: [&str; 7] = [
    "rate_limit_exceeded",
    "rate_limit_error",
    "rate_limited",
    "too_many_requests",
    "resource_exhausted",
    "insufficient_quota",
    "throttlingexception",
];

const UNAVAILABLE_CODES: [&str; 7] = [
    "capacity_exceeded",
    "overloaded",
    "overloaded_error",
    "server_overloaded",
    "service_unavailable",
    "unavailable",
    "timeout_error",
];

const AUTH_CODES: [&str; 7] = [
    "invalid_api_key",
    "api_key_invalid",
    "authentication_error",
    "permission_error",
    "billing_error",
    "unauthenticated",
    "permission_denied",
];

/// Of a key that is wrong or has no credit, where the code is that of a bad request: how they begin and end, in lower case.
const AUTH_TEXTS: [(&str, &str); 7] = [
    ("your credit balance is too low", "purchase credits."),
    ("this organization has been disabled", "disabled."),
    ("you have reached your specified api usage limits", "utc."),
    ("incorrect api key provided", "https://console.x.ai."),
    ("api key not valid", "pass a valid api key."),
    ("api key not found", "pass a valid api key."),
    ("api key expired", "renew the api key."),
];

const REQUEST_CODES: [&str; 5] =
    ["invalid_request_error", "badrequesterror", "invalid_argument", "not_found_error", "request_too_large"];

impl Fault {
    /// Reads `{"error": {..}}`, `{"error": ".."}`, `{"detail": ..}`, the same without a wrapper, within an
    /// array, of a choice or of `x_groq`, or any text at all.
    pub(super) fn read(body: &[u8]) -> Self {
        let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
        if serde_json::from_slice::<&RawValue>(body).is_err() {
            return Self { texts: vec![String::from_utf8_lossy(body).to_lowercase()], ..Self::default() };
        }
        let root = json::items(body).next().unwrap_or(body);
        let error = |place| json::member(place, "error").filter(|raw| !json::is_nothing(raw));
        let mut choices = json::items(json::member(root, "choices").unwrap_or_default());
        let groq = || json::member(root, "x_groq").and_then(error);
        let error = error(root).or_else(|| choices.find_map(error)).or_else(groq);
        let mut fault = Self::default();
        for place in error.into_iter().chain([root]) {
            fault.add(place);
        }
        fault
    }

    fn add(&mut self, place: &[u8]) {
        let member = |name| json::member(place, name);
        let inner = member("innererror").and_then(|inner| json::member(inner, "code"));
        let number = |raw| match json::string(raw) {
            Some(text) => text.parse().ok(),
            None => str::from_utf8(raw).ok()?.parse().ok(),
        };
        self.number = self.number.or_else(|| member("code").and_then(number));
        let details = || json::items(member("details").unwrap_or_default());
        let codes = [member("code"), inner, member("type"), member("error_type"), member("status")];
        let codes =
            codes.into_iter().flatten().chain(details().filter_map(|detail| json::member(detail, "reason")));
        self.codes.extend(codes.filter_map(json::string).map(Cow::into_owned));
        self.has_flagged |= member("metadata").is_some_and(|m| json::member(m, "flagged_input").is_some());
        self.param =
            self.param.take().or_else(|| member("param").and_then(json::string).map(Cow::into_owned));

        for raw in [Some(place), member("message"), member("detail"), member("error")].into_iter().flatten() {
            let text = match raw {
                [b'"', ..] => json::text(raw),
                // Objects within are as good as text: they are only searched.
                _ if raw.len() < place.len() => Some(String::from_utf8_lossy(raw)),
                _ => None,
            };
            self.texts.extend(text.map(|text| text.to_lowercase()));
        }

        let delay = details().find_map(|detail| json::member(detail, "retryDelay").and_then(json::string));
        self.retry_after = self.retry_after.or_else(|| match delay {
            Some(delay) => retry_after::duration(&delay),
            None => str::from_utf8(member("retry_after")?).ok()?.parse().ok().and_then(retry_after::seconds),
        });
    }

    /// The code, if it is one and not a text that may quote something.
    pub(super) fn code(&self) -> Option<Box<str>> {
        let is_code = |code: &&String| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'/');
            !code.is_empty() && code.len() <= 64 && code.bytes().all(plain)
        };
        let code = self.codes.iter().find(is_code).cloned();
        code.or_else(|| self.number.map(|n| n.to_string())).map(Into::into)
    }

    /// The member that is refused, if it is the path of one and not a text that may quote something.
    pub(super) fn param(&self) -> Option<Box<str>> {
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.[]".contains(&b);
        let is_path = |param: &&str| (1..=128).contains(&param.len()) && param.bytes().all(is_plain);
        self.param.as_deref().filter(is_path).map(Into::into)
    }

    fn is_any(&self, known: &[&str]) -> bool {
        self.codes.iter().any(|code| known.iter().any(|known| code.eq_ignore_ascii_case(known)))
    }

    fn contains_any(&self, known: &[&str]) -> bool {
        self.texts.iter().any(|text| known.iter().any(|known| text.contains(known)))
    }

    /// Whether a text begins and ends so. Names that the caller chose, of a model or a member, stand first in some texts
    /// and last in others, and must not be taken for what the provider says itself.
    fn says_any(&self, known: &[(&str, &str)]) -> bool {
        let is_known = |text: &String| {
            known.iter().any(|(begin, end)| text.starts_with(begin) && text.trim_end().ends_with(end))
        };
        self.texts.iter().any(is_known)
    }

    fn says_context(&self) -> bool {
        self.contains_any(&CONTEXT_MESSAGES)
    }

    /// Bedrock, too, says "too many tokens", and means those of a minute.
    fn asks_to_wait(&self) -> bool {
        self.contains_any(&WAIT_MESSAGES)
    }

    /// Whether it is more than ever fits into a minute of this account: no waiting would help.
    pub(super) fn exceeds_account(&self) -> bool {
        let is_known = |text: &String| {
            text.starts_with("request too large for")
                && (text.contains("tokens must be reduced") || text.contains("reduce your message size"))
        };
        self.texts.iter().any(is_known)
    }

    fn refuses_content(&self) -> bool {
        self.is_any(&FILTER_CODES) || self.has_flagged || self.says_any(&FILTER_TEXTS)
    }

    fn refuses_key(&self) -> bool {
        self.is_any(&AUTH_CODES) || self.says_any(&AUTH_TEXTS)
    }
}

/// What an answer with a status other than 2xx means.
pub(super) fn class_of_status(status: StatusCode, fault: &Fault) -> ErrorClass {
    class_of_number(status.as_u16(), fault)
}

fn class_of_number(status: u16, fault: &Fault) -> ErrorClass {
    match status {
        401 | 402 => ErrorClass::Auth,
        400 | 413 | 422 | 429 if fault.exceeds_account() => ErrorClass::ContextWindow,
        429 => ErrorClass::RateLimited,
        300..=399 => ErrorClass::BadFrame,
        _ if fault.is_any(&CONTEXT_CODES) => ErrorClass::ContextWindow,
        _ if fault.refuses_content() => ErrorClass::ContentFilter,
        400 | 413 | 422 if fault.says_context() && fault.asks_to_wait() => ErrorClass::RateLimited,
        400 | 413 | 422 if fault.says_context() => ErrorClass::ContextWindow,
        403 => ErrorClass::Auth,
        // So Google and xAI refuse a wrong key, and Anthropic one without credit.
        400 if fault.refuses_key() => ErrorClass::Auth,
        // A conflict, too: OpenAI's own clients send the request again. 498 is Groq's word for no capacity.
        408 | 409 | 425 | 498 | 502..=504 | 520..=529 => ErrorClass::Unavailable,
        // A model that failed, at Bedrock and TGI; a call that was cancelled, and not by us.
        424 | 499 => ErrorClass::Upstream,
        400..=499 => ErrorClass::BadRequest,
        _ => ErrorClass::Upstream,
    }
}

/// What an error in the place of an answer means: codes and numbers are surer than texts.
pub(super) fn class_of_report(fault: &Fault) -> ErrorClass {
    match fault.number {
        _ if fault.exceeds_account() => ErrorClass::ContextWindow,
        _ if fault.is_any(&CONTEXT_CODES) => ErrorClass::ContextWindow,
        _ if fault.refuses_content() => ErrorClass::ContentFilter,
        _ if fault.is_any(&RATE_CODES) => ErrorClass::RateLimited,
        _ if fault.is_any(&UNAVAILABLE_CODES) => ErrorClass::Unavailable,
        Some(status @ 400..=599) => class_of_number(status, fault),
        _ if fault.asks_to_wait() => ErrorClass::RateLimited,
        _ if fault.says_context() => ErrorClass::ContextWindow,
        _ if fault.refuses_key() => ErrorClass::Auth,
        _ if fault.is_any(&REQUEST_CODES) => ErrorClass::BadRequest,
        _ => ErrorClass::Upstream,
    }
}
