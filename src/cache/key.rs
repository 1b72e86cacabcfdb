use super::{CacheScope, encode::Encoder};
use crate::{ChatBody, LlmRequest, Operation};
use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Raised whenever the encoding changes, so that old entries are not found rather than misread.
const VERSION: u8 = 1;

/// Up to here a body is hashed together with the rest; beyond, by itself, so that further attempts need not do it again.
const SHORT_BODY: usize = 600;

/// The top-level members that cannot change what a model answers. Every other member is in the key, known or not.
///
/// `model` is in it as the model that is really asked. `stream` and `stream_options` decide on the shape alone, and an
/// entry has both. `metadata` is for the provider's books.
pub const MEMBERS_LEFT_OUT: [&str; 4] = ["metadata", "model", "stream", "stream_options"];

/// The name of an entry: 256 bits over the scope and everything that can change the answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheKey([u8; 32]);

/// What keys are made with. Who does not have it can neither guess an entry's name nor forge its content.
///
/// All processes that share a store need the same; another one makes all that was kept unfindable. Cloning costs one
/// reference count.
#[derive(Clone)]
pub struct CacheSecret(Arc<Keys>);

struct Keys {
    /// Tells digests that are kept in requests apart.
    number: u64,
    scope: [u8; 32],
    body: [u8; 32],
    key: [u8; 32],
    seal: [u8; 32],
}

// ===== impl CacheSecret =====

impl CacheSecret {
    /// The deployment's secret: 32 bytes of chance, the same in all processes.
    pub fn new(secret: [u8; 32]) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let derive = |purpose| blake3::derive_key(purpose, &secret);
        Self(Arc::new(Keys {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            scope: derive("llm-layers 2026 cache v1: scope"),
            body: derive("llm-layers 2026 cache v1: body"),
            key: derive("llm-layers 2026 cache v1: key"),
            seal: derive("llm-layers 2026 cache v1: seal"),
        }))
    }

    /// One of this process alone, for what is kept in its memory.
    pub fn random() -> Self {
        let mut secret = [0; 32];
        for (at, part) in secret.chunks_exact_mut(8).enumerate() {
            // Keyed by the system's source of chance.
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_usize(at);
            part.copy_from_slice(&hasher.finish().to_le_bytes());
        }
        Self::new(secret)
    }

    pub(super) fn scope(&self) -> &[u8; 32] {
        &self.0.scope
    }

    pub(super) fn seal(&self) -> &[u8; 32] {
        &self.0.seal
    }
}

impl fmt::Debug for CacheSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheSecret(..)")
    }
}

// ===== impl CacheKey =====

impl CacheKey {
    /// The key of `request` in `scope`. What a long body says is hashed once and kept with it.
    pub fn new(secret: &CacheSecret, scope: &CacheScope<'_>, request: &LlmRequest) -> Self {
        let (operation, model, body) = request.identity();
        let mut encoder = Encoder::<1024>::new(&secret.0.key);
        encoder.tag(VERSION);
        encoder.tag(match operation {
            Operation::Chat => 1,
        });
        encoder.bytes(model.as_bytes());
        scope.encode(&mut encoder);
        // Of what is hashed: what is left out must not decide it.
        if said(body).map(|(name, value)| name.len() + value.len()).sum::<usize>() <= SHORT_BODY {
            encoder.tag(0);
            encode(body, &mut encoder);
        } else {
            encoder.tag(1);
            encoder.fixed(&digest(secret, body));
        }
        Self(encoder.finish())
    }

    /// The key that has these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Over the body's members; of further attempts with the same body, the one that was made before.
fn digest(secret: &CacheSecret, body: &ChatBody) -> [u8; 32] {
    let (number, kept) = body.digest().get_or_init(|| (secret.0.number, hash(secret, body)));
    if *number == secret.0.number { *kept } else { hash(secret, body) }
}

fn hash(secret: &CacheSecret, body: &ChatBody) -> [u8; 32] {
    let mut encoder = Encoder::<1024>::new(&secret.0.body);
    encode(body, &mut encoder);
    encoder.finish()
}

/// The members that can change the answer.
fn said(body: &ChatBody) -> impl Iterator<Item = (&str, &[u8])> {
    body.members().filter(|(name, _)| !MEMBERS_LEFT_OUT.contains(name))
}

fn encode<const N: usize>(body: &ChatBody, encoder: &mut Encoder<'_, N>) {
    let members = said(body);
    // As many as requests have; more of them cost an allocation.
    let (mut few, mut many) = ([("", &[][..]); 24], Vec::new());
    let mut len = 0;
    let members = if body.members().len() <= few.len() {
        for (place, member) in few.iter_mut().zip(members) {
            *place = member;
            len += 1;
        }
        &mut few[..len]
    } else {
        many.extend(members);
        &mut many[..]
    };
    // Names are there once each: a body that has one twice is refused when it is read.
    members.sort_unstable_by_key(|(name, _)| *name);
    encoder.count(members.len());
    for (name, value) in members {
        encoder.bytes(name.as_bytes());
        encoder.bytes(value);
    }
}
