//! What calls cost, against exact fractions and known points; and lists of prices, good and bad.

use llm_layers::{
    TokenUsage,
    price::{
        AmountReason, CostError, NanoUsd, Price, PriceBook, PriceErrorKind, PriceProblem, PriceReason,
        Prices, Rate, Rates, ServiceTier, TokenClass,
    },
};
use num_rational::BigRational;
use proptest::prelude::*;

fn usd(text: &str) -> NanoUsd {
    text.parse().unwrap()
}

fn million(input: &str, output: &str) -> Rates {
    Rates::per_million(input, output).unwrap()
}

// ===== amounts =====

#[test]
fn amounts_are_shown_as_they_are_read() {
    for text in ["0", "0.0035", "1", "9223372036.854775807", "0.000000001", "120.5"] {
        assert_eq!(usd(text).to_string(), text);
    }
    assert_eq!(usd("9223372036.854775807"), NanoUsd::MAX);
    assert_eq!(NanoUsd::new(i64::MIN).to_string(), "-9223372036.854775808");
    assert_eq!(format!("{:>10}|{:<8}|", usd("0.5"), NanoUsd::new(-1_500_000_000)), "       0.5|-1.5    |");
}

#[test]
fn an_amount_that_does_not_fit_is_refused_and_not_rounded() {
    let reason = |text: &str| text.parse::<NanoUsd>().unwrap_err().reason().clone();
    assert_eq!(reason("9223372036.854775808"), AmountReason::TooLarge);
    assert_eq!(reason("0.0000000001"), AmountReason::TooPrecise { places: 9 });
    assert_eq!(reason("-0.5"), AmountReason::Negative);
    assert_eq!(reason("NaN"), AmountReason::NotFinite);
    assert_eq!(reason("$1"), AmountReason::Currency { unit: "$".into() });
    let error = Rate::each("0.1e-27").unwrap_err();
    assert_eq!(error.reason(), &AmountReason::TooPrecise { places: 27 });
    assert_eq!(error.to_string(), r#""0.1e-27" has more than 27 decimal places"#);
}

proptest! {
    #[test]
    fn arithmetic_is_that_of_integers_or_none(a: i64, b: i64, times: u64) {
        let (x, y) = (NanoUsd::new(a), NanoUsd::new(b));
        let fits = |exact: i128| i64::try_from(exact).ok().map(NanoUsd::new);
        prop_assert_eq!(x.checked_add(y), fits(i128::from(a) + i128::from(b)));
        prop_assert_eq!(x.checked_sub(y), fits(i128::from(a) - i128::from(b)));
        prop_assert_eq!(x.checked_mul(times), fits(i128::from(a) * i128::from(times)));
        prop_assert_eq!(NanoUsd::checked_sum([x, y]), x.checked_add(y));
        if a >= 0 {
            prop_assert_eq!(x.to_string().parse(), Ok(x));
        }
    }
}

// ===== costs =====

/// A rate, by its text and as a fraction of a dollar.
#[derive(Debug, Clone)]
struct Written {
    rate: Rate,
    exact: BigRational,
}

fn fraction(text: &str) -> BigRational {
    text.parse().unwrap()
}

fn rate() -> impl Strategy<Value = Written> {
    let digits = prop_oneof![(0_u64..1000, 0_usize..18), (1_u64..1 << 53, 6_usize..21)];
    (digits, 0_usize..4).prop_map(|((digits, places), per)| {
        let text = format!("{digits}e-{places}");
        let (rate, million) = match per {
            0 => (Rate::each(&text), "1"),
            1 => (Rate::per_thousand(&text), "1000"),
            _ => (Rate::per_million(&text), "1000000"),
        };
        let exact = fraction(&digits.to_string()) / fraction(&format!("1{}", "0".repeat(places)));
        Written { rate: rate.unwrap(), exact: exact / fraction(million) }
    })
}

/// A step of a price: for which prompts and tier, and the rates that it has, in the order of the members of [`Rates`].
type Step = ((Option<u64>, ServiceTier), [Option<Written>; 12]);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = || proptest::option::weighted(0.7, rate());
    let rates = [(); 12].map(|()| some());
    let key = (
        proptest::option::of(prop_oneof![0_u64..4, Just(200_000_u64), 0_u64..400_000]),
        proptest::sample::select(&ServiceTier::ALL[..]),
    );
    proptest::collection::btree_map(key, rates, 0..5).prop_map(|steps| steps.into_iter().collect())
}

fn price(steps: &[Step]) -> Price {
    let mut price = Price::new(Rates::new());
    for ((above, tier), given) in steps {
        let mut rates = Rates::new();
        let rate = |class: usize| given[class].as_ref().map(|written| written.rate);
        rates.input = rate(0);
        rates.cache_read = rate(1);
        rates.cache_write = rate(2);
        rates.cache_write_1h = rate(3);
        rates.output = rate(4);
        rates.reasoning = rate(5);
        rates.request = rate(6);
        rates.input_audio = rate(7);
        rates.input_image = rate(8);
        rates.cache_read_audio = rate(9);
        rates.output_audio = rate(10);
        rates.output_image = rate(11);
        price = match (above, tier) {
            (Some(above), tier) => price.with_service_tier_above(*tier, *above, rates),
            (None, ServiceTier::Standard) => {
                // The base may be given by any of the ways there are.
                if price == Price::new(Rates::new()) {
                    Price::new(rates)
                } else {
                    price.with_service_tier(*tier, rates)
                }
            }
            (None, tier) => price.with_service_tier(*tier, rates),
        };
    }
    price
}

fn tokens() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0_u64), 1_u64..300, 199_999_u64..200_003, 0_u64..1 << 53, Just(u64::MAX)]
}

fn usage() -> impl Strategy<Value = TokenUsage> {
    let part = || proptest::option::of((0_u32..=100).prop_map(u128::from));
    let media = (part(), part(), part(), part());
    (tokens(), tokens(), part(), part(), part(), part(), media).prop_map(
        |(input, output, read, write, hour, thought, (heard, seen, spoken, drawn))| {
            let share = |whole: u64, part: u128| u64::try_from(u128::from(whole) * part / 100).unwrap();
            let mut usage = TokenUsage::new(input, output);
            usage.cache_read_tokens = read.map(|part| share(input, part));
            let rest = input - usage.cache_read_tokens.unwrap_or(0);
            usage.cache_write_tokens = write.map(|part| share(rest, part));
            let written = usage.cache_write_tokens;
            usage.cache_write_1h_tokens = hour.zip(written).map(|(part, written)| share(written, part));
            usage.reasoning_tokens = thought.map(|part| share(output, part));
            usage.input_audio_tokens = heard.map(|part| share(input, part));
            let rest = input - usage.input_audio_tokens.unwrap_or(0);
            usage.input_image_tokens = seen.map(|part| share(rest, part));
            let said = output - usage.reasoning_tokens.unwrap_or(0);
            usage.output_audio_tokens = spoken.map(|part| share(said, part));
            let rest = said - usage.output_audio_tokens.unwrap_or(0);
            usage.output_image_tokens = drawn.map(|part| share(rest, part));
            usage
        },
    )
}

/// The rules, from the other end: for each class the most particular step that names it.
fn exact_cost(steps: &[Step], tier: ServiceTier, usage: &TokenUsage) -> Option<BigRational> {
    let input = usage.input_tokens.unwrap();
    let applies = |((above, of), _): &&Step| {
        (*of == tier || *of == ServiceTier::Standard) && above.is_none_or(|above| input > above)
    };
    let mut applying: Vec<&Step> = steps.iter().filter(applies).collect();
    applying.sort_by_key(|((above, of), _)| (*above, *of != ServiceTier::Standard));
    applying.reverse();
    let named = |class: usize| applying.iter().find_map(|(_, rates)| rates[class].as_ref());
    let thought_or_said = applying.iter().find(|(_, rates)| rates[4].is_some() || rates[5].is_some());
    let [read, written, hour, thought] = [
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
        usage.reasoning_tokens,
    ]
    .map(|part| part.unwrap_or(0));
    let [audio, images, spoken, drawn] = [
        usage.input_audio_tokens,
        usage.input_image_tokens,
        usage.output_audio_tokens,
        usage.output_image_tokens,
    ]
    .map(|part| part.unwrap_or(0));
    // What is both cached and audio is as little as can be.
    let new = input - read - written;
    let heard = audio.min(new);
    let seen = images.min(new - heard);
    let heard_before = (audio - heard).min(read);
    let said = usage.output_tokens.unwrap() - thought;
    let charges = [
        (new - heard - seen, named(0)),
        (heard, named(7).or(named(0))),
        (seen, named(8).or(named(0))),
        (read - heard_before, named(1).or(named(0))),
        (heard_before, named(9).or(named(1)).or(named(0))),
        (written - hour, named(2).or(named(0))),
        (hour, named(3).or(named(2)).or(named(0))),
        (said - spoken - drawn, named(4)),
        (spoken, named(10).or(named(4))),
        (drawn, named(11).or(named(4))),
        (thought, thought_or_said.and_then(|(_, rates)| rates[5].as_ref().or(rates[4].as_ref()))),
    ];
    if (0..12).all(|class| named(class).is_some() == (class == 6)) {
        // By the request, and by nothing else.
        return named(6).map(|written| written.exact.clone());
    }
    let mut sum = named(6).map_or_else(|| fraction("0"), |written| written.exact.clone());
    for (tokens, rate) in charges.into_iter().filter(|(tokens, _)| *tokens > 0) {
        sum += &rate?.exact * fraction(&tokens.to_string());
    }
    Some(sum)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_cost_is_the_exact_sum_rounded_up_once(
        steps in steps(), usage in usage(), tier in proptest::sample::select(&ServiceTier::ALL[..]),
    ) {
        let cost = price(&steps).cost_at(tier, &usage);
        let Some(exact) = exact_cost(&steps, tier, &usage) else {
            prop_assert!(cost.is_err());
            return Ok(());
        };
        let nanos = (exact * fraction("1000000000")).ceil();
        match cost {
            Ok(cost) => prop_assert_eq!(nanos, fraction(&cost.nanos().to_string())),
            Err(error) => {
                prop_assert_eq!(error, CostError::Overflow);
                prop_assert!(nanos > fraction(&i64::MAX.to_string()));
            }
        }
    }

    #[test]
    fn no_call_within_the_bounds_costs_more_than_the_most(
        steps in steps(), usage in usage(), more in 0_u64..3, tier in proptest::sample::select(&ServiceTier::ALL[..]),
    ) {
        let price = price(&steps);
        let bounds = [usage.input_tokens, usage.output_tokens].map(|tokens| tokens.unwrap().saturating_add(more));
        if let (Ok(cost), Ok(most)) = (price.cost_at(tier, &usage), price.at_most(tier, bounds[0], bounds[1])) {
            prop_assert!(cost <= most, "{} > {}", cost, most);
        }
        // Long prompts that cost the same change nothing.
        let [input, output] = bounds;
        let same = price.clone().with_above(500_001, Rates::new());
        prop_assert_eq!(price.at_most(tier, input, output), same.at_most(tier, input, output));
    }
}

#[test]
fn the_most_that_a_prompt_costs_rises_with_the_first_token_that_costs_more() {
    let price = Price::new(million("1", "1")).with_above(1000, million("2", "1"));
    for (input, most) in [(999, "0.000999"), (1000, "0.001"), (1001, "0.002002"), (1002, "0.002004")] {
        assert_eq!(price.at_most(ServiceTier::Standard, input, 0), Ok(usd(most)), "{input}");
    }
}

#[test]
fn audio_and_images_have_rates_of_their_own() {
    let rate = |text: &str| Rate::each(text).unwrap();
    let rates = million("2.5", "10").with_input_audio(rate("3.2e-5")).with_output_audio(rate("6.4e-5"));
    let usage = TokenUsage::new(1000, 500).with_input_audio_tokens(950).with_output_audio_tokens(480);
    assert_eq!(Price::new(rates).cost(&usage), Ok(usd("0.061445")));
    assert_eq!(Price::new(rates).cost(&TokenUsage::new(1000, 500)), Ok(usd("0.0075")));
    assert_eq!(Price::new(rates).at_most(ServiceTier::Standard, 1000, 500), Ok(usd("0.064")));
    // Without one they cost what text costs.
    assert_eq!(Price::new(million("2.5", "10")).cost(&usage), Ok(usd("0.0075")));
    // An answer that is nothing but images needs no price of text.
    let images = Price::new(Rates::new().with_input(rate("5e-6")).with_output_image(rate("4e-5")));
    assert_eq!(images.cost(&TokenUsage::new(10, 1000).with_output_image_tokens(1000)), Ok(usd("0.04005")));
    let unpriced = CostError::Unpriced { class: TokenClass::Output };
    assert_eq!(images.cost(&TokenUsage::new(10, 1001).with_output_image_tokens(1000)), Err(unpriced));
    // Audio that is read from the provider's cache.
    let rates = million("0.3", "2.5").with_input_audio(rate("1e-6")).with_cache_read(rate("3e-8"));
    let usage = TokenUsage::new(1000, 0).with_cache_read_tokens(900).with_input_audio_tokens(500);
    assert_eq!(Price::new(rates).cost(&usage), Ok(usd("0.000127")));
    assert_eq!(Price::new(rates.with_cache_read_audio(rate("1e-7"))).cost(&usage), Ok(usd("0.000155")));
}

#[test]
fn the_largest_amount_is_a_cost_and_one_more_is_an_error() {
    let price = Price::new(Rates::new().with_input(Rate::each("1e-9").unwrap()));
    let most = TokenUsage::new(i64::MAX as u64, 0);
    assert_eq!(price.cost(&most), Ok(NanoUsd::MAX));
    assert_eq!(price.cost(&TokenUsage::new(i64::MAX as u64 + 1, 0)), Err(CostError::Overflow));
    let dear = Price::new(Rates::new().with_input(Rate::each("340282366920").unwrap()));
    assert_eq!(dear.cost(&TokenUsage::new(u64::MAX, 0)), Err(CostError::Overflow));
    // Less than a nano-dollar is one.
    let cheap = Price::new(Rates::new().with_input(Rate::each("1e-27").unwrap()));
    assert_eq!(cheap.cost(&TokenUsage::new(1, 0)), Ok(NanoUsd::new(1)));
    assert_eq!(cheap.cost(&TokenUsage::new(0, 0)), Ok(NanoUsd::ZERO));
}

#[test]
fn what_is_not_known_is_not_free() {
    let unpriced = |class| Err(CostError::Unpriced { class });
    let uncounted = |class| Err(CostError::Uncounted { class });
    let embedding = Price::new(Rates::new().with_input(Rate::per_million("0.02").unwrap()));
    let mut usage = TokenUsage::new(1000, 0);
    usage.output_tokens = None;
    assert_eq!(embedding.cost(&usage), Ok(usd("0.00002")));
    assert_eq!(embedding.cost(&TokenUsage::new(1000, 1)), unpriced(TokenClass::Output));
    assert_eq!(Price::new(million("1", "2")).cost(&usage), uncounted(TokenClass::Output));
    assert_eq!(embedding.cost(&TokenUsage::default()), uncounted(TokenClass::Input));
    assert_eq!(embedding.at_most(ServiceTier::Standard, 1, 1), unpriced(TokenClass::Output));
    let free = Price::new(million("0", "0.0"));
    assert_eq!(free.cost(&TokenUsage::default()), Ok(NanoUsd::ZERO));
    // A prompt that costs nothing and is not counted may be a long one.
    let stepped = Price::new(million("0", "1"))
        .with_above(100, Rates::new().with_output(Rate::per_million("2").unwrap()));
    let mut usage = TokenUsage::new(0, 1_000_000);
    usage.input_tokens = None;
    assert_eq!(stepped.cost(&usage), Ok(usd("2")));
}

#[test]
fn a_price_of_requests_alone_is_the_whole_price() {
    let cent = Rate::each("0.01").unwrap();
    let price = Price::new(Rates::new().with_request(cent));
    for usage in [TokenUsage::new(1_000_000, 1_000_000), TokenUsage::new(0, 0), TokenUsage::default()] {
        assert_eq!(price.cost(&usage), Ok(usd("0.01")));
    }
    assert_eq!(price.at_most(ServiceTier::Standard, u64::MAX, u64::MAX), Ok(usd("0.01")));
    // But not where it says something of tokens, and not enough.
    let half = Price::new(Rates::new().with_request(cent).with_output(cent));
    assert_eq!(half.cost(&TokenUsage::new(1, 1)), Err(CostError::Unpriced { class: TokenClass::Input }));
    let parts = Price::new(Rates::new().with_request(cent).with_reasoning(cent));
    assert_eq!(parts.cost(&TokenUsage::new(1, 1)), Err(CostError::Unpriced { class: TokenClass::Input }));
    // As LiteLLM's list has it too.
    let list = br#"{"acme/search": {"input_cost_per_request": 0.005, "mode": "chat"}}"#;
    let book = PriceBook::from_litellm("list", list).unwrap();
    assert_eq!(book.quote("acme/search").unwrap().price.cost(&TokenUsage::new(10, 10)), Ok(usd("0.005")));
}

#[test]
fn each_search_has_its_price() {
    let price = Price::new(million("1", "1")).with_search(Rate::each("0.01").unwrap());
    let usage = TokenUsage::new(1000, 1000);
    assert_eq!(price.cost(&usage), Ok(usd("0.002")));
    assert_eq!(price.cost(&usage.with_web_searches(3)), Ok(usd("0.032")));
    assert_eq!(price.at_most(ServiceTier::Standard, 1000, 1000), Ok(usd("0.012")));
    // Of a model without a price for them they cost nothing.
    assert_eq!(Price::new(million("1", "1")).cost(&usage.with_web_searches(3)), Ok(usd("0.002")));
    // One that always searches does so of the dearest size, unless it is told.
    let list = br#"{"sonar": {"litellm_provider": "perplexity", "input_cost_per_token": 0, "output_cost_per_token": 0,
        "search_context_cost_per_query": {"search_context_size_low": 0.005, "search_context_size_high": 0.012}}}"#;
    let book = PriceBook::from_litellm("list", list).unwrap();
    assert_eq!(book.quote("perplexity/sonar").unwrap().price.cost(&usage), Ok(usd("0.012")));
    let bad = br#"{"fine": {"input_cost_per_token": 1}, "sonar": {"input_cost_per_token": 0,
        "search_context_cost_per_query": {"search_context_size_low": -1}}}"#;
    let book = PriceBook::from_litellm("list", bad).unwrap();
    let problem = book.skipped().next().unwrap().to_string();
    assert!(problem.starts_with("search_context_cost_per_query of sonar"), "{problem}");
}

#[test]
fn parts_that_exceed_their_whole_are_charged_in_full() {
    let rates = million("1", "1").with_cache_read(Rate::per_million("0.5").unwrap());
    let usage = TokenUsage::new(10, 10).with_cache_read_tokens(30).with_reasoning_tokens(20);
    assert_eq!(Price::new(rates).cost(&usage), Ok(usd("0.000035")));
}

// ===== a catalogue =====

const CATALOGUE: &str = r#"{
    "sample_spec": { "input_cost_per_token": 0.0, "output_cost_per_token": 0.0, "max_tokens": "LEGACY parameter" },
    "gpt-4o": {
        "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05, "litellm_provider": "openai",
        "cache_read_input_token_cost": 1.25e-06, "input_cost_per_token_batches": 1.25E-6,
        "output_cost_per_token_batches": 0.000005, "input_cost_per_token_priority": 4.25e-06,
        "output_cost_per_token_priority": 1.7e-05, "input_cost_per_audio_token": 1, "max_tokens": "many"
    },
    "gemini-2.5-pro": {
        "input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05,
        "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 1.5e-05,
        "input_cost_per_token_above_200k_tokens_priority": 4.5e-06,
        "output_cost_per_token_priority_above_200k_tokens": 2.7e-05
    },
    "gemini/gemini-2.5-pro": { "input_cost_per_token": 7e-06, "output_cost_per_token": 7e-06 },
    "azure/gpt-4o": { "input_cost_per_token": -1, "output_cost_per_token": 1e-05 },
    "github_copilot/gpt-4o": { "litellm_provider": "github_copilot", "mode": "chat" },
    "claude-opus": {
        "input_cost_per_token": "15e-6", "output_cost_per_token": 75e-6,
        "cache_creation_input_token_cost": 18.75e-6, "cache_creation_input_token_cost_above_1hr": 30e-6,
        "cache_creation_input_token_cost_above_1hr_above_200k_tokens": 60e-6
    },
    "xai/grok": {
        "litellm_provider": "xai", "input_cost_per_token": 3e-06, "output_cost_per_token": 0,
        "input_cost_per_token_above_128k_tokens": 6e-06
    },
    "fireworks_ai/deepseek": {
        "litellm_provider": "fireworks_ai", "input_cost_per_token": 9e-07, "output_cost_per_token": 9e-07
    },
    "dashscope/qwen": { "litellm_provider": "dashscope", "tiered_pricing": [
        { "range": [256000.0, 1000000.0], "input_cost_per_token": 1.2e-06, "output_cost_per_token": 3.6e-06 },
        { "range": [0, 256e3], "input_cost_per_token": 4e-07, "output_cost_per_token": 1.2e-06,
          "cache_read_input_token_cost": 1e-7, "output_cost_per_reasoning_token": 4e-06 }
    ] },
    "sonar": { "input_cost_per_token": 0, "output_cost_per_token": 1e-6, "input_cost_per_request": 0.005 },
    "text": { "input_cost_per_token": "a lot" },
    "list": [1, 2],
    "boolean": { "input_cost_per_token": true },
    "huge": { "input_cost_per_token": 1e99 },
    "fine": { "input_cost_per_token": 1e-99 },
    "twice": { "input_cost_per_token": 1, "input_cost_per_token": 2 },
    "gap": { "tiered_pricing": [
        { "range": [0, 10], "input_cost_per_token": 1 }, { "range": [20, 30], "input_cost_per_token": 1 } ] },
    "\u0073hadowed": { "input_cost_per_token": 1 },
    "shadowed": { "input_cost_per_token": 2 },
    "image": { "output_cost_per_image": 0.04 },
    "song": { "input_cost_per_token": 0, "output_cost_per_token": 0, "output_cost_per_image": 0.04 },
    "swift": {
        "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06,
        "input_cost_per_token_ultrafast": 6e-06, "output_cost_per_token_ultrafast": 1.2e-05,
        "input_cost_per_token_balanced": 7e-07
    },
    "speech": {
        "input_cost_per_token": 3e-07, "output_cost_per_token": 2.5e-06, "cache_read_input_token_cost": 3e-08,
        "input_cost_per_audio_token": 1e-06, "input_cost_per_audio_token_batches": 5e-07,
        "cache_read_input_audio_token_cost": 1e-07, "output_cost_per_audio_token": 1e-05,
        "input_cost_per_image_token": 4e-07, "output_cost_per_image_token": 3e-05
    },
    "recorder": { "input_cost_per_audio_token": 1e-06, "output_cost_per_audio_token": 1e-06 },
    "null": { "input_cost_per_token": null },
    "free": { "input_cost_per_token": 0.0, "output_cost_per_token": 0 }
}"#;

fn catalogue() -> PriceBook {
    PriceBook::from_litellm("litellm", CATALOGUE.as_bytes()).unwrap()
}

fn cost(model: &str, usage: TokenUsage) -> NanoUsd {
    catalogue().quote(model).unwrap().cost(ServiceTier::Standard, &usage).unwrap()
}

#[test]
fn seed_24_known_points_of_the_catalogue_cost_what_they_should() {
    assert_eq!(cost("openai/gpt-4o", TokenUsage::new(1000, 100)), usd("0.0035"));
    assert_eq!(cost("openai/gpt-4o", TokenUsage::new(1000, 100).with_cache_read_tokens(400)), usd("0.0030"));
    let gemini = |input| cost("vertex_ai/gemini-2.5-pro", TokenUsage::new(input, 1000));
    assert_eq!(gemini(200_000), usd("0.26"));
    assert_eq!(gemini(200_001), usd("0.5150025"));
    assert_eq!(gemini(250_000), usd("0.64"));
}

#[test]
fn what_litellm_writes_in_names_is_understood() {
    let book = catalogue();
    let at = |model: &str, tier, usage: TokenUsage| book.quote(model).unwrap().cost(tier, &usage).unwrap();
    let usage = TokenUsage::new(1000, 100);
    assert_eq!(at("gpt-4o", ServiceTier::Batch, usage), usd("0.00175"));
    assert_eq!(at("gpt-4o", ServiceTier::Priority, usage), usd("0.00595"));
    assert_eq!(at("swift", ServiceTier::Ultrafast, usage), usd("0.0072"));
    assert_eq!(at("swift", ServiceTier::Balanced, usage), usd("0.0009"));
    // No such price: as any other.
    assert_eq!(at("gpt-4o", ServiceTier::Flex, usage), usd("0.0035"));
    let long = TokenUsage::new(200_001, 1000);
    assert_eq!(at("gemini-2.5-pro", ServiceTier::Priority, long), usd("0.9270045"));

    // Written for an hour, for five minutes, and neither.
    let usage = TokenUsage::new(600, 0).with_cache_write_tokens(300).with_cache_write_1h_tokens(200);
    assert_eq!(cost("claude-opus", usage), usd("0.012375"));
    let usage = TokenUsage::new(200_001, 0).with_cache_write_tokens(1).with_cache_write_1h_tokens(1);
    assert_eq!(cost("claude-opus", usage), usd("3.00006"));

    let usage = TokenUsage::new(1000, 100).with_input_audio_tokens(500).with_input_image_tokens(200);
    let usage = usage.with_output_audio_tokens(50).with_output_image_tokens(30);
    assert_eq!(at("speech", ServiceTier::Standard, usage), usd("0.00212"));
    assert_eq!(at("speech", ServiceTier::Batch, usage), usd("0.00187"));
    let usage = TokenUsage::new(1000, 0).with_cache_read_tokens(1000).with_input_audio_tokens(500);
    assert_eq!(cost("speech", usage), usd("0.000065"));

    assert_eq!(cost("xai/grok", TokenUsage::new(127_999, 0)), usd("0.383997"));
    assert_eq!(cost("xai/grok", TokenUsage::new(128_000, 0)), usd("0.768"));
    let usage = TokenUsage::new(1000, 0).with_cache_read_tokens(1000);
    assert_eq!(cost("fireworks_ai/deepseek", usage), usd("0.00045"));
    assert_eq!(cost("perplexity/sonar", TokenUsage::new(1000, 1)), usd("0.005001"));
}

#[test]
fn ranges_of_lengths_stand_for_themselves() {
    let usage = |input| TokenUsage::new(input, 20).with_cache_read_tokens(10).with_reasoning_tokens(10);
    assert_eq!(cost("dashscope/qwen", usage(256_000)), usd("0.102449"));
    // The longer range has no price for the cache, nor for reasoning: those of its own input and output.
    assert_eq!(cost("dashscope/qwen", usage(256_001)), usd("0.3072732"));
    assert_eq!(cost("dashscope/qwen", usage(2_000_000)), usd("2.400072"));
}

#[test]
fn bad_entries_are_skipped_and_told_and_the_others_stand() {
    let book = catalogue();
    let skipped: Vec<_> = book.skipped().collect();
    let of =
        |entry: &str| -> &PriceProblem { skipped.iter().find(|problem| &*problem.entry == entry).unwrap() };
    assert_eq!(skipped.len(), 15, "{skipped:?}");
    assert_eq!(book.len(), 12, "{:?}", book.entries().collect::<Vec<_>>());
    assert_eq!(of("sample_spec").reason, PriceReason::Example);
    assert_eq!(of("sample_spec").line, Some(2));
    assert_eq!(of("github_copilot/gpt-4o").reason, PriceReason::NoTokenPrice);
    assert_eq!(of("image").reason, PriceReason::NoTokenPrice);
    assert_eq!(of("song").reason, PriceReason::NoTokenPrice, "it is not free because it is paid otherwise");
    assert_eq!(of("recorder").reason, PriceReason::NoTokenPrice, "of text nothing is said");
    assert_eq!(of("null").reason, PriceReason::NoTokenPrice);
    assert_eq!(of("list").reason, PriceReason::Mistyped { expected: "an object" });
    assert_eq!(of("boolean").reason, PriceReason::Mistyped { expected: "a number" });
    assert_eq!(of("twice").reason, PriceReason::Duplicate);
    assert_eq!(of("gap").reason, PriceReason::Ranges);
    assert_eq!(of("shadowed").reason, PriceReason::Duplicate);
    let line = 1 + CATALOGUE[..CATALOGUE.find("\"azure/gpt-4o\"").unwrap()].matches('\n').count();
    let expected = format!(r#"input_cost_per_token of azure/gpt-4o (line {line}): "-1" is negative"#);
    assert_eq!(of("azure/gpt-4o").to_string(), expected);
    assert!(of("text").to_string().ends_with(r#""a lot" is not a decimal number"#));
    assert!(of("huge").to_string().ends_with(r#""1e99" is too large"#));
    assert!(of("fine").to_string().ends_with(r#""1e-99" has more than 27 decimal places"#));
    assert_eq!(cost("shadowed", TokenUsage::new(1, 0)), usd("2"));
}

#[test]
fn a_file_that_is_no_catalogue_is_refused() {
    let kind = |json: &str| PriceBook::from_litellm("x.json", json.as_bytes()).unwrap_err();
    assert!(matches!(kind("{\n\"a\": {},\n}").kind(), PriceErrorKind::Syntax { line: 3, .. }));
    assert!(matches!(kind("").kind(), PriceErrorKind::Syntax { line: 1, .. }));
    for json in
        ["{}", "[]", "null", r#"{"name":"a","version":"1"}"#, r#"{"sample_spec":{"input_cost_per_token":1}}"#]
    {
        let error = kind(json);
        assert!(matches!(error.kind(), PriceErrorKind::NoPrices), "{json}");
        assert_eq!(error.to_string(), "the price list x.json has no prices");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(kind(&deep).kind(), PriceErrorKind::NoPrices));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(at in 0..CATALOGUE.len(), byte: u8, cut in 0..CATALOGUE.len()) {
        let mut bytes = CATALOGUE.as_bytes().to_vec();
        bytes[at] = byte;
        let _ = PriceBook::from_litellm("x", &bytes);
        let _ = PriceBook::from_litellm("x", &bytes[..cut]);
    }
}

#[test]
fn an_unreadable_file_is_an_error_that_names_it() {
    for path in ["/no/such/prices.json", "/"] {
        let error = PriceBook::read(path).unwrap_err();
        assert_eq!(error.list(), path);
        assert!(error.to_string().contains(path));
    }
    let error = PriceBook::read("/no/such/prices.json").unwrap_err();
    assert!(matches!(error.kind(), PriceErrorKind::Unreadable(_)));
    assert!(std::error::Error::source(&error).is_some_and(|source| source.is::<std::io::Error>()));
    assert!(matches!(PriceBook::read("prices.csv").unwrap_err().kind(), PriceErrorKind::UnknownFormat));
}

// ===== look-up =====

/// The original took the price of the first provider that lists the model's bare name.
#[test]
fn seed_24_the_provider_is_part_of_the_name() {
    let book = catalogue();
    let entry = |model: &str| book.quote(model).map(|quote| quote.origin.entry.to_string());
    assert_eq!(entry("gemini/gemini-2.5-pro").as_deref(), Some("gemini/gemini-2.5-pro"));
    assert_eq!(entry("vertex_ai/gemini-2.5-pro").as_deref(), Some("gemini-2.5-pro"));
    assert_eq!(entry("gemini-2.5-pro").as_deref(), Some("gemini-2.5-pro"));
    assert_eq!(entry("dashscope/qwen").as_deref(), Some("dashscope/qwen"));
    // A bare name is no provider's.
    assert_eq!(entry("qwen"), None);
    assert_eq!(entry("openrouter/openai/gpt-4o"), None);
}

/// In the original an unknown model costs nothing.
#[test]
fn seed_24_an_unknown_model_is_unpriced_and_never_costs_nothing() {
    let prices = Prices::new(catalogue());
    let usage = TokenUsage::new(1000, 100);
    let cost = prices.cost("openai/gpt-9", &usage);
    assert_eq!((cost.amount, cost.origin), (None, None));
    // One that is known to have no price does not get someone else's.
    for model in ["github_copilot/gpt-4o", "azure/gpt-4o"] {
        assert_eq!(prices.quote(model), None, "{model}");
    }
    // A price of 0 is a price.
    let cost = prices.cost("any/free", &usage);
    assert_eq!(cost.amount, Some(NanoUsd::ZERO));
    assert_eq!(&*cost.origin.unwrap().entry, "free");
    assert_eq!(Prices::default().cost("gpt-4o", &usage).amount, None);
}

/// The original multiplied floats, per thousand tokens.
#[test]
fn seed_24_prices_per_thousand_are_exact() {
    let price = Price::new(Rates::per_thousand("0.0001", "0.0002").unwrap());
    let calls = (0..30_000).map(|_| price.cost(&TokenUsage::new(1, 1)).unwrap());
    assert_eq!(NanoUsd::checked_sum(calls), Some(usd("0.009")));
}

#[test]
fn overrides_win_in_the_order_they_are_added() {
    let list = |source: &str, model: &str, input: &str| {
        PriceBook::of(source, [(model, Price::new(million(input, "0")))]).unwrap().with_version(input)
    };
    let book = catalogue()
        .with_overrides(list("region", "openai/gpt-4o", "5"))
        .with_overrides(list("contract", "gpt-4o", "6"))
        .with_overrides(list("test", "openai/o1", "7"));
    let quote = book.quote("openai/gpt-4o").unwrap();
    assert_eq!((&*quote.origin.source, &*quote.origin.version), ("contract", "6"));
    assert_eq!(quote.cost(ServiceTier::Standard, &TokenUsage::new(1000, 0)), Ok(usd("0.006")));
    assert_eq!(&*book.quote("openai/o1").unwrap().origin.source, "test");
    let below = book.quote("sonar").unwrap().origin;
    assert_eq!((&*below.source, below.version.len()), ("litellm", 16));
}

#[test]
fn a_digest_is_the_version_of_a_list_without_one() {
    let version = |json: &str| {
        let book = PriceBook::from_litellm("x", json.as_bytes()).unwrap();
        book.quote("a").unwrap().origin.version.to_string()
    };
    let one = version(r#"{"a":{"input_cost_per_token":1}}"#);
    assert_eq!(one, version(r#"{"a":{"input_cost_per_token":1}}"#));
    assert_ne!(one, version(r#"{"a":{"input_cost_per_token":2}}"#));
}

#[test]
fn names_in_code_must_differ_and_be_something() {
    let price = Price::new(million("1", "1"));
    let error =
        PriceBook::of("code", [("a", price.clone()), (" ", price.clone()), ("a", price)]).unwrap_err();
    let PriceErrorKind::Entries(problems) = error.kind() else { panic!("{error}") };
    let reasons: Vec<_> = problems.iter().map(|problem| problem.reason.clone()).collect();
    assert_eq!(reasons, [PriceReason::Missing, PriceReason::Duplicate]);
    assert_eq!(problems[1].to_string(), "a: is there twice");
}

#[test]
fn a_book_is_exchanged_while_it_is_used() {
    let prices = Prices::new(catalogue());
    let other = prices.clone();
    let held = other.quote("gpt-4o").unwrap();
    let book = PriceBook::of("new", [("gpt-4o", Price::new(million("1", "1")))]).unwrap();
    prices.store(book);
    let usage = TokenUsage::new(1000, 0);
    assert_eq!(other.cost("openai/gpt-4o", &usage).amount, Some(usd("0.001")));
    assert_eq!(held.cost(ServiceTier::Standard, &usage), Ok(usd("0.0025")));
    assert_eq!(other.load().len(), 1);
}

#[test]
fn a_call_is_priced_without_an_allocation() {
    let prices = Prices::new(catalogue());
    let usage = TokenUsage::new(300_000, 100).with_cache_read_tokens(400);
    // The first look of a thread makes its place in the swap.
    let mut costs = [prices.cost("gpt-4o", &usage).amount, None];
    let made = allocation_counter::measure(|| {
        costs = ["vertex_ai/gemini-2.5-pro", "no/such"].map(|model| prices.cost(model, &usage).amount);
    });
    assert_eq!(costs, [Some(usd("0.7515")), None]);
    assert_eq!(made.count_total, 0);
}

// ===== a list of our own =====

#[cfg(feature = "toml")]
mod toml {
    use super::*;

    fn problems(toml: &str) -> Vec<String> {
        let error = PriceBook::from_toml("p.toml", toml).unwrap_err();
        let PriceErrorKind::Entries(problems) = error.kind() else { panic!("{error}") };
        problems.iter().map(ToString::to_string).collect()
    }

    fn cost(toml: &str, tier: ServiceTier, usage: TokenUsage) -> NanoUsd {
        let book = PriceBook::from_toml("p.toml", toml).unwrap();
        book.quote("m").unwrap().cost(tier, &usage).unwrap()
    }

    #[test]
    fn numbers_are_read_as_the_text_they_are() {
        let usage = TokenUsage::new(1_000_000, 0);
        for input in ["\"0.15\"", "0.15", "1.5e-1", "\"15E-2\"", "0.1_5", "+0.15"] {
            assert_eq!(cost(&format!("models.m.input = {input}"), ServiceTier::Standard, usage), usd("0.15"));
        }
        assert_eq!(cost("models.m.input = 1_000", ServiceTier::Standard, usage), usd("1000"));
        // No float holds this.
        let exact = "models.m.input = 0.100000000000000000001";
        assert_eq!(
            cost(exact, ServiceTier::Standard, TokenUsage::new(1_000_000_000, 0)),
            usd("100.000000001")
        );
    }

    #[test]
    fn audio_and_images_have_names_of_their_own() {
        let list = r#"
            [models.m]
            input = "1"
            output = "2"
            input_audio = "10"
            input_image = "3"
            cache_read_audio = "5"
            output_audio = "20"
            output_image = "30"
            search = "0.5"
        "#;
        let usage = TokenUsage::new(600, 600).with_input_audio_tokens(400).with_cache_read_tokens(300);
        let usage = usage.with_output_audio_tokens(100).with_output_image_tokens(200);
        let (input, output) = (300 * 10 + 100 * 5 + 200, 100 * 20 + 200 * 30 + 300 * 2);
        assert_eq!(cost(list, ServiceTier::Standard, usage), NanoUsd::new((input + output) * 1000));
        let searches = NanoUsd::new(2 * 500_000_000 + (input + output) * 1000);
        assert_eq!(cost(list, ServiceTier::Standard, usage.with_web_searches(2)), searches);
    }

    #[test]
    fn per_is_inherited_and_not_meant_for_requests() {
        let list = r#"
            per = "1k"
            [models.m]
            input = "0.01"
            request = "0.5"
            tiers = [{ above = 10, input = "0.02" }]
            [models.m.flex]
            input = "0.005"
            tiers = [{ above = 10, input = "0.015" }]
            [models.n]
            per = "token"
            input = "0.1"
        "#;
        let at = |tier, input| cost(list, tier, TokenUsage::new(input, 0));
        assert_eq!(at(ServiceTier::Standard, 10), usd("0.5001"));
        assert_eq!(at(ServiceTier::Standard, 11), usd("0.50022"));
        assert_eq!(at(ServiceTier::Flex, 10), usd("0.50005"));
        assert_eq!(at(ServiceTier::Flex, 11), usd("0.500165"));
        assert_eq!(at(ServiceTier::Priority, 11), usd("0.50022"));
        let book = PriceBook::from_toml("p.toml", list).unwrap();
        let quote = book.quote("x/n").unwrap();
        assert_eq!(quote.cost(ServiceTier::Standard, &TokenUsage::new(1, 0)), Ok(usd("0.1")));
        assert_eq!(&*quote.origin.source, "p.toml");
    }

    #[test]
    fn all_that_is_wrong_is_told_with_entry_member_and_line() {
        let list = r#"
currency = "EUR"
per = "1b"
colour = "red"
[models."openai/gpt-4o"]
input = "-0.15"
output = "0.15 EUR"
inptu = 1
cache_read = nan
cache_write = true
tiers = [{ above = -1, input = 1 }, { input = 1 }, { above = 1 }, { above = 2, input = 1 }, { above = 2, input = 2 }]
[models.nothing]
[models.odd]
input = 0x10
batch = 3
[models.odd.standard]
[models.""]
input = 1
"#;
        let mut seen = problems(list);
        seen.sort_unstable();
        let mut expected = [
            "currency (line 2): must be USD",
            "per (line 3): must be \"1M\", \"1k\" or \"token\"",
            "colour (line 4): is not known",
            "input of openai/gpt-4o (line 6): \"-0.15\" is negative",
            "output of openai/gpt-4o (line 7): \"0.15 EUR\" has a unit, \"EUR\"; amounts are plain numbers in dollars",
            "inptu of openai/gpt-4o (line 8): is not known",
            "cache_read of openai/gpt-4o (line 9): \"nan\" is not a finite number",
            "cache_write of openai/gpt-4o (line 10): must be an amount in dollars",
            "above of openai/gpt-4o (line 11): must be a number of tokens",
            "above of openai/gpt-4o (line 11): is missing",
            "tiers of openai/gpt-4o (line 11): has no price by the token",
            "above of openai/gpt-4o (line 11): is there twice",
            "nothing: has no price by the token",
            "input of odd (line 14): must be an amount in dollars",
            "batch of odd (line 15): must be a table",
            "standard of odd (line 16): is not known",
            "models (line 17): is missing",
        ];
        expected.sort_unstable();
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_is_not_toml_says_where() {
        let error = PriceBook::from_toml("p.toml", "[models.m]\ninput = 1\ninput = 2").unwrap_err();
        assert!(matches!(error.kind(), PriceErrorKind::Syntax { line: 3, .. }), "{error}");
        assert!(error.to_string().starts_with("the price list p.toml, line 3: duplicate key"), "{error}");
        assert!(matches!(PriceBook::from_toml("p", "").unwrap_err().kind(), PriceErrorKind::NoPrices));
        assert!(matches!(
            PriceBook::from_toml("p", "models = {}").unwrap_err().kind(),
            PriceErrorKind::NoPrices
        ));
        assert_eq!(problems("models = 3"), ["models (line 1): must be a table"]);
        assert_eq!(problems("models.m = 3"), ["m (line 1): must be a table"]);
    }

    #[test]
    fn files_are_read_by_what_they_are_called() {
        let file = |name: &str, bytes: &[u8]| {
            let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            std::fs::write(&path, bytes).unwrap();
            let book = PriceBook::read(&path);
            std::fs::remove_file(&path).unwrap();
            book
        };
        assert_eq!(file("price-read.json", CATALOGUE.as_bytes()).unwrap().len(), catalogue().len());
        assert_eq!(file("price-read.toml", b"models.m.input = 1").unwrap().len(), 1);
        let error = file("price-bad.toml", b"# \n# \xff").unwrap_err();
        assert!(matches!(error.kind(), PriceErrorKind::Syntax { line: 2, .. }), "{error}");
        assert!(file("price-bad.json", b"models.m.input = 1").is_err());
    }
}
