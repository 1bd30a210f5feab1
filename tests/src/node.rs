//! An end of the simulated network: the whole machine of a host, or a puppet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use bewick_ike::{Action, ActionError, ActionId, ConnectionId, Packet, SaId, Time};
use bewick_mobike::{
    Command, Event, Host, Input as HostInput, LocalAddress, Output as HostOutput,
    host::CommandError,
};

use crate::{
    net::UplinkId,
    pair::{self, EndId, Input, Machine, Output, World},
    puppet::Puppet,
};

/// A [`Host`] with the part of a driver that answers name look-ups.
pub struct Honest {
    /// the machine
    pub host: Host,
    /// what the gateway's name leads to
    pub gateways: Vec<IpAddr>,
    /// the traps that are set, and how often each was
    pub traps: BTreeMap<(usize, usize), u32>,
    metered: BTreeSet<UplinkId>,
    now: Time,
}

/// What stands at an end of the network.
pub enum Node {
    /// what the daemon runs
    Honest(Box<Honest>),
    /// what a test plays
    Puppet(Box<Puppet>),
}

impl Node {
    /// A host whose gateway has these addresses.
    pub fn honest(host: Host, gateways: Vec<IpAddr>) -> Self {
        Node::Honest(Box::new(Honest {
            host,
            gateways,
            traps: BTreeMap::new(),
            metered: BTreeSet::new(),
            now: Time::ZERO,
        }))
    }

    /// The machine of a host.
    ///
    /// # Panics
    /// If it is a puppet.
    pub fn host(&self) -> &Host {
        match self {
            Node::Honest(honest) => &honest.host,
            Node::Puppet(_) => panic!("this end is a puppet"),
        }
    }

    /// The IKE and MOBIKE machines.
    ///
    /// # Panics
    /// If it is a puppet.
    pub fn host_mut(&mut self) -> &mut Host {
        match self {
            Node::Honest(honest) => &mut honest.host,
            Node::Puppet(_) => panic!("a puppet has no host"),
        }
    }

    /// The puppet.
    ///
    /// # Panics
    /// If it is none.
    pub fn puppet(&mut self) -> &mut Puppet {
        match self {
            Node::Puppet(puppet) => puppet,
            Node::Honest(_) => panic!("this end is no puppet"),
        }
    }

    /// How often the trap for this CHILD_SA of the first connection was set; `None` if none is.
    pub fn trap(&self, child: usize) -> Option<u32> {
        match self {
            Node::Honest(honest) => honest.traps.get(&(0, child)).copied(),
            Node::Puppet(_) => None,
        }
    }

    /// Changes what the gateway's name leads to.
    pub fn set_gateways(&mut self, gateways: Vec<IpAddr>) {
        if let Node::Honest(honest) = self {
            honest.gateways = gateways;
        }
    }

    /// Says which uplinks cost money by the octet, from the next time on that addresses are told.
    pub fn set_metered(&mut self, uplinks: &[UplinkId]) {
        if let Node::Honest(honest) = self {
            honest.metered = uplinks.iter().copied().collect();
        }
    }
}

/// The interface's name of an uplink, as the machines hear it.
pub fn interface(uplink: UplinkId) -> String {
    format!("up{}", uplink.0)
}

/// The address of an uplink as the machines hear it: the earlier uplink has the better metric.
fn local(uplink: UplinkId, address: IpAddr, metered: bool) -> LocalAddress {
    let metric = u32::try_from(uplink.0).unwrap_or(u32::MAX);
    LocalAddress { cost: 0, metric, address, interface: interface(uplink), metered }
}

impl Honest {
    fn handle(&mut self, now: Time, input: Input) {
        self.now = now;
        match input {
            Input::Datagram { path, bytes } => {
                self.host.handle(now, HostInput::Datagram { path, bytes: &bytes });
            }
            Input::Timeout => self.host.handle(now, HostInput::Timeout),
            Input::Addresses(list) => {
                let locals = list
                    .into_iter()
                    .map(|(uplink, ip)| local(uplink, ip, self.metered.contains(&uplink)))
                    .collect();
                self.host.handle(now, HostInput::Addresses(locals));
            }
            Input::Expiring(child) => self.host.handle(now, HostInput::Expiring(child)),
            Input::Counted { id, sent, received } => {
                self.host.handle(now, HostInput::Counted { sa: SaId(id), sent, received });
            }
            Input::Mapping { child, remote } => {
                self.host.handle(now, HostInput::Mapping { child, remote });
            }
            Input::Unreachable(path) => self.host.handle(now, HostInput::Unreachable(path)),
            Input::Resumed => self.host.handle(now, HostInput::Resumed),
            Input::Answer { id, result } => {
                let result = result.map_err(ActionError);
                self.host.handle(now, HostInput::Answer { id: ActionId(id), result });
            }
        }
    }

    fn poll_output(&mut self) -> Option<Output<Event>> {
        loop {
            return Some(match self.host.poll_output()? {
                HostOutput::Transmit(t) => Output::Transmit { path: t.path, bytes: t.bytes },
                HostOutput::Keepalive(path) => Output::Transmit { path, bytes: vec![0xff] },
                HostOutput::Action { id, action } => {
                    Output::Action { id: id.0, action: translate(action) }
                }
                HostOutput::Count { sa, .. } => Output::Count { id: sa.0 },
                HostOutput::Event(event) => Output::Event(event),
                HostOutput::SetTrap { connection, child } => {
                    *self.traps.entry((connection.0, child)).or_default() += 1;
                    continue;
                }
                HostOutput::ClearTrap { connection, child } => {
                    self.traps.remove(&(connection.0, child));
                    continue;
                }
                HostOutput::Keys(_) => continue,
                HostOutput::Resolve(connection) => {
                    let addresses = self.gateways.clone();
                    let answer = HostInput::Resolved { connection, addresses };
                    self.host.handle(self.now, answer);
                    continue;
                }
            });
        }
    }
}

/// An action in the words of the loop.
pub(crate) fn translate(action: Action) -> pair::Action {
    match action {
        Action::Install(sa) => pair::Action::Install(sa),
        Action::Remove(id) => pair::Action::Remove(id),
        Action::Move(moves) => pair::Action::Move(moves),
        Action::Retire(ids) => pair::Action::Retire(ids),
        Action::Cap { children, on } => pair::Action::Cap(children, on),
    }
}

impl Machine for Node {
    type Event = Event;

    fn handle(&mut self, now: Time, input: Input) {
        match self {
            Node::Honest(honest) => honest.handle(now, input),
            Node::Puppet(puppet) => puppet.handle(now, input),
        }
    }

    fn poll_output(&mut self) -> Option<Output<Event>> {
        match self {
            Node::Honest(honest) => honest.poll_output(),
            Node::Puppet(puppet) => puppet.poll_output(),
        }
    }

    fn next_timeout(&self) -> Option<Time> {
        match self {
            Node::Honest(honest) => honest.host.next_timeout(),
            Node::Puppet(puppet) => puppet.next_timeout(),
        }
    }
}

impl World<Node> {
    /// Gives the host at `id` a command and carries out what follows.
    ///
    /// # Errors
    /// Those of [`Host::command`].
    ///
    /// # Panics
    /// If the end is a puppet.
    pub fn command(&mut self, id: EndId, command: Command) -> Result<(), CommandError> {
        let now = self.now();
        let Node::Honest(honest) = &mut self.end_mut(id).machine else {
            panic!("a puppet takes no commands")
        };
        honest.now = now;
        let result = honest.host.command(now, command);
        self.pump(id);
        result
    }

    /// Has the data plane of the host at `id` catch a packet for a CHILD_SA of its first connection.
    ///
    /// # Panics
    /// If the end is a puppet.
    pub fn caught(&mut self, id: EndId, child: usize, packet: Packet) {
        let now = self.now();
        let Node::Honest(honest) = &mut self.end_mut(id).machine else {
            panic!("a puppet has no traps")
        };
        honest.now = now;
        let connection = ConnectionId(0);
        honest.host.handle(now, HostInput::Acquire { connection, child, packet });
        self.pump(id);
    }

    /// Has the data plane of the host at `id` be unable to set the trap for a CHILD_SA of its first
    /// connection.
    ///
    /// # Panics
    /// If the end is a puppet.
    pub fn uncaught(&mut self, id: EndId, child: usize) {
        let now = self.now();
        let Node::Honest(honest) = &mut self.end_mut(id).machine else {
            panic!("a puppet has no traps")
        };
        honest.now = now;
        let connection = ConnectionId(0);
        honest.host.handle(now, HostInput::Untrapped { connection, child });
        self.pump(id);
    }

    /// Lets a test play the puppet at `id`, then carries out what follows.
    ///
    /// # Panics
    /// If the end is no puppet.
    pub fn play<T>(&mut self, id: EndId, act: impl FnOnce(&mut Puppet, Time) -> T) -> T {
        let now = self.now();
        let result = act(self.end_mut(id).machine.puppet(), now);
        self.pump(id);
        result
    }
}
