//! What an inner packet shows to traffic selectors (RFC 4301 §4.4.1.1, §5.2; RFC 7296 §3.13.1).

use std::net::IpAddr;

use bewick_ike::TrafficSelector;

use super::esp::{NEXT_IPV4, NEXT_IPV6};

const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const MOBILITY: u8 = 135;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// IPv6 extension headers that are looked through at most; behind more, no port is seen.
const MAX_EXTENSIONS: usize = 8;

/// The fields of an inner packet that selectors look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// the upper-layer protocol, extension headers looked through
    pub(super) protocol: u8,
    /// source and destination port; for ICMP type and code in both; `None` if not to be seen
    pub(super) ports: Option<(u16, u16)>,
    /// octets of the packet itself; what follows is padding
    pub(super) len: usize,
}

impl Inner {
    /// Reads an IP packet; `None` if it is none, or cut short.
    pub(super) fn parse(packet: &[u8]) -> Option<Inner> {
        match packet.first()? >> 4 {
            4 => Inner::parse_v4(packet),
            6 => Inner::parse_v6(packet),
            _ => None,
        }
    }

    /// The ESP next header for it in tunnel mode.
    pub(super) fn next_header(&self) -> u8 {
        if self.source.is_ipv4() { NEXT_IPV4 } else { NEXT_IPV6 }
    }

    fn parse_v4(packet: &[u8]) -> Option<Inner> {
        let header: &[u8; 20] = packet.first_chunk()?;
        let [first, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *header;
        let header_len = usize::from(first & 0xf) * 4;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        if header_len < header.len() || len < header_len || len > packet.len() {
            return None;
        }
        let first_fragment = u16::from_be_bytes([f0, f1]) & 0x1fff == 0;
        let body = packet.get(header_len..len)?;
        Some(Inner {
            source: [s0, s1, s2, s3].into(),
            destination: [d0, d1, d2, d3].into(),
            protocol,
            ports: first_fragment.then(|| ports(protocol, body)).flatten(),
            len,
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Inner> {
        let (header, rest) = packet.split_first_chunk::<40>()?;
        let source: [u8; 16] = header.get(8..24)?.try_into().ok()?;
        let destination: [u8; 16] = header.get(24..40)?.try_into().ok()?;
        let body_len = usize::from(u16::from_be_bytes([*header.get(4)?, *header.get(5)?]));
        let body = rest.get(..body_len)?;
        let (protocol, ports) = upper_layer(*header.get(6)?, body);
        Some(Inner {
            source: source.into(),
            destination: destination.into(),
            protocol,
            ports,
            len: header.len() + body_len,
        })
    }

    /// Whether we may send it: its source is on our side, its destination on the peer's.
    pub(super) fn is_outbound(&self, local: &TrafficSelector, remote: &TrafficSelector) -> bool {
        let (source, destination) = self.split_ports();
        local.contains(self.source, self.protocol, source)
            && remote.contains(self.destination, self.protocol, destination)
    }

    /// Whether the peer may send it to us: any of its selectors as source, any of ours as
    /// destination (RFC 4301 §5.2 step 4).
    pub(super) fn is_inbound(&self, local: &[TrafficSelector], remote: &[TrafficSelector]) -> bool {
        let (source, destination) = self.split_ports();
        remote.iter().any(|ts| ts.contains(self.source, self.protocol, source))
            && local.iter().any(|ts| ts.contains(self.destination, self.protocol, destination))
    }

    fn split_ports(&self) -> (Option<u16>, Option<u16>) {
        (self.ports.map(|ports| ports.0), self.ports.map(|ports| ports.1))
    }
}

/// Looks through IPv6 extension headers for the upper-layer protocol and its ports.
fn upper_layer(mut next: u8, mut body: &[u8]) -> (u8, Option<(u16, u16)>) {
    for _ in 0..MAX_EXTENSIONS {
        let [following, len, f0, f1, ..] = *body else {
            return (next, None);
        };
        let skip = match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(len) + 1) * 8,
            FRAGMENT if u16::from_be_bytes([f0, f1]) & 0xfff8 == 0 => 8,
            // Not the first fragment: what follows is no header.
            FRAGMENT => return (following, None),
            _ => return (next, ports(next, body)),
        };
        match body.get(skip..) {
            Some(rest) => (next, body) = (following, rest),
            None => return (next, None),
        }
    }
    (next, None)
}

fn ports(protocol: u8, body: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = body.first_chunk()?;
    match protocol {
        _ if TrafficSelector::has_ports(protocol) => {
            Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        // RFC 7296 §3.13.1: type and code stand for the port, on either side.
        ICMP | ICMPV6 => Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([a, b]))),
        MOBILITY => Some((u16::from_be_bytes([c, 0]), u16::from_be_bytes([c, 0]))),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// An IPv4 or IPv6 UDP packet.
    pub(crate) fn udp(source: &str, destination: &str, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let source: IpAddr = source.parse().unwrap();
        let destination: IpAddr = destination.parse().unwrap();
        let len = (8 + data.len()) as u16;
        let mut packet = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => v4(source, destination, UDP, len, 0),
            (IpAddr::V6(source), IpAddr::V6(destination)) => v6(source, destination, UDP, len),
            _ => panic!("mixed families"),
        };
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend(len.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(data);
        packet
    }

    fn v4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16, offset: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend((20 + len).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(offset.to_be_bytes());
        packet.extend([64, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet
    }

    fn v6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, len: u16) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(len.to_be_bytes());
        packet.extend([next, 64]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet
    }

    fn selector(net: &str) -> TrafficSelector {
        TrafficSelector::from_net(net.parse().unwrap())
    }

    fn port_selector(net: &str, protocol: u8, ports: (u16, u16)) -> TrafficSelector {
        let any = selector(net);
        TrafficSelector::new(protocol, ports, any.first(), any.last()).unwrap()
    }

    #[test]
    fn addresses_protocol_and_ports_are_read() {
        for (source, destination) in [("10.9.0.1", "10.1.0.5"), ("2001:db8::1", "2001:db8:1::5")] {
            let mut packet = udp(source, destination, (1000, 53), b"question");
            let len = packet.len();
            packet.extend([0; 30]);
            let inner = Inner::parse(&packet).unwrap();
            assert_eq!(inner.source, source.parse::<IpAddr>().unwrap());
            assert_eq!(inner.destination, destination.parse::<IpAddr>().unwrap());
            assert_eq!((inner.protocol, inner.ports, inner.len), (17, Some((1000, 53)), len));
            for cut in 0..len {
                assert_eq!(Inner::parse(&packet[..cut]), None);
            }
        }
        assert_eq!(Inner::parse(&[0x50; 60]), None);
        assert_eq!(Inner::parse(&[0x44; 60]), None);
    }

    #[test]
    fn ports_decide_in_both_directions() {
        let local = selector("10.9.0.0/24");
        let remote = port_selector("10.1.0.0/16", 17, (53, 53));
        let question = udp("10.9.0.1", "10.1.0.5", (1000, 53), b"");
        let answer = udp("10.1.0.5", "10.9.0.1", (53, 1000), b"");
        let other = udp("10.9.0.1", "10.1.0.5", (1000, 54), b"");
        assert!(Inner::parse(&question).unwrap().is_outbound(&local, &remote));
        assert!(!Inner::parse(&question).unwrap().is_inbound(&[local], &[remote]));
        assert!(Inner::parse(&answer).unwrap().is_inbound(&[local], &[remote]));
        assert!(!Inner::parse(&other).unwrap().is_outbound(&local, &remote));
    }

    #[test]
    fn icmp_type_and_code_are_the_port_of_both_sides() {
        let mut packet = v4([10, 9, 0, 1].into(), [10, 1, 0, 5].into(), ICMP, 8, 0);
        packet.extend([8, 3, 0, 0, 0, 0, 0, 0]);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!(inner.ports, Some((0x0803, 0x0803)));
        let echo = (0x0800, 0x08ff);
        let local = port_selector("10.9.0.0/24", ICMP, echo);
        let remote = port_selector("10.1.0.0/16", ICMP, echo);
        assert!(inner.is_outbound(&local, &remote));
    }

    #[test]
    fn a_later_fragment_shows_no_port() {
        let mut packet = v4([10, 9, 0, 1].into(), [10, 1, 0, 5].into(), UDP, 16, 0x0005);
        packet.extend([0xff; 16]);
        let inner = Inner::parse(&packet).unwrap();
        assert_eq!((inner.protocol, inner.ports), (17, None));
        assert!(inner.is_outbound(&selector("10.9.0.0/24"), &selector("10.1.0.0/16")));
        let dns = port_selector("10.1.0.0/16", 17, (53, 53));
        assert!(!inner.is_outbound(&selector("10.9.0.0/24"), &dns));
    }

    #[test]
    fn ipv6_extension_headers_are_looked_through() {
        let ends = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let udp = [0x03, 0xe8, 0, 53, 0, 8, 0, 0];
        let chain = |headers: &[&[u8]], first: u8| {
            let body = headers.concat();
            let mut packet = v6(ends.0, ends.1, first, body.len() as u16);
            packet.extend(body);
            let inner = Inner::parse(&packet).unwrap();
            (inner.protocol, inner.ports)
        };
        let options = [ROUTING, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let routing = [FRAGMENT, 0, 0, 0, 0, 0, 0, 0];
        let first = [UDP, 0, 0, 1, 0, 0, 0, 9];
        let later = [UDP, 0, 0, 9, 0, 0, 0, 9];
        let ports = Some((1000, 53));
        assert_eq!(chain(&[&options, &routing, &first, &udp], HOP_BY_HOP), (UDP, ports));
        assert_eq!(chain(&[&later, &udp], FRAGMENT), (UDP, None));
        assert_eq!(chain(&[&options[..8]], HOP_BY_HOP), (HOP_BY_HOP, None));
        let endless = [DESTINATION, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(chain(&[&endless[..]; 20], DESTINATION), (DESTINATION, None));
    }
}
