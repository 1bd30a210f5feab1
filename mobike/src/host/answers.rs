//! What the peer and the data plane have said (RFC 4555 §3.5, §3.7, §3.8).

use std::net::SocketAddr;

use bewick_ike::{
    ActionError, ActionId, CloseReason, Path, Role, SaId, Tag, Time, wire::NotifyType,
};

use super::{CALM, CHECKS, Host, MOST_UPDATES, TRIES_BEFORE_DOUBT, TRIES_OF_CHECK};
use crate::{
    event::{Cause, Event, Hint},
    initiator::{self, Verdict},
    kin,
    mobility::{Awaiting, Intent, Underway},
    notify,
    policy::ReturnRoutability,
    timers::Timer,
};

impl Host {
    pub(super) fn on_intent(&mut self, now: Time, id: SaId, intent: Intent) {
        match intent {
            Intent::Updated { path, nat } => {
                let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
                if let Some(nat) = nat {
                    self.ike.set_nat(id, nat);
                }
                if let Some(mobility) = self.movers.sas.get_mut(&id) {
                    mobility.agreed = path;
                    mobility.claimed = None;
                    mobility.failed_checks = 0;
                }
                // An update a second is more than any network changes: beyond that, traffic follows when it
                // has come to rest.
                let stormy = self.is_stormy(now, id);
                let before = self.movers.sas.get(&id).is_some_and(|m| m.children_at != path);
                if path != current {
                    self.begin(now, id, path, Cause::PeerMoved);
                    self.ike.hasten(now, id, true, &mut self.movers);
                }
                if before && stormy {
                    self.timers.set(id, Timer::Settle, now + CALM);
                } else if before {
                    self.timers.clear(id, Timer::Settle);
                    self.follow(now, id, path);
                } else {
                    // Back to where the traffic still is: nothing to check, unless that is being checked.
                    if self.movers.sas.get(&id).is_some_and(|m| m.capped.is_none()) {
                        self.confirm(now, id);
                    }
                    self.adjust_encap(now, id);
                }
            }
            Intent::Seen { path } => self.follow_nat(now, id, path),
            Intent::Heard { path } => self.on_heard(now, id, path),
            Intent::PleaseProbe => self.suspect(now, id, Hint::Asked),
            Intent::PeerList => {
                let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
                let Some(mobility) = self.movers.sas.get(&id) else { return };
                let (connection, role) = (mobility.connection, mobility.role);
                let addresses = mobility.peer_addresses.clone();
                let missing = !addresses.contains(&current.remote.ip());
                let candidates = self.candidates(now, id, current);
                let next = initiator::choose(mobility, candidates, current, None);
                self.event(Event::PeerAddresses { connection, sa: id, addresses });
                // RFC 4555 §3.5: the address in use is missing from the peer's list.
                if let (Role::Initiator, true, Some(path)) = (role, missing, next) {
                    let cause = Cause::PeerAddressGone(current.remote.ip());
                    self.move_to(now, id, path, cause);
                }
            }
        }
    }

    /// Whether the peer sends updates without end.
    fn is_stormy(&mut self, now: Time, id: SaId) -> bool {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return false };
        // Until it has kept still for a while it goes on being one storm.
        let (last, count) = &mut mobility.updates;
        let still = now.since(*last);
        if still >= MOST_UPDATES.1 || (still >= CALM && *count <= MOST_UPDATES.0) {
            *count = 0;
        }
        (*last, *count) = (now, count.saturating_add(1));
        *count > MOST_UPDATES.0
    }

    /// Responder: the updates have come to rest for now. Initiator: one more that may be answered from where
    /// it went to.
    pub(super) fn on_settled(&mut self, now: Time, id: SaId) {
        let Some(path) = self.ike.sa(id).map(|sa| sa.path) else { return };
        if let Some(mobility) = self.movers.sas.get_mut(&id).filter(|m| m.role == Role::Initiator) {
            let unconfirmed = mobility.underway.is_some_and(|underway| !underway.confirmed);
            mobility.pending_update |= unconfirmed && mobility.awaiting.is_none();
            return;
        }
        if self.movers.sas.get(&id).is_some_and(|m| m.children_at != path) {
            self.follow(now, id, path);
        }
    }

    /// The peer's ESP comes from another address or port than it should: a hint (RFC 4555 §3.8, §3.12).
    pub(super) fn on_mapping(&mut self, now: Time, id: SaId, remote: SocketAddr) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        // A TCP connection has no mapping that could change.
        if sa.path.is_tcp() {
            return;
        }
        let path = Path::new(sa.path.local, remote);
        let same_port = sa.path.remote.ip() == remote.ip() && sa.path != path;
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let follows = mobility.role == Role::Responder && mobility.supported;
        let policy = self.movers.policies.get(mobility.connection.0);
        let follows = follows && policy.is_some_and(|policy| policy.esp_follow);
        // One that jumps between ports is not run after.
        let asked = mobility.pairs.of(path).asked;
        let lately = asked.is_some_and(|at| now.since(at) < CALM);
        if follows && same_port && mobility.esp_seen != Some(path) && !lately {
            mobility.esp_seen = Some(path);
            mobility.pending_standby = Some(path);
        }
    }

    /// Without MOBIKE an end that is not behind a NAT follows the other one's mapping, and an end that is
    /// behind one stays (RFC 7296 §2.23).
    fn follow_nat(&mut self, now: Time, id: SaId, path: Path) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        let (current, nat, role) = (sa.path, sa.nat, sa.role);
        if path.is_tcp() && current.is_tcp() {
            // It is for the originator to change connections (RFC 9329 §6.1), if it may be there.
            let may = self.movers.policy_of(id).accept.accepts(path, None);
            if role == Role::Responder && may {
                self.change_connection(now, id, path);
            }
            return;
        }
        if nat.local || !nat.remote || path.local != current.local || path.is_tcp() {
            return;
        }
        self.begin(now, id, path, Cause::NatMapping);
        self.confirm(now, id);
        self.move_children(now, id, path);
        self.ike.hasten(now, id, true, &mut self.movers);
    }

    /// Responder: the peer says that it is at `path` now (RFC 4555 §3.5, §3.7).
    pub(super) fn follow(&mut self, now: Time, id: SaId, path: Path) {
        let policy = self.movers.policy_of(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        // Under a limit the traffic is where nothing has been shown yet.
        let home = mobility.capped.unwrap_or(mobility.children_at);
        // Another port of an address that was shown reachable is the same victim, if any.
        let valid = mobility.pairs.get(path).is_some_and(|record| record.is_valid(now));
        // RFC 9329 §7.1: a TCP handshake has shown it already.
        let off = policy.return_routability == ReturnRoutability::Off || path.is_tcp();
        if off || valid || home.remote.ip() == path.remote.ip() {
            self.lift(now, id);
            self.confirm(now, id);
            self.move_children(now, id, path);
        } else {
            mobility.pending_check = true;
            if policy.return_routability == ReturnRoutability::After && self.can_cap {
                // It may be a victim: it gets no more than three times what comes from there.
                mobility.capped = Some(home);
                self.ike.cap_children(now, id, true, &mut self.movers);
                self.move_children(now, id, path);
            }
        }
    }

    /// The peer has shown that it receives where its traffic goes.
    fn lift(&mut self, now: Time, id: SaId) {
        if self.movers.sas.get_mut(&id).is_some_and(|m| m.capped.take().is_some()) {
            self.ike.cap_children(now, id, false, &mut self.movers);
        }
    }

    pub(super) fn confirm(&mut self, now: Time, id: SaId) {
        if let Some(underway) = self.movers.sas.get_mut(&id).and_then(|m| m.underway.as_mut()) {
            underway.confirmed = true;
        }
        self.finish_move(now, id);
    }

    /// Reports a move once the peer has confirmed it and the data plane is there.
    pub(super) fn finish_move(&mut self, now: Time, id: SaId) {
        let Some(to) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some(underway) = mobility.underway else { return };
        if !underway.confirmed || !mobility.actions.is_empty() || mobility.children_at != to {
            return;
        }
        mobility.underway = None;
        let (connection, Underway { from, cause, since, .. }) = (mobility.connection, underway);
        // One who goes away and comes back before traffic has followed has not moved.
        if cause == Cause::PeerMoved && from == to {
            return;
        }
        let took = now.since(since);
        let tried = std::mem::take(&mut mobility.tried);
        self.event(Event::Moved { connection, sa: id, from, to, cause, took, tried });
        self.replace_left_behind(now, id, connection);
    }

    pub(super) fn on_plane(
        &mut self,
        now: Time,
        id: SaId,
        action: ActionId,
        result: Result<(), ActionError>,
    ) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let connection = mobility.connection;
        let at = mobility.actions.iter().position(|(a, _)| *a == action);
        // A move that is not of this list takes a successor after the others.
        let to = match at {
            Some(at) => mobility.actions.remove(at).1,
            None => mobility.children_at,
        };
        if let Err(error) = result {
            mobility.underway = None;
            let tried = std::mem::take(&mut mobility.tried);
            let reason = CloseReason::DataPlane(error.0.clone());
            self.event(Event::MoveFailed { connection, sa: id, to, error, tried });
            // Never half-moved: a plane that can't follow has an IKE_SA that is of no use.
            self.ike.close_because(now, id, reason, &mut self.movers);
            return;
        }
        self.finish_move(now, id);
    }

    pub(super) fn on_response(
        &mut self,
        now: Time,
        id: SaId,
        tag: Tag,
        (path, everywhere, spis): (Path, bool, (u64, u64)),
        payloads: &[bewick_ike::wire::Payload],
    ) {
        let Some(view) = self.ike.view(id) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let of_today = spis == (view.spi_i, view.spi_r);
        // Copies of a request that went out from several addresses have one answer, to whichever of them
        // the peer took: what it says of addresses is of no pair in particular (RFC 4555 §3.6).
        let scattered = std::mem::take(&mut mobility.scattered);
        if mobility.kin {
            if let Some(seen) = kin::read_observed(payloads).filter(|_| !scattered) {
                mobility.pairs.of(path).seen = Some(seen);
            }
            for (from, age) in kin::read_heard(payloads) {
                mobility.pairs.heard(now, from, age);
            }
        }
        // A hash with SPIs that a rekey has replaced can't be compared, nor one of another pair.
        let comparable = of_today && path == view.path && !scattered;
        if tag == Tag::Liveness {
            if comparable {
                self.compare_mapping(now, id, path, payloads);
            }
            return;
        }
        let Some((expected, awaiting)) = mobility.awaiting.take() else { return };
        if tag != Tag::Upper(expected) {
            mobility.awaiting = Some((expected, awaiting));
            return;
        }
        if scattered && matches!(awaiting, Awaiting::Update { .. } | Awaiting::List) {
            mobility.pending_update |= mobility.role == Role::Initiator;
        }
        match awaiting {
            // RFC 4555 §3.9: several times, with new requests.
            Awaiting::List if notify::has(payloads, NotifyType::UNEXPECTED_NAT_DETECTED) => {
                mobility.nat_detected = mobility.nat_detected.saturating_add(1);
                if mobility.nat_detected < CHECKS {
                    mobility.announced.clear();
                }
            }
            Awaiting::List => mobility.nat_detected = 0,
            Awaiting::Probe if comparable => self.compare_mapping(now, id, path, payloads),
            Awaiting::Probe => {}
            Awaiting::Standby { cookie, path: asked } => {
                let nat = bewick_ike::nat::detect(spis, path, payloads);
                // RFC 4555 §3.7: whoever got it on another pair could answer from anywhere.
                let proven = path == asked && !everywhere;
                self.on_standby_answered(now, id, (asked, proven), &cookie, (payloads, nat));
            }
            Awaiting::Mapping if !of_today => mobility.pending_mapping = true,
            // RFC 4555 §3.8: as whom the peer knows us is not known; an update tells it.
            Awaiting::Mapping if std::mem::take(&mut mobility.mapping_doubted) => {
                mobility.pending_update = mobility.role == Role::Initiator;
            }
            Awaiting::Mapping => {
                mobility.seen_as = mobility.seen_as.take().or(initiator::seen_as(payloads));
            }
            // RFC 4555 §3.5: an answer that was overtaken by another change says nothing.
            Awaiting::Update { generation, .. } if generation != mobility.generation => {}
            Awaiting::Update { cookie, .. } => {
                mobility.seen_as = initiator::seen_as(payloads).filter(|_| comparable);
                let verdict =
                    match initiator::verdict(spis, path, mobility.nat_t, &cookie, payloads) {
                        Verdict::Updated(_) if scattered => return,
                        verdict => verdict,
                    };
                self.on_update_answered(now, id, (view.path, path), verdict);
            }
            Awaiting::Routability { cookie, path: checked, generation } => {
                let echo = notify::read_cookie2(payloads);
                if echo.is_some_and(|echo| echo != cookie) {
                    self.ike.abandon(now, id, CloseReason::Cookie2, &mut self.movers);
                } else if generation != mobility.generation || echo.is_none() || path != checked {
                    // RFC 4555 §3.7: proves nothing about the address that is current now.
                    mobility.pending_check = true;
                    if generation == mobility.generation {
                        mobility.failed_checks += 1;
                        if mobility.failed_checks >= CHECKS {
                            self.give_back(now, id);
                        }
                    }
                } else {
                    let record = mobility.pairs.of(checked);
                    (record.validated, record.path) = (Some(now), Some(checked));
                    let there = mobility.capped.is_some() && mobility.children_at == checked;
                    self.lift(now, id);
                    self.confirm(now, id);
                    if !there {
                        self.move_children(now, id, checked);
                    }
                }
            }
        }
    }

    /// RFC 4555 §3.8: the initiator finds out whether a NAT has given it another mapping.
    fn compare_mapping(
        &mut self,
        now: Time,
        id: SaId,
        current: Path,
        payloads: &[bewick_ike::wire::Payload],
    ) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let seen = initiator::seen_as(payloads);
        let changed = seen.is_some() && mobility.seen_as.is_some() && seen != mobility.seen_as;
        mobility.seen_as = seen.or_else(|| mobility.seen_as.take());
        if changed && mobility.role == Role::Initiator {
            self.uplinks.forgotten(current.local.ip());
            self.move_to(now, id, current, Cause::NatMapping);
        }
    }

    /// A rekey of the IKE_SA has overtaken our request: what it was for is still to be done.
    pub(super) fn on_lost(&mut self, id: SaId, tag: Tag) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some((_, awaiting)) = mobility.awaiting.take_if(|(n, _)| tag == Tag::Upper(*n)) else {
            return;
        };
        match awaiting {
            Awaiting::Update { .. } => mobility.pending_update = true,
            Awaiting::Routability { .. } => mobility.pending_check = true,
            Awaiting::List => mobility.announced.clear(),
            Awaiting::Mapping => mobility.pending_mapping = true,
            Awaiting::Probe => mobility.pending_probe = mobility.role == Role::Responder,
            Awaiting::Standby { path, .. } => {
                mobility.pairs.of(path).pending = None;
                // ESP from there is to be heeded again.
                mobility.esp_seen.take_if(|seen| *seen == path);
            }
        }
    }

    /// The answer to a COOKIE2 on a pair that was not the one in use.
    fn on_standby_answered(
        &mut self,
        now: Time,
        id: SaId,
        (asked, proven): (Path, bool),
        cookie: &[u8],
        (payloads, nat): (&[bewick_ike::wire::Payload], Option<bewick_ike::nat::Nat>),
    ) {
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        match notify::read_cookie2(payloads) {
            Some(echo) if echo != cookie => {
                self.ike.abandon(now, id, CloseReason::Cookie2, &mut self.movers);
            }
            Some(_) if proven => {
                let record = mobility.pairs.of(asked);
                (record.validated, record.path) = (Some(now), Some(asked));
                record.nat = nat.map(|nat| nat.any()).or(record.nat);
                if mobility.esp_seen.take_if(|seen| *seen == asked).is_some() && current != asked {
                    if self.is_stormy(now, id) {
                        return;
                    }
                    let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
                    mobility.agreed = asked;
                    self.begin(now, id, asked, Cause::NatMapping);
                    self.confirm(now, id);
                    self.move_children(now, id, asked);
                    return;
                }
                // It has moved there meanwhile: this is what the check would ask.
                if mobility.role == Role::Responder && current == asked && mobility.pending_check {
                    mobility.pending_check = false;
                    self.lift(now, id);
                    self.confirm(now, id);
                    self.move_children(now, id, asked);
                }
            }
            // Not from there: it went on on the pair in use.
            _ if asked != current => {
                mobility.pairs.silent(now, asked);
                mobility.esp_seen.take_if(|seen| *seen == asked);
            }
            _ => {}
        }
    }

    pub(super) fn on_update_answered(
        &mut self,
        now: Time,
        id: SaId,
        (current, answered): (Path, Path),
        verdict: Verdict,
    ) {
        match verdict {
            Verdict::Updated(nat) => {
                if let Some(nat) = nat.filter(|_| answered == current) {
                    self.ike.set_nat(id, nat);
                }
                let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
                mobility.refused.clear();
                mobility.nat_detected = 0;
                if answered != current {
                    // RFC 4555 §3.7: not from the pair that was to be proven. Which one it will be is not
                    // known as long as others are being asked.
                    if mobility.race.is_none() {
                        mobility.failed_checks = mobility.failed_checks.saturating_add(1);
                        mobility.pending_update |= mobility.failed_checks < CHECKS;
                        // Not as fast as answers come, if all of them come from elsewhere.
                        self.timers.set(id, Timer::Settle, now + CALM);
                    }
                    return;
                }
                mobility.failed_checks = 0;
                self.timers.clear(id, Timer::Settle);
                // The update had a COOKIE2 of its own.
                let record = mobility.pairs.of(current);
                (record.validated, record.path) = (Some(now), Some(current));
                if mobility.children_at != current {
                    self.move_children(now, id, current);
                }
                self.confirm(now, id);
                self.adjust_encap(now, id);
            }
            Verdict::WrongCookie => {
                self.ike.abandon(now, id, CloseReason::Cookie2, &mut self.movers);
            }
            // RFC 4555 §3.9: somebody may have changed that one packet alone: again, with a new request.
            Verdict::NatDetected
                if self
                    .movers
                    .sas
                    .get(&id)
                    .is_some_and(|m| m.nat_detected.saturating_add(1) < CHECKS) =>
            {
                if let Some(mobility) = self.movers.sas.get_mut(&id) {
                    mobility.nat_detected = mobility.nat_detected.saturating_add(1);
                    mobility.pending_update = true;
                }
            }
            Verdict::Unacceptable | Verdict::NatDetected | Verdict::NotMoved => {
                let candidates = self.candidates(now, id, current);
                let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
                mobility.refused.push(current);
                let next = initiator::choose(mobility, candidates, current, Some(current));
                match next.filter(|next| !mobility.refused.contains(next)) {
                    Some(next) => self.move_to(now, id, next, Cause::Refused),
                    // RFC 4555 §3.5 leaves it to us: an IKE_SA that the peer will not have anywhere is
                    // a black hole for traffic, and a new one may be welcome.
                    None => {
                        let text = "the peer accepts none of our addresses".to_owned();
                        let reason = CloseReason::Protocol(text);
                        self.ike.close_because(now, id, reason, &mut self.movers);
                    }
                }
            }
        }
    }

    /// Encapsulation on or off as NAT detection says of the current path (RFC 4555 §3.5).
    pub(super) fn adjust_encap(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (path, nat) = (sa.path, sa.nat.any());
        let encap = nat || self.force_encap(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if mobility.encap != encap && mobility.children_at == path {
            mobility.encap = encap;
            let connection = mobility.connection;
            self.order_move(now, id, path, encap);
            self.replace_left_behind(now, id, connection);
        }
    }

    /// Responder: the peer can't be reached where it said that it is. IKE_SA and CHILD_SAs are together
    /// again where they were, and nothing more goes to that address, unless another request comes from
    /// there (RFC 4555 §3.7, §5.3).
    pub(super) fn give_back(&mut self, now: Time, id: SaId) {
        let Some(path) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let capped = mobility.capped.is_some();
        let back = mobility.capped.unwrap_or(mobility.children_at);
        mobility.claimed = Some(path);
        mobility.agreed = back;
        mobility.generation += 1;
        mobility.failed_checks = 0;
        mobility.pending_check = false;
        mobility.underway = None;
        self.ike.set_path(id, back);
        if capped {
            self.move_children(now, id, back);
            self.lift(now, id);
        }
        self.event(Event::Refused { path, reason: CloseReason::Unanswered(path) });
        self.ike.hasten(now, id, true, &mut self.movers);
        // Meanwhile our own address there may have gone (RFC 4555 §3.5).
        self.check_own_source(now, id);
    }

    /// The peer does not answer yet: the initiator asks on other pairs too (RFC 4555 §3.5).
    pub(super) fn on_unanswered(&mut self, now: Time, id: SaId, tries: u32) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        let (current, role) = (sa.path, sa.role);
        let Some(mobility) = self.movers.sas.get(&id) else { return };
        let checking = matches!(&mobility.awaiting, Some((_, Awaiting::Routability { .. })));
        let unproven = mobility.children_at != current || mobility.capped.is_some();
        if checking && tries >= TRIES_OF_CHECK && unproven {
            self.give_back(now, id);
            return;
        }
        if tries >= TRIES_BEFORE_DOUBT && role == Role::Initiator {
            self.suspect(now, id, Hint::Unanswered);
        }
    }
}
