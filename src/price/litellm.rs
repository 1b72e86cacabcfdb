//! LiteLLM's `model_prices_and_context_window.json`.
//!
//! An object with a member for each model. Prices are numbers of dollars per token; a price's name is a class of
//! tokens, and perhaps `_above_200k_tokens` and a service tier. Some entries have ranges of lengths instead, each with
//! prices of its own. Nothing goes through a float: numbers are read as the text that they are.

use super::{
    book::Entries,
    cost::{Price, ServiceTier},
    decimal::scaled,
    error::{PriceErrorKind, PriceProblem, PriceReason},
    rate::{Rate, Rates, TokenClass},
    search::SearchPrice,
};
use crate::json;
use serde_json::value::RawValue;
use std::sync::Arc;

/// The entry that explains the format.
const SAMPLE: &str = "sample_spec";

pub(super) fn read(bytes: &[u8]) -> Result<(Entries, Vec<PriceProblem>), PriceErrorKind> {
    let syntax = |error: serde_json::Error| PriceErrorKind::Syntax {
        line: error.line().max(1),
        message: error.to_string().into(),
    };
    // Once and for all: what is walked over below is JSON.
    let whole: &RawValue = serde_json::from_slice(bytes).map_err(syntax)?;
    let (mut entries, mut skipped, mut priced) = (Entries::new(), Vec::new(), 0);
    let mut lines = Lines { bytes, seen: 0, line: 1 };
    for (name, value) in json::members(whole.get().as_bytes()) {
        let Some(name) = json::string(name) else { continue };
        let mut skip = |(member, reason): Problem| {
            let line = Some(lines.of(value));
            skipped.push(PriceProblem { entry: (*name).into(), member, line, reason });
        };
        if name == SAMPLE {
            skip((None, PriceReason::Example));
            continue;
        }
        // As for any JSON parser, the last one of a name stands, even over one that was better.
        let price = entry(&name, value).map(Arc::new).map_err(&mut skip).ok();
        priced += usize::from(price.is_some());
        if let Some(former) = entries.insert(Arc::from(&*name), price) {
            priced -= usize::from(former.is_some());
            skip((None, PriceReason::Duplicate));
        }
    }
    if priced == 0 { Err(PriceErrorKind::NoPrices) } else { Ok((entries, skipped)) }
}

/// The member at fault, and what is wrong.
type Problem = (Option<Box<str>>, PriceReason);

fn entry(model: &str, value: &[u8]) -> Result<Price, Problem> {
    if value.first() != Some(&b'{') {
        return Err((None, PriceReason::Mistyped { expected: "an object" }));
    }
    let provider = json::member(value, "litellm_provider").and_then(json::string).unwrap_or_default();
    let mut price = Price::new(Rates::new());
    let (mut priced, mut is_free, mut is_paid_otherwise) = (false, true, false);
    let mut ranges = None;
    for (name, value) in json::members(value) {
        let Some(name) = json::string(name) else { continue };
        if name == "tiered_pricing" {
            if ranges.replace(value).is_some() {
                return Err((Some(name.into()), PriceReason::Duplicate));
            }
            continue;
        }
        if name == "search_context_cost_per_query" {
            price.search = searches(value).map_err(|reason| (Some((*name).into()), reason))?;
            is_free &= price.search.is_none();
            continue;
        }
        let Some(Member { class, tier, above }) = Member::of(&name) else {
            is_paid_otherwise |=
                name.contains("_cost") && rate(value).is_ok_and(|rate| rate > Some(Rate::FREE));
            continue;
        };
        let Some(rate) = rate(value).map_err(|reason| (Some((*name).into()), reason))? else { continue };
        is_free &= rate == Rate::FREE;
        let is_of_text = !class.is_of_media();
        // xAI bills the higher price from the threshold on, which LiteLLM knows in its code.
        let above = above.map(|above| if provider == "xai" { above.saturating_sub(1) } else { above });
        if price.step(above, tier).get_mut(class).replace(rate).is_some() {
            return Err((Some(name.into()), PriceReason::Duplicate));
        }
        priced |= is_of_text;
    }
    if let Some(ranges) = ranges {
        priced |= by_range(&mut price, ranges).map_err(|reason| (Some("tiered_pricing".into()), reason))?;
    }
    // By the image, the query or the second: what such a call costs is not told by its tokens.
    if !priced || (is_free && is_paid_otherwise && ranges.is_none()) {
        return Err((None, PriceReason::NoTokenPrice));
    }
    let base = price.step(None, ServiceTier::Standard);
    if provider == "fireworks_ai" && base.cache_read.is_none() {
        // Fireworks' own rule; it too is in LiteLLM's code and not in the list.
        base.cache_read = base.input.map(Rate::half);
    }
    if let Some(search) = &mut price.search {
        search.is_always = always_searches(&provider, model);
    }
    Ok(price)
}

/// What a search costs by how much it brings. Of sizes that are not told, the dearest that is.
fn searches(value: &[u8]) -> Result<Option<SearchPrice>, PriceReason> {
    if value.first() != Some(&b'{') {
        return Ok(rate(value)?.map(SearchPrice::each));
    }
    let size = |name: &str| json::member(value, name).map_or(Ok(None), rate);
    let low = size("search_context_size_low")?;
    let medium = size("search_context_size_medium")?;
    let high = size("search_context_size_high")?;
    Ok(low.max(medium).max(high).map(|dearest| SearchPrice {
        low: low.unwrap_or(dearest),
        medium: medium.unwrap_or(dearest),
        high: high.unwrap_or(dearest),
        is_always: false,
    }))
}

/// Perplexity's models, and those of OpenAI's that are for it, search whatever they are asked.
fn always_searches(provider: &str, model: &str) -> bool {
    match provider {
        "perplexity" => true,
        "openai" | "azure" => model.contains("-search-"),
        _ => false,
    }
}

/// What the name of a price says.
struct Member {
    class: TokenClass,
    tier: ServiceTier,
    above: Option<u64>,
}

impl Member {
    /// `None` for what is no price of tokens that are counted here: films, seconds, tiers unheard of.
    fn of(name: &str) -> Option<Self> {
        const CLASSES: [(&str, TokenClass); 11] = [
            ("input_cost_per_token", TokenClass::Input),
            ("output_cost_per_token", TokenClass::Output),
            ("output_cost_per_reasoning_token", TokenClass::Reasoning),
            ("cache_read_input_token_cost", TokenClass::CacheRead),
            ("cache_creation_input_token_cost", TokenClass::CacheWrite),
            ("input_cost_per_request", TokenClass::Request),
            ("input_cost_per_audio_token", TokenClass::InputAudio),
            ("input_cost_per_image_token", TokenClass::InputImage),
            ("cache_read_input_audio_token_cost", TokenClass::CacheReadAudio),
            ("output_cost_per_audio_token", TokenClass::OutputAudio),
            ("output_cost_per_image_token", TokenClass::OutputImage),
        ];
        let (mut rest, class) =
            CLASSES.iter().find_map(|(prefix, class)| Some((name.strip_prefix(prefix)?, *class)))?;
        let mut member = Self { class, tier: ServiceTier::Standard, above: None };
        // `_above_200k_tokens` and `_priority` come in either order.
        while !rest.is_empty() {
            rest = rest.strip_prefix('_')?;
            if let Some(after) = rest.strip_prefix("above_") {
                if let (TokenClass::CacheWrite, Some(after)) = (member.class, after.strip_prefix("1hr")) {
                    member.class = TokenClass::CacheWrite1h;
                    rest = after;
                    continue;
                }
                let (threshold, after) = after.split_once("_tokens")?;
                let (number, unit) =
                    threshold.strip_suffix('k').map_or((threshold, 1), |number| (number, 1000));
                member.above = Some(number.parse::<u64>().ok()?.checked_mul(unit)?);
                rest = after;
            } else {
                let end = rest.find('_').unwrap_or(rest.len());
                member.tier = ServiceTier::from_name(&rest[..end])?;
                rest = &rest[end..];
            }
        }
        Some(member)
    }
}

/// A price, as a number or as the text of one; null is none.
fn rate(value: &[u8]) -> Result<Option<Rate>, PriceReason> {
    let text = match value.first() {
        Some(b'n') => return Ok(None),
        Some(b'"') => json::string(value),
        Some(b'-' | b'0'..=b'9') => std::str::from_utf8(value).ok().map(Into::into),
        _ => None,
    };
    let text = text.ok_or(PriceReason::Mistyped { expected: "a number" })?;
    Rate::each(&text).map(Some).map_err(PriceReason::Amount)
}

/// Prices by ranges of lengths, `from < tokens <= to`. Longer prompts than any are priced as the longest.
fn by_range(price: &mut Price, ranges: &[u8]) -> Result<bool, PriceReason> {
    let flat = *price.step(None, ServiceTier::Standard);
    let mut steps = Vec::new();
    for item in json::items(ranges) {
        let mut rates = Rates::new();
        for (name, value) in json::members(item) {
            let Some(name) = json::string(name) else { continue };
            let Some(Member { class, tier: ServiceTier::Standard, above: None }) = Member::of(&name) else {
                continue;
            };
            *rates.get_mut(class) = rate(value)?.or(*rates.get_mut(class));
        }
        if rates.input.is_none() {
            continue;
        }
        if rates.output.is_none() {
            (rates.output, rates.reasoning) = (flat.output, rates.reasoning.or(flat.reasoning));
        }
        // A range stands for itself: nothing of the one before it goes on.
        rates = Rates {
            reasoning: rates.reasoning,
            request: rates.request.or(flat.request),
            input_audio: rates.input_audio.or(flat.input_audio),
            input_image: rates.input_image.or(flat.input_image),
            cache_read_audio: rates.cache_read_audio.or(flat.cache_read_audio),
            output_audio: rates.output_audio.or(flat.output_audio),
            output_image: rates.output_image.or(flat.output_image),
            ..rates.completed()
        };
        let bounds = json::member(item, "range").ok_or(PriceReason::Missing)?;
        let mut bounds = json::items(bounds).map(tokens);
        let (Some(from), Some(to), None) = (bounds.next(), bounds.next(), bounds.next()) else {
            return Err(PriceReason::Ranges);
        };
        steps.push((from?, to?, rates));
    }
    steps.sort_by_key(|(from, ..)| *from);
    let mut end = 0;
    for (from, to, rates) in &steps {
        if *from != end || to <= from {
            return Err(PriceReason::Ranges);
        }
        end = *to;
        *price.step((*from > 0).then_some(*from), ServiceTier::Standard) = *rates;
    }
    Ok(!steps.is_empty())
}

/// A whole number, however it is spelt: `256000.0`.
fn tokens(value: &[u8]) -> Result<u64, PriceReason> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let number = scaled(text, 0).map_err(PriceReason::Amount)?;
    u64::try_from(number).map_err(|_| PriceReason::Ranges)
}

/// Finds lines in one pass, for slices that come in order.
struct Lines<'a> {
    bytes: &'a [u8],
    seen: usize,
    line: usize,
}

impl Lines<'_> {
    fn of(&mut self, slice: &[u8]) -> usize {
        let at = (slice.as_ptr() as usize).saturating_sub(self.bytes.as_ptr() as usize).min(self.bytes.len());
        if let Some(between) = self.bytes.get(self.seen..at) {
            self.line += memchr::memchr_iter(b'\n', between).count();
            self.seen = at;
        }
        self.line
    }
}
