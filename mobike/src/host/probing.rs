//! Whether the pair in use works and which other one would: hints, races, alternatives that are kept
//! warm (RFC 4555 §3.5, §3.10; draft-ietf-multi6-failure-detection-00).

use std::{net::SocketAddr, time::Duration};

use bewick_ike::{ChildId, Path, Role, SaId, Tag, Time, wire::Payload};

use super::{Host, Output};
use crate::{
    event::{Cause, Event, Hint, PrimaryState},
    initiator, kin,
    mobility::Awaiting,
    notify,
    path::PairState,
    policy::ReturnRoutability,
    race::{Race, STAGGER, Step},
    timers::Timer,
};

/// Between two looks at the counters of the data plane while there is traffic, and while there is none.
pub(super) const COUNT: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_millis(500));

/// After more looks than that without any traffic a tunnel counts as idle.
const IDLE: u32 = 8;

/// After a pair has answered although no traffic comes in, the wait before it is asked again for that:
/// the first, and the longest.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// So long before a responder gives an absent initiator up it asks whether it is there.
const LAST_QUESTION: Duration = Duration::from_secs(330);

/// So often a request comes again before the peer is told, elsewhere, that our answers do not arrive.
const REPEATS: u32 = 2;

/// Alternatives that are kept warm.
pub(super) const WARM: usize = 2;

/// The least time between two hints of strangers that are heeded (RFC 4555 §3.5).
const BETWEEN_STRANGERS: Duration = Duration::from_secs(1);

/// Copies a second for all IKE_SAs together, and at once.
const COPIES: (u64, u64) = (500, 500);

/// A bucket of tokens: what is sent on a mere hint is bounded for the whole host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    left: u64,
    at: Time,
}

impl Default for Bucket {
    fn default() -> Self {
        Bucket { left: COPIES.1, at: Time::ZERO }
    }
}

impl Bucket {
    pub(super) fn take(&mut self, now: Time) -> bool {
        let micros = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(COPIES.0) / 1_000_000;
        if gained > 0 {
            *self = Bucket { left: (self.left + gained).min(COPIES.1), at: now };
        }
        let any = self.left > 0;
        self.left -= u64::from(any);
        any
    }
}

/// What the data plane has counted, and since when nothing has come in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    sent: u64,
    received: u64,
    /// when it was looked at last, if something had been sent since the look before
    spoke_at: Option<Time>,
    silent_since: Option<Time>,
    ask_again: Option<(Time, Duration)>,
    idle: u32,
}

impl Counts {
    /// Another pair is in use: what was not heard on the old one says nothing of it.
    pub(super) fn restart(&mut self) {
        (self.silent_since, self.ask_again, self.spoke_at) = (None, None, None);
    }
}

/// One pair of addresses as the operator sees it.
#[derive(Clone, Debug)]
pub struct PairStatus {
    /// the pair
    pub path: Path,
    /// it is the one in use
    pub current: bool,
    /// how it stands
    pub state: PairState,
    /// smoothed round-trip time
    pub rtt: Option<Duration>,
    /// lost probes of a hundred
    pub loss: Option<u32>,
    /// since the last answer
    pub age: Option<Duration>,
    /// whether a NAT is on it
    pub nat: Option<bool>,
    /// the peer has shown lately that it receives there (RFC 4555 §3.7)
    pub validated: bool,
    /// as whom the peer sees us, if it is a Bewick
    pub seen: Option<SocketAddr>,
    /// the peer hears us on it and we do not hear the peer
    pub one_way: bool,
}

impl Host {
    /// Every pair that an IKE_SA of ours as initiator could use, best first; as responder those that the
    /// peer has used.
    pub fn pairs(&self, now: Time, id: SaId) -> Vec<PairStatus> {
        let (Some(sa), Some(mobility)) = (self.ike.sa(id), self.movers.sas.get(&id)) else {
            return Vec::new();
        };
        let mut paths = vec![sa.path];
        if sa.role == Role::Initiator && mobility.supported {
            let others = initiator::candidates(mobility, &self.movers.locals, sa.path);
            paths.extend(others.into_iter().filter(|path| *path != sa.path));
        }
        let status = |path: Path| {
            let record = mobility.pairs.get(path).cloned().unwrap_or_default();
            let current = path == sa.path;
            let nat = if current { Some(sa.nat.any()) } else { record.nat };
            let state = match record.state(now) {
                PairState::Untried if current => PairState::Operational,
                state => state,
            };
            PairStatus {
                path,
                current,
                state,
                rtt: record.rtt(),
                loss: record.loss(),
                age: record.answered.map(|at| now.since(at)),
                nat,
                validated: record.is_valid(now) || mobility.children_at.remote == path.remote,
                seen: record.seen,
                one_way: record.is_one_way(now),
            }
        };
        paths.into_iter().map(status).collect()
    }

    /// How the pair in use of an IKE_SA stands.
    pub fn primary_state(&self, id: SaId) -> PrimaryState {
        match self.movers.sas.get(&id) {
            None => PrimaryState::None,
            Some(mobility) if mobility.stranded => PrimaryState::None,
            Some(mobility) if mobility.race.is_some() => PrimaryState::Testing,
            Some(_) => PrimaryState::Operational,
        }
    }

    /// The pairs of an IKE_SA, best first: those that failed lately last.
    pub(super) fn candidates(&self, now: Time, id: SaId, current: Path) -> Vec<Path> {
        let Some(mobility) = self.movers.sas.get(&id) else { return Vec::new() };
        let mut paths = initiator::candidates(mobility, &self.movers.locals, current);
        let failed = |path: &Path| match mobility.pairs.get(*path) {
            Some(record) => record.has_failed(now),
            None => self.uplinks.has_failed(now, path.local.ip()),
        };
        paths.sort_by_key(failed);
        paths
    }

    /// Something suggests that the pair in use is dead: it is asked, and the others soon after.
    pub(super) fn suspect(&mut self, now: Time, id: SaId, hint: Hint) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        let (current, role) = (sa.path, sa.role);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if !mobility.supported || !mobility.established || mobility.stranded {
            return;
        }
        if hint == Hint::Unreachable || role == Role::Responder {
            let lately = |at: Time| now.since(at) < BETWEEN_STRANGERS;
            if mobility.race.is_some() || mobility.hinted.is_some_and(lately) {
                return;
            }
            mobility.hinted = Some(now);
        }
        if role == Role::Responder {
            // The initiator decides; all that we can do is ask where it is (RFC 4555 §5.3).
            if !self.ike.is_asking(id) {
                mobility.pending_probe = true;
            }
            return;
        }
        if mobility.race.is_some() {
            return;
        }
        let looking = matches!(&mobility.awaiting, Some((_, Awaiting::Mapping)));
        mobility.mapping_doubted |= looking || mobility.pending_mapping;
        let (connection, cause) = (mobility.connection, hint.cause());
        mobility.hint = Some(hint);
        self.event(Event::Suspected { connection, sa: id, path: current, hint });
        self.start_race(now, id, cause, hint != Hint::Disconnected);
        // What is outstanding already is the question (RFC 4555 §3.10); its repetition has just gone. On a TCP
        // connection that is lost the question opens another between the same ends (RFC 9329 §6.1, §6.2).
        if hint != Hint::Unanswered {
            self.ask(now, id, current);
        }
    }

    /// Begins a race for the pair in use. If that can't be alive, `patient` is false.
    pub(super) fn start_race(&mut self, now: Time, id: SaId, cause: Cause, patient: bool) {
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        // A connection that does not answer is as good as broken: another one is tried beside it.
        if current.is_tcp() {
            self.draw_tcp_port(id);
        }
        let mut candidates = self.candidates(now, id, current);
        candidates.retain(|path| *path != current);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let strict = self.movers.policies.get(mobility.connection.0).is_some_and(|p| p.strict);
        mobility.pairs.sent(now, current);
        // The pair that is asked first is given the time that an answer takes.
        let record = mobility.pairs.of(current);
        let usual = record.rtt().map_or(STAGGER, |rtt| rtt * 3 / 2);
        let first = if patient { record.timeout() } else { usual };
        let first = first.clamp(STAGGER, 5 * STAGGER);
        mobility.race = Some(Race::new(now, cause, current, (patient, strict), candidates));
        self.timers.set(id, Timer::Race, now + first);
    }

    /// Sends the outstanding request, or a new one if there is none, on the current pair.
    fn ask(&mut self, now: Time, id: SaId, current: Path) {
        if self.ike.copy_to(now, id, current, &mut self.movers) {
            return;
        }
        let Some(view) = self.ike.view(id) else { return };
        let force = self.force_encap(id);
        let spis = (view.spi_i, view.spi_r);
        // RFC 4555 §3.10: without UPDATE_SA_ADDRESSES, so that it moves nothing.
        let nat_t = self.movers.sas.get(&id).is_some_and(|m| m.nat_t);
        let random = self.ike.random();
        let payloads = initiator::detection((spis, current, force), nat_t, random);
        self.request(now, id, &payloads, Awaiting::Probe, None);
    }

    /// Sends an INFORMATIONAL request of ours, on another path than the current one if that is said.
    pub(super) fn request(
        &mut self,
        now: Time,
        id: SaId,
        payloads: &[Payload],
        awaiting: Awaiting,
        at: Option<Path>,
    ) -> bool {
        self.next_tag += 1;
        let number = self.next_tag;
        let Some(mobility) = self.movers.sas.get_mut(&id).filter(|m| m.awaiting.is_none()) else {
            return false;
        };
        mobility.awaiting = Some((number, awaiting));
        let tag = Tag::Upper(number);
        let sent = match at {
            Some(path) => self.ike.request_at(now, id, path, payloads, tag, &mut self.movers),
            None => self.ike.request(now, id, payloads, tag, &mut self.movers),
        };
        if !sent && let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.awaiting = None;
        }
        sent
    }

    /// The next copy of a race.
    pub(super) fn on_race(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, established) = (sa.path, sa.state == "established");
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some(race) = mobility.race.as_mut().filter(|_| established) else {
            mobility.race = None;
            return;
        };
        let timeout = mobility.pairs.of(current).timeout();
        if race.verdict(now, timeout).is_some() {
            self.settle_race(now, id);
            return;
        }
        if !self.bucket.take(now) {
            self.timers.set(id, Timer::Race, now + STAGGER);
            return;
        }
        let (step, next) = race.step(now, current, timeout);
        self.timers.set(id, Timer::Race, next);
        match step {
            Step::Send(paths) => {
                for path in paths {
                    if !self.is_ours(path.local.ip()) {
                        continue;
                    }
                    // RFC 9329 §6.2: a stream loses nothing, so what is in it is not sent again.
                    if path.is_tcp() && path == current && self.ike.is_asking(id) {
                        continue;
                    }
                    if let Some(mobility) = self.movers.sas.get_mut(&id) {
                        mobility.pairs.sent(now, path);
                        mobility.scattered |= path != current;
                    }
                    if !self.ike.copy_to(now, id, path, &mut self.movers) {
                        // It was answered, or a rekey overtook it: the question is put anew.
                        self.ask(now, id, current);
                        self.ike.copy_to(now, id, path, &mut self.movers);
                    }
                }
            }
            Step::Pause(_) => {
                let silent = now.since(race.since);
                self.try_anew(now, id, silent);
                let mut candidates = self.candidates(now, id, current);
                candidates.retain(|path| *path != current);
                let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
                if let Some(race) = &mut mobility.race {
                    for tried in race.tried().iter().filter(|tried| tried.answered.is_none()) {
                        self.uplinks.note(now, tried.path.local.ip(), false);
                    }
                    race.refill(candidates);
                }
                mobility.pairs.conclude(now);
            }
        }
    }

    /// A request of ours was answered on `path`.
    pub(super) fn on_answered(&mut self, now: Time, id: SaId, path: Path, sent: Option<Time>) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, role) = (sa.path, sa.role);
        // Nothing was ever sent to any other place: somebody on the way has changed the address or the port.
        // A TCP connection has a port of its own each time it is opened.
        let same = |other: &Path| match path.is_tcp() {
            true => {
                other.is_tcp() && (other.local.ip(), other.remote) == (path.local.ip(), path.remote)
            }
            false => *other == path,
        };
        let asked = path == current || self.candidates(now, id, current).iter().any(same);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        mobility.pairs.answered(now, path, sent);
        self.uplinks.note(now, path.local.ip(), true);
        let Some(race) = &mut mobility.race else { return };
        if path != current {
            if role == Role::Initiator && asked {
                race.answered(now, path);
                self.settle_race(now, id);
            }
            return;
        }
        let (connection, after) = (mobility.connection, now.since(race.since));
        let patient = race.patient;
        // What the answer says of a NAT is of no pair in particular: once more, on this pair alone.
        mobility.pending_probe |= patient && mobility.scattered && role == Role::Initiator;
        mobility.tried = race.tried().to_vec();
        mobility.race = None;
        // An update that was answered elsewhere first is still to be proven here.
        let asking = matches!(&mobility.awaiting, Some((_, Awaiting::Update { .. })));
        mobility.pending_update |= !asking && mobility.underway.is_some_and(|u| !u.confirmed);
        self.timers.clear(id, Timer::Race);
        if patient {
            self.event(Event::Alive { connection, sa: id, path, after });
        }
    }

    /// Takes the winner of a race, if it has one.
    fn settle_race(&mut self, now: Time, id: SaId) {
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let timeout = mobility.pairs.of(current).timeout();
        let Some(race) = &mobility.race else { return };
        let Some(winner) = race.verdict(now, timeout) else { return };
        let cause = race.cause;
        mobility.tried = race.tried().to_vec();
        mobility.race = None;
        mobility.pairs.failed(now, current);
        self.uplinks.note(now, current.local.ip(), false);
        self.timers.clear(id, Timer::Race);
        // RFC 4555 §3.7: that it answered there shows nothing about one address alone: a fresh
        // UPDATE_SA_ADDRESSES with COOKIE2 does.
        self.move_to(now, id, winner, cause);
    }

    /// Our addresses have changed while a race was under way.
    pub(super) fn renew_race(&mut self, now: Time, id: SaId) {
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let mut candidates = self.candidates(now, id, current);
        candidates.retain(|path| *path != current);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if let Some(race) = &mut mobility.race {
            race.restart(candidates);
            self.timers.set(id, Timer::Race, now);
        }
    }

    /// Begins to look after an IKE_SA that has just come up.
    pub(super) fn watch(&mut self, now: Time, id: SaId) {
        let Some(mobility) = self.movers.sas.get(&id).filter(|m| m.supported) else { return };
        let policy = self.movers.policy(mobility.connection);
        if mobility.role == Role::Responder {
            // An initiator that can move asks by itself. A request of ours that waits for one who is away
            // would be in the way of the check of his new address when he is back (RFC 4555 §3.7, §3.11).
            let asks =
                self.ike.connection(mobility.connection).is_some_and(|c| !c.liveness.is_zero());
            let last = LAST_QUESTION.min(policy.hold / 2);
            self.ike.set_patience(id, last, policy.hold);
            if asks {
                self.ike.set_liveness(now, id, Some(policy.hold - last), &mut self.movers);
            }
            return;
        }
        self.ike.set_patience(id, policy.hold, policy.hold);
        if !policy.dead_after.is_zero() {
            self.timers.set(id, Timer::Count, now + COUNT.1);
        }
        if !policy.back_after.is_zero() {
            self.timers.set(id, Timer::Back, now + policy.back_after / 4);
        }
        if !policy.standby.is_zero() {
            self.timers.set(id, Timer::Standby, now + policy.standby / 8);
        }
    }

    /// Asks the data plane what it has counted.
    pub(super) fn on_count(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let children: Vec<ChildId> = sa.children.iter().map(|child| child.id).collect();
        let Some(mobility) = self.movers.sas.get(&id) else { return };
        // While nothing is sent there is nothing to be found.
        let wait = if mobility.counts.idle > IDLE { COUNT.1 } else { COUNT.0 };
        self.timers.set(id, Timer::Count, now + wait);
        if !children.is_empty() && !mobility.stranded {
            self.outputs.push_back(Output::Count { sa: id, children });
        }
    }

    /// What the data plane has counted: packets of all CHILD_SAs of the IKE_SA.
    pub(super) fn on_counted(&mut self, now: Time, id: SaId, sent: u64, received: u64) {
        let policy = self.movers.policy_of(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let counts = &mut mobility.counts;
        let (heard, spoke) = (received != counts.received, sent != counts.sent);
        (counts.sent, counts.received) = (sent, received);
        let was_idle = counts.idle > IDLE;
        counts.idle = if spoke || heard { 0 } else { counts.idle.saturating_add(1) };
        if was_idle && counts.idle == 0 {
            // The wait for the next look is still that of an idle tunnel.
            self.timers.set(id, Timer::Count, now + COUNT.0);
        }
        if heard {
            (counts.silent_since, counts.ask_again) = (None, None);
        } else if spoke {
            // Who was sending already at the last look has been without an answer since then.
            counts.silent_since.get_or_insert(counts.spoke_at.unwrap_or(now));
        }
        counts.spoke_at = spoke.then_some(now);
        if let Some(at) = counts.silent_since.map(|at| at + policy.dead_after)
            && now < at
            && at < now + COUNT.0
        {
            self.timers.set(id, Timer::Count, at);
        }
        let silent = counts.silent_since.is_some_and(|at| now.since(at) >= policy.dead_after);
        // One who sends without ever being answered is no reason to ask all the time.
        let due = counts.ask_again.is_none_or(|(at, _)| now >= at);
        if silent && due && spoke && mobility.race.is_none() {
            let wait =
                counts.ask_again.map_or(ASK_AGAIN.0, |(_, wait)| (wait * 2).min(ASK_AGAIN.1));
            counts.ask_again = Some((now + wait, wait));
            self.suspect(now, id, Hint::Silence);
        }
    }

    /// Keeps the best alternatives warm: one probe with a COOKIE2 of its own on each, now and then.
    pub(super) fn on_standby(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, established) = (sa.path, sa.state == "established");
        let Some(mobility) = self.movers.sas.get(&id) else { return };
        let policy = self.movers.policy(mobility.connection);
        self.timers.set(id, Timer::Standby, now + policy.standby / 8);
        let idle = mobility.race.is_none() && mobility.awaiting.is_none() && !mobility.stranded;
        if !established || !idle || !self.ike.is_open(id) || self.ike.is_asking(id) {
            return;
        }
        let fresh = |path: &Path| {
            mobility.pairs.get(*path).is_some_and(|record| {
                let last = record.answered.max(record.asked);
                last.is_some_and(|at| now.since(at) < policy.standby)
            })
        };
        let best = self.warm(now, id, current);
        let Some(path) = best.into_iter().find(|path| !fresh(path)) else { return };
        if self.bucket.take(now) {
            self.validate(now, id, path);
        }
    }

    /// Asks for a COOKIE2 on another pair than the one in use: whether it works, whether a NAT is on it,
    /// and that the peer receives there (RFC 4555 §3.7, §3.10).
    pub(super) fn validate(&mut self, now: Time, id: SaId, path: Path) {
        let Some(view) = self.ike.view(id) else { return };
        let force = self.force_encap(id);
        let cookie = notify::new_cookie2(self.ike.random());
        let mut payloads = vec![notify::cookie2(&cookie)];
        let spis = (view.spi_i, view.spi_r);
        let nat_t = self.movers.sas.get(&id).is_some_and(|m| m.nat_t);
        payloads.extend(initiator::detection((spis, path, force), nat_t, self.ike.random()));
        if self.request(now, id, &payloads, Awaiting::Standby { cookie, path }, Some(path))
            && let Some(mobility) = self.movers.sas.get_mut(&id)
        {
            mobility.pairs.sent(now, path);
            mobility.pairs.of(path).asked = Some(now);
        }
    }

    /// The peer repeats itself: what we answer does not arrive there. Another Bewick is told so where it has
    /// shown that it receives.
    pub(super) fn on_repeated(&mut self, now: Time, id: SaId, path: Path) {
        let Some(mobility) = self.movers.sas.get_mut(&id).filter(|m| m.kin) else { return };
        mobility.heard.note(now, path.remote);
        let (last, count) = &mut mobility.repeats;
        if *last != Some(path) {
            (*last, *count) = (Some(path), 0);
        }
        *count += 1;
        let lately = mobility.pleaded.is_some_and(|at| now.since(at) < BETWEEN_STRANGERS);
        let wanted = mobility.role == Role::Responder && mobility.repeats.1 >= REPEATS && !lately;
        let Some(other) = mobility.pairs.newest_valid(now, path).filter(|_| wanted) else { return };
        mobility.pleaded = Some(now);
        self.request(now, id, &[kin::please_probe()], Awaiting::Probe, Some(other));
    }

    /// Responder: a genuine request came from elsewhere than where the IKE_SA is. It moves nothing
    /// (RFC 4555 §3.5); but if the peer shows now that it receives there, its update needs no second
    /// round trip.
    pub(super) fn on_heard(&mut self, now: Time, id: SaId, path: Path) {
        let policy = self.movers.policy_of(id);
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        if path.is_tcp() {
            // A new connection takes the place of the old one (RFC 9329 §6.1); from UDP to TCP it is an
            // update that leads.
            if current.is_tcp() && current != path && policy.accept.accepts(path, None) {
                self.change_connection(now, id, path);
            }
            return;
        }
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let record = mobility.pairs.of(path);
        let lately = |at: Time| now.since(at) < BETWEEN_STRANGERS;
        if policy.return_routability != ReturnRoutability::Before
            || mobility.children_at.remote.ip() == path.remote.ip()
            || record.is_valid(now)
                && record.validated.is_some_and(|at| now.since(at) < crate::path::VALID / 4)
            || record.asked.is_some_and(lately)
        {
            return;
        }
        // Where ESP comes from matters more.
        if mobility.esp_seen.is_none() || mobility.pending_standby.is_none() {
            mobility.pending_standby = Some(path);
        }
    }
}

impl Hint {
    fn cause(self) -> Cause {
        match self {
            Hint::Silence => Cause::Silence,
            Hint::Disconnected => Cause::Disconnected,
            Hint::Unanswered | Hint::Unreachable | Hint::Resumed | Hint::Asked => Cause::NoAnswer,
        }
    }
}
