//! Composable Tower layers for calls to language models.

pub mod alias;
mod answer;
pub mod body;
mod builder;
mod chat;
pub mod concurrency;
mod context;
mod error;
pub mod fallback;
pub mod http;
mod json;
mod model;
pub mod peek;
mod progress;
pub mod providers;
mod request;
#[cfg(feature = "testing")]
pub mod testing;
pub mod timeout;

pub use self::{
    answer::{
        Certainty, ChoiceFinish, Completion, FinishReason, LlmResponse, ResponseBody, StreamChunk, TokenUsage,
    },
    body::{ChunkStream, End, Observe, Watch},
    builder::ServiceBuilderExt,
    chat::{BodyLimits, ChatBody, ChatBodyBuilder, Message, MessageRef, Part, Tool, ToolCall},
    context::{KbScope, RequestContext},
    error::{
        Attempt, BoxError, Error, ErrorClass, ErrorKind, InvalidReason, Period, ProviderFailure,
        QuotaExceeded, QuotaKind, TimeoutPhase,
    },
    model::ModelName,
    progress::Progress,
    request::{LlmRequest, Operation},
};
