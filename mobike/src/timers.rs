//! One table of the host's own timers.

use std::collections::{BTreeMap, BTreeSet};

use bewick_ike::{SaId, Time};

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Timer {
    /// a NAT keepalive (RFC 3948 §4)
    Keepalive,
    /// the next copy of a race
    Race,
    /// the next look at what the data plane has sent and received
    Count,
    /// the next probe of an alternative
    Standby,
    /// the peer's updates have come to rest
    Settle,
    /// whether the IKE_SA has all that the one has which it replaces
    Retire,
}

const ALL: [Timer; 6] =
    [Timer::Keepalive, Timer::Race, Timer::Count, Timer::Standby, Timer::Settle, Timer::Retire];

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
        ALL.into_iter().for_each(|timer| self.clear(sa, timer));
    }

    /// When [`Self::pop`] has something next.
    pub(crate) fn next(&self) -> Option<Time> {
        self.queue.first().map(|(at, ..)| *at)
    }

    /// Takes one timer that is due.
    pub(crate) fn pop(&mut self, now: Time) -> Option<(SaId, Timer)> {
        let (_, sa, timer) = *self.queue.first().filter(|(at, ..)| *at <= now)?;
        self.clear(sa, timer);
        Some((sa, timer))
    }
}
