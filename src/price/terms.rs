//! What a price depends on besides counts of tokens.

use super::{cost::ServiceTier, search::Searches};
use crate::{TokenUsage, chat::Attached, json};

/// What a call is billed for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Billed {
    pub(crate) terms: Terms,
    pub(crate) usage: TokenUsage,
    /// None if it was refused.
    pub(crate) requests: u64,
}

/// What a request says that its price depends on. Where nobody says more, the dearest counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) tiers: Tiers,
    pub(crate) media: Media,
    pub(crate) searches: Searches,
}

/// The tiers that a call was served in, or may have been: a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiers(u8);

/// What the tokens of a call may be besides text: a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Media(u8);

// ===== impl Terms =====

impl Terms {
    /// Whatever a request may ask for in this tier.
    pub(super) const fn any(tier: ServiceTier) -> Self {
        Self { tiers: Tiers::of(tier), media: Media::ALL, searches: Searches::Some }
    }

    /// Nothing is said, and so nothing is charged but what is reported.
    pub(super) const fn none(tier: ServiceTier) -> Self {
        Self { tiers: Tiers::of(tier), media: Media::NONE, searches: Searches::None }
    }

    /// Who answers knows in which tier it was.
    #[must_use]
    pub(crate) fn told(self, tier: Option<ServiceTier>) -> Self {
        Self { tiers: tier.map_or(self.tiers, Tiers::of), ..self }
    }
}

// ===== impl Tiers =====

impl Tiers {
    pub(crate) const STANDARD: Self = Self::of(ServiceTier::Standard);

    const fn of(tier: ServiceTier) -> Self {
        Self(1 << tier as u8)
    }

    /// Those that a request may be served in by the value of its `service_tier`: the one that it names and, as a provider may
    /// have no room there, the standard one. Any, if the name is not known.
    pub(crate) fn named(raw: &[u8]) -> Self {
        if raw == b"null" {
            return Self::STANDARD;
        }
        match json::string(raw).and_then(|name| ServiceTier::from_name(&name)) {
            Some(tier) => Self(Self::STANDARD.0 | Self::of(tier).0),
            None => Self(u8::MAX),
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = ServiceTier> {
        ServiceTier::ALL.into_iter().filter(move |tier| self.0 & Self::of(*tier).0 != 0)
    }
}

impl Default for Tiers {
    fn default() -> Self {
        Self::STANDARD
    }
}

// ===== impl Media =====

impl Media {
    pub(super) const INPUT_AUDIO: Self = Self(1);
    pub(super) const INPUT_IMAGE: Self = Self(2);
    pub(super) const OUTPUT_AUDIO: Self = Self(4);
    pub(super) const OUTPUT_IMAGE: Self = Self(8);
    pub(super) const NONE: Self = Self(0);
    pub(super) const ALL: Self = Self(15);

    /// By what a request brings and by the value of its `modalities`. A film has a sound; and who does not say what he
    /// wants gets what the model makes.
    pub(crate) fn of(attached: Attached, modalities: Option<&[u8]>) -> Self {
        let mut media = Self::NONE;
        let mut may = |medium: Self, is_so: bool| media.0 |= if is_so { medium.0 } else { 0 };
        may(Self::INPUT_AUDIO, attached.parts > attached.images);
        may(Self::INPUT_IMAGE, attached.parts > 0);
        let modalities = modalities.filter(|value| value.first() == Some(&b'['));
        let wants = |medium: &str| {
            modalities.is_none_or(|names| {
                json::items(names)
                    .any(|name| json::string(name).is_none_or(|n| n.eq_ignore_ascii_case(medium)))
            })
        };
        may(Self::OUTPUT_AUDIO, wants("audio"));
        may(Self::OUTPUT_IMAGE, wants("image"));
        media
    }

    pub(super) const fn has(self, medium: Self) -> bool {
        self.0 & medium.0 != 0
    }
}
