//! What fuzzing looks for: see `laws`.

pub mod laws;
