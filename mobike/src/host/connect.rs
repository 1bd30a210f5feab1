//! Bringing connections up, keeping them up and taking them down (RFC 4555 §3.1).

use std::{net::IpAddr, time::Duration};

use bewick_ike::{CloseReason, ConnectionId, Role, SaId, Time, endpoint::SaStatus};

use super::{
    ANEW, BETWEEN_HINTS, BETWEEN_RIVALS, CommandError, Host, LOOK, MAKING, MOST_MISLED,
    MOST_RIVALS, Output, RETRY, TRIES_OF_UNKNOWN, Wanted,
    tcp::{self, Way},
};
use crate::{address, event::Event, timers::Timer};

impl Host {
    pub(super) fn up(&mut self, now: Time, connection: ConnectionId) -> Result<(), CommandError> {
        let config = self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        if config.role != Role::Initiator {
            return Err(CommandError::NotInitiator);
        }
        if self.movers.policy(connection).trap {
            self.trap(connection)?;
            self.complete(now, connection);
        }
        self.bring_up(connection, true);
        Ok(())
    }

    /// Brings the connection up, if it is not; the `whole` of it, or what packets wait for.
    pub(super) fn bring_up(&mut self, connection: ConnectionId, whole: bool) {
        let wanted = self.wanted.entry(connection).or_default();
        wanted.up = true;
        wanted.whole |= whole;
        if wanted.current.is_none() {
            wanted.retry_at = None;
            wanted.failures = 0;
            self.outputs.push_back(Output::Resolve(connection));
        }
    }

    pub(super) fn down(&mut self, now: Time, connection: ConnectionId) -> Result<(), CommandError> {
        self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        self.wanted.remove(&connection);
        self.untrap(connection);
        for id in self.ids(|sa| sa.connection == Some(connection)) {
            self.ike.close(now, id, &mut self.movers);
        }
        Ok(())
    }

    pub(super) fn rekey(
        &mut self,
        now: Time,
        connection: ConnectionId,
        ike: bool,
    ) -> Result<(), CommandError> {
        self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        let up = |sa: &SaStatus<'_>| sa.connection == Some(connection) && sa.state == "established";
        let ids = self.ids(up);
        if ids.is_empty() {
            return Err(CommandError::NotEstablished);
        }
        for id in ids {
            if ike {
                self.ike.rekey_ike(now, id, &mut self.movers);
            } else {
                self.ike.rekey_children(now, id, None, &mut self.movers);
            }
        }
        Ok(())
    }

    pub(super) fn on_resolved(
        &mut self,
        now: Time,
        connection: ConnectionId,
        addresses: Vec<IpAddr>,
    ) {
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        let Some(current) = wanted.current else {
            wanted.remotes = addresses;
            self.connect(now, connection);
            return;
        };
        // It answers again, or something is on its way already.
        let silent = self.movers.sas.get(&current).is_some_and(|m| m.race.is_some());
        if !silent || wanted.successor.is_some() {
            return;
        }
        wanted.remotes = addresses;
        let pairs = address::pairs(&self.movers.locals, &wanted.remotes);
        let ways = tcp::ways(&pairs, &self.movers.policy(connection));
        let at = wanted.attempt % ways.len().max(1);
        wanted.attempt += 1;
        let Some(way) = ways.get(at).copied() else { return };
        self.start_successor(now, connection, way);
    }

    /// Something is to be tried beside an IKE_SA that has been silent for minutes.
    pub(super) fn try_anew(&mut self, now: Time, id: SaId, silent: Duration) {
        let connection = self.ike.sa(id).and_then(|sa| sa.connection);
        let Some(connection) = connection.filter(|c| self.movers.policy(*c).keep_up) else {
            return;
        };
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        let lately = wanted.anew.is_some_and(|at| now.since(at) < ANEW.1);
        if wanted.current == Some(id) && silent >= ANEW.0 && !lately {
            wanted.anew = Some(now);
            self.outputs.push_back(Output::Resolve(connection));
        }
    }

    /// Tries the next pair of addresses, a fresh IKE_SA_INIT each time, and soon after it the others: the
    /// first that answers is taken (RFC 4555 §3.1, RFC 8305 §5).
    pub(super) fn connect(&mut self, now: Time, connection: ConnectionId) {
        let asked = self.asked(connection);
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        wanted.next_rival = None;
        let mut pairs = address::pairs(&self.movers.locals, &wanted.remotes);
        // What other connections have found out about an uplink holds for this one.
        pairs.sort_by_key(|(local, _)| self.uplinks.has_failed(now, *local));
        let policy = self.movers.policy(connection);
        let ways = tcp::ways(&pairs, &policy);
        let at = wanted.attempt % ways.len().max(1);
        let Some(way) = ways.get(at).copied() else {
            // Without any address it is not the peer's fault, and an address will come.
            let wait = self.movers.locals.is_empty();
            self.event(Event::Waiting { connection });
            self.retry_later(now, connection, wait);
            return;
        };
        wanted.attempt += 1;
        let path = way.path(tcp::draw_port(self.ike.random()), policy.tcp_port);
        match self.ike.connect_for(now, connection, path, asked, &mut self.movers) {
            Ok(sa) => {
                match wanted.current {
                    Some(_) => wanted.rivals.push(sa),
                    None => wanted.current = Some(sa),
                }
                let next = ways.get(at + 1).filter(|_| wanted.rivals.len() < MOST_RIVALS);
                // RFC 9329 §5.1: UDP has its repetitions before TCP is tried.
                let falls_back = next.is_some_and(|next| next.is_tcp() && !way.is_tcp());
                let wait = if falls_back { tcp::BEFORE_FALLBACK } else { BETWEEN_RIVALS };
                wanted.next_rival = next.map(|_| now + wait);
                self.event(Event::Connecting { connection, path });
            }
            Err(reason) => self.event(Event::Refused { path, reason }),
        }
    }

    /// An IKE_SA_INIT has reached somebody: no more pairs are tried for now.
    pub(super) fn on_reached(&mut self, sa: SaId) {
        let connection = self.ike.sa(sa).and_then(|sa| sa.connection);
        if let Some(wanted) = connection.and_then(|c| self.wanted.get_mut(&c)) {
            wanted.next_rival = None;
        }
    }

    /// An IKE_SA_INIT was answered: the others that were tried at the same time go.
    pub(super) fn on_answering(&mut self, now: Time, sa: SaId) {
        let connection = self.ike.sa(sa).and_then(|sa| sa.connection);
        let Some(wanted) = connection.and_then(|c| self.wanted.get_mut(&c)) else { return };
        let ours = wanted.current == Some(sa) || wanted.rivals.contains(&sa);
        if !ours {
            return;
        }
        wanted.next_rival = None;
        let mut others = std::mem::take(&mut wanted.rivals);
        others.extend(wanted.current.replace(sa));
        for other in others.into_iter().filter(|other| *other != sa) {
            self.ike.abandon(now, other, CloseReason::Overtaken, &mut self.movers);
        }
    }

    /// RFC 7296 §2.8.3: a whole new IKE_SA beside the old one, on the same pair of addresses.
    pub(super) fn reauthenticate(&mut self, now: Time, old: SaId) {
        let Some((Some(connection), path)) = self.ike.sa(old).map(|sa| (sa.connection, sa.path))
        else {
            return;
        };
        let wanted = self.wanted.get(&connection);
        if wanted.is_none_or(|w| w.current != Some(old) || w.successor.is_some()) {
            return;
        }
        self.start_successor(now, connection, Way::of(path));
    }

    fn start_successor(&mut self, now: Time, connection: ConnectionId, way: Way) {
        // Two IKE_SAs never share a TCP connection (RFC 9329 §6.1).
        let port = self.movers.policy(connection).tcp_port;
        let path = way.path(tcp::draw_port(self.ike.random()), port);
        let asked = self.asked(connection);
        match self.ike.connect_for(now, connection, path, asked, &mut self.movers) {
            Ok(sa) => {
                if let Some(wanted) = self.wanted.get_mut(&connection) {
                    wanted.successor = Some(sa);
                }
                self.event(Event::Connecting { connection, path });
            }
            Err(reason) => self.event(Event::Refused { path, reason }),
        }
    }

    /// The peer seems to have forgotten the IKE_SA, as after a restart. Anyone could say so: the old one
    /// stays until a new one has been authenticated beside it (RFC 7296 §2.4, §2.21.4).
    pub(super) fn on_unknown(&mut self, now: Time, id: SaId, tries: u32) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        let Some(wanted) = sa.connection.and_then(|c| self.wanted.get_mut(&c)) else { return };
        let recently = wanted.hinted.is_some_and(|at| now.since(at) < BETWEEN_HINTS);
        if tries >= TRIES_OF_UNKNOWN && wanted.successor.is_none() && !recently {
            wanted.hinted = Some(now);
            self.reauthenticate(now, id);
        }
    }

    /// The IKE_SA that was to take another one's place is established: the other one goes.
    pub(super) fn succeed(&mut self, now: Time, connection: ConnectionId, sa: SaId) {
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        if wanted.successor != Some(sa) {
            return;
        }
        wanted.successor = None;
        if let Some(old) = wanted.current.replace(sa) {
            let older = wanted.retiring.replace((old, now + MAKING));
            if let Some((older, _)) = older {
                self.ike.close_because(now, older, CloseReason::Replaced, &mut self.movers);
            }
            self.on_retire(now, sa);
        }
    }

    /// RFC 7296 §2.8.3: the old IKE_SA goes when the new one has all the CHILD_SAs that it has.
    pub(super) fn on_retire(&mut self, now: Time, sa: SaId) {
        let children = |id: SaId| self.ike.sa(id).map_or(0, |sa| sa.children.len());
        let new = children(sa);
        let Some(wanted) = self.wanted.values_mut().find(|w| w.current == Some(sa)) else { return };
        let Some((old, until)) = wanted.retiring else { return };
        if new < children(old) && now < until {
            self.timers.set(sa, Timer::Retire, now + LOOK);
            return;
        }
        wanted.retiring = None;
        self.ike.close_because(now, old, CloseReason::Replaced, &mut self.movers);
    }

    pub(super) fn retry_later(&mut self, now: Time, connection: ConnectionId, wait: bool) {
        let keep_up = wait || self.movers.policy(connection).keep_up;
        let Some(wanted) = self.wanted.get_mut(&connection).filter(|w| w.up) else { return };
        if !keep_up {
            self.wanted.remove(&connection);
            return;
        }
        let after = RETRY.0.saturating_mul(1 << wanted.failures.min(6)).min(RETRY.1);
        wanted.failures = wanted.failures.saturating_add(1);
        wanted.retry_at = Some(now + after);
        self.event(Event::Retrying { connection, after });
    }

    pub(super) fn on_timeout(&mut self, now: Time) {
        self.ike.timeout(now, &mut self.movers);
        let due: Vec<ConnectionId> = self
            .wanted
            .iter()
            .filter(|(_, w)| w.retry_at.is_some_and(|at| at <= now))
            .map(|(id, _)| *id)
            .collect();
        for connection in due {
            if let Some(wanted) = self.wanted.get_mut(&connection) {
                wanted.retry_at = None;
            }
            self.outputs.push_back(Output::Resolve(connection));
        }
        self.on_trap_timeout(now);
        let due = |w: &Wanted| w.next_rival.is_some_and(|at| at <= now);
        let rivals: Vec<ConnectionId> =
            self.wanted.iter().filter(|(_, w)| due(w)).map(|(id, _)| *id).collect();
        for connection in rivals {
            self.connect(now, connection);
        }
        while let Some((id, timer)) = self.timers.pop(now) {
            self.touched.insert(id);
            match timer {
                Timer::Keepalive => self.on_keepalive(now, id),
                Timer::Race => self.on_race(now, id),
                Timer::Count => self.on_count(now, id),
                Timer::Standby => self.on_standby(now, id),
                Timer::Back => self.on_back(now, id),
                Timer::Settle => self.on_settled(now, id),
                Timer::Retire => self.on_retire(now, id),
            }
        }
    }

    fn on_keepalive(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { return };
        // RFC 4555 §3.12: on the current pair and no other.
        let path = sa.path;
        // RFC 9329 §6.6: not on TCP.
        if sa.nat.local && !path.is_tcp() {
            self.outputs.push_back(Output::Keepalive(path));
        }
        let interval = self.uplinks.keepalive(path.local.ip());
        self.timers.set(id, Timer::Keepalive, now + interval);
    }

    /// An IKE_SA is gone: whoever gave way to one tries again.
    pub(super) fn come_back(&mut self) {
        for (connection, wanted) in &mut self.wanted {
            if std::mem::take(&mut wanted.yields) {
                self.outputs.push_back(Output::Resolve(*connection));
            }
        }
    }

    pub(super) fn on_closed(
        &mut self,
        now: Time,
        connection: ConnectionId,
        sa: SaId,
        established: bool,
        reason: &CloseReason,
    ) {
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        if wanted.successor == Some(sa) {
            // The old one is still there, and asks again later.
            wanted.successor = None;
            return;
        }
        if wanted.retiring.is_some_and(|(old, _)| old == sa) {
            wanted.retiring = None;
            return;
        }
        if let Some(at) = wanted.rivals.iter().position(|rival| *rival == sa) {
            wanted.rivals.remove(at);
            return;
        }
        if wanted.current != Some(sa) {
            return;
        }
        if let Some((old, _)) = wanted.retiring.take() {
            wanted.current = Some(old);
            return;
        }
        if !established && !wanted.rivals.is_empty() {
            wanted.current = Some(wanted.rivals.remove(0));
            return;
        }
        wanted.next_rival = None;
        if let Some(successor) = wanted.successor.take() {
            wanted.current = Some(successor);
            return;
        }
        wanted.current = None;
        let keep_up = self.movers.policy(connection).keep_up;
        if *reason == CloseReason::Replaced && wanted.up && keep_up {
            // The peer's own IKE_SA is there instead: starting anew would only drive that one out.
            wanted.yields = true;
            return;
        }
        let another = match reason {
            // RFC 6290 §4.5: it is there again, and knows nothing of us.
            CloseReason::AddressGone(_) | CloseReason::PeerRestarted => {
                wanted.attempt = 0;
                true
            }
            // RFC 4555 §3.1: every pair has its turn before the peer counts as unreachable.
            CloseReason::Unanswered(_) if !established => {
                let pairs = address::pairs(&self.movers.locals, &wanted.remotes);
                wanted.attempt < tcp::ways(&pairs, &self.movers.policy(connection)).len()
            }
            // RFC 4555 §3.9: from IKE_SA_INIT on, several times.
            CloseReason::Misled | CloseReason::NatDetected if wanted.misled < MOST_MISLED => {
                wanted.misled += 1;
                wanted.attempt = wanted.attempt.saturating_sub(1);
                true
            }
            _ => false,
        };
        if another {
            self.connect(now, connection);
        } else {
            self.retry_later(now, connection, false);
        }
    }
}
