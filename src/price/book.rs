use super::{
    cost::{CostError, Price, ServiceTier},
    error::{PriceError, PriceErrorKind, PriceProblem, PriceReason},
    litellm,
    money::NanoUsd,
    terms::Billed,
};
use crate::{Certainty, TokenUsage};
use arc_swap::ArcSwap;
use std::{
    collections::{HashMap, hash_map::Entry},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// What models cost: lists of prices over one another.
///
/// A model is looked up as `provider/model`, then as `model`, in the list that was added last; then so in the one
/// before it. A model that no list names has no price, which is not a price of 0. Nor has one that a list names without
/// a price that can be used, whatever the bare name costs elsewhere.
///
/// ```
/// use llm_layers::{TokenUsage, price::{Price, PriceBook, Rates}};
///
/// let catalogue = br#"{
///     "gpt-4o": { "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1e-05 },
///     "dall-e-3": { "input_cost_per_image": 0.04 }
/// }"#;
/// let ours = [("openai/gpt-4o-mini", Price::new(Rates::per_million("0.15", "0.60")?))];
/// let book = PriceBook::from_litellm("litellm", catalogue)?.with_overrides(PriceBook::of("contract", ours)?);
///
/// let quote = book.quote("openai/gpt-4o").ok_or("unpriced")?;
/// assert_eq!(quote.price.cost(&TokenUsage::new(1000, 100))?.to_string(), "0.0035");
/// assert_eq!((&*quote.origin.entry, &*quote.origin.source), ("gpt-4o", "litellm"));
/// assert!(book.quote("openai/dall-e-3").is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct PriceBook {
    /// The last one is asked first.
    lists: Vec<List>,
}

#[derive(Debug, Clone)]
struct List {
    source: Arc<str>,
    prices: Arc<Quotes>,
    skipped: Arc<[PriceProblem]>,
}

/// A name without a price is known to have none: what was left out must not be found by its bare name, which is
/// someone else's price.
pub(super) type Entries = HashMap<Arc<str>, Option<Arc<Price>>>;

/// [`Entries`], each with its origin, so that a look-up makes nothing; it is done for every call.
type Quotes = HashMap<Arc<str>, Option<Quote>, foldhash::fast::RandomState>;

/// A price, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quote {
    /// The price.
    pub price: Arc<Price>,
    /// Where it comes from.
    pub origin: Arc<PriceOrigin>,
}

/// Where a price comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PriceOrigin {
    /// The entry that was found: `provider/model` or `model`.
    pub entry: Arc<str>,
    /// The list it is in.
    pub source: Arc<str>,
    /// The version of that list; a digest of its contents unless it has a name.
    pub version: Arc<str>,
}

/// What a call cost, and by which price.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cost {
    /// The amount. `None` is unpriced: nobody knows, which is not nothing.
    pub amount: Option<NanoUsd>,
    /// Where the price comes from, if there is one.
    pub origin: Option<Arc<PriceOrigin>>,
}

/// A book that may be exchanged while it is used. Clones share it; each keeps in memory the one that was there when it was made.
#[derive(Debug)]
pub struct Prices {
    shared: Arc<Shared>,
    /// The book as this clone found it, and how many were stored before: until there is another it is read without a
    /// word to other threads.
    found: Arc<PriceBook>,
    stored_before: u64,
}

#[derive(Debug)]
struct Shared {
    book: ArcSwap<PriceBook>,
    /// Counted once the book is there.
    stored: AtomicU64,
}

// ===== impl PriceBook =====

impl PriceBook {
    /// Knows no price.
    pub const fn new() -> Self {
        Self { lists: Vec::new() }
    }

    /// Prices from code.
    ///
    /// # Errors
    ///
    /// A name stands twice, or is empty.
    pub fn of<N: Into<Arc<str>>>(
        source: impl Into<Arc<str>>,
        prices: impl IntoIterator<Item = (N, Price)>,
    ) -> Result<Self, PriceError> {
        let source = source.into();
        let (mut entries, mut problems) = (Entries::new(), Vec::new());
        for (name, price) in prices {
            let name: Arc<str> = name.into();
            let mut wrong = |reason| {
                problems.push(PriceProblem { entry: (*name).into(), member: None, line: None, reason });
            };
            if name.trim().is_empty() {
                wrong(PriceReason::Missing);
                continue;
            }
            match entries.entry(Arc::clone(&name)) {
                Entry::Occupied(_) => wrong(PriceReason::Duplicate),
                Entry::Vacant(place) => _ = place.insert(Some(Arc::new(price))),
            }
        }
        if !problems.is_empty() {
            return Err(PriceError::new(source, PriceErrorKind::Entries(problems)));
        }
        Ok(Self::one(source, &"".into(), entries, Vec::new()))
    }

    /// Reads LiteLLM's `model_prices_and_context_window.json`.
    ///
    /// Bad entries, and models that are not paid by the token, are left out and are in [`skipped`](Self::skipped).
    /// A name that stands twice is used as it stands last, and so is a number that is written as text.
    ///
    /// # Errors
    ///
    /// The bytes are not JSON, or there is no price in them.
    pub fn from_litellm(source: impl Into<Arc<str>>, json: &[u8]) -> Result<Self, PriceError> {
        let source = source.into();
        match litellm::read(json) {
            Ok((entries, skipped)) => Ok(Self::one(source, &digest(json), entries, skipped)),
            Err(kind) => Err(PriceError::new(source, kind)),
        }
    }

    /// Reads a list in TOML, described in the [module's documentation](super).
    ///
    /// # Errors
    ///
    /// Anything in it is wrong: all of it is named.
    #[cfg(feature = "toml")]
    pub fn from_toml(source: impl Into<Arc<str>>, toml: &str) -> Result<Self, PriceError> {
        let source = source.into();
        match super::own::read(toml) {
            Ok(list) => {
                let version = list.version.unwrap_or_else(|| digest(toml.as_bytes()));
                Ok(Self::one(list.source.unwrap_or(source), &version, list.entries, Vec::new()))
            }
            Err(kind) => Err(PriceError::new(source, kind)),
        }
    }

    /// Reads a file: LiteLLM's format if its name ends in `.json`, our own if in `.toml` (feature `toml`).
    ///
    /// # Errors
    ///
    /// It cannot be read, or what is in it cannot be used.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, PriceError> {
        let path = path.as_ref();
        let list = path.display().to_string();
        let refuse = |kind| Err(PriceError::new(&*list, kind));
        let json = match path.extension().and_then(|end| end.to_str()) {
            Some("json") => true,
            Some("toml") if cfg!(feature = "toml") => false,
            _ => return refuse(PriceErrorKind::UnknownFormat),
        };
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => return refuse(PriceErrorKind::Unreadable(error)),
        };
        if json {
            return Self::from_litellm(list, &bytes);
        }
        Self::toml(list, bytes)
    }

    #[cfg(feature = "toml")]
    fn toml(list: String, bytes: Vec<u8>) -> Result<Self, PriceError> {
        match String::from_utf8(bytes) {
            Ok(text) => Self::from_toml(list, &text),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + memchr::memchr_iter(b'\n', good).count();
                Err(PriceError::new(list, PriceErrorKind::Syntax { line, message: "not UTF-8".into() }))
            }
        }
    }

    #[cfg(not(feature = "toml"))]
    fn toml(list: String, _: Vec<u8>) -> Result<Self, PriceError> {
        Err(PriceError::new(list, PriceErrorKind::UnknownFormat))
    }

    fn one(source: Arc<str>, version: &Arc<str>, prices: Entries, skipped: Vec<PriceProblem>) -> Self {
        Self { lists: vec![List::new(source, version, prices, skipped.into())] }
    }

    /// Names the version of what is in this book, instead of a digest.
    #[must_use]
    pub fn with_version(mut self, version: impl Into<Arc<str>>) -> Self {
        let version = version.into();
        for list in &mut self.lists {
            let price = |quote: &Option<Quote>| quote.as_ref().map(|quote| Arc::clone(&quote.price));
            let prices = list.prices.iter().map(|(entry, quote)| (Arc::clone(entry), price(quote))).collect();
            let (source, skipped) = (Arc::clone(&list.source), Arc::clone(&list.skipped));
            *list = List::new(source, &version, prices, skipped);
        }
        self
    }

    /// Puts the lists of `book` over those that are here: where they have a price, it is the one.
    #[must_use]
    pub fn with_overrides(mut self, book: Self) -> Self {
        self.lists.extend(book.lists);
        self
    }

    /// The price of a model, if there is one.
    pub fn quote(&self, model: &str) -> Option<Quote> {
        self.find(model).cloned()
    }

    fn find(&self, model: &str) -> Option<&Quote> {
        self.lists.iter().rev().find_map(|list| list.find(model)?.as_ref())
    }

    /// The price alone.
    pub(crate) fn price(&self, model: &str) -> Option<&Arc<Price>> {
        self.find(model).map(|quote| &quote.price)
    }

    /// How many prices there are, those below others included.
    pub fn len(&self) -> usize {
        self.entries().count()
    }

    /// Whether there is no price.
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    /// The names that have prices, in no order.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        let prices = self.lists.iter().flat_map(|list| list.prices.iter());
        prices.filter(|(_, price)| price.is_some()).map(|(name, _)| &**name)
    }

    /// The entries that were left out when lists were read, and why.
    pub fn skipped(&self) -> impl Iterator<Item = &PriceProblem> {
        self.lists.iter().flat_map(|list| list.skipped.iter())
    }
}

// ===== impl List =====

impl List {
    fn new(source: Arc<str>, version: &Arc<str>, prices: Entries, skipped: Arc<[PriceProblem]>) -> Self {
        let origin = |entry: &Arc<str>| {
            let (source, version) = (Arc::clone(&source), Arc::clone(version));
            Arc::new(PriceOrigin { entry: Arc::clone(entry), source, version })
        };
        let quote = |(entry, price): (Arc<str>, Option<Arc<Price>>)| {
            let quote = price.map(|price| Quote { price, origin: origin(&entry) });
            (entry, quote)
        };
        let prices = Arc::new(prices.into_iter().map(quote).collect());
        Self { source, prices, skipped }
    }

    /// What this list says of a model: its price, or that it has none.
    fn find(&self, model: &str) -> Option<&Option<Quote>> {
        self.prices.get(model).or_else(|| self.prices.get(model.split_once('/')?.1))
    }
}

/// FNV-1a: tells two contents of a file apart, and is the same everywhere.
fn digest(bytes: &[u8]) -> Arc<str> {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)).into()
}

// ===== impl Quote =====

impl Quote {
    /// What a call cost in a service tier.
    ///
    /// # Errors
    ///
    /// As [`Price::cost`].
    pub fn cost(&self, tier: ServiceTier, usage: &TokenUsage) -> Result<NanoUsd, CostError> {
        self.price.cost_at(tier, usage)
    }
}

// ===== impl Cost =====

impl Cost {
    /// Nothing had to be paid, whatever the price is: an answer from the cache.
    pub const fn nothing() -> Self {
        Self { amount: Some(NanoUsd::ZERO), origin: None }
    }

    /// Nobody knows.
    pub const fn unpriced() -> Self {
        Self { amount: None, origin: None }
    }
}

// ===== impl Prices =====

impl Prices {
    /// Starts with `book`.
    pub fn new(book: PriceBook) -> Self {
        Self::of(Arc::new(Shared { book: ArcSwap::from_pointee(book), stored: AtomicU64::new(0) }))
    }

    fn of(shared: Arc<Shared>) -> Self {
        let stored_before = shared.stored.load(Ordering::Acquire);
        Self { found: shared.book.load_full(), shared, stored_before }
    }

    /// Calls that are priced from now on are priced by `book`.
    pub fn store(&self, book: PriceBook) {
        self.shared.book.store(Arc::new(book));
        self.shared.stored.fetch_add(1, Ordering::Release);
    }

    /// The book of this moment.
    pub fn load(&self) -> Arc<PriceBook> {
        self.shared.book.load_full()
    }

    fn read<T>(&self, read: impl FnOnce(&PriceBook) -> T) -> T {
        match self.shared.stored.load(Ordering::Acquire) == self.stored_before {
            true => read(&self.found),
            false => read(&self.shared.book.load()),
        }
    }

    /// The price of a model, if there is one.
    pub fn quote(&self, model: &str) -> Option<Quote> {
        self.read(|book| book.quote(model))
    }

    /// The price alone.
    pub(crate) fn price(&self, model: &str) -> Option<Arc<Price>> {
        self.read(|book| book.price(model).cloned())
    }

    /// What a call of `model` cost, if there is a price for all of it, and nothing more.
    pub(crate) fn amount(&self, model: &str, billed: &Billed) -> Option<NanoUsd> {
        self.read(|book| Some(book.price(model)?.bill(billed).ok()?.0))
    }

    /// As [`amount`](Self::amount), and by which price. The usage is an estimate from then on where it does not tell what
    /// the cost depends on.
    pub(crate) fn bill(&self, model: &str, billed: &mut Billed) -> Cost {
        self.cost_by(model, |price| {
            let (amount, is_guess) = price.bill(billed)?;
            if is_guess && billed.usage.certainty == Certainty::Exact {
                billed.usage.certainty = Certainty::Estimated;
            }
            Ok(amount)
        })
    }

    /// What a call of `model` cost in the standard tier.
    pub fn cost(&self, model: &str, usage: &TokenUsage) -> Cost {
        self.cost_at(ServiceTier::Standard, model, usage)
    }

    /// What a call of `model` cost in a service tier.
    pub fn cost_at(&self, tier: ServiceTier, model: &str, usage: &TokenUsage) -> Cost {
        self.cost_by(model, |price| price.cost_at(tier, usage))
    }

    fn cost_by(&self, model: &str, cost: impl FnOnce(&Price) -> Result<NanoUsd, CostError>) -> Cost {
        self.read(|book| match book.find(model) {
            Some(Quote { price, origin }) => {
                Cost { amount: cost(price).ok(), origin: Some(Arc::clone(origin)) }
            }
            None => Cost::unpriced(),
        })
    }
}

impl Clone for Prices {
    fn clone(&self) -> Self {
        Self::of(Arc::clone(&self.shared))
    }
}

impl Default for Prices {
    fn default() -> Self {
        Self::new(PriceBook::new())
    }
}

impl From<PriceBook> for Prices {
    fn from(book: PriceBook) -> Self {
        Self::new(book)
    }
}
