//! Price lists of our own, in TOML.

use super::{
    book::Entries,
    cost::{Price, ServiceTier},
    decimal::AmountError,
    error::{PriceErrorKind, PriceProblem, PriceReason},
    rate::{Rate, Rates, TokenClass},
    search::SearchPrice,
};
use std::sync::Arc;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

pub(super) struct List {
    pub(super) source: Option<Arc<str>>,
    pub(super) version: Option<Arc<str>>,
    pub(super) entries: Entries,
}

pub(super) fn read(text: &str) -> Result<List, PriceErrorKind> {
    let table = DeTable::parse(text).map_err(|error| PriceErrorKind::Syntax {
        line: line(text, error.span().map_or(0, |span| span.start)),
        message: error.message().into(),
    })?;
    let mut reader = Reader { text, entry: "", problems: Vec::new() };
    let list = reader.list(table.get_ref());
    match reader.problems {
        problems if !problems.is_empty() => Err(PriceErrorKind::Entries(problems)),
        _ if list.entries.is_empty() => Err(PriceErrorKind::NoPrices),
        _ => Ok(list),
    }
}

fn line(text: &str, at: usize) -> usize {
    1 + memchr::memchr_iter(b'\n', &text.as_bytes()[..at.min(text.len())]).count()
}

/// Of how many tokens a number is the price.
#[derive(Clone, Copy)]
enum Per {
    Million,
    Thousand,
    Token,
}

impl Per {
    fn rate(self, text: &str) -> Result<Rate, AmountError> {
        match self {
            Self::Million => Rate::per_million(text),
            Self::Thousand => Rate::per_thousand(text),
            Self::Token => Rate::each(text),
        }
    }
}

/// Reads on where something is wrong, so that all of it is told at once.
struct Reader<'a> {
    text: &'a str,
    entry: &'a str,
    problems: Vec<PriceProblem>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl<'a> Reader<'a> {
    fn list(&mut self, table: &'a DeTable<'a>) -> List {
        let mut list = List { source: None, version: None, entries: Entries::new() };
        let per = self.per(table, Per::Million);
        for (name, value) in table {
            match &**name.get_ref() {
                "source" => list.source = self.string(name, value).map(Arc::from),
                "version" => list.version = self.string(name, value).map(Arc::from),
                "per" => {}
                "currency" => {
                    if self.string(name, value).is_some_and(|currency| currency != "USD") {
                        self.wrong("currency", value, PriceReason::Currency);
                    }
                }
                "models" => {
                    for (name, value) in self.table(name, value).into_iter().flatten() {
                        self.entry = name.get_ref();
                        if self.entry.trim().is_empty() {
                            self.wrong("models", value, PriceReason::Missing);
                        }
                        let price = self.table(name, value).map(|table| self.price(table, per));
                        list.entries
                            .extend(price.map(|price| (Arc::from(&**name.get_ref()), Some(Arc::new(price)))));
                    }
                    self.entry = "";
                }
                _ => self.unknown(name),
            }
        }
        list
    }

    fn price(&mut self, table: &'a DeTable<'a>, per: Per) -> Price {
        let per = self.per(table, per);
        let mut price = Price::new(Rates::new());
        let before = self.problems.len();
        self.tier(&mut price, ServiceTier::Standard, table, per);
        let base = price.rates(ServiceTier::Standard, 0);
        if base.input.or(base.output).or(base.request).is_none() && self.problems.len() == before {
            self.problem(None, None, PriceReason::NoTokenPrice);
        }
        price
    }

    /// Everything of one service tier; the tables of the others stand in that of the standard one.
    fn tier(&mut self, price: &mut Price, tier: ServiceTier, table: &'a DeTable<'a>, per: Per) {
        for (name, value) in table {
            let other =
                ServiceTier::from_name(name.get_ref()).filter(|other| other.name() == &**name.get_ref());
            match (&**name.get_ref(), other) {
                ("per", _) if tier == ServiceTier::Standard => {}
                ("tiers", _) => {
                    let DeValue::Array(tiers) = value.get_ref() else {
                        self.wrong("tiers", value, PriceReason::Mistyped { expected: "an array of tables" });
                        continue;
                    };
                    for value in tiers {
                        if let Some(table) = self.table(name, value) {
                            self.above(price, tier, value, table, per);
                        }
                    }
                }
                ("search", _) if tier == ServiceTier::Standard => {
                    price.search = self.amount("search", value, Per::Token).map(SearchPrice::each);
                }
                (_, Some(other)) if tier == ServiceTier::Standard && other != tier => {
                    if let Some(table) = self.table(name, value) {
                        self.tier(price, other, table, per);
                    }
                }
                _ => self.rate(price.step(None, tier), name, value, per),
            }
        }
    }

    fn above(
        &mut self,
        price: &mut Price,
        tier: ServiceTier,
        at: &Value<'a>,
        table: &'a DeTable<'a>,
        per: Per,
    ) {
        let mut rates = Rates::new();
        let mut above = None;
        for (name, value) in table {
            if &**name.get_ref() != "above" {
                self.rate(&mut rates, name, value, per);
                continue;
            }
            above = value.get_ref().as_integer().and_then(|number| {
                u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
            });
            if above.is_none() {
                let expected = "a number of tokens";
                self.wrong("above", value, PriceReason::Mistyped { expected });
                return;
            }
        }
        match above {
            None => self.wrong("above", at, PriceReason::Missing),
            Some(_) if rates == Rates::new() => self.wrong("tiers", at, PriceReason::NoTokenPrice),
            above => {
                let step = price.step(above, tier);
                if *step != Rates::new() {
                    return self.wrong("above", at, PriceReason::Duplicate);
                }
                *step = rates;
            }
        }
    }

    fn rate(&mut self, rates: &mut Rates, name: &Spanned<impl AsRef<str>>, value: &Value<'a>, per: Per) {
        let Some(class) = TokenClass::ALL.into_iter().find(|class| class.name() == name.get_ref().as_ref())
        else {
            return self.unknown(name);
        };
        let per = if class == TokenClass::Request { Per::Token } else { per };
        if let Some(rate) = self.amount(class.name(), value, per) {
            *rates.get_mut(class) = Some(rate);
        }
    }

    fn amount(&mut self, member: &str, value: &Value<'a>, per: Per) -> Option<Rate> {
        // Of numbers the text, as it stands in the file: a float would not be what was written.
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().replace('_', ""),
            DeValue::Float(number) => number.as_str().replace('_', ""),
            _ => {
                self.wrong(member, value, PriceReason::Mistyped { expected: "an amount in dollars" });
                return None;
            }
        };
        per.rate(&text).map_err(|error| self.wrong(member, value, PriceReason::Amount(error))).ok()
    }

    fn per(&mut self, table: &'a DeTable<'a>, otherwise: Per) -> Per {
        let Some(value) = table.get("per") else { return otherwise };
        match value.get_ref().as_str() {
            Some("1M") => Per::Million,
            Some("1k") => Per::Thousand,
            Some("token") => Per::Token,
            _ => {
                let expected = r#""1M", "1k" or "token""#;
                self.wrong("per", value, PriceReason::Mistyped { expected });
                otherwise
            }
        }
    }

    fn string<'v>(&mut self, name: &Spanned<impl AsRef<str>>, value: &'v Value<'a>) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong(name.get_ref().as_ref(), value, PriceReason::Mistyped { expected: "a string" });
        }
        text
    }

    fn table<'v>(
        &mut self,
        name: &Spanned<impl AsRef<str>>,
        value: &'v Value<'a>,
    ) -> Option<&'v DeTable<'a>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(name.get_ref().as_ref(), value, PriceReason::Mistyped { expected: "a table" });
        }
        table
    }

    fn unknown(&mut self, name: &Spanned<impl AsRef<str>>) {
        let line = line(self.text, name.span().start);
        self.problem(Some(name.get_ref().as_ref().into()), Some(line), PriceReason::Unknown);
    }

    fn wrong(&mut self, member: &str, value: &Value<'a>, reason: PriceReason) {
        // What is said of an entry itself names it once.
        let member = (member != self.entry).then(|| member.into());
        self.problem(member, Some(line(self.text, value.span().start)), reason);
    }

    fn problem(&mut self, member: Option<Box<str>>, line: Option<usize>, reason: PriceReason) {
        self.problems.push(PriceProblem { entry: self.entry.into(), member, line, reason });
    }
}
