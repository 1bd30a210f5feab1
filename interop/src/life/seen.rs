//! What a capture must show, as filters for `tcpdump`.
//!
//! Offsets count from the UDP header. On port 500 the IKE header follows it, on port 4500 four zero
//! octets come first (RFC 7296 §2.23, §3.1).

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use crate::peer::tunnel::Tunnel;
use crate::topology::{FIRST_UPLINK, GATEWAY, Node, SECOND_UPLINK};

/// Something that must have passed the router.
#[derive(Debug, Clone)]
pub struct Seen {
    /// In words.
    pub what: &'static str,
    /// As a filter.
    pub filter: String,
}

fn from(node: Node) -> String {
    let gateway = Tunnel::default().gateway_address();
    match node {
        Node::Gateway => format!("src host {gateway}"),
        _ => format!("dst host {gateway}"),
    }
}

impl Seen {
    /// ESP in UDP, which has no zeros where IKE has its marker (RFC 3948 §2.1).
    pub fn esp_in_udp(node: Node) -> Self {
        let filter = format!("{} and udp port 4500 and greater 60 and udp[8:4] != 0", from(node));
        Self { what: "ESP in UDP", filter }
    }

    /// What the two ends send each other besides IKE and ESP.
    pub fn between_ends() -> Self {
        let both = format!("(host {FIRST_UPLINK} or host {SECOND_UPLINK}) and host {GATEWAY}");
        let filter =
            format!("{both} and not ip proto 50 and not udp port 500 and not udp port 4500");
        Self { what: "a packet between the two ends in the clear", filter }
    }

    /// ESP, in UDP or not, in a packet of so many octets.
    pub fn esp_of(octets: RangeInclusive<u16>) -> Self {
        let (least, most) = (octets.start(), octets.end());
        let esp = "(ip proto 50 or (udp port 4500 and udp[8:4] != 0))";
        Self {
            what: "ESP as large as this ping",
            filter: format!("{esp} and greater {least} and less {most}"),
        }
    }

    /// A packet between this host and an uplink of the client's, in the clear.
    pub fn from_uplink_to(host: Ipv4Addr) -> Self {
        let uplink = format!("(src host {FIRST_UPLINK} or src host {SECOND_UPLINK})");
        Self {
            what: "a packet from an uplink",
            filter: format!("icmp and {uplink} and dst host {host}"),
        }
    }

    /// A packet to or from this host in the clear.
    pub fn bare(host: Ipv4Addr) -> Self {
        Self { what: "a packet in the clear", filter: format!("host {host}") }
    }

    /// ESP without UDP.
    pub fn bare_esp() -> Self {
        Self { what: "ESP without UDP", filter: "ip proto 50 or ip6 proto 50".to_owned() }
    }

    /// What begins every TCP connection (RFC 9329 §4): IKETCP.
    pub fn stream() -> Self {
        let data = "((tcp[12] & 0xf0) >> 2)";
        let prefix = format!("tcp[{data}:4] = 0x494b4554 and tcp[({data} + 4):2] = 0x4350");
        Self {
            what: "a TCP connection that begins with IKETCP",
            filter: format!("{} and tcp dst port 4500 and {prefix}", from(Node::Client)),
        }
    }

    /// A message in fragments: its first payload is SKF (53, RFC 7383 §2.5).
    pub fn fragment(node: Node) -> Self {
        let what = match node {
            Node::Gateway => "a fragment from the gateway",
            _ => "a fragment from the client",
        };
        let marked = "udp port 4500 and udp[8:4] = 0 and udp[28] = 53";
        let plain = "udp port 500 and udp[24] = 53";
        Self { what, filter: format!("{} and (({marked}) or ({plain}))", from(node)) }
    }

    /// An IKE_SA_INIT whose first payload is the notify COOKIE (41 and 16390, RFC 7296 §2.6).
    pub fn cookie(node: Node) -> Self {
        let what = match node {
            Node::Gateway => "a cookie asked for by the gateway",
            _ => "a cookie sent back by the client",
        };
        let cookie = "udp port 500 and udp[24] = 41 and udp[42:2] = 16390";
        Self { what, filter: format!("{} and {cookie}", from(node)) }
    }

    /// An IKE_SA_INIT answer whose first payload is the notify INVALID_KE_PAYLOAD (17).
    pub fn other_group() -> Self {
        let other = "udp port 500 and udp[24] = 41 and udp[42:2] = 17";
        Self {
            what: "another group asked for by the gateway",
            filter: format!("{} and {other}", from(Node::Gateway)),
        }
    }
}

/// strongSwan's log with its IKE_SAs numbered in the order in which they were established: a request that came
/// again before its answer was ready has made it count one that nobody knows.
pub fn renumbered(log: &str) -> String {
    let names = log.lines().filter_map(|line| {
        let (before, _) = line.split_once(" state change: CONNECTING => ESTABLISHED")?;
        before.rsplit(' ').next()
    });
    let mut text = log.to_owned();
    for (number, name) in (1..).zip(names) {
        let kind = name.split('[').next().unwrap_or_default();
        // The mark keeps what has its new number from being found again.
        text = text.replace(name, &format!("{kind}[\u{0}{number}]"));
    }
    text.replace('\u{0}', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_established_has_a_number() {
        let line =
            |name: &str, change: &str| format!("07[IKE] IKE_SA {name} state change: {change}\n");
        let (up, down) = ("CONNECTING => ESTABLISHED", "ESTABLISHED => DELETING");
        let log = [
            line("(unnamed)[2]", "CREATED => CONNECTING"),
            line("tunnel[1]", up),
            line("tunnel[3]", up),
            line("tunnel[1]", down),
            line("tunnel[12]", up),
            line("tunnel[3]", down),
        ];
        let expected = [
            log[0].clone(),
            line("tunnel[1]", up),
            line("tunnel[2]", up),
            line("tunnel[1]", down),
            line("tunnel[3]", up),
            line("tunnel[2]", down),
        ];
        assert_eq!(renumbered(&log.concat()), expected.concat());
    }
}
