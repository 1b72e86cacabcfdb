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
/// costs; so do audio and images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rates {
    /// Input that was neither read from the provider's cache nor written to it, and is text.
    pub input: Option<Rate>,
    /// Input read from the provider's cache.
    pub cache_read: Option<Rate>,
    /// Input written to the provider's cache.
    pub cache_write: Option<Rate>,
    /// Input written to the provider's cache, to stay for an hour. Unknown: as any other.
    pub cache_write_1h: Option<Rate>,
    /// Input that is audio.
    pub input_audio: Option<Rate>,
    /// Input that is images.
    pub input_image: Option<Rate>,
    /// Audio read from the provider's cache. Unknown: as anything else that is read from it.
    pub cache_read_audio: Option<Rate>,
    /// Output.
    pub output: Option<Rate>,
    /// Output that is thoughts.
    pub reasoning: Option<Rate>,
    /// Output that is audio.
    pub output_audio: Option<Rate>,
    /// Output that is images.
    pub output_image: Option<Rate>,
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
            input_audio: None,
            input_image: None,
            cache_read_audio: None,
            output: None,
            reasoning: None,
            output_audio: None,
            output_image: None,
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

    /// Sets [`input_audio`](Self::input_audio).
    #[must_use]
    pub const fn with_input_audio(mut self, rate: Rate) -> Self {
        self.input_audio = Some(rate);
        self
    }

    /// Sets [`input_image`](Self::input_image).
    #[must_use]
    pub const fn with_input_image(mut self, rate: Rate) -> Self {
        self.input_image = Some(rate);
        self
    }

    /// Sets [`cache_read_audio`](Self::cache_read_audio).
    #[must_use]
    pub const fn with_cache_read_audio(mut self, rate: Rate) -> Self {
        self.cache_read_audio = Some(rate);
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

    /// Sets [`output_audio`](Self::output_audio).
    #[must_use]
    pub const fn with_output_audio(mut self, rate: Rate) -> Self {
        self.output_audio = Some(rate);
        self
    }

    /// Sets [`output_image`](Self::output_image).
    #[must_use]
    pub const fn with_output_image(mut self, rate: Rate) -> Self {
        self.output_image = Some(rate);
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
            TokenClass::InputAudio => &mut self.input_audio,
            TokenClass::InputImage => &mut self.input_image,
            TokenClass::CacheReadAudio => &mut self.cache_read_audio,
            TokenClass::Output => &mut self.output,
            TokenClass::Reasoning => &mut self.reasoning,
            TokenClass::OutputAudio => &mut self.output_audio,
            TokenClass::OutputImage => &mut self.output_image,
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
            input_audio: other.input_audio.or(self.input_audio),
            input_image: other.input_image.or(self.input_image),
            cache_read_audio: other.cache_read_audio.or(self.cache_read_audio),
            output: other.output.or(self.output),
            reasoning: other.reasoning.or(if other.output.is_some() { None } else { self.reasoning }),
            output_audio: other.output_audio.or(self.output_audio),
            output_image: other.output_image.or(self.output_image),
            request: other.request.or(self.request),
        }
    }

    /// Whether requests have a price and tokens have none.
    #[inline]
    pub(super) fn is_by_request(&self) -> bool {
        self.request.is_some() && Self { request: None, ..*self } == Self::new()
    }

    /// Whether audio or images may cost something else than text.
    pub(super) const fn tells_media_apart(&self) -> bool {
        self.input_audio.is_some()
            || self.input_image.is_some()
            || self.cache_read_audio.is_some()
            || self.output_audio.is_some()
            || self.output_image.is_some()
    }

    /// With the rate of the whole where that of a part is not known.
    #[inline]
    pub(super) fn completed(mut self) -> Self {
        if self.is_by_request() {
            (self.input, self.output) = (Some(Rate::FREE), Some(Rate::FREE));
        }
        let cache_read = self.cache_read.or(self.input);
        let cache_write = self.cache_write.or(self.input);
        Self {
            cache_read,
            cache_write,
            cache_write_1h: self.cache_write_1h.or(cache_write),
            input_audio: self.input_audio.or(self.input),
            input_image: self.input_image.or(self.input),
            cache_read_audio: self.cache_read_audio.or(cache_read),
            reasoning: self.reasoning.or(self.output),
            output_audio: self.output_audio.or(self.output),
            output_image: self.output_image.or(self.output),
            ..self
        }
    }
}

/// What is charged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenClass {
    /// Input, as far as the provider's cache had no part in it and it is text.
    Input,
    /// Input read from the provider's cache.
    CacheRead,
    /// Input written to the provider's cache.
    CacheWrite,
    /// Input written to the provider's cache for an hour.
    CacheWrite1h,
    /// Input that is audio.
    InputAudio,
    /// Input that is images.
    InputImage,
    /// Audio read from the provider's cache.
    CacheReadAudio,
    /// Output, thoughts left out, that is text.
    Output,
    /// Thoughts.
    Reasoning,
    /// Output that is audio.
    OutputAudio,
    /// Output that is images.
    OutputImage,
    /// The request itself.
    Request,
}

impl TokenClass {
    pub(super) const ALL: [Self; 12] = [
        Self::Input,
        Self::CacheRead,
        Self::CacheWrite,
        Self::CacheWrite1h,
        Self::InputAudio,
        Self::InputImage,
        Self::CacheReadAudio,
        Self::Output,
        Self::Reasoning,
        Self::OutputAudio,
        Self::OutputImage,
        Self::Request,
    ];

    /// Whether it is what only some models know of: a price of it alone is none.
    pub(super) const fn is_of_media(self) -> bool {
        matches!(
            self,
            Self::InputAudio
                | Self::InputImage
                | Self::CacheReadAudio
                | Self::OutputAudio
                | Self::OutputImage
        )
    }

    /// Its name in price lists of our own, and in the ledger.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::CacheRead => "cache_read",
            Self::CacheWrite => "cache_write",
            Self::CacheWrite1h => "cache_write_1h",
            Self::InputAudio => "input_audio",
            Self::InputImage => "input_image",
            Self::CacheReadAudio => "cache_read_audio",
            Self::Output => "output",
            Self::Reasoning => "reasoning",
            Self::OutputAudio => "output_audio",
            Self::OutputImage => "output_image",
            Self::Request => "request",
        }
    }
}

impl fmt::Display for TokenClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
