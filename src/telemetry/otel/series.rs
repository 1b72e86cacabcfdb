//! What metrics are labelled by: made once for all calls that have it in common, not for each of them.

use super::{
    super::{
        observer::{CallStart, Target},
        semconv::SemConv,
    },
    labels::Labels,
    metrics::{Bound, label},
};
use crate::ModelName;
use arc_swap::ArcSwap;
use opentelemetry::{KeyValue, StringValue};
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

/// All calls of a kind that were answered by the same model.
pub(super) struct Series {
    kind: Kind,
    answered: Option<Arc<str>>,
    pub(super) all: Vec<KeyValue>,
    /// With what tells tokens apart.
    pub(super) input: Vec<KeyValue>,
    pub(super) output: Vec<KeyValue>,
    pub(super) duration: Bound<f64>,
    pub(super) first_chunk: Bound<f64>,
    pub(super) output_chunk: Bound<f64>,
    pub(super) input_tokens: Bound<u64>,
    pub(super) output_tokens: Bound<u64>,
}

/// The series of names that metrics tell apart, and so a bounded number.
pub(super) struct AllSeries {
    known: ArcSwap<HashMap<u64, Arc<Series>, foldhash::fast::RandomState>>,
    labels: Labels,
    semconv: SemConv,
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

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.target, &other.target)
            && self.operation == other.operation
            && self.model() == other.model()
    }
}

impl AllSeries {
    pub(super) fn new(labels: Labels, semconv: SemConv) -> Self {
        Self { known: ArcSwap::default(), labels, semconv }
    }

    /// The series of a call. A name that is not known yet becomes so only where it `may_be_added`.
    pub(super) fn of(&self, kind: &Kind, answered: Option<&str>, may_be_added: bool) -> Arc<Series> {
        let known = self.known.load();
        // A layer's target is its own for as long as a series holds it.
        let target = Arc::as_ptr(&kind.target).addr();
        let hash = known.hasher().hash_one((target, kind.operation, kind.model(), answered));
        if let Some(series) = known.get(&hash)
            && series.kind.is(kind)
            && series.answered.as_deref() == answered
        {
            return Arc::clone(series);
        }
        let label = |name: &str| self.labels.label(name, may_be_added && !name.is_empty());
        let asked = if kind.model().is_empty() { "".into() } else { label(kind.model()) };
        let answerer = answered.map(label);
        let is_told_apart = *asked == *kind.model() && answerer.as_deref() == answered;
        let series = Arc::new(Series::new(kind.clone(), asked, answerer, self.semconv));
        if is_told_apart {
            self.known.rcu(|known| {
                let mut all = HashMap::clone(known);
                if all.len() >= MOST {
                    all.clear();
                }
                all.insert(hash, Arc::clone(&series));
                all
            });
        }
        series
    }
}

impl Series {
    fn new(kind: Kind, asked: Arc<str>, answered: Option<Arc<str>>, semconv: SemConv) -> Self {
        let shared = |key, value: Arc<str>| KeyValue::new(key, StringValue::from(value));
        let mut all = vec![
            KeyValue::new("gen_ai.operation.name", kind.operation),
            shared("gen_ai.provider.name", Arc::clone(kind.provider())),
        ];
        if !kind.model().is_empty() {
            all.push(shared("gen_ai.request.model", asked));
        }
        if let Some(answered) = &answered {
            all.push(shared("gen_ai.response.model", Arc::clone(answered)));
        }
        if let Some((host, port)) = kind.address() {
            all.push(shared("server.address", Arc::clone(host)));
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
            kind,
            answered,
            all,
            input,
            output,
            duration: Bound::default(),
            first_chunk: Bound::default(),
            output_chunk: Bound::default(),
            input_tokens: Bound::default(),
            output_tokens: Bound::default(),
        }
    }

    /// Its labels and why a call has failed, which few do.
    pub(super) fn failed(&self, error_type: &str) -> Vec<KeyValue> {
        let mut all = self.all.clone();
        all.push(KeyValue::new("error.type", label(error_type)));
        all
    }
}
