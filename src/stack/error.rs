use crate::{
    BoxError,
    config::{ConfigError, Problem},
};
use std::fmt;

/// A stack that cannot be built.
#[derive(Debug)]
#[non_exhaustive]
pub enum StackError {
    /// The configuration, or what the builder was told beside it, is wrong.
    Config(ConfigError),
    /// A store cannot be opened.
    Store {
        /// The entry that names it.
        entry: &'static str,
        /// Why.
        source: BoxError,
    },
}

impl StackError {
    pub(super) fn store(entry: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Store { entry, source: source.into() }
    }

    pub(super) fn of(problems: Vec<Problem>) -> Self {
        Self::Config(ConfigError::new(problems))
    }
}

impl From<ConfigError> for StackError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl std::error::Error for StackError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(_) => None,
            Self::Store { source, .. } => Some(&**source),
        }
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Store { entry, source } => write!(f, "{entry}: cannot be opened: {source}"),
        }
    }
}
