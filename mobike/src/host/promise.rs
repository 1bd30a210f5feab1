//! What the timers of a connection promise, and what they cost while all is well.

use std::time::Duration;

use bewick_ike::{Path, Role, SaId, Time};

use super::{
    Host,
    probing::{COUNT, WARM},
};
use crate::race::{STAGGER, TURNS};

/// How soon a path that dies without a word is taken for dead, and the packets that this costs. Times hold
/// from the first packet that gets no answer to the choice of another path, if one answers; there the move
/// itself takes one round trip, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise {
    /// while traffic goes out without a pause of more than 250 ms, and half a second later where it has just
    /// begun; `None` for never
    pub busy: Option<Duration>,
    /// while there is none; `None` for never
    pub idle: Option<Duration>,
    /// questions an hour to other paths, which stay warm by them: a packet each way
    pub standby: u32,
    /// keepalives an hour to the NAT in front of us: a packet of one octet
    pub keepalives: u32,
    /// questions an hour, at most, to the peer on the path in use: a packet each way
    pub liveness: u32,
}

/// How long the pair in use is asked before another one takes its place: its first wait, the others of
/// its turns, and the time that an answer may take.
fn asking(timeout: Duration) -> Duration {
    timeout.clamp(STAGGER, 5 * STAGGER) + STAGGER * (TURNS - 2) + timeout
}

/// Traffic that goes unanswered for so long makes a path suspect, if that is to be taken for dead within
/// `found`, where answers take no more than 100 ms.
pub fn dead_after(found: Duration) -> Duration {
    found.saturating_sub(COUNT.0 + asking(Duration::from_millis(200)))
}

/// The least that [`dead_after`] can make true.
pub const LEAST_FOUND: Duration = Duration::from_millis(1050);

fn per_hour(interval: Duration) -> u32 {
    let hour = Duration::from_secs(3600);
    match interval.as_millis() {
        0 => 0,
        ms => u32::try_from(hour.as_millis().div_ceil(ms)).unwrap_or(u32::MAX),
    }
}

impl Host {
    /// What an IKE_SA of ours as initiator can count on at the moment. `None` as responder, whose peer sees
    /// to it, and without MOBIKE.
    pub fn promise(&self, now: Time, id: SaId) -> Option<Promise> {
        let sa = self.ike.sa(id)?;
        let mobility = self.movers.sas.get(&id)?;
        if sa.role != Role::Initiator || !mobility.supported {
            return None;
        }
        let policy = self.movers.policy(mobility.connection);
        let config = self.ike.connection(mobility.connection)?;
        let record = mobility.pairs.get(sa.path).cloned().unwrap_or_default();
        let asking = asking(record.timeout());
        let busy = policy.dead_after.max(COUNT.0) + COUNT.0 + asking;
        let idle = config.liveness + config.retransmission.first + asking;
        let warm = match policy.standby.is_zero() {
            true => 0,
            false => self.warm(now, id, sa.path).len(),
        };
        let keepalive = self.uplinks.keepalive(sa.path.local.ip());
        Some(Promise {
            busy: (!policy.dead_after.is_zero()).then_some(busy),
            idle: (!config.liveness.is_zero()).then_some(idle),
            standby: per_hour(policy.standby) * u32::try_from(warm).unwrap_or(u32::MAX),
            keepalives: if sa.nat.local { per_hour(keepalive) } else { 0 },
            liveness: per_hour(config.liveness),
        })
    }

    /// The pairs that are kept warm, best first.
    pub(super) fn warm(&self, now: Time, id: SaId, current: Path) -> Vec<Path> {
        let policy = self.movers.policy_of(id);
        let metered = |path: &Path| {
            let local = self.movers.locals.iter().find(|l| l.address == path.local.ip());
            local.is_none_or(|local| local.metered) && !policy.standby_metered
        };
        let others = self.candidates(now, id, current).into_iter();
        others
            .filter(|path| *path != current && !path.is_tcp() && !metered(path))
            .take(WARM)
            .collect()
    }
}
