//! How long a provider asks to be left alone, in all the ways that providers say it.

use crate::clock::{Clock, SystemClock};
use http::{HeaderMap, StatusCode, header};
use std::time::Duration;

/// Nobody is asked to wait longer: more is a mistake, or as good as never.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `retry-after-ms`, then `retry-after` in any dialect, then the resets of a rate limit.
pub(super) fn read(headers: &HeaderMap, status: StatusCode) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |name: &str| text(name)?.parse::<f64>().ok();
    let after_ms = number("retry-after-ms").and_then(|ms| seconds(ms / 1e3));
    let after = || {
        let value = text(header::RETRY_AFTER.as_str())?;
        match value.parse() {
            Ok(number) => seconds(number),
            Err(_) => date(value, text(header::DATE.as_str())).or_else(|| duration(value)),
        }
    };
    let reset = || {
        // What is used up is what must be waited for; who does not say means requests.
        let used_up = |what: &str| number(&format!("x-ratelimit-remaining-{what}")) == Some(0.0);
        let reset = |what: &str| duration(text(&format!("x-ratelimit-reset-{what}"))?);
        let tokens = reset("tokens").filter(|_| used_up("tokens"));
        let requests = reset("requests").filter(|_| used_up("requests") || tokens.is_none());
        tokens.max(requests)
    };
    after_ms.or_else(after).or_else(|| if status == StatusCode::TOO_MANY_REQUESTS { reset() } else { None })
}

/// Seconds, unless they are negative or no number.
pub(super) fn seconds(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64())))
}

/// An HTTP date, as seen from the moment of the answer; zero if it is past.
fn date(value: &str, answered_at: Option<&str>) -> Option<Duration> {
    let at = httpdate::parse_http_date(value).ok()?;
    // The provider's own clock is the one that it means.
    let from = match answered_at.and_then(|date| httpdate::parse_http_date(date).ok()) {
        Some(date) => date,
        None => SystemClock.now(),
    };
    Some(at.duration_since(from).unwrap_or_default().min(LONGEST))
}

/// `6m0s`, `1.5s`, `250ms`: a number and a unit, once or more.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, unit) = rest.split_at(rest.find(|c: char| c.is_ascii_alphabetic())?);
        let end = unit.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit.len());
        let scale = match &unit[..end] {
            "d" => 86_400.0,
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += scale * number.parse::<f64>().ok().filter(|n| *n >= 0.0)?;
        rest = &unit[end..];
    }
    seconds(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn wait(headers: &[(&'static str, &'static str)]) -> Option<f64> {
        let headers =
            headers.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v))).collect();
        read(&headers, StatusCode::TOO_MANY_REQUESTS).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn every_dialect_is_understood_and_the_most_precise_one_wins() {
        let now = ("date", "Tue, 15 Nov 1994 08:12:31 GMT");
        for (headers, expected) in [
            (&[("retry-after", "2")][..], Some(2.0)),
            (&[("retry-after", "0.5")], Some(0.5)),
            (&[("retry-after", " 7 ")], Some(7.0)),
            (&[("retry-after", "3"), ("retry-after-ms", "250")], Some(0.25)),
            (&[("retry-after", "3"), ("retry-after-ms", "soon")], Some(3.0)),
            (&[("retry-after", "Tue, 15 Nov 1994 08:13:01 GMT"), now], Some(30.0)),
            (&[("retry-after", "Tue, 15 Nov 1994 08:12:01 GMT"), now], Some(0.0)),
            (&[("retry-after", "Tue, 15 Nov 1994 08:13:01 GMT")], Some(0.0)),
            (&[("retry-after", "1m30s")], Some(90.0)),
            (&[("x-ratelimit-reset-requests", "1s")], Some(1.0)),
            (&[("x-ratelimit-reset-requests", "6m0s")], Some(360.0)),
            (&[("x-ratelimit-reset-requests", "120ms")], Some(0.12)),
            (&[("x-ratelimit-reset-requests", "1h2m3.5s"), ("retry-after", "9")], Some(9.0)),
            (&[("x-ratelimit-reset-requests", "1s"), ("x-ratelimit-reset-tokens", "9s")], Some(1.0)),
            (
                &[
                    ("x-ratelimit-reset-requests", "1s"),
                    ("x-ratelimit-remaining-requests", "12"),
                    ("x-ratelimit-reset-tokens", "9s"),
                    ("x-ratelimit-remaining-tokens", "0"),
                ],
                Some(9.0),
            ),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "NaN")], None),
            (&[("retry-after", "tomorrow")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "inf")], Some(86_400.0)),
            (&[("retry-after", "1e300")], Some(86_400.0)),
            (&[("x-ratelimit-reset-requests", "-1s")], None),
            (&[("x-ratelimit-reset-requests", "5 parsecs")], None),
            (&[], None),
        ] {
            assert_eq!(wait(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn a_rate_limits_reset_counts_for_429_only() {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-ratelimit-reset-requests"),
            HeaderValue::from_static("1s"),
        )]);
        assert_eq!(read(&headers, StatusCode::SERVICE_UNAVAILABLE), None);
    }
}
