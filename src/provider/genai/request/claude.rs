//! How much Claude is told to think, by what Anthropic documents of its models.

use super::{params::Params, unsupported};
use crate::Error;
use ::genai::chat::ReasoningEffort;
use serde_json::{Value, json};

/// What a model may be told of thinking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thinking {
    /// Tokens, or an effort without thoughts.
    Older,
    /// An effort, or not to think.
    Adaptive,
    /// An effort, or to think between calls of tools only.
    BetweenTools,
    /// An effort: it thinks whatever it is told.
    Always,
}

/// The effort for genai to write, and `thinking` where that is nothing that genai writes.
pub(super) fn told(
    model: &str,
    params: &Params,
    calls_unsigned: bool,
) -> Result<(Option<ReasoningEffort>, Option<Value>), Error> {
    let thinking = Thinking::of(model);
    if thinking != Thinking::Older {
        return Ok(match (thinking, &params.effort) {
            // As little as it can.
            (Thinking::Always, Some(ReasoningEffort::Zero)) => (Some(ReasoningEffort::Low), None),
            (Thinking::BetweenTools, Some(ReasoningEffort::Zero)) => {
                (None, Some(json!({ "type": "between_tools" })))
            }
            (_, effort) => (effort.clone(), None),
        });
    }
    let effort = match thinks_by_budget(model) {
        true => by_budget(params, calls_unsigned)?,
        false => {
            params.effort.clone().map(|effort| if calls_unsigned { ReasoningEffort::Zero } else { effort })
        }
    };
    Ok((effort, None))
}

/// Where the effort is told as a number of tokens: then calls without the thoughts before them are refused, which few
/// clients send back, so that it is not asked to think on.
pub(super) fn by_budget(params: &Params, calls_unsigned: bool) -> Result<Option<ReasoningEffort>, Error> {
    match params.effort.clone() {
        Some(_) if calls_unsigned => Ok(Some(ReasoningEffort::Zero)),
        effort => effort.map(|effort| within(effort, params.max_tokens)).transpose(),
    }
}

impl Thinking {
    fn of(model: &str) -> Self {
        let Some((_, name)) = model.rsplit_once("claude-") else { return Self::Older };
        let mut parts = name.split(['-', '.', '@', ':']);
        let family = parts.next().unwrap_or_default();
        let mut number = || {
            let digits = parts.next().filter(|digits| (1..=2).contains(&digits.len()));
            digits.and_then(|digits| digits.parse::<u8>().ok())
        };
        let version = number().map(|major| (major, number().unwrap_or(0)));
        match (family, version) {
            ("fable" | "mythos", _) | ("opus", Some((5, 5..) | (6.., _))) => Self::Always,
            ("sonnet", Some((5, 5..) | (6.., _))) => Self::BetweenTools,
            ("opus" | "sonnet", Some((4, 6..) | (5.., _))) | ("haiku", Some((5.., _))) => Self::Adaptive,
            _ => Self::Older,
        }
    }
}

/// Those that came before efforts: genai tells them how many tokens they may think.
fn thinks_by_budget(model: &str) -> bool {
    const MODELS: [&str; 8] = [
        "claude-3-",
        "claude-haiku-4",
        "claude-opus-4-0",
        "claude-opus-4-1",
        "claude-opus-4-2025",
        "claude-sonnet-4-0",
        "claude-sonnet-4-2025",
        "claude-sonnet-4-5",
    ];
    MODELS.iter().any(|older| model.starts_with(older))
}

/// An effort whose budget, as genai has it, leaves room for an answer: thoughts count towards its bound, and one that is
/// not above them is refused.
fn within(effort: ReasoningEffort, bound: Option<u32>) -> Result<ReasoningEffort, Error> {
    const LEAST: u32 = 1_024;
    let budget = match effort {
        ReasoningEffort::Zero => return Ok(effort),
        ReasoningEffort::Budget(budget) => budget,
        ReasoningEffort::Minimal | ReasoningEffort::Low => LEAST,
        ReasoningEffort::Medium => 8_000,
        ReasoningEffort::High | ReasoningEffort::XHigh | ReasoningEffort::Max => 24_000,
    };
    match bound {
        Some(bound) if bound <= LEAST => Err(unsupported("reasoning_effort")),
        Some(bound) if bound <= budget => Ok(ReasoningEffort::Budget((bound / 2).max(LEAST))),
        _ => Ok(effort),
    }
}
