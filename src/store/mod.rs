//! What layers keep their state in.
//!
//! [`Redis`] (feature `redis`) is a connection to a server or a cluster that any number of layers share; what is kept
//! there and how is said where it is used. It connects when it is first asked, and again by itself.
//!
#![cfg_attr(feature = "redis", doc = "```")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use llm_layers::store::{Redis, RedisOptions};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::store::RedisError> {
//! let options = RedisOptions::default().with_deadline(Duration::from_millis(250));
//! let redis = Redis::new("redis://:secret@127.0.0.1:6379", options)?;
//! // No password is shown.
//! assert!(!format!("{redis:?}").contains("secret"));
//! assert!(Redis::new("http://127.0.0.1", RedisOptions::default()).is_err());
//! # Ok(())
//! # }
//! ```

mod breaker;
#[cfg(feature = "redis")]
pub(crate) mod redis;

pub(crate) use self::breaker::Breaker;

use std::{
    mem,
    sync::{Mutex, PoisonError},
};

#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisError, RedisErrorKind, RedisOptions};

/// What fails, as it was told in the log: each cause once, until it works again.
#[derive(Debug, Default)]
pub(crate) struct Trouble(Told);

/// The causes that were told.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Vec<Box<str>>>);

/// How many causes are known to have been told. Some say when, or to whom, and are never the same.
const TOLD: usize = 32;

impl Trouble {
    pub(crate) fn fails(&self, what: &'static str, cause: &str) {
        if self.0.is_new(cause) {
            tell(what, Some(cause));
        }
    }

    pub(crate) fn works(&self, what: &'static str) {
        if self.0.forget() {
            tell(what, None);
        }
    }
}

impl Told {
    /// Whether it is to be told: not again.
    pub(crate) fn is_new(&self, cause: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = !told.iter().any(|known| **known == *cause);
        if is_new {
            if told.len() == TOLD {
                told.remove(0);
            }
            told.push(cause.into());
        }
        is_new
    }

    /// It works again: all that comes is new. Whether anything was told.
    pub(crate) fn forget(&self) -> bool {
        !mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).is_empty()
    }
}

#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "there is nobody to tell"))]
fn tell(what: &'static str, error: Option<&str>) {
    #[cfg(feature = "tracing")]
    match error {
        Some(error) => tracing::error!(error, "{what}"),
        None => tracing::info!("{what}"),
    }
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use super::*;
    use std::{io, sync::Arc};

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_cause_is_told_once_until_it_works_again() {
        let (log, trouble) = (Log::default(), Trouble::default());
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().without_time().with_ansi(false);
        tracing::subscriber::with_default(subscriber.with_writer(move || writer.clone()).finish(), || {
            trouble.works("again");
            for cause in ["gone", "gone", "refused", "gone", "refused"] {
                trouble.fails("it fails", cause);
            }
            trouble.works("again");
            trouble.works("again");
            trouble.fails("it fails", "refused");
        });
        let told = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let told: Vec<_> = told.lines().map(|line| line.split_once("store: ").unwrap().1).collect();
        let expected =
            ["it fails error=\"gone\"", "it fails error=\"refused\"", "again", "it fails error=\"refused\""];
        assert_eq!(told, expected);
    }
}
