//! The machine that a driver feeds: IKE and MOBIKE of one host.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{
    Action, ActionError, ActionId, ChildId, CloseReason, ConnectionConfig, ConnectionId, Endpoint,
    Path, Random, Role, SaId, SaView, Tag, Time, Transmit, endpoint::SaStatus, event,
};

use crate::{
    address::{self, LocalAddress},
    event::{Cause, Event},
    initiator::{self, Verdict},
    mobility::{Awaiting, ConnectionPolicy, Intent, Movers, ReturnRoutability, Underway},
    notify,
};

/// NAT keepalives on the current path (RFC 3948 §4).
const KEEPALIVE: Duration = Duration::from_secs(20);

/// Unanswered transmissions after which the initiator tries another pair (RFC 4555 §3.5).
const TRIES_BEFORE_NEXT_PAIR: u32 = 3;

/// Moves after which the CHILD_SAs get new keys. A kernel makes a new state of each move, with a new
/// random salt for the IVs of its AEAD; that two of them never meet is a matter of numbers, and new
/// keys start these from zero.
const MOVES_BEFORE_REKEY: u32 = 32;

/// Waits between tries to bring a connection up: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a host is made from.
#[derive(Debug, Default)]
pub struct HostConfig {
    /// the connections, and how each moves
    pub connections: Vec<(ConnectionConfig, ConnectionPolicy)>,
    /// the data plane can do nothing but ESP in UDP
    pub force_encap: bool,
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// bring a connection of ours up
    Up(ConnectionId),
    /// take it down
    Down(ConnectionId),
    /// move its IKE_SA
    Move(ConnectionId, MoveTarget),
    /// give its CHILD_SAs new keys
    Rekey(ConnectionId),
    /// delete every IKE_SA
    Shutdown,
}

/// Where the operator wants an IKE_SA to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveTarget {
    /// one of our addresses
    Address(IpAddr),
    /// one of our interfaces
    Interface(String),
}

/// Why a command can't be carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// no such connection
    #[error("no such connection")]
    UnknownConnection,
    /// only an initiator starts
    #[error("the connection is a responder: its peers start it")]
    NotInitiator,
    /// only the initiator decides the addresses (RFC 4555 §1.2)
    #[error("the connection is a responder: its peers decide the addresses (RFC 4555)")]
    PeerDecides,
    /// there is nothing to move
    #[error("the connection is not established")]
    NotEstablished,
    /// the peer can't follow
    #[error("the peer does not support MOBIKE")]
    NoMobike,
    /// no such address, or none that reaches the peer
    #[error("{0} is no usable address or interface of ours that reaches the peer; usable: {1}")]
    NoSuchAddress(String, String),
}

/// What goes in.
#[derive(Debug)]
pub enum Input<'a> {
    /// a datagram for port 500 or 4500, without the non-ESP marker
    Datagram {
        /// our address and port, and where it came from
        path: Path,
        /// the IKE message
        bytes: &'a [u8],
    },
    /// the time of [`Host::next_timeout`] has come
    Timeout,
    /// our usable addresses, all of them
    Addresses(Vec<LocalAddress>),
    /// the gateway's addresses, best first, for [`Output::Resolve`]
    Resolved {
        /// the connection
        connection: ConnectionId,
        /// none if the name could not be resolved
        addresses: Vec<IpAddr>,
    },
    /// the data plane reports that a CHILD_SA's sequence numbers or lifetime will soon be used up
    Expiring(ChildId),
    /// the data plane's answer
    Answer {
        /// the action
        id: ActionId,
        /// how it went
        result: Result<(), ActionError>,
    },
}

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// send a datagram
    Transmit(Transmit),
    /// send one octet 0xFF (RFC 3948 §2.3)
    Keepalive(Path),
    /// ask the data plane; answer with [`Input::Answer`]
    Action {
        /// comes back with the answer
        id: ActionId,
        /// what is to be done
        action: Action,
    },
    /// look up the gateway's addresses; answer with [`Input::Resolved`]
    Resolve(ConnectionId),
    /// something has happened
    Event(Event),
}

/// What the operator wants of an initiator's connection, and how far that is.
#[derive(Debug, Default)]
struct Wanted {
    up: bool,
    remotes: Vec<IpAddr>,
    attempt: usize,
    failures: u32,
    retry_at: Option<Time>,
    current: Option<SaId>,
}

/// IKE and MOBIKE of one host.
pub struct Host {
    ike: Endpoint,
    movers: Movers,
    policies: Vec<ConnectionPolicy>,
    wanted: BTreeMap<ConnectionId, Wanted>,
    outputs: VecDeque<Output>,
    keepalives: BTreeSet<(Time, SaId)>,
    next_tag: u64,
}

impl Host {
    /// A host with nothing up.
    pub fn new(config: HostConfig, random: Random) -> Self {
        let (connections, policies): (Vec<_>, Vec<_>) = config.connections.into_iter().unzip();
        // As responder we don't know which connection an IKE_SA_INIT is for, so that one which wants
        // ESP in UDP decides for all.
        let any = connections.iter().any(|c| c.role == Role::Responder && c.force_encap);
        let forced = |c: &ConnectionConfig| {
            config.force_encap || if c.role == Role::Responder { any } else { c.force_encap }
        };
        let movers = Movers {
            enabled: connections.iter().map(|c| c.mobike).collect(),
            forced: connections.iter().map(forced).collect(),
            ..Movers::default()
        };
        Host {
            ike: Endpoint::new(random, connections, config.force_encap),
            movers,
            policies,
            wanted: BTreeMap::new(),
            outputs: VecDeque::new(),
            keepalives: BTreeSet::new(),
            next_tag: 0,
        }
    }

    /// The connections by name, in the order of the configuration.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionId, &ConnectionConfig)> {
        self.ike.connections()
    }

    /// Every IKE_SA that is not over.
    pub fn status(&self) -> impl Iterator<Item = SaStatus<'_>> {
        self.ike.status()
    }

    /// Whether both sides of an IKE_SA support MOBIKE.
    pub fn is_mobike(&self, sa: SaId) -> bool {
        self.movers.sas.get(&sa).is_some_and(|m| m.supported)
    }

    /// How many IKE_SAs are in memory, lingering ones included.
    pub fn len(&self) -> usize {
        self.ike.len()
    }

    /// Whether no IKE_SA is in memory.
    pub fn is_empty(&self) -> bool {
        self.ike.is_empty()
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Input::Timeout`] is due.
    pub fn next_timeout(&self) -> Option<Time> {
        let retries = self.wanted.values().filter_map(|w| w.retry_at).min();
        let keepalive = self.keepalives.first().map(|(at, _)| *at);
        let ike = self.ike.next_timeout().map(|(at, _)| at);
        [retries, keepalive, ike].into_iter().flatten().min()
    }

    /// Takes one input; what it leads to waits in [`Self::poll_output`].
    pub fn handle(&mut self, now: Time, input: Input<'_>) {
        match input {
            Input::Datagram { path, bytes } => {
                self.ike.datagram(now, path, bytes, &mut self.movers);
            }
            Input::Timeout => self.on_timeout(now),
            Input::Addresses(locals) => self.on_addresses(now, locals),
            Input::Resolved { connection, addresses } => {
                self.on_resolved(now, connection, addresses);
            }
            Input::Expiring(child) => {
                let carries = |sa: &SaStatus<'_>| sa.children.iter().any(|c| c.id == child);
                for id in self.ids(carries) {
                    self.ike.rekey_children(now, id, Some(child), &mut self.movers);
                }
            }
            Input::Answer { id, result } => self.ike.answer(now, id, result, &mut self.movers),
        }
        self.settle(now);
    }

    /// Carries out a command, or says why it can't be.
    pub fn command(&mut self, now: Time, command: Command) -> Result<(), CommandError> {
        let result = match command {
            Command::Up(connection) => self.up(connection),
            Command::Down(connection) => self.down(now, connection),
            Command::Move(connection, target) => self.move_on_request(now, connection, &target),
            Command::Rekey(connection) => self.rekey(now, connection),
            Command::Shutdown => {
                self.wanted.clear();
                for id in self.ids(|_| true) {
                    self.ike.close(now, id, &mut self.movers);
                }
                Ok(())
            }
        };
        self.settle(now);
        result
    }

    fn ids(&self, filter: impl Fn(&SaStatus<'_>) -> bool) -> Vec<SaId> {
        self.ike.status().filter(filter).map(|sa| sa.id).collect()
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    // --- bringing up and taking down -----------------------------------------------------------

    fn up(&mut self, connection: ConnectionId) -> Result<(), CommandError> {
        let config = self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        if config.role != Role::Initiator {
            return Err(CommandError::NotInitiator);
        }
        let wanted = self.wanted.entry(connection).or_default();
        wanted.up = true;
        if wanted.current.is_none() {
            wanted.retry_at = None;
            wanted.failures = 0;
            self.outputs.push_back(Output::Resolve(connection));
        }
        Ok(())
    }

    fn down(&mut self, now: Time, connection: ConnectionId) -> Result<(), CommandError> {
        self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        self.wanted.remove(&connection);
        for id in self.ids(|sa| sa.connection == Some(connection)) {
            self.ike.close(now, id, &mut self.movers);
        }
        Ok(())
    }

    fn rekey(&mut self, now: Time, connection: ConnectionId) -> Result<(), CommandError> {
        self.ike.connection(connection).ok_or(CommandError::UnknownConnection)?;
        let up = |sa: &SaStatus<'_>| sa.connection == Some(connection) && sa.state == "established";
        let ids = self.ids(up);
        if ids.is_empty() {
            return Err(CommandError::NotEstablished);
        }
        for id in ids {
            self.ike.rekey_children(now, id, None, &mut self.movers);
        }
        Ok(())
    }

    fn on_resolved(&mut self, now: Time, connection: ConnectionId, addresses: Vec<IpAddr>) {
        let Some(wanted) = self.wanted.get_mut(&connection).filter(|w| w.current.is_none()) else {
            return;
        };
        wanted.remotes = addresses;
        self.connect(now, connection);
    }

    /// Tries the next pair of addresses, a fresh IKE_SA_INIT each time (RFC 4555 §3.1).
    fn connect(&mut self, now: Time, connection: ConnectionId) {
        let Some(wanted) = self.wanted.get_mut(&connection) else { return };
        let pairs = address::pairs(&self.movers.locals, &wanted.remotes);
        let Some((local, remote)) = pairs.get(wanted.attempt % pairs.len().max(1)).copied() else {
            // Without any address it is not the peer's fault, and an address will come.
            let wait = self.movers.locals.is_empty();
            self.event(Event::Waiting { connection });
            self.retry_later(now, connection, wait);
            return;
        };
        wanted.attempt += 1;
        let path = Path::new(SocketAddr::new(local, 500), SocketAddr::new(remote, 500));
        match self.ike.connect(now, connection, path, &mut self.movers) {
            Ok(sa) => {
                wanted.current = Some(sa);
                self.event(Event::Connecting { connection, path });
            }
            Err(reason) => self.event(Event::Refused { path, reason }),
        }
    }

    fn retry_later(&mut self, now: Time, connection: ConnectionId, wait: bool) {
        let keep_up = wait || self.policies.get(connection.0).is_some_and(|p| p.keep_up);
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

    fn on_timeout(&mut self, now: Time) {
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
        while let Some((at, id)) = self.keepalives.first().copied().filter(|(at, _)| *at <= now) {
            self.keepalives.remove(&(at, id));
            let Some(sa) = self.ike.sa(id).filter(|sa| sa.state == "established") else { continue };
            // RFC 4555 §3.12: on the current pair and no other.
            if sa.nat.local {
                self.outputs.push_back(Output::Keepalive(sa.path));
            }
            self.keepalives.insert((now + KEEPALIVE, id));
        }
    }

    // --- our addresses -----------------------------------------------------------------------

    fn on_addresses(&mut self, now: Time, mut locals: Vec<LocalAddress>) {
        locals.sort();
        locals.dedup();
        if self.movers.locals == locals {
            return;
        }
        self.movers.locals = locals;
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

    fn is_ours(&self, address: IpAddr) -> bool {
        self.movers.locals.iter().any(|local| local.address == address)
    }

    /// Initiator: goes to another address if the current one is gone (RFC 4555 §3.5).
    fn check_current(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (current, established) = (sa.path, sa.state == "established");
        let gone = current.local.ip();
        if self.is_ours(gone) {
            if let Some(mobility) = self.movers.sas.get_mut(&id)
                && std::mem::take(&mut mobility.stranded)
            {
                // A NAT may have forgotten us meanwhile: no need to find out first (RFC 4555 §3.8).
                self.move_to(now, id, current, Cause::AddressBack(gone));
            }
            return;
        }
        let supported = self.is_mobike(id);
        if !established || !supported {
            // A handshake starts anew on another pair; without MOBIKE, so does the IKE_SA.
            self.ike.abandon(now, id, CloseReason::AddressGone(gone), &mut self.movers);
            return;
        }
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let connection = mobility.connection;
        match initiator::choose(mobility, &self.movers.locals, current, None) {
            Some(path) => self.move_to(now, id, path, Cause::AddressGone(gone)),
            None if !std::mem::replace(&mut mobility.stranded, true) => {
                self.event(Event::Stranded { connection, sa: id });
            }
            None => {}
        }
    }

    /// Responder: only when its own source is gone does it move by itself (RFC 4555 §3.5). When that is
    /// back and the initiator has not followed, it returns, for the initiator decides (§1.2).
    fn check_own_source(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let current = sa.path;
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
    fn change_own_source(&mut self, now: Time, id: SaId, to: Path, cause: Cause, confirmed: bool) {
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

    // --- moving -------------------------------------------------------------------------------

    fn move_on_request(
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
        let Some(path) = initiator::choose(mobility, &chosen, current, None) else {
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
    fn begin(&mut self, now: Time, id: SaId, to: Path, cause: Cause) {
        let Some(from) = self.ike.sa(id).map(|sa| sa.path) else { return };
        self.ike.set_path(id, to);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let connection = mobility.connection;
        mobility.generation += 1;
        mobility.stranded = false;
        // It was of the old pair; the answer to the update tells the new one.
        mobility.seen_as = None;
        if cause != Cause::Refused {
            mobility.refused.clear();
        }
        // Two moves in a row are one for the record: it begins where traffic last was.
        let (from, since) = match mobility.underway {
            Some(underway) => (underway.from, underway.since),
            None => (from, now),
        };
        mobility.underway = Some(Underway { from, cause, since, confirmed: false });
        self.event(Event::Moving { connection, sa: id, from, to, cause });
    }

    /// RFC 4555 §3.5, the initiator's steps 1 to 5.
    fn move_to(&mut self, now: Time, id: SaId, to: Path, cause: Cause) {
        self.begin(now, id, to, cause);
        if let Some(mobility) = self.movers.sas.get_mut(&id) {
            mobility.pending_update = true;
        }
        self.move_children(now, id, to);
        // A peer that answers on no path at all is to be given up one day.
        let fresh = !matches!(cause, Cause::NoAnswer | Cause::Refused);
        self.ike.hasten(now, id, fresh, &mut self.movers);
    }

    /// Tells the data plane, and remembers where the CHILD_SAs are going.
    fn move_children(&mut self, now: Time, id: SaId, to: Path) {
        let Some(sa) = self.ike.sa(id) else { return };
        let nat = sa.nat.any();
        let was = sa.children.first().is_some_and(|child| child.encap);
        let force = self.force_encap(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let encap = match mobility.role {
            // Step 3: encapsulation that is on stays on until the answer shows that there is no NAT.
            Role::Initiator => was || nat || force || address::suggests_nat(to),
            // The request that moves it has shown already whether there is one.
            Role::Responder => nat || force,
        };
        mobility.encap = encap;
        mobility.children_at = to;
        self.order_move(now, id, to, encap);
    }

    fn order_move(&mut self, now: Time, id: SaId, to: Path, encap: bool) {
        let action = self.ike.move_children(now, id, to, encap, &mut self.movers);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        mobility.actions.extend(action.map(|action| (action, to)));
        mobility.moves += 1;
        if mobility.moves.is_multiple_of(MOVES_BEFORE_REKEY) {
            self.ike.rekey_children(now, id, None, &mut self.movers);
        }
    }

    fn force_encap(&self, id: SaId) -> bool {
        self.movers.sas.get(&id).is_some_and(|m| self.movers.forces_encap(m.connection))
    }

    /// Sends what waits for the window: the check of a new address, an update, a list.
    fn pump(&mut self, now: Time, id: SaId) {
        if !self.ike.is_open(id) {
            return;
        }
        let Some(view) = self.ike.view(id) else { return };
        let addresses = self.movers.own_addresses();
        let force = self.force_encap(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if !mobility.supported || !mobility.established || mobility.awaiting.is_some() {
            return;
        }
        let generation = mobility.generation;
        let spis = (view.spi_i, view.spi_r);
        let (awaiting, payloads) = if mobility.pending_update {
            mobility.pending_update = false;
            mobility.announced.clone_from(&addresses);
            let cookie = notify::new_cookie2(self.ike.random());
            let random = self.ike.random();
            let payloads = initiator::update((spis, view.path, force), &cookie, &addresses, random);
            (Awaiting::Update { generation, cookie }, payloads)
        } else if mobility.pending_check {
            mobility.pending_check = false;
            let cookie = notify::new_cookie2(self.ike.random());
            let mut payloads = vec![notify::cookie2(&cookie)];
            let random = self.ike.random();
            payloads.extend(bewick_ike::nat::payloads(spis, view.path, force, random));
            (Awaiting::Routability { generation, cookie, path: view.path }, payloads)
        } else if mobility.announced != addresses && !addresses.is_empty() && !mobility.stranded {
            mobility.announced.clone_from(&addresses);
            (Awaiting::List, notify::address_list(&addresses, view.path.local.ip()))
        } else if mobility.pending_mapping {
            mobility.pending_mapping = false;
            let random = self.ike.random();
            let payloads = bewick_ike::nat::payloads(spis, view.path, force, random);
            (Awaiting::Mapping, payloads.to_vec())
        } else {
            return;
        };
        self.next_tag += 1;
        mobility.awaiting = Some((self.next_tag, awaiting));
        let tag = Tag::Upper(self.next_tag);
        self.ike.request(now, id, &payloads, tag, &mut self.movers);
    }

    // --- what comes back ----------------------------------------------------------------------

    /// Works until nothing is left to do: events of the IKE machines, intents of requests, requests
    /// that wait for the window.
    fn settle(&mut self, now: Time) {
        loop {
            let mut idle = true;
            while let Some(output) = self.ike.poll_output() {
                idle = false;
                match output {
                    event::Output::Transmit(transmit) => {
                        self.outputs.push_back(Output::Transmit(transmit));
                    }
                    event::Output::Action { id, action } => {
                        self.outputs.push_back(Output::Action { id, action });
                    }
                    event::Output::Event(event) => self.on_event(now, event),
                }
            }
            while let Some((id, intent)) = self.movers.intents.pop_front() {
                idle = false;
                self.on_intent(now, id, intent);
            }
            if idle {
                let ids: Vec<SaId> = self.movers.sas.keys().copied().collect();
                for id in ids {
                    self.pump(now, id);
                    self.ike.proceed(now, id, &mut self.movers);
                }
                match self.ike.poll_output() {
                    None => return,
                    Some(event::Output::Transmit(transmit)) => {
                        self.outputs.push_back(Output::Transmit(transmit));
                    }
                    Some(event::Output::Action { id, action }) => {
                        self.outputs.push_back(Output::Action { id, action });
                    }
                    Some(event::Output::Event(event)) => self.on_event(now, event),
                }
            }
        }
    }

    fn on_event(&mut self, now: Time, event: event::Event) {
        match event {
            event::Event::Established(established) => {
                let (id, connection) = (established.sa, established.connection);
                let path = self.ike.sa(id).map(|sa| sa.path);
                let encap =
                    self.ike.sa(id).is_some_and(|sa| sa.children.first().is_some_and(|c| c.encap));
                if let Some(wanted) = self.wanted.get_mut(&connection) {
                    wanted.failures = 0;
                    wanted.attempt = 0;
                }
                self.keepalives.insert((now + KEEPALIVE, id));
                let nat = self.ike.sa(id).map(|sa| sa.nat).unwrap_or_default();
                let own = self.ike.view(id).map(|view| self.as_we_are(&view));
                let mut mobike = false;
                if let (Some(path), Some(mobility)) = (path, self.movers.sas.get_mut(&id)) {
                    mobility.established = true;
                    mobility.children_at = path;
                    mobility.encap = encap;
                    mobike = mobility.supported;
                    // RFC 4555 §3.8: what the next answers are compared with. The hash of IKE_SA_INIT
                    // is of no use behind a NAT, for port 4500 has another mapping than port 500.
                    if mobility.role == Role::Initiator && nat.local {
                        mobility.pending_mapping = mobility.supported;
                    } else {
                        mobility.seen_as = own.flatten();
                    }
                }
                if let Some(path) = path {
                    self.event(Event::Established { established, path, mobike });
                }
                // An address may have gone while the handshake was under way.
                if self.ike.sa(id).is_some_and(|sa| sa.role == Role::Initiator) {
                    self.check_current(now, id);
                }
            }
            event::Event::Response { sa, tag, path, payloads } => {
                self.on_response(now, sa, tag, path, &payloads);
            }
            event::Event::Unanswered { sa, tries } => self.on_unanswered(now, sa, tries),
            event::Event::Moved { sa, id, result } => self.on_plane(now, sa, id, result),
            event::Event::Closed { sa, connection, path, reason } => {
                let established = self.movers.sas.remove(&sa).is_some_and(|m| m.established);
                self.keepalives.retain(|(_, id)| *id != sa);
                self.event(Event::Closed { connection, sa, path, reason: reason.clone() });
                if let Some(connection) = connection {
                    self.on_closed(now, connection, sa, established, &reason);
                }
            }
            event::Event::Refused { path, reason } => self.event(Event::Refused { path, reason }),
        }
    }

    /// The hash by which a peer sees us that no NAT is in front of.
    fn as_we_are(&mut self, view: &SaView) -> Option<Vec<u8>> {
        let theirs = Path::new(view.path.remote, view.path.local);
        let spis = (view.spi_i, view.spi_r);
        let payloads = bewick_ike::nat::payloads(spis, theirs, false, self.ike.random());
        initiator::seen_as(&payloads)
    }

    fn on_closed(
        &mut self,
        now: Time,
        connection: ConnectionId,
        sa: SaId,
        established: bool,
        reason: &CloseReason,
    ) {
        let Some(wanted) = self.wanted.get_mut(&connection).filter(|w| w.current == Some(sa))
        else {
            return;
        };
        wanted.current = None;
        let another = match reason {
            CloseReason::AddressGone(_) => {
                wanted.attempt = 0;
                true
            }
            // RFC 4555 §3.1: every pair has its turn before the peer counts as unreachable.
            CloseReason::Unanswered(_) if !established => {
                wanted.attempt < address::pairs(&self.movers.locals, &wanted.remotes).len()
            }
            _ => false,
        };
        if another {
            self.connect(now, connection);
        } else {
            self.retry_later(now, connection, false);
        }
    }

    fn on_intent(&mut self, now: Time, id: SaId, intent: Intent) {
        match intent {
            Intent::Updated { path, nat } => {
                let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
                if let Some(nat) = nat {
                    self.ike.set_nat(id, nat);
                }
                if let Some(mobility) = self.movers.sas.get_mut(&id) {
                    mobility.agreed = path;
                }
                let before = self.movers.sas.get(&id).is_some_and(|m| m.children_at != path);
                if path != current {
                    self.begin(now, id, path, Cause::PeerMoved);
                    self.ike.hasten(now, id, true, &mut self.movers);
                }
                if before {
                    self.follow(now, id, path);
                } else {
                    // Back to where the traffic still is: nothing to check.
                    self.confirm(now, id);
                    self.adjust_encap(now, id);
                }
            }
            Intent::PeerList => {
                let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
                let Some(mobility) = self.movers.sas.get(&id) else { return };
                let (connection, role) = (mobility.connection, mobility.role);
                let addresses = mobility.peer_addresses.clone();
                let missing = !addresses.contains(&current.remote.ip());
                let next = initiator::choose(mobility, &self.movers.locals, current, None);
                self.event(Event::PeerAddresses { connection, sa: id, addresses });
                // RFC 4555 §3.5: the address in use is missing from the peer's list.
                if let (Role::Initiator, true, Some(path)) = (role, missing, next) {
                    let cause = Cause::PeerAddressGone(current.remote.ip());
                    self.move_to(now, id, path, cause);
                }
            }
        }
    }

    /// Responder: the peer says that it is at `path` now (RFC 4555 §3.5, §3.7).
    fn follow(&mut self, now: Time, id: SaId, path: Path) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let policy = self.policies.get(mobility.connection.0).copied().unwrap_or_default();
        let from = mobility.children_at.remote.ip();
        // Another port of an address that was shown reachable is the same victim, if any.
        if policy.return_routability == ReturnRoutability::Off || from == path.remote.ip() {
            self.confirm(now, id);
            self.move_children(now, id, path);
        } else {
            mobility.pending_check = true;
        }
    }

    fn confirm(&mut self, now: Time, id: SaId) {
        if let Some(underway) = self.movers.sas.get_mut(&id).and_then(|m| m.underway.as_mut()) {
            underway.confirmed = true;
        }
        self.finish_move(now, id);
    }

    /// Reports a move once the peer has confirmed it and the data plane is there.
    fn finish_move(&mut self, now: Time, id: SaId) {
        let Some(to) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some(underway) = mobility.underway else { return };
        if !underway.confirmed || !mobility.actions.is_empty() || mobility.children_at != to {
            return;
        }
        mobility.underway = None;
        let (connection, Underway { from, cause, since, .. }) = (mobility.connection, underway);
        let took = now.since(since);
        self.event(Event::Moved { connection, sa: id, from, to, cause, took });
    }

    fn on_plane(&mut self, now: Time, id: SaId, action: ActionId, result: Result<(), ActionError>) {
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        let Some(at) = mobility.actions.iter().position(|(a, _)| *a == action) else { return };
        let (_, to) = mobility.actions.remove(at);
        let connection = mobility.connection;
        if let Err(error) = result {
            mobility.underway = None;
            let reason = CloseReason::DataPlane(error.0.clone());
            self.event(Event::MoveFailed { connection, sa: id, to, error });
            // Never half-moved: a plane that can't follow has an IKE_SA that is of no use.
            self.ike.close_because(now, id, reason, &mut self.movers);
            return;
        }
        self.finish_move(now, id);
    }

    fn on_response(
        &mut self,
        now: Time,
        id: SaId,
        tag: Tag,
        path: Path,
        payloads: &[bewick_ike::wire::Payload],
    ) {
        let Some(view) = self.ike.view(id) else { return };
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if tag == Tag::Liveness {
            let seen = initiator::seen_as(payloads);
            let changed = seen.is_some() && mobility.seen_as.is_some() && seen != mobility.seen_as;
            mobility.seen_as = seen.or_else(|| mobility.seen_as.take());
            if changed && mobility.role == Role::Initiator {
                self.move_to(now, id, view.path, Cause::NatMapping);
            }
            return;
        }
        let Some((expected, awaiting)) = mobility.awaiting.take() else { return };
        if tag != Tag::Upper(expected) {
            mobility.awaiting = Some((expected, awaiting));
            return;
        }
        let spis = (view.spi_i, view.spi_r);
        match awaiting {
            Awaiting::List => {}
            Awaiting::Mapping => {
                mobility.seen_as = mobility.seen_as.take().or(initiator::seen_as(payloads));
            }
            // RFC 4555 §3.5: an answer that was overtaken by another change says nothing.
            Awaiting::Update { generation, .. } if generation != mobility.generation => {}
            Awaiting::Update { cookie, .. } => {
                mobility.seen_as = initiator::seen_as(payloads);
                let verdict = initiator::verdict(spis, path, &cookie, payloads);
                self.on_update_answered(now, id, view.path, verdict);
            }
            Awaiting::Routability { cookie, path: checked, generation } => {
                let echo = notify::read_cookie2(payloads);
                if echo.is_some_and(|echo| echo != cookie) {
                    self.ike.abandon(now, id, CloseReason::Cookie2, &mut self.movers);
                } else if generation != mobility.generation || echo.is_none() || path != checked {
                    // RFC 4555 §3.7: proves nothing about the address that is current now.
                    mobility.pending_check |= generation != mobility.generation;
                } else {
                    self.confirm(now, id);
                    self.move_children(now, id, checked);
                }
            }
        }
    }

    fn on_update_answered(&mut self, now: Time, id: SaId, current: Path, verdict: Verdict) {
        match verdict {
            Verdict::Updated(nat) => {
                if let Some(nat) = nat {
                    self.ike.set_nat(id, nat);
                }
                if let Some(mobility) = self.movers.sas.get_mut(&id) {
                    mobility.refused.clear();
                }
                self.confirm(now, id);
                self.adjust_encap(now, id);
            }
            Verdict::WrongCookie => {
                self.ike.abandon(now, id, CloseReason::Cookie2, &mut self.movers);
            }
            Verdict::Unacceptable | Verdict::NotMoved => {
                let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
                mobility.refused.push(current);
                let locals = &self.movers.locals;
                let next = initiator::choose(mobility, locals, current, Some(current));
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
    fn adjust_encap(&mut self, now: Time, id: SaId) {
        let Some(sa) = self.ike.sa(id) else { return };
        let (path, nat) = (sa.path, sa.nat.any());
        let encap = nat || self.force_encap(id);
        let Some(mobility) = self.movers.sas.get_mut(&id) else { return };
        if mobility.encap != encap && mobility.children_at == path {
            mobility.encap = encap;
            self.order_move(now, id, path, encap);
        }
    }

    /// The peer does not answer: the initiator tries the next pair (RFC 4555 §3.5).
    fn on_unanswered(&mut self, now: Time, id: SaId, tries: u32) {
        if tries < TRIES_BEFORE_NEXT_PAIR {
            return;
        }
        let Some(current) = self.ike.sa(id).map(|sa| sa.path) else { return };
        let Some(mobility) = self.movers.sas.get(&id) else { return };
        if !mobility.supported || !mobility.established || mobility.role != Role::Initiator {
            return;
        }
        let next = initiator::choose(mobility, &self.movers.locals, current, Some(current));
        if let Some(path) = next.filter(|path| *path != current) {
            self.move_to(now, id, path, Cause::NoAnswer);
        }
    }
}
