use super::decimal::{AmountError, scaled};
use std::fmt;

/// What one token, or one request, costs: a whole number of 10⁻²⁷ dollars.
///
/// So fine because prices are written per token, and often by programs that print floats:
/// `1.6800000000000002e-07` has 23 decimal places. A price with more than 27 of them is refused, not rounded;
/// the only rounding is that of the cost, once.
///
/// ```
/// use llm_layers::price::Rate;
///
/// assert_eq!(Rate::per_million("0.15")?, Rate::per_thousand("0.00015")?);
/// assert_eq!(Rate::per_million("0.15")?, Rate::each("1.5e-07")?);
/// assert_eq!(Rate::each("1.5e-07")?.to_string(), "0.15");
/// # Ok::<(), llm_layers::price::AmountError>(())
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(u128);

/// Decimal places of a dollar that a rate keeps.
const PLACES: u32 = 27;
/// Of a rate in a nano-dollar.
pub(super) const PER_NANO: u128 = 10_u128.pow(PLACES - 9);

impl Rate {
    /// Free of charge, which is a price.
    pub const FREE: Self = Self(0);

    /// So many dollars for each, as decimal text.
    ///
    /// # Errors
    ///
    /// The text is not an amount, or one too large or too precise.
    pub fn each(dollars: &str) -> Result<Self, AmountError> {
        scaled(dollars, PLACES).map(Self)
    }

    /// So many dollars for a thousand, as decimal text.
    ///
    /// # Errors
    ///
    /// As [`each`](Self::each).
    pub fn per_thousand(dollars: &str) -> Result<Self, AmountError> {
        scaled(dollars, PLACES - 3).map(Self)
    }

    /// So many dollars for a million, as decimal text.
    ///
    /// # Errors
    ///
    /// As [`each`](Self::each).
    pub fn per_million(dollars: &str) -> Result<Self, AmountError> {
        scaled(dollars, PLACES - 6).map(Self)
    }

    /// Half as much; never less.
    pub(super) const fn half(self) -> Self {
        Self(self.0.div_ceil(2))
    }

    /// For so many of them, in the unit of rates.
    pub(super) const fn times(self, number: u64) -> Option<u128> {
        self.0.checked_mul(number as u128)
    }
}

/// Dollars for a million, exactly.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNIT: u128 = 10_u128.pow(PLACES - 6);
        let places = format!("{:0width$}", self.0 % UNIT, width = PLACES as usize - 6);
        let shown = match places.trim_end_matches('0') {
            "" => (self.0 / UNIT).to_string(),
            places => format!("{}.{places}", self.0 / UNIT),
        };
        f.pad_integral(true, "", &shown)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}/M")
    }
}

/// What each kind of token costs. What is not known is `None`, which is not free.
///
/// Unknown rates of parts are those of the whole: cached input costs what input costs, and reasoning what output
/// costs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rates {
    /// Input that was neither read from the provider's cache nor written to it.
    pub input: Option<Rate>,
    /// Input read from the provider's cache.
    pub cache_read: Option<Rate>,
    /// Input written to the provider's cache.
    pub cache_write: Option<Rate>,
    /// Input written to the provider's cache, to stay for an hour. Unknown: as any other.
    pub cache_write_1h: Option<Rate>,
    /// Output.
    pub output: Option<Rate>,
    /// Output that is thoughts.
    pub reasoning: Option<Rate>,
    /// Each request, whatever its tokens. Unknown: nothing. Where it is the only rate that is known, it is the whole price, and
    /// tokens are free.
    pub request: Option<Rate>,
}

impl Rates {
    /// Nothing is known.
    pub const fn new() -> Self {
        Self {
            input: None,
            cache_read: None,
            cache_write: None,
            cache_write_1h: None,
            output: None,
            reasoning: None,
            request: None,
        }
    }

    /// Dollars for a million tokens of input and of output, as decimal text.
    ///
    /// # Errors
    ///
    /// One of them is not an amount.
    pub fn per_million(input: &str, output: &str) -> Result<Self, AmountError> {
        Ok(Self::new().with_input(Rate::per_million(input)?).with_output(Rate::per_million(output)?))
    }

    /// Dollars for a thousand tokens of input and of output, as decimal text.
    ///
    /// # Errors
    ///
    /// One of them is not an amount.
    pub fn per_thousand(input: &str, output: &str) -> Result<Self, AmountError> {
        Ok(Self::new().with_input(Rate::per_thousand(input)?).with_output(Rate::per_thousand(output)?))
    }

    /// Sets [`input`](Self::input).
    #[must_use]
    pub const fn with_input(mut self, rate: Rate) -> Self {
        self.input = Some(rate);
        self
    }

    /// Sets [`cache_read`](Self::cache_read).
    #[must_use]
    pub const fn with_cache_read(mut self, rate: Rate) -> Self {
        self.cache_read = Some(rate);
        self
    }

    /// Sets [`cache_write`](Self::cache_write).
    #[must_use]
    pub const fn with_cache_write(mut self, rate: Rate) -> Self {
        self.cache_write = Some(rate);
        self
    }

    /// Sets [`cache_write_1h`](Self::cache_write_1h).
    #[must_use]
    pub const fn with_cache_write_1h(mut self, rate: Rate) -> Self {
        self.cache_write_1h = Some(rate);
        self
    }

    /// Sets [`output`](Self::output).
    #[must_use]
    pub const fn with_output(mut self, rate: Rate) -> Self {
        self.output = Some(rate);
        self
    }

    /// Sets [`reasoning`](Self::reasoning).
    #[must_use]
    pub const fn with_reasoning(mut self, rate: Rate) -> Self {
        self.reasoning = Some(rate);
        self
    }

    /// Sets [`request`](Self::request).
    #[must_use]
    pub const fn with_request(mut self, rate: Rate) -> Self {
        self.request = Some(rate);
        self
    }

    /// The rate of one class, as it was given.
    pub(super) const fn get_mut(&mut self, class: TokenClass) -> &mut Option<Rate> {
        match class {
            TokenClass::Input => &mut self.input,
            TokenClass::CacheRead => &mut self.cache_read,
            TokenClass::CacheWrite => &mut self.cache_write,
            TokenClass::CacheWrite1h => &mut self.cache_write_1h,
            TokenClass::Output => &mut self.output,
            TokenClass::Reasoning => &mut self.reasoning,
            TokenClass::Request => &mut self.request,
        }
    }

    /// These, where `other` does not say otherwise.
    ///
    /// A new price for output is one for reasoning too, unless that has its own.
    pub(super) fn overlaid(self, other: &Self) -> Self {
        Self {
            input: other.input.or(self.input),
            cache_read: other.cache_read.or(self.cache_read),
            cache_write: other.cache_write.or(self.cache_write),
            cache_write_1h: other.cache_write_1h.or(self.cache_write_1h),
            output: other.output.or(self.output),
            reasoning: other.reasoning.or(if other.output.is_some() { None } else { self.reasoning }),
            request: other.request.or(self.request),
        }
    }

    /// Whether requests have a price and tokens have none.
    #[inline]
    pub(super) fn is_by_request(&self) -> bool {
        self.request.is_some() && Self { request: None, ..*self } == Self::new()
    }

    /// With the rate of the whole where that of a part is not known.
    #[inline]
    pub(super) fn completed(mut self) -> Self {
        if self.is_by_request() {
            (self.input, self.output) = (Some(Rate::FREE), Some(Rate::FREE));
        }
        let cache_write = self.cache_write.or(self.input);
        Self {
            cache_read: self.cache_read.or(self.input),
            cache_write,
            cache_write_1h: self.cache_write_1h.or(cache_write),
            reasoning: self.reasoning.or(self.output),
            ..self
        }
    }
}

/// What is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenClass {
    /// Input, as far as the provider's cache had no part in it.
    Input,
    /// Input read from the provider's cache.
    CacheRead,
    /// Input written to the provider's cache.
    CacheWrite,
    /// Input written to the provider's cache for an hour.
    CacheWrite1h,
    /// Output, thoughts left out.
    Output,
    /// Thoughts.
    Reasoning,
    /// The request itself.
    Request,
}

impl TokenClass {
    pub(super) const ALL: [Self; 7] = [
        Self::Input,
        Self::CacheRead,
        Self::CacheWrite,
        Self::CacheWrite1h,
        Self::Output,
        Self::Reasoning,
        Self::Request,
    ];

    /// Its name in price lists of our own, and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CacheRead => "cache_read",
            Self::CacheWrite => "cache_write",
            Self::CacheWrite1h => "cache_write_1h",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
            Self::Request => "request",
        }
    }
}

impl fmt::Display for TokenClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
