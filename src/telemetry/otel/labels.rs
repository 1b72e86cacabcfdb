use super::super::semconv::OTHER;
use arc_swap::ArcSwap;
use std::{collections::HashSet, sync::Arc};

/// The names of models that metrics tell apart: a bounded number. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Labels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    known: ArcSwap<HashSet<Arc<str>>>,
    other: Arc<str>,
    max: usize,
}

impl Labels {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { known: ArcSwap::default(), other: OTHER.into(), max }))
    }

    /// `name` as a label: itself if it is known, or may become so.
    pub(super) fn label(&self, name: &str, may_be_added: bool) -> Arc<str> {
        let Inner { known, other, max } = &*self.0;
        {
            let known = known.load();
            if let Some(name) = known.get(name) {
                return Arc::clone(name);
            }
            if !may_be_added || known.len() >= *max {
                return Arc::clone(other);
            }
        }
        let name: Arc<str> = name.into();
        known.rcu(|known| {
            let mut known = HashSet::clone(known);
            if known.len() < *max {
                known.insert(Arc::clone(&name));
            }
            known
        });
        self.label(&name, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_may_be() {
        let labels = Labels::new(2);
        assert_eq!(&*labels.label("refused", false), OTHER);
        assert_eq!(&*labels.label("a", true), "a");
        assert_eq!(&*labels.label("b", true), "b");
        assert_eq!(&*labels.label("c", true), OTHER);
        assert_eq!(&*labels.label("a", false), "a");
        assert!(Arc::ptr_eq(&labels.label("a", true), &labels.label("a", true)));
    }
}
