use crate::json::{self, Walk};

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
    /// Of the input: audio. These and images are for what the call costs; records of usage do not keep them.
    pub input_audio_tokens: Option<u64>,
    /// Of the input: images.
    pub input_image_tokens: Option<u64>,
    /// Of the output: audio.
    pub output_audio_tokens: Option<u64>,
    /// Of the output: images.
    pub output_image_tokens: Option<u64>,
    /// How often the web was searched, which records of usage do not keep either.
    pub web_searches: Option<u64>,
    /// How well these are known.
    pub certainty: Certainty,
}

/// How well usage is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Certainty {
    /// As the provider reported it.
    Exact,
    /// Reported or counted in a way that leaves a doubt, or without something that the cost depends on.
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
            input_audio_tokens: None,
            input_image_tokens: None,
            output_audio_tokens: None,
            output_image_tokens: None,
            web_searches: None,
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

    /// Sets [`input_audio_tokens`](Self::input_audio_tokens).
    #[must_use]
    pub const fn with_input_audio_tokens(mut self, tokens: u64) -> Self {
        self.input_audio_tokens = Some(tokens);
        self
    }

    /// Sets [`input_image_tokens`](Self::input_image_tokens).
    #[must_use]
    pub const fn with_input_image_tokens(mut self, tokens: u64) -> Self {
        self.input_image_tokens = Some(tokens);
        self
    }

    /// Sets [`output_audio_tokens`](Self::output_audio_tokens).
    #[must_use]
    pub const fn with_output_audio_tokens(mut self, tokens: u64) -> Self {
        self.output_audio_tokens = Some(tokens);
        self
    }

    /// Sets [`output_image_tokens`](Self::output_image_tokens).
    #[must_use]
    pub const fn with_output_image_tokens(mut self, tokens: u64) -> Self {
        self.output_image_tokens = Some(tokens);
        self
    }

    /// Sets [`web_searches`](Self::web_searches).
    #[must_use]
    pub const fn with_web_searches(mut self, searches: u64) -> Self {
        self.web_searches = Some(searches);
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
                br#""server_tool_use""# => Part::Tools,
                name => {
                    counts.note(Part::All, name, walk.value()?);
                    return Some(());
                }
            };
            if walk.peek()? != b'{' {
                return walk.value().map(drop);
            }
            walk.object(|walk, name| {
                let value = walk.value()?;
                match (part, name.raw) {
                    (Part::Input, br#""cache_creation""# | br#""cache_creation_token_details""#) => {
                        json::members(value)
                            .for_each(|(name, value)| counts.note(Part::CacheWrite, name, value));
                    }
                    (part, name) => counts.note(part, name, value),
                }
                Some(())
            })
        })?;
        Some(counts.told())
    }

    /// Adds what some count beside the input or the output, where the total or the thoughts show it; otherwise a part is never
    /// more than its whole.
    fn normalised(mut self, total: Option<u64>) -> Self {
        self.cache_write_tokens = self.cache_write_tokens.max(self.cache_write_1h_tokens);
        let cached = self.cache_read_tokens.unwrap_or(0) + self.cache_write_tokens.unwrap_or(0);
        let reasoning = self.reasoning_tokens.unwrap_or(0);
        if let (Some(input), Some(output), Some(total)) =
            (&mut self.input_tokens, &mut self.output_tokens, total)
        {
            match total.saturating_sub(*input + *output) {
                more if more == reasoning => *output += more,
                more if more == cached => *input += more,
                // Gemini's thoughts are told by nothing else.
                more if more > 0 => (*output, self.certainty) = (*output + more, Certainty::Estimated),
                _ => {}
            }
        }
        if let Some(output) = self.output_tokens.as_mut().filter(|output| reasoning > **output) {
            *output += reasoning;
            self.certainty = Certainty::Estimated;
        }
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
        let without = |whole: Option<u64>, part: Option<u64>| whole.map(|whole| whole - part.unwrap_or(0));
        clamp(&mut self.input_audio_tokens, self.input_tokens);
        clamp(&mut self.input_image_tokens, without(self.input_tokens, self.input_audio_tokens));
        let said = without(self.output_tokens, self.reasoning_tokens);
        clamp(&mut self.output_audio_tokens, said);
        clamp(&mut self.output_image_tokens, without(said, self.output_audio_tokens));
        self
    }
}

/// What was read of a `usage` object so far.
#[derive(Default)]
struct Counts {
    usage: TokenUsage,
    /// Of what was found on the way, read besides the prompt.
    citations: Option<u64>,
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
    Tools,
}

impl Counts {
    /// Notes what stands under the quoted `name`. Of two names for one count, some leave one at zero.
    fn note(&mut self, part: Part, name: &[u8], value: &[u8]) {
        let Self { usage, citations, total, doubt } = self;
        let into = match (part, name) {
            (Part::All, br#""prompt_tokens""# | br#""input_tokens""#) => &mut usage.input_tokens,
            (Part::All, br#""completion_tokens""# | br#""output_tokens""#) => &mut usage.output_tokens,
            (Part::All, br#""citation_tokens""#) => citations,
            (Part::All, br#""total_tokens""#) => total,
            (
                Part::All,
                br#""prompt_cache_hit_tokens""# | br#""cached_tokens""# | br#""cache_read_input_tokens""#,
            )
            | (Part::Input, br#""cached_tokens""#) => &mut usage.cache_read_tokens,
            (Part::All | Part::Input, br#""cache_creation_input_tokens""#)
            | (
                Part::Input,
                br#""cache_write_tokens""# | br#""cache_creation_tokens""# | br#""cached_creation_tokens""#,
            ) => &mut usage.cache_write_tokens,
            (Part::CacheWrite, br#""ephemeral_1h_input_tokens""#)
            | (Part::All, br#""claude_cache_creation_1_h_tokens""#) => &mut usage.cache_write_1h_tokens,
            (Part::All | Part::Output, br#""reasoning_tokens""#) => &mut usage.reasoning_tokens,
            (Part::All, br#""num_search_queries""#)
            | (Part::Input | Part::Tools, br#""web_search_requests""#) => &mut usage.web_searches,
            (Part::Input, br#""audio_tokens""#) => &mut usage.input_audio_tokens,
            (Part::Input, br#""image_tokens""#) => &mut usage.input_image_tokens,
            (Part::Output, br#""audio_tokens""#) => &mut usage.output_audio_tokens,
            (Part::Output, br#""image_tokens""#) => &mut usage.output_image_tokens,
            _ => return,
        };
        let number = match tokens(value) {
            Count::Of(number) => number,
            Count::About(number) => {
                *doubt = true;
                number
            }
            Count::Absurd => {
                *doubt = true;
                return;
            }
            Count::No => return,
        };
        *into = (*into).max(Some(number));
    }

    fn told(self) -> Option<TokenUsage> {
        let Self { mut usage, citations, total, doubt } = self;
        if usage.input_tokens.is_none() && usage.output_tokens.is_none() {
            return None;
        }
        usage.input_tokens = usage.input_tokens.map(|input| input + citations.unwrap_or(0));
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
    let text = text.trim_matches('"');
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
    fn what_caches_did_is_read_wherever_it_stands() {
        let dashscope = read(
            r#"{"prompt_tokens":3019,"completion_tokens":104,"total_tokens":3123,"prompt_tokens_details":
                {"cached_tokens":0,"cache_creation_input_tokens":2048,"cache_creation":{"ephemeral_5m_input_tokens":2048},
                 "cache_type":"ephemeral"}}"#,
        );
        let written = TokenUsage::new(3019, 104).with_cache_read_tokens(0).with_cache_write_tokens(2048);
        assert_eq!((dashscope, dashscope.cache_write_1h_tokens), (written, None));
        let litellm = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"prompt_tokens_details":{"cached_tokens":2,
                "cache_creation_tokens":4,"cache_creation_token_details":{"ephemeral_5m_input_tokens":1,
                "ephemeral_1h_input_tokens":3}},"cache_creation_input_tokens":4,"cache_read_input_tokens":2}"#,
        );
        let both = TokenUsage::new(10, 5).with_cache_read_tokens(2).with_cache_write_tokens(4);
        assert_eq!(litellm, both.with_cache_write_1h_tokens(3));
        let new_api = read(
            r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":2,
                "cached_creation_tokens":4},"claude_cache_creation_1_h_tokens":3}"#,
        );
        assert_eq!(new_api, both.with_cache_write_1h_tokens(3));
    }

    #[test]
    fn of_two_names_for_one_count_the_larger_is_meant() {
        for usage in [
            r#"{"prompt_tokens":10,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4},
                "completion_tokens_details":{"reasoning_tokens":2},"input_tokens":0,"output_tokens":0,
                "cached_tokens":0,"reasoning_tokens":0,"input_tokens_details":null}"#,
            r#"{"input_tokens":0,"output_tokens":0,"cached_tokens":0,"reasoning_tokens":0,"prompt_tokens":10,
                "completion_tokens":5,"prompt_tokens_details":{"cached_tokens":4},
                "completion_tokens_details":{"reasoning_tokens":2}}"#,
        ] {
            let larger = TokenUsage::new(10, 5).with_cache_read_tokens(4).with_reasoning_tokens(2);
            assert_eq!(read(usage), larger, "{usage}");
        }
    }

    #[test]
    fn what_only_the_total_tells_is_output_and_leaves_a_doubt() {
        let gemini = read(r#"{"prompt_tokens":20,"completion_tokens":198,"total_tokens":623}"#);
        assert_eq!(gemini, TokenUsage::new(20, 603).with_certainty(Certainty::Estimated));
        let less = read(r#"{"prompt_tokens":20,"completion_tokens":198,"total_tokens":0}"#);
        assert_eq!(less, TokenUsage::new(20, 198));
    }

    #[test]
    fn research_is_counted_beside_prompt_and_answer() {
        let perplexity = read(
            r#"{"prompt_tokens":33,"completion_tokens":7163,"total_tokens":7196,"citation_tokens":20016,
                "num_search_queries":18,"reasoning_tokens":73997}"#,
        );
        let all =
            TokenUsage::new(33 + 20016, 7163 + 73997).with_reasoning_tokens(73997).with_web_searches(18);
        assert_eq!(perplexity, all.with_certainty(Certainty::Estimated));
    }

    #[test]
    fn what_caches_did_beside_the_input_is_added_to_it() {
        let told = r#"{"prompt_tokens":10,"completion_tokens":5,"total_tokens":1315,"cache_read_input_tokens":1000,
                       "cache_creation_input_tokens":300}"#;
        let all = TokenUsage::new(1310, 5).with_cache_read_tokens(1000).with_cache_write_tokens(300);
        assert_eq!(read(told), all);
    }

    #[test]
    fn what_is_to_stay_for_an_hour_was_written_and_is_no_more_than_that() {
        let read = |cached| {
            read(&format!(
                r#"{{"prompt_tokens":10,"completion_tokens":5,"cached_tokens":{cached},
                     "cache_creation":{{"ephemeral_1h_input_tokens":4}}}}"#
            ))
        };
        let written = |tokens, cached| {
            let usage = TokenUsage::new(10, 5).with_cache_read_tokens(cached);
            usage.with_cache_write_tokens(tokens).with_cache_write_1h_tokens(tokens)
        };
        assert_eq!(read(2), written(4, 2));
        assert_eq!(read(7), written(3, 7).with_certainty(Certainty::Estimated));
    }

    #[test]
    fn a_part_of_a_token_is_one_and_leaves_a_doubt() {
        let about = TokenUsage::new(11, 5).with_certainty(Certainty::Estimated);
        assert_eq!(read(r#"{"prompt_tokens":10.2,"completion_tokens":5}"#), about);
    }

    #[test]
    fn a_number_in_quotes_is_one() {
        assert_eq!(read(r#"{"prompt_tokens":"10","completion_tokens":"5.0"}"#), TokenUsage::new(10, 5));
        assert_eq!(TokenUsage::read(br#"{"prompt_tokens":"","completion_tokens":"ten"}"#), None);
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
    fn a_cache_has_no_more_to_do_with_than_the_prompt() {
        for (cached, read_tokens, written) in [
            (r#""cached_tokens":9"#, Some(3), None),
            (r#""cached_tokens":2,"cache_write_tokens":9"#, Some(2), Some(1)),
        ] {
            let usage = format!(
                r#"{{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4,"prompt_tokens_details":{{{cached}}}}}"#
            );
            let mut clamped = TokenUsage::new(3, 1).with_certainty(Certainty::Estimated);
            (clamped.cache_read_tokens, clamped.cache_write_tokens) = (read_tokens, written);
            assert_eq!(read(&usage), clamped, "{usage}");
        }
    }

    #[test]
    fn thoughts_that_are_more_than_the_output_stand_beside_it() {
        let thought = read(
            r#"{"prompt_tokens":3,"completion_tokens":1,"completion_tokens_details":{"reasoning_tokens":9}}"#,
        );
        assert_eq!(
            thought,
            TokenUsage::new(3, 10).with_reasoning_tokens(9).with_certainty(Certainty::Estimated)
        );
        assert_eq!(read(r#"{"prompt_tokens":3.0,"completion_tokens":1}"#), TokenUsage::new(3, 1));
    }
}
