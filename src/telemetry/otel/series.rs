//! What metrics are labelled by: made once for all calls that have it in common, not for each of them.

use super::{
    super::{
        observer::{CallStart, Target},
        semconv::SemConv,
    },
    bound::{Binding, Bound},
    labels::Labels,
    metrics::label,
};
use crate::ModelName;
use arc_swap::ArcSwap;
use opentelemetry::{KeyValue, StringValue, metrics::Histogram};
use std::{collections::HashMap, hash::BuildHasher, sync::Arc};

/// A call to a provider, as far as it is known when it begins.
#[derive(Clone)]
pub(super) struct Kind {
    target: Arc<Target>,
    operation: &'static str,
    /// With its provider in front, or not.
    name: ModelName,
    /// Where the model begins in it.
    from: usize,
}

/// All calls that metrics do not tell apart.
pub(super) struct Series {
    /// A layer's, which is its own for as long as this holds it.
    target: Arc<Target>,
    operation: &'static str,
    asked: Arc<str>,
    answered: Option<Arc<str>>,
    pub(super) all: Vec<KeyValue>,
    /// With what tells tokens apart.
    pub(super) input: Vec<KeyValue>,
    pub(super) output: Vec<KeyValue>,
    pub(super) duration: Bound<Histogram<f64>>,
    pub(super) first_chunk: Bound<Histogram<f64>>,
    pub(super) output_chunk: Bound<Histogram<f64>>,
    pub(super) input_tokens: Bound<Histogram<u64>>,
    pub(super) output_tokens: Bound<Histogram<u64>>,
}

/// The series of names that metrics tell apart, and so a bounded number.
pub(super) struct AllSeries {
    known: ArcSwap<HashMap<u64, Arc<Series>, foldhash::fast::RandomState>>,
    labels: Labels,
    semconv: SemConv,
    binding: Binding,
}

/// Each model that may be asked for by each that may answer would be more, but nobody has that. Beyond, what layers that
/// are gone have left is thrown away with the rest.
const MOST: usize = 1024;

impl Kind {
    pub(super) fn of(start: &CallStart<'_>) -> Self {
        let name = start.request.model.clone();
        let from = name.len() - start.model().len();
        Self { target: Arc::clone(start.target), operation: start.operation(), name, from }
    }

    pub(super) const fn operation(&self) -> &'static str {
        self.operation
    }

    pub(super) fn provider(&self) -> &Arc<str> {
        &self.target.provider
    }

    pub(super) fn model(&self) -> &str {
        &self.name[self.from..]
    }

    pub(super) fn address(&self) -> Option<&(Arc<str>, u16)> {
        self.target.address.as_ref()
    }
}

impl AllSeries {
    pub(super) fn new(labels: Labels, semconv: SemConv, binding: Binding) -> Self {
        Self { known: ArcSwap::default(), labels, semconv, binding }
    }

    /// The series of a call. A name that is not known yet becomes so only where it `may_be_added`.
    pub(super) fn of(&self, kind: &Kind, answered: Option<&str>, may_be_added: bool) -> Arc<Series> {
        if let Ok(series) = self.find(kind, kind.model(), answered) {
            return series;
        }
        let label = |name: &str| self.labels.label(name, may_be_added);
        let asked = if kind.model().is_empty() { "".into() } else { label(kind.model()) };
        let answered = answered.map(label);
        // Of names that are not told apart there may be any number, and one series.
        self.find(kind, &asked, answered.as_deref()).unwrap_or_else(|hash| {
            let series = Arc::new(Series::new(kind, asked, answered, (self.semconv, self.binding)));
            self.known.rcu(|known| {
                let mut all = HashMap::clone(known);
                if all.len() >= MOST {
                    all.clear();
                }
                all.insert(hash, Arc::clone(&series));
                all
            });
            series
        })
    }

    /// The series of these labels, or where it belongs.
    fn find(&self, kind: &Kind, asked: &str, answered: Option<&str>) -> Result<Arc<Series>, u64> {
        let known = self.known.load();
        let hash =
            known.hasher().hash_one((Arc::as_ptr(&kind.target).addr(), kind.operation, asked, answered));
        let found = known.get(&hash).filter(|series| {
            Arc::ptr_eq(&series.target, &kind.target)
                && series.operation == kind.operation
                && *series.asked == *asked
                && series.answered.as_deref() == answered
        });
        found.cloned().ok_or(hash)
    }
}

impl Series {
    fn new(
        kind: &Kind,
        asked: Arc<str>,
        answered: Option<Arc<str>>,
        (semconv, binding): (SemConv, Binding),
    ) -> Self {
        let shared = |key, value: &Arc<str>| KeyValue::new(key, StringValue::from(Arc::clone(value)));
        let mut all = vec![
            KeyValue::new("gen_ai.operation.name", kind.operation),
            shared("gen_ai.provider.name", kind.provider()),
        ];
        if !asked.is_empty() {
            all.push(shared("gen_ai.request.model", &asked));
        }
        if let Some(answered) = &answered {
            all.push(shared("gen_ai.response.model", answered));
        }
        if let Some((host, port)) = kind.address() {
            all.push(shared("server.address", host));
            all.push(KeyValue::new("server.port", i64::from(*port)));
        }
        let and = |key, value: &'static str| {
            let mut all = all.clone();
            all.push(KeyValue::new(key, value));
            all
        };
        let (input, output) = match semconv {
            SemConv::V1_41 => (and("gen_ai.token.type", "input"), and("gen_ai.token.type", "output")),
            SemConv::Latest => {
                let unknown = and("gen_ai.token.modality", "unknown");
                (unknown.clone(), unknown)
            }
        };
        Self {
            target: Arc::clone(&kind.target),
            operation: kind.operation,
            asked,
            answered,
            all,
            input,
            output,
            duration: Bound::new(binding),
            first_chunk: Bound::new(binding),
            output_chunk: Bound::new(binding),
            input_tokens: Bound::new(binding),
            output_tokens: Bound::new(binding),
        }
    }

    /// Its labels and why a call has failed, which few do.
    pub(super) fn failed(&self, error_type: &str) -> Vec<KeyValue> {
        let mut all = self.all.clone();
        all.push(KeyValue::new("error.type", label(error_type)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ChatBody, LlmRequest, telemetry::observer::Role};

    fn kind(target: &Arc<Target>, model: &str) -> Kind {
        let request = LlmRequest::new(model, ChatBody::builder().user("Hello").build().unwrap());
        Kind::of(&CallStart { role: Role::Client, request: &request, target, on_event: false })
    }

    fn target() -> Arc<Target> {
        Arc::new(Target {
            role: Role::Client,
            name: "".into(),
            provider: "p".into(),
            prefix: "p".into(),
            address: None,
            in_process: false,
            departments: false,
        })
    }

    #[test]
    fn calls_that_are_not_told_apart_share_one_series_however_many_names_they_have() {
        let all = AllSeries::new(Labels::new(3), SemConv::default(), Binding::default());
        let target = target();
        let known = all.of(&kind(&target, "p/known"), Some("known-2026"), true);
        assert!(Arc::ptr_eq(&known, &all.of(&kind(&target, "p/known"), Some("known-2026"), false)));
        let of_name = |n: usize| all.of(&kind(&target, &format!("p/made up {n}")), None, false);
        let other = of_name(0);
        assert!((1..1000).all(|n| Arc::ptr_eq(&other, &of_name(n))));
        assert_eq!(all.known.load().len(), 2);
        assert!(!Arc::ptr_eq(&other, &all.of(&kind(&super::tests::target(), "p/made up"), None, false)));
    }

    #[test]
    fn layers_that_are_gone_leave_no_more_than_a_bounded_number() {
        let all = AllSeries::new(Labels::new(3), SemConv::default(), Binding::default());
        for _ in 0..2 * MOST {
            all.of(&kind(&target(), "p/known"), None, true);
        }
        assert!(all.known.load().len() <= MOST);
    }
}
