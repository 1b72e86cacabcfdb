//! What a call used up.

use super::dialect::Wire;
use crate::TokenUsage;
use ::genai::chat::Usage;
use serde_json::Value;

/// Where a provider says what it bills besides what its model was given, that is meant.
pub(super) fn billed(mut usage: Usage, billed: Option<TokenUsage>) -> Usage {
    if let Some(billed) = billed {
        let count = |tokens: Option<u64>| tokens.and_then(|tokens| i32::try_from(tokens).ok());
        usage.prompt_tokens = count(billed.input_tokens);
        usage.completion_tokens = count(billed.output_tokens);
        usage.total_tokens = None;
    }
    usage
}

/// In OpenAI's spelling, cached tokens among the input and thoughts among the output; what is not known is left out.
pub(super) fn json(wire: Wire, usage: &Usage, says_something: bool) -> Option<Value> {
    // genai has 0 where nothing was said, too; no prompt is that short, and no answer that says something.
    let some = |count: Option<i32>| count.filter(|count| *count > 0).map(i64::from);
    let details = usage.prompt_tokens_details.as_ref();
    let (read, written) =
        (some(details.and_then(|d| d.cached_tokens)), some(details.and_then(|d| d.cache_creation_tokens)));
    let hour = details.and_then(|d| some(d.cache_creation_details.as_ref()?.ephemeral_1h_tokens));
    let heard = some(details.and_then(|d| d.audio_tokens));
    let out = usage.completion_tokens_details.as_ref();
    let (thoughts, spoken) =
        (some(out.and_then(|d| d.reasoning_tokens)), some(out.and_then(|d| d.audio_tokens)));

    let mut input = some(usage.prompt_tokens);
    if wire == Wire::Bedrock {
        // Counted apart there, and not added by genai.
        let cached = read.unwrap_or(0) + written.unwrap_or(0);
        input = input.map(|input| input + cached).or_else(|| (cached > 0).then_some(cached));
    }
    let mut output = some(usage.completion_tokens);
    if output.is_none() {
        let rest = some(usage.total_tokens).zip(input).map(|(total, input)| total - input);
        // Where there is nothing but thoughts, genai counts no output.
        output = thoughts.max(rest.filter(|rest| *rest > 0));
    }
    if output.is_none() && !says_something && input.is_some() {
        output = Some(0);
    }

    let mut json = serde_json::Map::new();
    let mut set = |name: &str, value: Option<Value>| json.extend(value.map(|value| (name.to_owned(), value)));
    set("prompt_tokens", input.map(Value::from));
    set("completion_tokens", output.map(Value::from));
    set("total_tokens", input.zip(output).map(|(input, output)| (input + output).into()));
    let counts = |counts: &[(&str, Option<i64>)]| {
        let known = counts.iter().filter_map(|(name, count)| Some(((*name).to_owned(), (*count)?.into())));
        Some(known.collect::<serde_json::Map<_, _>>()).filter(|known| !known.is_empty()).map(Value::Object)
    };
    let read = read.or(written.map(|_| 0));
    set(
        "prompt_tokens_details",
        counts(&[("cached_tokens", read), ("cache_write_tokens", written), ("audio_tokens", heard)]),
    );
    set("cache_creation", counts(&[("ephemeral_1h_input_tokens", hour)]));
    set("completion_tokens_details", counts(&[("reasoning_tokens", thoughts), ("audio_tokens", spoken)]));
    (input.is_some() || output.is_some()).then_some(Value::Object(json))
}
