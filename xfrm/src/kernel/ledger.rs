//! What we have in the kernel: which state belongs to which CHILD_SA, and the traffic of states that
//! are gone. Shared with the task that reads the kernel's events.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bewick_ike::ChildId;

use super::state::{Key, Side, Spent, Usage};
use crate::plane::Counters;

/// A state of ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) id: ChildId,
    pub(super) side: Side,
    pub(super) reqid: u32,
    /// where the peer is on this state's path
    pub(super) remote: SocketAddr,
    /// the source address that the state has in the kernel: an inbound one may have an older one than
    /// its path, as any is taken
    pub(super) source: IpAddr,
    /// what was used up in this direction before the state was made
    pub(super) began: Spent,
    /// whether ESP is in UDP
    pub(super) encap: bool,
    /// what it had carried when a move replaced it: it is kept for packets in flight until the kernel
    /// lets it expire
    pub(super) left: Option<Usage>,
}

/// The book of our states.
#[derive(Default)]
pub(super) struct Ledger {
    states: BTreeMap<Key, Entry>,
    /// traffic of states that a move has replaced
    carried: BTreeMap<ChildId, Counters>,
    /// it was said that another program has removed something, and not looked after yet
    disturbed: bool,
}

/// The ledger as the plane and its event task share it.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Ledger>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    pub(super) fn insert(&mut self, key: Key, entry: Entry) {
        self.states.insert(key, entry);
    }

    pub(super) fn get(&self, key: &Key) -> Option<Entry> {
        self.states.get(key).copied()
    }

    /// Marks a state as replaced when it had carried `usage`.
    pub(super) fn linger(&mut self, key: &Key, usage: Usage) {
        if let Some(entry) = self.states.get_mut(key) {
            entry.left = Some(usage);
        }
    }

    /// Strikes a state out and keeps the count of what it carried.
    pub(super) fn close(&mut self, key: &Key, usage: Usage) {
        if let Some(Entry { id, side, .. }) = self.states.remove(key) {
            self.carry(id, side, usage);
        }
    }

    /// Counts the traffic of a state that was replaced under the same key.
    pub(super) fn carry(&mut self, id: ChildId, side: Side, usage: Usage) {
        add(self.carried.entry(id).or_default(), side, usage);
    }

    /// Counts a packet that came on another path.
    pub(super) fn count_wrong_path(&mut self, id: ChildId) {
        self.carried.entry(id).or_default().wrong_path += 1;
    }

    /// The states of `id`, lingering ones included.
    pub(super) fn states_of(&self, id: ChildId) -> Vec<(Key, Entry)> {
        let ours = self.states.iter().filter(|(_, entry)| entry.id == id);
        ours.map(|(key, entry)| (*key, *entry)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// Notes that another program has removed something; whether that is news.
    pub(super) fn disturb(&mut self) -> bool {
        !std::mem::replace(&mut self.disturbed, true)
    }

    /// From here on what another program removes is news again.
    pub(super) fn settle(&mut self) {
        self.disturbed = false;
    }

    /// The traffic of the states of `id` that are gone.
    pub(super) fn carried(&self, id: ChildId) -> Counters {
        self.carried.get(&id).copied().unwrap_or_default()
    }

    /// Forgets all of `id`.
    pub(super) fn forget(&mut self, id: ChildId) {
        self.states.retain(|_, entry| entry.id != id);
        self.carried.remove(&id);
    }
}

/// Adds the traffic of one state to a CHILD_SA's counters.
pub(super) fn add(counters: &mut Counters, side: Side, usage: Usage) {
    let (octets, packets) = match side {
        Side::In => (&mut counters.octets_in, &mut counters.packets_in),
        Side::Out => (&mut counters.octets_out, &mut counters.packets_out),
    };
    *octets = octets.saturating_add(usage.octets);
    *packets = packets.saturating_add(usage.packets);
    counters.rejected = counters.rejected.saturating_add(usage.rejected);
}
