//! Our addresses have changed (RFC 4555 §3.5).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{CloseReason, ConnectionId, Path, Role, SaId, Time};

use super::{Host, Output};
use crate::{
    address::{self, LocalAddress},
    event::{Cause, Event},
    initiator,
};

impl Host {
    pub(super) fn on_addresses(&mut self, now: Time, mut locals: Vec<LocalAddress>) {
        locals.sort();
        locals.dedup();
        if self.movers.locals == locals {
            return;
        }
        self.movers.locals = locals;
        self.touched.extend(self.movers.sas.keys());
        let locals = &self.movers.locals;
        self.uplinks.retain(|address| locals.iter().any(|local| local.address == address));
        let waiting: Vec<ConnectionId> = self
            .wanted
            .iter()
            .filter(|(_, w)| w.current.is_none() && w.retry_at.is_some())
            .map(|(id, _)| *id)
            .collect();
        for connection in waiting {
            if let Some(wanted) = self.wanted.get_mut(&connection) {
                wanted.retry_at = None;
                wanted.failures = 0;
            }
            self.outputs.push_back(Output::Resolve(connection));
        }
        for id in self.ids(|sa| sa.state != "closing" && sa.role == Role::Initiator) {
            self.check_current(now, id);
        }
        for id in self.ids(|sa| sa.state != "closing" && sa.role == Role::Responder) {
            self.check_own_source(now, id);
        }
    }

    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        self.movers.locals.iter().any(|local| local.address == address)
    }

    /// Initiator: goes to another address if the current one is gone (RFC 4555 §3.5).
    pub(super) fn check_current(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, established) = (sa.path, sa.state == "established");
        let gone = current.local.ip();
        if self.is_ours(gone) {
            let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
            if std::mem::take(&mut mobility.stranded) {
                // A NAT may have forgotten us meanwhile: no need to find out first (RFC 4555 §3.8).
                self.move_to(now, id, current, Cause::AddressBack(gone));
            } else {
                self.renew_race(now, id);
            }
            return;
        }
        let supported = self.is_mobike(id);
        if !established || !supported {
            // A handshake starts anew on another pair; without MOBIKE, so does the IKE_SA.
            self.ike.abandon(now, id, CloseReason::AddressGone(gone), &mut self.movers);
            return;
        }
        let candidates = self.candidates(now, id, current);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let connection = mobility.connection;
        mobility.race = None;
        match initiator::choose(mobility, candidates, current, None) {
            Some(path) => {
                self.move_to(now, id, path, Cause::AddressGone(gone));
                // The update is on its way there at once; the others are asked if no answer comes.
                self.start_race(now, id, Cause::AddressGone(gone), false);
            }
            None if !std::mem::replace(&mut mobility.stranded, true) => {
                // Nobody can hear us: a question would only be in the way of the update later.
                self.ike.set_liveness(now, id, Some(Duration::ZERO), &mut self.movers);
                self.event(Event::Stranded { connection, sa: id });
            }
            None => {}
        }
    }

    /// Responder: only when its own source is gone does it move by itself (RFC 4555 §3.5). When that is
    /// back and the initiator has not followed, it returns, for the initiator decides (§1.2).
    pub(super) fn check_own_source(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let current = sa.path;
        // A connection from another address is for its originator to open (RFC 9329 §6.1).
        if current.is_tcp() {
            return;
        }
        let Some(mobility) = self.movers.sas.get(&id).filter(|m| m.supported) else { return };
        let agreed = mobility.agreed;
        if self.is_ours(agreed.local.ip()) {
            if agreed != current {
                let cause = Cause::AddressBack(agreed.local.ip());
                self.change_own_source(now, id, agreed, cause, true);
            }
            return;
        }
        if self.is_ours(current.local.ip()) {
            return;
        }
        let remote = current.remote;
        let next = address::pairs(&self.movers.locals, &[remote.ip()]).into_iter().next();
        let Some((local, _)) = next else { return };
        let path = Path::new(SocketAddr::new(local, current.local.port()), remote);
        let cause = Cause::AddressGone(current.local.ip());
        self.change_own_source(now, id, path, cause, false);
    }

    /// Responder: goes to another source by itself. Traffic goes to where the peer is only if that has
    /// been checked already (RFC 4555 §3.7).
    pub(super) fn change_own_source(
        &mut self,
        now: Time,
        id: SaId,
        to: Path,
        cause: Cause,
        confirmed: bool,
    ) {
        let Some(at) = self.movers.sas.get(&id).map(|m| m.children_at) else { return };
        self.begin(now, id, to, cause);
        if at.remote.ip() == to.remote.ip() {
            if confirmed {
                self.confirm(now, id);
            }
            self.move_children(now, id, to);
        } else {
            if at.remote.is_ipv4() == to.local.is_ipv4() {
                self.move_children(now, id, Path::new(to.local, at.remote));
            }
            if let Some(mobility) = self.movers.sas.get_mut(&id) {
                mobility.pending_check = true;
            }
        }
        self.ike.hasten(now, id, true, &mut self.movers);
    }
}
