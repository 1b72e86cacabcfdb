use crate::{LlmRequest, forward::forward};
use std::sync::Arc;

/// Says how many tokens a prompt has at most, before it is sent.
///
/// For [`QuotaLayer::with_estimator`](super::QuotaLayer::with_estimator):
///
/// ```
/// use llm_layers::{
///     ChatBody, LlmRequest,
///     quota::{ByteEstimator, TokenEstimator},
/// };
///
/// /// `acme` puts instructions of its own in front of each prompt, and bills them.
/// struct WithInstructions(ByteEstimator);
///
/// impl TokenEstimator for WithInstructions {
///     fn prompt_upper_bound(&self, request: &LlmRequest) -> u64 {
///         let instructions = if request.model.starts_with("acme/") { 300 } else { 0 };
///         self.0.prompt_upper_bound(request).saturating_add(instructions)
///     }
/// }
///
/// let body = ChatBody::builder().user("Hello").build()?;
/// let estimator = WithInstructions(ByteEstimator::new());
/// let bound = |model: &str| estimator.prompt_upper_bound(&LlmRequest::new(model, body.clone()));
/// assert_eq!(bound("acme/one"), bound("other/one") + 300);
/// # Ok::<(), llm_layers::Error>(())
/// ```
pub trait TokenEstimator: Send + Sync + 'static {
    /// At least as many tokens as there are. Asked for each call: must not read the prompt.
    fn prompt_upper_bound(&self, request: &LlmRequest) -> u64;

    /// Whether there is a closer bound to be had.
    fn can_tighten(&self) -> bool {
        false
    }

    /// A closer bound. Asked only if the first one does not fit into a limit, on a thread where it may take its time.
    fn tighten(&self, request: &LlmRequest) -> Option<u64> {
        let _ = request;
        None
    }
}

forward! {
    TokenEstimator for [Arc, Box] {
        fn prompt_upper_bound(&self, request: &LlmRequest) -> u64;
        fn can_tighten(&self) -> bool;
        fn tighten(&self, request: &LlmRequest) -> Option<u64>;
    }
}

/// A token for each byte of the members that carry prompt, which is true of every byte-level tokenizer: the JSON around
/// a message pays for the tokens that a provider puts around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ByteEstimator {
    /// Tokens of an image or another part that is not text; 2,048 unless told. The bytes of an image, or where it is,
    /// do not count besides.
    pub part_tokens: u64,
    /// Tokens that a provider adds to every prompt; none unless told.
    pub overhead: u64,
}

impl ByteEstimator {
    /// With the usual numbers.
    pub const fn new() -> Self {
        Self { part_tokens: 2048, overhead: 0 }
    }

    /// Sets [`part_tokens`](Self::part_tokens).
    #[must_use]
    pub const fn with_part_tokens(mut self, tokens: u64) -> Self {
        self.part_tokens = tokens;
        self
    }

    /// Sets [`overhead`](Self::overhead).
    #[must_use]
    pub const fn with_overhead(mut self, tokens: u64) -> Self {
        self.overhead = tokens;
        self
    }

    fn besides_text(&self, request: &LlmRequest) -> u64 {
        let parts = request.body.attached().parts as u64;
        self.part_tokens.saturating_mul(parts).saturating_add(self.overhead)
    }
}

impl Default for ByteEstimator {
    fn default() -> Self {
        Self::new()
    }
}

impl TokenEstimator for ByteEstimator {
    fn prompt_upper_bound(&self, request: &LlmRequest) -> u64 {
        let text = request.body.input_bytes().saturating_sub(request.body.attached().image_bytes);
        self.besides_text(request).saturating_add(text as u64)
    }
}

#[cfg(feature = "tokenizer")]
pub use self::counted::BpeEstimator;
#[cfg(feature = "tokenizer")]
pub(crate) use self::counted::{is_openais, text_tokens};

#[cfg(feature = "tokenizer")]
mod counted {
    use super::{ByteEstimator, TokenEstimator};
    use crate::{LlmRequest, ModelName, json};

    /// As [`ByteEstimator`], and where that does not fit, counts by OpenAI's tokenizers (feature `tokenizer`).
    ///
    /// For models of other providers, whose tokenizers are not public, the count is taken half as much again.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct BpeEstimator {
        bytes: ByteEstimator,
        percent: u64,
    }

    /// What stands around a message.
    const PER_MESSAGE: u64 = 8;

    impl BpeEstimator {
        /// Where counting is not needed, `bytes` decides.
        pub const fn new(bytes: ByteEstimator) -> Self {
            Self { bytes, percent: 150 }
        }

        /// How many tokens to expect for a hundred of OpenAI's, of models that are not OpenAI's; 150 unless told.
        #[must_use]
        pub const fn with_percent(mut self, percent: u64) -> Self {
            self.percent = percent;
            self
        }
    }

    impl Default for BpeEstimator {
        fn default() -> Self {
            Self::new(ByteEstimator::new())
        }
    }

    impl TokenEstimator for BpeEstimator {
        fn prompt_upper_bound(&self, request: &LlmRequest) -> u64 {
            self.bytes.prompt_upper_bound(request)
        }

        fn can_tighten(&self) -> bool {
            true
        }

        fn tighten(&self, request: &LlmRequest) -> Option<u64> {
            let tokens = text_tokens(request, PER_MESSAGE, |_| false);
            let is_openai = request.model.split().is_none_or(|(provider, _)| provider == "openai");
            let percent = if is_openai { 100 } else { self.percent };
            let text = u64::try_from((u128::from(tokens) * u128::from(percent)).div_ceil(100)).ok()?;
            Some(text.saturating_add(self.bytes.besides_text(request)))
        }
    }

    /// By the tokenizer of its model, were it one of OpenAI's: `per_message` for what stands around each, and without the
    /// parts of messages that are left out.
    pub(crate) fn text_tokens(
        request: &LlmRequest,
        per_message: u64,
        is_left_out: impl Fn(&[u8]) -> bool,
    ) -> u64 {
        let model = name(&request.model);
        let is_old = model.starts_with("gpt-3.5") || model == "gpt-4" || model.starts_with("gpt-4-");
        let bpe = if is_old { bpe_openai::cl100k_base() } else { bpe_openai::o200k_base() };
        let count = |text: &str| bpe.count(text) as u64;
        let raw = |json: &[u8]| std::str::from_utf8(json).map_or(json.len() as u64, count);
        // A text is counted as the model reads it, everything else as it is written.
        let value = |value: &[u8]| json::string(value).map_or_else(|| raw(value), |text| count(&text));
        let part = |part: &[u8]| -> u64 {
            if is_left_out(part) {
                return 0;
            }
            json::members(part).map(|(name, of)| if name == IMAGE { 0 } else { value(of) }).sum()
        };
        let mut tokens = 0_u64;
        for message in request.body.messages() {
            tokens += per_message;
            for (name, of) in json::members(message.raw()) {
                tokens += match of.first() {
                    Some(b'[') if name == CONTENT => json::items(of).map(part).sum(),
                    _ => value(of),
                };
            }
        }
        for member in ["tools", "functions", "response_format"] {
            tokens += request.body.raw(member).map_or(0, raw);
        }
        tokens
    }

    /// Whether it is a model of OpenAI's, by its name alone: whoever serves it, its tokenizer is the same.
    pub(crate) fn is_openais(model: &ModelName) -> bool {
        let model = name(model);
        let numbered = |name: &str| name.starts_with(|first: char| first.is_ascii_digit());
        ["gpt-", "chatgpt-"].iter().any(|family| model.starts_with(family))
            || model.strip_prefix('o').is_some_and(numbered)
    }

    fn name(model: &ModelName) -> &str {
        model.rsplit('/').next().unwrap_or_default()
    }

    const CONTENT: &[u8] = br#""content""#;
    const IMAGE: &[u8] = br#""image_url""#;
}
