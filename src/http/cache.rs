use crate::{
    CacheStatus, LlmResponse,
    cache::{CacheControl, MissReason},
};
use http::{HeaderMap, HeaderValue, header};
use memchr::memchr;
use std::time::Duration;

/// What a client asks of the cache, by `Cache-Control` and `Pragma` (RFC 9111, §5.2.1 and §5.4): `no-store`, `no-cache`,
/// `only-if-cached`, `max-age`, and `ttl`, in seconds, for how long its answer may be kept.
///
/// A directive that is not understood is passed over; an age or time that is no number is 0. Several headers are obeyed together.
///
/// ```
/// use http::{HeaderMap, header::CACHE_CONTROL};
/// use llm_layers::{cache::CacheControl, http::cache_control};
/// use std::time::Duration;
///
/// let mut headers = HeaderMap::new();
/// headers.insert(CACHE_CONTROL, "max-age=60, no-transform".parse().unwrap());
/// assert_eq!(cache_control(&headers), CacheControl::new().with_max_age(Duration::from_secs(60)));
/// ```
pub fn cache_control(headers: &HeaderMap) -> CacheControl {
    let mut control = CacheControl::new();
    let all = |name| headers.get_all(name).iter().flat_map(|value| directives(value.as_bytes()));
    for directive in all(header::CACHE_CONTROL) {
        let (name, argument) = directive.split_at(memchr(b'=', directive).unwrap_or(directive.len()));
        let seconds = || {
            let number = argument.get(1..).unwrap_or_default().trim_ascii();
            let number = std::str::from_utf8(number).unwrap_or_default().trim_matches('"');
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            // More digits than fit are a long time; no number is the least that can have been meant.
            Duration::from_secs(if is_number { number.parse().unwrap_or(u64::MAX) } else { 0 })
        };
        let asked = CacheControl::new();
        control = control.and(match name.trim_ascii().to_ascii_lowercase().as_slice() {
            b"no-store" => asked.with_no_store(),
            b"no-cache" => asked.with_no_cache(),
            b"only-if-cached" => asked.with_only_if_cached(),
            b"max-age" => asked.with_max_age(seconds()),
            b"ttl" => asked.with_ttl(seconds()),
            _ => asked,
        });
    }
    let is_old = !headers.contains_key(header::CACHE_CONTROL);
    if is_old && all(header::PRAGMA).any(|said| said.trim_ascii().eq_ignore_ascii_case(b"no-cache")) {
        control = control.with_no_cache();
    }
    control
}

/// What stands between commas, but for those in quoted strings.
fn directives(mut said: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if said.is_empty() {
            return None;
        }
        let (first, rest) = said.split_at(end_of_first(said));
        said = rest.get(1..).unwrap_or_default();
        Some(first)
    })
}

fn end_of_first(said: &[u8]) -> usize {
    let comma = |from: usize| memchr(b',', &said[from..]).map_or(said.len(), |at| from + at);
    let end = comma(0);
    let Some(equals) = memchr(b'=', &said[..end]) else { return end };
    let argument = said[equals + 1..].trim_ascii_start();
    let Some(inner) = argument.strip_prefix(b"\"") else { return end };
    let mut at = said.len() - inner.len();
    loop {
        match said.get(at) {
            Some(b'"') => return comma(at),
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            // A string that does not end is none: no directive is lost in it.
            None => return end,
        }
    }
}

/// What to say in `Cache-Status` (RFC 9211); `None` if there is no cache.
///
/// The age of a hit is for `Age`: see [`age_seconds`].
///
/// ```
/// use llm_layers::{CacheStatus, cache::BypassReason, http::cache_status};
///
/// assert_eq!(cache_status(CacheStatus::Miss).unwrap(), "llm-layers; fwd=miss");
/// let bypass = CacheStatus::Bypass(BypassReason::NoUser);
/// assert_eq!(cache_status(bypass).unwrap(), "llm-layers; fwd=bypass; detail=no-user");
/// ```
pub fn cache_status(status: CacheStatus) -> Option<HeaderValue> {
    let said = match status {
        CacheStatus::Unused => return None,
        CacheStatus::Hit { .. } => "llm-layers; hit",
        CacheStatus::Miss => "llm-layers; fwd=miss",
        CacheStatus::Coalesced => "llm-layers; fwd=miss; collapsed",
        CacheStatus::Bypass(reason) => {
            return format!("llm-layers; fwd=bypass; detail={}", reason.as_str()).try_into().ok();
        }
    };
    Some(HeaderValue::from_static(said))
}

/// As [`cache_status`], with why there was no answer: `fwd=stale` for one that was too old or made invalid, `fwd=request` for
/// one that the caller did not want, and the [reason](MissReason) as `detail`; and with `detail=similar` for an answer to a
/// similar question.
///
/// ```
/// use llm_layers::{CacheStatus, Completion, LlmResponse, TokenUsage, cache::MissReason, http::cache_status_of};
///
/// let mut answer = LlmResponse::new("acme/one", Completion::text("hi", TokenUsage::new(1, 1)));
/// (answer.cache, answer.cache_miss) = (CacheStatus::Miss, Some(MissReason::Expired));
/// assert_eq!(cache_status_of(&answer).unwrap(), "llm-layers; fwd=stale; detail=expired");
/// ```
pub fn cache_status_of(answer: &LlmResponse) -> Option<HeaderValue> {
    let why = match (answer.cache, answer.cache_miss) {
        (CacheStatus::Hit { .. }, _) if answer.is_similar => {
            return Some(HeaderValue::from_static("llm-layers; hit; detail=similar"));
        }
        (CacheStatus::Miss, Some(why)) => why,
        (status, _) => return cache_status(status),
    };
    let forward = match why {
        MissReason::Absent => return cache_status(CacheStatus::Miss),
        MissReason::Expired | MissReason::Invalidated => "stale",
        MissReason::TooOld | MissReason::Refresh => "request",
        MissReason::Shape | MissReason::Mismatch | MissReason::Unreadable | MissReason::StoreFailed => "miss",
    };
    format!("llm-layers; fwd={forward}; detail={}", why.as_str()).try_into().ok()
}

/// What to say in `Age`: for hits only.
pub const fn age_seconds(status: CacheStatus) -> Option<u64> {
    match status {
        CacheStatus::Hit { age } => Some(age.as_secs()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::BypassReason;

    fn of(said: &[(header::HeaderName, &str)]) -> CacheControl {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        cache_control(&headers)
    }

    #[test]
    fn what_a_client_asks_for_only_narrows() {
        let control = CacheControl::new;
        let seconds = Duration::from_secs;
        let cases = [
            ("", control()),
            ("no-store", control().with_no_store()),
            (" No-Cache ,only-IF-cached", control().with_no_cache().with_only_if_cached()),
            ("max-age=60", control().with_max_age(seconds(60))),
            ("max-age = \"60\"", control().with_max_age(seconds(60))),
            ("max-age=60, max-age=9", control().with_max_age(seconds(9))),
            ("max-age", control().with_max_age(seconds(0))),
            ("max-age=soon", control().with_max_age(seconds(0))),
            ("max-age=-1", control().with_max_age(seconds(0))),
            ("max-age=99999999999999999999999", control().with_max_age(seconds(u64::MAX))),
            ("ttl=5", control().with_ttl(seconds(5))),
            ("no-transform, max-stale=100, x=\"no\", public", control()),
            ("no-store, x=\"é\"", control().with_no_store()),
            ("é, max-age=60, x=é, no-cache", control().with_no_cache().with_max_age(seconds(60))),
            ("max-age=é", control().with_max_age(seconds(0))),
            ("x=\"a, no-store\", y= \"\\\", no-cache\", ttl=5", control().with_ttl(seconds(5))),
            // A string that does not end is none.
            ("x=\"a, no-store", control().with_no_store()),
            ("x=\"a\\", control()),
            ("x\"a, no-store, b\"", control().with_no_store()),
            (",, no-store,", control().with_no_store()),
        ];
        for (said, asked) in cases {
            assert_eq!(of(&[(header::CACHE_CONTROL, said)]), asked, "{said}");
        }
        let two = [(header::CACHE_CONTROL, "no-store"), (header::CACHE_CONTROL, "ttl=1")];
        assert_eq!(of(&two), control().with_no_store().with_ttl(seconds(1)));
        for said in ["no-cache", "x=é, No-Cache"] {
            assert_eq!(of(&[(header::PRAGMA, said)]), control().with_no_cache(), "{said}");
        }
        let both = [(header::PRAGMA, "no-cache"), (header::CACHE_CONTROL, "max-age=1")];
        assert_eq!(of(&both), control().with_max_age(seconds(1)));
    }

    #[test]
    fn each_status_is_said() {
        let hit = CacheStatus::Hit { age: Duration::from_millis(61_900) };
        let said = |status| cache_status(status).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!((said(hit).as_deref(), age_seconds(hit)), (Some("llm-layers; hit"), Some(61)));
        assert_eq!(said(CacheStatus::Coalesced).as_deref(), Some("llm-layers; fwd=miss; collapsed"));
        assert_eq!((said(CacheStatus::Unused), age_seconds(CacheStatus::Miss)), (None, None));
        for reason in BypassReason::ALL {
            let said = said(CacheStatus::Bypass(reason)).unwrap();
            assert!(said.ends_with(reason.as_str()), "{said}");
        }
    }
}
