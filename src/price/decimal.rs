//! Amounts from decimal text, without a float in between.

use std::fmt;

/// Text that is not an amount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmountError {
    text: Box<str>,
    reason: AmountReason,
}

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AmountReason {
    /// There is nothing.
    Empty,
    /// It is less than zero.
    Negative,
    /// It is `NaN` or infinite.
    NotFinite,
    /// A number stands beside a sign, a currency or a unit. Amounts are plain numbers, in dollars.
    Currency {
        /// What stands beside it.
        unit: Box<str>,
    },
    /// It has more decimal places than are kept. Nothing is rounded to make it fit.
    TooPrecise {
        /// How many decimal places are kept.
        places: u32,
    },
    /// It is larger than the type holds.
    TooLarge,
    /// It is not a decimal number.
    Malformed,
}

/// As many letters of a wrong text as an error repeats.
const SHOWN: usize = 40;

fn shown(text: &str) -> Box<str> {
    let end = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
    text[..end].into()
}

impl AmountError {
    pub(super) fn new(text: &str, reason: AmountReason) -> Self {
        Self { text: shown(text), reason }
    }

    /// The text, or the beginning of a long one.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What is wrong with it.
    pub const fn reason(&self) -> &AmountReason {
        &self.reason
    }
}

impl std::error::Error for AmountError {}

impl fmt::Display for AmountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match &self.reason {
            AmountReason::Empty => f.write_str("the amount is empty"),
            AmountReason::Negative => write!(f, "{text:?} is negative"),
            AmountReason::NotFinite => write!(f, "{text:?} is not a finite number"),
            AmountReason::Currency { unit } => {
                write!(f, "{text:?} has a unit, {unit:?}; amounts are plain numbers in dollars")
            }
            AmountReason::TooPrecise { places } => {
                write!(f, "{text:?} has more than {places} decimal places")
            }
            AmountReason::TooLarge => write!(f, "{text:?} is too large"),
            AmountReason::Malformed => write!(f, "{text:?} is not a decimal number"),
        }
    }
}

/// The number in `text` times ten to the power of `places`, exactly or not at all.
pub(super) fn scaled(text: &str, places: u32) -> Result<u128, AmountError> {
    let refuse = |reason| Err(AmountError::new(text, reason));
    let Some(Decimal { negative, whole, fraction, exponent }) = Decimal::split(text) else {
        return refuse(misfit(text));
    };
    // From here on neither part has a zero at its end that only moves the point.
    let fraction = fraction.trim_end_matches('0');
    let mut exponent = exponent.saturating_sub_unsigned(fraction.len() as u64);
    let mut significant = whole;
    if fraction.is_empty() {
        significant = whole.trim_end_matches('0');
        exponent = exponent.saturating_add_unsigned((whole.len() - significant.len()) as u64);
        if significant.is_empty() {
            return Ok(0);
        }
    }
    if negative {
        return refuse(AmountReason::Negative);
    }
    let Ok(power) = u64::try_from(exponent.saturating_add_unsigned(u64::from(places))) else {
        return refuse(AmountReason::TooPrecise { places });
    };
    let mut digits = significant.bytes().chain(fraction.bytes());
    let value = digits
        .try_fold(0_u128, |sum, digit| sum.checked_mul(10)?.checked_add(u128::from(digit - b'0')))
        .zip(u32::try_from(power).ok().and_then(|power| 10_u128.checked_pow(power)))
        .and_then(|(value, power)| value.checked_mul(power));
    value.map_or_else(|| refuse(AmountReason::TooLarge), Ok)
}

struct Decimal<'a> {
    negative: bool,
    /// Digits before the point, and behind it: not both empty.
    whole: &'a str,
    fraction: &'a str,
    exponent: i64,
}

impl<'a> Decimal<'a> {
    fn split(text: &'a str) -> Option<Self> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let power = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        if power.is_empty() || !digits(power) {
            return None;
        }
        // An exponent that no number holds is as good as the largest.
        let power: i64 = power.parse().unwrap_or(i64::MAX);
        let exponent = if exponent.starts_with('-') { -power } else { power };
        Some(Self { negative: text.starts_with('-'), whole, fraction, exponent })
    }
}

/// What is wrong with a text that is not a number.
fn misfit(text: &str) -> AmountReason {
    let bare = text.trim_start_matches(['-', '+']);
    if text.is_empty() {
        return AmountReason::Empty;
    }
    if ["nan", "inf", "infinity"].iter().any(|word| bare.eq_ignore_ascii_case(word)) {
        return AmountReason::NotFinite;
    }
    let of_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+');
    let before = text.find(of_number).unwrap_or(text.len());
    let after = text.rfind(of_number).map_or(0, |at| at + 1);
    for (unit, rest) in [(&text[..before], &text[before..]), (&text[after..], &text[..after])] {
        let unit = unit.trim();
        // An `e` is half of an exponent.
        if !matches!(unit, "" | "e" | "E") && Decimal::split(rest.trim()).is_some() {
            return AmountReason::Currency { unit: shown(unit) };
        }
    }
    AmountReason::Malformed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_number() {
        for text in ["1.5", "+1.5", "01.500", "15e-1", "15E-01", "0.15e1", "0.00015e+4", "150000e-5", "1.5e0"]
        {
            assert_eq!(scaled(text, 3), Ok(1500), "{text}");
        }
        for text in ["0", "-0", "-0.0", "0e999999999999999999999", "0.000e-77", ".0", "0."] {
            assert_eq!(scaled(text, 3), Ok(0), "{text}");
        }
        assert_eq!(scaled("340282366920938463463374607431768211455", 0), Ok(u128::MAX));
    }

    #[test]
    fn what_is_not_a_number_says_why() {
        let reason = |text| scaled(text, 3).unwrap_err().reason;
        let unit = |unit: &str| AmountReason::Currency { unit: unit.into() };
        assert_eq!(reason(""), AmountReason::Empty);
        assert_eq!(reason("-0.001"), AmountReason::Negative);
        assert_eq!(reason("-1e-99"), AmountReason::Negative);
        for text in ["NaN", "-nan", "inf", "Infinity", "-INF"] {
            assert_eq!(reason(text), AmountReason::NotFinite, "{text}");
        }
        assert_eq!(reason("$0.15"), unit("$"));
        assert_eq!(reason("USD 0.15"), unit("USD"));
        assert_eq!(reason("0.15 €"), unit("€"));
        assert_eq!(reason("0.15EUR"), unit("EUR"));
        assert_eq!(reason("0.0001"), AmountReason::TooPrecise { places: 3 });
        assert_eq!(reason("1e-99999999999999999999"), AmountReason::TooPrecise { places: 3 });
        assert_eq!(reason("1e99999999999999999999"), AmountReason::TooLarge);
        assert_eq!(reason("340282366920938463463374607431768212"), AmountReason::TooLarge);
        for text in
            [".", "-", "e5", "1e", "1e+", "1.2.3", "1,5", "1_000", "0x10", " 1", "--1", "1e5.0", "eins"]
        {
            assert_eq!(reason(text), AmountReason::Malformed, "{text}");
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_long_text() {
        let error = scaled(&"ü".repeat(100_000), 3).unwrap_err();
        assert_eq!(error.text().chars().count(), SHOWN);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text: String, places in 0_u32..40) {
            let _ = scaled(&text, places);
        }

        #[test]
        fn whatever_is_a_number_here_is_one_to_rust(text in "[-+]?[0-9.]{0,6}(e[-+]?[0-9]{0,2})?") {
            let float: Result<f64, _> = text.parse();
            match scaled(&text, 30) {
                Ok(value) => {
                    let float = float.unwrap();
                    proptest::prop_assert!((value as f64 / 1e30 - float).abs() <= float * 1e-12);
                }
                Err(error) if error.reason == AmountReason::Malformed || error.reason == AmountReason::Empty => {
                    proptest::prop_assert!(float.is_err());
                }
                Err(_) => proptest::prop_assert!(float.is_ok()),
            }
        }
    }
}
