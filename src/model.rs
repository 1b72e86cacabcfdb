use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

/// The name of a model: an alias, `provider/model`, or just `model`.
///
/// Cloning costs one reference count. The provider is what stands before the *first* slash; models may
/// contain further ones (`openrouter/meta-llama/llama-3`).
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, to be shared.
    pub(crate) const fn shared(&self) -> &Arc<str> {
        &self.0
    }

    /// What stands before and after the first slash, or `None` for a bare name.
    pub fn split(&self) -> Option<(&str, &str)> {
        self.0.split_once('/')
    }

    /// The name with a provider in front.
    #[must_use]
    pub fn in_provider(provider: &str, model: &str) -> Self {
        let mut name = String::with_capacity(provider.len() + 1 + model.len());
        name.extend([provider, "/", model]);
        name.into()
    }
}

impl Clone for ModelName {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Counts nothing where it is the same already, as it is in most answers.
    fn clone_from(&mut self, other: &Self) {
        if !Arc::ptr_eq(&self.0, &other.0) {
            self.0 = Arc::clone(&other.0);
        }
    }
}

impl Deref for ModelName {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ModelName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<S: Into<Arc<str>>> From<S> for ModelName {
    fn from(name: S) -> Self {
        Self(name.into())
    }
}

impl PartialEq<str> for ModelName {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for ModelName {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
