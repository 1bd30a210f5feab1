//! The way back to a better uplink, once it has shown that it works: a planned move, which loses nothing.
//!
//! The draft's order of addresses (draft-ietf-multi6-failure-detection-00 §5.1) is for a choice that is
//! due; here nothing is due. So the better pair has to answer for some time without a failure, and one that
//! has been left soon after it was taken has to do so for longer each time.

use std::time::Duration;

use bewick_ike::{Path, Role, SaId, Time};

use super::Host;
use crate::{event::Cause, initiator, mobility::Mobility, timers::Timer};

/// So many answers in a row at least.
const ANSWERS: u32 = 3;

/// A return that lasts for less was a mistake.
const SHORT: Duration = Duration::from_secs(300);

/// The wait is doubled no more often than that.
const MOST_DOUBLINGS: u32 = 6;

/// Between two questions to a pair that does not answer, at most.
const LONGEST: Duration = Duration::from_secs(60);

/// How far a better pair is on its way to be taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Back {
    /// the operator has chosen the pair in use: it is left when it has to be
    pub(super) pinned: bool,
    /// the better pair, since when it has answered each time, and how often
    candidate: Option<(Path, Time, u32)>,
    /// it did not answer, so often in a row
    failures: u32,
    /// when it was asked last
    asked: Option<Time>,
    /// when a better pair was taken last
    taken: Option<Time>,
    /// how often in a row it was left soon after
    mistakes: u32,
}

impl Back {
    /// Another pair is in use now, for this reason.
    pub(super) fn moved(&mut self, now: Time, cause: Cause) {
        let short = self.taken.take().map(|at| now.since(at) < SHORT);
        self.mistakes = match (short, cause) {
            (_, Cause::Requested | Cause::Better) => self.mistakes,
            (Some(true), _) => (self.mistakes + 1).min(MOST_DOUBLINGS),
            (Some(false), _) => 0,
            (None, _) => self.mistakes,
        };
        self.pinned = cause == Cause::Requested;
        self.taken = (cause == Cause::Better).then_some(now);
        (self.candidate, self.failures, self.asked) = (None, 0, None);
    }
}

/// What the operator and the routing table say of a pair, and the peer of its address: the less, the better.
fn rank(mobility: &Mobility, host: &Host, path: Path) -> Option<(u32, u32, u32, bool)> {
    let local = host.movers.locals.iter().find(|local| local.address == path.local.ip())?;
    let theirs = mobility.peer_costs.iter().find(|(address, _)| *address == path.remote.ip());
    // UDP is better than TCP on the same uplink (RFC 9329 §9).
    let theirs = theirs.map_or(0, |(_, cost)| *cost);
    Some((local.cost, local.metric, theirs, path.is_tcp()))
}

impl Host {
    /// The best pair that is better than the one in use.
    fn better(&self, id: SaId, current: Path) -> Option<Path> {
        let mobility = self.movers.sas.get(&id)?;
        let policy = self.movers.policy(mobility.connection);
        let metered = |path: Path| {
            let local = self.movers.locals.iter().find(|l| l.address == path.local.ip());
            local.is_none_or(|local| local.metered)
        };
        let now = rank(mobility, self, current)?;
        // From TCP to UDP between the same addresses the operator's choice stays what it is.
        let ends = |path: Path| (path.local.ip(), path.remote.ip());
        let stays = |path: Path| mobility.back.pinned && ends(path) != ends(current);
        let mut candidates = initiator::candidates(mobility, &self.movers.locals, current);
        candidates.retain(|path| {
            *path != current
                && !path.is_tcp()
                && !stays(*path)
                && !mobility.refused.contains(path)
                && (!metered(*path) || metered(current) || policy.standby_metered)
                && rank(mobility, self, *path).is_some_and(|rank| rank < now)
        });
        candidates.into_iter().min_by_key(|path| rank(mobility, self, *path))
    }

    /// Looks whether a better pair works, and takes it when it has done so for long enough.
    pub(super) fn on_back(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, role, established) = (sa.path, sa.role, sa.state == "established");
        let after = self.movers.policy_of(id).back_after;
        if role != Role::Initiator || after.is_zero() {
            return;
        }
        let interval = after / (ANSWERS + 1);
        self.timers.set(id, Timer::Back, now + interval);
        let better = self.better(id, current);
        let is_open = self.ike.is_open(id) && !self.ike.is_asking(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some(path) = better else {
            mobility.back.candidate = None;
            return;
        };
        let idle = mobility.race.is_none()
            && mobility.awaiting.is_none()
            && mobility.underway.is_none()
            && !mobility.stranded;
        if !established || !idle || !is_open {
            return;
        }
        let answered = mobility.pairs.get(path).and_then(|record| record.answered);
        let back = &mut mobility.back;
        if back.candidate.is_none_or(|(known, ..)| known != path) {
            (back.candidate, back.failures, back.asked) = (Some((path, now, 0)), 0, None);
        }
        if let (Some(asked), Some((_, since, answers))) = (back.asked, &mut back.candidate) {
            if answered.is_some_and(|at| at >= asked) {
                *answers += 1;
                back.failures = 0;
            } else {
                (*since, *answers) = (now, 0);
                back.failures = (back.failures + 1).min(16);
            }
            back.asked = None;
        }
        let wait = after.saturating_mul(2_u32.pow(back.mistakes));
        let ready = |(_, since, answers)| answers >= ANSWERS && now.since(since) >= wait;
        if back.candidate.is_some_and(ready) {
            self.move_to(now, id, path, Cause::Better);
            return;
        }
        let pause = interval.saturating_mul(2_u32.pow(back.failures)).min(LONGEST.max(interval));
        self.timers.set(id, Timer::Back, now + pause);
        if self.bucket.take(now) {
            if let Some(mobility) = self.movers.sas.get_mut(&id) {
                mobility.back.asked = Some(now);
            }
            self.validate(now, id, path);
        }
    }
}
