use super::{CacheScope, encode::Encoder};
use crate::{ChatBody, Dispensable, LlmRequest, Operation, json};
use std::{
    collections::{HashMap, hash_map::RandomState},
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Raised whenever the encoding changes, so that old entries are not found rather than misread.
const VERSION: u8 = 2;

/// Up to here a body is hashed together with the rest; beyond, by itself, so that further attempts need not do it again.
const SHORT_BODY: usize = 600;

/// Longer values of members stand in the body's hash by their own. One that is made in one go, from its first byte on,
/// is quicker by a fifth than one that has begun with something else.
const LONG_VALUE: usize = 600;

/// The top-level members that cannot change what a model answers. Every other member is in the key, known or not.
///
/// `model` is in it as the model that is really asked. `stream` and `stream_options` decide on the shape alone, and an
/// entry has both. `metadata` is for the provider's books, where all it has are labels: values that are no text choose deployments and
/// filters at some proxies, and with `store` the answer is found by it, so that it is in the key then.
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

/// Who answers under the name of a provider.
#[derive(Clone)]
pub(super) struct Origin(Arc<[u8; 32]>);

/// Those of all providers of which it was told.
#[derive(Clone, Default)]
pub(super) struct Origins(Arc<HashMap<Arc<str>, Origin, foldhash::fast::RandomState>>);

struct Keys {
    /// Tells digests that are kept in requests apart.
    number: u64,
    scope: [u8; 32],
    body: [u8; 32],
    key: [u8; 32],
    seal: [u8; 32],
    #[cfg(feature = "semantic")]
    partition: [u8; 32],
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
            #[cfg(feature = "semantic")]
            partition: derive("llm-layers 2026 cache v1: partition"),
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

// ===== impl Origins =====

impl Origins {
    pub(super) fn add(&mut self, provider: Arc<str>, origin: &[u8]) {
        let origin = Origin(Arc::new(*blake3::hash(origin).as_bytes()));
        Arc::make_mut(&mut self.0).insert(provider, origin);
    }

    /// The one of whoever will be asked.
    pub(super) fn of(&self, request: &LlmRequest) -> Option<&Origin> {
        if self.0.is_empty() {
            return None;
        }
        let provider = request.provider().map(|provider| &**provider);
        match provider.or_else(|| request.model.split().map(|(provider, _)| provider)) {
            Some(provider) => self.0.get(provider),
            // A bare name is of the only one, if there is only one.
            None => self.0.values().next().filter(|_| self.0.len() == 1),
        }
    }
}

// ===== impl CacheKey =====

impl CacheKey {
    /// The key of `request` in `scope`, where no origin is told. What a long body says is hashed once and kept with it.
    ///
    /// A layer that is told the [origin](super::CacheLayer::with_origin) of the provider keeps the answer under another key. So does every
    /// stack that is built from a configuration: this names no entry of it.
    pub fn new(secret: &CacheSecret, scope: &CacheScope<'_>, request: &LlmRequest) -> Self {
        Self::of(secret, scope, request, None)
    }

    /// As [`new`](Self::new), of those who answer at this origin.
    pub(super) fn of(
        secret: &CacheSecret,
        scope: &CacheScope<'_>,
        request: &LlmRequest,
        origin: Option<&Origin>,
    ) -> Self {
        let mut encoder = Encoder::<768>::new(&secret.0.key);
        let body = asked(request, origin, &mut encoder);
        scope.encode(&mut encoder);
        let mut few = FEW;
        let mut many = Vec::new();
        let members = said(body, &mut few, &mut many);
        // Of what is hashed: what is left out must not decide it.
        let len = members.iter().fold(0, |len, (name, value)| len + name.len() + value.len());
        if len <= SHORT_BODY {
            encoder.tag(0);
            encode(members, &mut encoder);
        } else {
            encoder.tag(1);
            encoder.fixed(&digest(secret, body, members));
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

/// What all requests share that differ in the text of the last message only, in one scope and under one stamp; `None` if
/// it cannot be told what that text is.
#[cfg(feature = "semantic")]
pub(super) fn partition(
    secret: &CacheSecret,
    scope: &CacheScope<'_>,
    request: &LlmRequest,
    origin: Option<&Origin>,
    stamp: &super::epoch::Stamp,
) -> Option<[u8; 32]> {
    let mut encoder = Encoder::<1024>::new(&secret.0.partition);
    let body = asked(request, origin, &mut encoder);
    scope.encode(&mut encoder);
    let super::epoch::Stamp { own, kbs } = stamp;
    encoder.count(own.len() + kbs.len());
    for epoch in own.iter().chain(kbs) {
        encoder.bytes(&epoch.to_le_bytes());
    }
    let mut few = FEW;
    let mut many = Vec::new();
    let members = said(body, &mut few, &mut many);
    encoder.count(members.len());
    for (name, value) in members {
        encoder.bytes(name);
        if *name != b"messages" {
            encoder.bytes(value);
            continue;
        }
        let count = json::items(value).count();
        encoder.count(count);
        let mut messages = json::items(value);
        for message in messages.by_ref().take(count.checked_sub(1)?) {
            encoder.bytes(message);
        }
        let last = messages.next()?;
        let is_content = |name: &[u8]| json::string(name).is_some_and(|name| name == "content");
        let (texts, others) = json::members(last).partition::<Vec<_>, _>(|(name, _)| is_content(name));
        // Of two of the same name nobody knows which one the provider takes.
        if texts.len() != 1 {
            return None;
        }
        encoder.count(others.len());
        for (name, value) in others {
            encoder.bytes(name);
            encoder.bytes(value);
        }
    }
    Some(encoder.finish())
}

/// What every key begins with; what is left of the request is its body.
fn asked<'a, const N: usize>(
    request: &'a LlmRequest,
    origin: Option<&Origin>,
    encoder: &mut Encoder<'_, N>,
) -> &'a ChatBody {
    let (operation, provider, model, dispensable, body) = request.identity();
    encoder.tag(VERSION);
    // Of two equal bodies one may be sent without what the other is refused for.
    if dispensable != Dispensable::default() {
        let Dispensable { thoughts, effort } = dispensable;
        encoder.tag(0x80 | u8::from(thoughts) | u8::from(effort) << 1);
    }
    // No operation is 0 or 255: a bare name of one provider's is no other's, and not the one that stands outside of all.
    if let Some(provider) = provider {
        encoder.tag(0);
        encoder.bytes(provider.as_bytes());
    }
    if let Some(Origin(origin)) = origin {
        encoder.tag(255);
        encoder.fixed(origin);
    }
    encoder.tag(match operation {
        Operation::Chat => 1,
    });
    encoder.bytes(model.as_bytes());
    body
}

type Member<'a> = (&'a [u8], &'a [u8]);

/// As many as requests have; more of them cost an allocation.
const FEW: [Member<'_>; 16] = [(&[], &[]); 16];

/// The members that can change the answer, in the order of their names. These are there once each: a body that has one
/// twice is refused when it is read.
fn said<'a, 'b>(
    body: &'a ChatBody,
    few: &'b mut [Member<'a>; 16],
    many: &'b mut Vec<Member<'a>>,
) -> &'b [Member<'a>] {
    let members = body.raw_members();
    let members = if members.len() <= few.len() {
        let mut len = 0;
        for member in members {
            // Its place is taken by the next one.
            few[len] = member;
            len += usize::from(!is_left_out(member, body));
        }
        &mut few[..len]
    } else {
        many.extend(members.filter(|member| !is_left_out(*member, body)));
        &mut many[..]
    };
    members.sort_unstable_by_key(|(name, _)| *name);
    members
}

/// [`MEMBERS_LEFT_OUT`], in the form that is quickest to ask.
fn is_left_out((name, value): Member<'_>, body: &ChatBody) -> bool {
    match name {
        b"model" | b"stream" | b"stream_options" => true,
        b"metadata" => are_labels(value) && body.raw("store") != Some(b"true"),
        _ => false,
    }
}

fn are_labels(metadata: &[u8]) -> bool {
    let is_text = |(_, value): Member<'_>| value.first() == Some(&b'"');
    metadata == b"null" || metadata.first() == Some(&b'{') && json::members(metadata).all(is_text)
}

/// Over the body's members; of further attempts with the same body, the one that was made before.
fn digest(secret: &CacheSecret, body: &ChatBody, members: &[Member<'_>]) -> [u8; 32] {
    let hash = || {
        let mut encoder = Encoder::<1024>::new(&secret.0.body);
        encoder.count(members.len());
        for (name, value) in members {
            encoder.bytes(name);
            if value.len() <= LONG_VALUE {
                encoder.bytes(value);
            } else {
                // Its length says that it is not the value itself that follows.
                encoder.count(value.len());
                encoder.fixed(blake3::keyed_hash(&secret.0.body, value).as_bytes());
            }
        }
        encoder.finish()
    };
    let (number, kept) = body.digest().get_or_init(|| (secret.0.number, hash()));
    if *number == secret.0.number { *kept } else { hash() }
}

fn encode<const N: usize>(members: &[Member<'_>], encoder: &mut Encoder<'_, N>) {
    encoder.count(members.len());
    for (name, value) in members {
        encoder.bytes(name);
        encoder.bytes(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_what_is_said_to_be() {
        let body = ChatBody::builder().user("Hello").build().unwrap();
        let is_left_out = |name: &str| is_left_out((name.as_bytes(), b"{}"), &body);
        assert!(MEMBERS_LEFT_OUT.into_iter().all(is_left_out));
        let others = ["messages", "temperature", "user", "seed", "n", "service_tier", "store", "x", ""];
        assert!(!others.into_iter().any(is_left_out));
    }
}
