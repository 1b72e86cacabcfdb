//! What a field can be told, where that is more than a number or a text.

use crate::price::{AmountReason, NanoUsd, Rate};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{borrow::Cow, fmt, net::SocketAddr, path::PathBuf, time::Duration};

/// A time, as text: a whole number and `ms`, `s`, `m`, `h` or `d`. More than nothing, and no more than a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// An amount of dollars, as decimal text such as `"12.50"`. Never a float: nothing is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dollars(pub NanoUsd);

/// Dollars for a million tokens, as decimal text such as `"0.15"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerMillion(pub Rate);

/// A host's address and a port, such as `"127.0.0.1:8080"` or `"[::1]:8080"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(pub SocketAddr);

/// Where a server is, such as `https://api.openai.com/v1`. `Debug` shows it without its query, which some servers take a key in.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
pub struct BaseUrl(pub Box<str>);

/// Something that nobody may see: the text itself, the environment variable `{ env = "NAME" }`, or the file
/// `{ file = "PATH" }`, whose last line break does not count. `Debug` shows where it is, never what it is.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Secret {
    /// The text itself.
    Text(Box<str>),
    /// The environment variable of this name.
    Env(Box<str>),
    /// The file at this path.
    File(PathBuf),
}

impl From<Duration> for Time {
    fn from(time: Duration) -> Self {
        Self(time)
    }
}

impl From<&str> for BaseUrl {
    fn from(url: &str) -> Self {
        Self(url.into())
    }
}

impl From<String> for BaseUrl {
    fn from(url: String) -> Self {
        Self(url.into())
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl Time {
    pub(super) const fn secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(super) const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }
}

/// How a text is written that is more than a text. The schema names it as `format`.
pub(super) struct Format {
    pub(super) name: &'static str,
    /// What it must be, after "must be".
    pub(super) expected: &'static str,
    /// One that is right.
    pub(super) sample: &'static str,
    pub(super) is_right: fn(&str) -> bool,
}

pub(super) const FORMATS: [Format; 4] = [
    Format {
        name: "time",
        expected: "a time such as \"250ms\", \"30s\" or \"5m\"",
        sample: "1s",
        is_right: |text| time(text).is_some(),
    },
    Format {
        name: "dollars",
        expected: "an amount of dollars as text, such as \"12.50\"",
        sample: "1",
        is_right: |text| text.parse::<NanoUsd>().is_ok(),
    },
    Format {
        name: "dollars-per-million",
        expected: "dollars for a million tokens as text, such as \"0.15\"",
        sample: "1",
        is_right: |text| Rate::per_million(text).is_ok(),
    },
    Format {
        name: "address",
        expected: "an address such as \"127.0.0.1:8080\"",
        sample: "127.0.0.1:1",
        is_right: |text| text.parse::<SocketAddr>().is_ok(),
    },
];

fn time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
    // Nobody waits for a year, and clocks do not overflow.
    (1..=31_536_000_000).contains(&millis).then(|| Duration::from_millis(millis))
}

/// What is wrong with an amount, without the amount.
pub(super) fn amount(reason: &AmountReason) -> String {
    match reason {
        AmountReason::TooPrecise { places } => format!("has more than {places} decimal places"),
        AmountReason::Negative => "is negative".into(),
        AmountReason::TooLarge => "is too large".into(),
        _ => "is not a decimal number".into(),
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
            if millis > 0 && millis.is_multiple_of(length) {
                return write!(f, "{}{unit}", millis / length);
            }
        }
        write!(f, "{millis}ms")
    }
}

impl BaseUrl {
    /// What of it may be shown.
    pub(crate) fn shown(&self) -> &str {
        self.0.split_once('?').map_or(&*self.0, |(shown, _)| shown)
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BaseUrl").field(&self.shown()).finish()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Secret"),
            Self::Env(name) => write!(f, "Secret(env {name:?})"),
            Self::File(path) => write!(f, "Secret(file {})", path.display()),
        }
    }
}

macro_rules! text {
    ($type:ident, $format:literal, $pattern:expr, $read:expr, $write:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let read: fn(&str) -> Option<$type> = $read;
                read(&text).ok_or_else(|| D::Error::custom(concat!("not of the format ", $format)))
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let write: fn(&$type) -> String = $write;
                serializer.serialize_str(&write(self))
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let pattern: Option<&str> = $pattern;
                let mut schema = json_schema!({ "type": "string", "format": $format });
                if let Some(pattern) = pattern {
                    schema.insert("pattern".into(), pattern.into());
                }
                schema
            }
        }
    };
}

text!(Time, "time", Some("^[0-9]+(ms|s|m|h|d)$"), |text| time(text).map(Self), |time| time.to_string());
text!(Dollars, "dollars", Some(r"^[0-9]+(\.[0-9]+)?$"), |text| text.parse().ok().map(Self), |dollars| {
    dollars.0.to_string()
});
text!(
    PerMillion,
    "dollars-per-million",
    Some(r"^[0-9]+(\.[0-9]+)?$"),
    |text| Rate::per_million(text).ok().map(Self),
    |_| String::new()
);
text!(Address, "address", None, |text| text.parse().ok().map(Self), |address| address.0.to_string());

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Text(Box<str>),
            From(From),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum From {
            Env(Box<str>),
            File(PathBuf),
        }
        // What serde says of an untagged enum that fits nothing shows no value.
        Ok(match Raw::deserialize(deserializer)? {
            Raw::Text(text) => Self::Text(text),
            Raw::From(From::Env(name)) => Self::Env(name),
            Raw::From(From::File(path)) => Self::File(path),
        })
    }
}

impl JsonSchema for BaseUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "BaseUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Something that nobody may see: the text itself, an environment variable, or a file.",
            "anyOf": [
                { "type": "string", "minLength": 1 },
                {
                    "type": "object",
                    "properties": {
                        "env": { "type": "string", "minLength": 1, "description": "The environment variable that holds it." },
                        "file": { "type": "string", "minLength": 1, "description": "The file that holds it." }
                    },
                    "additionalProperties": false,
                    "minProperties": 1,
                    "maxProperties": 1
                }
            ]
        })
    }
}

/// Where secrets are looked up.
pub(crate) type Env<'a> = &'a (dyn Fn(&str) -> Option<String> + Sync);

/// A secret's text. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Revealed(Box<str>);

impl Revealed {
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Revealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revealed")
    }
}

impl Secret {
    /// Its text, or why there is none.
    pub(crate) fn reveal(&self, env: Env<'_>) -> Result<Revealed, String> {
        let text = match self {
            Self::Text(text) => text.clone(),
            Self::Env(name) => match env(name) {
                Some(text) => text.into(),
                // A key in the place of a name is not shown.
                None if is_name(name) => return Err(format!("the environment variable {name:?} is not set")),
                None => return Err("this is not the name of an environment variable".into()),
            },
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => text.strip_suffix('\n').map_or(&*text, |line| line.trim_end_matches('\r')).into(),
                Err(error) => return Err(format!("the file cannot be read: {}", error.kind())),
            },
        };
        match !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(Revealed(text)),
            false => Err("must be visible ASCII, and not empty".into()),
        }
    }
}

fn is_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
