//! LiteLLM itself says what calls cost. `scripts/peers` installs it; without it this test says `SKIPPED`, and
//! `scripts/test` then fails.

use llm_layers::{
    TokenUsage,
    price::{CostError, NanoUsd, PriceBook, ServiceTier},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Where LiteLLM is, or a line that says that the test `name` did not run.
fn litellm(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let peers = std::env::var_os("LLM_LAYERS_PEERS").map_or_else(|| target.join("peers"), PathBuf::from);
    let python = peers.join("litellm/bin/python");
    if !python.exists() {
        // Not by `println!`, which is shown of failed tests only.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: LiteLLM is not installed, run scripts/peers");
        return None;
    }
    Some(python)
}

fn usage(shape: &Value) -> (ServiceTier, TokenUsage) {
    let tokens = |name: &str| shape[name].as_u64();
    let mut usage = TokenUsage::new(tokens("input").unwrap(), tokens("output").unwrap());
    usage.cache_read_tokens = tokens("cache_read");
    usage.cache_write_tokens = tokens("cache_write");
    usage.reasoning_tokens = tokens("reasoning");
    usage.input_audio_tokens = tokens("input_audio");
    usage.input_image_tokens = tokens("input_image");
    usage.output_audio_tokens = tokens("output_audio");
    usage.output_image_tokens = tokens("output_image");
    let tier =
        shape["tier"].as_str().map_or(ServiceTier::Standard, |name| ServiceTier::from_name(name).unwrap());
    (tier, usage)
}

/// A cost is rounded up to a nano-dollar, and LiteLLM's is a sum of floats.
fn agree(ours: NanoUsd, theirs: f64) -> bool {
    let more = ours.nanos() as f64 - theirs * 1e9;
    let doubt = theirs * 1e9 * 1e-12 + 1e-6;
    (-doubt..1.0 + doubt).contains(&more)
}

/// The models and shapes on which we disagree, with the reason: lines of `reason model shape ..`, `*` for all shapes.
fn known(shapes: &BTreeMap<&str, (ServiceTier, TokenUsage)>) -> BTreeMap<(String, String), &'static str> {
    let mut known = BTreeMap::new();
    for line in include_str!("peers/litellm-disagreements.txt").lines().filter(|line| !line.starts_with('#'))
    {
        let mut words = line.split_whitespace();
        let Some(reason) = words.next() else { continue };
        let model = words.next().expect("a model");
        let named: Vec<_> = words.collect();
        for shape in if named == ["*"] { shapes.keys().copied().collect() } else { named } {
            assert!(shapes.contains_key(shape), "{line}");
            let twice = known.insert((model.to_owned(), shape.to_owned()), reason);
            assert_eq!(twice, None, "{line}");
        }
    }
    known
}

struct Comparison<'a> {
    provider: &'a str,
    model: &'a str,
    tier: ServiceTier,
    ours: Result<NanoUsd, Option<CostError>>,
    theirs: f64,
    /// What a search costs at most, by the map.
    search: f64,
}

impl Comparison<'_> {
    /// Whether a reason is one for what is seen.
    fn explained_by(&self, reason: &str) -> bool {
        let unpriced = matches!(self.ours, Err(None | Some(CostError::Unpriced { .. })));
        match reason {
            "no-price" => unpriced && self.theirs == 0.0,
            "half-a-price" => unpriced && self.theirs > 0.0,
            "two-rates" => self.provider == "perplexity" && self.ours.is_ok(),
            "no-service-tier" => {
                self.provider == "fireworks_ai" && self.tier != ServiceTier::Standard && self.ours.is_ok()
            }
            "audio-tier" => {
                self.tier == ServiceTier::Priority
                    && self.ours.is_ok_and(|ours| ours.nanos() as f64 > self.theirs * 1e9)
            }
            "search-fee" => {
                let fee = NanoUsd::new((self.search * 1e9).round() as i64);
                self.search > 0.0
                    && self
                        .ours
                        .is_ok_and(|ours| agree(NanoUsd::new(ours.nanos() - fee.nanos()), self.theirs))
            }
            "other-entry" => self.model.starts_with(&format!("{0}/{0}/", self.provider)),
            _ => false,
        }
    }
}

#[test]
fn litellm_says_the_same_or_it_is_known_why_not() {
    let Some(python) = litellm("litellm_says_the_same_or_it_is_known_why_not") else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/litellm_prices.py");
    let mut command = Command::new(python);
    let output = command.arg(script).env("LITELLM_LOCAL_MODEL_COST_MAP", "True").output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_slice(&output.stdout).expect("one object");

    let map = std::fs::read(told["map"].as_str().unwrap()).expect("the map of prices");
    #[expect(clippy::disallowed_methods, reason = "how long it took, for whoever reads the output")]
    let since = Instant::now();
    let book = PriceBook::from_litellm("litellm", &map).expect("prices");
    let load = since.elapsed();

    let map: Value = serde_json::from_slice(&map).unwrap();
    let search = |entry: &str| {
        let sizes = map[entry]["search_context_cost_per_query"].as_object();
        sizes.into_iter().flatten().filter_map(|(_, cost)| cost.as_f64()).fold(0.0, f64::max)
    };

    let shapes = told["shapes"].as_object().unwrap();
    let shapes: BTreeMap<&str, _> = shapes.iter().map(|(name, shape)| (&**name, usage(shape))).collect();
    let known = known(&shapes);
    let models = told["models"].as_object().unwrap();
    let (mut compared, mut disagreements) = (0, BTreeMap::new());
    for (model, told) in models {
        let [provider, entry] = ["provider", "entry"].map(|name| told[name].as_str().unwrap());
        let prefixed = model.strip_prefix(provider).is_some_and(|rest| rest.starts_with('/'));
        let canonical = if prefixed { model.clone() } else { format!("{provider}/{model}") };
        let quote = book.quote(&canonical);
        if let Some(quote) = &quote {
            assert_eq!(&*quote.origin.entry, entry, "the entry for {canonical}");
        }
        for (shape, (tier, usage)) in &shapes {
            let theirs: f64 = told["costs"][shape].as_str().unwrap().parse().expect("a number of dollars");
            let ours = quote.as_ref().ok_or(None).and_then(|quote| quote.cost(*tier, usage).map_err(Some));
            compared += 1;
            if !ours.is_ok_and(|ours| agree(ours, theirs)) {
                let seen = Comparison { provider, model, tier: *tier, ours, theirs, search: search(entry) };
                disagreements.insert((model.clone(), (*shape).to_owned()), seen);
            }
        }
    }

    let mut wrong = Vec::new();
    let mut reasons = BTreeMap::<_, usize>::new();
    for ((model, shape), seen) in &disagreements {
        let (ours, theirs) = (&seen.ours, seen.theirs);
        match known.get(&(model.clone(), shape.clone())) {
            None => wrong.push(format!("not in the list: {model} {shape}: {ours:?}, LiteLLM says {theirs}")),
            Some(reason) if !seen.explained_by(reason) => {
                wrong.push(format!(
                    "not because of {reason}: {model} {shape}: {ours:?}, LiteLLM says {theirs}"
                ));
            }
            Some(reason) => *reasons.entry(*reason).or_default() += 1,
        }
    }
    for ((model, shape), reason) in &known {
        if !disagreements.contains_key(&(model.clone(), shape.clone())) {
            wrong.push(format!("agrees, but is in the list: {reason} {model} {shape}"));
        }
    }
    println!(
        "LiteLLM {}: {} models, {compared} costs compared, {} disagree: {reasons:?}; {} entries read in {load:?}",
        told["litellm"],
        models.len(),
        disagreements.len(),
        book.len(),
    );
    assert!(models.len() >= 3000 && shapes.len() >= 6 && compared == models.len() * shapes.len());
    assert!(wrong.is_empty(), "{} surprises:\n{}", wrong.len(), wrong[..wrong.len().min(50)].join("\n"));
}
