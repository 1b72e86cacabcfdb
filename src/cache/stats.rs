use super::{BypassReason, NotStored};
use crate::TokenUsage;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a cache has done since it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Answers that it gave.
    pub hits: u64,
    /// Calls that it let through because it had no answer.
    pub misses: u64,
    /// Answers that another call had asked for.
    pub coalesced: u64,
    /// Calls that it was not asked for, by reason.
    pub bypasses: Vec<(BypassReason, u64)>,
    /// Answers that it has kept.
    pub stored: u64,
    /// Answers that it has not kept, by reason; those that bypassed it apart.
    pub not_stored: Vec<(NotStored, u64)>,
    /// Entries that were found and not used: too old, or made invalid.
    pub stale: u64,
    /// Entries that were not those that had been asked for. Should be 0.
    pub mismatches: u64,
    /// Entries that could not be read: of another secret or another key, cut off, or changed. Many of them after the secret has
    /// changed are no fault; else the store or the way to it gives out what was not put in.
    pub unreadable: u64,
    /// Times that a store failed, was late, or was not asked because it had failed before.
    pub store_failures: u64,
    /// Of the hits, those that answered a similar question.
    #[cfg(feature = "semantic")]
    pub semantic_hits: u64,
    /// Misses that a similar question would have answered, had it been asked for more than the count.
    #[cfg(feature = "semantic")]
    pub semantic_would_hit: u64,
    /// Misses for which a question was alike, but not in the words that must be the same.
    #[cfg(feature = "semantic")]
    pub guarded_off: u64,
    /// Times that the embedder failed or was late.
    #[cfg(feature = "semantic")]
    pub embedder_failures: u64,
    /// Tokens of prompts that nobody had to be paid for.
    pub saved_input_tokens: u64,
    /// Tokens of answers that nobody had to be paid for.
    pub saved_output_tokens: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) coalesced: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) mismatches: AtomicU64,
    pub(super) unreadable: AtomicU64,
    pub(super) store_failures: AtomicU64,
    #[cfg(feature = "semantic")]
    pub(super) semantic_hits: AtomicU64,
    #[cfg(feature = "semantic")]
    pub(super) semantic_would_hit: AtomicU64,
    #[cfg(feature = "semantic")]
    pub(super) guarded_off: AtomicU64,
    #[cfg(feature = "semantic")]
    pub(super) embedder_failures: AtomicU64,
    saved_input: AtomicU64,
    saved_output: AtomicU64,
    bypasses: [AtomicU64; BypassReason::ALL.len()],
    not_stored: [AtomicU64; NotStored::ALL.len()],
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Counters {
    pub(super) fn bypass(&self, reason: BypassReason) {
        count(&self.bypasses[reason as usize]);
    }

    pub(super) fn not_stored(&self, reason: NotStored) {
        count(&self.not_stored[reason as usize]);
    }

    pub(super) fn saved(&self, usage: Option<&TokenUsage>) {
        let Some(usage) = usage else { return };
        self.saved_input.fetch_add(usage.input_tokens.unwrap_or(0), Relaxed);
        self.saved_output.fetch_add(usage.output_tokens.unwrap_or(0), Relaxed);
    }

    pub(super) fn read(&self) -> CacheStats {
        fn some<R: Copy>(reasons: &[R], counters: &[AtomicU64]) -> Vec<(R, u64)> {
            let counts = reasons.iter().copied().zip(counters.iter().map(|counter| counter.load(Relaxed)));
            counts.filter(|(_, count)| *count > 0).collect()
        }
        CacheStats {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            coalesced: self.coalesced.load(Relaxed),
            bypasses: some(&BypassReason::ALL, &self.bypasses),
            stored: self.stored.load(Relaxed),
            not_stored: some(&NotStored::ALL, &self.not_stored),
            stale: self.stale.load(Relaxed),
            mismatches: self.mismatches.load(Relaxed),
            unreadable: self.unreadable.load(Relaxed),
            store_failures: self.store_failures.load(Relaxed),
            #[cfg(feature = "semantic")]
            semantic_hits: self.semantic_hits.load(Relaxed),
            #[cfg(feature = "semantic")]
            semantic_would_hit: self.semantic_would_hit.load(Relaxed),
            #[cfg(feature = "semantic")]
            guarded_off: self.guarded_off.load(Relaxed),
            #[cfg(feature = "semantic")]
            embedder_failures: self.embedder_failures.load(Relaxed),
            saved_input_tokens: self.saved_input.load(Relaxed),
            saved_output_tokens: self.saved_output.load(Relaxed),
        }
    }
}
