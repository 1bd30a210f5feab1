//! What the operator decides about how a connection moves.

use std::{net::IpAddr, time::Duration};

use bewick_ike::{Path, nat::Nat};
use ipnet::IpNet;

/// When the responder's traffic follows the initiator to a new address (RFC 4555 §3.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReturnRoutability {
    /// after the peer has answered a COOKIE2 from there: nobody can point our traffic at a victim
    #[default]
    Before,
    /// at once, but no more than three times the octets that have come from there until it has answered
    /// (RFC 9000 §8.1 has the same limit); with a data plane that can't count so, like `Before`
    After,
    /// at once: for peers that are trusted not to lie
    Off,
}

/// From where a peer may come (RFC 4555 §3.5: UNACCEPTABLE_ADDRESSES otherwise).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPolicy {
    /// networks that its address has to be in; none for any
    pub allow: Vec<IpNet>,
    /// networks that it must not be in
    pub deny: Vec<IpNet>,
    /// over IPv4
    pub ipv4: bool,
    /// over IPv6
    pub ipv6: bool,
    /// through a NAT
    pub nat: bool,
    /// from any port; else from 500 and 4500 alone, which no NAT has changed
    pub any_port: bool,
}

impl Default for AddressPolicy {
    fn default() -> Self {
        AddressPolicy {
            allow: Vec::new(),
            deny: Vec::new(),
            ipv4: true,
            ipv6: true,
            nat: true,
            any_port: true,
        }
    }
}

impl AddressPolicy {
    /// Whether the peer may be at the other end of `path`.
    pub fn accepts(&self, path: Path, nat: Option<Nat>) -> bool {
        let (address, port) = (path.remote.ip(), path.remote.port());
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        (self.allow.is_empty() || within(&self.allow))
            && !within(&self.deny)
            && if address.is_ipv4() { self.ipv4 } else { self.ipv6 }
            && (self.nat || !nat.unwrap_or_default().any())
            && (self.any_port || path.is_tcp() || matches!(port, 500 | 4500))
    }
}

/// Whether an initiator uses TCP (RFC 9329).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpUse {
    /// never
    #[default]
    Off,
    /// where UDP finds no answer (RFC 9329 §5.1)
    Fallback,
    /// nothing else, as in a network that is known to have no UDP
    Always,
}

/// What the operator decides about how a connection moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPolicy {
    /// as responder: check a new address before traffic goes there
    pub return_routability: ReturnRoutability,
    /// as responder: from where the peer may come
    pub accept: AddressPolicy,
    /// as responder: a CHILD_SA whose ESP comes from another port of the same address is followed, once the
    /// peer has shown that it receives there (RFC 4555 §3.8)
    pub esp_follow: bool,
    /// the peer's list of addresses is heeded (RFC 4555 §3.6)
    pub accept_peer_addresses: bool,
    /// which of our addresses the peer is told of; `None` for those that it could reach
    pub announce: Option<Vec<IpNet>>,
    /// as initiator: try again after a failure or a loss, for ever
    pub keep_up: bool,
    /// as initiator: brought up by the first packet for it, each time anew; not together with `keep_up`
    pub trap: bool,
    /// as initiator: traffic that goes out for this time while none comes in makes the path suspect; zero
    /// for never
    pub dead_after: Duration,
    /// as initiator: the best alternatives are asked so often while all is well; zero for never
    pub standby: Duration,
    /// also on uplinks that are metered
    pub standby_metered: bool,
    /// as initiator: a better uplink than the one in use is taken when it has worked for so long; zero for
    /// never
    pub back_after: Duration,
    /// pairs are tried strictly one after the other, each wait twice as long as the one before
    /// (draft-ietf-multi6-failure-detection-00 §5.3)
    pub strict: bool,
    /// a peer that is away is waited for so long (RFC 4555 §3.11)
    pub hold: Duration,
    /// as initiator: whether IKE and ESP go over TCP
    pub tcp: TcpUse,
    /// the gateway's TCP port
    pub tcp_port: u16,
}

impl Default for ConnectionPolicy {
    fn default() -> Self {
        ConnectionPolicy {
            return_routability: ReturnRoutability::Before,
            accept: AddressPolicy::default(),
            esp_follow: false,
            accept_peer_addresses: true,
            announce: None,
            keep_up: false,
            trap: false,
            dead_after: Duration::from_secs(1),
            standby: Duration::from_secs(25),
            standby_metered: false,
            back_after: Duration::from_secs(10),
            strict: false,
            hold: Duration::from_secs(3600),
            tcp: TcpUse::Off,
            tcp_port: 4500,
        }
    }
}

impl ConnectionPolicy {
    /// Whether the peer at the other end of `path` is told of this address of ours. Who reaches us at a
    /// private address may reach another one; for anybody else those are of no use, and none of his
    /// business (RFC 4555 §5.5).
    pub(crate) fn announces(&self, address: IpAddr, path: Path) -> bool {
        match &self.announce {
            Some(nets) => nets.iter().any(|net| net.contains(&address)),
            None => {
                let (ours, theirs) = (path.local.ip(), path.remote.ip());
                !is_private(address) || (is_private(ours) && is_private(theirs))
            }
        }
    }
}

/// Whether the address means something in some network alone.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        // RFC 1918, RFC 3927, and the shared space of RFC 6598.
        IpAddr::V4(a) => {
            let [first, second, ..] = a.octets();
            a.is_private() || a.is_link_local() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(a) => a.is_unique_local() || a.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(remote: &str) -> Path {
        Path::new("192.0.2.1:4500".parse().unwrap(), remote.parse().unwrap())
    }

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn m_3_5_16_prefixes_families_nats_and_ports_decide() {
        let any = AddressPolicy::default();
        assert!(any.accepts(from("203.0.113.7:31000"), None));
        let allow = AddressPolicy { allow: nets(&["203.0.113.0/24"]), ..any.clone() };
        assert!(allow.accepts(from("203.0.113.7:4500"), None));
        assert!(!allow.accepts(from("198.51.100.7:4500"), None));
        let deny = AddressPolicy { deny: nets(&["203.0.113.128/25"]), ..allow };
        assert!(deny.accepts(from("203.0.113.7:4500"), None));
        assert!(!deny.accepts(from("203.0.113.200:4500"), None));
        let v6 = AddressPolicy { ipv4: false, ..any.clone() };
        assert!(v6.accepts(from("[2001:db8::1]:4500"), None));
        assert!(!v6.accepts(from("203.0.113.7:4500"), None));
        let clean = AddressPolicy { nat: false, ..any.clone() };
        let nat = Nat { local: false, remote: true };
        assert!(!clean.accepts(from("203.0.113.7:4500"), Some(nat)));
        assert!(clean.accepts(from("203.0.113.7:4500"), Some(Nat::default())));
        let ports = AddressPolicy { any_port: false, ..any };
        assert!(ports.accepts(from("203.0.113.7:4500"), None));
        assert!(!ports.accepts(from("203.0.113.7:31000"), None));
    }

    #[test]
    fn m_5_5_1_private_addresses_are_told_to_private_peers_alone() {
        let policy = ConnectionPolicy::default();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let public = from("203.0.113.7:4500");
        let inside = Path::new("10.0.0.1:4500".parse().unwrap(), "10.0.0.2:4500".parse().unwrap());
        assert!(policy.announces(ip("198.51.100.1"), public));
        assert!(!policy.announces(ip("172.17.0.1"), public), "a container's");
        assert!(!policy.announces(ip("fd00::1"), public));
        assert!(policy.announces(ip("10.0.1.1"), inside));
        let named = ConnectionPolicy { announce: Some(nets(&["172.16.0.0/12"])), ..policy };
        assert!(named.announces(ip("172.17.0.1"), public), "if the operator says so");
        assert!(!named.announces(ip("198.51.100.1"), public));
    }
}
