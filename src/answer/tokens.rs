use crate::json::Walk;

/// The largest number of tokens that is believed of one call: hundreds of times what any model takes.
const MOST: u64 = 1 << 30;

/// What a call used up.
///
/// Normalised once, in the leaf: `input_tokens` *includes* what came from the provider's cache,
/// `output_tokens` *includes* reasoning. Absent is not zero.
///
/// ```
/// use llm_layers::{Certainty, Completion, TokenUsage};
///
/// // Of 1,000 tokens of input 800 were cached: they are among the 1,000.
/// let usage = TokenUsage::new(1000, 50).with_cache_read_tokens(800);
/// assert_eq!((usage.input_tokens, usage.cache_write_tokens), (Some(1000), None));
///
/// // As leaves read it, whatever it is called there.
/// let answer = Completion::parse(
///     r#"{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],
///         "usage":{"prompt_tokens":1000,"completion_tokens":50,"prompt_tokens_details":{"cached_tokens":800}}}"#,
/// )?;
/// assert_eq!(answer.usage(), Some(&usage));
/// assert_eq!(TokenUsage::default().certainty, Certainty::Unknown);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenUsage {
    /// Tokens of the prompt.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer.
    pub output_tokens: Option<u64>,
    /// Of the input: read from the provider's cache.
    pub cache_read_tokens: Option<u64>,
    /// Of the input: written to the provider's cache.
    pub cache_write_tokens: Option<u64>,
    /// Of what was written to the provider's cache: to stay there for an hour, which costs more.
    pub cache_write_1h_tokens: Option<u64>,
    /// Of the output: thoughts.
    pub reasoning_tokens: Option<u64>,
    /// How well these are known.
    pub certainty: Certainty,
}

/// How well usage is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Certainty {
    /// As the provider reported it.
    Exact,
    /// Reported or counted in a way that leaves a doubt.
    Estimated,
    /// Not at all.
    #[default]
    Unknown,
}

impl TokenUsage {
    /// Exactly this much.
    pub const fn new(input_tokens: u64, output_tokens: u64) -> Self {
        Self {
            input_tokens: Some(input_tokens),
            output_tokens: Some(output_tokens),
            cache_read_tokens: None,
            cache_write_tokens: None,
            cache_write_1h_tokens: None,
            reasoning_tokens: None,
            certainty: Certainty::Exact,
        }
    }

    /// Sets [`cache_read_tokens`](Self::cache_read_tokens).
    #[must_use]
    pub const fn with_cache_read_tokens(mut self, tokens: u64) -> Self {
        self.cache_read_tokens = Some(tokens);
        self
    }

    /// Sets [`cache_write_tokens`](Self::cache_write_tokens).
    #[must_use]
    pub const fn with_cache_write_tokens(mut self, tokens: u64) -> Self {
        self.cache_write_tokens = Some(tokens);
        self
    }

    /// Sets [`cache_write_1h_tokens`](Self::cache_write_1h_tokens).
    #[must_use]
    pub const fn with_cache_write_1h_tokens(mut self, tokens: u64) -> Self {
        self.cache_write_1h_tokens = Some(tokens);
        self
    }

    /// Sets [`reasoning_tokens`](Self::reasoning_tokens).
    #[must_use]
    pub const fn with_reasoning_tokens(mut self, tokens: u64) -> Self {
        self.reasoning_tokens = Some(tokens);
        self
    }

    /// Sets [`certainty`](Self::certainty).
    #[must_use]
    pub const fn with_certainty(mut self, certainty: Certainty) -> Self {
        self.certainty = certainty;
        self
    }

    /// Reads the `usage` object of an OpenAI-style answer, in the spellings that its imitators use.
    ///
    /// Data of a stranger: a negative or absurd number is as good as none, and the whole is then `Estimated`. Neither is a
    /// call free because its provider says so, nor is a limit used up for the rest of the month.
    pub(crate) fn read(usage: &[u8]) -> Option<Self> {
        Self::take(&mut Walk::new(usage, usize::MAX)?)?
    }

    /// As [`read`](Self::read), of what comes next; `None` if that is not JSON.
    pub(super) fn take(walk: &mut Walk<'_>) -> Option<Option<Self>> {
        if walk.peek()? != b'{' {
            return walk.value().map(|_| None);
        }
        let mut counts = Counts::default();
        walk.object(|walk, name| {
            let part = match name.raw {
                br#""prompt_tokens_details""# | br#""input_tokens_details""# => Part::Input,
                br#""completion_tokens_details""# | br#""output_tokens_details""# => Part::Output,
                br#""cache_creation""# => Part::CacheWrite,
                name => {
                    counts.note(Part::All, name, walk.value()?);
                    return Some(());
                }
            };
            if walk.peek()? != b'{' {
                return walk.value().map(drop);
            }
            walk.object(|walk, name| {
                counts.note(part, name.raw, walk.value()?);
                Some(())
            })
        })?;
        Some(counts.told())
    }

    fn normalised(mut self, total: Option<u64>) -> Self {
        // Some count reasoning beside the output and show it in the total only.
        if let (Some(input), Some(output), Some(reasoning), Some(total)) =
            (self.input_tokens, self.output_tokens, self.reasoning_tokens, total)
            && reasoning > 0
            && input.saturating_add(output).saturating_add(reasoning) == total
        {
            self.output_tokens = Some(output + reasoning);
        }
        // A part cannot be more than its whole.
        let mut clamp = |part: &mut Option<u64>, whole: Option<u64>| {
            if let (Some(p), Some(w)) = (*part, whole)
                && p > w
            {
                *part = Some(w);
                self.certainty = Certainty::Estimated;
            }
        };
        clamp(&mut self.cache_read_tokens, self.input_tokens);
        let uncached = self.input_tokens.map(|input| input - self.cache_read_tokens.unwrap_or(0));
        clamp(&mut self.cache_write_tokens, uncached);
        clamp(&mut self.cache_write_1h_tokens, self.cache_write_tokens);
        clamp(&mut self.reasoning_tokens, self.output_tokens);
        self
    }
}

/// What was read of a `usage` object so far.
#[derive(Default)]
struct Counts {
    usage: TokenUsage,
    total: Option<u64>,
    /// A number was not to be believed.
    doubt: bool,
}

/// Of what an object counts tokens.
#[derive(Clone, Copy)]
enum Part {
    All,
    Input,
    Output,
    CacheWrite,
}

impl Counts {
    /// Notes what stands under the quoted `name`.
    fn note(&mut self, part: Part, name: &[u8], value: &[u8]) {
        let Self { usage, total, doubt } = self;
        let into = match (part, name) {
            (Part::All, br#""prompt_tokens""# | br#""input_tokens""#) => &mut usage.input_tokens,
            (Part::All, br#""completion_tokens""# | br#""output_tokens""#) => &mut usage.output_tokens,
            (Part::All, br#""total_tokens""#) => total,
            (
                Part::All,
                br#""prompt_cache_hit_tokens""# | br#""cached_tokens""# | br#""cache_read_input_tokens""#,
            )
            | (Part::Input, br#""cached_tokens""#) => &mut usage.cache_read_tokens,
            (Part::All, br#""cache_creation_input_tokens""#) | (Part::Input, br#""cache_write_tokens""#) => {
                &mut usage.cache_write_tokens
            }
            (Part::CacheWrite, br#""ephemeral_1h_input_tokens""#) => &mut usage.cache_write_1h_tokens,
            (Part::Output, br#""reasoning_tokens""#) => &mut usage.reasoning_tokens,
            _ => return,
        };
        match tokens(value) {
            Count::Of(number) => *into = Some(number),
            Count::About(number) => (*into, *doubt) = (Some(number), true),
            Count::Absurd => *doubt = true,
            Count::No => {}
        }
    }

    fn told(self) -> Option<TokenUsage> {
        let Self { mut usage, total, doubt } = self;
        if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
            return None;
        }
        usage.certainty = if doubt { Certainty::Estimated } else { Certainty::Exact };
        Some(usage.normalised(total))
    }
}

/// What stands where a count of tokens belongs.
enum Count {
    Of(u64),
    About(u64),
    /// A number that no call can have used.
    Absurd,
    /// No number at all.
    No,
}

fn tokens(raw: &[u8]) -> Count {
    let Ok(text) = std::str::from_utf8(raw) else { return Count::No };
    if let Ok(number) = text.parse::<u64>() {
        return if number > MOST { Count::Absurd } else { Count::Of(number) };
    }
    match text.parse::<f64>() {
        Ok(n) if n.is_nan() => Count::No,
        Ok(n) if !(0.0..=MOST as f64).contains(&n) => Count::Absurd,
        Ok(n) if n.fract() != 0.0 => Count::About(n.ceil() as u64),
        Ok(n) => Count::Of(n as u64),
        Err(_) => Count::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> TokenUsage {
        TokenUsage::read(json.as_bytes()).unwrap()
    }

    #[test]
    fn spellings_of_the_field() {
        let openai = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,
                "prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":2}}"#,
        );
        assert_eq!(openai, TokenUsage::new(10, 5).with_cache_read_tokens(4).with_reasoning_tokens(2));
        let deepseek = read(r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_cache_hit_tokens":4}"#);
        assert_eq!(deepseek, TokenUsage::new(10, 5).with_cache_read_tokens(4));
        let anthropic = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"cache_creation_input_tokens":4,
                "cache_creation":{"ephemeral_5m_input_tokens":1,"ephemeral_1h_input_tokens":3}}"#,
        );
        let written = TokenUsage::new(10, 5).with_cache_write_tokens(4).with_cache_write_1h_tokens(3);
        assert_eq!(anthropic, written);
        assert_eq!(TokenUsage::read(b"null"), None);
        assert_eq!(TokenUsage::read(b"{}"), None);
    }

    #[test]
    fn reasoning_counted_beside_the_output_is_added_to_it() {
        let xai = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":22,"completion_tokens_details":{"reasoning_tokens":7}}"#,
        );
        assert_eq!(xai, TokenUsage::new(10, 12).with_reasoning_tokens(7));
    }

    #[test]
    fn an_absurd_number_is_as_good_as_none_and_leaves_a_doubt() {
        for absurd in ["-3", "-0.5", "99999999999999999999", "1e80", "1e999", "1073741825"] {
            assert_eq!(
                TokenUsage::read(
                    format!(r#"{{"prompt_tokens":{absurd},"completion_tokens":{absurd}}}"#).as_bytes()
                ),
                None
            );
            let mut half = TokenUsage::new(0, 5).with_certainty(Certainty::Estimated);
            half.input_tokens = None;
            assert_eq!(read(&format!(r#"{{"prompt_tokens":{absurd},"completion_tokens":5}}"#)), half);
        }
        assert_eq!(
            read(r#"{"prompt_tokens":1073741824,"completion_tokens":0}"#),
            TokenUsage::new(1 << 30, 0)
        );
    }

    #[test]
    fn a_part_cannot_be_more_than_its_whole() {
        let cached =
            read(r#"{"prompt_tokens":3,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":9}}"#);
        assert_eq!(
            cached,
            TokenUsage::new(3, 1).with_cache_read_tokens(3).with_certainty(Certainty::Estimated)
        );
        assert_eq!(read(r#"{"prompt_tokens":3.0,"completion_tokens":1}"#), TokenUsage::new(3, 1));
    }
}
