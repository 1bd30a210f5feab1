//! Traffic selectors (RFC 7296 §2.9, §3.13.1; RFC 4301 §4.4.1.1) as values.

mod text;

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

pub use text::SelectorError;

/// Every port, and packets without one.
const ANY: (u16, u16) = (0, u16::MAX);

/// Packets whose port can't be seen (RFC 7296 §3.13.1).
const OPAQUE: (u16, u16) = (u16::MAX, 0);

/// A range of addresses, ports and one protocol: what a CHILD_SA may carry on one of its sides.
///
/// `first` and `last` are of one family and `first <= last`; [`TrafficSelector::new`] holds that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrafficSelector {
    protocol: u8,
    ports: (u16, u16),
    first: IpAddr,
    last: IpAddr,
}

impl TrafficSelector {
    /// A selector from its parts; `None` if the families differ or a range runs backwards.
    ///
    /// `protocol` 0 means any (RFC 7296 §3.13.1). The port range 65535 to 0 is OPAQUE
    /// (RFC 7296 §3.13.1) and the one backward range that is let through.
    pub fn new(protocol: u8, ports: (u16, u16), first: IpAddr, last: IpAddr) -> Option<Self> {
        let ports_ok = ports.0 <= ports.1 || ports == OPAQUE;
        let ok = first.is_ipv4() == last.is_ipv4() && first <= last && ports_ok;
        ok.then_some(TrafficSelector { protocol, ports, first, last })
    }

    /// Every protocol and port of the network `net`.
    pub fn from_net(net: IpNet) -> Self {
        let (first, last) = match net {
            IpNet::V4(net) => (net.network().into(), net.broadcast().into()),
            IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
        };
        TrafficSelector { protocol: 0, ports: ANY, first, last }
    }

    /// Every protocol and port of the one address `addr`.
    pub fn from_addr(addr: IpAddr) -> Self {
        TrafficSelector { protocol: 0, ports: ANY, first: addr, last: addr }
    }

    /// The protocol number of the inner packet, 0 for any.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// First and last port, inclusive.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// Whether packets of this protocol have ports.
    pub fn has_ports(protocol: u8) -> bool {
        // TCP, UDP, DCCP, SCTP, UDP-Lite
        matches!(protocol, 6 | 17 | 33 | 132 | 136)
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address, inclusive.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// Whether the selector is of IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an inner packet with this address, protocol and port is inside.
    ///
    /// A packet without ports (or whose ports can't be seen) has `port` `None` and matches only a
    /// selector of every port, or of OPAQUE ones (RFC 4301 §4.4.1.1).
    pub fn contains(&self, addr: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let port_ok = match port {
            Some(port) => self.ports.0 <= port && port <= self.ports.1,
            None => self.ports == ANY || self.ports == OPAQUE,
        };
        addr.is_ipv4() == self.is_ipv4()
            && self.first <= addr
            && addr <= self.last
            && (self.protocol == 0 || self.protocol == protocol)
            && port_ok
    }

    /// The part of `self` that `other` allows too, if any: narrowing (RFC 7296 §2.9).
    pub fn intersect(&self, other: &TrafficSelector) -> Option<TrafficSelector> {
        if self.is_ipv4() != other.is_ipv4() {
            return None;
        }
        let protocol = common_protocol(self.protocol, other.protocol)?;
        let ports = common_ports(self.ports, other.ports)?;
        TrafficSelector::new(
            protocol,
            ports,
            self.first.max(other.first),
            self.last.min(other.last),
        )
    }

    /// Whether a packet can have one of its ends in `self` and the other in `other`.
    pub fn meets(&self, other: &TrafficSelector) -> bool {
        self.is_ipv4() == other.is_ipv4()
            && common_protocol(self.protocol, other.protocol).is_some()
    }

    /// Whether everything in `self` is in `other` too.
    pub fn is_subset_of(&self, other: &TrafficSelector) -> bool {
        self.intersect(other) == Some(*self)
    }

    /// The networks that cover exactly the address range, biggest first from the low end.
    pub fn nets(&self) -> Vec<IpNet> {
        use ipnet::{IpSubnets, Ipv4Subnets, Ipv6Subnets};
        match (self.first, self.last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => IpSubnets::from(Ipv4Subnets::new(a, b, 0)).collect(),
            (IpAddr::V6(a), IpAddr::V6(b)) => IpSubnets::from(Ipv6Subnets::new(a, b, 0)).collect(),
            _ => Vec::new(),
        }
    }
}

impl fmt::Debug for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The protocol of packets that both allow; 0 is any.
fn common_protocol(a: u8, b: u8) -> Option<u8> {
    match (a, b) {
        (0, protocol) | (protocol, 0) => Some(protocol),
        _ => (a == b).then_some(a),
    }
}

/// The ports that both allow. OPAQUE is in every port and in itself, and in no other range
/// (RFC 4301 §4.4.1.1).
fn common_ports(a: (u16, u16), b: (u16, u16)) -> Option<(u16, u16)> {
    match (a, b) {
        (ANY, ports) | (ports, ANY) => Some(ports),
        (OPAQUE, _) | (_, OPAQUE) => (a == b).then_some(OPAQUE),
        _ => Some((a.0.max(b.0), a.1.min(b.1))).filter(|(first, last)| first <= last),
    }
}

#[cfg(test)]
mod tests;
