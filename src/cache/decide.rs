//! When the cache is asked, and what it keeps: the whole decision, without any I/O.

use crate::{ChoiceFinish, FinishReason};

/// Why the cache was not asked for an answer, and does not keep the one that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BypassReason {
    /// It is switched off.
    Off,
    /// The caller does not want his answer kept.
    NoStore,
    /// The caller is nobody in particular.
    NoUser,
    /// The caller's rights to a knowledge base are not known.
    NoAclHash,
    /// Whether a knowledge base allows it could not be found out.
    KbUnknown,
    /// A knowledge base does not allow it.
    KbDisabled,
    /// The answer is to be more random than is worth keeping.
    Temperature,
}

/// Why a cache that was asked had no answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MissReason {
    /// There is none.
    #[default]
    Absent,
    /// It is older than the cache keeps answers, or from more than a minute ahead.
    Expired,
    /// It is from before its user, tenant, model or knowledge base was made invalid.
    Invalidated,
    /// It is older than this caller takes.
    TooOld,
    /// The caller wants a new one.
    Refresh,
    /// It cannot be had in the form that was asked for.
    Shape,
    /// What was found is not what was asked for.
    Mismatch,
    /// What the store has under this key cannot be read: it is encrypted or sealed with another secret, cut off, or changed.
    Unreadable,
    /// The store failed, was late, or was left alone after it had failed.
    StoreFailed,
}

/// Why an answer was not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotStored {
    /// It failed, broke off, or was left by its caller.
    Incomplete,
    /// It says nothing, or reports an error in its body.
    Empty,
    /// It ended for another reason than being complete.
    Unfinished,
    /// It is larger than is kept.
    TooLarge,
    /// Another model answered than the one that was asked, or a cache below did.
    NotOurs,
    /// Its time was over before it began.
    NoTime,
    /// The epochs were not known when it was asked for.
    NoEpoch,
    /// Its user, tenant, model or knowledge base was made invalid while it was on its way.
    Invalidated,
    /// A knowledge base does not allow it, or no longer.
    KbForbids,
    /// There is no worker, or its queue is full.
    QueueFull,
    /// The store failed.
    StoreFailed,
}

/// What is known of a call before the cache is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) is_on: bool,
    pub(super) no_store: bool,
    pub(super) has_user: bool,
    pub(super) is_public: bool,
    pub(super) kbs: Kbs,
    pub(super) is_too_random: bool,
}

/// What is known of a call's knowledge bases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kbs {
    /// Nothing was retrieved.
    None,
    /// One has no hash of the caller's rights.
    NoAclHash,
    /// They have not been asked yet, and will be.
    Unasked,
    /// All allow it.
    Allow,
    /// One does not allow it.
    Forbid,
    /// One did not say, or not in time, or there is nobody to ask.
    Unknown,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) is_complete: bool,
    pub(super) has_content: bool,
    pub(super) has_error: bool,
    /// Choices that have begun, a bit each.
    pub(super) begun: u128,
    pub(super) finishes: &'a [ChoiceFinish],
    /// Whether it calls tools, whatever it says of its end.
    pub(super) has_calls: bool,
    /// Whether such answers are kept.
    pub(super) tool_calls: bool,
    pub(super) is_too_large: bool,
    pub(super) is_ours: bool,
    pub(super) has_time: bool,
    pub(super) has_epoch: bool,
}

impl BypassReason {
    pub(crate) const ALL: [Self; 7] = [
        Self::Off,
        Self::NoStore,
        Self::NoUser,
        Self::NoAclHash,
        Self::KbUnknown,
        Self::KbDisabled,
        Self::Temperature,
    ];

    /// The reason of this [name](Self::as_str), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// A name of few letters, for headers and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NoStore => "no-store",
            Self::NoUser => "no-user",
            Self::NoAclHash => "no-acl-hash",
            Self::KbUnknown => "kb-unknown",
            Self::KbDisabled => "kb-disabled",
            Self::Temperature => "temperature",
        }
    }
}

impl MissReason {
    const ALL: [Self; 9] = [
        Self::Absent,
        Self::Expired,
        Self::Invalidated,
        Self::TooOld,
        Self::Refresh,
        Self::Shape,
        Self::Mismatch,
        Self::Unreadable,
        Self::StoreFailed,
    ];

    /// The reason of this [name](Self::as_str), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// A name of few letters, for headers and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expired => "expired",
            Self::Invalidated => "invalidated",
            Self::TooOld => "too-old",
            Self::Refresh => "refresh",
            Self::Shape => "shape",
            Self::Mismatch => "mismatch",
            Self::Unreadable => "unreadable",
            Self::StoreFailed => "store-failed",
        }
    }
}

impl NotStored {
    pub(super) const ALL: [Self; 11] = [
        Self::Incomplete,
        Self::Empty,
        Self::Unfinished,
        Self::TooLarge,
        Self::NotOurs,
        Self::NoTime,
        Self::NoEpoch,
        Self::Invalidated,
        Self::KbForbids,
        Self::QueueFull,
        Self::StoreFailed,
    ];

    /// A name of few letters, for labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::Empty => "empty",
            Self::Unfinished => "unfinished",
            Self::TooLarge => "too-large",
            Self::NotOurs => "not-ours",
            Self::NoTime => "no-time",
            Self::NoEpoch => "no-epoch",
            Self::Invalidated => "invalidated",
            Self::KbForbids => "kb-forbids",
            Self::QueueFull => "queue-full",
            Self::StoreFailed => "store-failed",
        }
    }
}

/// Whether the cache may be asked, and may keep the answer.
pub(super) const fn admit(asked: &Asked) -> Result<(), BypassReason> {
    Err(match asked {
        Asked { is_on: false, .. } => BypassReason::Off,
        Asked { no_store: true, .. } => BypassReason::NoStore,
        Asked { has_user: false, is_public: false, .. } => BypassReason::NoUser,
        Asked { kbs: Kbs::NoAclHash, .. } => BypassReason::NoAclHash,
        Asked { kbs: Kbs::Unknown, .. } => BypassReason::KbUnknown,
        Asked { kbs: Kbs::Forbid, .. } => BypassReason::KbDisabled,
        Asked { is_too_random: true, .. } => BypassReason::Temperature,
        Asked { kbs: Kbs::None | Kbs::Unasked | Kbs::Allow, .. } => return Ok(()),
    })
}

/// Whether an answer may be kept.
pub(super) fn keep(ended: &Ended<'_>) -> Result<(), NotStored> {
    Err(match ended {
        Ended { is_complete: false, .. } => NotStored::Incomplete,
        Ended { is_ours: false, .. } => NotStored::NotOurs,
        Ended { has_content: false, .. } | Ended { has_error: true, .. } => NotStored::Empty,
        _ if !is_finished(ended) => NotStored::Unfinished,
        Ended { is_too_large: true, .. } => NotStored::TooLarge,
        Ended { has_time: false, .. } => NotStored::NoTime,
        Ended { has_epoch: false, .. } => NotStored::NoEpoch,
        _ => return Ok(()),
    })
}

/// Whether each choice that has begun came to a good end.
fn is_finished(ended: &Ended<'_>) -> bool {
    // Servers say `stop` where they call a tool that was asked for by its name, or a function of old.
    if ended.has_calls && !ended.tool_calls {
        return false;
    }
    let is_good = |finish: &ChoiceFinish| match finish.reason {
        FinishReason::Stop => true,
        FinishReason::ToolCalls => ended.tool_calls,
        _ => false,
    };
    // Beyond, choices are not told apart.
    let bits = ended.finishes.iter().filter(|finish| finish.index < 127);
    let finished = bits.fold(0_u128, |bits, finish| bits | 1 << finish.index);
    ended.finishes.iter().all(is_good) && finished != 0 && finished == ended.begun
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked {
        is_on: true,
        no_store: false,
        has_user: true,
        is_public: false,
        kbs: Kbs::None,
        is_too_random: false,
    };

    /// CORRECTNESS in one place: what forbids always forbids, whatever else holds.
    #[test]
    fn seed_16_17_the_table_of_what_is_bypassed() {
        let kbs = [Kbs::None, Kbs::NoAclHash, Kbs::Unasked, Kbs::Allow, Kbs::Forbid, Kbs::Unknown];
        let mut rows = 0;
        for bits in 0..32_u8 {
            for kbs in kbs {
                let bit = |at: u8| bits & (1 << at) != 0;
                let asked = Asked {
                    is_on: bit(0),
                    no_store: bit(1),
                    has_user: bit(2),
                    is_public: bit(3),
                    is_too_random: bit(4),
                    kbs,
                };
                let may = bit(0)
                    && !bit(1)
                    && (bit(2) || bit(3))
                    && !bit(4)
                    && matches!(kbs, Kbs::None | Kbs::Unasked | Kbs::Allow);
                assert_eq!(admit(&asked).is_ok(), may, "{asked:?}");
                rows += usize::from(may);
            }
        }
        assert_eq!(rows, 9, "one switch, three kinds of callers, three states of knowledge bases");
    }

    #[test]
    fn seed_16_17_each_reason_is_told() {
        let cases = [
            (Asked { is_on: false, ..ASKED }, BypassReason::Off),
            (Asked { no_store: true, ..ASKED }, BypassReason::NoStore),
            (Asked { has_user: false, ..ASKED }, BypassReason::NoUser),
            (Asked { kbs: Kbs::NoAclHash, ..ASKED }, BypassReason::NoAclHash),
            (Asked { kbs: Kbs::Unknown, ..ASKED }, BypassReason::KbUnknown),
            (Asked { kbs: Kbs::Forbid, ..ASKED }, BypassReason::KbDisabled),
            (Asked { is_too_random: true, ..ASKED }, BypassReason::Temperature),
        ];
        assert_eq!(cases.map(|(_, reason)| reason), BypassReason::ALL);
        for (asked, reason) in cases {
            assert_eq!(admit(&asked), Err(reason));
        }
        assert_eq!(admit(&ASKED), Ok(()));
        assert_eq!(admit(&Asked { has_user: false, is_public: true, ..ASKED }), Ok(()));
    }

    #[test]
    fn the_table_of_what_is_kept() {
        let finish = |reason: &str, index| ChoiceFinish { index, reason: reason.into() };
        let stop = [finish("stop", 0)];
        let good = Ended {
            is_complete: true,
            has_content: true,
            has_error: false,
            begun: 1,
            finishes: &stop,
            has_calls: false,
            tool_calls: false,
            is_too_large: false,
            is_ours: true,
            has_time: true,
            has_epoch: true,
        };
        assert_eq!(keep(&good), Ok(()));
        let cases = [
            (Ended { is_complete: false, ..good }, NotStored::Incomplete),
            (Ended { has_content: false, ..good }, NotStored::Empty),
            (Ended { has_error: true, ..good }, NotStored::Empty),
            (Ended { is_too_large: true, ..good }, NotStored::TooLarge),
            (Ended { is_ours: false, ..good }, NotStored::NotOurs),
            (Ended { has_time: false, ..good }, NotStored::NoTime),
            (Ended { has_epoch: false, ..good }, NotStored::NoEpoch),
            (Ended { finishes: &[], ..good }, NotStored::Unfinished),
            (Ended { begun: 0, finishes: &[], ..good }, NotStored::Unfinished),
            (Ended { begun: 0b11, ..good }, NotStored::Unfinished),
        ];
        for (ended, reason) in cases {
            assert_eq!(keep(&ended), Err(reason), "{ended:?}");
        }
        for reason in ["length", "content_filter", "tool_calls", "abort", ""] {
            assert_eq!(keep(&Ended { finishes: &[finish(reason, 0)], ..good }), Err(NotStored::Unfinished));
        }
        let tools = [finish("tool_calls", 0)];
        assert_eq!(keep(&Ended { finishes: &tools, tool_calls: true, ..good }), Ok(()));
        // Many say `stop` though tools are to be called.
        let calls = Ended { has_calls: true, ..good };
        assert_eq!(keep(&calls), Err(NotStored::Unfinished));
        assert_eq!(keep(&Ended { tool_calls: true, ..calls }), Ok(()));
        let mixed = [finish("stop", 0), finish("length", 1)];
        assert_eq!(keep(&Ended { begun: 0b11, finishes: &mixed, ..good }), Err(NotStored::Unfinished));
        let both = [finish("stop", 1), finish("stop", 0)];
        assert_eq!(keep(&Ended { begun: 0b11, finishes: &both, ..good }), Ok(()));
        let far = [finish("stop", 4_000_000)];
        assert_eq!(keep(&Ended { begun: 1 << 127, finishes: &far, ..good }), Err(NotStored::Unfinished));
    }
}
