use super::decimal::{AmountError, AmountReason, scaled};
use std::{fmt, str::FromStr};

/// Money: a whole number of nano-dollars, 0.000000001 dollar each.
///
/// Arithmetic is checked, and there is no other: what does not fit is `None`, never a wrong amount. Shown, and parsed,
/// as dollars.
///
/// ```
/// use llm_layers::price::NanoUsd;
///
/// let cost: NanoUsd = "0.0035".parse()?;
/// assert_eq!(cost, NanoUsd::new(3_500_000));
/// assert_eq!(cost.checked_add(NanoUsd::new(1)).unwrap().to_string(), "0.003500001");
/// assert_eq!(NanoUsd::MAX.checked_add(cost), None);
/// assert!("€0.15".parse::<NanoUsd>().is_err());
/// # Ok::<(), llm_layers::price::AmountError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NanoUsd(i64);

const PER_DOLLAR: u64 = 1_000_000_000;
const PLACES: u32 = 9;

impl NanoUsd {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// The most there is: a little over 9.2 thousand million dollars.
    pub const MAX: Self = Self(i64::MAX);

    /// This many nano-dollars.
    pub const fn new(nanos: i64) -> Self {
        Self(nanos)
    }

    /// How many nano-dollars.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// Both together.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// The difference.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(nanos) => Some(Self(nanos)),
            None => None,
        }
    }

    /// So many times as much.
    #[must_use]
    pub fn checked_mul(self, times: u64) -> Option<Self> {
        let nanos = i128::from(self.0).checked_mul(i128::from(times))?;
        Some(Self(i64::try_from(nanos).ok()?))
    }

    /// All together.
    #[must_use]
    pub fn checked_sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        amounts.into_iter().try_fold(Self::ZERO, Self::checked_add)
    }
}

/// Dollars, with as many decimal places as there is something to show in: `0.0035`.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        let (whole, fraction) = (nanos / PER_DOLLAR, nanos % PER_DOLLAR);
        let places = format!("{fraction:09}");
        let shown = match places.trim_end_matches('0') {
            "" => whole.to_string(),
            places => format!("{whole}.{places}"),
        };
        f.pad_integral(self.0 >= 0, "", &shown)
    }
}

/// Dollars as decimal text: `3`, `0.0035`, `3.5e-3`. Refuses what is negative, has more than nine decimal places,
/// or is no plain number.
impl FromStr for NanoUsd {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nanos = scaled(text, PLACES)?;
        i64::try_from(nanos).map(Self).map_err(|_| AmountError::new(text, AmountReason::TooLarge))
    }
}
