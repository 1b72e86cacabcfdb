//! What models cost, and what a call cost.
//!
//! Money is an integer, [`NanoUsd`]; prices are integers too, read from decimal text as it is written. A cost is the sum
//! over all kinds of tokens of number times rate, exactly, and rounded up once. Three things are easy to get wrong:
//!
//! - A model without a price is *unpriced*, `None`, and never costs 0. A price of 0 is a price.
//! - [`TokenUsage::input_tokens`](crate::TokenUsage::input_tokens) includes what came from the provider's cache, and
//!   `output_tokens` includes reasoning: each token is charged once, as what it is.
//! - Above a threshold *all* tokens of a call cost more, those of the answer too.
//! - Audio and images may cost ten times what text costs. Where a price has rates for them, they are charged for what the
//!   provider's report says they are. Where it does not tell them apart, and the request brought audio or images or may be
//!   answered by them (its `modalities` do not say otherwise), all that may be such is charged as the dearest that it may
//!   be, and the usage is [`Estimated`](crate::Certainty::Estimated). Quotas reserve by the same rule.
//! - A search of the web may cost ten times what the tokens do. Where a price knows what one costs, as many are charged as
//!   the provider reports, or else one if the request asks for any (`web_search_options`, or a tool of the provider's) or
//!   the model always searches, by the `search_context_size` that was asked for, or else the dearest. If their number or
//!   size is not known, the usage is `Estimated`. Quotas reserve one, and charge those beyond it when the call has ended.
//!
//! Never call a cost exact: catalogues disagree, and providers change their minds. Each [`Cost`] says where its price
//! is from.
//!
//! ```
//! use llm_layers::{TokenUsage, price::{Price, PriceBook, Prices, Rate, Rates}};
//!
//! let sonnet = Rates::per_million("3", "15")?
//!     .with_cache_read(Rate::per_million("0.30")?)
//!     .with_cache_write(Rate::per_million("3.75")?);
//! let prices = Prices::new(PriceBook::of("price sheet", [("anthropic/claude-sonnet-4-5", Price::new(sonnet))])?);
//!
//! let usage = TokenUsage::new(10_000, 500).with_cache_read_tokens(8_000);
//! let cost = prices.cost("anthropic/claude-sonnet-4-5", &usage);
//! assert_eq!(cost.amount.ok_or("unpriced")?.to_string(), "0.0159");
//! assert_eq!(&*cost.origin.ok_or("unpriced")?.source, "price sheet");
//! assert_eq!(prices.cost("anthropic/claude-opus-9", &usage).amount, None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Catalogues
//!
//! [`PriceBook::from_litellm`] reads LiteLLM's catalogue, whose bytes you bring; nothing is compiled in. A model's name there
//! is `provider/model` for most providers, and just `model` for some: `gemini/gemini-2.5-pro` is AI Studio's, and
//! `gemini-2.5-pro` is Vertex's, which `vertex_ai/gemini-2.5-pro` finds because there is no such entry. What is left out:
//! prices by the image, second or character, searches of maps and files, tokens of films (they cost what text costs), prices at night
//! (they cost what they do by day), surcharges of a region, and the service tiers that are not in [`ServiceTier`].
#![cfg_attr(feature = "toml", doc = "")]
#![cfg_attr(feature = "toml", doc = include_str!("own.md"))]

mod book;
mod cost;
mod decimal;
mod error;
mod litellm;
mod money;
#[cfg(feature = "toml")]
mod own;
mod rate;
mod search;
mod terms;

pub use self::{
    book::{Cost, PriceBook, PriceOrigin, Prices, Quote},
    cost::{CostError, Price, ServiceTier},
    decimal::{AmountError, AmountReason},
    error::{PriceError, PriceErrorKind, PriceProblem, PriceReason},
    money::NanoUsd,
    rate::{Rate, Rates, TokenClass},
};
pub(crate) use self::{
    search::Searches,
    terms::{Billed, Media, Terms, Tiers},
};
