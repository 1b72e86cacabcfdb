//! What comes back: a head that is known at once, and a body that may still be coming.

mod build;
mod calls;
mod chunk;
mod completion;
mod facts;
mod response;
#[cfg(feature = "openai")]
mod template;
mod tokens;

#[cfg(feature = "openai")]
pub(crate) use self::template::ChunkReader;
pub(crate) use self::{
    calls::Calls,
    facts::{Facts, first_choices},
};
pub use self::{
    chunk::StreamChunk,
    completion::Completion,
    facts::{ChoiceFinish, FinishReason},
    response::{CacheStatus, LlmResponse, ResponseBody},
    tokens::{Certainty, TokenUsage},
};
