use crate::{Error, InvalidReason};
use http::{HeaderMap, HeaderName};
use std::time::Duration;

/// The header by which a caller says how long he waits: seconds, with or without a fraction.
pub const TIMEOUT: HeaderName = HeaderName::from_static("x-llm-timeout");

/// What is longer is as good as for ever.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How long the caller waits, by [`x-llm-timeout`](TIMEOUT); `None` if he does not say.
///
/// Seconds, as the clients of the field have them, so that a number that is set there need not be converted.
///
/// ```
/// use http::HeaderMap;
/// use llm_layers::http::timeout;
/// use std::time::Duration;
///
/// let mut headers = HeaderMap::new();
/// headers.insert("x-llm-timeout", "2.5".parse().unwrap());
/// assert_eq!(timeout(&headers).unwrap(), Some(Duration::from_millis(2500)));
/// headers.insert("x-llm-timeout", "2.5s".parse().unwrap());
/// assert_eq!(timeout(&headers).unwrap_err().status(), 400);
/// ```
///
/// # Errors
///
/// It stands twice, or is not a number of seconds above 0.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let mut all = headers.get_all(TIMEOUT).iter();
    let Some(said) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        return Err(Error::invalid(TIMEOUT.as_str(), InvalidReason::Duplicate));
    }
    let time = said.to_str().ok().and_then(|said| seconds(said.trim()));
    let expected = "a number of seconds above 0";
    time.map(Some).ok_or_else(|| Error::invalid(TIMEOUT.as_str(), InvalidReason::Mistyped { expected }))
}

fn seconds(said: &str) -> Option<Duration> {
    // No signs, exponents or infinities, which a number may have in Rust.
    let is_plain = said.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = said.parse().ok().filter(|_| is_plain)?;
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST);
    (!time.is_zero()).then_some(time)
}
