use super::Fetch;
use crate::{KbScope, RequestContext, forward::forward};
use std::sync::Arc;

/// What a knowledge base says of caching answers that draw on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KbCaching {
    /// They may be kept.
    Allowed,
    /// They may not.
    Disabled,
}

/// Knows the settings of knowledge bases.
///
/// Asked before an entry is looked for and again before one is kept, within a deadline. No answer, a late one, an
/// error and a panic mean no. Any function of the right form is one:
///
/// ```
/// use llm_layers::{KbScope, RequestContext, cache::{CachePolicy, CacheSecret, Fetch, KbCaching}};
///
/// let policy = CachePolicy::new(CacheSecret::random()).with_kb_settings(
///     |kb: &KbScope, _: &RequestContext| {
///         let id = kb.id.clone();
///         Fetch::pending(async move {
///             // In earnest, a question to a database.
///             Ok(if &*id == "handbook" { KbCaching::Allowed } else { KbCaching::Disabled })
///         })
///     },
/// );
/// ```
pub trait KbSettings: Send + Sync + 'static {
    /// Whether answers to this caller that draw on `kb` may be kept.
    fn caching(&self, kb: &KbScope, context: &RequestContext) -> Fetch<KbCaching>;
}

impl<F> KbSettings for F
where
    F: Fn(&KbScope, &RequestContext) -> Fetch<KbCaching> + Send + Sync + 'static,
{
    fn caching(&self, kb: &KbScope, context: &RequestContext) -> Fetch<KbCaching> {
        self(kb, context)
    }
}

// A box of a function is a function itself, and so none of a trait.
forward! {
    KbSettings for [Arc] {
        fn caching(&self, kb: &KbScope, context: &RequestContext) -> Fetch<KbCaching>;
    }
}
