use super::Completion;
use crate::{
    Attempt, ChunkStream, End, ModelName, Observe,
    body::Summary,
    cache::{BypassReason, MissReason},
    decision::Decisions,
    providers::Chosen,
    quota::Headroom,
};
use std::{sync::Arc, time::Duration};

/// What a provider, or any layer in front of it, answers with.
///
/// ```
/// use llm_layers::{Completion, LlmResponse, ResponseBody, TokenUsage};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), llm_layers::Error> {
/// // As a leaf makes it; one that streams gives a `ChunkStream` in place of the completion.
/// let mut answer = LlmResponse::new("acme/one", Completion::text("Hello!", TokenUsage::new(9, 2)));
/// answer.provider = Some("acme".into());
///
/// // For whom the shape matters:
/// match &answer.body {
///     ResponseBody::Complete(completion) => assert_eq!(completion.usage(), Some(&TokenUsage::new(9, 2))),
///     ResponseBody::Stream(_) => unreachable!("nobody has asked for one"),
/// }
/// // For everybody else:
/// assert_eq!(answer.text().await?, "Hello!");
/// # Ok(())
/// # }
/// ```
// Of 200 bytes and more: layers look at it where it lies, in what they have polled.
#[derive(Debug)]
#[non_exhaustive]
pub struct LlmResponse {
    /// The model that answered, by the name that reached the innermost service; with its provider above
    /// [`Providers`](crate::providers::Providers).
    pub model: ModelName,
    /// The provider that answered, where several are registered.
    pub provider: Option<Arc<str>>,
    /// The id that the provider gave the request, from its headers.
    pub provider_request_id: Option<Arc<str>>,
    /// What a cache had to do with it.
    pub cache: CacheStatus,
    /// Why a cache had no answer, if it was asked.
    pub cache_miss: Option<MissReason>,
    /// Whether it is a cache's answer to a similar question.
    pub is_similar: bool,
    /// How much is left of the tightest limit of the caller's departments, this call's reservation deducted.
    pub quota: Option<Headroom>,
    /// The attempts that failed before this answer.
    pub attempts: Vec<Attempt>,
    /// What the layers have noted on the way, if the request keeps its decisions.
    pub decisions: Decisions,
    /// The answer.
    pub body: ResponseBody,
    /// Anything that a layer of yours wants to hand up.
    pub extensions: http::Extensions,
    /// The deployment that it is of, if there are others: here too of a stream, for layers put others around it.
    pub(crate) chosen: Option<Chosen>,
}

/// What a cache had to do with an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheStatus {
    /// Nothing.
    #[default]
    Unused,
    /// It is from a cache, and cost nothing.
    Hit {
        /// How old it is.
        age: Duration,
    },
    /// It was not in the cache, and a provider was asked.
    Miss,
    /// The cache was not asked, and does not keep it.
    Bypass(BypassReason),
    /// Another call had asked for it, and paid.
    Coalesced,
}

impl CacheStatus {
    /// Whether nobody was asked for this answer.
    pub const fn is_hit(self) -> bool {
        matches!(self, Self::Hit { .. } | Self::Coalesced)
    }

    /// A name of few letters, for columns and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Hit { .. } => "hit",
            Self::Miss => "miss",
            Self::Bypass(_) => "bypass",
            Self::Coalesced => "coalesced",
        }
    }
}

/// A whole answer, or one that is still being produced.
#[derive(Debug)]
pub enum ResponseBody {
    /// Everything is here.
    Complete(Completion),
    /// Chunks are on their way.
    Stream(ChunkStream),
}

impl LlmResponse {
    /// An answer of `model`.
    pub fn new(model: impl Into<ModelName>, body: impl Into<ResponseBody>) -> Self {
        Self {
            model: model.into(),
            provider: None,
            provider_request_id: None,
            cache: CacheStatus::default(),
            cache_miss: None,
            is_similar: false,
            quota: None,
            attempts: Vec::new(),
            decisions: Decisions::default(),
            body: body.into(),
            extensions: http::Extensions::new(),
            chosen: None,
        }
    }

    /// Says which deployment it is of, and so which one has failed if it says nothing.
    pub(crate) fn set_chosen(&mut self, chosen: Chosen) {
        if let ResponseBody::Stream(chunks) = &mut self.body {
            chunks.set_chosen(chosen.clone());
        }
        self.chosen = Some(chosen);
    }

    /// Lets `observer` see how this answer ends: at once if it is whole; when the stream ends, fails or is
    /// dropped otherwise.
    #[must_use]
    pub fn observe(mut self, observer: impl Observe) -> Self {
        self.add_observer(observer);
        self
    }

    /// As [`observe`](Self::observe), in its place: an answer is large, and not moved for nothing.
    #[inline]
    pub(crate) fn add_observer(&mut self, observer: impl Observe) {
        match &mut self.body {
            ResponseBody::Complete(completion) => observer.on_end(End::Whole(completion)),
            ResponseBody::Stream(chunks) => chunks.observe(observer),
        }
    }

    /// Reads the answer to its end, whichever shape it has.
    ///
    /// # Errors
    ///
    /// Those of the stream.
    pub async fn text(self) -> Result<String, crate::Error> {
        match self.body {
            ResponseBody::Complete(completion) => Ok(completion.content().into_owned()),
            ResponseBody::Stream(mut chunks) => {
                let mut text = String::new();
                while let Some(chunk) = chunks.next().await {
                    text.push_str(&chunk?.content());
                }
                Ok(text)
            }
        }
    }

    /// What is known of a stream so far.
    pub fn summary(&self) -> Option<&Summary> {
        match &self.body {
            ResponseBody::Complete(_) => None,
            ResponseBody::Stream(chunks) => Some(chunks.summary()),
        }
    }
}

impl From<Completion> for ResponseBody {
    fn from(completion: Completion) -> Self {
        Self::Complete(completion)
    }
}

impl From<ChunkStream> for ResponseBody {
    fn from(chunks: ChunkStream) -> Self {
        Self::Stream(chunks)
    }
}
