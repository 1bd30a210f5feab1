//! One table of timers for all IKE_SAs.

use std::collections::{BTreeMap, BTreeSet};

use crate::{event::SaId, time::Time};

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Timer {
    /// an outstanding request may have to be sent again
    Retransmit,
    /// a half-open IKE_SA has lived long enough
    HalfOpen,
    /// the peer has been silent
    Liveness,
    /// a CHILD_SA or the IKE_SA itself is old enough
    Rekey,
    /// what a rekey of the IKE_SA has replaced is still there
    Former,
    /// fragments have waited for the others long enough
    Reassembly,
    /// the peer's IKE_SA has taken the place of ours
    Redundant,
}

/// At most one deadline for each IKE_SA and each kind of timer `T`.
#[derive(Debug)]
pub struct Timers<T> {
    queue: BTreeSet<(Time, SaId, T)>,
    by_name: BTreeMap<SaId, BTreeMap<T, Time>>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Timers { queue: BTreeSet::new(), by_name: BTreeMap::new() }
    }
}

impl<T: Copy + Ord> Timers<T> {
    /// Sets a deadline in the place of the one that is set, if any.
    pub fn set(&mut self, sa: SaId, timer: T, at: Time) {
        self.clear(sa, timer);
        self.queue.insert((at, sa, timer));
        self.by_name.entry(sa).or_default().insert(timer, at);
    }

    /// Takes a deadline away.
    pub fn clear(&mut self, sa: SaId, timer: T) {
        let Some(timers) = self.by_name.get_mut(&sa) else { return };
        if let Some(at) = timers.remove(&timer) {
            self.queue.remove(&(at, sa, timer));
        }
        if timers.is_empty() {
            self.by_name.remove(&sa);
        }
    }

    /// Takes all deadlines of an IKE_SA away.
    pub fn clear_all(&mut self, sa: SaId) {
        for (timer, at) in self.by_name.remove(&sa).into_iter().flatten() {
            self.queue.remove(&(at, sa, timer));
        }
    }

    /// The next deadline and what it is for.
    pub fn next(&self) -> Option<(Time, T)> {
        self.queue.first().map(|(at, _, timer)| (*at, *timer))
    }

    /// Takes one timer that is due.
    pub fn pop(&mut self, now: Time) -> Option<(SaId, T)> {
        let (_, sa, timer) = *self.queue.first().filter(|(at, ..)| *at <= now)?;
        self.clear(sa, timer);
        Some((sa, timer))
    }
}
