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

/// At most one deadline for each IKE_SA and [`Timer`].
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Time, SaId, Timer)>,
    by_name: BTreeMap<(SaId, Timer), Time>,
}

impl Timers {
    pub(crate) fn set(&mut self, sa: SaId, timer: Timer, at: Time) {
        self.clear(sa, timer);
        self.queue.insert((at, sa, timer));
        self.by_name.insert((sa, timer), at);
    }

    pub(crate) fn clear(&mut self, sa: SaId, timer: Timer) {
        if let Some(at) = self.by_name.remove(&(sa, timer)) {
            self.queue.remove(&(at, sa, timer));
        }
    }

    pub(crate) fn clear_all(&mut self, sa: SaId) {
        for timer in [
            Timer::Retransmit,
            Timer::HalfOpen,
            Timer::Liveness,
            Timer::Rekey,
            Timer::Former,
            Timer::Reassembly,
            Timer::Redundant,
        ] {
            self.clear(sa, timer);
        }
    }

    /// The next deadline and what it is for.
    pub(crate) fn next(&self) -> Option<(Time, Timer)> {
        self.queue.first().map(|(at, _, timer)| (*at, *timer))
    }

    /// Takes one timer that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<(SaId, Timer)> {
        let (at, sa, timer) = *self.queue.first().filter(|(at, ..)| *at <= now)?;
        self.queue.remove(&(at, sa, timer));
        self.by_name.remove(&(sa, timer));
        Some((sa, timer))
    }
}
