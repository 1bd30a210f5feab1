//! Moves: what the initiator does, and what waits for the window (RFC 4555 §3.5).

use bewick_ike::{ConnectionId, Path, Role, SaId, Time, endpoint::SaStatus};

use super::{CommandError, Host, MOVES_BEFORE_REKEY, MoveTarget};
use crate::{
    address::{self, LocalAddress},
    event::{Cause, Event},
    initiator,
    mobility::{Awaiting, Mobility, Underway},
    notify,
};

impl Host {
    pub(super) fn move_on_request(
        &mut self,
        now: Time,
        connection: ConnectionId,
        target: &MoveTarget,
    ) -> Result<(), CommandError> {
        let config = self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        if config.role != Role::Initiator {
            return Err(CommandError::PeerDecides);
        }
        let established =
            |sa: &SaStatus<'_>| sa.connection == Some(connection) && sa.state == "established";
        let sa = self.ike.status().find(established).ok_or(CommandError::NotEstablished)?;
        let (id, current) = (sa.id, sa.path);
        let mobility =
            self.movers.sas.get(&id).filter(|m| m.supported).ok_or(CommandError::NoMobike)?;
        let fits = |local: &&LocalAddress| match target {
            MoveTarget::Address(address) => local.address == *address,
            MoveTarget::Interface(name) => local.interface == *name,
        };
        let chosen: Vec<LocalAddress> = self.movers.locals.iter().filter(fits).cloned().collect();
        let candidates = initiator::candidates(mobility, &chosen, current);
        let Some(path) = initiator::choose(mobility, candidates, current, None) else {
            let wanted = match target {
                MoveTarget::Address(address) => address.to_string(),
                MoveTarget::Interface(name) => name.clone(),
            };
            let usable: Vec<String> = self
                .movers
                .locals
                .iter()
                .map(|local| format!("{} ({})", local.address, local.interface))
                .collect();
            return Err(CommandError::NoSuchAddress(wanted, usable.join(", ")));
        };
        if path != current {
            self.move_to(now, id, path, Cause::Requested);
        }
        Ok(())
    }

    /// Sets the new pair and starts the record of the move.
    pub(super) fn begin(&mut self, now: Time, id: SaId, to: Path, cause: Cause) {
        let Some(from) = self.ike.sa(id).map(|sa| sa.path) else { return };
        self.ike.set_path(id, to);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let connection = mobility.connection;
        mobility.generation += 1;
        let stranded = std::mem::take(&mut mobility.stranded);
        mobility.race = None;
        mobility.counts.restart();
        if (from.local.ip(), from.remote.ip()) != (to.local.ip(), to.remote.ip()) {
            mobility.back.moved(now, cause);
        }
        // It was of the old pair; the answer to the update tells the new one.
        mobility.seen_as = None;
        // Where ESP came from before says nothing any more.
        mobility.esp_seen = None;
        if cause != Cause::Refused {
            mobility.refused.clear();
        }
        // Two moves in a row are one for the record: it begins where traffic last was.
        let (from, since) = match mobility.underway {
            Some(underway) => (underway.from, underway.since),
            None => (from, now),
        };
        mobility.underway = Some(Underway { from, cause, since, confirmed: false });
        if stranded {
            self.ike.set_liveness(now, id, None, &mut self.movers);
        }
        self.event(Event::Moving { connection, sa: id, from, to, cause });
    }

    /// RFC 4555 §3.5, the initiator's steps 1 to 5.
    pub(super) fn move_to(&mut self, now: Time, id: SaId, to: Path, cause: Cause) {
        self.begin(now, id, to, cause);
        if let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.pending_update = true;
            mobility.failed_checks = 0;
        }
        // RFC 4555 §3.5, step 2, and §3.7: to an address of the peer's that only a list names, traffic
        // goes when the answer to the update has come from there.
        let proven = |m: &Mobility| {
            m.children_at.remote.ip() == to.remote.ip()
                || m.pairs.get(to).is_some_and(|record| record.is_valid(now))
        };
        if self.movers.sas.get(&id).is_some_and(proven) {
            self.move_children(now, id, to);
        }
        // A peer that answers on no path at all is to be given up one day.
        let fresh = !matches!(cause, Cause::NoAnswer | Cause::Refused);
        self.ike.hasten(now, id, fresh, &mut self.movers);
    }

    /// Tells the data plane, and remembers where the CHILD_SAs are going.
    pub(super) fn move_children(&mut self, now: Time, id: SaId, to: Path) {
        let Some(sa) = self.ike.sa(id) else { return };
        let nat = sa.nat.any();
        let was = sa.place.is_some_and(|(_, encap)| encap);
        let force = self.force_encap(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let encap = match mobility.role {
            // Step 3: encapsulation that is on stays on until the answer shows that there is no NAT.
            Role::Initiator => was || nat || force || (mobility.nat_t && address::suggests_nat(to)),
            // The request that moves it has shown already whether there is one.
            Role::Responder => nat || force,
        };
        mobility.encap = encap;
        mobility.children_at = to;
        self.order_move(now, id, to, encap);
    }

    pub(super) fn order_move(&mut self, now: Time, id: SaId, to: Path, encap: bool) {
        let action = self.ike.move_children(now, id, to, encap, &mut self.movers);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        mobility.actions.extend(action.map(|action| (action, to)));
        mobility.moves += 1;
        if mobility.moves.is_multiple_of(MOVES_BEFORE_REKEY) {
            self.ike.rekey_children(now, id, None, &mut self.movers);
        }
    }

    /// What no move takes along is made anew where the IKE_SA is now, unless packets are to ask for it.
    pub(super) fn replace_left_behind(&mut self, now: Time, id: SaId, connection: ConnectionId) {
        let trap = self.movers.policy(connection).trap;
        if self.wanted.get(&connection).is_some_and(|wanted| wanted.whole || !trap) {
            self.ike.make_missing_transport(now, id, &mut self.movers);
        }
    }

    pub(super) fn force_encap(&self, id: SaId) -> bool {
        self.movers.sas.get(&id).is_some_and(|m| self.movers.forces_encap(m.connection))
    }

    /// Sends what waits for the window: the check of a new address, an update, a list.
    pub(super) fn pump(&mut self, now: Time, id: SaId) {
        if !self.ike.is_open(id) {
            return;
        }
        let Some(view) = self.ike.view(id) else { return };
        let addresses = self.movers.own_addresses(view.connection, view.path);
        // The list may be empty although we have addresses: none that the peer is told of.
        let any = !self.movers.locals.is_empty();
        let force = self.force_encap(id);
        let kin = self.movers.sas.get(&id).is_some_and(|m| m.kin);
        let costs = if kin { self.movers.costs(&addresses) } else { Vec::new() };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let idle = mobility.awaiting.is_none() && !mobility.stranded;
        if !mobility.supported || !mobility.established || !idle {
            return;
        }
        mobility.pending_check &= mobility.children_at != view.path || mobility.capped.is_some();
        mobility.scattered = false;
        let generation = mobility.generation;
        let nat_t = mobility.nat_t;
        let here = ((view.spi_i, view.spi_r), view.path, force);
        let (awaiting, payloads) = if mobility.pending_update {
            mobility.pending_update = false;
            mobility.announced.clone_from(&addresses);
            let cookie = notify::new_cookie2(self.ike.random());
            let random = self.ike.random();
            let mut payloads = initiator::update(here, nat_t, &cookie, &addresses, random);
            payloads.extend(costs);
            (Awaiting::Update { generation, cookie }, payloads)
        } else if mobility.pending_check {
            mobility.pending_check = false;
            let cookie = notify::new_cookie2(self.ike.random());
            let mut payloads = vec![notify::cookie2(&cookie)];
            let random = self.ike.random();
            payloads.extend(initiator::detection(here, nat_t, random));
            (Awaiting::Routability { generation, cookie, path: view.path }, payloads)
        } else if mobility.announced != addresses && any {
            mobility.announced.clone_from(&addresses);
            let mut payloads = initiator::list(&addresses, view.path, nat_t);
            payloads.extend(costs);
            (Awaiting::List, payloads)
        } else if mobility.pending_mapping {
            mobility.pending_mapping = false;
            let random = self.ike.random();
            (Awaiting::Mapping, initiator::detection(here, nat_t, random))
        } else if mobility.pending_probe && mobility.role == Role::Initiator {
            mobility.pending_probe = false;
            let random = self.ike.random();
            (Awaiting::Probe, initiator::detection(here, nat_t, random))
        } else if std::mem::take(&mut mobility.pending_probe) {
            let cookie = notify::new_cookie2(self.ike.random());
            let payloads = vec![notify::cookie2(&cookie)];
            (Awaiting::Standby { cookie, path: view.path }, payloads)
        } else if let Some(path) = mobility.pending_standby.take() {
            if path != view.path {
                self.validate(now, id, path);
            }
            return;
        } else {
            return;
        };
        self.request(now, id, &payloads, awaiting, None);
    }
}
