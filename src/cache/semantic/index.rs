use super::guard::Words;
use crate::cache::CacheKey;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// Vectors of messages, and the keys of the entries that answer them, in partitions that share nothing.
pub(super) struct Index {
    bounds: Bounds,
    inner: Mutex<Inner>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) entries: usize,
    pub(super) partitions: usize,
    pub(super) bytes: usize,
}

#[derive(Default)]
struct Inner {
    partitions: HashMap<[u8; 32], Partition>,
    /// The partitions by the numbers of their first uses, to be looked through in turn; some of them are gone.
    turns: VecDeque<([u8; 32], u64)>,
    bytes: usize,
    /// Counts uses, to tell which was last.
    uses: u64,
}

#[derive(Default)]
struct Partition {
    /// Oldest first.
    items: VecDeque<Arc<Item>>,
    number: u64,
    used: u64,
}

/// How many partitions are looked through for what is over each time that something is added.
const TURNS: usize = 4;

pub(super) struct Item {
    pub(super) key: CacheKey,
    pub(super) vector: Arc<[f32]>,
    pub(super) words: Arc<Words>,
    pub(super) expires_at: Option<SystemTime>,
}

impl Item {
    fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.vector) + self.words.bytes() + size_of::<Arc<Self>>()
    }

    fn is_over(&self, now: SystemTime) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }
}

impl Index {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, inner: Mutex::default() }
    }

    /// What is in a partition, to be looked through without holding up others.
    pub(super) fn items(&self, partition: &[u8; 32]) -> Vec<Arc<Item>> {
        let inner = &mut *self.lock();
        inner.uses += 1;
        let Some(partition) = inner.partitions.get_mut(partition) else { return Vec::new() };
        partition.used = inner.uses;
        partition.items.iter().cloned().collect()
    }

    pub(super) fn insert(&self, partition: [u8; 32], item: Item, now: SystemTime) {
        let bytes = item.bytes() + size_of::<Partition>();
        if self.bounds.entries == 0 || self.bounds.partitions == 0 || bytes > self.bounds.bytes {
            return;
        }
        let inner = &mut *self.lock();
        inner.forget_some(now);
        inner.retain(&partition, |old| old.key != item.key && !old.is_over(now));
        while inner.partitions.get(&partition).is_some_and(|p| p.items.len() >= self.bounds.entries) {
            inner.pop(&partition);
        }
        let is_new = |inner: &Inner| !inner.partitions.contains_key(&partition);
        while is_new(inner) && inner.partitions.len() >= self.bounds.partitions
            || inner.bytes + bytes > self.bounds.bytes
        {
            let oldest = inner.partitions.iter().min_by_key(|(_, p)| p.used).map(|(name, _)| *name);
            match oldest {
                // The one that is added to goes last, and then an item at a time.
                Some(name) if name == partition => inner.pop(&name),
                Some(name) => inner.retain(&name, |_| false),
                None => return,
            }
        }
        inner.uses += 1;
        let used = inner.uses;
        let place = inner.partitions.entry(partition).or_default();
        if place.items.is_empty() {
            place.number = used;
            inner.turns.push_back((partition, used));
            inner.bytes += size_of::<Partition>();
        }
        place.used = used;
        inner.bytes += item.bytes();
        place.items.push_back(Arc::new(item));
    }

    /// Forgets what turned out to be gone.
    pub(super) fn remove(&self, partition: &[u8; 32], key: &CacheKey) {
        self.lock().retain(partition, |item| item.key != *key);
    }

    /// How many partitions, items and bytes there are.
    #[cfg(test)]
    fn len(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        (inner.partitions.len(), inner.partitions.values().map(|p| p.items.len()).sum(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Nobody may ever ask for a partition again, as for those of before an invalidation.
    fn forget_some(&mut self, now: SystemTime) {
        for _ in 0..TURNS.min(self.turns.len()) {
            let Some((name, number)) = self.turns.pop_front() else { return };
            let is_there = |inner: &Self| inner.partitions.get(&name).is_some_and(|p| p.number == number);
            if is_there(self) {
                self.retain(&name, |item| !item.is_over(now));
            }
            if is_there(self) {
                self.turns.push_back((name, number));
            }
        }
    }

    fn retain(&mut self, name: &[u8; 32], mut keep: impl FnMut(&Item) -> bool) {
        let Some(partition) = self.partitions.get_mut(name) else { return };
        let bytes = &mut self.bytes;
        partition.items.retain(|item| {
            let keeps = keep(item);
            if !keeps {
                *bytes -= item.bytes();
            }
            keeps
        });
        self.drop_if_empty(name);
    }

    fn pop(&mut self, name: &[u8; 32]) {
        let Some(partition) = self.partitions.get_mut(name) else { return };
        if let Some(item) = partition.items.pop_front() {
            self.bytes -= item.bytes();
        }
        self.drop_if_empty(name);
    }

    fn drop_if_empty(&mut self, name: &[u8; 32]) {
        if self.partitions.get(name).is_some_and(|partition| partition.items.is_empty()) {
            self.partitions.remove(name);
            self.bytes -= size_of::<Partition>();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{hash::RandomState, time::Duration};

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn item(key: u8, dimensions: usize, ends: u64) -> Item {
        Item {
            key: CacheKey::from_bytes([key; 32]),
            vector: vec![1.0; dimensions].into(),
            words: Arc::new(Words::new("a few words", &RandomState::new())),
            expires_at: START.checked_add(Duration::from_secs(ends)),
        }
    }

    #[test]
    fn the_oldest_of_a_partition_and_the_partition_used_least_go_first() {
        let index = Index::new(Bounds { entries: 2, partitions: 2, bytes: 1 << 20 });
        for key in 0..3 {
            index.insert([0; 32], item(key, 4, 10), START);
        }
        let keys =
            |name: u8| index.items(&[name; 32]).iter().map(|i| i.key.as_bytes()[0]).collect::<Vec<_>>();
        assert_eq!(keys(0), [1, 2]);
        index.insert([1; 32], item(7, 4, 10), START);
        assert_eq!(keys(0), [1, 2]);
        index.insert([2; 32], item(8, 4, 10), START);
        assert_eq!((keys(0), keys(1), keys(2)), (vec![1, 2], vec![], vec![8]));
        index.insert([0; 32], item(9, 4, 30), START + Duration::from_secs(10));
        assert_eq!(keys(0), [9], "the others are over");
    }

    #[test]
    fn what_is_over_goes_also_where_nobody_looks_any_more() {
        let index = Index::new(Bounds { entries: 4, partitions: 100, bytes: 1 << 20 });
        for name in 0..50 {
            index.insert([name; 32], item(name, 4, 10), START);
            index.insert([name; 32], item(name + 100, 4, if name == 0 { 90 } else { 10 }), START);
        }
        assert_eq!(index.len().1, 100);
        let later = START + Duration::from_secs(10);
        for key in 0..50 {
            index.insert([200; 32], item(key, 4, 90), later);
        }
        assert_eq!((index.len().0, index.len().1), (2, 5), "what is not over, and what was added");
    }

    proptest! {
        #[test]
        fn no_bound_is_ever_passed(
            steps in prop::collection::vec((0..6_u8, 0..40_u8, 1..200_usize, 0..30_u64, any::<bool>()), 1..200),
            entries in 0..5_usize, partitions in 0..4_usize, bytes in 0..6_000_usize,
        ) {
            let index = Index::new(Bounds { entries, partitions, bytes });
            for (at, (name, key, dimensions, ends, removes)) in steps.into_iter().enumerate() {
                match removes {
                    true => index.remove(&[name; 32], &CacheKey::from_bytes([key; 32])),
                    false => index.insert([name; 32], item(key, dimensions, ends), START + Duration::from_secs(at as u64 / 10)),
                }
                let (many, items, used) = index.len();
                prop_assert!(many <= partitions && items <= entries * partitions && used <= bytes);
                let sum: usize = index.lock().partitions.values()
                    .map(|p| size_of::<Partition>() + p.items.iter().map(|i| i.bytes()).sum::<usize>()).sum();
                prop_assert_eq!(used, sum);
            }
        }
    }
}
