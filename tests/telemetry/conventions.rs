//! The conventions as a table: each key with its type and how much it is asked for. What weaver checks in a live run:
//! unknown keys, deprecated keys, wrong types, missing required ones.

use crate::seen::{Attr, Seen};
use llm_layers::telemetry::SemConv;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Type {
    Str,
    Int,
    Double,
    Bool,
    Strs,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Level {
    Required,
    /// Where it applies.
    Conditional,
    Recommended,
    OptIn,
}

use Level::{Conditional, OptIn, Recommended, Required};
use SemConv::{Latest, V1_41};
use Type::{Bool, Double, Int, Str, Strs};

/// The client's span. A version where there is only one that has it so.
pub(crate) const CLIENT: &[(&str, Type, Level, Option<SemConv>)] = &[
    ("gen_ai.operation.name", Str, Required, None),
    ("gen_ai.provider.name", Str, Required, None),
    ("gen_ai.request.model", Str, Conditional, None),
    ("server.address", Str, Recommended, None),
    ("server.port", Int, Conditional, None),
    ("gen_ai.request.stream", Bool, Conditional, None),
    ("gen_ai.request.choice.count", Int, Conditional, None),
    ("gen_ai.request.seed", Int, Conditional, None),
    ("gen_ai.request.top_k", Double, Conditional, Some(V1_41)),
    ("gen_ai.request.top_k", Int, Conditional, Some(Latest)),
    ("gen_ai.request.temperature", Double, Recommended, None),
    ("gen_ai.request.top_p", Double, Recommended, None),
    ("gen_ai.request.frequency_penalty", Double, Recommended, None),
    ("gen_ai.request.presence_penalty", Double, Recommended, None),
    ("gen_ai.request.max_tokens", Int, Recommended, None),
    ("gen_ai.request.stop_sequences", Strs, Recommended, None),
    ("gen_ai.request.reasoning.level", Str, Recommended, Some(Latest)),
    ("gen_ai.output.type", Str, Conditional, None),
    ("gen_ai.conversation.id", Str, Conditional, None),
    ("gen_ai.response.id", Str, Recommended, None),
    ("gen_ai.response.model", Str, Recommended, None),
    ("gen_ai.response.finish_reasons", Strs, Recommended, None),
    ("gen_ai.response.time_to_first_chunk", Double, Recommended, None),
    ("gen_ai.usage.input_tokens", Int, Recommended, None),
    ("gen_ai.usage.output_tokens", Int, Recommended, None),
    ("gen_ai.usage.cache_read.input_tokens", Int, Recommended, None),
    ("gen_ai.usage.cache_creation.input_tokens", Int, Recommended, Some(V1_41)),
    ("gen_ai.usage.cache_write.input_tokens", Int, Recommended, Some(Latest)),
    ("gen_ai.usage.reasoning.output_tokens", Int, Recommended, None),
    ("error.type", Str, Conditional, None),
    ("gen_ai.system_instructions", Str, OptIn, None),
    ("gen_ai.input.messages", Str, OptIn, None),
    ("gen_ai.output.messages", Str, OptIn, None),
    ("gen_ai.tool.definitions", Str, OptIn, None),
    ("llm_layers.requested_model", Str, Recommended, None),
    ("llm_layers.fallback.attempt", Int, Recommended, None),
];

/// The gateway's span: nothing of `gen_ai`.
pub(crate) const GATEWAY: &[(&str, Type, Level, Option<SemConv>)] = &[
    ("error.type", Str, Conditional, None),
    ("llm_layers.requested_model", Str, Required, None),
    ("llm_layers.model", Str, Conditional, None),
    ("llm_layers.attempts", Int, Required, None),
    ("llm_layers.cache.hit", Bool, Conditional, None),
    ("llm_layers.department.id", Strs, OptIn, None),
];

/// `error.type` is one of these, or an HTTP status.
pub(crate) const ERROR_TYPES: &[&str] = &[
    "timeout",
    "connect",
    "decode",
    "empty_response",
    "quota_exceeded",
    "model_not_allowed",
    "usage_store_unavailable",
    "cancelled",
    "rate_limit_exceeded",
    "context_length_exceeded",
    "content_filter",
    "_OTHER",
];

/// Everything that a registry's checker would find.
pub(crate) fn check(span: &Seen, semconv: SemConv, has_lists: bool, opted_in: bool) {
    let table = if span.kind == "client" { CLIENT } else { GATEWAY };
    let table = || table.iter().filter(|(.., only)| only.is_none_or(|only| only == semconv));
    for (name, value) in &span.attributes {
        let Some((_, kind, level, _)) = table().find(|(known, ..)| known == name) else {
            panic!("{name} is unknown to {semconv:?}, in {span:#?}");
        };
        let found = match value {
            Attr::Str(_) => Str,
            Attr::Int(_) => Int,
            Attr::Double(_) => Double,
            Attr::Bool(_) => Bool,
            Attr::Strs(_) => Strs,
        };
        let expected = if *kind == Strs && !has_lists { Str } else { *kind };
        assert_eq!(found, expected, "the type of {name}");
        assert!(*level != OptIn || opted_in, "nobody has asked for {name}");
    }
    for (name, ..) in table().filter(|(_, _, level, _)| *level == Required) {
        assert!(span.attributes.contains_key(*name), "{name} is required, in {span:#?}");
    }
    let error_type = span.text("error.type");
    assert_eq!(error_type.is_some(), span.error.is_some(), "status and error.type go together");
    if let Some(error_type) = error_type {
        let is_status = error_type.len() == 3 && error_type.parse::<u16>().is_ok();
        assert!(is_status || ERROR_TYPES.contains(&error_type), "{error_type} is not on the list");
        let description = span.error.as_deref().unwrap();
        assert!(!is_status || !description.contains(error_type), "the description repeats the status");
        assert_eq!(description.is_empty(), error_type == "cancelled");
    }
    if span.kind == "client" {
        let model = span.text("gen_ai.request.model").unwrap();
        assert_eq!(span.name, format!("{} {model}", span.text("gen_ai.operation.name").unwrap()));
        assert!(!model.starts_with("openai/"), "the provider is not part of {model}");
        assert_eq!(span.get("server.address").is_some(), span.get("server.port").is_some());
        assert_ne!(span.get("gen_ai.request.stream"), Some(&Attr::Bool(false)), "absent unless true");
        assert_ne!(span.get("gen_ai.request.choice.count"), Some(&Attr::Int(1)), "absent if 1");
    }
}
