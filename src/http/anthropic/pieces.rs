//! Members that are read, and JSON that is written.

use crate::{Error, InvalidReason, json};

/// The members of an object that are read, found in one pass.
///
/// Twice, one would be read here and the other obeyed elsewhere.
pub(super) fn members<'a, const N: usize>(
    path: &str,
    object: &'a [u8],
    names: [&str; N],
) -> Result<[Option<&'a [u8]>; N], Error> {
    let mut found = [None; N];
    for (raw, value) in json::members(object) {
        let Some(at) = names.iter().position(|name| json::is_name(raw, name)) else { continue };
        if found[at].replace(value).is_some() {
            return Err(Error::invalid(format!("{path}.{}", names[at]), InvalidReason::Duplicate));
        }
    }
    Ok(found)
}

/// A string that must be there, as JSON.
pub(super) fn string<'a>(path: &str, value: Option<&'a [u8]>, name: &str) -> Result<&'a [u8], Error> {
    let value = required(path, value, name)?;
    let is_string = value.first() == Some(&b'"');
    is_string.then_some(value).ok_or_else(|| mistyped(&format!("{path}.{name}"), "a string"))
}

/// An object, as JSON.
pub(super) fn object<'a>(path: &str, value: &'a [u8]) -> Result<&'a [u8], Error> {
    (value.first() == Some(&b'{')).then_some(value).ok_or_else(|| mistyped(path, "an object"))
}

/// A member that must be there, as JSON.
pub(super) fn required<'a>(path: &str, value: Option<&'a [u8]>, name: &str) -> Result<&'a [u8], Error> {
    let value = value.filter(|value| *value != b"null");
    value.ok_or_else(|| Error::invalid(format!("{path}.{name}"), InvalidReason::Missing))
}

/// Strings of JSON as one, with empty lines between them.
pub(super) fn paragraphs<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    for string in strings {
        if !all.is_empty() {
            all.push(&br#""\n\n""#[..]);
        }
        all.push(string);
    }
    joined(&all)
}

/// Strings of JSON as one: what stands between their quotes needs no other spelling.
pub(super) fn joined(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for string in strings {
        out.extend_from_slice(string.get(1..string.len().saturating_sub(1)).unwrap_or_default());
    }
    out.push(b'"');
    out
}

pub(super) fn unsupported(member: &str) -> Error {
    Error::invalid(member, InvalidReason::Unsupported)
}

pub(super) fn mistyped(member: &str, expected: &'static str) -> Error {
    Error::invalid(member, InvalidReason::Mistyped { expected })
}

/// An object that is being written.
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut out = Vec::with_capacity(bytes);
        out.push(b'{');
        Self(out)
    }

    pub(super) fn member(&mut self, name: &str, value: &[u8]) {
        self.raw_member(&json::quoted(name), value);
    }

    pub(super) fn raw_member(&mut self, raw_name: &[u8], value: &[u8]) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        for part in [raw_name, b":", value] {
            self.0.extend_from_slice(part);
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

/// An array of objects that is being written.
#[derive(Default)]
pub(super) struct List(Vec<u8>);

impl List {
    /// An object that begins with `head` and ends with a value.
    pub(super) fn item(&mut self, head: &[u8], value: &[u8]) {
        self.0.push(if self.0.is_empty() { b'[' } else { b',' });
        for part in [head, value, b"}"] {
            self.0.extend_from_slice(part);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        if self.0.is_empty() {
            self.0.push(b'[');
        }
        self.0.push(b']');
        self.0
    }
}
