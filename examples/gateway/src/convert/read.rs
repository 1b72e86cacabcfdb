//! YAML as plain values, and the few ways to look at them.

use llm_layers::price::{NanoUsd, Rate};
use serde_json::{Map, Value};

/// Reads YAML, of which JSON is a part. What is wrong is told by its place, and not shown.
pub(super) fn yaml(text: &str) -> Result<Map<String, Value>, String> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
        format!("{place}it is not YAML that can be read")
    })?;
    match value {
        Value::Object(root) => Ok(root),
        _ => Err("it must be a table".to_owned()),
    }
}

/// A text that is not empty; numbers count as what they look like.
pub(super) fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

pub(super) fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
    .filter(|number| number.is_finite())
}

pub(super) fn whole(value: Option<&Value>) -> Option<u64> {
    let number = number(value)?;
    (0.0..=9e15).contains(&number).then_some(number as u64)
}

/// A whole number that is not 0.
pub(super) fn some(value: Option<&Value>) -> Option<u64> {
    whole(value).filter(|number| *number > 0)
}

pub(super) fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(all)) => all.iter().filter_map(|one| text(Some(one))).collect(),
        one => text(one).into_iter().collect(),
    }
}

pub(super) fn table(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value?.as_object()
}

pub(super) fn truth(value: Option<&Value>) -> Option<bool> {
    match value? {
        Value::Bool(truth) => Some(*truth),
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

pub(super) fn is_true(value: Option<&Value>) -> bool {
    value == Some(&Value::Bool(true))
}

/// Dollars, as they may be written; nobody has so many that they do not fit.
pub(super) fn dollars(value: Option<&Value>, shift: i32) -> Option<String> {
    decimal(value, shift).filter(|dollars| dollars.parse::<NanoUsd>().is_ok())
}

/// Dollars for a million tokens, as they may be written.
pub(super) fn price(value: Option<&Value>, shift: i32) -> Option<String> {
    decimal(value, shift).filter(|dollars| Rate::per_million(dollars).is_ok())
}

/// A number as a decimal with at most nine places, `shift` places to the left: what costs 2.5e-06 a token costs 2.5
/// a million.
fn decimal(value: Option<&Value>, shift: i32) -> Option<String> {
    let written = match value? {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        _ => return None,
    };
    let number: f64 = written.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    // The shortest digits that mean this number: nothing of it is the machine's own.
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e')?;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let point = i32::try_from(whole.len()).ok()? + exponent.parse::<i32>().ok()? + shift;
    let digits = format!("{whole}{fraction}");
    let decimal = if point <= 0 {
        format!("0.{}{digits}", "0".repeat(usize::try_from(-point).ok()?))
    } else if usize::try_from(point).ok()? >= digits.len() {
        format!("{digits}{}", "0".repeat(usize::try_from(point).ok()? - digits.len()))
    } else {
        let (whole, fraction) = digits.split_at(usize::try_from(point).ok()?);
        format!("{whole}.{fraction}")
    };
    let decimal = match decimal.trim_start_matches('0') {
        rest if rest.is_empty() || rest.starts_with('.') => format!("0{rest}"),
        rest => rest.to_owned(),
    };
    Some(match decimal.split_once('.') {
        None => decimal,
        Some((whole, fraction)) => {
            let fraction = fraction.get(..9).unwrap_or(fraction).trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
    })
    .filter(|decimal| decimal.len() <= 19)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_price_for_a_token_is_one_for_a_million_to_the_last_digit() {
        for (value, shift, expected) in [
            (json!(2.5e-06), 6, "2.5"),
            (json!(0.00000015), 6, "0.15"),
            (json!(3e-07), 6, "0.3"),
            (json!(0.000_011_25), 6, "11.25"),
            (json!(0), 6, "0"),
            (json!(1), 6, "1000000"),
            (json!("0.0000025"), 6, "2.5"),
            (json!(0.03), 3, "30"),
            (json!(12_345), -2, "123.45"),
            (json!(5), -2, "0.05"),
            (json!(100), 0, "100"),
        ] {
            assert_eq!(decimal(Some(&value), shift).as_deref(), Some(expected), "{value} {shift}");
        }
        for none in [json!(-1), json!("x"), json!(null), json!(1e300)] {
            assert_eq!(decimal(Some(&none), 0), None, "{none}");
        }
    }
}
