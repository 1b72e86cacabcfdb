//! `gateway convert`: configurations of others, as this one's.
//!
//! What comes out is checked; what could not be carried over is told, one line each, and never with a value that may be a
//! secret.

mod draft;
mod litellm;
mod read;
mod seed;

#[cfg(test)]
mod tests;

use self::draft::Draft;
use llm_layers::config::{Config, ConfigError};
use serde_json::{Map, Value};
use std::path::Path;

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    LiteLlm,
    Seed,
}

/// A configuration, and what it lacks.
#[derive(Debug)]
pub(crate) struct Converted {
    pub(crate) toml: String,
    pub(crate) notes: Vec<String>,
    /// What is wrong with it all the same.
    pub(crate) problems: Option<ConfigError>,
}

impl From {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "litellm" => Some(Self::LiteLlm),
            "seed" => Some(Self::Seed),
            _ => None,
        }
    }
}

pub(crate) fn file(from: From, path: &Path) -> Result<Converted, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("{shown}: {error}"))?;
    convert(from, &text).map_err(|problem| format!("{shown}: {problem}"))
}

fn convert(from: From, text: &str) -> Result<Converted, String> {
    Ok(convert_table(from, &read::yaml(text)?))
}

fn convert_table(from: From, root: &Map<String, Value>) -> Converted {
    let mut draft = Draft::default();
    match from {
        From::LiteLlm => litellm::convert(root, &mut draft),
        From::Seed => seed::convert(root, &mut draft),
    }
    let (toml, mut notes) = draft.finish();
    // Variables need not be set here: what stands for them is right wherever it is asked for.
    let problems = Config::parse_with(&toml, &|name| Some(sample(name))).err();
    notes.dedup();
    Converted { toml, notes, problems }
}

/// A value that an environment variable may have.
fn sample(name: &str) -> String {
    match name.ends_with("_REDIS_URL") {
        true => "redis://127.0.0.1:6379".to_owned(),
        // Keys must differ from each other, and what seals a cache be long enough.
        false => format!("{name:.<32}"),
    }
}
