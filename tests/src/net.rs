//! Hosts, their uplinks and addresses, and the way of a datagram between them.
//!
//! A datagram leaves over the uplink that owns its source address, climbs through the NATs before
//! that uplink until its destination is known (or nobody's), crosses one [`Link`], and descends
//! through the NATs before the receiver. NATs translate outbound when the datagram leaves and inbound
//! when it arrives. What nobody receives is counted and kept, so that a test can show that nothing
//! was ever sent to an address.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bewick_ike::{Path, Random, Time};

use crate::{
    capture::{Capture, Hop, Loss},
    clock::Timeline,
    link::Link,
    nat::{Nat, NatConfig},
    seed::stream,
};

/// Names a host of a [`Net`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostId(pub(crate) usize);

/// Names an uplink of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UplinkId(pub(crate) usize);

/// Names a NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NatId(pub(crate) usize);

/// Where an address means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Realm {
    /// the world outside all NATs
    Internet,
    /// the network behind a NAT
    Behind(NatId),
}

/// What carries the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// UDP
    Udp,
    /// ESP directly over IP; ports mean nothing
    Esp,
    /// a frame of a TCP connection, from its non-ESP marker or SPI on; it comes and is not lost as
    /// any datagram, so that TCP over a link that loses is not shown by it
    Tcp,
}

/// A packet in the simulated network.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram {
    /// UDP or bare ESP
    pub protocol: Protocol,
    /// source; port 0 for bare ESP
    pub src: SocketAddr,
    /// destination; port 0 for bare ESP
    pub dst: SocketAddr,
    /// what is after the UDP or IP header
    pub payload: Vec<u8>,
}

impl Datagram {
    /// A UDP datagram.
    pub fn udp(src: SocketAddr, dst: SocketAddr, payload: Vec<u8>) -> Self {
        Datagram { protocol: Protocol::Udp, src, dst, payload }
    }

    /// A UDP datagram or a frame of a TCP connection on `path`.
    pub fn on(path: Path, payload: Vec<u8>) -> Self {
        let protocol = if path.is_tcp() { Protocol::Tcp } else { Protocol::Udp };
        Datagram { protocol, src: path.local, dst: path.remote, payload }
    }

    /// Octets of the whole IP packet.
    pub fn octets(&self) -> usize {
        let ip = if self.dst.is_ipv4() { 20 } else { 40 };
        let header = match self.protocol {
            Protocol::Udp => 8,
            Protocol::Tcp => 20 + 2,
            Protocol::Esp => 0,
        };
        ip + header + self.payload.len()
    }
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Datagram { protocol, src, dst, payload } = self;
        write!(f, "{protocol:?} {src} -> {dst} ({} octets)", payload.len())
    }
}

/// A datagram that has reached a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// when
    pub time: Time,
    /// whom it reached
    pub host: HostId,
    /// over which uplink
    pub uplink: UplinkId,
    /// the datagram as the host sees it
    pub datagram: Datagram,
}

impl Delivery {
    /// The path as the receiver sees it: local is the destination.
    pub fn path(&self) -> Path {
        match self.datagram.protocol {
            Protocol::Tcp => Path::tcp(self.datagram.dst, self.datagram.src),
            Protocol::Udp | Protocol::Esp => Path::new(self.datagram.dst, self.datagram.src),
        }
    }
}

/// What the tap does with a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// it goes on
    Pass,
    /// it is gone
    Drop,
    /// these go on in its place, at once: a change, a copy, a forgery
    Replace(Vec<Datagram>),
}

/// A look at every datagram between the sender's NATs and the link.
pub type Tap = Box<dyn FnMut(Time, &Datagram) -> Verdict>;

/// Datagrams and their octets, IP headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// how many
    pub datagrams: u64,
    /// how many octets in all
    pub octets: u64,
}

#[derive(Debug)]
struct Uplink {
    host: HostId,
    name: String,
    realm: Realm,
    up: bool,
    swallow_out: bool,
    swallow_in: bool,
    addresses: BTreeSet<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Uplink(UplinkId),
    Nat(NatId),
}

struct Flight {
    realm: Realm,
    datagram: Datagram,
}

/// One end of a link as far as the sender's side can tell: an uplink, or an end that nobody is at.
type End = Option<UplinkId>;

/// NATs that a datagram crosses at most, a bound on nesting and hairpins.
const MAX_NATS: usize = 8;

/// The network.
pub struct Net {
    hosts: Vec<String>,
    uplinks: Vec<Uplink>,
    nats: Vec<Nat>,
    owners: BTreeMap<(Realm, IpAddr), Owner>,
    default_link: Link,
    links: BTreeMap<(UplinkId, UplinkId), Link>,
    latest: BTreeMap<(End, End), Time>,
    timeline: Timeline<Flight>,
    random: Random,
    tap: Option<Tap>,
    sent_to: BTreeMap<IpAddr, Tally>,
    losses: BTreeMap<Loss, Tally>,
    nobody: Vec<(Time, Datagram)>,
    /// What was seen where; switched off at first.
    pub capture: Capture,
}

impl Net {
    /// An empty network whose chances depend on `seed`. Links are [`Link::default`] until set.
    pub fn new(seed: u64) -> Self {
        Net {
            hosts: Vec::new(),
            uplinks: Vec::new(),
            nats: Vec::new(),
            owners: BTreeMap::new(),
            default_link: Link::default(),
            links: BTreeMap::new(),
            latest: BTreeMap::new(),
            timeline: Timeline::new(),
            random: stream(seed, "net"),
            tap: None,
            sent_to: BTreeMap::new(),
            losses: BTreeMap::new(),
            nobody: Vec::new(),
            capture: Capture::default(),
        }
    }

    // Building.

    /// Adds a host.
    pub fn add_host(&mut self, name: &str) -> HostId {
        self.hosts.push(name.to_owned());
        HostId(self.hosts.len() - 1)
    }

    /// Adds a NAT with `outside` addresses in the realm `outer`.
    pub fn add_nat(&mut self, outer: Realm, outside: &[IpAddr], config: NatConfig) -> NatId {
        let id = NatId(self.nats.len());
        self.nats.push(Nat::new(config, outer, outside.to_vec(), &mut self.random));
        for ip in outside {
            self.owners.insert((outer, *ip), Owner::Nat(id));
        }
        id
    }

    /// Adds an uplink, up, with `addresses` in `realm`.
    pub fn add_uplink(
        &mut self,
        host: HostId,
        name: &str,
        realm: Realm,
        addresses: &[IpAddr],
    ) -> UplinkId {
        let id = UplinkId(self.uplinks.len());
        self.uplinks.push(Uplink {
            host,
            name: name.to_owned(),
            realm,
            up: true,
            swallow_out: false,
            swallow_in: false,
            addresses: BTreeSet::new(),
        });
        for ip in addresses {
            self.add_address(id, *ip);
        }
        id
    }

    // Changing.

    /// Gives `ip` to `uplink`; an earlier owner in the same realm is not reached any more.
    pub fn add_address(&mut self, uplink: UplinkId, ip: IpAddr) {
        let entry = &mut self.uplinks[uplink.0];
        entry.addresses.insert(ip);
        self.owners.insert((entry.realm, ip), Owner::Uplink(uplink));
    }

    /// Takes `ip` from `uplink`.
    pub fn remove_address(&mut self, uplink: UplinkId, ip: IpAddr) {
        let entry = &mut self.uplinks[uplink.0];
        entry.addresses.remove(&ip);
        let key = (entry.realm, ip);
        if self.owners.get(&key) == Some(&Owner::Uplink(uplink)) {
            self.owners.remove(&key);
        }
    }

    /// Moves `uplink` into another realm with new addresses, as a laptop that changes its network.
    pub fn reattach(&mut self, uplink: UplinkId, realm: Realm, addresses: &[IpAddr]) {
        for ip in self.uplinks[uplink.0].addresses.clone() {
            self.remove_address(uplink, ip);
        }
        self.uplinks[uplink.0].realm = realm;
        for ip in addresses {
            self.add_address(uplink, *ip);
        }
    }

    /// Takes an uplink up or down; its addresses stay assigned but neither send nor receive.
    pub fn set_up(&mut self, uplink: UplinkId, up: bool) {
        self.uplinks[uplink.0].up = up;
    }

    /// Makes an uplink swallow what it sends and what it receives, while it looks up and well.
    pub fn set_black_hole(&mut self, uplink: UplinkId, outbound: bool, inbound: bool) {
        let entry = &mut self.uplinks[uplink.0];
        entry.swallow_out = outbound;
        entry.swallow_in = inbound;
    }

    /// The link from `from` to `to`, to be read or changed.
    pub fn link(&mut self, from: UplinkId, to: UplinkId) -> &mut Link {
        self.links.entry((from, to)).or_insert(self.default_link)
    }

    /// Sets both directions between two uplinks.
    pub fn set_links(&mut self, one: UplinkId, other: UplinkId, link: Link) {
        self.links.insert((one, other), link);
        self.links.insert((other, one), link);
    }

    /// Sets the link between all uplinks that have none of their own.
    pub fn set_default_link(&mut self, link: Link) {
        self.default_link = link;
    }

    /// Makes `nat` forget all its mappings: the next datagram from inside gets another port.
    pub fn forget_mappings(&mut self, nat: NatId) {
        self.nats[nat.0].forget();
    }

    /// Gives `nat` other outside addresses; all mappings are forgotten.
    pub fn renumber_nat(&mut self, nat: NatId, outside: &[IpAddr]) {
        let entry = &mut self.nats[nat.0];
        let realm = entry.outer();
        for ip in entry.outside() {
            self.owners.remove(&(realm, *ip));
        }
        entry.set_outside(outside.to_vec());
        for ip in outside {
            self.owners.insert((realm, *ip), Owner::Nat(nat));
        }
    }

    /// Changes how `nat` behaves from now on.
    pub fn set_nat_config(&mut self, nat: NatId, config: NatConfig) {
        self.nats[nat.0].set_config(config);
    }

    /// Lets everybody reach `inside` at `outside`, as a gateway behind a NAT needs it.
    pub fn forward(&mut self, nat: NatId, outside: SocketAddr, inside: SocketAddr) {
        self.nats[nat.0].forward(outside, inside);
    }

    /// Puts `tap` between the senders' NATs and the links, in place of an earlier one.
    pub fn set_tap(&mut self, tap: Option<Tap>) {
        self.tap = tap;
    }

    // Asking.

    /// The present moment.
    pub fn now(&self) -> Time {
        self.timeline.now()
    }

    /// The name of a host.
    pub fn host_name(&self, host: HostId) -> &str {
        &self.hosts[host.0]
    }

    /// The name of an uplink.
    pub fn uplink_name(&self, uplink: UplinkId) -> &str {
        &self.uplinks[uplink.0].name
    }

    /// The uplinks of a host, in the order of their making.
    pub fn uplinks(&self, host: HostId) -> Vec<UplinkId> {
        let own = self.uplinks.iter().enumerate().filter(|(_, uplink)| uplink.host == host);
        own.map(|(index, _)| UplinkId(index)).collect()
    }

    /// Whether an uplink is up.
    pub fn is_up(&self, uplink: UplinkId) -> bool {
        self.uplinks[uplink.0].up
    }

    /// The addresses that a host can use now, with their uplinks, in order.
    pub fn addresses(&self, host: HostId) -> Vec<(UplinkId, IpAddr)> {
        let mut addresses = Vec::new();
        for id in self.uplinks(host) {
            let uplink = &self.uplinks[id.0];
            if uplink.up {
                addresses.extend(uplink.addresses.iter().map(|ip| (id, *ip)));
            }
        }
        addresses
    }

    /// The outside endpoints that `inside` has at `nat` now.
    pub fn mapped(&self, nat: NatId, inside: SocketAddr) -> BTreeSet<SocketAddr> {
        self.nats[nat.0].mapped(inside, self.now())
    }

    /// What has been put on the way to `ip`, as seen after the sender's NATs, arrived or not.
    pub fn sent_to(&self, ip: IpAddr) -> Tally {
        self.sent_to.get(&ip).copied().unwrap_or_default()
    }

    /// All addresses that anything was sent to, with how much.
    pub fn destinations(&self) -> &BTreeMap<IpAddr, Tally> {
        &self.sent_to
    }

    /// What ended for this reason.
    pub fn lost(&self, loss: Loss) -> Tally {
        self.losses.get(&loss).copied().unwrap_or_default()
    }

    /// The datagrams that were for nobody, with the time of their end.
    pub fn to_nobody(&self) -> &[(Time, Datagram)] {
        &self.nobody
    }

    // Running.

    /// Sends a UDP datagram or a frame of a TCP connection from `host` along `path`.
    ///
    /// # Errors
    /// [`Loss::NoSource`] if no uplink of the host that is up owns the local address, as the
    /// operating system would say at once; [`Loss::Family`] for two families.
    pub fn send(&mut self, host: HostId, path: Path, payload: Vec<u8>) -> Result<(), Loss> {
        self.send_datagram(host, Datagram::on(path, payload))
    }

    /// Sends any datagram from `host` over the uplink that owns its source.
    ///
    /// # Errors
    /// As [`Net::send`].
    pub fn send_datagram(&mut self, host: HostId, datagram: Datagram) -> Result<(), Loss> {
        if datagram.src.is_ipv4() != datagram.dst.is_ipv4() {
            self.lose(Loss::Family, &datagram);
            return Err(Loss::Family);
        }
        let source = datagram.src.ip();
        let owner = self.addresses(host).into_iter().find(|(_, ip)| *ip == source);
        let Some((id, _)) = owner else {
            self.lose(Loss::NoSource, &datagram);
            return Err(Loss::NoSource);
        };
        self.capture.record(self.now(), Hop::Sent(id), &datagram);
        let uplink = &self.uplinks[id.0];
        let realm = uplink.realm;
        if uplink.swallow_out {
            self.lose(Loss::BlackHole, &datagram);
        } else {
            self.climb(Some(id), realm, datagram);
        }
        Ok(())
    }

    /// Puts a datagram with any source into the internet, as an attacker can; the tap does not see
    /// it.
    pub fn inject(&mut self, datagram: Datagram) {
        self.depart(None, Realm::Internet, datagram);
    }

    /// When something happens next.
    pub fn next_event(&self) -> Option<Time> {
        self.timeline.next_time()
    }

    /// Runs until the next delivery and returns it, or until `until` if there is none before.
    pub fn poll(&mut self, until: Time) -> Option<Delivery> {
        while let Some(flight) = self.timeline.pop(until) {
            if let Some(delivery) = self.arrive(flight) {
                return Some(delivery);
            }
        }
        None
    }

    /// Runs for `duration` and returns all that was delivered.
    pub fn run_for(&mut self, duration: Duration) -> Vec<Delivery> {
        let until = self.now() + duration;
        std::iter::from_fn(|| self.poll(until)).collect()
    }

    /// Out through NATs until the destination is in the realm, or there is no NAT left.
    fn climb(&mut self, from: End, mut realm: Realm, mut datagram: Datagram) {
        let now = self.now();
        for _ in 0..MAX_NATS {
            let Realm::Behind(nat) = realm else { break };
            if self.owners.contains_key(&(realm, datagram.dst.ip())) {
                break;
            }
            if let Err(loss) = self.nats[nat.0].outbound(now, &mut datagram) {
                self.lose(loss, &datagram);
                return;
            }
            realm = self.nats[nat.0].outer();
            self.capture.record(now, Hop::NatOut(nat), &datagram);
        }
        let verdict = match &mut self.tap {
            Some(tap) => tap(now, &datagram),
            None => Verdict::Pass,
        };
        match verdict {
            Verdict::Pass => self.depart(from, realm, datagram),
            Verdict::Drop => self.lose(Loss::Tap, &datagram),
            Verdict::Replace(others) => {
                for other in others {
                    self.depart(from, realm, other);
                }
            }
        }
    }

    /// Onto the link.
    fn depart(&mut self, from: End, realm: Realm, datagram: Datagram) {
        let octets = datagram.octets();
        let tally = self.sent_to.entry(datagram.dst.ip()).or_default();
        tally.datagrams += 1;
        tally.octets += octets as u64;
        let to = self.far_end(realm, datagram.dst);
        let own = from.zip(to).and_then(|ends| self.links.get(&ends)).copied();
        let link = own.unwrap_or(self.default_link);
        if link.too_big(octets) {
            self.lose(Loss::TooBig, &datagram);
            return;
        }
        let now = self.timeline.now();
        let latest = self.latest.entry((from, to)).or_insert(now);
        let arrivals = link.arrivals(now, latest, &mut self.random);
        if arrivals.is_empty() {
            let loss = if link.black_hole { Loss::BlackHole } else { Loss::Chance };
            self.lose(loss, &datagram);
        }
        for time in arrivals {
            self.timeline.put(time, Flight { realm, datagram: datagram.clone() });
        }
    }

    /// The uplink where a datagram to `dst` would end now, seen through the NATs' tables.
    fn far_end(&self, mut realm: Realm, mut dst: SocketAddr) -> End {
        for _ in 0..MAX_NATS {
            match self.owners.get(&(realm, dst.ip()))? {
                Owner::Uplink(id) => return Some(*id),
                Owner::Nat(nat) => {
                    dst = self.nats[nat.0].peek(dst)?;
                    realm = Realm::Behind(*nat);
                }
            }
        }
        None
    }

    /// In through NATs to the host.
    fn arrive(&mut self, flight: Flight) -> Option<Delivery> {
        let Flight { mut realm, mut datagram } = flight;
        let now = self.now();
        for _ in 0..MAX_NATS {
            let loss = match self.owners.get(&(realm, datagram.dst.ip())).copied() {
                Some(Owner::Uplink(id)) => {
                    let uplink = &self.uplinks[id.0];
                    if uplink.up && !uplink.swallow_in {
                        self.capture.record(now, Hop::Delivered(id), &datagram);
                        let host = uplink.host;
                        return Some(Delivery { time: now, host, uplink: id, datagram });
                    }
                    if uplink.up { Loss::BlackHole } else { Loss::Down }
                }
                Some(Owner::Nat(nat)) => match self.nats[nat.0].inbound(now, &mut datagram) {
                    Ok(()) => {
                        realm = Realm::Behind(nat);
                        self.capture.record(now, Hop::NatIn(nat), &datagram);
                        continue;
                    }
                    Err(loss) => loss,
                },
                None => {
                    self.nobody.push((now, datagram.clone()));
                    Loss::Nobody
                }
            };
            self.lose(loss, &datagram);
            return None;
        }
        self.lose(Loss::Nobody, &datagram);
        None
    }

    fn lose(&mut self, loss: Loss, datagram: &Datagram) {
        let tally = self.losses.entry(loss).or_default();
        tally.datagrams += 1;
        tally.octets += datagram.octets() as u64;
        self.capture.record(self.timeline.now(), Hop::Lost(loss), datagram);
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net at {:?}: {} in flight", self.now(), self.timeline.len())
    }
}
