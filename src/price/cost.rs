use super::{
    money::NanoUsd,
    rate::{PER_NANO, Rate, Rates, TokenClass},
    search::{SearchPrice, Searched},
    terms::{Billed, Media, Terms, Tiers},
};
use crate::TokenUsage;
use std::fmt;

/// What a model costs: rates, and other rates for long prompts and for other service tiers.
///
/// ```
/// use llm_layers::{TokenUsage, price::{Price, Rate, Rates, ServiceTier}};
///
/// let price = Price::new(Rates::per_million("1.25", "10")?.with_cache_read(Rate::per_million("0.125")?))
///     .with_above(200_000, Rates::per_million("2.50", "15")?)
///     .with_service_tier(ServiceTier::Batch, Rates::per_million("0.625", "5")?);
///
/// assert_eq!(price.cost(&TokenUsage::new(200_000, 1000))?.to_string(), "0.26");
/// // One token more, and all of them cost what long prompts cost.
/// assert_eq!(price.cost(&TokenUsage::new(200_001, 1000))?.to_string(), "0.5150025");
/// assert_eq!(price.cost_at(ServiceTier::Batch, &TokenUsage::new(200_000, 1000))?.to_string(), "0.13");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Price {
    /// In the order in which they are laid over one another; the first is the base.
    steps: Vec<Step>,
    pub(super) search: Option<SearchPrice>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// For prompts of more tokens than this; `None` for all.
    above: Option<u64>,
    tier: ServiceTier,
    rates: Rates,
}

/// How a provider was asked to serve a call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ServiceTier {
    /// As any other.
    #[default]
    Standard,
    /// Some time later, as part of a batch.
    Batch,
    /// When there is room.
    Flex,
    /// Before others.
    Priority,
    /// Between the standard tier and [`Flex`](Self::Flex), with those who have one.
    Balanced,
    /// Before all others, with those who have one.
    Ultrafast,
}

/// Why there is no cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CostError {
    /// The price says nothing of something that was used.
    Unpriced {
        /// Of what.
        class: TokenClass,
    },
    /// It is not known how much was used of something that is not free.
    Uncounted {
        /// Of what.
        class: TokenClass,
    },
    /// The cost is more than [`NanoUsd::MAX`].
    Overflow,
}

// ===== impl Price =====

impl Price {
    /// These rates, for all calls.
    pub fn new(rates: Rates) -> Self {
        Self { steps: vec![Step { above: None, tier: ServiceTier::Standard, rates }], search: None }
    }

    /// So much for each search of the web, where the provider reports some or the request asks for one.
    ///
    /// ```
    /// use llm_layers::{TokenUsage, price::{Price, Rate, Rates}};
    ///
    /// let price = Price::new(Rates::per_million("1", "1")?).with_search(Rate::each("0.01")?);
    /// let usage = TokenUsage::new(1000, 1000);
    /// assert_eq!(price.cost(&usage)?.to_string(), "0.002");
    /// assert_eq!(price.cost(&usage.with_web_searches(3))?.to_string(), "0.032");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub const fn with_search(mut self, rate: Rate) -> Self {
        self.search = Some(SearchPrice::each(rate));
        self
    }

    /// Other rates for prompts of *more* than `tokens` tokens, and then for all of their tokens and those of the
    /// answer. What `rates` leaves open stays as it is for shorter prompts.
    #[must_use]
    pub fn with_above(self, tokens: u64, rates: Rates) -> Self {
        self.with_step(Some(tokens), ServiceTier::Standard, rates)
    }

    /// Other rates for a service tier. What `rates` leaves open stays as it is without one.
    #[must_use]
    pub fn with_service_tier(self, tier: ServiceTier, rates: Rates) -> Self {
        self.with_step(None, tier, rates)
    }

    /// Other rates for prompts of more than `tokens` tokens in a service tier.
    #[must_use]
    pub fn with_service_tier_above(self, tier: ServiceTier, tokens: u64, rates: Rates) -> Self {
        self.with_step(Some(tokens), tier, rates)
    }

    pub(super) fn with_step(mut self, above: Option<u64>, tier: ServiceTier, rates: Rates) -> Self {
        *self.step(above, tier) = rates;
        self
    }

    /// The rates of one step, which is made if need be.
    pub(super) fn step(&mut self, above: Option<u64>, tier: ServiceTier) -> &mut Rates {
        let at = match self.steps.binary_search_by_key(&(above, tier), |step| (step.above, step.tier)) {
            Ok(at) => at,
            Err(at) => {
                self.steps.insert(at, Step { above, tier, rates: Rates::new() });
                at
            }
        };
        &mut self.steps[at].rates
    }

    /// The rates for a prompt of so many tokens, with those of the whole where that of a part is not known.
    pub fn rates(&self, tier: ServiceTier, input_tokens: u64) -> Rates {
        if let Some(rates) = self.flat() {
            return rates.completed();
        }
        let applies = |step: &&Step| {
            (step.tier == ServiceTier::Standard || step.tier == tier)
                && step.above.is_none_or(|above| input_tokens > above)
        };
        let rates = self.steps.iter().filter(applies);
        rates.fold(Rates::new(), |rates, step| rates.overlaid(&step.rates)).completed()
    }

    /// What a call cost, in the standard tier: the sum over all kinds of tokens, rounded up once to a nano-dollar.
    ///
    /// Audio, images and searches are what `usage` says of them: what it does not tell apart is charged as text, and
    /// searches of which it does not tell are charged only, as one, where the model always searches.
    ///
    /// # Errors
    ///
    /// Something was used, or may have been, whose rate is not known; or the sum does not fit. A count that is
    /// absent is taken for zero only of what is free, and of output where the price knows of none (embeddings).
    pub fn cost(&self, usage: &TokenUsage) -> Result<NanoUsd, CostError> {
        self.cost_at(ServiceTier::Standard, usage)
    }

    /// What a call cost in a service tier.
    ///
    /// # Errors
    ///
    /// As [`cost`](Self::cost).
    pub fn cost_at(&self, tier: ServiceTier, usage: &TokenUsage) -> Result<NanoUsd, CostError> {
        self.charge(tier, usage, 1, &Terms::none(tier))?.rounded_up()
    }

    /// What a call cost, at most, and whether that is more than what is known for certain.
    pub(crate) fn bill(&self, billed: &Billed) -> Result<(NanoUsd, bool), CostError> {
        let Billed { ref terms, ref usage, requests } = *billed;
        let cost = |tier| {
            let sum = self.charge(tier, usage, requests, terms)?;
            Ok((sum.rounded_up()?, sum.is_guess))
        };
        if terms.tiers == Tiers::STANDARD || self.flat().is_some() {
            return cost(ServiceTier::Standard);
        }
        let costs = terms.tiers.iter().map(cost);
        costs.reduce(|one, other| Ok(one?.max(other?))).unwrap_or(Err(CostError::Overflow))
    }

    /// What of the input or the output is not told to be something else is charged as the dearest that it may be.
    fn charge(
        &self,
        tier: ServiceTier,
        usage: &TokenUsage,
        requests: u64,
        terms: &Terms,
    ) -> Result<Sum, CostError> {
        let stepped;
        let rates = match self.flat() {
            Some(rates) if !rates.is_by_request() => rates,
            _ => {
                stepped = self.rates(tier, usage.input_tokens.unwrap_or(u64::MAX));
                &stepped
            }
        };
        let read = usage.cache_read_tokens.unwrap_or(0);
        let hour = usage.cache_write_1h_tokens.unwrap_or(0);
        let written = usage.cache_write_tokens.unwrap_or(0).max(hour);
        let thought = usage.reasoning_tokens.unwrap_or(0);
        // Parts that exceed their whole are charged in full.
        let new = usage.input_tokens.map(|all| all.saturating_sub(read).saturating_sub(written));
        let said = usage.output_tokens.map(|all| all.saturating_sub(thought));
        let said = if rates.output.is_none() { said.or(Some(0)) } else { said };
        let mut sum = Sum::default();

        // Where neither audio nor images have a rate of their own, as with most models, they cost what text does.
        let tells_media_apart = rates.tells_media_apart();
        if tells_media_apart {
            sum.add_input(rates, usage, terms.media, new, read)?;
        } else {
            sum.add(TokenClass::Input, new, || rates.input)?;
            sum.add(TokenClass::CacheRead, Some(read), || rates.cache_read.or(rates.input))?;
        }
        let cache_write = || rates.cache_write.or(rates.input);
        sum.add(TokenClass::CacheWrite, Some(written - hour), cache_write)?;
        sum.add(TokenClass::CacheWrite1h, Some(hour), || rates.cache_write_1h.or_else(cache_write))?;
        if tells_media_apart {
            sum.add_output(rates, usage, terms.media, said)?;
        } else {
            sum.add(TokenClass::Output, said, || rates.output)?;
        }
        sum.add(TokenClass::Reasoning, Some(thought), || rates.reasoning.or(rates.output))?;
        sum.add(TokenClass::Request, Some(requests), || rates.request.or(Some(Rate::FREE)))?;
        if let Some(search) = self.search.filter(|_| requests > 0) {
            sum.add_searches(&search.of(terms.searches, usage.web_searches))?;
        }
        Ok(sum)
    }

    /// The rates of a price that is the same for all, as most are.
    fn flat(&self) -> Option<&Rates> {
        match &*self.steps {
            [Step { above: None, tier: ServiceTier::Standard, rates }] => Some(rates),
            _ => None,
        }
    }

    /// The most that a call may cost whose prompt and answer have at most so many tokens: all of them of the
    /// dearest kind, audio and images included, at the dearest length of prompt, and one search.
    ///
    /// # Errors
    ///
    /// Some rate is not known, or the sum does not fit.
    pub fn at_most(
        &self,
        tier: ServiceTier,
        input_tokens: u64,
        output_tokens: u64,
    ) -> Result<NanoUsd, CostError> {
        self.most(tier, &Terms::any(tier), input_tokens, output_tokens)
    }

    /// As [`at_most`](Self::at_most), on these terms but for their tiers.
    fn most(
        &self,
        tier: ServiceTier,
        terms: &Terms,
        input_tokens: u64,
        output_tokens: u64,
    ) -> Result<NanoUsd, CostError> {
        let dearest = |rates: &Rates| {
            let mut sum = dearest(rates, terms.media, input_tokens, output_tokens)?;
            if let Some(search) = &self.search {
                sum.add_searches(&search.of(terms.searches, None))?;
            }
            sum.rounded_up()
        };
        if let Some(rates) = self.flat().filter(|rates| !rates.is_by_request()) {
            return dearest(rates);
        }
        let above = self.steps.iter().filter_map(|step| step.above).filter(|above| *above < input_tokens);
        let mut most = NanoUsd::ZERO;
        for length in above.map(|above| above + 1).chain([0]) {
            most = most.max(dearest(&self.rates(tier, length))?);
        }
        Ok(most)
    }

    /// The most that a request on these terms may cost, as [`at_most`](Self::at_most).
    pub(crate) fn most_on(
        &self,
        terms: Terms,
        input_tokens: u64,
        output_tokens: u64,
    ) -> Result<NanoUsd, CostError> {
        let most = |tier| self.most(tier, &terms, input_tokens, output_tokens);
        let costs = terms.tiers.iter().map(most);
        costs.reduce(|one, other| Ok(one?.max(other?))).unwrap_or(Err(CostError::Overflow))
    }
}

/// Audio, images and the rest of so many tokens.
fn apart(all: Option<u64>, audio: Option<u64>, images: Option<u64>) -> [Option<u64>; 3] {
    let most = all.unwrap_or(u64::MAX);
    let audio = audio.unwrap_or(0).min(most);
    let images = images.unwrap_or(0).min(most - audio);
    [Some(audio), Some(images), all.map(|all| all - audio - images)]
}

/// All tokens of the dearest kind. A part whose rate is not known costs what the whole does, which is no more.
fn dearest(rates: &Rates, media: Media, input_tokens: u64, output_tokens: u64) -> Result<Sum, CostError> {
    let of = |medium, rate: Option<Rate>| rate.filter(|_| media.has(medium));
    let input = [
        rates.cache_read,
        rates.cache_write,
        rates.cache_write_1h,
        of(Media::INPUT_AUDIO, rates.input_audio.max(rates.cache_read_audio)),
        of(Media::INPUT_IMAGE, rates.input_image),
    ];
    let output = [
        rates.reasoning,
        of(Media::OUTPUT_AUDIO, rates.output_audio),
        of(Media::OUTPUT_IMAGE, rates.output_image),
    ];
    let most = |whole: Option<Rate>, parts: &[Option<Rate>]| {
        whole.map(|rate| parts.iter().flatten().copied().fold(rate, Rate::max))
    };
    let mut sum = Sum::default();
    sum.add(TokenClass::Input, Some(input_tokens), || most(rates.input, &input))?;
    sum.add(TokenClass::Output, Some(output_tokens), || most(rates.output, &output))?;
    sum.add(TokenClass::Request, Some(1), || rates.request.or(Some(Rate::FREE)))?;
    Ok(sum)
}

/// What each kind costs, added up in the unit of rates. What does not fit into 128 bits is more than the largest amount
/// thirty times over.
#[derive(Default)]
struct Sum {
    rates: u128,
    /// Some of it may have cost less.
    is_guess: bool,
}

impl Sum {
    #[inline]
    fn add(
        &mut self,
        class: TokenClass,
        tokens: Option<u64>,
        rate: impl FnOnce() -> Option<Rate>,
    ) -> Result<(), CostError> {
        if tokens == Some(0) {
            return Ok(());
        }
        let cost = match (tokens, rate()) {
            (_, Some(Rate::FREE)) => return Ok(()),
            (Some(tokens), Some(rate)) => rate.times(tokens),
            (Some(_), None) => return Err(CostError::Unpriced { class }),
            (None, _) => return Err(CostError::Uncounted { class }),
        };
        self.rates = cost.and_then(|cost| self.rates.checked_add(cost)).ok_or(CostError::Overflow)?;
        Ok(())
    }

    /// Adds what may be something dearer.
    #[inline]
    fn add_doubtful(
        &mut self,
        class: TokenClass,
        tokens: Option<u64>,
        rate: Option<Rate>,
        doubts: [(bool, Option<Rate>); 2],
    ) -> Result<(), CostError> {
        let dearer = doubts.into_iter().filter_map(|(may_be, rate)| rate.filter(|_| may_be)).max();
        if dearer.is_none() || dearer <= rate {
            return self.add(class, tokens, || rate);
        }
        self.is_guess |= tokens != Some(0);
        self.add(class, tokens, || dearer)
    }

    /// What is new of the input and what was read from the provider's cache, by what it is.
    fn add_input(
        &mut self,
        rates: &Rates,
        usage: &TokenUsage,
        media: Media,
        new: Option<u64>,
        read: u64,
    ) -> Result<(), CostError> {
        let [heard, seen, plain] = apart(new, usage.input_audio_tokens, usage.input_image_tokens);
        let may_hear = usage.input_audio_tokens.is_none() && media.has(Media::INPUT_AUDIO);
        let may_see = usage.input_image_tokens.is_none() && media.has(Media::INPUT_IMAGE);
        let doubts = [(may_hear, rates.input_audio), (may_see, rates.input_image)];
        self.add_doubtful(TokenClass::Input, plain, rates.input, doubts)?;
        self.add(TokenClass::InputAudio, heard, || rates.input_audio.or(rates.input))?;
        self.add(TokenClass::InputImage, seen, || rates.input_image.or(rates.input))?;
        if read > 0 {
            // Nobody says what was cached: audio as far as there is no other room for it.
            let heard = usage.input_audio_tokens.unwrap_or(0).saturating_sub(heard.unwrap_or(0)).min(read);
            let cache_read = rates.cache_read.or(rates.input);
            let doubts = [(may_hear, rates.cache_read_audio), (false, None)];
            self.add_doubtful(TokenClass::CacheRead, Some(read - heard), cache_read, doubts)?;
            self.add(TokenClass::CacheReadAudio, Some(heard), || rates.cache_read_audio.or(cache_read))?;
        }
        Ok(())
    }

    /// What was said of the output, by what it is.
    fn add_output(
        &mut self,
        rates: &Rates,
        usage: &TokenUsage,
        media: Media,
        said: Option<u64>,
    ) -> Result<(), CostError> {
        let [spoken, drawn, plain] = apart(said, usage.output_audio_tokens, usage.output_image_tokens);
        let may_speak = usage.output_audio_tokens.is_none() && media.has(Media::OUTPUT_AUDIO);
        let may_draw = usage.output_image_tokens.is_none() && media.has(Media::OUTPUT_IMAGE);
        let doubts = [(may_speak, rates.output_audio), (may_draw, rates.output_image)];
        self.add_doubtful(TokenClass::Output, plain, rates.output, doubts)?;
        self.add(TokenClass::OutputAudio, spoken, || rates.output_audio.or(rates.output))?;
        self.add(TokenClass::OutputImage, drawn, || rates.output_image.or(rates.output))
    }

    fn add_searches(&mut self, searched: &Searched) -> Result<(), CostError> {
        self.is_guess |= searched.is_guess;
        self.add(TokenClass::Request, Some(searched.number), || Some(searched.rate))
    }

    fn rounded_up(&self) -> Result<NanoUsd, CostError> {
        // One division, where `div_ceil` takes two.
        let nanos = self.rates.checked_add(PER_NANO - 1).map(|sum| i64::try_from(sum / PER_NANO));
        nanos.and_then(Result::ok).map(NanoUsd::new).ok_or(CostError::Overflow)
    }
}

/// Without the rates that are not known, which are most.
impl fmt::Debug for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Price");
        for step in &self.steps {
            let mut rates = step.rates;
            for class in TokenClass::ALL {
                if let Some(rate) = rates.get_mut(class) {
                    let tier = match step.tier {
                        ServiceTier::Standard => String::new(),
                        tier => format!(" {tier}"),
                    };
                    let above = step.above.map(|above| format!(" above {above}")).unwrap_or_default();
                    out.field(&format!("{class}{tier}{above}"), rate);
                }
            }
        }
        if let Some(search) = &self.search {
            out.field("search", search);
        }
        out.finish()
    }
}

// ===== impl ServiceTier =====

impl ServiceTier {
    /// All that there are.
    pub const ALL: [Self; 6] =
        [Self::Standard, Self::Batch, Self::Flex, Self::Priority, Self::Balanced, Self::Ultrafast];

    /// The tier of this name, as providers and price lists write it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "standard" | "default" | "auto" | "on_demand" => Some(Self::Standard),
            "batch" | "batches" => Some(Self::Batch),
            "flex" => Some(Self::Flex),
            "priority" | "fast" => Some(Self::Priority),
            "balanced" => Some(Self::Balanced),
            "ultrafast" => Some(Self::Ultrafast),
            _ => None,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Batch => "batch",
            Self::Flex => "flex",
            Self::Priority => "priority",
            Self::Balanced => "balanced",
            Self::Ultrafast => "ultrafast",
        }
    }
}

impl fmt::Display for ServiceTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// ===== impl CostError =====

impl std::error::Error for CostError {}

impl fmt::Display for CostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpriced { class } => write!(f, "the price of {class} is not known"),
            Self::Uncounted { class } => write!(f, "the amount of {class} is not known"),
            Self::Overflow => f.write_str("the cost is larger than any amount"),
        }
    }
}
