use super::super::semconv::OTHER;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// The names of models that metrics tell apart: a bounded number. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Labels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Sorted: they are few, and looked up more often than anything is hashed in that time.
    known: ArcSwap<Vec<Arc<str>>>,
    other: Arc<str>,
    max: usize,
}

fn find(known: &[Arc<str>], name: &str) -> Result<usize, usize> {
    known.binary_search_by(|other| (**other).cmp(name))
}

impl Labels {
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { known: ArcSwap::default(), other: OTHER.into(), max }))
    }

    /// `name` as a label: itself if it is known, or may become so.
    pub(super) fn label(&self, name: &str, may_be_added: bool) -> Arc<str> {
        let Inner { known, other, max } = &*self.0;
        let is_full = {
            let known = known.load();
            if let Ok(at) = find(&known, name) {
                return Arc::clone(&known[at]);
            }
            known.len() >= *max
        };
        if !may_be_added || is_full {
            return Arc::clone(other);
        }
        let name: Arc<str> = name.into();
        known.rcu(|known| {
            let mut known = Vec::clone(known);
            if let (Err(at), true) = (find(&known, &name), known.len() < *max) {
                known.insert(at, Arc::clone(&name));
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
        assert_eq!(&*labels.label("b", true), "b");
        assert_eq!(&*labels.label("a", true), "a");
        assert_eq!(&*labels.label("c", true), OTHER);
        assert_eq!(&*labels.label("b", false), "b");
        assert!(Arc::ptr_eq(&labels.label("a", true), &labels.label("a", true)));
    }
}
