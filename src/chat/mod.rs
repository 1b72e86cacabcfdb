//! The chat request: the caller's JSON, and a few known facts about it.

mod body;
mod builder;
mod message;

pub(crate) use self::body::{OUTPUT_MEMBERS, OVERRIDING_OUTPUT_MEMBER, Translated};
pub use self::{
    body::{Attached, BodyLimits, ChatBody},
    builder::ChatBodyBuilder,
    message::{Message, MessageRef, Part, Tool, ToolCall},
};
