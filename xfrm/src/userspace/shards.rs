//! A map that is cheap to copy: its parts are shared until one is changed.

use std::{collections::HashMap, hash::Hash, net::IpAddr, sync::Arc};

use bewick_ike::{ChildId, EspSpi};

/// How many parts there are: of thousands of entries, a change copies some dozens.
const PARTS: usize = 256;

/// What says in which part it is: numbers that go up, or random ones, or addresses of one network.
pub(super) trait Key: Copy + Eq + Hash {
    /// Any number; the last octet counts.
    fn part(self) -> usize;
}

impl Key for ChildId {
    fn part(self) -> usize {
        self.0 as usize
    }
}

impl Key for EspSpi {
    fn part(self) -> usize {
        self.0 as usize
    }
}

impl Key for u32 {
    fn part(self) -> usize {
        self as usize
    }
}

impl Key for IpAddr {
    fn part(self) -> usize {
        match self {
            IpAddr::V4(address) => u32::from(address) as usize,
            IpAddr::V6(address) => u128::from(address) as usize,
        }
    }
}

/// The map.
#[derive(Clone)]
pub(super) struct Shards<K, V>(Vec<Arc<HashMap<K, V>>>);

impl<K, V> Default for Shards<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Shards(vec![empty; PARTS])
    }
}

impl<K: Key, V: Clone> Shards<K, V> {
    /// What `key` leads to.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.0[key.part() % PARTS].get(key)
    }

    /// The part that `key` is in, to be changed.
    pub(super) fn of(&mut self, key: &K) -> &mut HashMap<K, V> {
        Arc::make_mut(&mut self.0[key.part() % PARTS])
    }

    /// Whether nothing is in it.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|part| part.is_empty())
    }
}
