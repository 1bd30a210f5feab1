//! Traffic selectors (RFC 7296 §2.9, §3.13.1; RFC 4301 §4.4.1.1) as values.

use std::{fmt, net::IpAddr};

use ipnet::IpNet;

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
        let ports_ok = ports.0 <= ports.1 || ports == (u16::MAX, 0);
        let ok = first.is_ipv4() == last.is_ipv4() && first <= last && ports_ok;
        ok.then_some(TrafficSelector { protocol, ports, first, last })
    }

    /// Every protocol and port of the network `net`.
    pub fn from_net(net: IpNet) -> Self {
        let (first, last) = match net {
            IpNet::V4(net) => (net.network().into(), net.broadcast().into()),
            IpNet::V6(net) => (net.network().into(), net.broadcast().into()),
        };
        TrafficSelector { protocol: 0, ports: (0, u16::MAX), first, last }
    }

    /// Every protocol and port of the one address `addr`.
    pub fn from_addr(addr: IpAddr) -> Self {
        TrafficSelector { protocol: 0, ports: (0, u16::MAX), first: addr, last: addr }
    }

    /// The protocol number of the inner packet, 0 for any.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// First and last port, inclusive.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
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
    /// selector of every port.
    pub fn contains(&self, addr: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let port_ok = match port {
            Some(port) => self.ports.0 <= port && port <= self.ports.1,
            None => self.ports == (0, u16::MAX),
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
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (a, b) if a == b => a,
            _ => return None,
        };
        let ports = if self.ports == other.ports {
            self.ports
        } else {
            (self.ports.0.max(other.ports.0), self.ports.1.min(other.ports.1))
        };
        if ports.0 > ports.1 && ports != self.ports {
            return None;
        }
        TrafficSelector::new(
            protocol,
            ports,
            self.first.max(other.first),
            self.last.min(other.last),
        )
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

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.nets().as_slice() {
            [net] => write!(f, "{net}")?,
            _ => write!(f, "{}-{}", self.first, self.last)?,
        }
        if self.protocol != 0 || self.ports != (0, u16::MAX) {
            write!(f, "[{}/{}-{}]", self.protocol, self.ports.0, self.ports.1)?;
        }
        Ok(())
    }
}

impl fmt::Debug for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
