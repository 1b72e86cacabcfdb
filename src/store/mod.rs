//! What layers have in common that ask a store.

mod breaker;

pub(crate) use self::breaker::Breaker;
