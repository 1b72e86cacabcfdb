use crate::ModelName;
use std::sync::Arc;

/// Which providers there are, and how the name of a model leads to one.
///
/// `provider/model` is split at the first slash, and the provider must be registered; a bare name leads to
/// the only provider there is, if there is only one. Cloning costs one reference count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderNames(Arc<[Arc<str>]>);

impl ProviderNames {
    /// These providers.
    pub fn new<N: Into<Arc<str>>>(names: impl IntoIterator<Item = N>) -> Self {
        let mut names: Vec<Arc<str>> = names.into_iter().map(Into::into).collect();
        names.sort();
        names.dedup();
        Self(names.into())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    /// The provider that serves `model`, without asking it.
    pub fn provider_for(&self, model: &str) -> Option<&str> {
        self.route(model).map(|(at, _)| &*self.0[at])
    }

    /// `model` with its provider in front; as it is, if that cannot be told.
    pub fn canonical(&self, model: &ModelName) -> ModelName {
        match (&*self.0, model.split()) {
            ([only], None) => ModelName::in_provider(only, model),
            _ => model.clone(),
        }
    }

    /// The only one, if there is only one: the one that bare names are of.
    pub(crate) fn only(&self) -> Option<&str> {
        match &*self.0 {
            [only] => Some(only),
            _ => None,
        }
    }

    pub(super) fn at(&self, at: usize) -> Arc<str> {
        Arc::clone(&self.0[at])
    }

    /// Where the provider stands in the list, and what the model is called there.
    pub(super) fn route<'a>(&self, model: &'a str) -> Option<(usize, &'a str)> {
        match model.split_once('/') {
            Some((provider, model)) if !model.is_empty() => {
                let at = self.0.binary_search_by(|name| (**name).cmp(provider)).ok()?;
                Some((at, model))
            }
            None if self.0.len() == 1 && !model.is_empty() => Some((0, model)),
            _ => None,
        }
    }
}
