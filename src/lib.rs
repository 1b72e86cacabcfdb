//! Composable Tower layers for calls to language models.

mod answer;
pub mod body;
mod chat;
mod context;
mod error;
pub mod http;
mod json;
mod model;
mod progress;
pub mod provider;
mod request;

pub use self::{
    answer::{
        Certainty, ChoiceFinish, Completion, FinishReason, LlmResponse, ResponseBody, StreamChunk, TokenUsage,
    },
    body::{ChunkStream, End, Observe, Watch},
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
