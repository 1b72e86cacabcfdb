//! Finds an answer to a question that is put in other words. Off unless asked for, and then only counts until told to
//! answer. **Know what it costs before you turn it on: a wrong answer that looks right.**
//!
//! Embedders find "take 20 mg" and "take 200 mg" alike, and "from Rome to Oslo" and "from Oslo to Rome" even more so.
//! So a similar question is only looked for
//!
//! * after the exact key has missed, and where the cache may be asked at all;
//! * in the same scope, epochs and model, with every byte of the request the same but the text of the last message, which
//!   must be the user's, and a single string: with parts, such as images, never;
//! * where a guard of words agrees: the same numbers, negators, quotations, names and symbols in the same order, and all
//!   other words too but for the little that is [listed below](#what-may-differ). [`Semantic::with_other_words`] lets
//!   other words differ, as long as those in common are in the same order;
//! * where the vectors are as alike as the [threshold](Semantic::with_threshold) asks for.
//!
//! What is found is the key of an entry, which is then read and checked as any other: settings of knowledge bases and
//! epochs are asked once more, and one that is too old or made invalid is a miss. An answer that was found so is kept
//! under its own question only.
//!
//! # What may differ
//!
//! * A greeting with a mark behind it, or "please", that begins the message, and ", please" that ends it.
//! * An article before the word that it belongs to, of two letters or more: not before numbers, names with digits or signs in
//!   them, and words such as "and", "in", "best", "few" or "charge". "A" may be a letter, or a name, as in "hepatitis a", "a x + b",
//!   "a cos x" or "ls a foo": it is left out only at the beginning of a sentence, and behind its first word if that has a capital,
//!   words such as "is", "of" or "explain", and verbs as in "to bake a cake"; and only before a word of three letters or more, or
//!   with a capital, that no small or Greek letter and no number follows.
//! * What stands between "how" and what is to be done: "how do I", "how can we", "how to".
//! * A full stop, question mark or exclamation mark at the end of a sentence, behind a word or a quotation; the comma between
//!   two words. All other marks count, and so does whether there is a space on either side of them: `rm -r / tmp` is not
//!   `rm -r /tmp`, and `5! + 3` is not `5 + 3`.
//! * The capital of a sentence's first word, if it has no other and more than one letter. "MB" is not "Mb", and "NO" not "no".
//! * Spaces between words, and at the end of lines; not those at the beginning of any line but the first, and no tabs between words.
//! * Straight and curly marks of one quotation. A single mark is not a double one, and neither is a backtick.
//!
//! So paraphrases are given up that are no more than another way to write: `x>3` for `x > 3`, "1,000" for "1000", "Explain
//! C++" with a question mark, "the user sees a warning" for "the user sees the warning", a sentence that begins without a capital behind another one, a greeting without a mark, and an
//! accented letter that is written as two characters.
//!
//! The guard knows English best. Words of other languages count as words that must be the same; with
//! `with_other_words` that holds for all that are not written in Latin letters, and of the others only the commonest
//! negators of some languages are known.
//!
//! # Measured
//!
//! With all-MiniLM-L6-v2 over 60 pairs (40 that must not match: negation, numbers, names, direction; 20 paraphrases), by
//! `scripts/semantic-check`:
//!
//! | threshold | false hits, served: no guard | default | `with_other_words` |
//! |---|---|---|---|
//! | 0.95 | 40 %, 40 % | 0 %, 25 % | 0 %, 25 % |
//! | 0.90 | 62 %, 80 % | 0 %, 45 % | 0 %, 45 % |
//! | 0.80 | 82 %, 95 % | 0 %, 45 % | 0 %, 50 % |
//! | 0.70 | 90 %, 95 % | 0 %, 45 % | 2 %, 50 % |
//!
//! Read it as what a threshold alone is worth. The guard was made with such pairs in mind, so that 0 of 40 is no promise for
//! yours, and with `with_other_words` "red cars" and "cheap cars" are a matter of the threshold. Stay in the shadow until you
//! have looked at what yours says.
//!
//! # Where it runs
//!
//! In this process: vectors are in memory, within [bounds](Semantic::with_bounds), beside hashes of words with a key of
//! chance; no text is. Each miss that may be answered so waits for the embedder, at most for its
//! [deadline](Semantic::with_deadline); one that fails, is late, or has too many calls under way makes it an ordinary miss.
//! The vector is used again when the answer is kept. Exact hits, and callers for whom nothing may be cached, cost the
//! embedder nothing.
//!
//! ```
//! # #[cfg(not(feature = "moka"))] fn main() {}
//! # #[cfg(feature = "moka")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), llm_layers::Error> {
//! use llm_layers::{
//!     ChatBody, Completion, Error, LlmRequest, LlmResponse, RequestContext, TokenUsage,
//!     cache::{CacheLayer, CachePolicy, CacheSecret, Fetch, MokaStore, Semantic},
//! };
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! // In earnest, a call to a model.
//! let embedder = |text: &str| {
//!     let letters = text.bytes().fold([0.0; 256], |mut all, byte| { all[byte as usize] += 1.0; all });
//!     Fetch::pending(async move { Ok(letters.to_vec()) })
//! };
//! let semantic = Semantic::new(embedder).with_threshold(0.9).answering();
//! let layer = CacheLayer::new(
//!     MokaStore::new(64 << 20),
//!     CachePolicy::new(CacheSecret::random()).with_semantic(semantic),
//! );
//! let service = layer.layer(service_fn(|request: LlmRequest| async move {
//!     Ok::<_, Error>(LlmResponse::new(request.model, Completion::text("Paris", TokenUsage::new(9, 1))))
//! }));
//!
//! let ask = |text: &str| {
//!     let request = LlmRequest::new("acme/one", ChatBody::builder().user(text).build()?);
//!     Ok::<_, Error>(request.with_context(RequestContext::new().with_user_id("ada")))
//! };
//! assert!(!service.clone().oneshot(ask("What is the capital of France?")?).await?.cache.is_hit());
//! assert!(service.clone().oneshot(ask("Please, what is the capital of France")?).await?.cache.is_hit());
//! assert!(!service.clone().oneshot(ask("What is the capital of Spain?")?).await?.cache.is_hit());
//! assert_eq!(layer.stats().semantic_hits, 1);
//! # Ok(())
//! # }
//! ```

mod guard;
mod index;
mod vocabulary;

use self::{
    guard::Words,
    index::{Bounds, Index, Item},
};
use super::{
    Fetch, MissReason,
    ask::{Found, Look, MOST_FAILURES, PAUSE, Plan, Shared},
    entry::Bond,
    key,
    stats::count,
};
use crate::{
    ChatBody, LlmRequest,
    forward::forward,
    json,
    store::{Breaker, Trouble},
};
use std::{borrow::Cow, fmt, hash::RandomState, pin::Pin, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Makes a vector of a text, such that texts that mean the same have vectors of the same direction.
///
/// All vectors must have the same number of dimensions; those of another number are alike to none. Any function of the
/// right form is one. The future is dropped when its time is up, or when the caller leaves.
///
/// The [module docs](self) have one that is a closure.
pub trait Embedder: Send + Sync + 'static {
    /// The vector of `text`, of any length.
    fn embed(&self, text: &str) -> Fetch<Vec<f32>>;
}

impl<F> Embedder for F
where
    F: Fn(&str) -> Fetch<Vec<f32>> + Send + Sync + 'static,
{
    fn embed(&self, text: &str) -> Fetch<Vec<f32>> {
        self(text)
    }
}

// A box of a function is a function itself, and so none of a trait.
forward! {
    Embedder for [Arc] {
        fn embed(&self, text: &str) -> Fetch<Vec<f32>>;
    }
}

/// How similar questions are looked for. See the [module docs](self) before you turn it on.
#[derive(Clone)]
pub struct Semantic {
    embedder: Arc<dyn Embedder>,
    threshold: f32,
    deadline: Duration,
    concurrency: usize,
    max_text_bytes: usize,
    bounds: Bounds,
    other_words: bool,
    answers: bool,
}

/// What one layer looks for similar questions with.
pub(super) struct Search {
    rules: Semantic,
    index: Index,
    breaker: Breaker,
    trouble: Trouble,
    under_way: Semaphore,
    /// Of chance, so that hashes of words tell nobody the words.
    hasher: RandomState,
}

/// A question that was looked for, to be found by others once it is answered.
pub(super) struct Probe {
    partition: [u8; 32],
    words: Arc<Words>,
    vector: Arc<[f32]>,
}

/// A question and the entry that answers it.
pub(super) type Learn = (Arc<Probe>, Bond);

/// What became of a search for a similar question.
enum Nearest {
    Found(Arc<Item>),
    /// One was alike, but not in its words.
    Guarded,
    Nothing,
}

// ===== impl Semantic =====

impl Semantic {
    /// Counts what it would have answered, and answers nothing yet: vectors must be alike by a cosine of 0.95, and are waited for
    /// 100 ms, 64 at once. Texts above 4 KiB are left alone. Remembers 256 questions in each of 4,096 partitions, in 64 MiB.
    pub fn new(embedder: impl Embedder) -> Self {
        Self {
            embedder: Arc::new(embedder),
            threshold: 0.95,
            deadline: Duration::from_millis(100),
            concurrency: 64,
            max_text_bytes: 4 << 10,
            bounds: Bounds { entries: 256, partitions: 4096, bytes: 64 << 20 },
            other_words: false,
            answers: false,
        }
    }

    /// Answers, rather than to count only.
    #[must_use]
    pub const fn answering(mut self) -> Self {
        self.answers = true;
        self
    }

    /// Takes vectors for alike from this cosine on. What is no number takes none.
    #[must_use]
    pub const fn with_threshold(mut self, cosine: f32) -> Self {
        self.threshold = cosine;
        self
    }

    /// Waits this long for the embedder. Then it is a miss.
    #[must_use]
    pub const fn with_deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// Asks the embedder for this many vectors at once. What would be one more is a miss.
    #[must_use]
    pub const fn with_concurrency(mut self, calls: usize) -> Self {
        self.concurrency = calls;
        self
    }

    /// Leaves messages alone that are longer than this many bytes: in a long text, a small difference is easily lost.
    #[must_use]
    pub const fn with_max_text_bytes(mut self, bytes: usize) -> Self {
        self.max_text_bytes = bytes;
        self
    }

    /// Remembers this many questions in each of this many partitions, of this many bytes together. A partition is all
    /// that differs in the last message only. Those that are oldest, or used least, go first.
    #[must_use]
    pub const fn with_bounds(mut self, entries: usize, partitions: usize, bytes: usize) -> Self {
        self.bounds = Bounds { entries, partitions, bytes };
        self
    }

    /// Lets words differ that are no numbers, negators, quotations, names, and do not turn the sense around. **Gives wrong
    /// answers:** nobody but the embedder tells a synonym from another thing.
    #[must_use]
    pub const fn with_other_words(mut self) -> Self {
        self.other_words = true;
        self
    }
}

impl fmt::Debug for Semantic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Semantic")
            .field("threshold", &self.threshold)
            .field("deadline", &self.deadline)
            .field("other_words", &self.other_words)
            .field("answers", &self.answers)
            .finish_non_exhaustive()
    }
}

// ===== impl Search =====

impl Search {
    pub(super) fn new(rules: Semantic) -> Self {
        Self {
            index: Index::new(rules.bounds),
            breaker: Breaker::new(MOST_FAILURES, PAUSE),
            trouble: Trouble::default(),
            under_way: Semaphore::new(rules.concurrency.min(Semaphore::MAX_PERMITS)),
            hasher: RandomState::new(),
            rules,
        }
    }

    async fn embed(&self, shared: &Shared, text: &str) -> Option<Arc<[f32]>> {
        let _one = self.under_way.try_acquire().ok()?;
        if !self.breaker.lets_through() {
            return None;
        }
        let vector =
            tokio::time::timeout(self.rules.deadline, Fetch::of(|| self.rules.embedder.embed(text)).wait())
                .await;
        // What an embedder says may be of the text.
        let unit = match vector {
            Ok(Ok(vector)) => unit(vector).ok_or("a vector of no direction"),
            Ok(Err(_)) => Err("it fails"),
            Err(_) => Err("it does not answer in time"),
        };
        match &unit {
            Ok(_) => {
                self.breaker.succeeded();
                self.trouble.works("similar questions are looked for again");
            }
            Err(cause) => {
                self.breaker.failed();
                self.trouble.fails("no similar questions are looked for: the embedder fails", cause);
                count(&shared.counters.embedder_failures);
            }
        }
        unit.ok()
    }

    fn nearest(&self, probe: &Probe, own: &Plan, shared: &Shared) -> Nearest {
        let now = shared.policy.clock.now();
        let mut best: Option<(f32, Arc<Item>)> = None;
        let mut is_guarded = false;
        for item in self.index.items(&probe.partition) {
            let is_over = item.expires_at.is_some_and(|at| at <= now);
            // Its own question was not found by its key: it is gone.
            if is_over || item.key == own.wanted.key || item.vector.len() != probe.vector.len() {
                continue;
            }
            let cosine = dot(&item.vector, &probe.vector);
            // What is no number is alike to nothing.
            let is_alike = cosine >= self.rules.threshold;
            if !is_alike || best.as_ref().is_some_and(|(most, _)| *most >= cosine) {
                continue;
            }
            match item.words.agree(&probe.words, self.rules.other_words) {
                true => best = Some((cosine, item)),
                false => is_guarded = true,
            }
        }
        match best {
            Some((_, item)) => Nearest::Found(item),
            None if is_guarded => Nearest::Guarded,
            None => Nearest::Nothing,
        }
    }
}

impl Shared {
    /// Lets a question be found by similar ones, now that its answer is kept.
    pub(super) fn learn(&self, learn: Option<Learn>) {
        let (Some(search), Some((probe, bond))) = (&self.search, learn) else { return };
        let item = Item {
            key: bond.key,
            vector: Arc::clone(&probe.vector),
            words: Arc::clone(&probe.words),
            expires_at: bond.created_at.checked_add(bond.ttl),
        };
        search.index.insert(probe.partition, item, self.policy.clock.now());
    }

    /// Looks for an answer to a similar question: `None` if there is nothing to look for. Asked once for each miss.
    pub(super) fn ask_similar(
        self: &Arc<Self>,
        plan: &mut Plan,
        request: &LlmRequest,
    ) -> Option<Pin<Box<dyn Future<Output = Found> + Send>>> {
        let search = self.search.as_ref()?;
        let is_first = !std::mem::replace(&mut plan.is_searched, true);
        if !is_first || plan.wanted.control.no_cache || plan.ttl.is_zero() {
            return None;
        }
        let stamp = plan.wanted.stamp.as_ref()?;
        let text = asked_text(&request.body).filter(|text| text.len() <= search.rules.max_text_bytes)?;
        let (scope, asked) = self.asked(request).ok()?;
        if self.flies(plan) {
            return None;
        }
        let partition = key::partition(&self.policy.secret, &scope, request, plan.origin.as_ref(), stamp)?;
        let words = Arc::new(Words::new(&text, &search.hasher));
        let text = text.into_owned();
        let mut plan = plan.clone();
        let shared = Arc::clone(self);
        Some(Box::pin(async move {
            let Some(search) = &shared.search else { return Found::Miss(plan) };
            let Some(vector) = search.embed(&shared, &text).await else { return Found::Miss(plan) };
            drop(text);
            let probe = Probe { partition, words, vector };
            let nearest = search.nearest(&probe, &plan, &shared);
            plan.probe = Some(Arc::new(probe));
            let item = match nearest {
                Nearest::Found(item) => item,
                Nearest::Guarded => {
                    count(&shared.counters.guarded_off);
                    return Found::Miss(plan);
                }
                Nearest::Nothing => return Found::Miss(plan),
            };
            // As any other entry, and with what holds now rather than when the vector was asked for.
            let mut other = plan.clone();
            other.wanted.key = item.key;
            match shared.find(asked, &mut other).await {
                Err(reason) => Found::Bypass(reason),
                Ok(Ok(Some((entry, look @ Look::Good(_))))) => match search.rules.answers {
                    true => match shared.serve(&entry, look, plan.streaming) {
                        Some(mut answer) => {
                            answer.is_similar = true;
                            count(&shared.counters.semantic_hits);
                            Found::Hit(answer)
                        }
                        None => Found::Miss(plan),
                    },
                    false => {
                        count(&shared.counters.semantic_would_hit);
                        Found::Miss(plan)
                    }
                },
                Ok(Ok(Some((_, Look::Foreign)))) => {
                    count(&shared.counters.mismatches);
                    search.index.remove(&partition, &item.key);
                    Found::Miss(plan)
                }
                Ok(Ok(None | Some((_, Look::Dead(_)))) | Err(MissReason::Unreadable)) => {
                    search.index.remove(&partition, &item.key);
                    Found::Miss(plan)
                }
                Ok(_) => Found::Miss(plan),
            }
        }))
    }

    /// Whether an equal call is under way, which is better than a similar one that is over.
    fn flies(&self, plan: &Plan) -> bool {
        let Some(flights) = &self.flights else { return false };
        plan.route(&self.epochs).is_some_and(|route| flights.has(&route))
    }
}

/// The text of the last message, if it is the user's and nothing but text.
fn asked_text(body: &ChatBody) -> Option<Cow<'_, str>> {
    let last = body.messages().last()?;
    if last.role() != "user" {
        return None;
    }
    json::string(last.content()?).filter(|text| !text.trim().is_empty())
}

/// In the same direction, of length 1; `None` if it has no direction.
fn unit(vector: Vec<f32>) -> Option<Arc<[f32]>> {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let has_direction = length.is_finite() && length > 0.0;
    has_direction.then(|| vector.into_iter().map(|x| (f64::from(x) / length) as f32).collect())
}

fn dot(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}
