use super::decimal::AmountError;
use std::{fmt, io, sync::Arc};

/// A list of prices that cannot be used.
#[derive(Debug)]
pub struct PriceError {
    list: Arc<str>,
    kind: PriceErrorKind,
}

/// Why a list of prices cannot be used.
#[derive(Debug)]
#[non_exhaustive]
pub enum PriceErrorKind {
    /// The file cannot be read.
    Unreadable(io::Error),
    /// It is no format that is known here: files end in `.json`, or in `.toml` with the feature `toml`.
    UnknownFormat,
    /// It is not JSON, not TOML, or not text.
    Syntax {
        /// Where, from 1.
        line: usize,
        /// What the parser says.
        message: Box<str>,
    },
    /// There is no price in it at all.
    NoPrices,
    /// Entries are wrong. These are all of them.
    Entries(Vec<PriceProblem>),
}

/// An entry of a list that is not used, or is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PriceProblem {
    /// The model; empty for what concerns the list as a whole.
    pub entry: Box<str>,
    /// The member at fault, if it is one.
    pub member: Option<Box<str>>,
    /// Where it stands in the file, from 1; for a list in JSON, where the entry begins.
    pub line: Option<usize>,
    /// What is wrong.
    pub reason: PriceReason,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PriceReason {
    /// Something is not an amount.
    Amount(AmountError),
    /// Something has the wrong type.
    Mistyped {
        /// What it must be.
        expected: &'static str,
    },
    /// It is not known here; perhaps it is misspelt.
    Unknown,
    /// It is there twice.
    Duplicate,
    /// The currency is not the dollar.
    Currency,
    /// Something must be there.
    Missing,
    /// The ranges of lengths do not follow each other from zero.
    Ranges,
    /// It has no price by the token or by the request: a model that is paid by the image, or one that is free of
    /// charge or unknown.
    NoTokenPrice,
    /// It shows how to write an entry.
    Example,
}

impl PriceError {
    pub(super) fn new(list: impl Into<Arc<str>>, kind: PriceErrorKind) -> Self {
        Self { list: list.into(), kind }
    }

    /// The list: its path, or what it was called when it was handed over.
    pub fn list(&self) -> &str {
        &self.list
    }

    /// What is wrong with it.
    pub const fn kind(&self) -> &PriceErrorKind {
        &self.kind
    }
}

impl std::error::Error for PriceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            PriceErrorKind::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for PriceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = &self.list;
        match &self.kind {
            PriceErrorKind::Unreadable(_) => write!(f, "the price list {list} cannot be read"),
            PriceErrorKind::UnknownFormat => write!(f, "the price list {list} is of no known format"),
            PriceErrorKind::Syntax { line, message } => {
                write!(f, "the price list {list}, line {line}: {message}")
            }
            PriceErrorKind::NoPrices => write!(f, "the price list {list} has no prices"),
            PriceErrorKind::Entries(problems) => {
                write!(f, "the price list {list}")?;
                for (at, problem) in problems.iter().enumerate() {
                    write!(f, "{} {problem}", if at == 0 { ":" } else { ";" })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for PriceProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.entry, &self.member) {
            ("", None) => f.write_str("the list")?,
            ("", Some(member)) => write!(f, "{member}")?,
            (entry, None) => write!(f, "{entry}")?,
            (entry, Some(member)) => write!(f, "{member} of {entry}")?,
        }
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for PriceReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Amount(error) => error.fmt(f),
            Self::Mistyped { expected } => write!(f, "must be {expected}"),
            Self::Unknown => f.write_str("is not known"),
            Self::Duplicate => f.write_str("is there twice"),
            Self::Currency => f.write_str("must be USD"),
            Self::Missing => f.write_str("is missing"),
            Self::Ranges => f.write_str("ranges must follow each other from 0"),
            Self::NoTokenPrice => f.write_str("has no price by the token"),
            Self::Example => f.write_str("is an example"),
        }
    }
}
