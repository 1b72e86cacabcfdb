//! Who asks: a key becomes a [`Caller`].

use crate::{
    Observe, RequestContext,
    body::End,
    config::{Identity, plan::PlannedKey},
};
use blake3::Hash;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// The keys, as hashes. What is compared is hashes of equal length in constant time, so that the time it takes tells nothing
/// about a key.
#[derive(Default)]
pub(super) struct Keys(Option<HashMap<Hash, Caller>>);

/// Who asks, and what he may do: who has a key, or whom a program of yours knows ([`of`](Self::of)). Cloning costs two reference counts.
#[derive(Clone)]
pub struct Caller {
    context: RequestContext,
    is_admin: bool,
    is_trusted: bool,
    max_in_flight: usize,
    in_flight: Arc<AtomicUsize>,
}

/// A call's place among those of its caller, until it is dropped; as an observer, until the answer has ended.
#[derive(Debug)]
pub struct KeyPermit(Arc<AtomicUsize>);

impl Keys {
    /// The keys of a configuration, of which those that were there before keep their calls in flight.
    pub(super) fn new(keys: Option<&[PlannedKey]>, before: &Self) -> Self {
        Self(keys.map(|keys| {
            let caller = |key: &PlannedKey| {
                let known = before.0.as_ref().and_then(|before| before.get(&key.hash));
                let caller = Caller {
                    context: key.context.clone(),
                    is_admin: key.is_admin,
                    is_trusted: key.is_trusted,
                    max_in_flight: key.max_in_flight,
                    in_flight: known.map(|known| Arc::clone(&known.in_flight)).unwrap_or_default(),
                };
                (key.hash, caller)
            };
            keys.iter().map(caller).collect()
        }))
    }

    /// Who has this key; without any keys, everybody is the same nobody, unless it is the host who knows them.
    pub(super) fn find(&self, key: Option<&[u8]>, identity: Identity) -> Option<Caller> {
        match &self.0 {
            None if identity == Identity::Host => None,
            // There is nothing to keep from anybody.
            None => Some(Caller::of(RequestContext::new()).admin()),
            Some(keys) => keys.get(&blake3::hash(key?)).cloned(),
        }
    }
}

impl Caller {
    /// Whom a program knows that says itself who asks (`identity = "host"`): no administrator, with as many calls in flight as he likes.
    pub fn of(context: RequestContext) -> Self {
        Self {
            context,
            is_admin: false,
            is_trusted: false,
            max_in_flight: usize::MAX,
            in_flight: Arc::default(),
        }
    }

    /// Makes him an [administrator](Self::is_admin).
    #[must_use]
    pub fn admin(mut self) -> Self {
        self.is_admin = true;
        self
    }

    /// How many calls he may have in flight. They are counted together for all clones: keep one for as long as he may come back.
    #[must_use]
    pub fn with_max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = calls;
        self
    }

    /// What calls are made as.
    pub const fn context(&self) -> &RequestContext {
        &self.context
    }

    /// Whether he may ask what everybody has used and has left, and make cached answers invalid.
    pub const fn is_admin(&self) -> bool {
        self.is_admin
    }

    /// Whether he speaks for end users of his own, and may say who they are.
    pub const fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Whether he may know what a department has used and has left.
    pub fn may_ask_about(&self, department: &str) -> bool {
        self.is_admin() || self.context.department_ids().iter().any(|own| **own == *department)
    }

    /// Takes a place for one more call; `None` if there are as many in flight as he may have.
    pub fn admit(&self) -> Option<KeyPermit> {
        let (count, most) = (&self.in_flight, self.max_in_flight);
        let taken =
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < most).then_some(now + 1));
        taken.ok().map(|_| KeyPermit(Arc::clone(count)))
    }

    /// How many of his calls have not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}

impl Drop for KeyPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Observe for KeyPermit {
    fn on_end(self, _: End<'_>) {}
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Keys").field(&self.0.as_ref().map(HashMap::len)).finish()
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("context", &self.context)
            .field("is_admin", &self.is_admin())
            .field("is_trusted", &self.is_trusted())
            .finish_non_exhaustive()
    }
}
