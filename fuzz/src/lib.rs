//! What fuzzing looks for: see `laws`.

#![forbid(unsafe_code)]

pub mod laws;
